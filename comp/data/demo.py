"""The built-in data set: a small flower competition, drawn from a seed and written in the competition's own layout.

Every picture is a function of (seed, split, index). The set is unbalanced like the real one, and at most 0.5 % each of
its photos are planted near-duplicates (a crop of a training photo, recompressed) and wrong labels. The truth is in
`truth.csv`: with it, test scores and searches for duplicates or label noise are checked.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from comp.data.petals import Image, Species, photo, species
from comp.data.tfrecord import write_records
from comp.errors import CompError, Exit
from comp.files import read_json, write_csv, write_json, write_text

VERSION = 1  # of the drawing: another number makes `ensure` draw again
SPLITS = ("train", "val", "test")
PLANTED = 0.005  # near-duplicates in the set, and wrong labels in train and in val
IMBALANCE = 20.0  # photos of the most common class per photo of the rarest
TRUTH = "truth.csv"
_DONE = "petals.json"


@dataclass(frozen=True)
class _Photo:
    """What is planned for one photo: its true label, the label it is given, and what it copies, as (split, index)."""

    image_id: str
    split: str
    index: int
    label: int
    given: int
    copy_of: tuple[str, int] | None = None


def class_counts(total: int, classes: int, order: NDArray[np.int64]) -> list[int]:
    """Photos per class: a geometric series from rarest to most common, at least one each, summing to `total`."""
    share = IMBALANCE ** (-order / max(classes - 1, 1))
    exact = share / share.sum() * (total - classes)
    counts = np.floor(exact).astype(int) + 1
    for label in np.argsort(np.floor(exact) - exact, kind="stable")[: total - int(counts.sum())]:
        counts[label] += 1
    return [int(count) for count in counts]


def _plan(sizes: dict[str, int], classes: int, seed: int) -> dict[str, list[_Photo]]:
    rng = np.random.default_rng([seed, 101])
    order = rng.permutation(classes)
    labels = {
        split: rng.permutation(np.repeat(np.arange(classes), class_counts(size, classes, order)))
        for split, size in sizes.items()
    }
    copies: dict[tuple[str, int], tuple[str, int]] = {}
    touched: set[tuple[str, int]] = set()
    for number in range(int(PLANTED * sum(sizes.values()))):
        split = ("train", "test", "train", "val")[number % 4]
        for index in rng.permutation(sizes[split]).tolist():
            twins = [
                i
                for i in np.flatnonzero(labels["train"] == labels[split][index]).tolist()
                if ("train", i) not in touched
            ]
            twins = [i for i in twins if (split, index) != ("train", i)]
            if (split, index) not in touched and twins:
                source = ("train", twins[int(rng.integers(len(twins)))])
                copies[split, index] = source
                touched |= {(split, index), source}
                break
    given = {split: labels[split].copy() for split in SPLITS}
    for split in ("train", "val"):
        free = [index for index in range(sizes[split]) if (split, index) not in touched]
        for index in rng.permutation(free)[: int(PLANTED * sizes[split])].tolist():
            given[split][index] = (labels[split][index] + rng.integers(1, classes)) % classes
    seen: set[str] = set()
    plan: dict[str, list[_Photo]] = {split: [] for split in SPLITS}
    for split in SPLITS:
        for index in range(sizes[split]):
            name, image_id = f"{seed}/{split}/{index}", ""
            while not image_id or image_id in seen:
                image_id = hashlib.sha1(name.encode(), usedforsecurity=False).hexdigest()[:9]
                name += "+"
            seen.add(image_id)
            here = (int(labels[split][index]), int(given[split][index]))
            plan[split].append(_Photo(image_id, split, index, *here, copies.get((split, index))))
    return plan


def _pixels(label: int, at: tuple[str, int], kinds: list[Species], size: int, seed: int) -> Image:
    split, index = at
    return photo(kinds[label], kinds, size, np.random.default_rng([seed, SPLITS.index(split), index]))


def _jpeg(task: _Photo, kinds: list[Species], size: int, seed: int) -> bytes:
    import cv2

    rng = np.random.default_rng([seed, SPLITS.index(task.split), task.index, 1])
    if task.copy_of is None:
        pixels = _pixels(task.label, (task.split, task.index), kinds, size, seed)
    else:  # somebody cropped a little, changed the exposure a little and saved the file again
        pixels = _pixels(task.label, task.copy_of, kinds, size, seed)
        cut = max(1, size // 32)
        left, top = rng.integers(0, cut + 1, 2).tolist()
        pixels = pixels[top : size - cut + top, left : size - cut + left]
        pixels = cv2.resize(pixels, (size, size), interpolation=cv2.INTER_LINEAR).astype(np.float32)
        pixels = np.clip(pixels * rng.uniform(0.92, 1.08), 0, 255).astype(np.uint8)
    quality = int(rng.integers(60, 96))
    return bytes(cv2.imencode(".jpg", pixels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])[1])


def draw(
    root: Path,
    *,
    classes: int = 12,
    train: int = 1500,
    val: int = 300,
    test: int = 1200,
    size: int = 96,
    seed: int = 0,
    shards: int = 4,
    progress: Callable[[int, int], object] | None = None,
) -> None:
    """Draw the set and write it under `root`.

    Writes `tfrecords-jpeg-SxS/{train,val,test}/NN-SxS-COUNT.tfrec`, `sample_submission.csv` (in the order of the ids),
    `classes.txt` (one name per line, in label order) and `truth.csv` with the columns
    image_id, label (the true one), split, copy_of (an image_id or empty), given_label (empty for test).

    Args:
        root: The folder.
        classes: Number of classes, 2 to 1000.
        train: Photos for training, at least one per class.
        val: Photos for validation, likewise.
        test: Photos of the test split, likewise.
        size: Width and height in pixels, 16 or more.
        seed: Where everything comes from.
        shards: Shards per split.
        progress: Called with (photos done, photos in all).

    Raises:
        CompError: For numbers that make no set (exit code 2) or a folder that cannot be written (7).
    """
    sizes = {"train": train, "val": val, "test": test}
    if not 2 <= classes <= 1000 or min(sizes.values()) < classes or size < 16 or shards < 1 or seed < 0:
        raise CompError(
            "petals",
            f"cannot draw {classes} classes, {train} + {val} + {test} photos of {size} pixels in {shards} shards",
            "it takes 2 to 1000 classes, a photo of each in every split, 16 pixels, one shard, a seed from 0",
            Exit.CONFIG,
        )
    kinds = species(classes, np.random.default_rng([seed, 100]))
    plan = _plan(sizes, classes, seed)
    folder = root / f"tfrecords-jpeg-{size}x{size}"
    shards_there = sorted(root.glob("tfrecords-*/*/*.tfrec"))
    if shards_there and not (root / _DONE).exists():
        fix = "move them, or give the data set another root"
        raise CompError(root, "holds shards that were not drawn here, they would be replaced", fix, Exit.DATA)
    write_json(root / _DONE, {"version": VERSION, "drawing": True})  # until all is there: `ensure` draws again
    for old in shards_there:
        old.unlink()
    done, total = 0, sum(sizes.values())
    for split in SPLITS:
        for number, chosen in enumerate(np.array_split(np.arange(sizes[split]), min(shards, sizes[split]))):
            examples: list[dict[str, bytes | int]] = []
            for index in chosen.tolist():
                task = plan[split][index]
                label: dict[str, bytes | int] = {} if split == "test" else {"class": task.given}
                data = _jpeg(task, kinds, size, seed)
                examples.append({"image": data, **label, "id": task.image_id.encode()})
                done += 1
                if progress:
                    progress(done, total)
            write_records(folder / split / f"{number:02}-{size}x{size}-{len(examples)}.tfrec", examples)
    write_text(root / "classes.txt", "".join(kind.name + "\n" for kind in kinds))
    test_ids = sorted(task.image_id for task in plan["test"])
    write_csv(root / "sample_submission.csv", ("id", "label"), [(image_id, 0) for image_id in test_ids])
    rows = [
        (
            task.image_id,
            task.label,
            split,
            plan[task.copy_of[0]][task.copy_of[1]].image_id if task.copy_of else "",
            "" if split == "test" else task.given,
        )
        for split in SPLITS
        for task in plan[split]
    ]
    write_csv(root / TRUTH, ("image_id", "label", "split", "copy_of", "given_label"), rows)
    write_json(root / _DONE, _parameters(classes, sizes, size, seed, shards))


def _parameters(classes: int, sizes: dict[str, int], size: int, seed: int, shards: int) -> dict[str, object]:
    return {"version": VERSION, "classes": classes, **sizes, "size": size, "seed": seed, "shards": shards}


def ensure(
    root: Path,
    *,
    classes: int = 12,
    train: int = 1500,
    val: int = 300,
    test: int = 1200,
    size: int = 96,
    seed: int = 0,
    shards: int = 4,
    progress: Callable[[int, int], object] | None = None,
) -> bool:
    """Draw the set unless exactly this one is already there whole.

    Returns:
        Whether it was drawn now.
    """
    sizes = {"train": train, "val": val, "test": test}
    mark = root / _DONE
    if mark.is_file() and read_json(mark, Exit.DATA) == _parameters(classes, sizes, size, seed, shards):
        return False
    draw(root, classes=classes, **sizes, size=size, seed=seed, shards=shards, progress=progress)
    return True
