"""The server: raw sockets in a process of its own, and as little work as can be.

The path of the URL says what it does:

``/receive/KIND/SIZE/COUNT``
    For each message that comes, sends COUNT messages whose frames were made beforehand.
``/send/KIND/SIZE/COUNT``
    Reads as many bytes as COUNT messages take into memory that is there already, says "done" at
    once, and only then looks into them and says what it found.
``/echo``
    Sends back what comes, one short message at a time.
``/idle``
    Answers pings.

All of them answer a close frame.
"""

from __future__ import annotations

import contextlib
import functools
import selectors
import socket
import ssl
import threading
import zlib
from typing import Any, Callable, Dict, List, Optional, Tuple

from tests.support import RawConnection, frame

from .messages import apply_mask, as_bytes, block, frame_size, header, masked, stream_size, verdict

DONE = "done"


@functools.lru_cache(maxsize=4)
def frames(kind: str, size: int) -> bytes:
    first = 0x82 if kind == "binary" else 0x81
    payloads = map(as_bytes, block(kind, size))
    return b"".join(header(first, len(payload)) + payload for payload in payloads)


def receive(connection: RawConnection, kind: str, size: str, count: str) -> None:
    """What the client receives."""
    data = frames(kind, int(size))
    rounds, rest = divmod(int(count), len(block(kind, int(size))))
    tail = memoryview(data)[: stream_size(kind, int(size), rest)]
    sock = opened(connection)
    while wait_for_start(connection):
        for _ in range(rounds):
            sock.sendall(data)
        sock.sendall(tail)


def wait_for_start(connection: RawConnection) -> bool:
    """Wait for a message; answer a close frame and return False where that comes instead."""
    opcode, payload = connection.read_frame()
    if opcode == 8:
        connection.sock.sendall(frame(8, payload))
    return opcode != 8


def send(connection: RawConnection, kind: str, size: str, count: str) -> None:
    """What the client sends."""
    total = int(count) * frame_size(int(size), True)
    buffer = bytearray(b"\1") * total  # not zeros, whose memory would be there only when used
    view = memoryview(buffer)
    sock = opened(connection)
    have = 0
    while have < total:
        got = sock.recv_into(view[have:])
        if not got:
            raise EOFError
        have += got
    sock.sendall(frame(1, DONE.encode()))
    found = judge(view, masked(block(kind, int(size))[0])[:2], int(size))
    sock.sendall(frame(1, found.encode()))
    connection.answer_close()


def judge(view: memoryview, head: bytes, size: int) -> str:
    """Look at frames that are all of one length; tell their number and checksum."""
    length = frame_size(size, True)
    start = length - size
    checksum = 0
    for begin in range(0, len(view), length):
        if view[begin : begin + 2] != head:
            return f"no frame of {size} bytes at {begin}"
        key = view[begin + start - 4 : begin + start]
        checksum += zlib.crc32(apply_mask(view[begin + start : begin + length], key))
    return verdict(len(view) // length, checksum)


def echo(connection: RawConnection) -> None:
    sock = opened(connection)
    opcode = 0
    while opcode != 8:
        data = sock.recv(4096)
        while data and (len(data) < 2 or len(data) < 6 + (data[1] & 0x7F)):
            more = sock.recv(4096)
            data = data + more if more else b""
        if not data:
            raise EOFError
        opcode = data[0] & 0x0F
        if len(data) != 6 + (data[1] & 0x7F):
            raise ValueError("not one short frame")
        answer = bytes((data[0], data[1] & 0x7F)) + apply_mask(data[6:], data[2:6])
        sock.sendall(answer)


class Keeper:
    """Looks after all idle connections on one thread."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        threading.Thread(target=self._run, daemon=True).start()

    def take(self, connection: RawConnection) -> None:
        self._selector.register(opened(connection), selectors.EVENT_READ, connection)

    def _run(self) -> None:
        while True:
            for key, _ in self._selector.select():
                if not self._answered(key.data):
                    self._selector.unregister(key.fileobj)
                    key.data.sock.close()

    def _answered(self, connection: RawConnection) -> bool:
        """Answer what is there; return whether the connection goes on."""
        try:
            while True:
                opcode, payload = connection.read_frame()
                connection.sock.sendall(frame(10 if opcode == 9 else 8, payload))
                if opcode != 9:
                    return False
                if not connection.buffered:
                    return True
        except (EOFError, OSError):
            return False  # it has gone without a word


def opened(connection: RawConnection) -> socket.socket:
    """Answer the upgrade request, which was read; return the socket, which now waits for ever."""
    sock = connection.sock
    sock.sendall(connection.accept_head(connection.head) + b"\r\n")
    sock.settimeout(None)
    return sock


SERVICES: Dict[str, Callable[..., None]] = {"receive": receive, "send": send, "echo": echo}


def converse(sock: socket.socket, context: Optional[ssl.SSLContext], keeper: Keeper) -> None:
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if context is not None:
            sock = context.wrap_socket(sock, server_side=True)
        connection = RawConnection(sock)
        target = connection.read_head().split()[1].decode()
        service, *arguments = target.strip("/").split("/")
        if service == "idle":
            keeper.take(connection)
            return
        SERVICES[service](connection, *arguments)
    except (EOFError, ConnectionError, ssl.SSLError):
        pass  # the client ended first; it knows what it missed
    sock.close()


def accept(listener: socket.socket, context: Optional[ssl.SSLContext], keeper: Keeper) -> None:
    while True:
        sock, _ = listener.accept()
        threading.Thread(target=converse, args=(sock, context, keeper), daemon=True).start()


def serve(pipe: Any, pem: str) -> None:
    """Serve until the pipe ends; send the ports without and with TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    keeper = Keeper()
    listeners: List[Tuple[socket.socket, Optional[ssl.SSLContext]]] = []
    for chosen in (None, context):
        listener = socket.create_server(("127.0.0.1", 0), backlog=256)
        listeners.append((listener, chosen))
        threading.Thread(target=accept, args=(listener, chosen, keeper), daemon=True).start()
    pipe.send([listener.getsockname()[1] for listener, _ in listeners])
    with contextlib.suppress(EOFError):
        pipe.recv()
