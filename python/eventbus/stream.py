"""Iterating over a subscription: ``async for event in bus.stream(...)``."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Self

from eventbus.subscription import GapHandler, tell_gap
from eventbus.types import Event, Gap, Since

if TYPE_CHECKING:
    from eventbus._eventbus import CoreSubscription
    from eventbus.bus import Bus
    from eventbus.config import Overflow

__all__ = ["Stream"]


class Stream:
    """The events of a topic or pattern, buffered, as an async iterator.

    Active from ``async with`` or the first ``__anext__``: what is published after that is seen. A
    cancelled ``__anext__`` loses nothing that is buffered. Ends when it or its bus is closed.
    """

    def __init__(
        self,
        bus: Bus,
        topic: str | None,
        pattern: str | None,
        buffer: int,
        overflow: Overflow,
        on_gap: GapHandler | None,
        since: Since | None,
    ) -> None:
        """Remember what to subscribe to; made by ``Bus.stream``."""
        if (topic is None) == (pattern is None):
            raise TypeError("stream() needs a topic or a pattern, not both")
        self._bus = bus
        self._text: str = pattern if pattern is not None else topic or ""
        self._is_pattern = pattern is not None
        self._buffer = buffer
        self._overflow: Overflow = overflow
        self._on_gap = on_gap
        self._since = since
        self._core: CoreSubscription | None = None
        self._closed = False

    async def _start(self) -> CoreSubscription:
        if self._core is None:
            core = await self._bus._buffered(
                self._text, self._is_pattern, self._buffer, self._overflow, self._since
            )
            return self._keep(core)
        return self._core

    def _keep(self, core: CoreSubscription) -> CoreSubscription:
        # Somebody else may have been quicker while the server confirmed.
        if self._core is not None or self._closed:
            core.cancel()
        if self._core is None:
            self._core = core
        self._bus._streams.add(self)
        return self._core

    async def __aenter__(self) -> Self:
        """Subscribe."""
        await self._start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Unsubscribe."""
        self.close()

    def __aiter__(self) -> Self:
        """Return the stream itself."""
        return self

    async def __anext__(self) -> Event:
        """Return the next event; waits for it.

        Raises:
            StopAsyncIteration: When the stream or its bus was closed.
            BusClosedError: When the bus was closed before the stream began.
        """
        if self._closed:
            raise StopAsyncIteration
        core = await self._start()
        while True:
            item = core.take()
            if item is None:
                if core.ended():
                    raise StopAsyncIteration
                await core.wait()
            elif isinstance(item, tuple):
                self._bus._count(0, 0, 0, 1)
                await tell_gap(self._on_gap, Gap(*item), self._text)
            else:
                self._bus._count(1, 0, 0, 0)
                return item

    async def aclose(self) -> None:
        """End the stream. Idempotent."""
        self.close()

    def close(self) -> None:
        """End the stream and drop what is buffered. Idempotent."""
        self._closed = True
        if self._core is not None:
            self._core.cancel()
            self._bus._streams.discard(self)

    def _stop(self) -> None:
        """Take nothing more; what is buffered can still be read."""
        if self._core is not None:
            self._core.stop()
