"""The options of ``@event_handler``, checked where they are written."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any

from eventbus.arguments import one_of, positive
from eventbus.config import ConsumeOptions, seconds
from eventbus.signatures import check_gap_handler

__all__ = ["CONSUMING", "SUBSCRIBING", "check_options"]

CONSUMING = tuple(one.name for one in dataclasses.fields(ConsumeOptions) if one.name != "group")
"""What ``Bus.consume`` takes beside topics, handler and group."""

SUBSCRIBING = ("on_gap", "delivery", "queue_size", "overflow", "since")
"""What ``Bus.subscribe`` takes beside topic, handler and pattern."""


def check_options(group: str | None, options: Mapping[str, Any]) -> ConsumeOptions | None:
    """Check the options of a registration.

    Args:
        group: The group it consumes in; ``None`` = it subscribes.
        options: By name.

    Returns:
        The options of a consumer; ``None`` without a group.

    Raises:
        TypeError: An option is unknown, or is one of the other kind of handler.
        ConfigError: An option of a consumer is out of range.
        InvalidArgumentError: An option of a subscription is out of range.
    """
    for name in options:
        _check_name(name, group is not None)
    if group is None:
        _check_subscribing(options)
        return None
    given = {name: value for name, value in options.items() if name != "retry" or value is not None}
    for name in ("timeout", "lease", "max_lease"):
        if given.get(name) is not None:
            given[name] = seconds(given[name], name)
    return ConsumeOptions(group=group, **given)


def _check_name(name: str, consumes: bool) -> None:
    valid, other = (CONSUMING, SUBSCRIBING) if consumes else (SUBSCRIBING, CONSUMING)
    if name in valid:
        return
    if name in other:
        remedy = "leave group out, or leave it out" if consumes else "give group=… to consume"
        kind = "subscribes" if consumes else "consumes"
        raise TypeError(f"event_handler: {name!r} is for a handler that {kind}; {remedy}")
    near = difflib.get_close_matches(name, [*valid, "pattern", "group", "calls"], 1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    raise TypeError(
        f"event_handler got an unexpected option {name!r}; {hint}valid "
        f"{'with' if consumes else 'without'} a group: {', '.join(valid)}"
    )


def _check_subscribing(options: Mapping[str, Any]) -> None:
    check_gap_handler(options.get("on_gap"))
    if options.get("queue_size") is not None:
        positive("queue_size", options["queue_size"])
    for name, valid in (
        ("delivery", ("inline", "queued")),
        ("overflow", ("drop_oldest", "drop_newest", "close")),
    ):
        if options.get(name) is not None:
            one_of(name, options[name], valid)
