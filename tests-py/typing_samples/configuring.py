"""Options of every backend: what ``connect`` and the DataKnobs constructors take, and refuse."""

# Every misuse below must be found by mypy and by pyright.
# pyright: reportUnnecessaryTypeIgnoreComment=true

from datetime import timedelta
from pathlib import Path
from typing import assert_type

from eventbus import (
    Bus,
    EventBus,
    PostgresEventBus,
    PostgresEventBusConfig,
    RedisEventBus,
    RedisEventBusConfig,
    connect,
    event_bus_backends,
)
from eventbus.compat import dataknobs
from eventbus.config import PostgresOptions, RedisOptions


def read_secret() -> str:
    return "secret"


def urls_and_options() -> None:
    assert_type(connect("redis://localhost", db=1, password=read_secret), Bus)
    connect("rediss://localhost", tls_ca=Path("ca.pem"), op_timeout=timedelta(seconds=2))
    connect("redis+sentinel://a,b/service", sentinel_password="x", wire="dataknobs")
    connect("postgresql://localhost/app", sslmode="verify-full", schema="bus", migrate=False)
    redis: RedisOptions = {"prefix": "mine", "heartbeat": 5, "queue_size": 10}
    postgres: PostgresOptions = {"pool_size": 2, "sslrootcert": "ca.pem", "partitions": 1}
    connect("redis://localhost", **redis)
    connect("postgresql://localhost", **postgres)
    connect("redis://localhost", wire="json")  # type: ignore[arg-type]
    connect("redis://localhost", db="1")  # type: ignore[arg-type]
    connect("redis://localhost", nonsense=1)  # type: ignore[call-arg]
    connect("postgresql://localhost", sslmode="on")  # type: ignore[arg-type]
    refused: RedisOptions = {"schema": "x"}  # type: ignore[typeddict-unknown-key]
    del refused


def constructors() -> None:
    bus: EventBus = RedisEventBus("localhost", 6379, None, False, "events")
    bus = RedisEventBus(config={"host": "localhost"}, port=6380)
    bus = PostgresEventBus("postgresql://localhost", channel_prefix="mine")
    event_bus_backends.register("mine", lambda _config: bus)
    assert_type(RedisEventBus(RedisEventBusConfig(ssl=True)).config, RedisEventBusConfig)
    assert_type(PostgresEventBus.from_config({}), PostgresEventBus)
    assert_type(PostgresEventBus("").config, PostgresEventBusConfig)
    assert_type(PostgresEventBus("").is_listening, bool)
    same: type[dataknobs.RedisEventBus] = RedisEventBus
    RedisEventBus(port=[1])  # type: ignore[arg-type]
    PostgresEventBus.from_config(RedisEventBusConfig())  # type: ignore[arg-type]
    del same
