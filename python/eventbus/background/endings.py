"""How a background task ended, and the texts that say so whatever they have to hold."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Literal

from eventbus.texts import escaped

__all__ = ["Ending", "ending_of", "not_stored"]

EndStatus = Literal["done", "failed", "cancelled"]

_TEXT_LIMIT = 16_384  # bytes of an error text
_SHORT_LIMIT = 1_024  # bytes of what is left of a text that could not be stored


@dataclass(frozen=True, slots=True)
class Ending:
    """The last word of a task.

    Attributes:
        status: ``done``, ``failed`` or ``cancelled``.
        message: What the function returned, a text if it keeps to its type, or the exception.
        ends_process: ``SystemExit`` or ``KeyboardInterrupt``: to be raised again once it is stored.
    """

    status: EndStatus
    message: Any
    ends_process: BaseException | None = None


async def ending_of(
    call: Callable[[], Awaitable[str | None]], log: logging.Logger, what: str
) -> Ending:
    """Call the function of a task; return how it ended, whatever it raised.

    Args:
        call: Calls the function.
        log: Told the traceback of a failure.
        what: Names the task in the log.
    """
    try:
        return Ending("done", await call() or "")
    except asyncio.CancelledError:
        return Ending("cancelled", "")
    except BaseException as error:
        log.exception("background task failed %s", what)
        ends = error if isinstance(error, SystemExit | KeyboardInterrupt) else None
        return Ending("failed", _cut(_shown(error), _TEXT_LIMIT), ends)


def not_stored(ending: Ending, reason: BaseException) -> Ending:
    """Return the ending that takes the place of one that cannot be stored: short, and failed.

    Args:
        ending: The ending.
        reason: Why it cannot be stored.
    """
    kind = "result" if ending.status == "done" else "last message"
    text = f"the {kind} of the task cannot be stored: {_cut(_shown(reason), _SHORT_LIMIT)}"
    if isinstance(ending.message, str) and ending.message:
        text += f"; it begins with {_cut(ending.message, _SHORT_LIMIT)}"
    return Ending("failed", text, ending.ends_process)


def _shown(error: BaseException) -> str:
    try:
        return repr(error)
    except Exception as broken:  # noqa: BLE001 - a task fails with whatever class it likes
        return f"{type(error).__name__} (its repr raised {type(broken).__name__})"


def _cut(text: str, limit: int) -> str:
    """Return a storable text of at most about ``limit`` bytes; it says how many were cut."""
    data = escaped(text)
    if len(data) <= limit:
        return data.decode()
    return f"{data[:limit].decode(errors='ignore')}… ({len(data) - limit} bytes cut)"
