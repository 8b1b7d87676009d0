"""The command line by pipe: lines of the input are sent, messages go to the output."""

from __future__ import annotations

import base64
import contextlib
import json
import math
import os
import sys
import threading
import time
from typing import Any, ContextManager, Dict, Optional

from . import command
from .client import WebSocketClient
from .command import as_shown, is_announced, live
from .delegate import Message, WebSocketDelegate
from .errors import NotConnected, QueueFull, WebSocketError, describe_close
from .state import ConnectionState

#: Seconds without a message after which all is said, where nothing else was asked for.
LINGER = 1.0
#: Seconds between two looks at what cannot be waited for.
_PAUSE = 0.05
#: Seconds that the input has at the end to say that there was more of it.
_GRACE = 0.2


def run(
    client: WebSocketClient, as_json: bool, count: Optional[int], linger: Optional[float]
) -> int:
    """Talk by pipe until it is over; return the exit status.

    The client closes after `count` messages (None: any number), and when the input has ended and
    nothing came for `linger` seconds (None: LINGER; with `count`, for ever).
    """
    if linger is None:
        linger = LINGER if count is None else math.inf
    output = Output(count)
    pipe = (JsonPipe if as_json else Pipe)(output)
    client.set_delegate(pipe)
    source = Input(client, pipe, linger)

    def talk() -> None:
        source.start()
        client.wait()

    with output:
        status = live(client, talk, pipe.failed)
    if output.error is not None:
        if isinstance(output.error, BrokenPipeError):
            return command.BROKEN_PIPE
        command.tell(f"cannot write: {output.error.strerror}")
        return command.INCOMPLETE
    if status == command.OK and not output.complete:
        source.join(_GRACE)  # it may be about to find that a line cannot be sent any more
    left = [output.missing] if status != command.NOT_OPENED else []
    if pipe.unsent and not output.complete:
        left.append("not all of the input was sent")
    for text in filter(None, left):
        command.tell(text)
    return command.INCOMPLETE if status == command.OK and any(left) else status


class Output:
    """Standard output, unbuffered: what was received is there. The dispatcher's thread writes."""

    def __init__(self, count: Optional[int]) -> None:
        self._terminal = os.isatty(1)
        self._bar = _progress(count)
        self._count = count
        self._written = 0
        self.error: Optional[OSError] = None

    @property
    def complete(self) -> bool:
        """Whether all messages that were asked for have been written."""
        return self._written == self._count

    @property
    def missing(self) -> str:
        """Says how many messages were written where more were asked for; else empty."""
        if self._count is None or self.complete:
            return ""
        return f"{self._written} of {self._count} messages came"

    def write(self, data: bytes, counts: bool = False) -> bool:
        """Write all of `data`; return whether that was possible. Messages count."""
        with self._above_bar() if self._terminal else contextlib.nullcontext():
            left = memoryview(data)
            try:
                while left:
                    left = left[os.write(1, left) :]
            except OSError as error:
                self.error = error.with_traceback(None)
                return False
            if counts:
                self._written += 1
                if self._bar is not None:
                    self._bar.update()
        return True

    def tell(self, text: str) -> None:
        """Say something to the person, not to the program behind the pipe. Any thread."""
        with self._above_bar():
            command.tell(text)

    def _above_bar(self) -> ContextManager[object]:
        if self._bar is None:
            return contextlib.nullcontext()
        above: ContextManager[object] = self._bar.external_write_mode(file=sys.stderr)
        return above

    def message(self, message: Message) -> bytes:
        """Return a message as it is written here: text as a line, binary as it is."""
        if self._terminal:
            return as_shown(message).encode() + b"\n"
        return message if isinstance(message, bytes) else message.encode() + b"\n"

    def __enter__(self) -> Output:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._bar is not None:
            self._bar.close()


def _progress(count: Optional[int]) -> Any:
    """Return a progress bar; None where it is not wanted, seen by nobody, or not installed."""
    if count is None or count < 2 or not os.isatty(2):
        return None
    try:
        from tqdm import tqdm  # noqa: PLC0415 - an extra
    except ImportError:
        return None
    tqdm.monitor_interval = 0  # no thread of its own
    tqdm.set_lock(threading.RLock())  # nor what it would keep for other processes
    return tqdm(total=count, unit=" messages", file=sys.stderr)


class Pipe(WebSocketDelegate):
    """Messages to the output, everything else to the person. The dispatcher's thread."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self.over = threading.Event()
        self.last = time.monotonic()  # when a message had come; the dispatcher's thread writes it
        self.unsent = False  # whether anything of the input was not sent; any thread sets it

    def tell(self, text: str) -> None:
        self._output.tell(text)

    def failed(self, error: WebSocketError) -> None:
        self.tell(str(error))

    def on_state_change(self, client: WebSocketClient, state: ConnectionState) -> None:
        if state is ConnectionState.DISCONNECTED:
            self.over.set()

    def on_message(self, client: WebSocketClient, message: Message) -> None:
        if not self._output.write(self.formatted(message), True) or self._output.complete:
            client.disconnect(wait=False)
        self.last = time.monotonic()

    def formatted(self, message: Message) -> bytes:
        return self._output.message(message)

    def on_error(self, client: WebSocketClient, error: BaseException) -> None:
        if not is_announced(error):
            self.tell(str(error))

    def on_close(self, client: WebSocketClient, code: int, reason: str) -> None:
        if code not in (1000, 1005):
            self.tell(f"closed: {describe_close(code, reason)}")

    def on_unsent(self, client: WebSocketClient, message: Message, error: BaseException) -> None:
        self.unsent = True

    def on_reconnect(
        self, client: WebSocketClient, attempt: int, delay: float, error: Optional[BaseException]
    ) -> None:
        because = "" if error is None else f" ({error})"
        self.tell(f"attempt {attempt} to come back in {delay:.1f} s{because}")


class JsonPipe(Pipe):
    """Every event to the output, one a line."""

    def _line(self, event: str, **fields: Any) -> bytes:
        line = {"event": event, "time": round(time.time(), 3), **fields}
        return json.dumps(line).encode() + b"\n"

    def _put(self, client: WebSocketClient, event: str, **fields: Any) -> None:
        if not self._output.write(self._line(event, **fields)):
            client.disconnect(wait=False)

    def formatted(self, message: Message) -> bytes:
        return self._line("message", **_fields(message))

    def failed(self, error: WebSocketError) -> None:
        super().failed(error)
        self._output.write(self._line("error", **_error(error)))

    def on_state_change(self, client: WebSocketClient, state: ConnectionState) -> None:
        super().on_state_change(client, state)
        self._put(client, "state", state=state.name.lower())

    def on_open(self, client: WebSocketClient) -> None:
        extensions = list(client.extensions)
        self._put(client, "open", subprotocol=client.subprotocol, extensions=extensions)

    def on_error(self, client: WebSocketClient, error: BaseException) -> None:
        super().on_error(client, error)
        self._put(client, "error", **_error(error))

    def on_close(self, client: WebSocketClient, code: int, reason: str) -> None:
        super().on_close(client, code, reason)
        self._put(client, "close", code=code, reason=reason)

    def on_unsent(self, client: WebSocketClient, message: Message, error: BaseException) -> None:
        super().on_unsent(client, message, error)
        self._put(client, "unsent", **_fields(message), error=str(error))

    def on_reconnect(
        self, client: WebSocketClient, attempt: int, delay: float, error: Optional[BaseException]
    ) -> None:
        super().on_reconnect(client, attempt, delay, error)
        why = None if error is None else str(error)
        self._put(client, "reconnect", attempt=attempt, delay=round(delay, 3), error=why)


def _fields(message: Message) -> Dict[str, str]:
    if isinstance(message, str):
        return {"type": "text", "data": message}
    return {"type": "binary", "base64": base64.b64encode(message).decode("ascii")}


def _error(error: BaseException) -> Dict[str, str]:
    return {"type": type(error).__name__, "error": str(error)}


class Input(threading.Thread):
    """Sends the lines of standard input, then waits for silence and closes.

    A thread of its own, because nothing else wakes a read of a pipe on every system; a daemon,
    because the connection may end before the input does.
    """

    def __init__(self, client: WebSocketClient, pipe: Pipe, linger: float) -> None:
        super().__init__(name="wsthread-input", daemon=True)
        self._client = client
        self._pipe = pipe
        self._linger = linger

    def run(self) -> None:
        self._send_lines()
        self._flush()
        self._wait_for_silence(time.monotonic())
        self._client.disconnect(wait=False)

    def _send_lines(self) -> None:
        try:
            # Not sys.stdin: a thread that held its lock at the end would crash the interpreter.
            for line in open(0, "rb", closefd=False):  # noqa: SIM115
                if not self._pipe.over.is_set():
                    self._send_line(line)
                else:
                    self._pipe.unsent = True
                    return
        except OSError as error:  # it is a directory, or the terminal has gone
            self._pipe.tell(f"cannot read: {error.strerror}")
            self._pipe.unsent = True

    def _send_line(self, line: bytes) -> None:
        try:
            text = line[: -1 if line.endswith(b"\n") else None].decode()
        except UnicodeDecodeError:
            self._pipe.tell("a line is not UTF-8, and was not sent")
            self._pipe.unsent = True
            return
        while True:
            try:
                self._client.send(text[:-1] if text.endswith("\r") else text, None)
                return
            except (QueueFull, NotConnected):  # between two connections, or it is over
                if self._pipe.over.wait(_PAUSE):
                    break
            except WebSocketError:  # lost while this line was on its way
                break
        self._pipe.unsent = True

    def _flush(self) -> None:
        while not self._pipe.over.is_set():
            try:
                self._client.flush(None)
                return
            except WebSocketError:  # lost; it may come back
                self._pipe.over.wait(_PAUSE)

    def _wait_for_silence(self, since: float) -> None:
        while not self._pipe.over.is_set():
            # What waits to be written is no silence, however long the reader of it takes.
            busy = self._client.stats.receive_queue_messages > 0
            left = max(self._pipe.last, since) + self._linger - time.monotonic()
            if left <= 0 and not busy:
                return
            self._pipe.over.wait(min(max(left, _PAUSE), threading.TIMEOUT_MAX))
