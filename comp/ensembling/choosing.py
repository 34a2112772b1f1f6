"""Which runs are members, on which of their folds, and which prediction files they lack."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from comp.ensembling.truth import Truth
from comp.errors import CompError, Exit, did_you_mean
from comp.runs import Fold, Run

IMPORTED = "imported"  # the folder of a member without folds


def folder_of(home: Path, data: str, name: str) -> Path:
    """Where an imported member's `oof.npz` and `test.npz` lie."""
    return Run(home, data, name).path / IMPORTED


def is_imported(run: Run) -> bool:
    """Whether a run is an imported model rather than one trained here."""
    return any((run.path / IMPORTED / f"{split}.npz").exists() for split in ("oof", "test"))


def begun_folds(run: Run) -> list[Fold]:
    """Folds that were begun here or that somebody's prediction file was put into, by number."""
    found = []
    for path in run.path.glob("fold*"):
        match = re.fullmatch(r"fold(\d+)", path.name)
        if match and ((path / "config.yaml").exists() or any(path.glob("oof.*.npz"))):
            found.append(run.fold(int(match[1])))
    return sorted(found, key=lambda fold: fold.number)


def finished_folds(run: Run) -> list[int]:
    """The folds whose out-of-fold predictions are there, for whatever views."""
    return [fold.number for fold in begun_folds(run) if any(fold.path.glob("oof.*.npz"))]


def known_runs(home: Path, data: str) -> list[Run]:
    """Everything that could be a member, by name."""
    folder = home / "runs" / data
    names = sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    found = [Run(home, data, name) for name in names]
    return [run for run in found if is_imported(run) or begun_folds(run)]


@dataclass(frozen=True)
class Choice:
    """Which runs are blended, and on which of their folds.

    Attributes:
        runs: The members.
        folds: The folds all of them bring; empty when all are imported.
        notes: What the user must know about the choice.
    """

    runs: tuple[Run, ...]
    folds: tuple[int, ...]
    notes: tuple[str, ...]


def choose(home: Path, truth: Truth, names: Sequence[str]) -> Choice:
    """Choose the members: those named, else every complete run, else every run with a finished fold.

    Args:
        home: The project's folder.
        truth: The data set.
        names: Run names; empty to choose.

    Raises:
        CompError: No such run, nothing finished, or members that share no fold.
    """
    known = {run.name: run for run in known_runs(home, truth.data)}
    notes: list[str] = []
    numbers = truth.numbers
    if names:
        for name in names:
            if name not in known:
                fix = did_you_mean(name, known) if known else f"train one: comp train --data {truth.data}"
                raise CompError(f"run {name}", f"there is no such run of {truth.data}", fix, Exit.USAGE)
        if len(set(names)) < len(names):
            twice = next(name for name in names if list(names).count(name) > 1)
            raise CompError(f"run {twice}", "is named twice", "name it once; weights are for vote:weighted", Exit.USAGE)
        runs = [known[name] for name in names]
    else:
        finished = {run.name: finished_folds(run) for run in known.values()}
        runs = [run for run in known.values() if is_imported(run) or finished[run.name] == numbers]
        if not any(not is_imported(run) for run in runs):
            runs += [run for run in known.values() if not is_imported(run) and finished[run.name]]
        left_out = [run.name for run in known.values() if run not in runs]
        if left_out and runs:
            notes.append(f"left out, not all folds are trained: {', '.join(left_out)}")
    if not runs:
        fix = f"finish one: comp train MODEL --data {truth.data}"
        raise CompError(f"set {truth.data}", "no run of it has a finished fold", fix, Exit.FILE)
    common: list[int] | None = None
    for run in runs:
        if is_imported(run):
            continue
        here = finished_folds(run)
        if not here:
            raise CompError(
                f"run {run.name}",
                "has no finished fold",
                f"the same command goes on: comp train … --name {run.name}",
                Exit.FILE,
            )
        foreign = [fold for fold in here if numbers and fold not in numbers]
        if foreign:
            what = f"has a fold {foreign[0]}, {truth.data} has folds {numbers[0]} to {numbers[-1]}"
            raise CompError(f"run {run.name}", what, "it was trained on another split; leave it out", Exit.FILE)
        common = here if common is None else [fold for fold in common if fold in here]
    if common is not None and not common:
        have = "; ".join(f"{run.name}: {', '.join(map(str, finished_folds(run)))}" for run in runs[:6])
        raise CompError("members", f"share no finished fold ({have})", "train the missing folds", Exit.FILE)
    for run in runs:
        if common is not None and not is_imported(run) and finished_folds(run) != common:
            notes.append(
                f"{run.name} has folds {', '.join(map(str, finished_folds(run)))}; the folds all members "
                f"have are used: {', '.join(map(str, common))}"
            )
    return Choice(tuple(runs), tuple(common or ()), tuple(notes))


def missing_files(choice: Choice, views_file: str, splits: Iterable[str]) -> list[Path]:
    """Prediction files that must be made before these members can be read (imported members are never predicted)."""
    return [
        run.fold(fold).predictions(split, views_file)
        for run in choice.runs
        if not is_imported(run)
        for fold in choice.folds
        for split in splits
        if not run.fold(fold).predictions(split, views_file).exists()
    ]


def common_views(choice: Choice, splits: Iterable[str]) -> list[str]:
    """File names of the view sets for which every member has its predictions on every fold, by name."""
    splits = tuple(splits)
    own = [run for run in choice.runs if not is_imported(run)]
    if not own or not choice.folds:
        return []
    names = own[0].fold(choice.folds[0]).view_sets(splits[0])
    return [name for name in names if not missing_files(choice, name, splits)]
