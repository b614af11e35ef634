"""Which tasks run where, and which of them lost their manager."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Mapping
from typing import Any, Protocol, cast

from eventbus.bus import Bus
from eventbus.delivery import Transaction
from eventbus.errors import DecodeError, VersionConflict
from eventbus.types import Record

__all__ = ["Liveness", "RecordLiveness"]

log = logging.getLogger("eventbus.background")

# Malformed records that a manager names in the log, each once: a stranger may write any number.
_MOST_TOLD = 100


class Liveness(Protocol):
    """The signs of life of a manager, and the list of what it runs."""

    async def renew(self) -> None:
        """Show that this manager lives, for another lease."""

    async def enter(self, task_id: str) -> None:
        """Note that a task runs here."""

    async def leave(self, task_id: str) -> bool:
        """Strike a task off; false when somebody else did."""
        ...

    async def orphans(self) -> list[str]:
        """Return tasks that are on the list and whose manager is dead."""
        ...

    async def close(self) -> None:
        """Show no sign of life any more."""


def _owner(record: Record) -> str | None:
    """Return the manager that runs a task; ``None`` when somebody else wrote the record."""
    try:
        value: Any = record.value
    except DecodeError:
        return None
    fields: Mapping[Any, Any] = cast("Any", value) if isinstance(value, dict) else {}
    owner: Any = fields.get("owner")
    return owner if isinstance(owner, str) else None


class RecordLiveness:
    """Signs of life as records: one that ends by itself per manager, one per running task."""

    def __init__(self, bus: Bus, prefix: str, lease: float) -> None:
        """Remember where they are.

        Args:
            bus: The bus with the records.
            prefix: What their keys begin with.
            lease: Seconds after which a silent manager is dead.
        """
        self._bus = bus
        self._managers = f"{prefix}/manager/"
        self._running = f"{prefix}/running/"
        self._lease = lease
        self._told: set[str] = set()
        self.owner = uuid.uuid4().hex

    async def renew(self) -> None:
        """Write the record of this manager anew."""
        async with self._bus.transaction() as tx:
            tx.put(self._managers + self.owner, True, ttl=self._lease)

    def add(self, tx: Transaction, task_id: str) -> None:
        """Note, in a transaction, that a task runs here."""
        tx.put(self._running + task_id, {"owner": self.owner})

    def remove(self, tx: Transaction, task_id: str) -> None:
        """Strike a task off in a transaction."""
        tx.delete(self._running + task_id)

    async def enter(self, task_id: str) -> None:
        """Note that a task runs here."""
        async with self._bus.transaction() as tx:
            self.add(tx, task_id)

    async def leave(self, task_id: str) -> bool:
        """Strike a task off; false when somebody else did."""
        key = self._running + task_id
        found = await self._bus.read(key)
        if found is None:
            return False
        try:
            async with self._bus.transaction() as tx:
                tx.delete(key, if_version=found.version)
        except VersionConflict:
            return False
        return True

    async def orphans(self) -> list[str]:
        """Return tasks whose manager's record is gone."""
        alive: dict[str, bool] = {self.owner: True}
        lost: list[str] = []
        after: str | None = None
        while page := await self._bus.scan(self._running, after=after, limit=500):
            for record in page:
                owner = _owner(record)
                if owner is None:
                    if record.key not in self._told and len(self._told) < _MOST_TOLD:
                        self._told.add(record.key)
                        log.warning("malformed record key=%s", record.key)
                    continue
                if owner not in alive:
                    alive[owner] = await self._bus.read(self._managers + owner) is not None
                if not alive[owner]:
                    lost.append(record.key[len(self._running) :])
            after = page[-1].key
        return lost

    async def close(self) -> None:
        """Remove the record of this manager."""
        async with self._bus.transaction() as tx:
            tx.delete(self._managers + self.owner)
