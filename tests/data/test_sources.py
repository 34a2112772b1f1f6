"""Every way a competition ships: the right list, and one line naming file and record for everything that is wrong."""

from __future__ import annotations

import csv
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torchvision
from making import competition, config, default_rows, image, row

from comp.data import sources
from comp.data.sources import Listing
from comp.errors import CompError, Exit
from comp.files import write_csv

HOME = Path("/nowhere")


def check_bytes(listing: Listing, wanted: dict[str, bytes]) -> None:
    assert len({entry.image_id for entry in listing.entries}) == len(listing.entries)
    assert {entry.image_id for entry in listing.entries} == set(wanted)
    for entry in listing.entries:
        whole = (listing.root / entry.file).read_bytes()
        assert whole[entry.offset : entry.offset + entry.length] == wanted[entry.image_id]


def refused(words: str, call: Callable[[], object]) -> None:
    with pytest.raises(CompError, match=words) as caught:
        call()
    assert caught.value.code == Exit.DATA


# --- TFRecords --------------------------------------------------------------------------------------------------------


def test_the_competitions_layout(tmp_path: Path) -> None:
    listing = sources.read(config(competition(tmp_path)), HOME)
    rows = default_rows()
    check_bytes(listing, {r["id"].decode(): r["image"] for s in rows.values() for shard in s for r in shard})  # type: ignore
    assert [(e.image_id, e.label) for e in listing.entries if e.split == "val"] == [
        (f"{n:09x}", n % 3) for n in range(20, 26)
    ]
    assert {e.label for e in listing.entries if e.split == "test"} == {-1}
    assert listing.classes == ("0", "1", "2")
    assert listing.entries[0].file == "tfrecords-jpeg-8x8/train/00-8x8-6.tfrec"


def test_the_real_photos(shared: Path) -> None:
    for size in (64, 224):
        listing = sources.read(config(shared / "data/tf-flowers", size=size, classes="classes.txt"), HOME)
        splits = [entry.split for entry in listing.entries]
        assert [splits.count(split) for split in ("train", "val", "test")] == [2268, 508, 894]
        assert listing.classes == ("daisy", "dandelion", "roses", "sunflowers", "tulips")


def test_one_resolution_is_chosen_and_none_is_guessed(tmp_path: Path) -> None:
    competition(tmp_path)
    competition(tmp_path, size="16x16")
    refused(r"several resolutions \(8x8, 16x16\); choose one with size", lambda: sources.read(config(tmp_path), HOME))
    refused("no photos of size 32; there are 8x8, 16x16", lambda: sources.read(config(tmp_path, size=32), HOME))
    listing = sources.read(config(tmp_path, size=16), HOME)
    assert {entry.file.split("/")[0] for entry in listing.entries} == {"tfrecords-jpeg-16x16"}
    inside = tmp_path / "tfrecords-jpeg-8x8"
    shutil.copy(tmp_path / "sample_submission.csv", inside)
    assert len(sources.read(config(inside), HOME).entries) == 22  # a resolution's own folder as the root


def damage(change: Callable[[Any], object]) -> Callable[[Path], object]:
    def do(root: Path) -> None:
        rows = default_rows()
        change(rows)
        competition(root, rows, sample=False)

    return do


def in_folder(change: Callable[[Path], object]) -> Callable[[Path], object]:
    return lambda root: change(root / "tfrecords-jpeg-8x8")


TRAIN1 = "train/01-8x8-6.tfrec"
MISTAKES: list[tuple[str, Callable[[Path], object]]] = [
    ("01-8x8-6.tfrec, record 2: has no feature 'class'", damage(lambda r: r["train"][1][2].pop("class"))),
    ("01-8x8-6.tfrec, record 5: has no feature 'image'", damage(lambda r: r["train"][1][5].pop("image"))),
    ("00-8x8-2.tfrec, record 1: has no feature 'id'", damage(lambda r: r["test"][0][1].pop("id"))),
    ("record 0: class 3 is not in 0..2", damage(lambda r: r["val"][0][0].update({"class": 3}))),
    ("record 0: class -1 is negative", damage(lambda r: r["val"][0][0].update({"class": -1}))),
    ("feature 'class' is 1 × bytes, 1 × int64 is wanted", damage(lambda r: r["train"][0][0].update({"class": b"1"}))),
    ("feature 'image' is 1 × int64, 1 × bytes is wanted", damage(lambda r: r["train"][0][0].update({"image": 7}))),
    (r"record 3: its id b'\\xff' is not printable", damage(lambda r: r["train"][0][3].update({"id": b"\xff"}))),
    ("record 3: its id b'' is not printable", damage(lambda r: r["train"][0][3].update({"id": b""}))),
    (
        "val/01-8x8-3.tfrec, record 1: id 000000004 is already in .*train/00-8x8-6.tfrec, record 4",
        damage(lambda r: r["val"][1][1].update({"id": b"000000004"})),
    ),
    (
        "01-8x8-7.tfrec: holds 6 records, its name says 7",
        in_folder(lambda f: (f / TRAIN1).rename(f / "train/01-8x8-7.tfrec")),
    ),
    ("val: not found, the split is missing", in_folder(lambda f: shutil.rmtree(f / "val"))),
    (
        "test: holds no shards, the split is missing",
        in_folder(lambda f: [p.unlink() for p in (f / "test").iterdir()]),
    ),
    ("train: shard 00 is missing", in_folder(lambda f: (f / "train/00-8x8-6.tfrec").unlink())),
    (
        "one.tfrec: is not named NN-SIZExSIZE-COUNT",
        in_folder(lambda f: (f / TRAIN1).rename(f / "train/one.tfrec")),
    ),
    (
        "01-16x16-6.tfrec: is of resolution 16x16 among shards of 8x8",
        in_folder(lambda f: (f / TRAIN1).rename(f / "train/01-16x16-6.tfrec")),
    ),
    (
        "shard 1 is there twice",
        in_folder(lambda f: shutil.copy(f / TRAIN1, f / "train/1-8x8-6.tfrec")),
    ),
    (
        "record 5: claims 792 bytes, the shard has 783 left",
        in_folder(lambda f: (f / TRAIN1).write_bytes((f / TRAIN1).read_bytes()[:-9])),
    ),
    ("sample_submission.csv: not found; download", lambda root: (root / "sample_submission.csv").unlink()),
    (
        r"1 of its ids have no test photo \(e.g. zz\) and 1 test photos are not in it \(e.g. 000000021\)",
        lambda root: write_csv(
            root / "sample_submission.csv",
            ("id", "label"),
            [(i, 0) for i in ("zz", "00000001e", "00000001f", "000000020")],
        ),
    ),
    (
        "sample_submission.csv: an id is there twice",
        lambda root: write_csv(root / "sample_submission.csv", ("id", "label"), [("a", 0), ("a", 0)]),
    ),
    ("no column 'id'", lambda root: write_csv(root / "sample_submission.csv", ("image", "label"), [])),
    ("class 'a' is named twice", lambda root: (root / "classes.txt").write_text("a\nb\na\n")),
    ("holds no TFRecords", lambda root: shutil.rmtree(root / "tfrecords-jpeg-8x8")),
    ("not found; download the competition's files", shutil.rmtree),
]


@pytest.mark.parametrize(("words", "change"), MISTAKES, ids=[words[:40] for words, _ in MISTAKES])
def test_mistakes_name_file_and_record(tmp_path: Path, words: str, change: Callable[[Path], object]) -> None:
    root = competition(tmp_path / "raw")
    change(root)
    keys = {} if "named twice" in words else {"classes": ("a", "b", "c")}
    refused(words, lambda: sources.read(config(root, **keys), HOME))


def test_val_photos_are_wanted_where_val_is_used(tmp_path: Path) -> None:
    write_csv(tmp_path / "train.csv", ("image_id", "label"), [("a", "x"), ("b", "y")])
    for name in "ab":
        (tmp_path / f"{name}.jpg").write_bytes(image(1))
    assert len(sources.read(config(tmp_path, reader="csv"), HOME).entries) == 2
    for val in ("audit", "official"):
        refused(
            f"no val photos, and val is {val}", lambda v=val: sources.read(config(tmp_path, reader="csv", val=v), HOME)
        )


# --- CSV --------------------------------------------------------------------------------------------------------------

STRANGE = ["NA", "1e5", "007", "nan", "null", "a,b", 'quo"te', "with space", "ü", "1_000", "-0", "True", "sub/dir"]


def csv_set(root: Path, labels: list[str], images: Path | None = None) -> dict[str, bytes]:
    """Strange ids with the labels given, four test photos; returns the bytes of every photo."""
    folder = images or root / "images"
    wanted = {}
    for number, image_id in enumerate([*STRANGE, "t1", "t2", "0", "00"]):
        path = folder / f"{image_id}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image(number))
        wanted[image_id] = image(number)
    rows = [(i, labels[n % len(labels)]) for n, i in enumerate(STRANGE)]
    write_csv(root / "train.csv", ("image_id", "label"), rows)
    write_csv(root / "sample_submission.csv", ("id", "label"), [(i, 0) for i in ("t2", "00", "t1", "0")])
    return wanted


def test_ids_survive_a_csv_as_they_are(tmp_path: Path) -> None:
    wanted = csv_set(tmp_path, ["rose", "NA", "lily"])
    listing = sources.read(config(tmp_path, reader="csv", images="images"), HOME)
    check_bytes(listing, wanted)
    assert listing.classes == ("NA", "lily", "rose")
    assert [entry.image_id for entry in listing.entries] == [*STRANGE, "t2", "00", "t1", "0"]
    assert [entry.label for entry in listing.entries[:4]] == [2, 0, 1, 2]


def test_labels_as_numbers(tmp_path: Path) -> None:
    csv_set(tmp_path, ["10", "9", "2"])
    listing = sources.read(config(tmp_path, reader="csv", images="images"), HOME)
    assert listing.classes == ("2", "9", "10")  # by value, not as text
    csv_set(tmp_path, ["2", "1", "0"])
    named = sources.read(config(tmp_path, reader="csv", images="images", classes=("a", "b", "c")), HOME)
    assert named.classes == ("a", "b", "c")
    assert [entry.label for entry in named.entries[:3]] == [2, 1, 0]
    refused(
        "row 2: unknown label '2'",
        lambda: sources.read(config(tmp_path, reader="csv", images="images", classes=("a", "b")), HOME),
    )


def zipped(root: Path, how: int, top: str = "") -> dict[str, bytes]:
    wanted = csv_set(root, ["x", "y"], root / "tmp")
    with zipfile.ZipFile(root / "images.zip", "w", how) as archive:
        for image_id, data in wanted.items():
            archive.writestr(f"{top}{image_id}.jpg", data)
    shutil.rmtree(root / "tmp")
    return wanted


def test_members_of_a_zip_are_read_in_place(tmp_path: Path) -> None:
    wanted = zipped(tmp_path, zipfile.ZIP_STORED)
    listing = sources.read(config(tmp_path, reader="csv", images="images.zip"), HOME)
    check_bytes(listing, wanted)
    assert {entry.file for entry in listing.entries} == {"images.zip"}


def test_a_zip_may_hold_one_top_folder(tmp_path: Path) -> None:
    STRANGE_FLAT = {k: v for k, v in zipped(tmp_path, zipfile.ZIP_STORED, "jpeg/").items() if "/" not in k}
    write_csv(
        tmp_path / "train.csv", ("image_id", "label"), [(i, "xy"[n % 2]) for n, i in enumerate(STRANGE) if "/" not in i]
    )
    check_bytes(sources.read(config(tmp_path, reader="csv", images="images.zip"), HOME), STRANGE_FLAT)


def test_zips_that_cannot_be_read_in_place(tmp_path: Path) -> None:
    def read() -> Listing:
        return sources.read(config(tmp_path, reader="csv", images="images.zip"), HOME)

    zipped(tmp_path, zipfile.ZIP_DEFLATED)
    refused("member NA.jpg: is compressed, images are read in place; extract the zip", read)
    (tmp_path / "images.zip").write_bytes(b"PK\x03\x04 not really")
    refused("images.zip: is not a zip", read)
    zipped(tmp_path, zipfile.ZIP_STORED)
    data = bytearray((tmp_path / "images.zip").read_bytes())
    data[0:4] = b"XXXX"
    (tmp_path / "images.zip").write_bytes(data)
    refused("its header is damaged", read)
    (tmp_path / "images.zip").unlink()
    refused("images.zip: not found", read)


@pytest.mark.parametrize(
    ("words", "rows"),
    [
        ("train.csv, row 3: id a is already in row 2", [("a", "x"), ("a", "y")]),
        ("train.csv, row 3: image c.jpg is not in", [("a", "x"), ("c", "y")]),
        ("leads out of", [("a", "x"), ("../secret", "y")]),
        ("leads out of", [("a", "x"), ("/etc/passwd", "y")]),
        ("has 1 class", [("a", "x"), ("b", "x")]),
        ("row 2 has 3 fields", [("a", "x", "z")]),
        ("row 2: id b is a training photo, row 3 of", [("a", "x"), ("b", "y")]),
        ("has 0 class|no training photos", []),
    ],
)
def test_mistakes_in_a_csv(tmp_path: Path, words: str, rows: list[tuple[str, ...]]) -> None:
    root = tmp_path / "raw"
    root.mkdir()
    (tmp_path / "secret.jpg").write_bytes(image(0))
    for name in "ab":
        (root / f"{name}.jpg").write_bytes(image(1))
    write_csv(root / "train.csv", ("image_id", "label"), rows)
    if "training photo," in words:
        write_csv(root / "sample_submission.csv", ("id", "label"), [("b", 0)])
    refused(words, lambda: sources.read(config(root, reader="csv"), HOME))


def test_a_split_column_marks_val(tmp_path: Path) -> None:
    for name in "abc":
        (tmp_path / f"{name}.png").write_bytes(image(ord(name), form=".png"))
    write_csv(
        tmp_path / "labels.csv",
        ("file", "y", "split"),
        [("a.png", "u", "train"), ("b.png", "v", "val"), ("c.png", "v", "train")],
    )
    keys = {
        "reader": "csv",
        "labels": "labels.csv",
        "id_column": "file",
        "label_column": "y",
        "val": "audit",
        "suffix": "",
    }
    listing = sources.read(config(tmp_path, **keys), HOME)
    assert [(entry.image_id, entry.split) for entry in listing.entries] == [
        ("a.png", "train"),
        ("b.png", "val"),
        ("c.png", "train"),
    ]
    assert "no test photos" in listing.notes[0]


# --- folders ----------------------------------------------------------------------------------------------------------


def folder_set(root: Path) -> dict[str, bytes]:
    wanted = {}
    names = [
        "train/rose/1.jpg",
        "train/rose/deep/2.PNG",
        "train/lily/1.jpg",
        "val/rose/1.jpg",
        "test/a.jpg",
        "test/b.jpg",
    ]
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(image(number))
        wanted[name] = image(number)
    (root / "train/rose/readme.txt").write_text("x")
    (root / "train/.hidden").write_text("x")
    return wanted


def test_a_folder_per_class(tmp_path: Path) -> None:
    wanted = folder_set(tmp_path)
    listing = sources.read(config(tmp_path, reader="folders", val="audit"), HOME)
    check_bytes(listing, {name.removeprefix("test/"): data for name, data in wanted.items()})
    assert listing.classes == ("lily", "rose")
    assert {entry.image_id: entry.label for entry in listing.entries if entry.split != "test"} == {
        "train/lily/1.jpg": 0,
        "train/rose/1.jpg": 1,
        "train/rose/deep/2.PNG": 1,
        "val/rose/1.jpg": 1,
    }
    assert listing.notes == ("1 files are not images by their names (e.g. train/rose/readme.txt)",)


@pytest.mark.parametrize("ids", [("a.jpg", "b.jpg"), ("test/a.jpg", "test/b.jpg"), ("a", "b")])
def test_test_photos_are_called_what_the_sample_calls_them(tmp_path: Path, ids: tuple[str, ...]) -> None:
    folder_set(tmp_path)
    write_csv(tmp_path / "sample_submission.csv", ("id", "label"), [(i, 0) for i in reversed(ids)])
    listing = sources.read(config(tmp_path, reader="folders"), HOME)
    assert {e.image_id: e.file for e in listing.entries if e.split == "test"} == {
        ids[0]: "test/a.jpg",
        ids[1]: "test/b.jpg",
    }


def test_mistakes_in_folders(tmp_path: Path) -> None:
    def read(**keys: object) -> Listing:
        return sources.read(config(tmp_path, reader="folders", **keys), HOME)

    (tmp_path / "test").mkdir()
    refused("train: not found, the split is missing", read)
    folder_set(tmp_path)
    refused("unknown class 'rose'; did you mean 'roses'", lambda: read(classes=("lily", "roses")))
    (tmp_path / "val/ross").mkdir()
    (tmp_path / "val/ross/1.jpg").write_bytes(image(9))
    refused("val/ross/1.jpg: unknown class 'ross'; did you mean 'rose'", read)
    shutil.rmtree(tmp_path / "val")
    write_csv(tmp_path / "sample_submission.csv", ("id", "label"), [("a.jpg", 0), ("c.jpg", 0)])
    refused(r"1 of its ids have no test photo \(e.g. c.jpg\)", read)
    (tmp_path / "train/loose.jpg").write_bytes(image(9))
    refused("loose.jpg: lies in no class folder; move it to train/<class>/", read)


# --- torchvision ------------------------------------------------------------------------------------------------------


class FakeCifar:
    classes = ("cat", "dog")

    def __init__(self, root: str, train: bool, download: bool):
        if not (Path(root) / "here").exists():
            raise RuntimeError("Dataset not found." if not download else "no network")
        self.data = np.random.default_rng(int(train)).integers(0, 256, (5 if train else 3, 32, 32, 3), dtype=np.uint8)
        self.targets = [0, 1, 1, 0, 1][: len(self.data)]

    def __len__(self) -> int:
        return len(self.data)


def test_arrays_of_torchvision_become_shards_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from comp.data.pixels import decode

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", FakeCifar)
    home, local = tmp_path / "home", tmp_path / "local"
    cfg = config(local, reader="torchvision", torchvision="CIFAR10")
    refused(
        r"torchvision's CIFAR10 is not there .*\(no network\); put cifar-10-batches-py/",
        lambda: sources.read(cfg, home),
    )
    local.mkdir()
    (local / "here").touch()
    listing = sources.read(cfg, home)
    assert listing.root == home / "data/raw/tiny"
    assert listing.classes == ("cat", "dog")
    arrays = {"train": FakeCifar(str(local), True, False), "test": FakeCifar(str(local), False, False)}
    for entry in listing.entries:
        index = int(entry.image_id.split("-")[1])
        data = (listing.root / entry.file).read_bytes()[entry.offset : entry.offset + entry.length]
        assert (decode(data, "x") == arrays[entry.split].data[index]).all()
        assert entry.label == (arrays["train"].targets[index] if entry.split == "train" else -1)
    assert len(listing.entries) == 8
    with (listing.root / "truth.csv").open() as file:
        truth = list(csv.DictReader(file))
    assert [row["label"] for row in truth if row["split"] == "test"] == ["0", "1", "1"]
    before = {path: path.stat().st_mtime_ns for path in listing.root.rglob("*")}
    (local / "here").unlink()  # not needed any more
    assert sources.read(cfg, home).entries == listing.entries
    assert before == {path: path.stat().st_mtime_ns for path in listing.root.rglob("*")}


def test_files_of_torchvision_keep_their_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Fake:
        classes = ("a", "b")

        def __init__(self, root: str, split: str, download: bool):
            numbers = {"train": (1, 2), "val": (3, 4), "test": (5, 6, 7)}[split]
            self._image_files = [Path(root) / f"image_{n:05}.jpg" for n in numbers]
            self._labels = [n % 2 for n in numbers]

        def __len__(self) -> int:
            return len(self._labels)

    monkeypatch.setattr(torchvision.datasets, "Flowers102", Fake)
    for number in range(1, 8):
        (tmp_path / f"image_{number:05}.jpg").write_bytes(image(number))
    cfg = config(tmp_path, reader="torchvision", torchvision="Flowers102", val="official")
    listing = sources.read(cfg, tmp_path / "home")
    check_bytes(listing, {f"image_{n:05}": image(n) for n in range(1, 8)})
    assert [e.label for e in listing.entries] == [1, 0, 1, 0, -1, -1, -1]


def test_an_unknown_set_of_torchvision(tmp_path: Path) -> None:
    with pytest.raises(CompError, match="did you mean 'CIFAR10'") as caught:
        sources.read(config(tmp_path, reader="torchvision", torchvision="CIFAR-10"), tmp_path)
    assert caught.value.code == Exit.CONFIG


def test_a_record_of_one_set_is_not_read_twice(tmp_path: Path) -> None:
    """The same id in two shards of one split."""
    rows = default_rows()
    rows["test"][1][0] = row(33, None)
    refused("id 000000021 is already in", lambda: sources.read(config(competition(tmp_path, rows)), HOME))
