"""The honest estimate: whatever is chosen by a score is chosen on other images than it is scored on.

A `Method` is fitted on rows and gives a `Fitted`, which is applied to rows. `cross_fit` rotates: for each part of the
rows the method is fitted on the other parts and applied to this one; the held-out predictions are pooled and scored
once. Beside it stands the in-sample score, of the method fitted on all rows and scored on the same; their difference is
the optimism. What the estimate speaks of: the method on one fold's checkpoint of each member. The submission averages
all folds' checkpoints and is usually better.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from comp.ensembling.rules import Floats, Ints, Members
from comp.errors import CompError, Exit
from comp.metrics import METRICS, Metric, around, standard_error

Array = npt.NDArray[Any]
Description = dict[str, Any]

PARTS = 5  # into which rows are split where the folds cannot be rotated
PAIRS = 10  # pairs of parts that the error of choosing is measured on: all pairs of 5 folds


@dataclass(frozen=True)
class Answers:
    """The truth about N rows, in the order of the members' rows.

    Attributes:
        labels: (N,) true labels.
        folds: (N,) the fold in which each row was held out.
        metric: A name in comp.metrics.METRICS.
        groups: (N,) equal for exact copies of one photo; use ids or digests, so that row order cannot matter.
    """

    labels: Array
    folds: Array
    metric: str
    groups: Array

    def take(self, rows: Array) -> Answers:
        """The answers for some rows (indices or a mask)."""
        return Answers(self.labels[rows], self.folds[rows], self.metric, self.groups[rows])

    @property
    def how(self) -> Metric:
        return METRICS[self.metric]

    def score(self, probs: Array) -> float:
        """The metric."""
        return self.how.function(self.labels, probs)

    def utility(self, probs: Array) -> float:
        """The metric with its sign turned so that more is better."""
        return self.how.utility(self.score(probs))


class Fitted(Protocol):
    """A method with everything chosen: a function of the members' probabilities, row by row."""

    def apply(self, members: Members, folds: Array | int | None = None) -> Floats:
        """(N, C) float64 from M arrays (N, C); `folds` (N,) or one number says whose checkpoints predicted the rows."""
        ...

    def describe(self) -> Description:
        """What was chosen, for JSON; `comp.ensembling.fitted.restore` reads it back."""
        ...


class Method(Protocol):
    """A way to make one prediction of several, some of it perhaps learnt from labels."""

    @property
    def name(self) -> str:
        """Its spec, e.g. `vote`, `select`."""
        ...

    @property
    def per_fold(self) -> bool:
        """Whether something is fitted for each fold's checkpoints apart; then rows are rotated within folds."""
        ...

    def fixed(self, members: Members) -> bool:
        """Whether nothing at all is learnt from labels."""
        ...

    def fit(self, members: Members, answers: Answers | None) -> Fitted:
        """Choose everything on these rows; `answers` may be None for fixed methods only."""
        ...


@runtime_checkable
class Staged(Protocol):
    """A method that only compares predictions which learn nothing: they are made once, for all rows."""

    def stage(self, members: Members) -> tuple[Method, list[Array]] | None:
        """A method of the same result on the predictions to compare; None where it cannot be had so."""
        ...

    def unstage(self, fitted: Fitted, members: Members) -> Fitted:
        """What that method's fit means for the members themselves."""
        ...


@dataclass(frozen=True)
class CrossFit:
    """What a method is worth.

    Attributes:
        method: Its name.
        in_sample: Score of the method fitted on all rows, on the same rows.
        cross_fitted: Score of the pooled held-out predictions: the headline.
        optimism: How much better the in-sample score looks, in the metric's unit (≥ 0 as a rule).
        se: Standard error of `cross_fitted`, over the choice of images and, with it, over what was chosen on them.
        choice_se: The part of `se` that comes from choosing; se² = (error of fixed predictions)² + choice_se².
        low, high: The 95 % interval.
        probs: (N, C) float64, the pooled held-out predictions.
        fitted: The method fitted on all rows, to be applied to the test predictions.
        by_part: For each rotated part: the method fitted on the others.
    """

    method: str
    in_sample: float
    cross_fitted: float
    optimism: float
    se: float
    choice_se: float
    low: float
    high: float
    probs: Floats
    fitted: Fitted
    by_part: dict[int, Fitted] = field(default_factory=dict)

    def numbers(self) -> dict[str, float]:
        """The scores alone, for JSON."""
        names = ("in_sample", "cross_fitted", "optimism", "se", "choice_se", "low", "high")
        return {name: float(getattr(self, name)) for name in names}


def take(members: Members, rows: Array) -> list[Array]:
    """Some rows (indices or a mask) of every member."""
    return [np.asarray(member)[rows] for member in members]


def parts_within(answers: Answers, parts: int = PARTS) -> Ints:
    """Split the rows of every fold and class evenly into parts; copies of a photo stay together.

    The split follows from the group values alone (by their digests), not from the order of rows.

    Returns:
        (N,) part of each row, 0..parts-1.
    """
    values, first, group = np.unique(answers.groups, return_index=True, return_inverse=True)
    keys = [hashlib.blake2b(str(value).encode(), digest_size=8).digest() for value in values]
    counted: dict[tuple[int, int], int] = {}
    part = np.zeros(len(values), dtype=np.int64)
    for place in sorted(range(len(values)), key=lambda i: keys[i]):
        row = first[place]
        stratum = (int(answers.folds[row]), int(answers.labels[row]))
        part[place] = (counted.setdefault(stratum, (stratum[0] * 31 + stratum[1]) % parts)) % parts
        counted[stratum] += 1
    return part[group.reshape(-1)]


def rotation(method: Method, answers: Answers) -> Ints:
    """(N,) the part in which each row is held out: its fold, or a part of its fold where folds cannot be rotated."""
    if method.per_fold or len(np.unique(answers.folds)) < 2:
        return parts_within(answers)
    return np.asarray(answers.folds, dtype=np.int64)


def cross_fit(
    method: Method,
    members: Members,
    labels: Array | Sequence[int],
    folds: Array | Sequence[int],
    metric: str = "macro_f1",
    groups: Array | Sequence[Any] | None = None,
) -> CrossFit:
    """Estimate what a method is worth on images it was not fitted on.

    Args:
        method: See `comp.ensembling.methods.method`.
        members: M arrays (N, C) of out-of-fold probabilities.
        labels: (N,) true labels.
        folds: (N,) the fold in which each row was held out when the members were trained.
        metric: A name in comp.metrics.METRICS.
        groups: (N,) equal for exact copies of one photo (digests or ids); default: every row is its own.

    Returns:
        Scores, interval, the pooled held-out predictions and the method fitted on all rows.
    """
    count = len(np.asarray(labels))
    answers = Answers(
        np.asarray(labels, dtype=np.int64),
        np.asarray(folds, dtype=np.int64),
        metric,
        np.arange(count) if groups is None else np.asarray(groups),
    )
    return cross_fit_answers(method, members, answers)


def cross_fit_answers(method: Method, members: Members, answers: Answers, with_error: bool = True) -> CrossFit:
    """`cross_fit` for answers already put together; methods use it, without the error, to choose among methods."""
    staged = method.stage(members) if isinstance(method, Staged) else None
    if isinstance(method, Staged) and staged is not None:
        result = cross_fit_answers(*staged, answers, with_error)
        by_part = {number: method.unstage(own, members) for number, own in result.by_part.items()}
        return replace(result, method=method.name, fitted=method.unstage(result.fitted, members), by_part=by_part)
    fitted = method.fit(members, answers)
    pooled = whole = fitted.apply(members, answers.folds)
    by_part = {}
    choice_error = 0.0
    if not method.fixed(members):
        part = rotation(method, answers)
        numbers = np.unique(part).tolist()
        if len(numbers) < 2:
            what = f"{len(answers.labels)} labelled images cannot be split to estimate it"
            raise CompError(method.name, what, "use a rule without fitting", Exit.DATA)
        pooled = np.empty_like(whole)
        for number in numbers:
            inside = part == number
            by_part[number] = method.fit(take(members, ~inside), answers.take(~inside))
            pooled[inside] = by_part[number].apply(take(members, inside), answers.folds[inside])
        if with_error:
            choice_error = _choice_error(method, members, answers, part, pooled)
    in_sample, score = answers.score(whole), answers.score(pooled)
    se = float("nan")
    if with_error:
        se = float(np.hypot(standard_error(answers.metric, answers.labels, pooled, answers.groups), choice_error))
    ends = around(answers.metric, score, se, len(np.unique(answers.groups)))
    optimism = in_sample - score if answers.how.higher_is_better else score - in_sample
    return CrossFit(
        method.name, in_sample, score, optimism, se, choice_error, ends.low, ends.high, pooled, fitted, by_part
    )


def _choice_error(method: Method, members: Members, answers: Answers, part: Ints, pooled: Floats) -> float:
    """The standard error that choosing adds to a cross-fitted score.

    Held-out errors of two parts j and k are not independent: luck in j moves what is chosen for k, luck in k what is
    chosen for j, and near-equal candidates make both moves go with the luck. Let f_k be fitted without k, f_jk without
    both, and d_kj the score's change when k's predictions by f_jk are replaced by those of f_k. f_jk knows neither
    part, so the covariance of the two errors is that of d_kj and d_jk, and the variance is twice its sum over pairs.
    The mean of all d is taken out first: what more rows gain on average is no luck. At most PAIRS pairs are fitted.
    """
    numbers = np.unique(part).tolist()
    count = len(numbers)
    if count < 3:
        return 0.0
    pairs = [(a, b) for a in range(count) for b in range(a + 1, count)]
    pairs.sort(key=lambda pair: ((pair[1] - pair[0]) % count, pair))
    score = answers.score(pooled)
    changes = []
    for pair in pairs[:PAIRS]:
        kept = ~np.isin(part, [numbers[place] for place in pair])
        fitted = method.fit(take(members, kept), answers.take(kept))
        both = []
        for place in pair:
            inside, other = part == numbers[place], pooled.copy()
            other[inside] = fitted.apply(take(members, inside), answers.folds[inside])
            both.append(score - answers.score(other))
        changes.append(both)
    table = np.array(changes)
    size = table.size
    if size < 4:
        return 0.0
    table = table - table.mean()
    product, square = float((table[:, 0] * table[:, 1]).mean()), float((table**2).mean())
    covariance = product + (square + product) / (size - 2)  # taking the mean out took this much away
    return float(np.sqrt(max(covariance, 0.0) * count * (count - 1)))
