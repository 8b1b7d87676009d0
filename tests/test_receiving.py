"""Whatever comes, in whatever pieces, wherever callbacks run: all of it arrives, in order."""

from __future__ import annotations

import random
import threading
import time
import zlib
from typing import Any, List, Union

import pytest

import wsthread
from tests.support import SOON, Certificates, RawConnection, RawServer, close_frame, frame, make
from tests.test_dispatchers import KINDS, Rig
from tests.test_sending import switching

TEXT, BINARY, CLOSE, PING = 1, 2, 8, 9
RSV1 = 0x40
#: Least and most characters of a message, and how many messages.
SHAPES = [
    (0, 1, 2000),
    (60, 60, 2000),
    (0, 130, 500),
    (0, 2000, 300),
    (0, 70_000, 40),
    (0, 900_000, 9),
]
#: What is sent at a time.
CHUNKS = {"at once": 1 << 30, "large": 300_000, "small": 4000, "tiny": 50}
EXTENSION = b"Sec-WebSocket-Extensions: permessage-deflate\r\n"

Message = Union[str, bytes]


@pytest.fixture(scope="module")
def certificates() -> Certificates:
    return Certificates()


class Stream:
    """A random stream of frames, and the messages in it."""

    def __init__(self, chosen: random.Random) -> None:
        self.messages: List[Message] = []
        self.compressed = chosen.random() < 0.4
        self._chosen = chosen
        self._encoder = zlib.compressobj(wbits=-15)
        least, most, count = chosen.choice(SHAPES)
        made = [self._message(chosen.randint(least, most)) for _ in range(count)]
        self.bytes = b"".join(made) + close_frame()

    def _message(self, size: int) -> bytes:
        if self._chosen.random() < 0.5:
            text = self._chosen.choice("aé世") * size
            self.messages.append(text)
            return self._frames(TEXT, text.encode())
        data = self._chosen.randbytes(size)
        self.messages.append(data)
        return self._frames(BINARY, data)

    def _frames(self, opcode: int, data: bytes) -> bytes:
        chosen, rsv = self._chosen, 0
        if self.compressed and chosen.random() < 0.7:
            data = self._encoder.compress(data) + self._encoder.flush(zlib.Z_SYNC_FLUSH)
            data, rsv = data[:-4], RSV1
        cuts = sorted(chosen.choices(range(len(data) + 1), k=chosen.choice([0, 0, 0, 1, 3])))
        parts = [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)])]
        made = frame(opcode, parts[0], len(parts) == 1, rsv)
        for number, part in enumerate(parts[1:], 2):
            if chosen.random() < 0.1:
                made += frame(PING, b"between")
            made += frame(0, part, number == len(parts))
        return made


class Collector:
    """Collects messages, some of them slowly."""

    def __init__(self, seed: int) -> None:
        self.messages: List[Message] = []
        self.ends: List[Any] = []
        self.closed = threading.Event()
        self._chosen = random.Random(seed)

    def on_message(self, client: Any, message: Message) -> None:
        self.messages.append(message)
        if self._chosen.random() < 0.005:
            time.sleep(0.002)

    def on_error(self, client: Any, error: BaseException) -> None:
        self.ends.append(error)

    def on_close(self, client: Any, code: int, reason: str) -> None:
        self.ends.append(code)
        self.closed.set()


class Joiner(Collector):
    """Joins fragments, and hears of pings."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self._parts: List[Any] = []

    def on_fragment(self, client: Any, data: Message, opcode: int, final: bool) -> None:
        self._parts.append(data)
        if final:
            empty: Any = "" if opcode == TEXT else b""
            self.on_message(client, empty.join(self._parts))
            self._parts.clear()

    def on_ping(self, client: Any, payload: bytes) -> None:
        assert payload == b"between"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "runs", [5, pytest.param(150, marks=(pytest.mark.thorough, pytest.mark.timeout(600)))]
)
def test_promise_08_all_that_came_is_told_in_order(
    kind: str, runs: int, certificates: Certificates
) -> None:
    for seed in range(runs):
        live(kind, seed, certificates)


def live(kind: str, seed: int, certificates: Certificates) -> None:
    chosen = random.Random(f"{kind} {seed}")
    stream = Stream(chosen)
    step = max(CHUNKS[chosen.choice(sorted(CHUNKS))], len(stream.bytes) // 2000)

    def script(connection: RawConnection) -> None:
        connection.upgrade(headers=EXTENSION if stream.compressed else b"")
        connection.sock.settimeout(SOON * 2)
        for start in range(0, len(stream.bytes), step):
            connection.sock.sendall(stream.bytes[start : start + step])
        while connection.read_frame()[0] != CLOSE:
            pass

    limit = wsthread.QueueLimit(
        messages=chosen.choice([1, 3, 64, 16384]), bytes=chosen.choice([1, 1000, 100_000, 1 << 24])
    )
    secure = chosen.random() < 0.3
    collector = chosen.choice([Collector, Collector, Joiner])(seed)
    context = certificates.server_context() if secure else None
    rig = Rig(kind)
    try:
        with switching(chosen.choice([1e-6, 1e-4, 5e-3])), RawServer(script, context) as server:
            client = make(
                server.url,
                collector,
                certificates=certificates,
                dispatcher=rig.dispatcher,
                receive_queue=limit,
                compression="deflate" if stream.compressed else None,
                ping_interval=None,
            )
            client.connect()
            closed = collector.closed.wait(SOON * 2)
            assert client.disconnect()
    finally:
        rig.close()
    situation = (kind, seed, limit, stream.compressed, secure, step, client.stats)
    assert closed, situation
    assert collector.messages == stream.messages, situation
    assert collector.ends == [1000], situation
