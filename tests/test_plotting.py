"""The figures: what they say in numbers, that all of it can be read, and what a FigureBook writes."""

import base64
import io
import json
import re

import matplotlib
import nbformat
import numpy as np
import pandas as pd
import pytest
import sklearn.metrics
import soundfile
from matplotlib.text import Text
from nbclient import NotebookClient
from PIL import Image
from pptx import Presentation
from pptx.util import Pt

from shared_utils import metrics, plotting
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


def make_comparison(n_models: int = 3) -> pd.DataFrame:
    mean = np.linspace(0.5, 0.88, n_models)
    models = [f"TinyAST, variant number {number}" for number in range(n_models)]
    return pd.DataFrame({"model": models, "mean": mean, "low": mean - 0.05, "high": mean + 0.03})


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
        "comparison": lambda: plotting.plot_comparison(make_comparison(), REFERENCES, title="Three models"),
        "comparison of 14": lambda: plotting.plot_comparison(make_comparison(14), REFERENCES),
        "attention": lambda: plotting.plot_attention(specs[0], rng.random((6, 24)), TIMES, FREQUENCIES, title="dog"),
    }
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
        "01_learning_curves.png", "01_learning_curves.svg", "02_confusion_matrix.png", "02_confusion_matrix.svg",
        "03_report.csv", "04_fourth.png", "04_fourth.svg", "figures.json",
    ]  # fmt: skip
    folder = tmp_path / "my_notebook"
    assert Image.open(folder / "01_learning_curves.png").size == (1920, 1080)
    assert (folder / "01_learning_curves.png").read_bytes() == (folder / "04_fourth.png").read_bytes()
    (folder / "02_confusion_matrix.png").unlink()
    assert [item["name"] for item in make_book()._items()] == ["learning curves", "report", "fourth"]


def test_same_figure_same_bytes_and_one_mark(make_book, tmp_path):
    book = make_book(data_set="everyday sounds", demo=True)

    def read(name: str) -> list[bytes]:
        return [(tmp_path / "my_notebook" / f"{name}.{kind}").read_bytes() for kind in ("png", "svg")]

    fig = book.save("a", FIGURES["one spectrogram"]())
    first = read("01_a")
    book.save("a", fig)
    book.save("b", FIGURES["one spectrogram"]())
    assert read("01_a") == first and read("02_b") == first
    assert b"<dc:date>" not in first[1]
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
    assert files(tmp_path) == ["01_a.png", "01_a.svg", "figures.json"]


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


def test_deck_fits_its_slides(make_book, tmp_path):
    book = make_book(demo=True, settings={"EPOCHS": 3, "STEM": "conv"})
    long_caption = "A caption that goes on and on, as captions do when nobody stops them. " * 5
    book.save("roc", FIGURES["roc 10"](), caption="ROC curves of ten classes")
    book.save("f1", FIGURES["f1 10"](), caption=long_caption)
    report = metrics.report(*make_evaluation(50), FIFTY)
    book.table("report", report, caption="Every class")
    wide = pd.DataFrame(np.full((2, 30), 1e-5), columns=[f"learning rate {i}" for i in range(30)])
    book.table("wide", wide, caption="Thirty columns")
    deck = Presentation(make_book().deck())  # a new kernel: nothing but the folder
    assert (deck.slide_width / 914400, deck.slide_height / 914400) == pytest.approx((13.333, 7.5), abs=1e-3)
    assert deck.slides[0].shapes.title.text == "My notebook"
    assert deck.slides[0].placeholders[1].text == "ESC-10 · demo data"
    tables = []
    for slide in deck.slides:
        for shape in slide.shapes:
            assert shape.left >= 0 and shape.top >= 0
            assert shape.left + shape.width <= deck.slide_width and shape.top + shape.height <= deck.slide_height
            if shape.has_table:
                tables.append(shape.table)
                assert sum(column.width for column in shape.table.columns) <= shape.width + 100
                assert shape._element.nvGraphicFramePr.cNvPr.get("descr") in ("Every class", "Thirty columns")
            frames = [shape.text_frame] if shape.has_text_frame else []
            frames += [cell.text_frame for cell in shape.table.iter_cells()] if shape.has_table else []
            for paragraph in (paragraph for frame in frames for paragraph in frame.paragraphs):
                assert not paragraph.text.strip() or paragraph.font.size >= Pt(12)
    picture = deck.slides[1].shapes[-1]
    assert deck.slides[1].shapes.title.text == "ROC curves of ten classes"
    assert picture._element.nvPicPr.cNvPr.get("descr") == "ROC curves of ten classes"
    assert picture.width / 914400 / 12.8 * 14 >= 12  # points that the figure's smallest text has on the slide
    notes = deck.slides[1].notes_slide.notes_text_frame.text
    assert "EPOCHS = 3" in notes and "STEM = conv" in notes and "demo data" in notes
    assert long_caption.strip() in deck.slides[2].notes_slide.notes_text_frame.text
    rows = [row.cells for table in tables[:4] for row in list(table.rows)[1:]]
    assert [[cell.text for cell in row] for row in rows] == [
        [name, *(f"{value:.3f}" for value in report.loc[name, ["precision", "recall", "f1"]]), str(row["support"])]
        for name, row in report.astype({"support": int}).astype(object).iterrows()
    ]
    assert all(len(table.rows) <= 15 for table in tables)
    columns = [cell.text for table in tables[4:] for cell in table.rows[0].cells]
    assert set(columns) == set(wide) and tables[4].cell(1, 0).text == "1.0e-05"


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
