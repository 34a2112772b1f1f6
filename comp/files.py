"""How files are written, read, digested and locked. Every file of this project appears whole or not at all."""

from __future__ import annotations

import csv
import errno
import fcntl
import hashlib
import io
import json
import os
import shutil
import socket
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from comp.errors import CompError, Exit

_SYSTEM_WORDS = {
    errno.ENOSPC: ("no space left on the device", "free some space and run the same command again"),
    errno.EDQUOT: ("the disk quota is used up", "free some space and run the same command again"),
    errno.EACCES: ("permission denied", "make the folder writable for this user"),
    errno.EPERM: ("not permitted", "make the folder writable for this user"),
    errno.EROFS: ("the file system is read-only", "choose another folder or remount it"),
    errno.EIO: ("the disk reported an input/output error", "check the disk, then run the same command again"),
    errno.EMFILE: ("too many open files", "raise the limit with `ulimit -n 4096` or use fewer workers"),
    errno.ENFILE: ("too many open files on this machine", "close other programs"),
    errno.ENOMEM: ("out of memory", "use a smaller batch or fewer workers"),
    errno.ENOTDIR: ("a parent of it is a file, not a folder", "move that file away"),
}


def system_error(where: object, error: OSError) -> CompError:
    """The one line for an operating-system error, exit code 7."""
    what, fix = _SYSTEM_WORDS.get(error.errno or 0, ((error.strerror or str(error)).lower(), ""))
    return CompError(where, what, fix, Exit.SYSTEM)


def write_atomic(
    path: Path, write: Callable[[BinaryIO], object], verify: Callable[[Path], object] | None = None
) -> None:
    """Write a file so that it is old or new, never torn: temporary file beside it, fsync, rename, fsync of the folder.

    Args:
        path: The file; its folder is made.
        write: Called with the open temporary file.
        verify: Called with the temporary file's path once it is on the disk; raises when it is not as it should be.

    Raises:
        CompError: Exit code 7 when the disk or the permissions do not allow it; what was at `path` is intact.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        if verify is not None:
            verify(temporary)
        temporary.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise system_error(path, error) from error
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise


def clean_temporary(folder: Path) -> None:
    """Remove what a killed `write_atomic` left in a folder (the caller holds the folder's lock)."""
    for leftover in folder.glob(".*.tmp"):
        with suppress(OSError):
            leftover.unlink()


def write_bytes(path: Path, data: bytes) -> None:
    """Write bytes whole (see `write_atomic`)."""
    write_atomic(path, lambda file: file.write(data))


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text whole."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: object) -> None:
    """Write a JSON file whole: keys in the order given, two spaces, a final newline."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_csv(path: Path, header: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a CSV whole, see `csv_text`."""
    write_text(path, csv_text(header, rows))


def csv_text(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A CSV with the standard library's dialect and `\\n` line ends."""
    buffer = io.StringIO(newline="")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return buffer.getvalue()


def read_bytes(path: Path, code: Exit = Exit.FILE) -> bytes:
    """Read a whole file; a missing or unreadable one is one line with `code`."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise CompError(path, "not found", "", code) from None
    except IsADirectoryError:
        raise CompError(path, "is a folder, a file is wanted", "", code) from None
    except OSError as error:
        raise system_error(path, error) from error


def read_text(path: Path, code: Exit = Exit.FILE) -> str:
    """Read a UTF-8 file (a byte-order mark is dropped)."""
    try:
        return read_bytes(path, code).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CompError(path, f"is not UTF-8 text (byte {error.start})", "save it as UTF-8", code) from None


def read_json(path: Path, code: Exit = Exit.FILE) -> Any:
    """Read a JSON file; anything else is one line with `code`."""
    try:
        return json.loads(read_text(path, code))
    except (json.JSONDecodeError, RecursionError) as error:
        line = getattr(error, "lineno", 1)
        raise CompError(path, f"is not JSON (line {line})", "make it again", code) from None


def read_csv(path: Path, columns: Sequence[str] = (), code: Exit = Exit.DATA) -> tuple[list[str], list[list[str]]]:
    """Read a CSV with the standard library: every field is text, as it is (`NA`, `007` and `1e5` stay).

    Args:
        path: The file.
        columns: Columns that must be in the header.
        code: Exit code of a bad file.

    Returns:
        The header and the rows; every row has as many fields as the header.
    """
    text = read_text(path, code)
    if "\0" in text:
        raise CompError(path, "holds zero bytes, it is not a CSV", "make it again", code)
    try:
        rows = [row for row in csv.reader(io.StringIO(text, newline=""), strict=True) if row]
    except csv.Error as error:
        raise CompError(path, f"is not a CSV ({error})", "make it again", code) from None
    if not rows:
        raise CompError(path, "is empty", "a header line is wanted", code)
    header, body = rows[0], rows[1:]
    if len(set(header)) < len(header):
        raise CompError(path, f"a column is named twice in the header {','.join(header)}", "rename one", code)
    for name in columns:
        if name not in header:
            raise CompError(path, f"has no column '{name}' (columns: {', '.join(header)})", "add or rename it", code)
    for number, row in enumerate(body, start=2):
        if len(row) != len(header):
            raise CompError(path, f"row {number} has {len(row)} fields, the header {len(header)}", "mend the row", code)
    return header, body


def digest_bytes(data: bytes) -> str:
    """SHA-256 in hex."""
    return hashlib.sha256(data).hexdigest()


def digest_file(path: Path) -> str:
    """SHA-256 of a file's bytes in hex."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise CompError(path, "not found", "", Exit.FILE) from None
    except OSError as error:
        raise system_error(path, error) from error


def digest_rows(rows: Iterable[Sequence[object]]) -> str:
    """SHA-256 over the sorted rows, each as JSON; independent of row order."""
    encode = json.JSONEncoder(ensure_ascii=False).encode
    lines = sorted(encode([str(field) for field in row]) for row in rows)
    return digest_bytes("\n".join(lines).encode())


def check_zip(file: Path | BinaryIO, most: int, *, checksums: bool = True) -> None:
    """Look a zip over before anything in it is used.

    Args:
        file: The zip.
        most: Bytes its members may claim together; an uncompressed zip cannot hold more than its own size.
        checksums: Compare every member's checksum too.

    Raises:
        zipfile.BadZipFile: It claims more, a member is damaged, or a comment hides one.
    """
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        if sum(member.file_size for member in members) > most:
            raise zipfile.BadZipFile("claims to hold more than it can")
        # A rotten length makes a comment swallow the member after it.
        if any(member.comment for member in members) or (checksums and archive.testzip()):
            raise zipfile.BadZipFile("is damaged")


def need_space(folder: Path, wanted: int, what: str) -> None:
    """Refuse to begin when a folder's file system has less than `wanted` bytes free."""
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < wanted:
        raise CompError(
            folder,
            f"{what} needs {wanted / 2**20:.0f} MiB and {free / 2**20:.0f} MiB are free",
            "free some space and run the same command again",
            Exit.SYSTEM,
        )


@contextmanager
def lock(path: Path, doing: str) -> Iterator[None]:
    """Hold a folder's lock, or say at once who holds it (exit code 5).

    A POSIX record lock (`lockf`) belongs to one process: it is freed the moment that process dies, also while its
    forked loader workers live on. (An flock would be inherited by them.)

    Args:
        path: The lock file; it stays, only the lock on it comes and goes.
        doing: What the holder does, for the message the other one gets.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise system_error(path, error) from error
    try:
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN):
                raise system_error(path, error) from error
            holder = os.pread(descriptor, 200, 0).decode(errors="replace").strip() or "another process"
            raise CompError(
                path.parent,
                f"is in use by {holder}",
                "wait for it or stop it, then run the same command again",
                Exit.BUSY,
            ) from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()} ({doing})".encode(), 0)
        yield
    finally:
        os.close(descriptor)
