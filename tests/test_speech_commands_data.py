"""Speech Commands: sides, sizes, silence that does not leak, the test archive, bad input, the download."""

import hashlib
import io
import os
import shutil
import sys
import tarfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import soundfile
from scipy import fft
from test_datasets import Server, count_sides, names, server  # noqa: F401

from shared_utils import datasets
from shared_utils.audio import decode
from shared_utils.datasets import COMMANDS, download, load_folder, load_noise, load_speech_commands
from shared_utils.splits import LeakError, audit, cut_in_time, shared_samples, speaker_hash_side

OTHER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "bed", "bird", "cat")
OTHER_WORDS += ("dog", "happy", "house", "marvin", "sheila", "tree", "wow")
NEW_WORDS = ("backward", "forward", "follow", "learn", "visual")  # of v0.02
N_CLIPS = (2377, 2375, 2375, 2359, 2353, 2367, 2367, 2357, 2380, 2372)  # of the words in v0.01, in the order above
N_CLIPS += (2376, 2370, 2373, 2356, 2372, 2357, 2369, 2377, 2352, 2364, 1713, 1731, 1733)
N_CLIPS += (1746, 1742, 1750, 1746, 1734, 1733, 1745)
SIDES = ["train", "val", "test"]


def find_speakers(side: str, n: int) -> list[str]:
    found = (f"{k:08x}" for k in range(100_000) if speaker_hash_side(f"{k:08x}_nohash_0.wav") == side)
    return [next(found) for _ in range(n)]


SPEAKERS = {side: find_speakers(side, 30) for side in SIDES}


def make_noise(folder: Path, seconds: float = 20, names: tuple = ("hum", "tap"), end: str = ".wav") -> None:
    (folder / "_background_noise_").mkdir(parents=True)
    for k, name in enumerate(names):
        noise = np.random.default_rng(k).integers(-3000, 3000, round(16000 * seconds)).astype(np.int16)
        soundfile.write(folder / "_background_noise_" / (name + end), noise, 16000)


def make_release(folder: Path, words=(*COMMANDS, "bed", "cat"), n=(8, 3, 2), end: str = ".wav") -> Path:
    """Write a release of empty recordings, `n` speakers a side who say each word once."""
    make_noise(folder)
    lists = {"val": [], "test": []}
    for word in words:
        (folder / word).mkdir()
        for side, n_speakers in zip(SIDES, n, strict=True):
            for speaker in SPEAKERS[side][:n_speakers]:
                (folder / word / f"{speaker}_nohash_0{end}").touch()
                if side != "train":
                    lists[side].append(f"{word}/{speaker}_nohash_0.wav")
    (folder / "validation_list.txt").write_text("\n".join(lists["val"]) + "\n")
    (folder / "testing_list.txt").write_text("\n".join(lists["test"]) + "\n")
    return folder


def make_archive(folder: Path, end: str = ".wav", n_silent: int = 6) -> Path:
    """Write a test archive of empty recordings, two speakers a word, without noise files."""
    for k, word in enumerate((*COMMANDS, "_unknown_")):
        (folder / word).mkdir(parents=True)
        prefix = "bed_" if word == "_unknown_" else ""
        for speaker in SPEAKERS["test"][k : k + 2]:
            (folder / word / f"{prefix}{speaker}_nohash_0{end}").touch()
    (folder / "_silence_").mkdir()
    for k in range(n_silent):
        (folder / "_silence_" / f"{k}{end}").touch()
    return folder


@pytest.fixture
def release(tmp_path) -> Path:
    return make_release(tmp_path / "speech_commands_v0.02")


# sides and sizes


def test_the_hash_rule_agrees_with_every_line_of_both_lists(real_data):
    folder = real_data / "speech_commands_v0.01_sample"
    lists = {"val": "validation_list.txt", "test": "testing_list.txt"}
    lines = {side: (folder / name).read_text().split() for side, name in lists.items()}
    assert {side: len(paths) for side, paths in lines.items()} == {"val": 6798, "test": 6835}
    for side, paths in lines.items():
        assert {speaker_hash_side(path) for path in paths} == {side}
    side_of = {path: side for side, paths in lines.items() for path in paths}
    files = [f"{file.parent.name}/{file.stem}.wav" for file in folder.glob("*/*_nohash_*")]
    assert len(files) == 300
    for file in files:
        assert speaker_hash_side(file) == side_of.get(file, "train")


def test_the_sizes_of_v0_01_come_out_of_its_lists(real_data, tmp_path, monkeypatch):
    folder = tmp_path / "speech_commands_v0.01"
    make_noise(folder)
    rows = []
    for name in ("validation_list.txt", "testing_list.txt"):
        shutil.copy(real_data / "speech_commands_v0.01_sample" / name, folder / name)
        rows += [line.removesuffix(".wav").split("/") for line in (folder / name).read_text().split()]
    on_lists = pd.Series([word for word, _ in rows]).value_counts()
    for word, n_clips in zip((*COMMANDS, *OTHER_WORDS), N_CLIPS, strict=True):  # the rest is for training
        rows += [(word, f"{SPEAKERS['train'][k % 30]}_nohash_{k}") for k in range(n_clips - on_lists[word])]
    files = pd.DataFrame(rows, columns=["folder", "stem"]).sort_values(["folder", "stem"], ignore_index=True)
    files["path"] = f"{folder}/" + files["folder"] + "/" + files["stem"] + ".wav"
    assert len(files) == 64721
    # In place of 64,721 files: all that the loader knows of them is their names.
    monkeypatch.setattr(datasets, "_list_words", lambda folder: sorted((*COMMANDS, *OTHER_WORDS)))
    monkeypatch.setattr(datasets, "_list_recordings", lambda folder, names: files.copy())

    clips = load_speech_commands(tmp_path)
    assert clips["split"].value_counts()[SIDES].tolist() == [22246, 3093, 3081]
    sizes = pd.crosstab(clips["class_name"], clips["split"])[SIDES]
    assert sizes.loc["unknown"].tolist() == sizes.loc["silence"].tolist() == [1854, 258, 257]
    assert len(sizes) == 12 and clips["label"].nunique() == 12
    everything = load_speech_commands(tmp_path, unknown="all", silence=False)
    assert everything["split"].value_counts()[SIDES].tolist() == [51088, 6798, 6835]
    assert (everything["class_name"] == "unknown")[everything["split"] == "test"].sum() == 4268
    original = load_speech_commands(tmp_path, "original")
    assert original["class_name"].nunique() == 31
    sizes = pd.crosstab(original["class_name"], original["split"])[SIDES]
    assert sizes.loc["silence"].tolist() == [1703, 227, 228]  # 51,088, 6,798 and 6,835 clips of 30 words
    assert sizes.drop("silence").sum().tolist() == [51088, 6798, 6835]


@pytest.mark.parametrize(
    ("name", "n_words", "standard", "natural"),
    [
        ("v0.01", 30, [22246, 3093, 3081], [51088, 6798, 6835]),
        ("v0.02", 35, [36923, 4445, 4890], [84843, 9981, 11005]),
    ],
)
def test_the_sizes_of_the_full_release(real_data, name, n_words, standard, natural):
    if not (real_data / f"speech_commands_{name}").is_dir():
        pytest.skip(f"speech_commands_{name} is not there")
    clips = load_speech_commands(real_data, release=name)
    assert clips["split"].value_counts()[SIDES].tolist() == standard
    original = load_speech_commands(real_data, "original", release=name, silence=False)
    assert original["split"].value_counts()[SIDES].tolist() == natural
    assert original["class_name"].nunique() == n_words
    assert audit(clips)["train"].sum() == standard[0]


# the table


def test_modified_classes(release):
    clips = load_speech_commands(release.parent)
    columns = ["path", "label", "class_name", "word", "split", "source", "clip_start", "clip_volume"]
    assert clips.columns.tolist() == columns
    assert clips.attrs == {"data_set": "Speech Commands v0.02", "demo": False}
    assert clips["split"].value_counts()[SIDES].tolist() == [80 + 8 + 8, 30 + 3 + 3, 20 + 2 + 2]
    assert clips.groupby("label")["class_name"].first().tolist() == sorted([*COMMANDS, "unknown", "silence"])
    spoken = clips[clips["class_name"] != "silence"]
    assert spoken["clip_start"].isna().all() and (spoken["clip_volume"] == 1).all()
    assert set(spoken["word"][spoken["class_name"] == "unknown"]) <= {"bed", "cat"}
    row = spoken[spoken["path"].str.endswith(f"{os.sep}go{os.sep}{SPEAKERS['val'][1]}_nohash_0.wav")].iloc[0]
    assert row[["class_name", "word", "split", "source"]].tolist() == ["go", "go", "val", SPEAKERS["val"][1]]
    for side in SIDES:
        assert set(spoken["source"][spoken["split"] == side]) <= set(SPEAKERS[side])
    pd.testing.assert_frame_equal(load_speech_commands(release, source="real"), clips)  # the folder itself, and again


def test_modified_classes_of_words_of_ones_own(release):
    clips = load_speech_commands(release, words=("cat", "go"), silence=False)
    assert set(clips["class_name"]) == {"cat", "go", "unknown"} and len(clips) == 26 + 2 + 1 + 1
    clips = load_speech_commands(release, words=("cat", "go"), unknown="all", silence=False)
    assert count_sides(clips) == [[8, 3, 2], [8, 3, 2], [80, 30, 20]]
    with pytest.raises(ValueError, match="No word is left over for the class unknown"):
        load_speech_commands(release, words=(*COMMANDS, "bed", "cat"))


def test_original_classes_of_a_release_with_35_words(tmp_path):
    words = (*COMMANDS, *OTHER_WORDS, *NEW_WORDS)
    folder = make_release(tmp_path / "speech_commands_v0.02", words, n=(5, 2, 1))
    clips = load_speech_commands(folder, "original", silence=False)
    assert sorted(set(clips["class_name"])) == sorted(words) and count_sides(clips) == [[5, 2, 1]] * 35
    clips = load_speech_commands(folder, "original")
    assert clips["class_name"].nunique() == 36 and count_sides(clips) == [[5, 2, 1]] * 36
    assert (clips["word"] == clips["class_name"]).all()


def test_recordings_in_other_formats_and_with_two_endings(tmp_path):
    folder = make_release(tmp_path / "speech_commands_v0.01", end=".wav.FLAC")
    (folder / "yes" / "notes.txt").touch()
    clips = load_speech_commands(tmp_path)
    assert len(clips) == 156 and set(clips["source"][clips["split"] == "test"]) == {*SPEAKERS["test"][:2]} | {
        "hum, test",
        "tap, test",
    }
    assert clips.attrs["data_set"] == "Speech Commands v0.01"


def test_the_newest_release_that_is_there_or_the_one_asked_for(tmp_path, release):
    make_release(tmp_path / "speech_commands_v0.01", n=(4, 2, 2))
    make_archive(tmp_path / "speech_commands_test_set_v0.01")
    sizes = {name: len(load_speech_commands(tmp_path, release=name)) for name in (None, "v0.01", "test_set_v0.01")}
    assert sizes == {None: 156, "v0.01": 80 + 2 * (4 + 2 + 2), "test_set_v0.01": 28}
    with pytest.raises(FileNotFoundError, match="no Speech Commands in .*download speech_commands_test_set_v0.02"):
        load_speech_commands(tmp_path, release="test_set_v0.02")
    with pytest.raises(FileNotFoundError, match="no Speech Commands in .*v0.02"):
        load_speech_commands(release, release="v0.01")
    os.replace(release, tmp_path / "words")
    clips = load_speech_commands(tmp_path / "words")
    assert len(clips) == 156 and clips.attrs["data_set"] == "Speech Commands"
    for name in ("validation_list.txt", "testing_list.txt"):
        (tmp_path / "words" / name).unlink()
    with pytest.raises(FileNotFoundError, match="words.validation_list.txt is missing; .* load_folder"):
        load_speech_commands(tmp_path / "words")  # no demo data in its place
    shutil.rmtree(tmp_path / "words" / "_background_noise_")
    with pytest.raises(FileNotFoundError, match="words.validation_list.txt is missing"):
        load_speech_commands(tmp_path / "words")


def test_the_demo_data_pass_through_the_same_code(tmp_path, release, monkeypatch, capsys):
    asked = []
    make = lambda folder: asked.append(folder) or release  # noqa: E731
    monkeypatch.setattr("shared_utils.demo_data.make_spoken_words", make, raising=False)
    (tmp_path / "empty").mkdir()
    clips = load_speech_commands(tmp_path / "empty")
    assert clips.attrs == {"data_set": "spoken words", "demo": True} and len(clips) == 156
    out = capsys.readouterr().out
    assert out.count("\n") == 1 and "demo data" in out and "download speech_commands_v0.02" in out
    assert asked == [datasets.resolve_path("data/demo/spoken_words")]
    assert load_speech_commands(source="demo").attrs["demo"]
    assert capsys.readouterr().out.startswith("Using the built-in demo data")
    assert len(load_noise(source="demo")) == len(load_noise(tmp_path / "empty")) == 640_000
    assert capsys.readouterr().out == ""
    for load in (load_speech_commands, load_noise):
        with pytest.raises(ValueError, match="demo data have no test archive"):
            load(source="demo", test="archive")
    assert capsys.readouterr().out == ""


def test_a_folder_of_words_of_ones_own(tmp_path):
    for word in ("lamp", "door"):
        (tmp_path / "mine" / word).mkdir(parents=True)
        for speaker in range(10):
            for take in range(2):
                noise = np.random.default_rng([speaker, take, len(word)]).integers(-99, 99, 16000).astype(np.int16)
                soundfile.write(tmp_path / "mine" / word / f"anna{speaker}_nohash_{take}.wav", noise, 16000)
    clips = load_folder(tmp_path / "mine", source_pattern=r"^(.*)_nohash_")
    assert set(clips["source"]) == {f"anna{k}" for k in range(10)}
    assert clips.groupby("source")["split"].nunique().max() == 1 and count_sides(clips) == [[14, 4, 2]] * 2
    waveforms = decode(clips, 16000, 1.0, cache_dir=tmp_path / "cache", progress=False)
    assert audit(clips, waveforms)[SIDES].to_numpy().sum() == 40


# silence


def test_silence_comes_from_stretches_of_each_side_of_its_own(tmp_path):
    folder = make_release(tmp_path / "speech_commands_v0.02", n=(30, 30, 30))
    clips = load_speech_commands(folder)
    silence = clips[clips["class_name"] == "silence"]
    assert silence["split"].value_counts().tolist() == [30] * 3 and set(silence["word"]) == {"silence"}
    stretches = {"train": (0, 14.4), "val": (15.4, 17.2), "test": (18.2, 20)}  # of 20 s, a second of guard between
    for side, (first, last) in stretches.items():
        here = silence[silence["split"] == side]
        assert first <= here["clip_start"].min() and here["clip_start"].max() + 1 <= last
        samples = here["clip_start"] * 16000
        np.testing.assert_allclose(samples, samples.round(), atol=1e-6)
        assert here["clip_start"].nunique() == 30
        assert here["source"].value_counts().to_dict() == {f"hum, {side}": 15, f"tap, {side}": 15}
        assert (here["clip_volume"] <= 0.001).sum() == 3 and here["clip_volume"].between(0, 1).all()
    assert silence["clip_start"][silence["split"] == "train"].max() > 10  # everywhere in the stretch
    assert 0.3 < silence["clip_volume"].mean() < 0.6

    # Fewer clips to train on, the same lists for validation and test.
    for word in (*COMMANDS, "bed", "cat"):
        (folder / word / f"{SPEAKERS['train'][0]}_nohash_0.wav").unlink()
    fewer = load_speech_commands(folder)
    assert len(fewer) == len(clips) - 12
    for side in ("val", "test"):
        pd.testing.assert_frame_equal(
            fewer[fewer["split"] == side].reset_index(drop=True), clips[clips["split"] == side].reset_index(drop=True)
        )


def test_silence_is_decoded_from_its_window_at_its_volume(release, tmp_path):
    clips = load_speech_commands(release)
    silence = clips[clips["class_name"] == "silence"].reset_index(drop=True)
    waveforms = decode(silence, 16000, 1.0, cache_dir=tmp_path / "cache", progress=False)
    for row, waveform in zip(silence.itertuples(), waveforms, strict=True):
        first = round(row.clip_start * 16000)
        noise = soundfile.read(row.path, dtype="int16")[0][first : first + 16000]
        np.testing.assert_array_equal(waveform, np.rint(noise * np.float32(row.clip_volume)))
    counts = audit(silence, waveforms)
    assert "none of the 13 windows" in counts.attrs["verdict"] and counts.loc["silence"].tolist() == [8, 3, 2]


def test_the_audit_finds_what_is_planted(release):
    clips = load_speech_commands(release)
    waveforms = np.arange(1, len(clips) + 1)[:, None]  # no two alike
    counts = audit(clips, waveforms)
    assert "none of the 13 windows of longer files shares a sample" in counts.attrs["verdict"]
    assert counts["val"].sum() == 36 and shared_samples(clips, clips["split"]).max() == 0

    wrong = clips.copy()
    train, test = ((clips["class_name"] == "silence") & (clips["split"] == side) for side in ("train", "test"))
    ours = clips.index[test][0]
    theirs = clips["clip_start"][train & (clips["path"] == clips["path"][ours])].idxmax()
    wrong.loc[ours, "clip_start"] = clips["clip_start"][theirs] + 0.9999375  # all but one sample are apart
    np.testing.assert_allclose(shared_samples(wrong, wrong["split"])[[ours, theirs]], 1 / 16000)
    with pytest.raises(LeakError, match="2 windows of longer files that share samples") as caught:
        audit(wrong, waveforms)
    assert caught.value.rows["reason"].tolist() == ["shared samples"] * 2
    assert set(caught.value.rows["side"]) == {"train", "test"}
    wrong.loc[ours, "clip_start"] = clips["clip_start"][theirs] + 1
    assert audit(wrong, waveforms)["test"].sum() == 24

    wrong = clips.copy()
    wrong.loc[wrong["split"] == "test", "source"] = SPEAKERS["train"][0]
    with pytest.raises(LeakError, match="1 sources"):
        audit(wrong, waveforms)


def test_the_usual_way_of_drawing_silence_leaks(release):
    files = [str(release / "_background_noise_" / f"{name}.wav") for name in ("hum", "tap")]
    rng = np.random.default_rng(0)
    usual = pd.DataFrame({"path": rng.choice(files, 400), "clip_start": rng.uniform(0, 19, 400)})
    usual["split"] = rng.choice(SIDES, 400, p=[0.8, 0.1, 0.1])
    shares = shared_samples(usual, usual["split"])[usual["split"] == "test"]
    assert shares.mean() > 0.99  # 320 windows of training cover 40 s
    usual["source"], usual["class_name"] = [f"clip {k}" for k in range(400)], "silence"
    with pytest.raises(LeakError, match="392 windows"):
        audit(usual)


def test_load_noise_gives_the_stretches_of_a_side(release):
    files = [
        soundfile.read(release / "_background_noise_" / f"{name}.wav", dtype="int16")[0] for name in ("hum", "tap")
    ]
    np.testing.assert_array_equal(load_noise(release), np.concatenate(files))
    for side, (first, last) in cut_in_time(320_000, 16000).items():
        np.testing.assert_array_equal(load_noise(release, side), np.concatenate([f[first:last] for f in files]))
    assert len(load_noise(release, "val", sample_rate=8000)) == 2 * 8000 * 1.8
    with pytest.raises(ValueError, match="side='dev' is unknown"):
        load_noise(release, "dev")
    with pytest.raises(ValueError, match="test='mine' is unknown; choose lists or archive"):
        load_noise(release, test="mine")


# the test archive


def test_the_real_archive_and_its_folds(real_data, capsys):
    clips = load_speech_commands(real_data, release="test_set_v0.02")
    assert "Left out 121 clips" in capsys.readouterr().out
    assert clips.attrs == {"data_set": "Speech Commands test set v0.02", "demo": False}
    assert len(clips) == 4769 and "split" not in clips and clips["clip_start"].isna().all()
    table = pd.read_csv(real_data / "speech_commands_test_set_v0.02" / "meta" / "speaker_folds.csv", dtype=str)
    table["path"] = [str(real_data / "speech_commands_test_set_v0.02" / file) for file in table["file"]]
    spoken = clips[clips["class_name"] != "silence"].merge(table, on="path", validate="one_to_one")
    assert len(spoken) == 4361 and (spoken["source"] == spoken["speaker"]).all()
    assert (spoken["word_x"] == spoken["word_y"]).all() and (spoken["fold_x"] == spoken["fold_y"].astype(int)).all()
    assert {speaker_hash_side(f"{name}_nohash_") for name in spoken["speaker"]} == {"test"}

    counts = audit(clips)
    assert counts.loc["silence"].sum() == 408 and counts.loc["silence"].between(70, 95).all()
    assert "408 windows of longer files" in counts.attrs["verdict"]
    silence = clips[clips["class_name"] == "silence"]
    assert silence["source"].nunique() == 141 and shared_samples(clips, clips["fold"]).max() == 0
    before = shared_samples(silence, silence["listed_fold"])
    assert before.mean() == pytest.approx(0.579, abs=5e-4) and (before > 0).sum() == 327
    with pytest.raises(LeakError, match="windows of longer files that share samples") as caught:
        audit(clips, np.arange(1, len(clips) + 1)[:, None], by="listed_fold")
    assert len(caught.value.rows[caught.value.rows["reason"].str.contains("shared samples")]) == 327


def test_the_positions_of_silence_are_where_correlation_finds_it(real_data):
    folder = real_data / "speech_commands_test_set_v0.02"
    positions = pd.read_csv(datasets.resolve_path(datasets._POSITIONS), dtype={"file": str})
    assert len(positions) == 408
    n_checked = 0
    for name, rows in positions.iloc[::41].groupby("noise"):
        noise = soundfile.read(folder / "_background_noise_" / f"{name}.flac", dtype="float32")[0]
        n_fft = fft.next_fast_len(len(noise), real=True)
        spectrum = fft.rfft(noise, n_fft)
        energy = np.concatenate([[0], np.cumsum(noise.astype(np.float64) ** 2)])
        norms = np.sqrt((energy[16000:] - energy[:-16000]).clip(1e-9))
        for row in rows.itertuples():
            crop = soundfile.read(folder / "_silence_" / f"{row.file}.flac", dtype="float32")[0]
            products = fft.irfft(spectrum * fft.rfft(crop, n_fft).conj(), n_fft)[: len(norms)]
            similarity = products / norms / np.linalg.norm(crop)
            assert similarity.argmax() == round(row.start * 16000) and similarity.max() > 0.98
            n_checked += 1
    assert n_checked == 10


def test_an_archive_without_folds_is_all_test(tmp_path, capsys):
    folder = make_archive(tmp_path / "speech_commands_test_set_v0.01", end=".wav.wav")
    clips = load_speech_commands(tmp_path)
    assert set(clips["split"]) == {"test"} and "fold" not in clips and "noise" not in clips
    assert clips["class_name"].value_counts().to_dict() == {**dict.fromkeys([*COMMANDS, "unknown"], 2), "silence": 6}
    other = clips[clips["class_name"] == "unknown"]
    assert set(other["word"]) == {"bed"} and set(other["source"]) == set(SPEAKERS["test"][10:12])
    assert len(load_speech_commands(tmp_path, silence=False)) == 22
    assert len(load_speech_commands(tmp_path, words=COMMANDS[::-1])) == 28
    with pytest.raises(ValueError, match="modified classes only"):
        load_speech_commands(tmp_path, "original")
    for words in (("go", "no"), (*COMMANDS, "bed")):
        with pytest.raises(ValueError, match="ten commands only as known words; leave `words`"):
            load_speech_commands(tmp_path, words=words)
    with pytest.raises(FileNotFoundError, match="is a test archive without _background_noise_; name a full release"):
        load_noise(tmp_path)
    make_noise(folder)
    assert len(load_noise(tmp_path)) == 640_000
    with pytest.raises(ValueError, match="is a test archive itself; name a full release"):
        load_noise(tmp_path, "train", test="archive")
    capsys.readouterr()

    files = [f"{f.parent.name}/{f.name}" for f in sorted(folder.glob("*/*.wav.wav"))]
    speakers = {speaker: k for k, speaker in enumerate(SPEAKERS["test"])}
    folds = [speakers.get(Path(file).name.removeprefix("bed_")[:8], k) % 3 + 1 for k, file in enumerate(files)]
    table = pd.DataFrame({"file": files, "fold": folds, "duplicate_of_earlier": 0})
    table.loc[table["file"] == "_silence_/5.wav.wav", "duplicate_of_earlier"] = 1
    (folder / "meta").mkdir()
    table.to_csv(folder / "meta" / "speaker_folds.csv", index=False)
    clips = load_speech_commands(tmp_path)
    assert len(clips) == 27 and "split" not in clips
    expected = table.set_index("file")["fold"]
    assert all(
        expected[f"{Path(path).parent.name}/{Path(path).name}"] == fold
        for path, fold in clips[["path", "fold"]].to_numpy()
    )
    out = capsys.readouterr().out
    assert "Left out 1 clips" in out and "may share samples across the folds" in out
    bad = table["file"].str.contains("bed_").idxmax()
    speaker = Path(table["file"][bad]).name[4:12]
    other_fold = table.replace({"fold": {1: 2, 2: 3, 3: 1}})["fold"].where(table.index == bad, table["fold"])
    for wrong, error, message in [
        (table.iloc[:-1], ValueError, "1 clips are not listed in .*speaker_folds.csv"),
        (table.iloc[[*range(28), 3]], ValueError, f"speaker_folds.csv, line 30: {files[3]} is listed already"),
        (
            table.assign(duplicate_of_earlier=["0"] * 9 + ["yes"] + ["0"] * 18),
            ValueError,
            "speaker_folds.csv, line 11: duplicate_of_earlier must be 0 or 1, not 'yes'",
        ),
        (table.assign(duplicate_of_earlier=1), ValueError, "test_set_v0.01 holds no clips"),
        (
            table.assign(fold=other_fold),
            LeakError,
            f"1 speakers are on more than one fold, first {speaker} .* the same fold in meta/speaker_folds.csv",
        ),
    ]:
        wrong.to_csv(folder / "meta" / "speaker_folds.csv", index=False)
        with pytest.raises(error, match=message):
            load_speech_commands(tmp_path)
    table.to_csv(folder / "meta" / "speaker_folds.csv", index=False)
    (folder / "yes" / Path(files[-1]).name).unlink()
    with pytest.raises(FileNotFoundError, match=f"1 of the 28 clips listed in .*{SPEAKERS['test'][1]}"):
        load_speech_commands(tmp_path)


def test_the_archive_as_the_test_side_of_a_full_release(tmp_path, release, monkeypatch, capsys):
    with pytest.raises(FileNotFoundError, match="no test archive .*test_set_v0.02 beside"):
        load_speech_commands(tmp_path, test="archive")
    archive = make_archive(tmp_path / "speech_commands_test_set_v0.02")
    load_speech_commands(tmp_path, test="archive")
    assert "archive's silence was cropped from is not known" in capsys.readouterr().out
    positions = pd.DataFrame({"file": range(6), "noise": ["hum"] * 3 + ["tap"] * 3, "start": [0, 1.1, 16, 5, 9, 18.5]})
    monkeypatch.setattr(datasets, "_POSITIONS", tmp_path / "positions.csv")
    monkeypatch.setattr(datasets, "_SILENCE_NAMES", hashlib.sha256(b"0\n1\n2\n3\n4\n5").hexdigest())
    for load in (load_speech_commands, load_noise):
        with pytest.raises(FileNotFoundError, match="positions.csv, which says where .* is missing; restore it"):
            load(tmp_path, test="archive")
    positions[1:].to_csv(tmp_path / "positions.csv", index=False)
    with pytest.raises(ValueError, match="positions.csv has no line for 0; restore the table"):
        load_noise(tmp_path, test="archive")
    positions.to_csv(tmp_path / "positions.csv", index=False)
    clips = load_speech_commands(tmp_path, test="archive")
    assert clips["split"].value_counts()[SIDES].tolist() == [96, 36, 28]
    assert set(clips["path"][clips["split"] == "test"]) == {str(file) for file in archive.glob("*/*.wav")}
    assert audit(clips, np.random.default_rng(0).integers(-99, 99, (160, 50)))["test"].sum() == 28
    # Pieces of a second or more that begin 0.1 s behind a crop, the longest to training, the next to validation.
    stretches = {
        "train": {"hum": [(2.2, 15.9)], "tap": [(10.1, 18.4), (6.1, 8.9)]},
        "val": {"hum": [(17.1, 20)], "tap": [(0, 4.9)]},
        "test": {"hum": [(0, 1), (1.1, 2.1), (16, 17)], "tap": [(5, 6), (9, 10), (18.5, 19.5)]},
    }
    capsys.readouterr()
    for side, of_files in stretches.items():
        here = clips[(clips["split"] == side) & (clips["class_name"] == "silence")]
        for noise, start in here[["noise", "noise_start"]].to_numpy():
            assert any(first - 1e-6 <= start <= last - 1 + 1e-6 for first, last in of_files[noise])
        assert set(here["noise"]) == {"hum", "tap"}
        parts = []
        for name, bounds in of_files.items():
            samples = soundfile.read(release / "_background_noise_" / f"{name}.wav", dtype="int16")[0]
            parts += [samples[round(first * 16000) : round(last * 16000)] for first, last in bounds]
        np.testing.assert_array_equal(load_noise(tmp_path, side, test="archive"), np.concatenate(parts))
    assert len(load_noise(tmp_path, "val", test="archive", sample_rate=8000)) == 7.8 * 8000
    assert len(load_noise(tmp_path, test="archive")) == 640_000
    assert capsys.readouterr().out == ""

    with pytest.raises(ValueError, match="ten commands only as known words"):
        load_speech_commands(tmp_path, words=("go", "bed"), test="archive")
    with pytest.raises(ValueError, match="needs classes='modified'"):
        load_speech_commands(tmp_path, "original", test="archive")
    (archive / "yes" / f"{SPEAKERS['train'][0]}_nohash_4.wav").touch()
    with pytest.raises(
        LeakError, match=f"1 speakers are on more than one side, first {SPEAKERS['train'][0]}"
    ) as caught:
        load_speech_commands(tmp_path, test="archive")
    assert set(caught.value.rows["split"]) == {"train", "test"}


def test_the_real_archive_leaves_enough_noise_for_training_and_validation(real_data, tmp_path):
    archive = real_data / "speech_commands_test_set_v0.02"
    release = make_release(tmp_path / "speech_commands_v0.02", n=(30, 30, 1))
    shutil.rmtree(release / "_background_noise_")
    (release / "_background_noise_").symlink_to(archive / "_background_noise_")
    (tmp_path / "speech_commands_test_set_v0.02").symlink_to(archive)
    seconds = {side: len(load_noise(tmp_path, side, test="archive")) / 16000 for side in SIDES}
    assert seconds["train"] > 75 and 33 < seconds["val"] < 0.5 * seconds["train"]
    crops = pd.read_csv(datasets.resolve_path(datasets._POSITIONS))
    covered = sum(np.minimum(np.diff(group.sort_values()), 1).sum() + 1 for _, group in crops.groupby("noise")["start"])
    assert seconds["test"] == pytest.approx(covered, abs=1e-3)

    clips = load_speech_commands(tmp_path, test="archive")
    silence = clips[clips["class_name"] == "silence"]
    assert silence["split"].value_counts()[SIDES].tolist() == [30, 30, 408]
    assert silence.groupby("split")["noise"].nunique().tolist() == [6, 6, 6]
    assert shared_samples(clips, clips["split"]).max() == 0
    starts = {key: group["noise_start"].to_numpy() for key, group in silence.groupby(["noise", "split"])}
    for noise in set(silence["noise"]):
        for ours, theirs, guard in (("train", "test", 0.1), ("val", "test", 0.1), ("train", "val", 1.2)):
            distances = np.abs(starts[noise, ours][:, None] - starts[noise, theirs]) - 1
            assert distances.min() > guard - 1e-4


def test_the_real_archive_is_known_under_any_name(real_data, tmp_path):
    (tmp_path / "mine").mkdir()
    for entry in (real_data / "speech_commands_test_set_v0.02").iterdir():
        (tmp_path / "mine" / entry.name).symlink_to(entry)
    clips = load_speech_commands(tmp_path / "mine")
    assert clips.attrs["data_set"] == "Speech Commands test set"
    assert clips["noise_start"].notna().sum() == 408 and shared_samples(clips, clips["fold"]).max() == 0


# bad input


def move_to_validation(folder: Path, name: str) -> None:
    with open(folder / "validation_list.txt", "a") as file:
        file.write(name + "\n")


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (lambda f: (f / "testing_list.txt").unlink(), FileNotFoundError, "testing_list.txt is missing"),
        (lambda f: (f / "testing_list.txt").write_text("\n"), ValueError, "testing_list.txt lists no clips"),
        (
            lambda f: (f / "go" / f"{SPEAKERS['val'][2]}_nohash_0.wav").unlink(),
            FileNotFoundError,
            f"1 of the 60 clips on the lists of .* are not there .go/{SPEAKERS['val'][2]}_nohash_0.",
        ),
        (lambda f: (f / "empty").mkdir(), ValueError, "empty holds no recordings"),
        (lambda f: shutil.rmtree(f / "_background_noise_"), FileNotFoundError, "noise folder .* leave silence out"),
        (
            lambda f: [file.unlink() for file in (f / "_background_noise_").iterdir()],
            FileNotFoundError,
            "_background_noise_ holds no recordings",
        ),
        (
            lambda f: (f / "_background_noise_" / "hum.wav").write_text("no audio"),
            ValueError,
            "noise file .*hum.wav cannot be read as audio",
        ),
        (
            lambda f: soundfile.write(f / "_background_noise_" / "hum.wav", np.zeros(8 * 16000), 16000),
            ValueError,
            "noise file .*hum.wav cannot be shared .* 8.0 s is too short",
        ),
        (lambda f: (f / "go" / "take7.wav").touch(), ValueError, "1 files have no speaker.*take7.wav"),
        (lambda f: (f / "go" / "_nohash_0.wav").touch(), ValueError, "1 files have no speaker.*_nohash_0.wav"),
        (
            lambda f: move_to_validation(f, f"go/{SPEAKERS['test'][0]}_nohash_0.wav"),
            ValueError,
            f"go/{SPEAKERS['test'][0]}_nohash_0 is on both lists",
        ),
        (
            lambda f: move_to_validation(f, f"go/{SPEAKERS['train'][0]}_nohash_0.wav"),
            LeakError,
            f"1 speakers are on more than one side, first {SPEAKERS['train'][0]}",
        ),
        (
            lambda f: [
                move_to_validation(f, f"{word}/{SPEAKERS['train'][5]}_nohash_0.wav")
                for word in (*COMMANDS, "bed", "cat")
            ],
            ValueError,
            f"do not agree with the speaker-hash rule: .*{SPEAKERS['train'][5]}_nohash_0.wav belongs to train, not to",
        ),
        (
            lambda f: (f / "go" / f"{SPEAKERS['val'][2]}_nohash_0.flac").touch(),
            ValueError,
            "_nohash_0.wav is there in two formats",
        ),
    ],
)
def test_bad_input_is_named(release, damage, error, message):
    assert len(load_speech_commands(release)) == 156
    damage(release)
    with pytest.raises(error, match=message):
        load_speech_commands(release)


def test_what_macos_leaves_beside_the_noise_is_not_read(release):
    expected = load_speech_commands(release)
    (release / "_background_noise_" / "._pink.wav").write_bytes(b"Mac OS X")
    pd.testing.assert_frame_equal(load_speech_commands(release), expected)


def test_a_missing_noise_folder_is_no_matter_without_silence(release):
    shutil.rmtree(release / "_background_noise_")
    assert len(load_speech_commands(release, silence=False)) == 156 - 13


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"words": ("go", "banana", "pear")}, "has no word banana, pear; it has bed, cat, down"),
        ({"words": ()}, r"words=\(\) must be a tuple of one word or more"),
        ({"words": "yes"}, r"words='yes' must be a tuple of one word or more, like \('yes', 'no'\)"),
        ({"words": ("yes", "no"), "classes": "original"}, "makes every word a class; take classes='modified'"),
        ({"classes": "all"}, "classes='all' is unknown; choose original or modified"),
        ({"unknown": "some"}, "unknown='some' is unknown"),
        ({"test": "mine"}, "test='mine' is unknown; choose lists or archive"),
        ({"release": "v3"}, "release='v3' is unknown; choose v0.02, v0.01"),
        ({"source": "web"}, "source='web' is unknown"),
    ],
)
def test_unknown_arguments_are_refused(release, arguments, message):
    with pytest.raises(ValueError, match=message):
        load_speech_commands(release, **arguments)


# the download


def pack(folder: Path, extra: tarfile.TarInfo | None = None) -> bytes:
    """Pack the folder's contents as the publisher does: without a folder around them."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz", compresslevel=1) as archive:
        archive.add(folder, ".")
        if extra is not None:
            archive.addfile(extra)
    return packed.getvalue()


def get(server, data_dir: Path, n_clips: int = 156, sha256: str | None = None) -> Path:  # noqa: F811
    return datasets._download_speech_commands(server.url, data_dir / "speech_commands_v0.02", n_clips, sha256)


def test_download_fetches_unpacks_and_verifies(tmp_path, release, server, capsys):  # noqa: F811
    server.body = pack(release)
    data_dir = tmp_path / "new"
    folder = get(server, data_dir, sha256=hashlib.sha256(server.body).hexdigest())
    assert names(data_dir) == ["speech_commands_v0.02"] and len(load_speech_commands(data_dir)) == 156
    assert "156 clips, checksum, lists and number verified" in capsys.readouterr().out
    assert download("speech_commands_v0.02", data_dir) == folder and len(server.ranges) == 1


def test_download_goes_on_and_unpacks_what_had_arrived(tmp_path, release, server, monkeypatch):  # noqa: F811
    server.body, server.cut = pack(release), 3000
    data_dir = tmp_path / "new"
    with pytest.raises(ConnectionError, match="Run it again to go on"):
        get(server, data_dir)
    assert names(data_dir) == ["speech_commands_v0.02.tar.gz.part"]
    server.cut = None

    def fail(self, folder, filter):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tarfile.TarFile, "extractall", fail)
    with pytest.raises(OSError, match="could not be unpacked: No space left on device; free"):
        get(server, data_dir)
    monkeypatch.undo()
    get(server, data_dir)
    assert server.ranges == [None, "bytes=3000-"] and names(data_dir) == ["speech_commands_v0.02"]


def test_download_refuses_what_is_not_the_publishers(tmp_path, release, server):  # noqa: F811
    whole, data_dir = pack(release), tmp_path / "a" / "b"
    link = tarfile.TarInfo("./link")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc"
    damaged = bytearray(whole)
    damaged[-5000] ^= 0xFF
    for body, n_clips, sha256, message in [
        (whole, 155, None, "should have 155 clips, and has 156"),
        (whole, 156, "0" * 64, "SHA-256 checksum is not the published one"),
        (pack(release, tarfile.TarInfo("../../evil")), 156, None, "outside the destination"),
        (pack(release, link), 156, None, "absolute path"),
        (bytes(damaged), 156, None, "(CRC|invalid|compressed|checksum)"),  # the hit part varies
        (b"<html>busy</html>", 156, None, "gzip"),
    ]:
        server.body = body
        with pytest.raises(ValueError, match=f"cannot be used and was deleted; run it again .*{message}"):
            get(server, data_dir, n_clips, sha256)
        assert names(data_dir) == [] and names(tmp_path / "a") == ["b"]


def test_download_of_a_test_archive_counts_its_clips(tmp_path, server):  # noqa: F811
    server.body = pack(make_archive(tmp_path / "made"))
    folder = tmp_path / "data" / "speech_commands_test_set_v0.01"
    assert datasets._download_speech_commands(server.url, folder, 28, None) == folder
    assert len(load_speech_commands(tmp_path / "data")) == 28
    shutil.rmtree(folder)
    with pytest.raises(ValueError, match="should have 3,081 clips, and has 28"):
        datasets._download_speech_commands(server.url, folder, 3081, None)


def test_download_asks_the_publisher(tmp_path, release, monkeypatch, capsys):
    asked = []

    def fetch(url, folder, n_clips, sha256):
        asked.append((url, n_clips, sha256 and sha256[:6]))
        return make_release(folder) if "test_set" not in folder.name else make_archive(folder)

    monkeypatch.setattr(datasets, "_download_speech_commands", fetch)
    data_dir = tmp_path / "data"
    assert len(load_speech_commands(data_dir, source="download")) == 156
    assert len(load_speech_commands(data_dir, source="download", release="test_set_v0.01")) == 28
    assert len(load_speech_commands(data_dir, source="download")) == 156
    base = "https://download.tensorflow.org/data/speech_commands_"
    assert asked == [(f"{base}v0.02.tar.gz", 105829, "af1473"), (f"{base}test_set_v0.01.tar.gz", 3081, None)]
    arguments = ["datasets", "download", "speech_commands_v0.01", "--data-dir", str(data_dir)]
    monkeypatch.setattr(sys, "argv", arguments)
    datasets._main()
    assert asked[2] == (f"{base}v0.01.tar.gz", 64721, "743935")
    datasets._main()
    assert "already there (156 clips)" in capsys.readouterr().out and len(asked) == 3
