"""What a client counts."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class ClientStats:
    """Counts since the client was made; ``client.stats`` is a snapshot of them.

    Messages and fragments are those of text and binary; bytes are those of the network, TLS
    and the opening handshake aside.
    """

    # Each is written by one owner: (r) the reader, (w) whoever holds the write lock,
    # (m) whoever holds the mailbox's lock.
    connections: int = 0  # (r) times a connection was opened
    failed_attempts: int = 0  # (r) openings that failed
    messages_received: int = 0  # (r) including those dropped or discarded later
    bytes_received: int = 0  # (r)
    messages_sent: int = 0  # (w) whose last byte is with the kernel
    bytes_sent: int = 0  # (r) added up when a connection ends
    messages_unsent: int = 0  # (r) accepted, then given back
    messages_discarded: int = 0  # (r) received while closing, or left when it closed
    messages_dropped: int = 0  # (m) by the receive queue's overflow, or a sealed mailbox
    pings_received: int = 0  # (r)
    pongs_received: int = 0  # (r)
    back_pressure_pauses: int = 0  # (r) times reading stopped because the receive queue was full
