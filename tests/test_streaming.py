"""Sliding windows over a long recording give what each window gives by itself."""

import warnings

import numpy as np
import pytest
import torch
from torch import nn

from shared_utils.runs import predict_stream
from shared_utils.spectrograms import LogMel


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.front_end = LogMel(n_mels=32)
        self.norm = nn.BatchNorm1d(32)
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(32, 4)

    def forward(self, waveforms):
        return self.head(self.dropout(self.norm(self.front_end(waveforms)).mean(2)) / 20)


class Samples(nn.Module):
    """Gives the logarithms of a window's first and last sample, so that its softmax tells where the window lies."""

    def forward(self, waveforms):
        return torch.stack([waveforms[:, 0], waveforms[:, -1]], 1).log()


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return Net()


@pytest.fixture(scope="module")
def recording() -> np.ndarray:
    """3.37 s, louder towards its end."""
    noise = np.random.default_rng(0).normal(size=53_920) * np.linspace(100, 8000, 53_920)
    return noise.astype(np.int16)


@pytest.mark.parametrize("batch_size", [1, 7, 64])
def test_windows_are_what_the_model_says_of_each(model, recording, batch_size):
    times, probabilities = predict_stream(model.train(), recording, 16000, 1.0, 0.25, batch_size, device="cpu")
    assert model.training  # left as it was
    starts = np.arange(0, len(recording) - 16000 + 1, 4000)
    np.testing.assert_allclose(times, starts / 16000 + 0.5)
    windows = torch.from_numpy(np.stack([recording[start : start + 16000] for start in starts]))
    with torch.no_grad():
        expected = model.eval()(windows).softmax(1).numpy()
    np.testing.assert_allclose(probabilities, expected, atol=1e-6)
    assert abs(np.diff(probabilities, axis=0)).max() > 0.001


@pytest.mark.parametrize("kind", ["int16", "float32", "float64", "tensor", "read-only"])
def test_recordings_of_every_kind_give_the_same(model, recording, kind):
    waveform = {
        "int16": recording, "float32": (recording / 32768).astype(np.float32), "float64": recording / 32768,
        "tensor": torch.from_numpy(recording), "read-only": np.frombuffer(recording.tobytes(), np.int16),
    }[kind]  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        probabilities = predict_stream(model, waveform, 16000, 1.0, device="cpu")[1]
    assert probabilities.dtype == np.float32 and probabilities.shape == (24, 4)
    np.testing.assert_allclose(probabilities, predict_stream(model, recording, 16000, 1.0, device="cpu")[1], atol=1e-6)


def test_a_window_holds_the_samples_of_its_time():
    counted = np.arange(1.0, 31)  # 3 s at 10 Hz
    times, probabilities = predict_stream(Samples(), counted, 10, 1.0, 0.2, device="cpu")
    np.testing.assert_allclose(times, np.arange(0.5, 2.6, 0.2))
    first = counted[:-9:2]
    np.testing.assert_allclose(probabilities[:, 0], first / (first + first + 9), rtol=1e-5)


def test_a_short_recording_is_padded_to_one_window(model, recording):
    times, probabilities = predict_stream(model, recording[-9000:], 16000, 1.0, device="cpu")
    assert times.tolist() == [0.5]
    padded = np.pad(recording[-9000:], (0, 7000))
    np.testing.assert_allclose(probabilities, predict_stream(model, padded, 16000, 1.0, device="cpu")[1], atol=1e-6)


def test_what_is_no_stream_is_refused(model, recording):
    with pytest.raises(ValueError, match=r"shape \(2, 26960\); give one row"):
        predict_stream(model, recording.reshape(2, -1), 16000, 1.0)
    with pytest.raises(ValueError, match=r"shape \(0,\); give one row"):
        predict_stream(model, recording[:0], 16000, 1.0)
    with pytest.raises(ValueError, match=r"made for 16000 Hz, but the recording has 44100; read it with"):
        predict_stream(model, recording, 44100, 1.0)
    with pytest.raises(ValueError, match="hold no sample"):
        predict_stream(model, recording, 16000, 1.0, 0.0)
    with pytest.raises(ValueError, match="torch.int32 have no known full scale"):
        predict_stream(model, recording.astype(np.int32), 16000, 1.0)
    damaged = recording / 32768
    damaged[[24_000, 30_000]] = np.nan, np.inf
    with pytest.raises(ValueError, match=r"2 of 53920 samples .* NaN or infinite, the first at 1\.50 s"):
        predict_stream(model, damaged, 16000, 1.0)
