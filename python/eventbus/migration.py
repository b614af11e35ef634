"""Bringing the schema of a Postgres bus up to date, apart from the programs that use it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Unpack

from eventbus import _eventbus
from eventbus.target import plan_of

if TYPE_CHECKING:
    from eventbus.config import BusOptions

__all__ = ["Migration", "migrate"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Migration:
    """What a migration did, or would do.

    Attributes:
        schema: The schema.
        found: The version that was there; 0 = none.
        version: The version that this build needs.
        statements: Every statement, as a script for ``psql``; empty when nothing is missing.
    """

    schema: str
    found: int
    version: int
    statements: str


async def migrate(
    url: str | None = None,
    *,
    grant_role: str | None = None,
    dry_run: bool = False,
    **options: Unpack[BusOptions],
) -> Migration:
    """Bring the schema of a Postgres bus up to date, in one transaction.

    Several may do this at the same time: one of them does it. What is up to date stays as it is.

    Args:
        url: Where the bus is: ``postgresql://…``; the variable ``EVENTBUS_URL`` by default.
        grant_role: Let this role use the bus, with ``migrate=False``: usage of the schema, and on
            each table and sequence what the bus needs. What an earlier version gave beyond that
            is taken away.
        dry_run: Only say which statements are missing.
        **options: Those of ``connect``, such as ``schema`` and ``password``.

    Raises:
        ConfigError: The URL or the server cannot be used, the schema is of a newer version, or the
            rights are missing.
        ConnectError: The server cannot be reached.
        UnsupportedError: The bus is not over Postgres.
    """
    why = "has no schema: migrate is for postgresql:// only"
    planned = plan_of("postgres", url, options, "postgresql", why)
    found, version, statements = await _eventbus.migrate(planned.config, grant_role, not dry_run)
    schema = planned.config.get("schema", "eventbus")
    return Migration(schema=schema, found=found, version=version, statements=statements)
