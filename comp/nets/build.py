"""Build a network by name, with its head, its start and its weights, or say in one line why it cannot be."""

from __future__ import annotations

import inspect
import pickle
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import timm
import torch
from safetensors.torch import load_file
from timm.layers import DropPath
from timm.models import adapt_input_conv, get_pretrained_cfg, model_entrypoint
from torch import Tensor, nn

from comp.errors import CompError, Exit
from comp.files import check_zip
from comp.nets import alexnet, googlenet, nin, prelunet, residual, vgg
from comp.nets.activations import ACTIVATIONS
from comp.nets.activations import activation as check_activation
from comp.nets.init import initialise
from comp.nets.names import PAPERS, check_model_name
from comp.nets.transfer import head_parameters, new_head

FAMILIES = (alexnet, googlenet, nin, prelunet, residual, vgg)  # importing them registers the papers' networks with timm


def build(
    name: str,
    *,
    num_classes: int,
    in_chans: int = 3,
    img_size: int | None = None,
    pretrained: bool | str = False,
    drop_rate: float = 0.0,
    drop_path: float = 0.0,
    activation: str | None = None,
    head: Sequence[int] = (),
    init: Mapping[str, Any] | None = None,
    args: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> nn.Module:
    """Build a network; its weights are a function of the arguments.

    Args:
        name: A timm name, with or without a tag of weights, or one of the papers' networks.
        num_classes: Number of classes.
        in_chans: Channels of the images.
        img_size: Side of the training crop, pixels; networks that do not depend on it never hear of it.
        pretrained: True for timm's weights of that name, or the path of a safetensors file or state dict.
        drop_rate: Dropout before the classifier; 0 leaves the network's own (AlexNet has 0.5; `args: {drop_rate: 0}`
            for none).
        drop_path: Stochastic depth; 0 leaves the network's own.
        activation: Name of the activation; none for the network's own.
        head: Widths of an MLP head's hidden layers.
        init: Arguments of `comp.nets.init.initialise` (kind, std, fan, first, last, bias), for scratch networks.
        args: Further arguments of the network's timm entry.
        seed: Of all draws.

    Raises:
        CompError: The network does not exist, does not know an argument, or its weights are not there or do not fit.
    """
    check_model_name(name)
    kind = dict(init or {}).get("kind", "default")
    if pretrained and kind != "default":
        raise CompError("model.init", "a pretrained network is not started anew", "drop it or pretrained", Exit.CONFIG)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        options = _options(name, img_size, drop_rate, drop_path, activation, args or {})
        model = _create(name, pretrained is True, {"num_classes": num_classes, "in_chans": in_chans, **options})
        _check_heard(model, name, drop_rate, drop_path, activation)
        if isinstance(pretrained, str):
            load_weights(model, read_weights(pretrained), pretrained, skip_head=True)
        ours = name in PAPERS
        if not ours or pretrained or head:
            new_head(model, head, drop_rate)
        if init and not pretrained and (kind != "default" or init.get("bias", 0.0)):
            initialise(model, **{**init, "seed": seed})
    return model


def _options(
    name: str,
    img_size: int | None,
    drop_rate: float,
    drop_path: float,
    activation: str | None,
    args: Mapping[str, Any],
) -> dict[str, Any]:
    """The keyword arguments of the timm entry beside classes and channels."""
    options: dict[str, Any] = {}
    ours = name in PAPERS
    if drop_rate > 0:
        options["drop_rate"] = drop_rate
    if drop_path > 0:
        options["drop_path_rate"] = drop_path
    if activation is not None:
        check_activation(activation, 1)
        options["activation" if ours else "act_layer"] = activation if ours else _layer_class(activation)
    if img_size is not None:
        cfg = None if ours else get_pretrained_cfg(name)
        takes = "img_size" in inspect.signature(model_entrypoint(name.partition(".")[0])).parameters
        if takes or (cfg is not None and cfg.fixed_input_size):
            options["img_size"] = img_size
    for key in ("num_classes", "in_chans", "pretrained", "pretrained_cfg", "checkpoint_path", "features_only"):
        if key in args:
            raise CompError(f"model.args.{key}", "is not an argument to set here", "leave it out", Exit.CONFIG)
    return {**options, **args}


def _layer_class(name: str) -> Any:
    """The activation as timm's entries take it: a class, made with or without `inplace`."""
    made = ACTIVATIONS[name](1)
    if name == "leaky_relu" or name.startswith("prelu"):
        if name == "prelu":
            raise CompError(
                "model.activation", "timm's networks cannot give each channel a slope", "use prelu_shared", Exit.CONFIG
            )
        return lambda inplace=False, **_: ACTIVATIONS[name](1)
    return _accepting_inplace(type(made))


def _accepting_inplace(cls: type[nn.Module]) -> Any:
    if "inplace" in inspect.signature(cls).parameters:
        return cls
    return lambda inplace=False, **_: cls()


def _create(name: str, pretrained: bool, options: dict[str, Any]) -> nn.Module:
    if pretrained:
        _check_has_weights(name)
    try:
        return cast(nn.Module, timm.create_model(name, pretrained=pretrained, **options))
    except CompError:
        raise
    except TypeError as error:
        unknown = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        if not unknown:
            raise _not_built(name, options, error) from error
        key = {
            "drop_path_rate": "model.drop_path",
            "drop_rate": "model.dropout",
            "act_layer": "model.activation",
            "activation": "model.activation",
            "img_size": "image.crop",
        }.get(unknown[1], f"model.args.{unknown[1]}")
        what = "has an input of fixed size" if unknown[1] == "img_size" else "has no such setting"
        raise CompError(key, f"{name} {what}", "leave it out, or use another network", Exit.CONFIG) from error
    except Exception as error:
        if pretrained and not isinstance(error, AssertionError | ValueError | KeyError):
            raise _no_download(name, error) from error
        raise _not_built(name, options, error) from error


def _not_built(name: str, options: Mapping[str, Any], error: Exception) -> CompError:
    given = ", ".join(f"{key}={value}" for key, value in options.items() if not callable(value))
    reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
    return CompError(f"model.name = {name}", f"cannot be built with {given} ({reason})", "change them", Exit.CONFIG)


def _check_has_weights(name: str) -> None:
    cfg = get_pretrained_cfg(name, allow_unregistered=True) if "." not in name else None
    known = timm.list_pretrained(f"{name}*") if "." in name else []
    if name in PAPERS or (cfg is not None and not cfg.has_weights) or ("." in name and name not in known):
        fix = "use pretrained: false, or the path of a weights file"
        raise CompError(f"model.name = {name}", "timm has no pretrained weights of that name", fix, Exit.CONFIG)


def _no_download(name: str, error: Exception) -> CompError:
    cfg = get_pretrained_cfg(name)
    tag = name.partition(".")[2] or (cfg.tag if cfg else "") or ""
    file = f"{name.partition('.')[0]}{'.' + tag if tag else ''}.safetensors"
    what = f"its pretrained weights cannot be fetched ({type(error).__name__})"
    fix = f"put {file} into weights/ and set model.pretrained=weights/{file}, or set model.pretrained=false"
    return CompError(f"model.name = {name}", what, fix, Exit.FILE)


def _check_heard(model: nn.Module, name: str, drop_rate: float, drop_path: float, activation: str | None) -> None:
    """Refuse a setting that the network took and did nothing with."""
    fix = "set it to 0, or use another network"
    modules = list(model.modules())
    if drop_path > 0 and not any(isinstance(m, DropPath) and m.drop_prob for m in modules):
        raise CompError("model.drop_path", f"{name} has no paths to drop", fix, Exit.CONFIG)
    drops = [m for m in modules if isinstance(m, nn.Dropout) and m.p == drop_rate]
    if drop_rate > 0 and not drops and getattr(model, "drop_rate", None) != drop_rate:
        raise CompError("model.dropout", f"{name} has no dropout to set", fix, Exit.CONFIG)
    if activation is not None:
        wanted = type(ACTIVATIONS[activation](1))
        if not any(type(m) is wanted for m in modules):
            what = f"{name} does not take another activation"
            raise CompError("model.activation", what, "leave it out, or use another network", Exit.CONFIG)


def network_mean_std(model: nn.Module) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """The channel mean and standard deviation (0 to 1, RGB) that a network's pretrained weights were trained with."""
    cfg = cast("dict[str, Any]", model.pretrained_cfg)
    return tuple(cfg["mean"]), tuple(cfg["std"])


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Read a safetensors file, or a state dict saved by torch, without running code from it.

    Raises:
        CompError: The file is missing, cut short, neither of the two, or a pickle that holds more than tensors.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            start = file.read(2)
    except OSError as error:
        fix = "give the path of a safetensors file or a state dict"
        raise CompError(path, f"cannot be read ({error.strerror})", fix, Exit.FILE) from error
    try:
        if start == b"PK":
            check_zip(path, path.stat().st_size, checksums=False)
        if start in (b"PK", b"\x80\x02"):
            value = torch.load(path, map_location="cpu", weights_only=True)
        else:
            value = load_file(path)
    except pickle.UnpicklingError as error:
        what = "is a pickle that holds more than tensors, or is damaged; it was not run"
        raise CompError(path, what, "save its state_dict() as safetensors", Exit.FILE) from error
    except Exception as error:  # torch, zipfile and safetensors raise a dozen kinds on damaged bytes
        what = "is neither a whole safetensors file nor a whole state dict"
        raise CompError(path, what, "fetch it again", Exit.FILE) from error
    for key in ("state_dict", "model"):
        if isinstance(value, dict) and isinstance(value.get(key), dict):
            value = value[key]
    if not isinstance(value, dict) or not value or not all(isinstance(v, Tensor) for v in value.values()):
        raise CompError(path, "holds no state dict", "save the network's state_dict()", Exit.FILE)
    return {str(name).removeprefix("module."): tensor for name, tensor in value.items()}


def load_weights(model: nn.Module, state: Mapping[str, Tensor], where: str, *, skip_head: bool) -> list[str]:
    """Copy weights into a network, all of them or none.

    A first convolution for another number of channels is adapted as timm does it, a linear layer fits a convolution
    of the same numbers, and what timm itself converts for the family (position embeddings for another image size,
    older names) is converted.

    Args:
        model: The network, changed in place.
        state: Its weights by name.
        where: Their file, for errors.
        skip_head: Leave the classifier as it is; its tensors may differ or be missing.

    Returns:
        The names of the tensors copied.

    Raises:
        CompError: Which names or shapes differ, and how many.
    """
    wrong, fitted = _fit(model, state, skip_head)
    if wrong:
        convert = getattr(inspect.getmodule(type(model)), "checkpoint_filter_fn", None)
        if convert is not None:
            try:
                converted = convert(dict(state), model)
            except Exception:  # the family's converter is for the family's own files; ours to say what differs
                converted = state
            if isinstance(converted, Mapping):
                again, refitted = _fit(model, converted, skip_head)
                wrong, fitted = (again, refitted) if not again else (wrong, fitted)
    if wrong:
        shown = ", ".join(wrong[:3]) + (f" and {len(wrong) - 3} more" if len(wrong) > 3 else "")
        what = f"does not fit {type(model).__name__}: {len(wrong)} of {len(model.state_dict())} tensors differ: {shown}"
        raise CompError(where, what, "use the network, classes and image size it was saved from", Exit.FILE)
    model.load_state_dict(fitted, strict=False)
    return list(fitted)


def _fit(model: nn.Module, state: Mapping[str, Tensor], skip_head: bool) -> tuple[list[str], dict[str, Tensor]]:
    """What differs, in words, and the tensors in the network's shapes."""
    own = model.state_dict()
    head = head_parameters(model)
    stems = _first_convs(model)
    prefixes = tuple({name.rpartition(".")[0] + "." for name in head}) or ("\0",)
    wrong, fitted = [], {}
    for name, mine in own.items():
        if skip_head and name in head:
            continue
        theirs = state.get(name)
        if theirs is None:
            if not name.endswith("num_batches_tracked"):
                wrong.append(f"{name} is missing")
        elif theirs.shape == mine.shape:
            fitted[name] = theirs
        elif {theirs.ndim, mine.ndim} == {2, 4} and theirs.numel() == mine.numel() and len(theirs) == len(mine):
            fitted[name] = theirs.reshape(mine.shape)
        elif name in stems and theirs.ndim == 4 and theirs.shape[1] == 3 and theirs[:, :1].shape == mine[:, :1].shape:
            fitted[name] = adapt_input_conv(mine.shape[1], theirs)
        else:
            wrong.append(f"{name} is {tuple(theirs.shape)}, wanted {tuple(mine.shape)}")
    extra = [name for name in state if name not in own]
    if skip_head:  # the saved head may have been an MLP, or one with more outputs
        modules = tuple(prefix.rstrip(".").rstrip("0123456789").rstrip(".") + "." for prefix in prefixes)
        extra = [name for name in extra if not name.startswith(modules)]
    return wrong + [f"{name} is not in the network" for name in extra], fitted


def _first_convs(model: nn.Module) -> set[str]:
    stated = getattr(model, "pretrained_cfg", {}).get("first_conv") or ()
    return {f"{name}.weight" for name in ([stated] if isinstance(stated, str) else stated)}
