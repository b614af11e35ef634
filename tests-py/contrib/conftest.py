"""The backends of the conformance suite, for tests of what is served from another manager."""

from conformance.conftest import backend, make_bus

__all__ = ["backend", "make_bus"]
