"""Background tasks in a FastAPI application."""

from __future__ import annotations

from typing import TYPE_CHECKING

from eventbus.background import BackgroundTaskManager
from eventbus.contrib.sse import KEEP_ALIVE, Source
from eventbus.contrib.starlette import background_task_route

if TYPE_CHECKING:
    from fastapi import APIRouter

__all__ = ["background_task_router"]


def background_task_router(
    manager: BackgroundTaskManager | Source,
    path: str = "/events/background-task",
    *,
    keep_alive: float = KEEP_ALIVE,
) -> APIRouter:
    """Return a router for ``app.include_router``; see ``contrib.starlette``.

    Args:
        manager: A manager, or where the events come from.
        path: Its path; the task is named by ``?taskId=<uuid>``.
        keep_alive: Seconds of silence before a comment.

    Raises:
        ImportError: FastAPI is not installed.
    """
    try:
        from fastapi import APIRouter
    except ImportError as error:
        raise ImportError("fastapi is not installed: pip install 'eventbus[fastapi]'") from error
    router = APIRouter()
    router.routes.append(background_task_route(manager, path, keep_alive=keep_alive))
    return router
