"""The shapes of what ``Bus.inspect`` and ``Bus.health`` return."""

from __future__ import annotations

from typing import Any, TypedDict

from eventbus.types import BusState, ConnectionState

__all__ = ["BusFigures", "GroupFigures", "Health"]


class GroupFigures(TypedDict):
    """The figures of a group.

    Attributes:
        group: Its name.
        bindings: The topics and patterns it is bound to.
        paused: Whether its claims are stopped.
        ready: Messages that can be claimed, or wait behind their key.
        delayed: Messages that are due later, retries included.
        in_flight: Messages being handled.
        dead: Dead letters.
        oldest_age: Seconds that the oldest ready message has waited; 0 when there is none.
        accepted: Copies accepted since the group was declared.
        acked: Deliveries acknowledged.
        retried: Retries counted.
        expired_leases: Leases that ran out and were taken back.
        removed: Copies removed by cancel, purge or unbind, and dead letters that are gone.
    """

    group: str
    bindings: list[str]
    paused: bool
    ready: int
    delayed: int
    in_flight: int
    dead: int
    oldest_age: float
    accepted: int
    acked: int
    retried: int
    expired_leases: int
    removed: int


class BusFigures(TypedDict):
    """The figures of a bus.

    Attributes:
        backend: The name of its backend.
        published: Messages accepted for groups; a duplicate is not.
        duplicates: Publishes that the dedup window dropped.
        records: Records stored.
        groups: One entry per group.
    """

    backend: str
    published: int
    duplicates: int
    records: int
    groups: list[GroupFigures]


class Health(TypedDict):
    """How a bus is.

    Attributes:
        ok: Whether it is live and every connection is proven alive; warnings do not count.
        state: Its state.
        backend: What its backend can do.
        counters: Its counters.
        warnings: What an operator should change, each with the remedy.
        connection: ``connecting``, ``live``, ``degraded`` (see the warnings) or ``closed``.
        server: What the server calls itself, with its version; empty in this process.
        reconnects: How often a connection was lost and made anew.
        last_error: The last trouble with a connection; empty when there was none.
        malformed: Frames of the server that could not be read, and connections that were given up
            because the server sent more than was asked for.
    """

    ok: bool
    state: BusState
    backend: dict[str, Any]
    counters: dict[str, int]
    warnings: list[str]
    connection: ConnectionState
    server: str
    reconnects: int
    last_error: str
    malformed: int
