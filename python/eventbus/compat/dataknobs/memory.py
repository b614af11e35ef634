"""The DataKnobs bus in memory."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from eventbus.bus import Bus
from eventbus.compat.dataknobs.configured import Configured, MemoryEventBusConfig, memory_options
from eventbus.types import BusState

__all__ = ["InMemoryEventBus"]

log = logging.getLogger("eventbus.bus")


class InMemoryEventBus(Configured[MemoryEventBusConfig], Bus):
    """The DataKnobs in-memory bus: works unconnected, takes any topic, never waits at ``close``.

    Args as for ``Bus``; a mapping or a config object may come first (contract D15, D20).
    """

    CONFIG_CLS = MemoryEventBusConfig

    _IS_DATAKNOBS = True

    def __init__(
        self, config: Mapping[str, Any] | MemoryEventBusConfig | None = None, **options: Any
    ) -> None:
        """Make a bus; see ``Bus``.

        Raises:
            ConfigError: An option is out of range.
        """
        super().__init__(_any_topic=True, **memory_options(type(self).__name__, config, options))
        self._warned = False
        self._config = (
            config if isinstance(config, MemoryEventBusConfig) else MemoryEventBusConfig()
        )

    @property
    def _connected(self) -> bool:
        return self._state == "live"

    async def connect(self) -> None:
        """Open the bus. Idempotent."""
        await super().connect()

    async def close(self) -> None:
        """Drop all subscriptions and return at once; a running inline handler ends by itself."""
        for consumer in list(self._consumers):
            await consumer.stop(0.0)
        for stream in list(self._streams):
            stream._stop()
        self._drop_subscriptions()
        self._set_live(False)
        self._enter("closed")

    @property
    def config(self) -> MemoryEventBusConfig:
        """The configuration."""
        return self._config

    def _enter(self, state: BusState) -> None:
        if state != self._state:
            # The warning of D36 comes once per connection state.
            self._warned = False
        super()._enter(state)

    def _not_live(self, operation: str) -> None:
        if operation == "publish" and not self._warned:
            self._warned = True
            log.warning("Publishing to disconnected event bus")
