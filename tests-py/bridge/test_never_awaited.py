"""A call that nobody awaits did nothing, and says so as CPython's own coroutines do."""

from __future__ import annotations

import asyncio
import gc
import inspect
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from eventbus import Bus, Event, InMemoryEventBus, _eventbus

from .support import run_script

CALLS: dict[str, Callable[[Bus], Any]] = {
    "Bus.publish": lambda bus: bus.publish("topic", 1),
    "Bus.publish with options": lambda bus: bus.publish("topic", 1, key="key"),
    "Bus.publish with a connection": lambda bus: bus.publish("topic", 1, connection=object()),
    "Bus.publish_many": lambda bus: bus.publish_many([("topic", 1)]),
    "Bus.publish_many with a connection": lambda bus: bus.publish_many([], connection=object()),
    "Bus.subscribe": lambda bus: bus.subscribe("topic", print),
    "Bus.flush": lambda bus: bus.flush(),
}


@contextmanager
def warned() -> Iterator[list[warnings.WarningMessage]]:
    """Collect the warnings of a block, and what the collector of garbage adds to them."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield caught
        gc.collect()


def texts(caught: list[warnings.WarningMessage]) -> list[str]:
    return [str(one.message) for one in caught]


@pytest.mark.parametrize("name", CALLS)
async def test_a_call_that_is_never_awaited_warns_and_does_nothing(bus: Bus, name: str) -> None:
    seen: list[Event] = []
    await bus.subscribe("topic", seen.append)
    with warned() as caught:
        work = CALLS[name](bus)
        del work
    assert texts(caught) == [f"coroutine '{name.split(maxsplit=1)[0]}' was never awaited"]
    assert [one.category for one in caught] == [RuntimeWarning]
    assert seen == []


async def test_the_warning_names_the_line_that_forgot(bus: Bus) -> None:
    frame = inspect.currentframe()
    assert frame is not None
    with warned() as caught:
        line = frame.f_lineno + 1
        bus.publish("topic", 1)  # type: ignore[unused-coroutine]
    assert [(one.filename, one.lineno) for one in caught] == [(__file__, line)]


async def test_the_warning_names_the_class_of_the_bus() -> None:
    bus = InMemoryEventBus()
    with warned() as caught:
        bus.publish("topic", Event)  # type: ignore[unused-coroutine, arg-type]
    assert texts(caught) == ["coroutine 'InMemoryEventBus.publish' was never awaited"]


async def test_a_command_for_redis_that_is_never_awaited_warns() -> None:
    client = _eventbus.RedisClient({"endpoints": [{"host": "127.0.0.1", "port": 1}]})
    with warned() as caught:
        client.command("PING")
        client.close()
    assert texts(caught) == [
        "coroutine 'RedisClient.command' was never awaited",
        "coroutine 'RedisClient.close' was never awaited",
    ]


async def test_awaitables_of_the_core_warn(bus: Bus) -> None:
    with warned() as caught:
        bus._inspect()
    assert texts(caught) == ["coroutine 'Pending' was never awaited"]


@pytest.mark.parametrize("kind", ["plain", "options", "many", "core"])
@pytest.mark.parametrize("end", ["awaited", "closed", "thrown into", "failed", "cancelled"])
async def test_a_call_that_was_begun_or_closed_does_not_warn(bus: Bus, kind: str, end: str) -> None:
    topic: Any = 1 if end == "failed" else "topic"
    make: dict[str, Callable[[], Any]] = {
        "plain": lambda: bus.publish(topic, 1),
        "options": lambda: bus.publish(topic, 1, key="key"),
        "many": lambda: bus.publish_many([(topic, 1)]),
        "core": lambda: (
            bus._dead_letters("group", "no id", 1) if end == "failed" else bus._inspect()
        ),
    }
    with warned() as caught:
        work = make[kind]()
        if end == "awaited":
            await work
        elif end == "closed":
            work.close()
        elif end == "thrown into":
            with pytest.raises(KeyError):
                work.throw(KeyError("mine"))
        elif end == "failed":
            with pytest.raises((TypeError, ValueError)):
                await work
        else:
            task = asyncio.create_task(work)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            del task
        del work
    assert texts(caught) == []


async def test_a_task_that_never_ran_warns_as_it_does_for_a_coroutine() -> None:
    bus = InMemoryEventBus()
    with warned() as caught:
        loop = asyncio.new_event_loop()
        task = loop.create_task(bus.publish("topic", Event))  # type: ignore[arg-type]
        loop.close()
        task._log_destroy_pending = False  # type: ignore[attr-defined]
        del task, loop
    assert texts(caught) == ["coroutine 'InMemoryEventBus.publish' was never awaited"]


async def test_a_call_in_a_cycle_warns_when_it_is_collected(bus: Bus) -> None:
    class Holder:
        work: Any
        itself: Holder

    with warned() as caught:
        holder = Holder()
        holder.work, holder.itself = bus.publish("topic", 1), holder
        del holder
        gc.collect()
    assert texts(caught) == ["coroutine 'Bus.publish' was never awaited"]


async def test_a_warning_that_is_an_error_is_reported_and_raises_nothing(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    reported: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", reported.append)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bus.publish("topic", 1)  # type: ignore[unused-coroutine]
    assert [(one.exc_type, str(one.exc_value)) for one in reported] == [
        (RuntimeWarning, "coroutine 'Bus.publish' was never awaited")
    ]


async def test_an_exception_on_its_way_is_kept(bus: Bus) -> None:
    def fail(_work: Any) -> None:
        raise ValueError("mine")

    with warned() as caught, pytest.raises(ValueError, match="mine"):
        fail(bus.publish("topic", 1))
    assert texts(caught) == ["coroutine 'Bus.publish' was never awaited"]


@pytest.mark.parametrize("action", ["default", "error"])
def test_a_script_that_forgets_to_await_is_told(action: str) -> None:
    run = run_script(
        f"""
        warnings.simplefilter({action!r})
        async def main():
            async with eventbus.connect("memory://") as bus:
                bus.publish("topic", 1)
        asyncio.run(main())
        """
    )
    assert (run.code, run.out) == (0, "")
    assert "RuntimeWarning: coroutine 'Bus.publish' was never awaited" in run.err


def test_what_is_kept_to_the_end_of_the_interpreter_is_silent() -> None:
    run = run_script(
        """
        warnings.simplefilter("always")
        bus = eventbus.connect("memory://")
        kept = [bus.publish("topic", 1), bus.publish("topic", 1, key="key"), bus._inspect]
        sys.kept = [bus.publish_many([])]
        """
    )
    assert (run.code, run.out, run.err) == (0, "", "")
