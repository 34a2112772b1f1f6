"""Damaged and absurd inputs: read, or one CompError; never a traceback, a hang, or damage that passes for data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from comp import predictions
from comp.errors import CompError, Exit
from comp.training import checkpoint
from tests.faults import fuzz, writes


@pytest.mark.slow
def test_a_thousand_cases(tmp_path: Path) -> None:
    """The long form, 10,000, is `make soak`."""
    tally = fuzz.series(tmp_path, 1000)
    assert tally.bad == []
    assert tally.cases.total() >= 1000
    # Both ends are reached by every kind: some cases are refused, and the samples themselves are sound.
    assert all(tally.refused[name] > 0 for name in tally.cases)


def test_the_samples_are_sound_and_what_is_found_is_told(tmp_path: Path) -> None:
    made = fuzz.kinds(tmp_path)
    for kind in made:
        for sample in kind.samples:
            kind.path.write_bytes(sample)
            kind.read()
        kind.path.write_bytes(kind.samples[0])

    def wrong() -> object:
        raise ValueError("a bug")

    tally = fuzz.Tally()
    fuzz.one(fuzz.Kind("wrong", tmp_path / "wrong", [b"x"], wrong), 0, tally)
    assert tally.bad == [("wrong", 0, "ValueError: a bug")]


def test_a_hang_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz, "SECONDS", 0.05)

    def forever() -> object:
        while True:
            pass

    tally = fuzz.Tally()
    fuzz.one(fuzz.Kind("forever", tmp_path / "forever", [b"x"], forever), 0, tally)
    assert [what for _, _, what in tally.bad] == ["Hang: more than 0.05 s"]


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and set(a) == set(b) and all(_same(a[key], b[key]) for key in a)
    return type(a) is type(b) and a == b


def test_no_flipped_bit_of_a_checkpoint_passes(tmp_path: Path) -> None:
    """torch does not compare a checkpoint's checksums; a rotten bit would train on as if it were the run."""
    path = tmp_path / "last.ckpt"
    writes.save_checkpoint(path, 1)
    whole = checkpoint.read(path)
    data = bytearray(path.read_bytes())
    inside = data.index(np.full(8, 1, np.float32).tobytes())
    refused = 0
    for bit in [*range(0, len(data) * 8, 997), *range(inside * 8, (inside + 12) * 8)]:
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        try:
            assert _same(checkpoint.read(path), whole), f"bit {bit} passed"
        except CompError as error:
            refused += error.code is Exit.FILE
        data[bit // 8] ^= 1 << bit % 8
    assert refused > 96  # all of those in the weights


def test_no_flipped_bit_of_a_prediction_file_passes(tmp_path: Path) -> None:
    path = tmp_path / "oof.npz"
    probs = np.full((3, 2), 0.5, np.float32)
    whole = predictions.Predictions(np.array(["a", "b", "c"]), probs, np.array(["x", "y"]), {"run": "r"})
    whole.save(path)
    data = bytearray(path.read_bytes())
    inside = data.index(probs.tobytes())
    refused = 0
    for bit in [*range(0, len(data) * 8, 31), *range(inside * 8, (inside + len(probs.tobytes())) * 8)]:
        data[bit // 8] ^= 1 << bit % 8
        path.write_bytes(data)
        try:
            read = predictions.load(path)
            assert read.digest() == whole.digest(), f"bit {bit} passed"
            assert read.header == whole.header
        except CompError as error:
            refused += error.code is Exit.FILE
        data[bit // 8] ^= 1 << bit % 8
    assert refused > 192


def test_no_flipped_bit_of_a_manifest_passes(tmp_path: Path) -> None:
    """An offset that is another number answers one photo with the bytes of another."""
    kind = next(kind for kind in fuzz.kinds(tmp_path) if kind.name == "manifest.csv")
    data = bytearray(kind.samples[0])
    for bit in range(0, len(data) * 8, 37):
        data[bit // 8] ^= 1 << bit % 8
        kind.path.write_bytes(data)
        with pytest.raises(CompError):
            kind.read()
        data[bit // 8] ^= 1 << bit % 8
