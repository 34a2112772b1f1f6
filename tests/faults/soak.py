"""The long fault tests, hours on a laptop: `make soak`.

`python -m tests.faults.soak [PART …] [--write]`: parts are kills, writes, fuzz and guards, all of them by default.
With --write the tables go into docs/promises.md, between the markers of each part.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import os
import platform
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.faults import fuzz, guards, kills, writes
from tests.faults.tiny import PHASES, PROJECT, Server

PROMISES = PROJECT / "docs" / "promises.md"
Report = tuple[bool, list[str]]  # whether the promise was kept, and the lines of the table


def _say(line: str) -> None:
    print(line, flush=True)


def soak_kills(folder: Path, single: int, chain: int) -> Report:
    """Runs killed once at a random moment, and one killed again and again."""
    with Server(folder / "server") as server:
        prepared = kills.prepare(server, folder)
        tally = kills.series(
            server,
            prepared,
            folder,
            single,
            chain,
            report=lambda t: _say(f"{t.trials} runs, {t.landed.total()} kills, {len(t.different)} different"),
        )
    most = max(tally.landed.values())
    bars = {phase: "█" * -(-20 * tally.landed[phase] // most) for phase in PHASES}
    lines = [
        f"{tally.landed.total()} kills in {tally.trials} runs, {tally.longest} of them in one run; 0, 2 and 4 loader",
        f"workers: {tally.trials - len(tally.different)} runs byte-identical, {len(tally.different)} not.",
        "",
        "| the kill landed while | kills | |",
        "|---|---:|---|",
        *(f"| {phase} | {tally.landed[phase]} | {bars[phase]} |" for phase in PHASES),
    ]
    return not tally.different and tally.longest >= chain and all(tally.landed[phase] for phase in PHASES), lines


def soak_writes(folder: Path) -> Report:
    """Each event of one save killed and failed, from inside and from outside."""
    kept = True
    lines = ["| save | how | events | tries | old file | new file | torn |", "|---|---|---:|---:|---:|---:|---:|"]
    for save, what in ((writes.save_file, "any file"), (writes.save_checkpoint, "last.ckpt")):
        for form, how in ((writes.from_inside, "from inside"), (writes.from_outside, "by strace")):
            here = folder / f"{save.__name__}-{form.__name__}"
            here.mkdir()
            outcome = form(here, save)
            if outcome is None:
                lines.append(f"| {what} | {how} | skipped: strace is not on this machine, or may not trace | | | | |")
                continue
            found = outcome.found
            numbers = f"{outcome.events} | {found.total()} | {found['old']} | {found['new']} | {len(outcome.torn)}"
            lines.append(f"| {what} | {how} | {numbers} |")
            kept = kept and not outcome.torn
            _say(lines[-1])
    return kept, lines


@contextlib.contextmanager
def _without_stderr() -> Iterator[None]:
    """libjpeg and libtiff print what they think of damaged images."""
    sys.stderr.flush()
    before, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)
        os.close(nowhere)


def soak_fuzz(folder: Path, count: int) -> Report:
    """Damaged and absurd inputs."""
    with _without_stderr():
        tally = fuzz.series(folder, count)
    lines = [
        f"{tally.cases.total():,} inputs, {tally.refused.total():,} of them refused with one line, the others read:"
        f" {len(tally.bad)} ended in anything else or took longer than {fuzz.SECONDS:g} s.",
        "",
        "| input | cases | refused |",
        "|---|---:|---:|",
        *(f"| {name} | {tally.cases[name]} | {tally.refused[name]} |" for name in sorted(tally.cases)),
        *(f"| FOUND | {name} {number} | {what} |" for name, number, what in tally.bad),
    ]
    return not tally.bad, lines


def soak_guards() -> Report:
    """Each guard taken out."""
    rows = guards.series()
    lines = [
        "| guard | without it | test |",
        "|---|---|---|",
        *(f"| {name} | {what} | `{test}` |" for name, test, what in rows),
    ]
    return all(what == "fails without it" for _, _, what in rows), lines


def write(part: str, lines: list[str], seconds: float) -> None:
    """Put a part's table into docs/promises.md."""
    import torch

    cores = len(os.sched_getaffinity(0))
    machine = f"{platform.machine()}, {cores} cores, Python {platform.python_version()}, torch {torch.__version__}"
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    block = "\n".join(
        ["", f"`python -m tests.faults.soak {part}`, {today}, {machine}, {seconds / 60:.0f} minutes.", "", *lines, ""]
    )
    pattern = re.compile(rf"(<!-- {part} -->).*?(<!-- /{part} -->)", re.DOTALL)
    text, count = pattern.subn(lambda found: f"{found[1]}{block}\n{found[2]}", PROMISES.read_text())
    assert count == 1, f"{PROMISES} has no place for {part}"
    PROMISES.write_text(text)


def main() -> int:
    """Run the parts asked for; 1 when a promise was not kept."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help="kills, writes, fuzz, guards (all)")
    parser.add_argument("--write", action="store_true", help="put the tables into docs/promises.md")
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--chain", type=int, default=25)
    parser.add_argument("--cases", type=int, default=10_000)
    given = parser.parse_args()
    broken = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        parts: dict[str, Callable[[Path], Report]] = {
            "kills": lambda here: soak_kills(here, given.kills, given.chain),
            "writes": soak_writes,
            "fuzz": lambda here: soak_fuzz(here, given.cases),
            "guards": lambda here: soak_guards(),
        }
        for unknown in set(given.parts) - set(parts):
            parser.error(f"there is no part {unknown}; choose from {', '.join(parts)}")
        for part in given.parts or parts:
            _say(f"== {part}")
            here = folder / part
            here.mkdir()
            began = time.monotonic()
            kept, lines = parts[part](here)
            seconds = time.monotonic() - began
            _say("\n".join(lines))
            _say(f"{part}: {'kept' if kept else 'BROKEN'}, {seconds / 60:.1f} minutes")
            broken += [] if kept else [part]
            if given.write:
                write(part, lines, seconds)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
