"""The limit on how long a coroutine handler may run."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from eventbus.signatures import handler_name

__all__ = ["limited", "timeout_text"]


def timeout_text(handler: object, limit: float) -> str:
    """Return what the ``TimeoutError`` of a handler says."""
    return f"{handler_name(handler)} ran longer than timeout={limit:g} seconds"


def limited(
    call: Callable[[Any], Any], limit: float, handler: object
) -> Callable[[Any], Coroutine[Any, Any, Any]]:
    """Return a handler that raises ``TimeoutError`` when it ran longer than the limit.

    Also when it swallowed the cancellation and returned, or held the loop past its limit: a call
    that took too long never counts as a success.

    Args:
        call: What is called.
        limit: Seconds.
        handler: What the message names.
    """

    async def call_in_time(argument: Any) -> Any:
        clock = asyncio.get_running_loop().time
        deadline = clock() + limit
        scope = asyncio.timeout_at(deadline)
        try:
            async with scope:
                result = call(argument)
                if asyncio.iscoroutine(result):
                    result = await result
        except TimeoutError as error:
            if not scope.expired():
                raise
            raise TimeoutError(timeout_text(handler, limit)) from error
        if scope.expired() or clock() >= deadline:
            raise TimeoutError(timeout_text(handler, limit))
        return result

    return call_in_time
