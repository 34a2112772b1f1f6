"""`comp data`: read the raw files, check them, write the manifest."""

from __future__ import annotations

from collections.abc import Sequence

from comp import terminal
from comp.commands import common
from comp.data import manifest
from comp.data.manifest import Dataset


def prepare(data: str = "petals", *, settings: Sequence[str] = ()) -> Dataset:
    """Read and check a data set's raw files, write `data/<set>/<size>/manifest.csv` and print what is in it.

    Args:
        data: A file of `configs/data/`.
        settings: `data.key=value` words.

    Returns:
        The data set.
    """
    home, config, rest = common.project(data, settings)
    common.only_data(rest)
    dataset = common.prepared(home, config, again=True)
    terminal.table(("what", "count", "which"), dataset.report, title=f"{dataset.name} {config.size_name}", left=(0, 2))
    terminal.say(f"wrote {manifest.folder(home, config).relative_to(home)}/manifest.csv")
    return dataset
