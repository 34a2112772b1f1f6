"""The autopsy's numbers against plain definitions."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from sklearn.metrics import f1_score

from comp.ensembling import methods, rules
from comp.ensembling.members import Sheet
from comp.reporting import autopsy as a


def _sheet(members: int = 4, rows: int = 300, classes: int = 5, seed: int = 0) -> Sheet:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, rows)
    probs = []
    for m in range(members):
        logits = rng.normal(size=(rows, classes))
        logits[np.arange(rows), labels] += 1.0 + 0.3 * m
        probs.append((np.exp(logits) / np.exp(logits).sum(1, keepdims=True)).astype(np.float32))
    names = np.array([f"{n:04d}" for n in range(rows)])
    return Sheet(names.tolist(), probs, labels, np.arange(rows) % 5, np.arange(rows), names, rows)


@pytest.mark.parametrize("rule", ["vote", "mean", "gmean", "power:3", "rank"])
@pytest.mark.parametrize("metric", ["macro_f1", "accuracy"])
def test_subset_scores_are_the_rules_own(rule: str, metric: str) -> None:
    """Leaving out the rows all members answer alike changes nothing."""
    sheet = _sheet()
    scores = a.SubsetScores(sheet, methods.method(rule), metric)
    assert scores.short
    for size in range(1, 5):
        for subset in itertools.combinations(range(4), size):
            answer = rules.apply(rule, [sheet.probs[m] for m in subset]).argmax(1)
            wanted = (
                f1_score(sheet.labels, answer, average="macro")
                if metric == "macro_f1"
                else (answer == sheet.labels).mean()
            )
            assert scores(subset) == pytest.approx(wanted, abs=1e-12)


def test_learning_rules_are_cross_fitted() -> None:
    sheet = _sheet()
    scores = a.SubsetScores(sheet, methods.method("select"), "macro_f1")
    assert not scores.short
    assert scores((0, 1, 2, 3)) == scores.cross((0, 1, 2, 3)).value


def test_shapley_by_all_orders() -> None:
    rng = np.random.default_rng(0)
    subsets = [s for size in range(1, 5) for s in itertools.combinations(range(4), size)]
    values = {s: float(rng.random()) for s in subsets}
    table = {(): 0.1, **values}
    wanted = np.zeros(4)
    for order in itertools.permutations(range(4)):
        for place, member in enumerate(order):
            before = tuple(sorted(order[:place]))
            wanted[member] += table[tuple(sorted((*before, member)))] - table[before]
    wanted /= 24
    found = a.shapley(values, 4, 0.1)
    assert found == pytest.approx(wanted)
    assert sum(found) == pytest.approx(values[(0, 1, 2, 3)] - 0.1)


def test_ties() -> None:
    answers = [np.array([0, 0, 1, 2]), np.array([1, 0, 1, 3]), np.array([0, 1, 2, 4])]
    found = a.ties(answers, np.array([0, 0, 1, 3]), 5)
    assert found.count == 1
    assert found.won == (0, 1, 0)
    assert found.lost == (1, 0, 1)


def test_matrices() -> None:
    sheet = _sheet()
    answers = [p.argmax(1) for p in sheet.probs]
    wrong = np.stack([answer != sheet.labels for answer in answers])
    assert a.error_correlation(answers, sheet.labels) == pytest.approx(np.corrcoef(wrong))
    agreed = a.agreement(answers)
    assert agreed[0, 2] == (answers[0] == answers[2]).mean()
    assert np.isnan(a.error_correlation([sheet.labels, answers[0]], sheet.labels)[0, 1])


def test_owned_classes() -> None:
    labels = np.repeat([0, 1, 2], 20)
    good0 = np.where(labels == 0, 0, 2)
    good1 = np.where(labels == 1, 1, 2)
    found = a.owned_classes([good0, good1], labels, 3)
    assert [[c for c, _ in one] for one in found] == [[0], [1]]


def test_drop_one_and_frontier() -> None:
    sheet = _sheet()
    scores = a.SubsetScores(sheet, methods.method("vote"), "macro_f1")
    loses = a.drop_one(scores)
    assert loses[2].value == pytest.approx(scores((0, 1, 2, 3)) - scores((0, 1, 3)))
    costs = [1.0, 2.0, 4.0, 8.0]
    values = a.all_subsets(scores)
    assert values is not None
    assert len(values) == 15
    points = a.frontier(scores, costs, values)
    for one, two in itertools.pairwise(points):
        assert one.ms < two.ms
        assert one.score < two.score
    for point in points:
        cheaper = [v for s, v in values.items() if sum(costs[m] for m in s) <= point.ms]
        assert point.score == max(cheaper)
    assert points[-1].score == max(values.values())


def test_many_members_have_a_frontier_too() -> None:
    sheet = _sheet(members=12, rows=100)
    scores = a.SubsetScores(sheet, methods.method("mean"), "macro_f1")
    assert a.all_subsets(scores) is None
    points = a.frontier(scores, [1.0 + m for m in range(12)], None)
    assert points
    assert all(one.score < two.score for one, two in itertools.pairwise(points))


def test_patience() -> None:
    clock = iter([0.0, 100.0])
    assert a.all_subsets(a.SubsetScores(_sheet(), methods.method("vote"), "macro_f1"), lambda: next(clock)) is None
