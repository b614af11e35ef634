"""Which background tasks run where, on the Redis of the original wire."""

from __future__ import annotations

import uuid
from typing import Any

from eventbus.redis_client import RedisClient

__all__ = ["WireLiveness"]

_RUNNING = "events.prodcons.bgtasks"
_MANAGER = "events.prodcons.bgmanager:"


class WireLiveness:
    """Signs of life as keys that end by themselves; running tasks in one hash."""

    def __init__(self, redis: RedisClient, lease: float) -> None:
        """Use a client.

        Args:
            redis: The client.
            lease: Seconds after which a silent manager is dead.
        """
        self._redis = redis
        self._lease = lease
        self.owner = uuid.uuid4().hex

    async def renew(self) -> None:
        """Set the key of this manager anew."""
        await self._redis.command(
            "SET", _MANAGER + self.owner, "1", "PX", max(int(self._lease * 1000), 1)
        )

    async def enter(self, task_id: str) -> None:
        """Note that a task runs here."""
        await self._redis.command("HSET", _RUNNING, task_id, self.owner)

    async def leave(self, task_id: str) -> bool:
        """Strike a task off; false when somebody else did."""
        return await self._redis.command("HDEL", _RUNNING, task_id) == 1

    async def orphans(self) -> list[str]:
        """Return tasks whose manager's key is gone."""
        reply: Any = await self._redis.command("HGETALL", _RUNNING)
        alive: dict[str, bool] = {self.owner: True}
        lost: list[str] = []
        # Anybody may write there: what is no name of a task is not ours to bury.
        flat = [one.decode("utf-8", "replace") for one in reply or ()]
        for task_id, owner in zip(flat[::2], flat[1::2], strict=True):
            if owner not in alive:
                alive[owner] = await self._redis.command("EXISTS", _MANAGER + owner) == 1
            if not alive[owner]:
                lost.append(task_id)
        return lost

    async def close(self) -> None:
        """Remove the key of this manager."""
        await self._redis.command("DEL", _MANAGER + self.owner)
