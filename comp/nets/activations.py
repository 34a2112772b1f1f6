"""Activation functions by name, and the table of slopes that a network with PReLU has learned."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from comp.errors import CompError, Exit, did_you_mean

SLOPE = 0.25  # He et al., "Delving Deep into Rectifiers", section 2.1

# Name → a module for a map with so many channels.
ACTIVATIONS: dict[str, Callable[[int], nn.Module]] = {
    "relu": lambda channels: nn.ReLU(inplace=True),
    "relu6": lambda channels: nn.ReLU6(inplace=True),
    "leaky_relu": lambda channels: nn.LeakyReLU(0.01, inplace=True),
    "prelu": lambda channels: nn.PReLU(channels, init=SLOPE),
    "prelu_shared": lambda channels: nn.PReLU(1, init=SLOPE),
    "elu": lambda channels: nn.ELU(inplace=True),
    "selu": lambda channels: nn.SELU(inplace=True),
    "gelu": lambda channels: nn.GELU(),
    "tanh": lambda channels: nn.Tanh(),
    "sigmoid": lambda channels: nn.Sigmoid(),
}


def activation(name: str, channels: int) -> nn.Module:
    """Make an activation.

    Args:
        name: A key of `ACTIVATIONS`; `prelu` has one slope per channel, `prelu_shared` one per layer.
        channels: Channels (or units) of the layer before it.

    Raises:
        CompError: The name is unknown.
    """
    if name not in ACTIVATIONS:
        raise CompError(
            "model.activation", f"there is no activation {name!r}", did_you_mean(name, ACTIVATIONS, 12), Exit.CONFIG
        )
    return ACTIVATIONS[name](channels)


def slopes(model: nn.Module) -> list[tuple[str, int, float, float, float]]:
    """What PReLU has learned, as table 1 of its paper shows it.

    Returns:
        One row per PReLU layer in the order of the forward pass: name, number of slopes, their mean, least and
        greatest.
    """
    rows = []
    for name, module in model.named_modules():
        if isinstance(module, nn.PReLU):
            slope = module.weight.detach().float()
            rows.append((name, slope.numel(), float(slope.mean()), float(slope.min()), float(slope.max())))
    return rows
