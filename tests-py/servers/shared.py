"""One Redis and one PostgreSQL for all tests that do not break their server."""

from __future__ import annotations

from functools import cache

from servers.postgres import PostgresServer
from servers.redis_server import RedisServer


@cache
def shared_redis() -> RedisServer:
    """Return the Redis of this run; it starts when first asked for and ends with the run.

    It keeps an append-only file, as a bus wants it, and allows many databases: the tests use names
    of their own. Its scripts run as functions; servers that tests start for themselves, and the
    tests of the core, run them by their hash.
    """
    config = {"databases": 64, "maxmemory-policy": "noeviction"}
    server = RedisServer(appendonly=True, appendfsync="no", config=config).start()
    server.load_functions()
    return server


@cache
def shared_postgres() -> PostgresServer:
    """Return the PostgreSQL of this run; it starts when first asked for and ends with the run.

    It does not wait for the disk: those tests are about the contract, not about a power failure.
    """
    config = {"fsync": "off", "max_connections": 300, "full_page_writes": "off"}
    return PostgresServer(config=config).start()
