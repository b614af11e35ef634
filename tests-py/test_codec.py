"""The payload codec on its own: round trips by property, limits, and hostile bytes."""

from __future__ import annotations

import datetime as dt
import enum
import math
import pickle
import struct
import sys
import tracemalloc
import uuid
from collections import OrderedDict
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import msgpack
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from eventbus import DecodeError, EncodeError, EventBusError, PayloadTooLarge
from eventbus.codec import decode, encode

OFFSETS = st.timedeltas(
    min_value=dt.timedelta(hours=-24, microseconds=1),
    max_value=dt.timedelta(hours=24, microseconds=-1),
).map(dt.timezone)
TEXTS = st.text(st.characters(codec=None, exclude_categories=()), max_size=20)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(min_value=-(2**2000), max_value=2**2000),
    st.sampled_from([n + d for n in (0, 2**7, 2**15, 2**31, 2**63, 2**64) for d in (-1, 0, 1)]),
    st.floats(allow_nan=False),
    TEXTS,
    st.binary(max_size=40),
    st.datetimes(),
    st.datetimes(timezones=OFFSETS),
    st.dates(),
    st.timedeltas(),
    st.uuids(),
    st.decimals(allow_nan=False),
)
KEYS = SCALARS.filter(lambda key: not isinstance(key, tuple))
HASHABLE = st.recursive(SCALARS, lambda inner: st.tuples(inner, inner), max_leaves=4)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=5),
        st.lists(inner, max_size=5).map(tuple),
        st.dictionaries(KEYS, inner, max_size=5),
        st.sets(HASHABLE, max_size=4),
        st.frozensets(HASHABLE, max_size=4),
    ),
    max_leaves=25,
)


def same(one: Any, two: Any) -> bool:
    """Whether two values are equal and of the same types all the way down."""
    if type(one) is not type(two):
        return False
    if isinstance(one, dict):
        pairs = zip(one.items(), two.items(), strict=True)
        return len(one) == len(two) and all(same(a, c) and same(b, d) for (a, b), (c, d) in pairs)
    if isinstance(one, list | tuple):
        return len(one) == len(two) and all(map(same, one, two))
    if isinstance(one, dt.datetime):
        return one.replace(tzinfo=None) == two.replace(tzinfo=None) and (
            one.utcoffset() == two.utcoffset()
        )
    if isinstance(one, float):
        return struct.pack("d", one) == struct.pack("d", two)
    if isinstance(one, Decimal):
        return one.as_tuple() == two.as_tuple()
    return bool(one == two)


# Round trips


@settings(max_examples=400, deadline=None)
@given(VALUES)
@example({"\ud800": ["\udfff\ud800", "a\udc00"]})
@example([-0.0, math.inf, -math.inf])
@example({0.5: {None: {False: {b"": {"": 1}}}}})
def test_every_native_value_comes_back_as_it_was(value: Any) -> None:
    assert same(decode(encode(value)), value)


@settings(max_examples=200, deadline=None)
@given(VALUES)
def test_equal_bytes_are_written_for_a_value_that_came_back(value: Any) -> None:
    once = encode(value)
    # Sets have no order of their own: what came back may be written in another.
    if not any(mark in repr(value) for mark in ("{", "set(")):
        assert encode(decode(once)) == once


def test_nan_comes_back_as_nan() -> None:
    assert math.isnan(decode(encode(math.nan)))
    assert decode(encode(Decimal("NaN"))).is_nan()


@pytest.mark.parametrize(
    "value",
    [
        dt.datetime.min,
        dt.datetime.max,
        dt.datetime(1, 1, 1, tzinfo=dt.timezone(dt.timedelta(hours=14))),
        dt.datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=dt.timezone(dt.timedelta(hours=-14))),
        dt.date.min,
        dt.date.max,
        dt.timedelta.min,
        dt.timedelta.max,
        dt.timedelta.resolution,
        Decimal("1E+999999"),
        Decimal("-0.000"),
        Decimal("Infinity"),
        uuid.UUID(int=0),
        2**100_000,
        -(2**100_000),
        sys.maxsize,
        "",
        b"",
        (),
        [],
        {},
        set(),
        frozenset(),
    ],
    ids=lambda value: (
        f"{type(value).__name__} {str(value)[:20]}" if not isinstance(value, int) else ""
    ),
)
def test_the_ends_of_the_ranges_come_back(value: Any) -> None:
    assert same(decode(encode(value)), value)


def test_a_named_time_zone_comes_back_as_its_offset() -> None:
    value = dt.datetime(2030, 7, 1, 12, tzinfo=ZoneInfo("Europe/Berlin"))
    back = decode(encode(value))
    assert back == value
    assert back.utcoffset() == dt.timedelta(hours=2)


def test_the_order_of_a_dict_is_kept() -> None:
    value = {str(number): number for number in range(50, 0, -1)}
    assert list(decode(encode(value))) == list(value)


def test_subclasses_come_back_as_their_base() -> None:
    class Color(enum.IntEnum):
        RED = 1

    class Name(str):
        __slots__ = ()

    for value, plain in [
        (Color.RED, 1),
        (Name("x"), "x"),
        (OrderedDict(a=1), {"a": 1}),
    ]:
        assert same(decode(encode(value)), plain)


def test_plain_values_are_plain_msgpack() -> None:
    value = {"a": [1, -1, 2**63, None, True, 0.5, "ü", b"\x00"], "b": {"c": []}}
    assert msgpack.unpackb(encode(value)) == value
    assert decode(msgpack.packb(value)) == value


# What cannot be encoded


class Thing:
    """Something that has no place on the wire."""


@pytest.mark.parametrize(
    ("value", "path", "what"),
    [
        (Thing(), "$", "Thing"),
        ([1, [2, Thing()]], "$[1][1]", "Thing"),
        ({"a": {"b c": [Thing()]}}, "$.a", "Thing"),
        (({1: (0, Thing())},), "$[0]", "Thing"),
        (dt.time(1, 2), "$", "time"),
        (1j, "$", "complex"),
        (range(3), "$", "range"),
        (bytearray(b"x"), "$", "bytearray"),
        (memoryview(b"x"), "$", "memoryview"),
        ((one for one in ()), "$", "generator"),
        (int, "$", "type"),
        (test_nan_comes_back_as_nan, "$", "function"),
        ({(1, 2): 3}, "$", "tuple"),
        ({"a": {frozenset(): 1}}, "$.a", "frozenset"),
    ],
    ids=lambda value: str(value)[:20] if isinstance(value, str) else "",
)
def test_what_cannot_be_encoded_is_named_with_its_path(value: Any, path: str, what: str) -> None:
    with pytest.raises(EncodeError) as caught:
        encode(value)
    assert isinstance(caught.value, TypeError)
    assert what in str(caught.value)
    assert f"(at {path}" in str(caught.value)


def test_a_circle_is_refused_and_not_followed() -> None:
    ring: list[Any] = []
    ring.append({"again": ring})
    knot: dict[str, Any] = {}
    knot["self"] = (knot,)
    for value in (ring, knot):
        with pytest.raises(EncodeError, match="Circular reference") as caught:
            encode(value)
        assert isinstance(caught.value, ValueError)


def test_the_same_object_twice_is_no_circle() -> None:
    shared = ["x"]
    assert decode(encode([shared, shared, {"a": shared}])) == [["x"], ["x"], {"a": ["x"]}]


def test_an_object_that_misbehaves_while_it_is_read_lets_its_error_out() -> None:
    class Bad(dt.tzinfo):
        def utcoffset(self, _when: dt.datetime | None) -> dt.timedelta:
            raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        encode(dt.datetime(2030, 1, 1, tzinfo=Bad()))


# Limits


def _nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def test_depth_has_a_limit_both_ways() -> None:
    assert decode(encode(_nested(64))) == _nested(64)
    with pytest.raises(PayloadTooLarge, match="max_depth") as caught:
        encode(_nested(65))
    assert (caught.value.size, caught.value.limit) == (65, 64)
    deep = encode(_nested(65), max_depth=65)
    with pytest.raises(PayloadTooLarge, match="nesting depth is 65, limit 64"):
        decode(deep)
    assert decode(deep, max_depth=65) == _nested(65)


def test_every_container_counts_as_a_level() -> None:
    for value in ([[1]], ((1,),), {"a": {"b": 1}}, [frozenset([1])], {1: {2}}):
        encode(value, max_depth=2)
        with pytest.raises(PayloadTooLarge):
            encode(value, max_depth=1)
        with pytest.raises(PayloadTooLarge):
            decode(encode(value), max_depth=1)


def test_elements_have_a_limit_both_ways() -> None:
    fits = list(range(100_000))
    assert decode(encode(fits)) == fits
    with pytest.raises(PayloadTooLarge, match="max_elements") as caught:
        encode([*fits, 1])
    assert (caught.value.size, caught.value.limit) == (100_001, 100_000)
    with pytest.raises(PayloadTooLarge, match="elements is 100001"):
        decode(encode([*fits, 1], max_elements=200_000))


def test_bytes_have_a_limit_both_ways() -> None:
    for value in (b"x" * 2000, "x" * 2000, [1] * 2000, {"k": "x" * 2000}):
        with pytest.raises(PayloadTooLarge, match="max_bytes") as caught:
            encode(value, max_bytes=1000)
        assert caught.value.size > caught.value.limit == 1000
        with pytest.raises(PayloadTooLarge, match="message bytes"):
            decode(encode(value), max_bytes=1000)


def test_what_encode_lets_pass_decode_takes() -> None:
    for length in range(990, 1005):
        try:
            data = encode("x" * length, max_bytes=1000)
        except PayloadTooLarge:
            continue
        assert len(data) <= 1000
        decode(data, max_bytes=1000)


# Hostile bytes


BOMBS = {
    "nothing": b"",
    "reserved marker": b"\xc1",
    "trailing bytes": b"\x01\x02",
    "array of 4 billion": b"\xdd\xff\xff\xff\xff",
    "map of 4 billion": b"\xdf\xff\xff\xff\xff",
    "string of 4 GiB": b"\xdb\xff\xff\xff\xff",
    "bytes of 4 GiB": b"\xc6\xff\xff\xff\xff",
    "extension of 4 GiB": b"\xc9\xff\xff\xff\xff\x01",
    "array of 100,000 without items": b"\xdd\x00\x01\x86\xa0",
    "5,000 nested arrays": b"\x91" * 5000,
    "5,000 nested maps": b"\x81\xa1a" * 5000,
    "a million nested arrays": b"\x91" * 1_000_000,
    "nested tuples": b"".join(
        b"\xc9" + (6 * left).to_bytes(4, "big") + b"\x02" for left in range(200, 0, -1)
    ),
    "unknown extension": b"\xd4\x63\x00",
    "text that is not UTF-8": b"\xa1\xff",
    "key that is not UTF-8": b"\x81\xa1\xff\x01",
    "key that is a list": b"\x81\x91\x01\x01",
    "key that is a map": b"\x81\x80\x01",
    "set with a list": b"\xc7\x02\x03\x91\x90",
    "set that holds no array": b"\xc7\x01\x03\x01",
    "tuple of another length": b"\xc7\x03\x02\x91\x01\x01",
    "datetime out of range": b"\xd7\x05" + b"\x7f" * 8,
    "datetime of another length": b"\xd5\x05\x00\x00",
    "datetime with an offset of years": b"\xd8\x05" + b"\x00" * 8 + b"\x7f" * 8,
    "date out of range": b"\xd6\x06" + b"\x7f" * 4,
    "timedelta out of range": b"\xd8\x07" + b"\x7f" * 16,
    "uuid too short": b"\xd4\x08\x00",
    "decimal that is none": b"\xc7\x05\x09hello",
    "decimal that is not text": b"\xc7\x02\x09\xff\xfe",
    "empty integer": b"\xc7\x00\x01",
    "surrogates that are none": b"\xc7\x02\x0a\xff\xff",
    "cut float": b"\xcb\x00",
    "cut integer": b"\xcf\x00\x00",
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_bomb_is_refused_without_memory_or_crash(bomb: str) -> None:
    data = BOMBS[bomb]
    tracemalloc.start()
    try:
        with pytest.raises((DecodeError, PayloadTooLarge)) as caught:
            decode(data)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert isinstance(caught.value, ValueError)
    assert peak < 4 << 20
    assert decode(encode("still works")) == "still works"


@settings(max_examples=1500, deadline=None)
@given(st.binary(max_size=200))
def test_random_bytes_are_a_value_or_a_typed_error(data: bytes) -> None:
    try:
        value = decode(data)
    except EventBusError as error:
        assert isinstance(error, DecodeError | PayloadTooLarge)  # noqa: PT017
    else:
        assert decode(encode(value)) is not None or value is None


@settings(max_examples=600, deadline=None)
@given(VALUES, st.data())
def test_damaged_messages_are_a_value_or_a_typed_error(value: Any, data: st.DataObject) -> None:
    good = bytearray(encode(value))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(good) - 1))
        good[at] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(good)))
    for damaged in (bytes(good), bytes(good[:cut])):
        try:
            decode(damaged)
        except EventBusError as error:
            assert isinstance(error, DecodeError | PayloadTooLarge)  # noqa: PT017


def test_a_very_long_integer_is_no_bomb() -> None:
    # Reading it is linear; only turning it into text would not be.
    data = encode(2**8_000_000)
    assert decode(data).bit_length() == 8_000_001


@pytest.mark.parametrize("data", ["text", None, 1, [1]])
def test_decode_wants_bytes(data: Any) -> None:
    with pytest.raises(TypeError, match="bytes"):
        decode(data)


# No pickle


def test_a_pickle_is_not_read() -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return (print, ("executed",))

    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        data = pickle.dumps({"a": 1}, protocol=protocol)
        with pytest.raises((DecodeError, PayloadTooLarge)):
            decode(data)
    with pytest.raises(EncodeError):
        encode(Evil())


def test_an_object_with_a_hook_is_not_asked_how_to_be_encoded() -> None:
    class Hooked:
        def __reduce__(self) -> Any:
            raise AssertionError("asked")

        def __getstate__(self) -> Any:
            raise AssertionError("asked")

        def __iter__(self) -> Any:
            raise AssertionError("asked")

    with pytest.raises(EncodeError, match="Hooked"):
        encode({"a": Hooked()})
