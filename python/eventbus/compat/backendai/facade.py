"""The small Redis client that call sites expect, on a server or on any bus (B8)."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Protocol, Self

from eventbus.bus import Bus
from eventbus.compat.backendai.codec import decode_message
from eventbus.compat.backendai.wire import CHANNEL, QUEUE
from eventbus.dispatcher import Message, Target
from eventbus.errors import VersionConflict
from eventbus.redis_client import RedisClient

__all__ = ["BusRedis", "Pipeline", "RedisLike", "WireRedis"]

_RECORDS = "backendai/"


class RedisLike(Protocol):
    """What ``redis_producer`` offers; every value of a hash is text."""

    async def flushdb(self) -> None:
        """Empty the database, or this bus."""

    async def hgetall(self, key: str, *, encoding: str = "utf-8") -> dict[str, str]:
        """Return the fields of a hash; empty when it does not exist."""
        ...

    async def hmset_dict(self, key: str, *mapping: Mapping[str, Any], **fields: Any) -> None:
        """Set fields of a hash."""

    async def expire(self, key: str, seconds: float) -> None:
        """Let a key end by itself."""

    async def rpush(self, key: str, *values: str | bytes) -> int:
        """Append to a list; return its length."""
        ...

    async def publish(self, channel: str, message: str | bytes) -> int:
        """Send a message; return how many got it, where that is known."""
        ...

    def pipeline(self) -> Pipeline:
        """Return a pipeline: the same commands without await, then ``await execute()``."""
        ...

    def close(self) -> None:
        """Do nothing: the connection ends with its dispatcher or producer."""

    async def wait_closed(self) -> None:
        """Do nothing."""


class Pipeline:
    """Commands that are collected and run one after the other."""

    def __init__(self, redis: RedisLike) -> None:
        """Begin empty."""
        self._redis = redis
        self._steps: list[Callable[[], Awaitable[Any]]] = []

    def hgetall(self, key: str) -> Self:
        """Collect ``hgetall``."""
        return self._add(lambda: self._redis.hgetall(key))

    def hmset_dict(self, key: str, *mapping: Mapping[str, Any], **fields: Any) -> Self:
        """Collect ``hmset_dict``."""
        return self._add(lambda: self._redis.hmset_dict(key, *mapping, **fields))

    def expire(self, key: str, seconds: float) -> Self:
        """Collect ``expire``."""
        return self._add(lambda: self._redis.expire(key, seconds))

    def rpush(self, key: str, *values: str | bytes) -> Self:
        """Collect ``rpush``."""
        return self._add(lambda: self._redis.rpush(key, *values))

    def publish(self, channel: str, message: str | bytes) -> Self:
        """Collect ``publish``."""
        return self._add(lambda: self._redis.publish(channel, message))

    def flushdb(self) -> Self:
        """Collect ``flushdb``."""
        return self._add(self._redis.flushdb)

    def _add(self, step: Callable[[], Awaitable[Any]]) -> Self:
        self._steps.append(step)
        return self

    async def execute(self) -> list[Any]:
        """Run what was collected, in its order; return the results."""
        steps, self._steps = self._steps, []
        return [await step() for step in steps]


class _Facade:
    """What both forms have in common."""

    def close(self) -> None:
        """Do nothing: the connection ends with its dispatcher or producer."""

    async def wait_closed(self) -> None:
        """Do nothing."""


def _fields(mapping: tuple[Mapping[str, Any], ...], fields: dict[str, Any]) -> dict[str, str]:
    merged: dict[str, Any] = {}
    for one in mapping:
        merged.update(one)
    merged.update(fields)
    return {str(key): _text(value) for key, value in merged.items()}


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


class WireRedis(_Facade):
    """Over a Redis server."""

    def __init__(self, redis: RedisClient) -> None:
        """Use a client."""
        self._redis = redis

    async def flushdb(self) -> None:
        """Empty the database."""
        await self._redis.command("FLUSHDB")

    async def hgetall(self, key: str, *, encoding: str = "utf-8") -> dict[str, str]:
        """Return the fields of a hash."""
        reply: Any = await self._redis.command("HGETALL", key)
        flat = list(reply or ())
        texts = [one.decode(encoding, "replace") for one in flat]
        return dict(zip(texts[::2], texts[1::2], strict=True))

    async def hmset_dict(self, key: str, *mapping: Mapping[str, Any], **fields: Any) -> None:
        """Set fields of a hash."""
        flat: list[str] = []
        for field, value in _fields(mapping, fields).items():
            flat += [field, value]
        await self._redis.command("HSET", key, *flat)

    async def expire(self, key: str, seconds: float) -> None:
        """Let a key end by itself."""
        await self._redis.command("PEXPIRE", key, int(seconds * 1000))

    async def rpush(self, key: str, *values: str | bytes) -> int:
        """Append to a list."""
        return _count(await self._redis.command("RPUSH", key, *values))

    async def publish(self, channel: str, message: str | bytes) -> int:
        """Send a message."""
        return _count(await self._redis.command("PUBLISH", channel, message))

    def pipeline(self) -> Pipeline:
        """Return a pipeline."""
        return Pipeline(self)


def _count(reply: object) -> int:
    return reply if isinstance(reply, int) else 0


class BusRedis(_Facade):
    """Over any bus: hashes and lists are records, the two keys of the wire are the bus itself."""

    def __init__(self, bus: Bus, produce: Callable[[Message, Target], Awaitable[None]]) -> None:
        """Use a bus.

        Args:
            bus: Where the records are.
            produce: Sends what is pushed or published on the keys of the wire.
        """
        self._bus = bus
        self._produce = produce

    async def flushdb(self) -> None:
        """Remove what waits in every group, and every record, of this bus."""
        for group in (await self._bus.inspect())["groups"]:
            await self._bus.purge(group["group"])
        while page := await self._bus.scan(limit=500):
            async with self._bus.transaction() as tx:
                for record in page:
                    tx.delete(record.key)

    async def hgetall(self, key: str, *, encoding: str = "utf-8") -> dict[str, str]:
        """Return the fields of a hash."""
        del encoding
        found = await self._bus.read(_RECORDS + key)
        if found is None:
            return {}
        value: Any = found.value
        return {str(field): str(text) for field, text in value.get("hash", {}).items()}

    async def hmset_dict(self, key: str, *mapping: Mapping[str, Any], **fields: Any) -> None:
        """Set fields of a hash; it keeps its end."""
        new = _fields(mapping, fields)

        def change(value: dict[str, Any]) -> None:
            value["hash"] = {**value.get("hash", {}), **new}

        await self._change(key, change)

    async def expire(self, key: str, seconds: float) -> None:
        """Let a record end by itself."""

        def change(value: dict[str, Any]) -> None:
            value["ends"] = time.time() + seconds

        await self._change(key, change, create=False)

    async def _change(
        self, key: str, change: Callable[[dict[str, Any]], None], *, create: bool = True
    ) -> dict[str, Any]:
        """Change a record, however many others change it at the same time."""
        while True:
            found = await self._bus.read(_RECORDS + key)
            if found is None and not create:
                return {}
            value: dict[str, Any] = {} if found is None else dict(found.value)
            change(value)
            ends = value.get("ends")
            ttl = None if ends is None else max(ends - time.time(), 0.001)
            version = 0 if found is None else found.version
            try:
                async with self._bus.transaction() as tx:
                    tx.put(_RECORDS + key, value, if_version=version, ttl=ttl)
            except VersionConflict:
                continue
            return value

    async def rpush(self, key: str, *values: str | bytes) -> int:
        """Append to a list; on the list of the wire: produce for consumers."""
        if key == QUEUE:
            for value in values:
                await self._produce(decode_message(_bytes(value)), "consumers")
            return len(values)
        added = [_bytes(value) for value in values]

        def change(value: dict[str, Any]) -> None:
            value["list"] = [*value.get("list", []), *added]

        return len((await self._change(key, change))["list"])

    async def publish(self, channel: str, message: str | bytes) -> int:
        """Send a message; on the channel of the wire: produce for subscribers."""
        if channel == CHANNEL:
            await self._produce(decode_message(_bytes(message)), "subscribers")
        else:
            await self._bus.publish(channel, _bytes(message))
        return 0

    def pipeline(self) -> Pipeline:
        """Return a pipeline."""
        return Pipeline(self)


def _bytes(value: str | bytes) -> bytes:
    return value.encode() if isinstance(value, str) else value
