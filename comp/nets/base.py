"""What the papers' networks share: timm's conventions, the smallest input, the head of AlexNet and VGG."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal, TypeVar

import torch.nn.functional as F
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import register_model
from torch import Tensor, nn

from comp.errors import CompError, Exit
from comp.nets.activations import activation

HeadForm = Literal["linear", "conv"]
Entry = TypeVar("Entry", bound=Callable[..., nn.Module])


def register(entry: Entry) -> Entry:
    """Put a network's entry into timm's registry under its function's name."""
    register_model(entry)
    return entry


def paper_cfg(size: int, classifier: str | tuple[str, ...], first_conv: str, **more: Any) -> dict[str, Any]:
    """A timm `pretrained_cfg` for a network without published weights.

    Args:
        size: The paper's input, pixels.
        classifier: The name(s) of the layer(s) whose width is the number of classes.
        first_conv: The name of the first convolution.
        more: Further entries.
    """
    return {
        "input_size": (3, size, size),
        "num_classes": 1000,
        "crop_pct": 224 / 256,
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "classifier": classifier,
        "first_conv": first_conv,
        **more,
    }


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Refuse a value of `model.args.<name>` that is not one of `choices`."""
    if value not in choices:
        raise CompError(
            f"model.args.{name}", f"{value!r} is not known", f"choose from {', '.join(choices)}", Exit.CONFIG
        )


def kept_halvings(img_size: int, strides: Sequence[int], least: int = 14) -> int:
    """How many of a stem's reductions a small photo can afford.

    Reductions are given up from the first one on, until the map that enters the first stage has `least` pixels a side.

    Args:
        img_size: Side of the training crop, pixels.
        strides: The paper's reductions in order, e.g. (2, 2, 2).
        least: Side of the smallest map wanted.

    Returns:
        How many of the last `strides` are kept.
    """
    for dropped in range(len(strides)):
        if img_size // math.prod(strides[dropped:]) >= least:
            return len(strides) - dropped
    return 0


class PaperNet(nn.Module):
    """The methods timm expects of a network, for `features` followed by `forward_head`."""

    smallest_input: ClassVar[int] = 1  # pixels a side
    head_bias: ClassVar[float] = 0.0  # where the classifier's bias starts
    feature_info: list[dict[str, Any]]
    num_classes: int
    in_chans: int
    num_features: int
    head_hidden_size: int

    def check_img_size(self, img_size: int, name: str) -> None:
        """Refuse a training crop that the network has no form for."""
        if img_size < self.smallest_input:
            fix = f"its smallest input is {self.smallest_input}: raise image.crop"
            raise CompError(f"model.name = {name}", f"cannot take images of {img_size} pixels", fix, Exit.CONFIG)

    def check_input(self, x: Tensor) -> None:
        """Refuse a batch (B, C, H, W) that is smaller than `smallest_input`."""
        if min(x.shape[-2:]) < self.smallest_input:
            what = f"got images of {x.shape[-2]}×{x.shape[-1]} pixels, its smallest input is {self.smallest_input}"
            raise CompError(type(self).__name__, what, "give larger images", Exit.CONFIG)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Not supported, as timm's VGG has it."""
        if enable:
            raise CompError(
                type(self).__name__, "has no gradient checkpointing", "use a smaller micro_batch", Exit.CONFIG
            )

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (B, C, H, W) to the last maps (B, num_features, h, w)."""
        raise NotImplementedError

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Maps (B, num_features, h, w) to logits (B, num_classes), or to what the classifier reads."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Any:
        """Images (B, C, H, W) to logits (B, num_classes)."""
        self.check_input(x)
        return self.forward_head(self.forward_features(x))


class FullHead(nn.Module):
    """The head of AlexNet and VGG: two hidden layers with dropout and the classifier.

    In the form `linear` it reads maps of exactly `window` pixels. In the form `conv` the first layer is a convolution
    as large as the window and the others are 1×1, so that it reads any map that is not smaller and averages the
    class-score map over its positions (Simonyan & Zisserman, section 3.2). The weights are the same numbers in
    another shape.

    Args:
        channels: Channels of the maps.
        window: Side of the map at the training crop.
        num_classes: 0 leaves the classifier out.
        hidden: Width of the hidden layers.
        drop_rate: Dropout after each hidden layer.
        act: Name of the activation.
        form: `linear` or `conv`.
    """

    def __init__(
        self, channels: int, window: int, num_classes: int, hidden: int, drop_rate: float, act: str, form: HeadForm
    ) -> None:
        super().__init__()
        check_choice("head", form, ("linear", "conv"))
        self.channels, self.window, self.hidden, self.form = channels, window, hidden, form
        self.fc6 = self._layer(channels, hidden, window)
        self.act6 = activation(act, hidden)
        self.drop6 = nn.Dropout(drop_rate)
        self.fc7 = self._layer(hidden, hidden, 1)
        self.act7 = activation(act, hidden)
        self.drop7 = nn.Dropout(drop_rate)
        self.fc8 = self.classifier(num_classes)

    def _layer(self, inputs: int, outputs: int, window: int) -> nn.Module:
        if self.form == "conv":
            return nn.Conv2d(inputs, outputs, window)
        return nn.Linear(inputs * window * window, outputs)

    def classifier(self, num_classes: int) -> nn.Module:
        """A new last layer for so many classes."""
        return self._layer(self.hidden, num_classes, 1) if num_classes else nn.Identity()

    def hidden_maps(self, x: Tensor) -> Tensor:
        """Everything before the classifier: (B, hidden), or (B, hidden, h', w') in the form `conv`."""
        height, width = x.shape[-2:]
        if self.form == "linear":
            if (height, width) != (self.window, self.window):
                what = f"its head reads maps of {self.window}×{self.window}, the images give {height}×{width}"
                fix = "use the crop it was built for, or the view 'dense' for larger images"
                raise CompError("network", what, fix, Exit.CONFIG)
            x = x.flatten(1)
        x = self.drop6(self.act6(self.fc6(x)))
        return self.drop7(self.act7(self.fc7(x)))  # type: ignore[no-any-return]

    def forward(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Maps (B, channels, h, w) to logits (B, num_classes), or to the last hidden layer (B, hidden)."""
        x = self.hidden_maps(x)
        if not pre_logits:
            x = self.fc8(x)
        return x.mean((2, 3)) if x.ndim == 4 else x

    def score_map(self, x: Tensor) -> Tensor:
        """The head applied at every position of larger maps, whatever its form.

        Args:
            x: Maps (B, channels, h, w), h and w at least `window`.

        Returns:
            Class scores (B, num_classes, h - window + 1, w - window + 1).
        """
        for layer, act, drop in ((self.fc6, self.act6, self.drop6), (self.fc7, self.act7, self.drop7)):
            x = drop(act(_as_conv(layer, x, self.window if layer is self.fc6 else 1)))
        if isinstance(self.fc8, nn.Sequential):  # a small MLP in the classifier's place (comp.nets.transfer)
            for module in self.fc8:
                x = _as_conv(module, x, 1)
            return x
        return _as_conv(self.fc8, x, 1)

    def converted(self, form: HeadForm) -> FullHead:
        """The same head in another form, with copies of its weights."""
        if isinstance(self.fc8, nn.Sequential):
            raise CompError("network", "an MLP head is not converted", "use model.head: []", Exit.CONFIG)
        drop6: Any = self.drop6
        classes = 0 if isinstance(self.fc8, nn.Identity) else len(self.state_dict()["fc8.weight"])
        head = FullHead(self.channels, self.window, classes, self.hidden, drop6.p, "relu", form)
        head.act6, head.act7 = self.act6, self.act7
        wanted = head.state_dict()
        head.load_state_dict({name: value.reshape(wanted[name].shape) for name, value in self.state_dict().items()})
        return head.train(self.training)


def _as_conv(layer: nn.Module, x: Tensor, window: int) -> Tensor:
    """Apply a linear layer to every window of the maps; other layers as they are."""
    if isinstance(layer, nn.Linear):
        return F.conv2d(x, layer.weight.view(layer.out_features, -1, window, window), layer.bias)
    return layer(x)  # type: ignore[no-any-return]


def named_sequence(layers: Sequence[tuple[str, nn.Module]]) -> nn.Sequential:
    """A sequence whose layers have names."""
    return nn.Sequential(OrderedDict(layers))
