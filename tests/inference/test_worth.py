"""Which views are worth their time: averages, growing products, the one-standard-error rule, the cross-fit."""

from __future__ import annotations

import numpy as np
import pytest

from comp import metrics
from comp.inference import cost
from comp.inference.spec import parse
from comp.inference.worth import average, candidates, measure, parts_of, smallest_good

GEOMETRY = {"crop": 64, "test_size": 73, "aspect": 1.0}


def names(views: str, aspect: float = 1.0) -> list[str]:
    return [candidate.spec.canonical for candidate in candidates(parse(views), 64, 73, aspect)]


def test_the_growing_product_of_ten_crops() -> None:
    assert names("tencrop") == ["center", "flip", "fivecrop", "flip*fivecrop"]


def test_scales_grow_from_the_validation_size_outwards() -> None:
    assert names("scales(x1,x1.14,x2)*dense") == [
        "scales(x1.14)*dense:logits",
        "scales(x1,x1.14)*dense:logits",
        "scales(x1,x1.14,x2)*dense:logits",
    ]
    assert len(names("multiscale")) == 10
    assert names("flip*scales(x1,x1.14)@logits")[-1] == "flip*scales(x1,x1.14)@logits"


@pytest.mark.parametrize("views", ["tencrop", "multiscale", "multicrop", "flip*dense:window"])
def test_candidates_are_subsets_of_the_set(views: str) -> None:
    whole = parse(views).views(64, 73)
    for candidate in candidates(parse(views), 64, 73, 1.2):
        assert {whole[member] for member in candidate.members} == set(candidate.spec.views(64, 73))
        assert candidate.cost == pytest.approx(candidate.spec.cost(64, 73, 1.2))


def test_averages_by_hand() -> None:
    probs = np.array([[[0.9, 0.1]], [[0.5, 0.5]], [[0.0, 1.0]]], np.float16)
    np.testing.assert_allclose(average(probs, [0, 1], "probs"), [[0.7, 0.3]], atol=1e-3)
    root = np.sqrt([[0.45, 0.05]])
    for space in ("logits", "gmean"):
        np.testing.assert_allclose(average(probs, [1, 0], space), root / root.sum(), atol=1e-3)
    assert np.isfinite(average(probs, [0, 2], "gmean")).all()


def drawn(skill: list[float], count: int = 600, classes: int = 4, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """(V, N, C) probabilities of views that are right about so often, independently, and (N,) labels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, count)
    probs = []
    for share in skill:
        said = np.where(rng.random(count) < share, labels, rng.integers(0, classes, count))
        noise = rng.random((count, classes)) + 2 * np.eye(classes)[said]
        probs.append(noise / noise.sum(1, keepdims=True))
    return np.stack(probs).astype(np.float16), labels


def test_the_smallest_within_one_standard_error() -> None:
    (weak, strong, equal), labels = drawn([0.3, 0.8, 0.8])
    equal = strong.copy()
    best, good = smallest_good("accuracy", labels, [weak, strong, equal], [1, 2, 3], None)
    assert (best, good) == (1, 1)
    assert smallest_good("accuracy", labels, [weak, strong, equal], [1, 3, 2], None) == (2, 2)
    # By hand: two errors against one other differ by 1 ± √3 photos, thirty against one by 29 ± √31.
    right = np.eye(4)[labels]
    right[-1:] = np.roll(right[-1:], 1, axis=1)
    for wrong, expected in ((2, 0), (30, 1)):
        nearly = np.eye(4)[labels]
        nearly[:wrong] = np.roll(nearly[:wrong], 1, axis=1)
        for metric in ("accuracy", "macro_f1", "log_loss"):
            assert smallest_good(metric, labels, [nearly, right], [1, 5], None)[1] == expected, metric


def test_gains_are_paired_and_lower_losses_are_gains() -> None:
    spec = parse("tencrop")
    probs, labels = drawn([0.6] * 10)
    for metric in ("macro_f1", "log_loss"):
        found = measure(
            spec,
            spec.views(64, 73),
            probs,
            labels,
            parts_of(labels, [str(n) for n in range(600)]),
            metric=metric,
            **GEOMETRY,
        )
        assert [row.views for row in found.products] == [1, 2, 5, 10]
        assert [row.name for row in found.singles] == [view.name for view in spec.views(64, 73)]
        whole, base = average(probs, range(10), "probs"), average(probs, [0], "probs")
        expected = metrics.paired_difference(labels, whole, base, None, metric)
        sign = 1 if metric == "macro_f1" else -1
        assert found.products[-1].gain.value == pytest.approx(sign * expected.value)
        assert found.products[-1].gain.se == pytest.approx(expected.se)
        assert found.products[-1].gain.value > 5 * found.products[-1].gain.se
        assert found.products[0].gain.value == 0
        assert found.suggested.spec == spec
        assert found.crossfitted.value > 0


def test_views_that_harm_are_not_suggested() -> None:
    spec = parse("tencrop")
    probs, labels = drawn([0.9] + [0.02] * 9)
    parts = parts_of(labels, [str(n) for n in range(600)])
    found = measure(spec, spec.views(64, 73), probs, labels, parts, metric="macro_f1", **GEOMETRY)
    assert found.suggested.spec.canonical == "center"
    assert found.best.spec.canonical == "center"
    assert found.products[-1].gain.value < -found.products[-1].gain.se
    assert found.picks == [("center", 5)]
    assert found.crossfitted.value == 0


def test_the_cross_fit_never_sees_the_part_it_is_applied_to() -> None:
    """Views that are good on one part only: chosen without it, they cannot shine on it."""
    spec = parse("flip")
    labels = np.arange(400) % 4
    parts = np.repeat([0, 1], 200)
    right, wrong = np.eye(4)[labels], np.eye(4)[(labels + 1) % 4]
    plain = np.where(np.arange(400)[:, None] % 2 == 0, right, wrong) * 0.2 + 0.2
    mirrored = np.where(parts[:, None] == 0, right, wrong)  # helps in part 0, harms in part 1
    found = measure(spec, spec.views(64, 73), np.stack([plain, mirrored]), labels, parts, metric="accuracy", **GEOMETRY)
    assert dict(found.picks) == {"flip": 1, "center": 1}
    # Without part 0 center is chosen for it, without part 1 flip, which fails there.
    assert found.crossfitted_score == pytest.approx(0.25)


def test_parts_spread_every_class() -> None:
    labels = np.array([0] * 10 + [1] * 7)
    ids = [f"{n * 7919 % 17:02d}" for n in range(17)]
    parts = parts_of(labels, ids)
    for label in (0, 1):
        counts = np.bincount(parts[labels == label], minlength=5)
        assert counts.max() - counts.min() <= 1
    order = np.random.default_rng(0).permutation(17)
    assert parts_of(labels[order], [ids[n] for n in order]).tolist() == parts[order].tolist()


def test_the_cost_is_said_in_one_line() -> None:
    line = cost.cost_line(parse("multiscale"), 224, 256, 4 / 3, 894)
    assert "10 of a photo, shorter side 224, 256, 384, 480, 640; 48 forward passes" in line
    assert "894 photos" in line
    assert cost.aspect(np.array([400, 300, 0]), np.array([300, 400, 0])) == pytest.approx(4 / 3)
    assert [cost.duration(seconds) for seconds in (0.2, 59, 61, 7300)] == ["1 s", "59 s", "1 min 1 s", "2 h 1 min"]
