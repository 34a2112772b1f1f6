"""`comp doctor`: two minutes of probes on a config: why does it not learn?"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from comp import config as configs
from comp import terminal, yamls
from comp.commands import common
from comp.config import DataConfig, RunConfig
from comp.errors import CompError, Exit
from comp.nets import names
from comp.runs import Run

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from comp.data.manifest import Dataset
    from comp.training.doctor import Report
    from comp.training.probes import LabelFigures, Trial

SECONDS = 120.0  # of probes, where time_limit does not say otherwise
THUMBNAILS = 600  # photos that the labels are checked on
LEAST_THUMBNAILS = 32  # read whatever the clock says: of fewer nothing can be told
THUMBNAIL = 8  # their width and height, pixels
BATCH = 24  # photos of a batch, rounded up to a multiple of the classes
BATCHES = 4


def doctor(model: str, *, data: str = "petals", settings: Sequence[str] = ()) -> Report:
    """Probe a config at its own image size and say which of init, learning rate, clipping, labels to try.

    Args:
        model: A run of the set, whose config is taken as it was trained, or else MODEL as `comp train` takes it.
        data: A file of `configs/data/`.
        settings: `key=value` words; `time_limit` is the probes' budget in seconds (120).

    Returns:
        All figures and the advice.
    """
    home, data_config, overrides = common.project(data, settings)
    config, what = _config(home, model, data_config, overrides)
    names.check_model_name(config.model.name)
    dataset = common.prepared(home, data_config)
    terminal.say(f"{what} on {data_config.name} at {config.image.crop} pixels, {config.optim.name} {config.optim.lr:g}")
    report = _examine(home, config, data_config, dataset, Run(home, data_config.name, config.model.name))
    _print(report, dataset.classes)
    return report


def _config(home: Path, model: str, data: DataConfig, overrides: dict[str, Any]) -> tuple[RunConfig, str]:
    run = Run(home, data.name, configs.check_name("MODEL", model))
    if run.folds():
        values = yamls.merge(run.config().model_dump(mode="json"), overrides)
        return configs.validate(RunConfig, values, "command line"), f"the config of run {model}"
    config, notes = configs.load_run(home, model, data, overrides)
    for note in notes:
        terminal.say(note)
    return config, f"the config {model}"


def _examine(home: Path, config: RunConfig, data: DataConfig, dataset: Dataset, run: Run) -> Report:
    began = time.monotonic()
    budget = config.time_limit or SECONDS

    import numpy as np
    import torch

    from comp.inference.precision import resolve_precision
    from comp.training import building
    from comp.training.doctor import even_batches, examine

    bad = set(map(str, dataset.bad))
    labels = np.asarray(dataset.labels, dtype=np.int64)
    rows = np.array([row for row in np.flatnonzero(labels >= 0) if str(dataset.ids[row]) not in bad], dtype=np.int64)
    if not len(rows):
        raise CompError(data.name, "has no labelled photos", "look at `comp data`", Exit.DATA)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = resolve_precision(config.precision, device)
    network, mean, std = building.build_network(home, config, dataset, run.fold(0))
    network.to(device)
    images = building.training_images(config, dataset, building.Rows(rows, rows[:0]), data.symmetries)
    classes = len(np.unique(labels[rows]))
    size = classes * -(-BATCH // classes) if classes <= BATCH else BATCH
    middle, spread = (torch.tensor(each, device=device).reshape(1, 3, 1, 1) * 255 for each in (mean, std))
    batches = []
    for chosen in even_batches(labels[rows], size, BATCHES, config.seed):
        items = [images[int(row), 0] for row in rows[chosen]]
        pixels = torch.stack([pixels for pixels, _, _ in items]).to(device).float()
        if building.is_convolutional(network):
            pixels = pixels.contiguous(memory_format=torch.channels_last)
        batches.append(((pixels - middle) / spread, torch.tensor([label for _, label, _ in items], device=device)))
    figures = _labels(dataset, rows, labels, budget / 10)
    return examine(
        network,
        batches,
        config.optim,
        seconds=max(0.0, budget - (time.monotonic() - began)),
        scratch=not config.model.pretrained and config.model.init_from is None,
        warmup=config.schedule.warmup > 0 or config.schedule.name == "onecycle",
        dtype=None if dtype is torch.float16 else dtype,  # float16 would need a loss scaler
        labels=figures,
        say=lambda line: terminal.say(f"… {line}"),
    )


def _labels(dataset: Dataset, rows: NDArray[np.int64], labels: NDArray[np.int64], seconds: float) -> LabelFigures:
    """The label probe on a random choice of photos, as many as can be read in so many seconds."""
    import numpy as np

    from comp.data.augment import resize
    from comp.training.probes import label_probe

    until = time.monotonic() + seconds
    reader = dataset.reader()
    thumbnails, chosen = [], []
    for row in np.random.default_rng(0).permutation(rows)[:THUMBNAILS].tolist():
        thumbnails.append(resize(reader.pixels(row), THUMBNAIL, THUMBNAIL).reshape(-1))
        chosen.append(row)
        if len(chosen) >= LEAST_THUMBNAILS and time.monotonic() > until:
            break
    return label_probe(np.stack(thumbnails), labels[chosen], len(dataset.classes))


def _print(report: Report, classes: Sequence[str]) -> None:
    if report.labels:
        counts = report.labels.counts
        largest = int(counts.argmax())
        present = int((counts > 0).sum())
        terminal.say(
            f"labels: {int(counts.sum())} photos hold {present} of {len(classes)} classes, {counts[largest]} are "
            f"'{classes[largest]}'; {report.labels.line()}"
        )
    terminal.table(
        ("layer", "kind", "mean square", "its gradient's", "zeros"),
        [
            (
                layer.name,
                layer.kind,
                f"{layer.output['mean_square']:.1e}",
                f"{layer.gradient['mean_square']:.1e}" if layer.gradient else "none",
                f"{layer.output['zeros']:.2f}",
            )
            for layer in report.depth.sample()
        ],
        title=f"scale through depth: {report.depth.verdict} (last over first {report.depth.forward:.1e})",
        left=(0, 1),
    )
    rows: list[tuple[str, Trial]] = [("one batch, as configured", report.overfit)] if report.overfit else []
    rows += [(f"one batch, {name}", tried) for name, tried in report.remedies.items()]
    rows += [(f"{BATCHES} batches, optim.lr={rate:g}", tried) for rate, tried in sorted(report.rates.items())]
    terminal.table(
        ("trial", "verdict", "steps", "loss", "at the end", "largest norm"),
        [
            (
                name,
                tried.verdict,
                len(tried.losses),
                f"{tried.losses[0]:.4f}",
                f"{tried.end:.4f}",
                f"{max(tried.norms):.2g}",
            )
            for name, tried in rows
        ],
        left=(0, 1),
    )
    for line in report.left_out:
        terminal.say(f"left out: {line}")
    for what, line in report.advice:
        terminal.say(f"try {what}: {line}" if what != "fine" else f"fine: {line}")
