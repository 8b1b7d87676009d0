"""What happens to clients when the interpreter ends, and in a forked child."""

from __future__ import annotations

import atexit
import os
import threading
import time

from .client import clients
from .session import Reader, exiting, running

#: Seconds an interpreter's exit waits for all readers together.
_EXIT_GRACE = 0.5


def _at_exit() -> None:
    exiting.set()
    sessions = [session for session in (ref() for ref in list(running.values())) if session]
    for session in sessions:
        session.request_drop()
        session.mailbox.seal(session.life)
    deadline = time.monotonic() + _EXIT_GRACE
    for session in sessions:
        # A connect() may just be starting it, and an interpreter that ends meanwhile crashes.
        if session.starting.acquire(timeout=max(0.0, deadline - time.monotonic())):
            session.starting.release()
            if session.thread.ident:
                session.thread.join(max(0.0, deadline - time.monotonic()))
    # One whose life is over runs on for a moment: the same happens then.
    for thread in threading.enumerate():
        if isinstance(thread, Reader):
            thread.join(max(0.0, deadline - time.monotonic()))


def _in_child() -> None:
    """Make the copies inert: their threads do not exist here, their sockets are the parent's.

    Takes no lock, for whoever held one does not exist here either: locks are replaced.
    Descriptors are only closed: a shutdown, a TLS alert or a wake-up would reach the parent's.
    """
    for reference in list(running.values()):
        session = reference()
        if session is not None:
            session.forked()
    running.clear()
    for handle in list(clients.values()):
        client = handle()
        if client is not None:
            client.forked()


def install() -> None:
    """Register the hooks, once per process."""
    atexit.register(_at_exit)
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_in_child)
