"""The producing side of an era A agent, which has a signature of its own (B7)."""

from __future__ import annotations

import asyncio
import logging
from typing import Any, ClassVar

from eventbus.compat.backendai.base import BaseProducer
from eventbus.compat.backendai.codec import Era
from eventbus.compat.backendai.connection import Address, sockaddr_of
from eventbus.compat.backendai.facade import RedisLike
from eventbus.dispatcher import Message

__all__ = ["AgentEventProducer"]

log = logging.getLogger("eventbus.compat.backendai")


class AgentEventProducer(BaseProducer):
    """Produces an agent's events; made by ``await AgentEventProducer.new(local_config)``.

    Usable as a mixin: a subclass calls ``super().__init__(local_config)`` and awaits
    ``super().__ainit__()``.

    Attributes:
        producer_lock: A lock for call sites that take it; nothing here needs it.
        redis_producer_pool: A small Redis client, on every bus.
    """

    era: ClassVar[Era] = "A"
    redis_producer_pool: RedisLike

    def __init__(self, local_config: Any) -> None:
        """Read the configuration; use ``new``."""
        self._agent_id = str(local_config["agent"]["id"])
        self._log_heartbeats = bool(local_config["debug"]["log-heartbeats"])
        self._address: Address = ""
        if self._options.bus is None:
            self._address = sockaddr_of(local_config["redis"])
        self.producer_lock = asyncio.Lock()

    async def __ainit__(self) -> None:
        """Connect."""
        await self._start(self._address)
        self.redis_producer_pool = self.connection.redis

    async def produce_event(self, event_name: str, *args: Any) -> None:
        """Send an event of this agent; waits for a server that is away.

        Args:
            event_name: The name.
            *args: Its arguments: what msgpack carries.

        Raises:
            TypeError: An argument cannot be encoded.
            OverflowError: An integer beyond 64 bits.
            TimeoutError: There was no server for 60 seconds.
        """
        if self._log_heartbeats or event_name != "instance_heartbeat":
            log.debug("produce event=%s source=%s", event_name, self._agent_id)
        await self._produce(Message(event_name, self._agent_id, args), "both", None)
