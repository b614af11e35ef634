"""Rules B1-B12, B38, B41, B68 and B69: names, signatures, configuration."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest

from eventbus import connect
from eventbus.compat.backendai import EventDispatcher, EventHandler
from eventbus.compat.backendai import agent as era_a_agent
from eventbus.compat.backendai import events as era_b
from eventbus.compat.backendai.connection import Options, address_of, connected_to
from eventbus.compat.backendai.types import aobject
from eventbus.errors import ConfigError
from eventbus.testing import eventually

from .conftest import World
from .support import Seen, Server

NAMES = {
    "eventbus.compat.backendai": "EventDispatcher EventHandler EventCallback",
    "eventbus.compat.backendai.events": (
        "AbstractEvent EventCallback EventDispatcher EventHandler EventProducer CoalescingOptions "
        "CoalescingState EmptyEventArgs GenericAgentEventArgs KernelCreationEventArgs "
        "KernelTerminationEventArgs SessionCreationEventArgs SessionTerminationEventArgs "
        "SessionResultEventArgs GenericSessionEventArgs BgtaskDoneEventArgs"
    ),
    "eventbus.compat.backendai.background": (
        "BackgroundTaskManager ProgressReporter BackgroundTask TaskResult MAX_BGTASK_ARCHIVE_PERIOD"
    ),
    "eventbus.compat.backendai.types": (
        "BackgroundTaskEventArgs AgentId KernelId SessionId LogSeverity aobject"
    ),
    "eventbus.compat.backendai.agent": "AgentEventProducer",
}


@pytest.mark.parametrize("module", NAMES)
def test_b1_every_name_is_there(module: str) -> None:
    found = importlib.import_module(module)
    for name in NAMES[module].split():
        assert hasattr(found, name), name
        assert name in found.__all__


def test_b1_importing_needs_neither_redis_nor_aiohttp() -> None:
    code = (
        "import sys\n"
        "for name in ('aiohttp', 'aioredis', 'redis', 'starlette'): sys.modules[name] = None\n"
        + "\n".join(f"import {module}" for module in NAMES)
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=60)


def test_b1_the_archive_period_is_a_day() -> None:
    from eventbus.compat.backendai.background import MAX_BGTASK_ARCHIVE_PERIOD

    assert MAX_BGTASK_ARCHIVE_PERIOD == 86400


async def test_b2_aobject_is_made_in_three_steps() -> None:
    order: list[Any] = []

    class Base(aobject):
        def __init__(self, one: int, *, two: int) -> None:
            order.append(("init", one, two))

        async def __ainit__(self) -> None:
            await asyncio.sleep(0)
            order.append("base")

    class Sub(Base):
        async def __ainit__(self) -> None:
            await super().__ainit__()
            order.append("sub")

    made = await Sub.new(1, two=2)
    assert type(made) is Sub
    assert order == [("init", 1, 2), "base", "sub"]


async def test_b2_subclasses_of_the_dispatcher_register_in_ainit(world: World) -> None:
    seen = Seen()

    class Mine(EventDispatcher):
        async def __ainit__(self) -> None:
            await super().__ainit__()
            self.subscribe("e", None, seen)

    d = await world.a(Mine)
    await d.produce_event("e")
    await seen.count(1)


async def test_b3_the_surface_of_era_a(world: World) -> None:
    d = await world.a()
    for name in ("consume", "unconsume", "subscribe", "unsubscribe"):
        assert not inspect.iscoroutinefunction(getattr(d, name))
    for name in ("close", "produce_event", "dispatch_consumers", "dispatch_subscribers"):
        assert inspect.iscoroutinefunction(getattr(d, name))
    handler = d.consume("e", None, Seen())
    assert handler in d.consumers["e"]
    assert isinstance(handler, EventHandler)
    sub = d.subscribe("s", None, Seen())
    assert set(d.subscribers["s"]) == {sub}
    assert isinstance(d.producer_lock, asyncio.Lock)
    for name in ("redis_producer", "redis_consumer", "redis_subscriber"):
        assert getattr(d, name) is not None
    parameters = inspect.signature(EventDispatcher.produce_event).parameters
    assert parameters["agent_id"].default == "manager"
    assert parameters["args"].default == ()


class Shared:
    def __init__(self, url: str) -> None:
        self.url = url
        self.asked: list[int] = []

    def get_redis_url(self, db: int = 0) -> Any:
        self.asked.append(db)
        return _Url(self.url)


class _Url:
    def __init__(self, text: str) -> None:
        self.text = text

    def __str__(self) -> str:
        return self.text


async def test_b4_two_arguments_and_nothing_else_is_read(world: World) -> None:
    shared = Shared(world.url)
    d = await EventDispatcher.new({"debug": {"log-events": False}}, shared, **world.options)
    world.made.append(d)
    assert shared.asked == [4]
    seen = Seen()
    d.subscribe("e", None, seen)
    await d.produce_event("e")
    await seen.count(1)


async def test_b4_one_argument(redis: Server) -> None:
    app = {
        "config": {
            "redis": {
                "addr": SimpleNamespace(as_sockaddr=lambda: ("127.0.0.1", redis.port)),
                "password": "",
            },
            "debug": {"log-events": True},
        }
    }
    assert address_of((app,)) == (
        {"endpoints": [{"host": "127.0.0.1", "port": redis.port}], "db": 4, "net": {}},
        True,
    )
    d, seen = await EventDispatcher.new(app), Seen()
    d.consume("e", None, seen)
    await d.produce_event("e")
    await seen.count(1)
    await d.close()


def test_b4_the_password_is_taken_when_there_is_one() -> None:
    app = {
        "config": {
            "redis": {
                "addr": SimpleNamespace(as_sockaddr=lambda: ("h", 1)),
                "password": "secret",
            },
            "debug": {"log-events": False},
        }
    }
    assert address_of((app,))[0]["net"] == {"password": "secret"}  # type: ignore[index]


def test_b5_own_options_and_their_defaults() -> None:
    assert vars(Options()) == {
        "bus": None,
        "wire": "backendai",
        "consumer_group": "manager",
        "autostart": True,
        "at_least_once": True,
        "lease": 30.0,
        "concurrency": 1000,
        "drain_timeout": 1.0,
        "on_gap": None,
        "consumer_exception_handler": None,
        "subscriber_exception_handler": None,
        "observer": None,
    }


async def test_b5_a_bus_or_url_instead_of_the_configuration() -> None:
    async with connect("memory://") as bus:
        for where in (bus, "memory://b5"):
            d, seen = await EventDispatcher.new(bus=where), Seen()
            d.subscribe("e", None, seen)
            await d.produce_event("e")
            await seen.count(1)
            await d.close()
        assert bus.state == "live"
    with pytest.raises(ConfigError, match="wire"):
        await EventDispatcher.new(bus="memory://", wire="other")
    with pytest.raises(TypeError):
        await EventDispatcher.new()


async def test_b5_groups_get_a_copy_each() -> None:
    async with connect("memory://") as bus:
        one = await EventDispatcher.new(bus=bus, consumer_group="manager")
        two = await EventDispatcher.new(bus=bus, consumer_group="audit")
        first, second = Seen(), Seen()
        one.consume("e", None, first)
        two.consume("e", None, second)
        await one.produce_event("e")
        await first.count(1)
        await second.count(1)
        await one.close()
        await two.close()


def test_b6_handlers_are_immutable_and_compared_by_identity() -> None:
    def callback(context: Any, agent_id: str, event_name: str, *args: Any) -> None: ...

    one, two = EventHandler(1, callback), EventHandler(1, callback)
    assert (one.context, one.callback) == (1, callback)
    assert one != two
    assert len({one, two}) == 2
    with pytest.raises(AttributeError):
        one.context = 2  # type: ignore[misc]
    assert EventHandler[int] is not None


async def test_b7_the_agents_producer_has_its_own_signature(world: World) -> None:
    d, seen = await world.a(), Seen()
    d.subscribe("kernel_log", None, seen)
    config = {
        "agent": {"id": "i-7"},
        "debug": {"log-heartbeats": False},
        "redis": {"addr": None, "password": None},
    }
    p = await era_a_agent.AgentEventProducer.new(config, bus=world.url, **world.options)
    world.made.append(p)
    await p.produce_event("kernel_log", "kid", "cid")
    await d.produce_event("kernel_log", ("kid", "cid"), agent_id="i-7")
    await seen.count(2)
    assert seen[0] == seen[1] == (None, "i-7", "kernel_log", "kid", "cid")
    assert isinstance(p.producer_lock, asyncio.Lock)
    assert p.redis_producer_pool is not None


async def test_b7_usable_as_a_mixin(redis: Server) -> None:
    class Agent(era_a_agent.AgentEventProducer):
        def __init__(self, config: Any, name: str) -> None:
            super().__init__(config)
            self.name = name

        async def __ainit__(self) -> None:
            await super().__ainit__()
            await self.produce_event("instance_started", "self-started")

    config = {
        "agent": {"id": "i-8"},
        "debug": {"log-heartbeats": True},
        "redis": {
            "addr": SimpleNamespace(as_sockaddr=lambda: ("127.0.0.1", redis.port)),
            "password": None,
        },
    }
    agent = await Agent.new(config, "x")
    assert redis.command("LLEN", "events.prodcons") == b":1\r\n"
    await agent.close()


async def test_b8_the_small_redis_client_on_every_bus(world: World) -> None:
    d, seen = await world.a(), Seen()
    redis = d.redis_producer
    await redis.flushdb()
    assert await redis.hgetall("h") == {}
    await redis.hmset_dict("h", {"a": "1", "b": 2})
    pipe = redis.pipeline()
    pipe.hmset_dict("h", {"b": "3"})
    pipe.expire("h", 100)
    pipe.hgetall("h")
    assert (await pipe.execute())[-1] == {"a": "1", "b": "3"}
    await redis.expire("h", 0.05)
    await eventually(lambda: _empty(redis, "h"))
    assert await redis.rpush("l", "x", b"y") == 2
    assert await redis.rpush("l", "z") == 3
    # The bytes of the wire reach the handlers.
    d.subscribe("do_schedule", None, seen)
    d.consume("do_schedule", None, seen)
    data = bytes.fromhex(
        "83aa6576656e745f6e616d65ab646f5f7363686564756c65a86167656e745f6964a76d616e61676572"
        "a46172677390"
    )
    await asyncio.sleep(0.05)
    await redis.publish("events.pubsub", data)
    await redis.rpush("events.prodcons", data)
    await seen.count(2)
    redis.close()
    await redis.wait_closed()


async def _empty(redis: Any, key: str) -> bool:
    return await redis.hgetall(key) == {}


async def test_b8_flushdb_empties_what_waits(world: World) -> None:
    d, seen = await world.a(), Seen()
    d.unconsume("e", d.consume("e", None, seen))
    await asyncio.sleep(0.05)
    await d.produce_event("e")
    await d.redis_producer.flushdb()
    d.consume("e", None, seen)
    await asyncio.sleep(0.2)
    assert seen == []


async def test_b9_the_surface_of_era_b(world: World) -> None:
    d, p = await world.b(), await world.producer()
    opts = {"max_wait": 0.5, "max_batch_size": 32}
    handler = d.consume(era_b.SessionEnqueuedEvent, None, Seen(), opts, name="x.enq")
    assert (handler.event_cls, handler.name, handler.context, handler.coalescing_opts) == (
        era_b.SessionEnqueuedEvent,
        "x.enq",
        None,
        opts,
    )
    state = handler.coalescing_state
    assert (state.batch_size, state.last_added, state.last_handle, state.fut_sync) == (
        0,
        0.0,
        None,
        None,
    )
    d.unconsume(handler)
    sub = d.subscribe(era_b.SessionEnqueuedEvent, None, Seen(), None)
    d.unsubscribe(sub)
    assert not d.consumers
    assert not d.subscribers
    seen = Seen()
    d.consume(era_b.DoScheduleEvent, None, seen)
    await d.dispatch_consumers("do_schedule", "manager", ())
    await d.dispatch_subscribers("do_schedule", "manager", ())
    await seen.count(1)
    assert p.redis_producer is not None
    assert inspect.signature(era_b.EventProducer.produce_event).parameters["source"].default == (
        "manager"
    )
    assert era_b.AbstractEvent.name == "undefined"


async def test_b10_the_connector_is_asked_once() -> None:
    asked = 0

    async def connector() -> str:
        nonlocal asked
        asked += 1
        return "memory://b10"

    d = await era_b.EventDispatcher.new(connector)
    p = await era_b.EventProducer.new(connector, log_events=True)
    seen = Seen()
    d.consume(era_b.DoScheduleEvent, None, seen)
    await p.produce_event(era_b.DoScheduleEvent())
    await seen.count(1)
    assert asked == 2
    await p.close()
    await d.close()


def test_b10_addresses_of_clients_are_taken_over() -> None:
    import redis.asyncio

    client = redis.asyncio.Redis(
        host="r", port=7, db=4, username="u", password="p", ssl=True, ssl_ca_certs="/ca"
    )
    assert connected_to(client) == {
        "endpoints": [{"host": "r", "port": 7}],
        "db": 4,
        "net": {"username": "u", "password": "p", "tls": {"ca": "/ca"}},
    }
    pool = SimpleNamespace(address=("h", 9), db=4, _password="pw")
    expected = {"endpoints": [{"host": "h", "port": 9}], "db": 4, "net": {"password": "pw"}}
    assert connected_to(pool) == expected
    over = SimpleNamespace(address=("h", 9), db=4, connection=pool)
    assert connected_to(over) == expected
    assert connected_to("memory://") == "memory://"
    with pytest.raises(ConfigError, match="connector"):
        connected_to(object())


async def test_b11_handler_names(world: World) -> None:
    d = await world.b()
    seen = Seen()
    made = d.consume(era_b.DoScheduleEvent, None, seen)
    assert made.name.startswith("evh-")
    assert len(made.name) == len("evh-") + 22
    one = d.consume(era_b.DoPrepareEvent, None, seen, name="same")
    two = d.consume(era_b.DoPrepareEvent, None, seen, name="same")
    assert one.name == two.name == "same"
    p = await world.producer()
    await p.produce_event(era_b.DoPrepareEvent())
    await seen.count(2)


async def test_b38_topic_group_payload_and_source_on_other_buses() -> None:
    import msgpack

    async with connect("memory://") as bus:
        d, seen = await EventDispatcher.new(bus=bus), Seen()
        d.consume("e", None, seen)
        async with bus.stream("backendai:e") as stream:
            await d.produce_event("e", (1, ("x", b"\0")), agent_id="i-a")
            event = await anext(stream)
        assert event.topic == "backendai:e"
        assert event.source == "i-a"
        assert event.payload == msgpack.packb((1, ("x", b"\0")), use_bin_type=True)
        (group,) = (await bus.inspect())["groups"]
        assert group["group"] == "manager"
        await seen.count(1)
        await d.produce_event("never-consumed")
        assert (await bus.inspect())["groups"][0]["ready"] == 0
        await d.close()


@pytest.mark.parametrize(
    ("bad", "error"),
    [
        (object(), TypeError),
        ({1, 2}, TypeError),
        (2**64, OverflowError),
        (-(2**63) - 1, OverflowError),
        ([{"deep": {1}}], TypeError),
    ],
    ids=["object", "set", "large", "small", "nested"],
)
async def test_b41_what_cannot_be_encoded_is_named_and_nothing_is_sent(
    world: World, bad: Any, error: type[Exception]
) -> None:
    d, seen = await world.a(), Seen()
    d.consume("e", None, seen)
    d.subscribe("e", None, seen)
    with pytest.raises(error, match=r"event 'e', argument 1"):
        await d.produce_event("e", (0, bad))
    await d.produce_event("e", (0,))
    await seen.count(2)


async def test_b41_uuid_and_datetime_are_refused(world: World) -> None:
    import datetime
    import uuid

    d = await world.a()
    for bad in (uuid.uuid4(), datetime.datetime.now(datetime.UTC)):
        with pytest.raises(TypeError):
            await d.produce_event("e", (bad,))


async def test_b68_names_are_not_translated(world: World) -> None:
    d, p, seen = await world.a(), await world.producer(), Seen()
    d.subscribe("agent_started", None, seen)
    d.subscribe("instance_started", None, seen)
    await p.produce_event(era_b.AgentStartedEvent("self-started"), source="i-a")
    await d.produce_event("instance_started", ("self-started",), agent_id="i-a")
    await seen.count(2)
    assert sorted(call[2] for call in seen) == ["agent_started", "instance_started"]


def test_b69_names_of_no_version_are_not_offered() -> None:
    for name in ("typeguard", "add_typeguard", "start_matcher", "event_logger"):
        for cls in (EventDispatcher, era_b.EventDispatcher, era_b.EventProducer):
            assert not hasattr(cls, name)
