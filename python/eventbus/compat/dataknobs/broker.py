"""What the DataKnobs buses over a server have in common: wire, limits, unknown keys, errors."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, TypeVar

from eventbus.backends import Plan, finished
from eventbus.bus import INTAKE, Bus
from eventbus.compat.dataknobs.configured import Configured, EventBusConfig, warn_of_unknown
from eventbus.errors import BusClosedError, ConfigError, NotConnectedError
from eventbus.options import Found, Kind

__all__ = ["UNSET", "BrokerEventBus", "apply_defaults", "given", "made"]

UNSET: Any = object()
"""Stands for an argument that was not given."""

# What differs from `connect` (contract D16, D37).
_DEFAULTS = {
    "wire": "dataknobs",
    "connect_timeout": 10.0,
    "op_timeout": 5.0,
    "drain_timeout": 5.0,
}


def given(**arguments: Any) -> dict[str, Any]:
    """Return the arguments that were given."""
    return {key: value for key, value in arguments.items() if value is not UNSET}


def apply_defaults(kind: Kind, found: Found, extra: Iterable[str]) -> None:
    """Add the defaults of this contract; unknown keys warn, but one for TLS is a problem."""
    valid = list(dict.fromkeys([*extra, *kind.keys]))
    dangerous = [key for key in found.unknown if str(key).lower().startswith(("tls", "ssl"))]
    if dangerous:
        # Ignored, it would leave a connection less safe than was meant.
        tls = ", ".join(key for key in valid if key.startswith(("tls_", "ssl", "insecure")))
        found.problems += [f"unknown option {key!r}; valid for TLS: {tls}" for key in dangerous]
    warn_of_unknown([key for key in found.unknown if key not in dangerous], valid)
    for key, value in _DEFAULTS.items():
        found.values.setdefault(key, value)


def made(plan: Plan, found: Found) -> dict[str, Any]:
    """Return the keywords of ``Bus``.

    Raises:
        ConfigError: With every problem.
        UnsupportedError: An option that no backend serves yet.
    """
    # A key and the variable behind it may be wrong in the same way.
    if problems := list(dict.fromkeys(found.problems)):
        raise ConfigError("; ".join(problems), problems)
    return finished(plan, found.values).keywords()


_Config = TypeVar("_Config", bound=EventBusConfig)


class BrokerEventBus(Configured[_Config], Bus):
    """A DataKnobs bus over a server."""

    _IS_DATAKNOBS = True

    def _not_live(self, operation: str) -> None:
        if self._state == "draining" and operation not in INTAKE:
            return
        kind = BusClosedError if self._state in ("closed", "draining") else NotConnectedError
        raise kind(f"{type(self).__name__} not connected")
