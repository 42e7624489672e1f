"""The demo data: ESC-50's layout, the same bytes for the same seed, and sounds that are what their names say."""

import errno
import hashlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.io import wavfile

from shared_utils import demo_data
from shared_utils.demo_data import make_everyday_sounds


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Ten clips a class of 4 s."""
    return make_everyday_sounds(tmp_path_factory.mktemp("demo") / "everyday sounds", n_clips=10, seconds=4)


@pytest.fixture(scope="module")
def meta(folder) -> pd.DataFrame:
    return pd.read_csv(folder / "meta" / "esc50.csv")


def _hash(folder: Path) -> str:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    return hashlib.sha256(b"".join(file.name.encode() + file.read_bytes() for file in files)).hexdigest()


def _envelopes(folder: Path, meta: pd.DataFrame, category: str) -> np.ndarray:
    """Return the loudness of a category's clips every 10 ms, (clips, 400), mean removed."""
    names = meta.loc[meta["category"] == category, "filename"]
    waveforms = np.stack([wavfile.read(folder / "audio" / name)[1] for name in names]) / 32768
    loudness = waveforms.reshape(len(names), -1, 160).std(axis=2)
    return loudness - loudness.mean(axis=1, keepdims=True)


def test_table_and_files_have_the_official_form(folder, meta):
    assert meta.columns.tolist() == ["filename", "fold", "target", "category", "esc10", "src_file", "take"]
    assert sorted(file.name for file in (folder / "audio").iterdir()) == sorted(meta["filename"])
    for row in meta.itertuples():
        assert row.filename == f"{row.fold}-{row.src_file}-{row.take}-{row.target}.wav"
        sample_rate, waveform = wavfile.read(folder / "audio" / row.filename)
        assert (sample_rate, waveform.dtype, waveform.shape) == (16000, np.int16, (64000,))
        assert 0.19 * 32767 < np.abs(waveform.astype(int)).max() < 0.96 * 32767  # heard, and nothing clipped
    assert "demo data" in (folder / "README.txt").read_text()


def test_full_size_has_forty_clips_a_class_in_five_folds():
    meta = demo_data._plan(40)
    assert len(meta) == meta["filename"].nunique() == 400
    assert (meta.groupby(["category", "fold"]).size() == 8).all() and meta["category"].nunique() == 10
    assert sorted(meta["category"].unique()) == meta.groupby("target")["category"].first().tolist()
    assert meta.groupby("src_file")["fold"].nunique().max() == 1  # all takes on one side
    assert meta.groupby("src_file")["category"].nunique().max() == 1
    takes = meta.sort_values("take").groupby("src_file")["take"].sum()
    assert set(takes) == {"A", "AB", "ABC"}


def test_no_two_clips_are_alike_but_takes_sound_like_one_recording(folder, meta):
    clips = {name: wavfile.read(folder / "audio" / name)[1].astype(float) for name in meta["filename"]}
    assert len({waveform.tobytes() for waveform in clips.values()}) == 100
    spectra = np.stack([np.log(np.abs(np.fft.rfft(w))[: 64 * 500].reshape(64, 500).mean(1)) for w in clips.values()])
    spectra -= spectra.mean(axis=1, keepdims=True)
    distance = np.linalg.norm(spectra[:, None] - spectra[None], axis=2)
    same_class = meta["target"].values[:, None] == meta["target"].values[None]
    same_recording = meta["src_file"].values[:, None] == meta["src_file"].values[None]
    within = distance[same_recording & (distance > 0)].mean()
    between = distance[same_class & ~same_recording].mean()
    assert within < 0.5 * between


def test_same_seed_same_bytes_whatever_the_threads(tmp_path, monkeypatch):
    first = make_everyday_sounds(tmp_path / "first", seed=3, n_clips=5, seconds=1)
    monkeypatch.setattr(demo_data.torch, "get_num_threads", lambda: 7)
    again = make_everyday_sounds(tmp_path / "again", seed=3, n_clips=5, seconds=1)
    other = make_everyday_sounds(tmp_path / "other", seed=4, n_clips=5, seconds=1)
    assert _hash(first) == _hash(again) != _hash(other)
    a, b = (sorted((folder / "audio").iterdir()) for folder in (first, other))
    assert not any(x.read_bytes() == y.read_bytes() for x, y in zip(a, b, strict=True))


def test_a_finished_folder_is_used_again_and_another_seed_replaces_it(tmp_path):
    folder = make_everyday_sounds(tmp_path / "demo", n_clips=5, seconds=1)
    clip = next((folder / "audio").iterdir())
    made = clip.stat().st_mtime_ns, clip.stat().st_ino
    make_everyday_sounds(folder, n_clips=5, seconds=1)
    assert (clip.stat().st_mtime_ns, clip.stat().st_ino) == made
    first = _hash(folder)
    make_everyday_sounds(folder, seed=1, n_clips=5, seconds=1)
    assert _hash(folder) != first
    clip.unlink()  # an incomplete one is no finished one
    make_everyday_sounds(folder, seed=1, n_clips=5, seconds=1)
    assert clip.exists() and [file.name for file in tmp_path.iterdir()] == ["demo"]


def test_it_never_replaces_what_is_not_its_own(tmp_path):
    (tmp_path / "ESC-50-master").mkdir()
    (tmp_path / "ESC-50-master" / "README.md").write_text("somebody's data")
    with pytest.raises(ValueError, match="ESC-50-master holds something other than demo data"):
        make_everyday_sounds(tmp_path / "ESC-50-master")
    assert (tmp_path / "ESC-50-master" / "README.md").read_text() == "somebody's data"


def test_a_full_disk_leaves_nothing_behind_and_the_old_data_in_place(tmp_path, monkeypatch):
    folder = make_everyday_sounds(tmp_path / "demo", n_clips=5, seconds=1)
    before = _hash(folder)

    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(demo_data.wavfile, "write", fail)
    with pytest.raises(OSError, match="cannot be written to .*demo.* No space left on device. Nothing was left behind"):
        make_everyday_sounds(folder, seed=1, n_clips=5, seconds=1)
    assert _hash(folder) == before and [file.name for file in tmp_path.iterdir()] == ["demo"]


def test_bad_arguments(tmp_path):
    for n_clips in (0, 7):
        with pytest.raises(ValueError, match="give a multiple of 5"):
            make_everyday_sounds(tmp_path / "demo", n_clips=n_clips)
    with pytest.raises(ValueError, match="0.1 s at 16000 Hz cannot carry these sounds"):
        make_everyday_sounds(tmp_path / "demo", seconds=0.1)
    assert list(tmp_path.iterdir()) == []


def test_clocks_and_steps_repeat_and_rain_does_not(folder, meta):
    def repetition(category: str) -> float:
        envelopes = _envelopes(folder, meta, category)
        spectra = np.abs(np.fft.rfft(envelopes)) ** 2
        correlation = np.fft.irfft(spectra)[:, 30:250]  # lags of 0.3 to 2.5 s
        return np.median(correlation.max(axis=1) / np.fft.irfft(spectra)[:, 0])

    assert repetition("clock_ticking") > 0.6 and repetition("footsteps") > 0.4
    assert repetition("rain") < 0.3


def test_engines_pulse_at_eight_to_sixteen_hertz_and_wind_below_two(folder, meta):
    def strongest_hertz(category: str) -> np.ndarray:
        envelopes = _envelopes(folder, meta, category)
        return np.fft.rfftfreq(400, 0.01)[np.abs(np.fft.rfft(envelopes)).argmax(axis=1)]

    engines, winds = strongest_hertz("engine_idling"), strongest_hertz("wind")
    assert (winds < 2).mean() >= 0.8
    assert (engines > 2).mean() >= 0.8


def test_the_mean_spectrum_tells_the_classes_poorly(tmp_path):
    """The floor that notebooks compare with lies far above chance and far below what the course over time gives."""
    import torch
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import LeaveOneGroupOut, cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    from shared_utils.spectrograms import LogMel

    folder = make_everyday_sounds(tmp_path / "demo", n_clips=20, seconds=3)
    meta = pd.read_csv(folder / "meta" / "esc50.csv")
    waveforms = np.stack([wavfile.read(folder / "audio" / name)[1] for name in meta["filename"]])
    means = LogMel()(torch.from_numpy(waveforms)).mean(2).numpy()
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))
    scores = cross_val_score(model, means, meta["target"], groups=meta["fold"], cv=LeaveOneGroupOut())
    assert 0.3 < scores.mean() < 0.6
