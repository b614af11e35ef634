"""Background tasks in a FastAPI application."""

from __future__ import annotations

from typing import TYPE_CHECKING, Unpack

from eventbus.background import BackgroundTaskManager
from eventbus.contrib.starlette import background_task_route
from eventbus.contrib.streams import Source, StreamLimits

if TYPE_CHECKING:
    from fastapi import APIRouter

__all__ = ["background_task_router"]


def background_task_router(
    manager: BackgroundTaskManager | Source,
    path: str = "/events/background-task",
    **limits: Unpack[StreamLimits],
) -> APIRouter:
    """Return a router for ``app.include_router``; see ``contrib.starlette``.

    Args:
        manager: A manager, or where the events come from.
        path: Its path; the task is named by ``?taskId=<uuid>``.
        **limits: Who may watch, and what a client may cost; see ``contrib.sse.asgi_app``.

    Raises:
        ImportError: FastAPI is not installed.
        InvalidArgumentError: A limit is not positive, or ``authorize`` cannot be called.
    """
    try:
        from fastapi import APIRouter
    except ImportError as error:
        raise ImportError("fastapi is not installed: pip install 'eventbus[fastapi]'") from error
    router = APIRouter()
    router.routes.append(background_task_route(manager, path, **limits))
    return router
