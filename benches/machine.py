"""On what it was measured: no figure without it."""

from __future__ import annotations

import os
import platform
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import eventbus

PEERS = (
    *("dataknobs-common", "blinker", "pyee", "ormsgpack", "msgspec", "msgpack"),
    *("redis", "faststream", "celery", "taskiq-redis", "dramatiq", "streaq"),
    *("asyncpg", "pgqueuer", "procrastinate"),
)


def processor() -> str:
    """Return the model of the processor."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def machine() -> dict[str, object]:
    """Return processor, interpreter and versions."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.release()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "eventbus": eventbus.__version__,
        "peers": {name: installed(name) for name in PEERS},
    }


def installed(name: str) -> str | None:
    """Return the version of a distribution, or `None`."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None
