"""The training loss: label smoothing, mixed images, and what is done about rare classes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from timm.data.mixup import Mixup
from torch import Tensor
from torch.nn import functional as F

from comp import config


class Criterion:
    """Cross-entropy per image, so that a global batch can be cut over micro-batches and processes in any way.

    `loss.balance`: `weights` gives an image the weight 1 / (its class's count), scaled so that the weights of the
    training images average 1; `logits` adds the log of the class's share to its logit while training (Menon et al.
    2021, equation 10), so that the bare logits answer as if all classes were equally common; `sampler` is a matter of
    the order of images (comp.data.order).

    Args:
        loss: The run's loss section.
        counts: Training images of each class (C,).
        device: Where the logits are.
    """

    def __init__(self, loss: config.Loss, counts: Sequence[int], device: torch.device):
        self.smoothing, self.classes = loss.label_smoothing, len(counts)
        count = np.asarray(counts, dtype=np.float64)
        present = np.maximum(count, 1)
        self.weights: Tensor | None = None
        self.shift: Tensor | None = None
        if loss.balance == "weights":
            weights = 1 / present
            weights *= count.sum() / (weights * count).sum()
            self.weights = torch.tensor(weights, dtype=torch.float32, device=device)
        if loss.balance == "logits":
            self.shift = torch.tensor(np.log(present / present.sum()), dtype=torch.float32, device=device)
        self.mix = None
        if loss.mixup or loss.cutmix:
            self.mix = Mixup(
                mixup_alpha=loss.mixup,
                cutmix_alpha=loss.cutmix,
                label_smoothing=self.smoothing,
                num_classes=self.classes,
            )

    def mixed(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Mix the images of a micro-batch in place (timm's Mixup, which draws from numpy's global generator).

        Args:
            images: (B, 3, H, W) floats, changed.
            labels: (B,) class indices.

        Returns:
            The images, and labels (B,), or targets (B, C) where images are mixed. Where B is odd the last image stays
            as it is: each image's partner is the one as far from the other end.
        """
        if self.mix is None or len(images) < 2:
            return images, labels
        even = len(images) // 2 * 2
        _, targets = self.mix(images[:even], labels[:even])
        if even < len(images):
            rest = F.one_hot(labels[even:], self.classes) * (1 - self.smoothing) + self.smoothing / self.classes
            targets = torch.cat([targets, rest.to(targets.dtype)])
        return images, targets

    def __call__(self, logits: Tensor, target: Tensor) -> Tensor:
        """The loss of each image (B,) from logits (B, C) and labels (B,) or mixed targets (B, C), in float32."""
        logits = logits.float()
        if self.shift is not None:
            logits = logits + self.shift
        if target.ndim == 2:
            losses = F.cross_entropy(logits, target, reduction="none")
            return losses if self.weights is None else losses * (target @ self.weights)
        losses = F.cross_entropy(logits, target, reduction="none", label_smoothing=self.smoothing)
        return losses if self.weights is None else losses * self.weights[target]
