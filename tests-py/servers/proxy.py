"""A TCP proxy that breaks connections on order: slow, half open, cut inside a reply, reset."""

from __future__ import annotations

import asyncio
import random
import socket
import struct
import threading
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal, Self

Direction = Literal["up", "down"]
"""``up`` goes to the server, ``down`` comes back from it."""

BOTH: tuple[Direction, ...] = ("up", "down")

_RST = struct.pack("ii", 1, 0)
_CHUNK = 64 << 10


@dataclass(frozen=True)
class Fault:
    """One thing that was done to a connection.

    Attributes:
        at: Seconds since the proxy was made.
        connection: Its number, from 1.
        what: ``open``, ``end``, ``refuse``, ``hold``, ``cut``, ``rst``, ``retarget`` or
            ``drop_reply``.
        detail: More about it.
    """

    at: float
    connection: int
    what: str
    detail: str = ""


@dataclass
class _Way:
    """What happens to the bytes of one direction."""

    delay: float = 0.0
    jitter: float = 0.0
    throttle: float | None = None
    cut_after: int | None = None
    cut_by_rst: bool = False
    open: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(eq=False)
class _Connection:
    number: int
    client: asyncio.StreamWriter
    server: asyncio.StreamWriter
    passed: dict[Direction, int] = field(default_factory=lambda: {"up": 0, "down": 0})
    doomed: bool = False


class FaultProxy:
    """Stands between clients and a server, in a thread of its own.

    Every method may be called from any thread, also inside a running event loop: none blocks longer
    than the proxy's own loop needs. What is set holds for the connections of now and later, until
    ``heal()``.

    Attributes:
        port: Where it listens, on 127.0.0.1.
        seed: Of the random choices; printed, so that a failure can be run again.
        log: What was done, in order.
    """

    def __init__(self, port: int, host: str = "127.0.0.1", *, seed: int | None = None) -> None:
        """Start to forward.

        Args:
            port: Of the server.
            host: Of the server.
            seed: Of the random choices; by default a random one.
        """
        self.seed = random.randrange(2**32) if seed is None else seed
        self.log: list[Fault] = []
        self._random = random.Random(self.seed)
        self._target = (host, port)
        self._begin = time.monotonic()
        self._connections: set[_Connection] = set()
        self._transports: list[asyncio.WriteTransport] = []
        self._numbers = 0
        self._refusing = False
        self._drop = 0.0
        self._matches: Callable[[bytes], bool] = lambda chunk: True
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fault-proxy")
        self._thread.daemon = True
        self._thread.start()
        self._ways: dict[Direction, _Way] = {}
        self.port = self._run(self._listen())

    # What a test does

    def slow(
        self, *ways: Direction, delay: float = 0.0, jitter: float = 0.0, throttle: float = 0.0
    ) -> None:
        """Delay each chunk by seconds ± jitter, and pass at most ``throttle`` bytes a second."""
        for way in ways or BOTH:
            one = self._ways[way]
            one.delay, one.jitter, one.throttle = delay, jitter, throttle or None

    def hold(self, *ways: Direction) -> None:
        """Forward nothing, but keep both sockets open: the peer seems to be there."""

        async def stop() -> None:
            for way in ways or BOTH:
                self._ways[way].open.clear()
                self._note(0, "hold", way)

        self._run(stop())

    def release(self, *ways: Direction) -> None:
        """End ``hold``: what waited is forwarded."""

        async def go_on() -> None:
            for way in ways or BOTH:
                self._ways[way].open.set()

        self._run(go_on())

    def cut_after(self, count: int, way: Direction = "down", *, rst: bool = False) -> None:
        """Close each connection after so many more bytes of a direction, inside a message."""

        async def arm() -> None:
            for connection in self._connections:
                connection.passed[way] = 0
            self._ways[way].cut_after = count
            self._ways[way].cut_by_rst = rst

        self._run(arm())

    def cut(self, *, rst: bool = False) -> int:
        """Close every connection now, by FIN or by RST; returns how many."""

        async def cut_all() -> int:
            found = list(self._connections)
            for connection in found:
                self._close(connection, "rst" if rst else "cut")
            return len(found)

        return self._run(cut_all())

    def retarget(self, port: int, host: str = "127.0.0.1") -> None:
        """Lead new connections to another server; those that are open stay where they are."""

        async def lead() -> None:
            self._target = (host, port)
            self._note(0, "retarget", f"{host}:{port}")

        self._run(lead())

    def refuse(self) -> None:
        """Close new connections at once."""
        self._refusing = True

    def drop_replies(
        self, probability: float, matches: Callable[[bytes], bool] = lambda chunk: True
    ) -> None:
        """Forward a command, throw the answer away and cut, with a probability per command.

        A chunk from the client counts as a command, so a pipeline counts as one.

        Args:
            probability: From 0 to 1, by the seed.
            matches: Which chunks count.
        """
        self._drop, self._matches = probability, matches

    def heal(self) -> None:
        """End every fault; connections that live go on."""
        self._refusing, self._drop = False, 0.0

        async def reset() -> None:
            for one in self._ways.values():
                one.delay = one.jitter = 0.0
                one.throttle = one.cut_after = None
                one.open.set()

        self._run(reset())

    @property
    def connections(self) -> int:
        """How many connections are open."""
        return len(self._connections)

    def count(self, what: str) -> int:
        """Return how often something was done."""
        return sum(fault.what == what for fault in self.log)

    def close(self) -> None:
        """Reset every connection and end. Idempotent."""
        if not self._thread.is_alive():
            return

        async def end() -> None:
            own = asyncio.current_task()
            # What was accepted and has no transport yet cannot be closed, and gets none after the
            # server has closed: its socket would leak.
            while accepting := [
                task for task in asyncio.all_tasks() if "_accept" in repr(task.get_coro())
            ]:
                await asyncio.gather(*accepting, return_exceptions=True)
            self._server.close()
            for connection in list(self._connections):
                self._close(connection, "rst")
            left = [task for task in asyncio.all_tasks() if task is not own]
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)
            # Also those whose task never began, and those that still had something to write.
            for transport in self._transports:
                transport.abort()
            # They close their sockets in the next turn of the loop.
            for _ in range(3):
                await asyncio.sleep(0)

        self._run(end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5.0)
        self._loop.close()

    def __enter__(self) -> Self:
        """Return itself; it forwards already."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()

    # Its own thread

    def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(10.0)

    async def _listen(self) -> int:
        self._ways = {"up": _Way(), "down": _Way()}
        for one in self._ways.values():
            one.open.set()
        serving = set[asyncio.Task[None]]()

        def accepted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self._transports.append(writer.transport)
            task = self._loop.create_task(self._serve(reader, writer))
            serving.add(task)
            task.add_done_callback(serving.discard)

        self._server = await asyncio.start_server(accepted, "127.0.0.1", 0)
        return int(self._server.sockets[0].getsockname()[1])

    def _note(self, connection: int, what: str, detail: str = "") -> None:
        self.log.append(Fault(time.monotonic() - self._begin, connection, what, detail))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._numbers += 1
        number = self._numbers
        if self._refusing:
            self._note(number, "refuse")
            _reset(writer)
            return
        try:
            from_server, to_server = await asyncio.open_connection(*self._target)
        except (OSError, asyncio.CancelledError) as error:
            self._note(number, "refuse", str(error))
            _reset(writer)
            return
        self._transports.append(to_server.transport)
        connection = _Connection(number, writer, to_server)
        for one in (writer, to_server):
            one.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._connections.add(connection)
        self._note(number, "open")
        try:
            await asyncio.gather(
                self._pump(connection, "up", reader, to_server),
                self._pump(connection, "down", from_server, writer),
            )
            if connection in self._connections:
                self._close(connection, "end")
        except OSError as error:
            self._close(connection, "end", str(error))
        except asyncio.CancelledError:
            self._close(connection, "rst", "the proxy ends")

    async def _pump(
        self,
        connection: _Connection,
        way: Direction,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> None:
        settings = self._ways[way]
        while chunk := await reader.read(_CHUNK):
            pause = settings.delay + self._random.uniform(-settings.jitter, settings.jitter)
            if pause > 0:
                await asyncio.sleep(pause)
            await settings.open.wait()
            if connection not in self._connections:
                return
            if way == "down" and connection.doomed:
                self._close(connection, "drop_reply", f"{len(chunk)} bytes")
                return
            if way == "up" and self._drop and self._matches(chunk):
                connection.doomed |= self._random.random() < self._drop
            if settings.cut_after is not None:
                left = settings.cut_after - connection.passed[way]
                if len(chunk) >= left:
                    writer.write(chunk[:left])
                    with suppress(OSError):
                        await writer.drain()
                    reset = "rst" if settings.cut_by_rst else "cut"
                    self._close(connection, reset, f"{way} after {settings.cut_after} bytes")
                    return
            connection.passed[way] += len(chunk)
            await self._forward(settings, writer, chunk)
        # One side ended: so does the other; nobody here uses half-closed connections.
        if connection in self._connections:
            self._close(connection, "end")

    async def _forward(self, way: _Way, writer: asyncio.StreamWriter, chunk: bytes) -> None:
        if way.throttle is None:
            writer.write(chunk)
            await writer.drain()
            return
        step = max(1, int(way.throttle / 20))
        for begin in range(0, len(chunk), step):
            writer.write(chunk[begin : begin + step])
            await writer.drain()
            await asyncio.sleep(step / way.throttle)

    def _close(self, connection: _Connection, what: str, detail: str = "") -> None:
        if connection not in self._connections:
            return
        self._connections.discard(connection)
        self._note(connection.number, what, detail)
        for writer in (connection.client, connection.server):
            if what == "rst":
                _reset(writer)
            else:
                writer.close()


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close by RST: without lingering the kernel throws away what is left."""
    with suppress(OSError):
        one = writer.get_extra_info("socket")
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RST)
    writer.transport.abort()
