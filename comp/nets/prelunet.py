"""The networks of He et al., "Delving Deep into Rectifiers", 2015, with their pyramid-pooling heads.

`prelunet14` (table 1) compares activations: 7×7/2, pooling 3×3/3, four 2×2 and, after pooling, six 2×2 convolutions,
pyramid {6, 3, 2, 1}. `prelunet19` is model A (table 3): 7×7/2, pooling, three stages of five 3×3 convolutions,
pyramid {7, 3, 2, 1}. 2×2 convolutions are padded by 0 and 1 in turns, so that every second map keeps its size (36×36
and 18×18 at 224 pixels: He & Sun, "Convolutional Neural Networks at Constrained Time Cost", table 1). The activation
is PReLU with a slope per channel unless set: `prelu_shared` has one per layer, `relu` none.

The pyramid is max pooling to n×n bins, bin i of a map of a pixels covering ⌊i a / n⌋ to ⌈(i + 1) a / n⌉, so any image
that is not smaller runs. Images below the paper's size (`img_size`): the stem gives up its first reduction, then its
second, while the first stage would see maps of less than 14 pixels (the first convolution is then 3×3 with stride 1),
and the pyramid keeps the levels that are not finer than the last map.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.models import build_model_with_cfg, generate_default_cfgs
from torch import Tensor, nn

from comp.nets.activations import SLOPE
from comp.nets.activations import activation as _activation
from comp.nets.base import PaperNet, kept_halvings, named_sequence, paper_cfg, register

default_cfgs = generate_default_cfgs(
    {name: paper_cfg(224, "head.fc3", "features.conv1") for name in ("prelunet14", "prelunet19")}
)


class PyramidHead(nn.Module):
    """Spatial pyramid pooling, two hidden layers with dropout, and the classifier.

    Args:
        channels: Channels of the maps.
        levels: Bins a side of each level.
        num_classes: Number of classes.
        hidden: Width of the hidden layers.
        drop_rate: Dropout after each hidden layer.
        act: Name of the activation.
    """

    def __init__(
        self, channels: int, levels: Sequence[int], num_classes: int, hidden: int, drop_rate: float, act: str
    ) -> None:
        super().__init__()
        self.levels = tuple(levels)
        self.fc1 = nn.Linear(channels * sum(n * n for n in levels), hidden)
        self.act1 = _activation(act, hidden)
        self.drop1 = nn.Dropout(drop_rate)
        self.fc2 = nn.Linear(hidden, hidden)
        self.act2 = _activation(act, hidden)
        self.drop2 = nn.Dropout(drop_rate)
        self.fc3: nn.Module = nn.Linear(hidden, num_classes) if num_classes else nn.Identity()

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Maps (B, channels, h, w) to logits (B, num_classes)."""
        x = torch.cat([F.adaptive_max_pool2d(x, n).flatten(1) for n in self.levels], 1)
        x = self.drop1(self.act1(self.fc1(x)))
        x = self.drop2(self.act2(self.fc2(x)))
        return x if pre_logits else self.fc3(x)


class PReLUNet(PaperNet):
    """Convolutions in stages with max pooling between them, and a pyramid-pooling head.

    Args:
        first: Channels of the first convolution.
        pool: Kernel and stride of the first pooling.
        stages: (channels, convolutions) of each stage.
        kernel: Kernel size in the stages, 2 or 3.
        levels: The pyramid, bins a side.
        first_padding: Padding of the 7×7 convolution.
        num_classes: Number of classes.
        in_chans: Channels of the images.
        img_size: Side of the training crop, pixels.
        drop_rate: Dropout in the head.
        activation: Name of the activation.
        hidden: Width of the hidden layers.
    """

    smallest_input = 16

    def __init__(
        self,
        first: int,
        pool: int,
        stages: Sequence[tuple[int, int]],
        kernel: int,
        levels: Sequence[int],
        first_padding: int,
        num_classes: int = 1000,
        in_chans: int = 3,
        img_size: int = 224,
        drop_rate: float = 0.5,
        activation: str = "prelu",
        hidden: int = 4096,
    ) -> None:
        super().__init__()
        self.check_img_size(img_size, type(self).__name__)
        self.num_classes, self.in_chans = num_classes, in_chans
        kept = kept_halvings(img_size, (2, pool))
        size, stride, padding = (7, 2, first_padding) if kept == 2 else (3, 1, 1)
        layers: list[tuple[str, nn.Module]] = [
            ("conv1", nn.Conv2d(in_chans, first, size, stride=stride, padding=padding)),
            ("act1", _activation(activation, first)),
        ]
        side = (img_size + 2 * padding - size) // stride + 1
        if kept:
            layers.append(("pool1", nn.MaxPool2d(pool)))
            side //= pool
        channels = first
        for stage, (width, count) in enumerate(stages, 2):
            if stage > 2:
                layers.append((f"pool{stage - 1}", nn.MaxPool2d(2)))
                side //= 2
            for i in range(1, count + 1):
                pad = 1 if kernel == 3 else (i + 1) % 2
                layers.append((f"conv{stage}_{i}", nn.Conv2d(channels, width, kernel, padding=pad)))
                layers.append((f"act{stage}_{i}", _activation(activation, width)))
                channels = width
        self.features = named_sequence(layers)
        self.num_features, self.head_hidden_size = channels, hidden
        fitting = [n for n in levels if n <= side]
        self.head = PyramidHead(channels, fitting, num_classes, hidden, drop_rate, activation)
        self.feature_info = [{"num_chs": channels, "reduction": img_size // side, "module": "features"}]
        self.reset_parameters(SLOPE if activation.startswith("prelu") else 0.0)

    def reset_parameters(self, slope: float) -> None:
        """He normal (fan-in) for a rectifier of this slope (equation 15), biases 0.

        The classifier starts with normal(0.001): the maxima of the pyramid make features of several times unit scale.
        """
        for name, module in self.named_modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                if name == "head.fc3":
                    nn.init.normal_(module.weight, std=0.001)
                else:
                    nn.init.kaiming_normal_(module.weight, a=slope, mode="fan_in", nonlinearity="leaky_relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Parameter groups of timm's layer decay: one per layer, or one per stage."""
        conv = r"^features\.[a-z]+(\d)_" if coarse else r"^features\.[a-z]+(\d)_(\d)"
        return {"stem": r"^features\.[a-z]+1\.", "blocks": conv, "hidden": r"^head\.[a-z]+([12])"}

    def get_classifier(self) -> nn.Module:
        """The last layer."""
        return self.head.fc3

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new last layer."""
        self.num_classes = num_classes
        self.head.fc3 = nn.Linear(self.head_hidden_size, num_classes) if num_classes else nn.Identity()

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) to the last maps."""
        return self.features(x)  # type: ignore[no-any-return]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Maps to logits."""
        return self.head(x, pre_logits=pre_logits)  # type: ignore[no-any-return]


@register
def prelunet14(pretrained: bool = False, img_size: int = 224, **kwargs: Any) -> PReLUNet:
    """The small 14-layer model: 74,993,896 parameters with ReLU, 13 more with shared slopes."""
    net: PReLUNet = build_model_with_cfg(
        PReLUNet,
        "prelunet14",
        pretrained,
        first=64,
        pool=3,
        stages=((128, 4), (256, 6)),
        kernel=2,
        levels=(6, 3, 2, 1),
        first_padding=0,
        img_size=img_size,
        **kwargs,
    )
    return net


@register
def prelunet19(pretrained: bool = False, img_size: int = 224, **kwargs: Any) -> PReLUNet:
    """Model A, 19 weight layers: 178,017,384 parameters with ReLU."""
    net: PReLUNet = build_model_with_cfg(
        PReLUNet,
        "prelunet19",
        pretrained,
        first=96,
        pool=2,
        stages=((256, 5), (512, 5), (512, 5)),
        kernel=3,
        levels=(7, 3, 2, 1),
        first_padding=3,
        img_size=img_size,
        **kwargs,
    )
    return net
