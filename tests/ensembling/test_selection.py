"""Greedy selection, fast, against its plain definition with scikit-learn."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score, log_loss

from comp.ensembling import rules, selection


def world(seed: int, m: int, n: int, c: int, skill: float = 1.5, coarse: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """(labels, members): members share half of their noise; coarse ones are multiples of 1/8 and tie often."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, c, n)
    logits = rng.standard_normal((n, c)) + rng.standard_normal((m, n, c))
    logits[:, np.arange(n), labels] += skill
    probs = np.exp(1.5 * logits)
    probs /= probs.sum(2, keepdims=True)
    if coarse:
        probs = rng.multinomial(8, probs) / 8
    return labels, probs.astype(np.float32)


def scorer(metric: str, classes: int) -> Callable[[np.ndarray, np.ndarray], float]:
    def score(labels: np.ndarray, total: np.ndarray) -> float:
        if metric == "log_loss":
            own = np.clip(total / total.sum(1, keepdims=True), 1.1920929e-07, 1)
            return -float(log_loss(labels, own / own.sum(1, keepdims=True), labels=np.arange(classes)))
        predicted = total.argmax(1)
        if metric == "accuracy":
            return float(accuracy_score(labels, predicted))
        return float(f1_score(labels, predicted, labels=np.unique(labels), average="macro", zero_division=0))

    return score


def plain(members: np.ndarray, labels: np.ndarray, metric: str, rounds: int, start: int) -> tuple[list[int], float]:
    """The definition: sort, try the prefixes, add the best one by one, keep the best ensemble of the way."""
    order = rules.member_order(members)
    score = scorer(metric, members.shape[2])
    exact = members.astype(np.float64)

    def of(taken: list[int]) -> float:
        total = np.zeros_like(exact[0])
        for member in taken:
            total = total + exact[member]
        return score(labels, total)

    def first_best(scores: list[float]) -> int:
        return next(i for i, value in enumerate(scores) if value >= max(scores) - 1e-12)

    alone = {m: of([m]) for m in order}
    by_score = sorted(order, key=lambda m: -round(alone[m], 11))[: min(start, rounds)]
    prefixes = [of(by_score[: k + 1]) for k in range(len(by_score))]
    best = first_best(prefixes) + 1
    taken, path = by_score[:best], prefixes[:best]
    while len(taken) < rounds:
        tried = [of([*taken, m]) for m in order]
        choice = first_best(tried)
        taken, path = [*taken, order[choice]], [*path, tried[choice]]
    kept = taken[: first_best(path) + 1]
    return np.bincount(kept, minlength=len(members)).tolist(), max(path)


@given(
    st.integers(0, 10**6), st.integers(1, 6), st.integers(1, 60), st.integers(2, 7), st.integers(1, 9),
    st.integers(1, 4), st.booleans(), st.sampled_from(["macro_f1", "accuracy", "log_loss"]),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_equal_to_the_plain_definition(
    seed: int, m: int, n: int, c: int, rounds: int, start: int, coarse: bool, metric: str
) -> None:
    labels, members = world(seed, m, n, c, coarse=coarse)
    got = selection.select(members, labels, metric, rounds=rounds, start=start)
    counts, score = plain(members, labels, metric, rounds, start)
    assert got.counts.tolist() == counts
    if metric != "log_loss":
        assert got.score == pytest.approx(score, abs=1e-9)


def test_equal_to_the_plain_definition_at_length() -> None:
    """Many steps, so that most rows are settled early and their counts must still be right."""
    labels, members = world(3, 8, 700, 12)
    got = selection.select(list(members), labels, rounds=40)
    counts, score = plain(members, labels, "macro_f1", 40, 5)
    assert got.counts.tolist() == counts
    assert got.score == pytest.approx(score, abs=1e-12)
    assert sum(got.counts > 0) > 3


def test_dropping_classes_leaves_every_weighted_mean_its_winner() -> None:
    rng = np.random.default_rng(0)
    _, members = world(5, 6, 800, 30, skill=2.5)
    alive = selection._survivors(list(members), slice(0, 800))
    assert alive.mean() < 0.5
    for _ in range(50):
        weights = rng.integers(0, 4, 6) + np.eye(6, dtype=int)[rng.integers(6)]
        winner = np.tensordot(weights, members.astype(float), 1).argmax(1)
        assert alive[np.arange(800), winner].all()


def test_members_and_rows_in_any_order() -> None:
    labels, members = world(1, 7, 500, 6)
    rng = np.random.default_rng(1)
    order, rows = rng.permutation(7), rng.permutation(500)
    straight = selection.select(members, labels, rounds=20, bags=3)
    shuffled = selection.select(members[order][:, rows], labels[rows], rounds=20, bags=3)
    assert shuffled.counts.tolist() == straight.counts[order].tolist()
    assert shuffled.score == straight.score


def test_bags_take_from_their_part_only() -> None:
    labels, members = world(2, 10, 300, 5)
    bagged = selection.select(members, labels, rounds=15, bags=1, bag_fraction=1.0)
    assert (bagged.counts > 0).sum() <= 10
    many = selection.select(members, labels, rounds=15, bags=20, bag_fraction=0.2)
    assert (many.counts > 0).sum() > (bagged.counts > 0).sum()
    total = np.tensordot(many.counts, members.astype(float), 1)
    assert many.score == pytest.approx(scorer("macro_f1", 5)(labels, total), abs=1e-12)


def test_decided_rows_alone_are_scored() -> None:
    """Members that agree everywhere leave no open row."""
    labels, members = world(2, 1, 50, 4)
    got = selection.select([members[0], members[0]], labels)
    assert got.score == pytest.approx(scorer("macro_f1", 4)(labels, members[0]), abs=1e-12)
    assert got.counts.sum() == 1


def test_arguments_out_of_range() -> None:
    labels, members = world(2, 2, 5, 4)
    for bad in ({"rounds": 0}, {"start": 0}, {"bags": 0}, {"bag_fraction": 0.0}, {"bag_fraction": 1.5}):
        with pytest.raises(ValueError, match="bag_fraction"):
            selection.select(members, labels, **bad)
    with pytest.raises(ValueError, match="top5"):
        selection.select(members, labels, "top5")
