"""The queue between the threads that make events and the one that runs callbacks."""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections import deque
from operator import length_hint
from typing import TYPE_CHECKING, Any, Deque, Iterator, List, Optional, Sequence, Tuple

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


#: The callbacks of kinds that have one, and the kinds that a silenced life is not told of.
_NAMES = {
    "messages": "on_message",
    "fragments": "on_fragment",
    "sent": "on_sent",
    "unsent": "on_unsent",
}
_SILENCED = ("messages", "fragments", "control")


def _weight(item: Item) -> Tuple[int, int]:
    """Return the messages and bytes that an event counts for."""
    kind, payload, size, _ = item
    if kind == "messages" or kind == "fragments":
        return len(payload), size
    return (1, size) if kind == "control" else (0, 0)


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
        "_left",
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
        self._left: Optional[Iterator[Any]] = None  # what of the first item was not begun yet
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
            elif len(self._items) == 1 and self._items[0][0] == "end" and self._running is None:
                gone = [self._items.pop()]  # nobody is told of it: no thread has to be woken
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
            if self._drops_oldest:
                self._items += self._slices(kind, messages, size, life)
            else:
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

    def _slices(self, kind: str, messages: List[Any], size: int, life: Life) -> Iterator[Item]:
        """Cut a batch, so that little of it is out of reach of `make_room` while it is run."""
        length = min(_SLICE, max(1, self._most // 8))
        for begin in range(0, len(messages), length):
            part = messages[begin : begin + length]
            share = size * len(part) // (len(messages) - begin)
            size -= share
            yield kind, part, share, life

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
            if self._items and (self._running is not None or self._left is not None):
                kept.append(self._items.popleft())  # it is being run
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

    # The consumer. What it runs stays the first of the items until it is done, and `_left` knows
    # how far that is: where Ctrl-C interrupts a thread that pumps, the next turn goes on there.

    def run(self, token: bool = False) -> bool:
        """Run what waits, one turn at most; nothing where a thread is at it already.

        `token`: it is for the one that a dispatcher was given. Returns whether more waits.
        """
        me = threading.get_ident()
        if self._running == me:  # one of its callbacks asks
            if token:
                self._scheduled = False  # the end of the turn gives out another
            return False
        outer, more = _here.mailbox, False
        try:
            if self._turn(token, me):
                more = bool(self._items)
        except BaseException:  # Ctrl-C
            if token:
                self._scheduled = False  # perhaps it did not come so far
            raise
        finally:
            _here.mailbox = outer
            if self._running == me:
                self._break_off(me)
            if self._items and not (self._scheduled or self._running or self.dispatcher.inline):
                self._hand_on()
            del self, outer
        return more

    def _turn(self, token: bool, me: int) -> bool:
        """Run a turn; False where there is nothing to do.

        Apart from `run`, because the jump back of a loop, where CPython looks for signals, is in
        no `try` of its own function in 3.13.
        """
        item: Optional[Item] = None
        try:
            item = self._begin(token, me)
            if item is None:
                return False
            _here.mailbox = self
            self.dispatcher.entered()
            turns = _TURN
            while item is not None:
                turns -= 1
                self._run_item(item)
                item = self._settle(item, me, turns)
            return True
        finally:
            del self, item

    def _begin(self, token: bool, me: int) -> Optional[Item]:
        """Begin a turn on this thread; return the first item, None where there is nothing to do."""
        with self._lock:
            if token:
                self._scheduled = False
            if self._running is not None or not self._items:
                return None
            self._running = me
            return self._items[0]

    def _settle(self, item: Item, me: int, turns: int) -> Optional[Item]:
        """Let go of the first item, which is done; return the next, None at the end of the turn.

        A turn ends with a life, or when none of its `turns` are left.
        """
        with self._lock:
            if self._running != me:  # a callback has forked, and this is the child
                return None
            count, size = _weight(item)
            undelivered = self._undelivered(item)
            # From here to popleft Ctrl-C cannot come: there is no call in between.
            self._stats.messages_dropped += undelivered
            self._left = None
            self.messages -= count
            self.bytes -= size
            self._items.popleft()
            if self._bells:
                self._notify()
            if self._starved is not None:
                self._feed(self._starved)
            if turns and self._items and item[0] != "end":
                return self._items[0]
            self._running = None
            return None

    def _break_off(self, me: int) -> None:
        """End a turn that Ctrl-C has interrupted."""
        try:
            with self._lock:
                self._running = None
                self._notify()
                if self._starved is not None:
                    self._feed(self._starved)
        except BaseException:  # once more, while it waited for the lock
            if self._running == me:
                self._running = None
            raise

    def _hand_on(self) -> None:
        """Have what waits run, where nobody is going to."""
        try:
            with self._lock:
                needed = bool(self._items) and self._needs_token()
            if needed:
                self.schedule()
        except BaseException:  # Ctrl-C: one token too many is none
            self._scheduled = False
            raise

    def _feed(self, starved: Waker) -> None:
        """Have the reader look again. With the lock held."""
        starved.wake()
        self._starved = None

    def _undelivered(self, item: Item) -> int:
        """Return how many messages of an item no callback was given. With the lock held."""
        if item[0] != "messages" and item[0] != "fragments":
            return 0
        if self._left is not None and item is self._items[0]:
            return length_hint(self._left)
        return len(item[1])

    def _run_item(self, item: Item) -> None:
        kind, payload, _, life = item
        # While its finaliser runs, a weak reference still gives the client.
        client = None if life.dropped else self.client()
        try:
            if kind == "end":
                self._end(life)
            elif kind == "lift":
                payload.lift()
            elif client is not None:
                self._opening = kind == "opening"
                self._run_callbacks(client, kind, payload, life)
        finally:
            self._opening = False
            del self, item, kind, payload, life, client

    def _begun(self, kind: str, payload: Any) -> Tuple[str, Iterator[Any]]:
        """Return the name of an item's callback, and what it was not called with yet.

        That is messages, or of other kinds tuples of arguments; each can be taken once.
        """
        name = _NAMES.get(kind)
        arguments: Sequence[Any] = payload
        if name is None:
            name, arguments = payload[0], payload[1:]
        elif kind == "sent":
            arguments = [
                (entry.message,)
                for entry in payload
                if entry.outcome is True and entry.message is not None
            ]
        if self._left is None:
            self._left = iter(arguments)
        return name, self._left

    def _run_callbacks(self, client: WebSocketClient, kind: str, payload: Any, life: Life) -> None:
        name, left = self._begun(kind, payload)
        del payload
        silent = kind in _SILENCED
        callback = message = None
        try:
            while True:
                self.changed = False  # from here on, a change shows
                if life.sealed or (silent and life.silenced):
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
            del self, client, left, callback, message, life

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
        waiting = list(self._items)
        running = waiting[:1] if self._running is not None else []
        del waiting[: len(running)]  # `_settle` takes that out
        gone = [item for item in waiting if item[3].sealed]
        for item in gone:
            self._stats.messages_dropped += self._undelivered(item)
            self._count(item, -1)
        if gone and gone[0] is self._items[0]:
            self._left = None
        self._items = deque(running + [item for item in waiting if not item[3].sealed])
        return gone

    def _count(self, item: Item, sign: int) -> None:
        """Count an event that comes or goes against the bounds. With the lock held."""
        count, size = _weight(item)
        self.messages += sign * count
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
        if self._left is not None:  # the callback that has forked is not followed by another
            deque(self._left, maxlen=0)
            self._left = None
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
        except BaseException as error:
            self._scheduled = False
            if not isinstance(error, Exception):
                raise  # Ctrl-C
            # A pool that was shut down, a loop that was closed, an interpreter that ends:
            # there is nobody left to tell.
            logger.debug("callbacks cannot run any more: %s", error)
            self.seal(None)
