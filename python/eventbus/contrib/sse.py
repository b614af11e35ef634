"""Background tasks over HTTP: an ASGI application that needs no framework."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, MutableMapping
from contextlib import suppress
from typing import Any, Unpack

from eventbus.background import BackgroundTaskManager
from eventbus.contrib.streams import (
    HEADERS,
    KEEP_ALIVE,
    Refused,
    Source,
    StreamLimits,
    Streams,
    frames,
    source_of,
    task_id_of,
)

__all__ = ["HEADERS", "KEEP_ALIVE", "Source", "asgi_app", "frames", "source_of", "task_id_of"]

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]

_ABORTED = 1.0  # seconds that an aborted connection may take to be known as gone


def asgi_app(source: Source | BackgroundTaskManager, **limits: Unpack[StreamLimits]) -> ASGIApp:
    """Return an ASGI application: ``GET …?taskId=<uuid>`` streams the task's progress.

    400 when ``taskId`` (or ``task_id``) is no UUID, 403 when ``authorize`` does not let the client
    in, 404 when the task is unknown or expired, 405 for other methods, 503 with ``Retry-After``
    when there are too many streams or the state cannot be read. The path does not matter: mount it
    where it belongs. When the client goes, everything it used is freed at once.

    Args:
        source: A manager, or where the events come from.
        **limits: Who may watch, and what a client may cost: ``authorize``, ``max_clients``,
            ``max_clients_per_task``, ``keep_alive``, ``send_timeout``.

    Raises:
        InvalidArgumentError: A limit is not positive, or ``authorize`` cannot be called.
    """
    streams = Streams(source, **limits)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
            return
        if scope["type"] != "http":
            raise NotImplementedError(f"scope {scope['type']!r} is not offered")
        headers = {key.lower(): value for key, value in scope["headers"]}
        try:
            async with streams.open(
                scope,
                method=scope["method"],
                query=scope["query_string"].decode("latin-1"),
                last_event_id=headers.get(b"last-event-id"),
            ) as body:
                await _stream(streams, body, receive, send)
        except Refused as refused:
            await _answer(send, refused)

    return app


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return


async def _answer(send: Send, refused: Refused) -> None:
    given = {"Content-Type": "text/plain; charset=utf-8", **refused.headers}
    await _begin(send, refused.status, given)
    await send({"type": "http.response.body", "body": refused.text.encode()})


async def _begin(send: Send, status: int, headers: dict[str, str]) -> None:
    raw = [(key.lower().encode(), value.encode()) for key, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": raw})


async def _stream(
    streams: Streams, body: AsyncGenerator[bytes], receive: Receive, send: Send
) -> None:
    """Send until the events or the client end."""

    async def write(chunk: bytes) -> None:
        await send({"type": "http.response.body", "body": chunk, "more_body": True})

    async def pump() -> None:
        if await streams.send(body, write):
            await send({"type": "http.response.body", "body": b""})
        else:
            _abort(receive)
            await asyncio.wait([leaving], timeout=_ABORTED)

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
    for task in (pumping, leaving):
        with suppress(asyncio.CancelledError, OSError):
            task.result()


def _abort(receive: Receive) -> None:
    """Drop the connection with what waits in it, where the server lets us have it.

    ASGI has no word for this. Servers close a response that is not complete, but wait until the
    client has taken what was written, which a client that never reads does not. uvicorn keeps the
    transport beside ``receive``.
    """
    transport = getattr(getattr(receive, "__self__", None), "transport", None)
    if isinstance(transport, asyncio.WriteTransport):
        transport.abort()
