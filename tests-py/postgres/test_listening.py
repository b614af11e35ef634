"""What is sent as notifications, seen by another client of the same database."""

from __future__ import annotations

import asyncio

import psycopg

from eventbus import Bus
from postgres.conftest import MakeBus
from servers.postgres import PostgresServer


def broadcasts(client: psycopg.Connection[object]) -> int:
    """Return how many notifications with broadcasts came; one of its own ends the wait."""
    client.execute("select pg_notify('end', '')")
    found = 0
    for notice in client.notifies(timeout=10.0):
        if notice.channel == "end":
            return found
        found += notice.payload.startswith("b")
    raise AssertionError("its own notification never came")


async def test_many_that_connect_at_once_do_not_take_the_server_for_a_pooler(
    make_bus: MakeBus,
) -> None:
    buses = await asyncio.gather(*(make_bus() for _ in range(20)))
    for bus in buses:
        figures = await bus.health()
        assert figures["state"] == "live"
        assert not [one for one in figures["warnings"] if "pooler" in one]


async def test_broadcasts_are_sent_only_while_somebody_listens(
    bus: Bus, make_bus: MakeBus, server: PostgresServer, schema: str
) -> None:
    other = await make_bus()
    await bus.declare_group("group", "work")
    with server.connection() as client:
        client.execute(f'listen "eventbus:{schema}"'.encode())
        client.execute('listen "end"')
        for topic in ("work", "news"):
            await bus.publish(topic, 1)
        assert broadcasts(client) == 0
        seen: list[object] = []
        await other.subscribe("*", lambda event: seen.append(event.payload), pattern="*")
        for topic in ("work", "news"):
            await bus.publish(topic, 2)
        assert broadcasts(client) == 2
        await other.wait_idle()
        assert seen == [2, 2]
        # With the session of the last listener ends what made it heard.
        await other.close()
        await bus.publish("news", 3)
        while broadcasts(client):
            await bus.publish("news", 4)
    figures = await bus.inspect()
    assert figures["groups"][0]["accepted"] == 2
