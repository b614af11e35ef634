"""dramatiq over Redis: its worker with its default number of threads."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import dramatiq
from dramatiq.brokers.redis import RedisBroker

from benches.payload import ENVELOPE
from benches.peers.role import Payload, Producer, Seen


def application(url: str, seen: Seen | None = None) -> tuple[Any, Any]:
    broker = RedisBroker(url=url)
    dramatiq.set_broker(broker)

    @dramatiq.actor(actor_name="handle")
    def handle(event: dict[str, Any]) -> None:
        if seen is not None:
            seen(event["payload"])

    return broker, handle


class DramatiqProducer(Producer):
    def __init__(self, url: str) -> None:
        self._broker, self._actor = application(url)

    async def one(self, payload: Payload) -> None:
        self._actor.send({**ENVELOPE, "payload": payload})

    async def close(self) -> None:
        self._broker.close()


async def producer(url: str) -> Producer:
    return DramatiqProducer(url)


class DramatiqConsumer:
    threads = True

    def __init__(self, url: str) -> None:
        self._url = url

    async def run(self, seen: Seen, ready: Callable[[], None]) -> None:
        broker, _ = application(self._url, seen)
        dramatiq.Worker(broker, worker_threads=8).start()
        ready()
        await asyncio.Event().wait()


def consumer(url: str, name: str) -> DramatiqConsumer:
    return DramatiqConsumer(url)
