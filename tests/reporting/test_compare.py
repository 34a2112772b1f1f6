"""Comparisons against independent references, and what is said of them in simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import f1_score

from comp.reporting import compare as c


@pytest.mark.parametrize(("a", "b"), [(0, 0), (1, 0), (5, 5), (3, 12), (40, 17), (500, 420), (3000, 3200)])
def test_mcnemar_is_the_exact_binomial(a: int, b: int) -> None:
    wanted = stats.binomtest(a, a + b).pvalue if a + b else 1.0
    assert c.mcnemar_p(a, b) == pytest.approx(wanted, rel=1e-9)


def test_normal_p() -> None:
    assert c.normal_p(1.959963984540054, 1.0) == pytest.approx(0.05)
    assert c.normal_p(0.0, 0.0) == 1.0
    assert c.normal_p(1.0, 0.0) == 0.0


def test_holm_by_hand() -> None:
    assert c.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert c.holm([0.5, 0.9]) == [1.0, 1.0]


def _drawn(rng: np.random.Generator, labels: np.ndarray, skill: float, classes: int = 4) -> np.ndarray:
    logits = rng.normal(size=(len(labels), classes))
    logits[np.arange(len(labels)), labels] += skill
    return np.exp(logits) / np.exp(logits).sum(1, keepdims=True)


def test_pairs_by_hand() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 400)
    folds = np.arange(400) % 5
    probs = [_drawn(rng, labels, skill) for skill in (2.0, 1.0, 1.5)]
    pairs = c.compare(["a", "b", "c"], probs, labels, folds, np.arange(400), "macro_f1")
    assert [(p.a, p.b) for p in pairs] == [("a", "b"), ("a", "c"), ("b", "c")]
    answers = [p.argmax(1) for p in probs]

    def f1(rows: np.ndarray, n: int) -> float:
        return float(f1_score(labels[rows], answers[n][rows], average="macro"))

    everything = np.ones(400, dtype=bool)
    assert pairs[0].difference.value == pytest.approx(f1(everything, 0) - f1(everything, 1), abs=1e-12)
    assert pairs[0].by_fold[3] == pytest.approx(f1(folds == 3, 0) - f1(folds == 3, 1), abs=1e-12)
    right = [answer == labels for answer in answers]
    assert pairs[0].only_a == (right[0] & ~right[1]).sum()
    assert pairs[0].accuracy.value == pytest.approx(right[0].mean() - right[1].mean())
    assert pairs[0].holm >= pairs[0].p


def test_recipes_interval_covers() -> None:
    """Three seeds of each recipe; the interval covers the difference of recipes over fresh photos and seeds.

    A seed shifts a run's skill; the truth is the difference of mean accuracies over seeds and photos.
    """
    rng = np.random.default_rng(1)
    skill, jitter, worlds = {"a": 1.6, "b": 1.3}, 0.08, 200
    big = rng.integers(0, 4, 200_000)
    expected = {
        name: np.mean([(_drawn(rng, big, s).argmax(1) == big).mean() for s in rng.normal(mean, jitter, 25)])
        for name, mean in skill.items()
    }
    truth = expected["a"] - expected["b"]
    covered = naive = 0
    for _ in range(worlds):
        labels = rng.integers(0, 4, 1500)
        seeds = {name: [_drawn(rng, labels, s) for s in rng.normal(mean, jitter, 3)] for name, mean in skill.items()}
        found = c.compare_recipes(seeds["a"], seeds["b"], labels, np.arange(1500), "accuracy")
        covered += found.difference.low <= truth <= found.difference.high
        naive += abs(found.difference.value - truth) <= 1.96 * found.photo_se
    assert 0.91 <= covered / worlds <= 0.99
    assert naive / worlds < covered / worlds - 0.04  # photos alone do not tell of recipes


def test_seeds_wanted() -> None:
    assert c.seeds_wanted(0.02, 0.0004, 0.0) == math.ceil(0.0004 / (0.02 / 1.959963984540054) ** 2)
    assert c.seeds_wanted(1.0, 0.0004, 0.0) == c.SEEDS
    assert c.seeds_wanted(0.01, 0.0004, 0.01) is None
