"""A data set of 60 tiny pictures in three colours, and a run on it that takes half a second."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from comp import config, runs, yamls
from comp.config import DataConfig, RunConfig
from comp.data.manifest import Dataset
from comp.runs import Fold

CLASSES = ("red", "green", "blue")
BASE = {
    "model": {"name": "test_resnet", "pretrained": False},
    "image": {"crop": 32},
    "optim": {"lr": 2e-3, "layer_decay": None},
    "epochs": 3,
    "batch": 16,
    "workers": 0,
    "precision": "fp32",
}


class Tiny:
    """What `train_fold` takes: call it with `*tiny.arguments(...)`."""

    def __init__(self, home: Path, dataset: Dataset):
        self.home, self.dataset = home, dataset
        self.data = config.validate(DataConfig, {"name": "tiny", "reader": "csv"}, "test")
        self.folds = {image_id: row // len(CLASSES) % 3 for row, image_id in enumerate(dataset.ids)}

    def config(self, **over: Any) -> RunConfig:
        return config.validate(RunConfig, yamls.merge(BASE, over), "test")

    def fold(self, name: str = "run", home: Path | None = None, number: int = 0) -> Fold:
        return runs.Run(home or self.home, "tiny", name).fold(number)

    def arguments(self, fold: Fold, **over: Any) -> tuple[Any, ...]:
        return fold.run.home, self.config(**over), self.data, self.dataset, self.folds, fold


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    import cv2

    root = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    count = 60
    ids = tuple(f"im{number:02d}" for number in range(count))
    labels = np.arange(count, dtype=np.int64) % len(CLASSES)
    lengths = []
    for image_id, label in zip(ids, labels, strict=True):
        image = rng.integers(0, 120, (36, 36, 3), dtype=np.uint8)
        image[..., 2 - label] += 60
        data = cv2.imencode(".png", image)[1].tobytes()
        (root / f"{image_id}.png").write_bytes(data)
        lengths.append(len(data))
    side = np.full(count, 36, dtype=np.int64)
    return Dataset(
        name="tiny",
        size="native",
        root=root,
        classes=CLASSES,
        ids=ids,
        labels=labels,
        splits=("train",) * count,
        files=tuple(f"{image_id}.png" for image_id in ids),
        offsets=np.zeros(count, dtype=np.int64),
        lengths=np.array(lengths, dtype=np.int64),
        widths=side,
        heights=side,
        sha1=ids,
        mean=(0.4, 0.4, 0.4),
        std=(0.2, 0.2, 0.2),
        data_digest="d" * 64,
        pixels_digest="p" * 64,
        bad=(),
        leaks=(),
        report=(),
        max_pixels=10**6,
        settings={},
    )


@pytest.fixture
def tiny(pictures: Dataset, tmp_path: Path) -> Tiny:
    return Tiny(tmp_path, pictures)


@pytest.fixture
def stops_after() -> Callable[[int], Any]:
    """A `Stopping` that asks to stop, with exit code 75, after so many looks."""
    from comp.errors import Exit
    from comp.training.stopping import Stopping

    class After(Stopping):
        def __init__(self, looks: int):
            super().__init__()
            self.looks = looks

        def asked(self) -> Exit | None:
            self.looks -= 1
            return Exit.TIME if self.looks < 0 else None

    return After
