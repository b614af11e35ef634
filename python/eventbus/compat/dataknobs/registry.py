"""The registry of backends: factories by name, behind ``create_event_bus``."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any

from eventbus.compat.dataknobs.protocol import EventBus
from eventbus.errors import NotFoundError, OperationError, OperationValueError

__all__ = ["EventBusFactory", "event_bus_backends"]

EventBusFactory = Callable[[Any], EventBus]
"""Makes a bus from a configuration mapping; it may take the keywords of ``create`` besides."""

_Factory = EventBusFactory | type[EventBus]


class BackendRegistry:
    """Factories of buses by name (contract D21).

    A factory is ``(config) -> EventBus`` or a class with ``from_config``. Keys are compared as they
    are: case counts, and there are no aliases.
    """

    def __init__(self, name: str = "event_bus_backends") -> None:
        """Begin empty."""
        self._name = name
        self._factories: dict[str, _Factory] = {}
        self._metadata: dict[str, dict[str, Any]] = {}
        self._default: Callable[[str, Any], EventBus] | None = None
        self._made: dict[str, EventBus] = {}

    @property
    def name(self) -> str:
        """The name of the registry, which its errors say."""
        return self._name

    # Lookups

    def __len__(self) -> int:
        """How many factories there are."""
        return len(self._factories)

    def __contains__(self, key: object) -> bool:
        """Whether there is a factory of this key."""
        return key in self._factories

    def is_registered(self, key: str) -> bool:
        """Whether there is a factory of this key."""
        return key in self._factories

    def has(self, key: str) -> bool:
        """Whether there is a factory of this key."""
        return key in self._factories

    def is_known(self, key: str) -> bool:
        """Whether the key can be used: every registered one."""
        return key in self._factories

    def list_keys(self) -> list[str]:
        """Return the keys in order of registration."""
        return list(self._factories)

    def list_canonical_keys(self) -> list[str]:
        """Return the keys, sorted."""
        return sorted(self._factories)

    def list_known_keys(self) -> list[str]:
        """Return the keys that can be used, sorted."""
        return sorted(self._factories)

    def get_factory(self, key: str) -> _Factory | None:
        """Return the factory of this key, or ``None``."""
        return self._factories.get(key)

    def get_metadata(self, key: str, *, follow_alias: bool = False) -> dict[str, Any]:
        """Return a copy of what was registered with the factory; empty when there is none.

        Args:
            key: The key.
            follow_alias: Without effect: there are no aliases.
        """
        del follow_alias
        return dict(self._metadata.get(key, {}))

    def copy(self) -> dict[str, _Factory]:
        """Return the factories by key, as a new dict."""
        return dict(self._factories)

    def __repr__(self) -> str:
        """Return name and keys."""
        return f"{type(self).__name__}(name={self._name!r}, plugins={len(self)})"

    # Registration

    def register(
        self,
        key: str,
        factory: _Factory,
        override: bool = False,
        metadata: Mapping[str, Any] | None = None,
        *,
        allow_overwrite: bool | None = None,
    ) -> None:
        """Add a factory: ``(config) -> EventBus`` or a class with ``from_config``.

        Args:
            key: Names it.
            factory: The factory.
            override: Replace the factory of this key.
            metadata: Kept for ``get_metadata``; without it, that of a replaced factory stays.
            allow_overwrite: The same as ``override``; wins over it.

        Raises:
            TypeError: It cannot be called.
            OperationError: The key is taken and ``override`` is false.
        """
        self._check(key, factory, override if allow_overwrite is None else allow_overwrite)
        self._factories[key] = factory
        self._made.pop(key, None)
        if metadata is not None:
            self._metadata[key] = dict(metadata)

    def bulk_register(self, factories: Mapping[str, _Factory], override: bool = False) -> None:
        """Add several factories, or none of them.

        Raises:
            TypeError: One cannot be called.
            OperationError: A key is taken and ``override`` is false.
        """
        for key, factory in factories.items():
            self._check(key, factory, override)
        for key, factory in factories.items():
            self.register(key, factory, override)

    def _check(self, key: str, factory: object, replace: bool) -> None:
        if not callable(factory):
            raise TypeError(f"Factory must be a class or callable, got {type(factory).__name__}")
        if key in self._factories and not replace:
            raise OperationError(
                f"Plugin '{key}' already registered in {self._name}. Use override=True to replace.",
                self._context(key),
            )

    def unregister(self, key: str) -> None:
        """Remove a factory with its metadata.

        Raises:
            NotFoundError: There is none of this key.
        """
        if self._factories.pop(key, None) is None:
            raise NotFoundError(f"Plugin not found: {key}")
        self._metadata.pop(key, None)
        self._made.pop(key, None)

    def set_default_factory(self, factory: Callable[[str, Any], EventBus] | None) -> None:
        """Set what ``get`` calls for a key that has no factory, or take it away with ``None``.

        Args:
            factory: ``(key, config) -> EventBus``. ``create`` does not use it: it knows the
                registered keys alone.

        Raises:
            TypeError: It cannot be called.
        """
        if factory is not None and not callable(factory):
            raise TypeError(f"Factory must be a class or callable, got {type(factory).__name__}")
        self._default = factory

    # Buses

    def create(self, key: str | None = None, config: Any = None, **kwargs: Any) -> EventBus:
        """Make a bus.

        Args:
            key: The key of the factory; by default what ``config`` says as ``backend``, else
                ``"memory"``.
            config: What the factory is given; ``{}`` by default.
            **kwargs: Further keywords of the factory, or of its ``from_config``.

        Raises:
            NotFoundError: There is no factory of this key.
            OperationError: The factory failed (a ``ValueError`` too when its cause is one), or
                returned something that is no bus.
        """
        name, factory, given = self._find(key, config)
        make = getattr(factory, "from_config", factory)
        with self._creating(name):
            result = make(given, **kwargs)
        return self._checked(name, result)

    async def create_async(
        self, key: str | None = None, config: Any = None, **kwargs: Any
    ) -> EventBus:
        """Make a bus; an asynchronous ``from_config_async`` of the factory is awaited."""
        name, factory, given = self._find(key, config)
        make = getattr(factory, "from_config_async", None)
        if make is None:
            return self.create(key, config, **kwargs)
        with self._creating(name):
            result = make(given, **kwargs)
            if asyncio.iscoroutine(result):
                result = await result
        return self._checked(name, result)

    def get(
        self, key: str, config: Any = None, use_cache: bool = True, use_default: bool = True
    ) -> EventBus:
        """Return the bus of a key, made at the first call.

        Args:
            key: The key.
            config: What the factory is given when the bus is made; ``{}`` by default.
            use_cache: Return and keep one bus per key; otherwise make a new one.
            use_default: Call the default factory for a key that has none of its own.

        Raises:
            NotFoundError: There is no factory for it.
            OperationError: As for ``create``.
        """
        if use_cache and key in self._made:
            return self._made[key]
        if key in self._factories:
            bus = self.create(key, config)
        elif use_default and self._default is not None:
            with self._creating(key):
                made = self._default(key, {} if config is None else config)
            bus = self._checked(key, made)
        else:
            raise NotFoundError(f"Plugin '{key}' not registered and no default available")
        if use_cache:
            self._made[key] = bus
        return bus

    def _find(self, key: str | None, config: Any) -> tuple[str, Any, Any]:
        given: Any = config if config is not None else {}
        name: str = key if key is not None else given.get("backend", "memory")
        if name not in self._factories:
            raise NotFoundError(f"Plugin not found: {name}")
        return name, self._factories[name], given

    @contextmanager
    def _creating(self, key: str) -> Generator[None]:
        """Tell which backend failed (contract D56).

        Raises:
            OperationError: Caused by what went wrong; a ``ValueError`` too when that is one.
        """
        try:
            yield
        except Exception as error:
            kind = OperationValueError if isinstance(error, ValueError) else OperationError
            raise kind(
                f"Failed to create plugin '{key}' ({type(error).__name__}): {error}",
                self._context(key),
            ) from error

    def _context(self, key: str) -> dict[str, Any]:
        return {"key": key, "registry": self._name}

    def _checked(self, key: str, bus: Any) -> EventBus:
        if isinstance(bus, EventBus):
            return bus
        raise OperationError(
            f"Factory for plugin '{key}' must return a EventBus instance, got {type(bus).__name__}"
        )


def _memory(config: Any) -> EventBus:
    from eventbus.compat.dataknobs.memory import InMemoryEventBus

    return InMemoryEventBus.from_config(config)


def _redis(config: Any) -> EventBus:
    from eventbus.compat.dataknobs.redis import RedisEventBus

    return RedisEventBus.from_config(config)


def _postgres(config: Any) -> EventBus:
    from eventbus.compat.dataknobs.postgres import PostgresEventBus

    return PostgresEventBus.from_config(config)


event_bus_backends = BackendRegistry()
"""The registry behind ``create_event_bus``."""

event_bus_backends.register("memory", _memory)
event_bus_backends.register("redis", _redis)
event_bus_backends.register("postgres", _postgres)
