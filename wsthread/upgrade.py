"""The HTTP upgrade (RFC 6455 section 4): websocket-client behind a strict filter, both ways.

websocket-client makes the handshake's own fields and checks the answer, over a stream that is
no socket. Its request is completed and written by us; the answer is read, bounded and checked by
us, and handed on to it as the bare minimum. So neither its cookie jar nor its log ever sees what
belongs to a user, and nothing it does reaches the connection.
"""

from __future__ import annotations

import base64
import hashlib
import time
from dataclasses import dataclass
from typing import Callable, Dict, Iterator, List, Optional, Sequence, Tuple

import h11
import websocket

from .errors import ConnectError, HandshakeError, detached
from .headers import Extensions, Fields, parse_extensions
from .http1 import MAX_EVENT, read_head, write
from .transport import READ, Cancelled, Transport, Waiter

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_MAX_BODY = 4096  # bytes of a refusal's body that are kept
_MAX_BODY_READ = 65536  # bytes that are read for it, chunk headers included
_BODY_TIME = 1.0  # seconds
#: What websocket-client's own fields of its request begin with; the others in there are not sent.
_MADE = (b"upgrade:", b"connection:", b"origin:", b"sec-websocket-")
_KEY = b"sec-websocket-key:"
#: What h11 is told was asked. All that it makes of it is what may be answered: for that it takes
#: neither our fields nor the request's end.
_ASKED = h11.Request(
    method="GET", target="/", headers=[("Host", "host.invalid"), ("Upgrade", "websocket")]
)
REDIRECTS = frozenset({301, 302, 303, 307, 308})

Accept = Callable[[Extensions], object]
Values = Dict[str, List[str]]


@dataclass
class UpgradeRequest:
    """What to ask for. The fields are the user's; those of the handshake are added.

    All of it is as `normalize_headers`, `check_value` and `parse_url` let it pass: it goes into the
    request as it is.
    """

    resource: str
    authority: str  # the Host field
    fields: Fields
    subprotocols: Sequence[str]
    origin: Optional[str]
    offer: Optional[str]  # the Sec-WebSocket-Extensions field
    accept: Optional[Accept]


@dataclass
class Upgraded:
    """What the server agreed to."""

    leftover: bytes = b""
    subprotocol: Optional[str] = None
    extensions: Extensions = ()
    agreement: object = None
    headers: Sequence[Tuple[str, str]] = ()


def upgrade(transport: Transport, request: UpgradeRequest, waiter: Waiter) -> Upgraded:
    """Bring a connected transport to WebSocket.

    Raises HandshakeError, other ConnectError and ConnectTimeout, Cancelled. The caller closes
    the transport then.
    """
    stream = _Stream(lambda head: _exchange(transport, request, waiter, head))
    error = _run_websocket_client(stream, request)
    if error is None and stream.upgraded is None:
        error = HandshakeError("websocket-client did not read the answer")
    if error is not None:
        try:
            raise error
        finally:
            del error
    assert stream.upgraded is not None
    return stream.upgraded


class _Interrupted(Exception):
    """Carries an error through websocket-client, which translates some and logs others."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error


class _Stream:
    """What websocket-client takes for a connected socket. It lives as long as the handshake."""

    def __init__(self, exchange: Callable[[bytes], Tuple[bytes, Upgraded]]) -> None:
        self._exchange = exchange
        self._request = b""
        self._answer: Optional[Iterator[bytes]] = None
        self.upgraded: Optional[Upgraded] = None

    def gettimeout(self) -> float:
        return 0.0  # all waiting is in `recv`, and is ours: no selector is to be made

    def send(self, data: bytes) -> int:
        self._request += data
        return len(data)

    def recv(self, size: int) -> bytes:
        """Return a line, then its end, and so on.

        websocket-client asks for one byte at a time, and puts them together until it gets the one
        that ends the line: more in a piece saves it a hundred calls.
        """
        if self._answer is None:
            error: Exception
            try:
                accept, self.upgraded = self._exchange(self._request)
            except Exception as raised:
                error = detached(raised)
            else:
                self._answer = _answer(accept)
                return next(self._answer)
            raise _Interrupted(error)
        return next(self._answer, b"")

    def close(self) -> None:
        """The connection is not websocket-client's to close."""


def _answer(accept: bytes) -> Iterator[bytes]:
    """Yield the head of a 101 in pieces for `_Stream.recv`."""
    for line in (
        b"HTTP/1.1 101 Switching Protocols",
        b"Upgrade: websocket",
        b"Connection: Upgrade",
        b"Sec-WebSocket-Accept: " + accept,
    ):
        yield line
        yield b"\n"
    yield b"\n"


def _run_websocket_client(stream: _Stream, request: UpgradeRequest) -> Optional[Exception]:
    """Let websocket-client do a handshake over the stream; return what it failed with."""
    header = []
    # Not as `subprotocols`: it would refuse an answer that chooses none, which is allowed.
    if request.subprotocols:
        header.append(f"Sec-WebSocket-Protocol: {', '.join(request.subprotocols)}")
    if request.offer:
        header.append(f"Sec-WebSocket-Extensions: {request.offer}")
    client = websocket.WebSocket(enable_multithread=False)
    try:
        client.connect(  # type: ignore[no-untyped-call]
            "ws://host.invalid/",  # a name no cookie is kept for; the real one is put in below
            socket=stream,
            header=header,
            origin=request.origin,
            suppress_origin=request.origin is None,
            redirect_limit=0,
        )
    except _Interrupted as interrupted:
        return interrupted.error
    except Exception as error:
        failure = HandshakeError(f"websocket-client does not take the answer: {error}")
        failure.__cause__ = detached(error)
        return failure
    finally:
        del client.frame_buffer  # it holds a bound method of the client: a cycle
    return None


def _exchange(
    transport: Transport, request: UpgradeRequest, waiter: Waiter, head: bytes
) -> Tuple[bytes, Upgraded]:
    """Send the request, take the answer; return its Sec-WebSocket-Accept and all of it."""
    made = [line for line in head.split(b"\r\n") if line.lower().startswith(_MADE)]
    key = next(line[len(_KEY) :].strip() for line in made if line.lower().startswith(_KEY))
    lines = [f"GET {request.resource} HTTP/1.1\r\nHost: {request.authority}".encode(), *made]
    lines += [f"{name}: {value}".encode() for name, value in request.fields]
    data = b"\r\n".join((*lines, b"\r\n"))
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_EVENT)
    connection.send(_ASKED)
    try:
        write(transport, data, waiter)
        return _read_answer(transport, request, waiter, connection, key)
    except (ConnectError, Cancelled):
        raise
    except OSError as error:
        text = f"the connection broke during the handshake: {error.strerror or error}"
        raise ConnectError(text) from detached(error)


def _read_answer(
    transport: Transport,
    request: UpgradeRequest,
    waiter: Waiter,
    connection: h11.Connection,
    key: bytes,
) -> Tuple[bytes, Upgraded]:
    response = read_head(transport, waiter, connection, "the server")
    fields = [
        (name.decode("latin-1"), value.decode("latin-1"))
        for name, value in response.headers.raw_items()
    ]
    status = response.status_code
    if status != 101:
        text = f"the server answered {status} {bytes(response.reason)[:100].decode('latin-1')}"
        body = b"" if status in REDIRECTS else _read_body(transport, waiter, connection)
        raise HandshakeError(text.rstrip(), status, fields, body)
    try:
        if response.http_version != b"1.1":
            raise ValueError("it is not HTTP/1.1")
        values: Values = {}  # of each field, one for each time it is there
        for name, value in fields:
            values.setdefault(name.lower(), []).append(value)
        accept = _check_switch(values, key)
        upgraded = Upgraded(connection.trailing_data[0], headers=fields)
        upgraded.subprotocol = _check_subprotocol(values, request.subprotocols)
        upgraded.extensions = _check_extensions(values, request.offer)
        if request.accept is not None:
            upgraded.agreement = request.accept(upgraded.extensions)
    except ValueError as error:
        raise HandshakeError(f"the server's 101 is invalid: {error}", status, fields) from None
    except HandshakeError as error:  # of `accept`, which knows neither status nor fields
        raise HandshakeError(str(error), status, fields) from None
    return accept.encode(), upgraded


def _check_switch(values: Values, key: bytes) -> str:
    """Check Upgrade, Connection and Sec-WebSocket-Accept (4.1); return the last."""
    if ",".join(values.get("upgrade", ())).lower() != "websocket":
        raise ValueError('it takes exactly one "Upgrade: websocket"')
    tokens = ",".join(values.get("connection", ())).lower().split(",")
    if "upgrade" not in [token.strip(" \t") for token in tokens]:
        raise ValueError('"Connection" does not contain "Upgrade"')
    digest = hashlib.sha1(key + _GUID).digest()
    accept = base64.b64encode(digest).decode("ascii")
    if values.get("sec-websocket-accept") != [accept]:
        raise ValueError("it takes exactly one Sec-WebSocket-Accept, that of the key sent")
    return accept


def _check_subprotocol(values: Values, offered: Sequence[str]) -> Optional[str]:
    chosen = values.get("sec-websocket-protocol")
    if not chosen:
        return None
    if len(chosen) > 1:
        raise ValueError("it chooses more than one subprotocol")
    if chosen[0] not in offered:
        raise ValueError(f"it chooses the subprotocol {chosen[0]!r}, which was not offered")
    return chosen[0]


def _check_extensions(values: Values, offer: Optional[str]) -> Extensions:
    chosen = values.get("sec-websocket-extensions")
    if not chosen:
        return ()
    try:
        extensions = parse_extensions(", ".join(chosen))
    except ValueError as error:
        raise ValueError(f"Sec-WebSocket-Extensions: {error}") from None
    offered = {name for name, _ in parse_extensions(offer or "")}
    for name, _ in extensions:
        if name not in offered:
            raise ValueError(f"it chooses the extension {name!r}, which was not offered")
    return extensions


def _read_body(transport: Transport, waiter: Waiter, connection: h11.Connection) -> bytes:
    """Return the beginning of a refusal's body: what comes soon, and not too much of it."""
    body = b""
    received = 0
    until = time.monotonic() + _BODY_TIME
    try:
        while len(body) < _MAX_BODY:
            event = connection.next_event()
            if isinstance(event, h11.Data):
                body += event.data
                continue
            left = until - time.monotonic()
            if event is not h11.NEED_DATA or left <= 0 or received >= _MAX_BODY_READ:
                break
            data = transport.receive()
            if data is None:
                waiter.wait({transport.fileno(): READ}, left)
                continue
            received += len(data)
            connection.receive_data(data)
    except (OSError, h11.RemoteProtocolError):
        pass  # a time-out, too: the status is known, and says more
    return body[:_MAX_BODY]
