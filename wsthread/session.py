"""One life, from connect to disconnect: attempts, back-off, the reader's loop."""

from __future__ import annotations

import itertools
import logging
import math
import os
import threading
import time
import weakref
from collections import deque
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any, Deque, Iterator, List, NamedTuple, Optional, Tuple

from .errors import (
    CloseCode,
    ConnectError,
    ConnectTimeout,
    ConnectionClosed,
    NotConnected,
    WebSocketError,
    describe_close,
    detach,
    detached,
)
from .frames import Close, FrameParser, Ping, Pong, encode_close
from .keepalive import Keepalive
from .known import Known, Settings
from .mailbox import Gate, Item, Life, Mailbox
from .opening import Opened, open_connection
from .source import prepare
from .outbox import Entry, Outbox
from .outbox import Ping as AskedPing
from .reconnect import Backoff, Reconnect, retried, retry_after
from .state import TRANSITIONS, ConnectionState, Event, next_state
from .transport import HANGUP, READ, WRITE, Cancelled, Poller, Transport, Waiter, Waker
from .writer import FrameWriter

if TYPE_CHECKING:
    from .client import WebSocketClient

logger = logging.getLogger("wsthread")

#: How long a peer that has answered the close may take to close the TCP connection.
_LINGER = 1.0
_UNLIMITED = 1 << 30
_numbers = itertools.count(1)

#: The sessions that run, for the hooks of interpreter exit and fork. Additions and removals
#: are single dict operations, which need no lock.
running: dict[int, weakref.ref[Session]] = {}


class CloseRequest(NamedTuple):
    payload: bytes
    deadline: float  # monotonic seconds; math.inf: never


class Connection:
    """What belongs to one open connection and dies with it. The reader's own."""

    __slots__ = (
        "__weakref__",
        "close_deadline",
        "close_received",
        "gate",
        "gate_deadline",
        "hung_up",
        "keepalive",
        "opened_at",
        "over",
        "parser",
        "paused",
        "transport",
        "writer",
    )

    def __init__(self, transport: Transport, parser: FrameParser, writer: FrameWriter) -> None:
        self.transport = transport
        self.parser = parser
        self.writer = writer
        self.opened_at = time.monotonic()
        self.keepalive: Keepalive
        self.gate: Optional[Gate] = None
        self.gate_deadline = math.inf
        self.close_deadline = math.inf  # when waiting for the close to complete ends
        self.close_received: Optional[Close] = None
        self.paused = False  # reading rests because the receive queue is full
        self.hung_up = False  # the peer is known to have ended while reading rests
        self.over = False


class Session:
    """One life of a client, run by its reader thread.

    It holds nothing of the user's: delegate and callables are the handle's, reached through a
    weak reference. Requests come in by plain assignments followed by a wake-up, so that
    finalisers and signal handlers may make them; everything else is the reader's.
    """

    def __init__(
        self, client: WebSocketClient, settings: Settings, known: Known, outbox: Outbox
    ) -> None:
        self.client = weakref.ref(client)
        self.settings = settings
        self.known = known
        self.mailbox: Mailbox = client.mailbox
        self.overridden = client.overridden  # replaced as a whole by set_delegate
        self.life = Life()
        self.waker = Waker()
        self.outbox = outbox
        #: Set while connected, and at the end: connect() waits for it.
        self.settled = threading.Event()
        #: Why the first opening failed; for connect().
        self.failure: Optional[ConnectError] = None
        # Requests, written by any thread without a lock, never unset.
        self.close_request: Optional[CloseRequest] = None
        self.abort_request = False
        self.drop_request = False
        self.send_failure: Optional[WebSocketError] = None
        #: Whether a connect() waits to raise the first failure itself. Written by connect().
        self.awaited = False
        self.connect_timeout = settings.connect_timeout
        #: When the first connection is given up for good, whatever its policy. Likewise.
        self.give_up_at: Optional[float] = None
        #: Whether there ever was a connection. Written by the reader.
        self.ever_open = False
        #: The writer of the open connection, or None. Written by the reader.
        self.writer: Optional[FrameWriter] = None
        self._sent: Deque[Any] = deque()  # for on_sent; appended under the write lock
        self._connection: Optional[Connection] = None
        self._begun: List[Entry] = []  # of the connection that has just ended
        self._uptime = 0.0  # its seconds
        self._backoff: Optional[Backoff] = None
        self._error: Optional[BaseException] = None  # what ended the attempt or connection
        self._poller = Poller()
        self.thread = threading.Thread(
            target=_read, args=([self],), name=f"wsthread-reader-{next(_numbers)}", daemon=True
        )

    def start(self) -> None:
        """Begin the life, on the thread of connect()."""
        self._change(Event.CONNECT)
        running[id(self)] = weakref.ref(self)
        try:
            self.thread.start()
        except RuntimeError as error:  # no more threads, or the interpreter ends
            self._end()
            raise ConnectError(f"no thread could be started: {error}") from None

    # Requests. Any thread.

    def request_close(self, payload: bytes, timeout: Optional[float]) -> None:
        """Ask for the closing handshake. Takes no lock: also for signal handlers."""
        deadline = math.inf if timeout is None else time.monotonic() + timeout
        previous = self.close_request
        if previous is None or deadline < previous.deadline:
            payload = payload if previous is None else previous.payload
            self.close_request = CloseRequest(payload, deadline)
        self.life.silenced = True
        self.waker.wake()

    def request_abort(self) -> None:
        """Ask for the end at once. Takes no lock."""
        self.life.silenced = True
        self.abort_request = True
        self.waker.wake()

    def request_drop(self) -> None:
        """The client was dropped. Takes no lock: for finalisers."""
        self.drop_request = True
        self.waker.wake()

    def ending(self) -> bool:
        """Whether this side asked for the end."""
        return self.close_request is not None or self.abort_request or self.drop_request

    @property
    def closing(self) -> bool:
        """Whether nothing more is accepted: the end was asked for, or has begun."""
        return self.ending() or self.known.state is ConnectionState.CLOSING

    # Sending. Any thread.

    def send(
        self, entries: List[Entry], first: bool, may_wait: bool, deadline: Optional[float]
    ) -> None:
        """Accept messages; write what can be written. Raises as `Outbox.admit`."""
        if self.ending():
            raise NotConnected("the client is closing")
        self.outbox.admit(entries, first, may_wait, deadline)
        self.pump()
        last = entries[-1]
        if last.awaited and last.outcome is None:
            try:
                self.outbox.wait_sent(last, deadline)
            except TimeoutError as error:
                if last.outcome is None:  # begun: the stream cannot go on without it
                    detach(error)
                    self.send_failure = error  # type: ignore[assignment]
                    self.waker.wake()
                raise

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
            if not writer.pump():
                self.waker.wake()
            if self._sent:
                self.mailbox.put_sent(self._sent, self.life)

    def _written(self, entries: List[Entry]) -> None:
        messages = [entry.message for entry in entries if entry.opcode != -1]
        self.known.stats.messages_sent += len(messages)
        if "on_sent" in self.overridden:
            self._sent.extend(messages)

    # The reader.

    def run(self) -> Iterator[None]:
        """Live. Yields where no lock is held and callbacks may run on this thread.

        A generator, because its frames are then not below the callbacks, where an error that
        a user keeps would hold them.
        """
        try:
            yield from self._live()
        except Exception as error:  # a bug; the client ends in order all the same
            logger.exception("wsthread: internal error")
            self._error = detached(error)
            if self._connection is not None:
                self._report(self._conclude(), over=True)
        self._end()

    def _live(self) -> Iterator[None]:
        while True:
            yield
            code: Optional[int] = None
            if self._attempt():
                yield from self._serve()
                code = self._conclude()
            delay = self._decide(code)
            self._report(code, over=delay is None)
            if delay is None:
                return
            yield from self._back_off(delay)
            if self.ending():
                return

    def _attempt(self) -> bool:
        """Open a connection; True when it is open."""
        self._error = None
        timeout = self.connect_timeout
        deadline = None if timeout is None else time.monotonic() + timeout
        if self.give_up_at is not None and not self.ever_open:
            deadline = self.give_up_at if deadline is None else min(deadline, self.give_up_at)
        waiter = Waiter(self.waker, self.ending, deadline)
        try:
            client = self.client()
            if client is None:
                return False
            source = client.source
            del client
            url, options = prepare(source, waiter)
            opened = open_connection(url, options, waiter)
        except Cancelled:
            return False
        except ConnectError as error:
            self._error = detached(error)
            self.known.stats.failed_attempts += 1
            return False
        self._open(opened)
        return True

    def _open(self, opened: Opened) -> None:
        known, settings = self.known, self.settings
        transport = opened.transport
        parser = FrameParser(settings.max_message_size, fragments="on_fragment" in self.overridden)
        writer = FrameWriter(self.outbox, transport, None, self._written)
        connection = Connection(transport, parser, writer)
        connection.keepalive = Keepalive(
            settings.ping_interval, settings.ping_timeout, connection.opened_at
        )
        known.opened(opened.subprotocol, tuple(opened.response_headers))
        self._connection = connection
        self.ever_open = True
        self.connect_timeout = settings.connect_timeout
        items = self._change_items(Event.OPENED, "opening")
        gated = bool(items)
        if "on_open" in self.overridden:
            gated = True
            items.append(("opening", ("on_open", ()), 0, self.life))
        if gated:
            connection.gate = Gate(self.waker)
            connection.gate_deadline = connection.opened_at + settings.open_grace
            items.append(("lift", connection.gate, 0, self.life))
        self.outbox.opened(gated)
        self.writer = writer
        self.mailbox.put(items)
        self.settled.set()
        if opened.leftover:
            self._received(connection, opened.leftover)

    def _serve(self) -> Iterator[None]:
        """Run one connection until it is over."""
        connection = self._connection
        assert connection is not None
        transport, poller = connection.transport, self._poller
        descriptor, wake = transport.fileno(), self.waker.fileno()
        poller.watch(wake, READ)
        try:
            while not connection.over:
                yield
                self._attend(connection)
                if connection.over:
                    break
                poller.watch(descriptor, self._interest(connection))
                ready = poller.wait(self._deadline(connection))
                if ready.get(wake):
                    self.waker.drain()
                events = ready.get(descriptor, 0)
                if events & READ or (events & HANGUP and not connection.paused):
                    self._read(connection)
                elif events & HANGUP:
                    self._hung_up(connection)
        finally:
            poller.watch(descriptor, 0)
            poller.watch(wake, 0)

    def _interest(self, connection: Connection) -> int:
        writing = connection.transport.stalled and connection.writer.error is None
        interest = WRITE if writing else 0
        if not connection.paused:
            return interest | READ
        return interest if connection.hung_up else interest | HANGUP

    def _deadline(self, connection: Connection) -> Optional[float]:
        """Return the seconds until something is due; None: nothing is."""
        due = min(
            connection.keepalive.deadline(), connection.gate_deadline, connection.close_deadline
        )
        return None if due == math.inf else due - time.monotonic()

    def _attend(self, connection: Connection) -> None:
        """Look at everything that may have been asked for or become due, and write."""
        now = time.monotonic()
        self._attend_requests(connection, now)
        gate = connection.gate
        if gate is not None and (gate.lifted or now >= connection.gate_deadline):
            if not gate.lifted:
                logger.warning("on_open has not returned in time; the send queue goes on")
            connection.gate = None
            connection.gate_deadline = math.inf
            self.outbox.lift()
        if connection.paused:
            self._try_resume(connection, now)
        keepalive = connection.keepalive
        if now >= keepalive.deadline() and not connection.over:
            if keepalive.dead(now):
                self._fail(connection, ConnectionClosed("the peer does not answer pings"))
                connection.over = True
            elif keepalive.ping_due(now):
                self.outbox.keepalive_ping(os.urandom(8))
        self._write(connection, now)
        if connection.over:
            return
        closed = connection.close_received is not None and connection.writer.close_sent()
        if closed:
            connection.close_deadline = min(connection.close_deadline, now + _LINGER)
        if now >= connection.close_deadline:
            connection.over = True

    def _attend_requests(self, connection: Connection, now: float) -> None:
        if self.abort_request:
            connection.over = True
        elif self.drop_request:
            self.outbox.close(encode_close(CloseCode.GOING_AWAY), now=True)
            connection.over = True
        elif self.send_failure is not None:
            self._fail(connection, self.send_failure)
            connection.over = True
        request = self.close_request
        if request is not None:
            if self.known.state is ConnectionState.CONNECTED:
                self._change(Event.CLOSE)
                self.outbox.refuse("the client is closing")
                self.outbox.close(request.payload, now=False)
                connection.close_deadline = request.deadline
            else:
                connection.close_deadline = min(connection.close_deadline, request.deadline)

    def _write(self, connection: Connection, now: float) -> None:
        transport = connection.transport
        stalled, before = transport.stalled, transport.written
        if not connection.writer.pump(reader=True) and not transport.stalled:
            self.waker.wake()  # its rounds are over: read in between
        if stalled and transport.written > before:
            connection.keepalive.restart(now)
        if self._sent:
            self.mailbox.put_sent(self._sent, self.life)
        if connection.writer.error is not None and connection.paused:
            self._hung_up(connection)

    # Reading.

    def _read(self, connection: Connection) -> None:
        try:
            data = connection.transport.receive()
        except OSError as error:
            self._broken(connection, error)
            return
        if data is None:
            if connection.writer.error is not None:
                self._broken(connection, connection.writer.error)
            return
        if not data:
            self._broken(connection, None)
            return
        connection.keepalive.heard = time.monotonic()
        self._received(connection, data)

    def _received(self, connection: Connection, data: bytes) -> None:
        self.known.stats.bytes_received += len(data)
        if self._error is not None:
            return  # the connection has failed; only its end is waited for
        parser = connection.parser
        room = self._room()
        items = parser.parse(data, room)
        if items:
            if parser.plain:
                self._deliver(connection, items, parser.size)
            else:
                self._sort(connection, items, parser.size)
        if parser.error is not None:
            self._fail(connection, parser.error)
        elif parser.pending or (room < _UNLIMITED and not self._room()):
            self._pause(connection)

    def _blocking(self) -> bool:
        """Whether a full receive queue stops reading now; while closing it does not."""
        return (
            self.settings.receive_queue.overflow == "block"
            and self.known.state is ConnectionState.CONNECTED
        )

    def _room(self) -> int:
        return self.mailbox.room(self.waker) if self._blocking() else _UNLIMITED

    def _pause(self, connection: Connection) -> None:
        if not connection.paused:
            connection.paused = True
            connection.keepalive.suspend()
            self.known.stats.back_pressure_pauses += 1

    def _try_resume(self, connection: Connection, now: float) -> None:
        while connection.parser.pending and self._room() and not connection.over:
            self._received(connection, b"")
        if self._room() and not connection.parser.pending:
            connection.paused = False
            connection.keepalive.resume(now)

    def _sort(self, connection: Connection, items: List[Any], size: int) -> None:
        """Deal with control frames and messages in the order they came."""
        messages: List[Any] = []
        for item in items:
            if isinstance(item, Ping):
                self.known.stats.pings_received += 1
                self.outbox.owe_pong(item.payload)
                event: Tuple[str, Tuple[Any, ...]] = ("on_ping", (item.payload,))
            elif isinstance(item, Pong):
                event = ("on_pong", (item.payload, self._ponged(item.payload)))
            elif isinstance(item, Close):
                self._close_received(connection, item)
                continue
            else:
                messages.append(item)
                continue
            if event[0] in self.overridden:
                self._deliver(connection, messages, size)
                messages, size = [], 0
                self.mailbox.put([("call", event, 0, self.life)])
        self._deliver(connection, messages, size)

    def _ponged(self, payload: bytes) -> Optional[float]:
        self.known.stats.pongs_received += 1
        latency = self.outbox.ponged(payload, time.monotonic())
        if latency is not None:
            self.known.latency = latency
        return latency

    def _deliver(self, connection: Connection, messages: List[Any], size: int) -> None:
        """Hand messages (or fragments) of one read to the callbacks."""
        count = len(messages)
        if not count:
            return
        stats = self.known.stats
        stats.messages_received += count
        if self.life.silenced:
            stats.messages_discarded += count
            return
        kind = "fragments" if "on_fragment" in self.overridden else "messages"
        name = "on_fragment" if kind == "fragments" else "on_message"
        if name not in self.overridden:
            return
        policy = self.settings.receive_queue.overflow
        if policy == "drop_oldest":
            limit = self.settings.receive_queue.messages
            if count > limit:
                self.known.drop(count - limit)
                size = size * limit // count
                messages = messages[-limit:]
            self.mailbox.make_room(len(messages), size)
        elif policy != "block":
            room = self.mailbox.room(self.waker)
            if room < count:
                if policy == "close":
                    self._overflowed(connection)
                self.known.drop(count - room)
                size = size * room // count
                messages = messages[:room]
        if messages:
            self.mailbox.put([(kind, messages, size, self.life)])

    def _overflowed(self, connection: Connection) -> None:
        self._fail(
            connection,
            ConnectionClosed("the receive queue is full", CloseCode.POLICY_VIOLATION),
        )

    # The end of a connection.

    def _close_received(self, connection: Connection, close: Close) -> None:
        if connection.close_received is not None:
            return
        connection.close_received = close
        code = None if close.code == CloseCode.NO_STATUS_RCVD else close.code
        self.outbox.close(encode_close(code), now=True)
        timeout = self.settings.close_timeout
        self._closing(connection, math.inf if timeout is None else timeout)

    def _closing(self, connection: Connection, timeout: float) -> None:
        if self.known.state is ConnectionState.CONNECTED:
            self._change(Event.CLOSE)
        connection.close_deadline = min(connection.close_deadline, time.monotonic() + timeout)

    def _fail(self, connection: Connection, error: WebSocketError) -> None:
        """Fail the connection (RFC 6455 7.1.7): say why, then wait for its end only shortly."""
        if self._error is not None:
            return
        self._error = error
        code = getattr(error, "code", CloseCode.ABNORMAL_CLOSURE)
        if code != CloseCode.ABNORMAL_CLOSURE and connection.close_received is None:
            self.outbox.close(encode_close(code), now=True)
            self._closing(connection, _LINGER)
            connection.paused = False  # what comes is discarded

    def _broken(self, connection: Connection, error: Optional[OSError]) -> None:
        """The end of the stream, or a socket error."""
        connection.over = True
        if connection.close_received is None and self._error is None:
            if error is None:
                self._error = ConnectionClosed("the connection ended without a close frame")
            else:
                self._error = ConnectionClosed(f"the connection broke: {error}")
                self._error.__cause__ = detached(error)

    def _hung_up(self, connection: Connection) -> None:
        """The peer hung up while reading is paused.

        Whatever it sent before is still there to be read: then. Until it is, the descriptor
        would report nothing else, so it is not watched. A reset leaves nothing to be read.
        """
        connection.hung_up = True
        error = connection.writer.error or connection.transport.pending_error()
        if error is not None:
            self._broken(connection, error)

    def _conclude(self) -> int:
        """Close the transport and say how the connection ended; return the close code."""
        connection = self._connection
        assert connection is not None
        self._connection = self.writer = None
        if connection.parser.pending and not self.ending():
            # Read before the end, and held back by a full receive queue: it is not lost.
            self._deliver_rest(connection)
        transport = connection.transport
        transport.close(reset=transport.stalled or self.abort_request)
        self.known.stats.bytes_sent += transport.written
        code, reason = self._close_code(connection)
        self.known.closed(code, reason)
        closed = ConnectionClosed(f"not sent: {describe_close(code, reason)}", code, reason)
        self._begun = connection.writer.detach(closed)
        self._uptime = time.monotonic() - connection.opened_at
        return code

    def _deliver_rest(self, connection: Connection) -> None:
        items = connection.parser.parse(b"", _UNLIMITED)
        self._sort(connection, items, connection.parser.size)

    def _close_code(self, connection: Connection) -> Tuple[int, str]:
        """Return code and reason (RFC 6455 7.1.5, 7.1.6), and settle `_error`."""
        error, received = self._error, connection.close_received
        sent = connection.writer.close_sent()
        code, reason = int(CloseCode.ABNORMAL_CLOSURE), ""
        if error is not None:
            if sent and received is None:
                code = getattr(error, "code", code)  # ours: the code the peer was told
        elif received is not None:
            code, reason = received
            clean = sent
            if not self.ending() and not (clean and code in (1000, 1001, 1005)):
                self._error = ConnectionClosed("", code, reason, clean)
        elif not self.ending():
            self._error = ConnectionClosed("", code)
        return code, reason

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
        until = self.give_up_at
        if delay is not None and until is not None and not self.ever_open:
            if time.monotonic() + delay >= until:
                return None
        return delay

    def _ask_user(self, policy: Reconnect, code: Optional[int]) -> Optional[bool]:
        timeout, error, ask = self.settings.connect_timeout, self._error, policy.should_retry
        assert ask is not None
        deadline = None if timeout is None else time.monotonic() + timeout
        try:
            return Waiter(self.waker, self.ending, deadline).call(lambda: ask(error, code))
        except (Cancelled, ConnectTimeout):
            return False
        except Exception as failure:
            logger.warning("should_retry raised %r; the rules decide", failure)
            return None

    def _report(self, code: Optional[int], over: bool) -> None:
        """Tell the callbacks how an attempt (code None) or a connection ended, in order."""
        error = self._error
        self.known.error = error
        self.mailbox.put_sent(self._sent, self.life)
        items: List[Item] = []
        if code is not None:
            closed = ConnectionClosed(
                f"not sent: {describe_close(code, self.known.close_reason or '')}", code
            )
            back, self._begun = self._begun, []
            items += self._unsent_items(back + self.outbox.lost(closed, over), closed)
        elif over:
            items += self._unsent_items(*self._give_up())
        raised = code is None and self.awaited and over and not self.ever_open
        if error is not None and "on_error" in self.overridden and not raised:
            if code is not None or over:
                items.append(("call", ("on_error", (error,)), 0, self.life))
        if code is not None and "on_close" in self.overridden:
            args = (code, self.known.close_reason or "")
            items.append(("call", ("on_close", args), 0, self.life))
        self.mailbox.put(items)

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
        self._change(Event.RETRY)
        if "on_reconnect" in self.overridden:
            args = (self._backoff.attempt, delay, self._error)
            self.mailbox.put([("call", ("on_reconnect", args), 0, self.life)])
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
        back, error = self._give_up()
        items = self._unsent_items(back, error)
        state = self.known.state
        if self.close_request is not None and state is not ConnectionState.CLOSING:
            if (state, Event.CLOSE) in TRANSITIONS:
                items += self._change_items(Event.CLOSE)
        items += self._change_items(Event.END)
        items.append(("end", None, 0, self.life))
        if self._error is None or not isinstance(self._error, ConnectError):
            self.failure = ConnectError("the client was disconnected before it was open")
        else:
            self.failure = self._error
        self.mailbox.put(items)
        client = self.client()
        if client is not None:
            client.session_ended(self)
        self.settled.set()

    def _change_items(self, event: Event, kind: str = "call") -> List[Item]:
        """Change the state: the only place that does. Returns the callback's event."""
        self.known.state = state = next_state(self.known.state, event)
        if "on_state_change" not in self.overridden:
            return []
        return [(kind, ("on_state_change", (state,)), 0, self.life)]

    def _change(self, event: Event) -> None:
        before = self.known.state
        items = self._change_items(event)
        if self.known.state is not before:
            self.mailbox.put(items)


def _read(cell: List[Session]) -> None:
    """The reader thread. Callbacks that run on it have only this frame below them."""
    session = cell.pop()
    mailbox, inline = session.mailbox, session.mailbox.dispatcher.inline
    if inline:
        mailbox.inline, mailbox.inline_thread = session.waker, threading.get_ident()
    steps = session.run()
    del session
    try:
        for _ in steps:
            while inline and mailbox.run():
                pass
        while inline and mailbox.run():
            pass
        mailbox.release()
    finally:
        del steps, mailbox
