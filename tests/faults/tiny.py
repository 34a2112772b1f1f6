"""A project small enough to be run hundreds of times, and a server that starts its commands without importing again.

Importing torch, timm, accelerate and albumentations takes seconds; a fork of a process that has done so takes none. The
server uses one thread, so that nothing but the forking thread is lost in the child.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import mmap
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[2]
PHASES = ("starting", "training", "validating", "saving", "out-of-fold", "predicting", "submitting", "between")
BETWEEN = PHASES.index("between")

DATA = """\
reader: tfrecords
size: 24
draw: {classes: 3, train: 45, val: 9, test: 12, size: 24}
folds: {k: 3}
run:
  image: {crop: 16}
  batch: 8
  epochs: 3
"""
# Dropout, mixup and EMA draw from every generator there is; plateau and best_by have state of their own.
MODEL = """\
model: {name: test_resnet, pretrained: false, dropout: 0.1}
augment: [plain, colour_jitter, noise]
optim: {name: sgd, clip: 1.0, lr: 0.01, layer_decay: null, weight_decay: 1e-4}
schedule: {name: plateau, patience: 1, warmup: 0.5}
loss: {mixup: 0.2}
ema: 0.9
best_by: val_loss
batch: 8
save_every: 0.05
"""
COMMANDS = (
    ["train", "tiny", "--data", "tiny", "--fold", "0"],
    ["predict", "tiny", "--data", "tiny"],
    ["submit", "tiny", "--data", "tiny", "--name", "out"],
)
# What an uninterrupted run and a killed one must agree on, byte for byte.
RESULTS = (
    "runs/tiny/tiny/fold0/model.safetensors",
    "runs/tiny/tiny/fold0/oof.center.npz",
    "runs/tiny/tiny/fold0/log.csv",
    "submissions/tiny/out.csv",
)


def make_project(folder: Path) -> Path:
    """Write the configs of the tiny project."""
    for name, kind, text in (("tiny", "data", DATA), ("tiny", "models", MODEL)):
        path = folder / "configs" / kind / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def results(home: Path) -> dict[str, bytes]:
    """The bytes of all results, by file name."""
    return {name: (home / name).read_bytes() for name in RESULTS}


@dataclass
class Ended:
    """How a command ended: its exit code (minus the signal, if one killed it), the phase it was in, what it printed."""

    code: int
    phase: str
    output: str


class Server:
    """Starts commands by forking; use as a context manager."""

    def __init__(self, folder: Path):
        self.marker = folder / "phase"
        self.output = folder / "output"
        folder.mkdir(parents=True, exist_ok=True)
        self.marker.write_bytes(b"\0")
        with self.marker.open("r+b") as file:
            self.phase = mmap.mmap(file.fileno(), 1)
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "NO_ALBUMENTATIONS_UPDATE": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.tiny", str(self.marker), str(self.output)],
            cwd=PROJECT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._read()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.close()
        self.process.wait(30)
        self.process.stdout.close()
        self.phase.close()

    def _read(self) -> Any:
        assert self.process.stdout
        line = self.process.stdout.readline()
        assert line, "the server ended"
        return json.loads(line)

    def run(self, home: Path, words: Sequence[str], kill: Callable[[int], None] | None = None, **trouble: Any) -> Ended:
        """Run one command to its end.

        Args:
            home: The project.
            words: What stands after `comp`.
            kill: Called with the process id once it runs; it may kill it.
            **trouble: What the process is given to cope with, see `_trouble`.
        """
        assert self.process.stdin
        self.phase[0] = 0
        request = {"home": str(home), "words": list(words), "trouble": trouble}
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        pid = self._read()
        if kill:
            kill(pid)
        code = self._read()
        return Ended(code, PHASES[self.phase[0]], self.output.read_text(errors="replace"))

    def kill_after(self, seconds: float) -> Callable[[int], None]:
        """Kill with SIGKILL so many seconds after the start."""

        def kill(pid: int) -> None:
            time.sleep(seconds)
            _kill(pid)

        return kill

    def kill_in(self, phase: str, seconds: float, within: float = 30.0) -> Callable[[int], None]:
        """Kill so many seconds after a phase is first seen."""

        def kill(pid: int) -> None:
            self.seen(phase, pid, within=within)
            time.sleep(seconds)
            _kill(pid)

        return kill

    def seen(self, phase: str, pid: int, *, stopped: bool = False, within: float = 30.0) -> bool:
        """Wait until a process is in a phase (and, if asked for, stopped there); False if it ends or time is over."""
        until = time.monotonic() + within
        while time.monotonic() < until and (state := _state(pid)) not in ("", "Z"):
            if self.phase[0] == PHASES.index(phase) and (state == "T" or not stopped):
                return True
            time.sleep(0.0002)
        return False


def _state(pid: int) -> str:
    """R, S, T, Z … as in proc(5); empty where there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return ""


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _trouble(
    signal_in: tuple[str, int] | tuple[str, int, int] | None = None,
    limits: dict[str, int] | None = None,
    reader_gone: bool = False,
    powerless: bool = False,
) -> None:
    """Make life hard for this process.

    Args:
        signal_in: A phase, the signal the process gets when it enters it, and for the which time (the first).
        limits: Of the resource module, without `RLIMIT_`.
        reader_gone: Whether stdout is a pipe that nobody reads.
        powerless: Give up root's power to write where the modes forbid it.
    """
    if signal_in:
        phase, number, *times = signal_in
        _ORDERS[PHASES.index(phase)] = (number, times[0] if times else 1)
    for name, value in (limits or {}).items():
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, value))
    if reader_gone:
        reading, writing = os.pipe()
        os.dup2(writing, 1)
        os.close(writing)
        os.close(reading)
    if powerless and os.geteuid() == 0:
        # capset(2): version 3 of the header, this process; no effective, permitted or inheritable capabilities.
        header, none = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
        assert ctypes.CDLL(None, use_errno=True).capset(header, none) == 0


_ORDERS: dict[int, tuple[int, int]] = {}  # phase: the signal, and how many times it is still to be entered


def _mark_phases(phase: mmap.mmap) -> None:
    """Make the functions that do the work say which phase the process is in."""
    from comp import files
    from comp.commands import submit
    from comp.inference import predict
    from comp.training import finishing, loop

    def wrap(module: Any, name: str, number: int) -> None:
        inner = getattr(module, name)

        def outer(*args: Any, **kwargs: Any) -> Any:
            before, phase[0] = phase[0], number
            if number in _ORDERS:
                which, times = _ORDERS[number]
                _ORDERS[number] = (which, times - 1)
                if times == 1:
                    os.kill(os.getpid(), which)
            try:
                return inner(*args, **kwargs)
            finally:
                phase[0] = before or BETWEEN

        setattr(module, name, outer)

    for module, name, what in (
        (loop, "take_step", "training"),
        (loop, "validate", "validating"),
        (files, "write_atomic", "saving"),
        (finishing, "predict_held_out", "out-of-fold"),
        (predict, "predict", "predicting"),
        (submit.submission, "blend", "submitting"),
        (submit.table, "write", "submitting"),
    ):
        wrap(module, name, PHASES.index(what))


def serve(marker: Path, output: Path) -> None:
    """Import everything, then fork a command per line of stdin."""
    import accelerate  # noqa: F401
    import albumentations  # noqa: F401
    import torch

    from comp import cli
    from comp.commands import predict, submit, train  # noqa: F401
    from comp.training import train as training  # noqa: F401

    torch.set_num_threads(1)
    with marker.open("r+b") as file:
        phase = mmap.mmap(file.fileno(), 1)
    _mark_phases(phase)
    print("0", flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        pid = os.fork()
        if pid == 0:
            os.environ["COMP_HOME"] = request["home"]
            target = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(target, 1)
            os.dup2(target, 2)
            code = 0
            _trouble(**request["trouble"])
            try:
                cli.main(request["words"])
            except SystemExit as end:
                code = int(end.code or 0)
            except BaseException:
                import traceback

                traceback.print_exc()
                code = 99
            with contextlib.suppress(OSError):
                sys.stdout.flush()
            os._exit(code)
        print(pid, flush=True)
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
    serve(Path(sys.argv[1]), Path(sys.argv[2]))
