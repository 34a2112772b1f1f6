"""`comp explain` and `comp verify`: what leads back, and what is found out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from worlds import World

from comp import files, predictions
from comp.commands import verify as verifying
from comp.commands.explain import explain
from comp.commands.submit import submit
from comp.commands.verify import verify
from comp.ensembling import methods
from comp.errors import CompError, Exit
from comp.predictions import Predictions


def _made(drawn: Callable[..., World], rule: str = "vote") -> tuple[World, Path]:
    made = drawn()
    made.run("a", skill=1.0)
    made.run("b", skill=2.0)
    made.run("c", skill=1.5)
    return made, submit(data="drawn", rule=rule, name="mine").path


@pytest.mark.parametrize("rule", ["vote", "rank", "vote:weighted", *methods.METHODS])
def test_every_rule_is_made_again(drawn: Callable[..., World], rule: str) -> None:
    _, path = _made(drawn, rule)
    assert verify(str(path))["rule"]["spec"] == rule


def test_changed_csv(drawn: Callable[..., World]) -> None:
    _, path = _made(drawn)
    text = path.read_text().splitlines()
    path.write_text("\n".join([*text[:-1], text[-1][:-1] + str((int(text[-1][-1]) + 1) % 5)]) + "\n")
    for command in (verify, explain):
        with pytest.raises(CompError, match="is not the file its JSON speaks of") as caught:
            command(str(path))
        assert caught.value.code == Exit.FILE


def test_forged_csv_and_record(drawn: Callable[..., World]) -> None:
    """Who changes the CSV and its digest in the record is still found out, with the line."""
    _, path = _made(drawn)
    lines = path.read_text().splitlines()
    lines[3] = lines[3][:-1] + str((int(lines[3][-1]) + 1) % 5)
    path.write_text("\n".join(lines) + "\n")
    record = json.loads(path.with_suffix(".json").read_text())
    record["csv"]["sha256"] = files.digest_file(path)
    files.write_json(path.with_suffix(".json"), record)
    with pytest.raises(CompError, match="1 lines differ, first line 4"):
        verify(str(path))


def test_forged_estimate(drawn: Callable[..., World]) -> None:
    _, path = _made(drawn)
    record = json.loads(path.with_suffix(".json").read_text())
    record["estimate"]["cross_fitted"] += 0.01
    files.write_json(path.with_suffix(".json"), record)
    with pytest.raises(CompError, match="its estimate is"):
        verify(str(path))


def test_another_prediction_file(drawn: Callable[..., World]) -> None:
    made, path = _made(drawn)
    file = made.home / "runs/drawn/b/fold3/test.flip.npz"
    read = predictions.load(file)
    probs = read.probs.copy()
    probs[0] = np.roll(probs[0], 1)
    Predictions(read.ids, probs, read.classes, read.header).save(file)
    with pytest.raises(CompError, match=r"member b/fold3: test\.flip\.npz is not the file that was blended"):
        verify(str(path))


def test_other_labels_now(drawn: Callable[..., World], monkeypatch: pytest.MonkeyPatch) -> None:
    import dataclasses

    from comp.commands import truths

    made, path = _made(drawn)
    home, config, dataset, truth = truths.of_set("drawn")
    changed = dataclasses.replace(truth, data_digest="9" * 64)
    monkeypatch.setattr(truths, "of_set", lambda name, settings=(), **more: (home, config, dataset, changed))
    with pytest.raises(CompError, match="its labels or splits changed since") as caught:
        verify(str(path))
    assert caught.value.code == Exit.DATA
    assert made.truth.data_digest != changed.data_digest


def test_deep_compares_checkpoints(drawn: Callable[..., World], monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints that give the file's probabilities pass; one that gives others is named, with the photo."""
    made, path = _made(drawn)
    asked: list[tuple[str, int, int]] = []
    wrong: list[str] = []

    def evaluate(home: Path, config: object, run: str, fold: int, ids: list[str], views: str) -> np.ndarray:
        asked.append((run, fold, len(ids)))
        read = predictions.load(made.home / f"runs/drawn/{run}/fold{fold}/test.flip.npz")
        probs = read.align(made.truth.test_ids, "").take(ids).probs + np.float32(1e-4)
        return np.roll(probs, 1, axis=1) if run in wrong else probs

    monkeypatch.setattr(verifying, "_evaluate", evaluate)
    verify(str(path), deep=True)
    assert asked == [(run, fold, 20) for run in "abc" for fold in range(5)]
    wrong.append("b")
    with pytest.raises(CompError, match=r"member b/fold0: photo '[0-9a-f]+': the checkpoint's probabilities differ"):
        verify(str(path), deep=True)


def test_explain_shows_every_digest(drawn: Callable[..., World], capsys: pytest.CaptureFixture[str]) -> None:
    _, path = _made(drawn, "select")
    capsys.readouterr()
    record = explain(str(path))
    said = capsys.readouterr().out
    for member in record["members"]:
        for file in member["files"]:
            assert file["digest"][:8] in said
            assert file["checkpoint"][:8] in said
    assert "weights a " in said
    assert record["csv"]["sha256"][:12] in said


@pytest.mark.parametrize("text", ["{}", "[1]", "not json", '{"record": 99}'])
def test_no_record(drawn: Callable[..., World], text: str) -> None:
    _, path = _made(drawn)
    path.with_suffix(".json").write_text(text)
    with pytest.raises(CompError, match="is not"):
        explain(str(path))
    path.with_suffix(".json").unlink()
    with pytest.raises(CompError, match="not found"):
        verify(str(path))


@pytest.mark.parametrize("part", ["rule", "views", "members", "csv"])
def test_a_record_edited_by_hand_is_one_line(drawn: Callable[..., World], part: str) -> None:
    made = drawn()
    made.run("a")
    path = submit(["a"], data=made.truth.data).path
    beside = path.with_suffix(".json")
    record = json.loads(beside.read_text())
    record[part] = {} if part != "members" else [{}]
    beside.write_text(json.dumps(record))
    for command in (explain, verify):
        with pytest.raises(CompError) as caught:
            command(str(path))
        assert caught.value.code is Exit.FILE
