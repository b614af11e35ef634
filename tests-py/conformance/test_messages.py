"""Messages: looking at what waits, and cancelling, promoting or rescheduling it."""

from __future__ import annotations

import datetime as dt
import uuid

import pytest

from conformance.support import figures, take
from eventbus import Bus
from eventbus.errors import InvalidArgumentError


async def _only_id(bus: Bus, topic: str, group: str) -> str:
    """Return the id of the one message of a group."""
    async with bus.deliveries(topic, group=group, prefetch=1) as deliveries:
        delivery = await take(deliveries)
        await delivery.release()
        return delivery.message_id


async def _delayed_id(bus: Bus, topic: str, group: str) -> str:
    """Publish a delayed message and return its id: due at once, looked at, put off."""
    await bus.publish(topic, 1)
    found = await _only_id(bus, topic, group)
    later = dt.datetime.now(dt.UTC) + dt.timedelta(hours=1)
    assert await bus.reschedule_message(group, found, later) == 1
    return found


async def test_a_message_is_found_by_its_id_in_every_state(
    bus: Bus, topic: str, group: str
) -> None:
    await bus.declare_group(group, topic)
    await bus.publish(topic, 1, priority=4)
    message_id = await _only_id(bus, topic, group)
    (info,) = await bus.message(group, message_id)
    assert (info.group, info.message_id, info.topic) == (group, message_id, topic)
    assert (info.state, info.priority, info.attempts) == ("ready", 4, 0)
    later = dt.datetime.now(dt.UTC) + dt.timedelta(hours=1)
    await bus.reschedule_message(group, message_id, later)
    (info,) = await bus.message(group, message_id)
    assert (info.state, info.at) == ("delayed", later)
    await bus.promote_message(group, message_id)
    async with bus.deliveries(topic, group=group) as deliveries:
        delivery = await take(deliveries)
        (info,) = await bus.message(group, message_id)
        assert info.state == "active"
        assert info.at > dt.datetime.now(dt.UTC)
        await delivery.ack()
    assert await bus.message(group, message_id) == []
    assert await bus.message(group, str(uuid.uuid4())) == []


async def test_a_waiting_message_can_be_cancelled_an_active_one_not(
    bus: Bus, topic: str, group: str
) -> None:
    await bus.declare_group(group, topic)
    await bus.publish(topic, 1)
    message_id = await _only_id(bus, topic, group)
    async with bus.deliveries(topic, group=group) as deliveries:
        delivery = await take(deliveries)
        assert await bus.cancel_message(group, message_id) == 0
        await delivery.release()
        await deliveries.aclose()
    assert await bus.cancel_message(group, message_id) == 1
    assert await bus.cancel_message(group, message_id) == 0
    found = await figures(bus, group)
    assert (found["ready"], found["removed"]) == (0, 1)


async def test_a_delayed_message_can_be_promoted(bus: Bus, topic: str, group: str) -> None:
    await bus.declare_group(group, topic)
    message_id = await _delayed_id(bus, topic, group)
    assert (await figures(bus, group))["delayed"] == 1
    async with bus.deliveries(topic, group=group) as deliveries:
        assert await bus.promote_message(group, message_id) == 1
        delivery = await take(deliveries)
        assert delivery.message_id == message_id
        await delivery.ack()


async def test_a_delayed_message_can_be_cancelled(bus: Bus, topic: str, group: str) -> None:
    await bus.declare_group(group, topic)
    message_id = await _delayed_id(bus, topic, group)
    assert await bus.cancel_message(group, message_id) == 1
    assert (await figures(bus, group))["delayed"] == 0


async def test_an_id_that_is_none_is_refused(bus: Bus, topic: str, group: str) -> None:
    await bus.declare_group(group, topic)
    with pytest.raises(InvalidArgumentError, match="UUID"):
        await bus.message(group, "seven")
    with pytest.raises(InvalidArgumentError, match="UUID"):
        await bus.cancel_message(group, "seven")
    naive = dt.datetime(2030, 1, 1)
    with pytest.raises(InvalidArgumentError, match="time zone"):
        await bus.reschedule_message(group, str(uuid.uuid4()), naive)
