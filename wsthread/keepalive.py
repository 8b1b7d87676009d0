"""When to ping, and when to give a silent peer up. The time is given; no I/O."""

from __future__ import annotations

import math
from typing import Optional


class Keepalive:
    """The clock of one connection (RFC 6455 5.5.2). Belongs to the reader's thread.

    A ping is due every `interval` seconds. A peer from which nothing at all came for `timeout`
    seconds after a ping is dead. None for either means never. All times are monotonic seconds.
    """

    __slots__ = ("_interval", "_next_ping", "_pinged", "_suspended", "_timeout", "heard")

    def __init__(self, interval: Optional[float], timeout: Optional[float], now: float) -> None:
        self._interval = math.inf if interval is None else interval
        self._timeout = math.inf if timeout is None else timeout
        self._next_ping = now + self._interval
        self._pinged = -math.inf  # since when an answer is awaited, where it is after `heard`
        self._suspended = False
        #: When bytes last came. The reader assigns it for every read.
        self.heard = now

    def _dead_at(self) -> float:
        if self._suspended or self.heard >= self._pinged:
            return math.inf
        return self._pinged + self._timeout

    def deadline(self) -> float:
        """When `ping_due` or `dead` may next become true; math.inf: never."""
        return min(self._next_ping, self._dead_at())

    def ping_due(self, now: float) -> bool:
        """Whether to send a ping now. Every true answer starts the next interval."""
        if now < self._next_ping:
            return False
        self._next_ping = now + self._interval
        if self.heard >= self._pinged:
            # Bytes that came in this very moment were sent before the ping: no answer to it.
            self._pinged = math.nextafter(max(now, self.heard), math.inf)
        return True

    def dead(self, now: float) -> bool:
        """Whether the peer has been silent for too long."""
        return now >= self._dead_at()

    def suspend(self) -> None:
        """Reading is paused on purpose: silence means nothing."""
        self._suspended = True

    def resume(self, now: float) -> None:
        """Reading goes on: a ping that was not answered yet gets its whole time again."""
        if self._suspended:
            self._suspended = False
            self.restart(now)

    def restart(self, now: float) -> None:
        """The peer showed life by taking bytes: an answer still awaited gets its time again."""
        if self.heard < self._pinged:
            self._pinged = now
