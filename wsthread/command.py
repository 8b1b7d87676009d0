"""One client as a command: the signals that end it, and the exit status it ends with."""

from __future__ import annotations

import contextlib
import os
import signal
from types import FrameType
from typing import Any, Callable, Dict, Optional, Union

from .client import WebSocketClient
from .errors import ConnectError, ConnectionClosed, ProtocolError, WebSocketError

#: Exit statuses. One that a signal ended is this more than the signal's number, as in a shell.
SIGNALLED = 128
OK = 0
NOT_OPENED = 1
USAGE = 2
CLOSED = 3
LOST = 4
INCOMPLETE = 5
BROKEN_PIPE = SIGNALLED + 13

_SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP")


class Signals:
    """Calls a function when a signal asks the command to end; a second one ends the process.

    Nothing is raised: an exception at any instruction may come where it is lost, or where a
    terminal is about to get its settings back. A signal that is ignored stays so: nohup, and
    shells for jobs in the background, mean it. Main thread only.
    """

    def __init__(self, end: Callable[[], object]) -> None:
        self._end = end
        self._previous: Dict[int, Any] = {}
        self.number: Optional[int] = None  # of the signal that came first

    def __enter__(self) -> Signals:
        for name in _SIGNALS:
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
                self._previous[number] = signal.getsignal(number)
        for number in self._previous:
            signal.signal(number, self._came)
        return self

    def _came(self, number: int, frame: Optional[FrameType]) -> None:
        for other in self._previous:
            signal.signal(other, signal.SIG_DFL)
        self.number = number
        self._end()

    def __exit__(self, *exc_info: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)


def live(
    client: WebSocketClient, talk: Callable[[], None], tell: Callable[[WebSocketError], None]
) -> int:
    """Connect, `talk`, and end in order however that ends; return the exit status.

    `talk` returns when there is nothing more to do, and when the client has ended. `tell` is
    told why nothing was opened.
    """
    failure: Optional[ConnectError] = None
    with Signals(lambda: client.disconnect(wait=False)) as signals:
        try:
            client.connect()
            if signals.number is None:  # one may come before there is anything to end
                talk()
        except ConnectError as error:
            failure = error
        except KeyboardInterrupt:  # the key, in a prompt of its own
            signals.number = signals.number or signal.SIGINT
        finally:
            client.disconnect()
    if signals.number is not None:
        return SIGNALLED + signals.number
    if failure is not None:
        tell(failure)
        return NOT_OPENED
    return _status(client)


def _status(client: WebSocketClient) -> int:
    if isinstance(client.error, (ConnectError, ProtocolError)) or client.close_code in (None, 1006):
        return LOST
    return OK if client.close_code in (1000, 1005) else CLOSED


def is_announced(error: BaseException) -> bool:
    """Whether an error says no more than the close code and reason that come behind it."""
    return isinstance(error, ConnectionClosed) and error.clean


def reserve_standard_descriptors() -> None:
    """Put something on standard descriptors that are closed, or a socket of ours gets there.

    What is closed reads as ended, and cannot be written to.
    """
    while True:
        descriptor = os.open(os.devnull, os.O_RDONLY)
        if descriptor > 2:
            os.close(descriptor)
            return


def tell(text: str) -> None:
    """Say something to the person: a line on standard error."""
    line = f"wsthread: {printable(text)}\n".encode()
    with contextlib.suppress(OSError):  # nobody listens
        os.write(2, line)  # sys.stderr would keep what it could not write, and fail at the exit


def printable(text: str) -> str:
    """Return a text with what would steer a terminal, or hide in it, written as escapes."""
    return "".join(
        c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text
    )


def as_shown(message: Union[str, bytes]) -> str:
    """Return a message as a person reads it: text, or the beginning of binary in hex."""
    if isinstance(message, str):
        return printable(message)
    dots = " ..." if len(message) > 64 else ""
    return f"binary, {len(message)} bytes: {message[:64].hex(' ')}{dots}"
