"""Every program that the documentation shows runs, and does what the page says."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import shlex
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Tuple

import pytest

import wsthread
from tests.support import SOON, eventually
from tests.test_docs import ROOT, python_blocks
from wsthread.testing import LocalServer

GREETING = "Have a good day!"
PAGES = sorted(
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.rst")],
    key=lambda path: path.name,
)
#: The pages whose programs have tests of their own, in test_migration_pages.py.
ELSEWHERE = {"from-websocket-client.rst", "from-websockets-sync.rst", "from-swift.rst"}
SERVERS = re.compile(r"wss://example\.org/(?:echo|feed)|ws://127\.0\.0\.1:8765/")


class Run:
    """A program of a page that runs, and the server it talks to."""

    def __init__(self, server: LocalServer, block: str, names: Dict[str, Any]) -> None:
        self.server = server
        self.names = names
        self._block = SERVERS.sub(server.url, block)
        self._output = io.StringIO()
        self._errors: List[BaseException] = []
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        try:
            exec(compile(self._block, "program", "exec"), self.names)
        except BaseException as error:  # told by end()
            self._errors.append(error)

    @property
    def said(self) -> List[str]:
        return self._output.getvalue().splitlines()

    def __enter__(self) -> Run:
        with contextlib.ExitStack() as stack:
            stack.enter_context(contextlib.redirect_stdout(self._output))
            self._thread.start()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *failure: object) -> None:
        try:
            self.end()
        finally:
            self._stack.close()

    def says(self, line: str) -> None:
        eventually(lambda: line in self.said or self._errors)
        assert line in self.said, (self.said, self._errors)

    def end(self) -> None:
        self._thread.join(SOON)
        assert not self._thread.is_alive(), f"it goes on, and said {self.said}"
        if self._errors:
            raise self._errors[0]


def ends_by_itself(run: Run) -> None:
    run.end()


def prints_the_echo(run: Run) -> None:
    run.says(GREETING)
    if run._thread.is_alive():
        run.server.close(1000)


def talks_until_closed(run: Run) -> None:
    run.says('{"op": "subscribe"}')
    run.server.close(1000)


def says(*lines: str) -> Callable[[Run], None]:
    def drive(run: Run) -> None:
        run.end()
        assert run.said == list(lines)

    return drive


def refused(run: Run) -> None:
    run.end()
    assert len(run.said) == 1
    assert run.said[0].startswith("not connected: ")


def comes_back(run: Run) -> None:
    run.says("CONNECTED")
    run.says('{"op": "subscribe"}')
    run.server.drop()
    eventually(lambda: run.said.count('{"op": "subscribe"}') == 2)
    assert [line for line in run.said if line.isupper()] == [
        "CONNECTING",
        "CONNECTED",
        "RECONNECTING",
        "CONNECTED",
    ]
    assert any(line.startswith("attempt 1 in ") for line in run.said)
    assert any(line.startswith("lost: ") for line in run.said)
    run.server.close(1000)
    run.end()
    assert run.said[-1] == "DISCONNECTED"


def shows_a_connection(run: Run) -> None:
    run.end()
    assert run.said[0].startswith("CONNECTED (('")


def works(run: Run) -> None:
    run.end()
    assert sorted(run.said) == sorted(f"worked on {number}" for number in range(10))


def counts(run: Run) -> None:
    run.end()
    assert 0 < float(run.said[0]) < SOON
    sent, reconnects, latency = run.said[1].split()
    assert (sent, reconnects) == ("0", "0")
    assert float(latency) == float(run.said[0])


def is_a_service(run: Run) -> None:
    run.end()
    assert run.said in ([], ["I am a service"])
    # The server answers a close on another thread than it records messages on.
    assert run.server.wait_for_messages() == run.server.messages == ["I am a service"]


def makes_clients(run: Run) -> None:
    run.end()
    assert run.server.connections == 0


def decides(run: Run) -> None:
    run.end()
    policy = run.names["policy"]
    assert policy.should_retry(None, 4001) is True
    assert policy.should_retry(None, 1000) is None


def asks_for_headers(run: Run) -> None:
    run.end()
    with run.names["client"]:
        assert run.names["headers"]() == {"Authorization": "Bearer fresh"}


def answers(run: Run) -> None:
    run.says("question")


def over_a_unix_socket(run: Run) -> None:
    run.end()
    run.names["connected"].close()


def patient(run: Run) -> None:
    run.end()
    delegate = run.names["Patient"]()
    client = wsthread.WebSocketClient(run.server.url, delegate)
    client.send("before it is open")
    client.connect()
    assert run.server.wait_for_messages(1) == ["before it is open"]
    client.disconnect()
    delegate.on_unsent(client, "too late", wsthread.NotConnected())  # refused, logged, no error


PROGRAMS: Dict[Tuple[str, int], Callable[[Run], None]] = {
    ("README.md", 0): prints_the_echo,
    ("compression.rst", 0): makes_clients,
    ("faq.rst", 0): asks_for_headers,
    ("faq.rst", 1): answers,
    ("faq.rst", 2): ends_by_itself,
    ("faq.rst", 3): over_a_unix_socket,
    ("faults.rst", 0): ends_by_itself,
    ("index.rst", 0): prints_the_echo,
    ("proxies.rst", 0): makes_clients,
    ("proxies.rst", 1): makes_clients,
    ("reconnecting.rst", 0): makes_clients,
    ("reconnecting.rst", 1): decides,
    ("reconnecting.rst", 2): patient,
    ("security.rst", 0): makes_clients,
    ("tutorial.rst", 0): says(GREETING),
    ("tutorial.rst", 1): says("received first", "received second", "closed 1000"),
    ("tutorial.rst", 2): refused,
    ("tutorial.rst", 3): comes_back,
    ("tutorial.rst", 4): shows_a_connection,
    ("tutorial.rst", 5): ends_by_itself,
    ("tutorial.rst", 6): works,
    ("tutorial.rst", 7): is_a_service,
    ("tutorial.rst", 8): counts,
}


@pytest.fixture
def logs_as_before() -> Iterator[None]:
    loggers = [logging.getLogger(), logging.getLogger("wsthread.frames")]
    levels = [logger.level for logger in loggers]
    handlers = list(loggers[0].handlers)
    yield
    for logger, level in zip(loggers, levels):
        logger.setLevel(level)
    loggers[0].handlers[:] = handlers


@pytest.mark.usefixtures("logs_as_before")
@pytest.mark.parametrize(("page", "number"), sorted(PROGRAMS))
def test_a_program_of_a_page(page: str, number: int, tmp_path: Path) -> None:
    path = next(path for path in PAGES if path.name == page)
    listening = socket.socket(socket.AF_UNIX)
    with listening, LocalServer() as server:
        listening.bind(str(tmp_path / "socket"))
        listening.listen()
        names = {
            "__name__": "program",
            "delegate": wsthread.CallbackDelegate(),
            "fresh_token": lambda: "fresh",
            "logging": logging,
            "path": str(tmp_path / "socket"),
            "url": server.url,
            "wsthread": wsthread,
        }
        with Run(server, python_blocks(path)[number], names) as run:
            PROGRAMS[page, number](run)


def test_no_program_of_a_page_is_left_out() -> None:
    shown = {
        (path.name, number)
        for path in PAGES
        if path.name not in ELSEWHERE
        for number in range(len(python_blocks(path)))
    }
    assert shown == set(PROGRAMS)


# What is typed at a shell.


def commands() -> List[Tuple[str, str]]:
    found = []
    for path in PAGES:
        page = path.read_text(encoding="utf-8")
        lines = re.findall(r"^ +\$ (.+)$", page, re.MULTILINE)
        if path.suffix == ".md":
            lines = re.findall(r"^    ((?:python|wsthread|echo) .+)$", page, re.MULTILINE)
        found += [(path.name, line) for line in lines]
    return found


COMMANDS = commands()


def of_kind(*starts: str) -> List[Any]:
    return [
        pytest.param(command, id=f"{page}: {command}")
        for page, line in COMMANDS
        for command in re.split(r" && | \| ", line)
        if command.startswith(starts)
    ]


def test_every_command_is_of_a_kind_that_is_tested() -> None:
    known = ("python -m ", "wsthread ", "echo ", "jq ")
    odd = [
        line
        for _, line in COMMANDS
        for command in re.split(r" && | \| ", line)
        if not command.startswith(known)
    ]
    assert COMMANDS
    assert not odd


@pytest.mark.parametrize("command", of_kind("python -m pip install"))
def test_what_is_installed_exists(command: str) -> None:
    import configparser  # noqa: PLC0415

    metadata = configparser.ConfigParser()
    metadata.read(ROOT / "setup.cfg", encoding="utf-8")
    words = shlex.split(command)[4:]
    if "-r" in words:
        assert (ROOT / words[words.index("-r") + 1]).is_file()
    extras = re.findall(r"\[([\w,]+)\]", command)
    for extra in ",".join(extras).split(","):
        assert not extra or extra in metadata["options.extras_require"]


@pytest.mark.parametrize("command", of_kind("wsthread "))
def test_a_command_line_is_understood(command: str) -> None:
    """Its options are right: with a URL that leads nowhere it fails to connect, not to parse."""
    words = shlex.split(re.split(" [<>&]", command)[0])[1:]
    words = [
        "ws://127.0.0.1:1/" if word.startswith(("ws://", "wss://")) else word for word in words
    ]
    expected = 1
    if words[0] == "echo-server":
        words, expected = [*words, "--help"], 0
    done = subprocess.run(
        [sys.executable, "-m", "wsthread", *words],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=SOON * 3,
        check=False,
    )
    assert done.returncode == expected, done.stderr


@pytest.mark.parametrize("command", of_kind("python -m tests", "python -m wsthread"))
def test_a_module_has_the_options(command: str) -> None:
    words = [*shlex.split(command)[1:], "--help"]
    done = subprocess.run(
        [sys.executable, *words],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=SOON * 3,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for option in re.findall(r" (--[\w-]+)", command):
        assert option in done.stdout.decode()
