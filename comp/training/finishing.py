"""The end of a fold: the selected weights as a file, then their predictions for the photos that were held out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch

from comp import files, metrics
from comp.config import RunConfig
from comp.errors import CompError, Exit
from comp.inference import spec
from comp.inference.predict import predict
from comp.nets import store
from comp.runs import Fold
from comp.training.checkpoint import Best
from comp.training.processes import Team

if TYPE_CHECKING:
    from comp.data.manifest import Dataset


def is_better(metric: str, score: float, log_loss: float, best: Best | None) -> bool:
    """Whether an epoch beats the best so far: by score, then by lower log loss, then the earlier stays; nan never."""
    if np.isnan(score):
        return False
    if best is None:
        return True
    if score != best.score:
        return metrics.METRICS[metric].better(score, best.score)
    return log_loss < best.log_loss


def check_best(fold: Fold, best: Best | None) -> None:
    """Remove the candidates that are not the best epoch's; that one must be there.

    It lies in its own file until the fold ends, then as the model.
    """
    for path in fold.path.glob("best-*.safetensors"):
        if best is None or path.name != best.file:
            path.unlink(missing_ok=True)
    if best is not None and not any(
        path.exists() and files.digest_file(path) == best.digest for path in (fold.path / best.file, fold.model)
    ):
        fix = f"remove {fold.path} to train the fold again"
        raise CompError(fold.path / best.file, "is not the best epoch's weights last.ckpt tells of", fix, Exit.FILE)


def keep_best(fold: Fold, best: Best) -> None:
    """Make the best epoch's weights the fold's model."""
    candidate = fold.path / best.file
    if candidate.exists():
        files.write_bytes(fold.model, files.read_bytes(candidate))
        candidate.unlink()


def predict_held_out(
    fold: Fold,
    config: RunConfig,
    dataset: Dataset,
    folds: Mapping[str, int],
    team: Team,
    device: torch.device,
    workers: int,
    stop: Callable[[], object],
    progress: Callable[[int], object] | None,
) -> None:
    """Write the out-of-fold predictions of the centre view; the fold is finished when they are there.

    The model is read back from the disk, so what is scored is what was kept.

    Args:
        fold: The fold.
        config: The run.
        dataset: The data set.
        folds: Fold of each image id.
        team: The processes.
        device: Where to compute.
        workers: Threads that read images.
        stop: Called between forwards.
        progress: Called with numbers of photos done.
    """
    predict(
        fold,
        store.load_model(fold, device),
        "oof",
        spec.parse("center", ()),
        dataset,
        folds,
        precision=config.precision,
        device=device,
        timed=False,
        save=team.first,
        workers=workers,
        rank=team.rank,
        world=team.world,
        gather=team.gather,
        progress=progress,
        stop=stop,
    )
    team.wait()
