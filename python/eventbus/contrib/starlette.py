"""Background tasks in a Starlette application."""

from __future__ import annotations

from typing import TYPE_CHECKING, Unpack

from eventbus.background import BackgroundTaskManager
from eventbus.contrib.sse import asgi_app
from eventbus.contrib.streams import Source, StreamLimits

if TYPE_CHECKING:
    from starlette.routing import Route

__all__ = ["background_task_route"]


def background_task_route(
    manager: BackgroundTaskManager | Source,
    path: str = "/events/background-task",
    **limits: Unpack[StreamLimits],
) -> Route:
    """Return the route that streams the progress of background tasks.

    Args:
        manager: A manager, or where the events come from.
        path: Its path; the task is named by ``?taskId=<uuid>``.
        **limits: Who may watch, and what a client may cost; see ``contrib.sse.asgi_app``.

    Raises:
        ImportError: Starlette is not installed.
        InvalidArgumentError: A limit is not positive, or ``authorize`` cannot be called.
    """
    try:
        from starlette.routing import Route
    except ImportError as error:
        raise ImportError(
            "starlette is not installed: pip install 'eventbus[starlette]'"
        ) from error

    # Starlette takes a function for a handler of requests, and any other callable for ASGI.
    app = asgi_app(manager, **limits)

    class Endpoint:
        async def __call__(self, scope: object, receive: object, send: object) -> None:
            await app(scope, receive, send)  # type: ignore[arg-type]  # as ASGI has them

    return Route(path, Endpoint(), methods=["GET"], name="background-task")
