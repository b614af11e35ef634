"""Nothing a handler does stops a consumer, under load and on every broker."""

from __future__ import annotations

import asyncio
import random
from typing import Any

from bridge.support import group_of, seeded, sizes
from chaos.conftest import Connect
from eventbus import Delivery, Reject, Retry, RetryPolicy
from eventbus.testing import eventually

UNSTORABLE = "a \ud800 b \0 c"


class _Odd(BaseException):
    """Neither an exit nor an interrupt, but no ``Exception``."""


async def misbehave(rng: random.Random, delivery: Delivery) -> None:
    """Do one of the things that a handler may do."""
    task = asyncio.current_task()
    assert task is not None
    match rng.randrange(10):
        case 0:
            asyncio.get_running_loop().call_soon(task.cancel)
            await asyncio.Event().wait()
        case 1:
            # Hits whatever this worker does a little later.
            asyncio.get_running_loop().call_later(0.001, task.cancel)
        case 2:
            raise ValueError(UNSTORABLE)
        case 3:
            raise Reject(UNSTORABLE)
        case 4:
            raise Retry(after=0.0, reason=UNSTORABLE)
        case 5:
            raise _Odd
        case 6:
            raise asyncio.CancelledError
        case 7:
            await delivery.retry(after=0.0, reason=UNSTORABLE)
        case 8:
            asyncio.get_running_loop().call_soon(task.cancel)
            try:
                await asyncio.sleep(1.0)
            except asyncio.CancelledError:
                return
        case _:
            await asyncio.sleep(0.001)


@sizes(300, 20_000)
async def test_a_consumer_ends_every_delivery_whatever_its_handlers_do(
    connected: Connect, count: int
) -> None:
    rng = seeded()
    bus = await connected()
    calls: list[Any] = []

    async def handle(delivery: Delivery) -> None:
        calls.append(delivery.event.payload)
        await misbehave(rng, delivery)

    retry = RetryPolicy(max_attempts=4, max_deliveries=4, base=0.0)
    await bus.consume("t", handle, group="g", concurrency=8, retry=retry)
    for first in range(0, count, 100):
        await bus.publish_many([("t", number) for number in range(first, min(first + 100, count))])

    async def ended() -> bool:
        group = await group_of(bus, "g")
        return bool(group["acked"] + group["dead"] == count and not group["in_flight"])

    await eventually(ended, timeout=60.0 + count / 50)
    assert set(calls) == set(range(count))
    assert bus.counters["workers_replaced"] == 0
    assert (await bus.health())["ok"]
    for letter in await bus.dead_letters("g").list(limit=count):
        assert letter.reason in ("failed", "rejected")
