"""`comp compare` and `comp autopsy`: what they say, and what they refuse to say."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from worlds import World

from comp.commands.autopsy import autopsy
from comp.commands.compare import compare
from comp.errors import CompError


def _said(capsys: pytest.CaptureFixture[str]) -> str:
    return " ".join(capsys.readouterr().out.split())


def test_one_seed_speaks_of_checkpoints(drawn: Callable[..., World], capsys: pytest.CaptureFixture[str]) -> None:
    made = drawn(photos=600)
    made.run("a", skill=3.0, recipe="a")
    made.run("b", skill=1.5, recipe="b")
    (pair,) = compare(["a", "b"], data="drawn")
    said = _said(capsys)
    d = pair.difference
    assert f"these checkpoints of a and b differ by {100 * d.value:+.2f} ± {100 * d.se:.2f} points" in said
    assert "of the recipes this says nothing yet: that takes 3 seeds of each, there are 1 and 1" in said
    assert "would do" in said or "more photos are needed" in said


def test_three_seeds_speak_of_recipes(drawn: Callable[..., World], capsys: pytest.CaptureFixture[str]) -> None:
    made = drawn(photos=600)
    for seed in range(3):
        made.run(f"a-{seed}", skill=3.0, recipe="a", seed=seed)
        made.run(f"b-{seed}", skill=1.5, recipe="b", seed=seed)
    made.run("a-3", skill=3.0, recipe="a", seed=3, folds=[0, 1])  # lacks folds: no seed to count
    compare(["a-0", "b-0"], data="drawn")
    assert "the recipes differ:" in (said := _said(capsys))
    assert "over 3 and 3 seeds" in said
    compare(["a-0", "a-1"], data="drawn")
    assert "they are seeds of one recipe: the difference is luck" in _said(capsys)


def test_several_runs_are_corrected(drawn: Callable[..., World], capsys: pytest.CaptureFixture[str]) -> None:
    made = drawn()
    for n in range(4):
        made.run(f"m{n}", recipe=f"m{n}")
    pairs = compare(["m0", "m1", "m2", "m3"], data="drawn", json=True)
    assert len(pairs) == 6
    told = json.loads(capsys.readouterr().out)
    assert [pair["p_holm"] for pair in told["pairs"]] == [pair.holm for pair in pairs]
    assert all(pair.holm >= pair.p for pair in pairs)


def test_common_views_and_photos(drawn: Callable[..., World], capsys: pytest.CaptureFixture[str]) -> None:
    made = drawn()
    made.run("a", views="center")
    made.run("a", views="flip")
    made.run("b", views="center", folds=[1, 2])
    compare(["a", "b"], data="drawn")
    said = _said(capsys)
    assert "views center" in said
    assert "120 photos paired" in said
    made.run("c", views="tencrop")
    with pytest.raises(CompError, match="have no view set in common"):
        compare(["a", "c"], data="drawn")


def test_two_are_wanted(drawn: Callable[..., World]) -> None:
    drawn().run("a")
    for command in (compare, autopsy):
        with pytest.raises(CompError, match="two or more"):
            command(["a"], data="drawn")


def test_autopsy(drawn: Callable[..., World], capsys: pytest.CaptureFixture[str]) -> None:
    made = drawn()
    for name, skill in (("a", 1.0), ("b", 1.5), ("c", 2.0)):
        made.run(name, skill=skill)
    found = autopsy(data="drawn")
    said = _said(capsys)
    assert found["members"] == ["a", "b", "c"]
    assert sum(found["shapley"]) < found["score"]  # they sum to the score above guessing
    assert found["frontier"][-1]["ms"] <= 6.0
    assert "Shapley" in said
    assert "agreement" in said
    assert f"{found['ties']['count']} photos have several classes" in said


def test_autopsy_of_an_ensemble_file(drawn: Callable[..., World]) -> None:
    made = drawn()
    made.run("a")
    made.run("b", header={"ms_per_image": None})
    folder = made.home / "configs" / "ensembles"
    folder.mkdir()
    (folder / "both.yaml").write_text("members: [a, b]\nrule: mean\n")
    found = autopsy(["both"], data="drawn")
    assert found["members"] == ["a", "b"]
    assert found["frontier"] == []  # b does not know its cost
