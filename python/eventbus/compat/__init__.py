"""Code written for other event systems runs here: one subpackage per system."""

# Said, not left out: the reference looks for names below a package only where it has this list.
__all__: list[str] = []
