"""`comp submit`: members in, a checked CSV and its record out; the estimate is printed before anything is written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from comp import config, files, metrics, predictions
from comp.commands import common, kaggle_client, truths
from comp.commands import ledger as sending
from comp.config import DataConfig
from comp.data.manifest import Dataset
from comp.ensembling import audit, choosing, ledger, members, methods, submission, table
from comp.ensembling.choosing import Choice
from comp.ensembling.estimate import Method
from comp.ensembling.submission import Blend, ViewsChoice
from comp.ensembling.truth import Truth
from comp.errors import CompError, Exit
from comp.metrics import Estimate
from comp.reporting import blend_table
from comp.reporting.score_table import paragraph

AUTO = "auto"  # VIEWS=auto: the best of the view sets that are there


@dataclass(frozen=True)
class Submitted:
    """What `submit` returns: the CSV, the record beside it, the blend."""

    path: Path
    record: dict[str, Any]
    blend: Blend


def submit(
    runs: Sequence[str] = (),
    *,
    data: str = "petals",
    views: str | None = None,
    rule: str | None = None,
    name: str | None = None,
    ensemble: str | None = None,
    procs: int | None = None,
    upload: str | None = None,
    settings: Sequence[str] = (),
) -> Submitted:
    """Blend runs into a checked CSV in `submissions/<set>/`.

    Args:
        runs: The members; empty for the ensemble file's, or every complete run, or what there is.
        data: The data set.
        views: Test-time augmentation of the members' predictions; default the ensemble file's, else `flip`. `auto`
            takes, of the view sets that all members have predictions of, the one with the best out-of-fold score.
        rule: The voting rule; default the ensemble file's, else `vote`.
        name: The CSV's name; default built from members, rule and views.
        ensemble: A file of `configs/ensembles/`.
        procs: Processes for predictions that are missing.
        upload: Send it with Kaggle's client, with this message.
        settings: `data.key=value` words.
    """
    if name:
        config.check_name("NAME", name)
    if runs and ensemble:
        raise CompError("--ensemble", "and run names are both given", "give one of them", Exit.USAGE)
    home, data_config, _ = common.project(data, settings)  # names are checked before any photo is read
    file = config.load_ensemble(home, ensemble) if ensemble else config.EnsembleConfig()
    method = methods.method(rule or file.rule)
    views = views or file.views
    named = None if views == AUTO else truths.views_of(data_config, views)
    if upload is not None:
        kaggle_client.need(data_config)
    home, data_config, dataset, truth = truths.of_set(data, settings)
    form = table.form(
        data_config.root_path(home) / data_config.submission.sample,
        data_config.submission,
        truth.classes,
        truth.test_ids,
    )
    truth = truth.with_test_order(form.ids)
    choice = choosing.choose(home, truth, runs or file.members)
    splits = ("oof", "test", "val") if truth.val else ("oof", "test")
    candidates, chosen = (
        ([named], None) if named else _chosen_views(home, truth, choice, method, data_config.metric, splits)
    )
    spec, views_file = candidates[chosen.best if chosen else 0]
    _predict_missing(choice, views_file, splits, data, views, procs, settings)
    read = members.load(home, truth, choice, spec, views_file, splits)
    blend = submission.blend(read, choice, truth, method, data_config.metric, chosen.cross if chosen else None)
    names = [member.name for member in read]
    name = name or submission.default_name(names, blend.rule, views_file)

    for note in choice.notes:
        paragraph(note)
    _say_leaks(dataset)
    blend_table.show(blend, data, spec, len(truth.numbers))
    if chosen:
        _say_views(chosen, [known for _, known in candidates])
    content = table.text(form, blend.probs)
    digest = files.digest_bytes(content)
    folder = home / "submissions" / data
    path = folder / f"{name}.csv"
    with files.lock(folder / ".lock", f"submit {name}"):
        ledger.refuse_sent(folder, path.name, digest)
        extra: dict[str, Any] = {
            "leaks": [list(pair) for pair in _leaks(dataset)],
            "prior": [image_id for image_id in form.ids if image_id in _bad(dataset)],
        }
        if blend.val_probs is not None:
            extra["audit"] = _audit(folder, path.name, blend, truth)
        record = submission.record(
            blend,
            home,
            truth,
            csv_name=path.name,
            csv_digest=digest,
            size=data_config.size_name,
            views=spec,
            views_file=views_file,
            chosen_from=candidates if chosen else (),
            settings=settings,
            extra=extra,
        )
        table.write(path, form, content)
        files.write_json(path.with_suffix(".json"), record)
    shown = path.relative_to(home)
    paragraph(f"wrote {shown}: {len(form.ids):,} rows, read back and checked; {shown.with_suffix('.json').name}")
    if extra["prior"]:
        paragraph(f"{len(extra['prior'])} test photos could not be decoded and got the classes' prior (in the JSON)")
    _say_test_score(data_config, home, blend, truth)
    if upload is None:
        paragraph(f"next: comp verify {shown}")
    else:
        sending.send(home, data_config, path, record, upload)
    return Submitted(path, record, blend)


def _chosen_views(
    home: Path, truth: Truth, choice: Choice, method: Method, metric: str, splits: Sequence[str]
) -> tuple[list[tuple[str, str]], ViewsChoice]:
    """(canonical form, file name) of every view set that all members have predictions of, and which is the best."""
    found = choosing.common_views(choice, splits)
    if not found:
        names = " ".join(run.name for run in choice.runs)
        what = "there is no view set that all members have predictions of"
        raise CompError("--views auto", what, f"comp predict {names} --views tencrop", Exit.FILE)
    run = next(run for run in choice.runs if not choosing.is_imported(run))
    first = run.fold(choice.folds[0])
    known = [(str(predictions.load(first.predictions("oof", name)).header.get("views", "")), name) for name in found]
    sets = [members.load(home, truth, choice, *names, ("oof",)) for names in known]
    return known, submission.choose_views(sets, truth, method, metric)


def _say_views(chosen: ViewsChoice, names: Sequence[str]) -> None:
    """Which views were chosen, from which, and how safely."""
    best = names[chosen.best]
    if len(names) == 1:
        paragraph(f"views: {best}, the only set that all members have predictions of")
        return
    same = f" in {chosen.parts.count(chosen.best)} of {len(chosen.parts)} rotations" if chosen.parts else ""
    paragraph(f"views: {best}, chosen{same} from {', '.join(names)}; the choice is part of the estimate")


def _predict_missing(
    choice: Choice,
    views_file: str,
    splits: Sequence[str],
    data: str,
    views: str,
    procs: int | None,
    settings: Sequence[str],
) -> None:
    """Make predictions that are missing; torch is loaded only then."""
    missing = choosing.missing_files(choice, views_file, splits)
    if not missing:
        return
    runs = sorted({path.parent.parent.name for path in missing})
    paragraph(f"{len(missing)} prediction files are missing, of {', '.join(runs)}; making them first")
    from comp import launch

    if launch.wanted(procs):
        launch.start(procs, ["predict", *runs, "--data", data, "--views", views, *settings])
    else:
        from comp.commands.predict import predict

        predict(runs, data=data, views=views, procs=procs, settings=settings)
    left = [path for path in missing if not path.exists()]
    if left:
        raise CompError(
            left[0], "is still missing after predicting", f"comp predict {runs[0]} --views {views}", Exit.FILE
        )


def _leaks(dataset: Dataset) -> list[tuple[str, ...]]:
    return [tuple(map(str, pair)) for pair in dataset.leaks]


def _bad(dataset: Dataset) -> set[str]:
    return set(map(str, dataset.bad))


def _say_leaks(dataset: Dataset) -> None:
    leaks = _leaks(dataset)
    if leaks:
        first = " = ".join(leaks[0])
        paragraph(
            f"leaks: {len(leaks)} test photos are byte for byte among the labelled ones ({first}); they are predicted "
            "like all others"
        )


def _audit(folder: Path, name: str, blend: Blend, truth: Truth) -> dict[str, Any]:
    """Score the submission's own prediction on the val photos; every look is counted."""
    assert blend.val_probs is not None
    labels = np.array(list(truth.val.values()), dtype=np.int64)
    groups = np.unique([truth.groups.get(i, i) for i in truth.val], return_inverse=True)[1]
    score = metrics.interval(blend.metric, labels, blend.val_probs, groups)
    digest = files.digest_bytes(blend.val_probs.astype("<f8").tobytes())
    looks = audit.count(folder, name, digest, blend.metric, score.value)
    paragraph(
        f"audit: {blend.metric} {score.value:.4f} ± {score.se:.4f} of this very prediction on {len(labels):,} "
        f"val photos that no fold saw; look number {looks}"
        + ("" if looks == 1 else ": the more looks decide, the less it is worth")
    )
    return {"value": score.value, "se": score.se, "low": score.low, "high": score.high, "looks": looks}


def _say_test_score(data: DataConfig, home: Path, blend: Blend, truth: Truth) -> Estimate | None:
    """Print the test score where the built-in set knows the truth."""
    path = data.root_path(home) / "truth.csv"
    if not path.exists():
        return None
    header, rows = files.read_csv(path, ("image_id", "label"))
    at = header.index("image_id"), header.index("label")
    known = {row[at[0]]: row[at[1]] for row in rows}
    if not all(image_id in known and known[image_id].isdigit() for image_id in truth.test_ids):
        return None
    labels = np.array([int(known[image_id]) for image_id in truth.test_ids], dtype=np.int64)
    score = metrics.interval(blend.metric, labels, blend.probs)
    paragraph(
        f"test: {blend.metric} {score.value:.4f} ± {score.se:.4f} (the built-in set knows the truth, "
        "competitions do not)"
    )
    return score
