"""permessage-deflate from end to end: clients against raw peers and a real server."""

from __future__ import annotations

import contextlib
import json
import queue
import random
import socket
import threading
import time
import zlib
from typing import Any, Iterator, List, Optional, Tuple

import pytest

import wsthread
from tests.support import (
    SOON,
    Certificates,
    RawConnection,
    RawServer,
    Recorder,
    frame,
)
from wsthread import Deflate

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10
RSV1, RSV2, RSV3 = 0x40, 0x20, 0x10
MIB = 1 << 20
NAME = "permessage-deflate"
TAIL = b"\x00\x00\xff\xff"
ALL = Deflate(threshold=0)  # every message is compressed


def answer(extensions: str) -> bytes:
    return b"Sec-WebSocket-Extensions: " + extensions.encode() + b"\r\n"


def records(count: int, seed: int = 0) -> str:
    chosen = random.Random(seed)
    return json.dumps(
        [{"id": chosen.randrange(10**9), "price": chosen.random()} for _ in range(count)]
    )


class Peer:
    """The server's end of a connection with compression: zlib used plainly."""

    def __init__(
        self, connection: RawConnection, extensions: str = NAME, send_buffer: int = 0
    ) -> None:
        self.connection = connection
        if send_buffer:
            connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        head = connection.upgrade(headers=answer(extensions))
        assert f"Sec-WebSocket-Extensions: {NAME}".lower().encode() in head.lower()
        self._reset = "client_no_context_takeover" in extensions
        self._inflater = zlib.decompressobj(-15)
        self._deflater = zlib.compressobj(wbits=-15)

    def read_raw(self) -> Tuple[int, int, bytes]:
        """The next frame: its bits, its opcode, its payload as it is on the wire."""
        first, second = self.connection._exactly(2)
        assert second & 0x80, "a client's frame is masked"
        length = second & 0x7F
        if length >= 126:
            size = 2 if length == 126 else 8
            length = int.from_bytes(self.connection._exactly(size), "big")
        key = self.connection._exactly(4)
        payload = self.connection._exactly(length)
        repeated = (key * (length // 4 + 1))[:length]
        plain = int.from_bytes(payload, "big") ^ int.from_bytes(repeated, "big")
        return first & 0xF0, first & 0x0F, plain.to_bytes(length, "big")

    def inflate(self, payload: bytes) -> bytes:
        data = self._inflater.decompress(payload + TAIL)
        assert not self._inflater.unconsumed_tail
        if self._reset:
            self._inflater = zlib.decompressobj(-15)
        return data

    def read(self) -> Tuple[int, bytes]:
        """The next frame, inflated where it is marked as compressed."""
        bits, opcode, payload = self.read_raw()
        assert bits in (0x80, 0x80 | RSV1), "one frame a message, no other reserved bits"
        return opcode, self.inflate(payload) if bits & RSV1 else payload

    def deflate(self, payload: bytes) -> bytes:
        data = self._deflater.compress(payload) + self._deflater.flush(zlib.Z_SYNC_FLUSH)
        return data[:-4]

    def send(self, payload: bytes, opcode: int = TEXT) -> None:
        self.connection.sock.sendall(frame(opcode, self.deflate(payload), rsv=RSV1))

    def answer_close(self) -> Tuple[int, bytes]:
        return self.connection.answer_close()


@contextlib.contextmanager
def opened(url: str, delegate: Any = None, **options: Any) -> Iterator[wsthread.WebSocketClient]:
    options.setdefault("reconnect", False)
    client = wsthread.WebSocketClient(url, delegate, **options)
    try:
        client.connect()
        yield client
    finally:
        client.abort()


@contextlib.contextmanager
def driven(
    delegate: Any = None,
    extensions: str = NAME,
    context: Any = None,
    receive_buffer: Optional[int] = None,
    **options: Any,
) -> Iterator[Tuple[wsthread.WebSocketClient, Peer]]:
    """An open client and its peer, which the test drives on its own thread."""
    peers: queue.Queue[Peer] = queue.Queue()
    released = threading.Event()

    def script(connection: RawConnection) -> None:
        peers.put(Peer(connection, extensions))
        assert released.wait(SOON * 3)

    with RawServer(script, context, receive_buffer) as server:
        try:
            with opened(server.url, delegate, **options) as client:
                yield client, peers.get(timeout=SOON)
        finally:
            released.set()


# The reader is not blocked.


@pytest.fixture(scope="module")
def certificates() -> Certificates:
    return Certificates()


@pytest.mark.parametrize("kind", ["plain", "tls"])
def test_pings_are_answered_while_another_thread_compresses(
    kind: str, certificates: Certificates
) -> None:
    delegate = Recorder()
    options: Any = {"compression": Deflate(level=6)}
    if kind == "tls":
        options["context"] = certificates.server_context()
        options["ssl_context"] = certificates.client_context()
    chosen = random.Random(1)
    words = [chosen.randbytes(5).hex().encode() for _ in range(5000)]
    big = b" ".join(chosen.choices(words, k=100_000))[:MIB] * 16  # takes a second or two
    assert len(big) == 16 * MIB
    with driven(delegate, **options) as (client, peer):
        thread = threading.Thread(target=client.send, args=(big,))
        thread.start()
        order: List[Any] = []
        started = time.monotonic()
        while not order or order[-1][0] != BINARY:
            peer.connection.sock.sendall(frame(PING, b"%d" % len(order)))
            opcode, payload = peer.read()
            order.append((opcode, payload, time.monotonic() - started))
        thread.join(SOON)
        assert not thread.is_alive()
        pongs = [entry for entry in order if entry[0] == PONG]
        assert order[-1][1] == big
        assert [payload for _, payload, _ in pongs] == [b"%d" % n for n in range(len(pongs))]
        # Each was asked for after the one before had come: far more than fit before or after.
        assert len(pongs) >= 10, order[-1][2]
