"""Numbers about predictions: report, AUC, calibration, an interval that resamples recordings, paired comparisons.

`targets` are class indices (n,), `probabilities` (n, classes) with rows that sum to 1, as `training.evaluate` returns.
"""

import math

import numpy as np
import pandas as pd

_NEAR = 1e-6  # seconds: times such as 0.3 have no exact form


def accuracy(targets: np.ndarray, probabilities: np.ndarray) -> float:
    """Return the share of clips whose most probable class is the target, 0 to 1."""
    targets, probabilities = _check(targets, probabilities)
    return float((probabilities.argmax(1) == targets).mean())


def confusion_matrix(targets: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Return counts (classes, classes): row = true class, column = most probable class."""
    targets, probabilities = _check(targets, probabilities)
    n_classes = probabilities.shape[1]
    cells = targets * n_classes + probabilities.argmax(1)
    return np.bincount(cells, minlength=n_classes**2).reshape(n_classes, n_classes)


def report(targets: np.ndarray, probabilities: np.ndarray, class_names: list[str]) -> pd.DataFrame:
    """Return precision, recall, f1 and support: a row a class, then `accuracy` and `macro average`.

    A ratio whose denominator is zero (a class that is never predicted, or never occurs) counts as 0, as in
    scikit-learn. Where every clip has one class, precision, recall and F1 pooled over all clips are all the accuracy.
    """
    counts = confusion_matrix(targets, probabilities)
    _check_names(class_names, len(counts))
    right, predicted, support = counts.diagonal(), counts.sum(0), counts.sum(1)
    table = pd.DataFrame(
        {
            "precision": right / np.maximum(predicted, 1),
            "recall": right / np.maximum(support, 1),
            "f1": 2 * right / np.maximum(predicted + support, 1),
            "support": support,
        },
        index=pd.Index(class_names, name="class"),
    )
    macro = table[["precision", "recall", "f1"]].mean()
    table.loc["accuracy"] = [right.sum() / counts.sum()] * 3 + [counts.sum()]
    table.loc["macro average"] = [*macro, counts.sum()]
    return table.astype({"support": int})


def auc_per_class(targets: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Return the area under each class's ROC curve, one class against the rest (classes,).

    A class that is absent from the targets (or that all of them have) has no ROC curve: NaN.
    """
    from sklearn.metrics import roc_auc_score

    targets, probabilities = _check(targets, probabilities)
    areas = np.full(probabilities.shape[1], np.nan)
    for label in range(probabilities.shape[1]):
        is_class = targets == label
        if is_class.any() and not is_class.all():
            areas[label] = roc_auc_score(is_class, probabilities[:, label])
    return areas


def macro_auc(targets: np.ndarray, probabilities: np.ndarray) -> float:
    """Return the mean of `auc_per_class` over the classes that occur in the targets.

    Raises ValueError if only one class occurs: nothing is left to tell it from.
    """
    areas = auc_per_class(targets, probabilities)
    if np.isnan(areas).all():
        raise ValueError("AUC needs clips of at least two classes, but all targets are the same class.")
    return float(np.nanmean(areas))


def expected_calibration_error(targets: np.ndarray, probabilities: np.ndarray, n_bins: int = 15) -> float:
    """Return the mean gap between confidence and accuracy, 0 to 1, over `n_bins` equal bins of confidence.

    Each bin ((m - 1) / n_bins, m / n_bins] weighs as many clips as fall in it. Guo et al., On Calibration of Modern
    Neural Networks (2017).
    """
    targets, probabilities = _check(targets, probabilities)
    confidence = probabilities.max(1)
    gap = (probabilities.argmax(1) == targets) - confidence
    bins = np.digitize(confidence, np.arange(1, n_bins) / n_bins, right=True)
    return float(np.abs(np.bincount(bins, weights=gap)).sum() / len(gap))


def bootstrap_interval(
    values: np.ndarray, groups: np.ndarray, level: float = 0.95, n_resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Return the (low, high) percentile bootstrap interval of the mean of `values`, resampling whole groups.

    Clips of one recording or speaker succeed and fail together, so they are drawn together: `groups` (n,) names the
    recording of each value (n,), which may be right/wrong or any number. Clips weigh alike: the mean of a resample is
    its sum over its number of clips. Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapters 8 and 13.

    Raises ValueError for fewer than two groups, a value that is no number, or lengths that differ.
    """
    values = np.asarray(values, dtype=float)
    _, group = np.unique(np.asarray(groups), return_inverse=True)
    if values.ndim != 1 or values.shape != group.shape:
        raise ValueError(f"One group a value is needed, but values are {values.shape} and groups {group.shape}.")
    if not np.isfinite(values).all():
        raise ValueError(f"{(~np.isfinite(values)).sum()} of {len(values)} values are NaN or infinite.")
    sums, sizes = np.bincount(group, weights=values), np.bincount(group)
    if len(sums) < 2:
        raise ValueError(f"{len(sums)} recording or speaker cannot be resampled; an interval needs two at least.")
    drawn = np.random.default_rng(seed).integers(len(sums), size=(n_resamples, len(sums)))
    means = sums[drawn].sum(1) / sizes[drawn].sum(1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def summarise(predictions: pd.DataFrame, sources: np.ndarray, level: float = 0.95) -> dict[str, float]:
    """Return accuracy over seeds and folds as one row of a results table.

    `predictions` has a row a seed and test clip with seed, clip and correct, as `training.cross_validate` returns it;
    `sources` (clips,) names the recording or speaker of every clip. `mean` is over all of them, `sd` over the seeds
    (NaN for one seed, and where seeds were tested on different clips: an interrupted run), `low` and `high` are the
    interval of `bootstrap_interval` on each clip's share of right answers, so it holds for the seeds' average model on
    other recordings of this kind, and `mean` lies in it. n_test counts clips.
    """
    by_seed = predictions.groupby("seed")["correct"].mean()
    by_clip = predictions.groupby("clip")["correct"].mean()
    low, high = bootstrap_interval(by_clip.to_numpy(), np.asarray(sources)[by_clip.index], level)
    same = predictions.groupby("clip")["seed"].nunique().eq(len(by_seed)).all()
    mean = float(by_clip.mean())
    return {
        "mean": mean, "sd": float(by_seed.std()) if same else math.nan, "seeds": len(by_seed),
        # an interval without width may be the mean in another rounding
        "low": min(low, mean), "high": max(high, mean), "n_test": len(by_clip),
    }  # fmt: skip


def paired_difference(
    correct_a: np.ndarray,
    correct_b: np.ndarray,
    groups: np.ndarray,
    level: float = 0.95,
    n_resamples: int = 2000,
    seed: int = 0,
) -> dict[str, float]:
    """Return by how much model A is more accurate than B on the same clips: mean, and the interval from low to high.

    `correct_a` and `correct_b` (n,) say which clips each model gets right, or in which share of its seeds; `groups`
    (n,) names the speaker or recording of each clip, and whole groups are resampled as in `bootstrap_interval`. Where
    the interval holds 0, other speakers could turn the difference round.
    """
    a, b = np.asarray(correct_a, dtype=float), np.asarray(correct_b, dtype=float)
    if a.ndim != 1 or a.shape != b.shape:
        raise ValueError(f"Both models must be judged on the same clips (n,), but they are {a.shape} and {b.shape}.")
    low, high = bootstrap_interval(a - b, groups, level, n_resamples, seed)
    return {"mean": float((a - b).mean()), "low": low, "high": high}


def mcnemar(targets: np.ndarray, predictions_a: np.ndarray, predictions_b: np.ndarray) -> dict[str, float]:
    """Compare two models on the same clips: return b (only A right), c (only B right) and the exact p_value.

    Under the hypothesis that both are equally good, b is Binomial(b + c, 1/2); the p-value is two-sided. McNemar, Note
    on the sampling error of the difference between correlated proportions (1947). It takes clips as independent: where
    many come from one recording or speaker it is too sure of itself.
    """
    targets, a, b = (np.asarray(values) for values in (targets, predictions_a, predictions_b))
    if targets.ndim != 1 or not targets.shape == a.shape == b.shape:
        raise ValueError(
            "Targets and both models' predicted classes must be (n,) for the same clips, but they are "
            f"{targets.shape}, {a.shape} and {b.shape}."
        )
    only_a = int(((a == targets) & (b != targets)).sum())
    only_b = int(((a != targets) & (b == targets)).sum())
    n = only_a + only_b
    tail = sum(math.comb(n, k) for k in range(min(only_a, only_b) + 1))  # whole numbers: exact for any n
    return {"b": only_a, "c": only_b, "p_value": min(1.0, 2 * tail / 2**n)}


def smooth_probabilities(times: np.ndarray, probabilities: np.ndarray, seconds: float = 0.3) -> np.ndarray:
    """Return the means (n, classes) of the windows at most `seconds / 2` before or after each: what a detector sees.

    `times` (n,) in s, rising, and `probabilities` (n, classes) are those of sliding windows; 0 s changes nothing.
    Smoothing as in Chen et al., Small-footprint keyword spotting using deep neural networks (2014), but centred: for
    recordings; live it delays by `seconds / 2`. Raises ValueError for windows that do not fit or are out of order, for
    probabilities that are NaN or infinite, and for less than 0 s.
    """
    times, probabilities = np.asarray(times, dtype=float), np.asarray(probabilities, dtype=float)
    if times.ndim != 1 or probabilities.ndim != 2 or len(times) != len(probabilities):
        raise ValueError(
            "Times must be (n,) and probabilities (n, classes) for the same n windows, but they are "
            f"{times.shape} and {probabilities.shape}."
        )
    if not (np.diff(times) > 0).all():
        raise ValueError("Times must rise from window to window; sort the windows by their times.")
    wrong = ~np.isfinite(probabilities).all(1)
    if wrong.any():
        raise ValueError(
            f"{wrong.sum()} of {len(wrong)} windows have probabilities that are NaN or infinite (first: row "
            f"{wrong.argmax()}); look at the weights of the model."
        )
    if not seconds >= 0:
        raise ValueError(f"Smoothing over {seconds} s is impossible; give 0 s for none, or more.")
    first = np.searchsorted(times, times - seconds / 2 - _NEAR)
    last = np.searchsorted(times, times + seconds / 2 + _NEAR)
    sums = np.concatenate([np.zeros((1, probabilities.shape[1])), probabilities.cumsum(0)])
    return (sums[last] - sums[first]) / (last - first)[:, None]


def find_detections(
    times: np.ndarray,
    probabilities: np.ndarray,
    class_names: list[str],
    *,
    threshold: float = 0.5,
    smoothing: float = 0.3,
    refractory: float = 1.0,
    ignore: tuple[str, ...] = ("silence", "unknown"),
) -> pd.DataFrame:
    """Return the words found in a stream, a row each: time in s, class_name, probability.

    `times` (n,) in s, rising, and `probabilities` (n, classes) are those of sliding windows. The probabilities are
    averaged over the `smoothing` seconds around each window, as `smooth_probabilities` says, and what it refuses is
    refused here. A stretch of windows in which the same
    class is the best of those not in `ignore`, and above `threshold`, is one detection, at its peak; a peak less than
    `refractory` seconds after the detection before, of whatever class, is none.
    """
    times, smooth = np.asarray(times, dtype=float), smooth_probabilities(times, probabilities, smoothing)
    _check_names(class_names, smooth.shape[1])
    heard = [label for label, name in enumerate(class_names) if name not in ignore]
    if not heard:
        raise ValueError(f"All classes are ignored ({', '.join(class_names)}): no word is left to detect.")
    smooth = smooth[:, heard]
    best = smooth.argmax(1)
    score = smooth[np.arange(len(smooth)), best]
    loud = np.where(score > threshold, best, -1)
    edges = np.flatnonzero(np.diff(loud, prepend=-1, append=-1))  # where a stretch begins or ends
    rows: list[dict] = []
    for start, stop in zip(edges, edges[1:], strict=False):
        peak = start + score[start:stop].argmax()
        if loud[start] >= 0 and (not rows or times[peak] - rows[-1]["time"] >= refractory - _NEAR):
            name = class_names[heard[best[peak]]]
            rows.append({"time": float(times[peak]), "class_name": name, "probability": float(score[peak])})
    return pd.DataFrame(rows, columns=["time", "class_name", "probability"])


def match_detections(detections: pd.DataFrame, events: pd.DataFrame, tolerance: float = 0.75) -> np.ndarray:
    """Return which detection hits each event (n_events,): its row number, counted from 0, or -1 for none.

    `detections` (see `find_detections`) and `events` have columns time in s and class_name, in any order. A detection
    hits an event of its class at most `tolerance` seconds away; each hits one event and each event is hit once, so that
    as many are hit as possible.
    """
    found_times, spoken_times = (table["time"].to_numpy(dtype=float) for table in (detections, events))
    matches = np.full(len(events), -1)
    for name in set(detections["class_name"]) & set(events["class_name"]):
        found, spoken = (np.flatnonzero(table["class_name"] == name) for table in (detections, events))
        found = found[np.argsort(found_times[found], kind="stable")]
        spoken = spoken[np.argsort(spoken_times[spoken], kind="stable")]
        i = j = 0
        while i < len(found) and j < len(spoken):  # the earliest with the earliest gives the most hits
            late = found_times[found[i]] - spoken_times[spoken[j]]
            if abs(late) <= tolerance + _NEAR:
                matches[spoken[j]] = found[i]
                i, j = i + 1, j + 1
            elif late < 0:
                i += 1
            else:
                j += 1
    return matches


def score_detections(
    detections: pd.DataFrame, events: pd.DataFrame, *, duration: float, tolerance: float = 0.75
) -> dict[str, float]:
    """Compare the words found in a stream with those spoken: hits, misses, false_alarms, and two rates.

    `detections` and `events` are matched as `match_detections` says: each event is hit once, so a second detection is a
    false alarm, and a wrong word both a miss and a false alarm. `hit_rate` is the share of events that are hit (NaN
    without events), `false_alarms_per_hour` counts over the `duration` of the stream in s, the two axes of streaming
    evaluation in Sainath and Parada, Convolutional neural networks for small-footprint keyword spotting (2015).
    """
    if not duration > 0:
        raise ValueError(f"A stream of {duration} s has no false alarms an hour; give its length in seconds.")
    hits = int((match_detections(detections, events, tolerance) >= 0).sum())
    false_alarms = len(detections) - hits
    return {
        "hits": hits, "misses": len(events) - hits, "false_alarms": false_alarms,
        "hit_rate": hits / len(events) if len(events) else math.nan,
        "false_alarms_per_hour": false_alarms * 3600 / duration,
    }  # fmt: skip


def _check(targets: np.ndarray, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    targets, probabilities = np.asarray(targets), np.asarray(probabilities, dtype=float)
    if targets.ndim != 1 or probabilities.ndim != 2 or len(targets) != len(probabilities) or len(targets) == 0:
        raise ValueError(
            "Targets must be (n,) and probabilities (n, classes) for the same n clips, n > 0, but they are "
            f"{targets.shape} and {probabilities.shape}."
        )
    n_classes = probabilities.shape[1]
    if not np.issubdtype(targets.dtype, np.integer) or targets.min() < 0 or targets.max() >= n_classes:
        raise ValueError(
            f"Targets must be whole numbers from 0 to {n_classes - 1}, one a column of probabilities, but they are "
            f"{targets.dtype} from {targets.min()} to {targets.max()}."
        )
    # a comparison with NaN is false, so this finds NaN as well; a hundredth leaves room for bfloat16
    wrong = ~((np.abs(probabilities.sum(1) - 1) < 0.01) & (probabilities.min(1) >= 0))
    if wrong.any():
        raise ValueError(
            f"{wrong.sum()} of {len(wrong)} rows of probabilities do not sum to 1 (first: row {wrong.argmax()}); "
            "logits need a softmax first."
        )
    return targets, probabilities


def _check_names(class_names: list[str], n_classes: int) -> None:
    if len(class_names) != n_classes:
        raise ValueError(f"{len(class_names)} class names do not fit {n_classes} classes.")
