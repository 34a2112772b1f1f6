"""Training images as batches of uint8 tensors, the same for any number of workers."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from comp.data.order import use_seed
from comp.data.workers import CHUNK, in_order

if TYPE_CHECKING:
    from comp.data.augment import Augment
    from comp.data.manifest import Dataset

Key = tuple[int, ...]  # (row, epoch) or (row, epoch, use)
_MOST_WORKERS = 16


class TrainingImages(torch.utils.data.Dataset[tuple[Tensor, int, int]]):
    """The augmented training images of a run: what an image looks like is a function of (seed, epoch, image_id).

    Args:
        dataset: The data set.
        augment: The pipeline.
        seed: The run's seed.
    """

    def __init__(self, dataset: Dataset, augment: Augment, seed: int):
        self.dataset, self.augment, self.seed = dataset, augment, seed
        self.reader = dataset.reader()

    def pixels(self, key: Key) -> NDArray[np.uint8]:
        """One use of an image.

        Args:
            key: (row, epoch), or (row, epoch, use) where an epoch uses an image more than once (`order.uses`).

        Returns:
            (3, crop, crop) RGB.
        """
        row, epoch, *use = key
        seed = use_seed(self.seed, epoch, self.dataset.ids[row], *use)
        return self.augment(self.reader.pixels(row), seed).transpose(2, 0, 1)

    def __getitem__(self, key: Key) -> tuple[Tensor, int, int]:
        """(uint8 (3, crop, crop), label, row) of a key."""
        pixels = torch.from_numpy(np.ascontiguousarray(self.pixels(key)))
        return pixels, int(self.dataset.labels[key[0]]), int(key[0])


def batches(
    images: TrainingImages, plan: Iterable[Sequence[Key]], workers: int
) -> Generator[tuple[Tensor, Tensor, Tensor], None, None]:
    """Make the batches of a plan, in its order.

    One plan may run over all epochs, so that the workers live as long as the training does; it is read ahead by about
    two batches. Close the generator (or let go of it) to end the workers.

    Args:
        images: The images.
        plan: Keys of one batch after the other.
        workers: Processes that make images; 0 makes them here.

    Yields:
        uint8 pixels (B, 3, crop, crop), int64 labels (B,), int64 rows (B,). On a machine with a GPU in use the pixels
        are in pinned memory.

    Raises:
        CompError: What is wrong with an image, or exit code 8 where a worker died.
    """
    source = iter(plan)
    first = next(source, None)
    if first is None:
        return
    crop = images.augment.crop
    begun: deque[Sequence[Key]] = deque()

    def chunks() -> Iterator[Sequence[Key]]:
        for keys in chain([first], source):
            begun.append(keys)
            for start in range(0, max(len(keys), 1), CHUNK):
                yield keys[start : start + CHUNK]

    labels = torch.as_tensor(np.asarray(images.dataset.labels, dtype=np.int64))
    ahead = 2 * max(workers, -(-len(first) // CHUNK))
    pinned = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    keys: Sequence[Key] | None = None
    filled = 0
    made = in_order(images.pixels, (3, crop, crop), chunks(), workers, ahead)
    try:
        for pixels in made:
            if keys is None:
                keys, filled = begun.popleft(), 0
                batch = torch.empty((len(keys), 3, crop, crop), dtype=torch.uint8, pin_memory=pinned)
            batch[filled : filled + len(pixels)] = torch.from_numpy(pixels)
            filled += len(pixels)
            if filled == len(keys):
                rows = torch.tensor([key[0] for key in keys], dtype=torch.int64)
                keys = None
                yield batch, labels[rows], rows
    finally:
        made.close()


def default_workers(procs: int = 1) -> int:
    """How many workers each of `procs` processes gets, from the cores this process may use.

    With a GPU: the process's share of the cores less one, at most 16. Without one the workers compete with the
    computation, of which an image's loading is a tenth or less: resnet34 at 64 pixels on two cores ran 2 % slower with
    one worker and 4 % slower with two. So none below four cores; one from there, which is a choice: it was not measured
    (`python -m benchmarks.augment --train` does, on a quiet machine).
    """
    cores = len(os.sched_getaffinity(0)) // max(procs, 1)
    if torch.cuda.is_available():
        return max(1, min(cores - 1, _MOST_WORKERS))
    return 1 if cores >= 4 else 0
