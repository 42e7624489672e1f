"""One set of dendrites on the fc2 layers of a full-size AST: what full branches cost, and branches of low rank.

All weights train, as in `benchmarks.ast`: 400 frames in a batch, bfloat16 where the hardware multiplies it. Weights are
random; the published ones take the same time.
"""

import gc
import tempfile
from functools import partial

import pandas as pd
import torch

from benchmarks import time_in_turn
from benchmarks.ast import N_FRAMES, load_clips, load_waveforms, make_checkpoint, train_step
from shared_utils.dendrites import grow_dendrites, make_dendritic
from shared_utils.device import pick_device, pick_precision, seed_everything, set_threads
from shared_utils.finetuning import AstClassifier
from shared_utils.training import count_parameters, count_step_bytes, make_optimizer

TARGET = 1.0
PATH_TITLE = "Parameters and memory of one training step of AST, in millions and MB"
LAYERS = ["fc2"]
RANK = 8
WAYS = {"no dendrites": 0, "full branches": None, f"branches of rank {RANK}": RANK}  # 0: none

__all__ = ["load_clips", "measure", "measure_path"]


def make_model(way: str, pretrained: str) -> AstClassifier:
    """Return an AST with one set of dendrites on every layer of LAYERS, or none, in one of WAYS."""
    seed_everything(0)
    model = AstClassifier(pretrained, load_clips()["label"].nunique(), N_FRAMES, final_output="both")
    if WAYS[way] != 0:
        make_dendritic(model.encoder, LAYERS, WAYS[way])
        grow_dendrites(model)
    return model.train()


def make_batch(batch_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return int16 waveforms (batch_size, 64000) and their targets."""
    rows = torch.linspace(0, len(load_clips()) - 1, batch_size).long()
    return load_waveforms()[rows], torch.tensor(load_clips()["label"].to_numpy())[rows]


def measure(n_runs: int = 3, batch_size: int = 2, **config) -> list[dict]:
    """Return name, ours (low rank), theirs, ratio and unit: milliseconds of a training step, median.

    Args:
        n_runs: rounds, after one that does not count.
        batch_size: clips a step; it is 16 on a GPU.
        config: changes to transformers.ASTConfig, for a smaller model in the place of AST.
    """
    set_threads()
    device = pick_device()
    inputs, targets = (part.to(device) for part in make_batch(batch_size if device.type == "cpu" else 16))
    steps = {}
    with tempfile.TemporaryDirectory() as folder:
        make_checkpoint(folder, **config)
        for way in WAYS:
            model = make_model(way, folder).to(device)
            optimizer = make_optimizer(model, "adamw", lr=5e-5, weight_decay=0.1)
            steps[way] = partial(train_step, model, inputs, targets, optimizer, pick_precision(device))
    seconds = time_in_turn(steps, n_runs)
    plain, full, low = (1000 * seconds[way] for way in WAYS)
    rows = []
    for name, ours, theirs in (
        (f"rank {RANK} / full branches", low, full), (f"rank {RANK} / no dendrites", low, plain),
        ("full branches / no dendrites", full, plain),
    ):  # fmt: skip
        how = f"one set on fc2, {len(inputs)} clips on {device.type}, {name}"
        rows.append({"name": how, "ours": ours, "theirs": theirs, "ratio": theirs / ours, "unit": "ms a step"})
    return rows


def measure_path(batch_size: int = 2, **config) -> pd.DataFrame:
    """Return way, batch, million parameters, the megabytes of `training.count_step_bytes`, and "all" over the first."""
    set_threads()
    inputs, targets = make_batch(batch_size)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        make_checkpoint(folder, **config)
        for way in WAYS:
            gc.collect()  # the model before this one, of which only cycles are left
            model = make_model(way, folder)
            n_parameters = count_parameters(model)[0] / 1e6
            used = {part: n_bytes / 1e6 for part, n_bytes in count_step_bytes(model, inputs, targets).items()}
            rows.append({"way": way, "batch": batch_size, "parameters (M)": n_parameters} | used)
            del model
    table = pd.DataFrame(rows)
    return table.assign(**{"times more": table["all"] / table["all"].iloc[0]})
