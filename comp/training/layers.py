"""What goes on inside a network during one step: activations, gradients and updates, layer by layer."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

SAMPLE = 20_000  # numbers of a tensor that a histogram is drawn from
# Where an activation is flat, so that no gradient passes: (below, above); a dead ReLU is counted as zeros.
_FLAT = {
    nn.Sigmoid: (0.01, 0.99),
    nn.Hardsigmoid: (0.0, 1.0),
    nn.Tanh: (-0.99, 0.99),
    nn.Hardtanh: (-1.0, 1.0),
    nn.ReLU6: (-math.inf, 6.0),
    nn.ELU: (-0.99, math.inf),
    nn.SELU: (-1.74, math.inf),
}


class Writer(Protocol):
    """The part of TensorBoard's SummaryWriter that is used."""

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
        """Write one number."""

    def add_histogram(self, tag: str, values: Tensor, global_step: int) -> None:
        """Write a histogram of the values."""


@dataclass
class Layer:
    """One layer of one step.

    Attributes:
        name: The module's name.
        kind: Its class.
        output: Statistics of what it puts out: mean, sd, mean square, share of zeros, share saturated (nan where the
            layer cannot saturate).
        gradient: The same of the loss's gradient in its output; empty before the backward pass.
        outputs: Up to SAMPLE of its outputs.
        gradients: Up to SAMPLE of those gradients.
    """

    name: str
    kind: str
    output: dict[str, float]
    outputs: Tensor
    gradient: dict[str, float] = field(default_factory=dict)
    gradients: Tensor | None = None


def watched(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The convolutions, linear layers and activations of a network."""
    for name, module in model.named_modules():
        if name and not any(module.children()) and (is_weight_layer(module) or _is_activation(module)):
            yield name, module


def is_weight_layer(module: nn.Module) -> bool:
    """Whether it is a convolution or a linear layer."""
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.ndim >= 2 and not isinstance(module, nn.Embedding)


def _is_activation(module: nn.Module) -> bool:
    return type(module).__module__.startswith(("torch.nn.modules.activation", "timm.layers.activations"))


def _numbers(x: Tensor, low: float, high: float) -> dict[str, float]:
    x = x.detach().float()
    largest = float(x.abs().max())  # squares of vanishing gradients are below what float32 can hold
    scaled = float((x / largest).square().mean()) if largest > 0 and math.isfinite(largest) else largest
    mean, square = float(x.mean()), scaled * largest * largest
    return {
        "mean": mean,
        "sd": math.sqrt(max(0.0, square - mean * mean)) if math.isfinite(square) else math.nan,
        "mean_square": square,
        "zeros": float((x == 0).float().mean()),
        "saturated": float(((x <= low) | (x >= high)).float().mean()) if low < high else math.nan,
    }


def _sample(x: Tensor) -> Tensor:
    flat = x.detach().float().reshape(-1)
    return flat[:: max(1, flat.numel() // SAMPLE)][:SAMPLE].clone()


class Recorder:
    """Fills `layers` during one forward and backward pass, between `attach` and `detach`.

    Of several forward passes (gradient accumulation) the last one counts, and of a module used several times in one
    its last use. The hooks read, they change nothing.
    """

    def __init__(self, model: nn.Module):
        self.model = model
        self.layers: dict[str, Layer] = {}
        self._handles: list[RemovableHandle] = []

    def attach(self) -> None:
        """Begin to listen."""
        self.layers = {}
        for name, module in watched(self.model):
            self._handles.append(module.register_forward_hook(self._hook(name)))

    def detach(self) -> None:
        """Listen no more."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _hook(self, name: str) -> Any:
        def hook(module: nn.Module, _: Any, output: Any) -> None:
            if not isinstance(output, Tensor) or not output.is_floating_point():
                return
            flat = next((ends for kind, ends in _FLAT.items() if type(module) is kind), (0.0, 0.0))
            layer = Layer(name, type(module).__name__, _numbers(output, *flat), _sample(output))
            self.layers.pop(name, None)  # keeps the order of the last pass
            self.layers[name] = layer
            if output.requires_grad:

                def backward(gradient: Tensor) -> None:
                    layer.gradient, layer.gradients = _numbers(gradient, 0.0, 0.0), _sample(gradient)

                output.register_hook(backward)  # type: ignore[no-untyped-call]

        return hook


class LayerWatch:
    """Per-layer statistics of every n-th step as TensorBoard scalars and histograms (`watch.layers`).

    In a step that is not watched nothing is attached and nothing is computed.

    Args:
        model: The network itself, not its wrapper for several processes.
        every: Steps between looks; 0 never looks.
        writer: TensorBoard's writer; None where another process writes.
    """

    def __init__(self, model: nn.Module, every: int, writer: Writer | None):
        self.model, self.every, self.writer = model, every, writer
        self.recorder = Recorder(model)
        self._before: dict[str, Tensor] | None = None

    def begin(self, step: int) -> None:
        """Call it before the first forward pass of a step."""
        if self.every and self.writer is not None and step % self.every == 0:
            self.recorder.attach()
            self._before = {name: p.detach().clone() for name, p in self.model.named_parameters() if p.requires_grad}

    def end(self, step: int, norm: float | Tensor | None = None) -> None:
        """Call it after the optimizer's step and before the gradients are cleared.

        Args:
            step: The same step.
            norm: Gradient norm before clipping, where it was computed.
        """
        if self._before is None or self.writer is None:
            return
        self.recorder.detach()
        before, self._before = self._before, None
        for place, layer in enumerate(self.recorder.layers.values()):
            tag = f"{place:03d} {layer.name}"
            for what, numbers in (("activation", layer.output), ("gradient", layer.gradient)):
                for key, value in numbers.items():
                    if not math.isnan(value):
                        self.writer.add_scalar(f"{what} {key}/{tag}", value, step)
            for what, values in (("activation", layer.outputs), ("gradient", layer.gradients)):
                if values is not None and torch.isfinite(values).all():
                    self.writer.add_histogram(f"{what}/{tag}", values.cpu(), step)
        squares = torch.zeros((), dtype=torch.float64)
        for name, parameter in self.model.named_parameters():
            if name not in before:
                continue
            if parameter.grad is not None:
                squares += parameter.grad.detach().double().square().sum().cpu()
            weight = float(before[name].float().norm())
            change = float((parameter.detach().float() - before[name].float()).norm())
            if parameter.ndim > 1 and weight > 0:
                self.writer.add_scalar(f"update over weight/{name}", change / weight, step)
                if torch.isfinite(parameter).all():
                    self.writer.add_histogram(f"weight/{name}", _sample(parameter).cpu(), step)
        if norm is not None:
            self.writer.add_scalar("gradient norm/before clipping", float(norm), step)
        self.writer.add_scalar("gradient norm/after clipping", math.sqrt(float(squares)), step)
