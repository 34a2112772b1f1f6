"""RandAugment: a few of 14 image operations, drawn with replacement, all at one strength.

Cubuk, Zoph, Shlens, Le, "RandAugment: Practical Automated Data Augmentation with a Reduced Search Space" (2020). The
14 operations are the paper's, the strongest forms (magnitude 10) those of AutoAugment (Cubuk et al. 2019, table 6).
Every operation grows with the magnitude and those with a direction draw it, as most implementations since have it
(the authors' code makes posterize and solarize weaker as the magnitude grows). None mirrors an image.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from comp.data.order import seed_of

Image = NDArray[np.uint8]
Step = Callable[[Image, int], Image]

_SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13  # Pillow's filter SMOOTH


def _sharpness(factor: float) -> Step:
    """Pillow's Sharpness: away from the smoothed image (factor above 1) or towards it."""
    import cv2

    def sharpen(image: Image, seed: int) -> Image:
        smooth = cv2.filter2D(image, -1, _SMOOTH)
        return np.asarray(cv2.addWeighted(image, factor, smooth, 1 - factor, 0), np.uint8)

    return sharpen


def operations(albumentations: Any, step: Callable[[Any], Step], magnitude: float, fill: Any) -> dict[str, list[Step]]:
    """The 14 operations at a magnitude; those with a direction have two forms.

    Args:
        albumentations: The module.
        step: Makes an operation of one of its transforms.
        magnitude: 0 to 10.
        fill: Colour of what a moved image leaves free.
    """
    part = magnitude / 10

    def both(make: Callable[[float], Any], most: float) -> list[Step]:
        return [make(most * part), make(-most * part)]

    def moved(**arguments: Any) -> Step:
        return step(albumentations.Affine(**arguments, fill=fill, p=1))

    def jitter(**factors: tuple[float, float]) -> Step:
        still = dict.fromkeys(("brightness", "contrast", "saturation"), (1.0, 1.0))
        return step(albumentations.ColorJitter(**(still | factors), hue=(0, 0), p=1))

    threshold = 1 - part
    keeps = np.uint8(256 - 2 ** round(4 * part))  # the upper bits; albumentations' Posterize takes no 8
    return {
        "identity": [lambda image, seed: image],
        "autocontrast": [step(albumentations.AutoContrast(method="pil", p=1))],
        "equalize": [step(albumentations.Equalize(p=1))],
        "rotate": both(lambda angle: moved(rotate=(angle, angle)), 30),
        "solarize": [step(albumentations.Solarize(threshold_range=(threshold, threshold), p=1))],
        "posterize": [lambda image, seed: image & keeps],
        "color": both(lambda by: jitter(saturation=(1 + by, 1 + by)), 0.9),
        "contrast": both(lambda by: jitter(contrast=(1 + by, 1 + by)), 0.9),
        "brightness": both(lambda by: jitter(brightness=(1 + by, 1 + by)), 0.9),
        "sharpness": both(lambda by: _sharpness(1 + by), 0.9),
        "shear_x": both(lambda by: moved(shear={"x": (by, by), "y": (0, 0)}), float(np.degrees(np.arctan(0.3)))),
        "shear_y": both(lambda by: moved(shear={"x": (0, 0), "y": (by, by)}), float(np.degrees(np.arctan(0.3)))),
        "translate_x": both(lambda by: moved(translate_percent={"x": (by, by), "y": (0, 0)}), 0.45),
        "translate_y": both(lambda by: moved(translate_percent={"x": (0, 0), "y": (by, by)}), 0.45),
    }


def randaugment(count: int, forms: list[list[Step]]) -> Step:
    """`count` operations, one after the other, each drawn from all of them, then its direction."""

    def augment(image: Image, seed: int) -> Image:
        words = np.random.PCG64(seed).random_raw(2 * count).tolist()
        for number in range(count):
            operation = forms[words[2 * number] % len(forms)]
            form = operation[words[2 * number + 1] % len(operation)]
            image = form(image, seed_of(seed, number))
        return image

    return augment
