"""The loaders, the download over a loopback server, and the data set that gathers batches."""

import http.server
import io
import re
import shutil
import sys
import threading
import unicodedata
import zipfile
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch

from shared_utils import datasets
from shared_utils.audio import decode
from shared_utils.datasets import ArrayDataset, download, load_esc50, load_folder, name_clips, write_split
from shared_utils.demo_data import make_everyday_sounds
from shared_utils.splits import LeakError, audit, split_by_fold

CATEGORIES = ("rooster", "dog", "can_opening", "airplane")  # official order (target), not the alphabet's


def make_esc50(folder: Path, n_folds: int = 5, end: str = ".wav") -> Path:
    """Write a small ESC-50-master: four classes (two of them ESC-10), two takes of one recording in each fold."""
    (folder / "audio").mkdir(parents=True)
    (folder / "meta").mkdir()
    rows = []
    for fold in range(1, n_folds + 1):
        for target, category in enumerate(CATEGORIES):
            for take in "AB":
                name = f"{fold}-{fold}00{target}-{take}-{target}"
                samples = np.full(160, 1000 * fold + 10 * target + (take == "B"), dtype=np.int16)
                soundfile.write(folder / "audio" / (name + end), samples, 16000)
                rows.append((f"{name}.wav", fold, target, category, target < 2, f"{fold}00{target}", take))
    columns = ["filename", "fold", "target", "category", "esc10", "src_file", "take"]
    pd.DataFrame(rows, columns=columns).to_csv(folder / "meta" / "esc50.csv", index=False)
    return folder


def make_folder(folder: Path, n_recordings: int = 10, n_takes: int = 3, classes=("cat", "dog")) -> Path:
    for class_name in classes:
        (folder / class_name).mkdir(parents=True)
        for recording in range(n_recordings):
            for take in range(n_takes):
                path = folder / class_name / f"{class_name}{recording}_take{take}.wav"
                soundfile.write(path, np.full(16, recording, dtype=np.int16), 16000)
    return folder


def count_sides(clips: pd.DataFrame) -> list[list[int]]:
    return pd.crosstab(clips["class_name"], clips["split"])[["train", "val", "test"]].to_numpy().tolist()


# ESC-50


def test_load_esc50_reads_the_official_table(tmp_path):
    make_esc50(tmp_path / "ESC-50-master")
    clips = load_esc50(tmp_path, source="real")
    assert clips.columns.tolist() == ["path", "label", "class_name", "fold", "source", "target"]
    assert clips.attrs == {"data_set": "ESC-50", "demo": False} and len(clips) == 40
    names = clips.drop_duplicates("label").set_index("label")["class_name"].sort_index()
    assert names.tolist() == ["airplane", "can_opening", "dog", "rooster"]
    row = clips[clips["path"].str.endswith("3-3001-B-1.wav")].iloc[0]
    assert (row["label"], row["class_name"], row["fold"], row["source"], row["target"]) == (2, "dog", 3, "3001", 1)
    assert soundfile.read(row["path"], dtype="int16")[0][0] == 3011
    pd.testing.assert_frame_equal(load_esc50(tmp_path / "ESC-50-master"), clips)  # the folder itself


def test_load_esc50_takes_the_ten_class_part(tmp_path):
    make_esc50(tmp_path / "ESC-50-master")
    clips = load_esc50(tmp_path, subset="esc10")
    assert clips.attrs == {"data_set": "ESC-10", "demo": False}
    assert clips.index.tolist() == list(range(20)) and set(clips["class_name"]) == {"dog", "rooster"}
    assert sorted(set(clips["label"])) == [0, 1] and sorted(set(clips["target"])) == [0, 1]


@pytest.mark.parametrize("end", [".flac", ".ogg", ".mp3", ".FLAC"])
def test_load_esc50_finds_other_formats_by_stem(tmp_path, end):
    folder = make_esc50(tmp_path / "ESC-50-master", n_folds=1)
    for file in (folder / "audio").iterdir():
        file.rename(file.with_suffix(end))
    assert all(Path(path).is_file() and path.endswith(end) for path in load_esc50(tmp_path)["path"])


def test_load_esc50_without_recordings_takes_the_demo_data_and_says_so_once(tmp_path, monkeypatch, capsys):
    demo = make_esc50(tmp_path / "demo")
    asked = []
    monkeypatch.setattr("shared_utils.demo_data.make_everyday_sounds", lambda folder: asked.append(folder) or demo)
    clips = load_esc50(tmp_path, subset="esc10")
    assert clips.attrs == {"data_set": "everyday sounds", "demo": True} and len(clips) == 40
    out = capsys.readouterr().out
    assert out.count("\n") == 1 and "demo data" in out and "download esc50" in out
    assert asked[0] == datasets.resolve_path("data/demo/everyday_sounds")
    make_esc50(tmp_path / "ESC-50-master")
    assert not load_esc50(tmp_path).attrs["demo"] and load_esc50(tmp_path, source="demo").attrs["demo"]


def test_the_demo_data_pass_through_loader_audit_and_decoder(tmp_path, monkeypatch):
    small = partial(make_everyday_sounds, n_clips=10, seconds=1)
    monkeypatch.setattr("shared_utils.demo_data.make_everyday_sounds", lambda folder: small(tmp_path / "demo"))
    clips = load_esc50(source="demo")
    assert (clips.groupby(["class_name", "fold"]).size() == 2).all() and clips["class_name"].nunique() == 10
    assert sorted(set(clips["class_name"])) == clips.groupby("label")["class_name"].first().tolist()
    waveforms = decode(clips, 16000, 1, cache_dir=tmp_path / "cache", progress=False)
    np.testing.assert_array_equal(waveforms[7], soundfile.read(clips["path"][7], dtype="int16")[0])
    assert audit(clips, waveforms).to_numpy().tolist() == [[2] * 5] * 10


def test_load_esc50_downloads_when_asked(tmp_path, monkeypatch):
    urls = []

    def fetch(url, data_dir):
        urls.append(url)
        return make_esc50(data_dir / "ESC-50-master")

    monkeypatch.setattr(datasets, "_download_esc50", fetch)
    assert len(load_esc50(tmp_path, source="download")) == 40
    assert len(load_esc50(tmp_path, source="download")) == 40
    assert urls == ["https://github.com/karolpiczak/ESC-50/archive/refs/heads/master.zip"]


def test_load_esc50_reads_the_real_esc10(real_data):
    clips = load_esc50(real_data, source="real")
    assert clips.attrs == {"data_set": "ESC-10", "demo": False}
    assert (clips.groupby(["class_name", "fold"]).size() == 8).all() and len(clips) == 400
    assert clips["source"].nunique() == 304 and clips["label"].max() == 9
    chainsaw = clips[clips["class_name"] == "chainsaw"]
    assert set(chainsaw["label"]) == {0} and set(chainsaw["target"]) == {41}
    pd.testing.assert_frame_equal(load_esc50(real_data, subset="esc10"), clips)


# one's own recordings


def test_load_folder_keeps_sources_whole_and_shares_close(tmp_path):
    clips = load_folder(make_folder(tmp_path / "sounds", 20), source_pattern=r"^(\w+?)_take")
    assert clips.columns.tolist() == ["path", "label", "class_name", "fold", "split", "source"]
    assert clips.attrs == {"data_set": "sounds", "demo": False} and len(clips) == 120
    assert set(clips["source"]) == {f"{name}{k}" for name in ("cat", "dog") for k in range(20)}
    assert clips.groupby("source")["split"].nunique().max() == 1
    assert count_sides(clips) == [[42, 9, 9]] * 2
    again = load_folder(tmp_path / "sounds", source_pattern=r"^(\w+?)_take")
    pd.testing.assert_frame_equal(clips, again)
    other = load_folder(tmp_path / "sounds", seed=1, source_pattern=r"^(\w+?)_take")
    assert (clips["split"] != other["split"]).any()


def test_load_folder_makes_folds_for_a_cross_validation(tmp_path, capsys):
    folder = make_folder(tmp_path / "sounds", 10)
    arguments = {"source_pattern": r"^(\w+?)_take"}
    clips = load_folder(folder, **arguments)
    assert pd.crosstab(clips["class_name"], clips["fold"]).to_numpy().tolist() == [[6] * 5] * 2
    assert clips.groupby("source")["fold"].nunique().max() == 1
    train, val, test = split_by_fold(clips, 5)
    assert set(clips["fold"][train]) == {2, 3, 4} and set(clips["fold"][val]) == {1} and len(test) == 12
    assert (load_folder(folder, seed=1, **arguments)["fold"] != clips["fold"]).any()
    assert set(load_folder(folder, n_folds=3, **arguments)["fold"]) == {1, 2, 3}
    assert capsys.readouterr().out == ""

    for file in (folder / "dog").glob("dog[4-9]*"):
        file.unlink()
    clips = load_folder(folder, **arguments)
    assert pd.crosstab(clips["class_name"], clips["fold"]).loc["dog"].tolist() == [3] * 4
    assert sorted(clips.loc[clips["class_name"] == "cat", "fold"].value_counts()) == [6, 6, 9, 9]
    assert capsys.readouterr().out == "Made 4 folds instead of 5: the class dog has only 4 sources.\n"


@pytest.mark.parametrize("n_voices", [6, 7, 8, 9, 10, 12])
def test_two_voices_test_in_every_fold(tmp_path, capsys, n_voices):
    for word in ("lights", "music", "unknown"):
        (tmp_path / word).mkdir()
        for voice in range(n_voices):
            for take in range(2):
                soundfile.write(tmp_path / word / f"v{voice}_{take}.wav", np.zeros(16, dtype=np.int16), 16000)
    clips = load_folder(tmp_path, source_pattern=r"^(.+?)_")
    assert clips.groupby("fold")["source"].nunique().min() >= 2
    n_folds = min(5, n_voices // 2)
    assert set(clips["fold"]) == set(range(1, n_folds + 1))
    told = f"Made {n_folds} folds instead of 5: with more, one source would test alone.\n" if n_folds < 5 else ""
    assert capsys.readouterr().out == told


def test_a_voice_with_many_takes_does_not_test_alone_where_fewer_folds_prevent_it(tmp_path):
    for word in ("lights", "music"):
        (tmp_path / word).mkdir()
        for voice, n_takes in enumerate([6, 3, 3, 3, 3, 3, 3, 3, 3]):
            for take in range(n_takes):
                soundfile.write(tmp_path / word / f"v{voice}_{take}.wav", np.zeros(16, dtype=np.int16), 16000)
    clips = load_folder(tmp_path, source_pattern=r"^(.+?)_")
    assert clips.groupby("fold")["source"].nunique().min() >= 2 and clips["fold"].nunique() < 5


def test_clips_are_named_by_file_and_start():
    paths = ["/here/yes/anna_1.wav", "/there/noise/rain.wav", "/there/noise/rain.wav"]
    clips = pd.DataFrame({"path": paths, "clip_start": [np.nan, 0.0, 12.25]})
    assert name_clips(clips).tolist() == ["yes/anna_1.wav", "noise/rain.wav 0", "noise/rain.wav 12.25"]
    assert name_clips(clips[["path"]].iloc[::-1]).tolist() == ["noise/rain.wav", "noise/rain.wav", "yes/anna_1.wav"]


def test_a_class_that_cannot_be_everywhere_is_named(tmp_path, capsys):
    speakers = {"a": "012", "b": "013", "c": "023"}  # 0, 1 and 2 apart and 3 with 2: then c is missing beside 1
    rows = [f"{word}{speaker}.wav,{word},{speaker}" for word, those in speakers.items() for speaker in those]
    for row in rows:
        soundfile.write(tmp_path / row.split(",")[0], np.zeros(16, dtype=np.int16), 16000)
    (tmp_path / "mine.csv").write_text("\n".join(["path,label,source", *rows]))
    clips = load_folder(tmp_path / "mine.csv", n_folds=3)
    told = capsys.readouterr().out.splitlines()
    for column, line in zip(("split", "fold"), told, strict=True):
        counts = pd.crosstab(clips[column], clips["class_name"])
        (place,) = np.argwhere(counts.to_numpy() == 0).tolist()  # one gap: fewer are impossible
        side, word = counts.index[place[0]], counts.columns[place[1]]
        assert line.startswith(f"{column.capitalize()} {side} has no clip of class {word!r}: no division of these")
        assert line.endswith("Record these classes from more sources, or leave them out.")


def test_the_audit_of_a_folder_checks_split_and_folds(tmp_path):
    clips = load_folder(make_folder(tmp_path / "sounds", 10), source_pattern=r"^(\w+?)_take")
    waveforms = np.random.default_rng(0).integers(-99, 99, (len(clips), 50)).astype(np.int16)
    counts = audit(clips, waveforms)
    assert counts.columns.tolist() == ["train", "val", "test"]
    assert "60 clips from 20 sources on 3 sides (split) and 5 sides (fold)" in counts.attrs["verdict"]
    for column, others in (("split", {"train": "val", "val": "test", "test": "train"}), ("fold", {1: 2, 2: 1})):
        wrong = clips.copy()
        row = int(clips.index[clips[column].isin(list(others))][0])
        wrong.loc[row, column] = others[clips.loc[row, column]]
        with pytest.raises(LeakError, match=f"1 sources.*\n  {column} ") as caught:
            audit(wrong, waveforms)
        assert set(caught.value.rows["source"]) == {clips["source"][row]}


def test_load_folder_takes_each_file_for_its_own_source_without_a_pattern(tmp_path):
    clips = load_folder(make_folder(tmp_path / "sounds"), split=(0.5, 0.3, 0.2))
    assert clips["source"].nunique() == 60 and clips["source"][0] == "cat/cat0_take0.wav"
    assert count_sides(clips) == [[15, 9, 6]] * 2


def test_load_folder_says_what_it_leaves_out(tmp_path, capsys):
    folder = make_folder(tmp_path / "sounds", n_takes=1)
    for name in ("cat/.hidden.wav", "cat/notes.txt", "dog/cover.jpg", "dog/b.jpg", "loose.wav", ".git/x.wav"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"")
    (folder / "fish").mkdir()
    (folder / "cat" / "more").symlink_to(make_folder(tmp_path / "others"))
    assert len(load_folder(folder)) == 20
    out = capsys.readouterr().out
    assert "sub-folder fish" in out
    kinds = "2 .jpg, 1 .txt, 2 hidden, 1 in no sub-folder, 1 linked folder"
    assert "Ignored 7 files in sounds" in out and kinds in out


def test_folders_of_sides_are_no_classes(tmp_path):
    make_folder(tmp_path / "sounds" / "train")
    make_folder(tmp_path / "sounds" / "Test", classes=("cat", "dog", "train"))
    with pytest.raises(ValueError, match=r"sub-folders for sides \(Test, train\) and none for classes; name one"):
        load_folder(tmp_path / "sounds")
    assert set(load_folder(tmp_path / "sounds" / "Test")["class_name"]) == {"cat", "dog", "train"}


def test_names_that_differ_in_capitals_only_are_seen(tmp_path, capsys):
    folder = make_folder(tmp_path / "sounds", n_takes=1)
    (folder / "cat" / "cat0_take0.wav").rename(folder / "cat" / "CAT0_take1.wav")
    (folder / "dog" / "dog0_take0.wav").rename(folder / "dog" / "cat0_take2.wav")
    load_folder(folder, source_pattern=r"^(.+?)_")
    printed = capsys.readouterr().out
    assert "Sources that differ in capitals or spaces only count as different: CAT0, cat0; rename" in printed
    load_folder(folder)
    assert "capitals" not in capsys.readouterr().out
    rows = [f"{path.parent.name}/{path.name},{path.parent.name}" for path in sorted(folder.glob("*/*.wav"))]
    csv = folder / "t.csv"
    csv.write_text("\n".join(["path,label", *rows]).replace(",dog", ",Dog", 3))
    with pytest.raises(ValueError, match="t.csv: classes may not differ in capitals or spaces only, as Dog, dog do"):
        load_folder(csv)


def test_names_that_are_written_in_two_ways_are_one(tmp_path):
    folder = make_folder(tmp_path / "sounds", n_takes=2)
    for number, path in enumerate(sorted(folder.glob("*/*.wav"))):
        voice = unicodedata.normalize("NFD" if number % 2 else "NFC", f"josé{number // 2 % 3}")
        path.rename(path.with_name(f"{voice} _{number}.wav" if number % 3 else f"{voice}_{number}.wav"))
    twin = folder / unicodedata.normalize("NFD", "für")
    (folder / "cat").rename(folder / "für")
    twin.mkdir()
    first = sorted((folder / "für").iterdir())[0]
    first.rename(twin / first.name)
    clips = load_folder(folder, source_pattern=r"^(.+?)_")
    assert sorted(set(clips["class_name"])) == ["dog", "für"]
    assert sorted(set(clips["source"])) == ["josé0", "josé1", "josé2"]


def test_the_sources_of_a_csv_count_more_than_the_names_of_its_files(tmp_path):
    folder = make_folder(tmp_path / "sounds", n_takes=2)
    files = sorted(folder.glob("*/*.wav"))
    rows = [f"{path.relative_to(folder)},{path.parent.name},voice {n % 5}" for n, path in enumerate(files)]
    (folder / "t.csv").write_text("\n".join(["path,label,source", *rows]))
    clips = load_folder(folder / "t.csv", source_pattern="(.*)")
    assert sorted(set(clips["source"])) == [f"voice {n}" for n in range(5)]


def test_clips_have_as_much_of_their_path_as_tells_them_apart():
    flat = pd.DataFrame({"path": ["a/yes/1.wav", "a/no/1.wav", "a/no/1.wav"]})
    assert name_clips(flat).tolist() == ["yes/1.wav", "no/1.wav", "no/1.wav"]
    deep = pd.DataFrame({"path": ["a/yes/monday/1.wav", "a/no/monday/1.wav", "a/no/monday/2.wav"]})
    assert name_clips(deep).tolist() == ["yes/monday/1.wav", "no/monday/1.wav", "no/monday/2.wav"]
    uneven = pd.DataFrame({"path": ["x/1.wav", "a/x/1.wav", "b/a/x/1.wav"]})
    assert name_clips(uneven).tolist() == ["x/1.wav", "a/x/1.wav", "b/a/x/1.wav"]


@pytest.mark.parametrize("label", ["cat", "dog"])
def test_a_csv_names_a_file_once(tmp_path, label):
    folder = make_folder(tmp_path / "sounds", n_takes=1)
    rows = [f"{path.parent.name}/{path.name},{path.parent.name}" for path in sorted(folder.glob("*/*.wav"))]
    csv = folder / "t.csv"
    csv.write_text("\n".join(["path,label", *rows, f"./cat/cat3_take0.wav,{label}"]))
    with pytest.raises(ValueError, match=r"t.csv, line 22: .*cat3_take0.wav stands there a second time .*: 1\)"):
        load_folder(csv)


@pytest.mark.parametrize("name", ["path", "predicted"])
def test_a_class_is_not_called_like_a_column_of_the_answers(tmp_path, name):
    make_folder(tmp_path / "mine", classes=("cat", name))
    with pytest.raises(ValueError, match=f"no class can be called {name}, as a column of the answers is"):
        load_folder(tmp_path / "mine")


def test_load_folder_reads_a_csv(tmp_path):
    make_folder(tmp_path / "my set", n_takes=1)
    rows = [(f"{c}/{c}{k}_take0.wav", c, f"00{k // 2}") for c in ("cat", "dog") for k in range(10)]
    csv = tmp_path / "my set" / "table.csv"
    pd.DataFrame(rows, columns=["path", "label", "source"]).to_csv(csv, index=False)
    clips = load_folder(csv)
    assert clips.attrs["data_set"] == "table" and set(clips["source"]) == {f"00{k}" for k in range(5)}
    assert clips.groupby("source")["split"].nunique().max() == 1
    assert clips["path"][0] == str(csv.parent / "cat" / "cat0_take0.wav") and clips["label"].tolist()[9:11] == [0, 1]

    sides = ["train"] * 6 + ["val"] * 2 + ["test"] * 2
    pd.DataFrame(rows, columns=["path", "label", "source"]).assign(split=sides * 2).to_csv(csv, index=False)
    assert load_folder(csv)["split"].tolist() == sides * 2
    (train, val, test) = split_by_fold(load_folder(csv), 1)  # which is what the notebooks do
    assert (train % 10 < 6).all() and (val % 10 // 2 == 3).all() and (test % 10 // 2 == 4).all()
    assert len(train) + len(val) + len(test) == 20
    folds = [1, 1, 2, 2, 3, 3, 4, 4, 7, 7]
    pd.DataFrame(rows, columns=["path", "label", "source"]).assign(fold=folds * 2).to_csv(csv, index=False)
    assert load_folder(csv)["fold"].tolist() == folds * 2
    assert set(load_folder(csv)["split"]) == {"train", "val", "test"}
    pd.DataFrame(rows, columns=["path", "label", "source"]).drop(columns="source").to_csv(csv, index=False)
    assert load_folder(csv, source_pattern=r"(\d+)")["source"].tolist() == [str(k) for k in range(10)] * 2


def test_load_folder_reads_class_names_as_they_are_written(tmp_path):
    make_folder(tmp_path / "sounds", 3, 1, classes=("NA", "10", "9", "ÄÖ"))
    clips = load_folder(tmp_path / "sounds")
    assert clips.groupby("label")["class_name"].first().tolist() == ["10", "9", "NA", "ÄÖ"]
    csv = tmp_path / "sounds" / "t.csv"
    rows = [f"{name}/{Path(path).name},{name}" for path, name in clips[["path", "class_name"]].to_numpy()]
    csv.write_text("\n".join(["path,label", *rows]), encoding="utf-8-sig")
    pd.testing.assert_frame_equal(load_folder(csv), clips)


def test_spaces_around_the_cells_of_a_csv_do_not_count(tmp_path):
    make_folder(tmp_path, 8, 1)
    csv = tmp_path / "table.csv"
    rows = [(f"{c}/{c}{k}_take0.wav", c, f"s{k // 2}") for c in ("cat", "dog") for k in range(8)]
    ends = ("", " ", "\t", "\xa0")  # as they come from typing and pasting
    lines = [
        f" {path} ,{label}{ends[k % 4]},{source}{ends[(k + 1) % 4]}" for k, (path, label, source) in enumerate(rows)
    ]
    csv.write_text("\n".join(["path , label,source ", *lines]), "utf-8")
    clips = load_folder(csv)
    assert clips["class_name"].tolist() == [label for _, label, _ in rows]
    assert clips["source"].tolist() == [source for _, _, source in rows]
    assert clips.groupby("source")["split"].nunique().max() == clips.groupby("source")["fold"].nunique().max() == 1
    assert set(clips["split"]) == {"train", "val", "test"}
    sides = ["train", "val", "test", "train"] * 4
    lines = [f"{path},{label}, {sides[k]} , {k % 4 + 1} " for k, (path, label, _) in enumerate(rows)]
    csv.write_text("\n".join(["path,label,split,fold", *lines]))
    clips = load_folder(csv)
    assert clips["split"].tolist() == sides and clips["fold"].tolist() == [1, 2, 3, 4] * 4


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("more", [0, 1, 3])
def test_load_folder_reads_a_csv_as_spreadsheets_write_it(tmp_path, delimiter, more):
    make_folder(tmp_path / "a, b", 6, 1, classes=("007", "07", "NA"))
    rows = [[f"a, b/{c}/{c}{k}_take0.wav", c, f"0{k}"] for c in ("007", "07", "NA") for k in range(6)]
    csv, plain = tmp_path / "table.csv", tmp_path / "plain.csv"
    pd.DataFrame(rows, columns=["path", "label", "source"]).to_csv(plain, index=False)
    expected = load_folder(plain)
    assert expected["source"].tolist() == [f"0{k}" for k in range(6)] * 3
    assert expected.groupby("label")["class_name"].first().tolist() == ["007", "07", "NA"]

    lines = [delimiter.join(f'"{cell}"' if "," in cell else cell for cell in row) + more * delimiter for row in rows]
    header = delimiter.join(["path", "label", "source"])
    blank = 2 * delimiter + more * delimiter
    for first in (header, header + more * delimiter):  # named or not, a column without a value is none
        csv.write_bytes(("\ufeff" + "\r\n".join([first, *lines, blank, ""])).encode())
        pd.testing.assert_frame_equal(load_folder(csv), expected)
    csv.write_bytes(
        "\r\n".join([delimiter + header, *(f"{k}{delimiter}{row}" for k, row in enumerate(lines))]).encode()
    )
    pd.testing.assert_frame_equal(load_folder(csv), expected)  # the nameless first column of DataFrame.to_csv


def test_write_split_counts_paths_from_where_decode_does(tmp_path, monkeypatch):
    root, home, elsewhere = tmp_path / "root", tmp_path / "home", tmp_path / "elsewhere"
    for folder in (root, home, elsewhere):
        folder.mkdir()
        for k in range(3):
            soundfile.write(folder / f"{k}.wav", np.full(160, k + 1, dtype=np.int16), 16000)
    (root / "link.wav").symlink_to(home / "0.wav")
    for name in ("shared_utils.device.ROOT", "shared_utils.datasets.ROOT"):
        monkeypatch.setattr(name, root)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(elsewhere)
    paths = ["0.wav", "./1.wav", "~/2.wav", str(elsewhere / "2.wav"), str(root / "link.wav"), "../elsewhere/0.wav"]
    clips = pd.DataFrame({"path": paths, "class_name": ["a", "b"] * 3, "split": ["train", "val", "test"] * 2})
    csv = write_split(clips, "tables/split.csv")
    assert csv == root / "tables" / "split.csv"
    written = ["../0.wav", "../1.wav", "../../home/2.wav", "../../elsewhere/2.wav", "../link.wav"]
    assert pd.read_csv(csv)["path"].tolist() == [*written, "../../elsewhere/0.wav"]
    again = load_folder(csv)
    for table in (clips, again):
        waveforms = decode(table, 16000, 0.01, cache_dir=tmp_path / "cache", progress=False)
        assert waveforms[:, 0].tolist() == [1, 2, 3, 3, 1, 1]


# the download


class Server(http.server.BaseHTTPRequestHandler):
    """Serves `body`; cuts the connection after `cut` bytes of the body, and may not know ranges."""

    body, cut, knows_ranges = b"", None, True
    ranges: list = []

    def do_GET(self):
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(wanted[1]) if wanted and self.knows_ranges else 0
        self.ranges.append(self.headers.get("Range"))
        if start >= len(self.body):
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(self.body) - start))
        self.end_headers()
        self.wfile.write(self.body[start : self.cut])

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server():
    handler = type("Handler", (Server,), {"ranges": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        handler.url = f"http://127.0.0.1:{running.server_port}/master.zip"
        yield handler
        running.shutdown()
        thread.join()


def make_zip(tmp_path: Path, n_folds: int = 5, extra: tuple = (), change=None) -> bytes:
    folder = make_esc50(tmp_path / "publisher" / "ESC-50-master", n_folds)
    if change:
        change(folder)
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, file.relative_to(folder.parent))
        for member in extra:
            archive.writestr(member, "evil")
    shutil.rmtree(folder)
    return packed.getvalue()


def get(server, data_dir: Path) -> Path:
    return datasets._download_esc50(server.url, data_dir, n_clips=40, n_classes=4, n_folds=5)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_download_fetches_unpacks_and_verifies(tmp_path, server, capsys):
    server.body = make_zip(tmp_path)
    folder = get(server, tmp_path / "new" / "data")
    assert names(folder.parent) == ["ESC-50-master"] and len(load_esc50(tmp_path / "new" / "data")) == 40
    assert "40 clips, 10 a class, 5 folds, verified" in capsys.readouterr().out
    assert download("esc50", tmp_path / "new" / "data") == folder and server.ranges == [None]


@pytest.mark.parametrize("knows_ranges", [True, False])
def test_download_goes_on_after_a_cut_connection(tmp_path, server, knows_ranges):
    server.body, server.knows_ranges = make_zip(tmp_path), knows_ranges
    server.cut = 3000
    data_dir = tmp_path / "data"
    with pytest.raises(ConnectionError, match="cut.*0.0 MB are kept in .*Run it again"):
        get(server, data_dir)
    assert names(data_dir) == ["ESC-50-master.zip.part"]
    assert (data_dir / "ESC-50-master.zip.part").read_bytes() == server.body[:3000]
    with pytest.raises(FileNotFoundError, match="There is no ESC-50"):
        load_esc50(data_dir, source="real")
    server.cut = 5000
    with pytest.raises(ConnectionError):
        get(server, data_dir)
    server.cut = None
    get(server, data_dir)
    assert server.ranges == [None, "bytes=3000-", "bytes=5000-"]
    assert names(data_dir) == ["ESC-50-master"] and len(load_esc50(data_dir)) == 40


def test_download_deletes_a_part_that_does_not_belong_to_the_archive(tmp_path, server):
    server.body = make_zip(tmp_path)
    part = tmp_path / "ESC-50-master.zip.part"
    part.write_bytes(b"x" * 3000)  # the rest is appended, and the whole does not unpack
    with pytest.raises(ValueError, match="cannot be used and was deleted"):
        get(server, tmp_path)
    part.write_bytes(b"x" * (len(server.body) + 1))
    with pytest.raises(ConnectionError, match="416.*nothing is kept"):
        get(server, tmp_path)
    get(server, tmp_path)
    assert server.ranges[-1] is None and not part.exists()


@pytest.mark.parametrize("name", ["../evil", "ESC-50-master/../../evil", "/evil", "C:\\evil", "..\\evil", "link"])
def test_download_refuses_members_that_leave_the_folder(tmp_path, server, name):
    member = zipfile.ZipInfo("ESC-50-master/link") if name == "link" else name
    if name == "link":
        member.external_attr = 0o120777 << 16
    server.body = make_zip(tmp_path, extra=(member,))
    data_dir = tmp_path / "a" / "b"
    with pytest.raises(ValueError, match="would leave the folder"):
        get(server, data_dir)
    assert names(data_dir) == [] and names(tmp_path / "a") == ["b"]


def test_download_refuses_a_corrupt_archive(tmp_path, server):
    body = bytearray(make_zip(tmp_path))
    with zipfile.ZipFile(io.BytesIO(body)) as archive:
        member = next(m for m in archive.infolist() if m.filename.endswith(".csv"))
    body[member.header_offset + 80] ^= 0xFF
    for server.body in (bytes(body), b"<html>busy</html>"):
        with pytest.raises(ValueError, match="cannot be used and was deleted; run it again"):
            get(server, tmp_path / "data")
        assert names(tmp_path / "data") == []


def test_download_verifies_the_content(tmp_path, server):
    def lose_a_file(folder):
        next((folder / "audio").iterdir()).unlink()

    def break_a_file(folder):
        (folder / "audio" / "1-1000-A-0.wav").write_text("no audio")

    def mix_up_folds(folder):
        csv = folder / "meta" / "esc50.csv"
        csv.write_text(csv.read_text().replace("wav,5,", "wav,4,"))

    for k, (change, message) in enumerate(
        [
            (lose_a_file, "1 of the 40 recordings"),
            (break_a_file, "1-1000-A-0.wav in it cannot be read"),
            (mix_up_folds, "5 x 8 clips by fold, and has {4: 16"),
        ]
    ):
        server.body = make_zip(tmp_path / str(k), change=change)
        with pytest.raises(ValueError, match=message):
            get(server, tmp_path / "data")
        assert names(tmp_path / "data") == []
    server.body = make_zip(tmp_path / "few", n_folds=4)
    with pytest.raises(ValueError, match="4 x 10 clips by class_name"):
        get(server, tmp_path / "data")


def test_download_unpacks_again_what_had_arrived(tmp_path, server, monkeypatch):
    server.body = make_zip(tmp_path)

    def fail(self, folder):
        (Path(folder) / "ESC-50-master").mkdir()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(zipfile.ZipFile, "extractall", fail)
    with pytest.raises(OSError, match="could not be unpacked: No space left on device"):
        get(server, tmp_path / "data")
    assert names(tmp_path / "data") == ["ESC-50-master.zip.part"]
    monkeypatch.undo()
    get(server, tmp_path / "data")
    assert len(server.ranges) == 1


def test_download_from_the_command_line(tmp_path, monkeypatch, capsys):
    make_esc50(tmp_path / "ESC-50-master")
    monkeypatch.setattr(sys, "argv", ["datasets", "download", "esc50", "--data-dir", str(tmp_path)])
    datasets._main()
    assert "already there (40 clips)" in capsys.readouterr().out
    (tmp_path / "ESC-50-master" / "meta" / "esc50.csv").unlink()
    with pytest.raises(SystemExit, match="esc50.csv is missing"):
        datasets._main()
    with pytest.raises(ValueError, match="no download called 'urbansound'"):
        download("urbansound", tmp_path)


# batches


@pytest.mark.parametrize("kind", ["memmap", "array", "tensor"])
def test_array_dataset_gathers_a_batch(tmp_path, kind):
    array = np.arange(60, dtype=np.int16).reshape(20, 3)
    np.save(tmp_path / "a.npy", array)
    inputs = {"memmap": np.load(tmp_path / "a.npy", mmap_mode="r"), "array": array, "tensor": torch.tensor(array)}[kind]
    dataset = ArrayDataset(inputs, pd.Series(range(20, 40)))
    for indices in ([3, 0, 19], np.array([3, 0, 19]), torch.tensor([3, 0, 19])):
        batch, targets = dataset.__getitems__(indices)
        assert batch.dtype == torch.int16 and batch.tolist() == [[9, 10, 11], [0, 1, 2], [57, 58, 59]]
        assert targets.dtype == torch.int64 and targets.tolist() == [23, 20, 39]
    assert [part.tolist() for part in dataset[7]] == [[21, 22, 23], 27] and len(dataset) == 20
    batch += 1  # a copy: the data stay as they are
    assert inputs[3].tolist() == [9, 10, 11]
    with pytest.raises(IndexError):
        dataset[20]


def test_array_dataset_in_a_data_loader(tmp_path):
    specs = np.random.default_rng(0).normal(size=(10, 4, 5)).astype(np.float32)
    soft = np.eye(3, dtype=np.float32)[np.arange(10) % 3]
    loader = torch.utils.data.DataLoader(ArrayDataset(specs, soft), batch_size=4, collate_fn=lambda batch: batch)
    batches = list(loader)
    assert [len(targets) for _, targets in batches] == [4, 4, 2]
    np.testing.assert_array_equal(torch.cat([inputs for inputs, _ in batches]), specs)
    np.testing.assert_array_equal(torch.cat([targets for _, targets in batches]), soft)


def test_array_dataset_moves_to_a_device():
    dataset = ArrayDataset(np.arange(6, dtype=np.int16).reshape(3, 2), [0, 1, 2])
    moved = dataset.to("cpu")
    assert moved is not dataset and moved.__getitems__([2])[0].tolist() == [[4, 5]]
    on_meta = dataset.to("meta")  # a device without numbers, but every copy and index goes its real way
    batch, targets = on_meta.__getitems__([2, 0])
    assert batch.device.type == targets.device.type == "meta" and batch.dtype == torch.int16 and batch.shape == (2, 2)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_array_dataset_gathers_on_the_gpu(monkeypatch):
    array = np.random.default_rng(0).integers(-99, 99, (5000, 30)).astype(np.int16)
    dataset = ArrayDataset(array, np.arange(5000))
    batch, targets = dataset.to("cuda").__getitems__(torch.tensor([4999, 1024]))
    assert batch.is_cuda and targets.tolist() == [4999, 1024]
    np.testing.assert_array_equal(batch.cpu(), array[[4999, 1024]])
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (array.nbytes, array.nbytes))
    assert dataset.to("cuda") is dataset


def test_array_dataset_refuses_labels_of_another_table():
    with pytest.raises(ValueError, match="3 inputs and 2 labels"):
        ArrayDataset(np.zeros((3, 2)), [0, 1])
