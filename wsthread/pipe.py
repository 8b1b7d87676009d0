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
from typing import Any, Dict, Optional

from .client import WebSocketClient
from .command import BROKEN_PIPE, INCOMPLETE, OK, is_announced, live, printable
from .delegate import Message, WebSocketDelegate
from .errors import NotConnected, QueueFull, WebSocketError, describe_close
from .state import ConnectionState

_CHUNK = 65536


def run(arguments: Dict[str, Any], as_json: bool, count: Optional[int], linger: float) -> int:
    """Talk by pipe until it is over; return the exit status.

    `arguments` are the client's. After `count` messages (None: any number) it closes; without
    one, it does so when the input has ended and nothing came for `linger` seconds.
    """
    output = Output(count)
    pipe = (JsonPipe if as_json else Pipe)(output)
    client = WebSocketClient(delegate=pipe, **arguments)
    source = Input(client, pipe, math.inf if count else linger)

    def talk() -> None:
        source.start()
        client.wait()

    with output:
        status = live(client, talk, pipe.failed)
    if output.error is not None:
        if isinstance(output.error, BrokenPipeError):
            return BROKEN_PIPE
        tell(f"cannot write: {output.error.strerror}")
        return INCOMPLETE
    return INCOMPLETE if status == OK and (pipe.unsent or output.missing) else status


def tell(text: str) -> None:
    """Say something to the person, not to the program behind the pipe."""
    with contextlib.suppress(OSError):  # nobody listens
        sys.stderr.write(f"wsthread: {printable(text)}\n")
        sys.stderr.flush()


class Output:
    """Standard output, unbuffered: what was received is there. Dispatcher's thread."""

    def __init__(self, count: Optional[int]) -> None:
        self._descriptor = sys.stdout.fileno()
        self._terminal = sys.stdout.isatty()
        self._bar = _progress(count)
        self._count = count
        self._written = 0
        self.error: Optional[OSError] = None

    @property
    def missing(self) -> bool:
        """Whether fewer messages were written than are wanted."""
        return self._count is not None and self._written < self._count

    def write(self, data: bytes) -> bool:
        """Write all of `data`; return whether that was possible."""
        above = self._bar.external_write_mode() if self._bar else contextlib.nullcontext()
        with above:
            left = memoryview(data)
            try:
                while left:
                    left = left[os.write(self._descriptor, left) :]
            except OSError as error:
                self.error = error.with_traceback(None)
        return self.error is None

    def message(self, message: Message) -> bytes:
        """Return a message as it is written here: text as a line, binary as it is."""
        if isinstance(message, bytes):
            return message
        return (printable(message) if self._terminal else message).encode() + b"\n"

    def counted(self) -> bool:
        """Count a message that was written; return whether it was the last one wanted."""
        self._written += 1
        if self._bar:
            self._bar.update()
        return self._written == self._count

    def __enter__(self) -> Output:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._bar:
            self._bar.close()


def _progress(count: Optional[int]) -> Any:
    """Return a progress bar; None where it is not wanted, seen by nobody, or not installed."""
    if count is None or count < 2 or not sys.stderr.isatty():
        return None
    try:
        from tqdm import tqdm  # noqa: PLC0415 - an extra
    except ImportError:
        return None
    tqdm.monitor_interval = 0  # no thread of its own
    return tqdm(total=count, unit=" messages", file=sys.stderr)


class Pipe(WebSocketDelegate):
    """Messages to the output, everything else to the person. Dispatcher's thread."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self.open = threading.Event()  # while messages can be sent
        self.over = threading.Event()
        self.last = time.monotonic()  # when a message came; written by the dispatcher's thread
        self.unsent = False  # whether anything of the input was not sent

    def failed(self, error: WebSocketError) -> None:
        tell(str(error))

    def on_state_change(self, client: WebSocketClient, state: ConnectionState) -> None:
        if state is ConnectionState.CONNECTED:
            self.open.set()
        else:
            self.open.clear()
        if state is ConnectionState.DISCONNECTED:
            self.over.set()
            self.open.set()  # who waits for it learns the rest from the client

    def on_message(self, client: WebSocketClient, message: Message) -> None:
        self.last = time.monotonic()
        if not self._output.write(self.formatted(message)) or self._output.counted():
            client.disconnect(wait=False)

    def formatted(self, message: Message) -> bytes:
        return self._output.message(message)

    def on_error(self, client: WebSocketClient, error: BaseException) -> None:
        if not is_announced(error):
            tell(str(error))

    def on_close(self, client: WebSocketClient, code: int, reason: str) -> None:
        if code not in (1000, 1005):
            tell(f"closed: {describe_close(code, reason)}")

    def on_unsent(self, client: WebSocketClient, message: Message, error: BaseException) -> None:
        self.unsent = True
        tell("a line was not sent")

    def on_reconnect(
        self, client: WebSocketClient, attempt: int, delay: float, error: Optional[BaseException]
    ) -> None:
        tell(f"attempt {attempt} to come back in {delay:.1f} s ({error})")


class JsonPipe(Pipe):
    """Every event to the output, one a line."""

    def _put(self, event: str, **fields: Any) -> bytes:
        line = {"event": event, "time": round(time.time(), 3), **fields}
        return json.dumps(line).encode() + b"\n"

    def _event(self, client: Optional[WebSocketClient], event: str, **fields: Any) -> None:
        if not self._output.write(self._put(event, **fields)) and client is not None:
            client.disconnect(wait=False)

    def formatted(self, message: Message) -> bytes:
        return self._put("message", **_fields(message))

    def failed(self, error: WebSocketError) -> None:
        super().failed(error)
        self._event(None, "error", **_error(error))

    def on_state_change(self, client: WebSocketClient, state: ConnectionState) -> None:
        super().on_state_change(client, state)
        self._event(client, "state", state=state.value)

    def on_open(self, client: WebSocketClient) -> None:
        extensions = list(client.extensions)
        self._event(client, "open", subprotocol=client.subprotocol, extensions=extensions)

    def on_error(self, client: WebSocketClient, error: BaseException) -> None:
        super().on_error(client, error)
        self._event(client, "error", **_error(error))

    def on_close(self, client: WebSocketClient, code: int, reason: str) -> None:
        super().on_close(client, code, reason)
        self._event(client, "close", code=code, reason=reason)

    def on_unsent(self, client: WebSocketClient, message: Message, error: BaseException) -> None:
        super().on_unsent(client, message, error)
        self._event(client, "unsent", **_fields(message), error=str(error))

    def on_reconnect(
        self, client: WebSocketClient, attempt: int, delay: float, error: Optional[BaseException]
    ) -> None:
        super().on_reconnect(client, attempt, delay, error)
        why = None if error is None else str(error)
        self._event(client, "reconnect", attempt=attempt, delay=round(delay, 3), error=why)


def _fields(message: Message) -> Dict[str, str]:
    if isinstance(message, str):
        return {"type": "text", "data": message}
    return {"type": "binary", "base64": base64.b64encode(message).decode("ascii")}


def _error(error: BaseException) -> Dict[str, str]:
    return {"type": type(error).__name__, "error": str(error)}


class Input(threading.Thread):
    """Sends the lines of standard input, then waits for silence and closes.

    A thread of its own, because nothing else wakes a read of a pipe on every system; a daemon,
    because the connection may end before the input does. It reads the descriptor, for a thread
    that held the lock of sys.stdin at the end would crash the interpreter.
    """

    def __init__(self, client: WebSocketClient, pipe: Pipe, linger: float) -> None:
        super().__init__(name="wsthread-input", daemon=True)
        self._client = client
        self._pipe = pipe
        self._linger = linger

    def run(self) -> None:
        try:
            self._send_lines()
            self._client.flush(None)
        except NotConnected:
            return
        except WebSocketError:
            pass  # the delegate learns of it too; there may be a reconnect
        ended = time.monotonic()
        while not self._pipe.over.is_set():
            left = max(self._pipe.last, ended) + self._linger - time.monotonic()
            if left <= 0:
                break
            self._pipe.over.wait(min(left, threading.TIMEOUT_MAX))
        self._client.disconnect(wait=False)

    def _send_lines(self) -> None:
        begun = bytearray()
        while True:
            try:
                data = os.read(0, _CHUNK)
            except OSError as error:  # closed, or a directory
                tell(f"cannot read: {error.strerror}")
                self._pipe.unsent = True
                return
            begun += data
            lines = begun.split(b"\n")
            begun = lines.pop() if data else bytearray()
            for line in lines if data or lines[-1] else ():
                self._send_line(bytes(line))
            if not data:
                return

    def _send_line(self, line: bytes) -> None:
        try:
            text = line[:-1].decode() if line.endswith(b"\r") else line.decode()
        except UnicodeDecodeError:
            self._pipe.unsent = True
            tell("a line is not UTF-8, and was not sent")
            return
        while True:
            try:
                self._client.send(text, None)
            except QueueFull:  # between two connections
                self._pipe.open.wait()
            except NotConnected:
                self._pipe.unsent = True
                raise
            else:
                return
