"""Makes buses from a configuration mapping: ``create_event_bus``."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, cast

from eventbus.compat.dataknobs.configured import EventBusConfig
from eventbus.compat.dataknobs.protocol import EventBus
from eventbus.compat.dataknobs.registry import event_bus_backends
from eventbus.errors import ConfigError

__all__ = ["create_event_bus", "create_event_bus_async"]

log = logging.getLogger("eventbus.factory")


def _backend_of(caller: str, config: Any) -> tuple[str, Mapping[str, Any]]:
    if config is not None and not isinstance(config, Mapping):
        remedy = "; use from_config of its bus" if isinstance(config, EventBusConfig) else ""
        given = type(config).__name__
        raise TypeError(f"{caller}: `config` must be a Mapping, got {given}{remedy}.")
    if not config:
        log.warning("no event bus configuration: using a memory bus, which stays in this process")
    given_config = cast("Mapping[str, Any]", config if config is not None else {})
    backend = given_config.get("backend", "memory")
    if not (isinstance(backend, str) and event_bus_backends.is_registered(backend)):
        available = ", ".join(sorted(event_bus_backends.list_keys()))
        text = f"Unknown event bus backend: {backend}. Available backends: {available}"
        if backend == "sqs":
            text += (
                ". SQS is not offered here: use 'redis' or 'postgres', whose consumer groups keep "
                "events until they are handled, or register a factory of your own as 'sqs'"
            )
        raise ConfigError(text)
    return backend, given_config


def create_event_bus(config: Mapping[str, Any] | None = None) -> EventBus:
    """Make a bus from a configuration mapping (contract D16).

    Args:
        config: ``backend`` (``"memory"`` by default, or a registered name) and its options;
            unknown keys are ignored with a warning.

    Raises:
        TypeError: The configuration is no mapping.
        ConfigError: An unknown backend.
        OperationError: The backend's factory failed; a ``ValueError`` too when its cause is one.
    """
    backend, given = _backend_of("create_event_bus", config)
    return event_bus_backends.create(backend, given)


async def create_event_bus_async(config: Mapping[str, Any] | None = None) -> EventBus:
    """Make what ``create_event_bus`` makes; an asynchronous factory is awaited (contract D18)."""
    backend, given = _backend_of("create_event_bus_async", config)
    return await event_bus_backends.create_async(backend, given)
