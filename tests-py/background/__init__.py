"""eventbus.background over the backends of the conformance suite."""
