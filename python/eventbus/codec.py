"""The payload codec on its own: ``encode(value) -> bytes``, ``decode(bytes) -> value``.

Carries None, bool, int of any size, float, str, bytes, list, tuple, dict with scalar keys, set,
frozenset, datetime, date, timedelta, UUID and Decimal, as msgpack with extension types. Never
pickle; nothing is imported because a message says so.
"""

from eventbus._eventbus import decode, encode

__all__ = ["decode", "encode"]
