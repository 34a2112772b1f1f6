"""The only loop that evaluates a network: photos in, one row of probabilities per photo out."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, log_softmax

from comp import config
from comp.errors import CompError, Exit
from comp.inference.batches import Batch, batches, chunk_length
from comp.inference.cost import aspect
from comp.inference.fold import inference_copy
from comp.inference.precision import resolve_precision
from comp.inference.spec import View, ViewSpec
from comp.memory import keep_pages
from comp.terminal import warn

if TYPE_CHECKING:
    from collections.abc import Iterator

    from comp.data.manifest import Dataset

__all__ = ["Evaluation", "evaluate", "resolve_precision"]

# Crops of 224 pixels in one forward pass, per CPU thread and per GPU. More would only take more memory.
BATCH = {"cpu": 10, "cuda": 256}
_OUT_OF_MEMORY = ("can't allocate memory", "out of memory", "not enough memory")


@dataclass
class Evaluation:
    """What a network thinks of N photos.

    Attributes:
        ids: (N,) image ids in the order of the rows asked for.
        probs: (N, C) float32, each row sums to 1.
        ms_per_image: Wall time of one process per photo it evaluated, milliseconds, reading included.
        views: For each view its probabilities (N, C) float16, where they were asked for.
    """

    ids: npt.NDArray[np.str_]
    probs: npt.NDArray[np.float32]
    ms_per_image: float
    views: dict[str, npt.NDArray[np.float16]] | None = None


def evaluate(
    network: nn.Module,
    dataset: Dataset,
    rows: npt.NDArray[np.int64] | Sequence[int],
    spec: ViewSpec,
    *,
    name: str,
    image: config.Image,
    mean: Sequence[float],
    std: Sequence[float],
    precision: str = "auto",
    device: torch.device,
    workers: int = 0,
    batch: int | None = None,
    fold: bool = True,
    keep: bool = False,
    prior: npt.NDArray[np.floating[Any]] | None = None,
    rank: int = 0,
    world: int = 1,
    gather: Callable[[Any], list[Any]] | None = None,
    progress: Callable[[int], object] | None = None,
    estimate: Callable[[float], object] | None = None,
    stop: Callable[[], object] | None = None,
) -> Evaluation:
    """Average a network's probabilities over the views of each photo.

    Args:
        network: Emits logits (B, C). It is left as it was, weights, mode and all.
        dataset: Where the photos are.
        rows: (N,) which of them, each at most once.
        spec: The views.
        name: The run or network, for messages.
        image: The geometry it was trained with.
        mean: Of the channels, 0..1.
        std: Of the channels, 0..1.
        precision: fp32, bf16, fp16 or auto (see `resolve_precision`).
        device: Where the network is.
        workers: Threads that read, decode and resize; 0 does it between the forwards.
        batch: Training crops in one forward pass; larger views count as more. The default is 10 of 224 pixels for
            each CPU thread, 256 on a GPU.
        fold: Work on a copy with BatchNorm folded into the convolutions, channels last.
        keep: Return each view's probabilities too.
        prior: (C,) what a photo that cannot be decoded gets (`on_bad: skip`).
        rank: Which of `world` processes this is; it takes rows[rank::world].
        world: How many there are; all of them return the same, every photo once.
        gather: Collects one object from each process; default `torch.distributed.all_gather_object`.
        progress: Called with a number of photos whenever so many more are done.
        estimate: Called once, after a few measured batches, with the seconds that all photos will take.
        stop: Called between forwards; what it raises passes through and nothing is lost. With several processes it is
            called between chunks, equally often in each, so that they can agree in it.

    Raises:
        CompError: A network that emits NaN or infinity (exit code 6, names the first photo), a photo that does not
            decode, memory that does not suffice for a single view. With several processes each raises it.
    """
    rows = np.asarray(rows, dtype=np.int64)
    bad = _bad_rows(dataset, rows)
    if bad.any() and prior is None:
        first = str(dataset.ids[rows[bad][0]])
        raise CompError(f"image {first}", "cannot be decoded", "it needs a class prior in its place", Exit.DATA)
    good = rows[~bad]
    if device.type == "cpu":
        keep_pages()
    loop = _Loop(network, spec, name, image, mean, std, precision, device, batch, fold)
    mine: dict[str, Any] = {"rows": good[rank::world].tolist(), "error": None}
    try:
        with _evaluating(loop.network), ThreadPoolExecutor(max(1, workers)) as pool:
            most = -(-len(good) // world)
            done = loop.run(
                dataset, mine["rows"], most, pool if workers else None, keep, world, progress, estimate, stop
            )
            mine.update(done)
    except CompError as error:
        if world == 1:
            raise
        mine["error"] = error
    everyone = [mine] if world == 1 else (gather or _all_gather(world))(mine)
    return _join(dataset, rows, bad, everyone, loop.views if keep else None, prior, _classes(network), name)


class _Loop:
    """One network prepared for evaluation, and how much of it fits into memory."""

    def __init__(
        self,
        network: nn.Module,
        spec: ViewSpec,
        name: str,
        image: config.Image,
        mean: Sequence[float],
        std: Sequence[float],
        precision: str,
        device: torch.device,
        batch: int | None,
        fold: bool,
    ) -> None:
        self.spec, self.name, self.device, self.crop = spec, name, device, image.crop
        self.views: list[View] = spec.views(image.crop, image.test_size)
        self.dtype = resolve_precision(precision, device)
        self.budget = batch * image.crop**2 if batch else _usual_batch(device) * 224**2
        self.network = inference_copy(network, image.crop, device)[0] if fold else network
        self.forward = _class_scores(self.network, spec, name, image.crop)
        self.mean = 255 * torch.tensor(mean, dtype=torch.float32, device=device).view(1, 3, 1, 1)
        self.std = 255 * torch.tensor(std, dtype=torch.float32, device=device).view(1, 3, 1, 1)

    def run(
        self,
        dataset: Dataset,
        rows: list[int],
        most: int,
        pool: ThreadPoolExecutor | None,
        keep: bool,
        world: int,
        progress: Callable[[int], object] | None,
        estimate: Callable[[float], object] | None,
        stop: Callable[[], object] | None,
    ) -> dict[str, Any]:
        """This process's rows: their probabilities, those of the views, and the seconds it took."""
        if self.spec.dense:  # photos of one shape share a forward pass
            ratio = np.maximum(dataset.widths, 1) / np.maximum(dataset.heights, 1)
            rows = sorted(rows, key=lambda row: (ratio[row], row))
        length = chunk_length(self.views, self.crop, aspect(dataset.widths, dataset.heights), self.budget)
        between, stops = (stop or _nothing), 0
        results: list[Tensor] = []
        kept: list[Tensor] = []
        unchecked: deque[tuple[Tensor, tuple[int, ...]]] = deque()
        scores: Tensor | None = None
        begin, warm, done = time.perf_counter(), 0.0, 0
        reader = dataset.reader()
        for part in batches(rows, reader.pixels, self.views, self.crop, length, self.budget, pool):
            if world == 1 or scores is None:
                between()
                stops += 1
            log_probs = self.log_probs(part)
            if scores is None:
                shape = (len(part.chunk), len(self.views), log_probs.shape[1])
                scores = torch.empty(shape, dtype=torch.float32, device=log_probs.device)
            scores[torch.from_numpy(part.slots), torch.from_numpy(part.views)] = log_probs
            if not part.last:
                continue
            probs = scores.exp().mean(1) if self.spec.space == "probs" else scores.mean(1).softmax(1)
            unchecked.append((probs, part.chunk))
            if len(unchecked) > 1:  # the device has the next batch by now and need not wait for this look
                self.check(*unchecked.popleft(), dataset)
            results.append(probs)
            if keep:
                kept.append(scores.exp().half().cpu())
            scores, done = None, done + len(part.chunk)
            if progress:
                progress(len(part.chunk))
            now = time.perf_counter()
            if done == len(part.chunk):
                warm = now
            elif estimate and now - warm > 1.0 and 3 * length <= done < len(rows):
                estimate((warm - begin) + (now - warm) / (done - length) * (len(rows) - length))
                estimate = None
        for probs, chunk in unchecked:
            self.check(probs, chunk, dataset)
        if world > 1:
            for _ in range(stops, -(-most // length)):
                between()
        return {
            "rows": rows,
            "probs": torch.cat(results).cpu().numpy() if results else None,
            "views": torch.cat(kept).numpy() if kept else None,
            "seconds": time.perf_counter() - begin,
        }

    def log_probs(self, part: Batch) -> Tensor:
        """(B, C) float32; when memory runs out the batch is halved, from here on."""
        pixels = torch.from_numpy(part.pixels)
        if self.device.type == "cuda":
            pixels = pixels.pin_memory()
        area = pixels.shape[1] * pixels.shape[2]
        while True:
            step = max(1, self.budget // area)
            try:
                return torch.cat([self.scores(some) for some in torch.split(pixels, step)])
            except (torch.OutOfMemoryError, RuntimeError, MemoryError) as error:
                if not isinstance(error, torch.OutOfMemoryError | MemoryError) and not any(
                    words in str(error) for words in _OUT_OF_MEMORY
                ):
                    raise
            step = min(step, len(pixels))
            if step == 1:
                what = f"not enough memory for one view of {pixels.shape[2]}×{pixels.shape[1]} pixels"
                raise CompError(self.name, what, "use smaller scales or a smaller network", Exit.SYSTEM)
            self.budget = step // 2 * area
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            warn(f"out of memory: {step // 2} views of {pixels.shape[2]}×{pixels.shape[1]} at a time from here on")

    def scores(self, pixels: Tensor) -> Tensor:
        """uint8 (B, h, w, 3) to log-probabilities (B, C) float32."""
        half = torch.autocast(self.device.type, self.dtype) if self.dtype else nullcontext()
        with torch.inference_mode(), half:
            x = pixels.to(self.device, non_blocking=True).permute(0, 3, 1, 2)
            return self.forward(x.float().sub_(self.mean).div_(self.std))

    def check(self, probs: Tensor, rows: Sequence[int], dataset: Dataset) -> None:
        """Refuse (K, C) probabilities that are not finite."""
        fine = torch.isfinite(probs).all(1)
        if not bool(fine.all()):
            first = str(dataset.ids[rows[int((~fine).nonzero()[0])]])
            raise CompError(
                self.name,
                f"the network's output for image {first} is not finite",
                "train it again with a lower learning rate, or predict with precision=fp32",
                Exit.NUMERIC,
            )


def _class_scores(network: nn.Module, spec: ViewSpec, name: str, crop: int) -> Callable[[Tensor], Tensor]:
    """Images (B, 3, h, w) to log-probabilities (B, C) float32, read as the spec says."""
    if not spec.dense:
        return lambda x: log_softmax(network(x).float(), 1)
    from comp.nets.dense import dense_parts

    parts = dense_parts(network, name, crop)

    def logits(x: Tensor) -> Tensor:
        if parts.pooled:  # what the larger image gives, pooled and classified once
            return log_softmax(network(x).float(), 1)
        return log_softmax(parts.head_map(parts.features(x)).float().mean((2, 3)), 1)

    def window(x: Tensor) -> Tensor:
        maps = parts.features(x)
        if parts.pooled:
            size = [min(size, length) for size, length in zip(parts.window, maps.shape[2:], strict=True)]
            maps = avg_pool2d(maps, size, stride=1)
        return log_softmax(parts.head_map(maps).float().mean((2, 3)), 1)

    def softmax(x: Tensor) -> Tensor:
        scores = parts.head_map(parts.features(x)).float()
        return torch.logsumexp(log_softmax(scores, 1).flatten(2), 2) - math.log(scores.shape[2] * scores.shape[3])

    return {"logits": logits, "window": window, "softmax": softmax}[spec.dense]


def _join(
    dataset: Dataset,
    rows: npt.NDArray[np.int64],
    bad: npt.NDArray[np.bool_],
    everyone: Sequence[dict[str, Any]],
    views: Sequence[View] | None,
    prior: npt.NDArray[np.floating[Any]] | None,
    classes: int,
    name: str,
) -> Evaluation:
    """All processes' results in the order of `rows`; what is there twice counts once, nothing may be missing."""
    for part in everyone:
        if part["error"] is not None:
            raise part["error"]
    found = [part for part in everyone if part["probs"] is not None]
    if prior is not None:
        classes = len(prior)
    classes = found[0]["probs"].shape[1] if found else classes
    probs = np.full((len(rows), classes), np.nan)
    kept = np.zeros((len(rows), len(views), classes), np.float16) if views is not None else None
    place = {int(row): number for number, row in enumerate(rows)}
    for part in found:
        places = [place[row] for row in part["rows"]]
        probs[places] = part["probs"]
        if kept is not None:
            kept[places] = part["views"]
    if prior is not None:
        probs[bad] = prior
        if kept is not None:
            kept[bad] = prior
    missing = np.isnan(probs).any(axis=1) if classes else np.zeros(0, bool)
    if missing.any():
        first = dataset.ids[rows[missing][0]]
        raise CompError(name, f"no process predicted image {first}", "run the same command again", Exit.PROCESS)
    probs /= probs.sum(axis=1, keepdims=True)
    seconds = [part["seconds"] / len(part["rows"]) for part in found]
    return Evaluation(
        np.asarray([dataset.ids[row] for row in rows], dtype=np.str_),
        probs.astype(np.float32),
        1000 * float(np.mean(seconds)) if seconds else 0.0,
        {view.name: kept[:, number] for number, view in enumerate(views)} if views and kept is not None else None,
    )


@contextmanager
def _evaluating(network: nn.Module) -> Iterator[None]:
    """Evaluation mode inside, every module's own mode afterwards."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _all_gather(world: int) -> Callable[[Any], list[Any]]:
    def gather(value: Any) -> list[Any]:
        everyone: list[Any] = [None] * world
        torch.distributed.all_gather_object(everyone, value)
        return everyone

    return gather


def _bad_rows(dataset: Dataset, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    bad = set(map(str, dataset.bad))
    return np.array([str(dataset.ids[row]) in bad for row in rows], dtype=bool)


def _classes(network: nn.Module) -> int:
    return int(getattr(network, "num_classes", 0) or 0)


def _usual_batch(device: torch.device) -> int:
    if device.type == "cpu":
        return BATCH["cpu"] * torch.get_num_threads()
    return BATCH["cuda"]


def _nothing() -> None:
    return None
