"""What waits in the groups of a bus, in words: for ``wait_idle`` and ``health``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from typing import TYPE_CHECKING

from eventbus.names import shown

if TYPE_CHECKING:
    from eventbus.figures import GroupFigures

__all__ = ["UNATTENDED_AFTER", "Unattended", "work_left"]

UNATTENDED_AFTER = 60.0
"""Seconds that a message waits until its group counts as one that nobody consumes."""

# Most names in one list of a text.
_NAMED = 20


def listed(names: Iterable[str]) -> str:
    """Return names for a message: the first ones, and how many more there are."""
    every = [repr(shown(name)) for name in names]
    more = len(every) - _NAMED
    return ", ".join(every[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def work_left(groups: Iterable[GroupFigures], own: Set[str]) -> list[str]:
    """Return what some groups still have to do, one text per group."""
    left: list[str] = []
    for group in groups:
        if group["group"] in own and (group["ready"] or group["in_flight"]):
            paused = ", paused" if group["paused"] else ""
            left.append(
                f"group {shown(group['group'])!r} has {group['ready']} ready and "
                f"{group['in_flight']} in flight{paused}"
            )
    return left


class Unattended:
    """Finds the groups, or bindings of groups, that nobody consumes."""

    def __init__(self) -> None:
        """Begin without an earlier look."""
        self._settled: dict[str, int] = {}

    def look(self, groups: Iterable[GroupFigures], handled: Mapping[str, Set[str]]) -> list[str]:
        """Return a warning for each group whose oldest message waits for nobody.

        Args:
            groups: The figures of all groups.
            handled: The bindings that the consumers of this bus handle, by group.
        """
        before, self._settled = self._settled, {}
        found: list[str] = []
        for group in groups:
            name = group["group"]
            settled = group["acked"] + group["retried"] + group["removed"] + group["dead"]
            if not group["ready"]:
                continue
            self._settled[name] = settled
            if group["paused"] or group["oldest_age"] <= UNATTENDED_AFTER:
                continue
            own = handled.get(name)
            missing = [one for one in group["bindings"] if own is None or one not in own]
            # Somebody else handles it: the oldest waits because there is much to do.
            elsewhere = own is None and (group["in_flight"] or before.get(name, settled) != settled)
            if missing and not elsewhere:
                found.append(
                    f"nobody consumes group {shown(name)!r}: {group['ready']} ready, the oldest "
                    f"for {group['oldest_age']:.0f} s; no consumer here for {listed(missing)}"
                )
        more = len(found) - _NAMED
        return found if more <= 0 else [*found[:_NAMED], f"nobody consumes {more} more groups"]
