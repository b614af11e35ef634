"""A Redis with a stand-by: one master, one replica, three sentinels that agree who is master."""

from __future__ import annotations

import signal
import time
from typing import Any, Self

import redis

from servers.process import READY_WITHIN, Process, binary, free_port, temporary_folder
from servers.redis_server import RedisServer

SERVICE = "bus"


class SentinelSet:
    """One master, one replica and three sentinels.

    Attributes:
        servers: The two servers; which one is master changes.
        ports: Where the sentinels listen.
    """

    def __init__(self, *, down_after: float = 0.5, **options: Any) -> None:
        """Choose the settings; nothing runs yet.

        Args:
            down_after: Seconds without an answer until a sentinel calls a server down.
            **options: As for ``RedisServer``.
        """
        config = {"repl-diskless-sync-delay": 0, "repl-ping-replica-period": 1}
        first = RedisServer(**options, config=config)
        follow = {**config, "replicaof": f"127.0.0.1 {first.port}"}
        self.servers = [first, RedisServer(**options, config=follow)]
        self.ports = [free_port() for _ in range(3)]
        self._down_after = int(down_after * 1000)
        self._sentinels: list[Process] = []

    def url(self, database: int = 0) -> str:
        """Return the address for ``connect``: the sentinels, the service, the database."""
        hosts = ",".join(f"127.0.0.1:{port}" for port in self.ports)
        return f"redis+sentinel://{hosts}/{SERVICE}/{database}"

    def start(self) -> Self:
        """Start all five and wait until the replica follows and the sentinels know each other."""
        for server in self.servers:
            server.start()
        for port in self.ports:
            folder = temporary_folder("sentinel")
            config = folder / "sentinel.conf"
            config.write_text(
                f"bind 127.0.0.1\nport {port}\ndir {folder}\n"
                f"sentinel monitor {SERVICE} 127.0.0.1 {self.servers[0].port} 2\n"
                f"sentinel down-after-milliseconds {SERVICE} {self._down_after}\n"
                f"sentinel failover-timeout {SERVICE} 3000\n"
                f"sentinel parallel-syncs {SERVICE} 1\n"
            )
            sentinel = Process(f"sentinel {port}", folder / "log")
            sentinel.start([binary("redis-server"), config, "--sentinel"])
            self._sentinels.append(sentinel)
        self._wait("the sentinels agree", self._agreed)
        return self

    def _agreed(self) -> bool:
        for port in self.ports:
            found = self._ask(port, "SENTINEL", "MASTER", SERVICE)
            if found is None:
                return False
            if int(found["num-other-sentinels"]) < 2 or int(found["num-slaves"]) < 1:
                return False
        with self.servers[1].client() as client:
            return bool(client.info("replication").get("master_link_status") == "up")

    def master_port(self) -> int | None:
        """Return the port of the master that most sentinels name."""
        told = [self._ask(port, "SENTINEL", "MASTER", SERVICE) for port in self.ports]
        ports = [int(one["port"]) for one in told if one]
        return max(set(ports), key=ports.count) if ports else None

    @property
    def master(self) -> RedisServer:
        """The server that is master now."""
        port = self.master_port()
        return next(server for server in self.servers if server.port == port)

    def fail_over(self, *, pause: bool = False) -> tuple[RedisServer, RedisServer]:
        """Take the master away and wait until the other one is master; returns old and new.

        Args:
            pause: Stop the old one instead of killing it, so that its connections stay open.
        """
        old = self.master
        new = next(server for server in self.servers if server is not old)
        if pause:
            old.pause()
        else:
            old.kill()
        self._wait("a new master", lambda: self.master_port() == new.port)

        def is_master() -> bool:
            with new.client() as client:
                return bool(client.info("replication")["role"] == "master")

        self._wait("the replica was promoted", is_master)
        return old, new

    def _ask(self, port: int, *words: str) -> dict[str, str] | None:
        try:
            with redis.Redis(port=port, decode_responses=True, socket_timeout=1.0) as client:
                found = client.execute_command(*words)
        except redis.RedisError:
            return None
        if isinstance(found, dict):
            return {str(name): str(value) for name, value in found.items()}
        return dict(zip(found[::2], found[1::2], strict=True))

    def _wait(self, what: str, condition: Any, within: float = READY_WITHIN) -> None:
        deadline = time.monotonic() + within
        while not condition():
            if time.monotonic() > deadline:
                logs = "\n".join(sentinel.tail(1500) for sentinel in self._sentinels)
                raise AssertionError(f"not in {within} s: {what}\n{logs}")
            time.sleep(0.05)

    def close(self) -> None:
        """Kill everything."""
        for sentinel in self._sentinels:
            sentinel.end(signal.SIGKILL)
        for server in self.servers:
            server.close()

    def __enter__(self) -> Self:
        """Start it."""
        return self.start()

    def __exit__(self, *_: object) -> None:
        """Kill everything."""
        self.close()
