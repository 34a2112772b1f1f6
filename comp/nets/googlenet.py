"""GoogLeNet: Szegedy et al., "Going Deeper with Convolutions", 2014, table 1 (torchvision's has 3×3 where the paper
has 5×5).

In training mode and with auxiliary heads the network returns (logits, aux1, aux2); their losses are added with
`aux_weight`. In evaluation mode it returns logits, and the auxiliary heads are not computed.

Images below the paper's size (`img_size`): the stem gives up reductions from the first one on until the first
inception module sees maps of 14 pixels: from 112 pixels all three are kept, from 56 the first convolution is 3×3 with
stride 1, from 28 the first pooling is left out too, below that the second. Auxiliary heads need the paper's stem and
are off below 112 pixels.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from timm.models import build_model_with_cfg, generate_default_cfgs
from torch import Tensor, nn

from comp.errors import CompError, Exit
from comp.nets.activations import activation as _activation
from comp.nets.alexnet import local_response_norm
from comp.nets.base import PaperNet, check_choice, kept_halvings, named_sequence, paper_cfg, register

default_cfgs = generate_default_cfgs(
    {"googlenet_2014": paper_cfg(224, ("fc", "aux1.fc2", "aux2.fc2"), "stem.conv1.conv")}
)

AUX_WEIGHT = 0.3  # section 5
SMALLEST_WITH_AUX = 112  # pixels

# 1×1 · 3×3 reduce · 3×3 · 5×5 reduce · 5×5 · pool projection, of table 1; None is the pooling between stages.
MODULES: dict[str, tuple[int, int, int, int, int, int] | None] = {
    "3a": (64, 96, 128, 16, 32, 32),
    "3b": (128, 128, 192, 32, 96, 64),
    "pool3": None,
    "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128),
    "pool4": None,
    "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}


class Conv(nn.Sequential):
    """Convolution with bias and activation; or, with BatchNorm, without bias."""

    def __init__(self, inputs: int, outputs: int, kernel: int, act: str, norm: bool, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=not norm)
        if norm:
            self.bn = nn.BatchNorm2d(outputs)
        self.act = _activation(act, outputs)


class Inception(nn.Module):
    """Four branches over the same maps, their outputs one after the other (figure 2b)."""

    def __init__(self, inputs: int, widths: tuple[int, int, int, int, int, int], act: str, norm: bool) -> None:
        super().__init__()
        one, reduce3, three, reduce5, five, pool = widths
        self.branch1 = Conv(inputs, one, 1, act, norm)
        self.branch3 = nn.Sequential(Conv(inputs, reduce3, 1, act, norm), Conv(reduce3, three, 3, act, norm))
        self.branch5 = nn.Sequential(Conv(inputs, reduce5, 1, act, norm), Conv(reduce5, five, 5, act, norm))
        self.branch_pool = nn.Sequential(nn.MaxPool2d(3, stride=1, padding=1), Conv(inputs, pool, 1, act, norm))
        self.outputs = one + three + five + pool

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, inputs, h, w) to maps (B, outputs, h, w)."""
        return torch.cat([self.branch1(x), self.branch3(x), self.branch5(x), self.branch_pool(x)], 1)


class Auxiliary(nn.Module):
    """The classifier on a middle layer: average pooling 5×5 with stride 3, 1×1 convolution, two fully connected layers.

    Maps that 5×5 with stride 3 does not bring to the 4×4 of the paper (224-pixel images) are averaged to 4×4
    adaptively.
    """

    def __init__(self, inputs: int, num_classes: int, act: str, norm: bool) -> None:
        super().__init__()
        self.conv = Conv(inputs, 128, 1, act, norm)
        self.fc1 = nn.Linear(128 * 4 * 4, 1024)
        self.act = _activation(act, 1024)
        self.drop = nn.Dropout(0.7)
        self.fc2 = nn.Linear(1024, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, inputs, h, w) to logits (B, num_classes)."""
        exact = all(14 <= side <= 16 for side in x.shape[-2:])
        x = F.avg_pool2d(x, 5, stride=3) if exact else F.adaptive_avg_pool2d(x, 4)
        x = self.act(self.fc1(self.conv(x).flatten(1)))
        return self.fc2(self.drop(x))  # type: ignore[no-any-return]


class GoogLeNet(PaperNet):
    """GoogLeNet.

    Args:
        num_classes: Number of classes.
        in_chans: Channels of the images.
        img_size: Side of the training crop, pixels.
        norm: `none` (the paper, with local response normalisation in the stem) or `batch`.
        aux: Auxiliary heads; where not said, they are there when the image is large enough.
        drop_rate: Dropout before the classifier.
        activation: Name of the activation.
    """

    smallest_input = 15
    aux_weight = AUX_WEIGHT

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        img_size: int = 224,
        norm: str = "none",
        aux: bool | None = None,
        drop_rate: float = 0.4,
        activation: str = "relu",
    ) -> None:
        super().__init__()
        self.check_img_size(img_size, "googlenet_2014")
        check_choice("norm", norm, ("none", "batch"))
        if aux and img_size < SMALLEST_WITH_AUX:
            fix = f"they need {SMALLEST_WITH_AUX} pixels: raise image.crop or leave it out"
            raise CompError("model.args.aux", f"no auxiliary heads at {img_size} pixels", fix, Exit.CONFIG)
        self.aux = img_size >= SMALLEST_WITH_AUX if aux is None else aux
        self.num_classes, self.in_chans = num_classes, in_chans
        batch = norm == "batch"
        kept = kept_halvings(img_size, (2, 2, 2))

        def pool() -> nn.Module:
            return nn.MaxPool2d(3, stride=2, ceil_mode=True)

        first = (7, 2) if kept == 3 else (3, 1)
        stem: list[tuple[str, nn.Module]] = [
            ("conv1", Conv(in_chans, 64, first[0], activation, batch, stride=first[1]))
        ]
        stem += [("pool1", pool())] if kept >= 2 else []
        stem += [] if batch else [("norm1", local_response_norm())]
        stem += [("conv2_reduce", Conv(64, 64, 1, activation, batch)), ("conv2", Conv(64, 192, 3, activation, batch))]
        stem += [] if batch else [("norm2", local_response_norm())]
        stem += [("pool2", pool())] if kept >= 1 else []
        self.stem = named_sequence(stem)
        self.blocks = nn.ModuleDict()
        channels, at_aux = 192, []
        for name, widths in MODULES.items():
            if widths is None:
                self.blocks[name] = pool()
                continue
            block = Inception(channels, widths, activation, batch)
            channels = block.outputs
            self.blocks[name] = block
            if name in ("4a", "4d"):
                at_aux.append(channels)
        self.num_features = self.head_hidden_size = channels
        if self.aux:
            self.aux1 = Auxiliary(at_aux[0], num_classes, activation, batch)
            self.aux2 = Auxiliary(at_aux[1], num_classes, activation, batch)
        self.global_pool = nn.AdaptiveAvgPool2d(1)
        self.drop = nn.Dropout(drop_rate)
        self.fc: nn.Module = nn.Linear(channels, num_classes) if num_classes else nn.Identity()
        self.feature_info = [{"num_chs": channels, "reduction": 4 * 2**kept, "module": "blocks.5b"}]
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """He normal (fan-in) for convolutions, normal(0.01) for classifiers, biases 0 (the paper gives no start)."""
        for name, module in self.named_modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                if name.endswith(("fc", "fc2")):
                    nn.init.normal_(module.weight, std=0.01)
                else:
                    nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def group_matcher(self, coarse: bool = False) -> Callable[[str], int]:
        """Parameter groups of timm's layer decay: stem, then inception modules (or stages), heads."""
        module = r"^blocks\.(\d)" if coarse else r"^blocks\.(\d\w)"
        order = {name: i for i, name in enumerate(("3", "4", "5") if coarse else MODULES, 1)}

        def layer(name: str) -> int:
            if name.startswith("stem"):
                return 0
            found = re.match(module, name)
            return order[found[1]] if found else len(order) + 1

        return layer

    def get_classifier(self) -> nn.Module:
        """The last layer of the main head."""
        return self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """New last layers, the auxiliary heads' too."""
        self.num_classes = num_classes
        self.fc = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()
        if self.aux and num_classes:
            self.aux1.fc2, self.aux2.fc2 = nn.Linear(1024, num_classes), nn.Linear(1024, num_classes)

    def _through(self, x: Tensor, taps: list[Tensor] | None = None) -> Tensor:
        x = self.stem(x)
        for name, block in self.blocks.items():
            x = block(x)
            if taps is not None and name in ("4a", "4d"):
                taps.append(x)
        return x

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) to maps (B, 1024, h, w)."""
        return self._through(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Maps to logits."""
        x = self.drop(self.global_pool(x).flatten(1))
        return x if pre_logits else self.fc(x)

    def forward(self, x: Tensor) -> Any:
        """Images (B, C, H, W) to logits; in training mode with auxiliary heads to (logits, aux1, aux2)."""
        if not (self.training and self.aux):
            return super().forward(x)
        self.check_input(x)
        taps: list[Tensor] = []
        x = self._through(x, taps)
        return self.forward_head(x), self.aux1(taps[0]), self.aux2(taps[1])


@register
def googlenet_2014(pretrained: bool = False, img_size: int = 224, **kwargs: Any) -> GoogLeNet:
    """GoogLeNet: 6,998,552 parameters, 13,378,280 with auxiliary heads; norm='batch' with BatchNorm."""
    net: GoogLeNet = build_model_with_cfg(GoogLeNet, "googlenet_2014", pretrained, img_size=img_size, **kwargs)
    return net
