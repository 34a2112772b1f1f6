"""The epochs of a fold: steps, validation, the log, and the checkpoint that holds all of it."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from comp import files, terminal
from comp.config import DataConfig, RunConfig
from comp.data.loader import TrainingImages, batches
from comp.errors import CompError, Exit
from comp.inference import spec
from comp.inference.evaluate import Evaluation, evaluate
from comp.nets import store
from comp.nets.transfer import freeze
from comp.runs import Fold
from comp.training import checkpoint, finishing, summary
from comp.training.building import Rows, halved
from comp.training.checkpoint import Best, Checkpoint, Position
from comp.training.plan import Micro, Plan
from comp.training.step import Taken, Trainee, Undo, is_out_of_memory, reseed
from comp.training.stopping import Asked, Stopping
from comp.training.watch import Watch

if TYPE_CHECKING:
    from comp.data.manifest import Dataset

_LOG_NAMES = {"macro_f1": "macro_f1", "accuracy": "top1", "log_loss": "val_loss"}


@dataclass
class Fit:
    """One fold in training: what it was given, what changes, how far it has come."""

    config: RunConfig
    data: DataConfig
    dataset: Dataset
    fold: Fold
    rows: Rows
    plan: Plan
    images: TrainingImages
    trainee: Trainee
    position: Position
    watch: Watch
    about: dict[str, Any]
    stopping: Stopping
    workers: int
    mean: tuple[float, float, float] = (0.0, 0.0, 0.0)
    std: tuple[float, float, float] = (1.0, 1.0, 1.0)
    frozen: bool | None = None
    saved_at: float = field(default_factory=time.monotonic)
    save_due: bool = False

    def stop(self) -> None:
        """Between forward passes, in every process: raise `Asked` in all of them when one should stop."""
        due = self.trainee.team.first and time.monotonic() - self.saved_at > self.config.save_every
        code, save_due = self.trainee.team.most(int(self.stopping.asked() or 0), int(due))
        self.save_due = bool(save_due)
        if code:
            raise Asked(Exit(code))


class Feed:
    """The images of the steps to come, from where the run is; workers make them ahead."""

    def __init__(self, run: Fit):
        self.run = run
        self.begin()

    def begin(self) -> None:
        """Begin, or begin again with another size of micro-batch."""
        self.close()
        keys = (micro.keys for micro in self._plan())
        self._batches = batches(self.run.images, keys, self.run.workers)
        self._micros = self._plan()

    def _plan(self) -> Iterator[Micro]:
        position, team = self.run.position, self.run.trainee.team
        return self.run.plan.micros(position.epoch, position.step, team.rank, team.world, position.micro)

    def next(self) -> tuple[Micro, Tensor, Tensor]:
        """The next micro-batch, its pixels (B, 3, crop, crop) uint8 and labels (B,)."""
        pixels, labels, _ = next(self._batches)
        return next(self._micros), pixels, labels

    def close(self) -> None:
        """End the workers."""
        made = getattr(self, "_batches", None)
        if made is not None:
            made.close()


def set_phase(run: Fit) -> None:
    """Freeze what is frozen in this epoch; the wrapper for several processes is made anew where that changes."""
    section, trainee = run.config.model, run.trainee
    frozen = section.freeze != "none" and (section.freeze_epochs == 0 or run.position.epoch < section.freeze_epochs)
    if frozen is run.frozen:
        return
    if run.frozen is not None:
        terminal.say(f"epoch {run.position.epoch + 1}: everything trains from here on")
    freeze(trainee.network, section.freeze if frozen else "none")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated")  # Accelerate knows no other name
        trainee.model = trainee.accelerator.prepare_model(trainee.network)
    run.frozen = frozen


def train_epoch(run: Fit, feed: Feed) -> None:
    """The steps of an epoch that are still to do."""
    trainee, position, plan = run.trainee, run.position, run.plan
    trainee.network.train()
    undo = Undo(trainee.network)
    began = time.monotonic()
    try:
        with terminal.progress(f"epoch {position.epoch + 1}/{run.config.epochs}", len(plan.rows)) as advance:
            advance(plan.images_before(position.step))
            while position.step < plan.steps:
                try:
                    done = take_step(run, feed, undo)
                except (RuntimeError, MemoryError) as error:
                    if not is_out_of_memory(error):
                        raise
                    done = 0
                if not done:  # outside the except block, which keeps the failed step's tensors alive
                    smaller_batches(run, feed)
                    continue
                position.step += 1
                advance(done)
                trainee.check_finite(run.dataset.ids, run.fold)
                if run.save_due:
                    position.seconds += time.monotonic() - began
                    began = time.monotonic()
                    save(run)
            trainee.check_finite(run.dataset.ids, run.fold, now=True)
    finally:
        position.seconds += time.monotonic() - began


def take_step(run: Fit, feed: Feed, undo: Undo) -> int:
    """One optimizer step; given up as if it had not begun when the run is asked to stop or memory runs out.

    Returns:
        Images in its global batch.
    """
    trainee, position = run.trainee, run.position
    number = position.epoch * run.plan.steps + position.step
    reseed(run.config.seed, run.fold.number, position.epoch, position.step, trainee.team.rank)
    undo.remember()
    sums = torch.zeros_like(trainee.sums)
    rows: list[int] = []
    try:
        if trainee.layers:
            trainee.layers.begin(number)
        while True:
            run.stop()
            micro, pixels, labels = feed.next()
            loss, right = trainee.forward_backward(pixels, labels, micro)
            sums += torch.stack([loss.double(), right.double()])
            rows += [key[0] for key in micro.keys[: micro.counted]]
            if micro.last:
                break
        lr, norm = trainee.update(number)
    except BaseException:
        undo.restore()
        trainee.optimizer.zero_grad(set_to_none=True)
        if trainee.layers:
            trainee.layers.recorder.detach()
        raise
    trainee.sums += sums
    mean = sums[0] / max(1, len(rows))
    trainee.ledger.taken.append(Taken(position.epoch, position.step, lr, tuple(rows), mean, norm))
    return micro.images


def smaller_batches(run: Fit, feed: Feed) -> None:
    """Halve the images per forward pass after memory ran out; the global batch stays."""
    trainee, position = run.trainee, run.position
    if trainee.device.type == "cuda":
        torch.cuda.empty_cache()
    if trainee.team.world > 1:
        fix = f"set micro_batch={max(1, position.micro // 2)}"
        raise CompError(run.fold, "process memory ran out inside a step", fix, Exit.SYSTEM)
    before, position.micro = position.micro, halved(position.micro)
    terminal.say(f"out of memory: {position.micro} images at a time instead of {before}; the global batch stays")
    feed.begin()


def end_epoch(run: Fit) -> None:
    """Validate, log, and save the epoch."""
    trainee, position, config = run.trainee, run.position, run.config
    trainee.team.same_buffers(trainee.network)
    if trainee.average:
        trainee.team.same_buffers(trainee.average.network)
    sums = np.sum(trainee.team.gather(trainee.sums.tolist()), axis=0)
    began = time.monotonic()
    labels, evaluation = validate(run)
    seconds = time.monotonic() - began
    scores = summary.scores(labels, evaluation.probs)
    train_loss, train_accuracy = (float(value) / len(run.plan.rows) for value in sums)
    last_step = (position.epoch + 1) * run.plan.steps - 1
    lr = config.optim.lr * trainee.schedule.factor(last_step)
    values = {"train_loss": train_loss, "train_accuracy": train_accuracy, **scores, "lr": lr}
    row = [position.epoch + 1, *(float(f"{values[name]:.6g}") for name in summary.COLUMNS[1:])]
    speed = len(run.plan.rows) / max(position.seconds, 1e-9)
    position.rows.append(row)
    position.times.append([position.epoch + 1, round(position.seconds, 3), round(seconds, 3), round(speed, 1)])
    if position.epoch == 0 and trainee.ledger.losses:
        uniform = f"ln({len(run.dataset.classes)}) = {math.log(len(run.dataset.classes)):.3f}"
        terminal.say(f"the first step's loss was {trainee.ledger.losses[0]:.3f} ({uniform})")
    terminal.say(summary.epoch_line(row, config.epochs, speed))
    if config.watch.on:
        found = run.watch.look(
            position.epoch,
            train_loss=train_loss,
            val_loss=scores["val_loss"],
            labels=labels,
            probs=evaluation.probs,
            losses=trainee.ledger.losses,
            grad_norms=trainee.ledger.norms,
        )
        position.notes += found
        for line in found:
            terminal.warn(line)
    trainee.schedule.epoch_ended(scores["val_loss"])
    compare_with_best(run, values)
    position.epoch, position.step, position.seconds = position.epoch + 1, 0, 0.0
    trainee.sums.zero_()
    trainee.ledger.begin_epoch()
    save(run)
    if trainee.team.first:
        after_save(run, row)


def validate(run: Fit) -> tuple[Any, Evaluation]:
    """Labels (M,) and predictions of the photos held out; predictions that are not finite score nan, and are no end."""
    trainee, rows = run.trainee, run.rows.val
    labels = np.asarray(run.dataset.labels, dtype=np.int64)[rows]
    try:
        with terminal.progress("validating", len(rows)) as advance:
            found = evaluate(
                trainee.weights,
                run.dataset,
                rows,
                spec.parse("center", ()),
                name=str(run.fold),
                image=run.config.image,
                mean=run.mean,
                std=run.std,
                precision=run.config.precision,
                device=trainee.device,
                workers=run.workers,
                fold=False,
                rank=trainee.team.rank,
                world=trainee.team.world,
                gather=trainee.team.gather,
                progress=advance,
                stop=run.stop,
            )
        return labels, found
    except CompError as error:
        if error.code is not Exit.NUMERIC:
            raise
        terminal.warn(str(error))
        probs = np.full((len(rows), len(run.dataset.classes)), np.nan, dtype=np.float32)
        return labels, Evaluation(np.asarray(run.dataset.ids, dtype=np.str_)[rows], probs, 0.0)


def compare_with_best(run: Fit, values: dict[str, float]) -> None:
    """Keep the weights of the best epoch aside under `best_by`; stop early when `patience` is used up.

    The weights get a file of their own before last.ckpt names it and its digest, and older ones go after that: at
    every moment the weights last.ckpt speaks of are there.
    """
    position, config = run.position, run.config
    if config.best_by == "last":
        return
    metric = "log_loss" if config.best_by == "val_loss" else run.data.metric
    score, log_loss = values[_LOG_NAMES[metric]], values["val_loss"]
    if not finishing.is_better(metric, score, log_loss, position.best):
        position.stale += 1
        position.halted = bool(config.patience) and position.stale >= config.patience
        if position.halted:
            terminal.say(f"stopping early: {position.stale} epochs without a better {config.best_by}")
        return
    position.stale = 0
    name, digest = f"best-{position.epoch + 1}.safetensors", ""
    if run.trainee.team.first:
        digest = save_weights(run, run.fold.path / name, "best")
    position.best = Best(position.epoch, score, log_loss, name, digest)


def save_weights(run: Fit, path: Path, selection: str) -> str:
    """Write the weights as they are now with what they are; the file's SHA-256."""
    row = run.position.rows[-1]
    score = float(row[summary.COLUMNS.index(_LOG_NAMES[run.data.metric])])
    about = store.describe(
        run.config,
        classes=tuple(run.about["classes"]),
        mean=run.mean,
        std=run.std,
        run=run.fold.run.name,
        epoch=row[0],
        selection=selection,
        metric=run.data.metric,
        score=score if math.isfinite(score) else None,
        **{key: run.about[key] for key in ("fold", "seed", "recipe", "config", "data", "pixels", "folds")},
    )
    return store.save_model(path, run.trainee.weights.state_dict(), about)


def keep_last(run: Fit) -> None:
    """Make the last epoch's weights the fold's model."""
    save_weights(run, run.fold.model, "last")


def save(run: Fit) -> None:
    """Write last.ckpt; every process calls it at the same place.

    Raises:
        CompError: A loss was not finite: such weights are not saved.
    """
    trainee, position = run.trainee, run.position
    trainee.check_finite(run.dataset.ids, run.fold, now=True)
    position.sums = trainee.team.gather(trainee.sums.tolist())
    position.losses, position.norms = trainee.ledger.losses, trainee.ledger.norms
    if trainee.team.first:
        average, scaler = trainee.average, trainee.accelerator.scaler
        found = Checkpoint(
            about=run.about,
            position=position,
            network=trainee.network.state_dict(),
            ema={"updates": average.updates, "network": average.network.state_dict()} if average else None,
            optimizer=trainee.optimizer.state_dict(),
            schedule=trainee.schedule.state_dict(),
            scaler=scaler.state_dict() if scaler else None,
            watch=run.watch.state_dict(),
        )
        checkpoint.save(run.fold.last, found)
    run.saved_at, run.save_due = time.monotonic(), False
    trainee.team.wait()


def restore(run: Fit, found: Checkpoint) -> None:
    """Put everything back to where `save` was.

    Raises:
        CompError: Exit code 4 where the states do not fit, though the checkpoint says it is of this run.
    """
    trainee, team = run.trainee, run.trainee.team
    try:
        trainee.network.load_state_dict(found.network)
        if trainee.average and found.ema:
            trainee.average.updates = int(found.ema["updates"])
            trainee.average.network.load_state_dict(found.ema["network"])
        trainee.optimizer.load_state_dict(found.optimizer)
        trainee.schedule.load_state_dict(found.schedule)
        if trainee.accelerator.scaler and found.scaler:
            trainee.accelerator.scaler.load_state_dict(found.scaler)
        run.watch.load_state_dict(found.watch)
        run.position = position = found.position
        sums = position.sums
        if len(sums) != team.world:  # another number of processes: the first one carries on what all had
            sums = [np.sum(sums, axis=0).tolist()] + [[0.0, 0.0]] * (team.world - 1)
        trainee.sums.copy_(torch.tensor(sums[team.rank], dtype=torch.float64))
        trainee.ledger.losses, trainee.ledger.norms = list(position.losses), list(position.norms)
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        what = f"does not fit this run ({' '.join(str(error).split())[:160]})"
        raise CompError(run.fold.last, what, f"remove {run.fold.path} to begin again", Exit.FILE) from None
    if team.first:
        write_logs(run)


def write_logs(run: Fit) -> None:
    """log.csv, times.csv (what differs from machine to machine) and what the watch said, whole, from the position."""
    files.write_csv(run.fold.log, summary.COLUMNS, run.position.rows)
    files.write_csv(run.fold.path / "times.csv", summary.TIMES, run.position.times)
    if run.position.notes:
        files.write_text(run.fold.path / "watch.txt", "".join(f"{line}\n" for line in run.position.notes))


def after_save(run: Fit, row: list[Any]) -> None:
    """What follows from the checkpoint: older candidates go, logs are written, an epoch is kept if asked."""
    position, fold = run.position, run.fold
    for path in fold.path.glob("best-*.safetensors"):
        if position.best is None or path.name != position.best.file:
            path.unlink(missing_ok=True)
    write_logs(run)
    values = dict(zip(summary.COLUMNS[1:], row[1:], strict=True))
    run.trainee.accelerator.log({**values, "images_per_second": position.times[-1][3]}, step=row[0])
    if run.config.keep_every and position.epoch % run.config.keep_every == 0:
        save_weights(run, fold.path / f"epoch-{position.epoch}.safetensors", "kept")
