"""Promise 3: a client whose last reference is dropped gives thread and socket back.

That the sockets are gone is looked after every test, by `nothing_left_behind`.
"""

from __future__ import annotations

import contextlib
import gc
import queue
import re
import select
import socket
import struct
import threading
import time
import warnings
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Callable, Dict, Iterator, List, Optional

import pytest

import wsthread
from tests.support import SOON, RawConnection, RawServer, echo_server, frame
from wsthread import ConnectionState
from wsthread.testing import RecordingDelegate


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + SOON
    while not condition():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.005)


def inside(client: wsthread.WebSocketClient) -> List[Any]:
    """Weak references to the thread and the session of a client."""
    session = client._session
    assert session is not None
    return [weakref.ref(session), weakref.ref(session.thread), weakref.ref(session.waker)]


def wait_gone(references: List[Any]) -> None:
    """Wait until the thread has ended and nothing holds any of these."""
    until(lambda: all(reference() is None for reference in references))


@contextlib.contextmanager
def warned(count: int = 1) -> Iterator[None]:
    """Expect `count` warnings about dropped clients, on whatever threads.

    Not recorded by `catch_warnings`, which would keep the client that is warned of.
    """
    seen: List[str] = []

    def show(message: Any, category: Any, *rest: Any) -> None:
        seen.append(f"{category.__name__}: {message}")

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = show
        yield
    assert len(seen) == count, seen
    assert all(re.match("ResourceWarning: .* was dropped while open", text) for text in seen)


@pytest.fixture(autouse=True)
def no_collector() -> Iterator[None]:
    """Reference counting alone has to do it, except where a test makes a cycle."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


class Peer:
    """A raw server that notes the close code of every connection."""

    def __init__(self, behind: bytes = b"") -> None:
        self.behind = behind
        self.codes: queue.SimpleQueue[int] = queue.SimpleQueue()

    def script(self, connection: RawConnection) -> None:
        connection.upgrade(behind=self.behind)
        opcode, payload = connection.read_frame()
        while opcode != 8:
            opcode, payload = connection.read_frame()
        self.codes.put(struct.unpack("!H", payload[:2])[0])
        connection.sock.settimeout(SOON)
        connection.read_to_end()

    def code(self) -> int:
        return self.codes.get(timeout=SOON)


def mute(connection: RawConnection) -> None:
    connection.read_to_end()


def test_promise_03_open() -> None:
    peer = Peer()
    delegate = RecordingDelegate()
    with RawServer(peer.script) as server:
        client = wsthread.WebSocketClient(server.url, delegate)
        client.connect()
        references = [*inside(client), weakref.ref(client)]
        delegate.wait_for("open")
        with warned():
            del client
            assert peer.code() == 1001
            wait_gone(references)
    assert delegate.of("close", "error") == []  # there was nobody to be told of


class SlowlyFinalised(wsthread.WebSocketClient):
    """Its finaliser, which shows it, ends after its life."""

    over: Optional[threading.Event] = None

    def __repr__(self) -> str:
        if self.over is not None:
            assert self.over.wait(SOON)
        return super().__repr__()


def test_promise_03_no_callback_finds_a_client_that_is_being_finalised() -> None:
    peer = Peer()
    delegate = RecordingDelegate()
    with RawServer(peer.script) as server:
        client = SlowlyFinalised(server.url, delegate)
        client.connect()
        references = [*inside(client), weakref.ref(client)]
        delegate.wait_for("open")
        mailbox = client.mailbox
        until(lambda: mailbox._running is None and not mailbox._items)  # nor holds the client
        assert client._session is not None
        client.over = client._session.life.over
        with warned():
            del client
            assert peer.code() == 1001
            wait_gone(references)
    assert delegate.of("close", "error") == []


def test_promise_03_connecting() -> None:
    with RawServer(mute) as server:
        client = wsthread.WebSocketClient(server.url)
        client.connect(wait=False)
        until(lambda: server.connections)
        assert client.state is ConnectionState.CONNECTING
        references = inside(client)
        with warned():
            del client
            wait_gone(references)


def test_promise_03_while_a_callable_of_the_user_blocks() -> None:
    called, go_on = threading.Event(), threading.Event()

    def headers() -> Dict[str, str]:
        called.set()
        go_on.wait(SOON)
        return {}

    client = wsthread.WebSocketClient("ws://127.0.0.1:9/", headers=headers)
    client.connect(wait=False)
    assert called.wait(SOON)
    references = inside(client)
    with warned():
        del client
        wait_gone(references)
    go_on.set()


def test_promise_03_in_back_off() -> None:
    with socket.socket() as taken:  # a port that stays taken and that nobody listens on
        taken.bind(("127.0.0.1", 0))
        url = f"ws://127.0.0.1:{taken.getsockname()[1]}/"
        delegate = RecordingDelegate()
        client = wsthread.WebSocketClient(
            url, delegate, reconnect=wsthread.Reconnect(first=True, delay=1000, max_delay=1000)
        )
        client.connect(wait=False)
        delegate.wait_for("reconnect")
        references = inside(client)
        with warned():
            del client
            wait_gone(references)


def test_promise_03_with_a_paused_reader() -> None:
    peer = Peer(behind=frame(1, b"Have a good day!") * 100)
    with RawServer(peer.script) as server:
        client = wsthread.WebSocketClient(
            server.url,
            RecordingDelegate(),
            dispatcher=wsthread.PumpDispatcher(),  # nobody pumps it
            receive_queue=wsthread.QueueLimit(messages=10),
        )
        client.connect()
        known = client._known
        until(lambda: known.stats.back_pressure_pauses)
        references = inside(client)
        with warned():
            del client
            assert peer.code() == 1001
            wait_gone(references)


@pytest.mark.skipif(not hasattr(select, "POLLRDHUP"), reason="the peer needs POLLRDHUP")
def test_promise_03_with_a_stalled_send() -> None:
    events: List[int] = []

    def script(connection: RawConnection) -> None:
        connection.upgrade()
        poll = select.poll()  # tells of the client's end although its bytes are not read
        poll.register(connection.sock, select.POLLRDHUP)
        events.extend(event for _, event in poll.poll(SOON * 1000))

    with RawServer(script, receive_buffer=65536) as server:
        client = wsthread.WebSocketClient(
            server.url, send_queue=wsthread.QueueLimit(messages=100, bytes=64 << 20)
        )
        client.connect()
        for _ in range(10):
            client.send(bytes(4 << 20))
        assert client.pending
        references = inside(client)
        with warned():
            del client
            wait_gone(references)
    assert events and events[0] & (select.POLLHUP | select.POLLERR | select.POLLRDHUP)


class Dropping(wsthread.WebSocketDelegate):
    """Holds the last reference to its client, and drops it in a callback."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.client: Optional[wsthread.WebSocketClient] = None
        self.ready = threading.Event()
        self.dropped = threading.Event()

    def drop(self, name: str) -> None:
        if name == self.name:
            assert self.ready.wait(SOON)
            self.client = None
            self.dropped.set()

    def on_open(self, client: wsthread.WebSocketClient) -> None:
        self.drop("on_open")

    def on_message(self, client: wsthread.WebSocketClient, message: Any) -> None:
        self.drop("on_message")

    def on_sent(self, client: wsthread.WebSocketClient, message: Any) -> None:
        self.drop("on_sent")


@pytest.mark.parametrize("name", ["on_open", "on_message", "on_sent"])
@pytest.mark.parametrize("kind", ["default", "shared", "inline", "executor", "pump", "post"])
def test_promise_03_in_its_own_callback(kind: str, name: str) -> None:
    peer = Peer(behind=frame(1, b"Have a good day!") * 3)
    jobs: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
    pump = wsthread.PumpDispatcher()
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(RawServer(peer.script))
        dispatcher: Optional[wsthread.Dispatcher] = None
        if kind == "shared":
            dispatcher = stack.enter_context(wsthread.ThreadDispatcher())
        elif kind == "inline":
            dispatcher = wsthread.InlineDispatcher()
        elif kind == "executor":
            pool = stack.enter_context(ThreadPoolExecutor(1))
            dispatcher = wsthread.ExecutorDispatcher(pool)
        elif kind == "pump":
            dispatcher = pump
        elif kind == "post":
            dispatcher = wsthread.PostDispatcher(jobs.put)
        delegate = Dropping(name)
        client = wsthread.WebSocketClient(server.url, delegate, dispatcher=dispatcher)
        with warned():
            client.send("hello")
            client.connect()
            references = [*inside(client), weakref.ref(client)]
            delegate.client = client
            del client
            delegate.ready.set()
            deadline = time.monotonic() + SOON
            while not delegate.dropped.is_set() and time.monotonic() < deadline:
                if kind == "pump":
                    pump.run_pending()
                if kind == "post":
                    with contextlib.suppress(queue.Empty):
                        jobs.get(timeout=0.01)()
                delegate.dropped.wait(0.005)
            assert delegate.dropped.is_set()
            assert peer.code() == 1001
            wait_gone(references)


class Owner:
    """Embeds a client, and is its delegate and gives it its address and headers."""

    def __init__(self, url: str, **options: Any) -> None:
        self._url = url
        self.opened = threading.Event()
        self.asked: List[str] = []
        self.client = wsthread.WebSocketClient(
            self.url, self, weak_delegate=True, headers=self.headers, **options
        )

    def url(self) -> str:
        self.asked.append("url")
        return self._url

    def headers(self) -> Dict[str, str]:
        self.asked.append("headers")
        return {"X-Token": "abc"}

    def on_open(self, client: wsthread.WebSocketClient) -> None:
        self.opened.set()


def test_promise_03_an_owner_is_held_weakly() -> None:
    peer = Peer()
    with RawServer(peer.script) as server:
        owner = Owner(server.url)
        owner.client.connect()
        assert owner.opened.wait(SOON)
        assert owner.asked == ["url", "headers"]
        references = [*inside(owner.client), weakref.ref(owner.client)]
        gone = weakref.ref(owner)
        with warned():
            del owner
            # The dispatcher may still be on its way out of on_open.
            until(lambda: gone() is None)
            wait_gone(references)
        assert peer.code() == 1001


def test_promise_03_an_owner_that_never_connected() -> None:
    owner = Owner("ws://127.0.0.1:9/")
    gone, client = weakref.ref(owner), weakref.ref(owner.client)
    with warned(0):
        del owner
    assert (gone(), client()) == (None, None)


def test_promise_03_a_client_that_outlives_its_owner() -> None:
    owner = Owner("ws://127.0.0.1:9/")
    client = owner.client
    gone = weakref.ref(owner)
    del owner
    assert gone() is None
    assert client.delegate is None
    with pytest.raises(ReferenceError):
        client.connect()


def test_promise_03_an_open_client_that_outlives_its_owner_goes_on() -> None:
    with echo_server() as url:
        owner = Owner(url)
        client = owner.client
        client.connect()
        assert owner.opened.wait(SOON)
        gone = weakref.ref(owner)
        del owner
        until(lambda: gone() is None)
        client.send("nobody listens")
        assert client.ping(timeout=SOON) < SOON
        assert client.disconnect()


@pytest.mark.parametrize("end", ["never connected", "disconnected", "asked to"])
def test_promise_03_nothing_is_said_of_one_that_was_ended(end: str) -> None:
    with RawServer(
        lambda connection: (connection.upgrade(), connection.answer_close())[0]
    ) as server:
        references: List[Any] = []
        client = wsthread.WebSocketClient(server.url)
        if end != "never connected":
            client.connect()
            references = inside(client)
            client.disconnect(wait=end == "disconnected")
        with warned(0):
            del client
            wait_gone(references)


class Cycle:
    """A delegate that holds its client, which holds it."""

    def __init__(self, url: str) -> None:
        self.client = wsthread.WebSocketClient(url, self)
        self.client.connect()

    def on_message(self, client: wsthread.WebSocketClient, message: Any) -> None: ...


def test_promise_03_a_cycle_with_its_delegate_is_collected() -> None:
    peer = Peer()
    with RawServer(peer.script) as server:
        cycle = Cycle(server.url)
        references = [*inside(cycle.client), weakref.ref(cycle.client), weakref.ref(cycle)]
        with warned():
            del cycle
            assert references[-1]() is not None  # it is a cycle
            gc.collect()
            assert peer.code() == 1001
            wait_gone(references)


def test_promise_03_the_collector_runs_anywhere() -> None:
    """Finalisers that the collector runs amid send(), here or elsewhere, do not wait."""
    count = 20
    stop = threading.Event()

    def collect() -> None:
        while not stop.is_set():
            gc.collect()

    delegate = RecordingDelegate()
    collector = threading.Thread(target=collect)
    threshold = gc.get_threshold()
    references: List[Any] = []
    with echo_server() as url, wsthread.WebSocketClient(url, delegate) as client, warned(count):
        gc.set_threshold(20, 1, 1)
        gc.enable()  # in the sending thread as well, at almost any allocation
        collector.start()
        try:
            for number in range(count):
                references += inside_of(Cycle(url))
                for _ in range(20):
                    client.send(str(number))
        finally:
            gc.set_threshold(*threshold)
            stop.set()
            collector.join(SOON)
        assert not collector.is_alive()
        gc.collect()
        wait_gone(references)
        delegate.wait_for("message", count=count * 20)


def inside_of(cycle: Cycle) -> List[Any]:
    return inside(cycle.client)


def test_promise_03_dropped_by_a_thread_that_holds_the_clients_own_locks() -> None:
    """The finaliser takes no lock: the collector may run it where one is held."""
    peer = Peer()
    with RawServer(peer.script) as server:
        client = wsthread.WebSocketClient(server.url)
        client.connect()
        session = client._session
        assert session is not None
        references = inside(client)
        locks = [client._lock, client.mailbox._lock, session.outbox.lock]
        done = threading.Event()

        def finalise(dropped: List[wsthread.WebSocketClient]) -> None:
            dropped.pop()
            done.set()

        with warned():
            with contextlib.ExitStack() as stack:
                for lock in locks:
                    stack.enter_context(lock)
                cell = [client]
                del client, session
                thread = threading.Thread(target=finalise, args=(cell,))
                thread.start()
                assert done.wait(SOON)
            thread.join()
            del locks, stack, lock, thread
            assert peer.code() == 1001
            wait_gone(references)
