"""Puts this package in the place of the original's event modules, and takes it out again."""

from __future__ import annotations

import importlib
import sys
import threading
from types import ModuleType

__all__ = ["install", "uninstall"]

_HERE = "eventbus.compat.dataknobs"
_THERE = "dataknobs_common.events"
# What the original has there too.
_SUBMODULES = ("bus", "config", "memory", "postgres", "redis", "registry", "types")
# What it has not: nobody may find our files under its name.
_HIDDEN = (
    "broker",
    "configured",
    "environment",
    "exceptions",
    "factory",
    "install",
    "protocol",
)


class _Installation:
    """What stood where this package stands now; one per process."""

    def __init__(self) -> None:
        """Begin without."""
        self._lock = threading.Lock()
        self._installed = False
        self._modules: dict[str, ModuleType | None] = {}
        self._names: dict[str, object] = {}

    def put_in(self) -> None:
        with self._lock:
            if self._installed:
                return
            parent = importlib.import_module("dataknobs_common")
            own = importlib.import_module(_HERE)
            loaded: dict[str, ModuleType | None] = sys.modules  # type: ignore[assignment]
            self._modules = _loaded()
            for name in self._modules:
                del loaded[name]
            loaded[_THERE] = own
            for name in _SUBMODULES:
                loaded[f"{_THERE}.{name}"] = importlib.import_module(f"{_HERE}.{name}")
            for name in _HIDDEN:
                loaded[f"{_THERE}.{name}"] = None
            # The parent re-exports some names of its events.
            for name, value in {
                "events": own,
                **{one: getattr(own, one) for one in own.__all__},
            }.items():
                if name in vars(parent):
                    self._names[name] = vars(parent)[name]
                    setattr(parent, name, value)
            self._installed = True

    def take_out(self) -> None:
        with self._lock:
            if not self._installed:
                return
            loaded: dict[str, ModuleType | None] = sys.modules  # type: ignore[assignment]
            for name in _loaded():
                del loaded[name]
            loaded.update(self._modules)
            parent = sys.modules["dataknobs_common"]
            for name, value in self._names.items():
                setattr(parent, name, value)
            self._modules, self._names = {}, {}
            self._installed = False


_installation = _Installation()


def install() -> None:
    """Put this package in the place of the original's ``dataknobs_common.events`` and below.

    What is imported from there afterwards, by any library, is of this package: events of both are
    of one class. Names that were bound before stay the original's; every bus takes their events and
    equals their types all the same. Modules of the original's events that have no names here
    (``sqs``) cannot be imported meanwhile. Idempotent.

    Raises:
        ImportError: The package ``dataknobs-common`` is not there.
    """
    _installation.put_in()


def uninstall() -> None:
    """Undo ``install``: ``sys.modules`` and the names of ``dataknobs_common`` are as before.

    Names that were bound meanwhile stay those of this package. Idempotent.
    """
    _installation.take_out()


def _loaded() -> dict[str, ModuleType | None]:
    """Return the modules of the original's events that are there, and what stands for them."""
    prefix = f"{_THERE}."
    found = list(sys.modules.items())
    return {name: one for name, one in found if name == _THERE or name.startswith(prefix)}
