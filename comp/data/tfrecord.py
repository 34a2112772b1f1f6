"""TFRecord shards of `tf.train.Example`, read and written without TensorFlow.

A shard is a row of records: uint64 length, masked CRC-32C of those 8 bytes, payload, masked CRC-32C of the payload
(little-endian). A payload is a protocol-buffer message `Example { Features { map<string, Feature> } }`, where a Feature
holds one list of bytes, floats or 64-bit integers. Both checksums of every record are verified before a value is used.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

from comp.data.crc32c import crc32c, crc32c_many, masked
from comp.errors import CompError, Exit
from comp.files import system_error, write_atomic

Kind = Literal["bytes", "float", "int64"]
_BATCH = 1 << 24  # payload bytes whose checksums are verified at once
_KINDS: dict[int, Kind] = {1: "bytes", 2: "float", 3: "int64"}


@dataclass(frozen=True, slots=True)
class Feature:
    """One named list of a record.

    Attributes:
        kind: Which of the three lists it is.
        values: The list.
        offset: For bytes, where the first value begins in the shard; else 0.
    """

    kind: Kind
    values: list[bytes] | list[float] | list[int]
    offset: int = 0


@dataclass(frozen=True, slots=True)
class Record:
    """One record of a shard.

    Attributes:
        number: Its position in the shard, from 0.
        offset: Where its payload begins in the shard.
        length: Bytes of its payload.
        features: Its features by name.
    """

    number: int
    offset: int
    length: int
    features: dict[str, Feature]


def where(path: Path, number: int) -> str:
    """How a record is named in messages."""
    return f"{path}, record {number}"


def _bad(path: Path, number: int, what: str) -> CompError:
    return CompError(where(path, number), what, "the shard is damaged: download it again", Exit.DATA)


def records(path: Path) -> Iterator[Record]:
    """Read a shard.

    Args:
        path: The shard.

    Yields:
        Its records in file order, checksums verified. Memory stays below the largest record and 16 MiB; a length is
        compared with what the file still holds before anything of that length is read.

    Raises:
        CompError: Exit code 3, naming file and record, for anything that is not exactly this format.
    """
    try:
        with path.open("rb") as file:
            yield from _records(path, file, os.fstat(file.fileno()).st_size)
    except FileNotFoundError:
        raise CompError(path, "not found", "", Exit.DATA) from None
    except OSError as error:
        raise system_error(path, error) from error


def _records(path: Path, file: BinaryIO, size: int) -> Iterator[Record]:
    waiting: list[tuple[int, bytes, int]] = []  # offset, payload, stored checksum
    number = held = offset = done = 0
    while offset < size:
        header = file.read(12)
        if len(header) < 12:
            raise _bad(path, number, "the shard ends inside a record's header")
        length, stored = struct.unpack("<QI", header)
        if masked(crc32c(header[:8])) != stored:
            raise _bad(path, number, "the checksum of its length is wrong")
        if length > size - offset - 16:
            raise _bad(path, number, f"claims {length} bytes, the shard has {max(size - offset - 16, 0)} left")
        body = file.read(length + 4)
        if len(body) < length + 4:
            raise _bad(path, number, "the shard ends inside the record")
        waiting.append((offset + 12, body[:length], int.from_bytes(body[length:], "little")))
        number, held, offset = number + 1, held + length, offset + 16 + length
        if held >= _BATCH or offset >= size:
            checksums = crc32c_many([payload for _, payload, _ in waiting])
            for (start, payload, stored), crc in zip(waiting, checksums, strict=True):
                if masked(crc) != stored:
                    raise _bad(path, done, "the checksum of its content is wrong")
                yield Record(done, start, len(payload), _example(path, done, payload, start))
                done += 1
            waiting, held = [], 0


class _Malformed(Exception):
    """The bytes are not the protocol-buffer message they should be."""


def _varint(data: bytes, at: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while at < end and shift < 70:
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value & 0xFFFFFFFFFFFFFFFF, at
    raise _Malformed("a number does not end")


def _fields(data: bytes, at: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Walk the fields of a message.

    Yields:
        Field number, wire type, and the span of the value (for a varint: of its digits).
    """
    while at < end:
        key, at = _varint(data, at, end)
        field, wire = key >> 3, key & 7
        if field == 0:
            raise _Malformed("a field has number 0")
        if wire == 0:
            start = at
            _, at = _varint(data, at, end)
        elif wire == 2:
            length, start = _varint(data, at, end)
            at = start + length
        elif wire in (1, 5):
            start, at = at, at + (8 if wire == 1 else 4)
        else:
            raise _Malformed(f"a field has wire type {wire}")
        if at > end:
            raise _Malformed("a field is longer than its message")
        yield field, wire, start, at


def _messages(data: bytes, at: int, end: int, wanted: int) -> Iterator[tuple[int, int]]:
    """Spans of the length-delimited fields numbered `wanted`; other fields are skipped, as the format demands."""
    for field, wire, start, stop in _fields(data, at, end):
        if field == wanted:
            if wire != 2:
                raise _Malformed(f"field {field} has wire type {wire}, 2 is wanted")
            yield start, stop


def _example(path: Path, number: int, payload: bytes, base: int) -> dict[str, Feature]:
    features: dict[str, Feature] = {}
    try:
        for features_at, features_end in _messages(payload, 0, len(payload), 1):
            for entry, entry_end in _messages(payload, features_at, features_end, 1):
                names = list(_messages(payload, entry, entry_end, 1))
                if len(names) != 1:
                    raise _Malformed(f"a feature has {len(names)} names")
                name = payload[names[0][0] : names[0][1]].decode()
                if name in features:
                    raise _Malformed(f"feature '{name}' is there twice")
                values = list(_messages(payload, entry, entry_end, 2))
                if len(values) != 1:
                    raise _Malformed(f"feature '{name}' has {len(values)} values")
                features[name] = _feature(payload, *values[0], base)
    except (_Malformed, UnicodeDecodeError) as error:
        raise _bad(path, number, f"is not a tf.train.Example ({error})") from None
    return features


def _feature(data: bytes, at: int, end: int, base: int) -> Feature:
    lists = list(_fields(data, at, end))
    if len(lists) != 1 or lists[0][0] not in _KINDS or lists[0][1] != 2:
        raise _Malformed("a feature is not one list of bytes, floats or integers")
    field, _, at, end = lists[0]
    kind = _KINDS[field]
    if kind == "bytes":
        spans = list(_messages(data, at, end, 1))
        return Feature(kind, [data[start:stop] for start, stop in spans], base + spans[0][0] if spans else 0)
    if kind == "float":
        floats: list[float] = []
        for number, wire, start, stop in _fields(data, at, end):
            if number != 1 or wire not in (2, 5) or (stop - start) % 4:
                raise _Malformed("a list of floats holds something else")
            floats += struct.unpack(f"<{(stop - start) // 4}f", data[start:stop])
        return Feature(kind, floats)
    integers: list[int] = []
    for number, wire, start, stop in _fields(data, at, end):
        if number != 1 or wire not in (0, 2):
            raise _Malformed("a list of integers holds something else")
        while start < stop:
            value, start = _varint(data, start, stop)
            integers.append(value - (1 << 64) if value >> 63 else value)
    return Feature(kind, integers)


def _encode_varint(value: int) -> bytes:
    value &= 0xFFFFFFFFFFFFFFFF
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def _message(field: int, data: bytes) -> bytes:
    return _encode_varint(field << 3 | 2) + _encode_varint(len(data)) + data


def encode(features: Mapping[str, bytes | int]) -> bytes:
    """A `tf.train.Example` with one bytes value or one integer per feature, features in the order given."""
    entries = b""
    for name, value in features.items():
        if isinstance(value, bytes):
            feature = _message(1, _message(1, value))
        else:
            feature = _message(3, _message(1, _encode_varint(value)))
        entries += _message(1, _message(1, name.encode()) + _message(2, feature))
    return _message(1, entries)


def write_records(path: Path, examples: Iterable[Mapping[str, bytes | int]]) -> None:
    """Write a shard, whole or not at all.

    Args:
        path: The shard.
        examples: One mapping per record, see `encode`.
    """

    def write(file: BinaryIO) -> None:
        payloads = [encode(features) for features in examples]
        for payload, crc in zip(payloads, crc32c_many(payloads), strict=True):
            header = struct.pack("<Q", len(payload))
            file.write(header + struct.pack("<I", masked(crc32c(header))) + payload + struct.pack("<I", masked(crc)))

    write_atomic(path, write)
