"""Kaggle's own client, run as a program: it is an optional dependency and reads its own credentials."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from comp.config import DataConfig
from comp.errors import CompError, Exit

_PATIENCE = 600.0  # seconds a call may take


def need(data: DataConfig) -> str:
    """The competition's name; refuses early where the client or the name is missing.

    Raises:
        CompError: Exit code 2.
    """
    if not data.submission.competition:
        fix = f"add `submission: {{competition: NAME}}` to configs/data/{data.name}.yaml"
        raise CompError(f"DATA={data.name}", "does not name its competition on Kaggle", fix, Exit.CONFIG)
    if shutil.which("kaggle") is None:
        fix = "install it: pip install 'comp[kaggle]', or send the CSV by hand and run comp ledger FILE.csv"
        raise CompError("kaggle", "Kaggle's client is not installed", fix, Exit.USAGE)
    return data.submission.competition


def _call(*words: str) -> str:
    client = shutil.which("kaggle") or "kaggle"
    try:
        done = subprocess.run(
            (client, *words), capture_output=True, text=True, timeout=_PATIENCE, check=False, stdin=subprocess.DEVNULL
        )
    except subprocess.TimeoutExpired:
        raise CompError("kaggle", f"no answer in {_PATIENCE:.0f} s", "try again", Exit.SYSTEM) from None
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}").splitlines()[-1]
        raise CompError("kaggle", f"refused: {said[:200]}", "mend that, then try again", Exit.SYSTEM)
    return done.stdout


def send(competition: str, file: Path, message: str) -> None:
    """Upload a CSV."""
    _call("competitions", "submit", "-c", competition, "-f", str(file), "-m", message)


def submissions(competition: str) -> str:
    """The client's table of this user's submissions, CSV."""
    return _call("competitions", "submissions", "-c", competition, "--csv")
