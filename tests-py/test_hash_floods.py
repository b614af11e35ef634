"""Members of one hash: refused before Python pays for them, in sets and maps of every codec."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest

from eventbus import codec
from eventbus.compat.backendai.codec import decode_args
from eventbus.errors import DecodeError

PRIME = 2**61 - 1
"""Python's hash of a number is its remainder by this."""

Numbered = Callable[[int], Any]

COLLIDING: dict[str, Numbered] = {
    "large integers": lambda n: PRIME * (n + 64),
    "integers of 64 bits and more": lambda n: PRIME * n,
    "negative integers": lambda n: -PRIME * (n + 1),
    "UUIDs": lambda n: UUID(int=PRIME * (n + 1)),
    "decimals": lambda n: Decimal(PRIME * (n + 1)),
    "numbers of two kinds": lambda n: (Decimal if n % 2 else int)(PRIME * (n + 1)),
}
"""Values with one hash."""

NESTED: dict[str, Numbered] = {
    "tuples": lambda n: (PRIME * (n + 1), 1),
    "tuples of tuples": lambda n: ((PRIME * (n + 1),), 1),
    "tuples of -1 and -2": lambda n: tuple(-1 - (n >> bit & 1) for bit in range(20)),
    "frozensets": lambda n: frozenset([PRIME * (n + 1)]),
}
"""The same for members of sets only."""

BUILD: dict[str, Callable[[list[Any]], bytes]] = {
    "set": lambda items: codec.encode(set(items), max_bytes=1 << 24),
    "frozenset": lambda items: codec.encode(frozenset(items), max_bytes=1 << 24),
    "in a list": lambda items: codec.encode([1, [set(items)]], max_bytes=1 << 24),
    "dict": lambda items: codec.encode(dict.fromkeys(items), max_bytes=1 << 24),
    "dict with texts": lambda items: codec.encode(
        {**dict.fromkeys(map(str, range(200))), **dict.fromkeys(items)}
    ),
}


def attacks() -> list[Any]:
    return [
        pytest.param(build, value, id=f"{kind}-{name}")
        for kind, build in BUILD.items()
        for name, value in {**COLLIDING, **(NESTED if "dict" not in kind else {})}.items()
    ]


@pytest.mark.parametrize(("build", "value"), attacks())
def test_more_than_64_members_of_one_hash_are_refused(
    build: Callable[[list[Any]], bytes], value: Numbered
) -> None:
    items = [value(n) for n in range(65)]
    assert len({hash(item) for item in items}) == 1
    codec.decode(build(items[:-1]))
    with pytest.raises(DecodeError, match="members of one hash"):
        codec.decode(build(items))
    with pytest.raises(DecodeError):
        decode_args(b"\x91" + build(items))


def wire_set(items: list[bytes], code: int = 3) -> bytes:
    body = b"\xdd" + len(items).to_bytes(4, "big") + b"".join(items)
    return b"\xc9" + len(body).to_bytes(4, "big") + bytes([code]) + body


def big(number: int) -> bytes:
    body = number.to_bytes(number.bit_length() // 8 + 1, "little", signed=True)
    return b"\xc9" + len(body).to_bytes(4, "big") + b"\x01" + body


def decimal(text: str) -> bytes:
    return b"\xc7" + bytes([len(text), 9]) + text.encode()


def test_forty_thousand_of_one_hash_are_refused_at_the_65th() -> None:
    """They held the interpreter for 13.5 seconds: 800 million comparisons."""
    items = [big(PRIME * (n + 64)) for n in range(40_000)]
    for data in (
        wire_set(items),
        wire_set(items, 4),
        b"\xdf" + len(items).to_bytes(4, "big") + b"".join(one + b"\xc0" for one in items),
    ):
        with pytest.raises(DecodeError, match="more than 64 members of one hash"):
            codec.decode(data, max_bytes=1 << 22)


def test_sets_of_sets_of_one_hash_are_refused_although_each_is_small() -> None:
    """Each comparison of two compares all of their members, which compares all of theirs."""

    def ints(last: int) -> list[bytes]:
        return [big(PRIME * (64 + n)) for n in range(35)] + [big(PRIME * (1_000 + last))]

    inner = [wire_set(ints(n), 4) for n in range(36)]
    outer = [wire_set([*inner[:-1], wire_set(ints(5_000 + n), 4)], 4) for n in range(18)]
    with pytest.raises(DecodeError, match="equal hashes that take too long to compare"):
        codec.decode(wire_set(outer, 4))


@pytest.mark.parametrize("kind", ["set", "map"])
@pytest.mark.parametrize("first", ["integer", "decimal"])
def test_a_long_integer_is_never_compared_with_a_decimal(kind: str, first: str) -> None:
    """One comparison of 100 kB with a decimal of the same hash takes 1.7 seconds."""
    members = [big(5 + PRIME * 2**800_000), decimal("5")]
    if first == "decimal":
        members.reverse()
    whole = wire_set(members) if kind == "set" else b"\x82" + b"".join(m + b"\xc0" for m in members)
    with pytest.raises(DecodeError):
        codec.decode(whole)


def test_members_that_walk_through_the_places_of_others_are_refused() -> None:
    """All hashes differ, and each insertion would look at thousands of places."""
    size = 8_192
    mask = size - 1
    # First every third place, in the order in which a walk comes through them at its end.
    chosen = [0]
    while len(chosen) <= size // 3:
        chosen.append((chosen[-1] * 5 + 1) & mask)
    taken = bytearray(size)
    for value in chosen:
        taken[value] = 1
    # Then those that begin at a place that is taken and walk through many others.
    for value in range(size, 32 * size):
        at, perturb, steps = value & mask, value, 1
        while taken[at]:
            perturb >>= 5
            at = (at * 5 + perturb + 1) & mask
            steps += 1
        if steps > 250:
            taken[at] = 1
            chosen.append(value)
        if len(chosen) > 3_200:
            break
    count = len(chosen)
    assert len(set(map(hash, chosen))) == count > 3_000
    data = b"\xde" + count.to_bytes(2, "big")
    data += b"".join(b"\xcf" + one.to_bytes(8, "big") + b"\xc0" for one in chosen)
    with pytest.raises(DecodeError, match="members collide"):
        codec.decode(data)


HONEST: dict[str, Any] = {
    "numbers": set(range(30_000)),
    "multiples of a power of two": {n << 40 for n in range(30_000)},
    "large numbers": {2**70 + n for n in range(30_000)},
    "negative numbers": set(range(-30_000, 0)),
    "fractions": {n / 8 for n in range(30_000)},
    "UUIDs": {UUID(int=n * 0x9E3779B97F4A7C15F39CC0605CEDC834 % 2**128) for n in range(5_000)},
    "days": {datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=n) for n in range(5_000)},
    "decimals": {Decimal(n).scaleb(-2) for n in range(5_000)},
    "places of a board": {(x, y) for x in range(-50, 50) for y in range(-50, 50)},
    "sets of places": {frozenset([(x, y), (y, x)]) for x in range(-20, 20) for y in range(-20, 20)},
    "texts": {str(n) for n in range(30_000)},
    "map by number": dict.fromkeys(range(-100, 30_000)),
    "map by UUID": {UUID(int=n << 64 | n * 7): n for n in range(5_000)},
    "map by text and number": {**{str(n): n for n in range(9_000)}, **dict.fromkeys(range(9_000))},
    "-1 and -2 with much text": {(-1, "x" * 50_000), (-2, "x" * 50_000)},
    "a long integer beside decimals": [10**9_000, Decimal(5), {1: 2}, {3, 4}],
}


@pytest.mark.parametrize("value", HONEST.values(), ids=HONEST)
def test_what_honest_senders_send_is_read(value: Any) -> None:
    assert codec.decode(codec.encode(value, max_bytes=1 << 22), max_bytes=1 << 22) == value
