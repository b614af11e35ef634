"""One Redis of the tests: settings, kill, restart on the same port, pause, a full disk."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import redis
import redis.asyncio

from servers.certificates import Certificates
from servers.process import binary
from servers.server import Server


class RedisServer(Server):
    """A ``redis-server`` on a port of its own, with its data in a folder of its own.

    Attributes:
        port: Where it listens; with TLS there is no plain port.
        folder: Its data, configuration and log.
        tls: The certificates it was given.
    """

    def __init__(
        self,
        *,
        appendonly: bool = False,
        appendfsync: str = "everysec",
        tls: Certificates | None = None,
        certificate: str = "good",
        client_certificates: bool = False,
        config: Mapping[str, str | int] | None = None,
        users: Sequence[str] = (),
    ) -> None:
        """Choose its settings; nothing runs yet.

        Args:
            appendonly: Whether it writes an append-only file.
            appendfsync: ``always``, ``everysec`` or ``no``.
            tls: Speak TLS with a certificate of this set.
            certificate: Which one: ``good``, ``wrong-host``, ``expired`` or ``self-signed``.
            client_certificates: Whether clients must show one.
            config: Further lines of its configuration.
            users: ACL lines, as ``worker on >secret ~bus:* +@all``.
        """
        super().__init__("redis-server")
        self.tls = tls
        self.socket = self.folder / "redis.sock"
        lines: dict[str, str | int] = {
            "bind": "127.0.0.1",
            "port": 0 if tls else self.port,
            "unixsocket": str(self.socket),
            "dir": str(self.folder),
            "save": '""',
            "appendonly": "yes" if appendonly else "no",
            "appendfsync": appendfsync,
            "daemonize": "no",
            "enable-debug-command": "yes",
            # Nothing else runs beside a rewrite, which only takes one of two cores away.
            "auto-aof-rewrite-percentage": 0,
            "logfile": '""',
        }
        if tls:
            pair = tls.server(certificate)
            lines |= {
                "tls-port": self.port,
                "tls-cert-file": str(pair.cert),
                "tls-key-file": str(pair.key),
                "tls-ca-cert-file": str(tls.ca),
                "tls-auth-clients": "yes" if client_certificates else "no",
            }
        lines |= config or {}
        text = [f"{name} {value}" for name, value in lines.items()]
        text += [f"user {line}" for line in users]
        self._config = self.folder / "redis.conf"
        self._config.write_text("\n".join(text) + "\n")

    def url(self, database: int = 0, user: str = "") -> str:
        """Return the address for ``connect``.

        Args:
            database: Its number.
            user: ``name:password`` of an ACL user.
        """
        scheme = "rediss" if self.tls else "redis"
        return f"{scheme}://{user + '@' if user else ''}127.0.0.1:{self.port}/{database}"

    def start(self) -> Self:
        """Start it and wait until it has loaded its data and answers."""
        with contextlib.suppress(FileNotFoundError):
            self.socket.unlink()
        self._process.start(self._command())
        self._process.wait_until(self._answers)
        return self

    def _command(self) -> list[str]:
        return [binary("redis-server"), str(self._config)]

    def _answers(self) -> bool:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as client:
            client.settimeout(1.0)
            client.connect(str(self.socket))
            client.sendall(b"PING\r\n")
            answer = client.recv(64)
            return answer.startswith((b"+PONG", b"-NOAUTH"))
        return False

    def stop(self) -> None:
        """Shut it down in an orderly way."""
        self._process.end(signal.SIGTERM)

    def load_functions(self, user: str = "") -> None:
        """Load the functions of the bus, as an operator does."""
        command = [sys.executable, "-m", "eventbus", "redis-setup", "-"]
        url = self.url(user=user).encode()
        done = subprocess.run(command, input=url, capture_output=True, check=False, timeout=60)
        assert done.returncode == 0, done.stderr

    def restart(self, *, kill: bool = False) -> Self:
        """End it and start it again on the same port and data."""
        if kill:
            self.kill()
        else:
            self.stop()
        return self.start()

    def pause(self) -> None:
        """Stop it with SIGSTOP: connections stay open and nothing answers."""
        self._process.send(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        self._process.send(signal.SIGCONT)

    def fill_disk(self, room: int = 0) -> None:
        """Let no file grow beyond the size of its append-only file now, plus ``room`` bytes."""
        files = [*self.folder.rglob("*.aof"), *self.folder.rglob("*.rdb")]
        size = max((file.stat().st_size for file in files), default=0)
        resource.prlimit(self.pid, resource.RLIMIT_FSIZE, (size + room, resource.RLIM_INFINITY))

    def free_disk(self) -> None:
        """Let files grow again."""
        unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
        resource.prlimit(self.pid, resource.RLIMIT_FSIZE, unlimited)

    def client(self, database: int = 0, **options: Any) -> redis.Redis:
        """Return a blocking client over its Unix socket, which needs neither TLS nor a user."""
        return redis.Redis(unix_socket_path=str(self.socket), db=database, **options)

    def async_client(self, database: int = 0, **options: Any) -> redis.asyncio.Redis:
        """Return the same for asyncio."""
        return redis.asyncio.Redis(unix_socket_path=str(self.socket), db=database, **options)

    def clients(self, kind: str | None = None) -> list[dict[str, Any]]:
        """Return its ``CLIENT LIST`` without the one that asks."""
        with self.client() as client:
            own = client.client_id()
            found = client.client_list(_type=kind) if kind else client.client_list()
        return [one for one in found if int(one["id"]) != own]

    def processor_seconds(self) -> float:
        """Return the processor time that it used, in seconds."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
