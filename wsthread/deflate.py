"""permessage-deflate (RFC 7692) as values and bytes: no I/O, no threads."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any, Dict, Generator, Iterator, List, Optional, Sequence, Tuple, Union

from .errors import CloseCode, HandshakeError, MessageTooBig, ProtocolError

Parameters = Sequence[Tuple[str, Optional[str]]]
Extensions = Sequence[Tuple[str, Parameters]]

_NAME = "permessage-deflate"
_FLAGS = ("client_no_context_takeover", "server_no_context_takeover")
_WINDOWS = ("client_max_window_bits", "server_max_window_bits")
_WINDOW_BITS = {str(bits): bits for bits in range(8, 16)}  # as on the wire: no leading zeros
_MAX_BITS = 15

#: An empty stored block: a sync flush ends with one, and adding more of them changes nothing.
_EMPTY_BLOCK = b"\x00\x00\x00\xff\xff"
#: The part of it that every compressed message leaves out (7.2.1).
_TAIL = _EMPTY_BLOCK[1:]
#: What ends a message for the inflater. The blocks after the tail are without effect where the
#: message was complete; in the middle of a block they are taken for data, and it shows. Enough of
#: them to outlast the longest block header of DEFLATE (286 bytes), which yields no output.
_PROBE = _TAIL + _EMPTY_BLOCK * 60

#: zlib copies the input it has not used yet when the output has no room, or a final block comes
#: early. Slices limit these copies: small ones, once final blocks come, of which there may be
#: one every few bytes. Pieces limit what is inflated in vain.
_SLICE, _SLICE_OF_FINAL = 1 << 18, 1 << 13
_PIECE = 1 << 20
#: What is compressed in a step, about a millisecond long.
_STEP = 1 << 16


@dataclass(frozen=True)
class Deflate:
    """One offer of permessage-deflate, and how this side compresses (RFC 7692 section 7.1).

    A wrong type raises TypeError, a value out of range ValueError. "Client" is this side.

    client_no_context_takeover
        Compress every message on its own: nothing is kept between messages, and small messages
        shrink less. Default False (a server may still demand it).
    server_no_context_takeover
        Ask the server to do so; an answer without it is refused. Default False (a server may
        still do it).
    client_max_window_bits
        True (default): offer to let the server limit this side's window. 8 to 15: the same, and
        never use a window of more than that many bits (2**n bytes). None or False: no offer; a
        server that limits it nevertheless is refused.
    server_max_window_bits
        8 to 15: ask for a server's window of at most that many bits, refuse a larger one.
        Default None: up to 15.
    level
        zlib's compression level: 0 (stored) to 9 (smallest), or -1 (default) for zlib's own
        choice, which is 6. 1 is about three times as fast and sends about a quarter more.
    memory_level
        1 to 9, default 5: the compressor's working memory apart from the window is
        2**(memory_level + 9) bytes. 8 is a tenth faster with a window of 15 bits, and slower
        with one of 12 or less.
    threshold
        Messages of fewer bytes go uncompressed. Default 256, at least 0.
    """

    client_no_context_takeover: bool = False
    server_no_context_takeover: bool = False
    client_max_window_bits: Union[bool, int, None] = True
    server_max_window_bits: Optional[int] = None
    level: int = zlib.Z_DEFAULT_COMPRESSION
    memory_level: int = 5
    threshold: int = 256

    def __post_init__(self) -> None:
        for name in _FLAGS:
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} is a bool, not {getattr(self, name)!r}")
        if not isinstance(self.client_max_window_bits, (bool, type(None))):
            _check_int("client_max_window_bits", self.client_max_window_bits, 8, 15)
        if self.server_max_window_bits is not None:
            _check_int("server_max_window_bits", self.server_max_window_bits, 8, 15)
        _check_int("level", self.level, -1, 9)
        _check_int("memory_level", self.memory_level, 1, 9)
        _check_int("threshold", self.threshold, 0, None)

    def offer(self) -> str:
        """Return this offer as an element of Sec-WebSocket-Extensions."""
        parameters: List[Tuple[str, Optional[str]]] = []
        for name in _FLAGS + _WINDOWS:
            value = getattr(self, name)
            if value is True:
                parameters.append((name, None))
            elif value:
                parameters.append((name, str(value)))
        return _element(_NAME, parameters)

    def _objection(self, found: Dict[str, int]) -> Optional[str]:
        """Say what in an answer this offer does not allow; None if nothing."""
        if self.server_no_context_takeover and "server_no_context_takeover" not in found:
            return "server_no_context_takeover was asked for and is missing"
        if not self.client_max_window_bits and "client_max_window_bits" in found:
            return "client_max_window_bits was not offered"
        limit = self.server_max_window_bits or _MAX_BITS
        if found.get("server_max_window_bits", _MAX_BITS) > limit:
            return f"server_max_window_bits of at most {limit} was asked for"
        return None

    def _agreement(self, found: Dict[str, int]) -> Agreement:
        """Return what holds when an answer accepts this offer."""
        bits = found.get("client_max_window_bits", _MAX_BITS)
        own = self.client_max_window_bits
        if own and own is not True:
            bits = min(bits, own)  # an offer with a value is kept whatever the answer says
        return Agreement(
            client_no_context_takeover=self.client_no_context_takeover
            or "client_no_context_takeover" in found,
            server_no_context_takeover="server_no_context_takeover" in found,
            client_max_window_bits=bits,
            server_max_window_bits=found.get("server_max_window_bits", _MAX_BITS),
            level=self.level,
            memory_level=self.memory_level,
            threshold=self.threshold,
        )


@dataclass(frozen=True)
class Agreement:
    """What both sides agreed on, in effect; ``str()`` gives it in the header's form.

    The fields mean what they mean in `Deflate`; the window bits are numbers from 8 to 15.
    """

    client_no_context_takeover: bool = False
    server_no_context_takeover: bool = False
    client_max_window_bits: int = _MAX_BITS
    server_max_window_bits: int = _MAX_BITS
    level: int = Deflate.level
    memory_level: int = Deflate.memory_level
    threshold: int = Deflate.threshold

    def __str__(self) -> str:
        parameters: List[Tuple[str, Optional[str]]] = []
        parameters += [(name, None) for name in _FLAGS if getattr(self, name)]
        for name in _WINDOWS:
            if getattr(self, name) < _MAX_BITS:
                parameters.append((name, str(getattr(self, name))))
        return _element(_NAME, parameters)

    def deflater(self) -> Deflater:
        """Return the compressor of a new connection."""
        return Deflater(self)

    def inflater(self) -> Inflater:
        """Return the decompressor of a new connection."""
        return Inflater(self)


class Deflater:
    """Compresses the messages of one connection, in the order they are sent.

    Its owner serialises the calls. It holds no memory before the first compressed message, and
    none between messages without context takeover.
    """

    __slots__ = ("_agreement", "_encoder", "threshold")

    def __init__(self, agreement: Agreement) -> None:
        self.threshold = agreement.threshold
        self._agreement = agreement
        self._encoder: Any = None  # the zlib stream that lives on from message to message

    def compress(self, payload: bytes) -> Optional[bytes]:
        """Return the compressed payload (7.2.1), or None if the message is to go as it is.

        What was returned must be sent, before anything compressed later: with context takeover
        the peer needs it to read the next message.
        """
        if len(payload) < self.threshold:
            return None
        encoder = self._begin()
        return self._end(payload, [encoder.compress(payload)], encoder)

    def steps(self, payload: bytes) -> Generator[None, None, Optional[bytes]]:
        """Do what `compress` does, and yield about every millisecond. It must be run to its end."""
        if len(payload) < self.threshold:
            return None
        encoder, parts = self._begin(), []
        with memoryview(payload) as view:
            for start in range(0, len(payload), _STEP):
                parts.append(encoder.compress(view[start : start + _STEP]))
                yield
        return self._end(payload, parts, encoder)

    def _begin(self) -> Any:
        agreement, encoder = self._agreement, self._encoder
        if encoder is None:
            # zlib has no raw window of 8 bits. In one of 9 it never refers back further than
            # 512 - 262 bytes, so a peer whose window has 256 can read it.
            bits = max(agreement.client_max_window_bits, 9)
            encoder = zlib.compressobj(
                agreement.level, zlib.DEFLATED, -bits, agreement.memory_level
            )
            if not agreement.client_no_context_takeover:
                self._encoder = encoder
        return encoder

    def _end(self, payload: bytes, parts: List[bytes], encoder: Any) -> Optional[bytes]:
        last = memoryview(encoder.flush(zlib.Z_SYNC_FLUSH))[: -len(_TAIL)]
        data = b"".join((*parts, last))
        if self._agreement.client_no_context_takeover and len(data) >= len(payload):
            return None  # nothing later refers to it
        return data


class Inflater:
    """Decompresses the messages of one connection, in the order they come.

    Its owner serialises the calls. It holds no memory before the first compressed message, and
    none between messages without context takeover. After an error it is of no more use.
    """

    __slots__ = ("_agreement", "_decoder")

    def __init__(self, agreement: Agreement) -> None:
        self._agreement = agreement
        self._decoder: Any = None  # the zlib stream that lives on from message to message

    def inflate(self, data: bytes, final: bool, max_length: int) -> Iterator[bytes]:
        """Give what a chunk of a compressed message inflates to (7.2.2), piece by piece.

        `data` may end anywhere, also within a frame. `final` says that it is the end of the
        message. `max_length` is how many bytes this chunk may inflate to: with one more,
        inflating stops and MessageTooBig is raised. Data that cannot be inflated, or a message
        that ends within a block, raises ProtocolError with code 1007. It must be run to its end
        or to an error; what a processor's cache holds is best used piece by piece.
        """
        view: Union[bytes, memoryview] = data if len(data) <= _SLICE else memoryview(data)
        start, size, room = 0, _SLICE, max_length
        try:
            while start < len(view):
                feed = view[start : start + size]
                start += len(feed)
                full = True  # then zlib may hold back output
                while feed or full:
                    decoder = self._decoder
                    if decoder is None:
                        decoder = zlib.decompressobj(-self._agreement.server_max_window_bits)
                        self._decoder = decoder
                    limit = room + 1 if room < _PIECE else _PIECE
                    piece = decoder.decompress(feed, limit)
                    room -= len(piece)
                    if room < 0:
                        raise MessageTooBig("the message inflates to more than is allowed")
                    yield piece
                    if decoder.eof:
                        # A block with BFINAL (7.2.3.4) ends a DEFLATE stream, not the message:
                        # what follows is a new stream with an empty window.
                        start -= len(decoder.unused_data)
                        size = _SLICE_OF_FINAL
                        self._decoder = None
                        break
                    feed, full = decoder.unconsumed_tail, len(piece) == limit
            if final:
                self._end()
        except zlib.error as error:
            raise _undecodable(str(error)) from None

    def _end(self) -> None:
        # No stream here: the last block had BFINAL, and the empty one behind it is missing.
        decoder = self._decoder
        if decoder is None or decoder.decompress(_PROBE, 1) or decoder.eof:
            raise _undecodable("its end is missing")
        if self._agreement.server_no_context_takeover:
            self._decoder = None


def make_offers(
    compression: Union[str, Deflate, Sequence[Deflate], None],
) -> Tuple[Deflate, ...]:
    """Return the offers that a ``compression`` argument asks for, in order of preference.

    "deflate" is ``Deflate()``, None is no compression. ValueError for another string, TypeError
    for anything else.
    """
    if compression is None:
        return ()
    if isinstance(compression, Deflate):
        return (compression,)
    if isinstance(compression, str):
        if compression != "deflate":
            raise ValueError(f'compression is "deflate", not {compression!r}')
        return (Deflate(),)
    if not isinstance(compression, Sequence):
        raise TypeError(
            f'compression is "deflate", Deflate, several Deflate or None, not {compression!r}'
        )
    offers: List[Deflate] = []
    for offer in compression:
        if not isinstance(offer, Deflate):
            raise TypeError(f"compression contains {offer!r}, which is no Deflate")
        offers.append(offer)
    return tuple(offers)


def negotiate(offers: Sequence[Deflate], answer: Extensions) -> Optional[Agreement]:
    """Check the server's Sec-WebSocket-Extensions against what was offered (RFC 7692 7.1).

    `answer` is the header, parsed: names with their parameters, a value (with or without its
    quotes) or None for each. Return what is agreed, by the first offer that the answer fits, or
    None if the server chose no extension. HandshakeError quotes an answer that fits none.
    """
    if not answer:
        return None
    try:
        found = _parameters(offers, answer)
        objections = []
        for offer in offers:
            objection = offer._objection(found)
            if objection is None:
                return offer._agreement(found)
            objections.append(objection)
        raise ValueError(objections[0])
    except ValueError as error:
        text = ", ".join(_element(name, parameters) for name, parameters in answer)
        raise HandshakeError(
            f"the server answered with Sec-WebSocket-Extensions: {text}: {error}"
        ) from None


def _parameters(offers: Sequence[Deflate], answer: Extensions) -> Dict[str, int]:
    """Return the parameters of an answer that is well formed; ValueError says what is not."""
    for name, _ in answer:
        if name != _NAME or not offers:
            raise ValueError(f"{name} was not offered")
    if len(answer) > 1:
        raise ValueError(f"{_NAME} comes twice")
    found: Dict[str, int] = {}
    for name, value in answer[0][1]:
        if name in found:
            raise ValueError(f"{name} comes twice")
        if name in _FLAGS:
            if value is not None:
                raise ValueError(f"{name} takes no value")
            found[name] = True
        elif name in _WINDOWS:
            if value is not None and len(value) > 1 and value[0] == value[-1] == '"':
                value = value[1:-1]
            if value not in _WINDOW_BITS:
                raise ValueError(f"{name} takes a value from 8 to 15")
            found[name] = _WINDOW_BITS[value]
        else:
            raise ValueError(f"{name} is unknown")
    return found


def _element(name: str, parameters: Parameters) -> str:
    """Return one element of a Sec-WebSocket-Extensions header."""
    return "; ".join([name] + [n if v is None else f"{n}={v}" for n, v in parameters])


def _undecodable(why: str) -> ProtocolError:
    # RFC 7692 names no close code. The frames are right and what they carry is not: that is 1007.
    return ProtocolError(f"a compressed message cannot be inflated: {why}", CloseCode.INVALID_DATA)


def _check_int(name: str, value: object, least: int, most: Optional[int]) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} is an int, not {value!r}")
    if value < least or (most is not None and value > most):
        range_ = f"at least {least}" if most is None else f"from {least} to {most}"
        raise ValueError(f"{name} is {range_}, not {value}")
