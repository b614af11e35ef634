"""Making buses: ``connect(url)``, ``create_event_bus(config)`` and the registry of backends."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Generator, Iterable, Mapping
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


def check_config(caller: str, wanted: type[EventBusConfig], config: Any) -> None:
    """Refuse what is neither a mapping nor a configuration of the class.

    Raises:
        TypeError: It is something else; ``None`` stands for nothing given.
    """
    if config is not None and not isinstance(config, Mapping | wanted):
        raise TypeError(
            f"{caller}: `config` must be {wanted.__name__} or Mapping, got {type(config).__name__}."
        )


def merged_options(
    caller: str, wanted: type[EventBusConfig], config: Any, keywords: Mapping[str, Any]
) -> dict[str, Any]:
    """Merge a config mapping or object with keywords, which win (contract D20).

    Raises:
        TypeError: A config object together with keywords, or a config of another class.
    """
    check_config(caller, wanted, config)
    if isinstance(config, wanted):
        if keywords:
            raise TypeError(
                f"{caller}: cannot mix typed `config={wanted.__name__}` with loose kwargs "
                f"({list(keywords)})."
            )
        return {field.name: getattr(config, field.name) for field in fields(config)}
    given: dict[str, Any] = {**(config or {})}
    given.pop("backend", None)
    return given | dict(keywords)


def warn_of_unknown(keys: Iterable[object], valid: Iterable[str]) -> None:
    """Tell which keys are ignored and which there are; never their values (contract D16)."""
    if named := ", ".join(map(repr, keys)):
        log.warning("ignored unknown configuration keys %s; valid: %s", named, ", ".join(valid))


def memory_options(
    class_name: str,
    config: Mapping[str, Any] | MemoryEventBusConfig | None,
    options: dict[str, Any],
) -> dict[str, Any]:
    """Merge a config mapping or object with keywords; unknown keys warn (contract D16, D20).

    Raises:
        TypeError: A config object together with keywords, or a config of another class.
        UnsupportedError: An option that no backend serves yet.
    """
    merged = merged_options(class_name, MemoryEventBusConfig, config, options)
    if not merged:
        return {}
    from eventbus.backends import refuse_unsupported
    from eventbus.options import MEMORY

    warn_of_unknown([key for key in merged if key not in MEMORY.options], MEMORY.keys)
    known = {key: value for key, value in merged.items() if key in MEMORY.options}
    refuse_unsupported(known)
    return {key: value for key, value in known.items() if key != "partitions"}


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


def _redis(config: Any) -> EventBus:
    from eventbus.redis import RedisEventBus

    return RedisEventBus.from_config(config)


def _postgres(config: Any) -> EventBus:
    from eventbus.postgres import PostgresEventBus

    return PostgresEventBus.from_config(config)


event_bus_backends.register("memory", InMemoryEventBus)
event_bus_backends.register("redis", _redis)
event_bus_backends.register("postgres", _postgres)


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
