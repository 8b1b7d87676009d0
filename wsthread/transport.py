"""The non-blocking socket, its TLS layers and its out-buffer; waiting and being woken."""

from __future__ import annotations

import contextlib
import functools
import os
import select
import socket
import ssl
import sys
import threading
import time
from typing import Any, Callable, Dict, Iterable, List, Optional, Tuple, TypeVar, Union

from .errors import ConnectTimeout
from .tls import TLSFilter

T = TypeVar("T")

_os: Any = os  # with what Python 3.9 does not have
_ONE = (1).to_bytes(8, sys.byteorder)  # what is written to an eventfd

READ = 1
WRITE = 4
HANGUP = 16

_RECEIVE = 65536
RECEIVE_MOST = 1 << 20
_DECRYPT_MOST = 1 << 18  # OpenSSL keeps a buffer of that size as long as the connection lives
_LONGEST_POLL = 2_000_000.0  # seconds; poll takes 2 ** 31 milliseconds


class _EventFd:
    """Wakes as a pair of sockets does, at half the cost. Linux has it, from Python 3.10 on."""

    __slots__ = ("_descriptor",)

    def __init__(self) -> None:
        # -1 once it is closed. Any thread's; only the last one, or a forked child, closes it.
        self._descriptor: int = _os.eventfd(0, _os.EFD_NONBLOCK | _os.EFD_CLOEXEC)

    def fileno(self) -> int:
        return self._descriptor

    def send(self, data: bytes) -> None:
        os.write(self._descriptor, _ONE)

    def recv(self, size: int) -> None:
        os.read(self._descriptor, 8)

    def close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor != -1:
            os.close(descriptor)


class Waker:
    """Wakes a thread that waits in poll, from any thread, signal handler or finaliser.

    Its descriptors are closed when the last one who could still write to them has let go, so
    that a late wake-up never reaches a descriptor that somebody else has been given since.
    """

    __slots__ = ("__weakref__", "_reader", "_signalled", "_writer")

    def __init__(self) -> None:
        self._reader: Union[_EventFd, socket.socket]
        self._writer: Union[_EventFd, socket.socket]
        if hasattr(os, "eventfd"):
            self._reader = self._writer = _EventFd()
        else:
            self._reader, self._writer = socket.socketpair()
            self._reader.setblocking(False)
            self._writer.setblocking(False)
        # Written by any thread; true from a wake-up until the waiting thread has seen it.
        self._signalled = False

    def fileno(self) -> int:
        return self._reader.fileno()

    def wake(self) -> None:
        """Wake the waiting thread, or keep it from falling asleep. Takes no lock."""
        try:
            if not self._signalled:
                self._signalled = True
                self._writer.send(b"\0")
        except OSError:
            pass  # full: it is awake already; closed in a forked child: nobody sleeps
        except BaseException:  # Ctrl-C: perhaps nothing was written, so the next one writes
            self._signalled = False
            raise

    def drain(self) -> None:
        """Take back the wake-ups; the waiting thread looks at its flags *after* this."""
        try:
            self._reader.recv(4096)
        except OSError:
            pass  # nothing was written
        finally:
            self._signalled = False

    def __del__(self) -> None:
        try:
            self.close()
        except AttributeError:
            pass  # there were no descriptors left to make it with

    def close(self) -> None:
        """Close both descriptors. Only for a forked child; otherwise the last reference does."""
        self._reader.close()
        self._writer.close()


class Cancelled(Exception):
    """The opening was given up from another thread. Never leaves the library."""


@functools.cache
def _mask(wanted: int) -> int:
    """Return what to ask poll for READ, WRITE and HANGUP."""
    mask = 0
    if wanted & READ:
        mask |= select.POLLIN
    if wanted & WRITE:
        mask |= select.POLLOUT
    if wanted & HANGUP:
        mask |= getattr(select, "POLLRDHUP", 0)  # Linux only
    return mask


@functools.cache  # there are few, and each wait tells one
def _meaning(events: int) -> int:
    """Return READ, WRITE and HANGUP of what poll tells."""
    mask = 0
    if events & (select.POLLIN | select.POLLPRI):
        mask |= READ
    if events & select.POLLOUT:
        mask |= WRITE
    if events & ~(select.POLLIN | select.POLLPRI | select.POLLOUT):
        mask |= HANGUP
    return mask


class Poller:
    """Waits for descriptors; kept between waits, so that an unchanged wait costs little.

    Not epoll, whose descriptor a forked child would share. Belongs to one thread.
    """

    __slots__ = ("_poll", "_watched")

    def __init__(self) -> None:
        self._poll = select.poll() if hasattr(select, "poll") else None
        self._watched: Dict[int, int] = {}  # only where there is no poll, which knows it itself

    def watch(self, descriptor: int, wanted: int) -> None:
        """Wait for READ, WRITE, HANGUP (in `wanted`) of a descriptor; 0 forgets it.

        Where anything but 0 is wanted, a hang-up is reported in any case.
        """
        if self._poll is None:
            if wanted:
                self._watched[descriptor] = wanted
            else:
                self._watched.pop(descriptor, None)
        elif wanted:
            self._poll.register(descriptor, _mask(wanted))
        else:
            try:
                self._poll.unregister(descriptor)
            except KeyError:
                pass  # it was not watched

    def wait(self, timeout: Optional[float]) -> Dict[int, int]:
        """Return what is ready; `timeout` is in seconds, None for ever.

        It may come back empty before: the system takes no more than some weeks.
        """
        if timeout is not None:
            if timeout < 0.0:
                timeout = 0.0
            elif timeout > _LONGEST_POLL:
                timeout = _LONGEST_POLL
        if self._poll is None:
            return _select(self._watched, timeout)
        # Rounded up: a wait that ends a fraction before its deadline would spin through it.
        found = self._poll.poll(None if timeout is None else timeout * 1000 + 0.999)
        return {descriptor: _meaning(events) for descriptor, events in found}


def _select(watched: Dict[int, int], timeout: Optional[float]) -> Dict[int, int]:
    # Windows has no poll. A failed connect shows up in the third set there.
    readers = [fd for fd, wanted in watched.items() if wanted & READ]
    writers = [fd for fd, wanted in watched.items() if wanted & WRITE]
    got_r, got_w, got_x = select.select(readers, writers, writers, timeout)
    ready = dict.fromkeys(got_r, READ)
    for descriptor in got_w + got_x:
        ready[descriptor] = ready.get(descriptor, 0) | WRITE
    return ready


class _Job:
    """The result of a call that may be abandoned; it holds nothing of who waits for it."""

    __slots__ = ("_lock", "done", "error", "result", "waker")

    def __init__(self, waker: Waker) -> None:
        self.waker: Optional[Waker] = waker  # the lock's
        self.done = False  # written by the helper thread, last
        self.result: object = None
        self.error: Optional[BaseException] = None
        self._lock = threading.Lock()

    def run(self, function: Callable[[], object]) -> None:
        try:
            self.result = function()
        except BaseException as error:  # whatever it is, the waiting thread raises it
            self.error = error
        self.done = True
        with self._lock:
            if self.waker is not None:
                self.waker.wake()

    def abandon(self) -> None:
        with self._lock:
            self.waker = None


class Waiter:
    """Waits on the reader's thread: for descriptors, a wake-up or the deadline.

    Used while opening; belongs to the reader's thread.
    """

    __slots__ = ("_cancelled", "_poller", "_waker", "deadline", "sockets")

    def __init__(
        self,
        waker: Waker,
        cancelled: Callable[[], bool],
        deadline: Optional[float],
        poller: Optional[Poller] = None,
    ) -> None:
        self._waker = waker
        self._cancelled = cancelled
        #: `time.monotonic` of the end of the opening; None: no end.
        self.deadline = deadline
        #: Of this opening, those that are closed included: a number may be somebody else's by now.
        self.sockets: List[socket.socket] = []
        self._poller = poller or Poller()  # one that may be left watching the waker
        self._poller.watch(waker.fileno(), READ)

    def forked(self) -> None:
        """In a forked child: close the sockets of the opening. Takes no lock."""
        for sock in self.sockets:
            with contextlib.suppress(OSError):
                sock.close()

    def check(self) -> None:
        """Raise Cancelled or ConnectTimeout where going on is of no use."""
        if self._cancelled():
            raise Cancelled
        if self.deadline is not None and time.monotonic() >= self.deadline:
            raise ConnectTimeout("the connection was not open in time")

    def wait(self, interest: Dict[int, int], timeout: Optional[float] = None) -> Dict[int, int]:
        """Return what is ready of `interest`; empty after `timeout` seconds or a wake-up.

        Raises Cancelled, and ConnectTimeout at the deadline of the whole opening.
        """
        self.check()
        if self.deadline is not None:
            left = max(0.0, self.deadline - time.monotonic())
            timeout = left if timeout is None else min(timeout, left)
        poller = self._poller
        try:
            for descriptor, wanted in interest.items():
                poller.watch(descriptor, wanted)
            ready = poller.wait(timeout)
        finally:
            for descriptor in interest:
                poller.watch(descriptor, 0)
        if ready.pop(self._waker.fileno(), 0):
            self._waker.drain()
        self.check()
        return ready

    def call(self, function: Callable[[], T]) -> T:
        """Run a function that may block for long; it is abandoned on Cancelled and time-out.

        It runs in a daemon thread of its own that holds nothing of the connection.
        """
        job = _Job(self._waker)
        threading.Thread(
            target=job.run, args=(function,), name="wsthread-helper", daemon=True
        ).start()
        try:
            while not job.done:
                self.wait({})
        finally:
            job.abandon()
        if job.error is not None:
            error, job.error = job.error, None
            try:
                raise error
            finally:
                del error
        return job.result  # type: ignore[return-value]


class Transport:
    """One connected socket: plain bytes in and out, through its TLS layers.

    `lock` is the write lock: whoever holds it may call `write`, `flush`, `close`, and every
    call into TLS happens under it. It is never held across a wait. `receive` is the reader's.
    """

    __slots__ = (
        "__weakref__",
        "_filters",
        "_gathers",
        "_size",
        "closed",
        "decrypting",
        "lock",
        "out",
        "queued",
        "received",
        "sock",
        "written",
    )

    def __init__(self, sock: socket.socket) -> None:
        if sock.gettimeout() != 0:
            sock.setblocking(False)
        self.sock = sock
        self._gathers = hasattr(sock, "sendmsg")  # Windows has none
        self.lock = threading.Lock()
        self.closed = False  # the lock's
        # The reader's: it decrypts, or waits for the lock in order to. A sender who sees it leaves
        # his frame to the reader: a thread that sends without pause could keep the lock for long.
        self.decrypting = False
        self._filters: Tuple[TLSFilter, ...] = ()  # innermost last; fixed once open
        self.out: List[memoryview] = []  # the lock's: what the kernel has not taken; never many
        self.queued = 0  # the lock's: bytes ever put into the out-buffer
        self.written = 0  # the lock's: of these, those that the kernel has taken
        self._size = _RECEIVE  # the reader's: how much to read at a time
        self.received = 0  # the reader's: bytes ever read from the network, TLS's own included

    def fileno(self) -> int:
        return self.sock.fileno()

    @property
    def tls(self) -> Optional[ssl.SSLObject]:
        """The TLS connection with the server itself, or None."""
        return self._filters[-1].object if self._filters else None

    @property
    def stalled(self) -> bool:
        """Whether bytes wait for the kernel to have room."""
        return bool(self.out)

    def add_tls(self, context: ssl.SSLContext, server_hostname: Optional[str]) -> None:
        """Put a TLS layer over what there is; `handshake` then brings it up."""
        self._filters += (TLSFilter(context, server_hostname),)

    def handshake(self) -> bool:
        """Go on with the newest layer's handshake; return whether it is complete.

        When it is not: flush, wait to read, `receive` nothing but call `handshake_input`.
        """
        with self.lock:
            try:
                done = self._filters[-1].handshake()
            except ssl.SSLError:
                self._owed()  # the alert that tells the peer why
                try:
                    self.flush()
                except OSError:
                    pass  # it will not hear; what failed the handshake says more
                raise
            self._owed()
            self.flush()
        return done

    def handshake_input(self) -> bool:
        """Bring the newest layer what the network has; False at the end of the stream."""
        data = self._recv(_RECEIVE)
        if not data:
            return data is None
        with self.lock:
            for layer in self._filters[:-1]:
                data = layer.decrypt(data)
                if not data:
                    return not layer.ended
            self._filters[-1].incoming.write(data)
        return True

    @property
    def ended(self) -> bool:
        """Whether TLS has ended the stream, in order or not: `receive` tells, and reads nothing."""
        return bool(self._filters) and any(layer.ended or layer.broken for layer in self._filters)

    def _recv(self, size: int) -> Optional[bytes]:
        try:
            data = self.sock.recv(size)
        except (BlockingIOError, InterruptedError):
            return None
        self.received += len(data)
        return data

    def receive(self, size: int = 0) -> Optional[bytes]:
        """Return plain bytes; None where there are none now, b"" at the end of the stream.

        At most `size`, of the network's bytes; 0: what is good at this time.

        Raises OSError (ssl.SSLError is one) when the connection broke.
        """
        if self._filters:
            return self._receive_tls(size)
        try:
            data = self.sock.recv(size or self._size)
        except (BlockingIOError, InterruptedError):
            return None
        count = len(data)
        self.received += count
        # Much at a time where the network has much: it saves waits and hand-overs.
        self._size = RECEIVE_MOST if count >= _RECEIVE and not size else _RECEIVE
        return data

    def _receive_tls(self, size: int) -> Optional[bytes]:
        ended = self.ended
        data = None if ended else self._recv(size or self._size)
        if data is not None:
            self._size = _DECRYPT_MOST if len(data) >= _RECEIVE and not size else _RECEIVE
        if data is None and not ended and not self._filters[-1].incoming.pending:
            return None  # otherwise: what came in one piece with the end of the handshake
        self.decrypting = True
        try:
            with self.lock:
                for layer in self._filters:
                    plain = layer.decrypt(data)
                    data = plain if plain or layer.ended else None
                self._owed()
        finally:
            self.decrypting = False
        return data

    def _owed(self) -> None:
        """Queue what the TLS layers themselves have to say. Needs the lock."""
        data = b""
        for layer in reversed(self._filters):
            data = layer.encrypt(data) if data else layer.pending()
        if data:
            self._push(data)

    def _push(self, data: Union[bytes, memoryview]) -> None:
        self.out.append(memoryview(data))
        self.queued += len(data)

    def write(self, data: bytes) -> None:
        """Put bytes into the out-buffer, encrypted. Needs the lock; `flush` sends them."""
        for layer in reversed(self._filters):
            data = layer.encrypt(data)
        if data:
            self._push(data)

    def send(self, frame: bytes) -> bool:
        """Write a frame while the out-buffer is empty; True when the kernel took all of it.

        The same as `write` and `flush`, with less ado: what the kernel takes at once is not in
        the out-buffer's counts. Needs the lock.
        """
        if self._filters:
            self.write(frame)
            return self.flush()
        try:
            sent = self.sock.send(frame)
        except (BlockingIOError, InterruptedError):
            sent = 0
        if sent == len(frame):
            return True
        self._push(memoryview(frame)[sent:])
        return False

    def send_parts(self, header: bytes, body: bytes, rest: Iterable[bytes]) -> bool:
        """Do the same with a frame that is long, and not copied for it."""
        if self._filters or not self._gathers:
            self.send(header + body)
        else:
            try:
                sent = self.sock.sendmsg((header, body))
            except (BlockingIOError, InterruptedError):
                sent = 0
            for part in (header, body):
                if sent < len(part):
                    self._push(memoryview(part)[sent:])
                sent = max(0, sent - len(part))
        for part in rest:
            if self.out:
                self.write(part)
            else:
                self.send(part)
        return not self.out

    def flush(self) -> bool:
        """Give the kernel what it takes; True when nothing is left. Needs the lock.

        Raises OSError when the connection broke.
        """
        out = self.out
        while out:
            try:
                if len(out) == 1:
                    sent = self.sock.send(out[0])
                else:
                    sent = self._send_several()
            except (BlockingIOError, InterruptedError):
                return False
            self.written += sent
            while out and sent >= len(out[0]):
                sent -= len(out.pop(0))
            if sent:
                out[0] = out[0][sent:]
        return True

    def _send_several(self) -> int:
        if self._gathers:
            return self.sock.sendmsg(self.out[:64])
        return self.sock.send(self.out[0])

    def pending_error(self) -> Optional[OSError]:
        """Return what broke the connection, where the kernel knows it already."""
        number = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        return OSError(number, os.strerror(number)) if number else None

    def forked(self) -> None:
        """In a forked child: close the descriptor, which is the parent's. Takes no lock."""
        self.lock = threading.Lock()
        self.closed = True
        self.sock.close()

    def close(self, reset: bool = False) -> None:
        """Close the descriptor; `reset` sends RST, so that nothing lingers. Takes the lock."""
        with self.lock:
            if self.closed:
                return
            self.closed = True
            if reset:
                try:
                    linger = b"\1\0\0\0" if sys.platform == "win32" else b"\1\0\0\0\0\0\0\0"
                    self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                except OSError:
                    pass  # the peer has reset it already
            self.out.clear()
            self.sock.close()
