"""`wsthread.testing`: what users test their delegates with."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import textwrap
import threading
import time
from importlib.metadata import distributions
from pathlib import Path
from typing import Any, Dict

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

import wsthread
from tests.support import SOON, Background
from wsthread.testing import LocalServer, RecordingDelegate

ROOT = Path(__file__).resolve().parent.parent


def client_of(server: LocalServer, delegate: object, **options: Any) -> wsthread.WebSocketClient:
    options.setdefault("ssl_context", server.ssl_context)
    return wsthread.WebSocketClient(server.url, delegate, **options)


class Shouting(wsthread.WebSocketDelegate):
    """A delegate under test."""

    def on_open(self, client: wsthread.WebSocketClient) -> None:
        client.send("hello")

    def on_message(self, client: wsthread.WebSocketClient, message: Any) -> None:
        if message == "hello":
            client.send("HELLO")
        elif message == "fail":
            raise LookupError("no such thing")


# The delegate.


def test_a_delegate_under_test_does_its_work_and_everything_is_recorded() -> None:
    recorder = RecordingDelegate(Shouting())
    with LocalServer() as server, client_of(server, recorder) as client:
        assert recorder.wait_for("message", "HELLO") == ("message", "HELLO")
        client.disconnect(1000, "done")
    assert server.messages == ["hello", "HELLO"]
    assert recorder.states() == ["CONNECTING", "CONNECTED", "CLOSING", "DISCONNECTED"]
    assert recorder.messages() == ["hello", "HELLO"]
    assert recorder.of("close") == [("close", 1000, "done")]
    assert recorder.of("sent", "open") == [("open",), ("sent", "hello"), ("sent", "HELLO")]
    assert recorder.names()[-2:] == ["close", "state"]
    assert {thread.name for thread in recorder.threads} == {"wsthread-dispatcher"}
    recorder.clear()
    assert recorder.events == recorder.threads == []


def test_what_the_delegate_under_test_raises_is_an_error_event() -> None:
    recorder = RecordingDelegate(Shouting())
    with LocalServer(reply=lambda _: None) as server, client_of(server, recorder):
        server.wait_for_messages()
        server.send("fail")
        error = recorder.wait_for("error")[1]
    assert isinstance(error, LookupError)
    assert recorder.messages() == ["fail"]


def test_an_event_is_recorded_once_the_delegate_under_test_is_done_with_it() -> None:
    released, seen = threading.Event(), threading.Event()

    class Slow(wsthread.WebSocketDelegate):
        def on_message(self, client: Any, message: Any) -> None:
            seen.set()
            assert released.wait(SOON)

    recorder = RecordingDelegate(Slow())
    with LocalServer(greeting=["one"]) as server, client_of(server, recorder):
        assert seen.wait(SOON)
        assert recorder.messages() == []
        released.set()
        recorder.wait_for("message", "one")


def test_fragments_are_recorded_only_where_the_delegate_under_test_has_them() -> None:
    class Fragments:
        def on_fragment(self, client: Any, data: Any, opcode: int, final: bool) -> None:
            """Alone, it gets no messages either."""

    for delegate, expected in (
        (None, [("message", "abc")]),
        (Shouting(), [("message", "abc")]),
        (Fragments(), [("fragment", "abc", 1, True)]),
    ):
        recorder = RecordingDelegate(delegate)
        with LocalServer(greeting=["abc"]) as server, client_of(server, recorder):
            recorder.wait_for(expected[0][0])
        assert recorder.of("message", "fragment")[:1] == expected


def test_every_callback_is_passed_on_and_recorded() -> None:
    calls: Dict[str, int] = {}

    class Everything:
        def __getattr__(self, name: str) -> Any:
            if not name.startswith("on_") or name == "on_fragment":
                raise AttributeError(name)
            return lambda *_: calls.update({name: calls.get(name, 0) + 1})

    recorder = RecordingDelegate(Everything())
    policy = wsthread.Reconnect(delay=0.01, max_delay=0.01)
    with LocalServer() as server, client_of(server, recorder, reconnect=policy) as client:
        client.send("out")
        recorder.wait_for("message", "out")
        client.ping()
        recorder.wait_for("pong")
        server._connected()[0].ping()
        recorder.wait_for("ping")
        server.stop()
        recorder.wait_for("reconnect")
        client.send("kept")
    recorder.wait_for("unsent", "kept")
    recorder.wait_for("state", "DISCONNECTED")
    seen = {"on_state_change" if name == "state" else f"on_{name}" for name in recorder.names()}
    assert set(calls) == seen
    callbacks = {name for name in dir(wsthread.WebSocketDelegate) if name.startswith("on_")}
    assert seen == callbacks - {"on_fragment"}


def test_waiting_in_vain_tells_what_happened_instead() -> None:
    recorder = RecordingDelegate()
    recorder.record("message", "other")
    with pytest.raises(TimeoutError, match=r"0 of 1 \('message', 'this'\) in .*'other'"):
        recorder.wait_for("message", "this", timeout=0)
    recorder.record("message", "this")
    with pytest.raises(TimeoutError, match="1 of 2"):
        recorder.wait_for("message", "this", count=2, timeout=0.01)
    assert recorder.wait_for("message", count=2) == ("message", "this")


def test_who_waits_is_woken_by_the_event() -> None:
    recorder = RecordingDelegate()
    waits = Background(lambda: recorder.wait_for("mine", count=3))
    for number in range(3):
        recorder.record("mine", number)
    assert waits.result() == ("mine", 2)


# The server.


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_it_echoes_and_leaves_nothing(tls: bool) -> None:
    before = threading.active_count()
    with LocalServer(tls=tls) as server:
        assert server.url.startswith("wss://127." if tls else "ws://127.")
        for message in ("text", b"binary", "x" * 100_000):
            recorder = RecordingDelegate()
            with client_of(server, recorder) as client:
                client.send(message)
                recorder.wait_for("message", message)
        assert server.connections == 3
        assert server.wait_for_messages(3)[:2] == ["text", b"binary"]
    assert threading.active_count() == before
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", int(server.url.split(":")[2].strip("/"))), SOON)


def test_replies_and_greetings_are_scripted() -> None:
    script = {"one": "1", "many": ["1", b"2"], "none": None}
    recorder = RecordingDelegate()
    with (
        LocalServer(script.get, greeting=["welcome"]) as server,
        client_of(server, recorder) as client,
    ):
        client.send_many(["one", "none", "many"])
        recorder.wait_for("message", count=4)
        assert recorder.messages() == ["welcome", "1", "1", b"2"]
        server.reply = lambda message: f"no {message}"
        client.send("more")
        recorder.wait_for("message", "no more")
        server.send("by itself", b"twice")
        recorder.wait_for("message", b"twice")
        recorder.wait_for("message", "by itself")


def test_a_reply_that_raises_closes_with_1011() -> None:
    recorder = RecordingDelegate()
    with LocalServer(lambda _: 1 / 0) as server, client_of(server, recorder) as client:  # type: ignore[arg-type, return-value]
        client.send("divide")
        assert recorder.wait_for("close")[1] == 1011


def test_a_delay_delays_and_does_not_keep_the_server() -> None:
    recorder = RecordingDelegate()
    with LocalServer(delay=0.2) as server, client_of(server, recorder) as client:
        begun = time.monotonic()
        client.send("slow")
        recorder.wait_for("message", "slow")
        assert time.monotonic() - begun >= 0.2
        server.delay = 3600
        client.send("never")
        server.wait_for_messages(2)


def test_a_server_that_goes_and_comes_back() -> None:
    recorder = RecordingDelegate()
    policy = wsthread.Reconnect(delay=0.01, max_delay=0.05)
    with LocalServer() as server, client_of(server, recorder, reconnect=policy):
        recorder.wait_for("open")
        server.stop()
        server.stop()
        assert recorder.wait_for("close")[1] == 1006
        recorder.wait_for("reconnect", count=2)
        server.start()
        recorder.wait_for("open", count=2)
        with pytest.raises(RuntimeError):
            server.start()
    server.stop()


def test_dropping_and_closing() -> None:
    recorder = RecordingDelegate()
    policy = wsthread.Reconnect(delay=0.01, max_delay=0.05, min_uptime=0)
    with LocalServer() as server, client_of(server, recorder, reconnect=policy) as client:
        for number in range(1, 4):
            recorder.wait_for("open", count=number)
            server.wait_for_connections(number)
            server.drop()
            assert recorder.wait_for("close", count=number)[1] == 1006
        recorder.wait_for("open", count=4)
        server.wait_for_connections(4)
        server.close(4000, "go away")
        assert recorder.wait_for("close", count=4) == ("close", 4000, "go away")
        client.disconnect()
    with pytest.raises(RuntimeError, match="no client"):
        server.send("nobody")


def test_it_refuses_until_it_accepts() -> None:
    with LocalServer() as server:
        server.refuse(401, {"WWW-Authenticate": "Basic"})
        with pytest.raises(wsthread.HandshakeError) as caught:
            client_of(server, None).connect()
        assert caught.value.status == 401
        assert ("www-authenticate", "basic") in {
            (name.lower(), value.lower()) for name, value in caught.value.headers
        }
        server.accept()
        with client_of(server, None):
            server.wait_for_connections()
    assert server.connections == 1


def test_subprotocols_are_agreed_to_in_order_of_preference() -> None:
    with LocalServer(subprotocols=["new", "old"]) as server:
        for offered, agreed in ((["old", "new"], "new"), (["old"], "old"), (["other"], None)):
            with client_of(server, None, subprotocols=offered) as client:
                assert client.subprotocol == agreed


def test_waiting_for_the_server_in_vain_tells_what_there_was() -> None:
    with LocalServer() as server:
        with pytest.raises(TimeoutError, match="no 1 connections"):
            server.wait_for_connections(timeout=0.01)
        with connect(server.url) as client:
            client.send("something else")
            server.wait_for_messages(1)
            with pytest.raises(TimeoutError, match="something else"):
                server.wait_for_messages(2, timeout=0.01)


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_clients_that_say_nothing_or_read_nothing_do_not_keep_it(tls: bool) -> None:
    before = threading.active_count()
    with LocalServer(tls=tls) as server:
        port = int(server.url.split(":")[2].strip("/"))
        silent = socket.create_connection(("127.0.0.1", port), SOON)
        took, released = threading.Event(), threading.Event()

        def take(client: Any, message: Any) -> None:
            took.set()
            assert released.wait(SOON)

        delegate = wsthread.CallbackDelegate(on_message=take)
        limit = wsthread.QueueLimit(messages=1)
        with client_of(server, delegate, receive_queue=limit) as client:
            server.wait_for_connections()
            flood = Background(server.send, *[b"x" * 1_000_000] * 50)
            assert took.wait(SOON)
            begun = time.monotonic()
            server.stop()
            assert time.monotonic() - begun < SOON / 2
            client.disconnect(wait=False)
            released.set()
        assert isinstance(flood.error(), ConnectionClosed)
    silent.close()
    assert threading.active_count() == before


def run_pytest(path: Path) -> str:
    """Run a file of tests as a user does; return what was printed."""
    options = ["-q", "-n0", "-p", "no:cacheprovider", "--rootdir", str(path.parent)]
    # Where it is installed, pytest finds the plugin by itself.
    installed = any(
        entry.value == "wsthread.pytest_plugin"
        for distribution in distributions()
        for entry in distribution.entry_points
    )
    plugin = [] if installed else ["-p", "wsthread.pytest_plugin"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *plugin, str(path)],
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.stdout + done.stderr


def test_pytest_has_the_fixtures(tmp_path: Path) -> None:
    test = """
        import pytest, wsthread

        def test_tls(wsthread_tls_server):
            server = wsthread_tls_server
            context = server.ssl_context
            with wsthread.WebSocketClient(server.url, None, ssl_context=context) as client:
                client.send("hello")
                assert server.wait_for_messages() == ["hello"]
            with pytest.raises(wsthread.ConnectError):
                wsthread.WebSocketClient(server.url, None).connect()

        def test_plain(wsthread_server):
            assert wsthread_server.url.startswith("ws://127.0.0.1:")
    """
    path = tmp_path / "test_fixtures.py"
    path.write_text(textwrap.dedent(test))
    assert "2 passed" in run_pytest(path)


def test_the_example_in_the_documentation() -> None:
    assert "3 passed" in run_pytest(ROOT / "docs" / "examples" / "test_delegate.py")
