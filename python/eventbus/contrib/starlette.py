"""Background tasks in a Starlette application."""

from __future__ import annotations

from typing import TYPE_CHECKING

from eventbus.background import BackgroundTaskManager
from eventbus.contrib.sse import KEEP_ALIVE, Source, asgi_app

if TYPE_CHECKING:
    from starlette.routing import Route

__all__ = ["background_task_route"]


def background_task_route(
    manager: BackgroundTaskManager | Source,
    path: str = "/events/background-task",
    *,
    keep_alive: float = KEEP_ALIVE,
) -> Route:
    """Return the route that streams the progress of background tasks.

    Args:
        manager: A manager, or where the events come from.
        path: Its path; the task is named by ``?taskId=<uuid>``.
        keep_alive: Seconds of silence before a comment.

    Raises:
        ImportError: Starlette is not installed.
    """
    try:
        from starlette.routing import Route
    except ImportError as error:
        raise ImportError(
            "starlette is not installed: pip install 'eventbus[starlette]'"
        ) from error

    # Starlette takes a function for a handler of requests, and any other callable for ASGI.
    app = asgi_app(manager, keep_alive=keep_alive)

    class Endpoint:
        async def __call__(self, scope: object, receive: object, send: object) -> None:
            await app(scope, receive, send)  # type: ignore[arg-type]  # as ASGI has them

    return Route(path, Endpoint(), methods=["GET"], name="background-task")
