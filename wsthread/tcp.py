"""From a host name to a connected socket: resolving, and RFC 8305 ("happy eyeballs")."""

from __future__ import annotations

import functools
import os
import socket
import time
from itertools import zip_longest
from typing import Any, Dict, List, Optional, Sequence, Tuple

from .errors import ConnectError, detached
from .transport import WRITE, Waiter

#: Seconds until the next address is tried as well (RFC 8305 section 8).
_STAGGER = 0.25

Address = Tuple[int, Any]  # family and socket address


def connect_tcp(
    host: str,
    port: int,
    waiter: Waiter,
    local_address: Optional[Tuple[str, int]] = None,
    sockopt: Sequence[Tuple[Any, ...]] = (),
) -> socket.socket:
    """Return a connected, non-blocking socket. Raises ConnectError, ConnectTimeout, Cancelled."""
    addresses = resolve(host, port, waiter)
    race = _Race(addresses, local_address, sockopt)
    try:
        sock = race.run(waiter)
    finally:
        race.close()
    if sock is None:
        name = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        text = f"cannot connect to {name}: {'; '.join(race.failures)}"
        raise ConnectError(text) from race.last_error
    return sock


def resolve(host: str, port: int, waiter: Waiter) -> List[Address]:
    """Return the host's TCP addresses, families alternating (RFC 8305 section 4)."""
    literal = _literal(host, port)
    if literal is not None:
        return [literal]
    look_up = functools.partial(
        socket.getaddrinfo, host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP
    )
    try:
        found = look_up(flags=socket.AI_NUMERICHOST)
    except socket.gaierror:
        try:
            found = waiter.call(look_up)
        except ConnectError:
            raise
        except (OSError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ConnectError(f"cannot resolve {host}: {reason}") from detached(error)
        except RuntimeError as error:
            raise ConnectError(f"cannot resolve {host}: {error}") from detached(error)
    families: Dict[int, List[Address]] = {}
    for family, _, _, _, address in found:
        if family in (socket.AF_INET, socket.AF_INET6):
            families.setdefault(family, []).append((family, address))
    rounds = zip_longest(*families.values())
    addresses = [address for turn in rounds for address in turn if address is not None]
    if not addresses:
        raise ConnectError(f"cannot resolve {host}: it has no IP address")
    return addresses


def _literal(host: str, port: int) -> Optional[Address]:
    """Return the address that a host without a zone is, or None: without the system's resolver.

    It goes deep into the stack, whose pages stay the thread's as long as it lives.
    """
    for family, rest in ((socket.AF_INET, ()), (socket.AF_INET6, (0, 0))):
        try:
            socket.inet_pton(family, host)
        except (OSError, ValueError):
            continue
        return family, (host, port, *rest)
    return None


class _Race:
    """Connects to several addresses, one after the other; the first that answers wins."""

    def __init__(
        self,
        addresses: Sequence[Address],
        local_address: Optional[Tuple[str, int]],
        sockopt: Sequence[Tuple[Any, ...]],
    ) -> None:
        self._waiting: List[Address] = list(addresses)
        self._local_address = local_address
        self._sockopt = sockopt
        self._running: Dict[int, Tuple[socket.socket, str]] = {}  # by descriptor
        self.failures: List[str] = []
        self.last_error: Optional[OSError] = None

    def run(self, waiter: Waiter) -> Optional[socket.socket]:
        """Return the winner, or None when every address has failed."""
        next_start = time.monotonic()
        while self._waiting or self._running:
            waiter.check()
            now = time.monotonic()
            if self._waiting and (now >= next_start or not self._running):
                if self._start(waiter, *self._waiting.pop(0)):
                    next_start = now + _STAGGER
                continue
            timeout = next_start - now if self._waiting else None
            ready = waiter.wait(dict.fromkeys(self._running, WRITE), timeout)
            for descriptor in ready:
                sock, name = self._running[descriptor]
                error = _outcome(sock)
                del self._running[descriptor]
                if error is None:
                    return sock
                sock.close()
                self._failed(name, error)
                next_start = now
        return None

    def close(self) -> None:
        """Close what is still under way."""
        while self._running:
            self._running.popitem()[1][0].close()

    def _start(self, waiter: Waiter, family: int, address: Any) -> bool:
        """Begin with one address; False when it has failed already."""
        name = f"[{address[0]}]" if family == socket.AF_INET6 else address[0]
        sock = None
        try:
            sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
            waiter.sockets.append(sock)
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for option in self._sockopt:
                sock.setsockopt(*option)
            if self._local_address is not None:
                sock.bind(self._local_address)
            try:
                sock.connect(address)
            except BlockingIOError:
                pass  # under way
        except (OSError, TypeError, ValueError, OverflowError) as error:
            if sock is not None:
                sock.close()
            self._failed(name, error if isinstance(error, OSError) else OSError(str(error)))
            return False
        self._running[sock.fileno()] = (sock, name)
        return True

    def _failed(self, name: str, error: OSError) -> None:
        self.failures.append(f"{name}: {error.strerror or error}")
        self.last_error = detached(error)


def _outcome(sock: socket.socket) -> Optional[OSError]:
    """Return why a connect failed, or None where it has not."""
    number = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if number:
        return OSError(number, os.strerror(number))
    try:
        # A port from the ephemeral range that nobody listens on may have met itself.
        if sock.getpeername() == sock.getsockname():
            return ConnectionRefusedError("connected to itself")
    except OSError as error:
        return detached(error)
    return None
