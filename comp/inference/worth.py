"""What each view adds: scores of single views and of growing products, and the smallest set that is good enough.

Works on the per-view probabilities of photos a network never trained on. Which set is suggested is itself chosen by
looking at scores, so its estimate is cross-fitted: chosen without a fold, applied to it, pooled, scored once. No torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from comp import metrics
from comp.inference.spec import Scale, View, ViewSpec
from comp.metrics import Estimate

Array = npt.NDArray[Any]
SMALLEST = 1e-7  # a float16 probability below 6e-8 is stored as 0, whose logarithm would rule a class out


@dataclass(frozen=True)
class Candidate:
    """A set of views that is part of a larger one.

    Attributes:
        spec: How to write it.
        members: Places of its views in the larger set.
        cost: Forward passes of a photo in units of one centre crop.
    """

    spec: ViewSpec
    members: tuple[int, ...]
    cost: float


def candidates(spec: ViewSpec, crop: int, test_size: int, aspect: float) -> list[Candidate]:
    """The sub-products of a set, the cheapest first: with and without flip and crops, scales added one by one.

    Scales are added by their distance from the validation size, the nearest first. Dense stays dense.
    """
    place = {view: number for number, view in enumerate(spec.views(crop, test_size))}
    choices: list[list[tuple[str, Any] | None]] = []
    for name, argument in spec.parts:
        if isinstance(argument, tuple):
            near = sorted(argument, key=lambda scale: (abs(_log_ratio(scale, crop, test_size)), scale.value))
            grown = [tuple(scale for scale in argument if scale in near[:count]) for count in range(1, len(near) + 1)]
            choices.append([(name, scales) for scales in grown])
        elif isinstance(argument, str):
            choices.append([(name, argument)])
        else:
            choices.append([None, (name, argument)])
    sets: list[list[tuple[str, Any]]] = [[]]
    for options in choices:
        sets = [[*parts, option] if option else parts for parts in sets for option in options]
    found = []
    for parts in sets:
        smaller = ViewSpec(tuple(parts), spec.space)
        members = tuple(sorted(place[view] for view in smaller.views(crop, test_size)))
        found.append(Candidate(smaller, members, smaller.cost(crop, test_size, aspect)))
    return sorted(found, key=lambda candidate: (candidate.cost, candidate.spec.canonical))


def _log_ratio(scale: Scale, crop: int, test_size: int) -> float:
    return float(np.log(scale.pixels(crop) / max(crop, test_size)))


def average(probs: Array, members: Sequence[int], space: str) -> npt.NDArray[np.float64]:
    """Average some views.

    Args:
        probs: (V, N, C) probabilities of all views.
        members: Which of the V.
        space: probs, logits or gmean (see ViewSpec).

    Returns:
        (N, C), rows sum to 1.
    """
    chosen = probs[list(members)].astype(np.float64)
    mean: npt.NDArray[np.float64]
    if space == "probs":
        mean = chosen.mean(axis=0)
    else:
        logs = np.log(np.maximum(chosen, SMALLEST)).mean(axis=0)
        mean = np.exp(logs - logs.max(axis=1, keepdims=True))
    normal: npt.NDArray[np.float64] = mean / mean.sum(axis=1, keepdims=True)
    return normal


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        name: A view, or a set of views as a spec.
        views: How many.
        score: Of these views alone.
        gain: Score minus that of the first row of all, paired; its sign is turned for losses, so more is better.
        cost: Forward passes of a photo in units of one centre crop.
    """

    name: str
    views: int
    score: float
    gain: Estimate
    cost: float


@dataclass(frozen=True)
class Worth:
    """What `measure` found.

    Attributes:
        singles: One row per view.
        products: One row per candidate, the cheapest first.
        best: The candidate with the best score.
        suggested: The cheapest within one paired standard error of the best.
        picks: What was suggested without each part of the photos, and how often.
        crossfitted: Gain of choosing this way over the first candidate, cross-fitted.
        crossfitted_score: The score of it.
    """

    singles: list[Row]
    products: list[Row]
    best: Candidate
    suggested: Candidate
    picks: list[tuple[str, int]]
    crossfitted: Estimate
    crossfitted_score: float


def gain_over(metric: str, labels: Array, probs: Array, base: Array, groups: Array | None) -> Estimate:
    """By how much `probs` is better than `base` on the same photos; negative where it is worse."""
    found = metrics.paired_difference(labels, probs, base, groups, metric)
    if metrics.METRICS[metric].higher_is_better:
        return found
    return Estimate(-found.value, found.se, -found.high, -found.low)


def smallest_good(
    metric: str, labels: Array, probs: Sequence[Array], costs: Sequence[float], groups: Array | None
) -> tuple[int, int]:
    """Places of the best candidate and of the cheapest that is within one paired standard error of it.

    Of equally good ones the cheaper counts as the best. The rule is that of Breiman et al. (1984, section 3.4.3), with
    the error of the difference instead of the score's own, since all are measured on the same photos.
    """
    scoring = metrics.METRICS[metric]
    utilities = [scoring.utility(scoring.function(labels, each)) for each in probs]
    order = sorted(range(len(probs)), key=lambda number: (costs[number], number))
    best = max(order, key=lambda number: (utilities[number], -costs[number]))
    for number in order:
        behind = gain_over(metric, labels, probs[best], probs[number], groups)
        if number == best or behind.value <= behind.se:
            return best, number
    raise AssertionError("the best is within its own error")


def measure(
    spec: ViewSpec,
    views: Sequence[View],
    probs: Array,
    labels: Array,
    parts: Array,
    *,
    crop: int,
    test_size: int,
    aspect: float,
    metric: str,
    groups: Array | None = None,
) -> Worth:
    """Score every view and every sub-product, and suggest one.

    Args:
        spec: The whole set.
        views: Its V views.
        probs: (V, N, C) their probabilities on photos the networks never trained on.
        labels: (N,) true labels.
        parts: (N,) which part of the cross-fit each photo is in: its fold.
        crop: Side of the training crop, pixels.
        test_size: Shorter side where the spec names no scales.
        aspect: Longer over shorter side of a typical photo.
        metric: A name in METRICS.
        groups: (N,) rows with equal values are copies of one photo.
    """
    sets = candidates(spec, crop, test_size, aspect)
    averages = [average(probs, candidate.members, spec.space) for candidate in sets]
    costs = [candidate.cost for candidate in sets]
    score = metrics.METRICS[metric].function
    base = averages[0]

    def row(name: str, count: int, these: Array, cost: float) -> Row:
        return Row(name, count, score(labels, these), gain_over(metric, labels, these, base, groups), cost)

    singles = []
    for number, view in enumerate(views):
        alone = average(probs, [number], spec.space)
        cost = view.size**2 * aspect / crop**2 if view.place == "whole" else 1.0
        singles.append(row(view.name, 1, alone, cost))
    products = [
        row(candidate.spec.canonical, len(candidate.members), each, candidate.cost)
        for candidate, each in zip(sets, averages, strict=True)
    ]
    best, good = smallest_good(metric, labels, averages, costs, groups)
    held_out = np.empty_like(base)
    picks: dict[str, int] = {}
    for part in np.unique(parts):
        here, rest = parts == part, parts != part
        others = groups[rest] if groups is not None else None
        _, chosen = smallest_good(metric, labels[rest], [each[rest] for each in averages], costs, others)
        held_out[here] = averages[chosen][here]
        name = sets[chosen].spec.canonical
        picks[name] = picks.get(name, 0) + 1
    return Worth(
        singles,
        products,
        sets[best],
        sets[good],
        sorted(picks.items(), key=lambda pick: (-pick[1], pick[0])),
        gain_over(metric, labels, held_out, base, groups),
        score(labels, held_out),
    )


def parts_of(labels: Array, ids: Sequence[str], count: int = 5) -> npt.NDArray[np.int64]:
    """Parts for the cross-fit where there is a single fold: (N,) 0..count-1, every class spread over them."""
    order = np.lexsort((np.asarray(ids), labels))
    parts = np.empty(len(labels), np.int64)
    parts[order] = np.arange(len(labels)) % count
    return parts
