"""Names of topics and groups: how messages show them, and which look like patterns."""

from __future__ import annotations

import logging
from collections.abc import Iterable

__all__ = ["LiteralTopics", "shown"]

log = logging.getLogger("eventbus.bus")

# Most characters of a name in a message.
_SHOWN = 200
# Most topics of a bus whose warning is remembered.
_REMEMBERED = 1000


def shown(name: object) -> str:
    """Return a name as messages show it: printable, a long one cut and its length told."""
    text = name if isinstance(name, str) else repr(name)
    start = text[:_SHOWN]
    if not start.isprintable():
        # Line breaks would make a second entry of it, surrogates cannot be written at all.
        start = "".join(one if one.isprintable() else ascii(one)[1:-1] for one in start)
    whole = len(text) <= _SHOWN and len(start) <= _SHOWN
    return start if whole else f"{start[:_SHOWN]}… ({len(text)} characters)"


class LiteralTopics:
    """Warns of topics that look like patterns but are taken as they are."""

    def __init__(self) -> None:
        """Begin with nothing warned of."""
        self._told: set[str] = set()

    def check(self, verb: str, topics: Iterable[str]) -> None:
        """Log a warning for each topic with wildcard characters, once per topic."""
        for topic in topics:
            if ("*" in topic or "?" in topic or "[" in topic) and topic not in self._told:
                if len(self._told) >= _REMEMBERED:
                    self._told.clear()
                self._told.add(topic)
                log.warning(
                    "%s() takes the topic %r as it is, wildcards match nothing: write pattern=%r "
                    "to match topics",
                    verb,
                    shown(topic),
                    shown(topic),
                )
