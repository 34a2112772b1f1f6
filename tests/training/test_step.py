from __future__ import annotations

import contextlib
import itertools
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from comp import config
from comp.errors import CompError, Exit
from comp.training.loss import Criterion
from comp.training.plan import Micro
from comp.training.step import Ledger, Taken, Trainee, Undo, is_out_of_memory, reseed

ALONE = SimpleNamespace(world=1, rank=0, first=True, most=lambda *v: list(v), gather=lambda v: [v])


def trainee(network: nn.Module, world: int = 1, **loss: Any) -> Trainee:
    accelerator = SimpleNamespace(
        no_sync=lambda model: contextlib.nullcontext(), backward=lambda value: value.backward(), scaler=None
    )
    return Trainee(
        network=network,
        model=network,
        optimizer=None,
        schedule=None,  # type: ignore[arg-type]
        criterion=Criterion(config.validate(config.Loss, loss, "test"), [3, 4, 5], torch.device("cpu")),
        average=None,
        accelerator=accelerator,  # type: ignore[arg-type]
        team=SimpleNamespace(**{**vars(ALONE), "world": world}),  # type: ignore[arg-type]
        optim=config.Optim(),
        mean=torch.full((1, 3, 1, 1), 100.0),
        std=torch.full((1, 3, 1, 1), 50.0),
        channels_last=False,
        ledger=Ledger(1),
        sums=torch.zeros(2, dtype=torch.float64),
    )


class Net(nn.Module):
    aux_weight = 0.3

    def __init__(self, aux: bool = False):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head, self.aux = nn.Conv2d(3, 4, 3), nn.Linear(4, 3), nn.Linear(4, 3) if aux else None

    def forward(self, x: torch.Tensor) -> Any:
        x = self.body(x).relu().mean((2, 3))
        return self.head(x) if self.aux is None or not self.training else (self.head(x), self.aux(x))


def gradient(world: int, cuts: list[int], **loss: Any) -> list[torch.Tensor]:
    """The gradient DDP would give: each process adds up its micro-batches, then the mean over the processes."""
    torch.manual_seed(1)
    pixels = torch.randint(0, 256, (11, 3, 8, 8), dtype=torch.uint8)
    labels = torch.arange(11) % 3
    edges = [11 * rank // world for rank in range(world + 1)]
    total: list[torch.Tensor] = []
    for low, high in itertools.pairwise(edges):
        made = trainee(Net(), world, **loss)
        rows = list(range(low, high))
        size = cuts[0]
        parts = [rows[at : at + size] for at in range(0, len(rows), size)] or [[]]
        for part in parts:
            filled = part + [0] * max(0, 2 - len(part))
            micro = Micro(0, 0, [], len(part), 11, False, True)
            made.forward_backward(pixels[filled], labels[filled], micro)
        gradients = [p.grad if p.grad is not None else torch.zeros_like(p) for p in made.network.parameters()]
        total = gradients if not total else [a + b for a, b in zip(total, gradients, strict=True)]
    return [value / world for value in total]


@pytest.mark.parametrize("loss", [{}, {"balance": "weights"}, {"balance": "logits", "label_smoothing": 0.0}])
def test_shares_of_a_global_batch_have_its_gradient(loss: dict[str, Any]) -> None:
    expected = gradient(1, [11], **loss)
    for world, cut in ((1, 4), (1, 1), (2, 11), (2, 2), (3, 3), (4, 2), (14, 5)):  # 14: more processes than images
        for found, wanted in zip(gradient(world, [cut], **loss), expected, strict=True):
            assert torch.allclose(found, wanted, atol=1e-6)


def test_the_gradient_is_that_of_the_mean_loss() -> None:
    network = Net()
    torch.manual_seed(1)
    pixels = torch.randint(0, 256, (11, 3, 8, 8), dtype=torch.uint8)
    labels = torch.arange(11) % 3
    nn.functional.cross_entropy(network((pixels.float() - 100) / 50), labels, label_smoothing=0.1).backward()
    for found, parameter in zip(gradient(1, [11]), network.parameters(), strict=True):
        assert torch.allclose(found, parameter.grad, atol=1e-6)


def test_auxiliary_heads_count_with_their_weight_and_stay_out_of_the_log() -> None:
    made = trainee(Net(aux=True), label_smoothing=0.0)
    pixels, labels = torch.zeros(3, 3, 8, 8, dtype=torch.uint8), torch.arange(3)
    loss, _ = made.forward_backward(pixels, labels, Micro(0, 0, [], 3, 3, True, True))
    plain = made.network.eval()((pixels.float() - 100) / 50)
    assert loss.item() == pytest.approx(nn.functional.cross_entropy(plain, labels, reduction="sum").item())
    half = Net(aux=True).train()
    main, aux = half((pixels.float() - 100) / 50)
    (nn.functional.cross_entropy(main, labels) + 0.3 * nn.functional.cross_entropy(aux, labels)).backward()
    for found, wanted in zip(made.network.parameters(), half.parameters(), strict=True):
        assert torch.allclose(found.grad, wanted.grad, atol=1e-6)


def test_the_first_loss_that_is_not_finite_is_named() -> None:
    made = trainee(Net())
    made.ledger = Ledger(4)
    ids = [f"id{number}" for number in range(30)]
    for step, loss in enumerate([1.0, 2.0, math.inf]):
        made.ledger.taken.append(Taken(2, step, 0.5, (10 * step, 10 * step + 1), torch.tensor(loss), None))
        made.check_finite(ids, "run/fold0")  # not due: nobody waits for the device
    made.ledger.taken.append(Taken(2, 3, 0.5, (5, 6), torch.tensor(math.nan), None))
    with pytest.raises(CompError) as raised:
        made.check_finite(ids, "run/fold0")
    assert raised.value.code is Exit.NUMERIC
    assert "epoch 3, step 3 (lr 0.5, images id20, id21)" in str(raised.value)


def test_a_bad_step_of_another_process_stops_this_one_too() -> None:
    made = trainee(Net(), world=2)
    made.team = SimpleNamespace(world=2, most=lambda *v: [1], gather=lambda v: [v, (4, 7, 0.25, (1,))])  # type: ignore[assignment]
    made.ledger.taken.append(Taken(4, 7, 0.25, (0,), torch.tensor(1.0), None))
    with pytest.raises(CompError, match=r"epoch 5, step 8 \(lr 0.25, images b\)"):
        made.check_finite(["a", "b"], "run/fold0")


def test_undo_puts_batch_norm_back() -> None:
    norm = nn.BatchNorm2d(3).train()
    norm(torch.randn(4, 3, 2, 2))
    undo = Undo(norm)
    undo.remember()
    before = {name: value.clone() for name, value in norm.state_dict().items()}
    norm(torch.randn(4, 3, 2, 2))
    undo.restore()
    assert all(torch.equal(value, before[name]) for name, value in norm.state_dict().items())
    assert int(norm.num_batches_tracked) == 1


def test_reseed_sets_every_generator() -> None:
    import random

    import numpy as np

    def draw() -> tuple[float, ...]:
        return torch.rand(()).item(), random.random(), np.random.rand()  # noqa: NPY002

    reseed(1, 0, 2, 3)
    first = draw()
    draw()
    reseed(1, 0, 2, 3)
    assert draw() == first
    reseed(1, 0, 2, 4)
    assert all(a != b for a, b in zip(draw(), first, strict=True))


def test_what_counts_as_out_of_memory() -> None:
    assert is_out_of_memory(torch.OutOfMemoryError("x"))
    assert is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"))
    assert not is_out_of_memory(RuntimeError("shape mismatch"))
    assert not is_out_of_memory(ValueError("out of memory"))
