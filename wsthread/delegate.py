"""The callbacks of a client."""

from __future__ import annotations

import warnings
from bisect import bisect_left
from typing import TYPE_CHECKING, Any, Callable, Dict, FrozenSet, Optional, Union

if TYPE_CHECKING:
    from .client import WebSocketClient
    from .state import ConnectionState

Message = Union[str, bytes]


class WebSocketDelegate:
    """Receives what happens to a client. Every method does nothing; override what you need.

    The callbacks of one client never overlap and come in order, on the thread of its
    dispatcher. A callback that is not overridden costs nothing: its event is not even made.
    """

    def on_state_change(self, client: WebSocketClient, state: ConnectionState) -> None:
        """The client's state is now `state`. DISCONNECTED is the last callback of a life."""

    def on_open(self, client: WebSocketClient) -> None:
        """A connection is open; also after every reconnect.

        What is sent here, or in ``on_state_change(CONNECTED)``, goes out before everything
        that was queued.
        """

    def on_message(self, client: WebSocketClient, message: Message) -> None:
        """A message came: str for text, bytes for binary."""

    def on_fragment(self, client: WebSocketClient, data: Message, opcode: int, final: bool) -> None:
        """A fragment of a message came; `opcode` is its message's (1 text, 2 binary).

        Overriding this delivers fragments as they come, and `on_message` is never called.
        """

    def on_error(self, client: WebSocketClient, error: BaseException) -> None:
        """A connection failed, or a callback raised `error`."""

    def on_close(self, client: WebSocketClient, code: int, reason: str) -> None:
        """An open connection is over, with RFC 6455's close code and reason (7.1.5, 7.1.6)."""

    def on_sent(self, client: WebSocketClient, message: Message) -> None:
        """The last byte of `message` has been given to the kernel."""

    def on_unsent(self, client: WebSocketClient, message: Message, error: BaseException) -> None:
        """`message` was accepted, but was not sent or not wholly sent, because of `error`."""

    def on_ping(self, client: WebSocketClient, payload: bytes) -> None:
        """The peer sent a ping; the pong is sent without you."""

    def on_pong(self, client: WebSocketClient, payload: bytes, latency: Optional[float]) -> None:
        """A pong came. `latency` is the round trip in seconds; None where nobody had asked."""

    def on_reconnect(
        self,
        client: WebSocketClient,
        attempt: int,
        delay: float,
        error: Optional[BaseException],
    ) -> None:
        """Attempt number `attempt` follows in `delay` seconds, because of `error`."""


_DEFAULTS = {name: method for name, method in vars(WebSocketDelegate).items() if name[:3] == "on_"}
CALLBACKS: FrozenSet[str] = frozenset(_DEFAULTS)


class CallbackDelegate(WebSocketDelegate):
    """A delegate made of functions: ``CallbackDelegate(on_message=print)``.

    The functions get the arguments of the methods of `WebSocketDelegate`, the client first.
    Raises TypeError for a name that is no callback, or for something that cannot be called.
    """

    def __init__(self, **callbacks: Optional[Callable[..., Any]]) -> None:
        for name, function in callbacks.items():
            if name not in CALLBACKS:
                raise TypeError(f"{name} is no callback; they are {', '.join(sorted(CALLBACKS))}")
            if function is None:
                continue
            if not callable(function):
                raise TypeError(f"{name} must be callable, not {type(function).__name__}")
            setattr(self, name, function)


#: One for all delegates that have the same.
_found: Dict[FrozenSet[str], FrozenSet[str]] = {}


def overridden(delegate: object) -> FrozenSet[str]:
    """Return the names of the callbacks that `delegate` has a method of its own for."""
    names = set()
    for name, default in _DEFAULTS.items():
        method = getattr(delegate, name, None)
        if callable(method) and getattr(method, "__func__", method) is not default:
            names.add(name)
    found = frozenset(names)
    return _found.setdefault(found, found)


def warn_of_typos(delegate: object, stacklevel: int) -> None:
    """Warn of public ``on_*`` methods that are no callback: nobody would ever call them."""
    names = dir(delegate)  # sorted: those that begin alike are together
    for name in names[bisect_left(names, "on_") : bisect_left(names, "on`")]:
        if name not in CALLBACKS:
            warnings.warn(
                f"{type(delegate).__name__}.{name} is no callback of a WebSocketClient "
                f"and is never called; the callbacks are {', '.join(sorted(CALLBACKS))}",
                UserWarning,
                stacklevel=stacklevel + 1,
            )
