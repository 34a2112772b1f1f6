"""`comp autopsy`: what each member adds to an ensemble."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from comp import config, metrics, terminal
from comp.commands import truths
from comp.commands.compare import read_sheet
from comp.ensembling import choosing, methods
from comp.ensembling.estimate import Method
from comp.ensembling.members import Member, Sheet
from comp.errors import CompError, Exit
from comp.reporting import autopsy as opened
from comp.reporting.autopsy import SubsetScores
from comp.reporting.score_table import interval, number, paragraph, plus_minus, shortened


def autopsy(
    runs: Sequence[str] = (),
    *,
    data: str = "petals",
    ensemble: str | None = None,
    views: str | None = None,
    rule: str | None = None,
) -> dict[str, Any]:
    """Print how an ensemble's members agree, err together, break ties, and what each is worth in score and time.

    Args:
        runs: The members; or one name of `configs/ensembles/`; empty for every complete run.
        data: The data set.
        ensemble: A file of `configs/ensembles/`.
        views: The members' views; default the ensemble file's, else `flip`.
        rule: The rule; default the ensemble file's, else `vote`.

    Returns:
        The numbers printed.
    """
    home, data_config, _, truth = truths.of_set(data)
    if len(runs) == 1 and not ensemble and runs[0] in config.names(home, "ensembles"):
        ensemble, runs = runs[0], ()
    file = config.load_ensemble(home, ensemble) if ensemble else config.EnsembleConfig()
    method = methods.method(rule or file.rule)
    spec, views_file = truths.views_of(data_config, views or file.views)
    choice = choosing.choose(home, truth, runs or file.members)
    sheet, members = read_sheet(home, truth, choice, spec, views_file)
    if len(members) < 2:
        raise CompError("comp autopsy", "one member is no ensemble", "name two or more runs", Exit.USAGE)
    for note in choice.notes:
        paragraph(note)
    return _print(sheet, members, method, data_config.metric, data, truth.classes)


def _print(
    sheet: Sheet,
    members: Sequence[Member],
    method: Method,
    metric: str,
    data: str,
    classes: Sequence[str],
) -> dict[str, Any]:
    names = [member.name for member in members]
    short = [shortened(name, 20) for name in names]
    count = len(names)
    scores = SubsetScores(sheet, method, metric)
    everyone = tuple(range(count))
    whole = scores.cross(everyone)
    final = scores.pooled(everyone).argmax(axis=1)
    terminal.say(
        f"{data}: {method.name} of {count} on {len(sheet):,} photos: {metric} {whole.value:.4f} ± {whole.se:.4f}"
    )

    loses = opened.drop_one(scores)
    values = opened.all_subsets(scores)
    shares = opened.shapley(values, count, opened.guess(metric, sheet.labels, len(classes))) if values else None
    tie = opened.ties(scores.answers, final, len(classes))
    owned = opened.owned_classes(scores.answers, sheet.labels, len(classes))
    rows = []
    for m in everyone:
        alone = metrics.interval(metric, sheet.labels, sheet.probs[m], sheet.groups)
        rows.append(
            [
                short[m],
                plus_minus(alone.value, alone.se),
                f"{loses[m].value:+.4f} ±{loses[m].se:.4f}",
                number(shares[m]) if shares else "",
                f"{tie.won[m]}:{tie.lost[m]}",
                len(owned[m]),
            ]
        )
    terminal.say()
    terminal.table(("member", f"{metric} ±SE", "without it", "Shapley", "ties", "owns"), rows)
    paragraph("without it: what the ensemble loses when the member leaves (paired); below 0 it is better off")
    if shares:
        paragraph("Shapley: its mean contribution over all orders of joining; they sum to the score above guessing")
    else:
        paragraph(f"Shapley values are left out: more than {opened.MOST_SHAPLEY} members, or over a minute of work")
    paragraph(f"ties: {tie.count:,} photos have several classes with the most votes; won:lost counts its tied votes")
    for m in everyone:
        if owned[m]:
            listed = ", ".join(f"{classes[c]} +{lead:.2f}" for c, lead in owned[m][:4])
            more = f" and {len(owned[m]) - 4} more" if len(owned[m]) > 4 else ""
            paragraph(f"{short[m]} owns (best F1 by {opened.OWNED:.2f} or more): {listed}{more}")
    _matrices(short, opened.agreement(scores.answers), opened.error_correlation(scores.answers, sheet.labels))
    costs = [member.ms_per_image for member in members]
    points = None
    if all(cost is not None for cost in costs):
        points = opened.frontier(scores, [cost or 0.0 for cost in costs], values)
        body = [[f"{p.ms:.1f}", number(p.score), ", ".join(short[m] for m in p.members)] for p in points]
        terminal.say()
        terminal.table(("ms/img", metric, "the best within that time (one checkpoint per member)"), body, left=(2,))
    else:
        lacking = [name for name, cost in zip(names, costs, strict=True) if cost is None]
        paragraph(f"score against time is left out: {', '.join(lacking)} has no known cost")
    return {
        "members": names,
        "score": whole.value,
        "interval": interval(whole),
        "drop_one": [one.value for one in loses],
        "shapley": shares,
        "ties": {"count": tie.count, "won": list(tie.won), "lost": list(tie.lost)},
        "owned": [[classes[c] for c, _ in found] for found in owned],
        "frontier": [{"members": [names[m] for m in p.members], "ms": p.ms, "score": p.score} for p in points or ()],
    }


def _matrices(names: Sequence[str], agreed: Any, wrong: Any) -> None:
    """Agreement above the diagonal, error correlation below it, in one square."""
    count = len(names)
    rows = []
    for a in range(count):
        cells = []
        for b in range(count):
            value = agreed[a, b] if b > a else wrong[a, b]
            cells.append("·" if a == b else "" if np.isnan(value) else f"{value:.2f}")
        rows.append([f"{a + 1} {names[a]}", *cells])
    terminal.say()
    terminal.table(("above: agreement", *map(str, range(1, count + 1))), rows)
    paragraph("below the diagonal: correlation of errors; the lower, the more two members help each other")
