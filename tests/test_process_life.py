"""Promises 3, 4 and 17: signal handlers, finalisers, forks and children, at any moment."""

from __future__ import annotations

import contextlib
import gc
import itertools
import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any, Callable, Iterator, List, Optional

import pytest

import wsthread
from tests.support import SOON, RawConnection, RawServer, echo_server, eventually
from wsthread.testing import RecordingDelegate

PACKAGE = os.path.dirname(wsthread.__file__)
ROOT = Path(__file__).resolve().parent.parent


def polite(connection: RawConnection) -> None:
    connection.upgrade()
    connection.answer_close()


# At any instruction: what a signal handler or a finaliser does runs between any two of them.


class At:
    """Runs a function, once, at the n-th bytecode instruction of the library on traced threads."""

    def __init__(self, number: int, function: Callable[[], Any]) -> None:
        self.ran = False
        self._number = number
        # next() is one step for all: a helper of the reader may be traced beside it.
        self._instructions = itertools.count()
        self._function = function
        self._inside = False

    def __call__(self, frame: Any, event: str, argument: Any) -> Any:
        if self.ran or self._inside or not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        frame.f_trace_opcodes = True
        if event == "opcode" and next(self._instructions) == self._number:
            self._inside = self.ran = True
            try:
                self._function()
            finally:
                self._inside = False
            return None
        return self


def instructions(thorough: int, quick: int) -> List[Any]:
    """The numbers of instructions at which to interrupt: some, or (thorough) all."""
    return [
        pytest.param(range(0, thorough, quick), id="some"),
        pytest.param(range(0, thorough), id="all", marks=pytest.mark.thorough),
    ]


def traced(at: At, function: Callable[[], Any]) -> None:
    before = sys.gettrace()
    # CPython 3.12 traces no instruction before some frame has asked for it.
    sys._getframe().f_trace_opcodes = True
    sys.settrace(at)
    try:
        function()
    finally:
        sys.settrace(before)


@contextlib.contextmanager
def collector_off() -> Iterator[None]:
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@pytest.mark.unmeasured
@pytest.mark.parametrize("numbers", instructions(1200, 17))
def test_promise_04_disconnect_in_a_signal_handler_at_any_instruction_of_send(
    numbers: range,
) -> None:
    """disconnect(wait=False) waits for nothing that the interrupted send() holds."""
    reached = 0
    with echo_server() as url:
        for number in numbers:
            recorder = RecordingDelegate()
            client = wsthread.WebSocketClient(url, recorder, close_timeout=SOON)
            client.connect()
            at = At(number, lambda: client.disconnect(wait=False))  # noqa: B023
            accepted = True
            try:
                traced(at, lambda: client.send("interrupted"))  # noqa: B023
            except wsthread.NotConnected:
                accepted = False
            reached += at.ran
            if not at.ran:
                client.disconnect(wait=False)
            assert client.wait(SOON), f"stuck at instruction {number}"
            assert client.close_code == 1000
            assert client.pending == 0
            outcomes = recorder.of("sent", "unsent")
            assert [event[1] for event in outcomes] == ["interrupted"] * accepted
            if not at.ran:
                break
    assert reached > 10, "the instructions of send() were not reached"


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # the reader of the other may see it last
@pytest.mark.unmeasured
@pytest.mark.parametrize("numbers", instructions(6000, 83))
def test_promise_03_a_finaliser_at_any_instruction_of_the_reader(numbers: range) -> None:
    """The collector may run one in our own locked regions: it asks this client, and drops one."""
    reached = 0
    with echo_server() as url:
        for number in numbers:
            recorder = RecordingDelegate()
            client = wsthread.WebSocketClient(url, recorder, close_timeout=SOON)
            cell = [wsthread.WebSocketClient(url)]
            cell[0].connect()
            reader = cell[0]._life.thread  # type: ignore[union-attr]

            def finalise() -> None:
                client.disconnect(wait=False)  # noqa: B023
                cell.pop()  # noqa: B023

            at = At(number, finalise)
            threading.settrace(at)
            try:
                client.connect(wait=False)
            finally:
                threading.settrace(None)  # type: ignore[arg-type]
            client_gone = False
            with contextlib.suppress(wsthread.NotConnected, wsthread.QueueFull):
                client.send("x")
            client_gone = client.wait(SOON if at.ran else 0.3)
            reached += at.ran
            if not at.ran:
                client.disconnect()
                cell.pop().disconnect()
                if not client_gone:
                    break
            assert client.wait(SOON), f"stuck at instruction {number}"
            reader.join(SOON)
            assert not reader.is_alive()
            assert recorder.states()[-1] == "DISCONNECTED"
            assert "error" not in recorder.names()
    assert reached > 10, "the instructions of the reader were not reached"


TERMINATED = """
import signal, sys, threading, wsthread
client = wsthread.WebSocketClient(sys.argv[1])
signal.signal(signal.SIGTERM, lambda number, frame: client.disconnect(wait=False))
client.connect()
print("ready", flush=True)
sent = 0
try:
    while True:
        client.send("x" * 1000)
        sent += 1
except wsthread.NotConnected:
    pass
assert client.wait(10)
assert client.close_code == 1000, client.error
print("ended", client.stats.messages_sent == sent, client.pending)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGTERM to handle")
def test_promise_04_sigterm_ends_a_program_that_sends_all_the_time() -> None:
    with echo_server() as url:
        for pause in (0.05, 0.13):
            process = subprocess.Popen(
                [sys.executable, "-W", "error", "-c", TERMINATED, url],
                cwd=ROOT,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            try:
                assert process.stdout is not None
                assert process.stdout.readline() == "ready\n"
                time.sleep(pause)  # any moment is as good as another
                process.send_signal(signal.SIGTERM)
                out, err = process.communicate(timeout=SOON * 2)
            finally:
                process.kill()
                process.wait()
            assert (process.returncode, err) == (0, "")
            assert out == "ended True 0\n"


# Children of the process.


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs /proc")
def test_promise_17_a_subprocess_inherits_no_descriptor() -> None:
    """Not even where the program keeps descriptors open on purpose."""
    silent = RawServer(lambda connection: connection.read_to_end() and None)
    with silent, echo_server() as url, wsthread.WebSocketClient(url) as client:
        connecting = wsthread.WebSocketClient(silent.url, dispatcher=wsthread.PumpDispatcher())
        connecting.connect(wait=False)
        eventually(lambda: silent.connections == 1)
        session: Any = client._session
        opening: Any = connecting._session
        pump: Any = connecting.mailbox.dispatcher

        def descriptors() -> List[int]:
            return [
                session._connection.transport.fileno(),
                session.waker._reader.fileno(),
                session.waker._writer.fileno(),
                *[sock.fileno() for sock in opening._waiter.sockets],
                pump.fileno(),
            ]

        eventually(lambda: len(descriptors()) == 5)  # the one that is connecting waits for its peer
        ours = {os.readlink(f"/proc/self/fd/{descriptor}") for descriptor in descriptors()}
        done = subprocess.run(
            ["ls", "-l", "/proc/self/fd"],
            close_fds=False,
            capture_output=True,
            text=True,
            check=True,
            timeout=SOON,
        )
        inherited = set(re.findall("-> (.*)", done.stdout))
        assert "/dev/null" in inherited or len(inherited) > 2
        assert not ours & inherited
        connecting.disconnect()
        connecting.mailbox.dispatcher.close()


def in_child(client: Any, results: Any, url: str) -> None:
    """What a forked worker sees of its parent's client, and what it can do with it."""
    found: List[Any] = [client.state.name]
    try:
        client.send("from the child")
    except wsthread.NotConnected:
        found.append("NotConnected")
    found.append(client.disconnect())
    own = RecordingDelegate()
    with wsthread.WebSocketClient(url, own) as mine:
        mine.send("own")
        found.append(own.wait_for("message")[1])
    results.put(found)


@pytest.mark.skipif(
    "fork" not in multiprocessing.get_all_start_methods(), reason="no fork on this system"
)
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_promise_17_multiprocessing_by_fork() -> None:
    context = multiprocessing.get_context("fork")
    recorder = RecordingDelegate()
    with echo_server() as url, wsthread.WebSocketClient(url, recorder) as client:
        results = context.SimpleQueue()
        workers = [context.Process(target=in_child, args=(client, results, url)) for _ in range(3)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(SOON * 2)
            assert worker.exitcode == 0
            worker.close()
        for _ in workers:
            assert results.get() == ["DISCONNECTED", "NotConnected", True, "own"]
        results.close()
        client.send("the parent goes on")
        assert recorder.wait_for("message") == ("message", "the parent goes on")
        recorder.wait_for("sent")
        assert recorder.names()[:3] == ["state", "state", "open"]
        assert sorted(recorder.names()[3:]) == ["message", "sent"]


APPLICATION = """
import os, wsthread
client = wsthread.WebSocketClient(os.environ["PEER"])
client.connect()  # in the master: the application is loaded before the fork
master = os.getpid()

def application(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"{os.getpid() != master} {client.state.name}".encode()]
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_promise_17_a_server_that_forks_its_workers(tmp_path: Path) -> None:
    """gunicorn, sync workers, the client opened before the fork: the workers' copies are inert."""
    pytest.importorskip("gunicorn")
    (tmp_path / "application.py").write_text(APPLICATION)
    ended: List[Optional[bytes]] = []
    begun = threading.Event()

    def parent(connection: RawConnection) -> None:
        connection.upgrade()
        begun.set()
        try:
            ended.append(b"%d" % connection.answer_close()[0])
        except EOFError:
            ended.append(None)

    with RawServer(parent) as peer, socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        os.set_inheritable(listener.fileno(), True)
        script = "import sys; from gunicorn.app.wsgiapp import run; sys.exit(run())"
        options = ["--preload", "--workers", "2", "--bind", f"fd://{listener.fileno()}"]
        process = subprocess.Popen(
            [sys.executable, "-c", script, *options, "--log-level", "warning", "application"],
            cwd=tmp_path,
            env={
                **os.environ,
                "PEER": peer.url,
                "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]),
            },
            pass_fds=[listener.fileno()],
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            assert begun.wait(SOON)
            for _ in range(6):
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=SOON) as answer:
                    assert answer.read() == b"True DISCONNECTED"
            assert ended == [], "the parent's connection goes on"
        finally:
            process.terminate()
            _, stderr = process.communicate(timeout=SOON * 2)
        assert "Traceback" not in stderr, stderr
        eventually(lambda: ended == [b"1001"])
