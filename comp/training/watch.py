"""Why does it not learn? A look at each epoch's figures that says in one line what else is found too late.

Nothing here touches the device: `look` gets numbers that training has on the host at the end of an epoch anyway. Each
thing is said once in the life of a fold; what was said, and the figures it rests on, go into the checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

NEAR = 0.01  # of the loss of a constant answer: nothing has been learnt
SWING = 0.5  # of ln(C): a rise of the loss from one step to the next that noise of a batch does not make
SWINGS = 3  # so many of them
FIRST_STEPS = 50  # among so many first steps
EXPLODING = 30.0  # times the median gradient norm
LARGE_NORM = 100.0  # a norm below this is not called exploding, however small the others were
WORSE_FOR = 3  # epochs in a row with a worse validation loss


def mean_target(labels: ArrayLike, classes: int, *, balance: str = "none", smoothing: float = 0.0) -> NDArray[Any]:
    """The mean of the targets that the loss sees, over an epoch: the best constant answer there is.

    Args:
        labels: (N,) labels of the training images.
        classes: C.
        balance: `loss.balance`; sampler and weights make classes equal.
        smoothing: Label smoothing; mixup and cutmix do not change the mean.

    Returns:
        (C,) shares that sum to 1. Their entropy is the loss of a network that learns its last bias and nothing else.
    """
    counts = np.bincount(np.asarray(labels, dtype=np.int64), minlength=classes).astype(np.float64)
    if balance in ("sampler", "weights"):
        counts = (counts > 0).astype(np.float64)
    shares: NDArray[Any] = (1 - smoothing) * counts / max(counts.sum(), 1.0) + smoothing / classes
    return shares


def entropy(shares: ArrayLike) -> float:
    """−Σ p·ln p of shares (C,), in nats."""
    p = np.asarray(shares, dtype=np.float64)
    p = p[p > 0]
    return float(-(p * np.log(p)).sum())


class Watch:
    """The epochs of one fold, and what was said about them.

    Args:
        classes: Class names in label order.
        target: (C,) mean target of the training images (`mean_target`).
        epochs: How many there will be.
        warmup: Epochs of warm-up; the loss may stay where it starts for so long.
        clip: `optim.clip`, for the advice.
        lr: `optim.lr`, for the advice.
    """

    def __init__(
        self,
        classes: Sequence[str],
        target: ArrayLike,
        *,
        epochs: int,
        warmup: float = 0.0,
        clip: float | None = None,
        lr: float | None = None,
    ) -> None:
        self.classes = list(classes)
        self.uniform = math.log(len(self.classes))
        self.constant = entropy(target)
        self.epochs, self.warmup, self.clip, self.lr = epochs, warmup, clip, lr
        self.train: list[float] = []
        self.val: list[float] = []
        self.norms: list[float] = []  # the median norm of each epoch
        self.said: list[str] = []

    def state_dict(self) -> dict[str, Any]:
        """Plain lists for the checkpoint."""
        return {"train": list(self.train), "val": list(self.val), "norms": list(self.norms), "said": list(self.said)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was."""
        self.train, self.val = list(state["train"]), list(state["val"])
        self.norms, self.said = list(state["norms"]), list(state["said"])

    def look(
        self,
        epoch: int,
        *,
        train_loss: float,
        val_loss: float,
        labels: ArrayLike,
        probs: ArrayLike,
        losses: ArrayLike = (),
        grad_norms: ArrayLike = (),
    ) -> list[str]:
        """Look at a finished epoch.

        Args:
            epoch: Its number, from 0.
            train_loss: Mean loss of its steps.
            val_loss: Log loss on the held-out fold.
            labels: (N,) true labels of the held-out images.
            probs: (N, C) their predictions.
            losses: (S,) loss of each of its steps in order, where known.
            grad_norms: (S,) gradient norm of each step before clipping, where known.

        Returns:
            What is new and wrong, one line each.
        """
        self.train.append(float(train_loss))
        self.val.append(float(val_loss))
        found = [
            self._flat(epoch),
            self._collapsed(epoch, np.asarray(labels, dtype=np.int64), np.asarray(probs)),
            self._oscillating(epoch, np.asarray(losses, dtype=np.float64)),
            self._exploding(epoch, np.asarray(grad_norms, dtype=np.float64)),
            self._overfitting(epoch),
        ]
        new = [(key, line) for each in found if each for key, line in [each] if key not in self.said]
        self.said += [key for key, _ in new]
        return [line for _, line in new]

    def _flat(self, epoch: int) -> tuple[str, str] | None:
        if epoch < math.ceil(self.warmup):
            return None
        loss = self.train[-1]
        if abs(loss - self.uniform) < NEAR * self.uniform:
            return "flat", (
                f"epoch {epoch + 1}: the training loss {loss:.4f} is within 1 % of ln({len(self.classes)}) = "
                f"{self.uniform:.4f}: nothing is learnt; `comp doctor` says which of init, lr, clipping, labels to try"
            )
        # A loss that falls may pass this level; one that stays has learnt the class shares and nothing else.
        if len(self.train) > 1 and all(abs(each - self.constant) < NEAR * self.constant for each in self.train[-2:]):
            return "flat", (
                f"epoch {epoch + 1}: the training loss {loss:.4f} has been within 1 % of {self.constant:.4f} for two "
                "epochs, what answering every image with the class shares gives: `comp doctor` says what to try"
            )
        return None

    def _collapsed(self, epoch: int, labels: NDArray[Any], probs: NDArray[Any]) -> tuple[str, str] | None:
        if not len(labels) or not np.isfinite(probs).all():
            return None
        present = np.bincount(labels, minlength=len(self.classes)) > 0
        predicted = np.bincount(probs.argmax(axis=1), minlength=len(self.classes))
        never = np.flatnonzero(present & (predicted == 0))
        some = f"{len(never)} of {int(present.sum())} classes"
        early = epoch < max(1, math.ceil(self.warmup)) and epoch + 1 < self.epochs
        if (predicted > 0).sum() == 1 and present.sum() > 1 and not early:
            name = self.classes[int(predicted.argmax())]
            return "one class", (
                f"epoch {epoch + 1}: predictions have collapsed: all {len(labels)} validation images are called "
                f"'{name}', {some} are never predicted; `comp doctor` says what to try"
            )
        if len(never) * 2 > present.sum() and not early:
            return "collapsed", f"epoch {epoch + 1}: predictions have collapsed: {some} are never predicted"
        if len(never) and epoch + 1 == self.epochs:
            names = ", ".join(self.classes[i] for i in never[:6]) + (" …" if len(never) > 6 else "")
            return "never", (
                f"epoch {epoch + 1}: {some} are never predicted ({names}), each counts as 0 in macro F1; "
                "loss.balance=sampler or logits helps rare classes"
            )
        return None

    def _oscillating(self, epoch: int, losses: NDArray[Any]) -> tuple[str, str] | None:
        first = losses[:FIRST_STEPS]
        if epoch > 0 or len(first) < 2 * SWINGS or not np.isfinite(first).all():
            return None
        swings = int((np.diff(first) > SWING * self.uniform).sum())
        if swings < SWINGS:
            return None
        return "oscillating", (
            f"epoch {epoch + 1}: the loss oscillates from the first steps ({swings} jumps of more than "
            f"{SWING * self.uniform:.2f} in {len(first)} steps, up to {first.max():.2f}): a cliff; {self._gentler()}"
        )

    def _exploding(self, epoch: int, norms: NDArray[Any]) -> tuple[str, str] | None:
        if not len(norms):
            return None
        finite = norms[np.isfinite(norms)]
        medians = [float(np.median(finite))] if len(finite) else []
        usual = min(medians + ([float(np.median(self.norms))] if self.norms else []), default=0.0)
        self.norms += medians
        above = ~(norms <= max(LARGE_NORM, EXPLODING * usual))
        if above.sum() < min(3, len(norms)):
            return None
        largest = float(np.nanmax(norms)) if not np.isnan(norms).all() else math.nan
        return "exploding", (
            f"epoch {epoch + 1}: the gradient norm explodes ({int(above.sum())} of {len(norms)} steps above "
            f"{max(LARGE_NORM, EXPLODING * usual):.3g}, up to {largest:.3g}; median {usual:.3g}): {self._gentler()}"
        )

    def _overfitting(self, epoch: int) -> tuple[str, str] | None:
        if not np.isfinite(self.val).any():
            return None
        best = int(np.nanargmin(self.val))
        since = slice(best + 1, None)
        val, train = np.asarray(self.val[since]), np.asarray(self.train[since])
        if len(val) < WORSE_FOR:
            return None
        worse = (val[-WORSE_FOR:] > self.val[best] * (1 + NEAR)).all()
        better = (train[-WORSE_FOR:] < self.train[best]).all() and train[-1] < self.train[best] * (1 - NEAR)
        if not (worse and better):
            return None
        start = epoch + 1 - len(val)
        return "overfitting", (
            f"epoch {epoch + 1}: validation gets worse while training gets better since epoch {start + 1} (validation "
            f"{self.val[best]:.3f} → {val[-1]:.3f}, training {self.train[best]:.3f} → {train[-1]:.3f}): it overfits; "
            "try more augmentation or weight decay, fewer epochs, or best_by=val_loss"
        )

    def _gentler(self) -> str:
        lower = f"clip lower (optim.clip={self.clip / 10:g})" if self.clip else "clip (optim.clip=1)"
        return f"{lower}, or lower the learning rate" + (f" (optim.lr={self.lr / 10:g})" if self.lr else "")
