"""A recording handler, a private Redis server, and a raw client where the build has none."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Mapping, Sequence
from typing import Any

from eventbus.errors import ConnectError, OperationError
from eventbus.testing import eventually
from servers.redis_server import RedisServer

Call = tuple[Any, ...]


class Seen(list[Call]):
    """Calls of a handler."""

    def __call__(self, *args: Any) -> None:
        self.append(args)

    async def later(self, *args: Any) -> None:
        self.append(args)

    async def count(self, number: int, timeout: float = 10) -> None:
        try:
            await eventually(lambda: len(self) >= number, f"{number} calls", timeout=timeout)
        except TimeoutError:
            raise AssertionError(f"{len(self)} of {number} calls: {self[:10]}") from None
        await asyncio.sleep(0.02)
        assert len(self) == number


class Server(RedisServer):
    """A private server; its database 4 is looked at as a stranger would."""

    @property
    def address(self) -> str:
        """The URL of database 4."""
        return self.url(4)

    def command(self, *args: str | bytes) -> bytes:
        """Run one command on database 4; return the raw reply."""
        with socket.create_connection(("127.0.0.1", self.port), 5) as line:
            for one in (("SELECT", "4"), args):
                parts = [part.encode() if isinstance(part, str) else part for part in one]
                text = b"*%d\r\n" % len(parts)
                text += b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in parts)
                line.sendall(text)
                reply = line.recv(1 << 20)
        return reply


class RedisPy:
    """``eventbus.redis_client.RedisClient`` over redis-py."""

    op_timeout = 10.0

    def __init__(self, config: Mapping[str, Any]) -> None:
        import redis.asyncio

        (endpoint,) = config["endpoints"]
        self._redis = redis.asyncio.Redis(
            host=endpoint["host"],
            port=endpoint["port"],
            db=config["db"],
            password=config["net"].get("password"),
            protocol=2,
            socket_timeout=None,
        )
        self._redis.response_callbacks.clear()
        self._pumps: list[asyncio.Task[None]] = []

    async def connect(self) -> None:
        await self.command("PING")

    async def command(self, *args: Any) -> Any:
        import redis.exceptions as errors

        deadline = time.monotonic() + self.op_timeout
        while True:
            try:
                return await self._redis.execute_command(*args)
            except (errors.ConnectionError, errors.TimeoutError, OSError) as error:
                if time.monotonic() > deadline:
                    raise ConnectError(str(error)) from error
                await asyncio.sleep(0.05)
            except errors.RedisError as error:
                raise OperationError(str(error)) from error

    async def script(self, text: str, keys: Sequence[Any], args: Sequence[Any]) -> Any:
        return await self.command("EVAL", text, len(keys), *keys, *args)

    async def subscribe(self, channel: str, ring: int) -> RedisPySubscription:
        deadline = time.monotonic() + self.op_timeout
        subscription = RedisPySubscription(ring)
        while True:
            try:
                pubsub = await self._join(channel)
                break
            except (OSError, ConnectError) as error:
                if time.monotonic() > deadline:
                    raise ConnectError(str(error)) from error
                await asyncio.sleep(0.05)
        pump = asyncio.create_task(self._pump(pubsub, channel, subscription))
        self._pumps.append(pump)
        return subscription

    async def _join(self, channel: str) -> Any:
        import redis.exceptions as errors

        pubsub = self._redis.pubsub()
        try:
            await pubsub.subscribe(channel)
            async with asyncio.timeout(5):
                while (await pubsub.get_message(timeout=5))["type"] != "subscribe":
                    pass
        except (errors.ConnectionError, errors.TimeoutError, TimeoutError, TypeError) as error:
            await pubsub.aclose()
            raise ConnectError(str(error)) from error
        return pubsub

    async def _pump(self, pubsub: Any, channel: str, target: RedisPySubscription) -> None:
        import redis.exceptions as errors

        try:
            while True:
                try:
                    found = await pubsub.connection.read_response()
                    if found[0] == b"message":
                        target.put((found[1], found[2]))
                except (errors.ConnectionError, OSError):
                    await pubsub.aclose()
                    while True:
                        try:
                            pubsub = await self._join(channel)
                            break
                        except (ConnectError, OSError):
                            await asyncio.sleep(0.05)
                    target.put(None)
        finally:
            await pubsub.aclose()

    async def close(self) -> None:
        for pump in self._pumps:
            pump.cancel()
        if self._pumps:
            await asyncio.wait(self._pumps)
        self._pumps.clear()
        await self._redis.aclose()


class RedisPySubscription:
    def __init__(self, ring: int) -> None:
        self._queue: asyncio.Queue[tuple[bytes, bytes] | None] = asyncio.Queue()
        self._ring = ring

    def put(self, item: tuple[bytes, bytes] | None) -> None:
        self._queue.put_nowait(item)

    def __aiter__(self) -> RedisPySubscription:
        return self

    async def __anext__(self) -> tuple[bytes, bytes] | None:
        return await self._queue.get()

    async def close(self) -> None:
        pass
