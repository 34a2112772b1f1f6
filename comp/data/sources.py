"""What lies in the raw files: every image's id, label, split and where its bytes are, for each way a competition ships.

Four readers: the competition's TFRecord shards, a folder or zip of images with a CSV of labels, a folder per class,
torchvision's sets (written once as shards, see `comp.data.sets`). Nothing is unpacked: bytes are addressed in place.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from comp import files
from comp.config import DataConfig
from comp.data import demo
from comp.data.archive import Box
from comp.data.tfrecord import Feature, Kind, records, where
from comp.errors import CompError, Exit, did_you_mean

SPLITS = ("train", "val", "test")
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"})
_LAYOUT = re.compile(r"tfrecords-\w+-(\d+x\d+|native)")
_SHARD = re.compile(r"(\d+)-(\d+x\d+|native)-(\d+)\.tfrec")
Progress = Callable[[int, int], object]


@dataclass(frozen=True, slots=True)
class Entry:
    """One image.

    Attributes:
        image_id: Its id, unique in the set.
        label: Class index, -1 for test.
        split: train, val or test.
        file: The file its bytes are in, relative to the listing's root, with `/`.
        offset: Where they begin in it.
        length: How many there are.
    """

    image_id: str
    label: int
    split: str
    file: str
    offset: int
    length: int


@dataclass(frozen=True)
class Listing:
    """Everything a source holds.

    Attributes:
        root: The folder file names are relative to.
        entries: The images, ids unique.
        classes: Class names in label order.
        notes: What was left aside, for the table of odd things.
    """

    root: Path
    entries: tuple[Entry, ...]
    classes: tuple[str, ...]
    notes: tuple[str, ...] = ()


def read(cfg: DataConfig, home: Path, progress: Progress | None = None) -> Listing:
    """List the images of a data set.

    Args:
        cfg: The data set.
        home: The project's folder, which relative roots are under.
        progress: Called with (done, total) while a set is drawn or written.

    Raises:
        CompError: Exit code 3, naming file and record or row, for anything that is missing or contradicts itself.
    """
    root = cfg.root_path(home)
    if cfg.draw is not None:
        demo.ensure(root, **cfg.draw.model_dump(), progress=progress)
    if cfg.reader == "torchvision":
        from comp.data import sets

        root, splits = sets.write(cfg, home, progress)
        return _checked(_tfrecords(cfg, root, splits), cfg)
    if not root.is_dir():
        raise CompError(root, "not found", f"{_WANTED[cfg.reader]}, or set root in {_yaml(cfg)}", Exit.DATA)
    reader = {"tfrecords": _tfrecords, "csv": _csv, "folders": _folders}[cfg.reader]
    return _checked(reader(cfg, root), cfg)


_WANTED = {
    "tfrecords": "download the competition's files (from its Data page, or `kaggle competitions download`) and put "
    "tfrecords-jpeg-SIZExSIZE/{train,val,test}/*.tfrec and sample_submission.csv there",
    "csv": "put the images, the CSV of labels and the sample submission there",
    "folders": "put train/<class>/*.jpg, val/<class>/*.jpg and test/*.jpg there",
}


def _yaml(cfg: DataConfig) -> str:
    return f"configs/data/{cfg.name}.yaml"


def _checked(listing: Listing, cfg: DataConfig) -> Listing:
    there = {entry.split for entry in listing.entries}
    if "train" not in there:
        raise CompError(listing.root, "has no training photos", _WANTED.get(cfg.reader, ""), Exit.DATA)
    if cfg.val != "pool" and "val" not in there:
        fix = f"put them there, or write val: pool in {_yaml(cfg)}"
        raise CompError(listing.root, f"has no val photos, and val is {cfg.val}", fix, Exit.DATA)
    if len(listing.classes) < 2:
        raise CompError(listing.root, f"has {len(listing.classes)} class", "two are wanted at least", Exit.DATA)
    return listing


# --- TFRecords -------------------------------------------------------------------------------------------------------


def _tfrecords(cfg: DataConfig, root: Path, splits: Sequence[str] = SPLITS) -> Listing:
    folder, size = _resolution(cfg, root)
    classes = _class_names(cfg, root)
    entries: list[Entry] = []
    seen: dict[str, str] = {}
    for split in splits:
        if not (folder / split).is_dir():
            raise CompError(folder / split, "not found, the split is missing", _WANTED["tfrecords"], Exit.DATA)
        for path in _shards(folder / split, size):
            count = 0
            for record in records(path):
                here = where(path, record.number)
                entry = _entry(record.features, split, path.relative_to(root).as_posix(), here)
                if classes and entry.label >= len(classes):
                    raise CompError(here, f"class {entry.label} is not in 0..{len(classes) - 1}", "", Exit.DATA)
                if entry.image_id in seen:
                    what = f"id {entry.image_id} is already in {seen[entry.image_id]}"
                    raise CompError(here, what, "every photo is wanted once", Exit.DATA)
                seen[entry.image_id] = here
                entries.append(entry)
                count += 1
            said = int(_SHARD.fullmatch(path.name)[3])  # type: ignore[index]
            if count != said:
                fix = "download the shard again"
                raise CompError(path, f"holds {count} records, its name says {said}", fix, Exit.DATA)
    _check_sample(cfg, root, [entry.image_id for entry in entries if entry.split == "test"], wanted="test" in splits)
    return Listing(root, tuple(entries), classes or _numbered(entry.label for entry in entries))


def _resolution(cfg: DataConfig, root: Path) -> tuple[Path, str]:
    """The folder of one resolution, and its name. Sizes are never pooled: they hold the same photos."""
    found = {match[1]: path for path in sorted(root.iterdir()) if (match := _LAYOUT.fullmatch(path.name))}
    if not found and (root / "train").is_dir():  # root is a resolution's own folder
        sizes = {match[2] for path in root.glob("*/*.tfrec") if (match := _SHARD.fullmatch(path.name))}
        found = dict.fromkeys(sizes, root)
    if not found:
        raise CompError(root, "holds no TFRecords", _WANTED["tfrecords"], Exit.DATA)
    have = ", ".join(sorted(found, key=lambda name: (len(name), name)))
    if cfg.size is not None:
        wanted = f"{cfg.size}x{cfg.size}"
        if wanted not in found:
            raise CompError(root, f"has no photos of size {cfg.size}", f"there are {have}: set size", Exit.DATA)
        return found[wanted], wanted
    if len(found) > 1:
        fix = f"choose one with size in {_yaml(cfg)}: they are the same photos and must not be pooled"
        raise CompError(root, f"holds several resolutions ({have})", fix, Exit.DATA)
    return next((path, name) for name, path in found.items())


def _shards(folder: Path, size: str) -> list[Path]:
    """The shards of a split in order; names are NN-SIZE-COUNT.tfrec and NN has no gap."""
    paths = sorted(path for path in folder.iterdir() if path.suffix == ".tfrec")
    numbers: dict[int, Path] = {}
    for path in paths:
        match = _SHARD.fullmatch(path.name)
        if match is None:
            raise CompError(path, "is not named NN-SIZExSIZE-COUNT.tfrec", "download it again", Exit.DATA)
        if match[2] != size:
            what = f"is of resolution {match[2]} among shards of {size}"
            raise CompError(path, what, "move it away: sizes hold the same photos and must not be pooled", Exit.DATA)
        if int(match[1]) in numbers:
            raise CompError(path, f"shard {match[1]} is there twice", f"compare {numbers[int(match[1])]}", Exit.DATA)
        numbers[int(match[1])] = path
    if not paths:
        raise CompError(folder, "holds no shards, the split is missing", _WANTED["tfrecords"], Exit.DATA)
    gaps = sorted(set(range(max(numbers))) - set(numbers))
    if gaps:
        raise CompError(folder, f"shard {gaps[0]:02} is missing", "download it again", Exit.DATA)
    return [numbers[number] for number in sorted(numbers)]


def _entry(features: dict[str, Feature], split: str, file: str, here: str) -> Entry:
    image = _one(features, "image", "bytes", here)
    image_id = _one(features, "id", "bytes", here).values[0]
    try:
        name = image_id.decode() if isinstance(image_id, bytes) else ""
    except UnicodeDecodeError:
        name = ""
    if not name or not name.isprintable():
        raise CompError(here, f"its id {image_id!r} is not printable text", "", Exit.DATA)
    label = -1
    if split != "test":
        value = _one(features, "class", "int64", here).values[0]
        label = value if isinstance(value, int) else -1
        if label < 0:
            raise CompError(here, f"class {label} is negative", "", Exit.DATA)
    data = image.values[0]
    return Entry(name, label, split, file, image.offset, len(data) if isinstance(data, bytes) else 0)


def _one(features: dict[str, Feature], name: str, kind: Kind, here: str) -> Feature:
    feature = features.get(name)
    if feature is None:
        raise CompError(here, f"has no feature '{name}' ({', '.join(features) or 'none'})", "", Exit.DATA)
    if feature.kind != kind or len(feature.values) != 1:
        what = f"feature '{name}' is {len(feature.values)} × {feature.kind}, 1 × {kind} is wanted"
        raise CompError(here, what, "", Exit.DATA)
    return feature


# --- classes, labels, the sample submission ---------------------------------------------------------------------------


def _class_names(cfg: DataConfig, root: Path) -> tuple[str, ...]:
    """The names the config or `classes.txt` gives, else none."""
    if isinstance(cfg.classes, tuple):
        names, source = cfg.classes, _yaml(cfg)
    else:
        path = root / (cfg.classes or "classes.txt")
        if cfg.classes is None and not path.exists():
            return ()
        names = tuple(line.strip() for line in files.read_text(path, Exit.DATA).splitlines() if line.strip())
        source = str(path)
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise CompError(source, f"class '{twice[0]}' is named twice", "class names must differ", Exit.DATA)
    return names


def _numbered(labels: Iterable[int]) -> tuple[str, ...]:
    return tuple(str(label) for label in range(max(labels, default=-1) + 1))


def _labels(texts: Sequence[str], classes: tuple[str, ...], path: Path) -> tuple[list[int], tuple[str, ...]]:
    """Class indices of labels written as names, or, where names are given and none is used, as indices."""
    if not classes:
        names = set(texts)
        whole = all(re.fullmatch(r"0|[1-9]\d{0,8}", name) for name in names)
        classes = tuple(sorted(names, key=int) if whole else sorted(names))
    index = {name: label for label, name in enumerate(classes)}
    if not any(text in index for text in texts):
        index = {str(label): label for label in range(len(classes))}
    for row, text in enumerate(texts, start=2):
        if text not in index:
            raise CompError(f"{path}, row {row}", f"unknown label '{text}'", did_you_mean(text, index), Exit.DATA)
    return [index[text] for text in texts], classes


def _sample_ids(cfg: DataConfig, root: Path, wanted: bool) -> list[str] | None:
    path = root / cfg.submission.sample
    if not path.exists():
        if wanted:
            fix = "download it from the competition's Data page: it fixes the order of a submission"
            raise CompError(path, "not found", fix, Exit.DATA)
        return None
    header, rows = files.read_csv(path, [cfg.submission.id])
    column = header.index(cfg.submission.id)
    ids = [row[column] for row in rows]
    if len(set(ids)) < len(ids):
        raise CompError(path, "an id is there twice", "download it again", Exit.DATA)
    return ids


def _check_sample(cfg: DataConfig, root: Path, test_ids: list[str], wanted: bool) -> None:
    sample = _sample_ids(cfg, root, wanted)
    if sample is None or set(sample) == set(test_ids):
        return
    missing, extra = sorted(set(sample) - set(test_ids)), sorted(set(test_ids) - set(sample))
    parts = [f"{len(missing)} of its ids have no test photo (e.g. {missing[0]})"] if missing else []
    parts += [f"{len(extra)} test photos are not in it (e.g. {extra[0]})"] if extra else []
    fix = "the test photos are not the competition's: download both again"
    raise CompError(root / cfg.submission.sample, " and ".join(parts), fix, Exit.DATA)


# --- images with a CSV ------------------------------------------------------------------------------------------------


def _csv(cfg: DataConfig, root: Path) -> Listing:
    path = root / cfg.labels
    header, rows = files.read_csv(path, [cfg.id_column, cfg.label_column])
    ids = [row[header.index(cfg.id_column)] for row in rows]
    texts = [row[header.index(cfg.label_column)] for row in rows]
    labels, classes = _labels(texts, _class_names(cfg, root), path)
    box = Box(root, cfg.images)
    splits = [row[header.index("split")] for row in rows] if "split" in header else ["train"] * len(rows)
    entries: list[Entry] = []
    seen: dict[str, int] = {}
    for number, (image_id, label, split) in enumerate(zip(ids, labels, splits, strict=True), start=2):
        here = f"{path}, row {number}"
        if split not in ("train", "val"):
            raise CompError(here, f"split '{split}' is neither train nor val", "", Exit.DATA)
        if image_id in seen:
            raise CompError(here, f"id {image_id} is already in row {seen[image_id]}", "", Exit.DATA)
        seen[image_id] = number
        entries.append(Entry(image_id, label, split, *box.find(image_id, cfg.suffix, here)))
    sample = root / cfg.submission.sample
    test_box = Box(root, cfg.test_images) if cfg.test_images else box
    test_ids = _sample_ids(cfg, root, wanted=False)
    for number, image_id in enumerate(test_ids or (), start=2):
        here = f"{sample}, row {number}"
        if image_id in seen:
            raise CompError(here, f"id {image_id} is a training photo, row {seen[image_id]} of {path}", "", Exit.DATA)
        entries.append(Entry(image_id, -1, "test", *test_box.find(image_id, cfg.suffix, here)))
    notes = () if test_ids else (f"no {cfg.submission.sample}: there are no test photos to predict",)
    return Listing(root, tuple(entries), classes, notes)


# --- a folder per class -----------------------------------------------------------------------------------------------


def _folders(cfg: DataConfig, root: Path) -> Listing:
    if not (root / "train").is_dir():
        raise CompError(root / "train", "not found, the split is missing", _WANTED["folders"], Exit.DATA)
    classes = _class_names(cfg, root) or tuple(
        sorted(path.name for path in (root / "train").iterdir() if path.is_dir())
    )
    index = {name: label for label, name in enumerate(classes)}
    entries: list[Entry] = []
    others: list[str] = []
    for split in SPLITS:
        for path in _walk(root / split):
            file = path.relative_to(root).as_posix()
            if path.suffix.lower() not in SUFFIXES:
                others.append(file)
                continue
            label = -1
            if split != "test":
                name = PurePosixPath(file).parts[1]
                if name == path.name:
                    raise CompError(path, "lies in no class folder", f"move it to {split}/<class>/", Exit.DATA)
                if name not in index:
                    raise CompError(path, f"unknown class '{name}'", did_you_mean(name, classes), Exit.DATA)
                label = index[name]
            entries.append(Entry(file, label, split, file, 0, path.stat().st_size))
    entries = _test_ids(cfg, root, entries)
    notes = [f"{len(others)} files are not images by their names (e.g. {others[0]})"] if others else []
    if not any(entry.split == "test" for entry in entries):
        notes.append("no test photos: there is nothing to predict")
    return Listing(root, tuple(entries), classes, tuple(notes))


def _walk(folder: Path) -> list[Path]:
    """All files below a folder, sorted by path; hidden ones are not looked at."""
    found = []
    for here, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(here, name) for name in names if not name.startswith(".")]
    return sorted(found)


def _test_ids(cfg: DataConfig, root: Path, entries: list[Entry]) -> list[Entry]:
    """Give test photos the ids the sample submission uses: the path, the path below test/, the name or its stem."""
    test = [entry for entry in entries if entry.split == "test"]
    sample = _sample_ids(cfg, root, wanted=False)
    if not test and not sample:
        return entries
    forms: list[Callable[[str], str]] = [
        lambda file: file.removeprefix("test/"),
        lambda file: file,
        lambda file: PurePosixPath(file).name,
        lambda file: PurePosixPath(file).stem,
        lambda file: str(PurePosixPath(file).with_suffix("")).removeprefix("test/"),
    ]
    rest = [entry for entry in entries if entry.split != "test"]
    for form in forms:
        ids = [form(entry.file) for entry in test]
        if len(set(ids)) == len(ids) and (sample is None or set(ids) == set(sample)):
            return rest + [replace(entry, image_id=new) for entry, new in zip(test, ids, strict=True)]
    _check_sample(cfg, root, [forms[0](entry.file) for entry in test], wanted=True)
    return entries
