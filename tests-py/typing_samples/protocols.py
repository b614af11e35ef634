"""The ``EventBus`` protocol: the buses of the package fulfil it, and so can a class of yours."""

# Every misuse below must be found by mypy and by pyright.
# pyright: reportUnnecessaryTypeIgnoreComment=true

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, assert_type

from eventbus import (
    Bus,
    Event,
    EventBus,
    InMemoryEventBus,
    Subscription,
    connect,
    create_event_bus,
    create_event_bus_async,
    event_bus_backends,
)
from eventbus.compat import dataknobs
from eventbus.testing import ManualBus, Recorder, eventually, manual_bus, wait_for_event


class Loopback:
    """A bus of somebody else, written against the documented contract."""

    def __init__(self) -> None:
        self.handlers: dict[str, Callable[[Event], Any]] = {}

    async def connect(self) -> None: ...

    async def close(self) -> None:
        self.handlers.clear()

    async def publish(self, topic: str, event: Event) -> None:
        handler = self.handlers.get(topic)
        if handler is not None:
            handler(event)

    async def subscribe(
        self, topic: str, handler: Callable[[Event], Any], pattern: str | None = None
    ) -> Subscription:
        self.handlers[topic] = handler
        return Subscription("1", topic, handler, pattern)


class Half:
    async def connect(self) -> None: ...

    async def close(self) -> None: ...


async def application(bus: EventBus, event: Event) -> None:
    got: list[Event] = []
    subscription = await bus.subscribe("a", got.append)
    assert_type(subscription, Subscription)
    await bus.publish("a", event)
    await subscription.cancel()
    await bus.publish("a", {"id": 7})  # type: ignore[arg-type]


async def use(event: Event) -> None:
    await application(Loopback(), event)
    await application(connect("memory://"), event)
    await application(InMemoryEventBus(), event)
    await application(InMemoryEventBus({"queue_size": 5}), event)
    await application(manual_bus(), event)
    await application(dataknobs.create_event_bus({"backend": "memory"}), event)
    assert_type(create_event_bus({"backend": "memory"}), EventBus)
    assert_type(await create_event_bus_async(), EventBus)
    event_bus_backends.register("loopback", lambda config: Loopback())
    made = event_bus_backends.create("loopback")
    if isinstance(made, Bus):
        await made.drain()
    await application(Half(), event)  # type: ignore[arg-type]
    InMemoryEventBus(5)  # type: ignore[arg-type]


async def tests() -> None:
    async with manual_bus(datetime(2030, 1, 1, tzinfo=UTC), queue_size=5) as bus:
        assert_type(bus, ManualBus)
        recorder = Recorder()
        await bus.subscribe("a", recorder)
        await bus.consume("a", Recorder(lambda event: event.topic))
        await bus.advance(timedelta(hours=1))
        assert_type(await recorder.wait_for(2, timeout=1.0), list[Event])
        assert_type(recorder.topics, list[str])
        assert_type(await wait_for_event(bus, "a", lambda event: event.topic == "a"), Event)
        await eventually(lambda: recorder.events)
        await bus.advance("1h")  # type: ignore[arg-type]
        manual_bus("2030-01-01")  # type: ignore[arg-type]
