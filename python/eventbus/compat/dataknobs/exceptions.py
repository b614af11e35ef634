"""The names of ``dataknobs_common.exceptions`` that its event bus raises."""

from eventbus.errors import ConfigurationError, DataknobsError, NotFoundError, OperationError

__all__ = ["ConfigurationError", "DataknobsError", "NotFoundError", "OperationError"]
