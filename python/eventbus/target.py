"""Which bus a command for operators works on: a URL or ``EVENTBUS_URL``, of one kind of server."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from eventbus.backends import Plan, plan
from eventbus.errors import ConfigError, UnsupportedError

__all__ = ["plan_of"]


def plan_of(kind: str, url: str | None, given: Mapping[str, Any], scheme: str, why: str) -> Plan:
    """Return the plan of a bus of one kind, for what only this kind has.

    Args:
        kind: ``postgres`` or ``redis``.
        url: Where the bus is; the variable ``EVENTBUS_URL`` by default.
        given: The options of ``connect``.
        scheme: How a URL of this kind begins.
        why: Ends the error for a bus of another kind, after "a … bus".

    Raises:
        ConfigError: There is no URL, or it or an option cannot be used.
        UnsupportedError: The bus is of another kind.
    """
    text = url if url is not None else os.environ.get("EVENTBUS_URL")
    if not text:
        raise ConfigError(f"no URL: give {scheme}://… or set EVENTBUS_URL")
    planned = plan(text, given)
    if planned.kind != kind:
        raise UnsupportedError(f"a {planned.kind} bus {why}")
    return planned
