"""Folding BatchNorm: the same function, fewer layers, and never a wrong one."""

from __future__ import annotations

import pytest
import timm
import torch
from stand_ins import TinyNet
from torch import Tensor, nn

from comp.inference.fold import inference_copy

CPU = torch.device("cpu")


def lively(network: nn.Module) -> nn.Module:
    """Statistics as training leaves them: with fresh ones BatchNorm is the identity and any fold looks right."""
    torch.manual_seed(0)
    for norm in network.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.normal_(norm.running_mean)
            nn.init.uniform_(norm.running_var, 0.5, 2)
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            nn.init.normal_(norm.bias)
    return network.eval()


def norms(network: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())


# All of them; about half (those before the convolution cannot be); none to fold.
@pytest.mark.parametrize(
    ("name", "share"), [("resnet18", 1), ("mobilenetv3_small_050", 1), ("densenet121", 0.4), ("convnext_atto", None)]
)
@torch.no_grad()
def test_the_function_stays(name: str, share: float | None) -> None:
    network = lively(timm.create_model(name, num_classes=5))
    before = {key: value.clone() for key, value in network.state_dict().items()}
    folded, count = inference_copy(network, 64, CPU)
    assert count == norms(network) - norms(folded)
    assert count >= (share or 0) * norms(network)
    x = torch.randn(2, 3, 80, 64, generator=torch.Generator().manual_seed(1))
    expected = network(x)
    assert (folded(x) - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    assert all(parameter.requires_grad for parameter in network.parameters())


class UsedTwice(TinyNet):
    """What the convolution makes is normalised and also used as it is: folding would be wrong."""

    def forward_features(self, x: Tensor) -> Tensor:
        made = self.conv1(x)
        return self.norm2(self.conv2((self.norm1(made) + made).relu())).relu()


class SharedConvolution(TinyNet):
    """One convolution feeds two normalisations."""

    def __init__(self) -> None:
        super().__init__()
        self.norm3 = nn.BatchNorm2d(8)
        lively(self)

    def forward_features(self, x: Tensor) -> Tensor:
        return self.norm2(self.conv2((self.norm1(self.conv1(x)) + self.norm3(self.conv1(x.flip(3)))).relu()))


class LooksInside(TinyNet):
    """Reads an attribute of a normalisation, which is gone after folding."""

    def forward_features(self, x: Tensor) -> Tensor:
        return super().forward_features(x) * self.norm1.eps**0


@pytest.mark.parametrize(("kind", "count"), [(TinyNet, 2), (UsedTwice, 0), (SharedConvolution, 1), (LooksInside, 0)])
@torch.no_grad()
def test_a_wrong_fold_is_not_made(kind: type[TinyNet], count: int) -> None:
    network = kind().eval()
    folded, found = inference_copy(network, 32, CPU)
    assert found == count
    x = torch.randn(2, 3, 32, 48, generator=torch.Generator().manual_seed(1))
    assert (folded(x) - network(x)).abs().max() <= 1e-5 * network(x).abs().max()
