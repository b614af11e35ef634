"""Publishing: events, payloads, options, tasks; and events as the dataclasses they answer for."""

# Every misuse below must be found by mypy and by pyright.
# pyright: reportUnnecessaryTypeIgnoreComment=true

import asyncio
import copy
import dataclasses
from collections.abc import Hashable
from datetime import UTC, datetime, timedelta
from typing import Any, assert_type

from eventbus import Bus, Event, EventType
from eventbus.codec import decode, encode


async def publish(bus: Bus, event: Event) -> None:
    assert_type(await bus.publish("a", event), None)
    await bus.publish("a", {"id": 7})
    await bus.publish("a", 7)
    await bus.publish("a", None, key="k", priority=5)
    await bus.publish("a", event, delay=0.5, dedup_id="d", unique="u")
    await bus.publish("a", event, delay=timedelta(hours=1), expires_after=10)
    await bus.publish("a", event, at=datetime.now(UTC))
    await bus.publish("a", event, correlation_id="c", source="s", metadata={"m": 1})
    await bus.publish_many([("a", event), ("b", {"id": 7})])
    await bus.publish_many(("a", number) for number in range(3))
    bus.publish_nowait("a", event, key="k", delay=timedelta(seconds=1))
    assert_type(await bus.flush(), None)

    await bus.publish(event)  # type: ignore[call-arg, arg-type]
    await bus.publish(7, event)  # type: ignore[arg-type]
    await bus.publish("a", event, delay="1s")  # type: ignore[arg-type]
    await bus.publish("a", event, at=5.0)  # type: ignore[arg-type]
    await bus.publish("a", event, priority="high")  # type: ignore[arg-type]
    await bus.publish("a", event, colour="red")  # type: ignore[call-arg]
    await bus.publish_many(["a", "b"])  # type: ignore[list-item]
    bus.publish_nowait("a", event, key=7)  # type: ignore[arg-type]
    bus.publish_nowait("a", event, colour="red")  # type: ignore[call-arg]
    bus.publish("a", event)  # type: ignore[unused-coroutine]


async def publish_in_tasks(bus: Bus) -> None:
    task: asyncio.Task[None] = asyncio.create_task(bus.publish("a", 1))
    await task
    async with asyncio.TaskGroup() as group:
        _in_group: asyncio.Task[None] = group.create_task(bus.publish_many([]))
    await asyncio.gather(bus.publish("a", 3), bus.publish("a", 4))
    await asyncio.wait_for(bus.publish("a", 5), timeout=1.0)
    await asyncio.shield(bus.publish("a", 6))


def events(event: Event) -> None:
    made = Event(EventType.CREATED, "orders:created", {"id": 7}, source="shop")
    assert_type(made.type, EventType)
    assert_type(made.timestamp, datetime)
    assert_type(made.id, str)
    assert_type(made.source, str | None)
    assert_type(made.metadata, dict[str, Any])
    assert_type(made.to_dict(), dict[str, Any])
    assert_type(Event.from_dict(made.to_dict()), Event)
    assert_type(made.with_correlation("c"), Event)
    assert_type(dataclasses.replace(made, topic="orders:changed"), Event)
    assert_type(dataclasses.asdict(made), dict[str, Any])
    assert_type(copy.copy(made), Event)
    assert_type(made == event, bool)
    match event:
        case Event(EventType.ERROR, topic):
            assert_type(topic, str)
        case Event(payload={"id": identity}):
            assert_type(identity, Any)
        case _:
            pass

    Event("created", "orders:created")  # type: ignore[arg-type]
    Event(EventType.CREATED)  # type: ignore[call-arg]
    made.topic = "orders:changed"  # type: ignore[misc]
    _key: Hashable = made  # type: ignore[assignment]


def codec() -> None:
    assert_type(encode({"a": 1}, max_depth=5), bytes)
    assert_type(decode(b"\x01"), Any)
    decode("text")  # type: ignore[arg-type]
