"""The queue between the threads that make events and the one that runs callbacks."""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections import deque
from typing import TYPE_CHECKING, Any, Deque, List, Optional, Sequence, Tuple

from .errors import detach
from .limits import QueueLimit
from .outbox import UNUSED, Entry, move, used
from .stats import Counts
from .transport import Waker
from .waits import Flag, hang, listen, nap, ring, wait_event

if TYPE_CHECKING:
    from .client import WebSocketClient
    from .dispatch import Dispatcher

logger = logging.getLogger(__name__)

#: Items one turn runs before other clients of a shared dispatcher get theirs.
_TURN = 16
#: Messages that are taken for delivery at a time where those that wait may be dropped.
_SLICE = 64


class Life:
    """What the threads that meet in one life, from connect() to the end, share about it."""

    __slots__ = ("__weakref__", "dropped", "forked", "over", "sealed", "silenced", "thread")

    def __init__(self, thread: threading.Thread) -> None:
        self.thread = thread  # the reader
        #: Set by disconnect() and abort() on any thread, never unset: no on_message starts.
        self.silenced = False
        #: No callback starts any more. The mailbox's lock's, never unset.
        self.sealed = False
        #: Set by the client's finaliser, never unset: there is nobody to call.
        self.dropped = False
        #: Whether this is a forked child's copy, never unset.
        self.forked = False
        #: Set when the last callback has run, or never will.
        self.over = Flag()


class Gate:
    """Holds the send queue back until on_open has returned. Lifted once, by any thread."""

    __slots__ = ("_waker", "lifted")

    def __init__(self, waker: Waker) -> None:
        self._waker = waker
        self.lifted = False

    def lift(self) -> None:
        self.lifted = True
        self._waker.wake()


#: kind, its payload, bytes it counts for, the life it belongs to. Kinds are: "call" (a name
#: and arguments), "control" (the same, of a frame of the peer's), "opening" (the same, sending
#: first), "messages", "fragments" (lists),
#: "sent" (a list of entries), "unsent" (of messages with errors), "lift" (a Gate), "end".
Item = Tuple[str, Any, int, Life]


class _Here(threading.local):
    mailbox: Optional[Mailbox] = None  # whose callback the thread is running


_here = _Here()


def in_callback() -> bool:
    """Whether the calling thread is running a callback of any client."""
    return _here.mailbox is not None


class Token:
    """A promise to run a mailbox. It may lie in a foreign queue and keeps nothing alive."""

    __slots__ = ("_mailbox",)

    def __init__(self, mailbox: Mailbox) -> None:
        self._mailbox = weakref.ref(mailbox)

    def __call__(self) -> None:
        mailbox = self._mailbox()
        if mailbox is not None:
            try:
                mailbox.run(token=True)
            finally:
                # A traceback that a user keeps reaches this frame.
                del mailbox


class Mailbox:
    """One client's events, in order, run by one thread at a time.

    Frames of this class are below the user's callbacks: they let go of what they hold when
    they end, because an error that a user keeps holds its frames and their callers.
    """

    __slots__ = (
        "__weakref__",
        "_bells",
        "_drops_oldest",
        "_items",
        "_lock",
        "_most",
        "_most_bytes",
        "_opening",
        "_running",
        "_scheduled",
        "_starved",
        "_stats",
        "_token",
        "bytes",
        "changed",
        "client",
        "dispatcher",
        "inline",
        "inline_thread",
        "messages",
    )

    def __init__(
        self,
        client: weakref.ref[WebSocketClient],
        dispatcher: Dispatcher,
        limit: QueueLimit,
        stats: Counts,
    ) -> None:
        self.dispatcher = dispatcher
        # The limit, read with every message.
        self._most, self._most_bytes = limit.messages, limit.bytes
        self._drops_oldest = limit.overflow == "drop_oldest"
        #: Set by any thread after it has silenced a life or changed the delegate; unset by who
        #: runs callbacks, before it looks at both. One look for each message, instead of two.
        self.changed = False
        #: Wakes the reader that runs this mailbox itself (InlineDispatcher), and that thread.
        #: The lock's.
        self.inline: Optional[Waker] = None
        self.inline_thread: Optional[int] = None
        self._token: Optional[Token] = None  # any thread's: one is as good as another
        self._opening = False  # what the callback sends goes first; the thread's that runs it
        self.client = client  # weak, and held by all who need it
        self._stats = stats  # what is counted here is the lock's
        self._lock = threading.Lock()
        # All of these are the lock's.
        self._items: Deque[Item] = UNUSED
        self.messages = 0  # waiting or being delivered
        self.bytes = 0  # of these
        self._scheduled = False  # a token is on its way
        self._running: Optional[int] = None  # the thread that runs callbacks
        self._starved: Optional[Waker] = None  # the reader that waits for room
        self._bells: List[threading.Lock] = []  # of threads that wait for any change

    # Producers: the reader, and senders for "sent".

    def put(self, items: Sequence[Item]) -> None:
        """Append events and have them run. Any thread; never waits."""
        if self.append(items):
            self.schedule()

    def append(self, items: Sequence[Item]) -> bool:
        """Append events; return whether `schedule` has to be called. Any thread; never waits."""
        gone: Sequence[Item] = ()
        with self._lock:
            for item in items:
                self._items = used(self._items)
                self._items.append(item)
                self._count(item, 1)
                if item[3].sealed:
                    gone = items
            if gone:
                gone = self._take_sealed()
            stats = self._stats
            if self.messages > stats.receive_queue_peak_messages:
                stats.receive_queue_peak_messages = self.messages
            if self.bytes > stats.receive_queue_peak_bytes:
                stats.receive_queue_peak_bytes = self.bytes
            self._notify()
            needed = bool(self._items) and self._needs_token()
        self._let_go(gone)
        return needed

    def put_messages(self, kind: str, messages: List[Any], size: int, life: Life) -> None:
        """Append what one read brought. The reader's; never waits. The same as `put`, faster."""
        count = len(messages)
        with self._lock:
            stats = self._stats
            if life.sealed:
                stats.messages_dropped += count
                return
            if self._items is UNUSED:
                self._items = deque()
            self._items.append((kind, messages, size, life))
            self.messages += count
            self.bytes += size
            if self.messages > stats.receive_queue_peak_messages:
                stats.receive_queue_peak_messages = self.messages
            if self.bytes > stats.receive_queue_peak_bytes:
                stats.receive_queue_peak_bytes = self.bytes
            if self._bells:
                self._notify()
            # Who runs this mailbox looks again, and so does the reader where that is who runs it.
            if self._scheduled or self._running is not None or self.dispatcher.inline:
                return
            self._scheduled = True
        self.schedule()

    def put_sent(self, sent: Deque[Entry], life: Life) -> None:
        """Append what `sent` holds as one "sent" event. Any thread; never waits.

        Taken out under the lock: who puts the end of a life first takes these as well, so that
        nothing comes behind the end.
        """
        with self._lock:
            if not sent or life.sealed:
                return
            batch: List[Entry] = []
            self._items = used(self._items)
            self._items.append(("sent", batch, 0, life))
            move(sent, len(sent), batch)
            self._notify()
            if not self._needs_token():
                return
        self.schedule()

    def mend(self) -> None:
        """A producer was interrupted (Ctrl-C): its token may be missing. One too many is none."""
        with self._lock:
            self._scheduled = False
            needed = bool(self._items) and self._needs_token()
        if needed:
            self.schedule()

    def drop(self, count: int) -> None:
        """Count messages that did not get in."""
        with self._lock:
            self._stats.messages_dropped += count

    def idle(self, waker: Waker) -> bool:
        """Whether every callback so far has run; where not, `waker` is woken as they do."""
        with self._lock:
            if not self._items and self._running is None:
                return True
            self._starved = waker
            return False

    def room(self, waker: Waker) -> int:
        """Return how many messages fit; where that is 0, `waker` is woken when some do."""
        # Only the reader, who asks, makes it less: what is there without the lock is there.
        room = self._most - self.messages
        if room > 0 and self.bytes < self._most_bytes:
            return room
        with self._lock:
            if self.bytes >= self._most_bytes:
                room = 0
            else:
                room = max(0, self._most - self.messages)
            self._starved = None if room else waker
            return room

    def make_room(self, count: int, size: int) -> int:
        """Drop the oldest waiting messages until `count` with `size` bytes fit.

        Return how many of these do, beside what is being delivered; at least one does.
        """
        with self._lock:
            kept: List[Item] = []
            while self._items and (
                self.messages + count > self._most or self.bytes + size > self._most_bytes
            ):
                kind, messages, total, life = self._items.popleft()
                if kind not in ("messages", "fragments"):
                    kept.append((kind, messages, total, life))
                    continue
                excess = max(1, self.messages + count - self._most)
                if self.bytes + size > self._most_bytes:
                    average = max(1, total // len(messages))
                    excess = max(excess, (self.bytes + size - self._most_bytes) // average + 1)
                excess = min(excess, len(messages))
                freed = total * excess // len(messages)
                self.messages -= excess
                self.bytes -= freed
                self._stats.messages_dropped += excess
                if excess < len(messages):
                    kept.append((kind, messages[excess:], total - freed, life))
            self._items.extendleft(reversed(kept))
            return max(1, min(count, self._most - self.messages))

    # The consumer.

    def run(self, token: bool = False) -> bool:
        """Run what waits, one turn at most; nothing where a thread is at it already.

        `token`: it is for the one that a dispatcher was given. Returns whether more waits.
        """
        with self._lock:
            if token:
                self._scheduled = False
            if self._running is not None or not self._items:
                return False
            self._running = threading.get_ident()
        outer = _here.mailbox
        try:
            _here.mailbox = self
            self.dispatcher.entered()
            for _ in range(_TURN):
                # What is put in from now on is found below, under the lock.
                if not self._items or not self._run_next():
                    break
        finally:
            _here.mailbox = outer
            with self._lock:
                self._running = None
                more = bool(self._items)
                schedule = more and not self._scheduled and not self.dispatcher.inline
                self._scheduled = self._scheduled or schedule
                if self._bells:
                    self._notify()
                starved = None if more else self._starved
            if schedule:
                self.schedule()
            if starved is not None:
                starved.wake()
            del self, outer, starved
        return more

    def _run_next(self) -> bool:
        """Run one event; return whether the turn goes on. It ends with a life."""
        with self._lock:
            if not self._items:
                return False
            kind, payload, size, life = self._items.popleft()
            if self._drops_oldest and kind in ("messages", "fragments"):
                payload, size = self._slice(kind, payload, size, life)
        # While its finaliser runs, a weak reference still gives the client.
        client = None if life.dropped else self.client()
        try:
            if kind == "messages" or kind == "fragments":
                self._run_messages(client, kind, payload, size, life)
            elif kind == "end":
                self._end(life)
                return False
            elif kind == "lift":
                payload.lift()
            elif kind == "control":
                self._run_control(client, payload, size, life)
            elif client is not None:
                if kind == "sent" or kind == "unsent":
                    self._run_batch(client, kind, payload, life)
                else:
                    self._run_call(client, kind, payload)
            return True
        finally:
            del self, kind, payload, size, life, client

    def _slice(
        self, kind: str, messages: List[Any], size: int, life: Life
    ) -> Tuple[List[Any], int]:
        """Take the first messages of a batch; the others stay where they can be dropped.

        With the lock held.
        """
        count = min(_SLICE, max(1, self._most // 8))
        if len(messages) <= count:
            return messages, size
        taken = size * count // len(messages)
        self._items.appendleft((kind, messages[count:], size - taken, life))
        return messages[:count], taken

    def _run_call(self, client: WebSocketClient, kind: str, payload: Any) -> None:
        name, args = payload
        self._opening = kind == "opening"
        try:
            self._call(client, name, args)
        finally:
            self._opening = False
            del self, payload, args

    def _run_control(
        self, client: Optional[WebSocketClient], payload: Any, size: int, life: Life
    ) -> None:
        try:
            if client is not None and not life.silenced:
                self._run_call(client, "control", payload)
        finally:
            with self._lock:
                if not life.forked:  # `forked` has counted
                    self.messages -= 1
                    self.bytes -= size
                starved, self._starved = self._starved, None
            if starved is not None:
                starved.wake()
            del self, client, payload, life, starved

    def _run_batch(self, client: WebSocketClient, kind: str, batch: List[Any], life: Life) -> None:
        left = deque(batch)
        del batch
        try:
            while left and not life.sealed:
                item = left.popleft()
                if kind == "sent":
                    if item.outcome is True and item.message is not None:
                        self._call(client, "on_sent", (item.message,))
                else:
                    self._call(client, "on_unsent", item)
        finally:
            if left:
                # Interrupted (Ctrl-C in a thread that pumps): the next turn goes on.
                with self._lock:
                    if not life.sealed:
                        self._items.appendleft((kind, list(left), 0, life))
            item = None
            del self, left, life

    def _run_messages(
        self,
        client: Optional[WebSocketClient],
        kind: str,
        messages: Sequence[Any],
        size: int,
        life: Life,
    ) -> None:
        count = len(messages)
        left = iter(messages)
        del messages
        name = "on_message" if kind == "messages" else "on_fragment"
        callback = message = None
        try:
            while client is not None:
                self.changed = False  # from here on, a change shows
                if life.silenced:
                    break
                callback = getattr(client.delegate, name, None)
                if callback is None:
                    break
                try:
                    if kind == "messages":
                        for message in left:
                            callback(client, message)
                            if self.changed:
                                break
                        else:
                            break
                    else:
                        for message in left:
                            callback(client, *message)
                            if self.changed:
                                break
                        else:
                            break
                except BaseException as error:
                    self._failed(client, name, error)
        finally:
            message = None
            rest = list(left)
            with self._lock:
                keep = bool(rest) and not life.silenced and callback is not None
                if keep:
                    # Interrupted (Ctrl-C in a thread that pumps): the next turn goes on.
                    self._items.appendleft((kind, rest, size, life))
                    count -= len(rest)
                elif not life.forked:  # `forked` has counted
                    self.bytes -= size
                    self._stats.messages_dropped += len(rest)
                if not life.forked:
                    self.messages -= count
                starved, self._starved = self._starved, None
            if starved is not None:
                starved.wake()
            del self, left, rest, callback, life, starved, message

    def _call(self, client: WebSocketClient, name: str, args: Tuple[Any, ...]) -> None:
        try:
            callback = getattr(client.delegate, name, None)
            if callback is not None:
                callback(client, *args)
        except BaseException as error:
            self._failed(client, name, error)
        finally:
            callback = None
            del self, args

    def _failed(self, client: WebSocketClient, name: str, error: BaseException) -> None:
        """Report what a callback raised: to on_error, or else to threading.excepthook."""
        is_main = threading.current_thread() is threading.main_thread()
        args: Any = None
        try:
            if is_main and not isinstance(error, Exception):
                raise error  # Ctrl-C and SystemExit belong to the program that pumps
            if error.__traceback__ is not None:
                # The first entry is our own frame, which is still running.
                error.__traceback__ = error.__traceback__.tb_next
            if name != "on_error" and "on_error" in client.overridden:
                try:
                    client.delegate.on_error(client, error)  # type: ignore[attr-defined]
                    return
                except BaseException as second:
                    if is_main and not isinstance(second, Exception):
                        raise
                    error = second
            args = (type(error), error, error.__traceback__, threading.current_thread())
            try:
                threading.excepthook(threading.ExceptHookArgs(args))
            except Exception:
                logger.exception("threading.excepthook failed")
            if error is client.error or error is self._stats.last_error:
                detach(error)  # raised again by on_error: the client must not hold its frames
        finally:
            del self, error, args

    # The end.

    def wait_over(self, life: Life, deadline: Optional[float]) -> bool:
        """Wait until the last callback of `life` has run; return whether it has.

        On a thread that pumps the dispatcher the callbacks run here. Not for callbacks.
        """
        while self._pumped_here() and not life.over.is_set():
            self.run()
            with self._lock:
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    break
                if life.over.is_set() or (self._items and self._running is None):
                    continue
                bell = hang(self._bells)
            listen(self._bells, bell, nap(left))
        return wait_event(
            life.over, None if deadline is None else max(0.0, deadline - time.monotonic())
        )

    def _pumped_here(self) -> bool:
        """Whether the callbacks might wait for this very thread, so that it has to run them."""
        here = _here.mailbox  # another client's callback may occupy the thread they need
        shared = here is not None and here.dispatcher is self.dispatcher
        return (shared and not self.dispatcher.inline) or self.dispatcher.pumped_here()

    def seal(self, life: Optional[Life]) -> None:
        """Drop every event of a life (None: of all) that waits and that is still to come.

        Only a callback that has begun may still end.
        """
        with self._lock:
            for one in [item[3] for item in self._items] if life is None else [life]:
                one.sealed = one.silenced = True
            self.changed = True
            gone = self._take_sealed()
            starved, self._starved = self._starved, None
            self._notify()
        if starved is not None:
            starved.wake()
        self._let_go(gone)

    def _notify(self) -> None:
        """Wake who waits for a change. With the lock held."""
        if self._bells:
            ring(self._bells)

    def _take_sealed(self) -> List[Item]:
        """Take out and count what is sealed. With the lock held."""
        gone = [item for item in self._items if item[3].sealed]
        self._items = deque(item for item in self._items if not item[3].sealed)
        for item in gone:
            self._count(item, -1)
            if item[0] == "messages" or item[0] == "fragments":
                self._stats.messages_dropped += len(item[1])
        return gone

    def _count(self, item: Item, sign: int) -> None:
        """Count an event that comes or goes against the bounds. With the lock held."""
        kind, payload, size, _ = item
        if kind == "messages" or kind == "fragments":
            self.messages += sign * len(payload)
            self.bytes += sign * size
        elif kind == "control":
            self.messages += sign
            self.bytes += sign * size

    def _let_go(self, items: Sequence[Item]) -> None:
        for kind, payload, _, life in items:
            if kind == "end":
                self._end(life)
            elif kind == "lift":
                payload.lift()

    def _end(self, life: Life) -> None:
        self.dispatcher.ended()
        life.over.set()
        with self._lock:
            self._notify()

    def attach(self, waker: Waker) -> None:
        """The calling reader runs this mailbox, from its next look on."""
        with self._lock:
            self.inline, self.inline_thread = waker, threading.get_ident()

    def release(self, waker: Waker) -> bool:
        """The reader with this waker ends: let go of it, and return True.

        False: it has to `run` on, for nobody else is going to run what waits.
        """
        with self._lock:
            if self.inline is not None and self.inline is not waker:
                self.inline.wake()  # the next life's reader: it runs the callbacks from now on
            elif self.dispatcher.inline and self._items and self._running is None:
                return False
            else:
                self.inline = self.inline_thread = None
            if self._starved is waker:
                self._starved = None
            return True

    def forked(self) -> None:
        """In a forked child: nothing waits, and nobody runs. Takes no lock."""
        self._lock = threading.Lock()
        self._items.clear()
        self.messages = self.bytes = 0
        self._scheduled, self._running = False, None
        self.inline = self.inline_thread = self._starved = None
        self.dispatcher.forked()

    def is_due_here(self) -> bool:
        """Whether callbacks wait that the reader, who asks, has to run."""
        return self.dispatcher.inline and bool(self._items) and self._running is None

    def runs_here(self) -> bool:
        """Whether the calling thread is running a callback of this client."""
        return self._running == threading.get_ident()

    def opens_here(self) -> bool:
        """Whether what the calling thread sends goes before the queue."""
        return self._opening and _here.mailbox is self

    def _needs_token(self) -> bool:
        """Whether nobody is going to look here. With the lock held; the caller schedules."""
        if self._scheduled or self._running is not None:
            return False
        if self.dispatcher.inline:
            # The reader looks after each of its steps.
            if self.inline is not None and threading.get_ident() != self.inline_thread:
                self.inline.wake()
            return False
        self._scheduled = True
        return True

    def schedule(self) -> None:
        """Have the dispatcher run what waits, after `append` asked for it."""
        try:
            token = self._token
            if token is None:  # one is good for any number of turns
                token = self._token = Token(self)
            self.dispatcher.schedule(token)
        except Exception as error:
            # A pool that was shut down, a loop that was closed, an interpreter that ends:
            # there is nobody left to tell.
            logger.debug("callbacks cannot run any more: %s", error)
            with self._lock:
                self._scheduled = False
            self.seal(None)
