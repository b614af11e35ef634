"""Every kind of bad input: its exception, what the text says, and that nothing is harmed by it."""

from __future__ import annotations

import datetime as dt
import inspect
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest

from eventbus import (
    Bus,
    ConfigError,
    ConsumeOptions,
    EncodeError,
    Event,
    EventType,
    NotFoundError,
    PayloadTooLarge,
    Registry,
    RetryPolicy,
    TopicError,
    UnsupportedError,
    codec,
    connect,
    create_event_bus,
    event_handler,
)
from eventbus.errors import InvalidArgumentError
from eventbus.testing import Recorder, manual_bus

ID = "00000000-0000-0000-0000-000000000000"
NOW = dt.datetime.now(dt.UTC)


class Thing:
    """Something that has no place on the wire."""


def nothing(_event: object) -> None:
    """A handler."""


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


class Row(NamedTuple):
    """One kind of bad input.

    Attributes:
        name: Names it.
        call: Does it, given a connected bus; the result is awaited when it can be.
        error: The class of eventbus, or the builtin where it has none.
        builtin: What it is to those who do not know eventbus.
        says: Words that the message must hold: what failed, the value, the limit or remedy.
    """

    name: str
    call: Callable[[Bus], Any]
    error: type[BaseException]
    builtin: type[BaseException]
    says: tuple[str, ...]


def rows() -> Iterator[Row]:
    """Yield the table."""
    yield from configuration()
    yield from topics()
    yield from payloads()
    yield from publish_options()
    yield from subscribing()
    yield from consuming()
    yield from groups_and_records()
    yield from registering()


def configuration() -> Iterator[Row]:
    bad = ConfigError, ValueError
    yield Row("scheme", lambda _: connect("amqp://x"), *bad, ("amqp", "memory"))
    yield Row("url type", lambda _: connect(5), TypeError, TypeError, ("url", "str", "int"))
    yield Row(
        "every problem of a url at once",
        lambda _: connect("memory://?nonsense=1&strict=maybe&queue_size=x", other=1),
        *bad,
        ("nonsense", "strict='maybe'", "queue_size='x'", "other", "valid"),
    )
    for name, value in {
        "queue_size": 0,
        "outbox_size": -1,
        "max_message_bytes": 0,
        "max_depth": 0,
        "max_elements": "many",
        "delivery": "sometimes",
        "overflow": "explode",
        "drain_timeout": -1,
        "max_length": 0,
        "max_dead": 0,
    }.items():
        yield Row(
            f"option {name}",
            lambda _, n=name, v=value: connect("memory://", **{n: v}),
            *bad,
            (name,),
        )
    yield Row(
        "depth beyond the stack",
        lambda _: connect("memory://", max_depth=100_000),
        *bad,
        ("max_depth", "100000", "512"),
    )
    yield Row(
        "option dedup_window",
        lambda _: connect("memory://", dedup_window=-1),
        *bad,
        ("dedup_window", "-1"),
    )
    yield Row(
        "unknown backend",
        lambda _: create_event_bus({"backend": "carrier-pigeon"}),
        *bad,
        ("carrier-pigeon", "memory"),
    )
    yield Row(
        "every problem of a retry policy at once",
        lambda _: RetryPolicy(max_attempts=0, max_deliveries=0, base=-1, cap=-1, factor=0),
        *bad,
        ("max_attempts=0", "max_deliveries=0", "base=-1", "cap=-1", "factor=0", "from 1 to"),
    )
    yield Row("factor type", lambda _: RetryPolicy(factor="x"), *bad, ("factor='x'", "number"))
    yield Row("base type", lambda _: RetryPolicy(base="x"), TypeError, TypeError, ("base", "str"))
    yield Row(
        "every problem of the consume options at once",
        lambda _: ConsumeOptions(concurrency=0, batch=0, lease=0, max_length=0, timeout=-1),
        *bad,
        ("concurrency=0", "batch=0", "lease=0", "max_length=0", "timeout=-1"),
    )
    yield Row(
        "clock of a real bus",
        lambda bus: bus._advance(1.0),
        UnsupportedError,
        NotImplementedError,
        ("clock", "manual_bus"),
    )
    yield Row(
        "start without zone",
        lambda _: manual_bus(dt.datetime(2030, 1, 1)),
        ValueError,
        ValueError,
        ("start", "time zone"),
    )


def topics() -> Iterator[Row]:
    bad = TopicError, ValueError
    for name, topic, says in [
        ("empty", "", ("must not be empty",)),
        ("long", "ü" * 128, ("256 bytes", "limit 255")),
        ("newline", "a\nb", ("U+000A", "byte 1")),
        ("nul", "a\0b", ("U+0000",)),
        ("delete", "a\x7f", ("U+007F",)),
        ("surrogate", "a\ud800", ("UTF-8",)),
    ]:
        yield Row(f"publish on a topic: {name}", lambda b, t=topic: b.publish(t, 1), *bad, says)
        yield Row(
            f"subscribe to a topic: {name}", lambda b, t=topic: b.subscribe(t, nothing), *bad, says
        )
        if name != "surrogate":
            yield Row(
                f"consume a topic: {name}", lambda b, t=topic: b.consume(t, nothing), *bad, says
            )
    for name, call in {
        "publish": lambda b: b.publish(5, 1),
        "publish bytes": lambda b: b.publish(b"a", 1),
        "subscribe": lambda b: b.subscribe(5, nothing),
        "subscribe pattern": lambda b: b.subscribe("a", nothing, pattern=5),
        "consume": lambda b: b.consume([5], nothing),
        "stream": lambda b: anext(b.stream(5)),
        "transaction": lambda b: b.transaction().publish(5, 1),
    }.items():
        yield Row(f"topic type: {name}", call, TypeError, TypeError, ("must be a str",))
    yield Row("stream of nothing", lambda b: b.stream(), TypeError, TypeError, ("topic", "pattern"))
    yield Row(
        "stream of both", lambda b: b.stream("a", pattern="b"), TypeError, TypeError, ("not both",)
    )
    yield Row(
        "consume nothing", lambda b: b.consume(None, nothing), TypeError, TypeError, ("pattern=",)
    )


def payloads() -> Iterator[Row]:
    large = PayloadTooLarge, ValueError
    for name, value, path in [
        ("an object", Thing(), "$.payload"),
        ("an object inside", {"a": [1, Thing()]}, "$.payload.a[1]"),
        ("a key", {"a": {(1, 2): 3}}, "$.payload.a"),
        ("a time", dt.time(1), "$.payload"),
    ]:
        what = "tuple" if name == "a key" else "time" if name == "a time" else "Thing"
        yield Row(
            f"payload: {name}",
            lambda b, v=value: b.publish("queued", v),
            EncodeError,
            TypeError,
            (what, path),
        )
    circle: list[Any] = []
    circle.append(circle)
    yield Row(
        "payload: a circle",
        lambda b: b.publish("queued", circle),
        EncodeError,
        ValueError,
        ("Circular", "$.payload"),
    )
    yield Row(
        "metadata",
        lambda b: b.publish("queued", 1, metadata={"m": Thing()}),
        EncodeError,
        TypeError,
        ("Thing", "$.metadata.m"),
    )
    yield Row(
        "too many bytes",
        lambda b: b.publish("queued", b"x" * (1 << 20)),
        *large,
        ("bytes", "limit 1048576", "max_bytes"),
    )
    yield Row(
        "too deep",
        lambda b: b.publish("queued", nested(65)),
        *large,
        ("nesting depth is 65", "limit 64", "max_depth"),
    )
    yield Row(
        "too many elements",
        lambda b: b.publish("queued", [0] * 100_001),
        *large,
        ("100001", "limit 100000", "max_elements"),
    )
    yield Row(
        "too many in a batch",
        lambda b: b.publish_many([("queued", 1)] * 1001),
        *large,
        ("1001", "limit 1000", "split"),
    )
    yield Row(
        "a batch of too many bytes",
        lambda b: b.publish_many([("queued", "x" * 1_000_000)] * 9),
        *large,
        ("batch bytes", "limit 8388608", "split"),
    )
    yield Row(
        "one bad in a batch",
        lambda b: b.publish_many([("queued", 1), ("queued", Thing())]),
        EncodeError,
        TypeError,
        ("Thing",),
    )
    yield Row(
        "a batch of something else",
        lambda b: b.publish_many([1]),
        TypeError,
        TypeError,
        ("topic",),
    )
    yield Row(
        "a batch of triples",
        lambda b: b.publish_many([("a", 1, 2)]),
        TypeError,
        TypeError,
        ("topic",),
    )
    yield Row("an event of nothing", lambda _: Event(), TypeError, TypeError, ("type", "topic"))
    yield Row("codec: bytes", lambda _: codec.decode("x"), TypeError, TypeError, ("bytes", "str"))


def publish_options() -> Iterator[Row]:
    bad = InvalidArgumentError, ValueError
    wrong = TypeError, TypeError
    years = "3155760000"

    def publish(**options: Any) -> Callable[[Bus], Any]:
        return lambda bus: bus.publish("queued", 1, **options)

    yield Row("unknown option", publish(nonsense=1), *wrong, ("nonsense",))
    yield Row("no event", lambda b: b.publish("queued"), *wrong, ("event",))
    for name in ("key", "dedup_id", "unique"):
        yield Row(f"{name} type", publish(**{name: 5}), *wrong, (name, "must be a str", "int"))
        yield Row(f"{name} empty", publish(**{name: ""}), *bad, (name, "1 to 255 bytes"))
        yield Row(f"{name} long", publish(**{name: "x" * 256}), *bad, (name, "256", "1 to 255"))
    for value in (-32_769, 32_768):
        yield Row(
            f"priority {value}", publish(priority=value), *bad, ("priority", str(value), "32767")
        )
    yield Row(
        "priority beyond 64 bits",
        publish(priority=2**70),
        *bad,
        ("priority", "32767"),
    )
    yield Row(
        "priority type",
        publish(priority="high"),
        *wrong,
        ("priority",),
    )
    for name in ("delay", "expires_after"):
        for value in (-1, float("nan"), float("inf"), 1e12, dt.timedelta(seconds=-1)):
            yield Row(f"{name} {value}", publish(**{name: value}), *bad, (name, "0", years))
        yield Row(f"{name} type", publish(**{name: "soon"}), *wrong, (name, "seconds", "str"))
    yield Row("at naive", publish(at=dt.datetime(2030, 1, 1)), *bad, ("at", "2030", "time zone"))
    yield Row("at type", publish(at=5), *wrong, ("at", "datetime", "int"))
    yield Row("at and delay", publish(at=NOW, delay=1), *wrong, ("at", "delay", "not both"))
    for name in ("source", "correlation_id"):
        yield Row(f"{name} type", publish(**{name: 5}), *wrong, (name,))
    yield Row("metadata type", publish(metadata=5), *wrong, ("metadata",))


def subscribing() -> Iterator[Row]:
    bad = InvalidArgumentError, ValueError
    wrong = TypeError, TypeError

    def subscribe(**options: Any) -> Callable[[Bus], Any]:
        return lambda bus: bus.subscribe("a", nothing, delivery="queued", **options)

    yield Row("handler", lambda b: b.subscribe("a", 5), *wrong, ("handler", "callable", "int"))
    yield Row(
        "delivery",
        lambda b: b.subscribe("a", nothing, delivery="x"),
        *bad,
        ("delivery='x'", "inline", "queued"),
    )
    yield Row("overflow", subscribe(overflow="x"), *bad, ("overflow", "x", "drop_oldest"))
    for size in (0, -1, 2**70, "x", True):
        yield Row(
            f"queue_size {size}", subscribe(queue_size=size), *bad, ("queue_size", "at least 1")
        )
    yield Row("buffer", lambda b: b.stream("a", buffer=-1), *bad, ("buffer=-1", "at least 1"))
    yield Row("on_gap", subscribe(on_gap=5), *wrong, ("on_gap", "callable", "int"))


def consuming() -> Iterator[Row]:
    wrong = TypeError, TypeError

    def consume(**options: Any) -> Callable[[Bus], Any]:
        return lambda bus: bus.consume("a", nothing, **options)

    yield Row("handler", lambda b: b.consume("a", 5), *wrong, ("handler", "callable", "int"))
    for name, group, says in [
        ("empty", "", ("must not be empty",)),
        ("long", "x" * 256, ("256 bytes", "255")),
        ("control", "a\n", ("U+000A",)),
    ]:
        yield Row(f"group {name}", consume(group=group), TopicError, ValueError, ("group", *says))
    for name, value in {
        "group": 5,
        "concurrency": 0,
        "batch": 0,
        "timeout": 0,
        "lease": 0.001,
        "max_lease": 1,
        "max_length": 0,
        "retry": 5,
    }.items():
        yield Row(
            f"option {name}",
            consume(**{name: value}),
            ConfigError,
            ValueError,
            (f"{name}=", "must"),
        )
    for name in ("timeout", "lease", "max_lease"):
        yield Row(f"{name} type", consume(**{name: "x"}), *wrong, (name, "seconds", "str"))
    yield Row("lease nan", consume(lease=float("nan")), ConfigError, ValueError, ("lease=nan",))
    yield Row(
        "prefetch",
        lambda b: b.deliveries("a", prefetch=0),
        ConfigError,
        ValueError,
        ("=0", "from 1"),
    )


def groups_and_records() -> Iterator[Row]:
    bad = InvalidArgumentError, ValueError
    wrong = TypeError, TypeError
    yield Row("declare nothing", lambda b: b.declare_group("x"), *wrong, ("topic", "pattern"))
    yield Row("declare type", lambda b: b.declare_group(5, "a"), *wrong, ("group", "str", "int"))
    for value in (0, -1, 2**70):
        yield Row(
            f"max_length {value}",
            lambda b, v=value: b.declare_group("x", "a", max_length=v),
            *bad,
            ("max_length", "at least 1"),
        )
    for name in ("purge", "pause", "resume", "delete_group"):
        yield Row(
            f"{name} unknown",
            lambda b, n=name: getattr(b, n)("nope"),
            NotFoundError,
            Exception,
            ("group", "nope"),
        )
        yield Row(
            f"{name} type", lambda b, n=name: getattr(b, n)(5), *wrong, ("group", "str", "int")
        )
    for name, call in [
        ("message", lambda b, *a, **k: b.message(*a, **k)),
        ("cancel", lambda b, *a, **k: b.cancel_message(*a, **k)),
        ("promote", lambda b, *a, **k: b.promote_message(*a, **k)),
        ("reschedule", lambda b, *a, **k: b.reschedule_message(*a, at=NOW, **k)),
    ]:
        yield Row(f"{name} no id", lambda b, c=call: c(b, ""), *bad, ("event_id", "empty"))
        yield Row(f"{name} id", lambda b, c=call: c(b, "\ud800"), *bad, ("event_id",))
        nobody = Event(EventType.CUSTOM, "t", event_id=None)  # type: ignore[arg-type]
        yield Row(f"{name} None", lambda b, c=call, e=nobody: c(b, e), *bad, ("event_id", "None"))
        yield Row(f"{name} type", lambda b, c=call: c(b, 5), *wrong, ("Event", "UUID", "int"))
        yield Row(
            f"{name} group type",
            lambda b, c=call: c(b, ID, group=5),
            *wrong,
            ("group", "str", "int"),
        )
        yield Row(
            f"{name} group unknown",
            lambda b, c=call: c(b, ID, group="nope"),
            NotFoundError,
            Exception,
            ("group", "nope"),
        )
    yield Row(
        "reschedule type",
        lambda b: b.reschedule_message(ID, 5),
        *wrong,
        ("datetime", "int"),
    )
    yield Row("dead id", lambda b: b.dead_letters("queue").retry("x"), *bad, ("message id", "UUID"))
    yield Row("dead limit", lambda b: b.dead_letters("queue").list(limit=0), *bad, ("limit=0",))
    yield Row("read type", lambda b: b.read(5), *wrong, ("key", "str", "int"))
    yield Row("scan limit", lambda b: b.scan(limit=-1), *bad, ("limit=-1", "at least 1"))
    for name, key in [("empty", ""), ("long", "x" * 1025)]:
        yield Row(
            f"record key {name}",
            lambda b, k=key: b.transaction().put(k, 1),
            *bad,
            ("record key", str(len(key)), "1 to 1024 bytes"),
        )
    for value in (-1, 2**70, "x"):
        yield Row(
            f"if_version {value}",
            lambda b, v=value: b.transaction().put("k", 1, if_version=v),
            *bad,
            ("if_version", "0 (must not exist)"),
        )
    yield Row("ttl", lambda b: b.transaction().put("k", 1, ttl=-1), *bad, ("ttl", "-1"))
    yield Row("ttl type", lambda b: b.transaction().put("k", 1, ttl="x"), *wrong, ("ttl", "str"))
    yield Row(
        "record value",
        lambda b: b.transaction().put("k", Thing()),
        EncodeError,
        TypeError,
        ("Thing",),
    )
    yield Row(
        "option in a transaction",
        lambda b: b.transaction().publish("queued", 1, nonsense=2),
        *wrong,
        ("nonsense", "valid", "priority"),
    )
    for name in ("wait_idle", "drain"):
        yield Row(f"{name} type", lambda b, n=name: getattr(b, n)("x"), *wrong, ("timeout", "str"))


def registering() -> Iterator[Row]:
    wrong = TypeError, TypeError
    bad = InvalidArgumentError, ValueError
    yield Row("no topic", lambda _: event_handler(), *wrong, ("topic", "pattern", "@event_handler"))
    yield Row(
        "no call", lambda _: event_handler(nothing), *wrong, ("str", "@event_handler('topic')")
    )
    yield Row(
        "convention", lambda _: event_handler("a", calls="x"), *bad, ("'x'", "valid", "event")
    )
    yield Row("empty registry", lambda b: b.include(Registry()), *bad, ("no handlers",))


@pytest.mark.parametrize(
    "row", [pytest.param(row, id=f"{number}-{row.name}") for number, row in enumerate(rows())]
)
async def test_bad_input_is_refused_by_name_and_harms_nothing(row: Row) -> None:
    async with connect("memory://") as bus:
        seen = Recorder()
        await bus.subscribe("queued", seen)
        await bus.declare_group("queue", "queued")
        await bus.publish("queued", "before")

        with pytest.raises(row.builtin) as caught:
            await _result(row.call(bus))
        assert isinstance(caught.value, row.error)
        text = str(caught.value)
        assert [word for word in row.says if word not in text] == []

        assert bus.state == "live"
        await bus.publish("queued", "after")
        assert seen.payloads == ["before", "after"]
        figures = (await bus.inspect())["groups"]
        assert [(one["group"], one["ready"]) for one in figures] == [("queue", 2)]


async def _result(value: Any) -> None:
    if inspect.isawaitable(value):
        await value


def test_no_message_shows_a_password() -> None:
    for url in ("amqp://me:S3CR3T-xyz@host/0", "memory://me:S3CR3T-xyz@host?nonsense=1"):
        with pytest.raises(ConfigError) as caught:
            connect(url)
        assert "S3CR3T-xyz" not in str(caught.value) + repr(caught.value)


async def test_buffered_bad_input_is_told_by_flush() -> None:
    async with connect("memory://") as bus:
        bus.publish_nowait("", 1)
        with pytest.raises(TopicError, match="empty"):
            await bus.flush()


def test_the_fields_of_an_event_are_not_checked_when_it_is_made() -> None:
    # The DataKnobs contract: a plain dataclass. What cannot travel is refused when it is published.
    assert Event(EventType.CREATED, 5, {}).topic == 5  # type: ignore[arg-type]
