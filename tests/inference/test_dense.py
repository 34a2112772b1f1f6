"""Dense evaluation: pooled heads see a bigger image, VGG's head slides as convolutions; three readings of the map."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import timm
import torch
from stand_ins import Photos, TinyNet, photo
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d
from torchvision.transforms import functional as tv

import comp.nets.build  # noqa: F401 (registers the papers' networks)
from comp import config
from comp.errors import CompError
from comp.inference.evaluate import evaluate
from comp.inference.spec import parse
from comp.inference.views import resize

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.25)


def photos() -> Photos:
    return Photos([photo(50, 70, 1), photo(70, 50, 2), photo(64, 64, 3), photo(50, 70, 4), photo(33, 35, 5)])


def dense(network: nn.Module, views: str, crop: int = 32, test: int = 40, **options: Any) -> Any:
    geometry = config.Image(crop=crop, test=test)
    given: dict[str, Any] = {"image": geometry, "precision": "fp32", "device": torch.device("cpu"), **options}
    rows = np.arange(5)
    return evaluate(network, photos(), rows, parse(views), name="net", mean=MEAN, std=STD, **given).probs  # type: ignore[arg-type]


def bigger(row: int, size: int) -> Tensor:
    return tv.normalize(tv.to_tensor(resize(photos().images[row], size).copy()), MEAN, STD)[None]


@pytest.mark.parametrize("name", ["tiny", "resnet10t", "mobilenetv3_small_050", "convnext_atto"])
@torch.no_grad()
def test_logits_of_a_pooled_head_equal_feeding_the_bigger_image(name: str) -> None:
    torch.manual_seed(0)
    network = TinyNet().eval() if name == "tiny" else timm.create_model(name, num_classes=5).eval()
    expected = torch.cat([network(bigger(row, 48)).softmax(1) for row in range(5)])
    np.testing.assert_allclose(dense(network, "dense*scales(48)"), expected, atol=1e-5)


@pytest.mark.parametrize("reading", ["logits", "softmax"])
@torch.no_grad()
def test_scales_and_flips_are_averaged(reading: str) -> None:
    network = TinyNet().eval()

    def probs(x: Tensor) -> Tensor:
        if reading == "logits":
            return network(x).softmax(1)
        maps = network.forward_features(x)
        return network.fc(maps.permute(0, 2, 3, 1)).softmax(3).mean((1, 2))

    expected = [
        torch.stack([probs(x) for s in (32, 45) for x in (bigger(row, s), bigger(row, s).flip(3))]).mean(0)
        for row in range(5)
    ]
    np.testing.assert_allclose(dense(network, f"flip*dense:{reading}*scales(32,45)"), torch.cat(expected), atol=1e-6)


@torch.no_grad()
def test_the_three_readings_by_hand() -> None:
    network = TinyNet().eval()
    weight, bias = network.fc.weight, network.fc.bias
    for row, got in ((0, 0), (2, 2)):
        maps = network.forward_features(bigger(row, 40))  # the training map of a 32-pixel crop is 8×8
        per_position = torch.einsum("kc,bchw->bkhw", weight, maps) + bias[None, :, None, None]
        windows = torch.einsum("kc,bchw->bkhw", weight, avg_pool2d(maps, 8, 1)) + bias[None, :, None, None]
        expected = {
            "logits": per_position.mean((2, 3)).softmax(1),
            "window": windows.mean((2, 3)).softmax(1),
            "softmax": per_position.softmax(1).mean((2, 3)),
        }
        for reading, probs in expected.items():
            np.testing.assert_allclose(dense(network, f"dense:{reading}")[got], probs[0], atol=1e-5)
        assert len({tuple(np.round(probs[0].tolist(), 3)) for probs in expected.values()}) == 3


def test_photos_of_one_shape_share_a_forward_pass() -> None:
    class Counting(TinyNet):
        def forward(self, x: Tensor) -> Tensor:
            sizes.append(len(x))
            return super().forward(x)

    sizes: list[int] = []
    mixed = Photos([photo(50, 51 + seed % 35, seed) for seed in range(70)])  # 35 shapes, each pair far apart
    evaluate(
        Counting(),
        mixed,  # type: ignore[arg-type]
        np.arange(70),
        parse("dense"),
        name="net",
        image=config.Image(crop=32, test=40),
        mean=MEAN,
        std=STD,
        precision="fp32",
        device=torch.device("cpu"),
        batch=9,
        fold=False,
    )
    assert len(sizes) < 45  # 35 pairs, some of them parted by the end of a chunk; 70 where each is alone


@pytest.mark.parametrize("name", ["vgg_a", "alexnet_2012"])
@torch.no_grad()
def test_a_fully_connected_head_becomes_convolutions(name: str) -> None:
    torch.manual_seed(0)
    crop = 64
    network = timm.create_model(name, num_classes=5, img_size=crop).eval()
    for parameter in network.parameters():
        parameter.mul_(1.2)  # outputs that differ from 1/5
    # At the training crop the dense form is the network itself.
    square = dense(network, f"dense*scales({crop})", crop, 64)[2]
    np.testing.assert_allclose(square, network(bigger(2, crop)).softmax(1)[0], atol=1e-5)
    # Beyond it every window of the maps is classified.
    maps = network.forward_features(bigger(0, 96))
    window = network.forward_features(bigger(2, crop)).shape[-1]
    columns = maps.shape[3] - window + 1
    rows = maps.shape[2] - window + 1
    assert rows > 1
    assert columns > 1
    scores = [
        network.forward_head(maps[:, :, i : i + window, j : j + window]) for i in range(rows) for j in range(columns)
    ]
    expected = torch.stack(scores)
    for reading, probs in (
        ("logits", expected.mean(0).softmax(1)),
        ("window", expected.mean(0).softmax(1)),
        ("softmax", expected.softmax(2).mean(0)),
    ):
        np.testing.assert_allclose(dense(network, f"dense:{reading}*scales(96)", crop)[0], probs[0], atol=1e-5)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "prelunet14"])
def test_networks_with_a_fixed_input_are_refused_in_one_line(name: str) -> None:
    network = timm.create_model(name, num_classes=5)
    with pytest.raises(CompError, match="use tencrop or multicrop instead"):
        dense(network, "dense", 224, 256)
