"""From one decoded image to the pixels of its views: resize the shorter side, crop, mirror. No torch: runs on workers.

The geometry is torchvision's (`Resize`, `CenterCrop`, `ten_crop` on PIL images), byte for byte: Pillow's bilinear
resizing with antialiasing, `int(round(margin / 2))` for the centre, the image mirrored before it is cropped.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from comp.inference.spec import View

Pixels = npt.NDArray[np.uint8]
LONGEST = 32  # of an image longer than so many times its shorter side the middle is taken


def resize(image: Pixels, size: int) -> Pixels:
    """Resize so that the shorter side is `size` pixels; the longer one follows, rounded down.

    Args:
        image: (H, W, 3) RGB. Smaller ones are enlarged. Of strips longer than 32 : 1 the middle 32 : 1 is taken, since
            a resized 1×5000 image would have 300 million pixels.
        size: Pixels.

    Returns:
        (h, w, 3), min(h, w) == size; the image itself where it has that size already.
    """
    height, width = image.shape[:2]
    short, long = min(height, width), max(height, width)
    if long > LONGEST * short:
        start = (long - LONGEST * short) // 2
        middle = slice(start, start + LONGEST * short)
        image = image[:, middle] if width > height else image[middle]
        height, width, long = *image.shape[:2], LONGEST * short
    if short == size:
        return image
    other = int(size * long / short)
    wanted = (size, other) if width <= height else (other, size)
    return np.asarray(Image.fromarray(image).resize(wanted, Image.Resampling.BILINEAR))


def cut(image: Pixels, view: View, crop: int) -> Pixels:
    """The pixels of a view.

    Args:
        image: (h, w, 3), resized to the view's size.
        view: Which crop, mirrored or not.
        crop: Side of the crop, pixels; no more than min(h, w).

    Returns:
        (crop, crop, 3), or (h, w, 3) for a whole-image view: a window on `image`, nothing is copied.
    """
    if view.flip:
        image = image[:, ::-1]
    if view.place == "whole":
        return image
    height, width = image.shape[:2]
    if crop > min(height, width):
        raise ValueError(f"a crop of {crop} pixels does not lie inside {height}×{width}")
    vertical, _, horizontal = view.place.partition(" ")
    top = {"top": 0, "bottom": height - crop}.get(vertical, round((height - crop) / 2))
    left = {"left": 0, "right": width - crop}.get(horizontal, round((width - crop) / 2))
    return image[top : top + crop, left : left + crop]


def all_sizes(image: Pixels, sizes: Iterable[int]) -> dict[int, Pixels]:
    """The image resized to each of the sizes."""
    return {size: resize(image, size) for size in dict.fromkeys(sizes)}


def stack(crops: list[Pixels], out: npt.NDArray[Any] | None = None) -> Pixels:
    """Views of one shape below each other, (B, h, w, 3), contiguous."""
    return np.stack(crops, out=out)
