"""AlexNet: Krizhevsky, Sutskever & Hinton, "ImageNet Classification with Deep Convolutional Neural Networks", 2012.

Convolution, ReLU, local response normalisation, overlapping pooling, as in section 3.5 and figure 2 (torchvision's is
the single-GPU net of 2014: 64 and 192 channels, no normalisation). The paper says 224 pixels and means 227.

Images below the paper's size (`img_size`): from 128 pixels the paper's stem, padded by 2 so that 224 gives the
paper's maps too; 48 to 127 a first convolution 5×5 with stride 2; 16 to 47 the same with stride 1. fc6 reads the map
that there is.
"""

from __future__ import annotations

from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs
from torch import Tensor, nn

from comp.errors import CompError, Exit
from comp.nets.activations import activation as _activation
from comp.nets.base import FullHead, HeadForm, PaperNet, named_sequence, paper_cfg, register

default_cfgs = generate_default_cfgs(
    {"alexnet_2012": paper_cfg(227, "head.fc8", "features.conv1", fixed_input_size=True, crop_pct=227 / 256)}
)


def local_response_norm() -> nn.LocalResponseNorm:
    """b = a / (k + α Σ a²)^β over n = 5 neighbouring maps, k = 2, α = 1e-4, β = 0.75 (section 3.3).

    torch divides α by n, so it is given α n.
    """
    return nn.LocalResponseNorm(5, alpha=5 * 1e-4, beta=0.75, k=2.0)


def stem(in_chans: int, img_size: int) -> nn.Conv2d:
    """The first convolution (also NIN's) for images of so many pixels a side."""
    if img_size < 128:
        return nn.Conv2d(in_chans, 96, 5, stride=2 if img_size >= 48 else 1, padding=2)
    return nn.Conv2d(in_chans, 96, 11, stride=4, padding=0 if img_size >= 227 else 2)


class AlexNet(PaperNet):
    """AlexNet.

    Args:
        num_classes: Number of classes.
        in_chans: Channels of the images.
        img_size: Side of the training crop, pixels.
        groups: 2 as the paper (two GPUs: conv2, conv4 and conv5 see half the maps), or 1.
        drop_rate: Dropout after fc6 and fc7.
        activation: Name of the activation.
        head: `linear`, or `conv` for 7×7 and 1×1 convolutions.
        hidden: Width of fc6 and fc7.
    """

    smallest_input = 16

    def __init__(
        self,
        num_classes: int = 1000,
        in_chans: int = 3,
        img_size: int = 227,
        groups: int = 2,
        drop_rate: float = 0.5,
        activation: str = "relu",
        head: HeadForm = "linear",
        hidden: int = 4096,
    ) -> None:
        super().__init__()
        self.check_img_size(img_size, "alexnet_2012")
        if groups not in (1, 2):
            raise CompError("model.args.groups", f"{groups} is neither 1 nor 2", "2 is the paper's", Exit.CONFIG)
        self.num_classes, self.in_chans, self.num_features, self.head_hidden_size = num_classes, in_chans, 256, hidden
        first = stem(in_chans, img_size)
        convs = [
            first,
            nn.Conv2d(96, 256, 5, padding=2, groups=groups),
            nn.Conv2d(256, 384, 3, padding=1),
            nn.Conv2d(384, 384, 3, padding=1, groups=groups),
            nn.Conv2d(384, 256, 3, padding=1, groups=groups),
        ]
        layers: list[tuple[str, nn.Module]] = []
        for i, conv in enumerate(convs, 1):
            layers += [(f"conv{i}", conv), (f"act{i}", _activation(activation, conv.out_channels))]
            if i <= 2:
                layers.append((f"norm{i}", local_response_norm()))
            if i in (1, 2, 5):
                layers.append((f"pool{i}", nn.MaxPool2d(3, stride=2)))
        self.features = named_sequence(layers)
        side = (img_size + 2 * int(first.padding[0]) - first.kernel_size[0]) // first.stride[0] + 1
        for _ in range(3):
            side = (side - 3) // 2 + 1
        self.head = FullHead(256, side, num_classes, hidden, drop_rate, activation, head)
        self.feature_info = [{"num_chs": 256, "reduction": 32, "module": "features"}]
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Section 5: weights normal(0.01), biases of conv2, 4, 5 and the hidden layers 1, the others 0."""
        ones = {"features.conv2", "features.conv4", "features.conv5", "head.fc6", "head.fc7"}
        for name, module in self.named_modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.normal_(module.weight, std=0.01)
                if module.bias is not None:
                    nn.init.constant_(module.bias, 1.0 if name in ones else 0.0)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Parameter groups of timm's layer decay: one per layer."""
        return {"blocks": [(r"^features\.[a-z]+(\d)", None), (r"^head\.[a-z]+([67])", None)]}

    def get_classifier(self) -> nn.Module:
        """The last layer."""
        return self.head.fc8

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new last layer."""
        self.num_classes = num_classes
        self.head.fc8 = self.head.classifier(num_classes)

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) to maps (B, 256, h, w): 6×6 at the paper's size."""
        return self.features(x)  # type: ignore[no-any-return]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Maps to logits."""
        return self.head(x, pre_logits=pre_logits)  # type: ignore[no-any-return]


@register
def alexnet_2012(pretrained: bool = False, img_size: int = 227, groups: int = 2, **kwargs: Any) -> AlexNet:
    """AlexNet: 60,965,224 parameters with the paper's two groups, 62,378,344 with one."""
    net: AlexNet = build_model_with_cfg(AlexNet, "alexnet_2012", pretrained, img_size=img_size, groups=groups, **kwargs)
    return net
