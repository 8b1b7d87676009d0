"""The benchmarks still run and still notice what is wrong. Nothing is timed here."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any, Dict, List

import pytest

from tests.benchmarks import page, report
from tests.benchmarks.__main__ import parse_arguments
from tests.benchmarks.measure import Bench, idle_rows, import_times, result, serving
from tests.benchmarks.messages import BINARY, KIB, OTHER, TEXT, Checker, as_bytes, block, masked
from tests.benchmarks.rows import Target, all_rows
from tests.benchmarks.server import judge
from tests.benchmarks.workers import CONTENDERS

CHOSEN = [
    "receive 64 B, text",
    "receive 16 KiB, binary",
    "send 64 B, text, 8 threads (raw: one)",
    "flush of a queue, 64 B, text (raw: one by one)",
    "echo 64 B, text",
    "receive 1 MiB over TLS, text",
    "clients sharing a dispatcher",
]


def test_rows_run_and_are_reported() -> None:
    results = []
    with contextlib.ExitStack() as stack:
        bench = Bench(stack.enter_context(serving()), stack, divisor=1000)
        for row in all_rows():
            if row.name in CHOSEN:
                results.append(bench.measure(row, rounds=1))
    assert [result["name"] for result in results] == CHOSEN
    for found in results:
        installed = [name for name in found["figures"] if name in CONTENDERS]
        assert all(figure["median"] > 0 for figure in found["figures"].values())
        assert found["group"] == "growth" or {"wsthread", "raw"} <= set(installed)
        assert all(target["found"] is not None for target in found["targets"] if not peer(target))
    tables = [report.figures(results), report.targets(results), report.ratios(results)]
    for table in tables:
        assert len({len(row) for row in table}) == 1


def peer(target: Dict[str, Any]) -> bool:
    return target["against"] in ("websocket-client", "websockets", "picows", "websocket-rs")
