"""W5c: what a busy database costs: idle listeners of other channels, and a million settled rows."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import psycopg

from benches.brokers import PostgresServer
from benches.measure import Case, Result, Stopwatch, Target, Workload
from benches.payload import PAYLOAD, TOPIC
from eventbus import Bus, Event, EventType, connect

LISTENERS = 250
PUBLISHERS = 50
GROUP = "bench"
QUEUE = "queue, nobody listens"
QUEUE_BUSY = f"queue, {LISTENERS} idle listeners"
HEARD = "queue beside a subscriber, nobody else listens"
HEARD_BUSY = f"queue beside a subscriber, {LISTENERS} idle listeners"
NEWS = "broadcast to a subscriber, nobody else listens"
NEWS_BUSY = f"broadcast to a subscriber, {LISTENERS} idle listeners"
FRESH = "fresh table"
WORN = "after the settled rows"
CLAIM = "select id, binding, token from eventbus.claim(%s, '{}', '{}', %s, 30000000, 5)"
SETTLE = """
select lost from eventbus.commit(
    a_group => array_fill((select id from eventbus.groups), array[cardinality(%(ids)s::uuid[])]),
    a_binding => %(bindings)s, a_id => %(ids)s, a_token => %(tokens)s)
"""


async def publish_by_many(bus: Bus, topic: str, count: int) -> float:
    """Publish from so many tasks, each awaiting its own; returns nanoseconds per event."""
    left = iter(range(count))

    async def lane() -> None:
        for _ in left:
            await bus.publish(topic, Event(EventType.CREATED, topic, PAYLOAD))

    begin = time.perf_counter()
    await asyncio.gather(*(lane() for _ in range(PUBLISHERS)))
    return (time.perf_counter() - begin) / count * 1e9


async def rates(server: PostgresServer, rounds: int, count: int) -> dict[str, list[float]]:
    """Return what a publish costs with and without idle listeners of other channels.

    A queue alone sends no notifications. Beside a subscriber each parcel sends some, and each of
    them wakes every session of the database that listens to anything.
    """
    names = [QUEUE, QUEUE_BUSY, HEARD, HEARD_BUSY, NEWS, NEWS_BUSY]
    found: dict[str, list[float]] = {name: [] for name in names}
    async with connect(server.url()) as bus:
        await bus.declare_group(GROUP, TOPIC)
        await publish_by_many(bus, TOPIC, 1_000)
        for number in range(rounds):
            for busy in (True, False) if number % 2 else (False, True):
                with ExitStack() as stack:
                    for listener in range(LISTENERS if busy else 0):
                        idle = stack.enter_context(server.connection())
                        idle.execute(f"listen other_{listener}".encode())
                    queue, heard, news = names[1::2] if busy else names[::2]
                    found[queue].append(await publish_by_many(bus, TOPIC, count))
                    async with connect(server.url(), queue_size=100) as other:
                        await other.subscribe("*", _ignore, pattern="*")
                        found[heard].append(await publish_by_many(bus, TOPIC, count))
                        found[news].append(await publish_by_many(bus, "news", count))
                await bus.purge(GROUP)
    return found


async def _ignore(_event: Event) -> None:
    """Handle nothing: what is measured is the publisher."""


def claimed(client: psycopg.Connection[Any], limit: int) -> int:
    """Claim and acknowledge; returns how many."""
    rows = client.execute(CLAIM, (GROUP, limit)).fetchall()
    ids, bindings, tokens = zip(*rows, strict=True) if rows else ((), (), ())
    values = {"ids": list(ids), "bindings": list(bindings), "tokens": list(tokens)}
    if rows:
        lost = client.execute(SETTLE, values).fetchone()
        assert lost == ([],), lost
    return len(rows)


async def fill(bus: Bus, count: int) -> None:
    """Put events into the queue."""
    event = Event(EventType.CREATED, TOPIC, PAYLOAD)
    for begin in range(0, count, 1_000):
        await bus.publish_many([(TOPIC, event)] * min(1_000, count - begin))


async def claim_times(bus: Bus, client: psycopg.Connection[Any], turns: int) -> list[float]:
    """Return the microseconds of claims of 16, each acknowledged before the next."""
    await fill(bus, turns * 16)
    found = []
    for _ in range(turns):
        begin = time.perf_counter()
        rows = client.execute(CLAIM, (GROUP, 16)).fetchall()
        found.append((time.perf_counter() - begin) * 1e6)
        assert len(rows) == 16, "the queue is empty"
        ids, bindings, tokens = zip(*rows, strict=True)
        client.execute(
            SETTLE, {"ids": list(ids), "bindings": list(bindings), "tokens": list(tokens)}
        )
    return sorted(found)


async def claims(server: PostgresServer, settled: int) -> dict[str, list[float]]:
    """Return the microseconds of claims on a fresh table, and after so many settled rows."""
    url = server.create_database("worn")
    async with connect(url) as bus:
        await bus.declare_group(GROUP, TOPIC)
        with server.connection("worn") as client:
            await claim_times(bus, client, 200)
            fresh = await claim_times(bus, client, 1_000)
            # All but the newest ten thousand are settled at any time, as in a queue that is behind.
            await fill(bus, 10_000)
            done = 0
            while done < settled:
                await fill(bus, 10_000)
                while done < settled and (taken := claimed(client, 1_000)):
                    done += taken
                    if done % 10_000 == 0:
                        break
            worn = await claim_times(bus, client, 1_000)
    return {FRESH: fresh, WORN: worn}


def results(rounds: int, scale: float) -> Iterator[Result]:
    """Run both on a private PostgreSQL with its default settings."""
    with PostgresServer(config={"max_connections": LISTENERS + 50}) as server:
        count = max(1_000, int(20_000 * scale))
        found = asyncio.run(rates(server, rounds, count))
        cases = [Case(name, _never) for name in found]
        title = f"{PUBLISHERS} concurrent publishers beside {LISTENERS} idle listeners"
        targets = [Target(QUEUE_BUSY, QUEUE, must=0.5)]
        yield Result(Workload("W5c", title, count, cases, targets, slices=1), found)
        settled = max(10_000, int(1_000_000 * scale))
        times = asyncio.run(claims(server, settled))
        for name, part in (("p50", 0.5), ("p99", 0.99)):
            figures = {one: [all_of[int(len(all_of) * part)]] for one, all_of in times.items()}
            targets = [Target(WORN, FRESH, must=2, at_most=True)] if name == "p99" else []
            title = f"claim of 16 after {settled:,} settled rows, {name}, µs"
            cases = [Case(one, _never) for one in figures]
            yield Result(Workload("W5c", title, settled, cases, targets, [], "us", 1), figures)


async def _never(_n: int, _watch: Stopwatch) -> None:
    raise NotImplementedError
