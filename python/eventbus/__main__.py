"""Runs the command line as ``python -m eventbus``."""

import sys

from eventbus.cli import main

sys.exit(main())
