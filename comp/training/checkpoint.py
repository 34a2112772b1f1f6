"""last.ckpt: everything a run needs to go on as if nothing had happened, whole or absent, and checked when read."""

from __future__ import annotations

import io
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from comp import files
from comp.errors import CompError, Exit

FORMAT = 1


@dataclass
class Best:
    """The best epoch so far.

    Attributes:
        epoch: Its number, from 0.
        score: What `best_by` compares, in its own unit.
        log_loss: Decides between equal scores.
        file: The weights, in the fold's folder.
        digest: SHA-256 of that file.
    """

    epoch: int
    score: float
    log_loss: float
    file: str
    digest: str


@dataclass
class Position:
    """How far a run has come, in plain numbers.

    Attributes:
        epoch: The epoch it is in, from 0.
        step: Optimizer steps done in it; all of them, while the epoch is not validated yet.
        micro: Most images per forward pass on one device.
        sums: For each process [sum of the images' losses, images right] of this epoch.
        seconds: Training time in this epoch.
        rows: The log's rows so far.
        times: The same of times.csv.
        best: The best epoch.
        stale: Epochs since then.
        halted: Early stopping has ended the training.
        losses: The loss of each step of this epoch, for the watch.
        norms: The gradient norms, likewise.
        notes: What the watch said.
    """

    epoch: int = 0
    step: int = 0
    micro: int = 0
    sums: list[list[float]] = field(default_factory=list)
    seconds: float = 0.0
    rows: list[list[Any]] = field(default_factory=list)
    times: list[list[Any]] = field(default_factory=list)
    best: Best | None = None
    stale: int = 0
    halted: bool = False
    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass
class Checkpoint:
    """What last.ckpt holds.

    Attributes:
        about: What it belongs to: network, fold, classes, digests of config, data, pixels and folds.
        position: How far the run has come.
        network: The network's state.
        ema: The averaged network's state and its counter, where there is one.
        optimizer: The optimizer's state.
        schedule: Plateau's memory.
        scaler: The loss scaler's state under fp16.
        watch: What the watch remembers.
    """

    about: dict[str, Any]
    position: Position
    network: dict[str, Tensor]
    ema: dict[str, Any] | None
    optimizer: dict[str, Any]
    schedule: dict[str, float]
    scaler: dict[str, Any] | None
    watch: dict[str, Any]


def save(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint; the older one goes only after the new one was read back from the disk as it was meant.

    Raises:
        CompError: Exit code 7; the older checkpoint is intact.
    """
    values = {"format": FORMAT, **{name: getattr(checkpoint, name) for name in Checkpoint.__dataclass_fields__}}
    values["position"] = asdict(checkpoint.position)
    buffer = io.BytesIO()
    torch.save(values, buffer)
    data = buffer.getbuffer()

    def verify(written: Path) -> None:
        if written.read_bytes() != data:
            what = "was not read back as it was written"
            raise CompError(path, what, "check the disk; the older checkpoint is kept", Exit.SYSTEM)

    files.write_atomic(path, lambda file: file.write(data), verify)


def load(path: Path, about: dict[str, Any]) -> Checkpoint:
    """Read a checkpoint that belongs to this run; no code in it is run (`weights_only`).

    Args:
        path: The file.
        about: What it must belong to.

    Raises:
        CompError: Exit code 4: torn, foreign, or made by another network, config, data or split; the line says which.
    """
    fix = f"remove {path.parent} to begin again, or give the run another NAME"
    values = read(path)
    for key, wanted in about.items():
        found = values["about"].get(key)
        if found != wanted:
            difference = f"its {key} is {_short(found)}, this run's {_short(wanted)}"
            if key == "classes" and isinstance(found, list):
                difference = f"it has {len(found)} classes, this run {len(wanted)}"
                if len(found) == len(wanted):
                    difference = "its classes have other names"
            raise CompError(path, f"is of another run: {difference}", fix, Exit.FILE)
    try:
        position = Position(**values["position"])
        position.best = Best(**values["position"]["best"]) if values["position"]["best"] else None
    except TypeError:
        raise CompError(path, "is no checkpoint of this version", fix, Exit.FILE) from None
    return Checkpoint(**{**{name: values[name] for name in Checkpoint.__dataclass_fields__}, "position": position})


def read(path: Path) -> dict[str, Any]:
    """The values of a checkpoint file, whatever run it is of.

    Raises:
        CompError: Exit code 4: it is torn, no checkpoint, or holds more than tensors and plain values.
    """
    data = files.read_bytes(path)
    try:
        files.check_zip(io.BytesIO(data), len(data))  # torch does not look at the checksums
        values = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # zipfile, pickle and torch raise a dozen kinds on damaged or hostile bytes
        what = "holds code, it is refused" if "Unsupported" in str(error) else "is torn, or no checkpoint"
        raise CompError(path, what, f"remove it to begin the fold again: rm {path}", Exit.FILE) from None
    wanted = {"format", *Checkpoint.__dataclass_fields__}
    plain = isinstance(values, dict) and wanted <= set(values) and values["format"] == FORMAT
    if not plain or not all(isinstance(values[key], dict) for key in ("about", "position", "network", "optimizer")):
        raise CompError(path, "is no checkpoint of this version", f"remove it to begin again: rm {path}", Exit.FILE)
    return dict(values)


def _short(value: object) -> str:
    text = str(value)
    return f"{text[:12]}…" if len(text) > 40 else text
