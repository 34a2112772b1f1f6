"""`kill -9` at any moment: the same commands go on, and give the bytes an uninterrupted run gives."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.faults import kills, tiny
from tests.faults.tiny import Server


@pytest.mark.slow
def test_killed_runs_give_the_same_bytes(
    server: Server, prepared: tuple[Path, dict[str, bytes]], tmp_path: Path
) -> None:
    """The long form, 300 kills and a chain of 25, is `make soak`."""
    tally = kills.series(server, prepared, tmp_path, single=8, chain=8)
    assert tally.trials >= 9
    assert sum(tally.landed.values()) >= 8
    assert tally.longest >= 6  # a kill of the chain may come when the run is done
    assert not tally.different


@pytest.mark.slow
def test_reading_the_data_killed_before_each_of_its_saves(server: Server, tmp_path: Path) -> None:
    """Shards are drawn, looked at, listed and split; the same command goes on wherever it was."""
    words = ["folds", "--data", "tiny"]

    def made(home: Path) -> dict[str, bytes]:
        wanted = ("folds/tiny.csv", "data/tiny/24/manifest.csv")
        return {name: (home / name).read_bytes() for name in wanted}

    whole = tiny.make_project(tmp_path / "whole")
    assert server.run(whole, words).code == 0
    times = 0
    while True:
        times += 1
        home = tiny.make_project(tmp_path / f"home{times}")
        if server.run(home, words, signal_in=("saving", signal.SIGKILL, times)).code == 0:
            break
        ended = server.run(home, words)
        assert ended.code == 0, f"killed before save {times}: {ended.output}"
        assert made(home) == made(whole)
        if times > 3:
            continue
        # The same where all is there already and `comp data` reads it again, which saves two files.
        again = server.run(home, ["data", "--data", "tiny"], signal_in=("saving", signal.SIGKILL, times)).code
        ended = server.run(home, words)
        assert ended.code == 0, f"read again, ended with {again} at save {times}: {ended.output}"
        assert made(home) == made(whole)
    assert times > 6
