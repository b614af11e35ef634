"""Worker processes of the fault tests, to be killed, paused and started again."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Self

from servers.process import Process
from servers.worker import Orders

_ROOT = Path(__file__).parents[2]


class Fleet:
    """Workers of one group.

    Attributes:
        folder: Their journals and logs.
        kills: How many were killed.
    """

    def __init__(self, url: str, folder: Path, orders: Orders, count: int) -> None:
        """Remember how to run them.

        Args:
            url: What they connect to.
            folder: For journals and logs.
            orders: What they do.
            count: How many.
        """
        self.folder = folder
        self.kills = 0
        self._url = url
        self._orders = orders
        self._workers = [Process(f"worker {one}", folder / f"log-{one}") for one in range(count)]

    def start(self) -> Self:
        """Start all of them and wait until they consume."""
        for worker in self._workers:
            self._start(worker)
        for worker in self._workers:
            worker.wait_until(self._ready(worker))
        return self

    def _start(self, worker: Process) -> None:
        orders = json.dumps(asdict(self._orders))
        command = [sys.executable, "-m", "servers.worker", self._url, str(self.folder), orders]
        paths = [str(_ROOT / "python"), str(_ROOT / "tests-py"), os.environ.get("PYTHONPATH", "")]
        worker.start(command, {"PYTHONPATH": os.pathsep.join(paths)})

    def _ready(self, worker: Process) -> Callable[[], bool]:
        return (self.folder / f"ready-{worker.pid}").exists

    def kill_one(self, rng: random.Random) -> int:
        """Kill a random worker with SIGKILL; returns its number. ``start_again`` brings it back."""
        number = rng.choice([n for n, one in enumerate(self._workers) if one.running])
        self._workers[number].end(signal.SIGKILL)
        self.kills += 1
        return number

    def start_again(self, number: int) -> None:
        """Start a killed worker again, without waiting for it."""
        if not self._workers[number].running:
            self._start(self._workers[number])

    def pause(self, number: int) -> None:
        """Stop a worker with SIGSTOP."""
        self._workers[number].send(signal.SIGSTOP)

    def resume(self, number: int) -> None:
        """Let it go on."""
        self._workers[number].send(signal.SIGCONT)

    def pid(self, number: int) -> int:
        """Return the process id of a worker."""
        return self._workers[number].pid

    def ended(self) -> dict[int, int | None]:
        """Return the exit codes of workers that ended by themselves."""
        found = {n: one.code for n, one in enumerate(self._workers)}
        return {n: code for n, code in found.items() if code not in (None, -signal.SIGKILL)}

    def refused(self) -> list[int]:
        """Return the ids whose settle was refused because the lease was lost."""
        files = self.folder.glob("refused-*")
        return [int(line) for file in files for line in file.read_text().split()]

    def logs(self) -> str:
        """Return the ends of their logs."""
        return "\n".join(f"{one.name}: {one.tail(2000)}" for one in self._workers)

    def stop(self) -> None:
        """End all in an orderly way."""
        for worker in self._workers:
            worker.end(signal.SIGTERM, within=15.0)

    def __enter__(self) -> Self:
        """Start them."""
        return self.start()

    def __exit__(self, *_: object) -> None:
        """Kill what is left."""
        for worker in self._workers:
            worker.forget()
