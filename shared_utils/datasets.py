"""One loader a data set, each giving a table of clips; download and verify; a folder of one's own recordings.

From the command line: python -m shared_utils.datasets download esc50
"""

import argparse
import http.client
import os
import re
import stat
import tempfile
import urllib.error
import urllib.request
import zipfile
import zlib
from collections import Counter
from pathlib import Path, PureWindowsPath

import numpy as np
import pandas as pd
import soundfile
import torch
from tqdm.std import tqdm

from shared_utils.device import resolve_path
from shared_utils.splits import SIDES, stratified_group_folds, stratified_group_split

AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".mp3")
_ESC50_URL = "https://github.com/karolpiczak/ESC-50/archive/refs/heads/master.zip"
_ESC50_COLUMNS = ("filename", "fold", "target", "category", "esc10", "src_file")
_DOWNLOAD_COMMAND = "python -m shared_utils.datasets download esc50"


def load_esc50(data_dir: str | os.PathLike = "data", subset: str | None = None, source: str = "auto") -> pd.DataFrame:
    """Return ESC-50 (Piczak 2015), or its ten-class part for subset="esc10", as a table of clips with official folds.

    Columns: path, label (alphabetical), class_name, fold, source (the Freesound recording), target (the official
    number). `data_dir` holds ESC-50-master, or is it. source="auto" takes the real recordings, and where there are
    none the built-in demo data (and says so); "real" and "demo" insist; "download" fetches the real ones if missing.
    `.attrs` says which: data_set, demo. Raises FileNotFoundError or ValueError that names what is missing.
    """
    if subset not in (None, "esc10"):
        raise ValueError(f"subset={subset!r} is unknown; choose None (everything) or 'esc10'.")
    if source not in ("auto", "real", "demo", "download"):
        raise ValueError(f"source={source!r} is unknown; choose auto, real, demo or download.")
    folder = None if source == "demo" else _find_esc50(data_dir)
    if folder is None and source == "download":
        folder = download("esc50", data_dir)
    if folder is None and source == "real":
        raise FileNotFoundError(
            f"There is no ESC-50 in {resolve_path(data_dir)}: put the publisher's folder ESC-50-master there, "
            f"or run `{_DOWNLOAD_COMMAND}`."
        )
    if folder is None and source == "auto" and resolve_path(data_dir) != resolve_path("data"):
        if not resolve_path(data_dir).exists():
            raise FileNotFoundError(
                f"The data folder {resolve_path(data_dir)} does not exist: correct it, "
                "or leave it at 'data' to use the built-in demo data."
            )
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


def load_folder(
    path: str | os.PathLike,
    split: tuple[float, float, float] = (0.7, 0.15, 0.15),
    seed: int = 0,
    source_pattern: str | None = None,
    n_folds: int = 5,
) -> pd.DataFrame:
    """Return your own recordings as a table of clips: path, label, class_name, fold, split, source.

    `path` is a folder with one sub-folder a class, or a CSV with the columns path (relative to the CSV), label and, if
    known, source, split and fold. Clips of one source (recording, speaker) stay on one side: it is what the one group
    of the regular expression `source_pattern` finds in the file's name, or the column `source`, or else each file is
    its own. Without a column `split` the shares `split` (train, val, test) are drawn with `seed`, class by class, and
    without a column `fold` the `n_folds` folds of a cross-validation: fewer, and it says so, where a class has fewer
    sources, but at least three.

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
    _check_classes(clips, path)
    if source_pattern is not None:
        clips["source"] = _match_sources(clips["path"], source_pattern)
    elif "source" not in clips:
        clips["source"] = [Path(os.path.relpath(file, folder)).as_posix() for file in clips["path"]]
    if "split" not in clips:
        clips["split"] = stratified_group_split(clips["class_name"], clips["source"], split, seed)
    if "fold" not in clips:
        clips["fold"] = stratified_group_folds(clips["class_name"], clips["source"], n_folds, seed)
        n_sources = clips.groupby("class_name")["source"].nunique()
        if n_sources.min() < n_folds:
            poorest, n = n_sources.idxmin(), n_sources.min()
            print(f"Made {n} folds instead of {n_folds}: the class {poorest} has only {n} sources.")
    clips = _add_labels(clips)[["path", "label", "class_name", "fold", "split", "source"]]
    clips.attrs = {"data_set": folder.name, "demo": False}
    return clips


def download(name: str, data_dir: str | os.PathLike = "data") -> Path:
    """Fetch a data set from its publisher into `data_dir` and return its folder; "esc50": 600 MB, CC BY-NC 3.0.

    An interrupted download goes on where it stopped. The folder appears under its name only when it is unpacked and
    verified: 2,000 clips, 40 a class, five folds of 400, every file opens. Raises ConnectionError, OSError, ValueError.
    """
    if name != "esc50":
        raise ValueError(f"There is no download called {name!r}; there is: esc50.")
    folder = _find_esc50(data_dir)
    if folder is not None:
        clips, _ = _read_esc50(folder)
        print(f"{folder} is already there ({len(clips):,} clips); remove or rename it to download it again.")
        return folder
    return _download_esc50(_ESC50_URL, resolve_path(data_dir))


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


def _find_esc50(data_dir: str | os.PathLike) -> Path | None:
    data_dir = resolve_path(data_dir)
    folder = data_dir if data_dir.name == "ESC-50-master" else data_dir / "ESC-50-master"
    if (data_dir / "meta" / "esc50.csv").is_file():
        folder = data_dir
    return folder if folder.is_dir() else None


def _load_everyday_sounds(data_dir: str | os.PathLike, source: str) -> pd.DataFrame:
    from shared_utils.demo_data import make_everyday_sounds

    why = f"No ESC-50 in {data_dir!s}: using" if source == "auto" else "Using"
    print(
        f"{why} the built-in demo data (everyday sounds). The real recordings: `{_DOWNLOAD_COMMAND}`, "
        "or name the folder that holds ESC-50-master."
    )
    clips, _ = _read_esc50(make_everyday_sounds(resolve_path("data/demo/everyday_sounds")))
    clips = _add_labels(clips)
    clips.attrs = {"data_set": "everyday sounds", "demo": True}
    return clips


def _read_esc50(folder: Path) -> tuple[pd.DataFrame, np.ndarray]:
    """Return the table of clips without labels, and which rows belong to ESC-10."""
    csv = folder / "meta" / "esc50.csv"
    if not csv.is_file():
        raise FileNotFoundError(
            f"The table {csv} is missing; unpack the data set again, or remove {folder} and run `{_DOWNLOAD_COMMAND}`."
        )
    table = _read_csv(csv, _ESC50_COLUMNS)
    for column in ("fold", "target"):
        table[column] = _read_numbers(table[column], csv)
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


def _find_audio(folder: Path, filenames: pd.Series, csv: Path) -> list[str]:
    """Find each file by its stem, whatever its format, with one listing of the folder."""
    if not folder.is_dir():
        raise FileNotFoundError(f"The folder {folder} is missing; unpack the data set again beside {csv.parent}.")
    found = {(file.stem, file.suffix.lower()): file for file in map(Path, os.listdir(folder))}
    stems = [Path(name).stem for name in filenames]
    files = [next((found[stem, end] for end in AUDIO_SUFFIXES if (stem, end) in found), None) for stem in stems]
    missing = [name for name, file in zip(filenames, files, strict=True) if file is None]
    if missing:
        raise FileNotFoundError(
            f"{len(missing):,} of the {len(files):,} recordings listed in {csv} are not in {folder} "
            f"({_first(missing)}); unpack the data set again, or take their rows out of the table."
        )
    return [str(folder / file) for file in files]


def _read_clips_csv(csv: Path) -> pd.DataFrame:
    table = _read_csv(csv, ("path", "label"))
    for column in [column for column in ("path", "label", "source") if column in table]:
        empty = table.index[table[column].str.strip() == ""]
        if len(empty):
            raise ValueError(f"{csv}, line {empty[0] + 2}: {column} is empty.")
    known = [column for column in ("path", "label", "source", "split", "fold") if column in table]
    clips = table[known].rename(columns={"label": "class_name"})
    clips["path"] = [os.path.abspath(csv.parent / path) for path in clips["path"]]
    missing = [path for path in clips["path"] if not os.path.isfile(path)]
    if missing:
        raise FileNotFoundError(
            f"{len(missing):,} of the {len(clips):,} files listed in {csv} do not exist ({_first(missing)}); "
            "paths count from the folder of the CSV."
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
    return clips


def _list_class_folders(folder: Path) -> pd.DataFrame:
    """List the recordings in the sub-folders, however deep; say how many files are left out, and of which kind."""
    paths, class_names, ignored = [], [], Counter()
    for entry in sorted(folder.iterdir()):
        for file in sorted(entry.rglob("*")) if entry.is_dir() else [entry]:
            if any(part.startswith(".") for part in file.relative_to(folder).parts):
                ignored["hidden"] += file.is_file()
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


def _read_csv(csv: Path, columns: tuple[str, ...]) -> pd.DataFrame:
    """Read a table as text, so that a class called "NA" or a recording called "007" keeps its name."""
    try:
        table = pd.read_csv(csv, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except ValueError as error:  # empty, binary or ragged; pandas' and Unicode's errors are ValueErrors
        raise ValueError(f"{csv} is not a table of comma-separated values: {error}.") from error
    missing = [column for column in columns if column not in table]
    if missing:
        raise ValueError(f"{csv} has no column {_first(missing)}; it needs {', '.join(columns)}.")
    if len(table) == 0:
        raise ValueError(f"{csv} lists no clips.")
    return table


def _read_numbers(values: pd.Series, csv: Path) -> pd.Series:
    wrong = values.index[~values.str.fullmatch(r"\d+")]
    if len(wrong):
        value = values[wrong[0]]
        raise ValueError(f"{csv}, line {wrong[0] + 2}: {values.name} must be a whole number, not {value!r}.")
    return values.astype(int)


def _check_classes(clips: pd.DataFrame, path: Path) -> None:
    if clips["class_name"].nunique() < 2:
        raise ValueError(f"{path} holds one class only ({clips['class_name'][0]}); a classifier needs two or more.")


def _first(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _add_labels(clips: pd.DataFrame) -> pd.DataFrame:
    """Insert `label`: the place of the class name in alphabetical order."""
    labels = np.unique(clips["class_name"].to_numpy(dtype=str), return_inverse=True)[1]
    clips.insert(1, "label", labels.astype(np.int64))
    return clips


def _download_esc50(url: str, data_dir: Path, n_clips: int = 2000, n_classes: int = 50, n_folds: int = 5) -> Path:
    """Fetch, unpack and verify beside the final place; ESC-50-master appears only when all of it is right."""
    data_dir.mkdir(parents=True, exist_ok=True)
    archive = data_dir / "ESC-50-master.zip.part"
    if not zipfile.is_zipfile(archive):  # the directory of a zip stands at its end: with it, all has arrived
        _fetch(url, archive)
    folder = data_dir / "ESC-50-master"
    with tempfile.TemporaryDirectory(prefix=".ESC-50-", dir=data_dir) as temporary:
        try:
            _unpack(archive, Path(temporary))
            _verify_esc50(Path(temporary) / folder.name, n_clips, n_classes, n_folds)
        except (zipfile.BadZipFile, zlib.error, EOFError, FileNotFoundError, RuntimeError, ValueError) as error:
            archive.unlink()
            raise ValueError(f"The archive of {url} cannot be used and was deleted; run it again ({error})") from error
        except OSError as error:
            raise OSError(
                f"The archive {archive} could not be unpacked: {error.strerror or error}; free 1.5 GB and run it again."
            ) from error
        os.replace(Path(temporary) / folder.name, folder)
    archive.unlink()
    print(f"{folder}: {n_clips:,} clips, {n_clips // n_classes} a class, {n_folds} folds, verified.")
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
    parser.add_argument("name", choices=["esc50"])
    parser.add_argument("--data-dir", default="data", help="the folder it is put into (default: data)")
    arguments = parser.parse_args()
    try:
        download(arguments.name, arguments.data_dir)
    except (OSError, ValueError) as error:
        raise SystemExit(str(error)) from error


if __name__ == "__main__":
    _main()
