"""What a claim reads, whatever the statistics of the tables say."""

from __future__ import annotations

import asyncio

from eventbus import Bus, Event
from postgres.conftest import Eventually
from servers.postgres import PostgresServer


async def test_a_claim_reads_what_it_takes_and_not_the_table(
    bus: Bus, server: PostgresServer, schema: str, eventually: Eventually
) -> None:
    items = [("work", number) for number in range(500)]
    await bus.declare_group("kept", "work")
    for _ in range(120):
        await bus.publish_many(items)
    # From now on the server thinks that all messages are of one group, and expects a claim to take
    # a part of them.
    server.execute(f"vacuum analyze {schema}.messages")
    await bus.declare_group("worked", "work")
    for _ in range(2):
        await bus.publish_many(items)

    def read() -> int:
        [(figure,)] = server.execute(
            "select idx_tup_read from pg_stat_all_indexes"
            " where schemaname = %s and indexrelname = 'messages_pkey'",
            schema,
        )
        return int(figure)

    async def settled() -> int:
        """Return the figure once the sessions have reported, which idle ones do each second."""
        last = -1
        while last != (now := read()):
            last = now
            await asyncio.sleep(1.5)
        return last

    before, done = await settled(), 0

    async def handle(event: Event) -> None:
        nonlocal done
        done += 1

    consumer = await bus.consume("work", handle, group="worked", concurrency=8)
    await eventually(lambda: done >= 1_000)
    await consumer.stop()
    assert await settled() - before <= 20 * done
