"""Drawn data sets and runs: prediction files as training would write them, made in milliseconds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from comp import config, files
from comp.ensembling.truth import Truth
from comp.predictions import Predictions

DATA_DIGEST = files.digest_bytes(b"data")
FOLDS_DIGEST = files.digest_bytes(b"folds")


@dataclass
class World:
    """A data set of drawn labels under `home`; `run` writes a run's files into it."""

    home: Path
    truth: Truth
    test_labels: np.ndarray

    def draw(self, labels: np.ndarray, skill: float, rng: np.random.Generator) -> np.ndarray:
        """Probabilities (N, C) float32 that favour the true label by `skill` on the logit scale."""
        logits = rng.normal(size=(len(labels), len(self.truth.classes)))
        logits[np.arange(len(labels)), labels] += skill
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        return (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)

    def run(
        self,
        name: str,
        *,
        folds: Sequence[int] | None = None,
        skill: float = 2.0,
        seed: int = 0,
        views: str = "flip",
        recipe: str = "resnet34",
        selection: str = "last",
        header: Mapping[str, Any] | None = None,
        splits: Sequence[str] = ("oof", "test"),
    ) -> Path:
        """Write a run of drawn predictions, its config, weights and log; returns its folder."""
        rng = np.random.default_rng([seed, *name.encode()])
        run_config = config.RunConfig(seed=seed, model=config.Model(name=recipe))
        for fold in self.truth.numbers if folds is None else folds:
            folder = self.home / "runs" / self.truth.data / name / f"fold{fold}"
            weights = f"weights of {name} {fold} {seed}".encode()
            files.write_text(folder / "config.yaml", config.dump(run_config))
            files.write_bytes(folder / "model.safetensors", weights)
            curve = [[e, 0.1 * e + 0.05 * skill, 1.0 / e] for e in range(1, 6)]
            files.write_csv(folder / "log.csv", ("epoch", "macro_f1", "val_loss"), curve)
            for split in splits:
                ids = {"oof": self.truth.ids_of(fold), "test": self.truth.test_ids, "val": self.truth.val}[split]
                if split == "test":
                    labels = self.test_labels
                else:
                    known = self.truth.labels if split == "oof" else self.truth.val
                    labels = np.array([known[i] for i in ids], dtype=np.int64)
                said = {
                    "run": name,
                    "fold": fold,
                    "views": views,
                    "checkpoint": files.digest_bytes(weights),
                    "config": run_config.digest(),
                    "data": self.truth.data_digest,
                    "folds": self.truth.folds_digest,
                    "selection": selection,
                    "seed": seed,
                    "recipe": run_config.recipe(),
                    "epoch": 5,
                    "ms_per_image": 2.0,
                    **(header or {}),
                }
                order = rng.permutation(len(labels))
                Predictions(
                    np.array(list(ids))[order],
                    self.draw(labels, skill, rng)[order],
                    np.array(self.truth.classes),
                    {key: value for key, value in said.items() if value is not None},
                ).save(folder / f"{split}.{views}.npz")
        return self.home / "runs" / self.truth.data / name


def world(
    home: Path,
    *,
    data: str = "drawn",
    classes: int = 5,
    photos: int = 300,
    test: int = 40,
    folds: int = 5,
    val: int = 0,
    seed: int = 0,
) -> World:
    """A data set of drawn labels, without pixels."""
    rng = np.random.default_rng(seed)
    (home / "configs" / "data").mkdir(parents=True, exist_ok=True)
    labels = np.concatenate([np.arange(classes), rng.integers(0, classes, photos - classes)])
    ids = [f"{i:06x}" for i in rng.permutation(16**5)[: photos + test + val]]
    test_labels = rng.integers(0, classes, test)
    truth = Truth(
        data=data,
        classes=tuple(f"class {c}" for c in range(classes)),
        labels={i: int(label) for i, label in zip(ids[:photos], labels, strict=True)},
        folds={i: n % folds for n, i in enumerate(ids[:photos])},
        test_ids=tuple(ids[photos : photos + test]),
        data_digest=DATA_DIGEST,
        folds_digest=FOLDS_DIGEST,
        groups={i: i for i in ids},
        val={i: int(rng.integers(0, classes)) for i in ids[photos + test :]},
    )
    return World(home, truth, test_labels)
