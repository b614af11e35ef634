"""What the function of a background task reports its progress with."""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable

from eventbus.background.state import Number

__all__ = ["ProgressReporter", "Report"]

Report = Callable[[Number, Number, str | None], Awaitable[None]]
"""Stores and announces (current, total, message)."""


class ProgressReporter:
    """Tells everybody how far a task is.

    Attributes:
        task_id: The task.
        current_progress: How far it is, in units of the task's own.
        total_progress: How far it goes; assign it when it is known.
    """

    def __init__(
        self,
        report: Report,
        task_id: uuid.UUID,
        current_progress: Number = 0,
        total_progress: Number = 0,
    ) -> None:
        """Begin; made by the manager."""
        self._report = report
        self.task_id = task_id
        self.current_progress = current_progress
        self.total_progress = total_progress

    async def update(self, increment: Number = 0, message: str | None = None) -> None:
        """Report progress: stored first, then announced.

        What is reported are the values at the call, in the order of the calls.

        Args:
            increment: Added to ``current_progress``.
            message: What it does now.

        Raises:
            ConnectError: It could not be stored.
        """
        self.current_progress += increment
        await self._report(self.current_progress, self.total_progress, message)
