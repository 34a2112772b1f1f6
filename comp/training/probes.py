"""Measurements on a network that has not been trained: scale through depth, a few steps on a few images, labels.

Each probe is a function that returns figures with a verdict; what follows from them is the doctor's business.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from comp.config import Optim
from comp.nets.transfer import head_parameters, parameter_groups
from comp.training import optim
from comp.training.layers import Layer, Recorder
from comp.training.watch import SWING, entropy

VANISHING = 1e-3  # mean square of the last layer's output over the first's
EXPLODING = 1e4
FLAT = 5e-4  # of ln(classes): a loss that ends in this band, without noise of batches, has not begun to fall
LEARNT = 0.85  # times ln(classes): below it the images are being told apart
STEPS = 150  # of a trial, where time allows
FEWEST = 12  # with less steps a trial says nothing
RELATED = 4.0  # standard deviations of the classifier's margin from that with shuffled labels
ENOUGH_PHOTOS = 300  # with fewer photos, no relation is no finding
WARMUP = 5  # steps of a trial's warm-up, where the schedule has one


@dataclass(frozen=True)
class Depth:
    """Scale through depth: one forward and backward pass.

    Attributes:
        layers: The weight layers without the classifier, from input to output.
    """

    layers: Sequence[Layer]

    @property
    def _chain(self) -> Sequence[Layer]:
        convolutions = [layer for layer in self.layers if layer.kind.startswith("Conv")]
        return convolutions if len(convolutions) > 2 else self.layers

    @property
    def forward(self) -> float:
        """Mean square of the last convolution's output over the first's (linear layers where there are few)."""
        return _over(self._chain[-1].output["mean_square"], self._chain[0].output["mean_square"])

    @property
    def verdict(self) -> str:
        """`vanishing`, `exploding` or `fine`."""
        if not math.isfinite(self.forward) or self.forward > EXPLODING:
            return "exploding"
        return "vanishing" if self.forward < VANISHING else "fine"

    def line(self) -> str:
        """The figures in words."""
        chain = self._chain
        return f"mean square of the outputs, {chain[-1].name} over {chain[0].name}: {self.forward:.1e}"

    def sample(self, most: int = 8) -> list[Layer]:
        """A few layers, evenly from first to last."""
        chain = self._chain
        picked = sorted({round(i * (len(chain) - 1) / max(1, most - 1)) for i in range(most)})
        return [chain[i] for i in picked]


def _over(a: float, b: float) -> float:
    return a / b if b else math.nan


@dataclass(frozen=True)
class Trial:
    """A few steps on a few images, over and over.

    Attributes:
        losses: Of each step, before it.
        norms: Gradient norm of each step before clipping.
        level: The loss of the best constant answer: ln(classes) where each class has as many images.
    """

    losses: Sequence[float]
    norms: Sequence[float]
    level: float

    @property
    def end(self) -> float:
        """Mean loss of the last steps, a sixth of them."""
        last = self.losses[-max(1, len(self.losses) // 6) :]
        return float(np.mean(last))

    @property
    def lowest(self) -> float:
        return float(np.nanmin(self.losses)) if np.isfinite(self.losses).any() else math.nan

    @property
    def jump(self) -> tuple[int, float, float] | None:
        """The first jump upwards of more than half the level: (step, loss before, loss after)."""
        for step, (a, b) in enumerate(zip(self.losses[:-1], self.losses[1:], strict=True), 1):
            if not math.isfinite(b) or b - a > SWING * self.level:
                return step, a, b
        return None

    @property
    def verdict(self) -> str:
        """What became of it.

        Returns:
            `learns`; `cliff`: it fell off one and did not come back; `flat`: it sits at ln(classes); `slow`: it leaves
            ln(classes), but has not come far.
        """
        if not np.isfinite(self.losses).all():
            return "cliff"
        if self.end < LEARNT * self.level:
            return "learns"
        if self.jump:
            return "cliff"
        return "flat" if self.end > (1 - FLAT) * self.level else "slow"

    @property
    def order(self) -> float:
        """Less is better: where it ended, infinite for what was not finite."""
        return self.end if np.isfinite(self.losses).all() else math.inf

    @property
    def _level(self) -> str:
        classes = math.exp(self.level)
        even = abs(classes - round(classes)) < 1e-6
        return (f"ln({round(classes)}) = " if even else "the loss of a constant answer, ") + f"{self.level:.4f}"

    def line(self) -> str:
        """The figures in words."""
        text = f"loss {self.losses[0]:.4f} → {self.end:.4f} in {len(self.losses)} steps"
        if self.verdict == "cliff" and self.jump:
            step, before, after = self.jump
            text += f", a cliff at step {step} ({before:.2f} → {after:.3g}, gradient norm {self.norms[step - 1]:.3g})"
        elif self.verdict == "flat":
            sits = abs(self.losses[0] - self.level) < 0.02 * self.level
            text += f": it {'sits at' if sits else 'does not get below'} {self._level}"
        elif self.verdict == "slow":
            text += f": it leaves {self._level}, slowly"
        return text


@dataclass(frozen=True)
class LabelFigures:
    """Whether labels have to do with the photos.

    Attributes:
        counts: Photos of each class (C,).
        recall: Leave-one-out recall, averaged over classes, of a ridge classifier on thumbnails.
        chance: The same with shuffled labels, mean over shuffles.
        z: How far the classifier's mean margin is from that with shuffled labels, in standard deviations of those.
    """

    counts: NDArray[np.int64]
    recall: float
    chance: float
    z: float

    @property
    def verdict(self) -> str:
        """`one class`, `unrelated`, `few` (too few photos to say) or `fine`."""
        if (self.counts > 0).sum() < 2:
            return "one class"
        if self.z >= RELATED:
            return "fine"
        return "unrelated" if self.counts.sum() >= ENOUGH_PHOTOS else "few"

    def line(self) -> str:
        """The figures in words."""
        return (
            f"from thumbnails alone a simple classifier gets {self.recall:.3f} macro recall, {self.chance:.3f} with "
            f"shuffled labels (its margin is {self.z:.1f} standard deviations away)"
        )


def label_probe(thumbnails: NDArray[Any], labels: NDArray[np.int64], classes: int, shuffles: int = 40) -> LabelFigures:
    """Compare a simple classifier on the labels as they are with the same on shuffled ones.

    The classifier is a ridge regression on one-hot labels in its dual form, whose leave-one-out answers are linear in
    the labels, y − (I − H)y / (1 − h), so that a shuffle costs one product.

    Args:
        thumbnails: (N, D) numbers of each photo.
        labels: (N,) labels.
        classes: C.
        shuffles: How many.
    """
    counts = np.bincount(labels, minlength=classes)
    x = thumbnails.astype(np.float64)
    x = (x - x.mean(axis=0)) / (x.std(axis=0) + 1e-9)
    kernel = x @ x.T / x.shape[1]
    hat = np.linalg.solve(kernel + (0.3 * np.trace(kernel) / len(x) + 1e-9) * np.eye(len(x)), kernel).T
    loo = (hat - np.diag(np.diag(hat))) / (1 - np.diag(hat))[:, None]
    present = np.flatnonzero(counts)

    def score(y: NDArray[np.int64]) -> tuple[float, float]:
        target = np.eye(classes)[y][:, present] / counts[present]  # classes weigh the same, as in macro F1
        answers = loo @ (target - target.mean(axis=0))
        place = np.searchsorted(present, y)
        right = answers.argmax(axis=1) == place
        margin = answers[np.arange(len(y)), place] - answers.mean(axis=1)
        return float(np.mean([right[place == i].mean() for i in range(len(present))])), float(margin.mean())

    rng = np.random.default_rng(0)
    shuffled = np.array([score(rng.permutation(labels)) for _ in range(shuffles)])
    recall, margin = score(labels)
    spread = float(shuffled[:, 1].std())
    z = (margin - float(shuffled[:, 1].mean())) / spread if spread else 0.0
    return LabelFigures(counts, recall, float(shuffled[:, 0].mean()), z)


def depth_probe(network: nn.Module, images: Tensor, labels: Tensor) -> Depth:
    """One forward and backward pass in float32, without dropout; the network's gradients are cleared."""
    _training_without_dropout(network)
    recorder = Recorder(network)
    recorder.attach()
    try:
        _loss(network, images, labels).backward()  # type: ignore[no-untyped-call]
    finally:
        recorder.detach()
        network.zero_grad(set_to_none=True)
    head = {name.rpartition(".")[0] for name in head_parameters(network)}
    weights = {name.rpartition(".")[0] for name, p in network.named_parameters() if p.ndim > 1}
    return Depth([layer for layer in recorder.layers.values() if layer.name in weights - head])


def _training_without_dropout(network: nn.Module) -> None:
    network.train()
    for module in network.modules():
        if "Drop" in type(module).__name__:
            module.eval()


def _loss(network: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    outputs = network(images)
    logits, *auxiliary = outputs if isinstance(outputs, tuple | list) else (outputs,)
    loss = F.cross_entropy(logits.float(), labels)
    for other in auxiliary:
        loss = loss + float(getattr(network, "aux_weight", 0.3)) * F.cross_entropy(other.float(), labels)
    return loss


def trial(
    network: nn.Module,
    batches: Sequence[tuple[Tensor, Tensor]],
    section: Optim,
    *,
    steps: int,
    warmup: bool = False,
    dtype: torch.dtype | None = None,
    until: float = math.inf,
) -> Trial:
    """Train on the same batches over and over with a run's optimizer, from the weights as they are.

    Args:
        network: Changed in place.
        batches: (images (B, 3, H, W), labels (B,)), used in turn.
        section: Optimizer, learning rate and clipping.
        steps: Most steps.
        warmup: Raise the learning rate over the first few.
        dtype: Of mixed precision.
        until: `time.monotonic()` at which to end.

    Returns:
        Its course; auxiliary heads train too but are not in the losses' level, so they are left out of it.
    """
    _training_without_dropout(network)
    groups = parameter_groups(
        network,
        lr=section.lr,
        weight_decay=section.weight_decay,
        layer_decay=section.layer_decay,
        head_lr=section.head_lr,
    )
    optimizer = optim.create(groups, section)
    parameters = [p for p in network.parameters() if p.requires_grad]
    every = torch.cat([labels for _, labels in batches])
    level = entropy(np.bincount(every.cpu().numpy()) / len(every))
    weight = float(getattr(network, "aux_weight", 0.3))
    losses: list[float] = []
    norms: list[float] = []
    for step in range(steps):
        images, labels = batches[step % len(batches)]
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * (min(1.0, (step + 1) / WARMUP) if warmup else 1.0)
        with torch.autocast(images.device.type, dtype or torch.bfloat16, enabled=dtype is not None):
            outputs = network(images)
        logits, *auxiliary = outputs if isinstance(outputs, tuple | list) else (outputs,)
        main = F.cross_entropy(logits.float(), labels)
        loss = main + sum((weight * F.cross_entropy(other.float(), labels) for other in auxiliary), main.new_zeros(()))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        by_norm = section.clip if section.clip and section.clip_mode == "norm" else math.inf
        norms.append(float(torch.nn.utils.clip_grad_norm_(parameters, by_norm)))
        if section.clip and section.clip_mode == "value":
            torch.nn.utils.clip_grad_value_(parameters, section.clip)
        losses.append(float(main.detach()))
        if not math.isfinite(losses[-1]) or time.monotonic() > until:
            break
        optimizer.step()
        if len(losses) >= FEWEST and np.mean(losses[-3:]) < 0.3 * level:
            break
    return Trial(losses, norms, level)
