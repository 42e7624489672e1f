"""Run folders: everything a training leaves behind, in a form that predicts, compares and outlives the notebook.

`models/<notebook>/<time>-<hash>/` holds weights.safetensors, model.py (the source of the model), run.json (settings,
preprocessing, class names, metrics, device, versions), history.csv and, where there are rows to publish, results.json.
"""

import __future__

import ast
import builtins
import contextlib
import datetime
import hashlib
import importlib.metadata
import importlib.util
import inspect
import json
import linecache
import math
import os
import platform
import re
import shutil
import symtable
import sys
import sysconfig
import tempfile
import textwrap
import types
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_model, save_model
from torch import nn

from shared_utils import spectrograms
from shared_utils.audio import decode
from shared_utils.device import name_device, pick_device, resolve_path

FRONT_ENDS = ("KaldiFbank", "LogMel", "Mfcc")
_RUN_NAME = re.compile(r"\d{8}-\d{6}-[0-9a-f]{8}")
_RECORD = ("notebook", "created", "headline", "settings", "preprocessing", "class_names", "metrics", "data", "model")


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
            "front_end": "KaldiFbank", "LogMel", "Mfcc" or None (the model takes waveforms), "front_end_arguments": {}}.
        history: of `training.fit`. metrics: name -> number. headline: one line that says how good it is.
        data: {"data_set": name, "demo": True or False} of the table of clips.
        results: rows to publish.
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
    return Run(folder=run, history=history, model=model, **{name: record[name] for name in known})


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


def compare_runs(notebook: str, folder: str | os.PathLike = "models") -> pd.DataFrame:
    """Return a row a run of `notebook`, newest first: created, data, epochs, metrics, and the settings that differ.

    A run that cannot be read is named in a printed line and left out.
    """
    runs = _read_runs(notebook, folder)
    differing = _differing_settings([record for record, _ in runs])
    rows = []
    for record, history in runs:
        data = record["data"]
        data_set = f"{data.get('data_set', '')}{' (demo data)' if data.get('demo') else ''}"
        row = {"created": record["created"], "data": data_set, "epochs": len(history)}
        row |= {name: value for name, value in record["metrics"].items() if isinstance(value, int | float)}
        rows.append(row | {name: _show(record["settings"].get(name)) for name in differing})
    return pd.DataFrame(rows)


def load_histories(notebook: str, last: int = 8, folder: str | os.PathLike = "models") -> dict[str, pd.DataFrame]:
    """Return name -> history of the `last` runs of `notebook`, newest first, for `plotting.plot_learning_curves`.

    A name is the settings in which these runs differ, with the time of the run where they do not.
    """
    runs = _read_runs(notebook, folder, last)
    differing = _differing_settings([record for record, _ in runs])
    names = [", ".join(f"{name}={_show(record['settings'].get(name))}" for name in differing) for record, _ in runs]
    histories = {}
    for name, (record, history) in zip(names, runs, strict=True):
        if not name or names.count(name) > 1:  # the time tells apart what the settings do not
            name = f"{record['created'][5:]} {name}".strip()
        histories[name] = history
    return histories


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
        name = "history.csv"
        history = pd.read_csv(run / name)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{run / name} is damaged ({error}); use another run or train again.") from error
    if missing:
        raise ValueError(f"{run / 'run.json'} lacks {', '.join(missing)}; it has been changed since it was saved.")
    if record.get("best_epoch") is not None:
        history.attrs["best_epoch"] = record["best_epoch"]
    return record, history


def _read_runs(notebook: str, folder: str | os.PathLike, last: int | None = None) -> list[tuple[dict, pd.DataFrame]]:
    """Read the last runs of a notebook, newest first; name those that cannot be read in a printed line each."""
    runs: list[tuple[dict, pd.DataFrame]] = []
    for run in _run_folders(notebook, folder):
        if len(runs) == last:
            break
        try:
            runs.append(_read_run(run))
        except (ValueError, FileNotFoundError) as error:
            print(f"Left out: {error}")
    return runs


def _differing_settings(records: list[dict]) -> list[str]:
    names = dict.fromkeys(name for record in records for name in record["settings"])
    return [name for name in names if len({_to_json(record["settings"].get(name, "-")) for record in records}) > 1]


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
