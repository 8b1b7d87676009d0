"""Brings frames from the outbox onto one connection."""

from __future__ import annotations

import contextlib
import logging
import time
from collections import deque
from typing import Callable, Deque, List, Optional, Protocol, Tuple

from .errors import WebSocketError
from .frames import OP_CLOSE, describe_frame, encode_frame
from .outbox import Entry, Outbox
from .stats import ClientStats
from .transport import Transport

frame_logger = logging.getLogger("wsthread.frames")

#: Rounds one sender writes for everybody before it leaves the rest to the reader.
_ROUNDS = 32
#: Frames are joined up to this size before they are given to the transport.
_JOIN = 65536


class Deflater(Protocol):
    """What compresses messages, in the order of their frames (RFC 7692)."""

    def compress(self, payload: bytes) -> Optional[bytes]:
        """Return the compressed payload, or None to send it as it is."""


class FrameWriter:
    """Encodes and writes; whoever gets the transport's lock does it for everybody.

    A sender that meets the lock held leaves its frame in the outbox: the holder looks there
    again after it has let go. A frame that was begun stays in the transport's out-buffer,
    whatever becomes of its sender.
    """

    def __init__(
        self,
        outbox: Outbox,
        transport: Transport,
        deflater: Optional[Deflater],
        report: Callable[[List[Entry]], None],
        stats: ClientStats,
        label: str,
    ) -> None:
        self._outbox = outbox
        self._transport = transport
        self._deflater = deflater
        self._report = report  # called with the lock held
        self._stats = stats
        self._label = label  # of the connection, for the log
        # What is to be logged: noted under the lock, logged without it.
        self._notes: Deque[str] = deque()
        # All are the transport's lock's.
        self._begun: Deque[Tuple[int, Entry]] = deque()  # with the out-buffer's end offset
        self._taken: List[Entry] = []  # on the way into the out-buffer
        self._close_end = -1  # the offset behind the close frame
        self.error: Optional[OSError] = None  # writing is over

    def pump(self, reader: bool = False) -> bool:
        """Write what may be written now. Any thread; waits for nothing.

        Returns False where something is left that only the reader can go on with.
        """
        lock = self._transport.lock
        rounds = 0
        while self._outbox.ready or self._transport.stalled:
            if self._transport.stalled and not reader:
                return True  # who met the stall told the reader
            if lock.locked():
                return True  # the holder looks again after it has let go
            with lock:  # not `acquire`: Ctrl-C must not come between it and a `try`
                if self._transport.closed or self.error is not None:
                    return True
                if not self._write():
                    return False
            if self._notes:
                self._log()
            rounds += 1
            if rounds >= _ROUNDS:
                return False
        return True

    def _write(self) -> bool:
        transport = self._transport
        try:
            if not transport.stalled:
                self._encode()
            drained = transport.flush()
        except OSError as error:
            error.__traceback__ = None
            self.error = error
            return False
        except BaseException:
            # Ctrl-C, or no memory: nobody knows how far the frame has come.
            self.error = OSError("a thread was interrupted while it was writing")
            raise
        written = transport.written
        done: List[Entry] = []
        while self._begun and self._begun[0][0] <= written:
            done.append(self._begun.popleft()[1])
        if done:
            self._report(self._outbox.done(done))
        return drained

    def _encode(self) -> None:
        transport = self._transport
        frames: List[bytes] = []
        ends: List[int] = []
        size = 0
        taken = self._outbox.take(time.monotonic())
        self._taken = entries = [entry for _, _, entry in taken if entry is not None]
        closes = False
        logged = frame_logger.isEnabledFor(logging.DEBUG)
        for opcode, payload, entry in taken:
            if opcode != -1:
                if logged:
                    self._notes.append(describe_frame(opcode, payload))
                frames.append(self._frame(opcode, payload))
                size += len(frames[-1])
            if entry is not None:
                ends.append(size)
            closes = closes or opcode == OP_CLOSE
        data = frames[0] if len(frames) == 1 else b"".join(frames)
        start = transport.queued
        self._stats.bytes_sent += size
        transport.write(data)
        # Under TLS the offsets of the records differ: all of a batch counts as sent with its
        # last byte.
        plain = transport.queued - start == size
        for end, entry in zip(ends, entries):
            self._begun.append((start + end if plain else transport.queued, entry))
        self._taken = []
        if closes:
            self._close_end = transport.queued

    def _frame(self, opcode: int, payload: bytes) -> bytes:
        if self._deflater is not None and opcode < OP_CLOSE:
            compressed = self._deflater.compress(payload)
            if compressed is not None:
                return encode_frame(opcode, compressed, rsv1=True)
        return encode_frame(opcode, payload)

    def _log(self) -> None:
        with contextlib.suppress(IndexError):  # another thread takes them as well
            while True:
                frame_logger.debug("%s: sent %s", self._label, self._notes.popleft())

    def close_sent(self) -> bool:
        """Whether the close frame is with the kernel."""
        return 0 <= self._close_end <= self._transport.written

    def detach(self, error: WebSocketError) -> List[Entry]:
        """The transport is closed: return what was begun and is not with the kernel."""
        with self._transport.lock:
            begun = [entry for _, entry in self._begun]
            begun += [entry for entry in self._taken if entry not in begun]
            self._begun.clear()
            self._taken = []
        self._log()
        return self._outbox.failed(begun, error)
