"""eventbus.dispatcher over the backends of the conformance suite."""
