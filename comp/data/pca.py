"""PCA colour augmentation: light that changes along the colours the training photos vary in.

Krizhevsky, Sutskever, Hinton, "ImageNet Classification with Deep Convolutional Neural Networks" (2012), section 4.1: to
every pixel is added P (α1 λ1, α2 λ2, α3 λ3)ᵀ, where P holds the eigenvectors and λ the eigenvalues of the 3×3
covariance of the training set's RGB values, and α ~ N(0, 0.1) is drawn once per use of an image.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from comp.data.order import seed_of

if TYPE_CHECKING:
    from comp.data.manifest import Dataset
    from comp.data.pixels import Reader

SAMPLE = 500  # photos whose pixels are used; three colour axes need no more


@dataclass(frozen=True)
class PcaColour:
    """Principal colours of a set, of pixel values in [0, 1] (the paper's magnitudes hold for no other scale).

    Args:
        values: Eigenvalues of the covariance (3,), descending.
        vectors: Its eigenvectors as columns (3, 3) in RGB.
    """

    values: tuple[float, ...]
    vectors: tuple[tuple[float, ...], ...]

    def shift(self, alphas: Sequence[float]) -> NDArray[np.float64]:
        """What is added to R, G and B (3,) for the three draws, on the scale [0, 1]."""
        vectors, values = np.array(self.vectors, np.float64), np.array(self.values, np.float64)
        return np.asarray(vectors @ (np.array(alphas, np.float64) * values), np.float64)


def principal_colours(pixels: Iterable[NDArray[np.uint8]]) -> PcaColour:
    """The principal colours of images (H, W, 3), each pixel counting alike."""
    count, total, outer = 0, np.zeros(3), np.zeros((3, 3))
    for image in pixels:
        flat = image.reshape(-1, 3) / 255.0
        count, total, outer = count + len(flat), total + flat.sum(0), outer + flat.T @ flat
    mean = total / count
    values, vectors = np.linalg.eigh(outer / count - np.outer(mean, mean))
    values, vectors = values[::-1].clip(0), vectors[:, ::-1]
    # An eigenvector's sign is free; fix it, so that the same set gives the same pictures on any machine.
    vectors = vectors * np.where(vectors[np.abs(vectors).argmax(0), range(3)] < 0, -1, 1)
    return PcaColour(tuple(values.tolist()), tuple(tuple(row) for row in vectors.tolist()))


def pca_colour(dataset: Dataset, rows: NDArray[np.int64], reader: Reader) -> PcaColour:
    """The principal colours of the training photos, from at most `SAMPLE` of them.

    Args:
        dataset: The data set.
        rows: Its rows that train, in any order; which of them are used depends on their ids alone.
        reader: Reads their bytes.

    Returns:
        The colours; they are a function of the photos, so a run that goes on computes the same ones.
    """
    from comp.data.pixels import decode

    chosen = sorted(rows.tolist(), key=lambda row: seed_of("pca", dataset.ids[row]))[:SAMPLE]
    images = (decode(reader.read(row), f"image {dataset.ids[row]}") for row in chosen)
    return principal_colours(images)
