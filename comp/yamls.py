"""YAML as people write it, and the command line's `key=value` words, as plain values."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from comp import files
from comp.errors import CompError, Exit


class _Loader(yaml.SafeLoader):
    """YAML as people write it: `1e-3` is a number, `no` and `12:30` are text, a repeated key is an error."""

    yaml_implicit_resolvers = {}  # noqa: RUF012 (PyYAML's own name)

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):  # an alias can blow a small file up to gigabytes
            raise yaml.MarkedYAMLError(
                problem="anchors and aliases are not used here",
                problem_mark=self.peek_event().start_mark,  # type: ignore[no-untyped-call]
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        mapping: dict[Any, Any] = {}
        for key_node, value_node in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, str):
                raise yaml.MarkedYAMLError(problem=f"the key {key!r} is not text", problem_mark=key_node.start_mark)
            if key in mapping:
                raise yaml.MarkedYAMLError(problem=f"the key '{key}' stands twice", problem_mark=key_node.start_mark)
            mapping[key] = self.construct_object(value_node, deep=deep)
        return mapping


for _tag, _pattern, _first in (
    ("tag:yaml.org,2002:bool", r"true|false|True|False", "tfTF"),
    ("tag:yaml.org,2002:null", r"null|~|", ["n", "~", ""]),
    ("tag:yaml.org,2002:int", r"[-+]?(0|[1-9][0-9_]*)", "-+0123456789"),
    (
        "tag:yaml.org,2002:float",
        r"[-+]?([0-9][0-9_]*\.[0-9_]*|\.[0-9]+)([eE][-+]?[0-9]+)?|[-+]?[0-9]+[eE][-+]?[0-9]+|[-+]?\.inf|\.nan",
        "-+0123456789.",
    ),
):
    _Loader.add_implicit_resolver(_tag, re.compile(rf"^(?:{_pattern})$"), list(_first))


def parse_yaml(text: str, where: object) -> Any:
    """Parse YAML text; what it cannot be is one line with file and line number."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f" line {mark.line + 1}" if mark else ""
        raise CompError(
            where, f"{error.problem or 'is not YAML'}{line and ' in' + line}", "mend the line", Exit.CONFIG
        ) from None
    except (yaml.YAMLError, ValueError, RecursionError, TypeError) as error:
        raise CompError(where, f"is not YAML ({str(error).splitlines()[0]})", "mend it", Exit.CONFIG) from None


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file that holds keys and values (an empty one holds none)."""
    value = parse_yaml(files.read_text(path, Exit.CONFIG), path)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise CompError(path, "must hold keys and values", "write `key: value` lines", Exit.CONFIG)
    return value


def parse_overrides(words: Sequence[str]) -> dict[str, Any]:
    """`["optim.lr=0.05", "epochs=3"]` as nested keys; values are read as YAML.

    Raises:
        CompError: A word without `=`, a key given twice, or a key both as a value and as a section.
    """
    nested: dict[str, Any] = {}
    for word in words:
        key, equals, text = word.partition("=")
        parts = key.split(".")
        if not equals or not all(re.fullmatch(r"\w+", part) for part in parts):
            raise CompError(f"argument {word!r}", "is not key=value", "write e.g. optim.lr=0.05", Exit.USAGE)
        here = nested
        for part in parts[:-1]:
            here = here.setdefault(part, {})
            if not isinstance(here, dict):
                raise CompError(f"argument {word!r}", f"'{part}' has a value already", "give it once", Exit.USAGE)
        if parts[-1] in here:
            raise CompError(f"argument {word!r}", "is given twice", "give it once", Exit.USAGE)
        here[parts[-1]] = parse_yaml(text, f"argument {word!r}")
    return nested


def merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the keys of `over`; sections are merged key by key, lists and `model.args` values replaced."""
    merged = dict(base)
    for key, value in over.items():
        old = merged.get(key)
        merged[key] = merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged
