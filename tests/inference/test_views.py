"""Geometry: byte for byte what torchvision does to a PIL image."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image
from stand_ins import SHAPES, photo
from torchvision.transforms import functional as tv

from comp.inference.spec import View, parse
from comp.inference.views import LONGEST, cut, resize

ODD = [shape for shape in SHAPES if max(shape) <= LONGEST * min(shape)]


@pytest.mark.parametrize("shape", ODD)
@pytest.mark.parametrize("size", [32, 37, 96])
def test_resize_is_torchvisions(shape: tuple[int, int], size: int) -> None:
    image = photo(*shape)
    expected = np.asarray(tv.resize(Image.fromarray(image), [size], tv.InterpolationMode.BILINEAR))
    np.testing.assert_array_equal(resize(image, size), expected)


@pytest.mark.parametrize("shape", ODD)
@pytest.mark.parametrize(("size", "crop"), [(37, 32), (32, 31), (64, 64), (40, 1)])
def test_ten_crops_are_torchvisions(shape: tuple[int, int], size: int, crop: int) -> None:
    image = photo(*shape)
    whole = tv.resize(Image.fromarray(image), [size], tv.InterpolationMode.BILINEAR)
    corners = ["top left", "top right", "bottom left", "bottom right", "center"]
    expected = dict(
        zip([(place, flip) for flip in (False, True) for place in corners], tv.ten_crop(whole, [crop]), strict=True)
    )
    views = parse("tencrop").views(crop, size)
    assert len(views) == len(expected)
    for view in views:
        got = cut(resize(image, view.size), view, crop)
        np.testing.assert_array_equal(got, np.asarray(expected[view.place, view.flip]), err_msg=view.name)


def test_flipping_twice_is_identity() -> None:
    image = photo(41, 60)
    mirror = View(41, "whole", flip=True)
    once = cut(image, mirror, 32)
    assert not np.array_equal(once, image)
    np.testing.assert_array_equal(cut(once, mirror, 32), image)


def test_whole_images_stay_rectangular() -> None:
    assert resize(photo(60, 80), 48).shape == (48, 64, 3)
    assert cut(resize(photo(80, 60), 48), View(48, "whole"), 32).shape == (64, 48, 3)


def test_downsizing_is_antialiased() -> None:
    stripes = np.zeros((256, 256, 3), np.uint8)
    stripes[:, ::2] = 255
    small = resize(stripes, 64)[:, 4:-4]
    assert 120 <= small.min() <= small.max() <= 135  # a nearest or plain bilinear filter would give black or white


def test_a_strip_keeps_its_middle() -> None:
    strip = np.zeros((1, 5000, 3), np.uint8)
    strip[:, 2480:2520] = 200
    resized = resize(strip, 64)
    assert resized.shape == (64, 64 * LONGEST, 3)
    assert resized[:, 32 * LONGEST].min() == 200
    assert resize(strip.transpose(1, 0, 2), 64).shape == (64 * LONGEST, 64, 3)


def test_a_crop_outside_the_image_is_a_bug() -> None:
    with pytest.raises(ValueError, match="does not lie inside"):
        cut(photo(30, 40), View(30), 32)
