"""comp.predictions: one format, checked at both ends."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from comp import predictions
from comp.errors import CompError, Exit
from comp.predictions import Predictions


def draw(ids: list[str], classes: int = 3, seed: int = 0, **header: Any) -> Predictions:
    probs = np.random.default_rng(seed).dirichlet(np.ones(classes), len(ids)).astype(np.float32)
    return Predictions(np.array(ids), probs, np.array([f"c{c}" for c in range(classes)]), header)


def test_what_is_saved_is_loaded_and_the_bytes_are_the_same_each_time(tmp_path: Path) -> None:
    made = draw(["NA", "007", 'a"b,c'], run="r", fold=1)
    made.save(tmp_path / "a.npz")
    made.save(tmp_path / "b.npz")
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    loaded = predictions.load(tmp_path / "a.npz")
    assert loaded.ids.tolist() == ["NA", "007", 'a"b,c']
    assert np.array_equal(loaded.probs, made.probs)
    assert loaded.header == {"run": "r", "fold": 1}


def test_align_joins_by_id_and_refuses_other_ids() -> None:
    made = draw(["a", "b", "c"])
    turned = made.align(["c", "a", "b"], "m")
    assert turned.ids.tolist() == ["c", "a", "b"]
    assert np.array_equal(turned.probs, made.probs[[2, 0, 1]])
    assert turned.digest() == made.digest()
    with pytest.raises(CompError, match=r"no prediction for 1 of 4 ids, e\.g\. 'd'"):
        made.align(["a", "b", "c", "d"], "m")
    with pytest.raises(CompError, match=r"1 ids that are not asked for, e\.g\. 'c'"):
        made.align(["a", "b"], "m")


def test_concatenate_refuses_an_id_in_two_folds_and_keeps_the_common_header() -> None:
    parts = [draw(["a"], run="r", fold=0), draw(["b"], run="r", fold=1)]
    together = predictions.concatenate(parts, "r")
    assert together.ids.tolist() == ["a", "b"]
    assert together.header == {"run": "r"}
    with pytest.raises(CompError, match="id 'a' is there 2 times"):
        predictions.concatenate([parts[0], parts[0]], "r")


def spoiled(change: str) -> Predictions:
    made = draw(["a", "b"])
    probs, ids, classes = made.probs.copy(), made.ids.copy(), made.classes.copy()
    match change:
        case "nan":
            probs[1, 0] = np.nan
        case "sum":
            probs[1] *= 2
        case "negative":
            probs[1] = [-0.5, 1.0, 0.5]
        case "id":
            ids[1] = "a"
        case "class":
            classes[1] = "c0"
        case "shape":
            probs = probs[:, :2]
    return Predictions(ids, probs, classes)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("nan", "id 'b' are not finite"),
        ("sum", "id 'b' sum to 2"),
        ("negative", "id 'b' has a negative"),
        ("id", "id 'a' is there 2 times"),
        ("class", "class 'c0' is there 2 times"),
        ("shape", "shapes do not fit"),
    ],
)
def test_what_breaks_the_format_is_neither_saved_nor_loaded(tmp_path: Path, change: str, words: str) -> None:
    bad, path = spoiled(change), tmp_path / "a.npz"
    with pytest.raises(CompError, match=words):
        bad.save(path)
    assert not path.exists()
    np.savez(path, ids=bad.ids, probs=bad.probs, classes=bad.classes)
    with pytest.raises(CompError, match=words) as caught:
        predictions.load(path)
    assert caught.value.code == Exit.FILE


class Planted:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (exec, ("raise SystemExit('code ran')",))


def test_no_code_runs_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(
        path,
        ids=np.array([Planted()], dtype=object),
        probs=np.ones((1, 2), np.float32) / 2,
        classes=np.array(["a", "b"]),
    )
    with pytest.raises(CompError, match="is not a prediction file"):
        predictions.load(path)
    path.write_bytes(pickle.dumps(Planted()))
    with pytest.raises(CompError, match="is not a prediction file"):
        predictions.load(path)


def test_every_truncation_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    draw(["a", "b"]).save(path)
    whole = path.read_bytes()
    for length in range(0, len(whole), 37):
        path.write_bytes(whole[:length])
        with pytest.raises(CompError, match="is not a prediction file"):
            predictions.load(path)


def test_a_foreign_file_without_header_joins(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", ids=np.array(["x"]), probs=np.array([[0.5, 0.5]]), classes=np.array(["a", "b"]))
    loaded = predictions.load(tmp_path / "a.npz")
    assert loaded.header == {}
    assert loaded.probs.dtype == np.float32
