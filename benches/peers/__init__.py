"""The peers of the broker workloads: each file has how one library sends and receives."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from benches.peers.role import Consumer, Producer

# Name of the peer → (module here, what it needs, how it is called there).
PEERS: dict[str, tuple[str, tuple[str, ...], dict[str, Any]]] = {
    # W2, and W4 by another address
    "eventbus": ("ours", (), {"how": "one"}),
    "eventbus, 50 at once": ("ours", (), {"how": "gather"}),
    "eventbus, publish_many": ("ours", (), {"how": "many"}),
    "eventbus, publish_nowait": ("ours", (), {"how": "nowait"}),
    "redis-py": ("redispy", ("redis", "msgpack"), {"how": "one"}),
    "redis-py, 50 at once": ("redispy", ("redis", "msgpack"), {"how": "gather"}),
    "redis-py, pipeline of 100": ("redispy", ("redis", "msgpack"), {"how": "pipe"}),
    "faststream": ("faststreams", ("faststream", "redis"), {}),
    "dataknobs": ("dataknobs", ("dataknobs_common", "redis"), {"how": "redis"}),
    # W3, and W5 by another address
    "eventbus queue": ("ours", (), {"how": "one", "queue": True}),
    "eventbus queue, 50 at once": ("ours", (), {"how": "gather", "queue": True}),
    "eventbus queue, publish_many": ("ours", (), {"how": "many", "queue": True}),
    "eventbus queue, 100 in hand": ("ours", (), {"how": "many", "queue": True, "in_hand": 100}),
    "stream-100": ("redispy", ("redis", "msgpack"), {"how": "one", "stream": True}),
    "stream-100-pipe": ("redispy", ("redis", "msgpack"), {"how": "pipe", "stream": True}),
    "faststream stream": ("faststreams", ("faststream", "redis"), {"stream": True}),
    "celery": ("celeries", ("celery", "redis"), {}),
    "taskiq stream": ("taskiqs", ("taskiq_redis",), {}),
    "dramatiq": ("dramatiqs", ("dramatiq", "redis"), {}),
    "arq": ("arqs", ("arq",), {}),
    "streaq": ("streaqs", ("streaq",), {}),
    # W4
    "asyncpg": ("asyncpgs", ("asyncpg",), {"how": "one"}),
    "asyncpg-batch": ("asyncpgs", ("asyncpg",), {"how": "batch"}),
    "dataknobs on Postgres": ("dataknobs", ("dataknobs_common", "asyncpg"), {"how": "postgres"}),
    # W5
    "asyncpg-vt-1": ("asyncpgs", ("asyncpg",), {"how": "one", "queue": True}),
    "asyncpg-vt-100": ("asyncpgs", ("asyncpg",), {"how": "batch", "queue": True}),
    "pgqueuer": ("pgqueuers", ("pgqueuer", "asyncpg"), {"how": "one"}),
    "pgqueuer, batches of 100": ("pgqueuers", ("pgqueuer", "asyncpg"), {"how": "batch"}),
    "procrastinate": ("procrastinates", ("procrastinate", "psycopg"), {}),
}

SIGNING = "EVENTBUS_BENCH_SIGNING"
"""The variable that says that eventbus signs."""

APART = {"arq"}
"""Peers that have an environment of their own."""


def missing(peer: str) -> str | None:
    """Return what is not installed of a peer, or ``None``."""
    if peer in APART:
        return None
    return next((need for need in PEERS[peer][1] if find_spec(need) is None), None)


async def producer(peer: str, url: str) -> Producer:
    """Return the sending side of a peer, connected."""
    module, _, options = PEERS[peer]
    found: Producer = await import_module(f"benches.peers.{module}").producer(url, **options)
    return found


def consumer(peer: str, url: str, name: str) -> Consumer:
    """Return the receiving side of a peer; ``name`` tells several of them apart."""
    module, _, options = PEERS[peer]
    found: Consumer = import_module(f"benches.peers.{module}").consumer(url, name, **options)
    return found


async def prepare(peer: str, url: str) -> None:
    """Make what a peer needs on a fresh server."""
    found = getattr(import_module(f"benches.peers.{PEERS[peer][0]}"), "prepare", None)
    if found is not None:
        await found(url)
