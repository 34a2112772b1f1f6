"""How a run is asked to stop: SIGTERM, SIGINT, SIGHUP, or the time limit. The loop asks between micro-batches."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from comp.errors import CompError, Exit

_SIGNALS = {signal.SIGTERM: Exit.TERMINATED, signal.SIGINT: Exit.INTERRUPT, signal.SIGHUP: Exit.HANGUP}
_WORDS = {
    Exit.TERMINATED: "stopped by SIGTERM",
    Exit.INTERRUPT: "stopped by SIGINT",
    Exit.HANGUP: "stopped by SIGHUP",
    Exit.TIME: "the time limit is reached",
}


class Asked(Exception):
    """The run was asked to stop; whoever holds unsaved state saves it and leaves with `code`."""

    def __init__(self, code: Exit):
        super().__init__(_WORDS[code])
        self.code = code

    def error(self, where: object, what: str = "the state is saved") -> CompError:
        """The line and exit code the command ends with."""
        return CompError(where, f"{_WORDS[self.code]}, {what}", "the same command goes on", self.code)


class Stopping:
    """Whether someone wants this process to stop.

    Args:
        time_limit: Seconds from now; None is no limit.
    """

    def __init__(self, time_limit: float | None = None):
        self.deadline = None if time_limit is None else time.monotonic() + time_limit
        self.code: Exit | None = None

    def asked(self) -> Exit | None:
        """The exit code to leave with, or None to go on."""
        if self.code is None and self.deadline is not None and time.monotonic() >= self.deadline:
            self.code = Exit.TIME
        return self.code

    def check(self) -> None:
        """Raise `Asked` when the run should stop."""
        code = self.asked()
        if code is not None:
            raise Asked(code)

    @contextmanager
    def listening(self) -> Iterator[Stopping]:
        """Turn the three signals into a wish while the block runs; a second SIGINT interrupts at once.

        A SIGHUP that is ignored stays ignored: the command was started with nohup.
        """
        if threading.current_thread() is not threading.main_thread():
            yield self  # only the main thread may set handlers; a notebook's thread keeps its own
            return

        def wish(number: int, _frame: FrameType | None) -> None:
            if number == signal.SIGINT and self.code is Exit.INTERRUPT:
                raise KeyboardInterrupt
            self.code = _SIGNALS[signal.Signals(number)]

        hung_up = signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN
        numbers = [number for number in _SIGNALS if number != signal.SIGHUP or hung_up]
        before = {number: signal.signal(number, wish) for number in numbers}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
