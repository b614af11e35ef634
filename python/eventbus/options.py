"""What options each backend takes, and how each is read and checked."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from eventbus.config import seconds
from eventbus.errors import ConfigError
from eventbus.signing import read_signing_key

__all__ = [
    "MEMORY",
    "POSTGRES",
    "REDIS",
    "Found",
    "Given",
    "Kind",
    "Read",
    "as_flag",
    "as_host",
    "as_port",
    "as_text",
    "read",
    "reveal",
    "unknown",
]

Read = Callable[[Any, bool], Any]
"""Takes a value, and whether it is text of a URL; ``ValueError`` says the rule."""

Given = tuple[str, Any, bool]
"""A key, its value, and whether that is text of a URL."""

_MOST = 2**63 - 1
_CENTURY = 100 * 365 * 86_400
_FLAGS = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
_LOGIN = re.compile(r"://.*@")
_SCHEMA = re.compile(r"[a-z_][a-z0-9_]{0,40}")


def _whole(least: int, most: int = _MOST) -> Read:
    upper = f"from {least} to {most}" if most < 2**32 else f"of at least {least}"
    rule = f"must be an int {upper}"

    def read(value: Any, text: bool) -> int:
        if text and re.fullmatch(r"-?[0-9]{1,20}", value):
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise ValueError(rule)
        return value

    return read


def as_port(value: Any, _text: bool) -> int:
    """Read a port: a number, or its digits."""
    digits = value if isinstance(value, str) else ""
    if digits.isascii() and digits.isdecimal():
        value = int(digits[:9])
    if isinstance(value, bool) or not isinstance(value, int):
        raise ValueError("must be an int from 1 to 65535")
    if not 1 <= value <= 65535:
        raise ValueError("is outside the range 1-65535")
    return value


def _time(value: Any, text: bool) -> float:
    found = _number_of_seconds(value, text)
    if not 0 < found <= _CENTURY:
        raise ValueError("must be more than 0 seconds and at most 100 years")
    return found


def _patience(value: Any, text: bool) -> float:
    found = _number_of_seconds(value, text)
    if not found >= 0:  # not <, which is false for NaN too
        raise ValueError("must be 0 seconds or more")
    return found


def _keeping(value: Any, text: bool) -> float:
    found = _number_of_seconds(value, text)
    if not 0 <= found <= _CENTURY:
        raise ValueError("must be 0 seconds or more and at most 100 years")
    return found


def _number_of_seconds(value: Any, text: bool) -> float:
    try:
        return float(value) if text else seconds(value, "")
    except (TypeError, ValueError, OverflowError):
        raise ValueError("must be a number of seconds, or a timedelta") from None


def as_flag(value: Any, _text: bool) -> bool:
    """Read a flag, which may be text."""
    if isinstance(value, bool):
        return value
    if not isinstance(value, str) or value.lower() not in _FLAGS:
        raise ValueError(f"must be true or false, in text one of {', '.join(_FLAGS)}")
    return _FLAGS[value.lower()]


def _word(*valid: str) -> Read:
    def read(value: Any, _text: bool) -> str:
        if not isinstance(value, str) or value not in valid:
            raise ValueError(f"must be one of {', '.join(valid)}")
        return value

    return read


def _words(*valid: str) -> Read:
    rule = f"must name only {', '.join(valid)}"

    def read(value: Any, _text: bool) -> list[str]:
        parts: Any = value.split(",") if isinstance(value, str) else value
        if not isinstance(parts, tuple | list | set | frozenset):
            raise ValueError(rule)
        names: list[Any] = list(cast("Iterable[Any]", parts))
        names = [one.strip() if isinstance(one, str) else one for one in names]
        names = [one for one in names if one != ""]
        if any(one not in valid for one in names):
            raise ValueError(rule)
        return list(dict.fromkeys(names))

    return read


def _queued(value: Any, _text: bool) -> str:
    if value != "queued":
        raise ValueError("must be queued: only a memory bus calls handlers inline")
    return "queued"


def as_text(value: Any, _text: bool) -> str:
    """Read text that cannot be empty."""
    if not isinstance(value, str) or not value or "\0" in value or not _encodable(value):
        raise ValueError("must be a str, not empty, of UTF-8 without NUL")
    return value


def as_host(value: Any, text: bool) -> str:
    """Read a host, an address or the path of a socket: no URL, which messages would repeat."""
    if _LOGIN.search(as_text(value, text)):
        raise ValueError("must be a host, an address or the path of a socket")
    return str(value)


def _any_text(value: Any, _text: bool) -> str:
    if not isinstance(value, str) or not _encodable(value):
        raise ValueError("must be a str of UTF-8")
    return value


def _path(value: Any, text: bool) -> str:
    if not isinstance(value, str | os.PathLike) or not isinstance(os.fspath(value), str):
        raise ValueError("must be a path")
    return as_text(os.fspath(value), text)


def _secret(value: Any, _text: bool) -> Any:
    if not callable(value) and not (
        isinstance(value, str) and "\0" not in value and _encodable(value)
    ):
        raise ValueError(
            "must be a str of UTF-8 without NUL, or a function without arguments that returns one"
        )
    return value


def _key_prefix(value: Any, text: bool) -> str:
    if set("{}") & set(as_text(value, text)):
        raise ValueError("must not contain { or }, which choose the slot of a cluster")
    return str(value)


def _channel_word(value: Any, _text: bool) -> str:
    if not isinstance(value, str) or not re.fullmatch(r"[A-Za-z0-9_]{1,61}", value):
        raise ValueError("must be 1 to 61 of A-Z, a-z, 0-9 and _")
    return value


def _schema(value: Any, _text: bool) -> str:
    if not isinstance(value, str) or not _SCHEMA.fullmatch(value):
        raise ValueError("must be [a-z_][a-z0-9_]{0,40}")
    return value


def _encodable(text: str) -> bool:
    return not any("\ud800" <= one <= "\udfff" for one in text)


_SSL_MODES = ("disable", "allow", "prefer", "require", "verify-ca", "verify-full")

_COMMON: dict[str, Read] = {
    "queue_size": _whole(1),
    "overflow": _word("drop_oldest", "drop_newest", "close"),
    "outbox_size": _whole(1),
    "drain_timeout": _patience,
    "max_message_bytes": _whole(1),
    "max_depth": _whole(1, 512),
    "max_elements": _whole(1),
    "dedup_window": _time,
    "dead_retention": _time,
    "max_dead": _whole(1),
    "max_tombstones": _whole(0),
    "retention": _keeping,
    "retention_max": _whole(1),
    "partitions": _whole(1),
    "signing_key": read_signing_key,
}

_SERVER: dict[str, Read] = {
    "delivery": _queued,
    "username": as_text,
    "password": _secret,
    "tls_ca": _path,
    "tls_cert": _path,
    "tls_key": _path,
    "tls_server_name": as_text,
    "insecure_skip_verify": as_flag,
    "connect_timeout": _time,
    "op_timeout": _time,
    "heartbeat": _time,
    "sweep": _time,
    "wire": _word("native", "dataknobs"),
    "hear": _words("dataknobs"),
}


@dataclass(frozen=True, slots=True)
class Kind:
    """The options of one backend.

    Attributes:
        name: What the core calls it.
        product: What its makers call it.
        options: How each is read.
        aliases: Other names of some.
    """

    name: str
    product: str
    options: Mapping[str, Read]
    aliases: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def keys(self) -> list[str]:
        """Every name of an option."""
        return [*self.options, *self.aliases]


MEMORY = Kind(
    "memory",
    "memory",
    {
        "name": _any_text,
        "delivery": _word("inline", "queued"),
        "strict": as_flag,
        **_COMMON,
        "max_length": _whole(1),
        "max_dedup_ids": _whole(1),
    },
)

REDIS = Kind(
    "redis",
    "Redis",
    {
        **_SERVER,
        "db": _whole(0, 2**32 - 1),
        "prefix": _key_prefix,
        "channel_prefix": _any_text,
        "scripts": _word("auto", "functions", "eval"),
        "sentinel_username": as_text,
        "sentinel_password": _secret,
        **_COMMON,
    },
)

POSTGRES = Kind(
    "postgres",
    "Postgres",
    {
        **_SERVER,
        "host": as_host,
        "port": as_port,
        "database": as_text,
        "schema": _schema,
        "migrate": as_flag,
        "pool_size": _whole(1),
        "channel_prefix": _channel_word,
        "large_payloads": _word("table", "error"),
        "accept_unsigned": _word("sql"),
        "broadcast_bodies": _word("inline", "table"),
        "sslmode": _word(*_SSL_MODES),
        **_COMMON,
    },
    {
        "user": "username",
        "dbname": "database",
        "sslrootcert": "tls_ca",
        "sslcert": "tls_cert",
        "sslkey": "tls_key",
    },
)

_KINDS = (MEMORY, REDIS, POSTGRES)
_SECRETS = {"password", "sentinel_password", "connection_string", "signing_key"}


@dataclass(slots=True)
class Found:
    """What was read.

    Attributes:
        values: Checked values by the main names of the options.
        problems: What cannot be used.
        unknown: Keys that this backend does not have.
    """

    values: dict[str, Any] = field(default_factory=dict[str, Any], repr=False)
    problems: list[str] = field(default_factory=list[str])
    unknown: list[str] = field(default_factory=list[str])


def read(kind: Kind, given: Iterable[Given], extra: Mapping[str, Read] | None = None) -> Found:
    """Read and check options; what is given later wins, ``None`` counts as not given.

    Args:
        kind: The backend.
        given: The options.
        extra: Further options.
    """
    found = Found()
    named: dict[tuple[str, bool], str] = {}
    options = {**kind.options, **(extra or {})}
    for key, value, text in given:
        main = kind.aliases.get(key, key)
        if main not in options:
            found.unknown.append(key)
            continue
        if value is None:
            continue
        other = named.setdefault((main, text), key)
        if other != key:
            found.problems.append(f"{other} and {key} are the same option: give one")
            continue
        try:
            found.values[main] = options[main](value, text)
        except ValueError as error:
            found.problems.append(_problem(kind, key, value, error))
    return found


def _problem(kind: Kind, key: str, value: Any, error: ValueError) -> str:
    if isinstance(error, ConfigError):
        return str(error)
    if key in _SECRETS:
        return f"{key} {error}"
    prefix = f"{kind.product} " if key == "port" else ""
    if isinstance(value, str) and _LOGIN.search(value):
        return f"{key} {error} (its value is not repeated: it looks like a URL)"
    shown = repr(value)
    return f"{prefix}{key}={shown if len(shown) <= 100 else shown[:97] + '...'} {error}"


def unknown(kind: Kind, key: object) -> str:
    """Say that a backend does not have an option, and who has it."""
    owners = [one.product for one in _KINDS if one is not kind and key in one.keys]
    return f"unknown option {key!r}" + (f" (of {' and '.join(owners)} only)" if owners else "")


def reveal(key: str, secret: Any) -> str:
    """Return a password, calling the function that knows it.

    Raises:
        ConfigError: It returned no str, or one that cannot be sent.
    """
    found = secret() if callable(secret) else secret
    if not isinstance(found, str):
        raise ConfigError(f"the function given as {key} returned {type(found).__name__}, not str")
    if "\0" in found or not _encodable(found):
        raise ConfigError(f"the function given as {key} returned text with NUL, or no UTF-8")
    return found
