"""The rights of a role that uses the bus: each is needed, and none lets it do more."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from psycopg import sql

from eventbus import ConfigError, connect
from eventbus.migration import migrate
from servers.postgres import PostgresServer

Rows = list[tuple[Any, ...]]

DENIED = psycopg.errors.InsufficientPrivilege


@pytest.fixture
async def role(server: PostgresServer, schema: str) -> str:
    """A role with what ``eventbus migrate --grant-role`` gives."""
    name = f"{schema}_run"
    server.execute(f"create role {name} login")
    server.execute(f"revoke create on database postgres from {name}")
    await migrate(server.url(), schema=schema, grant_role=name)
    return name


@pytest.fixture
def admin(server: PostgresServer, schema: str) -> Iterator[psycopg.Connection[Any]]:
    """A connection of the owner, in a transaction that never commits."""
    with psycopg.connect(server.url()) as connection:
        connection.execute(f"set search_path to {schema}")
        connection.commit()
        yield connection
        connection.rollback()


def rights(admin: psycopg.Connection[Any], schema: str, role: str) -> Rows:
    """Return (table or sequence, right) pairs of a role."""
    found = admin.execute(
        "select c.relname, a.privilege_type from pg_class c, aclexplode(c.relacl) a "
        "where c.relnamespace = %s::regnamespace and a.grantee = %s::regrole order by 1, 2",
        (schema, role),
    )
    return found.fetchall()


# Everything that a bus of this role does, by the functions that it calls.
WORK = """
select version from migrations;
select id from identity;
select version, parts from routes();
select hear();
select set_bodies(true);
select set_bodies(false);
select retain(null, 100);
select declare_group('g', 10, '{false}', '{t}', '{null}');
select declare_group('h', null, '{true,false}', '{*,u}', '{^.*$,null}');
select quiesce(1);
select publish('t', '{}', key => 'k', dedup_id => 'd', unique_key => 'u');
select publish('t', '{}', dedup_id => 'd', dedup_window => interval '-1 s');
select publish('t', to_jsonb(repeat('x', 20000)), expires_after => interval '0 s');
select publish('t', '{}', delay => interval '1 day');
select announce((select version from registry), '{r1}');
select figures();
select sweep_all(0, 0);
create temporary table mine on commit drop as
    select * from claim('g', '{}', '{}', 10, 1000000, 5, 1000000, 7);
insert into mine select * from claim('h', '{}', '{}', 10, -1, 5, 1000000, 8);
select renew(array[g.id], array[m.binding], array[m.id], array[m.token], 1000)
    from mine m, groups g where g.name = 'g' limit 1;
select commit(
    p_producer => gen_random_uuid(), p_parcel => 1,
    a_group => array_agg(g.id), a_binding => array_agg(m.binding), a_id => array_agg(m.id),
    a_token => array_agg(m.token)
) from mine m, groups g where g.name = 'g';
select claim('h', '{}', '{}', 10, 100000, 1, 1000000, 9);
select claim('h', '{}', '{}', 10, 100000, 1, 1000000, 9, true);
select dead_news('h');
select list_dead('h', null, 10, 1000000000, 10);
select retry_dead('h', array(select id from dead_letters), 1000000000, 10);
select discard_dead('h', array(select id from dead_letters), 1000000000, 10);
select peek('h', '{}', '{}', 1000);
select commit(
    o_tx => '{1,1,1}', o_kind => '{2,2,3}', o_name => '{r,s,s}', o_body => '{a,b,null}',
    o_ttl => '{0,null,null}', o_first => '{0,0,0}', o_count => '{0,0,0}'
);
select read_records('{r}');
select scan_records('', null, null, 10);
select fetch_large(array(select id from large));
select find_kept(0::smallint, null, null);
select read_kept(0, 10, 1000, '{t}', '{}');
select event_messages(null, (select id from messages limit 1), null, null, 10);
select act_on_event(null, (select id from messages limit 1), null, null, 10, 0::smallint, null);
insert into tallies (group_id) select 1 from generate_series(1, 300);
select maintain(1, true, 0, 0, 0);
select ailments();
select dead_messages();
select retain(null, 1);
select trim_kept();
select retain(null, 0);
select pause('h', true);
select unbind('h', '{false}', '{u}');
select clear_unbound('h');
select purge('h');
select drop_group((delete_group('h')).id);
"""


def work(admin: psycopg.Connection[Any], role: str) -> None:
    """Do all of it as the role."""
    admin.execute(sql.SQL("set local role {}").format(sql.Identifier(role)))
    admin.execute(WORK)  # type: ignore[arg-type]
    admin.execute("reset role")


def test_every_right_is_needed_and_all_of_them_suffice(
    admin: psycopg.Connection[Any], schema: str, role: str
) -> None:
    given = rights(admin, schema, role)
    assert len(given) > 60
    work(admin, role)
    admin.rollback()
    needless: Rows = []
    for name, right in given:
        admin.execute(f'revoke {right} on "{name}" from {role}')
        try:
            work(admin, role)
        except DENIED:
            pass
        else:
            needless.append((name, right))
        admin.rollback()
    assert needless == []


async def test_migrating_again_takes_away_what_an_earlier_version_gave(
    server: PostgresServer, schema: str, role: str, admin: psycopg.Connection[Any]
) -> None:
    before = rights(admin, schema, role)
    admin.rollback()
    server.execute(f"grant all on all tables in schema {schema} to {role}")
    server.execute(f"grant all on all sequences in schema {schema} to {role}")
    await migrate(server.url(), schema=schema, grant_role=role)
    assert rights(admin, schema, role) == before


async def test_the_owner_loses_nothing_when_it_is_granted_the_bus(
    server: PostgresServer, schema: str
) -> None:
    owner = f"{schema}_owner"
    server.execute(f"create role {owner} login")
    server.execute(f"grant create on database postgres to {owner}")
    url = server.url(user=owner)
    for _ in range(2):
        await migrate(url, schema=schema, grant_role=owner)
    server.execute(f"delete from {schema}.migrations where false")
    with psycopg.connect(url) as connection:
        connection.execute(f"insert into {schema}.migrations (version) values (7)")
        connection.execute(f"drop table {schema}.large")
        connection.rollback()


ATTACKS = [
    "insert into {s}.migrations (version) values (99)",
    "update {s}.migrations set version = 99",
    "delete from {s}.migrations",
    "truncate {s}.migrations",
    "begin; lock table {s}.migrations in exclusive mode",
    "update {s}.identity set id = gen_random_uuid()",
    "insert into {s}.identity (one) values (false)",
    "delete from {s}.identity",
    "delete from {s}.registry",
    "insert into {s}.registry (version) values (1)",
    "delete from {s}.token_base",
    "delete from {s}.tokens_since",
    "select setval('{s}.tokens', 1)",
    "select setval('{s}.dead_letters_no_seq', 1)",
    "update {s}.kept set body = ''",
    "update {s}.large set body = ''",
    "update {s}.tallies set acked = 0",
    "truncate {s}.messages",
    "drop table {s}.messages",
    "drop function {s}.now_us()",
    "drop schema {s} cascade",
    "alter table {s}.messages add column more text",
    "alter function {s}.now_us() rename to other",
    "create table {s}.mine (a integer)",
    "create or replace function {s}.now_us() returns bigint language sql as 'select 0::bigint'",
    "create trigger mine before update on {s}.messages for each row "
    "execute function suppress_redundant_updates_trigger()",
    "create index on {s}.messages (topic)",
    "create schema {s}_mine",
    "select * from {other}.secrets",
    "create policy mine on {s}.messages",
]


def test_the_role_can_do_nothing_to_the_schema_nor_read_another(
    server: PostgresServer, schema: str, role: str
) -> None:
    other = f"{schema}_other"
    server.execute(f"create schema {other}")
    server.execute(f"create table {other}.secrets as select 1 as one")
    with psycopg.connect(server.url(user=role), autocommit=True) as connection:
        for attack in ATTACKS:
            with pytest.raises(DENIED):
                connection.execute(attack.format(s=schema, other=other))
            connection.rollback()
        # Of what it has it gives nothing away: the server only warns.
        connection.execute(f"grant select on {schema}.messages to public")
    may = "has_table_privilege('public', %s, 'select')"
    assert server.execute(f"select {may}", f"{schema}.messages") == [(False,)]


async def test_nobody_is_locked_out_by_the_role(
    server: PostgresServer, schema: str, role: str
) -> None:
    with psycopg.connect(server.url(user=role), autocommit=True) as connection:
        for table in ("migrations", "identity"):
            with pytest.raises(DENIED):
                connection.execute(f"delete from {schema}.{table}")
        with pytest.raises(DENIED):
            connection.execute(f"insert into {schema}.migrations (version) values (99)")
    for user, options in (("postgres", {}), (role, {"migrate": False})):
        async with connect(server.url(user=user), schema=schema, **options) as bus:
            await bus.publish("t", 1)


async def test_a_role_without_any_right_uses_nothing(
    server: PostgresServer, schema: str, role: str
) -> None:
    del role
    nobody = f"{schema}_nobody"
    server.execute(f"create role {nobody} login")
    with psycopg.connect(server.url(user=nobody), autocommit=True) as connection:
        for text in ("select * from {s}.registry", "select {s}.publish('t', '{{}}')"):
            with pytest.raises(DENIED):
                connection.execute(text.format(s=schema))
    with pytest.raises(ConfigError, match="permission denied"):
        await connect(server.url(user=nobody), schema=schema, migrate=False).connect()


def test_no_function_lends_the_rights_of_its_owner_or_looks_elsewhere_for_tables(
    server: PostgresServer, schema: str, role: str
) -> None:
    del role
    found = server.execute(
        "select p.proname, p.prosecdef, coalesce(array_to_string(p.proconfig, ','), '') "
        "from pg_proc p where p.pronamespace = %s::regnamespace",
        schema,
    )
    assert len(found) > 30
    assert not [name for name, lends, _ in found if lends]
    path = f"search_path={schema}, pg_temp"
    elsewhere = {name for name, _, settings in found if path not in settings.replace('"', "")}
    # These name nothing of the schema.
    assert elsewhere == {"now_us", "channel"}
