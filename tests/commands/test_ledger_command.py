"""`comp ledger` and `comp submit --upload`, with a program in the place of Kaggle's client."""

from __future__ import annotations

import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from worlds import World

from comp import config, files
from comp.commands.ledger import ledger
from comp.commands.submit import submit
from comp.errors import CompError, Exit

COMPETITION = {"submission": {"competition": "flowers"}}


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A `kaggle` on the PATH that writes down its arguments and prints what `answer` holds."""
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / "kaggle"
    program.write_text(
        f'#!/bin/sh\nprintf "%s\\n" "$@" >> {folder}/said\ncat {folder}/answer 2>/dev/null\n'
        f"if [ -e {folder}/fails ]; then echo '403 - Forbidden' >&2; exit 1; fi\n"
    )
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return folder


def test_upload_and_fetch(
    drawn: Callable[..., World], client: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made = drawn(yaml=COMPETITION)
    made.run("a")
    done = submit(data="drawn", name="mine", upload="two words")
    digest = done.record["csv"]["sha256"]
    said = (client / "said").read_text().splitlines()
    assert said[:6] == ["competitions", "submit", "-c", "flowers", "-f", str(done.path)]
    assert said[-1] == f"two words [sha {digest[:8]}]"
    (entry,) = ledger(data="drawn")
    assert (entry.file, entry.sha256, entry.note, entry.public) == ("mine.csv", digest, "two words", None)
    (client / "answer").write_text(
        f"fileName,date,description,status,publicScore\nmine.csv,x,two words [sha {digest[:8]}],complete,0.75\n"
    )
    real = config.DataConfig(name="drawn", submission=config.Submission(competition="flowers"))
    monkeypatch.setattr(config, "load_data", lambda home, name, overrides=None: real)
    (entry,) = ledger(data="drawn", fetch=True)
    assert entry.public == 0.75
    assert "fetched 1 scores, 1 entries changed" in capsys.readouterr().out


def test_refused_upload_is_not_entered(drawn: Callable[..., World], client: Path) -> None:
    made = drawn(yaml=COMPETITION)
    made.run("a")
    (client / "fails").touch()
    with pytest.raises(CompError, match="kaggle: refused: 403 - Forbidden") as caught:
        submit(data="drawn", name="mine", upload="")
    assert caught.value.code == Exit.SYSTEM
    assert ledger(data="drawn") == []


def test_missing_client_is_said_first(
    drawn: Callable[..., World], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = drawn(yaml=COMPETITION)
    made.run("a")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CompError, match="Kaggle's client is not installed; install it"):
        submit(data="drawn", name="mine", upload="")
    assert not (made.home / "submissions/drawn/mine.csv").exists()


def test_no_competition(drawn: Callable[..., World], client: Path) -> None:
    made = drawn()
    made.run("a")
    with pytest.raises(CompError, match="does not name its competition on Kaggle"):
        submit(data="drawn", name="mine", upload="")


def test_typed_scores_and_the_final_two(drawn: Callable[..., World], capsys: pytest.CaptureFixture[str]) -> None:
    made = drawn(photos=600, test=200)
    for n in range(6):
        made.run(f"m{n}", skill=1.0 + 0.2 * n)
    for n in range(6):
        path = submit([f"m{n}"], data="drawn", name=f"s{n}").path
        ledger(str(path), score=0.4 + 0.05 * n if n != 2 else 0.99, note="[typed]")
    capsys.readouterr()
    entries = ledger(data="drawn")
    said = " ".join(capsys.readouterr().out.split())
    assert len(entries) == 6
    assert "public − estimate:" in said
    assert "s2.csv is out of line" in said
    assert "final two: s5.csv (best estimate)" in said
    assert "[typed]" in said


def test_usage(drawn: Callable[..., World], tmp_path: Path) -> None:
    made = drawn()
    made.run("a")
    with pytest.raises(CompError, match="which submission is that for"):
        ledger(data="drawn", score=0.5)
    path = submit(data="drawn", name="mine").path
    with pytest.raises(CompError, match="is no score"):
        ledger(str(path), score=float("nan"))
    files.write_text(path, "id,label\n")
    with pytest.raises(CompError, match="is not the file its JSON speaks of"):
        ledger(str(path), score=0.5)
