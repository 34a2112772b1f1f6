"""The manifest: the raw files looked at once, everything odd said, and nothing stale believed."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from making import competition, config, default_rows, image, row

from comp.config import DataConfig
from comp.data import manifest
from comp.data.manifest import Dataset
from comp.errors import CompError, Exit
from comp.files import write_csv


def prepare(home: Path, rows: Any = None, **keys: object) -> Dataset:
    root = home / "data/raw/tiny"
    if root.exists():
        shutil.rmtree(root)
    return manifest.prepare(config(competition(root, rows), **keys), home)


def said(dataset: Dataset, what: str) -> tuple[str, str]:
    """The count and the ids that a row of the report gives."""
    return next((count, which) for name, count, which in dataset.report if name.startswith(what))


def test_every_image_is_listed_and_read_in_place(tmp_path: Path) -> None:
    dataset = prepare(tmp_path)
    rows = {r["id"].decode(): r for shards in default_rows().values() for shard in shards for r in shard}  # type: ignore
    assert set(dataset.ids) == set(rows)
    assert len(dataset) == 22
    reader = dataset.reader()
    for place, image_id in enumerate(dataset.ids):
        assert reader.read(place) == rows[image_id]["image"]
        assert dataset.sha1[place] == hashlib.sha1(rows[image_id]["image"]).hexdigest()  # type: ignore[arg-type]
        assert dataset.labels[place] == rows[image_id].get("class", -1)
        assert (dataset.widths[place], dataset.heights[place]) == (8, 8)
        assert reader.pixels(place).shape == (8, 8, 3)
    assert [dataset.splits.count(split) for split in ("train", "val", "test")] == [12, 6, 4]
    with (tmp_path / "data/tiny/native/manifest.csv").open() as file:
        assert csv.DictReader(file).fieldnames == list(manifest.COLUMNS)


def test_mean_and_deviation_are_over_train_and_val_only(tmp_path: Path) -> None:
    dataset = prepare(tmp_path)
    reader = dataset.reader()
    labelled = [reader.pixels(n).reshape(-1, 3) / 255 for n in range(len(dataset)) if dataset.splits[n] != "test"]
    np.testing.assert_allclose(dataset.mean, np.concatenate(labelled).mean(0), atol=1e-6)
    np.testing.assert_allclose(dataset.std, np.concatenate(labelled).std(0), atol=1e-6)
    rows = default_rows()
    rows["test"] = [[row(90, None)], [row(91, None)]]
    again = prepare(tmp_path, rows)
    assert (again.mean, again.std) == (dataset.mean, dataset.std)


def test_digests_say_what_they_are_over(tmp_path: Path) -> None:
    first = prepare(tmp_path)
    rows = default_rows()
    rows["train"].reverse()
    rows["train"][0].reverse()
    moved = prepare(tmp_path, rows)
    assert moved.ids != first.ids
    assert (moved.data_digest, moved.pixels_digest) == (first.data_digest, first.pixels_digest)
    rows = default_rows()
    rows["train"][0][0]["image"] = image(77)
    other_pixels = prepare(tmp_path, rows)
    assert other_pixels.data_digest == first.data_digest
    assert other_pixels.pixels_digest != first.pixels_digest
    rows = default_rows()
    rows["train"][0][0]["class"] = 1
    other_label = prepare(tmp_path, rows)
    assert other_label.data_digest != first.data_digest
    assert other_label.pixels_digest == first.pixels_digest


def test_the_real_photos_and_their_three_pairs(shared: Path, tmp_path: Path) -> None:
    data = config(shared / "data/tf-flowers", size=64, classes="classes.txt")
    dataset = manifest.prepare(data, tmp_path)
    assert [dataset.splits.count(split) for split in ("train", "val", "test")] == [2268, 508, 894]
    assert set(dataset.leaks) == {("5ee933591", "15cbbcf90"), ("0c2f7a1d5", "921d3935d")}
    assert said(dataset, "exact copies") == ("1", "e45c5b120 = 4be5b983b")
    assert said(dataset, "LEAK: train = test") == ("1", "5ee933591 = 15cbbcf90")
    assert said(dataset, "LEAK: val = test") == ("1", "0c2f7a1d5 = 921d3935d")
    splits = dict(zip(dataset.ids, dataset.splits, strict=True))
    assert [splits[i] for i in ("e45c5b120", "4be5b983b", "15cbbcf90", "921d3935d")] == [
        "train",
        "train",
        "test",
        "test",
    ]
    assert dataset.classes[int(dataset.labels[0])] in ("daisy", "dandelion", "roses", "sunflowers", "tulips")


def test_what_is_odd_is_said(tmp_path: Path) -> None:
    import cv2

    rows = default_rows()
    gray = cv2.imencode(".jpg", np.random.default_rng(5).integers(0, 256, (8, 8), dtype=np.uint8))[1].tobytes()
    rows["train"][0][0]["image"] = gray
    rows["train"][0][1]["image"] = rows["val"][0][0]["image"]  # labels 1 and 2
    rows["train"][0][2]["image"] = rows["train"][1][2]["image"]  # labels 2 and 2
    rows["test"][0][0]["image"] = rows["val"][1][0]["image"]
    dataset = prepare(tmp_path, rows, classes=("ash", "beech", "cedar"))
    assert said(dataset, "grayscale") == ("1", "000000000")
    assert said(dataset, "exact copies") == ("2", "000000001 = 000000014, 000000002 = 000000008")
    assert said(dataset, "copies whose labels disagree") == ("1", "000000001 (beech) ≠ 000000014 (cedar)")
    assert said(dataset, "LEAK: val = test") == ("1", "000000017 = 000000021")
    assert said(dataset, "classes with fewer than 30") == ("3", "ash 6, beech 6, cedar 6")
    assert dataset.leaks == (("000000017", "000000021"),)


STRANGE = ["NA", "1e5", "007", "nan", "a,b", 'quo"te', " space ", "ü", "None", "-0"]


def test_ids_survive(tmp_path: Path) -> None:
    rows = default_rows()
    for record, image_id in zip([*rows["train"][0], *rows["test"][0], *rows["val"][0]], STRANGE, strict=False):
        record["id"] = image_id.encode()
    dataset = prepare(tmp_path, rows)
    assert set(STRANGE) <= set(dataset.ids)
    assert set(STRANGE) <= set(manifest.load(tmp_path / "data/tiny/native").ids)


# --- images that are no images ----------------------------------------------------------------------------------------


def hostile() -> dict[str, bytes]:
    good = image(0, 40)
    return {"empty": b"", "text": b"<html>not found</html>", "cut": good[: len(good) // 2], "head": good[:20]}


def folder_of(root: Path, extra: dict[str, bytes], test: dict[str, bytes]) -> DataConfig:
    root.mkdir(parents=True)
    labels = []
    for number, (name, data) in enumerate([*((f"g{n}", image(n)) for n in range(6)), *extra.items(), *test.items()]):
        (root / f"{name}.jpg").write_bytes(data)
        if name not in test:
            labels.append((name, "xy"[number % 2]))
    write_csv(root / "train.csv", ("image_id", "label"), labels)
    write_csv(root / "sample_submission.csv", ("id", "label"), [(name, 0) for name in test])
    return config(root, reader="csv")


@pytest.mark.parametrize("name", sorted(hostile()))
def test_a_bad_image_fails_by_name(tmp_path: Path, name: str) -> None:
    data = folder_of(tmp_path / "raw", {name: hostile()[name]}, {"t": image(50)})
    with pytest.raises(CompError, match=rf"{name}\.jpg, image {name}: ") as caught:
        manifest.prepare(data, tmp_path)
    assert caught.value.code == Exit.DATA
    assert "on_bad: skip" in caught.value.fix
    assert not (tmp_path / "data/tiny").exists()  # nothing is written that says the set is fine


def test_bad_images_are_counted_and_listed_on_request(tmp_path: Path) -> None:
    data = folder_of(tmp_path / "raw", hostile(), {"t0": image(50), "t1": b"bad test photo", "t2": image(51)})
    with pytest.raises(CompError, match="and 4 more such images"):
        manifest.prepare(data, tmp_path)
    dataset = manifest.prepare(data.model_copy(update={"on_bad": "skip"}), tmp_path)
    assert set(dataset.bad) == {*hostile(), "t1"}
    assert [i for i, split in zip(dataset.ids, dataset.splits, strict=True) if split == "test"] == ["t0", "t1", "t2"]
    reader = dataset.reader()
    for place, image_id in enumerate(dataset.ids):  # nobody is answered with a neighbour
        wanted = (tmp_path / f"raw/{image_id}.jpg").read_bytes()
        assert reader.read(place) == wanted
        assert (dataset.widths[place] == 0) == (image_id in dataset.bad)
    count, which = said(dataset, "bad images")
    assert count == "5"
    assert "t1" in which
    good = folder_of(tmp_path / "good", {}, {"t0": image(50)})
    wanted_mean = manifest.prepare(good, tmp_path / "other").mean
    assert dataset.mean == wanted_mean  # bad ones add nothing to it


def test_a_large_image_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    data = folder_of(tmp_path / "raw", {"big": image(0, 40)}, {"t": image(50)})
    with pytest.raises(CompError, match=r"big\.jpg, image big: the image claims 40 × 40 pixels, more than 1,599"):
        manifest.prepare(data.model_copy(update={"max_pixels": 1599}), tmp_path)
    assert len(manifest.prepare(data.model_copy(update={"max_pixels": 1600}), tmp_path)) == 8


# --- what is stale or damaged -----------------------------------------------------------------------------------------


def test_a_moved_project_finds_its_files(tmp_path: Path) -> None:
    dataset = prepare(tmp_path / "here")
    (tmp_path / "here").rename(tmp_path / "there")
    moved = manifest.load(tmp_path / "there/data/tiny/native")
    assert moved.ids == dataset.ids
    assert moved.reader().read(0)


def test_raw_files_that_changed_are_noticed(tmp_path: Path) -> None:
    prepare(tmp_path)
    folder = tmp_path / "data/tiny/native"
    shard = tmp_path / "data/raw/tiny/tfrecords-jpeg-8x8/train/01-8x8-6.tfrec"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:-1] + b"x")
    with pytest.raises(CompError, match=r"01-8x8-6.tfrec: has changed since .*run `comp data` again") as caught:
        manifest.load(folder)
    assert caught.value.code == Exit.DATA
    shard.unlink()
    with pytest.raises(CompError, match=r"01-8x8-6\.tfrec: is gone"):
        manifest.load(folder)


def test_a_manifest_that_was_edited_or_cut_is_noticed(tmp_path: Path) -> None:
    prepare(tmp_path)
    folder = tmp_path / "data/tiny/native"
    table, about = folder / "manifest.csv", folder / "dataset.json"
    text, value = table.read_text(), json.loads(about.read_text())
    lines = text.splitlines(keepends=True)
    first = lines[1].split(",")
    for damage in (
        "".join(lines[:-1]),
        lines[0],
        "",
        text.replace("sha1", "sha"),
        text.replace(",train,", ",test,", 1),
        text.replace(lines[1], ",".join([first[0], "2", *first[2:]])),
        text.replace(lines[1], ",".join([*first[:4], "many", *first[5:]])),
        text.replace(lines[1], ",".join([*first[:4], "9" * 30, *first[5:]])),
    ):
        table.write_text(damage)
        with pytest.raises(CompError) as caught:
            manifest.load(folder)
        assert caught.value.code == Exit.DATA
    table.write_text(text)
    for damage in ("", "[]", "{}", json.dumps({**value, "format": 99}), json.dumps({**value, "mean": [1]})):
        about.write_text(damage)
        with pytest.raises(CompError) as caught:
            manifest.load(folder)
        assert caught.value.code == Exit.DATA
    about.write_text(json.dumps(value))
    assert len(manifest.load(folder)) == 22


def test_a_manifest_made_with_other_settings_is_not_taken_for_this_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`data.on_bad=skip` on the command line must not be ignored because a manifest is there already."""
    from comp.commands import common

    (tmp_path / "configs/data").mkdir(parents=True)
    text = "size: 24\ndraw: {classes: 2, train: 4, val: 2, test: 2, size: 24}\n"
    (tmp_path / "configs/data/set.yaml").write_text(text)
    monkeypatch.setenv("COMP_HOME", str(tmp_path))
    home, data, _ = common.project("set")
    common.prepared(home, data)
    assert common.prepared(home, data).settings == manifest.settings(data)
    _, changed, _ = common.project("set", ["data.on_bad=skip"])
    with pytest.raises(CompError, match="on_bad: fail → skip"):
        common.prepared(home, changed)
