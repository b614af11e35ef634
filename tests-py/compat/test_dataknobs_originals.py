"""Libraries that import the original package, on buses of ours: with and without ``install``."""

from __future__ import annotations

import asyncio
import copy
import importlib
import itertools
import json
import os
import pickle
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import dataknobs_common
import dataknobs_manager
import pytest
from dataknobs_common.events import Event as TheirEvent
from dataknobs_common.events import EventType as TheirType
from dataknobs_manager import GONE, TOPIC, BotManager

import eventbus
from eventbus import Event, EventType, create_event_bus
from eventbus.compat.dataknobs import install, uninstall
from servers.shared import shared_postgres, shared_redis

Eventually = Callable[..., Awaitable[Any]]
MANAGER = Path(dataknobs_manager.__file__)
BACKENDS = ["memory", "memory-queued", "redis", "postgres"]

_numbers = itertools.count(1)


def _where(backend: str) -> dict[str, Any]:
    if backend == "redis":
        return {"host": "127.0.0.1", "port": shared_redis().port}
    return {"connection_string": shared_postgres().url()}


@pytest.fixture(params=BACKENDS)
def config(request: pytest.FixtureRequest) -> dict[str, Any]:
    """The configuration of a bus: each backend in turn, on a prefix of the test's own."""
    if request.param.startswith("memory"):
        queued = request.param.endswith("queued")
        return {"backend": "memory", "delivery": "queued" if queued else "inline"}
    prefix = f"or{os.getpid()}x{next(_numbers)}"
    own = {"prefix": prefix} if request.param == "redis" else {"schema": prefix}
    return {
        "backend": request.param,
        "channel_prefix": prefix,
        **_where(request.param),
        **own,
    }


@pytest.fixture
async def bus(config: dict[str, Any]) -> AsyncIterator[Any]:
    """A connected bus of ``create_event_bus``."""
    made = create_event_bus(config)
    await made.connect()
    yield made
    await made.close()


def their_event(**fields: Any) -> TheirEvent:
    return TheirEvent(TheirType.UPDATED, f"{TOPIC}:b1", {"bot_id": "b1"}, **fields)


# Types and events


@pytest.mark.parametrize("member", list(EventType))
def test_e1_an_event_type_equals_the_original_s_member_from_both_sides(member: EventType) -> None:
    theirs: Any = TheirType[member.name]
    ours: Any = member
    others: Any = [one for one in TheirType if one is not theirs]
    assert ours == theirs
    assert theirs == ours
    assert (ours != theirs) is False
    assert (theirs != ours) is False
    assert hash(ours) == hash(theirs)
    assert ours in (TheirType.ERROR, theirs)
    assert theirs in (EventType.ERROR, ours)
    assert ours in {theirs}
    assert theirs in {ours: 1}
    assert len({ours, theirs}) == 1
    assert ours not in others
    assert not any(ours == one or one == ours for one in others)


def test_e1_an_event_type_equals_nothing_else_and_keeps_its_identity() -> None:
    ours: Any = EventType.CREATED
    assert ours != "created"
    assert ours != EventType.UPDATED
    assert ours not in ("created", None, 5)
    assert pickle.loads(pickle.dumps(ours)) is ours
    assert copy.deepcopy(ours) is ours
    assert EventType("created") is ours
    match ours:
        case TheirType.CREATED:
            pass
        case _:
            pytest.fail("a member of ours matches the original's")


def test_e1_an_event_equals_the_original_s_with_the_same_eight_fields() -> None:
    theirs: Any = their_event(source="s")
    ours: Any = Event(
        EventType.UPDATED,
        theirs.topic,
        dict(theirs.payload),
        theirs.timestamp,
        theirs.event_id,
        "s",
    )
    assert ours == theirs
    assert theirs == ours
    assert [theirs] == [ours]
    theirs.source = "another"
    assert ours != theirs
    assert theirs != ours


# Publish and handle


async def test_e1_the_original_s_event_is_published_as_an_event(
    bus: Any, eventually: Eventually
) -> None:
    seen: list[Any] = []
    await bus.subscribe(TOPIC, seen.append)
    events: list[Any] = [their_event(correlation_id="c", metadata={"k": 1}) for _ in range(3)]
    await bus.publish(TOPIC, events[0])
    await bus.publish_many([(TOPIC, events[1])])
    bus.publish_nowait(TOPIC, events[2])
    await bus.flush()
    async with bus.transaction() as tx:
        tx.publish(TOPIC, events[0], correlation_id="of the call")
    await eventually(lambda: len(seen) == 4)
    assert all(type(event) is Event for event in seen)
    assert seen[:3] == events
    assert all(event.type in GONE and event.type is EventType.UPDATED for event in seen)
    assert seen[3].event_id == events[0].event_id
    assert seen[3].correlation_id == "of the call"


async def test_e1_in_memory_payload_and_metadata_stay_the_very_objects() -> None:
    bus = eventbus.InMemoryEventBus()
    seen: list[Any] = []
    await bus.subscribe(TOPIC, seen.append)
    event: Any = their_event(metadata={"k": 1})
    await bus.publish(TOPIC, event)
    assert seen[0].payload is event.payload
    assert seen[0].metadata is event.metadata
    assert seen[0].timestamp is event.timestamp


async def test_e1_a_subclass_of_the_original_s_event_is_an_event_too(
    bus: Any, eventually: Eventually
) -> None:
    class BotEvent(TheirEvent):
        pass

    seen: list[Any] = []
    await bus.subscribe(TOPIC, seen.append)
    await bus.publish(TOPIC, BotEvent(TheirType.CREATED, TOPIC, {"bot_id": "b1"}))
    await eventually(lambda: seen)
    assert (seen[0].type, seen[0].payload) == (TheirType.CREATED, {"bot_id": "b1"})


async def test_e1_a_handler_annotated_with_the_original_s_event_gets_the_event(
    bus: Any, eventually: Eventually
) -> None:
    seen: list[Any] = []

    async def on_change(event: TheirEvent) -> None:
        seen.append(event)

    class Listener:
        def on_change(self, event: TheirEvent) -> None:
            seen.append(event)

    async def on_batch(events: list[TheirEvent]) -> None:
        seen.extend(events)

    await bus.subscribe(TOPIC, on_change)
    await bus.subscribe("registry:*", Listener().on_change, pattern="registry:*")
    await bus.consume(TOPIC, on_change, group="one")
    await bus.consume(TOPIC, on_batch, group="batch", batch=5)
    await bus.publish(TOPIC, Event(EventType.DELETED, f"{TOPIC}:b1", {"bot_id": "b1"}))
    await eventually(lambda: len(seen) == 4)
    assert all(type(event) is Event and event.type in GONE for event in seen)
    assert await bus.dead_letters("one").list() == []
    assert await bus.dead_letters("batch").list() == []


async def test_e1_a_native_bus_takes_events_and_annotations_of_the_original_too() -> None:
    seen: list[Any] = []

    async def on_change(event: TheirEvent) -> None:
        seen.append(event)

    async with eventbus.connect("memory://") as bus:
        await bus.subscribe(TOPIC, on_change)
        event: Any = their_event()
        await bus.publish(TOPIC, event)
    assert seen == [event]
    assert type(seen[0]) is Event


# Registry managers


async def test_e1_caches_of_managers_in_one_process_are_invalidated(
    bus: Any, eventually: Eventually
) -> None:
    store = {"b1": "one", "b2": "two"}
    first, second = BotManager(store, bus), BotManager(store, bus)
    await first.start()
    await second.start()
    assert [second.get(name) for name in ("b1", "b2")] == ["one", "two"]
    await first.change("b1", "new")
    await eventually(lambda: len(first.seen) == len(second.seen) == 1)
    assert second.cache == {"b2": "two"}
    assert second.get("b1") == "new"
    await first.change("b2", None)
    await eventually(lambda: len(second.seen) == 2)
    assert second.cache == {"b1": "new"}
    assert second.get("b2") is None
    await first.change("b3", "three")
    await eventually(lambda: len(second.seen) == 3)
    assert [kind for kind, _ in second.seen] == ["updated", "deleted", "created"]
    await first.stop()
    await second.stop()


@pytest.mark.parametrize("backend", ["redis", "postgres"])
async def test_e1_caches_of_managers_in_two_processes_are_invalidated(
    backend: str, eventually: Eventually
) -> None:
    prefix = f"or{os.getpid()}x{next(_numbers)}"
    own = {"prefix": prefix} if backend == "redis" else {"schema": prefix}
    where = {**_where(backend), **own}
    bus: Any = create_event_bus({"backend": backend, "channel_prefix": prefix, **where})
    await bus.connect()
    here = BotManager({"b1": "one", "b2": "two"}, bus)
    await here.start()
    assert here.get("b2") == "two"
    pipe = asyncio.subprocess.PIPE
    arguments = [str(MANAGER), backend, json.dumps(where), prefix]
    child = await asyncio.create_subprocess_exec(
        sys.executable, *arguments, stdin=pipe, stdout=pipe
    )
    assert child.stdout is not None
    assert child.stdin is not None
    try:
        async with asyncio.timeout(30):
            assert await child.stdout.readline() == b"ready\n"
            await here.change("b1", "new")
            told = json.loads(await child.stdout.readline())
            assert told == {"type": "updated", "gone": True, "cache": ["b2"]}
            child.stdin.write(b"b2\n")
            await child.stdin.drain()
            await eventually(lambda: ("created", "b2") in here.seen)
            child.stdin.write(b"\n")
            await child.stdin.drain()
            assert await child.wait() == 0
    finally:
        if child.returncode is None:
            child.kill()
            await child.wait()
        await bus.close()


# In the place of the original


def _state() -> dict[str, Any]:
    found = {name: one for name, one in sys.modules.items() if name.startswith("dataknobs_common")}
    return {**found, "parent": dict(vars(dataknobs_common))}


@pytest.fixture
def installed() -> Iterator[None]:
    install()
    yield
    uninstall()


@pytest.mark.parametrize(
    "name", ["events", *(f"events.{one}" for one in ("types", "bus", "memory"))]
)
def test_e1_install_puts_our_modules_in_the_place_of_the_original_s(
    name: str, installed: None
) -> None:
    theirs = importlib.import_module(f"dataknobs_common.{name}")
    assert theirs is importlib.import_module(f"eventbus.compat.dataknobs{name[6:]}")


def test_e1_after_install_every_way_of_importing_gives_ours(installed: None) -> None:
    namespace: dict[str, Any] = {}
    exec("from dataknobs_common.events import Event, EventType, create_event_bus", namespace)
    exec("from dataknobs_common.events.redis import RedisEventBus", namespace)
    exec("from dataknobs_common.events.postgres import PostgresEventBus", namespace)
    exec("from dataknobs_common.events.registry import event_bus_backends", namespace)
    exec("from dataknobs_common.events.config import RedisEventBusConfig", namespace)
    exec("from dataknobs_common import InMemoryEventBus, Subscription", namespace)
    for name, value in namespace.items():
        if not name.startswith("__"):
            assert value is getattr(eventbus, name), name
    import dataknobs_common.events as bound

    assert bound.Event is Event
    assert dataknobs_common.events.types.EventType is EventType


@pytest.mark.parametrize("name", ["sqs", "exceptions", "install", "_resilient_loop"])
def test_e1_after_install_nothing_is_found_that_the_original_or_we_have_not(
    name: str, installed: None
) -> None:
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module(f"dataknobs_common.events.{name}")


def test_e1_uninstall_undoes_install_exactly_and_both_are_idempotent() -> None:
    before = _state()
    uninstall()
    assert _state() == before
    install()
    install()
    assert _state() != before
    uninstall()
    assert _state() == before
    uninstall()
    assert _state() == before
    assert importlib.import_module("dataknobs_common.events").Event is TheirEvent


async def test_e1_names_that_were_bound_before_install_stay_and_work(
    installed: None, eventually: Eventually
) -> None:
    bus: Any = dataknobs_common.create_event_bus({"backend": "memory"})
    assert isinstance(bus, eventbus.InMemoryEventBus)
    manager = BotManager({"b1": "one"}, bus)
    assert dataknobs_manager.Event is TheirEvent
    await bus.connect()
    await manager.start()
    manager.get("b1")
    await manager.change("b1", "new")
    assert manager.cache == {}
    await bus.close()
