"""How a delivery ends: settled, and told in the log and to ``Bus.on_dead_letter``."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from eventbus.names import shown
from eventbus.texts import storable
from eventbus.types import DeadLetter

if TYPE_CHECKING:
    from eventbus._eventbus import CoreDelivery
    from eventbus.bus import Bus
    from eventbus.config import Seconds
    from eventbus.types import DeadReason

__all__ = [
    "DeadLetterHook",
    "bury",
    "fail",
    "is_undecodable",
    "leave",
    "reject",
    "tell_dead",
]

log = logging.getLogger("eventbus.deliveries")

DeadLetterHook = Callable[[DeadLetter], object]
"""Called with every dead letter of the groups that a bus consumes."""


async def fail(core: CoreDelivery, text: object, after: Seconds | None = None) -> None:
    """Count a failed attempt: due again later, or a dead letter after the last.

    Args:
        core: The delivery.
        text: What happened, kept with it.
        after: When to try again; the back-off of the policy by default.

    Raises:
        LeaseLost: It was taken back or has ended already; nothing changed.
        TypeError: ``after`` is no number of seconds.
        InvalidArgumentError: ``after`` is out of range.
    """
    kept = storable(text)
    seconds = core.next_attempt(after)
    pending = core.settle_failed(kept, seconds)
    if pending is not None:
        await pending
    if seconds is None:
        tell_dead(core.bus, _letter(core, "failed", kept, core.attempt))
        return
    due = datetime.now(UTC) + timedelta(seconds=seconds)
    log.warning(
        "attempt failed group=%s topic=%s event=%s attempt=%d reason=%s next=%s",
        shown(core.group),
        shown(core.topic),
        shown(core.event.event_id),
        core.attempt,
        shown(_last_line(kept)),
        due.isoformat(timespec="milliseconds"),
    )


async def reject(core: CoreDelivery, reason: object) -> None:
    """Move a delivery to the dead letters.

    Raises:
        LeaseLost: It was taken back or has ended already; nothing changed.
    """
    kept = storable(reason)
    pending = core.settle_dead("rejected", kept)
    if pending is not None:
        await pending
    tell_dead(core.bus, _letter(core, "rejected", kept, core.attempt - 1))


def is_undecodable(error: BaseException) -> bool:
    """Whether a handler only met an event whose payload or metadata cannot be decoded."""
    return getattr(error, "_of_message", False) is True


async def bury(core: CoreDelivery, error: BaseException) -> None:
    """Move a delivery that cannot be decoded to the dead letters, with its bytes.

    The backend tells of it.

    Raises:
        LeaseLost: It was taken back or has ended already; nothing changed.
    """
    pending = core.settle_dead("undecodable", storable(str(error)))
    if pending is not None:
        await pending


def leave(core: CoreDelivery, error: SystemExit | KeyboardInterrupt) -> None:
    """Give a delivery back as its handler ends the process.

    ``SystemExit`` counts as a crash: a message that makes every process exit becomes a dead
    letter after ``max_deliveries``. An interrupt has nothing to do with the message. Needs no loop:
    where a server is to be told, the runtime does it, and the exit of the process waits for that.
    """
    crashed = isinstance(error, SystemExit)
    if core.settled:
        return
    core.settle_last(crashed)
    log.warning(
        "%s in a handler, %s group=%s topic=%s event=%s attempt=%d crashes=%d",
        type(error).__name__,
        "crash counted" if crashed else "released",
        shown(core.group),
        shown(core.topic),
        shown(core.event.event_id),
        core.attempt,
        core.crashes + crashed,
    )


def tell_dead(bus: Bus, letter: DeadLetter) -> None:
    """Log a dead letter and tell the hook of the bus."""
    log.warning(
        "dead letter group=%s topic=%s event=%s attempt=%d reason=%s error=%s",
        shown(letter.group),
        shown(letter.topic),
        shown(letter.event_id),
        letter.attempt,
        letter.reason,
        shown(_last_line(letter.error)),
    )
    if bus.on_dead_letter is None:
        return
    try:
        result = bus.on_dead_letter(letter)
        if asyncio.iscoroutine(result):
            result.close()
            raise TypeError("on_dead_letter must be a plain function, not a coroutine function")
    except Exception:
        # A broken hook must not stop the consumer.
        log.exception("error in dead letter hook group=%s", shown(letter.group))


def _last_line(text: str) -> str:
    """Return the line of a traceback that says what happened."""
    lines = text.strip().rsplit("\n", 1)
    return lines[-1]


def _letter(core: CoreDelivery, reason: DeadReason, error: str, attempts: int) -> DeadLetter:
    return DeadLetter(
        group=core.group,
        message_id=core.message_id,
        topic=core.topic,
        reason=reason,
        error=error,
        attempts=attempts,
        crashes=core.crashes,
        died_at=datetime.now(UTC),
        body=core.body,
        event=core.event,
    )
