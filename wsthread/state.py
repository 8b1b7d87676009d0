"""The states of a client and every transition between them."""

from __future__ import annotations

import enum
from typing import Dict, Tuple


class ConnectionState(enum.Enum):
    """What a client is doing. ``client.state`` and ``on_state_change`` carry it."""

    DISCONNECTED = "disconnected"
    CONNECTING = "connecting"
    CONNECTED = "connected"
    RECONNECTING = "reconnecting"
    CLOSING = "closing"

    __hash__ = object.__hash__  # enum's own is of Python, and no better


class Event(enum.Enum):
    """What happens to a life. The value is the label in the diagram."""

    CONNECT = "connect()"
    OPENED = "upgrade accepted"
    CLOSE = "disconnect() or a close frame"
    RETRY = "lost or failed, and retried"
    END = "over"

    __hash__ = object.__hash__


#: The whole machine: the code changes state through it, the documentation draws it.
TRANSITIONS: Dict[Tuple[ConnectionState, Event], ConnectionState] = {
    (ConnectionState.DISCONNECTED, Event.CONNECT): ConnectionState.CONNECTING,
    (ConnectionState.CONNECTING, Event.OPENED): ConnectionState.CONNECTED,
    (ConnectionState.CONNECTING, Event.RETRY): ConnectionState.CONNECTING,
    (ConnectionState.CONNECTING, Event.CLOSE): ConnectionState.CLOSING,
    (ConnectionState.CONNECTING, Event.END): ConnectionState.DISCONNECTED,
    (ConnectionState.CONNECTED, Event.CLOSE): ConnectionState.CLOSING,
    (ConnectionState.CONNECTED, Event.RETRY): ConnectionState.RECONNECTING,
    (ConnectionState.CONNECTED, Event.END): ConnectionState.DISCONNECTED,
    (ConnectionState.RECONNECTING, Event.OPENED): ConnectionState.CONNECTED,
    (ConnectionState.RECONNECTING, Event.RETRY): ConnectionState.RECONNECTING,
    (ConnectionState.RECONNECTING, Event.CLOSE): ConnectionState.CLOSING,
    (ConnectionState.RECONNECTING, Event.END): ConnectionState.DISCONNECTED,
    (ConnectionState.CLOSING, Event.RETRY): ConnectionState.RECONNECTING,
    (ConnectionState.CLOSING, Event.END): ConnectionState.DISCONNECTED,
}


def next_state(state: ConnectionState, event: Event) -> ConnectionState:
    """Return the state after `event`; a transition that is not in the table is a KeyError."""
    return TRANSITIONS[state, event]
