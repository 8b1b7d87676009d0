"""One client as a command: the signals that end it, and the exit status it ends with."""

from __future__ import annotations

import contextlib
import os
import signal
from types import FrameType
from typing import Any, Callable, Dict, Iterator, Optional, Union

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


class Interrupted(KeyboardInterrupt):
    """A signal asks the command to end."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Let signals raise Interrupted in the main thread, once; a second one ends the process.

    A signal that is ignored stays so: nohup, and shells for jobs in the background, mean it.
    """
    previous: Dict[int, Any] = {}

    def interrupt(number: int, frame: Optional[FrameType]) -> None:
        for other in previous:
            signal.signal(other, signal.SIG_DFL)
        raise Interrupted(number)

    for name in _SIGNALS:
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
            previous[number] = signal.getsignal(number)
    try:
        for number in previous:
            signal.signal(number, interrupt)
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def live(
    client: WebSocketClient, talk: Callable[[], None], tell: Callable[[WebSocketError], None]
) -> int:
    """Connect, `talk`, and end in order however that ends; return the exit status.

    `talk` returns when there is nothing more to do. `tell` is told why nothing was opened.
    """
    try:
        with interruptible():
            try:
                client.connect()
                talk()
            except ConnectError as error:
                tell(error)
                return NOT_OPENED
            finally:
                client.disconnect()
    except KeyboardInterrupt as interrupt:  # Interrupted, or the key in a prompt of its own
        return SIGNALLED + getattr(interrupt, "number", signal.SIGINT)
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
