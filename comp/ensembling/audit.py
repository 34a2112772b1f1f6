"""Looks at the val photos under `val: audit`: a score that is looked at often becomes one more thing to overfit."""

from __future__ import annotations

from pathlib import Path

from comp import files

_HEADER = ("file", "sha256", "metric", "score")


def count(folder: Path, name: str, digest: str, metric: str, score: float) -> int:
    """Write down a look; the same prediction looked at again is no new look. The caller holds the folder's lock.

    Args:
        folder: `submissions/<set>/`; the looks are in its `audit.csv`.
        name: The CSV.
        digest: SHA-256 of the val prediction.
        metric: What was scored.
        score: The score.

    Returns:
        How many different predictions were looked at so far, this one included.
    """
    path = folder / "audit.csv"
    rows = files.read_csv(path, _HEADER)[1] if path.exists() else []
    if not any(row[1] == digest and row[2] == metric for row in rows):
        rows.append([name, digest, metric, repr(score)])
        files.write_csv(path, _HEADER, rows)
    return len(rows)
