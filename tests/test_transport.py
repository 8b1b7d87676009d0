"""The socket and the waits, where the system has less than Linux."""

from __future__ import annotations

import os
import select
import socket
from typing import Any

import pytest

import wsthread
from tests.support import SOON, Certificates, echo_server
from wsthread.testing import RecordingDelegate
from wsthread.transport import HANGUP, READ, WRITE, Poller


class Plain(socket.socket):
    """A socket of a system without sendmsg."""

    @property
    def sendmsg(self) -> Any:  # type: ignore[override]
        raise AttributeError("sendmsg")


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_a_life_without_poll_sendmsg_and_eventfd(
    tls: bool, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    certificates = Certificates()
    with echo_server(certificates.write(tmp_path) if tls else None) as url:
        monkeypatch.delattr(select, "poll", raising=False)
        monkeypatch.delattr(os, "eventfd", raising=False)
        recorder = RecordingDelegate()
        sock = Plain()
        sock.connect(("127.0.0.1", int(url.rpartition(":")[2].strip("/"))))
        client = wsthread.WebSocketClient(
            url,
            recorder,
            socket=sock,
            reconnect=False,
            ssl_context=certificates.client_context() if tls else None,
            receive_queue=wsthread.QueueLimit(messages=10),
        )
        client.connect()
        large = b"x" * (8 << 20)  # more than the kernel takes at once
        client.send(large, timeout=SOON)
        client.send("push 1000")
        recorder.wait_for("message", count=1001, timeout=2 * SOON)
        assert recorder.messages() == [large, *map(str, range(1000))]
        assert client.ping(timeout=SOON) < SOON
        assert client.disconnect()
    assert client.close_code == 1000


def test_a_refused_connection_without_poll(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        monkeypatch.delattr(select, "poll", raising=False)
        client = wsthread.WebSocketClient(f"ws://127.0.0.1:{bound.getsockname()[1]}/")
        with pytest.raises(wsthread.ConnectError, match="refused"):
            client.connect(timeout=SOON)


@pytest.mark.parametrize("poll", [False, True], ids=["select", "poll"])
def test_a_poller_tells_what_is_ready(poll: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not poll:
        monkeypatch.delattr(select, "poll", raising=False)
    elif not hasattr(select, "poll"):
        pytest.skip("no poll on this system")
    poller = Poller()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        descriptor = ours.fileno()
        poller.watch(descriptor, READ)
        assert poller.wait(0) == {}
        theirs.send(b"x")
        assert poller.wait(SOON) == {descriptor: READ}
        poller.watch(descriptor, READ | WRITE)
        assert poller.wait(None) == {descriptor: READ | WRITE}
        poller.watch(descriptor, WRITE)
        assert poller.wait(1e30) == {descriptor: WRITE}
        poller.watch(descriptor, HANGUP)
        assert poller.wait(0) == {}
        poller.watch(descriptor, 0)
        theirs.shutdown(socket.SHUT_RDWR)
        if poll:
            assert poller.wait(0) == {}
