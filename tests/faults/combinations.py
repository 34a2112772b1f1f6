"""Combinations of image count, batch and processes: who trains on what, who predicts what. Run in each process."""

from __future__ import annotations

import json
import random
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

COUNT = 201  # over launches with 1, 2 and 3 processes
CLASSES = 4


@dataclass(frozen=True)
class Combination:
    """Photos to train on and to predict, images per step and per forward pass, loader workers."""

    train: int
    val: int
    batch: int
    micro: int
    workers: int


def combinations(procs: int) -> list[Combination]:
    """A third of them; counts below, at and above multiples of the batch, and below the number of processes."""
    rng = random.Random(procs)
    found = []
    for _ in range(COUNT // 3):
        batch = rng.choice((1, 2, 3, 4, 5, 8, 13, 32))
        train = max(
            2, rng.choice((2, 3, 4, batch, batch + 1, 2 * batch - 1, 2 * batch + 1, 3 * batch, rng.randrange(2, 60)))
        )
        val = rng.choice((1, 2, 3, 4, 7, 30, rng.randrange(1, 60)))
        found.append(Combination(train, val, batch, rng.choice((1, 2, 3, batch)), rng.choice((0, 0, 0, 0, 2))))
    return found


class Photos:
    """Photos whose pixels are their row number."""

    bad = ()

    def __init__(self, count: int):
        self.ids = tuple(f"id{(row * 7919) % 10007:05d}" for row in range(count))
        self.labels = np.array([row * row % CLASSES for row in range(count)], dtype=np.int64)
        self.widths = self.heights = np.full(count, 8)

    def reader(self) -> Photos:
        return self

    def pixels(self, row: int) -> Any:
        return np.full((8, 8, 3), (row * 37 % 251, row % 256, row // 256), dtype=np.uint8)


def work(folder: Path, procs: int) -> None:
    """Train and predict by all combinations; the first process writes down what all of them saw."""
    import torch

    from comp import config, predictions
    from comp.data.loader import batches
    from comp.inference import spec
    from comp.inference.evaluate import evaluate
    from comp.training import summary
    from comp.training.plan import Plan
    from comp.training.processes import Team

    if procs > 1:
        torch.distributed.init_process_group("gloo")
    team = Team(60)

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.head = torch.nn.Linear(3, CLASSES)

        def forward(self, images: torch.Tensor) -> Any:
            return 9 * self.head(images.mean((2, 3)))

    network = Net().eval()
    seen = []
    for number, each in enumerate(combinations(procs)):
        photos: Any = Photos(each.train + each.val)
        rows = np.arange(each.train)[::-1]
        plan = Plan(rows, [photos.ids[row] for row in rows], photos.labels[rows], each.batch, 2, 1, 0)
        images: Any = SimpleNamespace(
            augment=SimpleNamespace(crop=8),
            dataset=photos,
            pixels=lambda key, p=photos: p.pixels(key[0]).transpose(2, 0, 1),
        )
        micros = list(plan.micros(0, 0, team.rank, team.world, each.micro))
        made = batches(images, [micro.keys for micro in micros], each.workers)
        trained = []
        for micro, (pixels, labels, got) in zip(micros, made, strict=True):
            counted = got.tolist()[: micro.counted]
            assert pixels[:, 1, 0, 0].tolist() == got.tolist()
            assert labels.tolist() == photos.labels[got.numpy()].tolist()
            trained.append([micro.epoch, micro.step, micro.images, counted, len(got)])
        val = np.arange(each.train, each.train + each.val)
        found = evaluate(
            network,
            photos,
            val,
            spec.parse("center", ()),
            name="net",
            image=config.Image(crop=8, test=8),
            mean=(0.5, 0.5, 0.5),
            std=(0.2, 0.2, 0.2),
            precision="fp32",
            device=torch.device("cpu"),
            batch=4,
            fold=False,
            rank=team.rank,
            world=team.world,
            gather=team.gather,
        )
        scores = summary.scores(photos.labels[val], found.probs)
        everyone = team.gather({"trained": trained, "scores": scores, "predicted": found.ids.tolist()})
        seen.append(everyone)
        if team.first:
            classes = np.array([f"class {label}" for label in range(CLASSES)])
            predictions.Predictions(found.ids, found.probs, classes).save(folder / f"{number}.npz")
    if team.first:
        (folder / "seen.json").write_text(json.dumps(seen))
    if procs > 1:
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    from comp import launch

    work(Path(sys.argv[1]), int(sys.argv[2]))
    launch.leave(0)
