"""`decode` into one int16 array, cache file included, against a loop over the files with soundfile or librosa.load.

The files lie in the computer's file cache after the round that does not count, for all of them alike.
"""

import tempfile

import librosa
import numpy as np
import soundfile

from benchmarks import load_clips, time_in_turn
from shared_utils.audio import decode
from shared_utils.device import set_threads

TARGET = 1.5


def measure(n_runs: int = 7) -> list[dict]:
    """Return name, ours, theirs (milliseconds a clip of 5 s), ratio and unit."""
    set_threads()
    clips = load_clips()

    def decode_anew() -> np.ndarray:
        with tempfile.TemporaryDirectory() as cache:
            return decode(clips, 16000, 5, cache_dir=cache, progress=False)

    def loop_with_soundfile() -> np.ndarray:
        waveforms = np.zeros((len(clips), 80000), dtype=np.int16)
        for row, path in zip(waveforms, clips["path"], strict=True):
            waveform, _ = soundfile.read(path, frames=80000, dtype="int16")
            row[: len(waveform)] = waveform
        return waveforms

    def loop_with_librosa() -> np.ndarray:
        waveforms = np.zeros((len(clips), 80000), dtype=np.float32)
        for row, path in zip(waveforms, clips["path"], strict=True):
            waveform, _ = librosa.load(path, sr=16000, duration=5)
            row[: len(waveform)] = waveform
        return waveforms

    functions = {"decode": decode_anew, "soundfile": loop_with_soundfile, "librosa.load": loop_with_librosa}
    results = {name: function() for name, function in functions.items()}
    np.testing.assert_array_equal(results["decode"], results["soundfile"])
    np.testing.assert_array_equal(results["decode"] / np.float32(32768), results["librosa.load"])
    seconds = time_in_turn(functions, n_runs)
    ours = 1000 * seconds["decode"] / len(clips)
    rows = []
    for name in ("soundfile", "librosa.load"):
        theirs = 1000 * seconds[name] / len(clips)
        row = {"name": f"decode / loop of {name}", "ours": ours, "theirs": theirs, "ratio": theirs / ours}
        rows.append(row | {"unit": "ms a clip"})
    return rows
