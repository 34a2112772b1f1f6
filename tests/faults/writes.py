"""Every write, fsync and rename of one save killed or failed, one after another: the file must be old or new.

The form without other programs wraps what the interpreter calls; the one with strace interferes with the system calls
of a process from outside.
"""

from __future__ import annotations

import errno
import io
import os
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from comp import files
from comp.errors import CompError

PROJECT = Path(__file__).resolve().parents[2]
# What happens at the n-th event: the process dies before, in the middle or after it, or the event fails.
DEEDS = ("kill before", "kill inside", "kill after", "ENOSPC", "ENOSPC inside", "EIO", "EIO inside")
Save = Callable[[Path, int], object]  # writes the file's state number so-and-so


def save_file(path: Path, number: int) -> None:
    """A file of some blocks, all of them different between the states."""
    files.write_atomic(path, lambda file: [file.write(bytes([number + block]) * 5000) for block in range(3)])


def save_checkpoint(path: Path, number: int) -> None:
    """A tiny last.ckpt."""
    import torch

    from comp.training.checkpoint import Checkpoint, Position, save

    network = {"weight": torch.full((50, 50), float(number))}
    save(path, Checkpoint({"run": "x"}, Position(epoch=number), network, None, {"state": {}}, {}, None, {}))


class Interference:
    """Counts the events that change the disk and does its deed at the n-th.

    Args:
        at: Which event, from 1; 0 does nothing.
        deed: One of DEEDS.
    """

    def __init__(self, at: int, deed: str):
        self.at, self.deed, self.count = at, deed, 0

    def event(self, do: Callable[[], Any], half: Callable[[], Any] | None = None) -> Any:
        """Let an event happen, or not."""
        self.count += 1
        if self.count != self.at:
            return do()
        what, _, when = self.deed.partition(" ")
        if when == "inside" and half:
            half()
        if self.deed == "kill after":
            do()
        if what == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        raise OSError(getattr(errno, what), os.strerror(getattr(errno, what)))

    def install(self) -> None:
        """Put this between the program and the system, for the rest of this process."""
        watcher = self

        class Raw(io.FileIO):
            def write(self, data: Any) -> int:
                block = bytes(data)
                raw = super()
                return int(watcher.event(lambda: raw.write(block), lambda: raw.write(block[: len(block) // 2])))

        plain_open, plain_os_open, fsync, replace = io.open, os.open, os.fsync, os.replace

        def open_file(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            if mode == "wb":
                return watcher.event(lambda: io.BufferedWriter(Raw(file, "w"), 4096))
            return plain_open(file, mode, *args, **kwargs)

        io.open = open_file  # type: ignore[assignment]
        os.open = lambda *args, **kwargs: watcher.event(lambda: plain_os_open(*args, **kwargs))
        os.fsync = lambda number: watcher.event(lambda: fsync(number))
        os.replace = lambda *args, **kwargs: watcher.event(lambda: replace(*args, **kwargs))


def child(work: Callable[[], int]) -> int:
    """Do work in a forked process; its exit code, or minus the signal that ended it."""
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            code = work()
        except CompError as error:
            code = int(error.code)
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@dataclass
class Outcome:
    """What came of it.

    Attributes:
        found: How often the file was old and new afterwards.
        events: The events of one save.
        torn: (event, deed, what was found instead), where a promise was broken.
    """

    found: Counter[str] = field(default_factory=Counter)
    events: int = 0
    torn: list[tuple[int, str, str]] = field(default_factory=list)

    def judge(self, path: Path, old: bytes, new: bytes, event: int, deed: str, code: int) -> None:
        """Look at the file, and at how the process ended."""
        now = path.read_bytes() if path.exists() else b""
        self.found["old" if now == old else "new" if now == new else "torn"] += 1
        if now not in (old, new):
            self.torn.append((event, deed, f"a file of {len(now)} bytes"))
        if code != (-signal.SIGKILL if deed.startswith("kill") else 7):
            self.torn.append((event, deed, f"ended with {code}"))
        left = [each.name for each in path.parent.iterdir() if each != path]
        if left and not deed.startswith("kill"):
            self.torn.append((event, deed, f"left {left}"))
        files.clean_temporary(path.parent)
        if [each for each in path.parent.iterdir() if each != path]:
            self.torn.append((event, deed, "left what clean_temporary does not remove"))


def _states(folder: Path, save: Save) -> tuple[Path, bytes, bytes]:
    path = folder / "file"
    save(path, 2)
    new = path.read_bytes()
    save(path, 1)
    return path, path.read_bytes(), new


def from_inside(folder: Path, save: Save) -> Outcome:
    """Each deed at each event of one save, each in a process of its own."""
    path, old, new = _states(folder, save)
    outcome = Outcome()

    def work(at: int, deed: str) -> int:
        interference = Interference(at, deed)
        interference.install()
        save(path, 2)
        return 200 + interference.count if at == 0 else 0

    outcome.events = child(lambda: work(0, "")) - 200
    for at in range(1, outcome.events + 1):
        for deed in DEEDS:
            path.write_bytes(old)
            code = child(lambda at=at, deed=deed: work(at, deed))  # type: ignore[misc]
            outcome.judge(path, old, new, at, deed, code)
    return outcome


CALLS = ("openat", "write", "fsync", "rename")


def from_outside(folder: Path, save: Save) -> Outcome | None:
    """The same by strace, at each system call of one save that names the file or its folder; None without strace."""
    strace = shutil.which("strace")
    if strace is None:
        return None
    path, old, new = _states(folder, save)
    program = [sys.executable, "-B", "-m", "tests.faults.writes", save.__name__, str(path)]
    log = folder.parent / "strace.log"

    def run(*options: str) -> int:
        path.write_bytes(old)
        done = subprocess.run(
            [strace, "-f", "-y", "-o", str(log), *options, *program],
            cwd=PROJECT,
            capture_output=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        return done.returncode

    outcome = Outcome()
    if run("-e", f"trace={','.join(CALLS)}") != 0:
        return None  # strace is there, but may not trace here
    places: list[tuple[str, int]] = []
    for name in CALLS:
        lines = [line for line in log.read_text(errors="replace").splitlines() if re.match(rf"\d+ +{name}\(", line)]
        # `-f` counts the calls of each thread by itself, and the main thread does the saving.
        main = [line for line in lines if line.split()[0] == lines[0].split()[0]]
        places += [
            (name, number) for number, line in enumerate(main, 1) if str(folder) in line and "RDONLY)" not in line
        ]
    outcome.events = len(places)
    for number, (name, when) in enumerate(places, 1):
        for deed, how in (("kill before", "signal=KILL"), ("ENOSPC", "error=ENOSPC"), ("EIO", "error=EIO")):
            code = run("-e", f"trace={name}", "-e", f"inject={name}:{how}:when={when}")
            code = -signal.SIGKILL if code in (-signal.SIGKILL, 128 + signal.SIGKILL) else code
            outcome.judge(path, old, new, number, f"{deed} {name}", code)
    return outcome


if __name__ == "__main__":
    try:
        {"save_file": save_file, "save_checkpoint": save_checkpoint}[sys.argv[1]](Path(sys.argv[2]), 2)
    except CompError as error:
        sys.exit(int(error.code))
