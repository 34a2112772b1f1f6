"""Folds: every photo once, classes and copies as promised, and nothing but seed and ids decides."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from making import competition, config, default_rows

from comp.config import DataConfig
from comp.data import folds, manifest
from comp.errors import CompError, Exit
from comp.files import write_csv


@dataclass
class Photos:
    """What folds look at of a data set."""

    ids: tuple[str, ...]
    labels: np.ndarray
    splits: tuple[str, ...]
    sha1: tuple[str, ...]
    classes: tuple[str, ...]
    bad: tuple[str, ...] = ()
    name: str = "drawn"

    def shuffled(self, seed: int) -> Photos:
        order = np.random.default_rng(seed).permutation(len(self.ids)).tolist()
        take = [tuple(column[i] for i in order) for column in (self.ids, self.splits, self.sha1)]
        return Photos(take[0], self.labels[order], take[1], take[2], self.classes, self.bad)


def make(photos: Photos, k: int, seed: int = 0, val: Any = "pool") -> tuple[dict[str, int], list[str]]:
    return folds.make(photos, k, seed, val)  # type: ignore[arg-type]


@st.composite
def photo_sets(draw: st.DrawFn, disagree: bool = True) -> Photos:
    """Any number of photos per class, some of them copies of others, in any split."""
    counts = draw(st.lists(st.integers(1, 30), min_size=2, max_size=6))
    labels = [label for label, count in enumerate(counts) for _ in range(count)]
    total = len(labels)
    sha1 = [f"s{row}" for row in range(total)]
    for _ in range(draw(st.integers(0, 8))):
        a, b = draw(st.integers(0, total - 1)), draw(st.integers(0, total - 1))
        if disagree or labels[a] == labels[b]:
            sha1[a] = sha1[b]
    splits = draw(st.lists(st.sampled_from(["train", "train", "val", "test"]), min_size=total, max_size=total))
    labels = [-1 if split == "test" else label for label, split in zip(labels, splits, strict=True)]
    ids = tuple(f"{row:04}" for row in range(total))
    return Photos(ids, np.array(labels), tuple(splits), tuple(sha1), tuple(map(str, range(len(counts)))))


def groups_by_class(photos: Photos, inside: dict[str, int]) -> dict[int, dict[str, list[str]]]:
    found: dict[int, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for image_id, label, sha1 in zip(photos.ids, photos.labels.tolist(), photos.sha1, strict=True):
        if image_id in inside:
            found[label][sha1].append(image_id)
    return found


SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large]
LOOSE = settings(max_examples=150, deadline=None, suppress_health_check=SLOW)


@LOOSE
@given(photos=photo_sets(), k=st.integers(2, 6), seed=st.integers(0, 99), val=st.sampled_from(["pool", "audit"]))
def test_every_labelled_photo_once_and_copies_together(photos: Photos, k: int, seed: int, val: str) -> None:
    splits = {"train", "val"} if val == "pool" else {"train"}
    wanted = {image_id for image_id, split in zip(photos.ids, photos.splits, strict=True) if split in splits}
    different = {s for i, s in zip(photos.ids, photos.sha1, strict=True) if i in wanted}
    if len(different) < k:
        with pytest.raises(CompError, match=f"{len(different)} different labelled photos, {k} folds"):
            make(photos, k, seed, val)
        return
    made, _ = make(photos, k, seed, val)
    assert set(made) == wanted
    assert set(made.values()) <= set(range(k))
    fold_of: dict[str, set[int]] = defaultdict(set)
    for image_id, sha1 in zip(photos.ids, photos.sha1, strict=True):
        if image_id in made:
            fold_of[sha1].add(made[image_id])
    assert all(len(found) == 1 for found in fold_of.values())
    assert make(photos.shuffled(seed), k, seed, val)[0] == made


@LOOSE
@given(photos=photo_sets(disagree=False), k=st.integers(2, 6), seed=st.integers(0, 99))
def test_classes_are_in_every_fold_evenly_or_named(photos: Photos, k: int, seed: int) -> None:
    if len({s for s, split in zip(photos.sha1, photos.splits, strict=True) if split != "test"}) < k:
        return
    made, warnings = make(photos, k, seed)
    lacking = []
    found = groups_by_class(photos, made)
    for label in range(len(photos.classes)):
        groups = found[label]
        counts = Counter(made[image_id] for group in groups.values() for image_id in group)
        if len(groups) >= k:
            assert len(counts) == k
        if len(counts) < k:
            lacking.append(f"{label} ({sum(counts.values())})")
        largest = max(map(len, groups.values()), default=0)
        assert max(counts.values(), default=0) - min((counts[f] for f in range(k)), default=0) <= max(largest, 1)
    assert len(warnings) == bool(lacking)
    assert all(name in warnings[0] for name in lacking)


def test_classes_of_disagreeing_copies_still_reach_every_fold() -> None:
    """Copies with two labels are dealt out first; nearly always the other photos can then fill every fold."""
    rng = np.random.default_rng(1)
    lacking = 0
    for seed in range(400):
        k = int(rng.integers(2, 6))
        labels = np.repeat(np.arange(3), rng.integers(k, k + 4, 3))
        sha1 = [f"s{row}" for row in range(len(labels))]
        for a, b in rng.integers(0, len(labels), (3, 2)).tolist():
            sha1[a] = sha1[b]
        ids = tuple(f"{row:03}" for row in range(len(labels)))
        photos = Photos(ids, labels, ("train",) * len(ids), tuple(sha1), ("x", "y", "z"))
        made, warnings = make(photos, k, seed)
        for label, groups in groups_by_class(photos, made).items():
            if len({made[image_id] for group in groups.values() for image_id in group}) < k:
                lacking += len(groups) >= k
                assert f"{photos.classes[label]} (" in warnings[0]
    assert lacking <= 1


def test_fold_sizes_are_even() -> None:
    labels = np.repeat(np.arange(104), np.linspace(18, 220, 104).astype(int))
    ids = tuple(f"{row:05}" for row in range(len(labels)))
    photos = Photos(ids, labels, ("train",) * len(ids), ids, tuple(map(str, range(104))))
    sizes = Counter(make(photos, 5)[0].values())
    assert max(sizes.values()) - min(sizes.values()) <= 1


def test_the_seed_changes_the_split() -> None:
    labels = np.repeat(np.arange(3), 20)
    ids = tuple(f"{row:05}" for row in range(60))
    photos = Photos(ids, labels, ("train",) * 60, ids, ("a", "b", "c"))
    assert len({str(make(photos, 4, seed)[0]) for seed in range(10)}) == 10
    assert make(photos, 4, 3)[0] == make(photos, 4, 3)[0]


def test_a_known_split_stays_as_it_is() -> None:
    """A team's split must outlive versions of this program and of its libraries."""
    photos = Photos(tuple("abcdefghij"), np.array([0, 1] * 5), ("train",) * 10, tuple("abcdefghij"), ("x", "y"))
    assert "".join(str(fold) for fold in make(photos, 3, 7)[0].values()) == KNOWN


KNOWN = "1012200102"


def test_official_and_audit(tmp_path: Path) -> None:
    data = config(competition(tmp_path / "data/raw/tiny"))
    dataset = manifest.prepare(data, tmp_path)
    of = dict(zip(dataset.ids, dataset.splits, strict=True))
    official, warnings = folds.make(dataset, 5, 0, "official")
    assert {i: fold for i, fold in official.items() if of[i] == "train"} == {i: -1 for i in of if of[i] == "train"}
    assert {i: fold for i, fold in official.items() if of[i] == "val"} == {i: 0 for i in of if of[i] == "val"}
    assert warnings == []
    audit, _ = folds.make(dataset, 3, 0, "audit")
    assert {of[image_id] for image_id in audit} == {"train"}


def test_the_pair_inside_train_is_never_split(shared: Path, tmp_path: Path) -> None:
    data = config(shared / "data/tf-flowers", size=64, classes="classes.txt")
    dataset = manifest.prepare(data, tmp_path)
    for seed in range(20):
        made, warnings = folds.make(dataset, 5, seed, "pool")
        assert made["e45c5b120"] == made["4be5b983b"]
        assert len(made) == 2268 + 508
        assert warnings == []


# --- the file ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def tiny(tmp_path: Path) -> tuple[manifest.Dataset, DataConfig, Path]:
    rows = default_rows()
    rows["train"][0][0]["image"] = rows["train"][0][3]["image"]  # 000000000 and 000000003, both of class 0
    rows["train"][0][1]["id"] = b"NA"
    data = config(competition(tmp_path / "data/raw/tiny", rows), folds={"k": 3})
    return manifest.prepare(data, tmp_path), data, tmp_path / "folds/tiny.csv"


def test_what_is_saved_is_loaded(tiny: tuple[manifest.Dataset, DataConfig, Path]) -> None:
    dataset, data, path = tiny
    made, _ = folds.make(dataset, 3, 0, "pool")
    folds.save(path, made)
    assert folds.load(path, dataset, data) == made
    assert "NA" in made
    assert path.read_text().startswith("image_id,fold\n000000000,")
    path.write_text("\n".join(path.read_text().splitlines()[:1] + path.read_text().splitlines()[:0:-1]))
    assert folds.load(path, dataset, data) == made
    assert folds.digest(folds.load(path, dataset, data)) == folds.digest(made)
    for val in ("audit", "official"):
        other = data.model_copy(update={"val": val})
        made, _ = folds.make(dataset, 3, 0, val)  # type: ignore[arg-type]
        folds.save(path, made)
        assert folds.load(path, dataset, other) == made
        with pytest.raises(CompError):
            folds.load(path, dataset, data)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda made: made.pop("NA"), "1 photos are in no fold, e.g. 'NA'"),
        (lambda made: made.update({"stranger": 0}), "1 photos are not to be split, e.g. 'stranger'"),
        (lambda made: made.update({"000000000": (made["000000003"] + 1) % 3}), "copies of one photo are in two folds"),
        (lambda made: made.update({"NA": "one"}), "the fold of image 'NA' is 'one', not a number"),
        (lambda made: made.update({"NA": "--1"}), "is '--1', not a number"),
        (lambda made: made.update({"NA": "-2"}), "is '-2', not a number"),
        (lambda made: made.update({"NA": "1.0"}), "is '1.0', not a number"),
        (lambda made: made.update({"NA": "9" * 5000}), "not a number"),
        (lambda made: made.update({"NA": 3}), "has folds 0, 1, 2, 3, the data set's config says 3"),
        (lambda made: made.update({i: 1 for i, f in made.items() if f == 2}), "has folds 0, 1, the data"),
    ],
)
def test_a_file_of_another_set_is_one_line(
    tiny: tuple[manifest.Dataset, DataConfig, Path], change: Any, words: str
) -> None:
    dataset, data, path = tiny
    made: dict[str, Any] = dict(folds.make(dataset, 3, 0, "pool")[0])
    change(made)
    write_csv(path, ("image_id", "fold"), made.items())
    with pytest.raises(CompError, match=words) as caught:
        folds.load(path, dataset, data)
    assert caught.value.code == Exit.DATA
    assert "comp folds --data tiny" in caught.value.fix


def test_a_photo_twice_is_one_line(tiny: tuple[manifest.Dataset, DataConfig, Path]) -> None:
    dataset, data, path = tiny
    made = folds.make(dataset, 3, 0, "pool")[0]
    write_csv(path, ("image_id", "fold"), [*made.items(), ("NA", 0)])
    with pytest.raises(CompError, match="image 'NA' is there twice"):
        folds.load(path, dataset, data)


def test_bad_photos_are_in_no_fold() -> None:
    photos = Photos(tuple("abcdef"), np.array([0, 1] * 3), ("train",) * 6, tuple("abcdef"), ("x", "y"), bad=("c",))
    assert set(make(photos, 2)[0]) == set("abdef")
