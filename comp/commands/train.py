"""`comp train`: train one fold of a model, or go on where it stopped."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from comp import config, files, launch, runs, terminal, yamls
from comp.commands import common
from comp.config import DataConfig, RunConfig
from comp.data import augment, manifest
from comp.errors import CompError, Exit, did_you_mean
from comp.nets import names
from comp.runs import Fold, Run
from comp.training import optim, summary
from comp.training.stopping import Stopping

if TYPE_CHECKING:
    from comp.data.manifest import Dataset


def train(
    model: str = "resnet34",
    *,
    fold: int | str = 0,
    data: str = "petals",
    name: str | None = None,
    start: str | None = None,
    procs: int | None = None,
    settings: Sequence[str] = (),
) -> dict[str, Any] | list[dict[str, Any]]:
    """Train a fold of a model to its out-of-fold predictions; a finished one is answered at once.

    Args:
        model: A file of `configs/models/`, or any timm name.
        fold: The fold held out, or `all`.
        data: A file of `configs/data/`.
        name: The run's name; default the model's.
        start: `FROM=`: another run's weights to start from, `<run>/fold<k>@best` or `@last`.
        procs: Processes; default one per GPU, else one.
        settings: `key=value` words of the run's config, or of the data set's with `data.` before them.

    Returns:
        The fold's scores; a list of them for `all`.
    """
    home, data_config, overrides = common.project(data, settings)
    if start is not None:
        overrides = yamls.merge(overrides, {"model": {"init_from": start}})
    run_config, notes = config.load_run(home, model, data_config, overrides)
    run = Run(home, data, config.check_name("NAME", model if name is None else name))
    number = _fold_number(fold)
    check(home, run_config, data_config)
    run.check_config(run_config)

    stopping = Stopping(run_config.time_limit)  # counts from here: what comes before the training is part of it
    _after_the_first(manifest.folder(home, data_config) / "manifest.csv", run_config)
    dataset = common.prepared(home, data_config)
    _after_the_first(home / "folds" / f"{data}.csv", run_config)
    folds = common.split(home, data_config, dataset)
    known = sorted({each for each in folds.values() if each >= 0})
    if number is not None and number not in known:
        raise CompError(f"FOLD={fold}", "there is no such fold", did_you_mean(str(fold), map(str, known)), Exit.USAGE)
    todo = [run.fold(each) for each in (known if number is None else [number])]

    if all(each.finished for each in todo):
        results = [summary.fold_result(each, data_config, dataset) for each in todo]
    else:
        if launch.wanted(procs):
            words = ["train", model, "--fold", str(fold), "--data", data, *settings]
            words += [] if name is None else ["--name", name]
            words += [] if start is None else ["--from", start]
            for each in todo:
                with files.lock(each.lock, f"training {each}"):  # refused here, before any process is started
                    pass
            launch.start(procs, words)
            return _answer([summary.fold_result(each, data_config, dataset) for each in todo], number)
        for note in notes:
            terminal.say(note)
        results = [_train(home, run_config, data_config, dataset, folds, each, stopping) for each in todo]
    for result in results:
        terminal.say(summary.result_line(result))
    terminal.say(summary.next_command(todo[-1], model, known))
    return _answer(results, number)


def check(home: Path, run: RunConfig, data: DataConfig) -> None:
    """Refuse what cannot be trained before anything heavy is imported or any file is written."""
    names.check_model_name(run.model.name)
    augment.check(run.augment, data.symmetries)
    optim.check_optimizer(run.optim.name)
    pretrained = run.model.pretrained
    if isinstance(pretrained, str) and run.model.init_from is None and not (home / pretrained).is_file():
        fix = "put the file there, or set model.pretrained to true or false"
        raise CompError(f"model.pretrained = {pretrained}", "there is no such file", fix, Exit.FILE)
    if run.model.init_from is not None:
        runs.parse_checkpoint(home, data.name, run.model.init_from)


def _fold_number(fold: int | str) -> int | None:
    if str(fold) == "all":
        return None
    try:
        return int(fold)
    except ValueError:
        raise CompError(f"FOLD={fold}", "is no fold", "give its number, or all", Exit.USAGE) from None


def _train(
    home: Path,
    run: RunConfig,
    data: DataConfig,
    dataset: Dataset,
    folds: dict[str, int],
    fold: Fold,
    stopping: Stopping,
) -> dict[str, Any]:
    if fold.finished:
        return summary.fold_result(fold, data, dataset)
    from comp.training.train import train_fold  # torch, timm and accelerate take seconds to import

    terminal.say(f"training {fold} on {data.name}")
    return train_fold(home, run, data, dataset, folds, fold, stopping)


def _answer(results: list[dict[str, Any]], number: int | None) -> dict[str, Any] | list[dict[str, Any]]:
    return results if number is None else results[0]


def _after_the_first(path: Path, run: RunConfig) -> None:
    """Under torchrun the first process makes what is missing, the others wait for the file."""
    deadline = time.monotonic() + run.hang_limit
    while not terminal.is_first() and not path.exists():
        if time.monotonic() > deadline:
            raise CompError(path, "the first process did not write it in time", "run it alone first", Exit.PROCESS)
        time.sleep(0.2)
