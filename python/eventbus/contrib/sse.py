"""Background tasks over HTTP: an ASGI application that needs no framework."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import suppress
from typing import Any
from urllib.parse import parse_qs

from eventbus.background import BackgroundTaskManager, ServerSentEvent, sse_events
from eventbus.errors import EventBusError, NotFoundError

__all__ = ["HEADERS", "KEEP_ALIVE", "Source", "asgi_app", "frames", "source_of", "task_id_of"]

Source = Callable[[uuid.UUID, str | None], Awaitable[AsyncIterator[ServerSentEvent]]]
"""Called with a task and ``Last-Event-ID``; raises ``NotFoundError`` for an unknown task."""

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]

KEEP_ALIVE = 15.0
"""Seconds of silence after which a comment shows proxies that the stream lives."""

HEADERS = {
    "Content-Type": "text/event-stream; charset=utf-8",
    "Cache-Control": "no-cache, no-transform",
    # nginx would hold the events back.
    "X-Accel-Buffering": "no",
}


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


async def frames(
    events: AsyncIterator[ServerSentEvent], keep_alive: float = KEEP_ALIVE
) -> AsyncGenerator[bytes]:
    """Iterate over the bytes of a stream, with comments where it is silent.

    Closing the iterator closes the events.
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
            coming = None
            yield event.encode()
    finally:
        if coming is not None and not coming.done():
            coming.cancel()
            await asyncio.wait([coming])
        close = getattr(events, "aclose", None)
        if close is not None:
            await close()


def asgi_app(source: Source | BackgroundTaskManager, *, keep_alive: float = KEEP_ALIVE) -> ASGIApp:
    """Return an ASGI application: ``GET …?taskId=<uuid>`` streams the task's progress.

    400 when ``taskId`` (or ``task_id``) is no UUID, 404 when the task is unknown or expired, 405
    for other methods, 503 when the state cannot be read. The path does not matter: mount it where
    it belongs. When the client goes, everything it used is freed at once.

    Args:
        source: A manager, or where the events come from.
        keep_alive: Seconds of silence before a comment.
    """
    events_of = source_of(source) if isinstance(source, BackgroundTaskManager) else source

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
            return
        if scope["type"] != "http":
            raise NotImplementedError(f"scope {scope['type']!r} is not offered")
        if scope["method"] not in ("GET", "HEAD"):
            await _answer(send, 405, "method not allowed", {"Allow": "GET"})
            return
        task_id = task_id_of(scope["query_string"].decode("latin-1"))
        if task_id is None:
            await _answer(send, 400, "taskId must be a UUID")
            return
        headers = {key.lower(): value for key, value in scope["headers"]}
        last = headers.get(b"last-event-id")
        try:
            events = await events_of(task_id, None if last is None else last.decode("latin-1"))
        except NotFoundError as error:
            await _answer(send, 404, str(error))
            return
        except EventBusError as error:
            await _answer(send, 503, str(error))
            return
        await _stream(frames(events, keep_alive), receive, send)

    return app


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return


async def _answer(
    send: Send, status: int, text: str, headers: dict[str, str] | None = None
) -> None:
    given = {"Content-Type": "text/plain; charset=utf-8", **(headers or {})}
    await _begin(send, status, given)
    await send({"type": "http.response.body", "body": text.encode()})


async def _begin(send: Send, status: int, headers: dict[str, str]) -> None:
    raw = [(key.lower().encode(), value.encode()) for key, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})


async def _stream(body: AsyncGenerator[bytes], receive: Receive, send: Send) -> None:
    """Send until the events or the client end."""

    async def pump() -> None:
        async for chunk in body:
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    async def gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    await _begin(send, 200, HEADERS)
    pumping, leaving = asyncio.ensure_future(pump()), asyncio.ensure_future(gone())
    try:
        await asyncio.wait([pumping, leaving], return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in (pumping, leaving):
            task.cancel()
        await asyncio.wait([pumping, leaving])
        await body.aclose()
    for task in (pumping, leaving):
        with suppress(asyncio.CancelledError, OSError):
            task.result()
