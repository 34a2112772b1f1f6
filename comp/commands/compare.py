"""`comp compare`: paired differences between runs, with intervals, and what may be said of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from comp import metrics, terminal
from comp.commands import truths
from comp.ensembling import choosing, members
from comp.ensembling.choosing import Choice, begun_folds, is_imported
from comp.ensembling.members import Sheet, common_sheet
from comp.ensembling.truth import Truth
from comp.errors import CompError, Exit
from comp.metrics import Estimate
from comp.reporting import compare as paired
from comp.reporting.compare import SEEDS, Pair, RecipeDifference
from comp.reporting.score_table import paragraph, shortened
from comp.runs import Run

_PREFERRED = ("flip", "center")


def compare(
    runs: Sequence[str] = (), *, data: str = "petals", views: str | None = None, json: bool = False
) -> list[Pair]:
    """Print the paired differences between runs on the photos all of them predicted.

    Args:
        runs: Two or more runs.
        data: The data set.
        views: The view set; default one that all of them have, `flip` before `center` before others.
        json: Print JSON.

    Returns:
        One entry per pair.
    """
    if len(runs) < 2:
        raise CompError("comp compare", "two or more runs are wanted", "comp compare A B", Exit.USAGE)
    home, data_config, _, truth = truths.of_set(data)
    choice = choosing.choose(home, truth, runs)
    spec, views_file = truths.views_of(data_config, views) if views else ("", shared_views(choice, data_config.name))
    sheet, _ = read_sheet(home, truth, choice, spec, views_file)
    metric = data_config.metric
    pairs = paired.compare(runs, sheet.probs, sheet.labels, sheet.folds, sheet.groups, metric)
    recipes = {(pair.a, pair.b): _recipes(home, truth, choice, pair, spec, views_file, metric) for pair in pairs}
    if json:
        terminal.say(_as_json(pairs, recipes, metric, views_file, sheet))
        return pairs
    for note in choice.notes:
        paragraph(note)
    _show(runs, pairs, recipes, metric, data, views_file, sheet)
    return pairs


def shared_views(choice: Choice, data: str) -> str:
    """File name of a view set that all the members' out-of-fold predictions have on the common folds."""
    if all(is_imported(run) for run in choice.runs):
        return ""
    common = choosing.common_views(choice, ("oof",))
    if not common:
        fix = f"comp predict {' '.join(run.name for run in choice.runs)} --data {data} --views flip"
        raise CompError("runs", "have no view set in common", fix, Exit.FILE)
    return next((name for name in _PREFERRED if name in common), common[0])


def read_sheet(
    home: Path, truth: Truth, choice: Choice, spec: str, views_file: str
) -> tuple[Sheet, list[members.Member]]:
    """The members' out-of-fold rows side by side; what is missing is a line that says which command makes it."""
    missing = choosing.missing_files(choice, views_file, ("oof",))
    if missing:
        names = " ".join(sorted({path.parent.parent.name for path in missing}))
        raise CompError(missing[0], "is missing", f"comp predict {names} --data {truth.data}", Exit.FILE)
    read = members.load(home, truth, choice, spec, views_file, ("oof",))
    sheet = common_sheet(read, truth)
    if sheet is None:
        lacking = next(member.name for member in read if member.oof is None)
        raise CompError(f"run {lacking}", "has no out-of-fold rows to compare on", "comp import --split oof", Exit.FILE)
    return sheet, read


def _seeds(home: Path, truth: Truth, run: Run, choice: Choice, views_file: str) -> list[Run]:
    """All runs of a run's recipe that have the folds and views compared on, the run itself first."""
    if is_imported(run) or not run.folds():
        return [run]
    recipe = run.config().recipe()
    out = [run]
    for other in choosing.known_runs(home, truth.data):
        if other.name == run.name or is_imported(other) or not other.folds():
            continue
        there = {fold.number for fold in begun_folds(other) if fold.predictions("oof", views_file).exists()}
        if set(choice.folds) <= there and other.config().recipe() == recipe:
            out.append(other)
    return out


def _recipes(
    home: Path, truth: Truth, choice: Choice, pair: Pair, spec: str, views_file: str, metric: str
) -> RecipeDifference | tuple[int, int] | None:
    """The recipes' difference where both have enough seeds, else how many they have; None where they are one recipe."""
    by_name = {run.name: run for run in choice.runs}
    a, b = (_seeds(home, truth, by_name[name], choice, views_file) for name in (pair.a, pair.b))
    if {run.name for run in a} & {run.name for run in b}:
        return None
    if min(len(a), len(b)) < SEEDS:
        return len(a), len(b)
    everything = Choice((*a, *b), choice.folds, ())
    sheet, _ = read_sheet(home, truth, everything, spec, views_file)
    return paired.compare_recipes(sheet.probs[: len(a)], sheet.probs[len(a) :], sheet.labels, sheet.groups, metric)


def _points(metric: str) -> tuple[float, str]:
    """Factor and unit in which differences are told: points of a score in 0..1, or the loss itself."""
    return (100.0, "points") if metrics.METRICS[metric].higher_is_better else (1.0, "nats")


def _p(value: float) -> str:
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def _difference(estimate: Estimate, factor: float) -> str:
    digits = 2 if factor > 1 else 4
    return f"{factor * estimate.value:+.{digits}f} ±{factor * estimate.se:.{digits}f}"


def _show(
    runs: Sequence[str],
    pairs: Sequence[Pair],
    recipes: Mapping[tuple[str, str], RecipeDifference | tuple[int, int] | None],
    metric: str,
    data: str,
    views: str,
    sheet: Sheet,
) -> None:
    factor, unit = _points(metric)
    several = len(pairs) > 1
    title = f"{data}: {metric}, {len(sheet):,} photos paired" + (f", views {views}" if views else "")
    score = metrics.METRICS[metric].function
    for name, probs in zip(runs, sheet.probs, strict=True):
        estimate = metrics.interval(metric, sheet.labels, probs, sheet.groups)
        terminal.say(f"{shortened(name, 30):30} {score(sheet.labels, probs):.4f} ± {estimate.se:.4f}")
    terminal.say()
    rows = []
    for pair in pairs:
        low, high = factor * pair.difference.low, factor * pair.difference.high
        cells = [
            f"{shortened(pair.a, 16)} − {shortened(pair.b, 16)}",
            _difference(pair.difference, factor),
            f"{low:+.2f}…{high:+.2f}" if factor > 1 else f"{low:+.4f}…{high:+.4f}",
            _p(pair.holm if several else pair.p),
        ]
        rows.append(cells)
    paragraph(title)
    terminal.table(("difference", f"{metric}, {unit}", "95 %", "p Holm" if several else "p"), rows)
    terminal.say()
    rows = [
        [
            f"{shortened(pair.a, 16)} − {shortened(pair.b, 16)}",
            _difference(pair.accuracy, 100.0),
            f"{pair.only_a}:{pair.only_b}",
            _p(pair.mcnemar),
        ]
        for pair in pairs
    ]
    terminal.table(("difference", "accuracy, points", "right alone", "p McNemar"), rows)
    terminal.say()
    folds = sorted(pairs[0].by_fold)
    if len(folds) > 1:
        rows = [
            [
                f"{shortened(pair.a, 16)} − {shortened(pair.b, 16)}",
                *(f"{factor * pair.by_fold[k]:+.{2 if factor > 1 else 4}f}" for k in folds),
            ]
            for pair in pairs
        ]
        terminal.table(("by fold", *map(str, folds)), rows)
        terminal.say()
    for pair in pairs:
        for line in sentences(pair, recipes[(pair.a, pair.b)], metric, several):
            paragraph(line)


def sentences(pair: Pair, recipe: RecipeDifference | tuple[int, int] | None, metric: str, several: bool) -> list[str]:
    """What may be said of a pair: of the checkpoints always, of the recipes with enough seeds."""
    factor, unit = _points(metric)
    digits = 2 if factor > 1 else 4
    d = pair.difference
    p = pair.holm if several else pair.p
    how = "differ" if p < 0.05 else "cannot be told apart: they differ"
    out = [
        f"these checkpoints of {pair.a} and {pair.b} {how} by {factor * d.value:+.{digits}f} ± "
        f"{factor * d.se:.{digits}f} {unit}" + (" (Holm over all pairs)" if several else "")
    ]
    if recipe is None:
        out.append("they are seeds of one recipe: the difference is luck")
    elif isinstance(recipe, tuple):
        wanted = paired.seeds_wanted_from_folds(pair)
        about = f"about {wanted} of each would do" if wanted else "at this difference more photos are needed, not seeds"
        out.append(
            f"of the recipes this says nothing yet: that takes {SEEDS} seeds of each, there are {recipe[0]} and "
            f"{recipe[1]} (seed=1, seed=2 …); {about}"
        )
    else:
        r = recipe.difference
        sure = "the recipes differ" if not r.low <= 0 <= r.high else "the recipes cannot be told apart"
        out.append(
            f"{sure}: {factor * r.value:+.{digits}f} ± {factor * r.se:.{digits}f} {unit} over {recipe.seeds_a} and "
            f"{recipe.seeds_b} seeds (95 %: {factor * r.low:+.{digits}f} to {factor * r.high:+.{digits}f}; sd over "
            f"seeds {factor * recipe.sd_a:.{digits}f} and {factor * recipe.sd_b:.{digits}f})"
        )
        if r.low <= 0 <= r.high:
            out.append(
                f"about {recipe.wanted} seeds of each would do"
                if recipe.wanted
                else "no number of seeds would do at this difference: more photos are needed"
            )
    return out


def _as_json(
    pairs: Sequence[Pair],
    recipes: Mapping[tuple[str, str], RecipeDifference | tuple[int, int] | None],
    metric: str,
    views: str,
    sheet: Sheet,
) -> str:
    def estimate(e: Estimate) -> dict[str, float]:
        return {"value": e.value, "se": e.se, "low": e.low, "high": e.high}

    listed: list[dict[str, Any]] = []
    for pair in pairs:
        recipe = recipes[(pair.a, pair.b)]
        listed.append(
            {
                "a": pair.a,
                "b": pair.b,
                "difference": estimate(pair.difference),
                "accuracy": estimate(pair.accuracy),
                "p": pair.p,
                "p_holm": pair.holm,
                "only_a": pair.only_a,
                "only_b": pair.only_b,
                "mcnemar": pair.mcnemar,
                "by_fold": {str(k): v for k, v in pair.by_fold.items()},
                "recipes": estimate(recipe.difference) if isinstance(recipe, RecipeDifference) else None,
            }
        )
    return json.dumps({"metric": metric, "views": views, "photos": len(sheet), "pairs": listed}, indent=2)
