"""The messages of a measurement. Client and server make the same ones, each for itself."""

from __future__ import annotations

import functools
import itertools
import random
import struct
import zlib
from typing import Any, Callable, Iterator, List

TEXT, BINARY, OTHER = "text", "binary", "other"  # ASCII, bytes, text that is not ASCII
MIXED = "mixed"  # ASCII, half to one and a half times the size
STAMP = 16  # bytes at the end that tell a message from the others
MANY = 1000  # messages that are handed over at once, where they are
_BLOCK = 1 << 21  # bytes of different messages; then they repeat

try:
    from websockets.speedups import apply_mask
except ImportError:

    def apply_mask(data: Any, mask: Any) -> bytes:
        size = len(data)
        repeated = (bytes(mask) * (size // 4 + 1))[:size]
        plain = int.from_bytes(data, "little") ^ int.from_bytes(repeated, "little")
        return plain.to_bytes(size, "little")


def _message(kind: str, size: int, number: int) -> Any:
    """One message of just `size` bytes (of UTF-8, for text); for MIXED of about that many."""
    stamp = f"{number:0{STAMP}}"
    if kind == MIXED:
        return _message(TEXT, size // 2 + number * 29 % (size + 1), number)
    if kind == BINARY:
        return random.Random(number).randbytes(size - STAMP) + stamp.encode()
    fill = "The quick brown fox jumps over. " if kind == TEXT else "Grüße, κόσμε, 世界. "
    encoded = (fill * (size // len(fill) + 1)).encode()[: size - STAMP]
    text = encoded.decode(errors="ignore")  # the last character may be cut
    return text + "." * (size - STAMP - len(text.encode())) + stamp


@functools.lru_cache(maxsize=4)
def block(kind: str, size: int) -> List[Any]:
    """The different messages of a size. A stream of messages repeats them."""
    return [_message(kind, size, n) for n in range(max(1, min(4096, _BLOCK // size)))]


def stream(kind: str, size: int, count: int) -> Iterator[Any]:
    return itertools.islice(itertools.cycle(block(kind, size)), count)


def as_bytes(message: Any) -> bytes:
    return message.encode() if isinstance(message, str) else bytes(message)


def masked(message: Any, key: bytes = b"\x3a\xc5\x19\x7e") -> bytes:
    """A client's frame."""
    payload = as_bytes(message)
    first = 0x81 if isinstance(message, str) else 0x82
    return header(first, len(payload), 0x80) + key + apply_mask(payload, key)


def header(first: int, length: int, mask: int = 0) -> bytes:
    if length < 126:
        return bytes([first, mask | length])
    if length < 65536:
        return struct.pack("!BBH", first, mask | 126, length)
    return struct.pack("!BBQ", first, mask | 127, length)


def stream_size(kind: str, size: int, count: int) -> int:
    """The bytes that the server sends for so many messages."""
    lengths = [frame_size(len(as_bytes(message)), False) for message in block(kind, size)]
    rounds, rest = divmod(count, len(lengths))
    return rounds * sum(lengths) + sum(lengths[:rest])


def frame_size(size: int, mask: bool) -> int:
    return len(header(0, size)) + (4 if mask else 0) + size


def verdict(count: int, checksum: int) -> str:
    """What the server says about what it was sent."""
    return f"{count} {checksum & 0xFFFFFFFF}"


@functools.lru_cache(maxsize=8)
def expected_verdict(kind: str, size: int, count: int) -> str:
    # A sum, because the messages of several threads come in any order.
    checksums = [zlib.crc32(as_bytes(message)) for message in block(kind, size)]
    rounds, rest = divmod(count, len(checksums))
    return verdict(count, rounds * sum(checksums) + sum(checksums[:rest]))


_LAST, _BEHIND = object(), object()


class Checker:
    """Checks what is received at the same small cost for every client.

    Of each message `next()` is compared: with the whole of a short one, with the end of a long
    one, whose `length` is added up. For the last message `next()` gives what no message equals:
    so one comparison finds the end and whatever is wrong. `finish` then tells which it was,
    once the clock has stopped.
    """

    def __init__(self, kind: str, size: int, count: int) -> None:
        messages = block(kind, size)
        self.whole = size <= 1024
        known = messages if self.whole else [message[-STAMP:] for message in messages]
        found = itertools.islice(itertools.cycle(known), count - 1)
        marks = itertools.chain([_LAST], itertools.repeat(_BEHIND))
        self.next: Callable[[], Any] = itertools.chain(found, marks).__next__
        self.length = 0
        self._last = messages[(count - 1) % len(messages)]
        self._length = count * len(messages[0])

    def finish(self, message: Any) -> None:
        if self.next() is not _BEHIND or message != self._last:
            raise AssertionError(f"not what was sent: {message[:40]!r}... of {len(message)}")
        if not self.whole and self.length != self._length:
            raise AssertionError(f"{self.length} received, {self._length} sent")
