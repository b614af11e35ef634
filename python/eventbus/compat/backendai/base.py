"""What the dispatchers and producers of both eras have in common."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Callable
from typing import Any, ClassVar, Generic, Self

from eventbus.bus import Bus
from eventbus.compat.backendai.codec import Era
from eventbus.compat.backendai.connection import (
    Address,
    Connection,
    Options,
    open_connection,
    with_retries,
)
from eventbus.compat.backendai.types import aobject
from eventbus.dispatcher import Message, Target
from eventbus.dispatcher.engine import Engine, EngineOptions
from eventbus.dispatcher.handlers import H
from eventbus.errors import NotConnectedError
from eventbus.types import Gap

__all__ = ["BaseDispatcher", "BaseProducer", "Connected"]

log = logging.getLogger("eventbus.compat.backendai")


class Connected(aobject):
    """An object with a connection, made by ``await Cls.new(…)``."""

    era: ClassVar[Era]
    _options: Options = Options()
    _connection: Connection | None = None
    _closed: bool = False
    _warned: bool = False

    @classmethod
    async def new(cls, *args: Any, **kwargs: Any) -> Self:
        """Make an instance and return it once it is connected.

        Args:
            *args: As ``__init__`` takes them.
            **kwargs: As ``__init__`` takes them, and the options of
                ``eventbus.compat.backendai.connection.Options``.

        Raises:
            TimeoutError: There was no server for 60 seconds.
        """
        instance = cls.__new__(cls)
        instance._options = Options.take_from(kwargs)
        instance.__init__(*args, **kwargs)  # type: ignore[misc]  # as a call of the class would
        await instance.__ainit__()
        return instance

    def _open(self, address: Address) -> Connection:
        given: Bus | str | None = self._options.bus
        self._connection = open_connection(
            address if given is None else given, self.era, self._options
        )
        return self._connection

    @property
    def connection(self) -> Connection:
        """The connection.

        Raises:
            NotConnectedError: It was not made by ``new``.
        """
        if self._connection is None:
            raise NotConnectedError(f"make it by 'await {type(self).__name__}.new(…)'")
        return self._connection

    async def _produce(self, message: Message, to: Target, dedup_id: str | None) -> None:
        """Send an event, with patience; after ``close`` nothing happens (B27, B28).

        Raises:
            TimeoutError: There was no server for 60 seconds.
        """
        if self._closed:
            if not self._warned:
                self._warned = True
                log.warning("event produced after close, dropped event=%s", message.name)
            return
        transport = self.connection.transport
        await with_retries(
            lambda: transport.produce(message, to=to, dedup_id=dedup_id), "produce an event"
        )


class BaseProducer(Connected):
    """Sends events and dispatches none."""

    async def _start(self, address: Address) -> None:
        await with_retries(self._open(address).transport.connect, "connect")

    async def close(self) -> None:
        """End it. Idempotent."""
        if not self._closed:
            self._closed = True
            if self._connection is not None:
                await self._connection.transport.close()


class BaseDispatcher(Connected, Generic[H]):
    """Runs handlers for events."""

    def _prepare(self, log_events: bool) -> None:
        """Make the tables of handlers, before there is a connection."""
        options = self._options
        self._when_closed: set[Callable[[], object]] = set()
        self._when_gap: set[Callable[[], object]] = set()
        self._engine: Engine[H] = Engine(
            None,
            EngineOptions(
                concurrency=options.concurrency,
                drain_timeout=options.drain_timeout,
                consumer_exception_handler=options.consumer_exception_handler,
                subscriber_exception_handler=options.subscriber_exception_handler,
                observer=options.observer,
                on_gap=self._gap,
                log_events=log_events,
            ),
        )
        self.consumers = self._engine.consumers
        self.subscribers = self._engine.subscribers
        self.producer_lock = asyncio.Lock()

    async def _gap(self, gap: Gap) -> None:
        for tell in list(self._when_gap):
            tell()
        if self._options.on_gap is not None:
            result = self._options.on_gap(gap)
            if inspect.isawaitable(result):
                await result

    async def _start(self, address: Address) -> None:
        connection = self._open(address)
        self._engine.transport = connection.transport
        await with_retries(self._engine.listen, "subscribe to events")
        if self._options.autostart:
            self._engine.pop()

    async def start(self) -> None:
        """Take events from now on; needed with ``autostart=False`` only. Idempotent."""
        self._engine.pop()

    async def close(self) -> None:
        """Stop taking events, let running handlers finish, give back the rest. Idempotent."""
        self._closed = True
        for tell in list(self._when_closed):
            tell()
        await self._engine.close()

    def figures(self) -> dict[str, Any]:
        """Return counts, and the state of the list where there is one (B62)."""
        return self._engine.figures()

    def _local(self, event_name: str, source: str, args: Any) -> Message:
        return Message(event_name, source, tuple(args))
