"""One decoder: equal to Pillow's own operations on every kind of image; what is no image is one line."""

from __future__ import annotations

import io
import pickle
import struct
import subprocess
import sys
import threading
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from comp.data.pixels import Reader, decode, inspect
from comp.errors import CompError, Exit

RNG = np.random.default_rng(0)
SMOOTH = np.asarray(Image.fromarray(RNG.integers(0, 256, (4, 5, 3), dtype=np.uint8)).resize((37, 23), Image.BICUBIC))


def saved(image: Image.Image, form: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def jpeg(**options: Any) -> bytes:
    return saved(Image.fromarray(SMOOTH), "JPEG", quality=90, **options)


def same(found: np.ndarray, wanted: Any, within: int = 0) -> None:
    wanted = np.asarray(wanted)
    assert found.dtype == np.uint8
    assert found.shape == wanted.shape
    assert np.abs(found.astype(int) - wanted).max() <= within


def test_jpeg_is_pillows_within_rounding() -> None:
    pixels, notes = inspect(jpeg(), "x")
    same(pixels, Image.open(io.BytesIO(jpeg())), within=3)
    assert notes == ()
    assert pixels.flags["C_CONTIGUOUS"]


@pytest.mark.parametrize("form", ["PNG", "BMP", "PPM", "TIFF"])
def test_lossless_formats_are_exact(form: str) -> None:
    same(decode(saved(Image.fromarray(SMOOTH), form), "x"), SMOOTH)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF"])
def test_exif_orientation_is_applied(form: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    data = saved(Image.fromarray(SMOOTH), form, exif=exif)
    pixels, notes = inspect(data, "x")
    same(pixels, ImageOps.exif_transpose(Image.open(io.BytesIO(data))), within=3 if form == "JPEG" else 0)
    assert ("EXIF rotation" in notes) == (orientation > 1)


@pytest.mark.parametrize(
    "body",
    [
        b"Exif\0\0II*\0\x08\0\0\0\x05\0\x12\x01\x03\0\x01\0\0\0",  # five entries are said, none is whole
        b"Exif\0\0MM\0*\0\0\0\x08\0\x02\x01\x12\0\x03\0\0\0\x05\0\x06\0\0\x9c\x9b\0\x01\0\0\xff\xff\0\0\0\x40",
    ],
)
def test_damaged_exif_says_nothing_and_does_nothing(tmp_path: Path, body: bytes) -> None:
    plain = jpeg()
    path = tmp_path / "x.jpg"
    path.write_bytes(plain[:2] + b"\xff\xe1" + (len(body) + 2).to_bytes(2, "big") + body + plain[2:])
    code = (
        "import sys; from pathlib import Path; from comp.data.pixels import decode; "
        "print(decode(Path(sys.argv[1]).read_bytes(), 'x').tobytes().hex())"
    )
    done = subprocess.run(
        [sys.executable, "-W", "default", "-c", code, path], capture_output=True, text=True, check=True
    )
    assert done.stderr == ""
    assert bytes.fromhex(done.stdout) == decode(plain, "x").tobytes()


def test_nonsense_exif_is_no_rotation() -> None:
    for value in (0, 9, 60000):
        exif = Image.Exif()
        exif[274] = value
        same(decode(jpeg(exif=exif), "x"), decode(jpeg(), "x"))
    same(decode(jpeg(exif=b"Exif\0\0garbage"), "x"), decode(jpeg(), "x"))


def test_gray_is_three_equal_channels() -> None:
    gray = Image.fromarray(SMOOTH).convert("L")
    for form, within in (("PNG", 0), ("JPEG", 12)):
        pixels, notes = inspect(saved(gray, form), "x")
        same(pixels, gray.convert("RGB"), within=within)
        assert notes == ("grayscale",)
        assert (pixels[..., 0] == pixels[..., 1]).all()
    same(decode(saved(gray.convert("1"), "PNG"), "x"), gray.convert("1").convert("RGB"))


def test_cmyk_is_pillows() -> None:
    data = saved(Image.fromarray(SMOOTH).convert("CMYK"), "JPEG", quality=95)
    pixels, notes = inspect(data, "x")
    same(pixels, Image.open(io.BytesIO(data)).convert("RGB"))
    assert np.abs(pixels.astype(int) - SMOOTH).mean() < 6  # and looks like what it was made from
    assert notes == ("CMYK",)


def test_sixteen_bits_keep_the_high_byte() -> None:
    deep = (np.arange(12 * 9, dtype=np.uint16) * 600).reshape(12, 9)
    for form in ("PNG", "TIFF"):
        pixels, notes = inspect(saved(Image.fromarray(deep), form), "x")
        same(pixels, np.repeat((deep >> 8)[..., None], 3, axis=2))
        assert notes == ("grayscale", "16 bits")


def test_transparent_pixels_lie_on_white() -> None:
    alpha = np.linspace(0, 255, 23 * 37).reshape(23, 37).round().astype(np.uint8)
    pixels, notes = inspect(saved(Image.fromarray(np.dstack([SMOOTH, alpha])), "PNG"), "x")
    part = alpha[..., None] / 255
    same(pixels, (SMOOTH * part + 255 * (1 - part)).round(), within=1)
    assert notes == ("transparent",)
    palette = Image.fromarray(SMOOTH).quantize(8)
    pixels, notes = inspect(saved(palette, "PNG", transparency=3), "x")
    wanted = np.array(palette.convert("RGB"))
    wanted[np.asarray(palette) == 3] = 255
    same(pixels, wanted)
    assert notes == ("transparent",)
    same(decode(saved(palette, "PNG"), "x"), palette.convert("RGB"))


def test_an_animation_is_its_first_frame() -> None:
    frames = [Image.fromarray(SMOOTH).quantize(16), Image.fromarray(255 - SMOOTH).quantize(16)]
    pixels, notes = inspect(saved(frames[0], "GIF", save_all=True, append_images=frames[1:]), "x")
    same(pixels, frames[0].convert("RGB"))
    assert "animated" in notes


@pytest.mark.parametrize("shape", [(1, 1), (1, 5000), (5000, 1)])
@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_extreme_shapes(form: str, shape: tuple[int, int]) -> None:
    image = Image.new("RGB", shape[::-1], (200, 30, 90))
    same(decode(saved(image, form, quality=95), "x"), image, within=0 if form == "PNG" else 4)


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few bytes that claims many pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


def test_a_bomb_is_refused_on_its_header() -> None:
    with pytest.raises(CompError, match="x: the image claims 20000 × 20000 pixels, more than 64,000,000") as caught:
        decode(bomb(20000, 20000), "x")
    assert caught.value.code == Exit.DATA
    with pytest.raises(CompError, match="more than 850"):
        decode(jpeg(), "x", max_pixels=850)
    assert decode(jpeg(), "x", max_pixels=23 * 37).shape == (23, 37, 3)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "zero bytes"),
        (b"not an image at all", "not an image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF", "not an image"),
        (bomb(50, 50), "does not decode"),
        (b"\xff\xd8\xff\xd9", "(not an image|does not decode)"),
        (bytes(1000), "not an image"),
    ],
)
def test_what_is_no_image_is_one_line(data: bytes, words: str) -> None:
    with pytest.raises(CompError, match=f"^photo 7: .*{words}") as caught:
        decode(data, "photo 7")
    assert caught.value.code == Exit.DATA


@pytest.mark.parametrize("progressive", [False, True])
def test_every_cut_of_a_jpeg_is_refused(progressive: bool) -> None:
    whole = jpeg(progressive=progressive)
    for size in range(len(whole) - 2):  # without its last two bytes only the end marker is gone, and no pixel
        with pytest.raises(CompError):
            decode(whole[:size], "x")


def test_every_cut_of_a_png_is_refused_or_whole() -> None:
    whole = saved(Image.fromarray(SMOOTH), "PNG")
    for size in range(0, len(whole), 7):
        with suppress(CompError):
            same(decode(whole[:size], "x"), SMOOTH)


def test_bytes_after_the_end_change_nothing() -> None:
    for tail in (b"\0" * 9, b"trailing words"):
        same(decode(jpeg() + tail, "x"), decode(jpeg(), "x"))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    form=st.sampled_from(["JPEG", "PNG", "GIF", "TIFF", "WEBP"]),
    places=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=6),
)
def test_damaged_files_are_pixels_or_one_line(form: str, places: list[tuple[float, int]]) -> None:
    data = bytearray(saved(Image.fromarray(SMOOTH), form))
    for place, value in places:
        data[int(place * len(data))] = value
    with suppress(CompError):
        pixels = decode(bytes(data), "x", max_pixels=1_000_000)
        assert pixels.ndim == 3


# --- Reader -----------------------------------------------------------------------------------------------------------


def made(folder: Path, count: int, per_file: int) -> tuple[Reader, list[bytes]]:
    images, files, offsets = [], [], []
    for number in range(count):
        file = folder / f"f{number // per_file}"
        data = number.to_bytes(4, "big") * (number % 50 + 1)
        files.append(file.name)
        offsets.append(file.stat().st_size if file.exists() else 0)
        with file.open("ab") as out:
            out.write(data)
        images.append(data)
    lengths = [len(data) for data in images]
    return Reader(folder, files, offsets, lengths, [f"id{n}" for n in range(count)]), images


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize("per_file", [1, 100])
def test_every_image_is_its_own_bytes_in_threads_and_copies(tmp_path: Path, per_file: int) -> None:
    reader, images = made(tmp_path, 400, per_file)
    before = descriptors()
    wrong: list[int] = []

    def work(seed: int) -> None:
        for row in np.random.default_rng(seed).permutation(400).tolist():
            if reader.read(row) != images[row]:
                wrong.append(row)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    assert descriptors() - before == (4 if per_file == 100 else 0)
    copy = pickle.loads(pickle.dumps(reader))
    assert [copy.read(row) for row in range(400)] == images
    reader.close()
    copy.close()
    assert descriptors() == before
    assert reader.read(7) == images[7]
    assert len(reader) == 400


def test_what_is_wrong_with_a_file_names_the_image(tmp_path: Path) -> None:
    reader, _ = made(tmp_path, 10, 5)
    (tmp_path / "f1").write_bytes(b"short")
    with pytest.raises(CompError, match="f1, image id9: the file is shorter than the manifest says; run `comp data`"):
        reader.read(9)
    (tmp_path / "f0").unlink()
    with pytest.raises(CompError, match="f0, image id0: the file is gone") as caught:
        reader.read(0)
    assert caught.value.code == Exit.DATA
