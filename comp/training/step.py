"""One optimizer step: its micro-batches forward and backward, then clip, step, average. Nothing here waits for the
device; what must be known on the host (is the loss finite?) is looked up every few steps."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from comp import config
from comp.data.order import seed_of
from comp.errors import CompError, Exit
from comp.training.ema import Average
from comp.training.layers import LayerWatch
from comp.training.loss import Criterion
from comp.training.optim import Schedule
from comp.training.plan import Micro
from comp.training.processes import Team

if TYPE_CHECKING:
    from accelerate import Accelerator

NORM_EVERY = 16  # steps between gradient norms for the watch, where clipping does not compute them anyway
_OUT_OF_MEMORY = ("can't allocate memory", "out of memory", "not enough memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device or the machine had no memory left."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _OUT_OF_MEMORY)


def reseed(*parts: int | str) -> None:
    """Set every global generator from the parts (dropout draws from torch's, timm's Mixup from numpy's)."""
    seed = seed_of(*parts)
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 (the generator that timm's Mixup uses)
    # torch.manual_seed would queue a call, with a stack trace, for the GPU a CPU run never starts: a leak per step.
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed(seed)


@dataclass(frozen=True)
class Taken:
    """A step that was taken, until its loss is looked at."""

    epoch: int
    step: int
    lr: float
    rows: tuple[int, ...]
    loss: Tensor
    norm: Tensor | None


@dataclass
class Ledger:
    """The losses of the last steps, still on the device.

    Attributes:
        every: Steps between looks; 1 on a CPU, where a look costs nothing.
        taken: Steps nobody has looked at.
        losses: The epoch's step losses so far, on the host.
        norms: The epoch's gradient norms before clipping, where they are clipped by norm.
    """

    every: int
    taken: list[Taken] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)

    def look(self) -> Taken | None:
        """Read the losses; the first step whose loss is not finite, if there is one."""
        if not self.taken:
            return None
        losses = torch.stack([taken.loss for taken in self.taken]).tolist()
        norms = [taken.norm for taken in self.taken if taken.norm is not None]
        self.losses += losses
        self.norms += torch.stack(norms).tolist() if norms else []
        bad = next((t for t, loss in zip(self.taken, losses, strict=True) if not math.isfinite(loss)), None)
        self.taken = []
        return bad

    def begin_epoch(self) -> None:
        self.losses, self.norms = [], []


@dataclass
class Trainee:
    """Everything that changes while a fold trains, and what changes it.

    Attributes:
        network: The network itself.
        model: The network as Accelerate wraps it: mixed precision, several processes.
        optimizer: As Accelerate wraps it.
        schedule: The learning rate of each step.
        criterion: The loss of each image.
        average: The averaged weights, where there are.
        accelerator: Accelerate.
        team: The processes.
        optim: The run's optim section.
        mean: Of the channels times 255, (1, 3, 1, 1), on the device.
        std: The same.
        channels_last: Whether images are laid out by pixel.
    """

    network: nn.Module
    model: nn.Module
    optimizer: Any
    schedule: Schedule
    criterion: Criterion
    average: Average | None
    accelerator: Accelerator
    team: Team
    optim: config.Optim
    mean: Tensor
    std: Tensor
    channels_last: bool
    ledger: Ledger
    sums: Tensor  # (2,) float64 on the device: losses and images right of this epoch, of this process
    layers: LayerWatch | None = None

    @property
    def device(self) -> torch.device:
        return self.sums.device

    @property
    def weights(self) -> nn.Module:
        """What is validated and kept: the average where there is one."""
        return self.network if self.average is None else self.average.network

    def forward_backward(self, pixels: Tensor, labels: Tensor, micro: Micro) -> tuple[Tensor, Tensor]:
        """Add a micro-batch's gradient.

        The gradients of all micro-batches of all processes add up to the gradient of the mean loss over the global
        batch: DDP divides by the number of processes, so each loss is multiplied by it.

        Args:
            pixels: (B, 3, H, W) uint8.
            labels: (B,).
            micro: Which images count, and of how many in all.

        Returns:
            The sum of the images' losses, and how many are right, both on the device.
        """
        images = pixels.to(self.device, non_blocking=True)
        if self.channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        labels = labels.to(self.device, non_blocking=True)
        images, targets = self.criterion.mixed(images.float().sub_(self.mean).div_(self.std), labels)
        with nullcontext() if micro.last else self.accelerator.no_sync(self.model):
            outputs = self.model(images)
            logits, *auxiliary = outputs if isinstance(outputs, tuple | list) else (outputs,)
            losses = main = self.criterion(logits, targets)
            for other in auxiliary:
                losses = losses + float(getattr(self.network, "aux_weight", 0.3)) * self.criterion(other, targets)
            loss = losses[: micro.counted].sum() * (self.team.world / micro.images)
            self.accelerator.backward(loss)
        right = (logits.detach()[: micro.counted].argmax(1) == labels[: micro.counted]).sum()
        return main.detach()[: micro.counted].sum(), right

    def update(self, number: int) -> tuple[float, Tensor | None]:
        """Clip the gradients, take the optimizer's step, average.

        Args:
            number: The step, counted from the run's first.

        Returns:
            The learning rate, and the gradient norm before clipping: of every step where it is clipped by norm, else of
            every NORM_EVERY-th (none under a loss scaler).
        """
        lr = self.optim.lr * self.schedule.set(self.optimizer, number)
        norm = None
        parameters = [p for p in self.network.parameters() if p.grad is not None]
        if self.optim.clip and self.optim.clip_mode == "norm":
            norm = self.accelerator.clip_grad_norm_(parameters, self.optim.clip)
        else:
            if number % NORM_EVERY == 0 and self.accelerator.scaler is None:
                norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
            if self.optim.clip:
                self.accelerator.clip_grad_value_(parameters, self.optim.clip)
        self.optimizer.step()
        if self.layers:
            self.layers.end(number, norm)
        self.optimizer.zero_grad(set_to_none=True)
        if self.average:
            self.average.update()
        return lr, norm

    def check_finite(self, ids: Sequence[str], where: object, *, now: bool = False) -> None:
        """Stop all processes at the same step when the loss of one is not finite; called by all at the same place.

        Args:
            ids: The data set's image ids.
            where: The fold, for the error.
            now: Look even if the next look is not due.

        Raises:
            CompError: Exit code 6, naming epoch, step, learning rate and image ids.
        """
        if not now and len(self.ledger.taken) < self.ledger.every:
            return
        bad = self.ledger.look()
        if self.team.world > 1 and not self.team.most(int(bad is not None))[0]:
            return
        found = [each for each in self.team.gather(bad and (bad.epoch, bad.step, bad.lr, bad.rows)) if each]
        if found:
            epoch, step, lr, rows = min(found)
            shown = ", ".join(ids[row] for row in rows[:8]) + (f" and {len(rows) - 8} more" if len(rows) > 8 else "")
            what = f"the loss is not finite in epoch {epoch + 1}, step {step + 1} (lr {lr:.3g}, images {shown})"
            fix = "lower optim.lr or optim.clip, or use precision=fp32; the last checkpoint before it is kept"
            raise CompError(where, what, fix, Exit.NUMERIC)


class Undo:
    """The buffers as they were when the step began: a step that is given up leaves no trace in BatchNorm."""

    def __init__(self, network: nn.Module):
        self.buffers = list(network.buffers())
        self.copies = [buffer.clone() for buffer in self.buffers]

    @torch.no_grad()
    def remember(self) -> None:
        if self.buffers:
            torch._foreach_copy_(self.copies, self.buffers)

    @torch.no_grad()
    def restore(self) -> None:
        if self.buffers:
            torch._foreach_copy_(self.buffers, self.copies)
