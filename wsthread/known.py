"""What is known of a client, and what it was told: shared by the handle and its sessions."""

from __future__ import annotations

import math
import threading
import time
from dataclasses import dataclass
from typing import Optional, Tuple

from .limits import QueueLimit
from .state import ConnectionState
from .stats import Counts

#: More than anybody waits, and less than the system's waits can take.
_LONGEST = threading.TIMEOUT_MAX / 2
_TIMES = ("connect_timeout", "close_timeout", "send_timeout", "ping_interval", "ping_timeout")


@dataclass
class Settings:
    """The plain values of the constructor; they hold no object of the user's. Never changed."""

    __slots__ = (
        "close_timeout",
        "connect_timeout",
        "max_message_size",
        "open_grace",
        "ping_interval",
        "ping_timeout",
        "receive_queue",
        "send_queue",
        "send_timeout",
    )

    max_message_size: Optional[int]
    connect_timeout: Optional[float]
    close_timeout: Optional[float]
    send_timeout: Optional[float]
    ping_interval: Optional[float]
    ping_timeout: Optional[float]
    open_grace: float
    send_queue: QueueLimit
    receive_queue: QueueLimit

    def __post_init__(self) -> None:
        size = self.max_message_size
        if size is not None and (isinstance(size, bool) or not isinstance(size, int)):
            raise TypeError(f"max_message_size is an int, not {type(size).__name__}")
        if size is not None and size < 1:
            raise ValueError(f"max_message_size is at least 1, not {size}")
        for name in _TIMES:
            setattr(self, name, check_seconds(name, getattr(self, name)))
        self.open_grace = check_seconds("open_grace", self.open_grace, none=False) or 0
        for name in ("send_queue", "receive_queue"):
            value = getattr(self, name)
            if not isinstance(value, QueueLimit):
                raise TypeError(f"{name} is a QueueLimit, not {type(value).__name__}")
        if self.ping_interval == 0:
            raise ValueError("ping_interval is more than 0; None turns pings off")
        if self.send_queue.overflow != "block":
            raise ValueError("send_queue: overflow is for the receive queue")


def check_seconds(name: str, value: object, none: bool = True) -> Optional[float]:
    """Return a time that can be waited for, or raise TypeError or ValueError naming it."""
    if value is None and none:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} is a number of seconds, not {type(value).__name__}")
    if not 0 <= value < math.inf:
        raise ValueError(f"{name} is finite and not negative, not {value}")
    return min(value, _LONGEST)


class Known:
    """What a client's properties tell. Written by the reader, read by any thread.

    `state` is also written by connect(), before there is a reader.
    """

    __slots__ = (
        "close_code",
        "close_reason",
        "error",
        "extensions",
        "latency",
        "opened_at",
        "response_headers",
        "state",
        "stats",
        "subprotocol",
    )

    def __init__(self) -> None:
        self.state = ConnectionState.DISCONNECTED
        self.error: Optional[BaseException] = None
        self.close_code: Optional[int] = None
        self.close_reason: Optional[str] = None
        self.latency: Optional[float] = None
        self.subprotocol: Optional[str] = None
        self.extensions: Tuple[str, ...] = ()
        self.response_headers: Tuple[Tuple[str, str], ...] = ()
        self.opened_at: Optional[float] = None  # monotonic seconds, while a connection is open
        self.stats = Counts()

    def closed(self, code: int, reason: str) -> None:
        """Note how a connection ended."""
        self.close_code, self.close_reason = int(code), reason
        self.opened_at = None

    def opened(
        self,
        subprotocol: Optional[str],
        extensions: Tuple[str, ...],
        response_headers: Tuple[Tuple[str, str], ...],
    ) -> None:
        """Note what the opening handshake agreed on; forget the connection before."""
        self.subprotocol = subprotocol
        self.extensions = extensions
        self.response_headers = response_headers
        self.error = self.close_code = self.close_reason = self.latency = None
        self.opened_at = time.monotonic()
        self.stats.connections += 1
