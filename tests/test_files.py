"""comp.files: whole or absent, as it is, and one holder at a time."""

from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from comp import files
from comp.errors import CompError, Exit


def test_write_replaces_whole_and_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.txt"
    files.write_text(path, "old")
    files.write_text(path, "new ä")
    assert path.read_bytes() == "new ä".encode()
    assert [p.name for p in path.parent.iterdir()] == ["a.txt"]


@pytest.mark.parametrize("call", ["fsync", "replace", "write"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EROFS])
def test_a_failed_write_keeps_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    path = tmp_path / "a.txt"
    files.write_text(path, "old")

    def fail(*_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number))

    writer: Any = lambda file: file.write(b"new")  # noqa: E731
    if call == "fsync":
        monkeypatch.setattr(os, "fsync", fail)
    elif call == "replace":
        monkeypatch.setattr(Path, "replace", fail)
    else:
        writer = fail
    with pytest.raises(CompError) as caught:
        files.write_atomic(path, writer)
    assert caught.value.code == Exit.SYSTEM
    assert str(path) in str(caught.value)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_csv_keeps_every_field_as_it_is(tmp_path: Path) -> None:
    rows = [["NA", "1"], ["1e5", ""], ["007", "nan"], ['say "hi", all', "line\nbreak"], [" x ", "None"]]
    files.write_csv(tmp_path / "a.csv", ["id", "label"], rows)
    assert files.read_csv(tmp_path / "a.csv", ["id"]) == (["id", "label"], rows)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty"),
        ("id\n1\n", "has no column 'label'"),
        ("id,label\n1\n", "row 2 has 1 fields"),
        ("id,id\n", "named twice"),
        ('id,label\n"1,2\n', "is not a CSV"),
        ("id,label\n\0\n", "zero bytes"),
    ],
)
def test_a_bad_csv_is_one_line(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(CompError, match=words):
        files.read_csv(tmp_path / "a.csv", ["id", "label"])


def test_not_utf8_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(CompError, match="not UTF-8"):
        files.read_json(tmp_path / "a.json")


def test_digests(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert files.digest_file(tmp_path / "a") == hashlib.sha256(b"abc").hexdigest() == files.digest_bytes(b"abc")
    rows = [("a", 1, "train"), ("b", 2, "val")]
    assert files.digest_rows(rows) == files.digest_rows(rows[::-1])
    assert files.digest_rows(rows) != files.digest_rows([("a", 2, "train"), ("b", 1, "val")])
    assert files.digest_rows([("a,b", "c")]) != files.digest_rows([("a", "b,c")])


def test_space_is_asked_for_before_it_is_needed(tmp_path: Path) -> None:
    files.need_space(tmp_path / "not" / "yet", 1, "a run")
    with pytest.raises(CompError, match="a run needs") as caught:
        files.need_space(tmp_path, 2**60, "a run")
    assert caught.value.code == Exit.SYSTEM


HOLD = """
import sys, time, os
from pathlib import Path
from comp import files
with files.lock(Path(sys.argv[1]), "training"):
    child = os.fork()
    if child == 0:
        time.sleep(60)
        os._exit(0)
    print(child, flush=True)
    time.sleep(60)
"""


def test_a_second_holder_is_told_who_holds_it_and_a_dead_one_holds_nothing(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout
    child = int(holder.stdout.readline())
    try:
        with (
            pytest.raises(CompError, match=f"process {holder.pid} on .* \\(training\\)") as caught,
            files.lock(path, "x"),
        ):
            pass
        assert caught.value.code == Exit.BUSY
        holder.kill()
        holder.wait()
        os.kill(child, 0)  # the forked worker lives on, and must not keep the lock
        with files.lock(path, "x"):
            pass
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
        os.kill(child, 9)
