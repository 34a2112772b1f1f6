"""Fitted methods against optimality conditions, brute force and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score

from comp.ensembling import fitting, methods
from comp.ensembling.estimate import Answers
from comp.errors import CompError
from comp.metrics import macro_f1


def world(seed: int, m: int, n: int, c: int, skill: float = 1.2, power: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """(members (M, N, C), labels); `power` makes the classes unequal in size."""
    rng = np.random.default_rng(seed)
    share = np.arange(1, c + 1.0) ** power
    labels = rng.choice(c, n, p=share / share.sum())
    logits = rng.standard_normal((n, c)) + rng.standard_normal((m, n, c))
    logits[:, np.arange(n), labels] += skill
    return softmax(logits, axis=2).astype(np.float32), labels


def answers(labels: np.ndarray, metric: str = "macro_f1", k: int = 5) -> Answers:
    return Answers(labels, np.arange(len(labels)) % k, metric, np.arange(len(labels)))


@pytest.mark.parametrize("seed", range(4))
def test_weights_satisfy_the_optimality_conditions(seed: int) -> None:
    """At the optimum of the mixture likelihood mean(p_m / mix) is 1 where w_m > 0 and at most 1 where it is 0."""
    members, labels = world(seed, 7, 800, 6)
    own = members[:, np.arange(800), labels].astype(float)
    own[5] *= 0.3  # a member that deserves nothing
    weights = fitting.simplex_weights(own)
    assert weights.sum() == pytest.approx(1, abs=7e-4)
    assert (weights >= 0).all()
    slope = (own / (weights @ own)).mean(1)
    assert weights[5] == 0
    assert slope[weights > 0.001] == pytest.approx(1, abs=2e-3)
    assert slope.max() < 1 + 2e-3


def test_weights_find_the_mixture() -> None:
    rng = np.random.default_rng(0)
    own = rng.uniform(0.05, 1, (3, 200_000))
    own[2] = 0.4
    true = np.array([0.6, 0.4, 0.0])
    kept = rng.random(200_000) < true @ own  # rows drawn in proportion to the mixture make it the maximum
    uniform = own / own.mean(axis=1, keepdims=True)
    found = fitting.simplex_weights(uniform[:, kept])
    expected = true * own.mean(axis=1)
    assert found == pytest.approx(expected / expected.sum(), abs=0.05)


@pytest.mark.parametrize("spec", ["weights", "stack", "select", "best", "temperature", "bias", "vote:weighted"])
def test_order_of_members_cannot_matter(spec: str) -> None:
    members, labels = world(1, 5, 400, 4, power=2.0)
    order = np.array([3, 0, 4, 1, 2])
    known = answers(labels)
    straight = methods.method(spec).fit(members, known)
    shuffled = methods.method(spec).fit(members[order], known)
    assert shuffled.apply(members[order], 2).tobytes() == straight.apply(members, 2).tobytes()


@pytest.mark.parametrize("classes", [2, 4])
def test_stack_is_scikit_learns_regression(classes: int) -> None:
    members, labels = world(2, 3, 500, classes)
    fitted = methods.Stack(strength=0.05).fit(members, answers(labels))
    logs = np.log(np.maximum(members.astype(float), 1e-7))
    features = np.concatenate(list(logs - logs.mean(2, keepdims=True)), axis=1)
    model = LogisticRegression(C=0.05, max_iter=1000, tol=1e-8).fit(features, labels)
    assert fitted.apply(members) == pytest.approx(model.predict_proba(features), abs=3e-3)


def test_stack_of_labels_that_lack_a_class() -> None:
    members, labels = world(2, 3, 300, 5)
    rows = (labels != 1) & (labels != 4)
    for keep in (rows, labels == 2, (labels == 0) | (labels == 3)):
        probs = methods.method("stack").fit(members[:, keep], answers(labels[keep])).apply(members)
        assert probs.sum(1) == pytest.approx(np.ones(300))
        assert set(probs.argmax(1)) <= set(labels[keep])


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_temperature_is_found(temperature: float) -> None:
    rng = np.random.default_rng(0)
    logits = 2 * rng.standard_normal((20_000, 6))
    labels = (logits + rng.gumbel(size=logits.shape)).argmax(1)  # labels drawn from softmax(logits)
    logs = np.log(softmax(logits * temperature, axis=1))
    assert fitting.fit_temperature(logs, labels) == pytest.approx(temperature, rel=0.05)


def test_temperatures_per_fold_and_for_an_unknown_fold() -> None:
    members, labels = world(0, 2, 900, 4)
    known = answers(labels, k=3)
    sharp = members.astype(float) ** np.where(known.folds == 2, 2.0, 1.0)[:, None]
    sharp /= sharp.sum(2, keepdims=True)
    fitted = methods.method("temperature").fit(sharp, known)
    assert fitted.of(2) == pytest.approx(2 * fitted.of(0), rel=0.2)
    product = fitted.of(0) * fitted.of(1) * fitted.of(2)
    assert fitted.of(9) == pytest.approx(product ** (1 / 3))
    assert fitted.apply(sharp, 1) == pytest.approx(fitted.apply(sharp, np.ones(900, int)))


def plain_deviations(logs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    tries = sorted(np.linspace(-1, 1, 17), key=abs)
    found = np.zeros(logs.shape[1])
    for c in np.unique(labels):
        scores = []
        for value in tries:
            moved = logs + found
            moved[:, c] += value
            scores.append(f1_score(labels, moved.argmax(1), labels=np.unique(labels), average="macro", zero_division=0))
        found[c] = tries[next(i for i, score in enumerate(scores) if score > max(scores) - 1e-12)]
    return found


@pytest.mark.parametrize("seed", range(3))
def test_class_deviations_by_brute_force(seed: int) -> None:
    members, labels = world(seed, 1, 150, 5, power=1.5)
    logs = np.log(members[0].astype(float))
    assert fitting.class_deviations(logs, labels, "macro_f1").tolist() == plain_deviations(logs, labels).tolist()


def test_deviations_are_shrunk_by_the_classes_counts() -> None:
    members, labels = world(5, 1, 400, 5, power=2.0)
    known, logs = answers(labels), np.log(members[0].astype(float))
    method = fitting.Bias(shrink=50.0)
    _, prior = method._prior_step(logs, known)
    _, both = method._class_step(logs, known)
    counts = np.bincount(labels, minlength=5)
    deviations = fitting.class_deviations(logs + prior, labels, "macro_f1")
    assert deviations.any()
    assert both - prior == pytest.approx(deviations * counts / (counts + 50))


def test_bias_goes_on_where_the_prior_was_overlearnt() -> None:
    members, labels = world(0, 3, 3000, 6, power=3.0)
    share = np.bincount(labels, minlength=6) / 3000
    skewed = members.astype(float) * share**1.5  # far more partial to common classes than macro F1 wants
    skewed /= skewed.sum(2, keepdims=True)
    fitted = methods.method("bias").fit(skewed, answers(labels))
    assert fitted.tau > 0.5
    assert fitted.gains[0][0] > fitted.gains[0][1]
    base = macro_f1(labels, fitted.base.apply(skewed))
    assert macro_f1(labels, fitted.apply(skewed)) > base + 0.05


def test_bias_stays_off_where_it_gains_nothing() -> None:
    on = 0
    for seed in range(10):
        members, labels = world(seed, 3, 500, 6)
        fitted = methods.method("bias").fit(members, answers(labels))
        assert len(fitted.gains) >= 1
        if not fitted.offsets:
            assert fitted.gains[0][0] <= fitted.gains[0][1]
            assert fitted.apply(members).tobytes() == fitted.base.apply(members).tobytes()
        on += bool(fitted.offsets)
    assert on <= 3  # a gain beyond one standard error comes by chance in about one of six worlds


def test_bias_wants_a_label_metric() -> None:
    members, labels = world(0, 2, 50, 3)
    with pytest.raises(CompError, match="bias: corrects label metrics, log_loss is none"):
        methods.method("bias").fit(members, answers(labels, "log_loss"))


@pytest.mark.parametrize("spec", ["weights", "stack", "temperature", "bias", "select", "best", "auto", "vote:weighted"])
def test_nothing_can_be_learnt_without_answers(spec: str) -> None:
    members, _ = world(0, 2, 50, 3)
    with pytest.raises(CompError, match="learns from out-of-fold predictions and there are none"):
        methods.method(spec).fit(members, None)
