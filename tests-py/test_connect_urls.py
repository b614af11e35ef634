"""What ``connect`` makes of a URL and options, and what it says of those it cannot use."""

from __future__ import annotations

import base64
import inspect
import logging
import pickle
import re
import subprocess
import sys
import traceback
import typing
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from eventbus import Bus, ConfigError, UnsupportedError, config, connect
from eventbus.backends import is_loopback, plan
from eventbus.config import (
    BusOptions,
    MemoryBusOptions,
    PostgresOptions,
    RedisOptions,
    StreamOptions,
)
from eventbus.options import MEMORY, POSTGRES, REDIS

SECRET = "S3CR3T-xyz"
ROOT = Path(__file__).parent.parent
CONFIG = ROOT / "src" / "config"


def redis(
    *endpoints: dict[str, Any], topology: dict[str, Any] | None = None, **more: Any
) -> dict[str, Any]:
    """Return the configuration of a Redis backend."""
    return {
        "endpoints": list(endpoints) or [{"host": "localhost", "port": 6379}],
        "topology": topology or {"kind": "single"},
        "net": {},
        **more,
    }


def postgres(host: str = "localhost", port: int = 5432, **more: Any) -> dict[str, Any]:
    """Return the configuration of a Postgres backend; ``net`` is added to its default."""
    net = {"username": "postgres", **more.pop("net", {})}
    return {"endpoint": {"host": host, "port": port}, "net": net, **more}


def tcp(host: str, port: int) -> dict[str, Any]:
    return {"host": host, "port": port}


class Row(NamedTuple):
    """A URL and options, and the configuration that they are."""

    url: str
    given: dict[str, Any]
    config: dict[str, Any]


def redis_rows() -> Iterator[Row]:
    h = tcp("h", 6379)
    yield Row("redis://", {}, redis())
    yield Row("REDIS://h", {}, redis(h))
    yield Row("redis://h/", {}, redis(h))
    yield Row("redis://:6380", {}, redis(tcp("localhost", 6380)))
    yield Row("redis://h:6380/3", {}, redis(tcp("h", 6380), db=3))
    yield Row("redis://h/3?db=4", {}, redis(h, db=4))
    yield Row("redis://h/3?db=4", {"db": 5}, redis(h, db=5))
    yield Row("redis://[::1]:7000", {}, redis(tcp("::1", 7000)))
    yield Row("redis://[fe80::1%25eth0]", {}, redis(tcp("fe80::1%eth0", 6379)))
    yield Row("rediss://h", {}, redis(h, net={"tls": {}}))
    yield Row("redis://u:p%40s%2Fs@h", {}, redis(h, net={"username": "u", "password": "p@s/s"}))
    yield Row("redis://:p@ss@h", {}, redis(h, net={"password": "p@ss"}))
    yield Row("redis://:a+b@h", {}, redis(h, net={"password": "a+b"}))
    yield Row("redis://:%C3%BC@h", {}, redis(h, net={"password": "ü"}))
    yield Row("redis://u@h", {}, redis(h, net={"username": "u"}))
    yield Row("redis://u:@h", {}, redis(h, net={"username": "u"}))
    yield Row("redis://u:p@h?password=q", {}, redis(h, net={"username": "u", "password": "q"}))
    yield Row("redis://u:p@h", {"password": "q"}, redis(h, net={"username": "u", "password": "q"}))
    yield Row("redis://u:p@h", {"password": None}, redis(h, net={"username": "u", "password": "p"}))
    yield Row("redis://u:p@h", {"password": ""}, redis(h, net={"username": "u"}))
    yield Row("redis://h", {"password": lambda: "q"}, redis(h, net={"password": "q"}))
    yield Row(
        "rediss://h?tls_ca=/ca.pem",
        {"tls_cert": Path("/c.pem"), "tls_key": "/k.pem", "tls_server_name": "r.example"},
        redis(
            h,
            net={
                "tls": {
                    "ca": "/ca.pem",
                    "cert": "/c.pem",
                    "key": "/k.pem",
                    "server_name": "r.example",
                }
            },
        ),
    )
    yield Row(
        "rediss://h?insecure_skip_verify=1",
        {},
        redis(h, net={"tls": {"insecure_skip_verify": True}}),
    )
    yield Row("redis://h", {"insecure_skip_verify": False}, redis(h))
    yield Row(
        "redis://h?connect_timeout=1.5&heartbeat=2",
        {"op_timeout": timedelta(seconds=3), "sweep": 1, "dedup_window": 60},
        redis(
            h,
            net={"connect_timeout": 1.5, "heartbeat": 2.0, "op_timeout": 3.0},
            sweep=1.0,
            dedup_window=60.0,
        ),
    )
    yield Row(
        "redis://h?prefix=a&channel_prefix=b:c&wire=dataknobs&max_dead=5&max_tombstones=0"
        "&hear=dataknobs&scripts=eval",
        {"dead_retention": 9, "max_message_bytes": 10},
        redis(
            h,
            prefix="a",
            channel_prefix="b:c",
            wire="dataknobs",
            hear=["dataknobs"],
            scripts="eval",
            max_message_bytes=10,
            max_dead=5,
            max_tombstones=0,
            dead_retention=9.0,
        ),
    )
    yield Row("redis://h", {"partitions": 1, "retention": None, "delivery": "queued"}, redis(h))
    yield Row(
        "redis://h?retention_max=7",
        {"retention": timedelta(hours=1)},
        redis(h, retention=3600.0, retention_max=7),
    )
    yield Row("redis://h?retention=0", {}, redis(h, retention=0.0))
    key = "k" * 16
    signed = [base64.b64encode(one).decode() for one in (key.encode(), b"l" * 16)]
    yield Row("redis://h", {"signing_key": key}, redis(h, signing_keys=signed[:1]))
    both = {"signing_key": lambda: [key, b"l" * 16]}
    yield Row("redis://h", both, redis(h, signing_keys=signed))
    yield Row("unix:///run/redis.sock", {}, redis({"path": "/run/redis.sock"}))
    yield Row(
        "redis+unix://u:p@/run/a%20b.sock?db=2",
        {},
        redis({"path": "/run/a b.sock"}, net={"username": "u", "password": "p"}, db=2),
    )
    sentinel = {"kind": "sentinel", "service": "mymaster"}
    yield Row(
        "redis+sentinel://a:1,b,[::2]:3/mymaster/2",
        {},
        redis(tcp("a", 1), tcp("b", 26379), tcp("::2", 3), topology=sentinel, db=2),
    )
    yield Row(
        "rediss+sentinel://u:p@a/mymaster?sentinel_username=s",
        {"sentinel_password": lambda: "t"},
        redis(
            tcp("a", 26379),
            topology={**sentinel, "username": "s", "password": "t"},
            net={"username": "u", "password": "p", "tls": {}},
        ),
    )
    cluster = {"kind": "cluster"}
    yield Row(
        "redis+cluster://a,b:7001/0",
        {},
        redis(tcp("a", 6379), tcp("b", 7001), topology=cluster, db=0),
    )
    yield Row("rediss+cluster://a", {}, redis(tcp("a", 6379), topology=cluster, net={"tls": {}}))


def postgres_rows() -> Iterator[Row]:
    tls: dict[str, Any] = {"net": {"tls": {}}}
    yield Row("postgresql://", {}, postgres())
    yield Row("postgres://localhost/app", {}, postgres(database="app"))
    yield Row(
        "postgresql://?broadcast_bodies=table",
        {"signing_key": b"k" * 16, "accept_unsigned": "sql"},
        postgres(
            signing_keys=["a2tra2tra2tra2tra2traw=="],
            accept_unsigned="sql",
            broadcast_bodies="table",
        ),
    )
    yield Row(
        "postgresql+asyncpg://127.0.0.2:77/a%2Fb", {}, postgres("127.0.0.2", 77, database="a/b")
    )
    yield Row("postgresql://[::1]/app", {}, postgres("::1", database="app"))
    yield Row("postgresql://db.example/app", {}, postgres("db.example", database="app", **tls))
    yield Row("postgresql://10.0.0.1", {}, postgres("10.0.0.1", **tls))
    for mode in ("require", "verify-ca", "verify-full"):
        yield Row(f"postgresql://localhost?sslmode={mode}", {}, postgres(**tls))
        yield Row("postgresql://h", {"sslmode": mode}, postgres("h", **tls))
    for mode in ("allow", "prefer"):
        yield Row(f"postgresql://localhost?sslmode={mode}", {}, postgres())
        yield Row("postgresql://h", {"sslmode": mode}, postgres("h", **tls))
    yield Row("postgresql://h?sslmode=disable", {}, postgres("h"))
    yield Row("postgresql://h?sslmode=disable", {"sslmode": "require"}, postgres("h", **tls))
    yield Row("postgresql://localhost", {"tls_ca": "/c"}, postgres(net={"tls": {"ca": "/c"}}))
    yield Row(
        "postgresql://u:p%25@h?sslrootcert=/ca&sslcert=/c&sslkey=/k",
        {},
        postgres(
            "h",
            net={
                "username": "u",
                "password": "p%",
                "tls": {"ca": "/ca", "cert": "/c", "key": "/k"},
            },
        ),
    )
    yield Row(
        "postgresql://h",
        {"insecure_skip_verify": True},
        postgres("h", net={"tls": {"insecure_skip_verify": True}}),
    )
    yield Row(
        "postgresql:///app?host=/run/pg&port=77&user=me&password=x",
        {},
        {
            "endpoint": {"path": "/run/pg/.s.PGSQL.77"},
            "net": {"username": "me", "password": "x"},
            "database": "app",
        },
    )
    yield Row(
        "postgresql://me@%2Frun%2Fpg/app?sslmode=require",
        {},
        {
            "endpoint": {"path": "/run/pg/.s.PGSQL.5432"},
            "net": {"username": "me"},
            "database": "app",
        },
    )
    yield Row(
        "postgresql://a:1/x",
        {"host": "127.0.0.1", "port": 2, "dbname": "y", "user": "z"},
        postgres("127.0.0.1", 2, database="y", net={"username": "z"}),
    )
    yield Row(
        "postgresql://?schema=bus_1&migrate=false&pool_size=9&channel_prefix=e_1&wire=native",
        {"op_timeout": 2, "large_payloads": "table", "hear": ()},
        postgres(
            net={"op_timeout": 2.0},
            schema="bus_1",
            migrate=False,
            pool_size=9,
            channel_prefix="e_1",
            wire="native",
            hear=[],
            large_payloads="table",
        ),
    )


GOOD = [*redis_rows(), *postgres_rows()]


@pytest.mark.parametrize(("url", "given", "config"), GOOD, ids=[one.url for one in GOOD])
def test_a_url_and_options_are_a_configuration(
    url: str, given: dict[str, Any], config: dict[str, Any]
) -> None:
    found = plan(url, given)
    assert found.config == config
    assert found.kind == ("redis" if "endpoints" in config else "postgres")
    assert found.bus["delivery"] == "queued"


def fields_in_the_core(struct: str) -> set[str]:
    """Return the fields of a struct of ``src/config``, which refuses any other."""
    code = "\n".join(file.read_text("utf-8") for file in sorted(CONFIG.glob("*.rs")))
    body = re.search(rf"pub struct {struct} \{{\n(.*?)^\}}", code, re.MULTILINE | re.DOTALL)
    assert body, struct
    return set(re.findall(r"^    pub (\w+):", body[1], re.MULTILINE))


def test_the_rows_use_every_field_of_the_core_and_no_other() -> None:
    used: dict[str, set[str]] = {}
    for row in GOOD:
        top = "RedisConfig" if "endpoints" in row.config else "PostgresConfig"
        net = row.config["net"]
        for struct, part in ((top, row.config), ("NetConfig", net), ("TlsConfig", net.get("tls"))):
            used.setdefault(struct, set()).update(part or {})
    for struct, keys in used.items():
        of_every_backend = {
            "sweep",
            "dedup_window",
            "dead_retention",
            "max_dead",
            "max_tombstones",
            "retention",
            "retention_max",
            "max_message_bytes",
        }
        missing = fields_in_the_core(struct) - keys
        assert missing <= (of_every_backend if struct == "PostgresConfig" else set()), struct
        assert keys <= fields_in_the_core(struct), struct
    memory = fields_in_the_core("MemoryConfig")
    assert set(MEMORY.options) & memory == memory


def test_memory_urls() -> None:
    assert plan("memory://", {}).keywords() == {}
    assert plan("memory://a:b/c%20d/", {}).keywords() == {"name": "a:b/c d"}
    assert plan("memory://a?strict=yes&queue_size=5", {"name": "b"}).keywords() == {
        "name": "b",
        "strict": True,
        "queue_size": 5,
    }
    assert plan("memory://", {"dedup_window": timedelta(minutes=1)}).config == {"dedup_window": 60}


@pytest.mark.parametrize("scheme", ["redis", "postgresql"])
def test_options_of_the_bus_reach_it(scheme: str) -> None:
    given = {
        "queue_size": 5,
        "overflow": "close",
        "outbox_size": 6,
        "drain_timeout": 0,
        "max_message_bytes": 7,
        "max_depth": 8,
        "max_elements": 9,
    }
    assert plan(f"{scheme}://", given).bus == {"delivery": "queued", **given}


@pytest.mark.parametrize("scheme", ["redis", "postgresql"])
def test_the_dataknobs_wire_takes_any_topic_and_16_mib(scheme: str) -> None:
    assert plan(f"{scheme}://?wire=dataknobs", {}).bus == {
        "delivery": "queued",
        "max_message_bytes": 16 << 20,
        "_any_topic": True,
    }
    assert (
        plan(f"{scheme}://?wire=dataknobs", {"max_message_bytes": 5}).bus["max_message_bytes"] == 5
    )


def test_connect_opens_the_core_over_the_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Any] = []
    opens = Bus._open

    def record(self: Bus, *given: Any, **limits: Any) -> None:
        opened.append((*given, limits))
        opens(self, *given, **limits)

    monkeypatch.setattr(Bus, "_open", record)
    bus = connect("redis://h/2?wire=dataknobs", queue_size=3)
    ((kind, name, config, limits),) = opened
    assert (kind, name, config) == ("redis", None, redis(tcp("h", 6379), db=2, wire="dataknobs"))
    assert limits["strict_topics"] is False
    assert limits["max_bytes"] == 16 << 20
    assert limits["manual_clock"] is None
    assert type(bus) is Bus
    assert (bus._delivery, bus._queue_size) == ("queued", 3)
    monkeypatch.setenv("EVENTBUS_URL", "postgresql://localhost/app")
    connect()
    assert opened[-1][0] == "postgres"
    assert opened[-1][3]["strict_topics"] is True
    connect("memory://")
    assert opened[-1][0] == "memory"


@pytest.mark.parametrize("variable", [None, ""])
@pytest.mark.parametrize("options", [{}, {"queue_size": 5}])
def test_without_a_url_both_ways_to_give_one_are_named(
    monkeypatch: pytest.MonkeyPatch, variable: str | None, options: dict[str, Any]
) -> None:
    monkeypatch.delenv("EVENTBUS_URL", raising=False)
    if variable is not None:
        monkeypatch.setenv("EVENTBUS_URL", variable)
    with pytest.raises(ConfigError) as caught:
        connect(**options)
    for word in ("EVENTBUS_URL", "connect('redis://", "connect('postgresql://", "memory://"):
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("host", "is_local"),
    [
        ("localhost", True),
        ("LocalHost", True),
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("0.0.0.0", False),
        ("::", False),
        ("127.0.0.1.example", False),
        ("localhost.example", False),
        ("host", False),
        ("", False),
    ],
)
def test_which_hosts_cannot_leave_the_machine(host: str, is_local: bool) -> None:
    assert is_loopback(host) is is_local


# Bad input


class Bad(NamedTuple):
    """A URL and options that cannot be used, and words of the message."""

    url: str
    given: dict[str, Any]
    says: tuple[str, ...]


def bad_urls() -> Iterator[Bad]:
    yield Bad("", {}, ("scheme", "://", "memory://"))
    yield Bad("redis:h", {}, ("scheme", "://"))
    yield Bad("amqp://h", {}, ("'amqp'", "memory", "rediss+cluster", "postgresql+asyncpg"))
    yield Bad("redis://h:0", {}, ("port='0'", "1-65535"))
    yield Bad("redis://h:99999", {}, ("port='99999'", "1-65535"))
    yield Bad("postgresql://h:99999/x", {}, ("Postgres port='99999' is outside the range 1-65535",))
    yield Bad("redis://h:x", {}, ("port", "'h'", "65535"))
    yield Bad("redis://::1", {}, ("IPv6", "brackets"))
    yield Bad("redis://[::1", {}, ("IPv6", "[address]"))
    yield Bad("redis://[::1]x", {}, ("IPv6", "[address]"))
    yield Bad("redis://h%ff", {}, ("host", "UTF-8"))
    yield Bad("redis://h/%ff", {}, ("path", "UTF-8"))
    yield Bad("redis://h?prefix=%ff", {}, ("prefix", "UTF-8"))
    yield Bad("redis://h#x", {}, ("%23",))
    yield Bad("redis://h/@x", {}, ("%40",))
    yield Bad("redis://a,b", {}, ("one host", "redis+sentinel", "redis+cluster"))
    yield Bad("redis://h/one", {}, ("path", "database", "/0"))
    yield Bad("redis://h/0/1", {}, ("path", "/0"))
    yield Bad("redis+sentinel://h", {}, ("service", "redis+sentinel://host:26379/mymaster/0"))
    yield Bad("redis+sentinel://h/m/x", {}, ("path", "/0"))
    yield Bad("redis+cluster://h/1", {}, ("db=1", "cluster", "0"))
    yield Bad("unix://host", {}, ("path", "unix:///run/x.sock"))
    yield Bad("unix://host/run/x.sock", {}, ("no host",))
    yield Bad("redis://h?db=1&db=2", {}, ("'db'", "twice"))
    yield Bad("postgresql://a,b/x", {}, ("one host",))
    yield Bad("postgresql://?host=a,b", {}, ("host='a,b'", "one host"))
    yield Bad("postgresql://h/a/b", {}, ("path", "one database"))


def bad_options() -> Iterator[Bad]:
    r, p = "redis://h", "postgresql://h"
    yield Bad(r, {"nonsense": 1}, ("unknown option 'nonsense'", "valid:", "channel_prefix"))
    yield Bad(r, {"strict": True, "schema": "x"}, ("'strict' (of memory", "'schema' (of Postgres"))
    yield Bad(p, {"db": 1}, ("'db' (of Redis", "valid:", "sslmode", "sslrootcert"))
    yield Bad("memory://", {"tls_ca": "/x"}, ("'tls_ca' (of Redis and Postgres",))
    yield Bad("memory://", {"host": "/x"}, ("'host' (of Postgres",))
    yield Bad(f"{r}?ssl_cert_reqs=none", {}, ("'ssl_cert_reqs'", "insecure_skip_verify"))
    yield Bad(r, {"delivery": "inline"}, ("delivery='inline'", "queued"))
    for key, value, *says in [
        ("queue_size", 0, "at least 1"),
        ("queue_size", True, "int"),
        ("queue_size", "5", "int"),
        ("overflow", "explode", "drop_oldest", "close"),
        ("drain_timeout", -1, "0 seconds or more"),
        ("drain_timeout", float("nan"), "0 seconds or more"),
        ("drain_timeout", "soon", "seconds"),
        ("max_depth", 513, "from 1 to 512"),
        ("connect_timeout", 0, "more than 0 seconds"),
        ("connect_timeout", float("inf"), "100 years"),
        ("op_timeout", 10**400, "seconds"),
        ("heartbeat", True, "seconds"),
        ("sweep", timedelta(0), "more than 0 seconds"),
        ("wire", "json", "native", "dataknobs"),
        ("hear", "json", "must name only dataknobs"),
        ("hear", ("dataknobs", "native"), "must name only dataknobs"),
        ("hear", 5, "must name only dataknobs"),
        ("hear", [["dataknobs"]], "must name only dataknobs"),
        ("username", "", "not empty"),
        ("username", "a\0b", "NUL"),
        ("tls_ca", 5, "path"),
        ("tls_server_name", b"x", "str"),
        ("insecure_skip_verify", "maybe", "true or false"),
        ("partitions", 0, "at least 1"),
        ("partitions", "2", "int"),
        ("retention", -1, "0 seconds or more"),
        ("retention", float("nan"), "0 seconds or more"),
        ("retention_max", 0, "at least 1"),
        ("max_dead", 0, "at least 1"),
        ("max_tombstones", -1, "at least 0"),
    ]:
        for url in (r, p):
            yield Bad(url, {key: value}, (key, *says))
    yield Bad(r, {"db": -1}, ("db=-1", "from 0"))
    yield Bad(r, {"prefix": "a{b"}, ("prefix='a{b'", "slot"))
    yield Bad(r, {"scripts": "lua"}, ("scripts='lua'", "auto, functions, eval"))
    yield Bad(r, {"prefix": ""}, ("prefix=''", "empty"))
    yield Bad(r, {"channel_prefix": "\ud800"}, ("channel_prefix", "UTF-8"))
    yield Bad(r, {"sentinel_username": "x"}, ("sentinel_username", "redis+sentinel"))
    yield Bad(r, {"sentinel_password": "x"}, ("sentinel_password", "redis+sentinel"))
    yield Bad(r, {"tls_ca": "/x"}, ("tls_ca", "encrypted", "rediss://"))
    yield Bad(r, {"insecure_skip_verify": True}, ("insecure_skip_verify", "rediss://"))
    yield Bad("rediss://h", {"tls_cert": "/x"}, ("tls_cert and tls_key", "together"))
    yield Bad("unix:///x", {"tls_ca": "/x"}, ("tls_ca", "socket"))
    yield Bad(p, {"sslmode": "on"}, ("sslmode='on'", "verify-full", "disable"))
    yield Bad(p, {"sslmode": "disable", "tls_ca": "/x"}, ("tls_ca", "sslmode=verify-full"))
    yield Bad("postgresql://%2Frun", {"tls_ca": "/x"}, ("tls_ca", "socket"))
    yield Bad(p, {"schema": "A b"}, ("schema='A b'", "[a-z_][a-z0-9_]{0,40}"))
    yield Bad(p, {"schema": "a" * 42}, ("schema", "{0,40}"))
    yield Bad(p, {"pool_size": 0}, ("pool_size=0",))
    yield Bad(p, {"channel_prefix": "a-b"}, ("channel_prefix='a-b'", "61"))
    yield Bad(p, {"channel_prefix": "a" * 62}, ("channel_prefix", "61"))
    yield Bad(p, {"port": 70_000}, ("Postgres port=70000 is outside the range 1-65535",))
    yield Bad(p, {"large_payloads": "drop"}, ("large_payloads='drop'", "table", "error"))
    yield Bad(p, {"user": "a", "username": "b"}, ("user and username", "same option"))
    yield Bad(
        "redis://a,b:x/y?nope=1&queue_size=many",
        {"other": 1, "wire": 5, "tls_key": "/k"},
        ("one host", "port", "/0", "'nope'", "queue_size='many'", "'other'", "wire=5", "tls_key"),
    )


BAD = [*bad_urls(), *bad_options()]


@pytest.mark.parametrize(
    ("url", "given", "says"), BAD, ids=[f"{one.url} {list(one.given)}" for one in BAD]
)
def test_what_cannot_be_used_is_named_with_the_remedy(
    url: str, given: dict[str, Any], says: tuple[str, ...]
) -> None:
    with pytest.raises(ConfigError) as caught:
        connect(url, **given)
    text = str(caught.value)
    assert isinstance(caught.value, ValueError)
    assert [one for one in says if one not in text] == [], text
    assert all(problem in text for problem in caught.value.problems)
    assert str(pickle.loads(pickle.dumps(caught.value))) == text


@pytest.mark.parametrize("url", ["memory://", "redis://", "postgresql://"])
def test_what_no_backend_serves_yet_is_unsupported(url: str) -> None:
    with pytest.raises(UnsupportedError, match="partitions=2"):
        connect(url, partitions=2)
    if url != "memory://":
        with pytest.raises(UnsupportedError, match=r"retention=3600: .*dataknobs"):
            connect(url, retention=timedelta(hours=1), wire="dataknobs")
        connect(url, retention=0, wire="dataknobs")
    with pytest.raises(ConfigError, match="nonsense"):
        connect(f"{url}?partitions=2", nonsense=1)  # type: ignore[call-arg]


# Secrets


def leaks() -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield calls that fail although, or because, a password is in them."""
    for scheme in ("redis", "postgresql", "redis+sentinel", "amqp"):
        for login in (
            f"u:{SECRET}@",
            f":{SECRET}/x@",
            f"u:{SECRET}?x@",
            f"u:x?{SECRET}=@",
            f"u:{SECRET}#@",
            f"u:%ff{SECRET}@",
            f"u:{SECRET}@{SECRET}@",
        ):
            yield f"{scheme}://{login}h:99999?nonsense=1&db=x", {}
        yield f"{scheme}://u:{SECRET}", {}
        yield f"{scheme}:u:{SECRET}@h", {}
        yield f"{scheme}://h?nonsense={SECRET}&password={SECRET}", {}
        yield f"{scheme}://h?password={SECRET}%ff", {}
        yield f"{scheme}://h", {"password": SECRET, "queue_size": 0}
        yield f"{scheme}://h", {"sentinel_password": SECRET}
        yield f"{scheme}://h", {"password": f"{SECRET}\ud800"}
        yield f"{scheme}://h", {"password": f"{SECRET}\0"}
        yield f"{scheme}://h", {"password": SECRET.encode()}
        yield f"{scheme}://h/m", {"password": SECRET.encode}
        yield f"{scheme}://h/m", {"password": lambda: f"{SECRET}\ud800"}
    yield SECRET, {}
    yield f":{SECRET}@h", {}


@pytest.mark.parametrize(("url", "given"), list(leaks()))
def test_no_error_shows_a_password(
    url: str, given: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises((ConfigError, UnsupportedError)) as caught:
        connect(url, **given)
    error = caught.value
    shown = f"{error} {error!r} {error.__cause__!r} {error.__context__!r} {caplog.text}"
    shown += "".join(traceback.format_exception_only(error))
    assert SECRET not in shown


def test_no_plan_or_bus_shows_a_password(caplog: pytest.LogCaptureFixture) -> None:
    for scheme in ("redis", "postgresql"):
        url = f"{scheme}://u:{SECRET}@h"
        bus = connect(url)
        assert SECRET not in f"{bus} {bus!r} {plan(url, {})!r}"
    assert SECRET not in caplog.text


def test_what_cannot_be_read_of_a_url_does_not_show_it() -> None:
    from eventbus import urls

    assert SECRET not in repr(urls.parse(f"redis://u:{SECRET}@h?password={SECRET}", "Redis"))


# Warnings


@pytest.mark.parametrize(
    ("url", "given", "says"),
    [
        ("redis://:p@h", {}, ("clear text", "'h'", "rediss://")),
        ("redis+sentinel://a,b/m", {"sentinel_password": "p"}, ("clear text", "'a', 'b'")),
        ("redis+cluster://:p@localhost,b", {}, ("clear text to 'b':",)),
        ("postgresql://u:p@h?sslmode=disable", {}, ("clear text", "'h'", "sslmode=verify-full")),
        ("postgresql://h?sslmode=prefer", {}, ("sslmode=prefer", "'h'", "disable")),
        ("rediss://h?insecure_skip_verify=1", {}, ("insecure_skip_verify", "any certificate")),
    ],
)
def test_what_is_dangerous_warns(
    url: str, given: dict[str, Any], says: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    plan(url, given)
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.name.startswith("eventbus")
    for one in says:
        assert one in record.getMessage()


@pytest.mark.parametrize(
    "url",
    [
        "redis://:p@localhost",
        "redis://:p@127.0.0.1",
        "redis://:p@[::1]",
        "unix://:p@/run/x",
        "rediss://:p@h",
        "redis://h",
        "postgresql://u:p@localhost?sslmode=prefer",
        "postgresql://u:p@h",
        "postgresql://u:p@%2Frun/x",
    ],
)
def test_what_is_safe_does_not_warn(url: str, caplog: pytest.LogCaptureFixture) -> None:
    plan(url, {})
    assert caplog.records == []


# Options, their types and the documentation


@pytest.mark.parametrize(
    ("kind", "typed"),
    [
        (MEMORY, {**MemoryBusOptions.__annotations__, **StreamOptions.__annotations__}),
        (REDIS, RedisOptions.__annotations__),
        (POSTGRES, PostgresOptions.__annotations__),
    ],
    ids=["memory", "redis", "postgres"],
)
def test_the_typed_options_are_those_that_are_read(kind: Any, typed: dict[str, Any]) -> None:
    assert sorted(kind.keys) == sorted(typed)
    assert set(typed) <= set(BusOptions.__annotations__)


def documented() -> dict[str, str]:
    """Return what the docstrings say of each option."""
    found: dict[str, str] = {}
    for one in vars(config).values():
        _, _, text = (inspect.getdoc(one) or "").partition("Attributes:\n")
        if typing.is_typeddict(one):
            for part in re.split(r"^    (?=\w)", text, flags=re.MULTILINE)[1:]:
                key, _, meaning = part.partition(": ")
                assert key not in found, key
                found[key] = " ".join(meaning.split())
    return found


def test_every_option_is_documented_with_its_default() -> None:
    told = documented()
    assert sorted(told) == sorted(BusOptions.__annotations__)
    without = [key for key, text in told.items() if "default" not in text]
    same = [key for key in without if told[key].startswith("The same as ")]
    assert without == same
    timed = [key for kind in (MEMORY, REDIS, POSTGRES) for key in kind.options if "timeout" in key]
    for key in [*timed, "dedup_window", "dead_retention", "heartbeat", "sweep", "retention"]:
        assert told[key].startswith("Seconds "), key


@pytest.mark.parametrize("kind", [MEMORY, REDIS, POSTGRES], ids=["memory", "redis", "postgres"])
def test_the_page_has_a_table_of_each_backend(kind: Any) -> None:
    page = (ROOT / "docs" / "configuration.md").read_text("utf-8")
    section = page.partition(f"\n## {kind.product.capitalize()}\n")[2].partition("\n## ")[0]
    table = section.partition("| option | meaning | default |\n")[2].partition("\n\n")[0]
    rows = {
        row[0].strip(" `"): row[1:]
        for row in (line.strip("| ").split(" | ") for line in table.splitlines()[1:])
    }
    assert sorted(rows) == sorted(kind.keys)
    told = documented()
    for key, (meaning, default) in rows.items():
        assert meaning, key
        said = told[key].replace("``", "").replace("–", "")
        assert default.replace("`", "").replace("–", "") in said, f"{key}: {default}"


def test_importing_eventbus_imports_nothing_for_servers() -> None:
    program = (
        "import sys, eventbus; print([name for name in sys.modules if name in ("
        "'urllib.parse', 'ipaddress', 'eventbus.backends', 'eventbus.options', 'eventbus.urls', "
        "'eventbus.redis', 'eventbus.postgres') or name.startswith('eventbus.compat')])"
    )
    found = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert found.stdout == "[]\n"
