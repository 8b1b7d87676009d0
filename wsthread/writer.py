"""Brings frames from the outbox onto one connection."""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import Callable, Deque, Generator, List, Optional, Protocol, Tuple

from .errors import WebSocketError
from .frames import OP_CLOSE, encode_frame
from .outbox import Entry, Outbox, Taken
from .transport import Transport

#: Rounds one sender writes for everybody before it leaves the rest to the reader.
_ROUNDS = 32
#: Messages of more bytes are compressed in steps.
_STEP = 65536


class Deflater(Protocol):
    """What compresses messages, in the order of their frames (RFC 7692)."""

    def compress(self, payload: bytes) -> Optional[bytes]:
        """Return the compressed payload, or None to send it as it is."""

    def steps(self, payload: bytes) -> Generator[None, None, Optional[bytes]]:
        """Do the same in short steps."""


#: What takes a batch from step to step; it returns the encoded frames.
Work = Generator[None, None, List[bytes]]


def _encode(deflater: Optional[Deflater], taken: List[Taken]) -> Work:
    frames: List[bytes] = []
    for opcode, payload, _ in taken:
        if opcode == -1:
            frames.append(b"")
            continue
        compressed = None
        if deflater is not None and opcode < OP_CLOSE:
            if len(payload) <= _STEP:
                compressed = deflater.compress(payload)
            else:
                compressed = yield from deflater.steps(payload)
        if compressed is None:
            frames.append(encode_frame(opcode, payload))
        else:
            frames.append(encode_frame(opcode, compressed, rsv1=True))
    return frames


def _advance(work: Work) -> Optional[List[bytes]]:
    """Do a step; return the frames after the last one."""
    try:
        next(work)
    except StopIteration as end:
        frames: List[bytes] = end.value
        return frames
    return None


class FrameWriter:
    """Encodes and writes; whoever gets the turn does it for everybody.

    A sender that meets the turn taken leaves its frame in the outbox: the holder looks there
    again after it has let go. A frame that was begun stays in the transport's out-buffer,
    whatever becomes of its sender.

    Compressing may take long. It happens with the turn and without the transport's lock, which
    TLS needs for reading as well; control frames go meanwhile. The reader, where it has the
    turn, compresses large messages step by step, and reads in between.
    """

    def __init__(
        self,
        outbox: Outbox,
        transport: Transport,
        deflater: Optional[Deflater],
        report: Callable[[List[Entry]], None],
    ) -> None:
        self._outbox = outbox
        self._transport = transport
        self._report = report  # called with the transport's lock held
        self._turn = threading.Lock()  # messages are taken, compressed and written in its order
        # Both are the turn's.
        self._deflater = deflater
        self._work: Optional[Work] = None  # a batch that the reader has begun to encode
        # All below are the transport's lock's.
        self._begun: Deque[Tuple[int, Entry]] = deque()  # with the out-buffer's end offset
        self._batch: List[Taken] = []  # taken, on the way into the out-buffer
        self._close_end = -1  # the offset behind the close frame
        self.error: Optional[OSError] = None  # writing is over

    def pump(self, reader: bool = False) -> bool:
        """Write what may be written now. Any thread; waits for nothing.

        Returns False where something is left that only the reader can go on with.
        """
        transport, turn = self._transport, self._turn
        rounds = 0
        while self._outbox.ready or transport.stalled or self._work is not None:
            if transport.stalled and not reader:
                return True  # who met the stall told the reader
            if self._over():
                return True
            if turn.locked():
                return self._attempt(self._pass_by)
            if reader:
                if not turn.acquire(blocking=False):
                    return self._attempt(self._pass_by)
                try:
                    going = self._attempt(self._step)
                finally:
                    turn.release()
            else:
                with turn:  # not `acquire`: Ctrl-C must not come between it and a `try`
                    going = self._attempt(self._write)
            if not going:
                return False
            rounds += 1
            if rounds >= _ROUNDS:
                return False
        return True

    def _over(self) -> bool:
        return self._transport.closed or self.error is not None

    def _attempt(self, write: Callable[[], bool]) -> bool:
        try:
            return write()
        except OSError as error:
            error.__traceback__ = None
            self.error = error
            return False
        except BaseException:
            # Ctrl-C, or no memory: nobody knows how far the frame has come.
            self.error = OSError("a thread was interrupted while it was writing")
            raise

    def _write(self) -> bool:
        """Write the next batch. Needs the turn. False where the kernel has no room."""
        work = self._work or self._begin()
        if work is None:
            return True
        self._work = frames = None
        while frames is None:
            frames = _advance(work)
        return self._put(frames)

    def _step(self) -> bool:
        """Do a step of `_write`; False also where there are more. The reader's, with the turn."""
        work = self._work or self._begin()
        if work is None:
            return True
        frames = _advance(work)
        self._work = work if frames is None else None
        if frames is not None:
            return self._put(frames)
        self._pass_by()
        return False

    def _begin(self) -> Optional[Work]:
        """Take the next batch. Needs the turn."""
        with self._transport.lock:
            if self._over():
                return None
            self._batch = [] if self._transport.stalled else self._outbox.take(time.monotonic())
        return _encode(self._deflater, self._batch)

    def _pass_by(self) -> bool:
        """Somebody else has the turn, and may compress for long: write control frames."""
        transport = self._transport
        if not (self._outbox.urgent or transport.stalled):
            return True  # the holder looks again after it has let go
        with transport.lock:
            if self._over():
                return True
            if not transport.stalled:
                for opcode, payload, _ in self._outbox.take(time.monotonic(), messages=False):
                    transport.write(encode_frame(opcode, payload))
            return self._flush()

    def _put(self, frames: List[bytes]) -> bool:
        """Put the batch into the out-buffer and flush that. Needs the turn."""
        transport = self._transport
        with transport.lock:
            if self._over():
                return True  # `detach` gives the batch back
            start, size = transport.queued, 0
            ends: List[Tuple[int, Entry]] = []
            for (_, _, entry), encoded in zip(self._batch, frames):
                size += len(encoded)
                if entry is not None:
                    ends.append((size, entry))
            if size:
                transport.write(frames[0] if len(frames) == 1 else b"".join(frames))
            # Under TLS the offsets of the records differ: all of a batch counts as sent with
            # its last byte.
            plain = transport.queued - start == size
            for end, entry in ends:
                self._begun.append((start + end if plain else transport.queued, entry))
            if self._batch and self._batch[-1][0] == OP_CLOSE:
                self._close_end = transport.queued
            self._batch = []
            return self._flush()

    def _flush(self) -> bool:
        """Give the kernel what it takes, and report it. Needs the transport's lock."""
        transport = self._transport
        drained = transport.flush()
        written = transport.written
        done: List[Entry] = []
        while self._begun and self._begun[0][0] <= written:
            done.append(self._begun.popleft()[1])
        if done:
            self._report(self._outbox.done(done))
        return drained

    def close_sent(self) -> bool:
        """Whether the close frame is with the kernel."""
        return 0 <= self._close_end <= self._transport.written

    def detach(self, error: WebSocketError) -> List[Entry]:
        """The transport is closed: return what was begun and is not with the kernel."""
        with self._transport.lock:
            begun = [entry for _, entry in self._begun]
            begun += [entry for _, _, entry in self._batch if entry and entry not in begun]
            self._begun.clear()
            self._batch = []
        return self._outbox.failed(begun, error)
