"""model.safetensors: a trained network with everything needed to build and use it again."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from comp import config, files
from comp.errors import CompError, Exit
from comp.nets.build import build
from comp.runs import Fold

KEY = "comp"  # one key: safetensors writes several in an order that differs between processes
FORMAT = 1


@dataclass(frozen=True)
class Stored:
    """A network read back.

    Attributes:
        network: In evaluation mode, on the device asked for.
        name: Its name in timm's registry.
        classes: Class names in label order.
        image: The geometry it was trained with.
        mean: Of the channels (3), 0 to 1.
        std: Of the channels (3), 0 to 1.
        about: Everything the file says: also run, fold, seed, epoch (from 1), selection (last or best), score, digests.
        digest: SHA-256 of the file.
    """

    network: nn.Module
    name: str
    classes: tuple[str, ...]
    image: config.Image
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    about: Mapping[str, Any]
    digest: str


def describe(
    run: config.RunConfig,
    /,
    *,
    classes: tuple[str, ...],
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    **more: Any,
) -> dict[str, Any]:
    """What is written beside the weights.

    Args:
        run: The run's config; its model and image sections rebuild the network.
        classes: Class names in label order.
        mean: Of the channels, 0 to 1.
        std: Of the channels, 0 to 1.
        **more: Further plain values: where the weights come from, what they scored.
    """
    return {
        "format": FORMAT,
        "network": run.model.name,
        "model": run.model.model_dump(mode="json"),
        "image": run.image.model_dump(mode="json"),
        "classes": list(classes),
        "mean": list(mean),
        "std": list(std),
        **more,
    }


def save_model(path: Path, state: Mapping[str, Tensor], description: Mapping[str, Any]) -> str:
    """Write a network's weights and its description whole.

    Args:
        path: The file.
        state: The weights by name.
        description: From `describe`.

    Returns:
        SHA-256 of the file; the same weights and description give the same bytes.
    """
    # Weights that share memory (tied layers) are written once for each name.
    tensors = {name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in state.items()}
    text = json.dumps(description, sort_keys=True, ensure_ascii=False, allow_nan=False)
    data = save_tensors(tensors, {KEY: text})
    files.write_bytes(path, data)
    return files.digest_bytes(data)


def read_about(path: Path, data: bytes | None = None) -> dict[str, Any]:
    """The description in a weights file.

    Raises:
        CompError: Exit code 4: the file is missing, torn, or not one of ours.
    """
    data = files.read_bytes(path) if data is None else data
    fix = "train the fold again, or copy the file again"
    try:
        length = int.from_bytes(data[:8], "little")
        about = json.loads(json.loads(data[8 : 8 + length])["__metadata__"][KEY])
        if about["format"] != FORMAT:
            raise CompError(path, f"has format {about['format']}, this program reads {FORMAT}", fix, Exit.FILE)
        return dict(about)
    except (ValueError, KeyError, TypeError, RecursionError):
        raise CompError(path, "is torn, or not a model of this program", fix, Exit.FILE) from None


def read_state(path: Path) -> tuple[dict[str, Tensor], dict[str, Any], str]:
    """The weights by name, the description, and the file's SHA-256.

    Raises:
        CompError: Exit code 4: the file is missing, torn, or not one of ours.
    """
    data = files.read_bytes(path)
    about = read_about(path, data)
    try:
        return load_tensors(data), about, files.digest_bytes(data)
    except SafetensorError:
        raise CompError(path, "is torn", "train the fold again, or copy the file again", Exit.FILE) from None


def load_model(source: Fold | Path, device: torch.device | str = "cpu") -> Stored:
    """Build the network of a weights file and load its weights.

    Args:
        source: A fold, for its selected weights, or a file.
        device: Where the network shall be.

    Raises:
        CompError: Exit code 4: the file is missing, torn, not one of ours, or does not fit the network it names.
    """
    path = source.model if isinstance(source, Fold) else source
    if isinstance(source, Fold) and not path.exists():
        raise CompError(source, "has no model yet", f"train it: comp train {source.run.name}", Exit.FILE)
    state, about, digest = read_state(path)
    try:
        section = config.validate(config.Model, about["model"], path)
        image = config.validate(config.Image, about["image"], path)
        classes = tuple(str(name) for name in about["classes"])
        mean = (float(about["mean"][0]), float(about["mean"][1]), float(about["mean"][2]))
        std = (float(about["std"][0]), float(about["std"][1]), float(about["std"][2]))
    except (CompError, KeyError, IndexError, TypeError, ValueError):
        raise CompError(path, "its description is damaged", "train the fold again", Exit.FILE) from None
    section = section.model_copy(update={"init": config.Init()})  # the weights come from the file, none are drawn
    network = build_network(section, classes=len(classes), crop=image.crop, pretrained=False)
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        what = " ".join(str(error).split())[:160]
        raise CompError(path, f"does not fit the network it names ({what})", "train it again", Exit.FILE) from None
    return Stored(network.to(device).eval(), section.name, classes, image, mean, std, about, digest)


def build_network(
    model: config.Model, *, classes: int, crop: int, pretrained: bool | str | None = None, seed: int = 0
) -> nn.Module:
    """Build the network a config's model section describes.

    Args:
        model: The section.
        classes: Number of classes.
        crop: Pixels of a training crop.
        pretrained: Where the weights come from, where that differs from the section.
        seed: Of the weights that are drawn.
    """
    return build(
        model.name,
        num_classes=classes,
        img_size=crop,
        pretrained=model.pretrained if pretrained is None else pretrained,
        drop_rate=model.dropout,
        drop_path=model.drop_path,
        activation=model.activation,
        head=model.head,
        init=model.init.model_dump() if model.init != config.Init() else None,
        args=model.args,
        seed=seed,
    )
