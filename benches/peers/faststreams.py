"""faststream over Redis: its pub/sub, or a stream with a group, by its own serialisation."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from faststream.redis import RedisBroker, StreamSub

from benches.payload import ENVELOPE, TOPIC
from benches.peers.role import Payload, Producer, Seen

STREAM = "stream"


class FastStream(Producer):
    def __init__(self, broker: Any, stream: bool) -> None:
        self._broker = broker
        self._to = {"stream": STREAM} if stream else {"channel": TOPIC}

    async def one(self, payload: Payload) -> None:
        await self._broker.publish({**ENVELOPE, "payload": payload}, **self._to)

    async def close(self) -> None:
        await self._broker.stop()


async def producer(url: str, stream: bool = False) -> Producer:
    broker = RedisBroker(url, logger=None)
    await broker.connect()
    return FastStream(broker, stream)


class FastStreamConsumer:
    def __init__(self, url: str, name: str, stream: bool) -> None:
        self._url = url
        self._name = name
        self._stream = stream

    async def run(self, seen: Seen, ready: Callable[[], None]) -> None:
        broker = RedisBroker(self._url, logger=None)
        if self._stream:
            source = {"stream": StreamSub(STREAM, group="bench", consumer=self._name)}
        else:
            source = {"channel": TOPIC}

        @broker.subscriber(**source)
        async def handle(event: dict) -> None:  # type: ignore[type-arg]
            seen(event["payload"])

        await broker.start()
        ready()
        await asyncio.Event().wait()


def consumer(url: str, name: str, stream: bool = False) -> FastStreamConsumer:
    return FastStreamConsumer(url, name, stream)
