"""The benchmarks still run and still notice what is wrong. Nothing is timed here."""

from __future__ import annotations

import contextlib
from typing import Any, Dict, List

import pytest

from tests.benchmarks import floor, page, parts, report
from tests.benchmarks.__main__ import parse_arguments
from tests.benchmarks.measure import Bench, idle_rows, import_times, result, serving
from tests.benchmarks.messages import (
    BINARY,
    OTHER,
    TEXT,
    Checker,
    as_bytes,
    block,
    expected_verdict,
    masked,
)
from tests.benchmarks.rows import KIB, Run, Target, all_rows, grown
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


@pytest.mark.timeout(240)  # a process for each client, one after the other
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


def receive(received: List[Any]) -> None:
    """Check three messages as the clients do."""
    checker = Checker(TEXT, 64, 3)
    for message in received:
        if message != checker.next():
            checker.finish(message)
            return
    raise AssertionError("more is waited for")


def test_what_was_not_sent_is_noticed() -> None:
    one, two, three, *_ = block(TEXT, 64)
    receive([one, two, three])
    for wrong in ([one, three], [one, one, two, three], [one, three, two], [one, "x" * 64], [one]):
        with pytest.raises(AssertionError):
            receive(wrong)


@pytest.mark.parametrize("kind", [TEXT, BINARY, OTHER])
def test_a_long_message_is_checked_by_its_end_and_its_length(kind: str) -> None:
    size = 16 * KIB
    message = block(kind, size)[0]
    assert len(as_bytes(message)) == size
    checker = Checker(kind, size, 1)
    checker.next()
    checker.length = len(message)
    checker.finish(message)
    checker = Checker(kind, size, 1)
    checker.next()
    checker.length = len(message) - 1
    with pytest.raises(AssertionError):
        checker.finish(message)


def test_the_server_notices_what_was_not_sent() -> None:
    frames = bytearray(b"".join(masked(message) for message in block(TEXT, 64)[:5]))
    head = bytes(frames[:2])
    right = judge(memoryview(frames), head, 64)
    assert right == expected_verdict(TEXT, 64, 5)
    frames[-1] ^= 1
    assert judge(memoryview(frames), head, 64) != right
    frames[70] ^= 1
    assert judge(memoryview(frames), head, 64).startswith("no frame")


def test_idle_clients_and_imports_give_rows() -> None:
    with serving() as server:
        found = {row["name"]: row for row in idle_rows(server, 1, 3, 0.2)}
    threads = found["3 idle clients: threads"]
    assert threads["figures"]["wsthread"]["median"] == 1
    assert threads["targets"][0]["reached"]
    assert found["3 idle clients: memory"]["unit"] == "KiB a client"
    assert import_times(1)["figures"]["wsthread"]["median"] > 0


def made_up() -> Dict[str, Any]:
    target = Target("wsthread", ">=", 2, "raw")
    figures = {"wsthread": [300.0, 100.0, 200.0], "raw": [400.0], "picows": [50.0]}
    row = result("receive", "receive 64 B, text", "messages/s", figures, [target])
    facts = {
        "python": "CPython",
        "system": "Linux",
        "date": "2000-01-01",
        "versions": {"wsthread": "0"},
        "maskers": {"wsthread": "integer XOR", "plain": "integer XOR"},
        "compression": "off",
        "keepalive": "off",
        "text": "ASCII",
        "rounds": 3,
    }
    return {"environment": facts, "quick": False, "rows": [row]}


def test_the_page_is_made_of_the_results() -> None:
    text = "".join(
        f"before\n\n.. begin of {name}\n\nold\n\n.. end of {name}\n" for name in page.SECTIONS
    )
    made = page.page(text, made_up())
    assert "old" not in made and made.count("before") == len(page.SECTIONS)
    assert "missed" in made and "0.5" in made
    assert page.page(made, made_up()) == made
    empty = text.replace("\nold\n", "")
    assert page.page(empty, made_up()) == made
    with pytest.raises(ValueError, match="place"):
        page.page(text.replace("end of", "no"), made_up())


def test_the_page_in_the_docs_is_made_of_the_results_beside_it() -> None:
    text = page.PAGE.read_text(encoding="utf-8")
    assert page.page(text, page.kept()) == text


def test_a_ratio_is_of_the_medians() -> None:
    row = made_up()["rows"][0]
    assert row["figures"]["wsthread"]["median"] == 200
    assert row["ratios"]["wsthread"] == {"raw": 0.5, "picows": 4}
    assert (row["targets"][0]["found"], row["targets"][0]["reached"]) == (0.5, False)


@pytest.mark.parametrize(
    ("bare", "verdict"),
    [(None, "missed"), (3.0, "missed, by bare Python too"), (5.0, "missed"), (1.0, "reached")],
)
def test_a_target_tells_what_bare_python_comes_to(bare: Any, verdict: str) -> None:
    figures = {"wsthread": [5.0 if verdict == "reached" else 1.0], "raw": [2.0]}
    if bare is not None:
        figures["bare"] = [bare]
    target = Target("wsthread", ">=", 2, "raw")
    made = result("receive", "receive 64 B, text", "messages/s", figures, [target])
    assert made["targets"][0]["bare"] == (None if bare is None else bare / 2)
    assert report.targets([made])[1][-1] == verdict


def test_growth_is_compared_with_that_of_bare_python() -> None:
    figures = {"1 MiB": [1.0], "64 MiB": [3.0], "bare Python, 1 MiB": [0.5]}
    figures["bare Python, 64 MiB"] = [2.0]
    row = grown("size", "ns", 1, [Run(name, "x", "receive", 1, {}) for name in figures])
    made = result("growth", "size", "ns", figures, row.targets)
    assert [(one["found"], one["bare"]) for one in made["targets"]] == [(3.0, 4.0)]


def test_the_command_line() -> None:
    options = parse_arguments(["--quick", "--rows", "send*", "--rounds", "2"])
    assert (options.quick, options.rows, options.rounds) == (True, "send*", 2)
    with pytest.raises(SystemExit):
        parse_arguments(["--rounds", "0"])


def test_the_parts_of_a_round_trip_are_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(parts, "ROUNDS", 1)
    monkeypatch.setattr(parts, "TURNS", 100)
    parts.main()
    told = capsys.readouterr().out
    assert "the whole round trip" in told and "calls a round trip" in told


def test_the_steps_to_the_floor_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for _, arguments, _steps in floor.MEASURED.values():
        monkeypatch.setitem(arguments, "count", 200)
    for name, (_, _, steps) in floor.MEASURED.items():
        head, *rows = floor.measure(name, 1)
        assert head[0] == name
        assert [row[0] for row in rows] == [step.title for step in steps]
        assert rows[0][2] == "1.00"
        assert all(float(row[1]) > 0 for row in rows)
