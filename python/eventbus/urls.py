"""Takes the URL of a bus apart, without ever repeating a password in what it complains about."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from eventbus.errors import ConfigError

__all__ = ["BusUrl", "Host", "parse", "quoted", "scheme_of"]

_SCHEME = re.compile(r"[a-z][a-z0-9+.-]{0,30}")
_ESCAPE = re.compile(rb"%([0-9A-Fa-f]{2})")
_PLAIN = re.compile(r"[A-Za-z0-9_.~-]")


@dataclass(frozen=True, slots=True)
class Host:
    """One host of a URL; the parts that are missing are ``None``."""

    name: str | None = None
    port: int | None = None


@dataclass(slots=True)
class BusUrl:
    """The parts of a URL, decoded.

    Attributes:
        scheme: In lower case.
        username: Before the ``:`` of what stands before ``@``.
        password: Behind it.
        hosts: One at least, perhaps without name.
        path: Its segments, without empty ones at the end.
        query: Keys and values in order.
        doubtful: Keys behind a password in the query: perhaps part of it, after a bare ``&``.
        problems: What cannot be understood; no part of a user name or password.
    """

    scheme: str
    username: str | None = field(default=None, repr=False)
    password: str | None = field(default=None, repr=False)
    hosts: list[Host] = field(default_factory=list[Host])
    path: list[str] = field(default_factory=list[str])
    query: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]], repr=False)
    doubtful: set[str] = field(default_factory=set[str], repr=False)
    problems: list[str] = field(default_factory=list[str])


def _unquoted(text: str) -> str | None:
    """Return text with its percent escapes decoded, ``None`` when that is no UTF-8."""
    raw = text.encode("utf-8", "surrogatepass")
    plain = _ESCAPE.sub(lambda found: bytes([int(found[1], 16)]), raw)
    try:
        return plain.decode()
    except UnicodeDecodeError:
        return None


def quoted(text: str) -> str:
    """Return text with everything escaped that has a meaning in a URL."""
    return "".join(
        one if _PLAIN.match(one) else "".join(f"%{byte:02X}" for byte in one.encode())
        for one in text
    )


def _port_number(text: str) -> int | None:
    """Return a port from 1 to 65535, or ``None``."""
    if not (text.isascii() and text.isdecimal() and len(text) <= 5):
        return None
    return int(text) if 1 <= int(text) <= 65535 else None


def scheme_of(text: str) -> str:
    """Return the scheme of a URL in lower case.

    Raises:
        ConfigError: It has none; nothing else of it is repeated.
    """
    scheme, separator, _ = text.partition("://")
    if not separator or not _SCHEME.fullmatch(scheme.lower()):
        raise ConfigError("a bus URL must begin with a scheme and ://, as memory:// does")
    return scheme.lower()


def parse(text: str, product: str, *, named: bool = False) -> BusUrl:
    """Take a URL apart.

    Args:
        text: The URL; its scheme was checked.
        product: Names the server in what is said of a port: ``Postgres``.
        named: All before the query is one name, the only segment of the path.

    Raises:
        ConfigError: Part of a password may stand in the wrong place; nothing of it is repeated.
    """
    scheme, _, rest = text.partition("://")
    where = re.search(r"[/?#]", rest)
    authority, tail = (rest[: where.start()], rest[where.start() :]) if where else (rest, "")
    # A password with a bare / ? or # looks like this: everything behind could be part of it.
    if "@" in tail or "#" in tail:
        raise ConfigError(
            "the URL has @ or # behind its host: in user, password and options write / as %2F, "
            "? as %3F, # as %23 and @ as %40"
        )
    url = BusUrl(scheme.lower())
    path, _, query = tail.partition("?")
    _read_query(url, query)
    if named:
        _read_name(url, authority + path.rstrip("/"))
        return url
    login, _, hosts = authority.rpartition("@")
    _read_login(url, login)
    for one in hosts.split(","):
        _read_host(url, one, product)
    _read_path(url, path)
    return url


def _read_name(url: BusUrl, text: str) -> None:
    name = _unquoted(text)
    if name is None:
        url.problems.append("the name in the URL is not UTF-8 after percent-decoding")
    elif name:
        url.path.append(name)


def _read_login(url: BusUrl, login: str) -> None:
    user, _, password = login.partition(":")
    for what, text in (("user name", user), ("password", password)):
        found = _unquoted(text)
        if found is None:
            url.problems.append(f"the {what} of the URL is not UTF-8 after percent-decoding")
        elif found:
            setattr(url, "username" if what == "user name" else "password", found)


def _read_host(url: BusUrl, text: str, product: str) -> None:
    if text.startswith("["):
        name, closed, behind = text[1:].partition("]")
        if not closed or (behind and not behind.startswith(":")):
            url.problems.append("an IPv6 address must stand as [address] or [address]:port")
            return
        port = behind[1:]
    else:
        name, _, port = text.partition(":")
        if ":" in port:
            url.problems.append("an IPv6 address must stand in brackets: [::1]:port")
            return
    host = _unquoted(name)
    if host is None or "\0" in host:
        url.problems.append("a host of the URL is not UTF-8 after percent-decoding")
        return
    number = _port_number(port)
    if port and number is None:
        if port.isascii() and port.isdecimal():
            url.problems.append(f"{product} port={port!r} is outside the range 1-65535")
        else:
            # Not repeated: in `scheme://user:password` without host it is the password.
            url.problems.append(f"the port of host {host!r} is no number from 1 to 65535")
    url.hosts.append(Host(host or None, number))


def _read_path(url: BusUrl, path: str) -> None:
    for segment in path.removeprefix("/").rstrip("/").split("/"):
        found = _unquoted(segment)
        if found is None or "\0" in found:
            url.problems.append("the path of the URL is not UTF-8 after percent-decoding")
            return
        url.path.append(found)
    if url.path == [""]:
        url.path.clear()


def _read_query(url: BusUrl, query: str) -> None:
    seen: set[str] = set()
    for pair in filter(None, query.split("&")):
        key, value = (_unquoted(part) for part in (pair.partition("=")[0], pair.partition("=")[2]))
        if key is None or value is None:
            url.problems.append("an option of the URL is not UTF-8 after percent-decoding")
            continue
        if any(one.endswith("password") for one in seen):
            url.doubtful.add(key)
        if key in seen:
            shown = "an option" if key in url.doubtful else f"option {key!r}"
            url.problems.append(f"{shown} stands twice in the URL")
        seen.add(key)
        url.query.append((key, value))
