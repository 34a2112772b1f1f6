"""Whatever the counts are: every photo trained on once an epoch and predicted once, and the score is the file's."""

from __future__ import annotations

import json
import sys
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from comp import launch, predictions
from comp.metrics import LOG_FLOOR
from tests.faults import combinations
from tests.faults.combinations import CLASSES, COUNT, Photos
from tests.faults.tiny import PROJECT


def references(labels: np.ndarray, probs: np.ndarray) -> dict[str, float]:  # type: ignore[type-arg]
    """The log's numbers by scikit-learn."""
    from sklearn import metrics

    guesses, every = probs.argmax(1), np.arange(CLASSES)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The y_prob values do not sum to one")  # they do to float32
        loss = metrics.log_loss(labels, probs.clip(LOG_FLOOR, 1).astype(np.float64), labels=every)
    return {
        "val_loss": loss,
        "macro_f1": metrics.f1_score(labels, guesses, labels=np.unique(labels), average="macro", zero_division=0),
        "top1": metrics.accuracy_score(labels, guesses),
        "top5": 1.0,  # of four classes
    }


@pytest.mark.slow
@pytest.mark.parametrize("procs", [1, 2, 3])
def test_ids_and_scores(tmp_path: Path, procs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(PROJECT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    if procs == 1:
        combinations.work(tmp_path, 1)
    else:
        program = (sys.executable, "-m", "tests.faults.combinations")
        launch.start(procs, [str(tmp_path), str(procs)], program)
    seen = json.loads((tmp_path / "seen.json").read_text())
    todo = combinations.combinations(procs)
    assert len(seen) == len(todo) >= COUNT // 3
    for number, (each, everyone) in enumerate(zip(todo, seen, strict=True)):
        assert len(everyone) == procs
        photos = Photos(each.train + each.val)
        uses: Counter[tuple[int, int]] = Counter()
        sizes: dict[tuple[int, int], set[int]] = {}
        counted: Counter[tuple[int, int]] = Counter()
        for process in everyone:
            assert all(len(rows) <= each.micro and shown >= 2 for _, _, _, rows, shown in process["trained"]), each
            for epoch, step, images, rows, _ in process["trained"]:
                uses.update((epoch, row) for row in rows)
                sizes.setdefault((epoch, step), set()).add(images)
                counted[epoch, step] += len(rows)
        assert uses == Counter((epoch, row) for epoch in range(2) for row in range(each.train)), each
        # What each process divides its loss by is the step's real number of images; no step trains on a single one.
        assert sizes == {step: {total} for step, total in counted.items()}, each
        passes = [[step[:2] for step in process["trained"]] for process in everyone]
        assert all(one == passes[0] for one in passes), f"{each}: processes would wait for each other for ever"

        wanted = list(photos.ids[each.train :])
        found = predictions.load(tmp_path / f"{number}.npz")
        assert found.ids.tolist() == wanted
        assert all(process["predicted"] == wanted for process in everyone)
        assert all(process["scores"] == everyone[0]["scores"] for process in everyone)
        expected = references(photos.labels[each.train :], found.probs)
        for name, value in expected.items():
            assert abs(everyone[0]["scores"][name] - value) <= 1e-12, (each, name)


def test_there_are_enough_of_them() -> None:
    assert sum(len(set(combinations.combinations(procs))) for procs in (1, 2, 3)) >= 190
