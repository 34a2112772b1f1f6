"""`comp show`: a picture of one augmented batch, as training will see it."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from comp import config, files, terminal
from comp.commands import common
from comp.data import augment, order
from comp.errors import CompError, Exit

MOST = 40  # photos of the picture
_COLUMNS = 8
_CELL = 112  # pixels; smaller crops are enlarged to at least this
_CAPTION = 16  # pixels under each photo


def show(model: str, data: str = "petals", out: str = "batch.png", settings: Sequence[str] = ()) -> Path:
    """Write a picture of a first batch, drawn from all labelled photos: up to 40 of them with their class names.

    Args:
        model: A file of `configs/models/` or a network's name; its `augment` and `image` sections count.
        data: The data set.
        out: The PNG to write.
        settings: `key=value` words, e.g. `augment=[plain,pca]`.

    Returns:
        The file written.
    """
    path = Path(out)
    if path.suffix.lower() != ".png":
        raise CompError(
            f"--out {out}", "the picture is a PNG", f"write e.g. --out {path.stem or 'batch'}.png", Exit.USAGE
        )
    home, data_config, overrides = common.project(data, settings)
    run, notes = config.load_run(home, model, data_config, overrides)
    augment.check(run.augment, data_config.symmetries)
    for note in notes:
        terminal.say(note)
    dataset = common.prepared(home, data_config)
    reader = dataset.reader()
    readable = ~np.isin(dataset.ids, dataset.bad) if dataset.bad else np.ones(len(dataset), bool)
    labelled = np.flatnonzero((dataset.labels >= 0) & readable)
    pca = None
    if augment.needs_pca(run.augment):
        from comp.data.pca import pca_colour

        pca = pca_colour(dataset, labelled, reader)
    pipeline = augment.pipeline(
        run.augment, run.image.crop, run.image.scale_range, data_config.symmetries, dataset.mean, pca
    )
    ids = [dataset.ids[row] for row in labelled]
    rows = labelled[order.epoch_order(ids, run.seed, 0, 0)[: min(run.batch, MOST)]]
    photos = [pipeline(reader.pixels(row), order.use_seed(run.seed, 0, dataset.ids[row])) for row in rows.tolist()]
    names = [dataset.classes[dataset.labels[row]] for row in rows.tolist()]
    files.write_bytes(path, contact_sheet(photos, names))
    later = " (mixup and cutmix come after this, on the device)" if run.loss.mixup or run.loss.cutmix else ""
    terminal.say(f"wrote {path}: {len(rows)} photos, augment {' '.join(run.augment)}{later}")
    return path


def contact_sheet(photos: Sequence[NDArray[np.uint8]], names: Sequence[str]) -> bytes:
    """Photos (side, side, 3) of one size in rows of eight, each above its name, as the bytes of a PNG."""
    from PIL import Image, ImageDraw, ImageFont

    side = photos[0].shape[0]
    cell = side * max(1, -(-_CELL // side))
    columns = min(_COLUMNS, len(photos))
    lines = -(-len(photos) // columns)
    gap = 4
    sheet = Image.new("RGB", (columns * (cell + gap) + gap, lines * (cell + _CAPTION + gap) + gap), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for number, (photo, name) in enumerate(zip(photos, names, strict=True)):
        left = gap + number % columns * (cell + gap)
        top = gap + number // columns * (cell + _CAPTION + gap)
        sheet.paste(Image.fromarray(photo).resize((cell, cell), Image.Resampling.NEAREST), (left, top))
        text = name
        while len(text) > 1 and draw.textlength(text, font=font) > cell:
            text = text.removesuffix("…")[:-1] + "…"
        draw.text((left, top + cell), text, "black", font)
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    return buffer.getvalue()
