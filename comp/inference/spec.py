"""View sets as short strings: `flip*fivecrop`, `multiscale`, `tencrop@logits`. Names and geometry only, no torch.

    spec  := part ('*' part)* ['@' space]          space := probs | logits | gmean
    part  := center | flip | fivecrop | tencrop | scales(256, x1.14, …) | dense[:logits|window|softmax] | an alias

A set of views is the product of its parts, so their order does not matter and one canonical form names it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from comp.errors import CompError, Exit, did_you_mean

CORNERS = ("top left", "top right", "bottom left", "bottom right")
READINGS = ("logits", "window", "softmax")
SPACES = ("probs", "logits", "gmean")
MOST_VIEWS = 1000
LARGEST = 8192  # pixels of the shorter side
LARGEST_RATIO = 32.0


@dataclass(frozen=True)
class View:
    """One look at an image.

    Attributes:
        size: Shorter side of the resized image, pixels.
        place: Which crop of it: center, one of CORNERS, or whole (dense).
        flip: Whether the image is mirrored left to right before it is cropped.
        reading: How the class-score map is read where `place` is whole, else "".
    """

    size: int
    place: str = "center"
    flip: bool = False
    reading: str = ""

    @property
    def name(self) -> str:
        """Unique within a set, e.g. `256 top left mirrored`."""
        return f"{self.size} {self.place}" + (" mirrored" if self.flip else "")


@dataclass(frozen=True)
class Scale:
    """A shorter side in pixels, or relative to the training crop."""

    value: float
    relative: bool

    def __str__(self) -> str:
        return f"x{self.value:g}" if self.relative else f"{self.value:g}"

    def pixels(self, crop: int) -> int:
        return round(self.value * crop) if self.relative else int(self.value)


Argument = tuple[Scale, ...] | str | None


@dataclass(frozen=True)
class Part:
    """A factor of the product.

    Attributes:
        expand: (views, argument, crop) → the views that each of them becomes.
        parse: Reads the text after the part's name, with the whole spec for messages.
        symmetry: What must keep a photo's label for this part to be allowed.
        parts: The parts it is short for; it is replaced by them.
    """

    expand: Callable[[list[View], Argument, int], list[View]]
    parse: Callable[[str, str], Argument]
    symmetry: str = ""
    parts: tuple[str, ...] = ()


def _bad(text: str, what: str, fix: str = "") -> CompError:
    shown = text if len(text) <= 80 else text[:80] + "…"
    return CompError(f"views '{shown}'", what, fix, Exit.CONFIG)


def _no_argument(text: str, spec: str) -> None:
    if text:
        raise _bad(spec, f"'{text}' follows a part that takes no argument", "leave it out")


def _parse_scales(text: str, spec: str) -> tuple[Scale, ...]:
    match = re.fullmatch(r"\((.*)\)", text)
    scales: list[Scale] = []
    for word in match[1].split(",") if match else []:
        number = re.fullmatch(r"(x?)(\d{1,5}(?:\.\d{1,6})?)", word)
        if not number or (not number[1] and "." in number[2]):
            fix = "write pixels (256) or multiples of the training crop (x1.14)"
            raise _bad(spec, f"'{word}' is not a scale", fix)
        scale = Scale(float(number[2]), bool(number[1]))
        if scale.relative and not 1 <= scale.value <= LARGEST_RATIO:
            fix = "the resized image must hold the training crop: use x1 or more"
            raise _bad(spec, f"the scale {scale} is not between x1 and x{LARGEST_RATIO:g}", fix)
        if not scale.relative and not 1 <= scale.value <= LARGEST:
            raise _bad(spec, f"the scale {scale} is not between 1 and {LARGEST} pixels", "choose another")
        if scale in scales:
            raise _bad(spec, f"the scale {scale} stands twice", "give it once")
        scales.append(scale)
    if not scales:
        raise _bad(spec, "scales names no scale", "write e.g. scales(x1,x1.14)")
    return tuple(sorted(scales, key=lambda scale: (not scale.relative, scale.value)))


def _parse_reading(text: str, spec: str) -> str:
    reading = text.removeprefix(":") if text else READINGS[0]
    if reading not in READINGS or (text and not text.startswith(":")):
        raise _bad(spec, f"dense is not read by '{reading}'", did_you_mean(reading, READINGS))
    return reading


def _center(views: list[View], argument: Argument, crop: int) -> list[View]:
    return views


def _flip(views: list[View], argument: Argument, crop: int) -> list[View]:
    return [replace(view, flip=flip) for view in views for flip in (False, True)]


def _fivecrop(views: list[View], argument: Argument, crop: int) -> list[View]:
    return [replace(view, place=place) for view in views for place in ("center", *CORNERS)]


def _scales(views: list[View], argument: Argument, crop: int) -> list[View]:
    assert isinstance(argument, tuple)
    return [replace(view, size=scale.pixels(crop)) for view in views for scale in argument]


def _dense(views: list[View], argument: Argument, crop: int) -> list[View]:
    assert isinstance(argument, str)
    return [replace(view, place="whole", reading=argument) for view in views]


# In canonical order. A new part is a function that turns views into views and an entry here.
PARTS = {
    "center": Part(_center, _no_argument),
    "flip": Part(_flip, _no_argument, symmetry="hflip"),
    "fivecrop": Part(_fivecrop, _no_argument),
    "tencrop": Part(_center, _no_argument, parts=("flip", "fivecrop")),
    "scales": Part(_scales, _parse_scales),
    "dense": Part(_dense, _parse_reading),
}

# Names for whole sets, relative to the training crop so that they serve every image size.
ALIASES = {
    # Simonyan & Zisserman (2015) and He et al. (2016): dense at 224, 256, 384, 480 and 640 pixels for a crop of 224.
    "multiscale": "flip*dense*scales(x1,x1.143,x1.714,x2.143,x2.857)",
    # Ten-crop at the scales of GoogLeNet (Szegedy et al. 2015, section 7): 256, 288, 320 and 352 for a crop of 224.
    "multicrop": "tencrop*scales(x1.143,x1.286,x1.429,x1.571)",
}
_FILE_NAMES = ("center", "flip", "fivecrop", "tencrop", "dense", *ALIASES)


@dataclass(frozen=True)
class ViewSpec:
    """A parsed view set.

    Attributes:
        parts: (name, argument) in canonical order, each part once; () is the centre crop alone.
        space: Where views are averaged: probs, logits, or gmean (the geometric mean of probabilities, which after
            renormalising is the softmax of the mean logits: another name for the same numbers).
    """

    parts: tuple[tuple[str, Argument], ...]
    space: str = "probs"

    @property
    def canonical(self) -> str:
        """The one way to write this set; equal sets have equal canonical forms."""
        words = []
        for name, argument in self.parts:
            tail = f":{argument}" if isinstance(argument, str) else ""
            tail = f"({','.join(map(str, argument))})" if isinstance(argument, tuple) else tail
            words.append(name + tail)
        return ("*".join(words) or "center") + (f"@{self.space}" if self.space != "probs" else "")

    @property
    def file_name(self) -> str:
        """A short name for files: the alias where there is one, else `v-` and 8 hex digits of the canonical form."""
        for alias in _FILE_NAMES:
            if parse(alias).canonical == self.canonical:
                return alias
        return "v-" + hashlib.sha256(self.canonical.encode()).hexdigest()[:8]

    @property
    def dense(self) -> str:
        """How the class-score map is read, or "" where the views are crops."""
        return next((str(argument) for name, argument in self.parts if name == "dense"), "")

    def views(self, crop: int, test_size: int) -> list[View]:
        """The views in a fixed order.

        Args:
            crop: Side of the training crop, pixels.
            test_size: Shorter side of the resized image where the spec names no scales; raised to `crop` where it is
                less, since a crop must lie inside the image.

        Raises:
            CompError: A scale in pixels is less than the crop, two scales are the same, or there are too many views.
        """
        views = [View(max(crop, test_size))]
        for name, argument in self.parts:
            views = PARTS[name].expand(views, argument, crop)
        small = min(view.size for view in views)
        if small < crop:
            fix = f"the resized image must hold the crop: use scales of {crop} or more, or relative ones (x1)"
            raise _bad(self.canonical, f"the scale {small} is less than the training crop of {crop} pixels", fix)
        if len(set(views)) < len(views):
            raise _bad(self.canonical, f"two scales are the same at a crop of {crop} pixels", "leave one out")
        if len(views) > MOST_VIEWS:
            raise _bad(self.canonical, f"has {len(views)} views, {MOST_VIEWS} are allowed", "use fewer scales")
        return views

    def cost(self, crop: int, test_size: int, aspect: float = 1.0) -> float:
        """Forward passes for one image in units of one centre crop.

        Args:
            crop: Side of the training crop, pixels.
            test_size: Shorter side where the spec names no scales.
            aspect: Longer over shorter side of the images; whole images cost in proportion to it.
        """
        return sum(
            max(view.size, 1) ** 2 * max(aspect, 1 / aspect) / crop**2 if view.place == "whole" else 1.0
            for view in self.views(crop, test_size)
        )

    def __str__(self) -> str:
        return self.canonical


def parse(text: str, symmetries: Sequence[str] = ("hflip",)) -> ViewSpec:
    """Read a view set.

    Args:
        text: The spec; spaces are ignored.
        symmetries: What keeps a photo's label in this data set (`symmetries:` in its YAML).

    Raises:
        CompError: Exit code 2, one line: an unknown part (with the nearest name), parts that exclude each other, or a
            mirror image where mirroring changes the label.
    """
    body, at, space = "".join(str(text).lower().split()).partition("@")
    space = space if at else SPACES[0]
    if space not in SPACES:
        raise _bad(text, f"'{space}' is no space to average in", did_you_mean(space, SPACES))
    parts: dict[str, Argument] = {}
    for word in _expand(body, text):
        match = re.fullmatch(r"([a-z_]\w*)(.*)", word)
        name = match[1] if match else word
        if name in ALIASES:
            raise _bad(text, f"'{name}' takes no argument", "leave it out")
        if not match or name not in PARTS:
            name = name[:40]
            fix = did_you_mean(name, [*PARTS, *ALIASES]) if name else "write e.g. flip*fivecrop"
            raise _bad(text, f"'{name}' is not a part of a view set", fix)
        part = PARTS[name]
        argument = part.parse(match[2], text)
        if part.symmetry and part.symmetry not in symmetries:
            fix = f"use views without '{name}', or add {part.symmetry} to the data set's symmetries"
            raise _bad(text, f"'{name}' changes the label of these images", fix)
        if name in parts and name != "center":
            raise _bad(text, f"'{name}' is in it twice", "give it once")
        parts[name] = argument
    if "dense" in parts and "fivecrop" in parts:
        raise _bad(text, "dense looks at the whole image, there is nothing left to crop", "drop dense or the crops")
    parts.pop("center", None)
    return ViewSpec(tuple((name, parts[name]) for name in PARTS if name in parts), space)


def _expand(body: str, text: str) -> list[str]:
    """The words of a product, aliases and shorthands replaced by what they stand for."""
    words: list[str] = []
    for word in body.split("*"):
        if word in ALIASES:
            words += _expand(ALIASES[word], text)
        elif word in PARTS and PARTS[word].parts:
            words += PARTS[word].parts
        else:
            words.append(word)
    return words
