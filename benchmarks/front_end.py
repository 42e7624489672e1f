"""Front-ends on a batch against their usual counterparts, which take one clip after the other.

`KaldiFbank` against `transformers.ASTFeatureExtractor`, by its torchaudio path and by the NumPy path that it takes
where torchaudio is missing; `LogMel` against librosa. Ours starts from int16 as `decode` gives it, theirs from float
waveforms that are ready in memory.
"""

import warnings
from unittest import mock

import librosa
import numpy as np
import torch
import transformers.models.audio_spectrogram_transformer.feature_extraction_audio_spectrogram_transformer as ast_module

from benchmarks import load_clips, time_in_turn
from shared_utils.audio import decode
from shared_utils.device import set_threads
from shared_utils.spectrograms import KaldiFbank, LogMel


def measure(n_runs: int = 7, n_clips: int = 64) -> list[dict]:
    """Return name, ours, theirs (milliseconds a clip of 5 s), ratio, unit and target."""
    set_threads()
    clips = load_clips()
    clips = clips.iloc[:: len(clips) // n_clips][:n_clips]  # from every fold
    int16 = torch.from_numpy(np.array(decode(clips, 16000, 5, progress=False)))
    waveforms = list(int16.numpy().astype(np.float32) / 32768)
    with mock.patch.object(ast_module, "is_speech_available", lambda: False), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="At least one mel filter")  # AST's filters have such ones
        with_numpy = ast_module.ASTFeatureExtractor(max_length=500)  # makes its filters for the NumPy path
    with_torchaudio = ast_module.ASTFeatureExtractor(max_length=500)
    fbank, log_mel = KaldiFbank(max_length=500), LogMel()

    def extract(extractor) -> np.ndarray:
        return np.stack([extractor(waveform, sampling_rate=16000)["input_values"][0] for waveform in waveforms])

    def extract_without_torchaudio() -> np.ndarray:
        with mock.patch.object(ast_module, "is_speech_available", lambda: False):
            return extract(with_numpy)

    functions = {
        "KaldiFbank": lambda: fbank(int16),
        "AST, torchaudio": lambda: extract(with_torchaudio),
        "AST, NumPy": extract_without_torchaudio,
        "LogMel": lambda: log_mel(int16),
        "librosa": lambda: np.stack([_log_mel_with_librosa(waveform) for waveform in waveforms]),
    }
    with torch.inference_mode():
        results = {name: np.asarray(function()) for name, function in functions.items()}
        for name in ("AST, torchaudio", "AST, NumPy"):
            np.testing.assert_allclose(results["KaldiFbank"], results[name], atol=1e-3, err_msg=name)
        np.testing.assert_allclose(results["LogMel"], results["librosa"], atol=0.05, err_msg="librosa")  # dB
        seconds = time_in_turn(functions, n_runs)

    rows = []
    for ours, theirs, name, target in (
        ("KaldiFbank", "AST, NumPy", "KaldiFbank / ASTFeatureExtractor with NumPy", 10),
        ("KaldiFbank", "AST, torchaudio", "KaldiFbank / ASTFeatureExtractor with torchaudio", 1),
        ("LogMel", "librosa", "LogMel / librosa", 5),
    ):
        each = {"ours": 1000 * seconds[ours] / len(clips), "theirs": 1000 * seconds[theirs] / len(clips)}
        ratio = seconds[theirs] / seconds[ours]
        rows.append({"name": name, **each, "ratio": ratio, "unit": "ms a clip", "target": target})
    return rows


def _log_mel_with_librosa(waveform: np.ndarray) -> np.ndarray:
    power = librosa.feature.melspectrogram(
        y=waveform, sr=16000, n_fft=1024, hop_length=320, n_mels=64, fmin=20, htk=True, norm=None, pad_mode="reflect"
    )
    return librosa.power_to_db(power, ref=1, amin=1e-10, top_db=80)
