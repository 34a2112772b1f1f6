"""Members: the runs of an ensemble, read from their prediction files and checked against each other before use.

A member is a run with folds (`fold<k>/oof.<views>.npz`, `fold<k>/test.<views>.npz`) or an imported model without them
(`imported/oof.npz`, `imported/test.npz`), whose one test prediction stands in every fold. What a header does not know
is not compared; what it knows must agree, and a file made by weights that are no longer there is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from comp import predictions
from comp.ensembling.choosing import IMPORTED, Choice, is_imported
from comp.ensembling.freshness import Digests, check_fresh, differs
from comp.ensembling.truth import Truth
from comp.errors import CompError, Exit
from comp.predictions import Predictions
from comp.runs import Fold, Run

_THREADS = 4  # reading and hashing release the interpreter's lock


@dataclass(frozen=True)
class Source:
    """One prediction file a member was read from."""

    path: Path
    split: str  # oof, test or val
    fold: int | None  # None for an imported member
    digest: str  # of ids, classes and probabilities
    header: Mapping[str, Any]


@dataclass(frozen=True)
class Member:
    """One run's predictions.

    Attributes:
        name: The run.
        folds: The folds it brings, ascending; empty for an imported member, which has none.
        oof: Out-of-fold predictions of those folds below each other; None for an imported member without any.
        test: Fold → test predictions in the order of `Truth.test_ids`; an imported member has the one key None.
        val: The same for the val photos kept out of the folds, where asked for.
        sources: The files.
    """

    name: str
    folds: tuple[int, ...]
    oof: Predictions | None
    test: Mapping[int | None, Predictions]
    val: Mapping[int | None, Predictions]
    sources: tuple[Source, ...]

    @property
    def imported(self) -> bool:
        return not self.folds

    @property
    def ms_per_image(self) -> float | None:
        """Mean milliseconds per image of one checkpoint, where the headers know it."""
        known = [source.header.get("ms_per_image") for source in self.sources if source.split != "val"]
        numbers = [float(ms) for ms in known if isinstance(ms, int | float) and ms > 0]
        return float(np.mean(numbers)) if numbers else None

    @property
    def selections(self) -> tuple[str, ...]:
        """How the checkpoints were chosen, as far as known: `last`, `best`."""
        said = (str(source.header["selection"]) for source in self.sources if source.header.get("selection"))
        return tuple(sorted(set(said)))

    def for_fold(self, fold: int | None, split: str = "test") -> Predictions:
        """The predictions that stand in a fold."""
        table = self.test if split == "test" else self.val
        return table[None if self.imported else fold]


def check_classes(read: Predictions, classes: Sequence[str], where: object) -> None:
    """Refuse other class names, or the same in another order."""
    given = read.classes.tolist()
    if given == list(classes):
        return
    if sorted(given) == sorted(classes):
        what = "has the classes in another order"
    elif len(given) != len(classes):
        what = f"has {len(given)} classes, the data set {len(classes)}"
    else:
        what = f"has other classes, e.g. '{next(name for name in given if name not in set(classes))}'"
    raise CompError(where, what, "predict again, or comp import it with named columns", Exit.FILE)


def _check_header(read: Predictions, where: str, truth: Truth, fold: Fold | None, split: str, views: str) -> None:
    """Compare what a header knows with what it should say."""
    header = read.header
    check_classes(read, truth.classes, where)
    for key, wanted, fix in (
        ("data", truth.data_digest, "the labels or splits changed since; train again or take that data back"),
        ("folds", truth.folds_digest, "it was trained on another split; train again or take that folds file back"),
    ):
        if wanted and header.get(key) and header[key] != wanted:
            raise differs(where, f"was made with another {key} digest", header[key], wanted, fix)
    if fold is None:
        return
    for key, value in (("fold", fold.number), ("views", views)):
        if value != "" and key in header and header[key] != value:
            raise differs(where, f"is not {key} {value}", header[key], value, f"comp predict {fold.run.name}")
    if not fold.model.exists() and header.get("run", fold.run.name) != fold.run.name:
        raise differs(where, "is another run's", header["run"], fold.run.name, f"comp predict {fold.run.name}")


def _aligned(read: Predictions, ids: Sequence[str], where: str, what: str) -> Predictions:
    """Rows in the order of `ids`; the sets must be equal."""
    try:
        return read.align(ids, where)
    except CompError as error:
        raise CompError(where, f"{what}: {error.what}", error.fix or "predict again", Exit.FILE) from None


def _read_fold(fold: Fold, truth: Truth, views: str, views_file: str, splits: Sequence[str]) -> dict[str, Any]:
    """One fold's files, checked against the truth: split → (Predictions, Source)."""
    out: dict[str, Any] = {}
    for split in splits:
        path = fold.predictions(split, views_file)
        where = f"member {fold} ({split})"
        read = predictions.load(path)
        _check_header(read, where, truth, fold, split, views)
        if split == "oof":
            wanted = truth.ids_of(fold.number) or [i for i in read.ids.tolist() if i in truth.labels]
        else:
            wanted = list(truth.test_ids if split == "test" else truth.val)
        source = Source(path, split, fold.number, read.digest(), read.header)
        out[split] = (_aligned(read, wanted, where, f"{split} photos"), source)
    return out


def _read_run(
    run: Run, folds: Sequence[int], truth: Truth, views: str, views_file: str, splits: Sequence[str], digests: Digests
) -> Member:
    """A run with folds."""
    parts: dict[str, dict[int | None, Predictions]] = {"oof": {}, "test": {}, "val": {}}
    sources: list[Source] = []
    for number in folds:
        read = _read_fold(run.fold(number), truth, views, views_file, splits)
        for split, (one, source) in read.items():
            parts[split][number] = one
            sources.append(source)
            check_fresh(one, f"member {run.fold(number)} ({split})", run.fold(number), digests)
    for key in ("checkpoint", "pixels"):
        for source in sources:
            other = next(
                (
                    one
                    for one in sources
                    if key in one.header
                    and key in source.header
                    and one.header[key] != source.header[key]
                    # every fold has its own checkpoint, all folds have the same pixels
                    and (key == "pixels" or one.fold == source.fold)
                ),
                None,
            )
            if other:
                where = f"member {run.name}"
                what = f"{source.path.name} of fold {source.fold} and {other.path.name} of fold {other.fold}"
                raise differs(
                    where,
                    f"{what} were made with another {key}",
                    source.header[key],
                    other.header[key],
                    f"comp predict {run.name}",
                )
    oof = predictions.concatenate(list(parts["oof"].values()), f"member {run.name} (oof)") if parts["oof"] else None
    return Member(run.name, tuple(folds), oof, parts["test"], parts["val"], tuple(sources))


def _read_imported(run: Run, truth: Truth, splits: Sequence[str]) -> Member:
    """A model from elsewhere: one file per split, no folds."""
    got: dict[str, Predictions] = {}
    sources = []
    for split in splits:
        path = run.path / IMPORTED / f"{split}.npz"
        where = f"member {run.name} ({split})"
        if not path.exists():
            if split == "test":
                fix = f"comp import FILE.csv --data {truth.data} --name {run.name}"
                raise CompError(where, "is not there", fix, Exit.FILE)
            if split == "val":
                raise CompError(where, "is not there, and val: audit needs it", "leave this member out", Exit.FILE)
            continue
        read = predictions.load(path)
        _check_header(read, where, truth, None, split, "")
        sources.append(Source(path, split, None, read.digest(), read.header))
        if split == "oof":
            check_known(read, truth.labels, where)
            got[split] = read
        else:
            wanted = list(truth.test_ids if split == "test" else truth.val)
            got[split] = _aligned(read, wanted, where, f"{split} photos")
    one_test: dict[int | None, Predictions] = {None: got["test"]} if "test" in got else {}
    one_val: dict[int | None, Predictions] = {None: got["val"]} if "val" in got else {}
    return Member(run.name, (), got.get("oof"), one_test, one_val, tuple(sources))


def check_known(read: Predictions, known: Mapping[str, int], where: object) -> None:
    """Refuse out-of-fold rows of photos that are not in the folds."""
    foreign = [image_id for image_id in read.ids.tolist() if image_id not in known]
    if foreign:
        what = f"predicts {len(foreign)} ids that are no labelled photos of the folds, e.g. '{foreign[0]}'"
        raise CompError(where, what, "remove them", Exit.FILE)


def load(
    home: Path,
    truth: Truth,
    choice: Choice,
    views: str,
    views_file: str,
    splits: Sequence[str] = ("oof", "test"),
    advance: Callable[[], object] = lambda: None,
) -> list[Member]:
    """Read and check every member.

    Args:
        home: The project's folder.
        truth: What they are checked against.
        choice: The members and their folds.
        views: Canonical form of the views, as headers say it; empty to take the file name's word.
        views_file: The views' file name.
        splits: Which of oof, test and val to read.
        advance: Called after each member.

    Returns:
        The members in the order of `choice`, test and val rows in the order of `truth`.

    Raises:
        CompError: Exit code 4, one line naming member and id or digest.
    """
    digests = Digests(home, truth.data)
    _hash_ahead(choice, digests)

    def read(run: Run) -> Member:
        if is_imported(run):
            member = _read_imported(run, truth, splits)
        else:
            member = _read_run(run, choice.folds, truth, views, views_file, splits, digests)
        advance()
        return member

    with ThreadPoolExecutor(_THREADS) as pool:
        members = list(pool.map(read, choice.runs))
    digests.save()
    return members


def _hash_ahead(choice: Choice, digests: Digests) -> None:
    """Digest all weights side by side (hashing releases the interpreter's lock)."""
    weights = [run.fold(k).model for run in choice.runs if not is_imported(run) for k in choice.folds]
    with ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(digests.of, [path for path in weights if path.exists()]))


@dataclass(frozen=True)
class Sheet:
    """Members' out-of-fold predictions on the photos all of them cover.

    Attributes:
        ids: N image ids, sorted.
        probs: M arrays (N, C) float32.
        labels: (N,) true labels.
        folds: (N,) the fold each photo is held out in.
        groups: (N,) rows with equal numbers are exact copies of one photo.
        group_names: (N,) the same as text that does not depend on which photos are there.
        total: Photos that are in folds at all.
    """

    ids: list[str]
    probs: list[npt.NDArray[np.float32]]
    labels: npt.NDArray[np.int64]
    folds: npt.NDArray[np.int64]
    groups: npt.NDArray[np.int64]
    group_names: npt.NDArray[np.str_]
    total: int

    def __len__(self) -> int:
        return len(self.ids)


def common_sheet(members: Sequence[Member], truth: Truth) -> Sheet | None:
    """Lay the members' out-of-fold rows beside each other, on the photos they share.

    Returns:
        None where a member has no out-of-fold rows, so that nothing can be estimated.

    Raises:
        CompError: The members share no photo.
    """
    tables = [member.oof for member in members]
    if any(oof is None for oof in tables) or not tables:
        return None
    shared: set[str] | None = None
    for oof in tables:
        assert oof is not None
        shared = set(oof.ids.tolist()) if shared is None else shared & set(oof.ids.tolist())
    ids = sorted(shared or ())
    if not ids:
        raise CompError("members", "have no out-of-fold photo in common", "leave one of them out", Exit.FILE)
    codes: dict[str, int] = {}
    names = [truth.groups.get(i, i) for i in ids]
    return Sheet(
        ids=ids,
        probs=[oof.take(ids).probs for oof in tables if oof is not None],
        labels=np.array([truth.labels[i] for i in ids], dtype=np.int64),
        folds=np.array([truth.folds.get(i, 0) for i in ids], dtype=np.int64),
        groups=np.array([codes.setdefault(name, len(codes)) for name in names], dtype=np.int64),
        group_names=np.array(names),
        total=len(truth.labels),
    )
