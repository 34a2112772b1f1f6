"""`comp ledger`: what was sent, what it was estimated at, what the leaderboard said."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from comp import config, files, runs, terminal
from comp.commands import kaggle_client
from comp.ensembling import ledger as book
from comp.ensembling import submission
from comp.ensembling.ledger import Entry
from comp.errors import CompError, Exit
from comp.reporting.score_table import number, paragraph, plus_minus, shortened


def ledger(
    file: str | None = None,
    *,
    data: str = "petals",
    score: float | None = None,
    note: str = "",
    fetch: bool = False,
) -> list[Entry]:
    """Print the ledger of a set; enter a sent submission, its public score, or fetch the scores.

    Args:
        file: A submission's CSV that was sent by hand.
        data: The data set; a file knows its own.
        score: Its public score.
        note: A message for its entry.
        fetch: Ask Kaggle's client for the public scores.

    Returns:
        The entries.
    """
    home = runs.home()
    if file is None and (score is not None or note):
        raise CompError("comp ledger", "which submission is that for?", "name its CSV", Exit.USAGE)
    if score is not None and not math.isfinite(score):
        raise CompError("--score", f"{score} is no score", "type the leaderboard's number", Exit.USAGE)
    if file is not None:
        record = checked_record(Path(file))
        data = record["data"]["name"]
        folder = home / "submissions" / data
        with files.lock(folder / ".lock", "ledger"):
            book.enter(folder, record, public=score, note=note or None)
    folder = home / "submissions" / config.check_name("DATA", data)
    if fetch:
        competition = kaggle_client.need(config.load_data(home, data))
        found = book.fetched_scores(kaggle_client.submissions(competition))
        with files.lock(folder / ".lock", "ledger"):
            changed = book.add_fetched(folder, found)
        paragraph(f"fetched {len(found)} scores, {changed} entries changed")
    entries = book.read(folder)
    _show(folder, data, entries)
    return entries


def checked_record(path: Path) -> dict[str, Any]:
    """A submission's record; the CSV must be the one it speaks of.

    Raises:
        CompError: Exit code 4.
    """
    record = submission.read_record(path)
    csv = path.with_suffix(".csv")
    digest = files.digest_file(csv)
    if digest != record["csv"]["sha256"]:
        what = "is not the file its JSON speaks of: it was changed, or the writing of the two was cut short"
        raise CompError(csv, what, "make the submission again", Exit.FILE)
    return record


def send(home: Path, data: config.DataConfig, path: Path, record: Mapping[str, Any], message: str) -> None:
    """Upload a submission with Kaggle's client and enter it."""
    competition = kaggle_client.need(data)
    digest = record["csv"]["sha256"]
    kaggle_client.send(competition, path, f"{message or path.stem} {book.tag(digest)}")
    with files.lock(path.parent / ".lock", "ledger"):
        book.enter(path.parent, record, note=message or path.stem)
    paragraph(f"sent to {competition}; its score: comp ledger --data {data.name} --fetch")


def _show(folder: Path, data: str, entries: list[Entry]) -> None:
    if not entries:
        paragraph(f"nothing of {data} was sent yet: comp submit --upload, or comp ledger FILE.csv --score S")
        return
    found = book.relation(entries)
    from rich.markup import escape  # a note is anybody's text

    rows = []
    for entry in entries:
        gap = "" if entry.public is None or entry.estimate is None else f"{entry.public - entry.estimate:+.4f}"
        mark = " !" if found and entry.file in found.out_of_line else ""
        rows.append(
            [
                shortened(entry.file.removesuffix(".csv"), 30),
                plus_minus(entry.estimate, entry.se) or "unknown",
                number(entry.public),
                gap + mark,
                escape(shortened(entry.note, 20)),
            ]
        )
    terminal.table(("submission", "estimate ±SE", "public", "gap", "note"), rows, f"{data}: sent", left=(0, 4))
    known = sum(entry.public is not None and entry.estimate is not None for entry in entries)
    if found is None:
        paragraph(f"{known} public scores; from {book.ENOUGH} on, estimates are related to the leaderboard")
    else:
        paragraph(
            f"public − estimate: {found.offset:+.4f} ± {found.sd:.4f} (sd of {found.count}); "
            f"rank correlation {found.correlation:.2f}"
        )
        for name in found.out_of_line:
            paragraph(f"! {name} is out of line with the others: look at it before you trust it")
    final = book.finals(folder, entries)
    if final is not None:
        how = (
            f"most different of {final.close} within one standard error"
            if final.close
            else "the next best, none is close"
        )
        paragraph(
            f"final two: {final.best.file} (best estimate) and {final.other.file} ({how}; "
            f"{100 * final.differs:.1f} % of the answers differ)"
        )
