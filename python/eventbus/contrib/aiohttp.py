"""Background tasks in an aiohttp application."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import TYPE_CHECKING, Unpack

from eventbus.background import BackgroundTaskManager
from eventbus.contrib.streams import HEADERS, Refused, Source, StreamLimits, Streams

if TYPE_CHECKING:
    from aiohttp.web import Request, StreamResponse

__all__ = ["background_task_handler", "handler_of"]

log = logging.getLogger("eventbus.contrib.aiohttp")

_GLANCE = 0.2  # seconds between two looks whether the client is there

Handler = Callable[["Request"], Awaitable["StreamResponse"]]


def background_task_handler(
    manager: BackgroundTaskManager, **limits: Unpack[StreamLimits]
) -> Handler:
    """Return a handler that streams the progress of a manager's background tasks.

    ``app.router.add_get("/events/background-task", background_task_handler(manager))``; the task
    is named by ``?taskId=<uuid>``. Answers are those of ``contrib.sse.asgi_app``.

    Args:
        manager: The manager.
        **limits: Those of ``asgi_app``; ``authorize`` gets the request and the task.

    Raises:
        ImportError: aiohttp is not installed.
        InvalidArgumentError: A limit is not positive, or ``authorize`` cannot be called.
    """
    return handler_of(manager, **limits)


def handler_of(source: Source | BackgroundTaskManager, **limits: Unpack[StreamLimits]) -> Handler:
    """Return a handler over any source of events; see ``background_task_handler``."""
    try:
        from aiohttp import web
    except ImportError as error:
        raise ImportError("aiohttp is not installed: pip install 'eventbus[aiohttp]'") from error
    streams = Streams(source, **limits)

    async def handler(request: Request) -> StreamResponse:
        try:
            async with streams.open(
                request,
                method=request.method,
                query=request.query_string,
                last_event_id=request.headers.get("Last-Event-ID"),
            ) as body:
                response = web.StreamResponse(headers=HEADERS)
                try:
                    await response.prepare(request)
                    await _stream(streams, body, request, response)
                except ConnectionResetError:
                    log.debug("client left path=%s", request.path)
                return response
        except Refused as refused:
            return web.Response(status=refused.status, text=refused.text, headers=refused.headers)

    return handler


async def _stream(
    streams: Streams, body: AsyncGenerator[bytes], request: Request, response: StreamResponse
) -> None:
    """Send until the events or the client end."""

    async def pump() -> None:
        if await streams.send(body, response.write):
            await response.write_eof()
        elif request.transport is not None:
            # Closing would wait until the client has taken what was written.
            request.transport.abort()

    pumping = asyncio.ensure_future(pump())
    try:
        # aiohttp tells of a client that left only when something is written.
        while not pumping.done() and not _is_gone(request):
            await asyncio.wait([pumping], timeout=_GLANCE)
        if pumping.done():
            pumping.result()
    finally:
        if not pumping.done():
            pumping.cancel()
            await asyncio.wait([pumping])


def _is_gone(request: Request) -> bool:
    transport = request.transport
    return transport is None or transport.is_closing()
