"""The floors: nothing imports upwards, rooms on one floor stay apart, the torch-free half stays torch-free."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

FLOORS = [
    {"errors", "files", "memory", "terminal", "yamls"},
    {"runs", "predictions", "metrics", "config", "launch"},
    {"data", "nets"},
    {"inference", "ensembling"},
    {"training", "reporting"},
    {"commands", "cli", "__main__", "__init__"},
]
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
BASE_MAY_LOOK_SIDEWAYS = {0, 1, 5}  # single files, not rooms
HEAVY = {"torch", "timm", "torchvision", "accelerate", "albumentations"}
SLOW_TO_IMPORT = {"sklearn", "scipy", "pandas", "cv2", "rich"}
TORCH_FREE_ROOMS = {"ensembling", "reporting", "cli", "errors", "files", "terminal", *FLOORS[1]}


def imports(path: Path) -> list[tuple[str, bool]]:
    """Modules a file imports, and whether it does so at the top (rather than inside a function)."""
    tree = ast.parse(path.read_text())
    inside = {id(inner) for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) for inner in ast.walk(node)}
    checking = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    found = []
    for node in ast.walk(tree):
        if id(node) in checking:
            continue
        if isinstance(node, ast.Import):
            found += [(alias.name, id(node) not in inside) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            names = [f"comp.{alias.name}" for alias in node.names] if module == "comp" else [module]
            found += [(name, id(node) not in inside) for name in names]
    return found


def sources(project: Path) -> list[Path]:
    return sorted((project / "comp").rglob("*.py"))


def room_of(path: Path, project: Path) -> str:
    return path.relative_to(project / "comp").parts[0].removesuffix(".py")


def test_every_room_has_a_floor(project: Path) -> None:
    assert {room_of(path, project) for path in sources(project)} <= set(FLOOR)


def test_nothing_imports_upwards_or_sideways(project: Path) -> None:
    wrong = []
    for path in sources(project):
        here = room_of(path, project)
        for module, _ in imports(path):
            if not module.startswith("comp."):
                continue
            there = module.split(".")[1]
            if there not in FLOOR:
                continue  # a name of comp/__init__ itself, such as comp.CompError
            sideways = FLOOR[there] == FLOOR[here] and there != here and FLOOR[here] not in BASE_MAY_LOOK_SIDEWAYS
            if FLOOR[there] > FLOOR[here] or sideways:
                wrong.append(f"{path.relative_to(project)} imports {module}")
    assert not wrong


def test_the_torch_free_half_names_no_torch(project: Path) -> None:
    wrong = []
    for path in sources(project):
        name = path.relative_to(project / "comp").as_posix()
        if room_of(path, project) not in TORCH_FREE_ROOMS:
            continue
        for module, at_top in imports(path):
            top = module.split(".")[0]
            if top in HEAVY or (at_top and top in SLOW_TO_IMPORT) or module.startswith("comp.nets.store"):
                wrong.append(f"{name} imports {module}")
    assert not wrong


LIGHT = """
import sys
import {module}
heavy = {heavy!r} & set(sys.modules)
sys.exit(f"{module} imports {{sorted(heavy)}}" if heavy else 0)
"""


@pytest.mark.parametrize(
    ("modules", "heavy"),
    [
        (("comp.cli", "comp", "comp.runs", "comp.predictions", "comp.metrics"), HEAVY | SLOW_TO_IMPORT),
        (("ensembling", "reporting"), HEAVY | SLOW_TO_IMPORT),
        (("comp.commands.scores", "comp.commands.submit", "comp.commands.compare"), HEAVY | SLOW_TO_IMPORT),
        (("comp.commands.train", "comp.commands.prepare", "comp.commands.folds", "comp.inference.spec"), HEAVY),
    ],
)
def test_what_an_import_really_loads(project: Path, modules: tuple[str, ...], heavy: set[str]) -> None:
    """By running it: the walk above cannot see what a third library brings along."""
    wanted = []
    for module in modules:
        folder = project / "comp" / module
        found = [f"comp.{module}.{path.stem}" for path in folder.glob("[a-z]*.py")] if folder.is_dir() else [module]
        wanted += found
    code = LIGHT.format(module=", ".join(wanted), heavy=heavy)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=project)
    assert done.returncode == 0, done.stderr


def test_every_room_says_what_it_is(project: Path) -> None:
    for path in sources(project):
        assert ast.get_docstring(ast.parse(path.read_text())), f"{path} has no docstring"
