"""The ledger: one table per set of what was sent, what it was estimated at and what the leaderboard said."""

from __future__ import annotations

import csv
import datetime
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from comp import files
from comp.errors import CompError, Exit
from comp.metrics import METRICS

COLUMNS = ("file", "sha256", "metric", "estimate", "se", "public", "note", "sent")
ENOUGH = 5  # public scores from which estimate and leaderboard are related


@dataclass(frozen=True)
class Entry:
    """One submission.

    Attributes:
        file: Its CSV in `submissions/<set>/`.
        sha256: Of the CSV's bytes.
        metric: The competition's metric.
        estimate, se: The cross-fitted estimate and its standard error, None where unknown.
        public: The public leaderboard's score, None until known.
        note: The message it was sent with.
        sent: When it was entered, UTC.
    """

    file: str
    sha256: str
    metric: str
    estimate: float | None
    se: float | None
    public: float | None
    note: str
    sent: str


def path_of(folder: Path) -> Path:
    """The ledger of `submissions/<set>/`."""
    return folder / "ledger.csv"


def _number(text: str, path: Path, row: int) -> float | None:
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise CompError(path, f"row {row} holds '{text[:40]}' where a number is wanted", "mend the row", Exit.FILE)
    return value


def read(folder: Path) -> list[Entry]:
    """The entries, oldest first; none where there is no ledger."""
    path = path_of(folder)
    if not path.exists():
        return []
    header, rows = files.read_csv(path, COLUMNS, Exit.FILE)
    out = []
    for number, row in enumerate(rows, start=2):
        said = dict(zip(header, row, strict=True))
        numbers = {name: _number(said[name], path, number) for name in ("estimate", "se", "public")}
        out.append(Entry(said["file"], said["sha256"], said["metric"], **numbers, note=said["note"], sent=said["sent"]))
    return out


def _save(folder: Path, entries: Sequence[Entry]) -> None:
    rows = [["" if value is None else value for value in (getattr(e, c) for c in COLUMNS)] for e in entries]
    files.write_csv(path_of(folder), COLUMNS, rows)


def enter(folder: Path, record: Mapping[str, Any], *, public: float | None = None, note: str | None = None) -> Entry:
    """Enter a submission, or add a public score or another note to its entry.

    Args:
        folder: `submissions/<set>/`; the caller holds its lock.
        record: The JSON beside the CSV.
        public: The public score.
        note: The message.

    Returns:
        The entry as it is now.
    """
    entries = read(folder)
    digest = record["csv"]["sha256"]
    estimate = record.get("estimate") or {}
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    at = next((n for n, entry in enumerate(entries) if entry.sha256 == digest), None)
    if at is None:
        numbers = estimate.get("cross_fitted"), estimate.get("se")
        entries.append(Entry(record["csv"]["file"], digest, record["metric"], *numbers, None, "", now))
        at = len(entries) - 1
    old = entries[at]
    entries[at] = replace(old, public=old.public if public is None else public, note=old.note if note is None else note)
    _save(folder, entries)
    return entries[at]


def refuse_sent(folder: Path, name: str, digest: str) -> None:
    """Refuse to write another CSV over one that was sent: its entry would speak of a file that is gone.

    Raises:
        CompError: Exit code 2.
    """
    for entry in read(folder):
        if entry.file == name and entry.sha256 != digest:
            raise CompError(
                f"submissions/{folder.name}/{name}",
                f"was sent on {entry.sent[:10]} with other content",
                "give this one a name of its own: NAME=…",
                Exit.USAGE,
            )


@dataclass(frozen=True)
class Relation:
    """How public scores relate to estimates.

    Attributes:
        count: Submissions with both.
        offset: Mean of public score minus estimate.
        sd: Standard deviation of that difference.
        correlation: Rank correlation (Spearman) of estimates and public scores; nan where one of them is constant.
        out_of_line: Files whose difference the other ones' differences do not explain.
    """

    count: int
    offset: float
    sd: float
    correlation: float
    out_of_line: tuple[str, ...]


def _ranks(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Ranks from 0, equal values share their mean rank."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return ((2 * last - counts - 1) / 2)[inverse]


def relation(entries: Sequence[Entry]) -> Relation | None:
    """Relate estimates to public scores, from `ENOUGH` pairs on.

    Each submission's difference (public − estimate) is held against the others': it is out of line where it leaves
    their 95 % prediction interval (Student's t with n − 2 degrees of freedom, Bonferroni over the n submissions).
    """
    both = [(e.file, e.estimate, e.public) for e in entries if e.estimate is not None and e.public is not None]
    if len(both) < ENOUGH:
        return None
    from scipy.special import stdtrit  # Student's t quantile; scipy.stats takes ten times as long to import

    names = [name for name, _, _ in both]
    estimates, publics = (np.array(values, dtype=np.float64) for values in list(zip(*both, strict=True))[1:])
    difference = publics - estimates
    count = len(both)
    limit = float(stdtrit(count - 2, 1 - 0.025 / count))
    out = []
    for n, name in enumerate(names):
        others = np.delete(difference, n)
        reach = limit * max(float(others.std(ddof=1)), 1e-9) * math.sqrt(1 + 1 / (count - 1))
        if abs(difference[n] - others.mean()) > reach:
            out.append(name)
    a, b = _ranks(estimates), _ranks(publics)
    with np.errstate(invalid="ignore", divide="ignore"):
        correlation = float(((a - a.mean()) * (b - b.mean())).mean() / (a.std() * b.std()))
    return Relation(count, float(difference.mean()), float(difference.std(ddof=1)), correlation, tuple(out))


def _answers(path: Path) -> dict[str, str]:
    """Image id → answer; the most probable column of a table of probabilities."""
    header, rows = files.read_csv(path, (), Exit.FILE)
    if len(header) == 2:
        return {row[0]: row[1] for row in rows}
    out = {}
    for row in rows:
        values = [float(field) for field in row[1:]]
        out[row[0]] = header[1 + values.index(max(values))]
    return out


@dataclass(frozen=True)
class Finals:
    """The two submissions to choose for the private leaderboard.

    Attributes:
        best: The one with the best estimate.
        other: The one that answers most photos differently, among those within one standard error of the best (or the
            next best where there is none).
        differs: Share of the photos they answer differently.
        close: How many submissions were that close to the best.
    """

    best: Entry
    other: Entry
    differs: float
    close: int


def finals(folder: Path, entries: Sequence[Entry]) -> Finals | None:
    """Propose the final two; None where fewer than two sent files with an estimate are still there."""
    there = [e for e in entries if e.estimate is not None and _is_there(folder, e)]
    if len(there) < 2:
        return None
    how = METRICS[there[0].metric]
    order = sorted(there, key=lambda e: -how.utility(e.estimate if e.estimate is not None else math.nan))
    best = order[0]
    assert best.estimate is not None
    reach = best.se or 0.0
    near = [e for e in order[1:] if e.estimate is not None and abs(e.estimate - best.estimate) <= reach]
    mine = _answers(folder / best.file)

    def differs(entry: Entry) -> float:
        theirs = _answers(folder / entry.file)
        return sum(theirs.get(image_id) != answer for image_id, answer in mine.items()) / max(len(mine), 1)

    other = max(near, key=differs) if near else order[1]
    return Finals(best, other, differs(other), len(near))


def _is_there(folder: Path, entry: Entry) -> bool:
    path = folder / entry.file
    return path.exists() and files.digest_file(path) == entry.sha256


def fetched_scores(text: str) -> list[tuple[str, str, float]]:
    """Read what Kaggle's client prints: (file name, description, public score) of the scored submissions.

    Raises:
        CompError: There is no table in it.
    """
    lines = text.splitlines()
    start = next((n for n, line in enumerate(lines) if "publicScore" in line and "," in line), None)
    if start is None:
        raise CompError("kaggle", "printed no table of submissions", "enter scores with --score", Exit.SYSTEM)
    out = []
    for row in csv.DictReader(lines[start:]):
        try:
            score = float(row.get("publicScore") or "nan")
        except ValueError:
            continue
        if math.isfinite(score):
            out.append((row.get("fileName") or "", row.get("description") or "", score))
    return out


def add_fetched(folder: Path, scores: Sequence[tuple[str, str, float]]) -> int:
    """Write fetched scores into the entries: by the digest in the description, else by a file name that is unique.

    Returns:
        How many entries got a new or another score.
    """
    entries = read(folder)
    changed = 0
    for n, entry in enumerate(entries):
        tagged = [score for _, description, score in scores if tag(entry.sha256) in description]
        named = [score for name, description, score in scores if name == entry.file and "[sha " not in description]
        found = tagged or (named if len(named) == 1 else [])
        if found and entry.public != found[0]:
            entries[n] = replace(entry, public=found[0])
            changed += 1
    if changed:
        _save(folder, entries)
    return changed


def tag(digest: str) -> str:
    """What the message on Kaggle carries, so that a fetched score finds its file."""
    return f"[sha {digest[:8]}]"
