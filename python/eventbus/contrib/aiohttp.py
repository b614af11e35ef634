"""Background tasks in an aiohttp application."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from eventbus.background import BackgroundTaskManager
from eventbus.contrib.sse import HEADERS, KEEP_ALIVE, Source, frames, source_of, task_id_of
from eventbus.errors import EventBusError, NotFoundError

if TYPE_CHECKING:
    from aiohttp.web import Request, StreamResponse

__all__ = ["background_task_handler", "handler_of"]

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
        try:
            await response.prepare(request)
            async for chunk in body:
                await response.write(chunk)
            await response.write_eof()
        except ConnectionResetError:
            # The client is gone; what it used is freed below.
            return response
        finally:
            await body.aclose()  # type: ignore[attr-defined]  # it is a generator
        return response

    return handler
