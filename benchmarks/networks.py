"""Every network of the papers on small photos: `python -m benchmarks.networks`, which writes docs/networks.md.

A cell is one network on one data set, fold 0, 64-pixel crops, trained by the project's own `train_fold` for 60 seconds
of 2 cores (180 for the 101- and 152-layer nets): a few steps are timed first, and the number of epochs is what fits, so
that the one-cycle schedule comes to its end. A finished cell is a JSON file in runs/benchmarks/networks/; a killed
command goes on with the cells that are missing, and a cell whose recipe changed is done again.

    python -m benchmarks.networks --jobs 2                      all cells, two at a time with 2 threads each
    python -m benchmarks.networks --only resnet34_b --data petals
    python -m benchmarks.networks --write-headers               put the petals scores into configs/models/*.yaml
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from comp import config as configs
from comp import files, runs, terminal, yamls
from comp.errors import CompError

THREADS = 2
CACHE = Path("runs") / "benchmarks" / "networks"
DATA = {"petals": {}, "tf-flowers": {"size": 64}}
IMAGE = {"crop": 64, "scale": [64, 80], "test": 68}
COMMON: dict[str, Any] = {
    "image": IMAGE,
    "augment": ["plain"],
    "batch": 32,
    "schedule": {"name": "onecycle", "warmup": 0.0},
    "loss": {"label_smoothing": 0.0},
    "best_by": "last",
    "patience": 0,
    "save_every": 3600.0,
    "workers": 0,  # images are made by the same two threads: a cell takes two cores and no more
    "optim": {"name": "adamw", "lr": 1e-3, "weight_decay": 0.01, "layer_decay": None, "clip": 1.0},
    "model": {"pretrained": False},
}
SLOW: dict[str, Any] = {"optim": {"lr": 2e-4}, "batch": 16}  # nets without BatchNorm

BY_HAND = "## Transfer"  # the page from here on is written by hand and stays
FOR_HEADERS = ("resnet50", "resnet101_a", "resnet101_c", "resnet152_a", "resnet152_c")  # twins of the table's networks

INTRODUCTION = f"""# The papers' networks on small photos

Made by `python -m benchmarks.networks --jobs 2` (resumable: it trains the cells that are missing, then writes this
page). One fold (0 of 5), crops of 64 pixels, from scratch, one recipe for all: AdamW with one-cycle, crop and flip;
batch {COMMON["batch"]} and learning rate {COMMON["optim"]["lr"]:g} with BatchNorm,
batch {SLOW["batch"]} and {SLOW["optim"]["lr"]:g} without.
Seconds are training and validation of all epochs on {THREADS} cores: whole epochs that should fit into 60, and 180 for
the two deepest (their twins with other shortcuts: 60), as a few steps at the start foretell.
Compare rows of as many epochs: resnet50 and resnet50_b are one network. Brackets are 95 % intervals over the choice of
photos. The table shows that each network runs and learns; a minute is
not what it can do."""


@dataclass(frozen=True)
class Cell:
    """One network on one data set.

    Attributes:
        name: Its row in the table, and its file.
        model: MODEL.
        data: The data set.
        changes: Settings that differ from COMMON.
        seconds: The training budget.
    """

    name: str
    model: str
    data: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    seconds: float = 60.0

    @property
    def recipe(self) -> dict[str, Any]:
        """Everything that makes it what it is but the number of epochs."""
        settings = yamls.merge(yamls.merge(COMMON, {"model": {"name": self.model}}), self.changes)
        return {"settings": settings, "data": {"name": self.data, **DATA[self.data]}, "seconds": self.seconds}

    def file(self, home: Path) -> Path:
        """Where its result is kept."""
        return home / CACHE / f"{self.data}.{self.name}.json"


def cells() -> list[Cell]:
    """The table's networks, on each data set; those that only a YAML's score line waits for on petals alone."""
    plain: list[tuple[str, str, dict[str, Any]]] = [
        ("alexnet_2012", "alexnet_2012", SLOW),
        ("alexnet_2012 one group", "alexnet_2012", yamls.merge(SLOW, {"model": {"args": {"groups": 1}}})),
        *((name, name, SLOW) for name in ("vgg_a", "vgg_a_lrn", "vgg_b", "vgg_c", "vgg_d", "vgg_e")),
        ("nin_cifar", "nin_cifar", SLOW),
        ("nin_cifar fc", "nin_cifar", yamls.merge(SLOW, {"model": {"args": {"head": "fc"}}})),
        ("nin_cifar fc_dropout", "nin_cifar", yamls.merge(SLOW, {"model": {"args": {"head": "fc_dropout"}}})),
        ("nin_imagenet", "nin_imagenet", SLOW),
        ("googlenet_2014", "googlenet_2014", SLOW),
        ("googlenet_2014 batch norm", "googlenet_2014", {"model": {"args": {"norm": "batch"}}}),
        ("plain18", "plain18", {}),
        ("plain34", "plain34", {}),
        *((f"resnet{depth}_{option}", f"resnet{depth}_{option}", {}) for depth in (18, 34, 50) for option in "abc"),
        ("prelunet14", "prelunet14", SLOW),
        ("prelunet14 relu", "prelunet14", yamls.merge(SLOW, {"model": {"activation": "relu"}})),
        ("prelunet19", "prelunet19", SLOW),
        ("prelunet19 relu", "prelunet19", yamls.merge(SLOW, {"model": {"activation": "relu"}})),
    ]
    deep: list[tuple[str, str, dict[str, Any]]] = [
        (f"resnet{depth}_{option}", f"resnet{depth}_{option}", {}) for depth in (101, 152) for option in "bac"
    ]
    return [
        Cell(name.replace(" ", "-"), model, data, changes, 60.0 if model in FOR_HEADERS else seconds)
        for data in DATA
        for group, seconds in (([*plain, ("resnet50", "resnet50", {})], 60.0), (deep, 180.0))
        for name, model, changes in group
        if data == "petals" or model not in FOR_HEADERS
    ]


def data_config(home: Path, name: str, root: str | None) -> configs.DataConfig:
    """The data set's config at 64 pixels where it has them, from another root if given."""
    return configs.load_data(home, name, {**DATA[name], **({"root": root} if root else {})})


def train_cell(cell: Cell, root: str | None) -> None:
    """Train one cell and write its file; this runs in a process of its own."""
    import numpy as np
    import torch

    from comp import metrics, predictions
    from comp.commands import common
    from comp.memory import keep_pages
    from comp.training import building
    from comp.training.train import train_fold

    torch.set_num_threads(THREADS)
    keep_pages()  # as training does: the speed is measured before it begins
    home = runs.home()
    data = data_config(home, cell.data, root)
    dataset = common.prepared(home, data)
    folds = common.split(home, data, dataset)
    run = runs.Run(home / CACHE, cell.data, cell.name)
    fold = run.fold(0)
    config, _ = configs.load_run(home, cell.model, data, cell.recipe["settings"])
    rows = building.rows_of(dataset, folds, fold)
    if fold.config_file.exists() and fold.last.exists():
        config = fold.config()  # killed in the middle: it goes on
        parameters, per_image = _size(home, config, dataset, fold), math.nan
    else:
        parameters, per_image = _speed(home, config, dataset, rows, fold, data.symmetries)
        epoch = per_image * (len(rows.train) + len(rows.val) / 3)
        config = config.model_copy(update={"epochs": max(1, int(cell.seconds / epoch))})
    began = time.monotonic()
    train_fold(home, config, data, dataset, folds, fold)
    wall = time.monotonic() - began
    found = predictions.load(fold.predictions("oof", "center"))
    label_of = dict(zip(dataset.ids, np.asarray(dataset.labels).tolist(), strict=True))
    labels = np.array([label_of[image_id] for image_id in found.ids.tolist()], dtype=np.int64)
    columns, log = files.read_csv(fold.log)
    last = dict(zip(columns, log[-1], strict=True))
    times = files.read_csv(fold.path / "times.csv")[1]
    result = {
        "recipe": cell.recipe,
        "parameters": parameters,
        "epochs": len(log),
        "steps": len(log) * -(-len(rows.train) // config.batch),
        "train_images": len(rows.train),
        "val_images": len(labels),
        "seconds": round(sum(float(row[1]) + float(row[2]) for row in times), 1),
        "wall": round(wall, 1),
        "macro_f1": asdict(metrics.interval("macro_f1", labels, found.probs)),
        "accuracy": asdict(metrics.interval("accuracy", labels, found.probs)),
        "largest": float(np.bincount(labels).max() / len(labels)),
        "train_loss": float(last["train_loss"]),
        "train_accuracy": float(last["train_accuracy"]),
        "watch": files.read_text(fold.path / "watch.txt").splitlines() if (fold.path / "watch.txt").exists() else [],
        "machine": machine(),
    }
    files.write_json(cell.file(home), result)
    shutil.rmtree(run.path)  # weights and checkpoints of a VGG are half a gigabyte


def _size(home: Path, config: configs.RunConfig, dataset: Any, fold: runs.Fold) -> int:
    from comp.training import building

    return sum(p.numel() for p in building.build_network(home, config, dataset, fold)[0].parameters())


def _speed(
    home: Path, config: configs.RunConfig, dataset: Any, rows: Any, fold: runs.Fold, symmetries: Any
) -> tuple[int, float]:
    """Parameters, and seconds per training image: a few steps and the loading of a few images on the same cores."""
    import torch

    from comp.inference.precision import resolve_precision
    from comp.training import building
    from comp.training.probes import trial

    network, _, _ = building.build_network(home, config, dataset, fold)
    images = building.training_images(config, dataset, rows, symmetries)
    began = time.monotonic()
    some = torch.stack([images[int(row), 0][0] for row in rows.train[: config.batch]])
    load = (time.monotonic() - began) / len(some)
    labels = torch.as_tensor(dataset.labels[rows.train[: config.batch]])
    pixels = (some.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)
    dtype = resolve_precision(config.precision, torch.device("cpu"))
    network.to(memory_format=torch.channels_last)

    def seconds(steps: int) -> float:
        began = time.monotonic()
        trial(network, [(pixels, labels)], config.optim, steps=steps, dtype=dtype)
        return time.monotonic() - began

    seconds(1)  # the first step of a process is no measure
    short = seconds(2)  # making an optimizer is in both
    step = max(seconds(7) - short, 0.01) / 5
    if step < 0.5:
        step = max(seconds(42) - short, 0.01) / 40
    step /= len(some)
    return sum(p.numel() for p in network.parameters()), step + load


def machine() -> str:
    """What the figures were measured on."""
    cpu = platform.processor() or platform.machine()
    try:
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
        cpu = found[1].strip() if found else cpu
    except OSError:
        pass
    return f"{THREADS} cores of {cpu}"


def finished(cell: Cell, home: Path) -> dict[str, Any] | None:
    """A cell's result, if there is one of this recipe."""
    path = cell.file(home)
    if not path.exists():
        return None
    result: dict[str, Any] = files.read_json(path)
    return result if result["recipe"] == json.loads(json.dumps(cell.recipe)) else None


def run_all(todo: Sequence[Cell], jobs: int, roots: Mapping[str, str]) -> int:
    """Train cells, `jobs` at a time, each in a process of its own with two threads; how many failed."""
    waiting = list(todo)
    running: dict[int, tuple[Cell, subprocess.Popen[bytes], float]] = {}
    failed = 0
    done = 0
    while waiting or running:
        for slot in range(jobs):
            if slot not in running and waiting:
                cell = waiting.pop(0)
                words = [sys.executable, "-m", "benchmarks.networks", "--cell", cell.data, cell.name]
                words += ["--root", f"{cell.data}={roots[cell.data]}"] if cell.data in roots else []
                environment = {**os.environ, "OMP_NUM_THREADS": str(THREADS)}
                process = subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL)
                running[slot] = (cell, process, time.monotonic())
        for slot, (cell, process, began) in list(running.items()):
            if process.poll() is None:
                continue
            del running[slot]
            done += 1
            result = finished(cell, runs.home())
            failed += result is None
            told = (
                "failed" if result is None else f"accuracy {result['accuracy']['value']:.3f}, {result['epochs']} epochs"
            )
            terminal.say(f"{done}/{len(todo)} {cell.data} {cell.name}: {told}, {time.monotonic() - began:.0f} s")
        time.sleep(0.2)
    return failed


def why(result: Mapping[str, Any]) -> str:
    """Why a network is not above the share of the largest class."""
    epochs = f"{result['epochs']} epoch" + ("s" if result["epochs"] > 1 else "")
    text = f"{epochs} ({result['steps']} steps) fit; training loss {result['train_loss']:.2f}"
    if result["watch"]:
        return f"{text}; the watch: {result['watch'][-1]}"
    if result["train_accuracy"] > result["accuracy"]["value"] + 0.1:
        return f"{text}; it overfits: training accuracy {result['train_accuracy']:.2f}"
    return f"{text}; too few steps for a net of this depth"


def table(home: Path, everything: Sequence[Cell]) -> str:
    """docs/networks.md."""
    lines = [INTRODUCTION]
    for data in DATA:
        rows = [(cell, finished(cell, home)) for cell in everything if cell.data == data]
        known = [(cell, result) for cell, result in rows if result]
        if not known:
            continue
        first = known[0][1]
        lines += [
            "",
            f"## {data}",
            "",
            f"{first['train_images']} photos train, {first['val_images']} are held out; the largest class "
            f"has {100 * first['largest']:.1f} % of those. {first['machine']}. "
            f"{len(known)} of {len(rows)} cells are there.",
            "",
            "| network | parameters | epochs | seconds | macro F1 | accuracy | above the largest class |",
            "|---|--:|--:|--:|--:|--:|---|",
        ]
        for cell, result in known:
            score, accuracy = result["macro_f1"], result["accuracy"]
            above = accuracy["low"] > result["largest"]
            lines.append(
                f"| {cell.name} | {result['parameters']:,} | {result['epochs']} | {result['seconds']:.0f} "
                f"| {score['value']:.3f} [{score['low']:.3f}, {score['high']:.3f}] "
                f"| {accuracy['value']:.3f} [{accuracy['low']:.3f}, {accuracy['high']:.3f}] "
                f"| {'yes' if above else 'no: ' + why(result)} |"
            )
    return "\n".join(lines) + "\n"


def write_headers(home: Path, everything: Sequence[Cell]) -> int:
    """Fill the `# score:` line of each network's YAML with its petals cell; how many were filled."""
    filled = 0
    for cell in everything:
        path = home / "configs" / "models" / f"{cell.name}.yaml"
        result = finished(cell, home)
        if cell.data != "petals" or result is None or not path.exists():
            continue
        score, accuracy = result["macro_f1"], result["accuracy"]
        line = (
            f"# score: macro F1 {score['value']:.3f}, accuracy {accuracy['value']:.3f} on petals fold 0, 64 pixels\n"
            f"#   after {result['seconds']:.0f} s on {result['machine']}, with the recipe of docs/networks.md"
        )
        text = path.read_text()
        new = re.sub(r"^# score:[^\n]*(\n#   [^\n]*)*", lambda _, line=line: line, text, count=1, flags=re.MULTILINE)
        if new != text:
            files.write_text(path, new)
            filled += 1
    return filled


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--jobs", type=int, default=1, help="cells side by side, 2 cores each")
    words.add_argument("--data", nargs="+", choices=sorted(DATA), default=list(DATA), help="data sets")
    words.add_argument("--only", nargs="+", default=None, metavar="NAME", help="rows of the table")
    words.add_argument("--root", action="append", default=[], metavar="SET=PATH", help="where a set's raw files are")
    words.add_argument("--write-headers", action="store_true", help="fill the YAMLs' score lines and stop")
    words.add_argument("--cell", nargs=2, metavar=("SET", "NAME"), help=argparse.SUPPRESS)
    given = words.parse_args()
    roots = dict(text.split("=", 1) for text in given.root)
    everything, home = cells(), runs.home()
    if given.cell:
        cell = next(each for each in everything if [each.data, each.name] == given.cell)
        train_cell(cell, roots.get(cell.data))
        return
    if given.write_headers:
        terminal.say(f"filled the score line of {write_headers(home, everything)} YAMLs")
        return
    wanted = [cell for cell in everything if cell.data in given.data and (not given.only or cell.name in given.only)]
    unknown = set(given.only or ()) - {cell.name for cell in everything}
    if unknown:
        words.error(f"no such row: {', '.join(sorted(unknown))}; choose from {', '.join(c.name for c in everything)}")
    from comp.commands import common

    for name in {cell.data for cell in wanted}:
        data = data_config(home, name, roots.get(name))
        common.split(home, data, common.prepared(home, data))  # once, before the cells need it side by side
    todo = [cell for cell in wanted if finished(cell, home) is None]
    terminal.say(f"{len(wanted) - len(todo)} of {len(wanted)} cells are there, {len(todo)} to do")
    failed = run_all(todo, given.jobs, roots)
    page = home / "docs" / "networks.md"
    _, found, by_hand = (page.read_text() if page.exists() else "").partition(BY_HAND)
    files.write_text(page, table(home, everything) + ("\n" + found + by_hand if found else ""))
    terminal.say("wrote docs/networks.md")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    try:
        main()
    except CompError as error:
        sys.exit(f"error: {error}")
