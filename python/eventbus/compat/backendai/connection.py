"""From Backend.AI's configuration to a transport: addresses, connectors, options (B4, B5, B10)."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeVar
from urllib.parse import parse_qs, unquote, urlsplit

from eventbus.background import Liveness, RecordLiveness
from eventbus.bus import Bus
from eventbus.compat.backendai.codec import ArgsCoding, Era
from eventbus.compat.backendai.facade import BusRedis, RedisLike, WireRedis
from eventbus.compat.backendai.liveness import WireLiveness
from eventbus.compat.backendai.wire import ListTransport
from eventbus.connect import connect
from eventbus.dispatcher import BusTransport, Message, Target, Transport
from eventbus.errors import BusClosedError, ConfigError, ConnectError
from eventbus.types import Gap

__all__ = ["Address", "Connection", "Options", "address_of", "open_connection", "with_retries"]

log = logging.getLogger("eventbus.compat.backendai")

Address = str | Bus | dict[str, Any]
"""The URL of a server or bus, a bus, or the configuration of a Redis client."""

_REDIS = ("redis", "rediss", "unix")
_DB = 4
_PATIENCE = 60.0
_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of this package, keyword-only on ``new`` (B5).

    Attributes:
        bus: A bus, or a URL, instead of the configuration.
        wire: ``"backendai"``: the original keys on Redis; ``"native"``: topics and a group.
        consumer_group: The group of the consumers, where the wire has groups.
        autostart: Take events as soon as there is a consumer; else at ``start()``.
        at_least_once: Keep what is being handled until it was.
        lease: Seconds after which a silent dispatcher is dead.
        concurrency: Most handler calls in flight; consumers and subscribers counted apart.
        drain_timeout: Seconds that running handlers get at ``close``.
        on_gap: Called with a ``Gap`` when broadcasts were lost.
        consumer_exception_handler: ``async (type, exception, traceback)``.
        subscriber_exception_handler: The same for subscribers.
        observer: ``(handler, message, seconds, exception or None)`` after each call.
    """

    bus: Bus | str | None = None
    wire: Literal["backendai", "native"] = "backendai"
    consumer_group: str = "manager"
    autostart: bool = True
    at_least_once: bool = True
    lease: float = 30.0
    concurrency: int = 1000
    drain_timeout: float = 1.0
    on_gap: Callable[[Gap], object] | None = None
    consumer_exception_handler: Any = None
    subscriber_exception_handler: Any = None
    observer: Any = None

    @classmethod
    def take_from(cls, given: dict[str, Any]) -> Options:
        """Take the options of this package out of keyword arguments.

        Raises:
            ConfigError: An unknown wire.
        """
        own = {one.name for one in fields(cls)}
        options = cls(**{key: given.pop(key) for key in list(given) if key in own})
        if options.wire not in ("backendai", "native"):
            raise ConfigError(f"wire={options.wire!r} must be one of backendai, native")
        return options


@dataclass(frozen=True)
class Connection:
    """A transport, and what else call sites reach through it.

    Attributes:
        transport: Carries the events.
        redis: The small Redis client.
        liveness: Makes the signs of life of a background task manager, from its lease in seconds.
    """

    transport: Transport
    redis: RedisLike
    liveness: Callable[[float], Liveness]


def open_connection(address: Address, era: Era, options: Options) -> Connection:
    """Return a connection that is not connected yet.

    Raises:
        ConfigError: The URL cannot be used.
    """
    original = options.wire == "backendai"
    if original and isinstance(address, str) and urlsplit(address).scheme in _REDIS:
        address = _config_of(address)
    if isinstance(address, dict):
        transport = ListTransport(
            address, era=era, at_least_once=options.at_least_once, lease=options.lease
        )
        client = transport.redis
        return Connection(transport, WireRedis(client), lambda lease: WireLiveness(client, lease))
    bus = connect(address) if isinstance(address, str) else address
    native = BusTransport(
        bus,
        prefix="backendai",
        group=options.consumer_group,
        lease=options.lease,
        owned=isinstance(address, str),
        coding=ArgsCoding(),
    )

    async def produce(message: Message, to: Target) -> None:
        await native.produce(message, to=to)

    return Connection(
        native, BusRedis(bus, produce), lambda lease: RecordLiveness(bus, "backendai", lease)
    )


def _config_of(url: str) -> dict[str, Any]:
    """Return the configuration of a Redis client from a URL; database 4 by default."""
    parts = urlsplit(url)
    query = {key: values[-1] for key, values in parse_qs(parts.query).items()}
    path = parts.path.strip("/")
    if parts.scheme == "unix":
        endpoint: dict[str, Any] = {"path": unquote(parts.path)}
        path = query.get("db", "")
    else:
        endpoint = {"host": parts.hostname or "localhost", "port": parts.port or 6379}
    if path and not path.isdecimal():
        raise ConfigError(f"redis database {path!r} in the URL must be a number")
    user = unquote(parts.username) if parts.username else None
    password = unquote(parts.password) if parts.password else None
    tls: dict[str, Any] | None = {} if parts.scheme == "rediss" else None
    return _config(endpoint, int(path) if path else _DB, user, password, tls)


def _config(
    endpoint: dict[str, Any],
    db: int = _DB,
    username: str | None = None,
    password: str | None = None,
    tls: dict[str, Any] | None = None,
) -> dict[str, Any]:
    given = {"username": username, "password": password, "tls": tls}
    net = {key: value for key, value in given.items() if value is not None}
    return {"endpoints": [endpoint], "db": db, "net": net}


# The configuration of era A: rule B4


def address_of(config: tuple[Any, ...]) -> tuple[Address, bool]:
    """Return where the events are and whether they are logged, from the arguments of era A.

    Args:
        config: ``(local_config, shared_config)``, or ``(app,)``.

    Raises:
        TypeError: Another number of arguments.
    """
    if len(config) == 2:
        local, shared = config
        return str(shared.get_redis_url(db=_DB)), bool(local["debug"]["log-events"])
    if len(config) == 1:
        settings = config[0]["config"]
        return sockaddr_of(settings["redis"]), bool(settings["debug"]["log-events"])
    raise TypeError(
        f"new() takes (local_config, shared_config) or (app), or bus=…; got {len(config)} arguments"
    )


def sockaddr_of(redis: Any) -> dict[str, Any]:
    """Return the configuration of a Redis client from ``addr`` and ``password``."""
    host, port = redis["addr"].as_sockaddr()[:2]
    return _config({"host": str(host), "port": int(port)}, password=redis["password"] or None)


# The connectors of era B: rule B10


def connected_to(found: Any) -> Address:
    """Return the address of what a connector returned.

    Raises:
        ConfigError: It is nothing that has one.
    """
    if isinstance(found, str | Bus):
        return found
    pool = getattr(found, "connection_pool", None)
    if pool is not None:
        return _of_redis_py(pool)
    where = getattr(found, "address", None)
    if where is not None:
        return _of_aioredis(found, where)
    raise ConfigError(
        f"connector returned {type(found).__name__}; it must return a URL, a bus, an aioredis pool "
        "or a redis-py client"
    )


def _of_redis_py(pool: Any) -> dict[str, Any]:
    given: dict[str, Any] = pool.connection_kwargs
    if "path" in given:
        endpoint: dict[str, Any] = {"path": given["path"]}
    else:
        endpoint = {"host": given.get("host", "localhost"), "port": given.get("port", 6379)}
    tls: dict[str, Any] | None = None
    if "SSL" in getattr(pool, "connection_class", object).__name__:
        tls = {}
        for option, ours in (
            ("ssl_ca_certs", "ca"),
            ("ssl_certfile", "cert"),
            ("ssl_keyfile", "key"),
        ):
            if given.get(option):
                tls[ours] = given[option]
        if given.get("ssl_cert_reqs") in ("none", 0):
            tls["insecure_skip_verify"] = True
    db, user, password = given.get("db") or 0, given.get("username"), given.get("password")
    return _config(endpoint, int(db), user or None, password or None, tls)


def _of_aioredis(found: Any, where: Any) -> dict[str, Any]:
    inner = getattr(found, "connection", found)  # the pool under a client
    endpoint = (
        {"path": where}
        if isinstance(where, str)
        else {"host": str(where[0]), "port": int(where[1])}
    )
    password = getattr(inner, "_password", None)
    context = getattr(inner, "_ssl", None)
    return _config(endpoint, int(found.db), None, password or None, {} if context else None)


# Patience: rules B27 and B43


async def with_retries(step: Callable[[], Awaitable[_T]], what: str) -> _T:
    """Run a step again while there is no server: after 0.5 s, doubling to 30 s, 60 s in all.

    Raises:
        TimeoutError: It did not work in that time; exactly this type.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + _PATIENCE
    try:
        # As a rule this is all. The operation time-out of the connection bounds it.
        return await step()
    except BusClosedError:
        raise
    except (ConnectError, TimeoutError) as error:
        failed: BaseException = error
    pause = 0.5
    logged = -10.0
    while True:
        wait = pause * random.uniform(0.5, 1.0)  # noqa: S311 - jitter
        if loop.time() + wait >= deadline:
            raise TimeoutError("Too much delayed for retries") from failed
        if loop.time() - logged >= 10.0:
            logged = loop.time()
            log.warning("cannot %s reason=%s; trying again", what, failed)
        await asyncio.sleep(wait)
        pause = min(pause * 2, 30.0)
        try:
            async with asyncio.timeout(deadline - loop.time()):
                return await step()
        except BusClosedError:
            raise
        except (ConnectError, TimeoutError) as error:
            failed = error
