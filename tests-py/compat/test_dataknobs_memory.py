"""DataKnobs contract D31 to D36 and D59: inline delivery, life cycle, loops, threads, gaps."""

import asyncio
import concurrent.futures
import contextvars
import gc
import logging
import threading
import weakref
from typing import Any

import pytest

from eventbus.compat.dataknobs import Event, EventType, InMemoryEventBus, create_event_bus
from eventbus.types import Gap

UNCONNECTED = "Publishing to disconnected event bus"


def made(number: int = 0) -> Event:
    return Event(EventType.CREATED, "t", {"n": number})


def unconnected(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [one for one in caplog.records if one.getMessage() == UNCONNECTED]


def in_thread(work: Any) -> Any:
    """Run something in a thread that has no loop and return its result."""
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result(timeout=30)


# D31


async def test_d31_no_replay(bus: InMemoryEventBus) -> None:
    seen: list[int] = []
    await bus.publish("t", made(1))
    await bus.subscribe("t", lambda event: seen.append(event.payload["n"]))
    await bus.publish("t", made(2))
    assert seen == [2]


# D32


async def test_d32_connect_and_close_are_idempotent() -> None:
    bus = InMemoryEventBus()
    await bus.close()
    await bus.close()
    await bus.connect()
    seen: list[Event] = []
    await bus.subscribe("t", seen.append)
    await bus.connect()
    assert bus.subscription_count == 1
    await bus.publish("t", made())
    assert len(seen) == 1
    await bus.close()
    await bus.close()


@pytest.mark.parametrize("delivery", ["inline", "queued"])
async def test_d32_close_drops_all_subscriptions_and_the_bus_opens_again(
    delivery: str, eventually: Any
) -> None:
    bus = InMemoryEventBus(delivery=delivery)
    for _ in range(3):
        await bus.connect()
        old: list[Event] = []
        subscription = await bus.subscribe("t", old.append)
        await bus.subscribe("t", old.append, "t*")
        await bus.close()
        assert bus.subscription_count == 0
        await bus.connect()
        assert bus.subscription_count == 0
        new: list[Event] = []
        await bus.subscribe("t", new.append)
        await bus.publish("t", made())
        await eventually(lambda new=new: len(new) == 1)
        await subscription.cancel()
        assert bus.subscription_count == 1
        assert old == []
    await bus.close()


async def test_d12_cancel_is_idempotent_and_works_after_close() -> None:
    bus = InMemoryEventBus()
    await bus.connect()
    subscription = await bus.subscribe("t", print)
    await bus.close()
    assert await subscription.cancel() is None  # type: ignore[func-returns-value]
    assert await subscription.cancel() is None  # type: ignore[func-returns-value]


@pytest.mark.parametrize("delivery", ["inline", "queued"])
async def test_d12_cancel_works_from_another_loop(delivery: str) -> None:
    async with InMemoryEventBus(delivery=delivery) as bus:
        seen: list[Event] = []
        subscription = await bus.subscribe("t", seen.append)
        in_thread(lambda: asyncio.run(subscription.cancel()))
        assert bus.subscription_count == 0
        await bus.publish("t", made())
        marker: list[Event] = []
        await bus.subscribe("t", marker.append, delivery="inline")
        await bus.publish("t", made())
        assert len(marker) == 1
        assert seen == []


# D33


def test_d33_connected_in_one_run_and_used_in_the_next() -> None:
    bus = InMemoryEventBus()
    seen: list[Event] = []
    asyncio.run(bus.connect())
    asyncio.run(bus.subscribe("t", seen.append))
    asyncio.run(bus.publish("t", made()))
    assert len(seen) == 1
    assert bus._connected
    asyncio.run(bus.close())
    asyncio.run(bus.connect())
    asyncio.run(bus.close())
    assert not bus._connected


def test_d33_published_on_from_a_worker_thread_also_after_the_first_loop_closed() -> None:
    bus = InMemoryEventBus()
    threads: list[int] = []

    async def first() -> None:
        await bus.connect()
        await bus.subscribe("t", lambda event: threads.append(threading.get_ident()))
        await asyncio.to_thread(lambda: asyncio.run(bus.publish("t", made())))

    asyncio.run(first())
    in_thread(lambda: asyncio.run(bus.publish("t", made())))
    # The rule for inline delivery: in the publisher's task, whoever subscribed (D34).
    assert len(threads) == 2
    assert threading.get_ident() not in threads
    asyncio.run(bus.close())


def test_d33_many_threads_publish_at_once() -> None:
    bus = InMemoryEventBus()
    seen: list[int] = []
    asyncio.run(bus.connect())
    asyncio.run(bus.subscribe("t", lambda event: seen.append(event.payload["n"])))

    async def publish(base: int) -> None:
        for number in range(200):
            await bus.publish("t", made(base + number))

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda base: asyncio.run(publish(base)), range(0, 8000, 1000)))
    assert len(seen) == len(set(seen)) == 1600
    for base in range(0, 8000, 1000):
        own = [number for number in seen if base <= number < base + 1000]
        assert own == sorted(own)
    asyncio.run(bus.close())


async def test_d33_queued_handlers_run_on_the_loop_that_subscribed(eventually: Any) -> None:
    async with InMemoryEventBus(delivery="queued") as bus:
        here = asyncio.get_running_loop()
        loops: list[Any] = []
        await bus.subscribe("t", lambda event: loops.append(asyncio.get_running_loop()))
        await asyncio.to_thread(lambda: asyncio.run(bus.publish("t", made())))
        await eventually(lambda: loops)
        assert loops == [here]


def test_d33_queued_events_for_an_ended_loop_are_dropped_and_counted() -> None:
    bus = InMemoryEventBus(delivery="queued")
    seen: list[Event] = []

    async def subscribes() -> None:
        await bus.connect()
        await bus.subscribe("t", seen.append)

    asyncio.run(subscribes())
    asyncio.run(bus.publish("t", made()))
    assert bus.counters["dropped"] == 1
    assert seen == []
    asyncio.run(bus.close())
    assert bus.subscription_count == 0


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_d33_queued_events_for_a_loop_closed_under_its_tasks_are_counted() -> None:
    bus = InMemoryEventBus(delivery="queued")
    loop = asyncio.new_event_loop()
    loop.run_until_complete(bus.connect())
    loop.run_until_complete(bus.subscribe("t", print))
    loop.close()
    asyncio.run(bus.publish("t", made()))
    try:
        assert bus.counters["dropped"] == 1
    finally:
        asyncio.run(bus.close())


# D34


async def test_d34_all_handlers_have_finished_when_publish_returns(bus: InMemoryEventBus) -> None:
    steps: list[str] = []
    running = 0

    def handler(name: str) -> Any:
        async def run(event: Event) -> None:
            nonlocal running
            running += 1
            assert running == 1
            steps.append(f"{name} begins")
            for _ in range(3):
                await asyncio.sleep(0)
            steps.append(f"{name} ends")
            running -= 1

        return run

    for name in ("a", "b", "c"):
        await bus.subscribe("t", handler(name), None if name != "b" else "*")
    await bus.publish("t", made())
    assert steps == [f"{name} {what}" for name in ("a", "b", "c") for what in ("begins", "ends")]


async def test_d34_handlers_run_in_the_publishers_task(bus: InMemoryEventBus) -> None:
    tasks: list[Any] = []

    async def handler(event: Event) -> None:
        tasks.append(asyncio.current_task())
        await asyncio.sleep(0)
        tasks.append(asyncio.current_task())

    await bus.subscribe("t", handler)
    await bus.subscribe("t", lambda event: tasks.append(asyncio.current_task()))
    await bus.publish("t", made())
    own = asyncio.create_task(bus.publish("t", made()))
    await own
    assert tasks == [asyncio.current_task()] * 3 + [own] * 3


async def test_d34_context_variables_of_the_publisher_are_visible(bus: InMemoryEventBus) -> None:
    request: contextvars.ContextVar[str] = contextvars.ContextVar("request", default="none")
    seen: list[str] = []

    async def handler(event: Event) -> None:
        seen.append(request.get())
        await asyncio.sleep(0)
        seen.append(request.get())

    request.set("subscriber")
    await bus.subscribe("t", handler)
    await bus.subscribe("t", lambda event: seen.append(request.get()))
    request.set("publisher")
    await bus.publish("t", made())

    async def other() -> None:
        request.set("other")
        await bus.publish("t", made())

    await asyncio.create_task(other())
    assert seen == ["publisher"] * 3 + ["other"] * 3


async def test_d34_also_when_the_publishers_loop_is_another(bus: InMemoryEventBus) -> None:
    loops: list[Any] = []

    async def handler(event: Event) -> None:
        await asyncio.sleep(0)
        loops.append(asyncio.get_running_loop())

    await bus.subscribe("t", handler)

    async def publish() -> tuple[Any, int]:
        await bus.publish("t", made())
        return asyncio.get_running_loop(), len(loops)

    elsewhere, finished = await asyncio.to_thread(lambda: asyncio.run(publish()))
    assert finished == 1
    assert loops == [elsewhere]
    assert elsewhere is not asyncio.get_running_loop()


async def test_d34_handlers_are_fixed_before_the_first_is_called(bus: InMemoryEventBus) -> None:
    seen: list[str] = []
    release, begun = asyncio.Event(), asyncio.Event()

    async def first(event: Event) -> None:
        seen.append("first")
        begun.set()
        await release.wait()

    await bus.subscribe("t", first)
    publish = asyncio.create_task(bus.publish("t", made()))
    await begun.wait()
    await bus.subscribe("t", lambda event: seen.append("late"))
    release.set()
    await publish
    assert seen == ["first"]


async def test_d34_concurrent_publishes_do_not_wait_for_each_other(bus: InMemoryEventBus) -> None:
    release = asyncio.Event()
    seen: list[int] = []

    async def handler(event: Event) -> None:
        if event.payload["n"] == 0:
            await release.wait()
        seen.append(event.payload["n"])

    await bus.subscribe("t", handler)
    blocked = asyncio.create_task(bus.publish("t", made(0)))
    await asyncio.sleep(0)
    await bus.publish("t", made(1))
    assert seen == [1]
    release.set()
    await blocked
    assert seen == [1, 0]


async def test_d34_a_publish_is_a_coroutine_for_every_helper_of_asyncio(
    bus: InMemoryEventBus,
) -> None:
    seen: list[Event] = []
    await bus.subscribe("t", seen.append)
    work = bus.publish("t", made())
    assert asyncio.iscoroutine(work)
    work.close()
    await asyncio.wait_for(bus.publish("t", made()), 5)
    await asyncio.gather(bus.publish("t", made()), bus.publish("t", made()))
    await asyncio.shield(bus.publish("t", made()))
    async with asyncio.TaskGroup() as group:
        group.create_task(bus.publish("t", made()), name="a publish")
    loop = asyncio.get_running_loop()
    await asyncio.to_thread(
        lambda: asyncio.run_coroutine_threadsafe(bus.publish("t", made()), loop).result(10)
    )
    assert len(seen) == 6


# D35


async def test_d35_the_very_object_arrives(bus: InMemoryEventBus) -> None:
    got: list[Event] = []
    await bus.subscribe("t", got.append)
    await bus.subscribe("t", got.append, "*")
    payload = {"set": {1, 2}, "function": print, "self": bus}
    event = Event(EventType.CREATED, "t", payload)
    await bus.publish("t", event)
    assert got[0] is got[1] is event
    assert got[0].payload is payload
    assert got[0].payload["function"] is print


@pytest.mark.parametrize("payload", [None, 5, "text", {1, 2}, print, object(), [object()]])
async def test_d35_any_payload(bus: InMemoryEventBus, payload: Any) -> None:
    got: list[Event] = []
    await bus.subscribe("t", got.append)
    await bus.publish("t", Event(EventType.CREATED, "t", payload))
    assert got[0].payload is payload


async def test_d35_a_circular_payload(bus: InMemoryEventBus) -> None:
    got: list[Event] = []
    payload: dict[str, Any] = {}
    payload["self"] = payload
    await bus.subscribe("t", got.append)
    await bus.publish("t", Event(EventType.CREATED, "t", payload))
    assert got[0].payload["self"] is payload


def test_d35_a_cycle_through_the_payload_is_collected() -> None:
    # What a payload holds may well keep the events it was sent with.
    class Inbox:
        def __init__(self) -> None:
            self.events: list[Event] = []

    inbox = Inbox()
    inbox.events.append(Event(EventType.CREATED, "t", {"reply_to": inbox}))
    alive = weakref.ref(inbox)
    del inbox
    gc.collect()
    assert alive() is None


async def test_d35_a_cycle_through_bus_and_handler_is_collected() -> None:
    class Component:
        def __init__(self) -> None:
            self.bus = InMemoryEventBus()

        def on_event(self, event: Event) -> None: ...

    component = Component()
    await component.bus.subscribe("t", component.on_event)
    alive = weakref.ref(component)
    del component
    gc.collect()
    assert alive() is None


async def test_d35_an_event_of_odd_fields(bus: InMemoryEventBus) -> None:
    got: list[Event] = []
    await bus.subscribe("t", got.append)
    make: Any = Event
    event = make("no member", 5, None, "soon", 7, 1, 2, "metadata")
    await bus.publish("t", event)
    assert got[0] is event


@pytest.mark.parametrize(
    "topic", ["", " ", "\0", "a\nb", "日本語", "😀", "x" * 5000, "*", "a[b", "a:b:c", ":"]
)
async def test_d35_any_topic_text(bus: InMemoryEventBus, topic: str) -> None:
    seen: list[Event] = []
    subscription = await bus.subscribe(topic, seen.append)
    assert subscription.topic == topic
    await bus.publish(topic, made())
    await bus.publish(topic + "!", made())
    assert len(seen) == 1


# D36


@pytest.mark.parametrize("delivery", ["inline", "queued"])
async def test_d36_publish_and_subscribe_work_before_connect_and_after_close(
    caplog: pytest.LogCaptureFixture, eventually: Any, delivery: str
) -> None:
    bus = InMemoryEventBus(delivery=delivery)
    seen: list[Event] = []
    await bus.subscribe("t", seen.append)
    assert bus.subscription_count == 1
    await bus.publish("t", made())
    await eventually(lambda: len(seen) == 1)
    await bus.connect()
    await bus.publish("t", made())
    await eventually(lambda: len(seen) == 2)
    await bus.close()
    await bus.subscribe("t", seen.append)
    await bus.publish("t", made())
    await eventually(lambda: len(seen) == 3)
    await bus.close()


async def test_d36_one_warning_per_connection_state(caplog: pytest.LogCaptureFixture) -> None:
    bus = InMemoryEventBus()
    await bus.subscribe("t", print)
    assert unconnected(caplog) == []
    for _ in range(3):
        await bus.publish("t", made())
    assert len(unconnected(caplog)) == 1
    await bus.connect()
    for _ in range(3):
        await bus.publish("t", made())
    assert len(unconnected(caplog)) == 1
    await bus.close()
    for _ in range(3):
        await bus.publish("t", made())
        await bus.close()
    assert len(unconnected(caplog)) == 2
    for one in unconnected(caplog):
        assert one.levelno == logging.WARNING
        assert one.name.split(".")[0] == "eventbus"


async def test_d36_close_waits_for_nobody(bus: InMemoryEventBus) -> None:
    release, begun = asyncio.Event(), asyncio.Event()
    seen: list[str] = []

    async def slow(event: Event) -> None:
        begun.set()
        await release.wait()
        seen.append("ends")

    await bus.subscribe("t", slow)
    publish = asyncio.create_task(bus.publish("t", made()))
    await begun.wait()
    close = bus.close()
    with pytest.raises(StopIteration):
        # It does not even give the loop a turn.
        close.send(None)
    assert seen == []
    assert not publish.done()
    release.set()
    await publish
    assert seen == ["ends"]


async def test_d36_cancelling_the_publisher_cancels_the_handler_and_skips_the_rest(
    bus: InMemoryEventBus, caplog: pytest.LogCaptureFixture
) -> None:
    begun = asyncio.Event()
    seen: list[str] = []

    async def waits(event: Event) -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise
        finally:
            await asyncio.sleep(0)
            seen.append("cleaned up")

    await bus.subscribe("t", lambda event: seen.append("first"))
    await bus.subscribe("t", waits)
    await bus.subscribe("t", lambda event: seen.append("never"))
    publish = asyncio.create_task(bus.publish("t", made()))
    await begun.wait()
    publish.cancel("for this reason")
    with pytest.raises(asyncio.CancelledError) as caught:
        await publish
    assert caught.value.args == ("for this reason",)
    assert publish.cancelled()
    assert seen == ["first", "cancelled", "cleaned up"]
    assert [one for one in caplog.records if one.levelno >= logging.ERROR] == []
    assert bus.counters["failed"] == 0


async def test_d36_a_publish_that_times_out_is_cancelled(bus: InMemoryEventBus) -> None:
    seen: list[str] = []

    async def waits(event: Event) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            seen.append("cleaned up")

    await bus.subscribe("t", waits)
    await bus.subscribe("t", lambda event: seen.append("never"))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(bus.publish("t", made()), 0.001)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.001):
            await bus.publish("t", made())
    assert seen == ["cleaned up"] * 2


async def test_d36_a_publish_cancelled_before_it_began_calls_nobody(bus: InMemoryEventBus) -> None:
    seen: list[Event] = []
    await bus.subscribe("t", seen.append)
    publish = asyncio.create_task(bus.publish("t", made()))
    publish.cancel()
    with pytest.raises(asyncio.CancelledError):
        await publish
    assert seen == []


async def test_d36_a_handler_that_fails_while_it_is_cancelled_does_not_stop_the_cancellation(
    bus: InMemoryEventBus,
) -> None:
    begun = asyncio.Event()
    seen: list[Event] = []

    async def fails(event: Event) -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            raise ValueError("in its clean-up")

    await bus.subscribe("t", fails)
    await bus.subscribe("t", seen.append)
    publish = asyncio.create_task(bus.publish("t", made()))
    await begun.wait()
    publish.cancel()
    with pytest.raises(asyncio.CancelledError):
        await publish
    assert seen == []


# D59


@pytest.mark.parametrize(("overflow", "kept"), [("drop_oldest", [3, 4]), ("drop_newest", [0, 1])])
async def test_d59_an_overflow_is_told(
    caplog: pytest.LogCaptureFixture, eventually: Any, overflow: str, kept: list[int]
) -> None:
    bus: Any = create_event_bus(
        {"backend": "memory", "delivery": "queued", "queue_size": 2, "overflow": overflow}
    )
    gaps: list[Gap] = []
    seen: list[int] = []
    await bus.connect()
    await bus.subscribe("t", lambda event: seen.append(event.payload["n"]), on_gap=gaps.append)
    for number in range(5):
        await bus.publish("t", made(number))
    await eventually(lambda: len(seen) == 2 and gaps)
    assert seen == kept
    assert {gap.cause for gap in gaps} == {"overflow"}
    assert sum(gap.count or 0 for gap in gaps) == 3
    assert bus.counters["gaps"] == len(gaps)
    assert bus.counters["dropped"] == 3
    told = [one for one in caplog.records if "gap" in one.getMessage()]
    assert [one.levelno for one in told] == [logging.WARNING] * len(gaps)
    await bus.publish("t", made(9))
    await eventually(lambda: seen[-1] == 9)
    await bus.close()


async def test_d59_an_asynchronous_gap_callback_is_awaited_and_may_fail(
    caplog: pytest.LogCaptureFixture, eventually: Any
) -> None:
    told: list[Gap] = []

    async def on_gap(gap: Gap) -> None:
        await asyncio.sleep(0)
        told.append(gap)
        raise ValueError("from the gap callback")

    async with InMemoryEventBus(delivery="queued", queue_size=1) as bus:
        seen: list[int] = []
        await bus.subscribe("t", lambda event: seen.append(event.payload["n"]), on_gap=on_gap)
        for number in range(3):
            await bus.publish("t", made(number))
        await eventually(lambda: seen == [2])
        assert sum(gap.count or 0 for gap in told) == 2
    assert "from the gap callback" in caplog.text


async def test_d59_without_overflow_there_is_no_gap(
    queued: InMemoryEventBus, eventually: Any
) -> None:
    gaps: list[Gap] = []
    seen: list[Event] = []
    await queued.subscribe("t", seen.append, on_gap=gaps.append)
    for number in range(10_000):
        await queued.publish("t", made(number))
    await eventually(lambda: len(seen) == 10_000)
    assert gaps == []
