"""Learning curves from a fold's log, and as one line of characters."""

from __future__ import annotations

import csv
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence

from comp.runs import Fold

CURVE_WIDTH = 8
_BARS = "▁▂▃▄▅▆▇█"


def log_rows(fold: Fold) -> list[dict[str, str]]:
    """The rows of a fold's log; a log that cannot be read has none."""
    try:
        with fold.log.open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error):
        return []


def validation_curve(rows: Sequence[Mapping[str, str]], metric: str) -> list[float]:
    """The validation metric by epoch, higher is better; a loss is turned."""
    for name in (f"val_{metric}", metric, "val_macro_f1", "macro_f1", "val_accuracy", "top1", "val_loss"):
        if rows and name in rows[0]:
            values = []
            for row in rows:
                try:
                    value = float(row[name] or "nan")
                except (TypeError, ValueError):
                    value = math.nan
                values.append(-value if name.endswith("loss") else value)
            return values
    return []


def mean_curve(curves: Iterable[Sequence[float]]) -> tuple[float, ...]:
    """Mean over the folds, epoch by epoch, as far as the longest; nan where no fold has a number."""
    lists = [curve for curve in curves if curve]
    out = []
    for epoch in range(max(map(len, lists), default=0)):
        here = [curve[epoch] for curve in lists if epoch < len(curve) and math.isfinite(curve[epoch])]
        out.append(statistics.fmean(here) if here else math.nan)
    return tuple(out)


def sparkline(curve: Sequence[float], width: int = CURVE_WIDTH) -> str:
    """A learning curve in `width` characters, from its lowest to its highest value."""
    known = [value for value in curve if math.isfinite(value)]
    if not known:
        return ""
    low, high = min(known), max(known)
    count = min(width, len(curve))
    out = ""
    for n in range(count):
        part = [v for v in curve[n * len(curve) // count : (n + 1) * len(curve) // count] if math.isfinite(v)]
        level = (statistics.fmean(part) - low) / (high - low) if part and high > low else 0.0
        out += _BARS[min(int(level * len(_BARS)), len(_BARS) - 1)] if part else " "
    return out
