"""Making buses: ``connect(url)``, ``create_event_bus(config)`` and the registry of backends."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any, Self, Unpack

from eventbus.bus import Bus, EventBus, InMemoryEventBus
from eventbus.config import BusOptions
from eventbus.errors import ConfigError, NotFoundError, OperationError, OperationValueError

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

EventBusFactory = Callable[[Any], EventBus]
"""Makes a bus from a configuration mapping."""

_FLAGS = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}


def _flag(text: str) -> bool:
    if text.lower() not in _FLAGS:
        raise ValueError(f"must be one of {', '.join(_FLAGS)}")
    return _FLAGS[text.lower()]


MEMORY_OPTIONS: dict[str, Callable[[str], Any]] = {
    "name": str,
    "delivery": str,
    "queue_size": int,
    "overflow": str,
    "outbox_size": int,
    "drain_timeout": float,
    "strict": _flag,
    "max_message_bytes": int,
    "max_depth": int,
    "max_elements": int,
    "max_length": int,
    "dedup_window": float,
    "max_dedup_ids": int,
    "dead_retention": float,
    "max_dead": int,
    "max_tombstones": int,
}
"""Options of a memory bus and how they are read from a URL."""


def connect(url: str | None = None, **options: Unpack[BusOptions]) -> Bus:
    """Return a bus that is not connected yet; ``async with`` connects and drains it.

    Args:
        url: ``memory://`` is a new bus each time, ``memory://name`` is shared in the process;
            options may stand in its query (``memory://?strict=1``). Default: the environment
            variable ``EVENTBUS_URL``, else ``memory://``.
        **options: Options of the bus; they win over the URL's.

    Raises:
        ConfigError: An unknown scheme or option, or a bad value; all problems at once.
    """
    text = url if url is not None else os.environ.get("EVENTBUS_URL", "memory://")
    if not isinstance(text, str):
        raise TypeError(f"url must be a str, not {type(text).__name__}")
    # Not at the top: with ipaddress behind it, it is a tenth of this package's import time.
    from urllib.parse import parse_qsl, unquote, urlsplit

    parts = urlsplit(text)
    if parts.scheme != "memory":
        raise ConfigError(f"unknown bus URL scheme {parts.scheme!r}; valid: memory")
    problems: list[str] = []
    found: dict[str, Any] = {}
    for key, value in parse_qsl(parts.query, keep_blank_values=True):
        if key not in MEMORY_OPTIONS:
            problems.append(f"unknown option {key!r}")
            continue
        try:
            found[key] = MEMORY_OPTIONS[key](value)
        except ValueError as error:
            problems.append(f"{key}={value!r}: {error}")
    problems += [f"unknown option {key!r}" for key in options if key not in MEMORY_OPTIONS]
    if problems:
        valid = ", ".join(MEMORY_OPTIONS)
        raise ConfigError(
            f"invalid configuration: {'; '.join(problems)} (valid: {valid})", problems
        )
    name = unquote(parts.netloc + parts.path.rstrip("/"))
    if name:
        found["name"] = name
    merged: dict[str, Any] = {**found, **options}
    return Bus(**merged)


@dataclass(frozen=True)
class EventBusConfig:
    """Base of the configuration classes (contract D19)."""

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Build from a mapping; unknown keys are ignored."""
        known = {field.name for field in fields(cls)}
        return cls(**{key: value for key, value in data.items() if key in known})


@dataclass(frozen=True)
class MemoryEventBusConfig(EventBusConfig):
    """Configuration of the in-memory bus; it has no required fields."""


def check_memory_config(caller: str, config: Any) -> None:
    """Refuse what is neither a mapping nor a configuration of the memory bus.

    Raises:
        TypeError: It is something else; ``None`` stands for nothing given.
    """
    if config is not None and not isinstance(config, Mapping | MemoryEventBusConfig):
        raise TypeError(
            f"{caller}: `config` must be MemoryEventBusConfig or Mapping, "
            f"got {type(config).__name__}."
        )


def memory_options(
    class_name: str,
    config: Mapping[str, Any] | MemoryEventBusConfig | None,
    options: dict[str, Any],
) -> dict[str, Any]:
    """Merge a config mapping or object with keywords; unknown keys warn (contract D16, D20).

    Raises:
        TypeError: A config object together with keywords, or a config of another class.
    """
    check_memory_config(class_name, config)
    if isinstance(config, MemoryEventBusConfig) and options:
        raise TypeError(
            f"{class_name}: cannot mix typed `config=MemoryEventBusConfig` with loose kwargs "
            f"({list(options)})."
        )
    given: Mapping[str, Any] = config if isinstance(config, Mapping) else {}
    merged = {key: value for key, value in given.items() if key != "backend"} | options
    unknown = [key for key in merged if key not in MEMORY_OPTIONS]
    if unknown:
        log.warning(
            "ignored unknown configuration keys %s; valid: %s",
            ", ".join(map(repr, unknown)),
            ", ".join(MEMORY_OPTIONS),
        )
    return {key: value for key, value in merged.items() if key in MEMORY_OPTIONS}


@contextmanager
def _creating(name: str) -> Generator[None]:
    """Tell which backend failed (contract D56).

    Raises:
        OperationError: Caused by what went wrong; a ``ValueError`` too when that is one.
    """
    try:
        yield
    except Exception as error:
        kind = OperationValueError if isinstance(error, ValueError) else OperationError
        raise kind(
            f"Failed to create plugin '{name}' ({type(error).__name__}): {error}",
            {"key": name, "registry": "event_bus_backends"},
        ) from error


class BackendRegistry:
    """The backends of ``create_event_bus`` by name (contract D21)."""

    def __init__(self) -> None:
        """Begin empty."""
        self._factories: dict[str, EventBusFactory | type[EventBus]] = {}

    def register(
        self,
        key: str,
        factory: EventBusFactory | type[EventBus],
        override: bool = False,
        metadata: Mapping[str, Any] | None = None,
        *,
        allow_overwrite: bool | None = None,
    ) -> None:
        """Add a factory: ``(config) -> EventBus`` or a class with ``from_config``.

        Raises:
            TypeError: It cannot be called.
            OperationError: The key is taken and ``override`` is false.
        """
        del metadata
        if not callable(factory):
            raise TypeError(f"Factory must be a class or callable, got {type(factory).__name__}")
        replace = override if allow_overwrite is None else allow_overwrite
        if key in self._factories and not replace:
            raise OperationError(
                f"Plugin '{key}' already registered in event_bus_backends. "
                "Use override=True to replace."
            )
        self._factories[key] = factory

    def unregister(self, key: str) -> None:
        """Remove a factory.

        Raises:
            NotFoundError: There is none of this key.
        """
        if self._factories.pop(key, None) is None:
            raise NotFoundError(f"Plugin not found: {key}")

    def is_registered(self, key: str) -> bool:
        """Whether there is a factory of this key."""
        return key in self._factories

    def list_keys(self) -> list[str]:
        """Return the keys in order of registration."""
        return list(self._factories)

    def create(self, key: str | None = None, config: Any = None) -> EventBus:
        """Make a bus.

        Raises:
            NotFoundError: There is no factory of this key.
            OperationError: The factory failed (a ``ValueError`` too when its cause is one), or
                returned something that is no bus.
        """
        name, factory, given = self._find(key, config)
        make = getattr(factory, "from_config", factory)
        with _creating(name):
            result = make(given)
        return self._checked(name, result)

    async def create_async(self, key: str | None = None, config: Any = None) -> EventBus:
        """Make a bus; an asynchronous ``from_config_async`` of the factory is awaited."""
        name, factory, given = self._find(key, config)
        make = getattr(factory, "from_config_async", None)
        if make is None:
            return self.create(key, config)
        with _creating(name):
            result = make(given)
            if asyncio.iscoroutine(result):
                result = await result
        return self._checked(name, result)

    def _find(self, key: str | None, config: Any) -> tuple[str, Any, Any]:
        given: Any = config if config is not None else {}
        name: str = key if key is not None else given.get("backend", "memory")
        if name not in self._factories:
            raise NotFoundError(f"Plugin not found: {name}")
        return name, self._factories[name], given

    def _checked(self, name: str, bus: Any) -> EventBus:
        if isinstance(bus, EventBus):
            return bus
        raise OperationError(
            f"Factory for plugin '{name}' must return a EventBus instance, got {type(bus).__name__}"
        )


event_bus_backends = BackendRegistry()
"""The registry behind ``create_event_bus``."""

event_bus_backends.register("memory", InMemoryEventBus)


def _backend_of(config: Mapping[str, Any] | None) -> tuple[str, Mapping[str, Any]]:
    if not config:
        log.warning("no event bus configuration: using a memory bus, which stays in this process")
    config = config if config is not None else {}
    backend = config.get("backend", "memory")
    if not (isinstance(backend, str) and event_bus_backends.is_registered(backend)):
        available = ", ".join(sorted(event_bus_backends.list_keys()))
        raise ConfigError(f"Unknown event bus backend: {backend}. Available backends: {available}")
    return backend, config


def create_event_bus(config: Mapping[str, Any] | None = None) -> EventBus:
    """Make a bus from a configuration mapping (contract D16).

    Args:
        config: ``backend`` (``"memory"`` by default, or a registered name) and its options;
            unknown keys are ignored with a warning.

    Raises:
        ConfigError: An unknown backend.
        OperationError: The backend's factory failed; a ``ValueError`` too when its cause is one.
    """
    backend, given = _backend_of(config)
    return event_bus_backends.create(backend, given)


async def create_event_bus_async(config: Mapping[str, Any] | None = None) -> EventBus:
    """Make what ``create_event_bus`` makes; an asynchronous factory is awaited (contract D18)."""
    backend, given = _backend_of(config)
    return await event_bus_backends.create_async(backend, given)
