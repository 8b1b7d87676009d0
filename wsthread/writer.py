"""Brings frames from the outbox onto one connection."""

from __future__ import annotations

import contextlib
import itertools
import logging
import time
from collections import deque
from typing import (
    Callable,
    Collection,
    Deque,
    Generator,
    Iterable,
    List,
    Optional,
    Protocol,
    Sequence,
    Tuple,
)

from .delegate import Message
from .errors import WebSocketError
from .frames import FIN, OP_CLOSE, RSV1, describe_frame, encode_frame, encode_parts
from .outbox import BATCH, UNUSED, Entry, Outbox, used
from .stats import Counts
from .transport import Transport

frame_logger = logging.getLogger("wsthread.frames")

#: Payloads below so many bytes are copied once more: that costs less than two buffers.
_COPIED = 16384
#: Rounds one sender writes for everybody before it leaves the rest to the reader.
_ROUNDS = 32
#: Of sends that follow each other within so many seconds the first compresses for itself. The
#: rest is the reader's, many in a batch, while the next messages are made: zlib needs no GIL.
_RUSH = 60e-6


class Deflater(Protocol):
    """What compresses messages, in the order of their frames (RFC 7692)."""

    threshold: int  # payloads of fewer bytes are not compressed

    def compress(self, payload: bytes) -> Optional[bytes]:
        """Return the compressed payload, or None to send it as it is."""

    def steps(self, payload: bytes) -> Generator[None, None, Optional[bytes]]:
        """Do the same in steps of about a millisecond."""


class FrameWriter:
    """Encodes and writes; whoever gets the transport's lock does it for everybody.

    A sender that meets the lock held leaves its frame in the outbox: the holder looks there
    again after it has let go. A frame that was begun stays in the transport's out-buffer,
    whatever becomes of its sender.

    A message is compressed here, in the order of the frames. A large one is left to the reader,
    which compresses it step by step: it reads in between, and control frames go.
    """

    __slots__ = (
        "__weakref__",
        "_batch",
        "_begun",
        "_close_end",
        "_deflater",
        "_label",
        "_large",
        "_largest",
        "_last",
        "_notes",
        "_outbox",
        "_report",
        "_stats",
        "_transport",
        "_work",
        "error",
    )

    def __init__(
        self,
        outbox: Outbox,
        transport: Transport,
        deflater: Optional[Deflater],
        report: Callable[[Deque[Entry], int], None],
        stats: Counts,
        label: str,
    ) -> None:
        self._outbox = outbox
        self._transport = transport
        self._deflater = deflater
        # Takes the first of those that are with the kernel; called with the lock held.
        self._report = report
        self._stats = stats
        self._label = label  # of the connection, for the log
        # The longest payload for `write_now`: others are waited for, or compressed.
        self._largest = outbox.largest
        if deflater is not None:
            self._largest = min(self._largest, deflater.threshold - 1)
        # What is to be logged: noted under the lock, logged without it.
        self._notes: List[str] = []
        self._last = 0.0  # any thread's, without a lock: when a sender was here
        # All are the transport's lock's.
        self._begun: Deque[Entry] = UNUSED  # in the out-buffer, and not yet reported
        self._batch: List[Entry] = []  # taken, on the way into the out-buffer
        self._large: Sequence[Entry] = ()  # the same; one large message, while it is compressed ...
        self._work: Optional[Generator[None, None, Optional[bytes]]] = None  # ... by this
        self._close_end = -1  # the offset behind the close frame
        self.error: Optional[OSError] = None  # writing is over

    def write_now(
        self, opcode: int, payload: bytes, message: Message, told: bool
    ) -> Optional[bool]:
        """Write one message where nothing goes before it; None where something does.

        True: the kernel has all of it. False: the reader has to go on with it. `told`: somebody
        wants to hear of it. Any thread.
        """
        outbox, transport = self._outbox, self._transport
        lock, size = transport.lock, len(payload)
        if size > self._largest or lock.locked():
            return None
        if frame_logger.isEnabledFor(logging.DEBUG):
            return None
        with lock:
            if not outbox.free or transport.closed or transport.out or transport.decrypting:
                return None
            if self.error is not None or self._work is not None or self._begun:
                return None
            parts: Optional[Tuple[bytes, bytes, Iterable[bytes]]] = None
            if size < _COPIED:
                frame = encode_frame(FIN | opcode, payload)
                size = len(frame)
            else:
                parts = encode_parts(FIN | opcode, payload)
                size += len(parts[0])
            try:
                if transport.send(frame) if parts is None else transport.send_parts(*parts):
                    stats = self._stats
                    stats.bytes_sent += size
                    stats.messages_sent += 1
                    if told:
                        entry = Entry(opcode, b"", message)
                        entry.outcome = True
                        self._report(deque((entry,)), 1)
                    return True
            except OSError as error:
                error.__traceback__ = None
                self.error = error
            except BaseException:
                self.error = OSError("a thread was interrupted while it was writing")
                raise
            self._stats.bytes_sent += size
            entry = Entry(opcode, payload, message)
            entry.end = transport.queued
            if self.error is not None:
                entry.end += size  # the kernel has refused it, and takes no more
            self._begun = used(self._begun)
            self._begun.append(entry)
            outbox.begun(entry)
        return False

    def idle(self) -> bool:
        """Whether the reader finds nothing to do here."""
        return not (
            self._outbox.ready
            or self._transport.out
            or self._work is not None
            or self.error is not None
        )

    def pump(self, reader: bool = False) -> bool:
        """Write what may be written now. Any thread; waits for nothing.

        Returns False where something is left that only the reader can go on with.
        """
        lock = self._transport.lock
        rounds = 0
        if self._deflater is not None and not reader:
            before, self._last = self._last, time.perf_counter()
            if self._last - before < _RUSH:
                return False
        while self._outbox.ready or self._transport.stalled or self._work is not None:
            if self._transport.stalled and not reader:
                return True  # who met the stall told the reader
            if lock.locked() or (self._transport.decrypting and not reader):
                return True  # the holder, or the reader, looks again after it has let go
            with lock:  # not `acquire`: Ctrl-C must not come between it and a `try`
                if self._transport.closed or self.error is not None:
                    return True
                if not self._write(reader):
                    return False
            if self._notes:
                self._log()
            rounds += 1
            if rounds >= _ROUNDS or (reader and self._deflater is not None):
                return False  # compressing a batch is long enough for the reader: it reads first
        return True

    def _write(self, reader: bool) -> bool:
        transport = self._transport
        try:
            if not transport.stalled:
                self._outbox.take(self._batch, time.monotonic(), messages=self._work is None)
                self._encode()
                if self._work is not None and reader:
                    self._step(self._work)
            drained = transport.flush()
        except OSError as error:  # what the kernel took before is sent all the same
            error.__traceback__ = None
            self.error = error
            drained = False
        except BaseException:
            # Ctrl-C, or no memory: nobody knows how far the frame has come.
            self.error = OSError("a thread was interrupted while it was writing")
            raise
        self._tell()
        return drained and self._work is None

    def _tell(self) -> None:
        """Report what is with the kernel."""
        begun, written = self._begun, self._transport.written
        if not begun or begun[0].end > written:
            return
        done: Collection[Entry] = begun
        if begun[-1].end > written:
            done = list(itertools.takewhile(lambda entry: entry.end <= written, begun))
        self._outbox.done(done)
        self._report(begun, len(done))

    def _encode(self) -> None:
        """Put the batch into the out-buffer, or begin to compress a large message."""
        batch = self._batch
        if self._deflater is not None and batch and len(batch[0].payload) > BATCH:
            self._large = batch  # it is alone there
            self._work = self._deflater.steps(batch[0].payload)
        elif batch:
            self._put(batch)
        self._batch = []

    def _step(self, work: Generator[None, None, Optional[bytes]]) -> None:
        """Go on compressing the large message; put it into the out-buffer at the end."""
        try:
            next(work)
        except StopIteration as end:
            self._put(self._large, end)
            self._large, self._work = (), None

    def _put(self, batch: Sequence[Entry], compressed: Optional[StopIteration] = None) -> None:
        """Encode a batch, or one message that is `compressed`, into the out-buffer."""
        transport = self._transport
        if len(batch) == 1 and batch[0].size > BATCH:  # long, and not copied
            header, body, rest = encode_parts(*self._content(batch[0], compressed))
            parts = [header, body, *rest]
            sizes = [sum(map(len, parts))]
        else:
            frames = self._encoded(batch)
            sizes = list(map(len, frames))
            parts = [b"".join(frames)]
        end = transport.queued
        for entry, size in zip(batch, sizes):
            entry.end = end = end + size
        if frame_logger.isEnabledFor(logging.DEBUG):
            self._notes.extend(describe_frame(e.opcode, e.payload) for e in batch if e.opcode >= 0)
        self._begun = used(self._begun)
        self._begun.extend([entry for entry in batch if entry.opcode < OP_CLOSE])
        self._stats.bytes_sent += end - transport.queued
        for part in parts:
            transport.write(part)
        if transport.queued != end:
            # Under TLS the offsets of the records differ: all of a batch counts as sent with
            # its last byte.
            for entry in batch:
                entry.end = transport.queued
        if batch[-1].opcode == OP_CLOSE:
            self._close_end = transport.queued
            self._work = None  # it overtakes a message; `detach` gives that back

    def _encoded(self, batch: Sequence[Entry]) -> List[bytes]:
        """Return the frame of each; of a mark none."""
        if self._deflater is None:
            return [
                encode_frame(FIN | entry.opcode, entry.payload) if entry.opcode >= 0 else b""
                for entry in batch
            ]
        return [
            encode_frame(*self._content(entry)) if entry.opcode >= 0 else b"" for entry in batch
        ]

    def _content(
        self, entry: Entry, compressed: Optional[StopIteration] = None
    ) -> Tuple[int, bytes]:
        """Return the first byte and the payload of an entry's frame."""
        payload: Optional[bytes] = None
        if compressed is not None:
            payload = compressed.value
        elif self._deflater is not None and entry.opcode < OP_CLOSE:
            payload = self._deflater.compress(entry.payload)
        if payload is None:
            return FIN | entry.opcode, entry.payload
        return FIN | RSV1 | entry.opcode, payload

    def _log(self) -> None:
        with contextlib.suppress(IndexError):  # another thread takes them as well
            while True:
                frame_logger.debug("%s: sent %s", self._label, self._notes.pop(0))

    def close_sent(self) -> bool:
        """Whether the close frame is with the kernel."""
        return 0 <= self._close_end <= self._transport.written

    def _unsettled(self) -> List[Entry]:
        """Return what was taken from the outbox and not reported. Needs the lock."""
        # A sender that was interrupted may have left some in two places.
        return list(dict.fromkeys((*self._begun, *self._large, *self._batch)))

    def mend(self) -> None:
        """A sender was interrupted (Ctrl-C), anywhere in here. The reader's."""
        with self._transport.lock:
            self._tell()  # the sender may have been about to
            self._outbox.mend(self._unsettled())

    def detach(self, error: WebSocketError) -> List[Entry]:
        """The transport is closed: return what was begun and is not with the kernel."""
        with self._transport.lock:
            self._tell()
            begun = self._unsettled()
            self._begun.clear()
            self._large, self._batch, self._work = (), [], None
        if self._notes:
            self._log()
        return self._outbox.failed(begun, error) if begun else []
