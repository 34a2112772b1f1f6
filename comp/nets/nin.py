"""Network in Network: Lin, Chen & Yan, 2014, with the layer sizes of the authors' published networks.

An mlpconv layer is a convolution followed by two 1×1 convolutions, each with its activation. The last one has a map
per class, and a class's score is the mean of its map: the head has no parameters. The paper compares that with a
fully connected layer on the class maps, with and without dropout (section 4.6): `head: gap | fc | fc_dropout`.

`nin_imagenet` below 128 pixels (`img_size`) uses AlexNet's stems for small images (48 to 127: 5×5 with stride 2; 16
to 47: 5×5).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs
from torch import Tensor, nn

from comp.errors import CompError, Exit
from comp.nets.activations import activation as _activation
from comp.nets.alexnet import stem
from comp.nets.base import PaperNet, check_choice, named_sequence, paper_cfg, register

default_cfgs = generate_default_cfgs(
    {
        "nin_cifar": paper_cfg(32, ("head.conv", "head.fc"), "features.conv1_1", num_classes=10, crop_pct=1.0),
        "nin_imagenet": paper_cfg(224, ("head.conv", "head.fc"), "features.conv1_1"),
    }
)

Mlpconv = tuple[tuple[int, ...], int, str | None]  # channels, kernel size of the first convolution, pooling after it
HEADS = ("gap", "fc", "fc_dropout")


class Head(nn.Module):
    """The last 1×1 convolution, one map per class, and what turns maps into logits.

    Args:
        channels: Channels of the maps before it.
        num_classes: Number of classes.
        kind: `gap`, `fc` or `fc_dropout`.
        window: Side of the map at the training crop; only the `fc` kinds depend on it.
        act: Name of the activation.
    """

    def __init__(self, channels: int, num_classes: int, kind: str, window: int, act: str) -> None:
        super().__init__()
        check_choice("head", kind, HEADS)
        self.kind, self.window, self.act_name = kind, window, act
        self.conv: nn.Module = nn.Conv2d(channels, num_classes, 1) if num_classes else nn.Identity()
        self.act = _activation(act, num_classes or channels)
        if kind == "gap":
            self.pool = nn.AdaptiveAvgPool2d(1)
        else:
            self.drop = nn.Dropout(0.5 if kind == "fc_dropout" else 0.0)
            self.fc = nn.Linear(num_classes * window * window, num_classes) if num_classes else nn.Identity()

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Maps (B, channels, h, w) to logits (B, num_classes), or to the mean of the maps (B, channels)."""
        if pre_logits:
            return x.mean((2, 3))
        x = self.act(self.conv(x))
        if self.kind == "gap":
            return self.pool(x).flatten(1)  # type: ignore[no-any-return]
        if tuple(x.shape[-2:]) != (self.window, self.window):
            what = f"its head reads maps of {self.window}×{self.window}, the images give {x.shape[-2]}×{x.shape[-1]}"
            raise CompError("network", what, "use the crop it was built for, or head: gap", Exit.CONFIG)
        return self.fc(self.drop(x.flatten(1)))  # type: ignore[no-any-return]


class NIN(PaperNet):
    """Mlpconv layers with pooling and dropout between them.

    Args:
        first: The first convolution.
        blocks: Per mlpconv layer: channels of its three convolutions (the last one's third belongs to the head), its
            kernel size, and the pooling after it: `max`, `avg` or none.
        drops: After which pooling layers (counted from 1) dropout follows.
        num_classes: Number of classes.
        in_chans: Channels of the images.
        drop_rate: Dropout between mlpconv layers.
        activation: Name of the activation.
        head: `gap`, `fc` or `fc_dropout`.
        img_size: Side of the training crop, pixels.
    """

    smallest_input = 16
    head_bias = 1.0  # the class maps go through ReLU: from 0, half the classes never leave it

    def __init__(
        self,
        first: nn.Conv2d,
        blocks: Sequence[Mlpconv],
        drops: Sequence[int],
        num_classes: int,
        in_chans: int,
        drop_rate: float,
        activation: str,
        head: str,
        img_size: int,
    ) -> None:
        super().__init__()
        self.check_img_size(img_size, type(self).__name__)
        self.num_classes, self.in_chans = num_classes, in_chans
        layers: list[tuple[str, nn.Module]] = []
        channels = in_chans
        side = (img_size + 2 * int(first.padding[0]) - first.kernel_size[0]) // first.stride[0] + 1
        for i, (widths, kernel, pool) in enumerate(blocks, 1):
            for j, width in enumerate(widths, 1):
                conv = nn.Conv2d(channels, width, kernel if j == 1 else 1, padding=kernel // 2 if j == 1 else 0)
                conv = first if i == j == 1 else conv
                layers += [(f"conv{i}_{j}", conv), (f"act{i}_{j}", _activation(activation, width))]
                channels = width
            if pool:
                kind = nn.MaxPool2d if pool == "max" else nn.AvgPool2d
                layers.append((f"pool{i}", kind(3, stride=2, ceil_mode=True)))
                side = math.ceil((side - 3) / 2) + 1
            if i in drops:
                layers.append((f"drop{i}", nn.Dropout(drop_rate)))
        self.features = named_sequence(layers)
        self.num_features = self.head_hidden_size = channels
        self.head = Head(channels, num_classes, head, side, activation)
        self.feature_info = [{"num_chs": channels, "reduction": max(1, img_size // side), "module": "features"}]
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """He normal (fan-in), biases 0; the head normal(0.01), biases 1, so that no class starts dead."""
        for name, module in self.named_modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                if name.startswith("head"):
                    nn.init.normal_(module.weight, std=0.01)
                else:
                    nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.constant_(module.bias, self.head_bias if name.startswith("head") else 0.0)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Parameter groups of timm's layer decay: one per layer, or one per mlpconv layer."""
        return {"blocks": r"^features\.[a-z]+(\d)" if coarse else r"^features\.[a-z]+(\d)_(\d)"}

    def get_classifier(self) -> nn.Module:
        """The layer whose outputs are classes: the last 1×1 convolution, or the fully connected layer."""
        return self.head.conv if self.head.kind == "gap" else self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new head of the same kind."""
        self.num_classes = num_classes
        self.head = Head(self.num_features, num_classes, self.head.kind, self.head.window, self.head.act_name)

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) to the maps before the class maps."""
        return self.features(x)  # type: ignore[no-any-return]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Maps to logits."""
        return self.head(x, pre_logits=pre_logits)  # type: ignore[no-any-return]


def _nin(
    name: str,
    pretrained: bool,
    first: nn.Conv2d,
    blocks: Sequence[Mlpconv],
    drops: Sequence[int],
    img_size: int,
    **kwargs: Any,
) -> NIN:
    kwargs = {"drop_rate": 0.5, "activation": "relu", "head": "gap", **kwargs}
    net: NIN = build_model_with_cfg(
        NIN, name, pretrained, first=first, blocks=blocks, drops=drops, img_size=img_size, **kwargs
    )
    return net


@register
def nin_cifar(
    pretrained: bool = False, img_size: int = 32, num_classes: int = 10, in_chans: int = 3, **kwargs: Any
) -> NIN:
    """NIN for CIFAR: 966,986 parameters for 10 classes."""
    blocks: list[Mlpconv] = [((192, 160, 96), 5, "max"), ((192, 192, 192), 5, "avg"), ((192, 192), 3, None)]
    first = nn.Conv2d(in_chans, 192, 5, padding=2)
    kwargs.update(num_classes=num_classes, in_chans=in_chans)
    return _nin("nin_cifar", pretrained, first, blocks, (1, 2), img_size, **kwargs)


@register
def nin_imagenet(
    pretrained: bool = False, img_size: int = 224, num_classes: int = 1000, in_chans: int = 3, **kwargs: Any
) -> NIN:
    """NIN for ImageNet: 7,595,176 parameters."""
    blocks: list[Mlpconv] = [
        ((96, 96, 96), 11, "max"),
        ((256, 256, 256), 5, "max"),
        ((384, 384, 384), 3, "max"),
        ((1024, 1024), 3, None),
    ]
    first = stem(in_chans, img_size)
    if img_size >= 128:
        first.padding = (0, 0)  # 224 pixels give 54×54 maps here
    kwargs.update(num_classes=num_classes, in_chans=in_chans)
    return _nin("nin_imagenet", pretrained, first, blocks, (3,), img_size, **kwargs)
