"""Loading the functions of a Redis bus, apart from the programs that use it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Unpack

from eventbus import _eventbus
from eventbus.target import plan_of

if TYPE_CHECKING:
    from eventbus.config import BusOptions

__all__ = ["RedisSetup", "redis_setup"]


@dataclass(frozen=True, kw_only=True, slots=True)
class RedisSetup:
    """What loading the functions did, or would do.

    Attributes:
        library: The name of their library; it holds the version.
        text: The library, as ``FUNCTION LOAD`` takes it.
        servers: What became of it on each primary, by its address: ``unchanged``, ``new`` or
            ``replaced``, when one of the same name had another text.
    """

    library: str
    text: str
    servers: dict[str, str]


async def redis_setup(
    url: str | None = None, *, dry_run: bool = False, **options: Unpack[BusOptions]
) -> RedisSetup:
    """Load the functions of a bus into every primary of a Redis 7 or newer.

    Users of the bus then need no right to run scripts of their own (``scripts="functions"``).
    Libraries of other versions stay, so that processes of several versions run side by side.

    Args:
        url: Where the bus is: ``redis://…``; the variable ``EVENTBUS_URL`` by default.
        dry_run: Only say what is missing where.
        **options: Those of ``connect``, such as ``username`` and ``password``.

    Raises:
        ConfigError: The URL or an option cannot be used.
        ConnectError: A server cannot be reached, has no functions, or does not let this user load
            any.
        UnsupportedError: The bus is not over Redis.
    """
    why = "has no functions: redis-setup is for redis:// only"
    planned = plan_of("redis", url, options, "redis", why)
    library, code, servers = await _eventbus.redis_setup(planned.config, not dry_run)
    return RedisSetup(library=library, text=code, servers=dict(servers))
