"""Images by name in a folder or in a zip, addressed in place."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path, PurePosixPath

from comp.errors import CompError, Exit
from comp.files import system_error


class Box:
    """A folder or a zip of images.

    Args:
        root: The folder that file names are relative to.
        name: The folder or zip under it.

    Raises:
        CompError: Exit code 3 when it is not there or no zip.
    """

    def __init__(self, root: Path, name: str):
        self.root, self.path = root, root / name
        self.members: dict[str, zipfile.ZipInfo] | None = None
        if self.path.is_file():
            try:
                with zipfile.ZipFile(self.path) as archive:
                    infos = [info for info in archive.infolist() if not info.is_dir()]
            except OSError as error:
                raise system_error(self.path, error) from error
            except Exception as error:  # zipfile raises half a dozen kinds on damaged bytes
                raise CompError(self.path, f"is not a zip ({error})", "download it again", Exit.DATA) from None
            self.members = {info.filename: info for info in infos}
            base: dict[str, list[zipfile.ZipInfo]] = {}
            for info in infos:
                base.setdefault(PurePosixPath(info.filename).name, []).append(info)
            for short, having in base.items():  # archives often hold one top folder
                if len(having) == 1:
                    self.members.setdefault(short, having[0])
        elif not self.path.is_dir():
            raise CompError(self.path, "not found, images are wanted there", "download it", Exit.DATA)

    def find(self, image_id: str, suffix: str, here: str) -> tuple[str, int, int]:
        """Where an image is.

        Args:
            image_id: Its id; it is looked for as id plus suffix, then as the id itself.
            suffix: Such as `.jpg`.
            here: Who asks, for messages.

        Returns:
            File relative to the root, offset, length.
        """
        for name in (image_id + suffix, image_id):
            parts = PurePosixPath(name)
            if not name or parts.is_absolute() or ".." in parts.parts or "\0" in name:
                raise CompError(here, f"the id {image_id!r} leads out of {self.path}", "", Exit.DATA)
            if self.members is not None:
                if name in self.members:
                    return self._member(self.members[name])
                continue
            path = self.path / name
            try:
                if path.is_file():
                    return path.relative_to(self.root).as_posix(), 0, path.stat().st_size
            except OSError as error:
                raise system_error(here, error) from error
        what = f"image {image_id}{suffix} is not in {self.path}"
        raise CompError(here, what, "download the images again, or set images and suffix in the data YAML", Exit.DATA)

    def _member(self, info: zipfile.ZipInfo) -> tuple[str, int, int]:
        here = f"{self.path}, member {info.filename}"
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
            how = "encrypted" if info.flag_bits & 1 else "compressed"
            fix = f"extract the zip and set images to its folder (`unzip {self.path.name}`)"
            raise CompError(here, f"is {how}, images are read in place", fix, Exit.DATA)
        with self.path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            header = os.pread(file.fileno(), 30, info.header_offset) if info.header_offset >= 0 else b""
        if len(header) < 30 or header[:4] != b"PK\x03\x04":
            raise CompError(here, "its header is damaged", "download the zip again", Exit.DATA)
        offset = (
            info.header_offset + 30 + int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:], "little")
        )
        if offset + info.file_size > size:
            raise CompError(here, "reaches beyond the end of the zip", "download the zip again", Exit.DATA)
        return self.path.relative_to(self.root).as_posix(), offset, info.file_size
