"""`comp verify`: a submission made again from its prediction files, and a few rows from the checkpoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from comp import files
from comp.commands import truths
from comp.commands.ledger import checked_record
from comp.config import DataConfig
from comp.data.manifest import Dataset
from comp.ensembling import memory, table
from comp.ensembling.members import Member
from comp.ensembling.submission import as_written
from comp.ensembling.truth import Truth
from comp.errors import CompError, Exit
from comp.reporting.score_table import paragraph
from comp.runs import Run

# Probabilities of the same weights on another machine or batch size: bfloat16 keeps 8 bits of every activation.
CLOSE = 0.02


def verify(file: str, *, deep: bool = False) -> dict[str, Any]:
    """Make a submission again from its prediction files, byte for byte; with `deep`, rows from checkpoints too.

    Args:
        file: The CSV; its record lies beside it.
        deep: Evaluate 20 random test photos with every checkpoint too (loads torch).

    Returns:
        The record.

    Raises:
        CompError: Exit code 4: anything differs; the line says what and where.
    """
    path = Path(file)
    with as_written(path):
        record = checked_record(path)
        _verify(path, record, deep)
    return record


def _verify(path: Path, record: dict[str, Any], deep: bool) -> None:
    home, config, dataset, truth = truths.of_set(record["data"]["name"], record["data"].get("settings", ()))
    form = table.form(
        config.root_path(home) / config.submission.sample, config.submission, truth.classes, truth.test_ids
    )
    truth = truth.with_test_order(form.ids)
    remade = memory.remake(home, truth, record)
    difference = memory.first_difference(files.read_bytes(path), table.text(form, remade.probs))
    if difference:
        raise CompError(path, f"is not what its members and rule give: {difference}", "submit again", Exit.FILE)
    count = sum(len(member.sources) for member in remade.members)
    paragraph(f"{path.name}: the same bytes again from {count} prediction files of {len(remade.members)} member(s)")
    then = record.get("estimate")
    if then is not None and remade.estimate is not None:
        if abs(remade.estimate - then["cross_fitted"]) > memory.SAME_ESTIMATE:
            what = f"its estimate is {remade.estimate:.6f} when made again, the record says {then['cross_fitted']:.6f}"
            raise CompError(path.with_suffix(".json"), what, "submit again", Exit.FILE)
        paragraph(f"estimate again: {record['metric']} {remade.estimate:.4f}")
    if deep:
        _deep(home, config, dataset, truth, record, remade.members, path, form)


def _deep(
    home: Path,
    config: DataConfig,
    dataset: Dataset,
    truth: Truth,
    record: Mapping[str, Any],
    read: Sequence[Member],
    path: Path,
    form: table.Form,
) -> None:
    """Evaluate random rows with every checkpoint; probabilities must be close, and the answers the CSV's."""
    rows = memory.sample_rows(record["csv"]["sha256"], len(form.ids))
    ids = [form.ids[row] for row in rows]
    fresh: dict[tuple[str, int], npt.NDArray[np.float32]] = {}
    worst = 0.0
    for member in read:
        for fold in member.folds:
            probs = _evaluate(home, config, member.name, fold, ids, record["views"]["spec"])
            gap = np.abs(probs - member.for_fold(fold).probs[rows]).max(axis=1)
            worst = max(worst, float(gap.max()))
            if gap.max() > CLOSE:
                where = f"member {member.name}/fold{fold}"
                what = f"photo '{ids[int(gap.argmax())]}': the checkpoint's probabilities differ by {gap.max():.3f}"
                raise CompError(where, what, "predict again, then submit again", Exit.FILE)
            fresh[(member.name, fold)] = probs
    if not fresh:
        paragraph("deep: every member is imported, there are no checkpoints to ask")
        return
    answers = memory.remake_rows(record, read, fresh, rows).argmax(axis=1)
    stored = table.labels_in(path, form)[rows]
    differing = [image_id for image_id, a, b in zip(ids, answers, stored, strict=True) if a != b]
    said = f"; {len(differing)} answers tip over at that precision: {', '.join(differing[:5])}" if differing else ""
    paragraph(
        f"deep: {len(ids)} random photos through {len(fresh)} checkpoints, probabilities within {worst:.4f} of the "
        f"files{said or ', every answer the same'}"
    )


def _evaluate(
    home: Path, config: DataConfig, run: str, fold: int, ids: Sequence[str], views: str
) -> npt.NDArray[np.float32]:
    """(R, C) probabilities of some test photos from one checkpoint, at the run's own resolution."""
    import torch

    from comp.commands import common
    from comp.inference import spec
    from comp.inference.evaluate import evaluate
    from comp.inference.predict import class_prior
    from comp.nets.store import load_model

    one = Run(home, config.name, run).fold(fold)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    stored = load_model(one, device)
    _, dataset = common.of_run(home, one.config())
    place = {str(image_id): row for row, image_id in enumerate(dataset.ids)}
    done = evaluate(
        stored.network,
        dataset,
        np.array([place[image_id] for image_id in ids], dtype=np.int64),
        spec.parse(views, config.symmetries),
        name=str(one),
        image=stored.image,
        mean=stored.mean,
        std=stored.std,
        precision=one.config().precision,
        device=device,
        prior=class_prior(dataset, common.split(home, config, dataset)),
    )
    return done.probs
