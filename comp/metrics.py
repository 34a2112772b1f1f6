"""What a prediction is worth: macro F1, accuracy, top-5, log loss, and how far such a number can be trusted.

Everything works on labels (N,) and probs (N, C) and needs numpy alone: label metrics are counts, and each metric is
linearised once (`influence`), from which standard errors, intervals and paired differences follow by one formula.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

LOG_FLOOR = float(np.finfo(np.float32).eps)  # the least probability log loss sees; probs are stored as float32
Z95 = 1.959963984540054  # 97.5 % quantile of the normal distribution


@dataclass(frozen=True)
class Metric:
    """One way to score predictions.

    Attributes:
        name: Its name in configs and tables.
        function: (labels (N,), probs (N, C)) → the score, nan where probs hold a nan or there are no rows.
        higher_is_better: False for losses.
        label_based: True where only the arg max of each row counts.
    """

    name: str
    function: Callable[[Array, Array], float]
    higher_is_better: bool
    label_based: bool

    def better(self, a: float, b: float) -> bool:
        """Whether score `a` beats score `b`; nan beats nothing and is beaten by every number."""
        if np.isnan(a) or np.isnan(b):
            return bool(np.isnan(b) and not np.isnan(a))
        return a > b if self.higher_is_better else a < b

    def utility(self, score: float) -> float:
        """The score with its sign turned so that more is better; nan becomes -inf."""
        if np.isnan(score):
            return -np.inf
        return score if self.higher_is_better else -score


@dataclass(frozen=True)
class Estimate:
    """A number with its standard error and the ends of its 95 % interval, all in the metric's own unit."""

    value: float
    se: float
    low: float
    high: float


def _checked(labels: Array, probs: Array) -> tuple[Array, Array]:
    labels, probs = np.asarray(labels), np.asarray(probs)
    if probs.ndim != 2 or labels.shape != probs.shape[:1]:
        raise ValueError(f"labels {labels.shape} and probs {probs.shape}: (N,) and (N, C) are wanted")
    if len(labels) and (labels.min() < 0 or labels.max() >= probs.shape[1]):
        raise ValueError(f"labels lie in {labels.min()}..{labels.max()}, probs have {probs.shape[1]} columns")
    return labels, probs


def confusion(labels: Array, predicted: Array, classes: int) -> Ints:
    """Count (true, predicted) pairs.

    Args:
        labels: (N,) true labels in 0..C-1.
        predicted: (N,) predicted labels in 0..C-1.
        classes: C.

    Returns:
        (C, C) counts, row = truth, column = prediction.
    """
    pairs = np.asarray(labels, dtype=np.int64) * classes + np.asarray(predicted, dtype=np.int64)
    return np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)


def macro_f1_from_counts(tp: Array, predicted: Array, true: Array, average_over: Array | None = None) -> Any:
    """Macro F1 from counts per class: the mean of 2·tp / (predicted + true).

    Args:
        tp: (..., C) images of each class that were predicted as it.
        predicted: (..., C) images predicted as each class.
        true: (..., C) or (C,) images of each class.
        average_over: (C,) mask of the classes to average over; default: those with true > 0.

    Returns:
        (...) scores in 0..1 (a float for (C,) counts); nan where no class is averaged over.
    """
    tp, predicted, true = np.asarray(tp), np.asarray(predicted), np.asarray(true)
    mask = true > 0 if average_over is None else np.asarray(average_over, dtype=bool)
    f1 = 2.0 * tp / np.maximum(predicted + true, 1)
    count = mask.sum(axis=-1)
    with np.errstate(invalid="ignore"):
        score = np.where(mask, f1, 0.0).sum(axis=-1) / np.asarray(count, dtype=np.float64)
    return float(score) if np.ndim(score) == 0 else score


def macro_f1(labels: Array, probs: Array, classes_present: Array | None = None) -> float:
    """Macro F1 of the most probable class, averaged over the classes present in the truth.

    Args:
        labels: (N,) true labels.
        probs: (N, C); a tie goes to the first class.
        classes_present: (C,) mask of the classes to average over; default: those that occur in `labels`.

    Returns:
        0..1; a class that is never predicted counts as 0. nan where probs hold a nan.
    """
    labels, probs = _checked(labels, probs)
    if not len(labels) or np.isnan(probs).any():
        return float("nan")
    predicted = probs.argmax(axis=1)
    classes = probs.shape[1]
    tp = np.bincount(labels[labels == predicted], minlength=classes)
    counts = np.bincount(predicted, minlength=classes), np.bincount(labels, minlength=classes)
    return float(macro_f1_from_counts(tp, *counts, classes_present))


def accuracy(labels: Array, probs: Array) -> float:
    """The share of rows whose most probable class is the true one (a tie goes to the first class)."""
    labels, probs = _checked(labels, probs)
    if not len(labels) or np.isnan(probs).any():
        return float("nan")
    return float(np.mean(probs.argmax(axis=1) == labels))


def _in_top5(labels: Array, probs: Array) -> npt.NDArray[np.bool_]:
    own = probs[np.arange(len(labels)), labels][:, None]
    earlier = np.arange(probs.shape[1]) < labels[:, None]
    ahead = (probs > own) | ((probs == own) & earlier)
    result: npt.NDArray[np.bool_] = ahead.sum(axis=1) < 5
    return result


def top5(labels: Array, probs: Array) -> float:
    """The share of rows whose true class is among the five most probable (of equal ones the first classes count)."""
    labels, probs = _checked(labels, probs)
    if not len(labels) or np.isnan(probs).any():
        return float("nan")
    return float(np.mean(_in_top5(labels, probs)))


def _log_losses(labels: Array, probs: Array) -> Floats:
    own = probs[np.arange(len(labels)), labels].astype(np.float64)
    return np.asarray(-np.log(np.clip(own, LOG_FLOOR, 1.0)), dtype=np.float64)


def log_loss(labels: Array, probs: Array) -> float:
    """The mean of −log(probability of the true class), in nats; probabilities below 1.2e-7 count as 1.2e-7."""
    labels, probs = _checked(labels, probs)
    if not len(labels) or np.isnan(probs).any():
        return float("nan")
    return float(np.mean(_log_losses(labels, probs)))


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("macro_f1", macro_f1, higher_is_better=True, label_based=True),
        Metric("accuracy", accuracy, higher_is_better=True, label_based=True),
        Metric("top5", top5, higher_is_better=True, label_based=False),
        Metric("log_loss", log_loss, higher_is_better=False, label_based=False),
    )
}


def influence(metric: str, labels: Array, probs: Array) -> Floats:
    """How much each row moves the score: the first-order term of the metric in the rows' weights.

    Giving row i the weight 1 + ε changes the score by about ε·u_i (the infinitesimal jackknife). For macro F1 over K
    classes with F_c = 2·tp_c / (predicted_c + true_c) that is
    u_i = Σ_c (2·[y=c][ŷ=c] − F_c·([y=c] + [ŷ=c])) / (predicted_c + true_c) / K.

    Args:
        metric: A name in METRICS.
        labels: (N,) true labels.
        probs: (N, C).

    Returns:
        (N,) in the metric's unit.
    """
    labels, probs = _checked(labels, probs)
    count = max(len(labels), 1)
    if metric == "macro_f1":
        classes = probs.shape[1]
        predicted = probs.argmax(axis=1)
        hit = labels == predicted
        true = np.bincount(labels, minlength=classes)
        size = np.maximum(np.bincount(predicted, minlength=classes) + true, 1).astype(np.float64)
        f1 = 2.0 * np.bincount(labels[hit], minlength=classes) / size
        averaged = max(int((true > 0).sum()), 1)
        share = np.where(true > 0, f1 / size, 0.0) / averaged
        u: Floats = np.where(hit, 2.0 / size[labels] / averaged, 0.0) - share[labels] - share[predicted]
        return u
    if metric == "accuracy":
        return np.asarray(probs.argmax(axis=1) == labels, dtype=np.float64) / count
    if metric == "top5":
        return _in_top5(labels, probs).astype(np.float64) / count
    return _log_losses(labels, probs) / count


def stratified_error(values: Floats, labels: Array, groups: Array | None) -> float:
    """Standard error of Σ values when, within each true class, groups of rows are drawn anew.

    A class with a single group has no spread of its own; such classes are pooled into one stratum (collapsed strata,
    Cochran, Sampling Techniques, 3rd ed., §5A.12), and a lone one counts with its full square.
    """
    totals: Array = values
    strata: Array = np.asarray(labels)
    if groups is not None:
        _, first, group = np.unique(np.asarray(groups), return_index=True, return_inverse=True)
        totals, strata = np.bincount(group.reshape(-1), weights=values), strata[first]
    size = np.bincount(strata)
    strata = np.where(size[strata] == 1, len(size), strata)
    size = np.bincount(strata)
    mean = np.bincount(strata, weights=totals) / np.maximum(size, 1)
    lone = size[strata] == 1
    deviation = totals - np.where(lone, 0.0, mean[strata])
    factor = size[strata] / np.maximum(size[strata] - 1, 1)
    return float(np.sqrt(np.sum(deviation**2 * factor)))


def standard_error(metric: str, labels: Array, probs: Array, groups: Array | None = None) -> float:
    """Analytic standard error of a score over the choice of images, the number of images per class held.

    Args:
        metric: A name in METRICS.
        labels: (N,) true labels.
        probs: (N, C).
        groups: (N,) any values; rows with equal ones (exact copies of a photo) are drawn together.

    Returns:
        In the metric's unit; nan where probs hold a nan or there are no rows.
    """
    labels, probs = _checked(labels, probs)
    if not len(labels) or np.isnan(probs).any():
        return float("nan")
    return stratified_error(influence(metric, labels, probs), labels, groups)


def interval(metric: str, labels: Array, probs: Array, groups: Array | None = None) -> Estimate:
    """A score with its standard error and 95 % interval.

    For scores in 0..1 the interval is normal on the logit scale, so that it stays inside and keeps its coverage near 1
    and for small classes; for log loss it is score ± 1.96 standard errors. A score of exactly 0 or 1, whose standard
    error is 0, gets the exact binomial end for as many images (or groups) as there are.
    Coverage by simulation: `python -m benchmarks.estimates` (docs/ensembles.md).
    """
    value = METRICS[metric].function(labels, probs)
    count = len(labels) if groups is None else len(np.unique(np.asarray(groups)))
    return around(metric, value, standard_error(metric, labels, probs, groups), count)


def around(metric: str, value: float, se: float, count: int) -> Estimate:
    """The 95 % interval around a score with a known standard error (see `interval`).

    Args:
        metric: A name in METRICS.
        value: The score.
        se: Its standard error.
        count: The images (or groups of copies) it rests on; counts where the score is exactly 0 or 1.
    """
    if np.isnan(value):
        return Estimate(value, se, float("nan"), float("nan"))
    if metric == "log_loss":
        return Estimate(value, se, max(0.0, value - Z95 * se), value + Z95 * se)
    if not 0.0 < value < 1.0:
        end = 0.025 ** (1.0 / count)
        return Estimate(value, se, end if value else 0.0, 1.0 if value else 1.0 - end)
    logit, reach = np.log(value / (1.0 - value)), Z95 * se / (value * (1.0 - value))
    low, high = 1.0 / (1.0 + np.exp(-np.array([logit - reach, logit + reach])))
    return Estimate(value, se, float(low), float(high))


def paired_difference(
    labels: Array, probs_a: Array, probs_b: Array, groups: Array | None = None, metric: str = "macro_f1"
) -> Estimate:
    """Score of `a` minus score of `b` on the same images, with the standard error of that difference.

    Args:
        labels: (N,) true labels.
        probs_a: (N, C) of the one prediction.
        probs_b: (N, C) of the other, rows in the same order.
        groups: (N,) rows with equal values are drawn together.
        metric: A name in METRICS.

    Returns:
        The difference (a − b), its standard error and 95 % interval. It speaks of these checkpoints, not of recipes.
    """
    score = METRICS[metric].function
    value = score(labels, probs_a) - score(labels, probs_b)
    if np.isnan(value):
        return Estimate(value, *([float("nan")] * 3))
    change = influence(metric, labels, probs_a) - influence(metric, labels, probs_b)
    se = stratified_error(change, labels, groups)
    return Estimate(value, se, value - Z95 * se, value + Z95 * se)
