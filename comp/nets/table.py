"""The layer table of a network: what each layer makes and what it costs.

The network runs once on the meta device, where tensors have shapes and no numbers, and every operation is seen on its
way.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from comp.nets.activations import ACTIVATIONS


@dataclass(frozen=True)
class Row:
    """One layer, for one image.

    Attributes:
        name: Its name in the network.
        kind: Its class.
        output: The shape of its output, without the batch.
        parameters: Its own parameters.
        multiply_adds: Multiply-accumulate operations.
        activations: Values it adds to what is kept: outputs of convolutions, linear layers, pooling and attention.
            Activation functions, normalisation and dropout are counted as done in place, hence 0.
        field: Receptive field: side in pixels of what one output value sees; none after attention.
    """

    name: str
    kind: str
    output: tuple[int, ...]
    parameters: int
    multiply_adds: int
    activations: int
    field: int | None


@dataclass(frozen=True)
class Table:
    """All rows in the order of the forward pass, the image first, and their sums."""

    size: int
    rows: tuple[Row, ...]
    parameters: int
    multiply_adds: int
    activations: int


_IN_PLACE: tuple[type[nn.Module], ...] = (
    *(nn.Dropout, nn.Identity, nn.Flatten, nn.LocalResponseNorm, nn.LayerNorm, nn.GroupNorm, _NormBase),
    *(nn.SiLU, nn.Hardswish, nn.Hardsigmoid, nn.Mish),
)


def _makes_values(module: nn.Module) -> bool:
    """Whether a leaf's output is a new map, not another form of its input."""
    if isinstance(module, (*_IN_PLACE, *(type(make(1)) for make in ACTIVATIONS.values()))):
        return False
    return bool(list(module.parameters(recurse=False))) or "Pool" in type(module).__name__


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts multiply-adds, and follows the receptive field of every tensor: (side, step) in pixels, or none."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = 0
        self.fields: dict[int, tuple[int, int] | None] = {}
        self.kept: list[Tensor] = []  # a tensor that is let go could give its id to another

    def field(self, tensor: Tensor) -> tuple[int, int] | None:
        return self.fields.get(id(tensor), (0, 0))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        packet = func._overloadpacket
        if packet in flop_registry:
            self.count += flop_registry[packet](*args, **(kwargs or {}), out_val=out) // 2
        inputs = [a for a in _tensors(args) if a is not None]
        seen = [self.field(a) for a in inputs]
        name = packet.__name__
        found: tuple[int, int] | None = None if None in seen else max((f for f in seen if f), default=(0, 0))
        if found is not None and found != (0, 0):
            found = _grown(name, args, inputs[0], out, found)
        for tensor in _tensors(out):
            self.fields[id(tensor)] = found
            self.kept.append(tensor)
        return out


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)


def _last(value: Any, default: int) -> int:
    """The width's entry of a kernel or stride argument."""
    if isinstance(value, int):
        return value
    return int(value[-1]) if value else default


def _grown(name: str, args: Any, x: Tensor, out: Any, field: tuple[int, int]) -> tuple[int, int] | None:
    """The receptive field after one operation on a tensor with this one."""
    side, step = field
    if name in ("convolution", "_convolution"):
        kernel, stride, dilation = args[1].shape[-1], _last(args[3], 1), _last(args[5], 1)
        return side + (kernel - 1) * dilation * step, step * stride
    if name in ("max_pool2d_with_indices", "avg_pool2d", "max_pool2d", "max_pool3d_with_indices", "avg_pool3d"):
        kernel = _last(args[1], 1)
        stride = _last(args[2] if len(args) > 2 else None, kernel)
        return side + (kernel - 1) * step, step * stride
    if name in ("bmm", "baddbmm") or "attention" in name:
        return None
    first = next(_tensors(out), None)
    if x.ndim == 4 and first is not None and x.shape[-1] > 1:
        if first.ndim == 4 and first.shape[-1] >= x.shape[-1]:
            return field
        if name.startswith(("adaptive", "_adaptive")):
            return side + (-(-x.shape[-1] // first.shape[-1]) - 1) * step, step * (x.shape[-1] // first.shape[-1])
        if name == "mean" or (first.ndim == 2 and name in ("view", "_unsafe_view", "reshape")):
            return side + (x.shape[-1] - 1) * step, step
    return field


@contextmanager
def _hooks(model: nn.Module, before: Callable[..., None], after: Callable[..., None]) -> Iterator[None]:
    handles = []
    for name, module in model.named_modules():
        if not list(module.children()):
            handles.append(module.register_forward_pre_hook(lambda m, _, n=name: before(n, m)))
            handles.append(module.register_forward_hook(lambda m, _, out, n=name: after(n, m, out)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def layer_table(model: nn.Module, size: int | None = None) -> Table:
    """Make the layer table for one image.

    Args:
        model: The network; it is not changed.
        size: Side of the image, pixels; where not said, what the network was made for.

    Returns:
        A row for the image, one for every layer each time it is used, and the totals. Multiply-adds of operations
        outside layers (attention written as functions) are in the total only.
    """
    if size is None:
        cfg: Any = model.pretrained_cfg
        size = int(cfg["input_size"][1])
    net = copy.deepcopy(model).to("meta").eval()
    watch = _Watch()
    counted = [0]
    rows = []
    x = torch.empty(1, getattr(model, "in_chans", 3), size, size, device="meta")
    watch.fields[id(x)] = (1, 1)
    watch.kept.append(x)
    rows.append(Row("image", "Image", tuple(x.shape[1:]), 0, 0, x.numel(), 1))

    def before(name: str, module: nn.Module) -> None:
        counted[0] = watch.count

    def after(name: str, module: nn.Module, out: Any) -> None:
        made = next(_tensors(out), None)
        if made is None or isinstance(module, nn.Identity):
            return
        own = sum(p.numel() for p in module.parameters(recurse=False))
        field = watch.field(made)
        values = made.numel() if _makes_values(module) else 0
        shape = tuple(made.shape[1:])
        side = field[0] if field else None
        rows.append(Row(name, type(module).__name__, shape, own, watch.count - counted[0], values, side))

    with torch.no_grad(), _hooks(net, before, after), watch:
        net(x)
    parameters = sum(p.numel() for p in model.parameters())
    return Table(size, tuple(rows), parameters, watch.count, sum(row.activations for row in rows))
