"""Voting rules against their plain definitions, and the promise that no order matters."""

from __future__ import annotations

import itertools
from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import rankdata

from comp.ensembling import rules
from comp.errors import CompError

SPECS = ["vote", "mean", "gmean", "power", "power:3", "rank"]


@st.composite
def members(draw: st.DrawFn, coarse: bool | None = None, dtype: str = "float32") -> np.ndarray:
    """(M, N, C) probabilities; coarse ones are multiples of 1/8, so that ties of every kind are common."""
    m, n, c = draw(st.integers(1, 7)), draw(st.integers(1, 9)), draw(st.integers(2, 6))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    coarse = draw(st.booleans()) if coarse is None else coarse
    if coarse:
        probs = rng.multinomial(8, np.full(c, 1 / c), size=(m, n)) / 8.0
    else:
        probs = rng.dirichlet(np.full(c, 0.3), size=(m, n))
    if draw(st.booleans()) and m > 1:
        probs[1] = probs[0]  # equal members
    return probs.astype(dtype)


def plain_vote(stack: np.ndarray, weights: list[int], best: int | None = None) -> list[int]:
    """Row by row in exact fractions: votes, then mean probability, then the best member's vote, then index."""
    result = []
    for i in range(stack.shape[1]):
        rows = [[Fraction(float(p)) for p in stack[m, i]] for m in range(len(stack))]
        votes = [row.index(max(row)) for row in rows]
        score = {
            c: (
                sum(w for v, w in zip(votes, weights, strict=True) if v == c),
                sum(row[c] for row, w in zip(rows, weights, strict=True) if w),
                best is not None and votes[best] == c,
                -c,
            )
            for c in range(stack.shape[2])
        }
        result.append(max(score, key=lambda c: score[c]))
    return result


@given(members(coarse=True), st.data())
@settings(max_examples=150, deadline=None)
def test_vote_by_the_plain_definition(stack: np.ndarray, data: st.DataObject) -> None:
    best = data.draw(st.none() | st.integers(0, len(stack) - 1))
    assert rules.apply("vote", list(stack), best=best).argmax(1).tolist() == plain_vote(stack, [1] * len(stack), best)
    weights = data.draw(st.lists(st.integers(0, 5), min_size=len(stack), max_size=len(stack)).filter(any))
    weighted = rules.apply("vote:weighted", stack, weights, best=best)
    assert weighted.argmax(1).tolist() == plain_vote(stack, weights, best)


@given(members(coarse=False))
@settings(max_examples=60, deadline=None)
def test_vote_scores_hold_the_shares_of_votes(stack: np.ndarray) -> None:
    votes = np.stack([(stack.argmax(2) == c).sum(0) for c in range(stack.shape[2])], axis=1)
    expected = (votes + stack.astype(float).mean(0)) / (len(stack) + 1)
    assert rules.apply("vote", stack) == pytest.approx(expected, abs=1e-7)


@given(members(), st.data())
@settings(max_examples=100, deadline=None)
def test_soft_rules_by_their_formulas(stack: np.ndarray, data: st.DataObject) -> None:
    exact = stack.astype(np.float64)
    count = len(stack)
    weights = np.array(data.draw(st.lists(st.integers(0, 5), min_size=count, max_size=count).filter(any)))
    share = weights / weights.sum()
    floored = np.log(np.maximum(exact, 1e-7))
    ranks = np.stack([rankdata(member, axis=1) for member in stack]) - 1
    plain = {
        "mean": np.average(exact, axis=0),
        "mean:weighted": np.tensordot(share, exact, 1),
        "gmean": np.exp(floored.mean(0)),
        "gmean:weighted": np.exp(np.tensordot(share, floored, 1)),
        "power:3": np.mean(exact**3, axis=0) ** (1 / 3),
        "rank": 2 * ranks.sum(0) + exact.mean(0),
    }
    for spec, scores in plain.items():
        got = rules.apply(spec, stack, weights if spec.endswith("weighted") else None)
        assert got == pytest.approx(scores / scores.sum(1, keepdims=True), abs=1e-6), spec
        assert got.dtype == np.float64
        assert got.sum(1) == pytest.approx(np.ones(len(got)), abs=1e-12)
        assert (got >= 0).all()


@given(members(), st.data())
@settings(max_examples=100, deadline=None)
def test_order_of_members_and_rows_cannot_matter(stack: np.ndarray, data: st.DataObject) -> None:
    count = len(stack)
    order = data.draw(st.permutations(range(count)))
    rows = data.draw(st.permutations(range(stack.shape[1])))
    weights = np.array(data.draw(st.lists(st.floats(0.1, 1), min_size=count, max_size=count)))
    best = data.draw(st.integers(0, count - 1))
    for spec in SPECS:
        for suffix, given_weights in (("", None), (":weighted", weights)):
            straight = rules.apply(spec + suffix, stack, given_weights, best)
            shuffled = rules.apply(
                spec + suffix,
                [stack[m][rows] for m in order],
                None if given_weights is None else given_weights[order],
                order.index(best),
            )
            assert shuffled.tobytes() == straight[rows].tobytes(), spec + suffix


def test_order_cannot_matter_at_full_size() -> None:
    """Sums of 20 members differ in the last bit between orders, unless the order is fixed."""
    rng = np.random.default_rng(0)
    stack = rng.dirichlet(np.full(20, 0.2), size=(20, 3000)).astype(np.float32)
    order, rows = rng.permutation(20), rng.permutation(3000)
    naive = np.zeros((2, 3000, 20))
    for m in range(20):
        naive[0] += np.log(stack[m].astype(float) + 1)
        naive[1] += np.log(stack[order[m]].astype(float) + 1)
    assert (naive[0] != naive[1]).any()  # what the promise guards against does happen
    for spec in SPECS:
        straight = rules.apply(spec, stack)
        assert rules.apply(spec, stack[order][:, rows]).tobytes() == straight[rows].tobytes(), spec


@given(members(coarse=False, dtype="float64"), st.sampled_from(SPECS))
@settings(max_examples=60, deadline=None)
def test_one_member_and_equal_members_keep_their_labels(stack: np.ndarray, spec: str) -> None:
    alone = rules.apply(spec, stack[:1])
    assert (alone.argmax(1) == stack[0].argmax(1)).all()
    fourfold = rules.apply(spec, [stack[0]] * 4)
    assert (fourfold.argmax(1) == stack[0].argmax(1)).all()
    if spec not in ("vote", "rank"):
        assert fourfold == pytest.approx(alone, abs=1e-12)
    if spec in ("mean", "power", "power:3"):
        assert alone == pytest.approx(stack[0], abs=1e-12)


def test_majority_of_three_foreign_label_files() -> None:
    """28,000 rows of labels from three strangers: wherever two agree, that is the vote."""
    rng = np.random.default_rng(7)
    truth = rng.integers(0, 104, 28_000)
    labels = np.stack([np.where(rng.random(28_000) < 0.6, truth, rng.integers(0, 104, 28_000)) for _ in range(3)])
    votes = rules.apply("vote", [np.eye(104, dtype=np.float32)[row] for row in labels], best=1).argmax(1)
    majorities = 0
    for i in range(28_000):
        (label, count), *_ = Counter(labels[:, i].tolist()).most_common(1)
        majorities += count > 1
        assert votes[i] == (label if count > 1 else labels[1, i])
    assert 15_000 < majorities < 27_000


def test_best_members_vote_decides_only_exact_ties() -> None:
    eye = np.eye(3)
    labels_only = [eye[[0, 0]], eye[[1, 1]], eye[[2, 1]]]
    assert rules.apply("vote", labels_only).argmax(1).tolist() == [0, 1]
    assert rules.apply("vote", labels_only, best=2).argmax(1).tolist() == [2, 1]
    assert rules.apply("rank", labels_only, best=1).argmax(1).tolist() == [1, 1]
    soft = [np.array([[0.6, 0.4, 0.0]]), np.array([[0.3, 0.7, 0.0]])]
    assert rules.apply("vote", soft, best=0).argmax(1).tolist() == [1]


def test_weights_become_whole_numbers() -> None:
    assert rules.integer_weights([2, 1, 0]).tolist() == [2, 1, 0]
    assert rules.integer_weights([0.9, 0.45, 0.89997]).tolist() == [10_000, 5_000, 10_000]
    heavy = rules.apply("vote:weighted", [np.eye(2)[[0]], np.eye(2)[[1]], np.eye(2)[[1]]], [0.9, 0.3, 0.3])
    assert heavy.argmax(1).tolist() == [0]


def test_digest_ignores_rows_order_and_nothing_else() -> None:
    probs = np.random.default_rng(0).random((5000, 4)).astype(np.float32)
    changed = probs.copy()
    changed[17, 2] = np.nextafter(changed[17, 2], np.float32(2))
    swapped = probs.copy()
    swapped[17, [0, 1]] = swapped[17, [1, 0]]
    exchanged = probs.copy()
    exchanged[[17, 18], 0] = exchanged[[18, 17], 0]
    digests = {rules.content_digest(member) for member in (probs, changed, swapped, exchanged)}
    assert len(digests) == 4
    assert rules.content_digest(probs[::-1]) == rules.content_digest(probs)


def test_labels_only_members_are_recognised() -> None:
    assert rules.labels_only(np.eye(4))
    assert not rules.labels_only(np.full((2, 2), 0.5))
    assert not rules.labels_only(np.zeros((2, 2)))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("vota", "did you mean 'vote'?"),
        ("power:x", "k is a number from 0.05 to 20"),
        ("power:0", "k is a number"),
        ("power:nan", "k is a number"),
        ("mean:3", "weighted"),
        ("vote:weihgted", "did you mean 'weighted'?"),
    ],
)
def test_bad_specs_say_what_is_meant(spec: str, message: str) -> None:
    with pytest.raises(CompError, match="rule: ") as caught:
        rules.parse(spec)
    assert message in str(caught.value)
    assert caught.value.code == 2


def test_specs_print_as_they_are_read() -> None:
    for spec in ("vote", "vote:weighted", "mean", "power:2", "power:0.5:weighted"):
        assert str(rules.parse(spec)) == spec
    assert str(rules.parse("power")) == "power:2"


def test_weights_where_they_do_not_belong() -> None:
    eye = [np.eye(2), np.eye(2)]
    for spec, weights in (
        ("vote", [1, 1]),
        ("vote:weighted", None),
        ("mean:weighted", [1]),
        ("mean:weighted", [0, 0]),
        ("mean:weighted", [-1, 2]),
        ("mean:weighted", [float("nan"), 1]),
    ):
        with pytest.raises(CompError):
            rules.apply(spec, eye, weights)
    with pytest.raises(ValueError, match="one shape"):
        rules.apply("vote", [np.eye(2), np.eye(3)])
    with pytest.raises(ValueError, match="one shape"):
        rules.apply("vote", [])


def test_members_that_hold_the_same_rows_at_other_places_have_no_order() -> None:
    """Nothing in their numbers says which comes first, and the sum must not ask. (Found by hypothesis.)"""
    one = np.array([[0.875, 0.125], [0.5, 0.5], [0.75, 0.25], [0.625, 0.375], [0.375, 0.625]], dtype=np.float32)
    stack = [one, one[[2, 1, 4, 0, 3]], np.roll(one, 2, axis=0), one[::-1].copy(), one[[1, 0, 2, 3, 4]]]
    for spec in ("mean", "gmean", "power:3", "rank", "vote"):
        straight = rules.apply(spec, stack)
        for order in itertools.permutations(range(5)):
            assert rules.apply(spec, [stack[m] for m in order]).tobytes() == straight.tobytes(), (spec, order)
