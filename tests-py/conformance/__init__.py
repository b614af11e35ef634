"""The conformance suite: what every backend must do; one file per noun, the same for all."""
