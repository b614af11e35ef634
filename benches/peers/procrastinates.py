"""procrastinate over psycopg: ten jobs at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from procrastinate import App, PsycopgConnector

from benches.payload import ENVELOPE
from benches.peers.role import Payload, Producer, Seen


def application(url: str, seen: Seen | None = None) -> tuple[Any, Any]:
    app = App(connector=PsycopgConnector(conninfo=url))

    @app.task(name="handle")
    async def handle(event: dict[str, Any]) -> None:
        if seen is not None:
            seen(event["payload"])

    return app, handle


async def prepare(url: str) -> None:
    """Install its schema."""
    app, _ = application(url)
    async with app.open_async():
        await app.schema_manager.apply_schema_async()


class ProcrastinateProducer(Producer):
    def __init__(self, app: Any, task: Any) -> None:
        self._app = app
        self._task = task

    async def one(self, payload: Payload) -> None:
        await self._task.defer_async(event={**ENVELOPE, "payload": payload})

    async def close(self) -> None:
        await self._app.close_async()


async def producer(url: str) -> Producer:
    app, task = application(url)
    await app.open_async()
    return ProcrastinateProducer(app, task)


class ProcrastinateConsumer:
    def __init__(self, url: str) -> None:
        self._url = url

    async def run(self, seen: Seen, ready: Callable[[], None]) -> None:
        app, _ = application(self._url, seen)
        async with app.open_async():
            ready()
            await app.run_worker_async(concurrency=10, install_signal_handlers=False)


def consumer(url: str, name: str) -> ProcrastinateConsumer:
    return ProcrastinateConsumer(url)
