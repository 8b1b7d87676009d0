"""One open connection, from the upgrade to its end: the reader's side of it."""

from __future__ import annotations

import logging
import math
import os
import time
from typing import TYPE_CHECKING, Any, List, Optional, Tuple

from .deflate import Agreement
from .errors import CloseCode, ConnectionClosed, WebSocketError, describe_close, detached
from .frames import Close, FrameParser, Ping, Pong, describe_item, encode_close
from .keepalive import Keepalive
from .mailbox import Gate
from .memory import KEPT, keep_warm
from .outbox import Entry
from .state import ConnectionState, Event
from .transport import HANGUP, READ, RECEIVE_MOST, WRITE, Transport
from .writer import FrameWriter

if TYPE_CHECKING:
    from .session import Session

logger = logging.getLogger(__name__)
frame_logger = logging.getLogger("wsthread.frames")

#: How long what came before a protocol error may be answered by callbacks.
_LAST_WORDS = 0.2
#: How long a peer that has answered the close may take to close the TCP connection.
_LINGER = 1.0
#: Bytes of messages that still go into a full receive queue when the connection ends.
_REST = 1 << 21
_UNLIMITED = 1 << 30
#: Bytes that are asked for at least: room for more is not made where less than these came.
_LEAST = 1 << 16
#: Bytes of a frame still to come that make it a long one, and those of a long frame's header.
_LONG, _HEADER = 1 << 18, 10


class Connection:
    """One open connection and its closing handshake. Every attribute is the reader's own.

    The session makes it, calls `attend` before and `read` after each wait until it is `over`,
    and then `conclude`, which cuts every tie.
    """

    __slots__ = (
        "__weakref__",
        "_blocks",
        "_broken_by",
        "_dripping",
        "_fail_at",
        "_kind",
        "_known",
        "_long",
        "_mailbox",
        "_most",
        "_overflow",
        "_session",
        "_stats",
        "close_deadline",
        "close_received",
        "error",
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

    def __init__(
        self, session: Session, transport: Transport, agreement: Optional[Agreement]
    ) -> None:
        settings = session.settings
        self._session = session
        self._mailbox = session.mailbox
        self._known, self._stats = session.known, session.known.stats
        limit = settings.receive_queue
        self._most, self._overflow = limit.bytes, limit.overflow
        self._blocks = limit.overflow == "block"
        self.transport = transport
        #: Decided for the whole connection, whatever delegates come.
        self._kind = "fragments" if "on_fragment" in session.overridden else "messages"
        self.parser = FrameParser(
            settings.max_message_size,
            fragments=self._kind == "fragments",
            inflater=None if agreement is None else agreement.inflater(),
        )
        deflater = None if agreement is None else agreement.deflater()
        self.writer = FrameWriter(
            session.outbox, transport, deflater, session.written, session.known.stats, session.label
        )
        self.opened_at = time.monotonic()
        self.keepalive = Keepalive(settings.ping_interval, settings.ping_timeout, self.opened_at)
        self.gate: Optional[Gate] = None
        self.gate_deadline = math.inf
        self.close_deadline = math.inf  # when waiting for the close to complete ends
        self.close_received: Optional[Close] = None
        self._long = False  # the last read was of a long frame ...
        self._dripping = False  # ... which comes a little at a time
        self.paused = False  # reading rests because the receive queue is full
        self.hung_up = False  # the peer is known to have ended while reading rests
        self.error: Optional[BaseException] = None  # why it failed
        self._broken_by: Optional[WebSocketError] = None  # why it is about to fail ...
        self._fail_at = math.inf  # ... then at the latest
        self.over = False

    def gated(self) -> Gate:
        """Hold the send queue back; return what lifts it before `open_grace` is over."""
        self.gate = Gate(self._session.waker)
        self.gate_deadline = self.opened_at + self._session.settings.open_grace
        return self.gate

    def conclude(self) -> Tuple[ConnectionClosed, List[Entry]]:
        """Close the transport; return the error, with close code and reason, of what is not sent.

        And of that what was begun. `error` then tells what was wrong, if anything was.
        """
        rest = 0 if self._session.ending() else _REST
        while self.parser.pending and rest > 0:
            # Read before the end, and held back by a full receive queue: it is not lost, as
            # long as it is not much more than was read.
            self._parse(b"", _UNLIMITED, rest)
            rest -= self.parser.size
        transport = self.transport
        transport.close(reset=transport.stalled or self._session.abort_request)
        self.error = self.error or self._broken_by
        code, reason = self._close_code()
        closed = ConnectionClosed(f"not sent: {describe_close(code, reason)}", code, reason)
        return closed, self.writer.detach(closed)

    def interest(self) -> int:
        writing = self.transport.stalled and self.writer.error is None
        interest = WRITE if writing else 0
        if not self.paused:
            return interest | READ
        return interest if self.hung_up else interest | HANGUP

    def due(self) -> float:
        """Return when (monotonic seconds) `attend` has something to do in any case."""
        if self._goes_on():
            return -math.inf
        return min(
            self.keepalive.deadline(), self.gate_deadline, self.close_deadline, self._fail_at
        )

    def calm(self) -> bool:
        """Whether, until something is due, only a wake-up or `read` brings work to `attend`."""
        return not (
            self.paused
            or self._failed()
            or self._known.state is not ConnectionState.CONNECTED
            or self.transport.tls is not None  # who meets it decrypting leaves it his frame
            or not self._nothing_to_write()
        )

    def attend(self) -> None:
        """Look at everything that may have been asked for or become due, and write."""
        now = time.monotonic()
        if self._session.requested or self._session.outbox.failure is not None:
            self._attend_requests(now)
        gate = self.gate
        if gate is not None and (gate.lifted or now >= self.gate_deadline):
            if not gate.lifted:
                logger.warning(
                    "%s: on_open has not returned in time; the send queue goes on",
                    self._session.label,
                )
            self.gate = None
            self.gate_deadline = math.inf
            self._session.outbox.lift()
        if self.paused:
            self._try_resume(now)
        if self._broken_by is not None and (
            now >= self._fail_at or self._mailbox.idle(self._session.waker)
        ):
            self._fail(self._broken_by)
            self._broken_by, self._fail_at = None, math.inf
        if now >= self.keepalive.deadline() and not self.over:
            self._keep_alive(now)
        if (not self.over or self._session.drop_request) and not self._nothing_to_write():
            self._write(now)
        if self.transport.ended and not self.paused and not self.over:
            self.read()  # the end came with the last bytes: no wait would tell of it
        if self.over:
            return
        closed = self.close_received is not None and self.writer.close_sent()
        if closed:
            self.close_deadline = min(self.close_deadline, now + _LINGER)
        if now >= self.close_deadline:
            self.over = True

    def _keep_alive(self, now: float) -> None:
        keepalive = self.keepalive
        if keepalive.dead(now):
            self.read()  # the answer may have come while this thread was held up
        if self.over:
            return
        if keepalive.dead(now):
            self._fail(ConnectionClosed("the peer does not answer pings"))
            self.over = True
        elif keepalive.ping_due(now):
            self._session.outbox.keepalive_ping(os.urandom(8))

    def _attend_requests(self, now: float) -> None:
        if self._session.abort_request:
            self.over = True
        elif self._session.drop_request:
            self._session.outbox.close(encode_close(CloseCode.GOING_AWAY), now=True)
            self.over = True
        elif self._session.outbox.failure is not None:
            self._fail(self._session.outbox.failure)
            self.over = True
        request = self._session.close_request
        if request is not None:
            if self._known.state is ConnectionState.CONNECTED:
                self._session.change(Event.CLOSE)
                self._session.outbox.refuse("the client is closing")
                self._session.outbox.close(request.payload, now=False)
                self.close_deadline = request.deadline
            else:
                self.close_deadline = min(self.close_deadline, request.deadline)

    def _nothing_to_write(self) -> bool:
        session = self._session
        return self.writer.idle() and not (session.sent or session.interrupted)

    def _write(self, now: float) -> None:
        transport = self.transport
        stalled, before = transport.stalled, transport.written
        if not self.writer.pump(reader=True) and not transport.stalled:
            self._session.waker.wake()  # its rounds are over: read in between
        if stalled and transport.written > before:
            self.keepalive.restart(now)
        if self._session.interrupted:
            self._session.interrupted = False
            self._mailbox.mend()
            self.writer.mend()
            self._session.waker.wake()  # who met the lock held, and what is ready since
        if self._session.sent:
            self._mailbox.put_sent(self._session.sent, self._session.life)
        if self.writer.error is None:
            return
        if self.paused:
            self.hung_up_while_paused()
        else:
            # Read what the peer has sent to the last, perhaps its close frame: `read` ends this.
            # Not every error of writing makes the descriptor readable.
            self._session.waker.wake()
            self.read()

    # Reading.

    def read(self) -> bool:
        """Read once; return whether that left nothing to `attend` to."""
        transport = self.transport
        before = transport.received
        try:
            size = self._how_much() if self.parser.left or self._long else 0
            data = transport.receive(size)
        except OSError as error:
            self._broken(error)
            return False
        if transport.received > before:  # be it a part of a TLS record
            self.keepalive.heard = time.monotonic()
        if data:
            if size > _HEADER:
                self._dripping = len(data) < min(size, _LEAST)
            return self.received(data)
        if data is None:
            if self.writer.error is not None:
                self._broken(self.writer.error)
        else:
            self._broken(None)
        return False

    def _how_much(self) -> int:
        """Return how many bytes to read at most in or behind a frame; 0: what is good now.

        The payload of a long frame is read alone, so that it need not be cut out of what else
        came, and is whole at once if the kernel has all of it. After one comes another, perhaps.
        """
        left = self.parser.left
        if left >= _LONG or (left and self._long):
            self._long = self.transport.tls is None  # the end of a TLS record is elsewhere
            most = _LEAST if self._dripping else RECEIVE_MOST
            return min(left, most) if self._long else 0
        behind, self._long = self._long, False
        return _HEADER if behind else 0

    def received(self, data: bytes) -> bool:
        """Parse what came; return whether that left nothing to `attend` to."""
        self._stats.bytes_received += len(data)
        if self._failed():
            return False
        parser, mailbox = self.parser, self._mailbox
        room, most = _UNLIMITED, self._most
        if self._blocking():
            room, most = mailbox.room(self._session.waker), max(1, most - mailbox.bytes)
        count = self._parse(data, room, most)
        if parser.error is not None:
            self._broken_by = parser.error
            self._fail_at = time.monotonic() + _LAST_WORDS
            return False
        if self.error is not None:
            return False
        full = count >= room or parser.size >= most or not parser.plain  # or may be
        if parser.pending or (full and not self._room()):
            self._pause()
            return False
        return parser.plain

    def _failed(self) -> bool:
        """Whether only the end of the connection is waited for: what comes is ignored."""
        return self.error is not None or self._broken_by is not None

    def _parse(self, data: bytes, room: int, most: int) -> int:
        """Parse and deliver what came; return how much of it was whole: messages and others."""
        parser = self.parser
        items = parser.parse(data, room, most)
        if not items:
            return 0
        if parser.size > KEPT:
            keep_warm(parser.size)
        if frame_logger.isEnabledFor(logging.DEBUG):
            for item in items:
                frame_logger.debug("%s: received %s", self._session.label, describe_item(item))
        if parser.plain:
            self._deliver(items, parser.size)
        else:
            self._sort(items, parser.size)
        return len(items)

    def _blocking(self) -> bool:
        """Whether a full receive queue stops reading now; while closing it does not."""
        return self._blocks and self._known.state is ConnectionState.CONNECTED

    def _room(self) -> int:
        return self._mailbox.room(self._session.waker) if self._blocking() else _UNLIMITED

    def _pause(self) -> None:
        """Read no more until what was read is parsed, and the receive queue has room."""
        if not self.paused:
            self.paused = True
            self.keepalive.suspend()
            if not self._room():
                self._stats.back_pressure_pauses += 1

    def _try_resume(self, now: float) -> None:
        if self._goes_on():
            self.received(b"")
        if self._room() and not self.parser.pending:
            self.paused = False
            self.keepalive.resume(now)

    def _goes_on(self) -> bool:
        """Whether there is more to parse, and room for it: a step at a time, to attend between."""
        return self.paused and self.parser.pending and not self.over and bool(self._room())

    def _sort(self, items: List[Any], size: int) -> None:
        """Deal with control frames and messages in the order they came."""
        messages: List[Any] = []
        pings: List[bytes] = []
        for item in items:
            if isinstance(item, Ping):
                pings.append(item.payload)
                event: Tuple[str, Tuple[Any, ...]] = ("on_ping", (item.payload,))
            elif isinstance(item, Pong):
                event = ("on_pong", (item.payload, self._ponged(item.payload)))
            elif isinstance(item, Close):
                self._hand_over(pings, messages, size)  # before the state changes
                messages, size = [], 0
                self._close_received(item)
                continue
            else:
                messages.append(item)
                continue
            if event[0] in self._session.overridden and not self._session.life.silenced:
                self._hand_over(pings, messages, size)
                messages, size = [], 0
                self._tell(event, len(item.payload))
        self._hand_over(pings, messages, size)

    def _hand_over(self, pings: List[bytes], messages: List[Any], size: int) -> None:
        """Answer pings and count them, and only then have callbacks run, which may look or send."""
        if pings:
            self._stats.pings_received += len(pings)
            self._session.outbox.owe_pongs(pings, self.transport.stalled)
            pings.clear()
        self._deliver(messages, size)

    def _tell(self, event: Tuple[str, Tuple[Any, ...]], size: int) -> None:
        """Hand a ping or pong to the callbacks, unless they have too much to do."""
        mailbox = self._mailbox
        if self._blocking() or mailbox.room(self._session.waker):
            mailbox.put([("control", event, size, self._session.life)])

    def _ponged(self, payload: bytes) -> Optional[float]:
        self._stats.pongs_received += 1
        latency = self._session.outbox.ponged(payload, time.monotonic())
        if latency is not None:
            self._known.latency = latency
        return latency

    def _deliver(self, messages: List[Any], size: int) -> None:
        """Hand messages (or fragments) of one read to the callbacks."""
        count = len(messages)
        if not count:
            return
        stats, mailbox, session = self._stats, self._mailbox, self._session
        stats.messages_received += count
        if session.life.silenced:
            stats.messages_discarded += count
            return
        name = "on_fragment" if self._kind == "fragments" else "on_message"
        if name not in session.overridden:
            return
        policy = self._overflow
        if policy == "drop_oldest":
            room = mailbox.make_room(count, size)
            if room < count:
                mailbox.drop(count - room)
                size = size * room // count
                messages = messages[-room:]
        elif policy != "block":
            room = mailbox.room(session.waker)
            if room < count:
                if policy == "close":
                    self._overflowed()
                mailbox.drop(count - room)
                size = size * room // count
                messages = messages[:room]
        if messages:
            mailbox.put_messages(self._kind, messages, size, session.life)

    def _overflowed(self) -> None:
        self._fail(
            ConnectionClosed("the receive queue is full", CloseCode.POLICY_VIOLATION),
        )

    # The end of a self.

    def _close_received(self, close: Close) -> None:
        if self.close_received is not None:
            return
        self.close_received = close
        code = None if close.code == CloseCode.NO_STATUS_RCVD else close.code
        self._session.outbox.close(encode_close(code), now=True)
        timeout = self._session.settings.close_timeout
        self._closing(math.inf if timeout is None else timeout)

    def _closing(self, timeout: float) -> None:
        if self._known.state is ConnectionState.CONNECTED:
            self._session.change(Event.CLOSE)
        self.close_deadline = min(self.close_deadline, time.monotonic() + timeout)

    def _fail(self, error: WebSocketError) -> None:
        """Fail the connection (RFC 6455 7.1.7): say why, then wait for its end only shortly."""
        if self.error is not None:
            return
        self.error = error
        code = getattr(error, "code", CloseCode.ABNORMAL_CLOSURE)
        if code != CloseCode.ABNORMAL_CLOSURE and self.close_received is None:
            self._session.outbox.close(encode_close(code), now=True)
            self._closing(_LINGER)
            self.paused = False  # what comes is discarded

    def _broken(self, error: Optional[OSError]) -> None:
        """The end of the stream, or a socket error."""
        self.over = True
        if self.close_received is None and self.error is None:
            if error is None:
                self.error = ConnectionClosed("the connection ended without a close frame")
            else:
                self.error = ConnectionClosed(f"the connection broke: {error}")
                self.error.__cause__ = detached(error)

    def hung_up_while_paused(self) -> None:
        """The peer hung up while reading is paused.

        Whatever it sent before is still there to be read: then. Until it is, the descriptor
        would report nothing else, so it is not watched. A reset leaves nothing to be read.
        """
        self.hung_up = True
        error = self.writer.error or self.transport.pending_error()
        if error is not None:
            self._broken(error)

    def _close_code(self) -> Tuple[int, str]:
        """Return code and reason (RFC 6455 7.1.5, 7.1.6), and settle `_error`."""
        error, received = self.error, self.close_received
        sent = self.writer.close_sent()
        code, reason = int(CloseCode.ABNORMAL_CLOSURE), ""
        if error is not None:
            if sent and received is None:
                code = int(getattr(error, "code", code))  # ours: the code the peer was told
        elif received is not None:
            code, reason = received
            clean = sent
            if not self._session.ending() and not (clean and code in (1000, 1001, 1005)):
                self.error = ConnectionClosed("", code, reason, clean)
        elif not self._session.ending():
            self.error = ConnectionClosed("", code)
        return code, reason
