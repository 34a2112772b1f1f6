"""`comp explain`: where every number of a submission came from."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from comp import terminal
from comp.commands.ledger import checked_record
from comp.ensembling.submission import as_written
from comp.reporting.score_table import number, paragraph, shortened


def explain(file: str) -> dict[str, Any]:
    """Print a submission's record: rule, data, members, files, checkpoints, estimates.

    Args:
        file: The CSV; its record lies beside it.

    Returns:
        The record.
    """
    path = Path(file)
    with as_written(path):
        record = checked_record(path)
        _explain(path, record)
    return record


def _explain(path: Path, record: dict[str, Any]) -> None:
    data, code, views = record["data"], record.get("code") or {}, record["views"]
    paragraph(
        f"{path.name}: {record['csv']['rows']:,} rows, sha256 {record['csv']['sha256'][:12]}…, made {record['made']}"
    )
    commit = code.get("commit")
    changed = " with uncommitted changes" if code.get("changed") else ""
    paragraph(
        f"code: version {code.get('version')}, " + (f"commit {commit[:12]}{changed}" if commit else "no commit known")
    )
    paragraph(
        f"data: {data['name']} ({data['size']}), {data['classes']} classes, data digest {_short(data['digest'])}, "
        f"folds digest {_short(data['folds'])}"
    )
    others = ", ".join(name for _, name in views.get("chosen_from", ()))
    chosen = f" (chosen by score from {others})" if others else ""
    paragraph(f"rule: {record['rule']['spec']}, views {views['spec']}{chosen}; {_fitted(record)}")
    estimate = record.get("estimate")
    if estimate:
        paragraph(
            f"estimate: {record['metric']} {estimate['cross_fitted']:.4f} ± {estimate['se']:.4f} "
            f"(95 %: {estimate['low']:.4f} to {estimate['high']:.4f}) on {estimate['photos']:,} of {estimate['of']:,} "
            f"photos; in-sample {estimate['in_sample']:.4f}, optimism {estimate['optimism']:+.4f}"
        )
        paragraph(f"it estimates {estimate['estimates']}")
    else:
        paragraph("estimate: unknown, a member has no out-of-fold rows")
    best = record.get("best_member") or {}
    if best.get("ahead_of_the_rule"):
        ahead = best["ahead_of_the_rule"]
        paragraph(f"the best member, {best['name']}, was ahead of it by {ahead['value']:.4f} ± {ahead['se']:.4f}")
    _members(record)
    audit = record.get("audit")
    if audit:
        paragraph(f"audit: {record['metric']} {audit['value']:.4f} ± {audit['se']:.4f} on val, look {audit['looks']}")
    for key, what in (("leaks", "test photos are exact copies of labelled ones"), ("prior", "got the classes' prior")):
        listed = record.get(key) or []
        if listed:
            shown = ", ".join(" = ".join(e) if isinstance(e, list) else e for e in listed[:5])
            paragraph(f"{len(listed)} {what}: {shown}" + (" …" if len(listed) > 5 else ""))


def _short(digest: str) -> str:
    return f"{digest[:12]}…" if digest else "unknown"


def _fitted(record: Mapping[str, Any]) -> str:
    """What was chosen, by member."""
    fitted = record["rule"]["fitted"]
    names = [member["name"] for member in record["members"]]
    weights = fitted.get("weights")
    if isinstance(weights, list) and len(weights) == len(names):
        return "weights " + ", ".join(f"{name} {weight:g}" for name, weight in zip(names, weights, strict=True))
    if fitted.get("kind") == "member":
        return f"the member {names[fitted['member']]}"
    if fitted.get("kind") == "rule":
        return (
            "nothing was fitted" if fitted.get("rule") == record["rule"]["spec"] else f"it chose {fitted.get('rule')}"
        )
    return f"fitted: {fitted.get('kind')} (numbers in the JSON)"


def _members(record: Mapping[str, Any]) -> None:
    alone: list[list[object]] = []
    rows: list[list[object]] = []
    splits = [s for s in ("oof", "test", "val") if any(f["split"] == s for m in record["members"] for f in m["files"])]
    for member in record["members"]:
        estimate = member["estimate"]
        said = f"{estimate['value']:.4f} ±{number(estimate['se'])}" if estimate else "unknown"
        alone.append([member["name"], said, number(member.get("ms_per_image"), 1)])
        name = shortened(member["name"], 24)
        for fold in dict.fromkeys(file["fold"] for file in member["files"]):
            own = {file["split"]: file for file in member["files"] if file["fold"] == fold}
            known = {key: value for file in own.values() for key, value in file.items()}
            rows.append(
                [
                    name,
                    "" if fold is None else fold,
                    *(own[split]["digest"][:8] if split in own else "" for split in splits),
                    known.get("checkpoint", "")[:8],
                    known.get("config", "")[:8],
                    f"{known.get('selection', '')} {known.get('epoch', '')}".strip(),
                ]
            )
            name = ""
    terminal.say()
    terminal.table(("member", f"{record['metric']} ±SE", "ms/img"), alone)
    terminal.say()
    columns = ("files of", "fold", *splits, "weights", "config", "epoch")
    terminal.table(columns, rows, left=(0, *range(2, len(columns))))
