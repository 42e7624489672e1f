"""The figures: what they say in numbers, that all of it can be read; what a FigureBook writes, and its slides."""

import base64
import io
import json
import re
import types
import warnings

import matplotlib
import nbformat
import numpy as np
import pandas as pd
import pytest
import sklearn.metrics
import soundfile
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib.font_manager import fontManager
from matplotlib.text import Text
from nbclient import NotebookClient
from PIL import Image
from pptx import Presentation
from pptx.enum.shapes import MSO_SHAPE_TYPE
from pptx.util import Pt

from shared_utils import metrics, plotting, slides
from shared_utils.plotting import FigureBook

TEN = ["chainsaw", "clock_tick", "crackling_fire", "crying_baby", "dog", "helicopter", "rain", "rooster", "sea_waves",
       "sneezing"]  # fmt: skip
FIFTY = [f"{first} {second}" for first in ("washing", "crackling", "door wood", "keyboard", "sea") for second in
         ("machine", "fire", "creaks", "typing", "waves", "birds", "bells", "clapping", "alarm", "tick")]  # fmt: skip
TIMES, FREQUENCIES = np.arange(250) * 0.02, np.geomspace(50, 8000, 64)
REFERENCES = {"human": 0.957, "EnvNet-v2 + between-class": 0.914, "EnvNet": 0.872, "chance": 0.1}


def make_evaluation(n_classes: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    targets = np.repeat(np.arange(n_classes), 8)
    scores = np.exp(rng.normal(size=(len(targets), n_classes)) + 2.5 * np.eye(n_classes)[targets])
    return targets, scores / scores.sum(1, keepdims=True)


def make_history(n_epochs: int, best: int) -> pd.DataFrame:
    epoch = np.arange(1, n_epochs + 1)
    history = pd.DataFrame({"epoch": epoch, "train_loss": 2 / epoch, "train_accuracy": 1 - 0.9 / epoch})
    history["val_loss"], history["val_accuracy"] = 0.5 + 2 / epoch, 0.8 - 0.7 / epoch
    history.loc[best - 1, "val_accuracy"] = 0.9
    return history


def make_folds(seeds: int = 3, offset: float = 0.0) -> pd.DataFrame:
    rows = [(seed, fold, 0.85 + offset + 0.02 * fold + 0.005 * seed) for seed in range(seeds) for fold in range(1, 6)]
    return pd.DataFrame(rows, columns=["seed", "fold", "test_accuracy"])


def make_fold_models(n: int) -> pd.DataFrame:
    return pd.concat([make_folds(1 + 2 * (i == 3), -0.02 * i).assign(model=f"model number {i}") for i in range(n)])


def make_differences() -> pd.DataFrame:
    rows = [("as it is", 0.03, 0.01, 0.05), ("same epochs", -0.01, -0.04, 0.02), ("wider", -0.02, -0.03, -0.01)]
    return pd.DataFrame([("AST, dendrites", *row) for row in rows], columns=["model", "minus", "mean", "low", "high"])


def make_plane() -> tuple:
    axis = np.linspace(-1, 1, 20)
    product = axis[:, None] * axis
    points = np.array([[0.5, 0.5], [-0.5, 0.5], [0.5, -0.2]])
    maps = {f"{n} sets\n{114 * n} parameters\n84 % right": 1 / (1 + np.exp(-9 * n * product)) for n in (1, 2, 3, 4)}
    return points, np.array([1, 0, 0]), maps, 1.0


def make_comparison(n_models: int = 3) -> pd.DataFrame:
    mean = np.linspace(0.5, 0.88, n_models)
    models = [f"TinyAST, variant number {number}" for number in range(n_models)]
    return pd.DataFrame({"model": models, "mean": mean, "low": mean - 0.05, "high": mean + 0.03})


def make_costs() -> pd.DataFrame:
    models = ["early transformer (6465 tokens)", "strided transformer (417 tokens)", "CRNN with attention", "GRU 1-D"]
    accuracy = np.array([0.95, 0.90, 0.967, 0.93])
    costs = {"parameters": [2.1e6, 2.4e6, 0.7e6, 0.5e6], "ms": [300, 20, 4.0, np.nan]}
    table = pd.DataFrame({"model": models, "accuracy": accuracy, **costs})
    return table.assign(low=accuracy - 0.01, high=accuracy + 0.02)


def make_stream(n_words: int = 8, seconds: int = 20) -> dict:
    times = np.arange(0.5, seconds - 0.5, 0.1)
    class_names = sorted(["yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go", "silence", "unknown"])
    probabilities = np.full((len(times), 12), 0.01)
    names = [class_names[index % 10] for index in range(n_words)]
    events = pd.DataFrame({"time": np.linspace(1, seconds - 1, n_words), "class_name": names})
    for event in events.itertuples():
        probabilities[:, class_names.index(event.class_name)] += 0.9 * np.exp(-((times - event.time) ** 2) / 0.1)
    waveform = (3000 * np.random.default_rng(0).normal(size=16_000 * seconds)).astype(np.int16)
    detections = events.assign(time=events["time"] + 0.1, probability=0.9)
    return {
        "waveform": waveform, "sample_rate": 16_000, "times": times, "probabilities": probabilities,
        "class_names": class_names, "events": events, "detections": detections, "threshold": 0.5,
    }  # fmt: skip


def make_runs(n_models: int, n_seeds: int = 10) -> tuple[pd.DataFrame, pd.DataFrame]:
    rows = [
        (f"CRNN, variant number {model}", seed, 0.93 + 0.005 * model + 0.0005 * seed)
        for model in range(n_models) for seed in range(n_seeds)
    ]  # fmt: skip
    values = pd.DataFrame(rows, columns=["model", "seed", "accuracy"])
    intervals = values.groupby("model", sort=False)["accuracy"].mean().reset_index(name="mean")
    return values, intervals.assign(low=intervals["mean"] - 0.012, high=intervals["mean"] + 0.01)


def make_signals(n_layers: int = 2) -> pd.DataFrame:
    rows = []
    for run, rate in (("Adam 1e-3", 80), ("AdamW with warm-up", 1e9)):
        for step in range(0, 400, 20):
            for layer in range(n_layers):
                rows.append((run, step, "gradient norm", 10.0 ** (-step / rate - layer), layer))
                rows.append((run, step, "attention entropy (nats)", 4 - layer / 4 - min(step / rate, 1), layer))
    return pd.DataFrame(rows, columns=["run", "step", "name", "value", "layer"])


def make_lines(n_models: int = 3) -> pd.DataFrame:
    places = [(model, snr) for model in range(n_models) for snr in (-10, -5, 0, 10, 20)]
    rows = [(snr, f"model {model}", 0.5 + snr / 50 + model / 200) for model, snr in places]
    table = pd.DataFrame(rows, columns=["snr", "model", "accuracy"])
    return table.assign(low=table["accuracy"] - 0.02, high=table["accuracy"] + 0.01)


def make_models(n_models: int, n_classes: int = 10) -> dict:
    """Models of rising skill on the same clips; the last two always answer with class 3."""
    targets, probabilities = make_evaluation(n_classes)
    one_class = np.full_like(probabilities, 0.5 / (n_classes - 1))
    one_class[:, 3] = 0.5
    flat = np.full_like(probabilities, 1 / n_classes)
    skilled = [(1 - k / n_models) * flat + k / n_models * probabilities for k in range(n_models - 2, 0, -1)]
    for k, scores in enumerate(skilled):
        skilled[k] = np.where(np.arange(len(targets))[:, None] % 9 < k, scores[::-1], scores)  # others' scores
    return {
        f"CNN + transformer, {k} heads": (targets, scores) for k, scores in enumerate([*skilled, one_class, one_class])
    }


def make_reports(models: dict, names: list[str]) -> dict:
    return {name: metrics.report(*model, names) for name, model in models.items()}


def make_matrices(models: dict) -> dict:
    return {name: metrics.confusion_matrix(*model) for name, model in models.items()}


def make_collapse(n_variants: int = 11, names: list[str] = TEN) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Every third variant answers with all classes alike, the others with one class."""
    changes = ["the reference", "learning rate 1e-4", "pre-norm instead of post-norm", "warm-up of 100 steps"]
    variants = [*changes, *(f"width {32 * n} instead of 2000" for n in range(4, n_variants))][:n_variants]
    even = np.arange(n_variants) % 3 == 2
    answers = np.where(even[:, None], 1 / len(names), np.eye(len(names))[np.arange(n_variants) % len(names)])
    numbers = {
        "accuracy": np.where(even, 0.625, 0.1), "first-layer gradient norm": np.where(even, 0.25, 3e-6),
        "attention entropy (nats)": np.where(even, 2.5, 4.852), "token similarity": np.where(even, -0.25, 0.999),
        "loss": np.where(even, 0.9, 2.303), "training accuracy": np.where(even, 1, 0.125),
    }  # fmt: skip
    return pd.DataFrame(numbers, index=variants), pd.DataFrame(answers, index=variants, columns=names)


def make_seeds(n_methods: int, n_seeds: int = 20) -> pd.DataFrame:
    """Methods of rising accuracy with falling spread, on 872 sentences, so that some seeds are equal."""
    names = ["TF-IDF + logistic regression", "plain fine-tuning", "frozen encoder + logistic regression", "LoRA"]
    rng, rows = np.random.default_rng(0), []
    for method in range(n_methods):
        right = np.round(872 * rng.normal(0.6 + 0.03 * method, 0.05 / (1 + method), n_seeds)) / 872
        name = names[method] if method < 4 else f"{names[2]}, number {method}"
        rows += [(name, seed, accuracy) for seed, accuracy in enumerate(right)]
    return pd.DataFrame(rows, columns=["method", "seed", "accuracy"])


def make_sure(n_models: int, n_classes: int, n: int = 300) -> dict:
    """Models with the same answers, each surer of them than the one before."""
    rng = np.random.default_rng(0)
    targets = rng.integers(n_classes, size=n)
    logits = rng.normal(size=(n, n_classes)) + 1.2 * np.eye(n_classes)[targets]
    scores = [np.exp(0.5 * (model + 1) * logits) for model in range(n_models)]
    return {
        f"frozen encoder + logistic head {model}": (targets, score / score.sum(1, keepdims=True))
        for model, score in enumerate(scores)
    }


def make_reviews(n_sentences: int, n_words: int) -> dict:
    text = "a gorgeous , witty movie that never talks down to its audience , for $ 5 less than the $ price it 's at !"
    rng = np.random.default_rng(0)
    words = [(2 * text.split())[start : start + n_words] for start in range(n_sentences)]
    effects = [rng.normal(0, 0.1, len(sentence)).tolist() for sentence in words]
    labels = [f"positive {90 + number} % (wrong)" for number in range(n_sentences)]
    return {"words": words, "effects": effects, "labels": labels, "class_names": ("negative", "positive")}


DB, ACCURACY = {"x_label": "Signal-to-noise ratio (dB)"}, {"y_label": "Accuracy (%)"}
COSTS = {"parameters": "Parameters", "ms": "Latency of one clip (ms)"}


def make_figures() -> dict:
    rng = np.random.default_rng(0)
    clips = pd.DataFrame([{"class_name": name, "fold": fold} for name in TEN for fold in range(1, 6) for _ in range(8)])
    many = pd.DataFrame([{"class_name": name, "split": split} for name in FIFTY for split in ("test", "train", "val")])
    specs = rng.normal(size=(10, 64, 250))
    figures = {
        "class counts": lambda: plotting.plot_class_counts(clips, title="Clips of each class"),
        "class counts 50": lambda: plotting.plot_class_counts(many, title="A title so long that the legend " * 2),
        "waveforms": lambda: plotting.plot_waveforms(rng.normal(size=(10, 4000)), 16000, TEN),
        "spectrograms": lambda: plotting.plot_spectrograms(specs, TIMES, FREQUENCIES, TEN, title="Ten sounds"),
        "one spectrogram": lambda: plotting.plot_spectrograms(specs[:1], TIMES, FREQUENCIES, ["dog"]),
        "curves": lambda: plotting.plot_learning_curves(make_history(40, 30), title="TinyAST learns"),
        "eight curves": lambda: plotting.plot_learning_curves(
            {f"11-20 12:00:0{n} N_LAYERS={n} EMBEDDING=stem": make_history(20 + n, 10 + n) for n in range(8)}
        ),
        "fold dots": lambda: plotting.plot_fold_dots(make_folds(), REFERENCES),
        "fold dots of two models": lambda: plotting.plot_fold_dots(
            pd.concat([make_folds().assign(model="TinyAST, stem"), make_folds(1, -0.1).assign(model="patches")])
        ),
        "fold rows of sixteen models": lambda: plotting.plot_fold_dots(make_fold_models(16), REFERENCES),
        "switched curves": lambda: plotting.plot_learning_curves(
            {"grown": make_history(12, 9).assign(dendrites=[0] * 6 + [1] * 6), "control": make_history(12, 7)}
        ),
        "differences": lambda: plotting.plot_differences(make_differences(), title="Three controls"),
        "comparison": lambda: plotting.plot_comparison(make_comparison(), REFERENCES, title="Three models"),
        "comparison of 14": lambda: plotting.plot_comparison(make_comparison(14), REFERENCES),
        "attention": lambda: plotting.plot_attention(specs[0], rng.random((6, 24)), TIMES, FREQUENCIES, title="dog"),
        "lines": lambda: plotting.plot_lines(
            make_lines(), "snr", "accuracy", "model", low="low", high="high", references=REFERENCES, **DB, **ACCURACY
        ),
        "thirteen lines": lambda: plotting.plot_lines(
            make_lines(13), "snr", "accuracy", "model", title="Noise", **DB, **ACCURACY
        ),
        "scatter": lambda: plotting.plot_scatter(
            make_costs(), "parameters", "accuracy", "model", x_label="Parameters", low="low", high="high", **ACCURACY
        ),
        "scatters": lambda: plotting.plot_scatter(make_costs(), COSTS, "accuracy", "model", title="Costs", **ACCURACY),
        "stream": lambda: plotting.plot_stream(**make_stream(), title="Eight words"),
        "crowded stream": lambda: plotting.plot_stream(**make_stream(45, 40), title="Forty-five words"),
        "attention over waveforms": lambda: plotting.plot_attention_over_waveform(
            rng.normal(size=(6, 4000)), 4000, rng.random((6, 51)), np.arange(51) / 51, TEN[:6], title="Six words"
        ),
        "shares": lambda: plotting.plot_shares(
            {"random windows of the same files": rng.random(400), "the folds of the archive": rng.random(400) ** 2,
             "cut in time": np.zeros(400)}, "Samples also in training (%)", title="Leaks"
        ),
        "sources of 36": lambda: plotting.plot_class_counts(
            pd.concat([many.head(108).assign(source=str(n)) for n in range(3)]), count="sources", title="Speakers"
        ),
        "runs": lambda: plotting.plot_runs(*make_runs(3), REFERENCES, title="Two questions"),
        "twelve runs": lambda: plotting.plot_runs(*make_runs(12)),
        "signals": lambda: plotting.plot_training_signals(make_signals(), title="A collapse"),
        "signals of 12 layers": lambda: plotting.plot_training_signals(make_signals(12), title="A collapse"),
        "four models' roc": lambda: plotting.plot_roc_comparison(make_models(4), title="Two of them collapsed"),
        "six models' roc": lambda: plotting.plot_roc_comparison(make_models(6, 50)),
        "four models' f1": lambda: plotting.plot_f1_comparison(make_reports(make_models(4), TEN), title="Collapsed"),
        "six models' f1": lambda: plotting.plot_f1_comparison(make_reports(make_models(6, 50), FIFTY)),
        "collapse": lambda: plotting.plot_collapse(*make_collapse(), title="One change at a time"),
        "collapse of 12": lambda: plotting.plot_collapse(*make_collapse(12, FIFTY[:12]), title="One change"),
        "collapse of 3": lambda: plotting.plot_collapse(make_collapse(3)[0].iloc[:, :3], make_collapse(3)[1]),
        "seeds": lambda: plotting.plot_seed_dots(make_seeds(7), references={"chance": 0.5, "all": 0.91}, title="S"),
        "twelve seeds": lambda: plotting.plot_seed_dots(make_seeds(12, 50), references=REFERENCES, title="A" * 40),
        "eight seeds": lambda: plotting.plot_seed_dots(make_seeds(8, 5), references=REFERENCES, title="A" * 40),
        "one strip": lambda: plotting.plot_seed_dots(make_seeds(1)),
        "reliability": lambda: plotting.plot_reliability(make_sure(3, 2), title="Surer than right"),
        "reliability of one": lambda: plotting.plot_reliability(make_sure(1, 2), n_bins=15),
        "reliability of four": lambda: plotting.plot_reliability(make_sure(4, 10), n_bins=30),
        "words": lambda: plotting.plot_word_effects(**make_reviews(3, 25), title="What each word does"),
        "one sentence": lambda: plotting.plot_word_effects(**make_reviews(1, 10)),
        "six sentences": lambda: plotting.plot_word_effects(**make_reviews(6, 15), title="What each word does"),
        "six long sentences": lambda: plotting.plot_word_effects(**make_reviews(6, 40), title="What each word does"),
        "collapse of 20 classes": lambda: plotting.plot_collapse(*make_collapse(8, FIFTY[:20]), title="A" * 40),
    }  # fmt: skip
    for n_models, names in ((2, TEN), (3, FIFTY[:12]), (4, TEN), (5, TEN), (6, TEN), (6, FIFTY)):
        figures[f"{n_models} confusions of {len(names)}"] = lambda m=n_models, n=names: (
            plotting.plot_confusion_matrices(make_matrices(make_models(m, len(n))), n, title="Mistakes")
        )
    for names in (TEN, FIFTY):
        targets, probabilities = make_evaluation(len(names))
        matrix, report = metrics.confusion_matrix(targets, probabilities), metrics.report(targets, probabilities, names)
        figures |= {
            f"confusion {len(names)}": lambda m=matrix, n=names: plotting.plot_confusion_matrix(m, n, title="Mistakes"),
            f"f1 {len(names)}": lambda r=report: plotting.plot_f1_bars(r),
            f"roc {len(names)}": lambda t=targets, p=probabilities, n=names: plotting.plot_roc_curves(t, p, n),
        }
    return figures


FIGURES = make_figures()


@pytest.mark.parametrize("name", FIGURES)
def test_every_text_is_large_enough_inside_the_figure_and_apart_from_the_others(name, monkeypatch):
    fig = FIGURES[name]()
    assert tuple(fig.get_size_inches()) == (12.8, 7.2)
    fig.text(0.992, 0.012, "everyday sounds · demo data", ha="right", va="bottom", fontsize=14)  # as FigureBook does
    drawn, draw = [], Text.draw
    monkeypatch.setattr(Text, "draw", lambda text, renderer: (drawn.append(text), draw(text, renderer)))
    fig.draw_without_rendering()
    texts = [text for text in dict.fromkeys(drawn) if text.get_visible() and text.get_text().strip()]
    assert len(texts) > 10
    for text in texts:
        box = Text.get_window_extent(text)  # an annotation's own adds its arrow
        assert text.get_fontsize() >= 14, text
        assert box.x0 > -1 and box.y0 > -1 and box.x1 < fig.bbox.width + 1 and box.y1 < fig.bbox.height + 1, text
    straight = [text for text in texts if text.get_rotation() % 90 == 0]
    boxes = [(text.get_text(), Text.get_window_extent(text).padded(-1)) for text in straight]
    for index, (text, box) in enumerate(boxes):
        overlapping = [other for other, place in boxes[index + 1 :] if box.overlaps(place)]
        assert not overlapping, f"{text!r} lies over {overlapping}"


def test_class_counts_stack_to_the_totals_with_splits_in_their_order():
    counts = {("a", "train"): 7, ("a", "test"): 2, ("b", "train"): 4, ("b", "val"): 3, ("b", "test"): 1}
    clips = pd.DataFrame([{"class_name": n, "split": s} for (n, s), count in counts.items() for _ in range(count)])
    fig = plotting.plot_class_counts(clips)
    stacks = {bars.get_label(): [bar.get_width() for bar in bars] for bars in fig.axes[0].containers}
    assert stacks == {"train": [7, 4], "val": [0, 3], "test": [2, 1]} and list(stacks) == ["train", "val", "test"]
    assert [bar.get_x() for bar in fig.axes[0].containers[2]] == [7, 7]
    assert [text.get_text() for text in fig.axes[0].texts] == ["9", "8"]


def test_waveforms_are_scaled_and_keep_their_peaks():
    waveforms = np.zeros((2, 48_000), dtype=np.int16)
    waveforms[0, 12_345] = 16_384  # one sample among 48,000: half of full scale
    fig = plotting.plot_waveforms(waveforms, 16_000, ["a", "b"])
    points = fig.axes[0].collections[0].get_paths()[0].vertices
    assert points[:, 1].max() == 0.5 and points[points[:, 1].argmax(), 0] == pytest.approx(12_345 / 16_000, abs=0.003)
    assert fig.axes[0].get_xlim() == (0, 3)


def test_spectrogram_axes_are_seconds_and_hertz_in_either_orientation():
    spec = np.random.default_rng(0).normal(size=(64, 250))
    for specs in (spec[None], spec.T[None]):
        fig = plotting.plot_spectrograms(specs, TIMES, FREQUENCIES, ["dog"])
        image, ax = fig.axes[0].images[0], fig.axes[0]
        np.testing.assert_array_equal(image.get_array(), spec)
        assert image.get_extent() == pytest.approx((-0.01, 4.99, -0.5, 63.5))
        places = dict(zip((label.get_text() for label in ax.get_yticklabels()), ax.get_yticks(), strict=True))
        assert np.interp(places["1000"], np.arange(64), FREQUENCIES) == pytest.approx(1000, rel=0.01)
        assert places["8000"] == 63
    with pytest.raises(ValueError, match="does not fit 64 frequencies and 250 times"):
        plotting.plot_spectrograms(spec[None, :, :100], TIMES, FREQUENCIES, ["dog"])
    with pytest.raises(ValueError, match="11 panels"):
        plotting.plot_spectrograms([spec] * 11, TIMES, FREQUENCIES, ["dog"] * 11)


def test_learning_curves_mark_the_best_epoch_and_skip_epochs_without_validation():
    history = make_history(20, best=8)
    history.loc[history["epoch"] % 4 != 0, ["val_loss", "val_accuracy"]] = np.nan
    loss, accuracy = plotting.plot_learning_curves(history).axes
    train, val, dot = accuracy.lines
    np.testing.assert_allclose(train.get_ydata(), 100 * history["train_accuracy"])
    assert val.get_xdata().tolist() == [4, 8, 12, 16, 20] and val.get_linestyle() == "--"
    assert (dot.get_xdata().tolist(), dot.get_ydata().tolist()) == ([8], [90])
    assert loss.lines[2].get_ydata() == history["val_loss"][7]
    assert history.attrs == {}
    history.attrs["best_epoch"] = 12  # what fit says counts
    assert plotting.plot_learning_curves(history).axes[1].lines[2].get_xdata() == [12]


def test_runs_differ_in_colour_and_training_from_validation_in_style():
    fig = plotting.plot_learning_curves({"a": make_history(9, 3), "b": make_history(5, 2)})
    lines = fig.axes[0].lines
    assert [line.get_color() for line in lines] == [plotting.COLOURS[0]] * 3 + [plotting.COLOURS[1]] * 3
    assert [line.get_linestyle() for line in lines[:2]] == ["-", "--"]
    with pytest.raises(ValueError, match="no history"):
        plotting.plot_learning_curves({})
    with pytest.raises(ValueError, match="Up to 10 curves can be told apart, not 11"):
        plotting.plot_learning_curves({str(number): make_history(3, 2) for number in range(11)})
    alike = {f"the same {'long ' * 12} beginning, {number}": make_history(3, 2) for number in range(4)}
    labels = [text.get_text() for text in plotting.plot_learning_curves(alike).legends[1].texts]
    assert len(set(labels)) == 4 and max(map(len, labels)) == 50


def test_learning_curves_without_validation():
    history = make_history(5, 2).assign(val_loss=np.nan, val_accuracy=np.nan)
    assert plotting.plot_learning_curves(history).axes[0].lines[1].get_xdata().size == 0


def test_confusion_matrix_shows_counts_over_shares_of_the_true_class():
    matrix = np.array([[6, 2, 0], [1, 3, 0], [0, 0, 0]])  # the third class does not occur
    ax = plotting.plot_confusion_matrix(matrix, ["a", "b", "c"]).axes[0]
    cells = {text.get_position(): text.get_text() for text in ax.texts}
    assert cells[(1, 0)] == "2" and cells[(0, 1)] == "1"  # x is the predicted class, y the true one
    np.testing.assert_allclose(ax.images[0].get_array(), [[75, 25, 0], [25, 75, 0], [0, 0, 0]])
    with pytest.raises(ValueError, match="2 classes"):
        plotting.plot_confusion_matrix(matrix, ["a", "b"])


def test_confusion_matrix_of_many_classes_lists_the_worst_pairs_first():
    matrix = 40 * np.eye(50, dtype=int)
    matrix[3, 7], matrix[3, 3] = 25, 15
    matrix[7, 3], matrix[7, 7] = 11, 29
    ax, side = plotting.plot_confusion_matrix(matrix, FIFTY).axes[:2]
    assert [text.get_text() for text in side.texts] == [
        "washing typing → washing clapping", "25 of 40", "washing clapping → washing typing", "11 of 40"
    ]  # fmt: skip
    assert "washing typing" in [label.get_text() for label in ax.get_yticklabels()]


@pytest.mark.parametrize("n_classes", [13, 20])
def test_long_names_in_the_list_of_confusions_stay_apart(n_classes):
    names = ["customer service by phone", "customer service by e-mail"]
    names += [f"the quality of what was sent, part {number}" for number in range(n_classes - 2)]
    matrix = 30 * np.eye(n_classes, dtype=int)
    for label in range(n_classes - 1):
        matrix[label, label + 1] = 15 - label % 9
    fig = plotting.plot_confusion_matrix(matrix, names)
    fig.draw_without_rendering()
    pairs, counts = fig.axes[1].texts[::2], fig.axes[1].texts[1::2]
    assert len(pairs) >= 4
    for pair, count in zip(pairs, counts, strict=True):
        true, predicted = pair.get_text().split("\n→ ")
        assert true != predicted
        assert pair.get_window_extent().x1 < count.get_window_extent().x0
    for first, second in zip(pairs, pairs[1:], strict=False):
        assert second.get_window_extent().y1 < first.get_window_extent().y0


def test_names_that_are_cut_stay_different():
    assert plotting._shorten_all(["abc", "abcdefghijkl", "abcdefghijkl"], 6) == ["abc", "abcde…", "abcde…"]
    assert plotting._shorten_all(["abcdefghijkl", "abcdefghijxx"], 6) == ["ab…jkl", "ab…jxx"]
    beginnings = [f"{letter * 2}{'-' * 5}{letter}{'=' * 10}" for letter in "ab"]
    assert plotting._shorten_all(beginnings, 6) == ["aa---…", "bb---…"]
    assert plotting._shorten_all(["x" * 9 + "1" + "y" * 9, "x" * 9 + "2" + "y" * 9, "z" * 20], 8) == [
        "xxx… (1)", "xxx… (2)", "zzzzzzz…",
    ]  # fmt: skip
    many = [f"the same beginning {number} and the same end" for number in range(60)]
    assert len(set(plotting._shorten_all(many, 18))) == 60
    assert max(map(len, plotting._shorten_all(many, 18))) == 18


def test_f1_bars_are_sorted_and_show_the_macro_average():
    report = metrics.report(*make_evaluation(10), TEN)
    ax = plotting.plot_f1_bars(report).axes[0]
    expected = report["f1"][TEN].sort_values(ascending=False)
    assert [bar.get_width() for bar in ax.containers[0]] == expected.tolist()
    assert ax.lines[0].get_xdata()[0] == pytest.approx(report.loc["macro average", "f1"])


def test_roc_curves_and_their_areas_equal_scikit_learn():
    targets, probabilities = make_evaluation(10)
    ax = plotting.plot_roc_curves(targets, probabilities, TEN).axes[0]
    legend = dict(reversed(text.get_text().split("  ", 1)) for text in ax.get_legend().get_texts())
    assert len(legend) == 11
    for label, name in enumerate(TEN):
        area = sklearn.metrics.roc_auc_score(targets == label, probabilities[:, label])
        assert legend[name.replace("_", " ")] == f"{area:.3f}"
    assert legend["macro average"] == f"{metrics.macro_auc(targets, probabilities):.3f}"
    macro = next(line for line in ax.lines if "macro" in str(line.get_label()))
    area = np.trapezoid(macro.get_ydata() / 100, macro.get_xdata() / 100)
    assert area == pytest.approx(metrics.macro_auc(targets, probabilities), abs=2e-3)


def test_roc_curves_of_many_classes_show_the_five_worst():
    targets, probabilities = make_evaluation(50)
    areas = metrics.auc_per_class(targets, probabilities)
    legend = plotting.plot_roc_curves(targets, probabilities, FIFTY).axes[0].get_legend()
    names = [text.get_text().split("  ", 1)[1] for text in legend.get_texts()]
    assert names == ["macro average", *(FIFTY[label] for label in np.argsort(areas)[:5])]
    assert "five worst of 50" in legend.get_title().get_text()


def test_fold_dots_state_mean_and_both_deviations():
    folds = make_folds()
    fig = plotting.plot_fold_dots(folds, {"human": 0.957})
    ax = fig.axes[0]
    dots = [line for line in ax.lines if line.get_marker() == "o"]
    np.testing.assert_allclose(np.concatenate([line.get_ydata() for line in dots]), 100 * folds["test_accuracy"])
    lines = [text.get_text() for text in ax.texts]
    accuracy = folds["test_accuracy"].to_numpy().reshape(3, 5)
    assert f"mean {100 * accuracy.mean():.1f} %" in lines[0]
    assert f"sd {100 * accuracy.mean(0).std(ddof=1):.1f} over folds" in lines[0]
    assert f"sd {100 * accuracy.mean(1).std(ddof=1):.1f} over seeds" in lines[0]
    assert lines[1] == "human 95.7 %" and 95.7 in [line.get_ydata()[0] for line in ax.lines]


def test_sentences_are_counted_as_such_and_nothing_is_not():
    table = pd.DataFrame({"class_name": ["a", "b", "b"]})
    fig = plotting.plot_class_counts(table, count="sentences")
    assert fig.axes[0].get_xlabel() == "Number of sentences"
    with pytest.raises(ValueError, match="the table has no row"):
        plotting.plot_class_counts(table.head(0))


def test_long_class_names_leave_room_for_the_matrix():
    counts = np.random.default_rng(0).integers(0, 9, (10, 10))
    for names in ([f"{i:02d} " + "x" * 60 for i in range(10)], ["x" * 60 + f" {i:02d}" for i in range(10)]):
        for fig in (
            plotting.plot_confusion_matrix(counts, names),
            plotting.plot_confusion_matrices({"a": counts, "b": counts}, names),
        ):
            fig.draw_without_rendering()
            box, labels = fig.axes[0].get_position(), [label.get_text() for label in fig.axes[0].get_yticklabels()]
            assert box.height > 0.4 and box.width > 0.25
            assert len(set(labels)) == 10 and max(map(len, labels)) <= 24


def test_curves_leave_out_what_is_no_history(capsys):
    broken = {"old": pd.DataFrame({"epoch": [1], "loss": [2.0]}), "stopped": make_history(3, 1).head(0)}
    fig = plotting.plot_learning_curves(broken | {"good": make_history(1, 1)})
    told = capsys.readouterr().out.splitlines()
    assert told == [
        "Left out: old: its history lacks train_loss, train_accuracy, val_loss, val_accuracy",
        "Left out: stopped: no epoch of it has ended",
    ]
    fig.draw_without_rendering()
    low, high = fig.axes[0].get_xlim()
    assert [tick for tick in fig.axes[0].get_xticks() if low <= tick <= high] == [1]
    for nothing in (broken, pd.DataFrame()):
        with pytest.raises(ValueError, match="There is no history to draw"):
            plotting.plot_learning_curves(nothing)


def test_a_fold_that_more_seeds_have_visited_weighs_no_more():
    folds = make_folds(1)
    more = folds.head(1).assign(seed=1, test_accuracy=0.5)
    label = plotting.plot_fold_dots(pd.concat([folds, more])).axes[0].texts[0].get_text()
    accuracy = folds["test_accuracy"].to_numpy(copy=True)
    accuracy[0] = (accuracy[0] + 0.5) / 2
    assert label == f"mean {100 * accuracy.mean():.1f} %\nsd {100 * accuracy.std(ddof=1):.1f} over folds"


def test_more_than_five_models_have_a_row_each():
    folds = make_fold_models(6)
    ax = plotting.plot_fold_dots(folds, {"human": 0.957}).axes[0]
    assert [label.get_text() for label in ax.get_yticklabels()] == [f"model number {i}" for i in range(6)]
    dots = [line for line in ax.lines if line.get_marker() == "o"]
    drawn = np.sort(np.concatenate([line.get_xdata() for line in dots]))
    np.testing.assert_allclose(drawn, np.sort(100 * folds["test_accuracy"]))
    for line in dots:  # in the row of its model, in the colour of its fold
        row, fold = round(line.get_ydata()[0]), 1 + plotting.COLOURS.index(line.get_color())
        expected = folds[(folds["model"] == f"model number {row}") & (folds["fold"] == fold)]["test_accuracy"]
        np.testing.assert_allclose(np.sort(line.get_xdata()), np.sort(100 * expected))
    assert ax.get_xlabel() == "Accuracy on the test fold (%); line: mean, ± over folds"
    one = folds[folds["model"] == "model number 2"]["test_accuracy"]
    assert ax.texts[2].get_text() == f"{100 * one.mean():.1f} % ± {100 * one.std(ddof=1):.1f}"


def test_dendrites_are_a_line_where_they_are_added():
    history = make_history(12, best=9).assign(dendrites=[0] * 5 + [1] * 4 + [0] * 3)
    for ax in plotting.plot_learning_curves(history).axes:
        assert [line.get_xdata()[0] for line in ax.lines if line.get_linestyle() == ":"] == [5.5]


def test_differences_are_grey_where_they_may_be_chance():
    ax = plotting.plot_differences(make_differences()).axes[0]
    dots = [line for line in ax.lines if line.get_marker() == "o"]
    assert [line.get_xdata()[0] for line in dots] == pytest.approx([3, -1, -2])
    assert [line.get_color() for line in dots] == [plotting.COLOURS[0], plotting.GREY, plotting.COLOURS[0]]
    assert [text.get_text() for text in ax.texts] == ["+3.0\n+1.0 to +5.0", "-1.0\n-4.0 to +2.0", "-2.0\n-3.0 to -1.0"]
    ends = [segment[:, 0].tolist() for bars in ax.collections for segment in bars.get_segments()]
    assert ends == [pytest.approx(pair) for pair in ([1, 5], [-4, 2], [-3, -1])]


def test_boundaries_lie_where_the_maps_say():
    points, targets, maps, reach = make_plane()
    axes = plotting.plot_boundaries(points, targets, maps, reach).axes
    assert [ax.get_title("left") for ax in axes] == list(maps)
    image = axes[0].images[0]
    assert image.get_extent() == [-1, 1, -1, 1] and image.origin == "lower"
    assert image.get_array()[-1, -1] > 0.9 > 0.1 > image.get_array()[-1, 0]  # class 1 at the upper right
    drawn = [line.get_xydata().tolist() for line in axes[0].lines]
    assert drawn == [points[targets == 0].tolist(), points[targets == 1].tolist()]
    with pytest.raises(ValueError, match="one to four panels"):
        plotting.plot_boundaries(points, targets, maps | {"fifth": maps[next(iter(maps))]}, reach)


def test_comparison_bars_whiskers_and_references():
    table = make_comparison()
    table.loc[0, ["low", "high"]] = np.nan
    ax = plotting.plot_comparison(table, REFERENCES).axes[0]
    assert [bar.get_width() for bar in ax.containers[0]] == pytest.approx((100 * table["mean"]).tolist())
    whiskers = [segment[:, 0] for segment in ax.collections[0].get_segments()]
    np.testing.assert_allclose(whiskers, 100 * table.loc[1:, ["low", "high"]])
    assert {line.get_xdata()[0] for line in ax.lines if line.get_linestyle() == "--"} >= {95.7, 91.4, 87.2, 10.0}
    with pytest.raises(ValueError, match="low <= mean"):
        plotting.plot_comparison(table.assign(low=0.9))


@pytest.mark.parametrize("attention", [np.array([[1.0, 2, 3], [0, 0, 6]]), np.array([1.0, 2, 6])])
def test_attention_covers_the_spectrogram_relative_to_its_mean(attention):
    fig = plotting.plot_attention(np.zeros((64, 250)), attention, TIMES, FREQUENCIES)
    spec, heat = fig.axes[1].images
    assert heat.get_extent() == spec.get_extent()
    np.testing.assert_allclose(heat.get_array(), np.atleast_2d(attention) / attention.mean())


def lines_of(ax, marker: str) -> list:
    return [line for line in ax.lines if line.get_marker() == marker]


def test_class_counts_of_sources_count_each_speaker_once_a_class_and_side():
    clips = pd.DataFrame({
        "class_name": ["a"] * 5 + ["b"] * 3, "split": ["train"] * 4 + ["test"] + ["train"] * 3,
        "source": ["s1", "s1", "s2", "s2", "s3", "s1", "s1", "s1"],
    })  # fmt: skip
    fig = plotting.plot_class_counts(clips, count="sources")
    stacks = {bars.get_label(): [bar.get_width() for bar in bars] for bars in fig.axes[0].containers}
    assert stacks == {"train": [2, 1], "test": [1, 0]}
    assert [text.get_text() for text in fig.axes[0].texts] == ["3", "1"]
    assert fig.axes[0].get_xlabel() == "Number of sources"
    assert len(clips) == 8
    fig = plotting.plot_class_counts(clips, count="sources", source_name="speakers")
    assert fig.axes[0].get_xlabel() == "Number of speakers"
    fig = plotting.plot_class_counts(clips, source_name="speakers")
    assert fig.axes[0].get_xlabel() == "Number of clips"
    with pytest.raises(ValueError, match="'speakers'"):
        plotting.plot_class_counts(clips, count="speakers")


def test_lines_are_sorted_in_percent_with_bands_and_references():
    table = make_lines(2).sample(frac=1, random_state=0)
    ax = plotting.plot_lines(
        table, "snr", "accuracy", "model", low="low", high="high", references={"chance": 0.083}, **DB, **ACCURACY
    ).axes[0]
    drawn = {line.get_color(): line for line in lines_of(ax, "o")}
    for index, name in enumerate(dict.fromkeys(table["model"])):
        rows = table[table["model"] == name].sort_values("snr")
        line, band = drawn[plotting.COLOURS[index]], ax.collections[index].get_paths()[0].vertices
        assert line.get_xdata().tolist() == [-10, -5, 0, 10, 20]
        np.testing.assert_allclose(line.get_ydata(), 100 * rows["accuracy"])
        assert band[:, 1].min() == pytest.approx(100 * rows["low"].min())
        assert band[:, 1].max() == pytest.approx(100 * rows["high"].max())
    assert 8.3 in [line.get_ydata()[0] for line in ax.lines]
    assert [text.get_text() for text in ax.texts] == ["chance 8.3 %"]
    assert ax.get_xticks().tolist() == [-10, -5, 0, 10, 20]


def test_lines_on_a_logarithmic_axis_have_few_plain_ticks_and_names_at_their_height():
    steps = np.arange(200)
    table = pd.DataFrame({"step": steps, "norm": 10.0 ** (-steps / 40), "run": "collapse"})
    labels = {"x_label": "Step", "y_label": "Gradient norm"}
    fig = plotting.plot_lines(table, "step", "norm", "run", **labels, log_y=True, references={"clipped at": 1.0})
    fig.draw_without_rendering()
    ax = fig.axes[0]
    ticks = {label.get_text(): value for label, value in zip(ax.get_yticklabels(), ax.get_yticks(), strict=True)}
    assert ax.get_yscale() == "log" and ticks["10⁻⁴"] == pytest.approx(1e-4) and ticks["0.01"] == pytest.approx(0.01)
    assert 3 <= len(ticks) <= 8 and not lines_of(ax, "o")
    (label,) = ax.texts
    line = ax.transAxes.inverted().transform(ax.transData.transform((0, 1.0)))[1]
    assert label.get_text() == "clipped at 1" and label.xyann[1] == pytest.approx(line, abs=0.02)


def test_a_font_of_the_system_draws_what_the_usual_one_lacks(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(fontManager, "ttflist", [font for font in fontManager.ttflist if font.name == "DejaVu Sans"])
    assert plotting._font_families() == ["DejaVu Sans"]
    pen = TTGlyphPen(None)
    for x, y in [(0, 0), (0, 700), (700, 700), (700, 0)]:
        (pen.lineTo if x or y else pen.moveTo)((x, y))
    pen.closePath()
    for weight in (400, 700):
        assert plotting._font_families() == ["DejaVu Sans"]  # until there is a bold one
        font = FontBuilder(1000, isTTF=True)
        font.setupGlyphOrder([".notdef", "day"])
        font.setupCharacterMap({ord("日"): "day"})
        font.setupGlyf({".notdef": TTGlyphPen(None).glyph(), "day": pen.glyph()})
        font.setupHorizontalMetrics({".notdef": (1000, 0), "day": (1000, 0)})
        font.setupHorizontalHeader(ascent=800, descent=-200)
        font.setupNameTable({"familyName": "Noto Sans CJK JP", "styleName": {400: "Regular", 700: "Bold"}[weight]})
        font.setupOS2(usWeightClass=weight, sTypoAscender=800, sTypoDescender=-200)
        font.setupPost()
        font.save(tmp_path / f"{weight}.ttf")
        fontManager.addfont(tmp_path / f"{weight}.ttf")
    monkeypatch.setitem(plotting.STYLE, "font.family", plotting._font_families())
    assert plotting.STYLE["font.family"] == ["DejaVu Sans", "Noto Sans CJK JP"]
    clips = pd.DataFrame({"class_name": ["日日日", "dog"]})
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib's, of letters that it lacks
        words = plotting.plot_word_effects([["日", "本"]], [[0.1] * 2], ["日"], ("bad", "good"), title="日")
        for kind in ("png", "svg", "pdf"):
            words.savefig(io.BytesIO(), format=kind)
            plotting.plot_class_counts(clips, title="日").savefig(io.BytesIO(), format=kind)
    assert [word.get_text() for word, _ in boxes_of(words.axes[0])] == ["日", "□"]
    assert not caplog.records


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table.assign(accuracy=100 * table["accuracy"]), "no share of 1; give 0.95 for 95 %"),
        (lambda table: pd.concat([table, table.head(1)]), "'model 0' has two rows with snr -10"),
        (lambda table: table.drop(columns="snr"), "no column snr; it has model"),
        (lambda table: table.assign(snr=np.inf), "snr holds an infinite value"),
        (lambda table: table.assign(snr=table["snr"].astype(str)), "snr must hold numbers"),
        (lambda table: table.head(0), "no rows"),
    ],
)
def test_lines_refuse_bad_tables(change, message):
    with pytest.raises(ValueError, match=message):
        plotting.plot_lines(change(make_lines()), "snr", "accuracy", "model", **DB, **ACCURACY)


def test_a_logarithmic_axis_refuses_what_has_no_place_on_it():
    with pytest.raises(ValueError, match="no place for snr -10"):
        plotting.plot_lines(make_lines(), "snr", "accuracy", "model", log_x=True, **DB, **ACCURACY)
    with pytest.raises(ValueError, match="no place for parameters 0"):
        plotting.plot_scatter(make_costs().assign(parameters=0), "parameters", "accuracy", "model", **ACCURACY)


def test_scatter_names_dots_beside_them_and_draws_whiskers():
    table = make_costs()
    fig = plotting.plot_scatter(table, "parameters", "accuracy", "model", low="low", high="high", **ACCURACY)
    ax = fig.axes[0]
    dots = np.array([(line.get_xdata()[0], line.get_ydata()[0]) for line in lines_of(ax, "o")])
    np.testing.assert_allclose(dots, np.column_stack([table["parameters"], 100 * table["accuracy"]]))
    whiskers = [line.get_ydata() for line in ax.lines if line.get_marker() == "None"]
    np.testing.assert_allclose(whiskers, 100 * table[["low", "high"]])
    assert [text.get_text() for text in ax.texts] == table["model"].tolist()
    np.testing.assert_allclose([text.xy for text in ax.texts], dots)
    assert not fig.legends and ax.get_xscale() == "log"


def test_scatter_gives_numbers_to_dots_that_lie_too_close_for_names():
    close = pd.DataFrame({"model": [f"a transformer with a long name, number {n}" for n in range(12)], "seconds": 1.0})
    close["accuracy"] = 0.9 + 1e-4 * np.arange(12)
    close.loc[12] = ["logistic regression", 2.0, 0.5]
    fig = plotting.plot_scatter(close, "seconds", "accuracy", "model", **ACCURACY)
    assert [text.get_text() for text in fig.axes[0].texts] == [str(number) for number in range(1, 14)]
    assert fig.legends[0].get_texts()[12].get_text() == "13  logistic regression"


def test_scatters_share_their_numbers_and_leave_out_unknown_costs():
    fig = plotting.plot_scatter(make_costs(), COSTS, "accuracy", "model", **ACCURACY)
    left, right = fig.axes
    assert [text.get_text() for text in left.texts] == ["1", "2", "3", "4"]
    assert [text.get_text() for text in right.texts] == ["1", "2", "3"] and len(lines_of(right, "o")) == 3
    assert [line.get_color() for line in lines_of(right, "o")] == list(plotting.COLOURS[:3])
    assert fig.legends[0].get_texts()[2].get_text() == "3  CRNN with attention"
    assert left.get_ylim() == right.get_ylim() and right.get_xlabel() == "Latency of one clip (ms)"
    with pytest.raises(ValueError, match="not 5"):
        plotting.plot_scatter(make_costs(), dict.fromkeys("abcde", ""), "accuracy", "model", **ACCURACY)


def test_stream_marks_hits_false_alarms_and_missed_words():
    stream = make_stream(3, 10)  # down at 1, go at 5, left at 9
    stream["detections"] = pd.DataFrame(
        [(1.6, "down", 0.8), (1.2, "down", 0.7), (5.1, "left", 0.9), (9.8, "left", 0.6)],
        columns=["time", "class_name", "probability"],
    )
    fig = plotting.plot_stream(**stream)
    top, bottom = fig.axes
    hits = [(line.get_xdata()[0], line.get_ydata()[0]) for line in lines_of(bottom, "o")]
    alarms = [(line.get_xdata()[0], line.get_ydata()[0]) for line in lines_of(bottom, "X")]
    assert hits == [(1.2, 70)]  # the earlier of two; 9.8 is 0.8 s late
    score = metrics.score_detections(stream["detections"], stream["events"], duration=10)
    assert (score["hits"], score["false_alarms"]) == (len(hits), len(alarms))
    assert alarms == [(1.6, 80), (5.1, 90), (9.8, 60)]
    words = {line.get_xdata()[0]: line.get_markerfacecolor() for line in lines_of(top, "v")}
    colours = dict(zip(("down", "go", "left"), plotting.COLOURS, strict=False))
    assert words == {1.0: colours["down"], 5.0: "white", 9.0: "white"}
    assert [text.get_text() for text in top.texts if text.get_text()] == ["down", "go", "left"]
    legend = [text.get_text() for text in fig.legends[0].get_texts()]
    assert legend == ["hit", "false alarm", "threshold", "missed word"]
    curves = {line.get_color() for line in bottom.lines if len(line.get_xdata()) == 90}
    assert curves == {*colours.values(), plotting.PALE}
    np.testing.assert_allclose(bottom.lines[0].get_ydata(), 100 * stream["probabilities"][:, 0])
    assert bottom.get_xlim() == (0, 10) and top.collections[0].get_paths()[0].vertices[:, 1].max() < 1


def test_words_that_are_no_commands_are_grey_and_never_missed():
    stream = make_stream(3, 10)  # down at 1, go at 5, left at 9
    stream["events"].loc[1, "class_name"] = "unknown"
    stream["detections"] = stream["detections"].head(1)
    fig = plotting.plot_stream(**stream)
    top = fig.axes[0]
    faces = {line.get_xdata()[0]: line.get_markerfacecolor() for line in lines_of(top, "v")}
    assert faces == {1.0: plotting.COLOURS[0], 5.0: plotting.PALE, 9.0: "white"}
    written = {text.get_text(): text.get_color() for text in top.texts if text.get_text()}
    assert written == {"down": plotting.INK, "unknown": plotting.GREY, "left": plotting.INK}
    assert "missed word" in [text.get_text() for text in fig.legends[0].get_texts()]
    stream["events"] = stream["events"].head(2)
    fig = plotting.plot_stream(**stream)
    assert "missed word" not in [text.get_text() for text in fig.legends[0].get_texts()]


def test_the_tolerance_of_a_stream_says_what_hits():
    stream = make_stream(3, 10)  # every word is heard 0.1 s later
    for tolerance, n_hits in ((0.2, 3), (0.05, 0)):
        fig = plotting.plot_stream(**stream, tolerance=tolerance)
        assert (len(lines_of(fig.axes[1], "o")), len(lines_of(fig.axes[1], "X"))) == (n_hits, 3 - n_hits)


def test_a_figure_of_ones_own_has_the_style_of_the_others():
    before = dict(matplotlib.rcParams)
    with plotting.new_figure("Lengths") as fig:
        ax = fig.subplots()
        ax.set_xlabel("Length (s)")
    assert dict(matplotlib.rcParams) == before
    theirs = plotting.plot_f1_bars(pd.DataFrame({"f1": [0.5]}, index=["a"]), "Lengths")
    assert type(fig) is type(theirs) and fig.get_suptitle() == "Lengths"
    np.testing.assert_array_equal(fig.get_size_inches(), theirs.get_size_inches())
    for mine, other in ((ax.xaxis.label, theirs.axes[0].xaxis.label), (fig._suptitle, theirs._suptitle)):
        assert (mine.get_fontsize(), mine.get_color()) == (other.get_fontsize(), other.get_color())
    assert ax.xaxis.label.get_fontsize() != before["font.size"] and not ax.spines["top"].get_visible()


def test_stream_believes_a_column_that_says_what_hit():
    stream = make_stream(3, 10)
    stream["detections"]["hit"] = [True, False, True]
    assert [line.get_xdata()[0] for line in lines_of(plotting.plot_stream(**stream).axes[1], "X")] == [5.1]


def test_words_of_a_stream_stand_upright_where_they_would_overlap():
    few, many = (plotting.plot_stream(**make_stream(n_words, 20)).axes[0].texts for n_words in (6, 30))
    assert {text.get_rotation() for text in few} == {0}
    assert {text.get_rotation() for text in many if text.get_text()} == {90}


def test_stream_refuses_what_does_not_fit():
    stream = make_stream()
    late = stream["events"].assign(time=30.0)
    for change, message in (
        ({"times": stream["times"][:5]}, "do not fit 5 times and 12 classes"),
        ({"events": late}, "events hold the time 30 s, outside a recording of 20 s"),
        ({"events": stream["events"].assign(class_name="cat")}, "'cat', which is not among"),
        ({"events": pd.concat([stream["events"]] * 6)}, "48 words"),
        ({"detections": stream["events"]}, "no column probability"),
    ):
        with pytest.raises(ValueError, match=message):
            plotting.plot_stream(**stream | change)


def test_attention_over_waveforms_is_relative_to_uniform():
    attention = np.array([[1.0, 1, 2], [0, 3, 0]])
    fig = plotting.plot_attention_over_waveform(
        np.full((2, 300), 16_384, dtype=np.int16), 100, attention, [0.5, 1.5, 2.5], ["a", "b"]
    )
    first, second, *sides = fig.axes
    assert [side.lines[0].get_ydata().tolist() for side in sides] == [[0.75, 0.75, 1.5], [0, 3, 0]]
    assert sides[0].lines[0].get_xdata().tolist() == [0.5, 1.5, 2.5]
    assert all(side.lines[1].get_ydata()[0] == 1 for side in sides)
    assert sides[0].get_ylim() == sides[1].get_ylim() and sides[0].get_ylim()[1] > 3 and first.get_xlim() == (0, 3)
    waveforms = np.ones((2, 300))
    for weights, message in ((attention.T, "does not fit 2 waveforms and 3 times"), (attention * 0, "not all zero")):
        with pytest.raises(ValueError, match=message):
            plotting.plot_attention_over_waveform(waveforms, 100, weights, [0.5, 1.5, 2.5], ["a", "b"])
    with pytest.raises(ValueError, match="not 7"):
        plotting.plot_attention_over_waveform(np.ones((7, 300)), 100, np.ones((7, 3)), [0, 1, 2], TEN[:7])


def test_shares_keep_zero_apart_from_the_first_bar():
    usual = np.array([0.0, 1e-6, 0.05, 0.0500001, 0.15, 1.0, 1.0, 1.0])
    left, right = plotting.plot_shares({"usual": usual, "ours": np.zeros(5)}, "Samples also in training (%)").axes
    zero, bars = left.containers
    assert [bar.get_height() for bar in zero] == [12.5]
    heights = {round(bar.get_x()): bar.get_height() for bar in bars if bar.get_height()}
    assert heights == {0: 25, 5: 12.5, 10: 12.5, 95: 37.5}
    assert [bar.get_height() for bar in right.containers[0]] == [100] and left.get_ylim()[1] > 100
    assert left.get_title(loc="left") == f"usual\n8 clips, 87.5 % above 0\nmean {100 * usual.mean():.1f} %"
    for bad in ({"usual": [1.2]}, {"usual": []}, {"usual": [np.nan]}):
        with pytest.raises(ValueError, match="'usual' must be numbers from 0 to 1"):
            plotting.plot_shares(bad, "Share (%)")
    with pytest.raises(ValueError, match="not 4"):
        plotting.plot_shares(dict.fromkeys("abcd", [0.5]), "Share (%)")


def test_runs_show_their_spread_and_beside_it_the_interval_over_speakers():
    values, intervals = make_runs(2)
    fig = plotting.plot_runs(values, intervals, {"first try": 0.958})
    ax = fig.axes[0]
    strips = lines_of(ax, "o")
    for index, rows in enumerate(accuracy for _, accuracy in values.groupby("model")["accuracy"]):
        np.testing.assert_allclose(strips[index].get_xdata(), 100 * rows)
        assert (strips[index].get_ydata() < index).all() and (strips[index].get_ydata() > index - 0.5).all()
    bars = [container[2][0].get_segments()[0][:, 0] for container in ax.containers]
    accuracy = 100 * values["accuracy"].to_numpy().reshape(2, 10)
    mean, sd = accuracy.mean(1), accuracy.std(1, ddof=1)
    np.testing.assert_allclose(bars[::2], np.column_stack([mean - sd, mean + sd]))
    np.testing.assert_allclose(bars[1::2], 100 * intervals[["low", "high"]])
    texts = [text.get_text() for text in ax.texts]
    assert f"{mean[0]:.1f} ± {sd[0]:.1f} (10 runs)" in texts and "93.2, 92.0 to 94.2" in texts
    assert "first try 95.8 %" in texts and ax.get_xlim()[0] < 92.0 and ax.get_xlim()[1] > 95.8
    assert [text.get_text().split(":")[0] for text in fig.legends[0].get_texts()] == [
        "one run", "mean ± sd", "95 % interval"
    ]  # fmt: skip


def test_the_whiskers_of_two_runs_end_inside_the_axes():
    values = pd.DataFrame({"model": ["a", "a", "b", "b"], "seed": [0, 1, 0, 1], "accuracy": [0.5, 0.6, 0.55, 0.56]})
    low, high = plotting.plot_runs(values).axes[0].get_xlim()
    assert low < 55 - np.std([50, 60], ddof=1) and high > 55 + np.std([50, 60], ddof=1)


@pytest.mark.parametrize(
    ("value", "text"),
    [(1e-4, "10⁻⁴"), (1.5e-4, "1.5·10⁻⁴"), (2.5e-4, "2.5·10⁻⁴"), (9.6e-7, "9.6·10⁻⁷"), (0.0015, "0.0015")],
)
def test_a_tick_says_its_own_value(value, text):
    assert plotting._tick(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0015, "0.0015"), (5e-4, "0.0005"), (0.001, "0.001"), (1e-5, "1.0e-05"), (0.8125, "0.812"), (0.0, "0.000")],
)
def test_a_learning_rate_in_a_table_stays_what_it_is(value, text):
    assert plotting._cell(value) == text


def test_runs_without_interval_and_bad_ones():
    values, intervals = make_runs(2)
    ax = plotting.plot_runs(values[values["seed"] == 0]).axes[0]
    assert not ax.containers and [text.get_text() for text in ax.texts] == ["93.0 (1 run)", "93.5 (1 run)"]
    for arguments, message in (
        ((values, intervals.assign(low=0.99)), "low <= mean <= high"),
        ((values, intervals.assign(model="other")), "interval of 'other' but no run"),
        ((values.assign(seed=1),), "two runs with seed 1"),
        ((values.assign(accuracy=95.0),), "no share of 1"),
    ):
        with pytest.raises(ValueError, match=message):
            plotting.plot_runs(*arguments)


def test_training_signals_put_runs_side_by_side_and_gradients_on_a_logarithmic_axis():
    signals = make_signals()
    last = (signals["step"] == 380) & (signals["run"] == "Adam 1e-3") & (signals["name"] == "gradient norm")
    signals.loc[last, "value"] = 0
    fig = plotting.plot_training_signals(signals.sample(frac=1, random_state=1).sort_values(["run", "name", "layer"]))
    names = {"attention entropy (nats)": fig.axes[:2], "gradient norm": fig.axes[2:]}
    for name, axes in names.items():
        assert axes[0].get_ylim() == axes[1].get_ylim()
        for run, ax in zip(("Adam 1e-3", "AdamW with warm-up"), axes, strict=True):
            rows = signals[(signals["run"] == run) & (signals["name"] == name) & (signals["layer"] == 1)]
            assert ax.lines[1].get_xdata().tolist() == list(range(0, 400, 20))
            np.testing.assert_allclose(ax.lines[1].get_ydata(), rows["value"])
            assert ax.get_yscale() == ("log" if name == "gradient norm" else "linear")
    assert names["gradient norm"][0].get_ylim()[0] == pytest.approx(10 ** (-360 / 80 - 1) / 1.5)
    assert [ax.get_title(loc="left") for ax in fig.axes[:2]] == ["Adam 1e-3", "AdamW with warm-up"]
    assert fig.axes[0].get_ylabel().replace("\n", " ") == "Attention entropy (nats)"
    assert [text.get_text() for text in fig.legends[0].get_texts()] == ["layer 0", "layer 1"]
    with pytest.raises(ValueError, match="no column layer"):
        plotting.plot_training_signals(signals.drop(columns="layer"))
    with pytest.raises(ValueError, match="not 4 and 1"):
        one = signals[signals["name"] == "gradient norm"]
        plotting.plot_training_signals(pd.concat([one.assign(run=run) for run in "abcd"]))


def test_roc_comparison_states_the_macro_area_and_draws_the_mean_curve():
    models = make_models(4)
    targets, probabilities = models["CNN + transformer, 1 heads"]
    ax = plotting.plot_roc_comparison(models).axes[0]
    legend = ax.get_legend()
    assert [text.get_text() for text in legend.get_texts()] == [
        *(f"{metrics.macro_auc(*model):.3f}  {name}" for name, model in models.items()), "0.500  chance"
    ]  # fmt: skip
    drawn = {line.get_color(): line for line in ax.lines if len(line.get_xdata()) == 1001}
    assert list(drawn) == list(plotting.COLOURS[:4])
    x, y = (values / 100 for values in drawn[plotting.COLOURS[1]].get_data())
    assert np.trapezoid(y, x) == pytest.approx(metrics.macro_auc(targets, probabilities), abs=2e-3)
    curves = [sklearn.metrics.roc_curve(targets == label, probabilities[:, label]) for label in range(10)]
    at = np.searchsorted(x, 0.2505)  # between the steps of 1/72, where a curve has one height
    highs = [hits[np.flatnonzero(alarms <= x[at])[-1]] for alarms, hits, _ in curves]
    assert 0.5 < y[at] < 1 and y[at] == pytest.approx(np.mean(highs), abs=0.02)
    twins = [drawn[colour] for colour in plotting.COLOURS[2:4]]
    for line in twins:  # both collapsed models lie on the diagonal
        np.testing.assert_allclose(line.get_ydata(), line.get_xdata())
    assert drawn[plotting.COLOURS[0]].get_linestyle() == "-" and {line.get_linestyle() for line in twins} == {"--"}
    assert len({line._dash_pattern[0] for line in twins}) == 2


def test_roc_comparison_refuses_models_that_cannot_be_compared():
    models, targets = make_models(3), np.repeat(np.arange(10), 8)
    probabilities = models["CNN + transformer, 0 heads"][1]
    for name, model, message in (
        ("other", (np.minimum(targets, 8), probabilities), "Class 9 is in the targets of one of 'CNN .*' and 'other'"),
        ("other", make_evaluation(12), "has 10 classes and 'other' 12"),
        ("alike", (np.zeros(80, dtype=int), probabilities), "'alike' has no ROC curve: .*the same class"),
        ("short", (targets[:70], probabilities), r"'short' has no ROC curve: .*\(70,\) and \(80, 10\)"),
        ("logits", (targets, 2 * probabilities), "'logits' has no ROC curve: .*do not sum to 1"),
    ):
        with pytest.raises(ValueError, match=message):
            plotting.plot_roc_comparison(models | {name: model})
    for wrong in ({}, {str(n): models["CNN + transformer, 0 heads"] for n in range(7)}):
        with pytest.raises(ValueError, match=f"From 1 to 6 models have room in this figure, not {len(wrong)}"):
            plotting.plot_roc_comparison(wrong)


def test_f1_comparison_sorts_by_the_mean_and_keeps_equal_dots_apart():
    reports = make_reports(make_models(4), TEN)
    fig = plotting.plot_f1_comparison({name: report[::-1] for name, report in reports.items()})
    ax = fig.axes[0]
    scores = pd.DataFrame({name: report["f1"][TEN] for name, report in reports.items()})
    names = [label.get_text().replace(" ", "_") for label in ax.get_yticklabels()]
    means = scores.loc[names].mean(axis=1)
    assert set(names) == set(TEN) and means.is_monotonic_decreasing and means.iloc[0] > means.iloc[-1]
    dots = lines_of(ax, "o")
    assert [line.get_color() for line in dots] == list(plotting.COLOURS[:4])
    for line, name in zip(dots, reports, strict=True):
        np.testing.assert_allclose(line.get_xdata(), scores.loc[names, name])
    assert [text.get_text() for text in fig.legends[0].get_texts()] == [
        f"{name}: macro F1 {report.loc['macro average', 'f1']:.2f}" for name, report in reports.items()
    ]
    ends = np.array([segment[:, 0] for segment in ax.collections[0].get_segments()])
    np.testing.assert_allclose(ends, np.column_stack([scores.loc[names].min(axis=1), scores.loc[names].max(axis=1)]))
    rows = np.arange(10)
    assert (dots[2].get_ydata() < dots[3].get_ydata() - 0.2).all()  # the collapsed two are equal everywhere
    assert all((np.abs(line.get_ydata() - rows) < 0.45).all() for line in dots)
    alone = plotting.plot_f1_comparison({"one": reports["CNN + transformer, 0 heads"]}).axes[0]
    np.testing.assert_array_equal(lines_of(alone, "o")[0].get_ydata(), rows)


def test_f1_comparison_refuses_reports_of_different_classes():
    report = make_reports(make_models(3), TEN)["CNN + transformer, 0 heads"]
    for other, message in (
        (report.drop(index="dog"), "Class 'dog' must stand once in the report of 'a' and in that of 'b'"),
        (pd.concat([report, report.loc[["rain"]]]), "Class 'rain' must stand once"),
        (report.assign(f1=100 * report["f1"]), "F1 score of 'chainsaw' by 'b' is .* not between 0 and 1"),
        (report.assign(f1=np.nan), "by 'b' is nan, not between 0 and 1"),
        (report.drop(columns="f1"), "report of 'b' has no column f1"),
    ):
        with pytest.raises(ValueError, match=message):
            plotting.plot_f1_comparison({"a": report, "b": other})
    many = pd.DataFrame({"f1": np.full(51, 0.5)}, index=[f"class {n}" for n in range(51)])
    with pytest.raises(ValueError, match="not 51"):
        plotting.plot_f1_comparison({"a": many})
    with pytest.raises(ValueError, match="From 1 to 6 models .* not 7"):
        plotting.plot_f1_comparison({str(n): report for n in range(7)})


def test_confusion_matrices_share_one_scale_and_state_their_accuracy():
    first, second = np.array([[6, 2, 0], [1, 3, 0], [0, 0, 0]]), np.array([[8, 0, 0], [4, 0, 0], [0, 0, 0]])
    fig = plotting.plot_confusion_matrices({"a": first, "b": second}, ["x_1", "y", "z"])
    left, right = fig.axes[:2]
    np.testing.assert_allclose(left.images[0].get_array(), [[75, 25, 0], [25, 75, 0], [0, 0, 0]])
    np.testing.assert_allclose(right.images[0].get_array(), [[100, 0, 0], [100, 0, 0], [0, 0, 0]])
    assert {ax.images[0].get_clim() for ax in (left, right)} == {(0, 100)} and len(fig.axes) == 3
    titles = [ax.get_title(loc="left").replace("\u00a0", " ") for ax in (left, right)]
    assert titles == ["a: accuracy 75.0 %", "b: accuracy 66.7 %"]
    written = {text.get_position(): text.get_text() for text in left.texts}
    assert written == {(0, 0): "75", (1, 0): "25", (0, 1): "25", (1, 1): "75"}  # x is the predicted class
    assert [label.get_text() for label in left.get_yticklabels()] == ["x 1", "y", "z"]
    small = plotting.plot_confusion_matrices({"a": first / 10, "b": second}, ["x", "y", "z"]).axes[0]
    np.testing.assert_allclose(small.images[0].get_array(), left.images[0].get_array())


@pytest.mark.parametrize(("n_models", "named"), [(2, [0, 1]), (4, [2, 3]), (5, [2, 3, 4]), (6, [3, 4, 5])])
def test_class_names_stand_at_the_left_and_the_bottom_only(n_models, named):
    fig = plotting.plot_confusion_matrices(make_matrices(make_models(n_models)), TEN)
    fig.draw_without_rendering()
    axes = [ax for ax in fig.axes[:-1] if ax.get_visible()]
    assert len(axes) == n_models
    below = [i for i, ax in enumerate(axes) if any(t.get_visible() and t.get_text() for t in ax.get_xticklabels())]
    beside = [ax for ax in axes if any(text.get_visible() and text.get_text() for text in ax.get_yticklabels())]
    left = min(ax.get_position().x0 for ax in axes)
    assert below == named and all(ax.get_position().x0 < left + 0.01 for ax in beside)
    assert len(beside) == (1 if n_models == 2 else 2)
    assert any(ax.texts for ax in axes) == (n_models == 2)  # elsewhere the cells are too small for numbers


def test_confusion_matrices_of_many_classes_name_those_recognised_worst():
    matrix = 40 * np.eye(50, dtype=int)
    matrix[7, 3], matrix[7, 7] = 11, 29
    fig = plotting.plot_confusion_matrices({"a": matrix, "b": 2 * matrix, "c": matrix, "d": matrix}, FIFTY)
    assert FIFTY[7] in [label.get_text() for label in fig.axes[0].get_yticklabels()]
    assert len(fig.axes[0].get_yticks()) < 10 and len(fig.axes[0].get_xticks()) == 0


def test_confusion_matrices_refuse_what_does_not_fit():
    good = np.eye(3)
    for other, message in (
        (np.ones((3, 2)), r"'b': a confusion matrix of 3 classes .* not \(3, 2\)"),
        (np.eye(4), "'b': a confusion matrix of 3 classes"),
        (-good, "'b': a confusion matrix holds counts"),
        (0 * good, "'b': a confusion matrix holds counts .* not all of them zero"),
        (good * np.nan, "'b': a confusion matrix holds counts"),
    ):
        with pytest.raises(ValueError, match=message):
            plotting.plot_confusion_matrices({"a": good, "b": other}, ["x", "y", "z"])
    with pytest.raises(ValueError, match="From 2 to 6 models .* not 1"):
        plotting.plot_confusion_matrices({"a": good}, ["x", "y", "z"])


def test_collapse_shows_the_answers_and_beside_them_the_numbers():
    table, answers = make_collapse()
    table.iloc[1, 1], table.iloc[0, 2] = 0, np.nan
    fig = plotting.plot_collapse(table.rename_axis("variant").reset_index(), answers)
    heat, accuracy, gradient, entropy, similarity = fig.axes[:5]
    np.testing.assert_allclose(heat.images[0].get_array(), 100 * answers)
    assert heat.images[0].get_clim() == (0, 100)
    assert [label.get_text() for label in heat.get_yticklabels()] == list(table.index)
    assert [label.get_text().replace(" ", "_") for label in heat.get_xticklabels()] == TEN
    collapsed = np.arange(11) % 3 != 2
    red, blue = plotting.COLOURS[2], plotting.COLOURS[0]
    for ax, column, scale in ((accuracy, "accuracy", 100), (similarity, "token similarity", 1)):
        bars = ax.containers[0]
        np.testing.assert_allclose([bar.get_width() for bar in bars], scale * table[column])
        assert [bar.get_facecolor()[:3] for bar in bars] == [red if fallen else blue for fallen in collapsed]
        np.testing.assert_allclose([bar.get_y() + bar.get_height() / 2 for bar in bars], np.arange(11))
    assert accuracy.get_xlim() == (0, 100) and similarity.get_xlim() == (-0.25, 0.999)
    chance = [line for line in accuracy.lines if line.get_linestyle() == ":"]
    assert [line.get_xdata()[0] for line in chance] == [10] and not [ax for ax in (entropy, similarity) if ax.lines]
    assert (gradient.get_xscale(), entropy.get_xscale()) == ("log", "linear")
    dots = {line.get_ydata()[0]: line.get_xdata()[0] for line in lines_of(gradient, "o")}
    assert dots == {row: norm for row, norm in enumerate(table["first-layer gradient norm"]) if norm > 0}
    assert gradient.get_xlim()[0] < 3e-6 and gradient.get_xlim()[1] > 0.25
    texts = [[text.get_text() for text in ax.texts] for ax in fig.axes[1:7]]
    assert [written[0] for written in texts] == ["10.0", "3·10⁻⁶", "–", "0.999", "2.30", "12.5"]
    assert [written[2] for written in texts] == ["62.5", "0.25", "2.50", "-0.250", "0.90", "100.0"]
    assert texts[1][1] == "0" and [len(bars.patches) for bars in entropy.containers] == [10]
    headings = [written[-1].replace("\n", " ") for written in texts]
    assert headings[:2] == ["Accuracy (%)", "First-layer gradient norm (log)"] and headings[2].endswith("(nats)")
    legend = [text.get_text() for text in fig.legends[0].get_texts()]
    assert legend == ["one class gets over 55 % of the answers", "chance 10.0 %"]


def test_collapse_separates_the_reference_and_calls_an_even_model_none():
    table, answers = make_collapse(3)
    fig = plotting.plot_collapse(table[["loss"]], answers * 0 + 0.1)
    fig.draw_without_rendering()
    (rule,) = fig.artists
    heat, loss = fig.axes[:2]
    box, y = rule.get_window_extent(), heat.transData.transform((0, 0.5))[1]
    assert (box.x0, box.x1) == pytest.approx((heat.get_window_extent().x0, loss.get_window_extent().x1), abs=0.5)
    assert (box.y0, box.y1) == pytest.approx((y, y), abs=0.5)
    assert not fig.legends
    assert {bar.get_facecolor()[:3] for bar in loss.containers[0]} == {plotting.COLOURS[0]}
    two = pd.DataFrame([[0.7, 0.3], [0.8, 0.2], [0.4, 0.6]], index=table.index, columns=["yes", "no"])
    bars = plotting.plot_collapse(table[["loss"]], two).axes[1].containers[0]
    assert [bar.get_facecolor()[:3] == plotting.COLOURS[2] for bar in bars] == [False, True, False]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table, answers: (table, 0.9 * answers), "answers of 'the reference' must be shares .* sum to 1"),
        (lambda table, answers: (table, answers.assign(dog=np.nan)), "must be shares"),
        (lambda table, answers: (table, answers.assign(dog=2, rain=-1, chainsaw=0)), "must be shares"),
        (lambda table, answers: (table[::-1], answers), "Row 1 is 'warm-up.*' in the table but 'the reference'"),
        (lambda table, answers: (table.head(3), answers), "Row 4 is 'no row' in the table but 'warm-up"),
        (lambda table, answers: (table.iloc[[0, 0]], answers.iloc[[0, 0]]), "'the reference' comes twice"),
        (lambda table, answers: (table.assign(accuracy=52.5), answers), "accuracy 52.5 is no share of 1"),
        (lambda table, answers: (table.assign(loss="low"), answers), "Column loss must hold numbers"),
        (lambda table, answers: (table.assign(loss=np.inf), answers), "loss holds an infinite value"),
        (lambda table, answers: (-table[["first-layer gradient norm"]], answers), "no place for first-layer"),
        (lambda table, answers: (table.assign(seventh=1.0), answers), "not 4, 7 and 10"),
        (lambda table, answers: (table.iloc[:, :0], answers), "not 4, 0 and 10"),
        (lambda table, answers: make_collapse(13), "not 13, 6 and 10"),
    ],
)
def test_collapse_refuses_bad_tables(change, message):
    with pytest.raises(ValueError, match=message):
        plotting.plot_collapse(*change(*make_collapse(4)))


def test_seed_dots_stand_at_their_accuracies_around_mean_and_range():
    table = make_seeds(3).rename(columns={"method": "recipe"})
    fig = plotting.plot_seed_dots(table.sample(frac=1, random_state=0), by="recipe", references={"chance": 0.5})
    fig.draw_without_rendering()
    ax = fig.axes[0]
    names = [label.get_text().replace("\n", " ") for label in ax.get_yticklabels()]
    strips, texts = lines_of(ax, "o"), [text.get_text() for text in ax.texts]
    assert sorted(names) == sorted(table["recipe"].unique())
    ranges = [line for line in ax.lines if line.get_linewidth() == 1.5 and line.get_linestyle() == "-"]
    means = [line for line in ax.lines if line.get_linewidth() == 4]
    low, high = ax.get_xlim()
    for row, name in enumerate(names):
        accuracy = 100 * table.loc[table["recipe"] == name, "accuracy"]
        dots = strips[row].get_xydata()
        np.testing.assert_allclose(np.sort(dots[:, 0]), np.sort(accuracy))
        assert np.abs(dots[:, 1] - row).max() < 0.45
        pixels = ax.transData.transform(dots)
        gaps = np.linalg.norm(pixels[:, None] - pixels, axis=-1) + 100 * np.eye(len(dots))
        assert gaps.min() > 0.8 * strips[row].get_markersize() * fig.dpi / 72
        np.testing.assert_allclose(ranges[row].get_xydata(), [[accuracy.min(), row], [accuracy.max(), row]])
        assert means[row].get_xdata() == pytest.approx([accuracy.mean()] * 2) and means[row].get_ydata().mean() == row
        numbers = f"{accuracy.mean():.1f} ± {accuracy.std(ddof=1):.1f} %"
        assert f"{numbers}\n{accuracy.min():.1f} to {accuracy.max():.1f}" in texts
        assert low < accuracy.min() and high > accuracy.max()
    assert "chance 50.0 %" in texts and 50 in [line.get_xdata()[0] for line in ax.lines if line.get_linestyle() == "--"]
    assert (low, high) == (46, 72) and ax.get_xticks().tolist() == list(range(46, 73, 2))
    assert [text.get_text() for text in fig.legends[0].get_texts()][0] == "one of 20 seeds"
    assert table["accuracy"].max() <= 1


def test_seed_dots_of_equal_accuracies_all_show_and_one_seed_has_no_deviation():
    rows = [*(("equal", seed, 1.0) for seed in range(50)), ("one", 0, 0.685)]
    table = pd.DataFrame(rows, columns=["method", "seed", "accuracy"])
    fig = plotting.plot_seed_dots(table)
    ax = fig.axes[0]
    equal, one = lines_of(ax, "o")
    heights = np.sort(equal.get_ydata())
    assert heights[0] > -0.5 and heights[-1] < 0.5 and np.diff(heights).min() > 0.005
    assert one.get_xydata().tolist() == [[68.5, 1]] and ax.get_xlim()[1] == 100
    assert [text.get_text() for text in ax.texts] == ["100.0 ± 0.0 %\n100.0 to 100.0", "68.5 %"]
    assert fig.legends[0].get_texts()[0].get_text() == "one seed"
    fig = plotting.plot_seed_dots(table.tail(1))
    assert not fig.legends and fig.axes[0].get_xlim()[0] < 68.5 < fig.axes[0].get_xlim()[1]


@pytest.mark.parametrize(
    ("change", "references", "message"),
    [
        (lambda table: table.drop(columns="seed"), {}, "no column seed; it has method, accuracy"),
        (lambda table: table.head(0), {}, "no rows"),
        (lambda table: table.assign(accuracy=100 * table["accuracy"]), {}, "no share of 1; give 0.95"),
        (lambda table: table.assign(accuracy=table["accuracy"].where(table["seed"] > 0)), {}, "NaN.* in 2 of 40 rows"),
        (lambda table: table.assign(method=None), {}, "Column method is empty"),
        (lambda table: table.assign(seed=1), {}, "'TF-IDF .*' has two rows with seed 1"),
        (lambda table: make_seeds(13, 2), {}, "not 13"),
        (lambda table: table, {"human": np.nan}, "Reference 'human' is NaN"),
        (lambda table: table, {"human": 95.7}, "reference 95.7 is no share of 1"),
    ],
)
def test_seed_dots_refuse_bad_tables(change, references, message):
    with pytest.raises(ValueError, match=message):
        plotting.plot_seed_dots(change(make_seeds(2)), references=references)


def make_binary(groups: list) -> tuple[np.ndarray, np.ndarray]:
    """Answers in groups of (number, number of right ones, confidence), all of them class 1."""
    targets = np.concatenate([np.arange(n) < right for n, right, _ in groups]).astype(int)
    confidence = np.concatenate([np.full(n, sure) for n, _, sure in groups])
    return targets, np.column_stack([1 - confidence, confidence])


def test_reliability_puts_dots_at_mean_confidence_and_accuracy_with_the_error_in_the_legend():
    model = make_binary([(10, 5, 0.62), (10, 7, 0.68), (20, 18, 0.97), (4, 1, 0.75)])
    fig = plotting.plot_reliability({"plain fine-tuning": model, "sure of nothing": make_binary([(8, 6, 0.51)])})
    ax, below = fig.axes
    diagonal, line, point = ax.lines
    np.testing.assert_allclose(diagonal.get_xydata(), [[50, 50], [100, 100]])
    np.testing.assert_allclose(line.get_xydata(), [[65, 60], [97, 90]])
    np.testing.assert_allclose(point.get_xydata(), [[51, 75]])
    many, few = ax.collections[:2]
    np.testing.assert_allclose(many.get_offsets(), line.get_xydata())
    np.testing.assert_allclose(few.get_offsets(), [[75, 25]])
    assert few.get_facecolor()[0, :3].tolist() == [1, 1, 1] and many.get_sizes()[0] == many.get_sizes()[1]
    error = (20 * 0.05 + 20 * 0.07 + 4 * 0.5) / 44
    assert metrics.expected_calibration_error(*model, n_bins=10) == pytest.approx(error)
    assert [text.get_text() for text in fig.legends[0].get_texts()] == [
        "as sure as right", f"plain fine-tuning (ECE {100 * error:.1f} %)", "sure of nothing (ECE 24.0 %)",
        "fewer than 5 answers",
    ]  # fmt: skip
    first, second = ([bar.get_height() for bar in bars] for bars in below.containers)
    np.testing.assert_allclose(first, 100 * np.array([0, 20, 4, 0, 20]) / 44)
    np.testing.assert_allclose(second, [100, 0, 0, 0, 0])
    assert ax.get_ylim()[0] < 20 and ax.get_xlim()[0] == pytest.approx(49) and ax.get_xlabel() == ""


def test_reliability_counts_undecided_answers_and_more_answers_make_larger_dots():
    fig = plotting.plot_reliability({"a": make_binary([(30, 15, 0.5), (60, 57, 0.95)])}, n_bins=20)
    ax, below = fig.axes
    np.testing.assert_allclose(ax.lines[1].get_xydata(), [[50, 50], [95, 95]])
    small, large = ax.collections[0].get_sizes()
    assert large == pytest.approx(2 * small)
    (bars,) = below.containers
    assert bars[0].get_x() >= 50 and bars[0].get_height() == pytest.approx(100 / 3) and len(bars) == 10
    assert bars[8].get_height() == pytest.approx(200 / 3) and bars[8].get_x() > 90
    assert fig.legends[0].get_texts()[1].get_text() == "a (ECE 0.0 %)" and len(fig.legends[0].get_texts()) == 2


def test_reliability_refuses_what_cannot_be_compared():
    models = make_sure(2, 3)
    targets, probabilities = models["frozen encoder + logistic head 0"]
    for wrong, message in (
        ({}, "not 0"),
        (make_sure(5, 3), "not 5"),
        ({"a": (targets, np.where(probabilities > 0.6, np.nan, probabilities))}, "'a' is unknown: .*do not sum to 1"),
        ({"a": (targets[:-1], probabilities)}, r"'a' is unknown: .*\(299,\) and \(300, 3\)"),
        (models | {"b": make_binary([(5, 3, 0.6)])}, "same classes, two or more, .*'b': 2"),
        ({"c": (np.zeros(5, dtype=int), np.ones((5, 1)))}, "two or more"),
    ):
        with pytest.raises(ValueError, match=message):
            plotting.plot_reliability(wrong)
    for n_bins in (1, 31, 10.5, "ten"):
        with pytest.raises(ValueError, match="n_bins is a whole number"):
            plotting.plot_reliability(models, n_bins=n_bins)


def boxes_of(ax) -> list[tuple]:
    """Return the words of a figure in their order, each with its box."""
    words = [text for text in ax.texts if text.get_ha() == "center" and text.get_position()[1] > 40]
    return list(zip(words, ax.patches, strict=True))


def test_word_effects_colour_by_sign_and_size_on_one_scale_and_stay_legible():
    words, effects = [["awful", "but", "odd"], ["great", "film"]], [[-0.4, 0.0, 0.1], [0.2, -0.2]]
    fig = plotting.plot_word_effects(words, effects, ["negative 80 %", "positive 60 %"], ("negative", "positive"))
    against, for_it = (np.array(colour) for colour in (plotting.COLOURS[1], plotting.COLOURS[0]))
    expected = [1 - 0.85 * share * (1 - end) for share, end in
                ((1, against), (0, for_it), (0.25, for_it), (0.5, for_it), (0.5, against))]  # fmt: skip
    drawn = boxes_of(fig.axes[0])
    assert [word.get_text() for word, _ in drawn] == ["awful", "but", "odd", "great", "film"]
    np.testing.assert_allclose([box.get_facecolor()[:3] for _, box in drawn], expected, atol=1e-6)
    (bar,) = fig.axes[0].images
    np.testing.assert_allclose(bar.get_array()[0, [0, 128, 256]], [expected[0], [1, 1, 1], 1 - 0.85 * (1 - for_it)])
    places = {text.get_text(): text.get_position()[0] for text in fig.axes[0].texts}
    assert places["speaks for negative"] < places["−0.4"] < places["+0.4"] < places["speaks for positive"]

    def luminance(colour) -> float:  # of WCAG 2
        shares = np.array(matplotlib.colors.to_rgb(colour))
        shares = np.where(shares <= 0.04045, shares / 12.92, ((shares + 0.055) / 1.055) ** 2.4)
        return float(shares @ [0.2126, 0.7152, 0.0722])

    for end in bar.get_array()[0, [0, 256]]:
        assert (luminance(end) + 0.05) / (luminance(plotting.INK) + 0.05) > 4.5
    fig = plotting.plot_word_effects([["a", "b"]], [[0.01, 0]], ["x"], ("no", "yes"))  # little effect, little colour
    np.testing.assert_allclose(boxes_of(fig.axes[0])[0][1].get_facecolor()[:3], 1 - 0.85 * 0.2 * (1 - for_it))


@pytest.mark.parametrize(("n_sentences", "n_words", "above"), [(1, 25, True), (3, 25, True), (6, 40, False)])
def test_words_stand_in_their_boxes_in_lines_that_end_inside_the_figure(n_sentences, n_words, above):
    reviews = make_reviews(n_sentences, n_words)
    fig = plotting.plot_word_effects(**reviews, title="Title")
    fig.draw_without_rendering()
    drawn = boxes_of(fig.axes[0])
    assert [word.get_text() for word, _ in drawn] == sum(reviews["words"], [])
    frames = [box.get_window_extent() for _, box in drawn]
    bottoms = np.round([frame.y0 for frame in frames])
    for (word, _), frame in zip(drawn, frames, strict=True):
        text = word.get_window_extent()
        assert frame.x0 - 1 < text.x0 and text.x1 < frame.x1 + 1 and frame.y0 - 1 < text.y0 and text.y1 < frame.y1 + 3
        assert frame.x0 > 5 and frame.x1 < fig.bbox.width - 5 and frame.y0 > 0.045 * fig.bbox.height
    for before, after in zip(frames, frames[1:], strict=False):
        assert after.x0 > before.x1 + 1 or after.y1 < before.y0 - 1  # to the right, or on a line below
    labels = [text for text in fig.axes[0].texts if text.get_weight() == "bold"]
    assert [label.get_text() for label in labels] == reviews["labels"]
    for number, label in enumerate(labels):
        place = label.get_window_extent()
        lines = bottoms[number * n_words : (number + 1) * n_words]
        assert len(np.unique(lines)) >= 2
        first = frames[number * n_words]
        assert place.y0 > first.y1 - 4 if above else place.x1 < first.x0 and place.y0 < first.y1
    assert len(np.unique(bottoms)) <= 3 * n_sentences


def test_words_that_the_font_cannot_draw_are_boxes_and_dollars_are_dollars(monkeypatch):
    monkeypatch.setitem(plotting.STYLE, "font.family", ["DejaVu Sans"])
    words = ["$x^2$", "🎬", "日本", "a\tb", "", "\ud83d", "W" * 300, "naïve"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fig = plotting.plot_word_effects([words], [[0.1] * 8], ["good 👍 $"], ("$n_1$", "नहीं"), title="Odd")
        for kind in ("png", "svg"):
            fig.savefig(io.BytesIO(), format=kind)
    drawn = [word.get_text() for word, _ in boxes_of(fig.axes[0])]
    assert drawn[:6] == ["$x^2$", "□", "□□", "a b", " ", "□"] and drawn[7] == "naïve"
    assert re.fullmatch("W{10,80}…", drawn[6])
    texts = fig.axes[0].texts
    assert not any(text.get_parse_math() for text in texts)
    assert {"good □ $", "speaks for $n_1$", "speaks for □□□□"} <= {text.get_text() for text in texts}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"words": [], "effects": [], "labels": []}, "not 0, 0 and 0"),
        ({"labels": ["positive 93 %"]}, "not 2, 2 and 1"),
        (make_reviews(7, 4), "not 7, 7 and 7"),
        ({"words": [["a", "b"], ["c"]], "effects": [[0.1, 0.2], [0.1, 0.2]]}, r"Sentence 2 .* \(1,\) and \(2,\)"),
        ({"words": ["ab", ["c"]], "effects": [[0.1, 0.2], [0.1]]}, "Sentence 1 must be a list of words"),
        ({"words": [["a"], []], "effects": [[0.1], []]}, "Sentence 2 must be a list of words, at least one"),
        ({"words": [["a"], ["b"]], "effects": [[0.1], [np.nan]]}, "effects of sentence 2 .* from -1 to 1"),
        ({"words": [["a"], ["b"]], "effects": [[12.0], [0.1]]}, "effects of sentence 1 .* from -1 to 1"),
        ({"words": [["word"] * 300] * 2, "effects": [[0.1] * 300] * 2}, "600 words do not fit a slide at 14 pt"),
        ({"class_names": ["a", "b", "c"]}, "two class names"),
        ({"class_names": "ab"}, "two class names"),
    ],
)
def test_word_effects_refuse_what_does_not_fit(change, message):
    with pytest.raises(ValueError, match=message):
        plotting.plot_word_effects(**(make_reviews(2, 10) | change))


# ---- FigureBook


@pytest.fixture
def make_book(tmp_path):
    return lambda **kwargs: FigureBook("my_notebook", **{"folder": tmp_path, "data_set": "ESC-10"} | kwargs)


def files(tmp_path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "my_notebook").iterdir())


def test_number_belongs_to_the_name_in_every_kernel(make_book, tmp_path):
    book = make_book()
    for name in ("learning curves", "Confusion matrix"):
        book.save(name, FIGURES["roc 10"]())
    book.table("report", pd.DataFrame({"f1": [0.5]}))
    make_book().save("learning curves", FIGURES["f1 10"]())  # a new kernel, the first figure again
    make_book().save("fourth", FIGURES["f1 10"]())
    assert files(tmp_path) == [
        "01_learning_curves.pdf", "01_learning_curves.png", "01_learning_curves.svg", "02_confusion_matrix.pdf",
        "02_confusion_matrix.png", "02_confusion_matrix.svg", "03_report.csv", "04_fourth.pdf", "04_fourth.png",
        "04_fourth.svg", "figures.json",
    ]  # fmt: skip
    folder = tmp_path / "my_notebook"
    assert Image.open(folder / "01_learning_curves.png").size == (1920, 1080)
    assert (folder / "01_learning_curves.png").read_bytes() == (folder / "04_fourth.png").read_bytes()
    (folder / "02_confusion_matrix.png").unlink()
    assert [item["name"] for item in make_book()._items()] == ["learning curves", "report", "fourth"]


def test_same_figure_same_bytes_and_one_mark(make_book, tmp_path):
    book = make_book(data_set="everyday sounds", demo=True)

    def read(name: str) -> list[bytes]:
        return [(tmp_path / "my_notebook" / f"{name}.{kind}").read_bytes() for kind in ("png", "svg", "pdf")]

    fig = book.save("a", FIGURES["one spectrogram"]())
    first = read("01_a")
    book.save("a", fig)
    book.save("b", FIGURES["one spectrogram"]())
    assert read("01_a") == first and read("02_b") == first
    assert b"<dc:date>" not in first[1] and first[2].startswith(b"%PDF") and b"CreationDate" not in first[2]
    assert b"/Type3" in first[2] and b"DejaVuSans" in first[2]  # letters, not outlines: a PDF can be searched
    assert [text.get_text() for text in fig.texts].count("everyday sounds · demo data") == 1


def test_interrupted_save_leaves_the_old_figure(make_book, tmp_path, monkeypatch):
    book = make_book()
    book.save("a", FIGURES["roc 10"]())
    before = (tmp_path / "my_notebook" / "01_a.png").read_bytes()

    def full(*args):
        raise OSError("No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="No space"):
        book.save("a", FIGURES["f1 10"]())
    assert (tmp_path / "my_notebook" / "01_a.png").read_bytes() == before
    assert files(tmp_path) == ["01_a.pdf", "01_a.png", "01_a.svg", "figures.json"]


def test_damaged_list_and_missing_names_are_refused(make_book, tmp_path):
    book = make_book()
    with pytest.raises(ValueError, match="holds no figure yet"):
        book.deck()
    with pytest.raises(ValueError, match="no name for a figure"):
        book.save("?!", FIGURES["f1 10"]())
    book.save("a", FIGURES["f1 10"]())
    (tmp_path / "my_notebook" / "figures.json").write_text('[{"na')
    with pytest.raises(ValueError, match="figures.json is damaged"):
        make_book().save("b", FIGURES["f1 10"]())


def check_slides(deck) -> None:
    """Everything lies on its slide, apart from the rest and told in words; all type is 12 points or more and fits."""
    assert (deck.slide_width / 914400, deck.slide_height / 914400) == pytest.approx((13.333, 7.5), abs=1e-3)
    for slide in deck.slides:
        boxes = []
        for shape in slide.shapes:
            boxes.append([side / 914400 for side in (shape.left, shape.top, shape.width, shape.height)])
            left, top, width, height = boxes[-1]
            assert left >= 0 and top >= 0 and left + width <= 13.334 and top + height <= 7.501
            frames = [shape.text_frame] if shape.has_text_frame else []
            if shape.has_table:
                assert sum(column.width for column in shape.table.columns) / 914400 == pytest.approx(width, abs=0.01)
                assert sum(row.height for row in shape.table.rows) / 914400 == pytest.approx(height, abs=0.01)
                for row in shape.table.rows:
                    for cell, column in zip(row.cells, shape.table.columns, strict=True):
                        frames.append(cell.text_frame)
                        for paragraph in cell.text_frame.paragraphs:
                            weight = "bold" if paragraph.font.bold else "normal"
                            wide = slides.text_width(paragraph.text, paragraph.font.size.pt, weight)
                            assert wide <= column.width / 914400 - 0.2
            elif shape.has_text_frame and shape.text_frame.text.strip():
                lines = 0
                for paragraph in shape.text_frame.paragraphs:
                    weight = "bold" if paragraph.font.bold else "normal"
                    lines += -(-slides.text_width(paragraph.text, paragraph.font.size.pt, weight) // (width - 0.2))
                assert lines * 1.2 * shape.text_frame.paragraphs[0].font.size.pt / 72 <= height + 0.02
            for paragraph in (paragraph for frame in frames for paragraph in frame.paragraphs):
                assert not paragraph.text.strip() or paragraph.font.size >= Pt(12)
            if shape.has_table or shape.shape_type == MSO_SHAPE_TYPE.PICTURE:
                kept = shape._element.xpath(".//p:cNvPr")[0].get("descr")
                assert slide.shapes.title.text.split(" (")[0].rstrip("…") in kept and "demo data" in kept
        for index, (left, top, width, height) in enumerate(boxes):
            for other in boxes[index + 1 :]:
                over = min(left + width, other[0] + other[2]) - max(left, other[0])
                assert over <= 0.02 or min(top + height, other[1] + other[3]) - max(top, other[1]) <= 0.02
        notes = slide.notes_slide.notes_text_frame
        assert all(paragraph.font.size >= Pt(12) for paragraph in notes.paragraphs)


def test_deck_fits_its_slides(make_book):
    protocol = "Speech Commands test set v0.02, own speaker-disjoint folds 1 to 5, not the published protocol, in words"
    book = make_book(demo=True, settings={"SEED": 0, "STEM": "conv"}, data_set=protocol)
    long_caption = "A caption that goes on and on, as captions do when nobody stops them. " * 5
    book.save("roc", FIGURES["roc 10"](), caption="ROC curves of ten classes")
    book.save("f1", FIGURES["f1 10"](), caption=long_caption)
    book.save("a caption", FIGURES["f1 10"](), caption=long_caption)
    report = metrics.report(*make_evaluation(50), FIFTY)
    book.table("report", report, caption="Every class")
    wide = pd.DataFrame(np.full((2, 30), 1e-5), columns=[f"learning rate {i}" for i in range(30)])
    book.table("wide", wide, caption="Thirty columns")
    sentences = pd.DataFrame({"text": ["no " * 60, "A sentence of a few words."], "parameters": [2_147_404, 9]})
    book.table("sentences", sentences)
    deck = Presentation(make_book().deck(headline="accuracy 50.0 %"))  # a new kernel: nothing but the folder
    check_slides(deck)
    slides = list(deck.slides)
    assert slides[0].shapes.title.text == "My notebook"
    assert slides[0].placeholders[1].text.splitlines() == ["Accuracy 50.0 %", f"{protocol} · demo data"]
    assert [shape.text for shape in slides[1].shapes if shape.has_text_frame] == ["ROC curves of ten classes"]
    assert [shape.text[:20] for shape in slides[2].shapes if shape.has_text_frame] == ["F1", long_caption[:20]]
    assert slides[3].shapes.title.text.startswith(long_caption[:80]) and slides[3].shapes.title.text.endswith("…")
    picture = slides[1].shapes[-1]
    told = f"ROC curves of ten classes. {protocol} · demo data"
    assert picture._element.nvPicPr.cNvPr.get("descr") == told
    assert picture.width / 914400 / 12.8 * 14 >= 12  # points that the figure's smallest text has on the slide
    notes = slides[1].notes_slide.notes_text_frame.text.splitlines()
    assert notes == ["roc", "ROC curves of ten classes", f"{protocol} · demo data", "SEED = 0 · STEM = conv"]
    assert long_caption.strip() in slides[2].notes_slide.notes_text_frame.text
    tables = [(slide, shape.table) for slide in slides for shape in slide.shapes if shape.has_table]
    texts = [shape.text for slide, _ in tables for shape in slide.shapes if shape.has_text_frame]
    assert sum(text.endswith(" · demo data") for text in texts) == len(tables)
    titles = [slide.shapes.title.text for slide, _ in tables]
    assert titles[:4] == [f"Report ({number} of 4)" for number in (1, 2, 3, 4)]
    rows = [row.cells for _, table in tables[:4] for row in list(table.rows)[1:]]
    assert [[cell.text for cell in row] for row in rows] == [
        [name, *(f"{value:.3f}" for value in report.loc[name, ["precision", "recall", "f1"]]), str(row["support"])]
        for name, row in report.astype({"support": int}).astype(object).iterrows()
    ]
    assert [len(table.rows) for _, table in tables[:4]] == [14, 14, 14, 14]  # with a header; none with a few left over
    wides = [table for (_, table), title in zip(tables, titles, strict=True) if title.startswith("Wide")]
    columns = {cell.text.replace("\n", " ") for table in wides for cell in table.rows[0].cells}
    assert columns == set(wide) and wides[0].cell(1, 0).text == "1.0e-05"
    words = tables[-1][1]
    assert words.cell(1, 0).text.startswith("no " * 30) and words.cell(1, 0).text.endswith("…")
    assert words.cell(1, 1).text == "2,147,404"


def test_a_table_and_a_figure_may_have_one_name(make_book, tmp_path):
    book = make_book()
    book.table("ablation", pd.DataFrame({"f1": [0.5]}))
    book.save("ablation", FIGURES["f1 10"]())
    book.table("ablation", pd.DataFrame({"f1": [0.25]}))
    assert [(item["kind"], item["number"]) for item in book._items()] == [("figure", 1), ("table", 1)]
    assert files(tmp_path)[:2] == ["01_ablation.csv", "01_ablation.pdf"]
    figure, table = list(Presentation(book.deck()).slides)[1:]
    assert figure.shapes[-1].shape_type == MSO_SHAPE_TYPE.PICTURE
    assert [shape.table.cell(1, 0).text for shape in table.shapes if shape.has_table] == ["0.250"]


def test_a_sentence_of_several_lines_has_one_row_on_a_slide(make_book, tmp_path):
    book = make_book()
    said = pd.DataFrame({"text": ["one\ntwo\r\n three"] * 8, "sure": 0.5})
    book.table("always wrong", said)
    assert "one\ntwo" in (tmp_path / "my_notebook" / "01_always_wrong.csv").read_text(encoding="utf-8")
    (wrong,) = [shape for shape in Presentation(book.deck()).slides[1].shapes if shape.has_table]
    assert [cell.text for cell in wrong.table.rows[0].cells] == ["text", "sure"]
    assert wrong.table.cell(1, 0).text == "one two three" and len(wrong.table.rows) == 9


def test_an_empty_table_is_no_slide_and_takes_an_earlier_one_away(make_book, tmp_path):
    book = make_book()
    book.table("first", pd.DataFrame({"a": [1]}))
    book.table("differences", pd.DataFrame({"b": [2]}))
    assert book.table("differences", pd.DataFrame([])).empty
    book.save("curves", plotting.plot_f1_bars(pd.DataFrame({"class_name": ["a"], "f1": [0.5]})))
    assert [item["name"] for item in book.contents()["items"]] == ["first", "curves"]
    assert book.save("curves", None) is None
    assert len(Presentation(book.deck()).slides) == 2
    assert files(tmp_path) == ["01_first.csv", "figures.json", "my_notebook.pptx"]


def test_a_dark_deck_is_light_on_dark_and_leaves_images_alone(make_book, tmp_path):
    book = make_book(demo=True)
    book.save("spectrogram", FIGURES["one spectrogram"]())
    book.save("words", FIGURES["words"]())
    book.table("report", pd.DataFrame({"f1": [0.5]}))
    light, dark = (Presentation(book.deck(theme)) for theme in ("light", "dark"))
    check_slides(dark)
    assert {"my_notebook.pptx", "my_notebook_dark.pptx"} < set(files(tmp_path))

    def pictures(deck) -> list[np.ndarray]:
        blobs = [shape.image.blob for slide in deck.slides for shape in slide.shapes if hasattr(shape, "image")]
        return [np.asarray(Image.open(io.BytesIO(blob)).convert("RGB")).astype(int) for blob in blobs]

    def colour(fill) -> np.ndarray:
        return np.array([int(str(fill.fore_color.rgb)[i : i + 2], 16) for i in (0, 2, 4)])

    for deck, paper in ((light, [255] * 3), (dark, [0x1D] * 3)):
        assert colour(deck.slide_master.background.fill).tolist() == paper
        assert all((picture[0, 0] == paper).all() for picture in pictures(deck))
        table = next(shape.table for slide in deck.slides for shape in slide.shapes if shape.has_table)
        for cell in table.iter_cells():
            ink = cell.text_frame.paragraphs[0].font
            assert abs(colour(cell.fill) - colour(types.SimpleNamespace(fore_color=ink.color))).min() > 120
    roles = dark.slide_master.element.xpath("p:clrMap")[0]
    assert (roles.get("bg1"), roles.get("tx1")) == ("dk1", "lt1")

    (spectrogram, words), (dark_spectrogram, dark_words) = pictures(light), pictures(dark)
    boxes = book._items()[0]["images"]
    assert len(boxes) == 2  # the image and the bar that explains its colours
    inside = np.zeros((1080, 1920), dtype=bool)
    for left, top, right, bottom in boxes:
        inside[round(1080 * top) : round(1080 * bottom), round(1920 * left) : round(1920 * right)] = True
    assert 0.4 < inside.mean() < 0.9
    np.testing.assert_array_equal(dark_spectrogram[inside], spectrogram[inside])
    outside = dark_spectrogram[~inside]
    assert np.median(outside) == 0x1D and (outside.max(axis=1) > 200).mean() > 0.005  # paper and letters
    # what was lighter is darker, also a bar that is an image but has the colours of the boxes of words
    places = [(y, x) for y in range(0, 1080, 9) for x in range(0, 1920, 9)]
    before, after = (np.array([picture[place].sum() for place in places]) for picture in (words, dark_words))
    assert book._items()[1]["images"] == [] and np.corrcoef(before, after)[0, 1] < -0.9


def test_every_colour_is_as_legible_on_a_dark_slide():
    def contrast(first, second) -> float:  # of WCAG 2
        lights = [
            np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722]
            for rgb in (first, second)
        ]
        return (max(lights) + 0.05) / (min(lights) + 0.05)

    colours = np.array([matplotlib.colors.to_rgb(c) for c in (*plotting.COLOURS, plotting.GREY, plotting.PALE)])
    ink = slides._darken(np.array([matplotlib.colors.to_rgb(plotting.INK)]))[0]
    paper = slides._darken(np.ones((1, 3)))[0]
    assert contrast(ink, paper) > 12
    for colour, dark in zip(colours, slides._darken(colours), strict=True):
        assert contrast(dark, paper) > 3.5
        hues = [matplotlib.colors.rgb_to_hsv(rgb) for rgb in (colour, dark)]
        if hues[0][1] > 0.3:
            assert abs((hues[0][0] - hues[1][0] + 0.5) % 1 - 0.5) < 0.06
    boxes = plotting._effect_colours(np.array([-1.0, 1.0]))
    assert all(contrast(ink, box) > 3 for box in slides._darken(boxes))


def test_slides_refuse_another_theme_and_figures_without_places_of_images(make_book, tmp_path):
    book = make_book()
    book.save("a", FIGURES["f1 10"]())
    with pytest.raises(ValueError, match=r"theme of slides is \"light\" or \"dark\", not 'blue'"):
        book.deck("blue")
    manifest = tmp_path / "my_notebook" / "figures.json"
    items = json.loads(manifest.read_text())
    del items[0]["images"]
    manifest.write_text(json.dumps(items))
    book.deck()
    with pytest.raises(ValueError, match="01_a.png is from before there were dark slides; run my_notebook again"):
        book.deck("dark")
    assert "my_notebook_dark.pptx" not in files(tmp_path)


def test_a_notebook_shows_a_saved_figure_once_and_small_and_keeps_its_own_style(tmp_path, monkeypatch):
    monkeypatch.delenv("MPLBACKEND", raising=False)  # a notebook's kernel has its own
    cells = [
        "import sys, matplotlib, pandas as pd\n"
        "before = dict(matplotlib.rcParams)\n"
        "from shared_utils import plotting\n"
        f"figures = plotting.FigureBook('tiny', folder={str(tmp_path)!r})\n"
        "clips = pd.DataFrame({'class_name': ['a', 'b', 'b']})",
        "figures.save('counts', plotting.plot_class_counts(clips))",
        "fig = plotting.plot_class_counts(clips)\n"
        "assert dict(matplotlib.rcParams) == before and 'matplotlib.pyplot' not in sys.modules",
        "import matplotlib.pyplot as plt\nfig, ax = plt.subplots()\nfigures.save('mine', fig)",
        "figures.save('counts', plotting.plot_class_counts(clips))",
    ]
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    NotebookClient(notebook, kernel_name="python3").execute()
    pictures = [
        [output["data"]["image/png"] for output in cell.outputs if "image/png" in output.get("data", {})]
        for cell in notebook.cells
    ]
    assert [len(shown) for shown in pictures] == [0, 1, 0, 1, 1]
    for shown in (pictures[1], pictures[4]):
        content = base64.b64decode(shown[0])
        (tmp_path / "shown.png").write_bytes(content)
        width, height = Image.open(tmp_path / "shown.png").size
        assert 800 < width <= 950 and width / height == pytest.approx(16 / 9, abs=0.1) and len(content) < 60_000


def test_players_hold_the_sound():
    tone = (8000 * np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000)).astype(np.int16)
    page = plotting.show_players(tone[None], 16_000, ["<dog>"]).data
    assert "&lt;dog&gt;" in page
    sound = base64.b64decode(re.search(r"base64,([^\"]+)", page).group(1))
    waveform, sample_rate = soundfile.read(io.BytesIO(sound))
    spectrum = np.abs(np.fft.rfft(waveform[4000:12_000]))
    assert sample_rate == 16_000 and spectrum.argmax() * 2 == pytest.approx(440, abs=2)


def test_manifest_holds_plain_text(make_book, tmp_path):
    make_book(settings={"PATH": tmp_path, "LR": 1e-3}).save("a", FIGURES["f1 10"](), caption="über")
    items = json.loads((tmp_path / "my_notebook" / "figures.json").read_text(encoding="utf-8"))
    assert items[0]["caption"] == "über" and items[0]["settings"]["LR"] == "0.001"
    assert matplotlib.rcParams["font.size"] == 10
