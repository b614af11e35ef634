"""Registry managers as libraries beside the original write them: they import the original alone.

``python dataknobs_manager.py BACKEND WHERE PREFIX`` is such a manager in a process of its own, on a
bus of ours: it writes ``ready``, then one line per change that it hears, and ends with its input.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from dataknobs_common.events import Event, EventBus, EventType, Subscription

GONE = (EventType.UPDATED, EventType.DELETED, EventType.DEACTIVATED)
TOPIC = "registry:bots"


class BotManager:
    """Keeps bots that were looked up, until an event says that one has changed."""

    def __init__(self, store: dict[str, str], bus: EventBus | None) -> None:
        """Remember where bots come from and who tells of changes."""
        self.store = store
        self.bus = bus
        self.cache: dict[str, str] = {}
        self.seen: list[tuple[str, str]] = []
        self._subscription: Subscription | None = None

    async def start(self) -> None:
        """Begin to listen."""
        if self.bus:
            self._subscription = await self.bus.subscribe(TOPIC, self._on_change)

    async def stop(self) -> None:
        """Listen no more."""
        if self._subscription is not None:
            await self._subscription.cancel()

    def get(self, bot_id: str) -> str | None:
        """Return a bot, from the cache when it is there."""
        if bot_id not in self.cache and bot_id in self.store:
            self.cache[bot_id] = self.store[bot_id]
        return self.cache.get(bot_id)

    async def change(self, bot_id: str, text: str | None) -> None:
        """Store or remove a bot and tell everybody."""
        kind = EventType.UPDATED if bot_id in self.store else EventType.CREATED
        if text is None:
            kind = EventType.DELETED
            self.store.pop(bot_id, None)
        else:
            self.store[bot_id] = text
        if self.bus:
            told = Event(
                type=kind,
                topic=f"{TOPIC}:{bot_id}",
                payload={"bot_id": bot_id},
                source="bot_manager",
            )
            await self.bus.publish(TOPIC, told)

    async def _on_change(self, event: Event) -> None:
        bot_id = event.payload.get("bot_id")
        self.seen.append((event.type.value, bot_id))
        if event.type in GONE:
            self.cache.pop(bot_id, None)


class TellingManager(BotManager):
    """A manager that says what it heard, and what is left in its cache."""

    async def _on_change(self, event: Event) -> None:
        await super()._on_change(event)
        told = {"type": event.type.value, "gone": event.type in GONE, "cache": [*self.cache]}
        say(json.dumps(told))


def say(line: str) -> None:
    """Write a line at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


async def main(backend: str, where: str, prefix: str) -> None:
    """Run a manager and say what it hears."""
    from eventbus.compat.dataknobs import create_event_bus

    bus = create_event_bus({"backend": backend, "channel_prefix": prefix, **json.loads(where)})
    await bus.connect()
    manager = TellingManager({}, bus)
    manager.cache = {"b1": "old", "b2": "old"}
    await manager.start()
    say("ready")
    loop = asyncio.get_running_loop()
    orders: Any = await loop.run_in_executor(None, sys.stdin.readline)
    if orders.strip():
        await manager.change(orders.strip(), "from the other process")
        await loop.run_in_executor(None, sys.stdin.readline)
    await bus.close()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
