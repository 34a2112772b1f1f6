"""Photographs of flowers that do not exist: species by attributes, and one picture of one plant at a time.

The class decides petal count, petal shape, colours, their pattern, the centre and the leaves; everything else (scale,
place, rotation, tilt, light, background, neighbours, what is in front, focus, noise) is nuisance drawn per picture.
Colour alone does not tell the class: palettes are shared, and every species has a rarer second colour.
"""

from __future__ import annotations

import colorsys
import itertools
import math
from dataclasses import astuple, dataclass

import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]
_Points = NDArray[np.float64]
_Colour = tuple[float, float, float]

PETALS = (4, 5, 6, 8, 12, 18)
SHAPES = ("round", "pointed", "strap", "heart", "spoon", "frilled")
# hue in degrees, saturation and value of the petals, and the second colour used by marks
PALETTES: dict[str, tuple[_Colour, _Colour]] = {
    "white": ((60, 0.05, 0.97), (330, 0.45, 0.85)),
    "yellow": ((52, 0.85, 0.97), (22, 0.90, 0.80)),
    "orange": ((26, 0.88, 0.96), (8, 0.90, 0.55)),
    "red": ((356, 0.85, 0.82), (340, 0.70, 0.30)),
    "pink": ((330, 0.45, 0.95), (325, 0.80, 0.62)),
    "violet": ((280, 0.55, 0.78), (265, 0.75, 0.35)),
    "blue": ((225, 0.60, 0.85), (55, 0.30, 0.95)),
}
MARKS = ("plain", "tipped", "eyed", "veined")
CENTRES = ("button", "disc", "ring", "stamens", "cup")
LEAVES = ("lance", "oval", "lobed", "grass")
_FINE = 4  # bits of a coordinate below the pixel, as OpenCV's drawing takes them


@dataclass(frozen=True, slots=True)
class Species:
    """What a class of flowers looks like; every field is one of the words or numbers above."""

    petals: int
    shape: str
    colour: str
    mark: str
    centre: str
    leaves: str
    rings: int
    second: str

    @property
    def name(self) -> str:
        """A class name in words, e.g. `pink-heart-5-cup`."""
        return f"{self.colour}-{self.shape}-{self.petals}-{self.centre}"


def species(count: int, rng: np.random.Generator) -> list[Species]:
    """Choose species at random, any two of which differ in at least two of the first seven attributes and in name.

    Args:
        count: How many.
        rng: Where chance comes from.
    """
    every = list(itertools.product(PETALS, SHAPES, PALETTES, MARKS, CENTRES, LEAVES, (1, 2)))
    chosen: list[Species] = []
    names: set[str] = set()
    for index in rng.permutation(len(every)):
        colours = [name for name in PALETTES if name != every[index][2]]
        new = Species(*every[index], second=colours[int(rng.integers(len(colours)))])  # type: ignore[misc]
        near = any(sum(a != b for a, b in zip(astuple(new)[:7], astuple(old)[:7], strict=True)) < 2 for old in chosen)
        if not near and new.name not in names:
            chosen.append(new)
            names.add(new.name)
        if len(chosen) == count:
            return chosen
    raise ValueError(f"{count} species are wanted, {len(chosen)} can be told apart")


def _rgb(colour: _Colour, rng: np.random.Generator | None = None) -> _Colour:
    """Hue, saturation and value to red, green and blue in 0..255, varied a little when `rng` is given."""
    hue, saturation, value = colour
    if rng is not None:
        turn, pale, dark = rng.normal(0, (7, 0.08, 0.06))
        hue, saturation, value = hue + turn, saturation * (1 + pale), value * (1 + dark)
    red, green, blue = colorsys.hsv_to_rgb(hue % 360 / 360, min(max(saturation, 0), 1), min(max(value, 0), 1))
    return red * 255, green * 255, blue * 255


def _mix(a: _Colour, b: _Colour, part: float, gain: float = 1.0) -> _Colour:
    """`part` of b in a, times `gain`."""
    return tuple(min(max((x + (y - x) * part) * gain, 0), 255) for x, y in zip(a, b, strict=True))  # type: ignore[return-value]


def _fill(image: Image, points: _Points, colour: _Colour) -> None:
    import cv2

    cv2.fillPoly(image, [np.round(points * 2**_FINE).astype(np.int32)], colour, cv2.LINE_8, _FINE)


def _stroke(image: Image, points: _Points, colour: _Colour, width: float) -> None:
    import cv2

    points = np.round(points * 2**_FINE).astype(np.int32)
    cv2.polylines(image, [points], False, colour, max(1, round(width)), cv2.LINE_8, _FINE)


def _blob(shape: str, petals: int, rng: np.random.Generator) -> _Points:
    """Outline (P, 2) of one petal from the flower's centre (0, 0) to its tip (1, 0)."""
    t = np.linspace(0, 1, 13)
    wide = min(0.62, 2.6 / petals) * rng.uniform(0.88, 1.12)
    half = {
        "round": 1.15 * t**0.55 * (1 - t) ** 0.40,
        "pointed": 2.0 * t**0.75 * (1 - t) ** 1.05,
        "strap": 0.62 * (4 * t * (1 - t)) ** 0.22,
        "heart": 1.30 * t**0.85 * (1 - t) ** 0.30,
        "spoon": 1.75 * t**1.9 * (1 - t) ** 0.42,
        "frilled": 1.20 * t**0.80 * (1 - t) ** 0.28 * (1 + 0.16 * np.sin(t * 26 + rng.uniform(0, 6))),
    }[shape] * wide
    along = t.copy()
    if shape == "heart":  # the edge comes back to the notch in the middle of the tip
        along = np.where(t > 0.9, 0.9 + (0.9 - t) * 1.2, t * 1.1)
    side = np.stack([along, half], 1)
    return np.concatenate([side, side[::-1] * (1, -1)])


def _turn(angle: float) -> _Points:
    cosine, sine = math.cos(angle), math.sin(angle)
    return np.array([[cosine, -sine], [sine, cosine]])


def _disc(radius: float, corners: int = 20, wave: float = 0.0) -> _Points:
    angle = np.linspace(0, 2 * np.pi, corners, endpoint=False)
    reach = radius * (1 + wave * np.cos(angle * corners / 2))
    return np.stack([np.cos(angle), np.sin(angle)], 1) * reach[:, None]


def _flower(image: Image, kind: Species, at: _Points, radius: float, rng: np.random.Generator) -> None:
    """Draw one flower head with its own rotation, tilt, colour variant and light from one side."""
    palette = kind.second if rng.random() < 0.22 else kind.colour
    first, second = (_rgb(colour, rng) for colour in PALETTES[palette])
    tilt, facing = rng.uniform(0.55, 1.0), rng.uniform(0, 2 * np.pi)
    view = _turn(facing) @ np.diag([1.0, tilt]) @ _turn(-facing) * radius
    light, start = rng.uniform(0, 2 * np.pi), rng.uniform(0, 2 * np.pi)
    petals = kind.petals
    if petals >= 8 and rng.random() < 0.5:
        petals += int(rng.integers(-1, 2))  # many-petalled flowers are not exact
    missing = int(rng.integers(petals)) if rng.random() < 0.12 else -1
    for ring in range(kind.rings):
        size = 1.0 if ring == 0 else 0.66
        for index in rng.permutation(petals).tolist():
            if index == missing and ring == 0:
                continue
            angle = start + (index + 0.5 * ring + rng.normal(0, 0.06)) * 2 * np.pi / petals
            outline = _blob(kind.shape, petals, rng) * (size * rng.normal(1, 0.05), size * rng.normal(1, 0.05))
            turned = outline @ (view @ _turn(angle)).T
            gain = (0.93 + 0.10 * math.cos(angle - light)) * rng.normal(1, 0.03) * (1.06 if ring else 1.0)
            body, mark = _mix(first, first, 0, gain), _mix(second, second, 0, gain)
            _fill(image, turned + at, _mix(body, (20, 20, 20), 0.38))
            middle = turned.mean(0)
            _fill(image, (turned - middle) * 0.90 + middle + at, mark if kind.mark == "tipped" else body)
            _fill(image, turned * (0.72 if kind.mark == "tipped" else 0.66) + at, _mix(body, (10, 10, 10), 0.10))
            _fill(image, turned * 0.42 + at, mark if kind.mark == "eyed" else _mix(body, (10, 10, 10), 0.22))
            if kind.mark == "veined":
                for side in (-0.5, 0.0, 0.5):
                    vein = np.array([[0.2, 0.0], [0.55, side * 0.16], [0.85, side * 0.26]]) * size
                    _stroke(image, vein @ (view @ _turn(angle)).T + at, mark, radius / 26 * min(1, 7 / petals))
    _centre(image, kind, at, view, radius, rng)


def _centre(image: Image, kind: Species, at: _Points, view: _Points, radius: float, rng: np.random.Generator) -> None:
    pollen, brown = _rgb((46, 0.85, 0.88), rng), _rgb((24, 0.70, 0.32), rng)
    if kind.centre == "button":
        _fill(image, _disc(0.17) @ view.T + at, pollen)
        _fill(image, _disc(0.09) @ view.T + at, _mix(pollen, brown, 0.35))
    elif kind.centre == "disc":
        _fill(image, _disc(0.34) @ view.T + at, brown)
        for angle in np.arange(26) * 2.399963:  # the golden angle: seeds as in a sunflower
            reach = 0.31 * math.sqrt(angle / 63)
            seed = np.array([math.cos(angle), math.sin(angle)]) * reach
            _fill(image, (_disc(0.028, 5) + seed) @ view.T + at, _mix(brown, pollen, 0.55))
    elif kind.centre == "ring":
        _fill(image, _disc(0.28) @ view.T + at, pollen)
        _fill(image, _disc(0.17) @ view.T + at, _rgb((95, 0.55, 0.42), rng))
    elif kind.centre == "stamens":
        for angle in np.linspace(0, 2 * np.pi, 9, endpoint=False) + rng.uniform(0, 1):
            tip = np.array([math.cos(angle), math.sin(angle)]) * rng.uniform(0.30, 0.40)
            _stroke(image, np.stack([tip * 0.1, tip]) @ view.T + at, _mix(pollen, (255, 255, 255), 0.5), radius / 22)
            _fill(image, (_disc(0.045, 8) + tip) @ view.T + at, brown)
    else:  # a trumpet with a wavy rim, dark inside
        rim = _rgb((34, 0.90, 0.95), rng)
        _fill(image, _disc(0.40, 24, 0.10) @ view.T + at, rim)
        _fill(image, _disc(0.29, 24, 0.06) @ view.T + at, _mix(rim, (60, 20, 0), 0.45))
        _fill(image, _disc(0.08) @ view.T + at, pollen)


def _leaf(image: Image, shape: str, at: _Points, angle: float, length: float, rng: np.random.Generator) -> None:
    green = _rgb((rng.uniform(85, 135), rng.uniform(0.45, 0.75), rng.uniform(0.28, 0.55)))
    t = np.linspace(0, 1, 17)
    half = {
        "lance": 0.42 * t**0.7 * (1 - t) ** 0.9,
        "oval": 0.62 * t**0.5 * (1 - t) ** 0.5,
        "lobed": 0.50 * t**0.5 * (1 - t) ** 0.5 * (0.75 + 0.45 * np.sin(t * 30)),
        "grass": 0.06 * (1 - t) ** 0.5,
    }[shape]
    bend = np.array([0, rng.uniform(-0.25, 0.25)]) * (t**2)[:, None]
    spine = np.stack([t, np.zeros_like(t)], 1) + bend
    outline = np.concatenate([spine + np.stack([0 * t, half], 1), (spine - np.stack([0 * t, half], 1))[::-1]])
    move = _turn(angle) * length * (1.5 if shape == "grass" else 1.0)
    _fill(image, outline @ move.T + at, green)
    _stroke(image, spine @ move.T + at, _mix(green, (255, 255, 210), 0.25), length / 40)


def _blurred(image: Image, sigma: float) -> Image:
    import cv2

    out: Image = cv2.GaussianBlur(image, (0, 0), sigma)
    return out


def _background(width: int, rng: np.random.Generator) -> Image:
    import cv2

    hue, saturation, value = ((100, 0.5, 0.42), (120, 0.5, 0.18), (30, 0.4, 0.35), (205, 0.3, 0.75), (40, 0.1, 0.6))[
        int(rng.choice(5, p=(0.4, 0.2, 0.15, 0.15, 0.1)))
    ]
    base = np.array(_rgb((hue, saturation, value), rng)) + rng.normal(0, 22, (6, 6, 3))
    image = np.clip(cv2.resize(base, (width, width), interpolation=cv2.INTER_CUBIC), 0, 255).astype(np.uint8)
    for _ in range(int(rng.integers(8, 34))):
        place = rng.uniform(0, width, 2)
        tone = _rgb((rng.uniform(20, 140), rng.uniform(0.1, 0.7), rng.uniform(0.12, 0.8)))
        if rng.random() < 0.65:
            _leaf(image, str(rng.choice(LEAVES)), place, rng.uniform(0, 6.28), width * rng.uniform(0.1, 0.4), rng)
        else:
            _fill(image, _disc(width * rng.uniform(0.01, 0.06), 12) + place, tone)
    return _blurred(image, width * rng.uniform(0.004, 0.03))


def photo(kind: Species, neighbours: list[Species], size: int, rng: np.random.Generator) -> Image:
    """Draw one picture.

    Args:
        kind: The species it is of.
        neighbours: Species that may bloom behind it, small and out of focus.
        size: Width and height in pixels.
        rng: Where everything that is not the species comes from.

    Returns:
        RGB pixels (size, size, 3).
    """
    width = 2 * size  # drawn at twice the size, then averaged: smooth edges
    image = _background(width, rng)
    if rng.random() < 0.4:
        other = neighbours[int(rng.integers(len(neighbours)))]
        _flower(image, other, rng.uniform(0, width, 2), width * rng.uniform(0.07, 0.13), rng)
        image = _blurred(image, width * 0.006)
    at = width * (0.5 + np.clip(rng.normal(0, 0.09, 2), -0.22, 0.22))
    radius = width * rng.uniform(0.20, 0.42)
    foot = np.array([at[0] + width * rng.normal(0, 0.15), width * 1.05])
    t = np.linspace(0, 1, 9)[:, None]
    stem = at * (1 - t) ** 2 + 2 * t * (1 - t) * np.array([at[0], (at[1] + foot[1]) / 2]) + foot * t**2
    _stroke(image, stem, _rgb((100, 0.55, 0.38), rng), width / 45)
    for index in range(int(rng.integers(2, 5))):
        root = stem[int(rng.integers(2, 8))] if index else at
        angle = rng.uniform(0, np.pi) if index == 0 else rng.choice([0.15, np.pi - 0.15]) - rng.uniform(-0.5, 0.8)
        _leaf(image, kind.leaves, root, angle, radius * rng.uniform(0.9, 1.5), rng)
    _flower(image, kind, at, radius, rng)
    for _ in range(int(rng.choice(4, p=(0.55, 0.25, 0.13, 0.07)))):  # what is in front of it
        place = at + rng.normal(0, radius * 0.9, 2)
        _leaf(image, str(rng.choice(LEAVES)), place, rng.uniform(0, 6.28), radius * rng.uniform(0.6, 1.4), rng)
    return _expose(image, size, rng)


def _expose(image: Image, size: int, rng: np.random.Generator) -> Image:
    """Light, lens and sensor: exposure, colour temperature, uneven light, shadow, focus, motion, noise."""
    import cv2

    width = image.shape[0]
    light = cv2.resize(rng.normal(1, 0.16, (3, 3)), (width, width), interpolation=cv2.INTER_CUBIC).astype(np.float32)
    if rng.random() < 0.25:
        shadow = np.ones((width, width, 3), np.uint8)
        edge = rng.uniform(0, width, (2, 2))
        across = _turn(np.pi / 2) @ (edge[1] - edge[0])
        _fill(shadow, np.stack([edge[0] * 3 - edge[1] * 2, edge[1] * 3 - edge[0] * 2, edge[1] + across * 9]), (0, 0, 0))
        light *= 0.55 + 0.45 * cv2.GaussianBlur(shadow[..., 0].astype(np.float32), (0, 0), width * 0.02)
    warmth = rng.normal(0, 0.09)
    gains = np.array([1 + warmth, 1, 1 - warmth]) * np.exp(rng.normal(-0.08, 0.28))
    out = image.astype(np.float32) * light[..., None] * gains.astype(np.float32)
    out = cv2.resize(out, (size, size), interpolation=cv2.INTER_AREA)
    blur = rng.random()
    if blur < 0.55:
        out = cv2.GaussianBlur(out, (0, 0), size / 96 * rng.uniform(0.3, 1.7))
    elif blur < 0.70:
        steps, angle = max(3, round(size / 96 * rng.uniform(3, 7))), rng.uniform(0, np.pi)
        kernel = np.zeros((steps, steps), np.float32)
        middle = (steps - 1) / 2
        reach = np.array([math.cos(angle), math.sin(angle)]) * middle
        for part in np.linspace(-1, 1, 2 * steps):
            x, y = np.round(middle + reach * part).astype(int)
            kernel[y, x] = 1
        out = cv2.filter2D(out, -1, kernel / kernel.sum())
    grey = out.mean()
    out = grey + (out - grey) * rng.uniform(0.65, 1.2)
    out += rng.normal(0, rng.uniform(1, 9), (size, size, 1)).astype(np.float32)
    pixels: Image = np.clip(np.round(out), 0, 255).astype(np.uint8)
    return pixels
