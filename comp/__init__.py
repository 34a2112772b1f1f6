"""A toolkit for image-classification competitions. Every verb of the command line is a plain function here too:

import comp
comp.train("resnet34", fold=0)
comp.submit()
"""

from __future__ import annotations

import importlib
from typing import Any

from comp.errors import CompError, Exit

__version__ = "0.1.0"
__all__ = ["CompError", "Exit", "__version__"]


def __getattr__(name: str) -> Any:
    """A verb's function; its module is imported at the first use."""
    cli = importlib.import_module("comp.cli")
    for verb, entry in cli.VERBS.items():
        if name == (entry.function or verb):
            return cli.command(verb)
    raise AttributeError(f"module 'comp' has no attribute {name!r}")


def __dir__() -> list[str]:
    cli = importlib.import_module("comp.cli")
    return sorted([*__all__, *(entry.function or verb for verb, entry in cli.VERBS.items())])
