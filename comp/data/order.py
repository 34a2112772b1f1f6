"""Which image is used when: functions of the seed, never a state. Worker and process counts cannot change them.

Only streams that numpy promises never to change are used (a bit generator's raw output, a stable sort), so an order
does not depend on the version of numpy either.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

Positions = NDArray[np.int64]


def seed_of(*parts: int | str) -> int:
    """Hash the parts into a seed: the one source of chance in this project.

    Args:
        *parts: Numbers and texts; `1` and `"1"` are different parts, and so are `"ab", "c"` and `"a", "bc"`.

    Returns:
        A whole number in [0, 2^64): the first 8 bytes of BLAKE2b over the parts as JSON.
    """
    plain = [part if isinstance(part, str) else int(part) for part in parts]
    return int.from_bytes(hashlib.blake2b(json.dumps(plain).encode(), digest_size=8).digest(), "big")


def _raw(count: int, *parts: int | str) -> NDArray[np.uint64]:
    """`count` 64-bit words that only the parts decide."""
    return np.asarray(np.random.PCG64(seed_of(*parts)).random_raw(count), dtype=np.uint64).reshape(count)


def epoch_order(ids: Sequence[str], seed: int, fold: int, epoch: int) -> Positions:
    """The order of an epoch: every image once.

    Args:
        ids: Image ids (N,), each once, in any row order.
        seed: The run's seed.
        fold: The fold held out.
        epoch: The epoch.

    Returns:
        A permutation of range(N), positions in `ids`. The sequence of ids it stands for depends on the set of ids and
        the three numbers alone.
    """
    by_id = np.argsort(np.asarray(ids, dtype=np.str_), kind="stable")
    return by_id[np.argsort(_raw(len(ids), "order", seed, fold, epoch), kind="stable")]


def balanced_order(labels: Sequence[int], ids: Sequence[str], seed: int, fold: int, epoch: int) -> Positions:
    """An epoch of as many draws as there are images, with replacement: first a class, then one of its images.

    Args:
        labels: Class indices (N,); every class that occurs is drawn with the same chance.
        ids: Image ids (N,), each once, in any row order.
        seed: The run's seed.
        fold: The fold held out.
        epoch: The epoch.

    Returns:
        Positions (N,) in `ids`; images of rare classes come several times (`uses` counts them), others not at all.
    """
    by_id = np.argsort(np.asarray(ids, dtype=np.str_), kind="stable")
    sorted_labels = np.asarray(labels)[by_id]
    members = [by_id[sorted_labels == label] for label in np.unique(sorted_labels)]
    raw = _raw(2 * len(by_id), "balanced", seed, fold, epoch)
    # The remainder of a 64-bit word favours no class or image by more than N / 2^64.
    chosen = raw[::2] % np.uint64(max(len(members), 1))
    return np.array(
        [members[int(c)][int(w) % len(members[int(c)])] for c, w in zip(chosen, raw[1::2], strict=True)], np.int64
    )


def uses(order: Positions) -> Positions:
    """How often each entry's image came before in the order (N,): 0 for the first use. All 0 for `epoch_order`."""
    seen: dict[int, int] = {}
    counts = np.zeros(len(order), np.int64)
    for place, position in enumerate(order.tolist()):
        counts[place] = seen.get(position, 0)
        seen[position] = int(counts[place]) + 1
    return counts


def use_seed(seed: int, epoch: int, image_id: str, use: int = 0) -> int:
    """The seed of an image's augmentation: a function of the run's seed, the epoch and the image's id.

    `use` counts the uses of one image in one epoch (see `uses`); the first looks the same whether or not it is counted.
    """
    return seed_of(seed, epoch, image_id, use) if use else seed_of(seed, epoch, image_id)


def step_count(images: int, batch: int) -> int:
    """Optimizer steps in an epoch of so many images (see `steps`)."""
    full, rest = divmod(images, batch)
    return full + (rest > 1 or (rest == 1 and full == 0))


def steps(order: Positions, batch: int, step_from: int = 0) -> Iterator[Positions]:
    """Cut an epoch into global batches.

    Every entry of the order is used exactly once. The last batch holds what remains; a remainder of one image, whose
    batch normalisation would divide by a variance of zero, joins the batch before it, which then has `batch` + 1.

    Args:
        order: Positions (N,), or rows (N, …) that travel together.
        batch: The global batch size.
        step_from: Steps of this epoch already done.

    Yields:
        The global batches from `step_from` on; there are `step_count(N, batch)` in an epoch.
    """
    count = step_count(len(order), batch)
    for step in range(step_from, count):
        yield order[step * batch : (step + 1) * batch if step + 1 < count else len(order)]


def share(batch: Positions, rank: int, world: int, micro: int) -> list[Positions]:
    """This process's part of a global batch, as micro-batches.

    The batch is cut into `world` contiguous parts whose sizes differ by at most one, so that the parts of rank 0, 1, …
    put together are the global batch; so is each part into micro-batches, none above `micro`.

    Args:
        batch: A global batch (n,).
        rank: This process, 0 to world - 1.
        world: Number of processes; where it is more than n, some get nothing.
        micro: Most images per forward pass.

    Returns:
        The micro-batches, none empty; an empty list where nothing fell to this rank.
    """
    n = len(batch)
    mine = batch[n * rank // world : n * (rank + 1) // world]
    count = -(-len(mine) // micro)
    return [mine[len(mine) * i // count : len(mine) * (i + 1) // count] for i in range(count)]
