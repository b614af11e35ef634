"""What each role of the Redis recipes does: every command of a recipe is used."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

from chaos.load import drained, soon
from eventbus import Bus, Event, EventBusError, EventType, RetryPolicy, connect
from servers.brokers import QUICK
from servers.redis_server import RedisServer

PASSWORD = "S3CR3T-xyz"
OPTIONS: dict[str, Any] = {**QUICK, "drain_timeout": 2.0, "op_timeout": 2.0}
GUIDE = Path(__file__).parents[2] / "docs/backends/redis.md"

Scenario = Callable[[Bus], Awaitable[None]]


def recipes(mark: str) -> dict[str, str]:
    """Return the rights that the documentation gives to each role, below a mark."""
    _, _, rest = GUIDE.read_text("utf-8").partition(f"<!-- {mark} -->\n```\n")
    lines = rest.partition("```")[0].splitlines()
    return dict(tuple(line.split(maxsplit=1)) for line in lines)


FUNCTIONS = recipes("recipes")
SCRIPTS = recipes("script recipes")
EXTRAS = recipes("further rights")


def acl(role: str, rights: str) -> str:
    """Return the ACL line of a role."""
    return f"{role} on >{PASSWORD} {rights}"


async def as_user(server: RedisServer, name: str, **options: Any) -> Bus:
    """Return a connected bus of a user."""
    bus = connect(server.url(), username=name, password=PASSWORD, **{**OPTIONS, **options})
    await bus.connect()
    return bus


def denied(server: RedisServer) -> list[str]:
    """Return what the server refused since the last call, as ``user: command``."""
    with server.client() as client:
        entries = client.acl_log(count=100_000)
        client.acl_log_reset()
    return [f"{entry['username']}: {entry['object']}" for entry in entries]


async def work(bus: Bus) -> None:
    """Do everything that a worker does: publish, consume, records, and what operators do."""
    await consume(bus)
    await publish(bus)
    await write(bus)
    await operate(bus)
    assert (await bus.health())["ok"]


async def consume(bus: Bus) -> None:
    """Subscribe and consume, with failures and dead letters."""
    done: list[Any] = []
    seen: list[Any] = []

    async def handle(event: Event) -> None:
        done.append(event.payload)
        if event.payload == "fails":
            raise ValueError("no")
        if event.payload == "slow":
            await asyncio.sleep(0.4)

    await bus.declare_group("large", "large")
    exact = await bus.subscribe("work", lambda event: seen.append(event.payload))
    wide = await bus.subscribe("pattern", print, "wor*")
    once = RetryPolicy(max_attempts=1)
    # Two queues: what is claimed is taken out of several places.
    topics = ["work", "more"]
    consumer = await bus.consume(topics, handle, group="group", retry=once, lease=0.3)
    await bus.publish("work", 1, key="key", dedup_id="once")
    await bus.publish_many([("work", 2), ("work", 3)])
    await bus.publish("work", 4, delay=0.05)
    assert await soon(lambda: sorted(done) == [1, 2, 3, 4] and sorted(seen) == [1, 2, 3], 5)
    await bus.publish("work", "fails", priority=3)
    dead = bus.dead_letters("group")

    async def died() -> list[Any]:
        assert await soon(lambda: done.count("fails") > retried, 5)
        await drained(bus, "group", 5)
        return await dead.list()

    retried = 0

    [letter] = await died()
    assert await dead.list(after=letter.message_id) == []
    retried = 1
    assert await dead.retry(letter.message_id)
    [letter] = await died()
    await dead.discard(letter.message_id)
    await bus.publish("work", "slow")
    assert await soon(lambda: "slow" in done, 5)
    await drained(bus, "group", 5)
    await consumer.stop()
    # One claim takes both, and gives back what its answer has no room for.
    await bus.publish_many([("large", "x" * 700_000), ("large", "y" * 700_000)])
    async with bus.deliveries("large", group="large") as deliveries:
        for _ in range(2):
            await (await anext(deliveries)).ack()
    await exact.cancel()
    await wide.cancel()


async def publish(bus: Bus) -> None:
    """Publish in every way; what was never consumed expires."""
    await bus.declare_group("papers", "paper")
    await bus.publish("paper", 1)
    await bus.publish_many([("paper", 2), ("paper", 3)])
    for number in range(2):
        await bus.publish("paper", number, expires_after=0.001, key="key", unique=f"u{number}")
    await bus.publish("paper", 4, delay=60, dedup_id="once")
    await bus.publish("paper", 5, priority=1, unique="u5")
    async with bus.transaction() as tx:
        tx.publish("paper", 6)
        tx.put("paper", 1, ttl=60)
    async with bus.transaction() as tx:
        tx.delete("paper")


async def write(bus: Bus) -> None:
    """Write and read records."""
    async with bus.transaction() as tx:
        tx.put("record", 1, ttl=60)
        tx.publish("work", 5)
    assert await bus.read("record") is not None
    assert await bus.scan("rec")
    async with bus.transaction() as tx:
        tx.delete("record")


async def operate(bus: Bus) -> None:
    """Do what operators do to groups that nobody consumes."""
    await bus.declare_group("kept", ["work", "others"])
    for number in range(3):
        await bus.publish("work", number)
        await bus.publish("work", number, delay=60, key="later")
    event = Event(EventType.CUSTOM, "work", 9)
    await bus.publish("work", event, delay=60)
    assert await bus.promote_message(event)
    assert await bus.cancel_message(event, group="kept")
    assert (await bus.inspect())["groups"]
    await bus.pause("kept")
    await bus.resume("kept")
    await bus.unbind("kept", "others")
    await bus.purge("kept")
    await bus.delete_group("kept")
    await bus.delete_group("group")
    await bus.delete_group("papers")
    await bus.delete_group("large")


async def keep(bus: Bus) -> None:
    """Publish on a bus that keeps broadcasts."""
    for number in range(3):
        await bus.publish("kept", number)


async def replay(bus: Bus) -> None:
    """Read what was kept again, from places found in every way."""
    for since in ("beginning", datetime.now(UTC) + timedelta(hours=1), str(uuid4())):
        seen: list[Any] = []
        again = await bus.subscribe("kept", seen.append, since=since)
        if since == "beginning":
            assert await soon(lambda some=seen: len(some) == 2, 5)
        await again.cancel()


async def drain(bus: Bus) -> None:
    """Do on a full server what consumers do there; what was left is claimed and settled."""
    with contextlib.suppress(EventBusError):
        await bus.publish("left", "more")
    await bus.publish("nobody", 1)
    async with bus.deliveries("left", group="left", lease=0.6) as deliveries:
        delivery = await anext(deliveries)
        # Long enough for a renewal, which a full server may refuse.
        await asyncio.sleep(0.5)
        await delivery.ack()
    await bus.read("nothing")
    await bus.inspect()
    await bus.message(str(uuid4()))
