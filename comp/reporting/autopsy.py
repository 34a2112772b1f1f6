"""What each member adds to an ensemble: agreement, common errors, ties, values, classes, and score against time."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from comp import metrics
from comp.ensembling.estimate import Method, cross_fit
from comp.ensembling.members import Sheet
from comp.metrics import METRICS, Estimate

Array = npt.NDArray[Any]
MOST_SHAPLEY = 10  # members; 2^10 ensembles
PATIENCE = 60.0  # seconds the scores of all subsets may be expected to take
OWNED = 0.02  # F1 by which the best member of a class must lead the next to own it


def agreement(answers: Sequence[Array]) -> npt.NDArray[np.float64]:
    """(M, M) share of photos two members answer alike."""
    stacked = np.stack(answers)
    return np.array([[float((a == b).mean()) for b in stacked] for a in stacked])


def error_correlation(answers: Sequence[Array], labels: Array) -> npt.NDArray[np.float64]:
    """(M, M) Pearson correlation of "is wrong" over photos; nan for a member that is never or always wrong."""
    wrong = np.stack([answer != labels for answer in answers]).astype(np.float64)
    centred = wrong - wrong.mean(axis=1, keepdims=True)
    spread = np.sqrt((centred**2).sum(axis=1))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(centred @ centred.T / np.outer(spread, spread), dtype=np.float64)


@dataclass(frozen=True)
class Ties:
    """Photos where the most votes are shared by several classes.

    Attributes:
        count: How many.
        won: Per member, how often it voted for the tied class that the rule took.
        lost: Per member, how often it voted for a tied class that the rule did not take.
    """

    count: int
    won: tuple[int, ...]
    lost: tuple[int, ...]


def ties(answers: Sequence[Array], final: Array, classes: int) -> Ties:
    """Who breaks ties.

    Args:
        answers: Each member's (N,) labels.
        final: (N,) labels of the rule.
        classes: C.
    """
    stacked = np.stack(answers)
    rows = np.arange(stacked.shape[1])
    counts = np.zeros((stacked.shape[1], classes), dtype=np.int64)
    for answer in stacked:
        counts[rows, answer] += 1
    top = counts == counts.max(axis=1, keepdims=True)
    tied = top.sum(axis=1) > 1
    among = [tied & top[rows, answer] for answer in stacked]
    won = tuple(int((inside & (answer == final)).sum()) for inside, answer in zip(among, stacked, strict=True))
    lost = tuple(int((inside & (answer != final)).sum()) for inside, answer in zip(among, stacked, strict=True))
    return Ties(int(tied.sum()), won, lost)


def owned_classes(answers: Sequence[Array], labels: Array, classes: int) -> list[list[tuple[int, float]]]:
    """Per member, the classes in which its F1 leads all others' by at least OWNED: (class, lead), best lead first."""
    per_class = []
    for answer in answers:
        counted = metrics.confusion(labels, answer, classes)
        total = counted.sum(axis=0) + counted.sum(axis=1)
        per_class.append(2.0 * np.diag(counted) / np.maximum(total, 1))
    table = np.stack(per_class)
    out: list[list[tuple[int, float]]] = [[] for _ in answers]
    if len(answers) < 2:
        return out
    for c in np.unique(labels).tolist():
        order = np.argsort(-table[:, c], kind="stable")
        lead = float(table[order[0], c] - table[order[1], c])
        if lead >= OWNED:
            out[int(order[0])].append((c, lead))
    return [sorted(found, key=lambda entry: -entry[1]) for found in out]


class SubsetScores:
    """The rule's score on any subset of the members.

    Where every member of the full ensemble gives the same answer, every fixed rule gives it for every subset too; so
    for metrics of labels only the other rows are ever computed.
    """

    def __init__(self, sheet: Sheet, method: Method, metric: str):
        self.sheet, self.method, self.metric = sheet, method, METRICS[metric]
        self.answers = [probs.argmax(axis=1) for probs in sheet.probs]
        self.fixed = method.fixed(sheet.probs)
        first = self.answers[0]
        agreed = np.all([answer == first for answer in self.answers], axis=0)
        self.short = self.fixed and self.metric.label_based
        self.open = np.flatnonzero(~agreed) if self.short else np.arange(len(sheet))
        self.part = [probs[self.open] for probs in sheet.probs]
        self.known: dict[tuple[int, ...], float] = {}

    def answers_of(self, subset: Sequence[int]) -> Array:
        """(N,) labels of a fixed rule on a subset."""
        out: Array = self.answers[0].copy()
        if len(self.open):
            members = [self.part[m] for m in subset]
            out[self.open] = self.method.fit(members, None).apply(members).argmax(axis=1)
        return out

    def __call__(self, subset: Sequence[int]) -> float:
        """The score, cross-fitted where the rule learns."""
        key = tuple(sorted(subset))
        if key not in self.known:
            self.known[key] = self._score(key)
        return self.known[key]

    def _score(self, subset: tuple[int, ...]) -> float:
        sheet = self.sheet
        if self.short:
            answers = self.answers_of(subset)
            hot = np.zeros((len(answers), sheet.probs[0].shape[1]), dtype=np.float32)
            hot[np.arange(len(answers)), answers] = 1.0
            return self.metric.function(sheet.labels, hot)
        return self.cross(subset).value

    def cross(self, subset: Sequence[int]) -> Estimate:
        """The cross-fitted estimate of the rule on a subset."""
        fit = self._fit(subset)
        return Estimate(fit.cross_fitted, fit.se, fit.low, fit.high)

    def pooled(self, subset: Sequence[int]) -> npt.NDArray[np.float64]:
        """(N, C) held-out predictions of the rule on a subset."""
        probs: npt.NDArray[np.float64] = self._fit(subset).probs
        return probs

    def _fit(self, subset: Sequence[int]) -> Any:
        sheet = self.sheet
        probs = [sheet.probs[m] for m in subset]
        return cross_fit(self.method, probs, sheet.labels, sheet.folds, self.metric.name, sheet.group_names)


def drop_one(scores: SubsetScores) -> list[Estimate]:
    """What the ensemble loses without each member: score with all minus score without it, paired."""
    everyone = range(len(scores.answers))
    whole = scores.pooled(everyone)
    sheet, higher = scores.sheet, scores.metric.higher_is_better
    out = []
    for m in everyone:
        rest = scores.pooled([other for other in everyone if other != m])
        pair = (whole, rest) if higher else (rest, whole)
        out.append(metrics.paired_difference(sheet.labels, pair[0], pair[1], sheet.groups, scores.metric.name))
    return out


def all_subsets(
    scores: SubsetScores, spent: Callable[[], float] = time.monotonic
) -> dict[tuple[int, ...], float] | None:
    """The score of every non-empty subset; None where there are too many members or it would take over a minute."""
    count = len(scores.answers)
    if count > MOST_SHAPLEY:
        return None
    start = spent()
    scores(range(count))
    if (spent() - start) * 2**count > PATIENCE * 2:  # the mean subset has half the members
        return None
    subsets = [s for size in range(1, count + 1) for s in itertools.combinations(range(count), size)]
    return {subset: scores(subset) for subset in subsets}


def shapley(values: dict[tuple[int, ...], float], count: int, empty: float) -> list[float]:
    """Shapley values (Shapley 1953): each member's mean contribution over all orders of joining.

    Args:
        values: Score of every non-empty subset of 0..count-1 (ascending tuples).
        count: Members.
        empty: Score of no member at all.

    Returns:
        One value per member; they sum to the full score minus `empty`.
    """
    table = {(): empty, **values}
    out = []
    for m in range(count):
        others = [o for o in range(count) if o != m]
        total = 0.0
        for size in range(count):
            share = math.factorial(size) * math.factorial(count - size - 1) / math.factorial(count)
            for subset in itertools.combinations(others, size):
                total += share * (table[tuple(sorted((*subset, m)))] - table[subset])
        out.append(total)
    return out


def guess(metric: str, labels: Array, classes: int) -> float:
    """Score of no member at all: every photo gets the classes' shares as probabilities."""
    shares = np.bincount(labels, minlength=classes) / len(labels)
    return METRICS[metric].function(labels, np.broadcast_to(shares, (len(labels), classes)))


@dataclass(frozen=True)
class Point:
    """A subset on the frontier: nothing cheaper scores as well.

    Attributes:
        members: Which.
        ms: Milliseconds per image and checkpoint, summed over the members.
        score: The rule's score on them.
    """

    members: tuple[int, ...]
    ms: float
    score: float


def frontier(scores: SubsetScores, costs: Sequence[float], values: dict[tuple[int, ...], float] | None) -> list[Point]:
    """Subsets that no cheaper subset beats, cheapest first.

    Args:
        scores: For subsets that are not in `values`.
        costs: Milliseconds per image of each member.
        values: Scores of all subsets; None with many members: then the member that adds most per millisecond is added
            one after another.
    """
    utility = scores.metric.utility
    if values is None:
        values = {}
        chosen: tuple[int, ...] = ()
        left = set(range(len(costs)))
        while left:
            now = -math.inf if not chosen else utility(scores(chosen))
            tried = {m: tuple(sorted((*chosen, m))) for m in sorted(left)}
            gain = {m: utility(scores(s)) - (now if chosen else 0.0) for m, s in tried.items()}
            best = max(gain, key=lambda m: gain[m] / costs[m] if gain[m] > 0 else gain[m] * costs[m])
            chosen = tried[best]
            values[chosen] = scores(chosen)
            left.remove(best)
    points = [Point(s, sum(costs[m] for m in s), score) for s, score in values.items()]
    points.sort(key=lambda p: (p.ms, -utility(p.score), p.members))
    out: list[Point] = []
    for point in points:
        if not out or utility(point.score) > utility(out[-1].score):
            out.append(point)
    return out
