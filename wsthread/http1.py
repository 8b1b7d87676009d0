"""HTTP/1.1 heads over a transport, read with h11: bounded, and every wait the waiter's."""

from __future__ import annotations

import re
from typing import Union

import h11

from .errors import HandshakeError, detached
from .transport import READ, WRITE, Transport, Waiter

_MAX_HEAD = 65536  # bytes of response heads, interim responses included
_MAX_INTERIM = 8  # 1xx responses before the final one
#: What a ``h11.Connection`` for `read_head` may buffer: the limit here is met first.
MAX_EVENT = 2 * _MAX_HEAD
_RECEIVE = 65536
#: Bytes of a body that are read, chunk headers included. No more than h11 parses in an instant.
MAX_BODY_READ = 8192
_MAX_BLANKS = 256
#: h11's grammar takes quadratic time for white space before what it refuses: minutes, for a head
#: as long as it may be, and no other thread runs meanwhile. Folded lines become white space.
_BLANKS = re.compile(rb"[ \t\r\n]{%d}" % _MAX_BLANKS)
_END_OF_HEAD = re.compile(rb"\n\r?\n")


def write(transport: Transport, data: bytes, waiter: Waiter) -> None:
    """Write all of `data`."""
    with transport.lock:
        transport.write(data)
        done = transport.flush()
    while not done:
        waiter.wait({transport.fileno(): WRITE})
        with transport.lock:
            done = transport.flush()


def receive(transport: Transport, waiter: Waiter, size: int = _RECEIVE) -> bytes:
    """Return the next bytes, at most `size` where there is no TLS; b"" at the end."""
    # What is asked for here is not there yet, unless TLS has it already.
    data = None if transport.tls is None else transport.receive(size)
    while data is None:
        waiter.wait({transport.fileno(): READ})
        data = transport.receive(size)
    return data


def read_head(
    transport: Transport, waiter: Waiter, connection: h11.Connection, who: str
) -> Union[h11.Response, h11.InformationalResponse]:
    """Return the head of the final response, a 101 counting as one.

    Raises HandshakeError for what is no answer; `who` is whose answer it says it is.
    """
    heads = 0  # their bytes
    data = bytearray()  # received, and not yet given to h11
    for _ in range(_MAX_INTERIM + 1):
        end = _await_head(transport, waiter, data, _MAX_HEAD - heads, who)
        heads += end
        connection.receive_data(bytes(data[:end]))
        del data[:end]
        try:
            event = connection.next_event()
        except h11.RemoteProtocolError as error:
            text = f"the answer is no valid HTTP: {str(error)[:200]}"
            raise HandshakeError(text) from detached(error)
        if isinstance(event, h11.Response):
            if data:
                connection.receive_data(bytes(data[:MAX_BODY_READ]))
            return event
        assert isinstance(event, h11.InformationalResponse)  # nothing else comes of a whole head
        if event.status_code == 101:
            if data:
                connection.receive_data(bytes(data))
            return event
    raise HandshakeError(f"more than {_MAX_INTERIM} interim responses", 100)


def _await_head(transport: Transport, waiter: Waiter, data: bytearray, most: int, who: str) -> int:
    """Receive behind `data` until a whole head is there; return where it ends."""
    searched = 0
    while True:
        end = _END_OF_HEAD.search(data, max(0, searched - 2))
        searched = len(data)
        length = end.end() if end else searched
        if length > most or (not end and length == most):
            raise HandshakeError(f"the answer's head is longer than {_MAX_HEAD} bytes")
        if end or (data[:1] < b"!" and data):  # no answer begins like that: h11 says so
            break
        more = receive(transport, waiter)
        if not more:
            what = "in the middle of its answer" if data else "without an answer"
            raise HandshakeError(f"{who} closed the connection {what}")
        data += more
    if _BLANKS.search(data, 0, length):
        raise HandshakeError(f"the answer's head has {_MAX_BLANKS} bytes of white space in a row")
    return length
