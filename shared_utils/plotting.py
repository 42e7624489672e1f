"""The figures, made for slides, and the FigureBook that writes them and makes a deck of them.

Every figure is 16:9, 12.8 x 7.2 inches, with no text under 14 pt (so 12 pt are left when it is scaled down on a slide)
and colours that colour-blind readers can tell apart (Petroff, Accessible color sequences for data visualization, 2021).
Functions return the figure and neither show nor save it: a notebook shows what stands at the end of a cell.
"""

import base64
import contextlib
import functools
import html
import io
import itertools
import json
import os
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, fontManager, get_font
from matplotlib.lines import Line2D
from matplotlib.patches import ConnectionPatch, FancyBboxPatch, Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator
from matplotlib.transforms import Bbox

from shared_utils.device import resolve_path, write_whole
from shared_utils.metrics import auc_per_class, expected_calibration_error, macro_auc, match_detections
from shared_utils.slides import INK, fit_mark, shorten, text_width, write_deck

COLOURS = matplotlib.color_sequences["petroff10"]
GREY, PALE = "#6b6b6b", "#b0b8c0"
SIZE = (12.8, 7.2)  # inches
SCREEN_DPI, FILE_DPI = 72, 150  # 922 pixels wide in a notebook, 1920 in the file
SMALLEST = 14  # points
DOT = {"markersize": 12, "markeredgecolor": "white", "markeredgewidth": 1.5}
HIT, FALSE_ALARM = {"marker": "o", **DOT}, {"marker": "X", "markersize": 14, "markeredgecolor": INK}
FEW = 5  # answers that say little about how often such answers are right
RECOLOURED = "recoloured"  # gid of an image that is drawn in the figure's own colours, not in those of a colour map
WORD_PAD = 0.2  # ems between a word and the edge of its box, and between two boxes
# What DejaVu Sans lacks, Chinese class names say, is drawn in those of these that the system has; □ where it has none.
OTHER_FONTS = (
    "Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans CJK KR", "Microsoft YaHei", "Yu Gothic", "Malgun Gothic",
    "Hiragino Sans", "Noto Sans Devanagari", "Nirmala UI", "Noto Sans Thai", "Tahoma",
)  # fmt: skip


def _font_families() -> list[str]:
    there = {(font.name, font.weight) for font in fontManager.ttflist}
    # titles are bold: of a family without it matplotlib would say so below every figure
    return ["DejaVu Sans", *(name for name in OTHER_FONTS if {(name, 400), (name, 700)} <= there)]


STYLE = {
    "axes.prop_cycle": matplotlib.cycler(color=COLOURS), "font.family": _font_families(), "font.size": 15,
    "axes.titlesize": 16, "axes.labelsize": 15, "xtick.labelsize": SMALLEST, "ytick.labelsize": SMALLEST,
    "legend.fontsize": SMALLEST, "legend.frameon": False, "axes.titlelocation": "left", "axes.titlepad": 8,
    "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": GREY, "xtick.color": GREY, "ytick.color": GREY,
    "xtick.labelcolor": INK, "ytick.labelcolor": INK, "axes.spines.top": False, "axes.spines.right": False,
    "grid.color": "#e4e4e4", "axes.axisbelow": True, "lines.linewidth": 2.5, "figure.facecolor": "white",
    "savefig.facecolor": "white", "text.parse_math": False, "svg.hashsalt": "figure", "svg.fonttype": "path",
    "pdf.fonttype": 3,  # TrueType fonts (42) are cut anew for each file, which takes longer than all the rest of saving
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


@contextlib.contextmanager
def new_figure(title: str | None = None) -> Iterator[Figure]:
    """Give an empty figure to draw on in the style of all others: `with new_figure() as fig: ax = fig.subplots()`.

    What is drawn inside the `with` has this module's fonts and colours; other figures keep theirs.
    """
    with matplotlib.rc_context(STYLE):
        yield _figure(title)


@_styled
def plot_class_counts(
    clips: pd.DataFrame, title: str | None = None, count: str = "clips", source_name: str = "sources"
) -> Figure:
    """Draw the number of clips, or sentences, of each class, stacked by `split` or `fold` where the table has them.

    `count="sources"` counts the distinct speakers or recordings (column `source`) instead: a source on two sides,
    which an honest split does not have, counts on each. `source_name` says what they are: "speakers", say.
    """
    if count not in ("clips", "sentences", "sources"):
        raise ValueError(f'count is "clips", "sentences" or "sources", not {count!r}.')
    if not len(clips):
        raise ValueError("There is nothing to count: the table has no row.")
    by = next((column for column in ("split", "fold") if column in clips), None)
    if count == "sources":
        clips = clips.drop_duplicates(["class_name", "source", *([by] if by else [])])
    sides = clips[by] if by else pd.Series("clips", index=clips.index)
    counts = pd.crosstab(clips["class_name"], sides)
    if by == "split":
        counts = counts[[side for side in ("train", "val", "test") if side in counts]]
    totals = counts.sum(axis=1)
    fig = _figure(title)
    for ax, names in _bar_columns(fig, list(counts.index), f"Number of {source_name if count == 'sources' else count}"):
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
    fig = _figure(title)
    axes = _grid(fig, titles, len(waveforms))
    largest = max(_draw_waveform(ax, waveform, sample_rate) for ax, waveform in zip(axes, waveforms, strict=True))
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

    `histories` is a history of `training.fit`, or name -> history of up to ten, which differ in colour. Where nothing
    was validated, the curves of training stand alone. A dotted line stands where a history's `dendrites` change. A
    history without an epoch, or without the columns of `fit`, is named in a printed line and left out.
    """
    if isinstance(histories, pd.DataFrame):
        histories = {"": histories}
    needed = ["epoch", "train_loss", "train_accuracy", "val_loss", "val_accuracy"]
    given, histories = histories, {}
    for name, history in given.items():
        lacking = [column for column in needed if column not in history]
        if lacking or history.empty:
            what = f"its history lacks {', '.join(lacking)}" if len(history) else "no epoch of it has ended"
            print(f"Left out: {name or 'this run'}: {what}")
        else:
            histories[name] = history
    if not histories:
        raise ValueError("There is no history to draw; train a model or save a run first.")
    if len(histories) > len(COLOURS):
        raise ValueError(f"Up to {len(COLOURS)} curves can be told apart, not {len(histories)}; give fewer.")
    fig = _figure(title)
    axes = fig.subplots(1, 2)
    validated = any(history["val_accuracy"].notna().any() for history in histories.values())
    several, dashes, switched = len(histories) > 1, (0, (4, 1.5)), False
    for index, history in enumerate(histories.values()):
        train_colour, val_colour = (_cycle(index), _cycle(index)) if several else COLOURS[:2]
        light = {"linewidth": 1.5, "alpha": 1 if len(histories) <= 4 else 0.3} if several and validated else {}
        best = _best_epoch(history)
        for ax, kind, scale in zip(axes, ("loss", "accuracy"), (1, 100), strict=True):
            ax.plot(history["epoch"], scale * history[f"train_{kind}"], color=train_colour, **light)
            val = history[["epoch", f"val_{kind}"]].dropna()  # epochs without validation
            ax.plot(val["epoch"], scale * val[f"val_{kind}"], color=val_colour, linestyle=dashes)
            chosen = val[val["epoch"] == best]
            ax.plot(chosen["epoch"], scale * chosen[f"val_{kind}"], "o", color=val_colour, **DOT)
            counts = history.get("dendrites", pd.Series(0, history.index))
            for epoch in history["epoch"][counts.diff() > 0]:
                ax.axvline(epoch - 0.5, color=val_colour if several else GREY, linewidth=1.5, linestyle=":", zorder=0)
                switched = True
    for ax, label in zip(axes, ("Cross-entropy loss (nats)", "Accuracy (%)"), strict=True):
        ax.set(xlabel="Epoch", ylabel=label)
        ax.grid(True)
        ax.xaxis.set_major_locator(MaxNLocator(8, integer=True, min_n_ticks=1))
    axes[0].set_ylim(bottom=0)
    axes[1].set_ylim(top=101)
    train_colour, val_colour = (INK, INK) if several else COLOURS[:2]
    lines = {"training": Line2D([], [], color=train_colour)}
    if validated:
        lines["validation"] = Line2D([], [], color=val_colour, ls=dashes)
    if best and validated:
        label = "best epoch" if several else f"best epoch: {best}"
        lines[label] = Line2D([], [], color=val_colour, marker="o", ms=10, linestyle="")
    if switched:
        lines["dendrites added"] = Line2D([], [], color=GREY, lw=1.5, ls=":")
    _top_legend(fig, list(lines.values()), list(lines))
    if several:
        patches = [Patch(color=_cycle(index)) for index in range(len(histories))]
        _bottom_legend(fig, patches, _shorten_all(histories, 50))
    return fig


@_styled
def plot_confusion_matrix(matrix: np.ndarray, class_names: Sequence[str], title: str | None = None) -> Figure:
    """Draw counts (classes, classes), row = true class, coloured by the share of the true class.

    Up to 12 classes show the counts. More show the matrix as a picture (class names up to 20, beyond that those that
    are recognised worst) beside a list of the pairs that are confused most.
    """
    n_classes = len(class_names)
    matrix, shares = _true_class_shares(matrix, n_classes)
    names = _short_names(class_names, 24)
    fig = _figure(title)
    if n_classes <= 12:
        ax = fig.subplots()
        for (row, column), count in np.ndenumerate(matrix):
            colour = "white" if shares[row, column] > 55 else INK if count else "#b0b0b0"
            ax.text(column, row, str(count), ha="center", va="center", color=colour)
    else:
        ax, side = fig.subplots(1, 2)
    picture = _draw_shares(ax, shares)
    fig.colorbar(picture, ax=ax, label="Share of the true class (%)", pad=0.02, aspect=35, ticks=range(0, 101, 20))
    ax.set_ylabel("True class" if n_classes <= 20 else "True class (named: recognised worst)")
    ax.set_xlabel("Predicted class" if n_classes <= 20 else "Predicted class, in the same order")
    if n_classes <= 20:
        slant = {"rotation": 35, "ha": "right", "rotation_mode": "anchor"} if n_classes <= 12 else {"rotation": 90}
        ax.set_xticks(range(n_classes), names, **slant)
        ax.set_yticks(range(n_classes), names)
    else:
        _name_worst(ax, shares.diagonal(), names, n_classes / 24)
    if n_classes > 12:
        _list_confusions(side, matrix, class_names)
    return fig


@_styled
def plot_confusion_matrices(
    matrices: dict[str, np.ndarray], class_names: Sequence[str], title: str | None = None
) -> Figure:
    """Draw two to six confusion matrices, name -> counts (classes, classes), with one colour scale, in equal order.

    Row = true class, as `metrics.confusion_matrix` counts them; the colour is the share of the true class, and above
    each stands its accuracy. The shares are written, in %, where the cells are large enough. More than 12 classes (with
    four matrices or more: 10) are named only where they are recognised worst, on the mean over the matrices.

    Raises ValueError for another number of matrices, one that does not fit the class names, and one that holds
    negative or infinite counts or none at all.
    """
    _check_models(matrices, at_least=2)
    n_classes, names = len(class_names), _short_names(class_names, 24 if len(matrices) <= 3 else 18)
    named = n_classes <= (12 if len(matrices) <= 3 else 10)
    shares, labels = [], []
    n_columns = len(matrices) if len(matrices) <= 3 else -(-len(matrices) // 2)
    for name, matrix in matrices.items():
        counts, share = _true_class_shares(matrix, n_classes, f"{name!r}: a confusion matrix")
        shares.append(share)
        accuracy = 100 * counts.trace() / counts.sum()
        label = f"{shorten(str(name), 50)}: accuracy\u00a0{accuracy:.1f}\u00a0%"
        labels.append(textwrap.fill(label, 86 // n_columns, break_on_hyphens=False))
    fig = _figure(title)
    grid = fig.subplots(-(-len(matrices) // n_columns), n_columns, sharex=True, sharey=True, squeeze=False)
    axes = list(grid.flat)
    if len(matrices) == 5:  # the gap is above, so that every column ends in a matrix with its class names
        axes.pop(2).set_visible(False)
    for ax, share, label in zip(axes, shares, labels, strict=True):
        picture = _draw_shares(ax, share)
        ax.set_title(label, size=SMALLEST)
    if named:
        axes[0].set_xticks(range(n_classes), names)
        axes[0].set_yticks(range(n_classes), names)
        for ax in grid[-1]:
            ax.tick_params(axis="x", rotation=45 if n_classes <= 10 else 60)
            for text in ax.get_xticklabels():
                text.set(ha="right", rotation_mode="anchor")
    else:
        _name_worst(axes[0], np.mean([share.diagonal() for share in shares], axis=0), names, n_classes / 9)
    fig.colorbar(picture, ax=axes, label="Share of the true class (%)", pad=0.015, aspect=40, ticks=range(0, 101, 20))
    x_label = "Predicted class" if named else "Predicted class, in the same order"
    _label_grid(fig, x_label, "True class" if named else "True class (named: recognised worst)")
    fig.draw_without_rendering()
    width, height = axes[0].get_window_extent().size / fig.dpi / n_classes
    if width > text_width("100", SMALLEST) + 0.06 and height > 1.25 * SMALLEST / 72:
        for ax, share in zip(axes, shares, strict=True):
            for (row, column), value in np.ndenumerate(share):
                if value >= 0.5:
                    colour = "white" if value > 55 else INK
                    ax.text(column, row, f"{value:.0f}", ha="center", va="center", color=colour, size=SMALLEST)
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
def plot_f1_comparison(reports: dict[str, pd.DataFrame], title: str | None = None) -> Figure:
    """Draw the F1 score of each class, a dot for each of up to six models, name -> its `metrics.report`.

    Up to 50 classes are sorted by their mean over the models, best first. Dots that would hide each other stand one
    below the other, in the order of `reports`. The legend gives each model's macro F1, the mean over its classes.

    Raises ValueError for more models or classes, reports of different classes, and scores that are not between 0 and 1.
    """
    _check_models(reports)
    first, f1s = next(iter(reports)), {}
    for name, report in reports.items():
        if "f1" not in report:
            raise ValueError(f"The report of {name!r} has no column f1; make it with metrics.report.")
        f1s[name] = f1 = report["f1"].drop(["accuracy", "macro average"], errors="ignore")
        odd = [*f1.index[f1.index.duplicated()], *sorted(set(f1.index) ^ set(f1s[first].index))]
        if odd:
            raise ValueError(f"Class {odd[0]!r} must stand once in the report of {first!r} and in that of {name!r}.")
        if not f1.between(0, 1).all():
            row = f1[~f1.between(0, 1)]
            raise ValueError(f"The F1 score of {row.index[0]!r} by {name!r} is {row.iloc[0]:g}, not between 0 and 1.")
    scores = pd.DataFrame(f1s)
    if not 1 <= len(scores) <= 50:
        raise ValueError(f"One to 50 classes have room in a figure, not {len(scores)}.")
    scores = scores.loc[scores.mean(axis=1).sort_values(ascending=False, kind="stable").index]
    n_columns, dot = (1, DOT) if len(scores) <= 25 else (2, DOT | {"markersize": 10})
    fig = _figure(title)
    for ax, names in _bar_columns(fig, list(scores.index), "F1 score"):
        values, rows = scores.loc[names].to_numpy(), np.arange(len(names))
        ax.hlines(rows, values.min(1), values.max(1), color=PALE, linewidth=2)
        lanes = np.array([_spread_ties(row, 0.02 * n_columns) for row in values])
        for index in range(len(reports)):
            ax.plot(values[:, index], rows + lanes[:, index], "o", color=_cycle(index), zorder=3, **dot)
        ax.set_xlim(-0.03, 1.03)
        ax.set_xticks(np.linspace(0, 1, 6))
        ax.grid(True, axis="y")
    handles = [Line2D([], [], color=_cycle(index), linestyle="", marker="o", **DOT) for index in range(len(reports))]
    macros = scores.mean().tolist()
    names = [f"{shorten(str(name), 36)}: macro F1 {macro:.2f}" for name, macro in zip(reports, macros, strict=True)]
    _name_lines(fig, names, handles)
    return fig


@_styled
def plot_roc_curves(
    targets: np.ndarray, probabilities: np.ndarray, class_names: Sequence[str], title: str | None = None
) -> Figure:
    """Draw each class's ROC curve, one against the rest, with its AUC; with more than 12 classes the five worst.

    The macro curve is the mean of the curves of all classes that occur in the targets.
    """
    areas = auc_per_class(targets, probabilities)
    present = np.flatnonzero(~np.isnan(areas))
    if len(present) == 0:
        raise ValueError("ROC curves need clips of at least two classes, but all targets are the same class.")
    worst_first = present[np.argsort(areas[present], kind="stable")]
    shown = worst_first if len(worst_first) <= 12 else worst_first[:5]
    curves = _class_rocs(targets, probabilities, present)
    names = _short_names(class_names, 30)
    fig = _figure(title)
    ax = _roc_axes(fig)
    for place, label in enumerate(shown):
        line = {"color": _cycle(place), "linestyle": "-" if place < 10 else "--", "zorder": 3 - place / 100}
        name = f"{areas[label]:.3f}  {names[label]}"
        ax.plot(*(100 * rates for rates in curves[label]), label=name, **line)
    line = {"color": INK, "linestyle": (0, (3, 1)), "linewidth": 3.5, "zorder": 4}
    ax.plot(*_mean_roc(curves), label=f"{areas[present].mean():.3f}  macro average", **line)
    _list_areas(ax, "AUC" if len(shown) == len(present) else f"AUC, the five worst of {len(present)} classes")
    return fig


@_styled
def plot_roc_comparison(curves: dict[str, tuple[np.ndarray, np.ndarray]], title: str | None = None) -> Figure:
    """Draw one ROC curve for each of up to six models, name -> (targets (n,), probabilities (n, classes)).

    It is the mean of the curves of all classes that occur in the targets, one against the rest, at equal false positive
    rates (Fawcett, An introduction to ROC analysis, 2006); the legend gives its `metrics.macro_auc`. A model that gives
    every clip the same probabilities lies on the dotted line, chance.

    Raises ValueError for more models, for what `macro_auc` refuses, and for models tested on different classes.
    """
    _check_models(curves)
    first = next(iter(curves))
    drawn, labels, tested = [], [], {}
    for name, (targets, probabilities) in curves.items():
        try:
            labels.append(f"{macro_auc(targets, probabilities):.3f}  {shorten(str(name), 50)}")
        except ValueError as error:
            raise ValueError(f"{name!r} has no ROC curve: {error}") from error
        tested[name] = set(np.unique(targets))
        n_classes = [np.shape(curves[model][1])[1] for model in (first, name)]
        if n_classes[0] != n_classes[1]:
            raise ValueError(
                f"{first!r} has {n_classes[0]} classes and {name!r} {n_classes[1]}; they must be the same."
            )
        if tested[name] != tested[first]:
            odd = min(tested[name] ^ tested[first])
            raise ValueError(
                f"Class {odd} is in the targets of one of {first!r} and {name!r} only; give both the same."
            )
        drawn.append(_mean_roc(_class_rocs(targets, probabilities, sorted(tested[name]))))
    fig = _figure(title)
    ax = _roc_axes(fig, label="0.500  chance")
    for index, (rates, label) in enumerate(zip(drawn, labels, strict=True)):
        twins = [other for other, (_, hits) in enumerate(drawn) if np.abs(hits - rates[1]).max() < 1]
        # curves that lie over each other are dashed in turn, so that all of them show
        dashes = (4 * twins.index(index), (4, 4 * (len(twins) - 1))) if len(twins) > 1 else "-"
        ax.plot(*rates, color=_cycle(index), linestyle=dashes, linewidth=3, zorder=3 - index / 100)
        ax.plot([], [], color=_cycle(index), linewidth=4, label=label, zorder=3 - index / 100)
    _list_areas(ax, "AUC, macro average")
    return fig


@_styled
def plot_reliability(
    models: dict[str, tuple[np.ndarray, np.ndarray]], n_bins: int = 10, title: str | None = None
) -> Figure:
    """Draw how often answers are right over how sure the model is, name -> (targets (n,), probabilities (n, classes)).

    A line for each of up to four models (Guo et al., On Calibration of Modern Neural Networks, 2017). Answers are put
    into `n_bins` equal bins by their confidence, the largest probability; a dot stands at the mean confidence and the
    share of right answers of its bin, its area grows with the number of answers. Below the dashed line a model is
    surer than it is right. Dots of fewer than five answers are hollow and have no part in the line. The legend gives
    `metrics.expected_calibration_error` with the same bins; the bars show how many answers have each confidence, those
    with exactly 1 / classes in the first bar.

    Raises ValueError for more models, for what `expected_calibration_error` refuses, and for models that differ in
    their number of classes.
    """
    if not 1 <= len(models) <= 4:
        raise ValueError(f"From 1 to 4 models have room in this figure, not {len(models)}.")
    if n_bins not in range(2, 31):
        raise ValueError(f"n_bins is a whole number from 2 to 30, not {n_bins!r}.")
    n_bins, labels, curves, n_classes = int(n_bins), [], [], {}
    for name, (targets, probabilities) in models.items():
        try:
            error = expected_calibration_error(targets, probabilities, n_bins)
        except ValueError as problem:
            raise ValueError(f"The reliability of {name!r} is unknown: {problem}") from problem
        probabilities = np.asarray(probabilities, dtype=float)
        n_classes[name] = probabilities.shape[1]
        if len(set(n_classes.values())) > 1 or n_classes[name] < 2:
            raise ValueError(f"Models must have the same classes, two or more, but their numbers are {n_classes}.")
        labels.append(f"{shorten(str(name), 40)} (ECE {100 * error:.1f} %)")
        confidence, right = probabilities.max(1), probabilities.argmax(1) == np.asarray(targets)
        bins = np.digitize(confidence, np.arange(1, n_bins) / n_bins, right=True)
        counts = np.bincount(bins, minlength=n_bins)
        sums = [np.bincount(bins, weights=values, minlength=n_bins) for values in (confidence, right)]
        curves.append((counts, *(100 * values / np.maximum(counts, 1) for values in sums)))
    lowest = 100 / n_classes[name]

    fig = _figure(title)
    ax, below = fig.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    ax.plot([lowest, 100], [lowest, 100], color=GREY, linewidth=1.5, linestyle="--", zorder=1)
    handles = [Line2D([], [], color=GREY, linewidth=1.5, linestyle="--")]
    first = n_bins // n_classes[name]  # the bin of 1 / classes, or the one above where that is its upper end
    edges = np.maximum(100 * np.arange(first, n_bins + 1) / n_bins, lowest)
    widths = 0.8 * np.diff(edges) / len(models)
    largest = max((counts / counts.sum()).max() for counts, *_ in curves)
    for index, (counts, sure, right) in enumerate(curves):
        colour, many, few = _cycle(index), counts >= FEW, (counts > 0) & (counts < FEW)
        areas = np.maximum(420 * counts / counts.sum() / largest, 40)
        ax.plot(sure[many], right[many], color=colour, zorder=3)
        over, hollow = {"zorder": 4, "clip_on": False}, {"facecolors": "white", "linewidths": 1.5, "alpha": 0.6}
        ax.scatter(sure[many], right[many], areas[many], color=[colour], edgecolors="white", linewidths=1.2, **over)
        ax.scatter(sure[few], right[few], 60, edgecolors=[colour], **hollow, **over)
        counts = np.append(counts[: first + 1].sum(), counts[first + 1 :])
        middles = (edges[:-1] + edges[1:]) / 2 + (index - (len(models) - 1) / 2) * widths
        below.bar(middles, 100 * counts / counts.sum(), width=0.9 * widths, color=colour)
        handles.append(Line2D([], [], color=colour, linewidth=2.5, marker="o", markersize=10))
    labels = ["as sure as right", *labels]
    if any(((counts > 0) & (counts < FEW)).any() for counts, *_ in curves):
        handles.append(Line2D([], [], color=INK, marker="o", ls="", ms=8, mfc="white", mew=1.5))
        labels.append(f"fewer than {FEW} answers")
    bottom = min(lowest, *(right[counts > 0].min() for counts, _, right in curves))
    bottom = 10 * np.floor(bottom / 10)
    ax.set(ylim=(bottom - 0.02 * (100 - bottom), 102), ylabel="Right answers (%)")
    ax.set_xlim(lowest - 0.02 * (100 - lowest), 100 + 0.02 * (100 - lowest))
    below.set(ylabel="Answers (%)", xlabel="Confidence of the answer (%)")
    for axis, n_ticks in ((ax.xaxis, 10), (ax.yaxis, 8), (below.yaxis, 3)):
        _scale_axis(axis, False, n_ticks)
    for panel in (ax, below):
        panel.grid(True)
    ax.tick_params(axis="x", labelbottom=False)
    fig.align_ylabels()
    _name_lines(fig, labels, handles)
    return fig


@_styled
def plot_fold_dots(folds: pd.DataFrame, references: dict[str, float] | None = None, title: str | None = None) -> Figure:
    """Draw the test accuracy of every fold and seed (a row of `training.cross_validate`), its mean and spread.

    Seeds differ in colour; where the table has a column `model`, models do. `references` are accuracies, name -> share
    of 1, drawn as lines: human listeners, a floor, a published model. The mean is that of the folds' means over seeds,
    so that a fold which more seeds have visited weighs no more; the band is their standard deviation. That over seeds
    is told where all seeds have visited the same folds. More than five models have a row each, and folds the colours.
    """
    numbers = sorted(folds["fold"].unique())
    models = dict(list(folds.groupby("model", sort=False))) if "model" in folds else {"": folds}
    if len(models) > 5:
        return _plot_fold_rows(models, numbers, references or {}, title)
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
        mean, sd, sd_seeds = _fold_spread(rows)
        colour = _cycle(index)
        label = f"{textwrap.fill(name, 26)}\n" * (by == "model") + f"mean {mean:.1f} %"
        if not np.isnan(sd):
            label += f"\nsd {sd:.1f} over folds"
            ax.axhspan(mean - sd, mean + sd, color=colour, alpha=0.12, linewidth=0)
        if not np.isnan(sd_seeds):
            label += f"\nsd {sd_seeds:.1f} over seeds"
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


def _fold_spread(rows: pd.DataFrame) -> tuple[float, float, float]:
    """Return, in percent, the mean of the folds, their sd, and the sd of seeds (NaN: one, or not of the same folds)."""
    accuracy = 100 * rows.pivot_table(index="seed", columns="fold", values="test_accuracy")
    of_folds, of_seeds = accuracy.mean(axis=0), accuracy.mean(axis=1)
    same = accuracy.notna().all(axis=None)
    return of_folds.mean(), of_folds.std(ddof=1), of_seeds.std(ddof=1) if same else np.nan


def _plot_fold_rows(models: dict[str, pd.DataFrame], numbers: list, references: dict, title: str | None) -> Figure:
    fig = _figure(title)
    ax = fig.subplots()
    for row, rows in enumerate(models.values()):
        accuracy = 100 * rows["test_accuracy"]
        for place, number in enumerate(numbers):
            dots = accuracy[rows["fold"] == number]
            shift = 0.3 * (place / max(1, len(numbers) - 1) - 0.5)
            ax.plot(dots, [row + shift] * len(dots), "o", color=_cycle(place), zorder=4, **DOT | {"markersize": 9})
        mean, sd, _ = _fold_spread(rows)
        ax.plot([mean] * 2, [row - 0.36, row + 0.36], color=INK, zorder=3)
        _write_beside(ax, row, f"{mean:.1f} %" + ("" if np.isnan(sd) else f" ± {sd:.1f}"))
    for value in references.values():
        ax.axvline(100 * value, color=GREY, linewidth=1.5, linestyle="--", zorder=0)
    ax.set_yticks(range(len(models)), _shorten_all(models, 36))
    ax.set(ylim=(len(models) - 0.4, -0.6), xlabel="Accuracy on the test fold (%); line: mean, ± over folds")
    ax.xaxis.set_major_locator(MaxNLocator(8, steps=[1, 2, 5, 10]))
    ax.grid(True, axis="x")
    dots = [Line2D([], [], color=_cycle(place), marker="o", linestyle="", **DOT) for place in range(len(numbers))]
    _top_legend(fig, dots, [f"fold {number}" for number in numbers], handletextpad=0.1)
    if references:
        lines = [Line2D([], [], color=GREY, linewidth=1.5, linestyle="--")] * len(references)
        _bottom_legend(fig, lines, [f"{name} {100 * value:.1f} %" for name, value in references.items()])
    return fig


@_styled
def plot_differences(table: pd.DataFrame, title: str | None = None) -> Figure:
    """Draw differences of accuracy with their 95 % intervals, a row of `table` each: model, minus, mean, low, high.

    Differences are shares of 1 and drawn in percentage points; those whose interval holds 0 are grey.
    """
    _check_columns(table, ["model", "minus", "mean", "low", "high"], numbers=["mean", "low", "high"])
    fig = _figure(title)
    ax = fig.subplots()
    for row, (_, values) in enumerate(table.iterrows()):
        mean, low, high = (100 * values[column] for column in ("mean", "low", "high"))
        colour = GREY if low <= 0 <= high else COLOURS[0]
        whisker = {"ecolor": colour, "elinewidth": 2.5, "capsize": 7, "capthick": 2.5}
        ax.errorbar([mean], [row], xerr=[[mean - low], [high - mean]], fmt="o", color=colour, **whisker, **DOT)
        _write_beside(ax, row, f"{mean:+.1f}\n{low:+.1f} to {high:+.1f}")
    names = [f"{model}\nminus {minus}" for model, minus in zip(table["model"], table["minus"], strict=True)]
    ax.axvline(0, color=INK, linewidth=1.5, zorder=0)
    ax.set_yticks(range(len(names)), names)
    reach = 110 * max(0.01, table[["low", "high"]].abs().max().max())
    ax.set(ylim=(len(names) - 0.4, -0.6), xlim=(-reach, reach))
    ax.set_xlabel("Difference of accuracy (percentage points); whisker: 95 % interval")
    ax.grid(True, axis="x")
    return fig


@_styled
def plot_boundaries(
    points: np.ndarray, targets: np.ndarray, maps: dict[str, np.ndarray], reach: float, title: str | None = None
) -> Figure:
    """Draw what classifiers of two classes make of a plane, a panel each, in the order of `maps`.

    `points` (n, 2) with `targets` (n,), 0 or 1, lie in every panel; `maps` holds the panel's title -> probability of
    class 1 (rows, columns) on a grid from -reach to reach, rows upwards.
    """
    if not 1 <= len(maps) <= 4:
        raise ValueError(f"A figure has one to four panels, not {len(maps)}.")
    fig = _figure(title)
    for ax, (name, probabilities) in zip(fig.subplots(1, len(maps), squeeze=False)[0], maps.items(), strict=True):
        frame = (-reach, reach, -reach, reach)
        look = {"cmap": "PuOr", "vmin": 0, "vmax": 1, "alpha": 0.75}
        ax.imshow(probabilities, origin="lower", extent=frame, interpolation="bilinear", **look)
        axis = np.linspace(-reach, reach, len(probabilities))
        if probabilities.min() < 0.5 < probabilities.max():
            ax.contour(axis, axis, probabilities, levels=[0.5], colors=INK, linewidths=2)
        for label, colour in ((0, "#7f3b08"), (1, "#2d004b")):
            x, y = points[targets == label].T
            ax.plot(x, y, "o", color=colour, markersize=5, markeredgecolor="white", markeredgewidth=0.7)
        ax.set(xlim=frame[:2], ylim=frame[2:], aspect="equal", xticks=[], yticks=[])
        ax.set_title(name)
        ax.spines[:].set_visible(False)
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
    names = _shorten_all(table["model"], 36) if crowded else [textwrap.fill(str(name), 26) for name in table["model"]]
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


@_styled
def plot_lines(
    table: pd.DataFrame,
    x: str,
    y: str,
    by: str,
    *,
    low: str | None = None,
    high: str | None = None,
    x_label: str,
    y_label: str,
    references: dict[str, float] | None = None,
    log_x: bool = False,
    log_y: bool = False,
    title: str | None = None,
) -> Figure:
    """Draw column `y` over column `x`, a line for each of up to 20 values of `by`, with a band from `low` to `high`.

    Lines of up to 40 points have a dot a point. Where `y_label` ends in "(%)", `y`, `low`, `high` and `references`
    (name -> value, drawn as level lines) are shares of 1.
    """
    _check_columns(table, [x, y, by, low, high], numbers=[x, y, low, high])
    if table.duplicated([x, by]).any():
        row = table[table.duplicated([x, by])].iloc[0]
        raise ValueError(f"{by} {row[by]!r} has two rows with {x} {row[x]}; take their mean first.")
    scale = _percent(y_label, table[y])
    for column, logarithmic in ((x, log_x), (y, log_y)):
        if logarithmic and (table[column] <= 0).any():
            raise ValueError(f"A logarithmic axis has no place for {column} {table[column].min()}.")
    lines = dict(list(table.groupby(by, sort=False)))
    if len(lines) > 2 * len(COLOURS):
        raise ValueError(f"Up to {2 * len(COLOURS)} lines can be told apart, not {len(lines)}; draw some of them.")
    fig = _figure(title)
    ax = fig.subplots()
    for index, rows in enumerate(lines.values()):
        rows = rows.sort_values(x)
        look = {"marker": "o", **DOT} if len(rows) <= 40 else {}
        ax.plot(rows[x], scale * rows[y], zorder=3, clip_on=len(rows) > 40, **_line_look(index), **look)
        if low and high:
            band = {"color": _cycle(index), "alpha": 0.15, "linewidth": 0}
            ax.fill_between(rows[x], scale * rows[low], scale * rows[high], **band)
    ax.set(xlabel=x_label, ylabel=y_label, xmargin=0.03)
    ax.grid(True)
    ax.set(xscale="log" if log_x else "linear", yscale="log" if log_y else "linear")
    names = {}
    for name, value in (references or {}).items():
        ax.axhline(scale * value, color=GREY, linewidth=1.5, linestyle="--", zorder=0)
        label = f"{name} {100 * value:.1f} %" if scale == 100 else f"{name} {value:.3g}"
        names[label] = (scale * value, INK)
    for axis, logarithmic in ((ax.xaxis, log_x), (ax.yaxis, log_y)):
        _scale_axis(axis, logarithmic)
    measured = np.unique(table[x].to_numpy(dtype=float))
    if not log_x and len(measured) <= 12 and np.diff(measured).min(initial=np.inf) >= np.ptp(measured) / 16:
        ax.set_xticks(measured, [f"{value:g}" for value in measured])
    if scale == 100 and not log_y:
        _keep_percent(ax)
    _label_lines(ax, names)
    if len(lines) > 1:
        _name_lines(fig, [str(name) for name in lines])
    return fig


@_styled
def plot_scatter(
    table: pd.DataFrame,
    x: str | dict[str, str],
    y: str,
    labels: str,
    *,
    x_label: str | None = None,
    y_label: str,
    log_x: bool = True,
    low: str | None = None,
    high: str | None = None,
    title: str | None = None,
) -> Figure:
    """Draw a dot a row of `table` (a model) at its cost `x` and its `y`, with a whisker from `low` to `high`.

    Column `labels` holds the names. With one `x` they stand beside the dots. With two to four costs (column -> label of
    its axis) each has a panel, the dots have numbers, and a legend below gives their names; so it is with one `x` where
    dots lie too close for names. Where `y_label` ends in "(%)", `y`, `low` and `high` are shares of 1. A cost that is
    NaN leaves the dot out of its panel.
    """
    costs = {x: x_label or x} if isinstance(x, str) else dict(x)
    if not 1 <= len(costs) <= 4:
        raise ValueError(f"A figure has one to four panels, not {len(costs)}.")
    _check_columns(table, [*costs, y, labels, low, high], numbers=[*costs, y, low, high])
    scale = _percent(y_label, table[y])
    for column in costs:
        if log_x and (table[column] <= 0).any():
            raise ValueError(f"A logarithmic axis has no place for {column} {table[column].min()}.")
    table = table.reset_index(drop=True)
    several = len(costs) > 1
    fig = _figure(title)
    axes = fig.subplots(1, len(costs), sharey=True, squeeze=False)[0]
    for ax, (column, label) in zip(axes, costs.items(), strict=True):
        known = table[table[column].notna()]
        for index, row in known.iterrows():
            if low and high and not np.isnan(row[low]):
                ends = [scale * row[low], scale * row[high]]
                ax.plot([row[column]] * 2, ends, color=_cycle(index), linewidth=2, alpha=0.6, zorder=2)
            ax.plot(row[column], scale * row[y], "o", color=_cycle(index), zorder=3, **DOT)
        ax.set_xlabel(label)
        ax.grid(True)
        ax.margins(x=0.1, y=0.1)
        if log_x and len(known):
            values = known[column].to_numpy(dtype=float)
            reach = max(1.3, (values.max() / values.min()) ** 0.1)
            ax.set(xscale="log", xlim=(values.min() / reach, values.max() * reach))
        _scale_axis(ax.xaxis, log_x and len(known) > 0, n_ticks=12 // len(costs) if several else 8)
    axes[0].set_ylabel(y_label)
    if scale == 100:
        _keep_percent(axes[0])
    names = _shorten_all(table[labels], 36)
    if several or not _name_dots(fig, axes, table, list(costs), y, low or y, high or y, names, scale):
        numbers = [str(number) for number in range(1, len(table) + 1)]
        handles = [Line2D([], [], color=_cycle(index), marker="o", linestyle="", **DOT) for index in range(len(table))]
        _bottom_legend(fig, handles, [f"{number}  {name}" for number, name in zip(numbers, names, strict=True)])
        _name_dots(fig, axes, table, list(costs), y, low or y, high or y, numbers, scale, always=True)
    return fig


@_styled
def plot_stream(
    waveform: np.ndarray,
    sample_rate: int,
    times: np.ndarray,
    probabilities: np.ndarray,
    class_names: Sequence[str],
    events: pd.DataFrame | None = None,
    detections: pd.DataFrame | None = None,
    threshold: float | None = None,
    tolerance: float = 0.75,
    title: str | None = None,
) -> Figure:
    """Draw a recording (samples,) with the words spoken in it and, below it, what a keyword model heard over time.

    `times` (n,) in s and `probabilities` (n, classes) come smoothed, as the detector saw them. `events` (time in s,
    class_name) are the words spoken; they stand above the waveform. `detections` (time, class_name, probability) are
    drawn as hits or false alarms: as their column `hit` says, or else as `metrics.match_detections` finds with
    `tolerance` in s. Words that occur have colours, up to ten; the others and silence are grey. A word of the class
    "unknown" is no command that could be missed: it is written in grey.

    Raises ValueError for probabilities that do not fit, and for more words than can be written side by side (45).
    """
    probabilities, times = np.asarray(probabilities), np.asarray(times)
    if probabilities.shape != (len(times), len(class_names)):
        fits = f"{len(times)} times and {len(class_names)} classes"
        raise ValueError(f"Probabilities {probabilities.shape} do not fit {fits}.")
    seconds = len(waveform) / sample_rate
    spoken = _check_stream(events, seconds, class_names, "events")
    found = _check_stream(detections, seconds, class_names, "detections", others=["probability"])
    if len(spoken) > 45:
        raise ValueError(f"{len(spoken)} words cannot be written side by side; draw a shorter stretch (45 words).")
    heard = match_detections(found, spoken, tolerance)
    hits = np.isin(np.arange(len(found)), heard) if "hit" not in found else found["hit"].to_numpy(dtype=bool)
    occurring = dict.fromkeys([*spoken["class_name"], *found["class_name"]])
    peaks = dict(zip(class_names, probabilities.max(0, initial=0), strict=True))
    words = [name for name in class_names if str(name).strip("_") not in ("silence", "unknown")]
    strongest = sorted((name for name in words if name in occurring or not occurring), key=lambda name: -peaks[name])
    coloured = [name for name in words if name in strongest[: len(COLOURS)]]
    colours = {name: COLOURS[coloured.index(name)] if name in coloured else PALE for name in class_names}

    fig = _figure(title)
    top, bottom = fig.subplots(2, 1, sharex=True, height_ratios=(2, 3))
    largest = _draw_waveform(top, waveform, sample_rate, colour=PALE)
    top.set(ylim=(-1.05 * largest, 1.05 * largest), ylabel="Amplitude")
    for index, name in enumerate(class_names):
        width, order = (2.5, 3) if name in coloured else (1.2, 2)
        bottom.plot(times, 100 * probabilities[:, index], color=colours[name], linewidth=width, zorder=order)
    if threshold is not None:
        bottom.axhline(100 * threshold, color=INK, linewidth=1.5, linestyle="--")
    for row, hit in zip(found.itertuples(), hits, strict=True):
        look = {"color": colours[row.class_name], "clip_on": False, "zorder": 5, "linestyle": ""}
        bottom.plot(row.time, 100 * row.probability, **look, **(HIT if hit else FALSE_ALARM))
    bottom.set(ylim=(0, 104), xlim=(0, seconds), xlabel="Time (s)", ylabel="Probability (%)")
    bottom.grid(True)
    _scale_axis(bottom.xaxis, False, n_ticks=10)
    handles = [Line2D([], [], color=colours[name], linewidth=4) for name in coloured]
    names = [_pretty(name) for name in coloured]
    if len(coloured) < len(class_names):
        handles.append(Line2D([], [], color=PALE, linewidth=2))
        names.append("other classes")
    marks = {}
    if hits.any():
        marks["hit"] = Line2D([], [], color=GREY, linestyle="", **HIT)
    if (~hits).any():
        marks["false alarm"] = Line2D([], [], color=PALE, linestyle="", **FALSE_ALARM)
    if threshold is not None:
        marks["threshold"] = Line2D([], [], color=INK, linewidth=1.5, linestyle="--")
    missed = np.zeros(len(spoken), dtype=bool)
    if detections is not None and len(spoken):
        missed = (heard < 0) & spoken["class_name"].isin(words).to_numpy()
        if missed.any():
            marks["missed word"] = Line2D([], [], color=GREY, marker="v", mfc="white", ms=10, mew=2, ls="")
    if marks:
        _top_legend(fig, list(marks.values()), list(marks), handlelength=1.5)
    _bottom_legend(fig, handles, names)
    if len(spoken):
        inks = [INK if name in words else GREY for name in spoken["class_name"]]
        _label_events(top, spoken, [colours[name] for name in spoken["class_name"]], inks, missed)
    return fig


@_styled
def plot_attention_over_waveform(
    waveforms: np.ndarray,
    sample_rate: int,
    attention: np.ndarray,
    times: np.ndarray,
    titles: Sequence[str],
    title: str | None = None,
) -> Figure:
    """Draw up to six waveforms (clips, samples) and over each the attention that its time steps get.

    `attention` (clips, steps), at `times` (steps,) in s, is given relative to its mean: 1 is what each step would get
    if all got the same.
    """
    attention, times = np.asarray(attention, dtype=float), np.asarray(times, dtype=float)
    if not 1 <= len(waveforms) <= 6:
        raise ValueError(f"One to six waveforms have room in a figure, not {len(waveforms)}.")
    if attention.shape != (len(waveforms), len(times)):
        raise ValueError(f"Attention {attention.shape} does not fit {len(waveforms)} waveforms and {len(times)} times.")
    if not (np.isfinite(attention).all() and (attention >= 0).all() and attention.any(1).all()):
        raise ValueError("Attention weights must be finite, not negative, and not all zero.")
    relative = attention / attention.mean(1, keepdims=True)
    fig = _figure(title)
    axes = _grid(fig, titles, len(waveforms))
    pairs = zip(axes, waveforms, strict=True)
    largest = max(_draw_waveform(ax, waveform, sample_rate, colour=PALE) for ax, waveform in pairs)
    axes[0].set_ylim(-1.05 * largest, 1.05 * largest)
    n_columns = axes[0].get_subplotspec().get_gridspec().ncols
    for index, (ax, weights) in enumerate(zip(axes, relative, strict=True)):
        side = ax.twinx()
        side.fill_between(times, weights, color=COLOURS[1], alpha=0.2, linewidth=0)
        side.plot(times, weights, color=COLOURS[1])
        side.axhline(1, color=INK, linewidth=1.2, linestyle="--")
        side.set_ylim(0, 1.08 * relative.max())
        side.spines["right"].set_visible(True)
        side.yaxis.set_major_locator(MaxNLocator(5))
        last = (index + 1) % n_columns == 0 or index == len(axes) - 1
        side.tick_params(right=last, labelright=last)
    _label_grid(fig, "Time (s)", "Amplitude (full scale = 1)")
    left, bottom, width, height = fig.get_layout_engine().get()["rect"]
    fig.get_layout_engine().set(rect=(left, bottom, width - 0.028, height))
    place = {"x": 0.992, "y": bottom + height / 2, "ha": "right", "va": "center", "rotation": 90}
    fig.text(s="Attention (uniform = 1)", size=15, **place).set_in_layout(False)
    lines = {
        "waveform": Patch(color=PALE), "attention": Line2D([], [], color=COLOURS[1]),
        "uniform": Line2D([], [], color=INK, linewidth=1.2, linestyle="--"),
    }  # fmt: skip
    _top_legend(fig, list(lines.values()), list(lines))
    return fig


@_styled
def plot_shares(shares: dict[str, np.ndarray], x_label: str, title: str | None = None) -> Figure:
    """Draw how a share (n,) of 1 is distributed over clips, name -> shares, a panel for each of up to three ways.

    Bars are 5 % wide, upper end included; clips of which the share is exactly zero have a bar of their own. Above each
    panel: the share of clips above zero, and the mean.
    """
    if not 1 <= len(shares) <= 3:
        raise ValueError(f"One to three ways have room side by side, not {len(shares)}.")
    shares = {name: np.asarray(values, dtype=float) for name, values in shares.items()}
    for name, values in shares.items():
        if len(values) == 0 or not ((values >= 0) & (values <= 1)).all():
            raise ValueError(f"The shares of {name!r} must be numbers from 0 to 1, at least one.")
    fig = _figure(title)
    axes = fig.subplots(1, len(shares), sharey=True, squeeze=False)[0]
    for ax, (name, values) in zip(axes, shares.items(), strict=True):
        # a share such as 0.15 is a little more than three times 0.05 in floating point
        counts = np.bincount(np.ceil(np.round(20 * values, 9)).astype(int), minlength=21)
        heights = 100 * counts / len(values)
        ax.bar(-3.5, heights[0], width=5, color=COLOURS[0])
        ax.bar(np.arange(2.5, 100, 5), heights[1:], width=5, color=COLOURS[1], edgecolor="white", linewidth=0.8)
        if counts[0]:
            beside = {"textcoords": "offset points", "xytext": (0, 4), "ha": "left"}
            ax.annotate(f"{heights[0]:.3g} %", (-6, heights[0]), **beside)
        ax.set_xticks([-3.5, *range(20, 101, 20)], ["0", *(str(tick) for tick in range(20, 101, 20))])
        ax.set(xlim=(-11, 101), xlabel=x_label)
        summary = f"{len(values):,} clips, {100 * (values > 0).mean():.1f} % above 0\nmean {100 * values.mean():.1f} %"
        ax.set_title(f"{textwrap.fill(name, 90 // len(shares))}\n{summary}", size=SMALLEST)
        ax.grid(True, axis="y")
    axes[0].set_ylabel("Share of the clips (%)")
    axes[0].set_ylim(0, min(108, 1.12 * max(ax.dataLim.intervaly[1] for ax in axes)))
    _scale_axis(axes[0].yaxis, False)
    return fig


@_styled
def plot_runs(
    values: pd.DataFrame,
    intervals: pd.DataFrame | None = None,
    references: dict[str, float] | None = None,
    title: str | None = None,
) -> Figure:
    """Draw the accuracies of n trainings of each model, and beside them the interval over speakers of the model.

    The two answer different questions: mean and standard deviation over runs say what another seed would change, the
    95 % interval over speakers says what other speakers would. `values` has a row a run (model, seed, accuracy as a
    share of 1), `intervals` one a model (model, mean, low, high), `references` are name -> share of 1.
    """
    _check_columns(values, ["model", "seed", "accuracy"], numbers=["accuracy"])
    _percent("(%)", values["accuracy"])
    if values.duplicated(["model", "seed"]).any():
        row = values[values.duplicated(["model", "seed"])].iloc[0]
        raise ValueError(f"Model {row['model']!r} has two runs with seed {row['seed']}; take their mean first.")
    models = dict(list(values.groupby("model", sort=False)["accuracy"]))
    places: dict[str, tuple[float, float, float]] = {}
    if intervals is not None:
        _check_columns(intervals, ["model", "mean", "low", "high"], numbers=["mean", "low", "high"])
        for row in intervals.itertuples():
            if row.model not in models:
                raise ValueError(f"There is an interval of {row.model!r} but no run; there are {', '.join(models)}.")
            if not row.low <= row.mean <= row.high:
                raise ValueError(f"In an interval low <= mean <= high must hold; see {row.model!r}.")
            places[row.model] = (100 * row.mean, 100 * row.low, 100 * row.high)
    fig = _figure(title)
    ax = fig.subplots()
    run_colour, interval_colour = COLOURS[:2]
    bar = {"elinewidth": 3, "capsize": 6, "capthick": 2.5}
    crowded = len(models) > 9
    references = {name: 100 * value for name, value in (references or {}).items()}
    drawn = [*(100 * values["accuracy"]), *np.ravel(list(places.values())), *references.values()]
    for index, (model, accuracies) in enumerate(models.items()):
        accuracies = 100 * accuracies.to_numpy()
        y = index - 0.22 if model in places else index
        mean, text = accuracies.mean(), f"{accuracies.mean():.1f} (1 run)"
        spread = np.linspace(-0.1, 0.1, len(accuracies)) if len(accuracies) > 1 else 0
        ax.plot(accuracies, y + spread, "o", color=run_colour, zorder=3, alpha=0.75, **DOT)
        if len(accuracies) > 1:
            sd = accuracies.std(ddof=1)
            drawn += [mean - sd, mean + sd]
            text = f"{mean:.1f} ± {sd:.1f} ({len(accuracies)} runs)"
            ax.errorbar(mean, y, xerr=sd, color=INK, fmt="|", markersize=16, markeredgewidth=3, zorder=4, **bar)
        if model in places:
            centre, low, high = places[model]
            beside = f"{centre:.1f}, {low:.1f} to {high:.1f}"
            text = f"{text}   {beside}" if crowded else text
            reach = [[centre - low], [high - centre]]
            ax.errorbar(centre, index + 0.22, xerr=reach, color=interval_colour, fmt="D", markersize=9, **bar)
            if not crowded:
                _write_beside(ax, index + 0.22, beside)
        _write_beside(ax, index if crowded else y, text)
    names = _shorten_all(models, 36) if crowded else [textwrap.fill(str(name), 26) for name in models]
    ax.set_yticks(range(len(models)), names)
    ax.set(ylim=(len(models) - 0.4, -0.6), xlabel="Accuracy (%)")
    for edge in range(1, len(models)):
        ax.axhline(edge - 0.5, color="#d0d0d0", linewidth=1)
    ax.tick_params(axis="y", length=0)
    ax.grid(True, axis="x")
    pad = max(0.3, 0.05 * np.ptp(drawn))
    ax.set_xlim(max(min(drawn) - pad, -1), min(max(drawn) + pad, 101))
    marks = {
        "one run": Line2D([], [], color=run_colour, marker="o", ls="", **DOT),
        "mean ± sd: another seed": Line2D([], [], color=INK, marker="|", ms=14, mew=3, lw=3),
    }
    if places:
        marks["95 % interval: other speakers"] = Line2D([], [], color=interval_colour, marker="D", ms=9, lw=3)
    _top_legend(fig, list(marks.values()), list(marks))
    _label_columns(ax, references)
    return fig


@_styled
def plot_seed_dots(
    table: pd.DataFrame, by: str = "method", references: dict[str, float] | None = None, title: str | None = None
) -> Figure:
    """Draw the accuracy of every seed of each method as a strip of dots, with its mean and its range.

    `table` has a row a method and seed: column `by` (up to twelve methods, drawn in their order), seed, and accuracy, a
    share of 1. Beside a strip stand mean ± standard deviation over its seeds, and minimum to maximum. `references`
    (name -> share of 1) are drawn as lines. The axis begins where the values do, not at 0: a strip has no length that
    would mislead. How far seeds lie apart belongs to a result: Dodge et al., Fine-Tuning Pretrained Language Models:
    Weight Initializations, Data Orders, and Early Stopping (2020).
    """
    _check_columns(table, [by, "seed", "accuracy"], numbers=["accuracy"])
    for column in (by, "seed", "accuracy"):
        if table[column].isna().any():
            raise ValueError(f"Column {column} is empty (NaN) in {table[column].isna().sum()} of {len(table)} rows.")
    known = pd.Series(references or {}, dtype=float, name="reference")
    if known.isna().any():
        raise ValueError(f"Reference {known.index[known.isna()][0]!r} is NaN; leave it out.")
    references = dict(_percent("(%)", known) * known)
    if table.duplicated([by, "seed"]).any():
        row = table[table.duplicated([by, "seed"])].iloc[0]
        raise ValueError(f"{by} {row[by]!r} has two rows with seed {row['seed']}; take their mean first.")
    percent = table.assign(accuracy=_percent("(%)", table["accuracy"]) * table["accuracy"])
    methods = dict(list(percent.groupby(by, sort=False, observed=True)["accuracy"]))
    if len(methods) > 12:
        raise ValueError(f"Up to twelve methods have room in this figure, not {len(methods)}.")
    drawn = [*percent["accuracy"], *references.values()]
    pad = max(1, 0.04 * np.ptp(drawn))
    ticks = MaxNLocator(12, steps=[1, 2, 5, 10], integer=True).tick_values(min(drawn) - pad, max(drawn) + pad)
    low, high = max(ticks[0], 0), min(ticks[-1], 100)

    fig = _figure(title)
    ax = fig.subplots()
    crowded, size = len(methods) > 8, 9 if len(methods) > 4 else 12
    dot, row_points = DOT | {"markersize": size, "markeredgewidth": 1}, 370 / len(methods)
    for row, accuracies in enumerate(methods.values()):
        accuracies = accuracies.to_numpy()
        mean, text, lanes = accuracies.mean(), f"{accuracies.mean():.1f} %", np.zeros(1)
        if len(accuracies) > 1:
            lanes = _spread_dots(accuracies, near=size * (high - low) / 530)
            lanes = lanes * min(size / row_points, 0.36 / max(1, np.abs(lanes).max()))
            reach = min(0.42, max(30 / row_points, np.abs(lanes).max() + size / row_points))
            text = f"{mean:.1f} ± {accuracies.std(ddof=1):.1f} %" + ("   " if crowded else "\n")
            text += f"{accuracies.min():.1f} to {accuracies.max():.1f}"
            ax.plot([accuracies.min(), accuracies.max()], [row, row], color=GREY, linewidth=1.5, zorder=2)
            ax.plot([mean, mean], [row - reach, row + reach], color=INK, linewidth=4, solid_capstyle="butt", zorder=4)
        ax.plot(accuracies, row + lanes, "o", color=COLOURS[0], zorder=3, clip_on=False, **dot)
        _write_beside(ax, row, text)
    fold = {"width": 26, "max_lines": 2, "placeholder": " …"}
    names = _shorten_all(methods, 36) if crowded else [textwrap.fill(str(name), **fold) for name in methods]
    ax.set_yticks(range(len(methods)), names)
    ax.set(ylim=(len(methods) - 0.4, -0.6), xlim=(low, high), xlabel="Accuracy (%)")
    ax.set_xticks(ticks[(ticks >= low) & (ticks <= high)])
    for edge in range(1, len(methods)):
        ax.axhline(edge - 0.5, color="#d0d0d0", linewidth=1)
    ax.tick_params(axis="y", length=0)
    ax.grid(True, axis="x")
    n_seeds = {len(accuracies) for accuracies in methods.values()}
    if n_seeds != {1}:
        label = f"one of {n_seeds.pop()} seeds" if len(n_seeds) == 1 else "one seed"
        marks = {
            label: Line2D([], [], color=COLOURS[0], marker="o", linestyle="", **dot),
            "mean (± sd)": Line2D([], [], color=INK, marker="|", linestyle="", markersize=16, markeredgewidth=4),
            "minimum to maximum": Line2D([], [], color=GREY, linewidth=1.5),
        }
        _top_legend(fig, list(marks.values()), list(marks), handlelength=1.4)
    _label_columns(ax, references)
    return fig


@_styled
def plot_training_signals(signals: pd.DataFrame, title: str | None = None) -> Figure:
    """Draw what happens inside one to three runs during training: a column a run, a row a signal, a line a layer.

    `signals` has the columns run, step, name ("gradient norm", "attention entropy (nats)"), value and layer. Signals
    whose name begins with "gradient" have a logarithmic axis, on which zero lies below the lower edge.
    """
    _check_columns(signals, ["run", "step", "name", "value", "layer"], numbers=["step", "value"], holes=True)
    runs, names, layers = (list(dict.fromkeys(signals[column])) for column in ("run", "name", "layer"))
    if len(runs) > 3 or len(names) > 3:
        raise ValueError(f"Three runs and three signals have room, not {len(runs)} and {len(names)}.")
    fig = _figure(title)
    axes = fig.subplots(len(names), len(runs), sharex=True, sharey="row", squeeze=False)
    for (row, column), ax in np.ndenumerate(axes):
        here = signals[(signals["name"] == names[row]) & (signals["run"] == runs[column])]
        for layer, rows in here.groupby("layer", sort=False):
            rows, index = rows.sort_values("step"), layers.index(layer)
            ax.plot(rows["step"], rows["value"], linewidth=2, **_line_look(index))
        ax.grid(True)
        if row == 0:
            ax.set_title(shorten(str(runs[column]), 100 // len(runs)))
        ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    for name, ax in zip(names, axes[:, 0], strict=True):
        label = str(name)[:1].upper() + str(name)[1:]
        ax.set_ylabel(textwrap.fill(label, 18))
        values = signals.loc[signals["name"] == name, "value"]
        positive = values[(values > 0) & np.isfinite(values)]
        if str(name).lower().startswith("gradient") and len(positive):
            for other in ax.get_shared_y_axes().get_siblings(ax):
                other.set_yscale("log", nonpositive="clip")
            ax.set_ylim(positive.min() / 1.5, positive.max() * 1.5)
            _scale_axis(ax.yaxis, True, n_ticks=5)
        elif len(values.dropna()):
            ax.yaxis.set_major_locator(MaxNLocator(5))
            ax.set_ylim(bottom=min(0, values.min()))
    _name_lines(fig, [f"layer {layer}" if isinstance(layer, int | np.integer) else str(layer) for layer in layers])
    fig.supxlabel("Training step", size=15, y=_reserve(fig, bottom=0.045)[1])
    return fig


@_styled
def plot_collapse(table: pd.DataFrame, answers: pd.DataFrame, title: str | None = None) -> Figure:
    """Draw what changing one thing at a time does to a model that answers with one class, whatever it hears.

    A row is a variant, up to twelve, the first the reference. `answers` (index: variant, columns: class names) holds
    the share of 1 of the validation clips that gets each answer; it is drawn as colour. `table` has the same variants
    in the same order, as its index or its column `variant`, and up to six columns of numbers, each drawn in a panel
    with its values beside it: "accuracy" columns are shares of 1 and drawn in %, with chance (1 / classes) as a dotted
    line; "gradient" columns are logarithmic, zero lies below their lower edge; NaN is a dash. Rows in which one class
    gets more than halfway from its fair share to all of the answers count as collapsed and have another colour.

    Raises ValueError for more rows or columns, variants that differ or come twice, and shares that do not sum to 1.
    """
    if "variant" in table:
        table = table.set_index("variant")
    for frame in (table, answers):
        _check_columns(frame, list(frame), numbers=list(frame))
    variants, n_classes, n_panels = list(answers.index), len(answers.columns), len(table.columns)
    for row, pair in enumerate(itertools.zip_longest(table.index, variants, fillvalue="no row"), 1):
        if pair[0] != pair[1]:
            raise ValueError(f"Row {row} is {pair[0]!r} in the table but {pair[1]!r} in the answers; give both alike.")
    if not answers.index.is_unique:
        raise ValueError(f"Variant {variants[answers.index.duplicated().argmax()]!r} comes twice; a row each is drawn.")
    if len(variants) > 12 or not 1 <= n_panels <= 6 or n_classes < 2:
        raise ValueError(
            "Up to twelve variants, one to six columns of numbers and two or more classes make this figure, not "
            f"{len(variants)}, {n_panels} and {n_classes}."
        )
    shares = answers.to_numpy(dtype=float)
    wrong = ~((np.abs(shares.sum(1) - 1) < 1e-3) & (shares.min(1) >= 0))  # finds NaN as well
    if wrong.any():
        raise ValueError(f"The answers of {variants[wrong.argmax()]!r} must be shares from 0 to 1 that sum to 1.")
    limit = (1 + 1 / n_classes) / 2
    collapsed = shares.max(1) > limit
    colours = [COLOURS[2] if fallen else COLOURS[0] for fallen in collapsed]
    crowded = len(variants) > 8

    fig = _figure(title)
    wide = np.clip(0.45 * n_classes, 4, 5.4)  # times a panel, so that the names of the classes fit
    heat, *panels = fig.subplots(1, 1 + n_panels, sharey=True, width_ratios=[wide, *[1] * n_panels])
    picture = _draw_shares(heat, 100 * shares)
    heat.hlines(np.arange(len(variants) + 1) - 0.5, -0.5, n_classes - 0.5, color="#e4e4e4", linewidth=1)
    names = _shorten_all(variants, 30 if crowded else 40)
    names = names if crowded else [textwrap.fill(name, 20) for name in names]
    heat.set_yticks(range(len(variants)), names)
    heat.xaxis.tick_top()
    heat.tick_params(length=0)
    if n_classes <= 12:
        heat.set_xticks(range(n_classes), _short_names(answers, 18), rotation=90)
        heat.vlines(np.arange(n_classes + 1) - 0.5, -0.5, len(variants) - 0.5, color="#e4e4e4", linewidth=1)
    else:
        heat.set_xticks([])
        heat.set_title(f"Answers: {n_classes} classes", size=SMALLEST)
    fig.colorbar(
        picture,
        ax=heat,
        location="bottom",
        label="Share of the answers (%)",
        pad=0.02,
        aspect=30,
        ticks=(0, 20, 50, 100),
    )
    for ax, column in zip(panels, table, strict=True):
        _draw_values(ax, table[column], colours, heading_width=8 + 18 // n_panels)
        if "accuracy" in str(column).lower():
            ax.axvline(100 / n_classes, color=INK, linewidth=2, linestyle=":")
    heat.set_ylim(len(variants) - 0.5, -0.5)
    rule = {"coordsA": heat.get_yaxis_transform(), "coordsB": panels[-1].get_yaxis_transform(), "color": INK}
    fig.add_artist(ConnectionPatch((0, 0.5), (1, 0.5), linewidth=1.2, **rule)).set_in_layout(False)
    marks = {}
    if collapsed.any():
        marks[f"one class gets over {100 * limit:.0f} % of the answers"] = Patch(color=COLOURS[2])
    if any("accuracy" in str(column).lower() for column in table):
        marks[f"chance {100 / n_classes:.1f} %"] = Line2D([], [], color=INK, linewidth=2, linestyle=":")
    if marks:
        _top_legend(fig, list(marks.values()), list(marks), handlelength=1.2)
    return fig


@_styled
def plot_word_effects(
    words: Sequence[Sequence[str]],
    effects: Sequence[Sequence[float]],
    labels: Sequence[str],
    class_names: Sequence[str],
    title: str | None = None,
) -> Figure:
    """Draw up to six sentences, each word on a box whose colour says for which of two classes it speaks, and how much.

    `words` has a list of words a sentence (together as much as fits at 14 pt: six sentences of 40 words), `effects` a
    list of numbers of the same length: by how much a word raises (positive) or lowers (negative) the probability of
    the second of the two `class_names`. All sentences share one scale, to the largest effect, at least 0.05. `labels`
    has a short text a sentence, such as "positive 93 %", drawn above it, or before it where there is not room enough.
    One way to measure effects is to leave out a word at a time: Li et al., Understanding Neural Networks through
    Representation Erasure (2016). Characters that no font has, such as emoji, are drawn as □.

    Raises ValueError for lengths that differ, effects that are not between -1 and 1, and more text than fits.
    """
    if not 1 <= len(words) <= 6 or not len(words) == len(effects) == len(labels):
        raise ValueError(
            "From 1 to 6 sentences have room in this figure, each with its effects and its label, not "
            f"{len(words)}, {len(effects)} and {len(labels)}."
        )
    if isinstance(class_names, str) or len(class_names) != 2:
        raise ValueError(f"Words speak for one of two classes, so two class names are needed, not {class_names!r}.")
    for number, (sentence, values) in enumerate(zip(words, effects, strict=True), 1):
        if isinstance(sentence, str) or len(sentence) == 0 or np.shape(values) != (len(sentence),):
            raise ValueError(
                f"Sentence {number} must be a list of words, at least one, with an effect each, but words and effects "
                f"are {np.shape(sentence)} and {np.shape(values)}."
            )
        if not (np.abs(np.asarray(values, dtype=float)) <= 1).all():  # finds NaN as well
            raise ValueError(f"The effects of sentence {number} must be changes of a probability, from -1 to 1.")
    limit = max(0.05, *(np.abs(np.asarray(values, dtype=float)).max() for values in effects))

    fig = _figure(title)
    ax = fig.subplots()
    ax.set_axis_off()
    fig.draw_without_rendering()
    fig.set_layout_engine("none")  # the places below are points of these axes
    box = ax.get_position()
    indent = 72 * SIZE[0] * (0.012 - box.x0)  # to begin where the title does
    width, height = 72 * SIZE[0] * box.width - 2 * indent, 72 * SIZE[1] * box.height  # points, as all places below
    foot, least = 64, 0.6  # points for the colour bar, ems between sentences
    largest = 20 if len(words) > 1 else 26
    words = [[_fit(word, width / largest - 1) for word in sentence] for sentence in words]
    labels = [_fit(label, width / largest - 1, "bold") for label in labels]
    widths = [np.array([text_width(word, 72) for word in sentence]) + 2 * WORD_PAD for sentence in words]
    starts = [text_width(label, 72, "bold") + 3 * WORD_PAD for label in labels]
    for above, size in itertools.product((True, False), range(largest, SMALLEST - 1, -2)):
        limit_em = width / size
        placed = [
            _break_lines(row, limit_em, WORD_PAD, 0 if above else start)
            for row, start in zip(widths, starts, strict=True)
        ]
        heights = [lines[-1] + 1 + above for lines, _ in placed]
        if 1.4 * sum(heights) + least * (len(words) - 1) <= (height - foot) / size:
            break
    else:
        raise ValueError(f"{sum(map(len, words))} words do not fit a slide at {SMALLEST} pt; draw fewer sentences.")
    room = (height - foot) / size - least * (len(words) - 1)
    pitch = min(1.65, room / sum(heights))
    rest = room - pitch * sum(heights)
    gap = min(1, rest / len(words))
    rest, gap = rest - gap * (len(words) - 1), gap + least
    y = (height - foot) / size - rest / 3 - pitch / 2  # ems above the colour bar, of the middle of a line
    for label, sentence, values, (lines, lefts), row, n_lines in zip(
        labels, words, effects, placed, widths, heights, strict=True
    ):
        ax.text(0, foot + size * (y - 0.36), label, weight="bold", fontsize=max(SMALLEST, size - 2))
        colours = _effect_colours(np.asarray(values, dtype=float) / limit)
        middles = y - pitch * (lines + above)
        for word, colour, left, wide, middle in zip(sentence, colours, lefts, row, middles, strict=True):
            look = {"boxstyle": f"round,pad=0,rounding_size={0.25 * size}", "facecolor": colour, "edgecolor": "none"}
            ax.add_patch(FancyBboxPatch((size * left, foot + size * (middle - 0.62)), size * wide, 1.24 * size, **look))
            # in the middle: letters are a little wider or narrower than measured where they snap to pixels
            place = (size * (left + wide / 2), foot + size * (middle - 0.36))
            ax.text(*place, word, ha="center", fontsize=size)
        y -= pitch * n_lines + gap
    left, right = width / 2 - 130, width / 2 + 130
    bar = {"extent": (left, right, 24, 42), "aspect": "auto", "interpolation": "bilinear", "gid": RECOLOURED}
    ax.imshow(_effect_colours(np.linspace(-1, 1, 257))[None], **bar)
    ax.set(xlim=(-indent, width + indent), ylim=(0, height))
    for place, value in ((left, f"−{limit:.2g}"), (width / 2, "change of probability"), (right, f"+{limit:.2g}")):
        ax.text(place, 4, value, ha="center", fontsize=SMALLEST)
    names = [f"speaks for {_fit(name, 15)}" for name in class_names]
    ax.text(left - 12, 28, names[0], ha="right", fontsize=SMALLEST)
    ax.text(right + 12, 28, names[1], fontsize=SMALLEST)
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

    def save(self, name: str, fig: Figure | None, caption: str = "") -> Figure | None:
        """Write `fig` as PNG (1920 x 1080), SVG and PDF, the data set at its foot; return it for the cell to show.

        None is no figure, and an earlier one of this name goes.
        """
        if fig is None:
            item = self._item(name, "figure", caption)
            for kind in ("svg", "pdf", "png"):
                (self.folder / f"{item['file']}.{kind}").unlink(missing_ok=True)
            return None
        if isinstance(fig, _Figure):
            fig.draw_without_rendering()
            # every drawing would move the axes a little: now files and screen agree; with an engine, even an empty one,
            # each file is drawn twice
            with matplotlib.rc_context({"figure.autolayout": False, "figure.constrained_layout.use": False}):
                fig.set_layout_engine(None)
        else:
            import matplotlib.pyplot as plt

            plt.close(fig)  # the notebook would show one of pyplot's own a second time
        for text in [text for text in fig.texts if text.get_gid() == "mark"]:
            text.remove()
        if self.mark:
            shown = fit_mark(self.mark, 0.98 * fig.get_figwidth(), SMALLEST)
            fig.text(0.992, 0.012, shown, ha="right", va="bottom", color=GREY, fontsize=SMALLEST, gid="mark")
        item = self._item(name, "figure", caption)
        for kind in ("svg", "pdf", "png"):
            _write(self.folder / f"{item['file']}.{kind}", _render(fig, kind, FILE_DPI))
        self._remember(item | {"images": _image_boxes(fig)})
        return fig

    def table(self, name: str, df: pd.DataFrame, caption: str = "") -> pd.DataFrame:
        """Write `df` as CSV and put it in the deck as a native table; return it for the cell to show.

        A table without columns is no slide, and an earlier one of this name goes.
        """
        item = self._item(name, "table", caption)
        if not len(df.columns):
            (self.folder / f"{item['file']}.csv").unlink(missing_ok=True)
            return df
        frame = df if isinstance(df.index, pd.RangeIndex) else df.reset_index()
        rows = ([_cell(value) for value in row] for row in frame.itertuples(index=False))
        item["rows"] = [[str(column) for column in frame], *rows]
        _write(self.folder / f"{item['file']}.csv", frame.to_csv(index=False).encode())
        self._remember(item)
        return df

    def deck(self, theme: str = "light", headline: str = "") -> Path:
        """Write the deck of this notebook into its folder, as `slides.write_deck` does, and return its path.

        It is `<notebook_name>.pptx`, or `<notebook_name>_dark.pptx` where `theme` is "dark".
        """
        return write_deck(self.folder / f"{self.notebook_name}.pptx", [self.contents()], [headline], theme=theme)

    def contents(self) -> dict:
        """Return what `slides.write_deck` makes slides of: name, heading, folder and items, the oldest first."""
        return {"name": self.notebook_name, "heading": self.heading(), "folder": self.folder, "items": self._items()}

    def heading(self) -> str:
        """Return the first heading of the notebook, which says what it asks, or else the name of its file as words."""
        for path in sorted(resolve_path(".").glob(f"*/{self.notebook_name}.ipynb")):
            cells = json.loads(path.read_text(encoding="utf-8"))["cells"] if path.parent.name != "executed" else []
            lines = "".join(cells[0]["source"]).splitlines() if cells else []
            if lines and lines[0].startswith("# "):
                return lines[0][2:].strip()
        return _pretty(self.notebook_name).capitalize()

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
        def key(item: dict) -> tuple:  # a table may have the name of a figure
            return item["number"], item["kind"]

        items = sorted([item for item in self._items() if key(item) != key(new)] + [new], key=key)
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
    dates = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
    with matplotlib.rc_context({key: STYLE[key] for key in ("svg.hashsalt", "svg.fonttype", "pdf.fonttype")}):
        fig.savefig(content, format=kind, dpi=dpi, metadata=dates.get(kind))
    return content.getvalue()


def _image_boxes(fig: Figure) -> list[list[float]]:
    """Return where images with a colour map lie, and the bars that explain it: left, top, right, bottom, in shares."""
    boxes = []
    for ax in (ax for ax in fig.axes if ax.get_visible()):
        meshes = [artist for artist in ax.collections if isinstance(artist, QuadMesh)]
        for image in [*ax.get_images(), *meshes]:
            box = Bbox.intersection(image.get_window_extent(), ax.bbox)
            if image.get_visible() and image.get_gid() != RECOLOURED and box is not None:
                (left, bottom), (right, top) = fig.transFigure.inverted().transform(box.get_points())
                boxes.append([round(float(share), 5) for share in (left, 1 - top, right, 1 - bottom)])
    return boxes


def _write(path: Path, content: bytes) -> None:
    with write_whole(path) as temporary:
        temporary.write_bytes(content)


def _cycle(index: int) -> tuple[float, float, float]:
    return COLOURS[index % len(COLOURS)]


def _pretty(name: str) -> str:
    return str(name).replace("_", " ").strip() or str(name)


def _short_names(names: Sequence, length: int) -> list[str]:
    """Return class names in words, shortened as `_shorten_all` does."""
    return _shorten_all([_pretty(name) for name in names], length)


def _shorten_all(names: Iterable, length: int) -> list[str]:
    """Return names of at most `length` characters, cut at the end, or elsewhere where that leaves two the same.

    That is the middle, or else the beginning; what is the same even then is numbered.
    """
    words = [str(name) for name in names]
    half = length // 2
    for cut in (
        lambda word: shorten(word, length),
        lambda word: f"{word[: length - half - 1]}…{word[-half:]}",
        lambda word: f"…{word[1 - length :]}",
    ):
        short = {word: word if len(word) <= length else cut(word) for word in words}
        if len(set(short.values())) == len(short):
            return [short[word] for word in words]
    alike = [shorten(word, length) for word in short]
    for index, word in enumerate(short):
        if alike.count(alike[index]) > 1:
            number = f" ({alike[: index + 1].count(alike[index])})"
            short[word] = shorten(word, length - len(number)) + number
        else:
            short[word] = alike[index]
    return [short[word] for word in words]


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
        ax.set_yticks(range(len(part)), _short_names(part, 24))
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
    if not title or text_width(title, 1.1 * 20) + box.width / fig.dpi > SIZE[0] - 0.6 or height > 0.06:
        top, _ = _reserve(fig, top=height)
    legend.set_bbox_to_anchor((0.992, top), fig.transFigure)


def _bottom_legend(fig: Figure, handles: list, labels: list[str], handlelength: float = 1) -> None:
    """Put a legend of long names at the bottom, in as many columns as fit."""
    widest = max(text_width(label, SMALLEST) for label in labels)
    n_columns = max(1, int(12.6 / (0.6 + 0.2 * handlelength + widest)))
    place = {"loc": "lower left", "borderaxespad": 0, "handlelength": handlelength}
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
        ax.set_title(shorten(_pretty(title), 100 // axes.shape[1]), size=16 if axes.shape[1] < 4 else SMALLEST)
    return list(axes.flat[:n_panels])


def _draw_waveform(ax: Axes, waveform: np.ndarray, sample_rate: int, colour=COLOURS[0]) -> float:
    """Draw a waveform (samples,), int16 or float, over seconds; return its largest amplitude, 1 if all is zero."""
    waveform = np.asarray(waveform)
    if len(waveform) == 0:
        raise ValueError("A waveform without samples cannot be drawn.")
    waveform = waveform / 32768 if waveform.dtype == np.int16 else waveform
    # what a line of 80,000 points shows is its envelope: a fill of 1,000 is the same picture and a small file
    starts = np.unique(np.linspace(0, len(waveform), min(1000, len(waveform)), endpoint=False, dtype=int))
    high, low = np.maximum.reduceat(waveform, starts), np.minimum.reduceat(waveform, starts)
    ax.fill_between(starts / sample_rate, low, high, color=colour, linewidth=0.8)
    ax.axhline(0, color=GREY, linewidth=0.6)
    ax.set_xlim(0, len(waveform) / sample_rate)
    return max(high.max(), -low.min()) or 1


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


def _check_models(models: dict, at_least: int = 1) -> None:
    if not at_least <= len(models) <= 6:
        raise ValueError(f"From {at_least} to 6 models have room in this figure, not {len(models)}.")


def _true_class_shares(
    matrix: np.ndarray, n_classes: int, what: str = "A confusion matrix"
) -> tuple[np.ndarray, np.ndarray]:
    """Return counts (classes, classes) and what share of its row, in %, each cell is: 0 for a class without clips."""
    matrix = np.asarray(matrix)
    if matrix.shape != (n_classes, n_classes):
        raise ValueError(f"{what} of {n_classes} classes has as many rows and columns, not {matrix.shape}.")
    if not np.isfinite(matrix).all() or (matrix < 0).any() or not matrix.any():
        raise ValueError(f"{what} holds counts of clips: none negative or infinite, and not all of them zero.")
    support = matrix.sum(1, keepdims=True)
    return matrix, 100 * matrix / np.where(support == 0, 1, support)


def _draw_shares(ax: Axes, shares: np.ndarray):
    """Draw shares (rows, classes) in % as colours."""
    # with many classes the root of the share makes single mistakes visible
    norm = PowerNorm(1 if shares.shape[1] <= 12 else 0.5, vmin=0, vmax=100)
    ax.spines[:].set_visible(False)
    ax.tick_params(length=0)
    return ax.imshow(shares, cmap="Blues", norm=norm, aspect="auto")


def _name_worst(ax: Axes, recalls: np.ndarray, names: list[str], gap: float) -> None:
    """Name those rows of a confusion matrix that are recognised worst and lie at least `gap` rows apart."""
    worst = _keep_apart(np.argsort(recalls, kind="stable"), gap)[:14]
    ax.set_xticks([])
    ax.set_yticks(worst, [names[label] for label in worst])


def _spread_ties(values: np.ndarray, near: float) -> np.ndarray:
    """Return by how much of a row to move dots (n,), in their order, where they are nearer than `near` to the next."""
    order, lanes = np.argsort(values, kind="stable"), np.zeros(len(values))
    for members in np.split(order, 1 + np.flatnonzero(np.diff(values[order]) > near)):
        step = min(0.28, 0.8 / len(members))
        lanes[np.sort(members)] = step * (np.arange(len(members)) - (len(members) - 1) / 2)
    return lanes


def _spread_dots(values: np.ndarray, near: float) -> np.ndarray:
    """Return the lane, 0 or above or below it, of each of `values` (n,): the innermost one without a dot `near` it."""
    lanes = np.array([(lane + 1) // 2 * (-1) ** lane for lane in range(len(values))])
    places, last = np.zeros(len(values), dtype=int), np.full(len(values), -np.inf)
    for index in np.argsort(values, kind="stable"):
        lane = np.argmax(values[index] - last >= near)
        places[index], last[lane] = lanes[lane], values[index]
    return places


def _roc_axes(fig: Figure, label: str | None = None) -> Axes:
    """Return axes for ROC curves in %, with the line of a model that guesses."""
    ax = fig.subplots()
    ax.plot([0, 100], [0, 100], color="#b0b0b0", linewidth=1.5, linestyle=":", label=label)
    ax.set(xlabel="False positive rate (%)", ylabel="True positive rate (%)", xlim=(-1, 101), ylim=(-1, 102))
    ax.grid(True)
    return ax


def _class_rocs(targets: np.ndarray, probabilities: np.ndarray, labels: np.ndarray) -> dict:
    """Return label -> (false positive rates, true positive rates) of each of `labels` against the rest."""
    from sklearn.metrics import roc_curve

    targets, probabilities = np.asarray(targets), np.asarray(probabilities)
    return {label: roc_curve(targets == label, probabilities[:, label])[:2] for label in labels}


def _mean_roc(curves: dict) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean over the classes of their ROC curves: false and true positive rates (1001,) in %."""
    grid = np.linspace(0, 1, 1001)
    mean_curve = np.mean([np.interp(grid, *curve) for curve in curves.values()], axis=0)
    mean_curve[0] = 0
    return 100 * grid, 100 * mean_curve


def _list_areas(ax: Axes, heading: str) -> None:
    """Put the legend of ROC curves where they do not go, the curve on top first."""
    handles, labels = ax.get_legend_handles_labels()
    order = np.argsort([handle.get_zorder() for handle in handles])[::-1]
    ax.legend(
        [handles[i] for i in order], [labels[i] for i in order], loc="lower right", title=heading,
        title_fontsize=SMALLEST, alignment="left", labelspacing=0.3, borderaxespad=0.8,
    )  # fmt: skip


def _draw_values(ax: Axes, values: pd.Series, colours: list, heading_width: int) -> None:
    """Draw numbers (rows,) as bars, or as dots on a logarithmic axis, and write them to the right."""
    name = str(values.name)
    accuracy, logarithmic = "accuracy" in name.lower(), "gradient" in name.lower()
    numbers = _percent("(%)" if accuracy else "", values) * values.to_numpy(dtype=float)
    known = numbers[~np.isnan(numbers)]
    if logarithmic and (known < 0).any():
        raise ValueError(f"A logarithmic axis has no place for {name} {known.min():g}.")
    drawn = np.flatnonzero(numbers > 0 if logarithmic else ~np.isnan(numbers))
    if logarithmic:
        low, high = (numbers[drawn].min(), numbers[drawn].max()) if len(drawn) else (1, 1)
        reach = max(2, (high / low) ** 0.15)
        low, high = low / reach, high * reach
        ax.set(xscale="log", xlim=(low, high))
        ax.hlines(drawn, low, numbers[drawn], color=[colours[row] for row in drawn], linewidth=2.5)
        for row in drawn:
            ax.plot(numbers[row], row, "o", color=colours[row], **DOT)
    else:
        ax.barh(drawn, numbers[drawn], color=[colours[row] for row in drawn], height=min(0.6, 0.12 * len(numbers)))
        low, high = known.min(initial=0), 100 if accuracy else known.max(initial=0)
        ax.set_xlim(low, high if high > low else low + 1)
    largest = np.abs(known).max(initial=0)
    decimals = 1 if accuracy else int(np.clip(2 - np.floor(np.log10(largest or 1)), 0, 3))
    for row, number in enumerate(numbers):
        plain = not logarithmic and (largest == 0 or 0.01 <= largest < 1e4)
        text = f"{number:.{decimals}f}" if plain else _tick(float(f"{number:.2g}"))
        _write_beside(ax, row, "–" if np.isnan(number) else text)
    heading = name[:1].upper() + name[1:] + " (%)" * (accuracy and "%" not in name) + " (log)" * logarithmic
    # a title's width would not count in the layout
    ax.annotate(
        textwrap.fill(heading, heading_width), (0, 1), xycoords="axes fraction", xytext=(0, 11), va="baseline",
        textcoords="offset points", fontsize=SMALLEST,
    )  # fmt: skip
    ax.set_xticks([])
    ax.set_xticks([], minor=True)
    ax.spines["bottom"].set_visible(False)
    ax.spines["left"].set_position(("data", low if logarithmic else 0))
    ax.tick_params(axis="y", length=0)


def _list_confusions(ax: Axes, matrix: np.ndarray, class_names: Sequence[str]) -> None:
    """Write the pairs that are confused most, as many as fit: on a line each, or on two where a name is long."""
    mistakes = matrix * (1 - np.eye(len(matrix), dtype=int))
    pairs = [divmod(int(cell), len(matrix)) for cell in np.argsort(-mistakes, axis=None, kind="stable")[:15]]
    pairs = [pair for pair in pairs if mistakes[pair]]
    counts = [f"{mistakes[true, predicted]} of {matrix[true].sum()}" for true, predicted in pairs]
    names = _short_names(class_names, 18)
    lines = [f"{names[true]} → {names[predicted]}" for true, predicted in pairs]
    widths = [text_width(f"{line}  {count}", SMALLEST) for line, count in zip(lines, counts, strict=True)]
    ax.axis("off")
    ax.set_title("Most confused: true → predicted")
    ax.figure.draw_without_rendering()
    width, height = np.array(ax.get_position().size) * SIZE  # inches
    step = max(height / 15.5, 0.26)
    if max(widths, default=0) > width:
        names, step = _short_names(class_names, 24), 0.56
        lines = [f"{names[true]}\n→ {names[predicted]}" for true, predicted in pairs]
    for number, (line, count) in enumerate(zip(lines[: int(height / step)], counts, strict=False)):
        y = 1 - (number + 0.5) * step / height
        ax.text(0, y, line, transform=ax.transAxes, va="center", fontsize=SMALLEST, linespacing=1.1)
        ax.text(1, y, count, transform=ax.transAxes, va="center", ha="right", fontsize=SMALLEST)


def _label_lines(ax: Axes, lines: dict[str, tuple[float, str]]) -> None:
    """Write name -> (y, colour) beside the right end of horizontal lines, pushed apart where they would overlap."""
    names = sorted(lines, key=lambda name: lines[name][0])
    # in shares of the axes' height, so that it holds for logarithmic axes too
    low, high = ax.yaxis.get_transform().transform(ax.get_ylim())
    values = ax.yaxis.get_transform().transform([lines[name][0] for name in names])
    heights = np.array([(name.count("\n") + 1) * 1.35 * SMALLEST / 72 / 5.4 for name in names])
    for name, place in zip(names, _push_apart((values - low) / (high - low), heights, 0, 1), strict=True):
        value, colour = lines[name]
        ax.annotate(
            name, (1, value), xycoords=("axes fraction", "data"), xytext=(1.03, place), annotation_clip=False,
            textcoords="axes fraction", va="center", fontsize=SMALLEST, color=colour,
            arrowprops={"arrowstyle": "-", "color": colour, "shrinkA": 0, "shrinkB": 0, "relpos": (0, 0.5)},
        )  # fmt: skip


def _push_apart(places: Sequence[float], sizes: np.ndarray, low: float, high: float) -> np.ndarray:
    """Move things of `sizes`, whose centres are sorted, as little as keeps them apart and between `low` and `high`."""
    places = np.array(places, dtype=float)
    for _ in range(300):
        for i in range(1, len(places)):
            overlap = (sizes[i - 1] + sizes[i]) / 2 - (places[i] - places[i - 1])
            if overlap > 0:
                places[i - 1 : i + 1] += [-overlap / 2, overlap / 2]
        places = np.clip(places, low + sizes / 2, high - sizes / 2)
    return places


def _label_columns(ax: Axes, references: dict[str, float]) -> None:
    """Draw vertical lines with their names as flags above the axes, in as many rows as keep names and poles apart."""
    ax.figure.draw_without_rendering()
    inches = ax.get_position().width * SIZE[0] / np.ptp(ax.get_xlim())
    placed: list[tuple[float, int]] = []
    for name, value in sorted(references.items(), key=lambda item: item[1]):
        text = f"{name} {value:.1f} %"
        left = value - (text_width(text, SMALLEST) + 0.2) / inches
        row = next(row for row in range(len(references)) if all(x < left for x, other in placed if other >= row))
        placed.append((value, row))
        top = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points", "annotation_clip": False}
        pole = {"arrowstyle": "-", "color": INK, "linewidth": 1.5, "linestyle": "--", "shrinkA": 0, "shrinkB": 0}
        ax.axvline(value, color=INK, linewidth=1.5, linestyle="--")
        ax.annotate("", (value, 1), xytext=(0, 17 + 21 * row), arrowprops=pole, **top)
        ax.annotate(text, (value, 1), xytext=(-5, 9 + 21 * row), fontsize=SMALLEST, ha="right", va="center", **top)


def _check_columns(table: pd.DataFrame, columns: list, numbers: list, holes: bool = False) -> None:
    """Refuse a table without one of `columns`, without rows, or (unless `holes`) with infinite numbers."""
    missing = [column for column in columns if column and column not in table]
    if missing:
        raise ValueError(f"The table has no column {', '.join(missing)}; it has {', '.join(map(str, table.columns))}.")
    if len(table) == 0:
        raise ValueError("The table has no rows to draw.")
    for column in filter(None, numbers):
        if not pd.api.types.is_numeric_dtype(table[column]):
            raise ValueError(f"Column {column} must hold numbers.")
        if not holes and np.isinf(table[column].to_numpy(dtype=float)).any():
            raise ValueError(f"Column {column} holds an infinite value, which has no place on an axis.")


def _percent(label: str, values: pd.Series) -> int:
    """Return 100 for a label in percent, whose values must be shares of 1, and 1 for any other."""
    if not label.endswith("(%)"):
        return 1
    if (values > 1).any() or (values < 0).any():
        worst = values[(values > 1) | (values < 0)].iloc[0]
        raise ValueError(f"{values.name} {worst:g} is no share of 1; give 0.95 for 95 %.")
    return 100


def _keep_percent(ax: Axes) -> None:
    bottom, top = ax.get_ylim()
    ax.set_ylim(max(bottom, -1), min(top, 101))


def _scale_axis(axis, logarithmic: bool, n_ticks: int = 8) -> None:
    """Put few, plainly written ticks on an axis; a logarithmic one, its limits set, gets them at 1, 2, 5."""
    axis.set_major_formatter(FuncFormatter(_tick))
    if not logarithmic:
        axis.set_major_locator(MaxNLocator(n_ticks, steps=[1, 2, 5, 10]))
        return
    low, high = sorted(axis.get_view_interval())
    powers = np.arange(np.floor(np.log10(low)), np.ceil(np.log10(high)) + 1)
    choices = [np.outer(10**powers, digits).ravel() for digits in ((1, 2, 5), (1, 3), (1,))]
    choices += [10 ** powers[powers % step == 0] for step in (2, 3, 4, 6, 10)]
    choices = [ticks[(ticks >= low * 0.999) & (ticks <= high * 1.001)] for ticks in choices]
    ticks = next((ticks for ticks in choices if len(ticks) <= n_ticks), choices[-1])
    if len(ticks) < 3:
        even = MaxNLocator(n_ticks, steps=[1, 2, 5, 10]).tick_values(low, high)
        ticks = even[(even >= low) & (even <= high)] if high < 20 * low else ticks
    axis.set_ticks(ticks)
    axis.set_minor_locator(NullLocator())


def _tick(value: float, _=None) -> str:
    """Return 20 k for 20,000 and 10⁻⁵ for 0.00001: mathematical text is off in these figures."""
    for size, unit in ((1e9, " G"), (1e6, " M"), (1e4, " k")):
        if abs(value) >= size:
            size = 1e3 if unit == " k" else size
            return f"{value / size:g}{unit}"
    if value == 0 or abs(value) >= 1e-3:
        return f"{value:g}"
    digits, exponent = f"{value:.2e}".split("e")
    digits = f"{float(digits):g}"
    power = "10" + str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return power if digits == "1" else f"{digits}·{power}"


def _line_look(index: int) -> dict:
    return {"color": _cycle(index), "linestyle": "-" if index < len(COLOURS) else "--"}


def _name_lines(fig: Figure, names: list[str], handles: list | None = None) -> None:
    """Put a legend of lines that look as `_line_look` says at the top if they are few, at the bottom otherwise."""
    dashed = len(names) > len(COLOURS)  # for a dash to be seen as one it must be thin and long
    width = 2.5 if dashed else 4
    handles = handles or [Line2D([], [], linewidth=width, **_line_look(index)) for index in range(len(names))]
    if len(names) <= 5 and sum(text_width(name, SMALLEST) + 0.9 for name in names) < 8:
        _top_legend(fig, handles, names, handlelength=1.2)
    else:
        _bottom_legend(fig, handles, _shorten_all(names, 50), handlelength=2.2 if dashed else 1)


def _name_dots(
    fig: Figure, axes: Sequence[Axes], table: pd.DataFrame, columns: list[str], y: str, low: str, high: str,
    names: list[str], scale: int, always: bool = False,
) -> bool:  # fmt: skip
    """Write names beside dots, and say whether they are free of each other; if not, write none (unless `always`)."""
    fig.draw_without_rendering()
    points = 72 / fig.dpi
    found = []
    for ax, column in zip(axes, columns, strict=True):
        known = np.flatnonzero(table[column].notna())
        if len(known) == 0:
            continue
        x = table[column].to_numpy(dtype=float)[known]
        at, lowest, highest = (
            points * ax.transData.transform(np.column_stack([x, scale * table[end].fillna(table[y]).to_numpy()[known]]))
            for end in (y, low, high)
        )
        bars = np.column_stack([at[:, 0] - 3, lowest[:, 1], at[:, 0] + 3, highest[:, 1]])
        shown = [names[index] for index in known]
        frame = points * ax.get_window_extent().get_points().ravel()  # left, bottom, right, top
        found.append((ax, shown, x, scale * table[y].to_numpy()[known], *_place_names(at, bars, frame, shown)))
    if any(clash for *_, clash in found) and not always:
        return False
    for ax, shown, x, values, offsets, ends, _ in found:
        for name, place, offset, end in zip(shown, zip(x, values, strict=True), offsets, ends, strict=True):
            pole = {"arrowstyle": "-", "color": GREY, "lw": 0.8, "shrinkA": 0, "shrinkB": 6, "relpos": tuple(end)}
            ax.annotate(
                name, place, xytext=tuple(offset), textcoords="offset points", ha="center", va="center", zorder=6,
                fontsize=SMALLEST, annotation_clip=False, arrowprops=None if np.isnan(end).any() else pole,
            )  # fmt: skip
    return True


def _place_names(
    at: np.ndarray, bars: np.ndarray, frame: np.ndarray, names: list[str]
) -> tuple[np.ndarray, np.ndarray, bool]:
    """Find for each dot (n, 2) the nearest place of its name that is free of other names, dots, whiskers and lines.

    All in points; boxes are left, bottom, right, top. Returns the offsets of the names' centres, where in its box (in
    shares of its sides) the line from the dot ends (NaN: too near to need one), and whether some place is not free.
    """
    sizes = np.array([[72 * text_width(name, SMALLEST), 1.2 * SMALLEST] for name in names])
    dots = np.column_stack([at - 6, at + 6])
    boxes, lines = np.full((len(names), 4), np.nan), np.full((len(names), 12, 2), np.nan)
    offsets, clashes = np.zeros((len(names), 2)), np.zeros(len(names))
    directions = [(1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (-1, 1), (1, -1), (-1, -1)]

    def covered(box: np.ndarray, others: np.ndarray) -> float:
        sides = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
        return np.nansum(np.prod(np.clip(sides, 0, None), axis=1))

    def crossed(box: np.ndarray, points: np.ndarray) -> int:
        return np.count_nonzero(((points > box[..., :2]) & (points < box[..., 2:])).all(-1))

    for _ in range(4):  # each name again, now that the others have a place
        for index, (centre, size) in enumerate(zip(at, sizes, strict=True)):
            best, other = np.inf, np.arange(len(names)) != index
            for reach, (rank, (right, up)) in itertools.product((11, 18, 30, 44, 60, 80, 105), enumerate(directions)):
                step = reach / np.hypot(right, up)
                offset = np.array([right * (step + size[0] / 2), up * (step + size[1] / 2)])
                box = np.concatenate([centre + offset - size / 2, centre + offset + size / 2])
                line = centre + np.linspace(0, 1, 12)[:, None] * (np.clip(centre, box[:2], box[2:]) - centre)
                clash = 20 * np.clip(np.concatenate([frame[:2] - box[:2], box[2:] - frame[2:]]), 0, None).sum()
                clash += 4 * covered(box, boxes[other]) + covered(box, dots) + 60 * crossed(box, lines[other])
                clash += 60 * crossed(boxes[other][:, None], line[None]) if reach > 20 else 0
                cost = clash + covered(box, bars) + reach + 0.3 * rank
                if cost < best:
                    best, boxes[index], offsets[index], clashes[index] = cost, box, offset, clash
                    lines[index] = line if reach > 20 else np.nan
    return offsets, (lines[:, -1] - boxes[:, :2]) / sizes, (clashes > 30).any()  # a corner of a dot's box is no dot


def _check_stream(
    table: pd.DataFrame | None, seconds: float, class_names: Sequence[str], what: str, others: Sequence[str] = ()
) -> pd.DataFrame:
    """Return the table in order of time, an empty one for None; refuse times outside and classes that do not exist."""
    columns = ["time", "class_name", *others]
    if table is None or len(table) == 0:
        return pd.DataFrame({column: [] for column in columns})
    _check_columns(table, columns, numbers=["time"])
    outside = table.loc[~table["time"].between(0, seconds), "time"]
    if len(outside):
        raise ValueError(f"The {what} hold the time {outside.iloc[0]:g} s, outside a recording of {seconds:g} s.")
    unknown = sorted(set(table["class_name"]) - set(class_names))
    if unknown:
        raise ValueError(f"The {what} hold the class {unknown[0]!r}, which is not among the class names.")
    return table.sort_values("time", kind="stable", ignore_index=True)


def _label_events(ax: Axes, events: pd.DataFrame, colours: list, inks: list, missed: np.ndarray) -> None:
    """Write words above a waveform where they are spoken: upright where they do not fit side by side."""
    ax.figure.draw_without_rendering()
    inches = ax.get_position().width * SIZE[0]
    per_second = inches / np.ptp(ax.get_xlim())
    texts = [_pretty(name) for name in events["class_name"]]
    widths = np.array([text_width(text, SMALLEST) + 0.12 for text in texts])
    times = events["time"].to_numpy() * per_second
    upright = len(times) > 1 and (np.diff(times) < (widths[1:] + widths[:-1]) / 2).any()
    sizes = np.full(len(times), min(0.25, inches / len(times))) if upright else widths
    places = _push_apart(times, sizes, -0.3, inches + 0.3) / per_second
    where = {"xycoords": ("data", "axes fraction"), "annotation_clip": False}
    marks = zip(events["time"], places, texts, colours, inks, missed, strict=True)
    for time, place, text, colour, ink, miss in marks:
        look = {"color": colour, "mfc": "white" if miss else colour, "mew": 2, "ms": 9, "zorder": 5, "clip_on": False}
        ax.plot(time, 1.04, "v", transform=ax.get_xaxis_transform(), **look)
        if abs(place - time) * per_second > 0.02:
            pole = {"arrowstyle": "-", "color": GREY, "lw": 0.8, "shrinkA": 0, "shrinkB": 0}
            ax.annotate("", (time, 1.08), xytext=(place, 1.19), textcoords=where["xycoords"], arrowprops=pole, **where)
        ax.annotate(
            text, (place, 1.2 if upright else 1.09), ha="center", va="bottom", rotation=90 if upright else 0,
            fontsize=SMALLEST, color=ink, **where,
        )  # fmt: skip


def _effect_colours(effects: np.ndarray) -> np.ndarray:
    """Return colours (n, 3) for effects (n,) from -1 (the first class) over 0 (white) to 1 (the second)."""
    ends = np.array([COLOURS[1], COLOURS[0]])[(effects > 0).astype(int)]
    return 1 - 0.85 * np.abs(effects)[:, None] * (1 - ends)  # not the full colour: ink must stay legible on it


def _fit(text: str, ems: float, weight: str = "normal") -> str:
    """Return a line of text that the fonts can draw, □ for what they lack, shortened to a width in ems."""
    families = matplotlib.rcParams["font.family"]
    fonts = [get_font(findfont(FontProperties(family=name, weight=weight))) for name in families]
    text = " ".join(str(text).split())
    drawn = (letter if any(font.get_char_index(ord(letter)) for font in fonts) else "□" for letter in text)
    text = "".join(drawn) or " "
    while text_width(text, 72, weight) > ems:  # an em of 72 points is an inch
        text = shorten(text, max(1, 9 * len(text) // 10))
    return text


def _break_lines(widths: np.ndarray, limit: float, gap: float, start: float) -> tuple[np.ndarray, np.ndarray]:
    """Put boxes of `widths` (n,) beside each other into lines from 0, the first from `start`, to `limit`.

    Returns the line, from 0 on, and the left end of each box (n,).
    """
    lines, lefts, line, x = [], [], 0, start
    for width in widths:
        if x > 0 and x + width > limit:
            line, x = line + 1, 0
        lines.append(line)
        lefts.append(x)
        x += width + gap
    return np.array(lines), np.array(lefts)


def _cell(value) -> str:
    """Return a table's cell as text: three decimals say all that 2,000 clips can."""
    if isinstance(value, int | np.integer) and abs(value) >= 10_000:
        return f"{value:,}"
    if not isinstance(value, float | np.floating):
        return " ".join(str(value).split())  # a sentence of several lines has one row
    if np.isnan(value):
        return "–"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    if 5e-4 <= abs(value) < 0.01:  # a learning rate: 0.0015 is not 0.002
        return f"{value:.3g}"
    return f"{value:.3f}" if abs(value) >= 0.01 or value == 0 else f"{value:.1e}"
