"""The command line: ``eventbus migrate``."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence

from eventbus import EventBusError, __version__
from eventbus.migration import migrate

__all__ = ["main"]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="eventbus", description="Operate a bus.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"eventbus {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="command")
    command = commands.add_parser(
        "migrate",
        help="bring the schema of a Postgres bus up to date",
        description="Bring the schema of a Postgres bus up to date, in one transaction.",
        allow_abbrev=False,
    )
    command.add_argument(
        "url", nargs="?", metavar="URL", help="postgresql://…; by default EVENTBUS_URL"
    )
    command.add_argument("--schema", metavar="NAME", help="the schema (eventbus)")
    command.add_argument(
        "--dry-run",
        "--sql",
        action="store_true",
        help="change nothing; print the statements that are missing",
    )
    command.add_argument(
        "--grant-role",
        metavar="ROLE",
        help="let this role use the bus with migrate=False, without rights to change the schema",
    )
    command.set_defaults(run=_migrate)
    return parser


async def _migrate(arguments: argparse.Namespace) -> None:
    done = await migrate(
        arguments.url,
        schema=arguments.schema,
        grant_role=arguments.grant_role,
        dry_run=arguments.dry_run,
    )
    if arguments.dry_run:
        sys.stdout.write(done.statements or "-- nothing is missing\n")
        return
    if done.found == done.version:
        said = f"schema {done.schema} is up to date at version {done.version}"
    else:
        said = f"schema {done.schema}: version {done.found} -> {done.version}"
    granted = f"; granted to {arguments.grant_role}" if arguments.grant_role else ""
    sys.stdout.write(f"{said}{granted}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return its exit status: 0, or 1 when it failed, which stderr explains."""
    parsed = _parser().parse_args(arguments)
    try:
        asyncio.run(parsed.run(parsed))
    except EventBusError as error:
        sys.stderr.write(f"eventbus: {error}\n")
        return 1
    except KeyboardInterrupt:
        return 130
    return 0
