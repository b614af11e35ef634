"""Streams, deliveries, transactions, records and the operator's calls."""

# Every misuse below must be found by mypy and by pyright.
# pyright: reportUnnecessaryTypeIgnoreComment=true

from datetime import UTC, datetime, timedelta
from typing import assert_type
from uuid import uuid4

from eventbus import (
    Bus,
    DeadLetter,
    Deliveries,
    Delivery,
    Event,
    EventType,
    MessageInfo,
    Record,
    Stream,
    current_delivery,
)


async def stream(bus: Bus) -> None:
    async with bus.stream(pattern="orders:*", buffer=10, overflow="close") as events:
        assert_type(events, Stream)
        async for event in events:
            assert_type(event, Event)
    async for event in bus.stream("orders:created"):
        assert_type(event, Event)
    assert_type(await anext(bus.stream("a")), Event)
    bus.stream("a", overflow="drop")  # type: ignore[arg-type]
    for _ in bus.stream("a"):  # type: ignore[attr-defined]
        pass


async def deliveries(bus: Bus) -> None:
    async with bus.deliveries("orders:created", group="audit", lease=timedelta(seconds=5)) as all_:
        assert_type(all_, Deliveries)
        async for delivery in all_:
            assert_type(delivery, Delivery)
            assert_type(delivery.event, Event)
            assert_type(delivery.key, str | None)
            assert_type(delivery.attempt, int)
            assert_type(delivery.accepted_at, datetime)
            assert_type(await delivery.ack(), None)
            await delivery.retry(after=1.5, reason="later")
            await delivery.retry(after=timedelta(minutes=1))
            await delivery.reject("no")
            await delivery.release()
            await delivery.retry(5)  # type: ignore[call-arg]
            await delivery.retry(after="1s")  # type: ignore[arg-type]
    assert_type(current_delivery(), Delivery)


async def transactions(bus: Bus, delivery: Delivery) -> None:
    async with delivery.transaction() as tx:
        tx.publish("orders:audited", {"id": 7}, key="7", delay=timedelta(seconds=1))
        tx.put("audit/7", {"done": True}, if_version=3, ttl=60)
        tx.delete("draft/7")
        tx.publish("a", 1, colour="red")  # type: ignore[call-arg]
        tx.put("a", 1, ttl="1h")  # type: ignore[arg-type]
        tx.put("a", 1, 3)  # type: ignore[call-arg]
    assert_type(tx.versions, dict[str, int])
    async with bus.transaction() as tx:
        tx.put("a", None)
    with bus.transaction():  # type: ignore[attr-defined]
        pass


async def records(bus: Bus) -> None:
    record = await bus.read("audit/7")
    assert_type(record, Record | None)
    _value = record.value  # type: ignore[union-attr]
    if record is not None:
        assert_type(record.version, int)
        record.version = 5  # type: ignore[misc]
    assert_type(await bus.scan("audit/", after="audit/6", limit=10), list[Record])


async def operate(bus: Bus) -> None:
    letters = bus.dead_letters("billing")
    assert_type(await letters.list(limit=10), list[DeadLetter])
    for letter in await letters.list():
        assert_type(letter.event, Event | None)
        assert_type(await letters.retry(letter.message_id), int)
        assert_type(await letters.discard(letter.message_id), int)
    event = Event(EventType.CUSTOM, "orders")
    assert_type(await bus.message("id"), list[MessageInfo])
    assert_type(await bus.message(event, group="billing"), list[MessageInfo])
    assert_type(await bus.cancel_message(event), int)
    assert_type(await bus.promote_message(uuid4()), int)
    assert_type(await bus.reschedule_message("id", datetime.now(UTC)), int)
    assert_type(await bus.declare_group("billing", ["a", "b"], max_length=5), None)
    assert_type(await bus.unbind("billing", "a"), int)
    assert_type(await bus.purge("billing"), int)
    assert_type(await bus.delete_group("billing"), int)
    assert_type(await bus.pause("billing"), None)
    figures = await bus.inspect()
    assert_type(figures["groups"][0]["oldest_age"], float)
    assert_type((await bus.health())["ok"], bool)
    assert_type(bus.counters, dict[str, int])
    assert_type(await bus.drain(timedelta(seconds=5)), None)
    await bus.reschedule_message("id", 5.0)  # type: ignore[arg-type]
    await bus.purge()  # type: ignore[call-arg]
