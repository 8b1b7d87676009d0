"""Throughput of compressed JSON, beside ``websockets.sync`` and beside zlib alone.

    python -m pip install '.[test]' -r tests/benchmarks/requirements.txt
    python -m tests.benchmarks.compression

Both clients compress with the same parameters and take turns with one server, which has a
process of its own. It sends what it compressed beforehand, and it inflates and checks what it
gets. Each round is a connection of its own; the median of the rounds counts. What is received is
compared with what was expected: in a callback (default dispatcher) here, after ``recv()`` there.

"zlib" is zlib alone, on the same messages with the same parameters and in one thread: no client
that compresses in one thread can be faster than that.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import platform
import random
import statistics
import threading
import time
import zlib
from typing import Any, Callable, Dict, List, Tuple

import websockets
from websockets.extensions.permessage_deflate import ClientPerMessageDeflateFactory
from websockets.sync.client import connect

import wsthread
from tests.support import RawConnection, RawServer, frame, in_process

LEVEL, MEMORY_LEVEL, BITS = 6, 5, 15
SIZES = {1 << 10: 6000, 1 << 14: 2000, 1 << 20: 40}  # bytes of a message: messages in a round
TIMEOUT = 120.0
TAIL = b"\x00\x00\xff\xff"
RSV1 = 0x40


@functools.cache
def messages(size: int) -> List[str]:
    """The messages of a round: JSON of just this size, all different."""
    chosen = random.Random(size)
    made = []
    for _ in range(SIZES[size]):
        rows: List[Any] = []
        length = 2
        while length < size:
            row = {
                "id": chosen.randrange(10**9),
                "symbol": chosen.choice(["BTC-EUR", "ETH-EUR", "ETH-BTC"]),
                "side": chosen.choice(["buy", "sell"]),
                "price": round(chosen.uniform(1, 60_000), 2),
            }
            rows.append(row)
            length += len(json.dumps(row)) + 2
        text = json.dumps(rows)
        made.append(text[:size].ljust(size))
    return made


def compressor() -> Any:
    return zlib.compressobj(LEVEL, zlib.DEFLATED, -BITS, MEMORY_LEVEL)


def deflated(encoder: Any, text: str) -> bytes:
    data = encoder.compress(text.encode()) + encoder.flush(zlib.Z_SYNC_FLUSH)
    return bytes(data[:-4])


@functools.cache
def stream(size: int) -> bytes:
    """All of a round's messages, as a server's frames."""
    encoder = compressor()
    return b"".join(frame(1, deflated(encoder, text), rsv=RSV1) for text in messages(size))


# The server.


def take(connection: RawConnection, size: int) -> str:
    """Read a round of compressed messages; return how many there were, and their checksum."""
    decoder, count, checksum = zlib.decompressobj(-BITS), 0, 0
    while count < SIZES[size]:
        opcode, payload = connection.read_frame()
        if opcode == 1:
            data = decoder.decompress(payload + TAIL)
            checksum = zlib.crc32(data, checksum)
            count += 1
    return f"{count} {checksum}"


def serve_one(connection: RawConnection) -> None:
    head = connection.upgrade(headers=b"Sec-WebSocket-Extensions: permessage-deflate\r\n")
    direction, size = head.split()[1].decode().strip("/").split("/")
    if direction == "receive":
        data = stream(int(size))
        connection.read_frame()
        connection.sock.sendall(data)
    else:
        connection.sock.sendall(frame(1, take(connection, int(size)).encode()))
    with contextlib.suppress(EOFError):
        connection.answer_close()


def serve(pipe: Any) -> None:
    for size in SIZES:
        stream(size)
    with RawServer(serve_one) as server:
        pipe.send(server.port)
        with contextlib.suppress(EOFError):
            pipe.recv()


# The clients. Each returns the seconds of a round.


def expected_answer(size: int) -> str:
    checksum = functools.reduce(lambda crc, text: zlib.crc32(text.encode(), crc), messages(size), 0)
    return f"{SIZES[size]} {checksum}"


def checked(message: Any, expected: str) -> None:
    if message != expected:
        raise AssertionError(f"{len(message)} characters that were not expected")


class Waiter(wsthread.WebSocketDelegate):
    """Compares what comes with what is expected."""

    def __init__(self, expected: List[str]) -> None:
        self._expected = iter(expected)
        self._left = len(expected)
        self.done = threading.Event()

    def on_message(self, client: Any, message: Any) -> None:
        checked(message, next(self._expected))
        self._left -= 1
        if not self._left:
            self.done.set()

    def on_error(self, client: Any, error: BaseException) -> None:
        print("error:", repr(error))


@contextlib.contextmanager
def wsthread_client(url: str, expected: List[str]) -> Any:
    offer = wsthread.Deflate(level=LEVEL, memory_level=MEMORY_LEVEL, threshold=0)
    waiter = Waiter(expected)
    with wsthread.WebSocketClient(url, waiter, compression=offer, proxy=None) as client:
        assert client.extensions == ("permessage-deflate",)
        yield client, waiter


def wsthread_send(url: str, size: int) -> float:
    chosen = messages(size)
    with wsthread_client(url, [expected_answer(size)]) as (client, waiter):
        started = time.perf_counter()
        for text in chosen:
            client.send(text)
        assert waiter.done.wait(TIMEOUT), "no answer, or not the right one"
        return time.perf_counter() - started


def wsthread_receive(url: str, size: int) -> float:
    with wsthread_client(url, messages(size)) as (client, waiter):
        started = time.perf_counter()
        client.send("go")
        assert waiter.done.wait(TIMEOUT), "not all of it came"
        return time.perf_counter() - started


def websockets_client(url: str) -> Any:
    settings = {"level": LEVEL, "memLevel": MEMORY_LEVEL}
    factory = ClientPerMessageDeflateFactory(
        client_max_window_bits=BITS, compress_settings=settings
    )
    return connect(url, extensions=[factory], compression=None, max_size=None, proxy=None)


def websockets_send(url: str, size: int) -> float:
    chosen, answer = messages(size), expected_answer(size)
    with websockets_client(url) as client:
        assert len(client.protocol.extensions) == 1
        started = time.perf_counter()
        for text in chosen:
            client.send(text)
        checked(client.recv(TIMEOUT), answer)
        return time.perf_counter() - started


def websockets_receive(url: str, size: int) -> float:
    expected = messages(size)
    with websockets_client(url) as client:
        assert len(client.protocol.extensions) == 1
        started = time.perf_counter()
        client.send("go")
        for text in expected:
            checked(client.recv(TIMEOUT), text)
        return time.perf_counter() - started


def zlib_send(url: str, size: int) -> float:
    chosen, encoder = messages(size), compressor()
    started = time.perf_counter()
    for text in chosen:
        deflated(encoder, text)
    return time.perf_counter() - started


def zlib_receive(url: str, size: int) -> float:
    encoder = compressor()
    payloads = [deflated(encoder, text) + TAIL for text in messages(size)]
    decoder = zlib.decompressobj(-BITS)
    started = time.perf_counter()
    for payload, text in zip(payloads, messages(size)):
        checked(decoder.decompress(payload).decode(), text)
    return time.perf_counter() - started


RUNS: Dict[str, List[Tuple[str, Callable[[str, int], float]]]] = {
    "send": [
        ("wsthread", wsthread_send),
        ("websockets", websockets_send),
        ("zlib", zlib_send),
    ],
    "receive": [
        ("wsthread", wsthread_receive),
        ("websockets", websockets_receive),
        ("zlib", zlib_receive),
    ],
}


def measure(rounds: int) -> List[Dict[str, Any]]:
    """Return a row for each size and direction: MB/s of what the messages are before zlib."""
    rows = []
    with in_process(serve) as port:
        for size, count in SIZES.items():
            for direction, runs in RUNS.items():
                seconds: Dict[str, List[float]] = {name: [] for name, _ in runs}
                for number in range(rounds + 1):
                    # They take turns, and in being first as well.
                    for name, run in runs if number % 2 else runs[::-1]:
                        taken = run(f"ws://127.0.0.1:{port}/{direction}/{size}", size)
                        if number:  # the first warms up
                            seconds[name].append(taken)
                median = {name: statistics.median(taken) for name, taken in seconds.items()}
                rows.append(
                    {
                        "size": size,
                        "direction": direction,
                        **{name: size * count / taken / 1e6 for name, taken in median.items()},
                        "ratio": median["websockets"] / median["wsthread"],
                    }
                )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.compression")
    parser.add_argument("--rounds", type=int, default=7, help="default: 7")
    options = parser.parse_args()
    print(
        f"wsthread {wsthread.__version__}, websockets {websockets.__version__}, "
        f"CPython {platform.python_version()}, zlib {zlib.ZLIB_RUNTIME_VERSION}, "
        f"level {LEVEL}, memory level {MEMORY_LEVEL}, windows of {BITS} bits; MB/s"
    )
    print("   bytes  direction  wsthread  websockets    zlib  wsthread/websockets")
    for row in measure(options.rounds):
        print(
            f"{row['size']:>8}  {row['direction']:>9}  {row['wsthread']:>8.1f}  "
            f"{row['websockets']:>10.1f}  {row['zlib']:>6.1f}  {row['ratio']:>19.2f}"
        )


if __name__ == "__main__":
    main()
