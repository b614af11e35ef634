"""Makes a bus from a URL: ``connect``."""

from __future__ import annotations

import os
from typing import Unpack

from eventbus.bus import Bus
from eventbus.config import BusOptions
from eventbus.errors import ConfigError

__all__ = ["connect"]


def connect(url: str | None = None, **options: Unpack[BusOptions]) -> Bus:
    """Return a bus that is not connected yet; ``async with`` connects and drains it.

    Nothing else is read from the environment, and no server is asked.

    Args:
        url: Where the bus is; options may stand in its query. Default: the environment variable
            ``EVENTBUS_URL``.

            - ``memory://`` is a new bus each time, ``memory://name`` is shared in the process.
            - ``redis://user:password@host:6379/0``; ``rediss://`` with TLS; ``unix:///run/x.sock``
              or ``redis+unix://`` for a socket; ``redis+sentinel://host1,host2/service/0`` and
              ``redis+cluster://host1,host2`` (``rediss+`` with TLS).
            - ``postgresql://user:password@host:5432/database?sslmode=verify-full``.

            What has a meaning in a URL is percent-encoded in its parts.
        **options: Options of the bus; they win over the URL's. ``None`` means not given.

    Raises:
        ConfigError: No URL at all, an unknown scheme or option, or a bad value; all problems at
            once.
        UnsupportedError: More than one of ``partitions``, or ``retention`` with another wire than
            ``native``.
    """
    text = url if url is not None else os.environ.get("EVENTBUS_URL")
    if text is None or (url is None and not text):
        # A bus in this process alone must be asked for: it hears nobody else.
        raise ConfigError(
            "no URL: give one, connect('redis://…') or connect('postgresql://…'), or set the "
            "environment variable EVENTBUS_URL; connect('memory://') is a bus inside this process"
        )
    if not isinstance(text, str):
        raise TypeError(f"url must be a str, not {type(text).__name__}")
    # Not at the top: only a process that makes a bus pays for reading options.
    from eventbus.backends import plan

    return Bus(**plan(text, options).keywords())
