"""DataKnobs contract D58.8 and D79: the examples of the event bus document, import changed only."""

import asyncio
import contextlib
import logging
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from eventbus.compat.dataknobs import Event, EventBus, EventType, create_event_bus

logger = logging.getLogger("application")

QUICK_START = """
import asyncio
from eventbus.compat.dataknobs import create_event_bus, Event, EventType

async def main():
    bus = create_event_bus({"backend": "memory"})
    await bus.connect()

    async def on_event(event: Event) -> None:
        print(f"Received {event.type.value} on {event.topic}")
        print(f"Payload: {event.payload}")

    subscription = await bus.subscribe("my-topic", on_event)
    await bus.publish("my-topic", Event(
        type=EventType.CREATED,
        topic="my-topic",
        payload={"message": "Hello, World!"}
    ))
    await asyncio.sleep(0.1)
    await subscription.cancel()
    await bus.close()

if __name__ == "__main__":
    asyncio.run(main())
"""

RECEIVED = "Received created on my-topic\nPayload: {'message': 'Hello, World!'}\n"


def run(program: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_document_quick_start() -> None:
    done = run(QUICK_START)
    assert done.stdout == RECEIVED
    assert done.stderr == ""


def test_d79_f_the_pause_of_the_quick_start_is_not_needed() -> None:
    program = QUICK_START.replace("    await asyncio.sleep(0.1)\n", "")
    assert program != QUICK_START
    assert run(program).stdout == RECEIVED


# The fixture of the document, and the test that asserts right after publish.


@pytest.fixture
async def event_bus() -> AsyncIterator[EventBus]:
    bus = create_event_bus({"backend": "memory"})
    await bus.connect()
    yield bus
    await bus.close()


async def test_document_publish_subscribe(event_bus: EventBus) -> None:
    received = []

    async def handler(event: Event) -> None:
        received.append(event)

    await event_bus.subscribe("test", handler)
    await event_bus.publish(
        "test", Event(type=EventType.CREATED, topic="test", payload={"key": "value"})
    )
    assert len(received) == 1
    assert received[0].payload["key"] == "value"


def test_document_module_exports() -> None:
    program = """
from eventbus.compat.dataknobs import (
    EventBus,
    create_event_bus,
    Event,
    EventType,
    Subscription,
    InMemoryEventBus,
)
print(isinstance(InMemoryEventBus(), EventBus))
"""
    assert run(program).stdout == "True\n"


def test_document_event_types() -> None:
    assert [one.value for one in EventType] == [
        "created",
        "updated",
        "deleted",
        "activated",
        "deactivated",
        "error",
        "custom",
    ]


async def test_document_subscription_attributes(event_bus: EventBus) -> None:
    async def handler(event: Event) -> None: ...

    subscription = await event_bus.subscribe("knowledge:my-domain", handler)
    assert isinstance(subscription.subscription_id, str)
    assert subscription.topic == "knowledge:my-domain"
    assert subscription.pattern is None
    assert subscription.created_at.tzinfo is not None


async def test_document_multiple_subscribers(event_bus: EventBus) -> None:
    lines: list[str] = []
    counted: list[EventType] = []
    notified: list[Any] = []

    async def logs(event: Event) -> None:
        lines.append(f"LOG: {event.type.value} - {event.payload}")

    async def metrics(event: Event) -> None:
        counted.append(event.type)

    async def notifier(event: Event) -> None:
        notified.append(event.payload)

    await event_bus.subscribe("registry:bots", logs)
    await event_bus.subscribe("registry:bots", metrics)
    await event_bus.subscribe("registry:bots", notifier)
    await event_bus.publish(
        "registry:bots",
        Event(type=EventType.UPDATED, topic="registry:bots", payload={"bot_id": "b1"}),
    )
    assert lines == ["LOG: updated - {'bot_id': 'b1'}"]
    assert counted == [EventType.UPDATED]
    assert notified == [{"bot_id": "b1"}]


async def test_document_topic_conventions(event_bus: EventBus) -> None:
    seen: list[str] = []
    topics = [
        "registry:bots",
        "registry:bots:config",
        "knowledge:my-domain",
        "knowledge:ingestion",
    ]
    for topic in topics:
        await event_bus.subscribe(topic, lambda event: seen.append(event.topic))
    for topic in topics:
        await event_bus.publish(topic, Event(EventType.CUSTOM, topic))
    assert seen == topics


async def test_document_error_handling(
    event_bus: EventBus, caplog: pytest.LogCaptureFixture
) -> None:
    bus = event_bus
    reported: list[Event] = []

    async def process_event(event: Event) -> None:
        raise ValueError(f"cannot process {event.payload['n']}")

    async def safe_handler(event: Event) -> None:
        try:
            await process_event(event)
        except Exception as e:
            logger.exception(f"Failed to process event {event.id}: {e}")  # noqa: G004
            await bus.publish(
                "errors",
                Event(
                    type=EventType.ERROR,
                    topic="errors",
                    payload={"original_event_id": event.id, "error": str(e)},
                ),
            )

    await bus.subscribe("work", safe_handler)
    await bus.subscribe("errors", reported.append)
    event = Event(EventType.CREATED, "work", {"n": 7})
    await bus.publish("work", event)
    assert len(reported) == 1
    assert reported[0].type is EventType.ERROR
    assert reported[0].payload == {
        "original_event_id": event.event_id,
        "error": "cannot process 7",
    }
    assert f"Failed to process event {event.event_id}: cannot process 7" in caplog.messages
    assert not any("Error in event handler" in text for text in caplog.messages)


async def test_document_registry_integration(event_bus: EventBus) -> None:
    bus = event_bus

    class Manager:
        def __init__(self, backend: dict[str, Any], event_bus: EventBus) -> None:
            self.backend, self.event_bus = backend, event_bus
            self.cache = dict(backend)

        async def initialize(self) -> None:
            await self.event_bus.subscribe("registry:bots", self.invalidate)

        async def invalidate(self, event: Event) -> None:
            self.cache.pop(event.payload["bot_id"], None)

    async def on_config_change(bot_id: str, config: dict[str, Any]) -> None:
        await bus.publish(
            "registry:bots",
            Event(
                type=EventType.UPDATED,
                topic="registry:bots",
                payload={"bot_id": bot_id, "config": config},
            ),
        )

    manager = Manager(backend={"b1": {}, "b2": {}}, event_bus=bus)
    await manager.initialize()
    await on_config_change("b1", {"model": "m"})
    assert manager.cache == {"b2": {}}


SHUTDOWN = """
import asyncio, signal
from eventbus.compat.dataknobs import create_event_bus, Event, EventType

async def main(config):
    subscriptions = []
    stopped = asyncio.Event()
    bus = create_event_bus(config)
    await bus.connect()
    subscriptions.append(await bus.subscribe("work", lambda event: print("handled", flush=True)))
    subscriptions.append(await bus.subscribe("work:*", print, pattern="work:*"))

    async def shutdown():
        for sub in subscriptions:
            await sub.cancel()
        await bus.close()
        stopped.set()

    loop = asyncio.get_event_loop()
    for sig in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(sig, lambda: asyncio.create_task(shutdown()))
    await bus.publish("work", Event(EventType.CREATED, "work"))
    print("ready", flush=True)
    await stopped.wait()
    print("stopped with", bus.subscription_count, "subscriptions", flush=True)

asyncio.run(main({"backend": "memory"}))
"""


@contextlib.contextmanager
def running(program: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_document_graceful_shutdown(how: signal.Signals) -> None:
    with running(SHUTDOWN) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "handled\n"
        assert process.stdout.readline() == "ready\n"
        process.send_signal(how)
        output, errors = process.communicate(timeout=60)
        assert output == "stopped with 0 subscriptions\n"
        assert errors == ""
        assert process.returncode == 0


# D79, what the document says and the original did not do


def test_d79_a_events_are_immutable() -> None:
    event = Event(EventType.CREATED, "t")
    with pytest.raises(AttributeError):
        event.topic = "other"  # type: ignore[misc]


def test_d79_b_events_have_an_id() -> None:
    event = Event(EventType.CREATED, "t")
    assert event.id == event.event_id


async def test_d79_e_patterns_use_fnmatch_syntax(event_bus: EventBus) -> None:
    seen: list[str] = []
    pattern = "registry:[!x]*"
    await event_bus.subscribe(pattern, lambda event: seen.append(event.topic), pattern=pattern)
    for topic in ("registry:bots", "registry:x", "registry:bots:config"):
        await event_bus.publish(topic, Event(EventType.CUSTOM, topic))
    assert seen == ["registry:bots", "registry:bots:config"]


async def test_d79_f_memory_delivers_synchronously(event_bus: EventBus) -> None:
    seen: list[Event] = []

    async def handler(event: Event) -> None:
        await asyncio.sleep(0)
        seen.append(event)

    await event_bus.subscribe("t", handler)
    publish = event_bus.publish("t", Event(EventType.CREATED, "t"))
    assert seen == []
    await publish
    assert len(seen) == 1
