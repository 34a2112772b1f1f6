"""The doctor's probes against plain formulas, and its advice on networks that are ill in a known way."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from comp.config import Optim
from comp.nets.build import build
from comp.training.doctor import Report, even_batches, examine
from comp.training.probes import FEWEST, LabelFigures, Trial, depth_probe, label_probe, trial

SGD = Optim(name="sgd", lr=0.05, momentum=0.9, weight_decay=0.0, layer_decay=None, clip=None)
LEVEL = math.log(4)


def photos(count: int = 16, size: int = 8, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Noise with a class-dependent pattern: four classes in turn."""
    generator = torch.Generator().manual_seed(seed)
    pattern = torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(99))
    labels = torch.arange(count) % 4
    return pattern[labels] + 0.5 * torch.randn(count, 3, size, size, generator=generator), labels


class Stack(nn.Module):
    """A plain net of `depth` convolutions whose weights' scale is a factor of He's."""

    def __init__(self, depth: int = 8, factor: float = 1.0, width: int = 16):
        super().__init__()
        torch.manual_seed(0)
        layers: list[nn.Module] = []
        for i in range(depth):
            conv = nn.Conv2d(width if i else 3, width, 3, padding=1)
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
            conv.weight.data *= factor
            nn.init.zeros_(conv.bias)
            layers += [conv, nn.ReLU(inplace=True)]
        self.features = nn.Sequential(*layers)
        self.fc = nn.Linear(width, 4)
        nn.init.normal_(self.fc.weight, std=0.01)
        nn.init.zeros_(self.fc.bias)

    def get_classifier(self) -> nn.Module:
        return self.fc

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.fc(self.features(x).mean((2, 3)))
        return out


def diagnose(network: nn.Module, section: Optim = SGD, seconds: float = 60.0, **options: object) -> Report:
    batches = [photos(seed=seed) for seed in range(3)]
    return examine(network, batches, section, seconds=seconds, scratch=True, **options)  # type: ignore[arg-type]


def test_depth_is_the_mean_square_of_each_layer() -> None:
    net = Stack(depth=3)
    x, y = photos()
    found = depth_probe(net, x, y)
    first = net.features[0](x)
    assert [layer.name for layer in found.layers] == ["features.0", "features.2", "features.4"]  # the head is not one
    assert found.layers[0].output["mean_square"] == pytest.approx(float(first.detach().square().mean()), rel=1e-5)
    third = net.features[:5](x)
    last = nn.functional.cross_entropy(net.fc(third.relu().mean((2, 3))), y)
    (gradient,) = torch.autograd.grad(last, third)
    assert found.layers[-1].gradient["mean_square"] == pytest.approx(float(gradient.square().mean()), rel=1e-4)
    assert found.forward == pytest.approx(
        float(third.detach().square().mean() / first.detach().square().mean()), rel=1e-4
    )
    assert all(p.grad is None for p in net.parameters())


@pytest.mark.parametrize(("factor", "verdict"), [(1.0, "fine"), (0.1, "vanishing"), (10.0, "exploding")])
def test_scale_through_depth(factor: float, verdict: str) -> None:
    assert depth_probe(Stack(factor=factor), *photos()).verdict == verdict


def test_gradients_too_small_for_float32_squares_are_still_told() -> None:
    found = depth_probe(Stack(depth=6, factor=1e-5), *photos())
    assert 0 < found.layers[0].gradient["mean_square"] < 1e-45


@pytest.mark.parametrize(
    ("losses", "verdict"),
    [
        (np.linspace(LEVEL, 0.3, 40), "learns"),
        (np.full(40, LEVEL), "flat"),
        (np.linspace(LEVEL, LEVEL * 0.98, 40), "slow"),
        ([*np.linspace(LEVEL, 0.9, 20), 12.0, *np.full(20, LEVEL)], "cliff"),
        ([LEVEL, 2.0, math.nan], "cliff"),
        ([LEVEL, 9.0, 5.0, 3.0, *np.linspace(2, 0.2, 30)], "learns"),  # it came back
    ],
)
def test_verdict_of_a_course(losses: list[float], verdict: str) -> None:
    found = Trial(list(losses), [1.0] * len(losses), LEVEL)
    assert found.verdict == verdict
    assert str(len(losses)) in found.line()


def test_trial_takes_the_optimizers_steps() -> None:
    """Against torch's own SGD with clipping, two batches in turn."""
    section = SGD.model_copy(update={"clip": 0.1})
    batches = [photos(seed=0), photos(seed=1)]
    net, other = Stack(2), Stack(2)
    found = trial(net, batches, section, steps=5)
    optimizer = torch.optim.SGD(other.parameters(), lr=0.05, momentum=0.9)
    for step in range(5):
        x, y = batches[step % 2]
        loss = nn.functional.cross_entropy(other(x), y)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(other.parameters(), 0.1)
        optimizer.step()
        assert found.losses[step] == pytest.approx(loss.item(), abs=1e-5)
    assert found.level == pytest.approx(math.log(4))
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(net.parameters(), other.parameters(), strict=True))


def test_leave_one_out_is_what_leaving_one_out_gives() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), [12, 9, 6])
    x = rng.normal(0, 1, (27, 10)) + labels[:, None] * rng.normal(0, 0.5, 10)
    found = label_probe(x, labels, 3)
    z = (x - x.mean(0)) / (x.std(0) + 1e-9)
    kernel = z @ z.T / 10
    ridge = 0.3 * np.trace(kernel) / 27
    target = np.eye(3)[labels] / np.bincount(labels)
    target = target - target.mean(0)
    right = []
    for i in range(27):
        others = np.arange(27) != i
        alpha = np.linalg.solve(kernel[np.ix_(others, others)] + ridge * np.eye(26), target[others])
        right.append((kernel[i, others] @ alpha).argmax() == labels[i])
    recall = np.mean([np.mean(np.array(right)[labels == c]) for c in range(3)])
    assert found.recall == pytest.approx(recall)


def test_shuffled_labels_are_told_from_good_ones() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 5, 300)
    x = rng.normal(0, 1, (300, 60)) + rng.normal(0, 0.4, (5, 60))[labels]
    assert label_probe(x, labels, 5).verdict == "fine"
    assert label_probe(x, rng.permutation(labels), 5).verdict == "unrelated"
    assert label_probe(x[:50], rng.permutation(labels[:50]), 5).verdict == "few"
    assert label_probe(x, np.zeros(300, np.int64), 5).verdict == "one class"


def test_a_healthy_network_is_fine_and_unchanged() -> None:
    net = Stack(depth=3)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    report = diagnose(net)
    assert report.overfit is not None
    assert report.overfit.verdict == "learns"
    assert report.tries in (["fine"], ["lr"])  # a tenfold rate may be faster still
    assert sorted(report.rates) == pytest.approx([0.005, 0.05, 0.5])
    assert not report.left_out
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_a_vanishing_start_is_named_and_the_remedy_is_tried() -> None:
    report = diagnose(Stack(factor=0.1))
    assert report.overfit is not None
    assert report.overfit.verdict == "flat"
    assert "sits at ln(4) = 1.3863" in report.overfit.line()
    assert report.tries[0] == "init"
    assert "model.init.kind=he" in report.advice[0][1]
    assert any("init" in name and tried.verdict == "learns" for name, tried in report.remedies.items())
    assert not report.rates


def test_a_cliff_asks_for_clipping_or_a_lower_rate() -> None:
    report = diagnose(Stack(depth=4), SGD.model_copy(update={"lr": 30.0}))
    assert report.overfit is not None
    assert report.overfit.verdict == "cliff"
    assert set(report.tries) <= {"clipping", "lr"}
    assert report.tries


def test_too_low_a_rate_is_named_from_the_three() -> None:
    report = diagnose(Stack(depth=3), SGD.model_copy(update={"lr": 0.002}))
    assert "lr" in report.tries
    assert any("optim.lr=0.02" in line for _, line in report.advice)


def test_labels_come_first() -> None:
    wrong = LabelFigures(np.array([99, 99, 99, 99]), 0.25, 0.25, 0.5)
    assert diagnose(Stack(depth=3), labels=wrong).tries[0] == "labels"


def test_no_time_is_said() -> None:
    report = diagnose(Stack(depth=3), seconds=0.0)
    assert report.overfit is None
    assert report.depth.verdict == "fine"
    assert "learning one batch by heart" in report.left_out[0]
    assert "time_limit=" in report.left_out[0]


def test_auxiliary_heads_are_trained_and_not_counted() -> None:
    class WithAux(Stack):
        aux_weight = 0.3

        def forward(self, x: torch.Tensor) -> torch.Tensor | tuple[torch.Tensor, ...]:  # type: ignore[override]
            out = super().forward(x)
            return (out, 1000.0 * out) if self.training else out

    found = trial(WithAux(2), [photos()], SGD, steps=1)
    assert found.losses[0] == pytest.approx(math.log(4), rel=0.05)


def test_batches_are_even() -> None:
    labels = np.repeat(np.arange(3), [50, 7, 3])
    batches = even_batches(labels, 6, 4)
    assert [np.bincount(labels[batch], minlength=3).tolist() for batch in batches] == [[2, 2, 2]] * 4
    every = np.concatenate(batches)
    common = every[labels[every] == 0]
    assert len(set(common.tolist())) == len(common)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("init", "verdict"),
    [
        ({"kind": "normal", "std": 0.01}, "vanishing"),
        ({"kind": "xavier"}, "vanishing"),
        ({"kind": "he"}, "fine"),
        ({"kind": "he", "fan": "in"}, "fine"),
    ],
)
def test_vgg_e_at_224(init: dict[str, object], verdict: str) -> None:
    """Which starts vanish in the deepest VGG without BatchNorm, and that the doctor says what to change."""
    network = build("vgg_e", num_classes=4, img_size=224, init=init, args={"hidden": 64})
    x = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    report = examine(network, [(x, torch.arange(2))], SGD, seconds=0.0, scratch=True)
    assert report.depth.verdict == verdict
    assert report.tries == (["init"] if verdict == "vanishing" else [])
    assert all("model.init.kind=he" in line for _, line in report.advice)
    assert report.left_out


@pytest.mark.slow
def test_vgg_d_at_64_sits_at_ln_c_or_leaves_it() -> None:
    """normal(0.01) stays; He leaves it, and so does the report's remedy, Xavier on more layers with tight clipping."""
    from comp.data.petals import photo, species

    rng = np.random.default_rng(0)
    kinds = species(4, rng)
    drawn = np.stack([photo(kinds[i % 4], kinds, 64, rng) for i in range(8)])
    x = torch.tensor(drawn).permute(0, 3, 1, 2).float().div(255)
    x = (x - x.mean((0, 2, 3), keepdim=True)) / x.std((0, 2, 3), keepdim=True)
    section = SGD.model_copy(update={"lr": 0.02, "clip": 0.1})

    def verdict(steps: int, **init: object) -> str:
        network = build("vgg_d", num_classes=4, img_size=64, init=init, args={"hidden": 256})
        return trial(network, [(x, torch.arange(8) % 4)], section, steps=steps).verdict

    assert verdict(FEWEST, kind="he", fan="in") in ("slow", "learns")
    assert verdict(24, kind="normal", std=0.01) == "flat"
    assert verdict(24, kind="vgg", first=9, last=5, std=0.01) in ("slow", "learns")
