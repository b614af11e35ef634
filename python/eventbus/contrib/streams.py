"""What every web framework does alike for a stream of events: who may, how many, how slowly."""

from __future__ import annotations

import asyncio
import inspect
import logging
import threading
import uuid
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, TypedDict, Unpack
from urllib.parse import parse_qs

from eventbus.background import BackgroundTaskManager, ServerSentEvent, sse_events
from eventbus.config import Seconds, seconds
from eventbus.errors import EventBusError, InvalidArgumentError, NotFoundError

__all__ = [
    "HEADERS",
    "KEEP_ALIVE",
    "Authorize",
    "Refused",
    "Source",
    "StreamLimits",
    "Streams",
    "frames",
    "last_event_id_of",
    "source_of",
    "task_id_of",
]

log = logging.getLogger("eventbus.contrib.streams")

Source = Callable[[uuid.UUID, str | None], Awaitable[AsyncIterator[ServerSentEvent]]]
"""Called with a task and ``Last-Event-ID``; raises ``NotFoundError`` for an unknown task."""

Authorize = Callable[[Any, uuid.UUID], bool | Awaitable[bool]]
"""Called with the request and a task; only ``True`` lets the client in."""

KEEP_ALIVE = 15.0
"""Seconds of silence after which a comment shows proxies that the stream lives."""

HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache, no-transform",
    # nginx would hold the events back.
    "X-Accel-Buffering": "no",
}

_ID_LIMIT = 64  # characters of Last-Event-ID; ids of ours are decimal numbers
_RETRY = {"Retry-After": "5"}


class StreamLimits(TypedDict, total=False):
    """Who may watch a task, and what a client may cost.

    Attributes:
        authorize: ``authorize(scope, task_id)``, plain or async, is called before anything is
            read; whatever is not ``True``, and every exception, is answered with 403. ``scope``
            is the ASGI scope, with aiohttp the request. By default everybody who knows the id of
            a task may watch it.
        max_clients: Most open streams of the process, over all its handlers; 1,000 by default.
        max_clients_per_task: Most of them for one task; 100 by default.
        keep_alive: Seconds of silence before a comment; 15 by default.
        send_timeout: Seconds that a client may take nothing of what waits for it; then it is
            closed. 30 by default.
    """

    authorize: Authorize | None
    max_clients: int
    max_clients_per_task: int
    keep_alive: Seconds
    send_timeout: Seconds


class Refused(Exception):
    """A request that gets no stream.

    Attributes:
        status: Of the answer.
        text: Its body; says nothing about the server.
        headers: Beside those of a text.
    """

    def __init__(self, status: int, text: str, headers: dict[str, str] | None = None) -> None:
        """Make one."""
        super().__init__(status, text)
        self.status = status
        self.text = text
        self.headers = headers or {}


class _Clients:
    """Counts the open streams of this process; loops of several threads may share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._by_task: Counter[uuid.UUID] = Counter()
        self._all = 0

    @contextmanager
    def one(self, task_id: uuid.UUID, most: int, most_per_task: int) -> Generator[None]:
        """Count one client as long as it lasts.

        Raises:
            Refused: There are too many.
        """
        with self._lock:
            if self._all >= most or self._by_task[task_id] >= most_per_task:
                # Reading a Counter adds nothing to it.
                raise Refused(503, "too many open streams; try again later", _RETRY)
            self._all += 1
            self._by_task[task_id] += 1
        try:
            yield
        finally:
            with self._lock:
                self._all -= 1
                self._by_task[task_id] -= 1
                if not self._by_task[task_id]:
                    del self._by_task[task_id]


_clients = _Clients()


def source_of(manager: BackgroundTaskManager, family: str = "task") -> Source:
    """Return where the events of a manager's tasks come from."""

    async def source(task_id: uuid.UUID, last: str | None) -> AsyncIterator[ServerSentEvent]:
        if await manager.read(task_id) is None:
            raise NotFoundError(f"no background task {task_id}")
        return sse_events(manager, task_id, last_event_id=last, family=family)

    return source


def task_id_of(query: str) -> uuid.UUID | None:
    """Return the task that a query names by ``taskId`` or ``task_id``; ``None`` when it does not.

    Args:
        query: What stands behind the ``?``.
    """
    found = parse_qs(query)
    texts = found.get("taskId") or found.get("task_id") or [""]
    try:
        return uuid.UUID(texts[-1])
    except ValueError:
        return None


def last_event_id_of(raw: bytes | str | None) -> str | None:
    """Return what a client saw last; ``None`` for what cannot be the id of an event.

    Args:
        raw: The header ``Last-Event-ID``, of any content.
    """
    text = raw.decode("latin-1") if isinstance(raw, bytes) else raw
    if not text or len(text) > _ID_LIMIT or not (text.isascii() and text.isprintable()):
        return None
    return text


async def frames(
    events: AsyncIterator[ServerSentEvent], keep_alive: float = KEEP_ALIVE
) -> AsyncGenerator[bytes]:
    """Iterate over the bytes of a stream, with comments where it is silent.

    One event is fetched when the one before it was taken, so that nothing gathers here. Closing
    the iterator closes the events.
    """
    coming: asyncio.Future[ServerSentEvent] | None = None
    try:
        # Headers go out with the first bytes: the browser learns at once that it is connected.
        yield b": connected\n\n"
        while True:
            if coming is None:
                coming = asyncio.ensure_future(anext(events))
            done, _ = await asyncio.wait([coming], timeout=keep_alive)
            if not done:
                yield b": keep-alive\n\n"
                continue
            try:
                event = coming.result()
            except StopAsyncIteration:
                return
            finally:
                coming = None
            yield event.encode()
    finally:
        if coming is not None:
            coming.cancel()
            await asyncio.wait([coming])
            if not coming.cancelled():
                coming.exception()  # seen: nobody waits for it any more
        close = getattr(events, "aclose", None)
        if close is not None:
            await close()


async def _nothing() -> AsyncGenerator[bytes]:
    """Iterate over the body of an answer to HEAD."""
    chunks: tuple[bytes, ...] = ()
    for chunk in chunks:
        yield chunk


def _count(limits: StreamLimits, name: str, default: int) -> int:
    found: Any = limits.get(name, default)
    if not isinstance(found, int) or isinstance(found, bool) or found < 1:
        raise InvalidArgumentError(f"{name}={found!r} must be an int of at least 1")
    return found


def _time(limits: StreamLimits, name: str, default: float) -> float:
    given: Any = limits.get(name, default)
    found = seconds(given, name)
    if not found > 0:
        raise InvalidArgumentError(f"{name}={given!r} must be more than 0 seconds")
    return found


class Streams:
    """Opens streams for the clients of one handler."""

    def __init__(
        self, source: Source | BackgroundTaskManager, **limits: Unpack[StreamLimits]
    ) -> None:
        """Remember where events come from.

        Args:
            source: A manager, or where the events come from.
            **limits: Who may watch, and what a client may cost.

        Raises:
            InvalidArgumentError: A limit is not positive, or ``authorize`` cannot be called.
            TypeError: A limit that does not exist.
        """
        unknown = sorted(set(limits) - set(StreamLimits.__annotations__))
        if unknown:
            valid = ", ".join(StreamLimits.__annotations__)
            raise TypeError(f"unknown option {unknown[0]!r}; valid: {valid}")
        self._source = source_of(source) if isinstance(source, BackgroundTaskManager) else source
        self._authorize = limits.get("authorize")
        if self._authorize is not None and not callable(self._authorize):
            raise InvalidArgumentError(f"authorize={self._authorize!r} must be a function")
        self._most = _count(limits, "max_clients", 1000)
        self._most_per_task = _count(limits, "max_clients_per_task", 100)
        self._keep_alive = _time(limits, "keep_alive", KEEP_ALIVE)
        self._send_timeout = _time(limits, "send_timeout", 30.0)

    @asynccontextmanager
    async def open(
        self, scope: Any, *, method: str, query: str, last_event_id: bytes | str | None
    ) -> AsyncGenerator[AsyncGenerator[bytes]]:
        """Open the stream that a request asks for; leaving the context frees everything.

        Args:
            scope: What ``authorize`` gets.
            method: Of the request.
            query: What stands behind the ``?``.
            last_event_id: The header of that name, of any content.

        Raises:
            Refused: The client gets an answer instead.
        """
        if method not in ("GET", "HEAD"):
            raise Refused(405, "method not allowed", {"Allow": "GET, HEAD"})
        task_id = task_id_of(query)
        if task_id is None:
            raise Refused(400, "taskId must be a UUID")
        await self._let_in(scope, task_id)
        with _clients.one(task_id, self._most, self._most_per_task):
            events = await self._events(task_id, last_event_id)
            body = frames(events, self._keep_alive)
            try:
                if method == "GET":
                    yield body
                    return
            finally:
                await body.aclose()
                # A stream that never began has not closed its events.
                close = getattr(events, "aclose", None)
                if close is not None:
                    await close()
        yield _nothing()

    async def _let_in(self, scope: Any, task_id: uuid.UUID) -> None:
        if self._authorize is None:
            return
        try:
            allowed: Any = self._authorize(scope, task_id)
            if inspect.isawaitable(allowed):
                allowed = await allowed
        except Exception:
            log.warning("authorize failed task=%s; answered 403", task_id, exc_info=True)
            allowed = False
        if allowed is not True:
            # The same for every task: nobody learns which ones there are.
            raise Refused(403, "forbidden")

    async def _events(
        self, task_id: uuid.UUID, last: bytes | str | None
    ) -> AsyncIterator[ServerSentEvent]:
        try:
            return await self._source(task_id, last_event_id_of(last))
        except NotFoundError:
            raise Refused(404, "no such background task") from None
        except EventBusError as error:
            # Not told to the client: it may name servers and users.
            log.warning("cannot read a task task=%s reason=%s", task_id, error)
            raise Refused(503, "the task cannot be read; try again later", _RETRY) from None

    async def send(
        self, body: AsyncGenerator[bytes], write: Callable[[bytes], Awaitable[None]]
    ) -> bool:
        """Write a stream, one event after the other.

        What a client does not take waits at its source, which keeps a bounded number of events.

        Args:
            body: The stream.
            write: Returns once the client's connection has room again.

        Returns:
            Whether it was written to its end; not when the client takes nothing: close it.
        """
        try:
            async for chunk in body:
                timeout = asyncio.timeout(self._send_timeout)
                try:
                    async with timeout:
                        await write(chunk)
                except TimeoutError:
                    if not timeout.expired():
                        raise
                    log.warning("closing a client that took nothing for %g s", self._send_timeout)
                    return False
        except EventBusError as error:
            # Without `server_close` the page connects again, and is told then.
            log.warning("a stream ends early reason=%s", error)
        return True
