"""Waits that a signal gets through to."""

from __future__ import annotations

import threading
import time
from typing import Optional

#: Seconds. CPython handles a signal on the main thread only, and one that comes just before that
#: thread falls asleep, or to another thread, not until it wakes. So it sleeps no longer than this.
LOOK = 0.5


def nap(left: Optional[float]) -> Optional[float]:
    """Return how long to sleep at a time where `left` seconds (None: any) are to be waited."""
    if threading.current_thread() is not threading.main_thread():
        return left
    return LOOK if left is None else min(left, LOOK)


def wait_event(event: threading.Event, timeout: Optional[float]) -> bool:
    """Wait for an event, at most `timeout` seconds (None: for ever); return whether it is set."""
    deadline = None if timeout is None else time.monotonic() + timeout
    while True:
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        if event.wait(nap(left)):
            return True
        if left == 0:
            return False
