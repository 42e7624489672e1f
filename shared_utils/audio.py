"""Read an audio file, fix its length, and decode a whole table of clips once into one int16 array."""

import contextlib
import functools
import hashlib
import itertools
import json
import math
import numbers
import os
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

import numpy as np
import pandas as pd
import soundfile
import torch
from tqdm.std import tqdm

from shared_utils.device import resolve_path

_VERSION = 4  # part of the cache's key: raise it whenever the same file would decode to other numbers
_GROUP = 8  # clips a task of the pool: threads that change for every clip spend their time on that
_BLOCK = 32  # groups in flight at once, so that a slow disk cannot fill the memory with decoded clips
_PHASES = 16  # of the resampling filter, multiplied at once: fewer cost more calls, more cost more products with zeros
_MPEG1_KBPS = (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)  # layer III, ISO/IEC 11172-3
_MPEG2_KBPS = (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)  # layer III, ISO/IEC 13818-3
_CLOSED = "it cannot be opened"  # how a reason begins that is none of the file itself


def read_audio(path: str | os.PathLike, sample_rate: int | None = None) -> tuple[np.ndarray, int]:
    """Read a whole file as mono; return (waveform float32 (samples,), its sample rate in Hz).

    Full scale is 1.0, several channels become their mean, and a `sample_rate` other than the file's resamples
    (windowed sinc, torchaudio). Raises FileNotFoundError, or ValueError that says why the file cannot be used. An MP3
    that is cut off can be told from a whole one only if its first frame says how many there are, as most encoders do;
    one that does not say it and is longer than it seems is refused.
    """
    if sample_rate is not None:
        sample_rate = _check_sample_rate(sample_rate)
    path = resolve_path(path)
    if not path.exists():
        raise FileNotFoundError(f"There is no audio file {path}.")
    try:
        waveform, sample_rate = _read(path, sample_rate)
    except (OSError, ValueError, soundfile.LibsndfileError) as error:
        raise ValueError(f"{path} cannot be used: {_reason(error)}.") from error
    if waveform.dtype == np.int16:
        waveform = waveform.astype(np.float32) / 32768
    return waveform, sample_rate


def fix_length(waveform: np.ndarray, n_samples: int, padding: str = "zeros") -> np.ndarray:
    """Trim the end of `waveform` (samples,), or fill it up with zeros or by repeating it: (n_samples,).

    Raises ValueError for an unknown padding, and for nothing to repeat.
    """
    _check_padding(padding)
    if len(waveform) >= n_samples:
        return waveform[:n_samples]
    if padding == "zeros":
        return np.pad(waveform, (0, n_samples - len(waveform)))
    if len(waveform) == 0:
        raise ValueError("A waveform without samples cannot be repeated; use padding='zeros'.")
    return np.resize(waveform, n_samples)


def cut_windows(waveforms: np.ndarray | torch.Tensor, n_samples: int, hop: int) -> np.ndarray | torch.Tensor:
    """Cut each clip of `waveforms` (clips, samples) into windows: a view (clips, n_windows, n_samples), no copy.

    Window k begins at sample k * `hop`; a rest at the end that does not fill a window is left out. A NumPy array, one
    that is mapped from a file as well, gives a read-only array, a tensor gives a tensor. Raises ValueError for another
    form, for lengths that are no whole numbers from 1 up, and where less than two windows fit.
    """
    for name, value in (("n_samples", n_samples), ("hop", hop)):
        if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < 1:
            raise ValueError(
                f"{name}={value!r} is no whole number of samples from 1 up; give round(seconds * sample_rate)."
            )
    if waveforms.ndim != 2:
        raise ValueError(
            f"Windows are cut from waveforms (clips, samples), not from shape {tuple(waveforms.shape)}; "
            "for a single clip give waveform[None]."
        )
    length = waveforms.shape[1]
    if length < n_samples:
        raise ValueError(
            f"Clips of {length} samples are shorter than a window of {n_samples}; "
            "take a shorter window or longer clips."
        )
    if length < n_samples + hop:
        raise ValueError(
            f"Only one window of {n_samples} samples fits into clips of {length} with a hop of {hop}, so there is "
            "nothing to average; take a shorter window or longer clips."
        )
    if isinstance(waveforms, torch.Tensor):
        return waveforms.unfold(1, n_samples, hop)
    return np.lib.stride_tricks.sliding_window_view(waveforms, n_samples, axis=1)[:, ::hop]


def find_loudest(waveform: np.ndarray, n_samples: int) -> int:
    """Return where the loudest `n_samples` of a waveform (samples,) begin, its middle weighing more than its ends."""
    if len(waveform) <= n_samples:
        return 0
    block = max(1, n_samples // 100)
    energy = np.square(waveform[: len(waveform) // block * block] - waveform.mean()).reshape(-1, block).sum(1)
    window = np.hanning(n_samples // block + 2)[1:-1]
    return min(int(np.convolve(energy, window, "valid").argmax()) * block, len(waveform) - n_samples)


def start_at_loudest(clips: pd.DataFrame, seconds: float) -> pd.DataFrame:
    """Return `clips` with a column `clip_start`: `decode` then takes the loudest `seconds` of files that are longer.

    Recordings of a word often begin before it is spoken. A printed line says how many are longer, by 0.05 s at least;
    the others begin at their beginning, as do those that cannot be read, which `decode` will name. What has a
    `clip_start` keeps it.
    """

    def find(path: Path) -> float | None:
        try:
            header = soundfile.info(path)
            if header.frames <= (seconds + 0.05) * header.samplerate:
                return None
            waveform, rate = read_audio(path)
        except (OSError, ValueError, soundfile.LibsndfileError):
            return None
        return find_loudest(waveform, math.ceil(seconds * rate)) / rate

    given = clips["clip_start"] if "clip_start" in clips else pd.Series(math.nan, clips.index)
    starts = given.to_numpy(dtype=float, copy=True)
    unknown = np.flatnonzero(np.isnan(starts))
    with _open_pool() as pool:
        found = list(pool.map(find, map(resolve_path, clips["path"].iloc[unknown])))
    starts[unknown] = [math.nan if start is None else start for start in found]
    n_longer = len(found) - found.count(None)
    if n_longer:
        share = f"{n_longer:,} of {len(clips):,} recordings"
        print(f"{share} are longer than {seconds:g} s: their loudest parts are heard.")
    table = clips.assign(clip_start=starts)
    table.attrs = dict(clips.attrs)
    return table


def decode(
    clips: pd.DataFrame,
    sample_rate: int,
    seconds: float,
    padding: str = "zeros",
    on_error: str = "raise",
    cache_dir: str | os.PathLike = "data/cache",
    n_threads: int | None = None,
    progress: bool = True,
) -> np.ndarray | tuple[np.ndarray, pd.DataFrame]:
    """Decode every file of `clips["path"]` once; return int16 (n_clips, sample_rate * seconds), mapped from a file.

    A file is read as far as needed, mixed to mono, resampled, trimmed or padded (`fix_length`), rounded and clamped;
    16-bit mono at the right rate arrives bit for bit. The array lies in `cache_dir` under a key of paths, sizes,
    times and arguments, and is taken from there, read-only, until one of these changes. `n_threads` is the number of
    files read at once; None means as many as PyTorch uses threads.

    A table may have the columns `clip_start`, so that a clip begins so many seconds into its file (NaN: at the
    beginning), and `clip_volume`, a factor that its samples are multiplied by before they are rounded (NaN: 1).

    All damaged files (missing, truncated, no audio, no samples, NaN) are named with their reasons in one ValueError;
    a truncated MP3 if what is left of it is too short for its clip, and its first frame says how many there were.
    on_error="skip" leaves them out, says how many, and returns (waveforms, kept_clips): the table without them. Files
    that could not be opened are read as soon as they can be.
    A full disk raises OSError and leaves nothing behind.
    """
    _check_padding(padding)
    if on_error not in ("raise", "skip"):
        raise ValueError(f"on_error={on_error!r} is unknown; choose 'raise' or 'skip'.")
    if "path" not in clips:
        raise ValueError("The table of clips has no column 'path'; load_esc50 and load_folder make one.")
    if len(clips) == 0:
        raise ValueError("The table of clips is empty; there is nothing to decode.")
    sample_rate = _check_sample_rate(sample_rate)
    n_samples = round(sample_rate * float(seconds))  # plain numbers: NumPy's overflow, and cannot be written as JSON
    if n_samples < 1:
        raise ValueError(f"{seconds} s at {sample_rate} Hz is less than one sample; both must be above 0.")

    paths = [resolve_path(path) for path in clips["path"]]
    starts, volumes = _read_column(clips, "clip_start", 0), _read_column(clips, "clip_volume", 1)
    windows = list(zip(paths, starts, volumes, strict=True))
    key = _hash_arguments(windows, sample_rate, n_samples, padding)
    cache = resolve_path(cache_dir) / f"{len(paths)}x{n_samples}-{key}.npy"
    waveforms, damaged = _open_cache(cache, len(paths), n_samples)
    closed = [paths[row] for row, reason in damaged.items() if reason.startswith(_CLOSED)]
    if waveforms is None or (damaged and on_error == "raise") or any(map(_can_be_opened, closed)):
        read_row = functools.partial(_read_row, sample_rate=sample_rate, n_samples=n_samples, padding=padding)
        _fill_cache(cache, windows, n_samples, read_row, on_error, n_threads, progress)
        waveforms, damaged = _open_cache(cache, len(paths), n_samples)
    if waveforms is None:
        raise OSError(f"{cache} cannot be mapped into memory; name a folder on a local disk with cache_dir.")
    if on_error == "raise":
        return waveforms
    if damaged:
        first = "; ".join(f"{paths[row].name}: {reason}" for row, reason in list(damaged.items())[:3])
        more = f"; and {len(damaged) - 3} more" if len(damaged) > 3 else ""
        print(f"Left out {len(damaged)} of {len(paths)} clips that cannot be used ({first}{more}).")
    kept = clips[~np.isin(np.arange(len(clips)), list(damaged))].reset_index(drop=True)
    kept.attrs = dict(clips.attrs)
    return waveforms, kept


@contextlib.contextmanager
def _open_pool(n_threads: int | None = None) -> Iterator[ThreadPoolExecutor]:
    """Give a pool of threads, as many as PyTorch uses, which uses one in each: else each would resample with a team."""
    n_torch_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(n_threads or n_torch_threads) as pool:
            yield pool
    finally:
        torch.set_num_threads(n_torch_threads)


def _can_be_opened(path: Path) -> bool:
    try:
        with open(path, "rb"):
            return True
    except OSError:
        return False


def _read_column(clips: pd.DataFrame, name: str, default: float) -> list[float]:
    if name not in clips:
        return [default] * len(clips)
    values = clips[name].astype(float).fillna(default)
    wrong = clips.index[~np.isfinite(values) | (values < 0)]
    if len(wrong):
        raise ValueError(f"Clip {wrong[0]} of the table has {name}={values[wrong[0]]}; it must be a number from 0 up.")
    return values.tolist()


def _check_sample_rate(sample_rate: float) -> int:
    """Return as an int what a table or a division makes of one: np.int64(16000), 16000.0."""
    is_number = isinstance(sample_rate, numbers.Real) and not isinstance(sample_rate, bool)
    if not is_number or not float(sample_rate).is_integer() or sample_rate < 1:
        raise ValueError(f"sample_rate={sample_rate!r} must be a whole number of Hz, 1 or more, such as 16000.")
    return int(sample_rate)


def _check_padding(padding: str) -> None:
    if padding not in ("zeros", "repeat"):
        raise ValueError(f"padding={padding!r} is unknown; choose 'zeros' or 'repeat'.")


def _read(
    path: Path, sample_rate: int | None, n_samples: int | None = None, start: float = 0
) -> tuple[np.ndarray, int]:
    """Read `n_samples` (at `sample_rate`) of a file from `start` s on, or all: int16 if it holds just that, or float32.

    With a resampler there are more in front, dropped again: what the filter of the first sample sees.
    """
    cut_off = _is_cut_off(path)
    with soundfile.SoundFile(path) as file:
        if file.frames > 2**62:  # FLAC written to a pipe
            raise ValueError("its header does not say how long it is; save it anew")
        sample_rate = sample_rate or file.samplerate
        resampler = None if sample_rate == file.samplerate else _make_resampler(file.samplerate, sample_rate)
        first, n_dropped = _find_start(start, file.samplerate, resampler)
        n_frames = file.frames - first
        n_needed = math.inf if n_samples is None else _count_needed_frames(n_dropped + n_samples, resampler)
        is_guess = n_needed > n_frames and file.format == "MP3" and _allow_missing(path) == math.inf
        if is_guess and _count_mp3_samples(path) > file.frames + 2304:
            raise ValueError("it is longer than it says, an MP3 of changing bit rate without a count; save it anew")
        if start and start * file.samplerate >= file.frames:
            raise ValueError(f"it is over before the clip begins, at {start:g} s")
        n_frames = min(n_frames, n_needed)
        if first:
            file.seek(first)
        frames = file.read(n_frames, dtype="int16" if file.subtype == "PCM_16" else "float32", always_2d=True)
    if len(frames) < n_frames:
        allowed = _allow_missing(path) if file.format == "MP3" else 0
        cut_off = cut_off or file.frames - first - len(frames) > allowed
    if cut_off:
        raise ValueError("it is cut off: it holds less than its header announces")
    if len(frames) == 0:
        raise ValueError("it holds no samples")
    waveform = frames[:, 0] if frames.shape[1] == 1 else frames.mean(axis=1, dtype=np.float32)
    if waveform.dtype == np.int16 and resampler is None:
        return waveform, sample_rate
    if frames.dtype == np.int16:
        waveform = waveform / np.float32(32768)
    if not np.isfinite(waveform).all():
        raise ValueError("it holds samples that are NaN or infinite")
    if resampler is not None:
        waveform = _resample(torch.from_numpy(waveform), resampler).numpy()[n_dropped:]
    return waveform, sample_rate


def _read_row(window: tuple[Path, float, float], sample_rate: int, n_samples: int, padding: str) -> np.ndarray | str:
    """Return a row of the array, int16 (n_samples,), or the reason why there is none."""
    path, start, volume = window
    try:
        waveform, _ = _read(path, sample_rate, n_samples, start)
    except (OSError, ValueError, soundfile.LibsndfileError) as error:
        return _reason(error)
    if waveform.dtype != np.int16 or volume != 1:
        scale = np.float32(volume if waveform.dtype == np.int16 else 32768 * volume)
        waveform = np.clip(np.rint(waveform * scale), -32768, 32767).astype(np.int16)
    return fix_length(waveform, n_samples, padding)


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    if isinstance(error, soundfile.LibsndfileError):
        return f"it cannot be read as audio ({error.error_string.strip().rstrip('.')})"
    return f"{_CLOSED} ({error.strerror or error})" if isinstance(error, OSError) else str(error)


def _is_cut_off(path: Path) -> bool:
    """Tell whether a wav, aiff or ogg ends before it should: libsndfile reads what is there without a word."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        head = file.read(12)
        if head[:4] == b"OggS":
            file.seek(max(0, size - 65307))  # the largest page there is
            tail = file.read()
            page = tail[tail.rfind(b"OggS") :]
            return len(page) < 27 or len(page) < 27 + page[26] + sum(page[27 : 27 + page[26]])
        if head[:4] == b"RIFF" and head[8:] == b"WAVE":
            samples, order = b"data", "little"
        elif head[:4] == b"FORM" and head[8:] in (b"AIFF", b"AIFC"):
            samples, order = b"SSND", "big"
        else:
            return False
        while len(head := file.read(8)) == 8:
            announced = int.from_bytes(head[4:], order)
            if head[:4] == samples:
                # A recorder that streams announces the largest number there is; a missing pad byte is nobody's loss.
                return announced < 0x7FFFF000 and announced - (size - file.tell()) > 1
            file.seek(announced + announced % 2, os.SEEK_CUR)
    return False


def _allow_missing(path: Path) -> float:
    """Return how many samples an MP3 may be short of its length: two frames, as encoders count differently.

    That is where the first frame holds a header "Xing" or "Info" with the number of frames, behind its own 4 bytes, a
    checksum and as many bytes as its version (ISO/IEC 11172-3 or 13818-3) and its channels ask for. Where it does not,
    the length is a guess from the size of the file: any number.
    """
    with open(path, "rb") as file:
        file.seek(_find_first_frame(file))
        frame = file.read(58)
    if len(frame) == 58 and frame[0] == 0xFF and frame[1] & 0xE0 == 0xE0:
        is_mpeg1, is_mono = bool(frame[1] & 0x08), frame[3] & 0xC0 == 0xC0
        start = 4 + {(True, False): 32, (False, True): 9}.get((is_mpeg1, is_mono), 17)
        for header in (frame[start:], frame[start + 2 :]):  # encoders disagree on whether a checksum moves it
            if header[:4] in (b"Xing", b"Info") and header[7] & 1 and any(header[8:12]):
                return 2304 if is_mpeg1 else 1152
    return math.inf


def _count_mp3_samples(path: Path) -> int:
    """Count the samples of an MP3 from frame to frame, as far as these follow each other; 0 for other layers than III.

    libsndfile reads no further than its guess from the bit rate of the first frame, where the file holds no count.
    """
    n_samples = 0
    with open(path, "rb") as file:
        data = file.read()
        place = _find_first_frame(file)
    while place + 4 <= len(data) and data[place] == 0xFF and data[place + 1] & 0xE6 == 0xE2:
        version, bit_rate, rate = data[place + 1] >> 3 & 3, data[place + 2] >> 4, data[place + 2] >> 2 & 3
        if not 0 < bit_rate < 15 or rate == 3:
            break
        is_mpeg1 = version == 3
        kbps = (_MPEG1_KBPS if is_mpeg1 else _MPEG2_KBPS)[bit_rate - 1]
        hz = (44100, 48000, 32000)[rate] // {3: 1, 2: 2}.get(version, 4)
        frame = 1152 if is_mpeg1 else 576
        place += 125 * frame * kbps // hz + (data[place + 2] >> 1 & 1)
        n_samples += frame
    return n_samples


def _find_first_frame(file) -> int:
    """Return where the first frame of an MP3 begins: behind its ID3 tags."""
    file.seek(0)
    while (head := file.read(10))[:3] == b"ID3":  # a size of 4 times 7 bits, without these 10 bytes
        size = sum((byte & 0x7F) << 7 * (3 - k) for k, byte in enumerate(head[6:10]))
        file.seek(size + 10 * bool(head[5] & 0x10), os.SEEK_CUR)  # the tag may end as it began
    return file.tell() - len(head)


@functools.lru_cache(maxsize=8)
def _make_resampler(file_rate: int, sample_rate: int) -> torch.nn.Module:
    import torchaudio

    # The filter bank has numerator x denominator taps: gigabytes for 44,101 Hz. 1280 keeps every usual pair exact
    # (11,025 Hz to 32 kHz needs it), and changes the pitch of the others by less than one part in a million.
    ratio = Fraction(file_rate, sample_rate).limit_denominator(1280)
    # By default the filter's phases are rounded to float32 before the sine is taken, an error of half a bit in 16.
    return torchaudio.transforms.Resample(ratio.numerator, ratio.denominator, dtype=torch.float64).float()


def _resample(waveform: torch.Tensor, resampler: torch.nn.Module) -> torch.Tensor:
    """Do what `resampler` does without most of its products with zeros: 34 of its 475 taps a phase for 44.1 kHz."""
    filters = resampler.kernel[:, 0]  # (phases, taps)
    n_phases, n_taps = filters.shape
    if n_phases < _PHASES:
        return resampler(waveform)
    step, width = resampler.orig_freq // resampler.gcd, resampler.width
    frames = torch.nn.functional.pad(waveform, (width, width + step)).unfold(0, n_taps, step)
    parts = []
    for phase in range(0, n_phases, _PHASES):
        first = phase * step // n_phases  # a phase's filter is 2 * width wide and lies as far right as the phase is
        last = (phase + _PHASES) * step // n_phases + 2 * width + 1
        parts.append(frames[:, first:last] @ filters[phase : phase + _PHASES, first:last].T)
    return torch.cat(parts, dim=1).flatten()[: -(-len(waveform) * n_phases // step)]


def _count_needed_frames(n_samples: int, resampler: torch.nn.Module | None) -> int:
    if resampler is None:
        return n_samples
    step_in = resampler.orig_freq // resampler.gcd
    step_out = resampler.new_freq // resampler.gcd
    return -(-n_samples // step_out) * step_in + resampler.width  # the width: what the last samples' filter still sees


def _find_start(start: float, file_rate: int, resampler: torch.nn.Module | None) -> tuple[int, int]:
    """Return the first frame to read for a clip that begins at `start` s, and how many samples to drop after that."""
    if resampler is None:
        return round(start * file_rate), 0
    step_in = resampler.orig_freq // resampler.gcd
    step_out = resampler.new_freq // resampler.gcd
    first_sample = round(start * file_rate * step_out / step_in)
    # A multiple of step_in, so that the samples fall where they would if the whole file was read.
    block = max(0, (first_sample * step_in // step_out - resampler.width) // step_in)
    return block * step_in, first_sample - block * step_out


def _hash_arguments(windows: list[tuple[Path, float, float]], sample_rate: int, n_samples: int, padding: str) -> str:
    stats, files = {}, []
    for path, start, volume in windows:
        if path not in stats:
            try:
                stat = path.stat()
                stats[path] = (str(path), stat.st_size, stat.st_mtime_ns)
            except OSError:
                stats[path] = (str(path), None, None)
        files.append(stats[path] if (start, volume) == (0, 1) else (*stats[path], start, volume))
    arguments = json.dumps([_VERSION, sample_rate, n_samples, padding, files])
    return hashlib.sha256(arguments.encode()).hexdigest()[:20]


def _open_cache(cache: Path, n_clips: int, n_samples: int) -> tuple[np.ndarray | None, dict[int, str]]:
    """Return (waveforms, damaged: row of the table -> reason), or (None, {}) if the file is not there or not whole."""
    try:
        waveforms = np.load(cache, mmap_mode="r")
        with open(cache, "rb") as file:
            file.seek(waveforms.offset + waveforms.nbytes)
            damaged = {int(row): reason for row, reason in json.loads(file.read()).items()}
        if waveforms.dtype == np.int16 and waveforms.shape == (n_clips - len(damaged), n_samples):
            return waveforms, damaged
    except Exception:  # whatever is wrong with it: it can be made again
        pass
    return None, {}


def _fill_cache(
    cache: Path, windows: list, n_samples: int, read_row, on_error: str, n_threads: int | None, progress: bool
) -> None:
    """Write the .npy file row by row, and behind the array, where np.load does not look, the damaged files as JSON.

    Plain writes, not a memory map: a full disk is then an error that can be reported, and not a crash.
    """
    temporary = cache.with_name(f".{cache.name}.{uuid.uuid4().hex[:8]}")
    damaged = {}
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        with (
            open(temporary, "wb") as file,
            _open_pool(n_threads) as pool,
            tqdm(total=len(windows), desc="decoding", unit="clip", leave=False, disable=not progress) as bar,
        ):
            _write_header(file, len(windows), n_samples)
            groups = [windows[start : start + _GROUP] for start in range(0, len(windows), _GROUP)]
            for start in range(0, len(groups), _BLOCK):
                block = pool.map(lambda group: list(map(read_row, group)), groups[start : start + _BLOCK])
                for row, waveform in enumerate(itertools.chain.from_iterable(block), start * _GROUP):
                    if isinstance(waveform, str):
                        damaged[row] = waveform
                    else:
                        file.write(np.ascontiguousarray(waveform, dtype="<i2"))
                    bar.update()
            if damaged and (on_error == "raise" or len(damaged) == len(windows)):
                files = "\n".join(f"  {windows[row][0]}: {reason}" for row, reason in damaged.items())
                remedy = " (on_error='skip' leaves them out)" if len(damaged) < len(windows) else ""
                raise ValueError(f"{len(damaged)} of {len(windows)} clips cannot be used{remedy}:\n{files}")
            file.write(json.dumps(damaged).encode())
            file.seek(0)
            _write_header(file, len(windows) - len(damaged), n_samples)
        os.replace(temporary, cache)
    except OSError as error:
        waveforms, left_out = _open_cache(cache, len(windows), n_samples)
        if waveforms is not None and (on_error == "skip" or not left_out):
            return  # another process was faster, and Windows replaces no file that is mapped
        size = len(windows) * n_samples * 2 / 1e6
        raise OSError(
            f"The decoded clips ({size:,.0f} MB) could not be written to {cache.parent}: {error.strerror or error}; "
            "free some space there, or name another folder with cache_dir."
        ) from error
    finally:
        with contextlib.suppress(OSError):  # renamed, or never made
            temporary.unlink()


def _write_header(file, n_rows: int, n_samples: int) -> None:
    # NumPy pads its header so that the number of rows can be written anew without moving the data.
    header = {"descr": "<i2", "fortran_order": False, "shape": (n_rows, n_samples)}
    np.lib.format.write_array_header_1_0(file, header)
