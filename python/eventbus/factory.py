"""Making buses: ``connect(url)``, ``create_event_bus(config)`` and the registry they use."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Any, Unpack, cast

from eventbus.backend_registry import BackendRegistry, EventBusFactory
from eventbus.bus import Bus, EventBus, InMemoryEventBus
from eventbus.bus_config import EventBusConfig, MemoryEventBusConfig
from eventbus.config import BusOptions
from eventbus.errors import ConfigError

__all__ = [
    "EventBusConfig",
    "EventBusFactory",
    "MemoryEventBusConfig",
    "connect",
    "create_event_bus",
    "create_event_bus_async",
    "event_bus_backends",
]

log = logging.getLogger("eventbus.factory")


def connect(url: str | None = None, **options: Unpack[BusOptions]) -> Bus:
    """Return a bus that is not connected yet; ``async with`` connects and drains it.

    Nothing else is read from the environment, and no server is asked.

    Args:
        url: Where the bus is; options may stand in its query. Default: the environment variable
            ``EVENTBUS_URL``.

            - ``memory://`` is a new bus each time, ``memory://name`` is shared in the process.
            - ``redis://user:password@host:6379/0``; ``rediss://`` with TLS; ``unix:///run/x.sock``
              or ``redis+unix://`` for a socket; ``redis+sentinel://host1,host2/service/0`` and
              ``redis+cluster://host1,host2`` (``rediss+`` with TLS).
            - ``postgresql://user:password@host:5432/database?sslmode=verify-full``.

            What has a meaning in a URL is percent-encoded in its parts.
        **options: Options of the bus; they win over the URL's. ``None`` means not given.

    Raises:
        ConfigError: No URL at all, an unknown scheme or option, or a bad value; all problems at
            once.
        UnsupportedError: More than one of ``partitions``, or ``retention`` with another wire than
            ``native``.
    """
    text = url if url is not None else os.environ.get("EVENTBUS_URL")
    if text is None or (url is None and not text):
        # A bus in this process alone must be asked for: it hears nobody else.
        raise ConfigError(
            "no URL: give one, connect('redis://…') or connect('postgresql://…'), or set the "
            "environment variable EVENTBUS_URL; connect('memory://') is a bus inside this process"
        )
    if not isinstance(text, str):
        raise TypeError(f"url must be a str, not {type(text).__name__}")
    # Not at the top: only a process that makes a bus pays for reading options.
    from eventbus.backends import plan

    return Bus(**plan(text, options).keywords())


event_bus_backends = BackendRegistry()
"""The registry behind ``create_event_bus``."""


def _memory(config: Any) -> EventBus:
    return InMemoryEventBus.from_config(config)


def _redis(config: Any) -> EventBus:
    from eventbus.redis import RedisEventBus

    return RedisEventBus.from_config(config)


def _postgres(config: Any) -> EventBus:
    from eventbus.postgres import PostgresEventBus

    return PostgresEventBus.from_config(config)


event_bus_backends.register("memory", _memory)
event_bus_backends.register("redis", _redis)
event_bus_backends.register("postgres", _postgres)


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
