"""Photos to the uint8 batches of one evaluation: decoded once, resized on threads, views of one shape together.

Everything is a generator over the one before: photos are read ahead while the device works, and no more of them than a
few chunks are held, however many views there are. Pillow and OpenCV release the interpreter's lock, so threads do.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from comp.inference import views as pixels_of
from comp.inference.spec import View
from comp.inference.views import Pixels

In = TypeVar("In")
Out = TypeVar("Out")


@dataclass(frozen=True)
class Batch:
    """Views of one shape, and which they are.

    Attributes:
        pixels: (B, h, w, 3) RGB.
        slots: (B,) the photo's place in its chunk.
        views: (B,) the view's place in the list of views.
        chunk: (K,) rows of the chunk's photos.
        last: Whether it completes the chunk.
    """

    pixels: Pixels
    slots: npt.NDArray[np.int64]
    views: npt.NDArray[np.int64]
    chunk: tuple[int, ...]
    last: bool


def ahead(pool: Executor | None, function: Callable[[In], Out], items: Iterable[In], depth: int) -> Iterator[Out]:
    """`map`, in order, with up to `depth` results under way on the pool; plain `map` without one."""
    if pool is None:
        yield from map(function, items)
        return
    waiting: deque[Future[Out]] = deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) > depth:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def chunk_length(views: Sequence[View], crop: int, aspect: float, budget: int) -> int:
    """How many photos are worked on at a time: enough for full batches, few enough for little memory.

    Args:
        views: The views of a photo.
        crop: Side of the training crop, pixels.
        aspect: Longer over shorter side of a typical photo.
        budget: Pixels of one batch.
    """
    whole = any(view.place == "whole" for view in views)
    area = sum(view.size**2 * aspect if whole else crop**2 for view in views)
    rounds = 8 if whole else 1  # small scales fill a batch only if several photos are at hand
    return max(1, round(rounds * budget / area))


def batches(
    rows: Sequence[int],
    read: Callable[[int], Pixels],
    views: Sequence[View],
    crop: int,
    length: int,
    budget: int,
    pool: Executor | None = None,
) -> Iterator[Batch]:
    """All views of all photos, each photo decoded once and each of its sizes resized once.

    Args:
        rows: The photos in the order they are worked on; photos of one shape should be neighbours.
        read: Row → (H, W, 3) RGB.
        views: The views of every photo.
        crop: Side of the training crop, pixels.
        length: Photos of one chunk.
        budget: Pixels of one batch; a batch holds at least one view.
        pool: Threads that decode, resize and stack; None does it in this one.
    """
    sizes = [view.size for view in views]

    def load(row: int) -> tuple[int, dict[int, Pixels]]:
        return row, pixels_of.all_sizes(read(row), sizes)

    def plan() -> Iterator[Callable[[], Batch]]:
        photos = ahead(pool, load, rows, 2 * length)
        while chunk := list(islice(photos, length)):
            pieces = _pieces([photo for _, photo in chunk], views, crop, budget)
            for number, piece in enumerate(pieces):
                yield _stacker(chunk, piece, views, crop, last=number == len(pieces) - 1)

    yield from ahead(pool, lambda make: make(), plan(), 2)


Piece = list[tuple[int, int]]


def _pieces(photos: Sequence[dict[int, Pixels]], views: Sequence[View], crop: int, budget: int) -> list[Piece]:
    """(slot, view) pairs by shape, each shape split evenly into as few batches as the budget allows."""
    by_shape: dict[Any, Piece] = {}
    for number, view in enumerate(views):
        for slot, photo in enumerate(photos):
            shape = photo[view.size].shape[:2] if view.place == "whole" else (crop, crop)
            by_shape.setdefault(shape, []).append((slot, number))
    pieces = []
    for (height, width), members in by_shape.items():
        parts = math.ceil(len(members) / max(1, budget // (height * width)))
        bounds = [round(part * len(members) / parts) for part in range(parts + 1)]
        pieces += [members[low:high] for low, high in pairwise(bounds)]
    return pieces


def _stacker(
    chunk: Sequence[tuple[int, dict[int, Pixels]]], piece: Piece, views: Sequence[View], crop: int, last: bool
) -> Callable[[], Batch]:
    def make() -> Batch:
        return Batch(
            np.stack([pixels_of.cut(chunk[slot][1][views[view].size], views[view], crop) for slot, view in piece]),
            np.array([slot for slot, _ in piece], dtype=np.int64),
            np.array([view for _, view in piece], dtype=np.int64),
            tuple(row for row, _ in chunk),
            last,
        )

    return make
