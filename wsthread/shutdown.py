"""What happens to running clients when the interpreter ends, and in a forked child."""

from __future__ import annotations

import atexit
import time

from .session import running

#: Seconds an interpreter's exit waits for all readers together.
_EXIT_GRACE = 0.5


def _at_exit() -> None:
    sessions = [session for session in (ref() for ref in list(running.values())) if session]
    for session in sessions:
        session.request_drop()
        session.mailbox.seal(session.life)
    deadline = time.monotonic() + _EXIT_GRACE
    for session in sessions:
        session.thread.join(max(0.0, deadline - time.monotonic()))


def install() -> None:
    """Register the hooks, once per process."""
    atexit.register(_at_exit)
