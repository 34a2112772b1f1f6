"""What a fold trains with: its rows, the processes, the network and its start, the images."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from comp import files, runs, terminal
from comp.config import RunConfig
from comp.data import folds as splits
from comp.data.augment import needs_pca, pipeline
from comp.data.loader import TrainingImages
from comp.data.order import seed_of
from comp.data.pca import pca_colour
from comp.errors import CompError, Exit
from comp.inference.precision import resolve_precision
from comp.launch import gpu_count
from comp.memory import keep_pages
from comp.nets import store
from comp.nets.build import load_weights, network_mean_std
from comp.nets.init import grow
from comp.nets.transfer import freeze, parameter_groups
from comp.runs import Fold
from comp.training import checkpoint, optim
from comp.training.ema import Average
from comp.training.loss import Criterion
from comp.training.optim import Schedule
from comp.training.plan import Plan
from comp.training.processes import Team
from comp.training.step import Ledger, Trainee, is_out_of_memory

if TYPE_CHECKING:
    from accelerate import Accelerator

    from comp.data.manifest import Dataset

Channels = tuple[float, float, float]
LOOK_EVERY = 32  # steps between looks at the losses, where a look makes the host wait for the device
# oneDNN's bf16 gradient of a strided 3×3 convolution on a 1×1 map holds whatever the memory held before (torch 2.15,
# found by filling the memory with nan; docs/promises.md). Smaller crops than this get there, and are quick in fp32.
SMALL_CROP = 32
_PRECISION = {None: "no", torch.bfloat16: "bf16", torch.float16: "fp16"}


@dataclass(frozen=True)
class Rows:
    """Rows of the data set: (N,) that train and (M,) held out."""

    train: npt.NDArray[np.int64]
    val: npt.NDArray[np.int64]


def rows_of(dataset: Dataset, folds: Mapping[str, int], fold: Fold) -> Rows:
    """Which photos train and which are held out; photos in no fold (kept for audit) and bad ones are neither.

    Raises:
        CompError: There is no such fold, or too little to train on.
    """
    bad = set(map(str, dataset.bad))
    of_row = [(row, folds.get(image_id)) for row, image_id in enumerate(map(str, dataset.ids)) if image_id not in bad]
    train = np.array([row for row, number in of_row if number not in (None, fold.number)], dtype=np.int64)
    val = np.array([row for row, number in of_row if number == fold.number], dtype=np.int64)
    if not len(val):
        known = sorted({number for number in folds.values() if number >= 0})
        fix = f"choose from {', '.join(map(str, known))}"
        raise CompError(f"FOLD={fold.number}", "there is no such fold", fix, Exit.CONFIG)
    if len(train) < 2:
        raise CompError(fold, f"has {len(train)} photos to train on", "use more photos or fewer folds", Exit.DATA)
    return Rows(train, val)


def make_accelerator(config: RunConfig, folder: Path) -> Accelerator:
    """Join the other processes, if there are, and choose device and precision.

    Args:
        config: The run.
        folder: Where TensorBoard's events go.
    """
    from accelerate import Accelerator, PartialState
    from accelerate.state import AcceleratorState, GradientState
    from accelerate.utils import DistributedDataParallelKwargs, parse_flag_from_env

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="OMP_NUM_THREADS")  # said by our launcher
        # Without `cpu` Accelerate joins processes that have no GPU, but takes each for the only one: none of their
        # gradients would be averaged.
        several = int(os.environ.get("WORLD_SIZE", "1")) > 1
        cpu = parse_flag_from_env("ACCELERATE_USE_CPU") or (several and not torch.cuda.is_available())
        state = PartialState(cpu=cpu, timeout=timedelta(seconds=config.hang_limit))
    if state.device.type == "cpu" and (gpus := gpu_count()):
        terminal.warn(f"{gpus} GPU(s) are there, but torch cannot use them ({_why_no_gpu()}): training on the CPU")
    # A notebook may train one run after another, with other precisions: what Accelerate shares is begun anew.
    AcceleratorState._reset_state()
    GradientState._reset_state()
    # Whoever evaluates takes the first process's BatchNorm statistics (Team.same_buffers); nobody else reads them.
    parallel = DistributedDataParallelKwargs(broadcast_buffers=False)
    small = config.precision == "auto" and state.device.type == "cpu" and config.image.crop < SMALL_CROP
    precision = _PRECISION[resolve_precision("fp32" if small else config.precision, state.device)]
    accelerator = Accelerator(
        mixed_precision=precision,
        cpu=state.device.type == "cpu",
        log_with="tensorboard",
        project_dir=folder,
        kwargs_handlers=[parallel],
    )
    if accelerator.device.type == "cpu":
        keep_pages()
    if accelerator.device.type == "cuda":
        torch.backends.cudnn.deterministic = True  # a run that goes on must be the same run
        torch.set_float32_matmul_precision("high")
    return accelerator


def _why_no_gpu() -> str:
    """What torch says when it is asked to use a GPU it does not use, in one line."""
    if torch.version.cuda is None:
        return "this torch is built for CPUs only"
    if os.environ.get("ACCELERATE_USE_CPU"):
        return "ACCELERATE_USE_CPU is set"
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except (RuntimeError, AssertionError) as error:
        return " ".join(str(error).split())[:160]
    return "it gives no reason"


def build_network(home: Path, config: RunConfig, dataset: Dataset, fold: Fold) -> tuple[nn.Module, Channels, Channels]:
    """The network as it is before the first step, and the channel mean and standard deviation of its images.

    Its weights are a function of the config and the fold. Where `model.init_from` names another run's weights: a
    network of the same name takes them all (the head only if the classes are the same), another one grows from them.
    """
    section = config.model
    pretrained: bool | str = section.pretrained if section.init_from is None else False
    if isinstance(pretrained, str):
        pretrained = str(home / pretrained)
    classes = len(dataset.classes)
    network = store.build_network(
        section,
        classes=classes,
        crop=config.image.crop,
        pretrained=pretrained,
        seed=seed_of(config.seed, fold.number, "weights"),
    )
    mean, std = _channels(dataset.mean), _channels(dataset.std)
    normalize = config.image.normalize
    if normalize == "model" or (normalize == "auto" and pretrained):
        mean, std = network_mean_std(network)
    if section.init_from is not None:
        state, about = _weights_of(home, fold.run.data, section.init_from)
        if normalize == "auto" and about is not None:
            mean, std = _channels(about["mean"]), _channels(about["std"])
        _start_from(network, state, section.init_from)
    return network, mean, std


def _channels(values: Any) -> Channels:
    red, green, blue = (float(value) for value in values)
    return red, green, blue


def _weights_of(home: Path, data: str, text: str) -> tuple[dict[str, torch.Tensor], dict[str, Any] | None]:
    source, which = runs.parse_checkpoint(home, data, text)
    if which == "best":
        state, about, _ = store.read_state(source.model)
        return state, about
    return checkpoint.read(source.last)["network"], None


def _start_from(network: nn.Module, state: Mapping[str, torch.Tensor], where: str) -> None:
    """Copy another run's weights in: all where the networks are the same but for the head, else as VGG grows."""
    own = network.state_dict()
    differ = [name for name in own if name not in state or state[name].shape != own[name].shape]
    if set(own) == set(state) and not differ:
        network.load_state_dict(dict(state))
        terminal.say(f"all {len(own)} tensors start from {where}")
        return
    try:
        loaded = load_weights(network, state, where, skip_head=True)
        terminal.say(f"{len(loaded)} tensors start from {where}, the head anew")
    except CompError:
        copied, random = grow(network, state, where)
        for to, _, digest in copied:
            terminal.say(f"  {to} from {where} (sha256 {digest[:12]}…)")
        terminal.say(f"{len(copied)} tensors start from {where}, {len(random)} are random: {', '.join(random[:6])} …")


def is_convolutional(network: nn.Module) -> bool:
    """Whether images are better laid out by pixel (channels last): more than a patch embedding is a convolution."""
    return sum(isinstance(module, nn.Conv2d) for module in network.modules()) > 2


def training_images(config: RunConfig, dataset: Dataset, rows: Rows, symmetries: tuple[str, ...]) -> TrainingImages:
    """The augmented images of a run."""
    pca = pca_colour(dataset, rows.train, dataset.reader()) if needs_pca(config.augment) else None
    augment = pipeline(
        config.augment, config.image.crop, config.image.scale_range, symmetries, _channels(dataset.mean), pca
    )
    return TrainingImages(dataset, augment, config.seed)


def fitting_micro(network: nn.Module, accelerator: Accelerator, team: Team, crop: int, micro: int) -> int:
    """The most images per forward pass that every process has memory for, found by trying, before the first step.

    With several processes memory that runs out inside a step would leave them in different places; so a forward and
    backward pass of the full size is tried on each first, beside room for the optimizer's state, and all take the
    smallest answer. (One process halves when it happens.)
    """
    if team.world == 1:
        return micro
    buffers = [buffer.clone() for buffer in network.buffers()]
    size = sum(parameter.numel() * 4 for parameter in network.parameters())
    wanted = micro
    while True:
        try:
            room = torch.empty(3 * size, dtype=torch.uint8, device=accelerator.device)
            images = torch.zeros(max(2, micro), 3, crop, crop, device=accelerator.device)  # as Plan fills up
            with accelerator.autocast():
                outputs = network(images)
            logits = outputs[0] if isinstance(outputs, tuple | list) else outputs
            logits.float().sum().backward()
            del room, images, outputs, logits
            fits = True
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            fits = False
        network.zero_grad(set_to_none=True)
        if accelerator.device.type == "cuda":
            torch.cuda.empty_cache()
        if not team.most(int(not fits))[0]:
            break
        micro = halved(micro)
    with torch.no_grad():
        for buffer, copy in zip(network.buffers(), buffers, strict=True):
            buffer.copy_(copy)
    if micro < wanted:
        terminal.say(f"out of memory: {micro} images at a time instead of {wanted}; the global batch stays")
    return micro


def halved(micro: int) -> int:
    """Half the images per forward pass, or the end."""
    if micro == 1:
        fix = "use a smaller network or image.crop"
        raise CompError("memory", "does not suffice for a single image", fix, Exit.SYSTEM)
    return micro // 2


def make_trainee(
    config: RunConfig,
    plan: Plan,
    classes: int,
    network: nn.Module,
    channels: tuple[Channels, Channels],
    accelerator: Accelerator,
    team: Team,
) -> Trainee:
    """Place the network, and make the optimizer, schedule, loss and average beside it.

    Args:
        config: The run.
        plan: The training images.
        classes: Number of classes.
        network: On the CPU.
        channels: Channel mean and standard deviation of its images, 0 to 1.
        accelerator: Accelerate.
        team: The processes.
    """
    device = accelerator.device
    channels_last = is_convolutional(network)
    network.to(device)
    if channels_last:
        network.to(memory_format=torch.channels_last)
    if config.model.freeze_epochs == 0:
        freeze(network, config.model.freeze)
    # Two phases: the optimizer knows every parameter from the start, and leaves alone what has no gradient.
    section = config.optim
    groups = parameter_groups(
        network,
        lr=section.lr,
        weight_decay=section.weight_decay,
        layer_decay=section.layer_decay,
        head_lr=section.head_lr,
    )
    mean, std = (255 * torch.tensor(values, device=device).view(1, 3, 1, 1) for values in channels)
    return Trainee(
        network=network,
        model=network,
        optimizer=accelerator.prepare_optimizer(optim.create(groups, section)),
        schedule=Schedule(config.schedule, plan.steps, config.epochs),
        criterion=Criterion(config.loss, np.bincount(plan.labels, minlength=classes).tolist(), device),
        average=Average(network, config.ema) if config.ema else None,
        accelerator=accelerator,
        team=team,
        optim=section,
        mean=mean,
        std=std,
        channels_last=channels_last,
        ledger=Ledger(1 if device.type == "cpu" else LOOK_EVERY),
        sums=torch.zeros(2, dtype=torch.float64, device=device),
    )


def about_run(config: RunConfig, dataset: Dataset, folds: Mapping[str, int], fold: Fold) -> dict[str, Any]:
    """What a checkpoint must agree on with the run that goes on from it."""
    return {
        "network": config.model.name,
        "fold": fold.number,
        "seed": config.seed,
        "classes": [str(name) for name in dataset.classes],
        "config": config.digest(),
        "recipe": config.recipe(),
        "data": dataset.data_digest,
        "pixels": dataset.pixels_digest,
        "folds": splits.digest(folds),
    }


def need_space(network: nn.Module, fold: Fold) -> None:
    """Refuse to begin where the fold's files will not fit.

    Two checkpoints of weights, average and two optimizer moments for a moment, the best weights and the model.
    """
    size = sum(tensor.nbytes for tensor in network.state_dict().values())
    files.need_space(fold.path, 10 * size + 2**24, f"training {fold}")


def open_log(accelerator: Accelerator, config: RunConfig) -> Any:
    """Begin TensorBoard's events through Accelerate's tracker; its writer, in the first process."""
    accelerator.init_trackers("tensorboard")
    return accelerator.get_tracker("tensorboard", unwrap=True) if accelerator.is_main_process else None


def start_line(
    config: RunConfig,
    dataset: Dataset,
    rows: Rows,
    network: nn.Module,
    accelerator: Accelerator,
    micro: int,
    workers: int,
) -> str:
    """What is about to be trained, on what."""
    millions = sum(parameter.numel() for parameter in network.parameters()) / 1e6
    device = accelerator.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} CPU threads"
    world = accelerator.num_processes
    passes = -(-config.batch // (world * micro))
    how = f"{world} × " if world > 1 else ""
    how += f"{passes} × {micro}" if passes > 1 else f"{min(micro, config.batch)}"
    precision = {"no": "fp32"}.get(str(accelerator.mixed_precision), accelerator.mixed_precision)
    return (
        f"{config.model.name}, {millions:.1f} M parameters, {len(dataset.classes)} classes, {len(rows.train)} photos"
        f" to train on, {len(rows.val)} held out; {name}, {precision}, batch {config.batch} ({how}), {workers} workers"
    )
