"""The typed events of era B: class, name and tuple (section 6 of the contract)."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Self, overload

from eventbus.compat.backendai.attrs_protocol import AttrsFields
from eventbus.compat.backendai.types import LogSeverity
from eventbus.dispatcher import AbstractEvent

__all__ = [
    "AgentErrorEvent",
    "AgentHeartbeatEvent",
    "AgentStartedEvent",
    "AgentStatsEvent",
    "AgentTerminatedEvent",
    "BgtaskCancelledEvent",
    "BgtaskDoneEvent",
    "BgtaskDoneEventArgs",
    "BgtaskFailedEvent",
    "BgtaskUpdatedEvent",
    "DoIdleCheckEvent",
    "DoPrepareEvent",
    "DoScheduleEvent",
    "DoSyncKernelLogsEvent",
    "DoSyncKernelStatsEvent",
    "DoTerminateSessionEvent",
    "EmptyEventArgs",
    "ExecutionCancelledEvent",
    "ExecutionFinishedEvent",
    "ExecutionStartedEvent",
    "ExecutionTimeoutEvent",
    "GenericAgentEventArgs",
    "GenericSessionEventArgs",
    "KernelCancelledEvent",
    "KernelCreatingEvent",
    "KernelCreationEventArgs",
    "KernelEnqueuedEvent",
    "KernelPreparingEvent",
    "KernelPullingEvent",
    "KernelStartedEvent",
    "KernelTerminatedEvent",
    "KernelTerminatingEvent",
    "KernelTerminationEventArgs",
    "SessionCancelledEvent",
    "SessionCreationEventArgs",
    "SessionEnqueuedEvent",
    "SessionFailureEvent",
    "SessionPreparingEvent",
    "SessionResultEventArgs",
    "SessionScheduledEvent",
    "SessionStartedEvent",
    "SessionSuccessEvent",
    "SessionTerminatedEvent",
    "SessionTerminationEventArgs",
]

_Value = tuple[Any, ...]


def _id(value: object) -> uuid.UUID:
    return value if isinstance(value, uuid.UUID) else uuid.UUID(str(value))


@dataclass(frozen=True)
class _IdFirst(AttrsFields):
    """Arguments that begin with an id."""

    def serialize(self) -> _Value:
        """Return the fields in their order, the id as a text."""
        first, *others = (getattr(self, one.name) for one in fields(self))
        return (str(first), *others)

    @classmethod
    def deserialize(cls, value: _Value) -> Self:
        """Make the event; what lacks at the end gets its default, what is beyond is ignored."""
        make: Any = cls
        event: Self = make(_id(value[0]), *value[1 : len(fields(cls))])
        return event


class EmptyEventArgs(AttrsFields):
    """No arguments."""

    def serialize(self) -> _Value:
        """Return ``()``."""
        return ()

    @classmethod
    def deserialize(cls, value: _Value) -> Self:
        """Make the event; arguments are ignored."""
        del value
        return cls()

    def __eq__(self, other: object) -> bool:
        """Whether it is of the same class."""
        return type(other) is type(self)

    def __hash__(self) -> int:
        """Hash by class."""
        return hash(type(self))


class DoScheduleEvent(EmptyEventArgs, AbstractEvent):
    """Schedule what waits."""

    name = "do_schedule"


class DoPrepareEvent(EmptyEventArgs, AbstractEvent):
    """Prepare what was scheduled."""

    name = "do_prepare"


class DoIdleCheckEvent(EmptyEventArgs, AbstractEvent):
    """Look for idle sessions."""

    name = "do_idle_check"


@dataclass(frozen=True)
class DoTerminateSessionEvent(_IdFirst, AbstractEvent):
    """End a session."""

    name: ClassVar[str] = "do_terminate_session"

    session_id: uuid.UUID
    reason: str


@dataclass(frozen=True)
class GenericAgentEventArgs(AttrsFields):
    """What an agent reports: a reason."""

    reason: str = ""

    def serialize(self) -> _Value:
        """Return ``(reason,)``."""
        return (self.reason,)

    @classmethod
    def deserialize(cls, value: _Value) -> Self:
        """Make the event."""
        return cls(*value[:1])


class AgentStartedEvent(GenericAgentEventArgs, AbstractEvent):
    """An agent began."""

    name = "agent_started"


class AgentTerminatedEvent(GenericAgentEventArgs, AbstractEvent):
    """An agent ended."""

    name = "agent_terminated"


@dataclass(frozen=True)
class AgentErrorEvent(AttrsFields, AbstractEvent):
    """Something failed in an agent."""

    name: ClassVar[str] = "agent_error"

    message: str
    traceback: str | None = None
    user: Any = None
    context_env: Mapping[str, Any] = field(default_factory=dict[str, Any])
    severity: LogSeverity = LogSeverity.ERROR

    def serialize(self) -> _Value:
        """Return ``(message, traceback, user, context_env, severity.value)``."""
        env = dict(self.context_env)
        return (self.message, self.traceback, self.user, env, self.severity.value)

    @classmethod
    def deserialize(cls, value: _Value) -> Self:
        """Make the event."""
        severity = [LogSeverity(one) for one in value[4:5]]
        return cls(*value[:4], *severity)


@dataclass(frozen=True)
class AgentHeartbeatEvent(AttrsFields, AbstractEvent):
    """An agent lives."""

    name: ClassVar[str] = "agent_heartbeat"

    agent_info: Mapping[str, Any]

    def serialize(self) -> _Value:
        """Return ``(agent_info,)``."""
        return (self.agent_info,)

    @classmethod
    def deserialize(cls, value: _Value) -> Self:
        """Make the event."""
        return cls(*value[:1])


@dataclass(frozen=True)
class AgentStatsEvent(AttrsFields, AbstractEvent):
    """The figures of an agent's kernels (common 20.09.4)."""

    name: ClassVar[str] = "agent_stats"

    stats: Mapping[str, Any]

    def serialize(self) -> _Value:
        """Return ``(stats,)``."""
        return (self.stats,)

    @classmethod
    def deserialize(cls, value: _Value) -> Self:
        """Make the event."""
        return cls(*value[:1])


@dataclass(frozen=True)
class KernelCreationEventArgs(_IdFirst):
    """A step in the creation of a kernel."""

    kernel_id: uuid.UUID
    creation_id: str
    reason: str = ""


class KernelEnqueuedEvent(KernelCreationEventArgs, AbstractEvent):
    """A kernel waits."""

    name = "kernel_enqueued"


class KernelPreparingEvent(KernelCreationEventArgs, AbstractEvent):
    """A kernel is prepared."""

    name = "kernel_preparing"


class KernelPullingEvent(KernelCreationEventArgs, AbstractEvent):
    """The image of a kernel is pulled."""

    name = "kernel_pulling"


class KernelCreatingEvent(KernelCreationEventArgs, AbstractEvent):
    """A kernel is created."""

    name = "kernel_creating"


class KernelStartedEvent(KernelCreationEventArgs, AbstractEvent):
    """A kernel runs."""

    name = "kernel_started"


@dataclass(frozen=True, init=False)
class KernelCancelledEvent(_IdFirst, AbstractEvent):
    """A kernel will not run.

    Two forms of it are in use. Common 20.09.4 to 20.09.8, 21.03.0 and 21.03.1 know
    ``(kernel_id, reason, exit_code)``; later ones know ``(kernel_id, creation_id, reason)``. What
    is given decides: a third argument that is a text, or ``creation_id=``, means the later form.

    Attributes:
        kernel_id: The kernel.
        creation_id: Names the creation; ``None`` in the earlier form.
        reason: Why.
        exit_code: The exit code of the earlier form, ``None`` when there is none; -1 in the later.
    """

    name: ClassVar[str] = "kernel_cancelled"

    kernel_id: uuid.UUID
    creation_id: str | None = None
    reason: str = ""
    exit_code: int | None = -1

    @overload
    def __init__(
        self, kernel_id: uuid.UUID, reason: str = "", exit_code: int | None = -1
    ) -> None: ...

    @overload
    def __init__(
        self,
        kernel_id: uuid.UUID,
        creation_id: str | None,
        reason: str = "",
        exit_code: int | None = -1,
    ) -> None: ...

    def __init__(self, kernel_id: uuid.UUID, *args: Any, **named: Any) -> None:
        """Make the event in the form that the arguments have.

        Raises:
            TypeError: The arguments fit neither form.
        """
        later = (
            len(args) > 2
            or (len(args) == 2 and isinstance(args[1], str))
            or "creation_id" in named
            or (len(args) == 1 and "reason" in named)
        )
        order = ("creation_id", "reason") if later else ("reason", "exit_code")
        values: dict[str, Any] = {"creation_id": None, "reason": "", "exit_code": -1}
        given = dict(zip(order, args, strict=False))
        odd = [name for name in named if name not in values or name in given]
        if len(args) > len(order) or odd:
            raise TypeError(
                f"{type(self).__name__} takes (kernel_id, reason, exit_code) or "
                f"(kernel_id, creation_id, reason), not {args!r} and {named!r}"
            )
        for name, value in {"kernel_id": kernel_id, **values, **given, **named}.items():
            object.__setattr__(self, name, value)

    def serialize(self) -> _Value:
        """Return the arguments in the form that the event has."""
        if self.creation_id is None:
            return (str(self.kernel_id), self.reason, self.exit_code)
        return (str(self.kernel_id), self.creation_id, self.reason)

    @classmethod
    def deserialize(cls, value: _Value) -> Self:
        """Make the event from either form; what is beyond three arguments is ignored."""
        return cls(_id(value[0]), *value[1:3])


@dataclass(frozen=True)
class KernelTerminationEventArgs(_IdFirst):
    """A step in the end of a kernel."""

    kernel_id: uuid.UUID
    reason: str = ""
    exit_code: int | None = -1


class KernelTerminatingEvent(KernelTerminationEventArgs, AbstractEvent):
    """A kernel is being ended."""

    name = "kernel_terminating"


class KernelTerminatedEvent(KernelTerminationEventArgs, AbstractEvent):
    """A kernel ended."""

    name = "kernel_terminated"


@dataclass(frozen=True)
class SessionCreationEventArgs(_IdFirst):
    """A step in the creation of a session."""

    session_id: uuid.UUID
    creation_id: str
    reason: str = ""


class SessionEnqueuedEvent(SessionCreationEventArgs, AbstractEvent):
    """A session waits."""

    name = "session_enqueued"


class SessionScheduledEvent(SessionCreationEventArgs, AbstractEvent):
    """A session has its place."""

    name = "session_scheduled"


class SessionPreparingEvent(SessionCreationEventArgs, AbstractEvent):
    """A session is prepared."""

    name = "session_preparing"


class SessionCancelledEvent(SessionCreationEventArgs, AbstractEvent):
    """A session will not run."""

    name = "session_cancelled"


class SessionStartedEvent(SessionCreationEventArgs, AbstractEvent):
    """A session runs."""

    name = "session_started"


@dataclass(frozen=True)
class SessionTerminationEventArgs(_IdFirst):
    """The end of a session."""

    session_id: uuid.UUID
    reason: str = ""


class SessionTerminatedEvent(SessionTerminationEventArgs, AbstractEvent):
    """A session ended."""

    name = "session_terminated"


@dataclass(frozen=True)
class SessionResultEventArgs(_IdFirst):
    """The result of a batch session."""

    session_id: uuid.UUID
    reason: str = ""
    exit_code: int = -1

    @classmethod
    def deserialize(cls, value: _Value) -> Self:
        """Make the event; era A has the exit code in second place."""
        second: Any = [*value[1:2], None][0]
        if isinstance(second, int):
            return cls(_id(value[0]), value[2] if len(value) > 2 else "", second)
        return super().deserialize(value)


class SessionSuccessEvent(SessionResultEventArgs, AbstractEvent):
    """A batch session succeeded."""

    name = "session_success"


class SessionFailureEvent(SessionResultEventArgs, AbstractEvent):
    """A batch session failed."""

    name = "session_failure"


@dataclass(frozen=True)
class DoSyncKernelLogsEvent(_IdFirst, AbstractEvent):
    """Fetch the log of a kernel."""

    name: ClassVar[str] = "do_sync_kernel_logs"

    kernel_id: uuid.UUID
    container_id: str


@dataclass(frozen=True)
class DoSyncKernelStatsEvent(AttrsFields, AbstractEvent):
    """Fetch the figures of kernels."""

    name: ClassVar[str] = "do_sync_kernel_stats"

    kernel_ids: Sequence[uuid.UUID]

    def __post_init__(self) -> None:
        """Keep a tuple."""
        object.__setattr__(self, "kernel_ids", tuple(self.kernel_ids))

    def serialize(self) -> _Value:
        """Return ``([kernel_id, …],)``."""
        return ([str(one) for one in self.kernel_ids],)

    @classmethod
    def deserialize(cls, value: _Value) -> Self:
        """Make the event."""
        return cls(tuple(_id(one) for one in value[0]))


@dataclass(frozen=True)
class GenericSessionEventArgs(_IdFirst, AbstractEvent):
    """Something about a session; a subclass gives it a name."""

    session_id: uuid.UUID


class ExecutionStartedEvent(GenericSessionEventArgs):
    """Code began to run."""

    name = "execution_started"


class ExecutionFinishedEvent(GenericSessionEventArgs):
    """Code has run."""

    name = "execution_finished"


class ExecutionTimeoutEvent(GenericSessionEventArgs):
    """Code ran too long."""

    name = "execution_timeout"


class ExecutionCancelledEvent(GenericSessionEventArgs):
    """Code was stopped."""

    name = "execution_cancelled"


@dataclass(frozen=True)
class BgtaskUpdatedEvent(_IdFirst, AbstractEvent):
    """A background task went on."""

    name: ClassVar[str] = "bgtask_updated"

    task_id: uuid.UUID
    current_progress: float
    total_progress: float
    message: str | None = None


@dataclass(frozen=True)
class BgtaskDoneEventArgs(_IdFirst):
    """The end of a background task."""

    task_id: uuid.UUID
    message: str | None = None


class BgtaskDoneEvent(BgtaskDoneEventArgs, AbstractEvent):
    """A background task is done."""

    name = "bgtask_done"


class BgtaskCancelledEvent(BgtaskDoneEventArgs, AbstractEvent):
    """A background task was cancelled."""

    name = "bgtask_cancelled"


class BgtaskFailedEvent(BgtaskDoneEventArgs, AbstractEvent):
    """A background task failed."""

    name = "bgtask_failed"
