"""From a URL and options to what the core is opened with: a kind of backend and its configuration.

Pure but for warnings: nothing is connected, no environment is read.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from eventbus import options, signing, urls
from eventbus.errors import ConfigError, UnsupportedError
from eventbus.options import MEMORY, POSTGRES, REDIS, Given, Kind
from eventbus.urls import BusUrl, Host

__all__ = [
    "Plan",
    "finished",
    "plan",
    "plan_postgres",
    "plan_redis",
    "read_postgres_url",
    "refuse_unsupported",
    "texts",
]

log = logging.getLogger("eventbus.config")

_BUS = (
    "delivery",
    "queue_size",
    "overflow",
    "outbox_size",
    "drain_timeout",
    "max_message_bytes",
    "max_depth",
    "max_elements",
)
_MEMORY_BUS = ("name", "strict", *_BUS)
_STORE = (
    "dedup_window",
    "dead_retention",
    "max_dead",
    "max_tombstones",
    "retention",
    "retention_max",
)
_SHARED = ("channel_prefix", "wire", "hear", "max_message_bytes", "sweep", *_STORE)
_POSTGRES = (
    "database",
    "schema",
    "migrate",
    "pool_size",
    "large_payloads",
    "accept_unsigned",
    "broadcast_bodies",
)
_TLS = {
    "tls_ca": "ca",
    "tls_cert": "cert",
    "tls_key": "key",
    "tls_server_name": "server_name",
    "insecure_skip_verify": "insecure_skip_verify",
}

# The most that the DataKnobs wire takes unless told otherwise (contract D43).
_DATAKNOBS_BYTES = 16 << 20


class Plan(NamedTuple):
    """What a bus is made of.

    Attributes:
        kind: ``memory``, ``redis`` or ``postgres``.
        config: The configuration of the backend, as the core reads it.
        bus: Keywords of ``Bus``.
    """

    kind: str
    config: dict[str, Any]
    bus: dict[str, Any]

    def __repr__(self) -> str:
        """Return the kind alone: the configuration holds passwords."""
        return f"Plan({self.kind!r})"

    def keywords(self) -> dict[str, Any]:
        """Return every keyword of ``Bus``."""
        if self.kind == "memory":
            return {**self.bus, **self.config}
        return {**self.bus, "_backend": (self.kind, self.config)}


def plan(url: str, given: Mapping[str, Any]) -> Plan:
    """Return what ``connect(url, **given)`` makes.

    Raises:
        ConfigError: A URL or options that cannot be used; all problems at once.
        UnsupportedError: An option that no backend serves yet.
    """
    scheme = urls.scheme_of(url)
    if scheme not in _SCHEMES:
        raise ConfigError(f"unknown bus URL scheme {scheme!r}; valid: {', '.join(_SCHEMES)}")
    kind, make = _SCHEMES[scheme]
    parts = urls.parse(url, kind.product, named=kind is MEMORY)
    found = options.read(kind, [*texts(kind, parts), *_keywords(given)])
    problems = parts.problems + unknown_options(kind, parts, found.unknown, given)
    problems += found.problems
    result = make(parts, found.values, problems)
    if problems:
        valid = ", ".join(kind.keys)
        raise ConfigError(
            f"invalid configuration: {'; '.join(problems)} (valid: {valid})", problems
        )
    return finished(result, found.values)


def unknown_options(
    kind: Kind, parts: BusUrl, keys: Iterable[str], given: Mapping[str, Any]
) -> list[str]:
    """Say which options a backend does not have, without what may be part of a password."""
    return [
        "an option behind a password in the URL is unknown; write & in a password as %26"
        if key in parts.doubtful and key not in given
        else options.unknown(kind, key)
        for key in keys
    ]


def texts(kind: Kind, parts: BusUrl) -> list[Given]:
    """Return the options that stand in a URL; the query wins over what stands before ``@``."""
    login: list[Given] = [("username", parts.username, True), ("password", parts.password, True)]
    if kind is MEMORY:
        login = []
    query: list[Given] = [(key, value, True) for key, value in parts.query]
    in_query = {kind.aliases.get(key, key) for key, _ in parts.query}
    return [*(one for one in login if one[0] not in in_query), *query]


def _keywords(given: Mapping[str, Any]) -> list[Given]:
    return [(key, value, False) for key, value in given.items()]


def refuse_unsupported(values: Mapping[str, Any]) -> None:
    """Refuse what no backend serves yet.

    Raises:
        UnsupportedError: Naming the option, its value and what there is.
    """
    if values.get("partitions", 1) != 1:
        raise UnsupportedError(f"partitions={values['partitions']}: a bus has 1 for now")
    keeps = [key for key in ("retention", "retention_max") if values.get(key)]
    if keeps and values.get("retention") != 0 and values.get("wire") == "dataknobs":
        raise UnsupportedError(
            f"{keeps[0]}={values[keeps[0]]:g}: what others send by wire='dataknobs' is not kept; "
            "use wire='native'"
        )


def finished(result: Plan, values: Mapping[str, Any]) -> Plan:
    """Fetch the passwords and warn of what is dangerous.

    Raises:
        UnsupportedError: An option that no backend serves yet.
        ConfigError: A function gave a password that cannot be sent.
    """
    refuse_unsupported(values)
    keys = signing.signing_keys(values["signing_key"]) if "signing_key" in values else []
    if result.kind == "memory":
        return result
    if keys:
        result.config["signing_keys"] = keys
    net = result.config["net"]
    if "password" in net:
        net["password"] = options.reveal("password", net["password"])
    topology = result.config.get("topology", {})
    if "password" in topology:
        topology["password"] = options.reveal("sentinel_password", topology["password"])
    endpoints = result.config.get("endpoints") or [result.config["endpoint"]]
    remote = [one["host"] for one in endpoints if not _is_local(one)]
    if remote and "tls" not in net and ("password" in net or "password" in topology):
        remedy = "rediss://, or ssl=True" if result.kind == "redis" else "sslmode=verify-full"
        log.warning(
            "the password goes in clear text to %s: use %s", ", ".join(map(repr, remote)), remedy
        )
    if net.get("tls", {}).get("insecure_skip_verify"):
        log.warning("insecure_skip_verify is set: any certificate of the server is accepted")
    return result


def _is_local(endpoint: Mapping[str, Any]) -> bool:
    return "path" in endpoint or is_loopback(endpoint["host"])


def is_loopback(host: str) -> bool:
    """Whether a host name or address cannot leave this machine."""
    if host.lower() == "localhost":
        return True
    for family, first in ((socket.AF_INET, b"\x7f"), (socket.AF_INET6, bytes(15) + b"\x01")):
        try:
            return socket.inet_pton(family, host).startswith(first)
        except (OSError, ValueError):
            continue
    return False


def _picked(values: Mapping[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    return {key: values[key] for key in keys if key in values}


def _bus(values: Mapping[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    found = _picked(values, keys)
    if values.get("wire") == "dataknobs":
        found = {"max_message_bytes": _DATAKNOBS_BYTES, "_any_topic": True, **found}
    return found


def _net(
    values: Mapping[str, Any], encrypted: bool, remedy: str, problems: list[str]
) -> dict[str, Any]:
    net = _picked(values, ("username", "connect_timeout", "op_timeout", "heartbeat"))
    if values.get("password"):
        net["password"] = values["password"]
    tls = {short: values[long] for long, short in _TLS.items() if values.get(long)}
    if encrypted:
        net["tls"] = tls
    elif tls:
        names = ", ".join(long for long, short in _TLS.items() if short in tls)
        problems.append(f"{names} needs an encrypted connection: {remedy}")
    if ("cert" in tls) != ("key" in tls):
        problems.append("tls_cert and tls_key must be given together")
    return net


def _memory(parts: BusUrl, values: dict[str, Any], problems: list[str]) -> Plan:
    del problems
    if parts.path:
        values.setdefault("name", parts.path[0])
    return Plan(
        "memory",
        _picked(values, (*_STORE, "max_length", "max_dedup_ids")),
        _picked(values, _MEMORY_BUS),
    )


# Redis


def _redis(parts: BusUrl, values: dict[str, Any], problems: list[str]) -> Plan:
    scheme = parts.scheme
    topology: dict[str, Any] = {"kind": scheme.partition("+")[2] or "single"}
    if scheme in ("unix", "redis+unix"):
        topology["kind"] = "single"
        endpoints = _redis_socket(parts, problems)
    else:
        port = 26379 if topology["kind"] == "sentinel" else 6379
        endpoints = [_tcp(host, port) for host in parts.hosts]
        if topology["kind"] == "sentinel":
            _redis_service(parts, topology, problems)
        _redis_path(parts, values, problems)
    if topology["kind"] == "single" and len(endpoints) > 1:
        problems.append(
            f"{scheme}:// takes one host; several are for redis+sentinel:// and redis+cluster://"
        )
    return plan_redis(values, endpoints, topology, scheme.startswith("rediss"), problems)


def _redis_socket(parts: BusUrl, problems: list[str]) -> list[dict[str, Any]]:
    if parts.hosts != [Host()] or not parts.path:
        problems.append(f"{parts.scheme}:// takes a path and no host: {parts.scheme}:///run/x.sock")
    return [{"path": "/" + "/".join(parts.path)}]


def _redis_service(parts: BusUrl, topology: dict[str, Any], problems: list[str]) -> None:
    service = parts.path.pop(0) if parts.path else ""
    if not service:
        problems.append(
            "the name of the service is missing: redis+sentinel://host:26379/mymaster/0"
        )
    topology["service"] = service


def _redis_path(parts: BusUrl, values: dict[str, Any], problems: list[str]) -> None:
    if not parts.path:
        return
    db = parts.path[0]
    if len(parts.path) > 1 or not (db.isascii() and db.isdecimal() and len(db) <= 9):
        problems.append(f"the path of {parts.scheme}:// ends with the number of the database: /0")
    else:
        values.setdefault("db", int(db))


def plan_redis(
    values: dict[str, Any],
    endpoints: list[dict[str, Any]],
    topology: dict[str, Any],
    encrypted: bool,
    problems: list[str],
) -> Plan:
    """Return what a bus over Redis is made of; adds to the problems."""
    signing.check(values, problems)
    if topology["kind"] == "cluster" and values.get("db", 0) != 0:
        problems.append(f"db={values['db']}: a Redis cluster has database 0 only")
    for key in ("username", "password"):
        value = values.get(f"sentinel_{key}")
        if value and topology["kind"] != "sentinel":
            problems.append(f"sentinel_{key} is for redis+sentinel:// only")
        elif value:
            topology[key] = value
    socket_file = "path" in endpoints[0] if endpoints else False
    remedy = "a socket has none" if socket_file else "use rediss://, or ssl=True"
    config = {
        "endpoints": endpoints,
        "topology": topology,
        "net": _net(values, encrypted, remedy, problems),
        **_picked(values, ("db", "prefix", "scripts", *_SHARED)),
    }
    return Plan("redis", config, {"delivery": "queued", **_bus(values, _BUS)})


def _tcp(host: Host, port: int) -> dict[str, Any]:
    return {"host": host.name or "localhost", "port": host.port or port}


# Postgres


def read_postgres_url(parts: BusUrl, values: dict[str, Any], problems: list[str]) -> None:
    """Add what hosts and path of a URL say to the values, which win; adds to the problems."""
    host = parts.hosts[0] if parts.hosts else Host()
    if len(parts.hosts) > 1:
        problems.append(f"{parts.scheme}:// takes one host")
    if len(parts.path) > 1:
        problems.append(f"the path of {parts.scheme}:// is the name of one database")
    for key, value in (("host", host.name), ("port", host.port), ("database", parts.path[:1])):
        if value:
            values.setdefault(key, value[0] if isinstance(value, list) else value)


def _postgres(parts: BusUrl, values: dict[str, Any], problems: list[str]) -> Plan:
    read_postgres_url(parts, values, problems)
    return plan_postgres(values, problems)


def plan_postgres(values: dict[str, Any], problems: list[str]) -> Plan:
    """Return what a bus over Postgres is made of; adds to the problems."""
    signing.check(values, problems)
    if values.get("wire") == "dataknobs" and values.get("broadcast_bodies") == "table":
        problems.append(
            "broadcast_bodies='table' is not for wire='dataknobs', whose processes read bodies in "
            "notifications only"
        )
    host, port = values.get("host", "localhost"), values.get("port", 5432)
    endpoint: dict[str, Any] = {"host": host, "port": port}
    if "," in host:
        problems.append(f"host={host!r} must be one host")
    if host.startswith("/"):
        name = f".s.PGSQL.{port}"
        endpoint = {"path": host if "/.s.PGSQL." in host else f"{host.rstrip('/')}/{name}"}
    encrypted = _postgres_encrypts(values, endpoint)
    remedy = "a socket has none" if "path" in endpoint else "use sslmode=verify-full"
    config = {
        "endpoint": endpoint,
        "net": {"username": "postgres", **_net(values, encrypted, remedy, problems)},
        **_picked(values, (*_POSTGRES, *_SHARED)),
    }
    return Plan("postgres", config, {"delivery": "queued", **_bus(values, _BUS)})


def _postgres_encrypts(values: Mapping[str, Any], endpoint: Mapping[str, Any]) -> bool:
    """Decide by ``sslmode`` and host: what leaves this machine is encrypted unless disabled."""
    mode = values.get("sslmode")
    if "path" in endpoint or mode == "disable":
        return False
    if mode in ("require", "verify-ca", "verify-full"):
        return True
    asked = any(values.get(key) for key in _TLS)
    if mode is not None and not _is_local(endpoint):
        log.warning(
            "sslmode=%s never falls back to plain text here: host %r must prove its certificate "
            "(sslmode=disable would switch encryption off)",
            mode,
            endpoint["host"],
        )
    return asked or not _is_local(endpoint)


_Make = Callable[[BusUrl, dict[str, Any], list[str]], Plan]

_SCHEMES: dict[str, tuple[Kind, _Make]] = {
    "memory": (MEMORY, _memory),
    "redis": (REDIS, _redis),
    "rediss": (REDIS, _redis),
    "redis+sentinel": (REDIS, _redis),
    "rediss+sentinel": (REDIS, _redis),
    "redis+cluster": (REDIS, _redis),
    "rediss+cluster": (REDIS, _redis),
    "redis+unix": (REDIS, _redis),
    "unix": (REDIS, _redis),
    "postgresql": (POSTGRES, _postgres),
    "postgres": (POSTGRES, _postgres),
    "postgresql+asyncpg": (POSTGRES, _postgres),
}
