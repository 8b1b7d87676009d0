"""Threaded, callback-based WebSocket client for programs that are not async."""

import logging

from . import shutdown
from ._version import __version__
from .client import WebSocketClient
from .deflate import Deflate
from .delegate import CallbackDelegate, WebSocketDelegate
from .dispatch import (
    Dispatcher,
    ExecutorDispatcher,
    InlineDispatcher,
    PostDispatcher,
    PumpDispatcher,
    ThreadDispatcher,
)
from .errors import (
    CloseCode,
    ConnectError,
    ConnectionClosed,
    ConnectTimeout,
    HandshakeError,
    MessageTooBig,
    NotConnected,
    ProtocolError,
    ProxyError,
    QueueFull,
    SendTimeout,
    WebSocketError,
)
from .limits import QueueLimit
from .reconnect import Reconnect
from .state import ConnectionState
from .stats import ClientStats

shutdown.install()
logging.getLogger(__name__).addHandler(logging.NullHandler())  # silent unless the program asks

__all__ = [
    "CallbackDelegate",
    "ClientStats",
    "CloseCode",
    "ConnectError",
    "ConnectTimeout",
    "ConnectionClosed",
    "ConnectionState",
    "Deflate",
    "Dispatcher",
    "ExecutorDispatcher",
    "HandshakeError",
    "InlineDispatcher",
    "MessageTooBig",
    "NotConnected",
    "PostDispatcher",
    "ProtocolError",
    "ProxyError",
    "PumpDispatcher",
    "QueueFull",
    "QueueLimit",
    "Reconnect",
    "SendTimeout",
    "ThreadDispatcher",
    "WebSocketClient",
    "WebSocketDelegate",
    "WebSocketError",
    "__version__",
]
