"""redis-py with msgpack, by hand: PUBLISH and SUBSCRIBE, or a stream with a consumer group."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

import msgpack
import redis.asyncio as redis
from redis.exceptions import ResponseError

from benches.payload import ENVELOPE, TOPIC
from benches.peers.role import Payload, Producer, Seen, batches, by_lanes

GROUP = "bench"
STREAM = "stream"


def packed(payload: Payload) -> bytes:
    return bytes(msgpack.packb({**ENVELOPE, "payload": payload}))


class RedisPy(Producer):
    """Sends with PUBLISH, or XADD."""

    def __init__(self, client: Any, how: str, stream: bool) -> None:
        self._client = client
        self._how = how
        self._stream = stream

    async def one(self, payload: Payload) -> None:
        if self._stream:
            await self._client.xadd(STREAM, {b"d": packed(payload)})
        else:
            await self._client.publish(TOPIC, packed(payload))

    async def flood(self, payloads: Iterable[Payload]) -> None:
        if self._how == "one":
            await super().flood(payloads)
        elif self._how == "gather":
            await by_lanes(payloads, self.one)
        else:
            for batch in batches(payloads):
                pipe = self._client.pipeline(transaction=False)
                for payload in batch:
                    if self._stream:
                        pipe.xadd(STREAM, {b"d": packed(payload)})
                    else:
                        pipe.publish(TOPIC, packed(payload))
                await pipe.execute()

    async def close(self) -> None:
        await self._client.aclose()


async def producer(url: str, how: str, stream: bool = False) -> Producer:
    client = redis.from_url(url, max_connections=64)
    await client.ping()
    return RedisPy(client, how, stream)


class RedisPyConsumer:
    """Listens, or reads 100 at a time and acknowledges them together after they were handled."""

    def __init__(self, url: str, name: str, stream: bool) -> None:
        self._url = url
        self._name = name
        self._stream = stream

    async def run(self, seen: Seen, ready: Callable[[], None]) -> None:
        async with redis.from_url(self._url, socket_timeout=None) as client:
            if self._stream:
                await self._read(client, seen, ready)
            else:
                await self._listen(client, seen, ready)

    async def _listen(self, client: Any, seen: Seen, ready: Callable[[], None]) -> None:
        unpack = msgpack.unpackb

        async def handle(event: Any) -> None:
            seen(event["payload"])

        async with client.pubsub(ignore_subscribe_messages=True) as listener:
            await listener.subscribe(TOPIC)
            ready()
            async for message in listener.listen():
                await handle(unpack(message["data"]))

    async def _read(self, client: Any, seen: Seen, ready: Callable[[], None]) -> None:
        unpack = msgpack.unpackb

        async def handle(event: Any) -> None:
            seen(event["payload"])

        with suppress(ResponseError):
            await client.xgroup_create(STREAM, GROUP, id="0", mkstream=True)
        ready()
        while True:
            found = await client.xreadgroup(
                GROUP, self._name, {STREAM: ">"}, count=100, block=1_000
            )
            # A list of pairs, or by the newer protocol a dict of lists.
            entries = _entries(found)
            if not entries:
                continue
            for _, fields in entries:
                await handle(unpack(fields[b"d"]))
            await client.xack(STREAM, GROUP, *(one for one, _ in entries))


def _entries(found: Any) -> list[Any]:
    if not found:
        return []
    if isinstance(found, dict):
        [lists] = found.values()
        return list(lists[0]) if lists and isinstance(lists[0], list) else list(lists)
    return list(found[0][1])


def consumer(url: str, name: str, how: str, stream: bool = False) -> RedisPyConsumer:
    return RedisPyConsumer(url, name, stream)
