"""What waits to be sent, in which order, and who waits for room."""

from __future__ import annotations

import itertools
import operator
import threading
import time
from collections import deque
from typing import Any, Callable, Deque, Iterable, List, Optional, Sequence, TypeVar, Union

from .errors import NotConnected, QueueFull, SendTimeout, WebSocketError, raisable
from .frames import OP_CLOSE, OP_PING, OP_PONG
from .limits import QueueLimit
from .stats import Counts
from .waits import hang, listen, nap, ring

T = TypeVar("T")

#: Up to this many bytes of messages are encoded at a time; a larger message goes alone.
BATCH = 65536
#: More pings than these are remembered only while somebody waits for their pong.
_AWAITED = 64
#: Pings of one read that are all answered; of more, these many newest.
_PONGS = 64
#: So often a sender looks whether the lock is free before it waits for it: for a millisecond.
_LOOKS = 200

OVERHEAD = 14  # bytes of the longest header of a client's frame


class Entry:
    """One frame on its way: a message, a control frame, or (opcode -1) `flush`'s mark."""

    __slots__ = ("awaited", "counted", "end", "message", "opcode", "outcome", "payload", "size")

    def __init__(self, opcode: int, payload: bytes, message: Union[str, bytes, None]) -> None:
        self.opcode = opcode
        self.payload = payload
        self.message = message  # as on_sent and on_unsent give it back; None: not a message
        self.size = len(payload) + OVERHEAD
        # The transport's lock's: where in the stream it ends, once it is in the out-buffer.
        self.end = 0
        # The outbox's lock's:
        self.awaited = False  # its sender waits, and raises the outcome itself
        self.counted = False  # among those pending
        self.outcome: Union[bool, BaseException, None] = None  # True once it is with the kernel


_SIZE: Callable[[Entry], int] = operator.attrgetter("size")

#: Stands for a queue that nothing was put into yet. Most clients never need most of theirs, and
#: an empty deque takes 0.75 KiB. What is put in here all the same is dropped.
UNUSED: Deque[Any] = deque(maxlen=0)


def used(queue: Deque[T]) -> Deque[T]:
    """Return the queue, or a new one in place of `UNUSED`, to put something into."""
    return deque() if queue is UNUSED else queue


def move(source: Deque[T], count: int, target: Union[List[T], Deque[T]]) -> None:
    """Move the first of `source` behind `target`.

    In one call, of C: Ctrl-C does not come while one of them is in both or in neither.
    """
    target.extend(itertools.starmap(source.popleft, itertools.repeat((), count)))


class Ticket:
    """What a sender that waits for room needs."""

    __slots__ = ("count", "size")

    def __init__(self, count: int, size: int) -> None:
        self.count = count
        self.size = size


class Ping:
    """A ping on its way. The outbox's lock's."""

    __slots__ = ("awaited", "latency", "lost", "payload", "sent_at")

    def __init__(self, payload: bytes, awaited: bool = True) -> None:
        self.payload = payload
        self.awaited = awaited  # somebody waits for it, and takes it back
        self.sent_at: Optional[float] = None
        self.latency: Optional[float] = None
        self.lost: Optional[WebSocketError] = None


def _left(deadline: Optional[float]) -> Optional[float]:
    return None if deadline is None else max(0.0, deadline - time.monotonic())


class Outbox:
    """The send queue of one life. Any thread; nothing in here waits under another lock.

    `ready` may be read without the lock: it is true where `take` would find something. So may
    `free`: nothing waits, and a message need not go through here (`FrameWriter.write_now`).
    """

    __slots__ = (
        "__weakref__",
        "_awaited",
        "_bells",
        "_close",
        "_close_now",
        "_first",
        "_first_bytes",
        "_gated",
        "_limit",
        "_open",
        "_pings",
        "_pongs",
        "_queue",
        "_refusal",
        "_stats",
        "_waiting",
        "bytes",
        "close_taken",
        "failure",
        "free",
        "largest",
        "lock",
        "pending",
        "ready",
    )

    def __init__(self, limit: QueueLimit, stats: Counts) -> None:
        self._limit = limit
        self._stats = stats
        #: Larger payloads are waited for.
        self.largest = limit.bytes - OVERHEAD
        self.lock = threading.Lock()
        # All below are the lock's.
        self._bells: List[threading.Lock] = []  # one for each thread that waits
        self.ready = False
        self.free = False
        self.pending = 0  # messages accepted and not yet with the kernel
        self.bytes = 0  # of these
        self._queue: Deque[Entry] = UNUSED
        self._first: Deque[Entry] = UNUSED  # what on_open sends
        self._first_bytes = 0  # ... and its size
        self._waiting: List[Ticket] = []  # senders that wait for room, oldest first
        self._refusal: Optional[str] = None  # why nothing is accepted any more
        self._open = False  # a connection takes frames
        self._gated = True  # ... but from the queue only once on_open has returned
        self._pongs: List[bytes] = []  # owed, oldest first
        self._pings: List[Ping] = []  # asked for, not yet written
        self._awaited: List[Ping] = []  # written, not yet answered
        self._close: Optional[bytes] = None
        self._close_now = False  # the close frame does not wait for the queue
        self.close_taken = False
        #: Why the open connection cannot go on: a sender gave up a frame that was begun.
        self.failure: Optional[SendTimeout] = None

    # Senders.

    def offer(self, entry: Entry) -> bool:
        """Accept one message where nothing is against it; False: `admit` has to judge it."""
        # Threads that stand in line for a lock get it before they get the GIL, and hold it until
        # then: two that send without pause would change places for every message. So they look
        # whether it is free. Not the main thread: Ctrl-C must not come behind `acquire`.
        is_main = threading.current_thread() is threading.main_thread()
        for _ in range(0 if is_main else _LOOKS):
            if self.lock.acquire(False):
                try:
                    return self._offer(entry)
                finally:
                    self.lock.release()
            time.sleep(0)
        with self.lock:
            return self._offer(entry)

    def _offer(self, entry: Entry) -> bool:
        pending, size = self.pending + 1, self.bytes + entry.size
        before = after = 0
        for ticket in self._waiting:
            before += ticket.count
            after += ticket.size
        if not self._within(pending + before, size + after):
            return False
        if self._gated or not self._open or self.close_taken or self._refusal is not None:
            return False
        entry.counted = True
        self._queue = used(self._queue)
        self._queue.append(entry)
        self._count(pending, size)
        self.ready, self.free = True, False
        return True

    def admit(
        self,
        entries: Sequence[Entry],
        first: bool,
        may_wait: bool,
        deadline: Optional[float],
    ) -> None:
        """Accept all entries, or raise QueueFull, SendTimeout or NotConnected.

        Outside callbacks, and while there is a connection, waits for room until `deadline`.
        """
        size = sum(map(_SIZE, entries))
        ticket = Ticket(len(entries), size)
        with self.lock:
            if self._refusal is None and not self._waiting and self._fits(ticket, first):
                self._accept(entries, size, first, may_wait)
                return

        def attempt() -> bool:
            if self._refusal is not None:
                raise NotConnected(self._refusal)
            # Who must not wait does not queue behind those who do, either.
            if self._fits(ticket, first) and (not may_wait or self._fits_behind(ticket)):
                self._accept(entries, size, first, may_wait)
                return True
            if not may_wait or not self._open:
                text = f"{self.pending} messages with {self.bytes} bytes wait to be sent"
                raise QueueFull(text)
            if ticket not in self._waiting:
                self._waiting.append(ticket)
            return False

        try:
            if not self._wait(attempt, deadline):
                raise SendTimeout("no room in the send queue within the timeout")
        finally:
            with self.lock:
                if ticket in self._waiting:
                    self._waiting.remove(ticket)
                    self._ring()

    def _accept(self, entries: Sequence[Entry], size: int, first: bool, may_wait: bool) -> None:
        for entry in entries:
            entry.counted = True
        first = first and self._gated
        if first:
            self._first = used(self._first)
        else:
            self._queue = used(self._queue)
        # Counted and put in without a call in between, where Ctrl-C could come.
        self._count(self.pending + len(entries), self.bytes + size)
        if first:
            self._first.extend(entries)
            self._first_bytes += size
        else:
            self._queue.extend(entries)
        if len(entries) == 1 and size > self._limit.bytes and may_wait and self._open:
            entries[0].awaited = True
        self._update()

    def _count(self, pending: int, size: int) -> None:
        self.pending, self.bytes = pending, size
        stats = self._stats
        if pending > stats.send_queue_peak_messages:
            stats.send_queue_peak_messages = pending
        if size > stats.send_queue_peak_bytes:
            stats.send_queue_peak_bytes = size

    def _fits(self, ticket: Ticket, first: bool) -> bool:
        count, size = self.pending, self.bytes
        if first and self._gated:
            # The queue waits for these: one that is full must not keep them out.
            count, size = len(self._first), self._first_bytes
        return count == 0 or self._within(count + ticket.count, size + ticket.size)

    def _within(self, count: int, size: int) -> bool:
        return count <= self._limit.messages and size <= self._limit.bytes

    def _fits_behind(self, ticket: Ticket) -> bool:
        """Whether there is room for it and for all who wait before it."""
        before = list(itertools.takewhile(lambda other: other is not ticket, self._waiting))
        if not before:
            return True
        before.append(ticket)
        count, size = sum(one.count for one in before), sum(one.size for one in before)
        return self._within(self.pending + count, self.bytes + size)

    def _wait(self, done: Callable[[], bool], deadline: Optional[float]) -> bool:
        """Wait until `done`, which is called with the lock; False when the time is over.

        Not with a Condition: one that Ctrl-C interrupts while it takes its lock back leaves
        with a lock that is another thread's.
        """
        while True:
            with self.lock:
                if done():
                    return True
                left = _left(deadline)
                if left == 0:
                    return False
                bell = hang(self._bells)
            listen(self._bells, bell, nap(left))

    def _ring(self) -> None:
        """Have everybody who waits look again. Needs the lock."""
        if self._bells:
            ring(self._bells)

    def mend(self, begun: Iterable[Entry]) -> None:
        """A sender was interrupted anywhere: count anew, and let nobody sleep on what it left.

        `begun` are those that the writer has. Needs the transport's lock.
        """
        with self.lock:
            counted = [entry for entry in (*begun, *self._first, *self._queue) if entry.counted]
            self.pending = len(counted)
            self.bytes = sum(map(_SIZE, counted))
            self._update()
            self._ring()

    def wait_sent(self, entry: Entry, deadline: Optional[float]) -> None:
        """Wait until an entry is with the kernel; raises what became of it instead.

        An entry not yet begun is withdrawn when its sender gives up; where a message was begun,
        SendTimeout fails the connection, because the stream cannot go on without it.
        """
        try:
            in_time = self._wait(lambda: entry.outcome is not None, deadline)
        except BaseException:  # Ctrl-C: what was begun goes on
            with self.lock:
                self._abandon(entry)
            raise
        with self.lock:
            if not in_time and self._abandon(entry) and entry.opcode != -1:
                self.failure = SendTimeout("a message begun was not sent in time")
        if isinstance(entry.outcome, BaseException):
            raise raisable(entry.outcome)

    def _abandon(self, entry: Entry) -> bool:
        """The sender of an entry gives it up; nobody is told of it. Needs the lock.

        Returns whether it is begun and not yet with the kernel.
        """
        if entry.outcome is not None:
            return False
        entry.outcome = SendTimeout("not sent within the timeout")
        if entry not in self._queue:
            return True
        self._queue.remove(entry)
        self._forget([entry])
        return False

    def mark(self) -> Entry:
        """Append a mark that is reached when all that was accepted before is with the kernel."""
        entry = Entry(-1, b"", None)
        with self.lock:
            if self._refusal is not None and not self.pending:
                raise NotConnected(self._refusal)
            entry.awaited = True
            self._queue = used(self._queue)
            self._queue.append(entry)
            self._update()
        return entry

    def ask(self, ping: Ping) -> None:
        """Have a ping sent. Raises NotConnected where there is no connection."""
        with self.lock:
            if not self._open or self._close is not None:
                raise NotConnected(self._refusal or "there is no connection to ping")
            self._pings.append(ping)
            self._update()

    def wait_pong(self, ping: Ping, deadline: Optional[float]) -> float:
        """Wait for the answer to a ping; return the round trip in seconds."""
        try:
            self._wait(lambda: ping.latency is not None or ping.lost is not None, deadline)
        finally:
            with self.lock:
                for pings in (self._pings, self._awaited):
                    if ping in pings:
                        pings.remove(ping)
                self._update()
        if ping.latency is not None:
            return ping.latency
        if ping.lost is not None:
            raise raisable(ping.lost)
        raise SendTimeout("no pong within the timeout")

    # The reader.

    def refuse(self, why: str) -> None:
        """Accept nothing more, in this life."""
        with self.lock:
            self._refusal = self._refusal or why
            self.free = False
            self._ring()

    def opened(self, gated: bool) -> None:
        """A connection takes frames; from the queue only after `lift` where it is gated."""
        with self.lock:
            self._open = True
            self._gated = gated
            self._close = None
            self._close_now = self.close_taken = False
            self._update()

    def lift(self) -> None:
        """on_open has returned, or had its time."""
        with self.lock:
            self._gated = False
            self._update()

    def owe_pongs(self, payloads: List[bytes], stalled: bool) -> None:
        """Answer pings; while the connection is stalled only the newest (RFC 6455 5.5.3)."""
        with self.lock:
            if stalled:
                self._pongs.clear()
                payloads = payloads[-1:]
            self._pongs += payloads
            del self._pongs[:-_PONGS]
            self._update()

    def keepalive_ping(self, payload: bytes) -> None:
        """Send a ping nobody waits for, unless one still waits to be written."""
        with self.lock:
            if not self._pings:
                self._pings.append(Ping(payload, awaited=False))
                self._update()

    def ponged(self, payload: bytes, now: float) -> Optional[float]:
        """Match a pong; return the round trip, or None where no ping had its payload.

        A pong answers every ping before it as well (RFC 6455 5.5.3).
        """
        with self.lock:
            if all(ping.payload != payload for ping in self._awaited):
                return None
            while True:
                ping = self._awaited.pop(0)
                ping.latency = now - (now if ping.sent_at is None else ping.sent_at)
                if ping.payload == payload:
                    self._ring()
                    return ping.latency

    def close(self, payload: bytes, now: bool) -> None:
        """Send a close frame: after the queue, or `now`, at the next frame boundary."""
        with self.lock:
            if self._close is None:
                self._close = payload
            self._close_now = self._close_now or now
            self._gated = False
            self._update()

    def lost(self, error: WebSocketError, over: bool) -> List[Entry]:
        """The connection is gone, or (`over`) the life; return the entries that go back.

        While there may be another connection, the queue stays; what on_open sent does not.
        """
        with self.lock:
            self._open = False
            self.failure = None
            self._gated = True
            self._pongs.clear()
            for ping in [*self._pings, *self._awaited]:
                ping.lost = error
            self._pings.clear()
            self._awaited.clear()
            back = list(self._first)
            self._first.clear()
            self._first_bytes = 0
            if over:
                self._refusal = self._refusal or "the connection is over"
                back += self._queue
                self._queue.clear()
            return self._give_back(back, error)

    # The writer: whoever holds the transport's lock.

    def begun(self, entry: Entry) -> None:
        """A message that did not go through here was begun, and could not be finished."""
        with self.lock:
            entry.counted = True
            self.pending += 1
            self.bytes += entry.size

    def take(self, frames: List[Entry], now: float, messages: bool = True) -> None:
        """Move the frames that go next to `frames`, control frames first; at most about 64 KiB.

        Without `messages` it takes only control frames that may overtake them.
        """
        with self.lock:
            if not self._open or self.close_taken:
                self.ready = self.free = False
                return
            if self._pongs or self._pings:
                self._take_control(frames, now)
            if messages and not self._close_now and (self._first or self._queue):
                messages = self._take_messages(frames)
            last = messages and not (self._first or self._queue)
            if self._close is not None and (self._close_now or last):
                frames.append(Entry(OP_CLOSE, self._close, None))
                self.close_taken = True
            self._update()

    def _take_control(self, frames: List[Entry], now: float) -> None:
        frames += [Entry(OP_PONG, payload, None) for payload in self._pongs]
        self._pongs.clear()
        while self._pings:
            ping = self._pings.pop(0)
            ping.sent_at = now
            self._awaited.append(ping)
            if len(self._awaited) > _AWAITED:
                self._forget_ping()
            frames.append(Entry(OP_PING, ping.payload, None))

    def _forget_ping(self) -> None:
        """Forget the oldest ping that nobody waits for; others are taken back by who does."""
        for ping in self._awaited:
            if not ping.awaited:
                self._awaited.remove(ping)
                return

    def _take_messages(self, frames: List[Entry]) -> bool:
        """Take the messages that go next; return whether more may go with them."""
        size = 0
        for source in (self._first,) if self._gated else (self._first, self._queue):
            sizes = itertools.accumulate(map(_SIZE, source), initial=size)
            fitting = list(itertools.takewhile(BATCH.__ge__, sizes))
            count, size = len(fitting) - 1, fitting[-1]
            if source and not (count or frames):  # it is long, and goes alone
                count, size = 1, source[0].size
            move(source, count, frames)
            if source is self._first:
                self._first_bytes = sum(map(_SIZE, source))
            if source or size > BATCH:
                break
        return size <= BATCH

    def done(self, entries: Iterable[Entry]) -> None:
        """These are with the kernel."""
        stats = self._stats
        with self.lock:
            count = size = 0
            for entry in entries:
                if entry.outcome is None:
                    entry.outcome = True
                    if entry.message is not None:
                        stats.messages_sent += 1
                if entry.counted:
                    entry.counted = False
                    count += 1
                    size += entry.size
            self._uncount(count, size)

    def failed(self, entries: Sequence[Entry], error: WebSocketError) -> List[Entry]:
        """These were begun on a connection that is gone; return those that go back."""
        with self.lock:
            return self._give_back(entries, error)

    # With the lock held.

    def _give_back(self, entries: Sequence[Entry], error: WebSocketError) -> List[Entry]:
        for entry in entries:
            if entry.outcome is None:
                entry.outcome = error
        self._forget(entries)
        return [entry for entry in entries if not entry.awaited and entry.message is not None]

    def _forget(self, entries: Iterable[Entry]) -> None:
        counted = [entry for entry in entries if entry.counted]
        for entry in counted:
            entry.counted = False
        self._uncount(len(counted), sum(map(_SIZE, counted)))

    def _uncount(self, count: int, size: int) -> None:
        self.pending -= count
        self.bytes -= size
        self._update()
        self._ring()

    def _update(self) -> None:
        if not self._open or self.close_taken:
            self.ready = self.free = False
            return
        urgent = bool(self._pongs or self._pings or self._close is not None or self._first)
        self.ready = urgent or (bool(self._queue) and not self._gated)
        self.free = not (urgent or self._queue or self._gated or self._refusal is not None)
