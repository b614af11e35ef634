"""asyncpg by hand: NOTIFY and LISTEN, or a table with a visibility time-out."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable
from typing import Any

import asyncpg

from benches.payload import ENVELOPE
from benches.peers.role import BATCH, Payload, Producer, Seen, batches

CHANNEL = "bench"

TABLE = """
create table if not exists bench_jobs (
    id bigint generated always as identity primary key,
    body text not null,
    visible timestamptz not null default now()
);
create index if not exists bench_jobs_visible on bench_jobs (visible, id);
"""

CLAIM = """
update bench_jobs set visible = now() + interval '30 seconds'
where id in (
    select id from bench_jobs where visible <= now()
    order by visible, id limit $1 for update skip locked
)
returning id, body
"""

IDLE = 0.001
"""Seconds until an empty table is looked at again."""


def packed(payload: Payload) -> str:
    return json.dumps({**ENVELOPE, "payload": payload})


class Asyncpg(Producer):
    def __init__(self, connection: Any, how: str, queue: bool) -> None:
        self._connection = connection
        self._how = how
        if queue:
            self._one = "insert into bench_jobs (body) values ($1)"
            self._many = "insert into bench_jobs (body) select unnest($1::text[])"
        else:
            self._one = f"select pg_notify('{CHANNEL}', $1)"
            self._many = f"select pg_notify('{CHANNEL}', body) from unnest($1::text[]) body"

    async def one(self, payload: Payload) -> None:
        await self._connection.execute(self._one, packed(payload))

    async def flood(self, payloads: Iterable[Payload]) -> None:
        if self._how == "one":
            await super().flood(payloads)
            return
        for batch in batches(payloads):
            await self._connection.execute(self._many, [packed(payload) for payload in batch])

    async def close(self) -> None:
        await self._connection.close()


async def producer(url: str, how: str, queue: bool = False) -> Producer:
    connection = await asyncpg.connect(url)
    if queue:
        await _table(connection)
    return Asyncpg(connection, how, queue)


async def _table(connection: Any) -> None:
    async with connection.transaction():
        await connection.execute("select pg_advisory_xact_lock(1)")
        await connection.execute(TABLE)


class AsyncpgConsumer:
    def __init__(self, url: str, how: str, queue: bool) -> None:
        self._url = url
        self._limit = 1 if how == "one" else BATCH
        self._queue = queue

    async def run(self, seen: Seen, ready: Callable[[], None]) -> None:
        connection: Any = await asyncpg.connect(self._url)

        async def handle(event: Any) -> None:
            seen(event["payload"])

        if self._queue:
            await _table(connection)
            ready()
            await self._claim(connection, handle)

        def heard(_connection: Any, _pid: int, _channel: str, body: str) -> None:
            seen(json.loads(body)["payload"])

        await connection.add_listener(CHANNEL, heard)
        ready()
        await asyncio.Event().wait()

    async def _claim(self, connection: Any, handle: Callable[[Any], Any]) -> None:
        while True:
            rows = await connection.fetch(CLAIM, self._limit)
            if not rows:
                await asyncio.sleep(IDLE)
                continue
            for row in rows:
                await handle(json.loads(row["body"]))
            ids = [row["id"] for row in rows]
            await connection.execute("delete from bench_jobs where id = any($1)", ids)


def consumer(url: str, name: str, how: str, queue: bool = False) -> AsyncpgConsumer:
    return AsyncpgConsumer(url, how, queue)
