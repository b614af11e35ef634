"""F2, F7: many loops, several threads, closed loops, uvloop: nothing bound, lost or printed."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import eventbus
from eventbus import Bus, Event

from .support import Footprint, group_of, run_script, sizes, until


def _eager() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    loop.set_task_factory(asyncio.eager_task_factory)  # type: ignore[attr-defined,unused-ignore]
    return loop


def _debug() -> asyncio.AbstractEventLoop:
    loop = asyncio.new_event_loop()
    loop.set_debug(True)
    loop.slow_callback_duration = 60.0
    return loop


class _NoReader(asyncio.SelectorEventLoop):
    """A loop that cannot watch descriptors, as Windows' default one."""

    def add_reader(self, *args: Any) -> None:
        raise NotImplementedError


def _uvloop() -> asyncio.AbstractEventLoop:
    return pytest.importorskip("uvloop").new_event_loop()


LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.new_event_loop,
    "debug": _debug,
    "uvloop": _uvloop,
    "no reader": _NoReader,
}
if sys.version_info >= (3, 12):
    LOOPS["eager"] = _eager


@pytest.fixture(params=LOOPS)
def runner(request: pytest.FixtureRequest) -> Iterator[asyncio.Runner]:
    with asyncio.Runner(loop_factory=LOOPS[request.param]) as runner:
        yield runner


async def use(bus: Bus, count: int = 20) -> None:
    """Use every part of a bus once, with suspending handlers."""
    topic, group = f"use:{id(asyncio.get_running_loop())}", f"group-{threading.get_ident()}"
    seen: dict[str, list[int]] = {"inline": [], "queued": [], "consume": [], "stream": []}

    def collect(path: str) -> Callable[[Event], Any]:
        async def handler(event: Event) -> None:
            await asyncio.sleep(0)
            seen[path].append(event.payload)

        return handler

    async def read(stream: AsyncIterator[Event]) -> None:
        async for event in stream:
            seen["stream"].append(event.payload)
            if len(seen["stream"]) == count:
                return

    inline = await bus.subscribe(topic, collect("inline"))
    queued = await bus.subscribe(topic, collect("queued"), delivery="queued")
    consumer = await bus.consume(topic, collect("consume"), group=group, concurrency=3)
    async with bus.stream(topic) as stream, asyncio.timeout(20):
        reading = asyncio.create_task(read(stream))
        await asyncio.sleep(0)
        for number in range(count):
            await bus.publish(topic, number)
        await reading
        await until(lambda: all(len(one) == count for one in seen.values()))
        async with bus.deliveries(topic, group=group + "-held") as deliveries:
            receive = asyncio.ensure_future(anext(deliveries))
            await asyncio.sleep(0)
            await bus.publish(topic, -1)
            await (await receive).ack()
    await inline.cancel()
    await queued.cancel()
    await consumer.stop()
    await bus.delete_group(group)
    await bus.delete_group(group + "-held")
    for path, numbers in seen.items():
        assert [one for one in sorted(numbers) if one >= 0] == list(range(count)), path


def test_every_part_works_on_every_kind_of_loop(runner: asyncio.Runner) -> None:
    async def main() -> None:
        async with eventbus.connect("memory://") as bus:
            await use(bus)
            async with bus.transaction() as tx:
                tx.put("key", 1)
                tx.publish("topic", 1)
            assert (await bus.read("key")) is not None
            for number in range(10):
                bus.publish_nowait("topic", number)
            await bus.flush()

    runner.run(main())


def test_cancelling_works_on_every_kind_of_loop(runner: asyncio.Runner) -> None:
    async def main() -> None:
        async with eventbus.connect("memory://") as bus, bus.stream("topic") as stream:
            for number in range(50):
                receive = asyncio.ensure_future(anext(stream))
                await asyncio.sleep(0)
                if number % 2:
                    await bus.publish("topic", number)
                receive.cancel()
                await asyncio.wait([receive])
                if number % 2:
                    if not receive.cancelled():
                        assert receive.result().payload == number
                    else:
                        assert (await anext(stream)).payload == number

    runner.run(main())


@sizes(200, 2_000)
def test_a_loop_per_test_and_one_shared_bus(count: int) -> None:
    bus = eventbus.connect("memory://")
    asyncio.run(bus.connect())
    footprints = []
    for number in range(count):
        asyncio.run(use(bus, 3))
        if number in (count // 2, count - 1):
            footprints.append(Footprint.now())
    asyncio.run(bus.close())
    first, last = footprints
    assert last.files <= first.files
    assert last.blocks - first.blocks < 3 * count
    assert last.bytes - first.bytes < 8 << 20


def test_two_threads_with_two_loops_share_a_bus() -> None:
    bus = eventbus.connect("memory://")
    count, threads = 300, 2
    ready = threading.Barrier(threads)
    queued: dict[int, list[int]] = {0: [], 1: []}
    consumed: list[int] = []

    def run(own: int) -> None:
        async def main() -> None:
            subscription = await bus.subscribe(
                "topic", lambda event: queued[own].append(event.payload), delivery="queued"
            )
            consumer = await bus.consume("topic", lambda event: consumed.append(event.payload))
            await asyncio.get_running_loop().run_in_executor(None, ready.wait)
            for number in range(count):
                await bus.publish("topic", own * count + number)
                if number % 7 == 0:
                    await asyncio.sleep(0)
            await until(lambda: len(queued[own]) == 2 * count)
            await until(lambda: len(consumed) == 2 * count)
            await subscription.cancel()
            await asyncio.get_running_loop().run_in_executor(None, ready.wait)
            await consumer.stop()

        asyncio.run(main())

    asyncio.run(bus.connect())
    with ThreadPoolExecutor(threads) as pool:
        for future in [pool.submit(run, own) for own in range(threads)]:
            future.result(30)
    for own in range(threads):
        mine = [one for one in queued[own] if one // count == own]
        assert mine == sorted(mine), "order per publisher"
        assert sorted(queued[own]) == list(range(2 * count))
    assert sorted(consumed) == list(range(2 * count))
    asyncio.run(bus.close())


async def test_a_worker_threads_loop_publishes_to_the_main_loop(bus: Bus) -> None:
    count = 500
    consumed: list[int] = []
    tasks: set[str] = set()

    async def handler(event: Event) -> None:
        tasks.add(threading.current_thread().name)
        await asyncio.sleep(0)
        consumed.append(event.payload)

    await bus.consume("topic", handler)

    def run() -> None:
        async def main() -> None:
            for number in range(count):
                await bus.publish("topic", number)

        asyncio.run(main())

    async with bus.stream("topic") as stream:
        work = asyncio.get_running_loop().run_in_executor(None, run)
        streamed = [(await asyncio.wait_for(anext(stream), 10)).payload for _ in range(count)]
        await work
    await until(lambda: len(consumed) == count)
    await bus.wait_idle()
    assert streamed == list(range(count))
    assert sorted(consumed) == list(range(count))
    assert tasks == {threading.current_thread().name}


async def test_publish_nowait_of_two_loops_is_published_whole(bus: Bus) -> None:
    seen: list[int] = []
    await bus.subscribe("topic", lambda event: seen.append(event.payload))

    def run(begin: int) -> None:
        async def main() -> None:
            for number in range(begin, begin + 200):
                bus.publish_nowait("topic", number)
                if number % 5 == 0:
                    await asyncio.sleep(0)
            await bus.flush()

        asyncio.run(main())

    loop = asyncio.get_running_loop()
    await asyncio.gather(*[loop.run_in_executor(None, run, begin) for begin in (0, 200, 400)])
    await bus.flush()
    assert sorted(seen) == list(range(600))


async def test_what_was_buffered_on_a_loop_that_ended_is_flushed_by_the_next(bus: Bus) -> None:
    seen: list[int] = []
    await bus.subscribe("topic", lambda event: seen.append(event.payload))

    async def main() -> None:
        for number in range(5):
            bus.publish_nowait("topic", number)

    await asyncio.to_thread(lambda: asyncio.run(main()))
    await bus.flush()
    assert seen == list(range(5))


TWO_LOOPS = """
bus = eventbus.connect("memory://")
async def first():
    await bus.connect()
    await bus.subscribe("topic", lambda event: None, delivery="queued")
    await bus.publish("topic", 0)
    await bus.wait_idle()
async def second():
    for number in range(10):
        await bus.publish("topic", number)
    print(bus.counters["dropped"], bus.counters["delivered"])
    await bus.close()
"""


def test_events_for_an_ended_loop_are_dropped_and_counted_in_silence() -> None:
    run = run_script(TWO_LOOPS + "asyncio.run(first())\nasyncio.run(second())\n")
    assert (run.code, run.out, run.err) == (0, "10 1\n", "")


def test_events_for_a_loop_closed_with_its_tasks_pending_are_dropped_and_counted() -> None:
    run = run_script(
        TWO_LOOPS
        + "loop = asyncio.new_event_loop()\nloop.run_until_complete(first())\nloop.close()\n"
        + "asyncio.run(second())\n"
    )
    assert (run.code, run.out) == (0, "10 1\n")
    # What asyncio itself says of tasks that its user left pending.
    lines = [line for line in run.err.splitlines() if "never awaited" not in line]
    assert all("Task was destroyed" in line or line.startswith("task: ") for line in lines), run.err


@sizes(2_000, 10_000)
@pytest.mark.parametrize(
    "keeps",
    [
        False,
        True,
    ],
    ids=["dropped", "kept"],
)
def test_loops_that_end_with_a_pending_receive_leave_nothing(count: int, keeps: bool) -> None:
    run = run_script(
        f"""
        def footprint():
            gc.collect()
            with open("/proc/self/statm") as statm:
                return len(os.listdir("/proc/self/fd")), int(statm.read().split()[1]) * 4096

        async def pending(bus, number):
            stream = bus.stream("other")
            tasks = [
                asyncio.ensure_future(anext(stream)),
                asyncio.ensure_future(anext(bus.deliveries("topic", group="taken", prefetch=1))),
            ]
            await asyncio.sleep(0)
            await bus.publish("topic", number)
            await asyncio.sleep(0)
            kept.append(tasks) if {keeps} else None

        async def rest(bus):
            found = 0
            async with bus.deliveries("topic", group="taken") as deliveries:
                while (await bus.inspect())["groups"][0]["acked"] < {count}:
                    delivery = await asyncio.wait_for(anext(deliveries), 5)
                    await delivery.ack()
                    found += 1
            print(found, len((await bus.inspect())["groups"]), bus.subscription_count)
            await bus.close()

        async def begin(bus):
            await bus.connect()
            await bus.declare_group("taken", "topic")

        faulthandler.dump_traceback_later(200, exit=True)
        kept = []
        bus = eventbus.connect("memory://")
        asyncio.run(begin(bus))
        marks = []
        for number in range({count}):
            asyncio.run(pending(bus, number))
            kept.clear()
            if number in ({count} // 2, {count} - 1):
                marks.append(footprint())
        asyncio.run(rest(bus))
        (files, before), (files_after, after) = marks
        print(files - files_after, after - before < 8 << 20)
        """,
        timeout=240.0,
    )
    assert (run.code, run.out, run.err) == (0, f"{count} 1 0\n0 True\n", "")


async def test_a_consumer_and_a_subscription_are_ended_from_another_loop(bus: Bus) -> None:
    seen: list[Any] = []
    subscription = await bus.subscribe(
        "topic", lambda event: seen.append("queued"), delivery="queued"
    )
    consumer = await bus.consume("topic", lambda event: seen.append("consumed"))
    await bus.publish("topic", 1)
    await until(lambda: len(seen) == 2)

    async def end() -> None:
        await subscription.cancel()
        await consumer.stop()

    await asyncio.to_thread(lambda: asyncio.run(end()))
    await bus.publish("topic", 2)
    await until(lambda: len(asyncio.all_tasks()) == 1)
    assert len(seen) == 2
    assert (await group_of(bus, "default"))["ready"] == 1
