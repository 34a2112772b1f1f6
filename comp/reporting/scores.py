"""Fold scores of every run, side by side: read from prediction files, nothing is kept from one call to the next."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from comp import config, files, metrics, predictions
from comp.ensembling.choosing import IMPORTED, begun_folds, is_imported, known_runs
from comp.ensembling.members import check_classes, check_known
from comp.ensembling.truth import Truth
from comp.errors import CompError, Exit
from comp.metrics import Estimate
from comp.predictions import Predictions
from comp.reporting.curves import log_rows, mean_curve, validation_curve
from comp.runs import Fold, Run

_THREADS = 2  # more of them wait for the interpreter: 4 take longer than 2


@dataclass(frozen=True)
class FoldScore:
    """One fold of one run.

    Attributes:
        number: Which.
        score: On its held-out photos; None while it is not finished.
        epoch: Epochs in its log.
        live: The last validation score in its log, for a fold in training.
        state: finished, training, missing, stale or bad.
    """

    number: int
    score: float | None
    epoch: int
    live: float | None
    state: str


@dataclass(frozen=True)
class RunScore:
    """One run's row.

    Attributes:
        rank: 1 for the best run and all that cannot be told from it, and so on; None without a score.
        name: The run.
        views: The views its predictions were made with.
        selection: `last` or `best` epoch, as the headers say; empty where unknown.
        folds: One entry per fold there should be.
        mean, sd: Of the finished folds' scores; sd needs two.
        oof: Score of the pooled out-of-fold predictions with its interval.
        photos: Photos in it.
        recipe: Digest of the config without the seed; empty for imported runs.
        seed: The seed, None for imported runs.
        ms_per_image: Cost of one checkpoint with these views, where known.
        curve: Validation scores (or losses, turned) by epoch, mean over the folds, in 0..1 for drawing.
    """

    rank: int | None
    name: str
    views: str
    selection: str
    folds: tuple[FoldScore, ...]
    mean: float | None
    sd: float | None
    oof: Estimate | None
    photos: int
    recipe: str
    seed: int | None
    ms_per_image: float | None
    curve: tuple[float, ...]

    @property
    def finished(self) -> int:
        return sum(fold.score is not None for fold in self.folds)


@dataclass(frozen=True)
class _Pool:
    """A run's out-of-fold rows, in the order of its files.

    Attributes:
        place: (N,) which of the labelled photos.
        probs: (N, C).
        influence: (N,) of each photo on the score.
        score: The metric.
    """

    place: npt.NDArray[np.int64]
    probs: npt.NDArray[np.float32]
    influence: npt.NDArray[np.float64]
    score: float


class _Rows:
    """The labelled photos by number: what a file's ids stand for is looked up once per list of ids.

    Attributes:
        labels, folds, groups: (L,) of all labelled photos.
        sizes: Photos per fold.
    """

    def __init__(self, truth: Truth):
        self.truth = truth
        self.seen: dict[bytes, npt.NDArray[np.int64]] = {}
        self.number = {image_id: n for n, image_id in enumerate(truth.labels)}
        codes: dict[str, int] = {}
        self.labels = np.array(list(truth.labels.values()), dtype=np.int64)
        self.folds = np.array([truth.folds.get(i, 0) for i in truth.labels], dtype=np.int64)
        self.groups = np.array([codes.setdefault(truth.groups.get(i, i), len(codes)) for i in truth.labels])
        self.sizes = {number: int((self.folds == number).sum()) for number in truth.numbers}

    def of(self, read: Predictions, where: str) -> npt.NDArray[np.int64]:
        """(N,) which labelled photo each of a file's rows is."""
        key = read.ids.tobytes()
        if key not in self.seen:
            place = [self.number.get(i, -1) for i in read.ids.tolist()]
            if -1 in place:
                check_known(read, self.truth.labels, where)  # says which
            self.seen[key] = np.array(place, dtype=np.int64)
        return self.seen[key]


def _stale(fold: Fold, read: Predictions, path: Path) -> bool:
    """Whether a file's weights were replaced after it was made.

    Weights are written before the predictions they make. Only where that order is broken are they digested: a table
    of 200 folds is not to read 20 GB. (`comp submit` always compares digests.)
    """
    digest = read.header.get("checkpoint")
    if not digest or not fold.model.exists() or fold.model.stat().st_mtime_ns <= path.stat().st_mtime_ns:
        return False
    return bool(files.digest_file(fold.model) != digest)


def _views_of(folds: Sequence[Fold]) -> dict[str, list[tuple[Fold, Path]]]:
    """View set (by file name) → the folds that have it."""
    found: dict[str, list[tuple[Fold, Path]]] = {}
    for fold in folds:
        for name in fold.view_sets("oof"):
            found.setdefault(name, []).append((fold, fold.predictions("oof", name)))
    return found


class _Reader:
    """Reads one run into its row and its pooled predictions."""

    def __init__(self, truth: Truth, metric: str, views: str | None, warnings: list[str]):
        self.truth, self.metric, self.views, self.warnings = truth, metrics.METRICS[metric], views, warnings
        self.rows = _Rows(truth)

    def read(self, run: Run) -> tuple[RunScore, _Pool | None]:
        if is_imported(run):
            return self._imported(run)
        begun = begun_folds(run)
        by_views = _views_of(begun)
        if self.views is not None:
            by_views = {self.views: by_views.get(self.views, [])}
        most = max((len(found) for found in by_views.values()), default=0)
        candidates = [
            self._fold_row(run, begun, name, by_views[name]) for name in by_views if len(by_views[name]) == most
        ]
        if not candidates:
            candidates = [self._fold_row(run, begun, self.views or "", [])]
        return max(candidates, key=lambda found: self._utility(found[0]))

    def _utility(self, row: RunScore) -> float:
        return -math.inf if row.oof is None else self.metric.utility(row.oof.value)

    def _fold_row(
        self, run: Run, begun: Sequence[Fold], views: str, found: Sequence[tuple[Fold, Path]]
    ) -> tuple[RunScore, _Pool | None]:
        scores: dict[int, FoldScore] = {}
        parts: list[Predictions] = []
        logs = {fold.number: validation_curve(log_rows(fold), self.metric.name) for fold in begun}
        for fold, path in found:
            state, score = "finished", None
            try:
                read = predictions.load(path)
                where = f"{fold} (oof)"
                check_classes(read, self.truth.classes, where)
                place = self.rows.of(read, where)
                inside = self.rows.folds[place] == fold.number
                if self.rows.sizes and (len(read) != self.rows.sizes.get(fold.number) or not inside.all()):
                    raise CompError(where, f"holds other photos than fold {fold.number}", "train it again", Exit.FILE)
                if _stale(fold, read, path):
                    state = "stale"
                    self.warnings.append(f"{fold}: {path.name} was made by other weights; comp predict {run.name}")
                else:
                    score = self.metric.function(self.rows.labels[place], read.probs)
                    parts.append(read)
            except CompError as error:
                state = "bad"
                self.warnings.append(str(error))
            scores[fold.number] = FoldScore(fold.number, score, len(logs[fold.number]), None, state)
        for fold in begun:
            if fold.number not in scores:
                log = logs[fold.number]
                state = "missing" if fold.finished else "training"
                live = next((v for v in reversed(log) if math.isfinite(v)), None)
                scores[fold.number] = FoldScore(fold.number, None, len(log), live, state)
        for number in self.truth.numbers:
            scores.setdefault(number, FoldScore(number, None, 0, None, "missing"))
        recipe, seed = self._recipe(begun, parts)
        curve = mean_curve(logs.values())
        return self._row(run, views, tuple(scores[k] for k in sorted(scores)), parts, recipe, seed, curve)

    def _recipe(self, begun: Sequence[Fold], parts: Sequence[Predictions]) -> tuple[str, int | None]:
        """Digest of the config without the seed, and the seed: from a header, which is quicker, else from the YAML."""
        for part in parts[:1]:
            recipe, seed = part.header.get("recipe"), part.header.get("seed")
            if isinstance(recipe, str) and isinstance(seed, int):
                return recipe, seed
        if begun and begun[0].config_file.exists():
            try:
                known = config.read_run(begun[0].config_file)
                return known.recipe(), known.seed
            except CompError as error:
                self.warnings.append(str(error))
        return "", None

    def _row(
        self,
        run: Run,
        views: str,
        folds: tuple[FoldScore, ...],
        parts: Sequence[Predictions],
        recipe: str,
        seed: int | None,
        curve: tuple[float, ...],
    ) -> tuple[RunScore, _Pool | None]:
        finished = [fold.score for fold in folds if fold.score is not None]
        headers = tuple(part.header for part in parts)
        pool, oof = None, None
        if parts:
            place = np.concatenate([self.rows.of(part, run.name) for part in parts])
            probs = np.concatenate([part.probs for part in parts])
            labels, groups = self.rows.labels[place], self.rows.groups[place]
            score = self.metric.function(labels, probs)
            influence = metrics.influence(self.metric.name, labels, probs)
            error = metrics.stratified_error(influence, labels, groups)
            oof = metrics.around(self.metric.name, score, error, len(np.unique(groups)))  # = metrics.interval
            pool = _Pool(place, probs, influence, score)
        said = {str(header["selection"]) for header in headers if header.get("selection")}
        costs = [float(h["ms_per_image"]) for h in headers if isinstance(h.get("ms_per_image"), int | float)]
        views_said = {str(header["views"]) for header in headers if header.get("views")}
        row = RunScore(
            rank=None,
            name=run.name,
            views=views_said.pop() if len(views_said) == 1 else views,
            selection="best" if "best" in said else "".join(sorted(said)[:1]),
            folds=folds,
            mean=statistics.fmean(finished) if finished else None,
            sd=statistics.stdev(finished) if len(finished) > 1 else None,
            oof=oof,
            photos=len(pool.place) if pool else 0,
            recipe=recipe,
            seed=seed,
            ms_per_image=statistics.fmean(costs) if costs else None,
            curve=curve,
        )
        return row, pool

    def _imported(self, run: Run) -> tuple[RunScore, _Pool | None]:
        path = run.path / IMPORTED / "oof.npz"
        folds: list[FoldScore] = []
        parts: list[Predictions] = []
        if path.exists():
            try:
                read = predictions.load(path)
                check_classes(read, self.truth.classes, f"{run.name} (oof)")
                place = self.rows.of(read, f"{run.name} (oof)")
                labels, numbers = self.rows.labels[place], self.rows.folds[place]
                parts = [read]
                for k in self.truth.numbers:
                    inside = numbers == k
                    score = self.metric.function(labels[inside], read.probs[inside]) if inside.any() else None
                    folds.append(FoldScore(k, score, 0, None, "finished" if inside.any() else "missing"))
            except CompError as error:
                self.warnings.append(str(error))
        return self._row(run, IMPORTED, tuple(folds), parts, "", None, ())


def _told_apart(metric: str, rows: _Rows, best: _Pool, other: _Pool) -> bool:
    """Whether the 95 % interval of the paired difference on the common photos leaves out 0.

    On the same photos the difference's influences are the difference of the influences, known already
    (`metrics.paired_difference` would compute them again).
    """
    a, b = np.argsort(best.place), np.argsort(other.place)
    place = best.place[a]
    if np.array_equal(place, other.place[b]):
        change = best.influence[a] - other.influence[b]
        error = metrics.stratified_error(change, rows.labels[place], rows.groups[place])
        return bool(abs(best.score - other.score) > metrics.Z95 * error)
    common, mine, theirs = np.intersect1d(best.place, other.place, assume_unique=True, return_indices=True)
    if not len(common):
        return False
    labels, groups = rows.labels[common], rows.groups[common]
    difference = metrics.paired_difference(labels, best.probs[mine], other.probs[theirs], groups, metric)
    return not difference.low <= 0.0 <= difference.high


def _ranked(metric: str, numbered: _Rows, rows: Sequence[tuple[RunScore, _Pool | None]]) -> list[RunScore]:
    """Rows with ranks: a run shares the rank of the best run above it that it cannot be told from."""
    ranked: list[RunScore] = []
    leader: _Pool | None = None
    rank = 0
    for place, (row, pool) in enumerate(rows, start=1):
        if pool is None:
            ranked.append(row)
            continue
        if leader is None or _told_apart(metric, numbered, leader, pool):
            leader, rank = pool, place
        ranked.append(RunScore(**{**row.__dict__, "rank": rank}))
    return ranked


def _together(rows: Sequence[RunScore]) -> list[RunScore]:
    """Seeds of one recipe below each other, at the place of the best of them."""
    first: dict[str, int] = {}
    for place, row in enumerate(rows):
        first.setdefault(row.recipe or row.name, place)
    return sorted(rows, key=lambda row: first[row.recipe or row.name])


def gather(
    home: Path, truth: Truth, metric: str, names: Sequence[str] = (), views: str | None = None
) -> tuple[list[RunScore], list[str]]:
    """Score every run of a set.

    Args:
        home: The project's folder.
        truth: Labels and folds.
        metric: The competition's metric.
        names: Only these runs; empty for all.
        views: Only this view set, by its file name; default each run's with the most folds, then the best score.

    Returns:
        Rows, best first with seeds of one recipe together; and warnings about files that could not be used.
    """
    warnings: list[str] = []
    reader = _Reader(truth, metric, views, warnings)
    wanted = [run for run in known_runs(home, truth.data) if not names or run.name in names]
    with ThreadPoolExecutor(_THREADS) as pool:
        read = list(pool.map(reader.read, wanted))
    read.sort(key=lambda found: (-reader._utility(found[0]), found[0].name))
    return _together(_ranked(metric, reader.rows, read)), sorted(set(warnings))


@dataclass(frozen=True)
class Recipe:
    """Several seeds of one recipe: their number, mean score and its standard deviation over seeds."""

    recipe: str
    runs: tuple[str, ...]
    mean: float
    sd: float


def recipes(rows: Sequence[RunScore]) -> list[Recipe]:
    """The recipes of which at least two seeds have the same photos predicted (the most there are)."""
    found: dict[str, list[RunScore]] = {}
    for row in rows:
        if row.recipe and row.oof is not None:
            found.setdefault(row.recipe, []).append(row)
    out = []
    for recipe, seeds in found.items():
        seeds = [seed for seed in seeds if seed.photos == max(other.photos for other in seeds)]
        if len(seeds) > 1:
            values = [seed.oof.value for seed in seeds if seed.oof is not None]
            out.append(Recipe(recipe, tuple(s.name for s in seeds), statistics.fmean(values), statistics.stdev(values)))
    return out
