"""Decorated handlers keep their type; ``include`` starts them."""

# Every misuse below must be found by mypy and by pyright.
# pyright: reportUnnecessaryTypeIgnoreComment=true

from collections.abc import Callable, Coroutine
from typing import Any, assert_type

from eventbus import Bus, Consumer, Event, Registry, Subscription, event_handler

registry = Registry()


@event_handler("orders:created")
async def on_order(event: Event) -> int:
    return len(event.topic)


@registry.event_handler("orders:shipped", "orders:lost", group="shipping", concurrency=4)
def on_end(event: Event) -> str:
    return event.topic


@event_handler(pattern="orders:*", calls="topic_args")
def with_arguments(topic: str, *args: int, **kwargs: str) -> None: ...


class Shop:
    @event_handler("orders:paid")
    async def on_paid(self, event: Event) -> None: ...


order_type: Callable[[Event], Coroutine[Any, Any, int]] = on_order
end_type: Callable[[Event], str] = on_end
arguments_type: Callable[[str, int, int], None] = with_arguments
wrong_type: Callable[[Event], int] = on_end  # type: ignore[assignment]


async def use(bus: Bus, event: Event) -> None:
    assert_type(await on_order(event), int)
    assert_type(on_end(event), str)
    await Shop().on_paid(event)
    started = await bus.include(registry)
    assert_type(started, list[Subscription | Consumer])
    await bus.include(Shop())
    on_end("orders:lost")  # type: ignore[arg-type]
    with_arguments(5)  # type: ignore[arg-type]


@event_handler(7)  # type: ignore[arg-type]
def wrong_topic(event: Event) -> None: ...


@event_handler  # type: ignore[arg-type]
def not_called(event: Event) -> None: ...
