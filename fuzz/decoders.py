"""Any bytes to the decoders that make Python objects: a value or a DecodeError, and never long.

Run: python fuzz/decoders.py [--runs 10000000] [--seed 1] [--only codec]

Inputs are seeded: bytes of real messages, changed in a few places, cut, joined and repeated. An
input that takes longer than ``--timeout`` seconds, or raises anything else, ends the run with its
hexadecimal digits.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from eventbus import codec
from eventbus.compat.backendai.codec import decode_args, decode_message, encode_args, encode_message
from eventbus.dispatcher import Message
from eventbus.errors import DecodeError, PayloadTooLarge

PRIME = 2**61 - 1
BATCH = 1_000

VALUES: list[Any] = [
    None,
    [1, -1, 2**63, -(2**70), 1.5, True],
    {"a": [{"b": {"c": (1, 2, (3, "d"))}}], "ü": b"\x00\xff"},
    {1, 2, (3, 4), frozenset([5, frozenset([6])])},
    {PRIME * n for n in range(70)},
    {n: n for n in range(80)},
    [datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 1, 1), date(2026, 1, 1), timedelta(1, 2, 3)],
    [UUID(int=5), Decimal("-1.5E+3"), "\ud800", 10**50],
    {UUID(int=n * PRIME): Decimal(n) for n in range(1, 5)},
    [[[[[[[[[[]]]]]]]]]],
]
MESSAGES = [
    Message("e", "a", ()),
    Message("kernel_started", "i-abc", ("id", {"k": [1, (2, b"x")]}, 1.5, None, True)),
    Message("task_updated", "manager", ({"task_id": "1", "current_progress": 1},)),
]
SEEDS = {
    "codec": [codec.encode(value) for value in VALUES],
    "backendai": [
        *(encode_message(message, era) for message in MESSAGES for era in ("A", "B")),
        *(encode_args(message) for message in MESSAGES),
    ],
}
PIECES = [bytes([n]) for n in (0x80, 0x8F, 0x90, 0x91, 0x9F, 0xC0, 0xC1, 0xC7, 0xC9, 0xD4, 0xD8)]
PIECES += [b"\xdc\xff\xff", b"\xdd\xff\xff\xff\xff", b"\xdf\x00\x00\x01\x00", b"\xde\x00\x41"]
PIECES += [b"\xc9\x00\x00\x00\x20\x03", b"\xc7\x09\x01" + PRIME.to_bytes(9, "little"), b"\x91" * 70]


def decode_payload(data: bytes) -> object:
    """Decode as the payload of an event and the value of a record are."""
    return codec.decode(data)


def decode_wire(data: bytes) -> object:
    """Decode as a message and as the arguments of one."""
    try:
        return decode_message(data)
    except DecodeError:
        return decode_args(data)


TARGETS: dict[str, Callable[[bytes], object]] = {"codec": decode_payload, "backendai": decode_wire}


def inputs(rng: random.Random, seeds: list[bytes]) -> Iterator[bytes]:
    """Yield inputs for ever."""
    below = rng.random
    while True:
        data = bytearray(seeds[int(below() * len(seeds))])
        for _ in range(1 + int(below() * 4)):
            place = int(below() * (len(data) + 1))
            kind = int(below() * 6)
            if kind == 0:
                data[place : place + 1] = bytes([int(below() * 256)])
            elif kind == 1:
                data[place:place] = PIECES[int(below() * len(PIECES))]
            elif kind == 2:
                del data[place:]
            elif kind == 3:
                data[place:place] = data[place : place + int(below() * 16)] * int(below() * 8)
            elif kind == 4:
                del data[place : place + int(below() * 4)]
            else:
                data += seeds[int(below() * len(seeds))]
        yield bytes(data)


def run(name: str, runs: int, seed: int, timeout: float) -> Counter[str]:
    """Give a target its inputs; return how they ended."""
    decode, ends, done = TARGETS[name], Counter[str](), 0
    source = inputs(random.Random(seed), SEEDS[name])  # noqa: S311 - inputs, no secrets
    while done < runs:
        batch = [next(source) for _ in range(min(BATCH, runs - done))]
        began = time.perf_counter()
        for data in batch:
            try:
                decode(data)
            except (DecodeError, PayloadTooLarge) as error:
                ends[type(error).__name__] += 1
            except BaseException:
                print(f"{name}: {data.hex()}", file=sys.stderr)
                raise
            else:
                ends["decoded"] += 1
        if time.perf_counter() - began > timeout:
            find_slow(name, batch, timeout)
        done += len(batch)
    return ends


def find_slow(name: str, batch: list[bytes], timeout: float) -> None:
    """Look for the one input that made a batch slow.

    Raises:
        SystemExit: There is one.
    """
    for data in batch:
        began = time.perf_counter()
        with suppress(DecodeError, PayloadTooLarge):
            TARGETS[name](data)
        if time.perf_counter() - began > timeout:
            sys.exit(f"{name}: longer than {timeout} s: {data.hex()}")


def main() -> None:
    """Run the targets one after the other."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=10_000_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--timeout", type=float, default=5.0, help="seconds for one input")
    parser.add_argument("--only", choices=TARGETS)
    given = parser.parse_args()
    for name in [given.only] if given.only else list(TARGETS):
        began = time.perf_counter()
        ends = run(name, given.runs, given.seed, given.timeout)
        seconds = time.perf_counter() - began
        print(f"{name}: {given.runs} inputs in {seconds:.0f} s: {dict(ends)}", flush=True)


if __name__ == "__main__":
    main()
