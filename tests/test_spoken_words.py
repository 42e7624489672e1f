"""The spoken demo words: the layout and split rule of Speech Commands, the same bytes for a seed, whole words."""

import errno
import hashlib
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.io import wavfile

from shared_utils import demo_data
from shared_utils.demo_data import make_spoken_words

WORDS = (
    "backward bed bird cat dog down eight five follow forward four go happy house learn left marvin nine no off on one "
    "right seven sheila six stop three tree two up visual wow yes zero"
).split()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Six speakers: four for training, one for validation, one for the test."""
    return make_spoken_words(tmp_path_factory.mktemp("demo") / "spoken words", n_speakers=6)


def _hash(folder: Path) -> str:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    content = b"".join(file.relative_to(folder).as_posix().encode() + file.read_bytes() for file in files)
    return hashlib.sha256(content).hexdigest()


def _shorten_noises(monkeypatch):
    """Replace the noise files, which take most of the time of a small set, by a quiet hiss."""
    noises = dict.fromkeys(demo_data._NOISES, lambda rng, n, rate: rng.standard_normal(n, dtype=np.float32))
    monkeypatch.setattr(demo_data, "_NOISES", noises)


def test_files_have_the_publishers_form(folder):
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == ["_background_noise_", *WORDS]
    clips = [path for word in WORDS for path in (folder / word).iterdir()]
    assert len(clips) == 6 * 35 + 3 * 10  # every other speaker says the ten commands twice
    assert all(re.fullmatch(r"[0-9a-f]{8}_nohash_[01]\.wav", path.name) for path in clips)
    seen = set()
    for path in clips:
        sample_rate, waveform = wavfile.read(path)
        assert (sample_rate, waveform.dtype, waveform.shape) == (16000, np.int16, (16000,))
        assert 0.049 * 32767 < np.abs(waveform.astype(int)).max() < 0.951 * 32767  # heard, and nothing clipped
        seen.add(waveform.tobytes())
    assert len(seen) == len(clips)  # no two speakers or takes are alike
    noises = sorted((folder / "_background_noise_").iterdir())
    assert len(noises) == 6
    for path in noises:
        sample_rate, waveform = wavfile.read(path)
        assert (sample_rate, waveform.dtype, waveform.shape) == (16000, np.int16, (960_000,))
        loudness = waveform.reshape(60, -1).std(axis=1)
        assert 0.05 * loudness.mean() < loudness.min()  # every second can serve as noise
    assert "demo data" in (folder / "README.txt").read_text()


def test_lists_follow_the_speaker_hash_rule(folder):
    from shared_utils.splits import speaker_hash_side

    lists = {}
    for side, name in (("val", "validation_list.txt"), ("test", "testing_list.txt")):
        text = (folder / name).read_bytes().decode()
        lists[side] = text.splitlines()
        assert text.endswith("\n") and "\r" not in text and "\\" not in text
        assert lists[side] == sorted(set(lists[side])) and len(lists[side]) >= 35
    paths = {path.relative_to(folder).as_posix() for word in WORDS for path in (folder / word).iterdir()}
    assert {path for path in paths if speaker_hash_side(path) == "val"} == set(lists["val"])
    assert {path for path in paths if speaker_hash_side(path) == "test"} == set(lists["test"])
    speakers = {side: {Path(path).name[:8] for path in listed} for side, listed in lists.items()}
    assert {side: len(names) for side, names in speakers.items()} == {"val": 1, "test": 1}


def test_full_size_keeps_speakers_and_voices_on_one_side():
    speakers, clips = demo_data._plan_speakers(150, seed=0)
    assert len(clips) == clips["path"].nunique() == 6000 and sorted(clips["word"].unique()) == WORDS
    assert speakers["side"].value_counts().to_dict() == {"train": 110, "val": 20, "test": 20}
    assert speakers["speaker"].nunique() == 150
    assert not speakers.duplicated(["variant", "accent"]).any()
    assert speakers.groupby("variant")["side"].nunique().max() == 1
    assert (speakers.groupby("side")["accent"].nunique() == 8).all()
    # The rule in integers: SHA-1 modulo 2**27, in percent of the largest remainder.
    for row in speakers.itertuples():
        rest = int.from_bytes(hashlib.sha1(row.speaker.encode()).digest()[-4:], "big") % 2**27
        percent = 100 * rest / (2**27 - 1)
        assert row.side == ("val" if percent < 10 else "test" if percent < 20 else "train")
    most, _ = demo_data._plan_speakers(demo_data._MOST_SPEAKERS, seed=1)
    assert len(most) == demo_data._MOST_SPEAKERS and not most.duplicated(["variant", "accent"]).any()
    assert (most["side"] == "train").sum() == 256


def test_same_seed_same_bytes_whatever_the_threads(tmp_path, folder, monkeypatch):
    monkeypatch.setattr(demo_data.torch, "get_num_threads", lambda: 5)
    assert _hash(make_spoken_words(tmp_path / "again", n_speakers=6)) == _hash(folder)
    _shorten_noises(monkeypatch)
    other = make_spoken_words(tmp_path / "other", seed=1, n_speakers=3)
    names = [{path.name[:8] for path in (made / "yes").iterdir()} for made in (folder, other)]
    assert not names[0] & names[1]


def test_every_word_is_whole():
    """A tone in the place of the word: all of it is in the clip, neither end touches the clip's."""
    tone = (8000 * np.sin(2 * np.pi * 1000 * np.arange(round(0.6 * 22050)) / 22050)).astype(np.int16)
    clips = {}
    takes = [(str(k), tone, np.random.default_rng(k)) for k in range(40)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo_data.wavfile, "write", lambda path, rate, clip: clips.update({path.name: clip}))
        demo_data._record_words(Path(), 16000, (np.random.default_rng(0), takes))
    frames = np.stack([clips[str(k)] for k in range(40)]).reshape(40, 100, 160) * np.hanning(160)
    spectra = np.abs(np.fft.rfft(frames))[:, :, 8:13].max(axis=2)  # 800 to 1200 Hz: the vocal tract shifts the tone
    sounding = spectra > 0.5 * np.median(np.sort(spectra)[:, -50:], axis=1, keepdims=True)
    first, last = sounding.argmax(axis=1), 99 - sounding[:, ::-1].argmax(axis=1)
    lengths = (last - first + 1)[sounding.mean(axis=1) < 0.8]  # the others lie in noise as loud as the tone
    assert len(lengths) > 25 and np.median(lengths) > 0.6 / 1.08 * 100 - 3
    middles = ((first + last) / 2)[sounding.mean(axis=1) < 0.8]
    assert 30 < middles.min() < 42 and 58 < middles.max() < 70  # 0.15 s to either side


def test_espeak_says_what_it_is_asked_and_nothing_longer_than_a_second():
    speakers, clips = demo_data._plan_speakers(30, seed=2)
    speakers = speakers.iloc[1::3]
    hits = 0
    for _, takes in demo_data._speak(speakers, clips, seed=2):
        assert all(0.12 < len(word) / 22050 < 0.95 / 1.08 for _, word, _ in takes)
        shapes = [_outline(word) for _, word, _ in takes]
        if len(takes) == 45:  # the second take of a command resembles the first of this and of no other word
            distance = np.linalg.norm(np.array(shapes[35:])[:, None] - np.array(shapes[:10])[None], axis=2)
            hits += (distance.argmin(axis=1) == np.arange(10)).sum()
    n_twice = sum(clips.loc[clips["take"] == 1, "speaker"].isin(speakers["speaker"])) // 10
    assert n_twice >= 3 and hits >= 9 * n_twice


def _outline(word: np.ndarray) -> np.ndarray:
    """Return the log spectrum of eight pieces of a word, 24 bands each, mean removed: (192,)."""
    pieces = np.array_split(word / 32768, 8)
    spectra = np.stack([np.abs(np.fft.rfft(piece, 4096))[:1200].reshape(24, 50).mean(axis=1) for piece in pieces])
    outline = np.log(spectra + 0.05).ravel()
    return outline - outline.mean()


def test_a_finished_folder_is_used_again_and_an_incomplete_one_is_not(tmp_path, monkeypatch):
    _shorten_noises(monkeypatch)
    folder = make_spoken_words(tmp_path / "demo", n_speakers=3)
    first, clip = _hash(folder), next((folder / "yes").iterdir())
    made = clip.stat().st_mtime_ns, clip.stat().st_ino
    make_spoken_words(folder, n_speakers=3)
    assert (clip.stat().st_mtime_ns, clip.stat().st_ino) == made
    for lost in (clip, folder / "testing_list.txt"):
        lost.unlink()
        make_spoken_words(folder, n_speakers=3)
        assert lost.is_file() and _hash(folder) == first
    make_spoken_words(folder, n_speakers=4)
    assert len(list((folder / "zero").iterdir())) == 4
    assert [path.name for path in tmp_path.iterdir()] == ["demo"]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()])
def test_an_interruption_leaves_nothing_behind(tmp_path, monkeypatch, error):
    def fail(*_):
        raise error

    _shorten_noises(monkeypatch)
    monkeypatch.setattr(demo_data.wavfile, "write", fail)
    with pytest.raises(type(error)):
        make_spoken_words(tmp_path / "demo", n_speakers=3)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_or_broken_espeak_is_named_with_its_remedy(tmp_path, monkeypatch):
    import espeakng_loader

    remedy = "run 'pip install --force-reinstall espeakng-loader'"
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "espeakng_loader", None)
        with pytest.raises(RuntimeError, match=f"cannot be loaded .*{remedy}"):
            make_spoken_words(tmp_path / "demo", n_speakers=3)
    with monkeypatch.context() as patch:
        patch.setattr(espeakng_loader, "get_library_path", lambda: str(tmp_path / "nothing.so"))
        with pytest.raises(RuntimeError, match=f"cannot be loaded .*nothing.so.*{remedy}"):
            make_spoken_words(tmp_path / "demo", n_speakers=3)
    with monkeypatch.context() as patch:
        patch.setattr(espeakng_loader, "get_data_path", lambda: str(tmp_path / "nothing"))
        with pytest.raises(RuntimeError, match="cannot use its data in .*nothing"):
            make_spoken_words(tmp_path / "demo", n_speakers=3)
    assert list(tmp_path.iterdir()) == []
    espeak, say = demo_data._open_espeak()  # none of this is in the way of the next call
    with pytest.raises(RuntimeError, match="no voice xx"):
        say("yes", "xx", 160, 50, 50)
    assert 4000 < len(say("yes", "en-us+m1", 160, 50, 50)) < 15000
    demo_data._close_espeak(espeak)


def test_bad_arguments(tmp_path):
    for n_speakers in (2, demo_data._MOST_SPEAKERS + 1):
        with pytest.raises(ValueError, match=f"n_speakers={n_speakers} is not possible; give 3"):
            make_spoken_words(tmp_path / "demo", n_speakers=n_speakers)
    with pytest.raises(ValueError, match="8000 Hz cannot carry speech"):
        make_spoken_words(tmp_path / "demo", sample_rate=8000)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("somebody's data")
    with pytest.raises(ValueError, match="mine holds something other than demo data"):
        make_spoken_words(tmp_path / "mine", n_speakers=3)
    assert (tmp_path / "mine" / "notes.txt").read_text() == "somebody's data"
