"""Promises 9 to 12: what is sent, in which order, how far, and what becomes of the rest."""

from __future__ import annotations

import contextlib
import queue
import socket
import struct
import sys
import threading
import time
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

import pytest

import wsthread
from tests.support import (
    SOON,
    Certificates,
    RawConnection,
    RawServer,
    Recorder,
    close_frame,
    echo_server,
    frame,
)
from wsthread import QueueLimit

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10
KINDS = ["plain", "tls"]


@pytest.fixture(scope="module")
def certificates() -> Certificates:
    return Certificates()


@pytest.fixture(scope="module")
def echo_urls(certificates: Certificates, tmp_path_factory: Any) -> Iterator[Dict[str, str]]:
    pem = certificates.write(tmp_path_factory.mktemp("tls"))
    with echo_server() as plain, echo_server(pem) as tls:
        yield {"plain": plain, "tls": tls}


class Peer:
    """A raw server whose connections the test drives itself, on its own thread."""

    def __init__(self, upgrade: bool = True, **options: Any) -> None:
        self._upgrade = upgrade
        self._waiting: queue.Queue[RawConnection] = queue.Queue()
        self._released = threading.Event()
        self._lock = threading.Lock()
        self.server = RawServer(self._script, **options)
        self.url = self.server.url

    def _script(self, connection: RawConnection) -> None:
        if self._upgrade:
            connection.upgrade()
        else:
            connection.read_head()
        self._waiting.put(connection)
        assert self._released.wait(SOON * 3)
        self._released.clear()

    def accept(self) -> RawConnection:
        """The next connection; it stays open until `release`."""
        return self._waiting.get(timeout=SOON)

    def release(self) -> None:
        self._released.set()


@contextlib.contextmanager
def peer(**options: Any) -> Iterator[Peer]:
    peer = Peer(**options)
    try:
        yield peer
    finally:
        peer.release()
        peer.server.close()


@contextlib.contextmanager
def opened(url: str, delegate: Any = None, **options: Any) -> Iterator[wsthread.WebSocketClient]:
    client = make(url, delegate, **options)
    try:
        client.connect()
        yield client
    finally:
        client.abort()


def make(url: str, delegate: Any = None, **options: Any) -> wsthread.WebSocketClient:
    certificates = options.pop("certificates", None)
    if certificates is not None and url.startswith("wss"):
        options["ssl_context"] = certificates.client_context()
    options.setdefault("reconnect", False)
    return wsthread.WebSocketClient(url, delegate, **options)


def narrow(client: wsthread.WebSocketClient, size: int = 8192) -> None:
    """Have the kernel take little, so that a peer that does not read is felt soon."""
    session: Any = client._session
    sock = session._connection.transport.sock
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, size)


def eventually(condition: Callable[[], bool], timeout: float = SOON) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.002)


class Background(threading.Thread):
    """Runs a function; `result` gives back what it returned or raised."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        super().__init__(daemon=True)
        self._function, self._args = function, args
        self._error: Optional[BaseException] = None
        self._value: Any = None
        self.start()

    def run(self) -> None:
        try:
            self._value = self._function(*self._args)
        except BaseException as error:
            self._error = error

    def result(self, timeout: float = SOON) -> Any:
        self.join(timeout)
        assert not self.is_alive(), "hangs"
        if self._error is not None:
            error, self._error = self._error, None
            try:
                raise error
            finally:
                del error
        return self._value

    def error(self, timeout: float = SOON) -> BaseException:
        self.join(timeout)
        assert not self.is_alive(), "hangs"
        assert self._error is not None, "nothing was raised"
        return self._error


@contextlib.contextmanager
def switching(interval: float = 1e-6) -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(interval)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


class Outcomes(wsthread.WebSocketDelegate):
    """What became of every message. Read it when the life is over."""

    def __init__(self) -> None:
        self.sent: List[Any] = []
        self.unsent: List[Any] = []

    def on_sent(self, client: Any, message: Any) -> None:
        self.sent.append(message)

    def on_unsent(self, client: Any, message: Any, error: Any) -> None:
        self.unsent.append(message)


# Promise 9.

SIZES = {
    "small": [1, 20, 125, 126, 300],
    "large": [65_000, 65_536, 200_000],
    "mixed": [1, 70_000, 125, 126, 1000, 65_535, 7, 150_000],
}


def numbered(thread: int, number: int, size: int) -> bytes:
    return struct.pack("!HI", thread, number) + bytes([thread]) * size


def collect(connection: RawConnection, got: List[Tuple[int, bytes]]) -> None:
    """Upgrade; read frames up to the close frame, answer that."""
    connection.upgrade()
    while True:
        opcode, payload = connection.read_frame()
        if opcode == CLOSE:
            connection.sock.sendall(frame(CLOSE, payload))
            return
        got.append((opcode, payload))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sizes", list(SIZES))
def test_promise_09_frames_of_many_threads_never_interleave(
    certificates: Certificates, kind: str, sizes: str
) -> None:
    threads, each = 6, 40 if sizes == "large" else 150
    got: List[Tuple[int, bytes]] = []
    context = certificates.server_context() if kind == "tls" else None
    outcomes = Outcomes()
    with RawServer(lambda connection: collect(connection, got), context=context) as server:
        client = make(server.url, outcomes, certificates=certificates)
        client.connect()

        def send(thread: int) -> None:
            for number in range(each):
                size = SIZES[sizes][number % len(SIZES[sizes])]
                client.send(numbered(thread, number, size))

        with switching():
            senders = [Background(send, thread) for thread in range(threads)]
            for sender in senders:
                sender.result(30)
        assert client.disconnect()
    assert len(got) == threads * each
    last = [-1] * threads
    for opcode, payload in got:
        assert opcode == BINARY
        thread, number = struct.unpack("!HI", payload[:6])
        size = SIZES[sizes][number % len(SIZES[sizes])]
        assert payload == numbered(thread, number, size)
        assert number == last[thread] + 1, "the order within a thread is kept"
        last[thread] = number
    assert outcomes.sent == [payload for _, payload in got]
    assert outcomes.unsent == []
    assert client.stats.messages_sent == threads * each
    assert client.stats.messages_unsent == client.pending == 0


@pytest.mark.parametrize("kind", ["bytearray", "memoryview", "strided"])
def test_promise_09_mutable_buffers_are_copied_when_accepted(kind: str) -> None:
    recorder = Recorder()
    with peer() as raw:
        client = make(raw.url, recorder)
        buffer = bytearray(b"0123456789")
        whole = memoryview(buffer)
        message = {"bytearray": buffer, "memoryview": whole[2:5], "strided": whole[::3]}[kind]
        expected = bytes(message)
        client.send(message)
        client.send_many([message, message])
        buffer[:] = b"x" * 10
        client.connect()
        connection = raw.accept()
        client.send(message)
        buffer[:] = b"y" * 10
        found = [connection.read_frame() for _ in range(4)]
        assert found[:3] == [(BINARY, expected)] * 3
        assert found[3] == (BINARY, b"x" * len(expected))
        recorder.wait_for("sent", 4)
        assert recorder.of("sent")[0] == ("sent", expected)
        client.abort()


def test_promise_09_what_cannot_be_a_message_raises_at_the_call() -> None:
    client = make("ws://127.0.0.1:9/")
    for wrong in (None, 1, 1.5, ["a"], {"a": 1}, object()):
        with pytest.raises(TypeError):
            client.send(wrong)  # type: ignore[arg-type]
        with pytest.raises(TypeError):
            client.send_many(["good", wrong])  # type: ignore[list-item]
    for text in ("one string", b"bytes", bytearray(b"b"), memoryview(b"m"), 5):
        with pytest.raises(TypeError):
            client.send_many(text)  # type: ignore[arg-type]
    with pytest.raises(UnicodeEncodeError):
        client.send("lone \ud800 surrogate")
    with pytest.raises(UnicodeEncodeError):
        client.send_many(["good", "lone \udfff surrogate"])
    for timeout in ("1", True):
        with pytest.raises(TypeError):
            client.send("x", timeout=timeout)  # type: ignore[arg-type]
    for timeout in (-1, float("nan"), float("inf")):
        with pytest.raises(ValueError):
            client.send("x", timeout=timeout)
    assert client.pending == 0


def test_promise_09_send_many_is_accepted_whole_or_not_at_all() -> None:
    outcomes = Outcomes()
    got: List[Tuple[int, bytes]] = []
    with RawServer(lambda connection: collect(connection, got)) as server:
        client = make(server.url, outcomes, send_queue=QueueLimit(messages=5))
        client.send("0")

        def broken() -> Iterator[str]:
            yield "never"
            raise LookupError

        with pytest.raises(LookupError):
            client.send_many(broken())
        with pytest.raises(wsthread.QueueFull):
            client.send_many(["never"] * 5)
        assert client.pending == 1
        client.send_many(str(number) for number in range(1, 5))
        client.send_many([])
        assert client.pending == 5
        with pytest.raises(wsthread.QueueFull):
            client.send("never")
        client.connect()
        assert client.disconnect()
    assert [payload for _, payload in got] == [b"0", b"1", b"2", b"3", b"4"]
    assert outcomes.sent == ["0", "1", "2", "3", "4"]


def test_promise_09_send_many_is_one_run_among_other_senders() -> None:
    got: List[Tuple[int, bytes]] = []
    with RawServer(lambda connection: collect(connection, got)) as server:
        client = make(server.url)
        client.connect()

        def send(thread: int) -> None:
            for _ in range(50):
                client.send_many([b"%d:%d" % (thread, number) for number in range(7)])

        with switching():
            senders = [Background(send, thread) for thread in range(4)]
            for sender in senders:
                sender.result(30)
        assert client.disconnect()
    assert len(got) == 4 * 50 * 7
    for start in range(0, len(got), 7):
        thread = got[start][1].split(b":")[0]
        assert [payload for _, payload in got[start : start + 7]] == [
            b"%s:%d" % (thread, number) for number in range(7)
        ]


ENDS = ["disconnect", "abort", "reset", "close"]


def drain(connection: RawConnection, end: str) -> None:
    """A peer that reads a little and then ends the connection its way."""
    connection.upgrade()
    with contextlib.suppress(EOFError, ConnectionError):
        if end in ("disconnect", "abort"):
            connection.answer_close()
        else:
            for _ in range(3):
                connection.read_frame()
            if end == "reset":
                connection.reset()
            else:
                connection.sock.sendall(close_frame(1000))
                while connection.read_frame()[0] != CLOSE:
                    pass


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("kind", KINDS)
def test_promise_09_accepted_is_sent_or_unsent_whatever_ends_it(
    certificates: Certificates, kind: str, end: str
) -> None:
    rounds = 60 if kind == "plain" else 25
    context = certificates.server_context() if kind == "tls" else None
    with RawServer(lambda connection: drain(connection, end), context=context) as server:
        for turn in range(rounds):
            account(server.url, certificates, end, turn)


def account(url: str, certificates: Certificates, end: str, turn: int) -> None:
    outcomes = Outcomes()
    client = make(url, outcomes, certificates=certificates)
    client.connect()
    accepted: List[Any] = []
    started = threading.Event()
    patience = 4 + turn % 7

    def send(thread: int) -> None:
        number = 0
        while True:
            message = f"{thread}-{number}" + "x" * (number * 997 % 3000)
            try:
                if number % 5:
                    client.send(message)
                    accepted.append(message)
                else:
                    client.send_many([message, message])
                    accepted.extend([message, message])
            except (wsthread.WebSocketError, ConnectionError):
                return
            number += 1
            if number == patience:
                started.set()

    with switching():
        senders = [Background(send, thread) for thread in range(3)]
        if end in ("disconnect", "abort"):
            assert started.wait(SOON)
            getattr(client, end)()
        assert client.wait(SOON)
        for sender in senders:
            sender.result()
    assert sorted(outcomes.sent + outcomes.unsent) == sorted(accepted)
    assert client.stats.messages_sent == len(outcomes.sent)
    assert client.stats.messages_unsent == len(outcomes.unsent)
    assert client.pending == 0
    for thread in range(3):
        # What was sent was accepted before what was not.
        prefix = f"{thread}-"
        mine = [message for message in accepted if message.startswith(prefix)]
        sent = [message for message in outcomes.sent if message.startswith(prefix)]
        assert sent == mine[: len(sent)]


# Promise 10.


def test_promise_10_the_queue_goes_out_in_order_once_open() -> None:
    with peer(upgrade=False) as raw:
        client = make(raw.url, Outcomes(), send_queue=QueueLimit(messages=10))
        client.send("0")
        client.send(b"1")
        client.send_many(["2", "3"])
        client.connect(wait=False)
        connection = raw.accept()
        assert client.state is wsthread.ConnectionState.CONNECTING
        for number in range(4, 10):
            client.send(str(number))
        started = time.monotonic()
        with pytest.raises(wsthread.QueueFull):
            client.send("no room")  # there is nobody to wait for
        assert time.monotonic() - started < 1
        assert client.pending == 10
        answer(connection)
        found = [connection.read_frame() for _ in range(10)]
        assert found == [(BINARY if number == 1 else TEXT, b"%d" % number) for number in range(10)]
        client.flush()
        assert client.pending == 0
        client.abort()


def answer(connection: RawConnection) -> None:
    """Accept the upgrade whose head was read (the peer's `upgrade` is False)."""
    connection.sock.sendall(connection.accept_head(connection.head) + b"\r\n")


def test_promise_10_a_queue_bounded_in_bytes_is_full() -> None:
    client = make("ws://127.0.0.1:9/", send_queue=QueueLimit(bytes=1000))
    client.send(b"x" * 500)
    with pytest.raises(wsthread.QueueFull):
        client.send(b"x" * 500)  # with its header it does not fit
    client.send(b"x" * 400)
    assert client.pending == 2
    alone = make("ws://127.0.0.1:9/", send_queue=QueueLimit(bytes=1000))
    alone.send(b"x" * 5000)
    with pytest.raises(wsthread.QueueFull):
        alone.send(b"")
