"""The built-in set: the same from one seed, in the competition's layout, with its truth written down."""

from __future__ import annotations

import csv
import itertools
from dataclasses import astuple
from pathlib import Path

import numpy as np
import pytest

from comp.data import demo, petals
from comp.data.pixels import decode
from comp.data.tfrecord import records
from comp.errors import CompError, Exit

SIZES = {"train": 440, "val": 200, "test": 200}


def files_of(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("petals")
    demo.draw(root, classes=5, **SIZES, size=24, seed=7, shards=3)
    return root


@pytest.fixture(scope="module")
def truth(drawn: Path) -> list[dict[str, str]]:
    with (drawn / "truth.csv").open() as file:
        return list(csv.DictReader(file))


def photos(root: Path, split: str) -> dict[str, tuple[np.ndarray, int | None]]:
    found = {}
    for path in sorted(root.glob(f"tfrecords-jpeg-24x24/{split}/*.tfrec")):
        for record in records(path):
            label = record.features.get("class")
            pixels = decode(record.features["image"].values[0], path)  # type: ignore[arg-type]
            found[record.features["id"].values[0].decode()] = (pixels, label.values[0] if label else None)  # type: ignore
    return found


def test_layout_is_the_competitions(drawn: Path) -> None:
    assert sorted(files_of(drawn)) == sorted(
        ["classes.txt", "petals.json", "sample_submission.csv", "truth.csv"]
        + [f"tfrecords-jpeg-24x24/train/0{n}-24x24-{count}.tfrec" for n, count in enumerate((147, 147, 146))]
        + [
            f"tfrecords-jpeg-24x24/{s}/0{n}-24x24-{c}.tfrec"
            for s in ("val", "test")
            for n, c in enumerate((67, 67, 66))
        ]
    )
    assert len(set((drawn / "classes.txt").read_text().split())) == 5


def test_truth_agrees_with_the_shards(drawn: Path, truth: list[dict[str, str]]) -> None:
    for split in SIZES:
        rows = {row["image_id"]: row for row in truth if row["split"] == split}
        found = photos(drawn, split)
        assert set(found) == set(rows)
        for image_id, (pixels, label) in found.items():
            assert pixels.shape == (24, 24, 3)
            assert rows[image_id]["given_label"] == ("" if split == "test" else str(label))
            assert len(image_id) == 9
            int(image_id, 16)
    with (drawn / "sample_submission.csv").open() as file:
        sample = list(csv.DictReader(file))
    assert sorted(photos(drawn, "test")) == [row["id"] for row in sample]
    assert {row["label"] for row in sample} == {"0"}


def test_few_labels_are_wrong_and_few_photos_are_copies(drawn: Path, truth: list[dict[str, str]]) -> None:
    total = sum(SIZES.values())
    wrong = [row for row in truth if row["split"] != "test" and row["given_label"] != row["label"]]
    assert [row["split"] for row in wrong].count("train") == int(0.005 * SIZES["train"])
    assert [row["split"] for row in wrong].count("val") == int(0.005 * SIZES["val"])
    copies = [row for row in truth if row["copy_of"]]
    assert len(copies) == int(0.005 * total)
    assert {row["split"] for row in copies} == set(SIZES)
    by_id = {row["image_id"]: row for row in truth}
    pixels = {image_id: shown for split in SIZES for image_id, (shown, _) in photos(drawn, split).items()}
    for row in copies:
        source = by_id[row["copy_of"]]
        assert source["split"] == "train"
        assert source["label"] == row["label"]
        assert row not in wrong
        assert source not in wrong

        def distance(other: str, mine: str = row["image_id"]) -> float:
            return float(np.abs(pixels[mine].astype(int) - pixels[other]).mean())

        assert distance(source["image_id"]) == min(distance(other) for other in pixels if other != row["image_id"])
        assert distance(source["image_id"]) > 0


def test_the_set_is_a_function_of_the_seed(drawn: Path, tmp_path: Path) -> None:
    demo.draw(tmp_path / "again", classes=5, **SIZES, size=24, seed=7, shards=3)
    assert files_of(tmp_path / "again") == files_of(drawn)
    small = {"train": 8, "val": 5, "test": 5}
    demo.draw(tmp_path / "a", classes=5, **small, size=24, seed=7)
    demo.draw(tmp_path / "b", classes=5, **small, size=24, seed=8)
    a, b = files_of(tmp_path / "a"), files_of(tmp_path / "b")
    assert set(a) == set(b)
    assert not any(a[name] == b[name] for name in a if name.endswith(".tfrec"))


@pytest.mark.parametrize(("total", "classes"), [(1500, 12), (300, 12), (12, 12), (1500, 104), (15001, 104), (2, 2)])
def test_class_counts_are_unbalanced_and_add_up(total: int, classes: int) -> None:
    counts = demo.class_counts(total, classes, np.arange(classes))
    assert sum(counts) == total
    assert min(counts) >= 1
    assert all(a >= b for a, b in itertools.pairwise(counts))
    if total >= 100 * classes:
        assert 10 < counts[0] / counts[-1] < 25


def test_ensure_draws_once_and_again_when_asked_for_another(tmp_path: Path) -> None:
    small = {"classes": 2, "train": 4, "val": 2, "test": 2, "size": 16}
    told: list[tuple[int, int]] = []
    assert demo.ensure(tmp_path, **small, progress=lambda done, total: told.append((done, total)))
    assert told == [(done, 8) for done in range(1, 9)]
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert not demo.ensure(tmp_path, **small)
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert demo.ensure(tmp_path, **{**small, "train": 5, "size": 18})
    assert [path.name for path in tmp_path.glob("*/train/*")] != []
    assert not list(tmp_path.glob("tfrecords-jpeg-16x16/*/*"))


def test_a_drawing_cut_short_is_drawn_again(tmp_path: Path) -> None:
    small = {"classes": 2, "train": 4, "val": 2, "test": 2, "size": 16}

    def stop(done: int, total: int) -> None:
        if done == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        demo.ensure(tmp_path, **small, progress=stop)
    assert list(tmp_path.glob("*/train/*"))
    assert demo.ensure(tmp_path, **small)
    assert not demo.ensure(tmp_path, **small)


def test_shards_that_were_not_drawn_here_stay(tmp_path: Path) -> None:
    mine = tmp_path / "tfrecords-jpeg-224x224/train/00-224x224-1.tfrec"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"precious")
    with pytest.raises(CompError, match="not drawn here") as caught:
        demo.ensure(tmp_path, classes=2, train=4, val=2, test=2, size=16)
    assert caught.value.code == Exit.DATA
    assert mine.read_bytes() == b"precious"


@pytest.mark.parametrize("change", [{"classes": 1}, {"val": 1}, {"size": 8}, {"seed": -1}, {"shards": 0}])
def test_numbers_that_make_no_set(tmp_path: Path, change: dict[str, int]) -> None:
    with pytest.raises(CompError, match="cannot draw") as caught:
        demo.draw(tmp_path, **{"classes": 2, "train": 4, "val": 2, "test": 2, "size": 16, **change})
    assert caught.value.code == Exit.CONFIG


@pytest.mark.parametrize("count", [2, 12, 104])
def test_species_can_be_told_apart(count: int) -> None:
    kinds = petals.species(count, np.random.default_rng([0, 100]))
    assert len({kind.name for kind in kinds}) == count
    for one, other in itertools.combinations(kinds, 2):
        assert sum(a != b for a, b in zip(astuple(one)[:7], astuple(other)[:7], strict=True)) >= 2


def test_every_attribute_is_seen_in_the_picture() -> None:
    """The same chance, one attribute changed: the picture changes, in each attribute and value."""
    plain = petals.Species(5, "round", "pink", "plain", "button", "lance", 1, "white")
    words = {
        "petals": petals.PETALS,
        "shape": petals.SHAPES,
        "colour": tuple(petals.PALETTES),
        "mark": petals.MARKS,
        "centre": petals.CENTRES,
        "leaves": petals.LEAVES,
        "rings": (1, 2),
    }
    for name, values in words.items():
        shown = []
        for value in values:
            kind = petals.Species(**{**dict(zip(plain.__slots__, astuple(plain), strict=True)), name: value})
            shown.append(petals.photo(kind, [plain], 64, np.random.default_rng(1)).tobytes())
        assert len(set(shown)) == len(values), name
