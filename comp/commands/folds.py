"""`comp folds`: split the labelled photos."""

from __future__ import annotations

from collections.abc import Sequence

from comp import terminal
from comp.commands import common
from comp.data import folds as splits
from comp.errors import CompError, Exit


def folds(data: str = "petals", *, settings: Sequence[str] = ()) -> dict[str, int]:
    """Split the labelled photos of a data set and print each fold's size.

    A split that is there already is checked and kept: it is a team's contract, and runs on another one do not compare.

    Args:
        data: A file of `configs/data/`.
        settings: `data.key=value` words, e.g. `data.folds.k=10`.

    Returns:
        The fold of each image id; -1 is a photo that is only trained on.
    """
    home, config, rest = common.project(data, settings)
    common.only_data(rest)
    dataset = common.prepared(home, config)
    path = home / "folds" / f"{config.name}.csv"
    existed = path.exists()
    found = common.split(home, config, dataset)
    if existed:
        wanted, _ = splits.make(dataset, config.folds.k, config.folds.seed, config.val)
        if wanted != found:
            fix = (
                f"keep it, or remove {path.relative_to(home)} to make a new one (runs on the old one will not compare)"
            )
            raise CompError(path, "holds another split than this config and data give", fix, Exit.DATA)
        terminal.say(f"{path.relative_to(home)} is there already, and is what this config and data give")
    labels = dict(zip(dataset.ids, dataset.labels, strict=True))
    rows = []
    for number in sorted(set(found.values())):
        inside = [labels[image_id] for image_id, fold in found.items() if fold == number]
        rows.append((number if number >= 0 else "only trained on", len(inside), len(set(inside))))
    terminal.table(("fold", "photos", "classes"), rows)
    return found
