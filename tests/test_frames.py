"""Frames: what a stream of bytes means (RFC 6455 sections 5, 7.4 and 8.1)."""

from __future__ import annotations

import gc
import importlib.util
import itertools
import os
import struct
import subprocess
import sys
import threading
import tracemalloc
import types
import weakref
import zlib
from typing import Any, Iterable, List, NamedTuple, Optional, Tuple, Union

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from wsthread import frames
from wsthread.errors import MessageTooBig, ProtocolError
from wsthread.frames import (
    FIN,
    OP_BINARY,
    OP_CLOSE,
    OP_CONT,
    OP_PING,
    OP_PONG,
    OP_TEXT,
    Close,
    Fragment,
    FrameParser,
    Ping,
    Pong,
    check_close,
    encode_close,
    encode_frame,
    encode_parts,
)

MAXIMUM = 70_000


# --- a server's frames, and a simple codec to compare with -------------------


def frame(opcode: int, payload: bytes = b"", fin: bool = True, rsv: int = 0) -> bytes:
    """Encode a frame as a server sends it."""
    first = bytes([(0x80 if fin else 0) | rsv << 4 | opcode])
    if len(payload) <= 125:
        return first + bytes([len(payload)]) + payload
    if len(payload) <= 0xFFFF:
        return first + b"\x7e" + struct.pack(">H", len(payload)) + payload
    return first + b"\x7f" + struct.pack(">Q", len(payload)) + payload


class ClientFrame(NamedTuple):
    fin: bool
    rsv: int
    opcode: int
    key: bytes
    payload: bytes


def decode_client_frame(data: bytes) -> ClientFrame:
    """Decode one whole masked frame, byte by byte."""
    assert data[1] & 0x80, "not masked"
    length, position = data[1] & 0x7F, 2
    if length >= 126:
        width = 2 if length == 126 else 8
        length, position = int.from_bytes(data[2 : 2 + width], "big"), 2 + width
        assert length > (125 if width == 2 else 0xFFFF), "not the shortest form"
    key = data[position : position + 4]
    masked = data[position + 4 :]
    assert len(masked) == length
    payload = bytes(byte ^ key[i % 4] for i, byte in enumerate(masked))
    return ClientFrame(bool(data[0] & 0x80), data[0] >> 4 & 7, data[0] & 15, key, payload)


class ZlibInflater:
    """The simplest inflater that keeps the parser's contract (no context takeover)."""

    def __init__(self) -> None:
        self.zlib = zlib.decompressobj(-15)

    def inflate(self, data: bytes, final: bool, max_length: int) -> Iterable[bytes]:
        inflater = self.zlib
        if final:
            data += b"\x00\x00\xff\xff"
            self.zlib = zlib.decompressobj(-15)
        try:
            result = inflater.decompress(data, min(max_length, 1 << 30) + 1)
        except zlib.error as error:
            raise ProtocolError("garbage", 1007) from error
        if len(result) > max_length:
            raise MessageTooBig("too big")
        return [result[:1], result[1:]]


def deflate(data: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=-15)
    return (compressor.compress(data) + compressor.flush(zlib.Z_SYNC_FLUSH))[:-4]


def parse_all(
    parser: FrameParser,
    stream: bytes,
    cuts: Tuple[int, ...] = (),
    limit: int = 1 << 60,
    most: int = 1 << 60,
) -> Tuple[List[Any], int]:
    """Feed a stream cut into reads; return all items and the sum of `size`."""
    items: List[Any] = []
    size = 0
    edges = [0, *sorted(cut % (len(stream) + 1) for cut in cuts), len(stream)]
    for begin, end in zip(edges, edges[1:]):
        data = stream[begin:end]
        while True:
            got = parser.parse(data, limit, most)
            controls = [item for item in got if isinstance(item, (Ping, Pong, Close))]
            assert len(got) - len(controls) <= limit
            assert parser.plain == all(type(item) in (str, bytes) for item in got)
            items += got
            size += parser.size
            if not parser.pending:
                break
            data = b""
    return items, size


def parse(stream: bytes, maximum: Optional[int] = MAXIMUM, **options: Any) -> List[Any]:
    parser = FrameParser(maximum, **options)
    items = parser.parse(stream)
    assert parser.error is None
    return items


def code_of(stream: bytes, maximum: Optional[int] = MAXIMUM, **options: Any) -> Optional[int]:
    """Return the error code of a stream, the same however it is cut."""
    codes = set()
    for cuts in ((), tuple(range(min(len(stream), 300))), tuple(range(len(stream)))[-300:]):
        parser = FrameParser(maximum, **options)
        parse_all(parser, stream, cuts)
        codes.add(parser.error.code if parser.error else None)
    (code,) = codes
    return code


# --- strategies --------------------------------------------------------------

lengths = st.one_of(
    st.integers(0, 8),
    st.sampled_from([124, 125, 126, 127, 128, 300, 4095, 4097, 65535, 65536, 65537]),
)
texts = st.one_of(
    st.text(max_size=40),
    st.builds(
        lambda c, n: c * (n // len(c.encode())), st.text("aé€😀", min_size=1, max_size=3), lengths
    ),
)
binaries = st.one_of(
    st.binary(max_size=40), st.builds(lambda n: b"\x81\x82\x00\xff" * (n // 4), lengths)
)
controls = st.one_of(
    st.builds(Ping, st.binary(max_size=125)), st.builds(Pong, st.binary(max_size=125))
)
closes = st.one_of(
    st.just(Close(1005, "")),
    st.builds(Close, st.sampled_from([1000, 1001, 1011, 3000, 4999]), st.text(max_size=30)),
)


def control_frame(item: Any) -> bytes:
    if isinstance(item, Close):
        payload = struct.pack(">H", item.code) + item.reason.encode() if item.code != 1005 else b""
        return frame(OP_CLOSE, payload)
    return frame(OP_PING if isinstance(item, Ping) else OP_PONG, item.payload)


def encoded(message: Union[str, bytes]) -> Tuple[int, bytes]:
    if isinstance(message, str):
        return OP_TEXT, message.encode()
    return OP_BINARY, message


def message_frame(message: Union[str, bytes]) -> bytes:
    return frame(*encoded(message))


@st.composite
def runs(draw: Any) -> List[Any]:
    """Messages of one kind and length, some of them more than are parsed at once."""
    count = draw(st.sampled_from([7, 8, 9, 40, 256, 257, 600]))
    several = draw(
        st.sampled_from(
            [
                ["", ""],
                [b"", b""],
                ["a", "b"],
                ["é1", "ab2"],
                ["\x81\x04", "€"],
                [b"\x81\x02", b"no"],
            ]
        )
    )
    if count < 10:  # and longer ones
        several = [message * draw(st.sampled_from([1, 63, 126, 2048, 4096])) for message in several]
    return [several[i % 2] for i in range(count)]


@st.composite
def streams(draw: Any) -> Tuple[bytes, List[Any]]:
    """A valid stream and the items it means."""
    stream, items = b"", []
    for _ in range(draw(st.integers(0, 6))):
        message = draw(st.one_of(texts, binaries, controls, runs()))
        if isinstance(message, list):
            stream += b"".join(map(message_frame, message))
            items += message
            continue
        if isinstance(message, tuple):
            stream += control_frame(message)
            items.append(message)
            continue
        opcode, payload = encoded(message)
        rsv = 0
        if draw(st.booleans()):
            payload, rsv = deflate(payload), 4
        cuts = draw(st.lists(st.integers(0, len(payload)), max_size=3))
        edges = [0, *sorted(cuts), len(payload)]
        for i, (begin, end) in enumerate(zip(edges, edges[1:])):
            final = i == len(edges) - 2
            stream += frame(opcode, payload[begin:end], final, rsv)
            opcode, rsv = OP_CONT, 0
            if not final and draw(st.booleans()):
                control = draw(controls)
                stream += control_frame(control)
                items.append(control)
        items.append(message)
    if draw(st.booleans()):
        close = draw(closes)
        stream += control_frame(close) + draw(st.binary(max_size=5))
        items.append(close)
    return stream, items


cut_lists = st.lists(st.integers(0, 1 << 20), max_size=12).map(tuple)
limits = st.one_of(st.integers(1, 3), st.sampled_from([20, 300, 1 << 60]))


# --- properties --------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(streams(), cut_lists, limits, limits)
def test_a_valid_stream_gives_its_items_however_it_is_cut(
    stream: Tuple[bytes, List[Any]], cuts: Tuple[int, ...], limit: int, most: int
) -> None:
    parser = FrameParser(MAXIMUM, inflater=ZlibInflater())
    items, size = parse_all(parser, stream[0], cuts, limit, most)
    assert items == stream[1]
    assert parser.error is None
    assert parser.partial == 0
    whole = FrameParser(MAXIMUM, inflater=ZlibInflater())
    assert parse_all(whole, stream[0]) == (items, size)


@settings(max_examples=200, deadline=None)
@given(streams(), cut_lists, limits, limits)
def test_the_fragments_of_a_valid_stream_join_to_its_messages(
    stream: Tuple[bytes, List[Any]], cuts: Tuple[int, ...], limit: int, most: int
) -> None:
    parser = FrameParser(MAXIMUM, fragments=True, inflater=ZlibInflater())
    items, size = parse_all(parser, stream[0], cuts, limit, most)
    assert parser.error is None
    whole = FrameParser(MAXIMUM, fragments=True, inflater=ZlibInflater())
    assert parse_all(whole, stream[0]) == (items, size)
    joined, parts = [], []
    for item in items:
        if isinstance(item, Fragment):
            parts.append(item.data)
            if item.final:
                empty: Any = "" if item.opcode == OP_TEXT else b""
                joined.append(empty.join(parts))
                parts.clear()
        else:
            joined.append(item)
    assert joined == stream[1]


@settings(max_examples=300, deadline=None)
@given(streams(), st.data(), cut_lists, limits, limits, st.booleans())
def test_a_damaged_stream_fails_alike_however_it_is_cut(
    stream: Tuple[bytes, List[Any]],
    data: Any,
    cuts: Tuple[int, ...],
    limit: int,
    most: int,
    fragments: bool,
) -> None:
    damaged = bytearray(stream[0][:2000])
    for _ in range(data.draw(st.integers(0, 3))):
        if damaged:
            damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    # Without an inflater: how far one gets before it meets garbage is not the parser's matter.
    one = FrameParser(MAXIMUM, fragments=fragments)
    other = FrameParser(MAXIMUM, fragments=fragments)
    assert parse_all(one, bytes(damaged)) == parse_all(other, bytes(damaged), cuts, limit, most)
    assert repr(one.error) == repr(other.error)
    assert one.partial == other.partial


@settings(max_examples=500, deadline=None)
@given(st.binary(max_size=60), cut_lists, st.integers(0, 200), st.booleans())
@example(b"\x81\x01\xff", (), 0, False)
def test_arbitrary_bytes_never_raise(
    stream: bytes, cuts: Tuple[int, ...], maximum: int, fragments: bool
) -> None:
    parser = FrameParser(maximum, fragments=fragments, inflater=ZlibInflater())
    items, _ = parse_all(parser, stream, cuts)
    for item in items:
        if isinstance(item, (str, bytes)):
            assert len(item.encode() if isinstance(item, str) else item) <= maximum
    if parser.error is not None:
        assert isinstance(parser.error, ProtocolError)
        assert parser.error.code in (1002, 1007, 1009)
        assert parser.parse(frame(OP_TEXT, b"more")) == []
        assert (parser.size, parser.pending, parser.plain) == (0, False, True)


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from([OP_TEXT, OP_BINARY]),
    st.one_of(texts.map(str.encode), binaries),
    st.booleans(),
    st.booleans(),
)
def test_a_frame_encoded_and_parsed_is_the_same(
    opcode: int, payload: bytes, fin: bool, rsv1: bool
) -> None:
    got = decode_client_frame(encode_frame(opcode | fin << 7 | rsv1 << 6, payload))
    assert got == (fin, 4 if rsv1 else 0, opcode, got.key, payload)
    items = parse(frame(OP_BINARY, got.payload))
    assert items == [payload]


# --- rules, by example -------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65535, 65536, 65537])
def test_every_form_of_length(size: int) -> None:
    stream = frame(OP_TEXT, b"t" * size) + frame(OP_BINARY, b"b" * size)
    assert parse(stream) == ["t" * size, b"b" * size]
    whole = encode_frame(FIN | OP_BINARY, b"b" * size)
    got = decode_client_frame(whole)
    assert got.fin and got.opcode == OP_BINARY and got.payload == b"b" * size


@pytest.mark.parametrize("size", [0, 126, 65536, 1 << 18, (1 << 18) + 1, (1 << 20) + 3])
def test_a_frame_in_parts_is_the_same_frame(size: int) -> None:
    payload = os.urandom(size)
    header, body, rest = encode_parts(FIN | OP_BINARY, payload)
    got = decode_client_frame(b"".join((header, body, *rest)))
    assert got.fin and got.opcode == OP_BINARY and got.payload == payload


@pytest.mark.parametrize(
    "stream",
    [
        pytest.param(frame(OP_TEXT, b"x", rsv=4), id="RSV1 without an extension"),
        pytest.param(frame(OP_TEXT, b"x", rsv=2), id="RSV2"),
        pytest.param(frame(OP_BINARY, b"x", rsv=1), id="RSV3"),
        pytest.param(frame(OP_PING, b"", rsv=4), id="RSV1 on a control frame"),
        pytest.param(frame(OP_PONG, b"", rsv=1), id="RSV3 on a control frame"),
        pytest.param(frame(OP_TEXT, fin=False) + frame(OP_CONT, rsv=4), id="RSV1, continuation"),
        pytest.param(b"\x81\x81\x00\x00\x00\x00x", id="masked"),
        pytest.param(b"\x89\x80\x00\x00\x00\x00", id="masked control frame"),
        pytest.param(b"\x81\xfe", id="masked, long"),
        pytest.param(frame(OP_CONT, b"x"), id="continuation of nothing"),
        pytest.param(frame(OP_CONT, b"x", fin=False), id="unfinished continuation of nothing"),
        pytest.param(
            frame(OP_TEXT, b"x", fin=False) + frame(OP_CONT) + frame(OP_CONT),
            id="continuation after the end",
        ),
        pytest.param(frame(OP_TEXT, fin=False) + frame(OP_TEXT), id="text inside a message"),
        pytest.param(frame(OP_TEXT, fin=False) + frame(OP_BINARY), id="binary inside a message"),
        pytest.param(frame(OP_PING, fin=False), id="fragmented ping"),
        pytest.param(frame(OP_CLOSE, fin=False), id="fragmented close"),
        pytest.param(frame(OP_PING, b"x" * 126), id="long ping"),
        pytest.param(b"\x88\x7f", id="longer close"),
        pytest.param(b"\x81\x7e\x00\x7d" + b"x" * 125, id="125 in two bytes"),
        pytest.param(b"\x82\x7e\x00\x00", id="0 in two bytes"),
        pytest.param(b"\x82\x7f" + struct.pack(">Q", 65535), id="65535 in eight bytes"),
        pytest.param(b"\x82\x7f" + struct.pack(">Q", 1 << 63), id="highest bit"),
        pytest.param(b"\x81\x7f" + b"\xff" * 8, id="all bits"),
        pytest.param(frame(OP_CLOSE, b"\x03"), id="half a close code"),
        *(pytest.param(frame(opcode), id=f"opcode {opcode}") for opcode in (3, 4, 5, 6, 7)),
        *(pytest.param(frame(opcode), id=f"opcode {opcode}") for opcode in range(11, 16)),
    ],
)
@pytest.mark.parametrize("fragments", [False, True])
def test_a_broken_rule_is_a_protocol_error(stream: bytes, fragments: bool) -> None:
    assert code_of(stream, fragments=fragments) == 1002
    # With items before it, which are kept.
    parser = FrameParser(MAXIMUM)
    assert parser.parse(frame(OP_TEXT, b"before") + stream)[0] == "before"
    assert parser.error is not None
    assert parser.error.code == 1002


@pytest.mark.parametrize("opcode", [OP_CLOSE, OP_PING, OP_CONT])
def test_rsv1_is_for_a_messages_first_frame_only(opcode: int) -> None:
    stream = frame(OP_BINARY, b"x", fin=False) + frame(opcode, rsv=4)
    assert code_of(stream, inflater=ZlibInflater()) == 1002


SENDABLE = [1000, 1001, 1002, 1003, *range(1007, 1015), 3000, 3999, 4000, 4999]
NOT_SENDABLE = [0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535]


@pytest.mark.parametrize("code", SENDABLE)
def test_close_codes(code: int) -> None:
    payload = struct.pack(">H", code) + "für".encode()
    assert parse(frame(OP_CLOSE, payload)) == [Close(code, "für")]
    assert check_close(code, "für") == payload
    assert encode_close(code, "für") == payload


@pytest.mark.parametrize("code", NOT_SENDABLE)
def test_close_codes_that_must_not_be_sent(code: int) -> None:
    assert code_of(frame(OP_CLOSE, struct.pack(">H", code))) == 1002
    with pytest.raises(ValueError, match=str(code)):
        check_close(code, "")


def test_close_without_a_code() -> None:
    assert parse(frame(OP_CLOSE)) == [Close(1005, "")]
    assert encode_close(None, "lost") == encode_close(1005) == b""


def test_close_with_an_invalid_reason() -> None:
    assert code_of(frame(OP_CLOSE, b"\x03\xe8\xff")) == 1007
    assert code_of(frame(OP_CLOSE, b"\x03\xe8\xe2\x82")) == 1007


def test_nothing_counts_after_a_close_frame() -> None:
    parser = FrameParser(MAXIMUM)
    stream = frame(OP_BINARY, b"x", fin=False) + frame(OP_CLOSE) + frame(OP_PING) + b"\xff\xff"
    assert parser.parse(stream) == [Close(1005, "")]
    assert parser.parse(frame(OP_TEXT, b"late") + b"\xff\xff") == []
    assert parser.error is None
    assert (parser.partial, parser.pending, parser.plain) == (0, False, True)


def test_check_close_judges_what_a_user_gives() -> None:
    assert check_close(1000, "é" * 61) == b"\x03\xe8" + "é".encode() * 61
    assert check_close(1000, "") == b"\x03\xe8"
    with pytest.raises(ValueError, match="123 bytes"):
        check_close(1000, "é" * 62)
    with pytest.raises(ValueError, match="surrogates"):
        check_close(1000, "\ud800")
    wrong: Any
    for wrong in ("1000", 1000.0, None, True):
        with pytest.raises(TypeError, match="code"):
            check_close(wrong, "")
    for wrong in (b"bytes", None):
        with pytest.raises(TypeError, match="reason"):
            check_close(1000, wrong)


def test_encode_close_makes_any_reason_fit() -> None:
    assert encode_close(1002, "x" * 200) == b"\x03\xea" + b"x" * 123
    assert encode_close(1002, "€" * 50) == b"\x03\xea" + "€".encode() * 41
    assert encode_close(1002, "x" + "€" * 50) == b"\x03\xea" + b"x" + "€".encode() * 40
    assert encode_close(1002, "\ud800") == b"\x03\xea?"


def test_control_frames_between_fragments() -> None:
    stream = (
        frame(OP_TEXT, "grü".encode()[:3], fin=False)
        + frame(OP_PING, b"p" * 125)
        + frame(OP_CONT, "grü".encode()[3:], fin=False)
        + frame(OP_PONG)
        + frame(OP_CONT, b"n")
        + frame(OP_BINARY, b"next")
    )
    assert parse(stream) == [Ping(b"p" * 125), Pong(b""), "grün", b"next"]


def test_text_is_str_and_binary_is_bytes() -> None:
    parser = FrameParser(None)
    got = parser.parse(frame(OP_TEXT, b"") + frame(OP_BINARY, b"") + frame(OP_TEXT, b"abc"))
    assert got == ["", b"", "abc"]
    assert parser.plain
    assert parser.parse(frame(OP_TEXT, b"a") + frame(OP_PING)) == ["a", Ping(b"")]
    assert not parser.plain
    assert parser.parse(b"") == []
    assert parser.plain


# --- UTF-8 -------------------------------------------------------------------


def test_invalid_text_fails_with_the_byte_that_makes_it_so() -> None:
    starts = {
        character[:cut]
        for character in (chr(c).encode("utf-8", "surrogatepass") for c in range(0x110000))
        if not (len(character) == 3 and b"\xed\xa0" <= character[:2] <= b"\xed\xbf")
        for cut in range(1, len(character) + 1)
    }
    edges = bytes.fromhex("417f808f909fa0bfc0c1c2dfe0e1ecedeeeff0f1f3f4f5f8ff")
    header = b"\x81\x7e\x01\x00"  # 256 bytes, which never come
    for sequence in itertools.product(edges, repeat=3):
        parser = FrameParser(MAXIMUM)
        parser.parse(header)
        character = b""
        for byte in sequence:
            character += bytes([byte])
            parser.parse(bytes([byte]))
            if character not in starts:
                assert parser.error is not None, sequence
                assert parser.error.code == 1007
                break
            assert parser.error is None, sequence
            if is_complete(character):
                character = b""


def is_complete(character: bytes) -> bool:
    try:
        return len(character.decode()) == 1
    except UnicodeDecodeError:
        return False


@pytest.mark.parametrize(
    "payload", [b"\xff", b"\xe2\x82", b"\xc0\xaf", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"a\x80b"]
)
@pytest.mark.parametrize("fragments", [False, True])
def test_invalid_text_after_good_messages(payload: bytes, fragments: bool) -> None:
    good = frame(OP_TEXT, b"one") + frame(OP_BINARY, b"\xff")
    for bad in (
        frame(OP_TEXT, payload),
        frame(OP_TEXT, payload + b"x" * 200),
        frame(OP_TEXT, b"x" * 10_000 + payload),
        frame(OP_TEXT, b"x" * 70_000 + payload),
        frame(OP_TEXT, b"ok", fin=False) + frame(OP_CONT, payload),
    ):
        parser = FrameParser(None, fragments=fragments)
        items = parser.parse(good + bad)
        if fragments:
            assert items[:2] == [Fragment("one", 1, True), Fragment(b"\xff", 2, True)]
        else:
            assert items == ["one", b"\xff"]
            assert parser.size == len(good)
        assert parser.error is not None
        assert parser.error.code == 1007
        assert not parser._parts, "what can never be delivered is let go"
        assert code_of(good + bad, None, fragments=fragments) == 1007


@pytest.mark.parametrize("opcode", [OP_TEXT, OP_BINARY])
@pytest.mark.parametrize("place", [0, 1, 7, 8, 9, 255, 256, 257, 298, 299])
@pytest.mark.parametrize(
    "other",
    [
        frame(OP_PING, b"four"),
        frame(OP_TEXT, b"other"),
        frame(OP_BINARY, b"four"),
        frame(OP_TEXT, "€".encode() + b"\xff"),
        frame(OP_TEXT, b"four", False) + frame(OP_CONT, b""),
        frame(OP_TEXT, b"four", True, 4),
        frame(OP_TEXT, b"four", True, 1),
        frame(OP_CONT, b"four"),
        b"\x81\x84keyfmask",
        b"\x81\x7e\x00\x04four",
        frame(OP_TEXT, b"f" * (MAXIMUM + 1)),
        frame(OP_CLOSE, b"\x03\xe8ok"),
    ],
)
def test_a_run_of_equal_messages_ends_where_it_does(opcode: int, place: int, other: bytes) -> None:
    check_run([frame(opcode, b"%04d" % i) for i in range(300)], place, other, 1)


@pytest.mark.parametrize("opcode", [OP_TEXT, OP_BINARY])
@pytest.mark.parametrize("size", [126, 4095, 4096, 65535])
@pytest.mark.parametrize("place", [0, 1, 7, 8, 9, 18])
def test_a_run_of_longer_messages_ends_where_it_does(opcode: int, size: int, place: int) -> None:
    run = [frame(opcode, b"%0*d" % (size, i)) for i in range(19)]
    for other in (
        frame(OP_PING, b"four"),
        frame(opcode, b"f" * (size - 1)),
        frame(opcode, b"f" * (size + 1)),
        frame(3 - opcode, b"f" * size),
        frame(OP_TEXT, b"f" * (size - 1) + b"\xff"),
        frame(opcode, b"f" * size, False) + frame(OP_CONT, b""),
        frame(opcode, b"f" * size, True, 4),
        bytes((0x80 | opcode, 0xFE)) + run[0][2:],
        bytes((0x80 | opcode, 127)) + struct.pack(">Q", size) + b"f" * size,
        bytes((0x80 | opcode, 126, 0, 125)) + b"f" * 125,
    ):
        check_run(run, place, other, 1 + size // 5)


def check_run(run: List[bytes], place: int, other: bytes, step: int) -> None:
    """Check what comes of a run with another frame in it, at once and `step` bytes at a time."""
    stream = b"".join([*run[:place], other, *run[place:]])
    one, other_one = FrameParser(MAXIMUM), FrameParser(MAXIMUM)
    got = parse_all(one, stream)
    assert got == parse_all(other_one, stream, tuple(range(0, len(stream), step)))
    assert repr(one.error) == repr(other_one.error)
    assert len(got[0]) >= place
    for limit in (8, 16, 100):
        assert parse_all(FrameParser(MAXIMUM), stream, (), limit) == got


def test_a_run_of_wrong_frames_is_wrong() -> None:
    for wrong, code in (
        (b"\x81\x7e\x00\x7d" + b"f" * 125, 1002),
        (b"\x82\xfe\x00\x80" + b"f" * 128, 1002),
        # Taken for two bytes of header, these would be alike as well.
        (b"\x81\x7f" + struct.pack(">Q", 119) + b"f" * 119, 1002),
        (b"\x82\x84" + b"f" * 132, 1002),
        (frame(OP_BINARY, b"f" * 201), 1009),
        (frame(OP_TEXT, b"f" * 199 + b"\xff"), 1007),
        (frame(OP_TEXT, b"f" * 99 + b"\xff"), 1007),
    ):
        parser = FrameParser(200)
        assert parser.parse(20 * frame(OP_TEXT, b"ok" * 100) + 20 * wrong) == 20 * ["ok" * 100]
        assert parser.error is not None
        assert parser.error.code == code
        assert code_of(20 * wrong, 200) == code


def test_a_character_cut_by_the_end_of_its_message_is_invalid() -> None:
    stream = frame(OP_TEXT, b"\xe2", fin=False) + frame(OP_CONT, b"\x82", fin=False)
    assert code_of(stream) is None
    assert code_of(stream + frame(OP_CONT, b"\xac")) is None
    assert code_of(stream + frame(OP_CONT, b"")) == 1007


# --- sizes -------------------------------------------------------------------


@pytest.mark.parametrize("maximum", [0, 1, 100, 125, 126, 200, 65535, 65536, 100_000])
def test_the_largest_message_and_one_byte_more(maximum: int) -> None:
    fits = b"x" * maximum
    assert parse(frame(OP_TEXT, fits), maximum) == [fits.decode()]
    parts = frame(OP_BINARY, fits, fin=False)
    assert parse(parts + frame(OP_CONT), maximum) == [fits]
    assert code_of(frame(OP_TEXT, fits + b"x"), maximum) == 1009
    assert code_of(parts + frame(OP_CONT, b"x"), maximum) == 1009


@pytest.mark.parametrize("fragments", [False, True])
def test_too_big_is_known_from_the_header(fragments: bool) -> None:
    headers = [
        b"\x82\x7e" + struct.pack(">H", 1001),
        b"\x81\x7f" + struct.pack(">Q", 1 << 62),
        frame(OP_TEXT, b"x" * 990, fin=False) + b"\x80\x0b",
        frame(OP_TEXT, b"x" * 990, fin=False) + frame(OP_CONT, b"x" * 10, fin=False) + b"\x00\x01",
    ]
    for header in headers:
        parser = FrameParser(1000, fragments=fragments)
        parser.parse(header[:-1])
        assert parser.error is None
        parser.parse(header[-1:])
        assert isinstance(parser.error, MessageTooBig)
        assert parser.error.code == 1009
        assert parser.partial == 0


def test_a_frame_of_2_to_the_62_costs_nothing() -> None:
    parser = FrameParser(None)
    tracemalloc.start()
    try:
        parser.parse(b"\x82\x7f" + struct.pack(">Q", 1 << 62))
        parser.parse(b"x" * 100)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert parser.error is None
    assert parser.partial == 100
    assert peak < 10_000


def test_empty_fragments_do_not_pile_up() -> None:
    parser = FrameParser(MAXIMUM)
    parser.parse(frame(OP_TEXT, b"begin ", fin=False))
    block = frame(OP_CONT, fin=False) * 20_000
    tracemalloc.start()
    try:
        for _ in range(4):
            assert parse_all(parser, block)[0] == []
        kept, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert kept < 5_000
    assert len(parser._parts) == 1
    assert parser.partial == len("begin ")
    assert parser.parse(frame(OP_CONT, b"end")) == ["begin end"]


class CountingParser(FrameParser):
    """Counts the bytes and characters that are copied by joining."""

    joined = 0

    def _join(self, begin: int) -> Any:
        result = super()._join(begin)
        self.joined += len(result)
        return result


@pytest.mark.parametrize("opcode", [OP_TEXT, OP_BINARY])
def test_a_message_that_trickles_in_costs_in_proportion(opcode: int) -> None:
    payload = b"0123456789abcdef" * 5_000
    stream = frame(opcode, payload)
    parser = CountingParser(None)
    tracemalloc.start()
    try:
        items: List[Any] = []
        for i in range(0, len(stream), 2):
            items += parser.parse(stream[i : i + 2])
            # Nothing but an unfinished header is parsed a second time.
            assert len(parser._buffer) < 10
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert items == [payload.decode() if opcode == OP_TEXT else payload]
    assert parser.joined <= 2 * len(payload)
    assert parser._parts == []
    assert parser._compacted == 0
    # Parts and result; one object for each read would take twenty times the payload.
    assert peak < 3 * len(payload)


def test_a_message_of_many_fragments_is_joined_once() -> None:
    parts = [bytes([65 + i % 26]) * 50 for i in range(5_000)]
    opcodes = itertools.chain([OP_TEXT], itertools.repeat(OP_CONT))
    stream = b"".join(frame(o, part, fin=False) for o, part in zip(opcodes, parts))
    parser = CountingParser(None)
    assert parse_all(parser, stream) == ([], 0)
    assert parser.partial == 250_000
    assert parser.joined <= 250_000  # only to compact
    assert parser.parse(frame(OP_CONT)) == [b"".join(parts).decode()]
    assert parser.joined <= 500_000
    assert parser.partial == 0
    assert parser.size == len(stream) + 2


def test_size_counts_the_wire_of_data_frames_only() -> None:
    parser = FrameParser(None)
    short, medium = frame(OP_TEXT, b"x" * 64), frame(OP_BINARY, b"x" * 300)
    long, ping = frame(OP_BINARY, b"x" * 70_000), frame(OP_PING, b"p")
    parser.parse(short + ping + medium + long)
    assert parser.size == len(short + medium + long)
    parser.parse(long[:1000])
    assert (parser.size, parser.partial) == (0, 1000 - 10)
    parser.parse(ping)  # payload of the message, as it happens
    parser.parse(long[1003:] + frame(OP_TEXT, b"a", fin=False) + ping)
    assert (parser.size, parser.partial) == (len(long), 1)
    parser.parse(frame(OP_CONT, b"b"))
    assert parser.size == 6


# --- limit -------------------------------------------------------------------


def test_limit_stops_after_so_many_messages() -> None:
    messages = [f"message {i}" for i in range(10)]
    stream = b"".join(frame(OP_TEXT, m.encode()) for m in messages) + frame(OP_PING, b"!")
    parser = FrameParser(None)
    assert parser.parse(stream, 4) == messages[:4]
    assert parser.pending
    assert parser.size == 44
    assert parser._buffer is stream, "what waits is not copied"
    assert parser.parse(b"", 4) == messages[4:8]
    assert parser._buffer is stream
    assert parser.parse(frame(OP_TEXT, b"new")[:3], 1) == messages[8:9]
    assert parser.parse(b"", 0) == []
    assert parser.pending
    assert parser.parse(b"", 2) == [messages[9], Ping(b"!")]
    assert not parser.pending
    assert parser.parse(b"ew", 1) == ["new"]
    assert not parser.pending
    assert parser.parse(b"", 1) == []


def test_limit_counts_long_fragmented_and_compressed_messages() -> None:
    stream = (
        frame(OP_BINARY, b"x" * 66_000)
        + frame(OP_PING)
        + frame(OP_TEXT, b"a", fin=False)
        + frame(OP_CONT, b"b")
        + frame(OP_BINARY, deflate(b"zip"), rsv=4)
    )
    parser = FrameParser(None, inflater=ZlibInflater())
    assert parser.parse(stream, 1) == [b"x" * 66_000]
    assert parser.parse(b"", 1) == [Ping(b""), "ab"]
    assert parser.pending
    assert parser.parse(b"", 1) == [b"zip"]
    assert not parser.pending


@pytest.mark.parametrize("fragments", [False, True])
@pytest.mark.parametrize("tiny", [frame(OP_PING), frame(OP_CONT, fin=False)])
def test_of_tiny_frames_a_thousand_are_parsed_at_a_time(tiny: bytes, fragments: bool) -> None:
    count = 100_000
    stream = frame(OP_TEXT, b"a", fin=False) + tiny * count + frame(OP_CONT, b"b")
    parser = FrameParser(None, fragments=fragments)
    items, calls, data = [], 0, stream
    while not calls or parser.pending:
        got = parser.parse(data)
        assert len(got) <= 1024
        items += got
        calls, data = calls + 1, b""
    assert calls == (count + 2) // 1024 + 1
    assert parser.partial == 0
    data_items = [item for item in items if not isinstance(item, Ping)]
    if fragments:
        assert "".join(item.data for item in data_items) == "ab"
        assert len(items) == count + 2
    else:
        assert data_items == ["ab"]


@pytest.mark.parametrize("size", [1, 20, 200, 70_000])
@pytest.mark.parametrize("compressed", [False, True])
def test_the_limit_of_bytes_stops_behind_the_message_that_comes_to_it(
    size: int, compressed: bool
) -> None:
    messages = [bytes((i,)) * size for i in range(100)]
    stream = b"".join(
        frame(OP_BINARY, deflate(m) if compressed else m, rsv=4 * compressed) for m in messages
    )
    parser = FrameParser(None, inflater=ZlibInflater())
    assert parser.parse(stream[:-1]) == messages[:-1]
    average = parser.size / 99
    for wanted in (1, 17, 50):
        parser = FrameParser(None, inflater=ZlibInflater())
        most = int(average * wanted) - 1
        got = parser.parse(stream, most=most)
        assert got == messages[:wanted]
        assert parser.size >= most
        assert parser.pending
        while parser.pending:
            got += parser.parse(b"", most=most)
        assert got == messages


def test_the_limit_may_stop_before_an_unfinished_frame() -> None:
    parser = FrameParser(None)
    assert parser.parse(frame(OP_TEXT, b"a") + b"\x81", 1) == ["a"]
    assert parser.pending
    assert parser.parse(b"", 1) == []
    assert not parser.pending
    assert parser.parse(b"\x01b", 1) == ["b"]


# --- fragments ---------------------------------------------------------------


def test_fragments_come_as_frames_with_whole_characters() -> None:
    stream = (
        frame(OP_TEXT, b"a\xe2", fin=False)
        + frame(OP_CONT, b"\x82", fin=False)
        + frame(OP_PING, b"p")
        + frame(OP_CONT, b"\xacb")
        + frame(OP_BINARY, b"\x01\x02", fin=False)
        + frame(OP_CONT, b"")
        + frame(OP_TEXT, b"whole")
    )
    expected = [
        Fragment("a", OP_TEXT, False),
        Fragment("", OP_TEXT, False),
        Ping(b"p"),
        Fragment("€b", OP_TEXT, True),
        Fragment(b"\x01\x02", OP_BINARY, False),
        Fragment(b"", OP_BINARY, True),
        Fragment("whole", OP_TEXT, True),
    ]
    parser = FrameParser(None, fragments=True)
    assert parser.parse(stream) == expected
    assert not parser.plain
    assert parser.size == len(stream) - 3
    assert parser.partial == 0
    bytewise = FrameParser(None, fragments=True)
    assert parse_all(bytewise, stream, tuple(range(len(stream)))) == (expected, len(stream) - 3)
    limited = FrameParser(None, fragments=True)
    assert limited.parse(stream, 3) == expected[:4]
    assert limited.pending
    assert limited.parse(b"", 3) == expected[4:]
    assert not limited.pending


# --- compression -------------------------------------------------------------


class RecordingInflater:
    """Passes bytes through and notes how it was called."""

    def __init__(self) -> None:
        self.calls: List[Any] = []

    def inflate(self, data: bytes, final: bool, max_length: int) -> Iterable[bytes]:
        self.calls.append((data, final, max_length))
        return [data, data]


def test_the_inflater_gets_payload_as_it_comes_and_the_room_left() -> None:
    inflater = RecordingInflater()
    parser = FrameParser(20, inflater=inflater)
    assert parser.parse(b"\x42\x03ab") == []
    assert parser.partial == 4
    assert parser.parse(b"c\x80\x00\x82\x01z") == [b"ababcc", b"z"]
    assert parser.size == 7 + 3
    assert inflater.calls == [
        (b"ab", False, 20),
        (b"c", False, 16),
        (b"", True, 14),
    ]
    unlimited = FrameParser(None, inflater=inflater)
    assert unlimited.parse(frame(OP_TEXT, b"x", rsv=4)) == ["xx"]
    assert inflater.calls[-1][2] > 1 << 30


def test_compressed_messages() -> None:
    parser = FrameParser(50_000, inflater=ZlibInflater())
    payload = deflate(b"x" * 50_000)
    stream = frame(OP_TEXT, payload, rsv=4) + frame(OP_TEXT, b"plain")
    assert parser.parse(stream) == ["x" * 50_000, "plain"]
    # A queue that is bounded by it must not be fooled by a good compression.
    assert parser.size == 50_000 + 7
    for cut in range(len(payload)):
        parts = frame(OP_BINARY, payload[:cut], False, 4) + frame(OP_CONT, payload[cut:])
        assert parser.parse(parts) == [b"x" * 50_000]


def test_compressed_messages_that_fail() -> None:
    def code(payload: bytes, maximum: int = 1000) -> Optional[int]:
        parser = FrameParser(maximum, inflater=ZlibInflater())
        assert parser.parse(frame(OP_TEXT, payload, rsv=4)) == []
        return parser.error.code if parser.error else None

    assert code(deflate(b"x" * 1001)) == 1009
    assert code(deflate(b"\xff")) == 1007
    assert code(b"\xff\xff\xff") == 1007
    # Longer compressed than plain is fair; twice as long is not, and need not be waited for.
    noise = os.urandom(1000)
    parser = FrameParser(1000, inflater=ZlibInflater())
    assert len(deflate(noise)) > 1000
    assert parser.parse(frame(OP_BINARY, deflate(noise), rsv=4)) == [noise]
    parser.parse(b"\xc2\x7f" + struct.pack(">Q", 1 << 62))
    assert isinstance(parser.error, MessageTooBig)


# --- what is left behind -----------------------------------------------------


@pytest.mark.parametrize(
    "stream",
    [
        frame(OP_CONT),
        frame(OP_TEXT, b"\xff"),
        frame(OP_TEXT, b"\xff", fin=False),
        frame(OP_TEXT, b"\xff\xff", rsv=4),
        frame(OP_TEXT, deflate(b"x" * 2000), rsv=4),
    ],
)
def test_an_error_holds_nothing_and_nothing_needs_the_collector(stream: bytes) -> None:
    gc.collect()
    gc.disable()
    try:
        inflater = ZlibInflater()
        freed = weakref.ref(inflater)
        parser = FrameParser(1000, inflater=inflater)
        parser.parse(stream)
        error: Optional[BaseException] = parser.error
        assert error is not None
        del parser, inflater
        assert freed() is None
        assert not isinstance(error.__context__, UnicodeDecodeError), "holds the payload"
        while error is not None:
            assert error.__traceback__ is None
            error = error.__context__
        assert gc.collect() == 0
    finally:
        gc.enable()


# --- masking and keys --------------------------------------------------------


def load_without_speedups(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Load the module a second time where websockets is not installed."""
    monkeypatch.setitem(sys.modules, "websockets.speedups", None)
    assert frames.__file__ is not None
    spec = importlib.util.spec_from_file_location("wsthread._frames_pure", frames.__file__)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@given(st.binary(max_size=70), st.binary(min_size=4, max_size=4))
@settings(max_examples=100, deadline=None)
def test_masking(data: bytes, key: bytes) -> None:
    frames.use_speedups()
    expected = bytes(byte ^ key[i % 4] for i, byte in enumerate(data))
    for function in (frames.mask, frames._mask):
        for given_data in (data, bytearray(data), memoryview(data)):
            got = function(given_data, key)
            assert type(got) is bytes
            assert got == expected


def test_speedups_are_used_where_they_are_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    speedups = pytest.importorskip("websockets.speedups")
    frames.use_speedups()
    assert frames.mask is speedups.apply_mask
    pure = load_without_speedups(monkeypatch)
    pure.use_speedups()
    assert pure.mask is pure._mask
    for payload in (b"", b"abc", bytes(range(256)) * 300):
        got = decode_client_frame(pure.encode_frame(FIN | OP_BINARY, payload))
        assert got.payload == payload


def test_every_frame_has_a_key_of_its_own() -> None:
    count = 3 * frames._KEYS.size // 4
    keys = [decode_client_frame(encode_frame(FIN | OP_PING, b"")).key for _ in range(count)]
    # One in 15,000 runs has two alike by chance; two pairs do not happen.
    assert len(set(keys)) >= count - 1
    # Every byte of the key is random: none takes few values over so many frames.
    assert all(len({key[i] for key in keys}) > 200 for i in range(4))


def test_threads_never_share_a_key(monkeypatch: pytest.MonkeyPatch) -> None:
    counter = itertools.count()

    def urandom(size: int) -> bytes:
        return b"".join(struct.pack(">I", next(counter)) for _ in range(size // 4))

    monkeypatch.setattr(frames, "os", types.SimpleNamespace(urandom=urandom))
    monkeypatch.setattr(frames, "_keys", [])
    results: List[List[bytes]] = [[] for _ in range(6)]
    start = threading.Barrier(len(results), timeout=10)

    def run(result: List[bytes]) -> None:
        start.wait()
        for _ in range(3000):
            result.append(encode_frame(FIN | OP_TEXT, b"")[2:6])

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=run, args=(result,)) for result in results]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
    finally:
        sys.setswitchinterval(interval)
    keys = [key for result in results for key in result]
    assert len(keys) == 18_000
    assert len(set(keys)) == len(keys)


FORK = """
import os
from wsthread.frames import encode_frame

def keys():
    return b"".join(encode_frame(0x89, b"")[2:6] for _ in range(100))

keys()
reader, writer = os.pipe()
child = os.fork()
if child == 0:
    os.write(writer, keys())
    os._exit(0)
os.waitpid(child, 0)
assert os.read(reader, 1000) != keys()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_does_not_repeat_its_parents_keys() -> None:
    subprocess.run([sys.executable, "-c", FORK], check=True, timeout=30)
