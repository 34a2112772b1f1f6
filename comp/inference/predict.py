"""A fold's selected weights on one split of the photos: the prediction file that everything after reads."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

from comp import files
from comp.errors import CompError, Exit
from comp.inference.evaluate import Evaluation, evaluate
from comp.inference.spec import ViewSpec
from comp.nets.store import Stored
from comp.predictions import Predictions
from comp.runs import Fold

if TYPE_CHECKING:
    from comp.data.manifest import Dataset

# What a prediction's header takes over from the weights' description.
KEPT = ("selection", "epoch", "seed", "recipe", "config", "data", "pixels", "folds")


def rows_of_split(dataset: Dataset, folds: Mapping[str, int], fold: Fold, split: str) -> npt.NDArray[np.int64]:
    """Rows of the photos a fold predicts.

    Args:
        dataset: The data set.
        folds: Fold of each image id.
        fold: The fold.
        split: `oof`, the photos it held out (bad ones are left out); `test`; or `val`, the val photos kept out of all
            folds (`val: audit`).
    """
    ids = [str(image_id) for image_id in dataset.ids]
    if split == "oof":
        bad = set(map(str, dataset.bad))
        return np.array([r for r, i in enumerate(ids) if folds.get(i) == fold.number and i not in bad], dtype=np.int64)
    wanted = np.asarray(dataset.splits) == split
    outside = np.array([image_id not in folds for image_id in ids])
    return np.flatnonzero(wanted & outside).astype(np.int64)


def class_prior(dataset: Dataset, folds: Mapping[str, int]) -> npt.NDArray[np.float64]:
    """(C,) share of each class among the photos in folds: what a test photo that cannot be decoded gets."""
    labels = [int(label) for i, label in zip(dataset.ids, dataset.labels, strict=True) if str(i) in folds]
    counts = np.bincount(labels, minlength=len(dataset.classes))
    share: npt.NDArray[np.float64] = counts / counts.sum()
    return share


def refuse_stale(stored: Stored, dataset: Dataset, folds: Mapping[str, int], fold: Fold) -> None:
    """Refuse weights that were trained on other data, pixels or folds than those on the disk now.

    On other folds the photos predicted as held out may have been trained on: the score would be a leak.

    Raises:
        CompError: Exit code 4, naming what differs.
    """
    now = {"data": dataset.data_digest, "pixels": dataset.pixels_digest, "folds": files.digest_rows(folds.items())}
    for what, digest in now.items():
        if stored.about[what] != digest:
            words = {"data": "labels", "pixels": "photos", "folds": "folds"}[what]
            said = f"was trained on other {words} ({stored.about[what][:8]}, now {digest[:8]})"
            raise CompError(fold.model, said, f"bring the {words} back, or train {fold} again", Exit.FILE)


def predict(
    fold: Fold,
    stored: Stored,
    split: str,
    spec: ViewSpec,
    dataset: Dataset,
    folds: Mapping[str, int],
    *,
    precision: str,
    device: torch.device,
    timed: bool = True,
    save: bool = True,
    workers: int = 0,
    keep: bool = False,
    rank: int = 0,
    world: int = 1,
    gather: Callable[[Any], list[Any]] | None = None,
    progress: Callable[[int], object] | None = None,
    estimate: Callable[[float], object] | None = None,
    stop: Callable[[], object] | None = None,
) -> Evaluation:
    """Predict one split with a fold's selected weights, and write the file.

    Args:
        fold: The fold.
        stored: Its weights, read back from the disk: what is predicted is what was kept.
        split: oof, test or val (see `rows_of_split`).
        spec: The views.
        dataset: The data set.
        folds: Fold of each image id.
        precision: fp32, bf16, fp16 or auto.
        device: Where the network is.
        timed: Put milliseconds per image into the header. Training does not: its out-of-fold file is the same bytes
            each time.
        save: Whether this process writes the file.
        workers: Threads that read images.
        keep: Write each view's probabilities too, (V, N, C) float16, to `<split>.<views>.views.npz`.
        rank: Of this process.
        world: Processes.
        gather: See `evaluate`.
        progress: Called with numbers of photos done.
        estimate: Called once with the expected seconds.
        stop: Called between forwards; may raise.
    """
    refuse_stale(stored, dataset, folds, fold)
    found = evaluate(
        stored.network,
        dataset,
        rows_of_split(dataset, folds, fold, split),
        spec,
        name=str(fold),
        image=stored.image,
        mean=stored.mean,
        std=stored.std,
        precision=precision,
        device=device,
        workers=workers,
        keep=keep,
        prior=class_prior(dataset, folds) if len(dataset.bad) else None,
        rank=rank,
        world=world,
        gather=gather,
        progress=progress,
        estimate=estimate,
        stop=stop,
    )
    if not save:
        return found
    header = {
        "run": fold.run.name,
        "fold": fold.number,
        "split": split,
        "views": spec.canonical,
        "checkpoint": stored.digest,
        **{key: stored.about[key] for key in KEPT},
    }
    if timed:
        header["ms_per_image"] = round(found.ms_per_image, 3)
    path = fold.predictions(split, spec.file_name)
    if keep and found.views is not None:
        names, arrays = np.array(list(found.views)), np.stack(list(found.views.values()))
        each = path.with_name(f"{path.stem}.views.npz")
        files.write_atomic(each, lambda file: np.savez(file, ids=found.ids, views=names, probs=arrays))
    Predictions(found.ids, found.probs, np.asarray(stored.classes, dtype=np.str_), header).save(path)
    return found
