"""UrbanSound8K: its loader and built-in demo, the recordings in two official folds, and those that ESC-10 has too."""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
from scipy.io import wavfile

from shared_utils import datasets, demo_data
from shared_utils.audio import decode
from shared_utils.datasets import load_esc50, load_folder, load_urbansound8k, write_split
from shared_utils.demo_data import make_urban_sounds
from shared_utils.splits import LeakError, audit, cut_validation, find_shared_sources, sibling_share

CLASSES = (
    "air_conditioner car_horn children_playing dog_bark drilling engine_idling gun_shot jackhammer siren street_music"
).split()
OFFICIAL_COLUMNS = ["slice_file_name", "fsID", "start", "end", "salience", "fold", "classID", "class"]


def make_urbansound8k(folder: Path, folds=(1, 2, 10), end: str = ".wav", numbers=(3, 8, 0)) -> Path:
    """Write a small UrbanSound8K: two recordings of two slices for each class and fold."""
    rows = []
    for fold in folds:
        (folder / "audio" / f"fold{fold}").mkdir(parents=True)
        for number in numbers:
            for recording in range(2):
                source = 1000 * fold + 10 * number + recording
                for k in range(2):
                    name = f"{source}-{number}-0-{k}"
                    samples = np.full(1600, 2 * source + k, dtype=np.int16)
                    soundfile.write(folder / "audio" / f"fold{fold}" / (name + end), samples, 16000)
                    rows.append((f"{name}.wav", source, 0.5 * k, 0.5 * k + 0.1, 1 + k, fold, number, CLASSES[number]))
    (folder / "metadata").mkdir()
    pd.DataFrame(rows, columns=OFFICIAL_COLUMNS).to_csv(folder / "metadata" / "UrbanSound8K.csv", index=False)
    return folder


def change_line(folder: Path, line: int, column: str, value: object) -> None:
    csv = folder / "metadata" / "UrbanSound8K.csv"
    table = pd.read_csv(csv, dtype=str)
    table.loc[line - 2, column] = value
    table.to_csv(csv, index=False)


@pytest.fixture(scope="module")
def demo_folder(tmp_path_factory) -> Path:
    """Twenty clips a class."""
    return make_urban_sounds(tmp_path_factory.mktemp("demo") / "urban sounds", n_clips=20)


@pytest.fixture
def all_rows(real_data) -> pd.DataFrame:
    """The complete metadata, 8,732 rows, as a table of clips without audio."""
    table = pd.read_csv(real_data / "UrbanSound8K" / "metadata" / "all_8732_rows.csv", dtype={"fsID": str})
    return table.rename(columns={"fsID": "source", "class": "class_name"})[["class_name", "fold", "source"]]


# the loader


def test_load_urbansound8k_reads_the_official_table(tmp_path):
    make_urbansound8k(tmp_path / "UrbanSound8K")
    clips = load_urbansound8k(tmp_path, source="real")
    assert clips.columns.tolist() == "path label class_name fold source start end salience".split()
    assert clips.attrs == {"data_set": "UrbanSound8K", "demo": False} and len(clips) == 36
    assert sorted(set(clips["fold"])) == [1, 2, 10]
    names = clips.drop_duplicates("label").set_index("label")["class_name"].sort_index()
    assert names.to_dict() == {0: "air_conditioner", 1: "dog_bark", 2: "siren"} and clips["label"].dtype == np.int64
    row = clips[clips["path"].str.endswith("10081-8-0-1.wav")].iloc[0]
    assert row[["label", "class_name", "fold", "source", "start", "end", "salience"]].tolist() == [
        *(2, "siren", 10, "10081", 0.5, 0.6, 2)
    ]
    assert Path(row["path"]).parent == (tmp_path / "UrbanSound8K" / "audio" / "fold10").resolve()
    pd.testing.assert_frame_equal(load_urbansound8k(tmp_path / "UrbanSound8K"), clips)  # the folder itself


@pytest.mark.parametrize("end", [".flac", ".ogg", ".mp3", ".FLAC"])
def test_load_urbansound8k_reads_other_formats_than_the_table_says(tmp_path, end):
    folder = make_urbansound8k(tmp_path / "us8k", folds=(1,))
    for file in list((folder / "audio" / "fold1").iterdir()):
        samples, rate = soundfile.read(file)
        soundfile.write(file.with_suffix(end), samples, rate)
        file.unlink()
    clips = load_urbansound8k(folder)
    assert len(clips) == 12 and all(Path(path).is_file() and path.endswith(end) for path in clips["path"])
    assert decode(clips, 16000, 0.1, cache_dir=tmp_path / "cache", progress=False).shape == (12, 1600)


def test_load_urbansound8k_without_recordings_takes_the_demo_data_and_says_so_once(tmp_path, monkeypatch, capsys):
    demo = make_urbansound8k(tmp_path / "demo")
    asked = []
    monkeypatch.setattr("shared_utils.demo_data.make_urban_sounds", lambda folder: asked.append(folder) or demo)
    clips = load_urbansound8k(tmp_path)
    assert clips.attrs == {"data_set": "urban sounds", "demo": True} and len(clips) == 36
    out = capsys.readouterr().out
    assert out.count("\n") == 1 and "demo data" in out and "UrbanSound8K" in out and "data/README.md" in out
    assert asked == [datasets.resolve_path("data/demo/urban_sounds")]
    make_urbansound8k(tmp_path / "UrbanSound8K")
    assert not load_urbansound8k(tmp_path).attrs["demo"]
    assert load_urbansound8k(tmp_path, source="demo").attrs["demo"]


def test_load_urbansound8k_names_what_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no UrbanSound8K in .*folder UrbanSound8K there.*README.md"):
        load_urbansound8k(tmp_path, source="real")
    with pytest.raises(FileNotFoundError, match="data folder .*typo does not exist"):
        load_urbansound8k(tmp_path / "typo")
    with pytest.raises(ValueError, match="source='download' is unknown; choose auto, real or demo"):
        load_urbansound8k(tmp_path, source="download")
    (tmp_path / "UrbanSound8K").mkdir()
    with pytest.raises(FileNotFoundError, match=r"The table .*UrbanSound8K\.csv is missing"):
        load_urbansound8k(tmp_path)
    (tmp_path / "UrbanSound8K").rmdir()

    folder = make_urbansound8k(tmp_path / "UrbanSound8K")
    for file in [*(folder / "audio" / "fold2").iterdir(), folder / "audio" / "fold10" / "10081-8-0-1.wav"]:
        file.unlink()
    (folder / "audio" / "fold2").rmdir()
    with pytest.raises(
        FileNotFoundError,
        match=r"^13 of the 36 recordings listed in .*csv are not in .*audio \(fold2/2030-3-0-0\.wav, ",
    ) as caught:
        load_urbansound8k(tmp_path)
    assert "take their rows out of the table" in str(caught.value)

    csv = folder / "metadata" / "UrbanSound8K.csv"
    pd.read_csv(csv).drop(columns=["salience", "fsID"]).to_csv(csv, index=False)
    with pytest.raises(ValueError, match="has no column fsID, salience; it needs slice_file_name, fsID, start"):
        load_urbansound8k(tmp_path)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("class", "siren", "line 4: classID 3 is dog_bark, but the line says 3, 'siren'"),
        ("classID", "12", "line 4: the classIDs are 0 to 9, but the line says 12, 'dog_bark'"),
        ("fold", "11", "line 4: the folds are 1 to 10, not 11"),
        ("fold", "0", "line 4: the folds are 1 to 10, not 0"),
        ("fsID", "x", "line 4: fsID must be a whole number, not 'x'"),
        ("end", "later", "line 4: end must be a number of seconds, not 'later'"),
        ("start", "inf", "line 4: start must be a number of seconds, not 'inf'"),
    ],
)
def test_load_urbansound8k_names_the_line_that_is_wrong(tmp_path, column, value, message):
    folder = make_urbansound8k(tmp_path / "UrbanSound8K")
    change_line(folder, 4, column, value)
    with pytest.raises(ValueError, match=re.escape(message)):
        load_urbansound8k(tmp_path)


def test_load_urbansound8k_reads_the_real_subset(real_data):
    clips = load_urbansound8k(real_data, source="real")
    assert (clips.groupby(["class_name", "fold"]).size() == 30).all() and len(clips) == 900
    assert sorted(set(clips["fold"])) == [1, 2, 10] and clips["source"].nunique() == 381
    assert clips.groupby("label")["class_name"].first().tolist() == CLASSES
    assert clips.attrs == {"data_set": "UrbanSound8K", "demo": False}
    seconds = np.array([soundfile.info(path).duration for path in clips["path"][::30]])
    assert np.abs(seconds - (clips["end"] - clips["start"])[::30]).max() < 0.1  # the table is about these files


# the demo data


def test_the_demo_has_the_official_form(demo_folder):
    meta = pd.read_csv(demo_folder / "metadata" / "UrbanSound8K.csv")
    assert meta.columns.tolist() == OFFICIAL_COLUMNS
    assert meta.groupby("classID")["class"].unique().map(list).tolist() == [[name] for name in CLASSES]
    listed = ("fold" + meta["fold"].astype(str) + "/" + meta["slice_file_name"]).tolist()
    audio = demo_folder / "audio"
    assert sorted(listed) == sorted(file.relative_to(audio).as_posix() for file in audio.glob("*/*"))
    for row, file in zip(meta.itertuples(), listed, strict=True):
        assert row.slice_file_name.startswith(f"{row.fsID}-{row.classID}-")
        sample_rate, waveform = wavfile.read(audio / file)
        assert (sample_rate, waveform.dtype) == (16000, np.int16)
        assert len(waveform) == round((row.end - row.start) * 16000) and 1.5 <= row.end - row.start <= 4
        assert 0.19 * 32767 < np.abs(waveform.astype(int)).max() < 0.96 * 32767
    assert "demo data" in (demo_folder / "README.txt").read_text()


def test_the_demo_at_full_size_has_siblings_in_one_fold():
    meta = demo_data._plan_slices(30, seed=0)
    assert len(meta) == meta["slice_file_name"].nunique() == 300
    assert (meta.groupby(["class", "fold"]).size() == 3).all()
    of_recording = meta.groupby("fsID")
    assert of_recording["fold"].nunique().max() == of_recording["class"].nunique().max() == 1
    assert of_recording["salience"].nunique().max() == 1 and set(meta["salience"]) == {1, 2}
    assert set(of_recording.size()) == {1, 2, 3} and (of_recording["start"].nunique() == of_recording.size()).all()
    assert len(of_recording) == 150 and (meta["end"] - meta["start"] == 4).mean() > 0.6
    everyday = demo_data._plan(40)["src_file"]
    assert not set(meta["fsID"]) & set(everyday)


def test_the_demo_repeats_itself_and_is_made_once(tmp_path, monkeypatch):
    few = {name: demo_data._URBAN_SOUNDS[name] for name in ("air_conditioner", "car_horn")}
    monkeypatch.setattr(demo_data, "_URBAN_SOUNDS", few)
    first = make_urban_sounds(tmp_path / "first", n_clips=10)
    monkeypatch.setattr(demo_data.torch, "get_num_threads", lambda: 5)
    again = make_urban_sounds(tmp_path / "again", n_clips=10)
    other = make_urban_sounds(tmp_path / "other", n_clips=10, seed=1)
    files = sorted(file.relative_to(first) for file in first.glob("audio/*/*"))
    assert len(files) == 20 and len({(first / file).read_bytes() for file in files}) == 20
    for file in files:
        assert (first / file).read_bytes() == (again / file).read_bytes() != (other / file).read_bytes()
    made = (again / files[0]).stat().st_mtime_ns
    make_urban_sounds(again, n_clips=10)
    assert (again / files[0]).stat().st_mtime_ns == made
    (again / files[0]).unlink()
    make_urban_sounds(again, n_clips=10)
    assert (again / files[0]).read_bytes() == (first / files[0]).read_bytes()


def test_every_slice_has_its_sound_however_short():
    """A pause at the beginning must not leave a clip with nothing but noise."""
    for name, sound in demo_data._URBAN_SOUNDS.items():
        for k in range(8):
            waveform = sound(np.random.default_rng(k), np.random.default_rng(100 + k), 24000, 16000)
            assert waveform.shape == (24000,) and np.isfinite(waveform).all()
            assert np.abs(waveform).max() > 0.5, (name, k)


def test_the_demo_refuses_what_it_cannot_make(tmp_path):
    for n_clips in (0, 15):
        with pytest.raises(ValueError, match="give a multiple of 10"):
            make_urban_sounds(tmp_path / "demo", n_clips=n_clips)
    with pytest.raises(ValueError, match="give 16000 Hz or more"):
        make_urban_sounds(tmp_path / "demo", sample_rate=8000)
    (tmp_path / "UrbanSound8K").mkdir()
    (tmp_path / "UrbanSound8K" / "FREESOUNDCREDITS.txt").write_text("somebody's data")
    with pytest.raises(ValueError, match="UrbanSound8K holds something other than demo data"):
        make_urban_sounds(tmp_path / "UrbanSound8K")
    assert [file.name for file in tmp_path.iterdir()] == ["UrbanSound8K"]


def test_the_demo_passes_through_loader_audit_and_decoder_and_its_classes_overlap(demo_folder, tmp_path, monkeypatch):
    import torch
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GroupKFold, cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    from shared_utils.spectrograms import LogMel

    monkeypatch.setattr("shared_utils.demo_data.make_urban_sounds", lambda folder: demo_folder)
    clips = load_urbansound8k(source="demo")
    waveforms = decode(clips, 16000, 4, cache_dir=tmp_path / "cache", progress=False)
    assert audit(clips, waveforms, official="fold").to_numpy().tolist() == [[2] * 10] * 10
    specs = LogMel()(torch.from_numpy(np.array(waveforms)))
    features = torch.cat([specs.mean(2), specs.std(2)], dim=1).numpy()
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.05, max_iter=1000))
    scores = cross_val_score(model, features, clips["label"], groups=clips["fold"], cv=GroupKFold(3))
    assert 0.25 < scores.mean() < 0.6  # far above chance, and far from solved without the course over time


# official folds that are not clean


@pytest.fixture
def clips() -> pd.DataFrame:
    """Three folds of two classes; eight recordings of two clips each, in each fold."""
    fold = np.repeat([1, 2, 3], 16)
    source = [f"{k // 2}" for k in range(48)]
    return pd.DataFrame({"class_name": np.tile(np.repeat(["dog", "rain"], 8), 3), "fold": fold, "source": source})


def test_audit_reports_what_official_folds_tear_apart_and_fails_for_ones_own(clips):
    assert audit(clips, official="fold").attrs["in_two_folds"] == []
    clips.loc[[0, 1], "source"] = "47"  # in folds 1 ...
    clips.loc[47, "source"] = "47"  # ... and 3
    with pytest.raises(LeakError, match="1 sources.*3 clips"):
        audit(clips)
    counts = audit(clips, official="fold")
    assert counts.attrs["in_two_folds"] == ["47"] and counts.to_numpy().tolist() == [[8] * 3] * 2
    assert "but for 1 sources (47; 3 clips, 6.2%) that the official folds themselves" in counts.attrs["verdict"]
    assert counts.attrs["verdict"].endswith("The audio was not compared.")

    train, val, test = cut_validation(clips, 3, 0.25)  # folds 1 and 2 are cut, fold 3 is whole
    assert audit(clips, sides=(train, val, test), official="fold").attrs["in_two_folds"] == ["47"]
    torn = clips.assign(split=np.where(np.arange(48) % 2, "train", "test"))
    with pytest.raises(LeakError, match="23 sources.*47 clips"):  # siblings of one fold: nobody's official split
        audit(torn, by="split", official="fold")
    clips.loc[[0, 1, 16], "source"] = "a"  # folds 1 and 2, both torn by a split of one's own
    sides = np.full(48, "train")
    sides[[0, 1, 30, 31]] = "val"
    sides[32:] = "test"
    with pytest.raises(LeakError, match="1 sources.*3 clips"):
        audit(clips, sides=sides, official="fold")
    with pytest.raises(ValueError, match="official='folds' is no column of these clips; they have class_name, fold"):
        audit(clips, official="folds")


def test_audit_reports_identical_audio_in_two_official_folds(clips):
    waveforms = np.random.default_rng(0).integers(-99, 99, (48, 50)).astype(np.int16)
    waveforms[[3, 40]] = 0  # silent
    waveforms[20] = waveforms[5]
    with pytest.raises(LeakError, match="1 pieces of identical audio"):
        audit(clips, waveforms)
    verdict = audit(clips, waveforms, official="fold").attrs["verdict"]
    assert "but for 1 pieces of identical audio (2 clips) that the official folds" in verdict
    assert "not compared" not in verdict
    with pytest.raises(LeakError, match="1 pieces of identical audio"):
        audit(clips, waveforms, sides=np.where(np.isin(np.arange(48), [4, 5, 46, 47]), "val", "train"), official="fold")


def test_audit_finds_five_recordings_in_two_official_folds_of_the_complete_set(all_rows):
    with pytest.raises(LeakError, match="^5 sources") as caught:
        audit(all_rows, by="fold")
    assert len(caught.value.rows) == 152
    counts = audit(all_rows, by="fold", official="fold")
    assert counts.attrs["in_two_folds"] == ["106905", "132016", "176638", "180937", "77751"]
    assert "8,732 clips from 1,297 sources on 10 sides" in counts.attrs["verdict"]
    assert "5 sources (106905, 132016, 176638, 180937, 77751; 152 clips, 1.7%)" in counts.attrs["verdict"]
    assert counts.sum().tolist() == [873, 888, 925, 990, 936, 823, 838, 806, 816, 837]
    for fold, torn in ((1, ["106905", "132016", "176638", "180937"]), (3, []), (9, ["180937"])):
        counts = audit(all_rows, sides=cut_validation(all_rows, fold), official="fold")
        assert counts.attrs["in_two_folds"] == torn


# sources of two data sets


def test_find_shared_sources_finds_what_was_planted():
    a = pd.DataFrame({"source": ["7", "7", "100032", "8", None], "class_name": ["dog", "cat", "dog", "rain", "rain"]})
    b = pd.DataFrame(
        {"source": [100032.0, 9.0, 7.0, np.nan, 7.0], "class_name": ["x", "x", "y", "y", "y"]}, index=[4] * 5
    )
    shared = find_shared_sources(a, b)
    assert shared.to_dict("list") == {
        "source": ["100032", "7"],
        "n_a": [1, 2],
        "n_b": [1, 2],
        "classes_a": ["dog", "cat, dog"],
        "classes_b": ["x", "y"],
    }
    mirrored = find_shared_sources(b, a)
    assert mirrored["classes_b"].tolist() == ["dog", "cat, dog"] and mirrored["source"].tolist() == ["100032", "7"]
    nothing = find_shared_sources(a[a["source"] == "8"], b)
    assert len(nothing) == 0 and nothing.columns.tolist() == shared.columns.tolist()
    with pytest.raises(ValueError, match="Table b needs the columns 'source' and 'class_name'; it has class_name"):
        find_shared_sources(a, b[["class_name"]])


def test_esc10_and_urbansound8k_share_34_recordings(real_data, all_rows):
    esc10 = load_esc50(real_data, subset="esc10", source="real")
    shared = find_shared_sources(esc10, all_rows)
    assert len(shared) == 34 and shared["n_a"].sum() == 36
    clips = esc10[esc10["source"].isin(shared["source"])]
    assert clips["class_name"].value_counts().to_dict() == {"dog": 32, "rooster": 2, "chainsaw": 2}
    here = find_shared_sources(esc10, load_urbansound8k(real_data, source="real"))
    assert len(here) == 6 and set(here["source"]) < set(shared["source"])


# splits


def test_cut_validation_keeps_sources_whole_and_the_test_fold_out(clips):
    train, val, test = cut_validation(clips, 2, val_share=0.25, seed=3)
    assert sorted([*train, *val, *test]) == list(range(48)) and test.tolist() == list(range(16, 32))
    assert not set(clips["source"][train]) & set(clips["source"][val])
    assert pd.Series(clips["class_name"][val]).value_counts().to_dict() == {"dog": 4, "rain": 4}
    np.testing.assert_array_equal(val, cut_validation(clips, 2, val_share=0.25, seed=3)[1])
    assert any(val.tolist() != cut_validation(clips, 2, val_share=0.25, seed=seed)[1].tolist() for seed in range(4))
    with pytest.raises(ValueError, match="test_fold=4 does not exist; the folds are 1, 2, 3"):
        cut_validation(clips, 4)
    with pytest.raises(ValueError, match="val_share=0 is not possible"):
        cut_validation(clips, 1, val_share=0)


def test_cut_validation_of_the_real_sets(real_data, all_rows):
    for clips in (load_urbansound8k(real_data, source="real"), all_rows):
        for fold in sorted(set(clips["fold"]))[:3]:
            train, val, _ = cut_validation(clips, fold, 0.1)
            names = clips["class_name"]
            shares = names.iloc[val].value_counts() / names[clips["fold"] != fold].value_counts()
            assert shares.between(0.08, 0.12).all() and len(shares) == 10
            assert not set(clips["source"].iloc[train]) & set(clips["source"].iloc[val])


def test_write_split_is_read_back_as_the_same_table(tmp_path):
    make_urbansound8k(tmp_path / "UrbanSound8K")
    clips = load_urbansound8k(tmp_path)
    sides = cut_validation(clips, 10, val_share=0.5)
    csv = write_split(clips, tmp_path / "processed" / "fold10.csv", sides)
    table = pd.read_csv(csv)
    assert table.columns.tolist() == "path label fold split source start end salience".split()
    assert table["path"][0] == "../UrbanSound8K/audio/fold1/1030-3-0-0.wav" and table["end"][1] == 0.6
    assert table["split"].value_counts().to_dict() == {"train": 12, "val": 12, "test": 12}
    clips["split"] = "train"
    for side, rows in zip(("train", "val", "test"), sides, strict=True):
        clips.loc[rows, "split"] = side
    expected = clips[["path", "label", "class_name", "fold", "split", "source"]]
    pd.testing.assert_frame_equal(load_folder(csv), expected)
    pd.testing.assert_frame_equal(load_folder(write_split(clips, tmp_path / "again.csv")), expected)
    train, val, test = sides
    part = load_folder(write_split(clips, tmp_path / "part.csv", (train[:6], val, test)))
    assert len(part) == 30  # what is on no side is left out


def test_write_split_refuses_what_is_no_split_and_keeps_the_old_file(tmp_path, clips):
    clips["path"] = [str(tmp_path / f"{k}.wav") for k in range(48)]
    csv = write_split(clips, tmp_path / "split.csv", cut_validation(clips, 1, 0.25))
    before = csv.read_text()
    train, val, test = cut_validation(clips, 2, 0.25)
    for table, sides, message in (
        (clips, None, "no column 'split'"),
        (clips.assign(split="dev"), None, "may say train, val or test, not 'dev'"),
        (clips, (train, val), "Three index arrays"),
        (clips, (train, val, train[:1]), "on more than one side"),
        (clips.assign(clip_start=0.5), (train, val, test), "windows of longer files"),
    ):
        with pytest.raises(ValueError, match=message):
            write_split(table, csv, sides)
    assert csv.read_text() == before and [file.name for file in tmp_path.iterdir()] == ["split.csv"]


def test_sibling_share_equals_a_loop():
    rng = np.random.default_rng(0)
    sources, is_test = rng.integers(0, 60, 200).astype(str), rng.random(200) < 0.3
    training = [source for source, test in zip(sources, is_test, strict=True) if not test]
    with_sibling = [source in training for source, test in zip(sources, is_test, strict=True) if test]
    assert 0.5 < np.mean(with_sibling) < 1  # neither none nor all
    assert sibling_share(sources, is_test) == pytest.approx(np.mean(with_sibling), abs=1e-12)
    assert sibling_share(pd.Series(sources, index=np.arange(200) + 5), is_test) == sibling_share(sources, is_test)
    assert sibling_share(["a", "a", "b", "c"], [True, False, True, False]) == 0.5
    assert sibling_share(["a", "b"], [True, False]) == 0
    with pytest.raises(ValueError, match="Of 2 clips 2 are for the test"):
        sibling_share(["a", "b"], [True, True])
    with pytest.raises(ValueError, match=r"\(2,\) sources and \(3,\) sides"):
        sibling_share(["a", "b"], [True, False, False])


def test_nearly_every_clip_of_a_random_tenth_has_a_sibling_in_training(all_rows):
    shares = []
    for seed in range(10):
        is_test = np.random.default_rng(seed).permutation(len(all_rows)) < len(all_rows) // 10
        shares.append(sibling_share(all_rows["source"], is_test))
    assert 0.95 < np.mean(shares) < 0.98
    official = [sibling_share(all_rows["source"], all_rows["fold"] == fold) for fold in range(1, 11)]
    assert max(official) == official[0] == pytest.approx(91 / 873) and official[2] == official[9] == 0
