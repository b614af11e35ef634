"""Background tasks as Backend.AI has them, under the names of its module (B44-B48)."""

from eventbus.compat.backendai.task_manager import (
    MAX_BGTASK_ARCHIVE_PERIOD,
    BackgroundTask,
    BackgroundTaskManager,
    ProgressReporter,
    TaskResult,
)
from eventbus.compat.backendai.task_stream import aiohttp_handler, asgi_app, sse_events

__all__ = [
    "MAX_BGTASK_ARCHIVE_PERIOD",
    "BackgroundTask",
    "BackgroundTaskManager",
    "ProgressReporter",
    "TaskResult",
    "aiohttp_handler",
    "asgi_app",
    "sse_events",
]
