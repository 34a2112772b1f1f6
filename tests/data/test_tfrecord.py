"""Shards: as TensorFlow writes them, byte for byte; and no damage passes for data."""

from __future__ import annotations

import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from comp.data.crc32c import crc32c, masked
from comp.data.tfrecord import Feature, encode, records, write_records
from comp.errors import CompError, Exit

ROWS: list[dict[str, bytes | int]] = [
    {"image": b"\xff\xd8one\xff\xd9", "class": 3, "id": b"0a1b2c3d4"},
    {"image": b"\xff\xd8two, longer\xff\xd9", "class": 0, "id": b"0a1b2c3d5"},
    {"image": b"\xff\xd8three\xff\xd9", "class": -1, "id": b"NA"},
]


def framed(payload: bytes) -> bytes:
    header = struct.pack("<Q", len(payload))
    parts = header, struct.pack("<I", masked(crc32c(header))), payload, struct.pack("<I", masked(crc32c(payload)))
    return b"".join(parts)


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    path = tmp_path / "00-1x1-3.tfrec"
    write_records(path, ROWS)
    return path


def test_what_is_written_is_read(shard: Path) -> None:
    whole = shard.read_bytes()
    found = list(records(shard))
    assert [record.number for record in found] == [0, 1, 2]
    for record, row in zip(found, ROWS, strict=True):
        assert {name: feature.values for name, feature in record.features.items()} == {k: [v] for k, v in row.items()}
        assert whole[record.offset : record.offset + record.length] == encode(row)
        image = record.features["image"]
        assert whole[image.offset : image.offset + len(image.values[0])] == row["image"]  # type: ignore[arg-type]


def test_a_shard_of_tensorflow_is_read_and_rewritten_byte_for_byte(shared: Path, tmp_path: Path) -> None:
    for split in ("train", "test"):
        path = next((shared / "data/tf-flowers/tfrecords-jpeg-64x64" / split).iterdir())
        rows = [{k: f.values[0] for k, f in r.features.items()} for r in records(path)]
        assert len(rows) == int(path.stem.split("-")[-1])
        assert all(set(row) == ({"image", "id"} if split == "test" else {"image", "id", "class"}) for row in rows)
        write_records(tmp_path / path.name, rows)  # type: ignore[arg-type]
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()


def test_every_flipped_bit_is_found(shard: Path) -> None:
    write_records(shard, ROWS[:2])
    whole = bytearray(shard.read_bytes())
    for bit in range(len(whole) * 8):
        whole[bit // 8] ^= 1 << bit % 8
        shard.write_bytes(whole)
        with pytest.raises(CompError, match=r"00-1x1-3\.tfrec, record [01]: ") as caught:
            list(records(shard))
        assert caught.value.code == Exit.DATA
        whole[bit // 8] ^= 1 << bit % 8


def test_every_cut_is_found_and_names_its_record(shard: Path) -> None:
    whole = shard.read_bytes()
    ends = [record.offset + record.length + 4 for record in records(shard)]
    for size in range(len(whole)):
        shard.write_bytes(whole[:size])
        complete = sum(end <= size for end in ends)
        if size in (0, *ends):  # a cut between records shows in the count, which the shard's name tells
            assert len(list(records(shard))) == complete
            continue
        with pytest.raises(CompError, match=rf"record {complete}: ") as caught:
            list(records(shard))
        assert caught.value.code == Exit.DATA


@pytest.mark.parametrize("length", [1, 5, 2**31, 2**60, 2**64 - 1])
def test_a_claimed_length_is_compared_with_the_file_first(tmp_path: Path, length: int) -> None:
    header = struct.pack("<Q", length)
    path = tmp_path / "shard"
    path.write_bytes(framed(encode(ROWS[0])) + header + struct.pack("<I", masked(crc32c(header))))
    with pytest.raises(CompError, match=f"record 1: claims {length} bytes"):
        list(records(path))


@pytest.mark.parametrize("place", [8, -1])
def test_a_wrong_checksum_is_found(tmp_path: Path, place: int) -> None:
    data = bytearray(framed(encode(ROWS[0])))
    data[place] ^= 0x10
    (tmp_path / "shard").write_bytes(data)
    with pytest.raises(CompError, match=r"record 0: the checksum of its (length|content) is wrong"):
        list(records(tmp_path / "shard"))


def read_one(folder: Path, payload: bytes) -> dict[str, Feature]:
    (folder / "shard").write_bytes(framed(payload))
    return next(records(folder / "shard")).features


def message(field: int, data: bytes) -> bytes:
    return bytes([field << 3 | 2, len(data)]) + data


@pytest.mark.parametrize(
    ("payload", "words"),
    [
        (b"\x0a\x7f", "longer than its message"),
        (b"\x0a", "does not end"),
        (b"\x0f\x01", "wire type 7"),
        (b"\x02\x00", "number 0"),
        (b"\x08\x01", "wire type 0, 2 is wanted"),
        (message(1, message(1, message(2, message(1, b"")))), "0 names"),
        (message(1, message(1, message(1, b"a"))), "'a' has 0 values"),
        (message(1, message(1, message(1, b"a") + message(2, b""))), "not one list"),
        (message(1, message(1, message(1, b"\xff") + message(2, message(3, b"")))), "utf-8"),
        (message(1, 2 * message(1, message(1, b"a") + message(2, message(3, b"")))), "'a' is there twice"),
        (message(1, message(1, message(1, b"a") + message(2, message(2, message(1, b"abc"))))), "list of floats"),
    ],
)
def test_what_is_no_example_is_one_line(tmp_path: Path, payload: bytes, words: str) -> None:
    with pytest.raises(CompError, match=rf"record 0: is not a tf.train.Example \(.*{words}") as caught:
        read_one(tmp_path, payload)
    assert caught.value.code == Exit.DATA


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(payload=st.one_of(st.binary(max_size=60), st.binary(max_size=20).map(lambda data: message(1, message(1, data)))))
def test_any_bytes_are_an_example_or_one_line(tmp_path: Path, payload: bytes) -> None:
    with suppress(CompError):
        read_one(tmp_path, payload)


@pytest.fixture(scope="module")
def protobuf_example() -> Callable[[], Any]:
    """`tf.train.Example` in Google's own library, described here."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    file = descriptor_pb2.FileDescriptorProto(name="example.proto", package="t", syntax="proto3")
    Field = descriptor_pb2.FieldDescriptorProto

    def add(name: str, *fields: tuple[str, int, int, int, str]) -> Any:
        made = file.message_type.add(name=name)
        for field, number, label, kind, of in fields:
            made.field.add(name=field, number=number, label=label, type=kind, type_name=of or None)
        return made

    many, one = Field.LABEL_REPEATED, Field.LABEL_OPTIONAL
    add("BytesList", ("value", 1, many, Field.TYPE_BYTES, ""))
    add("FloatList", ("value", 1, many, Field.TYPE_FLOAT, ""))
    add("Int64List", ("value", 1, many, Field.TYPE_INT64, ""))
    feature = add(
        "Feature",
        ("bytes_list", 1, one, Field.TYPE_MESSAGE, ".t.BytesList"),
        ("float_list", 2, one, Field.TYPE_MESSAGE, ".t.FloatList"),
        ("int64_list", 3, one, Field.TYPE_MESSAGE, ".t.Int64List"),
    )
    feature.oneof_decl.add(name="kind")
    for field in feature.field:
        field.oneof_index = 0
    features = add("Features", ("feature", 1, many, Field.TYPE_MESSAGE, ".t.Features.FeatureEntry"))
    entry = features.nested_type.add(name="FeatureEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, label=one, type=Field.TYPE_STRING)
    entry.field.add(name="value", number=2, label=one, type=Field.TYPE_MESSAGE, type_name=".t.Feature")
    add("Example", ("features", 1, one, Field.TYPE_MESSAGE, ".t.Features"))
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    made: Callable[[], Any] = message_factory.GetMessageClass(pool.FindMessageTypeByName("t.Example"))
    return made


FEATURES = st.dictionaries(
    st.text(max_size=5),
    st.one_of(
        st.tuples(st.just("bytes"), st.lists(st.binary(max_size=200), max_size=3)),
        st.tuples(st.just("int64"), st.lists(st.integers(-(2**63), 2**63 - 1), max_size=4)),
        st.tuples(st.just("float"), st.lists(st.floats(width=32, allow_nan=False), max_size=4)),
    ),
    max_size=4,
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(features=FEATURES)
def test_examples_of_googles_library_are_read(
    tmp_path: Path, protobuf_example: Callable[[], Any], features: dict[str, tuple[str, list[Any]]]
) -> None:
    example = protobuf_example()
    for name, (kind, values) in features.items():
        getattr(example.features.feature[name], f"{kind}_list").SetInParent()
        getattr(example.features.feature[name], f"{kind}_list").value.extend(values)
    found = read_one(tmp_path, example.SerializeToString())
    assert {name: (feature.kind, feature.values) for name, feature in found.items()} == features


def test_a_missing_shard_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(CompError, match="not found"):
        list(records(tmp_path / "none"))
