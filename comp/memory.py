"""Memory that is used again and again: kept by the process instead of handed back to the system after every tensor."""

from __future__ import annotations

import ctypes
from contextlib import suppress
from functools import cache

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # malloc.h of glibc


@cache
def keep_pages() -> None:
    """Have the C library keep what was freed, so that the next tensor of that size finds it in place.

    By default glibc maps every block of more than 32 MiB anew and unmaps it when it is freed, and the system clears
    each of its pages at the first touch. A network on a CPU does that for the output of every early layer, which costs
    a tenth to a fifth of its time (`python -m benchmarks.memory`). Arithmetic is not touched. The price: the process
    stays as large as it has been. Nothing happens where the C library is another one.
    """
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        mallopt(_M_MMAP_MAX, 0)
        mallopt(_M_TRIM_THRESHOLD, -1)  # never
