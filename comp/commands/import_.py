"""`comp import`: a prediction file from anyone's CSV."""

from __future__ import annotations

from pathlib import Path

from comp import config, metrics
from comp.commands import truths
from comp.ensembling import importing
from comp.ensembling.choosing import begun_folds, folder_of
from comp.errors import CompError, Exit
from comp.predictions import Predictions
from comp.reporting.score_table import paragraph
from comp.runs import Run


def import_(
    file: str, *, data: str = "petals", name: str | None = None, split: str = "test", normalize: bool = False
) -> Predictions:
    """Make a member of a submission CSV or a table of probabilities.

    Args:
        file: The CSV.
        data: The data set.
        name: The member's name; default the file's.
        split: test, or oof for out-of-fold rows of the labelled photos.
        normalize: Divide rows that do not sum to 1 by their sum.

    Returns:
        The predictions, as written to `runs/<set>/<name>/imported/<split>.npz`.
    """
    path = Path(file)
    name = config.check_name("NAME", name or path.stem)
    home, data_config, _, truth = truths.of_set(data)
    if begun_folds(Run(home, data, name)):
        raise CompError(f"run {name}", "is a run trained here", "give the member a name of its own: --name", Exit.USAGE)
    read = importing.read_csv(path, truth, data_config.submission, name, split=split, normalize=normalize)
    target = folder_of(home, data, name) / f"{split}.npz"
    replaced = target.exists()
    read.save(target)
    hard = "labels only" if read.header["labels_only"] else "probabilities"
    paragraph(f"{'replaced' if replaced else 'wrote'} {target.relative_to(home)}: {len(read):,} rows, {hard}")
    if split == "oof":
        labels = [truth.labels[i] for i in read.ids.tolist()]
        found = metrics.interval(data_config.metric, _array(labels), read.probs)
        part = "" if len(read) == len(truth.labels) else f" ({len(read):,} of {len(truth.labels):,} photos)"
        paragraph(f"{data_config.metric} {found.value:.4f} ± {found.se:.4f}{part}, if nobody trained on these photos")
    elif not (target.parent / "oof.npz").exists():
        paragraph(
            "without out-of-fold rows (--split oof) it takes part in fixed rules only, and the estimate is unknown"
        )
    return read


def _array(labels: list[int]) -> metrics.Ints:
    import numpy as np

    return np.array(labels, dtype=np.int64)
