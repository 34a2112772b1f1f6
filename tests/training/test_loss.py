from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from comp import config
from comp.training.ema import Average, ema_decay
from comp.training.loss import Criterion

COUNTS = [50, 5, 20]
CPU = torch.device("cpu")


def criterion(**values: object) -> Criterion:
    return Criterion(config.validate(config.Loss, values, "test"), COUNTS, CPU)


@pytest.fixture
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(9, 3, generator=generator), torch.arange(9) % 3


def test_label_smoothing_is_torchs(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    logits, labels = batch
    expected = F.cross_entropy(logits, labels, label_smoothing=0.2)
    assert torch.allclose(criterion(label_smoothing=0.2)(logits, labels).mean(), expected)


def test_weights_make_classes_weigh_the_same_and_average_one(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    logits, labels = batch
    losses = criterion(label_smoothing=0.0, balance="weights")(logits, labels)
    weights = losses / F.cross_entropy(logits, labels, reduction="none")
    by_class = [float(weights[label]) for label in range(3)]
    assert np.average(by_class, weights=COUNTS) == pytest.approx(1)
    assert np.ptp(np.array(by_class) * COUNTS) == pytest.approx(0, abs=1e-4)


def test_logit_adjustment_adds_the_log_shares(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    logits, labels = batch
    expected = F.cross_entropy(logits + torch.tensor([50, 5, 20.0]).div(75).log(), labels, reduction="none")
    assert torch.allclose(criterion(label_smoothing=0.0, balance="logits")(logits, labels), expected)


@pytest.mark.parametrize("count", [2, 5, 8])
@pytest.mark.parametrize("values", [{"mixup": 0.4}, {"cutmix": 1.0}, {"mixup": 0.3, "cutmix": 0.7}])
def test_mixing_keeps_each_images_share_in_its_target(count: int, values: dict[str, float]) -> None:
    # Image k is the constant k: the target must hold the shares of the pixels it is made of.
    chosen = criterion(label_smoothing=0.0, **values)
    for seed in range(8):
        np.random.seed(seed)  # noqa: NPY002
        images = torch.arange(count).float().view(-1, 1, 1, 1).expand(count, 3, 16, 16).clone()
        labels = torch.arange(count) % 3
        mixed, targets = chosen.mixed(images, labels)
        assert torch.allclose(targets.sum(1), torch.ones(count))
        for place in range(count // 2 * 2):
            partner = count // 2 * 2 - 1 - place
            share = float((mixed[place].mean() - partner) / (place - partner))
            expected = share * F.one_hot(labels[place], 3) + (1 - share) * F.one_hot(labels[partner], 3)
            assert torch.allclose(targets[place], expected, atol=1e-5)
        if count % 2:
            assert (mixed[-1] == count - 1).all()
            assert torch.equal(targets[-1], F.one_hot(labels[-1], 3).float())


def test_targets_and_labels_give_the_same_loss(batch: tuple[torch.Tensor, torch.Tensor]) -> None:
    logits, labels = batch
    for values in ({}, {"balance": "weights"}, {"balance": "logits"}):
        chosen = criterion(label_smoothing=0.0, **values)
        assert torch.allclose(chosen(logits, labels), chosen(logits, F.one_hot(labels, 3).float()), atol=1e-6)


def test_the_average_follows_by_the_formula() -> None:
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    average = Average(network, 0.9)
    expected = {name: value.clone() for name, value in network.state_dict().items()}
    for updates in range(1, 60):
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(torch.randn_like(parameter))
            network[1].num_batches_tracked += 1
        average.update()
        decay = min(0.9, 1 - updates ** (-2 / 3))
        assert ema_decay(0.9, updates) == pytest.approx(decay)
        for name, value in network.state_dict().items():
            old = expected[name]
            expected[name] = old * decay + value * (1 - decay) if value.is_floating_point() else value.clone()
    for name, value in average.network.state_dict().items():
        assert torch.allclose(value, expected[name], atol=1e-5)
    assert not average.network.training
