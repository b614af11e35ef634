"""The DataKnobs bus over Postgres, and its configuration."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from eventbus.backends import plan_postgres
from eventbus.broker import UNSET, BrokerEventBus, given, made, settle
from eventbus.connection import complete
from eventbus.errors import ConfigError, TopicError
from eventbus.factory import EventBusConfig, check_config, merged_options
from eventbus.options import POSTGRES, Read, read

__all__ = ["PostgresEventBus", "PostgresEventBusConfig"]

_MOST_PREFIX = 61
_UNSAFE = re.compile(r"[^A-Za-z0-9_]")
_SEPARATORS = re.compile(r"[:.-]")


def sanitised(prefix: Any) -> str:
    """Return a channel prefix without what cannot stand in the name of a channel (contract D50).

    Raises:
        ConfigError: Nothing is left, or too much.
    """
    if not isinstance(prefix, str):
        raise ConfigError(f"channel_prefix must be a str, not {type(prefix).__name__}")
    found = _UNSAFE.sub("", prefix)
    if not found:
        raise ConfigError(f"channel_prefix {prefix!r} is empty after sanitization")
    if len(found) > _MOST_PREFIX:
        raise ConfigError(
            f"channel_prefix {found!r} has {len(found)} characters, limit {_MOST_PREFIX}"
        )
    return found


def _as_text(value: Any, _text: bool) -> str:
    if not isinstance(value, str):
        raise ConfigError(f"connection_string must be a str, not {type(value).__name__}")
    return value


_EXTRA: dict[str, Read] = {
    "connection_string": _as_text,
    "channel_prefix": lambda value, _text: sanitised(value),
}


@dataclass(frozen=True, repr=False)
class PostgresEventBusConfig(EventBusConfig):
    """Configuration of the bus over Postgres (contract D19).

    Attributes:
        connection_string: Where the server is; no ``repr`` shows it.
        channel_prefix: What the names of channels begin with; sanitised.
    """

    connection_string: str
    channel_prefix: str = "events"

    def __post_init__(self) -> None:
        """Sanitise the prefix.

        Raises:
            ConfigError: Nothing is left of it.
        """
        object.__setattr__(self, "channel_prefix", sanitised(self.channel_prefix))

    def __repr__(self) -> str:
        """Return the fields, without the connection string."""
        return (
            f"{type(self).__name__}(connection_string='***', "
            f"channel_prefix={self.channel_prefix!r})"
        )


class PostgresEventBus(BrokerEventBus):
    """The DataKnobs bus over Postgres: its JSON on the channels ``<channel_prefix>_<topic>``.

    Takes any topic and messages up to 16 MiB. Handlers are always queued.
    """

    _MALFORMED = "Failed to parse notification payload: "

    def __init__(
        self,
        connection_string: str | Mapping[str, Any] | PostgresEventBusConfig | None = UNSET,
        channel_prefix: str = UNSET,
        *,
        config: Mapping[str, Any] | PostgresEventBusConfig | None = None,
        **options: Any,
    ) -> None:
        """Make a bus that is not connected yet.

        Args:
            connection_string: ``postgresql://user:password@host:5432/database?sslmode=…``; ``""``
                stands for libpq's environment; without it the keys, ``DATABASE_URL`` and
                ``POSTGRES_…`` say where the server is. A mapping or a config object here counts
                as ``config``.
            channel_prefix: What the names of channels begin with (default ``events``); what is no
                letter, digit or ``_`` is removed.
            config: A mapping with these and further options, or a config object.
            **options: ``host``, ``port``, ``database``, ``user``, ``password``, which override
                parts of the connection string, and what ``connect("postgresql://")`` takes;
                unknown ones are ignored with a warning. Other defaults: ``wire="dataknobs"``,
                ``connect_timeout=10``, ``op_timeout=5``, ``drain_timeout=5``.

        Raises:
            ConfigError: Options that cannot be used, or an unknown one for TLS; all at once.
            ConfigurationError: Nothing says where the server is.
            TypeError: A config object together with keywords, or a config of another class.
        """
        first = connection_string
        if isinstance(first, Mapping | EventBusConfig) and config is None:
            connection_string, config = UNSET, first
        loose = given(connection_string=connection_string, channel_prefix=channel_prefix)
        merged = merged_options(
            type(self).__name__, PostgresEventBusConfig, config, {**loose, **options}
        )
        found = read(POSTGRES, [(key, value, False) for key, value in merged.items()], _EXTRA)
        text = complete(found, found.values.pop("connection_string", None), os.environ)
        settle(POSTGRES, found, _EXTRA)
        plan = plan_postgres(found.values, found.problems)
        super().__init__(**made(plan, found))
        prefix = found.values.get("channel_prefix", "events")
        self._config = (
            config
            if isinstance(config, PostgresEventBusConfig)
            else PostgresEventBusConfig(text, prefix)
        )

    @classmethod
    def from_config(cls, config: Mapping[str, Any] | PostgresEventBusConfig) -> Self:
        """Make a bus from a mapping or a config object (contract D20)."""
        check_config(f"{cls.__name__}.from_config", PostgresEventBusConfig, config)
        return cls(config=config)

    @classmethod
    async def from_config_async(cls, config: Mapping[str, Any] | PostgresEventBusConfig) -> Self:
        """Make what ``from_config`` makes."""
        return cls.from_config(config)

    @property
    def config(self) -> PostgresEventBusConfig:
        """The configuration; its connection string is complete unless it was given."""
        return self._config

    @property
    def is_listening(self) -> bool:
        """Whether the bus is connected: true from ``connect`` to ``close``."""
        return self._state in ("live", "draining")

    @property
    def _channel_prefix(self) -> str:
        return self._config.channel_prefix

    def _topic_to_channel(self, topic: str) -> str:
        """Return the channel that the original uses for a topic (contract D51).

        Raises:
            TopicError: Nothing is left of the topic; the bus itself has a channel for it.
        """
        mapped = _UNSAFE.sub("", _SEPARATORS.sub("_", topic))
        if not mapped:
            raise TopicError(f"Topic {topic!r} produces an empty channel name after sanitization")
        return f"{self._channel_prefix}_{mapped}"
