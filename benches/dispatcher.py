"""The dispatcher beside a loop over redis-py and msgpack, as dispatchers are written by hand."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal

import msgpack
import redis.asyncio as redis

from benches.measure import Case, Result, Run, Stopwatch, Target, Workload, check, measure
from benches.peers.role import AT_ONCE
from eventbus.compat.backendai import EventDispatcher

# The server is one of the tests'.
sys.path.insert(0, str(Path(__file__).parents[1] / "tests-py"))

from servers.redis_server import RedisServer

Wire = Literal["backendai", "native"]

QUEUE, CHANNEL = "events.prodcons", "events.pubsub"
NAME = "kernel_started"
ARGS = ("11111111-1111-1111-1111-111111111111", "creation-1")
# The rows are begun by `eventbus`: the table compares the first with the others.
OURS = "eventbus, original wire"
NATIVE = "eventbus, native wire"
PLAIN = "redis-py and msgpack"
DATABASE = 4
PATIENCE = 120.0


def packed() -> bytes:
    """Return an event as the original wire has it."""
    message = {"event_name": NAME, "agent_id": "manager", "args": ARGS}
    return bytes(msgpack.packb(message, use_bin_type=True))


async def one_by_one(n: int, one: Callable[[], Awaitable[object]]) -> None:
    """Produce n events, each when the one before it was accepted."""
    for _ in range(n):
        await one()


async def at_once(n: int, one: Callable[[], Awaitable[object]]) -> None:
    """Produce n events with ``AT_ONCE`` of them under way."""
    left = iter(range(n))

    async def lane() -> None:
        for _ in left:
            await one()

    await asyncio.gather(*(lane() for _ in range(AT_ONCE)))


Way = Callable[[int, Callable[[], Awaitable[object]]], Awaitable[None]]


class Turns:
    """One turn of each case, on an emptied server."""

    def __init__(self, server: RedisServer) -> None:
        """Use a server of its own."""
        self._server = server

    def _empty(self) -> None:
        with self._server.client() as client:
            client.flushall()

    @asynccontextmanager
    async def _dispatcher(self, wire: Wire) -> AsyncIterator[Any]:
        """Make a dispatcher on an emptied server that stores the events of ``NAME``."""
        self._empty()
        d = await EventDispatcher.new(bus=self._server.url(DATABASE), wire=wire)
        # On the native wire a name that was never consumed stores nothing.
        handler = d.consume(NAME, None, print)
        await d.connection.transport.bound()
        d.unconsume(NAME, handler)
        await d.connection.transport.bound()
        try:
            yield d
        finally:
            await d.close()

    @asynccontextmanager
    async def _client(self) -> AsyncIterator[Any]:
        """Make a client on an emptied server."""
        self._empty()
        url = self._server.url(DATABASE)
        async with redis.from_url(url, max_connections=64, socket_timeout=None) as client:
            await client.ping()
            yield client

    def produce(self, wire: Wire, way: Way) -> Run:
        """Return how a dispatcher produces; what it produced is consumed when the time is taken."""

        async def run(n: int, watch: Stopwatch) -> None:
            async with self._dispatcher(wire) as d:
                with watch.running():
                    await way(n, lambda: d.produce_event(NAME, ARGS))
                await consumed(d, n)

        return run

    def consume(self, wire: Wire) -> Run:
        """Return how a dispatcher consumes what is queued."""

        async def run(n: int, watch: Stopwatch) -> None:
            async with self._dispatcher(wire) as d:
                await at_once(n, lambda: d.produce_event(NAME, ARGS))
                with watch.running():
                    await consumed(d, n)

        return run

    def produce_plainly(self, way: Way) -> Run:
        """Return how a loop produces: each event pushed and published in one pipeline."""

        async def run(n: int, watch: Stopwatch) -> None:
            async with self._client() as client:

                async def one() -> None:
                    data = packed()
                    async with client.pipeline(transaction=False) as pipe:
                        pipe.rpush(QUEUE, data)
                        pipe.publish(CHANNEL, data)
                        await pipe.execute()

                with watch.running():
                    await way(n, one)
                check(PLAIN, await client.llen(QUEUE), n)

        return run

    async def consume_plainly(self, n: int, watch: Stopwatch) -> None:
        """Pop what is queued one by one, each event handled in a task of its own."""
        async with self._client() as client:
            await client.rpush(QUEUE, *[packed()] * n)
            seen = 0
            running: set[asyncio.Task[None]] = set()
            all_seen = asyncio.Event()

            async def handle(agent_id: str, name: str, *args: Any) -> None:
                nonlocal seen
                seen += 1
                if seen == n:
                    all_seen.set()

            with watch.running():
                for _ in range(n):
                    _, data = await client.blpop(QUEUE, 1)
                    found = msgpack.unpackb(data, use_list=False)
                    call = handle(found["agent_id"], found["event_name"], *found["args"])
                    task = asyncio.create_task(call)
                    running.add(task)
                    task.add_done_callback(running.discard)
                await all_seen.wait()
            check(PLAIN, seen, n)


async def consumed(d: Any, n: int) -> None:
    """Consume until n events were handled; it is an error when there are more."""
    seen, all_seen = 0, asyncio.Event()

    async def handle(context: Any, agent_id: str, name: str, *args: Any) -> None:
        nonlocal seen
        seen += 1
        if seen == n:
            all_seen.set()

    handler = d.consume(NAME, None, handle)
    async with asyncio.timeout(PATIENCE):
        await all_seen.wait()
    d.unconsume(NAME, handler)
    check("the dispatcher", seen, n)


def workloads(turns: Turns) -> list[Workload]:
    """Return producing and consuming, on both wires."""
    produce, consume = turns.produce, turns.consume
    lanes = f"{AT_ONCE} at once"
    return [
        Workload(
            "dispatcher",
            "produced: queued for one consumer and sent to all subscribers",
            10_000,
            [
                Case(f"{OURS}, {lanes}", produce("backendai", at_once)),
                Case(f"{NATIVE}, {lanes}", produce("native", at_once)),
                Case(OURS, produce("backendai", one_by_one), 5_000),
                Case(NATIVE, produce("native", one_by_one), 5_000),
                Case(PLAIN, turns.produce_plainly(one_by_one), 5_000),
                Case(f"{PLAIN}, {lanes}", turns.produce_plainly(at_once), 5_000),
            ],
            [
                Target(f"{OURS}, {lanes}", PLAIN, must=3),
                Target(f"{NATIVE}, {lanes}", PLAIN, must=3),
                Target(OURS, PLAIN, must=1),
            ],
            slices=1,
        ),
        Workload(
            "dispatcher",
            "consumed: each event handled in a task of its own, and acknowledged",
            20_000,
            [
                Case(OURS, consume("backendai")),
                Case(NATIVE, consume("native")),
                Case(PLAIN, turns.consume_plainly, 5_000),
            ],
            [Target(OURS, PLAIN, must=5), Target(NATIVE, PLAIN, aim=5)],
            slices=1,
        ),
    ]


def results(rounds: int, scale: float, *, cpu: bool, collect: bool) -> Iterator[Result]:
    """Run it on a private Redis."""
    with RedisServer() as server:
        for load in workloads(Turns(server)):
            yield measure(load, scale=scale, rounds=rounds, cpu=cpu, collect=collect)
