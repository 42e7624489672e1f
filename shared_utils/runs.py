"""Run folders: everything a training leaves behind, in a form that predicts, compares and outlives the notebook.

`models/<notebook>/<time>-<hash>/` holds weights.safetensors, model.py (the source of the model), run.json (settings,
preprocessing, class names, metrics, device, versions), history.csv and, where there are rows to publish, results.json.
`compare_runs` shows them beside each other, `name_run` and `delete_run` keep them in order, `predict_files` and
`predict_stream` use them, `export_onnx` writes a model as one graph.
"""


import contextlib
import copy
import datetime
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
import sys
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_model, save_model
from torch import nn

from shared_utils import spectrograms
from shared_utils.audio import decode, start_at_loudest
from shared_utils.device import name_device, name_error, pick_device, resolve_path, write_whole
from shared_utils.sources import is_literal, model_source

FRONT_ENDS = ("KaldiFbank", "LogMel", "Mfcc")
_RUN_NAME = re.compile(r"\d{8}-\d{6}-[0-9a-f]{8}")
_RUN_FILES = ("run.json", "history.csv", "model.py", "weights.safetensors")
_RECORD = {
    "notebook": str, "created": str, "headline": str, "settings": dict, "preprocessing": dict, "class_names": list,
    "metrics": dict, "data": dict, "model": dict,
}  # fmt: skip
RUN_MODULE = "run_"  # how the names of the modules begin that model.py of loaded runs become
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
    that is no plain one, for a model whose source uses something that cannot be copied, and for one whose layers would
    be built with other arguments, such as a number of heads that has been changed after the training.
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
        "precision": history.attrs.get("precision"), "interrupted": bool(history.attrs.get("interrupted")),
        "versions": read_versions(), "publish_as": publish_as,
    }  # fmt: skip
    record = {name: to_plain(name, value) for name, value in record.items()}
    files = {"run.json": to_json(record), "model.py": model_source(type(model), notebook)}
    files["history.csv"] = history.to_csv(index=False)
    if results is not None:
        if record["interrupted"]:
            results = [row | {"protocol": f"{row.get('protocol', '')}; stopped by hand"} for row in results]
        files["results.json"] = to_json(to_plain("results", results))
    if predictions is not None:
        files["predictions.csv"] = predictions.to_csv(index=False, float_format="%.4g")

    parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=".unfinished-", dir=parent))
    try:
        for name, text in files.items():
            (temporary / name).write_text(text, encoding="utf-8")
        save_model(model, str(temporary / "weights.safetensors"))
        try:
            loaded = load_run(temporary).model
        except ValueError as error:
            reason = str(error).replace(f"{temporary}", "the run")
            raise ValueError(f"Nothing saved, because it could not be loaded again ({reason})") from error
        settings, others = _find_differences(model, loaded)
        if settings:
            raise ValueError(
                f"Nothing saved, because what would be loaded is not the model that learned: {settings[0]}. A setting "
                "has changed since; set it back, or train again."
            )
        if others:
            print(f"Saved, but the model differs from what will be loaded: {others[0]}. Has a setting changed since?")
        temporary.chmod(0o755)  # mkdtemp's folders and safetensors' files are for one user only
        (temporary / "weights.safetensors").chmod(0o644)
        digest = hashlib.sha256(to_json(record["settings"]).encode()).hexdigest()
        return _rename(temporary, parent, created, digest[:8])
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _find_differences(model: nn.Module, loaded: nn.Module) -> tuple[list[str], list[str]]:
    """Say in which plain attributes a model differs from itself loaded again, in layers of its own file or of PyTorch.

    First come whole numbers and texts that the layer was called with, then the others, which a training may have
    counted up, switched or scheduled. Layers of other packages are left out: those of transformers note how they were
    trained.
    """
    settings, others, again = [], [], dict(loaded.named_modules())
    for place, module in model.named_modules():
        kind, other = type(module).__module__, again.get(place)
        if other is None or not (kind == type(model).__module__ or kind.startswith("torch.nn.")):
            continue
        called_with = inspect.signature(type(module)).parameters
        for name in sorted(vars(module).keys() & vars(other).keys() - {"training"}):
            was, is_now = getattr(module, name), getattr(other, name)
            if name[0] == "_" or not (is_literal(was) and is_literal(is_now)):
                continue
            if json.dumps(was, default=str) != json.dumps(is_now, default=str):  # in which a tuple is a list
                said = f"{place + '.' if place else ''}{name} was {was!r} and would be {is_now!r}"
                is_setting = name in called_with and not isinstance(was, bool | float)
                (settings if is_setting else others).append(said)
    return settings, others


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
        predictions=_read_predictions(predictions) if predictions.is_file() else None, results=_read_results(run),
    )  # fmt: skip


def _read_predictions(path: Path) -> pd.DataFrame:
    """A speaker may be called 007, or NA."""
    return pd.read_csv(path, dtype={"source": str}, keep_default_na=False, na_values=[""])


def find_run(notebook: str, data: dict, class_names: list[str], folder: str | os.PathLike = "models") -> Run | None:
    """Return the newest run of `notebook` on this data set with these classes that kept its predictions, or None.

    `data` is {"data_set": name, "demo": True or False}, as in the attrs of a table of clips. Where the notebook has no
    such run of its own, its published weights may be one. A run that cannot be read is named in a printed line and left
    out.
    """
    for run, record, _ in _readable_runs([*_run_folders(notebook, folder), *_published_folders(folder)]):
        same = {name: record["data"].get(name) for name in ("data_set", "demo")} == data
        same = same and record["notebook"] == notebook and record["class_names"] == list(class_names)
        if same and (run / "predictions.csv").is_file():
            try:
                return load_run(run)
            except (ValueError, OSError) as error:
                print(f"Left out: {error}")
    return None


@torch.no_grad()
def predict_files(run: Run, paths: list | str | Path, device: str = "auto", batch_size: int = 32) -> pd.DataFrame:
    """Return a row a file: path, the probability of each class in a column of its name, and `predicted`.

    Files go through the decoding, length and front-end that the run was trained with; of one that is longer its loudest
    part is heard, and a printed line says so. Raises one ValueError that names all files that cannot be read.
    """
    paths = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
    preprocessing = run.preprocessing
    if "sample_rate" not in preprocessing or "seconds" not in preprocessing:
        raise ValueError(f"{run.folder} does not predict audio files: no sample_rate and seconds in its preprocessing.")
    front_end = make_front_end(preprocessing)
    device = pick_device(device)
    run.model.to(device).eval()
    front_end.to(device).eval()
    probabilities = []
    # a handful of files need no cache that stays; Windows cannot remove one that is still mapped
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as cache:
        how = {name: preprocessing[name] for name in ("sample_rate", "seconds", "padding") if name in preprocessing}
        files = start_at_loudest(pd.DataFrame({"path": list(map(str, paths))}), how["seconds"])
        waveforms = decode(files, **how, cache_dir=cache, progress=False)
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
            with silence(), torch.no_grad():
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
                f"{name_error(error).rstrip('.')}. Take shapes from x.shape, not len(x)."
            ) from error
        difference = max(float(np.abs(a - b).max()) for a, b in zip(expected, found, strict=True))
        if not difference <= 1e-3:
            raise RuntimeError(
                f"The graph of {type(model).__name__} differs from the model by {difference:.2g}, nothing was written: "
                "a loop or an `if` over values, or random numbers in evaluation mode, cannot be put into a graph."
            )
    return path


def compare_runs(notebook: str, folder: str | os.PathLike = "models") -> pd.DataFrame:
    """Return a row a run of `notebook`, newest first: created, data, epochs, metrics, and the settings that differ.

    `epochs` tells which were stopped by hand. Where runs have a name (`name_run`) it comes first. Where at least two
    can be compared, `delta` is how many points a run is away from the best one on the same data: see `read_runs`. A run
    that cannot be read is named in a printed line and left out.
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
        epochs = f"{len(run['history'])}, stopped" if run.get("interrupted") else len(run["history"])
        row |= {"created": run["created"], "data": data_set, "epochs": epochs}
        row |= {name: value for name, value in run["metrics"].items() if isinstance(value, int | float)}
        if has_deltas:
            row["delta"] = math.nan if run["delta"] is None else round(run["delta"], 2)
        rows.append(row | {name: _show(run["settings"].get(name)) for name in differing})
    return pd.DataFrame(rows)


def read_runs(notebook: str | None, folder: str | os.PathLike = "models") -> tuple[list[dict], list[str]]:
    """Return what is known of each run of `notebook`, newest first, and a sentence a folder that cannot be read.

    With None it is the published weights, `<folder>/<name>/`, by name. No model is built.

    A run is its run.json and beside that
    - folder, history and results, as in a `Run`; name, "" if it has none; seconds of training, None if unknown;
    - metric and value: the first of its metrics that is a share of 1 and of which more is better; None without one;
    - low and high: the interval of that number, where results.json has it, else None;
    - tested: "test fold 1", say, or "872 tested" where there are no folds; "" where nothing of it is known;
    - group: a text that is the same for runs on the same data set, demo data apart, with the same classes, metric and
      `tested`;
    - delta: points to the best run of its group, 0 for the best; None where there is nothing to compare it with.
    """
    runs, problems = [], []
    for path in _published_folders(folder) if notebook is None else _run_folders(notebook, folder):
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
        run["tested"] = _name_tested(run)
        group = [data.get("data_set"), bool(data.get("demo")), classes, run["metric"], run["tested"]]
        run["group"] = to_json(group)
    groups: dict[str, list[float]] = {}
    for run in runs:
        if run["value"] is not None and run["data"].get("data_set"):  # nobody knows whether unnamed data is the same
            groups.setdefault(run["group"], []).append(run["value"])
    for run in runs:
        values = groups.get(run["group"], [])
        run["delta"] = 100 * (run["value"] - max(values)) if len(values) > 1 else None
    return runs, problems


def name_data(run: dict) -> str:
    """Return what the data of a row of `read_runs` is called, with "demo data" where it is that."""
    return f"{run['data'].get('data_set') or 'unnamed data'}{', demo data' if run['data'].get('demo') else ''}"


def differing_settings(runs: list[dict]) -> list[str]:
    """Return the names of the settings that are not the same in all `runs`, dicts with a key `settings`."""
    names = dict.fromkeys(name for run in runs for name in run["settings"])
    return [name for name in names if len({to_json(run["settings"].get(name, "-")) for run in runs}) > 1]


def load_histories(notebook: str, last: int = 8, folder: str | os.PathLike = "models") -> dict[str, pd.DataFrame]:
    """Return name -> history of the `last` runs of `notebook`, newest first, for `plotting.plot_learning_curves`.

    A name is the one that `name_run` gave, or the settings in which a run differs from most of these, with its time
    where others have the same.
    """
    runs = list(itertools.islice(_readable_runs(_run_folders(notebook, folder)), last))
    records = [record for _, record, _ in runs]
    values = {name: [_show(record["settings"].get(name)) for record in records] for name in differing_settings(records)}
    names = []
    for index, record in enumerate(records):
        own = {name: of_all[index] for name, of_all in values.items()}
        own = {name: value for name, value in own.items() if 2 * values[name].count(value) <= len(runs)}
        settings = ", ".join(f"{name}={value}" for name, value in own.items())
        names.append(record.get("name") or settings or "usual settings" * bool(values))
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
        temporary.write_text(to_json(record | {"name": name}), encoding="utf-8")
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


# ---- ONNX


class _WithSoftmax(nn.Module):
    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, waveforms: torch.Tensor) -> torch.Tensor:
        return self.model(waveforms).float().softmax(1)


@contextlib.contextmanager
def silence() -> Iterator[None]:
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


def _published_folders(folder: str | os.PathLike) -> list[Path]:
    """Return the folders of published weights, by name."""
    return sorted(file.parent for file in resolve_path(folder).glob("[!.]*/run.json"))


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


def _readable_runs(runs: list[Path]) -> Iterator[tuple[Path, dict, pd.DataFrame]]:
    """Yield folder, run.json and history of each; name those that cannot be read in a printed line each."""
    for run in runs:
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


def _main_rows(run: dict) -> list[dict]:
    """Return the rows of results.json with the number of a run's main metric."""
    found = []
    for row in run["results"]:
        mean, low, high = (row.get(key) for key in ("mean", "low", "high"))
        if run["value"] is None or not all(isinstance(number, int | float) for number in (mean, low, high)):
            continue
        if str(row.get("metric", "")) in run["metric"] and abs(mean - run["value"]) < 1e-6 and low <= mean <= high:
            found.append(row)
    return found


def _find_interval(run: dict) -> tuple[float, float] | tuple[None, None]:
    """Return the interval of a run's main metric: that of the row of results.json with the same number."""
    found = {(float(row["low"]), float(row["high"])) for row in _main_rows(run)}
    if len(found) > 1:  # two models got the same number; the headline tells which of them was saved
        found = {(low, high) for low, high in found if f"({low:.1%} to {high:.1%})" in run["headline"]}
    return found.pop() if len(found) == 1 else (None, None)


def _name_tested(run: dict) -> str:
    """Return on what a run was tested: a run on one fold is not to be compared with one on five."""
    folds = run["settings"].get("FOLDS")
    if isinstance(folds, list) and folds:
        in_order = sorted(map(str, folds), key=lambda fold: (len(fold), fold))
        return f"test fold{'s' * (len(folds) > 1)} {', '.join(in_order)}"
    n_test = next((row.get("n_test") for row in _main_rows(run)), None)
    return f"{n_test:,} tested" if isinstance(n_test, int) else ""


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


def make_front_end(preprocessing: dict) -> nn.Module:
    """Return the layer that turns waveforms into what a run's model takes: Identity where the model has its own.

    Raises ValueError for the name of a front-end that is unknown.
    """
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
    module_name = RUN_MODULE + hashlib.sha256(str(path).encode()).hexdigest()[:16]
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


def to_plain(name: str, value: object) -> object:
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
        return {str(key): to_plain(f"{name}[{key!r}]", item) for key, item in value.items()}
    if isinstance(value, list | tuple | range):
        return [to_plain(f"{name}[{i}]", item) for i, item in enumerate(value)]
    raise ValueError(f"{name} is a {type(value).__name__}; a run keeps numbers, text, None, lists and dicts of them.")


def to_json(value: object) -> str:
    """Return a value as the files of this project hold it: JSON with an indent, letters as they are."""
    return json.dumps(value, indent=1, ensure_ascii=False)


def read_versions() -> dict[str, str]:
    """Return the versions that a result depends on: of Python, torch, torchaudio and numpy."""
    names = ("torch", "torchaudio", "numpy")
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in names}
