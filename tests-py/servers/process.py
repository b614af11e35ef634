"""One child process of the tests: found, started, paused, killed, and never left behind."""

from __future__ import annotations

import atexit
import contextlib
import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

READY_WITHIN = 20.0
"""Seconds until a server answers, on a busy machine too."""

# Below the ports that the kernel gives to clients, so that a stopped server finds its own free.
# Of two processes of one run each takes ports of its own, for the same reason.
_PROCESSES = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
_PROCESS = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
_PORTS = range(11_000 + _PROCESS, 32_000, _PROCESSES)
_taken: set[int] = set()
_numbers = random.Random()

_PACKAGES = {
    "redis-server": "redis-server",
    "redis-cli": "redis-tools",
    "postgres": "postgresql",
    "initdb": "postgresql",
    "pgbouncer": "pgbouncer",
    "openssl": "openssl",
    "setpriv": "util-linux",
}

# The kernel ends a child when the *thread* that started it ends, so one thread starts all of them.
_starter = ThreadPoolExecutor(1, thread_name_prefix="servers")


class MissingBinary(AssertionError):
    """A server is not installed; the test fails, it is not skipped."""


def binary(name: str) -> str:
    """Return the path of a program.

    Raises:
        MissingBinary: Naming the package that brings it.
    """
    found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/bin")
    if found is None:
        # Debian keeps the programs of the server out of the PATH; the newest version wins.
        versions = Path("/usr/lib/postgresql").glob(f"*/bin/{name}")
        newest = sorted(versions, key=lambda path: int(path.parts[4]), reverse=True)
        found = str(newest[0]) if newest else None
    if found is None:
        package = _PACKAGES.get(name, name)
        raise MissingBinary(f"{name} is not installed: 'make servers' or apt-get install {package}")
    return found


def free_port() -> int:
    """Return a port on 127.0.0.1 that nothing listens on, and no other caller here gets."""
    while True:
        port = _numbers.choice(_PORTS)
        if port in _taken:
            continue
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        _taken.add(port)
        return port


def temporary_folder(prefix: str, owner: str | None = None) -> Path:
    """Return a new folder that is removed at the end of the run.

    Args:
        prefix: Begins its name.
        owner: The user it belongs to; this one by default.
    """
    folder = Path(tempfile.mkdtemp(prefix=f"eventbus-{prefix}-"))
    if owner is not None:
        user = pwd.getpwnam(owner)
        os.chown(folder, user.pw_uid, user.pw_gid)
    _folders.append(folder)
    return folder


def children_of(pid: int) -> list[int]:
    """Return the process ids of the children of a process, their children included."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            for child in task.read_text().split():
                found += [int(child), *children_of(int(child))]
    return found


def unprivileged() -> str | None:
    """Return the user that servers run as which refuse root; ``None`` = as this one."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name).pw_name
    raise MissingBinary("no user 'postgres' or 'nobody' to run servers as that refuse root")


class Process:
    """A program that can be started again, with a log that a failure can show.

    Attributes:
        log: The file with what it printed.
    """

    def __init__(self, name: str, log: Path, user: str | None = None) -> None:
        """Remember how to run it.

        Args:
            name: Names it in messages.
            log: Where its output goes; appended to.
            user: Who runs it; this user by default.
        """
        self.name = name
        self.log = log
        self._user = user
        self._popen: subprocess.Popen[bytes] | None = None
        _processes.add(self)

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._popen is not None, f"{self.name} was not started"
        return self._popen.pid

    @property
    def running(self) -> bool:
        """Whether it was started and has not ended."""
        return self._popen is not None and self._popen.poll() is None

    @property
    def code(self) -> int | None:
        """How it ended, or ``None``."""
        return None if self._popen is None else self._popen.poll()

    def start(
        self, command: Sequence[str | Path], environment: Mapping[str, str] | None = None
    ) -> None:
        """Start it in a session of its own; the kernel kills it when the tests end."""
        assert not self.running, f"{self.name} runs already"
        _starter.submit(self._start, [str(word) for word in command], environment).result()

    def _start(self, command: list[str], environment: Mapping[str, str] | None) -> None:
        with self.log.open("ab") as log:
            self._popen = subprocess.Popen(
                [binary("setpriv"), "--pdeathsig", "KILL", "--", *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(environment or {})},
                user=self._user,
                group=None if self._user is None else pwd.getpwnam(self._user).pw_gid,
                extra_groups=None if self._user is None else [],
                start_new_session=True,
                cwd="/",
                # SIGXFSZ stays ignored: a file that reached its limit is a full disk, not a kill.
                restore_signals=False,
            )

    def wait_until(self, ready: Callable[[], bool], within: float = READY_WITHIN) -> None:
        """Wait until a condition holds; fails at once when the process ends before."""
        deadline = time.monotonic() + within
        while not ready():
            if not self.running:
                raise AssertionError(f"{self.name} ended with {self.code}:\n{self.tail()}")
            if time.monotonic() > deadline:
                raise AssertionError(f"{self.name} is not ready in {within} s:\n{self.tail()}")
            time.sleep(0.01)

    def tail(self, size: int = 4_000) -> str:
        """Return the end of its log."""
        with contextlib.suppress(OSError):
            return self.log.read_text(errors="replace")[-size:]
        return ""

    def send(self, number: signal.Signals, *, family: bool = False) -> None:
        """Send a signal; with ``family`` to its children too, the parent first."""
        for pid in [self.pid, *(children_of(self.pid) if family else [])]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)

    def end(self, number: signal.Signals = signal.SIGTERM, within: float = 10.0) -> None:
        """Send a signal and wait for the end; SIGKILL when it does not come."""
        if self._popen is None:
            return
        family = children_of(self.pid) if self.running else []
        if self.running:
            if number != signal.SIGKILL:
                # One that is stopped cannot hear it.
                self.send(signal.SIGCONT, family=True)
            self.send(number)
        try:
            self._popen.wait(within)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            self._popen.wait()
        if number == signal.SIGKILL:
            _kill(family)
        for pid in family:
            _wait_gone(pid, within)

    def forget(self) -> None:
        """Kill it whatever state it is in."""
        if self._popen is not None and self._popen.poll() is None:
            family = children_of(self.pid)
            self._popen.kill()
            _kill(family)
            self._popen.wait()


def _kill(family: list[int]) -> None:
    for pid in family:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _wait_gone(pid: int, within: float) -> None:
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return
        if state == "Z":
            return
        time.sleep(0.005)


_processes: weakref.WeakSet[Process] = weakref.WeakSet()
_folders: list[Path] = []
_owner = os.getpid()


@atexit.register
def _clean_up() -> None:
    if os.getpid() != _owner:  # A child that was forked has none of them.
        return
    for process in list(_processes):
        process.forget()
    for folder in _folders:
        shutil.rmtree(folder, ignore_errors=True)
