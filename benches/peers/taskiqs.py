"""taskiq over a Redis stream with acknowledgement, by its own receiver."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from taskiq.api import run_receiver_task
from taskiq_redis import RedisStreamBroker

from benches.payload import ENVELOPE
from benches.peers.role import Payload, Producer, Seen


def application(url: str, seen: Seen | None = None) -> tuple[Any, Any]:
    broker = RedisStreamBroker(url=url)

    @broker.task(task_name="handle")
    async def handle(event: dict[str, Any]) -> None:
        if seen is not None:
            seen(event["payload"])

    return broker, handle


class TaskiqProducer(Producer):
    def __init__(self, broker: Any, task: Any) -> None:
        self._broker = broker
        self._task = task

    async def one(self, payload: Payload) -> None:
        await self._task.kiq({**ENVELOPE, "payload": payload})

    async def close(self) -> None:
        await self._broker.shutdown()


async def producer(url: str) -> Producer:
    broker, task = application(url)
    await broker.startup()
    return TaskiqProducer(broker, task)


class TaskiqConsumer:
    def __init__(self, url: str) -> None:
        self._url = url

    async def run(self, seen: Seen, ready: Callable[[], None]) -> None:
        broker, _ = application(self._url, seen)
        broker.is_worker_process = True
        await broker.startup()
        ready()
        await run_receiver_task(broker)


def consumer(url: str, name: str) -> TaskiqConsumer:
    return TaskiqConsumer(url)
