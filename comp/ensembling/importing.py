"""Anyone's CSV as a member: a submission (one label per photo) or a table of probabilities (one column per class)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from comp import files, predictions
from comp.config import Submission
from comp.ensembling.choosing import IMPORTED
from comp.ensembling.members import check_known
from comp.ensembling.truth import Truth
from comp.errors import CompError, Exit, did_you_mean
from comp.predictions import SUM_TOLERANCE, Predictions


def _labels(path: Path, rows: Sequence[Sequence[str]], classes: Sequence[str], names: bool) -> npt.NDArray[np.float32]:
    """One-hot (N, C) of a label column: class indices, or class names where the data set says so or they are names."""
    index = {name: n for n, name in enumerate(classes)}
    numbers = {str(n): n for n in range(len(classes))}
    table = index if names or not all(row[1] in numbers for row in rows) else numbers
    if table is index and not names and not any(row[1] in index for row in rows):
        table = numbers  # neither fits: the complaint below speaks of indices
    out = np.zeros((len(rows), len(classes)), dtype=np.float32)
    for n, row in enumerate(rows):
        if row[1] not in table:
            valid = f"0 to {len(classes) - 1}" if table is numbers else did_you_mean(row[1], list(index))
            raise CompError(path, f"id '{row[0]}' has the label '{row[1][:40]}'", f"labels are {valid}", Exit.DATA)
        out[n, table[row[1]]] = 1.0
    return out


def _probabilities(
    path: Path, header: Sequence[str], rows: Sequence[Sequence[str]], classes: Sequence[str], normalize: bool
) -> npt.NDArray[np.float32]:
    """(N, C) of one column per class, columns in any order, named by class or by its index."""
    columns = list(header[1:])
    by_index = [str(n) for n in range(len(classes))]
    wanted = by_index if set(columns) == set(by_index) and set(columns) != set(classes) else list(classes)
    missing = [name for name in wanted if name not in columns]
    extra = [name for name in columns if name not in set(wanted)]
    if missing or extra:
        what = f"has no column for class '{missing[0]}'" if missing else f"has a column '{extra[0]}', which is no class"
        fix = f"{len(classes)} columns named by class or by its index are wanted beside the id"
        raise CompError(path, what, fix, Exit.DATA)
    values = np.empty((len(rows), len(columns)), dtype=np.float64)
    for n, row in enumerate(rows):
        try:
            values[n] = [float(field) for field in row[1:]]
        except ValueError:
            raise CompError(path, f"id '{row[0]}' holds text where a number is wanted", "mend it", Exit.DATA) from None
    values = values[:, [columns.index(name) for name in wanted]]
    ids = [row[0] for row in rows]
    for wrong, what in ((~np.isfinite(values), "a value that is not finite"), (values < 0, "a negative probability")):
        bad = wrong.any(axis=1)
        if bad.any():
            first = ids[int(bad.argmax())]
            raise CompError(path, f"id '{first}' has {what} ({int(bad.sum())} such rows)", "mend it", Exit.DATA)
    sums = values.sum(axis=1)
    off = np.abs(sums - 1) > SUM_TOLERANCE
    if off.any() and not normalize:
        n = int(off.argmax())
        what = f"the probabilities of id '{ids[n]}' sum to {sums[n]:.6g}, not 1 ({int(off.sum())} such rows)"
        raise CompError(path, what, "--normalize divides rows by their sum", Exit.DATA)
    if (sums <= 0).any():
        n = int((sums <= 0).argmax())
        raise CompError(path, f"the probabilities of id '{ids[n]}' are all 0", "there is nothing to divide", Exit.DATA)
    return np.asarray(values / sums[:, None], dtype=np.float32)


def read_csv(
    path: Path, truth: Truth, submission: Submission, name: str, *, split: str = "test", normalize: bool = False
) -> Predictions:
    """Read a submission or a table of probabilities into predictions.

    Args:
        path: The CSV; its first column is the data set's id column.
        truth: What its ids and classes must be: every test photo, or (oof) labelled photos of the folds.
        submission: The data set's section: names of the id and label columns.
        name: The member's name.
        split: test or oof.
        normalize: Divide rows that do not sum to 1 by their sum.

    Raises:
        CompError: Exit code 3; the line names the column or the id.
    """
    header, rows = files.read_csv(path)
    if header[0] != submission.id:
        fix = f"the first column is '{submission.id}', as in the sample submission"
        raise CompError(path, f"its first column is '{header[0]}'", fix, Exit.DATA)
    if not rows:
        raise CompError(path, "has no rows", "", Exit.DATA)
    seen: set[str] = set()
    for row in rows:
        if row[0] in seen:
            raise CompError(path, f"the id '{row[0]}' is there twice", "remove one", Exit.DATA)
        seen.add(row[0])
    hard = len(header) == 2
    if hard and header[1] != submission.label and submission.values != "probs":
        fix = f"the label column is '{submission.label}'"
        raise CompError(path, f"its second column is '{header[1]}'", fix, Exit.DATA)
    probs = (
        _labels(path, rows, truth.classes, submission.values == "name")
        if hard
        else _probabilities(path, header, rows, truth.classes, normalize)
    )
    head = {
        "run": name,
        "views": IMPORTED,
        "source": path.name,
        "source_sha256": files.digest_file(path),
        "labels_only": hard,
        "data": truth.data_digest,
    }
    read = Predictions(np.array([row[0] for row in rows]), probs, np.array(truth.classes), head)
    predictions.check(read, path)
    if split == "test":
        try:
            return read.align(truth.test_ids, path)
        except CompError as error:
            raise CompError(path, error.what, "it must answer every test photo once", Exit.DATA) from None
    try:
        check_known(read, truth.labels, path)
    except CompError as error:
        raise CompError(path, error.what, error.fix, Exit.DATA) from None
    return read
