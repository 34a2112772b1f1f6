from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from comp import files, metrics, predictions
from comp.errors import CompError, Exit
from comp.nets import store
from comp.runs import Fold
from comp.training import building, checkpoint, finishing, loop, step
from comp.training.checkpoint import Best
from comp.training.train import train_fold

Tiny = Any  # conftest.Tiny

WRITTEN = ("model.safetensors", "oof.center.npz", "log.csv")
# Everything that draws by chance or has a memory: dropout, mixing, the average, momentum, plateau, the best epoch.
RICH = {
    "model": {"dropout": 0.2},
    "loss": {"mixup": 0.2, "cutmix": 0.5},
    "ema": 0.99,
    "micro_batch": 5,
    "best_by": "val_loss",
}


def written(fold: Fold) -> dict[str, bytes]:
    return {name: (fold.path / name).read_bytes() for name in WRITTEN}


def train(tiny: Tiny, fold: Fold, **over: Any) -> dict[str, Any]:
    return train_fold(*tiny.arguments(fold, **over))


def go_on(tiny: Tiny, fold: Fold, looks: int, after: Callable[[int], Any], **over: Any) -> int:
    """Train in bits, each stopped after so many looks at the clock; how many bits it took."""
    for bits in range(1, 200):
        try:
            train_fold(*tiny.arguments(fold, **over), stopping=after(looks))
        except CompError as error:
            if error.code is not Exit.TIME:
                raise
        else:
            return bits
    raise AssertionError("it never ended")


def test_a_fold_from_start_to_finish(tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    fold = tiny.fold()
    result = train(tiny, fold, epochs=6, ema=0.9)
    assert fold.finished
    found = predictions.load(fold.predictions("oof", "center"))
    held_out = [image_id for image_id, number in tiny.folds.items() if number == 0]
    assert found.ids.tolist() == held_out
    labels = np.array([tiny.dataset.labels[tiny.dataset.ids.index(image_id)] for image_id in held_out])
    assert result["score"] == result["macro_f1"] == metrics.macro_f1(labels, found.probs)
    assert result["score"] > 0.9  # three colours
    assert result["selection"] == "last"
    header = found.header
    assert header["checkpoint"] == files.digest_file(fold.model)
    assert header["config"] == fold.config().digest()
    assert (header["data"], header["pixels"]) == ("d" * 64, "p" * 64)
    assert "ms_per_image" not in header  # it would differ from one run to the next
    rows = fold.log.read_text().splitlines()
    assert rows[0] == "epoch,train_loss,train_accuracy,val_loss,macro_f1,top1,top5,lr"
    assert [row.split(",")[0] for row in rows[1:]] == list("123456")
    assert (fold.path / "times.csv").exists()
    assert list((fold.path / "tensorboard").glob("events*"))
    out = capsys.readouterr().out
    assert "(ln(3) = 1.099)" in out
    assert "epoch 6/6  train loss" in out
    leftovers = {path.name for path in fold.path.iterdir()} - {*WRITTEN, "times.csv", "tensorboard", "watch.txt"}
    assert leftovers == {".lock", "config.yaml", "last.ckpt"}


@pytest.mark.parametrize(
    ("looks", "workers", "over"),
    [
        (5, 0, RICH),  # every step has four forward passes: stops come inside steps, between them, in validation
        (7, 2, {**RICH, "optim": {"name": "sgd"}, "schedule": {"name": "plateau", "patience": 0, "warmup": 0.5}}),
        (6, 1, {"schedule": {"name": "onecycle"}, "loss": {"balance": "sampler"}, "best_by": "metric"}),
        (6, 0, {"model": {"freeze": "backbone", "freeze_epochs": 1}, "ema": 0.9}),
    ],
)
def test_a_run_in_bits_is_the_run_in_one_go(
    tiny: Tiny, looks: int, workers: int, over: dict[str, Any], stops_after: Callable[[int], Any]
) -> None:
    whole, bits = tiny.fold(), tiny.fold(home=tiny.home / "elsewhere")
    train(tiny, whole, **over)
    assert go_on(tiny, bits, looks, stops_after, **over, workers=workers) > 2
    assert written(bits) == written(whole)


def test_plateau_remembers_over_a_stop(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, stops_after: Callable[[int], Any]
) -> None:
    plain = loop.summary.scores
    monkeypatch.setattr(loop.summary, "scores", lambda *a: {**plain(*a), "val_loss": 1.0})
    over: dict[str, Any] = {"schedule": {"name": "plateau", "patience": 1, "warmup": 0}, "epochs": 4}
    whole, bits = tiny.fold(), tiny.fold(home=tiny.home / "elsewhere")
    train(tiny, whole, **over)
    assert [row.split(",")[-1] for row in whole.log.read_text().splitlines()[1:]] == ["0.002"] * 3 + ["0.0002"]
    go_on(tiny, bits, 5, stops_after, **over)
    assert written(bits) == written(whole)


def test_saves_inside_an_epoch_change_nothing(tiny: Tiny) -> None:
    often, seldom = tiny.fold(), tiny.fold(home=tiny.home / "elsewhere")
    train(tiny, often, save_every=1e-6)
    train(tiny, seldom)
    assert written(often) == written(seldom)


def test_a_run_killed_while_it_saves_is_the_same_run(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every write of a run fails once, before or after its file is in place; the next start goes on."""
    over: dict[str, Any] = {"best_by": "val_loss", "epochs": 2}
    whole, killed = tiny.fold(), tiny.fold(home=tiny.home / "elsewhere")
    train(tiny, whole, **over)
    plain = files.write_atomic

    class Killed(BaseException):
        """As kill -9: nobody handles it."""

    starts = 0
    for nth in range(40):
        count = 0

        def write(path: Path, *arguments: Any, nth: int = nth) -> None:
            nonlocal count
            count += 1
            if count == nth // 2 + 1:
                if nth % 2:
                    plain(path, *arguments)
                raise Killed
            plain(path, *arguments)

        monkeypatch.setattr(files, "write_atomic", write)
        starts += 1
        try:
            train(tiny, killed, **over)
            break
        except Killed:
            continue
    monkeypatch.undo()
    assert starts > 6
    train(tiny, killed, **over)
    assert written(killed) == written(whole)


def test_a_second_start_is_refused_with_the_holder(tiny: Tiny) -> None:
    fold = tiny.fold()
    holder = (
        "import sys, pathlib, comp.files as files\n"
        "with files.lock(pathlib.Path(sys.argv[1]), 'training'):\n"
        "    print(1, flush=True)\n"
        "    input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", holder, str(fold.lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with pytest.raises(CompError, match=f"is in use by process {process.pid} on ") as raised:
            train(tiny, fold)
        assert raised.value.code is Exit.BUSY
        process.communicate(b"\n")
    train(tiny, fold, epochs=1)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_state(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, bad: float
) -> None:
    fold, calls = tiny.fold(), 0
    plain = step.Trainee.forward_backward

    def forward_backward(self: Any, *arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        loss, right = plain(self, *arguments)
        return (loss * bad if calls == 5 else loss), right

    monkeypatch.setattr(step.Trainee, "forward_backward", forward_backward)
    with pytest.raises(CompError) as raised:
        train(tiny, fold)
    assert raised.value.code is Exit.NUMERIC
    assert "epoch 2, step 2 (lr 0.00187, images im" in str(raised.value)
    monkeypatch.undo()
    assert len(fold.log.read_text().splitlines()) == 2
    train(tiny, fold)  # the state of epoch 1 is there, and goes on
    whole = tiny.fold(home=tiny.home / "elsewhere")
    train(tiny, whole)
    assert written(fold) == written(whole)


def test_a_loss_nobody_has_looked_at_yet_is_not_saved(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU losses are looked at every few steps; a save in between looks first."""
    fold, calls, plain = tiny.fold(), 0, step.Trainee.forward_backward

    def forward_backward(self: Any, *arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        loss, right = plain(self, *arguments)
        return (loss * math.nan if calls == 5 else loss), right

    monkeypatch.setattr(step.Trainee, "forward_backward", forward_backward)
    monkeypatch.setattr(building, "Ledger", lambda every: step.Ledger(1000))
    with pytest.raises(CompError, match="not finite in epoch 2, step 2"):
        train(tiny, fold, save_every=1e-6)
    position = checkpoint.read(fold.last)["position"]
    assert (position["epoch"], position["step"]) == (1, 1)
    assert np.isfinite(position["losses"]).all()


def test_out_of_memory_halves_the_forward_pass_and_keeps_the_batch(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fold, small = tiny.fold(), tiny.fold(home=tiny.home / "elsewhere")
    train(tiny, small, micro_batch=4)
    plain = step.Trainee.forward_backward

    def forward_backward(self: Any, pixels: torch.Tensor, *arguments: Any) -> Any:
        found = plain(self, pixels, *arguments)  # BatchNorm has seen the images when memory runs out
        if len(pixels) > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return found

    monkeypatch.setattr(step.Trainee, "forward_backward", forward_backward)
    train(tiny, fold)
    out = capsys.readouterr().out
    assert "out of memory: 8 images at a time instead of 16; the global batch stays" in out
    assert "out of memory: 4 images at a time instead of 8" in out
    for name in ("oof.center.npz", "log.csv"):
        a, b = (fold.path / name).read_bytes(), (small.path / name).read_bytes()
        assert name == "oof.center.npz" or a == b
    ours, theirs = load_file(fold.model), load_file(small.model)
    assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_memory_that_does_not_do_for_one_image_is_the_end() -> None:
    assert building.halved(3) == 1
    with pytest.raises(CompError) as raised:
        building.halved(1)
    assert raised.value.code is Exit.SYSTEM


@pytest.mark.parametrize(
    ("metric", "score", "loss", "best", "expected"),
    [
        ("macro_f1", 0.5, 1.0, None, True),
        ("macro_f1", math.nan, 1.0, None, False),
        ("macro_f1", math.nan, 0.1, (0.2, 9.0), False),
        ("macro_f1", 0.6, 2.0, (0.5, 1.0), True),
        ("macro_f1", 0.4, 0.1, (0.5, 1.0), False),
        ("macro_f1", 0.5, 0.9, (0.5, 1.0), True),
        ("macro_f1", 0.5, 1.0, (0.5, 1.0), False),  # the earlier stays
        ("macro_f1", 0.5, math.nan, (0.5, 1.0), False),
        ("log_loss", 0.9, 0.9, (1.0, 1.0), True),
        ("log_loss", 1.1, 1.1, (1.0, 1.0), False),
    ],
)
def test_the_best_epoch(
    metric: str, score: float, loss: float, best: tuple[float, float] | None, expected: bool
) -> None:
    found = None if best is None else Best(0, *best, "file", "digest")
    assert finishing.is_better(metric, score, loss, found) is expected


def test_an_epoch_with_nan_scores_is_never_best_and_blocks_none(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    fold, calls, plain = tiny.fold(), 0, loop.evaluate

    def evaluate(*arguments: Any, **keywords: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise CompError("net", "the output is not finite", "", Exit.NUMERIC)
        return plain(*arguments, **keywords)

    monkeypatch.setattr(loop, "evaluate", evaluate)
    train(tiny, fold, best_by="metric")
    rows = fold.log.read_text().splitlines()
    assert rows[1].split(",")[4] == "nan"
    assert store.read_about(fold.model)["epoch"] > 1


def test_the_best_epochs_weights_are_the_model(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    fold, seen, losses = tiny.fold(), [], iter([0.9, 0.5, 0.7, 0.6, 0.8])
    plain = loop.summary.scores

    def scores(labels: Any, probs: Any) -> dict[str, float]:
        return {**plain(labels, probs), "val_loss": next(losses)}

    monkeypatch.setattr(loop.summary, "scores", scores)
    save = loop.save_weights
    monkeypatch.setattr(loop, "save_weights", lambda run, path, what: seen.append(path.name) or save(run, path, what))
    monkeypatch.setattr("comp.training.train.summary.fold_result", lambda *_: {})
    train(tiny, fold, epochs=5, best_by="val_loss", patience=3)
    assert seen == ["best-1.safetensors", "best-2.safetensors"]
    about = store.read_about(fold.model)
    assert (about["epoch"], about["selection"]) == (2, "best")
    assert len(fold.log.read_text().splitlines()) == 6  # stopped after epoch 5: three without a better one
    assert not list(fold.path.glob("best-*"))


def test_patience_ends_the_training_early(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    fold, losses, plain = tiny.fold(), iter([0.5, 0.7, 0.6, 0.4, 0.3]), loop.summary.scores
    monkeypatch.setattr(loop.summary, "scores", lambda *a: {**plain(*a), "val_loss": next(losses)})
    monkeypatch.setattr("comp.training.train.summary.fold_result", lambda *_: {})
    train(tiny, fold, epochs=5, best_by="val_loss", patience=2)
    assert len(fold.log.read_text().splitlines()) == 4
    assert store.read_about(fold.model)["epoch"] == 1


def test_frozen_weights_and_statistics_do_not_move(tiny: Tiny) -> None:
    fold = tiny.fold()
    train(tiny, fold, model={"freeze": "backbone"}, epochs=2, ema=0.9)
    start, _, _ = building.build_network(tiny.home, tiny.config(), tiny.dataset, fold)
    before, after = start.state_dict(), load_file(fold.model)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"fc.weight", "fc.bias"}


def test_two_phases_move_everything_in_the_end(tiny: Tiny) -> None:
    fold = tiny.fold()
    train(tiny, fold, model={"freeze": "backbone", "freeze_epochs": 1}, epochs=2)
    start, _, _ = building.build_network(tiny.home, tiny.config(), tiny.dataset, fold)
    after = load_file(fold.model)
    assert all(not torch.equal(value, after[name]) for name, value in start.named_parameters())


def test_another_runs_weights_start_a_run(tiny: Tiny, capsys: pytest.CaptureFixture[str]) -> None:
    train(tiny, tiny.fold("first"), epochs=1)
    for which in ("best", "last"):
        network, _, _ = building.build_network(
            tiny.home, tiny.config(model={"init_from": f"first/fold0@{which}"}), tiny.dataset, tiny.fold("second")
        )
        source = load_file(tiny.fold("first").model)
        assert all(torch.equal(value, source[name]) for name, value in network.state_dict().items())
    assert "tensors start from first/fold0@best" in capsys.readouterr().out


def test_a_checkpoint_of_other_data_is_refused(tiny: Tiny, stops_after: Callable[[int], Any]) -> None:
    fold = tiny.fold()
    with pytest.raises(CompError) as raised:
        train_fold(*tiny.arguments(fold), stopping=stops_after(2))
    assert raised.value.code is Exit.TIME
    tiny.folds = {**tiny.folds, "im59": 0}
    with pytest.raises(CompError, match="is of another run: its folds is") as raised:
        train(tiny, fold)
    assert raised.value.code is Exit.FILE


def test_the_model_file_says_what_it_is(tiny: Tiny) -> None:
    fold = tiny.fold()
    train(tiny, fold, epochs=1)
    stored = store.load_model(fold)
    assert (stored.name, stored.classes, stored.image.crop) == ("test_resnet", ("red", "green", "blue"), 32)
    assert stored.mean == tiny.dataset.mean
    header = json.loads(fold.model.read_bytes()[8:][: int.from_bytes(fold.model.read_bytes()[:8], "little")])
    assert list(header["__metadata__"]) == [store.KEY]
    for damage in (b"", fold.model.read_bytes()[:500], b"x" * 300):
        fold.model.write_bytes(damage)
        with pytest.raises(CompError) as raised:
            store.load_model(fold)
        assert raised.value.code is Exit.FILE


def test_kept_epochs_are_models(tiny: Tiny) -> None:
    fold = tiny.fold()
    train(tiny, fold, keep_every=2, epochs=4)
    kept = sorted(path.name for path in fold.path.glob("epoch-*"))
    assert kept == ["epoch-2.safetensors", "epoch-4.safetensors"]
    assert store.load_model(fold.path / "epoch-2.safetensors").about["epoch"] == 2


def test_a_fold_that_does_not_exist_is_refused(tiny: Tiny) -> None:
    with pytest.raises(CompError, match="FOLD=7: there is no such fold; choose from 0, 1, 2"):
        train(tiny, tiny.fold(number=7))
