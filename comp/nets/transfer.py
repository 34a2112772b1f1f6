"""Transfer to another set of classes: a new head, frozen stages, and learning rates that differ from layer to layer."""

from __future__ import annotations

import types
from collections.abc import Sequence
from typing import Any, Literal

from timm.models import group_parameters
from timm.optim._param_groups import auto_group_layers
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from comp.errors import CompError, Exit

HEAD_STD = 0.01


def _ask(model: nn.Module, method: str, *args: Any) -> Any:
    """Call a method that timm's networks have and `nn.Module` has not; None where it is missing."""
    found: Any = getattr(model, method, None)
    return found(*args) if found is not None else None


def classifiers(model: nn.Module) -> dict[str, nn.Module]:
    """The layers whose outputs are classes, by name: timm's classifier and what the network's config calls one."""
    found: list[nn.Module] = []
    main = _ask(model, "get_classifier")
    found += list(main) if isinstance(main, tuple | list) else [main] if main is not None else []
    stated = getattr(model, "pretrained_cfg", {}).get("classifier") or ()
    names = {name for name, module in model.named_modules() if any(module is m for m in found)}
    for name in [stated] if isinstance(stated, str) else stated:
        try:
            model.get_submodule(name)
        except AttributeError:
            continue  # an auxiliary head that this variant lacks
        names.add(name)
    outer = {name for name in names if not any(name.startswith(f"{other}.") for other in names)}
    return {name: module for name, module in model.named_modules() if name in outer and name}


def head_parameters(model: nn.Module) -> set[str]:
    """The names of the parameters that belong to the classifier (all layers of an MLP head)."""
    return {f"{name}.{p}" for name, module in classifiers(model).items() for p, _ in module.named_parameters()}


def _start_small(layer: nn.Module, bias: float = 0.0) -> None:
    for module in layer.modules():
        if isinstance(module, nn.Linear | _ConvNd):
            nn.init.normal_(module.weight, std=HEAD_STD)
            if module.bias is not None:
                nn.init.constant_(module.bias, bias)


def new_head(model: nn.Module, hidden: Sequence[int] = (), drop_rate: float = 0.0) -> None:
    """Start the classifier anew and small: normal(0.01) and one bias for all, so that the first loss is ln(classes).

    The bias is 0, or what the network says its own should be (`head_bias`; NIN).

    Args:
        model: The network, changed in place.
        hidden: Widths of hidden layers, each with ReLU, put before the last layer; () leaves one linear layer.
        drop_rate: Dropout after each hidden layer.

    Raises:
        CompError: The network has no single linear classifier that could be replaced by an MLP.
    """
    found = classifiers(model)
    if hidden:
        main = _ask(model, "get_classifier")
        name = next((n for n, m in found.items() if m is main), None)
        if name is None or type(main) not in (nn.Linear, nn.Conv2d):
            fix = "use model.head: [], or another network"
            raise CompError(
                "model.head", f"{type(model).__name__} has no linear classifier to replace", fix, Exit.CONFIG
            )
        model.set_submodule(name, _mlp(main, hidden, drop_rate))
        found = classifiers(model)
    for layer in found.values():
        if not isinstance(layer, nn.Sequential):
            _start_small(layer, getattr(model, "head_bias", 0.0))


def _mlp(classifier: Any, hidden: Sequence[int], drop_rate: float) -> nn.Sequential:
    conv = isinstance(classifier, nn.Conv2d)
    inputs, classes = (
        (classifier.in_channels, classifier.out_channels) if conv else (classifier.in_features, classifier.out_features)
    )
    layers: list[nn.Module] = []
    for before, after in zip([inputs, *hidden], [*hidden, classes], strict=True):
        layer = nn.Conv2d(before, after, 1) if conv else nn.Linear(before, after)
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
        layers += [layer, nn.ReLU(inplace=True)] + ([nn.Dropout(drop_rate)] if drop_rate else [])
    layers = layers[: -2 if drop_rate else -1]
    _start_small(layers[-1])
    return nn.Sequential(*layers)


def train(self: nn.Module, mode: bool = True) -> nn.Module:
    """`train` of a frozen BatchNorm: it stays in evaluation mode, so that its statistics stay."""
    return type(self).train(self, False)


def freeze(model: nn.Module, what: Literal["none", "backbone"] | int) -> None:
    """Freeze everything but the head, all but the last n stages (and the head), or nothing.

    The statistics of frozen normalisation layers are frozen with them, `model.train()` or not, in copies of the model
    too.

    Args:
        model: The network, changed in place; what an earlier call froze is free again.
        what: `none`, `backbone`, or the number n of stages that go on training, as the network groups them
            (`group_matcher`).

    Raises:
        CompError: The network names no stages, or fewer than n.
    """
    trainable = {name for name, _ in model.named_parameters()}
    if what == "backbone":
        trainable = head_parameters(model)
        if not trainable:
            raise CompError("model.freeze", "the network has no head that could train", "use none", Exit.CONFIG)
    elif isinstance(what, int):
        trainable = _last_stages(model, what) | head_parameters(model)
    elif what != "none":
        raise CompError("model.freeze", f"{what!r} is not known", "use none, backbone or a number", Exit.CONFIG)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trainable)
    for name, module in model.named_modules():
        if isinstance(module, _NormBase):
            module.__dict__.pop("train", None)
            if _is_frozen(model, name):
                module.__dict__["train"] = types.MethodType(train, module)
                module.train()
            elif model.training:
                module.train()


def _is_frozen(model: nn.Module, name: str) -> bool:
    """Whether nothing trains in a module, or for one without parameters, around it."""
    parameters = list(model.get_submodule(name).parameters())
    if not parameters and name:
        return _is_frozen(model, name.rpartition(".")[0])
    return bool(parameters) and not any(p.requires_grad for p in parameters)


def _last_stages(model: nn.Module, count: int) -> set[str]:
    matcher = _ask(model, "group_matcher", True)
    if matcher is None:
        what = f"{type(model).__name__} does not name its stages"
        raise CompError("model.freeze", what, "use backbone or none", Exit.CONFIG)
    stage_of: dict[str, int] = group_parameters(model, matcher, reverse=True)
    head = max(stage_of.values())
    if not 1 <= count < head:
        what = f"{count} of its stages should go on training, {type(model).__name__} has {head}"
        raise CompError("model.freeze", what, f"use 1 to {head - 1}, or none", Exit.CONFIG)
    return {name for name, stage in stage_of.items() if stage >= head - count}


def parameter_groups(
    model: nn.Module, *, lr: float, weight_decay: float, layer_decay: float | None, head_lr: float = 1.0
) -> list[dict[str, Any]]:
    """The optimizer's groups, for the parameters that train.

    Biases, norms and every other tensor of one dimension (PReLU's slopes) have no weight decay, nor has what the
    network says should have none.

    Args:
        model: The network.
        lr: Learning rate of the last layer before the head.
        weight_decay: For matrices and kernels.
        layer_decay: Each layer group's learning rate is so much of the next one's, as timm groups layers; none for
            the same everywhere.
        head_lr: The head's learning rate as a multiple of `lr`.

    Returns:
        Dicts with `params`, `lr`, `weight_decay` and `name`, from the input to the head. `lr` is final: there is no
        `lr_scale`.
    """
    layer_of: dict[str, int] = {}
    if layer_decay is not None and layer_decay < 1:
        matcher = _ask(model, "group_matcher", False)
        layer_of = group_parameters(model, matcher, reverse=True) if matcher else auto_group_layers(model)
    top = max(layer_of.values(), default=0)
    spared = set(_ask(model, "no_weight_decay") or ())
    head = head_parameters(model)
    groups: dict[tuple[int, bool, bool], list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decays = parameter.ndim > 1 and not name.endswith(".bias") and name not in spared
            groups.setdefault((layer_of.get(name, top), name in head, decays), []).append(parameter)
    out = []
    for (layer, is_head, decays), parameters in sorted(groups.items(), key=lambda item: item[0]):
        scale = head_lr if is_head else (layer_decay or 1.0) ** (top - layer)
        name = ("head" if is_head else f"layer{layer}" if layer_of else "backbone") + ("" if decays else ".no_decay")
        decay = weight_decay if decays else 0.0
        out.append({"params": parameters, "lr": lr * scale, "weight_decay": decay, "name": name})
    return out
