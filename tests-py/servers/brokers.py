"""The two brokers with the same handles for faults, so that one test runs over both."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, Protocol, Self

from servers.postgres import PostgresServer
from servers.redis_server import RedisServer

QUICK: dict[str, Any] = {
    "heartbeat": 0.5,
    "sweep": 0.5,
    "connect_timeout": 2.0,
    "op_timeout": 5.0,
}
"""Options of a bus whose faults should be noticed within a quick test."""

DEFAULTS: dict[str, Any] = {}
"""Options of a bus in the long form of a test: those that users have."""


class Broker(Protocol):
    """A private server that a test may break.

    Attributes:
        name: ``redis`` or ``postgres``.
        port: Where it listens.
    """

    name: str
    port: int

    def url(self, port: int | None = None) -> str:
        """Return the address for ``connect``, or that of a proxy before the server."""
        ...

    def start(self) -> Any:
        """Start the server."""

    def crash(self) -> None:
        """End it without warning."""

    def stop(self) -> None:
        """Shut it down in order."""

    def pause(self) -> None:
        """Stop its processes: its connections stay open."""

    def resume(self) -> None:
        """Let them go on."""

    def cut_listeners(self) -> int:
        """End the sessions that listen, from the server's side; returns how many."""
        ...

    def sessions(self) -> int:
        """Return how many sessions clients have."""
        ...

    def close(self) -> None:
        """Kill it and remove its data."""


class RedisBroker:
    """A Redis that has written what it acknowledged."""

    name = "redis"

    def __init__(self, **options: Any) -> None:
        """Choose its settings; ``appendfsync always`` by default."""
        self.server = RedisServer(**{"appendonly": True, "appendfsync": "always", **options})
        self.port = self.server.port

    def url(self, port: int | None = None) -> str:
        return f"redis://127.0.0.1:{port or self.port}/0"

    def start(self) -> Self:
        self.server.start()
        return self

    def crash(self) -> None:
        self.server.kill()

    def stop(self) -> None:
        self.server.stop()

    def pause(self) -> None:
        self.server.pause()

    def resume(self) -> None:
        self.server.resume()

    def cut_listeners(self) -> int:
        with self.server.client() as client:
            return int(client.client_kill_filter(_type="pubsub"))

    def sessions(self) -> int:
        return len(self.server.clients())

    def close(self) -> None:
        self.server.close()


class PostgresBroker:
    """A PostgreSQL at its default settings."""

    name = "postgres"

    def __init__(self, **config: Any) -> None:
        """Choose its settings."""
        self.server = PostgresServer(config=config)
        self.port = self.server.port

    def url(self, port: int | None = None) -> str:
        return f"postgresql://postgres@127.0.0.1:{port or self.port}/postgres"

    def start(self) -> Self:
        self.server.start()
        return self

    def crash(self) -> None:
        self.server.stop("immediate")

    def stop(self) -> None:
        self.server.stop("fast")

    def pause(self) -> None:
        self.server.pause()

    def resume(self) -> None:
        self.server.resume()

    def cut_listeners(self) -> int:
        # Which session listens is not seen from outside: all of them end.
        return self.server.terminate_all()

    def sessions(self) -> int:
        found = self.server.execute(
            "select count(*) from pg_stat_activity"
            " where backend_type = 'client backend' and pid <> pg_backend_pid()"
        )
        return int(found[0][0])

    def close(self) -> None:
        self.server.close()


BROKERS: dict[str, Callable[..., Broker]] = {"redis": RedisBroker, "postgres": PostgresBroker}


def brokers() -> list[str]:
    """Return the brokers that the fault tests run over; ``EVENTBUS_BROKERS`` chooses some."""
    chosen = os.environ.get("EVENTBUS_BROKERS", "redis,postgres")
    return chosen.split(",")
