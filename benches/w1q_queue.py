"""W1q: a memory queue with acknowledgement, retry and dead-letter bookkeeping, one group."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from benches.measure import OURS, Case, Stopwatch, Target, Workload, check
from benches.payload import PAYLOAD, TOPIC
from eventbus import Event, EventType, connect

CREATED = EventType.CREATED
PEER = "asyncio.Queue"
BATCH = 100


def workloads() -> list[Workload]:
    """Return one and sixteen workers, fed one by one and in batches."""
    return [
        Workload(
            "W1q",
            f"memory queue, {workers} worker{'s' if workers > 1 else ''}, published {how}",
            20_000,
            [
                Case(OURS, eventbus(workers, batch, touch=False)),
                Case("eventbus, payload read", eventbus(workers, batch, touch=True)),
                Case(PEER, queue(workers, batch)),
            ],
            [Target(OURS, PEER, must=0.5, aim=1.0)],
        )
        for workers in (1, 16)
        for batch, how in ((False, "one by one"), (True, f"{BATCH} at once"))
    ]


def handler_until(
    n: int, *, touch: bool
) -> tuple[Callable[[Any], Awaitable[None]], asyncio.Future[None], list[int]]:
    """Return a handler that counts, what is done at the n-th event, and the count."""
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    seen = [0]

    async def handler(event: Any) -> None:
        if touch and event.payload["order_id"] != PAYLOAD["order_id"]:
            raise AssertionError("another payload")
        seen[0] += 1
        if seen[0] == n:
            done.set_result(None)

    return handler, done, seen


def eventbus(workers: int, batch: bool, *, touch: bool) -> Any:
    """Publish into a group with a consumer; ends when every event is acknowledged."""

    async def run(n: int, watch: Stopwatch) -> None:
        handler, done, seen = handler_until(n, touch=touch)
        async with connect("memory://") as bus:
            await bus.consume(TOPIC, handler, group="bench", concurrency=workers)
            publish, publish_many = bus.publish, bus.publish_many
            with watch.running():
                if batch:
                    for left in range(n, 0, -BATCH):
                        size = min(left, BATCH)
                        items = [(TOPIC, Event(CREATED, TOPIC, PAYLOAD)) for _ in range(size)]
                        await publish_many(items)
                else:
                    for _ in range(n):
                        await publish(TOPIC, Event(CREATED, TOPIC, PAYLOAD))
                await done
                await bus.wait_idle(60)
            [group] = (await bus.inspect())["groups"]
        check(OURS, group["acked"], n)
        check(OURS, seen[0], n)

    return run


def queue(workers: int, batch: bool) -> Any:
    """Put into an `asyncio.Queue` with workers; ends when every task is done."""

    async def run(n: int, watch: Stopwatch) -> None:
        handler, _, seen = handler_until(n, touch=False)
        waiting: asyncio.Queue[Event] = asyncio.Queue()

        async def work() -> None:
            while True:
                event = await waiting.get()
                try:
                    await handler(event)
                finally:
                    waiting.task_done()

        tasks = [asyncio.create_task(work()) for _ in range(workers)]
        put, put_nowait = waiting.put, waiting.put_nowait
        await asyncio.sleep(0)
        with watch.running():
            if batch:
                for _ in range(n):
                    put_nowait(Event(CREATED, TOPIC, PAYLOAD))
            else:
                for _ in range(n):
                    await put(Event(CREATED, TOPIC, PAYLOAD))
            await waiting.join()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        check(PEER, seen[0], n)

    return run
