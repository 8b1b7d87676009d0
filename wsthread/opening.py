import base64
import os
import socket
from dataclasses import dataclass
from typing import *
from urllib.parse import urlsplit

from .errors import *
from .transport import *


@dataclass(frozen=True)
class OpenOptions:
    headers: Any = ()
    subprotocols: Any = ()
    origin: Any = None
    host: Any = None
    user_agent: Any = None
    ssl_context: Any = None
    socket: Any = None
    local_address: Any = None
    sockopt: Any = ()
    max_redirects: int = 3


@dataclass
class Opened:
    transport: Any
    leftover: bytes
    subprotocol: Any = None
    extensions: Any = ()
    response_headers: Any = ()


def normalize_headers(h):
    return list(h.items() if hasattr(h, "items") else h)


def open_connection(url, options, waiter):
    u = urlsplit(url)
    s = socket.socket()
    s.setblocking(False)
    s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    t = Transport(s)
    try:
        try:
            s.connect((u.hostname, u.port))
        except BlockingIOError:
            waiter.wait({s.fileno(): WRITE})
        e = s.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if e:
            raise OSError(e, os.strerror(e))
        if u.scheme == "wss":
            t.add_tls(options.ssl_context, u.hostname)
            while not t.handshake():
                waiter.wait({t.fileno(): READ})
                if not t.handshake_input():
                    raise ConnectError("eof")
        k = base64.b64encode(os.urandom(16)).decode()
        with t.lock:
            t.write(
                f"GET {u.path or '/'} HTTP/1.1\r\nHost: {u.netloc}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {k}\r\n\r\n".encode()
            )
            t.flush()
        b = b""
        while b"\r\n\r\n" not in b:
            d = t.receive()
            if d is None:
                waiter.wait({t.fileno(): READ})
                continue
            if not d:
                raise ConnectError("eof")
            b += d
        head, _, rest = b.partition(b"\r\n\r\n")
        if b" 101 " not in head:
            raise HandshakeError("no", int(head[9:12]))
        return Opened(t, rest)
    except OSError as e:
        t.close()
        if isinstance(e, ConnectError):
            raise
        raise ConnectError(str(e)) from detached(e)
    except BaseException:
        t.close()
        raise
