"""The manifest: every image of a data set, checked once, and where its bytes are. Everything after reads it.

data/<set>/<size>/manifest.csv    one row per image
data/<set>/<size>/dataset.json    classes, digests, channel mean and standard deviation, what is odd
"""

from __future__ import annotations

import functools
import hashlib
import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from comp import files, terminal
from comp.config import DataConfig
from comp.data import sources
from comp.data.pixels import Reader, inspect
from comp.data.sources import SPLITS, Listing
from comp.errors import CompError, Exit

FORMAT = 2
COLUMNS = ("image_id", "label", "split", "file", "offset", "length", "width", "height", "sha1")
FEW = 30  # a class with fewer training photos is named in the report
_NAMED = 6  # ids named in a row of the report


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set as its manifest tells it; N images.

    Attributes:
        name: Of the set.
        size: The resolution's folder name: pixels, or `native`.
        root: The folder of the raw files.
        classes: Class names in label order.
        ids: (N,) image ids, text, no two alike.
        labels: (N,) class index, -1 for test.
        splits: (N,) train, val or test.
        files: (N,) the file each image is in, relative to `root`.
        offsets: (N,) where it begins there.
        lengths: (N,) its bytes.
        widths: (N,) pixels, EXIF orientation applied; 0 for a bad image.
        heights: (N,) likewise.
        sha1: (N,) of its bytes.
        mean: Of the three channels over train and val, 0 to 1.
        std: Standard deviation, likewise.
        data_digest: SHA-256 over the sorted (image_id, label, split): the same for every resolution of a set.
        pixels_digest: SHA-256 over the sorted (image_id, sha1).
        bad: Ids of images that do not decode (`on_bad: skip`).
        leaks: (labelled id, test id) of photos that are the same bytes.
        report: Rows (what, count, which) of what is in the set and what is odd.
        max_pixels: A larger image is refused before it is decoded.
        settings: What of the data set's config it was made with (`settings`).
    """

    name: str
    size: str
    root: Path
    classes: tuple[str, ...]
    ids: tuple[str, ...]
    labels: NDArray[np.int64]
    splits: tuple[str, ...]
    files: tuple[str, ...]
    offsets: NDArray[np.int64]
    lengths: NDArray[np.int64]
    widths: NDArray[np.int64]
    heights: NDArray[np.int64]
    sha1: tuple[str, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    data_digest: str
    pixels_digest: str
    bad: tuple[str, ...]
    leaks: tuple[tuple[str, str], ...]
    report: tuple[tuple[str, str, str], ...]
    max_pixels: int
    settings: Mapping[str, Any]

    def __len__(self) -> int:
        return len(self.ids)

    def reader(self) -> Reader:
        """Reads the images in place; row for row those of `ids`."""
        return Reader(self.root, self.files, self.offsets.tolist(), self.lengths.tolist(), self.ids, self.max_pixels)


# What of a data set's config the manifest depends on.
_SETTINGS = (
    *("reader", "draw", "torchvision", "images", "test_images", "labels", "id_column", "label_column", "suffix"),
    *("classes", "on_bad", "max_pixels"),
)


def settings(data: DataConfig) -> dict[str, Any]:
    """The part of a data set's config that decides what is in the manifest, as plain values."""
    values = data.model_dump(mode="json")
    return {key: values[key] for key in _SETTINGS}


def folder(home: Path, data: DataConfig) -> Path:
    """`data/<set>/<size>/`."""
    return home / "data" / data.name / data.size_name


@dataclass(frozen=True)
class _Look:
    """One image, looked at once: sizes, digest, what is odd, and for its channels the sums of values and squares."""

    width: int
    height: int
    sha1: str
    notes: tuple[str, ...]
    sums: NDArray[np.int64]
    squares: NDArray[np.int64]
    error: CompError | None = None


def _look(row: int, reader: Reader) -> _Look:
    data = reader.read(row)
    sha1 = hashlib.sha1(data, usedforsecurity=False).hexdigest()
    nothing = np.zeros(3, np.int64)
    try:
        pixels, notes = inspect(data, reader.where(row), reader.max_pixels)
    except CompError as error:
        if error.code is not Exit.DATA:
            raise
        return _Look(0, 0, sha1, (), nothing, nothing, error)
    flat = pixels.reshape(-1, 3)
    # Whole numbers add up to the same whatever the order, so threads cannot change mean and standard deviation.
    sums = flat.sum(axis=0, dtype=np.int64)
    squares = np.square(flat, dtype=np.uint16).sum(axis=0, dtype=np.int64)
    return _Look(pixels.shape[1], pixels.shape[0], sha1, notes, sums, squares)


def prepare(data: DataConfig, home: Path) -> Dataset:
    """List a data set's images, decode each once, and write manifest and `dataset.json`.

    Args:
        data: The data set.
        home: The project's folder.

    Raises:
        CompError: Exit code 3, naming file and record: missing or contradicting raw files, or (under `on_bad: fail`) an
            image that does not decode.
    """
    listing = _list(data, home)
    entries = listing.entries
    ids = [entry.image_id for entry in entries]
    reader = Reader(
        listing.root,
        [entry.file for entry in entries],
        [entry.offset for entry in entries],
        [entry.length for entry in entries],
        ids,
        data.max_pixels,
    )
    with terminal.progress(f"reading {data.name}", len(entries)) as advance:
        looks: list[_Look] = []
        for look in _in_threads(len(entries), functools.partial(_look, reader=reader)):
            looks.append(look)
            advance()
    reader.close()
    bad = [(image_id, look.error) for image_id, look in zip(ids, looks, strict=True) if look.error]
    if bad and data.on_bad == "fail":
        first = bad[0][1]
        assert first is not None
        more = f" (and {len(bad) - 1} more such images)" if len(bad) > 1 else ""
        raise CompError(first.where, first.what + more, first.fix, Exit.DATA)
    labelled = [look for look, entry in zip(looks, entries, strict=True) if entry.split != "test" and not look.error]
    mean, std = _mean_std(labelled)
    leaks = _leaks(listing, looks)
    rows = [
        (e.image_id, "" if e.label < 0 else e.label, e.split, e.file, e.offset, e.length, s.width, s.height, s.sha1)
        for e, s in zip(entries, looks, strict=True)
    ]
    text = files.csv_text(COLUMNS, rows)
    where = folder(home, data)
    about = {
        "format": FORMAT,
        "name": data.name,
        "size": data.size_name,
        "root": _portable(listing.root, home),
        "settings": settings(data),
        "classes": list(listing.classes),
        "data_digest": files.digest_rows((e.image_id, e.label, e.split) for e in entries),
        "pixels_digest": files.digest_rows((i, look.sha1) for i, look in zip(ids, looks, strict=True)),
        "mean": mean,
        "std": std,
        "max_pixels": data.max_pixels,
        "bad": [image_id for image_id, _ in bad],
        "leaks": [list(pair) for pair in leaks],
        "report": _report(listing, looks, leaks, mean, std),
        "files": {name: _stamp(listing.root / name) for name in sorted({entry.file for entry in entries})},
        "manifest": files.digest_bytes(text.encode()),
    }
    # The manifest comes last, and an older one goes first: where it is, all of it is there.
    try:
        (where / "manifest.csv").unlink(missing_ok=True)
    except OSError as error:
        raise files.system_error(where / "manifest.csv", error) from error
    files.write_json(where / "dataset.json", about)
    files.write_text(where / "manifest.csv", text)
    return load(where)


def _list(data: DataConfig, home: Path) -> Listing:
    if data.draw is None:
        return sources.read(data, home)
    with terminal.progress(f"drawing {data.name}", data.draw.train + data.draw.val + data.draw.test) as advance:
        return sources.read(data, home, lambda done, total: advance())


def _in_threads(total: int, look: Any) -> Iterator[_Look]:
    """Results in order; decoding releases the interpreter's lock, and at most a few hundred images wait."""
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with ThreadPoolExecutor(threads) as pool:
        for start in range(0, total, 256):
            yield from pool.map(look, range(start, min(total, start + 256)))


def _mean_std(looks: Sequence[_Look]) -> tuple[list[float], list[float]]:
    """Of each channel over all pixels, 0 to 1."""
    if not looks:
        return [0.5] * 3, [0.25] * 3
    count = sum(look.width * look.height for look in looks)
    sums = [sum(int(look.sums[channel]) for look in looks) for channel in range(3)]
    squares = [sum(int(look.squares[channel]) for look in looks) for channel in range(3)]
    mean = [value / count / 255 for value in sums]
    # Exact whole numbers up to the last division; a set of one colour would give 0, by which nothing can be divided.
    spread = [max((count * q - s * s) / count**2, 1e-4) ** 0.5 / 255 for q, s in zip(squares, sums, strict=True)]
    return [round(value, 6) for value in mean], [round(value, 6) for value in spread]


def _same_bytes(listing: Listing, looks: Sequence[_Look]) -> list[list[int]]:
    """Groups of rows whose images are the same bytes, in order of their first row."""
    groups: dict[str, list[int]] = defaultdict(list)
    for row, look in enumerate(looks):
        groups[look.sha1].append(row)
    return [rows for rows in groups.values() if len(rows) > 1]


def _leaks(listing: Listing, looks: Sequence[_Look]) -> list[tuple[str, str]]:
    pairs = []
    for rows in _same_bytes(listing, looks):
        group = [listing.entries[row] for row in rows]
        tests = [entry.image_id for entry in group if entry.split == "test"]
        pairs += [(entry.image_id, test) for entry in group if entry.split != "test" for test in tests]
    return pairs


def _report(
    listing: Listing,
    looks: Sequence[_Look],
    leaks: Sequence[tuple[str, str]],
    mean: Sequence[float],
    std: Sequence[float],
) -> list[list[str]]:
    """Rows (what, count, which): what is in the set, then what is odd about it."""
    entries = listing.entries
    splits = Counter(entry.split for entry in entries)
    rows: list[list[str]] = [[f"{split} photos", f"{splits[split]:,}", ""] for split in SPLITS if splits[split]]
    counts = Counter(entry.label for entry in entries if entry.split != "test")
    by_count = sorted((counts[label], name) for label, name in enumerate(listing.classes))
    few = [f"{name} {count}" for count, name in by_count if count < FEW]
    (low, rare), (high, common) = by_count[0], by_count[-1]
    rows.append(["classes", str(len(listing.classes)), f"{rare} {low} … {common} {high} labelled photos"])
    sizes = sorted({(look.width, look.height) for look in looks if not look.error})
    if sizes:
        areas = sorted(sizes, key=lambda size: size[0] * size[1])
        said = " … ".join(f"{w} × {h}" for w, h in dict.fromkeys((areas[0], areas[-1])))
        rows.append(["image sizes", str(len(sizes)), said])
    rows.append(["channel mean", "", " / ".join(f"{value:.3f}" for value in mean) + " (train and val)"])
    rows.append(["channel sd", "", " / ".join(f"{value:.3f}" for value in std)])

    def odd(what: str, names: Sequence[str]) -> None:
        if names:
            more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
            rows.append([what, str(len(names)), ", ".join(names[:_NAMED]) + more])

    odd(f"classes with fewer than {FEW} photos", few)
    for word in ("grayscale", "CMYK", "16 bits", "transparent", "animated", "EXIF rotation"):
        odd(word, [entry.image_id for entry, look in zip(entries, looks, strict=True) if word in look.notes])
    inside, disagree = [], []
    for group in _same_bytes(listing, looks):
        labelled = [entries[row] for row in group if entries[row].split != "test"]
        if len(labelled) > 1:
            inside.append(" = ".join(entry.image_id for entry in labelled))
            if len({entry.label for entry in labelled}) > 1:
                disagree.append(" ≠ ".join(f"{e.image_id} ({listing.classes[e.label]})" for e in labelled))
    odd("exact copies (one fold)", inside)
    odd("copies whose labels disagree", disagree)
    split_of = {entry.image_id: entry.split for entry in entries}
    for split in ("train", "val"):
        odd(f"LEAK: {split} = test", [f"{a} = {b}" for a, b in leaks if split_of[a] == split])
    rows.append(["recompressed copies", "?", "not looked for: only copies of the same bytes are found"])
    odd("bad images", [entry.image_id for entry, look in zip(entries, looks, strict=True) if look.error])
    rows += [["note", "", note] for note in listing.notes]
    return rows


def _portable(root: Path, home: Path) -> str:
    """The root relative to the project where it is inside, so that a moved project still finds it."""
    absolute, project = root.resolve(), home.resolve()
    return (absolute.relative_to(project) if absolute.is_relative_to(project) else absolute).as_posix()


def _stamp(path: Path) -> list[int]:
    found = path.stat()
    return [found.st_size, found.st_mtime_ns]


def load(where: Path) -> Dataset:
    """Read a manifest and check that the raw files are still those it was made from.

    Args:
        where: `data/<set>/<size>/`.

    Raises:
        CompError: Exit code 3: files are missing, changed or damaged.
    """
    again = "run `comp data` again"
    about = files.read_json(where / "dataset.json", Exit.DATA)
    header, rows = files.read_csv(where / "manifest.csv", COLUMNS, Exit.DATA)
    digest = files.digest_file(where / "manifest.csv")
    try:
        if about["format"] != FORMAT:
            raise CompError(where / "dataset.json", f"has format {about['format']}, not {FORMAT}", again, Exit.DATA)
        at = [header.index(name) for name in COLUMNS]
        columns = list(zip(*([row[i] for i in at] for row in rows), strict=True))
        ids, labels, splits, names, offsets, lengths, widths, heights, sha1 = columns
        root = where.resolve().parents[2] / about["root"]

        def numbers(column: Sequence[str]) -> NDArray[np.int64]:
            return np.array([int(text) for text in column], dtype=np.int64)

        dataset = Dataset(
            name=str(about["name"]),
            size=str(about["size"]),
            root=root,
            classes=tuple(map(str, about["classes"])),
            ids=ids,
            labels=numbers([text or "-1" for text in labels]),
            splits=splits,
            files=names,
            offsets=numbers(offsets),
            lengths=numbers(lengths),
            widths=numbers(widths),
            heights=numbers(heights),
            sha1=sha1,
            mean=(float(about["mean"][0]), float(about["mean"][1]), float(about["mean"][2])),
            std=(float(about["std"][0]), float(about["std"][1]), float(about["std"][2])),
            data_digest=str(about["data_digest"]),
            pixels_digest=str(about["pixels_digest"]),
            bad=tuple(map(str, about["bad"])),
            leaks=tuple((str(a), str(b)) for a, b in about["leaks"]),
            max_pixels=int(about["max_pixels"]),
            settings=dict(about["settings"]),
            report=tuple((str(a), str(b), str(c)) for a, b, c in about["report"]),
        )
        changed = about["manifest"] != digest
        stamps = {str(name): [int(size), int(time)] for name, (size, time) in about["files"].items()}
    except (KeyError, ValueError, TypeError, IndexError, AttributeError, OverflowError):
        raise CompError(where, "the manifest is damaged", again, Exit.DATA) from None
    if changed or files.digest_rows(zip(ids, dataset.labels, splits, strict=True)) != dataset.data_digest:
        raise CompError(where / "manifest.csv", "is not the one dataset.json belongs to", again, Exit.DATA)
    for name, stamp in stamps.items():
        try:
            found = _stamp(root / name)
        except FileNotFoundError:
            raise CompError(root / name, "is gone", f"put it back, or {again}", Exit.DATA) from None
        except OSError as error:
            raise files.system_error(root / name, error) from error
        if found != stamp:
            raise CompError(root / name, "has changed since the manifest was made", again, Exit.DATA)
    return dataset
