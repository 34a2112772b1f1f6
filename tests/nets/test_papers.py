"""The papers' networks against the papers' numbers and against hand-written formulas."""

from __future__ import annotations

import math
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from comp.errors import CompError
from comp.nets import build, names
from comp.nets.activations import slopes
from comp.nets.alexnet import local_response_norm
from comp.nets.base import FullHead, kept_halvings
from comp.nets.googlenet import GoogLeNet
from comp.nets.residual import ZeroPadShortcut


def count(name: str, **options: Any) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in timm.create_model(name, **options).parameters())


COUNTS = [
    ("alexnet_2012", {}, 60_965_224),
    ("alexnet_2012", {"groups": 1}, 62_378_344),
    ("vgg_a", {}, 132_863_336),
    ("vgg_a_lrn", {}, 132_863_336),
    ("vgg_b", {}, 133_047_848),
    ("vgg_c", {}, 133_638_952),
    ("vgg_d", {}, 138_357_544),
    ("vgg_d", {"head": "conv"}, 138_357_544),
    ("vgg_e", {}, 143_667_240),
    ("nin_cifar", {}, 966_986),
    ("nin_cifar", {"head": "fc"}, 966_986 + 8 * 8 * 10 * 10 + 10),
    ("nin_imagenet", {}, 7_595_176),
    ("googlenet_2014", {"aux": False}, 6_998_552),
    ("googlenet_2014", {}, 13_378_280),
    ("plain18", {}, 11_515_688),
    ("plain34", {}, 21_623_848),
    ("resnet18_a", {}, 11_515_688),
    ("resnet34_a", {}, 21_623_848),
    ("resnet34_b", {}, 21_797_672),
    ("resnet34_c", {}, 22_716_840),
    # Table 1: the sum over layers of inputs × outputs × kernel + outputs; 50 and 63 bins of the pyramid.
    ("prelunet14", {"activation": "relu"}, 74_993_896),
    ("prelunet14", {"activation": "prelu_shared"}, 74_993_896 + 13),
    ("prelunet14", {}, 74_993_896 + 64 + 4 * 128 + 6 * 256 + 2 * 4096),
    ("prelunet19", {"activation": "relu"}, 178_017_384),
    ("prelunet19", {}, 178_017_384 + 96 + 5 * 256 + 10 * 512 + 2 * 4096),
]


@pytest.mark.parametrize(("name", "options", "parameters"), COUNTS)
def test_the_papers_parameter_counts(name: str, options: dict[str, Any], parameters: int) -> None:
    assert count(name, **options) == parameters


@pytest.mark.parametrize("depth", [18, 34, 50, 101, 152])
def test_option_b_has_timms_parameters_and_a_none_of_its_own(depth: int) -> None:
    with torch.device("meta"):
        timms = timm.create_model(f"resnet{depth}")
    projections = sum(p.numel() for name, p in timms.named_parameters() if "downsample" in name)
    total = sum(p.numel() for p in timms.parameters())
    assert count(f"resnet{depth}_b") == total
    assert count(f"resnet{depth}_a") == total - projections
    assert count(f"resnet{depth}_c") > total


def test_every_paper_network_is_registered_and_named() -> None:
    families = {f.__name__.rpartition(".")[2] for f in build.FAMILIES}
    ours = {n for n in timm.list_models() if timm.models.model_entrypoint(n).__module__.startswith("comp.nets.")}
    assert ours == set(names.PAPERS)
    assert len(families) == 6


MAPS = [
    ("alexnet_2012", 227, {"conv1": 55, "pool1": 27, "pool2": 13, "pool5": 6}),
    ("alexnet_2012", 224, {"conv1": 55, "pool1": 27, "pool2": 13, "pool5": 6}),
    ("vgg_c", 224, {"conv3_3": 56, "pool3": 28, "conv4_3": 28, "pool4": 14, "conv5_3": 14, "pool5": 7}),
    ("nin_cifar", 32, {"conv1_1": 32, "pool1": 16, "pool2": 8}),
    ("nin_imagenet", 224, {"conv1_1": 54, "pool1": 27, "pool2": 13, "pool3": 6}),
    ("prelunet14", 224, {"conv1": 109, "pool1": 36, "conv2_4": 36, "pool2": 18, "conv3_6": 18}),
    ("prelunet19", 224, {"conv1": 112, "pool1": 56, "conv2_5": 56, "pool2": 28, "pool3": 14, "conv4_5": 14}),
]


@pytest.mark.parametrize(("name", "size", "sides"), MAPS)
def test_map_sizes_are_the_papers(name: str, size: int, sides: dict[str, int]) -> None:
    with torch.device("meta"):
        net = timm.create_model(name, img_size=size).eval()
        x = torch.empty(1, 3, size, size)
    seen = {}
    for layer, module in net.features.named_children():
        x = module(x)
        seen[layer] = x.shape[-1]
    assert {layer: seen[layer] for layer in sides} == sides


def test_local_response_norm_is_the_papers_sum() -> None:
    x = torch.randn(2, 9, 3, 4, generator=torch.Generator().manual_seed(0)) * 20
    want = torch.empty_like(x)
    for i in range(9):
        near = x[:, max(0, i - 2) : i + 3].square().sum(1)
        want[:, i] = x[:, i] / (2 + 1e-4 * near) ** 0.75
    torch.testing.assert_close(local_response_norm()(x), want)


def test_alexnet_starts_as_the_paper_says() -> None:
    net = timm.create_model("alexnet_2012", num_classes=5)
    state = net.state_dict()
    biases = {name.removesuffix(".bias"): value for name, value in state.items() if name.endswith("bias")}
    ones = {name for name, value in biases.items() if bool((value == 1).all())}
    assert ones == {"features.conv2", "features.conv4", "features.conv5", "head.fc6", "head.fc7"}
    assert all(bool((biases[name] == 0).all()) for name in set(biases) - ones)
    assert float(state["head.fc6.weight"].std()) == pytest.approx(0.01, rel=0.01)
    assert [m.p for m in net.modules() if isinstance(m, nn.Dropout)] == [0.5, 0.5]
    assert [(m.kernel_size, m.stride) for m in net.modules() if isinstance(m, nn.MaxPool2d)] == [(3, 2)] * 3


def test_alexnets_two_groups_see_half_the_maps() -> None:
    net = timm.create_model("alexnet_2012", num_classes=5, img_size=64, hidden=8)
    assert [m.groups for m in net.features if isinstance(m, nn.Conv2d)] == [1, 2, 1, 2, 2]


@pytest.mark.parametrize("name", ["alexnet_2012", "vgg_a"])
def test_head_as_convolutions_gives_the_same_logits(name: str) -> None:
    torch.manual_seed(0)
    linear = timm.create_model(name, num_classes=5, img_size=96, hidden=64).eval()
    conv = timm.create_model(name, num_classes=5, img_size=96, hidden=64, head="conv").eval()
    conv.features.load_state_dict(linear.features.state_dict())
    conv.head = linear.head.converted("conv")
    x = torch.randn(1, 3, 96, 96)
    with torch.no_grad():
        torch.testing.assert_close(conv(x), linear(x), rtol=1e-5, atol=1e-5)
        maps = linear.forward_features(x)
        torch.testing.assert_close(linear.head.score_map(maps)[:, :, 0, 0], linear(x), rtol=1e-5, atol=1e-5)
    back = conv.head.converted("linear").state_dict()
    assert all(torch.equal(back[key], value) for key, value in linear.head.state_dict().items())


def test_convolutional_head_is_the_linear_head_at_every_window() -> None:
    torch.manual_seed(0)
    head = FullHead(4, 3, 5, 16, 0.5, "relu", "linear").eval()
    maps = torch.randn(2, 4, 5, 6)
    with torch.no_grad():
        scores = head.score_map(maps)
        assert scores.shape == (2, 5, 3, 4)
        torch.testing.assert_close(scores[:, :, 2, 1], head(maps[:, :, 2:5, 1:4]))
        torch.testing.assert_close(head.converted("conv")(maps), scores.mean((2, 3)))


def test_vgg_d_agrees_with_torchvision() -> None:
    torch.manual_seed(0)
    theirs = torchvision.models.vgg16(weights=None, num_classes=3).eval()
    ours = timm.create_model("vgg_d", num_classes=3).eval()
    ours.load_state_dict(dict(zip(ours.state_dict(), theirs.state_dict().values(), strict=True)))
    x = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("resnet34_b", lambda: timm.create_model("resnet34", num_classes=3)),
        ("resnet50_b", lambda: torchvision.models.resnet50(weights=None, num_classes=3)),
    ],
)
def test_option_b_agrees_with_timm_and_torchvision(ours: str, theirs: Any) -> None:
    torch.manual_seed(0)
    other = theirs().eval()
    for module in other.modules():  # statistics and scales that a mistake would show in
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.0)
    options = {"stride_in": "3x3"} if "50" in ours else {}
    net = timm.create_model(ours, num_classes=3, **options).eval()
    net.load_state_dict(other.state_dict())
    x = torch.randn(1, 3, 97, 64)
    with torch.no_grad():
        torch.testing.assert_close(net(x), other(x), rtol=1e-4, atol=1e-4)


def test_the_papers_bottleneck_has_its_stride_first() -> None:
    with torch.device("meta"):
        paper = timm.create_model("resnet50_b").layer2[0]
        other = timm.create_model("resnet50_b", stride_in="3x3").layer2[0]
    assert (paper.conv1.stride, paper.conv2.stride) == ((2, 2), (1, 1))
    assert (other.conv1.stride, other.conv2.stride) == ((1, 1), (2, 2))


def test_shortcut_a_subsamples_and_pads_with_zeros() -> None:
    x = torch.randn(2, 3, 5, 7)
    y = ZeroPadShortcut(3, 5, 2)(x)
    assert y.shape == (2, 5, 3, 4)
    for channel in range(5):
        for row in range(3):
            for column in range(4):
                want = x[:, channel, 2 * row, 2 * column] if channel < 3 else torch.zeros(2)
                assert torch.equal(y[:, channel, row, column], want)


def test_a_plain_net_is_its_layers_one_after_the_other() -> None:
    torch.manual_seed(0)
    net = timm.create_model("plain18", num_classes=3).eval()
    assert not [name for name, _ in net.named_parameters() if "downsample" in name]
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        y = net.maxpool(F.relu(net.bn1(net.conv1(x))))
        for stage in (net.layer1, net.layer2, net.layer3, net.layer4):
            for block in stage:
                y = F.relu(block.bn1(block.conv1(y)))
                y = F.relu(block.bn2(block.conv2(y)))
        torch.testing.assert_close(net(x), net.fc(y.mean((2, 3))))


def test_inception_has_the_papers_5x5() -> None:
    with torch.device("meta"):
        net = timm.create_model("googlenet_2014")
    blocks = {name: block for name, block in net.blocks.items() if not name.startswith("pool")}
    assert [block.outputs for block in blocks.values()] == [256, 480, 512, 512, 512, 528, 832, 832, 1024]
    assert {block.branch5[1].conv.kernel_size for block in blocks.values()} == {(5, 5)}
    batch = timm.create_model("googlenet_2014", norm="batch", num_classes=3, img_size=32)
    assert not [m for m in batch.modules() if isinstance(m, nn.LocalResponseNorm)]
    assert len([m for m in batch.modules() if isinstance(m, nn.BatchNorm2d)]) == 3 + 9 * 6


@pytest.mark.parametrize("init", [None, {"kind": "he"}])
def test_no_class_of_nin_starts_dead(init: Any) -> None:
    """Its class maps go through ReLU: a class whose map is 0 everywhere gets no gradient and is never predicted."""
    net: Any = build.build("nin_cifar", num_classes=40, img_size=32, init=init).eval()
    assert net.pretrained_cfg["classifier"] == ("head.conv", "head.fc")
    with torch.no_grad():
        logits = net(torch.randn(2, 3, 32, 32))
    assert float(logits.min()) > 0.1


def test_auxiliary_heads_are_there_in_training_only() -> None:
    torch.manual_seed(0)
    net = timm.create_model("googlenet_2014", num_classes=3)
    assert isinstance(net, GoogLeNet)
    assert net.aux_weight == 0.3
    x = torch.randn(1, 3, 224, 224)
    outputs = net.train()(x)
    assert [tuple(o.shape) for o in outputs] == [(1, 3)] * 3
    with torch.no_grad():
        want = net.eval().forward_head(net.forward_features(x))
        assert torch.equal(net(x), want)
    assert not timm.create_model("googlenet_2014", num_classes=3, img_size=64).aux


def test_prelu_slopes_start_at_a_quarter_and_are_listed() -> None:
    net = timm.create_model("prelunet14", num_classes=3, img_size=32, hidden=8)
    rows = slopes(net)
    assert [row[1] for row in rows] == [64, *[128] * 4, *[256] * 6, 8, 8]
    assert {row[2:] for row in rows} == {(0.25, 0.25, 0.25)}
    act = net.features.act1
    with torch.no_grad():
        act.weight[0] = 0.5
    x = torch.tensor([-2.0, 4.0]).view(1, 1, 1, 2).expand(1, 64, 1, 2)
    assert act(x)[0, :2].flatten().tolist() == [-1.0, 4.0, -0.5, 4.0]
    assert slopes(net)[0] == ("features.act1", 64, pytest.approx((0.5 + 63 * 0.25) / 64), 0.25, 0.5)


def test_pyramid_pools_the_maximum_of_each_bin() -> None:
    net = timm.create_model("prelunet19", num_classes=3, hidden=8)
    assert net.head.levels == (7, 3, 2, 1)
    maps = torch.randn(1, 512, 14, 14)
    first: list[Tensor] = []
    net.head.fc1.register_forward_pre_hook(lambda _, given: first.append(given[0]))
    net.head(maps)
    bins = []
    for n in (7, 3, 2, 1):
        edges = [(math.floor(i * 14 / n), math.ceil((i + 1) * 14 / n)) for i in range(n)]
        grid = [[maps[:, :, a:b, c:d].amax((2, 3)) for c, d in edges] for a, b in edges]
        bins.append(torch.stack([torch.stack(row, 2) for row in grid], 2).flatten(1))
    assert torch.equal(first[0], torch.cat(bins, 1))


def small(name: str) -> dict[str, Any]:
    """Options that make a network quick to try."""
    return {"hidden": 16} if name.startswith(("alexnet", "vgg", "prelunet")) else {}


SIZED = [n for n in names.PAPERS if not n.startswith(("plain", "resnet"))]
SOME = [*SIZED, "plain18", "plain34", "resnet18_a", "resnet34_c", "resnet50_a", "resnet50_b", "resnet50_c"]


@pytest.mark.parametrize("name", SOME)
@pytest.mark.parametrize("size", ["smallest", 64])
def test_every_parameter_gets_a_gradient(name: str, size: Any) -> None:
    """Several processes wait for ever for a parameter that takes no part."""
    torch.manual_seed(0)
    cls = type(timm.create_model(name, **small(name), **({"img_size": 64} if name in SIZED else {})))
    size = cls.smallest_input if size == "smallest" else size
    options = {"img_size": size} if name in SIZED else {}
    net = timm.create_model(name, num_classes=5, in_chans=4, drop_rate=0.0, **small(name), **options)
    outputs = net.train()(torch.randn(2, 4, size, size) + 0.5)
    assert outputs.shape == (2, 5)
    outputs.square().sum().backward()
    assert [n for n, p in net.named_parameters() if p.grad is None] == []


def test_auxiliary_heads_get_gradients_too() -> None:
    torch.manual_seed(0)
    net = timm.create_model("googlenet_2014", num_classes=5, img_size=112).train()
    sum(o.square().sum() for o in net(torch.randn(1, 3, 112, 112))).backward()
    assert [n for n, p in net.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize("name", ["nin_cifar", "nin_imagenet", "googlenet_2014", "plain18", "resnet18_c"])
def test_pooling_heads_take_any_size(name: str) -> None:
    options = {"img_size": 64} if name in SIZED else {}
    net = timm.create_model(name, num_classes=5, **options).eval()
    with torch.no_grad():
        assert net(torch.randn(1, 3, 97, 75)).shape == (1, 5)


@pytest.mark.parametrize("name", SIZED)
def test_too_small_is_said(name: str) -> None:
    net = timm.create_model(name, img_size=64, num_classes=2, **small(name))
    least = type(net).smallest_input
    with pytest.raises(CompError, match=f"smallest input is {least}"):
        timm.create_model(name, img_size=least - 1, **small(name))
    with pytest.raises(CompError, match=f"smallest input is {least}"):
        net(torch.randn(1, 3, least - 1, 64))


def test_another_size_than_the_heads_is_said() -> None:
    net = timm.create_model("vgg_a", img_size=64, num_classes=2, hidden=8)
    with pytest.raises(CompError, match="reads maps of 2×2, the images give 3×3"):
        net(torch.randn(1, 3, 96, 96))


def test_stems_give_up_reductions_from_the_front() -> None:
    assert [kept_halvings(size, (2, 2, 2)) for size in (224, 112, 111, 64, 56, 55, 28, 27)] == [3, 3, 2, 2, 2, 1, 1, 0]


@pytest.mark.parametrize("name", SOME)
def test_timms_conventions(name: str) -> None:
    options = {"img_size": 64} if name in SIZED else {}
    net = timm.create_model(name, num_classes=4, **small(name), **options).eval()
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        maps = net.forward_features(x)
        assert maps.shape[1] == net.num_features
        assert torch.equal(net(x), net.forward_head(maps))
        hidden = net.forward_head(maps, pre_logits=True)
        assert hidden.ndim == 2
        if not name.startswith("nin"):
            torch.testing.assert_close(net.get_classifier()(hidden), net(x))
        net.reset_classifier(7)
        assert net.eval()(x).shape == (1, 7)
    cfg = net.pretrained_cfg
    first = cfg["classifier"] if isinstance(cfg["classifier"], str) else cfg["classifier"][0]
    assert net.get_submodule(first) is net.get_classifier()
    assert isinstance(net.get_submodule(cfg["first_conv"]), nn.Conv2d)
