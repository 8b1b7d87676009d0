"""permessage-deflate: negotiation as tables, the two streams against zlib used plainly."""

from __future__ import annotations

import gc
import json
import random
import tracemalloc
import zlib
from typing import Iterator, List, Optional

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsthread.deflate import Agreement, Deflate, Inflater, make_offers, negotiate
from wsthread.errors import HandshakeError, MessageTooBig, ProtocolError, detach

TAIL = b"\x00\x00\xff\xff"
NAME = "permessage-deflate"
MIB = 1 << 20
ROOM = 64 * MIB


def records(count: int, seed: int = 0) -> bytes:
    chosen = random.Random(seed)
    return json.dumps(
        [{"id": chosen.randrange(10**9), "price": chosen.random()} for _ in range(count)]
    ).encode()


def plain_compress(encoder, payload: bytes, flush: int = zlib.Z_SYNC_FLUSH) -> bytes:
    data = encoder.compress(payload) + encoder.flush(flush)
    assert data.endswith(TAIL)
    return data[:-4]


def inflate(inflater: Inflater, *chunks: bytes, room: int = ROOM) -> bytes:
    """Feed one message in chunks, the allowance shrinking as frames.py shrinks it."""
    result = b""
    for index, chunk in enumerate(chunks):
        final = index == len(chunks) - 1
        result += b"".join(inflater.inflate(chunk, final, room - len(result)))
    return result


def slices(data: bytes, size: int) -> List[bytes]:
    return [data[i : i + size] for i in range(0, len(data), size)] or [b""]


# Offers


@pytest.mark.parametrize(
    ("options", "header"),
    [
        ({}, "permessage-deflate; client_max_window_bits"),
        ({"client_max_window_bits": None}, "permessage-deflate"),
        ({"client_max_window_bits": False}, "permessage-deflate"),
        ({"client_max_window_bits": 8}, "permessage-deflate; client_max_window_bits=8"),
        ({"client_max_window_bits": 15}, "permessage-deflate; client_max_window_bits=15"),
        (
            {
                "client_no_context_takeover": True,
                "server_no_context_takeover": True,
                "client_max_window_bits": 10,
                "server_max_window_bits": 12,
            },
            "permessage-deflate; client_no_context_takeover; server_no_context_takeover; "
            "client_max_window_bits=10; server_max_window_bits=12",
        ),
        # What is local does not show.
        (
            {"level": 1, "memory_level": 9, "threshold": 0},
            "permessage-deflate; client_max_window_bits",
        ),
    ],
)
def test_offer(options, header):
    assert Deflate(**options).offer() == header


@pytest.mark.parametrize(
    ("option", "wrong", "out_of_range", "right"),
    [
        ("client_no_context_takeover", [1, None, "yes"], [], [True, False]),
        ("server_no_context_takeover", [1, None, "yes"], [], [True, False]),
        ("client_max_window_bits", ["12", 12.0], [7, 16, 0, -15], [8, 15, True, False, None]),
        ("server_max_window_bits", ["12", 12.0, True, False], [7, 16, 0, -15], [8, 15, None]),
        ("level", ["6", 6.0, None, True], [-2, 10], [-1, 0, 9]),
        ("memory_level", ["6", 6.0, None, True], [0, 10], [1, 9]),
        ("threshold", ["6", 6.0, None, True], [-1], [0, 10**9]),
    ],
)
def test_option_values(option, wrong, out_of_range, right):
    for value in wrong:
        with pytest.raises(TypeError, match=option):
            Deflate(**{option: value})
    for value in out_of_range:
        with pytest.raises(ValueError, match=option):
            Deflate(**{option: value})
    for value in right:
        assert getattr(Deflate(**{option: value}), option) is value


def test_make_offers():
    small, large = Deflate(server_max_window_bits=9), Deflate()
    assert make_offers(None) == ()
    assert make_offers("deflate") == (Deflate(),)
    assert make_offers(small) == (small,)
    assert make_offers([small, large]) == (small, large)
    assert make_offers((large, small)) == (large, small)
    assert make_offers([]) == ()
    with pytest.raises(ValueError, match="gzip"):
        make_offers("gzip")
    for wrong in (True, 5, b"deflate", ["deflate"], [small, None], {small}):
        with pytest.raises(TypeError):
            make_offers(wrong)


# Answers


def element(text: str):
    """Parse `name; parameter=value` without the quotes' meaning: these tables have none."""
    name, *parameters = text.split("; ")
    split = [p.split("=", 1) if "=" in p else [p, None] for p in parameters]
    return name, [(n, v) for n, v in split]


@pytest.mark.parametrize(
    ("options", "answer", "agreed"),
    [
        ({}, "permessage-deflate", Agreement()),
        # The server may limit itself without being asked (7.1.1.1, 7.1.2.1).
        ({}, f"{NAME}; server_no_context_takeover", Agreement(server_no_context_takeover=True)),
        ({}, f"{NAME}; server_max_window_bits=8", Agreement(server_max_window_bits=8)),
        ({}, f"{NAME}; server_max_window_bits=15", Agreement()),
        ({}, f'{NAME}; server_max_window_bits="10"', Agreement(server_max_window_bits=10)),
        # It may demand that the client keeps no context (7.1.1.2).
        ({}, f"{NAME}; client_no_context_takeover", Agreement(client_no_context_takeover=True)),
        # A hint of the client's binds the client even where the answer is silent (7.1.1.2).
        (
            {"client_no_context_takeover": True},
            NAME,
            Agreement(client_no_context_takeover=True),
        ),
        (
            {"server_no_context_takeover": True},
            f"{NAME}; server_no_context_takeover",
            Agreement(server_no_context_takeover=True),
        ),
        (
            {"server_max_window_bits": 12},
            f"{NAME}; server_max_window_bits=12",
            Agreement(server_max_window_bits=12),
        ),
        (
            {"server_max_window_bits": 12},
            f"{NAME}; server_max_window_bits=9",
            Agreement(server_max_window_bits=9),
        ),
        # Nothing was asked for, so nothing is missing.
        ({"server_max_window_bits": 15}, NAME, Agreement()),
        ({}, f"{NAME}; client_max_window_bits=8", Agreement(client_max_window_bits=8)),
        ({}, f"{NAME}; client_max_window_bits=15", Agreement()),
        (
            {"client_max_window_bits": 12},
            f"{NAME}; client_max_window_bits=10",
            Agreement(client_max_window_bits=10),
        ),
        # The server may ignore the value of a hint; the client keeps to it (7.1.2.2).
        ({"client_max_window_bits": 12}, NAME, Agreement(client_max_window_bits=12)),
        (
            {"client_max_window_bits": 12},
            f"{NAME}; client_max_window_bits=15",
            Agreement(client_max_window_bits=12),
        ),
        (
            {"level": 1, "memory_level": 9, "threshold": 7},
            NAME,
            Agreement(level=1, memory_level=9, threshold=7),
        ),
    ],
)
def test_answer_accepted(options, answer, agreed):
    assert negotiate([Deflate(**options)], [element(answer)]) == agreed


@pytest.mark.parametrize(
    ("options", "answer", "reason"),
    [
        ({}, "x-webkit-deflate-frame", "x-webkit-deflate-frame was not offered"),
        ({}, "Permessage-Deflate", "Permessage-Deflate was not offered"),
        ({}, f"{NAME}, {NAME}", "permessage-deflate comes twice"),
        ({}, f"{NAME}, other", "other was not offered"),
        ({}, f"{NAME}; window=9", "window is unknown"),
        ({}, f"{NAME}; Server_max_window_bits=9", "Server_max_window_bits is unknown"),
        ({}, f"{NAME}; server_no_context_takeover=1", "takes no value"),
        ({}, f"{NAME}; client_no_context_takeover=true", "takes no value"),
        ({}, f"{NAME}; client_no_context_takeover=", "takes no value"),
        (
            {},
            f"{NAME}; server_no_context_takeover; server_no_context_takeover",
            "server_no_context_takeover comes twice",
        ),
        (
            {},
            f"{NAME}; client_max_window_bits=9; client_max_window_bits=9",
            "client_max_window_bits comes twice",
        ),
        *[
            ({}, f"{NAME}; {side}_max_window_bits{value}", f"{side}_max_window_bits takes a value")
            for side in ("client", "server")
            for value in ("", "=", "=7", "=16", "=08", "=+9", "=9.0", "=nine", '="09"', '="', '=""')
        ],
        (
            {"client_max_window_bits": None},
            f"{NAME}; client_max_window_bits=15",
            "client_max_window_bits was not offered",
        ),
        (
            {"client_max_window_bits": False},
            f"{NAME}; client_max_window_bits=9",
            "client_max_window_bits was not offered",
        ),
        (
            {"server_max_window_bits": 11},
            f"{NAME}; server_max_window_bits=12",
            "server_max_window_bits of at most 11 was asked for",
        ),
        (
            {"server_max_window_bits": 11},
            NAME,
            "server_max_window_bits of at most 11 was asked for",
        ),
        (
            {"server_no_context_takeover": True},
            f"{NAME}; client_no_context_takeover",
            "server_no_context_takeover was asked for and is missing",
        ),
    ],
)
def test_answer_refused(options, answer, reason):
    with pytest.raises(HandshakeError) as caught:
        negotiate([Deflate(**options)], [element(e) for e in answer.split(", ")])
    assert str(caught.value).endswith(reason) or reason in str(caught.value)
    assert f"Sec-WebSocket-Extensions: {answer}: " in str(caught.value)


def test_no_answer_is_no_compression():
    assert negotiate([Deflate()], []) is None
    assert negotiate([], []) is None


def test_an_answer_without_an_offer_is_refused():
    with pytest.raises(HandshakeError, match="permessage-deflate was not offered"):
        negotiate([], [element(NAME)])


def test_several_offers():
    offers = [
        Deflate(server_max_window_bits=10, level=9),
        Deflate(server_no_context_takeover=True, level=5),
        Deflate(client_max_window_bits=None, server_max_window_bits=13, level=1),
    ]

    def agree(answer: str) -> Optional[Agreement]:
        return negotiate(offers, [element(answer)])

    assert agree(f"{NAME}; server_max_window_bits=9").level == 9
    assert agree(f"{NAME}; server_max_window_bits=9; server_no_context_takeover").level == 9
    assert agree(f"{NAME}; server_no_context_takeover").level == 5
    assert agree(f"{NAME}; server_max_window_bits=12").level == 1
    with pytest.raises(HandshakeError, match="at most 10"):
        agree(f"{NAME}; server_max_window_bits=14")


def test_agreement_in_the_header_form():
    assert str(Agreement()) == NAME
    assert str(Agreement(True, True, 9, 10)) == (
        f"{NAME}; client_no_context_takeover; server_no_context_takeover; "
        "client_max_window_bits=9; server_max_window_bits=10"
    )


# RFC 7692 section 7.2.3


def test_rfc_one_block_and_a_shared_window():
    deflater = Agreement(threshold=0).deflater()
    assert deflater.compress(b"Hello") == bytes.fromhex("f248cdc9c90700")
    assert deflater.compress(b"Hello") == bytes.fromhex("f200110000")
    inflater = Agreement().inflater()
    first, second = bytes.fromhex("f248cd"), bytes.fromhex("c9c90700")
    assert inflate(inflater, first, second) == b"Hello"  # 7.2.3.1, fragmented
    assert inflate(inflater, bytes.fromhex("f200110000")) == b"Hello"  # 7.2.3.2


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("f248cdc9c90700", b"Hello"),  # 7.2.3.1
        ("000500faff48656c6c6f00", b"Hello"),  # 7.2.3.3: not compressed
        ("f348cdc9c9070000", b"Hello"),  # 7.2.3.4: BFINAL
        ("f24805000000ffffcac9c90700", b"Hello"),  # 7.2.3.5: two blocks
        ("00", b""),  # 7.2.3.6: empty
    ],
)
def test_rfc_examples(data, message):
    data = bytes.fromhex(data)
    for size in range(1, len(data) + 1):
        inflater = Agreement().inflater()
        for _ in range(3):  # the stream stays good for the next message
            assert inflate(inflater, *slices(data, size)) == message
            assert inflate(inflater, *slices(data, size), b"") == message


def test_rfc_stored_block():
    deflater = Agreement(level=0, threshold=0).deflater()
    assert deflater.compress(b"Hello") == bytes.fromhex("000500faff48656c6c6f00")


@pytest.mark.parametrize("takeover", [True, False])
def test_empty_messages(takeover):
    agreement = Agreement(client_no_context_takeover=not takeover, threshold=0)
    deflater, oracle = agreement.deflater(), zlib.decompressobj(-15)
    for payload in (b"", b"", b"Hello" * 99, b"", b"", b"Hello" * 99):
        data = deflater.compress(payload)
        if data is None:
            assert not takeover and payload == b""
        else:
            assert oracle.decompress(data + TAIL) == payload
            assert data == b"\x00" or payload


# The two streams, against zlib

windows = st.integers(8, 15)
agreements = st.builds(
    Agreement,
    client_no_context_takeover=st.booleans(),
    server_no_context_takeover=st.booleans(),
    client_max_window_bits=windows,
    server_max_window_bits=windows,
    level=st.integers(-1, 9),
    memory_level=st.integers(1, 9),
    threshold=st.sampled_from([0, 1, 64, 256]),
)
words = st.lists(
    st.sampled_from([b"subscribe", b'{"id": ', b"BTC-USD", b"\x00" * 300, b"\xff\xfe", b"7"]),
    max_size=60,
).map(b"".join)
messages = st.lists(
    st.one_of(
        words,
        st.binary(max_size=300),
        st.tuples(st.binary(min_size=1, max_size=700), st.integers(1, 60)).map(
            lambda pair: pair[0] * pair[1]
        ),
        st.integers(0, 1000).map(lambda seed: records(seed % 40, seed)),
    ),
    max_size=6,
)
chunk_sizes = st.sampled_from([1, 2, 3, 7, 64, 4095, 4096, 4097, 10**9])


@settings(deadline=None, max_examples=250)
@given(agreements, messages)
def test_zlib_reads_what_was_compressed(agreement, payloads):
    deflater = agreement.deflater()
    oracle = zlib.decompressobj(-agreement.client_max_window_bits)
    for payload in payloads:
        data = deflater.compress(payload)
        if data is None:
            assert len(payload) < agreement.threshold or agreement.client_no_context_takeover
            continue
        assert len(payload) >= agreement.threshold
        if agreement.client_no_context_takeover:
            oracle = zlib.decompressobj(-agreement.client_max_window_bits)
            assert len(data) < len(payload)
        assert oracle.decompress(data + TAIL) == payload


@settings(deadline=None, max_examples=250)
@given(agreements, messages, chunk_sizes, st.sampled_from(["sync", "full", "final"]))
def test_what_zlib_compressed_is_read(agreement, payloads, size, flush):
    bits = max(agreement.server_max_window_bits, 9)

    def new():
        return zlib.compressobj(agreement.level, zlib.DEFLATED, -bits, agreement.memory_level)

    encoder, inflater = new(), agreement.inflater()
    for payload in payloads:
        if flush == "final":
            data, encoder = encoder.compress(payload) + encoder.flush() + b"\x00", new()
        elif flush == "full":
            data = plain_compress(encoder, payload, zlib.Z_FULL_FLUSH)
        else:
            data = plain_compress(encoder, payload)
        assert inflate(inflater, *slices(data, size)) == payload
        if agreement.server_no_context_takeover:
            encoder = new()


@settings(deadline=None, max_examples=150)
@given(agreements, messages, st.data())
def test_round_trip_across_any_split(agreement, payloads, data):
    bits, takeover = agreement.client_max_window_bits, not agreement.client_no_context_takeover
    deflater = agreement.deflater()
    inflater = Agreement(
        server_max_window_bits=bits, server_no_context_takeover=not takeover
    ).inflater()
    for payload in payloads:
        stream = deflater.compress(payload)
        if stream is None:
            continue
        cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=5)))
        edges = [0, *cuts, len(stream)]
        chunks = [stream[a:b] for a, b in zip(edges, edges[1:])]
        assert inflate(inflater, *chunks, room=len(payload)) == payload


def read_with_no_more_than(bits: int, stream: bytes) -> bytes:
    """Inflate byte by byte: zlib then has its window to refer to and nothing else."""
    oracle, result = zlib.decompressobj(-bits), []
    for index in range(len(stream)):
        data = stream[index : index + 1]
        while True:
            part = oracle.decompress(data, 1)
            result.append(part)
            data = oracle.unconsumed_tail
            if not data and not part:
                break
    return b"".join(result)


def far_matches(bits: int) -> bytes:
    """Return data whose repetitions lie at many distances, to just over a window's size."""
    chosen, result = random.Random(5), b""
    size = 1 << bits
    for distance in (200, size - 263, size - 262, size - 261, size - 1, size, size + 1, 2 * size):
        distance = max(distance, 30)
        piece = bytes(chosen.randrange(256) for _ in range(24))
        filler = bytes(chosen.randrange(256) for _ in range(distance - len(piece)))
        result += piece + filler + piece
    return result


@pytest.mark.parametrize("bits", range(8, 16))
def test_every_window(bits):
    payload = far_matches(bits) + records(20)
    for level in (-1, 1, 9) if bits < 11 else (-1,):  # large ones take long byte by byte
        agreement = Agreement(
            client_max_window_bits=bits, server_max_window_bits=bits, level=level, threshold=0
        )
        stream = agreement.deflater().compress(payload)
        assert read_with_no_more_than(bits, stream + TAIL) == payload
        encoder = zlib.compressobj(level, zlib.DEFLATED, -max(bits, 9))
        inflater = agreement.inflater()
        for _ in range(2):
            data = plain_compress(encoder, payload)
            assert inflate(inflater, *slices(data, 5)) == payload


def test_the_window_oracle_is_strict():
    encoder = zlib.compressobj(9, zlib.DEFLATED, -10)
    stream = plain_compress(encoder, far_matches(9))
    assert read_with_no_more_than(10, stream + TAIL) == far_matches(9)
    with pytest.raises(zlib.error, match="too far back"):
        read_with_no_more_than(8, stream + TAIL)


def test_threshold():
    deflater = Agreement(threshold=100).deflater()
    assert deflater.compress(b"a" * 99) is None
    assert zlib.decompressobj(-15).decompress(deflater.compress(b"a" * 100) + TAIL) == b"a" * 100
    assert Agreement().deflater().compress(b"a" * 255) is None
    assert Agreement().deflater().compress(b"a" * 256) is not None


def test_buffers_of_any_kind():
    payload = records(200)
    stream = Agreement().deflater().compress(payload)
    for kind in (bytes, bytearray, memoryview):
        assert Agreement().deflater().compress(kind(payload)) == stream
        assert inflate(Agreement().inflater(), kind(stream)) == payload


# Context takeover


def test_without_context_takeover_every_message_stands_alone():
    deflater = Agreement(client_no_context_takeover=True).deflater()
    payload = records(50)
    first, second = deflater.compress(payload), deflater.compress(payload)
    assert first == second
    kept = Agreement().deflater()
    assert kept.compress(payload) == first
    assert len(kept.compress(payload)) < len(first) // 10


def test_what_does_not_shrink_goes_plain_where_nothing_refers_to_it():
    noise = random.Random(3).getrandbits(8 * 5000).to_bytes(5000, "big")
    assert Agreement(client_no_context_takeover=True).deflater().compress(noise) is None
    assert len(Agreement().deflater().compress(noise)) > 5000


def test_the_server_keeps_no_context():
    inflater = Agreement(server_no_context_takeover=True).inflater()
    assert inflate(inflater, bytes.fromhex("f248cdc9c90700")) == b"Hello"
    with pytest.raises(ProtocolError) as caught:  # refers to the message before
        inflate(inflater, bytes.fromhex("f200110000"))
    assert caught.value.code == 1007


def test_context_does_not_reach_past_a_final_block():
    inflater = Agreement().inflater()
    assert inflate(inflater, bytes.fromhex("f348cdc9c9070000")) == b"Hello"
    with pytest.raises(ProtocolError) as caught:
        inflate(inflater, bytes.fromhex("f200110000"))
    assert caught.value.code == 1007


def test_many_final_blocks_in_one_message():
    block = zlib.compressobj(6, zlib.DEFLATED, -15)
    block = block.compress(b"Hello") + block.flush()
    for size in (1, 3, 4096, 10**9):
        inflater = Agreement().inflater()
        for _ in range(2):
            assert inflate(inflater, *slices(block * 2000 + b"\x00", size)) == b"Hello" * 2000


# Limits


@pytest.mark.parametrize("length", [0, 1, 5000, MIB - 1, MIB, MIB + 1, 3 * MIB])
def test_the_limit_is_exact(length):
    payload = (records(100) * (length // 2000 + 1))[:length]
    for data in (
        plain_compress(zlib.compressobj(6, zlib.DEFLATED, -15), payload),
        plain_compress(zlib.compressobj(0, zlib.DEFLATED, -15), payload),
        plain_compress(zlib.compressobj(9, zlib.DEFLATED, -15), b"\x00" * length),
    ):
        for size in (10**9, 5000):
            result = inflate(Agreement().inflater(), *slices(data, size), room=length)
            assert len(result) == length
            if length:
                with pytest.raises(MessageTooBig) as caught:
                    inflate(Agreement().inflater(), *slices(data, size), room=length - 1)
                assert caught.value.code == 1009


def bomb(mebibytes: int) -> bytes:
    """Return 1 KiB for each MiB: fully flushed blocks refer to nothing, so they repeat."""
    block = plain_compress(
        zlib.compressobj(9, zlib.DEFLATED, -15), b"\x00" * MIB, zlib.Z_FULL_FLUSH
    )
    return (block + TAIL) * mebibytes + b"\x00"


@pytest.fixture
def traced() -> Iterator[None]:
    tracemalloc.start()
    yield
    tracemalloc.stop()


def peak_of_refusal(chunks: List[bytes], limit: int) -> int:
    inflater, kept, room = Agreement().inflater(), [], limit
    tracemalloc.reset_peak() if hasattr(tracemalloc, "reset_peak") else tracemalloc.clear_traces()
    before = tracemalloc.get_traced_memory()[0]
    with pytest.raises(MessageTooBig):
        for chunk in chunks:
            for piece in inflater.inflate(chunk, False, room):
                kept.append(piece)
                room -= len(piece)
    return tracemalloc.get_traced_memory()[1] - before


@pytest.mark.parametrize("limit", [0, 1000, 16 * MIB, 100 * MIB])
@pytest.mark.parametrize("size", [65536, 10**9])
def test_a_bomb_costs_what_is_allowed(traced, limit, size):
    data = bomb(2048)
    assert 2 * 10**6 < len(data) < 2.3 * 10**6
    assert peak_of_refusal(slices(data, size), limit) < limit + 20 * MIB


def test_a_bomb_of_final_blocks(traced):
    encoder = zlib.compressobj(9, zlib.DEFLATED, -15)
    block = encoder.compress(b"\x00" * 50) + encoder.flush()
    data = block * (2 * 10**6 // len(block))
    assert peak_of_refusal([data], MIB) < 21 * MIB


def test_a_bomb_is_what_it_says():
    data = bomb(3)
    assert inflate(Agreement().inflater(), data) == b"\x00" * (3 * MIB)


# What is no compressed message


@pytest.mark.parametrize(
    "data",
    [
        "",  # not even the header of the empty block
        "07",  # block type 3
        "ffffffff",
        "000500ffff48656c6c6f00",  # LEN and NLEN disagree
        "f24805f0f0f0",
        "f348cdc9c90700",  # BFINAL, and no empty block behind it
        "f348cdc9c907",  # BFINAL, and cut where the tail would complete it
        "f248cdc9c907",  # the end is missing
        "f248cdc9c9070000",  # more than the end
        "f248cdc9c90700000000ffff",  # the tail was not taken off
        "000500faff4865",  # a stored block that is cut
    ],
)
def test_garbage(data):
    data = bytes.fromhex(data)
    for size in (1, 10**9):
        for takeover in (True, False):
            inflater = Agreement(server_no_context_takeover=not takeover).inflater()
            with pytest.raises(ProtocolError) as caught:
                inflate(inflater, *slices(data, size))
            assert caught.value.code == 1007
            assert not isinstance(caught.value, MessageTooBig)


def read_plainly(*stream: bytes) -> Optional[bytes]:
    """Return the last message of a stream, or None if it is not a whole one.

    After the tail a whole message leaves zlib between two blocks, so that an empty final block
    ends the stream.
    """
    oracle, result = zlib.decompressobj(-15), b""
    try:
        for data in stream:
            result = oracle.decompress(data)
            if oracle.decompress(TAIL) or oracle.eof:
                return None  # (after a final block another stream begins: not for this oracle)
        return result if oracle.decompress(b"\x03\x00") == b"" and oracle.eof else None
    except zlib.error:
        return None


@pytest.mark.parametrize("payload", [b"Hello", records(2), records(6), records(60)])
@pytest.mark.parametrize("level", [0, 1, 6])
def test_a_message_cut_short(payload, level):
    """Wherever it is cut, it is an error and never a shorter message."""
    encoder = zlib.compressobj(level, zlib.DEFLATED, -15)
    first, data = plain_compress(encoder, records(3, 1)), plain_compress(encoder, payload)
    for cut in range(0, len(data), max(1, len(data) // 300)):
        if level == 0 and cut == 1:  # the header alone of a stored block: an empty message
            assert read_plainly(first, data[:cut]) == b""
            continue
        assert read_plainly(first, data[:cut]) is None
        inflater = Agreement().inflater()
        assert inflate(inflater, first) == records(3, 1)
        with pytest.raises(ProtocolError) as caught:
            inflate(inflater, data[:cut])
        assert caught.value.code == 1007


@settings(deadline=None, max_examples=300)
@given(st.lists(st.binary(max_size=600), min_size=1, max_size=4), st.integers(0, 5000))
def test_noise_ends_in_a_message_or_in_its_own_error(chunks, room):
    try:
        assert len(inflate(Agreement().inflater(), *chunks, room=room)) <= room
    except MessageTooBig as error:
        assert error.code == 1009
    except ProtocolError as error:
        assert error.code == 1007


@settings(deadline=None, max_examples=300)
@given(st.integers(0, 10**9), st.integers(1, 255), st.integers(1, 60))
def test_a_damaged_message(position, flip, count):
    """A flipped byte is an error wherever zlib says so, and nothing else than our error."""
    data = bytearray(plain_compress(zlib.compressobj(6, zlib.DEFLATED, -15), records(count)))
    data[0] &= 0xFE  # BFINAL would make it two streams, which the oracle does not read
    position = max(1, position % len(data))
    data[position] ^= flip
    expected = read_plainly(bytes(data))
    try:
        result = inflate(Agreement().inflater(), bytes(data))
    except ProtocolError as error:
        assert error.code == 1007
        assert expected is None
    else:
        assert expected in (result, None)


# Memory


def held_by(agreement: Agreement) -> int:
    """Return the bytes that an idle pair of streams holds after a message each way."""
    payload = records(2000)
    stream = plain_compress(
        zlib.compressobj(6, zlib.DEFLATED, -max(agreement.server_max_window_bits, 9)), payload
    )
    before = tracemalloc.get_traced_memory()[0]
    deflater, inflater = agreement.deflater(), agreement.inflater()
    assert deflater.compress(payload)
    assert inflate(inflater, stream) == payload
    held = tracemalloc.get_traced_memory()[0] - before
    del deflater, inflater
    # Freed without the garbage collector; the slack is tracemalloc's and the interpreter's.
    assert tracemalloc.get_traced_memory()[0] - before < 2048
    return held


def test_memory_of_an_idle_connection(traced):
    gc.disable()
    try:
        held_by(Agreement())  # warm up
        small = Agreement(client_max_window_bits=9, server_max_window_bits=9, memory_level=1)
        apart = Agreement(client_no_context_takeover=True, server_no_context_takeover=True)
        assert held_by(apart) < 1024
        assert held_by(small) < 24 * 1024
        assert 150 * 1024 < held_by(Agreement()) < 250 * 1024
    finally:
        gc.enable()


def test_an_idle_pair_holds_nothing_before_the_first_message(traced):
    Agreement().deflater(), Agreement().inflater()
    before = tracemalloc.get_traced_memory()[0]
    deflater, inflater = Agreement().deflater(), Agreement().inflater()
    assert tracemalloc.get_traced_memory()[0] - before < 1024
    del deflater, inflater


@pytest.mark.parametrize("data", [b"\xff" * 9, bomb(2)])
def test_a_detached_error_holds_no_stream(traced, data):
    gc.disable()
    try:
        for _ in range(2):  # the first round warms up
            before = tracemalloc.get_traced_memory()[0]
            kept: List[BaseException] = []
            try:
                list(Agreement().inflater().inflate(data, True, 1000))
            except ProtocolError as error:
                kept.append(error)
                detach(error)
            assert len(kept) == 1
            held = tracemalloc.get_traced_memory()[0] - before
        assert held < 4096  # a stream and its window are 40 KiB
    finally:
        gc.enable()
