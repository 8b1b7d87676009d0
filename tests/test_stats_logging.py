"""What a client counts, and what it writes into the log."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
import time
from typing import Any, Iterator, List, Set

import pytest

import wsthread
from tests.support import (
    SOON,
    RawConnection,
    RawServer,
    echo_server,
    eventually,
    frame,
    narrow,
    peer,
)
from wsthread import Reconnect
from wsthread.testing import RecordingDelegate


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with echo_server() as url:
        yield url


# Stats.


def wire(size: int) -> int:
    """The bytes of a server's frame with a payload."""
    return len(frame(1, bytes(size)))


def test_stats_count_what_happened(url: str) -> None:
    recorder = RecordingDelegate()
    sizes = [1, 125, 126, 70_000]
    client = wsthread.WebSocketClient(url, recorder, compression=None, ping_interval=None)
    assert client.stats == wsthread.ClientStats()
    for life in (1, 2):
        if life == 2:
            client.connect()
        for size in sizes:  # in the first life all of them wait in the queue, in the second perhaps
            client.send("x" * size)
        if life == 1:
            client.connect()
        recorder.wait_for("message", count=life * len(sizes))
        latency = client.ping(timeout=SOON)
        stats = client.stats
        assert stats.latency == latency
        assert stats.uptime is not None and 0 < stats.uptime < SOON * 2
        assert stats.messages_sent == stats.messages_received == life * len(sizes)
        # A client's frames carry 4 bytes more; the ping's payload has 8.
        received = sum(map(wire, sizes)) + wire(8)
        ends = (life - 1) * wire(2)
        assert stats.bytes_received == life * received + ends
        assert stats.bytes_sent == life * (received + 4 * (len(sizes) + 1)) + (life - 1) * (
            wire(2) + 4
        )
        assert stats.connections == stats.pongs_received == life
        assert client.disconnect()
    stats = client.stats
    assert stats.uptime is None
    assert (stats.reconnects, stats.failed_attempts, stats.last_error) == (0, 0, None)
    assert stats.messages_unsent == stats.messages_dropped == stats.messages_discarded == 0
    assert stats.send_queue_messages == stats.send_queue_bytes == 0
    assert stats.receive_queue_messages == stats.receive_queue_bytes == 0
    assert stats.send_queue_peak_bytes == sum(sizes) + 14 * len(sizes)
    assert stats.send_queue_peak_messages == len(sizes)
    assert stats.receive_queue_peak_bytes >= wire(70_000)


def test_stats_are_a_snapshot(url: str) -> None:
    with wsthread.WebSocketClient(url) as client:
        before = client.stats
        client.send("x")
        client.flush()
        assert before.messages_sent == 0
        assert client.stats.messages_sent == 1


def test_stats_of_the_queues_and_their_high_water_marks() -> None:
    class Blocks(RecordingDelegate):
        held, hold = threading.Event(), threading.Event()

        def on_message(self, client: Any, message: Any) -> None:
            self.held.set()
            assert self.hold.wait(SOON)

    delegate = Blocks()
    with peer(receive_buffer=4096) as raw:
        client = wsthread.WebSocketClient(raw.url, delegate, reconnect=False)
        client.send_many(["queued"] * 3)
        stats = client.stats
        assert (stats.send_queue_messages, stats.send_queue_peak_messages) == (3, 3)
        assert stats.send_queue_bytes == stats.send_queue_peak_bytes == 3 * (6 + 14)
        client.connect()
        connection = raw.accept()
        for _ in range(3):
            connection.read_frame()
        eventually(lambda: client.pending == 0)
        narrow(client)
        client.send(bytes(3_000_000))
        client.send_many(["behind"] * 4)
        stats = client.stats
        assert stats.send_queue_messages == stats.send_queue_peak_messages == 5
        assert stats.send_queue_bytes == 3_000_000 + 14 + 4 * 20
        connection.sock.sendall(frame(1, b"12345678") * 10)
        assert delegate.held.wait(SOON)
        eventually(lambda: client.stats.messages_received == 10)
        stats = client.stats
        assert (stats.receive_queue_messages, stats.receive_queue_bytes) == (10, 100)
        delegate.hold.set()
        eventually(lambda: client.stats.receive_queue_messages == 0)
        client.abort()
        stats = client.stats
        assert stats.messages_unsent == 5
        assert stats.send_queue_messages == stats.send_queue_bytes == 0
        assert stats.send_queue_peak_messages == 5
        assert (stats.receive_queue_peak_messages, stats.receive_queue_peak_bytes) == (10, 100)


def test_stats_of_reconnects_and_the_last_error() -> None:
    def script(connection: RawConnection) -> None:
        if server.connections == 2:
            connection.read_head()
            connection.sock.sendall(b"HTTP/1.1 503 Later\r\nContent-Length: 0\r\n\r\n")
        else:
            connection.upgrade()
            if server.connections < 4:
                connection.reset()
            else:
                connection.answer_close()

    recorder = RecordingDelegate()
    with RawServer(script) as server:
        client = wsthread.WebSocketClient(server.url, recorder, reconnect=Reconnect(delay=0))
        client.connect()
        recorder.wait_for("open", count=3)
        stats = client.stats
        assert (stats.connections, stats.reconnects, stats.failed_attempts) == (3, 2, 1)
        assert client.error is None
        assert isinstance(stats.last_error, wsthread.ConnectionClosed)
        assert stats.last_error is recorder.of("error")[-1][1]
        assert client.disconnect()
    assert client.stats.reconnects == 2


def test_stats_are_cheap(url: str) -> None:
    """A snapshot waits for no lock, and costs less than sending a message."""
    with wsthread.WebSocketClient(url) as client:
        session: Any = client._session
        with client._lock, client.mailbox._lock, session.outbox.lock:
            taken: List[Any] = []
            thread = threading.Thread(target=lambda: taken.append(client.stats))
            thread.start()
            thread.join(SOON)
            assert taken
        fastest = SOON
        for _ in range(5):
            begun = time.perf_counter()
            for _ in range(100):
                _ = client.stats
            fastest = min(fastest, (time.perf_counter() - begun) / 100)
        assert fastest < 0.0005


# Logging.

SECRETS = ["pass-secret", "query-secret", "path-secret", "bearer-secret", "payload-secret"]
PROGRAM = """
import sys, logging, threading
if len(sys.argv) > 2:
    logging.basicConfig(level=sys.argv[2], format="%(levelname)s %(name)s %(message)s")
import wsthread
echoed = threading.Event()
delegate = wsthread.CallbackDelegate(on_message=lambda client, message: echoed.set())
client = wsthread.WebSocketClient(sys.argv[1], delegate, reconnect=False)
client.connect()
client.send("payload-secret")
assert echoed.wait(10)
client.disconnect()
try:
    wsthread.WebSocketClient("ws://127.0.0.1:1/").connect()
except wsthread.ConnectError:
    pass
"""


def run(*args: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", PROGRAM, *args],
        capture_output=True,
        text=True,
        timeout=SOON * 3,
        check=True,
    )
    return done.stdout + done.stderr


def test_logging_is_silent_by_default(url: str) -> None:
    assert run(url) == ""


def test_logging_shows_what_is_asked_for(url: str) -> None:
    warning, info, debug = (run(url, level) for level in ("WARNING", "INFO", "DEBUG"))
    assert warning == ""
    lines = info.splitlines()
    assert all(line.startswith("INFO wsthread.session client ") for line in lines), info
    assert lines[0].endswith(": open, permessage-deflate") or lines[0].endswith(": open")
    assert lines[1].endswith(": over with code 1000: 'closed in order'")
    assert "not open: 'cannot connect to 127.0.0.1:1: " in lines[2]
    mine = [line.split(" ", 2) for line in debug.splitlines() if " wsthread." in line]
    assert {name for _, name, _ in mine} == {
        "wsthread.session",
        "wsthread.opening",
        "wsthread.frames",
    }
    frames = [text.split(": ")[1] for _, name, text in mine if name == "wsthread.frames"]
    assert "sent text, 14 bytes" in frames and "received text, 14 characters" in frames
    assert "sent close 1000" in frames and "received close 1000" in frames
    assert "payload" not in debug


class Everything(logging.Handler):
    """Keeps what is logged anywhere, as text and as it was given."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.text = ""
        self.names: Set[str] = set()

    def emit(self, record: logging.LogRecord) -> None:
        self.text += f"{record.getMessage()} {record.args!r} {record.exc_info!r}\n"
        self.names.add(record.name)


@pytest.fixture
def log() -> Iterator[Everything]:
    handler, root = Everything(), logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield handler
    root.removeHandler(handler)
    root.setLevel(level)


def raises(error: BaseException) -> Any:
    def function(*args: Any) -> Any:
        raise error

    return function


def test_logging_never_shows_a_secret(log: Everything) -> None:
    """Not of URLs, nor headers, nor messages, nor what the program's own functions raise."""
    answers = [
        b"HTTP/1.1 401 No\r\n\r\n",
        b"HTTP/1.1 302 On\r\nLocation: /path-secret\r\n\r\n",
        b"",
    ]

    def script(connection: RawConnection) -> None:
        if answers and answers[0]:
            connection.read_head()
            connection.sock.sendall(answers.pop(0))
        else:
            connection.upgrade(frame(1, b"payload-secret"), b"Set-Cookie: bearer-secret\r\n")
            connection.answer_close()

    headers = {"Authorization": "Bearer bearer-secret", "Cookie": "bearer-secret"}
    recorder = RecordingDelegate()
    with RawServer(script) as server:
        secret = f"ws://user:pass-secret@127.0.0.1:{server.port}/path-secret?q=query-secret"
        client = wsthread.WebSocketClient(secret, recorder, headers=lambda: headers)
        with pytest.raises(wsthread.HandshakeError):
            client.connect()
        client.connect()
        client.send("payload-secret")
        client.send(b"payload-secret")
        recorder.wait_for("message")
        assert client.disconnect()
    for options in (
        {"url": raises(ValueError(secret))},
        {"url": "ws://127.0.0.1:1/", "headers": raises(ValueError("bearer-secret"))},
        {"url": "ws://user:pass-secret@:1/path-secret"},
        {
            "url": "ws://127.0.0.1:1/path-secret",
            "reconnect": Reconnect(
                first=True, should_retry=raises(ValueError("bearer-secret")), attempts=1, delay=0
            ),
        },
    ):
        client = wsthread.WebSocketClient(**options)  # type: ignore[arg-type]
        with pytest.raises(wsthread.ConnectError):
            client.connect(SOON)
    assert "text, 14 bytes" in log.text and "text, 14 characters" in log.text
    for word in SECRETS:
        assert word not in log.text


def test_logging_of_a_peers_text_stays_on_one_line(log: Everything) -> None:
    def script(connection: RawConnection) -> None:
        connection.upgrade()
        connection.sock.sendall(frame(8, b"\x03\xf0one\nINFO forged"))
        connection.read_to_end()

    with RawServer(script) as server:
        client = wsthread.WebSocketClient(server.url)
        client.connect()
        assert client.wait(SOON)
    assert "1008" in log.text
    assert "\nINFO forged" not in log.text


def test_logging_a_slow_handler_holds_no_lock_of_the_connection(url: str) -> None:
    """While one thread's log line is stuck, others send and receive."""
    stuck, go_on = threading.Event(), threading.Event()

    class Stuck(logging.Handler):
        def handle(self, record: logging.LogRecord) -> bool:  # with no lock of its own
            if threading.current_thread().name == "to be stuck":
                stuck.set()
                assert go_on.wait(SOON)
            return True

    recorder = RecordingDelegate()
    handler, logger = Stuck(), logging.getLogger("wsthread.frames")
    with wsthread.WebSocketClient(url, recorder) as client:
        recorder.wait_for("open")
        logger.addHandler(handler)
        logger.setLevel(logging.DEBUG)

        def send() -> None:
            while not stuck.is_set():  # until it is this thread that writes
                client.send("mine")

        thread = threading.Thread(target=send, name="to be stuck")
        try:
            thread.start()
            assert stuck.wait(SOON)
            client.send("of others")
            client.flush()
            eventually(lambda: "of others" in recorder.messages())
        finally:
            go_on.set()
            thread.join(SOON)
            logger.setLevel(logging.NOTSET)
            logger.removeHandler(handler)
