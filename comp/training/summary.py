"""What is said about a fold: its log's columns and lines, its score, the next command. Nothing here needs torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from comp import metrics, predictions
from comp.config import DataConfig
from comp.runs import Fold

if TYPE_CHECKING:
    from comp.data.manifest import Dataset

COLUMNS = ("epoch", "train_loss", "train_accuracy", "val_loss", "macro_f1", "top1", "top5", "lr")
TIMES = ("epoch", "train_seconds", "val_seconds", "images_per_second")


def scores(labels: npt.NDArray[Any], probs: npt.NDArray[Any]) -> dict[str, float]:
    """The numbers of the log from labels (N,) and probs (N, C): scores are shares, the loss is in nats."""
    return {
        "val_loss": metrics.log_loss(labels, probs),
        "macro_f1": metrics.macro_f1(labels, probs),
        "top1": metrics.accuracy(labels, probs),
        "top5": metrics.top5(labels, probs),
    }


def epoch_line(row: Sequence[Any], epochs: int, images_per_second: float) -> str:
    """One line of the terminal for one row of the log."""
    epoch, train_loss, train_accuracy, val_loss, macro_f1, top1, top5, lr = row
    return (
        f"epoch {epoch:>{len(str(epochs))}}/{epochs}  train loss {train_loss:.3f} acc {train_accuracy:.3f}"
        f"  val loss {val_loss:.3f}  macro F1 {macro_f1:.4f}  top-1 {top1:.4f}  top-5 {top5:.4f}"
        f"  lr {lr:.2g}  {images_per_second:.0f} images/s"
    )


def fold_result(fold: Fold, data: DataConfig, dataset: Dataset) -> dict[str, Any]:
    """A finished fold's scores from its out-of-fold predictions.

    Returns:
        `fold`, `metric`, `score` in the set's metric with its standard error `se`, `images`, `selection` (last or
        best), and the numbers of `scores`.
    """
    path = fold.predictions("oof", "center")
    found = predictions.load(path)
    label_of = dict(zip(dataset.ids, dataset.labels, strict=True))
    labels = np.array([label_of[image_id] for image_id in found.ids.tolist()], dtype=np.int64)
    estimate = metrics.interval(data.metric, labels, found.probs)
    return {
        "fold": str(fold),
        "metric": data.metric,
        "score": estimate.value,
        "se": estimate.se,
        "images": len(found),
        "selection": found.header.get("selection", "last"),
        **scores(labels, found.probs),
    }


def result_line(result: dict[str, Any]) -> str:
    """A fold's score in one line, with its standard error."""
    chosen = "best epoch, so it flatters" if result["selection"] == "best" else "last epoch"
    se = "" if math.isnan(result["se"]) else f" ± {result['se']:.4f}"
    name = {"macro_f1": "macro F1", "log_loss": "log loss"}.get(result["metric"], result["metric"])
    rest = f"top-1 {result['top1']:.4f}, top-5 {result['top5']:.4f}, log loss {result['val_loss']:.4f}"
    return f"{result['fold']}: {name} {result['score']:.4f}{se} on {result['images']} photos ({chosen}); {rest}"


def next_command(fold: Fold, model: str, folds: Sequence[int]) -> str:
    """What to type next: the first fold that is missing, or the submission."""
    data = "" if fold.run.data == "petals" else f" DATA={fold.run.data}"
    named = "" if fold.run.name == model else f" NAME={fold.run.name}"
    done = {other.number for other in fold.run.finished()}
    missing = [number for number in folds if number not in done]
    if missing:
        which = f"make train MODEL={model}{data}{named} FOLD={missing[0]}"
        return f"next: make submit{data}, or the next fold: {which}"
    return f"next: make scores{data}, make submit{data}"
