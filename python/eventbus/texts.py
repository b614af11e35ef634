"""Texts of users and of their errors, as they can be stored, sent and logged."""

from __future__ import annotations

import traceback

__all__ = ["describe_error", "escaped", "storable"]

_HEAD, _TAIL = 4_000, 11_000
"""Bytes kept of the two ends of a long error: the core keeps at most 16 KiB, and would cut the end,
where an exception says what it is."""


def escaped(text: str) -> bytes:
    """Return a text in UTF-8 that every backend can store.

    Lone surrogates, which UTF-8 does not have, and NUL, which Postgres keeps in no text, are
    escaped with a backslash.
    """
    return text.encode("utf-8", "backslashreplace").replace(b"\0", b"\\x00")


def storable(text: object) -> str:
    r"""Return a text that every backend can store.

    What UTF-8 cannot encode (a lone surrogate) and NUL, which Postgres keeps in no text, are
    escaped: ``"\ud800"`` becomes ``r"\ud800"``. More than 16 KB are cut in the middle.
    Never raises.

    Args:
        text: A str, or anything whose ``str()`` is meant.
    """
    try:
        whole = text if isinstance(text, str) else str(text)
    except Exception as error:  # noqa: BLE001 - whatever the object of a user does
        whole = f"<{type(text).__name__} whose str() raised {type(error).__name__}>"
    raw = escaped(whole)
    if len(raw) > 16_000:
        raw = raw[:_HEAD] + "\n…\n".encode() + raw[-_TAIL:]
    return raw.decode("utf-8", "ignore")


def describe_error(error: BaseException) -> str:
    """Return type, message, traceback and causes as a storable text. Never raises."""
    try:
        shown = traceback.TracebackException.from_exception(error)
        _drop_columns(shown)
        return storable("".join(shown.format()))
    except Exception as trouble:  # noqa: BLE001 - whatever the exception of a user does
        return f"{type(error).__name__} (cannot be shown: {type(trouble).__name__})"


def _drop_columns(shown: traceback.TracebackException) -> None:
    """Leave the marks under the lines out: for each, CPython parses the line, and 3.11 leaks."""
    waiting: list[traceback.TracebackException | None] = [shown]
    while waiting:
        one = waiting.pop()
        if one is not None:
            for frame in one.stack:
                frame.colno = frame.end_colno = None
            waiting += [one.__cause__, one.__context__, *(one.exceptions or ())]
