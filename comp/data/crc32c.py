"""CRC-32C (Castagnoli, reflected polynomial 0x82F63B78, RFC 3720 appendix B.4) of many byte strings at once, in numpy.

A byte-by-byte loop in Python takes a minute for 10 MB. Two properties of a CRC make it a table job for whole arrays:
it is linear over GF(2), so a string may be cut into chunks, the remainders of all chunks computed side by side, and
joined by "as if followed by so many zero bytes"; and leading zero bytes do not change a remainder that starts at zero.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

CHUNK = 256  # bytes per chunk, a multiple of 8
_BATCH = 1 << 22  # bytes handled at once: bounds the working memory to a few times this
_POLYNOMIAL = 0x82F63B78

_U32 = NDArray[np.uint32]


@cache
def _byte_table() -> list[int]:
    table = []
    for byte in range(256):
        state = byte
        for _ in range(8):
            state = (state >> 1) ^ (_POLYNOMIAL if state & 1 else 0)
        table.append(state)
    return table


@cache
def _slices() -> _U32:
    """Slicing tables (8, 256): entry [n, b] is the remainder of byte b followed by n zero bytes."""
    table = np.empty((8, 256), np.uint32)
    table[0] = _byte_table()
    for n in range(1, 8):
        table[n] = (table[n - 1] >> 8) ^ table[0][table[n - 1] & 255]
    return table


@cache
def _pairs() -> _U32:
    """The slicing tables for two bytes at a time (4, 65536): entry [n, w] is word w followed by 2n zero bytes."""
    single, word = _slices(), np.arange(65536)
    return np.stack([single[2 * n + 1][word & 255] ^ single[2 * n][word >> 8] for n in range(4)])


@cache
def _skip() -> _U32:
    """Tables (2, 65536) that append CHUNK zero bytes to a state: one for its low and one for its high half."""
    zero = np.zeros((2 * 65536, 1), "<u2")
    states = np.concatenate([np.arange(65536, dtype=np.uint32), np.arange(65536, dtype=np.uint32) << 16])
    return _advance(states, np.broadcast_to(zero, (len(states), CHUNK // 2))).reshape(2, 65536)


def _advance(state: _U32, words: NDArray[np.uint16]) -> _U32:
    """Feed every row of little-endian words (R, W), W a multiple of 4, to the state (R,) of that row."""
    pairs = _pairs()
    for column in range(0, words.shape[1], 4):
        low = words[:, column] ^ (state & 0xFFFF).astype(np.uint16)
        high = words[:, column + 1] ^ (state >> 16).astype(np.uint16)
        state = pairs[3].take(low)
        state ^= pairs[2].take(high)
        state ^= pairs[1].take(words[:, column + 2])
        state ^= pairs[0].take(words[:, column + 3])
    return state


def crc32c(data: bytes | memoryview) -> int:
    """The checksum of one short string, byte by byte."""
    table, state = _byte_table(), 0xFFFFFFFF
    for byte in data:
        state = (state >> 8) ^ table[(state ^ byte) & 255]
    return state ^ 0xFFFFFFFF


def crc32c_many(strings: Sequence[bytes | memoryview]) -> list[int]:
    """The checksums of many strings.

    Args:
        strings: Byte strings of any lengths.

    Returns:
        Their CRC-32C in the same order.
    """
    out, batch, size = [0] * len(strings), list[int](), 0
    for index, data in enumerate(strings):
        if len(data) < 64:
            out[index] = crc32c(data)
            continue
        batch.append(index)
        size += len(data)
        if size >= _BATCH:
            _batch(strings, batch, out)
            batch, size = [], 0
    if batch:
        _batch(strings, batch, out)
    return out


def _batch(strings: Sequence[bytes | memoryview], batch: list[int], out: list[int]) -> None:
    """Compute `out` for the strings named in `batch`, each at least 4 bytes long."""
    batch = sorted(batch, key=lambda index: -len(strings[index]))
    chunks = np.array([-(-len(strings[index]) // CHUNK) for index in batch])
    ends = np.cumsum(chunks)
    padded = np.zeros(int(ends[-1]) * CHUNK, np.uint8)  # every string ends at the end of its last chunk
    for index, end in zip(batch, ends.tolist(), strict=True):
        data = strings[index]
        start = end * CHUNK - len(data)
        padded[start : start + len(data)] = np.frombuffer(data, np.uint8)
        padded[start : start + 4] ^= 255  # the register starts with all ones: the same as inverting the first 4 bytes
    remainders = np.empty(int(ends[-1]), np.uint32)
    rows = padded.view("<u2").reshape(-1, CHUNK // 2)
    for first in range(0, len(rows), 4096):  # a block that stays in the processor's cache, transposed for columns
        block = np.asfortranarray(rows[first : first + 4096])
        remainders[first : first + 4096] = _advance(np.zeros(len(block), np.uint32), block)
    skip, starts = _skip(), ends - chunks
    state = remainders[starts]
    active = len(batch)
    for step in range(1, int(chunks[0])):
        active = int(np.searchsorted(-chunks[:active], -step, side="left"))  # strings with more than `step` chunks
        now = state[:active]
        state[:active] = skip[0][now & 0xFFFF] ^ skip[1][now >> 16] ^ remainders[starts[:active] + step]
    for index, value in zip(batch, (state ^ np.uint32(0xFFFFFFFF)).tolist(), strict=True):
        out[index] = value


def masked(crc: int) -> int:
    """TFRecord's mask: rotate right by 15 bits and add a constant, so that a CRC of data holding a CRC stays useful."""
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF
