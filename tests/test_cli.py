"""comp.cli: one line per error, the exit code that belongs to it, nothing heavy before it is needed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import comp
from comp import cli
from comp.errors import CompError, Exit


def leave(*words: str) -> int:
    with pytest.raises(SystemExit) as caught:
        cli.main(words)
    return int(caught.value.code or 0)


def test_help_lists_every_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert leave("--help") == 0
    printed = capsys.readouterr().out
    assert all(f"    {verb} " in printed for verb in cli.VERBS)


def test_help_imports_nothing_heavy(project: Path) -> None:
    code = "import sys; sys.argv=['comp','--help']\nfrom comp.cli import main\ntry: main()\nexcept SystemExit: pass\n"
    code += "sys.exit(bool({'torch', 'pydantic', 'numpy', 'yaml', 'rich'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL, cwd=project).returncode == 0


@pytest.mark.parametrize("verb", cli.VERBS)
def test_every_verb_explains_itself_and_is_a_plain_function(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert leave(verb, "--help") == 0
    assert cli.VERBS[verb].help in " ".join(capsys.readouterr().out.split())
    name = cli.VERBS[verb].function or verb
    assert callable(getattr(comp, name))
    assert name in dir(comp)


def test_a_verb_takes_exactly_the_arguments_its_command_line_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command line and the plain functions cannot drift apart."""
    import inspect

    for verb, entry in cli.VERBS.items():
        words = [
            verb,
            *(
                ["x"]
                if any(not f.startswith("-") for a in entry.arguments if a is not cli.SETTINGS for f in a.flags)
                else []
            ),
        ]
        given: dict[str, object] = {}
        monkeypatch.setattr(cli, "command", lambda _name, given=given: given.update)
        cli._run(words)
        monkeypatch.undo()
        inspect.signature(cli.command(verb)).bind(**given)


@pytest.mark.parametrize(
    ("words", "code", "line"),
    [
        (["trian"], 2, "did you mean 'train'"),
        (["train"], 2, "the following arguments are required: MODEL"),
        (["train", "resnet34", "--fold"], 2, "expected one argument"),
        (["train", "resnet34", "--folds", "1"], 2, "unrecognized arguments"),
        (["train", "resnet34", "--data", "petal"], 2, "did you mean 'petals'"),
        ([], 2, "required: VERB"),
    ],
)
def test_mistakes_are_one_line(
    words: list[str],
    code: int,
    line: str,
    capsys: pytest.CaptureFixture[str],
    project: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(project)
    assert leave(*words) == code
    printed = capsys.readouterr().err
    assert printed.startswith("error: ")
    assert printed.count("\n") == 1
    assert line in printed


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (CompError("a", "b", "c", Exit.DATA), 3),
        (KeyboardInterrupt(), 130),
        (MemoryError(), 7),
        (OSError(28, "No space left on device"), 7),
        (BrokenPipeError(), 7),
        (RuntimeError("two\nlines"), 1),
    ],
)
def test_every_kind_of_end_has_its_code(
    error: BaseException, code: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> None:
        raise error

    monkeypatch.setattr(cli, "_run", fail)
    assert leave("train") == code
    printed = capsys.readouterr().err
    assert printed.startswith("error: ")
    assert printed.count("\n") == 1


def test_settings_may_stand_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, object] = {}
    monkeypatch.setattr(cli, "command", lambda _: lambda **given: seen.update(given))
    cli._run(["train", "epochs=3", "resnet34", "--fold", "2", "optim.lr=0.1"])
    assert (seen["model"], seen["fold"], seen["settings"]) == ("resnet34", "2", ["epochs=3", "optim.lr=0.1"])
