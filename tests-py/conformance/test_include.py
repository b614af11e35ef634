"""Include: starting what a registry, a module or an instance has registered."""

from __future__ import annotations

import asyncio
import types

import pytest

from conformance.support import WITHIN, figures
from eventbus import Bus, Consumer, Event, Registry, RetryPolicy, Subscription, event_handler
from eventbus.errors import EventBusError, InvalidArgumentError
from eventbus.testing import Recorder


async def test_a_registry_starts_subscriptions_and_consumers(
    bus: Bus, topic: str, group: str
) -> None:
    registry, sub, con = Registry(), Recorder(), Recorder()
    registry.event_handler(topic, topic + ":2", pattern=topic + ":p*")(sub)
    registry.event_handler(topic, group=group, concurrency=2, retry=RetryPolicy(max_attempts=1))(
        con
    )
    started = await bus.include(registry)
    assert [type(one) for one in started] == [Subscription, Subscription, Subscription, Consumer]
    assert started[-1].options.concurrency == 2
    for name in (topic, topic + ":2", topic + ":px"):
        await bus.publish(name, name)
    await sub.wait_for(3, WITHIN)
    await con.wait_for(1, WITHIN)
    assert sub.payloads == [topic, topic + ":2", topic + ":px"]
    assert con.payloads == [topic]
    assert (await figures(bus, group))["accepted"] == 1


async def test_a_module_starts_its_own_handlers_only(bus: Bus, topic: str) -> None:
    module = types.ModuleType("handlers_of_" + topic.replace(":", "_"))
    seen: list[str] = []

    def mine(event: Event) -> None:
        seen.append(event.payload)

    mine.__module__, mine.__qualname__ = module.__name__, "mine"
    assert event_handler(topic)(mine) is mine
    await bus.include(module)
    await bus.publish(topic, "here")
    await bus.wait_idle(WITHIN)
    assert seen == ["here"]


async def test_an_instance_starts_its_methods_bound_to_it(bus: Bus, topic: str) -> None:
    class Service:
        def __init__(self) -> None:
            self.seen: list[str] = []

        @event_handler(topic)
        async def on_event(self, event: Event) -> None:
            self.seen.append(event.payload)

    class Special(Service):
        pass

    one, two = Service(), Special()
    await bus.include(one)
    await bus.include(two)
    await bus.publish(topic, "x")
    await bus.wait_idle(WITHIN)
    assert one.seen == two.seen == ["x"]


async def test_the_calling_convention_is_a_field(bus: Bus, topic: str) -> None:
    # One list each: nothing orders two handlers of one event.
    registry, payloads, arguments = Registry(), list[object](), list[object]()
    registry.event_handler(topic, calls="payload")(payloads.append)
    registry.event_handler(topic, calls="topic_args")(
        lambda name, *args, **kwargs: arguments.append((name, args, kwargs))
    )
    await bus.include(registry)
    payload = {"args": (1, 2), "kwargs": {"three": 3}}
    await bus.publish(topic, payload)
    await bus.wait_idle(WITHIN)
    assert payloads == [payload]
    assert arguments == [(topic, (1, 2), {"three": 3})]


async def test_something_without_handlers_is_refused(bus: Bus) -> None:
    for target in (Registry(), types.ModuleType("empty"), object()):
        with pytest.raises(InvalidArgumentError, match="no handlers"):
            await bus.include(target)


async def test_including_twice_starts_nothing_again_and_says_so(
    bus: Bus, topic: str, group: str, caplog: pytest.LogCaptureFixture
) -> None:
    registry, sub, con = Registry(), Recorder(), Recorder()
    registry.event_handler(topic, pattern=topic + ":*")(sub)
    registry.event_handler(topic, group=group)(con)
    first = await bus.include(registry)
    assert "included before" not in caplog.text
    again = await bus.include(registry)
    assert again == first
    assert f"included before, nothing to start target={registry!r} running=3" in caplog.text
    await bus.publish(topic, 1)
    await bus.wait_idle(WITHIN)
    assert (sub.payloads, con.payloads) == ([1], [1])


async def test_including_at_the_same_time_starts_once(bus: Bus, topic: str, group: str) -> None:
    registry, seen = Registry(), Recorder()
    registry.event_handler(topic, group=group)(seen)
    registry.event_handler(topic)(seen)
    await asyncio.gather(bus.include(registry), bus.include(registry))
    await bus.publish(topic, 1)
    await bus.wait_idle(WITHIN)
    assert seen.payloads == [1, 1]
    assert bus.subscription_count == 1


async def test_including_again_starts_what_is_new_and_what_has_ended(
    bus: Bus, topic: str, caplog: pytest.LogCaptureFixture
) -> None:
    registry, seen = Registry(), Recorder()
    registry.event_handler(topic, topic + ":2")(seen)
    [one, two] = await bus.include(registry)
    assert isinstance(one, Subscription)
    await one.cancel()
    registry.event_handler(topic + ":3")(seen)
    again = await bus.include(registry)
    assert (len(again), two in again, one in again) == (3, True, False)
    assert "included before" not in caplog.text
    for name in (topic, topic + ":2", topic + ":3"):
        await bus.publish(name, name)
    await bus.wait_idle(WITHIN)
    assert sorted(seen.payloads) == [topic, topic + ":2", topic + ":3"]


async def test_what_failed_to_start_is_started_by_the_next_include(
    bus: Bus, topic: str, group: str
) -> None:
    registry, seen = Registry(), Recorder()
    registry.event_handler(topic)(seen)
    registry.event_handler("bad\ntopic")(seen)
    for _ in range(2):
        with pytest.raises(EventBusError, match="control"):
            await bus.include(registry)
        assert bus.subscription_count == 1
