"""streaq with its defaults."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from streaq import Worker

from benches.payload import ENVELOPE
from benches.peers.role import Payload, Producer, Seen


def application(url: str, seen: Seen | None = None) -> tuple[Any, Any]:
    worker: Any = Worker(redis_url=url, handle_signals=False)

    @worker.task(name="handle", ttl=0)
    async def handle(event: dict[str, Any]) -> None:
        if seen is not None:
            seen(event["payload"])

    return worker, handle


class StreaqProducer(Producer):
    def __init__(self, url: str) -> None:
        self._worker, self._task = application(url)

    async def open(self) -> None:
        await self._worker.__aenter__()

    async def one(self, payload: Payload) -> None:
        await self._task.enqueue({**ENVELOPE, "payload": payload})

    async def close(self) -> None:
        await self._worker.__aexit__(None, None, None)


async def producer(url: str) -> Producer:
    one = StreaqProducer(url)
    await one.open()
    return one


class StreaqConsumer:
    def __init__(self, url: str) -> None:
        self._url = url

    async def run(self, seen: Seen, ready: Callable[[], None]) -> None:
        worker, _ = application(self._url, seen)
        asyncio.get_running_loop().call_later(0.3, ready)
        await worker.run_async()


def consumer(url: str, name: str) -> StreaqConsumer:
    return StreaqConsumer(url)
