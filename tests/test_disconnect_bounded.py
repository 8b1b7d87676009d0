"""Promise 2: disconnect() is bounded in every phase, whatever the peer and the program do."""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import threading
import time
from typing import Any, Callable, Dict, Iterator, List, Optional

import pytest

import wsthread
from tests.support import (
    SOON,
    Background,
    Certificates,
    RawConnection,
    RawServer,
    black_hole,
    eventually,
    frame,
    narrow,
    quickest,
)
from wsthread import ConnectionState, QueueLimit, Reconnect
from wsthread.testing import RecordingDelegate

#: Where no answer is awaited, and what comes on top of close_timeout where one is.
AT_ONCE = 0.2
CLOSE_TIMEOUT = 0.35

Phase = Callable[["Scene"], wsthread.WebSocketClient]


@pytest.fixture(scope="module")
def certificates() -> Certificates:
    return Certificates()


class Scene(contextlib.ExitStack):
    """What a phase is made of; all of it ends with the scene."""

    def __init__(self, certificates: Certificates, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.certificates = certificates
        self.monkeypatch = monkeypatch
        self.recorder = RecordingDelegate()
        #: Set when the client is where the phase wants it, and when everything may end.
        self.reached, self.ended = threading.Event(), threading.Event()

    def __exit__(self, *details: Any) -> Optional[bool]:  # type: ignore[override]
        self.ended.set()
        return super().__exit__(*details)

    def block(self, *args: Any) -> Any:
        """Wait for the end of the scene, whoever asks."""
        self.reached.set()
        self.ended.wait(SOON * 3)

    def serve(self, script: Callable[[RawConnection], None], tls: bool = False) -> str:
        context = self.certificates.server_context() if tls else None
        return self.enter_context(RawServer(script, context, receive_buffer=65536)).url

    def client(self, url: Any, delegate: Any = None, **options: Any) -> wsthread.WebSocketClient:
        options.setdefault("reconnect", False)
        options.setdefault("ssl_context", self.certificates.client_context())
        delegate = self.recorder if delegate is None else delegate
        client = wsthread.WebSocketClient(url, delegate, **options)
        self.callback(client.abort)
        self.callback(self.ended.set)
        return client

    def connecting(self, url: Any, **options: Any) -> wsthread.WebSocketClient:
        client = self.client(url, **options)
        client.connect(wait=False)
        return client

    def opened(self, url: str, **options: Any) -> wsthread.WebSocketClient:
        client = self.client(url, close_timeout=CLOSE_TIMEOUT, **options)
        client.connect()
        return client


# Where no answer is awaited.


def resolving(scene: Scene) -> wsthread.WebSocketClient:
    real = socket.getaddrinfo

    def look_up(host: str, *args: Any, **keywords: Any) -> Any:
        if host == "slow.test" and not keywords.get("flags"):
            scene.block()
        return real(host, *args, **keywords)

    scene.monkeypatch.setattr(socket, "getaddrinfo", look_up)
    client = scene.connecting("ws://slow.test/")
    assert scene.reached.wait(SOON)
    return client


def tcp(scene: Scene) -> wsthread.WebSocketClient:
    _, port = scene.enter_context(black_hole())
    client = scene.connecting(f"ws://127.0.0.1:{port}/")
    session: Any = client._session
    eventually(lambda: len(session._waiter.sockets if session._waiter else ()) == 1)
    return client


def silence(scheme: str) -> Phase:
    def phase(scene: Scene) -> wsthread.WebSocketClient:
        def script(connection: RawConnection) -> None:
            connection.sock.recv(1)  # the beginning of a request, or of a TLS handshake
            scene.reached.set()
            connection.read_to_end()

        client = scene.connecting(scene.serve(script).replace("ws:", f"{scheme}:"))
        assert scene.reached.wait(SOON)
        return client

    return phase


def drip(head: bytes, byte: bytes) -> Phase:
    """A head that never ends, or a refusal's body that never comes."""

    def phase(scene: Scene) -> wsthread.WebSocketClient:
        def script(connection: RawConnection) -> None:
            connection.read_head()
            connection.sock.sendall(head)
            scene.reached.set()
            while not scene.ended.wait(0.02):
                connection.sock.sendall(byte)

        client = scene.connecting(scene.serve(script))
        assert scene.reached.wait(SOON)
        return client

    return phase


def callable_blocks(name: str) -> Phase:
    def phase(scene: Scene) -> wsthread.WebSocketClient:
        url = scene.block if name == "url" else "ws://127.0.0.1:9/"
        options = {"headers": scene.block} if name == "headers" else {}
        client = scene.connecting(url, **options)
        assert scene.reached.wait(SOON)
        return client

    return phase


def refused(scene: Scene) -> str:
    """A port that stays taken and that nobody listens on."""
    taken = scene.enter_context(socket.socket())
    taken.bind(("127.0.0.1", 0))
    return f"ws://127.0.0.1:{taken.getsockname()[1]}/"


def deciding(scene: Scene) -> wsthread.WebSocketClient:
    client = scene.connecting(
        refused(scene), reconnect=Reconnect(first=True, should_retry=scene.block)
    )
    assert scene.reached.wait(SOON)
    return client


def back_off(scene: Scene) -> wsthread.WebSocketClient:
    client = scene.connecting(refused(scene), reconnect=Reconnect(first=True, delay=60))
    client.send("queued")
    scene.recorder.wait_for("reconnect")
    return client


def back_off_after_open(scene: Scene) -> wsthread.WebSocketClient:
    client = scene.client(
        scene.serve(lambda connection: (connection.upgrade(), connection.reset())[0]),
        reconnect=Reconnect(delay=60),
    )
    client.connect()
    scene.recorder.wait_for("reconnect")
    return client


def peer_that_answers(scene: Scene) -> wsthread.WebSocketClient:
    def script(connection: RawConnection) -> None:
        connection.upgrade()
        connection.answer_close()

    client = scene.client(scene.serve(script))
    client.connect()
    scene.recorder.wait_for("open")
    return client


UNAWAITED: Dict[str, Phase] = {
    "resolving": resolving,
    "tcp": tcp,
    "tls": silence("wss"),
    "upgrade": silence("ws"),
    "drip of a head": drip(b"HTTP/1.1 101 Switching Protocols\r\nX: ", b"y"),
    "body of a refusal": drip(b"HTTP/1.1 503 Later\r\nContent-Length: 999\r\n\r\n", b""),
    "url()": callable_blocks("url"),
    "headers()": callable_blocks("headers"),
    "should_retry()": deciding,
    "back-off": back_off,
    "back-off after a loss": back_off_after_open,
    "open, the peer answers": peer_that_answers,
}


def check_gone(client: wsthread.WebSocketClient, reader: threading.Thread) -> None:
    assert client.state is ConnectionState.DISCONNECTED
    assert not reader.is_alive()
    assert client._session is None


@pytest.mark.parametrize("phase", UNAWAITED)
def test_promise_02_disconnect_where_no_answer_is_awaited(
    phase: str, certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    def attempt() -> float:
        with Scene(certificates, monkeypatch) as scene:
            client = UNAWAITED[phase](scene)
            reader = client._life.thread  # type: ignore[union-attr]
            begun = time.monotonic()
            assert client.disconnect()
            took = time.monotonic() - begun
            check_gone(client, reader)
            assert scene.recorder.states()[-1] == "DISCONNECTED"
            begun = time.monotonic()
            assert client.disconnect(), "once more changes nothing"
            assert client.wait(0)
            return took

    quickest(attempt, AT_ONCE)


@pytest.mark.parametrize("phase", ["resolving", "tcp", "tls", "upgrade", "headers()", "back-off"])
def test_promise_02_a_connect_under_way_ends_with_it(
    phase: str, certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Scene(certificates, monkeypatch) as scene:
        client = UNAWAITED[phase](scene)
        joined = Background(client.connect, SOON)
        time.sleep(0.05)  # most likely it waits by now; it ends alike where it does not
        assert client.disconnect()
        assert isinstance(joined.error(1), wsthread.ConnectError)


# Where one is awaited: bounded by close_timeout.


def upgraded(connection: RawConnection, behind: bytes = b"") -> RawConnection:
    connection.upgrade(behind)
    return connection


def never_answers(tls: bool) -> Phase:
    def phase(scene: Scene) -> wsthread.WebSocketClient:
        url = scene.serve(lambda connection: upgraded(connection).read_to_end() and None, tls)
        return scene.opened(url)

    return phase


def answers_and_stays(scene: Scene) -> wsthread.WebSocketClient:
    """The close is answered, but the TCP connection is never closed (RFC 6455 7.1.1)."""

    def script(connection: RawConnection) -> None:
        upgraded(connection).answer_close()
        scene.ended.wait(SOON)

    return scene.opened(scene.serve(script))


def floods(data: bytes) -> Phase:
    """Sends for ever and does not look at the close."""

    def phase(scene: Scene) -> wsthread.WebSocketClient:
        def script(connection: RawConnection) -> None:
            connection.upgrade()
            while not scene.ended.is_set():
                connection.sock.sendall(data)

        return scene.opened(scene.serve(script))

    return phase


def drips_its_answer(scene: Scene) -> wsthread.WebSocketClient:
    def script(connection: RawConnection) -> None:
        connection.upgrade()
        connection.read_frame()
        for byte in frame(8, struct.pack("!H", 1000) + b"slow" * 20):
            connection.sock.sendall(bytes([byte]))
            scene.ended.wait(0.05)

    return scene.opened(scene.serve(script))


def stalled(tls: bool) -> Phase:
    """A sender stands in the middle of a frame, the queue is full, others wait for room."""

    def phase(scene: Scene) -> wsthread.WebSocketClient:
        def script(connection: RawConnection) -> None:
            connection.upgrade()
            scene.ended.wait(SOON * 2)

        limit = QueueLimit(messages=10, bytes=100_000)
        client = scene.opened(scene.serve(script, tls), send_queue=limit)
        narrow(client)
        senders = [Background(client.send, bytes(2_000_000)) for _ in range(3)]
        eventually(lambda: client.pending > 0)
        session: Any = client._session
        eventually(lambda: len(session.outbox._bells) == 3)
        scene.callback(lambda: [sender.error(SOON) for sender in senders])
        return client

    return phase


AWAITED: Dict[str, Phase] = {
    "no answer": never_answers(False),
    "no answer over TLS": never_answers(True),
    "no end of TCP": answers_and_stays,
    "floods data": floods(frame(2, bytes(1000)) * 60),
    "floods pings": floods(frame(9, bytes(100)) * 600),
    "drips its answer": drips_its_answer,
    "stalled send": stalled(False),
    "stalled send over TLS": stalled(True),
}


@pytest.mark.parametrize("phase", AWAITED)
def test_promise_02_disconnect_of_a_peer_that_does_not_answer(
    phase: str, certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    def attempt() -> float:
        with Scene(certificates, monkeypatch) as scene:
            client = AWAITED[phase](scene)
            reader = client._life.thread  # type: ignore[union-attr]
            begun = time.monotonic()
            assert client.disconnect()
            took = time.monotonic() - begun
            check_gone(client, reader)
            assert took > CLOSE_TIMEOUT / 2, "it waited for an answer"
            assert scene.recorder.names()[-2:] == ["close", "state"]
            assert client.close_code == (1000 if phase == "no end of TCP" else 1006)
            return took

    quickest(attempt, CLOSE_TIMEOUT + AT_ONCE)


# With a callback that blocks for ever: False, and the mailbox is sealed.


class Blocks(RecordingDelegate):
    """Blocks for ever in one callback."""

    def __init__(self, scene: Scene, name: str) -> None:
        super().__init__()
        self._scene, self._name = scene, name

    def record(self, *event: Any) -> None:
        super().record(*event)
        if event[: self._name.count(" ") + 1] == tuple(self._name.split()):
            self._scene.block()


@pytest.mark.parametrize(
    ("where", "queue"),
    [
        ("state CONNECTING", "room"),
        ("state CONNECTED", "room"),
        ("open", "room"),
        ("open", "full"),
        ("message", "room"),
        ("message", "full"),
        ("sent", "room"),
        ("ping", "room"),
    ],
)
def test_promise_02_disconnect_with_a_callback_that_blocks_for_ever(
    where: str, queue: str, certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    def script(connection: RawConnection) -> None:
        behind = frame(1, b"hello") * (100 if queue == "full" else 1)
        connection.upgrade(frame(9, b"ping") + behind)
        connection.answer_close()

    def attempt() -> float:
        with Scene(certificates, monkeypatch) as scene:
            blocked = Blocks(scene, where)
            limit = QueueLimit(messages=10)
            client = scene.opened(scene.serve(script), delegate=blocked, receive_queue=limit)
            if where == "sent":
                client.send("message")
            assert scene.reached.wait(SOON)
            if queue == "full":
                eventually(lambda: client.stats.back_pressure_pauses == 1)
            reader = client._life.thread  # type: ignore[union-attr]
            begun = time.monotonic()
            assert client.disconnect() is False
            took = time.monotonic() - begun
            check_gone(client, reader)
            seen = blocked.names()
            scene.ended.set()
            eventually(lambda: client.mailbox._running is None)
            assert blocked.names() == seen, "only the callback that had begun may end"
            return took

    quickest(attempt, CLOSE_TIMEOUT + AT_ONCE)


def test_promise_02_a_pump_that_nobody_pumps(
    certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its thread is elsewhere: nothing runs the callbacks, and disconnect() says so."""

    def script(connection: RawConnection) -> None:
        connection.upgrade()
        connection.answer_close()

    def attempt() -> float:
        dispatchers: List[wsthread.PumpDispatcher] = []
        maker = threading.Thread(target=lambda: dispatchers.append(wsthread.PumpDispatcher()))
        maker.start()
        maker.join(SOON)
        with Scene(certificates, monkeypatch) as scene:
            client = scene.opened(scene.serve(script), dispatcher=dispatchers[0])
            reader = client._life.thread  # type: ignore[union-attr]
            dispatchers[0]._thread = -1  # no thread that lives, whose number may be ours by now
            begun = time.monotonic()
            assert client.disconnect() is False
            took = time.monotonic() - begun
            check_gone(client, reader)
            assert scene.recorder.names() == []
        dispatchers[0].close()
        return took

    quickest(attempt, CLOSE_TIMEOUT + AT_ONCE)


# The other ways to end.


@pytest.fixture
def silent(certificates: Certificates, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    with Scene(certificates, monkeypatch) as scene:
        yield scene


@pytest.mark.parametrize("timeout", [0, 0.3])
def test_promise_02_a_timeout_of_its_own(silent: Scene, timeout: float) -> None:
    def attempt() -> float:
        client = never_answers(False)(silent)
        reader = client._life.thread  # type: ignore[union-attr]
        begun = time.monotonic()
        client.disconnect(timeout=timeout)
        took = time.monotonic() - begun
        check_gone(client, reader)
        return took

    quickest(attempt, timeout + AT_ONCE)


def test_promise_02_a_second_disconnect_may_be_shorter(silent: Scene) -> None:
    def attempt() -> float:
        client = never_answers(False)(silent)
        patient = Background(client.disconnect, 1000, "", None)
        eventually(lambda: client.state is ConnectionState.CLOSING)
        begun = time.monotonic()
        client.disconnect(timeout=0.1)
        took = time.monotonic() - begun
        patient.result(1)
        return took

    quickest(attempt, 0.1 + AT_ONCE)


@pytest.mark.parametrize("phase", ["tcp", "upgrade", "back-off"])
def test_promise_02_disconnect_that_only_asks(silent: Scene, phase: str) -> None:
    client = UNAWAITED[phase](silent)
    begun = time.monotonic()
    client.disconnect(wait=False)  # True where the end was faster than this thread
    assert time.monotonic() - begun < AT_ONCE
    assert client.wait(SOON)
    assert silent.recorder.states()[-1] == "DISCONNECTED"


@pytest.mark.skipif(not hasattr(select, "POLLRDHUP"), reason="the peer needs POLLRDHUP")
@pytest.mark.parametrize("phase", ["no answer", "stalled send", "floods data"])
def test_promise_02_abort_is_at_once(
    phase: str, certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    def attempt() -> float:
        with Scene(certificates, monkeypatch) as scene:
            client = AWAITED[phase](scene)
            reader = client._life.thread  # type: ignore[union-attr]
            begun = time.monotonic()
            client.abort()
            took = time.monotonic() - begun
            check_gone(client, reader)
            return took

    quickest(attempt, AT_ONCE)
