"""A server that means harm: it speaks enough of a protocol, and then sends what it was told."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

__all__ = ["Hostile", "hostile", "postgres_login", "redis_login"]

Attack = Callable[[], "AsyncIterator[bytes]"]


@dataclass
class Hostile:
    """What such a server saw.

    Attributes:
        port: Where it listens.
        sent: Bytes of the attack that the sockets took, per connection, in order.
        closed: Connections that the other side has given up.
    """

    port: int = 0
    sent: list[int] = field(default_factory=list[int])
    closed: int = 0


def redis_login(data: bytes) -> bytes | None:
    """Answer what a client asks before it works; ``None`` once it asks for anything else."""
    answers = b""
    for command in data.split(b"*")[1:]:
        if b"HELLO" in command:
            answers += b"%2\r\n+server\r\n+redis\r\n+role\r\n+master\r\n"
        elif b"PING" in command or b"CLIENT" in command or b"AUTH" in command:
            answers += b"+OK\r\n"
        else:
            return None
    return answers


def postgres_login(data: bytes) -> bytes | None:
    """Accept who logs in; ``None`` once a query comes."""
    if data[4:8] == b"\x00\x03\x00\x00":
        return b"R\0\0\0\x08\0\0\0\0" + b"Z\0\0\0\x05I"
    return None


@contextlib.asynccontextmanager
async def hostile(
    attack: bytes,
    endless: bytes,
    login: Callable[[bytes], bytes | None] | None = None,
    most: int = 1 << 30,
) -> AsyncIterator[Hostile]:
    """Run a server that sends an attack, and then the same bytes again and again.

    Args:
        attack: What it begins with.
        endless: What it goes on with.
        login: What it answers first; ``None`` ends the login. Without, it attacks at once.
        most: Bytes after which it gives up, so that a client without limits ends, too.
    """
    seen = Hostile()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # No more waits in the sockets than the kernel keeps at least.
        writer.transport.set_write_buffer_limits(high=0)
        number = len(seen.sent)
        seen.sent.append(0)
        try:
            data = await reader.read(65_536)
            while login is not None and data and (answer := login(data)) is not None:
                writer.write(answer)
                data = await reader.read(65_536)
            chunk = attack
            while data and seen.sent[number] < most:
                writer.write(chunk)
                await writer.drain()
                seen.sent[number] += len(chunk)
                chunk = endless * max(1, 65_536 // len(endless))
        except ConnectionError:
            seen.closed += 1
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    seen.port = server.sockets[0].getsockname()[1]
    try:
        yield seen
    finally:
        server.close()
