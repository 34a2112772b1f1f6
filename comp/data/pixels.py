"""From the bytes of an image file to RGB pixels: the one decoder, used by everything that looks at an image.

Rules: EXIF orientation is applied. Gray becomes three equal channels. Transparent pixels lie on white. Sixteen-bit
samples keep their high byte. CMYK and other colour models are converted by Pillow. An animation is its first frame.
Which library decodes depends on the bytes alone: OpenCV for RGB and gray JPEG, the common case, Pillow for the rest.
"""

from __future__ import annotations

import io
import os
import threading
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from comp.errors import CompError, Exit
from comp.files import system_error

if TYPE_CHECKING:
    from PIL import Image

Pixels = NDArray[np.uint8]
MAX_PIXELS = 64_000_000
# Formats a photo comes in (JPEG opens MPO too). Pillow knows more, and some of those start other programs.
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "DIB", "GIF", "TIFF", "PPM")
_ORIENTATION = 274  # the EXIF tag
_KEEP_OPEN = 128  # a set of at most so many files keeps them open
# Pillow's remarks on damaged metadata: the pixels are what counts, and a filter for one call would not be thread-safe.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


def decode(data: bytes, where: object, max_pixels: int = MAX_PIXELS) -> Pixels:
    """Decode one image.

    Args:
        data: The bytes of the file.
        where: Names the image in messages.
        max_pixels: A larger image is refused before it is decoded.

    Returns:
        RGB pixels (H, W, 3), H and W after the EXIF orientation is applied.

    Raises:
        CompError: Exit code 3 when it is no image, is cut off, or is too large.
    """
    return inspect(data, where, max_pixels)[0]


def inspect(data: bytes, where: object, max_pixels: int = MAX_PIXELS) -> tuple[Pixels, tuple[str, ...]]:
    """Decode one image and say what is unusual about it.

    Returns:
        The pixels as `decode` gives them, and words out of `grayscale`, `CMYK`, `16 bits`, `transparent`, `animated`,
        `EXIF rotation`.
    """
    from PIL import Image, UnidentifiedImageError

    Image.MAX_IMAGE_PIXELS = None  # our own limit is checked on the header, below
    if not data:
        raise _bad(where, "the image has zero bytes")
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise CompError(
                    where,
                    f"the image claims {width} × {height} pixels, more than {max_pixels:,}",
                    "raise max_pixels in the data YAML if that is right",
                    Exit.DATA,
                )
            notes = _notes(image)
            turn = _orientation(image)
            if turn > 1:
                notes = (*notes, "EXIF rotation")
            if image.format in ("JPEG", "MPO") and image.mode in ("RGB", "L"):
                if not data.rstrip(b"\0").endswith(b"\xff\xd9"):
                    image.load()  # cut off? Pillow refuses it; OpenCV before 5 fills it with gray
                pixels = _by_opencv(data)
                if pixels is None or pixels.shape[:2] != (height, width):
                    raise _bad(where, "the image does not decode")
            else:
                image.load()
                turn = _orientation(image)  # Pillow turns a TIFF itself, and then says so
                pixels = _by_pillow(image)
    except CompError:
        raise
    except MemoryError:
        raise CompError(where, "not enough memory to decode the image", "lower max_pixels", Exit.SYSTEM) from None
    except UnidentifiedImageError:
        raise _bad(where, "is not an image in a format that is read here") from None
    except Exception as error:  # Pillow raises many kinds for damaged files; none of them is a bug of ours
        reason = " ".join(str(error).split())[:100] or type(error).__name__
        raise _bad(where, f"the image does not decode ({reason})") from None
    if turn > 1:
        pixels = np.ascontiguousarray(_oriented(pixels, turn))
    return pixels, notes


def _bad(where: object, what: str) -> CompError:
    return CompError(where, what, "replace the file, or leave it out with on_bad: skip in the data YAML", Exit.DATA)


def _notes(image: Image.Image) -> tuple[str, ...]:
    mode = image.mode
    found = {
        "grayscale": mode in ("1", "L", "LA", "La") or mode.startswith("I"),
        "CMYK": mode == "CMYK",
        "16 bits": mode.startswith("I"),
        "transparent": image.has_transparency_data,
        "animated": image.format != "MPO" and bool(getattr(image, "is_animated", False)),
    }
    return tuple(word for word, there in found.items() if there)


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # damaged EXIF data says nothing about the pixels
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _oriented(pixels: Pixels, turn: int) -> Pixels:
    """Undo an EXIF orientation, 2 to 8 (Exif 3.0, tag 274)."""
    if turn >= 5:
        pixels = pixels.transpose(1, 0, 2)
    if turn in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if turn in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels


def _by_opencv(data: bytes) -> Pixels | None:
    import cv2

    flags = cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION
    pixels: Pixels | None = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    return pixels


def _by_pillow(image: Image.Image) -> Pixels:
    from PIL import Image

    if image.mode.startswith("I"):
        gray = np.clip(np.asarray(image).astype(np.int64) >> 8, 0, 255).astype(np.uint8)
        return np.repeat(gray[:, :, None], 3, axis=2)
    if image.mode == "F":
        raise ValueError("its samples are floating-point numbers")
    if image.has_transparency_data:
        top = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", top.size, "white"), top)
    return np.array(image.convert("RGB"))


class Reader:
    """Reads the bytes of images in place, by file, offset and length.

    It may be used by threads, by forked processes and by spawned ones (it is pickled without its open files): `pread`
    moves no shared position.

    Args:
        root: The folder that file names are relative to.
        files: File of each image, (N,).
        offsets: Where each image begins in its file.
        lengths: Bytes of each image.
        ids: Names for messages.
        max_pixels: See `decode`.
    """

    def __init__(
        self,
        root: Path,
        files: Sequence[str],
        offsets: Sequence[int],
        lengths: Sequence[int],
        ids: Sequence[str],
        max_pixels: int = MAX_PIXELS,
    ):
        self.root, self.files, self.offsets, self.lengths, self.ids = root, files, offsets, lengths, ids
        self.max_pixels = max_pixels
        self._few = len(set(files)) <= _KEEP_OPEN
        self._open: dict[str, int] = {}
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key not in ("_open", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _open={}, _lock=threading.Lock())

    def __len__(self) -> int:
        return len(self.ids)

    def where(self, row: int) -> str:
        """How an image is named in messages."""
        return f"{self.root / str(self.files[row])}, image {self.ids[row]}"

    def read(self, row: int) -> bytes:
        """The bytes of one image.

        Raises:
            CompError: The file is gone, shorter than the manifest says, or cannot be read.
        """
        file, offset, length = str(self.files[row]), int(self.offsets[row]), int(self.lengths[row])
        try:
            if self._few:
                data = _pread(self._descriptor(file), offset, length)
            else:
                descriptor = os.open(self.root / file, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    data = _pread(descriptor, offset, length)
                finally:
                    os.close(descriptor)
        except FileNotFoundError:
            raise CompError(self.where(row), "the file is gone", "run `comp data` again", Exit.DATA) from None
        except OSError as error:
            raise system_error(self.where(row), error) from error
        if len(data) != length:
            raise CompError(
                self.where(row), "the file is shorter than the manifest says", "run `comp data` again", Exit.DATA
            )
        return data

    def pixels(self, row: int) -> Pixels:
        """One image as RGB pixels (H, W, 3)."""
        return decode(self.read(row), self.where(row), self.max_pixels)

    def _descriptor(self, file: str) -> int:
        with self._lock:
            if file not in self._open:
                self._open[file] = os.open(self.root / file, os.O_RDONLY | os.O_CLOEXEC)
            return self._open[file]

    def close(self) -> None:
        """Close what is open; reading opens it again."""
        with self._lock:
            for descriptor in self._open.values():
                os.close(descriptor)
            self._open.clear()

    def __del__(self) -> None:
        for descriptor in self.__dict__.get("_open", {}).values():
            try:
                os.close(descriptor)
            except OSError:
                return


def _pread(descriptor: int, offset: int, length: int) -> bytes:
    data = os.pread(descriptor, length, offset)
    while len(data) < length:  # a network file system may hand out less at a time
        more = os.pread(descriptor, length - len(data), offset + len(data))
        if not more:
            break
        data += more
    return data
