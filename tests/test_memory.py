"""Freed memory is found in place again."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

_FAULTS = """
import resource, sys
import torch
from comp.memory import keep_pages
if sys.argv[1] == "kept":
    keep_pages()
for turn in range(40):
    if turn == 30:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(48 * 2**18)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc's malloc")
def test_tensors_of_48_mib_are_not_mapped_anew() -> None:
    """The last ten of forty: 122,880 pages of 4 KiB, of huge pages fewer, so a plain process is asked too."""

    def faults(how: str) -> int:
        done = subprocess.run([sys.executable, "-c", _FAULTS, how], capture_output=True, text=True, check=True)
        return int(done.stdout)

    assert faults("kept") < 1000 < faults("plain")
