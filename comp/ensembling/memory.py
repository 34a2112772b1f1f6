"""A submission's memory: making it again from its prediction files, and saying where the two differ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from comp.ensembling import choosing, members, methods
from comp.ensembling.choosing import Choice
from comp.ensembling.fitted import restore
from comp.ensembling.members import Member, common_sheet
from comp.ensembling.submission import average, choose_views
from comp.ensembling.truth import Truth
from comp.errors import CompError, Exit
from comp.runs import Run

SAME_ESTIMATE = 1e-9  # two sums of the same numbers on different machines


@dataclass(frozen=True)
class Remade:
    """A submission made again.

    Attributes:
        members: As read now.
        probs: (T, C) the prediction, from the rule as it was fitted then.
        estimate: The cross-fitted score, fitted again; None where there is none.
    """

    members: list[Member]
    probs: npt.NDArray[np.float64]
    estimate: float | None


def _choice(home: Path, record: Mapping[str, Any]) -> Choice:
    runs = tuple(Run(home, record["data"]["name"], member["name"]) for member in record["members"])
    return Choice(runs, tuple(record["folds"]), ())


def check_data(record: Mapping[str, Any], truth: Truth) -> None:
    """Refuse to compare with another data set or split than the submission was made with.

    Raises:
        CompError: Exit code 3.
    """
    for key, now in (("digest", truth.data_digest), ("folds", truth.folds_digest)):
        then = record["data"].get(key)
        if then and now and then != now:
            what = "labels or splits" if key == "digest" else "folds file"
            fix = "take the files of then back, or submit again"
            raise CompError(
                truth.data, f"its {what} changed since ({then[:12]}… then, {now[:12]}… now)", fix, Exit.DATA
            )


def remake(home: Path, truth: Truth, record: Mapping[str, Any]) -> Remade:
    """Read the members again, compare every file with the record, apply the recorded rule, estimate again.

    Raises:
        CompError: A file is missing, stale, or not the one that was blended.
    """
    check_data(record, truth)
    choice = _choice(home, record)
    for run in choice.runs:
        if not choosing.is_imported(run) and not choosing.begun_folds(run):
            raise CompError(f"member {run.name}", "is not there any more", "take its files back", Exit.FILE)
    said = {
        (member["name"], file["split"], file["fold"]): file for member in record["members"] for file in member["files"]
    }
    wanted = {split for _, split, _ in said}
    splits = [split for split in ("oof", "test", "val") if split in wanted]
    read = members.load(home, truth, choice, record["views"]["spec"], record["views"]["file"], splits)
    for member in read:
        for source in member.sources:
            then = said.get((member.name, source.split, source.fold))
            if then is not None and then["digest"] != source.digest:
                where = f"member {member.name}" + ("" if source.fold is None else f"/fold{source.fold}")
                what = f"{source.path.name} is not the file that was blended (its probabilities differ)"
                raise CompError(where, what, "take that file back, or submit again", Exit.FILE)
    fitted = restore(record["rule"]["fitted"])
    return Remade(read, average(fitted, read, choice.folds), _estimate(read, home, truth, choice, record))


def _estimate(
    read: Sequence[Member], home: Path, truth: Truth, choice: Choice, record: Mapping[str, Any]
) -> float | None:
    from comp.ensembling.estimate import cross_fit

    sheet = common_sheet(read, truth)
    if sheet is None or record.get("estimate") is None:
        return None
    method = methods.method(record["rule"]["spec"])
    if record["views"].get("chosen_from"):
        known = [(spec, file) for spec, file in record["views"]["chosen_from"]]
        sets = [members.load(home, truth, choice, spec, file, ("oof",)) for spec, file in known]
        return choose_views(sets, truth, method, record["metric"]).cross.cross_fitted
    fit = cross_fit(method, sheet.probs, sheet.labels, sheet.folds, record["metric"], sheet.group_names)
    return fit.cross_fitted


def first_difference(was: bytes, now: bytes) -> str:
    """Where two CSVs differ, in a phrase; empty where they are the same bytes."""
    if was == now:
        return ""
    old, new = was.decode(errors="replace").split("\n"), now.decode(errors="replace").split("\n")
    differing = [n for n, (a, b) in enumerate(zip(old, new, strict=False)) if a != b]
    if not differing:
        return f"it has {len(old)} lines, made again {len(new)}"
    line = differing[0]
    return f"{len(differing)} lines differ, first line {line + 1}: it says '{old[line][:60]}', again '{new[line][:60]}'"


def sample_rows(digest: str, count: int, rows: int = 20) -> npt.NDArray[np.int64]:
    """Random rows to recompute, the same for the same CSV, ascending."""
    rng = np.random.default_rng(int(digest[:16], 16))
    return np.sort(rng.choice(count, size=min(rows, count), replace=False)).astype(np.int64)


def remake_rows(
    record: Mapping[str, Any],
    read: Sequence[Member],
    fresh: Mapping[tuple[str, int], npt.NDArray[np.float32]],
    rows: Any,
) -> npt.NDArray[np.float64]:
    """The prediction for some test rows, with members' probabilities evaluated anew.

    Args:
        record: The submission's record.
        read: Its members; imported ones keep their file's probabilities.
        fresh: (member, fold) → (R, C) probabilities from the checkpoint.
        rows: (R,) which rows.
    """
    fitted = restore(record["rule"]["fitted"])
    folds: list[int | None] = list(record["folds"]) or [None]
    parts = []
    for fold in folds:
        stacked = [
            member.for_fold(fold).probs[rows] if member.imported or fold is None else fresh[(member.name, fold)]
            for member in read
        ]
        parts.append(fitted.apply(stacked, fold))
    return np.asarray(sum(parts[1:], start=parts[0]) / len(parts), dtype=np.float64)
