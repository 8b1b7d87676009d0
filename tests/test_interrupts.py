"""Promises 9 and 11: Ctrl-C at the worst moment of a sender, put there on purpose."""

from __future__ import annotations

import contextlib
import sys
import threading
from types import CodeType
from typing import Any, Iterator, List

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
from wsthread import outbox, waits
from wsthread.session import Session
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
