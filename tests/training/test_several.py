"""Two real processes on the CPU, without the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from comp import launch, predictions
from comp.errors import CompError, Exit

pytestmark = pytest.mark.slow
Tiny = Any  # conftest.Tiny

CHILD = """
import json, os, pickle, sys
from pathlib import Path
from comp import cli, launch, runs
from comp.errors import CompError
from comp.training import building, loop, step
from comp.training.train import train_fold
launch.follow_parent()
arguments, fault = pickle.loads(Path({arguments!r}).read_bytes()), {fault!r}
rank = os.environ.get("RANK", "0")
plain = step.Trainee.forward_backward
seen = []

def forward_backward(self, pixels, labels, micro):
    global trainee
    trainee = self
    seen.append([micro.epoch, micro.step, [key[0] for key in micro.keys[:micro.counted]]])
    loss, right = plain(self, pixels, labels, micro)
    if fault == "nan" and rank == "1" and (micro.epoch, micro.step) == (1, 1):
        loss = loss * float("nan")
    return loss, right

step.Trainee.forward_backward = forward_backward
if fault == "memory" and rank == "1":
    import torch
    zeros = torch.zeros
    def small(*size, **rest):
        if size and len(size) == 4 and size[0] > 3 and size[2] > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return zeros(*size, **rest)
    torch.zeros = small
code = 0
try:
    train_fold(*arguments)
except CompError as error:
    print("error:", error, file=sys.stderr)
    code = int(error.code)
finally:
    Path({out!r} + rank).write_text(json.dumps(seen))
    weights = [[p.double().sum().item() for p in each.parameters()] for each in (trainee.network, trainee.weights)]
    Path({weights!r} + rank).write_text(json.dumps(weights))
launch.leave(code)
sys.exit(code)
"""


def run(tiny: Tiny, procs: int, fault: str = "", **over: Any) -> tuple[Any, list[Any]]:
    """Train in so many processes; the fold, and what each process saw."""
    import pickle

    fold = tiny.fold(home=tiny.home / f"{procs}{fault}")
    fold.path.mkdir(parents=True)
    arguments = fold.path / "arguments"
    arguments.write_bytes(pickle.dumps(tiny.arguments(fold, **over)))
    code = CHILD.format(
        arguments=str(arguments), out=str(fold.path / "seen"), weights=str(fold.path / "weights"), fault=fault
    )
    try:
        if procs > 1:
            launch.start(procs, [code], (sys.executable, "-c"))
        else:
            subprocess.run([sys.executable, "-c", code], check=True)
    finally:
        seen = [json.loads(path.read_text()) for path in sorted(fold.path.glob("seen*"))]
    return fold, seen


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "gpu_count", lambda: 0)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def batches(seen: list[Any]) -> dict[tuple[int, int], list[int]]:
    """The images of each step over all processes, in rank order."""
    found: dict[tuple[int, int], list[int]] = {}
    for rank in seen:
        for epoch, step, rows in rank:
            found.setdefault((epoch, step), []).extend(rows)
    return found


def test_two_processes_see_the_images_of_one_in_its_order(tiny: Tiny) -> None:
    one, seen_by_one = run(tiny, 1)
    two, seen_by_two = run(tiny, 2)
    assert len(seen_by_two) == 2
    assert batches(seen_by_one) == batches(seen_by_two)
    a, b = (predictions.load(fold.predictions("oof", "center")) for fold in (one, two))
    assert a.ids.tolist() == b.ids.tolist()
    rates = [[row.split(",")[-1] for row in fold.log.read_text().splitlines()] for fold in (one, two)]
    assert rates[0] == rates[1]


def test_two_processes_train_one_network_which_is_that_of_one_process(tiny: Tiny) -> None:
    """A network without BatchNorm, whose statistics are those of each process's share."""
    settings = {
        "model": {"name": "test_vit", "pretrained": False},
        "optim": {"name": "sgd", "lr": 0.05},
        "loss": {"label_smoothing": 0.0},
        "micro_batch": 3,
        "ema": 0.5,
        "best_by": "val_loss",
    }
    folds = [run(tiny, procs, **settings)[0] for procs in (1, 2)]
    one, first, second = (
        json.loads((folds[procs - 1].path / f"weights{rank}").read_text()) for procs, rank in ((1, 0), (2, 0), (2, 1))
    )
    assert first == second
    assert first[0] != first[1]  # the average lags behind
    for a, b in zip(one, first, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
    losses = [[float(row.split(",")[3]) for row in fold.log.read_text().splitlines()[1:]] for fold in folds]
    np.testing.assert_allclose(*losses, rtol=1e-4)
    assert losses[0][0] > losses[0][-1]


def test_more_processes_than_a_batch_has_images(tiny: Tiny) -> None:
    fold, seen = run(tiny, 3, batch=2, epochs=1)
    assert sorted(row for rows in batches(seen).values() for row in rows) == sorted(
        row for row, image_id in enumerate(tiny.dataset.ids) if tiny.folds[image_id] != 0
    )
    assert np.isfinite(predictions.load(fold.predictions("oof", "center")).probs).all()


def test_a_loss_that_is_not_finite_in_one_process_stops_both_in_the_same_step(tiny: Tiny) -> None:
    with pytest.raises(CompError, match=r"the loss is not finite in epoch 2, step 2 \(lr .*, images im") as raised:
        run(tiny, 2, "nan")
    assert raised.value.code is Exit.NUMERIC
    seen = [json.loads(path.read_text()) for path in sorted((tiny.home / "2nan").rglob("seen*"))]
    assert [rank[-1][:2] for rank in seen] == [[1, 1], [1, 1]]


def test_memory_that_runs_out_in_one_process_halves_it_in_both(tiny: Tiny, capfd: pytest.CaptureFixture[str]) -> None:
    fold, seen = run(tiny, 2, "memory", epochs=1)
    assert "out of memory: 2 images at a time instead of 8; the global batch stays" in capfd.readouterr().out
    assert all(len(rows) <= 2 for rank in seen for _, _, rows in rank)
    assert Path(fold.model).exists()
