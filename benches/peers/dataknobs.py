"""The original buses of dataknobs-common over Redis and Postgres."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from dataknobs_common.events import Event, EventType

from benches.payload import TOPIC
from benches.peers.role import Payload, Producer, Seen


def bus_of(url: str, how: str) -> Any:
    if how == "redis":
        from dataknobs_common.events.redis import RedisEventBus

        where = urlsplit(url)
        return RedisEventBus(host=where.hostname, port=where.port)
    from dataknobs_common.events.postgres import PostgresEventBus

    return PostgresEventBus(connection_string=url)


class Dataknobs(Producer):
    def __init__(self, bus: Any) -> None:
        self._bus = bus

    async def one(self, payload: Payload) -> None:
        await self._bus.publish(TOPIC, Event(EventType.CREATED, TOPIC, payload))

    async def close(self) -> None:
        await self._bus.close()


async def producer(url: str, how: str) -> Producer:
    bus = bus_of(url, how)
    await bus.connect()
    return Dataknobs(bus)


class DataknobsConsumer:
    def __init__(self, url: str, how: str) -> None:
        self._url = url
        self._how = how

    async def run(self, seen: Seen, ready: Callable[[], None]) -> None:
        async def handle(event: Any) -> None:
            seen(event.payload)

        bus = bus_of(self._url, self._how)
        await bus.connect()
        await bus.subscribe(TOPIC, handle)
        ready()
        await asyncio.Event().wait()


def consumer(url: str, name: str, how: str) -> DataknobsConsumer:
    return DataknobsConsumer(url, how)
