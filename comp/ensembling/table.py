"""The competition's CSV: its order from the sample submission, its text, and the check of what was written."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from comp import files
from comp.config import Submission
from comp.errors import CompError, Exit


@dataclass(frozen=True)
class Form:
    """What the CSV must look like.

    Attributes:
        ids: Image ids, in order.
        header: Column names; for probabilities the class columns in the sample's order.
        style: What a row says: the class index, the class name or all probabilities.
        classes: Class names in label order.
    """

    ids: tuple[str, ...]
    header: tuple[str, ...]
    style: str
    classes: tuple[str, ...]


def form(sample: Path, submission: Submission, classes: Sequence[str], test_ids: Sequence[str]) -> Form:
    """Read the sample submission; where there is none, the test photos' own order stands.

    Args:
        sample: The sample submission.
        submission: The data set's section.
        classes: Class names in label order.
        test_ids: The test photos of the manifest.

    Raises:
        CompError: Exit code 3: the sample's columns or ids are not those of the config and the manifest.
    """
    probs = submission.values == "probs"
    default = (submission.id, *classes) if probs else (submission.id, submission.label)
    if not sample.exists():
        return Form(tuple(test_ids), default, submission.values, tuple(classes))
    header, rows = files.read_csv(sample, (submission.id,))
    if header[0] != submission.id or (sorted(header[1:]) != sorted(default[1:])):
        shown = ",".join(default if len(default) < 6 else (*default[:3], "…"))
        fix = "set submission.id, .label and .values in the data set's YAML"
        raise CompError(sample, f"has columns {','.join(header[:6])}; the config says {shown}", fix, Exit.DATA)
    ids = [row[0] for row in rows]
    if len(set(ids)) < len(ids):
        seen: set[str] = set()
        twice = next(i for i in ids if i in seen or seen.add(i))  # type: ignore[func-returns-value]
        raise CompError(sample, f"the id '{twice}' is there twice", "take the competition's own file", Exit.DATA)
    wanted, given = set(test_ids), set(ids)
    if wanted != given:
        lacking, extra = sorted(wanted - given), sorted(given - wanted)
        what = f"lacks test photo '{lacking[0]}'" if lacking else f"asks for '{extra[0]}', which is no test photo"
        count = f"{len(lacking)} missing, {len(extra)} too many"
        raise CompError(sample, f"{what} ({count})", "take the sample that belongs to these photos", Exit.DATA)
    return Form(tuple(ids), tuple(header), submission.values, tuple(classes))


def rows(form: Form, probs: npt.NDArray[np.floating]) -> list[list[str]]:
    """The CSV's body.

    Args:
        form: What it must look like.
        probs: (N, C) in the order of `form.ids`. Labels are the arg max, the first class where classes are equal.
    """
    if form.style == "probs":
        order = [form.classes.index(name) for name in form.header[1:]]
        return [[i, *(f"{p:.9g}" for p in row)] for i, row in zip(form.ids, probs[:, order].tolist(), strict=True)]
    labels = probs.argmax(axis=1).tolist()
    said = form.classes if form.style == "name" else [str(number) for number in range(len(form.classes))]
    return [[image_id, said[label]] for image_id, label in zip(form.ids, labels, strict=True)]


def text(form: Form, probs: npt.NDArray[np.floating]) -> bytes:
    """The whole CSV as it is written."""
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(form.header)
    writer.writerows(rows(form, probs))
    return buffer.getvalue().encode()


def check(path: Path, form: Form) -> None:
    """Read a CSV back with the standard library and check header, ids as a set and in order, and values.

    Raises:
        CompError: Exit code 4; the line names what is wrong and where.
    """

    def bad(what: str) -> CompError:
        return CompError(path, what, "do not send it; report this as a bug", Exit.FILE)

    try:
        with path.open(newline="", encoding="utf-8") as file:
            lines = list(csv.reader(file, strict=True))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise bad(f"cannot be read back ({error})") from None
    if not lines or tuple(lines[0]) != form.header:
        raise bad(f"has header {','.join(lines[0] if lines else [])[:80]}, wanted is {','.join(form.header)[:80]}")
    body = lines[1:]
    uneven = next((n for n, row in enumerate(body, start=2) if len(row) != len(form.header)), None)
    if uneven:
        raise bad(f"line {uneven} has {len(body[uneven - 2])} fields, wanted are {len(form.header)}")
    ids = [row[0] for row in body]
    if set(ids) != set(form.ids) or len(ids) != len(form.ids):
        difference = sorted(set(ids) ^ set(form.ids)) or ["one of them twice"]
        raise bad(f"has {len(ids)} rows for {len(form.ids)} test photos, e.g. '{difference[0]}' differs")
    if tuple(ids) != form.ids:
        row = next(n for n, (a, b) in enumerate(zip(ids, form.ids, strict=True)) if a != b)
        raise bad(f"line {row + 2} is '{ids[row]}', the sample submission has '{form.ids[row]}' there")
    valid = set(form.classes) if form.style == "name" else {str(n) for n in range(len(form.classes))}
    for number, fields in enumerate(body, start=2):
        if form.style != "probs":
            if fields[1] not in valid:
                raise bad(f"line {number} ('{fields[0]}') says '{fields[1][:40]}', which is no label")
            continue
        try:
            values = np.array(fields[1:], dtype=np.float64)
        except ValueError:
            raise bad(f"line {number} ('{fields[0]}') holds text where a probability is wanted") from None
        if not (np.isfinite(values).all() and (values >= 0).all() and abs(values.sum() - 1) < 1e-3):
            raise bad(f"line {number} ('{fields[0]}') holds no probabilities that sum to 1")


def write(path: Path, form: Form, content: bytes) -> None:
    """Write the CSV whole, read it back, check it; a file that fails the check does not stay."""
    files.write_bytes(path, content)
    try:
        check(path, form)
    except CompError:
        path.unlink(missing_ok=True)
        raise


def labels_in(path: Path, form: Form) -> npt.NDArray[np.int64]:
    """(N,) labels that a checked CSV gives, in the order of `form.ids`."""
    check(path, form)
    _, body = files.read_csv(path)
    if form.style == "probs":
        order = [form.header.index(name) - 1 for name in form.classes]
        values = np.array([row[1:] for row in body], dtype=np.float64)[:, order]
        return np.asarray(values.argmax(axis=1), dtype=np.int64)
    index = {name: n for n, name in enumerate(form.classes)}
    return np.array([index[row[1]] if form.style == "name" else int(row[1]) for row in body], dtype=np.int64)
