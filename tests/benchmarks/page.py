"""Make the docs' page: ``python -m tests.benchmarks.page results.json``.

Keeps the results as ``docs/performance.json``, writes every figure of ``docs/performance.rst``
from them, and draws ``docs/_static/performance.svg`` (which needs matplotlib). Without a file it
makes the page from the results that are kept.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional

from tests.conformance.table import render

from . import report

DOCS = Path(__file__).resolve().parent.parent.parent / "docs"
KEPT = DOCS / "performance.json"
PAGE = DOCS / "performance.rst"
PLOT = DOCS / "_static" / "performance.svg"

Measured = Dict[str, Any]


def facts(measured: Measured) -> str:
    return bullets(report.facts(measured["environment"]))


def bullets(lines: List[str]) -> str:
    return "\n".join(f"* {line}" for line in lines)


def figures(measured: Measured) -> str:
    parts = []
    for group, results in report.by_group(measured["rows"]).items():
        head = group[0].upper() + group[1:]
        parts.append(f"{head}\n{'~' * len(head)}\n\n" + table(report.figures(results)))
    return "\n\n".join(parts)


def table(rows: List[List[str]]) -> str:
    # A table of reStructuredText takes a row whose first cell is empty for more of the one above.
    return render([[row[0] or "row", *row[1:]] for row in rows], "rst")


def targets(measured: Measured) -> str:
    return table(report.targets(measured["rows"]))


def ratios(measured: Measured) -> str:
    return table(report.ratios(measured["rows"]))


def faster(measured: Measured) -> str:
    return bullets(report.faster(measured["rows"])) or "Nowhere, in this run."


SECTIONS: Dict[str, Callable[[Measured], str]] = {
    "facts": facts,
    "figures": figures,
    "targets": targets,
    "ratios": ratios,
    "faster": faster,
}


def page(text: str, measured: Measured) -> str:
    """The page's text with the sections of these results."""
    for name, section in SECTIONS.items():
        begin, end = f".. begin of {name}\n", f".. end of {name}\n"
        head, found, rest = text.partition(begin)
        _, found_too, tail = rest.partition(end)
        if not (found and found_too):
            raise ValueError(f"the page has no place for {name}")
        text = f"{head}{begin}\n{section(measured)}\n\n{end}{tail}"
    return text


def kept() -> Measured:
    measured: Measured = json.loads(KEPT.read_text(encoding="utf-8"))
    return measured


def main(argv: Optional[List[str]] = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.page")
    parser.add_argument("results", nargs="?", type=Path, metavar="RESULTS.json")
    options = parser.parse_args(argv)
    if options.results:
        KEPT.write_text(options.results.read_text(encoding="utf-8"), encoding="utf-8")
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8"), kept()), encoding="utf-8")
    report.plot(kept()["rows"], PLOT)


if __name__ == "__main__":
    main()
