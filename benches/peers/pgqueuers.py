"""pgqueuer over asyncpg: jobs one by one or 100 at once, taken 100 at a time."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any

import asyncpg
from pgqueuer import AsyncpgDriver, PgQueuer, Queries

from benches.payload import ENVELOPE
from benches.peers.role import BATCH, Payload, Producer, Seen, batches

JOB = "handle"


async def prepare(url: str) -> None:
    """Install its schema."""
    connection = await asyncpg.connect(url)
    await Queries(AsyncpgDriver(connection)).install()
    await connection.close()


def packed(payload: Payload) -> bytes:
    return json.dumps({**ENVELOPE, "payload": payload}).encode()


class PgQueuerProducer(Producer):
    def __init__(self, connection: Any, how: str) -> None:
        self._connection = connection
        self._queries = Queries(AsyncpgDriver(connection))
        self._how = how

    async def one(self, payload: Payload) -> None:
        await self._queries.enqueue(JOB, packed(payload))

    async def flood(self, payloads: Iterable[Payload]) -> None:
        if self._how == "one":
            await super().flood(payloads)
            return
        for batch in batches(payloads):
            bodies: list[bytes | None] = [packed(payload) for payload in batch]
            await self._queries.enqueue([JOB] * len(bodies), bodies, [0] * len(bodies))

    async def close(self) -> None:
        await self._connection.close()


async def producer(url: str, how: str) -> Producer:
    return PgQueuerProducer(await asyncpg.connect(url), how)


class PgQueuerConsumer:
    def __init__(self, url: str) -> None:
        self._url = url

    async def run(self, seen: Seen, ready: Callable[[], None]) -> None:
        queuer = PgQueuer(AsyncpgDriver(await asyncpg.connect(self._url)))

        @queuer.entrypoint(JOB)
        async def handle(job: Any) -> None:
            seen(json.loads(job.payload)["payload"])

        ready()
        await queuer.run(batch_size=BATCH)


def consumer(url: str, name: str, how: str) -> PgQueuerConsumer:
    return PgQueuerConsumer(url)
