"""Cross-fitting: what is scored was not fitted on, and what is reported is what it says."""

from __future__ import annotations

import json

import numpy as np
import pytest
from sklearn.metrics import f1_score

from comp.ensembling import estimate, methods
from comp.ensembling.estimate import Answers, cross_fit
from comp.ensembling.fitted import restore
from comp.errors import CompError
from comp.metrics import interval

EVERY = [*methods.names(), "vote:weighted", "mean:weighted"]
World = tuple[list[np.ndarray], np.ndarray, np.ndarray]


def world(seed: int = 0, m: int = 4, n: int = 400, c: int = 5, k: int = 4, skill: float = 1.2) -> World:
    rng = np.random.default_rng(seed)
    labels = rng.choice(c, n, p=np.arange(1, c + 1) / np.arange(1, c + 1).sum())
    logits = rng.standard_normal((n, c)) + rng.standard_normal((m, n, c))
    logits[:, np.arange(n), labels] += skill
    probs = np.exp(logits)
    probs /= probs.sum(2, keepdims=True)
    return list(probs.astype(np.float32)), labels, np.arange(n) % k


@pytest.mark.parametrize("spec", EVERY)
def test_held_out_labels_never_reach_the_fit(spec: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other labels in one held-out part leave the predictions for that part as they are, to the last bit."""
    members, labels, folds = world()
    part = np.arange(400) // 4 % 5  # every part holds rows of every fold
    monkeypatch.setattr(estimate, "rotation", lambda method, answers: part)
    inside = part == 2
    changed = labels.copy()
    changed[inside] = (labels[inside] + 1) % 5
    straight = cross_fit(methods.method(spec), members, labels, folds)
    other = cross_fit(methods.method(spec), members, changed, folds)
    assert other.probs[inside].tobytes() == straight.probs[inside].tobytes()
    assert other.cross_fitted != straight.cross_fitted


@pytest.mark.parametrize("spec", ["vote", "mean", "gmean", "power:3", "rank"])
def test_a_fixed_rule_has_no_optimism(spec: str) -> None:
    members, labels, folds = world()
    result = cross_fit(methods.method(spec), members, labels, folds)
    assert result.optimism == 0.0
    assert result.in_sample == result.cross_fitted
    assert result.by_part == {}


def test_pooled_scored_once_with_its_interval() -> None:
    members, labels, folds = world()
    groups = np.array([f"sha{i // 2}" for i in range(400)])
    folds = np.arange(400) // 2 % 4
    result = cross_fit(methods.method("best"), members, labels, folds, groups=groups)
    pooled = np.empty((400, 5))
    for fold in range(4):
        others = [f1_score(labels[folds != fold], m[folds != fold].argmax(1), average="macro") for m in members]
        pooled[folds == fold] = members[int(np.argmax(others))][folds == fold]
        assert result.by_part[fold].describe() == {"kind": "member", "member": int(np.argmax(others))}
    assert result.probs == pytest.approx(pooled)
    assert result.cross_fitted == pytest.approx(f1_score(labels, pooled.argmax(1), average="macro"))
    expected = interval("macro_f1", labels, pooled, groups)
    assert np.sqrt(result.se**2 - result.choice_se**2) == pytest.approx(expected.se)
    assert result.low <= expected.low < result.cross_fitted < expected.high <= result.high
    alone = [f1_score(labels, member.argmax(1), average="macro") for member in members]
    assert result.in_sample == pytest.approx(max(alone))
    assert result.optimism == pytest.approx(max(alone) - result.cross_fitted)
    assert json.loads(json.dumps(result.numbers()))["se"] == result.se


def test_optimism_of_a_loss_has_the_same_sign() -> None:
    members, labels, folds = world(m=6, n=150)
    result = cross_fit(methods.Stack(strength=1.0), members, labels, folds, metric="log_loss")
    assert result.in_sample < result.cross_fitted
    assert result.optimism == pytest.approx(result.cross_fitted - result.in_sample)


def test_noise_is_estimated_as_noise() -> None:
    """Members that know nothing: a flexible method looks well in sample, its cross-fitted score is chance."""
    members, labels, folds = world(m=8, n=300, skill=0.0)
    result = cross_fit(methods.Stack(strength=1.0), members, labels, folds, metric="accuracy")
    assert result.in_sample > 0.45
    assert result.cross_fitted < 0.38  # always saying the commonest class gives 1/3


@pytest.mark.parametrize("spec", EVERY)
def test_what_was_fitted_survives_json(spec: str) -> None:
    members, labels, folds = world()
    fitted = cross_fit(methods.method(spec), members, labels, folds).fitted
    back = restore(json.loads(json.dumps(fitted.describe(), allow_nan=False)))
    assert back.apply(members, 1).tobytes() == fitted.apply(members, 1).tobytes()
    assert back == fitted


def test_damaged_descriptions_are_one_line() -> None:
    for broken in (
        {},
        {"kind": "spell"},
        {"kind": "rule", "rule": "vote", "weights": 3, "best": None},
        {"kind": "bias"},
    ):
        with pytest.raises(CompError, match="ensemble: its description is damaged"):
            restore(broken)


def test_parts_keep_copies_together_and_ignore_row_order() -> None:
    rng = np.random.default_rng(0)
    groups = np.array([f"id{i // 2}" for i in range(600)])
    labels, folds = np.repeat(rng.integers(0, 6, 300), 2), np.repeat(np.arange(300) % 3, 2)
    part = estimate.parts_within(Answers(labels, folds, "macro_f1", groups))
    assert (part[::2] == part[1::2]).all()
    assert np.bincount(part).min() > 90
    for fold in range(3):
        for label in range(6):
            inside = np.bincount(part[(folds == fold) & (labels == label)], minlength=5)
            assert inside.max() - inside.min() <= 2
    order = rng.permutation(600)
    again = estimate.parts_within(Answers(labels[order], folds[order], "macro_f1", groups[order]))
    assert (again == part[order]).all()


def test_one_fold_is_split_within() -> None:
    members, labels, _ = world()
    result = cross_fit(methods.method("select"), members, labels, np.zeros(400, int))
    assert sorted(result.by_part) == [0, 1, 2, 3, 4]


def test_too_few_rows_to_estimate() -> None:
    members, labels, folds = world(n=1)
    with pytest.raises(CompError, match=r"best: 1 labelled images cannot be split"):
        cross_fit(methods.method("best"), members, labels, folds)


def test_temperature_is_fitted_and_held_out_within_folds() -> None:
    members, labels, folds = world()
    members = [np.where(folds[:, None] == 1, m**3 / (m**3).sum(1, keepdims=True), m) for m in members]
    result = cross_fit(methods.method("temperature"), members, labels, folds, metric="log_loss")
    assert sorted(result.by_part) == [0, 1, 2, 3, 4]
    mean = cross_fit(methods.method("mean"), members, labels, folds, metric="log_loss")
    assert result.cross_fitted < mean.cross_fitted
    temperatures = result.fitted.describe()["temperatures"]
    assert temperatures["1"][0] == pytest.approx(3 * temperatures["0"][0], rel=0.25)
