"""Metrics against scikit-learn and SciPy, and against cases worked out by hand."""

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import sklearn.metrics

from shared_utils import metrics


@pytest.fixture
def evaluation() -> tuple[np.ndarray, np.ndarray]:
    """200 clips of 5 classes, of which class 3 is never predicted."""
    rng = np.random.default_rng(0)
    targets = rng.integers(5, size=200)
    logits = rng.normal(size=(200, 5)) + 1.5 * np.eye(5)[targets]
    logits[:, 3] -= 20
    return targets, np.exp(logits) / np.exp(logits).sum(1, keepdims=True)


def test_report_equals_scikit_learn(evaluation):
    targets, probabilities = evaluation
    names = ["rain", "dog", "clock", "saw", "sea"]
    ours = metrics.report(targets, probabilities, names)
    theirs = sklearn.metrics.classification_report(
        targets, probabilities.argmax(1), target_names=names, output_dict=True, zero_division=0
    )
    for row, theirs_row in [*((name, name) for name in names), ("macro average", "macro avg")]:
        expected = [theirs[theirs_row][key] for key in ("precision", "recall", "f1-score", "support")]
        np.testing.assert_allclose(ours.loc[row].to_numpy(dtype=float), expected, rtol=1e-12)
    assert ours.loc["saw", "precision"] == 0
    assert ours.loc["accuracy"].tolist() == pytest.approx([theirs["accuracy"]] * 3 + [200])
    assert metrics.accuracy(targets, probabilities) == pytest.approx(theirs["accuracy"])
    assert ours["support"].dtype == int


def test_confusion_matrix_equals_scikit_learn(evaluation):
    targets, probabilities = evaluation
    expected = sklearn.metrics.confusion_matrix(targets, probabilities.argmax(1), labels=range(5))
    np.testing.assert_array_equal(metrics.confusion_matrix(targets, probabilities), expected)


def test_macro_auc_equals_scikit_learn_and_leaves_out_absent_classes(evaluation):
    targets, probabilities = evaluation
    expected = sklearn.metrics.roc_auc_score(targets, probabilities, multi_class="ovr", average="macro")
    assert metrics.macro_auc(targets, probabilities) == pytest.approx(expected, abs=1e-12)

    present = targets != 2
    areas = metrics.auc_per_class(targets[present], probabilities[present])
    assert np.isnan(areas).tolist() == [False, False, True, False, False]
    targets, probabilities = targets[present], probabilities[present]
    by_hand = [sklearn.metrics.roc_auc_score(targets == label, probabilities[:, label]) for label in (0, 1, 3, 4)]
    assert metrics.macro_auc(targets, probabilities) == pytest.approx(np.mean(by_hand))


def test_auc_of_one_class_only_is_refused(evaluation):
    with pytest.raises(ValueError, match="at least two classes"):
        metrics.macro_auc(np.zeros(200, dtype=int), evaluation[1])


def test_calibration_error_by_hand():
    probabilities = np.array([[0.95, 0.05], [0.85, 0.15], [0.45, 0.55], [0.4, 0.6], [1.0, 0.0]])
    targets = np.array([0, 1, 1, 1, 0])
    # five bins: 0.55 and 0.6 in (0.4, 0.6], both right; 0.95, 0.85, 1.0 in (0.8, 1.0], two of three right
    expected = (abs(2 - 1.15) + abs(2 - 2.8)) / 5
    assert metrics.expected_calibration_error(targets, probabilities, n_bins=5) == pytest.approx(expected)


def test_calibrated_predictions_have_a_small_error_and_overconfident_ones_a_large():
    rng = np.random.default_rng(0)
    sure = rng.uniform(0.5, 1, size=20_000)
    probabilities = np.stack([sure, 1 - sure], 1)
    targets = (rng.uniform(size=20_000) > sure).astype(int)
    assert metrics.expected_calibration_error(targets, probabilities) < 0.02
    overconfident = np.clip(np.stack([sure + 0.2, 0.8 - sure], 1), 0, 1)
    assert 0.1 < metrics.expected_calibration_error(targets, overconfident) < 0.2


def test_bootstrap_of_single_clips_is_the_plain_bootstrap():
    correct = np.random.default_rng(1).uniform(size=80) < 0.85
    interval = metrics.bootstrap_interval(correct, np.arange(80), seed=3)

    rng = np.random.default_rng(3)
    means = [correct[row].mean() for row in rng.integers(80, size=(2000, 80))]
    assert interval == pytest.approx(tuple(np.quantile(means, [0.025, 0.975])))

    scipys = scipy.stats.bootstrap((correct,), np.mean, n_resamples=20_000, method="percentile", rng=0)
    assert interval == pytest.approx(tuple(scipys.confidence_interval), abs=0.0126)  # one clip of 80


def test_bootstrap_weighs_clips_alike_in_groups_of_unequal_size():
    values, groups = np.array([1.0, 0.0, 0.0, 0.0]), np.array(["a", "b", "b", "b"])
    # of four resamples aa has the mean 1, ab and ba have 1 of 4 clips, bb has 0
    assert metrics.bootstrap_interval(values, groups, level=0.4) == (0.25, 0.25)
    assert metrics.bootstrap_interval(values, groups, level=0.9) == (0.0, 1.0)


def test_bootstrap_is_wider_when_clips_of_a_recording_agree():
    recordings = np.repeat(np.arange(50), 8)
    correct = np.random.default_rng(0).uniform(size=50)[recordings] < 0.8  # all eight clips right or all wrong
    low, high = metrics.bootstrap_interval(correct, recordings)
    low_of_clips, high_of_clips = metrics.bootstrap_interval(correct, np.arange(400))
    assert (high - low) / (high_of_clips - low_of_clips) == pytest.approx(np.sqrt(8), rel=0.15)


def test_bootstrap_interval_covers_the_truth():
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(60), 4)
    covered = []
    for trial in range(200):
        ability = rng.beta(8, 2, size=60)[groups]  # recordings differ; their mean accuracy is 0.8
        low, high = metrics.bootstrap_interval(rng.uniform(size=240) < ability, groups, n_resamples=500, seed=trial)
        covered.append(low <= 0.8 <= high)
    assert 0.90 <= np.mean(covered) <= 0.99


@pytest.mark.parametrize(
    ("values", "groups", "message"),
    [
        ([1, 0], ["a", "a"], "two at least"),
        ([1, np.nan], ["a", "b"], "1 of 2 values"),
        ([1, 0, 1], ["a", "b"], "One group a value"),
    ],
)
def test_bootstrap_refuses(values, groups, message):
    with pytest.raises(ValueError, match=message):
        metrics.bootstrap_interval(np.array(values), np.array(groups))


def test_summary_of_two_seeds_by_hand():
    predictions = pd.DataFrame({
        "seed": [0, 0, 0, 0, 1, 1, 1, 1], "fold": [1, 1, 2, 2] * 2, "clip": [4, 0, 1, 3] * 2,
        "correct": [True, True, True, False, True, False, False, False],
    })  # fmt: skip
    sources = np.array(["a", "b", "unused", "c", "a"])
    summary = metrics.summarise(predictions, sources)
    assert (summary["mean"], summary["seeds"], summary["n_test"]) == (0.5, 2, 4)
    assert summary["sd"] == pytest.approx(np.std([0.75, 0.25], ddof=1))
    groups = ["a", "a", "b", "c"] * 2
    expected = metrics.bootstrap_interval(predictions["correct"], groups)
    assert (summary["low"], summary["high"]) == pytest.approx(expected)
    assert np.isnan(metrics.summarise(predictions.query("seed == 0"), sources)["sd"])


@pytest.mark.parametrize(("n_clips", "n_sources"), [(10, 3), (15, 3), (50, 5)])
def test_summary_lies_in_an_interval_without_width(n_clips, n_sources):
    clips = np.arange(n_clips)  # each right with one seed of three: every resample gives a third, rounded its own way
    parts = [pd.DataFrame({"seed": seed, "fold": 1, "clip": clips, "correct": seed == 0}) for seed in range(3)]
    summary = metrics.summarise(pd.concat(parts), clips % n_sources)
    assert summary["low"] <= summary["mean"] <= summary["high"]
    assert summary["high"] - summary["low"] < 1e-15


def test_summary_of_an_interrupted_run_lies_in_its_own_interval():
    clips = np.arange(100)
    predictions = pd.DataFrame({"seed": 0, "fold": 1, "clip": clips, "correct": clips % 5 > 1})
    second = pd.DataFrame({"seed": 1, "fold": 1, "clip": clips[:20], "correct": True})  # stopped by hand
    summary = metrics.summarise(pd.concat([predictions, second]), clips)
    assert summary["mean"] == pytest.approx((0.6 * 80 + 0.8 * 20) / 100)
    assert summary["low"] < summary["mean"] < summary["high"]
    assert np.isnan(summary["sd"]) and summary["seeds"] == 2


@pytest.mark.parametrize(("b", "c"), [(0, 0), (5, 5), (12, 3), (0, 9), (1400, 1250)])
def test_mcnemar_equals_the_binomial_test(b, c):
    targets = np.zeros(b + c + 10, dtype=int)
    wrong_a, wrong_b = np.zeros_like(targets), np.zeros_like(targets)
    wrong_b[:b] = 1
    wrong_a[b : b + c] = 1
    wrong_a[-4:] = wrong_b[-4:] = 1  # both wrong: says nothing about the difference
    result = metrics.mcnemar(targets, wrong_a, wrong_b)
    expected = scipy.stats.binomtest(b, b + c).pvalue if b + c else 1.0
    assert (result["b"], result["c"]) == (b, c)
    assert result["p_value"] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("targets", "probabilities", "message"),
    [
        ([0, 1], [[3.0, -1.0], [0.5, 0.5]], "softmax"),
        ([0, 1], [[np.nan, 0.5], [0.5, 0.5]], "do not sum to 1"),
        ([0, 2], [[0.5, 0.5], [0.5, 0.5]], "from 0 to 1"),
        ([0, 1, 1], [[0.5, 0.5], [0.5, 0.5]], "same n clips"),
        ([0, 1], [0, 1], "same n clips"),
    ],
)
def test_bad_evaluations_are_refused(targets, probabilities, message):
    with pytest.raises(ValueError, match=message):
        metrics.accuracy(np.array(targets), np.array(probabilities))


def test_report_refuses_names_that_do_not_fit(evaluation):
    with pytest.raises(ValueError, match="2 class names do not fit 5 classes"):
        metrics.report(*evaluation, ["a", "b"])


# ---- two models, and streams


def test_paired_difference_is_the_interval_of_the_differences():
    rng = np.random.default_rng(0)
    speakers = np.repeat(np.arange(40), 10)
    a, b = rng.random(400) < 0.9, rng.random((3, 400)) < 0.8
    result = metrics.paired_difference(a, b.mean(0), speakers)
    assert result["mean"] == pytest.approx(a.mean() - b.mean())
    assert (result["low"], result["high"]) == metrics.bootstrap_interval(a - b.mean(0), speakers)
    assert 0 < result["low"] < result["mean"] < result["high"] < 0.2
    # the same clips in both: the difference of two models that fail together has no width
    assert metrics.paired_difference(a, a, speakers) == {"mean": 0, "low": 0, "high": 0}
    with pytest.raises(ValueError, match=r"same clips \(n,\), but they are \(400,\) and \(399,\)"):
        metrics.paired_difference(a, a[1:], speakers)


WORDS = ["yes", "no", "silence"]


def make_stream(*peaks: tuple[float, int, float], seconds: float = 10) -> tuple[np.ndarray, np.ndarray]:
    """Windows every 0.1 s; a peak (time, label, height) is 0.3 s wide; the rest is silence."""
    times = np.round(np.arange(0.5, seconds, 0.1), 3)
    probabilities = np.tile([0.0, 0, 1], (len(times), 1))
    for time, label, height in peaks:
        near = np.abs(times - time) < 0.16
        probabilities[near] = 0
        probabilities[near, label] = height
        probabilities[near, 2] += 1 - height
    return times, probabilities


def test_detections_stand_at_their_peaks():
    found = metrics.find_detections(*make_stream((2, 0, 0.9), (5, 1, 0.8), (8, 0, 0.4)), WORDS)
    assert found["class_name"].tolist() == ["yes", "no"]  # 0.4 stays below the threshold, silence is none
    np.testing.assert_allclose(found["time"], [2, 5])
    np.testing.assert_allclose(found["probability"], [0.9, 0.8])


def test_smoothing_is_the_mean_over_the_windows_around():
    times, probabilities = make_stream()
    probabilities[20] = [1, 0, 0]  # a single window
    assert len(metrics.find_detections(times, probabilities, WORDS, smoothing=0.3)) == 0
    found = metrics.find_detections(times, probabilities, WORDS, smoothing=0.3, threshold=0.3)
    np.testing.assert_allclose(found["probability"], [1 / 3])
    assert metrics.find_detections(times, probabilities, WORDS, smoothing=0)["time"].tolist() == [times[20]]
    first = probabilities.copy()
    first[0] = [1, 0, 0]  # the first window has one neighbour only
    found = metrics.find_detections(times, first, WORDS, smoothing=0.3, threshold=0.45)
    np.testing.assert_allclose(found["probability"], [0.5])
    assert found["time"][0] == times[0]


def test_smoothed_probabilities_are_the_means_of_the_windows_in_reach():
    times, probabilities = make_stream((2, 0, 0.9), (2.4, 1, 0.8), seconds=4)
    smooth = metrics.smooth_probabilities(times, probabilities)
    expected = [probabilities[np.abs(times - time) < 0.1501].mean(0) for time in times]
    np.testing.assert_allclose(smooth, expected, atol=1e-12)
    assert len(probabilities[np.abs(times - times[5]) < 0.1501]) == 3
    np.testing.assert_allclose(metrics.smooth_probabilities(times, probabilities, 0), probabilities, atol=1e-12)
    np.testing.assert_allclose(metrics.smooth_probabilities(times, probabilities, 100)[7], probabilities.mean(0))
    uneven = np.array([0, 0.1, 1, 1.05])  # what counts is the time, not the number of windows
    means = metrics.smooth_probabilities(uneven, np.array([[1.0], [3], [10], [20]]))
    np.testing.assert_allclose(means[:, 0], [2, 2, 15, 15])
    found = metrics.find_detections(times, probabilities, WORDS, threshold=0.3)
    peak = found.iloc[0]
    assert peak["probability"] == pytest.approx(smooth[:, 0].max()) and peak["time"] == times[smooth[:, 0].argmax()]


@pytest.mark.parametrize(("second", "expected"), [(2.9, ["yes"]), (3.0, ["yes", "no"]), (3.4, ["yes", "no"])])
def test_after_a_detection_none_of_any_class_follows_too_soon(second, expected):
    found = metrics.find_detections(*make_stream((2, 0, 0.9), (second, 1, 1.0)), WORDS, refractory=1.0)
    assert found["class_name"].tolist() == expected


def test_classes_are_ignored_as_asked_and_no_detection_is_an_empty_table():
    times, probabilities = make_stream((2, 0, 0.9))
    assert metrics.find_detections(times, probabilities, WORDS, ignore=("yes", "silence")).empty
    none = metrics.find_detections(*make_stream(), WORDS)
    assert list(none) == ["time", "class_name", "probability"] and len(none) == 0
    with pytest.raises(ValueError, match="All classes are ignored"):
        metrics.find_detections(times, probabilities, WORDS, ignore=tuple(WORDS))
    with pytest.raises(ValueError, match="Times must rise"):
        metrics.find_detections(times[::-1], probabilities, WORDS)
    with pytest.raises(ValueError, match="same n windows"):
        metrics.find_detections(times[1:], probabilities, WORDS)
    with pytest.raises(ValueError, match="2 class names do not fit 3 classes"):
        metrics.find_detections(times, probabilities, WORDS[:2])
    with pytest.raises(ValueError, match="Smoothing over -0.1 s"):
        metrics.find_detections(times, probabilities, WORDS, smoothing=-0.1)
    for value in (np.nan, np.inf):
        wrong = probabilities.copy()
        wrong[[7, 9], 0] = value
        with pytest.raises(ValueError, match=r"2 of 95 windows .* NaN or infinite \(first: row 7\)"):
            metrics.find_detections(times, wrong, WORDS)


def make_table(*rows: tuple[float, str]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["time", "class_name"])


def test_scores_of_a_stream_worked_out_by_hand():
    events = make_table((1, "yes"), (3, "no"), (5, "yes"), (9, "yes"))
    found = make_table((1.7, "yes"), (1.75, "yes"), (3.1, "yes"), (5.9, "yes"), (9.75, "yes"))
    # 1.7 hits 1; 1.75 comes second; 3.1 is the wrong word; 5.9 is too late; 9.75 hits 9
    scores = metrics.score_detections(found, events, duration=1800)
    assert scores == {"hits": 2, "misses": 2, "false_alarms": 3, "hit_rate": 0.5, "false_alarms_per_hour": 6}
    mixed = metrics.score_detections(found.sample(frac=1, random_state=0), events[::-1], duration=1800)
    assert mixed == scores
    assert metrics.score_detections(found, events, duration=1800, tolerance=0.9)["hits"] == 3


def test_every_detection_that_can_hit_an_event_does():
    events, found = make_table((1.0, "yes"), (2.0, "yes")), make_table((1.5, "yes"), (0.5, "yes"))
    scores = metrics.score_detections(found, events, duration=60)
    assert scores["hits"] == 2  # the nearest event of 1.5 may be either: one of them would leave 0.5 without any


def test_matches_name_the_rows_of_both_tables_in_any_order():
    events = make_table((9, "yes"), (1, "yes"), (3, "no"), (1.2, "yes"))
    found = make_table((1.7, "yes"), (3.8, "no"), (9.75, "yes"), (1.1, "yes"), (8.9, "yes"))
    # in order of time 1.1 hits 1, 1.7 hits 1.2, 8.9 hits 9, for which 9.75 comes second; 3.8 is too late
    matches = metrics.match_detections(found, events)
    assert matches.tolist() == [4, 3, -1, 0] and matches.dtype.kind == "i"
    assert metrics.match_detections(found, events, tolerance=0.8).tolist() == [4, 3, 1, 0]
    assert metrics.match_detections(found, events, tolerance=0.05).tolist() == [-1] * 4
    other_index = found.set_axis(list("abcde")), events.set_axis([7, 7, 7, 7])
    assert metrics.match_detections(*other_index).tolist() == [4, 3, -1, 0]
    assert metrics.match_detections(make_table(), events).tolist() == [-1] * 4
    assert metrics.match_detections(found, make_table()).shape == (0,)


def test_as_many_events_are_hit_as_the_best_assignment_hits():
    from scipy.optimize import linear_sum_assignment

    rng = np.random.default_rng(0)
    for _ in range(50):
        events, found = (make_table(*zip(rng.uniform(0, 6, n), rng.choice(WORDS, n), strict=True)) for n in (9, 12))
        near = np.abs(found["time"].to_numpy() - events["time"].to_numpy()[:, None]) <= 0.75
        near &= found["class_name"].to_numpy() == events["class_name"].to_numpy()[:, None]
        matches = metrics.match_detections(found, events)
        hit = np.flatnonzero(matches >= 0)
        assert near[hit, matches[hit]].all() and len(set(matches[hit])) == len(hit)
        assert len(hit) == near[linear_sum_assignment(~near)].sum()


def test_streams_without_events_or_detections_have_scores_too():
    none, one = make_table(), make_table((1, "yes"))
    alarms = metrics.score_detections(one, none, duration=3600)
    assert np.isnan(alarms.pop("hit_rate"))
    assert alarms == {"hits": 0, "misses": 0, "false_alarms": 1, "false_alarms_per_hour": 1}
    assert metrics.score_detections(none, one, duration=3600)["misses"] == 1
    with pytest.raises(ValueError, match="stream of 0 s has no false alarms an hour"):
        metrics.score_detections(one, one, duration=0)
