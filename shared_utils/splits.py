"""Which clips train, validate and test: official folds, grouped splits, and the checks that find leaks."""

import hashlib
import heapq
import os
import re
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from shared_utils.audio import read_audio
from shared_utils.device import resolve_path

SIDES = ("train", "val", "test")
COMMANDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")  # known words of Speech Commands
_LEAST_WORDS = 3  # "bad" inside a long sentence gives nothing away
_WORD = re.compile(r"[^\W_]+")
_GAP_IN_WORD = re.compile(r"\s+(?=n['’]t\b|['’](?:s|re|ve|ll|d|m)\b)")  # SST-2 writes "did n't" and "it 's"
_MOST_TRIED = 300  # divisions that a repair looks at without filling one more gap before it gives up
_MOST_PAIRS = 100_000  # pairs of groups on two sides that are looked at only to come nearer to the shares asked for
_MOST_NEXT = 20  # divisions that one leads to: the best of what may be hundreds of thousands
_TICKS = 10_000_000  # a second in whole numbers: exact for 16 kHz, and rounding cannot make two windows overlap


class LeakError(ValueError):
    """Something is on two sides of a split; `rows` is the table of the clips concerned, with their side and reason."""

    def __init__(self, message: str, rows: pd.DataFrame):
        super().__init__(message)
        self.rows = rows


def split_by_fold(
    clips: pd.DataFrame, test_fold: int, val_fold: int | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the row numbers (train, val, test) for one round of cross-validation over the column `fold`.

    The validation fold is the one after the test fold, the first after the last, unless `val_fold` names another; the
    rest is for training (Piczak 2015 splits ESC-50 like this). Raises ValueError for a fold that does not exist.
    """
    folds = _find_folds(clips)
    if len(folds) < 3:
        raise ValueError(f"Training, validation and test need three folds; these clips have {_join(folds)}.")
    if test_fold not in folds:
        raise ValueError(f"test_fold={test_fold} does not exist; the folds are {_join(folds)}.")
    if val_fold is None:
        val_fold = folds[(folds.index(test_fold) + 1) % len(folds)]
    if val_fold not in folds:
        raise ValueError(f"val_fold={val_fold} does not exist; the folds are {_join(folds)}.")
    if val_fold == test_fold:
        raise ValueError(f"val_fold and test_fold are both {test_fold}; no epoch may be chosen on the test clips.")
    fold = clips["fold"].to_numpy()
    return (
        np.flatnonzero((fold != val_fold) & (fold != test_fold)),
        np.flatnonzero(fold == val_fold),
        np.flatnonzero(fold == test_fold),
    )


def cut_validation(
    clips: pd.DataFrame, test_fold: int, val_share: float = 0.1, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the row numbers (train, val, test) for one round over the column `fold`, validation cut by source.

    All folds but `test_fold` are dealt, class by class, into training and about `val_share` for validation; no source
    is in both. So every round trains on more than `split_by_fold` leaves it, and no whole fold is lost where there are
    few. Raises ValueError for a fold that does not exist, a share outside 0 to 1 and a class with too few sources.
    """
    if not 0 < val_share < 1:
        raise ValueError(f"val_share={val_share} is not possible; give a share between 0 and 1, like 0.1.")
    folds = _find_folds(clips)
    if test_fold not in folds:
        raise ValueError(f"test_fold={test_fold} does not exist; the folds are {_join(folds)}.")
    is_test = clips["fold"].to_numpy() == test_fold
    rest = np.flatnonzero(~is_test)
    labels, sources = (clips[column].to_numpy()[rest] for column in ("class_name", "source"))
    sides = stratified_group_split(labels, sources, (1 - val_share, val_share, 0), seed)
    return rest[sides == "train"], rest[sides == "val"], np.flatnonzero(is_test)


def check_fold_classes(
    clips: pd.DataFrame, test_folds: Iterable[int] | None = None, val_fold: int | None = None
) -> None:
    """Raise ValueError unless training, validation and test of every round hold each class (`label`) of `clips`.

    The rounds are those of `split_by_fold` for each of `test_folds` (None: all folds). The error names folds and
    classes. A table without the column `label` is only split.
    """
    test_folds = _find_folds(clips) if test_folds is None else test_folds
    rounds = {test_fold: split_by_fold(clips, test_fold, val_fold) for test_fold in test_folds}
    fold, named = clips["fold"].to_numpy(), {}  # a fold may be for validation in one round and for test in another
    for test_fold, sides in rounds.items():
        for rows in sides:
            numbers = sorted(set(fold[rows]))
            which = f"fold{'s' * (len(numbers) > 1)} {_join(numbers)}"
            named[f"training for test fold {test_fold} ({which})" if rows is sides[0] else which] = rows
    fewer = "make fewer folds, " if len(_find_folds(clips)) > 3 else ""  # three are needed
    check_classes(clips, named, f"deal the clips of these classes to all folds, {fewer}or leave the classes out")


def check_classes(clips: pd.DataFrame, sides: dict[str, np.ndarray], remedy: str) -> None:
    """Raise ValueError unless each of `sides` (name -> row numbers of `clips`) holds every class (`label`).

    The error names sides and classes, and ends with `remedy`. A table without the column `label` has no classes.
    """
    missing = describe_missing_classes(clips, sides)
    if missing:
        raise ValueError(f"{missing}. Training, validation and test need every class: {remedy}.")


def describe_missing_classes(clips: pd.DataFrame, sides: dict[str, np.ndarray]) -> str:
    """Say which class (`label`) is missing on which of `sides` (name -> row numbers of `clips`), "" where none is.

    Five are named, and how many more there are, without a full stop. A table without the column `label` has none.
    """
    if "label" not in clips:
        return ""
    labels = clips["label"].to_numpy()
    names = clips["class_name" if "class_name" in clips else "label"].groupby(labels).first()
    found = [
        f"{side} has no clip of class {str(name)!r}"
        for side, rows in sides.items()
        for name in names[~names.index.isin(labels[rows])]
    ]
    more = f"; and {len(found) - 5} more" if len(found) > 5 else ""
    first = "; ".join(found[:5])
    return f"{first[:1].upper()}{first[1:]}{more}"


def _find_folds(clips: pd.DataFrame) -> list:
    if "fold" not in clips:
        raise ValueError("These clips have no column 'fold'; use their column 'split', or stratified_group_split.")
    return sorted(set(clips["fold"]))


def stratified_group_split(
    labels: np.ndarray, groups: np.ndarray, fractions: tuple[float, float, float] = (0.7, 0.15, 0.15), seed: int = 0
) -> np.ndarray:
    """Give every clip a side, "train", "val" or "test": (n_clips,) str; all clips of a group get the same.

    Where groups hold one class each, every class is on every side. Where they hold several, as those of speakers do,
    there may be no such division; `describe_missing_classes` says what the nearest one that was found lacks.
    Raises ValueError if a class has fewer groups than there are sides, and for fractions that do not add up to 1.
    """
    fractions = np.asarray(fractions, dtype=float)
    if fractions.shape != (3,) or (fractions < 0).any() or abs(fractions.sum() - 1) > 1e-6:
        raise ValueError(f"A split is three shares that add up to 1, like (0.7, 0.15, 0.15), not {fractions.tolist()}.")
    _count_sources(labels, groups, np.count_nonzero(fractions), "side of the split")
    return np.array(SIDES)[_assign_groups(labels, groups, fractions, seed)]


def stratified_group_folds(labels: np.ndarray, groups: np.ndarray, n_folds: int = 5, seed: int = 0) -> np.ndarray:
    """Give every clip a fold, 1 to `n_folds`: (n_clips,) int; all clips of a group get the same.

    The folds share each class as evenly as the groups allow. There are fewer where a class has fewer groups: as many
    as that class has. Where groups hold several classes, a fold may have to lack one, as in `stratified_group_split`;
    `check_fold_classes` says so. Raises ValueError for less than three folds, and if a class has fewer than three
    groups.
    """
    if n_folds < 3:
        raise ValueError(f"n_folds={n_folds} is too few: training, validation and test need three folds or more.")
    n_folds = min(n_folds, _count_sources(labels, groups, 3, "fold of a cross-validation"))
    return 1 + _assign_groups(labels, groups, np.full(n_folds, 1 / n_folds), seed)


def speaker_hash_side(filename: str, val_percent: float = 10, test_percent: float = 10) -> str:
    """Return the side, "train", "val" or "test", that Speech Commands gives a file `<speaker>_nohash_<n>.wav`.

    The speaker's SHA-1 decides (Warden 2018, "Speech Commands"), so that a speaker stays on one side, whatever is
    recorded later. Raises ValueError for a name without `_nohash_`.
    """
    speaker, mark, _ = os.path.basename(filename).partition("_nohash_")
    if not mark:
        raise ValueError(f"{filename} has no '_nohash_' in its name, so its speaker is not known; rename or remove it.")
    percent = int(hashlib.sha1(speaker.encode()).hexdigest(), 16) % 2**27 * (100 / (2**27 - 1))
    if percent < val_percent:
        return "val"
    return "test" if percent < val_percent + test_percent else "train"


def cut_in_time(
    n_samples: int, sample_rate: int, shares: tuple[float, float, float] = (0.8, 0.1, 0.1), guard: float = 1.0
) -> dict[str, tuple[int, int]]:
    """Return each side's stretch of one long recording: {"train": (first, last), "val": ..., "test": ...}.

    In samples, `last` not included. Between two stretches lie `guard` seconds that no side gets; the rest is dealt by
    `shares`. Raises ValueError if a stretch would be shorter than a second, and for shares that do not add up to 1.
    """
    if len(shares) != 3 or abs(sum(shares) - 1) > 1e-6:
        raise ValueError(f"A cut needs three shares that add up to 1, like (0.8, 0.1, 0.1), not {tuple(shares)}.")
    gap = round(guard * sample_rate)
    usable = n_samples - 2 * gap
    bounds = np.rint(np.cumsum([0, *shares]) * usable).astype(int)
    if np.diff(bounds).min() < sample_rate:
        raise ValueError(
            f"A recording of {n_samples / sample_rate:.1f} s is too short to cut into stretches of {tuple(shares)} "
            f"with {guard:g} s between them: each needs at least one second."
        )
    return {side: (int(bounds[k]) + k * gap, int(bounds[k + 1]) + k * gap) for k, side in enumerate(SIDES)}


def shared_samples(clips: pd.DataFrame, sides: np.ndarray, seconds: float = 1.0) -> np.ndarray:
    """Return which share of each clip's samples also lies in a window of the same file on another side: (n_clips,).

    A clip is the window of `seconds` that begins `clip_start` seconds into the file `path`. Crops that were saved as
    files of their own have the columns `noise` and `noise_start` instead: the file that they came from, and where.
    `sides` names a side for each clip. Clips without a start (NaN) share nothing: 0. Raises ValueError where no
    column says where clips begin.
    """
    if len(sides) != len(clips):
        raise ValueError(f"{len(sides)} sides do not belong to {len(clips)} clips; give one for each clip.")
    if not {"noise", "noise_start"} <= set(clips) and not {"path", "clip_start"} <= set(clips):
        raise ValueError("Where do these clips begin? They need path and clip_start, or noise and noise_start.")
    files, starts = _find_windows(clips)
    return _share_samples(files, starts, np.asarray(sides), round(seconds * _TICKS))


def _share_samples(files: np.ndarray, starts: np.ndarray, sides: np.ndarray, length: int) -> np.ndarray:
    rows = np.flatnonzero(np.isfinite(starts))
    shares = np.zeros(len(starts))
    if len(rows) == 0:
        return shares
    ticks = np.rint(starts[rows] * _TICKS).astype(np.int64)
    file_of = np.unique(files[rows].astype(str), return_inverse=True)[1]
    ticks += file_of * (ticks.max() + 2 * length)  # all files one behind the other, too far apart to touch
    names = sides[rows]
    for side in pd.unique(names):
        here = names == side
        others = np.sort(ticks[~here])
        if len(others):
            covered = _measure_cover(others, length, ticks[here] + length) - _measure_cover(others, length, ticks[here])
            shares[rows[here]] = covered / length
    return shares


def _find_windows(clips: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Return the file that each clip is a window of, and where it begins in s (NaN: it is no window)."""
    if "noise" in clips and "noise_start" in clips:
        return clips["noise"].to_numpy(dtype=object), clips["noise_start"].to_numpy(dtype=float)
    if "path" in clips and "clip_start" in clips:
        return clips["path"].to_numpy(dtype=object), clips["clip_start"].to_numpy(dtype=float)
    return np.full(len(clips), "", dtype=object), np.full(len(clips), np.nan)


def _measure_cover(starts: np.ndarray, length: int, until: np.ndarray) -> np.ndarray:
    """Return how much of the time before `until` is covered by windows of equal length with sorted `starts`."""
    before = np.concatenate([[0], np.cumsum(np.minimum(length, np.diff(starts)))])  # by all windows but the last
    last = np.searchsorted(starts, until) - 1
    return np.where(last < 0, 0, before[last] + np.minimum(length, until - starts[last]))


def _count_sources(labels: np.ndarray, groups: np.ndarray, n_needed: int, what: str) -> int:
    """Return the number of groups of the class that has the fewest."""
    n_sources = pd.Series(np.asarray(groups)).groupby(np.asarray(labels)).nunique(dropna=False)
    poor = [f"{name} ({n})" for name, n in n_sources.items() if n < n_needed]
    if poor:
        raise ValueError(
            f"Each class needs at least {n_needed} sources (recordings or speakers), one for each {what}; "
            f"too few in: {', '.join(poor)}. Add recordings, or leave the class out."
        )
    return n_sources.min()


def _assign_groups(labels: np.ndarray, groups: np.ndarray, fractions: np.ndarray, seed: int) -> np.ndarray:
    """Return the number of the side of each clip: (n_clips,) int, 0 to len(fractions) - 1.

    Greedy: the largest groups first, in random order among equals, each to the side that brings the shares of its
    classes closest to `fractions`. Where that leaves a side without a class, `_fill_gaps` moves groups.
    """
    sides = np.flatnonzero(fractions)
    classes, class_of = np.unique(np.asarray(labels), return_inverse=True)
    names, group_of = np.unique(np.asarray(groups), return_inverse=True)
    counts = np.zeros((len(names), len(classes)))  # clips of each class in each group
    np.add.at(counts, (group_of, class_of), 1)

    n_left = (counts > 0).sum(axis=0)  # groups of each class that have no side yet
    order = np.random.default_rng(seed).permutation(len(names))
    order = order[np.argsort(-counts[order].sum(axis=1), kind="stable")]
    shares = counts / counts.sum(axis=0)
    filled = np.zeros((len(fractions), len(classes)))  # share of each class that each side has so far
    side_of = np.zeros(len(names), dtype=int)
    for group in order:
        present = counts[group] > 0
        lacking = filled[sides][:, present] == 0  # (sides, classes of this group)
        tight = lacking.sum(axis=0) >= n_left[present]
        urgent = lacking[:, tight].any(axis=1)
        candidates = sides[urgent] if urgent.any() else sides
        # Growth of the squared distance to the fractions, summed over classes, if the group went to each candidate.
        gap = filled[candidates] - fractions[candidates, None]
        growth = (shares[group] * (shares[group] + 2 * gap)).sum(axis=1)
        side = candidates[growth.argmin()]
        side_of[group] = side
        filled[side] += shares[group]
        n_left -= present
    if (filled[sides] == 0).any():
        side_of = sides[_fill_gaps(np.searchsorted(sides, side_of), shares, fractions[sides])]
    return side_of[group_of]


def _fill_gaps(side_of: np.ndarray, shares: np.ndarray, fractions: np.ndarray) -> np.ndarray:
    """Return a division near `side_of` (n_groups,) where as few classes as possible are missing on a side: (n_groups,).

    `shares` (n_groups, n_classes) is the share of each class that a group holds. Best-first search (Pearl 1984,
    "Heuristics"): from the division with the fewest gaps, of these the one nearest to `fractions`, to those that fill
    one of its gaps and open no more. Then groups change places as long as that brings the shares nearer to `fractions`
    and opens no gap. Without chance: the same division always leads to the same one.
    """
    n_gaps = sum((shares[side_of == side].sum(axis=0) == 0).sum() for side in range(len(fractions)))
    waiting, seen, n_found, n_tried = [(n_gaps, 0.0, 0, side_of.astype(np.int16))], set(), 0, 0
    best = waiting[0]
    while waiting and n_tried < _MOST_TRIED:
        now = heapq.heappop(waiting)
        n_gaps, distance, _, side_of = now
        if side_of.tobytes() in seen:
            continue
        seen.add(side_of.tobytes())
        n_tried = 1 if n_gaps < best[0] else n_tried + 1
        best = min(best, now)  # the third entry is a number of its own, so that divisions are never compared
        if n_gaps == 0:
            break
        for change, growth, *places in _list_exchanges(side_of, shares, fractions, empty_only=True):
            n_found += 1
            after = _exchange(side_of, *places)
            heapq.heappush(waiting, (n_gaps + int(change), distance + growth, n_found, after))
    side_of = best[-1]
    for _ in range(_MOST_TRIED):
        found = _list_exchanges(side_of, shares, fractions, empty_only=False)
        if len(found) == 0 or tuple(found[0, :2]) >= (0, 0):
            break
        side_of = _exchange(side_of, *found[0, 2:])
    return side_of.astype(int)


def _exchange(side_of: np.ndarray, comer: float, leaver: float, side: float) -> np.ndarray:
    after = np.append(side_of, 0)  # the last one is the leaver that is nobody
    after[int(leaver)], after[int(comer)] = side_of[int(comer)], side
    return after[:-1]


def _list_exchanges(side_of: np.ndarray, shares: np.ndarray, fractions: np.ndarray, empty_only: bool) -> np.ndarray:
    """Return exchanges of two groups that add no gap to the others: (at most _MOST_NEXT, 5), the best first.

    Columns: change of the number of gaps, growth of the squared distance to `fractions`, the group that comes to a
    side, the one that leaves it for the other's (n_groups: none does), and that side. `empty_only`: those alone where
    the group that comes fills a gap.
    """
    shares = np.concatenate([shares, np.zeros((1, shares.shape[1]))])  # the last group is nobody
    holds = (shares > 0).astype(float)
    member = np.eye(len(fractions))[side_of].T  # (sides, groups)
    n_groups = member @ holds[:-1]  # of each class on each side
    gap = member @ shares[:-1] - fractions[:, None]
    empty, single = (n_groups == 0).astype(float), (n_groups == 1).astype(float)
    found = [np.empty((0, 5))]
    for side in np.flatnonzero(empty.any(axis=1)) if empty_only else range(len(fractions)):
        comers = np.flatnonzero((side_of != side) & ((holds[:-1] @ empty[side] > 0) | (not empty_only)))
        leavers = np.append(np.flatnonzero(side_of == side), len(side_of))
        if not empty_only and len(comers) * len(leavers) > _MOST_PAIRS:
            leavers = leavers[-1:]  # of so many groups, ones that move alone come near enough
        home, in_, out = side_of[comers], holds[comers], holds[leavers]
        opened = (in_ * single[home]) @ (1 - out).T + (1 - in_) @ (out * single[side]).T  # (comers, leavers)
        change = opened - (in_ @ empty[side])[:, None] - empty[home] @ out.T
        in_, out, gain = shares[comers], shares[leavers], gap[side] - gap[home]
        growth = (in_ * (in_ + gain)).sum(axis=1)[:, None] - (gain + 2 * in_) @ out.T + (out**2).sum(axis=1)
        row, column = np.nonzero(change <= 0)
        parts = change[row, column], 2 * growth[row, column], comers[row], leavers[column], np.full(len(row), side)
        found.append(np.stack(parts, axis=1))
    found = np.concatenate(found)
    found[:, 1] = found[:, 1].round(9)  # the last digits depend on the machine
    return found[np.lexsort(found[:, 1::-1].T)[:_MOST_NEXT]]


def audit(
    clips: pd.DataFrame,
    waveforms: np.ndarray | None = None,
    by: str | None = None,
    sides: np.ndarray | tuple[np.ndarray, np.ndarray, np.ndarray] | None = None,
    official: str | None = None,
) -> pd.DataFrame:
    """Prove that no recording and no identical audio is on two sides; return the number of clips a class and side.

    The sides are the column `by`, or `sides`: a name for each clip, or the three index arrays of `split_by_fold`.
    Without either they are "split" or "fold"; where there are both, both are checked, and "split" is counted.
    Identical audio means equal rows of `waveforms` (n_clips, samples), as decoded; without them, equal files. Silent
    clips (all zeros) equal each other and are not counted as identical. A table without waveforms and without the
    column path is checked for sources alone, and the verdict says so. Where clips are windows of a second of longer
    files (`shared_samples` says how), two of them on two sides may not share a sample.
    `.attrs["verdict"]` says the result in one sentence. Raises LeakError with the offending rows.

    `official` names the column with the publisher's own folds, where these are not clean. A source, or identical
    audio, on two sides is then reported and no error, as long as one of the two sides is made of whole folds, as every
    test fold is; what a split of one's own tears apart still is one. The verdict names these sources, and
    `.attrs["in_two_folds"]` lists them all.
    """
    if "source" not in clips or "class_name" not in clips:
        raise ValueError("The audit needs the columns 'source' and 'class_name'; load_esc50 and load_folder make them.")
    if waveforms is not None and len(waveforms) != len(clips):
        raise ValueError(f"{len(waveforms)} waveforms do not belong to {len(clips)} clips; decode this very table.")
    placements = _place_clips(clips, by, sides)
    if official is not None and official not in clips:
        raise ValueError(f"official={official!r} is no column of these clips; they have {_join(clips.columns)}.")
    if waveforms is not None:
        content = [_hash_waveform(row) for row in np.asarray(waveforms)]
    else:
        content = _hash_clips(clips) if "path" in clips else [None] * len(clips)
    files, starts = _find_windows(clips)
    published = {}  # the sources and the audio that official folds tear apart
    for what, placed in placements.items():
        placed["source"] = clips["source"].to_numpy()[placed["row"]]
        placed["content"] = np.array(content, dtype=object)[placed["row"]]
        placed["official_side"] = -1
        if official is not None:
            fold = clips[official].to_numpy()[placed["row"]]
            is_whole = placed["side"].groupby(fold).transform("nunique") == 1
            is_official = is_whole.groupby(placed["side"]).transform("all")
            placed["official_side"] = np.where(is_official, pd.factorize(placed["side"])[0], -1)
        all_audio = _find_torn(placed, ["content"])
        if waveforms is None:
            for key, twins in placed[all_audio].groupby("content"):
                if not read_audio(clips["path"].iloc[twins["row"].iloc[0]])[0].any():
                    all_audio &= placed["content"] != key
        same_source = _find_torn(placed, ["source", "official_side"])
        same_audio = all_audio & _find_torn(placed, ["content", "official_side"])
        in_two = _find_torn(placed, ["source"]) & ~same_source, all_audio & ~same_audio
        published[what] = placed[in_two[0]]["source"], placed[in_two[1]]["content"]
        windows = files[placed["row"]], starts[placed["row"]]
        placed["window"] = windows[0]
        same_samples = _share_samples(*windows, placed["side"].to_numpy(), _TICKS) > 0
        reasons = [("same source", same_source), ("identical audio", same_audio), ("shared samples", same_samples)]
        placed["reason"] = ""
        for reason, found in reasons:
            joint = np.where(placed["reason"] == "", "", " and ")
            placed["reason"] += np.where(found, joint + reason, "")
        if placed["reason"].any():
            raise _make_leak_error(clips, placed, what)

    what, placed = next(iter(placements.items()))
    counts = pd.crosstab(clips["class_name"].to_numpy()[placed["row"]], placed["side"].to_numpy())
    counts = counts.rename_axis(index="class_name", columns=what)
    if set(counts.columns) <= set(SIDES):
        counts = counts[[side for side in SIDES if side in counts]]
    n_sources, n_windows = placed["source"].nunique(), np.isfinite(starts[placed["row"]]).sum()
    where = " and ".join(f"{placed['side'].nunique()} sides ({what})" for what, placed in placements.items())
    compared = "no source and no identical audio is" if waveforms is not None or "path" in clips else "no source is"
    found, twins = published[what]
    counts.attrs["verdict"] = (
        f"No leak: {len(placed):,} clips from {n_sources:,} sources on {where}; {compared} on two of them"
        + (_describe_official(found, twins, len(placed)) if len(found) + len(twins) else "")
        + (
            f", and none of the {n_windows:,} windows of longer files shares a sample with another side"
            if n_windows
            else ""
        )
        + (". The audio was not compared." if compared == "no source is" else ".")
    )
    if official is not None:
        counts.attrs["in_two_folds"] = sorted(found.astype(str).unique())
    return counts


def _find_torn(placed: pd.DataFrame, keys: list[str]) -> pd.Series:
    return placed.groupby(keys)["side"].transform("nunique") > 1


def _describe_official(sources: pd.Series, twins: pd.Series, n_clips: int) -> str:
    """Say what stands in two official folds, given the source and the content of each clip that does."""
    names = sorted(sources.astype(str).unique())
    parts = []
    if names:
        first = _join(names[:5]) + (", ..." if len(names) > 5 else "")
        parts.append(f"{len(names)} sources ({first}; {len(sources)} clips, {len(sources) / n_clips:.1%})")
    if len(twins):
        parts.append(f"{twins.nunique()} pieces of identical audio ({len(twins)} clips)")
    return f", but for {' and '.join(parts)} that the official folds themselves keep on two"


def _place_clips(clips: pd.DataFrame, by: str | None, sides) -> dict[str, pd.DataFrame]:
    """Return row numbers and their side for each thing to check; a row on two sides stands there twice."""
    rows = np.arange(len(clips))
    if sides is None:
        columns = [by] if by else [column for column in ("split", "fold") if column in clips] or ["fold"]
        if columns[0] not in clips:
            raise ValueError(
                f"These clips have no column {columns[0]!r} to audit; their columns are {_join(clips.columns)}."
            )
        return {column: pd.DataFrame({"row": rows, "side": clips[column].to_numpy()}) for column in columns}
    if isinstance(sides, tuple):
        rows = [np.asarray(side) for side in sides]
        if len(rows) != 3:
            raise ValueError(f"Three index arrays (train, val, test) make a split, not {len(rows)}.")
        placed = pd.DataFrame({"row": np.concatenate(rows), "side": np.repeat(SIDES, [len(r) for r in rows])})
        return {"split": placed}
    if len(sides) != len(clips):
        raise ValueError(f"{len(sides)} sides do not belong to {len(clips)} clips; give one for each clip.")
    return {"side": pd.DataFrame({"row": rows, "side": np.asarray(sides)})}


def _make_leak_error(clips: pd.DataFrame, placed: pd.DataFrame, what: str) -> LeakError:
    found = placed[placed["reason"] != ""]
    twin = found["source"].where(found["reason"] == "same source", found["content"])  # twins next to each other
    twin = twin.mask(found["reason"] == "shared samples", found["window"])
    found = found.iloc[np.lexsort((found["row"], twin.astype(str)))]
    rows = clips.iloc[found["row"]].assign(side=found["side"].to_numpy(), reason=found["reason"].to_numpy())
    rows = rows.reset_index(drop=True)
    n_sources = found.loc[found["reason"].str.contains("source"), "source"].nunique()
    n_twins = found.loc[found["reason"].str.contains("audio"), "content"].nunique()
    n_windows = found["reason"].str.contains("samples").sum()
    windows = f", and {n_windows} windows of longer files that share samples," if n_windows else ","
    first = "\n".join(
        f"  {what} {row['side']}: {Path(row.get('path', '')).name or 'clip'} (source {row['source']}: {row['reason']})"
        for _, row in rows.head(6).iterrows()
    )
    return LeakError(
        f"{n_sources} sources, and {n_twins} pieces of identical audio{windows} are on more than one side "
        f"({len(rows)} clips): keep each on one side, or leave its twins out. The first:\n{first}",
        rows,
    )


def _hash_clips(clips: pd.DataFrame) -> list:
    """Hash each clip's file; of a window the file, its start and its volume, so that only the same window is equal."""
    hashes = {path: _hash_file(path) for path in dict.fromkeys(clips["path"])}
    content = [hashes[path] for path in clips["path"]]
    if "clip_start" not in clips:
        return content
    volumes = clips["clip_volume"] if "clip_volume" in clips else np.ones(len(clips))
    windows = zip(content, clips["clip_start"], volumes, strict=True)
    return [file if np.isnan(start) else f"{file} {start} {volume}" for file, start, volume in windows]


def _hash_file(path: str) -> str:
    with open(resolve_path(path), "rb") as file:
        return hashlib.file_digest(file, "sha1").hexdigest()


def _hash_waveform(waveform: np.ndarray) -> str | None:
    return hashlib.sha1(np.ascontiguousarray(waveform)).hexdigest() if waveform.any() else None


def find_shared_sources(clips_a: pd.DataFrame, clips_b: pd.DataFrame) -> pd.DataFrame:
    """Return the sources that stand in two tables of clips, which may be of two data sets.

    ESC-50's `src_file` and UrbanSound8K's `fsID` are both numbers of Freesound, and some recordings are in both sets:
    a model trained on one must not be tested with them on the other. Sources are compared as text, whole numbers
    without regard to their type (100032, 100032.0 and "100032" are equal); missing ones equal nothing.
    Columns: source (str), n_a and n_b (clips), classes_a and classes_b (names, comma-separated); sorted by source.
    """
    counts = []
    for end, clips in (("a", clips_a), ("b", clips_b)):
        if not {"source", "class_name"} <= set(clips):
            raise ValueError(f"Table {end} needs the columns 'source' and 'class_name'; it has {_join(clips.columns)}.")
        found = pd.DataFrame({"source": _name_sources(clips["source"]), "name": clips["class_name"].to_numpy()})
        names = found.dropna().groupby("source")["name"]
        classes = names.agg(lambda values: _join(sorted(set(values))))
        counts.append(pd.DataFrame({f"n_{end}": names.size(), f"classes_{end}": classes}))
    shared = counts[0].join(counts[1], how="inner").sort_index().rename_axis("source").reset_index()
    return shared[["source", "n_a", "n_b", "classes_a", "classes_b"]]


def _name_sources(sources: Sequence) -> np.ndarray:
    """Return each source as text, None where it is missing."""
    known = pd.Series(list(sources), dtype=object).dropna()
    whole = known.map(lambda value: isinstance(value, float) and value.is_integer())
    names = known.where(~whole, known[whole].map(int)).astype(str).str.strip()
    return names.reindex(range(len(sources))).to_numpy(dtype=object)


def sibling_share(sources: Sequence, is_test: Sequence[bool]) -> float:
    """Return the share of test clips of whose source (n_clips,) there is a clip in training: 0 without a leak.

    `is_test` (n_clips,) is true for the clips of the test; all others are training. Raises ValueError where one of
    the two is empty.
    """
    sources, is_test = np.asarray(sources), np.asarray(is_test, dtype=bool)
    if sources.shape != is_test.shape or sources.ndim != 1:
        raise ValueError(f"{sources.shape} sources and {is_test.shape} sides do not belong together.")
    if is_test.all() or not is_test.any():
        raise ValueError(f"Of {len(is_test)} clips {is_test.sum()} are for the test; give test and training some each.")
    group_of = pd.factorize(sources, use_na_sentinel=False)[0]
    return float(np.isin(group_of[is_test], group_of[~is_test]).mean())


def _join(values) -> str:
    return ", ".join(str(value) for value in values)


def find_text_overlap(train_texts: Sequence[str], test_texts: Sequence[str]) -> pd.DataFrame:
    """Return the pairs of a training and a test sentence that are equal, or of which one lies inside the other.

    Only words count (`normalise_text`). Equal sentences are found at any length; one lies inside another where all of
    its words, three or more, follow each other there. Columns: overlap ("equal", "test in train" or "train in test"),
    train_row and test_row (places in the two sequences), train_text, test_text; in the order of the test sentences.
    """
    train_texts, test_texts = list(train_texts), list(test_texts)
    train = [normalise_text(text).split(" ") for text in train_texts]
    test = [normalise_text(text).split(" ") for text in test_texts]
    rows_of = {}
    for row, words in enumerate(train):
        rows_of.setdefault(tuple(words), []).append(row)
    pairs = {(row, place): "equal" for place, words in enumerate(test) for row in rows_of.get(tuple(words), ())}
    for place, row in _find_contained(test, train):
        pairs.setdefault((row, place), "test in train")
    for row, place in _find_contained(train, test):
        pairs.setdefault((row, place), "train in test")
    order = sorted(pairs, key=lambda pair: pair[::-1])
    return pd.DataFrame(
        {
            "overlap": pd.Series([pairs[pair] for pair in order], dtype=str),
            "train_row": np.array([row for row, _ in order], dtype=np.int64),
            "test_row": np.array([place for _, place in order], dtype=np.int64),
            "train_text": pd.Series([train_texts[row] for row, _ in order], dtype=str),
            "test_text": pd.Series([test_texts[place] for _, place in order], dtype=str),
        }
    )


def normalise_text(text: str) -> str:
    """Return the words of a sentence in lower case, one space apart, without punctuation and apostrophes.

    "It's", "it 's" and "its" are the same word, and so are "didn't" and "did n't". A text without letters and digits,
    such as an emoji, stays as it is but for its spaces.
    """
    text = unicodedata.normalize("NFKC", text).casefold()
    words = _WORD.findall(_GAP_IN_WORD.sub("", text).replace("'", "").replace("’", ""))
    return " ".join(words or ["".join(text.split())])


def _find_contained(parts: list[list[str]], wholes: list[list[str]]) -> Iterable[tuple[int, int]]:
    """Yield (part, whole) for every part that stands inside a whole; what it begins with finds it without a search."""
    beginning = {}
    for row, words in enumerate(parts):
        if len(words) >= _LEAST_WORDS:
            beginning.setdefault(tuple(words[:_LEAST_WORDS]), []).append(row)
    for place, whole in enumerate(wholes):
        for first, start in enumerate(zip(*(whole[k:] for k in range(_LEAST_WORDS)), strict=False)):
            for row in beginning.get(start, ()):
                if whole[first : first + len(parts[row])] == parts[row]:
                    yield row, place
