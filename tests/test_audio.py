"""Reading, fixing the length, decoding and its cache, against the numbers that were written."""

import builtins

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
import torchaudio

from shared_utils import audio
from shared_utils.audio import cut_windows, decode, fix_length, read_audio, start_at_loudest


@pytest.fixture
def noise() -> np.ndarray:
    return np.random.default_rng(0).integers(-32768, 32768, 16000).astype(np.int16)


def write(path, waveform, sample_rate=16000, **arguments) -> str:
    soundfile.write(path, waveform, sample_rate, **arguments)
    return str(path)


def table(*paths) -> pd.DataFrame:
    return pd.DataFrame({"path": [str(path) for path in paths]})


def decode_one(path, sample_rate, seconds, **arguments) -> np.ndarray:
    return decode(table(path), sample_rate, seconds, progress=False, **arguments)[0]


def test_read_audio_returns_the_written_numbers(tmp_path, noise):
    waveform, sample_rate = read_audio(write(tmp_path / "a.wav", noise))
    assert sample_rate == 16000 and waveform.dtype == np.float32
    np.testing.assert_array_equal(waveform, noise / np.float32(32768))


def test_read_audio_takes_the_mean_of_the_channels(tmp_path, noise):
    stereo = np.stack([noise, noise[::-1]], axis=1)
    waveform, _ = read_audio(write(tmp_path / "a.flac", stereo))
    np.testing.assert_array_equal(waveform, stereo.astype(np.float64).mean(axis=1) / 32768)


@pytest.mark.parametrize("file_rate", [44100, 96000, 22050, 11025, 8000])
def test_read_audio_resamples_like_torchaudio(tmp_path, noise, file_rate):
    waveform, sample_rate = read_audio(write(tmp_path / "a.wav", noise, file_rate), 16000)
    # In float64, because torchaudio computes its filter in the waveform's type, less precisely in float32.
    expected = torchaudio.functional.resample(torch.from_numpy(noise / 32768), file_rate, 16000).numpy()
    assert sample_rate == 16000 and len(waveform) == -(-16000 * 16000 // file_rate)
    np.testing.assert_allclose(waveform, expected, rtol=0, atol=1e-6)


def test_an_odd_sample_rate_needs_no_giant_filter_and_keeps_the_pitch(tmp_path):
    tone = 0.5 * np.sin(2 * np.pi * 1000 * np.arange(44101) / 44101)
    waveform, _ = read_audio(write(tmp_path / "a.wav", tone, 44101, subtype="FLOAT"), 16000)
    expected = 0.5 * np.sin(2 * np.pi * 1000 * np.arange(16000) / 16000)
    np.testing.assert_allclose(waveform[100:15900], expected[100:15900], atol=2e-3)
    assert audio._make_resampler(44101, 16000).kernel.numel() < 5e6


@pytest.mark.parametrize("n_samples", [1, 441, 5000, 44100])
@pytest.mark.parametrize(("file_rate", "sample_rate"), [(44100, 16000), (11025, 16000), (16000, 44100), (44101, 16000)])
def test_resampling_in_blocks_equals_the_resampler(file_rate, sample_rate, n_samples):
    waveform = torch.from_numpy(np.random.default_rng(0).uniform(-1, 1, n_samples).astype(np.float32))
    resampler = audio._make_resampler(file_rate, sample_rate)
    expected = resampler(waveform)
    assert len(resampler.kernel) >= audio._PHASES and len(audio._resample(waveform, resampler)) == len(expected)
    torch.testing.assert_close(audio._resample(waveform, resampler), expected, rtol=0, atol=1e-6)


def test_fix_length_trims_the_end_and_pads():
    waveform = np.array([1, 2, 3], dtype=np.int16)
    assert fix_length(waveform, 2).tolist() == [1, 2]
    assert fix_length(waveform, 3).tolist() == [1, 2, 3]
    assert fix_length(waveform, 7).tolist() == [1, 2, 3, 0, 0, 0, 0]
    assert fix_length(waveform, 7, "repeat").tolist() == [1, 2, 3, 1, 2, 3, 1]
    assert fix_length(waveform, 7, "repeat").dtype == np.int16
    with pytest.raises(ValueError, match="mirror.*'zeros' or 'repeat'"):
        fix_length(waveform, 7, "mirror")
    with pytest.raises(ValueError, match="cannot be repeated"):
        fix_length(waveform[:0], 7, "repeat")


@pytest.mark.parametrize(("length", "n_windows"), [(80000, 9), (87999, 9), (79999, 8), (24000, 2)])
def test_windows_begin_at_every_hop_and_leave_out_the_rest(length, n_windows):
    waveforms = np.random.default_rng(0).integers(-99, 99, (3, length)).astype(np.int16)
    windows = cut_windows(waveforms, 16000, 8000)
    assert windows.shape == (3, n_windows, 16000) and windows.dtype == np.int16
    for k in range(n_windows):
        np.testing.assert_array_equal(windows[:, k], waveforms[:, 8000 * k : 8000 * k + 16000])
    tensor = cut_windows(torch.from_numpy(waveforms), 16000, 8000)
    assert torch.equal(tensor, torch.from_numpy(windows.copy()))


def test_windows_are_a_view_of_arrays_of_mapped_files_and_of_tensors(tmp_path):
    waveforms = np.arange(2 * 30, dtype=np.int16).reshape(2, 30)
    assert np.shares_memory(cut_windows(waveforms, 10, 4), waveforms)
    np.save(tmp_path / "waveforms.npy", waveforms)
    mapped = np.load(tmp_path / "waveforms.npy", mmap_mode="r")
    windows = cut_windows(mapped, np.int64(10), np.int64(12))
    assert np.shares_memory(windows, mapped) and not windows.flags.writeable
    assert windows[1, 1].tolist() == list(range(42, 52))
    tensor = torch.zeros(2, 30)
    cut_windows(tensor, 10, 4)[1, 2, 3] = 7
    assert tensor.nonzero().tolist() == [[1, 11]]


def test_decode_gives_16_bit_files_back_bit_for_bit(tmp_path, noise):
    paths = [write(tmp_path / f"{k}{end}", np.roll(noise, k)) for k, end in enumerate((".wav", ".flac", ".aiff"))]
    waveforms = decode(table(*paths), 16000, 0.75, cache_dir=tmp_path / "cache", progress=False)
    assert isinstance(waveforms, np.memmap) and waveforms.dtype == np.int16 and not waveforms.flags.writeable
    np.testing.assert_array_equal(waveforms, [np.roll(noise, k)[:12000] for k in range(3)])


def test_decode_pads_a_short_clip(tmp_path, noise):
    path = write(tmp_path / "a.wav", noise[:800])
    zeros = decode_one(path, 16000, 0.2, cache_dir=tmp_path)
    np.testing.assert_array_equal(zeros, np.concatenate([noise[:800], np.zeros(2400)]))
    repeated = decode_one(path, 16000, 0.2, padding="repeat", cache_dir=tmp_path)
    np.testing.assert_array_equal(repeated, np.tile(noise[:800], 4))


def test_decode_rounds_and_clamps_float_files(tmp_path):
    values = np.array([0, 0.6, -0.6, 1.4, 40000, -40000, 32767.4], dtype=np.float32) / 32768
    row = decode_one(write(tmp_path / "a.wav", values, subtype="FLOAT"), 16000, 7 / 16000, cache_dir=tmp_path)
    assert row.tolist() == [0, 1, -1, 1, 32767, -32768, 32767]


@pytest.mark.parametrize("file_rate", [44100, 8000])
def test_decode_reads_only_what_it_needs_and_gives_the_same_numbers(tmp_path, monkeypatch, file_rate):
    long = np.random.default_rng(1).uniform(-0.5, 0.5, 20 * file_rate)
    path = write(tmp_path / "a.wav", long, file_rate)
    read = []

    class Spy(soundfile.SoundFile):
        def read(self, frames=-1, *args, **kwargs):
            read.append(frames)
            return super().read(frames, *args, **kwargs)

    whole, _ = read_audio(path, 16000)
    monkeypatch.setattr(soundfile, "SoundFile", Spy)
    row = decode_one(path, 16000, 0.99, cache_dir=tmp_path)
    assert file_rate * 0.99 <= read[0] <= file_rate * 0.99 + 600
    difference = np.abs(row - np.rint(whole[:15840] * 32768))
    assert difference.max() <= 1 and (difference > 0).mean() < 0.002  # rounding only, at the end too


@pytest.mark.parametrize("end", [".ogg", ".mp3"])
def test_decode_reads_compressed_files(tmp_path, end):
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(32000) / 16000)
    row = decode_one(write(tmp_path / f"a{end}", tone), 16000, 2, cache_dir=tmp_path)
    peak = np.abs(np.fft.rfft(row)).argmax() / 2  # Hz
    assert peak == 440 and abs(np.abs(row[4000:28000]).max() / 32768 - 0.5) < 0.03


def test_an_mp3_that_does_not_say_how_long_it_is_is_not_cut_off(tmp_path):
    noise = np.random.default_rng(0).uniform(-0.9, 0.9, 80000) * np.repeat([0, 1], 40000)  # a quiet start: few bytes
    path = write(tmp_path / "a.mp3", noise, bitrate_mode="VARIABLE", compression_level=0.3)
    content = (tmp_path / "a.mp3").read_bytes()
    second = content.index(content[:2], content.index(b"Xing"))
    (tmp_path / "a.mp3").write_bytes(content[second:])  # without the frame that gives the number of frames
    waveform, _ = read_audio(path)
    assert soundfile.info(path).frames > len(waveform) >= 80000  # what its size would make of it
    row = decode_one(path, 16000, 6, cache_dir=tmp_path)
    np.testing.assert_array_equal(row[: len(waveform)], np.clip(np.rint(waveform * 32768), -32768, 32767))
    assert not row[len(waveform) :].any()


@pytest.mark.parametrize("rate", [8000, 16000, 44100])  # frames of MPEG-2.5, MPEG-2 and MPEG-1
@pytest.mark.parametrize("channels", [1, 2])
def test_an_mp3_that_is_longer_than_it_says_is_refused(tmp_path, rate, channels):
    loud_first = np.random.default_rng(0).uniform(-0.9, 0.9, (12 * rate, channels))
    loud_first[rate:] *= 0.001  # many bytes, then few: the guess from the first is far too low
    path = write(tmp_path / "a.mp3", loud_first, rate, bitrate_mode="VARIABLE", compression_level=0.3)
    content = (tmp_path / "a.mp3").read_bytes()
    assert abs(audio._count_mp3_samples(tmp_path / "a.mp3") - 12 * rate) < 4 * 1152
    second = content.index(content[:2], content.index(b"Xing"))
    tag = b"ID3\x04\0\0" + bytes([0, 0, 7, 104]) + bytes(1000)
    (tmp_path / "a.mp3").write_bytes(tag + content[second:])  # without the frame that gives the number of frames
    assert soundfile.info(path).frames < 11.5 * rate
    with pytest.raises(ValueError, match="a.mp3 cannot be used: it is longer than it says, an MP3 of changing bit"):
        read_audio(path)
    with pytest.raises(ValueError, match="a.mp3: it is longer than it says"):
        decode_one(path, rate, 12, cache_dir=tmp_path)
    with pytest.raises(ValueError, match="a.mp3: it is longer than it says"):
        decode(table(path).assign(clip_start=11.8), rate, 0.1, cache_dir=tmp_path, progress=False)
    assert decode_one(path, rate, 0.5, cache_dir=tmp_path).any()  # what is known of it suffices


def test_a_flac_without_a_length_is_refused(tmp_path, noise):
    path = write(tmp_path / "a.flac", noise)
    content = bytearray((tmp_path / "a.flac").read_bytes())
    content[21] &= 0xF0  # 36 bits of STREAMINFO: what an encoder that writes to a pipe cannot know
    content[22:26] = bytes(4)
    (tmp_path / "a.flac").write_bytes(content)
    with pytest.raises(ValueError, match="its header does not say how long it is; save it anew"):
        read_audio(path)
    with pytest.raises(ValueError, match="a.flac: its header does not say how long it is"):
        decode_one(path, 16000, 0.1, cache_dir=tmp_path)


def test_a_file_that_could_not_be_opened_is_read_as_soon_as_it_can_be(tmp_path, noise, monkeypatch, capsys):
    clips = table(write(tmp_path / "a.wav", noise), write(tmp_path / "b.wav", noise))
    arguments = {"on_error": "skip", "cache_dir": tmp_path / "cache", "progress": False}
    plain_open, tried = builtins.open, []

    def locked(path, *more, **how):
        if str(path).endswith("b.wav"):
            tried.append(path)
            raise PermissionError(13, "Permission denied")
        return plain_open(path, *more, **how)

    monkeypatch.setattr(builtins, "open", locked)
    for n_tried in (1, 2):  # the second time it is only looked at: nothing is decoded anew
        waveforms, kept = decode(clips, 16000, 1.0, **arguments)
        assert len(waveforms) == len(kept) == 1 and len(tried) == n_tried
        assert "b.wav: it cannot be opened (Permission denied)" in capsys.readouterr().out
    monkeypatch.undo()  # neither size nor time of the file has changed
    waveforms, kept = decode(clips, 16000, 1.0, **arguments)
    assert len(waveforms) == len(kept) == 2


@pytest.mark.parametrize("rate", [8000, 16000, 44100])  # frames of MPEG-2.5, MPEG-2 and MPEG-1
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("mode", ["CONSTANT", "VARIABLE"])
def test_an_mp3_is_whole_or_cut_off_by_the_frames_that_it_counts(tmp_path, rate, channels, mode):
    seconds = np.random.default_rng(0).uniform(-0.5, 0.5, (3 * rate // 2 + 5, channels))
    tag = b"ID3\x04\0\0" + bytes([0, 0, 7, 104]) + bytes(1000)
    path = tmp_path / "a.mp3"
    for length in (1, 700, len(seconds)):
        write(path, seconds[:length], rate, bitrate_mode=mode, compression_level=0.3)
        content = path.read_bytes()
        for whole in (content, tag + content, content + b"TAG" + bytes(125)):
            path.write_bytes(whole)
            waveform, _ = read_audio(path)
            assert len(waveform) == length
            second_half = table(path).assign(clip_start=length // 2 / rate)
            (window,) = decode(second_half, rate, 2, cache_dir=tmp_path, progress=False)
            assert not window[length - length // 2 :].any()
    missing = 2 * (1152 if rate == 44100 else 576) / len(seconds)  # two frames
    for start, share in ((b"", 0.99 - missing), (tag, 0.6), (tag, 0.3)):
        path.write_bytes((start + content)[: int(len(start) + len(content) * (share - 0.05))])
        with pytest.raises(ValueError, match="it is cut off: it holds less than its header announces"):
            read_audio(path)
        with pytest.raises(ValueError, match="a.mp3: it is cut off"):
            decode_one(path, 16000, 2, cache_dir=tmp_path)
    path.write_bytes(content[: int(len(content) * 0.6)])
    row = decode_one(path, rate, 0.5, cache_dir=tmp_path)  # what is left fills the clip
    assert np.count_nonzero(row[-100:]) > 50
    with pytest.raises(ValueError, match="a.mp3: it is cut off"):
        decode(table(path).assign(clip_start=1.2), rate, 0.1, cache_dir=tmp_path, progress=False)


def test_numbers_of_other_types_decode_like_plain_ones(tmp_path, noise):
    path = write(tmp_path / "a.wav", noise)
    expected = decode_one(path, 16000, 1, cache_dir=tmp_path / "cache")
    pairs = ((np.int64(16000), 1), (16000.0, 1), (np.float32(16000), np.int64(1)), (np.int16(16000), np.int8(1)))
    for sample_rate, seconds in pairs:
        np.testing.assert_array_equal(decode_one(path, sample_rate, seconds, cache_dir=tmp_path / "cache"), expected)
    assert len(list((tmp_path / "cache").iterdir())) == 1  # they are one key
    half = decode_one(path, 8000, 1, cache_dir=tmp_path)
    for sample_rate in (8000.0, np.int64(8000), np.float64(8000)):
        np.testing.assert_array_equal(decode_one(path, sample_rate, 1.0, cache_dir=tmp_path / "other"), half)
        waveform, found = read_audio(path, sample_rate)
        assert type(found) is int and found == 8000 and len(waveform) == 8000
    # 16,000 times 5 is more than an int16 holds
    assert decode_one(path, np.int16(16000), np.int16(5), cache_dir=tmp_path).shape == (80000,)


def test_the_cache_is_used_until_a_file_or_an_argument_changes(tmp_path, noise, monkeypatch):
    path = write(tmp_path / "a.wav", noise)
    cache = tmp_path / "cache"
    first = decode_one(path, 16000, 1, cache_dir=cache)
    reads = []
    monkeypatch.setattr(audio, "_read", lambda *args, original=audio._read: reads.append(1) or original(*args))
    np.testing.assert_array_equal(decode_one(path, 16000, 1, cache_dir=cache), first)
    assert not reads and len(list(cache.iterdir())) == 1
    assert decode_one(path, 16000, 2, cache_dir=cache)[16000:].tolist() == [0] * 16000
    decode_one(path, 16000, 2, cache_dir=cache, padding="repeat")
    decode_one(path, 8000, 2, cache_dir=cache)
    assert len(reads) == 3 and len(list(cache.iterdir())) == 4
    write(path, noise[::-1][:15999])
    np.testing.assert_array_equal(decode_one(path, 16000, 1, cache_dir=cache)[:15999], noise[::-1][:15999])
    assert len(reads) == 4


def test_threads_and_blocks_do_not_change_the_order(tmp_path, noise, monkeypatch):
    monkeypatch.setattr(audio, "_GROUP", 4)  # eight groups, the last of two clips, in three blocks
    monkeypatch.setattr(audio, "_BLOCK", 3)
    paths = [write(tmp_path / f"{k}.wav", np.full(100, k, dtype=np.int16)) for k in range(30)]
    n_torch_threads = torch.get_num_threads()
    waveforms = decode(table(*paths), 16000, 0.005, cache_dir=tmp_path, n_threads=4, progress=False)
    np.testing.assert_array_equal(waveforms, np.repeat(np.arange(30)[:, None], 80, axis=1))
    assert torch.get_num_threads() == n_torch_threads


def test_the_bar_is_one_plain_line_that_goes(tmp_path, noise, capsys):
    decode(table(write(tmp_path / "a.wav", noise)), 16000, 1, cache_dir=tmp_path)
    out, err = capsys.readouterr()
    assert out == "" and "\n" not in err and err.endswith("\r")


def test_decode_of_real_clips_equals_soundfile(tmp_path, real_data):
    paths = sorted((real_data / "ESC-50-master" / "audio").iterdir())[:20]
    waveforms = decode(table(*paths), 16000, 5, cache_dir=tmp_path, n_threads=2, progress=False)
    expected = [fix_length(soundfile.read(path, dtype="int16")[0], 80000) for path in paths]
    np.testing.assert_array_equal(waveforms, expected)


def test_decode_reads_windows_at_their_volume(tmp_path, noise):
    path = write(tmp_path / "a.flac", noise)
    clips = table(path, path, path, path).assign(clip_start=[0.25, 0.75, np.nan, 0], clip_volume=[1, 0.5, np.nan, 3])
    waveforms = decode(clips, 16000, 0.5, cache_dir=tmp_path / "cache", progress=False)
    np.testing.assert_array_equal(waveforms[0], noise[4000:12000])
    np.testing.assert_array_equal(waveforms[1], np.append(np.rint(noise[12000:] / 2), np.zeros(4000)))
    np.testing.assert_array_equal(waveforms[2], noise[:8000])
    np.testing.assert_array_equal(waveforms[3], np.clip(3.0 * noise[:8000], -32768, 32767))


@pytest.mark.parametrize(("file_rate", "sample_rate"), [(44100, 16000), (8000, 16000), (22050, 16000), (16000, 8000)])
def test_a_window_resamples_like_the_whole_file(tmp_path, monkeypatch, file_rate, sample_rate):
    long = np.random.default_rng(1).uniform(-0.5, 0.5, 6 * file_rate)
    path = write(tmp_path / "a.wav", long, file_rate, subtype="FLOAT")
    whole, _ = read_audio(path, sample_rate)
    read = []

    class Spy(soundfile.SoundFile):
        def read(self, frames=-1, *args, **kwargs):
            read.append(frames)
            return super().read(frames, *args, **kwargs)

    monkeypatch.setattr(soundfile, "SoundFile", Spy)
    starts = [0.0, 0.0005, 1.2345, 3.1, 5.5]
    rows = decode(table(*[path] * 5).assign(clip_start=starts), sample_rate, 1, cache_dir=tmp_path, progress=False)
    for row, start in zip(rows, starts, strict=True):
        first = round(start * sample_rate)
        expected = fix_length(np.rint(whole[first : first + sample_rate] * 32768), sample_rate)
        assert np.abs(row - expected).max() <= 1
    assert max(read) <= file_rate * 1.1


def test_starts_and_volumes_are_part_of_the_cache_key_only_where_they_matter(tmp_path, noise):
    clips, cache = table(write(tmp_path / "a.wav", noise)), tmp_path / "cache"
    decode(clips, 16000, 0.5, cache_dir=cache, progress=False)
    decode(clips.assign(clip_start=np.nan, clip_volume=1.0), 16000, 0.5, cache_dir=cache, progress=False)
    assert len(list(cache.iterdir())) == 1
    decode(clips.assign(clip_start=0.1, start=7.0), 16000, 0.5, cache_dir=cache, progress=False)
    decode(clips.assign(clip_volume=0.5), 16000, 0.5, cache_dir=cache, progress=False)
    assert len(list(cache.iterdir())) == 3
    with pytest.raises(ValueError, match="a.wav: it is over before the clip begins, at 1 s"):
        decode(clips.assign(clip_start=1.0), 16000, 0.5, cache_dir=cache, progress=False)
    for column, value in (("clip_start", -0.5), ("clip_volume", -1), ("clip_volume", np.inf)):
        with pytest.raises(ValueError, match=f"Clip 0 of the table has {column}={value}.*from 0 up"):
            decode(clips.assign(**{column: value}), 16000, 0.5, cache_dir=cache, progress=False)


def test_long_recordings_begin_where_they_are_loudest(tmp_path, capsys):
    rng = np.random.default_rng(0)
    word = rng.normal(size=8000) * np.hanning(8000) * 0.2
    sounds = {"short": word, "long": np.concatenate([np.zeros(24000), word, np.zeros(16000)]), "just": np.zeros(16700)}
    sounds["given"] = sounds["long"]
    for name, sound in sounds.items():
        soundfile.write(tmp_path / f"{name}.wav", sound, 16000)
    (tmp_path / "broken.wav").write_text("no sound")
    paths = [str(tmp_path / f"{name}.wav") for name in [*sounds, "broken"]]
    clips = pd.DataFrame({"path": paths}, index=[3, 1, 4, 5, 9])
    clips["clip_start"] = [np.nan, np.nan, np.nan, 0.5, np.nan]
    clips.attrs = {"data_set": "words"}
    found = start_at_loudest(clips, 1.0)
    assert capsys.readouterr().out == "1 of 5 recordings are longer than 1 s: their loudest parts are heard.\n"
    assert found["clip_start"].isna().tolist() == [True, False, True, False, True] and found["clip_start"][5] == 0.5
    assert found["clip_start"][1] == pytest.approx(1.25, abs=0.02) and found.attrs == clips.attrs
    assert found.index.tolist() == [3, 1, 4, 5, 9] and clips["clip_start"].isna().sum() == 4
    waveforms = decode(found.loc[[3, 1]], 16000, 1.0, cache_dir=tmp_path, progress=False)
    heard, expected = (np.square(waveforms[row].astype(float)).sum() for row in (1, 0))
    assert heard == pytest.approx(expected, rel=0.01)
    assert start_at_loudest(clips[["path"]].iloc[:1], 1.0)["clip_start"].isna().all()
    assert start_at_loudest(clips[["path"]].iloc[1:2].assign(clip_start=1), 1.0)["clip_start"].tolist() == [1]
    assert capsys.readouterr().out == ""
    twice = start_at_loudest(pd.concat([clips.iloc[:2], clips.iloc[:2]]), 1.0)
    np.testing.assert_allclose(twice["clip_start"], [np.nan, found["clip_start"][1]] * 2)
