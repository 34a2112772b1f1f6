"""`comp views`: what each test-time view adds on a run's out-of-fold photos, and which set is worth its time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from comp import config, files, predictions, runs, terminal
from comp.commands import common, truths
from comp.ensembling.truth import Truth
from comp.errors import CompError, Exit
from comp.inference import cost, worth
from comp.inference.spec import ViewSpec, parse
from comp.metrics import Estimate
from comp.runs import Fold, Run

if TYPE_CHECKING:
    from comp.data.manifest import Dataset

_AGREE = 5e-3  # mean |Δ| between the file of the average and the average of the float16 views


@dataclass(frozen=True)
class Kept:
    """Per-view probabilities of one fold's out-of-fold photos: (V, N, C) float16."""

    fold: Fold
    ids: list[str]
    probs: npt.NDArray[np.float16]
    ms_per_image: float | None


def views(run: str, *, data: str = "petals", views: str = "tencrop", settings: Sequence[str] = ()) -> worth.Worth:
    """Print what each view of a set adds, and suggest the smallest set within one standard error of the best.

    Args:
        run: The run; all its finished folds are measured.
        data: The data set.
        views: The set to take apart.
        settings: `data.key=value` words.

    Returns:
        The numbers in the tables.
    """
    home, data_config, _, truth = truths.of_set(data, settings)
    spec = parse(views, data_config.symmetries)
    this = Run(home, data, config.check_name("run", run))
    geometry = this.config().image
    every = spec.views(geometry.crop, geometry.test_size)
    if len(every) == 1:
        what = f"'{spec}' is a single view, there is nothing to compare"
        raise CompError("comp views", what, "give a set, e.g. VIEWS=tencrop", Exit.USAGE)
    folds = this.finished()
    if not folds:
        raise CompError(f"run {run}", "no fold is finished", f"train it: comp train {run} --data {data}", Exit.FILE)
    _, dataset = common.of_run(home, this.config())
    missing = [fold for fold in folds if _read(fold, spec, truth) is None]
    if missing:
        _predict(missing, spec, dataset, truth)
    kept = [found for found in (_read(fold, spec, truth) for fold in folds) if found is not None]
    if len(kept) < len(folds):
        raise CompError(f"run {run}", "its views were not kept", "run the same command again", Exit.FILE)
    ids = [image_id for found in kept for image_id in found.ids]
    labels = np.array([truth.labels[image_id] for image_id in ids])
    parts = np.concatenate([np.full(len(found.ids), found.fold.number) for found in kept])
    groups = np.array([truth.groups.get(image_id, image_id) for image_id in ids])
    rows = {image_id: row for row, image_id in enumerate(map(str, dataset.ids))}
    places = [rows[image_id] for image_id in ids]
    aspect = cost.aspect(dataset.widths[places], dataset.heights[places])
    found = worth.measure(
        spec,
        every,
        np.concatenate([each.probs for each in kept], axis=1),
        labels,
        parts if len(kept) > 1 else worth.parts_of(labels, ids),
        crop=geometry.crop,
        test_size=geometry.test_size,
        aspect=aspect,
        metric=data_config.metric,
        groups=groups,
    )
    times = [each.ms_per_image for each in kept if each.ms_per_image]
    _show(found, this, spec, data_config.metric, len(ids), len(kept), float(np.mean(times)) if times else None)
    return found


def _read(fold: Fold, spec: ViewSpec, truth: Truth) -> Kept | None:
    """What was kept of an earlier prediction, if these weights made it, on these photos; None means predict again."""
    path = fold.predictions("oof", spec.file_name)
    each = path.with_name(f"{path.stem}.views.npz")
    if not path.exists() or not each.exists():
        return None
    whole = predictions.load(path)
    about = whole.header
    now = {"views": spec.canonical, "checkpoint": runs.weights_digest(fold), "data": truth.data_digest}
    if any(about.get(key) != value for key, value in now.items()) or about.get("folds") != truth.folds_digest:
        return None
    try:
        with each.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            ids, probs = archive["ids"].tolist(), archive["probs"]
    except Exception:  # numpy and zipfile raise a dozen kinds on damaged bytes; it can be made again
        return None
    if ids != whole.ids.tolist() or probs.ndim != 3 or probs.shape[1:] != whole.probs.shape:
        return None
    mean = worth.average(probs, range(len(probs)), spec.space)
    if np.abs(mean - whole.probs).mean() > _AGREE:
        return None
    return Kept(fold, ids, probs, about.get("ms_per_image"))


def _predict(missing: Sequence[Fold], spec: ViewSpec, dataset: Dataset, truth: Truth) -> None:
    """Evaluate the set on the folds' out-of-fold photos and keep every view's probabilities."""
    from comp.data.loader import default_workers
    from comp.inference.predict import predict
    from comp.nets import store
    from comp.training.building import make_accelerator

    for number, fold in enumerate(missing):
        run = fold.config()
        device = make_accelerator(run, fold.path).device
        stored = store.load_model(fold, device)
        count = len(truth.ids_of(fold.number))
        if number == 0:
            aspect = cost.aspect(dataset.widths, dataset.heights)
            photos = sum(len(truth.ids_of(each.number)) for each in missing)
            terminal.say(cost.cost_line(spec, stored.image.crop, stored.image.test_size, aspect, photos))

        def estimate(seconds: float, fold: Fold = fold, count: int = count) -> None:
            terminal.say(f"{fold}: about {cost.duration(seconds)} for {count} photos")

        with (
            files.lock(fold.lock, f"predicting {fold}"),
            terminal.progress(f"{fold} {spec.file_name}", count) as advance,
        ):
            predict(
                fold,
                stored,
                "oof",
                spec,
                dataset,
                truth.folds,
                precision=run.precision,
                device=device,
                workers=default_workers(1),
                keep=True,
                progress=advance,
                estimate=estimate,
            )


def _show(found: worth.Worth, run: Run, spec: ViewSpec, metric: str, photos: int, folds: int, ms: float | None) -> None:
    whole, unit = found.products[-1].cost, 1 if metric == "log_loss" else 100
    digits = 4 if unit == 1 else 2
    base = found.products[0].name

    def gained(gain: Estimate) -> str:
        return f"{unit * gain.value:+.{digits}f} ± {unit * gain.se:.{digits}f}"

    def cells(row: worth.Row) -> tuple[str, ...]:
        gain = gained(row.gain) if row.gain.value or row.gain.se else ""
        time = f"{ms * row.cost / whole:.1f}" if ms else ""
        return row.name, str(row.views), f"{unit * row.score:.{digits}f}", gain, f"{row.cost:.3g}", time

    head = ("views", "n", metric + (" %" if unit == 100 else ""), "gain ± se", "passes", "ms/photo")
    title = f"{run.name}: each view alone, {photos} out-of-fold photos of {folds} fold(s), gain over {base}"
    terminal.table(head, [cells(row) for row in found.singles], title=title)
    terminal.table(head, [cells(row) for row in found.products], title="growing product")
    if ms:
        terminal.say(
            f"ms/photo: measured for {spec.file_name} ({ms:.1f}); the others in proportion to their forward passes."
        )
    best = next(row for row in found.products if row.name == found.best.spec.canonical)
    if best.name == base:
        terminal.say(f"No set of views beats {base} here: more views make it worse, or no better.")
    worse = [row.name for row in found.products[1:] if row.gain.value < -row.gain.se]
    if worse:
        terminal.say(f"Worse than {base} by more than one standard error: {', '.join(worse)}.")
    suggested = found.suggested.spec
    name = suggested.file_name if not suggested.file_name.startswith("v-") else f"'{suggested.canonical}'"
    terminal.say(f"Suggested: VIEWS={name}, the cheapest within one standard error of the best ({best.name}).")
    total = sum(count for _, count in found.picks)
    chosen = ", ".join(f"{spec_name} in {count} of {total}" for spec_name, count in found.picks)
    what = "folds" if folds > 1 else "parts of the fold"
    terminal.say(
        f"Choosing this way, cross-fitted over {total} {what} ({chosen}): {unit * found.crossfitted_score:.{digits}f}, "
        f"{gained(found.crossfitted)} over {base}."
    )
