"""The command line: ``eventbus migrate`` and ``eventbus redis-setup``."""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import sys
from collections.abc import Sequence
from typing import NoReturn

from eventbus import ConfigError, EventBusError, __version__
from eventbus.migration import migrate
from eventbus.redis_setup import redis_setup

__all__ = ["add_url", "main", "read_url"]

_URL_LIMIT = 65_536  # bytes of a file or of standard input
# The messages of argparse that repeat no word of the command line.
_SILENT = re.compile(
    r"the following arguments are required: .*|argument [^:]*: expected one argument|"
    r"argument [^:]*: must be a name"
)


class _Parser(argparse.ArgumentParser):
    """A parser that repeats nothing of a command line: any word of it may hold a password."""

    def error(self, message: str) -> NoReturn:
        """Explain and exit with status 2."""
        if not _SILENT.fullmatch(message):
            message = (
                "there is an argument that this command does not have, or a value where none "
                "belongs (not repeated: it may hold a password)"
            )
        super().error(message)


def _name(text: str) -> str:
    """Return the name of a schema or role; a URL or login in its place is not repeated."""
    if re.search(r"://|:.*@|=", text):
        raise argparse.ArgumentTypeError("must be a name")
    return text


def add_url(command: argparse.ArgumentParser, scheme: str) -> None:
    """Add the arguments that ``read_url`` reads.

    Args:
        command: The parser of the command.
        scheme: How a URL begins: ``postgresql``.
    """
    command.add_argument(
        "url",
        nargs="?",
        metavar="URL",
        help=f"{scheme}://…, or - for standard input; by default EVENTBUS_URL. Other users of "
        "the machine can read the command line: do not write a password here",
    )
    command.add_argument(
        "--url-file", metavar="PATH", help="a file that holds the URL; - for standard input"
    )


def read_url(arguments: argparse.Namespace) -> str:
    """Return the URL of a command: an argument, a file, standard input, or ``EVENTBUS_URL``.

    Args:
        arguments: With ``url`` and ``url_file``, which may be ``None``.

    Raises:
        ConfigError: There is none, more than one, or it cannot be read; neither the URL nor the
            path is repeated, as one may stand in the place of the other.
    """
    url: str | None = arguments.url
    path: str | None = arguments.url_file
    if url is not None and path is not None:
        raise ConfigError("give the URL as an argument or by --url-file, not both")
    if path == "-" or url == "-":
        return _one_line(sys.stdin.buffer.read(_URL_LIMIT + 1), "standard input")
    if path is not None:
        try:
            with open(path, "rb") as file:
                raw = file.read(_URL_LIMIT + 1)
        except OSError as error:
            reason = f"cannot read the file of --url-file: {error.strerror}"
            raise ConfigError(reason) from None
        return _one_line(raw, "the file of --url-file")
    found = url or os.environ.get("EVENTBUS_URL")
    if not found:
        raise ConfigError("no URL: set EVENTBUS_URL, give --url-file PATH, or - and standard input")
    return found


def _one_line(raw: bytes, where: str) -> str:
    """Return the only line of what was read."""
    lines = raw.strip().splitlines()
    if len(raw) > _URL_LIMIT or len(lines) != 1:
        raise ConfigError(f"{where} must hold one line, the URL, of at most {_URL_LIMIT} bytes")
    try:
        return lines[0].decode()
    except UnicodeDecodeError:
        raise ConfigError(f"the URL in {where} is not UTF-8") from None


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="eventbus", description="Operate a bus.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"eventbus {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="command")
    command = commands.add_parser(
        "migrate",
        help="bring the schema of a Postgres bus up to date",
        description="Bring the schema of a Postgres bus up to date, in one transaction.",
        allow_abbrev=False,
    )
    add_url(command, "postgresql")
    command.add_argument("--schema", metavar="NAME", type=_name, help="the schema (eventbus)")
    command.add_argument(
        "--dry-run",
        "--sql",
        action="store_true",
        help="change nothing; print the statements that are missing",
    )
    command.add_argument(
        "--grant-role",
        metavar="ROLE",
        type=_name,
        help="let this role use the bus with migrate=False, without rights to change the schema",
    )
    command.set_defaults(run=_migrate)
    _add_redis_setup(commands)
    return parser


def _add_redis_setup(commands: argparse._SubParsersAction[_Parser]) -> None:
    command = commands.add_parser(
        "redis-setup",
        help="load the functions of a Redis bus",
        description="Load the functions of a Redis bus into every primary of a Redis 7 or newer, "
        "so that the users of the bus need no right to run scripts.",
        allow_abbrev=False,
    )
    add_url(command, "redis")
    command.add_argument(
        "--dry-run", action="store_true", help="change nothing; say what is missing where"
    )
    command.set_defaults(run=_redis_setup)


async def _migrate(arguments: argparse.Namespace) -> None:
    done = await migrate(
        read_url(arguments),
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


async def _redis_setup(arguments: argparse.Namespace) -> None:
    done = await redis_setup(read_url(arguments), dry_run=arguments.dry_run)
    said = {
        "unchanged": "is up to date",
        "new": "is missing" if arguments.dry_run else "was loaded",
        "replaced": "has another text" if arguments.dry_run else "was replaced",
    }
    for server, state in done.servers.items():
        sys.stdout.write(f"{server}: function library {done.library} {said[state]}\n")


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
