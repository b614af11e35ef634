"""Background tasks with progress that every manager of a cluster can show."""

from eventbus.background.liveness import Liveness, RecordLiveness
from eventbus.background.manager import BackgroundTaskManager
from eventbus.background.reporter import ProgressReporter
from eventbus.background.sse import ServerSentEvent, sse_events
from eventbus.background.state import TaskState, TaskStatus

__all__ = [
    "BackgroundTaskManager",
    "Liveness",
    "ProgressReporter",
    "RecordLiveness",
    "ServerSentEvent",
    "TaskState",
    "TaskStatus",
    "sse_events",
]
