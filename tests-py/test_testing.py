"""The test tools: the manual clock, the recorder, waiting, and the pytest fixtures."""

from __future__ import annotations

import asyncio
import datetime as dt
import threading
from collections.abc import Callable

import pytest

from eventbus import Bus, BusClosedError, EncodeError, Event, RetryPolicy
from eventbus.errors import InvalidArgumentError
from eventbus.testing import ManualBus, Recorder, eventually, manual_bus, wait_for_event

pytest_plugins = ["pytester"]

HOUR = 3600.0


# The manual clock


async def test_time_stands_still_until_it_is_advanced() -> None:
    async with manual_bus() as bus:
        seen = Recorder()
        await bus.consume("t", seen)
        await bus.publish("t", "later", delay=HOUR)
        await bus.advance(HOUR - 1)
        assert seen.events == []
        await bus.advance(dt.timedelta(seconds=1))
        assert seen.payloads == ["later"]


async def test_now_follows_the_clock() -> None:
    start = dt.datetime(2031, 5, 6, 7, tzinfo=dt.timezone(dt.timedelta(hours=2)))
    async with manual_bus(start) as bus:
        assert bus.now == start
        assert bus.now.utcoffset() == dt.timedelta(0)
        await bus.advance(90)
        assert bus.now - start == dt.timedelta(seconds=90)
        await bus.publish("t", 1)
        async with bus.deliveries("t") as deliveries:
            await bus.publish("t", 1)
            delivery = await anext(deliveries)
            assert delivery.accepted_at == bus.now
            await delivery.ack()


async def test_retries_follow_the_clock() -> None:
    attempts: list[dt.datetime] = []

    async with manual_bus() as bus:

        def fail(_event: Event) -> None:
            attempts.append(bus.now)
            raise ValueError

        policy = RetryPolicy(max_attempts=3, base=HOUR, cap=HOUR)
        await bus.consume("t", fail, group="g", retry=policy)
        await bus.publish("t", 1)
        await bus.wait_idle()
        for _ in range(3):
            await bus.advance(HOUR)
        assert len(attempts) == 3
        assert (await bus.dead_letters("g").list())[0].reason == "failed"


async def test_leases_dedup_and_records_follow_the_clock() -> None:
    async with manual_bus(dedup_window=60.0) as bus:
        async with bus.deliveries("t", group="g") as deliveries:
            await bus.publish("t", 1, dedup_id="x")
            old = await anext(deliveries)
            await bus.advance(31)
            new = await asyncio.wait_for(anext(deliveries), 5)
            assert (new.message_id, new.crashes) == (old.message_id, 1)
            await new.ack()
        async with bus.transaction() as tx:
            tx.put("k", 1, ttl=10)
        await bus.publish("t", 2, dedup_id="x")
        assert (await bus.inspect())["groups"][0]["accepted"] == 1
        await bus.advance(61)
        assert await bus.read("k") is None
        await bus.publish("t", 3, dedup_id="x")
        assert (await bus.inspect())["groups"][0]["accepted"] == 2


async def test_a_handler_that_waits_for_the_clock_does_not_hold_up_advance() -> None:
    async with manual_bus() as bus:
        go = asyncio.Event()
        seen = Recorder(lambda _event: go.wait())
        await bus.consume("t", seen)
        await bus.publish("t", 1)
        await seen.wait_for(1)
        await asyncio.wait_for(bus.advance(1), 5)
        go.set()


async def test_a_negative_step_and_a_start_without_zone_are_refused() -> None:
    async with manual_bus() as bus:
        with pytest.raises(InvalidArgumentError, match="-1"):
            await bus.advance(-1)
    with pytest.raises(ValueError, match="time zone"):
        manual_bus(dt.datetime(2030, 1, 1))


async def test_a_manual_bus_is_strict() -> None:
    async with manual_bus() as bus:
        with pytest.raises(EncodeError):
            await bus.publish("t", object())
    async with manual_bus(strict=False) as bus:
        await bus.publish("t", object())


# The recorder


async def test_a_recorder_waits_for_a_count_or_an_event(eventbus: Bus) -> None:
    seen = Recorder()
    await eventbus.subscribe("t", seen)
    assert not len(seen)
    assert seen
    waiting = [
        asyncio.create_task(seen.wait_for(2)),
        asyncio.create_task(seen.wait_for(lambda event: event.payload == 3)),
    ]
    await asyncio.sleep(0)
    for number in (1, 2, 3):
        await eventbus.publish("t", number)
    two, three = await asyncio.gather(*waiting)
    assert [event.payload for event in two[:2]] == [1, 2]
    assert [event.payload for event in three] == [3]
    assert seen.payloads == [1, 2, 3]
    assert seen.topics == ["t"] * 3
    assert len(await seen.wait_for(3, timeout=0)) == 3
    seen.clear()
    assert seen.events == []


async def test_a_recorder_says_what_it_has_when_it_gives_up(eventbus: Bus) -> None:
    seen = Recorder()
    await eventbus.subscribe("orders:new", seen)
    await eventbus.publish("orders:new", 1)
    with pytest.raises(TimeoutError, match=r"2 events; recorded 1: \['orders:new'\]"):
        await seen.wait_for(2, 0.01)
    with pytest.raises(TimeoutError, match="an event that fits"):
        await seen.wait_for(lambda _event: False, dt.timedelta(milliseconds=10))


async def test_a_recorder_can_fail_and_can_be_a_coroutine(eventbus: Bus) -> None:
    async def later(event: Event) -> None:
        await asyncio.sleep(0)
        if event.payload == "bad":
            raise ValueError("mine")

    seen = Recorder(later)
    await eventbus.consume("t", seen, group="g", retry=RetryPolicy(max_attempts=2, base=0.0))
    await eventbus.publish("t", "bad")
    await seen.wait_for(2)
    await eventbus.wait_idle()
    assert len(await eventbus.dead_letters("g").list()) == 1


async def test_a_recorder_may_be_called_in_another_thread() -> None:
    from eventbus import EventType

    seen = Recorder()
    event = Event(EventType.CUSTOM, "t", 1)
    waiting = asyncio.create_task(seen.wait_for(1))
    await asyncio.sleep(0)
    thread = threading.Thread(target=seen, args=(event,))
    thread.start()
    assert await waiting == [event]
    thread.join()


async def test_a_cancelled_wait_leaves_nothing(eventbus: Bus) -> None:
    seen = Recorder()
    await eventbus.subscribe("t", seen)
    waiting = asyncio.create_task(seen.wait_for(1))
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert seen._waiting == []
    await eventbus.publish("t", 1)
    assert len(seen) == 1


# Waiting


async def test_wait_for_event_returns_the_first_that_fits(eventbus: Bus) -> None:
    async with asyncio.TaskGroup() as tasks:
        by_topic = tasks.create_task(wait_for_event(eventbus, "t", lambda e: e.payload > 1))
        by_pattern = tasks.create_task(wait_for_event(eventbus, pattern="other:*"))
        await asyncio.sleep(0)
        for number in (1, 2, 3):
            await eventbus.publish("t", number)
        await eventbus.publish("other:x", "x")
    assert by_topic.result().payload == 2
    assert by_pattern.result().payload == "x"


async def test_wait_for_event_gives_up_and_says_what_came(eventbus: Bus) -> None:
    async def publish() -> None:
        await eventbus.publish("t", 1)

    waiting = asyncio.create_task(wait_for_event(eventbus, "t", lambda _e: False, timeout=0.05))
    await asyncio.sleep(0)
    await publish()
    with pytest.raises(
        TimeoutError, match=r"'t' within 0.05 s|0.05 s for an event on 't'"
    ) as caught:
        await waiting
    assert "1 others came" in str(caught.value)


async def test_wait_for_event_ends_with_the_bus(eventbus: Bus) -> None:
    waiting = asyncio.create_task(wait_for_event(eventbus, "t"))
    await asyncio.sleep(0)
    await eventbus.close()
    with pytest.raises(BusClosedError, match="'t'"):
        await waiting


async def test_wait_for_event_wants_a_topic_or_a_pattern(eventbus: Bus) -> None:
    with pytest.raises(TypeError, match="topic or a pattern"):
        await wait_for_event(eventbus)


async def test_eventually_returns_the_value_or_names_what_it_waited_for() -> None:
    values = iter([0, "", "there"])
    assert await eventually(lambda: next(values)) == "there"

    async def never() -> int:
        return 0

    with pytest.raises(TimeoutError, match=r"0.02 s for the tea; last value: 0"):
        await eventually(never, "the tea", timeout=0.02)


# The fixtures


async def test_the_fixtures_give_buses_that_are_connected(
    eventbus: Bus, eventbus_clock: ManualBus, manual: ManualBus, eventbus_recorder: Recorder
) -> None:
    assert eventbus.state == eventbus_clock.state == "live"
    assert manual is eventbus_clock
    assert eventbus is not eventbus_clock
    assert isinstance(eventbus_recorder, Recorder)
    with pytest.raises(EncodeError):
        await eventbus.publish("t", object())


SAMPLE = """
import pytest
{mark}
async def test_one(eventbus, manual, eventbus_recorder):
    await eventbus.subscribe("t", eventbus_recorder)
    await eventbus.publish("t", 1)
    assert eventbus_recorder.payloads == [1]
    test_one.bus = eventbus
    await manual.advance(1)

def test_two():
    assert test_one.bus.state == "closed"
"""
CONFIGURATION = """
[pytest]
asyncio_default_fixture_loop_scope = function
filterwarnings = error
asyncio_mode = {mode}
"""

Run = Callable[..., pytest.RunResult]


@pytest.fixture
def run(pytester: pytest.Pytester) -> Run:
    """Return a function that runs a sample in a pytest of its own."""

    def run_(sample: str, *arguments: str, mode: str = "auto") -> pytest.RunResult:
        pytester.makeini(CONFIGURATION.format(mode=mode))
        pytester.makepyfile(sample)
        return pytester.runpytest_subprocess("-p", "no:cacheprovider", *arguments)

    return run_


@pytest.mark.parametrize(("mode", "mark"), [("auto", ""), ("strict", "@pytest.mark.asyncio")])
def test_the_fixtures_work_in_both_modes_of_pytest_asyncio(run: Run, mode: str, mark: str) -> None:
    run(SAMPLE.format(mark=mark), mode=mode).assert_outcomes(passed=2)


def test_without_pytest_asyncio_the_plugin_loads_and_says_what_is_missing(
    pytester: pytest.Pytester,
) -> None:
    pytester.makepyfile(
        """
        def test_other(eventbus_recorder):
            assert eventbus_recorder.events == []

        def test_bus(eventbus):
            pass

        def test_manual(manual):
            pass
        """
    )
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", "-p", "no:asyncio")
    result.assert_outcomes(passed=1, errors=2)
    result.stdout.fnmatch_lines(["*fixture 'eventbus' needs pytest-asyncio*pip install*"])


def test_the_plugin_can_be_switched_off(run: Run) -> None:
    result = run("def test_bus(eventbus): pass", "-p", "no:eventbus")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*fixture 'eventbus' not found*"])


def test_the_fixtures_are_listed_with_their_purpose(run: Run) -> None:
    listed = run("def test_one(): pass", "--fixtures").stdout.str()
    for name in ("eventbus", "eventbus_clock", "manual", "eventbus_recorder"):
        assert f"\n{name} -- " in listed
    assert "connected memory bus" in listed


def test_the_plugin_starts_no_thread_at_start_up(run: Run) -> None:
    run(
        """
        import os
        import threading

        def test_threads():
            assert [one.name for one in threading.enumerate()] == ["MainThread"]
            assert len(os.listdir("/proc/self/task")) == 1
        """
    ).assert_outcomes(passed=1)
