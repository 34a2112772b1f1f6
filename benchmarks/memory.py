"""What keeping freed memory is worth on a CPU (`comp.memory`): `python -m benchmarks.memory`.

The same network in two processes, one as the C library has it and one with `keep_pages`, taking turns; medians.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import time
from concurrent.futures import ProcessPoolExecutor

import timm
import torch

from comp import terminal
from comp.inference.fold import inference_copy
from comp.memory import keep_pages

CROP = 224
WORK = ("training fp32, 32 a step", "evaluation fp32, 40 a pass", "evaluation bf16, 40 a pass")


def _begin(keep: bool, threads: int) -> None:
    if keep:
        keep_pages()
    torch.set_num_threads(threads)


def rate(model: str, work: str, steps: int = 4) -> float:
    """Photos per second, median of some steps after two that warm up."""
    torch.manual_seed(0)
    network = timm.create_model(model).to(memory_format=torch.channels_last)
    training, count = work.startswith("training"), 32 if work.startswith("training") else 40
    images = torch.randn(count, 3, CROP, CROP).contiguous(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(network.parameters(), 0.01)
    if not training:
        network = inference_copy(network, CROP, torch.device("cpu"))[0]
    seconds = []
    for _ in range(steps + 2):
        began = time.perf_counter()
        if training:
            optimizer.zero_grad()
            network(images).logsumexp(1).mean().backward()
            optimizer.step()
        else:
            with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled="bf16" in work):
                network(images)
        seconds.append(time.perf_counter() - began)
    return count / statistics.median(seconds[2:])


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--model", default="resnet34")
    words.add_argument("--threads", type=int, default=torch.get_num_threads())
    words.add_argument("--rounds", type=int, default=3)
    given = words.parse_args()
    spawn = multiprocessing.get_context("spawn")
    rows = []
    with (
        ProcessPoolExecutor(1, spawn, initializer=_begin, initargs=(False, given.threads)) as plain,
        ProcessPoolExecutor(1, spawn, initializer=_begin, initargs=(True, given.threads)) as kept,
    ):
        for work in WORK:
            pairs = [
                [pool.submit(rate, given.model, work).result() for pool in (plain, kept)] for _ in range(given.rounds)
            ]
            before, after = (statistics.median(pair[at] for pair in pairs) for at in (0, 1))
            ratio = statistics.median(after / before for before, after in pairs)
            rows.append((work, f"{before:.1f}", f"{after:.1f}", f"{ratio:.2f}×"))
    title = f"{given.model}, {CROP} pixels, photos/s, {given.threads} threads"
    terminal.table(("work", "as it is", "kept", "ratio"), rows, title=title)


if __name__ == "__main__":
    main()
