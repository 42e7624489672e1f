"""Hand learning curves to an experiment tracker: TensorBoard, trackio or Weights & Biases, on this machine only."""

import datetime
import importlib.util
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import uuid
from pathlib import Path

import numpy as np
import pandas as pd

from shared_utils.device import name_error, resolve_path
from shared_utils.runs import silence

TRACKERS = ("none", "tensorboard", "trackio", "wandb")

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
            errors[name] = name_error(error)
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
        errors |= dict.fromkeys(curves, name_error(error))
    if errors:
        name, reason = next(iter(errors.items()))
        reason = (reason.splitlines() or ["no reason given"])[0].rstrip(".")
        print(
            f"{tracker} has not taken {len(errors)} of {len(curves)} curves, first {name}: {reason}. The training and "
            "its history are not touched by that."
        )
    return folder if len(errors) < len(curves) else None


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
    with silence():
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
            errors[name] = name_error(error)
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
