"""The built-in data: everyday and urban sounds, spoken words, review sentences, in the layout of real data sets."""

import ctypes
import functools
import hashlib
import os
import shutil
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy import fft
from scipy.io import wavfile

from shared_utils.demo_sentences import NEGATIVE, POSITIVE
from shared_utils.device import resolve_path
from shared_utils.splits import COMMANDS, speaker_hash_side

_VERSION = 1  # raise it whenever the same seed would give other sounds
_TAKES = (3, 2, 1, 1, 1)  # clips of one recording: some are in the set more often than others, as in ESC-50
_MARK = "by shared_utils/demo_data.py; no "  # in every README.txt: a folder with it may be replaced
_SYNTHESISED = f"demo data, synthesised {_MARK}recordings.\n"


def make_everyday_sounds(
    folder: str | os.PathLike, seed: int = 0, n_clips: int = 40, seconds: float = 5, sample_rate: int = 16000
) -> Path:
    """Synthesise ten classes of everyday sounds with `n_clips` clips each, in ESC-50's layout; return the folder.

    `folder` gets `meta/esc50.csv` (the official columns), `audio/{fold}-{src_file}-{take}-{target}.wav` (mono, 16 bit)
    and a README.txt. A recording (src_file) draws its pitch, speed, colour, room and background noise; its takes share
    them and differ in what happens when; all takes lie in one of the five folds. Classes differ in their course over
    time more than in their spectrum, so that the mean spectrum tells about half of the clips.

    The folder appears whole or not at all. One with the same arguments is used again, one with others replaced. Raises
    ValueError if `folder` holds anything else, if `n_clips` does not spread evenly over five folds, and for less than
    a second or 16 kHz; OSError if the disk is full.
    """
    folder = resolve_path(folder)
    if n_clips < 5 or n_clips % 5:
        raise ValueError(f"{n_clips} clips a class do not spread evenly over five folds; give a multiple of 5.")
    if seconds < 1 or sample_rate < 16000:
        raise ValueError(f"{seconds} s at {sample_rate} Hz cannot carry these sounds; give 1 s and 16000 Hz or more.")
    meta = _plan(n_clips)
    arguments = f"version {_VERSION}, seed {seed}, {n_clips} clips a class, {seconds} s, {sample_rate} Hz\n"
    write = functools.partial(_write_clip, seed=seed, seconds=seconds, sample_rate=sample_rate)

    def fill(making: Path, pool: ThreadPoolExecutor) -> None:
        (making / "audio").mkdir()
        (making / "meta").mkdir()
        meta.to_csv(making / "meta" / "esc50.csv", index=False)
        list(pool.map(functools.partial(write, making / "audio"), meta.itertuples()))

    files = {"meta/esc50.csv", *("audio/" + meta["filename"])}
    return _make_whole(folder, f"Everyday sounds: {_SYNTHESISED}{arguments}", files, fill)


def _make_whole(folder: Path, readme: str, files: set[str], fill: Callable[[Path, ThreadPoolExecutor], None]) -> Path:
    """Let `fill` write `files` into a folder beside, then rename it; a folder that has them already stays as it is."""
    if _is_complete(folder, readme, files):
        return folder
    if folder.exists() and any(folder.iterdir()) and _MARK not in _read_text(folder / "README.txt"):
        raise ValueError(f"{folder} holds something other than demo data; give the demo data a folder of its own.")

    making = folder.with_name(f".{folder.name}-{uuid.uuid4().hex[:8]}")
    old = making.with_name(making.name + "-old")
    try:
        making.mkdir(parents=True)
        (making / "README.txt").write_text(readme, encoding="utf-8")
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            fill(making, pool)
        if _is_complete(folder, readme, files):  # a second process was faster
            return folder
        if folder.exists():
            os.replace(folder, old)
        os.replace(making, folder)
    except OSError as error:
        if _is_complete(folder, readme, files):
            return folder
        raise OSError(f"The demo data cannot be written to {folder}: {error}. Nothing was left behind.") from error
    finally:
        shutil.rmtree(making, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
    return folder


def _plan(n_clips: int) -> pd.DataFrame:
    """Return the table of clips with the official columns of meta/esc50.csv."""
    rows = []
    for target, category in enumerate(_SOUNDS):
        recording = 0
        for fold in range(1, 6):
            left = n_clips // 5
            while left:
                n_takes = min(left, _TAKES[recording % len(_TAKES)])
                src_file = 100_000 + 1000 * target + recording
                for take in "ABC"[:n_takes]:
                    filename = f"{fold}-{src_file}-{take}-{target}.wav"
                    rows.append((filename, fold, target, category, False, src_file, take))
                left -= n_takes
                recording += 1
    columns = ["filename", "fold", "target", "category", "esc10", "src_file", "take"]
    return pd.DataFrame(rows, columns=columns).sort_values("filename", ignore_index=True)


def _is_complete(folder: Path, readme: str, files: set[str]) -> bool:
    if _read_text(folder / "README.txt") != readme:
        return False
    return files <= {file.relative_to(folder).as_posix() for file in folder.rglob("*")}


def _read_text(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""


def _write_clip(folder: Path, row, seed: int, seconds: float, sample_rate: int) -> None:
    # Seeds of a clip's own: the order in which threads come to the clips changes nothing. The 0 stands for the
    # recording itself, which NumPy would take for a missing last word as well.
    recording = np.random.default_rng(np.random.SeedSequence([seed, row.target, row.src_file, 0]))
    take = np.random.default_rng(np.random.SeedSequence([seed, row.target, row.src_file, "ABC".index(row.take) + 1]))
    waveform = _record(_SOUNDS[row.category], recording, take, round(seconds * sample_rate), sample_rate)
    wavfile.write(folder / row.filename, sample_rate, waveform)


def _record(
    sound: Callable, recording, take, n: int, rate: int, noise_range: tuple[float, float] = (-45, -20)
) -> np.ndarray:
    """Return one take (n,) in int16: the sound in its room, through an equaliser, over background noise.

    The level of the noise is drawn from `noise_range`, in dB against the loudest parts of the sound.
    """
    colour, room, background = recording.spawn(3)
    noise_db, peak = background.uniform(*noise_range), background.uniform(0.2, 0.95)
    size = fft.next_fast_len(n + rate // 2, real=True)

    dry = fft.rfft(sound(recording, take, n, rate), size)
    wet = fft.irfft(dry * fft.rfft(_draw_room(room, rate), size) * _draw_equaliser(colour, size, rate), size)[:n]
    frames = wet[: n - n % 160].reshape(-1, 160)
    loudest = np.sort(frames.std(axis=1))[-max(1, len(frames) // 20) :].mean()
    noise = _make_noise(take, n, _draw_slope(background, n, rate))
    mix = wet / (loudest + 1e-9) + noise * 10 ** (noise_db / 20)
    return np.rint(mix / np.abs(mix).max() * peak * 32767).astype(np.int16)


def _draw_equaliser(rng: np.random.Generator, size: int, rate: int) -> np.ndarray:
    """Return the gain of a smooth random equaliser for each bin of an rfft of `size` samples."""
    knots = np.geomspace(60, rate / 2, 8)
    db = rng.normal(0, 6, len(knots))
    return 10 ** (np.interp(np.log(_bins(size, rate)), np.log(knots), db) / 20)


def _draw_room(rng: np.random.Generator, rate: int) -> np.ndarray:
    """Return a room's impulse response: the direct sound, then noise that decays."""
    decay, level = rng.uniform(0.01, 0.06), rng.uniform(0.0, 0.5)
    seconds = np.arange(rate // 2) / rate
    tail = rng.standard_normal(len(seconds)) * np.exp(-seconds / decay)
    response = level * tail / np.sqrt((tail**2).sum())
    response[0] += 1
    return response


def _draw_slope(rng: np.random.Generator, n: int, rate: int, low: float = 0, high: float = 2) -> np.ndarray:
    """Return the gain of each bin of noise whose power falls with a random power of the frequency."""
    return (_bins(n, rate) / 1000) ** (-rng.uniform(low, high) / 2)


def _bins(size: int, rate: int) -> np.ndarray:
    return np.maximum(fft.rfftfreq(size, 1 / rate), 20)


def _make_noise(rng: np.random.Generator, n: int, gain: np.ndarray) -> np.ndarray:
    """Return noise (n,) of mean power 1 with the given gain of each bin of its rfft."""
    noise = fft.irfft(fft.rfft(rng.standard_normal(n, dtype=np.float32)) * gain, n)
    return noise / noise.std()


# --- the sounds: parameters come from `recording`, what happens when from `take` ---


def _beep_alarm(recording, take, n, rate):
    """Groups of equal beeps."""
    pitch, weights = _draw_pitch(recording, 500, 2700), _draw_overtones(recording)
    length, gap = recording.uniform(0.08, 0.2), recording.uniform(0.08, 0.2)
    count, pause = recording.integers(2, 7), recording.uniform(0.2, 0.7)
    group = count * (length + gap) + pause
    seconds = (np.arange(n) / rate + take.uniform(0, group)) % group
    on = (seconds < count * (length + gap)) & (seconds % (length + gap) < length)
    return _make_tone(np.full(n, pitch), rate, weights) * _smooth(on, 0.004, rate)


def _chirp_bird(recording, take, n, rate):
    """Phrases of short sweeps."""
    pitch, weights = _draw_pitch(recording, 1500, 5000), _draw_overtones(recording)
    pace, length, sweep = recording.uniform(5, 11), recording.uniform(0.05, 0.1), recording.uniform(-0.7, 0.7)
    sweep += 0.5 * np.sign(sweep)
    out = np.zeros(n)
    for start, count in _draw_groups(take, n / rate, (3, 9), 1 / pace, (0.3, 1.2)):
        for k in range(count):
            size = round(length * take.uniform(0.8, 1.2) * rate)
            course = np.linspace(-0.5, 0.5, size) * sweep
            chirp = _make_tone(pitch * take.uniform(0.9, 1.1) * 2**course, rate, weights) * np.hanning(size)
            _add(out, chirp * take.uniform(0.6, 1), start + k / pace * take.uniform(0.98, 1.02), rate)
    return out


def _tick_clock(recording, take, n, rate):
    """A click at exact intervals, tick and tock in turn."""
    period = recording.uniform(0.22, 0.5)
    tick, tock = (_draw_strike(recording, rate, (300, 3500), (0.004, 0.02)) for _ in range(2))
    out = np.zeros(n)
    for k, start in enumerate(np.arange(take.uniform(0, period), n / rate, period)):
        _add(out, (tick, tock)[k % 2] * take.uniform(0.9, 1), start, rate)
    return out


def _bark_dog(recording, take, n, rate):
    """Short cries whose pitch rises and falls, one to three in a row."""
    pitch, weights = _draw_pitch(recording, 280, 750), _draw_overtones(recording, flat=True)
    length, pace, hoarse = recording.uniform(0.12, 0.25), recording.uniform(2.2, 3.5), recording.uniform(0.2, 0.8)
    out = np.zeros(n)
    for start, count in _draw_groups(take, n / rate, (1, 4), 1 / pace, (0.4, 1.4)):
        for k in range(count):
            size = round(length * take.uniform(0.8, 1.2) * rate)
            course = np.linspace(0, 1, size)
            bend = 2 ** (0.7 * np.sin(np.pi * course**0.7) - 0.5 * course)
            cry = _make_tone(pitch * take.uniform(0.9, 1.1) * bend, rate, weights)
            cry *= 1 + hoarse * take.standard_normal(size)
            _add(out, cry * np.sin(np.pi * course**0.5), start + k / pace * take.uniform(0.9, 1.1), rate)
    return out


def _knock_door(recording, take, n, rate):
    """A few quick knocks, then a pause."""
    pace, knock = recording.uniform(4, 7.5), _draw_strike(recording, rate, (150, 2000), (0.008, 0.025))
    out = np.zeros(n)
    for start, count in _draw_groups(take, n / rate, (3, 6), 1 / pace, (0.6, 1.5)):
        for k in range(count):
            _add(out, knock * take.uniform(0.6, 1), start + k / pace * take.uniform(0.97, 1.03), rate)
    return out


def _idle_engine(recording, take, n, rate):
    """Strokes at eight to sixteen a second, each a puff of noise, some cylinders louder."""
    pace, depth = recording.uniform(8, 16), recording.uniform(0.8, 1)
    accents = recording.uniform(0.5, 1, recording.integers(2, 5))
    strokes = np.cumsum(take.normal(1, 0.03, int(pace * n / rate) + 3)) / pace - take.uniform(0, 1 / pace)
    rumble = 0.5 * _draw_strike(recording, rate, (60, 1000), (0.01, 0.03))
    hits = np.zeros(n)
    inside = strokes[(strokes > 0) & (strokes < n / rate)]
    hits[(inside * rate).astype(int)] = np.resize(accents, len(inside))
    puff = np.exp(-np.arange(round(0.3 * rate)) / (rate * recording.uniform(0.008, 0.018)))
    noise = _make_noise(take, n, _draw_slope(recording, n, rate, 0.5, 2))
    return noise * (1 - depth + depth * _convolve(hits, puff)) + _convolve(hits, rumble)


def _walk(recording, take, n, rate):
    """Steps in an even pace: a heel, then the scuff of the sole."""
    pace, delay = recording.uniform(1.4, 2.4), recording.uniform(0.08, 0.14)
    heel = _draw_strike(recording, rate, (100, 2500), (0.006, 0.03))
    gain = _draw_slope(recording, round(recording.uniform(0.1, 0.2) * rate), rate)
    size, level = 2 * (len(gain) - 1), recording.uniform(0.15, 0.4)
    out = np.zeros(n)
    for k, start in enumerate(np.arange(-take.uniform(0, 1 / pace), n / rate, 1 / pace)):
        start += take.normal(0, 0.015)
        _add(out, heel * (1 if k % 2 else 0.8) * take.uniform(0.8, 1), start, rate)
        scuff = _make_noise(take, size, gain) * np.hanning(size)
        _add(out, level * scuff * take.uniform(0.7, 1), start + delay, rate)
    return out


def _rain(recording, take, n, rate):
    """A steady hiss of far drops and the crackle of near ones."""
    drops, level = recording.uniform(10, 40), recording.uniform(0.08, 0.25)
    out = level * _make_noise(take, n, _draw_slope(recording, n, rate, -0.5, 1))
    for _ in range(4):  # surfaces
        drop, hits = _draw_strike(recording, rate, (400, 7000), (0.001, 0.006)), np.zeros(n)
        places = take.integers(0, n, take.poisson(drops / 4 * n / rate))
        hits[places] = 0.3 + take.pareto(4, len(places))
        out += _convolve(hits, drop)
    return out


def _wail_siren(recording, take, n, rate):
    """One tone that glides up and down."""
    low, weights = _draw_pitch(recording, 400, 1300), _draw_overtones(recording)
    width, period, peak = recording.uniform(0.8, 1.5), recording.uniform(0.5, 2.5), recording.uniform(0.2, 0.8)
    turn = (np.arange(n) / rate / period + take.uniform()) % 1
    rise = np.where(turn < peak, turn / peak, (1 - turn) / (1 - peak))
    return _make_tone(low * 2 ** (width * rise), rate, weights)


def _blow_wind(recording, take, n, rate):
    """Noise that swells and fades over seconds, brighter the louder, with a howl that follows."""
    calm = _draw_slope(recording, n, rate, 0.8, 2)
    bright = calm * (_bins(n, rate) / 1000) ** recording.uniform(0.3, 1)
    speed, depth = recording.uniform(0.5, 1.2), recording.uniform(0.5, 1)
    pitch, howl = _draw_pitch(recording, 300, 900), recording.uniform(0, 0.6)
    knots = np.resize([1, -1], int(speed * n / rate) + 4) + take.normal(0, 0.5, int(speed * n / rate) + 4)
    gusts = np.interp(np.arange(n) / rate * speed + take.uniform(0, 2), np.arange(len(knots)), knots)
    gusts = _smooth(gusts, 0.4, rate)
    wobble = 2 ** (0.4 * gusts + 0.1 * _smooth(take.normal(0, 30, n), 0.05, rate))
    voice = howl * _make_tone(pitch * wobble, rate, np.ones(1)) * np.exp(0.5 * gusts)
    return (_make_noise(take, n, calm) + _make_noise(take, n, bright) * np.exp(gusts) + voice) * np.exp(depth * gusts)


_SOUNDS = {  # in alphabetical order
    "alarm_beeps": _beep_alarm,
    "bird_chirps": _chirp_bird,
    "clock_ticking": _tick_clock,
    "dog_barking": _bark_dog,
    "door_knocking": _knock_door,
    "engine_idling": _idle_engine,
    "footsteps": _walk,
    "rain": _rain,
    "siren": _wail_siren,
    "wind": _blow_wind,
}


def _draw_pitch(rng: np.random.Generator, low: float, high: float) -> float:
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def _draw_overtones(rng: np.random.Generator, flat: bool = False) -> np.ndarray:
    """Return the weights of a tone's harmonics (6,)."""
    fall = rng.uniform(0.2, 0.8) if flat else rng.uniform(0.8, 3)
    return np.arange(1, 7) ** -fall * rng.uniform(0.5, 1, 6)


def _draw_strike(
    rng: np.random.Generator, rate: int, hertz: tuple[float, float], decay: tuple[float, float]
) -> np.ndarray:
    """Return the sound of a blow: a few resonances that die away, and a click."""
    seconds = np.arange(round(0.25 * rate))[:, None] / rate
    modes = np.exp(rng.uniform(*np.log(hertz), 5))
    decays = rng.uniform(*decay, 5)
    blow = (np.exp(-seconds / decays) * np.sin(2 * np.pi * modes * seconds) * rng.uniform(0.3, 1, 5)).sum(1)
    click = rng.standard_normal(len(blow)) * np.exp(-seconds[:, 0] / rng.uniform(0.001, 0.004))
    return blow + rng.uniform(0.2, 0.8) * click


def _draw_groups(
    rng: np.random.Generator, seconds: float, counts: tuple[int, int], step: float, pauses: tuple[float, float]
) -> list[tuple[float, int]]:
    """Return groups of events as (start in seconds, number of events `step` seconds apart), pauses between them."""
    groups, start = [], -rng.uniform(0, 1)
    while start < seconds:
        count = int(rng.integers(*counts))
        groups.append((start, count))
        start += count * step + rng.uniform(*pauses)
    return groups


def _make_tone(hertz: np.ndarray, rate: int, weights: np.ndarray) -> np.ndarray:
    """Return a tone that follows `hertz` (n,), with the given harmonics as far as the sample rate carries them."""
    phase = 2 * np.pi * np.cumsum(hertz) / rate
    orders = np.arange(1, len(weights) + 1)[:, None]
    sounding = orders * hertz < 0.45 * rate
    return (weights[:, None] * sounding * np.sin((orders * phase) % (2 * np.pi), dtype=np.float32)).sum(0)


def _add(out: np.ndarray, event: np.ndarray, start: float, rate: int) -> None:
    """Add `event` to `out` from `start` seconds on; what lies outside is cut off."""
    first = round(start * rate)
    event = event[max(0, -first) : max(0, len(out) - first)]
    first = max(0, first)
    out[first : first + len(event)] += event


def _smooth(values: np.ndarray, seconds: float, rate: int) -> np.ndarray:
    """Return the mean of `values` (n,) over a Hann window of this length."""
    window = np.hanning(round(seconds * rate) + 2)
    return _convolve(np.asarray(values, dtype=float), window / window.sum(), centred=True)


def _convolve(values: np.ndarray, kernel: np.ndarray, centred: bool = False) -> np.ndarray:
    size = fft.next_fast_len(len(values) + len(kernel), real=True)
    full = fft.irfft(fft.rfft(values, size) * fft.rfft(kernel, size), size)
    first = len(kernel) // 2 if centred else 0
    return full[first : first + len(values)]


# --- urban sounds ---

_URBAN_VERSION = 1
_SLICES = (3, 2, 1)  # clips of one recording
_URBAN_NOISE = {1: (-30, -6), 2: (-10, 0)}  # dB, for sounds in the foreground and in the background


def make_urban_sounds(folder: str | os.PathLike, seed: int = 0, n_clips: int = 30, sample_rate: int = 16000) -> Path:
    """Synthesise the ten classes of UrbanSound8K with `n_clips` clips each, in that data set's layout.

    The folder, which is returned, gets `metadata/UrbanSound8K.csv` (the official columns), `audio/fold1` to `fold10`
    with `{fsID}-{classID}-0-{slice}.wav` (mono, 16 bit, 1.5 to 4 s, most of them 4 s) and a README.txt. A recording
    (fsID) draws its pitch, speed, colour, room and noise; its one to three slices share them and lie in one fold. A
    third of the recordings have the sound in the background (salience 2), with noise up to its own level.

    The folder appears whole or not at all. One with the same arguments is used again, one with others replaced. Raises
    ValueError if `folder` holds anything else, if `n_clips` does not spread evenly over ten folds, and for less than
    16 kHz; OSError if the disk is full.
    """
    folder = resolve_path(folder)
    if n_clips < 10 or n_clips % 10:
        raise ValueError(f"{n_clips} clips a class do not spread evenly over ten folds; give a multiple of 10.")
    if sample_rate < 16000:
        raise ValueError(f"{sample_rate} Hz cannot carry these sounds; give 16000 Hz or more.")
    meta = _plan_slices(n_clips, seed)
    arguments = f"version {_URBAN_VERSION}, seed {seed}, {n_clips} clips a class, {sample_rate} Hz\n"

    def fill(making: Path, pool: ThreadPoolExecutor) -> None:
        (making / "metadata").mkdir()
        meta.to_csv(making / "metadata" / "UrbanSound8K.csv", index=False)
        for fold in range(1, 11):
            (making / "audio" / f"fold{fold}").mkdir(parents=True)
        write = functools.partial(_write_slice, making / "audio", seed=seed, sample_rate=sample_rate)
        list(pool.map(write, meta.to_dict("records")))

    files = {"metadata/UrbanSound8K.csv", *("audio/fold" + meta["fold"].astype(str) + "/" + meta["slice_file_name"])}
    return _make_whole(folder, f"Urban sounds: {_SYNTHESISED}{arguments}", files, fill)


def _plan_slices(n_clips: int, seed: int) -> pd.DataFrame:
    """Return the table of clips with the official columns of metadata/UrbanSound8K.csv."""
    rng = np.random.default_rng(np.random.SeedSequence([seed]))
    rows = []
    for number, name in enumerate(_URBAN_SOUNDS):
        recording = 0
        for fold in range(1, 11):
            left = n_clips // 10
            while left:
                n_slices = min(left, _SLICES[recording % len(_SLICES)])
                source = 900_000 + 1000 * number + recording  # far from those of the everyday sounds
                salience = 1 + int(rng.uniform() < 1 / 3)
                for k in range(n_slices):
                    seconds = 4.0 if rng.uniform() < 0.75 else round(rng.uniform(1.5, 4), 2)
                    filename = f"{source}-{number}-0-{k}.wav"
                    rows.append((filename, source, 4.0 * k, 4.0 * k + seconds, salience, fold, number, name))
                left -= n_slices
                recording += 1
    columns = ["slice_file_name", "fsID", "start", "end", "salience", "fold", "classID", "class"]
    return pd.DataFrame(rows, columns=columns)


def _write_slice(folder: Path, row: dict, seed: int, sample_rate: int) -> None:
    number, source, start = row["classID"], row["fsID"], row["start"]
    recording = np.random.default_rng(np.random.SeedSequence([seed, number, source, 0]))
    take = np.random.default_rng(np.random.SeedSequence([seed, number, source, 1 + round(start)]))
    n = round((row["end"] - start) * sample_rate)
    noise_range = _URBAN_NOISE[row["salience"]]
    waveform = _record(_URBAN_SOUNDS[row["class"]], recording, take, n, sample_rate, noise_range)
    wavfile.write(folder / f"fold{row['fold']}" / row["slice_file_name"], sample_rate, waveform)


def _condition_air(recording, take, n, rate):
    """Blades that hum, over the steady hiss of the air."""
    pitch, depth, pace = _draw_pitch(recording, 50, 200), recording.uniform(0, 0.4), recording.uniform(0.5, 12)
    hum = recording.uniform(0.1, 1) * _make_tone(np.full(n, pitch), rate, _draw_overtones(recording, flat=True))
    swell = 1 + depth * np.sin(2 * np.pi * (np.arange(n) / rate * pace + take.uniform()))
    return (hum + _make_noise(take, n, _draw_slope(recording, n, rate, 0, 2))) * swell


def _honk_horn(recording, take, n, rate):
    """Blasts of two horns a third apart, one to three in a row."""
    pitch, interval = _draw_pitch(recording, 300, 500), recording.uniform(1.15, 1.35)
    weights, length = _draw_overtones(recording, flat=True), recording.uniform(0.15, 0.8)
    out = np.zeros(n)
    for start, count in _draw_groups(take, n / rate, (1, 4), 1.3 * length, (0.3, 1.0)):
        for k in range(count):
            size = round(length * take.uniform(0.7, 1.3) * rate)
            ends = _smooth(np.ones(size), 0.03, rate)
            chord = sum(_make_tone(np.full(size, hertz), rate, weights) for hertz in (pitch, pitch * interval))
            _add(out, chord * ends, start + 1.3 * length * k, rate)
    return out


def _play_children(recording, take, n, rate):
    """Several high voices that call at the same time, each with the formants of a vowel."""
    n_voices, length = int(recording.integers(2, 6)), recording.uniform(0.2, 0.5)
    out = 0.1 * _make_noise(take, n, _draw_slope(recording, n, rate, 0.5, 1.5))
    for _ in range(n_voices):
        pitch, busy = _draw_pitch(recording, 250, 550), recording.uniform(0.3, 1.5)
        for start, count in _draw_groups(take, n / rate, (1, 5), length, (0.2, busy + 0.3)):
            for k in range(count):
                size = round(length * take.uniform(0.5, 1.1) * rate)
                course = np.linspace(0, 1, size)
                hertz = pitch * take.uniform(0.8, 1.3) * 2 ** (take.uniform(-0.5, 0.5) * course)
                hertz *= 1 + 0.02 * np.sin(2 * np.pi * 6 * length * course)
                formants = np.array([take.uniform(350, 1100), take.uniform(1200, 3000)])
                distance = (np.arange(1, 11) * hertz.mean() - formants[:, None]) / [[150], [250]]
                weights = (np.exp(-(distance**2) / 2) * [[1], [0.5]]).sum(0) + 0.03
                call = _make_tone(hertz, rate, weights) * np.sin(np.pi * course**0.6)
                _add(out, call * take.uniform(0.3, 1), start + length * k, rate)
    return out


def _drill(recording, take, n, rate):
    """A motor that whines while it is pressed, and the grain of what it bores into."""
    pitch, weights = _draw_pitch(recording, 120, 500), _draw_overtones(recording, flat=True)
    pace, depth, grain = recording.uniform(18, 45), recording.uniform(0.2, 0.9), recording.uniform(0.3, 1.5)
    on = np.zeros(n)
    for start, _ in _draw_groups(take, n / rate, (1, 2), recording.uniform(1.0, 4.0), (0.3, 1.0)):
        _add(on, np.ones(round(take.uniform(1.5, 4) * rate)), start, rate)
    on = _smooth(np.minimum(on, 1), 0.15, rate)
    load = _smooth(take.normal(0, 1, n), 0.3, rate) * 8
    whine = _make_tone(pitch * (0.6 + 0.4 * on) * 2 ** (0.1 * load), rate, weights)
    hammer = 1 + depth * np.sin(2 * np.pi * pace * np.arange(n) / rate)
    return (whine + grain * _make_noise(take, n, _draw_slope(recording, n, rate, -1, 1))) * hammer * on


def _fire_gun(recording, take, n, rate):
    """One to four bangs, each with an echo."""
    decay, boom, delay = recording.uniform(0.02, 0.15), _draw_pitch(recording, 50, 150), recording.uniform(0.08, 0.4)
    count, pause, echo = int(recording.integers(1, 5)), recording.uniform(0.12, 0.9), recording.uniform(0.05, 0.4)
    size = round(min(6 * decay + 0.3, n / rate) * rate) // 2 * 2
    seconds, gain = np.arange(size) / rate, _draw_slope(recording, size, rate, 0, 1)
    out, start = 0.01 * take.standard_normal(n), take.uniform(0, 0.3)
    for k in range(count):
        bang = _make_noise(take, size, gain) * np.exp(-seconds / decay)
        bang += np.sin(2 * np.pi * boom * seconds) * np.exp(-seconds / (2 * decay))
        for level, late in ((1, 0), (echo, delay)):
            _add(out, level * bang * take.uniform(0.8, 1), start + k * pause + late, rate)
    return out


def _hammer_road(recording, take, n, rate):
    """Blows of metal at ten to twenty-five a second, in bursts, over a compressor."""
    pace, blow = recording.uniform(10, 25), _draw_strike(recording, rate, (150, 4000), (0.005, 0.03))
    level = recording.uniform(0.05, 0.4)
    blows = np.cumsum(take.normal(1, 0.04, int(pace * n / rate) + 3)) / pace - take.uniform(0, 1 / pace)
    places = (blows[(blows > 0) & (blows < n / rate)] * rate).astype(int)
    hits, on = np.zeros(n), np.zeros(n)
    for start, _ in _draw_groups(take, n / rate, (1, 2), recording.uniform(2, 4), (0.2, 0.8)):
        _add(on, np.ones(round(take.uniform(1.5, 4) * rate)), start, rate)
    hits[places] = np.minimum(on[places], 1) * take.uniform(0.7, 1, len(places))
    grit = np.exp(-np.arange(round(0.1 * rate)) / (rate * recording.uniform(0.005, 0.02)))
    noise = _make_noise(take, n, _draw_slope(recording, n, rate, -0.5, 1))
    return _convolve(hits, blow) + noise * (level + _convolve(hits, grit))


def _play_music(recording, take, n, rate):
    """A tune in a scale of five tones over a beat, each note plucked or held."""
    pitch, weights = _draw_pitch(recording, 180, 500), _draw_overtones(recording)
    beat, held, drum = recording.uniform(0.18, 0.5), recording.uniform(0.1, 1.0), recording.uniform(0, 0.6)
    scale = 2 ** (np.array([0, 2, 4, 7, 9, 12]) / 12)
    stroke = _draw_strike(recording, rate, (80, 2500), (0.01, 0.06))
    out = np.zeros(n)
    for k, start in enumerate(np.arange(-take.uniform(0, beat), n / rate, beat)):
        if k % 2:
            _add(out, drum * stroke, start, rate)
        for _ in range(int(take.integers(1 - k % 2, 3))):
            size = round(beat * take.choice([1, 2]) * rate)
            fade = np.exp(-np.arange(size) / (held * rate)) * _smooth(np.ones(size), 0.02, rate)
            _add(out, _make_tone(np.full(size, pitch * take.choice(scale)), rate, weights) * fade, start, rate)
    return out


_URBAN_SOUNDS = {  # in the order of classID, which is the alphabet's
    "air_conditioner": _condition_air,
    "car_horn": _honk_horn,
    "children_playing": _play_children,
    "dog_bark": _bark_dog,
    "drilling": _drill,
    "engine_idling": _idle_engine,
    "gun_shot": _fire_gun,
    "jackhammer": _hammer_road,
    "siren": _wail_siren,
    "street_music": _play_music,
}


# --- spoken words: eSpeak NG speaks them in one thread, the pool gives them a microphone, a room and noise ---

_WORDS_VERSION = 1
_OTHER_WORDS = tuple(
    "zero one two three four five six seven eight nine bed bird cat dog happy house marvin sheila tree wow "
    "backward forward follow learn visual".split()
)
_ACCENTS = tuple("en en-us en-029 en-gb-scotland en-gb-x-rp en-gb-x-gbclan en-gb-x-gbcwmd en-us-nyc".split())
# Left out: whispers, robots, drawls that last longer than a second, and variants that never say the same twice, since
# they read memory eSpeak never set (those with an echo, with half a list of breaths, or of Klatt's sixth kind).
_VARIANTS = tuple(
    (
        "m1 m3 m4 m5 m6 m7 m8 f1 Alex Andrea Annie Denis Gene Gene2 Mario Michael Mike Nguyen anika antonio aunty "
        "belinda boris croak ed edward grandma grandpa gustave ian iven iven2 iven3 iven4 john kaukovalta klatt klatt2 "
        "klatt3 klatt4 linda marcelo max norbert paul pedro quincy rob robert shelby steph steph2 steph3 travis zac"
    ).split()
)
_N_HELD_OUT_VARIANTS = 10  # voices of the validation part, and as many others of the test part
_MOST_SPEAKERS = 350  # 256 of them for training, which has 35 variants x 8 accents = 280 voices
_ESPEAK_RATE = 22050  # Hz
_ESPEAK_LOCK = threading.Lock()


def make_spoken_words(
    folder: str | os.PathLike, seed: int = 0, n_speakers: int = 150, sample_rate: int = 16000
) -> Path:
    """Have eSpeak NG say the 35 words of Speech Commands v0.02, in that data set's layout; return the folder.

    `folder` gets `{word}/{speaker}_nohash_{take}.wav` (mono, 16 bit, one second), `_background_noise_/` (six files of
    60 s), `validation_list.txt`, `testing_list.txt` and a README.txt. A speaker is one of eSpeak's voices with an
    accent, a pitch, a rate and a length of the vocal tract, at a microphone in a room; every one says each word once,
    every other one the ten commands a second time. Takes differ in pitch, rate, place, level and noise (SNR 0 to
    25 dB). The name of a speaker hashes to the side the lists give: Warden, Speech Commands (2018). About 2 in 15
    speakers are in the validation part and as many in the test part; no voice is on two sides, in whatever accent.
    150 speakers are 6,000 clips, 200 MB.

    The folder appears whole or not at all. One with the same arguments is used again, one with others replaced. Raises
    ValueError if `folder` holds anything else, for less than 3 speakers, more than the voices allow, or less than
    16 kHz; RuntimeError if eSpeak NG cannot be loaded; OSError if the disk is full.
    """
    folder = resolve_path(folder)
    if not 3 <= n_speakers <= _MOST_SPEAKERS:
        raise ValueError(f"n_speakers={n_speakers} is not possible; give 3 (one a side) to {_MOST_SPEAKERS}.")
    if sample_rate < 16000:
        raise ValueError(f"{sample_rate} Hz cannot carry speech and noise; give 16000 Hz or more.")
    speakers, clips = _plan_speakers(n_speakers, seed)
    lists = {
        f"{name}_list.txt": sorted(clips.loc[clips["side"] == side, "path"])
        for name, side in (("validation", "val"), ("testing", "test"))
    }

    def fill(making: Path, pool: ThreadPoolExecutor) -> None:
        for name, paths in lists.items():
            (making / name).write_text("".join(f"{path}\n" for path in paths), encoding="utf-8", newline="\n")
        for word in ("_background_noise_", *COMMANDS, *_OTHER_WORDS):
            (making / word).mkdir()
        # The pool records a speaker while this thread has eSpeak say the next one's words.
        recorded = pool.map(functools.partial(_record_words, making, sample_rate), _speak(speakers, clips, seed))
        noises = pool.map(functools.partial(_write_noise, making, seed, sample_rate), _NOISES)
        list(recorded)
        list(noises)

    arguments = f"version {_WORDS_VERSION}, seed {seed}, {n_speakers} speakers, {sample_rate} Hz\n"
    files = {*clips["path"], *lists, *(f"_background_noise_/{name}.wav" for name in _NOISES)}
    return _make_whole(folder, f"Spoken words: {_SYNTHESISED}{arguments}", files, fill)


def _plan_speakers(n_speakers: int, seed: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the tables of speakers (speaker, side, variant, accent) and of clips (speaker, side, word, take, path)."""
    rng = np.random.default_rng(np.random.SeedSequence([seed]))
    n_held_out = max(1, round(n_speakers * 2 / 15))
    left = {"val": n_held_out, "test": n_held_out, "train": n_speakers - 2 * n_held_out}
    voices = {}
    cuts = [_N_HELD_OUT_VARIANTS, 2 * _N_HELD_OUT_VARIANTS]
    for side, variants in zip(left, np.split(rng.permutation(_VARIANTS), cuts), strict=True):
        accents = rng.permutation(_ACCENTS)
        # Every variant with one accent, then every variant with another: no two speakers have the same voice.
        voices[side] = [
            (variant, accents[(k + turn) % len(accents)])
            for turn in range(len(accents))
            for k, variant in enumerate(variants)
        ]
    ids, speakers = set(), []
    while sum(left.values()):
        speaker = f"{rng.integers(2**32):08x}"
        side = speaker_hash_side(f"{speaker}_nohash_")
        if left[side] and speaker not in ids:
            ids.add(speaker)
            left[side] -= 1
            speakers.append((speaker, side, *voices[side][left[side]]))
    clips = [
        (speaker, side, word, take, f"{word}/{speaker}_nohash_{take}.wav")
        for k, (speaker, side, *_) in enumerate(speakers)
        for take in range(2)
        for word in (COMMANDS + _OTHER_WORDS, COMMANDS[: 10 * (k % 2)])[take]
    ]
    return (
        pd.DataFrame(speakers, columns=["speaker", "side", "variant", "accent"]),
        pd.DataFrame(clips, columns=["speaker", "side", "word", "take", "path"]),
    )


def _speak(speakers: pd.DataFrame, clips: pd.DataFrame, seed: int) -> Iterator[tuple]:
    """Yield for each speaker: its generator, and (path, word as eSpeak says it, generator) for each of its clips."""
    words = COMMANDS + _OTHER_WORDS
    clips_of = dict(list(clips.groupby("speaker")))
    with _ESPEAK_LOCK:
        espeak, say = _open_espeak()
        try:
            for row in speakers.itertuples():
                number = int(row.speaker, 16)
                recording = np.random.default_rng(np.random.SeedSequence([seed, number, 0]))
                # as eSpeak calls them: rate in words a minute, pitch and pitch range from 0 to 100
                rate, pitch, pitch_range = (recording.uniform(*limits) for limits in ((140, 205), (25, 75), (20, 80)))
                takes = []
                for clip in clips_of[row.speaker].itertuples():
                    place = [seed, number, words.index(clip.word) + 1, clip.take + 1]
                    take = np.random.default_rng(np.random.SeedSequence(place))
                    settings = rate * take.uniform(0.95, 1.05), pitch + take.normal(0, 4)
                    settings += (pitch_range + take.normal(0, 8),)
                    takes.append((clip.path, say(clip.word, f"{row.accent}+{row.variant}", *settings), take))
                yield recording, takes
        finally:
            _close_espeak(espeak)


def _open_espeak() -> tuple[ctypes.CDLL, Callable[..., np.ndarray]]:
    """Return the library and a function that says a word in a voice: int16 (samples,) at 22,050 Hz."""
    try:
        import espeakng_loader

        data = espeakng_loader.get_data_path()
        espeak = ctypes.CDLL(espeakng_loader.get_library_path())
    except (ImportError, OSError, RuntimeError) as error:
        raise RuntimeError(
            f"eSpeak NG, which speaks the demo words, cannot be loaded ({error}); "
            "run 'pip install --force-reinstall espeakng-loader'."
        ) from error
    parts, voices = [], []

    @ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
    def keep(samples, n, events):
        if n > 0:
            parts.append(ctypes.string_at(samples, 2 * n))
        return 0

    # 2: hand the samples to the callback, in this thread. 0x8000: do not end the process where the data are missing.
    if espeak.espeak_Initialize(2, 0, os.fsencode(data), 0x8000) != _ESPEAK_RATE:
        _close_espeak(espeak)
        raise RuntimeError(
            f"eSpeak NG, which speaks the demo words, cannot use its data in {data}; run 'pip install "
            "--force-reinstall espeakng-loader', in an environment with a path of less than 150 characters."
        )
    espeak.espeak_SetSynthCallback(keep)
    espeak.callback = keep  # Python would free it

    def say(word: str, voice: str, rate: float, pitch: float, pitch_range: float) -> np.ndarray:
        parts.clear()
        if voices[-1:] != [voice]:
            voices.append(voice)
            if espeak.espeak_SetVoiceByName(voice.encode()):
                raise RuntimeError(f"eSpeak NG has no voice {voice}; run 'pip install espeakng-loader==0.2.4'.")
        for parameter, value in ((1, rate), (3, pitch), (4, pitch_range)):
            espeak.espeak_SetParameter(parameter, max(0, round(value)), 0)
        text = word.encode()
        espeak.espeak_Synth(text, ctypes.c_size_t(len(text) + 1), 0, 1, 0, 1, None, None)
        spoken = np.frombuffer(b"".join(parts), dtype=np.int16)
        loud = np.flatnonzero(np.abs(spoken.astype(int)) * 300 > np.abs(spoken.astype(int)).max(initial=0))
        if len(loud) == 0:
            raise RuntimeError(f"eSpeak NG said nothing for {word!r}; run 'pip install espeakng-loader==0.2.4'.")
        return spoken[loud[0] : loud[-1] + 1]

    return espeak, say


def _close_espeak(espeak: ctypes.CDLL) -> None:
    # Unloaded, not only ended: its voices flutter, and a library that stays goes on where the flutter was. A fresh one
    # speaks the same again.
    import _ctypes

    espeak.espeak_Terminate()
    close = _ctypes.dlclose if hasattr(_ctypes, "dlclose") else _ctypes.FreeLibrary
    close(espeak._handle)


def _record_words(folder: Path, rate: int, spoken: tuple) -> None:
    """Write a speaker's clips of one second: words at a random place, through one room and microphone, in noise."""
    recording, takes = spoken
    size = fft.next_fast_len(rate + rate // 2, real=True)
    # Samples at eSpeak's rate that last as long as `size` at this one; more or less of them shift pitch and formants
    # as a shorter or longer vocal tract does.
    n_in = fft.next_fast_len(round(size / rate * _ESPEAK_RATE * recording.uniform(0.92, 1.08)), real=True)
    second = n_in * rate // size
    dry = np.zeros((len(takes), n_in), dtype=np.float32)
    shares = np.zeros(len(takes))
    for row, (_, word, take) in enumerate(takes):
        shares[row] = len(word) / second
        start = round((second - len(word)) / 2 + take.uniform(-0.15, 0.15) * second)
        start = min(max(start, 0), second - len(word))
        dry[row, start : start + len(word)] = word

    response = fft.rfft(_draw_room(recording, rate), size) * _draw_equaliser(recording, size, rate)
    n_bins = min(size, n_in) // 2 + 1
    wet = fft.irfft(fft.rfft(dry)[:, :n_bins] * response[:n_bins].astype(np.complex64), size)[:, :rate]
    wet /= np.sqrt((wet**2).mean(axis=1) / shares)[:, None]
    tilt = -np.log(_bins(rate, rate) / 1000).astype(np.float32) / 2
    for (path, _, take), waveform in zip(takes, wet, strict=True):
        # Noise drawn as a spectrum: one transform for each clip instead of two, and these are most of the work.
        spectrum = take.standard_normal(2 * len(tilt), dtype=np.float32).view(np.complex64)
        noise = fft.irfft(spectrum * np.exp(tilt * take.uniform(-0.5, 2)), rate)
        mix = waveform + noise * (10 ** (-take.uniform(0, 25) / 20) / noise.std())
        peak = float(np.exp(take.uniform(*np.log([0.05, 0.95]))))
        wavfile.write(folder / path, rate, np.rint(mix / np.abs(mix).max() * peak * 32767).astype(np.int16))


def _write_noise(folder: Path, seed: int, rate: int, name: str) -> None:
    rng = np.random.default_rng(np.random.SeedSequence([seed, 0, list(_NOISES).index(name) + 1]))
    noise = _NOISES[name](rng, 60 * rate, rate)
    peak = rng.uniform(0.5, 0.95)
    waveform = np.rint(noise / np.abs(noise).max() * peak * 32767).astype(np.int16)
    wavfile.write(folder / "_background_noise_" / f"{name}.wav", rate, waveform)


def _hum(rng, n, rate):
    """Overtones of the mains that come and go, over a little hiss."""
    tone = _make_tone(np.full(n, 100.0), rate, _draw_overtones(rng, flat=True))
    swell = 1 + 0.3 * np.interp(np.arange(n) / rate, np.arange(62), rng.uniform(-1, 1, 62))
    return tone * swell + 0.1 * _make_noise(rng, n, _draw_slope(rng, n, rate, 0, 1))


def _run_water(rng, n, rate):
    """A hiss that flickers, and bubbles whose pitch rises."""
    flicker = _smooth(rng.standard_normal(n), 0.02, rate)
    out = _make_noise(rng, n, _draw_slope(rng, n, rate, 0, 1)) * np.exp(0.5 * flicker / flicker.std())
    for start in np.cumsum(rng.exponential(0.06, round(n / rate / 0.06))):
        size = round(rng.uniform(0.02, 0.06) * rate)
        course = _draw_pitch(rng, 400, 2500) * 2 ** np.linspace(0, rng.uniform(0.2, 0.8), size)
        _add(out, 2 * rng.uniform(0.3, 1) * _make_tone(course, rate, np.ones(1)) * np.hanning(size), start, rate)
    return out


def _clatter(rng, n, rate):
    """Blows on a dozen things in irregular bursts, in a quiet room."""
    out = 0.02 * _make_noise(rng, n, _draw_slope(rng, n, rate, 0.5, 1.5))
    things = [_draw_strike(rng, rate, (300, 6000), (0.005, 0.06)) for _ in range(12)]
    for start, count in _draw_groups(rng, n / rate, (2, 9), 0.15, (0.1, 1.2)):
        for k in range(count):
            thing = things[rng.integers(len(things))]
            _add(out, rng.uniform(0.2, 1) * thing, start + 0.15 * (k + rng.uniform(-0.4, 0.4)), rate)
    return out


_NOISES = {
    "clatter": _clatter,
    "machine": lambda rng, n, rate: _idle_engine(rng, rng, n, rate),
    "mains_hum": _hum,
    "pink_noise": lambda rng, n, rate: _make_noise(rng, n, (_bins(n, rate) / 1000) ** -0.5),
    "running_water": _run_water,
    "white_noise": lambda rng, n, rate: _make_noise(rng, n, np.ones(n // 2 + 1)),
}


# --- review sentences, as they were written ---


def make_review_sentences(folder: str | os.PathLike) -> Path:
    """Write 300 sentences in the manner of film reviews, in the layout of GLUE's SST-2; return the folder.

    `folder` gets `SST-2/train.tsv` (200 rows) and `SST-2/dev.tsv` (100), with the columns sentence and label (0:
    negative, 1: positive), half of each label, and a README.txt. A bag of words that learns from 40 of them tells
    about 63 in 100 others.

    The folder appears whole or not at all. One that is there already is used again, one with other sentences replaced.
    Raises ValueError if `folder` holds anything else; OSError if the disk is full.
    """
    folder = resolve_path(folder)
    texts = {name: ["sentence\tlabel\n"] for name in ("SST-2/train.tsv", "SST-2/dev.tsv")}
    for k, pair in enumerate(zip(NEGATIVE, POSITIVE, strict=True)):
        name = "SST-2/dev.tsv" if k % 3 == 2 else "SST-2/train.tsv"
        texts[name] += [f"{text}\t{label}\n" for label, text in enumerate(pair)]
    contents = {name: "".join(lines).encode() for name, lines in texts.items()}

    def fill(making: Path, pool: ThreadPoolExecutor) -> None:
        (making / "SST-2").mkdir()
        for name, content in contents.items():
            (making / name).write_bytes(content)

    sha256 = hashlib.sha256(b"".join(contents.values())).hexdigest()
    readme = f"Review sentences: demo data, written for it and put here {_MARK}quotations.\nSHA-256 {sha256}\n"
    return _make_whole(folder, readme, set(contents), fill)
