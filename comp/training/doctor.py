"""Why does it not learn? Probes within a time budget, most telling first, and what follows from them: init, learning
rate, clipping or labels.

Where the network does not learn a single batch the doctor does not guess: it tries the remedies on the same images and
names those that worked.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from comp.config import Optim
from comp.nets.init import initialise
from comp.training.probes import FEWEST, STEPS, Depth, LabelFigures, Trial, depth_probe, trial

Batch = tuple[Tensor, Tensor]  # images (B, 3, H, W), labels (B,)
Change = Callable[[], None]
FEW = 8  # images of a batch, where time is short


@dataclass
class Report:
    """What was found.

    Attributes:
        depth: Scale through depth.
        labels: The labels of the sampled photos.
        overfit: One batch, over and over, with the config's own settings.
        remedies: Settings changed → the same batch.
        rates: Learning rate → several batches.
        advice: (what to try: init, lr, clipping, labels, or several with commas, or fine; a line with figures).
        left_out: What there was no time for, and the like.
    """

    depth: Depth
    labels: LabelFigures | None = None
    overfit: Trial | None = None
    remedies: dict[str, Trial] = field(default_factory=dict)
    rates: dict[float, Trial] = field(default_factory=dict)
    advice: list[tuple[str, str]] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    @property
    def tries(self) -> list[str]:
        """Which of init, lr, clipping, labels to try, each once; `fine` alone where nothing is wrong."""
        return list(dict.fromkeys(what for whats, _ in self.advice for what in whats.split(", ")))


class Bench:
    """A network with its start, on which trials are made within a time budget.

    Args:
        network: As it would start training.
        seconds: The budget.
        warmup: Whether the run's schedule warms up.
        dtype: Of mixed precision.
    """

    def __init__(self, network: nn.Module, seconds: float, warmup: bool, dtype: torch.dtype | None):
        self.network, self.warmup, self.dtype = network, warmup, dtype
        self.end = time.monotonic() + seconds
        self.start = copy.deepcopy(network.state_dict())
        self.per_image = 0.0  # seconds of a step, for each image

    @property
    def left(self) -> float:
        """Seconds left."""
        return max(0.0, self.end - time.monotonic())

    def time(self, images: Tensor, labels: Tensor, section: Optim) -> None:
        """Learn how long a step takes: the shortest of three, the first pays for what is set up once."""
        few = [(images[:FEW], labels[:FEW])]
        seconds = []
        for _ in range(3):
            began = time.monotonic()
            trial(self.network, few, section, steps=1, dtype=self.dtype)
            seconds.append(time.monotonic() - began)
        self.per_image = min(seconds) / len(few[0][1])

    def trial(
        self, batches: Sequence[Batch], section: Optim, share: float, change: Change | None = None
    ) -> Trial | None:
        """A trial from the start in a share of the time left, on fewer images where that makes enough steps.

        Returns:
            None where too few steps were possible to say anything.
        """
        seconds = self.left * share
        size = len(batches[0][0])
        classes = len(set(batches[0][1].tolist()))
        least = classes if classes < size else FEW  # a batch keeps one photo of each class, where it has them all
        while size > least and seconds < 4 * FEWEST * size * self.per_image:
            size = max(least, size // 2)
        if seconds < FEWEST / 2 * size * self.per_image:  # hopeless, also if the machine was busy just then
            return None
        self.restore()
        if change:
            change()
        some = [(images[:size], labels[:size]) for images, labels in batches]
        until = time.monotonic() + seconds
        done = trial(self.network, some, section, steps=STEPS, warmup=self.warmup, dtype=self.dtype, until=until)
        return done if len(done.losses) >= FEWEST or done.verdict == "cliff" else None

    def restore(self) -> None:
        """Put the start back."""
        self.network.load_state_dict(self.start)


def examine(
    network: nn.Module,
    batches: Sequence[Batch],
    section: Optim,
    *,
    seconds: float,
    scratch: bool,
    warmup: bool = False,
    dtype: torch.dtype | None = None,
    labels: LabelFigures | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Report:
    """Run the probes.

    Args:
        network: As it would start training; its weights are the same afterwards.
        batches: Several batches; the first is the one to be learnt by heart.
        section: The run's optimizer section.
        seconds: The time budget.
        scratch: Whether its start can be drawn anew.
        warmup: Whether the run's schedule warms up.
        dtype: Of mixed precision.
        labels: The label probe's figures, where there are.
        say: Told what is being done.
    """
    bench = Bench(network, seconds, warmup, dtype)
    say("scale through depth")
    report = Report(depth_probe(network, batches[0][0][:4], batches[0][1][:4]), labels)
    bench.time(*batches[0], section)
    say("learning one batch by heart")
    report.overfit = bench.trial(batches[:1], section, 0.4)
    if report.overfit is None:
        needed = FEWEST * FEW * bench.per_image / 0.4
        report.left_out.append(
            f"learning one batch by heart and three learning rates (time_limit={3 * needed:.0f} allows)"
        )
    elif report.overfit.verdict == "learns":
        _try_rates(bench, batches, section, report, say)
    else:
        _try_remedies(bench, batches, section, scratch, report, say)
        report.left_out.append("three learning rates: there is no point before it learns a single batch")
    bench.restore()
    advise(report, section, scratch)
    return report


def _try_rates(
    bench: Bench, batches: Sequence[Batch], section: Optim, report: Report, say: Callable[[str], None]
) -> None:
    rates = [section.lr, section.lr / 10, section.lr * 10]
    for place, rate in enumerate(rates):
        say(f"learning rate {rate:g}")
        tried = bench.trial(batches, section.model_copy(update={"lr": rate}), 1 / (len(rates) - place))
        if tried is None:
            report.left_out.append(f"learning rate {rate:g} (no time left)")
        else:
            report.rates[rate] = tried


def _try_remedies(
    bench: Bench, batches: Sequence[Batch], section: Optim, scratch: bool, report: Report, say: Callable[[str], None]
) -> None:
    """Change what the figures point at until one change makes the network learn the batch."""
    remedies = _remedies(bench.network, section, report, scratch)
    for place, (name, changed, change) in enumerate(remedies):
        say(f"the same with {name}")
        tried = bench.trial(batches[:1], changed, 1 / (len(remedies) - place), change)
        if tried is None:
            report.left_out.append(f"trying {name} (no time left)")
            continue
        report.remedies[name] = tried
        if tried.verdict == "learns":
            return


def _remedies(
    network: nn.Module, section: Optim, report: Report, scratch: bool
) -> list[tuple[str, Optim, Change | None]]:
    """What to try on a network that did not learn a batch: (settings, optimizer section, what to do to the weights)."""
    lower = section.clip / 10 if section.clip else 0.1
    clipped = section.model_copy(update={"clip": lower, "clip_mode": "norm"})
    slower = section.model_copy(update={"lr": section.lr / 10})
    faster = section.model_copy(update={"lr": section.lr * 10})

    def he() -> None:
        initialise(network, kind="he", fan="in", seed=0)

    init, clip = "model.init.kind=he model.init.fan=in", f"optim.clip={lower:g}"
    if scratch and report.depth.verdict != "fine":
        return [(f"{init} {clip}", clipped, he), (init, section, he)]
    if report.overfit and report.overfit.verdict == "cliff":
        return [(clip, clipped, None), (f"optim.lr={slower.lr:g}", slower, None)]
    tries: list[tuple[str, Optim, Change | None]] = [(f"optim.lr={faster.lr:g}", faster, None)]
    return [*tries, (f"{init} {clip}", clipped, he)] if scratch else tries


def advise(report: Report, section: Optim, scratch: bool) -> None:
    """Put the figures into words: `report.advice`.

    Args:
        report: Gets the advice.
        section: The run's optimizer section.
        scratch: Whether the network's start can be drawn anew.
    """
    say = report.advice.append
    labels, depth, overfit = report.labels, report.depth, report.overfit
    if labels is not None and labels.verdict == "one class":
        say(("labels", "all sampled photos have the same label: look at the file of labels"))
    elif labels is not None and labels.verdict == "unrelated":
        say(
            (
                "labels",
                f"{labels.line()}: if the file of labels is in another order than the photos, this is how it looks",
            )
        )
    learns = overfit is not None and overfit.verdict == "learns"
    if depth.verdict != "fine" and not learns:
        course = f"; one batch: {overfit.line()}" if overfit else ""
        fix = "start with model.init.kind=he, or Xavier on more layers (kind=vgg, larger first and last), or BatchNorm"
        if not scratch:
            fix = "check the weights file: a pretrained network does not do this"
        say(("init", f"the signal is {depth.verdict} ({depth.line()}){course}; {fix}"))
    worked = [(name, tried) for name, tried in report.remedies.items() if tried.verdict == "learns"]
    for name, tried in worked:
        what = ", ".join(what for what, key in (("init", "init"), ("clipping", "clip"), ("lr", "lr=")) if key in name)
        say((what, f"{name} works on the batch that was not learnt: {tried.line()}"))
    if overfit and not learns and not worked:
        if overfit.verdict == "cliff":
            gentler = f"optim.clip={(section.clip or 1) / 10:g} or optim.lr={section.lr / 10:g}"
            say(("clipping", f"one batch: {overfit.line()}; try {gentler}"))
        elif depth.verdict == "fine":
            say(
                (
                    "lr",
                    f"one batch: {overfit.line()}; the scale is fine: try a higher optim.lr, and look at `comp show`",
                )
            )
    own = report.rates.get(section.lr)
    if own is not None:
        best = min(report.rates, key=lambda rate: report.rates[rate].order)
        better = report.rates[best]
        if best != section.lr and better.verdict == "learns" and better.end < 0.7 * own.end:
            course = f"{better.line()} against {own.line()} at {section.lr:g}"
            say(("lr", f"optim.lr={best:g} is better over these few steps: {course}"))
        elif own.verdict == "cliff":
            say(("clipping", f"several batches: {own.line()}; try optim.clip={(section.clip or 1) / 10:g}"))
    if not report.advice and learns and overfit:
        say(("fine", f"it learns one batch by heart ({overfit.line()}): nothing is wrong here"))


def even_batches(labels: NDArray[np.int64], size: int, count: int, seed: int = 0) -> list[NDArray[np.int64]]:
    """Batches in which every class has as many photos as can be, so that the loss of a constant answer is ln(classes).

    Args:
        labels: (N,) labels of the photos to choose from.
        size: Photos of a batch.
        count: How many batches.
        seed: Of the choice.

    Returns:
        Positions in `labels`, each photo at most once while its class has others.
    """
    rng = np.random.default_rng(seed)
    queues = [rng.permutation(np.flatnonzero(labels == label)) for label in np.unique(labels)]
    chosen = [int(queue[turn % len(queue)]) for turn in range(-(-size * count // len(queues))) for queue in queues]
    return [np.array(chosen[i * size : (i + 1) * size], dtype=np.int64) for i in range(count)]
