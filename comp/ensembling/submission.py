"""A blend: members in, one prediction and its estimate out, and the record of where every number came from."""

from __future__ import annotations

import datetime
import hashlib
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

import comp
from comp import files, metrics
from comp.config import check_name
from comp.ensembling.choosing import Choice
from comp.ensembling.estimate import CrossFit, Fitted, Method, cross_fit
from comp.ensembling.fitted import SubsetFit
from comp.ensembling.members import Member, Sheet, common_sheet
from comp.ensembling.methods import Choose, Subset
from comp.ensembling.truth import Truth
from comp.errors import CompError, Exit
from comp.metrics import Estimate

Floats = npt.NDArray[np.float64]
RECORD = 1  # version of the JSON's layout


@dataclass(frozen=True)
class Blend:
    """What a rule makes of its members.

    Attributes:
        members: In the order they were named.
        folds: The folds whose checkpoints are averaged; empty when all members are imported.
        rule: The rule's spec.
        metric: The competition's metric.
        sheet: Out-of-fold rows side by side; None where a member has none.
        alone: Each member's own out-of-fold estimate on the sheet; empty where there is no sheet.
        cross: The cross-fitted estimate; None where there is no sheet.
        fitted: The rule with everything chosen, on all out-of-fold rows.
        probs: (T, C) the prediction for the test photos, in the order of the truth.
        val_probs: (V, C) the same for the val photos kept out of the folds; None without them.
    """

    members: tuple[Member, ...]
    folds: tuple[int, ...]
    rule: str
    metric: str
    sheet: Sheet | None
    alone: tuple[Estimate, ...]
    cross: CrossFit | None
    fitted: Fitted
    probs: Floats
    val_probs: Floats | None

    @property
    def estimate(self) -> Estimate | None:
        """The headline: cross-fitted score, standard error, 95 % interval."""
        cross = self.cross
        return None if cross is None else Estimate(cross.cross_fitted, cross.se, cross.low, cross.high)

    def best_member(self) -> int | None:
        """The member with the best score of its own."""
        if not self.alone:
            return None
        utility = metrics.METRICS[self.metric].utility
        return max(range(len(self.alone)), key=lambda m: (utility(self.alone[m].value), -m))

    def lead_of_best(self) -> Estimate | None:
        """How far the best member is ahead of the rule (more is better for the member), paired; None if it is not."""
        best = self.best_member()
        if best is None or self.sheet is None or self.cross is None:
            return None
        how, sheet = metrics.METRICS[self.metric], self.sheet
        if not how.better(self.alone[best].value, self.cross.cross_fitted):
            return None
        ahead: npt.NDArray[np.floating] = sheet.probs[best]
        behind: npt.NDArray[np.floating] = self.cross.probs
        if not how.higher_is_better:
            ahead, behind = behind, ahead
        return metrics.paired_difference(sheet.labels, ahead, behind, sheet.groups, self.metric)


def average(fitted: Fitted, members: Sequence[Member], folds: Sequence[int], split: str = "test") -> Floats:
    """Apply a fitted rule to each fold's predictions, then average the folds.

    Args:
        fitted: The rule.
        members: M members.
        folds: Their folds; empty when all are imported.
        split: test or val.

    Returns:
        (N, C) float64, rows sum to 1. Labels are to be taken from this array.
    """
    numbers: Sequence[int | None] = list(folds) or [None]
    total: Floats | None = None
    for number in numbers:
        one = fitted.apply([member.for_fold(number, split).probs for member in members], number)
        total = one if total is None else total + one
    assert total is not None
    return total / len(numbers)


@dataclass(frozen=True)
class ViewsChoice:
    """One of several view sets for all members, chosen by the rule's score.

    Attributes:
        best: Place of the chosen set.
        cross: What the rule with this choice is worth: the choice is rotated too. Its fit is the rule's on that set.
        parts: For each rotated part, the set chosen without it.
    """

    best: int
    cross: CrossFit
    parts: tuple[int, ...]


def choose_views(sets: Sequence[Sequence[Member]], truth: Truth, method: Method, metric: str) -> ViewsChoice:
    """Choose among view sets on the out-of-fold rows, with a cross-fitted estimate of rule and choice together.

    Args:
        sets: For each view set the same members.
        truth: The data set.
        method: The rule.
        metric: The competition's metric.

    Raises:
        CompError: Exit code 2: a member has no out-of-fold rows.
    """
    sheet = common_sheet([member for members in sets for member in members], truth)
    if sheet is None:
        lacking = ", ".join(member.name for member in sets[0] if member.oof is None)
        what = f"is chosen by out-of-fold scores, and {lacking} has no such rows"
        raise CompError("--views auto", what, "name the views", Exit.USAGE)
    count = len(sets[0])
    options = tuple(Subset(tuple(range(at * count, (at + 1) * count)), method) for at in range(len(sets)))
    cross = cross_fit(Choose(options, method.name), sheet.probs, sheet.labels, sheet.folds, metric, sheet.group_names)

    def place(fitted: Fitted) -> int:
        assert isinstance(fitted, SubsetFit)
        return fitted.members[0] // count

    assert isinstance(cross.fitted, SubsetFit)
    parts = tuple(place(fitted) for fitted in cross.by_part.values())
    return ViewsChoice(place(cross.fitted), replace(cross, fitted=cross.fitted.inner), parts)


def blend(
    members: Sequence[Member],
    choice: Choice,
    truth: Truth,
    method: Method,
    metric: str,
    cross: CrossFit | None = None,
) -> Blend:
    """Fit a rule on the members' out-of-fold rows, estimate what it is worth, and predict.

    Args:
        members: The members.
        choice: Their folds.
        truth: The data set.
        method: The rule.
        metric: The competition's metric.
        cross: The estimate where these members were chosen by score (`choose_views`), with the fitted rule.

    Raises:
        CompError: Exit code 2: the rule learns from out-of-fold rows and a member has none.
    """
    sheet = common_sheet(members, truth)
    alone: tuple[Estimate, ...] = ()
    if sheet is None:
        tests = [member.for_fold(next(iter(choice.folds), None)).probs for member in members]
        try:
            fitted = method.fit(tests, None)
        except CompError:
            lacking = [member.name for member in members if member.oof is None]
            what = f"learns from out-of-fold rows, and {', '.join(lacking)} has none"
            fix = "take a fixed rule (vote, mean, gmean, power, rank), or comp import its rows with --split oof"
            raise CompError(f"rule {method.name}", what, fix, Exit.USAGE) from None
    else:
        alone = tuple(metrics.interval(metric, sheet.labels, probs, sheet.groups) for probs in sheet.probs)
        if cross is None:
            cross = cross_fit(method, sheet.probs, sheet.labels, sheet.folds, metric, sheet.group_names)
        fitted = cross.fitted
    return Blend(
        members=tuple(members),
        folds=choice.folds,
        rule=method.name,
        metric=metric,
        sheet=sheet,
        alone=alone,
        cross=cross,
        fitted=fitted,
        probs=average(fitted, members, choice.folds),
        val_probs=average(fitted, members, choice.folds, "val") if truth.val else None,
    )


def default_name(members: Sequence[str], rule: str, views: str) -> str:
    """A file name that says members, rule and views; many members are counted and told apart by a digest."""
    joined = "+".join(members)
    if len(joined) > 60:
        joined = f"{len(members)}-runs-{hashlib.sha256(joined.encode()).hexdigest()[:6]}"
    return check_name("NAME", re.sub(r"[^A-Za-z0-9._+-]+", "-", f"{joined}.{rule}.{views}")[:100])


def code_commit() -> dict[str, Any]:
    """The commit of the code that runs, and whether it was changed since; both None outside of a git checkout."""
    folder = Path(comp.__file__).parent

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(("git", *words), cwd=folder, capture_output=True, text=True, timeout=10, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    commit, changes = git("rev-parse", "HEAD"), git("status", "--porcelain", "--", ".")
    return {"version": comp.__version__, "commit": commit, "changed": None if changes is None else bool(changes)}


def _estimate_json(estimate: Estimate) -> dict[str, float]:
    return {"value": estimate.value, "se": estimate.se, "low": estimate.low, "high": estimate.high}


def _member_json(member: Member, home: Path, alone: Estimate | None) -> dict[str, Any]:
    known = ("checkpoint", "config", "epoch", "selection", "ms_per_image")
    listed = []
    for source in member.sources:
        entry: dict[str, Any] = {"split": source.split, "fold": source.fold, "digest": source.digest}
        entry["file"] = source.path.relative_to(home).as_posix()
        entry |= {key: source.header[key] for key in known if source.header.get(key) is not None}
        listed.append(entry)
    return {
        "name": member.name,
        "imported": member.imported,
        "estimate": _estimate_json(alone) if alone else None,
        "ms_per_image": member.ms_per_image,
        "files": listed,
    }


def says(blend: Blend) -> str:
    """What the out-of-fold estimate estimates, in a sentence."""
    if not blend.folds:
        return "the rule on these out-of-fold rows, as good as whoever made them kept photos apart"
    if len(blend.folds) == 1:
        return "the rule on one fold's checkpoint per member, which is what the CSV uses"
    return (
        f"the rule on one fold's checkpoint per member; the CSV averages {len(blend.folds)} folds' checkpoints "
        "and is usually better"
    )


def record(
    blend: Blend,
    home: Path,
    truth: Truth,
    *,
    csv_name: str,
    csv_digest: str,
    size: str,
    views: str,
    views_file: str,
    chosen_from: Sequence[tuple[str, str]] = (),
    settings: Sequence[str],
    extra: Mapping[str, Any],
) -> dict[str, Any]:
    """The JSON beside a submission: where every number came from.

    Args:
        blend: The blend.
        home: Paths in it are relative to this folder.
        truth: The data set.
        csv_name: The CSV's file name.
        csv_digest: SHA-256 of its bytes.
        size: Name of the resolution whose manifest was read.
        views: Canonical form of the views.
        views_file: Their file name.
        chosen_from: (canonical form, file name) of the sets they were chosen from by score; empty if they were not.
        settings: `data.key=value` words it was made with.
        extra: Further entries: leaks, photos answered with the prior, audit.
    """
    alone: Sequence[Estimate | None] = blend.alone or [None] * len(blend.members)
    cross = blend.cross
    estimate: dict[str, Any] | None = None
    if cross is not None and blend.sheet is not None:
        estimate = {
            **cross.numbers(),
            "photos": len(blend.sheet),
            "of": blend.sheet.total,
            "estimates": says(blend),
        }
    best, lead = blend.best_member(), blend.lead_of_best()
    return {
        "record": RECORD,
        "csv": {"file": csv_name, "sha256": csv_digest, "rows": len(blend.probs)},
        "made": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "code": code_commit(),
        "data": {
            "name": truth.data,
            "size": size,
            "digest": truth.data_digest,
            "folds": truth.folds_digest,
            "classes": len(truth.classes),
            "settings": list(settings),
        },
        "metric": blend.metric,
        "views": {"spec": views, "file": views_file}
        | ({"chosen_from": [list(names) for names in chosen_from]} if chosen_from else {}),
        "rule": {"spec": blend.rule, "fitted": blend.fitted.describe()},
        "folds": list(blend.folds),
        "estimate": estimate,
        "members": [_member_json(m, home, a) for m, a in zip(blend.members, alone, strict=True)],
        "best_member": None
        if best is None
        else {"name": blend.members[best].name, "ahead_of_the_rule": _estimate_json(lead) if lead else None},
        **extra,
    }


def read_record(path: Path) -> dict[str, Any]:
    """Read the JSON beside a submission, or say what is wrong with it.

    Args:
        path: The CSV, or the JSON itself.
    """
    beside = path.with_suffix(".json")
    value = files.read_json(beside)
    wanted = ("csv", "data", "metric", "views", "rule", "folds", "members")
    if not isinstance(value, dict) or value.get("record") != RECORD or any(key not in value for key in wanted):
        raise CompError(beside, "is not the record of a submission", "make the submission again", Exit.FILE)
    return value


@contextmanager
def as_written(path: Path) -> Iterator[None]:
    """Say in one line that a record is not as `record` made it, where a part of it is missing or of another kind.

    Args:
        path: The CSV, or the JSON itself.
    """
    try:
        yield
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        what = f"is not as it was written ({type(error).__name__}: {error})"
        raise CompError(path.with_suffix(".json"), what, "make the submission again", Exit.FILE) from error
