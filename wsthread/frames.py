"""Bytes <-> frames and messages (RFC 6455 sections 5, 7.4 and 8.1). No I/O, no threads."""

from __future__ import annotations

import codecs
import os
import struct
import sys
from typing import (
    Any,
    Callable,
    Iterable,
    Iterator,
    List,
    NamedTuple,
    NoReturn,
    Optional,
    Protocol,
    Tuple,
    Union,
)

from .errors import CloseCode, MessageTooBig, ProtocolError, detach

OP_CONT, OP_TEXT, OP_BINARY, OP_CLOSE, OP_PING, OP_PONG = 0, 1, 2, 8, 9, 10

FIN, RSV1, _RSV2_RSV3, _OPCODE = 0x80, 0x40, 0x30, 0x0F
_CONTROL = 0x08  # this bit of an opcode makes it a control frame
_MASKED = 0x80

_UNLIMITED = sys.maxsize
_MAX_CONTROL = 125  # bytes in a control frame (5.5)
_MAX_REASON = _MAX_CONTROL - 2
_COMPACT_AFTER = 1024  # so many loose parts of a message are joined into one
_RUN, _RUNS = 8, 256  # frames alike that are parsed at once: not fewer, not more
_FEW = 1024  # of so few bytes it is not worth while to look for a run of frames alike
_KEYS = struct.Struct(256 * "4s")
#: Text of fewer bytes is copied before it is decoded: that costs less than two memoryviews.
_COPIED = 4096
_FRAMES = 1024  # control frames, fragments and long messages that are parsed at a time, at most
_SLICE = 1 << 18  # bytes that are masked at a time where there are more
_NOT_UTF8 = "text is not valid UTF-8"

Data = Union[bytes, bytearray, memoryview]


class Ping(NamedTuple):
    """A ping frame (5.5.2)."""

    payload: bytes


class Pong(NamedTuple):
    """A pong frame (5.5.3)."""

    payload: bytes


class Close(NamedTuple):
    """A close frame (5.5.1); `code` is 1005 where the frame carried none (7.1.5)."""

    code: int
    reason: str


class Fragment(NamedTuple):
    """One data frame of a message (5.4).

    `opcode` is the message's (OP_TEXT or OP_BINARY), `final` marks its last fragment. Text is
    `str`: a character that a frame cuts in two belongs to the fragment that completes it.
    """

    data: Union[str, bytes]
    opcode: int
    final: bool


Item = Union[str, bytes, Ping, Pong, Close, Fragment]


class Inflater(Protocol):
    """What the parser needs of a decompressing extension (RFC 7692 section 7.2.2)."""

    def inflate(self, data: bytes, final: bool, max_length: int) -> Iterable[bytes]:
        """Give what `data`, the next payload bytes of the message, inflates to, in pieces.

        `final` comes with the last bytes of the message (possibly none). Raises MessageTooBig
        where the result would be longer than `max_length` bytes, ProtocolError on garbage.
        """


class FrameParser:
    """Turns what a server sent into messages and control frames.

    `max_message_size` is in bytes, of UTF-8 for text, after inflating; None means no limit. It
    is the limit of a whole message, also where `fragments` hands its frames out one by one as
    `Fragment`. `inflater` takes the messages that are marked as compressed; without one, they
    are an error.

    Not thread-safe: every attribute belongs to the one thread that calls `parse`.
    """

    __slots__ = (
        "__weakref__",
        "_budget",
        "_buffer",
        "_closed",
        "_compacted",
        "_compressed",
        "_decoder",
        "_final",
        "_fragments",
        "_frames",
        "_inflater",
        "_maximum",
        "_most",
        "_offset",
        "_opcode",
        "_parts",
        "_room",
        "_short",
        "_wire",
        "error",
        "left",
        "partial",
        "pending",
        "plain",
        "size",
    )

    def __init__(
        self,
        max_message_size: Optional[int],
        *,
        fragments: bool = False,
        inflater: Optional[Inflater] = None,
    ) -> None:
        self.error: Optional[ProtocolError] = None  # what is wrong with the stream: it ends here
        self.plain = True  # the last result holds nothing but str and bytes
        self.pending = False  # parse stopped at its limit; parse(b"", limit) goes on
        # Bytes on the wire, with headers, of the data items in the last result; for compressed
        # ones what they inflated to where that is more. To bound queues with.
        self.size = 0
        self.left = 0  # payload bytes still to come of the data frame in progress
        self.partial = 0  # payload bytes kept of the unfinished message (inflated, if compressed)

        self._maximum = _UNLIMITED if max_message_size is None else max_message_size
        self._short = min(125, self._maximum)  # longest frame with a length of 7 bits
        self._fragments = fragments
        self._inflater = inflater
        self._buffer = b""  # received, not parsed yet ...
        self._offset = 0  # ... from here on
        self._budget = 0  # data items that this call may still return ...
        self._most = 0  # ... what `size` has to stay below for one more ...
        self._frames = 0  # ... and frames that it may still parse one by one
        self._closed = False  # a close frame was seen: nothing after it counts (5.5.1)

        # The message in progress.
        self._opcode = 0  # OP_TEXT or OP_BINARY; 0 when there is none
        self._compressed = False
        self._room = 0  # payload bytes that the frames to come may still bring
        self._wire = 0  # bytes on the wire since the last item
        self._parts: List[Any] = []  # its payload so far: all str for text, else all bytes
        self._compacted = 0  # parts before this index have been joined already
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        # The data frame in progress.
        self._final = False  # it is the message's last

    def parse(self, data: bytes, limit: int = _UNLIMITED, most: int = _UNLIMITED) -> List[Item]:
        """Take the next bytes of the stream; return what they complete, in order.

        At most `limit` messages (or fragments) are returned, and no more once their `size` comes
        to `most`; of frames other than whole short messages it parses a thousand. Where that
        stops it, `pending` is true, and `parse(b"", ...)` goes on at no cost for what waits.
        Never raises for what the peer sent: `error` is set, and what came before the error is
        returned. After an error or a close frame everything is ignored.
        """
        items: List[Item] = []
        self.plain, self.pending, self.size = True, False, 0
        self._budget, self._most, self._frames = limit, most, _FRAMES
        if self._closed or self.error is not None:
            return items
        position = 0
        if self._buffer:
            if data:
                data = self._buffer[self._offset :] + data
            else:
                data, position = self._buffer, self._offset
        try:
            if len(data) < _FEW and not (position or self._opcode or self._fragments):
                position = self._parse_plain(data, position, items)
            if position < len(data):
                position = self._parse(data, position, items)
        except UnicodeDecodeError:
            self.error = ProtocolError(_NOT_UTF8, CloseCode.INVALID_DATA)
        except ProtocolError as error:
            detach(error)
            self.error = error
        if self._closed or self.error is not None:
            self._buffer = b""
            self._parts.clear()
            self.partial = 0
        elif self.pending:
            self._buffer, self._offset = data, position
        else:  # less than a header, or than a control frame
            self._buffer, self._offset = data[position:], 0
        return items

    def _parse(self, data: bytes, position: int, items: List[Item]) -> int:
        """Parse from `position`; return where the first frame begins that is not all there."""
        end = len(data)
        while position < end and not self._closed:
            if self._budget <= 0 or self.size >= self._most or self._frames <= 0:
                self.pending = True
                break
            if self.left:
                position = self._parse_payload(data, position, items)
                continue
            if not (data[position] & _CONTROL or self._opcode or self._fragments):
                while (stop := self._parse_run(data, position, items)) > position:
                    position = stop
                position = self._parse_plain(data, position, items)
                if position == end or self._budget <= 0 or self.size >= self._most:
                    continue
            self._frames -= 1
            begin, position = position, self._parse_frame(data, position, items)
            if position == begin:
                break
        return position

    def _parse_plain(self, data: bytes, position: int, items: List[Item]) -> int:
        """Parse whole messages in one short frame each, up to the first frame that is not.

        This loop is where a busy client spends its time. So it calls no method of ours and
        looks up no attribute, reads lengths by index instead of `struct`, decides nothing
        about frames that it does not know (`_parse_frame` judges them), and the limit is its
        range, which costs nothing. Only what is compressed has its call, of the inflater.
        """
        begin, before, gained = position, len(items), 0
        append = items.append
        view: Optional[memoryview] = None
        inflate = None if self._inflater is None else self._inflater.inflate
        short, maximum = self._short, self._maximum
        most = self._most - self.size
        end = min(len(data), position + most)
        last = end - 1
        try:
            for _ in range(self._budget):
                if position >= last:
                    break
                length = data[position + 1]
                if length <= short:
                    start = position + 2
                elif length == 126 and position + 4 <= end:
                    length = data[position + 2] << 8 | data[position + 3]
                    if not 125 < length <= maximum:
                        break
                    start = position + 4
                else:
                    break
                stop = start + length
                if stop > end:
                    break
                first = data[position]
                if first == 0x81:  # FIN, text
                    if length < _COPIED:
                        append(data[start:stop].decode())
                    else:
                        view = view or memoryview(data)
                        append(str(view[start:stop], "utf-8"))
                elif first == 0x82:  # FIN, binary
                    append(data[start:stop])
                elif inflate is not None and first in (0xC1, 0xC2):  # the same, compressed
                    payload = b"".join(inflate(data[start:stop], True, maximum))
                    append(payload.decode() if first == 0xC1 else payload)
                    if len(payload) > stop - position:
                        gained += len(payload) - (stop - position)
                    if stop - begin + gained >= most:
                        position = stop
                        break
                else:
                    break
                position = stop
        finally:  # also where a text is invalid: what came before it counts
            self.size += position - begin + gained
            self._budget -= len(items) - before
        return position

    def _parse_run(self, data: bytes, position: int, items: List[Item]) -> int:
        """Parse messages that are alike in opcode and length, where many come together.

        The standard library's C finds and cuts them, at a third of the cost. What it has looked
        at in vain is bounded: a peer cannot make that dear by breaking off its runs.
        """
        count = min(self._budget, _RUNS)
        available = min(len(data) - position, self._most - self.size)
        if available < _RUN * 2 or count < _RUN:
            return position
        first, length = data[position], data[position + 1]
        header, least, longest = 2, 0, self._short
        if length == 126:
            length = data[position + 2] << 8 | data[position + 3]
            header, least, longest = 4, 126, self._maximum
        size = header + length
        count = min(count, available // size)
        if count < _RUN or not least <= length <= longest or first not in (0x81, 0x82):
            return position
        stop = position + count * size
        for begin in range(position, position + header):
            column = data[begin:stop:size]
            count = min(count, len(column) - len(column.lstrip(column[:1])))
        if count < _RUN:
            return position
        stop = position + count * size
        try:
            items += _cut(memoryview(data)[position:stop], header, length, first == 0x81)
        except UnicodeDecodeError:
            return position  # one by one it turns out what comes before that
        self.size += stop - position
        self._budget -= count
        return stop

    def _parse_frame(self, data: bytes, position: int, items: List[Item]) -> int:
        """Parse any one frame; return `position` itself while too little of it is here."""
        available = len(data) - position
        if available < 2:
            return position
        first, length = data[position], data[position + 1]
        self._check_header(first, length)
        if first & _CONTROL:
            stop = position + 2 + length
            if stop > len(data):
                return position
            self._parse_control(first & _OPCODE, data[position + 2 : stop], items)
            return stop
        header = 2
        if length >= 126:
            header, minimum = (4, 126) if length == 126 else (10, 65536)
            if available < header:
                return position
            length = int.from_bytes(data[position + 2 : position + header], "big")
            if length < minimum:
                _fail("a length is not in its shortest form")
            if length >> 63:
                _fail("a length has its highest bit set")
        self._begin_frame(first, length)
        self._wire += header
        return self._parse_payload(data, position + header, items)

    def _check_header(self, first: int, second: int) -> None:
        """Judge what the first two bytes of a frame tell (5.2, 5.4, 5.5)."""
        opcode = first & _OPCODE
        if first & _RSV2_RSV3:
            _fail("a reserved bit is set")
        if second & _MASKED:
            _fail("the server masked a frame")
        if opcode in (OP_TEXT, OP_BINARY):
            if self._opcode:
                _fail("a message begins inside another")
            if first & RSV1 and self._inflater is None:
                _fail("a message is compressed, but no compression was agreed")
            return
        if first & RSV1:
            _fail("a frame other than a message's first is marked as compressed")
        if opcode == OP_CONT:
            if not self._opcode:
                _fail("a continuation has no message to continue")
        elif opcode not in (OP_CLOSE, OP_PING, OP_PONG):
            _fail(f"the opcode {opcode} is unknown")
        elif not first & FIN:
            _fail("a control frame is fragmented")
        elif second > _MAX_CONTROL:
            _fail("a control frame is longer than 125 bytes")

    def _parse_control(self, opcode: int, payload: bytes, items: List[Item]) -> None:
        if opcode == OP_PING:
            items.append(Ping(payload))
        elif opcode == OP_PONG:
            items.append(Pong(payload))
        else:
            items.append(_parse_close(payload))
            self._closed = True
        self.plain = False

    def _begin_frame(self, first: int, length: int) -> None:
        """Begin a data frame, and with it a message if it is the first of one."""
        if not self._opcode:
            self._opcode = first & _OPCODE
            self._room = self._maximum
            self._compressed = bool(first & RSV1)
        self._final = bool(first & FIN)
        self.left = length
        if not self._compressed:
            if length > self._room:
                _fail_too_big(self._maximum)
            self._room -= length
        elif length > 2 * self._maximum + 1024:
            # The inflater enforces the limit, and little is kept until it does. But deflate
            # makes nothing twice as long: no need to wait for the bytes of such a frame.
            _fail_too_big(self._maximum)

    def _parse_payload(self, data: bytes, position: int, items: List[Item]) -> int:
        """Take what is here of a data frame's payload; return where it ends."""
        chunk = data[position : position + self.left]
        taken = len(chunk)
        self.left -= taken
        self._wire += taken
        ended = not self.left
        final = ended and self._final
        if self._compressed and self._inflater is not None:
            for piece in self._inflater.inflate(chunk, final, self._room):
                self._room -= len(piece)
                self._take(piece, False)
            chunk = b""
        self._take(chunk, final)
        if final or (ended and self._fragments):
            self._deliver(final, items)
        return position + taken

    def _take(self, chunk: bytes, final: bool) -> None:
        self.partial += len(chunk)
        self._keep(self._decode(chunk, final) if self._opcode == OP_TEXT else chunk)

    def _decode(self, chunk: bytes, final: bool) -> str:
        """Decode text as it comes, so that what is invalid fails now, not at the end (8.1)."""
        text = self._decoder.decode(chunk, final)
        # The decoder waits for the third byte of a surrogate before it refuses it.
        waiting = self._decoder.getstate()[0]
        if len(waiting) == 2 and b"\xed\xa0" <= waiting <= b"\xed\xbf":
            raise ProtocolError(_NOT_UTF8, CloseCode.INVALID_DATA)
        return text

    def _keep(self, part: Union[str, bytes]) -> None:
        """Keep a part of the message until it is complete.

        Joined once, at the end, so that the cost is linear. Only where they are many, the
        loose ones are joined before: a message that comes a byte at a time would otherwise
        take a whole object for each.
        """
        if part:
            self._parts.append(part)
            if len(self._parts) - self._compacted >= _COMPACT_AFTER:
                self._parts[self._compacted :] = [self._join(self._compacted)]
                self._compacted += 1

    def _join(self, begin: int) -> Any:
        empty: Any = "" if self._opcode == OP_TEXT else b""
        return empty.join(self._parts[begin:])

    def _deliver(self, final: bool, items: List[Item]) -> None:
        """Hand out the message, or in fragment mode the fragment."""
        data = self._join(0)
        if self._fragments:
            items.append(Fragment(data, self._opcode, final))
            self.plain = False
        else:
            items.append(data)
        self.size += max(self._wire, self.partial)  # inflated, it may be far more than the wire
        self._budget -= 1
        self._parts.clear()
        self._wire = self._compacted = self.partial = 0
        if final:
            self._opcode = 0


def _cut(run: memoryview, header: int, length: int, is_text: bool) -> List[Any]:
    """Return the payloads of frames that are alike, decoded where they are text."""
    if is_text and length >= _COPIED:
        begins = range(header, len(run), header + length)
        return [str(run[begin : begin + length], "utf-8") for begin in begins]
    payloads = struct.iter_unpack(f"{header}x{length}s", run)
    if is_text:
        return [payload.decode() for (payload,) in payloads]
    return [payload for (payload,) in payloads]


def _fail(message: str) -> NoReturn:
    raise ProtocolError(message)


def _fail_too_big(maximum: int) -> NoReturn:
    raise MessageTooBig(f"a message is longer than {maximum} bytes")


def _parse_close(payload: bytes) -> Close:
    """Read the payload of a close frame (5.5.1)."""
    if not payload:
        return Close(int(CloseCode.NO_STATUS_RCVD), "")
    if len(payload) == 1:
        _fail("a close frame holds half a code")
    code = int.from_bytes(payload[:2], "big")
    if not _is_sendable(code):
        _fail(f"the close code {code} must not be sent")
    return Close(code, payload[2:].decode())


def _is_sendable(code: int) -> bool:
    """Whether a close frame may carry `code` (7.4.1, 7.4.2 and the IANA registry)."""
    return 1000 <= code <= 1003 or 1007 <= code <= 1014 or 3000 <= code <= 4999


_NAMES = {0: "continuation", 1: "text", 2: "binary", 8: "close", 9: "ping", 10: "pong"}


def describe_frame(opcode: int, payload: bytes) -> str:
    """Say what a frame is, for the log: nothing of what it carries but a close code."""
    if opcode == OP_CLOSE and payload:
        return f"close {int.from_bytes(payload[:2], 'big')}"
    return f"{_NAMES.get(opcode, opcode)}, {len(payload)} bytes"


def describe_item(item: Item) -> str:
    """Say what was received, for the log: nothing of what it carries but a close code."""
    if isinstance(item, str):
        return f"text, {len(item)} characters"
    if isinstance(item, Close):
        return f"close {item.code}"
    if isinstance(item, Fragment):
        return f"fragment of {_NAMES[item.opcode]}, {len(item.data)} long"
    if isinstance(item, (Ping, Pong)):
        return f"{type(item).__name__.lower()}, {len(item.payload)} bytes"
    return f"binary, {len(item)} bytes"


def encode_close(code: Optional[int], reason: str = "") -> bytes:
    """Return the payload of a close frame; empty for no code (None or 1005).

    A `reason` of more than 123 bytes is cut at a character.
    """
    if code is None or code == CloseCode.NO_STATUS_RCVD:
        return b""
    text = reason.encode("utf-8", "replace")
    if len(text) > _MAX_REASON:
        text = text[:_MAX_REASON].decode("utf-8", "ignore").encode()
    return struct.pack("!H", code) + text


def check_close(code: int, reason: str) -> bytes:
    """Return the payload of the close frame that a user asks for.

    `code` is one of 1000 to 1003, 1007 to 1014 or 3000 to 4999 (RFC 6455 7.4), `reason` at
    most 123 bytes of UTF-8; ValueError where they are not, TypeError for other types.
    """
    if not isinstance(code, int) or isinstance(code, bool):
        raise TypeError(f"a close code is an int, not {type(code).__name__}")
    if not isinstance(reason, str):
        raise TypeError(f"a close reason is a str, not {type(reason).__name__}")
    if not _is_sendable(code):
        raise ValueError(f"{code} is not a close code that may be sent")
    if len(reason.encode()) > _MAX_REASON:
        raise ValueError(f"a close reason has at most {_MAX_REASON} bytes of UTF-8")
    return encode_close(code, reason)


def _mask(data: Data, key: bytes) -> bytes:
    """Mask with one XOR of two big integers: no loop over bytes in Python."""
    size = len(data)
    repeated = (key * (size // 4 + 1))[:size]
    # The byte order does not matter, as long as it is one.
    number = int.from_bytes(data, "little") ^ int.from_bytes(repeated, "little")
    return number.to_bytes(size, "little")


#: mask(data, key): mask or unmask a payload with a key of 4 bytes (5.3).
mask: Callable[[Data, bytes], bytes] = _mask


def use_speedups() -> None:
    """Mask in C from now on where websockets is installed, whose import takes a while."""
    global mask
    try:
        from websockets.speedups import (  # type: ignore[import-not-found,unused-ignore] # noqa: PLC0415
            apply_mask,
        )
    except ImportError:
        return
    mask = apply_mask


#: The headers of short text and binary messages, by first byte and length.
_SHORT = {
    first: [bytes((first, _MASKED | length)) for length in range(126)]
    for first in (FIN | OP_TEXT, FIN | OP_BINARY)
}
_MEDIUM, _LONG = struct.Struct("!BBH"), struct.Struct("!BBQ")

# Keys drawn and not used yet. Owned by no lock: list.pop and list.extend are atomic.
_keys: List[bytes] = []
if hasattr(os, "register_at_fork"):  # pragma: no branch (Windows has no fork)
    os.register_at_fork(after_in_child=_keys.clear)  # each key is for one of the two processes


def _new_key() -> bytes:
    """Return a key that nobody can predict and nobody else gets (10.3), from any thread."""
    while True:
        try:
            return _keys.pop()
        except IndexError:
            # A system call for each frame would cost more than the masking.
            _keys.extend(_KEYS.unpack(os.urandom(_KEYS.size)))


def _header(first: int, length: int) -> bytes:
    """Return the header of a frame without its key (5.2)."""
    if length < 126:
        return bytes((first, _MASKED | length))
    if length < 65536:
        return _MEDIUM.pack(first, _MASKED | 126, length)
    return _LONG.pack(first, _MASKED | 127, length)


def encode_frame(first: int, payload: bytes) -> bytes:
    """Return a client's whole frame, masked with a fresh key (5.2, 5.3). From any thread.

    `first` is its first byte: FIN, RSV1 and opcode.
    """
    length = len(payload)
    if length < 126 and first in _SHORT:
        header = _SHORT[first][length]
    else:
        header = _header(first, length)
    try:
        key = _keys.pop()
    except IndexError:
        key = _new_key()
    return header + key + mask(payload, key)


def encode_parts(first: int, payload: bytes) -> Tuple[bytes, bytes, Iterator[bytes]]:
    """Return the same in parts, for what is long: header, beginning, and the rest in slices.

    Each slice is masked when it is asked for: it is sent while the processor's cache has it.
    """
    key = _new_key()
    header = _header(first, len(payload)) + key
    if len(payload) <= _SLICE:
        return header, mask(payload, key), iter(())
    view = memoryview(payload)
    rest = (mask(view[at : at + _SLICE], key) for at in range(_SLICE, len(payload), _SLICE))
    return header, mask(view[:_SLICE], key), rest
