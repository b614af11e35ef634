"""W1: memory fan-out. An event is built per publish and has been handled when the await returns."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from importlib.util import find_spec
from itertools import count
from typing import Any

from benches.measure import OURS, Case, Stopwatch, Target, Workload, check
from benches.payload import PAYLOAD, TOPIC, PlainEvent
from eventbus import Event, EventType, connect

CREATED = EventType.CREATED
PREBUILT = "eventbus, one event"
FLOOR = "await loop, eventbus.Event"
DATAKNOBS = "dataknobs"
DATAKNOBS_PREBUILT = "dataknobs, one event"

Handler = Callable[..., Awaitable[None]]


def workloads() -> list[Workload]:
    """Return the fan-out to 1, 10 and 100 handlers."""
    return [fan_out(handlers, n) for handlers, n in ((1, 40_000), (10, 15_000), (100, 2_000))]


def fan_out(handlers: int, n: int) -> Workload:
    """Return the workload with so many handlers."""
    cases = [
        Case(OURS, eventbus(handlers, prebuilt=False)),
        Case(PREBUILT, eventbus(handlers, prebuilt=True)),
        Case("eventbus, plain payload", eventbus_payload(handlers)),
        Case(FLOOR, floor(handlers, ours=True)),
        Case("await loop, slots dataclass", floor(handlers, ours=False)),
    ]
    targets = [
        Target(OURS, FLOOR, must=0.7, aim=0.9),
    ]
    missing = []
    if find_spec("dataknobs_common"):
        cases.append(Case(DATAKNOBS, dataknobs(handlers, prebuilt=False)))
        cases.append(Case(DATAKNOBS_PREBUILT, dataknobs(handlers, prebuilt=True)))
        targets.append(Target(OURS, DATAKNOBS, must=1.5 if handlers == 100 else 3.0))
        targets.append(Target(PREBUILT, DATAKNOBS_PREBUILT, aim=1.5))
    else:
        missing.append("dataknobs-common")
    if find_spec("blinker"):
        cases.append(Case("blinker", blinker(handlers)))
    else:
        missing.append("blinker")
    if find_spec("pyee"):
        cases.append(Case("pyee", pyee(handlers)))
    else:
        missing.append("pyee")
    name = f"memory fan-out, {handlers} handler{'s' if handlers > 1 else ''}"
    return Workload("W1", name, n, cases, targets, missing)


def counting(handlers: int) -> tuple[Callable[[], int], list[Handler]]:
    """Return a counter of calls, and distinct handlers that do nothing else than count."""
    tick = count().__next__

    def one() -> Handler:
        async def handler(_event: Any) -> None:
            tick()

        return handler

    return tick, [one() for _ in range(handlers)]


def eventbus(handlers: int, *, prebuilt: bool) -> Any:
    """Await `publish` of an `Event`."""

    async def run(n: int, watch: Stopwatch) -> None:
        calls, all_handlers = counting(handlers)
        async with connect("memory://") as bus:
            for handler in all_handlers:
                await bus.subscribe(TOPIC, handler)
            publish = bus.publish
            if prebuilt:
                event = Event(CREATED, TOPIC, PAYLOAD)
                with watch.running():
                    for _ in range(n):
                        await publish(TOPIC, event)
            else:
                with watch.running():
                    for _ in range(n):
                        await publish(TOPIC, Event(CREATED, TOPIC, PAYLOAD))
        check(OURS, calls(), n * handlers)

    return run


def eventbus_payload(handlers: int) -> Any:
    """Await `publish` of a plain payload: the bus makes the event."""

    async def run(n: int, watch: Stopwatch) -> None:
        calls, all_handlers = counting(handlers)
        async with connect("memory://") as bus:
            for handler in all_handlers:
                await bus.subscribe(TOPIC, handler)
            publish = bus.publish
            with watch.running():
                for _ in range(n):
                    await publish(TOPIC, PAYLOAD)
        check(OURS, calls(), n * handlers)

    return run


def floor(handlers: int, *, ours: bool) -> Any:
    """Await every handler in a loop: no bus can be simpler."""

    async def run(n: int, watch: Stopwatch) -> None:
        calls, all_handlers = counting(handlers)
        if ours:
            with watch.running():
                for _ in range(n):
                    event = Event(CREATED, TOPIC, PAYLOAD)
                    for handler in all_handlers:
                        await handler(event)
        else:
            with watch.running():
                for _ in range(n):
                    plain = PlainEvent("created", TOPIC, PAYLOAD)
                    for handler in all_handlers:
                        await handler(plain)
        check("await loop", calls(), n * handlers)

    return run


def dataknobs(handlers: int, *, prebuilt: bool) -> Any:
    """Await `publish` of the original in-memory bus with its own event."""
    from dataknobs_common import events

    created = events.EventType.CREATED

    async def run(n: int, watch: Stopwatch) -> None:
        calls, all_handlers = counting(handlers)
        bus = events.InMemoryEventBus()
        await bus.connect()
        for handler in all_handlers:
            await bus.subscribe(TOPIC, handler)
        publish, build = bus.publish, events.Event
        if prebuilt:
            event = build(created, TOPIC, PAYLOAD)
            with watch.running():
                for _ in range(n):
                    await publish(TOPIC, event)
        else:
            with watch.running():
                for _ in range(n):
                    await publish(TOPIC, build(created, TOPIC, PAYLOAD))
        await bus.close()
        check(DATAKNOBS, calls(), n * handlers)

    return run


def blinker(handlers: int) -> Any:
    """Await `send_async` of a signal; the slots dataclass is built per send."""
    from blinker import Signal

    async def run(n: int, watch: Stopwatch) -> None:
        calls, all_handlers = counting(handlers)
        signal = Signal(TOPIC)
        for handler in all_handlers:
            signal.connect(handler)
        send = signal.send_async
        with watch.running():
            for _ in range(n):
                await send(PlainEvent("created", TOPIC, PAYLOAD))
        check("blinker", calls(), n * handlers)

    return run


def pyee(handlers: int) -> Any:
    """Emit and wait for completion; the slots dataclass is built per emit."""
    from pyee.asyncio import AsyncIOEventEmitter

    async def run(n: int, watch: Stopwatch) -> None:
        calls, all_handlers = counting(handlers)
        emitter = AsyncIOEventEmitter()
        for handler in all_handlers:
            emitter.on(TOPIC, handler)
        emit, complete = emitter.emit, emitter.wait_for_complete
        with watch.running():
            for _ in range(n):
                emit(TOPIC, PlainEvent("created", TOPIC, PAYLOAD))
                await complete()
        check("pyee", calls(), n * handlers)

    return run
