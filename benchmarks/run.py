"""Run the benchmarks, print tables, draw figures/benchmarks/*.png: `python -m benchmarks.run [front_end ...]`."""

import argparse
import importlib
import statistics
import subprocess
import sys
import time
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from threadpoolctl import threadpool_limits

from shared_utils.device import ROOT, resolve_path, set_threads, write_whole

TITLES = {
    "front_end": "Front-end: a batch against clip by clip",
    "decoding": "Decoding: threads into one array against a loop",
    "training_epoch": "A training epoch: arrays and layers against files and workers",
    "speech_commands": "Training on spoken words: arrays and layers against files and workers",
    "text": "Sentences: batches of similar length against padding to 128",
    "ast": "Fine-tuning an AST: 400 frames in a batch against 1,024 clip by clip",
    "ast_batches": "Fine-tuning an AST: LoRA against all weights, batch by batch",
    "dendrites": "Dendrites on an AST: branches of low rank against full ones",
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="name", help=f"of {', '.join(TITLES)}; default: all")
    names = parser.parse_args().names or list(TITLES)
    unknown = sorted(set(names) - set(TITLES))
    if unknown:
        parser.error(f"there is no benchmark {', '.join(unknown)}; choose of {', '.join(TITLES)}")
    print(f"import of shared_utils.training: {_time_import('shared_utils.training'):.2f} s (target: under 2.5 s)\n")
    for name in names:
        module = importlib.import_module(f"benchmarks.{name}")
        data_set = module.load_clips().attrs
        data = f"{data_set['data_set']}{' (demo data)' if data_set['demo'] else ''}, CPU threads: {set_threads()}"
        # NumPy's BLAS threads wait by spinning, on the cores that PyTorch's threads need: with both, both are slower
        with threadpool_limits(1, "blas"):
            rows = [{"target": getattr(module, "TARGET", None)} | row for row in module.measure()]
        table = pd.DataFrame(rows, columns=["name", "ours", "theirs", "unit", "ratio", "target"])
        table["met"] = np.where(table["ratio"] >= table["target"], "yes", "no")
        print(f"{TITLES[name]} ({data})\n{table.to_string(index=False, float_format='{:.2f}'.format)}")
        print(f"-> {draw(table, TITLES[name], data, name).relative_to(ROOT)}\n", flush=True)
        if hasattr(module, "measure_path"):
            with threadpool_limits(1, "blas"):
                path = module.measure_path()
            print(f"{module.PATH_TITLE} ({data})\n{path.to_string(index=False, float_format='{:,.1f}'.format)}\n")


def draw(table: pd.DataFrame, title: str, data: str, name: str) -> Path:
    """Draw a bar a row of `table` as long as its ratio, with a line at the target; return the PNG's path."""
    blue, orange = matplotlib.color_sequences["petroff10"][:2]
    with matplotlib.rc_context({"font.size": 14, "axes.spines.top": False, "axes.spines.right": False}):
        fig = Figure(figsize=(12.8, 7.2), layout="constrained")
        ax = fig.subplots()
        bars = ax.barh(table["name"].str.replace(" / ", "\nagainst "), table["ratio"], height=0.6, color=blue)
        ax.bar_label(bars, [f"{ratio:.1f} x" for ratio in table["ratio"]], padding=10, fontsize=16)
        rows = range(len(table))
        low, high = ([row + side for row in rows] for side in (-0.4, 0.4))
        ax.vlines(table["target"], low, high, color=orange, linewidth=4, label="target")
        ax.invert_yaxis()
        ax.margins(x=0.15)
        ax.set_xlim(left=0)
        ax.set_xlabel("times faster")
        ax.set_title(f"{title}\n{data}, PyTorch {torch.__version__.partition('+')[0]}")
        fig.legend(loc="outside lower right", frameon=False)
        path = resolve_path(f"figures/benchmarks/{name}.png")
        with write_whole(path) as temporary:
            fig.savefig(temporary, dpi=150)
    return path


def _time_import(module: str) -> float:
    """Return the median seconds that a fresh Python needs to import `module`, after one that does not count."""
    seconds = []
    for _ in range(4):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-c", f"import {module}"], check=True, cwd=resolve_path("."))
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[1:])


if __name__ == "__main__":
    main()
