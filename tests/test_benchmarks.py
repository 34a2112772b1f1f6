"""The benchmark that fills the score lines: its cells are those of the networks, its table says what it found."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm

from benchmarks import networks
from comp.nets import build  # noqa: F401  (registers the papers' networks)


def _result(cell: networks.Cell, low: float) -> dict[str, Any]:
    score = {"value": low + 0.05, "se": 0.02, "low": low, "high": low + 0.1}
    return {
        "recipe": json.loads(json.dumps(cell.recipe)),
        "parameters": 1_234_567,
        "epochs": 2,
        "steps": 90,
        "train_images": 1440,
        "val_images": 360,
        "seconds": 58.4,
        "macro_f1": score,
        "accuracy": score,
        "largest": 0.25,
        "train_loss": 2.0,
        "train_accuracy": 0.3,
        "watch": [],
        "machine": "2 cores of a machine",
    }


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Two finished cells, one above the largest class and one not."""
    for name, low in (("plain18", 0.3), ("vgg_e", 0.2)):
        cell = next(cell for cell in networks.cells() if (cell.data, cell.name) == ("petals", name))
        cell.file(tmp_path).parent.mkdir(parents=True, exist_ok=True)
        cell.file(tmp_path).write_text(json.dumps(_result(cell, low)))
    return tmp_path


def test_cells_are_networks_that_there_are(project: Path) -> None:
    everything = networks.cells()
    assert len({(cell.data, cell.name) for cell in everything}) == len(everything)
    assert all(timm.is_model(cell.model) for cell in everything)
    with_yaml = {path.stem for path in (project / "configs" / "models").glob("*.yaml")}
    measured = {cell.name for cell in everything if cell.data == "petals"}
    assert with_yaml - measured == {"resnet34", "resnet50-pretrained"}  # have score lines of their own


def test_a_network_that_is_not_above_the_largest_class_says_why(home: Path) -> None:
    lines = networks.table(home, networks.cells()).splitlines()
    fine, poor = (next(line for line in lines if line.startswith(f"| {name} ")) for name in ("plain18", "vgg_e"))
    assert fine == "| plain18 | 1,234,567 | 2 | 58 | 0.350 [0.300, 0.400] | 0.350 [0.300, 0.400] | yes |"
    assert "no: 2 epochs (90 steps) fit; training loss 2.00" in poor


def test_a_cell_of_another_recipe_is_done_again(home: Path) -> None:
    cell = next(cell for cell in networks.cells() if (cell.data, cell.name) == ("petals", "plain18"))
    assert networks.finished(cell, home)
    other = json.loads(cell.file(home).read_text())
    other["recipe"]["settings"]["batch"] = 7
    cell.file(home).write_text(json.dumps(other))
    assert networks.finished(cell, home) is None


def test_score_lines_are_replaced_whole(home: Path) -> None:
    path = home / "configs" / "models" / "plain18.yaml"
    path.parent.mkdir(parents=True)
    path.write_text("# make train MODEL=plain18\n# score: old\n#   and its second line\n# a remark\nbatch: 8\n")
    assert networks.write_headers(home, networks.cells()) == 1
    assert path.read_text().splitlines() == [
        "# make train MODEL=plain18",
        "# score: macro F1 0.350, accuracy 0.350 on petals fold 0, 64 pixels",
        "#   after 58 s on 2 cores of a machine, with the recipe of docs/networks.md",
        "# a remark",
        "batch: 8",
    ]
    assert networks.write_headers(home, networks.cells()) == 0
