from __future__ import annotations

import io
import math
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch

from comp import files
from comp.errors import CompError, Exit
from comp.training import checkpoint
from comp.training.checkpoint import Best, Checkpoint, Position

ABOUT = {"network": "net", "classes": ["a", "b"], "data": "1" * 64}


def made(**changes: Any) -> Checkpoint:
    position = Position(2, 3, 8, [[1.5, 2.0]], 4.5, [[1, 0.5, math.nan]], [[1, 2.0]], Best(0, 0.5, 0.7, "f", "d"), 1)
    values: dict[str, Any] = {
        "about": ABOUT,
        "position": position,
        "network": {"w": torch.arange(6.0).reshape(2, 3).to(memory_format=torch.contiguous_format)},
        "ema": None,
        "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 0.1, "betas": (0.9, 0.99)}]},
        "schedule": {"scale": 1.0},
        "scaler": None,
        "watch": {"said": ["x"]},
    }
    return Checkpoint(**{**values, **changes})


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    checkpoint.save(path, made())
    found = checkpoint.load(path, ABOUT)
    assert repr(found) == repr(made())
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("about", "words"),
    [
        ({"network": "other"}, "its network is net, this run's other"),
        ({"classes": ["a", "b", "c"]}, "it has 2 classes, this run 3"),
        ({"classes": ["a", "z"]}, "its classes have other names"),
        ({"data": "2" * 64}, "its data is 111111111111…, this run's 222222222222…"),
    ],
)
def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path, about: dict[str, Any], words: str) -> None:
    checkpoint.save(tmp_path / "last.ckpt", made())
    with pytest.raises(CompError) as raised:
        checkpoint.load(tmp_path / "last.ckpt", {**ABOUT, **about})
    assert raised.value.code is Exit.FILE
    assert words in str(raised.value)


def test_torn_foreign_and_empty_files_are_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    checkpoint.save(path, made())
    whole = path.read_bytes()
    other = io.BytesIO()
    torch.save({"state_dict": {}}, other)
    for data in (b"", whole[:100], whole[: len(whole) // 2], whole[:-7], b"\0" * 5000, other.getvalue()):
        path.write_bytes(data)
        with pytest.raises(CompError) as raised:
            checkpoint.load(path, ABOUT)
        assert raised.value.code is Exit.FILE
        assert "\n" not in str(raised.value)


class Planted:
    """Unpickling it would write a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("zipped", [True, False])
def test_no_code_in_a_checkpoint_runs(tmp_path: Path, zipped: bool) -> None:
    path, victim = tmp_path / "last.ckpt", tmp_path / "ran"
    if zipped:
        torch.save({"format": 1, "network": Planted(victim)}, path)
    else:
        path.write_bytes(pickle.dumps(Planted(victim)))
    with pytest.raises(CompError) as raised:
        checkpoint.load(path, ABOUT)
    assert raised.value.code is Exit.FILE
    assert not victim.exists()


def test_the_older_one_stays_when_the_new_one_is_not_read_back_as_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "last.ckpt"
    checkpoint.save(path, made())
    before = path.read_bytes()
    monkeypatch.setattr(Path, "read_bytes", lambda self: b"bad disk")
    with pytest.raises(CompError, match="was not read back as it was written") as raised:
        checkpoint.save(path, made(schedule={"scale": 0.5}))
    monkeypatch.undo()
    assert raised.value.code is Exit.SYSTEM
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_the_same_state_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        checkpoint.save(tmp_path / name, made())
    assert files.digest_file(tmp_path / "a") == files.digest_file(tmp_path / "b")
