"""Promises 9 and 11: Ctrl-C at the worst moment of a sender, put there on purpose."""

from __future__ import annotations

import contextlib
import random
import select
import signal
import sys
import threading
import time
import weakref
from types import CodeType
from typing import Any, Callable, FrozenSet, Iterator, List

import pytest

import wsthread
from tests.support import (
    SOON,
    Background,
    RawConnection,
    RawServer,
    eventually,
    frame,
    narrow,
    peer,
)
from wsthread import dispatch, mailbox, outbox, waits
from wsthread.session import Session
from wsthread.stats import Counts
from wsthread.transport import Transport

pytestmark = pytest.mark.unmeasured  # the measuring would take the hook from it


@contextlib.contextmanager
def ctrl_c_at_call(code: CodeType) -> Iterator[None]:
    """Raise KeyboardInterrupt as this thread enters a function, where CPython looks for signals."""

    def trace(frame: Any, event: str, argument: Any) -> None:
        if event == "call" and frame.f_code is code:
            sys.settrace(None)
            raise KeyboardInterrupt

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        with pytest.raises(KeyboardInterrupt):
            yield
    finally:
        sys.settrace(before)


@pytest.mark.parametrize("function", [outbox.used, outbox.Outbox._count])
def test_promise_10_ctrl_c_leaves_nothing_counted_that_is_not_queued(function: Any) -> None:
    limit = wsthread.QueueLimit(messages=1)
    client = wsthread.WebSocketClient("ws://127.0.0.1:9/", send_queue=limit)
    with ctrl_c_at_call(function.__code__):
        client.send("interrupted")
    assert client.pending == client.stats.send_queue_bytes == 0
    client.send("accepted")


def test_promise_09_what_was_left_to_an_interrupted_sender_goes_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also while messages come without pause, which leave the reader nothing else to look at."""
    got: List[bytes] = []
    stop = threading.Event()

    def script(connection: RawConnection) -> None:
        connection.upgrade()

        def push() -> None:
            with contextlib.suppress(OSError):
                while not stop.wait(0.005):
                    connection.sock.sendall(frame(1, b"tick"))

        pushing = threading.Thread(target=push)
        pushing.start()
        opcode, payload = connection.read_frame()
        while opcode != 8:
            got.append(payload)
            opcode, payload = connection.read_frame()
        stop.set()
        pushing.join()
        connection.sock.sendall(frame(8, payload))

    inside, go_on = threading.Event(), threading.Event()
    send = Transport.send

    def slow(transport: Transport, *parts: Any) -> bool:
        done = send(transport, *parts)
        if threading.current_thread() is threading.main_thread():
            inside.set()
            assert go_on.wait(SOON)
        return done

    def other() -> None:
        assert inside.wait(SOON)
        client.send("other's")  # meets the lock held, and returns
        go_on.set()

    with RawServer(script) as server:
        client = wsthread.WebSocketClient(
            server.url, reconnect=False, compression=None, ping_interval=None
        )
        with client:
            eventually(lambda: client.stats.messages_received > 5)  # the reader is calm
            monkeypatch.setattr(Transport, "send", slow)
            thread = Background(other)
            with ctrl_c_at_call(Session.pump.__code__):
                client.send("interrupted one's")
            thread.result(SOON)
            eventually(lambda: got == [b"interrupted one's", b"other's"])


class Sent(wsthread.WebSocketDelegate):
    def __init__(self) -> None:
        self.messages: List[Any] = []

    def on_sent(self, client: Any, message: Any) -> None:
        self.messages.append(message)


@pytest.mark.parametrize("function", [outbox.Outbox.done, Session.written])
def test_promise_09_what_an_interrupted_sender_had_sent_is_told(function: Any) -> None:
    delegate = Sent()
    with RawServer(lambda connection: [connection.upgrade(), connection.answer_close()]) as server:
        client = wsthread.WebSocketClient(
            server.url, delegate, reconnect=False, compression=None, ping_interval=None
        )
        with client:
            with ctrl_c_at_call(function.__code__):
                client.send_many(["one", "two"])
            eventually(lambda: delegate.messages == ["one", "two"])
            assert client.pending == client.stats.send_queue_bytes == 0
            client.send("three")
            eventually(lambda: delegate.messages == ["one", "two", "three"])


def test_promise_11_ctrl_c_while_ringing_leaves_nobody_asleep() -> None:
    limit, ringing = wsthread.QueueLimit(messages=4), waits.ring.__code__

    def hook(frame: Any, event: str, argument: Any) -> None:
        name = getattr(argument, "__name__", "")
        if event == "c_return" and name in ("pop", "release") and frame.f_code is ringing:
            sys.setprofile(None)
            raise KeyboardInterrupt

    with peer(receive_buffer=4096) as raw:
        client = wsthread.WebSocketClient(
            raw.url, reconnect=False, compression=None, ping_interval=None, send_queue=limit
        )
        client.connect()
        connection = raw.accept()
        narrow(client, 4096)
        with pytest.raises(wsthread.SendTimeout):
            while True:
                client.send("x" * 5000, timeout=0.05)
        flushing = Background(client.flush, None)
        eventually(lambda: len(client._session.outbox._bells) == 1)  # type: ignore[union-attr]
        sys.setprofile(hook)
        try:
            with pytest.raises(KeyboardInterrupt):
                client.send("y" * 5000, timeout=0.05)  # gives up, and has the others look again
        finally:
            sys.setprofile(None)

        def drain() -> None:
            with contextlib.suppress(Exception):
                while True:
                    connection.read_frame()

        draining = Background(drain)
        flushing.result(SOON)
        client.abort()
        draining.result(SOON)


class Log(wsthread.WebSocketDelegate):
    """Notes every callback; of on_sent, which comes when it comes, apart."""

    def __init__(self, dispatcher: wsthread.PumpDispatcher) -> None:
        self.dispatcher = dispatcher
        self.events: List[Any] = []
        self.sent: List[Any] = []

    def on_state_change(self, client: Any, state: wsthread.ConnectionState) -> None:
        self.events.append(state.name)
        if state is wsthread.ConnectionState.DISCONNECTED:
            self.dispatcher.stop()

    def on_open(self, client: Any) -> None:
        self.events.append("open")

    def on_message(self, client: Any, message: Any) -> None:
        self.events.append(message)

    def on_ping(self, client: Any, payload: bytes) -> None:
        self.events.append("ping")

    def on_close(self, client: Any, code: int, reason: str) -> None:
        self.events.append("close")

    def on_sent(self, client: Any, message: Any) -> None:
        self.sent.append(message)


LOGGED = [
    *("CONNECTING", "CONNECTED", "open"),
    *map(str, range(40)),
    "ping",
    *map(str, range(40, 60)),
    *("CLOSING", "close", "DISCONNECTED"),
]


def talkative(connection: RawConnection) -> None:
    """Send messages and a ping; for two messages some more, and a close."""
    texts = [frame(1, str(number).encode()) for number in range(60)]
    connection.upgrade()
    connection.sock.sendall(b"".join([*texts[:40], frame(9, b"ping"), *texts[40:50]]))
    for _ in range(3):  # a pong as well
        connection.read_frame()
    connection.sock.sendall(b"".join([*texts[50:], frame(8, b"\x03\xe8")]))
    connection.read_frame()


@pytest.mark.parametrize("how", ["run_pending", "run_forever", "wait"])
def test_promise_05_ctrl_c_in_a_pump_loses_no_callback(how: str) -> None:
    """At each point in turn where CPython looks for signals while events are handed out."""
    files = {module.__file__ for module in (dispatch, mailbox, waits)}
    interrupted: List[int] = []

    def interrupt_at(point: int) -> None:
        """Live one life, with Ctrl-C at one point."""
        seen = 0

        def look(frame: Any, event: str, argument: Any) -> None:
            nonlocal seen
            if event in ("call", "c_return") and frame.f_code.co_filename in files:
                seen += 1
                if seen == point:
                    interrupted.append(point)
                    raise KeyboardInterrupt  # which takes the hook out

        dispatcher = wsthread.PumpDispatcher()
        log = Log(dispatcher)
        client = wsthread.WebSocketClient(
            server.url,
            log,
            dispatcher=dispatcher,
            compression=None,
            ping_interval=None,
            receive_queue=wsthread.QueueLimit(messages=20),
        )
        pump: Callable[[], object] = {
            "run_pending": dispatcher.run_pending,
            "run_forever": dispatcher.run_forever,
            "wait": lambda: client.wait(SOON),
        }[how]
        guard = threading.Timer(SOON, dispatcher.stop)
        guard.start()
        client.connect()
        client.send_many(["one", "two"])
        ends = time.monotonic() + SOON
        hook: Any = look
        while log.events[-1:] != ["DISCONNECTED"] and time.monotonic() < ends:
            if how == "run_pending":
                assert select.select([dispatcher], [], [], SOON)[0], log.events
            sys.setprofile(hook)
            try:
                pump()
            except KeyboardInterrupt:
                hook = None
            finally:
                sys.setprofile(None)
        guard.cancel()
        guard.join()
        assert log.events == LOGGED
        assert log.sent == ["one", "two"]
        assert client.wait(SOON)
        stats = client.stats
        assert stats.receive_queue_messages == stats.receive_queue_bytes == 0
        assert stats.messages_dropped == stats.messages_discarded == 0
        dispatcher.close()

    with RawServer(talkative) as server:
        point = 1
        while point - (interrupted or [0])[-1] < 4:  # what comes when differs
            interrupt_at(point)
            point += 1
    assert len(interrupted) > 60


@pytest.mark.skipif(sys.version_info < (3, 10), reason="3.9 may leave a lock locked")
@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="there is no such timer")
def test_promise_05_ctrl_c_in_a_pump_where_cpython_looks_for_it() -> None:
    """Real signals, because a hook does not show all places: 3.13 has one outside every `try`."""
    chosen = random.Random(1)
    armed, signals = False, 0

    def handler(number: int, stack: Any) -> None:
        nonlocal armed, signals
        if armed:
            armed = False
            signals += 1
            raise KeyboardInterrupt

    class Client:
        """As much of a client as the mailbox looks at."""

        overridden: FrozenSet[str] = frozenset()
        error = None

        def __init__(self) -> None:
            self.delegate = self
            self.got: List[int] = []

        def on_message(self, client: Any, message: int) -> None:
            self.got.append(message)

    timer = signal.getitimer(signal.ITIMER_REAL)  # the timeout of the test, perhaps
    before = signal.signal(signal.SIGALRM, handler)
    try:
        ends = time.monotonic() + 5
        while signals < 5000 and time.monotonic() < ends:
            client: Any = Client()
            dispatcher = wsthread.PumpDispatcher()
            box = mailbox.Mailbox(
                weakref.ref(client), dispatcher, wsthread.QueueLimit(messages=1000), Counts()
            )
            life = mailbox.Life(threading.current_thread())
            for number in range(40):
                box.put_messages("messages", [number], 10, life)
            box.put([("end", None, 0, life)])
            interrupted = 0
            for _ in range(100):  # more turns than there are signals in so short a time
                signal.setitimer(signal.ITIMER_REAL, 1e-6 + chosen.random() * 60e-6)
                try:
                    armed = True
                    dispatcher.run_pending()
                    armed = False
                except KeyboardInterrupt:
                    interrupted += 1
                    assert not mailbox.in_callback()
                if life.over.is_set():
                    break
            armed = False
            assert life.over.is_set()
            assert client.got == sorted(set(client.got))
            assert len(client.got) >= 40 - interrupted  # a callback that had begun may be cut off
            assert box.messages == box.bytes == box._stats.messages_dropped == 0
            dispatcher.close()
    finally:
        armed = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        signal.setitimer(signal.ITIMER_REAL, *timer)
    assert signals > 20
