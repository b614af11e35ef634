"""Configuration classes of the DataKnobs buses, and how a bus is made from one."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Any, ClassVar, Generic, Self, TypeVar

from eventbus.errors import ConfigError

__all__ = [
    "Configured",
    "EventBusConfig",
    "MemoryEventBusConfig",
    "check_config",
    "first_is_config",
    "memory_options",
    "merged_options",
    "warn_of_unknown",
]

log = logging.getLogger("eventbus.factory")


@dataclass(frozen=True)
class EventBusConfig:
    """Base of the configuration classes (contract D19)."""

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Self:
        """Build from a mapping; unknown keys are ignored."""
        return cls(**{key: value for key, value in dict(config).items() if cls.accepts(key)})

    @classmethod
    def accepts(cls, key: object) -> bool:
        """Whether ``from_dict`` reads this key: it is the name of a field."""
        return any(key == field.name for field in fields(cls))

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as a new dict, secrets too: what ``from_dict`` reads."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def to_json_dict(self) -> dict[str, Any]:
        """Return what ``to_dict`` returns, fit for JSON: a function is called for its value."""
        found = self.to_dict().items()
        return {key: value() if callable(value) else value for key, value in found}

    def validate(self) -> None:
        """Check the values as a bus does that is made of them.

        Raises:
            ConfigError: Listing all problems.
        """
        if problems := self._problems():
            raise ConfigError("; ".join(problems), problems)

    def _problems(self) -> list[str]:
        """Return one line per value that cannot be used."""
        return []


@dataclass(frozen=True)
class MemoryEventBusConfig(EventBusConfig):
    """Configuration of the in-memory bus; it has no required fields."""


_Config = TypeVar("_Config", bound=EventBusConfig)


class Configured(Generic[_Config]):
    """A bus that is made from a mapping or a configuration object (contract D20).

    Attributes:
        CONFIG_CLS: The configuration class of the bus.
    """

    CONFIG_CLS: ClassVar[type[EventBusConfig]]
    _components: Mapping[str, Any] = MappingProxyType({})

    @classmethod
    def from_config(cls, config: Mapping[str, Any] | _Config, **components: Any) -> Self:
        """Make a bus.

        Args:
            config: A mapping with the options, or an object of ``CONFIG_CLS``.
            **components: Kept in ``components``; the bus itself uses none. Options stand in
                ``config``.

        Raises:
            TypeError: The config is something else.
        """
        caller = f"{cls.__name__}.from_config"
        _refuse_none(caller, cls.CONFIG_CLS, config)
        check_config(caller, cls.CONFIG_CLS, config)
        make: Any = cls
        bus: Self = make(config=config)
        bus._components = MappingProxyType(components)
        return bus

    @classmethod
    async def from_config_async(
        cls, config: Mapping[str, Any] | _Config, **components: Any
    ) -> Self:
        """Make what ``from_config`` makes."""
        return cls.from_config(config, **components)

    @property
    def components(self) -> Mapping[str, Any]:
        """What ``from_config`` was given besides the configuration; read-only."""
        return self._components


def wrong_config(caller: str, wanted: type[EventBusConfig], config: object) -> str:
    """Return the text for a config that is neither a mapping nor of the class (contract D56)."""
    given = type(config).__name__
    return f"{caller}: `config` must be {wanted.__name__} or Mapping, got {given}."


def _refuse_none(caller: str, wanted: type[EventBusConfig], config: object) -> None:
    if config is None:
        raise TypeError(wrong_config(caller, wanted, config))


def check_config(caller: str, wanted: type[EventBusConfig], config: Any) -> None:
    """Refuse what is neither a mapping nor a configuration of the class.

    Raises:
        TypeError: It is something else; ``None`` stands for nothing given.
    """
    if config is not None and not isinstance(config, Mapping | wanted):
        raise TypeError(wrong_config(caller, wanted, config))


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


def first_is_config(caller: str, first: object, config: object) -> bool:
    """Whether a first positional argument stands for ``config=`` (contract D15).

    Raises:
        TypeError: Both are given.
    """
    if not isinstance(first, Mapping | EventBusConfig):
        return False
    if config is not None:
        raise TypeError(f"{caller}() got multiple values for argument 'config'")
    return True


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
