"""Promise 11: a peer that stops reading, and senders that give up, are interrupted or stay."""

from __future__ import annotations

import contextlib
import os
import random
import struct
import sys
import threading
import zlib
from typing import Any, Dict, Iterator, List, Optional

import pytest

import wsthread
from tests.support import (
    SOON,
    Background,
    Certificates,
    RawConnection,
    RawServer,
    eventually,
    frame,
    narrow,
)
from wsthread import QueueLimit, Reconnect
from wsthread.testing import RecordingDelegate

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10
KINDS = ["plain", "tls", "deflate", "deflate over tls"]
DEFLATE = b"Sec-WebSocket-Extensions: permessage-deflate\r\n"


@pytest.fixture(scope="module")
def certificates() -> Certificates:
    return Certificates()


class Wall:
    """A peer that may agree on compression, checks every frame, and reads only when it is let."""

    def __init__(self, kind: str, certificates: Certificates, pace: float = 0) -> None:
        self.reads = threading.Event()
        self.ended = threading.Event()
        self.got: List[bytes] = []
        self.pongs: List[bytes] = []
        self._pace = pace
        self._deflate = "deflate" in kind
        self._context = certificates.server_context() if "tls" in kind else None
        self._client_context = certificates.client_context()
        self.connection: Optional[RawConnection] = None

    @contextlib.contextmanager
    def client(self, delegate: Any, **options: Any) -> Iterator[wsthread.WebSocketClient]:
        with RawServer(self._script, self._context, receive_buffer=8192) as server:
            options.setdefault("reconnect", False)
            client = wsthread.WebSocketClient(
                server.url,
                delegate,
                ssl_context=self._client_context,
                compression="deflate" if self._deflate else None,
                **options,
            )
            try:
                client.connect()
                yield client
            finally:
                self.ended.set()
                self.reads.set()
                client.abort()

    def _script(self, connection: RawConnection) -> None:
        connection.upgrade(headers=DEFLATE if self._deflate else b"")
        self.connection = connection
        inflater = zlib.decompressobj(-15)
        while self.reads.wait(SOON * 3):
            opcode, payload = connection.read_frame()
            if connection.rsv1:
                payload = inflater.decompress(payload + b"\0\0\xff\xff")
            if opcode == CLOSE:
                connection.sock.sendall(frame(CLOSE, payload))
                return
            if opcode == PING:
                connection.sock.sendall(frame(PONG, payload))
            else:
                (self.pongs if opcode == PONG else self.got).append(payload)
            if self._pace and not self.ended.is_set():
                self.ended.wait(self._pace)


def message(number: int, size: int) -> bytes:
    """A message that tells whether it is whole; every other one can be compressed."""
    body = random.Random(number).randbytes(size) if number % 2 else bytes([number & 255]) * size
    return struct.pack("!I", number) + body


def check_whole(got: List[bytes]) -> List[int]:
    """The numbers of messages, each of which is as it was sent."""
    numbers = [struct.unpack("!I", payload[:4])[0] for payload in got]
    for number, payload in zip(numbers, got):
        assert payload == message(number, len(payload) - 4)
    return numbers


def random_bytes(thread: int, size: int = 20_000) -> bytes:
    return struct.pack("!I", thread) + os.urandom(size)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("threads", [1, 3, 50])
def test_promise_11_a_wall_ends_in_errors_not_in_silence(
    threads: int, kind: str, certificates: Certificates
) -> None:
    """Without reconnect: keepalive finds the peer, and every sender hears of it."""
    recorder = RecordingDelegate()
    wall = Wall(kind, certificates)
    limit = QueueLimit(messages=30, bytes=300_000)
    options: Dict[str, Any] = {"ping_interval": 0.3, "ping_timeout": 0.3, "send_queue": limit}
    with wall.client(recorder, **options) as client:
        narrow(client)
        accepted = [0] * threads

        def send(thread: int) -> None:
            while True:
                client.send(random_bytes(thread), timeout=SOON)
                accepted[thread] += 1

        senders = [Background(send, thread) for thread in range(threads)]
        for sender in senders:
            assert isinstance(sender.error(), wsthread.WebSocketError)
        assert client.wait(SOON)
        assert client.close_code == 1006
        assert client.pending == 0
    outcomes = recorder.of("sent", "unsent")
    assert len(outcomes) == sum(accepted)
    assert recorder.names()[-3:] == ["error", "close", "state"]
    assert isinstance(recorder.of("error")[0][1], wsthread.ConnectionClosed)


@pytest.mark.parametrize("kind", KINDS)
def test_promise_11_pings_are_answered_until_the_pipe_is_full(
    kind: str, certificates: Certificates
) -> None:
    """And the newest one again when it is not any more."""
    recorder = RecordingDelegate()
    wall = Wall(kind, certificates)
    with wall.client(recorder, ping_interval=None) as client:
        recorder.wait_for("open")
        eventually(lambda: wall.connection is not None)
        assert wall.connection is not None
        for number in range(10):  # nobody reads these pongs yet, but there is room for them
            wall.connection.sock.sendall(frame(PING, b"room %d" % number))
        recorder.wait_for("ping", count=10)
        narrow(client)
        with pytest.raises(wsthread.SendTimeout):
            while True:
                client.send(random_bytes(0), timeout=0.2)
        for number in range(10):
            wall.connection.sock.sendall(frame(PING, b"full %d" % number))
        recorder.wait_for("ping", count=20)
        wall.reads.set()
        eventually(lambda: len(wall.pongs) >= 11)
        client.ping(timeout=SOON)
    assert wall.pongs[:10] == [b"room %d" % number for number in range(10)]
    assert wall.pongs[10:] == [b"full 9"]


@pytest.mark.parametrize("kind", ["deflate", "deflate over tls"])
def test_promise_11_timeouts_never_tear_a_compressed_stream(
    kind: str, certificates: Certificates
) -> None:
    """Messages that were given up never entered the compressor's window; those begun went on."""
    recorder = RecordingDelegate()
    wall = Wall(kind, certificates, pace=0.004)
    wall.reads.set()
    limit = QueueLimit(messages=4, bytes=60_000)
    with wall.client(recorder, send_queue=limit, close_timeout=SOON) as client:
        recorder.wait_for("open")
        narrow(client)
        accepted: List[int] = []
        given_up = [0] * 4

        def send(thread: int) -> None:
            for number in range(thread, 400, 4):
                try:
                    client.send(message(number, number * 7919 % 20_000), timeout=0.005)
                except wsthread.SendTimeout:
                    given_up[thread] += 1
                else:
                    accepted.append(number)

        senders = [Background(send, thread) for thread in range(4)]
        for sender in senders:
            sender.result(30)
        wall.ended.set()
        assert client.disconnect()
    assert sum(given_up) > 10
    assert sorted(check_whole(wall.got)) == sorted(accepted)
    assert [event[1] for event in recorder.of("sent")] == wall.got


class Interrupts:
    """Ctrl-C where CPython looks for signals: as a function begins, and as one of C's has ended."""

    def __init__(self, number: int) -> None:
        self.left = number
        self.done = False

    def __call__(self, frame: Any, event: str, argument: Any) -> None:
        if self.done or event not in ("call", "c_return") or argument is sys.setprofile:
            return
        self.left -= 1
        if self.left < 0:
            self.done = True
            raise KeyboardInterrupt


@pytest.mark.unmeasured
@pytest.mark.skipif(sys.version_info < (3, 10), reason="CPython 3.9 looks for signals anywhere")
@pytest.mark.parametrize("kind", KINDS)
def test_promise_11_ctrl_c_at_any_call_of_send(kind: str, certificates: Certificates) -> None:
    """What was begun goes on, or its connection fails; what is sent next arrives, whole."""
    recorder = RecordingDelegate()
    wall = Wall(kind, certificates)
    wall.reads.set()
    again = Reconnect(delay=0, min_uptime=0)
    accepted: List[bytes] = []
    interrupted = number = 0
    with wall.client(recorder, reconnect=again, close_timeout=SOON) as client:
        recorder.wait_for("open")
        for call in range(1000):
            client.flush(SOON)  # so that this thread writes itself
            interrupt = Interrupts(call)
            sys.setprofile(interrupt)
            try:
                client.send(message(number, 3000))
                accepted.append(message(number, 3000))
            except KeyboardInterrupt:
                interrupted += 1
            finally:
                sys.setprofile(None)
            after = message(number + 1, 3000)
            client.send(after)
            accepted.append(after)
            number += 2
            eventually(lambda: wall.got[-1:] == [after] or returned(recorder, after))  # noqa: B023
            if not interrupt.done:
                break
        assert client.disconnect()
    assert interrupted > 20
    numbers = check_whole(wall.got)
    assert numbers == sorted(set(numbers)), "in order, none twice"
    told = [event[1] for event in recorder.of("sent", "unsent")]
    assert {bytes(one) for one in accepted} <= set(told)
    assert len(set(told)) == len(told), "nobody is told twice"
    assert client.pending == 0


def returned(recorder: RecordingDelegate, one: bytes) -> bool:
    return any(event[1] == one for event in recorder.of("unsent"))


def test_promise_11_a_wake_up_that_is_interrupted_is_not_lost() -> None:
    """Ctrl-C within the wake-up itself: the next one must wake."""
    from wsthread.transport import READ, Poller, Waker  # noqa: PLC0415

    class Broken:
        def send(self, data: bytes) -> int:
            raise KeyboardInterrupt

        def close(self) -> None: ...

    waker = Waker()
    writer, waker._writer = waker._writer, Broken()  # type: ignore[assignment]
    with pytest.raises(KeyboardInterrupt):
        waker.wake()
    waker._writer = writer
    waker.wake()
    poller = Poller()
    poller.watch(waker.fileno(), READ)
    assert poller.wait(0)
