"""The figures, made for slides, and the FigureBook that writes them and makes a deck of them.

Every figure is 16:9, 12.8 x 7.2 inches, with no text under 14 pt (so 12 pt are left when it is scaled down on a slide)
and colours that colour-blind readers can tell apart (Petroff, Accessible color sequences for data visualization, 2021).
Functions return the figure and neither show nor save it: a notebook shows what stands at the end of a cell.
"""

import base64
import functools
import html
import io
import itertools
import json
import os
import re
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.textpath import text_to_path
from matplotlib.ticker import MaxNLocator

from shared_utils.device import resolve_path
from shared_utils.metrics import auc_per_class

COLOURS = matplotlib.color_sequences["petroff10"]
INK, GREY = "#222222", "#6b6b6b"
SIZE = (12.8, 7.2)  # inches
SCREEN_DPI, FILE_DPI = 72, 150  # 922 pixels wide in a notebook, 1920 in the file
SMALLEST = 14  # points
DOT = {"markersize": 12, "markeredgecolor": "white", "markeredgewidth": 1.5}
SLIDE = (13.333, 7.5)  # inches
SLIDE_FIGURE_HEIGHT = 6.5
TABLE_WIDTH, TABLE_ROWS = 12.3, 14  # inches and rows that fit a slide
STYLE = {
    "axes.prop_cycle": matplotlib.cycler(color=COLOURS), "font.family": "DejaVu Sans", "font.size": 15,
    "axes.titlesize": 16, "axes.labelsize": 15, "xtick.labelsize": SMALLEST, "ytick.labelsize": SMALLEST,
    "legend.fontsize": SMALLEST, "legend.frameon": False, "axes.titlelocation": "left", "axes.titlepad": 8,
    "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": GREY, "xtick.color": GREY, "ytick.color": GREY,
    "xtick.labelcolor": INK, "ytick.labelcolor": INK, "axes.spines.top": False, "axes.spines.right": False,
    "grid.color": "#e4e4e4", "axes.axisbelow": True, "lines.linewidth": 2.5, "figure.facecolor": "white",
    "savefig.facecolor": "white", "text.parse_math": False, "svg.hashsalt": "figure", "svg.fonttype": "path",
}  # fmt: skip


class _Figure(Figure):
    """A figure that notebooks show although pyplot does not know it, and whose ticks, made when drawn, are styled."""

    def draw(self, renderer) -> None:
        with matplotlib.rc_context(STYLE):
            super().draw(renderer)

    def _repr_png_(self) -> bytes:
        from PIL import Image

        picture = Image.open(io.BytesIO(_render(self, "png", SCREEN_DPI))).convert("RGB")
        content = io.BytesIO()
        # 256 colours look the same and take a third of the space in a notebook
        picture.quantize(256, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE).save(content, "png", optimize=True)
        return content.getvalue()


def _styled(plot: Callable[..., Figure]) -> Callable[..., Figure]:
    """Run `plot` under STYLE, so that importing this module changes no one else's figures."""

    @functools.wraps(plot)
    def styled(*args, **kwargs) -> Figure:
        with matplotlib.rc_context(STYLE):
            return plot(*args, **kwargs)

    return styled


@_styled
def plot_class_counts(clips: pd.DataFrame, title: str | None = None) -> Figure:
    """Draw the number of clips of each class, stacked by `split` or `fold` where the table has such a column."""
    by = next((column for column in ("split", "fold") if column in clips), None)
    sides = clips[by] if by else pd.Series("clips", index=clips.index)
    counts = pd.crosstab(clips["class_name"], sides)
    if by == "split":
        counts = counts[[side for side in ("train", "val", "test") if side in counts]]
    totals = counts.sum(axis=1)
    fig = _figure(title)
    for ax, names in _bar_columns(fig, list(counts.index), "Number of clips"):
        left = np.zeros(len(names))
        for colour, side in zip(itertools.cycle(COLOURS), counts, strict=False):
            values = counts.loc[names, side].to_numpy()
            label = f"fold {side}" if by == "fold" else str(side)
            ax.barh(range(len(names)), values, left=left, color=colour, label=label, height=0.76)
            left += values
        ax.set_xlim(0, totals.max())
        for row, total in enumerate(totals[names]):
            _write_beside(ax, row, str(total))
        ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    if by:
        _top_legend(fig, *fig.axes[0].get_legend_handles_labels(), handlelength=1)
    return fig


@_styled
def plot_waveforms(waveforms: np.ndarray, sample_rate: int, titles: Sequence[str], title: str | None = None) -> Figure:
    """Draw up to ten waveforms (clips, samples), int16 or float, over time; full scale is 1."""
    waveforms = [np.asarray(waveform) for waveform in waveforms]
    fig = _figure(title)
    axes = _grid(fig, titles, len(waveforms))
    for ax, waveform in zip(axes, waveforms, strict=True):
        waveform = waveform / 32768 if waveform.dtype == np.int16 else waveform
        # what a line of 80,000 points shows is its envelope: a fill of 1,000 is the same picture and a small file
        starts = np.unique(np.linspace(0, len(waveform), min(1000, len(waveform)), endpoint=False, dtype=int))
        high, low = np.maximum.reduceat(waveform, starts), np.minimum.reduceat(waveform, starts)
        ax.fill_between(starts / sample_rate, low, high, color=COLOURS[0], linewidth=0.8)
        ax.axhline(0, color=GREY, linewidth=0.6)
        ax.set_xlim(0, len(waveform) / sample_rate)
    largest = max(np.abs(np.concatenate([ax.dataLim.intervaly for ax in axes])))
    axes[0].set_ylim(-1.05 * largest, 1.05 * largest)
    _label_grid(fig, "Time (s)", "Amplitude (full scale = 1)")
    return fig


@_styled
def plot_spectrograms(
    specs: np.ndarray,
    times: np.ndarray,
    frequencies: np.ndarray,
    titles: Sequence[str],
    title: str | None = None,
    y_label: str = "Frequency (Hz)",
    colour_label: str = "Level (dB)",
) -> Figure:
    """Draw up to ten specs (clips, n_mels, frames), or (clips, frames, n_mels), with one colour scale.

    `times` (frames,) in s and `frequencies` (n_mels,) in Hz come from the front-end's `frame_times` and `frequencies`.
    """
    images = [_as_image(spec, times, frequencies) for spec in specs]
    fig = _figure(title)
    axes = _grid(fig, titles, len(images))
    low, high = np.quantile(np.stack(images), [0.005, 0.9995])  # a click or a dead bin must not take all the colours
    for ax, image in zip(axes, images, strict=True):
        picture = _draw_spec(ax, image, times, vmin=low, vmax=high, cmap="magma")
    _tick_frequencies(axes[0], frequencies, gap=0.12 if len(axes) > 2 else 0.06)
    fig.colorbar(picture, ax=axes, label=colour_label, aspect=40, pad=0.015)
    _label_grid(fig, "Time (s)", y_label)
    return fig


@_styled
def plot_learning_curves(histories: dict[str, pd.DataFrame] | pd.DataFrame, title: str | None = None) -> Figure:
    """Draw loss and accuracy over the epochs: training solid, validation dashed, a dot on the best epoch.

    `histories` is a history of `training.fit`, or name -> history; several runs differ in colour.
    """
    if isinstance(histories, pd.DataFrame):
        histories = {"": histories}
    if not histories:
        raise ValueError("There is no history to draw; train a model or save a run first.")
    fig = _figure(title)
    axes = fig.subplots(1, 2)
    several, dashes = len(histories) > 1, (0, (4, 1.5))
    for index, history in enumerate(histories.values()):
        train_colour, val_colour = (_cycle(index), _cycle(index)) if several else COLOURS[:2]
        light = {"linewidth": 1.5, "alpha": 1 if len(histories) <= 4 else 0.3} if several else {}
        best = _best_epoch(history)
        for ax, kind, scale in zip(axes, ("loss", "accuracy"), (1, 100), strict=True):
            ax.plot(history["epoch"], scale * history[f"train_{kind}"], color=train_colour, **light)
            val = history[["epoch", f"val_{kind}"]].dropna()  # epochs without validation
            ax.plot(val["epoch"], scale * val[f"val_{kind}"], color=val_colour, linestyle=dashes)
            chosen = val[val["epoch"] == best]
            ax.plot(chosen["epoch"], scale * chosen[f"val_{kind}"], "o", color=val_colour, **DOT)
    for ax, label in zip(axes, ("Cross-entropy loss (nats)", "Accuracy (%)"), strict=True):
        ax.set(xlabel="Epoch", ylabel=label)
        ax.grid(True)
        ax.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    axes[0].set_ylim(bottom=0)
    axes[1].set_ylim(top=101)
    train_colour, val_colour = (INK, INK) if several else COLOURS[:2]
    lines = {"training": Line2D([], [], color=train_colour), "validation": Line2D([], [], color=val_colour, ls=dashes)}
    if best:
        label = "best epoch" if several else f"best epoch: {best}"
        lines[label] = Line2D([], [], color=val_colour, marker="o", ms=10, linestyle="")
    _top_legend(fig, list(lines.values()), list(lines))
    if several:
        patches = [Patch(color=_cycle(index)) for index in range(len(histories))]
        _bottom_legend(fig, patches, [_shorten(name, 50) for name in histories])
    return fig


@_styled
def plot_confusion_matrix(matrix: np.ndarray, class_names: Sequence[str], title: str | None = None) -> Figure:
    """Draw counts (classes, classes), row = true class, coloured by the share of the true class.

    Up to 12 classes show the counts. More show the matrix as a picture (class names up to 20, beyond that those that
    are recognised worst) beside a list of the pairs that are confused most.
    """
    matrix = np.asarray(matrix)
    n_classes = len(class_names)
    if matrix.shape != (n_classes, n_classes):
        raise ValueError(f"A confusion matrix of {n_classes} classes has as many rows and columns, not {matrix.shape}.")
    names = [_pretty(name) for name in class_names]
    support = matrix.sum(1)
    shares = 100 * matrix / np.maximum(support, 1)[:, None]
    fig = _figure(title)
    if n_classes <= 12:
        ax = fig.subplots()
        for (row, column), count in np.ndenumerate(matrix):
            colour = "white" if shares[row, column] > 55 else INK if count else "#b0b0b0"
            ax.text(column, row, str(count), ha="center", va="center", color=colour)
    else:
        ax, side = fig.subplots(1, 2)
        _list_confusions(side, matrix, names)
    # with many classes the root of the share makes single mistakes visible
    norm = PowerNorm(1 if n_classes <= 12 else 0.5, vmin=0, vmax=100)
    picture = ax.imshow(shares, cmap="Blues", norm=norm, aspect="auto")
    fig.colorbar(picture, ax=ax, label="Share of the true class (%)", pad=0.02, aspect=35, ticks=range(0, 101, 20))
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    ax.set_ylabel("True class" if n_classes <= 20 else "True class (named: recognised worst)")
    ax.set_xlabel("Predicted class" if n_classes <= 20 else "Predicted class, in the same order")
    if n_classes <= 20:
        slant = {"rotation": 35, "ha": "right", "rotation_mode": "anchor"} if n_classes <= 12 else {"rotation": 90}
        ax.set_xticks(range(n_classes), names, **slant)
        ax.set_yticks(range(n_classes), names)
    else:
        worst = _keep_apart(np.argsort(shares.diagonal(), kind="stable"), n_classes / 24)[:14]
        ax.set_xticks([])
        ax.set_yticks(worst, [names[label] for label in worst])
    return fig


@_styled
def plot_f1_bars(report: pd.DataFrame, title: str | None = None) -> Figure:
    """Draw the F1 score of each class of a `metrics.report`, best first, and their macro average as a line."""
    scores = report["f1"].drop(["accuracy", "macro average"], errors="ignore")
    scores = scores.sort_values(ascending=False, kind="stable")
    macro = scores.mean()
    fig = _figure(title)
    for ax, names in _bar_columns(fig, list(scores.index), "F1 score"):
        ax.barh(range(len(names)), scores[names], color=COLOURS[0], height=0.76)
        line = ax.axvline(macro, color=INK, linewidth=1.5, linestyle="--")
        ax.set_xlim(0, 1)
        ax.set_xticks(np.linspace(0, 1, 6))
        for row, score in enumerate(scores[names]):
            _write_beside(ax, row, f"{score:.2f}")
    _top_legend(fig, [line], [f"macro average: {macro:.2f}"])
    return fig


@_styled
def plot_roc_curves(
    targets: np.ndarray, probabilities: np.ndarray, class_names: Sequence[str], title: str | None = None
) -> Figure:
    """Draw each class's ROC curve, one against the rest, with its AUC; with more than 12 classes the five worst.

    The macro curve is the mean of the curves of all classes that occur in the targets.
    """
    from sklearn.metrics import roc_curve

    areas = auc_per_class(targets, probabilities)
    present = np.flatnonzero(~np.isnan(areas))
    if len(present) == 0:
        raise ValueError("ROC curves need clips of at least two classes, but all targets are the same class.")
    worst_first = present[np.argsort(areas[present], kind="stable")]
    shown = worst_first if len(worst_first) <= 12 else worst_first[:5]
    grid = np.linspace(0, 1, 1001)
    mean_curve = np.zeros_like(grid)
    fig = _figure(title)
    ax = fig.subplots()
    ax.plot([0, 100], [0, 100], color="#b0b0b0", linewidth=1.5, linestyle=":")
    for label in present:
        false_alarms, hits, _ = roc_curve(np.asarray(targets) == label, np.asarray(probabilities)[:, label])
        mean_curve += np.interp(grid, false_alarms, hits) / len(present)
        if label in shown:
            place = list(shown).index(label)
            line = {"color": _cycle(place), "linestyle": "-" if place < 10 else "--", "zorder": 3 - place / 100}
            name = f"{areas[label]:.3f}  {_shorten(_pretty(class_names[label]), 30)}"
            ax.plot(100 * false_alarms, 100 * hits, label=name, **line)
    mean_curve[0] = 0
    line = {"color": INK, "linestyle": (0, (3, 1)), "linewidth": 3.5, "zorder": 4}
    ax.plot(100 * grid, 100 * mean_curve, label=f"{areas[present].mean():.3f}  macro average", **line)
    ax.set(xlabel="False positive rate (%)", ylabel="True positive rate (%)", xlim=(-1, 101), ylim=(-1, 102))
    ax.grid(True)
    handles, labels = ax.get_legend_handles_labels()
    order = np.argsort([handle.get_zorder() for handle in handles])[::-1]
    heading = "AUC" if len(shown) == len(present) else f"AUC, the five worst of {len(present)} classes"
    ax.legend(
        [handles[i] for i in order], [labels[i] for i in order], loc="lower right", title=heading,
        title_fontsize=SMALLEST, alignment="left", labelspacing=0.3, borderaxespad=0.8,
    )  # fmt: skip
    return fig


@_styled
def plot_fold_dots(
    folds: pd.DataFrame, references: dict[str, float] | None = None, title: str | None = None
) -> Figure:
    """Draw the test accuracy of every fold and seed (a row of `training.cross_validate`), its mean and spread.

    Seeds differ in colour; where the table has a column `model`, models do. `references` are accuracies, name -> share
    of 1, drawn as lines: human listeners, a floor, a published model. The band is the mean plus and minus the standard
    deviation over folds (of each fold's mean over seeds).
    """
    numbers = sorted(folds["fold"].unique())
    models = dict(list(folds.groupby("model", sort=False))) if "model" in folds else {"": folds}
    by = "model" if len(models) > 1 else "seed"
    runs = list(folds.groupby([by] if by == "seed" else ["model", "seed"], sort=by == "seed"))
    fig = _figure(title)
    ax = fig.subplots()
    for index, (keys, rows) in enumerate(runs):
        shift = 0.09 * (index - (len(runs) - 1) / 2) * min(1, 7 / len(runs))
        colour = _cycle(index if by == "seed" else list(models).index(keys[0]))
        x = [numbers.index(fold) + shift for fold in rows["fold"]]
        label = f"seed {keys[0]}" if by == "seed" else None
        ax.plot(x, 100 * rows["test_accuracy"], "o", color=colour, label=label, zorder=4, **DOT)
    lines = {}
    for index, (name, rows) in enumerate(models.items()):
        accuracy = 100 * rows["test_accuracy"]
        mean, colour = accuracy.mean(), _cycle(index)
        label = f"{textwrap.fill(name, 26)}\n" * (by == "model") + f"mean {mean:.1f} %"
        for over in ("fold", "seed"):
            sd = accuracy.groupby(rows[over]).mean().std(ddof=1)
            label += "" if np.isnan(sd) else f"\nsd {sd:.1f} over {over}s"
            if over == "fold" and not np.isnan(sd):
                ax.axhspan(mean - sd, mean + sd, color=colour, alpha=0.12, linewidth=0)
        ax.axhline(mean, color=colour)
        lines[label] = (mean, INK)
    for name, value in (references or {}).items():
        ax.axhline(100 * value, color=GREY, linewidth=1.5, linestyle="--", zorder=0)
        lines[f"{name} {100 * value:.1f} %"] = (100 * value, INK)
    values = [*(100 * folds["test_accuracy"]), *(value for value, _ in lines.values())]
    ax.set_ylim(max(-1, min(values) - 6), min(101.5, max(values) + 4))
    ax.set_xlim(-0.5, len(numbers) - 0.5)
    ax.set_xticks(range(len(numbers)), [str(number) for number in numbers])
    ax.yaxis.set_major_locator(MaxNLocator(8, steps=[1, 2, 5, 10]))
    ax.set(xlabel="Test fold", ylabel="Accuracy on the test fold (%)")
    ax.grid(True, axis="y")
    _label_lines(ax, lines)
    if by == "seed" and len(runs) > 1:
        _top_legend(fig, *ax.get_legend_handles_labels(), handletextpad=0.1)
    return fig


@_styled
def plot_comparison(
    table: pd.DataFrame,
    references: dict[str, float] | None = None,
    title: str | None = None,
    x_label: str = "Accuracy (%)",
) -> Figure:
    """Draw a bar a row of `table` (model, mean, low, high as shares of 1) with its 95 % interval.

    `references` (name -> share of 1) are drawn as lines across the bars. `low` and `high` may be NaN: no interval.
    """
    crowded = len(table) > 9
    names = [_shorten(str(name), 36) if crowded else textwrap.fill(str(name), 26) for name in table["model"]]
    mean, low, high = (100 * table[column].to_numpy(dtype=float) for column in ("mean", "low", "high"))
    if not ((low <= mean) & (mean <= high) | np.isnan(low) | np.isnan(high)).all():
        raise ValueError("In a comparison low <= mean <= high must hold in every row.")
    fig = _figure(title)
    ax = fig.subplots()
    y = np.arange(len(names))
    ax.barh(y, mean, color=COLOURS[0], height=min(0.68, 0.2 * len(names)))
    known = ~np.isnan(low) & ~np.isnan(high)
    reach = np.array([mean - low, high - mean])[:, known]
    whisker = {"fmt": "none", "ecolor": INK, "elinewidth": 2.5, "capsize": 7, "capthick": 2.5, "zorder": 3}
    ax.errorbar(mean[known], y[known], xerr=reach, **whisker)
    for row in range(len(names)):
        interval = [f"{low[row]:.1f} to {high[row]:.1f}"] if known[row] else []
        _write_beside(ax, row, ("   " if crowded else "\n").join([f"{mean[row]:.1f} %", *interval]))
    ax.set_yticks(y, names)
    ax.set(ylim=(len(names) - 0.4, -0.6), xlim=(0, 100), xlabel=f"{x_label}; whisker: 95 % interval")
    ax.tick_params(axis="y", length=0)
    ax.grid(True, axis="x")
    _label_columns(ax, {name: 100 * value for name, value in (references or {}).items()})
    return fig


@_styled
def plot_attention(
    spec: np.ndarray,
    attention: np.ndarray,
    times: np.ndarray,
    frequencies: np.ndarray,
    title: str | None = None,
    colour_label: str = "Level (dB)",
    what: str | None = None,
) -> Figure:
    """Draw a spec (n_mels, frames) and, below it on the same axes, the attention that its parts get.

    `attention` (rows of patches from low to high frequency, columns of patches), or (steps,) for a model whose tokens
    are stretches of time; its cells are spread evenly over the spec and given relative to their mean: 1 is what each
    part would get if all got the same. With `what`, such as "Lost probability", they are drawn as they are.
    """
    image = _as_image(spec, times, frequencies)
    attention = np.atleast_2d(np.asarray(attention, dtype=float))
    if what is None:
        attention = attention / (attention.mean() or 1)
    fig = _figure(title)
    top, bottom = axes = fig.subplots(2, 1, sharex=True, sharey=True)
    picture = _draw_spec(top, image, times, cmap="magma")
    fig.colorbar(picture, ax=top, label=colour_label, pad=0.015)
    _draw_spec(bottom, image, times, cmap="gray")
    heat = bottom.imshow(
        attention, origin="lower", aspect="auto", extent=bottom.images[0].get_extent(), interpolation="bilinear",
        cmap="viridis", alpha=0.7,
    )  # fmt: skip
    bar = fig.colorbar(heat, ax=bottom, label=what or "Attention (mean = 1)", pad=0.015)
    bar.solids.set_alpha(1)
    _tick_frequencies(top, frequencies, gap=0.1)
    for ax, name in zip(axes, ("Spectrogram", f"{what or 'Attention'} over the spectrogram"), strict=True):
        ax.set_title(name)
        ax.set_ylabel("Frequency (Hz)")
    bottom.set_xlabel("Time (s)")
    return fig


def show_players(waveforms: np.ndarray, sample_rate: int, titles: Sequence[str]):
    """Return an audio player with its title for each of `waveforms` (clips, samples), for the end of a cell.

    The sound travels inside the notebook, as MP3: a tenth of the size of the samples, and every browser plays it.
    """
    import soundfile
    from IPython.display import HTML

    players = []
    for waveform, title in zip(waveforms, titles, strict=True):
        buffer = io.BytesIO()
        soundfile.write(buffer, np.asarray(waveform), sample_rate, format="MP3")
        sound = base64.b64encode(buffer.getvalue()).decode()
        players.append(
            f'<div style="display:inline-block;margin:0 16px 8px 0"><div>{html.escape(title)}</div>'
            f'<audio controls preload="none" src="data:audio/mpeg;base64,{sound}"></audio></div>'
        )
    return HTML("".join(players))


class FigureBook:
    """The figures and tables of one notebook, numbered in the order in which they first came, as files and as slides.

    Args:
        notebook_name: they go to `figures/<notebook_name>/`.
        data_set, demo: named at the foot of every figure and slide: "everyday sounds · demo data".
        folder: where the figures of all notebooks lie, relative to the repository's root.
        settings: the notebook's settings, for the notes under each slide.

    The number belongs to the name: a rerun replaces its own figure. `figures.json` in the folder remembers this when
    the kernel does not. Delete a figure's PNG to be rid of it, or the folder to start anew.
    """

    def __init__(
        self,
        notebook_name: str,
        data_set: str | None = None,
        demo: bool = False,
        folder: str | os.PathLike = "figures",
        settings: dict | None = None,
    ):
        self.notebook_name = notebook_name
        self.folder = resolve_path(folder) / notebook_name
        self.mark = " · ".join([data_set] * bool(data_set) + ["demo data"] * demo)
        self.settings = {name: str(value) for name, value in (settings or {}).items()}

    def save(self, name: str, fig: Figure, caption: str = "") -> Figure:
        """Write `fig` as PNG (1920 x 1080) and SVG with the data set at its foot; return it for the cell to show."""
        if isinstance(fig, _Figure):
            fig.draw_without_rendering()
            fig.set_layout_engine("none")  # every drawing would move the axes a little: now files and screen agree
        else:
            import matplotlib.pyplot as plt

            plt.close(fig)  # the notebook would show one of pyplot's own a second time
        for text in [text for text in fig.texts if text.get_gid() == "mark"]:
            text.remove()
        if self.mark:
            fig.text(0.992, 0.012, self.mark, ha="right", va="bottom", color=GREY, fontsize=SMALLEST, gid="mark")
        item = self._item(name, "figure", caption)
        self.folder.mkdir(parents=True, exist_ok=True)
        _write(self.folder / f"{item['file']}.svg", _render(fig, "svg", FILE_DPI))
        _write(self.folder / f"{item['file']}.png", _render(fig, "png", FILE_DPI))
        self._remember(item)
        return fig

    def table(self, name: str, df: pd.DataFrame, caption: str = "") -> pd.DataFrame:
        """Write `df` as CSV and put it in the deck as a native table; return it for the cell to show."""
        item = self._item(name, "table", caption)
        frame = df if isinstance(df.index, pd.RangeIndex) else df.reset_index()
        rows = ([_cell(value) for value in row] for row in frame.itertuples(index=False))
        item["rows"] = [[str(column) for column in frame], *rows]
        self.folder.mkdir(parents=True, exist_ok=True)
        _write(self.folder / f"{item['file']}.csv", frame.to_csv(index=False).encode())
        self._remember(item)
        return df

    def deck(self) -> Path:
        """Write `<notebook_name>.pptx` into the folder: 16:9, a title, then a figure or table with its caption a slide.

        A table is a native one and goes on to the next slide where it is long. Settings stand in the notes.
        """
        from pptx import Presentation
        from pptx.util import Inches

        items = self._items()
        if not items:
            raise ValueError(f"{self.folder} holds no figure yet; run {self.notebook_name} first.")
        deck = Presentation()
        deck.slide_width, deck.slide_height = Inches(SLIDE[0]), Inches(SLIDE[1])
        deck.core_properties.title, deck.core_properties.author = _pretty(self.notebook_name).capitalize(), ""
        first = deck.slides.add_slide(deck.slide_layouts[0])
        marks = dict.fromkeys(item["mark"] for item in items if item["mark"])
        _place(first.shapes.title, (0.9, 2.4, 11.5, 1.3), deck.core_properties.title, 40)
        _place(first.placeholders[1], (0.9, 3.9, 11.5, 1.0), ", ".join(marks) or " ", 22)
        for item in items:
            caption = item["caption"] or item["name"].capitalize()
            if item["kind"] == "figure":
                slide = _add_slide(deck, caption, item)
                width, height = SLIDE_FIGURE_HEIGHT * SIZE[0] / SIZE[1], SLIDE_FIGURE_HEIGHT
                box = ((SLIDE[0] - width) / 2, SLIDE[1] - height - 0.08, width, height)
                picture = slide.shapes.add_picture(str(self.folder / f"{item['file']}.png"), *map(Inches, box))
                picture._element.nvPicPr.cNvPr.set("descr", caption)
                continue
            parts, size = _split_table(item["rows"])
            for number, part in enumerate(parts, 1):
                title = caption if len(parts) == 1 else f"{caption} ({number} of {len(parts)})"
                _add_table(_add_slide(deck, title, item), part, size, caption, item["mark"])
        path = self.folder / f"{self.notebook_name}.pptx"
        content = io.BytesIO()
        deck.save(content)
        _write(path, content.getvalue())
        return path

    def _items(self) -> list[dict]:
        """Read what the folder holds; what someone has deleted no longer counts."""
        path = self.folder / "figures.json"
        if not path.exists():
            return []
        try:
            items = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"{path} is damaged ({error}); delete the folder and run the notebook again.") from error
        kinds = {"figure": "png", "table": "csv"}
        return [item for item in items if (self.folder / f"{item['file']}.{kinds[item['kind']]}").exists()]

    def _item(self, name: str, kind: str, caption: str) -> dict:
        slug = re.sub(r"\W+", "_", name.lower()).strip("_")
        if not slug:
            raise ValueError(f"{name!r} is no name for a figure; give it letters or digits.")
        items = self._items()
        numbers = {item["file"][3:]: item["number"] for item in items}
        number = numbers.get(slug, 1 + max(numbers.values(), default=0))
        return {
            "number": number, "name": name, "kind": kind, "file": f"{number:02d}_{slug}", "caption": caption,
            "mark": self.mark, "settings": self.settings,
        }  # fmt: skip

    def _remember(self, new: dict) -> None:
        items = [item for item in self._items() if item["number"] != new["number"]] + [new]
        items.sort(key=lambda item: item["number"])
        _write(self.folder / "figures.json", json.dumps(items, indent=1, ensure_ascii=False).encode())


def _figure(title: str | None) -> _Figure:
    fig = _Figure(figsize=SIZE, dpi=SCREEN_DPI, layout="constrained")
    fig.get_layout_engine().set(rect=(0.006, 0.01, 0.988, 0.98), wspace=0.03)
    _reserve(fig, bottom=0.045)  # for the data set's name
    if title:
        fig.suptitle(title, x=0.012, y=0.982, ha="left", va="top", weight="bold", size=20)
        _reserve(fig, top=0.06)
    return fig


def _reserve(fig: Figure, top: float = 0, bottom: float = 0) -> tuple[float, float]:
    """Keep the axes out of strips at the top and bottom, shares of the height; return where these ended before."""
    left, low, width, height = fig.get_layout_engine().get()["rect"]
    fig.get_layout_engine().set(rect=(left, low + bottom, width, height - top - bottom))
    return low + height, low


def _render(fig: Figure, kind: str, dpi: int) -> bytes:
    """Return the same bytes for the same figure: no date, no random names inside."""
    content = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": STYLE["svg.hashsalt"], "svg.fonttype": STYLE["svg.fonttype"]}):
        fig.savefig(content, format=kind, dpi=dpi, metadata={"Date": None} if kind == "svg" else None)
    return content.getvalue()


def _write(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _cycle(index: int) -> tuple[float, float, float]:
    return COLOURS[index % len(COLOURS)]


def _pretty(name: str) -> str:
    return str(name).replace("_", " ").strip() or str(name)


def _shorten(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 1] + "…"


def _text_width(text: str, size: float) -> float:
    """Return the width in inches of a line of text of `size` points."""
    return text_to_path.get_text_width_height_descent(text, FontProperties(size=size), ismath=False)[0] / 72


def _bar_columns(fig: Figure, names: list, x_label: str) -> Iterator[tuple[Axes, list]]:
    """Yield axes for horizontal bars, 25 classes a column (as many as have legible names), and their classes."""
    if len(names) > 75:
        x_label = f"{x_label} ({75} of {len(names)} classes)"
        names = names[-75:]
    n_columns = -(-len(names) // 25)
    n_rows = -(-len(names) // n_columns)
    for index, ax in enumerate(fig.subplots(1, n_columns, squeeze=False)[0]):
        part = names[index * n_rows : (index + 1) * n_rows]
        yield ax, part
        ax.set_yticks(range(len(part)), [_shorten(_pretty(name), 24) for name in part])
        ax.set(ylim=(n_rows - 0.4, -0.6), xlabel=x_label)
        ax.tick_params(axis="y", length=0)
        ax.grid(True, axis="x")


def _write_beside(ax: Axes, row: int, text: str) -> None:
    """Write a bar's value to the right of the axes, where no line or whisker runs through it."""
    ax.annotate(
        text, (1, row), xycoords=("axes fraction", "data"), xytext=(10, 0), textcoords="offset points", va="center",
        fontsize=SMALLEST, linespacing=1.1, annotation_clip=False,
    )  # fmt: skip


def _top_legend(fig: Figure, handles: list, labels: list[str], **kwargs) -> None:
    """Put a legend at the top right: beside the title if there is room, below it otherwise."""
    legend = fig.legend(handles, labels, loc="upper right", ncols=min(len(labels), 8), borderaxespad=0, **kwargs)
    legend.set_in_layout(False)
    box, title = legend.get_window_extent(), fig.get_suptitle()
    top, height = 0.98, box.height / fig.bbox.height
    if not title or _text_width(title, 1.1 * 20) + box.width / fig.dpi > SIZE[0] - 0.6 or height > 0.06:
        top, _ = _reserve(fig, top=height)
    legend.set_bbox_to_anchor((0.992, top), fig.transFigure)


def _bottom_legend(fig: Figure, handles: list, labels: list[str]) -> None:
    """Put a legend of long names at the bottom, in as many columns as fit."""
    n_columns = max(1, int(12.6 / (0.8 + max(_text_width(label, SMALLEST) for label in labels))))
    place = {"loc": "lower left", "borderaxespad": 0, "handlelength": 1}
    legend = fig.legend(handles, labels, ncols=min(n_columns, len(labels)), **place)
    legend.set_in_layout(False)
    _, low = _reserve(fig, bottom=legend.get_window_extent().height / fig.bbox.height)
    legend.set_bbox_to_anchor((0.01, low), fig.transFigure)


def _label_grid(fig: Figure, x_label: str, y_label: str) -> None:
    """Name the axes of a grid once for all panels."""
    _, low = _reserve(fig, bottom=0.045)
    fig.supxlabel(x_label, size=15, y=low)
    fig.supylabel(y_label, size=15)


def _grid(fig: Figure, titles: Sequence[str], n_panels: int) -> list[Axes]:
    """Return `n_panels` titled axes that share both scales."""
    if len(titles) != n_panels or not 1 <= n_panels <= 10:
        raise ValueError(f"One to ten panels need a title each, but there are {n_panels} panels, {len(titles)} titles.")
    n_rows = {1: 1, 3: 3, 9: 3}.get(n_panels, 2)
    axes = fig.subplots(n_rows, -(-n_panels // n_rows), sharex=True, sharey=True, squeeze=False)
    for ax in axes.flat[n_panels:]:
        ax.set_visible(False)
    for ax, title in zip(axes.flat, titles, strict=False):
        ax.set_title(_shorten(_pretty(title), 100 // axes.shape[1]), size=16 if axes.shape[1] < 4 else SMALLEST)
    return list(axes.flat[:n_panels])


def _as_image(spec: np.ndarray, times: np.ndarray, frequencies: np.ndarray) -> np.ndarray:
    """Return the spec as (n_mels, frames); a Kaldi one comes as (frames, n_mels)."""
    spec = np.asarray(spec)
    if spec.shape == (len(frequencies), len(times)):
        return spec
    if spec.shape == (len(times), len(frequencies)):
        return spec.T
    raise ValueError(f"A spec {spec.shape} does not fit {len(frequencies)} frequencies and {len(times)} times.")


def _draw_spec(ax: Axes, image: np.ndarray, times: np.ndarray, **kwargs):
    half = (times[1] - times[0]) / 2 if len(times) > 1 else 0.5
    extent = (times[0] - half, times[-1] + half, -0.5, len(image) - 0.5)
    return ax.imshow(image, origin="lower", aspect="auto", extent=extent, interpolation="nearest", **kwargs)


def _tick_frequencies(ax: Axes, frequencies: np.ndarray, gap: float) -> None:
    """Put a tick at every octave of 125 Hz on an axis that counts bins, from the top down while there is room."""
    octaves = [125 * 2**k for k in range(12) if frequencies[0] <= 125 * 2**k <= frequencies[-1] * 1.05]
    if len(octaves) < 2:  # no frequencies, such as the numbers of cepstral coefficients
        return
    ticks: list[tuple[float, int]] = []
    for octave in reversed(octaves):
        place = float(np.interp(octave, frequencies, np.arange(len(frequencies))))
        if not ticks or ticks[-1][0] - place >= gap * len(frequencies):
            ticks.append((place, octave))
    ax.set_yticks(*zip(*ticks, strict=True))


def _best_epoch(history: pd.DataFrame) -> int:
    """Return the epoch whose weights were kept: highest validation accuracy, the lower loss among equals; 0: none."""
    if "best_epoch" in history.attrs:
        return int(history.attrs["best_epoch"])
    val = history.dropna(subset=["val_accuracy"])
    val = val.sort_values(["val_accuracy", "val_loss"], ascending=[False, True], kind="stable")
    return int(val["epoch"].iloc[0]) if len(val) else 0


def _keep_apart(order: np.ndarray, gap: float) -> list[int]:
    """Return the members of `order` that are at least `gap` from every one before them."""
    kept: list[int] = []
    for candidate in order:
        if all(abs(candidate - other) >= gap for other in kept):
            kept.append(int(candidate))
    return kept


def _list_confusions(ax: Axes, matrix: np.ndarray, names: list[str]) -> None:
    """Write the pairs that are confused most, as many as fit."""
    mistakes = matrix * (1 - np.eye(len(matrix), dtype=int))
    pairs = [divmod(int(cell), len(matrix)) for cell in np.argsort(-mistakes, axis=None, kind="stable")[:15]]
    ax.axis("off")
    ax.set_title("Most confused: true → predicted")
    for line, (true, predicted) in enumerate(pair for pair in pairs if mistakes[pair]):
        y = 0.97 - line / 15.5
        pair = f"{_shorten(names[true], 18)} → {_shorten(names[predicted], 18)}"
        ax.text(0, y, pair, transform=ax.transAxes, va="center", fontsize=SMALLEST)
        count = f"{mistakes[true, predicted]} of {matrix[true].sum()}"
        ax.text(1, y, count, transform=ax.transAxes, va="center", ha="right", fontsize=SMALLEST)


def _label_lines(ax: Axes, lines: dict[str, tuple[float, str]]) -> None:
    """Write name -> (y, colour) beside the right end of horizontal lines, pushed apart where they would overlap."""
    low, high = ax.get_ylim()
    names = sorted(lines, key=lambda name: lines[name][0])
    heights = np.array([(name.count("\n") + 1) * 1.35 * SMALLEST / 72 / 5.4 * (high - low) for name in names])
    y = np.array([lines[name][0] for name in names], dtype=float)
    for _ in range(300):
        for i in range(1, len(y)):
            overlap = (heights[i - 1] + heights[i]) / 2 - (y[i] - y[i - 1])
            if overlap > 0:
                y[i - 1 : i + 1] += [-overlap / 2, overlap / 2]
        y = np.clip(y, low + heights / 2, high - heights / 2)
    for name, place in zip(names, y, strict=True):
        value, colour = lines[name]
        ax.annotate(
            name, (1, value), xycoords=("axes fraction", "data"), xytext=(1.03, place), annotation_clip=False,
            textcoords=("axes fraction", "data"), va="center", fontsize=SMALLEST, color=colour,
            arrowprops={"arrowstyle": "-", "color": colour, "shrinkA": 0, "shrinkB": 0, "relpos": (0, 0.5)},
        )  # fmt: skip


def _label_columns(ax: Axes, references: dict[str, float]) -> None:
    """Draw vertical lines with their names as flags above the axes, in as many rows as keep names and poles apart."""
    ax.figure.draw_without_rendering()
    inches = ax.get_position().width * SIZE[0] / np.ptp(ax.get_xlim())
    placed: list[tuple[float, int]] = []
    for name, value in sorted(references.items(), key=lambda item: item[1]):
        text = f"{name} {value:.1f} %"
        left = value - (_text_width(text, SMALLEST) + 0.2) / inches
        row = next(row for row in range(len(references)) if all(x < left for x, other in placed if other >= row))
        placed.append((value, row))
        top = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points", "annotation_clip": False}
        pole = {"arrowstyle": "-", "color": INK, "linewidth": 1.5, "linestyle": "--", "shrinkA": 0, "shrinkB": 0}
        ax.axvline(value, color=INK, linewidth=1.5, linestyle="--")
        ax.annotate("", (value, 1), xytext=(0, 17 + 21 * row), arrowprops=pole, **top)
        ax.annotate(text, (value, 1), xytext=(-5, 9 + 21 * row), fontsize=SMALLEST, ha="right", va="center", **top)


def _cell(value) -> str:
    """Return a table's cell as text: three decimals say all that 2,000 clips can."""
    if not isinstance(value, float | np.floating):
        return str(value)
    if np.isnan(value):
        return "–"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3f}" if abs(value) >= 5e-4 or value == 0 else f"{value:.1e}"


def _place(shape, box: tuple[float, float, float, float], text: str, size: float, bold: bool = False) -> None:
    """Put a placeholder at (left, top, width, height) inches with `text` in it."""
    from pptx.enum.text import MSO_ANCHOR, PP_ALIGN
    from pptx.util import Inches, Pt

    shape.left, shape.top, shape.width, shape.height = map(Inches, box)
    shape.text_frame.text = text
    shape.text_frame.vertical_anchor = MSO_ANCHOR.MIDDLE
    for paragraph in shape.text_frame.paragraphs:
        paragraph.alignment = PP_ALIGN.LEFT
        paragraph.font.size, paragraph.font.bold = Pt(size), bold


def _add_slide(deck, caption: str, item: dict):
    """Add a slide with the caption as its title, in the largest type that fits two lines, and settings in the notes."""
    slide = deck.slides.add_slide(deck.slide_layouts[5])
    size = next((size for size in (22, 20, 18, 16, 14) if 1.1 * _text_width(caption, size) < 2 * 12.2), 12)
    longest = int(len(caption) * min(1, 3 * 12.2 / (1.1 * _text_width(caption, 12))))
    _place(slide.shapes.title, (0.4, 0.1, 12.53, 0.78), _shorten(caption, longest), size)
    settings = [f"{name} = {value}" for name, value in item["settings"].items()]
    lines = [item["name"], item["caption"], item["mark"], *settings]
    slide.notes_slide.notes_text_frame.text = "\n".join(line for line in lines if line)
    return slide


def _split_table(rows: list[list[str]]) -> tuple[list[tuple[list[list[str]], list[float]]], float]:
    """Return parts (rows with header, widths in inches) that fit a slide each, and the size of their type in points."""
    rows = [[_shorten(cell, 40) for cell in row] for row in rows]
    for size in (16, 14, 12):
        widths = [max(_text_width(cell, size) for cell in column) + 0.3 for column in zip(*rows, strict=True)]
        if sum(widths) <= TABLE_WIDTH:
            break
    groups = [[0]]  # the first column, which names the rows, stands in every part
    for column in range(1, len(widths)):
        if sum(widths[i] for i in groups[-1]) + widths[column] > TABLE_WIDTH:
            groups.append([0])
        groups[-1].append(column)
    parts = []
    for start in range(1, max(len(rows), 2), TABLE_ROWS):
        for group in groups:
            part = [[row[i] for i in group] for row in [rows[0], *rows[start : start + TABLE_ROWS]]]
            parts.append((part, [widths[i] for i in group]))
    return parts, size


def _add_table(slide, part: tuple[list[list[str]], list[float]], size: float, caption: str, mark: str) -> None:
    from pptx.enum.text import MSO_ANCHOR, PP_ALIGN
    from pptx.util import Inches, Pt

    rows, widths = part
    height = 0.4
    box = (0.5, 1.0, sum(widths), height * len(rows))
    shape = slide.shapes.add_table(len(rows), len(widths), *map(Inches, box))
    shape._element.nvGraphicFramePr.cNvPr.set("descr", caption)
    for column, width in enumerate(widths):
        shape.table.columns[column].width = Inches(width)
        numeric = all(re.fullmatch(r"[-+–]?[\d.,]*(e[-+]?\d+)?", row[column]) for row in rows[1:])
        for row, texts in enumerate(rows):
            cell = shape.table.cell(row, column)
            cell.text = texts[column]
            cell.margin_top = cell.margin_bottom = Inches(0.03)
            cell.vertical_anchor = MSO_ANCHOR.MIDDLE
            cell.text_frame.word_wrap = False
            paragraph = cell.text_frame.paragraphs[0]
            paragraph.font.size = Pt(size)
            paragraph.alignment = PP_ALIGN.RIGHT if numeric else PP_ALIGN.LEFT
    for row in shape.table.rows:
        row.height = Inches(height)
    if mark:
        foot = slide.shapes.add_textbox(0, 0, 0, 0)
        _place(foot, (7.3, 7.08, 5.6, 0.35), mark, 12)
        foot.text_frame.word_wrap = True
        foot.text_frame.paragraphs[0].alignment = PP_ALIGN.RIGHT
