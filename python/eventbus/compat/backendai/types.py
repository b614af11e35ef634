"""The shared types of Backend.AI (B1, B2, B45)."""

from __future__ import annotations

import enum
import uuid
from dataclasses import dataclass
from typing import Any, NewType, Self

__all__ = [
    "AgentId",
    "BackgroundTaskEventArgs",
    "KernelId",
    "LogSeverity",
    "SessionId",
    "aobject",
]


AgentId = NewType("AgentId", str)
"""The id of an agent."""

KernelId = NewType("KernelId", uuid.UUID)
"""The id of a kernel."""

SessionId = NewType("SessionId", uuid.UUID)
"""The id of a session."""


class LogSeverity(str, enum.Enum):  # noqa: UP042 - its text is "LogSeverity.ERROR", as there
    """How bad a reported error is; equal to its value, so that JSON and databases store that.

    ``LogSeverity("LogSeverity.ERROR")``, the text that common 20.09.4 sends, is ``ERROR`` too.
    """

    CRITICAL = "critical"
    ERROR = "error"
    WARNING = "warning"
    INFO = "info"
    DEBUG = "debug"

    @classmethod
    def _missing_(cls, value: object) -> LogSeverity | None:
        if not isinstance(value, str):
            return None
        return cls.__members__.get(value.removeprefix(f"{cls.__name__}."))


@dataclass(frozen=True, slots=True)
class BackgroundTaskEventArgs:
    """What is told about a background task.

    Attributes:
        task_id: The task, as text.
        message: What it says.
        current_progress: How far it is; ``None`` at its end.
        total_progress: How far it goes; ``None`` at its end.
    """

    task_id: str
    message: str | None = None
    current_progress: int | float | None = None
    total_progress: int | float | None = None


class aobject:  # noqa: N801 - the name is part of the contract
    """An object made by ``await Cls.new(…)``: ``__init__``, then ``await __ainit__()``."""

    @classmethod
    async def new(cls, *args: Any, **kwargs: Any) -> Self:
        """Make an instance and return it once it is ready."""
        instance = cls.__new__(cls)
        instance.__init__(*args, **kwargs)  # type: ignore[misc]  # as a call of the class would
        await instance.__ainit__()
        return instance

    async def __ainit__(self) -> None:
        """Finish what ``__init__`` cannot: it may wait."""
