"""Voting rules: M members' probabilities (M, N, C) become one prediction (N, C) whose rows sum to 1.

A rule looks at one row at a time and the order of members never matters, to the last bit: members are first put in the
order of a digest of their content (which itself ignores the order of rows), then added up in whole
numbers. Another rule is
one function here and one entry in RULES.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from comp.errors import CompError, Exit, did_you_mean

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Members = Sequence[Array] | Array  # M arrays (N, C), or one (M, N, C)

PROBABILITY_FLOOR = 1e-7  # about float32's resolution at 1: what a geometric mean takes for "impossible"
WEIGHT_UNITS = 10_000  # weights that are not whole numbers are rounded to this fraction of the largest


def _mixed(words: Array) -> Array:
    """The finaliser of splitmix64 (Steele, Lea, Flood 2014): every input bit reaches every output bit."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: Array = words ^ (words >> np.uint64(31))
    return mixed


def content_digest(member: Array) -> int:
    """64 bits of a member's numbers that do not depend on the order of its rows.

    Each row is hashed over its columns, the rows' hashes are summed. Meant for putting members in order, not as a seal.

    Args:
        member: (N, C) floats; float32 and float64 of the same values may differ.
    """
    member = np.ascontiguousarray(member)
    words: Array = member.view(np.uint32 if member.dtype == np.float32 else np.uint64)
    columns: Array = np.arange(1, words.shape[1] + 1, dtype=np.uint64)
    salts = _mixed(columns * np.uint64(0x9E3779B97F4A7C15)) | np.uint64(1)
    total = 0
    for start in range(0, len(words), 4096):  # in pieces that fit the cache
        rows = (words[start : start + 4096] * salts).sum(axis=1, dtype=np.uint64)
        total += int(_mixed(rows).sum(dtype=np.uint64))
    return total % 2**64


def member_order(members: Members, weights: Array | None = None) -> list[int]:
    """The order in which members are summed: by digest, then by weight; equal members of equal weight are one."""
    keys = [content_digest(_floats(member)) for member in members]
    tie = [0.0] * len(keys) if weights is None else [float(weight) for weight in weights]
    return sorted(range(len(keys)), key=lambda m: (keys[m], tie[m]))


def _floats(member: Array) -> Array:
    return member if member.dtype in (np.float32, np.float64) else member.astype(np.float64)


def labels_only(member: Array) -> bool:
    """Whether a member says nothing but labels: every row is a single 1 among zeros."""
    return bool(((member == 0) | (member == 1)).all() and (member.sum(axis=1) == 1).all())


def integer_weights(weights: Array | Sequence[float]) -> Ints:
    """Weights as whole numbers, so that sums of votes are exact.

    Whole numbers stay as they are; others (out-of-fold scores) are rounded to 1/10,000 of the largest.

    Args:
        weights: (M,) at least one above 0, none below.
    """
    given = np.asarray(weights, dtype=np.float64)
    if given.ndim != 1 or not np.isfinite(given).all() or (given < 0).any() or not (given > 0).any():
        raise CompError(
            "weights", f"are {given.tolist()}", "give one number ≥ 0 per member, one of them > 0", Exit.USAGE
        )
    if (given == np.rint(given)).all() and given.max() <= 2**31:
        return given.astype(np.int64)
    whole: Ints = np.rint(given / given.max() * WEIGHT_UNITS).astype(np.int64)
    return whole


def _weighted_sum(
    members: Members, weights: Array, order: Sequence[int], change: Callable[[Floats], Floats], bound: float = 1.0
) -> Floats:
    """Σ_m w_m · change(p_m), added up in whole numbers: no order of members can change a bit of it.

    A fixed order alone would not do: two members may hold the same rows at different places, and nothing in their
    numbers says which comes first. Members of weight 0 are left out; |change(p)| is at most `bound`.
    """
    most = bound * math.fsum(float(weight) for weight in weights)
    scale = 2.0 ** (61 - math.ceil(math.log2(most)))  # 2^61 leaves room for the rounding of each part
    total = np.zeros(members[0].shape, dtype=np.int64)
    for m in order:
        if weights[m] > 0:
            total += np.rint(change(members[m].astype(np.float64)) * (float(weights[m]) * scale)).astype(np.int64)
    result: Floats = total / scale
    return result


def _normalised(scores: Floats) -> Floats:
    result: Floats = scores / scores.sum(axis=1, keepdims=True)
    return result


def _identity(probs: Floats) -> Floats:
    return probs


def _one_hot(probs: Floats) -> Floats:
    votes = np.zeros_like(probs)
    votes[np.arange(len(probs)), probs.argmax(axis=1)] = 1.0
    return votes


def _points_then_mean(points: Floats, mean: Floats, best: Array | None) -> Floats:
    """Whole-number points whose ties are broken by the mean probability, then by the best member's vote, then by index.

    (points + mean) / Σ orders classes so: a class behind by a whole point has a mean ahead by less than 1. Where
    points and mean are exactly equal (members that give labels only), the best member's vote is mixed into the mean.
    """
    scores = points + mean
    if best is not None:
        top = scores == scores.max(axis=1, keepdims=True)
        vote = best.argmax(axis=1)
        rows = np.flatnonzero((top.sum(axis=1) > 1) & top[np.arange(len(top)), vote])
        broken = mean[rows] / 2
        broken[np.arange(len(rows)), vote[rows]] += 0.5
        scores[rows] = points[rows] + broken
    return _normalised(scores)


@dataclass(frozen=True)
class Call:
    """What a rule gets beside the members."""

    weights: Ints  # (M,) whole numbers ≥ 0; all 1 for an unweighted rule
    order: list[int]  # the order in which to sum
    parameter: float  # the number after the colon of the spec
    best: int | None  # the member with the best score, where it is known


def vote(members: Members, call: Call) -> Floats:
    """Hard vote: one (or weight) vote per member for its most probable class; ties: see `_points_then_mean`."""
    counts = _weighted_sum(members, call.weights, call.order, _one_hot)
    mean = _normalised(_weighted_sum(members, np.minimum(call.weights, 1), call.order, _identity))
    return _points_then_mean(counts, mean, None if call.best is None else members[call.best])


def mean(members: Members, call: Call) -> Floats:
    """Soft vote: the (weighted) mean probability."""
    return _normalised(_weighted_sum(members, call.weights, call.order, _identity))


def gmean(members: Members, call: Call) -> Floats:
    """The (weighted) geometric mean of probabilities, each at least 1e-7, normalised."""
    logs = _weighted_sum(
        members,
        call.weights,
        call.order,
        lambda p: np.log(np.maximum(p, PROBABILITY_FLOOR)),
        -math.log(PROBABILITY_FLOOR),
    )
    logs /= call.weights.sum()
    return _normalised(np.exp(logs - logs.max(axis=1, keepdims=True)))


def power(members: Members, call: Call) -> Floats:
    """The (weighted) power mean (mean of p^k)^(1/k), normalised; k = 1 is `mean`, k → 0 is `gmean`."""
    k = call.parameter
    # p^k can be too small for whole numbers; sorted by size, the parts are added in one order whatever the members'.
    parts = [(members[m].astype(np.float64) ** k) * float(call.weights[m]) for m in call.order if call.weights[m] > 0]
    total = np.sort(np.stack(parts), axis=0).sum(axis=0)
    return _normalised((total / call.weights.sum()) ** (1 / k))


def _double_points(probs: Floats) -> Floats:
    """Twice the Borda points of each class in its row: 2 per class beaten, 1 per class it equals; whole numbers."""
    by_size = np.argsort(probs, axis=1)  # the order among equals does not matter
    values = np.take_along_axis(probs, by_size, axis=1)
    place = np.arange(probs.shape[1])
    doubled = np.broadcast_to(2.0 * place, probs.shape)
    tied = np.flatnonzero((values[:, 1:] == values[:, :-1]).any(axis=1))
    if len(tied):
        rises = np.ones((len(tied), len(place)), dtype=bool)
        rises[:, 1:] = values[tied, 1:] != values[tied, :-1]
        first = np.maximum.accumulate(np.where(rises, place, 0), axis=1)
        falls = np.roll(rises, -1, axis=1)  # the last place of a row ends its run, and column 0 always starts one
        last = np.minimum.accumulate(np.where(falls, place, len(place))[:, ::-1], axis=1)[:, ::-1]
        doubled = doubled.copy()
        doubled[tied] = first + last
    points = np.empty_like(probs)
    np.put_along_axis(points, by_size, doubled, axis=1)
    return points


def rank(members: Members, call: Call) -> Floats:
    """Borda count: in each row a member gives each class the number of classes it beats (half for equals)."""
    points = _weighted_sum(members, call.weights, call.order, _double_points, 2.0 * members[0].shape[1])
    mean = _normalised(_weighted_sum(members, np.minimum(call.weights, 1), call.order, _identity))
    return _points_then_mean(points, mean, None if call.best is None else members[call.best])


@dataclass(frozen=True)
class Rule:
    """An entry of the table.

    Attributes:
        function: (members, call) → (N, C).
        help: One line.
        parameter: Name of the number after the colon, or empty.
        default: Its value when the spec names none.
        least, most: Its range, ends included.
    """

    function: Callable[[Members, Call], Floats]
    help: str
    parameter: str = ""
    default: float = 0.0
    least: float = 0.0
    most: float = 0.0


RULES: dict[str, Rule] = {
    "vote": Rule(vote, "hard vote; ties: mean probability, then class index"),
    "mean": Rule(mean, "soft vote: mean probability"),
    "gmean": Rule(gmean, "geometric mean of probabilities"),
    "power": Rule(power, "power mean, power:k", "k", default=2.0, least=0.05, most=20.0),
    "rank": Rule(rank, "Borda count within each row"),
}
WEIGHTED = "weighted"


@dataclass(frozen=True)
class Spec:
    """A parsed rule, e.g. `vote`, `vote:weighted`, `power:3`, `power:3:weighted`."""

    name: str
    parameter: float
    weighted: bool

    def __str__(self) -> str:
        parameter = f":{self.parameter:g}" if RULES[self.name].parameter else ""
        return self.name + parameter + (f":{WEIGHTED}" if self.weighted else "")


def parse(spec: str) -> Spec:
    """Read a rule's spec.

    Raises:
        CompError: Exit code 2, naming the nearest rule, for an unknown name or a parameter out of range.
    """
    name, *words = spec.strip().split(":")
    if name not in RULES:
        raise CompError("rule", f"'{name}' is not known", did_you_mean(name, RULES), Exit.USAGE)
    rule, parameter, weighted = RULES[name], RULES[name].default, False
    for word in words:
        if word == WEIGHTED and not weighted:
            weighted = True
            continue
        if not rule.parameter:
            raise CompError(
                "rule", f"'{spec}': '{word}' means nothing to {name}", did_you_mean(word, [WEIGHTED]), Exit.USAGE
            )
        try:
            parameter = float(word)
        except ValueError:
            parameter = float("nan")
        if not rule.least <= parameter <= rule.most:
            fix = f"{rule.parameter} is a number from {rule.least:g} to {rule.most:g}"
            raise CompError("rule", f"'{spec}': '{word}' is not one {name} takes", fix, Exit.USAGE)
    return Spec(name, parameter, weighted)


def apply(
    spec: str | Spec,
    members: Members,
    weights: Array | Sequence[float] | None = None,
    best: int | None = None,
) -> Floats:
    """Apply a voting rule.

    Args:
        spec: A rule, e.g. `vote`, `vote:weighted`, `mean`, `gmean`, `power:2`, `rank`.
        members: M arrays (N, C) of probabilities whose rows sum to 1, rows in the same order.
        weights: (M,) one number ≥ 0 per member, for `:weighted` rules only.
        best: Index of the member with the best score; its vote decides where votes and mean probability are tied
            exactly, as with members that give labels only.

    Returns:
        (N, C) float64, rows sum to 1. Take labels from this array: float32 has no room for the tie-breaking.

    Raises:
        CompError: Exit code 2 for a bad spec or bad weights.
        ValueError: Members differ in shape, or there are none.
    """
    if isinstance(spec, str):
        spec = parse(spec)
    shapes = {tuple(member.shape) for member in members}
    if len(shapes) != 1 or len(next(iter(shapes))) != 2:
        raise ValueError(f"members have shapes {sorted(shapes)}, one shape (N, C) is wanted")
    if spec.weighted != (weights is not None):
        what = "needs one weight per member" if spec.weighted else "takes no weights"
        raise CompError("rule", f"'{spec}' {what}", f"'{spec.name}:{WEIGHTED}' is the weighted form", Exit.USAGE)
    whole = np.ones(len(members), dtype=np.int64) if weights is None else integer_weights(weights)
    if len(whole) != len(members):
        raise CompError("weights", f"are {len(whole)} for {len(members)} members", "give one per member", Exit.USAGE)
    common = np.gcd.reduce(whole)
    whole //= common
    call = Call(whole, member_order(members, whole), spec.parameter, best)
    return RULES[spec.name].function([_floats(member) for member in members], call)
