"""Waits that a signal gets through to, and what is waited for."""

from __future__ import annotations

import contextlib
import threading
import time
from typing import List, Optional, Union

#: Seconds. CPython handles a signal on the main thread only, and one that comes just before that
#: thread falls asleep, or to another thread, not until it wakes. So it sleeps no longer than this.
LOOK = 0.5


def nap(left: Optional[float]) -> Optional[float]:
    """Return how long to sleep at a time where `left` seconds (None: any) are to be waited."""
    if threading.current_thread() is not threading.main_thread():
        return left
    return LOOK if left is None else min(left, LOOK)


# A bell is a locked lock, of one thread that waits; to ring it is to unlock it. Lists of them
# are any thread's: an append, a pop and a remove are single operations.


def hang(bells: List[threading.Lock]) -> threading.Lock:
    """Hang up a bell for the calling thread, which looks *after* this whether it has to wait."""
    bell = threading.Lock()
    bell.acquire()
    bells.append(bell)
    return bell


def listen(bells: List[threading.Lock], bell: threading.Lock, timeout: Optional[float]) -> bool:
    """Wait for a bell, at most `timeout` seconds, and take it down; return whether it rang."""
    try:
        return bell.acquire(True, -1 if timeout is None else timeout)
    finally:
        with contextlib.suppress(ValueError):  # who rings takes it down as well
            bells.remove(bell)


def ring(bells: List[threading.Lock]) -> None:
    """Have everybody who waits look again. Takes no lock."""
    while bells:
        try:
            bell = bells[-1]
        except IndexError:  # another thread rings them as well
            return
        # Rung before it is taken down: Ctrl-C in between leaves nobody asleep.
        with contextlib.suppress(RuntimeError):
            bell.release()
        with contextlib.suppress(ValueError):
            bells.remove(bell)


class Flag:
    """A `threading.Event` that takes no lock, and a tenth of the memory.

    Each client has several, and most are never waited for.
    """

    __slots__ = ("_bells", "_is_set")

    def __init__(self) -> None:
        self._is_set = False  # any thread's
        self._bells: List[threading.Lock] = []

    def is_set(self) -> bool:
        return self._is_set

    def set(self) -> None:
        self._is_set = True
        ring(self._bells)

    def clear(self) -> None:
        self._is_set = False

    def wait(self, timeout: Optional[float] = None) -> bool:
        """Wait at most `timeout` seconds (None: for ever); return whether it was set."""
        if self._is_set:
            return True
        bell = hang(self._bells)
        is_set = self._is_set  # who set it just now has not seen the bell
        return listen(self._bells, bell, 0 if is_set else timeout) or is_set


def wait_event(event: Union[threading.Event, Flag], timeout: Optional[float]) -> bool:
    """Wait for an event, at most `timeout` seconds (None: for ever); return whether it is set."""
    deadline = None if timeout is None else time.monotonic() + timeout
    while True:
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        if event.wait(nap(left)):
            return True
        if left == 0:
            return False
