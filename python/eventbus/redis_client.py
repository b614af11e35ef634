"""A client for single Redis commands, for what speaks the wire of another program."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from eventbus import _eventbus
from eventbus.errors import UnsupportedError

__all__ = ["RedisClient", "RedisReply", "RedisSubscription", "open_redis"]

RedisReply = bytes | int | list[Any] | None
"""An answer of the server; texts are bytes, arrays are lists."""

Argument = str | bytes | int | float


class RedisSubscription(Protocol):
    """The messages of a channel, buffered, as an async iterator."""

    def __aiter__(self) -> RedisSubscription:
        """Return the iterator itself."""
        ...

    async def __anext__(self) -> tuple[str | bytes, bytes] | None:
        """Return channel and message, or ``None`` for a gap; a cancelled wait loses nothing."""
        ...

    async def close(self) -> None:
        """End it."""


class RedisClient(Protocol):
    """One connection to a server, made anew when it breaks; commands are pipelined.

    Every call raises ``ConnectError`` when there is no server within the operation time-out,
    ``OperationTimeout`` when the answer was lost, ``OperationError`` when the server refused it.
    """

    async def connect(self) -> None:
        """Connect."""

    async def command(self, *args: Argument) -> RedisReply:
        """Run one command."""
        ...

    async def script(
        self, text: str, keys: Sequence[Argument], args: Sequence[Argument]
    ) -> RedisReply:
        """Run a Lua script, by its digest after the first time."""
        ...

    async def subscribe(self, channel: str, ring: int) -> RedisSubscription:
        """Subscribe to a channel; returns once the server confirmed it."""
        ...

    def keep(self, channel: str, keys: Sequence[str], values: Sequence[str]) -> None:
        """Drop unread, from now on, what comes on a channel and is not wanted.

        Args:
            channel: The channel.
            keys: Of msgpack maps that begin with one of these keys and a text, ...
            values: ... only those with one of these texts are kept; everything else is.
        """

    async def close(self) -> None:
        """Disconnect. Idempotent."""


def open_redis(config: Mapping[str, Any]) -> RedisClient:
    """Return a client that is not connected yet.

    Args:
        config: As for the Redis backend: ``{"endpoints": [{"host": …, "port": …}], "db": 4,
            "net": {"password": …}}``.

    Raises:
        UnsupportedError: This build has no Redis client.
        ConfigError: The configuration cannot be used.
    """
    make: Callable[[dict[str, Any]], RedisClient] | None = getattr(_eventbus, "RedisClient", None)
    if make is None:
        raise UnsupportedError(
            "this build of eventbus has no Redis client; build it with the feature 'redis'"
        )
    return make(dict(config))
