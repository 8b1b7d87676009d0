"""permessage-deflate (RFC 7692) from end to end: real clients, and peers that use zlib plainly."""

from __future__ import annotations

import contextlib
import gc
import json
import queue
import random
import socket
import subprocess
import sys
import threading
import time
import tracemalloc
import weakref
import zlib
from typing import Any, Callable, Iterator, List, Optional, Tuple

import pytest

import wsthread
from tests.interop_server import python_server
from tests.support import (
    SOON,
    Certificates,
    RawConnection,
    RawServer,
    close_frame,
    frame,
    raw_process,
)
from tests.test_release import Echo, assert_nothing_grows
from tests.test_sending import STORM
from wsthread import Deflate, deflate
from wsthread.testing import RecordingDelegate

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


# Offer and answer (section 7).

OFFERS = [
    Deflate(server_max_window_bits=10, client_max_window_bits=None),
    Deflate(server_no_context_takeover=True),
    Deflate(client_no_context_takeover=True, client_max_window_bits=12),
]


def connect_to(extensions: Optional[str], compression: Any) -> Tuple[bytes, List[str]]:
    """Connect; return the request's head and what the client says was agreed."""
    heads: List[bytes] = []

    def script(connection: RawConnection) -> None:
        headers = b"" if extensions is None else answer(extensions)
        heads.append(connection.upgrade(headers=headers))
        connection.read_to_end()

    with RawServer(script) as server, opened(server.url, compression=compression) as client:
        agreed = list(client.extensions)
    return heads[0], agreed


def offered(head: bytes) -> List[str]:
    lines = head.decode().split("\r\n")
    found = [
        line.split(":", 1)[1] for line in lines if line.lower().startswith("sec-websocket-ext")
    ]
    return [part.strip() for line in found for part in line.split(",")]


@pytest.mark.parametrize(
    ("compression", "elements"),
    [
        ("deflate", [f"{NAME}; client_max_window_bits"]),
        (None, []),
        (
            OFFERS,
            [
                f"{NAME}; server_max_window_bits=10",
                f"{NAME}; server_no_context_takeover; client_max_window_bits",
                f"{NAME}; client_no_context_takeover; client_max_window_bits=12",
            ],
        ),
    ],
)
def test_offers_are_made_in_order(compression: Any, elements: List[str]) -> None:
    head, extensions = connect_to(None, compression)
    assert offered(head) == elements
    assert extensions == []


@pytest.mark.parametrize(
    ("extensions", "agreed"),
    [
        (NAME, f"{NAME}; client_no_context_takeover; client_max_window_bits=12"),
        (f"{NAME}; server_max_window_bits=9", f"{NAME}; server_max_window_bits=9"),
        (f'{NAME}; server_max_window_bits="9"', f"{NAME}; server_max_window_bits=9"),
        (
            f"{NAME}; server_no_context_takeover; client_max_window_bits=9",
            f"{NAME}; server_no_context_takeover; client_max_window_bits=9",
        ),
        (
            f"{NAME}; client_max_window_bits=15",
            f"{NAME}; client_no_context_takeover; client_max_window_bits=12",
        ),
    ],
)
def test_what_was_agreed_is_told(extensions: str, agreed: str) -> None:
    """By the first offer that the answer fits."""
    assert connect_to(extensions, OFFERS)[1] == [agreed]


REFUSED = [
    ("x-webkit-deflate-frame", "deflate", "not offered"),
    (NAME, None, "not offered"),
    (f"{NAME}, {NAME}", "deflate", "twice"),
    (f"{NAME}; server_no_context_takeover; server_no_context_takeover", "deflate", "twice"),
    (f"{NAME}; client_no_context_takeover=1", "deflate", "no value"),
    (f"{NAME}; server_max_window_bits=7", "deflate", "8 to 15"),
    (f"{NAME}; server_max_window_bits=16", "deflate", "8 to 15"),
    (f"{NAME}; server_max_window_bits=012", "deflate", "8 to 15"),
    (f"{NAME}; server_max_window_bits", "deflate", "8 to 15"),
    (f"{NAME}; client_max_window_bits", "deflate", "8 to 15"),
    (f"{NAME}; window_bits=12", "deflate", "unknown"),
    (f"{NAME}; client_max_window_bits=12", Deflate(client_max_window_bits=None), "not offered"),
    (f"{NAME}; server_max_window_bits=11", Deflate(server_max_window_bits=10), "at most 10"),
    (NAME, Deflate(server_max_window_bits=10), "at most 10"),
    (NAME, Deflate(server_no_context_takeover=True), "asked for"),
]


@pytest.mark.parametrize(("extensions", "compression", "why"), REFUSED)
def test_an_answer_that_fits_no_offer_fails_the_opening(
    extensions: str, compression: Any, why: str
) -> None:
    with pytest.raises(wsthread.HandshakeError) as caught:
        connect_to(extensions, compression)
    assert extensions in str(caught.value)
    assert why in str(caught.value)


def test_agreed_windows_are_kept() -> None:
    """A peer with a window of 512 bytes reads what is sent, and the client what it sends."""
    bits = f"{NAME}; client_max_window_bits=9; server_max_window_bits=9"
    delegate = RecordingDelegate()
    compression = Deflate(threshold=0, server_max_window_bits=9)
    with driven(delegate, bits, compression=compression) as (client, peer):
        peer._inflater = zlib.decompressobj(-9)
        peer._deflater = zlib.compressobj(wbits=-9)
        for number in range(20):
            text = records(50, number % 3)
            client.send(text)
            assert peer.read() == (TEXT, text.encode())
            peer.send(text.encode())
            assert delegate.wait_for("message", count=number + 1)[1] == text


# What is compressed, and how.


def test_small_messages_go_uncompressed() -> None:
    with driven(compression=Deflate(threshold=100)) as (client, peer):
        for size, bits in ((0, 0x80), (99, 0x80), (100, 0xC0), (20, 0x80), (70_000, 0xC0)):
            client.send(b"a" * size)
            found, opcode, payload = peer.read_raw()
            assert (found, opcode) == (bits, BINARY)
            assert (peer.inflate(payload) if bits & RSV1 else payload) == b"a" * size


def test_without_a_threshold_an_empty_message_is_compressed() -> None:
    with driven(compression=ALL) as (client, peer):
        for message in ("", b"", "a"):
            client.send(message)
            bits, _, payload = peer.read_raw()
            assert bits == 0xC0
            assert peer.inflate(payload).decode() == ("a" if message else "")


def test_without_context_takeover_every_message_stands_alone() -> None:
    extensions = f"{NAME}; client_no_context_takeover; server_no_context_takeover"
    delegate = RecordingDelegate()
    with driven(delegate, extensions, compression=ALL) as (client, peer):
        for number, size in enumerate((30, 30, 3000)):  # the last is large
            text = records(size)
            client.send(text)
            assert peer.read() == (TEXT, text.encode())  # inflates each on its own
            peer._deflater = zlib.compressobj(wbits=-15)
            peer.send(text.encode())
            assert delegate.wait_for("message", count=number + 1)[1] == text


def test_context_takeover_shrinks_what_was_sent_before() -> None:
    with driven(compression=ALL) as (client, peer):
        sizes = []
        for _ in range(2):
            client.send(records(100))
            _, _, payload = peer.read_raw()
            assert peer.inflate(payload).decode() == records(100)
            sizes.append(len(payload))
        assert sizes[1] < sizes[0] / 10


def test_messages_of_many_threads_are_compressed_in_the_order_of_their_frames() -> None:
    threads, count = 6, 120
    with driven(compression=Deflate(threshold=64)) as (client, peer):

        def message(thread: int, number: int) -> str:
            size = 4000 if number % 40 == 17 else number % 30
            return f"{thread} {number} " + records(size, number % 5)

        def send(thread: int) -> None:
            for number in range(count):
                client.send(message(thread, number))

        senders = [threading.Thread(target=send, args=(thread,)) for thread in range(threads)]
        for sender in senders:
            sender.start()
        seen = [0] * threads
        for _ in range(threads * count):
            text = peer.read()[1].decode()
            thread = int(text.split()[0])
            assert text == message(thread, seen[thread])
            seen[thread] += 1
        for sender in senders:
            sender.join(SOON)
        assert seen == [count] * threads


# Inflating is bounded while it happens.

BOMBED = """
import json, sys, threading
import wsthread
from wsthread import Deflate

def resident():
    try:
        with open("/proc/self/status") as file:
            fields = dict(line.split(":", 1) for line in file)
        return int(fields["VmHWM"].split()[0]) * 1024
    except OSError:
        import resource
        usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return usage if sys.platform == "darwin" else usage * 1024

errors, codes, messages = [], [], []
class Delegate(wsthread.WebSocketDelegate):
    def on_message(self, client, message):
        messages.append(len(message))
    def on_error(self, client, error):
        errors.append(type(error).__name__)
    def on_close(self, client, code, reason):
        codes.append(code)
if sys.argv[2] == "on_fragment":
    def on_fragment(self, client, data, opcode, final):
        pass
    Delegate.on_fragment = on_fragment
options = {}
if sys.argv[2] == "inline":
    options["dispatcher"] = wsthread.InlineDispatcher()
elif sys.argv[2] == "drop_newest":
    options["receive_queue"] = wsthread.QueueLimit(overflow="drop_newest")
client = wsthread.WebSocketClient(sys.argv[1], Delegate(), reconnect=False, **options)
client.connect()
before = resident()
client.send("now")
client.wait()
grown = resident() - before
print(json.dumps([grown, errors, codes, messages]))
"""


def repeatable(payload: bytes) -> bytes:
    """Compressed and ended by a full flush, so that it refers to nothing and may be repeated."""
    encoder = zlib.compressobj(9, wbits=-15)
    return encoder.compress(payload) + encoder.flush(zlib.Z_FULL_FLUSH)


def bombed(script: Callable[[RawConnection], None], way: str) -> Any:
    """What a client in a process of its own grew by, and what it told."""
    with RawServer(script) as server:
        done = subprocess.run(
            [sys.executable, "-c", BOMBED, server.url, way],
            capture_output=True,
            timeout=SOON * 3,
            check=False,
        )
    assert done.returncode == 0, done.stderr.decode()
    return json.loads(done.stdout)


@pytest.mark.unmeasured
@pytest.mark.parametrize("way", ["one frame", "many frames", "on_fragment"])
def test_a_bomb_ends_in_1009_and_costs_no_more_than_a_message_may(way: str) -> None:
    bomb = repeatable(bytes(MIB)) * 2048
    assert len(bomb) < 2.2e6, "2 MB that inflate to 2 GB"
    codes: List[int] = []

    def script(connection: RawConnection) -> None:
        connection.upgrade(headers=answer(NAME))
        assert connection.read_frame() == (TEXT, b"now")
        step = len(bomb) if way == "one frame" else 1000
        frames = [
            frame(
                0 if at else BINARY, bomb[at : at + step], at + step >= len(bomb), 0 if at else RSV1
            )
            for at in range(0, len(bomb), step)
        ]
        sender = threading.Thread(target=send, args=(connection, b"".join(frames)))
        sender.start()
        codes.append(connection.answer_close()[0])
        connection.read_to_end()
        sender.join()

    def send(connection: RawConnection, data: bytes) -> None:
        with contextlib.suppress(OSError):  # the client need not read all of it
            connection.sock.sendall(data)

    grown, errors, closed, messages = bombed(script, way)
    assert codes == [1009]
    assert (errors, closed, messages) == (["MessageTooBig"], [1009], [])
    assert grown < (16 + 20) * MIB  # the default of max_message_size, and 20


@pytest.mark.unmeasured
@pytest.mark.parametrize("way", ["default", "inline", "drop_newest", "on_fragment"])
def test_many_bombs_in_one_read_cost_no_more_than_the_receive_queue(way: str) -> None:
    message = (repeatable(bytes(MIB)) * 8)[:-4]
    frames = frame(BINARY, message, True, RSV1) * 64
    assert len(frames) < MIB, "1 MB that inflates to 512 MB"

    def script(connection: RawConnection) -> None:
        connection.upgrade(headers=answer(NAME))
        assert connection.read_frame() == (TEXT, b"now")
        connection.sock.sendall(frames + close_frame())
        with contextlib.suppress(EOFError, OSError):
            connection.read_to_end()

    grown, errors, closed, messages = bombed(script, way)
    assert (errors, closed) == ([], [1000])
    if way in ("default", "inline"):
        assert messages == [8 * MIB] * 64
    assert grown < 100 * MIB


# What the peer must not send.


def deflated(payload: bytes) -> bytes:
    encoder = zlib.compressobj(wbits=-15)
    return (encoder.compress(payload) + encoder.flush(zlib.Z_SYNC_FLUSH))[:-4]


WRONG = {
    "garbage": (1007, frame(TEXT, b"\xff\xff\xff\xff", rsv=RSV1)),
    "stored block cut short": (1007, frame(TEXT, b"\x00\x05\x00\xfa\xffab", rsv=RSV1)),
    "missing tail": (1007, frame(TEXT, deflated(records(99).encode())[:-9], rsv=RSV1)),
    "missing tail of two": (
        1007,
        frame(TEXT, deflated(records(99).encode())[:-9], fin=False, rsv=RSV1) + frame(0),
    ),
    "nothing at all": (1007, frame(TEXT, b"\x01", rsv=RSV1)),
    "no text": (1007, frame(TEXT, deflated(b"\xff\xfe"), rsv=RSV1)),
    "RSV1 on a continuation": (
        1002,
        frame(TEXT, deflated(b"abc")[:2], fin=False, rsv=RSV1) + frame(0, b"", rsv=RSV1),
    ),
    "RSV1 on a continuation only": (
        1002,
        frame(TEXT, b"abc", fin=False) + frame(0, deflated(b"abc"), rsv=RSV1),
    ),
    "RSV1 on a ping": (1002, frame(PING, b"", rsv=RSV1)),
    "RSV1 on a pong": (1002, frame(PONG, b"", rsv=RSV1)),
    "RSV1 on a close": (1002, frame(CLOSE, b"\x03\xe8", rsv=RSV1)),
    "RSV2": (1002, frame(TEXT, b"abc", rsv=RSV2)),
    "RSV3": (1002, frame(TEXT, deflated(b"abc"), rsv=RSV1 | RSV3)),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_may_not_come_fails_the_connection(case: str) -> None:
    code, data = WRONG[case]
    delegate = RecordingDelegate()
    with driven(delegate) as (client, peer):
        peer.send(b"fine")
        peer.connection.sock.sendall(data)
        assert peer.answer_close()[0] == code
        peer.connection.sock.close()
        assert client.wait(SOON)
        assert client.close_code == code
    assert delegate.messages() == ["fine"]
    (error,) = delegate.of("error")
    assert isinstance(error[1], wsthread.ProtocolError)


def test_rsv1_that_was_not_agreed_on_fails_the_connection() -> None:
    def script(connection: RawConnection) -> None:
        connection.upgrade(behind=frame(TEXT, deflated(b"abc"), rsv=RSV1))
        assert connection.answer_close()[0] == 1002

    with RawServer(script) as server, opened(server.url) as client:
        assert client.wait(SOON)
        assert client.close_code == 1002


# Nothing that a sender gives up leaves a hole in the stream.


def noise(number: int, size: int) -> bytes:
    """What does not shrink, and refers to itself: a hole before it would show."""
    chosen = random.Random(number)
    return chosen.randbytes(size) + chosen.randbytes(200) * 3


def full_of(client: wsthread.WebSocketClient, timeout: Any, accepted: List[bytes]) -> List[str]:
    """Send to a peer that does not read until three sends were refused; say how they were."""
    refused: List[str] = []
    number = 0
    while len(refused) < 3:
        message = noise(number % 7, 20_000 + number)
        number += 1
        assert number < 1000
        try:
            client.send(message, timeout=timeout)
        except (wsthread.QueueFull, wsthread.SendTimeout) as error:
            refused.append(type(error).__name__)
        else:
            accepted.append(message)
    return refused


@pytest.mark.parametrize("way", ["SendTimeout", "QueueFull"])
def test_what_was_refused_leaves_the_stream_intact(way: str) -> None:
    accepted: List[bytes] = []
    results: queue.Queue[List[str]] = queue.Queue()

    class Sender(wsthread.WebSocketDelegate):
        def on_message(self, client: Any, message: Any) -> None:
            results.put(full_of(client, SOON, accepted))  # in a callback: never waits

    options: Any = {"send_queue": wsthread.QueueLimit(messages=8), "compression": ALL}
    with driven(Sender(), receive_buffer=4096, **options) as (client, peer):
        if way == "QueueFull":
            peer.send(b"go")
            refused = results.get(timeout=SOON)
        else:
            refused = full_of(client, 0.02, accepted)
        assert refused == [way] * 3
        for message in accepted:
            assert peer.read() == (BINARY, message)
        client.send(accepted[-1], timeout=SOON)
        assert peer.read() == (BINARY, accepted[-1])


def test_a_message_begun_that_times_out_fails_that_connection_only() -> None:
    """What was compressed cannot be withdrawn; the next connection has a stream of its own."""
    peers: queue.Queue[Peer] = queue.Queue()
    released = threading.Event()

    def script(connection: RawConnection) -> None:
        peers.put(Peer(connection))
        if peers.qsize() == 1:
            connection.read_to_end()
        else:
            assert released.wait(SOON * 2)

    delegate = RecordingDelegate()
    options: Any = {
        "send_queue": wsthread.QueueLimit(bytes=100_000),
        "compression": ALL,
        "reconnect": wsthread.Reconnect(delay=0),
    }
    large = random.Random(0).randbytes(16 * MIB)  # compressing it alone takes longer than it has
    with RawServer(script) as server:
        try:
            with opened(server.url, delegate, **options) as client:
                client.send("begins once on_open has returned")
                client.flush(SOON)
                with pytest.raises(wsthread.SendTimeout):
                    client.send(large, timeout=0.15)
                delegate.wait_for("open", count=2)
                peers.get(timeout=SOON)
                second = peers.get(timeout=SOON)
                client.send("on the next")
                assert second.read() == (TEXT, b"on the next")
                assert delegate.of("unsent") == []  # its send raised
        finally:
            released.set()


@pytest.mark.unmeasured
@pytest.mark.skipif(sys.version_info < (3, 10), reason="as for the storm without compression")
def test_a_storm_of_ctrl_c_leaves_the_stream_intact() -> None:
    got: List[int] = []
    wrong: List[int] = []

    def script(connection: RawConnection) -> None:
        peer = Peer(connection)
        with contextlib.suppress(EOFError, ConnectionError):
            while True:
                opcode, payload = peer.read()
                if opcode == CLOSE:
                    connection.sock.sendall(frame(CLOSE, payload))
                    return
                number = int.from_bytes(payload[:4], "big")
                if payload[4:] != bytes(number * 31 % 5000):
                    wrong.append(number)
                got.append(number)

    with RawServer(script) as server:
        command = [sys.executable, "-c", STORM, server.url]
        done = subprocess.run(command, capture_output=True, timeout=40, check=False)
        assert done.returncode == 0, done.stderr.decode()
    interrupted, _, sent, _, over, _ = json.loads(done.stdout)
    assert interrupted > 50
    assert over
    assert wrong == []
    assert got == sorted(set(got)), "in order, none twice"
    assert len(got) > 100 and set(sent) <= set(got)


# A large message, which the reader compresses in steps.


def slow_to_compress(size: int) -> bytes:
    chosen = random.Random(1)
    words = [chosen.randbytes(5).hex().encode() for _ in range(5000)]
    return b" ".join(chosen.choices(words, k=100_000))[:MIB] * (size // MIB)


LARGE = slow_to_compress(4 * MIB)  # takes some tenths of a second
ROOM = wsthread.QueueLimit(bytes=4 * len(LARGE))  # so that its sender does not wait for it


def test_disconnect_sends_a_large_message_before_it_closes() -> None:
    delegate = RecordingDelegate()
    with driven(delegate, send_queue=ROOM) as (client, peer):
        client.send(LARGE)
        thread = threading.Thread(target=client.disconnect, kwargs={"timeout": SOON})
        thread.start()
        assert peer.read() == (BINARY, LARGE)
        assert peer.answer_close()[0] == 1000
        peer.connection.sock.close()
        thread.join(SOON)
        assert not thread.is_alive()
    assert delegate.of("sent") == [("sent", LARGE)]


@pytest.mark.parametrize("way", ["abort", "error"])
def test_an_end_does_not_wait_for_a_large_message(way: str) -> None:
    delegate = RecordingDelegate()
    with driven(delegate, send_queue=ROOM) as (client, peer):
        client.send(LARGE)
        client.send("behind")
        if way == "error":
            peer.connection.sock.sendall(frame(3))
            # Nothing is in between: what is being compressed is given up.
            assert peer.read() == (CLOSE, b"\x03\xea")
            peer.connection.sock.close()
            assert client.wait(SOON)
        else:
            client.abort()
        unsent = [event[1] for event in delegate.of("unsent")]
        assert unsent == [LARGE, "behind"]
        assert delegate.of("sent") == []
        assert client.pending == 0


def test_flush_waits_for_a_large_message() -> None:
    with driven(send_queue=ROOM) as (client, peer):
        client.send(LARGE)
        reader: queue.Queue[Any] = queue.Queue()
        thread = threading.Thread(target=lambda: reader.put(peer.read()))
        thread.start()
        client.flush(timeout=SOON)
        assert client.pending == 0
        assert reader.get(timeout=SOON) == (BINARY, LARGE)
        thread.join()


# Released (promise 1): with the connection, its zlib streams.


class Compressed(Echo):
    """Waits for one message that is worth compressing."""

    def on_message(self, client: Any, message: Any) -> None:
        assert message == records(100)
        self.got.set()


def compressed_cycle(url: str) -> None:
    delegate = Compressed()
    client = wsthread.WebSocketClient(url, delegate)
    client.connect()
    assert client.extensions
    session = client._session
    assert session is not None and session._connection is not None
    held = [session, session._connection, session._connection.parser, session._connection.writer]
    references = [weakref.ref(thing) for thing in [*held, delegate, client]]
    del session, held
    client.send(records(100))
    assert delegate.got.wait(SOON)
    assert client.disconnect()
    assert [r() for r in references[:-2]] == [None] * 4
    del client, delegate
    assert [r() for r in references] == [None] * 6


@pytest.mark.unmeasured
@pytest.mark.parametrize("takeover", [True, False])
def test_promise_01_nothing_is_left_of_a_compressed_connection(takeover: bool) -> None:
    with python_server("websockets", takeover) as url:
        assert_nothing_grows(lambda: compressed_cycle(url), 100)


@pytest.mark.thorough
@pytest.mark.unmeasured
@pytest.mark.parametrize("takeover", [True, False])
def test_promise_01_nothing_is_left_of_a_thousand_compressed_connections(takeover: bool) -> None:
    with python_server("websockets", takeover) as url:
        assert_nothing_grows(lambda: compressed_cycle(url), 1000)


def garbage(connection: RawConnection) -> None:
    peer = Peer(connection)
    peer.read()
    peer.send(b"fine " * 100)
    connection.sock.sendall(WRONG["garbage"][1])
    assert peer.answer_close()[0] == 1007


@pytest.mark.unmeasured
def test_promise_01_nothing_is_left_of_what_cannot_be_inflated() -> None:
    def cycle() -> None:
        delegate = RecordingDelegate()
        client = wsthread.WebSocketClient(url, delegate, reconnect=False)
        client.connect()
        client.send(records(100))
        assert client.wait(SOON)
        assert client.close_code == 1007
        assert delegate.messages() == ["fine " * 100]
        references = [weakref.ref(client), weakref.ref(delegate)]
        del client, delegate
        assert [r() for r in references] == [None, None]

    with raw_process(garbage) as url:
        assert_nothing_grows(cycle, 100)


@pytest.mark.unmeasured
def test_streams_end_with_the_connection_and_not_with_the_client() -> None:
    def held() -> int:
        traces = tracemalloc.take_snapshot().filter_traces(
            [tracemalloc.Filter(True, deflate.__file__)]
        )
        return sum(trace.size for trace in traces.traces)

    delegate = RecordingDelegate()
    with python_server("websockets", True) as url:
        gc.collect()
        gc.disable()
        tracemalloc.start()
        try:
            client = wsthread.WebSocketClient(url, delegate)
            client.connect()
            client.send(records(100))
            assert delegate.wait_for("message")[1] == records(100)
            assert held() > 100 * 1024
            assert client.disconnect()
            assert held() < 1024
        finally:
            tracemalloc.stop()
            gc.enable()


# The reader is not blocked.


@pytest.fixture(scope="module")
def certificates() -> Certificates:
    return Certificates()


@pytest.mark.parametrize("kind", ["plain", "tls"])
def test_pings_are_answered_while_another_thread_compresses(
    kind: str, certificates: Certificates
) -> None:
    delegate = RecordingDelegate()
    options: Any = {"compression": Deflate(level=6)}
    if kind == "tls":
        options["context"] = certificates.server_context()
        options["ssl_context"] = certificates.client_context()
    big = LARGE
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


def test_what_compressing_makes_longer_is_counted_once() -> None:
    """Two messages of one batch, the second of which does not fit into a batch any more."""
    received: List[bytes] = []

    def script(connection: RawConnection) -> None:
        connection.upgrade(headers=b"Sec-WebSocket-Extensions: permessage-deflate\r\n")
        received.append(connection.read_to_end())

    with RawServer(script) as server:
        client = wsthread.WebSocketClient(
            server.url,
            reconnect=False,
            ping_interval=None,
            compression=wsthread.Deflate(memory_level=1, threshold=0),
        )
        client.send(b"a" * 30)
        client.send(random.Random(1).randbytes(65_400))
        client.connect()
        client.flush()
        client.disconnect(timeout=0.3)  # the peer does not answer: it reads on
    assert client.stats.bytes_sent == len(received[0])
