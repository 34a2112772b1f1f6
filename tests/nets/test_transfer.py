"""Freezing, learning rates from layer to layer, initialisation, growing."""

from __future__ import annotations

import copy
import math
from statistics import median
from typing import Any

import pytest
import torch
from timm.optim._param_groups import param_groups_layer_decay
from torch import Tensor, nn

from comp.errors import CompError
from comp.nets import names
from comp.nets.build import build
from comp.nets.init import grow, initialise, tensor_digest, weight_layers
from comp.nets.transfer import freeze, head_parameters, parameter_groups


def train_a_little(net: nn.Module, size: int = 64) -> None:
    torch.manual_seed(0)
    parameters = [p for p in net.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=0.1)
    net.train()
    for _ in range(2):
        optimizer.zero_grad()
        net(torch.randn(4, 3, size, size)).square().sum().backward()
        optimizer.step()


def changed(before: dict[str, Tensor], net: nn.Module) -> set[str]:
    return {name for name, value in net.state_dict().items() if not torch.equal(value, before[name])}


def state_of(net: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in net.state_dict().items()}


@pytest.mark.parametrize("name", ["resnet18", "resnet18_a", "mobilenetv2_100", "convnext_atto"])
def test_a_frozen_backbone_is_bit_identical_with_its_statistics(name: str) -> None:
    net = build(name, num_classes=3)
    freeze(net, "backbone")
    before = state_of(net)
    train_a_little(net)
    assert changed(before, net) == head_parameters(net)


def test_the_last_stages_train_with_their_statistics() -> None:
    net = build("resnet18", num_classes=3)
    freeze(net, 2)
    before = state_of(net)
    train_a_little(net)
    assert {name.split(".")[0] for name in changed(before, net)} == {"layer3", "layer4", "fc"}
    assert "layer3.0.bn1.running_mean" in changed(before, net)


def test_frozen_statistics_stay_in_copies_and_come_free_again() -> None:
    net = build("resnet18_a", num_classes=3)
    freeze(net, "backbone")
    twin = copy.deepcopy(net)
    before = state_of(twin)
    mine = state_of(net)
    train_a_little(twin)
    assert changed(before, twin) == {"fc.weight", "fc.bias"}
    assert changed(mine, net) == set()
    freeze(net, "none")
    train_a_little(net)
    assert changed(mine, net) == set(mine)


def test_more_stages_than_there_are_is_said() -> None:
    with pytest.raises(CompError, match="use 1 to 4"):
        freeze(build("resnet18", num_classes=3), 9)


@pytest.mark.parametrize("name", [*[n for n in names.PAPERS if "101" not in n and "152" not in n], "convnext_atto"])
def test_stages_are_named_by_every_network(name: str) -> None:
    hidden = {"args": {"hidden": 8}} if name.startswith(("alexnet", "vgg", "prelunet")) else {}
    net = build(name, num_classes=3, img_size=64, **hidden)  # type: ignore[arg-type]
    freeze(net, 1)
    training = {n for n, p in net.named_parameters() if p.requires_grad}
    assert head_parameters(net) < training < {n for n, _ in net.named_parameters()}


@pytest.mark.parametrize("name", ["resnet18", "vgg_a", "googlenet_2014", "prelunet14", "nin_cifar", "alexnet_2012"])
def test_layer_decay_is_timms(name: str) -> None:
    net = build(name, num_classes=3, img_size=64)
    groups = parameter_groups(net, lr=0.1, weight_decay=0.05, layer_decay=0.5, head_lr=3.0)
    head = head_parameters(net)
    ours = {id(p): (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert len(ours) == sum(len(g["params"]) for g in groups) == len(list(net.parameters()))
    theirs = param_groups_layer_decay(net, weight_decay=0.05, layer_decay=0.5)
    want = {id(p): (0.1 * g["lr_scale"], g["weight_decay"]) for g in theirs for p in g["params"]}
    for parameter_name, parameter in net.named_parameters():
        lr, decay = want[id(parameter)]
        if parameter_name in head:
            lr = 0.3
        assert ours[id(parameter)] == pytest.approx((lr, decay))


def test_slopes_norms_and_biases_have_no_weight_decay() -> None:
    net = build("prelunet14", num_classes=3, img_size=32, args={"hidden": 8})
    groups = parameter_groups(net, lr=0.1, weight_decay=0.05, layer_decay=None, head_lr=1.0)
    spared = {id(p) for g in groups if g["weight_decay"] == 0 for p in g["params"]}
    slopes = [m.weight for m in net.modules() if isinstance(m, nn.PReLU)]
    assert slopes
    assert {id(p) for p in slopes} <= spared
    assert spared == {id(p) for p in net.parameters() if p.ndim == 1}
    assert {g["lr"] for g in groups} == {0.1}
    freeze(net, "backbone")
    assert [g["name"] for g in parameter_groups(net, lr=1, weight_decay=1, layer_decay=None)] == [
        "head.no_decay",
        "head",
    ]


def spread(layer: nn.Module) -> float:
    return float(layer.weight.detach().std())  # type: ignore[union-attr, operator]


def test_initialisations_have_their_formulas_spread() -> None:
    net = build("vgg_b", num_classes=10, img_size=64)
    layers = dict(weight_layers(net))
    conv = layers["features.conv3_1"]  # 128 → 256, 3×3
    want = {"normal": 0.02, "xavier": math.sqrt(2 / (9 * (128 + 256)))}
    for kind, std in want.items():
        initialise(net, kind=kind, std=0.02, seed=0)  # type: ignore[arg-type]
        assert spread(conv) == pytest.approx(std, rel=0.02)
    for fan, inputs in (("out", 256), ("in", 128)):
        initialise(net, kind="he", fan=fan, seed=0)  # type: ignore[arg-type]
        assert spread(conv) == pytest.approx(math.sqrt(2 / (9 * inputs)), rel=0.02)
        assert spread(layers["head.fc8"]) == pytest.approx(0.01, rel=0.05)
    initialise(net, kind="vgg", first=2, last=2, std=0.03, bias=0.1, seed=0)
    order = list(layers.values())
    for i, layer in enumerate(order):
        fans = [math.prod(layer.weight.shape[d:]) for d in (1, 2)]
        xavier = math.sqrt(2 / (fans[0] + layer.weight.shape[0] * fans[1]))
        std = 0.03 if 2 <= i < len(order) - 2 else xavier
        assert spread(layer) == pytest.approx(std, rel=0.06)
        assert layer.bias is not None
        assert layer.bias.unique().tolist() == pytest.approx([0.0 if i == len(order) - 1 else 0.1])


def test_he_knows_the_slope_of_prelu() -> None:
    net = build("prelunet19", num_classes=10, img_size=32, args={"hidden": 8})
    initialise(net, kind="he", fan="in", seed=0)
    assert spread(dict(weight_layers(net))["features.conv3_2"]) == pytest.approx(
        math.sqrt(2 / ((1 + 0.25**2) * 9 * 512)), rel=0.02
    )


def test_the_config_starts_the_network_that_is_built() -> None:
    init = {"kind": "normal", "std": 0.05, "bias": 0.1}
    nets = [build("plain18", num_classes=3, init=init, seed=seed) for seed in (0, 0, 1)]
    weights = [n.state_dict()["layer3.0.conv2.weight"] for n in nets]
    assert float(weights[0].std()) == pytest.approx(0.05, rel=0.02)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


# Mean square of a layer's output, last convolution over first, VGG-E at 224 pixels.
SCALES: list[tuple[dict[str, Any], float]] = [
    ({"kind": "he", "fan": "out"}, 0.7),
    ({"kind": "he", "fan": "in"}, 6.0),
    ({"kind": "xavier"}, 5e-5),
    ({"kind": "normal", "std": 0.01}, 8e-14),
]


@pytest.mark.slow
@pytest.mark.parametrize(("init", "want"), SCALES)
def test_scale_through_the_depth_of_vgg_e(init: dict[str, Any], want: float) -> None:
    net: Any = build("vgg_e", num_classes=2, args={"hidden": 8})
    squares: dict[str, float] = {}
    convs = [(n, m) for n, m in net.features.named_children() if isinstance(m, nn.Conv2d)]
    for name, module in (convs[0], convs[-1]):

        def keep(_: Any, __: Any, out: Tensor, name: str = name) -> None:
            squares[name] = float(out.double().square().mean())

        module.register_forward_hook(keep)
    ratios = []
    for seed in range(5):
        initialise(net, **init, seed=seed)
        with torch.no_grad():
            net.features(torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(seed)))
        ratios.append(squares[convs[-1][0]] / squares[convs[0][0]])
    assert want / 3 < median(ratios) < want * 3


@pytest.mark.parametrize("column", ["b", "c", "d", "e"])
def test_a_deep_vgg_grows_from_vgg_a(column: str) -> None:
    options: dict[str, Any] = {"num_classes": 3, "img_size": 32, "args": {"hidden": 16}}
    source = build("vgg_a", **options, seed=1).state_dict()
    net = build(f"vgg_{column}", **options, seed=2)
    before = state_of(net)
    copied, random = grow(net, source, "vgg_a/fold0")
    layers = ["features.conv1_1", "features.conv2_1", "features.conv3_1", "features.conv3_2"]
    layers += ["head.fc6", "head.fc7", "head.fc8"]
    expected = {f"{layer}.{part}" for layer in layers for part in ("weight", "bias")}
    assert {to for to, _, _ in copied} == expected
    own = net.state_dict()
    assert all(tensor_digest(source[a]) == tensor_digest(own[b]) == digest for b, a, digest in copied)
    assert set(random) == set(own) - expected
    assert all(torch.equal(own[name], before[name]) for name in random)


def test_growing_at_another_size_is_refused() -> None:
    source = build("vgg_a", num_classes=3, img_size=64, args={"hidden": 16}).state_dict()
    net = build("vgg_b", num_classes=3, img_size=32, args={"hidden": 16})
    with pytest.raises(CompError, match=r"head\.fc6\.weight is"):
        grow(net, source, "vgg_a/fold0")
