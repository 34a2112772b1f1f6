"""Paired comparisons of runs on the same photos: of these checkpoints, and, with enough seeds, of their recipes."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from comp import metrics
from comp.metrics import METRICS, Z95, Estimate

Array = npt.NDArray[Any]
SEEDS = 3  # seeds per recipe from which recipes are spoken of


@dataclass(frozen=True)
class Pair:
    """Two runs on the same photos.

    Attributes:
        a, b: Their names.
        difference: Metric of a minus metric of b, with its interval.
        accuracy: The same for accuracy.
        p: Two-sided, for the metric's difference being 0 (normal).
        holm: p after Holm's correction over all pairs looked at.
        only_a, only_b: Photos that only a, only b answers rightly.
        mcnemar: Exact two-sided p of McNemar's test on those counts.
        by_fold: Fold → metric of a minus metric of b.
    """

    a: str
    b: str
    difference: Estimate
    accuracy: Estimate
    p: float
    holm: float
    only_a: int
    only_b: int
    mcnemar: float
    by_fold: dict[int, float]


def normal_p(value: float, error: float) -> float:
    """Two-sided p of value / error under the standard normal; 1 where both are 0."""
    if error == 0:
        return 1.0 if value == 0 else 0.0
    return math.erfc(abs(value / error) / math.sqrt(2))


def mcnemar_p(only_a: int, only_b: int) -> float:
    """Exact two-sided p that photos one of two gets right alone are either's with probability 1/2 (McNemar 1947)."""
    count = only_a + only_b
    if not count:
        return 1.0
    logs = [
        math.lgamma(count + 1) - math.lgamma(k + 1) - math.lgamma(count - k + 1) - count * math.log(2)
        for k in range(min(only_a, only_b) + 1)
    ]
    return min(1.0, 2 * math.fsum(map(math.exp, logs)))


def holm(values: Sequence[float]) -> list[float]:
    """Holm's step-down corrected p-values, in the given order (Holm 1979)."""
    order = sorted(range(len(values)), key=lambda n: values[n])
    corrected = [0.0] * len(values)
    highest = 0.0
    for place, n in enumerate(order):
        highest = max(highest, min(1.0, values[n] * (len(values) - place)))
        corrected[n] = highest
    return corrected


def compare(
    names: Sequence[str], probs: Sequence[Array], labels: Array, folds: Array, groups: Array, metric: str
) -> list[Pair]:
    """All pairs of runs, in the order of `names`.

    Args:
        names: M runs.
        probs: M arrays (N, C), rows in the same order.
        labels: (N,) true labels.
        folds: (N,) folds.
        groups: (N,) equal for exact copies of one photo; they are resampled together.
        metric: A name in METRICS.
    """
    found: list[tuple[int, int, Estimate]] = []
    for a, b in itertools.combinations(range(len(names)), 2):
        found.append((a, b, metrics.paired_difference(labels, probs[a], probs[b], groups, metric)))
    corrected = holm([normal_p(d.value, d.se) for _, _, d in found])
    right = [np.asarray(one).argmax(axis=1) == labels for one in probs]
    score = METRICS[metric].function
    out = []
    for (a, b, difference), p_holm in zip(found, corrected, strict=True):
        only_a, only_b = int((right[a] & ~right[b]).sum()), int((right[b] & ~right[a]).sum())
        by_fold = {
            int(k): score(labels[folds == k], probs[a][folds == k]) - score(labels[folds == k], probs[b][folds == k])
            for k in np.unique(folds)
        }
        out.append(
            Pair(
                names[a],
                names[b],
                difference,
                metrics.paired_difference(labels, probs[a], probs[b], groups, "accuracy"),
                normal_p(difference.value, difference.se),
                p_holm,
                only_a,
                only_b,
                mcnemar_p(only_a, only_b),
                by_fold,
            )
        )
    return out


@dataclass(frozen=True)
class RecipeDifference:
    """Recipe a minus recipe b, over seeds and photos.

    Attributes:
        difference: Of the mean scores over seeds, with a 95 % interval for other seeds and other photos.
        seeds_a, seeds_b: How many seeds each has.
        sd_a, sd_b: Standard deviation of the score over seeds.
        photo_se: The part of the standard error that more seeds cannot take away.
        wanted: Seeds of each recipe that would about do to tell them apart; None where no number would.
    """

    difference: Estimate
    seeds_a: int
    seeds_b: int
    sd_a: float
    sd_b: float
    photo_se: float
    wanted: int | None


def seeds_wanted(difference: float, variance: float, photo_variance: float) -> int | None:
    """Seeds of each recipe at which 1.96 standard errors are as small as the difference seen.

    Args:
        difference: Seen between the recipes.
        variance: Sum of both recipes' variances over seeds.
        photo_variance: Of the difference over the choice of photos.

    Returns:
        At least SEEDS; None where the photos alone leave more than the difference.
    """
    room = (difference / Z95) ** 2 - photo_variance
    return max(SEEDS, math.ceil(variance / room)) if room > 0 else None


def compare_recipes(
    a: Sequence[Array], b: Sequence[Array], labels: Array, groups: Array, metric: str
) -> RecipeDifference:
    """Compare two recipes of which several seeds were trained, by two-level resampling in closed form.

    Seeds are drawn within each recipe and photos (groups of copies) within each class. To first order the variance of
    the difference of means is s_a²/n_a + s_b²/n_b over seeds, plus the stratified variance of the mean influence over
    photos; Student's t with Satterthwaite's degrees of freedom, for the seeds are few.

    Args:
        a: Each seed's (N, C), at least 2.
        b: The same for the other recipe.
        labels: (N,) true labels.
        groups: (N,) equal for exact copies of one photo.
        metric: A name in METRICS.
    """
    from scipy.special import stdtrit

    score = METRICS[metric].function
    scores = [np.array([score(labels, probs) for probs in seeds]) for seeds in (a, b)]
    influences = [np.mean([metrics.influence(metric, labels, probs) for probs in seeds], axis=0) for seeds in (a, b)]
    photo = metrics.stratified_error(influences[0] - influences[1], labels, groups) ** 2
    parts = [values.var(ddof=1) / len(values) for values in scores]
    value = float(scores[0].mean() - scores[1].mean())
    total = photo + sum(parts)
    weak = sum(part**2 / (len(values) - 1) for part, values in zip(parts, scores, strict=True))
    freedom = total**2 / weak if weak > 0 else 1e6
    error = math.sqrt(total)
    reach = float(stdtrit(min(freedom, 1e6), 0.975)) * error
    variances = [float(values.var(ddof=1)) for values in scores]
    return RecipeDifference(
        Estimate(value, error, value - reach, value + reach),
        len(a),
        len(b),
        math.sqrt(variances[0]),
        math.sqrt(variances[1]),
        math.sqrt(photo),
        seeds_wanted(value, sum(variances), photo),
    )


def seeds_wanted_from_folds(pair: Pair) -> int | None:
    """Seeds that would about do, guessed from one seed of each: folds differ by their photos and by their training.

    The spread of the per-fold differences, less what the photos explain, is taken for the spread over seeds.
    """
    values = list(pair.by_fold.values())
    if len(values) < 2 or not all(map(math.isfinite, values)):
        return None
    mean_variance = float(np.var(values, ddof=1)) / len(values)
    photo = pair.difference.se**2
    return seeds_wanted(pair.difference.value, max(mean_variance - photo, 0.0), photo)
