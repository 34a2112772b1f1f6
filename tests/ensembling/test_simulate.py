"""The estimate is honest in worlds whose truth is known; the in-sample number is not."""

from __future__ import annotations

import numpy as np
import pytest

from comp.ensembling import methods
from comp.ensembling.estimate import cross_fit
from comp.ensembling.simulate import Shape, Verdict, coverage, draw_world, judge, true_score
from comp.metrics import macro_f1

SMALL = Shape(members=8, smallest=40, largest=120, classes=5, fresh=10, fold_spread=0.0)


def test_worlds_are_drawn_from_their_seed() -> None:
    one, same, other = (draw_world(seed, SMALL) for seed in (3, 3, 4))
    assert one.members.tobytes() == same.members.tobytes()
    assert one.members.tobytes() != other.members.tobytes()
    assert one.members.shape == (8, SMALL.counts.sum(), 5)
    assert one.fresh_members.shape == (8, 10 * SMALL.counts.sum(), 5)
    assert one.members.sum(2) == pytest.approx(np.ones(one.members.shape[:2]), abs=1e-5)
    for fold in range(5):
        assert np.bincount(one.labels[one.folds == fold], minlength=5).min() >= SMALL.smallest // 5
    scores = [macro_f1(one.fresh_labels, member) for member in one.fresh_members]
    assert np.std(scores) < 0.02  # near-equal
    errors = one.fresh_members.argmax(2) != one.fresh_labels
    assert np.corrcoef(errors)[np.triu_indices(8, 1)].min() > 0.3  # correlated


def test_truth_is_the_score_of_each_folds_fit_on_its_own_fresh_rows() -> None:
    world = draw_world(1, SMALL)
    method = methods.method("best")
    result = cross_fit(method, world.members, world.labels, world.folds)
    probs = np.empty(world.fresh_members.shape[1:])
    for fold, fitted in result.by_part.items():
        inside = world.fresh_folds == fold
        probs[inside] = world.fresh_members[fitted.describe()["member"]][inside]
    assert true_score(world, result, method, "macro_f1") == macro_f1(world.fresh_labels, probs)


def test_in_sample_flatters_and_cross_fitted_does_not() -> None:
    """A small form of the table in docs/ensembles.md: bounds are four standard errors wide."""
    verdicts = {(v.method, v.estimate): v for v in judge([methods.method("best"), methods.method("select")], 40, SMALL)}
    for name in ("best", "select"):
        cross, naive = verdicts[name, "cross-fitted"], verdicts[name, "in-sample"]
        assert abs(cross.error) < 4 * cross.error_se
        assert naive.error > 4 * naive.error_se
        assert not naive.honest
        assert cross.covered >= 0.85
        assert cross.covered > naive.covered


def test_choosing_among_equals_widens_the_interval() -> None:
    """30 equal members: the error of the chosen one's score is larger than that of a fixed member's score."""
    shape = Shape(members=30, spread=0.0, fold_spread=0.0, shared=0.5, smallest=30, largest=60, classes=4, fresh=10)
    errors, plain, full = [], [], []
    for seed in range(60):
        world = draw_world(seed, shape)
        method = methods.method("best")
        result = cross_fit(method, world.members, world.labels, world.folds)
        errors.append(result.cross_fitted - true_score(world, result, method, "macro_f1"))
        plain.append(result.se**2 - result.choice_se**2)
        full.append(result.se**2)
    spread = np.std(errors)
    assert spread > 1.1 * np.sqrt(np.mean(plain))
    assert np.sqrt(np.mean(full)) == pytest.approx(spread, rel=0.25)


def test_the_criterion() -> None:
    right = Verdict("m", "cross-fitted", 200, 80.0, 0.05, 0.05, 0.95)
    assert right.honest
    for change in ({"error": 0.11}, {"error": -0.11}, {"covered": 0.92}, {"covered": 0.98}):
        assert not Verdict(**{**right.__dict__, **change}).honest


def test_intervals_cover() -> None:
    held = coverage(100, Shape(members=2, fold_spread=0.0, smallest=20, largest=60, classes=4, fresh=40))
    assert held["score"] >= 0.88
    assert held["difference"] >= 0.88


@pytest.mark.slow
def test_estimates_in_200_worlds() -> None:
    """Mean signed error 0 ± 0.1 points (as far as 200 worlds can tell) and coverage 93 to 97 %; in-sample fails."""
    verdicts = judge([methods.method("best")], 200, Shape(members=8, classes=6, fresh=15))
    cross, naive = verdicts
    assert abs(cross.error) <= 0.1 + 2 * cross.error_se
    assert 0.93 <= cross.covered <= 0.97
    assert naive.error > 0.1 + 4 * naive.error_se
    assert not naive.honest
