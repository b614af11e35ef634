"""A module that the DataKnobs contract promises (D1): its bus over Postgres."""

from eventbus.compat.dataknobs.postgres import PostgresEventBus, PostgresEventBusConfig

__all__ = ["PostgresEventBus", "PostgresEventBusConfig"]
