"""The watch speaks when something is wrong, once, and is silent on a run that learns."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from comp.training.layers import LayerWatch
from comp.training.watch import Watch, entropy, mean_target

CLASSES = ["aster", "bellflower", "clover", "daisy"]
LABELS = np.tile(np.arange(4), 10)
GOOD = np.eye(4)[LABELS] * 0.8 + 0.05


def watch(epochs: int = 20, **options: float) -> Watch:
    return Watch(CLASSES, np.full(4, 0.25), epochs=epochs, **options)


def look(seen: Watch, epoch: int, train: float, val: float = 1.0, **more: object) -> list[str]:
    return seen.look(epoch, train_loss=train, val_loss=val, **{"labels": LABELS, "probs": GOOD, **more})  # type: ignore[arg-type]


def test_a_run_that_learns_is_left_alone() -> None:
    seen = watch(epochs=12)
    rng = np.random.default_rng(0)
    for epoch in range(12):
        loss = 1.2 * 0.8**epoch
        steps = loss + rng.normal(0, 0.1, 40)
        norms = np.exp(rng.normal(0, 0.5, 40))
        assert look(seen, epoch, loss, loss + 0.1, losses=steps, grad_norms=norms) == []


def test_loss_at_ln_c_is_said_once() -> None:
    seen = watch()
    (line,) = look(seen, 0, math.log(4) * 1.009)
    assert "within 1 % of ln(4) = 1.3863" in line
    assert "epoch 1:" in line
    assert look(seen, 1, math.log(4)) == []


def test_loss_a_little_further_from_ln_c_is_not_said() -> None:
    assert look(watch(), 0, math.log(4) * 0.985) == []


def test_warm_up_may_start_at_ln_c() -> None:
    seen = watch(warmup=1.5)
    assert look(seen, 0, math.log(4)) == []
    assert look(seen, 1, math.log(4)) == []
    assert len(look(seen, 2, math.log(4))) == 1


def test_a_network_that_only_learns_class_shares_is_named() -> None:
    """Unbalanced classes: the last bias takes the loss to the entropy of the shares, below ln(C)."""
    labels = np.repeat(np.arange(4), [70, 20, 5, 5])
    target = mean_target(labels, 4)
    shares = -(0.7 * math.log(0.7) + 0.2 * math.log(0.2) + 0.1 * math.log(0.05))
    assert entropy(target) == pytest.approx(shares)
    seen = Watch(CLASSES, target, epochs=9)
    assert look(seen, 0, shares) == []  # it may be passing
    (line,) = look(seen, 1, shares * 1.002)
    assert "for two epochs" in line


def test_mean_target_is_the_best_constant_answer() -> None:
    labels = np.repeat(np.arange(4), [70, 20, 5, 5])
    for smoothing in (0.0, 0.1):
        target = torch.tensor(mean_target(labels, 4, smoothing=smoothing))
        found = nn.functional.cross_entropy(
            target.log().float().expand(100, 4), torch.tensor(labels), label_smoothing=smoothing
        )
        assert entropy(target.numpy()) == pytest.approx(float(found), rel=1e-5)
    assert mean_target(labels, 4, balance="weights") == pytest.approx(np.full(4, 0.25))
    assert mean_target([0, 0, 1], 4, balance="sampler") == pytest.approx([0.5, 0.5, 0, 0])


def test_collapsed_predictions() -> None:
    one = np.tile([0.1, 0.7, 0.1, 0.1], (40, 1))
    assert look(watch(), 0, 1.0, probs=one) == []  # a first epoch may
    seen = watch()
    look(seen, 0, 1.0)
    (line,) = look(seen, 1, 1.0, probs=one)
    assert "all 40 validation images are called 'bellflower', 3 of 4 classes are never predicted" in line
    two = GOOD.copy()
    two[LABELS > 0] = [0.1, 0.7, 0.1, 0.1]
    two[:, 2] = 0
    assert look(watch(), 1, 1.0, probs=two) == []  # half of them are
    three = np.where((LABELS == 0)[:, None], [0.9, 0.1, 0, 0], [0.1, 0.9, 0, 0])
    five = np.concatenate([three, np.zeros((40, 1))], axis=1)
    five_labels = np.tile(np.arange(5), 8)
    seen = Watch([*CLASSES, "edelweiss"], np.full(5, 0.2), epochs=9)
    (line,) = look(seen, 4, 1.0, labels=five_labels, probs=five)
    assert "3 of 5 classes are never predicted" in line


def test_classes_never_predicted_are_named_at_the_end() -> None:
    probs = GOOD.copy()
    probs[LABELS == 3] = [0.9, 0, 0, 0.1]
    seen = watch(epochs=5)
    assert look(seen, 3, 1.0, probs=probs) == []
    (line,) = look(seen, 4, 1.0, probs=probs)
    assert "1 of 4 classes are never predicted (daisy)" in line


def test_absent_classes_are_no_collapse() -> None:
    assert look(watch(epochs=5), 4, 1.0, labels=np.zeros(40, int), probs=np.tile([0.9, 0.1, 0, 0], (40, 1))) == []


def test_oscillation_from_the_first_steps() -> None:
    losses = np.where(np.arange(40) % 8 < 4, 1.4, 6.0)
    (line,) = look(watch(clip=5.0, lr=0.1), 0, 1.2, losses=losses)
    assert "oscillates from the first steps (5 jumps" in line
    assert "optim.clip=0.5" in line
    assert "optim.lr=0.01" in line
    assert look(watch(), 1, 1.2, losses=losses) == []  # only in the first epoch
    noise = 1.4 + np.random.default_rng(0).normal(0, 0.2, 50)
    assert look(watch(), 0, 1.2, losses=noise) == []


def test_exploding_gradients() -> None:
    seen = watch()
    calm = np.full(50, 2.0)
    assert look(seen, 0, 1.2, grad_norms=calm) == []
    rising = np.where(np.arange(50) >= 45, 5000.0, 2.0)
    (line,) = look(seen, 1, 1.1, grad_norms=rising)
    assert "5 of 50 steps above 100" in line
    assert "optim.clip=1" in line
    seen = watch()
    look(seen, 0, 1.2, grad_norms=calm)
    (line,) = look(seen, 1, 1.1, grad_norms=np.full(50, 5000.0))  # the whole epoch, beside the one before
    assert "50 of 50 steps above 100" in line
    one = np.where(np.arange(50) == 45, 5000.0, 2.0)
    assert look(watch(), 0, 1.2, grad_norms=one) == []  # what clipping is for
    awake = np.where(np.arange(50) >= 25, 1.0, 1e-6)
    assert look(watch(), 0, 1.2, grad_norms=awake) == []  # vanished gradients that come to life
    (line,) = look(watch(), 0, 1.2, grad_norms=[math.inf, math.inf, math.inf])
    assert "explodes" in line


def test_overfitting_names_the_epoch_it_began_in() -> None:
    seen = watch()
    train = [1.2, 1.0, 0.8, 0.7, 0.6, 0.5]
    val = [1.3, 1.1, 1.0, 1.05, 1.1, 1.2]
    said = [look(seen, epoch, t, v) for epoch, (t, v) in enumerate(zip(train, val, strict=True))]
    assert said[:5] == [[]] * 5
    assert "since epoch 4" in said[5][0]
    assert "1.000 → 1.200" in said[5][0]
    seen = watch()
    both = [look(seen, epoch, t, v) for epoch, (t, v) in enumerate(zip([1, 0.9, 1.1, 1.2, 1.3], val[1:], strict=True))]
    assert both == [[]] * 5  # training does not get better either: something else is wrong


def test_a_resumed_watch_says_the_same() -> None:
    rng = np.random.default_rng(1)
    epochs = [
        {
            "train": 1.2 * 0.7**e,
            "val": 1.0 + 0.05 * abs(e - 2),
            "losses": rng.normal(1, 2, 30),
            "grad_norms": np.exp(rng.normal(0, 4, 30)),
        }
        for e in range(10)
    ]
    straight, whole = watch(10), []
    for e, figures in enumerate(epochs):
        whole.append(look(straight, e, **figures))  # type: ignore[arg-type]
    resumed, parts = watch(10), []
    for e, figures in enumerate(epochs):
        state = resumed.state_dict()
        resumed = watch(10)
        resumed.load_state_dict(state)
        parts.append(look(resumed, e, **figures))  # type: ignore[arg-type]
    assert parts == whole
    assert sum(map(len, whole)) >= 2


def test_the_state_is_plain_numbers_and_text(tmp_path: object) -> None:
    import io

    seen = watch()
    look(seen, 0, math.log(4), grad_norms=np.ones(4, np.float32))
    buffer = io.BytesIO()
    torch.save(seen.state_dict(), buffer)
    buffer.seek(0)
    assert torch.load(buffer, weights_only=True) == seen.state_dict()


class Written:
    """A TensorBoard writer that keeps what it is given."""

    def __init__(self) -> None:
        self.scalars: dict[tuple[str, int], float] = {}
        self.histograms: set[tuple[str, int]] = set()

    def add_scalar(self, tag: str, scalar_value: float, global_step: int) -> None:
        self.scalars[tag, global_step] = scalar_value

    def add_histogram(self, tag: str, values: torch.Tensor, global_step: int) -> None:
        self.histograms.add((tag, global_step))


def _net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(inplace=True), nn.Conv2d(8, 8, 3), nn.Tanh(), nn.Flatten(), nn.Linear(128, 4)
    )


def _steps(net: nn.Module, watched: LayerWatch | None, steps: int = 4) -> None:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for step in range(steps):
        torch.manual_seed(step)
        x, y = torch.randn(6, 3, 8, 8), torch.randint(4, (6,))
        if watched:
            watched.begin(step)
        nn.functional.cross_entropy(net(x), y).backward()
        norm = nn.utils.clip_grad_norm_(net.parameters(), 0.5)
        optimizer.step()
        if watched:
            watched.end(step, norm)
        optimizer.zero_grad()


def test_layer_watch_figures_are_the_tensors_own() -> None:
    net, written = _net(), Written()
    reference = _net()
    _steps(net, LayerWatch(net, 2, written), 1)
    torch.manual_seed(0)
    x, y = torch.randn(6, 3, 8, 8), torch.randint(4, (6,))
    before = nn.functional.conv2d(x, reference[0].weight, reference[0].bias)  # type: ignore[arg-type]
    before.retain_grad()
    after = before.relu()
    last = torch.tanh(reference[2](after))
    nn.functional.cross_entropy(reference[5](last.flatten(1)), y).backward()
    assert written.scalars["activation mean/000 0", 0] == pytest.approx(float(before.detach().mean()), rel=1e-4)
    assert written.scalars["activation sd/000 0", 0] == pytest.approx(
        float(before.detach().std(correction=0)), rel=1e-4
    )
    assert before.grad is not None
    assert written.scalars["gradient sd/000 0", 0] == pytest.approx(float(before.grad.std(correction=0)), rel=1e-3)
    assert written.scalars["activation zeros/001 1", 0] == pytest.approx(float((after == 0).float().mean()))
    saturated = float((last.detach().abs() >= 0.99).float().mean())
    assert written.scalars["activation saturated/003 3", 0] == pytest.approx(saturated)
    assert ("activation saturated/001 1", 0) not in written.scalars  # a ReLU does not saturate
    norm = math.sqrt(sum(float(p.grad.square().sum()) for p in reference.parameters() if p.grad is not None))
    assert written.scalars["gradient norm/before clipping", 0] == pytest.approx(norm, rel=1e-4)
    assert written.scalars["gradient norm/after clipping", 0] == pytest.approx(min(norm, 0.5), rel=1e-3)
    assert reference[2].weight.grad is not None
    factor = 0.1 * min(1.0, 0.5 / norm)
    ratio = factor * float(reference[2].weight.grad.norm() / reference[2].weight.detach().norm())
    assert written.scalars["update over weight/2.weight", 0] == pytest.approx(ratio, rel=1e-2)
    assert ("weight/0.weight", 0) in written.histograms


def test_layer_watch_changes_nothing_and_looks_only_when_due() -> None:
    plain, net, written = _net(), _net(), Written()
    _steps(plain, None)
    _steps(net, LayerWatch(net, 2, written))
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), net.parameters(), strict=True))
    assert {step for _, step in written.scalars} == {0, 2}
    assert not any(module._forward_hooks for module in net.modules())
    silent = Written()
    _steps(_net(), LayerWatch(net, 0, silent))
    assert not silent.scalars
