"""Greedy ensemble selection with replacement (Caruana, Niculescu-Mizil, Crew, Ksikes, ICML 2004), made fast exactly.

The mean of the chosen members decides each row by its arg max. In a row, a class that another class beats in every
member can never win, whatever is chosen, so it is dropped; rows with one class left are decided for good. Per step,
only those rows are looked at in which a single further member could still change the winner. Nothing is approximated:
the tests compare with the plain definition.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from comp.ensembling.rules import Members, member_order
from comp.metrics import LOG_FLOOR, macro_f1_from_counts

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

SAME = 1e-12  # scores closer than this are equal; the earlier member (or the smaller ensemble) is taken
SLACK = 1e-6  # rows this close to a change of winner are looked at again; far above rounding
CHUNK = 512  # rows handled at once, so that a chunk of a member fits the cache
THREADS = 2
THREADED = 8  # chunks from which on threads are worth starting

_Map = Callable[..., Iterator[Any]]


@dataclass(frozen=True)
class Selection:
    """What was selected.

    Attributes:
        counts: (M,) how often each member was taken; the ensemble is the mean with these weights.
        score: The metric on the rows of the selection, which flatters (see comp.ensembling.estimate).
        path: The score after each step of the (last) bag, from the sorted start on.
    """

    counts: Ints
    score: float
    path: tuple[float, ...]


@dataclass(frozen=True)
class _Pairs:
    """The (row, class) pairs that can still win, of the rows with more than one such class; sorted by row and class."""

    values: Array  # (L, M) the members' probabilities
    row: Ints  # (L,) 0..R-1
    klass: Ints  # (L,)
    start: Ints  # (R,) the first pair of each row
    labels: Ints  # (R,) true labels of these rows
    tp: Ints  # (C,) hits among the decided rows
    predicted: Ints  # (C,) decided rows by winner


def _survivors(members: list[Array], rows: slice) -> npt.NDArray[np.bool_]:
    """(n, C): False for a class that one of a few strong classes of its row beats in every member."""
    total = members[0][rows].astype(np.float64)
    for member in members[1:]:
        total += member[rows]
    alive = np.ones(total.shape, dtype=bool)
    here = np.arange(len(total))
    for _ in range(3):
        pivot = np.where(alive, total, -1.0).argmax(axis=1)
        beaten = alive.copy()
        beaten[here, pivot] = False
        for member in members:
            part = member[rows]
            beaten &= part < part[here, pivot][:, None]
        alive &= ~beaten
        total[here, pivot] = -1.0  # next time another class is the measure; the ones used stay alive unless beaten
    return alive


def _pairs(members: list[Array], labels: Array, each: _Map) -> _Pairs:
    rows, classes = members[0].shape
    chunks = [slice(first, min(first + CHUNK, rows)) for first in range(0, rows, CHUNK)]
    alive = np.concatenate(list(each(lambda chunk: _survivors(members, chunk), chunks)))
    left = alive.sum(axis=1)
    decided = left == 1
    winner = alive[decided].argmax(axis=1)
    truth = labels[decided]
    open_rows = np.flatnonzero(~decided)
    row, klass = np.nonzero(alive[open_rows])
    flat = open_rows[row] * classes + klass
    values = np.empty((len(row), len(members)), dtype=members[0].dtype)

    def fill(piece: slice) -> None:
        values[piece] = np.stack([member.reshape(-1)[flat[piece]] for member in members], axis=1)

    list(each(fill, (slice(first, first + 8192) for first in range(0, len(row), 8192))))
    start = np.cumsum(left[open_rows]) - left[open_rows]
    tp = np.bincount(truth[truth == winner], minlength=classes)
    predicted = np.bincount(winner, minlength=classes)
    return _Pairs(values, row, klass, start, labels[open_rows].astype(np.int64), tp, predicted)


def _winners(totals: Array, start: Ints, row: Ints) -> Array:
    """(R, …) index of the first pair with the largest total of its row, for totals (L, …)."""
    top = np.maximum.reduceat(totals, start, axis=0)
    count = len(totals)
    small = np.int16 if count < 2**15 else np.int32  # half the memory to move
    place = np.arange(count, dtype=small).reshape(-1, *[1] * (totals.ndim - 1))
    where = np.where(totals == top[row], place, small(count))
    result: Array = np.minimum.reduceat(where, start, axis=0)
    return result


class _ByCounts:
    """Scores of label metrics: keeps the sum of the chosen members per pair, and counts per class."""

    def __init__(self, members: list[Array], labels: Array, score: Callable[[Array, Array], Any]):
        self.each: _Map = ThreadPoolExecutor(THREADS).map if len(labels) > THREADED * CHUNK else map
        self.pairs, self.score, self.classes = _pairs(members, labels, self.each), score, members[0].shape[1]
        self.size = np.diff(np.append(self.pairs.start, len(self.pairs.row)))
        self.reset()

    def reset(self) -> None:
        self.total = np.zeros(len(self.pairs.row))
        self.winner = np.full(len(self.pairs.start), -1, dtype=np.int64)
        self.gain = np.full(len(self.pairs.row), np.inf)

    def scores(self, among: Ints) -> Floats:
        """(K,) the score after adding each of the members `among` (K,) to what is chosen."""
        pairs, count = self.pairs, len(among)
        tp = np.broadcast_to(pairs.tp, (count, self.classes)).copy()
        predicted = np.broadcast_to(pairs.predicted, (count, self.classes)).copy()
        if len(pairs.start):
            touched = self._open_rows()
            settled = ~touched
            klass = pairs.klass[self.winner[settled]]
            predicted += np.bincount(klass, minlength=self.classes)
            tp += np.bincount(klass[klass == pairs.labels[settled]], minlength=self.classes)
            self._count_open(np.flatnonzero(touched), among, tp, predicted)
        return np.asarray(self.score(tp, predicted), dtype=np.float64)

    def _open_rows(self) -> npt.NDArray[np.bool_]:
        """(R,) rows in which one further member may change the winner."""
        if not self.total.any():
            return np.ones(len(self.pairs.start), dtype=bool)
        lead = self.total[self.winner][self.pairs.row] - self.total
        close = self.gain >= lead - SLACK
        close[self.winner] = False
        return np.logical_or.reduceat(close, self.pairs.start)

    def _count_open(self, rows: Ints, among: Ints, tp: Array, predicted: Array) -> None:
        """Add the rows that are open to the counts (K, C), each for every candidate of its own."""
        chunks = [rows[first : first + CHUNK] for first in range(0, len(rows), CHUNK)]
        for cells, hits in self.each(lambda part: self._count(part, among), chunks):
            predicted += cells
            tp += hits

    def _count(self, part: Ints, among: Ints) -> tuple[Ints, Ints]:
        pairs, own = self.pairs, self.size[part]
        begin = np.cumsum(own) - own
        row = np.repeat(np.arange(len(part)), own)
        index = np.repeat(pairs.start[part] - begin, own) + np.arange(own.sum())
        values = pairs.values[index]
        if len(among) < values.shape[1]:
            values = values[:, among]
        klass = pairs.klass[index[_winners(self.total[index][:, None] + values, begin, row)]]  # (rows, K)
        cell = klass + np.arange(len(among)) * self.classes
        hits = cell[klass == pairs.labels[part][:, None]]
        shape, count = (len(among), self.classes), len(among) * self.classes
        return np.bincount(cell.ravel(), minlength=count).reshape(shape), np.bincount(hits, minlength=count).reshape(
            shape
        )

    def add(self, member: int) -> None:
        """Take a member into the ensemble."""
        pairs = self.pairs
        if not len(pairs.start):
            return
        self.total += pairs.values[:, member]
        winner = _winners(self.total, pairs.start, pairs.row).astype(np.int64)
        moved = np.flatnonzero((winner != self.winner)[pairs.row])
        ahead = winner[pairs.row[moved]]
        for first in range(0, len(moved), 8192):
            piece = slice(first, first + 8192)
            # the most that one further member can bring a class nearer to the winner
            self.gain[moved[piece]] = (pairs.values[moved[piece]] - pairs.values[ahead[piece]]).max(axis=1)
        self.winner = winner


class _ByLogLoss:
    """Scores of log loss (negated): only the probability of the true class matters."""

    def __init__(self, members: list[Array], labels: Array):
        self.own = np.stack([member[np.arange(len(labels)), labels] for member in members]).astype(np.float64)
        self.reset()

    def reset(self) -> None:
        self.total, self.count = np.zeros(self.own.shape[1]), 0

    def scores(self, among: Ints) -> Floats:
        means = (self.total + self.own[among]) / (self.count + 1)
        return np.asarray(np.log(np.clip(means, LOG_FLOOR, 1.0)).mean(axis=1), dtype=np.float64)

    def add(self, member: int) -> None:
        self.total, self.count = self.total + self.own[member], self.count + 1


def _scorer(members: list[Array], labels: Array, metric: str) -> _ByCounts | _ByLogLoss:
    if metric == "log_loss":
        return _ByLogLoss(members, labels)
    true = np.bincount(labels, minlength=members[0].shape[1])
    if metric == "macro_f1":
        return _ByCounts(members, labels, lambda tp, predicted: macro_f1_from_counts(tp, predicted, true))
    if metric == "accuracy":
        return _ByCounts(members, labels, lambda tp, predicted: tp.sum(axis=-1) / len(labels))
    raise ValueError(f"selection knows macro_f1, accuracy and log_loss, not {metric}")


def _first_best(scores: Floats) -> int:
    return int(np.flatnonzero(scores >= scores.max() - SAME)[0])


def _one_bag(
    scorer: _ByCounts | _ByLogLoss, among: Ints, rounds: int, start: int, size: int
) -> tuple[Ints, list[float]]:
    """Sorted start, then greedy steps; the best prefix of the way is kept."""
    scorer.reset()
    alone = scorer.scores(among)
    order = among[np.argsort(-np.round(alone / SAME) * SAME, kind="stable")]
    taken: list[int] = []
    path: list[float] = []
    for member in order[: min(start, rounds)]:
        path.append(float(scorer.scores(np.array([member]))[0]))
        scorer.add(int(member))
        taken.append(int(member))
    best_start = _first_best(np.array(path)) + 1
    taken, path = taken[:best_start], path[:best_start]
    scorer.reset()
    for member in taken:
        scorer.add(member)
    while len(taken) < rounds:
        scores = scorer.scores(among)
        choice = _first_best(scores)
        path.append(float(scores[choice]))
        taken.append(int(among[choice]))
        scorer.add(int(among[choice]))
    kept = _first_best(np.array(path)) + 1
    return np.bincount(np.array(taken[:kept]), minlength=size), path


def select(
    members: Members,
    labels: Array,
    metric: str = "macro_f1",
    rounds: int = 50,
    start: int = 5,
    bags: int = 1,
    bag_fraction: float = 0.5,
    seed: int = 0,
) -> Selection:
    """Select members greedily with replacement.

    The members are sorted by their own score; of the means of the first 1..`start` of them the best one is the start.
    Then, up to `rounds` members in all, the member is added that gives the best score. Of the whole way the best
    ensemble is kept, the smallest of equals. Equal scores go to the member first in digest order, so the order of
    members cannot matter. With `bags` > 1 each bag does this with a random part of the members and the counts are
    added up (§2.3 of the paper).

    Args:
        members: M arrays (N, C) of probabilities, float32.
        labels: (N,) true labels.
        metric: macro_f1, accuracy or log_loss.
        rounds: Members to take in all, with repetitions.
        start: The longest sorted start that is tried; at least 1.
        bags: How many random parts; 1 means one pass over all members.
        bag_fraction: The part of the members in each bag, in (0, 1].
        seed: Of the bags' draws.

    Returns:
        Counts in the order the members were given.
    """
    if rounds < 1 or start < 1 or bags < 1 or not 0 < bag_fraction <= 1:
        raise ValueError(f"rounds {rounds}, start {start}, bags {bags} ≥ 1 and 0 < bag_fraction {bag_fraction} ≤ 1")
    order = member_order(members)
    scorer = _scorer([np.ascontiguousarray(members[m]) for m in order], np.asarray(labels), metric)
    size, rng = len(order), np.random.default_rng(seed)
    counts = np.zeros(size, dtype=np.int64)
    path: list[float] = []
    for _ in range(bags):
        among = np.arange(size)
        if bags > 1:
            among = np.sort(rng.choice(size, max(1, round(bag_fraction * size)), replace=False))
        taken, path = _one_bag(scorer, among, rounds, start, size)
        counts += taken
    scorer.reset()
    for m in np.repeat(np.arange(size), counts)[:-1]:
        scorer.add(int(m))
    last = int(np.flatnonzero(counts)[-1])
    score = float(scorer.scores(np.array([last]))[0])
    result = np.zeros(size, dtype=np.int64)
    result[order] = counts
    return Selection(result, score if metric != "log_loss" else -score, tuple(path))
