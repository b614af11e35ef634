"""Lets ``attr.asdict``, ``attr.fields`` and ``attr.evolve`` work on the event classes.

The originals are attrs classes. Here they are dataclasses, so that attrs need not be installed;
their fields are shown to attrs only when it asks for them.
"""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

__all__ = ["AttrsFields"]


class _Fields:
    """The fields of a dataclass as attrs keeps them: made once per class, when attrs asks."""

    def __init__(self) -> None:
        self._made: dict[type, Any] = {}

    def __get__(self, instance: object, owner: type) -> Any:
        name = owner.__name__
        attr: Any = sys.modules.get("attr")
        if attr is None:
            # Only attrs asks for this name: a program without it has no attribute.
            raise AttributeError(f"{name} has no attribute '__attrs_attrs__'")
        if owner not in self._made:
            shown = dataclasses.fields(owner) if dataclasses.is_dataclass(owner) else ()
            specified = {field.name: _attribute(attr, field) for field in shown}
            self._made[owner] = attr.fields(attr.make_class(name, specified))
        return self._made[owner]


def _attribute(attr: Any, field: dataclasses.Field[Any]) -> Any:
    if field.default is not dataclasses.MISSING:
        return attr.ib(default=field.default)
    if field.default_factory is not dataclasses.MISSING:
        return attr.ib(factory=field.default_factory)
    return attr.ib()


class AttrsFields:
    """A base of event classes that shows their dataclass fields to attrs."""

    __attrs_attrs__ = _Fields()
