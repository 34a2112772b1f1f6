"""`comp scores`: table, JSON, CSV, --watch."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable

import pytest
from worlds import World

from comp.commands import scores as command
from comp.commands.scores import scores
from comp.errors import CompError


def test_table_json_csv(drawn: Callable[..., World], capsys: pytest.CaptureFixture[str]) -> None:
    made = drawn()
    made.run("a")
    made.run("b", folds=[0])
    rows = scores(data="drawn")
    table = capsys.readouterr().out
    assert rows[0].oof is not None
    assert f"{rows[0].oof.value:.4f} ±{rows[0].oof.se:.4f}" in table
    scores(data="drawn", json=True)
    told = json.loads(capsys.readouterr().out)
    assert {run["run"] for run in told["runs"]} == {"a", "b"}
    scores(data="drawn", csv=True)
    lines = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert {line["run"] for line in lines} == {"a", "b"}
    assert len(scores(["b"], data="drawn")) == 1


def test_no_such_run(drawn: Callable[..., World]) -> None:
    drawn().run("resnet34")
    with pytest.raises(CompError, match="did you mean 'resnet34'"):
        scores(["resnet35"], data="drawn")


def test_nothing_yet(drawn: Callable[..., World], capsys: pytest.CaptureFixture[str]) -> None:
    drawn()
    assert scores(data="drawn") == []
    assert "has no runs yet" in capsys.readouterr().out


def test_warnings_go_to_stderr(drawn: Callable[..., World], capsys: pytest.CaptureFixture[str]) -> None:
    folder = drawn().run("a")
    (folder / "fold0/oof.flip.npz").write_bytes(b"torn")
    scores(data="drawn", json=True)
    both = capsys.readouterr()
    json.loads(both.out)
    assert "fold0/oof.flip.npz" in both.err


def test_watch_prints_again_when_a_fold_is_done(
    drawn: Callable[..., World], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = drawn()
    made.run("a", folds=[0])
    looks = 0

    def pause(seconds: float) -> None:
        nonlocal looks
        looks += 1
        if looks == 2:
            made.run("a", folds=[1])
        if looks == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(command._watch, "__defaults__", (pause,))
    with pytest.raises(KeyboardInterrupt):
        scores(data="drawn", watch=True)
    assert capsys.readouterr().out.count("watching; Ctrl-C ends it") == 2
