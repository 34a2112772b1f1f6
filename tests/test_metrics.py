"""Metrics against scikit-learn, and their standard errors against resampling and simulation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, top_k_accuracy_score
from sklearn.metrics import log_loss as sklearn_log_loss

import comp.metrics as metrics


def draw(seed: int, n: int, classes: int, skill: float = 1.5) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.choice(classes, n, p=rng.dirichlet(np.full(classes, 2.0)))
    logits = rng.standard_normal((n, classes))
    logits[np.arange(n), labels] += skill
    probs = np.exp(logits)
    return labels, probs / probs.sum(axis=1, keepdims=True)


@given(st.integers(0, 10**6), st.integers(1, 200), st.integers(2, 12))
@settings(max_examples=60, deadline=None)
def test_equal_to_scikit_learn(seed: int, n: int, classes: int) -> None:
    labels, probs = draw(seed, n, classes)
    predicted = probs.argmax(axis=1)
    reference = f1_score(labels, predicted, labels=np.unique(labels), average="macro", zero_division=0)
    assert metrics.macro_f1(labels, probs) == pytest.approx(reference, abs=1e-12)
    assert metrics.accuracy(labels, probs) == pytest.approx(accuracy_score(labels, predicted), abs=1e-12)
    reference = sklearn_log_loss(labels, probs, labels=np.arange(classes))
    assert metrics.log_loss(labels, probs) == pytest.approx(reference, abs=1e-12)
    counted = metrics.confusion(labels, predicted, classes)
    assert (counted == confusion_matrix(labels, predicted, labels=np.arange(classes))).all()
    if classes > 5:
        reference = top_k_accuracy_score(labels, probs, k=5, labels=np.arange(classes))
        assert metrics.top5(labels, probs) == pytest.approx(reference, abs=1e-12)


def test_classes_to_average_over_can_be_given() -> None:
    labels, probs = np.array([0, 0, 1]), np.eye(4)[[0, 2, 1]]
    assert metrics.macro_f1(labels, probs) == pytest.approx((2 / 3 + 1) / 2)
    assert metrics.macro_f1(labels, probs, np.ones(4, bool)) == pytest.approx((2 / 3 + 1 + 0 + 0) / 4)


def test_counts_broadcast_over_candidates() -> None:
    tp, predicted, true = np.array([[1, 2], [0, 0]]), np.array([[1, 3], [2, 2]]), np.array([2, 2])
    assert metrics.macro_f1_from_counts(tp, predicted, true) == pytest.approx([(2 / 3 + 4 / 5) / 2, 0.0])


@pytest.mark.parametrize("name", metrics.METRICS)
def test_nan_gives_nan_and_never_wins(name: str) -> None:
    metric = metrics.METRICS[name]
    labels, probs = draw(0, 20, 6)
    good = metric.function(labels, probs)
    probs[3, 2] = np.nan
    bad = metric.function(labels, probs)
    assert np.isnan(bad)
    assert np.isnan(metrics.standard_error(name, labels, probs))
    assert metric.better(good, bad)
    assert not metric.better(bad, good)
    assert metric.utility(bad) == -np.inf
    assert np.isnan(metric.function(labels[:0], probs[:0]))


def test_direction_of_better() -> None:
    assert metrics.METRICS["macro_f1"].better(0.8, 0.7)
    assert metrics.METRICS["log_loss"].better(0.7, 0.8)


def test_certain_and_wrong_costs_a_finite_loss() -> None:
    assert metrics.log_loss(np.array([1]), np.array([[1.0, 0.0]])) == pytest.approx(-np.log(metrics.LOG_FLOOR))


def test_top5_of_equal_probabilities_counts_the_first_classes() -> None:
    assert metrics.top5(np.array([4]), np.full((1, 8), 1 / 8)) == 1.0
    assert metrics.top5(np.array([5]), np.full((1, 8), 1 / 8)) == 0.0


def test_shapes_and_labels_are_checked() -> None:
    with pytest.raises(ValueError, match="columns"):
        metrics.macro_f1(np.array([3]), np.ones((1, 3)))
    with pytest.raises(ValueError, match="wanted"):
        metrics.accuracy(np.array([0, 1]), np.ones((1, 3)))


@pytest.mark.parametrize("name", metrics.METRICS)
def test_influence_is_the_derivative_in_a_rows_weight(name: str) -> None:
    """Repeat every row 1000 times and one of them 1001 times: the score moves by influence / 1000."""
    labels, probs = draw(4, 40, 7)
    score = metrics.METRICS[name].function
    base = score(labels, probs)
    rows = np.repeat(np.arange(40), 1000)
    values = metrics.influence(name, labels, probs)
    if name != "macro_f1":  # means over rows: u_i is the row's own term, less the mean that the added weight dilutes
        values = values - values.mean()
    for row in range(0, 40, 7):
        more = np.append(rows, row)
        moved = score(labels[more], probs[more]) - base
        assert moved * 1000 == pytest.approx(values[row], rel=5e-3, abs=1e-6)


@pytest.mark.parametrize("name", ["macro_f1", "accuracy", "log_loss"])
def test_standard_error_agrees_with_a_stratified_bootstrap(name: str) -> None:
    labels, probs = draw(1, 600, 6)
    _, other = draw(2, 600, 6)
    rng, score = np.random.default_rng(0), metrics.METRICS[name].function
    drawn = []
    for _ in range(600):
        rows = np.concatenate([rng.choice(own, len(own)) for c in range(6) for own in [np.flatnonzero(labels == c)]])
        drawn.append((score(labels[rows], probs[rows]), score(labels[rows], other[rows])))
    spread = np.array(drawn)
    assert metrics.standard_error(name, labels, probs) == pytest.approx(spread[:, 0].std(), rel=0.1)
    paired = metrics.paired_difference(labels, probs, other, metric=name)
    assert paired.se == pytest.approx((spread[:, 0] - spread[:, 1]).std(), rel=0.1)
    assert paired.value == pytest.approx(score(labels, probs) - score(labels, other), abs=1e-15)
    assert paired.low < paired.value < paired.high


def test_copies_are_drawn_together() -> None:
    """Every image four times is no more evidence than once: grouped error as before, ungrouped error half of it."""
    labels, probs = draw(3, 800, 4)
    groups = np.array([f"sha{i}" for i in range(800)])
    once = metrics.standard_error("macro_f1", labels, probs, groups)
    assert once == pytest.approx(metrics.standard_error("macro_f1", labels, probs), rel=1e-12)
    labels4, probs4 = np.tile(labels, 4), np.tile(probs, (4, 1))
    assert metrics.standard_error("macro_f1", labels4, probs4, np.tile(groups, 4)) == pytest.approx(once, rel=1e-12)
    assert metrics.standard_error("macro_f1", labels4, probs4) == pytest.approx(once / 2, rel=1e-2)


def test_classes_with_one_image_still_add_to_the_error() -> None:
    labels = np.arange(6)
    probs = np.eye(6)[[0, 1, 2, 0, 0, 0]]
    assert metrics.standard_error("accuracy", labels, probs) == pytest.approx(np.sqrt(6 / 5 * 6 * 0.25) / 6)
    assert metrics.standard_error("accuracy", labels[:1], probs[:1]) > 0


def test_interval_of_a_perfect_score_is_not_a_point() -> None:
    labels = np.repeat(np.arange(4), 25)
    perfect = metrics.interval("macro_f1", labels, np.eye(4)[labels])
    assert (perfect.value, perfect.se, perfect.high) == (1.0, 0.0, 1.0)
    assert perfect.low == pytest.approx(0.025**0.01)
    wrong = metrics.interval("accuracy", labels, np.eye(4)[(labels + 1) % 4], np.arange(100) // 2)
    assert (wrong.low, wrong.high) == (0.0, pytest.approx(1 - 0.025**0.02))


def test_equal_predictions_differ_by_nothing() -> None:
    labels, probs = draw(5, 100, 3)
    same = metrics.paired_difference(labels, probs, probs)
    assert (same.value, same.se, same.low, same.high) == (0.0, 0.0, 0.0, 0.0)
