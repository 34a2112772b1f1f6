"""The fully-convolutional form of a network, for images larger than its training crop (Sermanet et al. 2014,
"OverFeat"; Simonyan & Zisserman 2015, section 3.2).

A network is cut into the part that makes maps and the head that reads them. Heads that pool over the whole map and
classify the mean are applied at every position; the heads of AlexNet and VGG become convolutions as large as the
training map. Whether the cut is right is tried on a random image, not taken on trust.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from comp.errors import CompError, Exit
from comp.nets.base import FullHead

ELSE = "use tencrop or multicrop instead of dense"


@dataclass(frozen=True)
class DenseParts:
    """A network in two parts.

    Attributes:
        features: Images (B, 3, H, W) of any size to maps (B, C, h, w).
        head_map: Maps to class scores (B, classes, h', w'), logits: the head applied at every position.
        window: The map (height, width) at the training crop.
        pooled: The head reads one position (h' = h, after its own pooling is taken out); otherwise it reads a window
            (h' = h - window + 1).
        linear: The mean of `head_map` over positions equals feeding the larger image to the network. Not so where a
            non-linear layer stands between pooling and classifier (ConvNeXt's norm); then the mean of the maps is to be
            given to `head_map`.
    """

    features: Callable[[Tensor], Tensor]
    head_map: Callable[[Tensor], Tensor]
    window: tuple[int, int]
    pooled: bool
    linear: bool


def dense_parts(model: nn.Module, name: str, crop: int) -> DenseParts:
    """Cut a network into maps and head.

    Args:
        model: A network in evaluation mode; its parameters are used in place.
        name: Its name, for errors.
        crop: Side of the training crop, pixels.

    Raises:
        CompError: It has no such form: it makes no maps, takes one size only, or its head is neither of the two kinds.
    """
    net: Any = model
    if not hasattr(net, "forward_features") or not hasattr(net, "forward_head"):
        raise _refused(name, "is not divided into maps and head")
    was_training = model.training
    model.eval()
    try:
        return _cut(net, name, crop)
    finally:
        model.train(was_training)


@torch.no_grad()
def _cut(net: Any, name: str, crop: int) -> DenseParts:
    parameter = next(net.parameters())
    generator = torch.Generator().manual_seed(0)
    chans = getattr(net, "in_chans", 3)

    def image(height: int, width: int) -> Tensor:
        drawn = torch.randn(2, chans, height, width, generator=generator)
        return drawn.to(parameter.device, parameter.dtype)

    channels_last = False

    def features(x: Tensor) -> Tensor:
        maps: Tensor = net.forward_features(x)
        return maps.permute(0, 3, 1, 2) if channels_last else maps

    small, large = image(crop, crop), image(crop + 64, crop + 96)
    try:
        maps = net.forward_features(small)
        if not isinstance(maps, Tensor) or maps.ndim != 4:
            raise _refused(name, "makes tokens, not maps")
        width = getattr(net, "num_features", maps.shape[1])
        channels_last = maps.shape[1] != width and maps.shape[3] == width
        maps, more = features(small), features(large)
    except (RuntimeError, AssertionError, ValueError) as error:
        raise _refused(name, "takes images of one size only") from error
    window = (maps.shape[2], maps.shape[3])

    full = getattr(net, "head", None)
    if isinstance(full, FullHead):
        return _checked(DenseParts(features, full.score_map, window, False, False), net, name, small)
    if hasattr(net, "pre_logits") and type(net).__name__ == "VGG":  # timm's: its head is made of convolutions already

        def vgg_map(x: Tensor) -> Tensor:
            return _at_every_position(net.head, net.pre_logits(x))

        size = net.pre_logits.input_kernel_size
        if min(window) < size:
            raise _refused(name, f"stretches its maps of {window[0]}×{window[1]} to {size}×{size} at {crop} pixels")
        return _checked(DenseParts(features, vgg_map, (size, size), False, False), net, name, small)

    def head_map(x: Tensor) -> Tensor:
        return _at_every_position(net.forward_head, x, channels_last)

    try:
        linear = all(_close(head_map(m).mean((2, 3)), net(x)) for m, x in ((maps, small), (more, large)))
        parts = DenseParts(features, head_map, window, True, linear)
        return parts if linear else _checked(parts, net, name, small)
    except RuntimeError as error:
        raise _refused(name, "has a head that reads maps of one size only") from error


def _at_every_position(head: Callable[[Tensor], Tensor], x: Tensor, channels_last: bool = False) -> Tensor:
    """Give a head one position after the other, as maps of 1×1: (B, C, h, w) to (B, classes, h, w)."""
    batch, channels, height, width = x.shape
    single = x.permute(0, 2, 3, 1).reshape(-1, channels, 1, 1)
    if channels_last:
        single = single.permute(0, 2, 3, 1)
    return head(single).reshape(batch, height, width, -1).permute(0, 3, 1, 2)


def _checked(parts: DenseParts, net: Any, name: str, x: Tensor) -> DenseParts:
    """The parts, if at the training crop they give what the network gives."""
    maps = parts.features(x)
    if parts.pooled:
        maps = F.adaptive_avg_pool2d(maps, 1)
    if not _close(parts.head_map(maps).mean((2, 3)), net(x)):
        raise _refused(name, "has a head that neither averages its maps nor is AlexNet's or VGG's")
    return parts


def _close(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape:
        return False
    tolerance = 1e-4 if a.dtype == torch.float32 else 3e-2
    scale = cast(float, b.float().abs().max().item())
    return bool((a.float() - b.float()).abs().max() <= tolerance * max(scale, 1e-3))


def _refused(name: str, why: str) -> CompError:
    return CompError(f"views: dense on {name}", f"the network {why}", ELSE, Exit.CONFIG)
