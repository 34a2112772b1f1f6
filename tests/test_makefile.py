"""The Makefile: every target explained, every variable passed on as it was typed and never run."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

RECORD = """#!/usr/bin/env python3
import json, sys, os
open(os.environ["RECORD"], "a").write(json.dumps(sys.argv[1:]) + "\\n")
"""


@pytest.fixture
def checkout(project: Path, tmp_path: Path) -> Path:
    """The Makefile beside an environment whose `comp` writes down how it was called."""
    (tmp_path / "Makefile").write_text((project / "Makefile").read_text())
    for name in ("requirements.txt", "pyproject.toml"):
        (tmp_path / name).touch()
    comp = tmp_path / ".venv/bin/comp"
    comp.parent.mkdir(parents=True)
    comp.write_text(RECORD)
    comp.chmod(0o755)
    (tmp_path / ".venv/.ready").touch()
    return tmp_path


def make(folder: Path, *words: str) -> tuple[int, list[list[str]]]:
    import json

    environment = {key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "MFLAGS"))}
    environment["RECORD"] = str(folder / "calls")
    done = subprocess.run(["make", *words], cwd=folder, env=environment, capture_output=True, text=True, timeout=60)
    calls = folder / "calls"
    lines = calls.read_text().splitlines() if calls.exists() else []
    return done.returncode, [json.loads(line) for line in lines]


@pytest.mark.parametrize(
    ("words", "call"),
    [
        (["train", "MODEL=resnet34", "FOLD=0"], ["train", "--fold=0", "--", "resnet34"]),
        (["train"], ["train", "--", "resnet34"]),
        (
            ["train-all", "MODEL=a", "DATA=b", "NAME=c", "PROCS=2", "FROM=d/fold0", "ARGS=x=1 y=2"],
            ["train", "--fold", "all", "--data=b", "--name=c", "--from=d/fold0", "--procs=2", "x=1", "y=2", "--", "a"],
        ),
        (["predict", "VIEWS=tencrop", "RUNS=a b"], ["predict", "--views=tencrop", "--", "a", "b"]),
        (["submit", "RULE=mean", "VIEWS=flip"], ["submit", "--views=flip", "--rule=mean", "--"]),
        (["scores"], ["scores", "--"]),
        (["data", "DATA=tf-flowers", "ARGS=data.size=64"], ["data", "--data=tf-flowers", "data.size=64"]),
        (["folds"], ["folds"]),
    ],
)
def test_targets_spell_commands(checkout: Path, words: list[str], call: list[str]) -> None:
    code, calls = make(checkout, *words)
    assert code == 0
    assert calls == [call]


def test_every_call_is_one_the_command_line_takes(checkout: Path) -> None:
    from comp import cli

    targets = (
        "train",
        "train-all",
        "predict",
        "scores",
        "submit",
        "data",
        "folds",
        "show",
        "model",
        "views",
        "compare",
        "doctor",
    )
    for target in targets:
        make(
            checkout,
            target,
            "DATA=a",
            "NAME=b",
            "VIEWS=c",
            "RULE=d",
            "PROCS=1",
            "FOLD=0",
            "FROM=e",
            "RUNS=f",
            "ARGS=k=1",
        )
    _, calls = make(checkout, "help")
    assert len(calls) == len(targets)
    for call in calls:
        cli.parser().parse_args([word for word in call if word != "k=1"])


@pytest.mark.parametrize(
    "text",
    [
        "$(shell touch planted)",
        "`touch planted`",
        '"; touch planted; "',
        "'; touch planted; '",
        "x\ntouch planted",
        "$$(touch planted)",
        "$(eval $(shell touch planted))",
        "&& touch planted",
        "${IFS}touch${IFS}planted",
    ],
)
def test_no_variable_is_ever_run(checkout: Path, text: str) -> None:
    variables = ("MODEL", "DATA", "NAME", "FOLD", "VIEWS", "RULE", "PROCS", "FROM", "RUNS", "FILE", "ARGS", "PYTHON")
    for target in ("train", "predict", "submit"):
        make(checkout, target, *(f"{variable}={text}" for variable in variables))
    assert not (checkout / "planted").exists()


def test_a_hostile_value_reaches_the_command_as_it_is(checkout: Path) -> None:
    _, calls = make(checkout, "train", "MODEL=$(shell id) \"'`x`")
    assert calls == [["train", "--", "$(shell id) \"'`x`"]]


def test_make_alone_lists_every_target(project: Path) -> None:
    text = (project / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z][a-z-]*):", text, re.MULTILINE))
    listed = subprocess.run(["make"], cwd=project, capture_output=True, text=True, check=True).stdout
    assert {line.split()[0] for line in listed.splitlines()} == targets
    assert all(len(line) <= 120 for line in listed.splitlines())


def test_the_lock_has_hashes_and_no_address(project: Path) -> None:
    text = (project / "requirements.txt").read_text()
    assert "--hash=sha256:" in text
    assert "://" not in text
    assert not re.search(r"^(-i|--index-url|--extra-index-url|-f|--find-links)", text, re.MULTILINE)
    for line in text.splitlines():
        assert line.startswith("    --hash=sha256:") or re.match(r"[a-z0-9._-]+==[^ ]+( ;.*)? \\$", line), line
