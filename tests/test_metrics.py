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
