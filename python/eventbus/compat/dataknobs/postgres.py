"""The DataKnobs bus over Postgres, and its configuration."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self, cast

from eventbus.backends import plan_postgres
from eventbus.compat.dataknobs.broker import UNSET, BrokerEventBus, apply_defaults, given, made
from eventbus.compat.dataknobs.configured import EventBusConfig, first_is_config, merged_options
from eventbus.compat.dataknobs.environment import complete, problems_of
from eventbus.errors import ConfigError, TopicError
from eventbus.options import POSTGRES, Read, read

__all__ = ["PostgresEventBus"]

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


_WHERE = ("host", "port", "database", "dbname", "user", "username", "password")


def _completed(config: Mapping[str, Any]) -> str:
    """Return the connection string that keys and environment make."""
    given = [(key, config[key], False) for key in _WHERE if config.get(key) is not None]
    found = read(POSTGRES, given)
    text = complete(found, None, os.environ)
    if found.problems:
        raise ConfigError("; ".join(found.problems), found.problems)
    return text


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

    @classmethod
    def from_dict(cls, config: Mapping[str, Any]) -> Self:
        """Build from a mapping; unknown keys are ignored.

        Without ``connection_string`` the other keys of a connection and the environment make one,
        as for the bus (contract D22).

        Raises:
            ConfigurationError: Nothing says where the server is.
            ConfigError: What says it cannot be used.
        """
        given = dict(config)
        if given.get("connection_string") is None:
            given["connection_string"] = _completed(given)
        return super().from_dict(given)

    def _problems(self) -> list[str]:
        text: object = self.connection_string
        if not isinstance(text, str):
            return [f"connection_string must be a str, not {type(text).__name__}"]
        return problems_of(text)

    def __repr__(self) -> str:
        """Return the fields, without the connection string."""
        return (
            f"{type(self).__name__}(connection_string='***', "
            f"channel_prefix={self.channel_prefix!r})"
        )


class PostgresEventBus(BrokerEventBus[PostgresEventBusConfig]):
    """The DataKnobs bus over Postgres: its JSON on the channels ``<channel_prefix>_<topic>``.

    Takes any topic and messages up to 16 MiB. Handlers are always queued.
    """

    CONFIG_CLS = PostgresEventBusConfig
    _MALFORMED = "Failed to parse notification payload: "

    def __init__(
        self,
        connection_string: str | Mapping[str, Any] | PostgresEventBusConfig | None = UNSET,
        /,
        channel_prefix: str = UNSET,
        *,
        config: Mapping[str, Any] | PostgresEventBusConfig | None = None,
        **options: Any,
    ) -> None:
        """Make a bus that is not connected yet.

        Args:
            connection_string: ``postgresql://user:password@host:5432/database?sslmode=…``; ``""``
                stands for libpq's environment; without it the keys, ``DATABASE_URL`` and
                ``POSTGRES_…`` say where the server is. By position or keyword; a mapping or a
                config object by position counts as ``config``.
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
        caller = type(self).__name__
        if first_is_config(caller, connection_string, config):
            config = cast("Mapping[str, Any] | PostgresEventBusConfig", connection_string)
            connection_string = UNSET
        elif connection_string is not UNSET and "connection_string" in options:
            raise TypeError(f"{caller}() got multiple values for argument 'connection_string'")
        loose = given(connection_string=connection_string, channel_prefix=channel_prefix)
        merged = merged_options(caller, PostgresEventBusConfig, config, {**loose, **options})
        found = read(POSTGRES, [(key, value, False) for key, value in merged.items()], _EXTRA)
        text = complete(found, found.values.pop("connection_string", None), os.environ)
        apply_defaults(POSTGRES, found, _EXTRA)
        plan = plan_postgres(found.values, found.problems)
        super().__init__(**made(plan, found))
        prefix = found.values.get("channel_prefix", "events")
        self._config = (
            config
            if isinstance(config, PostgresEventBusConfig)
            else PostgresEventBusConfig(text, prefix)
        )

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
