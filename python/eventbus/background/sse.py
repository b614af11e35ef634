"""Background tasks as server-sent events, without any web framework."""

from __future__ import annotations

import json
import math
import re
import uuid
from collections.abc import AsyncGenerator
from typing import Any, Self

from eventbus.background.manager import BackgroundTaskManager
from eventbus.background.state import TaskState
from eventbus.errors import InvalidArgumentError

__all__ = [
    "ServerSentEvent",
    "close_event",
    "json_text",
    "sse_events",
    "task_event",
]

_RETRY_MS = 5
_LINE_END = re.compile(r"\r\n|\r|\n")  # as a browser splits a stream
_NUMBERS = 2**63


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
        """Return it as it goes over the wire.

        Raises:
            InvalidArgumentError: The name or the id would not stay on its line, or ``retry`` is no
                number of milliseconds.
        """
        lines = [f"event: {_one_line(self.event, 'name')}"]
        lines += [f"data: {line}" for line in _LINE_END.split(self.data)]
        if self.id is not None:
            lines.append(f"id: {_one_line(self.id, 'id')}")
        retry: object = self.retry
        if retry is not None:
            if not isinstance(retry, int) or isinstance(retry, bool) or not 0 <= retry < _NUMBERS:
                raise InvalidArgumentError(f"retry={retry!r} must be milliseconds, 0 or more")
            lines.append(f"retry: {retry}")
        # A lone surrogate has no bytes.
        return ("\n".join(lines) + "\n\n").encode(errors="replace")


def _one_line(text: object, what: str) -> str:
    """Return text that stays on one line, by every rule of what ends a line."""
    if not isinstance(text, str) or "\0" in text or len(f"{text}.".splitlines()) != 1:
        raise InvalidArgumentError(
            f"the {what} of an event, {text!r:.100}, must be a str without line breaks and NUL"
        )
    return text


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
    return ServerSentEvent(f"{family}_{kind}", json_text(data), id=str(state.version))


def json_text(data: dict[str, Any]) -> str:
    """Return JSON that every browser reads, whatever a peer stored.

    Args:
        data: Numbers without a finite value become null, and what JSON does not have a text.
    """
    try:
        return json.dumps(data, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return json.dumps({key: _plain(value) for key, value in data.items()})


def _plain(value: object) -> object:
    if isinstance(value, int | float):
        # Of an int that is too long for text neither.
        finite = isinstance(value, float) and math.isfinite(value)
        return value if finite or (isinstance(value, int) and abs(value) < _NUMBERS) else None
    return value if value is None or isinstance(value, str) else type(value).__name__


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
        last_event_id: What the reader saw last: that state is not repeated. What is not the
            version of a state is ignored.
        family: What the event names begin with.

    Raises:
        InvalidArgumentError: The family has line breaks.
        NotFoundError: The task is unknown or expired.
    """
    _one_line(family, "name")
    # Compared as text: it comes from outside. Versions rise, so only the first one can be known.
    known = last_event_id
    states = manager.watch(task_id)
    try:
        async for state in states:
            if state.is_final:
                yield task_event(family, state, with_progress=True)
                yield close_event()
                return
            if str(state.version) != known:
                yield task_event(family, state)
            known = None
    finally:
        await states.aclose()
