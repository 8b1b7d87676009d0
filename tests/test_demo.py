"""``python -m wsthread demo``: what it prints, how it ends, and that nothing outlives it."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import List

import pytest

from tests.support import SOON
from wsthread import cli, demo

COMMAND = [sys.executable, "-W", "error", "-m", "wsthread"]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=SOON * 3)


def server_of(process: subprocess.Popen[str]) -> int:
    """The process that the demo started."""
    deadline = time.monotonic() + SOON
    while time.monotonic() < deadline:
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                if int(stat.read_text().rpartition(")")[2].split()[1]) == process.pid:
                    return int(stat.parent.name)
            except OSError:
                continue  # gone since
        time.sleep(0.01)
    raise TimeoutError("the demo started no server")


def wait_gone(pid: int) -> None:
    deadline = time.monotonic() + SOON
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < deadline, "the server outlives the demo"
        time.sleep(0.01)


@pytest.mark.unmeasured
def test_it_prints_every_event_with_its_thread_and_leaves_nothing() -> None:
    done = run("demo")
    assert done.stderr == ""
    assert done.returncode == 0, done.stdout
    *rounds, last = done.stdout.strip().split("\n\n")
    assert last == "left over: 0 threads, 0 descriptors, 0 objects"
    assert len(rounds) == 1 + 3
    for number, text in enumerate(rounds[1:], 1):
        heading, *lines = text.split("\n")
        assert heading == f"round {number} of 3"
        check_round(lines)


def check_round(lines: List[str]) -> None:
    found = [re.fullmatch(r"  \[([\w-]+)\] +(.*)", line) for line in lines]
    events = [(match.group(1), match.group(2)) for match in found if match]
    assert len(events) == len(lines)
    assert {thread for thread, text in events if text.startswith("hit me!")} == {"MainThread"}
    callbacks = [text for thread, text in events if thread == "wsthread-dispatcher"]
    assert len(callbacks) == len(lines) - 2
    callbacks.remove("on_sent: the message has been sent")  # before the echo or behind it
    assert callbacks == [
        "on_state_change: connecting",
        "on_state_change: connected",
        "connected, and sending message 'Have a good day!'",
        "on_message: 'Have a good day!'",
        "on_state_change: closing",
        "on_close: 1000",
        "on_state_change: disconnected",
    ]


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="descriptors are not counted here")
def test_what_is_left_over_is_counted(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = []
    play = demo._play

    def play_and_keep(url: str) -> None:
        play(url)
        kept.append(socket.socket())

    monkeypatch.setattr(demo, "_play", play_and_keep)
    assert cli.main(["demo", "--rounds", "2"]) == 1
    for thing in kept:
        thing.close()
    last = capsys.readouterr().out.strip().split("\n")[-1]
    counted = re.fullmatch(r"left over: 0 threads, 1 descriptors, (\d+) objects", last)
    assert counted is not None and int(counted.group(1)) > 0


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_server_is_left_however_it_ends(number: signal.Signals) -> None:
    process = subprocess.Popen(
        [*COMMAND, "demo", "--rounds", "100000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        server = server_of(process)
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("round 2"):
                break
        process.send_signal(number)
        _, stderr = process.communicate(timeout=SOON)
        assert stderr == ""
        assert process.returncode == (130 if number == signal.SIGINT else -number)
        wait_gone(server)
    finally:
        process.kill()
        process.communicate()


def test_without_the_package_of_the_server() -> None:
    script = (
        "import sys; sys.modules['websockets'] = None; "
        "from wsthread.cli import main; sys.exit(main(['demo']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=SOON * 3
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert "pip install 'wsthread[demo]'" in done.stderr


def test_a_server_that_does_not_start_is_said(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\nexit 3\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    assert cli.main(["demo"]) == 1
    assert capsys.readouterr().err == "demo: the local server did not start\n"


@pytest.mark.parametrize(
    "arguments", [[], ["nonsense"], ["demo", "--rounds", "1"], ["demo", "--rounds", "x"]]
)
def test_wrong_usage(arguments: List[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("usage: python -m wsthread")


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_and_version(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main([option])
    assert caught.value.code == 0
    assert "wsthread" in capsys.readouterr().out
