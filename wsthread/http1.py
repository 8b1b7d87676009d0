"""HTTP/1.1 heads over a transport, read with h11: bounded, and every wait the waiter's."""

from __future__ import annotations

from typing import NoReturn, Union

import h11

from .errors import HandshakeError, detached
from .transport import READ, WRITE, Transport, Waiter

_MAX_HEAD = 65536  # bytes of response heads, interim responses included
_MAX_INTERIM = 8  # 1xx responses before the final one
#: What a ``h11.Connection`` for `read_head` may buffer: the limit here is met first.
MAX_EVENT = 2 * _MAX_HEAD
_RECEIVE = 65536


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
    received = interim = 0
    event: object = h11.NEED_DATA
    while True:
        if event is h11.NEED_DATA:
            if received >= _MAX_HEAD:
                _head_too_long()
            data = receive(transport, waiter)
            if not data:
                what = "in the middle of its answer" if received else "without an answer"
                raise HandshakeError(f"{who} closed the connection {what}")
            received += len(data)
            connection.receive_data(data)
        try:
            event = connection.next_event()
        except h11.RemoteProtocolError as error:
            text = f"the answer is no valid HTTP: {str(error)[:200]}"
            raise HandshakeError(text) from detached(error)
        if isinstance(event, h11.Response):
            return event
        if isinstance(event, h11.InformationalResponse):
            if event.status_code == 101:
                if received - len(connection.trailing_data[0]) > _MAX_HEAD:
                    _head_too_long()
                return event
            interim += 1
            if interim > _MAX_INTERIM:
                raise HandshakeError(f"more than {_MAX_INTERIM} interim responses", 100)


def _head_too_long() -> NoReturn:
    raise HandshakeError(f"the answer's head is longer than {_MAX_HEAD} bytes")
