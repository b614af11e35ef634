"""Rules B33-B37, B55-B57 and B62: the original wire on a Redis of its own."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from typing import Any

import msgpack
import pytest

from eventbus.compat.backendai import events as era_b
from eventbus.compat.backendai import wire as wire_module
from eventbus.compat.backendai.codec import decode_message, encode_message
from eventbus.dispatcher import Message
from eventbus.testing import eventually

from .conftest import World
from .support import Seen, Server

ID = "11111111-1111-1111-1111-111111111111"
TASK = "22222222-2222-2222-2222-222222222222"
SAMPLES = [
    (
        "A",
        Message("kernel_started", "i-abc", (ID, "crid")),
        "83aa6576656e745f6e616d65ae6b65726e656c5f73746172746564a86167656e745f6964a5692d616263"
        "a46172677392d92431313131313131312d313131312d313131312d313131312d313131313131313131313131"
        "a463726964",
    ),
    (
        "A",
        Message("do_schedule", "manager", ()),
        "83aa6576656e745f6e616d65ab646f5f7363686564756c65a86167656e745f6964a76d616e61676572"
        "a46172677390",
    ),
    (
        "A",
        Message(
            "task_updated",
            "manager",
            (
                {
                    "task_id": TASK,
                    "message": "half",
                    "current_progress": 1,
                    "total_progress": 2,
                },
            ),
        ),
        "83aa6576656e745f6e616d65ac7461736b5f75706461746564a86167656e745f6964a76d616e61676572"
        "a4617267739184a77461736b5f6964d92432323232323232322d323232322d323232322d323232322d"
        "323232323232323232323232a76d657373616765a468616c66b063757272656e745f70726f677265737301"
        "ae746f74616c5f70726f677265737302",
    ),
    (
        "B",
        Message("kernel_started", "i-abc", (ID, "crid", "")),
        "83a46e616d65ae6b65726e656c5f73746172746564a6736f75726365a5692d616263a46172677393"
        "d92431313131313131312d313131312d313131312d313131312d313131313131313131313131a463726964a0",
    ),
]


@pytest.mark.parametrize(("era", "message", "hexadecimal"), SAMPLES)
def test_b34_the_bytes_of_both_eras(era: Any, message: Message, hexadecimal: str) -> None:
    data = bytes.fromhex(hexadecimal)
    assert encode_message(message, era) == data
    found = decode_message(data)
    assert (found.name, found.source, found.args) == (message.name, message.source, message.args)


def test_b34_smallest_forms() -> None:
    args = (1, 2.5, None, True, b"\0\1", "é", {"k": (1, 2)}, (1, (2,)))
    data = encode_message(Message("e", "a", args), "A")
    assert data.endswith(
        bytes.fromhex("9801cb4004000000000000c0c3c4020001a2c3a981a16b92010292019102")
    )
    wide = (0, -1, -32, -33, 127, 128, 255, 256, 65536, 2**32, 2**64 - 1, -(2**63), "x" * 300)
    packed = msgpack.packb({"name": "e", "source": "a", "args": wide}, use_bin_type=True)
    assert encode_message(Message("e", "a", wide), "B") == packed


def packed(**fields: Any) -> bytes:
    data: bytes = msgpack.packb(fields, use_bin_type=True)
    return data


async def test_b33_every_event_goes_to_both_keys_as_the_same_bytes(
    wire: World, redis: Server
) -> None:
    d, p = await wire.a(), await wire.producer()
    async with redis.async_client(4) as client, client.pubsub() as listener:
        await listener.subscribe("events.pubsub")
        assert (await listener.get_message(timeout=5))["type"] == "subscribe"
        await d.produce_event("do_schedule")
        await p.produce_event(era_b.DoScheduleEvent())
        for expected in (
            packed(event_name="do_schedule", agent_id="manager", args=()),
            packed(name="do_schedule", source="manager", args=()),
        ):
            published = await listener.get_message(timeout=5)
            assert published["data"] == expected
            assert await client.lpop("events.prodcons") == expected
        assert await client.ttl("events.prodcons") == -2


async def test_b33_nothing_is_trimmed_and_nothing_expires(wire: World, redis: Server) -> None:
    d = await wire.a()
    await asyncio.gather(*(d.produce_event("e", (number,)) for number in range(2000)))
    assert redis.command("LLEN", "events.prodcons") == b":2000\r\n"
    assert redis.command("TTL", "events.prodcons") == b":-1\r\n"


async def test_b36_both_eras_and_further_keys_are_decoded(wire: World, redis: Server) -> None:
    a, b, old, new = await wire.a(), await wire.b(), Seen(), Seen()
    a.subscribe("kernel_started", None, old)
    b.subscribe(era_b.KernelStartedEvent, None, new)
    redis.command(
        "PUBLISH",
        "events.pubsub",
        packed(event_name="kernel_started", agent_id="i-a", args=(ID, "c"), more=1),
    )
    redis.command(
        "PUBLISH", "events.pubsub", packed(name="kernel_started", source="i-b", args=(ID, "c", ""))
    )
    await old.count(2)
    await new.count(2)
    assert old == [
        (None, "i-a", "kernel_started", ID, "c"),
        (None, "i-b", "kernel_started", ID, "c", ""),
    ]
    assert [call[1] for call in new] == ["i-a", "i-b"]
    assert new[0][2] == new[1][2]


OLD_PROCESS = """
import asyncio, sys, msgpack, redis.asyncio

async def main(port, expected):
    client = redis.asyncio.Redis(port=port, db=4, socket_timeout=None)
    pubsub = client.pubsub()
    await pubsub.subscribe("events.pubsub")
    await pubsub.get_message(timeout=5)
    print("ready", flush=True)
    seen, popped = 0, 0

    async def subscriber():
        nonlocal seen
        while seen < expected:
            found = await pubsub.get_message(ignore_subscribe_messages=True, timeout=5)
            if found:
                msgpack.unpackb(found["data"], use_list=False)
                seen += 1

    async def consumer():
        nonlocal popped
        while True:
            await client.blpop("events.prodcons", 0)
            popped += 1

    consuming = asyncio.ensure_future(consumer())
    for number in range(expected // 2):
        message = {"event_name": "e", "agent_id": "old", "args": (number,)}
        data = msgpack.packb(message, use_bin_type=True)
        pipe = client.pipeline(transaction=False)
        pipe.rpush("events.prodcons", data)
        pipe.publish("events.pubsub", data)
        await pipe.execute()
        await asyncio.sleep(0.002)
    await asyncio.wait_for(subscriber(), 30)
    await asyncio.sleep(0.5)
    print(seen, popped, flush=True)

asyncio.run(main(int(sys.argv[1]), int(sys.argv[2])))
"""


async def test_b37_an_unchanged_process_shares_the_redis(wire: World, redis: Server) -> None:
    d, consumed, seen = await wire.a(), Seen(), Seen()
    d.consume("e", None, consumed)
    d.subscribe("e", None, seen)
    await asyncio.sleep(0.2)
    old = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        OLD_PROCESS,
        str(redis.port),
        "200",
        stdout=subprocess.PIPE,
    )
    assert old.stdout is not None
    assert await asyncio.wait_for(old.stdout.readline(), 20) == b"ready\n"
    for number in range(100):
        await d.produce_event("e", (number,))
        await asyncio.sleep(0.002)
    line = await asyncio.wait_for(old.stdout.readline(), 40)
    await old.wait()
    old_seen, old_popped = map(int, line.split())
    assert old_seen == len(seen) == 200
    await eventually(lambda: old_popped + len(consumed) == 200)
    assert old_popped > 0
    assert len(consumed) > 0


WORKER = """
import asyncio, sys
from eventbus.compat.backendai import EventDispatcher

async def main():
    d = await EventDispatcher.new(bus=sys.argv[1], lease=1.0)
    async def stuck(*args):
        print(args[3], flush=True)
        await asyncio.sleep(1000)
    d.consume("e", None, stuck)
    await asyncio.sleep(1000)

asyncio.run(main())
"""


async def test_b55_events_in_flight_survive_kill_9(wire: World, redis: Server) -> None:
    d = await wire.a(lease=1.0)
    worker = await asyncio.create_subprocess_exec(
        sys.executable, "-c", WORKER, redis.address, stdout=subprocess.PIPE
    )
    assert worker.stdout is not None
    for number in range(100):
        await d.produce_event("e", (number,))
    for _ in range(100):
        await asyncio.wait_for(worker.stdout.readline(), 20)
    worker.kill()
    await worker.wait()
    assert redis.command("LLEN", "events.prodcons") == b":0\r\n"
    seen = Seen()
    d.consume("e", None, seen)
    await eventually(lambda: len(seen) >= 100, timeout=6.0)
    assert sorted(call[3] for call in seen) == list(range(100))


async def test_b55_an_event_leaves_the_in_flight_list_when_its_handlers_ended(
    wire: World, redis: Server
) -> None:
    async def ignore(kind: Any, error: BaseException, tb: Any) -> None:
        pass

    d, go, seen = await wire.a(consumer_exception_handler=ignore), asyncio.Event(), Seen()

    async def waits(*args: Any) -> None:
        await go.wait()
        raise ValueError

    d.consume("e", None, waits)
    d.consume("e", None, seen)
    await d.produce_event("e")
    await seen.count(1)
    assert b":1" in redis.command("LLEN", f"events.prodcons.inflight:{wire_id(d)}")
    go.set()
    await eventually(
        lambda: redis.command("LLEN", f"events.prodcons.inflight:{wire_id(d)}") == b":0\r\n"
    )
    await seen.count(1)


def wire_id(dispatcher: Any) -> str:
    transport = dispatcher.connection.transport
    assert isinstance(transport, wire_module.ListTransport)
    return transport._id


async def test_b55_at_most_once_when_asked(wire: World, redis: Server) -> None:
    d, seen = await wire.a(at_least_once=False, concurrency=5), Seen()
    go = asyncio.Event()

    async def waits(*args: Any) -> None:
        seen(*args)
        await go.wait()

    d.consume("e", None, waits)
    for number in range(20):
        await d.produce_event("e", (number,))
    await eventually(lambda: len(seen) == 5)
    assert redis.command("KEYS", "events.prodcons.inflight:*") == b"*0\r\n"
    go.set()
    await seen.count(20)
    assert [call[3] for call in seen] == list(range(20))


async def test_b57_push_and_publish_are_one_step_and_duplicates_are_recognised(
    wire: World, redis: Server
) -> None:
    d, seen = await wire.a(), Seen()
    d.subscribe("e", None, seen)
    await d.produce_event("e", (1,), dedup_id="once")
    await d.produce_event("e", (1,), dedup_id="once")
    await d.produce_event("e", (2,))
    await seen.count(2)
    assert redis.command("LLEN", "events.prodcons") == b":2\r\n"
    reply = redis.command("LINDEX", "events.prodcons", "0")
    assert packed(event_name="e", agent_id="manager", args=(1,), id="once") in reply
    assert b"RPUSH" in wire_module.scripts.PRODUCE.encode()
    assert b"PUBLISH" in wire_module.scripts.PRODUCE.encode()


async def test_b57_dedup_on_other_buses(world: World) -> None:
    d, seen = await world.a(), Seen()
    d.consume("e", None, seen)
    await d.produce_event("e", (1,), dedup_id="once")
    await d.produce_event("e", (1,), dedup_id="once")
    await seen.count(1)


async def test_b62_figures_of_the_list(
    wire: World, redis: Server, caplog: pytest.LogCaptureFixture, monkeypatch: Any
) -> None:
    monkeypatch.setattr(wire_module, "_DEEP", 20)
    monkeypatch.setattr(wire_module, "_HOLD", 0.0)
    d, go = await wire.a(concurrency=2, lease=0.6), asyncio.Event()
    for number in range(30):
        await d.produce_event("e", (number,))
    await d.produce_event("unknown")

    async def waits(*args: Any) -> None:
        await go.wait()

    d.consume("e", None, waits)
    await eventually(lambda: d.figures()["in_flight_list"] == 2)
    await eventually(lambda: d.figures()["depth"] == 29 and d.figures()["head_age"] > 0)
    deep = [r for r in caplog.records if "holds" in r.getMessage()]
    assert len(deep) == 1
    redis.command("RPUSH", "events.prodcons", b"\xc1")
    go.set()
    await eventually(lambda: d.figures()["dropped"] == {"unknown": 1})
    await eventually(lambda: d.figures()["malformed"] == 1)
    await eventually(lambda: d.figures()["in_flight_list"] == 0)


async def test_b51_a_popped_event_is_handed_to_who_announced_its_name(
    wire: World, redis: Server
) -> None:
    one, two, mine, other = await wire.a(), await wire.a(), Seen(), Seen()
    two.consume("other", None, other)
    await asyncio.sleep(0.2)
    one.consume("mine", None, mine)
    for number in range(100):
        await one.produce_event("mine", (number,))
        await one.produce_event("other", (number,))
    await mine.count(100)
    await other.count(100)
    forwarded = one.figures()["forwarded"] + two.figures()["forwarded"]
    assert forwarded > 0
    assert redis.command("LLEN", "events.prodcons") == b":0\r\n"


async def test_b51_dropped_names_are_counted(wire: World, monkeypatch: Any) -> None:
    monkeypatch.setattr(wire_module, "_HOLD", 0.0)
    d, seen = await wire.a(), Seen()
    d.consume("known", None, seen)
    for _ in range(3):
        await d.produce_event("nobody")
    await d.produce_event("known")
    await seen.count(1)
    await eventually(lambda: d.figures()["dropped"] == {"nobody": 3})


async def test_b58_broadcasts_of_unknown_names_are_dropped_before_python(
    wire: World, redis: Server, monkeypatch: Any
) -> None:
    read: list[str] = []

    def decode(data: bytes) -> Message:
        message = decode_message(data)
        read.append(message.name)
        return message

    monkeypatch.setattr(wire_module, "decode_message", decode)
    d, p, seen = await wire.a(), await wire.producer(), Seen()
    handler = d.subscribe("do_schedule", None, seen)
    for _ in range(50):
        await d.produce_event("unknown")
        await p.produce_event(era_b.DoIdleCheckEvent())
    await d.produce_event("do_schedule")
    await p.produce_event(era_b.DoScheduleEvent())
    await seen.count(2)
    assert read == ["do_schedule"] * 2
    # A name can come later, and go.
    d.unsubscribe("do_schedule", handler)
    d.subscribe("unknown", None, seen)
    await d.produce_event("do_schedule")
    await d.produce_event("unknown")
    await seen.count(3)
    assert read[2:] == ["unknown"]
