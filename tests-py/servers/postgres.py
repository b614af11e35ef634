"""One PostgreSQL of the tests: settings, crash, restart on the same port, pause, a crash image."""

from __future__ import annotations

import contextlib
import os
import pwd
import resource
import signal
import subprocess
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Self

import psycopg

from servers.certificates import Certificates
from servers.process import binary, temporary_folder, unprivileged
from servers.server import Server

SUPERUSER = "postgres"

_HOW = {"smart": signal.SIGTERM, "fast": signal.SIGINT, "immediate": signal.SIGQUIT}


class PostgresServer(Server):
    """A ``postgres`` on a port of its own, with a cluster of its own.

    Attributes:
        port: Where it listens, on 127.0.0.1 and as a Unix socket in ``folder``.
        folder: Its data (in ``data``), socket and log.
    """

    def __init__(
        self,
        *,
        config: Mapping[str, str | int] | None = None,
        tls: Certificates | None = None,
        certificate: str = "good",
        client_certificates: bool = False,
        password: str | None = None,
        _image: Path | None = None,
        _standby: bool = False,
    ) -> None:
        """Choose its settings; nothing runs yet.

        Args:
            config: Lines of ``postgresql.conf``.
            tls: Speak TLS with a certificate of this set, and refuse plain connections.
            certificate: Which one: ``good``, ``wrong-host``, ``expired`` or ``self-signed``.
            client_certificates: Whether clients must show one.
            password: Ask for it (SCRAM) on TCP; the Unix socket is open.
        """
        self._user = unprivileged()
        super().__init__("postgres", self._user)
        self.tls = tls
        self.password = password
        self.data = self.folder / "data"
        _copy(_image or _template(), self.data)
        with contextlib.suppress(FileNotFoundError):
            (self.data / "postmaster.pid").unlink()
        lines: dict[str, str | int] = {
            "listen_addresses": "127.0.0.1",
            "port": self.port,
            "unix_socket_directories": str(self.folder),
            "logging_collector": "off",
            "timezone": "UTC",
            "cluster_name": f"eventbus-{self.port}",
        }
        if tls:
            pair = tls.copy_for(certificate, self.folder, *self._owner())
            lines |= {
                "ssl": "on",
                "ssl_cert_file": str(pair.cert),
                "ssl_key_file": str(pair.key),
                "ssl_ca_file": str(tls.ca),
            }
        text = [f"{name} = '{value}'" for name, value in (lines | (config or {})).items()]
        (self.data / "postgresql.auto.conf").write_text("\n".join(text) + "\n")
        (self.data / "pg_hba.conf").write_text(self._access(client_certificates))
        if _standby:
            (self.data / "standby.signal").touch()

    def _owner(self) -> tuple[int, int]:
        if self._user is None:
            return os.getuid(), os.getgid()
        user = pwd.getpwnam(self._user)
        return user.pw_uid, user.pw_gid

    def _access(self, client_certificates: bool) -> str:
        method = "scram-sha-256" if self.password else "trust"
        more = " clientcert=verify-ca" if client_certificates else ""
        kind = "hostssl" if self.tls else "host"
        return (
            "local all all trust\nlocal replication all trust\n"
            f"{kind} all all 127.0.0.1/32 {method}{more}\n"
        )

    def url(self, database: str = "postgres", user: str = SUPERUSER, **query: str) -> str:
        """Return the address for ``connect``, asyncpg and psycopg."""
        secret = f":{self.password}" if self.password else ""
        tail = "&".join(f"{name}={value}" for name, value in query.items())
        address = f"postgresql://{user}{secret}@127.0.0.1:{self.port}/{database}"
        return f"{address}?{tail}" if tail else address

    def start(self) -> Self:
        """Start it and wait until it has recovered and takes connections."""
        self._process.start([binary("postgres"), "-D", str(self.data)])
        self._process.wait_until(self._ready)
        if self.password:
            self.execute(f"alter role {SUPERUSER} password '{self.password}'")
        return self

    def _ready(self) -> bool:
        try:
            lines = (self.data / "postmaster.pid").read_text().splitlines()
        except OSError:
            return False
        # A file left by a crash names another process.
        ours = len(lines) > 7 and lines[0].strip() == str(self.pid)
        return ours and lines[7].strip() in ("ready", "standby")

    def stop(self, how: str = "fast") -> None:
        """Shut it down: ``smart``, ``fast`` or ``immediate``, which needs a recovery afterwards."""
        self._process.end(_HOW[how])

    def restart(self, how: str = "fast") -> Self:
        """End it and start it again on the same port and data; ``how`` may be ``kill`` too."""
        if how == "kill":
            self.kill()
        else:
            self.stop(how)
        return self.start()

    def pause(self) -> None:
        """Stop every process of it with SIGSTOP: connections stay open and nothing answers."""
        self._process.send(signal.SIGSTOP, family=True)

    def resume(self) -> None:
        """Let them go on."""
        self._process.send(signal.SIGCONT, family=True)

    def crash_image(self, **options: Any) -> PostgresServer:
        """Return a server on a copy of the data as a power failure would leave it.

        All processes stand still while the files are copied. What the kernel has not written to the
        disk yet is in the copy too, so this shows what the server ordered, not what the disk kept.
        """
        self.pause()
        try:
            return PostgresServer(config=options, _image=self.data)
        finally:
            self.resume()

    def standby(self) -> PostgresServer:
        """Return a standby that follows this server; it is still to be started."""
        source = f"host={self.folder} port={self.port} user={SUPERUSER}"
        self.pause()
        try:
            return PostgresServer(
                config={"primary_conninfo": source}, _image=self.data, _standby=True
            )
        finally:
            self.resume()

    def promote(self) -> None:
        """Make a standby a server of its own; what it followed lives on."""
        self.execute("select pg_promote()")

    def position(self) -> str:
        """Return how far a server has written, or a standby has followed, as text to compare."""
        written = "pg_current_wal_lsn()"
        where = f"case when pg_is_in_recovery() then pg_last_wal_replay_lsn() else {written} end"
        return str(self.execute(f"select {where}::text")[0][0])

    def connection(self, database: str = "postgres", **options: Any) -> psycopg.Connection[Any]:
        """Return a connection of the superuser over the Unix socket, in autocommit."""
        return psycopg.connect(
            host=str(self.folder),
            port=self.port,
            dbname=database,
            user=SUPERUSER,
            autocommit=True,
            **options,
        )

    def execute(self, statement: str, *values: object, database: str = "postgres") -> list[Any]:
        """Run a statement as the superuser and return its rows."""
        with self.connection(database) as connection:
            # The statements are those of the tests.
            found = connection.execute(statement.encode(), values or None)
            return found.fetchall() if found.description else []

    def create_database(self, name: str) -> str:
        """Create a database and return its address."""
        self.execute(f'create database "{name}"')
        return self.url(name)

    def terminate_all(self, database: str | None = None) -> int:
        """End every session of clients, or those of one database; returns how many."""
        where = "" if database is None else "and datname = %s"
        rows = self.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity"
            f" where backend_type = 'client backend' and pid <> pg_backend_pid() {where}",
            *([] if database is None else [database]),
        )
        return len(rows)

    def fill_disk(self, room: int = 0) -> None:
        """Let no file grow beyond so many bytes; a segment of WAL needs 16 MiB."""
        for pid in [self.pid, *self._process_family()]:
            with contextlib.suppress(ProcessLookupError):
                resource.prlimit(pid, resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))

    def free_disk(self) -> None:
        """Let files grow again."""
        for pid in [self.pid, *self._process_family()]:
            with contextlib.suppress(ProcessLookupError):
                unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
                resource.prlimit(pid, resource.RLIMIT_FSIZE, unlimited)

    def _process_family(self) -> list[int]:
        from servers.process import children_of

        return children_of(self.pid)

    def processor_seconds(self) -> float:
        """Return the processor time of all its processes, those that ended included, in seconds."""
        total = 0.0
        for pid in [self.pid, *self._process_family()]:
            with contextlib.suppress(OSError):
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                own = int(fields[11]) + int(fields[12])
                ended = int(fields[13]) + int(fields[14]) if pid == self.pid else 0
                total += (own + ended) / os.sysconf("SC_CLK_TCK")
        return total

    def close(self) -> None:
        """End it and remove its data."""
        if self._process.running:
            # Not SIGKILL: its segment of shared memory would stay behind.
            self._process.end(signal.SIGQUIT, within=5.0)
        super().close()


@cache
def _template() -> Path:
    """Return the folder of a fresh cluster, made once per run."""
    user = unprivileged()
    folder = temporary_folder("initdb", user)
    command = [
        *(binary("initdb"), "-D", str(folder / "data"), "-U", SUPERUSER, "-A", "trust"),
        *("-E", "UTF8", "--locale=C", "--no-sync", "--no-instructions"),
    ]
    group = None if user is None else pwd.getpwnam(user).pw_gid
    extra: list[int] | None = None if user is None else []
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        user=user,
        group=group,
        extra_groups=extra,
        cwd="/",
    )
    if done.returncode:
        raise AssertionError(f"initdb failed:\n{done.stdout}{done.stderr}")
    return folder / "data"


def _copy(source: Path, target: Path) -> None:
    command = ["cp", "-a", "--reflink=auto", str(source), str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    # Files that vanish while they are copied are temporary ones.
    if done.returncode and not (target / "PG_VERSION").exists():
        raise AssertionError(f"cp failed: {done.stderr}")
