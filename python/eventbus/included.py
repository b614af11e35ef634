"""What ``Bus.include`` has started, so that a second time starts nothing twice."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from eventbus import dispatch

if TYPE_CHECKING:
    from types import ModuleType

    from eventbus.bus import Bus
    from eventbus.consumer import Consumer
    from eventbus.subscription import Subscription

__all__ = ["Included"]

log = logging.getLogger("eventbus.bus")

# A registration, the instance its method is bound to, and for a subscription where it listens.
_Key = tuple[int, int, str | None]


class Included:
    """The receivers that were started for registrations, as long as they run."""

    def __init__(self, bus: Bus) -> None:
        """Begin with none."""
        self._bus = bus
        # With the objects: an id is that of one object only while the object lives.
        self._started: dict[_Key, tuple[object, Subscription | Consumer | None]] = {}

    async def start(
        self, target: ModuleType | dispatch.Registry | object
    ) -> list[Subscription | Consumer]:
        """Start what does not run yet, and return all that runs; see ``Bus.include``."""
        self._forget_ended()
        found: list[Subscription | Consumer] = []
        fresh = 0
        for registration, handler in dispatch.handlers_of(target):
            call = registration.callable_for(handler)
            for where, pattern in _places(registration):
                key = (id(registration), id(getattr(handler, "__self__", None)), where)
                if key in self._started:
                    _, running = self._started[key]
                    # Without one, another task is starting it.
                    found += [] if running is None else [running]
                    continue
                fresh += 1
                found.append(await self._start(key, registration, call, where, pattern))
        if not fresh:
            name = getattr(target, "__name__", None) or repr(target)
            log.warning("included before, nothing to start target=%s running=%d", name, len(found))
        return found

    async def _start(
        self,
        key: _Key,
        registration: dispatch.Registration,
        call: Callable[..., Any],
        where: str | None,
        pattern: str | None,
    ) -> Subscription | Consumer:
        bus = self._bus
        kept = (registration, call)
        self._started[key] = (kept, None)
        started: Subscription | Consumer
        try:
            if where is None:
                started = await bus.consume(
                    registration.topics,
                    call,
                    pattern=registration.pattern,
                    group=registration.group or "default",
                    **registration.options,
                )
            else:
                started = await bus.subscribe(where, call, pattern, **registration.options)
        except BaseException:
            self._started.pop(key, None)
            raise
        self._started[key] = (kept, started)
        return started

    def _forget_ended(self) -> None:
        for key, (_, started) in list(self._started.items()):
            if started is None or started in self._bus._consumers or self._is_subscribed(started):
                continue
            del self._started[key]

    def _is_subscribed(self, started: Subscription | Consumer) -> bool:
        number = getattr(started, "subscription_id", None)
        return number is not None and number in self._bus._subscriptions


def _places(registration: dispatch.Registration) -> list[tuple[str | None, str | None]]:
    """Return where a registration listens, with the pattern; a consumer listens in one go."""
    if registration.group is not None:
        return [(None, None)]
    places: list[tuple[str | None, str | None]] = [(topic, None) for topic in registration.topics]
    if registration.pattern is not None:
        places.append((registration.pattern, registration.pattern))
    return places
