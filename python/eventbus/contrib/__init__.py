"""What needs a package beside eventbus; each module imports it by itself."""
