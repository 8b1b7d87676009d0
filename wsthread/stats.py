"""What a client counts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional


@dataclass
class ClientStats:
    """Counts since the client was made, and what is known now; ``client.stats`` is a snapshot.

    Messages and fragments are those of text and binary. Bytes are those of frames, compressed
    where they are; the opening handshake and TLS are not in them. Taking a snapshot takes no
    lock: each count is right by itself, while two of them may be a moment apart.
    """

    # Each is written by one owner: (r) the reader, (w) whoever holds the write lock,
    # (m) whoever holds the mailbox's lock, (o) whoever holds the outbox's.
    connections: int = 0  # (r) times a connection was opened
    reconnects: int = 0  # (r) of these, those that replaced a lost one
    failed_attempts: int = 0  # (r) openings that failed
    messages_received: int = 0  # (r) including those dropped or discarded later
    bytes_received: int = 0  # (r)
    messages_sent: int = 0  # (w) whose last byte is with the kernel
    bytes_sent: int = 0  # (w) of frames that were begun
    messages_unsent: int = 0  # (r) accepted, then given back
    messages_discarded: int = 0  # (r) received while closing, or left when it closed
    messages_dropped: int = 0  # (m) by the receive queue's overflow, or a sealed mailbox
    pings_received: int = 0  # (r)
    pongs_received: int = 0  # (r)
    back_pressure_pauses: int = 0  # (r) times reading stopped because the receive queue was full
    send_queue_peak_messages: int = 0  # (o) the most that ever waited to be sent
    send_queue_peak_bytes: int = 0  # (o)
    receive_queue_peak_messages: int = 0  # (m) the most that ever waited for callbacks
    receive_queue_peak_bytes: int = 0  # (m)
    last_error: Optional[BaseException] = None  # (r) what ended a connection or attempt last

    # These are of the moment, and filled in by the snapshot.
    send_queue_messages: int = 0  # accepted and not yet with the kernel
    send_queue_bytes: int = 0
    receive_queue_messages: int = 0  # waiting for callbacks or being delivered
    receive_queue_bytes: int = 0
    uptime: Optional[float] = None  # seconds the connection has been open; None: there is none
    latency: Optional[float] = None  # seconds of the newest ping's round trip; None: no pong yet
