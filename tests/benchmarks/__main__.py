"""The command line; see the package's docstring."""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import json
import sys
from pathlib import Path
from typing import Any, Dict, List, Optional

from tests.conformance.table import render

from . import report
from .measure import Bench, environment, idle_rows, import_times, serving
from .rows import all_rows


def parse_arguments(argv: Optional[List[str]]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks", description="Compare wsthread with other clients."
    )
    parser.add_argument("--rounds", type=int, default=5, help="default: 5, after one that warms up")
    parser.add_argument(
        "--rows",
        default="*",
        metavar="PATTERN",
        help="only rows whose name matches, such as 'receive 64*', 'import' or '*idle*'",
    )
    parser.add_argument("--quick", action="store_true", help="a fiftieth of everything: a trial")
    parser.add_argument(
        "--largest", type=int, default=10**6, help="messages in a row; default: 1000000"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results here")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw them (needs matplotlib)")
    options = parser.parse_args(argv)
    if options.rounds < 1:
        parser.error("--rounds must be at least 1")
    return options


def measure(options: argparse.Namespace) -> Dict[str, Any]:
    """Return what is written as JSON."""

    def chosen(name: str) -> bool:
        return fnmatch.fnmatch(name, options.rows)

    results: List[Dict[str, Any]] = []
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(serving())
        bench = Bench(server, stack, divisor=50 if options.quick else 1)
        facts = environment(bench, options.rounds)
        for row in all_rows(options.largest):
            if chosen(row.name):
                print(row.name, file=sys.stderr, flush=True)
                results.append(bench.measure(row, options.rounds))
        if chosen("import"):
            results.append(import_times(options.rounds))
        clients, interval = (20, 1.0) if options.quick else (1000, 20.0)
        if chosen(f"{clients:,} idle clients"):
            print("idle clients", file=sys.stderr, flush=True)
            results += idle_rows(server, min(options.rounds, 3), clients, interval)
    return {"environment": facts, "quick": options.quick, "rows": results}


def show(measured: Dict[str, Any]) -> None:
    results = measured["rows"]
    print(*report.facts(measured["environment"]), sep="\n")
    for group, members in report.by_group(results).items():
        print(f"\n{group}\n" + render(report.figures(members), "rst"))
    print("\nwsthread, as multiples of\n" + render(report.ratios(results), "rst"))
    print("\ntargets\n" + render(report.targets(results), "rst"))


def main(argv: Optional[List[str]] = None) -> None:
    options = parse_arguments(argv)
    measured = measure(options)
    if not measured["rows"]:
        sys.exit(f"no row matches {options.rows!r}")
    show(measured)
    if options.json:
        options.json.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")
    if options.plot:
        report.plot(measured["rows"], options.plot)


if __name__ == "__main__":
    main()
