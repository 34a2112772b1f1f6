"""Several processes of one command: start them, pass signals on, end all when one dies, leave none behind.

`torchrun --nproc-per-node N -m comp …` works as well: a process that finds WORLD_SIZE set starts no others.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import IO

from comp.errors import CompError, Exit

_PARENT = "COMP_LAUNCHER"  # process id of the launcher, in the environment of what it starts
_PR_SET_PDEATHSIG = 1
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
# Seconds the others get once the first one has left: those that stop together may still be saving, those that lost a
# process cannot do anything useful.
_GRACE_STOP, _GRACE_ERROR, _GRACE_DEATH = 120.0, 5.0, 3.0
_STOPS = {Exit.TIME, Exit.HANGUP, Exit.INTERRUPT, Exit.TERMINATED}


def gpu_count() -> int:
    """NVIDIA GPUs this process may use, without importing torch; 0 where there is no driver."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    folder = Path("/proc/driver/nvidia/gpus")
    try:
        there = len(list(folder.iterdir()))
    except OSError:
        there = 0
    if not there:  # some containers hide /proc/driver
        with suppress(OSError, subprocess.SubprocessError):
            listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=10, check=True)
            there = sum(line.startswith("GPU ") for line in listed.stdout.splitlines())
    if visible is None or not there:
        return there
    names = [name.strip() for name in visible.split(",")]
    return len(names[: names.index("-1")] if "-1" in names else [name for name in names if name])


def wanted(procs: int | None) -> int:
    """How many processes this command should start: 0 when it should do the work itself.

    Args:
        procs: `PROCS=`; None is one per GPU, else one.

    Raises:
        CompError: A number that cannot be.
    """
    if "WORLD_SIZE" in os.environ:
        follow_parent()
        return 0
    if procs is None:
        procs = max(1, gpu_count())
    elif procs < 1:
        raise CompError(f"PROCS={procs}", "is no number of processes", "use 1 or more", Exit.USAGE)
    elif (gpus := gpu_count()) and procs > max(1, gpus):
        fix = f"use {gpus} or fewer, or hide the GPUs: CUDA_VISIBLE_DEVICES="
        raise CompError(f"PROCS={procs}", f"there are {gpus} GPUs, one process needs one", fix, Exit.USAGE)
    return procs if procs > 1 else 0


def follow_parent() -> None:
    """Die when the launcher does, whatever kills it (Linux)."""
    parent = os.environ.get(_PARENT)
    if parent is None:
        return
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(parent):
        os._exit(int(Exit.PROCESS))  # it died before we could ask for the signal


def start(
    procs: int | None = None,
    words: Sequence[str] | None = None,
    program: Sequence[str] = (sys.executable, "-m", "comp"),
) -> None:
    """Run this command in several processes on this machine, and wait for them.

    Args:
        procs: How many (see `wanted`).
        words: The command's words after `comp`; default this process's own.
        program: What is run with these words.

    Raises:
        CompError: What a process said, with its exit code; or exit code 8, naming the process that died and its
            signal.
    """
    count = max(1, wanted(procs))
    words = list(sys.argv[1:] if words is None else words)
    environment = {**os.environ, **_world(count), _PARENT: str(os.getpid())}
    children: list[_Child] = []
    try:
        with _forwarding(children) as sent:
            for rank in range(count):
                children.append(
                    _Child(rank, [*program, *words], {**environment, "RANK": str(rank), "LOCAL_RANK": str(rank)})
                )
            _wait(children)
    finally:
        for child in children:
            child.kill()
    _judge(children, sent)


def _world(count: int) -> dict[str, str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    found = {
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    if not gpu_count():
        found["ACCELERATE_USE_CPU"] = "1"
    if "OMP_NUM_THREADS" not in os.environ:
        found["OMP_NUM_THREADS"] = str(max(1, len(os.sched_getaffinity(0)) // count))
    return found


class _Child:
    """One of the processes, in a session of its own, so that all it starts can be ended with it."""

    def __init__(self, rank: int, command: Sequence[str], environment: dict[str, str]):
        self.rank, self.line, self.killed = rank, "", False
        self.process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, start_new_session=True)
        assert self.process.stderr is not None
        self._reader = threading.Thread(target=self._pass_on, args=(self.process.stderr,), daemon=True)
        self._reader.start()

    def _pass_on(self, pipe: IO[bytes]) -> None:
        """Its stderr becomes ours, but for its last word: that is said once for all processes."""
        with pipe:
            for raw in pipe:
                line = raw.decode(errors="replace")
                if line.startswith("error: "):
                    self.line = line.removeprefix("error: ").strip()
                else:
                    with suppress(OSError, ValueError):
                        sys.stderr.write(line)
                        sys.stderr.flush()

    def code(self) -> int | None:
        return self.process.poll()

    def kill(self) -> None:
        """End it and its workers at once, where it still runs."""
        if self.process.poll() is None:
            self.killed = True
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self._reader.join(2.0)


@contextmanager
def _forwarding(children: Sequence[_Child]) -> Iterator[list[int]]:
    """Pass the signals that ask for a stop on to all processes; yields those that came."""
    sent: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield sent
        return

    def forward(number: int, _frame: FrameType | None) -> None:
        sent.append(number)
        for child in children:
            if child.code() is None:
                child.process.send_signal(number)

    hung_up = signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN  # else the command was started with nohup
    numbers = [number for number in _SIGNALS if number != signal.SIGHUP or hung_up]
    before = {number: signal.signal(number, forward) for number in numbers}
    try:
        yield sent
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _wait(children: Sequence[_Child]) -> None:
    """Until all have ended, or the first failure's grace is over."""
    deadline: float | None = None
    while any(child.code() is None for child in children):
        failed = [code for child in children if (code := child.code())]
        if failed:
            stops = all(code in _STOPS for code in failed)
            grace = _GRACE_STOP if stops else _GRACE_DEATH if any(code < 0 for code in failed) else _GRACE_ERROR
            now = time.monotonic()
            deadline = now + grace if deadline is None else min(deadline, now + grace)
            if now >= deadline:
                return
        time.sleep(0.05)


def _judge(children: Sequence[_Child], sent: Sequence[int]) -> None:
    """Raise what went wrong first: a process killed, else what one of them said."""
    own = [(child, code) for child in children if not child.killed and (code := child.process.returncode)]
    dead = [(child, -code) for child, code in own if code < 0]
    for child, number in dead:
        if number in sent:  # it had not begun to listen
            name = signal.Signals(number).name
            raise CompError("comp", f"stopped by {name} before the work began", "", Exit(128 + number))
        what = f"was killed by {signal.Signals(number).name}"
        fix = "run the same command again, it goes on from the last state saved"
        raise CompError(f"process {child.rank} of {len(children)}", what, fix, Exit.PROCESS)
    known = {int(code) for code in Exit}
    # A process that only noticed another's end (exit code 8) is not the cause.
    for child, code in sorted(own, key=lambda each: (each[1] == Exit.PROCESS, each[0].rank)):
        where, _, what = child.line.partition(": ")
        if code in known and what:
            raise CompError(where, what, "", Exit(code))
        what = f"ended with exit code {code}" + (f" ({child.line})" if child.line else "")
        fix = "run it again with --debug"
        raise CompError(f"process {child.rank} of {len(children)}", what, fix, Exit.PROCESS)


def leave(code: int) -> None:
    """End this process if it is one of several; return if it is not.

    Everything is written by then. The interpreter's own way out is not taken: gloo's threads may still run while it
    takes their objects apart, and would abort a process that has done its work ("terminate called …").
    """
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError, AttributeError):
                stream.flush()
        os._exit(code)
