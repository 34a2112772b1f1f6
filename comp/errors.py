"""One exception for everything a user can cause or must know: one line and an exit code."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from enum import IntEnum


class Exit(IntEnum):
    """Exit codes of every command (docs/promises.md)."""

    DONE = 0
    USAGE = 2
    CONFIG = 2
    DATA = 3
    FILE = 4
    BUSY = 5
    NUMERIC = 6
    SYSTEM = 7
    PROCESS = 8
    TIME = 75
    HANGUP = 129
    INTERRUPT = 130
    TERMINATED = 143


class CompError(Exception):
    """What went wrong, in one line: `where: what; fix`.

    Args:
        where: The file, config key, image id or command that is wrong.
        what: What is wrong with it.
        fix: What to do about it; empty where nothing can be done.
        code: The exit code the command ends with.
    """

    def __init__(self, where: object, what: str, fix: str, code: Exit):
        self.where, self.what, self.fix, self.code = str(where), what, fix, code
        line = f"{self.where}: {what}" + (f"; {fix}" if fix else "")
        super().__init__(" ".join(line.split()))

    def __reduce__(self) -> tuple[type[CompError], tuple[str, str, str, Exit]]:
        return CompError, (self.where, self.what, self.fix, self.code)  # loader workers send errors to their parent


def did_you_mean(word: str, choices: Iterable[str], limit: int = 8) -> str:
    """Name the nearest valid word, or the valid words themselves when there are few of them.

    Returns:
        A phrase for the `fix` part of an error, e.g. `did you mean 'resnet34'?`.
    """
    choices = list(choices)
    near = difflib.get_close_matches(word, choices, n=1, cutoff=0.6)
    if near:
        return f"did you mean '{near[0]}'?"
    if not choices:
        return "there is none yet"
    if len(choices) <= limit:
        return "choose from " + ", ".join(choices)
    return f"{len(choices)} names are known, none is near"
