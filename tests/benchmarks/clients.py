"""What is measured of every client, and the clients that block: raw sockets and three peers.

A client is a class whose methods return the seconds of one run: ``receive``, ``send``, ``echo``,
``cycles``. Each checks what it got. They are made in a process of their own, which imports no
other client. Nothing is compressed, nothing pings.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import queue
import select
import socket
import ssl
import threading
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Callable, Dict, Iterator, List, Optional

from .messages import (
    BINARY,
    MANY,
    STAMP,
    TEXT,
    Checker,
    apply_mask,
    as_bytes,
    block,
    expected_verdict,
    frame_size,
    header,
    masked,
    stream,
    stream_size,
)

TIMEOUT = 120.0
DONE = "done"
RAW_BUFFER = 1 << 18


@dataclass(frozen=True)
class Server:
    """Where the server is."""

    port: int
    tls_port: int
    authority: str  # the path of the certificate

    def url(self, *path: object, tls: bool = False) -> str:
        scheme, port = ("wss", self.tls_port) if tls else ("ws", self.port)
        return f"{scheme}://127.0.0.1:{port}/" + "/".join(str(part) for part in path)

    def context(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=self.authority)


def check(found: Any, expected: Any) -> None:
    if found != expected:
        raise AssertionError(f"{found!r:.80} instead of {expected!r:.80}")


def in_threads(count: int, work: Callable[[int], None]) -> float:
    """Run `work(number)` on so many threads; return when they began. They must not fail."""
    barrier = threading.Barrier(count + 1)
    errors: List[BaseException] = []

    def run(number: int) -> None:
        try:
            barrier.wait(TIMEOUT)
            work(number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(n,), daemon=True) for n in range(count)]
    for thread in threads:
        thread.start()
    barrier.wait(TIMEOUT)
    started = perf_counter()
    for thread in threads:
        thread.join(TIMEOUT)
    if errors:
        raise errors[0]
    return started


class Blocking:
    """A client with ``send`` and ``recv``. Subclasses say how it is opened."""

    def open(self, server: Server, url: str) -> Any:
        """Return a context manager whose value has ``send(message)`` and ``recv()``."""
        raise NotImplementedError

    def prepared(self, message: Any) -> Any:
        """What is handed to ``send`` for a message."""
        return message

    def sender(self, peer: Any, kind: str) -> Callable[[Any], Any]:
        """What sends a message of a kind."""
        send: Callable[[Any], Any] = peer.send
        return send

    def receive(self, server: Server, kind: str, size: int, count: int, tls: bool = False) -> float:
        checker = Checker(kind, size, count)
        with self.open(server, server.url("receive", kind, size, count, tls=tls)) as peer:
            recv, expected, length = peer.recv, checker.next, 0
            gc.collect()
            started = perf_counter()
            peer.send(self.prepared("go"))
            message = recv()
            if checker.whole:
                while message == expected():
                    message = recv()
            else:
                length = len(message)
                while message[-STAMP:] == expected():
                    message = recv()
                    length += len(message)
            taken = perf_counter() - started
        checker.length = length
        checker.finish(message)
        return taken

    def send(self, server: Server, kind: str, size: int, count: int, threads: int = 1) -> float:
        ready = {message: self.prepared(message) for message in block(kind, size)}
        messages = [ready[message] for message in stream(kind, size, count)]
        with self.open(server, server.url("send", kind, size, count)) as peer:
            send = self.sender(peer, kind)

            def work(number: int) -> None:
                for message in messages[number::threads]:
                    send(message)

            gc.collect()
            started = perf_counter()
            if threads == 1:
                work(0)
            else:
                started = in_threads(threads, work)
            check(peer.recv(), DONE)
            taken = perf_counter() - started
            check(peer.recv(), expected_verdict(kind, size, count))
        return taken

    def echo(self, server: Server, size: int, count: int) -> float:
        messages = list(stream(TEXT, size, count))
        ready = [self.prepared(message) for message in messages]
        with self.open(server, server.url("echo")) as peer:
            gc.collect()
            started = perf_counter()
            for message, expected in zip(ready, messages):
                peer.send(message)
                if peer.recv() != expected:
                    raise AssertionError("not what was sent")
            return perf_counter() - started

    def cycles(self, server: Server, size: int, count: int) -> float:
        message = block(TEXT, size)[0]
        ready = self.prepared(message)
        gc.collect()
        started = perf_counter()
        for _ in range(count):
            with self.open(server, server.url("echo")) as peer:
                peer.send(ready)
                check(peer.recv(), message)
        return perf_counter() - started


class RawPeer:
    """A socket after the upgrade. It reads short frames, one at a time."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.send = sock.sendall
        self._file = sock.makefile("rb", buffering=512)

    def recv(self) -> str:
        head = self._file.read(2)
        return self._file.read(head[1]).decode()


class Raw(Blocking):
    """Sockets alone: frames are made beforehand, what comes is not looked into."""

    def prepared(self, message: Any) -> Any:
        return masked(message)

    @contextlib.contextmanager
    def open(self, server: Server, url: str) -> Iterator[RawPeer]:
        scheme, _, rest = url.partition("://")
        address, _, path = rest.partition("/")
        host, _, port = address.partition(":")
        sock = socket.create_connection((host, int(port)))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if scheme == "wss":
            sock = server.context().wrap_socket(sock, server_hostname=host)
        with sock:
            sock.sendall(
                f"GET /{path} HTTP/1.1\r\nHost: {address}\r\nUpgrade: websocket\r\n"
                "Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
                "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".encode()
            )
            head = b""
            while not head.endswith(b"\r\n\r\n"):  # nothing follows before we have asked
                more = sock.recv(4096)
                if not more:
                    raise EOFError
                head += more
            yield RawPeer(sock)
            sock.sendall(b"\x88\x80\0\0\0\0")
            check(sock.recv(16), b"\x88\0")

    def receive(self, server: Server, kind: str, size: int, count: int, tls: bool = False) -> float:
        """Read into the same memory again and again; check the length and the last bytes."""
        total = stream_size(kind, size, count)
        buffer = memoryview(bytearray(b"\1" * RAW_BUFFER))
        last = b""
        with self.open(server, server.url("receive", kind, size, count, tls=tls)) as peer:
            recv_into = peer.sock.recv_into
            gc.collect()
            started = perf_counter()
            peer.send(masked("go"))
            while total:
                got = recv_into(buffer)
                if not got:
                    raise EOFError
                total -= got
                last = (last + bytes(buffer[max(0, got - STAMP) : got]))[-STAMP:]
            taken = perf_counter() - started
        messages = block(kind, size)
        check(last, as_bytes(messages[(count - 1) % len(messages)])[-STAMP:])
        return taken


class Bare(Raw):
    """The least that Python can do for it: nothing is judged, bounded, counted or kept.

    It masks what it sends, with a key of its own for each frame, under a lock that keeps the
    frames of several threads apart. Of what it receives it reads the headers, makes an object of
    each message and calls a function with it. What is received goes from the thread that reads to
    another, as with callbacks on a thread of their own; a connection has a thread that is started
    and joined.
    """

    queued = True  # what one read brings is handed over to another thread
    # What `floor` varies:
    most = RAW_BUFFER  # bytes that are read at a time
    waits = False  # for bytes, with a poll object

    def __init__(self) -> None:
        self._keys: List[bytes] = []

    def prepared(self, message: Any) -> Any:
        return message

    @contextlib.contextmanager
    def open(self, server: Server, url: str) -> Iterator[RawPeer]:
        with super().open(server, url) as peer:
            peer.send = self.sender(peer, TEXT)
            yield peer

    def sender(self, peer: Any, kind: str) -> Callable[[Any], Any]:
        encode, sendall, lock = self._encoder(kind), peer.sock.sendall, threading.Lock()

        def send(message: Any) -> None:
            frame = encode(message)
            with lock:
                sendall(frame)

        return send

    def _encoder(self, kind: str) -> Callable[[Any], bytes]:
        first, keys = 0x82 if kind == BINARY else 0x81, self._keys

        def encode(message: Any) -> bytes:
            payload = message if kind == BINARY else message.encode()
            try:
                key = keys.pop()
            except IndexError:
                data = os.urandom(4096)
                keys.extend(data[i : i + 4] for i in range(0, 4096, 4))
                key = keys.pop()
            if len(payload) < 126:
                head = bytes((first, 0x80 | len(payload)))
            else:
                head = header(first, len(payload), 0x80)
            return head + key + apply_mask(payload, key)

        return encode

    def send_many(self, server: Server, kind: str, size: int, count: int) -> float:
        messages = list(stream(kind, size, count))
        batches = [messages[begin : begin + MANY] for begin in range(0, count, MANY)]
        encode = self._encoder(kind)
        with self.open(server, server.url("send", kind, size, count)) as peer:
            gc.collect()
            started = perf_counter()
            for batch in batches:
                peer.sock.sendall(b"".join([encode(message) for message in batch]))
            check(peer.recv(), DONE)
            taken = perf_counter() - started
            check(peer.recv(), expected_verdict(kind, size, count))
        return taken

    def receive(self, server: Server, kind: str, size: int, count: int, tls: bool = False) -> float:
        """Read every header, make an object of every message, and call a function with it."""
        checker = Checker(kind, size, count)
        total, have = stream_size(kind, size, count), 0
        buffer = memoryview(bytearray(b"\1" * max(self.most, frame_size(size, False))))
        expected, last = checker.next, None
        waits, queued, watched = self.waits, self.queued, select.poll()
        batches: queue.SimpleQueue[Optional[List[Any]]] = queue.SimpleQueue()

        def on_message(message: Any) -> None:
            nonlocal last
            checker.length += len(message)
            if message[-STAMP:] != expected():
                last = message

        def run() -> None:
            for batch in iter(batches.get, None):
                for message in batch:
                    on_message(message)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        with self.open(server, server.url("receive", kind, size, count, tls=tls)) as peer:
            recv_into = peer.sock.recv_into
            watched.register(peer.sock, select.POLLIN)
            gc.collect()
            started = perf_counter()
            peer.send("go")
            while total:
                if waits:
                    watched.poll()
                got = recv_into(buffer[have:])
                if not got:
                    raise EOFError
                have += got
                total -= got
                at = 0
                messages: List[Any] = []
                while have - at >= 10:  # no frame has less, no header more
                    start, length = at + 2, buffer[at + 1]
                    if length == 126:
                        start, length = at + 4, buffer[at + 2] << 8 | buffer[at + 3]
                    elif length == 127:
                        start, length = at + 10, int.from_bytes(buffer[at + 2 : at + 10], "big")
                    stop = start + length
                    if stop > have:
                        break
                    payload = buffer[start:stop]
                    message = bytes(payload) if buffer[at] == 0x82 else str(payload, "utf-8")
                    at = stop
                    if queued:
                        messages.append(message)
                    else:
                        on_message(message)
                have -= at
                buffer[:have] = buffer[at : at + have]
                if messages:
                    batches.put(messages)
            batches.put(None)
            thread.join(TIMEOUT)
            taken = perf_counter() - started
        checker.finish(last)
        return taken

    def echo(self, server: Server, size: int, count: int) -> float:
        messages = list(stream(TEXT, size, count))
        with self.open(server, server.url("echo")) as peer:
            received: queue.SimpleQueue[str] = queue.SimpleQueue()

            def read() -> None:
                for _ in messages:
                    received.put(peer.recv())

            thread = threading.Thread(target=read, daemon=True)
            thread.start()
            gc.collect()
            started = perf_counter()
            for message in messages:
                peer.send(message)
                if received.get(timeout=TIMEOUT) != message:
                    raise AssertionError("not what was sent")
            taken = perf_counter() - started
            thread.join(TIMEOUT)
        return taken

    def cycles(self, server: Server, size: int, count: int) -> float:
        message = block(TEXT, size)[0]
        gc.collect()

        def work(_: int) -> None:
            with self.open(server, server.url("echo")) as peer:
                peer.send(message)
                check(peer.recv(), message)

        started = perf_counter()
        for _ in range(count):
            in_threads(1, work)
        return perf_counter() - started


class BareInline(Bare):
    """The same where the thread that reads answers as well."""

    queued = False

    def echo(self, server: Server, size: int, count: int) -> float:
        messages = list(stream(TEXT, size, count))
        with self.open(server, server.url("echo")) as peer:
            sock, send, watched = peer.sock, peer.send, select.poll()
            sock.setblocking(False)
            watched.register(sock, select.POLLIN)  # a thread that can be woken waits like this
            gc.collect()
            started = perf_counter()
            for message in messages:
                send(message)
                watched.poll(TIMEOUT * 1000)
                if sock.recv(4096)[2:].decode() != message:
                    raise AssertionError("not what was sent")
            taken = perf_counter() - started
            sock.setblocking(True)
        return taken


class WebsocketClient(Blocking):
    def __init__(self) -> None:
        self._library = importlib.import_module("websocket")

    def open(self, server: Server, url: str) -> Any:
        options: Dict[str, Any] = {
            "http_no_proxy": ["127.0.0.1"],
            "timeout": TIMEOUT,
            # What it validates byte by byte in Python it decodes afterwards in any case.
            "skip_utf8_validation": True,
        }
        if url.startswith("wss"):
            options["sslopt"] = {"context": server.context()}
        return contextlib.closing(self._library.create_connection(url, **options))

    def sender(self, peer: Any, kind: str) -> Callable[[Any], Any]:
        send: Callable[[Any], Any] = peer.send_binary if kind == BINARY else peer.send
        return send


class Websockets(Blocking):
    def __init__(self) -> None:
        self._library = importlib.import_module("websockets.sync.client")

    def open(self, server: Server, url: str) -> Any:
        context: Optional[ssl.SSLContext] = server.context() if url.startswith("wss") else None
        return self._library.connect(
            url, ssl=context, compression=None, max_size=None, ping_interval=None, proxy=None
        )


class WebsocketRs(Blocking):
    def __init__(self) -> None:
        self._library = importlib.import_module("websocket_rs.sync.client")

    def open(self, server: Server, url: str) -> Any:
        return self._library.connect(url, receive_timeout=TIMEOUT)
