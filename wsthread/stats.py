"""What a client counts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Optional


@dataclass
class ClientStats:
    """Counts since the client was made, and what is known now; ``client.stats`` is a snapshot.

    Messages and fragments are those of text and binary. Bytes are those of frames, compressed
    where they are; the opening handshake and TLS are not in them. Taking a snapshot takes no
    lock: each count is right by itself, while two of them may be a moment apart.
    """

    connections: int = 0  # times a connection was opened
    reconnects: int = 0  # of these, those that replaced a lost one
    failed_attempts: int = 0  # openings that failed
    messages_received: int = 0  # including those dropped or discarded later
    bytes_received: int = 0
    messages_sent: int = 0  # whose last byte is with the kernel
    bytes_sent: int = 0  # of frames that were begun
    messages_unsent: int = 0  # accepted, then given back
    messages_discarded: int = 0  # received while closing, or left when it closed
    messages_dropped: int = 0  # by the receive queue's overflow, or a sealed mailbox
    pings_received: int = 0
    pongs_received: int = 0
    back_pressure_pauses: int = 0  # times reading stopped because the receive queue was full
    send_queue_peak_messages: int = 0  # the most that ever waited to be sent
    send_queue_peak_bytes: int = 0
    receive_queue_peak_messages: int = 0  # the most that ever waited for callbacks
    receive_queue_peak_bytes: int = 0
    last_error: Optional[BaseException] = None  # what ended a connection or attempt last

    # These are of the moment, and filled in by the snapshot.
    send_queue_messages: int = 0  # accepted and not yet with the kernel
    send_queue_bytes: int = 0
    receive_queue_messages: int = 0  # waiting for callbacks or being delivered
    receive_queue_bytes: int = 0
    uptime: Optional[float] = None  # seconds the connection has been open; None: there is none
    latency: Optional[float] = None  # seconds of the newest ping's round trip; None: no pong yet


class Counts:
    """What the threads of a client count. `ClientStats` tells what each means."""

    # Slots, because it is written with every message: CPython looks longer for an attribute that
    # has a default in the class.
    __slots__ = (
        "back_pressure_pauses",
        "bytes_received",
        "bytes_sent",
        "connections",
        "failed_attempts",
        "last_error",
        "messages_discarded",
        "messages_dropped",
        "messages_received",
        "messages_sent",
        "messages_unsent",
        "pings_received",
        "pongs_received",
        "receive_queue_peak_bytes",
        "receive_queue_peak_messages",
        "reconnects",
        "send_queue_peak_bytes",
        "send_queue_peak_messages",
    )

    def __init__(self) -> None:
        # The reader's:
        self.connections = 0
        self.reconnects = 0
        self.failed_attempts = 0
        self.messages_received = 0
        self.bytes_received = 0
        self.messages_unsent = 0
        self.messages_discarded = 0
        self.pings_received = 0
        self.pongs_received = 0
        self.back_pressure_pauses = 0
        self.last_error: Optional[BaseException] = None
        # Whoever holds the transport's lock:
        self.messages_sent = 0
        self.bytes_sent = 0
        # Whoever holds the mailbox's lock:
        self.messages_dropped = 0
        self.receive_queue_peak_messages = 0
        self.receive_queue_peak_bytes = 0
        # Whoever holds the outbox's lock:
        self.send_queue_peak_messages = 0
        self.send_queue_peak_bytes = 0

    def snapshot(self, **moment: Any) -> ClientStats:
        """Return what is counted, with what is known of the moment."""
        return ClientStats(**{name: getattr(self, name) for name in self.__slots__}, **moment)
