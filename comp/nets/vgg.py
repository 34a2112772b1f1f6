"""The VGG networks: Simonyan & Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", 2015,
table 1.

Weights start as He et al. (normal, fan-out), biases 0, because the paper's own start, normal(0.01), only trains the
shallowest of them; that one and its Xavier remedy are `model.init` (comp.nets.init).

Images below 224 pixels (`img_size`): fc6 reads the map that there is, img_size // 32 pixels a side. The smallest
input is 32.
"""

from __future__ import annotations

from typing import Any, Literal

from timm.models import build_model_with_cfg, generate_default_cfgs
from torch import Tensor, nn

from comp.nets.activations import activation as _activation
from comp.nets.alexnet import local_response_norm
from comp.nets.base import FullHead, HeadForm, PaperNet, named_sequence, paper_cfg, register

WIDTHS = (64, 128, 256, 512, 512)

# Kernel sizes of the convolutions, stage by stage.
COLUMNS: dict[str, tuple[tuple[int, ...], ...]] = {
    "a": ((3,), (3,), (3, 3), (3, 3), (3, 3)),
    "b": ((3, 3), (3, 3), (3, 3), (3, 3), (3, 3)),
    "c": ((3, 3), (3, 3), (3, 3, 1), (3, 3, 1), (3, 3, 1)),
    "d": ((3, 3), (3, 3), (3, 3, 3), (3, 3, 3), (3, 3, 3)),
    "e": ((3, 3), (3, 3), (3, 3, 3, 3), (3, 3, 3, 3), (3, 3, 3, 3)),
}

default_cfgs = generate_default_cfgs(
    {
        name: paper_cfg(224, "head.fc8", "features.conv1_1", fixed_input_size=True)
        for name in ("vgg_a", "vgg_a_lrn", "vgg_b", "vgg_c", "vgg_d", "vgg_e")
    }
)


class VGG(PaperNet):
    """A column of the paper's table 1.

    Args:
        column: `a` to `e`.
        lrn: Local response normalisation after the first convolution (A-LRN).
        num_classes: Number of classes.
        in_chans: Channels of the images.
        img_size: Side of the training crop, pixels.
        drop_rate: Dropout after fc6 and fc7.
        activation: Name of the activation.
        head: `linear`, or `conv` for 7×7 and 1×1 convolutions.
        hidden: Width of fc6 and fc7.
    """

    smallest_input = 32

    def __init__(
        self,
        column: str,
        lrn: bool = False,
        num_classes: int = 1000,
        in_chans: int = 3,
        img_size: int = 224,
        drop_rate: float = 0.5,
        activation: str = "relu",
        head: HeadForm = "linear",
        hidden: int = 4096,
    ) -> None:
        super().__init__()
        self.check_img_size(img_size, f"vgg_{column}")
        self.num_classes, self.in_chans, self.num_features, self.head_hidden_size = num_classes, in_chans, 512, hidden
        layers: list[tuple[str, nn.Module]] = []
        channels = in_chans
        for stage, (width, kernels) in enumerate(zip(WIDTHS, COLUMNS[column], strict=True), 1):
            for i, kernel in enumerate(kernels, 1):
                conv = nn.Conv2d(channels, width, kernel, padding=kernel // 2)
                layers += [(f"conv{stage}_{i}", conv), (f"act{stage}_{i}", _activation(activation, width))]
                if lrn and stage == 1:
                    layers.append((f"norm{stage}_{i}", local_response_norm()))
                channels = width
            layers.append((f"pool{stage}", nn.MaxPool2d(2, stride=2)))
        self.features = named_sequence(layers)
        self.head = FullHead(512, img_size // 32, num_classes, hidden, drop_rate, activation, head)
        self.feature_info = [{"num_chs": 512, "reduction": 32, "module": "features"}]
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """He normal (convolutions fan-out, hidden layers fan-in), normal(0.01) for the classifier, biases 0."""
        for name, module in self.named_modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                if name == "head.fc8":
                    nn.init.normal_(module.weight, std=0.01)
                else:
                    mode: Literal["fan_in", "fan_out"] = "fan_in" if name.startswith("head") else "fan_out"
                    nn.init.kaiming_normal_(module.weight, mode=mode, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Parameter groups of timm's layer decay: one per layer, or one per stage."""
        conv = r"^features\.[a-z]+(\d)" if coarse else r"^features\.[a-z]+(\d)_(\d)"
        return {"blocks": conv, "hidden": r"^head\.[a-z]+([67])"}

    def get_classifier(self) -> nn.Module:
        """The last layer."""
        return self.head.fc8

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new last layer."""
        self.num_classes = num_classes
        self.head.fc8 = self.head.classifier(num_classes)

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) to maps (B, 512, H // 32, W // 32)."""
        return self.features(x)  # type: ignore[no-any-return]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Maps to logits."""
        return self.head(x, pre_logits=pre_logits)  # type: ignore[no-any-return]


def _vgg(name: str, column: str, pretrained: bool, img_size: int, lrn: bool = False, **kwargs: Any) -> VGG:
    net: VGG = build_model_with_cfg(VGG, name, pretrained, column=column, lrn=lrn, img_size=img_size, **kwargs)
    return net


@register
def vgg_a(pretrained: bool = False, img_size: int = 224, **kwargs: Any) -> VGG:
    """VGG-A, 11 weight layers: 132,863,336 parameters."""
    return _vgg("vgg_a", "a", pretrained, img_size, **kwargs)


@register
def vgg_a_lrn(pretrained: bool = False, img_size: int = 224, **kwargs: Any) -> VGG:
    """VGG-A with local response normalisation after its first convolution."""
    return _vgg("vgg_a_lrn", "a", pretrained, img_size, lrn=True, **kwargs)


@register
def vgg_b(pretrained: bool = False, img_size: int = 224, **kwargs: Any) -> VGG:
    """VGG-B, 13 weight layers: 133,047,848 parameters."""
    return _vgg("vgg_b", "b", pretrained, img_size, **kwargs)


@register
def vgg_c(pretrained: bool = False, img_size: int = 224, **kwargs: Any) -> VGG:
    """VGG-C, 16 weight layers, three of them 1×1 convolutions: 133,638,952 parameters."""
    return _vgg("vgg_c", "c", pretrained, img_size, **kwargs)


@register
def vgg_d(pretrained: bool = False, img_size: int = 224, **kwargs: Any) -> VGG:
    """VGG-D, 16 weight layers: 138,357,544 parameters."""
    return _vgg("vgg_d", "d", pretrained, img_size, **kwargs)


@register
def vgg_e(pretrained: bool = False, img_size: int = 224, **kwargs: Any) -> VGG:
    """VGG-E, 19 weight layers: 143,667,240 parameters."""
    return _vgg("vgg_e", "e", pretrained, img_size, **kwargs)
