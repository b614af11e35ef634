"""The servers of the tests do what they promise, and nothing of them is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis

from servers.certificates import certificates
from servers.cluster import RedisCluster
from servers.pgbouncer import PgBouncer
from servers.postgres import PostgresServer
from servers.process import MissingBinary, binary, free_port
from servers.redis_server import RedisServer
from servers.sentinel import SentinelSet

TESTS = Path(__file__).parents[1]


def test_a_missing_program_fails_with_the_package_that_brings_it() -> None:
    with pytest.raises(MissingBinary, match="apt-get install no-such-server"):
        binary("no-such-server")


def test_no_port_is_given_twice() -> None:
    ports = [free_port() for _ in range(50)]
    assert len(set(ports)) == 50


def test_redis_keeps_its_port_and_its_data_when_killed() -> None:
    with RedisServer(appendonly=True, appendfsync="always") as server:
        with server.client() as client:
            client.set("key", "value")
        server.restart(kill=True)
        with redis.from_url(server.url(), decode_responses=True) as client:
            assert client.get("key") == "value"
        folder = server.folder
    assert not folder.exists()


def test_a_paused_redis_keeps_its_connections_and_answers_nothing() -> None:
    with RedisServer() as server, server.client(socket_timeout=0.2, retry=None) as client:
        client.ping()
        server.pause()
        with pytest.raises(redis.TimeoutError):
            client.ping()
        server.resume()
        assert client.ping()


def test_redis_on_a_full_disk_refuses_writes_until_there_is_room() -> None:
    with RedisServer(appendonly=True) as server, server.client() as client:
        client.set("key", "value")
        server.fill_disk()
        assert "MISCONF" in answer_becomes(client, refused=True)
        server.free_disk()
        answer_becomes(client, refused=False)
        assert client.get("key") == b"x"


def answer_becomes(client: redis.Redis, *, refused: bool) -> str:
    """Write until it is refused, or accepted again; returns the last answer."""
    deadline = time.monotonic() + 10
    while True:
        try:
            answer = str(client.set("key", "x" * 100 if refused else "x"))
        except redis.ResponseError as error:
            answer = str(error)
        if ("MISCONF" in answer) == refused or time.monotonic() > deadline:
            return answer
        time.sleep(0.02)


def test_acl_users_are_those_that_were_asked_for() -> None:
    with RedisServer(users=["reader on >secret ~bus:* +get"]) as server:
        with redis.from_url(server.url(user="reader:secret")) as client:
            assert client.get("bus:x") is None
            with pytest.raises(redis.exceptions.NoPermissionError):
                client.set("bus:x", 1)
        with (
            redis.from_url(server.url(user="reader:wrong")) as client,
            pytest.raises(redis.AuthenticationError),
        ):
            client.get("bus:x")


@pytest.mark.parametrize(
    ("kind", "problem"),
    [
        ("good", None),
        ("wrong-host", "IP address mismatch"),
        ("expired", "expired"),
        ("self-signed", "self-signed"),
    ],
)
def test_each_certificate_has_the_flaw_of_its_name(kind: str, problem: str | None) -> None:
    made = certificates()
    with (
        RedisServer(tls=made, certificate=kind) as server,
        redis.from_url(server.url(), ssl_ca_certs=str(made.ca)) as client,
    ):
        if problem is None:
            assert client.ping()
        else:
            with pytest.raises(redis.ConnectionError, match=problem):
                client.ping()


def test_a_server_can_ask_for_a_client_certificate() -> None:
    made = certificates()
    with RedisServer(tls=made, client_certificates=True) as server:
        own = {"ssl_certfile": str(made.client.cert), "ssl_keyfile": str(made.client.key)}
        with redis.from_url(server.url(), ssl_ca_certs=str(made.ca), **own) as client:
            assert client.ping()
        with (
            redis.from_url(server.url(), ssl_ca_certs=str(made.ca)) as client,
            pytest.raises(redis.ConnectionError),
        ):
            client.ping()


def test_sentinels_promote_the_replica_of_a_killed_master() -> None:
    with SentinelSet() as servers:
        with servers.master.client() as client:
            client.set("key", "value")
            assert client.wait(1, 5000) == 1
        old, new = servers.fail_over()
        assert not old.running
        with new.client() as client:
            assert client.get("key") == b"value"


def test_a_cluster_serves_every_slot_and_moves_one() -> None:
    with RedisCluster() as cluster, cluster.client() as client:
        for number in range(50):
            client.set(f"key{number}", number)
        slot = client.keyslot("key1")
        target = next(node for node in cluster.nodes if node is not cluster.node_of(slot))
        cluster.move(slot, target)
        assert cluster.node_of(slot) is target
        assert client.get("key1") == b"1"


@pytest.mark.parametrize("how", ["fast", "immediate", "kill"])
def test_postgres_keeps_what_was_committed(how: str) -> None:
    with PostgresServer() as server:
        server.execute("create table kept (number int)")
        server.execute("insert into kept values (%s)", 7)
        server.restart(how)
        with psycopg.connect(server.url()) as connection:
            assert connection.execute("select number from kept").fetchall() == [(7,)]


def test_a_crash_image_has_every_commit() -> None:
    with PostgresServer() as server:
        server.execute("create table kept (number int)")
        for number in range(20):
            server.execute("insert into kept values (%s)", number)
        with server.crash_image() as image:
            assert image.execute("select count(*) from kept") == [(20,)]
        assert server.execute("select 1") == [(1,)]


def test_sessions_of_postgres_can_be_ended() -> None:
    with PostgresServer() as server, psycopg.connect(server.url()) as connection:
        assert server.terminate_all() == 1
        with pytest.raises(psycopg.OperationalError):
            connection.execute("select 1")


def test_postgres_speaks_tls_and_asks_for_a_password() -> None:
    made = certificates()
    with PostgresServer(tls=made, password="S3CR3T") as server:
        verified = server.url(sslmode="verify-full", sslrootcert=str(made.ca))
        with psycopg.connect(verified) as connection:
            assert connection.pgconn.ssl_in_use
        with pytest.raises(psycopg.OperationalError, match="no encryption"):
            psycopg.connect(server.url(sslmode="disable"))


def test_behind_the_pooler_a_session_changes_its_backend() -> None:
    options: dict[str, Any] = {"autocommit": True, "prepare_threshold": None}
    with (
        PostgresServer() as server,
        PgBouncer(server, pool_size=2) as pooler,
        psycopg.connect(pooler.url(), **options) as one,
        psycopg.connect(pooler.url(), **options) as other,
    ):
        with other.transaction():
            held = other.execute("select pg_backend_pid()").fetchone()
            first = one.execute("select pg_backend_pid()").fetchone()
            assert first != held
        with other.transaction():
            other.execute("select 1")
            found = {one.execute("select pg_backend_pid()").fetchone() for _ in range(4)}
        assert len(found | {first, held}) == 2


def test_servers_end_with_the_process_that_started_them(tmp_path: Path) -> None:
    script = """
import sys, time, threading
from servers.redis_server import RedisServer
server = RedisServer()
# Started by a thread that is gone: the server must live on.
thread = threading.Thread(target=server.start); thread.start(); thread.join()
time.sleep(0.05)
assert server.running
print(server.pid, flush=True)
time.sleep(60)
"""
    owner = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(TESTS)},
    )
    assert owner.stdout is not None
    pid = int(owner.stdout.readline())
    owner.send_signal(signal.SIGKILL)
    owner.communicate()
    deadline = time.monotonic() + 5
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not Path(f"/proc/{pid}").exists()
