"""Promises 5, 9 and 20 under races: any calls, from several threads, in any order.

A step only hands an operation to one of several threads, so that operations of different threads
run at the same time. After every run all must have returned, and what the callbacks were told must
fit together. Where something hangs, the stacks of all threads are printed.
"""

from __future__ import annotations

import contextlib
import faulthandler
import gc
import itertools
import queue
import random
import sys
import threading
import time
import weakref
from typing import Any, Callable, Dict, Iterator, List, Optional, Set, Tuple

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test

import wsthread
from tests.lasting import SteadyServer, eventually
from tests.support import SOON, RawConnection, close_frame, frame
from wsthread import ConnectionState, QueueLimit, Reconnect
from wsthread.session import Session
from wsthread.state import TRANSITIONS

THREADS = 4
#: What operations may raise; everything else is a failure.
EXPECTED = (
    wsthread.ConnectError,
    wsthread.ConnectionClosed,
    wsthread.NotConnected,
    wsthread.QueueFull,
    wsthread.SendTimeout,
)
NEXT: Set[Tuple[str, str]] = {
    (before.name, after.name) for (before, _), after in TRANSITIONS.items()
}


class Story:
    """What one client was told, and what was accepted of it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        # All are the lock's.
        self.events: List[Tuple[str, Any]] = []
        self.accepted: Set[str] = set()
        self.refused: Set[str] = set()
        self.wrong: List[str] = []
        self._busy = 0  # callbacks that run
        #: What the next callback does: called with the client, once.
        self.surprises: List[Callable[[Any], None]] = []

    def told(self, client: Any, name: str, what: Any) -> None:
        """A callback has been called. Calls overlap where one is still in here."""
        with self._lock:
            self.events.append((name, what))
            self._busy += 1
            if self._busy > 1:
                self.wrong.append(f"callbacks overlap: {self.events[-2:]}")
            surprise = self.surprises.pop() if self.surprises else None
        try:
            if surprise is not None:
                with contextlib.suppress(*EXPECTED):
                    surprise(client)
        except BaseException as error:
            self.fail(f"in {name}: {error!r}")
        finally:
            with self._lock:
                self._busy -= 1

    def fail(self, what: str) -> None:
        with self._lock:
            self.wrong.append(what)

    def send(self, client: wsthread.WebSocketClient, *messages: str) -> None:
        try:
            if len(messages) == 1:
                client.send(messages[0], timeout=0.2)
            else:
                client.send_many(messages, timeout=0.2)
        except BaseException:
            with self._lock:
                self.refused.update(messages)
            raise
        with self._lock:
            self.accepted.update(messages)

    def check(self, pending: Optional[int]) -> None:
        """The story is over; `pending` messages wait for a first life, None: nobody knows."""
        assert not self.wrong, self.wrong
        self._check_states(finished=pending is not None)
        sent = [what for name, what in self.events if name == "sent"]
        unsent = [what for name, what in self.events if name == "unsent"]
        echoed = [what for name, what in self.events if name == "message"]
        outcomes = sent + unsent
        assert len(set(outcomes)) == len(outcomes), "one outcome for each message"
        assert self.refused.isdisjoint(outcomes), "what raised was not accepted"
        assert set(outcomes) <= self.accepted
        if pending is not None:
            assert len(self.accepted) - len(outcomes) == pending, "every message has an outcome"
        assert len(set(echoed)) == len(echoed), "nothing was sent twice"
        assert set(echoed).isdisjoint(unsent), "what came back had not arrived"

    def _check_states(self, finished: bool) -> None:
        state, is_open = "DISCONNECTED", False
        for number, (name, what) in enumerate(self.events):
            where = f"at {number} of {self.events}"
            if name == "state":
                assert (state, what) in NEXT, where
                state = what
                assert state != "DISCONNECTED" or not is_open, where
                continue
            assert state != "DISCONNECTED", f"behind the last callback of a life {where}"
            if name == "open":
                assert not is_open, where
                is_open = True
            elif name == "close":
                assert is_open, where
                is_open = False
            elif name == "message":
                assert is_open, where
        if finished:
            assert state == "DISCONNECTED" and not is_open, self.events


class Watcher:
    """A delegate with every callback that tells of a promise."""

    def __init__(self, story: Story) -> None:
        self._story = story

    def on_state_change(self, client: Any, state: ConnectionState) -> None:
        self._story.told(client, "state", state.name)

    def on_open(self, client: Any) -> None:
        self._story.told(client, "open", None)

    def on_message(self, client: Any, message: str) -> None:
        self._story.told(client, "message", message)

    def on_sent(self, client: Any, message: str) -> None:
        self._story.told(client, "sent", message)

    def on_unsent(self, client: Any, message: str, error: BaseException) -> None:
        self._story.told(client, "unsent", message)

    def on_close(self, client: Any, code: int, reason: str) -> None:
        self._story.told(client, "close", code)

    def on_error(self, client: Any, error: BaseException) -> None:
        self._story.told(client, "error", error)
        if not isinstance(error, wsthread.WebSocketError):
            self._story.fail(f"on_error was told {error!r}")


def serve(connection: RawConnection) -> None:
    """Echoes; "close N" makes it close with that code."""
    connection.upgrade()
    connection.sock.settimeout(None)
    while True:
        opcode, payload = connection.read_frame()
        if opcode == 1 and payload.startswith(b"close "):
            connection.sock.sendall(close_frame(int(payload.split()[1])))
        elif opcode != 10:
            connection.sock.sendall(frame(10 if opcode == 9 else opcode, payload))
        if opcode == 8:
            return


class Worker:
    """A thread that does what it is given, one thing after the other."""

    def __init__(self, failed: Callable[[str], None]) -> None:
        self._jobs: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._failed = failed
        self._thread = threading.Thread(target=self._run, name="races-worker", daemon=True)
        self._thread.start()

    def give(self, job: Callable[..., object], *args: object) -> None:
        self._jobs.put((job, args))

    def _run(self) -> None:
        while True:
            job, args = self._jobs.get()
            if job is None:
                return
            try:
                job(*args)
            except EXPECTED:
                pass  # such is life; what it means for messages is noted
            except BaseException as error:
                self._failed(f"{job}: {error!r}")
            job = args = None

    def pause(self) -> threading.Event:
        reached = threading.Event()
        self._jobs.put((reached.set, ()))
        return reached

    def end(self) -> bool:
        self._jobs.put((None, ()))
        self._thread.join(SOON)
        return not self._thread.is_alive()


class World:
    """A server, a client, and the threads that use it."""

    def __init__(self, inline: bool) -> None:
        self._inline = inline
        self.server = SteadyServer(serve)
        self._server_lock = threading.Lock()  # who stops and starts it
        self.failures: List[str] = []
        self.workers = [Worker(self.failures.append) for _ in range(THREADS)]
        self.dropped: List[Story] = []
        self._numbers = itertools.count()
        self.renew()

    def renew(self) -> None:
        self.story = Story()
        self.watchers = [Watcher(self.story), Watcher(self.story)]
        self.client: Optional[wsthread.WebSocketClient] = wsthread.WebSocketClient(
            self.server.url,
            self.watchers[0],
            dispatcher=wsthread.InlineDispatcher() if self._inline else None,
            connect_timeout=SOON,
            close_timeout=SOON,
            ping_interval=0.05,
            ping_timeout=SOON,
            send_queue=QueueLimit(messages=30),
            reconnect=Reconnect(delay=0.005, max_delay=0.02),
        )

    def messages(self, count: int) -> List[str]:
        return [f"message {next(self._numbers)}" for _ in range(count)]

    def restart(self, down: float) -> None:
        """Kill the server; start it again after `down` seconds."""
        with self._server_lock:
            self.server.stop()
            time.sleep(down)
            self.server.start()


def connect(world: World, wait: bool) -> None:
    client = world.client
    if client is not None:
        client.connect(timeout=1, wait=wait)


def send(world: World, story: Story, count: int) -> None:
    client = world.client
    if client is not None and story is world.story:
        story.send(client, *world.messages(count))


def close_by_server(world: World, code: int) -> None:
    client, story = world.client, world.story
    if client is not None:
        story.send(client, f"close {code} {next(world._numbers)}")


def end(world: World, how: str, again: bool) -> None:
    """End a life, and begin the next one."""
    client = world.client
    if client is None:
        return
    if how == "abort":
        client.abort()
    elif not client.disconnect(wait=how == "disconnect") and how == "disconnect":
        world.failures.append("disconnect() dropped callbacks")
    if again:
        client.connect(timeout=1)


def call(world: World, name: str, *args: Any) -> None:
    client = world.client
    if client is not None:
        getattr(client, name)(*args)


def look(world: World) -> None:
    client = world.client
    if client is not None:
        assert client.pending >= 0 and client.state in ConnectionState
        assert client.stats.messages_sent >= 0 and repr(client)


def set_delegate(world: World, which: int, weak: bool) -> None:
    client, watchers = world.client, world.watchers
    if client is not None and client.delegate in watchers:
        client.set_delegate(watchers[which], weak=weak)


WAITS = [("wait", 0.02), ("ping", b"", 0.5), ("flush", 0.5)]
ENDS = ["disconnect", "ask to disconnect", "abort"]

#: What a callback does: names, and functions of world, story and the client.
SURPRISES: Dict[str, Callable[[World, Story, Any], None]] = {
    "send": lambda world, story, client: story.send(client, *world.messages(1)),
    "disconnect": lambda world, story, client: client.disconnect(),
    "ask to disconnect": lambda world, story, client: client.disconnect(wait=False),
    "abort": lambda world, story, client: client.abort(),
    "connect": lambda world, story, client: client.connect(wait=False),
    "cut": lambda world, story, client: world.server.cut(),
}


class Races(RuleBasedStateMachine):
    """The rules. Which run at the same time, chance decides."""

    inline = False

    def __init__(self) -> None:
        super().__init__()
        faulthandler.dump_traceback_later(SOON * 3, file=sys.__stderr__)
        self.world = World(self.inline)
        self.steps = 0  # since there is this client
        self.give(0, connect, self.world, True)

    threads = st.integers(0, THREADS - 1)

    def give(self, thread: int, job: Callable[..., object], *args: object) -> None:
        self.steps += 1
        self.world.workers[thread].give(job, *args)

    @rule(thread=threads, wait=st.booleans())
    def connect(self, thread: int, wait: bool) -> None:
        self.give(thread, connect, self.world, wait)

    @rule(thread=threads, count=st.integers(1, 12))
    def send(self, thread: int, count: int) -> None:
        self.give(thread, send, self.world, self.world.story, count)

    @rule(thread=threads, count=st.integers(1, 12))
    def send_again(self, thread: int, count: int) -> None:
        self.give(thread, send, self.world, self.world.story, count)

    @rule(thread=threads, how=st.sampled_from(ENDS), again=st.sampled_from([True, True, False]))
    def end(self, thread: int, how: str, again: bool) -> None:
        self.give(thread, end, self.world, how, again)

    @rule(
        thread=threads, what=st.sampled_from([("wait", 0.02), ("ping", b"", 0.5), ("flush", 0.5)])
    )
    def call(self, thread: int, what: Tuple[Any, ...]) -> None:
        self.give(thread, call, self.world, *what)

    @rule(thread=threads)
    def look(self, thread: int) -> None:
        self.give(thread, look, self.world)

    @rule(thread=threads, which=st.integers(0, 1), weak=st.booleans())
    def set_delegate(self, thread: int, which: int, weak: bool) -> None:
        self.give(thread, set_delegate, self.world, which, weak)

    @rule(thread=threads, down=st.sampled_from([0, 0.01, 0.03]))
    def kill_the_server(self, thread: int, down: float) -> None:
        self.give(thread, self.world.restart, down)

    @rule(thread=threads)
    def cut(self, thread: int) -> None:
        self.give(thread, self.world.server.cut)

    @rule(thread=threads, code=st.sampled_from([1000, 1001, 1008, 1012]))
    def close_by_server(self, thread: int, code: int) -> None:
        self.give(thread, close_by_server, self.world, code)

    @rule(name=st.sampled_from(sorted(SURPRISES)))
    def surprise(self, name: str) -> None:
        world, story, act = self.world, self.world.story, SURPRISES[name]
        story.surprises.append(lambda client: act(world, story, client))

    @rule()
    def wait_for_threads(self) -> None:
        self._wait_for_threads()

    @rule()
    def wait_for_connection(self) -> None:
        """Without this hardly anything would ever be connected."""
        client = self.world.client
        assert client is not None
        deadline = time.monotonic() + 0.1
        while client.state is not ConnectionState.CONNECTED and time.monotonic() < deadline:
            time.sleep(0.002)

    @precondition(lambda self: self.steps > 15)
    @rule()
    def drop(self) -> None:
        self._wait_for_threads()
        self.steps = 0
        world = self.world
        world.dropped.append(world.story)
        gone = weakref.ref(world.client)
        world.client = None
        eventually(lambda: gone() is None)  # a callback may just be running
        world.renew()
        self.give(0, connect, world, True)

    def _wait_for_threads(self) -> None:
        for reached in [worker.pause() for worker in self.world.workers]:
            if not reached.wait(SOON * 2):
                faulthandler.dump_traceback(file=sys.__stderr__)
                raise TimeoutError("an operation does not return")

    def teardown(self) -> None:
        world = self.world
        try:
            self._wait_for_threads()
            world.story.surprises.clear()
            world.workers[0].give(end, world, "disconnect", False)  # not here: it might hang
            self._wait_for_threads()
            client, story = world.client, world.story
            assert client is not None
            told = len(story.events)
            pending = client.pending
            assert client.state is ConnectionState.DISCONNECTED
            assert world.failures == []
            story.check(pending)
            for dropped in world.dropped:
                dropped.check(None)
            gone = weakref.ref(client)
            world.client = client = None
            assert gone() is None, "something still holds the client"
            assert len(story.events) == told, "a callback ran behind disconnect()"
        finally:
            world.client = None
            ended = [worker.end() for worker in world.workers]
            world.server.close()
            faulthandler.cancel_dump_traceback_later()
        assert all(ended)


class InlineRaces(Races):
    inline = True


@pytest.fixture(params=[None, 1e-6], ids=["", "switching"])
def switching(request: pytest.FixtureRequest) -> Iterator[None]:
    """Threads take turns as often as they can."""
    before = sys.getswitchinterval()
    if request.param is not None:
        sys.setswitchinterval(request.param)
    yield
    sys.setswitchinterval(before)


@pytest.mark.unmeasured
@pytest.mark.filterwarnings("ignore:<WebSocketClient .* was dropped while open:ResourceWarning")
@pytest.mark.parametrize(
    "examples", [20, pytest.param(100, marks=pytest.mark.thorough)], ids=["quick", "long"]
)
@pytest.mark.parametrize("machine", [Races, InlineRaces])
def test_promise_05_09_20_hold_whatever_threads_do(
    machine: Any, examples: int, switching: None
) -> None:
    gc.collect()
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_connect_that_does_not_wait_never_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even in a callback while another thread disconnects in the middle of it."""
    looks: List[Session] = []
    outcomes: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def closing(session: Session) -> bool:
        looks.append(session)
        if len(looks) == 3:  # connect() has just found the life to join
            session.request_close(b"\x03\xe8", SOON)
        return session.ending()

    class Impatient(wsthread.WebSocketDelegate):
        def on_reconnect(self, client: Any, *rest: object) -> None:
            monkeypatch.setattr(Session, "closing", property(closing))
            try:
                outcomes.put(client.connect(wait=False))
            except BaseException as error:
                outcomes.put(error)
            monkeypatch.undo()

    with SteadyServer(serve) as server:
        policy = Reconnect(delay=1000, max_delay=1000, rng=random.Random(1))
        client = wsthread.WebSocketClient(server.url, Impatient(), reconnect=policy)
        client.connect()
        server.cut()
        assert outcomes.get(timeout=SOON) is None
        assert looks
        looks.clear()
        assert client.disconnect()
