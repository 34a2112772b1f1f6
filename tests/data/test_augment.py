"""Augmentation is a function of image and seed; parts do what they say and no more than the symmetries allow."""

from __future__ import annotations

import random
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from comp.data.augment import AUGMENTATIONS, Augment, check, needs_pca, parse, pipeline, resize
from comp.data.order import seed_of
from comp.data.pca import PcaColour, pca_colour, principal_colours
from comp.errors import CompError

ALL = ("hflip", "vflip", "rotate90")
PCA = PcaColour((0.2, 0.04, 0.01), ((0.6, 0.5, 0.62), (0.6, 0.2, -0.77), (0.53, -0.84, 0.1)))
PARTS = [name for name, part in AUGMENTATIONS.items() if not part.law]
LAWS = [name for name, part in AUGMENTATIONS.items() if part.law]


def photo(height: int = 50, width: int = 70, seed: int = 0) -> np.ndarray:
    """Smooth colours with an edge, (height, width, 3)."""
    y, x = np.mgrid[:height, :width]
    rng = np.random.default_rng(seed)
    waves = [
        np.sin(x * rng.uniform(0.05, 0.3) + rng.uniform(0, 6)) + np.sin(y * rng.uniform(0.05, 0.3)) for _ in range(3)
    ]
    image = 128 + 50 * np.stack(waves, -1)
    image[height // 3 : height // 2, width // 4 : width // 2] = 250, 10, 60
    return image.round().clip(0, 255).astype(np.uint8)


def make(*names: str, symmetries: tuple[str, ...] = ALL, crop: int = 32, scale: tuple[int, int] = (36, 60)) -> Augment:
    return pipeline(names, crop, scale, symmetries, (0.4, 0.5, 0.3), PCA)


@pytest.mark.parametrize("names", [(law,) for law in LAWS] + [("plain", part) for part in PARTS])
def test_every_part_gives_a_whole_crop_of_any_image_and_leaves_the_image(names: tuple[str, ...]) -> None:
    for shape in ((50, 70), (90, 41), (1, 1), (1, 5000), (5000, 1), (20, 20)):
        image = photo(*shape)
        before = image.copy()
        done = make(*names)(image, 3)
        assert done.shape == (32, 32, 3)
        assert done.dtype == np.uint8
        assert done.flags.c_contiguous
        assert np.array_equal(image, before)


def test_what_happens_depends_on_image_and_seed_alone() -> None:
    """Other calls before, another pipeline object, another order of calls: the same bytes."""
    names = ["plain", *PARTS]
    first, second, image = make(*names), make(*names), photo()
    expected = [first(image, seed) for seed in range(6)]
    for seed in (5, 0, 3, 3, 1):
        second(photo(40, 40, seed=9), seed + 100)
        assert np.array_equal(second(image, seed), expected[seed])
    assert all(not np.array_equal(a, b) for a, b in pairwise(expected))


def test_another_process_makes_the_same_bytes() -> None:
    names = ["plain", *PARTS]
    digest = seed_of(make(*names)(photo(), 2**64 - 1).tobytes().hex())
    code = (
        f"from tests.data.test_augment import *\nprint(seed_of(make(*{names!r})(photo(), 2**64 - 1).tobytes().hex()))"
    )
    root = Path(__file__).resolve().parents[2]
    out = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert int(out.stdout) == digest


def test_no_global_random_state_is_used_or_changed() -> None:
    import cv2
    import torch

    augment, image = make("plain", *PARTS), photo()

    def state() -> tuple[object, ...]:
        return random.getstate(), np.random.get_state()[1].tobytes(), torch.get_rng_state().numpy().tobytes()  # noqa: NPY002

    results = []
    for seed in (1, 2):
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        torch.manual_seed(seed)
        cv2.setRNGSeed(seed)
        before = state()
        results.append([augment(image, number) for number in range(20)])
        assert state() == before
    assert np.array_equal(*results)


def test_adding_a_part_leaves_the_chance_of_the_others() -> None:
    image = photo()
    for seed in range(4):
        plain = make("plain")(image, seed)
        assert np.array_equal(make("plain", "pca:0")(image, seed), plain)
        both = make("plain", "brightness_contrast", "pca:0")(image, seed)
        assert np.array_equal(make("plain", "brightness_contrast")(image, seed), both)


def test_draws_of_different_parts_are_independent() -> None:
    """Were all parts seeded alike, erasing (half the time) would come with one side of the mirror only."""
    image = np.zeros((32, 32, 3), np.uint8)
    image[:, :16] = 255
    mirrored, erased = [], []
    for seed in range(400):
        done = make("plain", "erasing", scale=(32, 32))(image, seed)
        mirrored.append(np.median(done[:, :4]) < np.median(done[:, -4:]))
        erased.append(not np.isin(done, (0, 255)).all())
    assert abs(np.corrcoef(mirrored, erased)[0, 1]) < 5 / np.sqrt(400)


def coordinates(height: int, width: int) -> np.ndarray:
    """An image whose pixels say where they are: red is x, green is y (both below 256)."""
    y, x = np.mgrid[:height, :width]
    return np.stack([x, y, np.zeros_like(x)], -1).astype(np.uint8)


def test_plain_is_the_papers_law() -> None:
    """Shorter side uniform in [low, high], both ends included; the crop anywhere; half of the images mirrored."""
    low, high, crop, n = 40, 80, 32, 4000
    augment = make("plain", scale=(low, high), crop=crop)
    image = coordinates(200, 240)
    wide, left, top, mirrored = [], [], [], 0
    for seed in range(n):
        done = augment(image, seed).astype(float)
        span = done[:, -1, 0].mean() - done[:, 0, 0].mean()
        mirrored += span < 0
        side = abs(span) * crop / (crop - 1)  # source pixels that became the crop
        wide.append(200 * crop / side)  # the shorter side this amounts to
        left.append((done[..., 0].mean() - (side - 1) / 2) / (240 - side))
        top.append((done[..., 1].mean() - (side - 1) / 2) / (200 - side))
    assert min(wide) == pytest.approx(low, abs=0.7)
    assert max(wide) == pytest.approx(high, abs=0.7)
    for values, begin, end in ((np.array(wide), low - 0.5, high + 0.5), (np.array(left), 0, 1), (np.array(top), 0, 1)):
        ranks = (np.sort(values) - begin) / (end - begin)
        assert np.abs(ranks - (np.arange(n) + 0.5) / n).max() < 0.05  # sampling 0.03, steps of whole pixels 0.02
    assert abs(mirrored - n / 2) < 5 * np.sqrt(n / 4)


@pytest.mark.parametrize(("height", "width"), [(200, 255), (255, 230), (36, 44), (61, 33)])
def test_one_step_equals_resizing_everything_and_cropping(height: int, width: int) -> None:
    """The centre crop shows the same places as the crop of the whole resized image, to one pixel of the output."""
    short = 64
    image = coordinates(height, width) if max(height, width) > 100 else 4 * coordinates(height, width)
    whole = resize(image, round(short * height / min(height, width)), round(short * width / min(height, width)))
    top, left = (whole.shape[0] - 48) // 2, (whole.shape[1] - 48) // 2
    reference = whole[top : top + 48, left : left + 48].astype(float)
    done = make("center", crop=48, scale=(short, short))(image, 0)
    pixel = reference[0, 24, 0] - reference[0, 23, 0]
    assert np.abs(done - reference).max() <= abs(pixel) + 1


def test_an_enlarged_image_is_not_padded() -> None:
    for law in LAWS:
        assert make(law)(np.full((5, 9, 3), 200, np.uint8), 1).min() == 200


def test_shrinking_takes_the_mean_of_the_area() -> None:
    """Nothing aliases: to a quarter of the size, every pixel is the mean of sixteen."""
    noise = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    expected = noise.reshape(64, 4, 64, 4, 3).mean((1, 3))
    assert np.abs(make("center", crop=64, scale=(64, 64))(noise, 0) - expected).max() <= 1


def test_crops_reach_every_edge() -> None:
    augment, image = make("plain", symmetries=(), scale=(36, 36)), coordinates(36, 38)
    corners = {tuple(augment(image, seed)[0, 0, :2].tolist()) for seed in range(600)}
    assert corners == {(left, top) for left in range(7) for top in range(5)}


@pytest.mark.parametrize("part", [*LAWS, *(part for part in PARTS if not AUGMENTATIONS[part].needs)])
def test_without_the_symmetry_nothing_is_mirrored_or_turned(part: str) -> None:
    """Red grows to the right and green downwards, in everything a set without symmetries allows."""
    image = coordinates(200, 200)
    image[..., 2] = 128
    names = [part] if part in LAWS else ["plain", part]
    augment = make(*names, symmetries=(), scale=(34, 40))
    weight = np.arange(32) - 15.5
    solarized = 0
    for seed in range(150):
        done = augment(image, seed).astype(float)
        right, down = weight @ done[..., 0].mean(0), weight @ done[..., 1].mean(1)
        if part == "randaugment" and (right < 0 or down < 0):  # solarize turns colours over, not places
            solarized += 1
            continue
        assert right > 0
        assert down > 0
    assert solarized < 45


def test_mirrored_and_turned_where_the_set_allows_it() -> None:
    image = np.arange(32 * 32 * 3).reshape(32, 32, 3).astype(np.uint8)

    def seen(symmetries: tuple[str, ...], *names: str) -> set[bytes]:
        augment = make(*names, symmetries=symmetries, scale=(32, 32))
        return {augment(image, seed).tobytes() for seed in range(60)}

    def forms(*images: np.ndarray) -> set[bytes]:
        return {np.ascontiguousarray(each).tobytes() for each in images}

    assert seen((), "plain") == forms(image)
    assert seen(("hflip",), "plain") == forms(image, image[:, ::-1])
    assert seen(("vflip",), "plain", "vflip") == forms(image, image[::-1])
    assert seen(("rotate90",), "plain", "rotate90") == forms(*(np.rot90(image, turns) for turns in range(4)))
    assert seen(ALL, "plain", "vflip", "rotate90") == forms(
        *(np.rot90(side, turns) for turns in range(4) for side in (image, image[:, ::-1]))
    )


def test_parts_stay_in_their_limits() -> None:
    flat = np.full((32, 32, 3), 100, np.uint8)
    moved = [(make("plain", "translation:0.25", scale=(32, 32))(flat, seed) != 100).any(-1) for seed in range(100)]
    assert 0.2 < max(free.all(0).mean() for free in moved) <= 0.26
    assert 0.2 < max(free.all(1).mean() for free in moved) <= 0.26
    noisy = np.stack([make("plain", "noise:0.1", scale=(32, 32))(flat, seed) for seed in range(40)]).astype(float)
    assert noisy.std((1, 2, 3)).max() < 0.11 * 255
    assert noisy.std((1, 2, 3)).max() > 0.05 * 255
    erased = [(make("plain", "erasing:1", scale=(32, 32))(flat, seed) != 100).any(-1).mean() for seed in range(200)]
    assert min(erased) > 0.01
    assert 0.25 < max(erased) < 0.36
    assert not any((make("plain", "erasing:0", scale=(32, 32))(flat, seed) != 100).any() for seed in range(20))
    colours = {tuple(c) for s in range(20) for c in make("plain", "rotation:45", scale=(32, 32))(flat, s)[0].tolist()}
    assert (102, 128, 76) in colours  # what is left free has the mean colour


def test_pca_colour_is_the_papers_formula_by_hand() -> None:
    """Pixels on one line through colour space: λ1 is their variance, the first axis the line, the others nothing."""
    direction = np.array([2, 1, 2]) / 3
    t = np.linspace(-0.3, 0.3, 1001)
    line = 0.5 + t[:, None] * direction
    colours = principal_colours([(line * 255).astype(np.uint8)[None]])
    assert colours.values[0] == pytest.approx(np.mean(t**2), rel=0.01)
    assert np.abs(colours.values[1:]).max() < 1e-5
    assert np.array(colours.vectors)[:, 0] == pytest.approx(direction, abs=0.01)
    assert PCA.shift([1, -2, 0.5]) == pytest.approx(
        [
            0.6 * 0.2 - 0.5 * 0.08 + 0.62 * 0.005,
            0.6 * 0.2 - 0.2 * 0.08 - 0.77 * 0.005,
            0.53 * 0.2 + 0.84 * 0.08 + 0.1 * 0.005,
        ]
    )


def test_principal_colours_are_numpys_over_all_pixels() -> None:
    images = [photo(20, 30, 1), photo(40, 10, 2)]
    pixels = np.concatenate([image.reshape(-1, 3) for image in images]) / 255
    colours = principal_colours(images)
    values, vectors = np.array(colours.values), np.array(colours.vectors)
    assert vectors @ np.diag(values) @ vectors.T == pytest.approx(np.cov(pixels.T, bias=True))
    assert list(values) == sorted(values, reverse=True)


def test_pca_shifts_all_pixels_alike_along_the_axes() -> None:
    """Over many uses the added colour has covariance P diag((0.1 λ)²) Pᵀ."""
    flat = np.full((32, 32, 3), 128, np.uint8)
    added = []
    strong = PcaColour((2.0, 0.8, 0.4), PCA.vectors)  # far above rounding to whole levels
    augment = pipeline(["center", "pca"], 32, (32, 32), (), pca=strong)
    for seed in range(3000):
        done = augment(flat, seed)
        assert (done == done[0, 0]).all()
        added.append((done[0, 0].astype(float) - 128) / 255)
    vectors = np.array(strong.vectors)
    expected = vectors @ np.diag((0.1 * np.array(strong.values)) ** 2) @ vectors.T
    assert np.cov(np.array(added).T) == pytest.approx(expected, abs=0.1 * expected.max())


def test_pca_colour_depends_on_the_set_of_rows(tmp_path: Path) -> None:
    import cv2

    from comp.data import pca

    data = [cv2.imencode(".png", photo(8, 8, seed)[..., ::-1])[1].tobytes() for seed in range(12)]
    dataset = SimpleNamespace(ids=[f"i{number}" for number in range(12)])
    reader = SimpleNamespace(read=lambda row: data[row])
    rows = np.array([1, 2, 3, 5, 8, 9, 11])
    expected = principal_colours([photo(8, 8, int(row)) for row in rows])
    found = pca_colour(dataset, rows, reader)  # type: ignore[arg-type]
    assert np.array(found.values) == pytest.approx(np.array(expected.values))
    assert pca_colour(dataset, rows[::-1], reader) == found  # type: ignore[arg-type]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pca, "SAMPLE", 3)
        assert pca_colour(dataset, rows[::-1], reader) == pca_colour(dataset, rows, reader) != found  # type: ignore[arg-type]


def test_randaugment_operations_by_hand() -> None:
    from comp.data.augment import _albumentations, _step
    from comp.data.randaugment import operations

    image = photo(40, 40)
    strongest = operations(_albumentations(), _step, 10, (0, 0, 0))
    still = operations(_albumentations(), _step, 0, (0, 0, 0))
    assert len(strongest) == 14
    with_direction = [name for name, forms in strongest.items() if len(forms) == 2]
    assert len(with_direction) == 9
    for name in (*with_direction, "identity", "posterize"):
        for form in still[name]:
            assert np.abs(form(image, 0).astype(int) - image).max() <= 1, name
    shifted = strongest["translate_x"][0](image, 0)
    assert np.array_equal(shifted[:, 18:], image[:, :22])  # 0.45 × 40
    assert np.array_equal(strongest["posterize"][0](image, 0), image & 0xF0)


def test_randaugment_sharpness_is_pillows() -> None:
    from PIL import Image, ImageEnhance

    from comp.data.randaugment import _sharpness

    image = photo(32, 32)
    for factor in (0.1, 0.5, 1.9):
        expected = np.asarray(ImageEnhance.Sharpness(Image.fromarray(image)).enhance(factor), int)
        found = _sharpness(factor)(image, 0).astype(int)
        assert np.abs(found - expected)[1:-1, 1:-1].max() <= 1  # Pillow leaves the border as it is


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["plain", "rotaton"], "there is no part 'rotaton'; did you mean 'rotation'?"),
        (["plain", ""], "there is no part ''"),
        ([], "is empty; begin with one of plain, rrc, center"),
        (["rotation"], "'rotation' stands first"),
        (["plain", "rrc"], "'rrc' stands after the first place"),
        (["plain", "pca", "pca:0.2"], "the part pca stands twice"),
        (["plain", "rotation:x"], "write e.g. rotation:15"),
        (["plain", "rotation:"], "write e.g. rotation:15"),
        (["plain", "rotation:1:2"], "'rotation:1:2' has 2 numbers, rotation takes 1"),
        (["plain:3"], "'plain:3' has 1 numbers, plain takes 0"),
        (["plain", "noise:-1"], "-1 is not in 0 to 1"),
        (["plain", "noise:nan"], "nan is not in 0 to 1"),
        (["plain", "randaugment:1.5"], "1.5 is not a whole number; write e.g. randaugment:2:9"),
        (["plain", "vflip"], "the set's symmetries (hflip) lack vflip"),
        (["plain", "rotate90"], "lack rotate90"),
        (["plain", "rotation:90"], "lack rotate90"),
    ],
)
def test_mistakes_are_one_line(names: list[str], words: str) -> None:
    with pytest.raises(CompError, match=r"^augment: ") as caught:
        check(names, ["hflip"])
    assert words in str(caught.value)
    assert caught.value.code == 2


def test_numbers_are_read_and_defaults_filled_in() -> None:
    assert parse(["plain", "randaugment:3", "rotation:20"], []) == [
        ("plain", []),
        ("randaugment", [3.0, 9.0]),
        ("rotation", [20.0]),
    ]
    assert needs_pca(["plain", "pca:0.2"])
    assert not needs_pca(["plain"])


def test_a_range_below_the_crop_is_refused() -> None:
    with pytest.raises(CompError, match=r"image\.scale: a shorter side of 60 pixels has no crop of 64"):
        pipeline(["plain"], 64, (60, 90), [])


def test_checking_names_imports_nothing_heavy() -> None:
    code = (
        "import sys; from comp.data.augment import check; check(['plain', 'rotation:5', 'pca'], ['hflip']);"
        "print(sorted({'torch', 'cv2', 'albumentations', 'sklearn', 'PIL'} & set(sys.modules)))"
    )
    root = Path(__file__).resolve().parents[2]
    out = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
