"""Compare reports: ``python -m tests.conformance.table a.json b.json [--format rst]``.

One row for each group of cases, one column for each report: how many cases
passed of how many that ran, and what the others were. With ``--page`` the
reports' summaries are kept in ``results``, and the table goes into
``docs/conformance.rst``.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

FORMATS = ("markdown", "rst")
HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
PAGE = HERE.parent.parent / "docs" / "conformance.rst"
BEGIN, END = ".. begin of the table\n\n", "\n\n.. end of the table\n"
#: The columns of the page.
CLIENTS = ("wsthread", "websocket-client", "websockets")


def cell(counts: Optional[Dict[str, int]]) -> str:
    """``52/54 (2 FAILED)``. Informational cases count as passed."""
    if not counts:
        return "not run"
    others = dict(counts)
    passed = others.pop("OK") + others.pop("INFORMATIONAL")
    rest = ", ".join(f"{n} {verdict}" for verdict, n in others.items() if n)
    return f"{passed}/{sum(counts.values())}" + (f" ({rest})" if rest else "")


def rows(reports: Sequence[Dict[str, Any]]) -> List[List[str]]:
    """The table's rows, the first of them its heads."""
    groups = sorted({group for report in reports for group in report["groups"]}, key=int)
    table = [["group", *(f"{report['client']} {report['version']}" for report in reports)]]
    table += [[g, *(cell(report["groups"].get(g)) for report in reports)] for g in groups]
    totals = []
    for report in reports:
        total: Dict[str, int] = {}
        for counts in report["groups"].values():
            for verdict, n in counts.items():
                total[verdict] = total.get(verdict, 0) + n
        totals.append(cell(total))
    return [*table, ["all", *totals]]


def render(table: List[List[str]], style: str) -> str:
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]))]
    lines = [[text.ljust(width) for text, width in zip(row, widths)] for row in table]
    if style == "rst":
        rule = "  ".join("=" * width for width in widths)
        body = ["  ".join(line).rstrip() for line in lines]
        return "\n".join([rule, body[0], rule, *body[1:], rule])
    body = ["| " + " | ".join(line) + " |" for line in lines]
    rule = "| " + " | ".join("-" * width for width in widths) + " |"
    return "\n".join([body[0], rule, *body[1:]])


def origins(reports: Sequence[Dict[str, Any]]) -> List[str]:
    """A line for each report: what ran where and when."""
    return [
        f"{report['client']} {report['version']}: {report['python']}, {report['suite']}, "
        f"{report['date']}"
        for report in reports
    ]


def keep(reports: Sequence[Dict[str, Any]]) -> None:
    """Keep the reports without their single cases."""
    for report in reports:
        summary = {key: value for key, value in report.items() if key != "cases"}
        path = RESULTS / f"{report['client']}.json"
        path.write_text(json.dumps(summary, indent=1) + "\n")


def kept() -> List[Dict[str, Any]]:
    """The kept reports, in the page's order."""
    return [json.loads((RESULTS / f"{client}.json").read_text()) for client in CLIENTS]


def page(text: str) -> str:
    """The page's text with the table of the kept reports."""
    head, _, rest = text.partition(BEGIN)
    _, _, tail = rest.partition(END)
    reports = kept()
    lines = "\n".join(f"* {line}" for line in origins(reports))
    return head + BEGIN + render(rows(reports), "rst") + "\n\n" + lines + END + tail


def main(argv: Optional[List[str]] = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.conformance.table")
    parser.add_argument("reports", nargs="*", type=Path, metavar="REPORT.json")
    parser.add_argument("--format", choices=FORMATS, default="markdown")
    parser.add_argument("--page", action="store_true", help="keep summaries, write the docs' page")
    options = parser.parse_args(argv)
    reports = [json.loads(path.read_text()) for path in options.reports]
    if options.page:
        keep(reports)
        PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
        return
    if not reports:
        parser.error("no reports")
    print(render(rows(reports), options.format))
    print("", *origins(reports), sep="\n")


if __name__ == "__main__":
    main()
