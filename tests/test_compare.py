"""Runs beside each other: the page of `make compare`, points to the best, and runs that are named and deleted."""

import html.parser
import json
import re
import shutil
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from shared_utils import comparison, device, notebooks, plotting, runs
from shared_utils.comparison import write_page
from shared_utils.runs import compare_runs, delete_run, load_histories, load_run, name_run, read_runs, save_run

REAL, DEMO = {"data_set": "ESC-10", "demo": False}, {"data_set": "ESC-10", "demo": True}
CLASSES = ["dog", "rain"]


def make_history(last: float = 0.7, epochs: int = 3) -> pd.DataFrame:
    accuracies = np.linspace(0.1, last, epochs)
    history = pd.DataFrame({"epoch": range(1, epochs + 1), "train_loss": 1.5, "train_accuracy": 0.5, "val_loss": 1.0})
    return history.assign(val_accuracy=accuracies, seconds=2.5)


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    """One run, as `save_run` writes it; the others are copies of it, which is quicker than saving."""
    torch.manual_seed(0)
    history = make_history()
    history.attrs["best_epoch"] = 2
    return save_run(
        "tiny", nn.Linear(3, 2), {"EPOCHS": 3, "SEED": 0}, CLASSES, {}, history, {"test_accuracy": 0.5},
        "test accuracy 50.0% (40.0% to 60.0%)", data=REAL, model_arguments={"in_features": 3, "out_features": 2},
        results=[{"model": "tiny", "metric": "accuracy", "mean": 0.5, "low": 0.4, "high": 0.6}],
        folder=tmp_path_factory.mktemp("models"),
    )  # fmt: skip


@pytest.fixture
def add(saved, tmp_path):
    """Add a run to tmp_path/models that differs from the saved one in what a test names; later ones are newer."""

    def add_one(value=0.5, notebook="tiny", history=None, interval=None, **changes) -> Path:
        number = len(list((tmp_path / "models").glob("*/*")))
        run = tmp_path / "models" / notebook / f"20260101-0000{number:02d}-{number:08x}"
        shutil.copytree(saved, run)
        record = json.loads((run / "run.json").read_text()) | {"created": f"2026-01-01 00:00:{number:02d}"}
        record |= {"notebook": notebook, "metrics": {"test_accuracy": value}} | changes
        (run / "run.json").write_text(json.dumps(record))
        low, high = interval or (value - 0.1, value + 0.1)
        rows = [{"model": "tiny", "metric": "accuracy", "mean": value, "low": low, "high": high}]
        (run / "results.json").write_text(json.dumps(rows))
        (make_history() if history is None else history).to_csv(run / "history.csv", index=False)
        return run

    return add_one


class Page(html.parser.HTMLParser):
    """What a page holds: its tags, links and texts, and of each row of runs the cells with what they are sorted by."""

    EMPTY = {"meta", "img", "wbr", "br"}

    def __init__(self, path: Path):
        super().__init__()
        self.open, self.tags, self.ids, self.links, self.rows, self.texts = [], [], [], [], {}, []
        self.images, self.row = [], None
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.close()
        assert self.open == [], "tags that are not closed"

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.tags.append(tag)
        self.ids += [given["id"]] if "id" in given else []
        self.links += [given[name] for name in ("src", "href") if name in given]
        self.images += [given["alt"]] if tag == "img" else []
        if tag not in self.EMPTY:
            self.open.append(tag)
        if tag == "tr":
            self.row = self.rows.setdefault(given["id"], []) if "id" in given else None
        if "data-v" in given and self.row is not None:
            self.row.append([given["data-v"], ""])

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        if tag == "tr":
            self.row = None

    def handle_data(self, text):
        self.texts.append(text)
        if self.row:
            self.row[-1][1] += text

    @property
    def text(self) -> str:
        return "".join(self.texts)


def show(tmp_path, **kwargs) -> Page:
    path, _ = write_page(folder=tmp_path / "models", path=tmp_path / "compare.html", **kwargs)
    return Page(path)


# ---- the page


def test_runs_that_were_tested_on_other_clips_are_not_ranked_together(add, tmp_path):
    def add_on(value, folds, n_test):
        run = add(value, settings={"FOLDS": folds} if folds else {})
        (row,) = json.loads((run / "results.json").read_text())
        rows = [row | {"n_test": n_test}, row | {"model": "without silence", "n_test": n_test - 1}]
        (run / "results.json").write_text(json.dumps(rows))

    add_on(0.7, [1], 80)
    add_on(0.6, [2, 10, 1], 240)
    add_on(0.65, [1, 2, 10], 240)
    add_on(0.75, [2], 80)
    (add(0.69, settings={"FOLDS": [1]}) / "results.json").unlink()  # the second model of a notebook
    for value, n_test in ((0.5, 872), (0.4, 871), (0.3, 872)):
        add_on(value, None, n_test)
    table = compare_runs("tiny", tmp_path / "models")
    np.testing.assert_allclose(table["delta"], [-20, np.nan, 0, -1, np.nan, 0, -5, 0])
    page = show(tmp_path)
    assert "The best of 2 runs on ESC-10, test folds 1, 2, 10: " in page.text
    assert "The best of 2 runs on ESC-10, test fold 1: " in page.text
    assert "The best of 2 runs on ESC-10, 872 tested: " in page.text
    assert "The only run on ESC-10, 871 tested: " in page.text


def test_thirty_runs_stand_on_the_page_once_each_with_their_numbers(add, tmp_path, monkeypatch):
    drawn = []
    plot_lines = plotting.plot_lines
    monkeypatch.setattr(plotting, "plot_lines", lambda table, **how: drawn.append(table) or plot_lines(table, **how))
    values = np.random.default_rng(0).permutation(30) / 100 + 0.6
    folders = []
    for i, value in enumerate(values):
        settings = {"EPOCHS": 3, "SEED": i, "LR": 0.001 if i % 2 else 5e-6}
        folders.append(add(value, settings=settings, history=make_history(value)))
    page = show(tmp_path)
    assert list(page.rows) == [f"tiny-{folder.name}" for folder in reversed(folders)]
    assert len(set(page.ids)) == len(page.ids)
    best = int(values.argmax())
    for i, folder in enumerate(folders):
        run, created, data, metric, delta, epoch, seconds, seed, rate = page.rows[f"tiny-{folder.name}"]
        assert folder.name in run[1] and ("best" in run[1]) == (i == best) and ("latest" in run[1]) == (i == 29)
        assert created[1] == f"2026-01-01 00:00:{i:02d}" and data[1] == "ESC-102 classes"
        assert float(metric[0]) == values[i]
        assert metric[1] == f"{100 * values[i]:.1f} % ({100 * values[i] - 10:.1f} to {100 * values[i] + 10:.1f})"
        assert float(delta[0]) == pytest.approx(100 * (values[i] - values[best]))
        assert delta[1] == ("0" if i == best else f"−{100 * (values[best] - values[i]):.1f}")
        assert epoch == ["2", "2 of 3"] and seconds == ["7.5", "7.5 s"]
        assert seed[1] == str(i) and rate[1] == ("0.001" if i % 2 else "5e-06")
    assert "EPOCHS" not in page.text  # the same in all
    behind = 100 * (values[best] - values[29])
    assert "test accuracy 89.0 % (79.0 to 99.0); 1.0 points ahead of " in page.text
    assert f"is {behind:.1f} points behind." in page.text

    shown = drawn[0]["run"].unique()
    assert len(drawn) == 1 and len(shown) == comparison.N_CURVES
    assert shown[:2].tolist() == [f"best: 2026-01-01 00:00:{best:02d}", "latest: 2026-01-01 00:00:29"]
    recent = [f"2026-01-01 00:00:{i:02d}" for i in range(28, 20, -1) if i != best]
    assert shown[2:].tolist() == recent[:6]
    assert len(page.images) == 1 and page.images[0].count("ends at") == 8
    assert f"best: 2026-01-01 00:00:{best:02d} ends at 89.0 %" in page.images[0]


def test_nothing_comes_from_outside_and_every_link_has_its_end(add, tmp_path):
    for value in (0.5, 0.6):
        add(value, notebook="näme <i>odd & 100%")
    page = show(tmp_path)
    assert page.tags.count("script") == page.tags.count("style") == 1 and "link" not in page.tags
    outside = [link for link in page.links if not link.startswith(("#", "data:image/png;base64,"))]
    assert outside == [] and len(page.links) == 3
    assert {unquote(link[1:]) for link in page.links if link.startswith("#")} <= set(page.ids)
    assert not re.search(r"https?:|url\(|@import|//", re.sub(r"base64,[\w+/=]+", "", page.source))
    assert "prefers-color-scheme: dark" in page.source and "i" not in page.tags


def test_odd_names_and_values_are_text(add, tmp_path):
    odd = "<script>alert('ä & ö')</script>"
    add(0.5, name=odd, settings={"EPOCHS": "</td><img src=x onerror=alert(1)>", "SEED": 0})
    add(0.6, name="Größe\x00\ud800 \U0001f600", data={"data_set": "<b>mine</b>", "demo": False},
        settings={"EPOCHS": ["x" * 5000], "SEED": '" onclick="'}, metrics={"<u>accuracy": 0.5})  # fmt: skip
    page = show(tmp_path)
    first, second = page.rows.values()
    assert second[0][1].startswith(odd) and "Größe\ufffd\ufffd \U0001f600" in first[0][1]
    assert not {"img onerror", "u", "script alert"} & set(page.tags) and page.tags.count("script") == 1
    assert page.tags.count("img") == len(page.images) == 2
    assert second[-2][1] == "</td><img src=x onerror=alert(1…"
    assert "<b>mine</b>" in first[2][1] and "<u>accuracy" in first[3][1] and first[-1][1] == '" onclick="'
    assert len(first[-2][1]) == comparison.LONGEST_VALUE and page.source.count("x" * 100) == 20  # of 5000, in a title


def test_broken_folders_are_named_in_a_line_each_and_the_rest_is_shown(add, tmp_path):
    good = [add(0.5), add(0.6)]
    folders = [add() for _ in range(6)]
    (folders[0] / "run.json").write_text("{")
    (folders[1] / "history.csv").unlink()
    (folders[2] / "results.json").write_text("[1]")
    for folder, changes in zip(folders[3:], ({"metrics": [1]}, {"name": 3}, {"data": None}), strict=True):
        record = json.loads((folder / "run.json").read_text())
        (folder / "run.json").write_text(json.dumps(record | changes))
    add(notebook="other")
    (next((tmp_path / "models" / "other").iterdir()) / "run.json").write_text("")
    page = show(tmp_path)
    assert [key[5:] for key in page.rows] == [good[1].name, good[0].name]
    lines = [text for text in page.texts if text.startswith("Left out: ")]
    assert len(lines) == 7 and all("\n" not in line for line in lines)
    for folder, words in zip(
        reversed(folders),
        ("no usable data", "no usable name", "no usable metrics", "no list of rows", "no history.csv", "is damaged"),
        strict=True,
    ):
        (line,) = [line for line in lines if folder.name in line]
        assert words in line and line.startswith("Left out: models/tiny/")
    assert "2 runs, 2 notebooks, 7 folders that cannot be read." in page.text


def test_curves_that_cannot_be_drawn_do_not_stop_the_page(add, tmp_path):
    text = pd.DataFrame({"epoch": [1, 2], "val_accuracy": ["high", "higher"]})
    infinite = pd.DataFrame({"epoch": [1, np.inf], "val_accuracy": [0.5, 7.0]})
    for history in (text, infinite, make_history().drop(columns="val_accuracy"), make_history(epochs=1)):
        add(history=history, best_epoch=None)
    page = show(tmp_path)
    assert len(page.rows) == 4 and page.images == []
    assert [row[6][1] for row in page.rows.values()] == ["2.5 s", "7.5 s", "–", "–"]
    assert all(row[5] == ["", "–"] for row in page.rows.values())


def test_demo_data_is_never_compared_with_real_data(add, tmp_path):
    real, demo = [add(0.5, data=REAL), add(0.6, data=REAL)], [add(0.9, data=DEMO), add(0.95, data=DEMO)]
    page = show(tmp_path)
    deltas = {key[5:]: row[4][1] for key, row in page.rows.items()}
    assert deltas == {real[0].name: "−10.0", real[1].name: "0", demo[0].name: "−5.0", demo[1].name: "0"}
    assert all(
        ("demo data" in row[2][1]) == (key[5:] in (demo[0].name, demo[1].name)) for key, row in page.rows.items()
    )
    assert "The best of 2 runs on ESC-10: 2026-01-01 00:00:01, test accuracy 60.0 %" in page.text
    assert "The best of 2 runs on ESC-10, demo data: 2026-01-01 00:00:03, test accuracy 95.0 %" in page.text
    assert len(page.images) == 2 and "demo data" not in page.images[0] and "demo data" in page.images[1]


def test_intervals_that_overlap_are_named(add, tmp_path):
    add(0.5, interval=(0.45, 0.55))
    add(0.6, interval=(0.56, 0.65))
    assert "10.0 points ahead of 2026-01-01 00:00:00." in show(tmp_path).text
    add(0.58, interval=(0.5, 0.66))
    assert "2.0 points ahead of the latest, 2026-01-01 00:00:02, whose interval overlaps." in show(tmp_path).text


# ---- which numbers are compared


def test_points_to_the_best_of_the_same_data_classes_and_metric(add, tmp_path):
    add(0.9, class_names=["dog", "rain", "sea"])
    add(0.5)
    add(0.8, metrics={"test_loss": 0.1, "passed": True, "epochs": 30, "val_accuracy": 0.8})
    add(0.7, class_names=CLASSES[::-1])
    add(0.6, data={})
    add(0.65, data={})
    add(0.4, metrics={"note": "none"})
    found, problems = read_runs("tiny", tmp_path / "models")
    metrics = [None, *["test_accuracy"] * 3, "val_accuracy", *["test_accuracy"] * 2]
    assert problems == [] and [run["metric"] for run in found] == metrics
    assert [run["delta"] for run in found] == [None, None, None, 0, None, pytest.approx(-20), None]
    table = compare_runs("tiny", tmp_path / "models")
    nan = np.nan
    assert "name" not in table and table["delta"].tolist() == pytest.approx(
        [nan, nan, nan, 0, nan, -20, nan], nan_ok=True
    )
    page = show(tmp_path)
    assert "On unnamed data: 2 runs without a number that can be compared." in page.text


def test_interval_is_that_of_the_model_that_was_saved(add, tmp_path):
    run = add(0.5, headline="test accuracy 50.0% (42.0% to 58.0%)")
    rows = [
        {"model": "other", "metric": "accuracy", "mean": 0.5, "low": 0.3, "high": 0.7},
        {"model": "tiny", "metric": "accuracy", "mean": 0.5, "low": 0.42, "high": 0.58},
        {"model": "third", "metric": "f1", "mean": 0.5, "low": 0.1, "high": 0.9},
        {"model": "fourth", "metric": "accuracy", "mean": 0.6, "low": 0.1, "high": 0.9},
    ]
    (run / "results.json").write_text(json.dumps(rows))
    (known,), _ = read_runs("tiny", tmp_path / "models")
    assert (known["low"], known["high"]) == (0.42, 0.58)
    (run / "results.json").write_text(json.dumps(rows[:1] + [rows[1] | {"low": 0.41}]))
    (unknown,), _ = read_runs("tiny", tmp_path / "models")
    assert (unknown["low"], unknown["high"]) == (None, None)
    assert "50.0 %." in show(tmp_path).text


# ---- names


def test_a_name_stands_in_place_of_the_time(add, tmp_path):
    first, second, third = (add(value, settings={"EPOCHS": 3, "SEED": 0}) for value in (0.5, 0.6, 0.6))
    before = json.loads((first / "run.json").read_text())
    assert name_run(first, "  with\n warm-up, größer ", tmp_path / "models") == first
    record = json.loads((first / "run.json").read_text())
    assert record == before | {"name": "with warm-up, größer"} and len(list(first.iterdir())) == 5
    assert load_run(first).headline == before["headline"]
    table = compare_runs("tiny", tmp_path / "models")
    assert list(table) == ["name", "created", "data", "epochs", "test_accuracy", "delta"]
    assert table["name"].tolist() == ["", "", "with warm-up, größer"] and table["delta"].tolist() == [0, 0, -10]
    names = list(load_histories("tiny", folder=tmp_path / "models"))
    assert names == ["01-01 00:00:02", "01-01 00:00:01", "with warm-up, größer"]
    page = show(tmp_path)
    assert page.rows[f"tiny-{first.name}"][0][1].startswith("with warm-up, größer")
    assert "with warm-up, größer ends at 70.0 %" in page.images[0]
    assert "and 1 other run with the same number; 10.0 points ahead of with warm-up, größer" in page.text
    name_run(load_run(second), "second", tmp_path / "models")
    name_run(first.name, "first", tmp_path / "models")  # the last part is enough, and a name can change
    assert compare_runs("tiny", tmp_path / "models")["name"].tolist() == ["", "second", "first"]


def test_no_history_is_lost_to_a_name_that_looks_like_settings(add, tmp_path):
    for seed, name in enumerate(("SEED=1", None, "01-01 00:00:01 SEED=1")):
        add(settings={"SEED": seed}, history=make_history(seed / 10), **({"name": name} if name else {}))
    histories = load_histories("tiny", folder=tmp_path / "models")
    assert sorted(history["val_accuracy"].iloc[-1] for history in histories.values()) == [0, 0.1, 0.2]


@pytest.mark.parametrize(
    "name, words",
    [
        ("", "no name for a run"), (" \n", "no name for a run"), ("a\x1b[0m", "no name for a run"),
        ("x" * 41, "has 41 characters; 40 are the most"), ("taken", "is the name of 20260101-000001-00000001 already"),
    ],
)  # fmt: skip
def test_names_that_are_refused(add, tmp_path, name, words):
    run, other = add(), add(name="taken")
    add(notebook="second", name="elsewhere")
    before = (run / "run.json").read_bytes()
    with pytest.raises(ValueError, match=words):
        name_run(run, name, tmp_path / "models")
    assert (run / "run.json").read_bytes() == before
    name_run(run, "elsewhere", tmp_path / "models")
    name_run(other, "taken", tmp_path / "models")  # its own
    name_run(run, "x" * 40, tmp_path / "models")


def test_a_name_is_written_whole_or_not_at_all(add, tmp_path, monkeypatch):
    run = add()
    before = {path.name: path.read_bytes() for path in run.iterdir()}

    def full(*args):
        raise OSError("No space left on device")

    monkeypatch.setattr(device.os, "replace", full)
    with pytest.raises(OSError, match="No space left"):
        name_run(run, "new", tmp_path / "models")
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


# ---- deletion


def test_a_run_is_deleted_whole_even_if_it_is_damaged(add, tmp_path):
    kept, first, second = add(), add(), add()
    (first / "model.onnx").write_text("of the user")
    (second / "run.json").write_text("{")
    assert delete_run(first, tmp_path / "models") == first
    assert delete_run(second.name, tmp_path / "models") == second
    assert list((tmp_path / "models" / "tiny").iterdir()) == [kept]
    with pytest.raises(FileNotFoundError, match=f"no run {first.name}"):
        delete_run(first.name, tmp_path / "models")
    with pytest.raises(FileNotFoundError, match="There is no run"):
        delete_run(first, tmp_path / "models")


def test_what_is_no_run_is_neither_deleted_nor_named(add, tmp_path):
    run, twin = add(), add()
    models = tmp_path / "models"
    shutil.copytree(run, models / "tiny_ast_esc10")
    shutil.copytree(run, tmp_path / "outside" / run.name)
    shutil.copytree(run, models / "tiny" / "deeper" / run.name)
    shutil.copytree(twin, models / "other" / twin.name)
    stranger, link = (models / "tiny" / f"20260101-00000{n}-abcdef01" for n in (8, 9))
    stranger.mkdir()
    (stranger / "thesis.txt").write_text("the only copy")
    link.symlink_to(run, target_is_directory=True)
    (models / "tiny" / "sweep").mkdir()
    before = sorted(tmp_path.rglob("*"))
    refused = {
        models / "tiny_ast_esc10": "published weights, which belong to the repository",
        tmp_path / "outside" / run.name: "is no run folder", models / "tiny" / "deeper" / run.name: "is no run folder",
        models / "tiny": "is no run folder", models: "is no run folder", models / "tiny" / "sweep": "is no run folder",
        run / "run.json": "is no run folder", models / "tiny" / ".." / "tiny": "is no run folder",
        "": "is no run folder", link: "is no run folder", link.name: "is no run folder",
        stranger: "none of a run's files", twin.name: "have the same last part",
    }  # fmt: skip
    for given, words in refused.items():
        for change in (delete_run, lambda given, folder: name_run(given, "new", folder)):
            with pytest.raises(ValueError, match=words):
                change(given, models)
    assert sorted(tmp_path.rglob("*")) == before
    assert delete_run(models / "other" / ".." / "other" / twin.name, models) == models / "other" / twin.name


# ---- the command line


@pytest.fixture
def house(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(device, "ROOT", tmp_path)
    return tmp_path


def test_the_commands_compare_name_and_delete(add, house, capsys):
    first, second = add(0.5), add(0.6)
    other = add(0.25, notebook="other", data=DEMO)
    assert notebooks.main(["name", first.name, "with  warm-up"]) == 0
    assert notebooks.main(["name", f"models/tiny/{second.name}", "plain"]) == 0
    assert capsys.readouterr().out == f"{first} is called 'with warm-up' now.\n{second} is called 'plain' now.\n"
    assert notebooks.main(["compare"]) == 0
    path, _, *lines = capsys.readouterr().out.splitlines()
    assert path == str(house / "figures" / "compare.html") and len(Page(Path(path)).rows) == 3
    assert [re.split(r"  +", line) for line in lines] == [
        ["notebook", "data", "runs", "best", "which", "latest"],
        ["other", "ESC-10, demo data", "1", "test accuracy 25.0 % (15.0 to 35.0)", "2026-01-01 00:00:02"],
        ["tiny", "ESC-10", "2", "test accuracy 60.0 % (50.0 to 70.0)", "plain", "is the best"],
    ]
    assert notebooks.main(["compare", "--only", "tiny.ipynb"]) == 0
    assert list(Page(Path(path)).rows) == [f"tiny-{second.name}", f"tiny-{first.name}"]
    assert notebooks.main(["delete", other.name]) == 0 and not other.exists()
    assert capsys.readouterr().out.endswith(f"{other} is deleted.\n")
    for arguments in (["delete", other.name], ["delete", "models/tiny"], ["name", first.name, "plain"]):
        assert notebooks.main(arguments) == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_without_runs_a_sentence_says_how_to_make_one(house, capsys):
    (house / "models" / "tiny_ast_esc10").mkdir(parents=True)
    (house / "models" / "README.md").touch()
    assert notebooks.main(["compare"]) == 2
    sentence = f"There are no runs of any notebook in {house / 'models'}; `make notebooks` makes some.\n"
    assert capsys.readouterr().err == sentence
    assert notebooks.main(["compare", "--only", "tiny"]) == 2
    assert "`make notebooks ONLY=tiny` makes some" in capsys.readouterr().err
    assert not (house / "figures").exists()


def test_published_weights_are_no_runs(add, tmp_path):
    run = add()
    shutil.copytree(run, tmp_path / "models" / "tiny_ast_esc10")
    assert len(show(tmp_path).rows) == 1 and "tiny_ast" not in show(tmp_path).text
    assert runs.LONGEST_NAME == 40
