"""Which images each process sees in which step: a function of the config and the step, so a run can begin anywhere."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from comp.data import order


@dataclass(frozen=True)
class Micro:
    """What one process does in one forward pass.

    Attributes:
        epoch: The epoch.
        step: The optimizer step within the epoch.
        keys: The images as (row, epoch, use) keys of the loader.
        counted: The loss counts the first so many; the others fill up a share that is too small for BatchNorm.
        images: Images in the whole global batch.
        first: Whether it begins its step.
        last: Whether it ends its step.
    """

    epoch: int
    step: int
    keys: list[tuple[int, int, int]]
    counted: int
    images: int
    first: bool
    last: bool


@dataclass(frozen=True)
class Plan:
    """The way through all epochs of one fold.

    Attributes:
        rows: Rows of the training images in the data set (N,).
        ids: Their ids (N,).
        labels: Their labels (N,).
        batch: The global batch size.
        epochs: Epochs in all.
        seed: The run's seed.
        fold: The fold held out.
        balanced: Draw classes equally often (`loss.balance: sampler`).
    """

    rows: npt.NDArray[np.int64]
    ids: Sequence[str]
    labels: npt.NDArray[np.int64]
    batch: int
    epochs: int
    seed: int
    fold: int
    balanced: bool = False

    @property
    def steps(self) -> int:
        """Optimizer steps in an epoch."""
        return order.step_count(len(self.rows), self.batch)

    def images_before(self, step: int) -> int:
        """Images used by the steps of an epoch before this one."""
        return len(self.rows) if step >= self.steps else step * self.batch

    def order(self, epoch: int) -> npt.NDArray[np.int64]:
        """The epoch's images: (N, 2) of position in `rows` and how often the epoch used it before."""
        if self.balanced:
            positions = order.balanced_order(self.labels.tolist(), self.ids, self.seed, self.fold, epoch)
        else:
            positions = order.epoch_order(self.ids, self.seed, self.fold, epoch)
        return np.stack([positions, order.uses(positions)], axis=1)

    def micros(self, epoch: int, step: int, rank: int, world: int, micro: int) -> Iterator[Micro]:
        """One process's forward passes from a step on, to the end of the last epoch.

        All processes have the same number of passes in a step, so that what they do together stays together. A share
        of less than two images is filled up with images that do not count: batch normalisation needs two values.

        Args:
            epoch: The epoch to begin in.
            step: The step to begin with.
            rank: This process.
            world: Number of processes.
            micro: Most images in a forward pass.
        """
        for at in range(epoch, self.epochs):
            batches = order.steps(self.order(at), self.batch, step if at == epoch else 0)
            for number, batch in enumerate(batches, start=step if at == epoch else 0):
                yield from self._step(at, number, batch, rank, world, micro)

    def _step(
        self, epoch: int, step: int, batch: npt.NDArray[np.int64], rank: int, world: int, micro: int
    ) -> Iterator[Micro]:
        passes = max(len(order.share(batch, other, world, micro)) for other in range(world))
        mine = order.share(batch, rank, world, micro)
        for number in range(passes):
            part = mine[number] if number < len(mine) else batch[:0]
            filled = list(part)
            while len(filled) < 2:
                filled.append(batch[len(filled) % len(batch)] if len(part) == 0 else part[0])
            keys = [(int(self.rows[position]), epoch, int(use)) for position, use in filled]
            yield Micro(epoch, step, keys, len(part), len(batch), number == 0, number == passes - 1)
