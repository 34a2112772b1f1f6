from __future__ import annotations

from collections import Counter
from itertools import groupby

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from comp.data import order
from comp.training.plan import Micro, Plan


def plan(images: int, batch: int, epochs: int = 2, balanced: bool = False) -> Plan:
    ids = [f"id{number}" for number in range(images)]
    return Plan(np.arange(images) + 100, ids, np.arange(images) % 3, batch, epochs, 7, 1, balanced)


def steps(micros: list[Micro]) -> dict[tuple[int, int], list[Micro]]:
    return {key: list(group) for key, group in groupby(micros, key=lambda micro: (micro.epoch, micro.step))}


@settings(max_examples=200, deadline=None)
@given(
    images=st.integers(2, 60),
    batch=st.integers(1, 24),
    world=st.integers(1, 5),
    micro=st.integers(1, 24),
)
def test_every_image_counts_once_for_any_sizes(images: int, batch: int, world: int, micro: int) -> None:
    made = plan(images, batch, epochs=1)
    ranks = [list(made.micros(0, 0, rank, world, micro)) for rank in range(world)]
    counted = Counter(key[0] for one in ranks for each in one for key in each.keys[: each.counted])
    assert counted == Counter(range(100, 100 + images))
    by_rank = [steps(one) for one in ranks]
    whole = order.steps(made.order(0), batch)
    for number, expected in enumerate(whole):
        parts = [found[0, number] for found in by_rank]
        assert len({len(part) for part in parts}) == 1  # the processes walk in step
        together = [key[0] - 100 for part in parts for each in part for key in each.keys[: each.counted]]
        assert together == [int(position) for position, _ in expected]  # ranks put together are the global batch
        assert {each.images for part in parts for each in part} == {len(expected)}
        for part in parts:
            assert [each.first for each in part] == [True] + [False] * (len(part) - 1)
            assert [each.last for each in part] == [False] * (len(part) - 1) + [True]
            assert all(2 <= len(each.keys) <= max(2, micro) or each.counted == len(each.keys) for each in part)
            assert all(len(each.keys) >= 2 for each in part)  # batch normalisation


@pytest.mark.parametrize("balanced", [False, True])
def test_a_plan_begun_in_the_middle_is_the_rest_of_the_whole(balanced: bool) -> None:
    made = plan(23, 5, epochs=3, balanced=balanced)
    whole = list(made.micros(0, 0, 1, 2, 2))
    for epoch in range(3):
        for step in range(made.steps + 1):
            rest = [each for each in whole if (each.epoch, each.step) >= (epoch, step)]
            assert list(made.micros(epoch, step, 1, 2, 2)) == rest


def test_the_size_of_the_forward_pass_does_not_change_the_order() -> None:
    made = plan(30, 8)
    expected = [key for each in made.micros(0, 0, 0, 1, 8) for key in each.keys[: each.counted]]
    for micro in (1, 3, 5):
        assert [key for each in made.micros(0, 0, 0, 1, micro) for key in each.keys[: each.counted]] == expected


def test_a_balanced_epoch_tells_its_uses_apart() -> None:
    made = plan(30, 8, epochs=1, balanced=True)
    keys = [key for each in made.micros(0, 0, 0, 1, 8) for key in each.keys]
    assert len(keys) == len(set(keys)) == 30
