"""The names of ``dataknobs_common.events.postgres``."""

from eventbus.postgres import PostgresEventBus

__all__ = ["PostgresEventBus"]
