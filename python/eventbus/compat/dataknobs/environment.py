"""Where the Postgres of a DataKnobs bus is: its keys, connection string and environment (D22)."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable, Mapping
from typing import Any

from eventbus import options, urls
from eventbus.backends import read_postgres_url, texts
from eventbus.errors import ConfigError, ConfigurationError
from eventbus.options import POSTGRES, Found

__all__ = ["complete", "dotenv_values", "problems_of"]

log = logging.getLogger("eventbus.config")

_SCHEMES = ("postgresql", "postgres", "postgresql+asyncpg")
_PARTS = ("host", "port", "database", "username", "password")
_DEFAULTS = {
    "host": "localhost",
    "port": 5432,
    "database": "postgres",
    "username": "postgres",
    "password": "",
}
_POSTGRES_NAMES = {
    "host": "POSTGRES_HOST",
    "port": "POSTGRES_PORT",
    "database": "POSTGRES_DB",
    "username": "POSTGRES_USER",
    "password": "POSTGRES_PASSWORD",
}
_LIBPQ_NAMES = {
    "host": "PGHOST",
    "port": "PGPORT",
    "database": "PGDATABASE",
    "username": "PGUSER",
    "password": "PGPASSWORD",
    "sslmode": "PGSSLMODE",
}
_NOWHERE = (
    "Postgres connection requires one of: 'connection_string' (or DATABASE_URL env), individual "
    "host/port/database/user/password keys, or POSTGRES_HOST/POSTGRES_PORT/POSTGRES_DB/"
    "POSTGRES_USER/POSTGRES_PASSWORD env vars."
)

Variables = Mapping[str, str]


def dotenv_values() -> Variables:
    """Return what ``.env`` and ``.project_vars`` say, here or above, if python-dotenv is there."""
    try:
        dotenv: Any = importlib.import_module("dotenv")
    except ImportError:
        return {}
    found: dict[str, str] = {}
    for name in (".project_vars", ".env"):
        path = dotenv.find_dotenv(name, usecwd=True)
        if path:
            found.update({key: text for key, text in dotenv.dotenv_values(path).items() if text})
    return found


def complete(
    found: Found,
    text: str | None,
    environment: Variables,
    files: Callable[[], Variables] = dotenv_values,
) -> str:
    """Fill in what is missing of host, port, database, user and password.

    Args:
        found: The keys that were given; gets what is missing, and the problems.
        text: The connection string; ``""`` stands for libpq's environment.
        environment: Variables of the process.
        files: Returns the variables of files.

    Returns:
        The connection string: the one that was given, unless a key overrides a part of it.

    Raises:
        ConfigurationError: Nothing says where the server is.
        ConfigError: The connection string cannot be taken apart.
    """
    values = found.values
    own = [key for key in _PARTS if values.get(key) is not None]
    source = "connection_string"
    if text is None and not own:
        source, text = "DATABASE_URL", environment.get("DATABASE_URL") or None
    query: list[tuple[str, str]] = []
    if text:
        query = _add_url(found, source, text)
    sources: list[tuple[dict[str, str], Variables]] = []
    if text != "":
        sources.append((_POSTGRES_NAMES, environment))
        if _missing(values, _POSTGRES_NAMES, environment):
            sources.append((_POSTGRES_NAMES, files()))
    if (
        text is None
        and not own
        and not found.problems
        and not any(variables.get(name) for names, variables in sources for name in names.values())
    ):
        raise ConfigurationError(_NOWHERE)
    for names, variables in [*sources, (_LIBPQ_NAMES, environment)]:
        _add_variables(found, names, variables)
    _add_defaults(found, ("port", "password") if text else ())
    return text if text is not None and not own else _built(values, query)


def problems_of(text: str) -> list[str]:
    """Return why a connection string cannot be used; ``""`` stands for libpq's environment."""
    found = Found({}, [], [])
    try:
        if text:
            _add_url(found, "connection_string", text)
    except ConfigError as error:
        return error.problems
    return found.problems


def _missing(values: Mapping[str, Any], names: Mapping[str, str], variables: Variables) -> bool:
    return any(values.get(key) is None and not variables.get(names[key]) for key in names)


def _add_url(found: Found, source: str, text: str) -> list[tuple[str, str]]:
    """Add what a connection string says, below what was given; return its other options."""
    scheme = text.partition("://")[0].lower()
    if "://" not in text or scheme not in _SCHEMES:
        valid = ", ".join(f"{one}://" for one in _SCHEMES)
        raise ConfigError(f"{source} must begin with one of {valid}")
    try:
        parts = urls.parse(text, POSTGRES.product)
    except ConfigError as error:
        raise ConfigError(f"{source}: {error}") from None
    said = options.read(POSTGRES, texts(POSTGRES, parts))
    problems = parts.problems
    read_postgres_url(parts, said.values, problems)
    found.problems += problems + said.problems
    # Text after a bare & may be the rest of a password.
    found.unknown += ["…" if key in parts.doubtful else key for key in said.unknown]
    for key, value in said.values.items():
        found.values.setdefault(key, value)
    main = POSTGRES.aliases
    return [(key, value) for key, value in parts.query if main.get(key, key) not in _PARTS]


def _add_variables(found: Found, names: Mapping[str, str], variables: Variables) -> None:
    wanted = [
        (key, variables[name], True)
        for key, name in names.items()
        if variables.get(name) and found.values.get(key) is None
    ]
    said = options.read(POSTGRES, wanted)
    found.problems += said.problems
    found.values.update(said.values)


def _add_defaults(found: Found, usual: tuple[str, ...]) -> None:
    """Fill in what nothing says, and tell it unless it is usual."""
    defaulted = [key for key in _PARTS if found.values.get(key) is None]
    for key in defaulted:
        found.values[key] = _DEFAULTS[key]
    told = [
        f"{'user' if key == 'username' else key} ({_DEFAULTS[key] or 'empty'})"
        for key in defaulted
        if key not in usual
    ]
    if told and not found.problems:
        log.warning("Postgres connection: defaults are used for %s", ", ".join(told))


def _built(values: Mapping[str, Any], query: list[tuple[str, str]]) -> str:
    """Return a connection string of the parts, percent-encoded."""
    login = urls.quoted(values["username"])
    if isinstance(values["password"], str) and values["password"]:
        login += f":{urls.quoted(values['password'])}"
    host = values["host"]
    shown = f"[{host}]" if ":" in host else urls.quoted(host)
    text = f"postgresql://{login}@{shown}:{values['port']}/{urls.quoted(values['database'])}"
    pairs = "&".join(f"{urls.quoted(key)}={urls.quoted(value)}" for key, value in query)
    return f"{text}?{pairs}" if pairs else text
