"""How the handler of a group or a subscription is called, and what cannot be one."""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from eventbus.delivery import Delivery
from eventbus.errors import ConfigError
from eventbus.names import shown
from eventbus.payloads import Convert, parameters
from eventbus.signatures import (
    check_call,
    check_kind,
    handler_name,
    is_coroutine_function,
    within_class,
)

if TYPE_CHECKING:
    from eventbus._eventbus import CoreDelivery
    from eventbus.config import ConsumeOptions
    from eventbus.types import Event

__all__ = [
    "calling",
    "check_consumer",
    "check_registration",
    "check_subscriber",
    "warn_of_subscriber",
]

log = logging.getLogger("eventbus.bus")

_SUBSCRIBER = "handler(event)"
_CONSUMER = "handler(event), or handler(event, delivery) with `delivery: Delivery`"
_BATCH = "handler(events) with a list of events"


def check_subscriber(handler: Callable[..., Any]) -> None:
    """Refuse what ``subscribe`` cannot call.

    Raises:
        TypeError: It is not callable, a generator function, or needs other arguments.
    """
    _check_callable(handler)
    check_call(handler, _SUBSCRIBER)


def warn_of_subscriber(handler: Callable[..., Any]) -> None:
    """Warn of what ``subscribe`` cannot call: the DataKnobs classes take it all the same.

    Raises:
        TypeError: It is not callable.
    """
    _check_callable(handler)
    try:
        check_call(handler, _SUBSCRIBER)
    except TypeError as error:
        log.warning("%s", error)


def check_registration(handler: Any, calls: str, consuming: ConsumeOptions | None) -> None:
    """Refuse what ``@event_handler`` decorates when nothing could call it.

    Args:
        handler: What is decorated; in the body of a class its first parameter is the instance.
        calls: The calling convention.
        consuming: The options of a consumer; ``None`` = it subscribes.

    Raises:
        TypeError: It is not callable, a generator function, or needs other arguments.
        ConfigError: ``timeout`` or ``run_in`` does not go with it.
    """
    classmethods: type[Any] = classmethod
    if isinstance(handler, classmethods):
        # Called with its class, which is not there yet.
        unbound: Callable[..., Any] = handler.__func__
        _check_convention(functools.partial(unbound, None), calls, consuming)
        return
    _check_callable(handler)
    try:
        _check_convention(handler, calls, consuming)
    except TypeError:
        if not within_class(handler):
            raise
        _check_convention(functools.partial(handler, None), calls, consuming)


def _check_convention(
    handler: Callable[..., Any], calls: str, consuming: ConsumeOptions | None
) -> None:
    if calls == "event" and consuming is None:
        check_subscriber(handler)
    elif calls == "event" and consuming is not None:
        check_consumer(handler, consuming)
    elif calls == "payload":
        check_call(handler, "handler(payload)")
    elif calls == "topic_args":
        check_call(handler, "handler(topic, *args, **kwargs)", more="any")
    else:
        check_kind(handler, f"a handler of the convention {calls!r}")
    if consuming is not None:
        check_mode(handler, consuming)


def check_consumer(handler: Callable[..., Any], options: ConsumeOptions) -> None:
    """Refuse what ``consume`` cannot call, or not with these options.

    Raises:
        TypeError: It is not callable, a generator function, or needs other arguments.
        ConfigError: ``timeout`` or ``run_in`` does not go with it.
    """
    _check_callable(handler)
    wanted = _delivery_parameter(handler)
    if options.batch is not None:
        if wanted is not None:
            raise TypeError(
                f"batch={options.batch} gives the handler a list of events, so it cannot take a "
                "Delivery; leave one of the two out"
            )
        check_call(handler, _BATCH)
    elif wanted is None:
        check_call(handler, _CONSUMER)
    else:
        _, first, by_position = wanted
        positional = 1 if first or not by_position else 2
        keywords = () if first or by_position else (wanted[0],)
        check_call(handler, _CONSUMER, positional, keywords)
    check_mode(handler, options)


def check_mode(handler: Callable[..., Any], options: ConsumeOptions) -> None:
    """Refuse ``timeout`` and ``run_in`` where they can have no effect.

    Raises:
        TypeError: It is a generator function.
        ConfigError: The option and the handler do not go together.
    """
    check_kind(handler, _CONSUMER)
    is_async = is_coroutine_function(handler)
    if options.run_in == "thread" and is_async:
        raise ConfigError(
            f"run_in='thread' is for plain functions, and {handler_name(handler)} is async def; "
            "leave run_in out, or make it a plain function"
        )
    if options.run_in == "loop" and options.timeout is not None and is_async is False:
        raise ConfigError(
            f"timeout={options.timeout:g} cannot end {handler_name(handler)}, a plain function on "
            "the loop; give run_in='thread', or make it async def"
        )


def calling(
    handler: Callable[..., Any], convert: Convert | None
) -> tuple[Callable[[Any], Any], bool]:
    """Return what a consumer calls, and whether with the delivery instead of its event.

    Args:
        handler: The handler.
        convert: Makes of an event what the handler's annotation asks for; ``None`` = nothing.
    """
    wanted = _delivery_parameter(handler)
    if wanted is not None:
        name, first, by_position = wanted

        def with_delivery(core: CoreDelivery) -> Any:
            delivery = Delivery(core)
            if first:
                return handler(delivery)
            event = core.event if convert is None else convert(core.event)
            if by_position:
                return handler(event, delivery)
            return handler(event, **{name: delivery})

        return with_delivery, True
    if convert is not None:

        def with_payload(event: Event) -> Any:
            return handler(convert(event))

        return with_payload, False
    return handler, False


def _delivery_parameter(handler: Callable[..., Any]) -> tuple[str, bool, bool] | None:
    """Return the parameter that wants the delivery: its name, whether first, or by position."""
    found = parameters(handler)
    for place, (name, hint) in enumerate(found):
        if hint is Delivery:
            kind = inspect.signature(handler).parameters[name].kind
            return name, place == 0, kind is inspect.Parameter.POSITIONAL_ONLY
    return None


def _check_callable(handler: object) -> None:
    if not callable(handler):
        kind = type(handler).__name__
        raise TypeError(f"handler must be callable, not {kind}: {shown(repr(handler))}")
