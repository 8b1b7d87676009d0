"""Odd peers, odd users and odd moments that no other test has."""

from __future__ import annotations

import contextlib
import functools
import gc
import os
import socket
import ssl
import sys
import threading
import time
import weakref
from pathlib import Path
from typing import Any, Callable, Iterator, List, Optional

import pytest

import wsthread
from tests.support import (
    SOON,
    Certificates,
    RawConnection,
    RawServer,
    close_frame,
    echo_server,
    frame,
)
from wsthread import opening
from wsthread.testing import RecordingDelegate
from wsthread.transport import READ, Poller, Transport, Waker


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with echo_server() as url:
        yield url


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + SOON
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.005)


def quick(url: str, delegate: Optional[object] = None, **options: Any) -> wsthread.WebSocketClient:
    return wsthread.WebSocketClient(url, delegate, **{"reconnect": False, **options})


def welcome(connection: RawConnection) -> None:
    """A server that does as it should and says nothing."""
    connection.upgrade()
    connection.answer_close()


@contextlib.contextmanager
def without_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@pytest.fixture
def transports(monkeypatch: pytest.MonkeyPatch) -> List[weakref.ref[Any]]:
    """The transports that are made."""
    made: List[weakref.ref[Any]] = []
    original = Transport.__init__

    def noted(transport: Transport, sock: socket.socket) -> None:
        made.append(weakref.ref(transport))
        original(transport, sock)

    monkeypatch.setattr(Transport, "__init__", noted)
    return made


@pytest.fixture
def unraisable(monkeypatch: pytest.MonkeyPatch) -> List[Any]:
    """What was raised where nobody could catch it: in __del__."""
    found: List[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda args: found.append(args.exc_value))
    return found


# Arguments.


@pytest.mark.parametrize("arguments", [((), {}), (("ws://127.0.0.1/",), {"nonsense": 1})], ids=str)
def test_a_constructor_that_was_not_entered_makes_no_noise(
    arguments: Any, unraisable: List[Any]
) -> None:
    with pytest.raises(TypeError):
        wsthread.WebSocketClient(*arguments[0], **arguments[1])
    gc.collect()
    assert unraisable == []


@pytest.mark.parametrize("subprotocols", ["chat", b"chat"])
def test_one_subprotocol_is_not_a_sequence_of_letters(subprotocols: Any) -> None:
    with pytest.raises(TypeError, match="subprotocols"):
        wsthread.WebSocketClient("ws://127.0.0.1/", subprotocols=subprotocols)


def test_a_str_that_encodes_itself_otherwise_is_sent_as_its_text() -> None:
    class Odd(str):
        def encode(self, *args: Any) -> Any:
            return "not even bytes"

    frames: List[Any] = []

    def script(connection: Any) -> None:
        connection.upgrade()
        frames.append(connection.read_frame())
        connection.answer_close()

    recorder = RecordingDelegate()
    with RawServer(script) as server, quick(server.url, recorder) as client:
        client.send(Odd("text"))
        recorder.wait_for("sent")
        assert client.disconnect()
    assert frames == [(1, b"text")]
    assert recorder.of("error") == []


# Times that are finite, and longer than the system can wait.


@pytest.mark.parametrize(
    "seconds", [3e6, threading.TIMEOUT_MAX * 2, sys.float_info.max, 10**400], ids=range(4)
)
def test_any_finite_time_is_a_time(url: str, seconds: float) -> None:
    names = ("connect", "close", "send", "ping")
    times = {f"{name}_timeout": seconds for name in names}
    recorder = RecordingDelegate()
    client = quick(url, recorder, ping_interval=seconds, open_grace=seconds, **times)
    client.connect(timeout=seconds)
    client.connect()
    client.send("one", timeout=seconds)
    client.send("two")
    client.flush(timeout=seconds)
    client.flush()
    assert client.ping(timeout=seconds) < SOON
    assert client.ping(b"again") < SOON
    recorder.wait_for("message", count=2)
    waiting = threading.Thread(target=client.wait, args=(seconds,))
    waiting.start()
    assert client.disconnect(timeout=seconds)
    waiting.join(SOON)
    assert not waiting.is_alive()
    client.connect()
    assert client.disconnect()
    client.connect()
    client.abort()
    assert client.state is wsthread.ConnectionState.DISCONNECTED
    assert recorder.of("error") == []


# No descriptors left.


@contextlib.contextmanager
def descriptors_left(count: int) -> Iterator[None]:
    """Leave this process `count` free descriptors."""
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = [os.dup(0)]
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(taken) + 64, limits[1]))
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.dup(0))
        for _ in range(count):
            os.close(taken.pop())
        yield
    finally:
        while taken:
            os.close(taken.pop())
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


@pytest.mark.parametrize("count", range(2 if hasattr(os, "eventfd") else 3))
def test_without_descriptors_connect_fails_in_order(
    count: int, unraisable: List[Any], caplog: Any
) -> None:
    """The wake-up takes one or two, the connection one; a name may have to read files as well."""
    recorder = RecordingDelegate()
    client = quick("ws://127.0.0.1:9/", recorder)
    with descriptors_left(count), pytest.raises(wsthread.ConnectError, match="Too many open files"):
        client.connect()
    assert client.state is wsthread.ConnectionState.DISCONNECTED
    assert recorder.of("error") == []
    assert client.disconnect()
    gc.collect()
    assert (unraisable, caplog.records) == ([], [])
    with pytest.raises(wsthread.ConnectError, match="refused"):
        client.connect()


def test_without_descriptors_to_read_certificates_with_only_that_connection_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificates = Certificates()
    monkeypatch.setattr(opening, "_create_context", functools.cache(ssl.create_default_context))
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path / "none"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none"))  # as if it could not be opened
    with RawServer(welcome, certificates.server_context()) as server:
        with pytest.raises(wsthread.ConnectError, match="certificate"):
            quick(server.url).connect()
        monkeypatch.setenv("SSL_CERT_FILE", certificates.write_authority(tmp_path))
        for _ in range(2):
            with quick(server.url) as client:
                assert client.disconnect()
    assert opening._create_context.cache_info().hits == 1


# Ctrl-C at the worst of moments.


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
@pytest.mark.parametrize("runs", [False, True], ids=["not begun", "runs"])
@pytest.mark.parametrize("inline", [False, True], ids=["thread", "inline"])
def test_a_start_of_the_reader_that_is_interrupted_ends_the_life(
    url: str, monkeypatch: pytest.MonkeyPatch, runs: bool, inline: bool, error: Any
) -> None:
    dispatcher = wsthread.InlineDispatcher() if inline else None
    recorder = RecordingDelegate()
    client = quick(url, recorder, dispatcher=dispatcher)
    begun: List[threading.Thread] = []
    start = threading.Thread.start

    def interrupted(thread: threading.Thread) -> None:
        if not thread.name.startswith("wsthread-reader"):
            return start(thread)
        begun.append(thread)
        if runs:
            start(thread)
        raise error

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with pytest.raises(error):
        client.connect()
    assert client.wait(SOON)
    assert client.state is wsthread.ConnectionState.DISCONNECTED
    client.disconnect()
    monkeypatch.undo()
    if not runs:
        start(begun[0])  # one that was on its way all the same finds nothing to do
        begun[0].join(SOON)
    client.connect()
    client.send("one")
    assert recorder.wait_for("message") == ("message", "one")
    assert client.disconnect()


@pytest.mark.parametrize("sent", [False, True])
def test_a_wake_up_that_is_interrupted_does_not_silence_the_next(sent: bool) -> None:
    waker = Waker()

    class Interrupting:
        def __init__(self, sock: Any) -> None:
            self.sock = sock

        def send(self, data: bytes) -> None:
            waker._writer = self.sock
            if sent:
                self.sock.send(data)
            raise KeyboardInterrupt

    waker._writer = Interrupting(waker._writer)  # type: ignore[assignment]
    with pytest.raises(KeyboardInterrupt):
        waker.wake()
    poller = Poller()
    poller.watch(waker.fileno(), READ)
    for _ in range(3):
        waker.wake()
        assert poller.wait(SOON) == {waker.fileno(): READ}
        waker.drain()
    assert poller.wait(0) == {}


# TLS records and TCP segments.


class Segments:
    """A server's TLS over memory: a test says what goes out in one piece."""

    def __init__(self, connection: RawConnection, context: ssl.SSLContext) -> None:
        self.sock = connection.sock
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)

    def _step(self, call: Callable[..., Any], *args: Any) -> Any:
        while True:
            try:
                return call(*args)
            except ssl.SSLWantReadError:
                self.flush()
                self._incoming.write(self.sock.recv(65536))

    def handshake(self) -> None:
        self._step(self._tls.do_handshake)

    def upgrade(self) -> None:
        head = b""
        while b"\r\n\r\n" not in head:
            head += self._step(self._tls.read, 65536)
        self.write(RawConnection.accept_head(None, head) + b"\r\n")  # type: ignore[arg-type]
        self.flush()

    def write(self, data: bytes) -> None:
        self._tls.write(data)

    def end(self) -> None:
        with contextlib.suppress(ssl.SSLWantReadError):
            self._tls.unwrap()

    def flush(self, behind: bytes = b"") -> None:
        self.sock.sendall(self._outgoing.read() + behind)

    def wait_for_the_end(self) -> None:
        """Leave TCP open until the client has ended it."""
        with contextlib.suppress(ConnectionError):
            while self.sock.recv(65536):
                pass


@pytest.mark.parametrize("paused", [False, True], ids=["reads", "paused"])
@pytest.mark.parametrize("closes", [False, True], ids=["no close frame", "close frame"])
@pytest.mark.parametrize("way", ["close_notify", "bad record"])
def test_the_end_of_tls_in_one_piece_with_the_last_message(
    way: str, closes: bool, paused: bool, transports: List[weakref.ref[Any]]
) -> None:
    """The message is not lost, and the end is noticed although TCP stays open."""
    certificates = Certificates()

    def script(connection: RawConnection) -> None:
        tls = Segments(connection, certificates.server_context())
        tls.handshake()
        tls.upgrade()
        tls.write(frame(1, b"one") + frame(1, b"last"))
        if closes:
            tls.write(close_frame(1008, "bye"))
        if way == "close_notify":
            tls.end()
        tls.flush(b"\x17\x03\x03\x00\x20" + bytes(32) if way == "bad record" else b"")
        tls.wait_for_the_end()

    recorder = RecordingDelegate()
    receive_queue = wsthread.QueueLimit(messages=1 if paused else 100)
    with without_collector(), RawServer(script) as server:
        client = quick(
            server.url.replace("ws:", "wss:"),
            recorder,
            ssl_context=certificates.client_context(),
            receive_queue=receive_queue,
        )
        client.connect()
        assert client.wait(SOON)
        assert [transport() for transport in transports] == [None]
    assert recorder.messages() == ["one", "last"]
    assert recorder.of("close") == [("close", 1008, "bye") if closes else ("close", 1006, "")]
    assert len(recorder.of("error")) == 1


def test_an_answer_in_one_piece_with_the_end_of_the_tls_handshake() -> None:
    """Of a server that does not wait for the request, because it refuses anyway."""
    certificates = Certificates()

    def script(connection: RawConnection) -> None:
        context = certificates.server_context()
        context.maximum_version = ssl.TLSVersion.TLSv1_2  # there the server's part ends last
        tls = Segments(connection, context)
        tls.handshake()
        tls.write(b"HTTP/1.1 503 Busy\r\nContent-Length: 4\r\n\r\nlate")
        tls.flush()
        tls.wait_for_the_end()

    with RawServer(script) as server:
        client = quick(server.url.replace("ws:", "wss:"), ssl_context=certificates.client_context())
        with pytest.raises(wsthread.HandshakeError) as caught:
            client.connect()
    assert (caught.value.status, caught.value.body) == (503, b"late")
