"""Processes that make images ahead of their use, in order.

torch's own loader passes every batch through a file in /dev/shm (64 MB in a container by default) and reports a dead
worker from a signal handler, in whatever line of the training loop is running. Here the pixels lie in memory that is
shared by forking alone, a dead worker is noticed where its images are awaited, and a worker whose parent dies sees its
pipe close and ends at once. Chunk k is made by worker k mod W, so nothing depends on who is faster.
"""

from __future__ import annotations

import atexit
import gc
import math
import mmap
import multiprocessing
import pickle
import signal
import sys
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from comp.errors import CompError, Exit
from comp.files import system_error

Key = TypeVar("Key")
Pixels = NDArray[np.uint8]

CHUNK = 8  # images of one message: few enough to spread a small batch, enough that messages cost nothing
# Sent to a whole group: the parent saves its state and then closes the workers.
_IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_GRACE = 5.0  # seconds a worker gets to end by itself

_open: set[Any] = set()  # the parent's ends of all pipes; a worker that kept one would keep another from ending


def in_order(
    make: Callable[[Key], Pixels], shape: tuple[int, ...], chunks: Iterable[Sequence[Key]], workers: int, ahead: int
) -> Generator[Pixels, None, None]:
    """Make the images of chunk after chunk.

    Args:
        make: Key → image of this shape; runs in the workers, so what it changes stays there.
        shape: Of every image.
        chunks: Up to `CHUNK` keys each; read ahead, never further than needed.
        workers: Processes; 0 does the work here.
        ahead: Chunks under way at a time.

    Yields:
        The images (n, *shape) of each chunk, in order. The array is used again: copy what is to stay.

    Raises:
        CompError: What `make` raised in a worker (any exception comes here as it was), the first in order; or exit code
            8 where a worker died.
    """
    if workers == 0:
        here = np.empty((CHUNK, *shape), np.uint8)
        for keys in chunks:
            for place, key in enumerate(keys):
                here[place] = make(key)
            yield here[: len(keys)]
        return
    pool = _Pool(make, shape, workers, max(ahead, workers))
    try:
        source, under_way, begun, done = iter(chunks), deque[int](), 0, 0
        while True:
            while len(under_way) < pool.slots and (keys_ := next(source, None)) is not None:
                pool.begin(begun, keys_)
                under_way.append(len(keys_))
                begun += 1
            if not under_way:
                return
            yield pool.finish(done)[: under_way.popleft()]
            done += 1
    finally:
        pool.close()


class _Pool:
    """Forked workers, a pipe to each, and a ring of chunks in shared memory."""

    def __init__(self, make: Callable[[Any], Pixels], shape: tuple[int, ...], workers: int, slots: int):
        self.slots = slots
        self.processes: list[Any] = []
        self.pipes: list[Any] = []
        context = multiprocessing.get_context("fork")
        atexit.register(self.close)
        try:
            memory = mmap.mmap(-1, slots * CHUNK * math.prod(shape))
            self.ring = np.frombuffer(memory, np.uint8).reshape(slots, CHUNK, *shape)
            for number in range(workers):
                mine, theirs = context.Pipe()
                _open.add(mine)
                self.pipes.append(mine)
                process = context.Process(
                    target=_work, args=(make, self.ring, theirs), name=f"loader worker {number}", daemon=True
                )
                # Signals wait until the worker ignores them: one that came before would end it.
                mask = signal.pthread_sigmask(signal.SIG_BLOCK, _IGNORED)
                try:
                    with warnings.catch_warnings():  # forking beside threads: a worker uses none of their locks
                        warnings.simplefilter("ignore", DeprecationWarning)
                        process.start()
                finally:
                    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
                self.processes.append(process)
                theirs.close()
        except OSError as error:
            self.close()
            raise system_error("loader workers", error) from error

    def begin(self, number: int, keys: Sequence[Any]) -> None:
        """Hand a chunk to its worker."""
        worker = number % len(self.pipes)
        try:
            self.pipes[worker].send((number % self.slots, list(keys)))
        except OSError:
            raise self._death(worker) from None

    def finish(self, number: int) -> Pixels:
        """Wait for a chunk."""
        worker = number % len(self.pipes)
        try:
            failure = self.pipes[worker].recv()
        except (EOFError, OSError):
            raise self._death(worker) from None
        if failure is not None:
            raise failure
        slot: Pixels = self.ring[number % self.slots]
        return slot

    def _death(self, worker: int) -> CompError:
        process = self.processes[worker]
        process.join(_GRACE)
        code = process.exitcode
        if code is not None and code < 0:
            how, fix = f"was killed by {signal.Signals(-code).name}", f"use fewer, e.g. workers={len(self.pipes) // 2}"
            if code == -signal.SIGKILL:
                how += " (by hand, or because the memory ran out)"
        else:
            how, fix = f"ended with exit code {code}", "use workers=0 to see why"
        return CompError(process.name, f"{how} while it made images", fix, Exit.PROCESS)

    def close(self) -> None:
        """End the workers; what they were making is dropped."""
        atexit.unregister(self.close)
        for pipe in self.pipes:
            with suppress(OSError, ValueError):
                pipe.send(None)
            pipe.close()
            _open.discard(pipe)
        for process in self.processes:
            process.join(_GRACE)
            if process.is_alive():
                process.kill()
                process.join()
            process.close()
        self.pipes, self.processes = [], []


def _work(make: Callable[[Any], Pixels], ring: Pixels, pipe: Connection[Any, Any]) -> None:
    """A worker's life: chunks in, pixels into the ring, None or an exception back."""
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _IGNORED)
    for parents_end in _open:
        parents_end.close()
    gc.freeze()  # what was there before the fork stays shared
    import cv2

    cv2.setNumThreads(0)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)
    with suppress(EOFError, OSError):  # the parent is gone: so are we
        while (task := pipe.recv()) is not None:
            slot, keys = task
            failure = None
            try:
                for place, key in enumerate(keys):
                    ring[slot, place] = make(key)
            except Exception as error:
                failure = _sendable(error)
            pipe.send(failure)


def _sendable(error: Exception) -> Exception:
    """The exception as it will arrive: itself where it survives the way, else its words."""
    if not isinstance(error, CompError):
        error.add_note("in a loader worker:\n" + traceback.format_exc())
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__} in a loader worker: {error}")
    return error
