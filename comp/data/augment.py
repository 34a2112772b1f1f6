"""Augmentation of training images: one crop law, then any parts, written as names: `[plain, rotation:20, pca]`.

What happens to an image is a function of the image and a seed. Every part has its own stream of chance, keyed by its
name, so adding a part leaves what the others do as it was (albumentations itself seeds all transforms of a pipeline
alike, which ties their draws together: images that are flipped would be the bright ones). To add a part, write a
function that takes the `Setting` and the part's numbers, and enter it in `AUGMENTATIONS`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from comp.data.order import seed_of
from comp.data.pca import PcaColour
from comp.data.randaugment import Image, Step, operations, randaugment
from comp.errors import CompError, Exit, did_you_mean


@dataclass(frozen=True)
class Setting:
    """What parts may depend on.

    Args:
        crop: Width and height of what comes out, in pixels.
        scale: Shorter side before the crop, (low, high) in pixels, both included.
        symmetries: What keeps a label: hflip, vflip, rotate90.
        fill: Colour (R, G, B) in 0..255 of what a moved image leaves free and of what is erased.
        pca: The set's principal colours, where the part `pca` is used.
    """

    crop: int
    scale: tuple[int, int]
    symmetries: tuple[str, ...] = ()
    fill: tuple[int, ...] = (0, 0, 0)
    pca: PcaColour | None = None


@dataclass(frozen=True)
class Part:
    """An entry of `AUGMENTATIONS`.

    Args:
        build: Makes the step from the setting and the numbers after the name.
        help: One line for people.
        numbers: Per number after the name: (default, lowest, highest).
        whole: The first so many of them are whole numbers.
        law: Whether this is a crop law; every pipeline begins with exactly one.
        needs: The symmetry without which it may not be used.
    """

    build: Callable[..., Step]
    help: str
    numbers: tuple[tuple[float, float, float], ...] = ()
    whole: int = 0
    law: bool = False
    needs: str = ""


def resize(image: Image, height: int, width: int) -> Image:
    """Resize (H, W, 3): the area's mean where the image shrinks (no aliasing), bilinear where it grows."""
    import cv2

    if image.shape[:2] == (height, width):
        return image
    shrinks = image.shape[0] > height or image.shape[1] > width
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(image, (width, height), interpolation=method), np.uint8)


def _region(image: Image, shorter: int, crop: int) -> tuple[int, int, int]:
    """The side of the square that becomes the crop when the shorter side becomes `shorter`, and the room around it."""
    height, width = image.shape[:2]
    side = max(1, round(min(height, width) * crop / shorter))
    return side, height - side, width - side


def _plain(setting: Setting) -> Step:
    """The papers' law: shorter side uniform in the range, a random square of it, mirrored half the time.

    Resizing and cropping are one step: the square that becomes the crop is cut from the image (to whole pixels of it)
    and only that is resized, two to three times as fast as resizing everything. Simonyan & Zisserman 2015 (VGG)
    section 3.1, He et al. 2016 (ResNet) section 3.4.
    """
    low, high = setting.scale
    mirrors = "hflip" in setting.symmetries

    def law(image: Image, seed: int) -> Image:
        drawn, down, right, mirror = np.random.PCG64(seed).random_raw(4).tolist()
        side, room_y, room_x = _region(image, low + drawn % (high - low + 1), setting.crop)
        top, left = down % (room_y + 1), right % (room_x + 1)
        cut = resize(image[top : top + side, left : left + side], setting.crop, setting.crop)
        return cut[:, ::-1] if mirrors and mirror >> 63 else cut

    return law


def _center(setting: Setting) -> Step:
    def law(image: Image, seed: int) -> Image:
        side, room_y, room_x = _region(image, setting.scale[0], setting.crop)
        top, left = room_y // 2, room_x // 2
        return resize(image[top : top + side, left : left + side], setting.crop, setting.crop)

    return law


def _albumentations() -> Any:
    os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # its import would ask the network for a newer version
    import albumentations

    return albumentations


def _step(transform: Any) -> Step:
    """A transform of albumentations as a function of image and seed."""

    def step(image: Image, seed: int) -> Image:
        transform.set_random_seed(seed)
        changed: Image = transform(image=image)["image"]
        return changed

    return step


def _rrc(setting: Setting, least: float) -> Step:
    """A random share of the area at a random aspect ratio (Szegedy et al. 2015), mirrored half the time."""
    crop = _albumentations().RandomResizedCrop(
        (setting.crop, setting.crop), scale=(least, 1.0), area_for_downscale="image", p=1
    )
    cut = _step(crop)
    mirrors = "hflip" in setting.symmetries

    def law(image: Image, seed: int) -> Image:
        done = cut(image, seed)
        return done[:, ::-1] if mirrors and seed_of(seed, "mirror") >> 63 else done

    return law


def _vflip(setting: Setting) -> Step:
    return lambda image, seed: image[::-1] if seed >> 63 else image


def _rotate90(setting: Setting) -> Step:
    return lambda image, seed: np.rot90(image, seed >> 62)


def _affine(setting: Setting, **arguments: Any) -> Step:
    return _step(_albumentations().Affine(**arguments, fill=setting.fill, p=1))


def _rotation(setting: Setting, most: float) -> Step:
    return _affine(setting, rotate=(-most, most))


def _translation(setting: Setting, most: float) -> Step:
    return _affine(setting, translate_percent={"x": (-most, most), "y": (-most, most)})


def _stretching(setting: Setting, most: float) -> Step:
    return _affine(setting, scale={"x": (1 - most, 1 + most), "y": (1 - most, 1 + most)})


def _distortion(setting: Setting, most: float) -> Step:
    return _step(_albumentations().GridDistortion(distort_limit=(-most, most), fill=setting.fill, p=0.5))


def _brightness_contrast(setting: Setting, most: float) -> Step:
    limits = (-most, most)
    return _step(_albumentations().RandomBrightnessContrast(brightness_limit=limits, contrast_limit=limits, p=1))


def _colour_jitter(setting: Setting, most: float) -> Step:
    range_ = (1 - most, 1 + most)
    hue = (-most / 4, most / 4)
    jitter = _albumentations().ColorJitter(brightness=range_, contrast=range_, saturation=range_, hue=hue, p=1)
    return _step(jitter)


def _noise(setting: Setting, most: float) -> Step:
    return _step(_albumentations().GaussNoise(std_range=(0, most), p=1))


def _pca(setting: Setting, deviation: float) -> Step:
    import cv2

    colours = setting.pca
    if colours is None:
        raise ValueError("the part pca needs the set's principal colours (pca_colour)")
    levels = np.arange(256)[:, None]

    def step(image: Image, seed: int) -> Image:
        alphas = np.random.default_rng(seed).normal(0, deviation, 3).tolist()
        shifted = np.clip(np.rint(levels + 255 * colours.shift(alphas)), 0, 255).astype(np.uint8)
        return np.asarray(cv2.LUT(np.ascontiguousarray(image), shifted[None]), np.uint8)

    return step


def _randaugment(setting: Setting, count: float, magnitude: float) -> Step:
    return randaugment(int(count), list(operations(_albumentations(), _step, magnitude, setting.fill).values()))


def _erasing(setting: Setting, chance: float) -> Step:
    """One rectangle of 2 to 33 % of the area becomes the mean colour (Zhong et al. 2020, RE-M)."""
    erase = _albumentations().Erasing(scale=(0.02, 0.33), ratio=(0.3, 1 / 0.3), fill=setting.fill, p=chance)
    return _step(erase)


AUGMENTATIONS: dict[str, Part] = {
    "plain": Part(_plain, "random shorter side, random crop, mirrored half the time", law=True),
    "rrc": Part(_rrc, "random share of the area (least, 0.08) at a random aspect ratio", ((0.08, 0.01, 1),), law=True),
    "center": Part(_center, "no augmentation: smallest scale, centre crop", law=True),
    "vflip": Part(_vflip, "upside down half the time", needs="vflip"),
    "rotate90": Part(_rotate90, "a quarter turn, 0 to 3 times", needs="rotate90"),
    "rotation": Part(_rotation, "rotate by up to so many degrees", ((15, 0, 180),)),
    "translation": Part(_translation, "move by up to this share of the side", ((0.1, 0, 0.9),)),
    "stretching": Part(_stretching, "scale width and height apart, by up to this share", ((0.2, 0, 0.9),)),
    "distortion": Part(_distortion, "stretch rows and columns unevenly, half the time", ((0.3, 0, 0.9),)),
    "brightness_contrast": Part(_brightness_contrast, "change both by up to this share", ((0.2, 0, 1),)),
    "colour_jitter": Part(_colour_jitter, "brightness, contrast, saturation; a quarter for hue", ((0.4, 0, 1),)),
    "pca": Part(_pca, "AlexNet's colour shift, standard deviation of alpha", ((0.1, 0, 10),)),
    "noise": Part(_noise, "Gaussian noise, standard deviation up to this share of 255", ((0.05, 0, 1),)),
    "randaugment": Part(_randaugment, "so many of 14 operations at this magnitude", ((2, 1, 14), (9, 0, 10)), whole=1),
    "erasing": Part(_erasing, "a rectangle becomes the mean colour, with this chance", ((0.5, 0, 1),)),
}
_QUARTER_TURN = 45.0  # degrees; a larger rotation comes nearer to a quarter turn than to none


def parse(names: Sequence[str], symmetries: Sequence[str]) -> list[tuple[str, list[float]]]:
    """Read the names: `rotation:20` is `("rotation", [20.0])`; numbers that are left out take their defaults.

    Raises:
        CompError: Exit code 2, for an unknown name, wrong numbers, a part twice, none or several crop laws or one that
            does not come first, or a part that the set's symmetries forbid.
    """

    def wrong(what: str, fix: str) -> CompError:
        return CompError("augment", what, fix, Exit.CONFIG)

    laws = [name for name, part in AUGMENTATIONS.items() if part.law]
    parsed: list[tuple[str, list[float]]] = []
    for text in names:
        name, *given = text.split(":")
        if name not in AUGMENTATIONS:
            raise wrong(f"there is no part {name!r}", did_you_mean(name, AUGMENTATIONS, len(AUGMENTATIONS)))
        part = AUGMENTATIONS[name]
        form = ":".join([name, *(f"{default:g}" for default, _, _ in part.numbers)])
        try:
            numbers = [float(word) for word in given]
        except ValueError:
            raise wrong(f"{text!r} has something other than numbers after the name", f"write e.g. {form}") from None
        if len(numbers) > len(part.numbers):
            raise wrong(f"{text!r} has {len(numbers)} numbers, {name} takes {len(part.numbers)}", f"write e.g. {form}")
        numbers += [default for default, _, _ in part.numbers[len(numbers) :]]
        for number, (_, lowest, highest) in zip(numbers, part.numbers, strict=True):
            if not lowest <= number <= highest:
                raise wrong(f"{text!r}: {number:g} is not in {lowest:g} to {highest:g}", f"write e.g. {form}")
        if any(number != int(number) for number in numbers[: part.whole]):
            raise wrong(f"{text!r}: {numbers[0]:g} is not a whole number", f"write e.g. {form}")
        needs = part.needs or ("rotate90" if name == "rotation" and numbers[0] > _QUARTER_TURN else "")
        if needs and needs not in symmetries:
            what = f"{text!r} may change a label: the set's symmetries ({', '.join(symmetries) or 'none'}) lack {needs}"
            raise wrong(what, f"leave it out, or add {needs} to the data set's symmetries")
        if name in (known for known, _ in parsed):
            raise wrong(f"the part {name} stands twice", "write it once")
        if part.law == bool(parsed):
            stand = f"'{text}' stands {'after the first place' if parsed else 'first'}"
            raise wrong(f"{stand}, a pipeline begins with one crop law", f"begin with one of {', '.join(laws)}")
        parsed.append((name, numbers))
    if not parsed:
        raise wrong("is empty", f"begin with one of {', '.join(laws)}")
    return parsed


def check(names: Sequence[str], symmetries: Sequence[str]) -> None:
    """Raise the `CompError` of `parse` for names that make no pipeline, before anything heavy is imported."""
    parse(names, symmetries)


def needs_pca(names: Sequence[str]) -> bool:
    """Whether a pipeline of these names needs the set's principal colours."""
    return any(name.split(":")[0] == "pca" for name in names)


@dataclass(frozen=True)
class Augment:
    """A pipeline. It is not for several threads at once: albumentations keeps the state of a call in its transforms."""

    crop: int
    parts: tuple[tuple[str, Step], ...]

    def __call__(self, image: Image, seed: int) -> Image:
        """Augment an image.

        Args:
            image: RGB (H, W, 3) uint8; it is not changed.
            seed: Where all chance comes from, in [0, 2^64).

        Returns:
            (crop, crop, 3) uint8, a function of image and seed, contiguous.
        """
        for name, part in self.parts:
            image = part(image, seed_of(seed, name))
        return np.ascontiguousarray(image)


def pipeline(
    names: Sequence[str],
    crop: int,
    scale: tuple[int, int],
    symmetries: Sequence[str],
    mean_rgb: Sequence[float] = (0.5, 0.5, 0.5),
    pca: PcaColour | None = None,
) -> Augment:
    """Build a pipeline from its names.

    Args:
        names: A crop law, then parts, in the order they are applied.
        crop: Width and height of what comes out, in pixels.
        scale: Shorter side before the crop (low, high); an image that is smaller is enlarged, never padded.
        symmetries: What keeps a label; without hflip no image is mirrored.
        mean_rgb: The set's mean colour in [0, 1]: what a moved image leaves free and what is erased gets it.
        pca: The set's principal colours; wanted where `needs_pca`.

    Raises:
        CompError: Exit code 2, for names that make no pipeline, and for a shorter side that is less than the crop.
    """
    parsed = parse(names, symmetries)
    if scale[0] < crop:
        what = f"a shorter side of {scale[0]} pixels has no crop of {crop}"
        raise CompError("image.scale", what, f"begin the range at {crop} or more", Exit.CONFIG)
    fill = tuple(round(255 * value) for value in mean_rgb)
    setting = Setting(crop, scale, tuple(symmetries), fill, pca)
    return Augment(crop, tuple((name, AUGMENTATIONS[name].build(setting, *numbers)) for name, numbers in parsed))
