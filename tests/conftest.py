"""What tests of every room share."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
# The networks of tests are tiny: threads would spend their time waiting for each other, most of all on a busy machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Under nohup SIGHUP is ignored, by all that is started from here too; tests send it and want to see it obeyed.
signal.signal(signal.SIGHUP, signal.SIG_DFL)

PROJECT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def project() -> Path:
    """The checkout's folder."""
    return PROJECT


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real photos and weights beside the checkout; tests that need it are skipped where it is absent."""
    folder = Path(os.environ.get("COMP_SHARED") or PROJECT.parent / "shared")
    if not (folder / "data" / "tf-flowers").is_dir():
        pytest.skip(f"needs the photos in {folder}/data/tf-flowers, which are not on this machine")
    return folder
