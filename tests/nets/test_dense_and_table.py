"""The fully-convolutional form, and the layer table."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from comp.errors import CompError
from comp.nets.build import build
from comp.nets.dense import dense_parts
from comp.nets.table import layer_table

POOLED = ["resnet18", "plain18", "resnet18_a", "mobilenetv2_100", "nin_imagenet", "googlenet_2014"]


@pytest.mark.parametrize("name", POOLED)
def test_the_mean_of_the_class_map_is_the_network_on_the_larger_image(name: str) -> None:
    net = build(name, num_classes=5, img_size=64).eval()
    parts = dense_parts(net, name, 64)
    assert (parts.pooled, parts.linear) == (True, True)
    x = torch.randn(2, 3, 96, 128)
    with torch.no_grad():
        scores = parts.head_map(parts.features(x))
        assert scores.shape[2] > 1
        torch.testing.assert_close(scores.mean((2, 3)), net(x), rtol=1e-4, atol=1e-5)


def test_a_norm_between_pooling_and_classifier_is_noticed() -> None:
    net: Any = build("convnext_atto", num_classes=5).eval()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    parts = dense_parts(net, "convnext_atto", 64)
    assert (parts.pooled, parts.linear, parts.window) == (True, False, (2, 2))
    x = torch.randn(1, 3, 128, 96)
    with torch.no_grad():
        pooled = F.adaptive_avg_pool2d(parts.features(x), 1)
        torch.testing.assert_close(parts.head_map(pooled)[:, :, 0, 0], net(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("name", "crop", "step"), [("vgg_a", 64, 32), ("vgg11", 224, 32)])
def test_vggs_class_map_holds_what_each_window_gives(name: str, crop: int, step: int) -> None:
    ours = name == "vgg_a"
    net: Any = build(name, num_classes=5, img_size=crop, args={"hidden": 16} if ours else None).eval()
    parts = dense_parts(net, name, crop)
    side = crop // step
    assert (parts.pooled, parts.window) == (False, (side, side))
    with torch.no_grad():
        maps = parts.features(torch.randn(1, 3, crop + step, crop + 2 * step))
        scores = parts.head_map(maps)
        assert scores.shape == (1, 5, 2, 3)
        window = maps[:, :, 1 : 1 + side, 2 : 2 + side]
        torch.testing.assert_close(scores[:, :, 1, 2], net.forward_head(window), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "crop", "why"),
    [
        ("vit_tiny_patch16_224", 64, "tokens"),
        ("swin_tiny_patch4_window7_224", 224, "one size only"),
        ("prelunet14", 64, "neither averages"),
    ],
)
def test_networks_without_such_a_form_are_refused_in_one_line(name: str, crop: int, why: str) -> None:
    net = build(name, num_classes=5, img_size=crop, args={"hidden": 8} if "prelu" in name else None)
    with pytest.raises(CompError, match=f"{why}.*tencrop") as caught:
        dense_parts(net, name, crop)
    assert "\n" not in str(caught.value)


def test_cutting_leaves_the_network_as_it_was() -> None:
    net = build("resnet18", num_classes=5).train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    dense_parts(net, "resnet18", 64)
    assert net.training
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_the_table_of_vgg_d() -> None:
    net = build("vgg_d", num_classes=1000)
    table = layer_table(net)
    assert table.parameters == 138_357_544
    maps = [64 * 224**2, 128 * 112**2, 256 * 56**2, 512 * 28**2, 512 * 14**2]
    counts = [2, 2, 3, 3, 3]
    want = 3 * 224**2 + 4096 * 2 + 1000
    want += sum(m * n + m // 4 for m, n in zip(maps, counts, strict=True))
    assert table.activations == want == 15_237_608
    rows = {row.name: row for row in table.rows}
    assert rows["features.conv1_2"].multiply_adds == 224 * 224 * 64 * 64 * 9
    assert rows["head.fc6"].multiply_adds == 25088 * 4096
    assert rows["features.conv5_3"].output == (512, 14, 14)
    assert rows["features.conv1_2"].parameters == 64 * 64 * 9 + 64
    assert (rows["features.pool5"].field, rows["head.fc6"].field) == (212, 404)
    assert table.multiply_adds == sum(row.multiply_adds for row in table.rows) == 15_470_264_320


def test_receptive_fields_follow_branches_and_strides() -> None:
    table = layer_table(build("resnet18", num_classes=10), 224)
    rows = {row.name: row for row in table.rows}
    # 7×7/2 · pooling 3×3/2 · four 3×3 · 3×3/2 and three 3×3 · the same twice more
    assert rows["conv1"].field == 7
    assert rows["maxpool"].field == 11
    assert rows["layer1.1.conv2"].field == 11 + 4 * 2 * 4
    assert rows["layer4.1.conv2"].field == 435
    alexnet = {row.name: row for row in layer_table(build("alexnet_2012", num_classes=10, img_size=227), 227).rows}
    assert [alexnet[f"features.{name}"].field for name in ("conv1", "pool1", "conv2", "pool5")] == [11, 19, 51, 195]


def test_attention_has_no_receptive_field_but_a_cost() -> None:
    net = build("vit_tiny_patch16_224", num_classes=10)
    table = layer_table(net, 224)
    rows = {row.name: row for row in table.rows}
    assert rows["blocks.0.attn.qkv"].field is not None
    assert rows["blocks.0.attn.proj"].field is None
    attention = 12 * 2 * 197 * 197 * 192
    assert table.multiply_adds == sum(row.multiply_adds for row in table.rows) + attention
    assert next(net.parameters()).device.type == "cpu"
