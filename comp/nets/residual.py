"""Plain and residual networks: He et al., "Deep Residual Learning for Image Recognition", 2015, table 1 and section
4.1.

One class for all: `shortcut` is `none` (plain), `A` (identity; where the size changes every second pixel, and zeros
for the new channels), `B` (1×1 projection where the size changes, as timm and torchvision) or `C` (projection
everywhere). Parameters are named as timm names them, so that weights of timm's resnets fit option B. Any input of at
least 32 pixels runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from timm.layers import DropPath
from timm.models import build_model_with_cfg, generate_default_cfgs
from torch import Tensor, nn

from comp.errors import CompError, Exit
from comp.nets.activations import activation as _activation
from comp.nets.base import PaperNet, check_choice, paper_cfg, register

DEPTHS: dict[int, tuple[str, tuple[int, int, int, int]]] = {
    18: ("basic", (2, 2, 2, 2)),
    34: ("basic", (3, 4, 6, 3)),
    50: ("bottleneck", (3, 4, 6, 3)),
    101: ("bottleneck", (3, 4, 23, 3)),
    152: ("bottleneck", (3, 8, 36, 3)),
}

NAMES = ("plain18", "plain34", *(f"resnet{depth}_{option}" for depth in DEPTHS for option in "abc"))

default_cfgs = generate_default_cfgs({name: paper_cfg(224, "fc", "conv1") for name in NAMES})


class ZeroPadShortcut(nn.Module):
    """Option A: every `stride`-th pixel, zeros in the new channels; no parameters."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.new, self.stride = outputs - inputs, stride

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, inputs, h, w) to (B, outputs, ⌈h / stride⌉, ⌈w / stride⌉)."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.new))


def shortcut_module(option: str, inputs: int, outputs: int, stride: int) -> nn.Module | None:
    """What a block's input goes through before it is added; None where it is added as it is, or not at all."""
    changes = stride != 1 or inputs != outputs
    if option == "C" or (option == "B" and changes):
        return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs))
    return ZeroPadShortcut(inputs, outputs, stride) if option == "A" and changes else None


class Block(nn.Module):
    """Two 3×3 convolutions (basic), or 1×1, 3×3, 1×1 (bottleneck), each with BatchNorm; then the shortcut, then
    activation.

    Args:
        inputs: Channels in.
        width: Channels inside.
        outputs: Channels out.
        stride: Of the whole block.
        bottleneck: Which of the two.
        stride_in: The bottleneck's convolution that has the stride: `1x1` (the paper: the first one) or `3x3`.
        shortcut: `none`, `A`, `B` or `C`.
        act: Name of the activation.
        drop_path: Probability that the block is skipped for an image.
    """

    def __init__(
        self,
        inputs: int,
        width: int,
        outputs: int,
        stride: int,
        bottleneck: bool,
        stride_in: str,
        shortcut: str,
        act: str,
        drop_path: float,
    ) -> None:
        super().__init__()
        if bottleneck:
            first, second = (stride, 1) if stride_in == "1x1" else (1, stride)
            shapes = [(inputs, width, 1, first), (width, width, 3, second), (width, outputs, 1, 1)]
        else:
            shapes = [(inputs, width, 3, stride), (width, outputs, 3, 1)]
        self.depth = len(shapes)
        for i, (a, b, kernel, step) in enumerate(shapes, 1):
            self.add_module(f"conv{i}", nn.Conv2d(a, b, kernel, stride=step, padding=kernel // 2, bias=False))
            self.add_module(f"bn{i}", nn.BatchNorm2d(b))
            self.add_module(f"act{i}", _activation(act, b))
        self.adds = shortcut != "none"
        self.downsample = shortcut_module(shortcut, inputs, outputs, stride)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, inputs, h, w) to (B, outputs, ⌈h / stride⌉, ⌈w / stride⌉)."""
        y = x
        for i in range(1, self.depth + 1):
            y = self.get_submodule(f"bn{i}")(self.get_submodule(f"conv{i}")(y))
            if i < self.depth:
                y = self.get_submodule(f"act{i}")(y)
        if self.adds:
            y = self.drop_path(y) + (x if self.downsample is None else self.downsample(x))
        return self.get_submodule(f"act{self.depth}")(y)  # type: ignore[no-any-return]


class ResidualNet(PaperNet):
    """A plain or residual network.

    Args:
        block: `basic` or `bottleneck`.
        layers: Blocks in each of the four stages.
        shortcut: `none`, `A`, `B` or `C`.
        num_classes: Number of classes.
        in_chans: Channels of the images.
        stride_in: The bottleneck's convolution with the stride, `1x1` (the paper) or `3x3` (timm, torchvision).
        drop_rate: Dropout before the classifier.
        drop_path_rate: Stochastic depth of the last block; the first has 0, in between it grows evenly. Not for plain
            nets.
        activation: Name of the activation.
    """

    smallest_input = 32

    def __init__(
        self,
        block: str,
        layers: Sequence[int],
        shortcut: str,
        num_classes: int = 1000,
        in_chans: int = 3,
        stride_in: str = "1x1",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        activation: str = "relu",
    ) -> None:
        super().__init__()
        check_choice("stride_in", stride_in, ("1x1", "3x3"))
        if drop_path_rate and shortcut == "none":
            fix = "set it to 0: a layer without a shortcut cannot be skipped"
            raise CompError("model.drop_path", "a plain network has no paths to drop", fix, Exit.CONFIG)
        self.num_classes, self.in_chans = num_classes, in_chans
        self.conv1 = nn.Conv2d(in_chans, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.act1 = _activation(activation, 64)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        channels, done, expansion = 64, 0, 4 if block == "bottleneck" else 1
        self.feature_info = [{"num_chs": 64, "reduction": 2, "module": "act1"}]
        for stage, count in enumerate(layers, 1):
            width = 32 * 2**stage
            blocks = []
            for i in range(count):
                drop = drop_path_rate * done / max(1, sum(layers) - 1)
                stride = 2 if stage > 1 and i == 0 else 1
                blocks.append(
                    Block(
                        channels,
                        width,
                        width * expansion,
                        stride,
                        expansion == 4,
                        stride_in,
                        shortcut,
                        activation,
                        drop,
                    )
                )
                channels, done = width * expansion, done + 1
            self.add_module(f"layer{stage}", nn.Sequential(*blocks))
            self.feature_info.append({"num_chs": channels, "reduction": 2 ** (stage + 1), "module": f"layer{stage}"})
        self.num_features = self.head_hidden_size = channels
        self.global_pool = nn.AdaptiveAvgPool2d(1)
        self.drop = nn.Dropout(drop_rate)
        self.fc: nn.Module = nn.Linear(channels, num_classes) if num_classes else nn.Identity()
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """He normal (fan-out) for convolutions, normal(0.01) for the classifier, biases 0."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.01)
                nn.init.zeros_(module.bias)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Parameter groups of timm's layer decay: one per block, or one per stage."""
        return {"stem": r"^(?:conv1|bn1|act1)", "blocks": r"^layer(\d+)" if coarse else r"^layer(\d+)\.(\d+)"}

    def get_classifier(self) -> nn.Module:
        """The last layer."""
        return self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new last layer."""
        self.num_classes = num_classes
        self.fc = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) to maps (B, 512 or 2048, h, w) with h = H / 32."""
        x = self.maxpool(self.act1(self.bn1(self.conv1(x))))
        for stage in range(1, 5):
            x = self.get_submodule(f"layer{stage}")(x)
        return x

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Maps to logits."""
        x = self.drop(self.global_pool(x).flatten(1))
        return x if pre_logits else self.fc(x)


def _register(name: str, depth: int, shortcut: str) -> None:
    """Make the timm entry of one network of the family."""
    block, layers = DEPTHS[depth]

    def entry(pretrained: bool = False, **kwargs: Any) -> ResidualNet:
        net: ResidualNet = build_model_with_cfg(
            ResidualNet, name, pretrained, block=block, layers=layers, shortcut=shortcut, **kwargs
        )
        return net

    kind = "Plain network" if shortcut == "none" else f"Residual network with shortcuts of option {shortcut}"
    entry.__name__ = entry.__qualname__ = name
    entry.__doc__ = f"{kind}, {depth} weight layers."
    globals()[name] = register(entry)


for _name in NAMES:
    _depth, _, _option = _name.removeprefix("plain").removeprefix("resnet").partition("_")
    _register(_name, int(_depth), _option.upper() or "none")
