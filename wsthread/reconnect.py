"""When to try again. The time and the chance are given; no I/O."""

from __future__ import annotations

import random
import ssl
from dataclasses import dataclass, field
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import Callable, Optional

from .errors import CallableFailed, ConnectError, HandshakeError, ProxyError

_RETRIED_CODES = frozenset({1001, 1005, 1006, 1011, 1012, 1013, 1014})


_RANDOM = random.SystemRandom()


@dataclass(frozen=True)
class Reconnect:
    """How a lost connection comes back: exponential back-off with full jitter.

    The n-th delay is a random time between 0 and ``min(max_delay, delay * 2**(n-1))`` seconds;
    the count starts again once a connection has lasted `min_uptime` seconds. `attempts` is how
    often in a row it is tried, None for ever. A ``Retry-After`` of the server is waited for, at
    most `max_retry_after` seconds. With `first` the first connection is retried as well.

    `should_retry(error, code)` decides instead of the rules below where it returns True or
    False (None: the rules decide); `error` is what ended the attempt or the connection, or
    None, `code` the close code, or None for a failed attempt. It runs in a thread of its own.
    Where it raises or takes longer than ``connect_timeout``, a warning is logged and the rules
    decide. `rng` is for tests: it gives the chance.

    The rules: close codes 1001, 1005, 1006 and 1011 to 1014 are retried, and so are failed
    attempts, except certificate errors, bad URLs, logins that a SOCKS5 proxy refuses, and HTTP
    answers (of a proxy too) other than 408, 429, 5xx.
    """

    delay: float = 1.0
    max_delay: float = 60.0
    min_uptime: float = 5.0
    attempts: Optional[int] = None
    max_retry_after: float = 300.0
    first: bool = False
    should_retry: Optional[Callable[[Optional[BaseException], Optional[int]], Optional[bool]]] = (
        None
    )
    # By default one without a state, which forked processes would share; one for all of them.
    rng: random.Random = field(default=_RANDOM, repr=False, compare=False)

    def __post_init__(self) -> None:
        for name in ("delay", "max_delay", "min_uptime", "max_retry_after"):
            value = getattr(self, name)
            if not isinstance(value, (int, float)) or isinstance(value, bool):
                raise TypeError(f"Reconnect.{name} is a number of seconds")
            if not 0 <= value < float("inf"):
                raise ValueError(f"Reconnect.{name} is 0 or more, not {value}")
        if self.attempts is not None and self.attempts < 0:
            raise ValueError(f"Reconnect.attempts is 0 or more, not {self.attempts}")


def retried(error: Optional[BaseException], code: Optional[int]) -> bool:
    """Whether the rules retry after a close code, or (code None) after a failed attempt."""
    if code is not None:
        return code in _RETRIED_CODES
    if isinstance(error, (HandshakeError, ProxyError)) and error.status is not None:
        return error.status in (408, 429) or error.status >= 500
    if isinstance(error, CallableFailed):  # what it asked may be down; its dead owner stays dead
        return not isinstance(error.__cause__, ReferenceError)
    if isinstance(error, ConnectError):
        lasting = (ssl.SSLCertVerificationError, ValueError, ImportError)
        return not isinstance(error.__cause__, lasting)
    return False


def retry_after(error: Optional[BaseException], now: datetime) -> Optional[float]:
    """Return the seconds of a Retry-After in a refused handshake (RFC 9110 10.2.3), or None."""
    if not isinstance(error, HandshakeError):
        return None
    for name, value in error.headers:
        if name.lower() != "retry-after":
            continue
        value = value.strip()
        if value.isascii() and value.isdigit():
            return float(value[:9])
        try:
            then = parsedate_to_datetime(value)
        except (TypeError, ValueError, IndexError, OverflowError):  # it trusts what it parses
            return None
        if then.tzinfo is None:
            then = then.replace(tzinfo=timezone.utc)
        return max(0.0, (then - now).total_seconds())
    return None


class Backoff:
    """Counts the attempts of one life and says how long to wait. The reader's own."""

    __slots__ = ("_policy", "attempt")

    def __init__(self, policy: Reconnect) -> None:
        self._policy = policy
        self.attempt = 0  # attempts since the last connection that lasted

    def lasted(self, uptime: float) -> None:
        """A connection that was up for `uptime` seconds has ended."""
        if uptime >= self._policy.min_uptime:
            self.attempt = 0

    def next_delay(self, asked: Optional[float]) -> Optional[float]:
        """Return the seconds to wait before the next attempt; None: no more attempts.

        `asked` is the server's Retry-After in seconds, or None.
        """
        policy = self._policy
        if policy.attempts is not None and self.attempt >= policy.attempts:
            return None
        ceiling = min(policy.max_delay, policy.delay * 2.0 ** min(self.attempt, 60))
        self.attempt += 1
        delay = policy.rng.uniform(0, ceiling)
        if asked is not None:
            delay += min(asked, policy.max_retry_after)
        return delay
