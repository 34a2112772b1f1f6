"""Worlds drawn by code, in which the truth about an estimate is known: fresh rows of the same members.

A world has rows of unbalanced classes in stratified folds and members that are nearly equally good and share most of
their errors, as networks trained on the same photos do; a member's checkpoints of different folds differ a little. What
a method is worth is measured on many fresh rows, each predicted by one fold's checkpoints and by the method as it was
fitted for that fold. An estimate is right if, over many worlds, it is on average that number, and if its 95 % interval
holds that number in 95 % of the worlds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from comp.ensembling.estimate import CrossFit, Fitted, Method, cross_fit, take
from comp.metrics import METRICS, Z95, interval, paired_difference

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Shape:
    """What worlds look like.

    Attributes:
        members: M.
        folds: K.
        smallest, largest: Rows of the rarest and the commonest of the C classes, spaced geometrically.
        classes: C.
        fresh: Fresh rows per row.
        skill: The distance of the true class, in units of the noise.
        shared: Part of the noise's variance that the members share.
        spread: Standard deviation of skill over members.
        fold_spread: Standard deviation of skill over the checkpoints of a member.
        sharpness: Factor from noise units to logits.
    """

    members: int = 10
    folds: int = 5
    smallest: int = 80
    largest: int = 400
    classes: int = 8
    fresh: int = 20
    skill: float = 2.2
    shared: float = 0.85
    spread: float = 0.02
    fold_spread: float = 0.05
    sharpness: float = 1.5

    @property
    def counts(self) -> npt.NDArray[np.int64]:
        """(C,) rows of each class."""
        counts: npt.NDArray[np.int64] = np.geomspace(self.smallest, self.largest, self.classes).round().astype(np.int64)
        return counts


@dataclass(frozen=True)
class World:
    """Members' out-of-fold probabilities (M, N, C) with labels and folds, and the same for fresh rows."""

    members: npt.NDArray[np.float32]
    labels: npt.NDArray[np.int64]
    folds: npt.NDArray[np.int64]
    fresh_members: npt.NDArray[np.float32]
    fresh_labels: npt.NDArray[np.int64]
    fresh_folds: npt.NDArray[np.int64]


def draw_world(seed: int, shape: Shape) -> World:
    """Draw a world; the same seed and shape give the same one."""
    rng = np.random.default_rng([seed, 104])
    class_skill = shape.skill + rng.uniform(-0.4, 0.4, shape.classes)
    skill = rng.normal(0.0, shape.spread, (shape.members, 1))
    skill = skill + rng.normal(0.0, shape.fold_spread, (shape.members, shape.folds))

    def rows(times: int) -> tuple[Array, Array, Array]:
        labels = np.repeat(np.arange(shape.classes), shape.counts * times)
        folds = np.arange(len(labels)) % shape.folds
        size = (len(labels), shape.classes)
        common = rng.standard_normal(size, dtype=np.float32) * np.float32(shape.shared**0.5)
        probs = np.empty((shape.members, *size), dtype=np.float32)
        for m in range(shape.members):
            logits = rng.standard_normal(size, dtype=np.float32)
            logits *= np.float32((1.0 - shape.shared) ** 0.5)
            logits += common
            logits[np.arange(len(labels)), labels] += (class_skill[labels] + skill[m, folds]).astype(np.float32)
            np.exp(np.float32(shape.sharpness) * logits, out=logits)
            np.divide(logits, logits.sum(axis=1, keepdims=True), out=probs[m])
        return probs, labels, folds

    return World(*rows(1), *rows(shape.fresh))


def true_score(world: World, result: CrossFit, method: Method, metric: str) -> float:
    """Score of the fitted method on fresh rows, each by the fit of the part it would have been held out in."""
    parts = sorted(result.by_part)
    if not parts:
        probs = result.fitted.apply(world.fresh_members, world.fresh_folds)
        return METRICS[metric].function(world.fresh_labels, probs)
    place = np.arange(len(world.fresh_labels)) // (int(world.fresh_folds.max()) + 1) % len(parts)
    part = np.array(parts)[place] if method.per_fold else world.fresh_folds
    probs = np.empty(world.fresh_members.shape[1:])
    for number, fitted in result.by_part.items():
        inside = part == number
        probs[inside] = fitted.apply(take(world.fresh_members, inside), world.fresh_folds[inside])
    return METRICS[metric].function(world.fresh_labels, probs)


def whole_score(world: World, fitted: Fitted, metric: str) -> float:
    """Score on fresh rows of the method fitted on all rows: what in-sample numbers pretend to be."""
    probs = fitted.apply(world.fresh_members, world.fresh_folds)
    return METRICS[metric].function(world.fresh_labels, probs)


@dataclass(frozen=True)
class Verdict:
    """How an estimate fared over many worlds; everything but the counts and shares in points (hundredths).

    Attributes:
        method: The method's name.
        estimate: `cross-fitted` or `in-sample`.
        worlds: How many.
        truth: Mean true score.
        error: Mean of estimate − truth.
        error_se: Standard error of that mean.
        covered: Share of the worlds whose 95 % interval holds the truth, 0..1.
    """

    method: str
    estimate: str
    worlds: int
    truth: float
    error: float
    error_se: float
    covered: float

    @property
    def honest(self) -> bool:
        """The criterion: mean error 0 ± 0.1 points, coverage 93 to 97 %."""
        return abs(self.error) <= 0.1 and 0.93 <= self.covered <= 0.97


def judge(
    methods: Sequence[Method], worlds: int, shape: Shape | None = None, metric: str = "macro_f1", first: int = 0
) -> list[Verdict]:
    """Try the estimates of methods in many worlds.

    Args:
        methods: What to try.
        worlds: How many worlds to draw.
        shape: What they look like.
        metric: A name in METRICS.
        first: Seed of the first world; the others follow.

    Returns:
        Two verdicts per method: of the cross-fitted estimate and of the in-sample one.
    """
    shape = shape or Shape()
    cross: dict[str, list[tuple[float, float, bool]]] = {method.name: [] for method in methods}
    naive: dict[str, list[tuple[float, float, bool]]] = {method.name: [] for method in methods}
    for seed in range(first, first + worlds):
        world = draw_world(seed, shape)
        for method in methods:
            result = cross_fit(method, world.members, world.labels, world.folds, metric)
            truth = true_score(world, result, method, metric)
            held = result.low <= truth <= result.high
            cross[method.name].append((truth, result.cross_fitted - truth, held))
            truth = whole_score(world, result.fitted, metric)
            own = interval(metric, world.labels, result.fitted.apply(world.members, world.folds))
            naive[method.name].append((truth, result.in_sample - truth, own.low <= truth <= own.high))
    verdicts = []
    for method in methods:
        for name, table in (("cross-fitted", cross[method.name]), ("in-sample", naive[method.name])):
            values = np.array(table, dtype=np.float64)
            error, spread = 100 * values[:, 1].mean(), 100 * values[:, 1].std(ddof=1) / np.sqrt(worlds)
            truth, covered = 100 * values[:, 0].mean(), values[:, 2].mean()
            verdicts.append(
                Verdict(method.name, name, worlds, float(truth), float(error), float(spread), float(covered))
            )
    return verdicts


def coverage(worlds: int, shape: Shape | None = None, metric: str = "macro_f1", first: int = 0) -> dict[str, float]:
    """Share of worlds in which 95 % intervals hold the truth, for one member's score and for the difference of two.

    Returns:
        `score`: the interval in use; `normal`: score ± 1.96 standard errors; `difference`: the paired interval.
    """
    shape = shape or Shape(members=2, fold_spread=0.0)
    function = METRICS[metric].function
    held = {"score": 0, "normal": 0, "difference": 0}
    for seed in range(first, first + worlds):
        world = draw_world(seed, shape)
        truth = [function(world.fresh_labels, member) for member in world.fresh_members[:2]]
        one = interval(metric, world.labels, world.members[0])
        two = paired_difference(world.labels, world.members[0], world.members[1], metric=metric)
        held["score"] += one.low <= truth[0] <= one.high
        held["normal"] += abs(one.value - truth[0]) <= Z95 * one.se
        held["difference"] += two.low <= truth[0] - truth[1] <= two.high
    return {name: count / worlds for name, count in held.items()}
