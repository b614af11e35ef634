"""celery over Redis: its solo pool, JSON, results ignored, acknowledged late."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from celery import Celery, signals

from benches.payload import ENVELOPE
from benches.peers.role import Payload, Producer, Seen


def application(url: str, seen: Seen | None = None) -> tuple[Any, Any]:
    app = Celery("bench", broker=url)
    app.conf.update(
        task_ignore_result=True,
        task_acks_late=True,
        worker_hijack_root_logger=False,
        broker_connection_retry_on_startup=True,
        worker_send_task_events=False,
    )

    @app.task(name="handle")
    def handle(event: dict[str, Any]) -> None:
        if seen is not None:
            seen(event["payload"])

    return app, handle


class CeleryProducer(Producer):
    def __init__(self, url: str) -> None:
        self._app, self._task = application(url)
        self._connection = self._app.connection_for_write()
        self._producer = self._app.amqp.Producer(self._connection)

    async def one(self, payload: Payload) -> None:
        event = {**ENVELOPE, "payload": payload}
        self._task.apply_async((event,), producer=self._producer)

    async def close(self) -> None:
        self._connection.release()


async def producer(url: str) -> Producer:
    return CeleryProducer(url)


class CeleryConsumer:
    def __init__(self, url: str) -> None:
        self._url = url

    async def run(self, seen: Seen, ready: Callable[[], None]) -> None:
        app, _ = application(self._url, seen)
        signals.worker_ready.connect(lambda **_: ready(), weak=False)
        options = ["worker", "--pool=solo", "--loglevel=ERROR", "--without-gossip"]
        # It takes the thread: the solo pool runs the tasks here.
        app.worker_main([*options, "--without-mingle", "--without-heartbeat"])


def consumer(url: str, name: str) -> CeleryConsumer:
    return CeleryConsumer(url)
