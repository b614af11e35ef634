"""Background tasks in an aiohttp application."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from eventbus.background import BackgroundTaskManager
from eventbus.contrib.sse import HEADERS, KEEP_ALIVE, Source, frames, source_of, task_id_of
from eventbus.errors import EventBusError, NotFoundError

if TYPE_CHECKING:
    from aiohttp.web import Request, StreamResponse

__all__ = ["background_task_handler", "handler_of"]

log = logging.getLogger("eventbus.contrib.aiohttp")

_GLANCE = 0.2  # seconds between two looks whether the client is there

Handler = Callable[["Request"], Awaitable["StreamResponse"]]


def background_task_handler(
    manager: BackgroundTaskManager, *, keep_alive: float = KEEP_ALIVE
) -> Handler:
    """Return a handler that streams the progress of a manager's background tasks.

    ``app.router.add_get("/events/background-task", background_task_handler(manager))``; the task
    is named by ``?taskId=<uuid>``.

    Args:
        manager: The manager.
        keep_alive: Seconds of silence before a comment.

    Raises:
        ImportError: aiohttp is not installed.
    """
    return handler_of(source_of(manager), keep_alive=keep_alive)


def handler_of(source: Source, *, keep_alive: float = KEEP_ALIVE) -> Handler:
    """Return a handler over any source of events; see ``background_task_handler``."""
    try:
        from aiohttp import web
    except ImportError as error:
        raise ImportError("aiohttp is not installed: pip install 'eventbus[aiohttp]'") from error

    async def handler(request: Request) -> StreamResponse:
        task_id = task_id_of(request.query_string)
        if task_id is None:
            raise web.HTTPBadRequest(text="taskId must be a UUID")
        try:
            events = await source(task_id, request.headers.get("Last-Event-ID"))
        except NotFoundError as error:
            raise web.HTTPNotFound(text=str(error)) from None
        except EventBusError as error:
            raise web.HTTPServiceUnavailable(text=str(error)) from None
        response = web.StreamResponse(headers=HEADERS)
        body = frames(events, keep_alive)

        async def pump() -> None:
            async for chunk in body:
                await response.write(chunk)
            await response.write_eof()

        pumping: asyncio.Task[None] | None = None
        try:
            await response.prepare(request)
            pumping = asyncio.ensure_future(pump())
            # aiohttp tells of a client that left only when something is written.
            while not pumping.done() and not _is_gone(request):
                await asyncio.wait([pumping], timeout=_GLANCE)
            if pumping.done():
                pumping.result()
        except ConnectionResetError:
            log.debug("client left path=%s", request.path)
        finally:
            if pumping is not None and not pumping.done():
                pumping.cancel()
                await asyncio.wait([pumping])
            await body.aclose()
        return response

    return handler


def _is_gone(request: Request) -> bool:
    transport = request.transport
    return transport is None or transport.is_closing()
