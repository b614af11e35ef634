"""The figures as aligned tables, and what the targets make of them."""

from __future__ import annotations

from typing import Any

from benches.measure import OURS, Result, Target

UNITS = {
    "ns": ("ns/op", "{:,.0f}"),
    "ms": ("ms", "{:,.1f}"),
    "MB": ("MB", "{:,.1f}"),
    "us": ("µs", "{:,.0f}"),
    "s": ("s", "{:,.2f}"),
}


def print_machine(machine: dict[str, Any]) -> None:
    """Print what the figures hold for."""
    print(f"{machine['processor']}, {machine['cores']} cores, {machine['system']}")
    peers = ", ".join(f"{name} {found or 'MISSING'}" for name, found in machine["peers"].items())
    print(f"{machine['python']}, eventbus {machine['eventbus']}, {machine['date']}\n{peers}")


def print_result(result: Result, scale: float) -> None:
    """Print the table of a workload."""
    load = result.workload
    unit, form = UNITS[load.unit]
    turns = len(next(iter(result.rounds.values())))
    scale /= load.slices
    n = f", n = {max(1, int(load.n * scale)):,}" if load.unit == "ns" else ""
    print(f"\n{load.name}  {load.title}{n}, {turns} turn{'s' if turns > 1 else ''}")
    speed = "ops/s" if load.unit == "ns" else ""
    ours = next((peer for peer in result.rounds if peer.startswith(OURS)), None)
    ours = OURS if OURS in result.rounds else ours or next(iter(result.rounds))
    print(f"  {'':<44}{unit:>11}{'best':>11}{speed:>12}{'spread':>8}   eventbus is")
    for case in sorted(load.cases, key=lambda case: result.median(case.peer)):
        median = result.median(case.peer)
        rate = f"{1e9 / median:,.0f}" if load.unit == "ns" else ""
        ratio = "" if case.peer == ours else f"{result.ratio(ours, case.peer):.2f}×"
        name = case.peer if case.n is None else f"{case.peer} (n = {int(case.n * scale):,})"
        spread = f"±{result.spread(case.peer):.0%}"
        figures = f"{form.format(median):>11}{form.format(result.best(case.peer)):>11}"
        print(f"  {name:<44}{figures}{rate:>12}{spread:>8}   {ratio}".rstrip())
    for target in load.targets:
        print(f"  {verdict(result, target)}")
    for name in load.missing:
        print(f"  MISSING peer: {name} is not installed; `make bench` installs it")


def verdict(result: Result, target: Target) -> str:
    """Return what a target asks and whether it is met."""
    value = result.value(target)
    sign = "≤" if target.at_most else "≥"
    unit = "×" if target.peer else f" {result.workload.unit}"
    against = f" against {target.peer}" if target.peer else ""
    parts = []
    for word, bound in (("must", target.must), ("aim", target.aim)):
        if bound is not None:
            mark = "✓" if target.holds(value, bound) else "✗"
            parts.append(f"{word} {sign} {bound:g}{unit} {mark}")
    return f"{target.of}{against}: {value:.2f}{unit}; {', '.join(parts)}"


def print_summary(results: list[Result]) -> None:
    """Print how many targets are met, and each that is not."""
    met, missed = 0, []
    for result in results:
        for target in result.workload.targets:
            if target.must is None:
                continue
            if target.holds(result.value(target), target.must):
                met += 1
            else:
                load = result.workload
                missed.append(f"{load.name} {load.title}: {verdict(result, target)}")
    print(f"\ntargets: {met} of {met + len(missed)} met")
    for line in missed:
        print(f"  ✗ {line}")


def as_data(result: Result) -> dict[str, Any]:
    """Return a result as plain data, all rounds included."""
    load = result.workload
    return {
        "workload": load.name,
        "title": load.title,
        "unit": load.unit,
        "median": {peer: result.median(peer) for peer in result.rounds},
        "rounds": result.rounds,
        "targets": [
            {
                "of": target.of,
                "peer": target.peer,
                "value": result.value(target),
                "must": target.must,
                "aim": target.aim,
                "at_most": target.at_most,
            }
            for target in load.targets
        ],
        "missing": load.missing,
    }
