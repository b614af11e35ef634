"""eventbus.contrib over real HTTP."""
