"""Where a run's files live, and whether they belong together.

runs/<set>/<run>/fold<k>/  config.yaml  last.ckpt  model.safetensors  log.csv  oof.<views>.npz  test.<views>.npz
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from comp import config as configs
from comp import files
from comp.config import RunConfig
from comp.errors import CompError, Exit, did_you_mean


def home() -> Path:
    """The project's folder: COMP_HOME, else the folder we are in; it must have `configs/data`."""
    folder = Path(os.environ.get("COMP_HOME") or Path.cwd())
    if not (folder / "configs" / "data").is_dir():
        fix = "change to the project's folder, or set COMP_HOME to it"
        raise CompError(folder, "has no configs/data, it is not a project's folder", fix, Exit.USAGE)
    return folder


@dataclass(frozen=True)
class Fold:
    """The files of one fold of one run."""

    run: Run
    number: int

    @property
    def path(self) -> Path:
        return self.run.path / f"fold{self.number}"

    @property
    def config_file(self) -> Path:
        return self.path / "config.yaml"

    @property
    def last(self) -> Path:
        """State to go on from."""
        return self.path / "last.ckpt"

    @property
    def model(self) -> Path:
        """The selected weights (last or best epoch), with the network's description as metadata."""
        return self.path / "model.safetensors"

    @property
    def log(self) -> Path:
        return self.path / "log.csv"

    @property
    def lock(self) -> Path:
        return self.path / ".lock"

    def predictions(self, split: str, views: str) -> Path:
        """`split` is oof or test; `views` the file name of a view set."""
        return self.path / f"{split}.{views}.npz"

    def view_sets(self, split: str) -> list[str]:
        """File names of the view sets that there are predictions of, sorted; single views kept beside one are none."""
        found = (path.name.removeprefix(f"{split}.").removesuffix(".npz") for path in self.path.glob(f"{split}.*.npz"))
        return sorted(name for name in found if not name.endswith(".views"))

    @property
    def finished(self) -> bool:
        """Training ends by writing the out-of-fold predictions; they are there whole or not at all."""
        return self.predictions("oof", "center").exists()

    def config(self) -> RunConfig:
        return configs.read_run(self.config_file)

    def __str__(self) -> str:
        return f"{self.run.name}/fold{self.number}"


@dataclass(frozen=True)
class Run:
    """One config, trained on its folds."""

    home: Path
    data: str
    name: str

    @property
    def path(self) -> Path:
        return self.home / "runs" / self.data / self.name

    def fold(self, number: int) -> Fold:
        return Fold(self, number)

    def folds(self) -> list[Fold]:
        """The folds that were begun, by number."""
        numbers = [int(match[1]) for p in self.path.glob("fold*") if (match := re.fullmatch(r"fold(\d+)", p.name))]
        return [fold for fold in map(self.fold, sorted(numbers)) if fold.config_file.exists()]

    def finished(self) -> list[Fold]:
        return [fold for fold in self.folds() if fold.finished]

    def config(self) -> RunConfig:
        """The run's config, from any of its folds.

        Raises:
            CompError: No fold was begun.
        """
        begun = self.folds()
        if not begun:
            known = [run.name for run in all_runs(self.home, self.data)]
            fix = did_you_mean(self.name, known) if known else f"train one: make train DATA={self.data}"
            raise CompError(f"run {self.name}", f"there is no such run of {self.data}", fix, Exit.USAGE)
        return begun[0].config()

    def check_config(self, wanted: RunConfig) -> None:
        """Refuse a config that differs from the one this run was begun with; the changed keys are listed.

        Raises:
            CompError: Exit code 2, with a name to give the new run.
        """
        for fold in self.folds():
            changes = configs.differences(fold.config(), wanted)
            if changes:
                listed = ", ".join(f"{key}: {old} → {new}" for key, old, new in changes[:6])
                more = f" and {len(changes) - 6} more" if len(changes) > 6 else ""
                key, _, value = changes[0]
                suffix = re.sub(r"[^A-Za-z0-9.]+", "-", f"{key.split('.')[-1]}{value}").strip("-.")[:24]
                fix = f"give it a name of its own, e.g. NAME={self.name}-{suffix}, or remove {self.path}"
                raise CompError(f"run {self.name}", f"was begun with another config ({listed}{more})", fix, Exit.CONFIG)


def all_runs(home: Path, data: str) -> list[Run]:
    """Every run of a set that was begun, by name."""
    folder = home / "runs" / data
    names = sorted(path.name for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    return [run for run in (Run(home, data, name) for name in names) if run.folds()]


def parse_checkpoint(home: Path, data: str, text: str) -> tuple[Fold, str]:
    """`<run>/fold<k>[@best|@last]` as a fold and which of its weights (default best).

    Raises:
        CompError: Not of this form, or no such weights.
    """
    match = re.fullmatch(r"([A-Za-z0-9][\w.+-]*)/fold(\d+)(?:@(best|last))?", text)
    if not match:
        raise CompError(f"FROM={text}", "is not a checkpoint", "write <run>/fold<k>@best or @last", Exit.CONFIG)
    fold, which = Run(home, data, match[1]).fold(int(match[2])), match[3] or "best"
    wanted = fold.model if which == "best" else fold.last
    if not wanted.exists():
        raise CompError(f"FROM={text}", f"{wanted} does not exist", "train that fold first", Exit.FILE)
    return fold, which


def weights_digest(fold: Fold) -> str:
    """SHA-256 of the selected weights: a prediction made by other weights is stale."""
    return files.digest_file(fold.model)
