"""What managers, agents and the demo have in common: names, and lines that tell what happens."""

import argparse
import json
import time

PREFIX = "cluster"  # of the topics of all events
LEASE = 3.0  # seconds after which a silent process is dead
AGENTS = ("agent-1", "agent-2")


def tell(who: str, what: str, **details: object) -> None:
    """Print one line for the timeline."""
    line = {"at": time.time(), "who": who, "what": what, **details}
    print(json.dumps(line), flush=True)


def arguments() -> argparse.Namespace:
    """Return ``--url`` and ``--name``."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--url", required=True, help="the bus")
    parser.add_argument("--name", required=True, help="of this process")
    return parser.parse_args()
