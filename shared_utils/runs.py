"""Run folders: everything a training leaves behind, in a form that predicts, compares and outlives the notebook.

`models/<notebook>/<time>-<hash>/` holds weights.safetensors, model.py (the source of the model), run.json (settings,
preprocessing, class names, metrics, device, versions), history.csv and, where there are rows to publish, results.json.
`compare_runs` shows them beside each other, `name_run` and `delete_run` keep them in order.
Beside them: `sweep` trains over many settings and keeps what is finished, `export_onnx` writes a model as one graph,
`track_curves` hands learning curves to an experiment tracker.
"""

import __future__

import ast
import builtins
import contextlib
import copy
import datetime
import functools
import hashlib
import importlib.metadata
import importlib.util
import inspect
import io
import itertools
import json
import linecache
import math
import os
import platform
import re
import shutil
import signal
import subprocess
import symtable
import sys
import sysconfig
import tempfile
import textwrap
import threading
import time
import types
import uuid
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_model, save_model
from torch import nn

from shared_utils import spectrograms
from shared_utils.audio import decode
from shared_utils.device import name_device, pick_device, resolve_path, set_threads, write_whole

FRONT_ENDS = ("KaldiFbank", "LogMel", "Mfcc")
EXECUTORS = ("serial", "processes", "ray")
TRACKERS = ("none", "tensorboard", "trackio", "wandb")
_RUN_NAME = re.compile(r"\d{8}-\d{6}-[0-9a-f]{8}")
_RUN_FILES = ("run.json", "history.csv", "model.py", "weights.safetensors")
_RECORD = {
    "notebook": str, "created": str, "headline": str, "settings": dict, "preprocessing": dict, "class_names": list,
    "metrics": dict, "data": dict, "model": dict,
}  # fmt: skip
LONGEST_NAME = 40


@dataclass
class Run:
    """A saved run: `model` is in evaluation mode on the CPU, `history` has one row an epoch."""

    folder: Path
    notebook: str
    created: str
    headline: str
    class_names: list[str]
    settings: dict = field(repr=False)
    preprocessing: dict = field(repr=False)
    metrics: dict = field(repr=False)
    data: dict = field(repr=False)
    history: pd.DataFrame = field(repr=False)
    predictions: pd.DataFrame | None = field(repr=False)
    results: list[dict] = field(repr=False)
    model: nn.Module = field(repr=False)


def save_run(
    notebook: str,
    model: nn.Module,
    settings: dict,
    class_names: list[str],
    preprocessing: dict,
    history: pd.DataFrame,
    metrics: dict,
    headline: str,
    data: dict | None = None,
    results: list[dict] | None = None,
    predictions: pd.DataFrame | None = None,
    model_arguments: dict | None = None,
    publish_as: str | None = None,
    folder: str | os.PathLike = "models",
) -> Path:
    """Write a run folder, whole or not at all, and return its path.

    Args:
        notebook: name of the notebook; the run goes to `<folder>/<notebook>/<time>-<hash of settings>/`.
        model: its class and what that uses of the notebook (classes, functions, constants) are copied to model.py.
        settings: plain values.
        preprocessing: what comes before the model: {"sample_rate": 16000, "seconds": 5.0, "padding": "zeros",
            "front_end": "KaldiFbank", "LogMel" or "Mfcc", "front_end_arguments": {}}. A model whose first layer is the
            front-end takes waveforms: {"sample_rate": 16000, "seconds": 1.0} says it all.
        history: of `training.fit`. metrics: name -> number. headline: one line that says how good it is.
        data: {"data_set": name, "demo": True or False} of the table of clips.
        results: rows to publish.
        predictions: a row a test clip, as `training.cross_validate` returns it; for a paired test against another run.
        model_arguments: what the model's class was called with, by name; `load_run` calls it like that again.
        publish_as: name under which `make results` keeps this run in the repository, in models/<publish_as>/.

    The folder is loaded once before it gets its name, so what is saved can be loaded. Raises ValueError for a value
    that is no plain one, and for a model whose source uses something that cannot be copied.
    """
    model = getattr(model, "_orig_mod", model)  # torch.compile's wrapper
    parent = resolve_path(folder) / notebook
    created = datetime.datetime.now().replace(microsecond=0)
    while any(parent.glob(f"{created:%Y%m%d-%H%M%S}-*")):  # so that the newest of a quick sweep is the last one
        created += datetime.timedelta(seconds=1)
    device = next((tensor.device for tensor in model.parameters()), torch.device("cpu"))
    record = {
        "notebook": notebook, "created": created.isoformat(sep=" "), "headline": headline, "settings": settings,
        "preprocessing": preprocessing, "class_names": list(class_names), "metrics": metrics, "data": data or {},
        "model": {"class": type(model).__name__, "arguments": model_arguments or {}},
        "best_epoch": history.attrs.get("best_epoch"), "device": history.attrs.get("device") or name_device(device),
        "precision": history.attrs.get("precision"), "versions": _versions(), "publish_as": publish_as,
    }  # fmt: skip
    record = {name: _plain(name, value) for name, value in record.items()}
    files = {"run.json": _to_json(record), "model.py": _model_source(type(model), notebook)}
    files["history.csv"] = history.to_csv(index=False)
    if results is not None:
        files["results.json"] = _to_json(_plain("results", results))
    if predictions is not None:
        files["predictions.csv"] = predictions.to_csv(index=False, float_format="%.4g")

    parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=parent))
    try:
        for name, text in files.items():
            (temporary / name).write_text(text, encoding="utf-8")
        save_model(model, str(temporary / "weights.safetensors"))
        try:
            load_run(temporary)
        except ValueError as error:
            reason = str(error).replace(f"{temporary}", "the run")
            raise ValueError(f"Nothing saved, because it could not be loaded again ({reason})") from error
        temporary.chmod(0o755)  # mkdtemp's folders and safetensors' files are for one user only
        (temporary / "weights.safetensors").chmod(0o644)
        digest = hashlib.sha256(_to_json(record["settings"]).encode()).hexdigest()
        return _rename(temporary, parent, created, digest[:8])
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def load_run(path: str | os.PathLike, folder: str | os.PathLike = "models") -> Run:
    """Load a run folder, or the newest run of a notebook: `load_run("audio_transformer_pipeline")`.

    It executes the folder's model.py: as with a notebook, load only runs of people you trust. The weights are
    safetensors; nothing is unpickled.

    Raises FileNotFoundError if there is no such run or a file is missing from it, ValueError if one is damaged.
    """
    run = next(iter(_run_folders(path, folder)), resolve_path(path))
    if not run.is_dir():
        raise FileNotFoundError(f"There is no run {path}: no such folder, and no run in {resolve_path(folder) / path}.")
    record, history = _read_run(run)
    weights = run / "weights.safetensors"
    if not weights.is_file():
        raise FileNotFoundError(f"{run} has no {weights.name}; the run is incomplete, use another or train again.")
    with torch.random.fork_rng(devices=[]):  # loading a model must not change what a notebook draws next
        model = _build_model(run, record["model"])
    try:
        load_model(model, weights, strict=True)
    except Exception as error:  # safetensors has errors of its own
        reason = " ".join(str(error).split())
        raise ValueError(f"{weights} does not fit {record['model']['class']} in model.py: {reason}") from error
    model.eval()
    known = ("notebook", "created", "headline", "class_names", "settings", "preprocessing", "metrics", "data")
    predictions = run / "predictions.csv"
    return Run(
        folder=run, history=history, model=model, **{name: record[name] for name in known},
        predictions=pd.read_csv(predictions) if predictions.is_file() else None, results=_read_results(run),
    )  # fmt: skip


def find_run(notebook: str, data: dict, class_names: list[str], folder: str | os.PathLike = "models") -> Run | None:
    """Return the newest run of `notebook` on this data set with these classes that kept its predictions, or None.

    `data` is {"data_set": name, "demo": True or False}, as in the attrs of a table of clips. A run that cannot be read
    is named in a printed line and left out.
    """
    for run, record, _ in _readable_runs(notebook, folder):
        same = {name: record["data"].get(name) for name in ("data_set", "demo")} == data
        if same and record["class_names"] == list(class_names) and (run / "predictions.csv").is_file():
            return load_run(run)
    return None


@torch.no_grad()
def predict_files(run: Run, paths: list | str | Path, device: str = "auto", batch_size: int = 32) -> pd.DataFrame:
    """Return a row a file: path, the probability of each class in a column of its name, and `predicted`.

    Files go through the decoding, length and front-end that the run was trained with. Raises one ValueError that names
    all files that cannot be read.
    """
    paths = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    preprocessing = run.preprocessing
    if "sample_rate" not in preprocessing or "seconds" not in preprocessing:
        raise ValueError(f"{run.folder} does not predict audio files: no sample_rate and seconds in its preprocessing.")
    front_end = _make_front_end(preprocessing)
    device = pick_device(device)
    run.model.to(device).eval()
    front_end.to(device).eval()
    probabilities = []
    # a handful of files need no cache that stays; Windows cannot remove one that is still mapped
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as cache:
        how = {name: preprocessing[name] for name in ("sample_rate", "seconds", "padding") if name in preprocessing}
        waveforms = decode(pd.DataFrame({"path": list(map(str, paths))}), **how, cache_dir=cache, progress=False)
        for start in range(0, len(paths), batch_size):
            batch = torch.from_numpy(waveforms[start : start + batch_size].astype(np.float32) / 32768)
            logits = run.model(front_end(batch.to(device)))
            probabilities.append(logits.float().softmax(1).cpu().numpy())
        del waveforms
    probabilities = np.concatenate(probabilities)
    table = pd.DataFrame(probabilities, columns=run.class_names)
    table.insert(0, "path", [str(path) for path in paths])
    table["predicted"] = [run.class_names[label] for label in probabilities.argmax(1)]
    return table


@torch.no_grad()
def predict_stream(
    model: nn.Module,
    waveform: np.ndarray | torch.Tensor,
    sample_rate: int,
    seconds: float,
    hop_seconds: float = 0.1,
    batch_size: int = 64,
    device: str = "auto",
) -> tuple[np.ndarray, np.ndarray]:
    """Slide a window over a long recording; return (times (n,), probabilities (n, classes)).

    Args:
        model: takes waveforms (batch, samples), so its front-end is its first layer.
        waveform: the recording (samples,), int16 or float in [-1, 1].
        sample_rate: of the recording, in Hz; the model's own.
        seconds, hop_seconds: length of a window, and from one window to the next.

    The times are the centres of the windows in seconds. A recording shorter than a window is padded with zeros to one;
    what is left behind the last whole window, less than `hop_seconds`, is not looked at. The model is left on `device`.
    Raises ValueError for a recording that is not (samples,) or has NaN or infinite samples, a window or hop without
    samples, or another sample rate than the front-end's.
    """
    if isinstance(waveform, np.ndarray) and not waveform.flags.writeable:
        waveform = waveform.copy()  # PyTorch warns of memory that it may not write to
    waveform = torch.as_tensor(waveform)
    if waveform.dtype == torch.int16:
        waveform = waveform.float() / 32768
    if not waveform.is_floating_point():
        raise ValueError(f"Samples of {waveform.dtype} have no known full scale; give int16, or float in [-1, 1].")
    if waveform.ndim != 1 or len(waveform) == 0:
        raise ValueError(f"The recording has shape {tuple(waveform.shape)}; give one row of samples (samples,).")
    wrong = ~waveform.isfinite()
    if wrong.any():
        first = int(wrong.nonzero()[0]) / sample_rate
        raise ValueError(
            f"{int(wrong.sum())} of {len(waveform)} samples of the recording are NaN or infinite, the first at "
            f"{first:.2f} s; cut them out or set them to 0."
        )
    expected = _find_sample_rate(model)
    if expected is not None and expected != sample_rate:
        raise ValueError(
            f"The model was made for {expected} Hz, but the recording has {sample_rate}; read it with "
            f"audio.read_audio(path, {expected})."
        )
    size, hop = round(seconds * sample_rate), round(hop_seconds * sample_rate)
    if size < 1 or hop < 1:
        raise ValueError(f"Windows of {seconds} s every {hop_seconds} s hold no sample; give more than 0 s of both.")
    device = pick_device(device)
    was_training = model.training
    model.to(device).eval()
    waveform = nn.functional.pad(waveform.float(), (0, max(0, size - len(waveform))))
    windows = waveform.to(device).unfold(0, size, hop)  # (n, samples of a window), a view
    try:
        batches = [model(batch).float().softmax(1).cpu() for batch in windows.split(batch_size)]
    finally:
        model.train(was_training)
    times = (np.arange(len(windows)) * hop + size / 2) / sample_rate
    return times, torch.cat(batches).numpy()


def export_onnx(
    model: nn.Module, path: str | os.PathLike, n_samples: int, class_names: list[str] | None = None
) -> Path:
    """Write `model` as one ONNX graph, front-end and softmax inside, and return the path of the file.

    Args:
        model: takes waveforms (batch, samples) and returns logits (batch, classes), as models do here.
        path: of the .onnx file, which holds the weights too.
        n_samples: length of the waveforms.
        class_names: one a class.

    The graph maps `waveform` (batch, n_samples) float32 in [-1, 1] to `probabilities` (batch, classes), for any size of
    the batch. Its metadata hold `sample_rate` and `class_names` (JSON) where they are known. Before the file gets its
    name onnxruntime computes random clips with it: raises RuntimeError, and writes nothing, if a probability differs
    from the model's by more than 0.001, or if the model cannot be put into a graph. The model stays as it was.
    """
    import onnx
    import onnxruntime

    path = resolve_path(path)
    whole = _WithSoftmax(copy.deepcopy(getattr(model, "_orig_mod", model)).to("cpu", torch.float32)).eval()
    generator = torch.Generator().manual_seed(0)
    clips = [0.1 * torch.randn(n_clips, n_samples, generator=generator) for n_clips in (2, 1, 5)]
    with write_whole(path) as temporary:
        with torch.no_grad():
            expected = [whole(batch).numpy() for batch in clips]
        if class_names is not None and len(class_names) != expected[0].shape[1]:
            raise ValueError(f"{len(class_names)} class names do not fit {expected[0].shape[1]} classes.")
        try:
            # The tracing exporter: it takes half a second, where the one of torch.export takes half a minute because it
            # unrolls recurrent layers step by step before it joins them again.
            with _quiet(), torch.no_grad():
                torch.onnx.export(
                    whole, (clips[0],), str(temporary), dynamo=False, opset_version=18,
                    input_names=["waveform"], output_names=["probabilities"],
                    dynamic_axes={"waveform": {0: "batch"}, "probabilities": {0: "batch"}},
                )  # fmt: skip
            graph = onnx.load(str(temporary))
            metadata = {"sample_rate": _find_sample_rate(model), "class_names": class_names and list(class_names)}
            known = {name: json.dumps(value, ensure_ascii=False) for name, value in metadata.items() if value}
            onnx.helper.set_model_props(graph, known)
            onnx.checker.check_model(graph)
            onnx.save(graph, str(temporary))
            options = onnxruntime.SessionOptions()
            options.log_severity_level = 4  # what goes wrong is raised, in words of ours
            session = onnxruntime.InferenceSession(str(temporary), options, providers=["CPUExecutionProvider"])
            found = [session.run(None, {"waveform": batch.numpy()})[0] for batch in clips]
        except Exception as error:  # the exporter and onnxruntime have many errors of their own
            raise RuntimeError(
                f"{type(model).__name__} does not become an ONNX graph for batches of any size: "
                f"{_first_line(error).rstrip('.')}. Take shapes from x.shape, not len(x)."
            ) from error
        difference = max(float(np.abs(a - b).max()) for a, b in zip(expected, found, strict=True))
        if not difference <= 1e-3:
            raise RuntimeError(
                f"The graph of {type(model).__name__} differs from the model by {difference:.2g}, nothing was written: "
                "a loop or an `if` over values, or random numbers in evaluation mode, cannot be put into a graph."
            )
    return path


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
    arrays or tables that `train` finds in the notebook, are not looked at.

    Returns settings, results and seconds (of the run, unless `train` returns its own). Where runs have failed a column
    `error` says why; they are not stored, the others go on. Ctrl-C returns what is there. Raises ValueError for an
    empty grid or settings that `train` does not take or that are called seconds or error, RuntimeError if Ray is not
    installed.
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
    sources = _sources(train)
    plain = [_plain("settings", settings) for settings in rows]
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
                    record = {"settings": plain[keys.index(key)], "data": data, **outcome, "versions": _versions()}
                    with write_whole(parent / f"{key}.json") as temporary:
                        temporary.write_text(_to_json(record), encoding="utf-8")
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


def compare_runs(notebook: str, folder: str | os.PathLike = "models") -> pd.DataFrame:
    """Return a row a run of `notebook`, newest first: created, data, epochs, metrics, and the settings that differ.

    Where runs have a name (`name_run`) it comes first. Where at least two can be compared, `delta` is how many points a
    run is away from the best one on the same data: see `read_runs`. A run that cannot be read is named in a printed
    line and left out.
    """
    runs, problems = read_runs(notebook, folder)
    for problem in problems:
        print(f"Left out: {problem}")
    differing = differing_settings(runs)
    has_names = any(run["name"] for run in runs)
    has_deltas = any(run["delta"] is not None for run in runs)
    rows = []
    for run in runs:
        data_set = f"{run['data'].get('data_set', '')}{' (demo data)' if run['data'].get('demo') else ''}"
        row = {"name": run["name"]} if has_names else {}
        row |= {"created": run["created"], "data": data_set, "epochs": len(run["history"])}
        row |= {name: value for name, value in run["metrics"].items() if isinstance(value, int | float)}
        if has_deltas:
            row["delta"] = math.nan if run["delta"] is None else round(run["delta"], 2)
        rows.append(row | {name: _show(run["settings"].get(name)) for name in differing})
    return pd.DataFrame(rows)


def read_runs(notebook: str, folder: str | os.PathLike = "models") -> tuple[list[dict], list[str]]:
    """Return what is known of each run of `notebook`, newest first, and a sentence a folder that cannot be read.

    No model is built. A run is its run.json and beside that
    - folder, history and results, as in a `Run`; name, "" if it has none; seconds of training, None if unknown;
    - metric and value: the first of its metrics that is a share of 1 and of which more is better; None without one;
    - low and high: the interval of that number, where results.json has it, else None;
    - group: a text that is the same for runs on the same data set, demo data apart, with the same classes and metric;
    - delta: points to the best run of its group, 0 for the best; None where there is nothing to compare it with.
    """
    runs, problems = [], []
    for path in _run_folders(notebook, folder):
        try:
            record, history = _read_run(path)
            runs.append(record | {"folder": path, "history": history, "results": _read_results(path)})
        except (ValueError, OSError) as error:
            problems.append(str(error))
    for run in runs:
        run["name"] = run.get("name") or ""
        run["metric"], run["value"] = _main_metric(run["metrics"])
        run["low"], run["high"] = _find_interval(run)
        seconds = pd.to_numeric(run["history"].get("seconds", pd.Series(dtype=float)), errors="coerce")
        run["seconds"] = None if seconds.isna().all() else float(seconds.sum())
        data = run["data"]
        classes = sorted(map(str, run["class_names"]))
        run["group"] = _to_json([data.get("data_set"), bool(data.get("demo")), classes, run["metric"]])
    groups: dict[str, list[float]] = {}
    for run in runs:
        if run["value"] is not None and run["data"].get("data_set"):  # nobody knows whether unnamed data is the same
            groups.setdefault(run["group"], []).append(run["value"])
    for run in runs:
        values = groups.get(run["group"], [])
        run["delta"] = 100 * (run["value"] - max(values)) if len(values) > 1 else None
    return runs, problems


def differing_settings(runs: list[dict]) -> list[str]:
    """Return the names of the settings that are not the same in all `runs`, dicts with a key `settings`."""
    names = dict.fromkeys(name for run in runs for name in run["settings"])
    return [name for name in names if len({_to_json(run["settings"].get(name, "-")) for run in runs}) > 1]


def load_histories(notebook: str, last: int = 8, folder: str | os.PathLike = "models") -> dict[str, pd.DataFrame]:
    """Return name -> history of the `last` runs of `notebook`, newest first, for `plotting.plot_learning_curves`.

    A name is the one that `name_run` gave, or the settings in which these runs differ, with the time of the run where
    they do not.
    """
    runs = list(itertools.islice(_readable_runs(notebook, folder), last))
    differing = differing_settings([record for _, record, _ in runs])
    names = []
    for _, record, _ in runs:
        settings = ", ".join(f"{name}={_show(record['settings'].get(name))}" for name in differing)
        names.append(record.get("name") or settings)
    histories = {}
    for name, (run, record, history) in zip(names, runs, strict=True):
        if not name or names.count(name) > 1:  # the time tells apart what the settings do not
            name = f"{record['created'][5:]} {name}".strip()
        histories[f"{run.name} {name}" if name in histories else name] = history
    return histories


def name_run(run: Run | str | os.PathLike, name: str, folder: str | os.PathLike = "models") -> Path:
    """Give a run a name of up to 40 characters, and return its folder.

    `compare_runs`, `load_histories` and the page of `make compare` show the name in place of the time. `run` is what
    `save_run` or `load_run` returned, a run folder, or the last part of its path. Raises ValueError for a name that is
    empty, too long or another run's of that notebook, and for a folder that is no run inside `<folder>/<notebook>/`;
    FileNotFoundError if there is none.
    """
    path = _own_folder(run, folder)
    name = " ".join(name.split())
    if not name or not name.isprintable():
        raise ValueError(f"{name!r} is no name for a run; give it letters or digits.")
    if len(name) > LONGEST_NAME:
        raise ValueError(f"The name {name!r} has {len(name)} characters; {LONGEST_NAME} are the most.")
    record, _ = _read_run(path)
    for other in read_runs(path.parent.name, folder)[0]:
        if other["folder"].name != path.name and other["name"] == name:
            raise ValueError(f"{name!r} is the name of {other['folder'].name} already; choose another one.")
    with write_whole(path / "run.json") as temporary:
        temporary.write_text(_to_json(record | {"name": name}), encoding="utf-8")
    return path


def delete_run(run: Run | str | os.PathLike, folder: str | os.PathLike = "models") -> Path:
    """Delete a run folder with all that is in it, and return where it was.

    `run` is as in `name_run`; it may be damaged. Raises ValueError for all that is no run inside
    `<folder>/<notebook>/`, published weights above all, and FileNotFoundError if there is no such run.
    """
    path = _own_folder(run, folder)
    with tempfile.TemporaryDirectory(prefix=".unfinished-", dir=path.parent) as hidden:
        os.replace(path, Path(hidden) / path.name)  # in one step: no half of a run is ever seen
    return path


def check_tracker(tracker: str) -> None:
    """Raise what `track_curves` would raise, before a training: it costs nothing.

    Raises ValueError for a tracker that is not one of `TRACKERS`, ImportError where its package is not installed.
    """
    if tracker not in TRACKERS:
        raise ValueError(f"Tracker {tracker!r} is unknown; choose one of {', '.join(TRACKERS)}.")
    if tracker == "none":
        return
    package = importlib.util.find_spec(tracker)
    if package is None or package.origin is None:  # a mere folder of that name has no origin
        raise ImportError(f'tracker="{tracker}" needs a package that is not installed: pip install -e ".[{tracker}]"')


def track_curves(tracker: str, project: str, curves: dict[str, pd.DataFrame], settings: dict) -> Path | None:
    """Write learning curves for an experiment tracker, on this machine only, and return the folder.

    Args:
        tracker: "none" writes nothing and returns None; "tensorboard", "trackio" and "wandb" write to
            `tracking/<tracker>/` in the repository. No account, no network, no question is asked.
        project: the name of the notebook.
        curves: name ("CNN, test fold 1, seed 0") -> history of `training.fit`; each becomes a run of its own.
        settings: kept with every run; what is neither a number, a text nor True or False is written as text.

    A row of a history becomes a step of its epoch with a value a column: train_loss is `train/loss`, val_accuracy is
    `val/accuracy`, lr is `lr`; NaN (epochs without validation) is left out. The names of runs hold a time stamp that no
    other call has, so the curves of two calls are never mixed. To look at them, from the root of the repository:

        tensorboard --logdir tracking/tensorboard
        TRACKIO_DIR=tracking/trackio trackio show
        wandb sync tracking/wandb/offline-run-*        (this one uploads them, to an account of yours)

    Raises as `check_tracker` does and nothing else: a tracker has no say over results that took hours to train. Where
    one fails, a printed line says how many curves are not there or not whole, and why; None is returned if all are.
    """
    check_tracker(tracker)
    if tracker == "none" or not curves:
        return None
    folder = resolve_path("tracking") / tracker
    stamp = f"{datetime.datetime.now():%Y%m%d-%H%M%S}-{uuid.uuid4().hex[:4]}"
    project = re.sub(r"[^\w-]", "_", project, flags=re.ASCII)  # trackio and wandb have no other characters there
    rows, errors = {}, {}
    for name, history in curves.items():
        try:
            rows[name] = _steps_of(history)
        except Exception as error:
            errors[name] = _first_line(error)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            prefix=".unfinished-", dir=folder.parent, ignore_cleanup_errors=True
        ) as temporary:
            settings = {str(name): _simple(value) for name, value in settings.items()}
            arguments = (folder, Path(temporary), project, stamp, rows, settings)
            written = _write_tensorboard(*arguments) if tracker == "tensorboard" else _write_apart(tracker, *arguments)
            errors |= written
    except Exception as error:
        errors |= dict.fromkeys(curves, _first_line(error))
    if errors:
        name, reason = next(iter(errors.items()))
        reason = (reason.splitlines() or ["no reason given"])[0].rstrip(".")
        print(
            f"{tracker} has not taken {len(errors)} of {len(curves)} curves, first {name}: {reason}. The training and "
            "its history are not touched by that."
        )
    return folder if len(errors) < len(curves) else None


# ---- a sweep


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
        outcome = {"result": {str(name): _plain(f"the result {name}", value) for name, value in result.items()}}
    except Exception as error:
        outcome = {"error": f"{type(error).__name__}: {error}".removesuffix(": ")}
    return key, outcome | {"seconds": round(time.perf_counter() - started, 3)}


def _run_in_processes(train: Callable, todo: list[tuple[str, dict]], n_workers: int) -> Iterator[tuple[str, dict]]:
    from joblib import Parallel, delayed
    from joblib.externals.loky import get_reusable_executor
    from joblib.externals.loky.process_executor import BrokenProcessPool

    n_threads = max(1, torch.get_num_threads() // n_workers)
    # copy on write: PyTorch warns of arrays that it may not write to
    parallel = Parallel(
        n_workers, backend="loky", return_as="generator_unordered", batch_size=1, pre_dispatch="n_jobs", mmap_mode="c"
    )
    finished = set()
    try:
        for key, outcome in parallel(delayed(_run_one)(train, settings, key, n_threads) for key, settings in todo):
            finished.add(key)
            yield key, outcome
    except BrokenProcessPool:
        error = "the process of this run or of one beside it has died, for want of memory as a rule; use fewer workers"
        yield from ((key, {"error": error, "seconds": math.nan}) for key, _ in todo if key not in finished)
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
                yield key, {"error": _first_line(cause), "seconds": math.nan}
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
    table = {name: pd.Series(values, dtype=object if None in values else None) for name, values in columns.items()}
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


def _sources(train: Callable) -> dict[str, str]:
    """Return the source of a function and of all that it uses of its own notebook or file: name -> text.

    Unlike model.py it need not be complete: what has neither source nor a plain value, such as data, is left out.
    """
    root = inspect.unwrap(train.func if isinstance(train, functools.partial) else train)
    if not isinstance(root, types.FunctionType):
        raise ValueError(f"train is a {type(train).__name__}; a sweep needs a function, or a functools.partial of one.")
    found: dict[str, str] = {}

    def visit(name: str, value: object) -> None:
        if name in found:
            return
        target = inspect.unwrap(value) if callable(value) and not isinstance(value, nn.Module) else value
        if _is_literal(value) or isinstance(value, np.generic | range):
            found[name] = _stable_text(value)
        elif isinstance(value, functools.partial):
            visit_all(name, {"function": value.func, "arguments": value.args, "keywords": value.keywords})
        elif isinstance(value, dict):
            visit_all(name, value)
        elif isinstance(value, list | tuple):
            visit_all(name, dict(enumerate(value)))
        elif isinstance(value, nn.Module):  # augmentation, as a rule: its settings, not its weights
            for place, module in value.named_modules():
                settings = {key: item for key, item in vars(module).items() if key != "training" and _is_literal(item)}
                found[f"{name}.{place}"] = _stable_text([type(module).__name__, settings])
                visit(type(module).__name__, type(module))
        elif isinstance(target, type | types.FunctionType) and target.__module__ == root.__module__:
            found[name] = _source_text(target)
            for function in _functions_of(target) if isinstance(target, type) else [target]:
                visit_all(f"{name} {function.__name__}", {"defaults": function.__defaults__ or ()})
                visit_all(f"{name} {function.__name__}", {"keyword defaults": function.__kwdefaults__ or {}})
            around = _names_around(target)
            for used in sorted(_names_in(found[name], target)):
                if used in around:
                    visit(used, around[used])

    def visit_all(name: str, values: dict) -> None:
        found[name] = found.get(name, type(values).__name__)
        for key, value in values.items():
            visit(f"{name}[{key!r}]", value)

    visit(root.__name__, train if isinstance(train, functools.partial) else root)
    return found


def _stable_text(value: object) -> str:
    """Return the text of a plain value; that of a set comes in another order in every process."""
    if isinstance(value, set):
        return f"{{{', '.join(sorted(map(repr, value)))}}}"
    if isinstance(value, list | tuple):
        return f"{type(value).__name__}({', '.join(map(_stable_text, value))})"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key!r}: {_stable_text(item)}' for key, item in value.items())}}}"
    return repr(value)


def _source_text(target: type | types.FunctionType) -> str:
    try:
        return _find_source(target, "train")[0]
    except (ValueError, SyntaxError):
        with contextlib.suppress(OSError, TypeError):  # a lambda
            return textwrap.dedent(inspect.getsource(target)).rstrip()
    raise ValueError(
        f"The source of {target.__name__} is not to be found, so a sweep could not know when it changes: define it "
        "at the top level of a cell or file."
    )


def _names_in(text: str, target: type | types.FunctionType) -> set[str]:
    try:
        return set.union(*_used_names(text))
    except SyntaxError:  # the line of a lambda is a piece of a statement
        return set(target.__code__.co_names) | set(target.__code__.co_freevars)


def _names_around(target: type | types.FunctionType) -> dict[str, object]:
    """Return the globals of a function or class, and the variables of the function that it was defined in."""
    functions = _functions_of(target) if isinstance(target, type) else [target]
    names = dict(functions[0].__globals__ if functions else vars(sys.modules[target.__module__]))
    for function in functions:
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            with contextlib.suppress(ValueError):  # not filled yet
                names[name] = cell.cell_contents
    return names


# ---- experiment trackers

# Run by a Python of its own: trackio and wandb read their settings when they are imported, keep threads and a service
# until the process ends and write past sys.stderr, and a notebook would hold all that.
_WRITE_CURVES = """
import importlib, json, sys, warnings

package, arguments, curves = json.load(sys.stdin)
tracker = importlib.import_module(package)
for name, (title, rows) in curves.items():
    error = None
    with warnings.catch_warnings(record=True) as said:  # trackio warns where others raise
        warnings.simplefilter("ignore")
        warnings.filterwarnings("always", category=UserWarning, module=package)
        try:
            run = tracker.init(name=title, **arguments)
            try:
                for epoch, values in rows:
                    run.log(values, step=epoch)
            finally:
                run.finish()
        except Exception as raised:
            error = f"{type(raised).__name__}: {raised}"
    error = str(said[0].message) if error is None and said else error
    with open("outcomes", "a", encoding="utf-8") as file:
        file.write(json.dumps([name, error]) + chr(10))
"""


def _steps_of(history: pd.DataFrame) -> list[tuple[int, dict[str, float]]]:
    """Return (epoch, tag -> value) of each row, without NaN."""
    tags = {column: "/".join(column.rsplit("_", 1)) for column in history if column != "epoch"}
    return [
        (int(row["epoch"]), {tag: float(row[column]) for column, tag in tags.items() if not math.isnan(row[column])})
        for row in history.to_dict("records")
    ]


def _simple(value: object) -> bool | int | float | str:
    value = value.item() if isinstance(value, np.generic) else value
    return value if isinstance(value, bool | int | float | str) else str(value)


def _write_tensorboard(
    folder: Path, temporary: Path, project: str, stamp: str, curves: dict[str, list], settings: dict
) -> dict[str, str]:
    """Write a folder a curve; return curve -> error of those that failed."""
    with _quiet():
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams

    parent, errors = folder / project / stamp, {}
    for number, (name, rows) in enumerate(curves.items()):
        try:
            with SummaryWriter(temporary / f"{number}") as writer:
                # add_hparams would start a second run beside the curve
                for summary in hparams(settings, dict.fromkeys(tag for _, values in rows for tag in values)):
                    writer.file_writer.add_summary(summary)
                for epoch, values in rows:
                    for tag, value in values.items():
                        writer.add_scalar(tag, value, epoch)
            run = parent / (re.sub(r"[^\w ,.=+()-]", "_", name).strip(" .") or "curve")
            parent.mkdir(parents=True, exist_ok=True)
            os.replace(temporary / f"{number}", f"{run} {number}" if run.exists() else run)
        except Exception as error:
            errors[name] = _first_line(error)
    return errors


def _write_apart(
    tracker: str, folder: Path, temporary: Path, project: str, stamp: str, curves: dict[str, list], settings: dict
) -> dict[str, str]:
    """Write trackio's database or wandb's folders in another process; return curve -> error of those that failed."""
    arguments = {"project": project, "config": settings}
    if tracker == "trackio":
        arguments |= {"embed": False, "auto_log_gpu": False, "auto_log_cpu": False}
    else:
        quiet = {"silent": True, "console": "off", "disable_git": True, "disable_code": True}
        arguments |= {"mode": "offline", "reinit": "create_new", "dir": str(temporary), "settings": quiet}
    # a space, a server, a key or "online" in the user's environment would send the curves away
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("TRACKIO_", "WANDB_"))}
    environment |= {"TRACKIO_DIR": str(folder), "HF_HUB_OFFLINE": "1", "WANDB_ERROR_REPORTING": "false"}
    environment |= {f"WANDB_{what}_DIR": str(temporary) for what in ("ARTIFACT", "CACHE", "CONFIG", "DATA")}
    titled = {name: (f"{name} {stamp}", rows) for name, rows in curves.items()}
    said, outcomes = temporary / "stderr", temporary / "outcomes"
    outcomes.touch()
    timeout, reason = 120 + 10 * len(curves), None
    with open(said, "wb") as stderr:
        try:
            subprocess.run(
                [sys.executable, "-P", "-c", _WRITE_CURVES], input=json.dumps([tracker, arguments, titled]), text=True,
                stdout=subprocess.DEVNULL, stderr=stderr, cwd=temporary, env=environment, timeout=timeout,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            reason = f"no answer within {timeout} s"
    reason = reason or said.read_text(encoding="utf-8", errors="replace").strip().rpartition("\n")[2]
    for run in temporary.glob("wandb/offline-run-*"):
        os.replace(run, folder / run.name)
    errors = {name: reason or "its process has ended early" for name in curves}
    errors |= dict(map(json.loads, outcomes.read_text(encoding="utf-8").splitlines()))
    return {name: error for name, error in errors.items() if error is not None}


# ---- ONNX


class _WithSoftmax(nn.Module):
    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, waveforms: torch.Tensor) -> torch.Tensor:
        return self.model(waveforms).float().softmax(1)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep to ourselves what an exporter says of its own future and of each constant, and a tracker of itself."""
    sink = io.StringIO()
    with warnings.catch_warnings(), contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
        warnings.simplefilter("ignore")
        yield


def _find_sample_rate(model: nn.Module) -> int | None:
    """Return the sample rate of the model's front-end, None if it has none that says it."""
    return next((module.sample_rate for module in model.modules() if hasattr(module, "sample_rate")), None)


# ---- reading a folder


def _run_folders(notebook: str | os.PathLike, folder: str | os.PathLike) -> list[Path]:
    """Return the run folders of a notebook, newest first; unfinished ones have other names."""
    parent = resolve_path(folder) / notebook
    runs = [path for path in parent.glob("*") if path.is_dir() and _RUN_NAME.fullmatch(path.name)]
    return sorted(runs, reverse=True)


def _read_run(run: Path) -> tuple[dict, pd.DataFrame]:
    """Return run.json and the history of a run folder."""
    for name in ("run.json", "history.csv"):
        if not (run / name).is_file():
            raise FileNotFoundError(f"{run} has no {name}; it is no run folder, or an incomplete one.")
    try:
        name = "run.json"
        record = json.loads((run / name).read_text(encoding="utf-8"))
        missing = [key for key in _RECORD if key not in record]
        wrong = [key for key, kind in _RECORD.items() if not missing and not isinstance(record[key], kind)]
        wrong += ["name"] * (not missing and not isinstance(record.get("name", ""), str))
        name = "history.csv"
        history = pd.read_csv(run / name)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{run / name} is damaged ({error}); use another run or train again.") from error
    if missing or wrong:
        what = f"lacks {', '.join(missing)}" if missing else f"has no usable {', '.join(wrong)}"
        raise ValueError(f"{run / 'run.json'} {what}; it has been changed since it was saved.")
    if record.get("best_epoch") is not None:
        history.attrs["best_epoch"] = record["best_epoch"]
    return record, history


def _read_results(run: Path) -> list[dict]:
    """Return the rows of results.json, none if there is no such file."""
    path = run / "results.json"
    if not path.is_file():
        return []
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); use another run or train again.") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ValueError(f"{path} holds no list of rows; it has been changed since it was saved.")
    return rows


def _readable_runs(notebook: str | os.PathLike, folder: str | os.PathLike) -> Iterator[tuple[Path, dict, pd.DataFrame]]:
    """Yield folder, run.json and history, newest first; name those that cannot be read in a printed line each."""
    for run in _run_folders(notebook, folder):
        try:
            yield run, *_read_run(run)
        except (ValueError, OSError) as error:
            print(f"Left out: {error}")


def _main_metric(metrics: dict) -> tuple[str, float] | tuple[None, None]:
    """Return the first metric that is a share of 1 and of which more is better, as its name says."""
    for name, value in metrics.items():
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if is_number and 0 <= value <= 1 and not re.search("loss|error", name):
            return name, float(value)
    return None, None


def _find_interval(run: dict) -> tuple[float, float] | tuple[None, None]:
    """Return the interval of a run's main metric: that of the row of results.json with the same number."""
    found = set()
    for row in run["results"]:
        mean, low, high = (row.get(key) for key in ("mean", "low", "high"))
        if run["value"] is None or not all(isinstance(number, int | float) for number in (mean, low, high)):
            continue
        if str(row.get("metric", "")) in run["metric"] and abs(mean - run["value"]) < 1e-6 and low <= mean <= high:
            found.add((float(low), float(high)))
    if len(found) > 1:  # two models got the same number; the headline tells which of them was saved
        found = {(low, high) for low, high in found if f"({low:.1%} to {high:.1%})" in run["headline"]}
    return found.pop() if len(found) == 1 else (None, None)


def _own_folder(run: Run | str | os.PathLike, folder: str | os.PathLike) -> Path:
    """Return the folder of a run, which must lie in `<folder>/<notebook>/`; raise for everything else."""
    parent = resolve_path(folder)
    given = Path(run.folder if isinstance(run, Run) else run)
    path = resolve_path(given.parent) / given.name  # a link is looked at, never what it points to
    if _RUN_NAME.fullmatch(str(given)):
        found = sorted(parent.glob(f"*/{given}"))
        if len(found) > 1:
            raise ValueError(f"{' and '.join(map(str, found))} have the same last part; give the whole folder.")
        if not found:
            raise FileNotFoundError(f"There is no run {given} in {parent}.")
        path = found[0]
    if path.parent == parent and (path / "run.json").is_file():
        raise ValueError(f"{path} holds published weights, which belong to the repository; nothing was changed.")
    if path.parent.parent != parent or not _RUN_NAME.fullmatch(path.name) or path.is_symlink():
        raise ValueError(f"{path} is no run folder, {parent}/<notebook>/<time>-<hash>; nothing was changed.")
    if not path.is_dir():
        raise FileNotFoundError(f"There is no run {path}.")
    if not any((path / name).is_file() for name in _RUN_FILES):
        raise ValueError(f"{path} holds none of a run's files ({', '.join(_RUN_FILES)}); nothing was changed.")
    return path


def _show(value: object) -> object:
    return str(value) if isinstance(value, list | dict) else value


def _make_front_end(preprocessing: dict) -> nn.Module:
    name = preprocessing.get("front_end")
    if name is None:
        return nn.Identity()
    if name not in FRONT_ENDS:
        raise ValueError(f"Front-end {name!r} is unknown; it must be one of {', '.join(FRONT_ENDS)} or None.")
    return getattr(spectrograms, name)(**preprocessing.get("front_end_arguments", {}))


def _build_model(run: Path, description: dict) -> nn.Module:
    """Execute model.py and call the model's class."""
    path, name = run / "model.py", description["class"]
    if not path.is_file():
        raise FileNotFoundError(f"{run} has no model.py; the run is incomplete, use another or train again.")
    module_name = "run_" + hashlib.sha256(str(path).encode()).hexdigest()[:16]
    spec = importlib.util.spec_from_file_location(module_name, path)
    module = importlib.util.module_from_spec(spec)
    linecache.checkcache(str(path))
    sys.modules[module_name] = module  # dataclasses and inspect look a class's module up there
    try:
        with _without_bytecode():
            spec.loader.exec_module(module)
        return getattr(module, name)(**description["arguments"])
    except Exception as error:
        raise ValueError(
            f"{path} cannot build {name}(**{description['arguments']}): {type(error).__name__}: {error}"
        ) from error


@contextlib.contextmanager
def _without_bytecode() -> Iterator[None]:
    """A run folder holds what was saved, no __pycache__."""
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        yield
    finally:
        sys.dont_write_bytecode = before


# ---- writing a folder


def _rename(temporary: Path, parent: Path, created: datetime.datetime, digest: str) -> Path:
    """Give a finished folder its name; if another process has just taken it, that of the next second."""
    while True:
        run = parent / f"{created:%Y%m%d-%H%M%S}-{digest}"
        try:
            os.replace(temporary, run)  # fails on a folder that has files in it
            return run
        except OSError:
            if not run.exists():
                raise
            created += datetime.timedelta(seconds=1)


def _plain(name: str, value: object) -> object:
    """Return `value` as JSON has it; NaN becomes null. Raises ValueError that names the value that is no plain one."""
    if isinstance(value, np.generic | np.ndarray | torch.Tensor):
        value = value.tolist()
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, os.PathLike):
        return str(value)
    if isinstance(value, dict):
        return {str(key): _plain(f"{name}[{key!r}]", item) for key, item in value.items()}
    if isinstance(value, list | tuple | range):
        return [_plain(f"{name}[{i}]", item) for i, item in enumerate(value)]
    raise ValueError(f"{name} is a {type(value).__name__}; a run keeps numbers, text, None, lists and dicts of them.")


def _first_line(error: BaseException) -> str:
    """Return the name of an error and the first line of what it says, if it says anything."""
    return ": ".join([type(error).__name__, *str(error).strip().splitlines()[:1]])


def _to_json(value: object) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False)


def _versions() -> dict[str, str]:
    names = ("torch", "torchaudio", "numpy")
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in names}


# ---- model.py: the source of a model that was written in a notebook


@dataclass
class _Part:
    """What a global name stands for: the text of an import, a constant or a definition."""

    kind: str
    text: str
    needs: set[str] = field(default_factory=set)  # names without which the definition itself fails
    future: bool = False  # defined under `from __future__ import annotations`


def _model_source(model_class: type, notebook: str = "") -> str:
    """Return Python source that defines `model_class` and everything it needs.

    Classes and functions of the class's own notebook or file are copied, plain constants are written with their values,
    all else is imported. Raises ValueError that names what can be neither.
    """
    if _is_installed(model_class.__module__):
        return f"from {model_class.__module__} import {model_class.__qualname__}\n"
    functions = _functions_of(model_class)
    names = functions[0].__globals__ if functions else vars(sys.modules[model_class.__module__])
    parts: dict[str, _Part] = {}
    _collect(model_class.__name__, model_class, "the run", names, model_class, parts)

    imports = sorted({part.text for part in parts.values() if part.kind == "import"})
    imports.sort(key=lambda text: text.startswith("from"))
    constants = [part.text for part in parts.values() if part.kind == "constant"]
    origin = f" of {notebook}" if notebook else ""
    head = [f'"""The model{origin}, as it was when the run was saved; load_run executes this file."""', ""]
    if any(part.future for part in parts.values()):
        head += ["from __future__ import annotations", ""]
    blocks = ["\n".join([*head, *imports, "", *constants]).strip(), *_in_order(parts)]
    return "\n\n\n".join(blocks) + "\n"


def _collect(name: str, value: object, user: str, names: dict, root: type, parts: dict[str, _Part]) -> None:
    """Add to `parts` what `name` stands for, and before it all that it uses; `names` are the notebook's globals."""
    target = inspect.unwrap(value) if callable(value) else value
    is_own = isinstance(target, type | types.FunctionType) and target.__module__ == root.__module__
    if isinstance(value, types.ModuleType):
        package, _, own_name = value.__name__.rpartition(".")
        line = f"from {package} import {name}" if package and own_name == name else f"import {value.__name__}"
        parts[name] = _Part("import", line + ("" if own_name == name else f" as {name}"))
    elif _is_literal(value):
        parts[name] = _Part("constant", f"{name} = {value!r}")
    elif is_own and target.__name__ == name:
        text, future = _find_source(target, user)
        needs, calls = _used_names(text)
        parts[name] = _Part("definition", text, needs, future)
        for used in sorted(needs | calls):
            if used in names and used not in parts:
                _collect(used, names[used], name, names, root, parts)
            elif used not in names and not hasattr(builtins, used):
                raise ValueError(f"model.py cannot hold {name}: it uses {used}, which is not defined.")
        parts[name] = parts.pop(name)  # behind what it uses
    else:
        line = None if is_own else _import_line(name, value, root)
        if line is None:
            raise ValueError(
                f"model.py cannot hold {name}, a {type(value).__name__} that {user} uses: make it an argument of "
                f"{root.__name__}, or write it as a class, a def, or a plain number, text, list or dict."
            )
        parts[name] = _Part("import", line)


def _in_order(parts: dict[str, _Part]) -> list[str]:
    """Return the definitions, each behind those without which it could not be executed."""
    ordered: dict[str, str] = {}

    def put(name: str) -> None:
        if name in parts and parts[name].kind == "definition" and name not in ordered:
            for needed in sorted(parts[name].needs - {name}):
                put(needed)
            ordered[name] = parts[name].text

    for name in parts:
        put(name)
    return list(ordered.values())


def _functions_of(model_class: type) -> list[types.FunctionType]:
    functions = []
    for member in vars(model_class).values():
        member = getattr(member, "fget", None) or getattr(member, "__func__", None) or member
        if callable(member) and isinstance(inspect.unwrap(member), types.FunctionType):
            functions.append(inspect.unwrap(member))
    return [function for function in functions if function.__module__ == model_class.__module__]


def _find_source(target: type | types.FunctionType, user: str) -> tuple[str, bool]:
    """Return the source of a class or function, and whether its annotations were postponed.

    inspect.getsource fails for the classes of a notebook, whose module has no file; but the code of their methods knows
    its cell, and linecache has the text of that.
    """
    kind = ast.ClassDef if isinstance(target, type) else ast.FunctionDef
    for function in _functions_of(target) if isinstance(target, type) else [target]:
        code = function.__code__
        lines = linecache.getlines(code.co_filename, function.__globals__)
        for node in ast.walk(ast.parse("".join(lines))):
            if isinstance(node, kind) and node.name == target.__name__:
                first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
                if first <= code.co_firstlineno <= node.end_lineno:
                    text = textwrap.dedent("".join(lines[first - 1 : node.end_lineno])).rstrip()
                    return text, bool(code.co_flags & __future__.annotations.compiler_flag)
    with contextlib.suppress(OSError, TypeError):  # a class without methods, in a file
        return textwrap.dedent(inspect.getsource(target)).rstrip(), False
    raise ValueError(
        f"model.py cannot hold {target.__name__}, which {user} uses: its source is not to be found; define it at the "
        "top level of a cell or file, with a method of its own."
    )


def _used_names(source: str) -> tuple[set[str], set[str]]:
    """Return the global names that a definition uses when it is executed, and those that it uses when it is called."""
    needs: set[str] = set()
    calls: set[str] = set()

    def visit(table: symtable.SymbolTable, called: bool) -> None:
        for symbol in table.get_symbols():
            if symbol.is_referenced() and symbol.is_global() and not symbol.get_name().startswith("__"):
                (calls if called else needs).add(symbol.get_name())
        for child in table.get_children():
            comprehension = child.get_name() in ("listcomp", "setcomp", "dictcomp", "genexpr")
            visit(child, called or (child.get_type() == "function" and not comprehension))

    visit(symtable.symtable(source, "model.py", "exec"), False)
    return needs, calls


def _is_literal(value: object) -> bool:
    if isinstance(value, list | tuple | set) and type(value) in (list, tuple, set):
        return all(_is_literal(item) for item in value)
    if type(value) is dict:
        return all(_is_literal(item) for pair in value.items() for item in pair)
    if type(value) is float:
        return math.isfinite(value)
    return value is None or type(value) in (bool, int, str, bytes)


def _import_line(name: str, value: object, root: type) -> str | None:
    """Return the line that imports `value` as `name`, or None; what does not know its module is looked for in all."""
    module, original = getattr(value, "__module__", None), getattr(value, "__qualname__", name)
    if isinstance(module, str) and module in sys.modules and vars(sys.modules[module]).get(original) is value:
        return f"from {module} import {original}" + _alias(original, name)
    others = sys.modules.keys() - {"__main__", root.__module__}
    for module in sorted(others, key=lambda module: (module.count("."), module)):
        if getattr(sys.modules[module], "__dict__", {}).get(name) is value:
            return f"from {module} import {name}"
    return None


def _alias(original: str, name: str) -> str:
    return "" if original == name else f" as {name}"


def _is_installed(module: str) -> bool:
    """Say whether a module comes from Python or a package, so that importing it is enough."""
    path = None if module == "__main__" else getattr(sys.modules.get(module), "__file__", None)
    places = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    return path is not None and any(Path(path).is_relative_to(place) for place in places)
