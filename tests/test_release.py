"""Promise 1: when disconnect() returns, nothing of the connection is left."""

from __future__ import annotations

import contextlib
import gc
import os
import select
import socket
import threading
import tracemalloc
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Callable, Iterator, List, Optional, Tuple

import pytest

import wsthread
from tests.support import (
    SOON,
    Certificates,
    RawConnection,
    close_frame,
    echo_server,
    frame,
    raw_process,
)

pytestmark = pytest.mark.unmeasured

QUICK, THOROUGH = 100, 1000


@pytest.fixture(scope="module")
def certificates() -> Certificates:
    return Certificates()


@pytest.fixture(scope="module")
def echo_url(pem: Optional[str]) -> Iterator[str]:
    with echo_server(pem) as url:
        yield url


class Echo(wsthread.WebSocketDelegate):
    """Waits for one message; overrides everything, so that every event is made."""

    def __init__(self) -> None:
        self.got = threading.Event()

    def on_state_change(self, client: Any, state: Any) -> None: ...
    def on_open(self, client: Any) -> None: ...
    def on_error(self, client: Any, error: Any) -> None: ...
    def on_close(self, client: Any, code: int, reason: str) -> None: ...
    def on_sent(self, client: Any, message: Any) -> None: ...
    def on_unsent(self, client: Any, message: Any, error: Any) -> None: ...
    def on_ping(self, client: Any, payload: Any) -> None: ...
    def on_pong(self, client: Any, payload: Any, latency: Any) -> None: ...
    def on_reconnect(self, client: Any, *rest: Any) -> None: ...

    def on_message(self, client: Any, message: Any) -> None:
        assert message == "hello"
        self.got.set()


class Loop:
    """A foreign event loop that a PostDispatcher posts to: one thread, one queue."""

    def __init__(self) -> None:
        self.pool = ThreadPoolExecutor(1)

    def post(self, job: Callable[[], None]) -> None:
        self.pool.submit(job)


class Dispatchers:
    """Makes the dispatcher of a cell; `pump` says that the test's thread runs the callbacks."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.pump = None
        self.loop = Loop() if kind == "post" else None
        self.pool = ThreadPoolExecutor(2) if kind == "executor" else None
        self.shared = wsthread.ThreadDispatcher() if kind == "shared" else None
        if kind == "pump":
            self.pump = wsthread.PumpDispatcher()

    def get(self) -> Any:
        if self.loop is not None:
            return wsthread.PostDispatcher(self.loop.post)
        if self.pool is not None:
            return wsthread.ExecutorDispatcher(self.pool)
        if self.kind == "inline":
            return wsthread.InlineDispatcher()
        return self.shared or self.pump

    def wait(self, event: threading.Event) -> None:
        if self.pump is not None:
            while not event.is_set():
                assert select.select([self.pump.fileno()], [], [], SOON)[0]
                self.pump.run_pending()
        assert event.wait(SOON)

    def close(self) -> None:
        for pool in (self.pool, self.loop and self.loop.pool):
            if pool is not None:
                pool.shutdown()
        if self.shared is not None:
            self.shared.close()


KINDS = ["default", "shared", "inline", "executor", "pump", "post"]


def descriptors() -> int:
    directory = "/proc/self/fd"
    return len(os.listdir(directory)) if os.path.isdir(directory) else 0


def cycle(url: str, certificates: Certificates, dispatchers: Dispatchers) -> List[Any]:
    """Connect, echo, disconnect; return weak references to all that must be gone."""
    delegate = Echo()
    client = wsthread.WebSocketClient(
        url,
        delegate,
        dispatcher=dispatchers.get(),
        ssl_context=CONTEXT[0] if url.startswith("wss") else None,
    )
    client.connect()
    session = client._session
    assert session is not None and session._connection is not None
    references = [
        weakref.ref(thing)
        for thing in (
            session,
            session._connection,
            session._connection.transport,
            session._connection.parser,
            session._connection.writer,
            session.outbox,
            session.waker,
            delegate,
            client,
        )
    ]
    del session
    client.send("hello")
    dispatchers.wait(delegate.got)
    assert client.disconnect()
    assert [r() for r in references[:-2]] == [None] * (len(references) - 2)
    return references[-2:]


CONTEXT: List[Any] = []


def assert_nothing_grows(run: Callable[[], Any], cycles: int) -> None:
    """Run cycles with the collector off; threads, descriptors, objects, memory stay."""
    for _ in range(12):  # imports, caches, free lists
        run()
    gc.collect()
    gc.disable()
    try:
        for _ in range(8):  # the collector stops tracking dicts until they are used
            run()
        before = counts()
        before = counts()  # with a tuple like the one that is there at the end
        for _ in range(cycles):
            run()
        after = counts()
        memory_settles(run, cycles)
    finally:
        gc.enable()
    threads, opened, objects = (b - a for a, b in zip(before, after))
    assert threads == 0
    assert opened == 0
    assert objects == 0


def counts() -> Tuple[int, int, int]:
    names = [t.name for t in threading.enumerate() if t.name.startswith("wsthread-reader")]
    own = [t.name for t in threading.enumerate() if t.name == "wsthread-dispatcher"]
    return len(names) + len(own), descriptors(), len(gc.get_objects())


def memory_settles(run: Callable[[], Any], cycles: int) -> None:
    """Run more cycles, until some of them in a row keep nothing; that takes twice the time."""
    # The interpreter's own tables and free lists settle at some size, sooner or later. What a
    # cycle keeps is kept every time: of a thousand, a smallest object of 32 bytes is seen.
    window = 10 if cycles < THOROUGH else 333
    growth: List[int] = []
    tracemalloc.start()
    try:
        for _ in range(8):
            run()
        before = tracemalloc.get_traced_memory()[0]
        for _ in range(12):
            for _ in range(window):
                run()
            after = tracemalloc.get_traced_memory()[0]
            growth.append(after - before)
            if growth[-1] < 4096 + 8 * window:
                return
            before = after
    finally:
        tracemalloc.stop()
    raise AssertionError(f"memory grows: {growth}")


def check_cycles(url: str, certificates: Certificates, kind: str, cycles: int) -> None:
    CONTEXT[:] = [certificates.client_context()]
    dispatchers = Dispatchers(kind)

    def run() -> None:
        assert [r() for r in cycle(url, certificates, dispatchers)] == [None, None]

    try:
        assert_nothing_grows(run, cycles)
    finally:
        dispatchers.close()
        CONTEXT.clear()


@pytest.mark.parametrize("kind", KINDS)
def test_promise_01_nothing_is_left(echo_url: str, certificates: Certificates, kind: str) -> None:
    check_cycles(echo_url, certificates, kind, QUICK)


@pytest.mark.thorough
@pytest.mark.parametrize("kind", KINDS)
def test_promise_01_nothing_is_left_of_a_thousand(
    echo_url: str, certificates: Certificates, kind: str
) -> None:
    check_cycles(echo_url, certificates, kind, THOROUGH)


# Cycles that end in an error.


def refused() -> str:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return f"ws://127.0.0.1:{unused.getsockname()[1]}/"


def bad_handshake(connection: RawConnection) -> None:
    connection.read_head()
    connection.sock.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno")
    connection.read_to_end()


def reset(connection: RawConnection) -> None:
    connection.upgrade()
    connection.read_frame()
    connection.reset()


def protocol_error(connection: RawConnection) -> None:
    connection.upgrade()
    connection.read_frame()
    connection.sock.sendall(frame(1, b"fine") + frame(3))
    assert connection.answer_close()[0] == 1002


def invalid_text(connection: RawConnection) -> None:
    connection.upgrade()
    connection.read_frame()
    connection.sock.sendall(frame(1, b"\xff"))
    assert connection.answer_close()[0] == 1007


def closed_by_peer(connection: RawConnection) -> None:
    connection.upgrade()
    connection.read_frame()
    connection.sock.sendall(close_frame(1011, "broken"))
    assert connection.read_frame()[0] == 8


def failing_cycle(url: str, opens: bool, dispatcher: Any, context: Any) -> List[Any]:
    delegate = Echo()
    client = wsthread.WebSocketClient(
        url, delegate, dispatcher=dispatcher, ssl_context=context, reconnect=False
    )
    if opens:
        client.connect()
        session = client._session
        references = [weakref.ref(session)] if session is not None else []
        del session
        try:
            client.send("hello")
        except wsthread.NotConnected:
            pass  # the end may come first
        assert client.wait(SOON)
        assert client.error is not None
    else:
        references = []
        try:
            client.connect()
        except wsthread.ConnectError as error:
            assert type(error) is type(client.error) and str(error) == str(client.error)
        else:
            raise AssertionError("connected")
    assert [r() for r in references] == [None] * len(references)
    return [weakref.ref(delegate), weakref.ref(client)]


def check_failing(
    script: Any, certificates: Certificates, kind: str, pem: Optional[str], cycles: int
) -> None:
    dispatcher = wsthread.InlineDispatcher() if kind == "inline" else None
    context = certificates.client_context() if pem is not None else None
    server = contextlib.nullcontext(refused()) if script is refused else raw_process(script, pem)
    with server as url:
        opens = script not in (refused, bad_handshake)

        def run() -> None:
            assert [r() for r in failing_cycle(url, opens, dispatcher, context)] == [None, None]

        assert_nothing_grows(run, cycles)


@pytest.fixture(scope="module", params=["plain", "tls"])
def pem(request: Any, certificates: Certificates, tmp_path_factory: Any) -> Optional[str]:
    return certificates.write(tmp_path_factory.mktemp("tls")) if request.param == "tls" else None


FAILURES = [refused, bad_handshake, reset, protocol_error, invalid_text, closed_by_peer]


@pytest.mark.parametrize("kind", ["default", "inline"])
@pytest.mark.parametrize("script", FAILURES)
def test_promise_01_nothing_is_left_of_failures(
    script: Any, certificates: Certificates, kind: str, pem: Optional[str]
) -> None:
    check_failing(script, certificates, kind, pem, QUICK)


@pytest.mark.thorough
@pytest.mark.parametrize("script", FAILURES)
def test_promise_01_nothing_is_left_of_a_thousand_failures(
    script: Any, certificates: Certificates, pem: Optional[str]
) -> None:
    check_failing(script, certificates, "default", pem, THOROUGH)
