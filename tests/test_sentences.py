"""Sentences: the built-in ones, SST-2 through two spreadsheets, tables of one's own, and what trains and tests."""

import errno
import json
import re
import sys
import types
import unicodedata
import zipfile
from pathlib import Path

import numpy as np
import openpyxl
import pandas as pd
import pytest

from shared_utils import datasets, demo_sentences
from shared_utils.datasets import download, load_sentences, load_sst2, load_texts, save_texts
from shared_utils.demo_data import make_review_sentences
from shared_utils.splits import LeakError, find_text_overlap, normalise_text

NAMES = ("negative", "positive")


def write_tsv(path: Path, rows: list[tuple[str, int]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("sentence\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in rows), "utf-8")


def make_sst2(data_dir: Path, train=(), dev=(), n_train: int = 60, n_dev: int = 20) -> Path:
    """Write SST-2 with numbered sentences, whose number is odd where the label is 1, and the given ones behind them."""
    write_tsv(data_dir / "SST-2" / "train.tsv", [(f"train {k} here", k % 2) for k in range(n_train)] + list(train))
    write_tsv(data_dir / "SST-2" / "dev.tsv", [(f"dev {k} there", k % 2) for k in range(n_dev)] + list(dev))
    return data_dir


def write_sheet(path: Path, rows: list) -> Path:
    book = openpyxl.Workbook()
    for row in rows:
        book.active.append(row)
    book.save(path)
    return path


def read_sheet(path: Path) -> list[list]:
    return [list(row) for row in openpyxl.load_workbook(path).active.iter_rows(values_only=True)]


def texts_of(sentences: pd.DataFrame, split: str) -> list[str]:
    return sentences["text"][sentences["split"] == split].tolist()


# the built-in sentences


def test_the_built_in_sentences_are_balanced_different_and_apart(tmp_path):
    folder = make_review_sentences(tmp_path / "demo")
    tables = [pd.read_csv(folder / "SST-2" / f"{name}.tsv", sep="\t", quoting=3) for name in ("train", "dev")]
    assert [table["label"].value_counts().to_dict() for table in tables] == [{0: 100, 1: 100}, {0: 50, 1: 50}]
    everything = pd.concat(tables)
    assert everything["sentence"].map(normalise_text).nunique() == 300
    assert sorted(everything["sentence"][everything["label"] == 1]) == sorted(demo_sentences.POSITIVE)
    pairs = find_text_overlap(everything["sentence"], everything["sentence"])
    assert (pairs["train_row"] == pairs["test_row"]).all()  # no sentence is a piece of another one
    words = everything["sentence"].map(lambda text: set(normalise_text(text).split()))
    pairs = [len(a & b) / len(a | b) for k, a in enumerate(words) for b in words[:k]]
    assert max(pairs) < 0.6  # and none is nearly another one

    n_words = everything["sentence"].str.split().str.len()
    for label in (0, 1):
        lengths = n_words[everything["label"] == label]
        assert lengths.min() <= 4 and lengths.max() >= 20
        negated = everything["sentence"].str.contains(
            r"\b(?:not|never|no|nobody|nothing|isn't|can't|don't)\b", case=False
        )
        assert 12 <= negated[everything["label"] == label].sum() <= 45


def test_a_bag_of_words_learns_something_from_forty_of_them_and_not_much():
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    texts = np.array([*demo_sentences.NEGATIVE, *demo_sentences.POSITIVE])
    labels = np.repeat([0, 1], 150)
    is_test = np.arange(300) % 150 % 3 == 2
    scores = []
    for seed in range(10):
        rng = np.random.default_rng(seed)
        rows = np.concatenate([rng.permutation(np.flatnonzero(~is_test & (labels == y)))[:20] for y in (0, 1)])
        model = make_pipeline(TfidfVectorizer(), LogisticRegression()).fit(texts[rows], labels[rows])
        scores.append(model.score(texts[is_test], labels[is_test]))
    assert 0.58 < np.mean(scores) < 0.70


def test_the_demo_folder_is_used_again_repaired_and_never_takes_somebody_elses_place(tmp_path, monkeypatch):
    folder = make_review_sentences(tmp_path / "demo")
    files = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
    assert files == ["README.txt", "SST-2/dev.tsv", "SST-2/train.tsv"]
    assert "demo data" in (folder / "README.txt").read_text()
    train = folder / "SST-2" / "train.tsv"
    made = train.stat().st_ino, train.stat().st_mtime_ns, train.read_bytes()
    make_review_sentences(folder)
    assert (train.stat().st_ino, train.stat().st_mtime_ns, train.read_bytes()) == made
    train.unlink()
    make_review_sentences(folder)
    assert train.read_bytes() == made[2]
    monkeypatch.setattr("shared_utils.demo_data.POSITIVE", tuple(f"so good {k}" for k in range(150)))
    make_review_sentences(folder)  # other sentences: made again
    assert "so good 0\t1\n" in train.read_text() and [file.name for file in tmp_path.iterdir()] == ["demo"]

    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "README.txt").write_text("my thesis")
    with pytest.raises(ValueError, match="mine holds something other than demo data"):
        make_review_sentences(tmp_path / "mine")
    assert (tmp_path / "mine" / "README.txt").read_text() == "my thesis"


# what is on both sides


@pytest.mark.parametrize(
    "text, words",
    [
        ("  It 's  Fun , really .", "its fun really"),
        ("it’s fun... REALLY!", "its fun really"),
        ("they did n't , we DIDN'T", "they didnt we didnt"),
        ("rock 'n' roll", "rock n roll"),
        ("snake_case and -lrb- sic -rrb-", "snake case and lrb sic rrb"),
        (unicodedata.normalize("NFD", "Très déjà-vu"), unicodedata.normalize("NFC", "très déjà vu")),
        ("STRASSE straße", "strasse strasse"),
        ("👍 👍", "👍👍"),
        ("...", "..."),
        ("великий фильм!", "великий фильм"),
    ],
)
def test_normalised_text_is_its_words(text, words):
    assert normalise_text(text) == words


def test_find_text_overlap_names_every_kind_of_pair():
    train = [
        "a dull film .",
        "It is a dull film, and long",
        "dull",
        "unrelated words",
        "dull film",
        "👍",
        "a dull film?",
    ]
    test = ["something else entirely", "A DULL FILM", "dull !", "it is a dull film", "👎", "👍"]
    pairs = find_text_overlap(train, test)
    assert pairs[["test_row", "train_row", "overlap"]].to_numpy().tolist() == [
        [1, 0, "equal"],
        [1, 1, "test in train"],
        [1, 6, "equal"],
        [2, 2, "equal"],  # "dull" in the longer ones is too short to give anything away
        [3, 0, "train in test"],
        [3, 1, "test in train"],
        [3, 6, "train in test"],
        [5, 5, "equal"],
    ]
    assert pairs["train_text"].tolist()[:2] == train[:2] and pairs["test_text"][0] == "A DULL FILM"
    assert find_text_overlap(train, ["a dull", "dully a dull films"]).empty  # whole words only
    empty = find_text_overlap([], [])
    assert empty.columns.tolist() == pairs.columns.tolist() and empty.dtypes.tolist() == pairs.dtypes.tolist()


def test_find_text_overlap_finds_what_a_search_of_every_pair_finds():
    rng = np.random.default_rng(0)
    draw = lambda n: [" ".join(rng.choice(list("abc"), rng.integers(1, 9))) for _ in range(n)]  # noqa: E731
    train, test = draw(120), draw(60)
    expected = set()
    for i, a in enumerate(train):
        for j, b in enumerate(test):
            if a == b:
                expected.add((i, j, "equal"))
            elif f" {b} " in f" {a} " and len(b.split()) >= 3:
                expected.add((i, j, "test in train"))
            elif f" {a} " in f" {b} " and len(a.split()) >= 3:
                expected.add((i, j, "train in test"))
    found = find_text_overlap(train, test)[["train_row", "test_row", "overlap"]]
    assert len(found) == len(expected) > 100 and set(found.itertuples(index=False, name=None)) == expected


# SST-2


def test_load_sst2_draws_balanced_tables_and_reads_them_from_the_spreadsheets(tmp_path):
    make_sst2(tmp_path)
    sentences = load_sst2(tmp_path, 10, 8, folder=tmp_path / "drawn")
    assert sentences.columns.tolist() == ["text", "label", "class_name", "split", "source"]
    assert sentences.attrs == {"data_set": "SST-2", "demo": False} and sentences["label"].dtype == np.int64
    assert sentences["split"].tolist() == ["train"] * 10 + ["test"] * 8
    assert sentences.groupby(["split", "class_name"]).size().to_dict() == {
        ("test", "negative"): 4, ("test", "positive"): 4, ("train", "negative"): 5, ("train", "positive"): 5,
    }  # fmt: skip
    for row in sentences.itertuples():
        where, number, _ = row.text.split()
        assert where == {"train": "train", "test": "dev"}[row.split]
        assert row.label == int(number) % 2 and row.class_name == NAMES[row.label]
    assert sentences["source"].nunique() == 18
    assert read_sheet(tmp_path / "drawn" / "training.xlsx") == [
        ["sentence", "label", "label_name"],
        *sentences[sentences["split"] == "train"][["text", "label", "class_name"]].to_numpy().tolist(),
    ]
    assert sorted(file.name for file in (tmp_path / "drawn").iterdir()) == [
        "made_for.json",
        "test.xlsx",
        "training.xlsx",
    ]
    pd.testing.assert_frame_equal(load_sst2(tmp_path / "SST-2", 10, 8, folder=tmp_path / "again"), sentences)


def test_seeds_draw_other_training_sentences_and_the_same_test(tmp_path):
    make_sst2(tmp_path)
    draws = [load_sst2(tmp_path, 20, 8, seed=seed, folder=tmp_path / f"{seed}") for seed in range(3)]
    tests = [texts_of(draw, "test") for draw in draws]
    assert tests[0] == tests[1] == tests[2]
    trains = [set(texts_of(draw, "train")) for draw in draws]
    assert all(len(a & b) < 16 for a, b in zip(trains, trains[1:] + trains[:1], strict=True))
    few = load_sst2(tmp_path, 6, None, seed=1, folder=tmp_path / "few")
    assert texts_of(few, "train") == texts_of(draws[1], "train")[:6]  # a small draw begins a large one
    assert texts_of(few, "test") == [f"dev {k} there" for k in range(20)]
    assert set(tests[0]) < set(texts_of(few, "test"))


def test_without_a_folder_every_draw_has_its_own(tmp_path, monkeypatch):
    make_sst2(tmp_path / "data")
    monkeypatch.setattr(datasets, "resolve_path", lambda path: (tmp_path / path).resolve())
    monkeypatch.setattr("shared_utils.demo_data.resolve_path", lambda path: (tmp_path / path).resolve())
    for arguments in ({"seed": 2}, {"n_test": None}, {"source": "demo"}):
        load_sst2("data", 4, **{"n_test": 6, **arguments})
    folders = {file.parent.relative_to(tmp_path).as_posix() for file in tmp_path.rglob("training.xlsx")}
    assert folders == {f"data/processed/{name}" for name in ("sst2/4-6-seed2", "sst2/4-all-seed0")} | {
        "data/processed/review_sentences/4-6-seed0"
    }


def test_training_rows_that_give_a_test_sentence_away_are_never_drawn(tmp_path):
    dev = [("dev 0 there , again and again", 0), ("mind the gap", 1)]
    train = [
        ("Dev 3 there !", 1),  # equal
        ("they say dev 4 there every day", 0),  # a test sentence inside
        ("again and again", 1),  # a phrase of a test sentence
        ("mind", 0),  # one word of it: allowed
        ("twice  told tale", 1),
        ("twice told tale .", 0),  # both labels: neither is drawn
        ("train 7 here .", 1),  # there already
    ]
    make_sst2(tmp_path, train, dev, n_train=10, n_dev=8)
    sentences = load_sst2(tmp_path, 10, 4, folder=tmp_path / "drawn")
    drawn = texts_of(sentences, "train")
    assert set(drawn) <= {f"train {k} here" for k in range(10)} | {"mind"} and len(set(drawn)) == 10
    assert {text for text in drawn if text.startswith("train") and int(text.split()[1]) % 2} == {
        f"train {k} here" for k in range(1, 10, 2)
    }
    everything = load_sst2(tmp_path, 10, None, folder=tmp_path / "all")
    assert texts_of(everything, "train") == drawn  # whatever part of dev.tsv is tested
    assert find_text_overlap(drawn, texts_of(everything, "test")).empty
    with pytest.raises(ValueError, match=r"train.tsv has 5 positive sentences to draw from, fewer than half of 12"):
        load_sst2(tmp_path, 12, 4, folder=tmp_path / "more")
    with pytest.raises(ValueError, match=r"dev.tsv has 5 \w+ sentences to draw from, fewer than half of 200; ask for"):
        load_sst2(tmp_path, folder=tmp_path / "more", n_train=4)
    assert not (tmp_path / "more").exists() or not list((tmp_path / "more").iterdir())


def test_demo_sentences_are_drawn_like_real_ones(tmp_path, capsys):
    sentences = load_sst2(tmp_path, 160, 200, source="demo", folder=tmp_path / "drawn")
    printed = capsys.readouterr().out
    assert "Using the built-in demo data (review sentences)" in printed and "download sst2" in printed
    assert "The demo data have 100 test sentences instead of 200." in printed
    assert sentences.attrs == {"data_set": "review sentences", "demo": True}
    assert sentences.groupby(["split", "label"]).size().tolist() == [50, 50, 80, 80]
    assert set(sentences["text"][sentences["label"] == 1]) <= set(demo_sentences.POSITIVE)
    with pytest.raises(FileNotFoundError, match="no SST-2 in .*put the publisher's folder SST-2 there, or run"):
        load_sst2(tmp_path, source="real")


@pytest.mark.parametrize("arguments", [{"n_train": 5}, {"n_train": 0}, {"n_train": None}, {"n_test": 3}, {"seed": -1}])
def test_numbers_that_cannot_be_drawn(tmp_path, arguments):
    name, value = next(iter(arguments.items()))
    with pytest.raises(ValueError, match=re.escape(f"{name}={value}")):
        load_sst2(make_sst2(tmp_path), folder=tmp_path / "drawn", **arguments)


def test_damaged_tables_are_named(tmp_path):
    make_sst2(tmp_path)
    train, dev = (tmp_path / "SST-2" / f"{name}.tsv" for name in ("train", "dev"))
    good = dev.read_text()
    for text, message in (
        (good + "no label\n", r"dev.tsv, line 22: .* not 'no label' and ''; fetch"),
        (good + "a label too high\t2\n", r"dev.tsv, line 22: .*'2'"),
        (good + " \t1\n", r"dev.tsv, line 22: a sentence and the label 0 or 1 are needed"),
        ("index\tsentence\n0\tthe test part of GLUE\n", "dev.tsv needs the columns sentence and label; it has index,"),
        (good + "a\tb\tc\td\n", "dev.tsv is not a table of tab-separated values"),
    ):
        dev.write_text(text)
        with pytest.raises(ValueError, match=message):
            load_sst2(tmp_path, 4, 4, folder=tmp_path / "drawn")
    dev.unlink()
    with pytest.raises(FileNotFoundError, match="dev.tsv is missing; put the publisher's file there, or remove"):
        load_sst2(tmp_path, 4, 4, folder=tmp_path / "drawn")
    assert train.exists() and not (tmp_path / "drawn").exists()


# the spreadsheets

STRANGE = [
    "=1+1 is all the plot there is",
    "=SUM(A1:A9)",
    "#N/A",
    "NA",
    "-- and long -- for its own good",
    "1984",
    "+1",
    'he said "no" , twice',
    "<b>bold</b> & brave",
    "👍🏽 loved it 🎬",
    "とても面白い映画です",
    "фильм великолепен",
    "فيلم رائع",
    "क्या शानदार फिल्म है",
    "résumé naïve ☕",
    "nothing",
]


def test_every_kind_of_sentence_survives_the_round_trip(tmp_path):
    rows = [(text, k % 2) for k, text in enumerate(STRANGE)] + [("word " * 6000, 0), ("w" * 32767, 1)]
    write_tsv(tmp_path / "SST-2" / "train.tsv", rows)
    write_tsv(tmp_path / "SST-2" / "dev.tsv", [("dev zero", 0), ("dev one", 1)])
    sentences = load_sst2(tmp_path, 18, None, folder=tmp_path / "drawn")
    train = sentences[sentences["split"] == "train"]
    assert dict(zip(train["text"], train["label"], strict=True)) == {text.strip(): label for text, label in rows}
    cells = [cell for (cell,) in openpyxl.load_workbook(tmp_path / "drawn" / "training.xlsx").active["A2:A19"]]
    assert {cell.data_type for cell in cells} == {"s"} and {cell.number_format for cell in cells} == {
        "@"
    }  # no formulas


@pytest.mark.parametrize(
    "text, message",
    [
        ("long " * 6554, r"'long long .*\.\.\.': it has 32,769 characters, and a cell takes 32,767"),
        ("bell \a", "control"),
    ],
)
def test_a_sentence_that_no_cell_can_hold_is_named_and_nothing_is_written(tmp_path, text, message):
    make_sst2(tmp_path, train=[(text, 0), ("fine", 1)], n_train=2)
    with pytest.raises(ValueError, match="training.xlsx cannot hold the sentence .*" + message):
        load_sst2(tmp_path, 4, 4, folder=tmp_path / "drawn")
    assert list((tmp_path / "drawn").iterdir()) == []


def test_workbooks_edited_by_hand_are_read_as_they_are_and_never_overwritten(tmp_path, capsys):
    make_sst2(tmp_path)
    folder = tmp_path / "drawn"
    rows = load_sst2(tmp_path, 4, 4, folder=folder)
    assert capsys.readouterr().out == ""
    texts = texts_of(rows, "train")
    write_sheet(
        folder / "training.xlsx",
        [
            [None, None, None, None],
            ["note", "Label Name", "LABEL", "Sentence"],
            ["", "negative", 0, texts[0]],
            [None, None, "Positive", f"  {texts[1]} "],
            [],
            ["mine", None, "negative", "I wrote this one"],
            ["", "", "", ""],
            ["mine", "positive", None, "and this one"],
            ["mine", None, 1, "and 👍 this one"],
            ["only a note", None, None, None],
        ],
    )
    edited = (folder / "training.xlsx").read_bytes()
    sentences = load_sst2(tmp_path, 4, 4, folder=folder)
    printed = capsys.readouterr().out
    assert (
        "Edited by hand, and read as it is: " in printed
        and "drawn/training.xlsx.\n" in printed
        and "test.xlsx" not in printed
    )
    assert "Left out 3 blank rows of training.xlsx." in printed
    train = sentences[sentences["split"] == "train"]
    assert list(zip(train["text"], train["label"], strict=True)) == [
        (texts[0], 0), (texts[1], 1), ("I wrote this one", 0), ("and this one", 1), ("and 👍 this one", 1),
    ]  # fmt: skip
    assert texts_of(sentences, "test") == texts_of(rows, "test")
    for arguments in ({"seed": 1}, {"n_train": 6}, {"n_test": None}):
        with pytest.raises(ValueError, match="training.xlsx was edited, .* is not overwritten; move it, give another"):
            load_sst2(tmp_path, **{"n_train": 4, "n_test": 4, **arguments}, folder=folder)
    (folder / "test.xlsx").unlink()  # what is missing comes back, and the edited one stays
    assert texts_of(load_sst2(tmp_path, 4, 4, folder=folder), "test") == texts_of(rows, "test")
    assert (folder / "training.xlsx").read_bytes() == edited


def test_untouched_workbooks_are_used_again_and_replaced_for_other_arguments(tmp_path):
    make_sst2(tmp_path)
    first = load_sst2(tmp_path, 4, 4, folder=tmp_path / "drawn")
    made = (tmp_path / "drawn" / "training.xlsx").stat().st_mtime_ns
    load_sst2(tmp_path, 4, 4, folder=tmp_path / "drawn")
    assert (tmp_path / "drawn" / "training.xlsx").stat().st_mtime_ns == made
    assert len(load_sst2(tmp_path, 8, 6, seed=1, folder=tmp_path / "drawn")) == 14
    pd.testing.assert_frame_equal(load_sst2(tmp_path, 4, 4, folder=tmp_path / "drawn"), first)
    make_sst2(tmp_path, n_train=10)  # other data under the same name
    again = load_sst2(tmp_path, 10, 4, folder=tmp_path / "drawn")
    assert set(texts_of(again, "train")) == {f"train {k} here" for k in range(10)}


def test_workbooks_of_somebody_else_are_left_alone(tmp_path):
    make_sst2(tmp_path)
    mine = write_sheet(tmp_path / "test.xlsx", [["sentence", "label"], ["mine", 1]]).read_bytes()
    for note in (None, "{", "[]", '{"arguments": 1}'):
        if note:
            (tmp_path / "made_for.json").write_text(note)
        with pytest.raises(ValueError, match="test.xlsx was edited, or is not of load_sst2 with these arguments"):
            load_sst2(tmp_path, 4, 4, folder=tmp_path)
    assert (tmp_path / "test.xlsx").read_bytes() == mine and not (tmp_path / "training.xlsx").exists()


def test_a_full_disk_leaves_the_earlier_draw_whole(tmp_path, monkeypatch):
    make_sst2(tmp_path)
    first = load_sst2(tmp_path, 4, 4, folder=tmp_path / "drawn")
    before = {file.name: file.read_bytes() for file in (tmp_path / "drawn").iterdir()}
    write = datasets._write_workbook

    def fail(path, table, final):
        if final.name == "test.xlsx":
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, table, final)

    with monkeypatch.context() as patch:
        patch.setattr(datasets, "_write_workbook", fail)
        with pytest.raises(OSError, match="cannot be written to .*drawn: No space left on device; close the files"):
            load_sst2(tmp_path, 4, 4, seed=1, folder=tmp_path / "drawn")
    assert {file.name: file.read_bytes() for file in (tmp_path / "drawn").iterdir()} == before
    pd.testing.assert_frame_equal(load_sst2(tmp_path, 4, 4, folder=tmp_path / "drawn"), first)


def test_an_interruption_never_leaves_workbooks_under_a_wrong_note(tmp_path, monkeypatch):
    make_sst2(tmp_path)
    load_sst2(tmp_path, 4, 4, folder=tmp_path / "drawn")
    replace = datasets.os.replace

    def interrupt(source, target):
        if Path(target).name == "training.xlsx":
            raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", interrupt)
        with pytest.raises(KeyboardInterrupt):
            load_sst2(tmp_path, 6, 6, seed=1, folder=tmp_path / "drawn")
    assert json.loads((tmp_path / "drawn" / "made_for.json").read_text())["arguments"]["seed"] == 1
    sentences = load_sst2(tmp_path, 6, 6, seed=1, folder=tmp_path / "drawn")
    pd.testing.assert_frame_equal(sentences, load_sst2(tmp_path, 6, 6, seed=1, folder=tmp_path / "fresh"))


def edit_training(tmp_path: Path, rows: list) -> Path:
    make_sst2(tmp_path)
    load_sst2(tmp_path, 4, 4, folder=tmp_path / "drawn")
    write_sheet(tmp_path / "drawn" / "training.xlsx", rows)
    return tmp_path / "drawn"


def test_a_test_sentence_put_into_training_is_found(tmp_path):
    rows = [
        ["sentence", "label"],
        ["once more , DEV 3 THERE", 1],
        ["fine", 0],
        *[[f"dev {k} there", k % 2] for k in range(20)],
    ]
    folder = edit_training(tmp_path, rows)
    with pytest.raises(
        LeakError, match=r"4 sentences of .*test.xlsx share a sentence or phrase with training.xlsx"
    ) as leak:
        load_sst2(tmp_path, 4, 4, folder=folder)
    assert set(leak.value.rows["overlap"]) <= {"equal", "test in train"} and len(leak.value.rows) >= 4


@pytest.mark.parametrize(
    "rows, message",
    [
        (
            [["sentence", "label"], ["a", 1], ["b", 2]],
            "sheet 'Sheet', row 3: the label must be 0 or negative, 1 or pos",
        ),
        (
            [["sentence", "label"], ["a", 1], ["b", "neutral"]],
            "row 3: .* not 'neutral'; read other classes with load_s",
        ),
        ([["sentence", "label"], ["a", 1], ["b", "positive"]], "training.xlsx holds one class only"),
        (
            [["sentence", "label", "label_name"], ["a", 1, "positive"], ["b", 0, "negative"], ["c", 1, "negative"]],
            "row 4: the label 1 is called 'negative', but 'positive' in row 2; correct one of them",
        ),
    ],
)
def test_labels_that_are_no_sentiment(tmp_path, rows, message):
    folder = edit_training(tmp_path, rows)
    with pytest.raises(ValueError, match=message):
        load_sst2(tmp_path, 4, 4, folder=folder)


# tables of one's own


def read(sentences: pd.DataFrame) -> list[tuple]:
    return list(sentences[["text", "label", "class_name"]].itertuples(index=False, name=None))


@pytest.mark.parametrize(
    "header", [["text", "label"], ["Review", "Sentiment"], [" SENTENCE ", "class"], ["comment", "label_name"]]
)
@pytest.mark.parametrize("kind", ["xlsx", "csv"])
def test_load_sentences_finds_the_columns(tmp_path, header, kind):
    rows = [["id", *header], [7, "so good", "good"], [8, "so bad", "bad"], [9, "So good!", "Good "]]
    path = tmp_path / f"my reviews.{kind}"
    if kind == "xlsx":
        write_sheet(path, rows)
    else:
        pd.DataFrame(rows[1:], columns=rows[0]).to_csv(path, index=False)
    sentences = load_sentences(path)
    assert sentences.columns.tolist() == ["text", "label", "class_name", "source"]
    assert sentences.attrs == {"data_set": "my reviews", "demo": False} and sentences["label"].dtype == np.int64
    assert read(sentences) == [("so good", 1, "good"), ("so bad", 0, "bad"), ("So good!", 1, "good")]
    assert sentences["source"].tolist() == ["sentence 1", "sentence 2", "sentence 1"]  # the same one, so never parted


@pytest.mark.parametrize(
    "labels, expected",
    [
        ([2, 1, 2], [1, 0, 1]),
        ([1.0, 0, "1"], [1, 0, 1]),
        (["pos", "NEG", "Pos"], [1, 0, 1]),
        ([True, False, True], [1, 0, 1]),
        (["c", "a", "b"], [2, 0, 1]),
        (["NA", "None", "null"], [0, 1, 2]),
        (["very\u00a0good", "so  so", "Very good", "so so\u200b"], [1, 0, 1, 0]),  # as pasted from a page
        (["scho\u0308n", "mies", "sch\u00f6n"], [1, 0, 1]),  # as a Mac writes it, and others
        (["1.1", "1.10", "1.1"], [0, 1, 0]),  # may be the numbers of chapters
        (["m\u00b2", "m2", "m\u00b2"], [1, 0, 1]),
        (["\u0645\u06cc\u200c\u0631", "\u0645\u06cc\u0631", "x"], [2, 1, 0]),  # Persian, with a joiner and without
    ],
)
def test_labels_are_words_or_numbers(tmp_path, labels, expected):
    path = write_sheet(tmp_path / "own.xlsx", [["text", "label"], *([f"row {k}", y] for k, y in enumerate(labels))])
    sentences = load_sentences(path)
    assert sentences["label"].tolist() == expected
    pd.DataFrame({"text": sentences["text"], "label": labels}).to_csv(tmp_path / "own.csv", index=False)
    assert load_sentences(tmp_path / "own.csv")["label"].tolist() == expected


def test_columns_can_be_named_and_names_stand_for_labels(tmp_path):
    rows = [["title", "body", "stars", "label", "class_name"], ["t", "b", 5, 1, "likes"], ["u", "c", 1, 0, "hates"]]
    path = write_sheet(tmp_path / "own.xlsx", rows)
    assert read(load_sentences(path, text="Title")) == [("t", 1, "likes"), ("u", 0, "hates")]
    assert read(load_sentences(path, "body", "stars")) == [("b", 1, "5"), ("c", 0, "1")]
    with pytest.raises(ValueError, match=r"has no column 'rating'; its first row names title, body, stars, label, cl"):
        load_sentences(path, "body", "rating")
    with pytest.raises(ValueError, match="text and label are both the column 'body'"):
        load_sentences(path, "body", "body")


def test_blank_rows_are_left_out_and_counted(tmp_path, capsys):
    rows = [[], ["", None], ["text", "label"], ["a", 1], [" ", ""], ["b", 0], [], ["c", 0], ["", ""], []]
    sentences = load_sentences(write_sheet(tmp_path / "own.xlsx", rows))
    assert sentences["text"].tolist() == ["a", "b", "c"]
    assert capsys.readouterr().out == "Left out 2 blank rows of own.xlsx.\n"  # those between sentences
    (tmp_path / "own.csv").write_text("\n\ntext,label\na,1\n,\nb,0\n\n\n")
    assert load_sentences(tmp_path / "own.csv")["text"].tolist() == ["a", "b"]
    assert capsys.readouterr().out == "Left out 1 blank row of own.csv.\n"


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_csv_files_of_every_country(tmp_path, delimiter):
    texts = ["one, two; three\tfour", 'he said "no"', "two\nlines", "👍 отлично", "word " * 9999 + "word"]
    lines = [f'"{text}"'.replace('"no"', '""no""') + f"{delimiter}{k % 2 + 1}" for k, text in enumerate(texts)]
    text = "\r\n".join([f"text{delimiter}label", *lines])
    (tmp_path / "own.csv").write_bytes(text.encode("utf-8-sig"))
    sentences = load_sentences(tmp_path / "own.csv")
    assert sentences["text"].tolist() == texts and sentences["label"].tolist() == [0, 1, 0, 1, 0]


def test_xlsx_keeps_long_sentences_and_other_scripts(tmp_path):
    texts = ["word " * 6000 + "end", "👍🏽", "とても面白い", "1984", "x"]
    rows = [[text, k % 2] for k, text in enumerate(texts)]
    rows[3][0] = 1984  # a number in the sheet
    sentences = load_sentences(write_sheet(tmp_path / "own.XLSX", [["text", "label"], *rows]))
    assert sentences["text"].tolist() == texts and sentences["source"].nunique() == 5


@pytest.mark.parametrize(
    "rows, message",
    [
        ([], r"own.xlsx, sheet 'Sheet' is empty; its first row must name the columns"),
        ([["", None], [" "]], r"sheet 'Sheet' is empty"),
        ([["text", "label"]], r"names its columns and holds no sentences"),
        ([["text", "label"], ["", None]], r"sheet 'Sheet' is empty|holds no sentences"),
        ([["text", "label"], ["a", 1], ["b", "1"]], r"own.xlsx holds one class only \(1\); a classifier needs two"),
        (
            [["so good", 1], ["so bad", 0]],
            r"no column of texts; its first row names so good, 1. Call one 'text', or name",
        ),
        ([["text", "points"], ["a", 1]], r"no column of labels; its first row names text, points. Call one 'label'"),
        (
            [["text", "review", "label"], ["a", "b", 1]],
            r"two columns that could be the text, 'text' and 'review'; rename",
        ),
        ([["text", "label", "label"], ["a", 1, 1]], r"two columns that could be the label, 'label' and 'label'"),
        ([["text", "label"], ["a", 1], [], ["b", None]], r"sheet 'Sheet', row 4: 'b' has no label; add it, or clear"),
        ([["text", "label"], ["a", 1], [" ", "bad"]], r"sheet 'Sheet', row 3: the label 'bad' has no text; add it"),
    ],
)
def test_tables_that_lack_something(tmp_path, rows, message):
    with pytest.raises(ValueError, match=message):
        load_sentences(write_sheet(tmp_path / "own.xlsx", rows))


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", r"own.csv is empty"),
        (
            b"text,label\na,1\nwell, no,0\n",
            r"own.csv, row 3: 3 values for 2 columns; put texts that contain ',' into quo",
        ),
        (
            b'text,label\na,1\n"open,0\nb,1\n',
            r"own.csv, row 3: this is no table of comma-separated values \(unexpected",
        ),
        (
            "text,label\nnaïf,1\n".encode("latin-1"),
            r"own.csv is not text in UTF-8; save it as 'CSV UTF-8', or as .xlsx",
        ),
        (b"\xff\xfe" + "text,label\n".encode("utf-16-le"), r"own.csv is not text in UTF-8"),
        (b"text,label\na\n", r"own.csv, row 2: 'a' has no label"),
        (b'text,label\n"two\nlines",1\nb,\n', r"own.csv, row 4: 'b' has no label"),
    ],
)
def test_csv_files_that_are_no_table(tmp_path, content, message):
    (tmp_path / "own.csv").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_sentences(tmp_path / "own.csv")


def test_damaged_and_locked_workbooks(tmp_path, monkeypatch):
    path = write_sheet(tmp_path / "own.xlsx", [["text", "label"], ["a", 1], ["b", 0]])
    good = path.read_bytes()
    for damaged in (b"", b"plain text", good[: len(good) // 2], good[:200] + b"\0" * 2000 + good[2200:]):
        path.write_bytes(damaged)
        with pytest.raises(
            ValueError, match=r"own.xlsx is damaged, or no .xlsx file at all \(\w+\); save the table again"
        ):
            load_sentences(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "an archive of something else")
    with pytest.raises(ValueError, match="damaged, or no .xlsx"):
        load_sentences(path)
    path.write_bytes(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600))
    with pytest.raises(
        ValueError, match="own.xlsx is locked with a password, or an old .xls under another name; save it"
    ):
        load_sentences(path)
    path.write_bytes(good)

    def deny(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(datasets, "open", deny, raising=False)
    with pytest.raises(
        ValueError, match=r"own.xlsx cannot be opened \(Permission denied\); if another program has lock"
    ):
        load_sentences(path)


def test_files_that_are_no_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="own.csv does not exist; give an .xlsx or .csv file"):
        load_sentences(tmp_path / "own.csv")
    (tmp_path / "old.xls").write_bytes(b"\xd0\xcf\x11\xe0")
    for name in ("old.xls", "."):
        with pytest.raises(ValueError, match="is neither an .xlsx nor a .csv file; save the table as one of them"):
            load_sentences(tmp_path / name)


# texts without labels


@pytest.mark.parametrize("kind", ["xlsx", "csv"])
def test_load_texts_keeps_the_texts_and_their_order(tmp_path, capsys, kind):
    rows = [
        ["id", "Review", "label"],
        [1, "so good", 1],
        [2, " ", 1],
        [3, "1984", None],
        [4, "👍 とても", 0],
        [5, "so good", ""],
    ]
    path = tmp_path / f"my reviews.{kind}"
    if kind == "xlsx":
        write_sheet(path, [[], *rows, [], ["", None, None]])
    else:
        pd.DataFrame(rows[1:], columns=rows[0]).to_csv(path, index=False)
    texts = load_texts(path)
    assert texts.columns.tolist() == ["text"] and texts.index.tolist() == [0, 1, 2, 3]
    assert texts["text"].tolist() == ["so good", "1984", "👍 とても", "so good"]
    assert texts.attrs == {"data_set": "my reviews", "demo": False}
    assert capsys.readouterr().out == f"Left out 1 blank row of my reviews.{kind}.\n"
    assert load_texts(path, text="ID")["text"].tolist() == ["1", "2", "3", "4", "5"]


@pytest.mark.parametrize(
    "rows, message",
    [
        ([], r"sheet 'Sheet' is empty; its first row must name the columns, such as text\."),
        ([["text"], ["", None]], r"sheet 'Sheet' names its columns and holds no sentences"),
        ([["id", "text"], [1, None], [2, " "]], r"sheet 'Sheet' names its columns and holds no sentences"),
        (
            [["so good"], ["so bad"]],
            r"no column of texts; its first row names so good. .* load_texts\(..., text='...'\)",
        ),
        ([["text", "review"], ["a", "b"]], r"two columns that could be the text, 'text' and 'review'; .*load_texts\("),
    ],
)
def test_tables_without_texts(tmp_path, rows, message):
    with pytest.raises(ValueError, match=message):
        load_texts(write_sheet(tmp_path / "own.xlsx", rows))


def test_files_of_texts_that_cannot_be_read(tmp_path):
    with pytest.raises(FileNotFoundError, match="own.csv does not exist; give an .xlsx or .csv file with a text a row"):
        load_texts(tmp_path / "own.csv")
    (tmp_path / "own.xlsx").write_bytes(b"plain text")
    with pytest.raises(ValueError, match="own.xlsx is damaged, or no .xlsx file at all"):
        load_texts(tmp_path / "own.xlsx")
    (tmp_path / "own.txt").write_text("text\na")
    with pytest.raises(ValueError, match="own.txt is neither an .xlsx nor a .csv file"):
        load_texts(tmp_path / "own.txt")
    with pytest.raises(ValueError, match="has no column 'body'; its first row names text"):
        load_texts(write_sheet(tmp_path / "own.xlsx", [["text"], ["a"]]), text="body")


def test_every_kind_of_text_survives_save_texts(tmp_path):
    texts = [*STRANGE, "w" * 32767]
    sure = np.linspace(0, 1, len(texts), dtype=np.float32)
    table = pd.DataFrame({"text": texts, "=no": 1 - sure, "yes": sure, "predicted": ["=no"] * len(texts)})
    path = save_texts(table, tmp_path / "own.predicted.xlsx")
    assert load_texts(path)["text"].tolist() == texts
    header, *rows = read_sheet(path)
    assert header == ["text", "=no", "yes", "predicted"] and [row[3] for row in rows] == ["=no"] * len(texts)
    np.testing.assert_allclose([row[1:3] for row in rows], np.stack([1 - sure, sure], 1), atol=1e-7)
    cells = [cell for row in openpyxl.load_workbook(path).active for cell in row if isinstance(cell.value, str)]
    assert {cell.data_type for cell in cells} == {"s"} and len(cells) == 4 + 2 * len(texts)  # no formulas


def test_what_save_texts_cannot_write_leaves_the_earlier_file(tmp_path, monkeypatch):
    path = save_texts(pd.DataFrame({"text": ["a"]}), tmp_path / "own.xlsx")
    before = path.read_bytes()
    for text, message in (("w" * 32768, "it has 32,768 characters"), ("bell \a", "contains a control character")):
        with pytest.raises(ValueError, match=f"own.xlsx cannot hold the sentence .*{message}"):
            save_texts(pd.DataFrame({"text": [text]}), path)
    with pytest.raises(ValueError, match="own.csv does not end in .xlsx"):
        save_texts(pd.DataFrame({"text": ["b"]}), tmp_path / "own.csv")

    def deny(*_):  # as Windows does while Excel has the file open
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr("os.replace", deny)
    with pytest.raises(
        ValueError, match=r"own.xlsx cannot be written \(Permission denied\); if another program has it op"
    ):
        save_texts(pd.DataFrame({"text": ["b"]}), path)
    assert [file.name for file in tmp_path.iterdir()] == ["own.xlsx"] and path.read_bytes() == before


# the download


def put_package(monkeypatch, load_dataset) -> None:
    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))


def test_the_download_arrives_in_the_publishers_layout(tmp_path, monkeypatch, capsys):
    asked = []

    def load_dataset(*names):
        asked.append(names)
        part = lambda n, what: {"sentence": [f"{what} {k} " for k in range(n)], "label": [k % 2 for k in range(n)]}  # noqa: E731
        return {"train": part(20, "phrase"), "validation": part(6, "sentence"), "test": part(3, "hidden")}

    put_package(monkeypatch, load_dataset)
    monkeypatch.setattr(datasets, "_SST2_ROWS", {"train": 20, "dev": 6})
    sentences = load_sst2(tmp_path, 10, 6, source="download", folder=tmp_path / "drawn")
    assert asked == [("nyu-mll/glue", "sst2")] and sentences.attrs == {"data_set": "SST-2", "demo": False}
    assert (tmp_path / "SST-2" / "train.tsv").read_text().splitlines()[:2] == ["sentence\tlabel", "phrase 0 \t0"]
    assert sorted(texts_of(sentences, "test")) == [f"sentence {k}" for k in range(6)]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["SST-2", "drawn"]
    assert "20 and 6 rows, verified" in capsys.readouterr().out
    assert download("sst2", tmp_path) == tmp_path / "SST-2" and len(asked) == 1
    assert "is already there; remove or rename it" in capsys.readouterr().out


@pytest.mark.parametrize(
    "rows, message",
    [
        (([("a", 0)], [("b", 1)]), "What was fetched as SST-2 has 1 rows in train, not 2; it was not kept"),
        (([("a", 0), ("b", -1)], [("c", 1)]), "train.tsv, line 3: a sentence and the label 0 or 1 are needed"),
    ],
)
def test_a_wrong_download_is_not_kept(tmp_path, monkeypatch, rows, message):
    parts = [dict(zip(("sentence", "label"), map(list, zip(*part, strict=True)), strict=True)) for part in rows]
    put_package(monkeypatch, lambda *_: dict(zip(("train", "validation"), parts, strict=True)))
    monkeypatch.setattr(datasets, "_SST2_ROWS", {"train": 2, "dev": 1})
    with pytest.raises(ValueError, match=message):
        download("sst2", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_download_without_network_says_what_to_do(tmp_path, monkeypatch):
    def fail(*_):
        raise ConnectionError("offline mode is enabled")

    put_package(monkeypatch, fail)
    with pytest.raises(
        ConnectionError, match=r"SST-2 cannot be fetched \(offline mode is enabled\); run it again, or put"
    ):
        load_sst2(tmp_path, source="download")
    assert list(tmp_path.iterdir()) == []


# the real sentences


def test_real_sst2_is_drawn_without_overlap(real_data, tmp_path):
    if not (real_data / "SST-2").is_dir():
        pytest.skip("no SST-2 beside the repository")
    train, dev = (datasets._read_tsv(real_data / "SST-2" / f"{name}.tsv") for name in ("train", "dev"))
    assert (len(train), len(dev)) == (67349, 872)
    pairs = find_text_overlap(train["text"], dev["text"])
    equal = pairs[pairs["overlap"] == "equal"]
    assert sorted(set(equal["test_text"])) == ["bad .", "cool ?"]  # the two that are phrases of the training part
    assert pairs["train_row"].nunique() == 145 and set(pairs["overlap"]) == {"equal", "train in test"}

    draws = [load_sst2(real_data, n_test=None, seed=seed, folder=tmp_path / f"{seed}") for seed in range(3)]
    for draw in draws:
        assert draw.groupby(["split", "label"]).size().tolist() == [428, 444, 20, 20]
        assert set(texts_of(draw, "train")) <= set(train["text"]) and texts_of(draw, "test") == dev["text"].tolist()
        assert find_text_overlap(texts_of(draw, "train"), dev["text"]).empty
    assert len(set().union(*(texts_of(draw, "train") for draw in draws))) > 110
    few = load_sst2(real_data, 8, 200, seed=2, folder=tmp_path / "few")
    assert few.groupby(["split", "label"]).size().tolist() == [100, 100, 4, 4]
    assert texts_of(few, "train") == texts_of(draws[2], "train")[:8]
