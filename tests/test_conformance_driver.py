"""The parts of the conformance driver that need no Autobahn server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conformance import install, judge, server, table

DETAILS = {"behavior": "OK", "behaviorClose": "OK", "duration": 12}


def result(case: str, behavior: str = "OK", close: str = "OK") -> judge.Result:
    return judge.Result(case, behavior, close, 0.5)


@pytest.mark.parametrize(
    ("selection", "patterns"),
    [
        (["1-3,9"], ["1.*", "2.*", "3.*", "9.*"]),
        (["7-7", "10"], ["7.*", "10.*"]),
        (["12.1.*", "5.3,6.4.1"], ["12.1.*", "5.3", "6.4.1"]),
        (["all"], ["*"]),
        (["10,spread"], ["10.*", *judge.SPREAD]),
    ],
)
def test_selection(selection, patterns):
    assert judge.case_patterns(selection) == patterns


@pytest.mark.parametrize("text", ["", "1,", "7-1", "*", "1.", "1.x", "1..2", "6.*.1", "-3", "one"])
def test_selection_that_is_none(text):
    with pytest.raises(ValueError, match="not a selection"):
        judge.case_patterns([text])


@pytest.mark.parametrize(
    ("case", "behavior", "close", "verdict"),
    [
        ("1.1.1", "OK", "OK", "OK"),
        ("6.4.1", "NON-STRICT", "OK", "NON-STRICT"),
        ("6.4.1", "NON-STRICT", "FAILED", "FAILED"),
        ("1.1.1", "OK", "FAILED", "FAILED"),
        ("1.1.1", "OK", "WRONG CODE", "FAILED"),
        ("1.1.1", "OK", "UNCLEAN", "FAILED"),
        ("1.1.1", "OK", "FAILED BY CLIENT", "FAILED"),
        ("1.1.1", "FAILED", "OK", "FAILED"),
        ("1.1.1", "something new", "OK", "FAILED"),
        ("12.1.1", "UNIMPLEMENTED", "OK", "UNIMPLEMENTED"),
        ("7.1.6", "INFORMATIONAL", "INFORMATIONAL", "INFORMATIONAL"),
        ("7.1.6", "INFORMATIONAL", "FAILED", "FAILED"),
        ("7.1.6", "FAILED", "OK", "FAILED"),
        ("1.1.1", "INFORMATIONAL", "INFORMATIONAL", "FAILED"),
    ],
)
def test_verdict(case, behavior, close, verdict):
    judged = result(case, behavior, close)
    assert judged.verdict == verdict
    assert judged.passed == (verdict in ("OK", "INFORMATIONAL"))


def test_every_selected_case_is_judged():
    cases = {"10.1.1": "auto", "9.1.1": "big", "2.1": "ping", "2.2": "pings"}
    index = {"10.1.1": DETAILS, "2.1": {**DETAILS, "behavior": "FAILED"}, "2.2": DETAILS}
    results = judge.judge(cases, index, {"2.1": "OSError: reset"}, hung=["2.2"])
    assert [r.id for r in results] == ["2.1", "2.2", "9.1.1", "10.1.1"]
    assert [r.behavior for r in results] == ["FAILED", "HUNG", "MISSING", "OK"]
    assert [r.passed for r in results] == [False, False, False, True]
    assert results[0].note == "OSError: reset"
    assert results[3].duration == 0.012


def test_description_of_a_failure():
    failed = judge.Result("2.1", "FAILED", "OK", 0, "OSError: reset")
    failed.details.update(
        description="Send <br/> ping\n now",
        expectedClose={"closeCode": [1000]},
        remoteCloseCode=None,
    )
    assert judge.describe(failed).splitlines() == [
        "2.1: behaviour FAILED, close OK",
        "    description: Send ping now",
        "    expected close: {'closeCode': [1000]}",
        "    client: OSError: reset",
    ]


def test_summary_counts_by_group():
    results = [result("1.1.1"), result("10.1.1", "NON-STRICT"), result("2.1", "MISSING", "MISSING")]
    rows = [line.split() for line in judge.summary(results).splitlines()]
    assert rows[0] == ["group", "cases", *judge.VERDICTS, "seconds"]
    assert rows[1:] == [
        ["1", "1", "1", "0", "0", "0", "0", "0.5"],
        ["2", "1", "0", "0", "0", "0", "1", "0.5"],
        ["10", "1", "0", "0", "1", "0", "0", "0.5"],
        ["all", "3", "1", "0", "1", "0", "1", "1.5"],
    ]


def test_reports_side_by_side(tmp_path, capsys):
    facts = {"python": "CPython 3", "suite": "s==1", "date": "2000-01-02"}
    strict = judge.report([result("1.1.1"), result("9.1.1")], client="a", version="1", **facts)
    other = judge.report([result("1.1.1", "NON-STRICT")], client="b", version="2", **facts)
    paths = [tmp_path / "a.json", tmp_path / "b.json"]
    for path, content in zip(paths, (strict, other)):
        path.write_text(json.dumps(content))
    table.main([str(path) for path in paths])
    printed = capsys.readouterr().out.splitlines()
    cells = [[cell.strip() for cell in line.strip("| ").split("|")] for line in printed[:5]]
    assert cells[0] == ["group", "a 1", "b 2"]
    assert cells[2:] == [
        ["1", "1/1", "0/1 (1 NON-STRICT)"],
        ["9", "1/1", "not run"],
        ["all", "2/2", "0/1 (1 NON-STRICT)"],
    ]
    assert "a 1: CPython 3, s==1, 2000-01-02" in printed


def test_the_page_has_the_table_of_the_kept_reports():
    text = table.PAGE.read_text(encoding="utf-8")
    assert table.page(text) == text, "run python -m tests.conformance.table --page"
    assert table.BEGIN in text and table.END in text


def test_the_kept_reports_are_of_full_runs_and_wsthread_passes():
    reports = table.kept()
    for report in reports:
        assert report["selection"] == ["*"]
        assert sum(sum(counts.values()) for counts in report["groups"].values()) == 517
    for counts in reports[0]["groups"].values():
        assert {verdict for verdict, n in counts.items() if n} <= {"OK", "INFORMATIONAL"}


def no_python27(tmp_path: Path) -> dict:
    return {**os.environ, "WSTHREAD_PYTHON27": str(tmp_path / "none")}


@pytest.mark.parametrize(("options", "status"), [([], 0), (["--strict"], 1)])
def test_without_python27(tmp_path, options, status):
    command = [sys.executable, "-m", "tests.conformance", *options, "--cache", str(tmp_path / "c")]
    done = subprocess.run(
        command,
        cwd=Path(__file__).parent.parent,
        env=no_python27(tmp_path),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (status, "")
    assert done.stdout.startswith("skipped: no CPython 2.7")
    assert not (tmp_path / "c").exists()


def test_a_python_that_is_not_27_is_passed_over(monkeypatch):
    monkeypatch.setenv("WSTHREAD_PYTHON27", sys.executable)
    assert install.find_python27() is None


def test_a_failed_install_shows_its_output_and_counts_for_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    for _ in range(2):  # the second time too: a failed environment is not taken for a finished one
        with pytest.raises(install.InstallError) as caught:
            install.suite_python(sys.executable, tmp_path)
        command, *output = str(caught.value).splitlines()
        assert command.startswith("exit status 1: ")
        assert any(line.startswith("ERROR: ") for line in output)


def test_an_install_by_no_program_at_all(tmp_path):
    with pytest.raises(install.InstallError, match="No such file"):
        install.suite_python(str(tmp_path / "none"), tmp_path)


def test_a_server_that_does_not_start_shows_its_log(tmp_path):
    # The launcher is Python 2.7 with the suite; here it meets an interpreter without.
    started = server.FuzzingServer(Path(sys.executable), ["1.*"], tmp_path)
    with pytest.raises(server.ServerError) as caught, started:
        pytest.fail("it started")
    assert "ended with status 1" in str(caught.value)
    assert "No module named 'autobahn'" in str(caught.value)
