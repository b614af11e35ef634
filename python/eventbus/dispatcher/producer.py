"""Producing events without dispatching any."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

from eventbus.bus import Bus
from eventbus.connect import connect
from eventbus.dispatcher.events import AbstractEvent
from eventbus.dispatcher.transport import BusTransport, Message, Target, Transport
from eventbus.errors import NotConnectedError

__all__ = ["EventProducer", "message_of", "transport_of"]


def transport_of(where: Bus | str | Transport, *, prefix: str, **options: Any) -> Transport:
    """Return the transport to an address: a bus, the URL of one, or a transport itself."""
    if isinstance(where, str):
        return BusTransport(connect(where), prefix=prefix, owned=True, **options)
    if isinstance(where, Bus):
        return BusTransport(where, prefix=prefix, **options)
    return where


def message_of(event: str | AbstractEvent, args: Sequence[Any], source: str) -> Message:
    """Return the message of an event by name, or of a typed one.

    Raises:
        TypeError: The event is neither, or a typed one was given arguments.
    """
    if isinstance(event, AbstractEvent):
        if args:
            raise TypeError(f"{type(event).__name__} brings its own arguments; give no args")
        return Message(event.name, source, tuple(event.serialize()))
    if not isinstance(event, str):
        raise TypeError(f"event must be a name or an AbstractEvent, not {event!r}")
    if isinstance(args, str | bytes):
        raise TypeError(f"args must be a tuple or list of arguments, not {args!r}")
    return Message(event, source, tuple(args))


class EventProducer:
    """Sends events to the dispatchers on a bus.

    Use it as ``async with EventProducer("redis://…", source="agent-7") as producer:``.

    Attributes:
        source: Who produces, unless a call says otherwise.
    """

    def __init__(
        self, bus: Bus | str | Transport, *, prefix: str = "events", source: str = ""
    ) -> None:
        """Make a producer that is not started yet.

        Args:
            bus: A bus (connected when it is new, never closed here), the URL of one of its own,
                or a transport.
            prefix: What the topics begin with; as for the dispatchers.
            source: Who produces.
        """
        self.source = source
        self._transport = transport_of(bus, prefix=prefix)
        self._live = False

    async def start(self) -> None:
        """Connect. Idempotent."""
        await self._transport.connect()
        self._live = True

    async def close(self) -> None:
        """End it. Idempotent."""
        self._live = False
        await self._transport.close()

    async def __aenter__(self) -> Self:
        """Start."""
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close."""
        await self.close()

    async def produce_event(
        self,
        event: str | AbstractEvent,
        args: Sequence[Any] = (),
        *,
        source: str | None = None,
        to: Target = "both",
        dedup_id: str | None = None,
    ) -> None:
        """Send an event.

        Returns when the bus accepted it. Cancelling it leaves the event whole or absent.

        Args:
            event: The event name, or a typed event, which brings its arguments.
            args: The arguments; any values that the bus carries.
            source: Who produces; the producer's ``source`` by default.
            to: ``"consumers"``, ``"subscribers"`` or ``"both"``.
            dedup_id: A second event of this name and id is dropped (24 hours).

        Raises:
            TypeError: The event is neither a name nor a typed event.
            EncodeError: An argument cannot be encoded.
            ConnectError: The server cannot be reached.
            NotConnectedError: Before ``start`` or after ``close``.
        """
        if not self._live:
            raise NotConnectedError("producer is not started: use 'async with producer:'")
        who = self.source if source is None else source
        message = message_of(event, args, who)
        await self._transport.produce(message, to=to, dedup_id=dedup_id)
