"""The optimizer by name, and its learning rate as a function of the step."""

from __future__ import annotations

import importlib.util
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from comp import config
from comp.errors import CompError, Exit, did_you_mean

if TYPE_CHECKING:
    import torch

# timm calls Nesterov's SGD `sgd`; here, as in the papers, `sgd` is SGD with plain momentum.
_TIMM_NAMES = {"sgd": "momentum", "nesterov": "nesterov"}
FUSED = frozenset({"sgd", "nesterov", "adam", "adamw", "adagrad"})  # torch's own, which have a fused form on CPUs


def optimizer_names() -> list[str]:
    """Every name `optim.name` takes, found in timm's source without importing it.

    Left out: what needs a package that is not installed here (apex, bitsandbytes), and what wants a closure.
    """
    spec = importlib.util.find_spec("timm")
    if spec is None or spec.origin is None:
        return ["sgd", "nesterov", "adam", "adamw", "rmsprop", "adagrad"]
    source = (Path(spec.origin).parent / "optim" / "_optim_factory.py").read_text(encoding="utf-8")
    found = re.findall(r"OptimInfo\(\s*name='(\w+)'", source)
    return sorted({"sgd", "nesterov", *(n for n in found if not re.match(r"fused|bnb|adahessian|lookahead", n))})


def check_optimizer(name: str) -> None:
    """Refuse a name that timm's optimizer factory does not know, before torch is imported."""
    if name not in (names := optimizer_names()):
        raise CompError(f"optim.name = {name}", "there is no such optimizer", did_you_mean(name, names), Exit.CONFIG)


def create(groups: Sequence[dict[str, Any]], optim: config.Optim) -> torch.optim.Optimizer:
    """Make the optimizer through timm's factory.

    Args:
        groups: From `comp.nets.transfer.parameter_groups`, each with its `lr` and `weight_decay`.
        optim: The run's optim section.
    """
    from timm.optim import create_optimizer_v2

    check_optimizer(optim.name)
    name = _TIMM_NAMES.get(optim.name, optim.name)
    # One pass over the weights instead of one per operation. (On a GPU torch chooses by itself.)
    on_cpu = all(parameter.device.type == "cpu" for group in groups for parameter in group["params"])
    fused = {"fused": True} if on_cpu and optim.name in FUSED else {}
    try:
        made: torch.optim.Optimizer = create_optimizer_v2(
            list(groups), opt=name, lr=optim.lr, weight_decay=optim.weight_decay, momentum=optim.momentum, **fused
        )
    except (ImportError, AssertionError, TypeError, ValueError) as error:
        what = f"cannot be made here ({str(error).splitlines()[0] if str(error) else type(error).__name__})"
        raise CompError(f"optim.name = {optim.name}", what, "use another optimizer, e.g. adamw", Exit.CONFIG) from None
    for group in made.param_groups:
        group["initial_lr"] = group["lr"]
    return made


def onecycle(progress: float, phase: float = 0.3) -> tuple[float, float]:
    """Smith & Topin's one cycle with torch's constants (OneCycleLR: div 25, final div 1e4, cosine in both phases).

    Args:
        progress: Position in the cycle, 0 to 1.
        phase: Share of the cycle in which the rate rises.

    Returns:
        The learning rate as a multiple of its peak, and the momentum.
    """

    def cosine(start: float, end: float, position: float) -> float:
        return end + (start - end) / 2 * (1 + math.cos(math.pi * position))

    if progress <= phase:
        return cosine(1 / 25, 1, progress / phase), cosine(0.95, 0.85, progress / phase)
    position = (progress - phase) / (1 - phase)
    return cosine(1, 1 / 25 / 1e4, position), cosine(0.85, 0.95, position)


class Schedule:
    """The learning rate of every step, as a multiple of the group's own.

    For all but plateau it is a function of the step alone; plateau's memory is torch's own ReduceLROnPlateau.

    Args:
        schedule: The run's schedule section.
        steps: Optimizer steps in an epoch.
        epochs: Epochs in all.
    """

    def __init__(self, schedule: config.Schedule, steps: int, epochs: int):
        import torch

        self.schedule, self.per_epoch, self.total = schedule, steps, steps * epochs
        self.warmup = min(round(schedule.warmup * steps), self.total - 1)
        # The scheduler turns the rate of an optimizer of its own, 1 at the start; so it never meets the warm-up.
        self._scale = torch.optim.SGD([torch.zeros(1)], lr=1.0)
        self._plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
            self._scale, factor=schedule.factor, patience=schedule.patience, min_lr=schedule.min_lr
        )

    def factor(self, step: int) -> float:
        """The learning rate of a step (0 is the run's first) as a multiple of the group's own."""
        name, least = self.schedule.name, self.schedule.min_lr
        if name == "onecycle":
            return self._onecycle(step)[0]
        if step < self.warmup:
            return (step + 1) / (self.warmup + 1)
        if name == "cosine":
            position = (step - self.warmup) / max(1, self.total - self.warmup)
            return least + (1 - least) * (1 + math.cos(math.pi * position)) / 2
        if name == "step":
            return max(least, self.schedule.factor ** (step // self.per_epoch // self.schedule.every))
        if name == "plateau":
            return float(self._scale.param_groups[0]["lr"])
        return 1.0

    def _onecycle(self, step: int) -> tuple[float, float]:
        # torch's phases end at 0.3 total - 1 and total - 1.
        rise = 0.3 * self.total - 1
        if self.total < 2 or rise <= 0:
            return onecycle(1.0)
        progress = 0.3 * step / rise if step <= rise else 0.3 + 0.7 * (step - rise) / (self.total - 1 - rise)
        return onecycle(min(1.0, progress))

    def set(self, optimizer: torch.optim.Optimizer, step: int) -> float:
        """Give every group its learning rate for a step; one-cycle sets the momentum too.

        Returns:
            The multiple, for the log.
        """
        factor = self.factor(step)
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor
            if self.schedule.name == "onecycle":
                momentum = self._onecycle(step)[1]
                if "betas" in group:
                    group["betas"] = (momentum, *group["betas"][1:])
                elif group.get("momentum"):
                    group["momentum"] = momentum
        return factor

    def epoch_ended(self, val_loss: float) -> None:
        """Tell plateau the validation loss of an epoch (a nan is no improvement)."""
        if self.schedule.name == "plateau":
            self._plateau.step(val_loss)

    def state_dict(self) -> dict[str, float]:
        """Plateau's memory, as plain numbers."""
        plateau = self._plateau
        return {
            "scale": self._scale.param_groups[0]["lr"],
            "best": float(plateau.best),
            "bad_epochs": plateau.num_bad_epochs,
        }

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Go on from `state_dict`."""
        self._scale.param_groups[0]["lr"] = state["scale"]
        self._plateau.best, self._plateau.num_bad_epochs = state["best"], int(state["bad_epochs"])
