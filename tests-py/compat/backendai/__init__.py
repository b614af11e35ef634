"""The contract of eventbus.compat.backendai, rule by rule."""
