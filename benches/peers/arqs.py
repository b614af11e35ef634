"""arq with its defaults; it needs an older redis-py, so it runs in an environment of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from arq import create_pool
from arq.connections import RedisSettings
from arq.worker import Worker, func

from benches.payload import ENVELOPE
from benches.peers.role import Payload, Producer, Seen


class ArqProducer(Producer):
    def __init__(self, pool: Any) -> None:
        self._pool = pool

    async def one(self, payload: Payload) -> None:
        await self._pool.enqueue_job("handle", {**ENVELOPE, "payload": payload})

    async def close(self) -> None:
        await self._pool.aclose()


async def producer(url: str) -> Producer:
    return ArqProducer(await create_pool(RedisSettings.from_dsn(url)))


class ArqConsumer:
    def __init__(self, url: str) -> None:
        self._url = url

    async def run(self, seen: Seen, ready: Callable[[], None]) -> None:
        async def handle(ctx: dict[Any, Any], event: dict[str, Any]) -> None:
            seen(event["payload"])

        worker = Worker(
            functions=[func(handle, name="handle")],
            redis_settings=RedisSettings.from_dsn(self._url),
            handle_signals=False,
            keep_result=0,
        )
        asyncio.get_running_loop().call_later(0.3, ready)
        await worker.async_run()


def consumer(url: str, name: str) -> ArqConsumer:
    return ArqConsumer(url)
