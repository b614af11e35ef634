"""Hostile bytes on the original wire: skipped or kept as dead letters, and nothing ends by them."""

from __future__ import annotations

import asyncio
import logging
import sys
from typing import Any

import msgpack
import pytest

from eventbus import connect
from eventbus.background import BackgroundTaskManager
from eventbus.compat.backendai import EventDispatcher
from eventbus.compat.backendai.codec import decode_args, decode_message, encode_message
from eventbus.dispatcher import Message
from eventbus.errors import DecodeError, PayloadTooLarge
from eventbus.testing import eventually

from .conftest import World
from .support import Seen, Server

COLLIDING = 2**61 - 1
"""Integers that differ by a multiple of this have one hash."""


def nested(depth: int) -> bytes:
    """Return a message with arguments nested so deep, its own two levels included."""
    head = b"\x83\xa4name\xa1e\xa6source\xa1a\xa4args"
    return head + b"\x91" * (depth - 2) + b"\x90"


def big(number: int) -> bytes:
    body = number.to_bytes(number.bit_length() // 8 + 1, "little", signed=True)
    return b"\xc7" + bytes([len(body), 1]) + body


def flood(count: int) -> bytes:
    """Return a message with a map whose keys have one hash."""
    pairs = b"".join(big(COLLIDING * (2**64 + n)) + b"\xc0" for n in range(1, count + 1))
    head = b"\x83\xa4name\xa1e\xa6source\xa1a\xa4args\x91\xdf"
    return head + count.to_bytes(4, "big") + pairs


HOSTILE = {
    "510 nested arrays": nested(512),
    "129 nested arrays": nested(129),
    "deep without an end": b"\x91" * 5_000,
    "one hash": flood(65),
    "huge array": b"\xdd\xff\xff\xff\xff",
    "huge bytes": b"\xc6\xff\xff\xff\xff",
    "text that is not UTF-8": b"\x83\xa4name\xa1\xff\xa6source\xa1a\xa4args\x90",
    "an array as key": b"\x81\x91\x01\x02",
    "a date out of range": b"\x91\xc7\x04\x06\x7f\xff\xff\xff",
    "an unknown extension": b"\x91\xd4\x63\x00",
    "over 16 MiB": b"\xc6\x01\x00\x00\x01" + bytes((16 << 20) + 1),
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE)
def test_whatever_cannot_be_read_is_a_decode_error(data: bytes) -> None:
    with pytest.raises(DecodeError):
        decode_message(data)
    with pytest.raises(DecodeError):
        decode_args(data)


@pytest.mark.parametrize("data", [None, "text", 7, [b"\x90"]])
def test_what_is_not_even_bytes_is_a_decode_error(data: Any) -> None:
    with pytest.raises(DecodeError):
        decode_message(data)
    with pytest.raises(DecodeError):
        decode_args(data)


def test_nesting_of_128_levels_is_read_and_written() -> None:
    message = decode_message(nested(128))
    depth, value = 1, message.args
    while value:
        depth, value = depth + 1, value[0]
    assert depth == 127
    assert msgpack.unpackb(encode_message(message, "B"), use_list=False)["args"] == message.args
    with pytest.raises(PayloadTooLarge, match="nesting depth"):
        encode_message(Message("e", "a", (message.args,)), "B")


def test_a_stack_that_is_nearly_full_makes_a_decode_error() -> None:
    seen: list[type[BaseException] | None] = []

    def descend(left: int) -> None:
        if left > 0:
            descend(left - 1)
            return
        try:
            decode_message(nested(120))
        except DecodeError as error:
            seen.append(type(error.__cause__))

    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(400)
    try:
        descend(250)
    finally:
        sys.setrecursionlimit(limit)
    assert seen == [RecursionError]


async def test_a_hostile_message_stops_no_receiver_and_no_next_process(
    wire: World, redis: Server, caplog: pytest.LogCaptureFixture
) -> None:
    d, consumed, seen = await wire.a(), Seen(), Seen()
    d.consume("e", None, consumed)
    d.subscribe("e", None, seen)
    bad = [data for data in HOSTILE.values() if len(data) < 1 << 20]
    for data in bad:
        redis.command("RPUSH", "events.prodcons", data)
        redis.command("PUBLISH", "events.pubsub", data)
    await d.produce_event("e", (1,))
    await consumed.count(1)
    await seen.count(1)
    # The client passes on what may be of a wanted name only: a broadcast that is not is unread.
    assert d.figures()["malformed"] >= len(bad) + 3
    assert d.figures()["replaced"] == 0
    assert int(redis.command("LLEN", "events.prodcons.dead").strip(b":\r\n")) == len(bad)
    reply = redis.command("LRANGE", "events.prodcons.dead", "0", "-1")
    assert all(data in reply for data in bad)
    assert len([r for r in caplog.records if "malformed queued event" in r.getMessage()]) == 1
    assert len([r for r in caplog.records if "malformed broadcast" in r.getMessage()]) == 1
    await d.close()
    # Nothing waits for the next one but its own events.
    after, again = await wire.a(), Seen()
    after.consume("e", None, again)
    await after.produce_event("e", (2,))
    await again.count(1)
    assert after.figures()["malformed"] == 0


@pytest.mark.parametrize("name", ["beat", "pop", "forwarded", "queue", "broadcasts"])
async def test_a_receiving_task_that_ends_is_told_counted_and_replaced(
    name: str, wire: World, caplog: pytest.LogCaptureFixture
) -> None:
    d, consumed, seen = await wire.a(lease=0.6), Seen(), Seen()
    d.consume("e", None, consumed)
    d.subscribe("e", None, seen)
    await d.produce_event("e", (0,))
    await consumed.count(1)
    ending = f"eventbus-backendai-{name}", f"eventbus-dispatcher-{name}"
    [task] = [one for one in asyncio.all_tasks() if one.get_name() in ending]
    task.cancel()
    await eventually(lambda: d.figures()["replaced"] == 1)
    told = [r for r in caplog.records if r.name == "eventbus.supervisor"]
    assert len(told) == 1
    assert name in told[0].getMessage()
    assert told[0].levelno == logging.ERROR
    await d.produce_event("e", (1,))
    await consumed.count(2)
    await seen.count(2)


async def test_health_of_the_bus_tells_of_a_dispatcher_whose_task_ended() -> None:
    async with connect("memory://") as bus:
        d, seen = await EventDispatcher.new(bus=bus), Seen()
        d.consume("e", None, seen)
        await asyncio.sleep(0.05)
        [task] = [one for one in asyncio.all_tasks() if one.get_name().endswith("dispatcher-queue")]
        task.cancel()
        await eventually(lambda: d.figures()["replaced"] == 1)
        assert any("were replaced" in warning for warning in (await bus.health())["warnings"])
        await d.produce_event("e")
        await seen.count(1)
        await d.close()


async def test_metadata_of_another_shape_concerns_its_message_only() -> None:
    async with connect("memory://") as bus:
        d, consumed, seen = await EventDispatcher.new(bus=bus), Seen(), Seen()
        d.consume("e", None, consumed)
        d.subscribe("e", None, seen)
        await asyncio.sleep(0.05)
        arguments = msgpack.packb([1])
        await bus.publish("backendai:e", arguments, source="x", metadata={"origin": [1]})
        await bus.publish("backendai:e", arguments, source="x", metadata={"number": "2"})
        await d.produce_event("e")
        await consumed.count(3)
        await seen.count(3)
        assert d.figures()["replaced"] == 0
        await d.close()


async def test_announcements_of_any_shape_end_no_watching() -> None:
    async with connect("memory://") as bus, BackgroundTaskManager(bus) as tasks:
        ready, go = asyncio.Event(), asyncio.Event()

        async def work(reporter: Any) -> str:
            ready.set()
            await go.wait()
            await reporter.update(1, "half")
            return "done"

        task_id = await tasks.start(work)
        states: list[Any] = []

        async def watch() -> None:
            states.extend([state async for state in tasks.watch(task_id)])

        watching = asyncio.create_task(watch())
        await ready.wait()
        for payload in (None, 7, [1], {"state": None}, {"state": {}, "version": "x"}, {1: {2}}):
            await bus.publish(f"background:{task_id}", payload)
        go.set()
        await asyncio.wait_for(watching, 5)
        assert states[-1].status == "done"
        assert bus.counters["workers_replaced"] == 0
