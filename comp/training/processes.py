"""The processes that train one fold together: what they must agree on goes over the CPU, so no device waits for it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from torch import distributed, nn

from comp.errors import CompError, Exit

_LOST = re.compile(
    r"connection (closed|reset|refused)|timed? ?out|peer|gloo|nccl|socket|broken pipe|process group|rendezvous", re.I
)


class Team:
    """This process and the others.

    Args:
        hang_limit: Seconds that the others may take to answer.
    """

    def __init__(self, hang_limit: float):
        self.world = distributed.get_world_size() if distributed.is_initialized() else 1
        self.rank = distributed.get_rank() if self.world > 1 else 0
        self.first = self.rank == 0
        self._group: Any = None
        if self.world > 1:
            self._group = distributed.new_group(backend="gloo", timeout=timedelta(seconds=hang_limit))

    def most(self, *values: int) -> list[int]:
        """The largest of each value over all processes; every process calls it at the same place."""
        if self.world == 1:
            return list(values)
        together = torch.tensor(values, dtype=torch.int64)
        distributed.all_reduce(together, op=distributed.ReduceOp.MAX, group=self._group)
        return [int(value) for value in together]

    def gather(self, value: Any) -> list[Any]:
        """Every process's value, in rank order, on every process."""
        if self.world == 1:
            return [value]
        found: list[Any] = [None] * self.world
        distributed.all_gather_object(found, value, group=self._group)
        return found

    def wait(self) -> None:
        """Wait until every process is here."""
        self.most(0)

    @torch.no_grad()
    def same_buffers(self, network: nn.Module) -> None:
        """Give every process the first one's buffers: BatchNorm's running statistics of its share of the images."""
        if self.world > 1:
            for buffer in network.buffers():
                distributed.broadcast(buffer, 0)

    @contextmanager
    def together(self, where: object) -> Iterator[None]:
        """Turn a collective that failed because another process died or hangs into one line, exit code 8."""
        try:
            yield
        except RuntimeError as error:
            if self.world > 1 and not isinstance(error, torch.OutOfMemoryError) and _LOST.search(str(error)):
                what = f"process {self.rank} lost the others ({str(error).splitlines()[0][:120]})"
                raise CompError(where, what, "run the same command again, it goes on", Exit.PROCESS) from error
            raise
