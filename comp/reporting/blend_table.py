"""A blend in the terminal: members, ensemble, what the estimate says and what it does not."""

from __future__ import annotations

from comp import metrics, terminal
from comp.ensembling.submission import Blend, says
from comp.reporting.score_table import interval, paragraph, plus_minus, shortened


def _folds(blend: Blend, total: int) -> str:
    if not blend.folds:
        return "no folds: all members are imported"
    if len(blend.folds) < total:
        return f"{len(blend.folds)} of {total} folds"
    return f"{total} folds" if total > 1 else "1 fold"


def show(blend: Blend, data: str, views: str, total_folds: int) -> None:
    """Print the table of members and ensemble, and the lines below it."""
    photos = f"; estimate on {len(blend.sheet):,} photos" if blend.sheet else ""
    title = f"{data}: {blend.rule} of {len(blend.members)}, views {views}, {_folds(blend, total_folds)}{photos}"
    body = []
    order = range(len(blend.members))
    if blend.alone:
        utility = metrics.METRICS[blend.metric].utility
        order = sorted(order, key=lambda m: -utility(blend.alone[m].value))  # type: ignore[assignment]
    for m in order:
        member = blend.members[m]
        alone = blend.alone[m] if blend.alone else None
        ms = member.ms_per_image
        mark = "*" if "best" in member.selections else ""
        body.append(
            [
                shortened(member.name, 30),
                "imported" if member.imported else f"{len(member.folds)}/{total_folds}",
                (plus_minus(alone.value, alone.se) + mark) if alone else "unknown",
                interval(alone),
                f"{ms:.1f}" if ms else "",
            ]
        )
    estimate = blend.estimate
    body.append(
        [
            f"[bold]{blend.rule}[/bold]",
            "",
            f"[bold]{plus_minus(estimate.value, estimate.se)}[/bold]" if estimate else "unknown",
            interval(estimate),
            "",
        ]
    )
    paragraph(title)
    terminal.table(("member", "folds", f"{blend.metric} ±SE", "95 %", "ms/img"), body)
    if any("best" in member.selections for member in blend.members):
        paragraph("* read at the best epoch, which these photos chose: optimistic")
    _say_estimate(blend)


def _say_estimate(blend: Blend) -> None:
    cross = blend.cross
    if cross is None:
        lacking = [member.name for member in blend.members if member.oof is None]
        paragraph(f"estimate: unknown, {', '.join(lacking)} has no out-of-fold rows")
        return
    if cross.by_part:
        paragraph(
            f"estimate: {blend.metric} {cross.cross_fitted:.4f} ± {cross.se:.4f} cross-fitted "
            f"(95 %: {cross.low:.4f} to {cross.high:.4f}); in-sample {cross.in_sample:.4f}, "
            f"optimism {cross.optimism:+.4f}"
        )
    else:
        paragraph(
            f"estimate: {blend.metric} {cross.cross_fitted:.4f} ± {cross.se:.4f} "
            f"(95 %: {cross.low:.4f} to {cross.high:.4f}); this rule learns nothing, so in-sample is cross-fitted "
            "(optimism 0)"
        )
    paragraph(f"it estimates {says(blend)}")
    lead, best = blend.lead_of_best(), blend.best_member()
    if lead is not None and best is not None and len(blend.members) > 1:
        sure = "" if lead.low > 0 else "; they cannot be told apart"
        paragraph(
            f"the best member, {blend.members[best].name}, beats {blend.rule} by {lead.value:.4f} ± {lead.se:.4f}{sure}"
            f": comp submit {blend.members[best].name}"
        )
