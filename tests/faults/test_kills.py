"""`kill -9` at any moment: the same commands go on, and give the bytes an uninterrupted run gives."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults import kills
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
