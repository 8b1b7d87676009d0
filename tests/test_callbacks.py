"""Promises 5 to 8: how callbacks run, block, raise, and what bounds what waits for them."""

from __future__ import annotations

import contextlib
import gc
import random
import socket
import sys
import threading
import time
import warnings
import weakref
from collections import deque
from typing import Any, Callable, Iterator, List, Tuple

import pytest

import wsthread
from tests.support import (
    SOON,
    RawConnection,
    RawServer,
    close_frame,
    echo_server,
    frame,
)
from tests.test_dispatchers import KINDS, Rig, quick, received
from wsthread import ConnectionState, QueueLimit
from wsthread.testing import RecordingDelegate
from wsthread.waits import Flag

THREADED = [kind for kind in KINDS if kind != "inline"]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with echo_server() as url:
        yield url


@pytest.fixture(params=KINDS)
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    rig = Rig(request.param)
    yield rig
    rig.close()


@pytest.fixture(params=THREADED)
def threaded(request: pytest.FixtureRequest) -> Iterator[Rig]:
    """Every dispatcher whose callbacks do not run on the reader."""
    rig = Rig(request.param)
    yield rig
    rig.close()


@pytest.fixture
def switching() -> Iterator[None]:
    """Threads switch as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.fixture
def hooked(monkeypatch: pytest.MonkeyPatch) -> List[Any]:
    """What reached threading.excepthook, as (type, text)."""
    seen: List[Any] = []
    monkeypatch.setattr(
        threading, "excepthook", lambda args: seen.append((args.exc_type, str(args.exc_value)))
    )
    return seen


class Blocking(RecordingDelegate):
    """Blocks in its first on_message until `hold` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.held, self.hold = threading.Event(), threading.Event()

    def on_message(self, client: Any, message: Any) -> None:
        super().on_message(client, message)
        if not self.held.is_set():
            self.held.set()
            assert self.hold.wait(SOON)


def idle(client: wsthread.WebSocketClient) -> None:
    """Wait until no callback runs: one that had begun may outlive its sealed life."""
    deadline = time.monotonic() + SOON
    while client.mailbox._running is not None:
        assert time.monotonic() < deadline
        time.sleep(0.001)


class Strict(RecordingDelegate):
    """Notes every violation of promise 5 that a delegate can see."""

    def __init__(self) -> None:
        super().__init__()
        self.violations: List[str] = []
        self._inside = threading.Lock()
        self._open = False

    def record(self, *event: Any) -> None:
        if not self._inside.acquire(False):
            self.violations.append(f"{event} overlaps another callback")
            return
        try:
            if event[0] == "open":
                if self._open:
                    self.violations.append("a second on_open")
                self._open = True
            elif event[0] == "close":
                if not self._open:
                    self.violations.append("on_close without on_open")
                self._open = False
            elif event == ("state", "DISCONNECTED") and self._open:
                self.violations.append("DISCONNECTED before on_close")
            elif event[0] != "state" and not self.events:
                self.violations.append(f"{event} before CONNECTING")
            elif self.events[-1:] == [("state", "DISCONNECTED")] and event[1:] != ("CONNECTING",):
                self.violations.append(f"{event} after DISCONNECTED")
            super().record(*event)
        finally:
            self._inside.release()


# Promise 5.


def last_words(connection: RawConnection) -> None:
    connection.upgrade()
    connection.read_frame()
    connection.sock.sendall(frame(1, b"1") + frame(9, b"p") + frame(1, b"2") + close_frame(1011))
    connection.read_to_end()


def test_promise_05_the_order_at_the_end(rig: Rig) -> None:
    recorder = Strict()
    with RawServer(last_words) as server:
        client = quick(server.url, recorder, dispatcher=rig.dispatcher)
        client.connect()
        client.send("go")
        assert client.wait(SOON)
    assert recorder.violations == []
    names = recorder.names()
    tail = names[names.index("message") :]
    assert [n for n in tail if n != "sent"] == [
        *("message", "ping", "message", "state", "error", "close", "state")
    ]
    assert recorder.states() == ["CONNECTING", "CONNECTED", "CLOSING", "DISCONNECTED"]
    assert recorder.of("close") == [("close", 1011, "")]


def stalls_then_resets(go: threading.Event) -> Callable[[RawConnection], None]:
    def script(connection: RawConnection) -> None:
        connection.upgrade()
        connection.sock.sendall(frame(1, b"last"))
        assert go.wait(SOON)
        connection.reset()

    return script


def test_promise_05_unsent_come_between_messages_and_error(rig: Rig) -> None:
    recorder, go = Strict(), threading.Event()
    with RawServer(stalls_then_resets(go), receive_buffer=4096) as server:
        client = quick(server.url, recorder, dispatcher=rig.dispatcher)
        client.connect()
        recorder.wait_for("message")
        for _ in range(12):
            client.send(b"x" * 1_000_000)
        go.set()
        assert client.wait(SOON)
    assert recorder.violations == []
    sent, unsent = len(recorder.of("sent")), len(recorder.of("unsent"))
    assert unsent > 0 and sent + unsent == 12
    assert recorder.names()[-3 - unsent :] == ["unsent"] * unsent + ["error", "close", "state"]


def test_promise_05_a_failed_connect_ends_with_disconnected(rig: Rig) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        recorder = Strict()
        address = f"ws://127.0.0.1:{unused.getsockname()[1]}/"
        client = quick(address, recorder, dispatcher=rig.dispatcher)
        client.send("never")
        with pytest.raises(wsthread.ConnectError):
            client.connect()
        assert client.wait(SOON)
        assert recorder.names() == ["state", "unsent", "state"]
        assert recorder.states() == ["CONNECTING", "DISCONNECTED"]
        client.connect(wait=False)
        recorder.wait_for("error")
        assert client.wait(SOON)
    assert recorder.names()[3:] == ["state", "error", "state"]
    assert recorder.violations == []


def test_promise_05_every_open_has_one_close_through_reconnects(rig: Rig) -> None:
    def script(connection: RawConnection) -> None:
        connection.upgrade()
        connection.sock.sendall(frame(1, b"m"))
        if server.connections < 5:
            connection.sock.sendall(close_frame(1012))
            assert connection.read_frame()[0] == 8
        else:
            connection.read_to_end()

    recorder = Strict()
    with RawServer(script) as server:
        client = quick(
            server.url,
            recorder,
            dispatcher=rig.dispatcher,
            reconnect=wsthread.Reconnect(delay=0.01, max_delay=0.01),
        )
        client.connect()
        recorder.wait_for("message", count=5)
        client.abort()
    assert recorder.violations == []
    assert len(recorder.of("open")) == len(recorder.of("close")) == 5
    assert recorder.states().count("DISCONNECTED") == 1
    assert recorder.names()[-1] == "state"


def test_promise_05_no_message_starts_once_disconnect_was_called(threaded: Rig) -> None:
    recorder = Blocking()

    def script(connection: RawConnection) -> None:
        connection.upgrade(behind=b"".join(frame(1, b"%d" % n) for n in range(50)))
        connection.answer_close()

    with RawServer(script) as server:
        client = quick(server.url, recorder, dispatcher=threaded.dispatcher)
        client.connect()
        assert recorder.held.wait(SOON)
        received(client, 50)
        client.disconnect(wait=False)  # on this thread; the callbacks are on theirs
        recorder.hold.set()
        assert client.disconnect()
    assert recorder.messages() == ["0"]
    assert client.stats.messages_dropped == 49
    assert recorder.names()[-2:] == ["close", "state"]


def test_promise_05_none_at_all_after_disconnect_returned_true(url: str, rig: Rig) -> None:
    recorder = Strict()
    client = quick(url, recorder, dispatcher=rig.dispatcher)
    for _ in range(5):
        client.connect()
        client.send("push 2000")
        recorder.wait_for("message")
        assert client.disconnect()
        seen = len(recorder.events)
        time.sleep(0.02)  # whatever came now would be seen
        assert len(recorder.events) == seen
        assert recorder.events[-1] == ("state", "DISCONNECTED")
        recorder.events.clear()
    assert recorder.violations == []


def test_promise_05_a_blocked_callback_makes_it_false_and_seals(url: str, threaded: Rig) -> None:
    recorder = Blocking()
    client = quick(url, recorder, dispatcher=threaded.dispatcher)
    client.connect()
    client.send("push 100")
    received(client, 100)
    assert recorder.held.wait(SOON)
    begun = time.monotonic()
    assert client.disconnect(timeout=0.2) is False
    assert time.monotonic() - begun < 2
    assert client.disconnect() is False  # and stays so
    seen = list(recorder.events)
    recorder.hold.set()
    assert client.wait(SOON)
    idle(client)
    assert recorder.events == seen
    stats = client.stats
    assert stats.messages_dropped == 99 and stats.messages_received == 100


def test_promise_05_a_sealed_batch_of_on_sent_stops(url: str) -> None:
    hold, held = threading.Event(), threading.Event()

    class Slow(RecordingDelegate):
        def on_sent(self, client: Any, message: Any) -> None:
            super().on_sent(client, message)
            held.set()
            assert hold.wait(SOON)

    recorder = Slow()
    client = quick(url, recorder)
    client.send_many(["push 0"] * 50)
    client.connect()
    assert held.wait(SOON)
    assert client.disconnect(timeout=0.2) is False
    hold.set()
    client.wait(SOON)
    idle(client)
    assert len(recorder.of("sent")) == 1


def test_promise_05_next_life_begun_in_the_last_callback(url: str, rig: Rig) -> None:
    class Again(Strict):
        lives = 1

        def on_state_change(self, client: Any, state: Any) -> None:
            super().on_state_change(client, state)
            if state is ConnectionState.DISCONNECTED and self.lives < 10:
                self.lives += 1
                client.connect(wait=self.lives % 2 == 0)

    recorder = Again()
    client = quick(url, recorder, dispatcher=rig.dispatcher)
    client.connect()
    for lives in range(1, 11):
        recorder.wait_for("open", count=lives)
        assert client.disconnect()
    assert recorder.violations == []
    assert recorder.states() == ["CONNECTING", "CONNECTED", "CLOSING", "DISCONNECTED"] * 10


def test_promise_05_next_life_while_the_last_callback_still_blocks(url: str, threaded: Rig) -> None:
    hold, held = threading.Event(), threading.Event()

    class Slow(Strict):
        def record(self, *event: Any) -> None:
            super().record(*event)
            if event == ("state", "DISCONNECTED") and not held.is_set():
                with self._inside:
                    held.set()
                    assert hold.wait(SOON)

    recorder = Slow()
    client = quick(url, recorder, dispatcher=threaded.dispatcher)
    client.connect()
    recorder.wait_for("open")
    assert client.disconnect(timeout=0.3) is False
    assert held.wait(SOON)
    client.connect()
    client.send("x")
    received(client, 1)
    assert recorder.states().count("CONNECTING") == 1  # nothing of the second life yet
    hold.set()
    recorder.wait_for("message")
    assert client.disconnect()
    assert recorder.violations == []
    assert recorder.states() == ["CONNECTING", "CONNECTED", "CLOSING", "DISCONNECTED"] * 2


def test_promise_05_sealing_one_life_leaves_the_next_alone(url: str) -> None:
    """A disconnect() that waits for a blocked life must not drop what the next one says."""
    recorder = Blocking()
    client = quick(url, recorder)
    client.connect()
    client.send("a")
    assert recorder.held.wait(SOON)
    answers: List[bool] = []
    waiting = threading.Thread(target=lambda: answers.append(client.disconnect(timeout=0.5)))
    waiting.start()
    deadline = time.monotonic() + SOON
    while client._session is not None:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    client.connect()
    waiting.join(SOON)
    assert answers == [False]
    recorder.hold.set()
    recorder.wait_for("open", count=2)
    assert client.disconnect()
    assert recorder.states()[-4:] == ["CONNECTING", "CONNECTED", "CLOSING", "DISCONNECTED"]


# Promise 6.


def test_promise_06_a_blocked_callback_stops_nothing_else(threaded: Rig) -> None:
    recorder = Blocking()
    seen: List[Tuple[int, bytes]] = []

    def script(connection: RawConnection) -> None:
        connection.upgrade(behind=frame(1, b"block") + frame(9, b"are you there"))
        while not {8, 9, 1, 10} <= {opcode for opcode, _ in seen}:
            opcode, payload = connection.read_frame()
            seen.append((opcode, payload))
            if opcode == 9:
                connection.sock.sendall(frame(10, payload))
            if opcode == 8:
                connection.sock.sendall(frame(8, payload))
                return

    with RawServer(script) as server:
        client = quick(
            server.url, recorder, dispatcher=threaded.dispatcher, ping_interval=0.05, ping_timeout=2
        )
        client.connect()
        assert recorder.held.wait(SOON)
        client.send("from another thread")
        client.flush()
        assert client.ping() >= 0
        deadline = time.monotonic() + SOON
        while client.stats.pongs_received < 4:  # keepalive goes on
            assert time.monotonic() < deadline
            time.sleep(0.005)
        begun = time.monotonic()
        assert client.disconnect(timeout=0.3) is False
        assert time.monotonic() - begun < 2
        assert client.close_code == 1000  # a good handshake
        assert client._session is None
        recorder.hold.set()
        assert client.wait(SOON)
    assert (10, b"are you there") in seen
    assert (1, b"from another thread") in seen


# Promise 7.


class Raising(RecordingDelegate):
    """Raises `error` in every callback named."""

    def __init__(self, error: BaseException, *names: str) -> None:
        super().__init__()
        self._error, self._names = error, names

    def record(self, *event: Any) -> None:
        super().record(*event)
        if event[0] in self._names:
            raise self._error


CALLS = ["state", "open", "message", "sent", "ping", "pong", "close", "unsent", "reconnect"]


@pytest.mark.parametrize("kind", [ValueError, SystemExit, KeyboardInterrupt])
def test_promise_07_raising_stops_nothing(rig: Rig, kind: Any, hooked: Any) -> None:
    error = kind("raised")

    def script(connection: RawConnection) -> None:
        connection.upgrade(behind=frame(1, b"a") + frame(9) + frame(1, b"b") + frame(10))
        while connection.read_frame()[0] != 1:
            pass
        if server.connections < 2:
            connection.sock.sendall(close_frame(1012))
        else:
            connection.answer_close()

    recorder = Raising(error, *CALLS)
    with RawServer(script) as server:
        client = quick(
            server.url,
            recorder,
            dispatcher=rig.dispatcher,
            reconnect=wsthread.Reconnect(delay=0.01, max_delay=0.01),
        )
        client.connect()
        for count in (1, 2):
            recorder.wait_for("open", count=count)
            client.send("x")
            recorder.wait_for("message", count=2 * count)
        recorder.wait_for("sent", count=2)
        assert client.disconnect()
    assert recorder.messages() == ["a", "b"] * 2
    assert len(recorder.of("close")) == 2
    raised = [e for e in recorder.names() if e in CALLS]
    told = [e for e in recorder.of("error") if e[1] is error]
    assert len(told) == len(raised)
    assert set(raised) >= set(CALLS) - {"unsent"}
    assert hooked == []


@pytest.mark.parametrize("kind", [ValueError, SystemExit, KeyboardInterrupt])
def test_promise_07_on_error_itself_raising_goes_to_the_hook(
    url: str, rig: Rig, kind: Any, hooked: Any
) -> None:
    recorder = Raising(kind("raised"), "message", "error")
    client = quick(url, recorder, dispatcher=rig.dispatcher)
    client.connect()
    client.send("push 30")
    recorder.wait_for("message", count=30)
    assert client.disconnect()
    assert len(recorder.of("error")) == 30
    assert [raised for raised, _ in hooked] == [kind] * 30
    assert recorder.states()[-1] == "DISCONNECTED"


def test_promise_07_without_on_error_the_hook_gets_it(url: str, rig: Rig, hooked: Any) -> None:
    done = threading.Event()

    def on_message(client: Any, message: Any) -> None:
        if message == "2":
            done.set()
        raise ValueError(message)

    client = quick(url, wsthread.CallbackDelegate(on_message=on_message), dispatcher=rig.dispatcher)
    client.connect()
    client.send("push 3")
    assert done.wait(SOON)
    assert client.disconnect()
    assert hooked == [(ValueError, "0"), (ValueError, "1"), (ValueError, "2")]


def test_promise_07_a_hook_that_raises_stops_nothing_either(
    url: str, rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hook(args: Any) -> None:
        raise RuntimeError("the hook")

    monkeypatch.setattr(threading, "excepthook", hook)
    recorder = Raising(ValueError("v"), "message", "error")
    client = quick(url, recorder, dispatcher=rig.dispatcher)
    client.connect()
    client.send("push 3")
    recorder.wait_for("message", count=3)
    assert client.disconnect()


# Promise 8.


class Limits(RecordingDelegate):
    """Blocks in every on_message until `hold` is set; notes the most the mailbox ever held."""

    def __init__(self) -> None:
        super().__init__()
        self.hold, self.held = threading.Event(), threading.Event()
        self.most = 0

    def on_message(self, client: Any, message: Any) -> None:
        self.most = max(self.most, client.mailbox.messages)
        super().on_message(client, message)
        self.held.set()
        assert self.hold.wait(SOON)


class Flood:
    """A peer that sends numbered messages as fast as TCP takes them."""

    def __init__(self, count: int, size: int = 1000, then: bytes = b"", fin: bool = False) -> None:
        self.sent = 0
        self.stuck, self.done = threading.Event(), threading.Event()
        self._count, self._size, self._then, self._fin = count, size, then, fin

    def __call__(self, connection: RawConnection) -> None:
        sock = connection.sock
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
        connection.upgrade()
        sock.settimeout(0.3)
        with contextlib.suppress(ConnectionError):
            for number in range(self._count):
                data = memoryview(frame(1, (b"%d " % number).ljust(self._size, b".")))
                while data:
                    try:
                        data = data[sock.send(data) :]
                    except socket.timeout:
                        self.stuck.set()
                self.sent += 1
            sock.settimeout(SOON)
            sock.sendall(self._then)
            if self._fin:
                sock.shutdown(socket.SHUT_WR)
            self.done.set()
            connection.answer_close()


def numbers(recorder: RecordingDelegate) -> List[int]:
    return [int(message.split()[0]) for message in recorder.messages()]


TEN = QueueLimit(messages=10)


def small_buffer() -> Any:
    return (socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)


def test_promise_08_back_pressure_loses_nothing(threaded: Rig) -> None:
    count, flood, recorder = 6000, Flood(6000), Limits()
    with RawServer(flood) as server:
        client = quick(
            server.url, recorder, dispatcher=threaded.dispatcher, receive_queue=TEN,
            ping_interval=0.05, ping_timeout=0.1, sockopt=[small_buffer()],
        )  # fmt: skip
        client.connect()
        assert flood.stuck.wait(SOON), "the peer could send everything"
        assert recorder.held.wait(SOON)
        # Paused for several ping intervals and time-outs by now: that is not a dead peer.
        assert client.state is ConnectionState.CONNECTED
        assert 0 < client.mailbox.messages <= 10
        assert client.stats.back_pressure_pauses >= 1
        assert flood.sent < count
        client.send("sends go on")
        client.flush()
        recorder.hold.set()
        recorder.wait_for("message", count=count)
        assert client.disconnect()
    assert numbers(recorder) == list(range(count))
    assert recorder.most <= 10
    assert client.stats.messages_dropped == client.stats.messages_discarded == 0
    assert not recorder.of("error")


@pytest.mark.parametrize("end", ["fin", "close"])
def test_promise_08_what_came_before_the_end_is_delivered(threaded: Rig, end: str) -> None:
    then = close_frame(1000, "done") if end == "close" else b""
    flood, recorder = Flood(200, size=100, then=then, fin=end == "fin"), Limits()
    with RawServer(flood) as server:
        client = quick(
            server.url, recorder, dispatcher=threaded.dispatcher, receive_queue=TEN,
            ping_interval=0.05, ping_timeout=0.1,
        )  # fmt: skip
        client.connect()
        assert recorder.held.wait(SOON) and flood.done.wait(SOON)
        connection: Any = client._session._connection  # type: ignore[union-attr]
        if end == "fin":
            deadline = time.monotonic() + SOON
            while not connection.hung_up:  # the hang-up is noticed while reading rests
                assert time.monotonic() < deadline
                time.sleep(0.001)
        del connection
        recorder.hold.set()
        assert client.wait(SOON)
    assert numbers(recorder) == list(range(200))
    assert recorder.most <= 10
    assert recorder.of("close")[0][1] == (1000 if end == "close" else 1006)


def test_promise_08_a_reset_while_paused_is_noticed() -> None:
    recorder, go = Limits(), threading.Event()

    def script(connection: RawConnection) -> None:
        connection.upgrade(behind=b"".join(frame(1, b"%d " % n) for n in range(100)))
        assert go.wait(SOON)
        connection.reset()

    with RawServer(script) as server:
        client = quick(server.url, recorder, receive_queue=TEN)
        client.connect()
        assert recorder.held.wait(SOON)
        go.set()
        deadline = time.monotonic() + 3
        while client._session is not None:  # although the callback still blocks
            assert time.monotonic() < deadline
            time.sleep(0.001)
        recorder.hold.set()
        assert client.wait(SOON)
    # The rest of what had been read by then is not lost.
    assert numbers(recorder) == list(range(100))


def test_promise_08_disconnect_reads_again_and_closes_well(threaded: Rig) -> None:
    flood, recorder = Flood(3000), Limits()
    with RawServer(flood) as server:
        client = quick(
            server.url, recorder, dispatcher=threaded.dispatcher, receive_queue=TEN,
            sockopt=[small_buffer()],
        )  # fmt: skip
        client.connect()
        assert flood.stuck.wait(SOON)
        assert recorder.held.wait(SOON)
        assert client.disconnect(timeout=1.5) is False  # the callback still blocks
        assert flood.done.wait(SOON)
        assert client.close_code == 1000 and client.error is None
        recorder.hold.set()
        idle(client)
    stats = client.stats
    assert len(recorder.messages()) == 1
    assert stats.messages_received == 3000
    assert stats.messages_discarded + stats.messages_dropped == 2999
    assert stats.messages_discarded > 0 and stats.messages_dropped > 0


def burst(connection: RawConnection) -> None:
    connection.upgrade(behind=frame(1, b"0 "))
    connection.read_frame()
    connection.sock.sendall(b"".join(frame(1, b"%d " % n) for n in range(1, 101)))
    with contextlib.suppress(EOFError, ConnectionError):
        connection.answer_close()


@pytest.mark.parametrize("overflow", ["drop_oldest", "drop_newest"])
def test_promise_08_overflow_drops_and_counts(threaded: Rig, overflow: str) -> None:
    recorder = Limits()
    with RawServer(burst) as server:
        client = quick(
            server.url, recorder, dispatcher=threaded.dispatcher,
            receive_queue=QueueLimit(messages=10, overflow=overflow),
        )  # fmt: skip
        client.connect()
        assert recorder.held.wait(SOON)
        client.send("go")
        received(client, 101)
        waiting = client.mailbox.messages
        recorder.hold.set()
        recorder.wait_for("message", count=waiting)
        assert client.disconnect()
    got = numbers(recorder)
    assert client.stats.messages_dropped == 101 - len(got)
    if overflow == "drop_newest":
        assert got == list(range(10))
    else:
        assert got == [0, *range(92, 101)]  # what is being delivered is no longer dropped
    assert client.stats.back_pressure_pauses == 0


@pytest.mark.parametrize("piece", [1, 7, 100], ids=lambda count: f"{count} a read")
def test_promise_08_drop_oldest_keeps_to_the_bound_of_bytes(piece: int) -> None:
    """Whatever part of what waits each read drops, the newest stay, in order."""
    recorder = Limits()

    def script(connection: RawConnection) -> None:
        connection.upgrade(behind=frame(1, b"0 "))
        for first in range(1, 101, piece):
            connection.read_frame()
            numbered = (b"%d " % n + bytes(300) for n in range(first, min(first + piece, 101)))
            connection.sock.sendall(b"".join(frame(1, payload) for payload in numbered))
        connection.answer_close()

    with RawServer(script) as server:
        limit = QueueLimit(bytes=3000, overflow="drop_oldest")
        client = quick(server.url, recorder, receive_queue=limit)
        client.connect()
        assert recorder.held.wait(SOON)
        for first in range(1, 101, piece):
            client.send("go")
            received(client, min(first + piece, 101))
            assert client.mailbox.bytes <= max(3000, piece * 310)
        recorder.hold.set()
        deadline = time.monotonic() + SOON
        while len(recorder.messages()) + client.stats.messages_dropped < 101:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        assert client.disconnect()
    got = [int(message.split()[0]) for message in recorder.messages()]
    assert got == [0, *range(101 - len(got) + 1, 101)]
    assert len(got) >= 3000 // 310


def test_promise_08_overflow_close(threaded: Rig) -> None:
    recorder = Limits()
    codes: List[int] = []

    def script(connection: RawConnection) -> None:
        connection.upgrade(behind=frame(1, b"0 "))
        connection.read_frame()
        connection.sock.sendall(b"".join(frame(1, b"%d " % n) for n in range(1, 101)))
        codes.append(connection.answer_close()[0])

    with RawServer(script) as server:
        client = quick(
            server.url, recorder, dispatcher=threaded.dispatcher,
            receive_queue=QueueLimit(messages=10, overflow="close"),
        )  # fmt: skip
        client.connect()
        assert recorder.held.wait(SOON)
        client.send("go")
        deadline = time.monotonic() + SOON
        while client._session is not None:
            assert time.monotonic() < deadline
            time.sleep(0.001)
        recorder.hold.set()
        assert client.wait(SOON)
    assert codes == [1008]
    assert numbers(recorder) == list(range(10))
    assert client.stats.messages_dropped == 91
    assert recorder.of("close")[0][1] == 1008
    assert isinstance(recorder.of("error")[0][1], wsthread.ConnectionClosed)


def test_promise_08_the_bound_of_bytes() -> None:
    recorder = Limits()
    flood = Flood(2000, size=10_000)
    with RawServer(flood) as server:
        client = quick(
            server.url, recorder, receive_queue=QueueLimit(bytes=100_000), sockopt=[small_buffer()]
        )
        client.connect()
        assert flood.stuck.wait(SOON) and recorder.held.wait(SOON)
        assert client.mailbox.bytes <= 100_000 + 65536 + 10_000
        recorder.hold.set()
        recorder.wait_for("message", count=2000)
        assert client.disconnect()
    assert numbers(recorder) == list(range(2000))


# Corners: disconnect() and the others inside callbacks.


@pytest.mark.parametrize(
    "where", ["CONNECTING", "CONNECTED", "open", "message", "sent", "pong", "close", "CLOSING",
              "DISCONNECTED"],
)  # fmt: skip
def test_disconnect_inside_any_callback(url: str, rig: Rig, where: str) -> None:
    took: List[float] = []

    class Leaving(Strict):
        def record(self, *event: Any) -> None:
            super().record(*event)
            if where in event and not took:
                begun = time.monotonic()
                answer = client.disconnect()
                took.append(time.monotonic() - begun)
                assert answer is False  # this callback itself is not over

    recorder = Leaving()
    client = quick(url, recorder, dispatcher=rig.dispatcher)
    with contextlib.suppress(wsthread.ConnectError, wsthread.NotConnected):
        client.connect()
        client.send("x")
        if where == "pong":
            client.ping()
        elif where in ("close", "CLOSING", "DISCONNECTED"):
            client.disconnect()
    assert client.wait(SOON)
    assert took and took[0] < 2
    assert recorder.violations == [] and not recorder.of("error")
    assert recorder.states()[-1] == "DISCONNECTED"


def test_disconnect_of_another_client_of_the_dispatcher(url: str, rig: Rig) -> None:
    answers: List[bool] = []
    other_recorder, recorder = Strict(), RecordingDelegate()
    other = quick(url, other_recorder, dispatcher=rig.dispatcher)

    class Ending(RecordingDelegate):
        def on_message(self, client: Any, message: Any) -> None:
            answers.append(other.disconnect())
            recorder.record("done")

    client = quick(url, Ending(), dispatcher=rig.dispatcher)
    other.connect()
    client.connect()
    client.send("x")
    recorder.wait_for("done")
    assert other.wait(SOON)
    assert other_recorder.states()[-1] == "DISCONNECTED"
    assert other_recorder.violations == []
    assert client.disconnect()


def test_two_clients_disconnect_each_other_at_the_same_moment(url: str, rig: Rig) -> None:
    meeting = threading.Barrier(2 if rig.kind in ("default", "inline", "executor") else 1)
    clients: List[Any] = []
    recorders = [RecordingDelegate(), RecordingDelegate()]

    def delegate(index: int) -> wsthread.WebSocketDelegate:
        def on_message(client: Any, message: Any) -> None:
            meeting.wait(SOON)
            clients[1 - index].disconnect(timeout=1)
            if meeting.parties == 1:  # one thread: the other's message starts no more
                client.disconnect()
            recorders[index].record("done")

        return wsthread.CallbackDelegate(on_message=on_message)

    clients += [quick(url, delegate(index), dispatcher=rig.dispatcher) for index in (0, 1)]
    for client in clients:
        client.connect()
    for client in clients:
        with contextlib.suppress(wsthread.NotConnected):  # the other's callback was faster
            client.send("x")
    begun = time.monotonic()
    if meeting.parties == 2:
        recorders[0].wait_for("done")
        recorders[1].wait_for("done")
    for client in clients:
        assert client.wait(SOON)
    assert time.monotonic() - begun < 4


def test_waiting_for_oneself_is_an_error(rig: Rig) -> None:
    errors: List[str] = []
    recorder, done = RecordingDelegate(), threading.Event()

    def script(connection: RawConnection) -> None:
        connection.upgrade(behind=frame(1, b"x"))
        assert done.wait(SOON)  # until then the client is closing
        connection.answer_close()

    def on_message(client: Any, message: Any) -> None:
        for call in (client.wait, client.flush, client.ping):
            try:
                call()
            except RuntimeError as error:
                errors.append(str(error))
        client.connect()  # is connected: returns
        client.disconnect(wait=False)
        try:
            client.connect()
        except RuntimeError as error:
            errors.append(str(error))
        done.set()
        recorder.record("done")

    delegate = wsthread.CallbackDelegate(on_message=on_message)
    with RawServer(script) as server:
        client = quick(server.url, delegate, dispatcher=rig.dispatcher)
        client.connect()
        recorder.wait_for("done")
        assert client.wait(SOON)
    assert len(errors) == 4 and all("callback" in error for error in errors)


def test_waiting_for_another_client_runs_its_callbacks_here(url: str) -> None:
    """On a shared thread nobody else could."""
    answers: List[Any] = []
    recorder, other_recorder = RecordingDelegate(), Strict()
    with wsthread.ThreadDispatcher() as dispatcher:
        other = quick(url, other_recorder, dispatcher=dispatcher)

        def on_message(client: Any, message: Any) -> None:
            other.disconnect(wait=False)
            answers.append(other.wait(SOON))
            recorder.record("done")

        client = quick(url, wsthread.CallbackDelegate(on_message=on_message), dispatcher=dispatcher)
        other.connect()
        client.connect()
        client.send("x")
        recorder.wait_for("done", timeout=3)
        assert answers == [True]
        assert client.disconnect()
    assert other_recorder.violations == []


# A kept error (promise 1).


def parts(client: wsthread.WebSocketClient) -> List[Any]:
    session: Any = client._session
    connection = session._connection
    things = (session, connection, connection.transport, connection.parser, connection.writer)
    return [weakref.ref(thing) for thing in (*things, session.outbox, session.waker)]


def alive(references: List[Any]) -> List[str]:
    return [type(r()).__name__ for r in references if r() is not None]


@pytest.fixture
def uncollected() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


class Keeping(RecordingDelegate):
    """Keeps errors, with their tracebacks: those it catches and those it raises."""

    def __init__(self, catches: bool, where: str) -> None:
        super().__init__()
        self.kept: List[BaseException] = []
        self._catches, self._where = catches, where

    def record(self, *event: Any) -> None:
        super().record(*event)
        if event[0] == "error" and isinstance(event[1], ZeroDivisionError):
            self.kept.append(event[1])
        elif event[0] == self._where or self._where in event:
            if not self._catches:
                raise ZeroDivisionError
            try:
                raise ZeroDivisionError
            except ZeroDivisionError as error:
                self.kept.append(error)


@pytest.mark.parametrize("catches", [True, False], ids=["caught", "raised"])
@pytest.mark.parametrize(
    "where", ["open", "message", "sent", "close", "CONNECTING", "DISCONNECTED"]
)
def test_promise_01_an_error_kept_by_a_callback_keeps_no_connection(
    url: str, rig: Rig, where: str, catches: bool, uncollected: None
) -> None:
    recorder = Keeping(catches, where)
    client = quick(url, recorder, dispatcher=rig.dispatcher)
    client.connect()
    gone = parts(client)
    client.send("x")
    recorder.wait_for("message")
    recorder.wait_for("sent")
    assert client.disconnect()
    assert recorder.kept and recorder.kept[0].__traceback__ is not None
    assert alive(gone) == []
    client_gone = weakref.ref(client)
    recorder.kept.clear()
    recorder.events.clear()
    del client
    assert client_gone() is None


def held_by_frames(error: BaseException) -> Iterator[Any]:
    """The locals of the library's frames that an error's traceback reaches.

    Not of the recording delegate's, which are as the program's own.
    """
    entry = error.__traceback__
    assert entry is not None
    frame: Any = entry.tb_frame
    while frame is not None:
        name = frame.f_globals.get("__name__", "")
        if name.startswith("wsthread.") and name != "wsthread.testing":
            yield from frame.f_locals.values()
        frame = frame.f_back


@pytest.mark.parametrize("catches", [True, False], ids=["caught", "raised"])
def test_promise_01_an_error_kept_by_a_callback_keeps_no_batch(
    url: str, rig: Rig, catches: bool, uncollected: None
) -> None:
    recorder = Keeping(catches, "message")
    client = quick(url, recorder, dispatcher=rig.dispatcher)
    client.connect()
    client.send("push 20")
    recorder.wait_for("message", count=20)
    assert client.disconnect()
    held = [value for error in recorder.kept for value in held_by_frames(error)]
    assert len(recorder.kept) == 20 and held
    assert [value for value in held if isinstance(value, (list, tuple, deque)) and value] == []
    recorder.kept.clear()


def test_promise_01_kept_errors_of_methods_keep_no_connection(url: str, uncollected: None) -> None:
    kept: List[BaseException] = []
    hold, held = threading.Event(), threading.Event()

    def on_open(client: Any) -> None:
        held.set()
        assert hold.wait(SOON)

    client = quick(url, wsthread.CallbackDelegate(on_open=on_open))
    client.connect()
    gone = parts(client)
    assert held.wait(SOON)
    calls: List[Callable[[], Any]] = [
        lambda: client.send(object()),  # type: ignore[arg-type]
        lambda: client.send_many(["x", 3]),  # type: ignore[list-item]
        lambda: client.flush(timeout=0),
        lambda: client.ping(timeout=0),
        lambda: client.disconnect(code=1005),
    ]
    for call in calls:
        try:
            call()
        except Exception as error:
            kept.append(error)
    hold.set()
    assert client.disconnect()
    for call in [*calls[2:4], lambda: client.send("x")]:
        try:
            call()
        except wsthread.NotConnected as error:
            kept.append(error)
    assert len(kept) >= 6
    assert alive(gone) == []


def test_promise_01_a_kept_error_of_connect_keeps_nothing(uncollected: None) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"ws://127.0.0.1:{unused.getsockname()[1]}/"
        client = quick(address, RecordingDelegate())
        session: List[Any] = []
        ended = client.session_ended

        def noting(one: Any) -> None:
            session.append(weakref.ref(one))
            ended(one)

        client.session_ended = noting  # type: ignore[method-assign]
        try:
            client.connect()
        except wsthread.ConnectError as error:
            kept = error
        assert kept.__traceback__ is not None
        assert alive(session) == [] and len(session) == 1
        del client.session_ended
        noting = ended = None  # type: ignore[assignment]
        gone = weakref.ref(client)
        client_traceback = kept.__traceback__
        del kept, client_traceback, client
        assert gone() is None


def test_promise_01_a_kept_interrupt_of_connect_keeps_no_session(
    url: str, uncollected: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Ctrl-C does while connect() waits; sys.last_exc would keep it like this."""
    client = quick(url, RecordingDelegate())
    seen: List[Any] = []
    wait = Flag.wait

    def interrupted(event: Flag, timeout: Any = None) -> bool:
        session = client._session
        if session is not None and event is session.settled:
            seen.append(weakref.ref(session))
            raise KeyboardInterrupt
        return wait(event, timeout)

    monkeypatch.setattr(Flag, "wait", interrupted)
    try:
        client.connect()
    except KeyboardInterrupt as error:
        kept = error
    monkeypatch.undo()
    assert client.wait(SOON)  # it was aborted
    assert len(seen) == 1
    # What the injected function itself held is the test's, not the library's.
    traceback_ = kept.__traceback__
    while traceback_.tb_next is not None:  # type: ignore[union-attr]
        traceback_ = traceback_.tb_next  # type: ignore[union-attr]
    traceback_.tb_frame.clear()  # type: ignore[union-attr]
    assert alive(seen) == []
    del kept


def test_promise_01_on_error_raising_what_it_got_leaves_no_cycle(
    url: str, uncollected: None, hooked: Any
) -> None:
    class Again(RecordingDelegate):
        def on_error(self, client: Any, error: Any) -> None:
            raise error

    client = quick(url, Again())
    client.connect()
    client.send("close 1011 x")
    assert client.wait(SOON)
    assert len(hooked) == 1
    gone = weakref.ref(client)
    del client
    assert gone() is None


def test_promise_01_a_failed_send_that_ended_the_connection_leaves_no_cycle(
    uncollected: None,
) -> None:
    done = threading.Event()

    def script(connection: RawConnection) -> None:
        connection.upgrade()
        assert done.wait(SOON)

    with RawServer(script, receive_buffer=4096) as server:
        client = quick(server.url, send_queue=QueueLimit(bytes=1000))
        client.connect()
        with contextlib.suppress(wsthread.SendTimeout):
            client.send(b"x" * 20_000_000, timeout=0.2)
        assert client.wait(SOON)
        assert isinstance(client.error, wsthread.SendTimeout)
        done.set()
        gone = weakref.ref(client)
        del client
        assert gone() is None


# Races, many times.

ROUNDS, TIME = 200, 8.0


def rounds() -> Iterator[int]:
    """Count at least ROUNDS rounds, or what fits into TIME seconds on a busy machine."""
    deadline = time.monotonic() + TIME
    for number in range(ROUNDS):
        yield number
        if time.monotonic() > deadline:
            assert number > 20, "far too slow"
            return


@pytest.mark.parametrize("kind", ["default", "inline", "executor"])
def test_promise_05_stress_disconnect_against_a_flood(url: str, kind: str, switching: None) -> None:
    rig, chance = Rig(kind), random.Random(1)
    recorder = Strict()
    client = quick(url, recorder, dispatcher=rig.dispatcher)
    for _ in rounds():
        recorder.events.clear()
        client.connect()
        client.send("push 300")
        recorder.wait_for("message", count=chance.randrange(1, 100))
        assert client.disconnect()
        assert recorder.names()[-2:] == ["close", "state"]
        seen = len(recorder.events)
        got = recorder.messages()
        assert got == [str(n) for n in range(len(got))]
        assert len(recorder.events) == seen
    rig.close()
    assert recorder.violations == []
    stats = client.stats
    assert client.mailbox.messages == client.mailbox.bytes == 0
    assert stats.messages_received >= stats.messages_dropped + stats.messages_discarded


@pytest.mark.parametrize("kind", ["default", "inline", "pump"])
def test_promise_05_stress_disconnect_from_callback_and_main(
    url: str, kind: str, switching: None
) -> None:
    rig = Rig(kind)

    class Leaving(Strict):
        def on_message(self, client: Any, message: Any) -> None:
            super().on_message(client, message)
            if message == "3":
                client.disconnect()

    recorder = Leaving()
    client = quick(url, recorder, dispatcher=rig.dispatcher)
    for _ in rounds():
        recorder.events.clear()
        client.connect()
        client.send("push 10")
        recorder.wait_for("message", count=2)
        assert client.disconnect()
        assert client._session is None
        assert recorder.events[-1] == ("state", "DISCONNECTED")
        assert len(recorder.messages()) <= 4
    rig.close()
    assert recorder.violations == []


def test_promise_03_stress_last_reference_dropped_during_a_callback(
    url: str, switching: None, uncollected: None
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        for _ in rounds():
            recorder = RecordingDelegate()
            client = quick(url, recorder)
            client.connect()
            gone = [*parts(client), weakref.ref(client)]
            reader = client._session.thread  # type: ignore[union-attr]
            client.send("push 20")
            recorder.wait_for("message")
            del client
            reader.join(SOON)
            assert not reader.is_alive()
            deadline = time.monotonic() + SOON
            while alive(gone):
                assert time.monotonic() < deadline, alive(gone)
                time.sleep(0.0005)


@pytest.mark.parametrize("kind", ["default", "inline", "shared"])
def test_promise_05_stress_connect_and_disconnect_storms(
    url: str, kind: str, switching: None
) -> None:
    rig, recorder = Rig(kind), Strict()
    client = quick(url, recorder, dispatcher=rig.dispatcher, close_timeout=5)
    failures: List[BaseException] = []
    until = time.monotonic() + 2.5
    counts = [0] * 4

    def storm(index: int) -> None:
        chance = random.Random(index)
        while time.monotonic() < until and not failures:
            counts[index] += 1
            try:
                if chance.random() < 0.5:
                    client.connect()
                    client.send("x")
                elif chance.random() < 0.2:
                    client.abort()
                else:
                    client.disconnect(wait=chance.random() < 0.8)
            except (wsthread.ConnectError, wsthread.NotConnected):
                pass  # another thread's disconnect came in between
            except BaseException as error:
                failures.append(error)

    threads = [threading.Thread(target=storm, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SOON * 2)
        assert not thread.is_alive()
    assert client.disconnect()
    rig.close()
    assert failures == []
    assert sum(counts) > 100
    assert recorder.violations == []
    assert recorder.events[-1] == ("state", "DISCONNECTED")
    assert client.mailbox.messages == client.mailbox.bytes == 0
