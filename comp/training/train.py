"""One fold from start to finish, top to bottom: seed, data, network, optimizer, resume, loop, selected weights,
out-of-fold predictions."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from comp import config as configs
from comp import files, terminal
from comp.config import DataConfig, RunConfig
from comp.data import loader
from comp.errors import CompError, Exit
from comp.runs import Fold
from comp.training import building, checkpoint, finishing, summary
from comp.training.checkpoint import Position
from comp.training.layers import LayerWatch
from comp.training.loop import Feed, Fit, end_epoch, keep_last, restore, save, set_phase, train_epoch
from comp.training.plan import Plan
from comp.training.processes import Team
from comp.training.stopping import Asked, Stopping
from comp.training.watch import Watch, mean_target

if TYPE_CHECKING:
    from comp.data.manifest import Dataset


def train_fold(
    home: Path,
    config: RunConfig,
    data: DataConfig,
    dataset: Dataset,
    folds: Mapping[str, int],
    fold: Fold,
    stopping: Stopping | None = None,
) -> dict[str, Any]:
    """Train one fold, or go on where it stopped, to its out-of-fold predictions.

    Args:
        home: The project's folder.
        config: The run.
        data: The data set's config.
        dataset: The data set.
        folds: Fold of each labelled image id; -1 trains in every fold.
        fold: The fold.
        stopping: Whom to ask whether to stop; by default signals and the config's time limit.

    Returns:
        The fold's scores (`summary.fold_result`).

    Raises:
        CompError: With exit code 75, 129, 130 or 143 when it was asked to stop and its state is saved.
    """
    stopping = stopping or Stopping(config.time_limit)
    with stopping.listening(), contextlib.ExitStack() as stack:
        if terminal.is_first():
            stack.enter_context(files.lock(fold.lock, f"training {fold}"))
        return _train(home, config, data, dataset, folds, fold, stopping)


def _train(
    home: Path,
    config: RunConfig,
    data: DataConfig,
    dataset: Dataset,
    folds: Mapping[str, int],
    fold: Fold,
    stopping: Stopping,
) -> dict[str, Any]:
    rows = building.rows_of(dataset, folds, fold)
    accelerator = building.make_accelerator(config, fold.path)
    team = Team(config.hang_limit)
    with team.together(fold):
        # Data.
        about = building.about_run(config, dataset, folds, fold)
        ids = [str(dataset.ids[row]) for row in rows.train]
        labels = np.asarray(dataset.labels, dtype=np.int64)[rows.train]
        balanced = config.loss.balance == "sampler"
        plan = Plan(rows.train, ids, labels, config.batch, config.epochs, config.seed, fold.number, balanced)
        images = building.training_images(config, dataset, rows, data.symmetries)
        workers = config.workers if config.workers is not None else loader.default_workers(team.world)

        # Network and optimizer.
        network, mean, std = building.build_network(home, config, dataset, fold)
        trainee = building.make_trainee(config, plan, len(dataset.classes), network, (mean, std), accelerator, team)
        target = mean_target(
            labels, len(dataset.classes), balance=config.loss.balance, smoothing=config.loss.label_smoothing
        )
        watch = Watch(
            dataset.classes,
            target,
            epochs=config.epochs,
            warmup=config.schedule.warmup,
            clip=config.optim.clip,
            lr=config.optim.lr,
        )
        position = Position(micro=min(config.micro_batch or config.batch, -(-config.batch // team.world)))
        run = Fit(config, data, dataset, fold, rows, plan, images, trainee, position, watch, about, stopping, workers)
        run.mean, run.std = mean, std

        # Resume.
        if team.first:
            files.clean_temporary(fold.path)
            files.write_text(fold.config_file, configs.dump(config))
            building.need_space(network, fold)
        if fold.last.exists():
            restore(run, checkpoint.load(fold.last, about))
            position = run.position
            terminal.say(f"{fold} goes on {whereabouts(position, plan.steps, config.epochs)}")
        if team.first:
            finishing.check_best(fold, position.best)
        team.wait()
        position.micro = building.fitting_micro(network, accelerator, team, config.image.crop, position.micro)
        terminal.say(building.start_line(run.config, dataset, rows, network, accelerator, position.micro, workers))

        # Loop: train, validate, log, save.
        try:
            writer = building.open_log(accelerator, config)
            trainee.layers = LayerWatch(network, config.watch.layers, writer)
            with contextlib.closing(Feed(run)) as feed:
                while position.epoch < config.epochs and not position.halted:
                    set_phase(run)
                    train_epoch(run, feed)
                    end_epoch(run)
        except Asked as asked:
            save(run)
            where = f"the state is saved (epoch {position.epoch + 1}, {position.step} of {plan.steps} steps)"
            raise asked.error(fold, where) from None
        finally:
            for tracker in accelerator.trackers:
                tracker.finish()

        # Selected weights, then out-of-fold predictions.
        if team.first:
            if config.best_by == "last":
                keep_last(run)
            elif position.best is None:
                fix = "lower optim.lr, or use precision=fp32"
                raise CompError(fold, "no epoch had a finite validation score", fix, Exit.NUMERIC)
            else:
                finishing.keep_best(fold, position.best)
        team.wait()
        try:
            with terminal.progress("out-of-fold predictions", len(rows.val)) as advance:
                finishing.predict_held_out(
                    fold, config, dataset, folds, team, trainee.device, workers, run.stop, advance
                )
        except Asked as asked:
            raise asked.error(fold, "the training is done and saved, its predictions are not") from None
    return summary.fold_result(fold, data, dataset)


def whereabouts(position: Position, steps: int, epochs: int) -> str:
    """Where a run goes on, in words."""
    if position.halted or position.epoch >= epochs:
        return "with its out-of-fold predictions"
    if position.step >= steps:
        return f"with the validation of epoch {position.epoch + 1}"
    return f"in epoch {position.epoch + 1}, step {position.step + 1} of {steps}"
