"""This project's data path against the usual ones: same clips, same output, one process, medians; `make benchmarks`.

Every module has `load_clips()`, the table of clips whose data set stands in its title, and `measure()`, which checks
that both sides give the same result and returns a row a comparison: name, ours, theirs (in `unit`), ratio (theirs /
ours: how many times faster), and its own target where it is not `TARGET`. One may also have `measure_path()`, a table
of the steps of its data path, which is printed under `PATH_TITLE`.
"""

import statistics
import time
from collections.abc import Callable

import pandas as pd
import torch
import torch.nn.functional as F

from shared_utils.datasets import load_esc50
from shared_utils.device import ROOT


def load_clips() -> pd.DataFrame:
    """Return the table of real clips if they lie beside the repository, of the demo data otherwise.

    Both are at 16 kHz, where every path gives the same numbers; ESC-50 in data/ may be at 44.1 kHz.
    """
    real = ROOT.parent / "shared" / "data"
    return load_esc50(real, source="real") if real.is_dir() else load_esc50(source="demo")


def time_in_turn(functions: dict[str, Callable[[], object]], n_runs: int) -> dict[str, float]:
    """Return each function's median time in seconds over `n_runs` rounds, after one round that does not count.

    They run in turn, so that another program's load or a warmer processor falls on all of them.
    """
    seconds = {name: [] for name in functions}
    for _ in range(n_runs + 1):
        for name, function in functions.items():
            started = time.perf_counter()
            function()
            seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(times[1:]) for name, times in seconds.items()}


def train_usual(model: torch.nn.Module, loader, optimizer: torch.optim.Optimizer) -> None:
    """One epoch as tutorials write it."""
    model.train()
    for inputs, targets in loader:
        optimizer.zero_grad()
        F.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
