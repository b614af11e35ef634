"""Publish: what is accepted, in which order, and what a refused publish leaves behind."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import uuid
from decimal import Decimal
from typing import Any

import pytest

from conformance.conftest import MakeBus
from conformance.support import WITHIN, figures, take, take_all
from eventbus import (
    Bus,
    DeadLetter,
    EncodeError,
    Event,
    EventType,
    PayloadTooLarge,
    QueueFull,
    TopicError,
)
from eventbus.testing import Recorder, eventually

VALUES = [
    None,
    True,
    -(2**70),
    1.5,
    "text ü \U0001f600",
    b"\x00\xff",
    [1, [2, {"three": (4, 5)}]],
    {1: "int", False: "bool", "s": None, b"b": 2.5},
    {1, 2, 3},
    frozenset({"a"}),
    dt.datetime(2030, 1, 2, 3, 4, 5, 6, tzinfo=dt.timezone(dt.timedelta(hours=5, minutes=45))),
    dt.datetime(2030, 1, 2, 3, 4, 5, 6),
    dt.date(2030, 1, 2),
    dt.timedelta(days=-3, microseconds=7),
    uuid.UUID(int=7),
    Decimal("1.230"),
]


async def test_a_plain_payload_becomes_a_custom_event_on_the_topic(bus: Bus, topic: str) -> None:
    seen = Recorder()
    await bus.subscribe(topic, seen)
    assert await bus.publish(topic, {"id": 7}) is None
    (event,) = await seen.wait_for(1, WITHIN)
    assert (event.type, event.topic, event.payload) == (EventType.CUSTOM, topic, {"id": 7})
    assert uuid.UUID(event.event_id)
    assert event.timestamp.utcoffset() == dt.timedelta(0)


@pytest.mark.parametrize("value", VALUES, ids=lambda value: type(value).__name__)
async def test_every_native_value_reaches_subscribers_and_groups_unchanged(
    bus: Bus, topic: str, group: str, value: Any
) -> None:
    seen = Recorder()
    await bus.subscribe(topic, seen)
    async with bus.deliveries(topic, group=group) as deliveries:
        await bus.publish(topic, value)
        delivery = await take(deliveries)
        await delivery.ack()
    (event,) = await seen.wait_for(1, WITHIN)
    for got in (event.payload, delivery.event.payload):
        assert got == value
        assert type(got) is type(value)


async def test_an_event_arrives_with_every_field(bus: Bus, topic: str, group: str) -> None:
    sent = Event(
        EventType.UPDATED,
        topic,
        {"n": 1},
        source="me",
        correlation_id="c1",
        metadata={"trace": [1, 2]},
    )
    seen = Recorder()
    await bus.subscribe(topic, seen)
    async with bus.deliveries(topic, group=group) as deliveries:
        await bus.publish(topic, sent)
        delivery = await take(deliveries)
        assert delivery.event == sent
        await delivery.ack()
    assert await seen.wait_for(1, WITHIN) == [sent]


async def test_keyword_arguments_win_over_the_fields_of_the_event(
    bus: Bus, topic: str, group: str
) -> None:
    sent = Event(EventType.CREATED, topic, 1, source="a", correlation_id="b", metadata={"c": 1})
    seen = Recorder()
    await bus.subscribe(topic, seen)
    async with bus.deliveries(topic, group=group) as deliveries:
        await bus.publish(topic, sent, source="A", correlation_id="B", metadata={"C": 2})
        delivery = await take(deliveries)
        await delivery.ack()
    (event,) = await seen.wait_for(1, WITHIN)
    for got in (event, delivery.event):
        assert (got.source, got.correlation_id, got.metadata) == ("A", "B", {"C": 2})
        assert (got.event_id, got.payload, got.type) == (sent.event_id, 1, EventType.CREATED)
    assert (sent.source, sent.correlation_id, sent.metadata) == ("a", "b", {"c": 1})


async def test_events_of_one_publisher_arrive_in_order(bus: Bus, topic: str, group: str) -> None:
    seen = Recorder()
    await bus.subscribe(topic, seen)
    async with bus.deliveries(topic, group=group, prefetch=100) as deliveries:
        for number in range(50):
            await bus.publish(topic, number)
        taken = await take_all(deliveries, 50)
        assert [one.event.payload for one in taken] == list(range(50))
        for one in taken:
            await one.ack()
    await seen.wait_for(50, WITHIN)
    assert seen.payloads == list(range(50))


async def test_a_batch_is_published_in_order_on_its_topics(
    bus: Bus, topic: str, group: str
) -> None:
    seen = Recorder()
    await bus.subscribe(topic, seen)
    await bus.subscribe(topic + ":other", seen)
    event = Event(EventType.DELETED, topic, "event")
    assert await bus.publish_many([]) is None
    await bus.publish_many([(topic, 1), (topic + ":other", 2), (topic, event)])
    await seen.wait_for(3, WITHIN)
    assert sorted(map(str, seen.payloads)) == ["1", "2", "event"]
    assert [one for one in seen.payloads if one != 2] == [1, "event"]


async def test_a_batch_with_one_bad_item_publishes_nothing(
    bus: Bus, topic: str, group: str
) -> None:
    seen = Recorder()
    await bus.subscribe(topic, seen)
    await bus.declare_group(group, topic)
    with pytest.raises(EncodeError):
        await bus.publish_many([(topic, 1), (topic, object())])
    with pytest.raises(TopicError):
        await bus.publish_many([(topic, 1), ("", 2)])
    await bus.publish(topic, "last")
    await seen.wait_for(lambda event: event.payload == "last", WITHIN)
    assert seen.payloads == ["last"]
    assert (await figures(bus, group))["ready"] == 1


async def test_a_batch_that_overfills_a_group_stores_and_broadcasts_nothing(
    bus: Bus, topic: str, group: str
) -> None:
    seen = Recorder()
    await bus.subscribe(topic, seen)
    await bus.declare_group(group, topic, max_length=2)
    await bus.declare_group(group + ":roomy", topic)
    with pytest.raises(QueueFull):
        await bus.publish_many([(topic, 1), (topic, 2), (topic, 3)])
    assert (await figures(bus, group))["ready"] == 0
    assert (await figures(bus, group + ":roomy"))["ready"] == 0
    await bus.publish(topic, "fits")
    await seen.wait_for(1, WITHIN)
    assert seen.payloads == ["fits"]


async def test_a_full_group_refuses_before_any_handler_runs(
    bus: Bus, topic: str, group: str
) -> None:
    seen = Recorder()
    await bus.subscribe(topic, seen)
    await bus.declare_group(group, topic, max_length=1)
    await bus.publish(topic, "kept")
    with pytest.raises(QueueFull, match="1") as caught:
        await bus.publish(topic, "refused")
    assert caught.value.limit == 1
    assert caught.value.is_retryable
    assert group in str(caught.value)
    await bus.purge(group)
    await bus.publish(topic, "again")
    await seen.wait_for(2, WITHIN)
    assert seen.payloads == ["kept", "again"]


async def test_a_payload_that_cannot_be_stored_is_refused_before_any_handler_runs(
    bus: Bus, topic: str, group: str
) -> None:
    seen = Recorder()
    await bus.subscribe(topic, seen)
    await bus.declare_group(group, topic)
    with pytest.raises(EncodeError, match="object"):
        await bus.publish(topic, {"list": [1, object()]})
    with pytest.raises(PayloadTooLarge) as caught:
        await bus.publish(topic, "x" * (1 << 20))
    assert caught.value.size > caught.value.limit == 1 << 20
    await bus.publish(topic, "fine")
    await seen.wait_for(1, WITHIN)
    assert seen.payloads == ["fine"]


async def test_a_topic_without_group_stores_nothing(bus: Bus, topic: str, group: str) -> None:
    await bus.publish(topic, 1)
    await bus.declare_group(group, topic)
    assert (await figures(bus, group))["ready"] == 0


async def test_publish_is_a_coroutine_to_asyncio(bus: Bus, topic: str) -> None:
    seen = Recorder()
    await bus.subscribe(topic, seen)
    await asyncio.create_task(bus.publish(topic, 0))
    await asyncio.wait_for(bus.publish(topic, 1), WITHIN)
    await asyncio.gather(*(bus.publish(topic, number) for number in range(2, 5)))
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(bus.publish(topic, 5))
    await seen.wait_for(6, WITHIN)
    assert sorted(seen.payloads) == list(range(6))


async def test_nothing_happens_before_the_first_await(bus: Bus, topic: str) -> None:
    seen = Recorder()
    await bus.subscribe(topic, seen)
    waiting = bus.publish(topic, "later")
    bus.publish("", object()).close()
    await bus.publish(topic, "first")
    await waiting
    await seen.wait_for(2, WITHIN)
    assert seen.payloads == ["first", "later"]
    with pytest.raises(RuntimeError, match="already awaited"):
        await waiting


async def test_a_cancelled_publish_is_whole_or_absent_in_every_group(
    bus: Bus, topic: str, group: str
) -> None:
    groups = [f"{group}:{number}" for number in range(3)]
    for name in groups:
        await bus.declare_group(name, topic)
    for number in range(200):
        task = asyncio.create_task(bus.publish(topic, number))
        if number % 3:
            await asyncio.sleep(0)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
    # One that was cancelled on its way is committed before what follows it.
    await bus.publish(topic, "last")
    counts = [(await figures(bus, name))["ready"] for name in groups]
    assert len(set(counts)) == 1
    assert counts[0] <= 201


async def test_buffered_publishes_arrive_in_order_after_flush(
    bus: Bus, topic: str, group: str
) -> None:
    seen = Recorder()
    await bus.subscribe(topic, seen)
    await bus.declare_group(group, topic)
    for number in range(20):
        bus.publish_nowait(topic, number, priority=1)
    await bus.flush()
    await seen.wait_for(20, WITHIN)
    assert seen.payloads == list(range(20))
    assert (await figures(bus, group))["ready"] == 20
    await bus.flush()


async def test_a_full_buffer_refuses_and_keeps_what_it_took(make_bus: MakeBus, topic: str) -> None:
    bus = await make_bus(outbox_size=3)
    seen = Recorder()
    await bus.subscribe(topic, seen)
    for number in range(3):
        bus.publish_nowait(topic, number)
    with pytest.raises(QueueFull, match="outbox_size") as caught:
        bus.publish_nowait(topic, 3)
    assert caught.value.limit == 3
    await bus.flush()
    bus.publish_nowait(topic, 4)
    await bus.flush()
    await seen.wait_for(4, WITHIN)
    assert seen.payloads == [0, 1, 2, 4]


async def test_flush_raises_what_failed_once_and_the_rest_arrives(
    bus: Bus, topic: str, group: str
) -> None:
    seen = Recorder()
    await bus.subscribe(topic, seen)
    await bus.declare_group(group, topic)
    bus.publish_nowait(topic, object())
    bus.publish_nowait(topic, "fine")
    with pytest.raises(EncodeError):
        await bus.flush()
    await bus.flush()
    bus.publish_nowait(topic, object())
    bus.publish_nowait("", 1)
    with pytest.raises(ExceptionGroup, match="2 buffered") as caught:
        await bus.flush()
    first, second = caught.value.exceptions
    assert isinstance(first, EncodeError)
    assert isinstance(second, TopicError)
    await eventually(lambda: seen.payloads == ["fine"], timeout=WITHIN)


async def test_a_message_that_is_too_large_names_the_option_that_allows_it(
    make_bus: MakeBus, topic: str, group: str
) -> None:
    bus = await make_bus(max_message_bytes=1000)
    await bus.declare_group(group, topic)
    for data in ["x" * 2000, ["x" * 50] * 30, b"x" * 2000]:
        with pytest.raises(PayloadTooLarge, match="max_message_bytes"):
            await bus.publish(topic, data)
    with pytest.raises(PayloadTooLarge, match="max_message_bytes"):
        await bus.publish(topic, 1, metadata={"a": "x" * 2000})
    async with bus.transaction() as tx:
        with pytest.raises(PayloadTooLarge, match="max_message_bytes"):
            tx.publish(topic, "x" * 2000)
        with pytest.raises(PayloadTooLarge, match="max_message_bytes"):
            tx.put("record", "x" * 2000)
    # What another bus was allowed to publish.
    generous = await make_bus()
    await generous.publish(topic, "x" * 2000)
    if bus.capabilities["in_process"]:
        return
    await bus.consume(topic, print, group=group)
    letters: list[DeadLetter] = []
    async with asyncio.timeout(WITHIN):
        while not letters:
            letters = await bus.dead_letters(group).list()
            await asyncio.sleep(0.01)
    assert "max_message_bytes" in str(letters[0].error)
