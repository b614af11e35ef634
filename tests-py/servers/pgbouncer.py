"""A connection pooler in front of a PostgreSQL of the tests, which breaks LISTEN."""

from __future__ import annotations

import os
import pwd
import socket
from contextlib import suppress
from typing import Self

from servers.postgres import SUPERUSER, PostgresServer
from servers.process import binary, unprivileged
from servers.server import Server


class PgBouncer(Server):
    """A ``pgbouncer``, by default one that gives each transaction any connection.

    Attributes:
        port: Where it listens, on 127.0.0.1.
    """

    def __init__(
        self, server: PostgresServer, *, mode: str = "transaction", pool_size: int = 4
    ) -> None:
        """Choose its settings; nothing runs yet.

        Args:
            server: What it stands before.
            mode: ``transaction``, ``session`` or ``statement``.
            pool_size: Connections to the server.
        """
        user = unprivileged()
        super().__init__("pgbouncer", user)
        users = self.folder / "users.txt"
        users.write_text(f'"{SUPERUSER}" ""\n')
        self._config = self.folder / "pgbouncer.ini"
        self._config.write_text(
            f"[databases]\n* = host={server.folder} port={server.port}\n"
            f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {self.port}\n"
            "unix_socket_dir =\nauth_type = trust\n"
            f"auth_file = {users}\npool_mode = {mode}\ndefault_pool_size = {pool_size}\n"
            "server_round_robin = 1\nmax_client_conn = 500\nignore_startup_parameters = "
            "extra_float_digits,search_path,application_name,statement_timeout\n"
        )
        if user is not None:
            owner = pwd.getpwnam(user)
            for file in (users, self._config):
                os.chown(file, owner.pw_uid, owner.pw_gid)

    def url(self, database: str = "postgres") -> str:
        """Return the address for ``connect``."""
        return f"postgresql://{SUPERUSER}@127.0.0.1:{self.port}/{database}"

    def start(self) -> Self:
        """Start it and wait until it takes connections."""
        self._process.start([binary("pgbouncer"), self._config])
        self._process.wait_until(self._listens)
        return self

    def _listens(self) -> bool:
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1.0):
            return True
        return False
