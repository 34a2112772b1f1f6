"""BatchNorm folded into the convolutions before it: at inference it is an affine map, so it costs nothing.

Which convolution feeds which normalisation is not read from a network's source but observed: one image runs through it,
and a normalisation whose input is the very tensor a convolution has just made is folded. Whether nothing else used that
tensor is then tried on the image: outputs must stay the same, else the network is left as it was.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

TOLERANCE = 1e-4  # of the largest logit; right folds differ by 2e-6 or less, wrong ones by far more


def inference_copy(network: nn.Module, crop: int, device: torch.device) -> tuple[nn.Module, int]:
    """A copy for inference alone: evaluation mode, channels last, BatchNorm folded where that is exact.

    Args:
        network: Stays as it is.
        crop: Side of the images it was trained on, pixels.
        device: Where the copy is to live.

    Returns:
        The copy and how many normalisations were folded.
    """
    plain = copy.deepcopy(network).eval()
    for parameter in plain.parameters():
        parameter.requires_grad_(False)
    chosen, count = plain, 0
    if any(isinstance(module, nn.BatchNorm2d) for module in plain.modules()):
        folded, pairs = _folded(copy.deepcopy(plain), crop)
        if pairs and _same(plain, folded, crop):
            chosen, count = folded, pairs
    return chosen.to(device, memory_format=torch.channels_last), count  # type: ignore[call-overload]


@torch.no_grad()
def _folded(network: nn.Module, crop: int) -> tuple[nn.Module, int]:
    pairs = _pairs(network, crop)
    names = {module: name for name, module in network.named_modules()}
    for conv, norm in pairs:
        # fuse_conv_bn_eval knows BatchNorm alone; timm's BatchNormAct2d is one with an activation behind it.
        fused = fuse_conv_bn_eval(conv, norm)
        conv.weight, conv.bias = fused.weight, fused.bias
        rest = [part for part in (getattr(norm, "drop", None), getattr(norm, "act", None)) if part is not None]
        path, _, last = names[norm].rpartition(".")
        setattr(network.get_submodule(path), last, nn.Sequential(*rest) if rest else nn.Identity())
    return network, len(pairs)


def _pairs(network: nn.Module, crop: int) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
    """(convolution, normalisation) where the one's output is the other's input and both run once per forward."""
    made_by: dict[int, tuple[nn.Conv2d, Tensor]] = {}  # the tensors are held, so that their ids stay theirs
    found: list[tuple[nn.Conv2d, nn.BatchNorm2d]] = []
    calls: dict[nn.Module, int] = {}

    def conv_hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
        assert isinstance(module, nn.Conv2d)
        calls[module] = calls.get(module, 0) + 1
        made_by[id(output)] = module, output

    def norm_hook(module: nn.Module, inputs: Any) -> None:
        assert isinstance(module, nn.BatchNorm2d)
        calls[module] = calls.get(module, 0) + 1
        if inputs and id(inputs[0]) in made_by:
            found.append((made_by[id(inputs[0])][0], module))

    hooks = []
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            hooks.append(module.register_forward_hook(conv_hook))
        elif isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
            hooks.append(module.register_forward_pre_hook(norm_hook))
    try:
        network(_probe(network, crop))
    finally:
        for hook in hooks:
            hook.remove()
    convs = [conv for conv, _ in found]
    return [(c, n) for c, n in found if calls[c] == calls[n] == 1 and convs.count(c) == 1]


@torch.no_grad()
def _same(plain: nn.Module, folded: nn.Module, crop: int) -> bool:
    """Whether two networks agree on an image."""
    image = _probe(plain, crop)
    before = plain(image)
    try:
        after = folded(image)
    except (AttributeError, TypeError):  # it looks into a normalisation that is gone
        return False
    return bool((before - after).abs().max() <= TOLERANCE * before.abs().max().clamp_min(1e-6))


def _probe(network: nn.Module, crop: int) -> Tensor:
    parameter = next(network.parameters())
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 3, crop, crop, generator=generator).to(parameter.device, parameter.dtype)
