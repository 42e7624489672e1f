"""LoRA against training all weights of an AST of the published size: batch by batch, in float32 and in bfloat16.

Steps on clips of 4 s (400 frames), as in `benchmarks.ast`, with random weights: the published ones take the same time.
On a GPU the batches are 8 to 64 clips; on the CPU they are 8 and 16, which takes four minutes on two cores and 6 GB.
"""

import gc
import tempfile
from collections.abc import Iterator
from functools import partial

import pandas as pd
import torch

from benchmarks import time_in_turn
from benchmarks.ast import load_clips, make_checkpoint, make_step, name_precision, train_step
from shared_utils.device import pick_device, pick_precision, set_threads
from shared_utils.training import count_step_bytes

TARGET = 1.0
PATH_TITLE = "Memory of these steps, in MB"
METHODS = {"full": "all weights", "LoRA": "LoRA"}

__all__ = ["load_clips", "measure", "measure_path"]


def measure(n_runs: int = 1, batches: tuple[int, ...] | None = None, **config) -> list[dict]:
    """Return name, ours (LoRA) and theirs (all weights; milliseconds, median), ratio and unit: a row a kind of step.

    Args:
        n_runs: rounds, after one that does not count.
        batches: clips a step; None takes those that the device has room for.
        config: changes to transformers.ASTConfig, for a smaller model in the place of AST.
    """
    rows = []
    for device, n_clips, precision, folder in _list_steps(batches, config):
        steps = {method: (*make_step(method, folder, n_clips, device)[:4], precision) for method in METHODS}
        seconds = time_in_turn({method: partial(train_step, *step) for method, step in steps.items()}, n_runs)
        ours, theirs = 1000 * seconds["LoRA"], 1000 * seconds["full"]
        name = f"AST, {n_clips} clips on {device.type}, {name_precision(precision)}: LoRA / all weights"
        rows.append({"name": name, "ours": ours, "theirs": theirs, "ratio": theirs / ours, "unit": "ms a step"})
        del steps
    return rows


def measure_path(batches: tuple[int, ...] | None = None, **config) -> pd.DataFrame:
    """Return device, batch, precision, trains and the megabytes of `training.count_step_bytes`: a row a step."""
    rows = []
    for device, n_clips, precision, folder in _list_steps(batches, config):
        for method, trains in METHODS.items():
            model, inputs, targets, *_ = make_step(method, folder, n_clips, device)
            counted = count_step_bytes(model, inputs, targets, device=str(device), precision=name_precision(precision))
            used = {part: n_bytes / 1e6 for part, n_bytes in counted.items()}
            rows.append(
                {"device": device.type, "batch": n_clips, "precision": name_precision(precision), "trains": trains}
                | used
            )
            del model
            gc.collect()  # of a model only cycles are left
    return pd.DataFrame(rows)


def _list_steps(batches: tuple[int, ...] | None, config: dict) -> Iterator[tuple]:
    """Yield device, clips a batch, precision, and the folder of the checkpoint."""
    set_threads()
    device = pick_device()
    batches = batches or ((8, 16) if device.type == "cpu" else (8, 16, 32, 64))
    precisions = dict.fromkeys([torch.float32, pick_precision(device)])  # bfloat16 where it is no emulation
    with tempfile.TemporaryDirectory() as folder:
        make_checkpoint(folder, **config)
        for n_clips in batches:
            for precision in precisions:
                gc.collect()
                yield device, n_clips, precision, folder
