"""What every server of the tests has: a port, a folder, one process, and an end."""

from __future__ import annotations

import shutil
import signal
from abc import ABC, abstractmethod
from typing import Self

from servers.process import Process, free_port, temporary_folder


class Server(ABC):
    """A server on a port of its own, with its files in a folder of its own.

    Attributes:
        port: Where it listens, on 127.0.0.1.
        folder: Its files.
    """

    def __init__(self, program: str, user: str | None = None) -> None:
        """Take a port and a folder; nothing runs yet.

        Args:
            program: Names it in messages.
            user: Who runs it and owns the folder; this user by default.
        """
        self.port = free_port()
        self.folder = temporary_folder(program, user)
        self._process = Process(program, self.folder / "log", user)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether its process lives."""
        return self._process.running

    @property
    def log(self) -> str:
        """The end of its log."""
        return self._process.tail()

    @abstractmethod
    def start(self) -> Self:
        """Start it and wait until it can be used."""

    def kill(self) -> None:
        """Kill every process of it with SIGKILL."""
        self._process.end(signal.SIGKILL)

    def close(self) -> None:
        """Kill it and remove its files."""
        self._process.forget()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Self:
        """Start it."""
        return self.start()

    def __exit__(self, *_: object) -> None:
        """Close it."""
        self.close()
