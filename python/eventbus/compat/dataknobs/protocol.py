"""What every bus of the DataKnobs contract offers (D13)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

from eventbus.subscription import Subscription
from eventbus.types import Event

__all__ = ["EventBus"]


@runtime_checkable
class EventBus(Protocol):
    """What every bus of the DataKnobs contract offers (D13)."""

    async def connect(self) -> None:
        """Open the bus."""

    async def close(self) -> None:
        """Close the bus and drop its subscriptions."""

    async def publish(self, topic: str, event: Event) -> None:
        """Publish an event on a topic."""

    async def subscribe(
        self, topic: str, handler: Callable[[Event], Any], pattern: str | None = None
    ) -> Subscription:
        """Call the handler with each event on the topic, or of the pattern."""
        ...
