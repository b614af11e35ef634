"""The schema of a bus: made by a command, used by a role that may not change it."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from typing import Any

import asyncpg
import pytest

from eventbus import ConfigError, ConnectError, UnsupportedError, connect
from eventbus.migration import migrate
from postgres.conftest import Eventually, MakeBus
from servers.postgres import PostgresServer
from servers.process import binary

SECRET = "S3CR3T-xyz"


def command(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {key: text for key, text in os.environ.items() if key != "EVENTBUS_URL"}
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "eventbus", *words],
        capture_output=True,
        text=True,
        check=False,
        env=environment | variables,
        timeout=60,
    )


def versions(server: PostgresServer, schema: str) -> list[int]:
    return [row[0] for row in server.execute(f"select version from {schema}.migrations order by 1")]


def exists(server: PostgresServer, schema: str) -> bool:
    return bool(server.execute("select to_regnamespace(%s) is not null", schema)[0][0])


def test_the_command_makes_a_schema_once(server: PostgresServer, schema: str) -> None:
    first = command("migrate", server.url(), "--schema", schema)
    assert (first.returncode, first.stderr) == (0, "")
    assert first.stdout == f"schema {schema}: version 0 -> 1\n"
    again = command("migrate", "--schema", schema, EVENTBUS_URL=server.url())
    assert again.stdout == f"schema {schema} is up to date at version 1\n"
    assert versions(server, schema) == [1]


@pytest.mark.parametrize("flag", ["--dry-run", "--sql"])
def test_a_dry_run_prints_what_psql_can_run(server: PostgresServer, schema: str, flag: str) -> None:
    server.execute(f'create role "{schema}-Run" login')
    grant = ("--grant-role", f"{schema}-Run")
    printed = command("migrate", server.url(), "--schema", schema, flag, *grant)
    assert (printed.returncode, printed.stderr) == (0, "")
    assert not exists(server, schema)
    psql = [binary("psql"), "-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", server.url()]
    done = subprocess.run(psql, input=printed.stdout, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert versions(server, schema) == [1]
    nothing = command("migrate", server.url(), "--schema", schema, flag)
    assert nothing.stdout == "-- nothing is missing\n"

    async def use() -> None:
        url = server.url(user=f"{schema}-Run")
        async with connect(url, schema=schema, migrate=False) as bus:
            await bus.publish("t", 1)

    asyncio.run(use())


async def test_a_role_with_the_documented_grants_does_everything(
    server: PostgresServer, schema: str, make_bus: MakeBus, eventually: Eventually
) -> None:
    role = f"{schema}_run"
    server.execute(f"create role {role} login")
    server.execute(f"revoke create on database postgres from {role}")
    done = await migrate(server.url(), schema=schema, grant_role=role)
    assert (done.schema, done.found, done.version) == (schema, 0, 1)
    assert not server.execute("select has_schema_privilege(%s, %s, 'create')", role, schema)[0][0]
    bus = await make_bus(server.url(user=role), migrate=False)
    heard: list[Any] = []
    handled: list[Any] = []
    await bus.subscribe("*", lambda event: heard.append(event.payload), pattern="*")
    await bus.consume("t", lambda event: handled.append(event.payload), group="g")
    await bus.publish("t", 1, key="k", dedup_id="d")
    await bus.publish("t", "x" * 20_000)
    connection = await asyncpg.connect(server.url(user=role))
    async with bus.transaction(connection=connection) as tx:
        tx.publish("t", 2)
        tx.put("r", 1)
    await connection.execute(f"select {schema}.publish('t', '3')")
    await connection.close()
    await eventually(lambda: len(heard) == 4 and len(handled) == 4)
    await bus.unbind("g", "t")
    await bus.declare_group("h", "t")
    await bus.delete_group("h")
    assert (await bus.inspect())["records"] == 1
    assert (await bus.dead_letters("g").list()) == []


async def test_what_is_missing_is_named_with_its_remedy(
    server: PostgresServer, schema: str
) -> None:
    async def refused(url: str, **options: Any) -> str:
        with pytest.raises(ConfigError) as error:
            async with connect(url, schema=schema, **options):
                pass
        return str(error.value)

    missing = await refused(server.url(), migrate=False)
    assert "is missing" in missing
    assert "eventbus migrate" in missing
    server.execute(f"create role {schema}_nobody login")
    server.execute(f"revoke create on database postgres from {schema}_nobody")
    denied = await refused(server.url(user=f"{schema}_nobody"))
    assert "permission denied" in denied
    assert "eventbus migrate" in denied
    await migrate(server.url(), schema=schema)
    ungranted = await refused(server.url(user=f"{schema}_nobody"), migrate=False)
    assert "--grant-role" in ungranted
    server.execute(f"insert into {schema}.migrations (version) values (99)")
    for options in ({}, {"migrate": False}):
        newer = await refused(server.url(), **options)
        assert "version 99" in newer
        assert "install a newer eventbus" in newer
    with pytest.raises(ConfigError, match="install a newer eventbus"):
        await migrate(server.url(), schema=schema)
    server.execute(f"delete from {schema}.migrations")
    older = await refused(server.url(), migrate=False)
    assert "eventbus migrate" in older


async def test_migrations_at_the_same_time_are_one(server: PostgresServer, schema: str) -> None:
    done = await asyncio.gather(*(migrate(server.url(), schema=schema) for _ in range(8)))
    assert {one.version for one in done} == {1}
    assert versions(server, schema) == [1]


async def test_only_postgres_has_a_schema(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnsupportedError, match="redis bus has no schema"):
        await migrate("redis://localhost")
    monkeypatch.delenv("EVENTBUS_URL", raising=False)
    with pytest.raises(ConfigError, match="EVENTBUS_URL"):
        await migrate()
    with pytest.raises(ConnectError):
        await migrate("postgresql://127.0.0.1:1", connect_timeout=2)
    with pytest.raises(ConfigError, match="grant_role"):
        await migrate("postgresql://127.0.0.1:1", grant_role="")


def test_no_output_shows_a_password(server: PostgresServer, schema: str) -> None:
    address = server.url().replace("postgres@", f"postgres:{SECRET}@")
    shown = [
        command("migrate", address, "--schema", schema),
        command("migrate", address, "--schema", schema, "--dry-run"),
        command("migrate", EVENTBUS_URL=address.replace("/postgres", "/nowhere")),
        command("migrate", EVENTBUS_URL=f"postgresql://me:{SECRET}@127.0.0.1:1/x"),
        command("migrate", f"postgresql://me:{SECRET}@127.0.0.1:x/x"),
        command("migrate", address, "--schema", "No"),
    ]
    assert [one.returncode for one in shown] == [0, 0, 1, 1, 1, 1]
    for one in shown:
        assert SECRET not in one.stdout + one.stderr
        assert "Traceback" not in one.stderr
        assert one.returncode == 0 or one.stderr.startswith("eventbus: ")


def test_the_command_explains_itself() -> None:
    shown = command("migrate", "--help")
    assert shown.returncode == 0
    for word in ("URL", "--schema", "--dry-run", "--grant-role"):
        assert word in shown.stdout
    assert command().returncode == 2
    assert command("nonsense").returncode == 2
    assert command("--version").stdout.startswith("eventbus ")
