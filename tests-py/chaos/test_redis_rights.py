"""The Redis recipes of the documentation: enough for each role, and no right too many."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Iterator
from typing import Any

import pytest

from chaos.load import soon
from chaos.redis_roles import (
    EXTRAS,
    FUNCTIONS,
    PASSWORD,
    SCRIPTS,
    Scenario,
    acl,
    as_user,
    denied,
    drain,
    keep,
    publish,
    replay,
    work,
)
from eventbus import Bus, ConnectError, EventBusError, connect
from eventbus.redis_setup import redis_setup
from servers.redis_server import RedisServer

ROLES: dict[str, Scenario] = {"worker": work, "publisher": publish}
RECIPES = {"functions": FUNCTIONS, "eval": SCRIPTS}
CASES = [(mode, role) for mode in RECIPES for role in ROLES]
# What is asked although it may be refused.
OPTIONAL = {"publisher": {"config|get", "subscribe", "unsubscribe"}, "worker": {"config|get"}}


@pytest.fixture
def server() -> Iterator[RedisServer]:
    config = {"acllog-max-len": 100_000}
    with RedisServer(appendonly=True, appendfsync="no", config=config) as one:
        yield one


def moved(rights: str, prefix: str) -> str:
    """Return the rights for a bus with another prefix."""
    return rights.replace("{eventbus:0}", f"{{{prefix}:0}}")


def rights_of(recipe: str) -> list[str]:
    """Return what can be taken away from a recipe, one by one."""
    return [part for part in recipe.split() if part[0] in "+~&"]


def add_user(server: RedisServer, name: str, rights: str) -> None:
    with server.client() as client:
        client.execute_command("ACL", "SETUSER", *acl(name, rights).split())


async def outcome(
    server: RedisServer, name: str, scenario: Scenario, **options: Any
) -> BaseException | None:
    """Run a scenario as a user; return what went wrong."""
    try:
        async with asyncio.timeout(30):
            bus = await as_user(server, name, prefix=name, **options)
            try:
                await scenario(bus)
            finally:
                await bus.close()
    except (EventBusError, AssertionError, TimeoutError) as error:
        return error
    return None


async def all_without_one(
    server: RedisServer, recipe: str, rights: list[str], scenario: Scenario, **options: Any
) -> dict[str, str]:
    """Run a scenario for each right as a user who lacks it; return what each had to suffer."""
    denied(server)
    names: dict[str, str] = {}
    for number, right in enumerate(rights):
        name = f"user{number}x"
        names[name] = right
        rest = [part for part in recipe.split() if part != right]
        if right.startswith("&"):
            # The wide name covers the pattern's for channels, not for subscribing by it.
            rest = [part for part in rest if part[0] != "&" or part.endswith(":b0:wor*")]
            rest = [part for part in rest if part != right]
        add_user(server, name, moved(" ".join(rest), name))
    found: dict[str, str] = {}

    async def one(name: str) -> None:
        error = await outcome(server, name, scenario, **options)
        if error is not None:
            found[names[name]] = repr(error)

    for some in range(0, len(names), 20):
        await asyncio.gather(*(one(name) for name in list(names)[some : some + 20]))
    for entry in denied(server):
        name, _, what = entry.partition(": ")
        if name in names and what not in ("config|get",):
            found.setdefault(names[name], what)
    return found


@pytest.mark.parametrize(("mode", "role"), CASES)
async def test_a_role_can_do_what_it_is_for_and_nothing_is_refused(
    mode: str, role: str, server: RedisServer
) -> None:
    if mode == "functions":
        server.load_functions()
    add_user(server, role, moved(RECIPES[mode][role], role))
    denied(server)
    options = {"scripts": mode, "max_tombstones": 0}
    assert await outcome(server, role, ROLES[role], **options) is None
    refused = {one.partition(": ")[2] for one in denied(server)}
    assert {one for one in refused if not one.startswith("{")} <= OPTIONAL[role]


@pytest.mark.parametrize(("mode", "role"), CASES)
async def test_each_right_of_a_recipe_is_needed(mode: str, role: str, server: RedisServer) -> None:
    if mode == "functions":
        server.load_functions()
    recipe = RECIPES[mode][role]
    rights = [one for one in rights_of(recipe) if not one.endswith("_full")]
    options = {"scripts": mode, "max_tombstones": 0}
    found = await all_without_one(server, recipe, rights, ROLES[role], **options)
    # Whether a wake-up has to be passed on is chance: a test of its own.
    assert [one for one in rights if one not in found and "pass" not in one] == []


async def test_what_a_full_server_runs_is_needed(server: RedisServer) -> None:
    server.load_functions()
    recipe = FUNCTIONS["worker"]
    full = [one for one in rights_of(recipe) if one.endswith("_full") and "_pass" not in one]
    names = ["everything", *(f"user{number}x" for number in range(len(full)))]
    add_user(server, "everything", moved(recipe, "everything"))
    for name in names:
        async with connect(server.url(), prefix=name) as bus:
            await bus.declare_group("left", "left")
            await bus.publish_many([("left", number) for number in range(3)])
    with server.client() as client:
        client.config_set("maxmemory", 1)
    assert await outcome(server, "everything", drain, scripts="functions") is None
    found = await all_without_one(server, recipe, full, drain, scripts="functions")
    assert sorted(found) == sorted(full)


async def test_passing_a_wake_up_on_is_needed(server: RedisServer) -> None:
    server.load_functions()
    recipe = FUNCTIONS["worker"]
    for number, room in enumerate((0, 1)):
        right = f"+fcall|eventbus_1_pass{'_full' * room}"
        name = f"one{number}"
        rest = [part for part in recipe.split() if part != right]
        add_user(server, name, moved(" ".join(rest), name))
        bus = await as_user(server, name, prefix=name, scripts="functions")
        await bus.declare_group("group", "work")
        denied(server)
        with server.client() as client:
            client.config_set("maxmemory", room)
            [channel] = client.pubsub_channels(f"{{{name}:0}}:wake:*")
            client.publish(channel, "1:0")

        def was_refused(user: str = name) -> bool:
            return f"{user}: fcall" in denied(server)

        assert await soon(was_refused, 5), right
        await bus.close()


async def test_the_rights_for_retention_and_replay_are_needed(server: RedisServer) -> None:
    server.load_functions()
    recipe = f"{FUNCTIONS['worker']} {EXTRAS['retention']} {EXTRAS['replay']}"
    options: dict[str, Any] = {"scripts": "functions", "retention": 3600, "retention_max": 2}

    async def both(bus: Bus) -> None:
        await keep(bus)
        await replay(bus)

    add_user(server, "all", moved(recipe, "all"))
    denied(server)
    assert await outcome(server, "all", both, **options) is None
    assert not [one for one in denied(server) if "config" not in one]
    rights = [*EXTRAS["retention"].split(), *EXTRAS["replay"].split()[:-1]]
    for number in range(len(rights)):
        # As if the clock of the server had gone back.
        with server.client() as client:
            key = f"{{user{number}x:0}}:log"
            client.execute_command("XADD", key, "99999999999999-1", "e", "", "t", "", "m", "")
    found = await all_without_one(server, recipe, rights, both, **options)
    assert sorted(found) == sorted(rights)


async def test_users_of_functions_can_run_no_code_of_their_own(server: RedisServer) -> None:
    server.load_functions()
    loop = "while true do end"
    library = "#!lua name=own\nredis.register_function('own', function() while true do end end)"
    for role in ROLES:
        add_user(server, role, FUNCTIONS[role])
        with server.client(username=role, password=PASSWORD) as client:
            for command in (
                ("EVAL", loop, 0),
                ("EVAL_RO", loop, 0),
                ("EVALSHA", "0" * 40, 0),
                ("SCRIPT", "LOAD", loop),
                ("FUNCTION", "LOAD", "REPLACE", library),
                ("FUNCTION", "DELETE", "eventbus_1"),
                ("FUNCTION", "FLUSH"),
                ("FCALL", "own", 0),
                ("CONFIG", "SET", "maxmemory", "1"),
                ("FLUSHALL",),
                ("SHUTDOWN",),
                ("DEBUG", "SLEEP", "10"),
                ("CLIENT", "KILL", "TYPE", "normal"),
                ("KEYS", "*"),
            ):
                with pytest.raises(Exception, match=r"(?i)no permissions"):
                    client.execute_command(*command)


async def test_the_setup_user_loads_the_library_and_reads_nothing(server: RedisServer) -> None:
    add_user(server, "setup", FUNCTIONS["setup"])
    denied(server)
    assert list((await redis_setup(server.url(user=f"setup:{PASSWORD}"))).servers.values()) == [
        "new"
    ]
    again = await redis_setup(server.url(user=f"setup:{PASSWORD}"))
    assert list(again.servers.values()) == ["unchanged"]
    assert not denied(server)
    for right in rights_of(FUNCTIONS["setup"]):
        rest = [part for part in FUNCTIONS["setup"].split() if part != right]
        add_user(server, "less", "reset")
        add_user(server, "less", " ".join(rest))
        with server.client() as client:
            client.function_flush()
        with contextlib.suppress(ConnectError):
            await redis_setup(server.url(user=f"less:{PASSWORD}"))
        assert denied(server), right
    with server.client(username="setup", password=PASSWORD) as client:
        for command in (("GET", "x"), ("KEYS", "*"), ("FCALL", "eventbus_1_about", 0)):
            with pytest.raises(Exception, match=r"(?i)no permissions"):
                client.execute_command(*command)


def test_the_recipes_grant_no_code_and_no_foreign_channel() -> None:
    for role, rights in FUNCTIONS.items():
        assert not re.search(r"\+(eval|script|fcall( |$)|config|@)", rights), role
        assert "events" not in rights
        assert ("+function" in rights) == (role == "setup")
