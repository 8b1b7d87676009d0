"""The errors of wsthread. Each is also the builtin a caller would expect."""

from __future__ import annotations

import copy
import enum
from typing import Optional, Sequence, Tuple, TypeVar

Headers = Sequence[Tuple[str, str]]
E = TypeVar("E", bound=BaseException)


class CloseCode(enum.IntEnum):
    """Close codes of RFC 6455 section 7.4.1 and the IANA registry."""

    NORMAL_CLOSURE = 1000
    GOING_AWAY = 1001
    PROTOCOL_ERROR = 1002
    UNSUPPORTED_DATA = 1003
    NO_STATUS_RCVD = 1005
    ABNORMAL_CLOSURE = 1006
    INVALID_DATA = 1007
    POLICY_VIOLATION = 1008
    MESSAGE_TOO_BIG = 1009
    MANDATORY_EXTENSION = 1010
    INTERNAL_ERROR = 1011
    SERVICE_RESTART = 1012
    TRY_AGAIN_LATER = 1013
    BAD_GATEWAY = 1014
    TLS_HANDSHAKE = 1015


_NAMES = {int(code): code.name for code in CloseCode}


class WebSocketError(Exception):
    """Every error of this library."""


class ConnectError(WebSocketError, ConnectionError):
    """The connection could not be opened; ``__cause__`` tells why where a system error did."""


class ConnectTimeout(ConnectError, TimeoutError):
    """The connection was not open within the time given."""


class CallableFailed(ConnectError):
    """The ``url`` or ``headers`` given as a function raised ``__cause__``."""


class HandshakeError(ConnectError):
    """The server's answer to the upgrade request is not a WebSocket handshake (RFC 6455 4.1).

    ``status`` is the HTTP status (or None where there was no readable answer), ``headers`` the
    answer's header fields in order, ``body`` the beginning of its body.
    """

    def __init__(
        self,
        message: str = "",
        status: Optional[int] = None,
        headers: Headers = (),
        body: bytes = b"",
    ) -> None:
        super().__init__(message)
        self.status = status
        self.headers = tuple(headers)
        self.body = body


class ProxyError(ConnectError):
    """A proxy refused, or did not speak its protocol. ``status`` is its HTTP status, if any."""

    def __init__(self, message: str = "", status: Optional[int] = None) -> None:
        super().__init__(message)
        self.status = status


class ConnectionClosed(WebSocketError, ConnectionError):
    """The connection is over: ``code`` and ``reason`` of RFC 6455 7.1.5 and 7.1.6.

    ``clean`` is true when both close frames were exchanged (7.1.4).
    """

    def __init__(
        self,
        message: str = "",
        code: int = CloseCode.ABNORMAL_CLOSURE,
        reason: str = "",
        clean: bool = False,
    ) -> None:
        super().__init__(message or describe_close(code, reason))
        self.code = code
        self.reason = reason
        self.clean = clean


class ProtocolError(WebSocketError, ValueError):
    """The peer broke RFC 6455 or RFC 7692. ``code`` is the close code it was told."""

    def __init__(self, message: str = "", code: int = CloseCode.PROTOCOL_ERROR) -> None:
        super().__init__(message)
        self.code = int(code)


class MessageTooBig(ProtocolError):
    """A received message is larger than ``max_message_size`` (close code 1009)."""

    def __init__(self, message: str = "", code: int = CloseCode.MESSAGE_TOO_BIG) -> None:
        super().__init__(message, code)


class SendTimeout(WebSocketError, TimeoutError):
    """There was no room to send, or no pong, within the time given."""


class QueueFull(WebSocketError, BufferError):
    """The send queue has no room, and this is no place to wait for it."""


class NotConnected(WebSocketError, ConnectionError):
    """There is no connection, and none is being opened."""


def describe_close(code: int, reason: str) -> str:
    """Say a close code in words, as ``1001 GOING_AWAY: reason``."""
    name = _NAMES.get(code)
    text = str(int(code)) if name is None else f"{int(code)} {name}"
    return f"{text}: {reason}" if reason else text


def detach(error: Optional[BaseException]) -> None:
    """Take the tracebacks off an error and its causes.

    A traceback holds frames, and frames hold the connection's objects; an error that a user
    keeps must not.
    """
    seen = set()
    pending = [error]
    while pending:
        current = pending.pop()
        if current is None or id(current) in seen:
            continue
        seen.add(id(current))
        current.__traceback__ = None
        pending += [current.__cause__, current.__context__]


def detached(error: E) -> E:
    """Return the error after `detach`."""
    detach(error)
    return error


def raisable(error: E) -> E:
    """Return a copy to raise of an error that is also kept.

    Raising puts the caller's frames on an error; one that the client keeps would keep them,
    and they the client.
    """
    twin = copy.copy(error)
    twin.__cause__ = error.__cause__
    return twin
