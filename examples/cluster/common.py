"""What managers, agents and the demo have in common: names, and lines that tell what happens."""

import argparse
import json
import logging
import time

PREFIX = "cluster"  # of the topics of all events
LEASE = 3.0  # seconds after which a silent process is dead
AGENTS = ("agent-1", "agent-2")


def tell(who: str, what: str, **details: object) -> None:
    """Print one line for the timeline."""
    line = {"at": time.time(), "who": who, "what": what, **details}
    print(json.dumps(line), flush=True)


class TimelineHandler(logging.Handler):
    """Puts what the library logs into the timeline."""

    def __init__(self, who: str) -> None:
        """Remember whose log it is."""
        super().__init__()
        self._who = who

    def emit(self, record: logging.LogRecord) -> None:
        """Tell a record."""
        tell(self._who, "log", text=record.getMessage())


def arguments() -> argparse.Namespace:
    """Return ``--url`` and ``--name``; from now on what is logged goes to the timeline."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--url", required=True, help="the bus")
    parser.add_argument("--name", required=True, help="of this process")
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING, handlers=[TimelineHandler(options.name)])
    return options
