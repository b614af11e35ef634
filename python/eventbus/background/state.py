"""The state of a background task, as it is stored and sent."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Self, cast, get_args

from eventbus.errors import DecodeError

__all__ = ["STATUSES", "Number", "TaskState", "TaskStatus"]

TaskStatus = Literal["started", "done", "failed", "cancelled"]
"""Where a task is; every status but ``started`` is final."""

STATUSES: tuple[str, ...] = get_args(TaskStatus)
"""Every value of ``TaskStatus``."""

Number = int | float

_FIELDS = ("task_id", "name", "status", "current", "total", "message", "started_at", "updated_at")


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskState:
    """How far a background task is.

    Attributes:
        task_id: The task: the text of a UUID.
        name: What it was called at its start, or ``None``.
        status: ``started``, ``done``, ``failed`` or ``cancelled``.
        current: How far it is, in units of its own.
        total: How far it goes.
        message: What it said last; its result when it is done, the error when it failed.
        started_at: Seconds since the epoch, by the clock of the manager that runs it.
        updated_at: The same for the last change.
        version: Counts the changes from 1.
    """

    task_id: str
    name: str | None = None
    status: TaskStatus = "started"
    current: Number = 0
    total: Number = 0
    message: str | None = ""
    started_at: float = 0.0
    updated_at: float = 0.0
    version: int = 0

    @property
    def is_final(self) -> bool:
        """Whether the task ended."""
        return self.status != "started"

    def to_dict(self) -> dict[str, Any]:
        """Return what is stored: every attribute but the version, which is the record's."""
        return {field: getattr(self, field) for field in _FIELDS}

    @classmethod
    def from_dict(cls, value: object, version: int) -> Self:
        """Make a state from what was stored.

        Raises:
            DecodeError: It is no state of a task.
        """
        if not isinstance(value, dict):
            raise DecodeError(f"not the state of a task: {type(value).__name__}")
        found = cast("dict[str, Any]", value)
        try:
            fields = {field: found[field] for field in _FIELDS}
        except KeyError as error:
            raise DecodeError(f"state of a task lacks {error}") from None
        if fields["status"] not in STATUSES or not isinstance(fields["task_id"], str):
            raise DecodeError(
                f"state of a task has status {fields['status']!r:.100} and task_id "
                f"{fields['task_id']!r:.100}; valid: {', '.join(STATUSES)}, and a text"
            )
        return cls(version=version, **fields)
