"""The CSV and its check, the blend's averaging, names and the record."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from worlds import world

from comp import files
from comp.config import Submission
from comp.ensembling import audit, choosing, members, methods, rules, submission, table
from comp.errors import CompError, Exit

HARD = ["NA", "1e5", "007", "nan", 'a"b', "c,d", "e;f", "日本", " g "]


def _form(style: str = "label") -> table.Form:
    header = ("id", "u", "v", "w") if style == "probs" else ("id", "label")
    return table.Form(tuple(HARD), header, style, ("u", "v", "w"))


def _probs() -> np.ndarray:
    return np.random.default_rng(0).dirichlet(np.ones(3), size=len(HARD))


@pytest.mark.parametrize("style", ["label", "name", "probs"])
def test_written_and_read_back(tmp_path: Path, style: str) -> None:
    """Ids survive as they are; the labels in the file are the arg max."""
    path, form, probs = tmp_path / "s.csv", _form(style), _probs()
    table.write(path, form, table.text(form, probs))
    _, rows = files.read_csv(path)
    assert [row[0] for row in rows] == HARD
    assert table.labels_in(path, form).tolist() == probs.argmax(1).tolist()


def _lines(change: Callable[[list[str]], Any]) -> Callable[[list[str]], list[str]]:
    def apply(lines: list[str]) -> list[str]:
        copied = list(lines)
        return change(copied) or copied

    return apply


@pytest.mark.parametrize(
    ("style", "change", "line"),
    [
        ("label", _lines(lambda x: x.__delitem__(-1)), "has 8 rows for 9 test photos"),
        ("label", _lines(lambda x: x.append(x[1])), "has 10 rows for 9"),
        ("label", _lines(lambda x: x.__setitem__(1, x[2])), "has 9 rows for 9 test photos, e.g. 'NA'"),
        ("label", _lines(lambda x: x.__setitem__(slice(1, 3), [x[2], x[1]])), "line 2 is '1e5', the sample"),
        ("label", _lines(lambda x: x.__setitem__(1, "NA,3")), "which is no label"),
        ("label", _lines(lambda x: x.__setitem__(1, "NA,01")), "which is no label"),
        ("label", _lines(lambda x: x.__setitem__(1, "NA,-1")), "which is no label"),
        ("label", _lines(lambda x: x.__setitem__(1, "NA")), "line 2 has 1 fields"),
        ("label", _lines(lambda x: x.__setitem__(0, "id,class")), "has header id,class"),
        ("name", _lines(lambda x: x.__setitem__(1, "NA,0")), "which is no label"),
        ("probs", _lines(lambda x: x.__setitem__(1, "NA,0.5,0.6,0.1")), "no probabilities that sum to 1"),
        ("probs", _lines(lambda x: x.__setitem__(1, "NA,nan,0.5,0.5")), "no probabilities that sum to 1"),
        ("probs", _lines(lambda x: x.__setitem__(1, "NA,high,0.5,0.5")), "holds text"),
    ],
)
def test_check_finds(tmp_path: Path, style: str, change: Callable[[list[str]], list[str]], line: str) -> None:
    path, form = tmp_path / "s.csv", _form(style)
    text = table.text(form, _probs()).decode()
    path.write_text("\n".join(change(text.splitlines())) + "\n")
    with pytest.raises(CompError) as caught:
        table.check(path, form)
    assert line in str(caught.value)
    assert caught.value.code == Exit.FILE


def test_a_file_that_fails_its_check_does_not_stay(tmp_path: Path) -> None:
    path = tmp_path / "s.csv"
    with pytest.raises(CompError):
        table.write(path, _form(), b"id,label\n")
    assert not path.exists()


def test_sample_gives_the_order(tmp_path: Path) -> None:
    sample = tmp_path / "sample.csv"
    files.write_csv(sample, ["id", "label"], [["b", "0"], ["a", "0"]])
    form = table.form(sample, Submission(), ["u", "v"], ["a", "b"])
    assert form.ids == ("b", "a")
    files.write_csv(sample, ["id", "v", "u"], [["b", "0", "1"], ["a", "0", "1"]])
    form = table.form(sample, Submission(values="probs"), ["u", "v"], ["a", "b"])
    assert table.rows(form, np.array([[0.25, 0.75], [1.0, 0.0]])) == [["b", "0.75", "0.25"], ["a", "0", "1"]]


@pytest.mark.parametrize(
    ("header", "rows", "line"),
    [
        (["id", "class"], [["a", "0"], ["b", "0"]], "has columns id,class; the config says id,label"),
        (["label", "id"], [["0", "a"], ["0", "b"]], "has columns label,id"),
        (["id", "label"], [["a", "0"]], "lacks test photo 'b'"),
        (["id", "label"], [["a", "0"], ["b", "0"], ["c", "0"]], "asks for 'c', which is no test photo"),
        (["id", "label"], [["a", "0"], ["a", "0"], ["b", "0"]], "the id 'a' is there twice"),
    ],
)
def test_wrong_sample(tmp_path: Path, header: list[str], rows: list[list[str]], line: str) -> None:
    sample = tmp_path / "sample.csv"
    files.write_csv(sample, header, rows)
    with pytest.raises(CompError) as caught:
        table.form(sample, Submission(), ["u", "v"], ["a", "b"])
    assert line in str(caught.value)
    assert caught.value.code == Exit.DATA


def test_average_is_the_rule_per_fold(tmp_path: Path) -> None:
    made = world(tmp_path)
    for name in "ab":
        made.run(name)
    choice = choosing.choose(tmp_path, made.truth, ())
    read = members.load(tmp_path, made.truth, choice, "flip", "flip")
    blend = submission.blend(read, choice, made.truth, methods.method("rank"), "macro_f1")
    by_fold = [rules.apply("rank", [one.test[fold].probs for one in read]) for fold in range(5)]
    assert np.allclose(blend.probs, np.mean(by_fold, axis=0), rtol=0, atol=1e-15)
    pooled = rules.apply("rank", [one.test[None if one.imported else 0].probs for one in read])
    assert not np.allclose(blend.probs, pooled)


def test_members_in_any_order_give_the_same_bytes(tmp_path: Path) -> None:
    made = world(tmp_path)
    for n in range(4):
        made.run(f"m{n}")
    texts = set()
    for names in (["m0", "m1", "m2", "m3"], ["m3", "m1", "m0", "m2"]):
        choice = choosing.choose(tmp_path, made.truth, names)
        read = members.load(tmp_path, made.truth, choice, "flip", "flip")
        probs = submission.blend(read, choice, made.truth, methods.method("mean"), "macro_f1").probs
        texts.add(probs.tobytes())
    assert len(texts) == 1


def test_lead_of_the_best_member(tmp_path: Path) -> None:
    made = world(tmp_path, photos=900)
    for name, skill in (("weak", 0.0), ("poor", 0.0), ("good", 4.0)):
        made.run(name, skill=skill)
    choice = choosing.choose(tmp_path, made.truth, ())
    read = members.load(tmp_path, made.truth, choice, "flip", "flip")
    for metric in ("macro_f1", "log_loss"):
        blend = submission.blend(read, choice, made.truth, methods.method("mean"), metric)
        lead, best = blend.lead_of_best(), blend.best_member()
        assert lead is not None
        assert best is not None
        assert read[best].name == "good"
        assert blend.cross is not None
        assert lead.value == pytest.approx(abs(blend.alone[best].value - blend.cross.cross_fitted))
        assert lead.value > 0
    alone = submission.blend(read[:1], choice, made.truth, methods.method("mean"), "macro_f1")
    assert alone.lead_of_best() is None


def test_names() -> None:
    assert submission.default_name(["a", "b"], "vote:weighted", "flip") == "a+b.vote-weighted.flip"
    long = [f"a-long-name-{n}" for n in range(9)]
    assert submission.default_name(long, "vote", "flip") != submission.default_name(long[1:], "vote", "flip")
    assert len(submission.default_name(["x" * 59], "power:2", "v-" + "y" * 90)) <= 100


def test_looks_are_counted(tmp_path: Path) -> None:
    assert audit.count(tmp_path, "a.csv", "1", "macro_f1", 0.5) == 1
    assert audit.count(tmp_path, "b.csv", "1", "macro_f1", 0.5) == 1
    assert audit.count(tmp_path, "b.csv", "2", "macro_f1", 0.5) == 2
    assert audit.count(tmp_path, "b.csv", "2", "accuracy", 0.5) == 3


def test_code_commit() -> None:
    found = submission.code_commit()
    assert set(found) == {"version", "commit", "changed"}
    assert found["commit"] is None or len(found["commit"]) == 40
