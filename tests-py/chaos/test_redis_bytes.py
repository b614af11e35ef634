"""Hostile bytes on the channels and keys of a bus: counted, buried or refused, and it goes on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from typing import Any

import pytest
import redis

from bridge.support import seeded, sizes
from chaos.load import Markers, drained, group_of, soon
from eventbus import Bus, Event, EventBusError, connect
from servers.brokers import QUICK
from servers.redis_server import RedisServer

GROUP = "group"
TOPIC = "work"
MARK = "the-mark-of-this-payload"

CORPUS = [
    b"",
    b"\x00",
    b"\xff" * 64,
    b"\xdd\xff\xff\xff\xff",  # an array of 4 Gi elements
    b"\xc6\xff\xff\xff\xff",  # a binary of 4 GiB
    b"\x91" * 5_000,  # nested too deep
    b"\x81\xa1t\xa1x" * 100,
    b'{"type": "custom"}',
    b'{"type": "custom", "topic": "work", "payload": {"n": 1e}}',
    b"[" * 100_000,
    b'"' + b"\\ud800" * 10 + b'"',
    b"9" * 100_000,
    b"\x80\x04cos\nsystem\n(S'true'\ntR.",  # a pickle
    b"*3\r\n$3\r\nSET\r\n$1\r\na\r\n$1\r\nb\r\n",
]


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with RedisServer(appendonly=True) as one:
        yield one


@pytest.fixture
async def bus(server: RedisServer) -> AsyncIterator[Bus]:
    # Both wires are attacked.
    async with connect(server.url(), hear=("dataknobs",), **QUICK, drain_timeout=2.0) as one:
        yield one


def channels(server: RedisServer) -> list[bytes]:
    """Return the channels that the bus listens to."""
    with server.client() as client:
        return [*client.pubsub_channels(), *client.pubsub_shardchannels()]


def spoil(server: RedisServer, value: bytes) -> int:
    """Replace every stored copy of the marked payload; returns how many there were."""
    with server.client() as client:
        keys = list(client.scan_iter(count=1_000))
        return sum(_spoil_key(client, key, value) for key in keys)


def _spoil_key(client: redis.Redis, key: bytes, value: bytes) -> int:
    marked = MARK.encode()
    kind = client.type(key)
    spoiled = 0
    if kind == b"hash":
        for field in [name for name, stored in client.hgetall(key).items() if marked in stored]:
            client.hset(key, field, value)
            spoiled += 1
    elif kind == b"string" and marked in client.get(key):
        client.set(key, value)
        spoiled += 1
    elif kind == b"list":
        for place, stored in enumerate(client.lrange(key, 0, -1)):
            if marked in stored:
                client.lset(key, place, value)
                spoiled += 1
    return spoiled


async def test_garbage_on_every_channel_is_counted_and_skipped(
    server: RedisServer, bus: Bus
) -> None:
    markers = Markers(bus, TOPIC)
    await markers.start()
    await markers.alive(bus)
    heard = channels(server)
    assert heard
    before = bus.counters["malformed"]
    frames = (await bus.health())["malformed"]
    with server.client() as client:
        for channel in heard:
            for data in CORPUS:
                client.publish(channel, data)
    await markers.alive(bus)
    # What stands for a message is counted by the bus, what holds messages by the connection.
    assert bus.counters["malformed"] - before >= len(CORPUS)
    assert (await bus.health())["malformed"] - frames >= len(CORPUS)
    assert bus.state == "live"


@sizes(2_000, 200_000)
async def test_random_bytes_on_a_channel_stop_nothing(
    count: int, server: RedisServer, bus: Bus
) -> None:
    rng = seeded()
    markers = Markers(bus, TOPIC)
    await markers.start()
    frames: list[bytes] = []
    with server.client() as client:
        heard = channels(server)
        # Real frames, to be changed a little.
        with client.pubsub() as listener:
            listener.subscribe(*heard)
            await markers.alive(bus)
            for _ in range(20):
                found = listener.get_message(timeout=0.1)
                if found and found["type"] == "message":
                    frames.append(found["data"])
        assert frames
        for number in range(count):
            frame = bytearray(rng.choice(frames))
            for _ in range(rng.randint(1, 4)):
                place = rng.randrange(len(frame))
                match rng.randrange(3):
                    case 0:
                        frame[place] = rng.randrange(256)
                    case 1:
                        del frame[place:]
                        frame += b"\x00"
                    case _:
                        frame[place:place] = rng.randbytes(rng.randint(1, 8))
            client.publish(heard[number % len(heard)], bytes(frame))
            if number % 200 == 0:
                await asyncio.sleep(0)
    await markers.alive(bus)
    assert bus.state == "live"


@pytest.mark.parametrize("value", CORPUS, ids=range(len(CORPUS)))
async def test_a_spoiled_queue_entry_is_buried_with_its_bytes(
    value: bytes, server: RedisServer, bus: Bus
) -> None:
    await bus.declare_group(GROUP, TOPIC)
    await bus.publish(TOPIC, MARK)
    await bus.publish(TOPIC, "sound")
    assert spoil(server, value) == 1
    done: list[Any] = []

    async def handle(event: Event) -> None:
        done.append(event.payload)

    await bus.consume(TOPIC, handle, group=GROUP)
    assert await soon(lambda: "sound" in done, 5)
    await drained(bus, GROUP, 5)
    assert done == ["sound"]
    [letter] = await bus.dead_letters(GROUP).list()
    assert letter.reason == "undecodable"
    assert letter.body == value
    assert await bus.dead_letters(GROUP).discard(letter.message_id) == 1


async def test_keys_of_another_type_are_a_typed_error_and_no_end(
    server: RedisServer, bus: Bus
) -> None:
    done: list[Any] = []

    async def handle(event: Event) -> None:
        done.append(event.payload)

    await bus.consume(TOPIC, handle, group=GROUP)
    await bus.publish(TOPIC, 1)
    assert await soon(lambda: done == [1], 5)
    with server.client() as client:
        for key in client.keys("*"):
            client.delete(key)
            client.set(key, "not what it was")
        for _ in range(20):
            with suppress(EventBusError):
                async with asyncio.timeout(6):
                    await bus.publish(TOPIC, 2)
            await asyncio.sleep(0.02)
        client.flushall()
    for number in range(3, 60):
        with suppress(EventBusError):
            await bus.publish(TOPIC, number)
        await asyncio.sleep(0.05)
        if len(done) > 1:
            break
    assert len(done) > 1, "the bus never recovered"


@pytest.mark.parametrize(
    "name",
    [
        "quote'\"`",
        "glob*?[a-z]\\",
        "brace{}{x}",
        "space and\u00a0more",
        "ä" * 127,
        "crlf-free but; DEL *",
        "{eventbus:0}:groups",
        "$0 -1 %s ../..",
    ],
)
async def test_hostile_names_are_only_names(name: str, server: RedisServer, bus: Bus) -> None:
    done: list[Any] = []
    seen: list[Any] = []

    async def handle(event: Event) -> None:
        done.append((event.topic, event.payload))

    await bus.subscribe(name, lambda event: seen.append((event.topic, event.payload)))
    await bus.consume(name, handle, group=name)
    await bus.publish(name, 1, key=name, dedup_id=name, unique=name)
    assert await soon(lambda: done == [(name, 1)] and seen == [(name, 1)], 5)
    async with bus.transaction() as tx:
        tx.put(name, 1)
    record = await bus.read(name)
    assert record is not None
    assert [one.key for one in await bus.scan(name)] == [name]
    await drained(bus, name, 5)
    assert (await group_of(bus, name))["acked"] == 1
    # A neighbour that the name would match as a pattern has heard nothing.
    await bus.publish("neighbour", 2)
    await asyncio.sleep(0.1)
    assert seen == [(name, 1)]
