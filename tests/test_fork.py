"""Promise 17: a forked child's copy is inert, the parent goes on undisturbed."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import textwrap
import threading
import time
from typing import Any, Callable, List, Optional

import pytest

import wsthread
from tests.support import (
    SOON,
    Background,
    Certificates,
    RawConnection,
    RawServer,
    black_hole,
    echo_server,
    frame,
)
from wsthread import opening, tcp
from wsthread.outbox import Outbox
from wsthread.testing import RecordingDelegate

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system"),
    # Forking with threads is what this is about.
    pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning"),
]


def in_child(check: Callable[[], None]) -> None:
    """Run `check` in a forked child, bounded; what it raises fails the test."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            threading.Timer(SOON, lambda: os._exit(3)).start()
            check()
            status = 0
        except BaseException as error:
            os.write(2, f"in the child: {error!r}\n".encode())
        finally:
            os._exit(status)
    deadline = time.monotonic() + 2 * SOON
    while time.monotonic() < deadline:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            assert status == 0, f"status {status}"
            return
        time.sleep(0.005)
    os.kill(child, 9)
    os.waitpid(child, 0)
    raise AssertionError("the child hangs")


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
@pytest.mark.parametrize("kind", ["default", "inline", "shared", "pump"])
def test_promise_17_fork(tls: bool, kind: str, tmp_path: Any) -> None:
    certificates = Certificates()
    dispatcher: Optional[wsthread.Dispatcher] = {
        "default": lambda: None,
        "inline": wsthread.InlineDispatcher,
        "shared": wsthread.ThreadDispatcher,
        "pump": wsthread.PumpDispatcher,
    }[kind]()
    recorder = RecordingDelegate()

    def wait_for(name: str, count: int) -> Any:
        if isinstance(dispatcher, wsthread.PumpDispatcher):
            deadline = time.monotonic() + SOON
            while len(recorder.of(name)) < count and time.monotonic() < deadline:
                dispatcher.run_pending()
        return recorder.wait_for(name, count=count)

    with echo_server(certificates.write(tmp_path) if tls else None) as url:
        client = wsthread.WebSocketClient(
            url,
            recorder,
            dispatcher=dispatcher,
            ssl_context=certificates.client_context() if tls else None,
        )
        client.connect()
        client.send("before")
        wait_for("message", count=1)
        held = client._session
        assert held is not None and held._connection is not None
        descriptor = held._connection.transport.fileno()
        # Locks that another thread holds at the moment of the fork stay held in the child.
        locks = [client._lock, held.outbox.lock, client.mailbox._lock]

        def check() -> None:
            assert client.state is wsthread.ConnectionState.DISCONNECTED
            with pytest.raises(OSError):
                os.fstat(descriptor)
            with pytest.raises(wsthread.NotConnected):
                client.send("from the child")
            assert client.disconnect() and client.wait(1)
            seen = len(recorder.events)
            client.connect()
            client.send("child")
            count = len([event for event in recorder.events[:seen] if event[0] == "message"])
            assert wait_for("message", count=count + 1) == ("message", "child")
            assert client.disconnect()

        held_now, done = threading.Event(), threading.Event()
        holder = threading.Thread(target=hold, args=(locks, held_now, done))
        holder.start()
        try:
            assert held_now.wait(SOON)
            in_child(check)
        finally:
            done.set()
            holder.join(SOON)
        client.send("after")
        wait_for("message", count=2)
        assert recorder.messages() == ["before", "after"]
        assert "close" not in recorder.names()
        assert client.disconnect()
        if dispatcher is not None:
            dispatcher.close()


def hold(locks: Any, held: threading.Event, done: threading.Event) -> None:
    with contextlib.ExitStack() as stack:
        for lock in locks:
            stack.enter_context(lock)
        held.set()
        done.wait(SOON * 3)


@pytest.mark.parametrize("kind", ["default", "inline", "shared", "pump"])
def test_promise_17_fork_in_a_callback_that_returns_in_the_child(kind: str) -> None:
    """What goes on in the child is a copy of the thread that ran the callback; it ends quietly."""
    script = textwrap.dedent(CALLBACK_THAT_FORKS)
    with echo_server() as url:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", script, url, kind],
            capture_output=True,
            text=True,
            timeout=4 * SOON,
        )
    assert (done.stdout, done.stderr, done.returncode) == (CHILD_AND_PARENT, "", 0)


CHILD_AND_PARENT = "closed in the parent\nchild 0 ['fork', 'after'] True\n"
CALLBACK_THAT_FORKS = """
    import os, sys, time
    import wsthread

    url, kind = sys.argv[1:]
    dispatcher = {
        "default": lambda: None,
        "inline": wsthread.InlineDispatcher,
        "shared": wsthread.ThreadDispatcher,
        "pump": wsthread.PumpDispatcher,
    }[kind]()
    parent, child, seen = os.getpid(), None, []

    def on_message(client, message):
        global child
        if message == "fork":
            child = os.fork()
        seen.append(message)

    def on_close(client, code, reason):
        print("closed in the", "parent" if os.getpid() == parent else "child", flush=True)

    def until(count):
        deadline = time.monotonic() + 10
        while len(seen) < count and time.monotonic() < deadline:
            if kind == "pump":
                dispatcher.run_pending()
            time.sleep(0.005)

    delegate = wsthread.CallbackDelegate(on_message=on_message, on_close=on_close)
    client = wsthread.WebSocketClient(url, delegate, dispatcher=dispatcher, reconnect=False)
    client.connect()
    client.send("fork")
    until(1)
    if child == 0:  # where the main thread pumps; elsewhere the child ends with the callback's
        os._exit(int(not client.disconnect()))
    status = os.waitpid(child, 0)[1]
    client.send("after")
    until(2)
    print("child", status, seen, client.disconnect(), flush=True)
"""


def test_promise_17_a_fork_while_opening_closes_nobody_elses(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An attempt that has lost the race is closed; its number may be somebody else's by now."""
    inside, go_on = threading.Event(), threading.Event()
    context = opening._default_context

    def slow() -> Any:
        inside.set()
        assert go_on.wait(SOON)
        return context()

    monkeypatch.setattr(opening, "_default_context", slow)
    with black_hole() as nowhere, socket.create_server(("127.0.0.1", 0)) as listener:
        addresses = [(socket.AF_INET, nowhere), (socket.AF_INET, listener.getsockname())]
        monkeypatch.setattr(tcp, "resolve", lambda *_: addresses)
        client = wsthread.WebSocketClient("wss://example.org/", reconnect=False, proxy=None)
        client.connect(wait=False)
        assert inside.wait(SOON)
        ours = [descriptor for _ in range(3) for descriptor in os.pipe()]

        def check() -> None:
            for descriptor in ours:
                os.fstat(descriptor)

        in_child(check)
        for descriptor in ours:
            os.close(descriptor)
        go_on.set()
        client.abort()


def test_promise_17_a_fork_while_a_sender_holds_the_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before there was a connection: what waits is the parent's to send."""
    client = wsthread.WebSocketClient("ws://127.0.0.1:9/", reconnect=False)
    client.send("the parent's")
    inside, go_on = threading.Event(), threading.Event()
    accept = Outbox._accept

    def slow(*arguments: Any) -> None:
        inside.set()
        assert go_on.wait(SOON)
        accept(*arguments)

    monkeypatch.setattr(Outbox, "_accept", slow)
    thread = Background(client.send, "the parent's too")
    assert inside.wait(SOON)
    monkeypatch.setattr(Outbox, "_accept", accept)

    def check() -> None:
        client.send("the child's")
        assert client.pending == 1

    in_child(check)
    go_on.set()
    thread.result(SOON)
    assert client.pending == 2


@pytest.mark.parametrize("anew", [False, True])
def test_promise_17_a_fork_in_a_callback_leaves_its_batch_and_count_to_the_parent(
    anew: bool,
) -> None:
    child: List[int] = []
    got: List[Any] = []
    pump = wsthread.PumpDispatcher()

    class Forks:
        def on_message(self, client: Any, message: Any) -> None:
            got.append(message)
            if not child:
                child.append(os.fork())
                if anew and child == [0]:
                    client.mailbox.changed = False  # as callbacks of a new life do

    def script(connection: RawConnection) -> None:
        connection.upgrade()
        connection.sock.sendall(frame(1, b"message") * 5)
        connection.answer_close()

    with RawServer(script) as server:
        client = wsthread.WebSocketClient(server.url, Forks(), dispatcher=pump, reconnect=False)
        client.connect()
        deadline = time.monotonic() + SOON
        while not child and time.monotonic() < deadline:
            pump.run_pending()
        if child == [0]:
            stats = client.stats
            counted = (stats.receive_queue_messages, stats.receive_queue_bytes)
            os._exit(int(counted != (0, 0) or len(got) != 1))
        assert os.waitpid(child[0], 0)[1] == 0
        assert client.disconnect()
    pump.close()
