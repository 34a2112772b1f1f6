"""What is said in the terminal: lines, tables, progress. Only the first of several processes speaks."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager


def is_first() -> bool:
    """Whether this is the only process, or the first of several (torchrun's RANK)."""
    return os.environ.get("RANK", "0") == "0"


def say(line: str = "") -> None:
    """Print one line on stdout."""
    if is_first():
        print(line, flush=True)


def warn(line: str) -> None:
    """Print `warning: …` on stderr."""
    if is_first():
        print(f"warning: {line}", file=sys.stderr, flush=True)


def table(
    columns: Sequence[str], rows: Sequence[Sequence[object]], title: str = "", left: Sequence[int] = (0,)
) -> None:
    """Print a table that fits 80 columns and a dumb terminal: no box characters beyond a rule under the header.

    Args:
        columns: Headers.
        rows: Cells; text may carry rich's markup.
        title: A line above the table.
        left: Columns set flush left; the others, numbers, are set flush right.
    """
    if not is_first():
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, 120)
    drawn = Table(
        title=title or None,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
        show_edge=False,
    )
    for number, name in enumerate(columns):
        drawn.add_column(name, justify="left" if number in left else "right", overflow="fold")
    for row in rows:
        drawn.add_row(*("" if cell is None else str(cell) for cell in row))
    console.print(drawn)


@contextmanager
def progress(what: str, total: int) -> Iterator[Callable[..., None]]:
    """Show a live bar with the remaining time while the block runs; nothing where stdout is no terminal.

    Args:
        what: Words before the bar.
        total: Units of work.

    Yields:
        `advance(units=1, note="")`: call it as work gets done; `note` is shown after the bar.
    """
    if not (is_first() and sys.stdout.isatty()):
        yield lambda units=1, note="": None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, transient=True) as bar:
        task = bar.add_task(what, total=total, note="")

        def advance(units: int = 1, note: str = "") -> None:
            bar.update(task, advance=units)
            if note:
                bar.update(task, note=note)

        yield advance
