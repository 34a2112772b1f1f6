"""The score table as text: for a terminal of 80 columns or more, as JSON, as CSV."""

from __future__ import annotations

import csv
import io
import math
import shutil
import sys
import textwrap
from collections.abc import Sequence
from typing import Any

from comp import terminal
from comp.metrics import Estimate
from comp.reporting.curves import sparkline
from comp.reporting.scores import FoldScore, RunScore, recipes

WIDE = 118  # columns from which folds stand in the same row
_NARROW_NAME, _WIDE_NAME = 20, 40


def number(value: float | None, digits: int = 4) -> str:
    """A score; nothing where there is none."""
    return "" if value is None or math.isnan(value) else f"{value:.{digits}f}"


def plus_minus(value: float | None, error: float | None) -> str:
    """`0.9123 ±0.0041`, without the second part where it is unknown."""
    return number(value) + (f" ±{number(error)}" if value is not None and number(error) else "")


def interval(estimate: Estimate | None) -> str:
    """`0.904–0.920`."""
    return f"{estimate.low:.3f}–{estimate.high:.3f}" if estimate and not math.isnan(estimate.low) else ""


def width() -> int:
    """Columns to write for: the terminal's; 120 where the output is a file or a pipe."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else 120


def shortened(name: str, most: int) -> str:
    return name if len(name) <= most else f"{name[: most // 2]}…{name[-(most - most // 2 - 1) :]}"


def _cell(fold: FoldScore) -> str:
    if fold.score is not None:
        return number(fold.score, 3)
    if fold.state == "training":
        return f"e{fold.epoch}"
    return {"missing": "–", "stale": "stale", "bad": "bad"}[fold.state]


def _curve(row: RunScore) -> str:
    return sparkline(row.curve)


def paragraph(line: str) -> None:
    """Say a sentence, broken between words where it is longer than the terminal is wide."""
    terminal.say(textwrap.fill(line, width(), subsequent_indent="  ", break_long_words=False, break_on_hyphens=False))


def show(rows: Sequence[RunScore], metric: str, data: str, photos: int, columns: int | None = None) -> None:
    """Print the table; on narrow terminals folds and curves stand in a second one."""
    wide = (columns or width()) >= WIDE
    numbers = sorted({fold.number for row in rows for fold in row.folds})
    title = f"{data}: {metric}, {photos:,} photos in {len(numbers)} folds"
    names = {row.name: shortened(row.name, _WIDE_NAME if wide else _NARROW_NAME) for row in rows}
    head = ["#", "run"]
    tail = ["fold mean ±sd", "oof ±SE", "95 %", "views"]
    fold_names = [str(n) for n in numbers]
    many = len(numbers) > 10
    body, second = [], []
    for row in rows:
        cells = {fold.number: _cell(fold) for fold in row.folds}
        folds = [cells.get(n, "") for n in numbers]
        mark = "*" if row.selection == "best" and row.oof else ""
        common = [
            plus_minus(row.mean, row.sd),
            plus_minus(row.oof.value if row.oof else None, row.oof.se if row.oof else None) + mark,
            interval(row.oof),
            shortened(row.views, 10 if wide else 8),
        ]
        done = f"{row.finished}/{len(row.folds)}" if row.folds else ""
        start: list[Any] = [row.rank or "", names[row.name]]
        if wide and not many:
            body.append([*start, *folds, *common, _curve(row)])
        else:
            body.append([*start, *common, *([done] if many else [])])
            second.append([names[row.name], *folds, _curve(row)])
    if wide and not many:
        paragraph(title)
        terminal.table([*head, *fold_names, *tail, "curve"], body, left=(1, 2 + len(numbers) + 3))
    else:
        paragraph(title)
        terminal.table([*head, *tail, *(["folds"] if many else [])], body, left=(1, 5))
        if not many:
            terminal.say()
            terminal.table(["fold", *fold_names, "curve"], second, left=(0, len(numbers) + 1))
    _legend(rows, metric)


def _legend(rows: Sequence[RunScore], metric: str) -> None:
    shared = {row.rank for row in rows if row.rank and sum(other.rank == row.rank for other in rows) > 1}
    if shared:
        paragraph("# equal numbers: cannot be told from the first of them (95 %, same photos, paired)")
    if any(row.selection == "best" and row.oof for row in rows):
        paragraph("* read at the best epoch, which these photos chose: optimistic; unmarked: last epoch")
    if any(fold.state == "training" for row in rows for fold in row.folds):
        for row in rows:
            live = [
                f"fold {f.number} epoch {f.epoch}" + (f" {number(abs(f.live), 3)}" if f.live is not None else "")
                for f in row.folds
                if f.state == "training"
            ]
            if live:
                paragraph(f"in training: {row.name}: {', '.join(live)}")
    incomplete = [row for row in rows if 0 < row.finished < len(row.folds)]
    if incomplete:
        paragraph("– missing fold; a run's score is over the photos of the folds it has")
    for recipe in recipes(rows):
        paragraph(
            f"{len(recipe.runs)} seeds of one recipe ({', '.join(recipe.runs)}): "
            f"{metric} {recipe.mean:.4f} ± {recipe.sd:.4f} (sd over seeds)"
        )


def _plain(value: float | None) -> float | None:
    return None if value is None or math.isnan(value) else value


def as_json(rows: Sequence[RunScore], metric: str, data: str) -> dict[str, Any]:
    """The table for scripts."""
    return {
        "data": data,
        "metric": metric,
        "runs": [
            {
                "rank": row.rank,
                "run": row.name,
                "views": row.views,
                "selection": row.selection or None,
                "fold_mean": _plain(row.mean),
                "fold_sd": _plain(row.sd),
                "oof": _plain(row.oof.value) if row.oof else None,
                "se": _plain(row.oof.se) if row.oof else None,
                "low": _plain(row.oof.low) if row.oof else None,
                "high": _plain(row.oof.high) if row.oof else None,
                "photos": row.photos,
                "seed": row.seed,
                "recipe": row.recipe or None,
                "ms_per_image": row.ms_per_image,
                "folds": [
                    {"fold": f.number, "state": f.state, "score": _plain(f.score), "epochs": f.epoch} for f in row.folds
                ],
            }
            for row in rows
        ],
        "recipes": [
            {"recipe": one.recipe, "runs": list(one.runs), "mean": one.mean, "sd": one.sd} for one in recipes(rows)
        ],
    }


def as_csv(rows: Sequence[RunScore]) -> str:
    """The table as CSV: one row per run, one column per fold."""
    numbers = sorted({fold.number for row in rows for fold in row.folds})
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    fixed = ["rank", "run", "views", "selection", "fold_mean", "fold_sd", "oof", "se", "low", "high", "photos", "seed"]
    writer.writerow([*fixed, *(f"fold{n}" for n in numbers)])
    for row in as_json(rows, "", "")["runs"]:
        by_fold = {fold["fold"]: fold["score"] for fold in row["folds"]}
        cells = [*(row[name] for name in fixed), *(by_fold.get(n) for n in numbers)]
        writer.writerow(["" if cell is None else cell for cell in cells])
    return out.getvalue()
