"""The names of all networks, timm's and the papers', without importing timm or torch (0.02 s instead of 4.5 s)."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

from comp.errors import CompError, Exit, did_you_mean

# Registered by the modules beside this one.
PAPERS = (
    "alexnet_2012",
    "googlenet_2014",
    "nin_cifar",
    "nin_imagenet",
    "plain18",
    "plain34",
    "prelunet14",
    "prelunet19",
    *(f"resnet{depth}_{option}" for depth in (18, 34, 50, 101, 152) for option in "abc"),
    "vgg_a",
    "vgg_a_lrn",
    "vgg_b",
    "vgg_c",
    "vgg_d",
    "vgg_e",
)

_ENTRY = re.compile(rb"^@register_model[^\n]*\n(?:[@#][^\n]*\n)*def (\w+)", re.MULTILINE)


def model_names() -> list[str]:
    """All names that `model.name` may be, sorted; timm's may carry a tag of weights, as in `resnet50.a1_in1k`."""
    found = set(PAPERS)
    spec = find_spec("timm")
    for folder in spec.submodule_search_locations or () if spec else ():
        for path in Path(folder, "models").glob("*.py"):
            found.update(name.decode() for name in _ENTRY.findall(path.read_bytes()))
    return sorted(found)


def check_model_name(name: str) -> None:
    """Refuse a name that no network has (tags of weights are not looked at).

    Raises:
        CompError: With the nearest name.
    """
    names = model_names()
    if name.partition(".")[0] not in names:
        raise CompError(f"model.name = {name}", "there is no such network", did_you_mean(name, names), Exit.CONFIG)
