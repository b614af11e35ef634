"""A recording handler, and a private Redis server that is looked at from outside."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

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
