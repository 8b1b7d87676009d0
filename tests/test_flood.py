"""Promises 8, 11 and 14: what an open connection's hostile peer can and cannot do."""

from __future__ import annotations

import contextlib
import gc
import struct
import threading
import time
import zlib
from pathlib import Path
from typing import Any, Dict, Iterator, List

import pytest

import wsthread
from tests.support import (
    SOON,
    RawConnection,
    RawServer,
    eventually,
    frame,
    raw_process,
)
from wsthread import QueueLimit
from wsthread.testing import RecordingDelegate

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10
pytestmark = pytest.mark.unmeasured
#: What a flood may cost at most, in bytes; without a bound each would take far more.
MEMORY = 30_000_000


@contextlib.contextmanager
def memory(bound: int) -> Iterator[None]:
    """This process never takes more than so many bytes more (checked on Linux)."""
    gc.collect()
    before = resident("VmRSS")
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    yield
    assert resident("VmHWM") - before < bound


def resident(name: str) -> int:
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith(name + ":"):
                return int(line.split()[1]) * 1024
    return 0


def make(url: str, delegate: Any, **options: Any) -> wsthread.WebSocketClient:
    options.setdefault("reconnect", False)
    options.setdefault("ping_interval", None)
    return wsthread.WebSocketClient(url, delegate, **options)


# What is announced and never comes.


@pytest.mark.parametrize("opcode", [TEXT, BINARY])
@pytest.mark.parametrize("size", [1 << 30, 1 << 62], ids=["1 GiB", "2^62"])
@pytest.mark.parametrize("limit", [16 << 20, None])
def test_promise_14_a_frame_that_is_only_announced(opcode: int, size: int, limit: Any) -> None:
    """Over the limit it fails from its header, 1009; without one it waits and costs nothing."""
    codes: List[int] = []

    def script(connection: RawConnection) -> None:
        connection.upgrade()
        connection.sock.sendall(bytes([0x80 | opcode, 127]) + struct.pack("!Q", size) + b"x" * 1000)
        codes.append(connection.answer_close()[0])

    recorder = RecordingDelegate()
    with RawServer(script) as server, memory(MEMORY):
        client = make(server.url, recorder, max_message_size=limit)
        client.connect()
        if limit is not None:
            error = recorder.wait_for("error")[1]
            assert isinstance(error, wsthread.MessageTooBig)
            assert error.code == 1009
            assert recorder.wait_for("close")[1] == 1009
            assert client.wait(SOON)
        else:
            eventually(lambda: client.stats.bytes_received > 1000)
            assert client.disconnect()
    assert codes == [1000 if limit is None else 1009]
    assert recorder.messages() == []


def fragments_without_end(connection: RawConnection) -> None:
    connection.upgrade(frame(TEXT, b"x", fin=False))
    with contextlib.suppress(ConnectionError):
        while True:
            connection.sock.sendall(frame(0, b"x" * 1000, fin=False) * 100)


def test_promise_14_fragments_without_end() -> None:
    recorder = RecordingDelegate()
    with raw_process(fragments_without_end) as url, memory(MEMORY):
        client = make(url, recorder, max_message_size=4_000_000)
        client.connect()
        assert isinstance(recorder.wait_for("error")[1], wsthread.MessageTooBig)
        assert recorder.wait_for("close")[1] == 1009
        assert client.wait(SOON)
    assert recorder.messages() == []


def empty_fragments(connection: RawConnection) -> None:
    count = int(connection.upgrade().split(b" ")[1][1:])
    connection.sock.sendall(frame(TEXT, b"begin", fin=False))
    batch = frame(0, fin=False) * 10_000
    for _ in range(count // 10_000):
        connection.sock.sendall(batch)
    connection.sock.sendall(frame(0, b"end"))
    connection.answer_close()


@pytest.mark.parametrize("count", [200_000, pytest.param(1_000_000, marks=pytest.mark.thorough)])
def test_promise_14_a_million_empty_fragments(count: int) -> None:
    """They are allowed (RFC 6455 5.4), and cost nothing."""
    recorder = RecordingDelegate()
    with raw_process(empty_fragments) as url, memory(MEMORY):
        client = make(f"{url}{count}", recorder)
        client.connect()
        assert recorder.wait_for("message", timeout=SOON * 3) == ("message", "beginend")
        assert client.disconnect()


def deflated(data: bytes) -> bytes:
    stream = zlib.compressobj(9, wbits=-15)
    return (stream.compress(data) + stream.flush(zlib.Z_SYNC_FLUSH))[:-4]


def test_promise_14_a_compressed_bomb() -> None:
    """1 GB in 1 MB: it fails while it is inflated."""
    bomb = frame(BINARY, deflated(bytes(1 << 24)) * 64, rsv=0x40)
    codes: List[int] = []

    def script(connection: RawConnection) -> None:
        connection.upgrade(headers=b"Sec-WebSocket-Extensions: permessage-deflate\r\n")
        connection.sock.sendall(bomb)
        codes.append(connection.answer_close()[0])

    recorder = RecordingDelegate()
    with RawServer(script) as server, memory(MEMORY):
        client = make(server.url, recorder, max_message_size=4_000_000)
        client.connect()
        assert isinstance(recorder.wait_for("error")[1], wsthread.MessageTooBig)
        assert client.wait(SOON)
        assert client.close_code == 1009
    assert codes == [1009]


# Pings.


def ping_flood(connection: RawConnection) -> None:
    """Sends pings without reading a pong, until the client is gone."""
    connection.upgrade()
    batch = b"".join(frame(PING, b"%d" % number + b"." * 100) for number in range(500))
    with contextlib.suppress(ConnectionError):
        while True:
            connection.sock.sendall(batch)


class Slow(wsthread.WebSocketDelegate):
    """Stands still in its first callback of a kind until it is let go."""

    def __init__(self) -> None:
        self.held, self.hold = threading.Event(), threading.Event()
        self.seen = 0

    def _hold(self) -> None:
        self.seen += 1
        if not self.held.is_set():
            self.held.set()
            assert self.hold.wait(SOON * 3)


class SlowMessages(Slow):
    last: Any = None

    def on_message(self, client: Any, message: Any) -> None:
        self.last = message
        self._hold()


class SlowPings(Slow):
    def on_ping(self, client: Any, payload: bytes) -> None:
        self._hold()

    def on_message(self, client: Any, message: Any) -> None: ...


@pytest.mark.parametrize(
    ("overflow", "listening"),
    [
        ("block", True),
        ("drop_oldest", True),
        ("drop_newest", True),
        ("close", True),
        ("block", False),
    ],
)
def test_promise_14_a_flood_of_pings(listening: bool, overflow: str) -> None:
    """Neither the pongs owed nor the callbacks due pile up; the end is as quick as ever."""
    delegate = SlowPings() if listening else RecordingDelegate.__base__()
    limit = QueueLimit(messages=1000, overflow=overflow)
    with raw_process(ping_flood) as url, memory(MEMORY):
        client = make(url, delegate, receive_queue=limit, close_timeout=0.5)
        client.connect()
        if listening and overflow == "block":
            eventually(lambda: client.stats.back_pressure_pauses > 0)
        else:
            eventually(lambda: client.stats.pings_received > 40_000, SOON * 3)
        assert client.mailbox.messages <= 1000 + 65536 // 100  # what one read may bring more
        if listening:
            delegate.hold.set()
            eventually(lambda: delegate.seen > 2000)
        begun = time.monotonic()
        assert client.disconnect()
        assert time.monotonic() - begun < 2


def tiny_flood(connection: RawConnection) -> None:
    """Sends the smallest frames of a kind (the first message tells which), without end."""
    connection.upgrade()
    kind = connection.read_frame()[1]
    if kind == b"fragments":
        connection.sock.sendall(frame(TEXT, fin=False))
    batch = {
        b"pings": frame(PING),
        b"fragments": frame(0, fin=False),
        b"messages": frame(TEXT),
        b"mixed": frame(TEXT) + frame(PING),
    }[kind] * 100_000
    with contextlib.suppress(ConnectionError):
        while True:
            connection.sock.sendall(batch)


class Indifferent(wsthread.WebSocketDelegate):
    def on_message(self, client: Any, message: Any) -> None: ...


@pytest.mark.parametrize("overflow", ["block", "drop_newest"])
@pytest.mark.parametrize("kind", ["pings", "fragments", "messages", "mixed"])
def test_promise_04_a_flood_of_tiny_frames_does_not_hold_up_the_end(
    kind: str, overflow: str
) -> None:
    with raw_process(tiny_flood) as url, memory(MEMORY):
        limit = QueueLimit(overflow=overflow)
        client = make(url, Indifferent(), receive_queue=limit, close_timeout=0.5)
        client.connect()
        client.send(kind)
        eventually(lambda: client.stats.bytes_received > 600_000, SOON * 3)  # a long read
        begun = time.monotonic()
        assert client.disconnect()
        assert time.monotonic() - begun < 1.3


def test_promise_11_of_a_flood_of_pings_the_newest_is_answered() -> None:
    """Not each (RFC 6455 5.5.3): what a stalled client owes is one pong."""
    count = 50_000
    pongs: List[bytes] = []

    def script(connection: RawConnection) -> None:
        connection.upgrade()
        for start in range(0, count, 1000):
            batch = b"".join(frame(PING, b"%d" % n) for n in range(start, start + 1000))
            connection.sock.sendall(batch)
        while not pongs or pongs[-1] != b"%d" % (count - 1):
            opcode, payload = connection.read_frame()
            assert opcode == PONG
            pongs.append(payload)
        connection.answer_close()

    with RawServer(script, receive_buffer=4096) as server:
        client = make(server.url, None)
        client.connect()
        eventually(lambda: client.stats.pings_received == count, SOON * 3)
        assert client.disconnect()
    numbers = [int(payload) for payload in pongs]
    assert numbers == sorted(set(numbers))
    assert len(numbers) < count / 2


class Seeing(wsthread.WebSocketDelegate):
    """Notes how many pings are counted when it is told of one; answers the first message."""

    def __init__(self) -> None:
        self.counted: List[int] = []

    def on_ping(self, client: Any, payload: bytes) -> None:
        self.counted.append(client.stats.pings_received)

    def on_message(self, client: Any, message: Any) -> None:
        if message == "first":
            client.send("reply")


@pytest.mark.parametrize("inline", [True, False])
def test_promise_11_a_ping_is_answered_and_counted_before_callbacks_run(inline: bool) -> None:
    """Also where much came with it."""
    answers: List[int] = []

    def script(connection: RawConnection) -> None:
        connection.upgrade()
        connection.sock.sendall(frame(PING) + frame(TEXT, b"first") + frame(TEXT, b"more") * 600)
        answers.extend(connection.read_frame()[0] for _ in range(2))
        connection.answer_close()

    for _ in range(20):
        answers.clear()
        delegate = Seeing()
        with RawServer(script) as server:
            client = make(
                server.url, delegate, dispatcher=wsthread.InlineDispatcher() if inline else None
            )
            with client:
                eventually(lambda: len(answers) == 2)
        assert delegate.counted == [1]
        assert answers == [PONG, TEXT]


# Small messages into a slow callback.


def small_messages(connection: RawConnection) -> None:
    """Sends as many 1-byte messages as the path says, and then counts what it was asked."""
    count = int(connection.upgrade().split(b" ")[1][1:])
    batch = frame(BINARY, b"x") * 10_000
    connection.sock.settimeout(SOON * 90)
    for _ in range(count // 10_000):
        connection.sock.sendall(batch)
    connection.sock.sendall(frame(TEXT, b"the last"))
    connection.answer_close()


class Counting(wsthread.WebSocketDelegate):
    """Counts messages and stumbles every so often, so that the queue is full most of the time."""

    def __init__(self) -> None:
        self.count = 0
        self.most = 0
        self.last = threading.Event()

    def on_message(self, client: Any, message: Any) -> None:
        self.count += 1
        if self.count % 10_000 == 0:
            self.most = max(self.most, client.mailbox.messages)
            time.sleep(0.005)
        if message == "the last":
            self.last.set()


COUNTS = [200_000, pytest.param(10_000_000, marks=pytest.mark.thorough)]


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("overflow", ["block", "drop_oldest", "drop_newest"])
def test_promise_08_small_messages_into_a_slow_callback(overflow: str, count: int) -> None:
    delegate = Counting()
    limit = QueueLimit(messages=5000, overflow=overflow)
    with raw_process(small_messages) as url, memory(MEMORY):
        client = make(f"{url}{count}", delegate, receive_queue=limit)
        client.connect()
        within = SOON * 4 if count < 1_000_000 else 800.0
        eventually(lambda: client.stats.messages_received == count + 1, within)
        if overflow == "drop_newest":
            eventually(lambda: client.mailbox.messages == 0)
        else:
            assert delegate.last.wait(SOON)
        assert client.disconnect()
        stats = client.stats
    assert delegate.most <= 5000
    assert stats.bytes_received > 3 * count
    assert delegate.count + stats.messages_dropped == count + 1
    if overflow == "block":
        assert stats.messages_dropped == 0
        assert stats.back_pressure_pauses > 0
    else:
        assert stats.messages_dropped > 0
        assert stats.back_pressure_pauses == 0


def test_promise_08_drop_oldest_holds_its_bound_while_a_callback_blocks() -> None:
    """What waits behind the callback gives way to what is newer, to the last message."""
    limit = QueueLimit(messages=1000, overflow="drop_oldest")
    delegate = SlowMessages()
    with raw_process(small_messages) as url:
        client = make(f"{url}100000", delegate, receive_queue=limit)
        client.connect()
        eventually(lambda: client.stats.messages_received == 100_001, SOON * 3)
        assert delegate.held.wait(SOON)
        assert client.stats.receive_queue_peak_messages <= 1000
        delegate.hold.set()
        eventually(lambda: client.stats.receive_queue_messages == 0)
        assert client.disconnect()
    assert delegate.last == "the last"
    assert 500 < delegate.seen <= 1000
    assert delegate.seen + client.stats.messages_dropped == 100_001


def test_promise_08_overflow_close_ends_a_flood() -> None:
    delegate = SlowMessages()
    errors: List[Any] = []
    delegate.on_error = lambda client, error: errors.append(error)  # type: ignore[method-assign]
    limit = QueueLimit(messages=5000, overflow="close")
    with raw_process(small_messages) as url, memory(MEMORY):
        client = make(f"{url}200000", delegate, receive_queue=limit)
        client.connect()
        eventually(lambda: client.state is wsthread.ConnectionState.DISCONNECTED)
        delegate.hold.set()
        assert client.wait(SOON)
    assert client.close_code == 1008
    assert isinstance(errors[0], wsthread.ConnectionClosed)
    assert 0 < delegate.seen <= 5000


def test_promise_08_a_flood_leaves_room_for_everything_else() -> None:
    """While a peer floods, this side's sends and pings go on."""
    echoed: Dict[str, int] = {"text": 0, "pong": 0}
    stop = threading.Event()

    def script(connection: RawConnection) -> None:
        connection.upgrade()
        flood = frame(BINARY, bytes(100)) * 100

        def read() -> None:
            while True:
                opcode, payload = connection.read_frame()
                if opcode == TEXT:
                    echoed["text"] += 1
                elif opcode == PING:
                    echoed["pong"] += 1
                    connection.sock.sendall(frame(PONG, payload))
                elif opcode == CLOSE:
                    return

        reader = threading.Thread(target=read)
        reader.start()
        with contextlib.suppress(ConnectionError):
            while not stop.is_set():
                connection.sock.sendall(flood)
        connection.sock.sendall(frame(CLOSE, struct.pack("!H", 1000)))
        reader.join(SOON)

    delegate = Counting()
    with RawServer(script) as server:
        client = make(server.url, delegate)
        client.connect()
        for _ in range(20):
            client.send("amid the flood")
            client.ping(timeout=SOON)
        stop.set()
        client.disconnect()
    assert echoed["text"] == 20
