"""`comp import`: foreign CSVs become members or one line of refusal."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from worlds import World

from comp import files, predictions
from comp.commands.import_ import import_
from comp.commands.submit import submit
from comp.errors import CompError, Exit


def _probs(made: World, ids: list[str], seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.dirichlet(np.ones(5), size=len(ids))


def _table(made: World, path: Path, ids: list[str], probs: np.ndarray, columns: list[str] | None = None) -> Path:
    rows = [[i, *map(repr, row)] for i, row in zip(ids, probs.tolist(), strict=True)]
    files.write_csv(path, ["id", *(columns or made.truth.classes)], rows)
    return path


def test_hard_labels_by_row_wise_majority(drawn: Callable[..., World], tmp_path: Path) -> None:
    """Three foreign submissions, 28,000 rows: where two of three agree, that is the answer."""
    made = drawn(test=28_000, photos=10, classes=10)
    rng = np.random.default_rng(0)
    ids = list(made.truth.test_ids)
    votes = rng.integers(0, 10, (3, len(ids)))
    for n in range(3):
        order = rng.permutation(len(ids))
        path = tmp_path / f"theirs{n}.csv"
        files.write_csv(path, ["id", "label"], [[ids[i], votes[n, i]] for i in order])
        import_(str(path), data="drawn")
    done = submit(["theirs0", "theirs1", "theirs2"], data="drawn")
    _, rows = files.read_csv(done.path)
    answer = dict(rows)
    counts = np.stack([(votes == c).sum(0) for c in range(10)], axis=1)
    clear = counts.max(1) >= 2
    assert clear.sum() > 5000
    assert (~clear).sum() > 5000
    for i in np.flatnonzero(clear):
        assert answer[ids[i]] == str(counts[i].argmax())
    assert done.record["estimate"] is None


def test_unknown_estimate_and_fixed_rules_only(
    drawn: Callable[..., World], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = drawn()
    made.run("a")
    ids = list(made.truth.test_ids)
    import_(str(_table(made, tmp_path / "theirs.csv", ids, _probs(made, ids))), data="drawn")
    done = submit(["a", "theirs"], data="drawn")
    assert done.blend.folds == (0, 1, 2, 3, 4)
    assert "estimate: unknown, theirs has no out-of-fold rows" in capsys.readouterr().out
    with pytest.raises(CompError, match="rule select: learns from out-of-fold rows, and theirs has none"):
        submit(["a", "theirs"], data="drawn", rule="select")


def test_with_out_of_fold_rows(drawn: Callable[..., World], tmp_path: Path) -> None:
    made = drawn()
    made.run("a")
    ids, labelled = list(made.truth.test_ids), list(made.truth.labels)
    import_(str(_table(made, tmp_path / "theirs.csv", ids, _probs(made, ids))), data="drawn")
    oof = _table(made, tmp_path / "oof.csv", labelled, _probs(made, labelled))
    import_(str(oof), data="drawn", name="theirs", split="oof")
    assert submit(["a", "theirs"], data="drawn", rule="select").record["estimate"]["photos"] == 300


def test_columns_in_any_order_and_by_index(drawn: Callable[..., World], tmp_path: Path) -> None:
    made = drawn()
    ids = list(made.truth.test_ids)
    probs = _probs(made, ids)
    names = list(made.truth.classes)
    plain = import_(str(_table(made, tmp_path / "a.csv", ids, probs)), data="drawn")
    turned = import_(str(_table(made, tmp_path / "b.csv", ids[::-1], probs[::-1, ::-1], names[::-1])), data="drawn")
    indexed = import_(str(_table(made, tmp_path / "c.csv", ids, probs, [*"01234"])), data="drawn")
    assert plain.classes.tolist() == names
    for other in (turned, indexed):
        assert np.array_equal(plain.probs, other.probs)
        assert np.array_equal(plain.ids, other.ids)
    stored = predictions.load(tmp_path / "runs/drawn/a/imported/test.npz")
    assert np.array_equal(stored.probs, plain.probs)


def test_normalize(drawn: Callable[..., World], tmp_path: Path) -> None:
    made = drawn()
    ids = list(made.truth.test_ids)
    probs = _probs(made, ids)
    scaled = probs.copy()
    scaled[7] *= 3
    path = str(_table(made, tmp_path / "a.csv", ids, scaled))
    with pytest.raises(CompError, match=rf"id '{ids[7]}' sum to 3, not 1 \(1 such rows\); --normalize"):
        import_(path, data="drawn")
    assert not (tmp_path / "runs/drawn/a").exists()
    assert np.allclose(import_(path, data="drawn", normalize=True).probs, probs, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda lines: lines[:-1], "has no prediction for 1 of 40 ids"),
        (lambda lines: [*lines, lines[1]], "is there twice"),
        (lambda lines: [*lines, "stranger" + lines[1][5:]], "'stranger"),
        (lambda lines: ["image" + lines[0][2:], *lines[1:]], "its first column is 'image'"),
        (lambda lines: [lines[0].replace("class 3", "rose"), *lines[1:]], "has no column for class 'class 3'"),
        (lambda lines: [lines[0], lines[1].rsplit(",", 1)[0] + ",nan", *lines[2:]], "not finite"),
        (lambda lines: [lines[0], lines[1].rsplit(",", 1)[0] + ",-1", *lines[2:]], "negative"),
        (lambda lines: [lines[0], lines[1].rsplit(",", 1)[0] + ",high", *lines[2:]], "holds text"),
        (lambda lines: lines[:1], "has no rows"),
    ],
)
def test_refused(
    drawn: Callable[..., World], tmp_path: Path, change: Callable[[list[str]], list[str]], line: str
) -> None:
    made = drawn()
    ids = list(made.truth.test_ids)
    path = _table(made, tmp_path / "a.csv", ids, _probs(made, ids))
    path.write_text("\n".join(change(path.read_text().splitlines())) + "\n")
    with pytest.raises(CompError, match=line) as caught:
        import_(str(path), data="drawn")
    assert caught.value.code == Exit.DATA
    assert not (tmp_path / "runs/drawn/a").exists()


@pytest.mark.parametrize("label", ["5", "-1", "1.0", "", "rose"])
def test_labels_out_of_range(drawn: Callable[..., World], tmp_path: Path, label: str) -> None:
    made = drawn()
    rows = [[i, "0"] for i in made.truth.test_ids]
    rows[4][1] = label
    files.write_csv(tmp_path / "a.csv", ["id", "label"], rows)
    with pytest.raises(CompError, match=f"id '{rows[4][0]}' has the label '{label}'"):
        import_(str(tmp_path / "a.csv"), data="drawn")


def test_class_names_as_labels(drawn: Callable[..., World], tmp_path: Path) -> None:
    made = drawn(yaml={"submission": {"values": "name"}})
    files.write_csv(tmp_path / "a.csv", ["id", "label"], [[i, "class 2"] for i in made.truth.test_ids])
    assert (import_(str(tmp_path / "a.csv"), data="drawn").probs.argmax(1) == 2).all()


def test_not_over_a_run(drawn: Callable[..., World], tmp_path: Path) -> None:
    made = drawn()
    made.run("a")
    ids = list(made.truth.test_ids)
    with pytest.raises(CompError, match="run a: is a run trained here"):
        import_(str(_table(made, tmp_path / "a.csv", ids, _probs(made, ids))), data="drawn")
