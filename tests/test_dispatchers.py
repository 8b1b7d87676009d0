"""Where callbacks run: every dispatcher, on its own and shared, and its corners."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import select
import sys
import threading
import time
import warnings
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Callable, Iterator, List, Optional

import pytest

import wsthread
from tests.support import (
    SOON,
    Background,
    RawConnection,
    RawServer,
    echo_server,
    frame,
    narrow,
    opened,
    peer,
)
from wsthread.dispatch import JoinableThread
from wsthread.mailbox import Mailbox
from wsthread.testing import RecordingDelegate

KINDS = ["default", "shared", "inline", "executor", "pump", "post"]


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with echo_server() as url:
        yield url


class Rig:
    """A dispatcher of a kind, and a thread that pumps it where it has to be pumped."""

    def __init__(self, kind: str, workers: int = 2) -> None:
        self.kind = kind
        self._pool: Optional[ThreadPoolExecutor] = None
        self._pumping: Optional[threading.Thread] = None
        self.dispatcher: Optional[wsthread.Dispatcher] = None
        if kind == "shared":
            self.dispatcher = wsthread.ThreadDispatcher()
        elif kind == "inline":
            self.dispatcher = wsthread.InlineDispatcher()
        elif kind == "executor":
            self._pool = ThreadPoolExecutor(workers)
            self.dispatcher = wsthread.ExecutorDispatcher(self._pool)
        elif kind == "post":
            self._pool = pool = ThreadPoolExecutor(1)
            self.dispatcher = wsthread.PostDispatcher(lambda job: pool.submit(job))
        elif kind == "pump":
            pump = self.dispatcher = wsthread.PumpDispatcher()
            self._pumping = threading.Thread(target=pump.run_forever, name="pumping")
            self._pumping.start()

    def close(self) -> None:
        if self._pumping is not None:
            assert isinstance(self.dispatcher, wsthread.PumpDispatcher)
            self.dispatcher.stop()
            self._pumping.join(SOON)
            assert not self._pumping.is_alive()
            self._pumping = None
            self.dispatcher.close()
        if self._pool is not None:
            self._pool.shutdown()
        if isinstance(self.dispatcher, wsthread.ThreadDispatcher):
            self.dispatcher.close()
        self.dispatcher = None


@pytest.fixture(params=KINDS)
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    rig = Rig(request.param)
    yield rig
    rig.close()


def quick(url: str, delegate: object = None, **options: Any) -> wsthread.WebSocketClient:
    options.setdefault("reconnect", False)
    options.setdefault("open_grace", 0.2)  # where on_open is not run, nothing else waits long
    return wsthread.WebSocketClient(url, delegate, **options)


def received(client: wsthread.WebSocketClient, count: int) -> None:
    """Wait until the reader has got `count` messages, whether they are delivered or not."""
    deadline = time.monotonic() + SOON
    while client.stats.messages_received < count:
        assert time.monotonic() < deadline
        time.sleep(0.001)


def dispatcher_threads() -> List[threading.Thread]:
    return [t for t in threading.enumerate() if t.name == "wsthread-dispatcher"]


# What every dispatcher does.


def test_callbacks_come_in_order(url: str, rig: Rig) -> None:
    recorder = RecordingDelegate()
    client = quick(url, recorder, dispatcher=rig.dispatcher)
    client.connect()
    client.send("push 500")
    recorder.wait_for("message", count=500)
    assert client.disconnect()
    assert recorder.messages() == [str(n) for n in range(500)]
    assert recorder.states() == ["CONNECTING", "CONNECTED", "CLOSING", "DISCONNECTED"]
    assert recorder.names()[:3] == ["state", "state", "open"]
    assert recorder.names()[-2:] == ["close", "state"]
    assert recorder.of("close") == [("close", 1000, "")]
    assert threading.current_thread() not in recorder.threads[:-3]


def test_several_clients_share_it_each_in_order(url: str, rig: Rig) -> None:
    recorders = [RecordingDelegate() for _ in range(4)]
    clients = [quick(url, r, dispatcher=rig.dispatcher) for r in recorders]
    for client in clients:
        client.connect()
    for client in clients:
        client.send("push 300")
    for recorder in recorders:
        recorder.wait_for("message", count=300)
        assert recorder.messages() == [str(n) for n in range(300)]
    for client, recorder in zip(clients, recorders):
        assert client.disconnect()
        assert recorder.states()[-1] == "DISCONNECTED"


def test_no_dispatcher_thread_without_callbacks(url: str) -> None:
    seen: List[object] = []

    class Watching(wsthread.ThreadDispatcher):
        def schedule(self, job: Callable[[], None]) -> None:
            seen.append(job)
            super().schedule(job)

    before = dispatcher_threads()
    with Watching() as dispatcher:
        client = quick(url, dispatcher=dispatcher)
        client.connect()
        client.send_many(["push 100", "a", "b"])
        client.flush()
        client.ping()
        # Only that the life is over, for which nobody but disconnect() waits.
        assert dispatcher_threads() == before and not seen
        assert client.disconnect()
    default = quick(url)
    default.connect()
    default.send("a")
    default.ping()
    assert dispatcher_threads() == before
    assert default.disconnect()


def test_events_not_overridden_are_not_made(url: str) -> None:
    class Only(wsthread.WebSocketDelegate):
        def __init__(self) -> None:
            self.got = threading.Event()

        def on_message(self, client: Any, message: Any) -> None:
            self.got.set()

    only, jobs = Only(), []
    pump = wsthread.PumpDispatcher()
    post = wsthread.PostDispatcher(lambda job: (jobs.append(job), pump.schedule(job)))
    client = quick(url, only, dispatcher=post)
    client.connect()
    client.ping()
    client.flush()
    assert jobs == []  # neither states nor on_open nor on_pong
    client.send("x")
    assert select.select([pump.fileno()], [], [], SOON)[0]
    pump.run_pending()
    assert only.got.is_set() and len(jobs) == 1
    assert client.disconnect()


# A dispatcher whose end comes early, or that nobody serves.


def end_pool(pool: ThreadPoolExecutor) -> None:
    pool.shutdown()


@pytest.mark.parametrize("kind", ["shared", "executor", "post"])
def test_a_dispatcher_that_is_shut_down_ends_quietly(
    url: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise: List[Any] = []
    monkeypatch.setattr(threading, "excepthook", noise.append)
    rig, recorder = Rig(kind), RecordingDelegate()
    client = quick(url, recorder, dispatcher=rig.dispatcher)
    client.connect()
    recorder.wait_for("open")
    rig.close()
    client.send("push 100")
    received(client, 100)  # the reader goes on
    begun = time.monotonic()
    assert client.disconnect() is False
    assert time.monotonic() - begun < 2
    assert client.state is wsthread.ConnectionState.DISCONNECTED
    assert client.wait(SOON)
    assert recorder.messages() == []
    assert recorder.states() == ["CONNECTING", "CONNECTED"]
    stats = client.stats
    assert stats.messages_dropped + stats.messages_discarded == stats.messages_received > 0
    assert noise == []


def test_a_foreign_queue_that_is_never_served_keeps_nothing_alive(url: str) -> None:
    jobs: List[Callable[[], None]] = []
    recorder = RecordingDelegate()
    client = quick(url, recorder, dispatcher=wsthread.PostDispatcher(jobs.append))
    gc.collect()
    gc.disable()
    try:
        client.connect()
        session: Any = client._session
        gone = [
            weakref.ref(thing)
            for thing in (
                session,
                session._connection,
                session._connection.transport,
                session._connection.writer,
                session.waker,
            )
        ]
        del session
        client.send("push 10")
        received(client, 10)
        begun = time.monotonic()
        assert client.disconnect(timeout=0.3) is False
        assert time.monotonic() - begun < 2
        assert [r() for r in gone] == [None] * len(gone)
        assert client.stats.messages_dropped + client.stats.messages_discarded == 10
        gone = [weakref.ref(client), weakref.ref(recorder)]
        del client, recorder
        assert [r() for r in gone] == [None, None]
        assert jobs
        for job in jobs:
            job()  # late, and harmless
    finally:
        gc.enable()


def test_a_sealed_mailbox_runs_nothing_when_it_is_served_late(url: str) -> None:
    jobs: List[Callable[[], None]] = []
    recorder = RecordingDelegate()
    client = quick(url, recorder, dispatcher=wsthread.PostDispatcher(jobs.append))
    client.connect()
    assert client.disconnect(timeout=0.2) is False
    for job in jobs:
        job()
    assert recorder.events == []
    # The next life is served.
    client.connect()
    while len(recorder.of("open")) < 1:
        jobs.pop(0)()
    assert recorder.names() == ["state", "state", "open"]
    assert client.disconnect()


def test_post_raising_is_a_quiet_end(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    noise: List[Any] = []
    monkeypatch.setattr(threading, "excepthook", noise.append)

    def post(job: Callable[[], None]) -> None:
        raise RuntimeError("the loop is closed")

    client = quick(url, RecordingDelegate(), dispatcher=wsthread.PostDispatcher(post))
    client.connect()
    assert client.disconnect() is False
    assert client.state is wsthread.ConnectionState.DISCONNECTED
    assert noise == []


def test_post_must_be_callable() -> None:
    with pytest.raises(TypeError, match="post"):
        wsthread.PostDispatcher(None)  # type: ignore[arg-type]


# PostDispatcher in a real loop.


def test_asyncio_loop_runs_the_callbacks(url: str) -> None:
    recorder = RecordingDelegate()

    async def main() -> None:
        loop = asyncio.get_running_loop()
        dispatcher = wsthread.PostDispatcher(loop.call_soon_threadsafe)
        client = quick(url, recorder, dispatcher=dispatcher)
        await loop.run_in_executor(None, client.connect)
        client.send("push 100")

        async def until(count: int) -> None:
            while len(recorder.messages()) < count:
                await asyncio.sleep(0.001)

        await asyncio.wait_for(until(100), SOON)
        # On the loop's own thread: it runs what is left itself.
        assert client.disconnect()
        assert recorder.states()[-1] == "DISCONNECTED"

    asyncio.run(main())
    assert recorder.messages() == [str(n) for n in range(100)]
    assert set(recorder.threads) == {threading.current_thread()}


def test_asyncio_loop_that_is_closed_first_ends_quietly(url: str) -> None:
    recorder = RecordingDelegate()
    loop = asyncio.new_event_loop()
    client = quick(url, recorder, dispatcher=wsthread.PostDispatcher(loop.call_soon_threadsafe))
    client.connect()
    loop.close()
    begun = time.monotonic()
    assert client.disconnect(timeout=0.5) is False
    assert time.monotonic() - begun < 2


# ThreadDispatcher.


def test_thread_dispatcher_close_runs_what_waits(url: str) -> None:
    recorder, hold, held = RecordingDelegate(), threading.Event(), threading.Event()

    class Blocking(RecordingDelegate):
        def on_open(self, client: Any) -> None:
            held.set()
            assert hold.wait(SOON)

    dispatcher = wsthread.ThreadDispatcher()
    blocked = quick(url, Blocking(), dispatcher=dispatcher)
    client = quick(url, recorder, dispatcher=dispatcher)
    blocked.connect()
    assert held.wait(SOON)
    client.connect()
    for _ in range(40):  # one event each, more than one turn
        client.ping()
    closing = threading.Thread(target=dispatcher.close)
    closing.start()
    while not dispatcher._closed:
        time.sleep(0.001)
    hold.set()
    closing.join(SOON)
    assert not closing.is_alive() and not dispatcher_threads()
    assert len(recorder.of("pong")) == 40
    client.abort()
    blocked.abort()


def test_thread_dispatcher_close_in_a_callback(url: str) -> None:
    done = threading.Event()
    dispatcher = wsthread.ThreadDispatcher()

    def on_message(client: Any, message: Any) -> None:
        dispatcher.close()
        done.set()

    client = quick(url, wsthread.CallbackDelegate(on_message=on_message), dispatcher=dispatcher)
    client.connect()
    client.send("x")
    assert done.wait(SOON)
    client.disconnect()


def test_thread_dispatcher_cannot_be_used_after_close(url: str) -> None:
    dispatcher = wsthread.ThreadDispatcher()
    dispatcher.close()
    dispatcher.close()
    recorder = RecordingDelegate()
    client = quick(url, recorder, dispatcher=dispatcher)
    client.connect()
    assert client.disconnect() is False
    assert recorder.events == []


def test_the_default_thread_ends_with_each_life(url: str) -> None:
    recorder = RecordingDelegate()
    client = quick(url, recorder)
    for lives in (1, 2, 3):
        client.connect()
        recorder.wait_for("open", count=lives)
        assert client.disconnect()
        assert not dispatcher_threads()


# ExecutorDispatcher.


@pytest.mark.parametrize("workers", [1, 4])
def test_executor_serves_clients_side_by_side_each_in_order(url: str, workers: int) -> None:
    rig = Rig("executor", workers)
    busy: List[int] = []
    overlaps: List[int] = []

    class Serial(RecordingDelegate):
        def __init__(self) -> None:
            super().__init__()
            self._inside = threading.Lock()

        def on_message(self, client: Any, message: Any) -> None:
            if not self._inside.acquire(False):
                overlaps.append(1)
                return
            busy.append(threading.get_ident())
            self.record("message", message)
            self._inside.release()

    recorders = [Serial() for _ in range(4)]
    clients = [quick(url, r, dispatcher=rig.dispatcher) for r in recorders]
    for client in clients:
        client.connect()
        client.send("push 400")
    for client, recorder in zip(clients, recorders):
        recorder.wait_for("message", count=400)
        assert recorder.messages() == [str(n) for n in range(400)]
        assert client.disconnect()
    rig.close()
    assert not overlaps
    assert len(set(busy)) <= workers


def test_executor_with_one_worker_a_callback_may_wait_for_another_client(url: str) -> None:
    rig = Rig("executor", 1)
    answers: List[Any] = []
    first_delegate, second_delegate = RecordingDelegate(), RecordingDelegate()
    second = quick(url, second_delegate, dispatcher=rig.dispatcher)

    def on_message(client: Any, message: Any) -> None:
        second.connect()
        second.disconnect(wait=False)
        answers.append(second.wait(SOON))
        first_delegate.record("done")

    first = quick(url, wsthread.CallbackDelegate(on_message=on_message), dispatcher=rig.dispatcher)
    first.connect()
    first.send("x")
    first_delegate.wait_for("done")
    assert answers == [True]
    assert second_delegate.states()[-1] == "DISCONNECTED"
    assert first.disconnect()
    rig.close()


# PumpDispatcher.


def test_pump_runs_nothing_until_pumped(url: str) -> None:
    pump, recorder = wsthread.PumpDispatcher(), RecordingDelegate()
    client = quick(url, recorder, dispatcher=pump)
    client.connect()
    client.send("push 10")
    received(client, 10)
    assert recorder.events == []
    assert select.select([pump.fileno()], [], [], 0)[0]
    assert pump.run_pending() == 1
    assert recorder.messages() == [str(n) for n in range(10)]
    assert not select.select([pump.fileno()], [], [], 0)[0]
    assert pump.run_pending() == 0
    assert client.disconnect()  # on the thread that pumps: runs the rest itself
    assert recorder.states()[-1] == "DISCONNECTED"
    assert set(recorder.threads) == {threading.current_thread()}


def test_pump_wait_runs_the_callbacks_here(url: str) -> None:
    pump, recorder = wsthread.PumpDispatcher(), RecordingDelegate()
    client = quick(url, recorder, dispatcher=pump)
    client.connect()
    client.send_many(["push 50", "close 1000 bye"])
    assert client.wait(SOON)
    assert recorder.messages() == [str(n) for n in range(50)]
    assert recorder.of("close") == [("close", 1000, "bye")]
    assert recorder.states()[-1] == "DISCONNECTED"


def test_pump_wait_keeps_to_its_timeout(url: str) -> None:
    pump, recorder = wsthread.PumpDispatcher(), RecordingDelegate()
    client = quick(url, recorder, dispatcher=pump)
    client.connect()
    begun = time.monotonic()
    assert client.wait(0.2) is False
    assert 0.15 < time.monotonic() - begun < 2
    assert client.disconnect()


def test_promise_05_two_threads_that_pump_do_not_overlap(
    url: str,
) -> None:
    pump, hold, held = wsthread.PumpDispatcher(), threading.Event(), threading.Event()

    def on_message(client: Any, message: Any) -> None:
        held.set()
        assert hold.wait(SOON)

    client = quick(url, wsthread.CallbackDelegate(on_message=on_message), dispatcher=pump)
    client.connect()
    client.send("x")
    client.send("y")

    def pump_until_held() -> None:
        while not held.is_set():
            pump.run_pending()
            time.sleep(0.001)

    pumping = threading.Thread(target=pump_until_held)
    pumping.start()
    assert held.wait(SOON)
    pump.run_pending()  # now this is the pumping thread
    begun = time.monotonic()
    assert client.disconnect(timeout=0.3) is False
    assert time.monotonic() - begun < 2
    hold.set()
    pumping.join(SOON)


def test_pump_stop_and_run_forever(url: str) -> None:
    pump, recorder = wsthread.PumpDispatcher(), RecordingDelegate()

    class Stopping(RecordingDelegate):
        def on_message(self, client: Any, message: Any) -> None:
            pump.stop()

    client = quick(url, Stopping(), dispatcher=pump)
    client.connect()
    client.send("x")
    pump.run_forever()
    pump.stop()
    pump.run_forever()  # stopped before it began
    assert client.disconnect()
    assert recorder.events == []


@pytest.mark.parametrize("where", ["on_message", "on_sent", "on_open", "on_error"])
def test_promise_07_keyboard_interrupt_while_pumping_loses_nothing(url: str, where: str) -> None:
    """Ctrl-C in a callback ends the pumping; the next pumping goes on where it was."""
    pump = wsthread.PumpDispatcher()
    interrupts = []

    class Interrupted(RecordingDelegate):
        def record(self, *event: Any) -> None:
            super().record(*event)
            if event[0] == where[3:] and len(interrupts) < 3:
                interrupts.append(event)
                raise KeyboardInterrupt
            if event[0] == "message" and event[1] == "5" and where == "on_error":
                raise ValueError

    recorder = Interrupted()
    client = quick(url, recorder, dispatcher=pump)
    client.connect()
    client.send_many([*"abcdefgh", "push 20"])
    client.ping()
    deadline = time.monotonic() + SOON
    while len(recorder.messages()) < 28 or len(recorder.of("sent")) < 9:
        assert time.monotonic() < deadline
        try:
            pump.run_pending()
        except KeyboardInterrupt:
            assert not client.mailbox.runs_here()
    assert interrupts
    assert recorder.messages() == [*"abcdefgh", *(str(n) for n in range(20))]
    assert [e[1] for e in recorder.of("sent")] == [*"abcdefgh", "push 20"]
    assert client.disconnect()
    assert client.stats.messages_dropped == 0
    assert recorder.states()[-1] == "DISCONNECTED"
    assert client.mailbox.messages == client.mailbox.bytes == 0


def test_pump_close_ends_the_callbacks_quietly(url: str) -> None:
    pump, recorder = wsthread.PumpDispatcher(), RecordingDelegate()
    client = quick(url, recorder, dispatcher=pump)
    client.connect()
    pump.close()
    pump.close()
    assert pump.fileno() == -1
    client.send("x")
    received(client, 1)
    assert pump.run_pending() == 0
    assert recorder.events == []
    assert client.disconnect()  # on the thread that pumped: runs what is left itself
    assert recorder.states()[-1] == "DISCONNECTED"


# InlineDispatcher.


def test_inline_runs_on_the_reader(url: str) -> None:
    recorder = RecordingDelegate()
    client = quick(url, recorder, dispatcher=wsthread.InlineDispatcher())
    client.connect()
    client.send("x")
    recorder.wait_for("message")
    client.disconnect()
    assert {t.name.rpartition("-")[0] for t in recorder.threads} == {"wsthread-reader"}


def test_inline_on_sent_of_other_threads_comes_at_once(url: str) -> None:
    recorder = RecordingDelegate()
    client = quick(url, recorder, dispatcher=wsthread.InlineDispatcher(), ping_interval=None)

    def echo_silently(connection: RawConnection) -> None:
        connection.upgrade()
        connection.answer_close()

    with RawServer(echo_silently) as server:
        client = quick(
            server.url, recorder, dispatcher=wsthread.InlineDispatcher(), ping_interval=None
        )
        client.connect()
        recorder.wait_for("open")
        for count in range(1, 20):
            client.send("x")
            recorder.wait_for("sent", count=count, timeout=2)
        assert client.disconnect()


@pytest.mark.parametrize("limit", [1, 10, 1000])
def test_promise_08_more_in_one_read_than_the_receive_queue_takes_all_comes(
    rig: Rig, limit: int
) -> None:
    numbers = [str(number) for number in range(2000)]
    recorder = RecordingDelegate()
    with peer() as raw:
        queue = wsthread.QueueLimit(messages=limit)
        with opened(raw.url, recorder, dispatcher=rig.dispatcher, receive_queue=queue):
            connection = raw.accept()
            connection.sock.sendall(b"".join(frame(1, number.encode()) for number in numbers))
            recorder.wait_for("message", count=len(numbers))
    assert [event[1] for event in recorder.of("message")] == numbers


def test_inline_what_the_reader_has_sent_is_told_at_once() -> None:
    recorder = RecordingDelegate()
    with peer(receive_buffer=4096) as raw:
        inline = wsthread.InlineDispatcher()
        with opened(raw.url, recorder, dispatcher=inline, ping_interval=None) as client:
            connection = raw.accept()
            narrow(client)
            client.send(b"x" * 1_000_000)  # more than the kernel takes: the reader goes on with it
            assert not recorder.of("sent")
            connection.read_frame()
            recorder.wait_for("sent")


def test_inline_blocked_callback_disconnect_is_false_and_seals(url: str) -> None:
    hold, held = threading.Event(), threading.Event()

    class Blocking(RecordingDelegate):
        def on_message(self, client: Any, message: Any) -> None:
            self.record("message", message)
            held.set()
            assert hold.wait(SOON)

    recorder = Blocking()
    client = quick(url, recorder, dispatcher=wsthread.InlineDispatcher())
    client.connect()
    client.send("push 10")
    assert held.wait(SOON)
    begun = time.monotonic()
    assert client.disconnect(timeout=0.2) is False
    assert time.monotonic() - begun < 2
    seen = list(recorder.events)
    hold.set()
    assert client.wait(SOON)
    assert recorder.events == seen  # sealed, although the reader puts its last events only now


def test_inline_next_life_begun_in_the_last_callback(url: str) -> None:
    class Again(RecordingDelegate):
        def on_state_change(self, client: Any, state: Any) -> None:
            super().on_state_change(client, state)
            if state is wsthread.ConnectionState.DISCONNECTED and self.lives < 3:
                self.lives += 1
                client.connect()

        lives = 0

    recorder = Again()
    client = quick(url, recorder, dispatcher=wsthread.InlineDispatcher())
    client.connect()
    for lives in (1, 2, 3, 4):
        recorder.wait_for("open", count=lives)
        client.send("x")
        recorder.wait_for("sent", count=lives, timeout=2)  # the new reader runs the callbacks
        recorder.wait_for("message", count=lives, timeout=2)
        assert client.disconnect()
    assert recorder.states() == ["CONNECTING", "CONNECTED", "CLOSING", "DISCONNECTED"] * 4


def test_inline_next_life_over_before_the_last_callback_of_the_one_before(url: str) -> None:
    """The reader of the first runs what that of the second could not."""
    held, hold = threading.Event(), threading.Event()

    class Slow(RecordingDelegate):
        def on_state_change(self, client: Any, state: Any) -> None:
            super().on_state_change(client, state)
            if state is wsthread.ConnectionState.DISCONNECTED and not held.is_set():
                held.set()
                assert hold.wait(SOON)

    recorder = Slow()
    client = quick(url, recorder, dispatcher=wsthread.InlineDispatcher())
    client.connect()
    client.disconnect(wait=False)
    assert held.wait(SOON)
    first = recorder.threads[-1]
    client.connect()
    client.disconnect(wait=False)
    for thread in threading.enumerate():
        if thread.name.startswith("wsthread-reader") and thread is not first:
            thread.join(SOON)
            assert not thread.is_alive()
    hold.set()
    assert client.wait(SOON)
    assert recorder.states() == ["CONNECTING", "CONNECTED", "CLOSING", "DISCONNECTED"] * 2


def test_joins_of_one_thread_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before CPython 3.13 two that end at once may raise; each keeps to its own time-out."""
    inside: List[int] = []
    most: List[int] = []
    join = threading.Thread.join

    def counted(thread: threading.Thread, timeout: Optional[float] = None) -> None:
        if thread.name != "wsthread-joined":
            return join(thread, timeout)
        inside.append(1)
        most.append(len(inside))
        try:
            return join(thread, timeout)
        finally:
            inside.pop()

    monkeypatch.setattr(threading.Thread, "join", counted)
    go = threading.Event()
    thread = JoinableThread(lambda event: event.wait(SOON), go, "wsthread-joined")
    thread.start()
    joiners = [threading.Thread(target=thread.join, args=(t,)) for t in (None, SOON, SOON)]
    for joiner in joiners:
        joiner.start()
    begun = time.monotonic()
    thread.join(0.1)
    assert 0.05 < time.monotonic() - begun < 5 and thread.is_alive()
    go.set()
    for joiner in joiners:
        joiner.join(SOON)
        assert not joiner.is_alive()
    assert max(most) == 1 and len(most) == 3


# The delegate.


def test_a_typo_is_warned_of() -> None:
    class Typo(wsthread.WebSocketDelegate):
        def on_mesage(self, client: Any, message: Any) -> None: ...

    with pytest.warns(UserWarning, match=r"Typo\.on_mesage is no callback") as caught:
        client = wsthread.WebSocketClient("ws://127.0.0.1:1/", Typo())
    assert caught[0].filename == __file__
    with pytest.warns(UserWarning, match="on_mesage") as caught:
        client.set_delegate(Typo())
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        client.set_delegate(RecordingDelegate())


def test_callback_delegate_checks_its_names() -> None:
    with pytest.raises(TypeError, match="on_mesage"):
        wsthread.CallbackDelegate(on_mesage=print)
    with pytest.raises(TypeError, match="on_message"):
        wsthread.CallbackDelegate(on_message=3)  # type: ignore[arg-type]
    assert wsthread.CallbackDelegate(on_open=None).on_open(None) is None  # type: ignore


def test_callback_delegate_and_plain_objects(url: str) -> None:
    got: List[Any] = []
    done = threading.Event()

    class Plain:
        def on_message(self, client: Any, message: Any) -> None:
            got.append(message)
            done.set()

    def on_message(client: Any, message: Any) -> None:
        got.append(message)
        done.set()

    for delegate in (Plain(), wsthread.CallbackDelegate(on_message=on_message)):
        done.clear()
        with quick(url, delegate) as client:
            client.send("x")
            assert done.wait(SOON)
    assert got == ["x", "x"]


def test_set_delegate_takes_effect_with_the_next_callback(url: str, rig: Rig) -> None:
    """Also for messages that came in one read with the one that is being delivered."""
    second = RecordingDelegate()

    class First(RecordingDelegate):
        def on_message(self, client: Any, message: Any) -> None:
            super().on_message(client, message)
            if message == "3":
                client.set_delegate(second)

    first = First()
    client = quick(url, first, dispatcher=rig.dispatcher)
    client.connect()
    client.send("push 20")
    second.wait_for("message", count=16)
    assert client.disconnect()
    assert first.messages() == list("0123")
    assert second.messages() == [str(n) for n in range(4, 20)]
    assert second.names()[-2:] == ["close", "state"]


class Fragments(RecordingDelegate):
    def on_fragment(self, client: Any, data: Any, opcode: int, final: bool) -> None:
        self.record("fragment", data, opcode, final)


def fragmented(connection: RawConnection) -> None:
    connection.upgrade()
    connection.sock.sendall(
        frame(1, b"ab", fin=False) + frame(0, b"cd", fin=False) + frame(0, b"ef") + frame(2, b"x")
    )
    connection.answer_close()


def test_on_fragment_gets_fragments_as_they_come(rig: Rig) -> None:
    recorder = Fragments()
    with RawServer(fragmented) as server:
        client = quick(server.url, recorder, dispatcher=rig.dispatcher)
        client.connect()
        recorder.wait_for("fragment", count=4)
        assert client.disconnect()
    events = recorder.of("fragment")
    # A parser may hand on pieces of a frame; together they are the messages.
    text = "".join(e[1] for e in events if e[2] == 1)
    binary = b"".join(e[1] for e in events if e[2] == 2)
    assert (text, binary) == ("abcdef", b"x")
    assert [e[2] for e in events if e[3]] == [1, 2]
    assert recorder.messages() == []


def test_set_delegate_between_messages_and_fragments_waits_for_the_next_connection(
    url: str,
) -> None:
    before, after = RecordingDelegate(), Fragments()
    client = quick(url, before)
    client.connect()
    client.send("a")
    before.wait_for("message")
    client.set_delegate(after)
    client.send("b")
    after.wait_for("message")
    assert client.disconnect()
    assert after.messages() == ["b"] and not after.of("fragment", "error")
    client.connect()
    client.send("c")
    assert after.wait_for("fragment")[1:] == ("c", 1, True)
    assert client.disconnect()


def test_promise_20_a_client_is_never_without_its_delegate_while_it_is_replaced() -> None:
    """A callback that fell in between would be called by nobody."""
    delegates = [RecordingDelegate(), RecordingDelegate()]
    client = wsthread.WebSocketClient("ws://127.0.0.1:9/", delegates[0])
    missing: List[int] = []
    over = threading.Event()

    def look() -> None:
        while not over.is_set():
            if client.delegate is None:
                missing.append(1)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        looking = Background(look)
        for number in range(20_000):
            client.set_delegate(delegates[number % 2], weak=number % 2 == 0)
        over.set()
        looking.result(SOON)
    finally:
        over.set()
        sys.setswitchinterval(interval)
    assert not missing


def test_weak_delegate(url: str) -> None:
    gc.collect()
    gc.disable()
    try:
        recorder = RecordingDelegate()
        client = quick(url, recorder, weak_delegate=True)
        client.connect()
        client.send("x")
        recorder.wait_for("message")
        assert client.delegate is recorder
        gone = weakref.ref(recorder)
        deadline = time.monotonic() + SOON
        del recorder
        while gone() is not None:  # its callback may be ending just now
            assert time.monotonic() < deadline
            time.sleep(0.001)
        assert client.delegate is None
        client.send("y")
        client.ping()
        assert client.disconnect()
        with pytest.raises(ReferenceError):
            client.connect()
    finally:
        gc.enable()


def test_a_thread_that_cannot_start_ends_the_life(
    url: str, rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = RecordingDelegate()
    client = quick(url, recorder, dispatcher=rig.dispatcher)
    start = threading.Thread.start

    def no_reader(thread: threading.Thread) -> None:
        if thread.name.startswith("wsthread-reader"):
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", no_reader)
    with contextlib.ExitStack() as stack:
        stack.callback(gc.enable)
        gc.collect()
        gc.disable()
        with pytest.raises(wsthread.ConnectError, match="thread"):
            client.connect()
        assert client._session is None
        assert client.state is wsthread.ConnectionState.DISCONNECTED
        assert client.wait(SOON)
    client.disconnect()
    monkeypatch.undo()
    client.connect()
    assert client.disconnect()
    assert recorder.states()[-4:] == ["CONNECTING", "CONNECTED", "CLOSING", "DISCONNECTED"]


def test_pump_inside_a_job_of_the_pump() -> None:
    dispatcher = wsthread.PumpDispatcher()
    counts: List[int] = []
    dispatcher.schedule(lambda: counts.append(dispatcher.run_pending()))
    dispatcher.schedule(lambda: counts.append(-1))
    assert dispatcher.run_pending() == 1
    assert counts == [-1, 1]
    dispatcher.close()


def test_messages_that_wait_when_the_delegate_goes_are_counted(url: str) -> None:
    entered, go_on = threading.Event(), threading.Event()

    def block(client: Any, message: Any) -> None:
        entered.set()
        assert go_on.wait(SOON)

    delegate = wsthread.CallbackDelegate(on_message=block)
    client = quick(url, delegate)
    client.connect()
    client.send("push 10")
    assert entered.wait(SOON)
    deadline = time.monotonic() + SOON
    while client.stats.messages_received < 10 and time.monotonic() < deadline:
        time.sleep(0.005)
    client.set_delegate(None)
    go_on.set()
    while client.stats.messages_dropped < 9 and time.monotonic() < deadline:
        time.sleep(0.005)
    assert client.stats.messages_dropped == 9
    assert client.disconnect()


def test_promise_01_an_end_that_the_reader_settles_starts_no_thread_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The thread of callbacks looks for more just while the reader has the end in its hands."""
    reader_is_in, worker_looks, over = threading.Event(), threading.Event(), threading.Event()
    settle, count, hand_on = Mailbox._settle, Mailbox._count, Mailbox._hand_on
    schedule = Mailbox.schedule

    def settles(box: Mailbox, item: Any, me: int, turns: int) -> Any:
        following = settle(box, item, me, turns)
        if item[0] == "messages" and following is None:
            worker.append(threading.current_thread())
            assert reader_is_in.wait(SOON)
        return following

    def counts(box: Mailbox, item: Any, sign: int) -> None:
        count(box, item, sign)
        if item[0] == "end":
            reader_is_in.set()
            assert worker_looks.wait(SOON)

    def hands_on(box: Mailbox) -> None:
        worker_looks.set()
        hand_on(box)

    def schedules(box: Mailbox) -> None:
        if threading.current_thread() in worker:  # as late as can be
            over.wait(SOON)
        schedule(box)

    worker: List[threading.Thread] = []
    monkeypatch.setattr(Mailbox, "_settle", settles)
    monkeypatch.setattr(Mailbox, "_count", counts)
    monkeypatch.setattr(Mailbox, "_hand_on", hands_on)
    monkeypatch.setattr(Mailbox, "schedule", schedules)

    def script(connection: RawConnection) -> None:
        connection.upgrade()
        connection.sock.sendall(frame(1, b"message"))
        connection.answer_close()

    class Listens:
        def on_message(self, client: Any, message: Any) -> None:
            pass

    with RawServer(script) as server:
        client = wsthread.WebSocketClient(server.url, Listens(), reconnect=False)
        client.connect()
        deadline = time.monotonic() + SOON
        while not worker and time.monotonic() < deadline:
            time.sleep(0.001)
        assert client.disconnect()
        over.set()
        worker[0].join(SOON)
        dispatcher: Any = client.mailbox.dispatcher
        assert dispatcher._worker is None and worker_looks.is_set()
