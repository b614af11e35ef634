"""Background tasks as server-sent events, without any web framework."""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncGenerator
from typing import Any, Self

from eventbus.background.manager import BackgroundTaskManager
from eventbus.background.state import TaskState

__all__ = ["ServerSentEvent", "close_event", "sse_events", "task_event"]

_RETRY_MS = 5


class ServerSentEvent(tuple[str, str, int | None]):  # noqa: SLOT001 - a tuple has none
    """One event of a stream: ``(event, data, retry)``.

    Attributes:
        event: Its name.
        data: Its JSON text.
        retry: Milliseconds that a browser waits before it connects again, or ``None``.
        id: What a browser sends as ``Last-Event-ID`` then, or ``None``.
    """

    id: str | None

    def __new__(
        cls,
        event: str,
        data: str,
        retry: int | None = _RETRY_MS,
        id: str | None = None,  # noqa: A002
    ) -> Self:
        """Make one."""
        made = super().__new__(cls, (event, data, retry))
        made.id = id
        return made

    @property
    def event(self) -> str:
        """Its name."""
        return self[0]

    @property
    def data(self) -> str:
        """Its JSON text."""
        return self[1]

    @property
    def retry(self) -> int | None:
        """Milliseconds."""
        return self[2]

    def encode(self) -> bytes:
        """Return it as it goes over the wire."""
        lines = [f"event: {self.event}"]
        lines += [f"data: {line}" for line in self.data.split("\n")]
        if self.id is not None:
            lines.append(f"id: {self.id}")
        if self.retry is not None:
            lines.append(f"retry: {self.retry}")
        return ("\n".join(lines) + "\n\n").encode()


def close_event() -> ServerSentEvent:
    """Return the event that says that nothing follows: the page need not connect again."""
    return ServerSentEvent("server_close", "{}", None)


def task_event(
    family: str, state: TaskState, *, with_progress: bool | None = None
) -> ServerSentEvent:
    """Return the event of a state: ``<family>_updated``, or ``<family>_<final status>``."""
    kind = "updated" if state.status == "started" else state.status
    data: dict[str, Any] = {"task_id": state.task_id, "message": state.message}
    if with_progress if with_progress is not None else not state.is_final:
        data["current_progress"] = state.current
        data["total_progress"] = state.total
    return ServerSentEvent(f"{family}_{kind}", json.dumps(data), id=str(state.version))


async def sse_events(
    manager: BackgroundTaskManager,
    task_id: uuid.UUID | str,
    *,
    last_event_id: str | None = None,
    family: str = "task",
) -> AsyncGenerator[ServerSentEvent]:
    """Iterate over a task's events: the present state, each change, the end, ``server_close``.

    Events are ``<family>_updated`` with ``{"task_id", "message", "current_progress",
    "total_progress"}`` and ``<family>_done``, ``_failed`` or ``_cancelled`` with ``{"task_id",
    "message", "current_progress", "total_progress"}``. When the manager is shut down they end
    without ``server_close``, so that a page connects again. Closing the iterator frees everything.

    Args:
        manager: A manager; the task may be another one's.
        task_id: The task.
        last_event_id: What the reader saw last: that state is not repeated.
        family: What the event names begin with.

    Raises:
        NotFoundError: The task is unknown or expired.
    """
    seen = int(last_event_id) if last_event_id and last_event_id.isdecimal() else 0
    states = manager.watch(task_id)
    try:
        async for state in states:
            if state.is_final:
                yield task_event(family, state, with_progress=True)
                yield close_event()
                return
            if state.version > seen:
                yield task_event(family, state)
    finally:
        await states.aclose()
