"""The option ``signing_key``: how it is read, and the log of what is not signed."""

from __future__ import annotations

import asyncio
import base64
import logging
import weakref
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, cast

from eventbus.errors import ConfigError

if TYPE_CHECKING:
    from eventbus._eventbus import CoreBus

__all__ = ["Watch", "check", "read_signing_key", "signing_keys"]

log = logging.getLogger("eventbus.bus")

_EVERY = 60.0

_LEAST = 16
_RULE = (
    f"must be a str or bytes of at least {_LEAST} bytes, a list of such (the first signs), or a "
    "function without arguments that returns one of these"
)


def read_signing_key(value: Any, text: bool) -> Any:
    """Read a key, several, or a function that returns them.

    Raises:
        ValueError: Says the rule.
    """
    if text:
        raise ValueError(
            "must not stand in a URL: give it as an argument, or a function that returns it"
        )
    if not callable(value):
        _secrets(value)
    return value


def signing_keys(value: Any) -> list[str]:
    """Return the keys as the core reads them, calling the function that knows them.

    Raises:
        ConfigError: The function returned no keys.
    """
    called = callable(value)
    try:
        secrets = _secrets(value() if called else value)
    except ValueError as error:
        what = "what the function given as signing_key returned" if called else "signing_key"
        raise ConfigError(f"{what} {error}") from None
    return [base64.b64encode(secret).decode() for secret in secrets]


def check(values: Mapping[str, Any], problems: list[str]) -> None:
    """Add what is wrong with the options around signatures on a server."""
    if "signing_key" not in values:
        if "accept_unsigned" in values:
            problems.append("accept_unsigned is for a bus with a signing_key")
        return
    for option in ("wire", "hear"):
        found = values.get(option) or ()
        if "dataknobs" in ((found,) if isinstance(found, str) else found):
            problems.append(
                f"signing_key is not for {option}={found!r}: a frame of DataKnobs has no place for "
                "a signature, so anybody could send one"
            )


def _secrets(value: Any) -> list[bytes]:
    given = cast("Iterable[Any]", value) if isinstance(value, list | tuple) else [value]
    secrets = [_bytes(one) for one in given]
    if not secrets or min(map(len, secrets)) < _LEAST:
        raise ValueError(_RULE)
    return secrets


def _bytes(value: Any) -> bytes:
    """Return a secret as bytes; empty for what is none."""
    if isinstance(value, bytes):
        return value
    with suppress(UnicodeEncodeError):
        return value.encode() if isinstance(value, str) else b""
    return b""


class Watch:
    """Logs, once a minute at most, how much came without a valid signature."""

    def __init__(self, bus: CoreBus) -> None:
        """Start, if the bus has keys; on the running loop."""
        self._task: asyncio.Task[None] | None = None
        if bus._is_signing():
            known = bus._counters()["unsigned"]
            self._task = asyncio.create_task(_tell(weakref.ref(bus), known))

    def stop(self) -> None:
        """End it, from any thread."""
        if self._task is not None and not self._task.done():
            with suppress(RuntimeError):  # Its loop is closed.
                self._task.get_loop().call_soon_threadsafe(self._task.cancel)


async def _tell(ref: weakref.ref[CoreBus], known: int) -> None:
    while (bus := ref()) is not None:
        refused = bus._refused(known)
        # Nobody else may hold it any more: this task does not keep it.
        del bus
        found = await refused
        log.warning(
            "unsigned: %d broadcasts or queue entries without a valid signature by a signing_key "
            "of this bus; broadcasts were ignored, queue entries are dead letters",
            found - known,
        )
        known = found
        await asyncio.sleep(_EVERY)
