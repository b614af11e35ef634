"""Health: groups that nobody consumes are shown, and asking never fails or hangs."""

from __future__ import annotations

import asyncio
import time

import pytest

from conformance.conftest import MakeBus
from conformance.support import WITHIN, take
from eventbus import Bus, Event, waiting
from eventbus import bus as bus_module
from eventbus.testing import eventually


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """Look at each call, and count a group as unattended after a moment."""
    monkeypatch.setattr(waiting, "UNATTENDED_AFTER", 0.05)
    monkeypatch.setattr(bus_module, "_LOOK_EVERY", 0.0)


async def neglected(bus: Bus) -> list[str]:
    """Return the warnings about groups that nobody consumes."""
    return [one for one in (await bus.health())["warnings"] if "nobody consumes" in one]


async def shown_in_time(bus: Bus) -> str:
    """Return the one warning once it is there."""
    found: list[str] = []

    async def there() -> bool:
        found[:] = await neglected(bus)
        return bool(found)

    await eventually(there, WITHIN)
    (text,) = found
    return text


async def test_a_group_that_nobody_consumes_is_shown(bus: Bus, topic: str, group: str) -> None:
    await bus.declare_group(group, topic)
    assert await neglected(bus) == []
    await bus.publish_many([(topic, 1), (topic, 2)])
    text = await shown_in_time(bus)
    for part in (repr(group), "2 ready", " s;", repr(topic)):
        assert part in text
    assert (await bus.health())["ok"] is True
    # Somebody comes.
    await bus.consume(topic, print, group=group)
    await bus.wait_idle(WITHIN)
    assert await neglected(bus) == []


async def test_a_binding_that_nobody_consumes_is_named(bus: Bus, topic: str, group: str) -> None:
    await bus.declare_group(group, [f"{topic}:a", f"{topic}:b"])
    await bus.consume(f"{topic}:a", print, group=group)
    await bus.publish_many([(f"{topic}:a", 1), (f"{topic}:b", 2)])
    text = await shown_in_time(bus)
    assert f"{topic}:b" in text
    assert f"{topic}:a" not in text


async def test_a_paused_group_and_a_busy_consumer_are_none(
    bus: Bus, topic: str, group: str
) -> None:
    release = asyncio.Event()

    async def held(_event: Event) -> None:
        await release.wait()

    await bus.declare_group(f"{group}:paused", topic)
    await bus.pause(f"{group}:paused")
    await bus.consume(topic, held, group=group, concurrency=1)
    await bus.publish_many([(topic, number) for number in range(50)])
    await asyncio.sleep(0.2)
    assert await neglected(bus) == []
    release.set()


async def test_a_group_that_another_process_consumes_is_none(
    make_bus: MakeBus, topic: str, group: str
) -> None:
    here, there = await make_bus(), await make_bus()
    async with there.deliveries(topic, group=group, prefetch=1) as deliveries:
        await here.publish_many([(topic, number) for number in range(3)])
        delivery = await take(deliveries)
        await asyncio.sleep(0.2)
        assert await neglected(here) == []
        await delivery.ack()


async def test_one_look_is_enough_for_a_while(
    bus: Bus, topic: str, group: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await bus.declare_group(group, topic)
    await bus.publish(topic, 1)
    text = await shown_in_time(bus)
    monkeypatch.setattr(bus_module, "_LOOK_EVERY", 3600.0)
    await bus.purge(group)
    assert await neglected(bus) == [text]


async def test_many_groups_and_long_names_do_not_make_it_long(bus: Bus, topic: str) -> None:
    for number in range(24):
        topics = [f"{topic}:{n}" for n in range(25)]
        await bus.declare_group(f"{number}:{'é' * 100}", topics)
    await bus.publish(f"{topic}:0", 1)
    found: list[str] = []

    async def all_there() -> bool:
        found[:] = await neglected(bus)
        return len(found) == 21

    await eventually(all_there, WITHIN)
    assert found[-1] == "nobody consumes 4 more groups"
    assert "and 5 more" in found[0]


async def test_health_answers_though_the_figures_do_not_come(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never() -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(bus, "inspect", never)
    monkeypatch.setattr(bus_module, "_LOOK_FOR", 0.1)
    begin = time.monotonic()
    health = await bus.health()
    assert time.monotonic() - begin < 5.0
    assert (health["ok"], health["state"]) == (True, "live")
