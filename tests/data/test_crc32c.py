"""The checksum against RFC 3720's examples, and the fast form against the plain loop."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from comp.data.crc32c import CHUNK, crc32c, crc32c_many, masked

# RFC 3720, appendix B.4, and the check value of the CRC catalogue.
EXAMPLES = [
    (bytes(32), 0x8A9136AA),
    (b"\xff" * 32, 0x62A8AB43),
    (bytes(range(32)), 0x46DD794E),
    (bytes(range(31, -1, -1)), 0x113FDB5C),
    (b"123456789", 0xE3069283),
    (b"", 0),
]


@pytest.mark.parametrize(("data", "wanted"), EXAMPLES)
def test_published_examples(data: bytes, wanted: int) -> None:
    assert crc32c(data) == wanted
    assert crc32c_many([data, data]) == [wanted, wanted]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.binary(max_size=3 * CHUNK), max_size=12), st.integers(0, 8))
def test_many_at_once_equal_one_by_one(strings: list[bytes], repeat: int) -> None:
    strings = [data * (1 + repeat * (index % 2)) for index, data in enumerate(strings)]
    assert crc32c_many(strings) == [crc32c(data) for data in strings]


@pytest.mark.parametrize("length", [63, 64, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 5 * CHUNK + 3, (1 << 22) + 1])
def test_lengths_at_the_seams(length: int) -> None:
    data = bytes(index * index % 251 for index in range(min(length, 4099))) * (1 + length // 4099)
    data = data[:length]
    small = data[: 7 * CHUNK]
    assert crc32c_many([data, small, data]) == [crc32c(data), crc32c(small), crc32c(data)]


def test_the_mask_is_tensorflows() -> None:
    rotated = (0xE3069283 >> 15 | 0xE3069283 << 17) & 0xFFFFFFFF
    assert masked(0xE3069283) == (rotated + 0xA282EAD8) % 2**32
