"""The DataKnobs bus over Redis, and its configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from eventbus.backends import plan_redis
from eventbus.compat.dataknobs.broker import UNSET, BrokerEventBus, apply_defaults, given, made
from eventbus.compat.dataknobs.configured import EventBusConfig, first_is_config, merged_options
from eventbus.config import Password
from eventbus.options import REDIS, as_flag, as_host, as_port, read

__all__ = ["RedisEventBus"]

_EXTRA = {"host": as_host, "port": as_port, "ssl": as_flag}


@dataclass(frozen=True, repr=False)
class RedisEventBusConfig(EventBusConfig):
    """Configuration of the bus over Redis (contract D19).

    Attributes:
        host: Host name, address, or path of a socket.
        port: Port.
        password: Its password, or a function that returns it; no ``repr`` shows it.
        ssl: Encrypt, and verify chain and host name.
        channel_prefix: What the names of channels begin with.
    """

    host: str = "localhost"
    port: int = 6379
    password: Password | None = None
    ssl: bool = False
    channel_prefix: str = "events"

    def _problems(self) -> list[str]:
        given = [(key, value, False) for key, value in self.to_dict().items()]
        return read(REDIS, given, _EXTRA).problems

    def __repr__(self) -> str:
        """Return the fields, without the password."""
        password = None if self.password is None else "***"
        return (
            f"{type(self).__name__}(host={self.host!r}, port={self.port!r}, "
            f"password={password!r}, ssl={self.ssl!r}, channel_prefix={self.channel_prefix!r})"
        )


class RedisEventBus(BrokerEventBus[RedisEventBusConfig]):
    """The DataKnobs bus over Redis: its JSON on the channels ``<channel_prefix>:<topic>``.

    Takes any topic and messages up to 16 MiB. Handlers are always queued.
    """

    CONFIG_CLS = RedisEventBusConfig
    _MALFORMED = "Failed to parse Redis message: "

    def __init__(
        self,
        host: str | Mapping[str, Any] | RedisEventBusConfig = UNSET,
        /,
        port: int | str = UNSET,
        password: Password | None = UNSET,
        ssl: bool = UNSET,
        channel_prefix: str = UNSET,
        *,
        config: Mapping[str, Any] | RedisEventBusConfig | None = None,
        **options: Any,
    ) -> None:
        """Make a bus that is not connected yet.

        Args:
            host: Host name, address, or path of a socket (default ``localhost``), by position or
                keyword; a mapping or a config object by position counts as ``config``.
            port: Port (default 6379).
            password: Password, or a function that returns it (default none).
            ssl: Encrypt, and verify chain and host name (default false).
            channel_prefix: What the names of channels begin with (default ``events``).
            config: A mapping with these and further options, or a config object.
            **options: As for ``connect("redis://")``; unknown ones are ignored with a warning.
                Other defaults: ``wire="dataknobs"``, ``connect_timeout=10``, ``op_timeout=5``,
                ``drain_timeout=5``.

        Raises:
            ConfigError: Options that cannot be used, or an unknown one for TLS; all at once.
            TypeError: A config object together with keywords, or a config of another class.
        """
        caller = type(self).__name__
        if first_is_config(caller, host, config):
            config = cast("Mapping[str, Any] | RedisEventBusConfig", host)
            host = UNSET
        elif host is not UNSET and "host" in options:
            raise TypeError(f"{caller}() got multiple values for argument 'host'")
        loose = given(
            host=host, port=port, password=password, ssl=ssl, channel_prefix=channel_prefix
        )
        merged = merged_options(caller, RedisEventBusConfig, config, {**loose, **options})
        found = read(REDIS, [(key, value, False) for key, value in merged.items()], _EXTRA)
        apply_defaults(REDIS, found, _EXTRA)
        values = found.values
        name, number = values.get("host", "localhost"), values.get("port", 6379)
        where = {"path": name} if name.startswith("/") else {"host": _bare(name), "port": number}
        encrypted = values.get("ssl", False)
        if encrypted and "path" in where:
            found.problems.append(f"ssl=True is not for a socket: host={name!r}")
        plan = plan_redis(values, [where], {"kind": "single"}, encrypted, found.problems)
        super().__init__(**made(plan, found))
        self._config = (
            config
            if isinstance(config, RedisEventBusConfig)
            else RedisEventBusConfig(
                name,
                number,
                values.get("password"),
                encrypted,
                values.get("channel_prefix", "events"),
            )
        )

    @property
    def config(self) -> RedisEventBusConfig:
        """The configuration."""
        return self._config


def _bare(host: str) -> str:
    """Return an address without the brackets that it has in a URL."""
    return host[1:-1] if host.startswith("[") and host.endswith("]") else host
