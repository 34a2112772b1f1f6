"""Order is a function of (seed, fold, epoch) and the ids; every image is used exactly once."""

from __future__ import annotations

import hashlib
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from comp.data.order import balanced_order, epoch_order, seed_of, share, step_count, steps, uses

IDS = [f"{number:05x}" for number in range(200)]


def test_seed_of_is_blake2b_over_the_parts_as_json() -> None:
    expected = hashlib.blake2b(b'[3, "a1", 7]', digest_size=8).digest()
    assert seed_of(3, "a1", 7) == int.from_bytes(expected, "big") == seed_of(np.int64(3), "a1", 7)  # type: ignore[arg-type]


def test_seed_of_keeps_parts_apart() -> None:
    assert len({seed_of(1), seed_of("1"), seed_of(1, 1), seed_of(11), seed_of("1", "1"), seed_of("11")}) == 6
    assert seed_of("ab", "c") != seed_of("a", "bc")


def test_epoch_order_is_a_permutation_that_seed_fold_and_epoch_change() -> None:
    orders = [epoch_order(IDS, *key) for key in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1))]
    for order in orders:
        assert sorted(order.tolist()) == list(range(len(IDS)))
    assert len({tuple(order.tolist()) for order in orders}) == 4
    assert np.array_equal(orders[0], epoch_order(IDS, 0, 0, 0))


@pytest.mark.parametrize(
    "draw", [epoch_order, lambda ids, *key: balanced_order([int(i, 16) % 3 for i in ids], ids, *key)]
)
def test_the_order_of_ids_does_not_depend_on_the_rows(draw) -> None:
    shuffled = random.Random(5).sample(IDS, len(IDS))
    assert [IDS[i] for i in draw(IDS, 4, 2, 9)] == [shuffled[i] for i in draw(shuffled, 4, 2, 9)]


def test_epoch_order_places_images_evenly() -> None:
    """Over 2,000 epochs the mean place of every image of ten is 4.5 within 5 standard errors of a uniform draw."""
    places = np.array([np.argsort(epoch_order(IDS[:10], 0, 0, epoch)) for epoch in range(2000)])
    assert np.all(np.abs(places.mean(0) - 4.5) < 5 * np.sqrt((10**2 - 1) / 12 / 2000))


def test_balanced_order_draws_classes_alike_and_members_alike() -> None:
    labels = [0] * 180 + [1] * 15 + [7] * 5
    drawn = np.concatenate([balanced_order(labels, IDS, 0, 0, epoch) for epoch in range(50)])
    assert len(drawn) == 50 * 200
    per_class = np.bincount(np.asarray(labels)[drawn], minlength=8)
    assert per_class[2:7].sum() == 0
    assert np.all(np.abs(per_class[[0, 1, 7]] - 10_000 / 3) < 5 * np.sqrt(10_000 * 2 / 9))
    per_member = np.bincount(drawn, minlength=200)[195:]
    assert np.all(np.abs(per_member - 10_000 / 15) < 5 * np.sqrt(10_000 / 15))


def test_uses_counts_earlier_draws_of_the_same_image() -> None:
    assert uses(np.array([4, 2, 4, 4, 2, 0])).tolist() == [0, 0, 1, 2, 1, 0]


@given(n=st.integers(0, 300), batch=st.integers(1, 70), begin=st.integers(0, 9))
def test_steps_use_every_image_once_and_never_leave_one_alone(n: int, batch: int, begin: int) -> None:
    batches = list(steps(np.arange(n), batch))
    assert len(batches) == step_count(n, batch)
    assert np.array_equal(np.concatenate([np.arange(0), *batches]), np.arange(n))
    assert all(len(b) == batch for b in batches[:-1])
    if batches:
        assert len(batches[-1]) <= batch + 1
        assert len(batches[-1]) > 1 or batch == 1 or n == 1
    resumed = list(steps(np.arange(n), batch, begin))
    assert [b.tolist() for b in resumed] == [b.tolist() for b in batches[begin:]]


@given(n=st.integers(0, 130), world=st.integers(1, 9), micro=st.integers(1, 40))
def test_share_gives_every_image_to_one_process(n: int, world: int, micro: int) -> None:
    batch = np.random.default_rng(n).permutation(n)
    shares = [share(batch, rank, world, micro) for rank in range(world)]
    flat = [part for mine in shares for part in mine]
    assert np.array_equal(np.concatenate([batch[:0], *flat]), batch)
    assert all(0 < len(part) <= micro for part in flat)
    sizes = [sum(map(len, mine)) for mine in shares]
    assert max(sizes) - min(sizes) <= 1
    for mine, size in zip(shares, sizes, strict=True):
        assert len(mine) == -(-size // micro)
        assert not mine or max(map(len, mine)) - min(map(len, mine)) <= 1


def test_no_global_random_state_is_used_or_changed() -> None:
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    before = random.getstate(), np.random.get_state()[1].tobytes()  # noqa: NPY002
    first = epoch_order(IDS, 0, 0, 0)
    assert (random.getstate(), np.random.get_state()[1].tobytes()) == before  # noqa: NPY002
    random.seed(2)
    np.random.seed(2)  # noqa: NPY002
    assert np.array_equal(first, epoch_order(IDS, 0, 0, 0))
