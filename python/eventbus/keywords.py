"""What ``subscribe`` and ``consume`` take beside topic, handler and pattern; for type checkers."""

from __future__ import annotations

from typing import TypedDict

from eventbus.config import DeliveryMode, Overflow, RetryPolicy, RunIn, Seconds
from eventbus.subscription import GapHandler
from eventbus.types import Since

__all__ = ["ConsumeKeywords", "SubscribeKeywords"]


class SubscribeKeywords(TypedDict, total=False):
    """Keywords of ``Bus.subscribe``; their meaning stands there."""

    on_gap: GapHandler | None
    delivery: DeliveryMode | None
    queue_size: int | None
    overflow: Overflow | None
    since: Since | None


class ConsumeKeywords(TypedDict, total=False):
    """Keywords of ``Bus.consume``; their meaning stands there."""

    group: str
    concurrency: int
    batch: int | None
    timeout: Seconds | None
    run_in: RunIn
    lease: Seconds
    max_lease: Seconds
    max_length: int | None
    retry: RetryPolicy | None
