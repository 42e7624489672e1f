"""One loader a data set, each giving a table; download and verify; recordings and sentences of one's own.

From the command line: python -m shared_utils.datasets download esc50 (or speech_commands_v0.02, sst2)
"""

import argparse
import contextlib
import csv
import functools
import gzip
import hashlib
import http.client
import io
import json
import os
import re
import stat
import tarfile
import tempfile
import unicodedata
import urllib.error
import urllib.request
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable
from pathlib import Path, PureWindowsPath

import numpy as np
import pandas as pd
import soundfile
import torch
from tqdm.std import tqdm

from shared_utils.audio import read_audio
from shared_utils.device import ROOT, resolve_path, write_whole
from shared_utils.splits import (
    COMMANDS,
    SIDES,
    LeakError,
    cut_in_time,
    describe_missing_classes,
    find_text_overlap,
    normalise_text,
    speaker_hash_side,
    stratified_group_folds,
    stratified_group_split,
)

AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".mp3")
_SIDE_FOLDERS = {"train", "training", "val", "valid", "validation", "dev", "eval", "test", "testing"}
_ESC50_URL = "https://github.com/karolpiczak/ESC-50/archive/refs/heads/master.zip"
_ESC50_COLUMNS = ("filename", "fold", "target", "category", "esc10", "src_file")
_URBAN_COLUMNS = ("slice_file_name", "fsID", "start", "end", "salience", "fold", "classID", "class")
_URBAN_CLASSES = tuple(  # in the order of classID
    "air_conditioner car_horn children_playing dog_bark drilling engine_idling gun_shot jackhammer siren "
    "street_music".split()
)
_DOWNLOAD_COMMAND = "python -m shared_utils.datasets download"
_SPEECH_COMMANDS_URL = "https://download.tensorflow.org/data/{}.tar.gz"
# The number of recordings, and the SHA-256 that torchaudio's loader carries; none is published for the test archives.
_SPEECH_COMMANDS = {
    "speech_commands_v0.01": (64721, "743935421bb51cccdb6bdd152e04c5c70274e935c82119ad7faeec31780d811d"),
    "speech_commands_v0.02": (105829, "af14739ee7dc311471de98f5f9d2c9191b18aedfe957f4a6ff791c709868ff58"),
    "speech_commands_test_set_v0.01": (3081, None),
    "speech_commands_test_set_v0.02": (4890, None),
}
# Recordings of Freesound that stand in ESC-10 (`src_file`) and in UrbanSound8K (`fsID`): 36 clips there, 110 here.
ESC10_IN_URBANSOUND8K = (
    "100032", "110389", "114280", "114587", "116400", "117271", "118072", "118964", "144028", "155312", "157695",
    "163459", "170015", "180256", "180977", "183992", "184575", "191687", "192236", "194754", "199261", "203128",
    "207124", "208030", "30226", "30344", "32318", "44831", "50668", "59513", "65750", "85362", "9032", "97392",
)  # fmt: skip
_DOWNLOADS = ("esc50", *_SPEECH_COMMANDS, "sst2")
_RELEASES = ("v0.02", "v0.01", "test_set_v0.02", "test_set_v0.01")  # of Speech Commands, the preferred one first
_NOISE, _UNKNOWN, _SILENCE = "_background_noise_", "_unknown_", "_silence_"  # folders of Speech Commands
_POSITIONS = "speech_commands_transformer/silence_positions_v0.02.csv"
# SHA-256 of the names of the 408 clips of silence in the test archive v0.02, by which it is known whatever its folder
# is called.
_SILENCE_NAMES = "5bce5afdffbfec869e6aeaaa96eacbea6e7aade2c0be51bd4a374f0fcb57c7ea"
_GUARD = 0.1  # s between the archive's crops and other silence: a whole second would leave 22 s of all noise files
_SST2_ROWS = {"train": 67349, "dev": 872}  # as GLUE publishes them
_SENTIMENTS = ("negative", "positive")  # the labels 0 and 1 of SST-2
_WORKBOOKS = ("training.xlsx", "test.xlsx")
_TEXT_COLUMNS = ("text", "sentence", "review", "comment", "content", "message", "document", "phrase", "tweet")
_LABEL_COLUMNS = ("label", "sentiment", "class", "category", "polarity", "target")
_NAME_COLUMNS = ("labelname", "classname", "labeltext")
_CELL_CHARACTERS = 32767  # Excel's limit
_DRAWS = 20180409  # seeds which clips are unknown words, the windows and the folds of silence, and test sentences


def load_esc50(data_dir: str | os.PathLike = "data", subset: str | None = None, source: str = "auto") -> pd.DataFrame:
    """Return ESC-50 (Piczak 2015), or its ten-class part for subset="esc10", as a table of clips with official folds.

    Columns: path, label (alphabetical), class_name, fold, source (the Freesound recording), target (the official
    number). `data_dir` holds ESC-50-master, or is it. source="auto" takes the real recordings, and where there are
    none the built-in demo data (and says so); "real" and "demo" insist; "download" fetches the real ones if missing.
    `.attrs` says which: data_set, demo. Raises FileNotFoundError or ValueError that names what is missing.
    """
    if subset not in (None, "esc10"):
        raise ValueError(f"subset={subset!r} is unknown; choose None (everything) or 'esc10'.")
    folder = _choose_folder(_find_esc50, data_dir, source, "ESC-50", "esc50", "ESC-50-master")
    if folder is None:
        return _load_everyday_sounds(data_dir, source)
    clips, is_esc10 = _read_esc50(folder)
    if subset == "esc10":
        clips = clips[is_esc10].reset_index(drop=True)
        if len(clips) == 0:
            raise ValueError(f"{folder / 'meta' / 'esc50.csv'} marks no clip as part of ESC-10 (column esc10).")
    _check_classes(clips, folder / "meta" / "esc50.csv")
    clips = _add_labels(clips)
    clips.attrs = {"data_set": "ESC-10" if subset == "esc10" or is_esc10.all() else "ESC-50", "demo": False}
    return clips


def load_urbansound8k(data_dir: str | os.PathLike = "data", *, source: str = "auto") -> pd.DataFrame:
    """Return UrbanSound8K (Salamon et al. 2014), or a part of it, as a table of clips with the ten official folds.

    Columns: path, label (alphabetical), class_name, fold, source (the Freesound recording, `fsID`), start and end (s:
    the piece of the recording that the clip is), salience (1: foreground, 2: background). `data_dir` holds
    UrbanSound8K, or is it: metadata/UrbanSound8K.csv lists the clips of audio/fold1 to fold10, whose files may be wav,
    flac, ogg or mp3 whatever the table says. `source` as in `load_esc50`, but the publisher asks for a form, so there
    is no "download". In the complete set five recordings stand in two official folds: `audit(clips, official="fold")`.

    `.attrs` says which: data_set, demo. Raises FileNotFoundError or ValueError that names what is missing or wrong.
    """
    folder = _choose_folder(_find_urbansound8k, data_dir, source, "UrbanSound8K", None, "UrbanSound8K")
    demo = folder is None
    if demo:
        from shared_utils.demo_data import make_urban_sounds

        real = "recordings: data/README.md says where they are; unpack them there"
        _announce_demo("UrbanSound8K", data_dir, source, "urban sounds", real, "UrbanSound8K")
        folder = make_urban_sounds(resolve_path("data/demo/urban_sounds"))
    clips = _read_urbansound8k(folder)
    _check_classes(clips, folder / "metadata" / "UrbanSound8K.csv")
    clips = _add_labels(clips)
    clips.attrs = {"data_set": "urban sounds" if demo else "UrbanSound8K", "demo": demo}
    return clips


def load_speech_commands(
    data_dir: str | os.PathLike = "data",
    classes: str = "modified",
    *,
    words: tuple[str, ...] = COMMANDS,
    unknown: str = "standard",
    silence: bool = True,
    release: str | None = None,
    test: str = "lists",
    source: str = "auto",
) -> pd.DataFrame:
    """Return Speech Commands (Warden 2018) as a table of clips, with the sides of the publisher's lists.

    classes="original": each word is a class. "modified": `words` are classes, the other words "unknown"; of these
    unknown="standard" draws a tenth of the number of known clips a side, always the same, and "all" takes every one.
    With `silence` there is a class "silence" as well: windows of a second of the noise files, in modified classes a
    tenth of the known clips of the side, in original ones as many as a word has on average. Each side draws from a
    stretch of time of its own (`cut_in_time`), at a volume between 0 and 1, a tenth of the windows near zero.

    Columns: path, label (alphabetical), class_name, word, split, source (the speaker; noise file and side), clip_start
    (s into the file; NaN: the whole clip) and clip_volume, both read by `decode`. `release` is v0.02, v0.01,
    test_set_v0.02 or test_set_v0.01, and None the first of them that is there as `data_dir`/speech_commands_<release>;
    `data_dir` may be that folder. `source` as in `load_esc50`.

    The test archives have no training part: all is "test" or, with a meta/speaker_folds.csv (file, fold, duplicate_of_
    earlier), there is `fold` instead of `split`, and duplicates are left out. Their silence consists of crops of the
    noise files; where their positions are known (v0.02: columns noise, noise_start in s), crops that overlap are one
    source and get a common fold, and `listed_fold` is what the table says.

    test="archive" takes the test side from the archive that lies beside a full release. Training and validation
    silence then comes from what its crops leave of the noise files: pieces of a second or more that lie 0.1 s away
    from every crop, dealt whole, in each file about 5 to 2 (v0.02: 77 s and 33 s). Where the positions of the crops
    are not known, it says so, and the noise files are cut in time as for the lists.

    Raises FileNotFoundError or ValueError for missing lists, listed files, noise or positions, an empty word folder, a
    name without `_nohash_`, an unknown word asked for, words of one's own where all or only the ten commands are
    classes, lists that disagree with the speaker-hash rule; LeakError for a speaker on two sides or in two folds.
    """
    for name, value, choices in (
        ("classes", classes, ("original", "modified")),
        ("unknown", unknown, ("standard", "all")),
        ("test", test, ("lists", "archive")),
    ):
        if value not in choices:
            raise ValueError(f"{name}={value!r} is unknown; choose {' or '.join(choices)}.")
    if isinstance(words, str) or not words:
        raise ValueError(f"words={words!r} must be a tuple of one word or more, like ('yes', 'no').")
    if classes == "original" and set(words) != set(COMMANDS):
        raise ValueError("classes='original' makes every word a class; take classes='modified' to choose `words`.")
    folder, folder_name = _choose_speech_commands(data_dir, release, source, test)
    demo = folder is None
    if demo:
        real = f"recordings: `{_DOWNLOAD_COMMAND} {folder_name}`"
        _announce_demo("Speech Commands", data_dir, source, "spoken words", real, folder_name)
        folder = _make_spoken_words()
    name = "spoken words" if demo else _name_speech_commands(folder)
    if (test == "archive" or _is_test_archive(folder)) and set(words) != set(COMMANDS):
        raise ValueError("A test archive has the ten commands only as known words; leave `words` as they are.")
    if _is_test_archive(folder):
        if classes == "original" or test == "archive":
            raise ValueError(
                f"{folder} is a test archive: it has no training part and knows modified classes only; "
                "take classes='modified' and test='lists', or a full release."
            )
        clips = _set_folds(_read_test_archive(folder), folder)
    else:
        clips = _read_lists(folder)
        clips["class_name"] = clips["word"]
        archive = None
        if test == "archive" and classes == "original":
            raise ValueError("test='archive' needs classes='modified': the archive knows no original classes.")
        if test == "archive":
            archive = _read_test_archive(_find_archive_beside(folder))
            clips = clips[clips["split"] != "test"]
        if classes == "modified":
            clips = _choose_words(clips, words, unknown, folder)
        if silence:
            clips = pd.concat([clips, _draw_silence(clips, folder, classes, archive)])
        if archive is not None:
            clips = _join_archive(clips, archive)
    if not silence:
        clips = clips[clips["class_name"] != "silence"]
    clips = clips.reset_index(drop=True)
    _check_classes(clips, folder)
    side = "fold" if "fold" in clips else "split"
    columns = ["path", "class_name", "word", side, "source", "clip_start", "clip_volume"]
    more = ["noise", "noise_start", "listed_fold"]
    clips = _add_labels(clips[columns + [column for column in more if column in clips]].copy())
    clips.attrs = {"data_set": name, "demo": demo}
    return clips


def load_noise(
    data_dir: str | os.PathLike = "data",
    side: str | None = None,
    *,
    release: str | None = None,
    test: str = "lists",
    source: str = "auto",
    sample_rate: int = 16000,
) -> np.ndarray:
    """Return the noise files of Speech Commands one behind the other: int16 (samples,).

    With `side`, "train", "val" or "test", only the stretches of time that `load_speech_commands` with the same `test`
    draws this side's silence from; with test="archive", whose silence is not drawn, the test side is what the crops
    of the archive cover. In a test archive's own noise files no stretch is apart from its silence. Arguments as there,
    `sample_rate` in Hz. Raises FileNotFoundError or ValueError.
    """
    if side is not None and side not in SIDES:
        raise ValueError(f"side={side!r} is unknown; choose train, val, test or None (everything).")
    if test not in ("lists", "archive"):
        raise ValueError(f"test={test!r} is unknown; choose lists or archive.")
    folder, _ = _choose_speech_commands(data_dir, release, source, test)
    if folder is None:
        folder = _make_spoken_words()
    crops = None
    if test == "archive":
        if _is_test_archive(folder):
            raise ValueError(f"{folder} is a test archive itself; name a full release, or take test='lists'.")
        crops = _find_crops(_find_archive_beside(folder))
    files = _list_noise(folder)
    if side is None:
        parts = [read_audio(file, sample_rate)[0] for file in files]
    else:
        parts = []
        stretches = _share_noise(files, crops)
        for file, rows in stretches[stretches["side"] == side].groupby("file", sort=False):
            waveform, _ = read_audio(file, sample_rate)
            for row in rows.itertuples():  # at another sample rate rounded inwards
                first, last = -(-row.first * sample_rate // row.rate), row.last * sample_rate // row.rate
                parts.append(waveform[first:last])
    if not parts:
        raise ValueError(f"The noise files of {folder} leave no second for {side}; take test='lists'.")
    return np.clip(np.rint(np.concatenate(parts) * 32768), -32768, 32767).astype(np.int16)


def load_folder(
    path: str | os.PathLike,
    split: tuple[float, float, float] = (0.7, 0.15, 0.15),
    seed: int = 0,
    source_pattern: str | None = None,
    n_folds: int = 5,
) -> pd.DataFrame:
    """Return your own recordings as a table of clips: path, label, class_name, fold, split, source.

    `path` is a folder with one sub-folder a class, or a CSV with the columns path (relative to the CSV), label and, if
    known, source, split and fold; commas, semicolons or tabs part its cells, and spaces around one do not count. Clips
    of one source (recording, speaker) stay on one side: it is the column `source`, or what the one group of the regular
    expression `source_pattern` finds in the file's name, or else each file is its own. Without a column
    `split` the shares `split` (train, val, test) are drawn with `seed`, class by class, and without a column `fold` the
    `n_folds` folds of a cross-validation: fewer, and it says so, where a class has fewer sources or one source would
    make up a fold, but at least three. A given `split` without `fold` is the folds too: 1 is test, 2 val, 3 train.
    Words of one's own, recorded as `<word>/<speaker>_nohash_<n>.wav`, take source_pattern=r"^(.*)_nohash_": the speaker
    is the source.

    Raises FileNotFoundError or ValueError for nothing to read, one class only, a class with too few sources.
    """
    path = resolve_path(path)
    if path.is_file():
        folder, clips = path.parent, _read_clips_csv(path)
    elif path.is_dir():
        folder, clips = path, _list_class_folders(path)
    else:
        raise FileNotFoundError(
            f"{path} does not exist; give a folder with one sub-folder a class, or a CSV with the columns path,label."
        )
    clips["class_name"] = clips["class_name"].map(_spell)
    _check_classes(clips, path)
    if "source" in clips:
        clips["source"] = clips["source"].map(_spell)
    elif source_pattern is not None:
        clips["source"] = [_spell(source) for source in _match_sources(clips["path"], source_pattern)]
    else:
        clips["source"] = [_path_from(folder, file) for file in clips["path"]]
    twins = _find_twins(clips["source"])
    if twins:
        alike = f"Sources that differ in capitals or spaces only count as different: {_first(twins)}"
        print(f"{alike}; rename them if they are one.")
    if "split" in clips and "fold" not in clips:
        clips["fold"] = clips["split"].map({"test": 1, "val": 2, "train": 3})
        print("The column split makes three folds: 1 is test, 2 is val, 3 is train. Visit fold 1 only.")
    drawn = [column for column in ("split", "fold") if column not in clips]
    if "split" not in clips:
        clips["split"] = stratified_group_split(clips["class_name"], clips["source"], split, seed)
    if "fold" not in clips:
        n_sources, n_made = clips.groupby("class_name")["source"].nunique(), n_folds
        while True:
            clips["fold"] = stratified_group_folds(clips["class_name"], clips["source"], n_made, seed)
            n_made = clips["fold"].nunique()
            if n_made == 3 or clips.groupby("fold")["source"].nunique().min() > 1:  # one source alone has no interval
                break
            n_made -= 1
        if n_sources.min() < n_folds:
            poorest, n = n_sources.idxmin(), n_sources.min()
            print(f"Made {n} folds instead of {n_folds}: the class {poorest} has only {n} sources.")
        if n_made < min(n_folds, n_sources.min()):
            print(f"Made {n_made} folds instead of {n_folds}: with more, one source would test alone.")
    clips = _add_labels(clips)[["path", "label", "class_name", "fold", "split", "source"]]
    for column in drawn:
        sides = {f"{column} {side}": np.flatnonzero(clips[column] == side) for side in sorted(set(clips[column]))}
        missing = describe_missing_classes(clips, sides)
        if missing:
            fewer = ", take fewer folds (n_folds)" if column == "fold" and len(sides) > 3 else ""
            print(
                f"{missing}: no division of these sources with every class everywhere was found. Record these classes "
                f"from more sources{fewer}, or leave them out."
            )
    clips.attrs = {"data_set": path.stem if path.is_file() else path.name, "demo": False}
    return clips


def name_clips(clips: pd.DataFrame) -> np.ndarray:
    """Return a name for each clip, (n_clips,) of str: its file with the folder around it, `yes/anna_1.wav`.

    Where two files would have one name then, more of the folders around them stand before it. Where the table has
    `clip_start`, windows of longer files have it behind the name, in seconds. Row numbers move when a recording is
    added or removed, and names do not: predictions saved with them can be compared in a later run.
    """
    paths = {path: Path(path).parts for path in clips["path"]}
    n_parts, deepest = 2, max(map(len, paths.values()), default=0)
    while n_parts < deepest and len({parts[-n_parts:] for parts in paths.values()}) < len(set(paths.values())):
        n_parts += 1
    names = clips["path"].map(lambda path: "/".join(paths[path][-n_parts:]))
    if "clip_start" in clips:
        names += clips["clip_start"].map(" {:g}".format).where(clips["clip_start"].notna(), "")
    return names.to_numpy()


def write_split(clips: pd.DataFrame, path: str | os.PathLike, sides: tuple | None = None) -> Path:
    """Write a table of clips as a CSV that says what trains, validates and tests; `load_folder(path)` reads it again.

    `sides` are the three arrays of row numbers (train, val, test) of `split_by_fold` or `cut_validation`; without them
    the clips have the column split. Clips on no side are left out. The CSV has the columns path (relative to it),
    label (the class name), fold, split, source, where `clips` has them, and then its others. Returns its path. Raises
    ValueError for clips without a side, on two sides, or that are windows of longer files.
    """
    path = resolve_path(path)
    if sides is not None:
        if len(sides) != len(SIDES):
            raise ValueError(f"Three index arrays (train, val, test) make a split, not {len(sides)}.")
        rows = np.concatenate([np.asarray(side) for side in sides])
        if len(np.unique(rows)) < len(rows):
            raise ValueError("Some clips are on more than one side; give every row number once.")
        names = np.full(len(clips), None, dtype=object)
        names[rows] = np.repeat(SIDES, [len(side) for side in sides])
        clips = clips.assign(split=names)[pd.notna(names)]
    if "split" not in clips:
        raise ValueError("These clips have no column 'split'; give `sides`, the row numbers (train, val, test).")
    if "clip_start" in clips and clips["clip_start"].notna().any():
        raise ValueError("Some of these clips are windows of longer files, which this table cannot say; write files.")
    unknown = sorted(set(clips["split"].astype(str)) - set(SIDES))
    if unknown:
        raise ValueError(f"The column split may say train, val or test, not {unknown[0]!r}.")
    table = clips.drop(columns="label", errors="ignore").rename(columns={"class_name": "label"})
    table["path"] = [_path_from(path.parent, file) for file in table["path"]]
    first = [column for column in ("path", "label", "fold", "split", "source") if column in table]
    with write_whole(path) as temporary:
        table[first + [column for column in table if column not in first]].to_csv(temporary, index=False)
    return path


def _path_from(folder: Path, file: str | os.PathLike) -> str:
    """Return the path that leads from `folder` to `file`, which counts from where `resolve_path` counts from."""
    file = ROOT / Path(file).expanduser()  # links are left as they are: what they lead to may have another name
    try:
        return Path(os.path.relpath(file, folder)).as_posix()
    except ValueError:  # another drive of Windows
        return file.as_posix()


def load_sst2(
    data_dir: str | os.PathLike = "data",
    n_train: int = 40,
    n_test: int | None = 200,
    *,
    seed: int = 0,
    source: str = "auto",
    folder: str | os.PathLike | None = None,
) -> pd.DataFrame:
    """Return a few sentences of SST-2 (Socher et al. 2013, in the form of GLUE) as a table, through two spreadsheets.

    `n_train` rows of train.tsv are drawn with `seed`, as many of each class; a smaller draw is the beginning of a
    larger one. Left out are rows that are there twice, by their words, and rows that share a sentence or phrase with
    any row of dev.tsv (`find_text_overlap`). The test is drawn from dev.tsv, the same for every seed: `n_test` rows,
    half of each class, or all of them for None. The demo data have 100, and it says so where more are asked for.

    Both are written to `folder` (None: one for each draw, in data/processed) as training.xlsx and test.xlsx, with the
    columns sentence, label (0 or 1) and label_name, and read from there. Files that were drawn with the same arguments
    are read as they are, so that they can be edited; edited ones are never overwritten.

    Columns: text, label (0: negative, 1: positive), class_name, split ("train" or "test"), source (one for each
    different sentence). `data_dir` holds SST-2, or is it; `source` as in `load_esc50`, the download goes through the
    package `datasets`. Raises FileNotFoundError or ValueError; LeakError if a test sentence was put into training.
    """
    for name, n in (("n_train", n_train), ("n_test", n_test)):
        if (n is not None or name == "n_train") and (not isinstance(n, int | np.integer) or n < 2 or n % 2):
            raise ValueError(f"{name}={n!r} must be an even number, half of it for each class: 2 or more.")
    if not isinstance(seed, int | np.integer) or seed < 0:
        raise ValueError(f"seed={seed!r} must be a whole number, 0 or more.")
    found = _choose_folder(_find_sst2, data_dir, source, "SST-2", "sst2", "SST-2")
    demo = found is None
    if demo:
        from shared_utils.demo_data import make_review_sentences

        _announce_demo("SST-2", data_dir, source, "review sentences", f"ones: `{_DOWNLOAD_COMMAND} sst2`", "SST-2")
        found = make_review_sentences(resolve_path("data/demo/review_sentences")) / "SST-2"
    hashes = [_hash_tsv(found / name) for name in ("train.tsv", "dev.tsv")]
    train, dev = _read_sst2(found, *hashes)
    if demo and n_test is not None and n_test > len(dev):
        print(f"The demo data have {len(dev)} test sentences instead of {n_test}.")
        n_test = len(dev)
    name = "review sentences" if demo else "SST-2"
    if folder is None:
        place = name.lower().replace(" ", "_").replace("-", "")
        folder = f"data/processed/{place}/{n_train}-{n_test or 'all'}-seed{seed}"
    folder = resolve_path(folder)
    arguments = {"data_set": name, "n_train": int(n_train), "n_test": n_test and int(n_test), "seed": int(seed)}
    arguments["drawn_from"] = hashes
    tables = {
        "training.xlsx": lambda: _draw_sentences(train, n_train, seed, found / "train.tsv"),
        "test.xlsx": lambda: dev if n_test is None else _draw_sentences(dev, n_test, _DRAWS, found / "dev.tsv"),
    }
    _write_draw(folder, arguments, tables)
    parts = []
    for split, workbook in zip(("train", "test"), _WORKBOOKS, strict=True):
        part = _read_sentences(folder / workbook)
        part["class_name"] = [_name_sentiment(*row) for row in part[["class_name", "place"]].to_numpy()]
        _check_classes(part, folder / workbook)
        parts.append(part.assign(split=split))
    sentences = _finish_sentences(pd.concat(parts, ignore_index=True), ["split"])
    texts = [sentences["text"][sentences["split"] == split].tolist() for split in ("train", "test")]
    overlap = find_text_overlap(*texts)
    if len(overlap):
        raise LeakError(
            f"{overlap['test_row'].nunique()} sentences of {folder / 'test.xlsx'} share a sentence or phrase with "
            f"training.xlsx, first {_shorten(overlap['test_text'][0])}; take them out of one of the two files.",
            overlap,
        )
    sentences.attrs = {"data_set": name, "demo": demo}
    return sentences


def load_sentences(path: str | os.PathLike, text: str | None = None, label: str | None = None) -> pd.DataFrame:
    """Return your own sentences, the rows of an .xlsx (first sheet) or .csv file, as a table.

    The first row names the columns. `text` and `label` name those with the sentences and their classes; None finds
    text, sentence, review, ... and label, sentiment, class, ... Labels are words or numbers, whose capitals and
    kinds of spaces do not matter; a column label_name or class_name beside them names the classes. Blank rows are left
    out, and it says so.

    Columns: text, label (alphabetical), class_name, source (one for each different sentence). Raises FileNotFoundError
    or ValueError for a file that is no such table, a row without text or label, and one class only.
    """
    path = resolve_path(path)
    sentences = _read_sentences(path, text, label)
    _check_classes(sentences, path)
    sentences = _finish_sentences(sentences)
    sentences.attrs = {"data_set": path.stem, "demo": False}
    return sentences


def load_texts(path: str | os.PathLike, text: str | None = None) -> pd.DataFrame:
    """Return your own texts, the rows of an .xlsx (first sheet) or .csv file that need no labels, in their order.

    The first row names the columns; `text` is the name of the one with the texts, None finds it as `load_sentences`
    does. The table has this column alone, called text. Rows without a text are left out, and it says so.

    Raises FileNotFoundError or ValueError for a file that is no such table.
    """
    path = resolve_path(path)
    where, header, rows = _read_rows(path, ["text"])
    column = _find_column(header, text, _TEXT_COLUMNS, "text", where, "load_texts")
    texts = _keep_filled(rows, {"text": column}, path, where)[["text"]]
    texts.attrs = {"data_set": path.stem, "demo": False}
    return texts


def save_texts(table: pd.DataFrame, path: str | os.PathLike) -> Path:
    """Write a table that has a column text as .xlsx, a row a row, and return its path.

    A text stays one whatever it begins with: no spreadsheet takes it for a formula. Raises ValueError for a text that
    no cell can hold, for a path of another kind, and for a file that is open in another program.
    """
    from openpyxl import Workbook

    path = resolve_path(path)
    if path.suffix.lower() != ".xlsx":
        raise ValueError(f"{path} does not end in .xlsx; a table of texts is written as such a file only.")
    book = Workbook()
    sheet = book.active
    sheet.title = "texts"
    sheet.column_dimensions[sheet.cell(1, 1 + list(table).index("text")).column_letter].width = 100
    for number, values in enumerate([list(table), *table.itertuples(index=False)], start=1):
        for column, value in enumerate(values, start=1):
            if isinstance(value, str):
                _put_text(sheet.cell(number, column), value, path)
            else:
                sheet.cell(number, column, value)
    try:
        with write_whole(path) as temporary:
            book.save(temporary)
    except OSError as error:
        raise ValueError(
            f"{path} cannot be written ({error.strerror or error}); if another program has it open, close it there."
        ) from error
    return path


def download(name: str, data_dir: str | os.PathLike = "data") -> Path:
    """Fetch a data set from its publisher into `data_dir` and return its folder.

    "esc50": 600 MB, CC BY-NC 3.0. "speech_commands_v0.02" and "..._v0.01": 2.4 and 1.5 GB, their test archives
    "speech_commands_test_set_v0.02" and "..._v0.01": 0.1 GB each, CC BY 4.0. "sst2": 7 MB, through the package
    `datasets`, for research.

    An interrupted download goes on where it stopped. The folder appears under its name only when it is unpacked and
    verified. ESC-50: 2,000 clips, 40 a class, five folds of 400, every file opens. Speech Commands: the checksum that
    torchaudio uses, the number of clips, the lists and the speaker-hash rule; for a test archive, which has no
    published checksum, the number of clips. SST-2: the number of rows, and their labels. Raises ConnectionError,
    OSError, ValueError.
    """
    if name not in _DOWNLOADS:
        raise ValueError(f"There is no download called {name!r}; there is: {', '.join(_DOWNLOADS)}.")
    data_dir = resolve_path(data_dir)
    if name == "sst2":
        return _download_sst2(data_dir)
    folder = (
        _find_esc50(data_dir) if name == "esc50" else _find_speech_commands(data_dir, name[len("speech_commands_") :])
    )
    if folder is not None:
        n_clips = len(_read_esc50(folder)[0]) if name == "esc50" else _count_speech_commands(folder)
        print(f"{folder} is already there ({n_clips:,} clips); remove or rename it to download it again.")
        return folder
    if name == "esc50":
        return _download_esc50(_ESC50_URL, data_dir)
    return _download_speech_commands(_SPEECH_COMMANDS_URL.format(name), data_dir / name, *_SPEECH_COMMANDS[name])


class ArrayDataset(torch.utils.data.Dataset):
    """Inputs (n_clips, ...) and their labels, of which a whole batch is gathered with one indexing operation.

    The inputs are a tensor or a NumPy array (memory-mapped or not; int16 stays int16), the labels integers (n_clips,)
    or soft targets (n_clips, n_classes). In a DataLoader: `collate_fn=lambda batch: batch`.
    """

    def __init__(self, inputs: np.ndarray | torch.Tensor, labels):
        if len(inputs) != len(labels):
            raise ValueError(f"{len(inputs)} inputs and {len(labels)} labels do not belong together.")
        self.inputs = inputs if isinstance(inputs, torch.Tensor) else np.asarray(inputs)
        device = inputs.device if isinstance(inputs, torch.Tensor) else "cpu"
        targets = torch.as_tensor(labels if isinstance(labels, torch.Tensor) else np.array(labels), device=device)
        self.targets = targets if targets.is_floating_point() else targets.long()

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        inputs, targets = self.__getitems__([index])
        return inputs[0], targets[0]

    def __getitems__(self, indices) -> tuple[torch.Tensor, torch.Tensor]:
        """Return (inputs, targets) of a list, array or tensor of row numbers, on the device where the array lies."""
        indices = torch.as_tensor(indices, dtype=torch.int64, device=self.targets.device)
        if isinstance(self.inputs, torch.Tensor):
            return self.inputs[indices], self.targets[indices]
        return torch.from_numpy(np.take(self.inputs, indices.numpy(), axis=0)), self.targets[indices]

    def to(self, device: str | torch.device) -> "ArrayDataset":
        """Return the same data set with everything on `device`, where batches are then gathered.

        An array of more than half the GPU's free memory stays where it is: its batches travel one by one.
        """
        device = torch.device(device)
        inputs = self.inputs
        if device.type == "cuda" and not getattr(inputs, "is_cuda", False):
            if inputs.nbytes > torch.cuda.mem_get_info(device)[0] / 2:
                return self
        if isinstance(inputs, np.ndarray) and device.type != "cpu":
            dtype = torch.from_numpy(inputs[:0].copy()).dtype
            inputs = torch.empty(inputs.shape, dtype=dtype, device=device)
            for start in range(0, len(inputs), 1024):  # in pieces: a mapped file need not fit into memory
                inputs[start : start + 1024] = torch.from_numpy(self.inputs[start : start + 1024].copy())
        elif isinstance(inputs, torch.Tensor):
            inputs = inputs.to(device)
        return ArrayDataset(inputs, self.targets)


def _find_folder(data_dir: str | os.PathLike, name: str, table: str) -> Path | None:
    """Return the folder `name` in `data_dir`, or `data_dir` itself where it is called so or holds the `table`."""
    data_dir = resolve_path(data_dir)
    is_it = data_dir.name == name or (data_dir / table).is_file()
    folder = data_dir if is_it else data_dir / name
    return folder if folder.is_dir() else None


_find_esc50 = functools.partial(_find_folder, name="ESC-50-master", table="meta/esc50.csv")
_find_urbansound8k = functools.partial(_find_folder, name="UrbanSound8K", table="metadata/UrbanSound8K.csv")
_find_sst2 = functools.partial(_find_folder, name="SST-2", table="train.tsv")


def _announce_demo(
    title: str, data_dir: str | os.PathLike, source: str, kind: str, real: str, folder_name: str
) -> None:
    why = f"No {title} in {data_dir!s}: using" if source == "auto" else "Using"
    print(f"{why} the built-in demo data ({kind}). The real {real}, or name the folder that holds {folder_name}.")


def _choose_folder(find, data_dir: str | os.PathLike, source: str, title: str, name: str | None, folder_name: str):
    """Return the folder of the real data set, fetched if that was asked for, or None for the demo data.

    Without a `name` there is no download of this data set.
    """
    if source not in ("auto", "real", "demo", *(["download"] if name else [])):
        choices = "auto, real, demo or download" if name else "auto, real or demo"
        raise ValueError(f"source={source!r} is unknown; choose {choices}.")
    folder = None if source == "demo" else find(data_dir)
    if folder is None and source == "download":
        folder = download(name, data_dir)
    if folder is None and source == "real":
        raise FileNotFoundError(
            f"There is no {title} in {resolve_path(data_dir)}: put the publisher's folder {folder_name} there, "
            + (f"or run `{_DOWNLOAD_COMMAND} {name}`." if name else "which data/README.md says where to get.")
        )
    if folder is None and source == "auto" and resolve_path(data_dir) != resolve_path("data"):
        if not resolve_path(data_dir).exists():
            raise FileNotFoundError(
                f"The data folder {resolve_path(data_dir)} does not exist: correct it, "
                "or leave it at 'data' to use the built-in demo data."
            )
    return folder


def _load_everyday_sounds(data_dir: str | os.PathLike, source: str) -> pd.DataFrame:
    from shared_utils.demo_data import make_everyday_sounds

    real = f"recordings: `{_DOWNLOAD_COMMAND} esc50`"
    _announce_demo("ESC-50", data_dir, source, "everyday sounds", real, "ESC-50-master")
    clips, _ = _read_esc50(make_everyday_sounds(resolve_path("data/demo/everyday_sounds")))
    clips = _add_labels(clips)
    clips.attrs = {"data_set": "everyday sounds", "demo": True}
    return clips


def _read_esc50(folder: Path) -> tuple[pd.DataFrame, np.ndarray]:
    """Return the table of clips without labels, and which rows belong to ESC-10."""
    csv = folder / "meta" / "esc50.csv"
    if not csv.is_file():
        raise FileNotFoundError(
            f"The table {csv} is missing; unpack the data set again, "
            f"or remove {folder} and run `{_DOWNLOAD_COMMAND} esc50`."
        )
    table = _read_csv(csv, _ESC50_COLUMNS)
    for column in ("fold", "target"):
        table[column] = _read_numbers(table[column], csv)
    table = table.reset_index(drop=True)
    clips = pd.DataFrame(
        {
            "path": _find_audio(folder / "audio", table["filename"], csv),
            "class_name": table["category"],
            "fold": table["fold"],
            "source": table["src_file"],
            "target": table["target"],
        }
    )
    return clips, (table["esc10"].str.lower() == "true").to_numpy()


def _read_urbansound8k(folder: Path) -> pd.DataFrame:
    """Return the table of clips without labels."""
    csv = folder / "metadata" / "UrbanSound8K.csv"
    if not csv.is_file():
        raise FileNotFoundError(f"The table {csv} is missing; unpack the data set again.")
    table = _read_csv(csv, _URBAN_COLUMNS)
    for column in ("fsID", "salience", "fold", "classID"):
        table[column] = _read_numbers(table[column], csv)
    for column in ("start", "end"):
        seconds = pd.to_numeric(table[column], errors="coerce")
        wrong = table.index[~np.isfinite(seconds)]
        if len(wrong):
            value = table[column][wrong[0]]
            raise ValueError(f"{csv}, line {wrong[0]}: {column} must be a number of seconds, not {value!r}.")
        table[column] = seconds.astype(float)
    wrong = table.index[~table["fold"].between(1, 10)]
    if len(wrong):
        raise ValueError(f"{csv}, line {wrong[0]}: the folds are 1 to 10, not {table['fold'][wrong[0]]}.")
    names = dict(enumerate(_URBAN_CLASSES))
    wrong = table.index[table["classID"].map(names) != table["class"]]
    if len(wrong):
        number, name = table.loc[wrong[0], ["classID", "class"]]
        official = f"classID {number} is {names[number]}" if number in names else "the classIDs are 0 to 9"
        raise ValueError(f"{csv}, line {wrong[0]}: {official}, but the line says {number}, {name!r}; correct it.")
    table = table.reset_index(drop=True)
    files = "fold" + table["fold"].astype(str) + "/" + table["slice_file_name"]
    return pd.DataFrame(
        {
            "path": _find_audio(folder / "audio", files, csv),
            "class_name": table["class"],
            "fold": table["fold"],
            "source": table["fsID"].astype(str),
            **{column: table[column] for column in ("start", "end", "salience")},
        }
    )


def _choose_speech_commands(
    data_dir: str | os.PathLike, release: str | None, source: str, test: str
) -> tuple[Path | None, str]:
    """Return the folder of the release, or None for the demo data, and what the publisher calls the folder."""
    if release is not None and release not in _RELEASES:
        raise ValueError(f"release={release!r} is unknown; choose {', '.join(_RELEASES)} or None (the newest).")
    if release is not None and source == "auto":
        source = "real"  # who names a release wants no other words
    name = f"speech_commands_{release or _RELEASES[0]}"
    find = functools.partial(_find_speech_commands, release=release)
    folder = _choose_folder(find, data_dir, source, "Speech Commands", name, name)
    if folder is None and test == "archive":
        raise ValueError("The demo data have no test archive; take test='lists'.")
    return folder, name


def _make_spoken_words() -> Path:
    from shared_utils.demo_data import make_spoken_words

    return make_spoken_words(resolve_path("data/demo/spoken_words"))


def _find_speech_commands(data_dir: str | os.PathLike, release: str | None = None) -> Path | None:
    data_dir = resolve_path(data_dir)
    folders = [data_dir / f"speech_commands_{name}" for name in ((release,) if release else _RELEASES)]
    folder = next((folder for folder in folders if folder.is_dir()), None)
    if folder is not None or not data_dir.is_dir():
        return folder
    named = re.match(r"speech_commands_(test_set_)?(v0\.0\d)", data_dir.name)
    has_list = any((data_dir / name).is_file() for name in ("validation_list.txt", "testing_list.txt"))
    has_words = (data_dir / _NOISE).is_dir() or next(data_dir.glob("*/*_nohash_*"), None) is not None
    if not (named or has_list or has_words or _is_test_archive(data_dir)):
        return None
    kind = "test_set_" if _is_test_archive(data_dir) else ""
    fits = kind + named[2] == release if named and release else not release or release.startswith("test_") == bool(kind)
    return data_dir if fits else None


def _is_test_archive(folder: Path) -> bool:
    return "test_set" in folder.name or (folder / _UNKNOWN).is_dir()


def _name_speech_commands(folder: Path) -> str:
    version = re.search(r"v0\.0\d", folder.name)
    return "Speech Commands" + " test set" * _is_test_archive(folder) + (f" {version[0]}" if version else "")


def _list_recordings(folder: Path, names: list[str]) -> pd.DataFrame:
    """List the recordings of the sub-folders `names`: path, folder, stem (without .wav, .wav.wav, .wav.flac)."""
    paths, folders, stems, ignored = [], [], [], 0
    for name in names:
        files = [file.name for file in os.scandir(folder / name) if not file.name.startswith(".")]
        audio = sorted(file for file in files if file.lower().endswith(AUDIO_SUFFIXES))
        if not audio:
            raise ValueError(
                f"The folder {folder / name} holds no recordings; remove it, or unpack the data set again."
            )
        ignored += len(files) - len(audio)
        paths += [f"{folder}{os.sep}{name}{os.sep}{file}" for file in audio]
        folders += [name] * len(audio)
        stems += [_stem(file) for file in audio]
    if ignored:
        print(f"Ignored {ignored} files in the sub-folders of {folder.name} that are no recordings.")
    clips = pd.DataFrame({"path": paths, "folder": folders, "stem": stems})
    twice = clips.index[clips.duplicated(["folder", "stem"])]
    if len(twice):
        raise ValueError(f"{clips['path'][twice[0]]} is there in two formats; remove one of them.")
    return clips.sort_values(["folder", "stem"], kind="stable", ignore_index=True)


def _stem(name: str) -> str:
    return re.sub(r"(\.(wav|flac|ogg|mp3))+$", "", name, flags=re.IGNORECASE)


def _list_words(folder: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and entry.name[0] not in "._")


def _check_words(words: tuple[str, ...], there: list[str], folder: Path) -> None:
    missing = [word for word in dict.fromkeys(words) if word not in there]
    if missing:
        raise ValueError(f"{folder} has no word {_first(missing)}; it has {', '.join(there)}.")


def _read_lists(folder: Path) -> pd.DataFrame:
    """Return every clip of a full release with its word, side and speaker, checked against list and rule."""
    side_of = {}
    for side, name in (("val", "validation_list.txt"), ("test", "testing_list.txt")):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"The list {folder / name} is missing; unpack the data set again, "
                "or read words of your own with load_folder."
            )
        keys = [_stem(line.strip()) for line in (folder / name).read_text("utf-8").splitlines() if line.strip()]
        if not keys:
            raise ValueError(f"{folder / name} lists no clips; unpack the data set again.")
        both = [key for key in keys if side_of.get(key, side) != side]
        if both:
            raise ValueError(f"{both[0]} is on both lists of {folder}; a clip can validate or test, not both.")
        side_of.update(dict.fromkeys(keys, side))
    words = _list_words(folder)
    if not words:
        raise ValueError(f"{folder} has no word folders; unpack the data set again.")
    clips = _list_recordings(folder, words).rename(columns={"folder": "word"})
    clips["source"] = _match_speakers(clips, r"^(.+?)_nohash_")
    keys = clips["word"] + "/" + clips["stem"]
    missing = sorted(set(side_of).difference(keys))
    if missing:
        raise FileNotFoundError(
            f"{len(missing):,} of the {len(side_of):,} clips on the lists of {folder} are not there "
            f"({_first(missing)}); unpack the data set again."
        )
    clips["split"] = [side_of.get(key, "train") for key in keys]
    _check_speakers(clips)
    speakers = clips.drop_duplicates("source")
    wrong = [speaker_hash_side(f"{name}_nohash_") != side for name, side in speakers[["source", "split"]].to_numpy()]
    if any(wrong):
        first = speakers[wrong].iloc[0]
        raise ValueError(
            f"The lists of {folder} do not agree with the speaker-hash rule: {first['path']} belongs to "
            f"{speaker_hash_side(first['path'])}, not to {first['split']}; take the publisher's own lists."
        )
    return clips.assign(clip_start=np.nan, clip_volume=1.0)


def _match_speakers(clips: pd.DataFrame, pattern: str) -> pd.Series:
    speakers = clips["stem"].str.extract(pattern, expand=False)
    wrong = clips["path"][speakers.isna()].tolist()
    if wrong:
        raise ValueError(
            f"{len(wrong):,} files have no speaker and '_nohash_' in their names ({_first(wrong)}); "
            "rename or remove them."
        )
    return speakers


def _check_speakers(clips: pd.DataFrame, by: str = "split") -> None:
    """Check that each speaker is on one side or, with by="fold", in one fold."""
    on = clips.drop_duplicates(["source", by])
    both = on[on["source"].duplicated(keep=False)].sort_values("source", kind="stable")
    if len(both):
        where = "; ".join(f"{path} in {side}" for path, side in both[["path", by]].to_numpy()[:2])
        rows = clips[clips["source"].isin(both["source"])].reset_index(drop=True)
        remedy = "take the publisher's own lists, which keep each speaker on one side."
        if by == "fold":
            remedy = "give all clips of a speaker the same fold in meta/speaker_folds.csv."
        raise LeakError(
            f"{both['source'].nunique()} speakers are on more than one {'side' if by == 'split' else by}, "
            f"first {both['source'].iloc[0]} ({where}); {remedy}",
            rows,
        )


def _choose_words(clips: pd.DataFrame, words: tuple[str, ...], unknown: str, folder: Path) -> pd.DataFrame:
    """Name the classes: `words` and unknown, of which "standard" keeps a tenth of the known clips on each side."""
    _check_words(words, sorted(set(clips["word"])), folder)
    known = clips["word"].isin(words).to_numpy()
    if known.all():
        raise ValueError("No word is left over for the class unknown; ask for fewer words, or take classes='original'.")
    keep = known.copy()
    for k, side in enumerate(SIDES):
        here = (clips["split"] == side).to_numpy()
        others = np.flatnonzero(here & ~known)
        n_others = len(others) if unknown == "all" else _tenth(np.count_nonzero(here & known))
        keep[np.random.default_rng([_DRAWS, 0, k]).permutation(others)[:n_others]] = True
    return clips.assign(class_name=np.where(known, clips["word"], "unknown"))[keep]


def _tenth(n: int) -> int:
    return -(-n // 10)


def _list_noise(folder: Path) -> list[Path]:
    if not (folder / _NOISE).is_dir() and _is_test_archive(folder):
        raise FileNotFoundError(f"{folder} is a test archive without {_NOISE}; name a full release.")
    if not (folder / _NOISE).is_dir():
        raise FileNotFoundError(
            f"The noise folder {folder / _NOISE} is missing; unpack the data set again, or leave silence out."
        )
    listed = [file for file in (folder / _NOISE).iterdir() if not file.name.startswith(".")]  # macOS leaves ._*.wav
    files = sorted(file for file in listed if file.suffix.lower() in AUDIO_SUFFIXES)
    if not files:
        raise FileNotFoundError(f"{folder / _NOISE} holds no recordings; unpack the data set again.")
    return files


def _cut_noise(file: Path, n_samples: int, sample_rate: int) -> dict[str, tuple[int, int]]:
    try:
        return cut_in_time(n_samples, sample_rate)
    except ValueError as error:
        raise ValueError(f"The noise file {file} cannot be shared between the sides: {error}") from error


def _share_noise(files: list[Path], crops: pd.DataFrame | None) -> pd.DataFrame:
    """Return the stretches of the noise files that belong to each side: side, file, first, last, rate (Hz).

    From sample `first` on; `last` is not included. Without `crops` each file is cut in time. With them (noise,
    noise_start in s) they are the test side, and what they leave is dealt to the others.
    """
    rows = []
    for file in files:
        try:
            info = soundfile.info(file)
        except soundfile.LibsndfileError as error:
            raise ValueError(f"The noise file {file} cannot be read as audio; unpack the data set again.") from error
        if crops is None:
            shares = {side: [cut] for side, cut in _cut_noise(file, info.frames, info.samplerate).items()}
        else:
            starts = np.rint(crops["noise_start"][crops["noise"] == file.stem].to_numpy() * info.samplerate)
            shares = _deal_pieces(info.frames, info.samplerate, np.sort(starts).astype(int))
        rows += [(side, file, *stretch, info.samplerate) for side in SIDES for stretch in shares[side]]
    return pd.DataFrame(rows, columns=["side", "file", "first", "last", "rate"])


def _deal_pieces(n_samples: int, rate: int, starts: np.ndarray) -> dict[str, list[tuple[int, int]]]:
    """Return each side's stretches of a file of which seconds were cropped for the test, at the sorted `starts`.

    The longest piece goes first, and one goes to validation where that has less than two fifths of what training has.
    """
    guard = round(_GUARD * rate)
    groups = np.split(starts, np.flatnonzero(np.diff(starts) > rate) + 1)  # of crops that touch
    test = [(int(group[0]), min(int(group[-1]) + rate, n_samples)) for group in groups if len(group)]
    firsts = [0, *(last + guard for _, last in test)]
    lasts = [*(first - guard for first, _ in test), n_samples]
    pieces = [(first, last) for first, last in zip(firsts, lasts, strict=True) if last - first >= rate]
    shares, n_dealt = {"train": [], "val": [], "test": test}, {"train": 0, "val": 0}
    for first, last in sorted(pieces, key=lambda piece: piece[0] - piece[1]):
        side = "val" if n_dealt["val"] < 0.4 * n_dealt["train"] else "train"
        shares[side].append((first, last))
        n_dealt[side] += last - first
    return shares


def _draw_silence(clips: pd.DataFrame, folder: Path, classes: str, archive: pd.DataFrame | None) -> pd.DataFrame:
    """Draw windows of one second of the noise files for each side that `clips` has, each from its own stretches.

    The files share the windows evenly.
    """
    spoken = clips[clips["class_name"] != "unknown"]
    crops = None if archive is None or "noise" not in archive else archive.dropna(subset="noise_start")
    stretches = _share_noise(_list_noise(folder), crops)
    tables = []
    for k, side in enumerate(SIDES):
        words = spoken["word"][spoken["split"] == side]
        n_windows = _tenth(len(words)) if classes == "modified" else round(len(words) / max(1, words.nunique()))
        here = stretches[stretches["side"] == side]
        if n_windows and len(here) == 0:
            raise ValueError(f"The noise files of {folder} leave no second for {side}; take silence=False.")
        if n_windows:
            windows = _draw_windows(here, n_windows, np.random.default_rng([_DRAWS, 1, k]))
            tables.append(windows.assign(split=side))
    silence = pd.concat(tables, ignore_index=True)
    stems = [Path(path).stem for path in silence["path"]]
    silence["source"] = [f"{stem}, {side}" for stem, side in zip(stems, silence["split"], strict=True)]
    return silence.assign(class_name="silence", word="silence")


def _draw_windows(stretches: pd.DataFrame, n_windows: int, rng: np.random.Generator) -> pd.DataFrame:
    """Draw path, start and volume of windows, every possible start of a file being equally likely."""
    files = stretches["file"].unique()
    tables = []
    for k, file in enumerate(files):
        firsts, lasts, rates = stretches.loc[stretches["file"] == file, ["first", "last", "rate"]].to_numpy().T
        n = len(range(k, n_windows, len(files)))
        before = np.concatenate([[0], np.cumsum(lasts - rates - firsts + 1)])  # possible starts
        draws = rng.integers(before[-1], size=n)
        piece = np.searchsorted(before, draws, side="right") - 1
        starts = (firsts[piece] + draws - before[piece]) / rates[0]
        tables.append(pd.DataFrame({"path": str(file), "clip_start": starts}))
    windows = pd.concat(tables, ignore_index=True)
    volumes = rng.uniform(0, 1, n_windows)
    volumes[rng.permutation(n_windows)[: round(n_windows / 10)]] *= 0.001
    return windows.assign(clip_volume=volumes)


def _find_archive_beside(folder: Path) -> Path:
    version = re.search(r"v0\.0\d", folder.name)
    archive = folder.parent / f"speech_commands_test_set_{version[0] if version else _RELEASES[0]}"
    if not archive.is_dir():
        raise FileNotFoundError(
            f"There is no test archive {archive} beside {folder}: put it there, "
            f"run `{_DOWNLOAD_COMMAND} {archive.name}`, or take test='lists'."
        )
    return archive


def _join_archive(clips: pd.DataFrame, archive: pd.DataFrame) -> pd.DataFrame:
    """Put the archive behind the training and validation clips, none of whose speakers may be in it."""
    joined = pd.concat([clips, archive], ignore_index=True)
    _check_speakers(joined)
    if "noise" in archive:
        window = joined["clip_start"].notna()
        joined.loc[window, "noise"] = [Path(path).stem for path in joined["path"][window]]
        joined.loc[window, "noise_start"] = joined["clip_start"][window]
    elif (archive["word"] == "silence").any():
        print("Where the archive's silence was cropped from is not known: it may share samples with training silence.")
    return joined


def _read_test_archive(folder: Path) -> pd.DataFrame:
    """Return the clips of a test archive, all of them on the test side, with the position of silence where known."""
    others = [name for name in _list_words(folder) if name not in (*COMMANDS, "meta")]
    names = [*COMMANDS, *others, _UNKNOWN, _SILENCE]
    missing = [name for name in names if not (folder / name).is_dir()]
    if missing:
        raise FileNotFoundError(f"The folder {folder / missing[0]} is missing; unpack the test archive again.")
    clips = _list_recordings(folder, names)
    spoken = clips["folder"] != _SILENCE
    clips["source"] = "silence " + clips["stem"]
    # Names of other words are <word>_<speaker>_nohash_<n>, so that they fit into one folder.
    clips.loc[spoken, "source"] = _match_speakers(clips[spoken], r"^(?:[^_]+_)?([^_]+)_nohash_")
    clips["word"] = clips["folder"].where(spoken, "silence")
    other = clips["folder"] == _UNKNOWN
    clips.loc[other, "word"] = (
        clips["stem"][other].str.extract(r"^([^_]+)_[^_]+_nohash_", expand=False).fillna("unknown")
    )
    clips["class_name"] = np.where(clips["folder"].isin(COMMANDS), clips["folder"], "unknown")
    clips.loc[~spoken, "class_name"] = "silence"
    clips = clips.assign(split="test", clip_start=np.nan, clip_volume=1.0)
    return _place_silence(clips, folder)


def _find_crops(folder: Path) -> pd.DataFrame | None:
    """Return noise and noise_start (s) of a test archive's clips of silence, by their stem; None: not known."""
    names = os.listdir(folder / _SILENCE) if (folder / _SILENCE).is_dir() else []
    stems = sorted(_stem(name) for name in names if name.lower().endswith(AUDIO_SUFFIXES) and name[0] != ".")
    if hashlib.sha256("\n".join(stems).encode()).hexdigest() != _SILENCE_NAMES:
        return None
    csv = resolve_path(_POSITIONS)
    if not csv.is_file():
        raise FileNotFoundError(
            f"The table {csv}, which says where the silence of {folder} was cropped from, is missing; restore it."
        )
    positions = _read_csv(csv, ("file", "noise", "start")).set_index("file")
    unplaced = [stem for stem in stems if stem not in positions.index]
    if unplaced:
        raise ValueError(f"{csv} has no line for {_first(unplaced)}; restore the table.")
    positions = positions.loc[stems]
    return pd.DataFrame({"noise": positions["noise"], "noise_start": positions["start"].astype(float)})


def _place_silence(clips: pd.DataFrame, folder: Path) -> pd.DataFrame:
    """Say where in which noise file each clip of silence lies, as measured; overlapping ones become one source."""
    crops = _find_crops(folder)
    if crops is None:
        return clips
    silent = clips["class_name"] == "silence"
    for column in ("noise", "noise_start"):
        clips.loc[silent, column] = crops.loc[clips["stem"][silent], column].to_numpy()
    order = clips[silent].sort_values(["noise", "noise_start"], kind="stable")
    new_file = order["noise"] != order["noise"].shift()
    group = (new_file | (order["noise_start"].diff() > 1 - 1e-5)).cumsum()  # a touching second shares nothing
    group = group - group.groupby(order["noise"]).transform("first") + 1
    clips.loc[order.index, "source"] = order["noise"] + ", group " + group.astype(str)
    return clips


def _set_folds(clips: pd.DataFrame, folder: Path) -> pd.DataFrame:
    """Replace the side by the folds of meta/speaker_folds.csv, if there are any, without duplicates."""
    csv = folder / "meta" / "speaker_folds.csv"
    if not csv.is_file():
        return clips
    table = _read_csv(csv, ("file", "fold", "duplicate_of_earlier"))
    table["key"] = table["file"].map(_stem)
    table["fold"] = _read_numbers(table["fold"], csv)
    twice = table.index[table["key"].duplicated()]
    if len(twice):
        raise ValueError(f"{csv}, line {twice[0]}: {table['file'][twice[0]]} is listed already; remove one line.")
    wrong = table.index[~table["duplicate_of_earlier"].isin(["0", "1"])]
    if len(wrong):
        value = table["duplicate_of_earlier"][wrong[0]]
        raise ValueError(f"{csv}, line {wrong[0]}: duplicate_of_earlier must be 0 or 1, not {value!r}.")
    keys = clips["folder"] + "/" + clips["stem"]
    missing, extra = table["key"][~table["key"].isin(keys)], keys[~keys.isin(table["key"])]
    if len(missing):
        raise FileNotFoundError(
            f"{len(missing):,} of the {len(table):,} clips listed in {csv} are not there ({_first(list(missing))}); "
            "unpack the test archive again."
        )
    if len(extra):
        raise ValueError(f"{len(extra):,} clips are not listed in {csv} ({_first(list(extra))}); add or remove them.")
    listed = table.set_index("key").loc[keys]
    clips = clips.drop(columns="split").assign(fold=listed["fold"].to_numpy())
    clips = clips[(listed["duplicate_of_earlier"] == "0").to_numpy()].reset_index(drop=True)
    if len(clips) < len(listed):
        print(f"Left out {len(listed) - len(clips)} clips that are exact duplicates of others ({csv.name}).")
    silent = clips["class_name"] == "silence"
    _check_speakers(clips[~silent], by="fold")
    if "noise" in clips and silent.any():
        clips["listed_fold"] = clips["fold"]
        silence, folds = clips[silent], np.unique(clips["fold"])
        dealt = stratified_group_folds(silence["noise"], silence["source"], len(folds), seed=_DRAWS)
        clips.loc[silent, "fold"] = folds[dealt - 1]
    elif silent.any():
        print("Where the silence was cropped from is not known: clips of it may share samples across the folds.")
    return clips


def _hash_tsv(file: Path) -> str:
    if not file.is_file():
        raise FileNotFoundError(
            f"The table {file} is missing; put the publisher's file there, "
            f"or remove {file.parent} and run `{_DOWNLOAD_COMMAND} sst2`."
        )
    return _hash_file(file)


def _hash_file(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


@functools.lru_cache(maxsize=2)  # many seeds draw from the same tables, which take a second to compare
def _read_sst2(folder: Path, *hashes: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return what can be drawn of train.tsv, and all of dev.tsv: text, class_name. They are kept: do not change them.

    `hashes` are of the two files, so that changed ones are read again.
    """
    train, dev = _read_tsv(folder / "train.tsv"), _read_tsv(folder / "dev.tsv")
    overlap = find_text_overlap(train["text"], dev["text"])
    words = train["text"].map(normalise_text)
    both = train.groupby(words)["class_name"].transform("nunique") > 1
    keep = ~(words.duplicated() | both)
    keep[overlap["train_row"]] = False
    return train[keep].reset_index(drop=True), dev


def _read_tsv(file: Path) -> pd.DataFrame:
    """Return text and class_name of a table of GLUE, whose quotation marks mean nothing."""
    try:
        table = pd.read_csv(file, sep="\t", quoting=csv.QUOTE_NONE, dtype=str, keep_default_na=False, encoding="utf-8")
    except ValueError as error:
        raise ValueError(f"{file} is not a table of tab-separated values: {error}.") from error
    if not {"sentence", "label"} <= set(table):
        raise ValueError(f"{file} needs the columns sentence and label; it has {', '.join(map(str, table.columns))}.")
    texts = table["sentence"].str.strip()
    wrong = table.index[(texts == "") | ~table["label"].isin(["0", "1"])]
    if len(wrong):
        row = table.loc[wrong[0]]
        raise ValueError(
            f"{file}, line {wrong[0] + 2}: a sentence and the label 0 or 1 are needed, not "
            f"{row['sentence']!r} and {row['label']!r}; fetch the file again."
        )
    return pd.DataFrame({"text": texts, "class_name": [_SENTIMENTS[int(label)] for label in table["label"]]})


def _draw_sentences(table: pd.DataFrame, n: int, seed: int, file: Path) -> pd.DataFrame:
    """Draw `n` rows, the classes taking turns."""
    rows = []
    for k, name in enumerate(_SENTIMENTS):
        of_class = np.flatnonzero(table["class_name"] == name)
        if len(of_class) < n // 2:
            raise ValueError(
                f"{file} has {len(of_class):,} {name} sentences to draw from, fewer than half of {n:,}; ask for less."
            )
        rows.append(np.random.default_rng([int(seed), k]).permutation(of_class)[: n // 2])
    return table.iloc[np.stack(rows, axis=1).ravel()]


def _write_draw(folder: Path, arguments: dict, tables: dict) -> None:
    """Write the workbooks that are not there yet, and replace untouched ones that were drawn with other arguments.

    made_for.json beside them says what they were drawn with, and by their SHA-256 whether they are untouched.
    """
    note = folder / "made_for.json"
    try:
        made_for = json.loads(note.read_text("utf-8"))
        same, written = made_for["arguments"] == arguments, dict(made_for["sha256"])
    except (OSError, ValueError, LookupError, TypeError):
        same, written = False, {}
    there = [folder / name for name in tables if (folder / name).exists()]
    edited = [file for file in there if not file.is_file() or _hash_file(file) != written.get(file.name)]
    if edited and not same:
        raise ValueError(
            f"{edited[0]} was edited, or is not of load_sst2 with these arguments, and is not overwritten; "
            "move it, give another `folder`, or read it with load_sentences."
        )
    if edited:
        print(f"Edited by hand, and read as it is: {', '.join(str(file) for file in edited)}.")
    missing = [name for name in tables if not (same and folder / name in there)]
    if not missing:
        return
    try:
        with contextlib.ExitStack() as stack:
            for name in missing:
                temporary = stack.enter_context(write_whole(folder / name))
                _write_workbook(temporary, tables[name](), folder / name)
                written[name] = _hash_file(temporary)
            for name in missing:  # gone before the note changes: an interruption leaves no file under a wrong note
                (folder / name).unlink(missing_ok=True)
            with write_whole(note) as temporary:
                temporary.write_text(json.dumps({"arguments": arguments, "sha256": written}, indent=1), "utf-8")
    except OSError as error:
        raise OSError(
            f"The sentences cannot be written to {folder}: {error.strerror or error}; "
            "close the files in the spreadsheet, or give another `folder`."
        ) from error


def _write_workbook(path: Path, table: pd.DataFrame, final: Path) -> None:
    """Write sentences so that the spreadsheet shows each of them as text, whatever it begins with."""
    from openpyxl import Workbook

    book = Workbook()
    sheet = book.active
    sheet.title = "sentences"
    sheet.append(["sentence", "label", "label_name"])
    sheet.column_dimensions["A"].width = 100
    sheet.column_dimensions["A"].number_format = "@"  # text, in rows that a user adds as well
    for row, (text, name) in enumerate(table[["text", "class_name"]].to_numpy(), start=2):
        _put_text(sheet.cell(row, 1), text, final)
        sheet.cell(row, 2, _SENTIMENTS.index(name))
        sheet.cell(row, 3, name)
    book.save(path)


def _put_text(cell, text: str, final: Path) -> None:
    """Put `text` into a cell of the workbook that will be `final`."""
    from openpyxl.utils.exceptions import IllegalCharacterError

    if len(text) > _CELL_CHARACTERS:
        raise ValueError(
            f"{final} cannot hold the sentence {_shorten(text)}: it has {len(text):,} characters, and a cell "
            f"takes {_CELL_CHARACTERS:,}; shorten it, or take it out."
        )
    cell.number_format = "@"
    try:
        cell.value = text
    except IllegalCharacterError as error:
        raise ValueError(
            f"{final} cannot hold the sentence {_shorten(text)}: it contains a control character; take it out."
        ) from error
    cell.data_type = "s"  # a text that begins with "=" would become a formula


def _name_sentiment(label: str, place: str) -> str:
    name = {"0": "negative", "1": "positive"}.get(label, label.lower())
    if name not in _SENTIMENTS:
        raise ValueError(
            f"{place}: the label must be 0 or negative, 1 or positive, not {label!r}; read other classes with "
            "load_sentences."
        )
    return name


def _read_sentences(path: Path, text: str | None = None, label: str | None = None) -> pd.DataFrame:
    """Return text, class_name, and place (file, sheet and row, for messages) of every row that is not blank."""
    where, header, rows = _read_rows(path, ["text", "label"])
    columns = _find_columns(header, text, label, where)
    table = _keep_filled(rows, dict(zip(("text", "label", "name"), columns, strict=True)), path, where)
    for row in table.itertuples():
        if row.text == "":
            raise ValueError(f"{row.place}: the label {row.label or row.name!r} has no text; add it, or clear the row.")
        if row.label == "" and row.name == "":
            raise ValueError(f"{row.place}: {_shorten(row.text)} has no label; add it, or clear the row.")
    table["class_name"] = _name_classes(table)
    return table[["text", "class_name", "place"]]


def _read_rows(path: Path, needs: list[str]) -> tuple[str, list[str], list[tuple[int, list[str]]]]:
    """Return where the table is (file, sheet), the names of its columns, and its rows: number, cells as text."""
    if not path.exists():
        raise FileNotFoundError(
            f"{path} does not exist; give an .xlsx or .csv file with a {' and a '.join(needs)} a row."
        )
    kind = path.suffix.lower()
    if kind not in (".xlsx", ".csv") or not path.is_file():
        raise ValueError(f"{path} is neither an .xlsx nor a .csv file; save the table as one of them.")
    try:
        where, rows = _read_workbook(path) if kind == ".xlsx" else _read_delimited(path)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text in UTF-8; save it as 'CSV UTF-8', or as .xlsx.") from error
    except OSError as error:
        raise ValueError(
            f"{path} cannot be opened ({error.strerror or error}); if another program has locked it, close it there."
        ) from error
    used = [k for k, (_, cells) in enumerate(rows) if any(cells)]
    if not used:
        raise ValueError(f"{where} is empty; its first row must name the columns, such as {' and '.join(needs)}.")
    (_, header), *rows = rows[used[0] : used[-1] + 1]
    return where, header, rows


def _keep_filled(rows: list, columns: dict[str, int | None], path: Path, where: str) -> pd.DataFrame:
    """Return `columns` (name -> place) and the place, for messages, of the rows in which not all of them are empty."""
    table = [
        (f"{where}, row {number}", *(cells[k] if k is not None and k < len(cells) else "" for k in columns.values()))
        for number, cells in rows
    ]
    table = pd.DataFrame(table, columns=["place", *columns], dtype=str)
    blank = (table[list(columns)] == "").all(axis=1)
    n_blank = int(blank.sum())
    if n_blank:
        print(f"Left out {n_blank} blank row{'s' * (n_blank > 1)} of {path.name}.")
    table = table[~blank].reset_index(drop=True)
    if len(table) == 0:
        raise ValueError(f"{where} names its columns and holds no sentences; add some below.")
    return table


def _find_columns(header: list[str], text: str | None, label: str | None, where: str) -> tuple:
    """Return the places of the texts, the labels and the names of the labels; None where there are no names."""
    find = functools.partial(_find_column, header, where=where, function="load_sentences")
    text_column = find(text, _TEXT_COLUMNS, "text")
    name_column = find(None, _NAME_COLUMNS, "label", required=False) if label is None else None
    label_column = find(label, _LABEL_COLUMNS, "label", required=name_column is None)
    if label_column is None:
        label_column, name_column = name_column, None
    if text_column == label_column:
        raise ValueError(f"{where}: text and label are both the column {header[text_column]!r}; name two columns.")
    return text_column, label_column, name_column


def _find_column(
    header: list[str], named: str | None, known: tuple[str, ...], what: str, where: str, function: str,
    required: bool = True,
) -> int | None:  # fmt: skip
    """Return the place of the column that is called `named`, or of the one whose name is among the `known`."""
    there = ", ".join(cell for cell in header if cell) or "none"
    if named is None:
        found = [k for k, cell in enumerate(header) if re.sub(r"[\W_]+", "", cell.casefold()) in known]
    else:
        found = [k for k, cell in enumerate(header) if cell.casefold() == named.strip().casefold()]
    if len(found) > 1:
        both = " and ".join(repr(header[k]) for k in found[:2])
        raise ValueError(
            f"{where} has two columns that could be the {what}, {both}; rename one, or name the right one: "
            f"{function}(..., {what}='...')."
        )
    if named is not None and not found:
        raise ValueError(f"{where} has no column {named!r}; its first row names {there}.")
    if required and not found:
        raise ValueError(
            f"{where} has no column of {what}s; its first row names {there}. Call one {what!r}, or name it: "
            f"{function}(..., {what}='...')."
        )
    return found[0] if found else None


def _spell(name: str) -> str:
    """Return a name as it is read: é is written in two ways, by a Mac and by others, and spaces cannot be seen."""
    return " ".join(unicodedata.normalize("NFC", name).split())


def _look(name: str) -> str:
    """Return what is the same for names that look the same but for capitals, as those with a no-break space do."""
    joiners = "\u200c\u200d"  # which Persian, Hindi and emoji are written with
    seen = (letter for letter in name if letter in joiners or unicodedata.category(letter) != "Cf")
    return _spell("".join(seen)).casefold()


def _name_classes(table: pd.DataFrame) -> list[str]:
    """Return the class of each row: the name that stands beside its label in this row or another one, or its label."""
    names, spelled = {}, {}
    labels = table["label"].map(_look).str.replace(r"^([+-]?\d+)\.0+$", r"\1", regex=True)
    rows = list(zip(labels, table["name"].map(_look), table.itertuples(), strict=True))
    for label, name, row in rows:
        if label and name:
            first, place = names.setdefault(label, (name, row.place))
            if first != name:
                raise ValueError(
                    f"{row.place}: the label {row.label} is called {row.name!r}, but {first!r} in "
                    f"{place.rsplit(', ', 1)[1]}; correct one of them."
                )
        spelled.setdefault(label, _spell(row.label))
        spelled.setdefault(name, _spell(row.name))
    keys = [names[label][0] if label in names else label or name for label, name, _ in rows]
    return [spelled[key] for key in keys]


def _read_workbook(path: Path) -> tuple[str, list[tuple[int, list[str]]]]:
    """Return the name of the first sheet, and its rows: number, cells as text."""
    from openpyxl import load_workbook

    with open(path, "rb") as file:
        if file.read(4) == b"\xd0\xcf\x11\xe0":
            raise ValueError(
                f"{path} is locked with a password, or an old .xls under another name; "
                "save it as .xlsx without a password."
            )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about decorations of the sheet, which are not read
            with contextlib.closing(load_workbook(path, read_only=True, data_only=True)) as book:
                sheet = book.worksheets[0]
                sheet.reset_dimensions()  # what some programs write there is wrong
                rows = enumerate(sheet.iter_rows(values_only=True), start=1)
                rows = [(number, [_read_cell(cell) for cell in cells]) for number, cells in rows]
                return f"{path}, sheet {sheet.title!r}", rows
    except PermissionError:
        raise
    except Exception as error:  # the archive, its XML and openpyxl's classes all complain in ways of their own
        raise ValueError(
            f"{path} is damaged, or no .xlsx file at all ({type(error).__name__}); save the table again as .xlsx."
        ) from error


def _read_cell(value: object) -> str:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return "" if value is None else str(value).strip()


def _read_delimited(path: Path) -> tuple[str, list[tuple[int, list[str]]]]:
    """Return the file's name and its rows: number of the line, cells. Commas, semicolons or tabs part the cells.

    Spaces around a cell are no part of it. A row may have more cells than the first one has if they are empty: some
    spreadsheets write such. Raises UnicodeDecodeError, or ValueError that names the row.
    """
    text = path.read_bytes().decode("utf-8-sig")
    first = next((line for line in text.splitlines() if line.strip()), "")
    delimiter = max(",;\t", key=first.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows, number = [], 1
    try:
        for cells in reader:
            rows.append((number, [cell.strip() for cell in cells]))
            number = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(
            f"{path}, row {number}: this is no table of comma-separated values ({error}); "
            "put texts with quotation marks into quotation marks, and double those inside."
        ) from error
    width = next((len(cells) for _, cells in rows if any(cells)), 0)
    for number, cells in rows:
        if any(cells[width:]):
            raise ValueError(
                f"{path}, row {number}: {len(cells)} values for {width} columns; "
                f"put texts that contain {delimiter!r} into quotation marks, or name all columns in the first row."
            )
    return str(path), rows


def _finish_sentences(sentences: pd.DataFrame, more: Iterable[str] = ()) -> pd.DataFrame:
    """Add label and source, and leave out what was for messages only."""
    sentences = _add_labels(sentences[["text", "class_name", *more]].copy())
    sources = pd.factorize(sentences["text"].map(normalise_text))[0]
    return sentences.assign(source=[f"sentence {k + 1}" for k in sources])


def _shorten(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")


def _find_audio(folder: Path, filenames: pd.Series, csv: Path) -> list[str]:
    """Find each file by its stem, whatever its format, with one listing of the folder and each sub-folder named."""
    if not folder.is_dir():
        raise FileNotFoundError(f"The folder {folder} is missing; unpack the data set again beside {csv.parent}.")
    found = {}
    for parent in dict.fromkeys(os.path.dirname(name) for name in filenames):
        if (folder / parent).is_dir():
            for file in os.listdir(folder / parent):
                stem, end = os.path.splitext(os.path.join(parent, file))
                found[os.path.normpath(stem), end.lower()] = os.path.join(parent, file)
    stems = [os.path.normpath(os.path.splitext(name)[0]) for name in filenames]
    files = [next((found[stem, end] for end in AUDIO_SUFFIXES if (stem, end) in found), None) for stem in stems]
    missing = [name for name, file in zip(filenames, files, strict=True) if file is None]
    if missing:
        raise FileNotFoundError(
            f"{len(missing):,} of the {len(files):,} recordings listed in {csv} are not in {folder} "
            f"({_first(missing)}); unpack the data set again, or take their rows out of the table."
        )
    return [str(folder / file) for file in files]


def _read_clips_csv(csv: Path) -> pd.DataFrame:
    table = _read_csv(csv, ("path", "label"), ("source", "split", "fold"))
    clips = table.rename(columns={"label": "class_name"})
    clips["path"] = [os.path.abspath(csv.parent / path) for path in clips["path"]]
    missing = [path for path in clips["path"] if not os.path.isfile(path)]
    if missing:
        raise FileNotFoundError(
            f"{len(missing):,} of the {len(clips):,} files listed in {csv} do not exist ({_first(missing)}); "
            "paths count from the folder of the CSV."
        )
    again = clips.index[clips["path"].duplicated()]
    if len(again):
        raise ValueError(
            f"{csv}, line {again[0]}: {clips['path'][again[0]]} stands there a second time (rows that repeat a file: "
            f"{len(again):,}); keep one row, and one label, for each file."
        )
    if "fold" in clips:
        clips["fold"] = _read_numbers(clips["fold"], csv)
    if "split" in clips:
        unknown = sorted(set(clips["split"]) - set(SIDES))
        if unknown:
            raise ValueError(f"{csv}: the column split may say train, val or test, not {unknown[0]!r}.")
        empty = [side for side in SIDES if side not in set(clips["split"])]
        if empty:
            raise ValueError(f"{csv}: the column split gives no clip to {' and '.join(empty)}; each side needs some.")
    return clips.reset_index(drop=True)


def _list_class_folders(folder: Path) -> pd.DataFrame:
    """List the recordings in the sub-folders, however deep; say how many files are left out, and of which kind."""
    paths, class_names, ignored = [], [], Counter()
    for entry in sorted(folder.iterdir()):
        for file in sorted(entry.rglob("*")) if entry.is_dir() else [entry]:
            if any(part.startswith(".") for part in file.relative_to(folder).parts):
                ignored["hidden"] += file.is_file()
            elif file.is_dir() and file.is_symlink() and file != entry:
                ignored["linked folder"] += 1
            elif file.is_file() and file.suffix.lower() not in AUDIO_SUFFIXES:
                ignored[file.suffix or "no suffix"] += 1
            elif file.is_file() and file == entry:
                ignored["in no sub-folder"] += 1
            elif file.is_file():
                paths.append(str(file))
                class_names.append(entry.name)
        if entry.is_dir() and not entry.name.startswith(".") and entry.name not in class_names:
            print(f"Ignored the sub-folder {entry.name}: there is no recording in it.")
    if ignored.total():
        kinds = ", ".join(f"{n} {kind}" for kind, n in sorted(ignored.items()) if n)
        print(f"Ignored {ignored.total()} files in {folder.name} that are no recordings of a class: {kinds}.")
    if not paths:
        raise ValueError(
            f"{folder} holds no recordings ({', '.join(AUDIO_SUFFIXES)}) in sub-folders; make one sub-folder a class."
        )
    if {name.casefold() for name in class_names} <= _SIDE_FOLDERS:
        raise ValueError(
            f"{folder} has sub-folders for sides ({', '.join(sorted(set(class_names)))}) and none for classes; "
            "name one of them, or a CSV with the columns path, label, split that lists them all."
        )
    return pd.DataFrame({"path": paths, "class_name": class_names})


def _match_sources(paths: pd.Series, pattern: str) -> list[str]:
    try:
        regex = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"source_pattern={pattern!r} is no regular expression: {error}.") from error
    if regex.groups != 1:
        raise ValueError(f"source_pattern={pattern!r} must have one group in brackets; it has {regex.groups}.")
    sources = []
    for path in paths:
        match = regex.search(Path(path).name)
        if match is None or match[1] is None:
            raise ValueError(f"source_pattern={pattern!r} does not match the file name {Path(path).name!r}.")
        sources.append(match[1])
    return sources


def _read_csv(csv: Path, columns: tuple[str, ...], optional: tuple[str, ...] = ()) -> pd.DataFrame:
    """Read `columns`, and those of the `optional` ones that are there, as text; the index is the number of the line.

    As text, so that a class called "NA" or a recording called "007" keeps its name. Rows without anything are left out.
    """
    try:
        _, rows = _read_delimited(csv)
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{csv} is not a table of comma-separated values: it is no text in UTF-8; save it as 'CSV UTF-8'."
        ) from error
    rows = [(number, cells) for number, cells in rows if any(cells)]
    if not rows:
        raise ValueError(f"{csv} is not a table of comma-separated values: it is empty.")
    (_, header), *rows = rows
    missing = [column for column in columns if column not in header]
    if missing:
        raise ValueError(f"{csv} has no column {_first(missing)}; it needs {', '.join(columns)}.")
    known = [column for column in (*columns, *optional) if column in header]
    twice = [column for column in known if header.count(column) > 1]
    if twice:
        raise ValueError(f"{csv} has two columns called {twice[0]}; rename one of them.")
    if not rows:
        raise ValueError(f"{csv} lists no clips.")
    cells = [cells[: len(header)] + [""] * (len(header) - len(cells)) for _, cells in rows]
    table = pd.DataFrame(cells, columns=header, index=[number for number, _ in rows], dtype=str)[known]
    for column in known:
        empty = table.index[table[column] == ""]
        if len(empty):
            raise ValueError(f"{csv}, line {empty[0]}: {column} is empty.")
    return table


def _read_numbers(values: pd.Series, csv: Path) -> pd.Series:
    wrong = values.index[~values.str.fullmatch(r"\d+")]
    if len(wrong):
        value = values[wrong[0]]
        raise ValueError(f"{csv}, line {wrong[0]}: {values.name} must be a whole number, not {value!r}.")
    return values.astype(int)


def _check_classes(clips: pd.DataFrame, path: Path) -> None:
    if len(clips) == 0:
        raise ValueError(f"{path} holds no clips that can be used; add recordings, or take fewer out.")
    if clips["class_name"].nunique() < 2:
        raise ValueError(f"{path} holds one class only ({clips['class_name'][0]}); a classifier needs two or more.")
    taken = sorted({"path", "text", "predicted"} & set(clips["class_name"]))
    if taken:
        raise ValueError(f"{path}: no class can be called {taken[0]}, as a column of the answers is; rename it.")
    twins = _find_twins(clips["class_name"])
    if twins:
        alike = f"classes may not differ in capitals or spaces only, as {_first(twins)} do"
        raise ValueError(f"{path}: {alike}; give them one name.")


def _find_twins(names: pd.Series) -> list[str]:
    """Return those names that differ from another one only in capitals, spaces or what cannot be seen."""
    unique = pd.Series(sorted(set(names)), dtype=str)
    return unique[unique.map(_look).duplicated(keep=False)].tolist()


def _first(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _add_labels(clips: pd.DataFrame) -> pd.DataFrame:
    """Insert `label`: the place of the class name in alphabetical order."""
    labels = np.unique(clips["class_name"].to_numpy(dtype=str), return_inverse=True)[1]
    clips.insert(1, "label", labels.astype(np.int64))
    return clips


def _download_esc50(url: str, data_dir: Path, n_clips: int = 2000, n_classes: int = 50, n_folds: int = 5) -> Path:
    folder = data_dir / "ESC-50-master"
    verify = functools.partial(_verify_esc50, n_clips=n_clips, n_classes=n_classes, n_folds=n_folds)
    _install(url, folder, data_dir / "ESC-50-master.zip.part", zipfile.is_zipfile, _unpack, verify, "1.5 GB")
    print(f"{folder}: {n_clips:,} clips, {n_clips // n_classes} a class, {n_folds} folds, verified.")
    return folder


def _download_speech_commands(url: str, folder: Path, n_clips: int, sha256: str | None) -> Path:
    def unpack(archive: Path, temporary: Path) -> None:
        _unpack_tar(archive, temporary / folder.name, sha256)

    archive = folder.with_name(folder.name + ".tar.gz.part")
    space = "6 GB" if sha256 else "0.3 GB"
    _install(url, folder, archive, _is_whole_gzip, unpack, lambda new: _verify_speech_commands(new, n_clips), space)
    print(f"{folder}: {n_clips:,} clips, {'checksum, lists and' if sha256 else 'their'} number verified.")
    return folder


def _install(url: str, folder: Path, archive: Path, is_whole, unpack, verify, space: str) -> None:
    """Fetch, unpack and verify beside the final place; `folder` appears only when all of it is right."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    if not is_whole(archive):
        _fetch(url, archive)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as temporary:
        try:
            unpack(archive, Path(temporary))
            verify(Path(temporary) / folder.name)
        except (
            *(zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError),
            *(FileNotFoundError, RuntimeError, ValueError),
        ) as error:
            archive.unlink()
            raise ValueError(f"The archive of {url} cannot be used and was deleted; run it again ({error})") from error
        except OSError as error:
            raise OSError(
                f"The archive {archive} could not be unpacked: {error.strerror or error}; "
                f"free {space} and run it again."
            ) from error
        os.replace(Path(temporary) / folder.name, folder)
    archive.unlink()


def _download_sst2(data_dir: Path) -> Path:
    folder = _find_sst2(data_dir) or data_dir / "SST-2"
    if folder.is_dir():
        print(f"{folder} is already there; remove or rename it to download it again.")
        return folder
    from datasets import load_dataset

    try:
        parts = load_dataset("nyu-mll/glue", "sst2")
    except Exception as error:  # datasets, the hub and the network below them each have errors of their own
        raise ConnectionError(
            f"SST-2 cannot be fetched ({error}); run it again, or put train.tsv and dev.tsv of GLUE's SST-2.zip "
            f"into {folder}."
        ) from error
    data_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".SST-2-", dir=data_dir) as temporary:
        new = Path(temporary) / "SST-2"
        new.mkdir()
        for name, part in (("train", "train"), ("dev", "validation")):
            rows = zip(parts[part]["sentence"], parts[part]["label"], strict=True)
            lines = [f"{text}\t{label}\n" for text, label in rows]
            (new / f"{name}.tsv").write_text("".join(["sentence\tlabel\n", *lines]), "utf-8", newline="\n")
            n_rows = len(_read_tsv(new / f"{name}.tsv"))
            if n_rows != _SST2_ROWS[name]:
                raise ValueError(
                    f"What was fetched as SST-2 has {n_rows:,} rows in {part}, not {_SST2_ROWS[name]:,}; "
                    "it was not kept. Fetch GLUE's SST-2.zip instead."
                )
        os.replace(new, folder)
    print(f"{folder}: {' and '.join(f'{n:,}' for n in _SST2_ROWS.values())} rows, verified.")
    return folder


def _fetch(url: str, archive: Path) -> None:
    """Append to `archive` what is still missing of it; a server that cannot do that sends all of it again."""
    n_bytes = archive.stat().st_size if archive.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={n_bytes}-"} if n_bytes else {})
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            n_bytes = n_bytes if response.status == 206 else 0
            length = response.headers.get("Content-Length")
            total = n_bytes + int(length) if length else None
            with (
                open(archive, "ab" if n_bytes else "wb") as file,
                tqdm(total=total, initial=n_bytes, desc="download", unit="B", unit_scale=True, leave=False) as bar,
            ):
                while chunk := response.read(1 << 18):
                    file.write(chunk)
                    n_bytes += len(chunk)
                    bar.update(len(chunk))
        if total is not None and n_bytes < total:
            raise ConnectionError("the connection was cut")
    except (OSError, http.client.HTTPException) as error:
        if isinstance(error, urllib.error.HTTPError) and error.code == 416:  # more bytes here than there: not this file
            archive.unlink()
        kept = f"{n_bytes / 1e6:,.1f} MB are kept in {archive}" if archive.exists() else "nothing is kept"
        raise ConnectionError(f"The download of {url} stopped ({error}); {kept}. Run it again to go on.") from error


def _unpack(archive: Path, folder: Path) -> None:
    with zipfile.ZipFile(archive) as zipped:
        for member in zipped.infolist():
            name = PureWindowsPath(member.filename)  # knows both kinds of slashes, and drives
            if name.anchor or ".." in name.parts or stat.S_ISLNK(member.external_attr >> 16):
                raise ValueError(f"{member.filename!r} in it would leave the folder")
        zipped.extractall(folder)  # checks every file's checksum


def _is_whole_gzip(archive: Path) -> bool:
    """Tell whether all has arrived: a gzip ends with a checksum of what is in it."""
    if not archive.exists():
        return False
    try:
        with gzip.open(archive) as file:
            while file.read(1 << 22):
                pass
    except (OSError, EOFError, zlib.error):
        return False
    return True


def _unpack_tar(archive: Path, folder: Path, sha256: str | None) -> None:
    if sha256 is not None:
        with open(archive, "rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
                raise ValueError("its SHA-256 checksum is not the published one")
    with gzip.open(archive) as stream:
        with tarfile.open(fileobj=stream) as packed:
            packed.extractall(folder, filter="data")
        while stream.read(1 << 20):  # gzip compares its checksum at the very end, where tarfile does not look
            pass


def _verify_speech_commands(folder: Path, n_clips: int) -> None:
    n_found = _count_speech_commands(folder)
    if n_found != n_clips:
        raise ValueError(f"it should have {n_clips:,} clips, and has {n_found:,}")


def _count_speech_commands(folder: Path) -> int:
    """Count the clips, after every check of lists, names and folders."""
    if _is_test_archive(folder):
        return len(_read_test_archive(folder))
    clips = _read_lists(folder)
    _list_noise(folder)
    return len(clips)


def _verify_esc50(folder: Path, n_clips: int, n_classes: int, n_folds: int) -> None:
    clips, _ = _read_esc50(folder)
    for column, n_values in (("class_name", n_classes), ("fold", n_folds)):
        counts = clips[column].value_counts()
        if len(counts) != n_values or (counts != n_clips // n_values).any():
            expected = f"{n_values} x {n_clips // n_values}"
            raise ValueError(f"it should have {expected} clips by {column}, and has {counts.to_dict()}")
    for path in clips["path"]:
        try:
            n_frames = soundfile.info(path).frames
        except soundfile.LibsndfileError as error:
            raise ValueError(f"{Path(path).name} in it cannot be read as audio") from error
        if n_frames == 0:
            raise ValueError(f"{Path(path).name} in it holds no samples")


def _main() -> None:
    parser = argparse.ArgumentParser(prog="python -m shared_utils.datasets", description="Fetch a data set.")
    parser.add_argument("command", choices=["download"])
    parser.add_argument("name", choices=_DOWNLOADS)
    parser.add_argument("--data-dir", default="data", help="the folder it is put into (default: data)")
    arguments = parser.parse_args()
    try:
        download(arguments.name, arguments.data_dir)
    except (OSError, ValueError) as error:
        raise SystemExit(str(error)) from error


if __name__ == "__main__":
    _main()
