"""Predictions: the one format in which probabilities are handed over, by our own steps and by anyone else's model."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from comp import files
from comp.errors import CompError, Exit

_ARRAYS = ("ids", "probs", "classes", "header")
_MOST_BYTES = 16 * 2**30
SUM_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Predictions:
    """Probabilities of N images over C classes.

    Attributes:
        ids: (N,) image ids, unicode, no two alike.
        probs: (N, C) float32, each row sums to 1.
        classes: (C,) class names in label order.
        header: Where they come from, as far as known: run, fold, views, ms_per_image and the digests of checkpoint,
            config, data, pixels and folds.
    """

    ids: npt.NDArray[np.str_]
    probs: npt.NDArray[np.float32]
    classes: npt.NDArray[np.str_]
    header: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)

    def digest(self) -> str:
        """SHA-256 of ids, classes and probabilities in id order: the same for every order of rows, header left out."""
        order = np.argsort(self.ids, kind="stable")
        text = json.dumps([self.ids[order].tolist(), self.classes.tolist()], ensure_ascii=False)
        return files.digest_bytes(text.encode() + np.ascontiguousarray(self.probs[order], dtype="<f4").tobytes())

    def align(self, ids: Sequence[str] | npt.NDArray[np.str_], where: object) -> Predictions:
        """The same rows in the order of `ids`.

        Raises:
            CompError: The two sets of ids differ; the line names one id that is missing or too many.
        """
        rows = {image_id: row for row, image_id in enumerate(self.ids.tolist())}
        wanted = [str(image_id) for image_id in ids]
        missing = [image_id for image_id in wanted if image_id not in rows]
        if missing:
            what = f"has no prediction for {len(missing)} of {len(wanted)} ids, e.g. '{missing[0]}'"
            raise CompError(where, what, "predict again", Exit.FILE)
        if len(wanted) < len(rows):
            extra = sorted(set(rows) - set(wanted))
            raise CompError(
                where, f"predicts {len(extra)} ids that are not asked for, e.g. '{extra[0]}'", "", Exit.FILE
            )
        if self.ids.tolist() == wanted:
            return self
        order = [rows[image_id] for image_id in wanted]
        return Predictions(self.ids[order], self.probs[order], self.classes, self.header)

    def take(self, ids: Iterable[str]) -> Predictions:
        """Only the rows of these ids, in their order; every id must be there (KeyError otherwise)."""
        rows = {image_id: row for row, image_id in enumerate(self.ids.tolist())}
        order = [rows[image_id] for image_id in ids]
        return Predictions(self.ids[order], self.probs[order], self.classes, self.header)

    def save(self, path: Path) -> None:
        """Check and write the file whole. The same predictions give the same bytes."""
        check(self, path)
        header = json.dumps(dict(self.header), sort_keys=True, ensure_ascii=False, allow_nan=False)
        arrays = {
            "ids": self.ids.astype(np.str_),
            "probs": self.probs.astype(np.float32),
            "classes": self.classes.astype(np.str_),
            "header": np.array(header),
        }
        files.write_atomic(path, lambda file: np.savez(file, **arrays))  # type: ignore[arg-type]


def check(predictions: Predictions, where: object) -> None:
    """Raise one line that names the id when shapes, ids or probabilities are not what `Predictions` promises."""

    def bad(what: str, fix: str = "predict again") -> CompError:
        return CompError(where, what, fix, Exit.FILE)

    ids, probs, classes = predictions.ids, predictions.probs, predictions.classes
    if ids.ndim != 1 or classes.ndim != 1 or probs.shape != (len(ids), len(classes)):
        raise bad(f"shapes do not fit: ids {ids.shape}, probs {probs.shape}, classes {classes.shape}")
    if len(classes) < 2:
        raise bad(f"has {len(classes)} classes, at least 2 are wanted")
    for what, values in (("id", ids), ("class", classes)):
        if len(set(values.tolist())) < len(values):
            unique, counts = np.unique(values, return_counts=True)
            raise bad(f"the {what} '{unique[counts > 1][0]}' is there {counts.max()} times")
    # All is well in nearly every file, which two passes show; nan and infinity fail both comparisons.
    if len(ids) and probs.min() >= 0 and np.abs(probs.sum(axis=1) - 1).max() <= SUM_TOLERANCE / 2:
        return
    finite = np.isfinite(probs).all(axis=1)
    if not finite.all():
        raise bad(f"the probabilities of id '{ids[~finite][0]}' are not finite ({int((~finite).sum())} such rows)")
    negative = (probs < 0).any(axis=1)
    if negative.any():
        raise bad(f"id '{ids[negative][0]}' has a negative probability ({int(negative.sum())} such rows)")
    sums = probs.sum(axis=1, dtype=np.float64)
    off = np.abs(sums - 1) > SUM_TOLERANCE
    if off.any():
        raise bad(
            f"the probabilities of id '{ids[off][0]}' sum to {sums[off][0]:.4g}, not 1 ({int(off.sum())} such rows)"
        )


def load(path: Path) -> Predictions:
    """Read and check a prediction file; no code in it can run (`allow_pickle=False`).

    Raises:
        CompError: Exit code 4: missing, truncated, not a prediction file, or rows that break the format.
    """

    def bad(what: str) -> CompError:
        return CompError(path, what, "predict again or write it as README.md says", Exit.FILE)

    try:
        with zipfile.ZipFile(path) as archive:
            if sum(member.file_size for member in archive.infolist()) > _MOST_BYTES:
                raise bad("claims to be larger than 16 GiB")
            # Reading compares checksums; what is not read below is compared here: a rotten name would hide the header.
            others = set(archive.namelist()) - {f"{name}.npy" for name in _ARRAYS}
        files.check_zip(path, _MOST_BYTES, checksums=bool(others))
        with np.load(path, allow_pickle=False) as archive:
            missing = [name for name in _ARRAYS[:3] if name not in archive]
            if missing:
                raise bad(f"has no array '{missing[0]}'")
            arrays = {name: archive[name] for name in _ARRAYS if name in archive}
    except FileNotFoundError:
        raise CompError(path, "not found", "run `comp predict`", Exit.FILE) from None
    except OSError as error:
        if error.errno is None:
            raise bad("is not a prediction file, or a torn one") from None
        raise files.system_error(path, error) from error
    except CompError:
        raise
    except Exception:  # zipfile and numpy raise a dozen kinds on damaged bytes
        raise bad("is not a prediction file, or a torn one") from None
    for name, kind in (("ids", "U"), ("classes", "U"), ("probs", "f")):
        if arrays[name].dtype.kind != kind:
            raise bad(f"array '{name}' has type {arrays[name].dtype}, {'text' if kind == 'U' else 'float32'} is wanted")
    header: Any = {}
    if "header" in arrays:
        try:
            header = json.loads(str(arrays["header"]))
        except (ValueError, RecursionError):
            header = None
        if not isinstance(header, dict):
            raise bad("its header is not a JSON object")
    predictions = Predictions(arrays["ids"], arrays["probs"].astype(np.float32, copy=False), arrays["classes"], header)
    check(predictions, path)
    return predictions


def concatenate(parts: Sequence[Predictions], where: object) -> Predictions:
    """Put the folds' predictions below each other; they share classes and no id is in two of them.

    The header keeps what all parts agree on.
    """
    first = parts[0]
    for part in parts[1:]:
        if part.classes.tolist() != first.classes.tolist():
            raise CompError(where, "the folds' predictions have different classes", "predict again", Exit.FILE)
    header = {
        key: value
        for key, value in first.header.items()
        if all(key in part.header and part.header[key] == value for part in parts)
    }
    together = Predictions(
        np.concatenate([part.ids for part in parts]),
        np.concatenate([part.probs for part in parts]),
        first.classes,
        header,
    )
    check(together, where)
    return together
