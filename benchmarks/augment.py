"""What augmentation and loading cost: `python -m benchmarks.augment [--train]`, on a machine that does nothing else.

Prints microseconds of one core per image for each part, the crop law against resizing everything first, and with
`--train` the training speed on the CPU with 0, 1, 2 and 4 loader workers, relative to none (median of three rounds,
taken in turn). Photos are drawn, 500 × 375 pixels like those of the flower sets.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np

from comp.data import petals
from comp.data.augment import AUGMENTATIONS, pipeline, resize
from comp.data.pca import principal_colours
from comp.data.pixels import Reader, decode

CROP, SCALE = 224, (256, 480)


def photos(count: int) -> list[bytes]:
    """JPEGs of drawn flowers."""
    kinds = petals.species(12, np.random.default_rng(0))
    drawn = [petals.photo(kinds[i % 12], kinds, 500, np.random.default_rng([0, i])) for i in range(count)]
    return [cv2.imencode(".jpg", image[:375, :, ::-1])[1].tobytes() for image in drawn]


def cost(function: Callable[[int], object], times: int = 100) -> float:
    """Microseconds of processor time per call."""
    function(0)
    begin = time.process_time()
    for number in range(times):
        function(number)
    return (time.process_time() - begin) / times * 1e6


def parts(data: list[bytes]) -> None:
    images = [decode(each, "photo") for each in data]
    pca = principal_colours(images)
    n = len(images)
    print(f"{'decode':22} {cost(lambda i: decode(data[i % n], 'photo')):8.0f} µs")
    plain = pipeline(["plain"], CROP, SCALE, ["hflip"], pca=pca)
    one_step = cost(lambda i: plain(images[i % n], i))

    def two_steps(i: int) -> Any:
        short = int(np.random.default_rng(i).integers(SCALE[0], SCALE[1] + 1))
        whole = resize(images[i % n], short, round(short * 500 / 375))
        return np.ascontiguousarray(whole[:CROP, :CROP])

    print(f"{'plain':22} {one_step:8.0f} µs   resizing everything first costs {cost(two_steps) / one_step:.1f}×")
    for name, part in AUGMENTATIONS.items():
        if name == "plain":
            continue
        names = [name] if part.law else ["plain", name]
        augment = pipeline(names, CROP, SCALE, ["hflip", "vflip", "rotate90"], pca=pca)
        whole = cost(lambda i, augment=augment: augment(images[i % n], i))
        print(f"{name:22} {whole if part.law else whole - one_step:8.0f} µs")


def training(data: list[bytes], folder: Path, network: str, crop: int, batch: int, steps: int) -> None:
    import timm
    import torch

    from comp.data.loader import TrainingImages, batches

    (folder / "photos").write_bytes(b"".join(data))
    lengths = [len(each) for each in data]
    offsets = [sum(lengths[:i]) for i in range(len(data))]
    ids = [str(i) for i in range(len(data))]
    reader = Reader(folder, ["photos"] * len(data), offsets, lengths, ids)
    dataset: Any = SimpleNamespace(ids=ids, labels=np.zeros(len(ids), int), reader=lambda: reader)
    scale = (crop * 256 // 224, crop * 480 // 224)
    images = TrainingImages(dataset, pipeline(["plain"], crop, scale, ["hflip"]), 0)
    model = timm.create_model(network, num_classes=5).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)

    def speed(workers: int) -> float:
        plan = [[(i % len(ids), step) for i in range(batch)] for step in range(steps + 2)]
        begin = 0.0
        for step, (pixels, labels, _) in enumerate(batches(images, plan, workers)):
            if step == 2:
                begin = time.perf_counter()
            with torch.autocast("cpu", torch.bfloat16):
                logits = model(pixels.float().div_(255).contiguous(memory_format=torch.channels_last))
                loss = torch.nn.functional.cross_entropy(logits, labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        return steps * batch / (time.perf_counter() - begin)

    rounds = [{workers: speed(workers) for workers in (0, 1, 2, 4)} for _ in range(3)]
    median = {workers: statistics.median(each[workers] for each in rounds) for workers in rounds[0]}
    ratios = "  ".join(f"{workers}: {value / median[0]:.2f}" for workers, value in median.items())
    cores = len(os.sched_getaffinity(0))
    print(f"{network} at {crop} pixels, {cores} cores, {median[0]:.0f} images/s; by workers {ratios}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--train", action="store_true")
    parser.add_argument("--network", default="resnet34")
    parser.add_argument("--crop", type=int, default=64)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=15)
    arguments = parser.parse_args()
    cv2.setNumThreads(0)
    data = photos(64)
    if arguments.train:
        with tempfile.TemporaryDirectory() as folder:
            training(data, Path(folder), arguments.network, arguments.crop, arguments.batch, arguments.steps)
    else:
        parts(data)


if __name__ == "__main__":
    main()
