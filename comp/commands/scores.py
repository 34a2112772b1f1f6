"""`comp scores`: every run's fold scores, side by side."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from comp import terminal
from comp.commands import truths
from comp.ensembling.choosing import known_runs
from comp.ensembling.truth import Truth
from comp.errors import CompError, Exit, did_you_mean
from comp.reporting import score_table
from comp.reporting import scores as measured
from comp.reporting.scores import RunScore

_PAUSE = 2.0  # seconds between looks of --watch


def scores(
    runs: Sequence[str] = (),
    *,
    data: str = "petals",
    views: str | None = None,
    json: bool = False,
    csv: bool = False,
    watch: bool = False,
) -> list[RunScore]:
    """Print every run's fold scores, best first.

    Args:
        runs: Only these runs; empty for all.
        data: The data set.
        views: Only this view set; default each run's own, the one with the most folds, then the best score.
        json: Print JSON.
        csv: Print CSV.
        watch: Print again whenever a run's files change, until interrupted.

    Returns:
        The rows.
    """
    home, config, _, truth = truths.of_set(data, digests=False)
    known = [run.name for run in known_runs(home, config.name)]
    for name in runs:
        if name not in known:
            fix = did_you_mean(name, known) if known else f"train one: comp train --data {data}"
            raise CompError(f"run {name}", f"there is no such run of {data}", fix, Exit.USAGE)
    views_file = truths.views_of(config, views)[1] if views else None

    def once() -> list[RunScore]:
        rows, warnings = measured.gather(home, truth, config.metric, runs, views_file)
        _print(rows, warnings, config.metric, truth, json, csv)
        return rows

    return _watch(home, config.name, once) if watch else once()


def _print(
    rows: Sequence[RunScore], warnings: Sequence[str], metric: str, truth: Truth, as_json: bool, as_csv: bool
) -> None:
    for line in warnings:
        terminal.warn(line)
    if as_json:
        terminal.say(json.dumps(score_table.as_json(rows, metric, truth.data), indent=2, allow_nan=False))
    elif as_csv:
        sys.stdout.write(score_table.as_csv(rows))
    elif rows:
        score_table.show(rows, metric, truth.data, len(truth.labels))
    else:
        terminal.say(f"{truth.data} has no runs yet; train one: comp train MODEL --data {truth.data}")


def _state(home: Path, data: str) -> dict[str, int]:
    """Modification times of everything a table is made of."""
    found = {}
    for pattern in ("*/fold*/log.csv", "*/fold*/oof.*.npz", "*/fold*/model.safetensors", "*/imported/*.npz"):
        for path in (home / "runs" / data).glob(pattern):
            try:
                found[str(path)] = path.stat().st_mtime_ns
            except FileNotFoundError:  # replaced between the two calls
                continue
    return found


def _watch(
    home: Path, data: str, once: Callable[[], list[RunScore]], pause: Callable[[float], None] = time.sleep
) -> list[RunScore]:
    """Print now and after every change; ends with Ctrl-C."""
    before: dict[str, int] | None = None
    while True:
        now = _state(home, data)
        if now != before:
            if sys.stdout.isatty() and before is not None:
                sys.stdout.write("\x1b[2J\x1b[H")
            once()
            terminal.say(time.strftime("%H:%M:%S, watching; Ctrl-C ends it"))
            before = now
        pause(_PAUSE)
