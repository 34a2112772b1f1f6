"""torchvision's sets, written once as TFRecord shards under `data/raw/<set>/`, so that all after is the same.

Sets that come as files keep their bytes; sets that come as arrays are written as PNG. Labels of the official test split
go to `truth.csv` as for the built-in set, and nowhere else. This is the one module here that imports torchvision.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from comp.config import DataConfig
from comp.data.demo import TRUTH
from comp.data.tfrecord import write_records
from comp.errors import CompError, Exit, did_you_mean
from comp.files import read_json, write_csv, write_json, write_text

VERSION = 1
_PER_SHARD = 2048
_DONE = "torchvision.json"
# name: (format and size of the layout's folder, what a local root must hold)
SETS = {
    "Flowers102": ("jpeg-native", "flowers-102/jpg/*.jpg, flowers-102/imagelabels.mat and flowers-102/setid.mat"),
    "CIFAR10": ("png-32x32", "cifar-10-batches-py/"),
    "CIFAR100": ("png-32x32", "cifar-100-python/"),
    "MNIST": ("png-28x28", "MNIST/raw/*-ubyte"),
    "Caltech256": ("jpeg-native", "caltech256/256_ObjectCategories/"),
}
_Item = tuple[str, bytes, int]  # image_id, bytes of the file, label


def write(cfg: DataConfig, home: Path, progress: Callable[[int, int], object] | None = None) -> tuple[Path, list[str]]:
    """Write a set's shards unless they are there.

    Args:
        cfg: A data set with `torchvision: <name>`; its root is where torchvision finds or puts its own files.
        home: The project's folder.
        progress: Called with (photos done, photos in all) per split.

    Returns:
        The folder of the shards and the splits there are (Caltech256 has no official test split).
    """
    name = cfg.torchvision or ""
    if name not in SETS:
        raise CompError(
            f"configs/data/{cfg.name}.yaml", f"torchvision: {name!r}", did_you_mean(name, SETS), Exit.CONFIG
        )
    out = home / "data" / "raw" / cfg.name
    mark = out / _DONE
    if mark.is_file():
        done = read_json(mark, Exit.DATA)
        if isinstance(done, dict) and (done.get("version"), done.get("set")) == (VERSION, name):
            return out, list(done["splits"])
    kind, wanted = SETS[name]
    size = kind.partition("-")[2]
    truth: list[tuple[object, ...]] = []
    test_ids: list[str] = []
    splits: list[str] = []
    classes: list[str] = []
    for split, part in _parts(name, cfg.root_path(home), wanted):
        classes, splits = classes or _classes(name, part), [*splits, split]
        items, total = _items(name, split, part), len(part)
        for number, start in enumerate(range(0, total, _PER_SHARD)):
            examples: list[dict[str, bytes | int]] = []
            for _ in range(min(_PER_SHARD, total - start)):
                image_id, data, label = next(items)
                given: dict[str, bytes | int] = {} if split == "test" else {"class": label}
                examples.append({"image": data, **given, "id": image_id.encode()})
                truth.append((image_id, label, split, "", "" if split == "test" else label))
                test_ids += [image_id] if split == "test" else []
                if progress:
                    progress(start + len(examples), total)
            folder = out / f"tfrecords-{kind}" / split
            write_records(folder / f"{number:02}-{size}-{len(examples)}.tfrec", examples)
    write_text(out / "classes.txt", "".join(f"{one}\n" for one in classes))
    write_csv(out / TRUTH, ("image_id", "label", "split", "copy_of", "given_label"), truth)
    if test_ids:
        header = (cfg.submission.id, cfg.submission.label)
        write_csv(out / cfg.submission.sample, header, [(image_id, 0) for image_id in test_ids])
    write_json(mark, {"version": VERSION, "set": name, "splits": splits})
    return out, splits


def _parts(name: str, root: Path, wanted: str) -> Iterator[tuple[str, Any]]:
    """The set's splits as torchvision data sets: local files if they are there, else downloaded."""
    from torchvision import datasets

    if name == "Flowers102":
        arguments: dict[str, dict[str, object]] = {split: {"split": split} for split in ("train", "val", "test")}
    elif name == "Caltech256":
        arguments = {"train": {}}
    else:
        arguments = {"train": {"train": True}, "test": {"train": False}}
    for split, given in arguments.items():
        try:
            part = getattr(datasets, name)(str(root), download=False, **given)
        except (RuntimeError, OSError):
            try:
                part = getattr(datasets, name)(str(root), download=True, **given)
            except Exception as error:  # no network, a moved address, a changed file: torchvision raises many kinds
                reason = " ".join(str(error).split())[:120] or type(error).__name__
                what = f"torchvision's {name} is not there and could not be downloaded ({reason})"
                raise CompError(root, what, f"put {wanted} there", Exit.DATA) from None
        yield split, part


def _classes(name: str, part: Any) -> list[str]:
    names = part.categories if name == "Caltech256" else part.classes
    return [str(one).strip() for one in names]


def _items(name: str, split: str, part: Any) -> Iterator[_Item]:
    import cv2

    if name == "Flowers102":
        for path, label in zip(part._image_files, part._labels, strict=True):
            yield Path(path).stem, Path(path).read_bytes(), int(label)
    elif name == "Caltech256":
        for index, label in zip(part.index, part.y, strict=True):
            file = f"{label + 1:03d}_{index:04d}.jpg"
            path = Path(part.root) / "256_ObjectCategories" / part.categories[label] / file
            yield path.stem, path.read_bytes(), int(label)
    else:
        for index, (pixels, label) in enumerate(zip(np.asarray(part.data), np.asarray(part.targets), strict=True)):
            flipped = pixels[..., ::-1] if pixels.ndim == 3 else pixels
            yield f"{split}-{index:05}", cv2.imencode(".png", flipped)[1].tobytes(), int(label)
