"""Members: what must be there, what must agree, and that each mistake is one line naming member and id."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from worlds import World, world

from comp import files, predictions
from comp.ensembling import choosing, members
from comp.ensembling.freshness import Digests
from comp.ensembling.truth import truth_of
from comp.errors import CompError, Exit
from comp.predictions import Predictions


def _load(made: World, *names: str, splits: tuple[str, ...] = ("oof", "test")) -> list[members.Member]:
    choice = choosing.choose(made.home, made.truth, names)
    return members.load(made.home, made.truth, choice, "flip", "flip", splits)


def _change(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Rewrite a prediction file without the checks of `Predictions.save`, as a foreign program would."""
    read = predictions.load(path)
    arrays = {"ids": read.ids, "probs": read.probs.copy(), "classes": read.classes}
    change(arrays)
    with np.load(path, allow_pickle=False) as old:
        header = old["header"]
    with path.open("wb") as file:
        np.savez(file, header=header, **arrays)


def _missing(a: dict[str, Any]) -> None:
    a["ids"], a["probs"] = a["ids"][1:], a["probs"][1:]


def _double(a: dict[str, Any]) -> None:
    a["ids"] = np.concatenate([a["ids"], a["ids"][:1]])
    a["probs"] = np.concatenate([a["probs"], a["probs"][:1]])


def _foreign(a: dict[str, Any]) -> None:
    a["ids"] = np.concatenate([a["ids"], ["stranger"]])
    a["probs"] = np.concatenate([a["probs"], a["probs"][:1]])


def _nan(a: dict[str, Any]) -> None:
    a["probs"][3, 1] = np.nan


def _sums(a: dict[str, Any]) -> None:
    a["probs"][3] *= 1.01


def _negative(a: dict[str, Any]) -> None:
    a["probs"][3, 0] -= 2.0


def _classes(a: dict[str, Any]) -> None:
    a["classes"] = np.array([f"other {c}" for c in range(5)])


def _swapped(a: dict[str, Any]) -> None:
    a["classes"] = a["classes"][::-1]


def _fewer(a: dict[str, Any]) -> None:
    a["classes"], a["probs"] = a["classes"][:4], a["probs"][:, :4] / a["probs"][:, :4].sum(1, keepdims=True)


@pytest.mark.parametrize("split", ["oof", "test"])
@pytest.mark.parametrize(
    ("change", "what", "row"),
    [
        (_missing, "has no prediction for 1 of", 0),
        (_double, "is there 2 times", 0),
        (_foreign, "'stranger'", None),
        (_nan, "are not finite", 3),
        (_sums, "sum to 1.01", 3),
        (_negative, "negative probability", 3),
        (_classes, "has other classes, e.g. 'other 0'", None),
        (_swapped, "classes in another order", None),
        (_fewer, "has 4 classes, the data set 5", None),
    ],
)
def test_each_mistake_names_member_and_id(
    tmp_path: Path, split: str, change: Callable[[dict[str, Any]], None], what: str, row: int | None
) -> None:
    made = world(tmp_path)
    made.run("good")
    path = made.run("bad") / f"fold2/{split}.flip.npz"
    image_id = predictions.load(path).ids[0 if row is None else row]
    _change(path, change)
    with pytest.raises(CompError) as caught:
        _load(made, "good", "bad")
    line = str(caught.value)
    assert caught.value.code == Exit.FILE
    assert "bad/fold2" in line
    assert split in line
    assert what in line
    assert "\n" not in line
    if row is not None:
        assert f"'{image_id}'" in line


def test_rows_are_joined_by_id(tmp_path: Path) -> None:
    made = world(tmp_path)
    made.run("a")
    (one,) = _load(made, "a")
    for fold in range(5):
        stored = predictions.load(tmp_path / f"runs/drawn/a/fold{fold}/test.flip.npz")
        assert stored.ids.tolist() != list(made.truth.test_ids)  # drawn in another order
        assert np.array_equal(one.for_fold(fold).probs, stored.align(made.truth.test_ids, "").probs)
    assert one.oof is not None
    assert set(one.oof.ids.tolist()) == set(made.truth.labels)


def test_sheet_on_common_photos(tmp_path: Path) -> None:
    made = world(tmp_path)
    made.run("a")
    foreign = list(made.truth.labels)[10:100]
    probs = np.full((90, 5), 0.2, dtype=np.float32)
    folder = choosing.folder_of(tmp_path, "drawn", "theirs")
    Predictions(np.array(foreign), probs, np.array(made.truth.classes), {}).save(folder / "oof.npz")
    test = np.full((40, 5), 0.2, dtype=np.float32)
    Predictions(np.array(made.truth.test_ids), test, np.array(made.truth.classes), {}).save(folder / "test.npz")
    read = _load(made, "a", "theirs")
    sheet = members.common_sheet(read, made.truth)
    assert sheet is not None
    assert sheet.ids == sorted(foreign)
    assert sheet.labels.tolist() == [made.truth.labels[i] for i in sheet.ids]
    assert sheet.folds.tolist() == [made.truth.folds[i] for i in sheet.ids]
    assert sheet.total == 300
    assert read[1].imported
    assert np.array_equal(read[1].for_fold(4).probs, test)


def test_imported_oof_of_strangers(tmp_path: Path) -> None:
    made = world(tmp_path)
    folder = choosing.folder_of(tmp_path, "drawn", "theirs")
    probs = np.full((40, 5), 0.2, dtype=np.float32)
    for split in ("oof", "test"):  # test photos are no out-of-fold photos
        Predictions(np.array(made.truth.test_ids), probs, np.array(made.truth.classes), {}).save(
            folder / f"{split}.npz"
        )
    with pytest.raises(CompError, match=r"member theirs \(oof\): predicts 40 ids that are no labelled photos"):
        _load(made, "theirs")


def test_oof_and_test_of_one_fold_share_a_checkpoint(tmp_path: Path) -> None:
    made = world(tmp_path)
    folder = made.run("a")
    made.run("a", header={"checkpoint": "1" * 64}, splits=("test",))
    for path in folder.rglob("model.safetensors"):
        path.unlink()  # the weights are gone: only the files can disagree with each other
    with pytest.raises(CompError, match="were made with another checkpoint"):
        _load(made, "a")


def test_another_runs_file(tmp_path: Path) -> None:
    made = world(tmp_path)
    made.run("a")
    made.run("b", seed=1)
    (tmp_path / "runs/drawn/b/fold0/oof.flip.npz").write_bytes(
        (tmp_path / "runs/drawn/a/fold0/oof.flip.npz").read_bytes()
    )
    with pytest.raises(CompError, match=r"member b/fold0 \(oof\): is stale"):
        _load(made, "b")
    (tmp_path / "runs/drawn/b/fold0/model.safetensors").unlink()
    with pytest.raises(CompError, match=r"member b/fold0 \(oof\): is another run's: it says a"):
        _load(made, "b")


def test_pixels_agree_within_a_run(tmp_path: Path) -> None:
    made = world(tmp_path)
    made.run("a", folds=[0, 1, 2, 3], header={"pixels": "2" * 64})
    made.run("a", folds=[4], header={"pixels": "3" * 64})
    with pytest.raises(CompError, match="were made with another pixels"):
        _load(made, "a")


def test_a_changed_weights_file_is_noticed_though_its_digest_was_remembered(tmp_path: Path) -> None:
    made = world(tmp_path)
    folder = made.run("a")
    _load(made, "a")
    assert (tmp_path / "runs/drawn/.digests.json").exists()
    weights = folder / "fold1/model.safetensors"
    weights.write_bytes(bytes(reversed(weights.read_bytes())))  # the same size
    with pytest.raises(CompError, match="is stale"):
        _load(made, "a")


def test_digests_are_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "runs/drawn/a/fold0/model.safetensors"
    files.write_bytes(path, b"weights")
    first = Digests(tmp_path, "drawn")
    assert first.of(path) == files.digest_bytes(b"weights")
    first.save()
    monkeypatch.setattr(files, "digest_file", lambda path: pytest.fail("was digested again"))
    assert Digests(tmp_path, "drawn").of(path) == files.digest_bytes(b"weights")


def test_torn_digests_are_no_obstacle(tmp_path: Path) -> None:
    path = tmp_path / "runs/drawn/a/fold0/model.safetensors"
    files.write_bytes(path, b"weights")
    (tmp_path / "runs/drawn/.digests.json").write_text('{"a/fold0/model.safetensors": [7, "x"]}')
    assert Digests(tmp_path, "drawn").of(path) == files.digest_bytes(b"weights")


def test_choice(tmp_path: Path) -> None:
    made = world(tmp_path)
    made.run("a")
    made.run("b", folds=[0, 1])
    assert [run.name for run in choosing.choose(tmp_path, made.truth, ()).runs] == ["a"]
    with pytest.raises(CompError, match=r"did you mean 'a'|choose from a, b"):
        choosing.choose(tmp_path, made.truth, ["c"])
    with pytest.raises(CompError, match="is named twice"):
        choosing.choose(tmp_path, made.truth, ["a", "a"])
    made.run("c", folds=[2], splits=("test",))
    with pytest.raises(CompError, match="has no finished fold"):
        choosing.choose(tmp_path, made.truth, ["c"])


def test_truth_of_a_manifest() -> None:
    class Dataset:
        name = "x"
        ids = ("a", "b", "c", "d")
        labels = (0, 1, -1, 1)
        splits = ("train", "train", "test", "val")
        classes = ("u", "v")
        sha1 = ("1", "1", "2", "3")
        data_digest = "d"
        bad = ()

    truth = truth_of(Dataset(), {"a": 0, "b": -1}, "f", audit=True)  # type: ignore[arg-type]
    assert truth.labels == {"a": 0}
    assert truth.test_ids == ("c",)
    assert truth.val == {"d": 1}
    assert truth.groups["a"] == truth.groups["b"]
    assert truth.numbers == [0]
    pooled = truth_of(Dataset(), {"a": 0, "b": 0, "d": 1}, "f")  # type: ignore[arg-type]
    assert pooled.val == {}
    assert pooled.labels == {"a": 0, "b": 1, "d": 1}
