"""Speed of test-time views against plain loops: `python -m benchmarks.views`.

All loops see the same JPEG files and the same network; they take turns, round by round, so that whatever else the
machine does hits all of them. Read the ratios, not the images per second.

    crop by crop     torchvision's TenCrop, one forward pass per crop, fp32
    ten a batch      the same with the ten crops of a photo in one forward pass, as torchvision's documentation has it
    ttach            its merger over flip × five crops, batches of 8 photos (the package where it is installed, else the
                     loop it runs: per view one transform of the batch and one forward pass)
    per view         multiscale: every view decodes and resizes again, one forward pass each, fp32
    comp             comp.inference.evaluate, in a process of its own: it sets up the memory of its process for big
                     tensors (comp.memory), and the others shall run as whoever uses them runs them

`python -m benchmarks.views --agree RUN --data SET` compares fp32 with the fast precision on a trained run instead.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import timm
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import functional as tv

from comp import config, metrics, terminal
from comp.commands import common, truths
from comp.data.pixels import decode
from comp.inference.evaluate import evaluate
from comp.inference.precision import resolve_precision
from comp.inference.predict import rows_of_split
from comp.inference.spec import parse
from comp.nets import store
from comp.runs import Run

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
Probs = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Photos:
    """JPEG files in memory, as much of a data set as `evaluate` asks for."""

    jpegs: list[bytes]
    widths: npt.NDArray[np.int64]
    heights: npt.NDArray[np.int64]
    bad: tuple[str, ...] = ()

    @property
    def ids(self) -> npt.NDArray[np.str_]:
        return np.array([str(number) for number in range(len(self.jpegs))])

    def reader(self) -> Photos:
        return self

    def pixels(self, row: int) -> npt.NDArray[np.uint8]:
        return decode(self.jpegs[row], row)

    def pil(self, row: int) -> Image.Image:
        return Image.open(io.BytesIO(self.jpegs[row])).convert("RGB")


def draw(count: int, width: int = 500, height: int = 375) -> Photos:
    """Photos of clouds of colour: as many bytes and as much detail as a photograph of that size."""
    rng = np.random.default_rng(0)
    jpegs = []
    for _ in range(count):
        layers = []
        for step in (64, 16, 4):
            coarse = rng.integers(0, 256, (height // step + 1, width // step + 1, 3), np.uint8)
            layers.append(np.asarray(Image.fromarray(coarse).resize((width, height))))
        pixels = np.mean(layers, axis=0).clip(0, 255).astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "JPEG", quality=90)
        jpegs.append(file.getvalue())
    return Photos(jpegs, np.full(count, width), np.full(count, height))


def normalised(image: Image.Image, device: torch.device) -> Tensor:
    return tv.normalize(tv.to_tensor(image), MEAN, STD)[None].to(device)


@torch.inference_mode()
def crop_by_crop(network: nn.Module, photos: Photos, device: torch.device) -> Probs:
    probs = []
    for row in range(len(photos.jpegs)):
        crops = tv.ten_crop(tv.resize(photos.pil(row), [256]), [224])
        probs.append(torch.stack([network(normalised(crop, device)).softmax(1)[0] for crop in crops]).mean(0))
    return torch.stack(probs).cpu().numpy()


@torch.inference_mode()
def ten_a_batch(network: nn.Module, photos: Photos, device: torch.device) -> Probs:
    probs = []
    for row in range(len(photos.jpegs)):
        crops = tv.ten_crop(tv.resize(photos.pil(row), [256]), [224])
        batch = torch.cat([normalised(crop, device) for crop in crops])
        probs.append(network(batch).softmax(1).mean(0))
    return torch.stack(probs).cpu().numpy()


@torch.inference_mode()
def by_ttach(network: nn.Module, photos: Photos, device: torch.device, batch: int = 8) -> Probs:
    """Batches of whole photos; per view one transform and one forward pass, outputs merged by their mean."""
    try:
        import ttach

        merged = ttach.ClassificationTTAWrapper(
            nn.Sequential(network, nn.Softmax(1)),
            ttach.Compose([ttach.HorizontalFlip(), ttach.FiveCrops(224, 224)]),
            merge_mode="mean",
        )
    except ImportError:

        def merged(x: Tensor) -> Tensor:
            top, left = x.shape[2] - 224, x.shape[3] - 224
            total = 0
            for mirrored in (x, x.flip(3)):
                for y, z in ((0, 0), (0, left), (top, 0), (top, left), (top // 2, left // 2)):
                    total = total + network(mirrored[:, :, y : y + 224, z : z + 224]).softmax(1)
            return total / 10

    probs = []
    for start in range(0, len(photos.jpegs), batch):
        rows = range(start, min(start + batch, len(photos.jpegs)))
        probs.append(merged(torch.cat([normalised(tv.resize(photos.pil(row), [256]), device) for row in rows])))
    return torch.cat(probs).cpu().numpy()


@torch.inference_mode()
def per_view(network: nn.Module, photos: Photos, device: torch.device) -> Probs:
    probs = []
    for row in range(len(photos.jpegs)):
        views = []
        for size in (224, 256, 384, 480, 640):
            for mirror in (False, True):
                image = tv.resize(photos.pil(row), [size])
                views.append(network(normalised(tv.hflip(image) if mirror else image, device)).softmax(1)[0])
        probs.append(torch.stack(views).mean(0))
    return torch.stack(probs).cpu().numpy()


@dataclass(frozen=True)
class Ours:
    """The loop of this project over one view set."""

    views: str
    precision: str
    workers: int
    batch: int | None

    def __call__(self, network: nn.Module, photos: Photos, device: torch.device) -> Probs:
        found = evaluate(
            network,
            photos,  # type: ignore[arg-type]
            np.arange(len(photos.jpegs)),
            parse(self.views),
            name="benchmark",
            image=config.Image(crop=224),
            mean=MEAN,
            std=STD,
            precision=self.precision,
            device=device,
            workers=self.workers,
            batch=self.batch,
        )
        return found.probs


@torch.no_grad()
def lively(network: nn.Module, photos: Photos) -> nn.Module:
    """A network that tells these photos apart: statistics of its own, a classifier of large weights.

    With fresh weights all probabilities are 1/1000 and any two loops agree.
    """
    torch.manual_seed(0)
    few = torch.cat([normalised(photos.pil(row).resize((224, 224)), torch.device("cpu")) for row in range(4)])
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.momentum = None
    network.train()(few)
    head = network.get_classifier()
    nn.init.normal_(head.weight, std=4 * head.in_features**-0.5)
    return network.eval()


def main(words: Sequence[str] | None = None) -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--model", default="resnet34")
    options.add_argument("--photos", type=int, default=16)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--workers", type=int, default=None, help="threads that decode and resize (2; 8 with a GPU)")
    options.add_argument("--batch", type=int, default=None)
    options.add_argument("--threads", type=int, default=None)
    options.add_argument("--busy", action="store_true", help="CPU time of one thread, for a machine others use too")
    options.add_argument("--only", default="", help="measure only the loops whose name holds this word")
    options.add_argument("--agree", default="", metavar="RUN")
    options.add_argument("--data", default="petals", metavar="SET")
    options.add_argument("--fold", type=int, default=None, help="with --agree: this fold alone")
    options.add_argument("--json", action="store_true")
    options.add_argument("--memory", default="", metavar="SPEC", help=argparse.SUPPRESS)
    given = options.parse_args(words)
    if given.threads or given.busy:
        torch.set_num_threads(given.threads or 1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    workers = given.workers if given.workers is not None else (8 if device.type == "cuda" else 2)
    if given.agree:
        agree(given.agree, given.data, device, workers, given.fold)
        return
    photos = draw(given.photos)
    network = lively(timm.create_model(given.model), photos).to(device)
    if given.memory:
        Ours(given.memory, "fp32", workers, given.batch)(network, photos, device)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)
        return
    half = resolve_precision("auto", device)
    auto = {torch.bfloat16: "bf16", torch.float16: "fp16", None: ""}[half]
    loops: dict[str, tuple[str, Loop]] = {
        "tencrop: crop by crop": ("fp32", crop_by_crop),
        "tencrop: ten a batch": ("fp32", ten_a_batch),
        "tencrop: " + ("ttach" if _has_ttach() else "ttach's loop"): ("fp32", by_ttach),
        "tencrop: comp": ("fp32", Ours("tencrop", "fp32", workers, given.batch)),
        f"tencrop: comp {auto}": (auto, Ours("tencrop", auto, workers, given.batch)),
        "multiscale: per view": ("fp32", per_view),
        "multiscale: comp": ("fp32", Ours("multiscale", "fp32", workers, given.batch)),
        f"multiscale: comp {auto}": (auto, Ours("multiscale", auto, workers, given.batch)),
    }
    chosen = {name: loop for name, (kind, loop) in loops.items() if kind and given.only in name}
    results, rates = measure(chosen, network, photos, device, given.rounds, given.busy)
    report(chosen, results, rates, f"{given.model}, 224, {device.type}, {torch.get_num_threads()} threads", given.json)
    if not given.only:
        for views in ("center", "tencrop", "multicrop", "multiscale"):
            command = [sys.executable, "-m", "benchmarks.views", "--memory", views, "--photos", "8"]
            peak = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
            terminal.say(f"peak memory of a process, {views} ({len(parse(views).views(224, 256))} views): {peak} MiB")


Loop = Callable[[nn.Module, Photos, torch.device], Probs]
_given: tuple[nn.Module, Photos, torch.device, bool]  # what the loops of this process work on


def _begin(network: nn.Module, photos: Photos, device: torch.device, busy: bool, threads: int) -> None:
    global _given
    torch.set_num_threads(threads)
    _given = network.to(device), photos, device, busy


def _timed(loop: Loop, count: int) -> tuple[Probs, float]:
    """The loop over the first `count` photos, and how long it took."""
    network, photos, device, busy = _given
    some = Photos(photos.jpegs[:count], photos.widths[:count], photos.heights[:count])
    clock = time.process_time if busy else time.perf_counter
    begin = clock()
    return loop(network, some, device), clock() - begin


def measure(
    loops: dict[str, Loop], network: nn.Module, photos: Photos, device: torch.device, rounds: int, busy: bool
) -> tuple[dict[str, Probs], dict[str, list[float]]]:
    """Every loop once per round, the order turned from round to round; a first, short one warms up."""
    rates: dict[str, list[float]] = {name: [] for name in loops}
    results: dict[str, Probs] = {}
    _begin(network, photos, device, busy, torch.get_num_threads())
    given = (network, photos, device, busy, torch.get_num_threads())
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=_begin, initargs=given) as apart:

        def run(loop: Loop, count: int) -> tuple[Probs, float]:
            return apart.submit(_timed, loop, count).result() if isinstance(loop, Ours) else _timed(loop, count)

        for loop in loops.values():
            run(loop, 2)
        names = list(loops)
        for turn in range(rounds):
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                results[name], seconds = run(loops[name], len(photos.jpegs))
                rates[name].append(len(photos.jpegs) / seconds)
    return results, rates


def report(
    loops: dict[str, Any], results: dict[str, Probs], rates: dict[str, list[float]], title: str, as_json: bool
) -> None:
    rows = []
    for name in loops:
        task = name.split(":")[0]
        first = next(other for other in loops if other.startswith(task))
        ratios = [mine / base for mine, base in zip(rates[name], rates[first], strict=True)]
        apart = float(np.abs(results[name] - results[first]).max())
        rows.append((name, statistics.median(rates[name]), statistics.median(ratios), apart))
    if as_json:
        terminal.say(
            json.dumps([dict(zip(("loop", "images_per_s", "ratio", "max_dp"), row, strict=True)) for row in rows])
        )
        return
    cells = [(name, f"{rate:.2f}", f"{ratio:.2f}×", f"{apart:.1e}") for name, rate, ratio, apart in rows]
    terminal.table(("loop", "images/s", "against the first", "max |Δp|"), cells, title=title)


def agree(run: str, data: str, device: torch.device, workers: int, number: int | None = None) -> None:
    """fp32 against the fast precision on a trained run's out-of-fold photos: top-1, probabilities, score."""
    home, data_config, _, truth = truths.of_set(data)
    this = Run(home, data, run)
    _, dataset = common.of_run(home, this.config())
    half = {torch.bfloat16: "bf16", torch.float16: "fp16", None: ""}[resolve_precision("auto", device)]
    if not half:
        raise SystemExit("this device computes in fp32 alone")
    rows = []
    for views in ("center", "tencrop", "multiscale"):
        pairs, labels = [], []
        for fold in this.finished() if number is None else [this.fold(number)]:
            stored = store.load_model(fold, device)
            places = rows_of_split(dataset, truth.folds, fold, "oof")
            both = [
                evaluate(
                    stored.network,
                    dataset,
                    places,
                    parse(views, data_config.symmetries),
                    name=str(fold),
                    image=stored.image,
                    mean=stored.mean,
                    std=stored.std,
                    precision=precision,
                    device=device,
                    workers=workers,
                ).probs
                for precision in ("fp32", half)
            ]
            pairs.append(both)
            labels.append(dataset.labels[places])
        full, fast = (np.concatenate([pair[number] for pair in pairs]) for number in (0, 1))
        truth_of_rows = np.concatenate(labels)
        gain = metrics.paired_difference(truth_of_rows, fast, full, None, data_config.metric)
        score = metrics.METRICS[data_config.metric].function(truth_of_rows, full)
        same = (full.argmax(1) == fast.argmax(1)).mean()
        rows.append(
            (
                views,
                f"{100 * same:.2f} %",
                f"{np.abs(full - fast).mean():.1e}",
                f"{np.abs(full - fast).max():.1e}",
                f"{score:.4f}",
                f"{gain.value:+.4f} ± {gain.se:.4f}",
            )
        )
    head = ("views", "same top-1", "mean |Δp|", "max |Δp|", f"{data_config.metric} fp32", f"change with {half}")
    terminal.table(head, rows, title=f"{run} on {data}, {len(truth_of_rows)} out-of-fold photos, {device.type}")


def _has_ttach() -> bool:
    try:
        import ttach  # noqa: F401
    except ImportError:
        return False
    return True


if __name__ == "__main__":
    main()
