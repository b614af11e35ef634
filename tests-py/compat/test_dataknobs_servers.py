"""DataKnobs contract D15 to D23, D43, D50, D51, D56: buses over servers, before they connect."""

import dataclasses
import inspect
import logging
import subprocess
import sys
import threading
import types
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

import eventbus
import eventbus.postgres
import eventbus.redis
from eventbus.compat.dataknobs import (
    EventBus,
    EventBusConfig,
    PostgresEventBus,
    PostgresEventBusConfig,
    RedisEventBus,
    RedisEventBusConfig,
    create_event_bus,
    create_event_bus_async,
    event_bus_backends,
)
from eventbus.compat.dataknobs.exceptions import ConfigurationError, OperationError

SECRET = "S3CR3T-xyz"
DSN = f"postgresql://me:{SECRET}@localhost:5433/app"
NAMES = [
    "DATABASE_URL",
    *(f"POSTGRES_{one}" for one in ("HOST", "PORT", "DB", "USER", "PASSWORD")),
    *(f"PG{one}" for one in ("HOST", "PORT", "USER", "PASSWORD", "DATABASE", "SSLMODE")),
]
NOWHERE = (
    "Postgres connection requires one of: 'connection_string' (or DATABASE_URL env), individual "
    "host/port/database/user/password keys, or POSTGRES_HOST/POSTGRES_PORT/POSTGRES_DB/"
    "POSTGRES_USER/POSTGRES_PASSWORD env vars."
)

Opened = list[tuple[str, dict[str, Any], dict[str, Any]]]


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing says where a Postgres is, and no python-dotenv is installed."""
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setitem(sys.modules, "dotenv", None)


@pytest.fixture(autouse=True)
def opened(monkeypatch: pytest.MonkeyPatch) -> Opened:
    """What the core was opened with: kind, configuration, limits."""
    found: Opened = []
    opens = eventbus.Bus._open

    def record(self: Any, kind: str, name: Any, config: dict[str, Any], **limits: Any) -> None:
        assert name is None
        found.append((kind, config, limits))
        opens(self, kind, name, config, **limits)

    monkeypatch.setattr(eventbus.Bus, "_open", record)
    return found


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [one.getMessage() for one in caplog.records if one.levelno == logging.WARNING]


def where(opened: Opened) -> tuple[str, int, str, str, str | None]:
    """Return host, port, database, user and password of the last Postgres."""
    kind, config, _ = opened[-1]
    assert kind == "postgres"
    endpoint, net = config["endpoint"], config["net"]
    return (
        endpoint["host"],
        endpoint["port"],
        config["database"],
        net["username"],
        net.get("password"),
    )


# D1


def test_d01_the_submodules_offer_the_same_classes() -> None:
    from eventbus import compat  # noqa: F401 - the package itself can be imported
    from eventbus.compat.dataknobs import postgres, redis

    assert redis.RedisEventBus is eventbus.redis.RedisEventBus is eventbus.RedisEventBus
    assert postgres.PostgresEventBus is eventbus.postgres.PostgresEventBus
    assert eventbus.PostgresEventBus is PostgresEventBus
    assert eventbus.RedisEventBusConfig is RedisEventBusConfig
    assert {"RedisEventBus", "PostgresEventBusConfig"} <= {*dir(eventbus), *eventbus.__all__}
    with pytest.raises(AttributeError, match="SqsEventBus"):
        eventbus.SqsEventBus  # type: ignore[attr-defined]  # noqa: B018


# D15


def test_d15_redis_takes_the_arguments_of_the_first_era(opened: Opened) -> None:
    names = ["host", "port", "password", "ssl", "channel_prefix"]
    assert list(inspect.signature(RedisEventBus).parameters)[:5] == names
    RedisEventBus()
    assert opened[-1][1] == {
        "endpoints": [{"host": "localhost", "port": 6379}],
        "topology": {"kind": "single"},
        "net": {"connect_timeout": 10.0, "op_timeout": 5.0},
        "wire": "dataknobs",
    }
    RedisEventBus("127.0.0.1", 6380, "secret", True, "mine")
    by_position = opened[-1]
    RedisEventBus(host="127.0.0.1", port=6380, password="secret", ssl=True, channel_prefix="mine")
    assert opened[-1] == by_position
    config = by_position[1]
    assert config["endpoints"] == [{"host": "127.0.0.1", "port": 6380}]
    assert config["net"]["password"] == "secret"
    assert config["net"]["tls"] == {}
    assert config["channel_prefix"] == "mine"


def test_d15_postgres_takes_the_arguments_of_the_first_era(opened: Opened) -> None:
    names = ["connection_string", "channel_prefix"]
    assert list(inspect.signature(PostgresEventBus).parameters)[:2] == names
    PostgresEventBus(DSN, "mine")
    by_position = opened[-1]
    PostgresEventBus(connection_string=DSN, channel_prefix="mine")
    assert opened[-1] == by_position
    assert where(opened) == ("localhost", 5433, "app", "me", SECRET)
    assert by_position[1]["channel_prefix"] == "mine"
    assert by_position[1]["wire"] == "dataknobs"


@pytest.mark.parametrize(
    "config", [{"host": "127.0.0.1"}, MappingProxyType({"host": "127.0.0.1", "backend": "redis"})]
)
def test_d15_a_first_mapping_is_the_config(config: Mapping[str, Any], opened: Opened) -> None:
    assert isinstance(RedisEventBus(config), EventBus)
    assert isinstance(RedisEventBus(config=config), EventBus)
    assert opened[0] == opened[1]
    assert opened[0][1]["endpoints"] == [{"host": "127.0.0.1", "port": 6379}]


def test_d15_a_first_config_object_is_the_config(opened: Opened) -> None:
    redis = RedisEventBusConfig(host="127.0.0.1", password=SECRET)
    assert RedisEventBus(redis).config is redis
    assert RedisEventBus(config=redis).config is redis
    assert opened[0][1] == opened[1][1]
    assert opened[0][1]["net"]["password"] == SECRET
    postgres = PostgresEventBusConfig(DSN)
    assert PostgresEventBus(postgres).config is postgres
    assert PostgresEventBus({"connection_string": DSN}).config == postgres


def test_d15_constructing_needs_no_loop_and_may_happen_in_any_thread() -> None:
    made: list[Any] = []
    thread = threading.Thread(target=lambda: made.extend([RedisEventBus(), PostgresEventBus(DSN)]))
    thread.start()
    thread.join()
    assert [bus.state for bus in made] == ["new", "new"]
    assert all(bus for bus in made)


# D16


async def test_d16_the_factory_makes_them() -> None:
    redis, postgres = {"backend": "redis"}, {"backend": "postgres", "connection_string": DSN}
    assert type(create_event_bus(redis)) is RedisEventBus
    assert type(create_event_bus(postgres)) is PostgresEventBus
    assert type(await create_event_bus_async(redis)) is RedisEventBus
    assert type(await create_event_bus_async(postgres)) is PostgresEventBus


def test_d16_keys_of_redis(opened: Opened) -> None:
    bus: Any = create_event_bus(
        {
            "backend": "redis",
            "host": "127.0.0.1",
            "port": "6380",
            "password": "p",
            "ssl": "true",
            "db": 3,
            "channel_prefix": "a:b",
            "wire": "native",
            "queue_size": 7,
            "overflow": "close",
            "connect_timeout": 1,
            "op_timeout": 2,
            "drain_timeout": 3,
        }
    )
    kind, config, limits = opened[-1]
    assert kind == "redis"
    assert config == {
        "endpoints": [{"host": "127.0.0.1", "port": 6380}],
        "topology": {"kind": "single"},
        "db": 3,
        "net": {"password": "p", "tls": {}, "connect_timeout": 1.0, "op_timeout": 2.0},
        "channel_prefix": "a:b",
        "wire": "native",
    }
    assert limits["strict_topics"] is True
    assert (bus._queue_size, bus._overflow, bus._drain_timeout) == (7, "close", 3.0)


@pytest.mark.parametrize(
    ("host", "endpoint"),
    [
        ("::1", {"host": "::1", "port": 6379}),
        ("[::1]", {"host": "::1", "port": 6379}),
        ("/run/redis.sock", {"path": "/run/redis.sock"}),
    ],
)
def test_d16_forms_of_a_redis_host(host: str, endpoint: dict[str, Any], opened: Opened) -> None:
    RedisEventBus(host)
    assert opened[-1][1]["endpoints"] == [endpoint]


@pytest.mark.parametrize("backend", ["redis", "postgres"])
def test_d16_defaults_of_this_contract(backend: str, opened: Opened) -> None:
    bus: Any = create_event_bus({"backend": backend, "host": "localhost"})
    _, config, _ = opened[-1]
    assert config["wire"] == "dataknobs"
    assert (config["net"]["connect_timeout"], config["net"]["op_timeout"]) == (10.0, 5.0)
    assert (bus._drain_timeout, bus._queue_size, bus._overflow) == (5.0, 10_000, "drop_oldest")
    assert bus._delivery == "queued"
    assert bus.config.channel_prefix == "events"


@pytest.mark.parametrize("backend", ["redis", "postgres"])
def test_d16_unknown_keys_warn_once(backend: str, caplog: pytest.LogCaptureFixture) -> None:
    given = {"backend": backend, "nope": SECRET, "extra": 1, "connection_string": DSN}
    given |= {"connection_string": f"{DSN}?application_name=x"} if backend == "postgres" else {}
    create_event_bus(given)
    (text,) = warnings_of(caplog)
    named, _, valid = text.partition("valid")
    assert "'nope'" in named
    assert "'extra'" in named
    assert ("application_name" in named) is (backend == "postgres")
    assert ("connection_string" in named) is (backend == "redis")
    for key in ("host", "port", "password", "channel_prefix", "wire"):
        assert f" {key}," in valid
        assert f"'{key}'" not in named
    assert SECRET not in text


@pytest.mark.parametrize(
    ("backend", "key"),
    [
        ("redis", "ssl_ca_certs"),
        ("redis", "ssl_cert_reqs"),
        ("redis", "sslmode"),
        ("redis", "tls"),
        ("redis", "tls_certificate"),
        ("postgres", "ssl"),
        ("postgres", "tls_version"),
    ],
)
def test_d16_an_unknown_key_for_tls_is_an_error(backend: str, key: str) -> None:
    with pytest.raises(ValueError, match=f"unknown option '{key}'") as caught:
        create_event_bus({"backend": backend, "host": "localhost", key: True})
    assert "tls_ca" in str(caught.value)
    assert isinstance(caught.value.__cause__, eventbus.ConfigError)


def test_d16_tls_without_ssl_is_an_error() -> None:
    with pytest.raises(eventbus.ConfigError, match=r"tls_ca needs an encrypted.*ssl=True"):
        RedisEventBus(tls_ca="/ca.pem")
    with pytest.raises(eventbus.ConfigError, match="ssl=True is not for a socket"):
        RedisEventBus("/run/redis.sock", ssl=True)


# D17, D20


def test_d17_channel_prefix_of_postgres() -> None:
    assert PostgresEventBus(DSN)._channel_prefix == "events"
    assert PostgresEventBus(DSN, "my-app.x")._channel_prefix == "myappx"


async def test_d20_is_listening_from_connect_to_close() -> None:
    bus = PostgresEventBus(DSN)
    assert bus.is_listening is False
    bus._enter("live")
    assert bus.is_listening is True
    bus._enter("closed")
    assert bus.is_listening is False


async def test_d20_from_config() -> None:
    for config in ({"port": 6380}, RedisEventBusConfig(port=6380)):
        assert RedisEventBus.from_config(config).config == RedisEventBusConfig(port=6380)
        made = await RedisEventBus.from_config_async(config)
        assert made.config == RedisEventBusConfig(port=6380)
    for given in ({"connection_string": DSN}, PostgresEventBusConfig(DSN)):
        assert PostgresEventBus.from_config(given).config == PostgresEventBusConfig(DSN)
        again = await PostgresEventBus.from_config_async(given)
        assert again.config == PostgresEventBusConfig(DSN)


def test_d20_keywords_win_over_a_mapping(opened: Opened) -> None:
    RedisEventBus(config={"host": "127.0.0.2", "port": 1, "db": 5}, host="localhost", port=6379)
    assert opened[-1][1]["endpoints"] == [{"host": "localhost", "port": 6379}]
    assert opened[-1][1]["db"] == 5
    RedisEventBus({"port": 1, "password": "p"}, port=2, password=None)
    assert opened[-1][1]["endpoints"] == [{"host": "localhost", "port": 2}]
    assert "password" not in opened[-1][1]["net"]
    PostgresEventBus({"connection_string": DSN, "pool_size": 1}, pool_size=2)
    assert opened[-1][1]["pool_size"] == 2


def test_d20_an_unknown_keyword_warns(caplog: pytest.LogCaptureFixture) -> None:
    RedisEventBus(decode_responses=True)
    PostgresEventBus(DSN, statement_cache_size=0)
    first, second = warnings_of(caplog)
    assert "'decode_responses'" in first
    assert "'statement_cache_size'" in second


# D19


def test_d19_configs_are_frozen_dataclasses_with_masked_secrets() -> None:
    redis = RedisEventBusConfig(password=SECRET)
    assert repr(redis) == str(redis)
    assert repr(redis) == (
        "RedisEventBusConfig(host='localhost', port=6379, password='***', ssl=False, "
        "channel_prefix='events')"
    )
    assert "password=None" in repr(RedisEventBusConfig())
    postgres = PostgresEventBusConfig(DSN)
    assert repr(postgres) == str(postgres)
    assert repr(postgres) == (
        "PostgresEventBusConfig(connection_string='***', channel_prefix='events')"
    )
    assert (
        PostgresEventBusConfig(connection_string="x", channel_prefix="a b!").channel_prefix == "ab"
    )
    for config in (redis, postgres):
        assert isinstance(config, EventBusConfig)
        assert SECRET in str(dataclasses.asdict(config))
        with pytest.raises(dataclasses.FrozenInstanceError):
            config.channel_prefix = "x"  # type: ignore[misc]
    assert [one.name for one in dataclasses.fields(RedisEventBusConfig)] == [
        "host",
        "port",
        "password",
        "ssl",
        "channel_prefix",
    ]


def test_d19_from_dict_ignores_unknown_keys() -> None:
    found = RedisEventBusConfig.from_dict({"backend": "redis", "host": "h", "db": 3})
    assert found == RedisEventBusConfig(host="h")
    assert PostgresEventBusConfig.from_dict({"connection_string": "x", "y": 1}) == (
        PostgresEventBusConfig("x")
    )


# D21


def test_d21_the_servers_are_registered() -> None:
    keys = event_bus_backends.list_keys()
    assert keys[:3] == ["memory", "redis", "postgres"]
    assert "sqs" not in keys
    bus = event_bus_backends.create("redis", RedisEventBusConfig(port=1))
    assert isinstance(bus, RedisEventBus)
    assert bus.config.port == 1


# D22, D23


def test_d22_individual_keys_override_parts_of_a_connection_string(opened: Opened) -> None:
    dsn = f"postgresql+asyncpg://me:{SECRET}@localhost:5433/app?sslmode=require&port=5434"
    bus = PostgresEventBus(dsn, host="127.0.0.1", user="a@b", password="p@s/s")
    assert where(opened) == ("127.0.0.1", 5434, "app", "a@b", "p@s/s")
    assert opened[-1][1]["net"]["tls"] == {}
    assert bus.config.connection_string == (
        "postgresql://a%40b:p%40s%2Fs@127.0.0.1:5434/app?sslmode=require"
    )
    PostgresEventBus(dsn, port="5435", database="other")
    assert where(opened) == ("localhost", 5435, "other", "me", SECRET)


@pytest.mark.parametrize("query", ["", "?sslmode=require", "?sslmode=disable&x=y"])
def test_d22_a_url_that_nothing_overrides_is_used_as_given(query: str) -> None:
    assert PostgresEventBus(DSN + query).config.connection_string == DSN + query


def test_d22_database_url_only_without_anything_more_specific(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://env:pw@localhost:1/env")
    bus = PostgresEventBus()
    assert where(opened) == ("localhost", 1, "env", "env", "pw")
    assert bus.config.connection_string == "postgresql://env:pw@localhost:1/env"
    create_event_bus({"backend": "postgres"})
    assert where(opened) == ("localhost", 1, "env", "env", "pw")
    PostgresEventBus(DSN)
    assert where(opened) == ("localhost", 5433, "app", "me", SECRET)
    PostgresEventBus(database="mine")
    assert where(opened) == ("localhost", 5432, "mine", "postgres", None)


def test_d22_the_environment_fills_what_is_missing(
    opened: Opened, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name, value in {
        "POSTGRES_HOST": "127.0.0.2",
        "POSTGRES_USER": "penv",
        "PGHOST": "127.0.0.3",
        "PGPORT": "77",
        "PGUSER": "pg",
        "PGPASSWORD": "libpq",
        "PGDATABASE": "",
        "PGSSLMODE": "require",
    }.items():
        monkeypatch.setenv(name, value)
    bus = PostgresEventBus(database="mine")
    assert where(opened) == ("127.0.0.2", 77, "mine", "penv", "libpq")
    assert opened[-1][1]["net"]["tls"] == {}
    assert bus.config.connection_string == "postgresql://penv:libpq@127.0.0.2:77/mine"
    PostgresEventBus()
    assert where(opened) == ("127.0.0.2", 77, "postgres", "penv", "libpq")
    (text,) = warnings_of(caplog)
    assert "database (postgres)" in text
    assert not any(one in text for one in ("host", "port", "user", "password"))
    PostgresEventBus(DSN + "?sslmode=disable")
    assert "tls" not in opened[-1][1]["net"]


def test_d22_files_are_read_when_python_dotenv_is_installed(
    opened: Opened, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    dotenv = types.ModuleType("dotenv")
    said: dict[str, dict[str, str | None]] = {
        ".env": {"POSTGRES_HOST": "127.0.0.4", "POSTGRES_USER": "file", "POSTGRES_PORT": None},
        ".project_vars": {"POSTGRES_USER": "project", "POSTGRES_DB": "project"},
    }
    dotenv.find_dotenv = lambda name, usecwd: str(tmp_path / name)  # type: ignore[attr-defined]
    dotenv.dotenv_values = lambda path: said[Path(path).name]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "dotenv", dotenv)
    monkeypatch.setenv("POSTGRES_PASSWORD", "env")
    PostgresEventBus()
    assert where(opened) == ("127.0.0.4", 5432, "project", "file", "env")
    monkeypatch.delenv("POSTGRES_PASSWORD")
    PostgresEventBus()
    assert where(opened) == ("127.0.0.4", 5432, "project", "file", None)
    said.clear()
    said.update({".env": {}, ".project_vars": {}})
    with pytest.raises(ConfigurationError):
        PostgresEventBus()


def test_d22_the_parts_that_nothing_says_are_told(
    opened: Opened, caplog: pytest.LogCaptureFixture
) -> None:
    PostgresEventBus(host="localhost")
    assert where(opened) == ("localhost", 5432, "postgres", "postgres", None)
    (text,) = warnings_of(caplog)
    for one in ("port (5432)", "database (postgres)", "user (postgres)", "password (empty)"):
        assert one in text
    caplog.clear()
    PostgresEventBus("postgresql://me@localhost/app")
    assert warnings_of(caplog) == []


@pytest.mark.parametrize("config", [{"backend": "postgres"}, {"connection_string": None}])
def test_d23_nothing_resolvable(config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGHOST", "localhost")
    with pytest.raises(ConfigurationError) as caught:
        PostgresEventBus.from_config(config)
    assert str(caught.value) == NOWHERE
    assert isinstance(caught.value, ValueError)


def test_d23_an_empty_connection_string_is_the_environment_of_libpq(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POSTGRES_HOST", "elsewhere")
    monkeypatch.setenv("DATABASE_URL", "postgresql://elsewhere")
    monkeypatch.setenv("PGHOST", "127.0.0.9")
    bus = PostgresEventBus("")
    assert where(opened) == ("127.0.0.9", 5432, "postgres", "postgres", None)
    assert bus.config.connection_string == ""


def test_d23_redis_reads_no_environment(opened: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("REDIS_HOST", "REDIS_URL", "DATABASE_URL", "EVENTBUS_URL"):
        monkeypatch.setenv(name, "redis://elsewhere")
    RedisEventBus()
    assert opened[-1][1]["endpoints"] == [{"host": "localhost", "port": 6379}]


# D43


@pytest.mark.parametrize("backend", ["redis", "postgres"])
def test_d43_any_topic_and_16_mib(backend: str, opened: Opened) -> None:
    config = {"backend": backend, "host": "localhost"}
    create_event_bus(config)
    _, _, limits = opened[-1]
    assert limits["strict_topics"] is False
    assert (limits["max_bytes"], limits["max_depth"]) == (16 << 20, 64)
    create_event_bus({**config, "max_message_bytes": 5, "max_depth": 6})
    _, _, limits = opened[-1]
    assert (limits["max_bytes"], limits["max_depth"]) == (5, 6)


# D50, D51


def test_d50_the_prefix_on_redis_is_verbatim(opened: Opened) -> None:
    RedisEventBus(channel_prefix="a b:é!")
    assert opened[-1][1]["channel_prefix"] == "a b:é!"


@pytest.mark.parametrize(
    ("topic", "channel"),
    [
        ("registry:bots", "events_registry_bots"),
        ("a.b-c:d_e", "events_a_b_c_d_e"),
        ("Bots", "events_Bots"),
        ("bot:x 1", "events_bot_x1"),
        ("café", "events_caf"),
        ("::", "events___"),
        ('a"; drop table x; --', "events_adroptablex__"),
        ("x" * 100, "events_" + "x" * 100),
    ],
)
def test_d51_mapping_of_plain_topics(topic: str, channel: str) -> None:
    assert PostgresEventBus(DSN)._topic_to_channel(topic) == channel
    mine = PostgresEventBus(DSN, "My-App")._topic_to_channel(topic)
    assert mine == channel.replace("events_", "MyApp_", 1)


# D56


@pytest.mark.parametrize("topic", ["日本語", "", "!!"])
def test_d56_topic_that_maps_to_nothing(topic: str) -> None:
    with pytest.raises(eventbus.TopicError) as caught:
        PostgresEventBus(DSN)._topic_to_channel(topic)
    assert str(caught.value) == f"Topic {topic!r} produces an empty channel name after sanitization"
    assert isinstance(caught.value, ValueError)


def test_d56_prefix() -> None:
    for make in (
        lambda: PostgresEventBus(DSN, "!!"),
        lambda: PostgresEventBusConfig(DSN, "!!"),
        lambda: PostgresEventBus(connection_string=DSN, channel_prefix="!!"),
    ):
        with pytest.raises(eventbus.ConfigError) as caught:
            make()
        assert str(caught.value) == "channel_prefix '!!' is empty after sanitization"
        assert isinstance(caught.value, ValueError)
    with pytest.raises(eventbus.ConfigError, match="62 characters, limit 61"):
        PostgresEventBus(DSN, "a" * 62)
    assert PostgresEventBus(DSN, "a" * 61)._channel_prefix == "a" * 61
    with pytest.raises(eventbus.ConfigError, match="channel_prefix must be a str, not int"):
        PostgresEventBus(DSN, 5)  # type: ignore[arg-type]


def test_d56_through_the_factory() -> None:
    with pytest.raises(OperationError) as caught:
        create_event_bus({"backend": "postgres"})
    found = caught.value
    assert str(found) == f"Failed to create plugin 'postgres' (ConfigurationError): {NOWHERE}"
    assert found.context == found.details == {"key": "postgres", "registry": "event_bus_backends"}
    assert isinstance(found.__cause__, ConfigurationError)
    assert isinstance(found, ValueError)


def test_d56_unknown_backend() -> None:
    for bad in ("nope", None):
        with pytest.raises(eventbus.ConfigError) as caught:
            create_event_bus({"backend": bad})
        assert str(caught.value) == (
            f"Unknown event bus backend: {bad}. Available backends: memory, postgres, redis"
        )


def test_d56_port(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "Postgres port='99999' is outside the range 1-65535"
    monkeypatch.setenv("POSTGRES_PORT", "99999")
    for make in (
        lambda: PostgresEventBus(host="localhost", port="99999"),
        lambda: PostgresEventBus(port="99999"),
        lambda: PostgresEventBus("postgresql://me@localhost:99999/app", port=1),
        lambda: PostgresEventBus(user="me", password="", host="localhost", database="x"),
    ):
        with pytest.raises(eventbus.ConfigError) as caught:
            make()
        assert str(caught.value) == text
    with pytest.raises(eventbus.ConfigError, match="Redis port='x' must be an int"):
        RedisEventBus(port="x")


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"wire": "json"}, "wire='json' must be one of native, dataknobs"),
        ({"delivery": "inline"}, "delivery='inline' must be queued"),
        ({"overflow": "x"}, "overflow='x' must be one of drop_oldest, drop_newest, close"),
        ({"op_timeout": 0}, "op_timeout=0 must be more than 0 seconds"),
    ],
)
def test_d56_bad_values(given: dict[str, Any], says: str) -> None:
    for make in (lambda: RedisEventBus(config=given), lambda: PostgresEventBus(DSN, **given)):
        with pytest.raises(eventbus.ConfigError) as caught:
            make()
        assert str(caught.value).startswith(says)
    with pytest.raises(eventbus.ConfigError) as caught:
        RedisEventBus(port=0, ssl="maybe", **given)  # type: ignore[arg-type]
    assert len(caught.value.problems) == 3


@pytest.mark.parametrize(
    "dsn",
    [
        SECRET,
        f"mysql://me:{SECRET}@h",
        f"host=h password={SECRET}",
        f"postgresql://me:{SECRET}/x@h",
        f"postgresql://me:{SECRET}?x@h",
        f"postgresql://me:{SECRET}@h:port",
        f"postgresql://me:{SECRET}@a,b",
        f"postgresql://me:{SECRET}@h?sslmode=no",
        f"postgresql://me:%ff{SECRET}@h",
        SECRET.encode(),
    ],
)
def test_d56_a_bad_connection_string_is_never_shown(
    dsn: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(eventbus.ConfigError) as caught:
        PostgresEventBus(dsn)
    shown = f"{caught.value!r} {caught.value.__cause__!r} {caught.value.__context__!r}"
    if isinstance(dsn, str):
        monkeypatch.setenv("DATABASE_URL", dsn)
        with pytest.raises(OperationError) as through_factory:
            create_event_bus({"backend": "postgres"})
        shown += f"{through_factory.value!r} {through_factory.value}"
    assert SECRET not in shown + caplog.text


def test_d56_the_source_of_a_bad_connection_string_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(eventbus.ConfigError, match=r"^connection_string must begin with one of p"):
        PostgresEventBus("nowhere")
    monkeypatch.setenv("DATABASE_URL", "sqlite:///x")
    with pytest.raises(
        eventbus.ConfigError, match=r"^DATABASE_URL must begin with one of postgres"
    ):
        PostgresEventBus()


def test_d56_no_bus_shows_a_password(caplog: pytest.LogCaptureFixture) -> None:
    for bus in (
        RedisEventBus(password=SECRET, host="remote"),
        PostgresEventBus(DSN),
        PostgresEventBus(host="remote", password=SECRET, sslmode="disable"),
    ):
        assert SECRET not in f"{bus} {bus!r} {bus.config} {bus.config!r}"
    assert "clear text" in caplog.text
    assert SECRET not in caplog.text


@pytest.mark.parametrize("name", ["RedisEventBus", "PostgresEventBus"])
async def test_d56_not_connected(name: str) -> None:
    bus: Any = RedisEventBus() if name == "RedisEventBus" else PostgresEventBus(DSN)
    with pytest.raises(eventbus.NotConnectedError) as caught:
        bus._not_live("publish")
    assert type(caught.value) is eventbus.NotConnectedError
    assert str(caught.value) == f"{name} not connected"
    assert isinstance(caught.value, RuntimeError)
    await bus.close()
    with pytest.raises(eventbus.BusClosedError) as closed:
        bus._not_live("publish")
    assert str(closed.value) == f"{name} not connected"


def test_d56_config_misuse() -> None:
    redis, postgres = RedisEventBusConfig(), PostgresEventBusConfig(DSN)
    for call, text in [
        (
            lambda: RedisEventBus(config=redis, host="x"),
            "RedisEventBus: cannot mix typed `config=RedisEventBusConfig` with loose kwargs "
            "(['host']).",
        ),
        (
            lambda: PostgresEventBus(config=postgres, channel_prefix="x"),
            "PostgresEventBus: cannot mix typed `config=PostgresEventBusConfig` with loose kwargs "
            "(['channel_prefix']).",
        ),
        (
            lambda: RedisEventBus.from_config(postgres),  # type: ignore[arg-type]
            "RedisEventBus.from_config: `config` must be RedisEventBusConfig or Mapping, got "
            "PostgresEventBusConfig.",
        ),
        (
            lambda: RedisEventBus(postgres),  # type: ignore[arg-type]
            "RedisEventBus: `config` must be RedisEventBusConfig or Mapping, got "
            "PostgresEventBusConfig.",
        ),
    ]:
        with pytest.raises(TypeError) as caught:
            call()
        assert str(caught.value) == text


# D57


def test_d57_no_driver_is_imported() -> None:
    # In a process of its own: other tests use the drivers.
    code = (
        "import sys; from eventbus.compat.dataknobs import RedisEventBus, PostgresEventBus; "
        f"RedisEventBus(); PostgresEventBus({DSN!r}); "
        "print(sorted({'redis', 'asyncpg', 'psycopg', 'psycopg2'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout == "[]\n"
