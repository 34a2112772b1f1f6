"""What several verbs do first: find the project, read the data set, make manifest and folds where they are missing."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from comp import config, files, runs, terminal, yamls
from comp.config import DataConfig, RunConfig
from comp.data import folds, manifest
from comp.data.manifest import Dataset
from comp.errors import CompError, Exit


def project(data: str, settings: Sequence[str] = ()) -> tuple[Path, DataConfig, dict[str, Any]]:
    """Find the project and read a data set's config.

    Args:
        data: `DATA=`.
        settings: `key=value` words; keys that begin with `data.` are the data set's.

    Returns:
        The project's folder, the data set's config, the other settings as nested keys.
    """
    home = runs.home()
    overrides = yamls.parse_overrides(settings)
    of_data = overrides.pop("data", {})
    if not isinstance(of_data, dict):
        raise CompError(f"data={of_data}", "is no setting", "write --data NAME, or data.size=224", Exit.USAGE)
    return home, config.load_data(home, data, of_data), overrides


def only_data(settings: dict[str, Any]) -> None:
    """Refuse settings a verb has no use for, rather than ignore them."""
    if settings:
        first = next(iter(settings))
        raise CompError(f"argument '{first}'", "is not for this command", "it takes data.… settings only", Exit.USAGE)


def prepared(home: Path, data: DataConfig, *, again: bool = False) -> Dataset:
    """The data set's manifest; drawn (the built-in set) and made where it is missing.

    Args:
        home: The project's folder.
        data: The data set.
        again: Make the manifest also where there is one.
    """
    folder = manifest.folder(home, data)
    if not again and (folder / "manifest.csv").exists():
        dataset = manifest.load(folder)
        now = manifest.settings(data)
        changed = [f"{key}: {old} → {now[key]}" for key, old in dataset.settings.items() if old != now.get(key)]
        if data.root and dataset.root.resolve() != data.root_path(home).resolve():
            changed.append(f"root: {dataset.root} → {data.root}")
        if changed:
            fix = f"run `comp data --data {data.name}` with the same data.… settings"
            raise CompError(folder, f"was made with other settings ({', '.join(changed)})", fix, Exit.DATA)
        return dataset
    with files.lock(folder / ".lock", f"reading {data.name}"):
        return manifest.prepare(data, home)


def split(home: Path, data: DataConfig, dataset: Dataset) -> dict[str, int]:
    """The folds of a data set by image id, from `folds/<set>.csv`; made where the file is missing.

    Raises:
        CompError: The file holds other ids than the manifest, or another number of folds than the data set's config.
    """
    path = home / "folds" / f"{data.name}.csv"
    if path.exists():
        return folds.load(path, dataset, data)
    found, warnings = folds.make(dataset, data.folds.k, data.folds.seed, data.val)
    for warning in warnings:
        terminal.warn(warning)
    folds.save(path, found)
    shown = f"{len(found):,} photos in {len(set(found.values()))} folds"
    terminal.say(f"wrote {path.relative_to(home)}: {shown} (commit it: it is the team's split)")
    return found


def of_run(home: Path, run: RunConfig) -> tuple[DataConfig, Dataset]:
    """The data a finished run was made on, at its own resolution."""
    overrides = {"size": run.data.size} if run.data.size else {}
    data = config.load_data(home, run.data.name, overrides)
    return data, prepared(home, data)
