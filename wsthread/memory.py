"""What becomes of freed memory between one read and the next."""

from __future__ import annotations

import contextlib

from .transport import RECEIVE_MOST

#: glibc gives back to the system what is free at the end of a heap once that is more than twice
#: the largest block it ever gave back by itself (mallopt(3), M_MMAP_THRESHOLD). Messages that are
#: received and forgotten then cost a page fault for each page: more than reading and decoding.
_TIMES = 8
#: What is kept in any case: for reads that bring no more there is nothing to do.
KEPT = 1 << 16
_MOST = 31 << 20  # of the end of a larger block glibc takes no notice

_kept = KEPT  # any thread's, without a lock: at worst a size is done twice


def keep_warm(size: int) -> None:
    """Have glibc keep freed memory where reads bring so many bytes of messages. Any thread.

    What is kept was in use before, so the receive queue limits it. Allocates a block, does not
    touch it, and gives it back: no memory, and little time, once for each size.
    """
    global _kept
    if size > _kept:
        _kept = size
        with contextlib.suppress(MemoryError):  # where there is so little, none is kept
            bytes(min(_TIMES * max(size, RECEIVE_MOST), _MOST))
