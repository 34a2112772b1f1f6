"""Kill a run at random moments, let it go on, and compare what comes out with a run that nobody killed."""

from __future__ import annotations

import random
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults import tiny
from tests.faults.tiny import COMMANDS, PHASES, Server

# About how long each phase lasts, in seconds: the mean of the moment inside it at which a kill is sent.
LASTS = {
    "starting": 0.3,
    "training": 0.02,
    "validating": 0.02,
    "saving": 0.003,
    "out-of-fold": 0.05,
    "predicting": 0.05,
    "submitting": 0.002,
    "between": 0.01,
}


@dataclass
class Tally:
    """What a series of kills came to.

    Attributes:
        landed: How many kills landed in each phase.
        trials: Runs that were killed, once or in a chain, and brought to their end.
        different: Those whose results differ: (trial, file names).
        longest: Most kills of one run.
    """

    landed: Counter[str] = field(default_factory=Counter)
    trials: int = 0
    different: list[tuple[str, list[str]]] = field(default_factory=list)
    longest: int = 0


def prepare(server: Server, folder: Path) -> tuple[Path, dict[str, bytes]]:
    """A project whose data is drawn and split, and the results of an uninterrupted run of it."""
    home = tiny.make_project(folder / "home")
    ended = server.run(home, ["folds", "--data", "tiny"])
    assert ended.code == 0, ended.output
    whole = shutil.copytree(home, folder / "whole")
    for words in COMMANDS:
        ended = server.run(whole, words)
        assert ended.code == 0, ended.output
    return home, tiny.results(whole)


def finish(
    server: Server, home: Path, tally: Tally, kills: list[tuple[str, float]], settings: list[list[str]], most: int
) -> None:
    """Run all commands to their end; each start meets the next kill of the list.

    Args:
        server: Starts the commands.
        home: The project.
        tally: Counts where the kills landed.
        kills: (phase, seconds after it begins); a phase that the command at hand does not have waits for one that has.
        settings: For each start further words of the train command, taken in turn.
        most: Kills that may land.
    """
    starts = landed = 0
    for words in COMMANDS:
        phases = {
            "train": ("starting", "training", "validating", "saving", "out-of-fold", "between"),
            "predict": ("starting", "saving", "predicting", "between"),
            "submit": ("starting", "saving", "submitting", "between"),
        }
        share = most - most // 5 if words[0] == "train" else most  # leave some for what comes after
        while True:
            here = next((kill for kill in kills if kill[0] in phases[words[0]]), None) if landed < share else None
            if here:
                kills.remove(here)
            extra = settings[starts % len(settings)] if words[0] == "train" else []
            starts += 1
            ended = server.run(home, [*words, *extra], server.kill_in(*here) if here else None)
            if ended.code == -9:
                tally.landed[ended.phase] += 1
                landed += 1
                continue
            assert ended.code == 0, f"{words} ended with {ended.code}: {ended.output[-2000:]}"
            break


def trial(
    server: Server,
    home: Path,
    wanted: dict[str, bytes],
    folder: Path,
    tally: Tally,
    name: str,
    kills: int,
    workers: list[int],
    rng: random.Random,
    haste: float = 1.0,
) -> None:
    """One run, killed so many times, brought to its end and compared.

    Args:
        server: Starts the commands.
        home: The prepared project.
        wanted: The results of the uninterrupted run.
        folder: Where to work.
        tally: Takes the outcome.
        name: Of the trial.
        kills: How many.
        workers: Loader workers of the starts, in turn: they may change in between.
        rng: Draws phases and moments.
        haste: How much earlier than at random the kills come: a long chain must not let the run end before its time.
    """
    here = shutil.copytree(home, folder / "trial")
    try:
        phases = [rng.choice(PHASES) for _ in range(kills if kills == 1 else 4 * kills)]  # some will miss
        phases.sort(key=lambda phase: phase == "out-of-fold")  # the training has ended by then
        moments = [(phase, rng.expovariate(haste / LASTS[phase])) for phase in phases]
        before = tally.landed.total()
        finish(server, here, tally, moments, [[f"workers={number}"] for number in workers], kills)
        tally.longest = max(tally.longest, tally.landed.total() - before)
        found = tiny.results(here)
        tally.trials += 1
        different = [file for file in wanted if found[file] != wanted[file]]
        if different:
            tally.different.append((name, different))
    finally:
        shutil.rmtree(here, ignore_errors=True)


def series(
    server: Server,
    prepared: tuple[Path, dict[str, bytes]],
    folder: Path,
    single: int,
    chain: int,
    seed: int = 0,
    report: Callable[[Tally], object] = lambda tally: None,
) -> Tally:
    """Runs killed once until so many kills landed, then one killed so many times in a row.

    Args:
        server: Starts the commands.
        prepared: From `prepare`.
        folder: Where to work.
        single: Kills that must land (a command may end before its kill comes); 0, 2 and 4 workers in turn.
        chain: Kills of the last run; its number of workers changes in between.
        seed: Of phases and moments.
        report: Called after each trial.
    """
    rng, tally = random.Random(seed), Tally()
    home, wanted = prepared
    while tally.landed.total() < single:
        number = tally.trials
        trial(server, home, wanted, folder, tally, f"single {number}", 1, [(0, 2, 4)[number % 3]], rng)
        report(tally)
    trial(server, home, wanted, folder, tally, "chain", chain, [0, 2, 4, 1], rng, haste=3.0)
    report(tally)
    return tally
