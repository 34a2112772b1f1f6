"""A save that is killed or fails at any of its writes, fsyncs and renames leaves the old file or the new one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults import writes


@pytest.mark.parametrize("save", [writes.save_file, writes.save_checkpoint])
def test_a_save_is_whole_or_has_not_happened(tmp_path: Path, save: writes.Save) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    outcome = writes.from_inside(folder, save)
    assert outcome.torn == []
    # Open, write, fsync, rename, open the folder, fsync it.
    assert outcome.events >= 6
    assert outcome.found["old"] >= 4 * len(writes.DEEDS) - 1
    assert outcome.found["new"] >= 2 * len(writes.DEEDS)


def test_a_file_written_in_place_would_be_caught(tmp_path: Path) -> None:
    """The check itself: `write_bytes` of the standard library leaves torn files, and this sees them."""
    folder = tmp_path / "folder"
    folder.mkdir()

    def save(path: Path, number: int) -> None:
        with path.open("wb") as file:
            file.write(bytes([number]) * 10_000)

    assert writes.from_inside(folder, save).found["torn"] > 0


def test_a_checkpoint_that_reads_back_differently_does_not_replace_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from comp.errors import CompError, Exit

    path = tmp_path / "last.ckpt"
    writes.save_checkpoint(path, 1)
    old = path.read_bytes()
    read = Path.read_bytes
    monkeypatch.setattr(
        Path, "read_bytes", lambda self: read(self)[:-1] + b"?" if self.suffix == ".tmp" else read(self)
    )
    with pytest.raises(CompError, match="not read back as it was written") as caught:
        writes.save_checkpoint(path, 2)
    assert caught.value.code is Exit.SYSTEM
    assert read(path) == old
    assert list(tmp_path.iterdir()) == [path]
