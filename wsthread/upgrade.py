"""The HTTP upgrade (RFC 6455 section 4), over h11.

h11 writes the request and reads the answer, strict and bounded; what the handshake adds to HTTP is
here: the key, and the checks of 4.1.
"""

from __future__ import annotations

import base64
import os
import time
from dataclasses import dataclass
from typing import Callable, Dict, List, Optional, Sequence, Tuple, Union

import h11

try:  # hashlib's own is OpenSSL's, which keeps something for each thread that ever used it
    from _sha1 import sha1  # type: ignore[import-not-found,unused-ignore]
except ImportError:
    from hashlib import sha1

from .errors import ConnectError, HandshakeError, detached
from .headers import Extensions, Fields, parse_extensions
from .http1 import MAX_BODY_READ, MAX_EVENT, read_head, write
from .transport import READ, Cancelled, Transport, Waiter

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_MAX_BODY = 4096  # bytes of a refusal's body that are kept
_BODY_TIME = 1.0  # seconds
#: Of what the client keeps of an answer: the same for most, and there only once.
_COMMON = {
    text: text
    for text in ("Upgrade", "websocket", "Connection", "Sec-WebSocket-Accept", "Date", "Server")
}
REDIRECTS = frozenset({301, 302, 303, 307, 308})

Accept = Callable[[Extensions], object]
Values = Dict[str, List[str]]


@dataclass
class UpgradeRequest:
    """What to ask for. The fields are the user's; those of the handshake are added."""

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
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_EVENT)
    # 16 bytes that nobody can predict (4.1), although all that they prove is who answers.
    key = base64.b64encode(os.urandom(16))
    data = _encoded(connection, request, key)
    try:
        write(transport, data, waiter)
        response = read_head(transport, waiter, connection, "the server")
        return _judge(transport, request, waiter, connection, response, key)
    except (ConnectError, Cancelled):
        raise
    except OSError as error:
        text = f"the connection broke during the handshake: {error.strerror or error}"
        raise ConnectError(text) from detached(error)


def _encoded(connection: h11.Connection, request: UpgradeRequest, key: bytes) -> bytes:
    """Return the bytes of the request."""
    fields = [
        ("Host", request.authority),
        ("Upgrade", "websocket"),
        ("Connection", "Upgrade"),
        ("Sec-WebSocket-Key", key.decode()),
        ("Sec-WebSocket-Version", "13"),
    ]
    if request.subprotocols:
        fields.append(("Sec-WebSocket-Protocol", ", ".join(request.subprotocols)))
    if request.offer:
        fields.append(("Sec-WebSocket-Extensions", request.offer))
    if request.origin is not None:
        fields.append(("Origin", request.origin))
    fields += request.fields
    headers = [(name.encode("ascii"), value.encode("utf-8")) for name, value in fields]
    try:
        event = h11.Request(method="GET", target=request.resource, headers=headers)
        return (connection.send(event) or b"") + (connection.send(h11.EndOfMessage()) or b"")
    except h11.LocalProtocolError:
        # Neither the message nor a cause: they quote the value.
        raise ConnectError("the request would not be valid HTTP") from None


def _judge(
    transport: Transport,
    request: UpgradeRequest,
    waiter: Waiter,
    connection: h11.Connection,
    response: Union[h11.Response, h11.InformationalResponse],
    key: bytes,
) -> Upgraded:
    """Check the answer's head (4.1); return what was agreed on."""
    fields = [(_text(name), _text(value)) for name, value in response.headers.raw_items()]
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
        _check_switch(values, key)
        upgraded = Upgraded(connection.trailing_data[0], headers=fields)
        upgraded.subprotocol = _check_subprotocol(values, request.subprotocols)
        upgraded.extensions = _check_extensions(values, request.offer)
        if request.accept is not None:
            upgraded.agreement = request.accept(upgraded.extensions)
    except ValueError as error:
        raise HandshakeError(f"the server's 101 is invalid: {error}", status, fields) from None
    except HandshakeError as error:  # of `accept`, which knows neither status nor fields
        raise HandshakeError(str(error), status, fields) from None
    return upgraded


def _text(data: bytes) -> str:
    text = data.decode("latin-1")
    return _COMMON.get(text, text)


def _check_switch(values: Values, key: bytes) -> None:
    """Check Upgrade, Connection and Sec-WebSocket-Accept (4.1)."""
    if ",".join(values.get("upgrade", ())).lower() != "websocket":
        raise ValueError('it takes exactly one "Upgrade: websocket"')
    tokens = ",".join(values.get("connection", ())).lower().split(",")
    if "upgrade" not in [token.strip(" \t") for token in tokens]:
        raise ValueError('"Connection" does not contain "Upgrade"')
    digest = sha1(key + _GUID).digest()
    accept = base64.b64encode(digest).decode("ascii")
    if values.get("sec-websocket-accept") != [accept]:
        raise ValueError("it takes exactly one Sec-WebSocket-Accept, that of the key sent")


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
    received = len(connection.trailing_data[0])
    until = time.monotonic() + _BODY_TIME
    try:
        while len(body) < _MAX_BODY:
            event = connection.next_event()
            if isinstance(event, h11.Data):
                body += event.data
                continue
            left = until - time.monotonic()
            if event is not h11.NEED_DATA or left <= 0 or received >= MAX_BODY_READ:
                break
            data = transport.receive(MAX_BODY_READ)
            if data is None:
                waiter.wait({transport.fileno(): READ}, left)
                continue
            data = data[: MAX_BODY_READ - received]
            received += len(data)
            connection.receive_data(data)
    except (OSError, h11.RemoteProtocolError):
        pass  # a time-out, too: the status is known, and says more
    return body[:_MAX_BODY]
