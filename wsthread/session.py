"""One life, from connect to disconnect: attempts, back-off, the reader's loop."""

from __future__ import annotations

import itertools
import logging
import math
import threading
import time
import weakref
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Deque, Iterator, List, NamedTuple, Optional, Sequence, Tuple

from .connection import Connection
from .deflate import Agreement
from .delegate import Message
from .dispatch import JoinableThread
from .errors import (
    ConnectError,
    ConnectionClosed,
    ConnectTimeout,
    NotConnected,
    WebSocketError,
    detached,
)
from .known import Known, Settings
from .mailbox import Item, Life, Mailbox
from .outbox import UNUSED, Entry, Outbox, move, used
from .outbox import Ping as AskedPing
from .reconnect import Backoff, Reconnect, retried, retry_after
from .source import prepare
from .state import ConnectionState, Event, next_state
from .transport import HANGUP, READ, Cancelled, Poller, Waiter, Waker
from .waits import Flag
from .writer import FrameWriter

if TYPE_CHECKING:
    from .client import WebSocketClient
    from .opening import Opened

logger = logging.getLogger(__name__)

_numbers = itertools.count(1)

#: The sessions that run, for the hooks of interpreter exit and fork. Additions and removals
#: are single dict operations, which need no lock.
running: dict[int, weakref.ref[Session]] = {}
#: Set by the hook of interpreter exit, before it looks at `running`: a session either finds it
#: set and does not start, or is found and waited for.
exiting = threading.Event()


class CloseRequest(NamedTuple):
    payload: bytes
    deadline: float  # monotonic seconds; math.inf: never


class Reader(JoinableThread):
    """The thread of one life."""


class Session:
    """One life of a client, run by its reader thread.

    It holds nothing of the user's: delegate and callables are the handle's, reached through a
    weak reference. Requests come in by plain assignments followed by a wake-up, so that
    finalisers and signal handlers may make them; everything else is the reader's.
    """

    __slots__ = (
        "__weakref__",
        "_backoff",
        "_begun",
        "_cell",
        "_closed",
        "_connection",
        "_error",
        "_poller",
        "_uptime",
        "_waiter",
        "abort_request",
        "awaited",
        "begun_by",
        "client",
        "close_request",
        "connect_timeout",
        "drop_request",
        "ever_open",
        "failure",
        "give_up_at",
        "interrupted",
        "known",
        "label",
        "life",
        "mailbox",
        "outbox",
        "overridden",
        "requested",
        "sent",
        "settings",
        "settled",
        "starting",
        "thread",
        "waker",
        "writer",
    )

    def __init__(
        self, client: WebSocketClient, settings: Settings, known: Known, outbox: Outbox
    ) -> None:
        self.client = client.mailbox.client
        self.settings = settings
        self.known = known
        self.mailbox: Mailbox = client.mailbox
        self.overridden = client.overridden  # replaced as a whole by set_delegate
        self.waker = Waker()
        self.outbox = outbox
        #: Set while connected, and at the end: connect() waits for it.
        self.settled = Flag()
        #: Why the first opening failed; for connect().
        self.failure: Optional[ConnectError] = None
        # Requests, written by any thread without a lock, never unset.
        self.requested = False  # whether there is one; set after it
        self.close_request: Optional[CloseRequest] = None
        self.abort_request = False
        self.drop_request = False
        #: A sender's thread was interrupted at any point of `pump`. Unset by the reader.
        self.interrupted = False
        #: Whether a connect() waits to raise the first failure itself. Written by connect().
        self.awaited = False
        self.connect_timeout = settings.connect_timeout
        #: When the first connection is given up for good, whatever its policy. Likewise.
        self.give_up_at: Optional[float] = None
        #: Whether there ever was a connection. Written by the reader.
        self.ever_open = False
        #: The writer of the open connection, or None. Written by the reader.
        self.writer: Optional[FrameWriter] = None
        self.sent: Deque[Entry] = UNUSED  # for on_sent; assigned and appended under the write lock
        self._connection: Optional[Connection] = None
        # Of the connection that has just ended: why it sends no more, and what was begun.
        self._closed: Optional[ConnectionClosed] = None
        self._begun: Sequence[Entry] = ()
        self._uptime = 0.0  # its seconds
        self._backoff: Optional[Backoff] = None
        self._error: Optional[BaseException] = None  # what ended the attempt or connection
        self._poller = Poller()
        self._waiter: Optional[Waiter] = None  # of the opening under way
        cell: List[Session] = []
        self._cell = cell  # what the thread gets; emptied by it
        #: Names this life in the log, and its thread.
        self.label = f"client {next(_numbers)}"
        self.thread = Reader(_read, cell, f"wsthread-reader-{self.label[7:]}")
        self.starting = threading.Lock()  # held until the thread is started, or could not be
        self.begun_by = threading.get_ident()  # the thread whose connect() it is
        self.life = Life(self.thread)

    def start(self) -> None:
        """Begin the life, on the thread of connect()."""
        self.change(Event.CONNECT)
        with self.starting:
            running[id(self)] = weakref.ref(self)
            self._cell.append(self)
            try:
                if exiting.is_set():
                    raise RuntimeError("the interpreter ends")
                self.thread.start()
            except BaseException as error:
                if not self._take_back():  # Ctrl-C, and the thread runs
                    self.request_abort()
                    raise
                self._end()
                if self.mailbox.dispatcher.inline:
                    self.mailbox.seal(self.life)  # there is no reader to run them
                if isinstance(error, RuntimeError):  # no more threads, or the interpreter ends
                    raise ConnectError(f"no thread could be started: {error}") from None
                raise

    def _take_back(self) -> bool:
        """Take what `start` gives the thread; False: the thread was faster."""
        try:
            self._cell.pop()
        except IndexError:
            return False
        return True

    # Requests. Any thread.

    def request_close(self, payload: bytes, timeout: Optional[float]) -> None:
        """Ask for the closing handshake. Takes no lock: also for signal handlers."""
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        previous = self.close_request
        if previous is None or deadline < previous.deadline:
            payload = payload if previous is None else previous.payload
            self.close_request = CloseRequest(payload, deadline)
        self.requested = True
        self.life.silenced = True
        self.mailbox.changed = True
        self.waker.wake()

    def request_abort(self) -> None:
        """Ask for the end at once. Takes no lock."""
        self.life.silenced = True
        self.mailbox.changed = True
        self.abort_request = self.requested = True
        self.waker.wake()

    def request_drop(self) -> None:
        """The client was dropped. Takes no lock: for finalisers."""
        self.life.dropped = True
        self.drop_request = self.requested = True
        self.waker.wake()

    def ending(self) -> bool:
        """Whether this side asked for the end."""
        return self.requested

    @property
    def closing(self) -> bool:
        """Whether nothing more is accepted: the end was asked for, or has begun."""
        return (
            self.close_request is not None
            or self.abort_request
            or self.drop_request
            or self.known.state is ConnectionState.CLOSING
        )

    def forked(self) -> None:
        """In a forked child: close the descriptors, and be over. Takes no lock."""
        if self._connection is not None:
            self._connection.transport.forked()
        if self._waiter is not None:
            self._waiter.forked()
        self.waker.close()
        self.abort_request = self.requested = True
        self.life.forked = self.life.silenced = True
        self.mailbox.changed = True
        if self.known.state is not ConnectionState.DISCONNECTED:
            self.known.state = next_state(self.known.state, Event.END)

    # Sending. Any thread.

    def send_now(self, opcode: int, payload: bytes, message: Message) -> bool:
        """Write or queue a message where nothing is in its way; False: `send` has to take it."""
        writer = self.writer
        if writer is None or self.life.silenced:
            return False
        told = "on_sent" in self.overridden
        try:
            done = writer.write_now(opcode, payload, message, told)
            accepted = done is not None
            if done is False:
                self.waker.wake()
            elif done is None and not self.closing:
                accepted = self.outbox.offer(Entry(opcode, payload, message))
            if told or self.outbox.ready:  # somebody may have met the lock held, also in vain
                self.pump()
        except BaseException:  # Ctrl-C: the reader mends what was left half done
            self.interrupted = True
            self.waker.wake()
            raise
        return accepted

    def send(
        self, entries: List[Entry], first: bool, may_wait: bool, deadline: Optional[float]
    ) -> None:
        """Accept messages; write what can be written. Raises as `Outbox.admit`."""
        if self.closing:
            raise NotConnected("the client is closing")
        try:
            self.outbox.admit(entries, first, may_wait, deadline)
            self.pump()
        except Exception:
            raise
        except BaseException:  # Ctrl-C: the reader mends what was left half done
            self.interrupted = True
            self.waker.wake()
            raise
        if entries[0].awaited:
            try:
                self.outbox.wait_sent(entries[0], deadline)
            finally:
                if self.outbox.failure is not None:
                    self.waker.wake()

    def flush(self, deadline: Optional[float]) -> None:
        """Wait until all that was accepted is with the kernel."""
        mark = self.outbox.mark()
        self.pump()
        self.outbox.wait_sent(mark, deadline)

    def ping(self, ping: AskedPing, deadline: Optional[float]) -> float:
        """Send a ping and wait for its answer."""
        self.outbox.ask(ping)
        self.pump()
        return self.outbox.wait_pong(ping, deadline)

    def pump(self) -> None:
        """Write what waits, as far as it goes without waiting; leave the rest to the reader."""
        writer = self.writer
        if writer is not None:
            try:
                if not writer.pump():
                    self.waker.wake()
                if self.sent:
                    self.mailbox.put_sent(self.sent, self.life)
            except BaseException:  # Ctrl-C: the reader mends what was left half done
                self.interrupted = True
                self.waker.wake()
                raise

    def written(self, begun: Deque[Entry], count: int) -> None:
        """Take the first of what the writer had begun: it is with the kernel. Under its lock."""
        if "on_sent" in self.overridden:
            for entry in itertools.islice(begun, count):
                entry.payload = b""  # only the message is told
            self.sent = used(self.sent)
            move(begun, count, self.sent)
        elif count == len(begun):
            begun.clear()
        else:
            move(begun, count, UNUSED)

    # The reader.

    def run(self) -> Iterator[None]:
        """Live. Yields where no lock is held and callbacks may run on this thread.

        A generator, because its frames are then not below the callbacks, where an error that
        a user keeps would hold them.
        """
        try:
            while True:
                yield
                code: Optional[int] = None
                if self._attempt():
                    yield from self._serve()
                    code = self._conclude()
                delay = self._decide(code)
                self._report(code, over=delay is None)
                if delay is None:
                    break
                yield from self._back_off(delay)
                if self.ending():
                    break
        except Exception as error:  # a bug; the client ends in order all the same
            logger.exception("%s: internal error", self.label)
            self._error = detached(error)
            if self._connection is not None:
                self._report(self._conclude(), over=True)
        self._end()

    def _attempt(self) -> bool:
        """Open a connection; True when it is open."""
        self._error = None
        timeout = self.connect_timeout
        deadline = None if timeout is None else time.monotonic() + timeout
        if self.give_up_at is not None and not self.ever_open:
            deadline = self.give_up_at if deadline is None else min(deadline, self.give_up_at)
        waiter = self._waiter = Waiter(self.waker, self.ending, deadline, self._poller)
        try:
            client = self.client()
            if client is None:
                return False
            source = client.source
            del client
            url, options = prepare(source, waiter)
            opened = options.open(url, waiter)
        except Cancelled:
            return False
        except ConnectError as error:
            self._error = detached(error)
            self.known.stats.failed_attempts += 1
            return False
        finally:
            self._waiter = None
        self._open(opened)
        return True

    def _open(self, opened: Opened) -> None:
        agreement = opened.agreement if isinstance(opened.agreement, Agreement) else None
        connection = Connection(self, opened.transport, agreement)
        self._connection = connection
        extensions = () if agreement is None else (str(agreement),)
        self.known.opened(opened.subprotocol, extensions, tuple(opened.response_headers))
        if self.ever_open:
            self.known.stats.reconnects += 1
        self.ever_open = True
        logger.info("%s: open%s", self.label, f", {extensions[0]}" if extensions else "")
        self.connect_timeout = self.settings.connect_timeout
        items = self._change_items(Event.OPENED, "opening")
        if "on_open" in self.overridden:
            items.append(("opening", ("on_open", ()), 0, self.life))
        gated = bool(items)
        if gated:
            items.append(("lift", connection.gated(), 0, self.life))
        self.outbox.opened(gated)
        self.writer = connection.writer
        self._put(items)
        self.settled.set()
        if opened.leftover:
            connection.received(opened.leftover)

    def _serve(self) -> Iterator[None]:
        """Run the open connection until it is over."""
        connection, poller = self._connection, self._poller
        assert connection is not None
        descriptor, wake = connection.transport.fileno(), self.waker.fileno()
        poller.watch(wake, READ)
        due, calm = -math.inf, False
        try:
            while True:
                yield
                now = time.monotonic()
                if now >= due or not calm:
                    connection.attend()
                    if connection.over:
                        break
                    poller.watch(descriptor, connection.interest())
                    # What `attend` has brought to callbacks of this thread's does not wait.
                    due = -math.inf if self.mailbox.is_due_here() else connection.due()
                    # Messages alone, while nothing else is going on, leave nothing to attend to.
                    calm = connection.calm()
                    now = time.monotonic()  # it may have taken a while
                ready = poller.wait(None if due == math.inf else due - now)
                if ready.get(wake):
                    self.waker.drain()
                    calm = False
                events = ready.get(descriptor, 0)
                if events & READ or (events & HANGUP and not connection.paused):
                    calm = connection.read() and calm
                elif events & HANGUP:
                    connection.hung_up_while_paused()
                    calm = False
        finally:
            poller.watch(descriptor, 0)
            poller.watch(wake, 0)

    def _conclude(self) -> int:
        """The connection is over: note how; return the close code."""
        connection = self._connection
        assert connection is not None
        self._connection = self.writer = None
        if self.ending():
            # Before what was begun makes room for a sender that waits for it.
            self.outbox.refuse("the client is closing")
        self._closed, self._begun = closed, _ = connection.conclude()
        self._error = self._error or connection.error
        self.known.closed(closed.code, closed.reason)
        self._uptime = time.monotonic() - connection.opened_at
        return closed.code

    def _decide(self, code: Optional[int]) -> Optional[float]:
        """Return after how many seconds to try again; None: the life is over."""
        client = self.client()
        policy = client.reconnect if client is not None else None
        del client
        if policy is None or self.ending():
            return None
        if self._backoff is None:
            self._backoff = Backoff(policy)
        if code is not None:
            self._backoff.lasted(self._uptime)
        elif not self.ever_open and not policy.first:
            return None
        retry: Optional[bool] = None
        if policy.should_retry is not None:
            retry = self._ask_user(policy, code)
        if retry is None:
            retry = retried(self._error, code)
        if not retry:
            return None
        asked = retry_after(self._error, datetime.now(timezone.utc))
        delay = self._backoff.next_delay(asked)
        until = math.inf if self.give_up_at is None or self.ever_open else self.give_up_at
        return None if delay is None or time.monotonic() + delay >= until else delay

    def _ask_user(self, policy: Reconnect, code: Optional[int]) -> Optional[bool]:
        timeout, error, ask = self.settings.connect_timeout, self._error, policy.should_retry
        assert ask is not None
        deadline = None if timeout is None else time.monotonic() + timeout
        try:
            waiter = Waiter(self.waker, self.ending, deadline, self._poller)
            return waiter.call(lambda: ask(error, code))
        except Cancelled:
            return False
        except ConnectTimeout:
            text = "has not returned in time"
            logger.warning("%s: should_retry %s; the rules decide", self.label, text)
        except BaseException as failure:  # raised in its own thread, whatever it is
            name = type(detached(failure)).__name__  # its text may hold what is secret
            logger.warning("%s: should_retry raised %s; the rules decide", self.label, name)
        return None

    def _report(self, code: Optional[int], over: bool) -> None:
        """Tell the callbacks how an attempt (code None) or a connection ended, in order."""
        error = self._error
        self.known.error = error
        if error is not None:
            self.known.stats.last_error = error
        self._log_end(code, error)
        if self.sent:
            self.mailbox.put_sent(self.sent, self.life)
        items: List[Item] = []
        closed, self._closed = self._closed, None
        if closed is not None:
            back, self._begun = self._begun, ()
            lost = self.outbox.lost(closed, over)
            items += self._unsent_items([*back, *lost], closed)
        elif over:
            items += self._unsent_items(*self._give_up())
        raised = code is None and self.awaited and not self.ever_open  # by connect()
        told = code is not None or (over and not raised)  # others come with on_reconnect
        if error is not None and told and "on_error" in self.overridden:
            items.append(("call", ("on_error", (error,)), 0, self.life))
        if code is not None and "on_close" in self.overridden:
            args = (code, self.known.close_reason or "")
            items.append(("call", ("on_close", args), 0, self.life))
        self._put(items)

    def _log_end(self, code: Optional[int], error: Optional[BaseException]) -> None:
        if code is not None:
            text = "closed in order" if error is None else str(error)
            # Quoted: the peer's reason may contain line ends.
            logger.info("%s: over with code %d: %r", self.label, code, text)
        elif error is not None:
            logger.info("%s: not open: %r", self.label, str(error))

    def _give_up(self) -> Tuple[List[Entry], WebSocketError]:
        error = NotConnected("the client ended before there was a connection")
        return self.outbox.lost(error, over=True), error

    def _unsent_items(self, entries: List[Entry], error: BaseException) -> List[Item]:
        self.known.stats.messages_unsent += len(entries)
        if not entries or "on_unsent" not in self.overridden:
            return []
        batch = [(entry.message, error) for entry in entries]
        return [("unsent", batch, 0, self.life)]

    def _back_off(self, delay: float) -> Iterator[None]:
        """Wait for the next attempt; a request ends the wait."""
        assert self._backoff is not None
        self.settled.clear()
        self.change(Event.RETRY)
        if "on_reconnect" in self.overridden:
            args = (self._backoff.attempt, delay, self._error)
            self.mailbox.put([("call", ("on_reconnect", args), 0, self.life)])
        logger.info("%s: attempt %d in %.3f s", self.label, self._backoff.attempt, delay)
        until = time.monotonic() + delay
        wake = self.waker.fileno()
        self._poller.watch(wake, READ)
        while True:
            yield
            left = until - time.monotonic()
            if left <= 0 or self.ending():
                break
            if self._poller.wait(left):
                self.waker.drain()
        self._poller.watch(wake, 0)

    def _end(self) -> None:
        """The life is over: give back the queue, say so, and let go of everything."""
        running.pop(id(self), None)
        self.outbox.refuse("the connection is over")
        if isinstance(self._error, ConnectError):
            self.failure = self._error
        elif self._error is None or self.ever_open:
            self.failure = ConnectError("the client was disconnected before it was open")
        else:  # a bug
            self.failure = ConnectError(f"the connection could not be opened: {self._error!r}")
        client = self.client()
        if client is None:
            self.mailbox.put(self.last_items())
        else:
            client.session_ended(self)
        self.settled.set()

    def last_items(self) -> List[Item]:
        """Change the state to DISCONNECTED; return what the callbacks are told at the end."""
        back, error = self._give_up()
        items = self._unsent_items(back, error)
        if self.close_request is not None and self.known.state is not ConnectionState.CLOSING:
            items += self._change_items(Event.CLOSE)
        items += self._change_items(Event.END)
        items.append(("end", None, 0, self.life))
        return items

    def _change_items(self, event: Event, kind: str = "call") -> List[Item]:
        """Change the state: the only place that does. Returns the callback's event."""
        self.known.state = state = next_state(self.known.state, event)
        if "on_state_change" not in self.overridden:
            return []
        return [(kind, ("on_state_change", (state,)), 0, self.life)]

    def change(self, event: Event) -> None:
        before = self.known.state
        items = self._change_items(event)
        if self.known.state is not before:
            self._put(items)

    def _put(self, items: List[Item]) -> None:
        if items:
            self.mailbox.put(items)


def _read(cell: List[Session]) -> None:
    """The reader thread. Callbacks that run on it have only this frame below them."""
    try:
        session = cell.pop()
    except IndexError:
        return  # Ctrl-C in `start`, which has ended the life
    mailbox, inline = session.mailbox, session.mailbox.dispatcher.inline
    life, waker = session.life, session.waker
    if inline:
        mailbox.attach(waker)
    steps = session.run()
    del session
    try:
        for _ in steps:
            while inline and mailbox.run():
                pass
            if life.forked:
                return  # a callback has forked, and this is the child's copy of its thread
        while inline and not life.over.is_set() and mailbox.run():
            pass
        while not mailbox.release(waker):
            mailbox.run()
    finally:
        del steps, mailbox, life, waker
