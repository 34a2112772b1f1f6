"""Folds: which labelled photos are held out together. A function of the seed and the ids, never of the rows' order."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np

from comp import files
from comp.config import DataConfig
from comp.data.manifest import Dataset
from comp.data.order import seed_of
from comp.errors import CompError, Exit

Val = Literal["pool", "audit", "official"]
TRAINING_ONLY = -1  # the fold of a photo that every fold trains on
_NAMED = 8


def make(dataset: Dataset, k: int, seed: int, val: Val) -> tuple[dict[str, int], list[str]]:
    """Split the labelled photos into folds.

    Photos of one class are dealt out over the folds in turn, so a class's counts differ by at most the size of a group
    of copies between folds, and a class with at least k photos (counting copies once) is in every fold. Photos of the
    same bytes stay together, also where their labels disagree; many of those can leave a class out of a fold, which is
    said. (scikit-learn's StratifiedGroupKFold balances as well;
    it is not used because its chance is that of the rows' order and of its version, where a shared split must outlive
    both, and because it refuses a set without a class of k photos.)

    Args:
        dataset: The photos; bad ones are left out, test ones always.
        k: Number of folds.
        seed: Of the shuffle.
        val: `pool` splits train and val together, `audit` only train, `official` holds val out as fold 0.

    Returns:
        The fold of each image id (`TRAINING_ONLY` for train under `official`), and warnings that name classes which
        are not in every fold.
    """
    bad = set(dataset.bad)
    rows = [row for row, split in enumerate(dataset.splits) if split != "test" and dataset.ids[row] not in bad]
    if val == "official":
        made = {dataset.ids[row]: 0 if dataset.splits[row] == "val" else TRAINING_ONLY for row in rows}
        return dict(sorted(made.items())), _warnings(dataset, made, 1)
    if val == "audit":
        rows = [row for row in rows if dataset.splits[row] == "train"]
    groups: dict[str, list[int]] = defaultdict(list)
    for row in rows:
        groups[dataset.sha1[row]].append(row)
    if len(groups) < k:
        what = f"has {len(groups)} different labelled photos, {k} folds are wanted"
        raise CompError(dataset.name, what, "write a smaller folds.k", Exit.CONFIG)
    by_labels: dict[tuple[int, ...], list[list[int]]] = defaultdict(list)
    for members in groups.values():
        by_labels[tuple(sorted({int(dataset.labels[row]) for row in members}))].append(members)
    made = {}
    filled = [0] * k
    held: dict[int, list[int]] = defaultdict(lambda: [0] * k)
    # Copies whose labels disagree come first, while every fold is open: the classes' other photos fill what they leave.
    for labels in sorted(by_labels, key=lambda found: (len(found) == 1, found)):
        ordered = sorted(by_labels[labels], key=lambda members: min(dataset.ids[row] for row in members))
        rng = np.random.default_rng(seed_of("folds", seed, *labels))
        # Larger groups first, then chance; each goes to the fold that has fewest of its class, then fewest of all.
        shuffled = sorted((ordered[place] for place in rng.permutation(len(ordered))), key=len, reverse=True)
        tie = rng.permutation(k)
        for members in shuffled:
            fold = min(range(k), key=lambda f: (sum(held[one][f] for one in labels), filled[f], int(tie[f])))
            for row in members:
                held[int(dataset.labels[row])][fold] += 1
                made[dataset.ids[row]] = fold
            filled[fold] += len(members)
    return dict(sorted(made.items())), _warnings(dataset, made, k)


def _warnings(dataset: Dataset, made: Mapping[str, int], k: int) -> list[str]:
    """Say which classes some fold holds none of, and which photos no fold can hold out."""
    inside: dict[int, set[int]] = defaultdict(set)
    counts: Counter[int] = Counter()
    for image_id, label in zip(dataset.ids, dataset.labels, strict=True):
        if image_id in made:
            counts[int(label)] += 1
            inside[int(label)].add(made[image_id])
    short = [label for label in range(len(dataset.classes)) if len(inside[label] - {TRAINING_ONLY}) < k]
    if not short:
        return []
    named = ", ".join(f"{dataset.classes[label]} ({counts[label]})" for label in short[:_NAMED])
    more = f" and {len(short) - _NAMED} more" if len(short) > _NAMED else ""
    return [
        f"{len(short)} of {len(dataset.classes)} classes are not in every fold, they have too few photos: {named}{more}"
    ]


def digest(folds: Mapping[str, int]) -> str:
    """SHA-256 over the sorted (image_id, fold)."""
    return files.digest_rows(folds.items())


def save(path: Path, folds: Mapping[str, int]) -> None:
    """Write `image_id,fold`, sorted by id."""
    files.write_csv(path, ("image_id", "fold"), sorted(folds.items()))


def load(path: Path, dataset: Dataset, data: DataConfig) -> dict[str, int]:
    """Read a folds file and check that it is one of this data set.

    Args:
        path: `folds/<set>.csv`.
        dataset: The photos it must cover: all labelled ones (under `audit` those of train), each once.
        data: The data set's config, which says how many folds there are.

    Raises:
        CompError: Exit code 3: it covers other photos, has another number of folds, or separates copies.
    """
    fix = f"take the team's file, or remove it and run `comp folds --data {data.name}` (older runs will not compare)"
    header, rows = files.read_csv(path, ("image_id", "fold"), Exit.DATA)
    at_id, at_fold = header.index("image_id"), header.index("fold")
    folds: dict[str, int] = {}
    for row in rows:
        image_id, text = row[at_id], row[at_fold]
        if image_id in folds:
            raise CompError(path, f"image '{image_id}' is there twice", fix, Exit.DATA)
        if not re.fullmatch(r"-1|[0-9]{1,3}", text):
            raise CompError(path, f"the fold of image '{image_id}' is '{text[:20]}', not a number", fix, Exit.DATA)
        folds[image_id] = int(text)
    bad, audit = set(dataset.bad), data.val == "audit"
    wanted = {
        image_id
        for image_id, split in zip(dataset.ids, dataset.splits, strict=True)
        if (split == "train" or (split == "val" and not audit)) and image_id not in bad
    }
    if missing := sorted(wanted - set(folds)):
        raise CompError(path, f"{len(missing)} photos are in no fold, e.g. '{missing[0]}'", fix, Exit.DATA)
    if extra := sorted(set(folds) - wanted):
        raise CompError(path, f"{len(extra)} photos are not to be split, e.g. '{extra[0]}'", fix, Exit.DATA)
    found = sorted(set(folds.values()) - {TRAINING_ONLY})
    k = 1 if data.val == "official" else data.folds.k
    if found != list(range(k)):
        raise CompError(path, f"has folds {', '.join(map(str, found))}, the data set's config says {k}", fix, Exit.DATA)
    first: dict[str, str] = {}
    for image_id, sha1 in zip(dataset.ids, dataset.sha1, strict=True):
        if image_id not in folds or data.val == "official":
            continue
        twin = first.setdefault(sha1, image_id)
        if folds[twin] != folds[image_id]:
            raise CompError(path, f"copies of one photo are in two folds: {twin} and {image_id}", fix, Exit.DATA)
    return folds
