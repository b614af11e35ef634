"""Compares this checkout with another one in turns: `python -m benches.turns OTHER [W1 …]`.

Each turn runs the workloads once in either checkout, each in its own virtual environment, so that
both meet the same disturbances. The figure of a case is the median of its turns. Cases that are not
of eventbus run the same code twice: what they differ by is the noise of the machine.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent.parent
Case = tuple[str, str]


def arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m benches.turns", description=__doc__)
    parser.add_argument("other", type=Path, help="a checkout with a built .venv: the baseline")
    parser.add_argument("workloads", nargs="*", default=["W1"], help="as for `python -m benches`")
    parser.add_argument("--turns", type=int, default=11, help="turns of each checkout (11)")
    parser.add_argument("--scale", type=float, default=0.2, help="factor for the operations (0.2)")
    parser.add_argument(
        "--signing", action="store_true", help="sign in this checkout; the other may be the same"
    )
    parser.add_argument("--cpu", action="store_true", help="time the processor, not the wall")
    return parser.parse_args()


def one_turn(checkout: Path, given: argparse.Namespace, *, is_ours: bool) -> dict[Case, float]:
    """Run the workloads once in a checkout; return the median of each case."""
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / "figures.json"
        command = [str(checkout / ".venv/bin/python"), "-m", "benches", *given.workloads]
        command += ["--rounds", "1", "--scale", str(given.scale), "--json", str(written)]
        command += ["--cpu"] if given.cpu else []
        command += ["--signing"] if given.signing and is_ours else []
        done = subprocess.run(command, cwd=checkout, check=False, capture_output=True, text=True)
        if done.returncode != 0:
            raise SystemExit(f"{checkout}: {done.stderr}")
        results = json.loads(written.read_text("utf-8"))["results"]
    return {
        (result["title"], peer): median
        for result in results
        for peer, median in result["median"].items()
    }


def spread(values: list[float]) -> float:
    """Return half the distance of the middle half of the values, as a fraction of the median."""
    low, _, high = statistics.quantiles(values, n=4)
    return (high - low) / 2 / statistics.median(values)


def main() -> int:
    """Run the turns and print one line per case; return 0: a figure is not a test."""
    given = arguments()
    other: dict[Case, list[float]] = {}
    ours: dict[Case, list[float]] = {}
    for turn in range(given.turns):
        both = [(given.other.resolve(), other), (HERE, ours)]
        # Every other turn goes backwards, so that nobody always follows the same neighbour.
        for checkout, figures in both if turn % 2 else reversed(both):
            found = one_turn(checkout, given, is_ours=figures is ours)
            for case, figure in found.items():
                figures.setdefault(case, []).append(figure)
        print(f"turn {turn + 1} of {given.turns}", file=sys.stderr)
    print(f"{'':<58}{'before':>9}{'':>6}{'now':>9}{'':>6}   now : before, per turn")
    for case in (case for case in other if case in ours):
        before, now = other[case], ours[case]
        ratios = [new / old for new, old in zip(now, before, strict=True)]
        print(
            f"{case[0][:28] + ' | ' + case[1][:26]:<58}"
            f"{statistics.median(before):>9,.0f} ±{spread(before):>3.0%} "
            f"{statistics.median(now):>9,.0f} ±{spread(now):>3.0%} "
            f"   {statistics.median(ratios):.3f} ({min(ratios):.2f} to {max(ratios):.2f})"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
