"""How a scratch network's weights start (`model.init`), and how a deep VGG grows out of a shallow one
(`model.init_from`).

normal: Krizhevsky et al. 2012. xavier: Glorot & Bengio 2010, equation 16. he: He et al. 2015, equations 10 (fan-in)
and 14 (fan-out), for the slope of the net's PReLU where it has one (equation 15). vgg: Xavier on the first and last
layers, normal between.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from comp.errors import CompError, Exit
from comp.nets.activations import SLOPE
from comp.nets.transfer import head_parameters

Kind = Literal["default", "normal", "xavier", "he", "vgg"]
HEAD_STD = 0.01


def weight_layers(model: nn.Module) -> list[tuple[str, nn.Conv2d | nn.Linear]]:
    """Convolutions and linear layers with their names, from the input to the output as the network defines them."""
    return [(name, m) for name, m in model.named_modules() if isinstance(m, _ConvNd | nn.Linear)]  # type: ignore[misc]


def initialise(
    model: nn.Module,
    *,
    kind: Kind,
    std: float = 0.01,
    fan: Literal["in", "out"] = "out",
    first: int = 1,
    last: int = 1,
    bias: float = 0.0,
    seed: int,
) -> None:
    """Draw the weights of every convolution and linear layer anew; normalisation layers and slopes stay as they are.

    Args:
        model: The network, changed in place.
        kind: `default` leaves the weights that the network started with.
        std: Of `normal`, and of `vgg`'s middle layers.
        fan: `he` keeps the scale of gradients (out) or of activations (in).
        first: `vgg`: so many weight layers from the input start with Xavier.
        last: `vgg`: so many before the output start with Xavier.
        bias: Of every layer but the classifier, whose is 0 (NIN: 1); `default` applies it only where it is not 0.
        seed: Of the draw.

    `he` starts the classifier with normal(0.01): a fan-out of a few classes would start it with logits in the tens.
    """
    generator = torch.Generator().manual_seed(seed)
    layers = weight_layers(model)
    head = head_parameters(model)
    head_bias = float(getattr(model, "head_bias", 0.0))
    slope = SLOPE if any(isinstance(m, nn.PReLU) for m in model.modules()) else 0.0
    for i, (name, layer) in enumerate(layers):
        small = f"{name}.weight" in head
        if kind == "normal" or (kind == "he" and small):
            nn.init.normal_(layer.weight, std=std if kind == "normal" else HEAD_STD, generator=generator)
        elif kind == "he":
            mode: Literal["fan_in", "fan_out"] = "fan_in" if fan == "in" else "fan_out"
            nn.init.kaiming_normal_(layer.weight, slope, mode, "leaky_relu", generator=generator)
        elif kind == "xavier" or (kind == "vgg" and (i < first or i >= len(layers) - last)):
            nn.init.xavier_uniform_(layer.weight, generator=generator)
        elif kind == "vgg":
            nn.init.normal_(layer.weight, std=std, generator=generator)
        elif kind != "default":
            raise CompError("model.init.kind", f"{kind!r} is not known", "see comp/nets/init.py", Exit.CONFIG)
        if layer.bias is not None and (kind != "default" or bias):
            nn.init.constant_(layer.bias, head_bias if small else bias)


def tensor_digest(tensor: Tensor) -> str:
    """SHA-256 of a tensor's numbers."""
    return hashlib.sha256(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()).hexdigest()


@torch.no_grad()
def grow(
    model: nn.Module, state: Mapping[str, Tensor], where: str, *, convolutions: int = 4, linear: int = 3
) -> tuple[list[tuple[str, str, str]], list[str]]:
    """Start a deeper net from a shallower one: Simonyan & Zisserman, section 3.1.

    The shallower net's first four convolutions and last three fully connected layers are copied to the layers of the
    same name and shape (VGG-A's fourth convolution is `conv3_2` in every column); the others keep their start. A
    classifier of another number of classes stays random.

    Args:
        model: The deeper net, changed in place.
        state: The shallower net's weights.
        where: Their file, for errors.
        convolutions: How many of the first convolutions are copied.
        linear: How many of the last fully connected layers are copied.

    Returns:
        (name copied to, name copied from, SHA-256 of its numbers) of each tensor copied, and the names of the
        parameters that stay random.

    Raises:
        CompError: A tensor to be copied does not exist in the deeper net, or has another shape.
    """
    own = model.state_dict()
    is_head = {name: name.startswith("head.") or value.ndim == 2 for name, value in state.items()}
    weights = [name for name in state if name.endswith(".weight") and state[name].ndim in (2, 4)]
    chosen = [name for name in weights if not is_head[name]][:convolutions]
    chosen += [name for name in weights if is_head[name]][-linear:]
    classifier = head_parameters(model)
    copied = []
    for weight in chosen:
        for name in (weight, weight.removesuffix("weight") + "bias"):
            if name not in state or (name in classifier and own[name].shape[0] != state[name].shape[0]):
                continue
            if name not in own or own[name].numel() != state[name].numel():
                shape = tuple(own[name].shape) if name in own else "no such tensor"
                what = f"{name} is {tuple(state[name].shape)} there and {shape} here"
                raise CompError(where, what, "grow from a net of the same family and image size", Exit.FILE)
            own[name].copy_(state[name].reshape(own[name].shape))
            copied.append((name, name, tensor_digest(own[name])))
    done = {name for name, _, _ in copied}
    return copied, [name for name, _ in model.named_parameters() if name not in done]
