"""What every test must leave behind: nothing. And when the long tests run."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path
from typing import Dict, Iterator, List, Set

import hypothesis
import pytest

from tests.node_server import ws_package  # noqa: F401 - a fixture for every module

GRACE = 2.0
THOROUGH_TIMEOUT = 900

hypothesis.settings.register_profile("dev", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "dev")

call_reports = pytest.StashKey[pytest.CallInfo]()


def pytest_configure(config: pytest.Config) -> None:
    # A shell starts background jobs with SIGINT ignored, and their children inherit that:
    # tests of Ctrl-C need it as in a terminal.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # The proxies of whoever runs the tests are not for the tests' servers, nor for the
    # processes that tests start.
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        del os.environ[name]


def pytest_collection_modifyitems(config: pytest.Config, items: List[pytest.Item]) -> None:
    asked = "thorough" in config.option.markexpr or os.environ.get("WSTHREAD_THOROUGH") == "1"
    chosen = []
    for item in items:
        if item.get_closest_marker("thorough"):
            if not asked and not any("::" in argument for argument in config.args):
                continue
            if not item.get_closest_marker("timeout"):
                item.add_marker(pytest.mark.timeout(THOROUGH_TIMEOUT))
        chosen.append(item)
    if len(chosen) < len(items):
        config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
        items[:] = chosen


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]):  # type: ignore
    report = yield
    if report.when == "call":
        item.stash[call_reports] = report
    return report


def threads() -> Set[threading.Thread]:
    return {
        thread
        for thread in threading.enumerate()
        if thread.name.startswith("wsthread-") and not thread.name.startswith("wsthread-helper")
    }


def sockets() -> Dict[str, str]:
    """The open sockets of this process, as their inode by descriptor (empty off Linux)."""
    found = {}
    directory = Path("/proc/self/fd")
    for entry in os.listdir(directory) if directory.is_dir() else ():
        try:
            target = os.readlink(directory / entry)
        except OSError:
            continue  # the descriptor of the listing itself, or closed since
        if target.startswith("socket:"):
            found[entry] = target
    return found


def children() -> Dict[int, str]:
    """The child processes, dead ones not waited for included (empty off Linux)."""
    multiprocessing.active_children()  # reaps those that have ended
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
            command = (stat.parent / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue  # gone since
        # multiprocessing keeps these helpers until the interpreter ends.
        helper = "multiprocessing.resource_tracker" in command or "forkserver" in command
        if int(fields[1]) == os.getpid() and not helper:
            found[int(stat.parent.name)] = command or "(dead, not waited for)"
    return found


class Snapshot:
    def __init__(self) -> None:
        self.threads = threads()
        self.sockets = sockets()
        self.children = children()

    def leftovers(self) -> List[str]:
        """Say what is there now and was not there then."""
        more_sockets = len(sockets()) - len(self.sockets)
        left = [f"thread {thread.name}" for thread in threads() - self.threads]
        if more_sockets > 0:
            left.append(f"open sockets: {more_sockets}")
        left += [
            f"process {pid}: {command}"
            for pid, command in children().items()
            if pid not in self.children
        ]
        return left


@pytest.fixture
def hangups() -> Iterator[None]:
    """Let SIGHUP end processes that a test starts, also where nohup started the tests."""
    previous = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, previous)


@pytest.fixture(autouse=True)
def nothing_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that leaves a thread of the library, a socket or a process behind.

    Ends may be under way when a test ends (a server's side of a connection): they get GRACE
    seconds. Set up before every other fixture of a test, so it looks after they are gone.
    """
    before = Snapshot()
    yield
    report = request.node.stash.get(call_reports, None)
    if report is not None and report.failed:
        return  # its traceback holds what it used; one failure is enough
    left = before.leftovers()
    if left:
        gc.collect()  # pytest.raises and the like keep frames in cycles
    deadline = time.monotonic() + GRACE
    while left and time.monotonic() < deadline:
        time.sleep(0.02)
        left = before.leftovers()
    if left:
        pytest.fail("left behind: " + ", ".join(sorted(left)), pytrace=False)
