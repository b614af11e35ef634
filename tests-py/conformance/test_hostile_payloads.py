"""Payloads that cannot be decoded: they concern their event, and nobody and nothing else."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from conformance.conftest import MakeBus
from conformance.support import WITHIN, eventually
from eventbus import Bus, DecodeError, Event, TopicError

PRIME = 2**61 - 1
FLOOD = {PRIME * (n + 64) for n in range(100)}
"""Members of one hash: whoever made the set has paid for it, and no reader will."""


async def test_a_queued_event_that_cannot_be_decoded_is_buried_and_the_next_is_handled(
    bus: Bus,
) -> None:
    done: list[Any] = []
    blamed: list[Any] = []
    bus.on_handler_error = lambda name, error: blamed.append((name, error))

    async def handle(event: Event) -> None:
        done.append(event.payload)

    await bus.consume("hostile", handle, group="g", concurrency=1)
    await bus.publish("hostile", FLOOD)
    await bus.publish("hostile", "sound")
    await eventually(lambda: done == ["sound"], WITHIN)
    letters = bus.dead_letters("g")

    async def is_buried() -> bool:
        return len(await letters.list()) == 1

    await eventually(is_buried, WITHIN)
    [letter] = await letters.list()
    assert letter.reason == "undecodable"
    assert "members of one hash" in (letter.error or "")
    # The bytes are kept: 100 integers of a dozen bytes each.
    assert letter.body is not None
    assert len(letter.body) > 1_000
    assert bus.counters["malformed"] == 1
    assert bus.counters["failed"] == 0
    assert not blamed
    assert bus.counters["workers_replaced"] == 0


async def test_a_batch_loses_the_event_that_cannot_be_decoded_only(bus: Bus) -> None:
    done: list[Any] = []

    async def handle(payloads: list[set[int] | str]) -> None:
        done.extend(payloads)

    await bus.declare_group("g", "hostile")
    for payload in ("one", FLOOD, "two"):
        await bus.publish("hostile", payload)
    await bus.consume("hostile", handle, group="g", batch=10)
    await eventually(lambda: sorted(done, key=str) == ["one", "two"], WITHIN)

    async def is_buried() -> bool:
        return [one.reason for one in await bus.dead_letters("g").list()] == ["undecodable"]

    await eventually(is_buried, WITHIN)


async def test_a_broadcast_that_cannot_be_decoded_is_counted_and_skipped_and_told_once(
    make_bus: MakeBus, caplog: pytest.LogCaptureFixture
) -> None:
    bus = await make_bus()
    if bus.capabilities["in_process"]:
        pytest.skip("a broadcast in process is the very object that was published")
    done: list[Any] = []
    caplog.set_level(logging.WARNING)
    await bus.subscribe("hostile", lambda event: done.append(event.payload))
    for _ in range(20):
        await bus.publish("hostile", FLOOD)
    await bus.publish("hostile", "sound")
    await eventually(lambda: done == ["sound"], WITHIN)
    assert bus.counters["malformed"] == 20
    told = [one for one in caplog.records if "members of one hash" in one.getMessage()]
    assert len(told) == 1
    assert not told[0].exc_info
    assert bus.counters["workers_replaced"] == 0


async def test_a_record_that_cannot_be_decoded_is_an_error_of_its_reader_only(bus: Bus) -> None:
    async with bus.transaction() as tx:
        tx.put("hostile", dict.fromkeys(FLOOD))
        tx.put("sound", 1)
    with pytest.raises(DecodeError, match="members of one hash"):
        await bus.read("hostile")
    found = await bus.read("sound")
    assert found is not None
    assert found.value == 1


async def test_a_pattern_is_as_long_as_a_topic_at_most(bus: Bus) -> None:
    longest = "*" + "[" * 254
    await bus.subscribe("t", lambda event: None, pattern=longest)
    await bus.declare_group("g", pattern=longest)
    for long in (longest + "[", "[" * 200_000):
        limit = rf"pattern .*is {len(long)} bytes, limit 255"
        with pytest.raises(TopicError, match=limit):
            await bus.subscribe("t", lambda event: None, pattern=long)
        with pytest.raises(TopicError, match=limit):
            await bus.declare_group("g", pattern=long)
        with pytest.raises(TopicError, match=limit):
            async with bus.stream(pattern=long):
                pass


async def test_a_record_that_cannot_be_decoded_keeps_nobody_from_the_others(bus: Bus) -> None:
    async with bus.transaction() as tx:
        for key, value in (("r/1", "one"), ("r/2", FLOOD), ("r/3", "three")):
            tx.put(key, value)
    page = await bus.scan("r/")
    assert [(record.key, record.version) for record in page] == [("r/1", 1), ("r/2", 1), ("r/3", 1)]
    assert (page[0].value, page[2].value) == ("one", "three")
    assert "members of one hash" in repr(page[1])
    with pytest.raises(DecodeError, match="members of one hash"):
        _ = page[1].value
    with pytest.raises(DecodeError, match="members of one hash"):
        await bus.read("r/2")
    # The way to be rid of it.
    async with bus.transaction() as tx:
        tx.delete("r/2", if_version=page[1].version)
    assert [record.key for record in await bus.scan("r/")] == ["r/1", "r/3"]
