"""The commands that work from prediction files alone, on a competition of full size: `python -m benchmarks.files`.

Draws a data set of the flower competition's size (104 classes, 16,465 labelled and 7,382 test photos, 16 pixels) and
the prediction files of 40 runs of 5 folds, 20 of them with test predictions, into a folder kept for the next time.
Then times the commands as a user waits for them, the start of Python included; the median of three. About 700 MB.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from comp import terminal
from comp.commands import truths
from comp.commands.prepare import prepare
from tests.worlds import World

DATA = """\
reader: tfrecords
size: 16
draw: {classes: 104, train: 12753, val: 3712, test: 7382, size: 16}
folds: {k: 5}
"""
RUNS, MEMBERS = 40, 20


def draw(home: Path) -> None:
    """The data set and the runs, where they are not there yet."""
    config = home / "configs" / "data" / "big.yaml"
    config.parent.mkdir(parents=True, exist_ok=True)
    config.write_text(DATA)
    os.environ["COMP_HOME"] = str(home)
    prepare("big")
    _, _, _, truth = truths.of_set("big")
    made = World(home, truth, np.random.default_rng(0).integers(0, 104, len(truth.test_ids)))
    for number in range(RUNS):
        name = f"run{number:02}"
        if not (home / "runs" / "big" / name / "fold4" / "oof.flip.npz").exists():
            splits = ("oof", "test") if number < MEMBERS else ("oof",)
            made.run(name, skill=3.0 + number / RUNS, seed=number % 3, splits=splits, recipe=f"net{number // 3}")


def seconds(home: Path, words: list[str]) -> tuple[float, float]:
    """Wall time of `comp` with these words and processor time of it, medians of three."""
    walls, busy = [], []
    for _ in range(3):
        before, began = os.times(), time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "comp", *words],
            env={**os.environ, "COMP_HOME": str(home)},
            stdout=subprocess.DEVNULL,
            check=True,
        )
        walls.append(time.perf_counter() - began)
        after = os.times()
        busy.append(after.children_user + after.children_system - before.children_user - before.children_system)
    return statistics.median(walls), statistics.median(busy)


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "comp-files", help="kept")
    home = words.parse_args().folder
    home.mkdir(parents=True, exist_ok=True)
    draw(home)
    members = [f"run{number:02}" for number in range(MEMBERS)]
    rows = []
    for what, command in (
        (f"comp scores, {RUNS} runs × 5 folds", ["scores", "--data", "big"]),
        (f"comp submit, vote of {MEMBERS}", ["submit", *members, "--data", "big", "--name", "vote"]),
        (f"comp submit, mean of {MEMBERS}", ["submit", *members, "--data", "big", "--rule", "mean", "--name", "mean"]),
        (
            f"comp submit, select of {MEMBERS}",
            ["submit", *members, "--data", "big", "--rule", "select", "--name", "select"],
        ),
        ("comp compare run00 run39", ["compare", "run00", "run39", "--data", "big"]),
        ("comp --help", ["--help"]),
    ):
        wall, busy = seconds(home, command)
        rows.append((what, f"{wall:.2f}", f"{busy:.2f}"))
    title = f"104 classes, 16,465 labelled and 7,382 test photos, {len(os.sched_getaffinity(0))} cores"
    terminal.table(("command", "s wall", "s processor"), rows, title=title)


if __name__ == "__main__":
    main()
