"""Damaged files, odd files, full disks and broken caches: each is named with a remedy, and nothing is lost."""

import errno
import multiprocessing
import os
import re

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch

from shared_utils import audio
from shared_utils.audio import cut_windows, decode, read_audio
from shared_utils.datasets import ArrayDataset, load_esc50, load_folder
from shared_utils.training import cross_validate

TONE = (8000 * np.sin(np.arange(16000) / 5)).astype(np.int16)


def table(*paths) -> pd.DataFrame:
    clips = pd.DataFrame({"path": [str(path) for path in paths], "label": range(len(paths))})
    clips.attrs = {"data_set": "mine", "demo": False}
    return clips


def write(path, waveform=TONE, sample_rate=16000, **arguments) -> str:
    soundfile.write(path, waveform, sample_rate, **arguments)
    return str(path)


def decode_quietly(clips, **arguments):
    return decode(clips, 16000, 1, progress=False, **arguments)


@pytest.fixture
def damaged(tmp_path) -> dict[str, str]:
    """Every kind of damaged file, and the reason that must be given for it."""
    folder = tmp_path / "damaged"
    folder.mkdir()
    for end in ("wav", "aiff", "flac", "ogg", "mp3"):
        whole = folder / f"cut.{end}"
        write(whole)
        whole.write_bytes(whole.read_bytes()[: whole.stat().st_size * 6 // 10])
    write(folder / "long.ogg", np.tile(TONE, 20))
    (folder / "long.ogg").write_bytes((folder / "long.ogg").read_bytes()[:-100])  # in its last page
    (folder / "text.wav").write_text("This is no recording.\n" * 50)
    (folder / "garbage.mp3").write_bytes(np.random.default_rng(0).bytes(5000))
    (folder / "nothing.wav").touch()
    (folder / "folder.wav").mkdir()
    write(folder / "no_samples.wav", TONE[:0])
    with_nan = TONE / 32768
    with_nan[1234] = np.nan
    write(folder / "nan.wav", with_nan, subtype="FLOAT")
    write(folder / "all_nan.wav", np.full(100, np.nan), subtype="DOUBLE")
    write(folder / "infinite.wav", np.full((100, 2), np.inf), 44100, subtype="FLOAT")
    return {
        "cut.wav": "cut off",
        "cut.aiff": "cut off",
        "cut.mp3": "cut off",
        "cut.flac": "cannot be read as audio",
        "garbage.mp3": "cannot be read as audio",
        "cut.ogg": "cannot be read as audio",
        "long.ogg": "cut off",
        "text.wav": "cannot be read as audio",
        "nothing.wav": "cannot be read as audio",
        "folder.wav": "Is a directory",
        "no_samples.wav": "holds no samples",
        "nan.wav": "NaN",
        "all_nan.wav": "NaN",
        "infinite.wav": "NaN or infinite",
        "missing.wav": "there is no such file",
    }


def test_decode_names_all_damaged_files_with_reasons_in_one_error(tmp_path, damaged):
    paths = [tmp_path / "damaged" / name for name in damaged]
    good = write(tmp_path / "good.wav")
    with pytest.raises(ValueError, match=f"^{len(damaged)} of {len(damaged) + 1} clips cannot be used") as caught:
        decode_quietly(table(good, *paths), cache_dir=tmp_path / "cache")
    lines = str(caught.value).split("\n")[1:]
    for line, path, reason in zip(lines, paths, damaged.values(), strict=True):
        assert line.startswith(f"  {path}: ") and reason in line
    assert list((tmp_path / "cache").iterdir()) == []


def test_decode_skips_damaged_files_says_so_and_remembers(tmp_path, damaged, capsys, monkeypatch):
    paths = [tmp_path / "damaged" / name for name in damaged]
    first, last = write(tmp_path / "first.wav"), write(tmp_path / "last.wav", TONE[::-1])
    clips = table(first, *paths, last)
    waveforms, kept = decode_quietly(clips, cache_dir=tmp_path / "cache", on_error="skip")
    np.testing.assert_array_equal(waveforms, [TONE, TONE[::-1]])
    assert kept["label"].tolist() == [0, 16] and kept.index.tolist() == [0, 1] and kept.attrs == clips.attrs
    out = capsys.readouterr().out
    assert out.startswith("Left out 15 of 17 clips") and out.count("\n") == 1 and "cut.wav: it is cut off" in out
    assert "and 12 more" in out

    monkeypatch.setattr(audio, "_read", None)  # from here on nothing is decoded
    again, kept_again = decode_quietly(clips, cache_dir=tmp_path / "cache", on_error="skip")
    np.testing.assert_array_equal(again, waveforms)
    pd.testing.assert_frame_equal(kept_again, kept)
    assert capsys.readouterr().out == out
    monkeypatch.undo()
    with pytest.raises(ValueError, match="15 of 17 clips"):  # the skipping cache does not hide them
        decode_quietly(clips, cache_dir=tmp_path / "cache")
    write(tmp_path / "damaged" / "missing.wav")
    assert len(decode_quietly(clips, cache_dir=tmp_path / "cache", on_error="skip")[1]) == 3


def test_decode_skips_nothing_when_nothing_is_damaged(tmp_path, capsys):
    clips = table(write(tmp_path / "a.wav"))
    waveforms, kept = decode_quietly(clips, cache_dir=tmp_path, on_error="skip")
    pd.testing.assert_frame_equal(kept, clips)
    assert len(waveforms) == 1 and capsys.readouterr().out == ""


def test_decode_does_not_skip_everything(tmp_path):
    with pytest.raises(ValueError, match="2 of 2 clips cannot be used:\n.*no such file"):
        decode_quietly(table(tmp_path / "a.wav", tmp_path / "b.wav"), cache_dir=tmp_path, on_error="skip")


def test_read_audio_names_the_damaged_file(tmp_path, damaged):
    for name, reason in damaged.items():
        path = tmp_path / "damaged" / name
        reason = "There is no audio file" if "no such" in reason else reason
        with pytest.raises((ValueError, FileNotFoundError), match=reason) as caught:
            read_audio(path)
        assert str(path) in str(caught.value)


def test_an_mp3_that_counts_no_frames_and_is_cut_gives_what_it_holds(tmp_path):
    path = tmp_path / "a.mp3"
    write(path, np.tile(TONE, 10), bitrate_mode="CONSTANT", compression_level=0.3)
    content = path.read_bytes()
    content = content[content.index(content[:2], content.index(b"Info")) :]  # without the frame that counts them
    path.write_bytes(content)
    whole, _ = read_audio(path)
    path.write_bytes(content[: len(content) * 6 // 10])
    cut, _ = read_audio(path)
    assert len(whole) >= 160000 and 0.55 < len(cut) / len(whole) < 0.65
    np.testing.assert_array_equal(cut, whole[: len(cut)])
    row = decode(table(path), 16000, 8, cache_dir=tmp_path, progress=False)[0]
    np.testing.assert_array_equal(row[: len(cut)], np.rint(cut * 32768))
    assert not row[len(cut) :].any()


def test_a_recorder_that_streams_writes_no_length_and_is_not_cut(tmp_path):
    path = tmp_path / "a.wav"
    write(path)
    content = bytearray(path.read_bytes())
    content[4:8] = content[40:44] = b"\xff" * 4
    path.write_bytes(content)
    np.testing.assert_array_equal(decode_quietly(table(path), cache_dir=tmp_path)[0], TONE)


def test_chunks_before_and_behind_the_samples_do_not_matter(tmp_path):
    path = tmp_path / "a.wav"
    write(path)
    content = path.read_bytes()
    odd = b"LIST" + (5).to_bytes(4, "little") + b"hello\0"
    path.write_bytes(content[:36] + odd + content[36:] + odd)
    np.testing.assert_array_equal(decode_quietly(table(path), cache_dir=tmp_path)[0], TONE)
    path.write_bytes(content[:36] + odd + content[36:-2])
    with pytest.raises(ValueError, match="cut off"):
        decode_quietly(table(path), cache_dir=tmp_path)


def test_odd_but_whole_files_are_read(tmp_path):
    files = {
        "silence.wav": (np.zeros(16000, dtype=np.int16), 16000, {}),
        "short.wav": (TONE[:800], 16000, {}),  # 0.05 s
        "eight_bit.wav": (TONE, 16000, {"subtype": "PCM_U8"}),
        "24 bit.flac": (TONE, 16000, {"subtype": "PCM_24"}),
        "stereo.wav": (np.stack([TONE, -TONE // 2], axis=1), 16000, {}),
        "very high.wav": (np.repeat(TONE, 6), 96000, {}),
        "Vögel – 鳥 🐦.wav": (TONE, 16000, {}),
    }
    paths = [write(tmp_path / name, samples, rate, **more) for name, (samples, rate, more) in files.items()]
    silence, short, eight_bit, deep, stereo, high, birds = decode_quietly(table(*paths), cache_dir=tmp_path).astype(int)
    assert not silence.any()
    np.testing.assert_array_equal(short, np.concatenate([TONE[:800], np.zeros(15200)]))
    assert 0 < np.abs(eight_bit - TONE).max() <= 256
    np.testing.assert_array_equal(deep, TONE)
    np.testing.assert_array_equal(stereo, np.rint((TONE.astype(float) + -TONE // 2) / 2))
    assert np.corrcoef(high, TONE)[0, 1] > 0.99
    np.testing.assert_array_equal(birds, TONE)


def test_a_ten_minute_file_is_read_only_as_far_as_needed(tmp_path, monkeypatch):
    path = write(tmp_path / "a.wav", np.tile(TONE, 600))
    frames = []
    read = soundfile.SoundFile.read
    monkeypatch.setattr(soundfile.SoundFile, "read", lambda self, n, **more: frames.append(n) or read(self, n, **more))
    np.testing.assert_array_equal(decode_quietly(table(path), cache_dir=tmp_path)[0], TONE)
    assert frames == [16000]


def test_a_full_disk_leaves_nothing_behind(tmp_path, monkeypatch):
    clips = table(*[write(tmp_path / f"{k}.wav") for k in range(40)])

    class FullDisk:
        def __init__(self, path, mode):
            self.file = open(path, mode)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self.file.close()

        def write(self, content):
            if self.file.tell() > 500_000:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            self.file.write(content)

    monkeypatch.setattr(audio, "open", lambda p, m: FullDisk(p, m) if "w" in m else open(p, m), raising=False)
    with pytest.raises(OSError, match=r"clips \(1 MB\) could not be written to .*cache: No space left.*cache_dir"):
        decode_quietly(clips, cache_dir=tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []
    monkeypatch.undo()
    assert len(decode_quietly(clips, cache_dir=tmp_path / "cache")) == 40


def test_a_file_that_may_not_grow_is_an_error_and_no_crash(tmp_path):
    resource = pytest.importorskip("resource")  # not on Windows
    clips = table(*[write(tmp_path / f"{k}.wav") for k in range(40)])
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, limits[1]))  # the kernel itself refuses, in mid-file
    try:
        with pytest.raises(OSError, match="could not be written .*File too large"):
            decode_quietly(clips, cache_dir=tmp_path / "cache")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_cache_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(OSError, match="could not be written to .*cache"):
        decode_quietly(table(write(tmp_path / "a.wav")), cache_dir=tmp_path / "cache")


def test_a_folder_that_cannot_be_mapped_is_named(tmp_path, monkeypatch):
    def fail(path, mmap_mode):
        raise OSError(errno.ENODEV, "No such device")

    monkeypatch.setattr(np, "load", fail)
    with pytest.raises(OSError, match="cannot be mapped into memory; name a folder on a local disk"):
        decode_quietly(table(write(tmp_path / "a.wav")), cache_dir=tmp_path / "cache")


@pytest.mark.parametrize("keep", [0, 10, 100, 128, 20_000, -1])
def test_a_truncated_cache_is_made_again(tmp_path, keep):
    clips = table(write(tmp_path / "a.wav"), write(tmp_path / "b.wav", TONE[::-1]))
    decode_quietly(clips, cache_dir=tmp_path / "cache")
    (cache,) = (tmp_path / "cache").iterdir()
    whole = cache.read_bytes()
    cache.write_bytes(whole[:keep])
    np.testing.assert_array_equal(decode_quietly(clips, cache_dir=tmp_path / "cache"), [TONE, TONE[::-1]])
    assert cache.read_bytes() == whole


def test_a_corrupt_cache_is_made_again(tmp_path):
    clips = table(write(tmp_path / "a.wav"))
    decode_quietly(clips, cache_dir=tmp_path / "cache")
    (cache,) = (tmp_path / "cache").iterdir()
    whole = cache.read_bytes()
    for wrong in (np.zeros((1, 16000), dtype=np.float32), np.zeros((2, 16000), dtype=np.int16), np.array([None])):
        np.save(cache, wrong, allow_pickle=True)
        np.testing.assert_array_equal(decode_quietly(clips, cache_dir=tmp_path / "cache"), [TONE])
    for wrong in (b"PK\x03\x04 no zip", b"\x80\x04no pickle", b"\0" * len(whole), whole + b"more"):
        cache.write_bytes(wrong)
        np.testing.assert_array_equal(decode_quietly(clips, cache_dir=tmp_path / "cache"), [TONE])
        assert cache.read_bytes() == whole


def fill(clips, cache_dir, start, results):
    start.wait()
    results.put(int(decode_quietly(clips, cache_dir=cache_dir).astype(int).sum()))


def test_two_processes_fill_one_cache_at_once(tmp_path):
    paths = [write(tmp_path / f"{k}.wav", np.full(16000, k, dtype=np.int16)) for k in range(60)]
    clips = table(*paths)
    context = multiprocessing.get_context("spawn")
    start, results = context.Barrier(2), context.Queue()
    other = context.Process(target=fill, args=(clips, tmp_path / "cache", start, results))
    other.start()
    fill(clips, tmp_path / "cache", start, results)
    sums = [results.get(timeout=60) for _ in range(2)]
    other.join()
    assert sums == [16000 * sum(range(60))] * 2
    (cache,) = (tmp_path / "cache").iterdir()
    np.testing.assert_array_equal(np.load(cache)[:, 0], range(60))


def test_a_cache_that_cannot_be_replaced_is_used_if_it_is_whole(tmp_path, monkeypatch):
    clips = table(write(tmp_path / "a.wav"), write(tmp_path / "b.wav", TONE[::-1]))
    (tmp_path / "other").mkdir()

    def replace_slowly(temporary, cache, whole=True):  # Windows: another process has made it, and has it open
        content = temporary.read_bytes()
        cache.write_bytes(content if whole else content[:-1])
        raise PermissionError(errno.EACCES, "Access is denied")

    monkeypatch.setattr(os, "replace", replace_slowly)
    np.testing.assert_array_equal(decode_quietly(clips, cache_dir=tmp_path / "cache"), [TONE, TONE[::-1]])
    assert len(list((tmp_path / "cache").iterdir())) == 1
    monkeypatch.setattr(os, "replace", lambda *names: replace_slowly(*names, whole=False))
    with pytest.raises(OSError, match="could not be written to .*other: Access is denied"):
        decode_quietly(clips, cache_dir=tmp_path / "other")
    assert [path.name[0] for path in (tmp_path / "other").iterdir()] == ["2"]  # nothing of ours


def test_a_full_disk_never_turns_a_skipping_cache_into_a_whole_one(tmp_path, monkeypatch):
    clips = table(write(tmp_path / "a.wav"), tmp_path / "missing.wav")
    decode_quietly(clips, cache_dir=tmp_path / "cache", on_error="skip")

    def fail(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(audio, "_write_header", fail)
    with pytest.raises(OSError, match="could not be written"):
        decode_quietly(clips, cache_dir=tmp_path / "cache")


def test_decode_refuses_arguments_that_make_no_sense(tmp_path):
    clips = table(write(tmp_path / "a.wav"))
    with pytest.raises(ValueError, match="no column 'path'"):
        decode_quietly(clips.drop(columns="path"))
    with pytest.raises(ValueError, match="table of clips is empty"):
        decode_quietly(clips[:0])
    with pytest.raises(ValueError, match="on_error='ignore'.*'raise' or 'skip'"):
        decode_quietly(clips, on_error="ignore")
    with pytest.raises(ValueError, match="padding='mirror'"):
        decode_quietly(clips, padding="mirror")
    with pytest.raises(ValueError, match="less than one sample"):
        decode(clips, 16000, 0)
    for rate in (0, -16000, 22050.5, np.float32(0.5), np.nan, np.inf, True, "16000"):
        with pytest.raises(ValueError, match=rf"^sample_rate={re.escape(repr(rate))} must be a whole number of Hz"):
            decode(clips, rate, 1)
        with pytest.raises(ValueError, match="^sample_rate=.* such as 16000"):
            read_audio(clips["path"][0], rate)


# tables and folders


@pytest.mark.parametrize("make", [np.zeros, torch.zeros], ids=["array", "tensor"])
def test_windows_that_cannot_be_cut_are_one_clear_sentence(make):
    clips = make((2, 80000))
    for arguments, message in (
        ((make((2, 15999)), 16000, 8000), "15999 samples are shorter than a window of 16000; take a shorter window"),
        (
            (make((2, 23999)), 16000, 8000),
            "Only one window of 16000 samples fits into clips of 23999 with a hop of 8000",
        ),
        ((make((2, 16000)), 16000, 1), "nothing to average; take a shorter window or longer clips"),
        ((make(80000), 16000, 8000), r"not from shape \(80000,\); for a single clip give waveform\[None\]"),
        ((make((2, 1, 80000)), 16000, 8000), r"waveforms \(clips, samples\), not from shape \(2, 1, 80000\)"),
        ((clips, 16000, 0), "hop=0 is no whole number of samples from 1 up"),
        ((clips, 16000, -1), "hop=-1 is no whole number"),
        ((clips, 16000, 8000.0), r"hop=8000.0 is no whole number .* give round\(seconds \* sample_rate\)"),
        ((clips, 0, 8000), "n_samples=0 is no whole number"),
        ((clips, 0.5, 8000), "n_samples=0.5 is no whole number"),
    ):
        with pytest.raises(ValueError, match=message):
            cut_windows(*arguments)


def test_a_fold_without_a_class_stops_a_cross_validation_before_it_trains():
    clips = pd.DataFrame({"fold": np.arange(20) % 5 + 1, "label": np.arange(20) // 10})
    clips["class_name"] = np.where(clips["label"] == 0, "cow", "dog")
    dataset = ArrayDataset(np.zeros((20, 4), np.float32), clips["label"])
    clips.loc[(clips["fold"] == 3) & (clips["label"] == 1), "fold"] = 4

    def make_model():
        raise AssertionError("it began to train")

    arguments = {"epochs": 1, "device": "cpu", "progress": False}
    with pytest.raises(ValueError, match=r"^Fold 3 has no clip of class 'dog'\. .* deal the clips"):
        cross_validate(make_model, dataset, clips, **arguments)
    with pytest.raises(ValueError, match="^Fold 3 has no clip of class 'dog'"):  # fold 3 is for validation
        cross_validate(make_model, dataset, clips, folds=[5, 2], **arguments)
    with pytest.raises(AssertionError):  # where it trains together with others it does no harm
        cross_validate(make_model, dataset, clips, folds=[1], **arguments)
    clips.loc[clips["label"] == 1, "fold"] = 3
    with pytest.raises(
        ValueError, match=r"Training for test fold 3 \(folds 1, 2, 5\) has .* 'dog'; fold 4 has no clip"
    ):
        cross_validate(make_model, dataset, clips, folds=[3], **arguments)


def test_load_esc50_names_what_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere does not exist: correct it"):
        load_esc50(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="no ESC-50 in .*put the publisher's folder.*download esc50"):
        load_esc50(tmp_path, source="real")
    with pytest.raises(ValueError, match="subset='esc20'"):
        load_esc50(tmp_path, subset="esc20")
    with pytest.raises(ValueError, match="source='fake'"):
        load_esc50(tmp_path, source="fake")
    folder = tmp_path / "ESC-50-master"
    (folder / "meta").mkdir(parents=True)
    csv = folder / "meta" / "esc50.csv"
    for source in ("auto", "real", "download"):  # half a data set is never replaced by the demo in silence
        with pytest.raises(FileNotFoundError, match="esc50.csv is missing"):
            load_esc50(tmp_path, source=source)

    header, row = "filename,fold,target,category,esc10,src_file,take\n", "1-1-A-0.wav,1,0,dog,True,1,A\n"
    for content, message in (
        ("", "not a table"),
        (b"\xff\xfe\x00\x81", "not a table"),
        (header, "lists no clips"),
        ("filename,target,category,esc10,take\n1-1-A-0.wav,0,dog,True,A\n", "has no column fold, src_file; it needs"),
        (header + row + row.replace(",1,0", ",one,0"), "line 3: fold must be a whole number, not 'one'"),
        (header + row, "The folder .*audio is missing"),
    ):
        csv.write_bytes(content if isinstance(content, bytes) else content.encode())
        with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
            load_esc50(tmp_path)
        assert str(folder) in str(caught.value)

    (folder / "audio").mkdir()
    csv.write_text(header + "".join(f"1-{k}-A-0.wav,1,0,dog,False,{k},A\n" for k in range(6)))
    write(folder / "audio" / "1-0-A-0.flac")
    with pytest.raises(FileNotFoundError, match=r"5 of the 6 recordings .*\(1-1-A-0.wav, 1-2-.*, 1-3-.*, ...\)"):
        load_esc50(tmp_path)
    csv.write_text(header + "1-0-A-0.wav,1,0,dog,False,0,A\n")
    with pytest.raises(ValueError, match="marks no clip as part of ESC-10"):
        load_esc50(tmp_path, subset="esc10")
    with pytest.raises(ValueError, match=r"esc50.csv holds one class only \(dog\)"):
        load_esc50(tmp_path)


def test_load_folder_names_what_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere does not exist; give a folder"):
        load_folder(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="table.csv does not exist"):
        load_folder(tmp_path / "table.csv")
    with pytest.raises(ValueError, match="holds no recordings .* make one sub-folder a class"):
        load_folder(tmp_path)
    (tmp_path / "dog").mkdir()
    for k in range(4):
        write(tmp_path / "dog" / f"{k}.wav")
    with pytest.raises(ValueError, match=r"holds one class only \(dog\)"):
        load_folder(tmp_path)
    (tmp_path / "cat").mkdir()
    for k in range(2):
        write(tmp_path / "cat" / f"{k}.wav")
    with pytest.raises(ValueError, match=r"too few in: cat \(2\)"):
        load_folder(tmp_path)
    with pytest.raises(ValueError, match="does not match the file name '0.wav'"):
        load_folder(tmp_path, source_pattern="(cat)")
    with pytest.raises(ValueError, match="one group in brackets; it has 0"):
        load_folder(tmp_path, source_pattern="cat")
    with pytest.raises(ValueError, match="is no regular expression"):
        load_folder(tmp_path, source_pattern="(cat")
    write(tmp_path / "cat" / "2.wav")
    with pytest.raises(ValueError, match="add up to 1"):
        load_folder(tmp_path, split=(0.7, 0.2, 0.2))
    with pytest.raises(ValueError, match="n_folds=2 is too few"):
        load_folder(tmp_path, n_folds=2)
    (tmp_path / "cat" / "2.wav").unlink()
    with pytest.raises(ValueError, match=r"3 sources .* fold of a cross-validation; too few in: cat \(2\)"):
        load_folder(tmp_path, split=(0.8, 0, 0.2))


def test_load_folder_names_what_is_wrong_in_a_csv(tmp_path):
    for k in range(8):
        write(tmp_path / f"{k}.wav")
    csv = tmp_path / "table.csv"
    rows = [f"{k}.wav,{'ab'[k % 2]}" for k in range(8)]
    for header, lines, message in (
        ("file,label", rows, "has no column path; it needs path, label"),
        ("path,label", [], "lists no clips"),
        ("path,label", [*rows, "x.wav,a", "y.wav,b"], r"2 of the 10 files .* do not exist \(.*x.wav, .*y.wav\)"),
        ("path,label", [*rows, "1.wav,"], "line 10: label is empty"),
        ("path,label", rows[::2], r"one class only \(a\)"),
        ("path,label,split", [f"{row},training" for row in rows], "train, val or test, not 'training'"),
        ("path,label,split", [f"{row},train" for row in rows], "no clip to val and test"),
        ("path,label,fold", [f"{row},one" for row in rows], "line 2: fold must be a whole number, not 'one'"),
        ("path,label,source", [f"{row},s" for row in rows], r"too few in: a \(1\), b \(1\)"),
        ("path,label,source", [f"{row}," for row in rows], "line 2: source is empty"),
        ("path,label", ["", *rows[:3], ",", "4.wav, "], "line 7: label is empty"),
        ("path,label,fold", [f"{row},1" for row in rows[:2]] + ["", "2.wav,a"], "line 5: fold is empty"),
        ("file,path,label", [f"{k},x/{k}.wav,{k}.wav,dog{k % 2}" for k in range(8)], "row 2: 4 values for 3 columns"),
        ("path,label", [*rows, "1.wav,a,b"], "row 10: 3 values for 2 columns; .* or name all columns in the first row"),
        ("path;label", ["0.wav;a;b"], "row 2: 3 values for 2 columns; put texts that contain ';' into quotation marks"),
        ("path,label,Label,label", rows, "two columns called label; rename one"),
        ("path,label", [*rows, '"1.wav"x,a'], "row 10: this is no table of comma-separated values"),
    ):
        csv.write_text("\n".join([header, *lines]) + "\n")
        with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
            load_folder(csv)
        assert str(csv) in str(caught.value) or "too few" in message
    for content, message in (
        ("path,label\nkühl.wav,a\n".encode("cp1252"), "is no text in UTF-8"),
        (b"\n,,\n", "is empty"),
    ):
        csv.write_bytes(content)
        with pytest.raises(ValueError, match=rf"{csv} is not a table of comma-separated values: it {message}"):
            load_folder(csv)
