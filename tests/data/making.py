"""Small data sets made by code, for the tests of sources, manifest and folds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from comp.config import DataConfig
from comp.data.tfrecord import write_records
from comp.files import write_csv

Row = Mapping[str, bytes | int]


def image(number: int, size: int = 8, form: str = ".jpg") -> bytes:
    """An image of its own for every number."""
    import cv2

    pixels = np.random.default_rng(number).integers(0, 256, (2, 2, 3), dtype=np.uint8)
    return bytes(cv2.imencode(form, cv2.resize(pixels, (size, size), interpolation=cv2.INTER_NEAREST))[1])


def row(number: int, label: int | None) -> dict[str, bytes | int]:
    given: dict[str, bytes | int] = {} if label is None else {"class": label}
    return {"image": image(number), **given, "id": f"{number:09x}".encode()}


def default_rows() -> dict[str, list[list[dict[str, bytes | int]]]]:
    """Two shards of each split: 12 train, 6 val, 4 test photos, 3 classes."""
    return {
        "train": [[row(n, n % 3) for n in range(6)], [row(n, n % 3) for n in range(6, 12)]],
        "val": [[row(n, n % 3) for n in range(20, 23)], [row(n, n % 3) for n in range(23, 26)]],
        "test": [[row(n, None) for n in (33, 31)], [row(n, None) for n in (30, 32)]],
    }


def competition(
    root: Path, rows: Mapping[str, Sequence[Sequence[Row]]] | None = None, *, size: str = "8x8", sample: bool = True
) -> Path:
    """Write a set in the competition's layout and return its root."""
    rows = default_rows() if rows is None else rows
    for split, shards in rows.items():
        for number, shard in enumerate(shards):
            write_records(root / f"tfrecords-jpeg-{size}/{split}/{number:02}-{size}-{len(shard)}.tfrec", shard)
    if sample:
        ids = sorted(bytes(r["id"]).decode() for shard in rows.get("test", ()) for r in shard)  # type: ignore[arg-type]
        write_csv(root / "sample_submission.csv", ("id", "label"), [(i, 0) for i in ids])
    return root


def config(root: Path, **keys: object) -> DataConfig:
    return DataConfig.model_validate({"name": "tiny", "root": str(root), **keys})
