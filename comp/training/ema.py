"""The exponential moving average of a network's weights."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn


def ema_decay(most: float, updates: int) -> float:
    """The decay of the n-th update: `most` in the long run, less at the start.

    1 - n^(-2/3), as timm's ModelEmaV3 warms up, so that a run of a few hundred steps is not averaged with its random
    start: after 100 steps the average reaches back over about 20, after 1,000 over about 100.
    """
    return min(most, 1 - math.pow(max(1, updates), -2 / 3))


class Average:
    """A copy of a network whose floats follow it slowly; its integers (BatchNorm's counters) are the network's.

    Args:
        network: The network that trains; it is copied now.
        decay: Most of the old average that a step keeps.
    """

    def __init__(self, network: nn.Module, decay: float):
        self.decay, self.updates = decay, 0
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        # The tensors of both stay the same objects for the whole run, so they are looked up once. Their memory does
        # not: wrapped for several processes a parameter has other memory, and its `.data` from before stands still.
        pairs = list(zip(_tensors(self.network), _tensors(network), strict=True))
        self._floats = [pair for pair in pairs if pair[0].is_floating_point()]
        self._others = [pair for pair in pairs if not pair[0].is_floating_point()]

    @torch.no_grad()
    def update(self) -> None:
        """Follow the network by one step."""
        self.updates += 1
        weight = 1 - ema_decay(self.decay, self.updates)
        torch._foreach_lerp_([ours for ours, _ in self._floats], [theirs for _, theirs in self._floats], weight)
        for ours, theirs in self._others:
            ours.copy_(theirs)


def _tensors(network: nn.Module) -> list[Tensor]:
    return [*network.parameters(), *network.buffers()]
