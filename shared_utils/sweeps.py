"""Sweeps: train over many settings, in turn, in processes or on a Ray cluster, and keep what is finished."""

import contextlib
import hashlib
import inspect
import itertools
import json
import math
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pandas as pd
import torch

from shared_utils.device import name_error, resolve_path, set_threads, write_whole
from shared_utils.runs import RUN_MODULE, read_versions, to_json, to_plain
from shared_utils.sources import function_sources

EXECUTORS = ("serial", "processes", "ray")


def sweep(
    train: Callable[..., dict],
    grid: list[dict] | dict[str, Iterable],
    *,
    name: str,
    folder: str | os.PathLike = "models",
    data: str = "",
    executor: str = "serial",
    n_workers: int = 2,
) -> pd.DataFrame:
    """Call `train(**settings)` for all settings of `grid` and return a row a run, in the order of the grid.

    Args:
        train: one run: settings -> a dict of plain numbers and texts, the main result first. It seeds itself.
        grid: a list of settings, or setting -> its values, of which all combinations are run.
        name, folder: finished runs stay in `<folder>/<name>/sweep/`, a file each.
        data: what the runs were trained on, in words: the name of the data set and its number of clips, say.
        executor: "serial"; "processes" on this machine; "ray" on the cluster that RAY_ADDRESS names, or on a local one.
        n_workers: runs at a time, for "processes" and "ray"; they share the CPU threads (and Ray's GPUs) equally.

    A finished run is written at once, and a repeated call takes it from there: after an interruption only what is
    missing is computed. A run is the same if its settings, `data`, and the source of `train` with all functions,
    classes and plain values that it uses of its own notebook or file are the same; what the package computes, and
    arrays or tables that `train` finds in the notebook, are not looked at. An object of the notebook that runs change
    is another one after them.

    Returns settings, results and seconds (of the run, unless `train` returns its own). Where runs have failed a column
    `error` says why; they are not stored, the others go on. If a process dies, the runs that it took along are done
    again, one at a time. Ctrl-C returns what is there.

    Raises ValueError for an empty grid or settings that `train` does not take or that are called seconds or error,
    RuntimeError if Ray is not installed.
    """
    rows = _expand_grid(grid)
    if executor not in EXECUTORS:
        raise ValueError(f"Executor {executor!r} is unknown; choose one of {', '.join(EXECUTORS)}.")
    if n_workers < 1:
        raise ValueError(f"{n_workers} workers cannot compute anything; give 1 or more.")
    for settings in rows:
        taken = settings.keys() & {"seconds", "error"}
        if taken:
            raise ValueError(f"A setting cannot be called {min(taken)}: a column of the result is; rename it in train.")
        try:
            inspect.signature(train).bind(**settings)
        except TypeError as error:
            raise ValueError(f"train does not take the settings {settings}: {error}.") from error
    sources = function_sources(train)
    plain = [_plain_settings(settings) for settings in rows]
    keys = [_digest([settings, sources, data]) for settings in plain]
    parent = resolve_path(folder) / name / "sweep"
    outcomes = _read_outcomes(parent, keys)
    todo = [(key, settings) for key, settings in dict(zip(keys, rows, strict=True)).items() if key not in outcomes]
    if outcomes:
        print(f"{len(set(keys)) - len(todo)} of {len(set(keys))} runs are there already, in {parent}.")

    names = dict.fromkeys(itertools.chain(*rows))
    differing = [name for name in names if len({repr(settings.get(name)) for settings in rows}) > 1]
    started, stopped = time.perf_counter(), False
    outcomes_to_come = _start_runs(executor, train, todo, n_workers) if todo else iter(())
    with _noticing_ctrl_c() as interrupts:
        try:
            for number, (key, outcome) in enumerate(outcomes_to_come, 1):
                if interrupts:  # training.fit ends early then, and such a run must not count as a finished one
                    raise KeyboardInterrupt
                settings = dict(todo)[key]
                outcomes[key] = outcome
                if "result" in outcome:
                    record = {"settings": plain[keys.index(key)], "data": data, **outcome, "versions": read_versions()}
                    with write_whole(parent / f"{key}.json") as temporary:
                        temporary.write_text(to_json(record), encoding="utf-8")
                left = (time.perf_counter() - started) / number * (len(todo) - number)
                shown = ", ".join(f"{name}={settings[name]}" for name in differing or settings if name in settings)
                print(f"{number} of {len(todo)}  {shown}: {_main_result(outcome)}, {_show_time(left)} left", flush=True)
        except KeyboardInterrupt:
            stopped = True
        finally:
            getattr(outcomes_to_come, "close", lambda: None)()
    if stopped:
        n_done = sum("result" in outcomes.get(key, {}) for key in keys)
        print(f"Stopped by hand: {n_done} of {len(keys)} runs are finished; the same call goes on with the others.")
    done = [i for i, key in enumerate(keys) if key in outcomes]
    return _tabulate([rows[i] for i in done], [outcomes[keys[i]] for i in done])


def _expand_grid(grid: list[dict] | dict[str, Iterable]) -> list[dict]:
    if isinstance(grid, dict):
        for name, values in grid.items():
            if isinstance(values, str | bytes) or not isinstance(values, Iterable):
                raise ValueError(f"The grid has {name}={values!r}; give a list of values, [{values!r}] for one.")
        grid = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())] if grid else []
    rows = [dict(settings) for settings in grid]
    if not rows:
        raise ValueError("The grid holds no run: give a list of settings, or setting -> values, none of them empty.")
    return rows


def _plain_settings(settings: dict) -> dict:
    """Return settings as JSON has them; infinity and NaN, which it has not, in words: they are not None."""

    def in_words(value):
        value = value.tolist() if hasattr(value, "tolist") else value  # of NumPy or PyTorch
        if isinstance(value, float) and not math.isfinite(value):
            return str(value)
        if isinstance(value, dict):
            return {key: in_words(item) for key, item in value.items()}
        return [in_words(item) for item in value] if isinstance(value, list | tuple) else value

    return to_plain("settings", in_words(settings))


def _start_runs(
    executor: str, train: Callable, todo: list[tuple[str, dict]], n_workers: int
) -> Iterator[tuple[str, dict]]:
    """Yield (key, outcome) of each run as it ends."""
    if executor == "serial":
        return ((key, _run_one(train, settings)[1]) for key, settings in todo)
    if executor == "processes":
        return _run_in_processes(train, todo, n_workers)
    return _run_on_ray(train, todo, n_workers)


def _run_one(train: Callable, settings: dict, key: str = "", n_threads: int | None = None) -> tuple[str, dict]:
    """Return the key and the outcome of one run: {"result": ..., "seconds": ...} or {"error": ..., "seconds": ...}."""
    if n_threads is not None:
        set_threads(n_threads)
    started = time.perf_counter()
    try:
        result = train(**settings)
        if not isinstance(result, dict):
            raise ValueError(f"train returned a {type(result).__name__}; a dict of numbers and texts is needed")
        taken = [name for name in result if name in settings or name == "error"]
        if taken:
            raise ValueError(f"train returned {', '.join(taken)}, the name of a setting or of the column of errors")
        outcome = {"result": {str(name): to_plain(f"the result {name}", value) for name, value in result.items()}}
    except Exception as error:
        outcome = {"error": f"{type(error).__name__}: {error}".removesuffix(": ")}
    return key, outcome | {"seconds": round(time.perf_counter() - started, 3)}


def _run_in_processes(train: Callable, todo: list[tuple[str, dict]], n_workers: int) -> Iterator[tuple[str, dict]]:
    from joblib import Parallel, delayed
    from joblib.externals.loky import get_reusable_executor
    from joblib.externals.loky.cloudpickle_wrapper import dumps
    from joblib.externals.loky.process_executor import BrokenProcessPool

    cloudpickle = sys.modules[dumps.__module__]  # before joblib 1.6 a copy of its own
    for name, module in list(sys.modules.items()):
        if re.fullmatch(RUN_MODULE + "[0-9a-f]{16}", name):  # of a loaded run: the processes could not import it
            cloudpickle.register_pickle_by_value(module)
    n_threads = max(1, torch.get_num_threads() // n_workers)
    # With one job joblib would stay in this process, and a run that dies would end it: two, of which one is never given
    # a run. Copy on write: PyTorch warns of arrays that it may not write to.
    parallel = Parallel(
        max(2, n_workers), backend="loky", return_as="generator_unordered", batch_size=1, pre_dispatch=n_workers,
        mmap_mode="c",
    )  # fmt: skip
    finished = set()
    try:
        for key, outcome in parallel(delayed(_run_one)(train, settings, key, n_threads) for key, settings in todo):
            finished.add(key)
            yield key, outcome
    except BrokenProcessPool as broken:
        if "un-serialize" in str(broken):  # a process could not make `train` of what it was sent: none will
            reason = str(broken.__cause__).strip('" \n').splitlines()[-1]  # of a traceback in words
            error = f"a process could not read what train uses ({reason}); use the executor serial"
            yield from ((key, {"error": error, "seconds": math.nan}) for key, _ in todo if key not in finished)
            return
        if len(todo) == 1:
            error = "the process of this run has died, with no other run beside it: for want of memory as a rule"
            yield todo[0][0], {"error": error, "seconds": math.nan}
            return
        # A process that dies takes those beside it along, and nobody knows which it was; runs are started in order, so
        # it should be one of the first that are left: each of them anew and alone, then the others.
        left = [(key, settings) for key, settings in todo if key not in finished]
        print(f"A process has died: {len(left[:n_workers])} of the runs are done again, one at a time.", flush=True)
        for run in left[:n_workers]:
            yield from _run_in_processes(train, [run], n_workers)
        if left[n_workers:]:
            yield from _run_in_processes(train, left[n_workers:], n_workers)
    except BaseException:
        get_reusable_executor().shutdown(wait=False, kill_workers=True)  # or the runs would go on unseen
        raise


def _run_on_ray(train: Callable, todo: list[tuple[str, dict]], n_workers: int) -> Iterator[tuple[str, dict]]:
    try:
        import ray
    except ImportError as error:
        raise RuntimeError('executor="ray" needs Ray: pip install -e ".[cluster]"') from error
    was_there, waiting = ray.is_initialized(), {}
    if not was_there:
        ray.init(log_to_driver=False)  # joins the cluster of RAY_ADDRESS, or starts one on this machine
    try:
        cpus, gpus = _share_of_ray([node["Resources"] for node in ray.nodes() if node["Alive"]], n_workers)
        remote = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=0)(_run_one)
        shared, to_start = ray.put(train), list(reversed(todo))
        while to_start or waiting:
            while to_start and len(waiting) < n_workers:
                key, settings = to_start.pop()
                waiting[remote.remote(shared, settings, key, max(1, int(cpus)))] = key
            (reference,), _ = ray.wait(list(waiting), num_returns=1)
            key = waiting.pop(reference)
            try:
                yield ray.get(reference)
            except ray.exceptions.RayError as error:
                cause = getattr(error, "cause", None) or error  # a RayTaskError's own text begins with a process number
                yield key, {"error": name_error(cause), "seconds": math.nan}
    finally:
        for reference in waiting:
            ray.cancel(reference, force=True)
        if not was_there:
            ray.shutdown()


def _share_of_ray(nodes: list[dict], n_workers: int) -> tuple[float, float]:
    """Return the CPUs and GPUs that each of `n_workers` runs asks for, of nodes with {"CPU": 8.0, "GPU": 1.0}.

    No more than one node has: a run lies on one node, and Ray would wait for ever for a larger one to join.
    """
    gpus = min(1, sum(node.get("GPU", 0) for node in nodes) / n_workers)
    cpus = sum(node.get("CPU", 0) for node in nodes) / n_workers
    cpus = min(cpus, max((node.get("CPU", 0) for node in nodes if node.get("GPU", 0) >= gpus), default=1))
    return int(cpus) if cpus >= 1 else cpus, gpus  # Ray gives parts of one, or whole ones


@contextlib.contextmanager
def _noticing_ctrl_c() -> Iterator[list]:
    """Yield a list that gets an entry with every Ctrl-C, which still does what it does otherwise."""
    interrupts: list = []
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield interrupts
        return

    def note(number, frame):
        interrupts.append(number)
        before(number, frame)

    signal.signal(signal.SIGINT, note)
    try:
        yield interrupts
    finally:
        signal.signal(signal.SIGINT, before)


def _read_outcomes(parent: Path, keys: list[str]) -> dict[str, dict]:
    outcomes = {}
    for key in dict.fromkeys(keys):
        path = parent / f"{key}.json"
        if path.is_file():
            try:
                record = json.loads(path.read_text(encoding="utf-8"))
                outcomes[key] = {"result": dict(record["result"]), "seconds": record["seconds"]}
            except (ValueError, TypeError, KeyError) as error:
                print(f"{path} is damaged ({type(error).__name__}: {error}); this run is computed anew.")
    return outcomes


def _tabulate(rows: list[dict], outcomes: list[dict]) -> pd.DataFrame:
    names = dict.fromkeys(itertools.chain(*rows))
    # a column with None in it keeps its values as they are: pandas would make 3 and None 3.0 and NaN
    columns = {name: [settings.get(name) for settings in rows] for name in names}
    table = {
        name: pd.Series(values, dtype=object if any(value is None for value in values) else None)
        for name, values in columns.items()
    }
    results = dict.fromkeys(itertools.chain(*(outcome.get("result", {}) for outcome in outcomes)))
    for name in [*(name for name in results if name != "seconds"), "seconds"]:
        values = [outcome.get("result", {}).get(name) for outcome in outcomes]
        if name == "seconds":
            values = [outcome["seconds"] if own is None else own for own, outcome in zip(values, outcomes, strict=True)]
        table[name] = pd.Series([math.nan if value is None else value for value in values])
    if any("error" in outcome for outcome in outcomes):
        table["error"] = pd.Series([outcome.get("error") for outcome in outcomes], dtype=object)
    return pd.DataFrame(table)


def _main_result(outcome: dict) -> str:
    if "error" in outcome:
        return outcome["error"]
    name, value = next(iter(outcome["result"].items()), ("done", ""))
    return f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}".strip()


def _show_time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def _digest(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False, sort_keys=True)  # settings are the same in any order
    return hashlib.sha256(text.encode()).hexdigest()[:16]
