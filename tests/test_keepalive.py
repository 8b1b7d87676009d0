"""Promise 18: a peer that falls silent is found, and only such a peer."""

from __future__ import annotations

import contextlib
import math
import socket
import threading
import time
from typing import Any, List, Optional, Tuple

import pytest

import wsthread
from tests.lasting import eventually
from tests.support import (
    SOON,
    Certificates,
    RawConnection,
    RawServer,
    frame,
)
from wsthread import QueueLimit
from wsthread.keepalive import Keepalive
from wsthread.testing import RecordingDelegate

TEXT, BINARY, PING, PONG = 1, 2, 9, 10


# The clock, with plain times.


def test_a_ping_is_due_every_interval() -> None:
    clock = Keepalive(10, 5, 100.0)
    assert clock.deadline() == 110
    assert not clock.ping_due(109.9)
    assert clock.ping_due(110.0)
    assert not clock.ping_due(110.0), "one ping for each interval"
    clock.heard = 110.5
    assert clock.deadline() == 120
    assert clock.ping_due(125.0), "late, because the thread was held up"
    assert not clock.ping_due(134.9)
    assert clock.ping_due(135.0)


def test_promise_18_silence_after_a_ping_is_death_after_the_timeout() -> None:
    clock = Keepalive(10, 5, 0.0)
    assert not clock.dead(1e9), "before a ping nobody is asked"
    assert clock.ping_due(10.0)
    assert clock.deadline() == pytest.approx(15)
    assert not clock.dead(14.9)
    assert clock.dead(15.001)


def test_a_timeout_longer_than_the_interval_counts_from_the_first_ping_unanswered() -> None:
    clock = Keepalive(2, 5, 0.0)
    for now in (2.0, 4.0, 6.0):
        assert clock.ping_due(now)
    assert not clock.dead(6.9)
    assert clock.dead(7.001)


def test_bytes_are_life_but_not_those_of_the_moment_before_the_ping() -> None:
    clock = Keepalive(10, 5, 0.0)
    clock.heard = 10.0
    assert clock.ping_due(10.0)
    assert clock.dead(15.001), "what came before the ping does not answer it"
    clock.heard = 12.0
    assert not clock.dead(15.001)
    assert not clock.dead(1e9)


def test_bytes_later_than_the_ping_was_decided_are_no_answer_either() -> None:
    clock = Keepalive(10, 5, 0.0)
    clock.heard = 10.2  # read after `now` was taken
    assert clock.ping_due(10.0)
    assert clock.dead(15.201)


@pytest.mark.parametrize(("interval", "timeout"), [(None, 5), (10, None), (None, None)], ids=str)
def test_none_is_never(interval: Optional[float], timeout: Optional[float]) -> None:
    clock = Keepalive(interval, timeout, 0.0)
    assert clock.ping_due(1e9) is (interval is not None)
    assert not clock.dead(1e12)
    assert clock.deadline() == (math.inf if interval is None else 1e9 + 10)


def test_suspended_it_pings_and_finds_nobody_dead_until_resumed() -> None:
    clock = Keepalive(10, 5, 0.0)
    assert clock.ping_due(10.0)
    clock.suspend()
    assert not clock.dead(1000.0)
    assert clock.ping_due(1000.0)
    clock.resume(1001.0)
    assert not clock.dead(1005.9), "the answer gets its whole time again"
    assert clock.dead(1006.001)
    clock.resume(1006.0)
    assert clock.dead(1006.001), "only a suspended one is resumed"


def test_restarting_is_for_an_answer_awaited() -> None:
    clock = Keepalive(10, 5, 0.0)
    clock.restart(3.0)
    assert clock.deadline() == 10, "none is awaited"
    assert clock.ping_due(10.0)
    clock.restart(14.0)
    assert not clock.dead(18.9)
    assert clock.dead(19.001)


# Against peers.


class Silent:
    """Upgrades and echoes until told to say nothing more; reads on, and does not close."""

    def __init__(self) -> None:
        self.quiet = threading.Event()
        self.since = math.inf  # monotonic time of its last byte
        self.release = threading.Event()

    def __call__(self, connection: RawConnection) -> None:
        connection.upgrade()
        connection.sock.settimeout(0.005)
        while not self.release.is_set():
            try:
                opcode, payload = connection.read_frame()
            except socket.timeout:  # TimeoutError from Python 3.10 on
                continue
            if not self.quiet.is_set():
                self.since = time.monotonic()
                connection.sock.sendall(frame(PONG if opcode == PING else opcode, payload))


def test_promise_18_a_peer_that_falls_silent_without_fin_is_found() -> None:
    interval, timeout = 0.4, 0.6
    peer, recorder = Silent(), RecordingDelegate()
    with RawServer(peer) as raw:
        client = wsthread.WebSocketClient(
            raw.url, recorder, reconnect=False, ping_interval=interval, ping_timeout=timeout
        )
        client.connect()
        recorder.wait_for("pong", count=2)  # it is well
        assert client.latency is not None and 0 <= client.latency < SOON
        peer.quiet.set()
        _, code, reason = recorder.wait_for("close")
        took = time.monotonic() - peer.since
        assert client.wait(SOON)
        peer.release.set()
    assert (code, reason) == (1006, "")
    assert timeout - 0.01 <= took < interval + timeout + 0.5
    [(_, error)] = recorder.of("error")
    assert isinstance(error, wsthread.ConnectionClosed)
    assert error.code == 1006 and not error.clean
    assert str(error) == "the peer does not answer pings"
    assert client.error is error


def test_promise_18_without_a_timeout_silence_is_waited_for() -> None:
    peer, recorder = Silent(), RecordingDelegate()
    with RawServer(peer) as raw:
        client = wsthread.WebSocketClient(
            raw.url, recorder, reconnect=False, ping_interval=0.02, ping_timeout=None
        )
        client.connect()
        peer.quiet.set()
        assert not client.wait(0.5)
        peer.release.set()
        client.abort()


def test_pings_come_every_interval_and_none_without_one() -> None:
    pings: List[Tuple[float, bytes]] = []

    def script(connection: RawConnection) -> None:
        connection.upgrade()
        while True:
            opcode, payload = connection.read_frame()
            if opcode == PING:
                pings.append((time.monotonic(), payload))
            connection.sock.sendall(frame(PONG if opcode == PING else opcode, payload))
            if opcode == 8:
                return

    with RawServer(script) as raw:
        client = wsthread.WebSocketClient(raw.url, reconnect=False, ping_interval=0.2)
        client.connect()
        eventually(lambda: len(pings) >= 4)
        assert client.disconnect()
        gaps = [later[0] - earlier[0] for earlier, later in zip(pings, pings[1:])]
        assert min(gaps) > 0.1 and sum(gaps) / len(gaps) >= 0.19, gaps
        assert len({payload for _, payload in pings}) == len(pings)
        assert all(1 <= len(payload) <= 125 for _, payload in pings)
        pings.clear()
        client = wsthread.WebSocketClient(raw.url, reconnect=False, ping_interval=None)
        client.connect()
        client.send("in between")
        assert not client.wait(0.5)
        assert client.disconnect()
        assert pings == []


def trickle(connection: Any, data: bytes, every: float, ended: threading.Event) -> None:
    """Send byte by byte, answering nothing."""
    for position in range(len(data)):
        if ended.wait(every):
            return
        connection.sock.sendall(data[position : position + 1])


def test_promise_18_bytes_of_a_message_that_trickles_in_are_life() -> None:
    message, ended = b"x" * 60, threading.Event()

    def script(connection: RawConnection) -> None:
        connection.upgrade()
        trickle(connection, frame(TEXT, message), 0.03, ended)
        connection.answer_close()

    recorder = RecordingDelegate()
    with RawServer(script) as raw:
        client = wsthread.WebSocketClient(
            raw.url, recorder, reconnect=False, ping_interval=0.1, ping_timeout=0.5
        )
        client.connect()
        recorder.wait_for("message")
        assert client.disconnect()
    assert recorder.messages() == ["x" * 60]
    assert recorder.of("error") == []


class Trickler:
    """A relay for one connection: while `slow`, the server's bytes come through one by one."""

    def __init__(self, port: int, slow: threading.Event, every: float) -> None:
        self._slow, self._every, self._upstream = slow, every, port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        client, _ = self._listener.accept()
        with client, socket.create_connection(("127.0.0.1", self._upstream)) as server:
            up = threading.Thread(target=self._upwards, args=(client, server), daemon=True)
            up.start()
            with contextlib.suppress(OSError):
                while data := server.recv(65536):
                    step = 1 if self._slow.is_set() else len(data)
                    for start in range(0, len(data), step):
                        client.sendall(data[start : start + step])
                        if step == 1 and self._slow.wait() and self._every:
                            time.sleep(self._every)
                client.shutdown(socket.SHUT_WR)
            up.join(SOON)

    def _upwards(self, client: socket.socket, server: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := client.recv(65536):
                server.sendall(data)
            server.shutdown(socket.SHUT_WR)

    def __enter__(self) -> Trickler:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._listener.close()
        self._thread.join(SOON)


def test_promise_18_bytes_of_a_tls_record_that_trickles_in_are_life() -> None:
    """A record is of no use before it is whole, but its bytes show that the peer lives."""
    certificates, slow = Certificates(), threading.Event()

    def script(connection: RawConnection) -> None:
        connection.upgrade()
        connection.read_frame()
        slow.set()
        connection.sock.sendall(frame(TEXT, b"x" * 100))
        connection.answer_close()

    recorder = RecordingDelegate()
    context = certificates.server_context()
    with RawServer(script, context) as raw, Trickler(raw.port, slow, 0.015) as relay:
        client = wsthread.WebSocketClient(
            f"wss://127.0.0.1:{relay.port}/",
            recorder,
            ssl_context=certificates.client_context(),
            reconnect=False,
            ping_interval=0.1,
            ping_timeout=0.6,
        )
        client.connect()
        client.send("go on")
        eventually(lambda: recorder.of("message", "close"))
        assert recorder.messages() == ["x" * 100]
        assert client.disconnect()
    assert recorder.of("error") == []


class Blocking(RecordingDelegate):
    """Its first `on_message` holds the dispatcher up."""

    def __init__(self) -> None:
        super().__init__()
        self.entered = threading.Event()
        self.release = threading.Event()

    def on_message(self, client: Any, message: Any) -> None:
        self.entered.set()
        assert self.release.wait(SOON * 2)
        super().on_message(client, message)


@pytest.mark.parametrize("answers", [True, False], ids=["unread", "late"])
def test_promise_18_a_reader_paused_by_back_pressure_does_not_mistake_its_peer(
    answers: bool,
) -> None:
    """Pongs may lie unread behind the messages; and a peer that waits for us may answer later."""
    recorder = Blocking()
    go_silent = threading.Event()

    def script(connection: RawConnection) -> None:
        connection.upgrade()
        for number in range(10):
            connection.sock.sendall(frame(TEXT, b"%d" % number))
        while not go_silent.is_set():
            opcode, payload = connection.read_frame()
            if answers or recorder.release.is_set():
                connection.sock.sendall(frame(PONG if opcode == PING else opcode, payload))
        connection.read_to_end()

    with RawServer(script) as raw:
        client = wsthread.WebSocketClient(
            raw.url,
            recorder,
            reconnect=False,
            ping_interval=0.1,
            ping_timeout=0.3,
            receive_queue=QueueLimit(messages=2),
        )
        client.connect()
        assert recorder.entered.wait(SOON)
        eventually(lambda: client.stats.back_pressure_pauses)
        assert not client.wait(1.2), "three times the time a silent peer has"
        assert client.state is wsthread.ConnectionState.CONNECTED
        recorder.release.set()
        recorder.wait_for("message", count=10)
        recorder.wait_for("pong", count=4)
        assert recorder.of("close") == []
        go_silent.set()  # ... and a silent one is found again after a pause
        assert recorder.wait_for("close")[1] == 1006
        assert client.wait(SOON)
    assert recorder.messages() == [str(number) for number in range(10)]


def test_promise_18_an_answer_that_came_while_the_reader_was_held_up_counts() -> None:
    """An inline callback holds the reader up for longer than the peer's time."""
    pinged, held_up, ponged = threading.Event(), threading.Event(), threading.Event()

    class HoldsUp(RecordingDelegate):
        def on_sent(self, client: Any, message: Any) -> None:
            super().on_sent(client, message)
            held_up.set()
            assert ponged.wait(SOON)
            recorder_released.wait(0.5)

    def script(connection: RawConnection) -> None:
        connection.upgrade()
        while True:
            opcode, payload = connection.read_frame()
            if opcode == PING and not ponged.is_set():
                pinged.set()
                assert held_up.wait(SOON)
            connection.sock.sendall(frame(PONG if opcode == PING else opcode, payload))
            if opcode == PING:
                ponged.set()
            if opcode == 8:
                return

    recorder, recorder_released = HoldsUp(), threading.Event()  # never set: it is the time
    with RawServer(script) as raw:
        client = wsthread.WebSocketClient(
            raw.url,
            recorder,
            dispatcher=wsthread.InlineDispatcher(),
            reconnect=False,
            ping_interval=0.2,
            ping_timeout=0.3,
        )
        client.connect()
        assert pinged.wait(SOON)
        client.send("hold the reader up")
        eventually(lambda: len(recorder.of("pong")) >= 2 or recorder.of("close"))
        assert recorder.of("close") == []
        assert client.disconnect()
    assert recorder.of("error") == []
