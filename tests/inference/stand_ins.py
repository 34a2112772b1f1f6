"""Photos without files and a small network: what `evaluate` asks for, in memory."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

Pixels = npt.NDArray[np.uint8]


@dataclass
class Photos:
    """A stand-in for comp.data.manifest.Dataset, and for its reader."""

    images: list[Pixels]
    bad: tuple[str, ...] = ()
    reads: list[int] = field(default_factory=list)

    @property
    def ids(self) -> npt.NDArray[np.str_]:
        return np.array([f"photo{number:03d}" for number in range(len(self.images))])

    @property
    def widths(self) -> npt.NDArray[np.int64]:
        return np.array([image.shape[1] for image in self.images])

    @property
    def heights(self) -> npt.NDArray[np.int64]:
        return np.array([image.shape[0] for image in self.images])

    def reader(self) -> Photos:
        return self

    def pixels(self, row: int) -> Pixels:
        self.reads.append(int(row))
        return self.images[row]


def photo(height: int, width: int, seed: int = 0) -> Pixels:
    """A photo with detail at every scale, so that a wrong pixel shows."""
    rng = np.random.default_rng([seed, height, width])
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


# Odd, tiny, square, portrait, landscape and a strip.
SHAPES = [(1, 1), (37, 53), (192, 192), (120, 87), (64, 63), (65, 64), (33, 99), (48, 47), (300, 7)]


def odd_photos() -> Photos:
    """One photo of each odd shape."""
    return Photos([photo(*shape, seed) for seed, shape in enumerate(SHAPES)])


class TinyNet(nn.Module):
    """Two convolutions with BatchNorm whose statistics are not trivial, average pooling, a linear head."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.num_classes, self.num_features, self.in_chans = classes, 12, 3
        self.conv1, self.norm1 = nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8)
        self.conv2, self.norm2 = nn.Conv2d(8, 12, 3, 2, 1), nn.BatchNorm2d(12)
        self.fc = nn.Linear(12, classes)
        with torch.no_grad():
            for norm in (self.norm1, self.norm2):
                norm.running_mean.normal_(0, 0.5)
                norm.running_var.uniform_(0.3, 2)
                norm.weight.uniform_(0.5, 1.5)
                norm.bias.normal_(0, 0.5)
            self.fc.weight.normal_(0, 2)

    def forward_features(self, x: Tensor) -> Tensor:
        x = self.norm1(self.conv1(x)).relu()
        return self.norm2(self.conv2(x)).relu()

    def forward_head(self, x: Tensor) -> Tensor:
        return self.fc(x.mean((2, 3)))

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))
