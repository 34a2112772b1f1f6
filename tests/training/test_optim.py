from __future__ import annotations

import math

import pytest
import torch
from torch.optim import lr_scheduler

from comp import config
from comp.errors import CompError
from comp.training import optim
from comp.training.optim import Schedule

STEPS, EPOCHS = 7, 6


def sgd(lr: float = 0.5, momentum: float = 0.9) -> torch.optim.Optimizer:
    made = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr, momentum=momentum)
    made.param_groups[0]["initial_lr"] = lr
    return made


def section(**values: object) -> config.Schedule:
    return config.validate(config.Schedule, values, "test")


def torchs(make: object, steps: int) -> list[tuple[float, float]]:
    """Learning rate and momentum of each step under one of torch's schedulers, stepped once per step."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.5, momentum=0.9)
    scheduler = make(optimizer)  # type: ignore[operator]
    found = []
    for _ in range(steps):
        found.append((optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["momentum"]))
        optimizer.step()
        if len(found) < steps:
            scheduler.step()
    return found


def ours(schedule: Schedule, order: list[int]) -> dict[int, tuple[float, float]]:
    optimizer, found = sgd(), {}
    for step in order:
        schedule.set(optimizer, step)
        found[step] = (optimizer.param_groups[0]["lr"], optimizer.param_groups[0]["momentum"])
    return found


@pytest.mark.parametrize(
    ("values", "make"),
    [
        ({"name": "cosine", "warmup": 0}, lambda o: lr_scheduler.CosineAnnealingLR(o, STEPS * EPOCHS)),
        (
            {"name": "cosine", "warmup": 0, "min_lr": 0.1},
            lambda o: lr_scheduler.CosineAnnealingLR(o, STEPS * EPOCHS, eta_min=0.05),
        ),
        ({"name": "onecycle"}, lambda o: lr_scheduler.OneCycleLR(o, 0.5, total_steps=STEPS * EPOCHS)),
        (
            {"name": "step", "warmup": 0, "every": 2, "factor": 0.3},
            lambda o: lr_scheduler.StepLR(o, 2 * STEPS, gamma=0.3),
        ),
        ({"name": "constant", "warmup": 0}, lambda o: lr_scheduler.ConstantLR(o, factor=1.0)),
    ],
)
def test_a_step_has_torchs_learning_rate_in_whatever_order_it_is_asked(values: dict, make: object) -> None:
    total = STEPS * EPOCHS
    expected = torchs(make, total)
    found = ours(Schedule(section(**values), STEPS, EPOCHS), [*reversed(range(total))])
    for step in range(total):
        assert found[step] == pytest.approx(expected[step], rel=1e-9, abs=1e-12)


def test_warm_up_rises_in_equal_steps_to_the_full_rate() -> None:
    schedule = Schedule(section(name="constant", warmup=1.0), STEPS, EPOCHS)
    assert [schedule.factor(step) for step in range(9)] == pytest.approx([*(k / 8 for k in range(1, 8)), 1.0, 1.0])


def test_plateau_is_torchs_and_goes_on_from_its_state() -> None:
    values = section(name="plateau", warmup=0, patience=1, factor=0.1)
    losses = [1.0, 1.1, math.nan, 0.9, 0.95, 0.91, 0.92, 0.5]
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.5)
    reference = lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.1, patience=1)
    schedule = Schedule(values, STEPS, EPOCHS)
    for epoch, loss in enumerate(losses):
        assert 0.5 * schedule.factor(epoch * STEPS) == pytest.approx(optimizer.param_groups[0]["lr"])
        reference.step(loss)
        schedule.epoch_ended(loss)
        another = Schedule(values, STEPS, EPOCHS)
        another.load_state_dict(schedule.state_dict())
        schedule = another
    assert schedule.factor(0) == pytest.approx(0.01)


def test_every_group_keeps_its_ratio() -> None:
    groups = [
        {"params": [torch.zeros(1, requires_grad=True)], "lr": 0.1, "weight_decay": 0.0},
        {"params": [torch.zeros(1, requires_grad=True)], "lr": 0.4, "weight_decay": 0.3},
    ]
    made = optim.create(groups, config.Optim(name="adamw", lr=0.4))
    Schedule(section(name="cosine", warmup=0), STEPS, EPOCHS).set(made, 11)
    low, high = (group["lr"] for group in made.param_groups)
    assert high == pytest.approx(4 * low)
    assert 0 < high < 0.4
    assert [group["weight_decay"] for group in made.param_groups] == [0.0, 0.3]


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "rmsprop", "adagrad", "lamb", "nesterov", "lion"])
def test_optimizers_are_made_by_name(name: str) -> None:
    made = optim.create(
        [{"params": [torch.zeros(2, 2, requires_grad=True)], "lr": 0.1}], config.Optim(name=name, lr=0.1)
    )
    if name in ("sgd", "nesterov"):
        assert isinstance(made, torch.optim.SGD)
        assert made.param_groups[0]["nesterov"] == (name == "nesterov")
        assert made.param_groups[0]["momentum"] == 0.9


def test_names_are_timms() -> None:
    from timm.optim import list_optimizers

    assert set(optim.optimizer_names()) <= set(list_optimizers())
    assert {"sgd", "adam", "adamw", "rmsprop", "adagrad"} <= set(optim.optimizer_names())


def test_an_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(CompError, match=r"optim.name = adamv: there is no such optimizer; did you mean 'adam"):
        optim.check_optimizer("adamv")


@pytest.mark.parametrize("name", sorted(optim.FUSED))
def test_the_fused_form_takes_the_same_steps(name: str) -> None:
    """Against the optimizer of torch's own that walks operation by operation."""
    from timm.optim import create_optimizer_v2

    weights = [torch.nn.Parameter(torch.linspace(-1, 1, 12).reshape(3, 4)) for _ in range(2)]
    section = config.Optim(name=name, lr=0.1, weight_decay=0.01)
    ours = optim.create([{"params": [weights[0]], "lr": 0.1, "weight_decay": 0.01}], section)
    plain = create_optimizer_v2(
        [weights[1]], opt={"sgd": "momentum"}.get(name, name), lr=0.1, weight_decay=0.01, momentum=0.9, foreach=False
    )
    assert ours.param_groups[0]["fused"]
    for step in range(3):
        for weight in weights:
            weight.grad = torch.cos(torch.arange(12.0).reshape(3, 4) + step)
        ours.step()
        plain.step()
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-6, atol=1e-7)
