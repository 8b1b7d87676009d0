"""How much may wait in a queue."""

from __future__ import annotations

from dataclasses import dataclass

_OVERFLOWS = ("block", "drop_oldest", "drop_newest", "close")


@dataclass(frozen=True)
class QueueLimit:
    """The bounds of a queue, and what happens to a receive queue that is full.

    A queue is full when it holds `messages` messages, or `bytes` bytes (frame headers
    included). One message more than `bytes` is still taken where the queue is empty.

    `overflow` is for the receive queue. ``"block"`` (the default) stops reading, so that TCP
    slows the peer down; ``"drop_oldest"`` and ``"drop_newest"`` drop messages and count them
    in ``stats.messages_dropped``; ``"close"`` closes the connection with 1008. Pings and pongs
    that wait for ``on_ping`` and ``on_pong`` count as messages; where reading does not stop,
    those that find the queue full are answered, but not told. A full send queue always makes
    `send` wait or raise; what ``on_open`` sends before it counts for itself, by the same bounds.
    """

    messages: int = 16384
    bytes: int = 16 * 1024 * 1024
    overflow: str = "block"

    def __post_init__(self) -> None:
        for name in ("messages", "bytes"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool):
                raise TypeError(f"QueueLimit.{name} is an int, not {type(value).__name__}")
            if value < 1:
                raise ValueError(f"QueueLimit.{name} is at least 1, not {value}")
        if self.overflow not in _OVERFLOWS:
            raise ValueError(f"overflow is one of {', '.join(_OVERFLOWS)}, not {self.overflow!r}")
