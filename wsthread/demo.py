"""The demo: a server in its own process, a client that comes and goes, and what is left over.

It plays the view controller of the Swift client that this library ports: a button connects
and disconnects, and every callback is written down with the thread that it ran on.
"""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import os
import signal
import subprocess
import sys
import threading
from typing import Any, Iterator, List, Optional, Union

from .client import WebSocketClient
from .delegate import WebSocketDelegate
from .errors import WebSocketError
from .state import ConnectionState

MESSAGE = "Have a good day!"
#: Seconds the demo waits for what takes milliseconds, before it gives up.
_PATIENCE = 20.0


class DemoError(Exception):
    """The demo cannot go on; the text says why."""


# The server, in a process of its own: its threads and objects are not the client's.


def server_missing() -> Optional[str]:
    """Say what has to be installed for `local_server`; None where it is there."""
    try:
        found = importlib.util.find_spec("websockets.sync.server") is not None
    except ModuleNotFoundError:
        found = False
    if found:
        return None
    return "the local server needs the package websockets: pip install 'wsthread[demo]'"


@contextlib.contextmanager
def local_server() -> Iterator[str]:
    """Run an echo server in a process of its own, on a free port of 127.0.0.1; give its URL.

    Raises DemoError where it cannot be started. The process ends with the ``with`` block, and
    with this process, however that ends: it lives as long as the pipe to its input does.
    """
    missing = server_missing()
    if missing is not None:
        raise DemoError(missing)
    process = subprocess.Popen(
        [sys.executable, "-m", __name__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        yield f"ws://127.0.0.1:{_port_of(process)}/"
    finally:
        _end(process)


def _port_of(process: subprocess.Popen[str]) -> int:
    assert process.stdout is not None
    watchdog = threading.Timer(_PATIENCE, process.kill)  # ends the readline below
    watchdog.start()
    try:
        line = process.stdout.readline()
    finally:
        watchdog.cancel()
        watchdog.join()
    if not line.strip().isdigit():
        raise DemoError("the local server did not start")
    return int(line)


def _end(process: subprocess.Popen[str]) -> None:
    for pipe in (process.stdin, process.stdout):
        assert pipe is not None
        pipe.close()
    try:
        process.wait(_PATIENCE)
    except BaseException:  # a second Ctrl-C included
        process.kill()
        process.wait()
        raise


def _serve() -> None:
    """The server's process: print the port, echo until the input ends."""
    from websockets.sync.server import serve  # noqa: PLC0415 - an extra

    # Ctrl-C reaches every process of a terminal; this one ends with its parent.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    server = serve(_echo, "127.0.0.1", 0)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(server.socket.getsockname()[1], flush=True)
    sys.stdin.read()
    os._exit(0)  # connections that are still open do not keep it


def _echo(connection: Any) -> None:
    for message in connection:
        connection.send(message)


# The client.


def say(text: str) -> None:
    """Print one event with the thread that it happens on."""
    # In one write: the lines of two threads must not mix.
    sys.stdout.write(f"  [{threading.current_thread().name}]".ljust(26) + text + "\n")
    sys.stdout.flush()


class ViewController(WebSocketDelegate):
    """Owns the client and is its delegate; the button connects and disconnects."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._socket: Optional[WebSocketClient] = None  # the main thread's
        self.received = threading.Event()

    def tap(self) -> None:
        """Hit the button. Raises ConnectError."""
        if self._socket is None:
            say("hit me!  (connect)")
            self._socket = WebSocketClient(self._url, self, weak_delegate=True, reconnect=False)
            self._socket.connect()
        else:
            say("hit me!  (disconnect)")
            self._socket.disconnect()
            self._socket = None

    def on_state_change(self, client: WebSocketClient, state: ConnectionState) -> None:
        say(f"on_state_change: {state.name.lower()}")
        if state is ConnectionState.CONNECTED:
            say(f"connected, and sending message '{MESSAGE}'")
            client.send(MESSAGE)

    def on_message(self, client: WebSocketClient, message: Union[str, bytes]) -> None:
        say(f"on_message: {message!r}")
        self.received.set()

    def on_sent(self, client: WebSocketClient, message: Union[str, bytes]) -> None:
        say("on_sent: the message has been sent")

    def on_error(self, client: WebSocketClient, error: BaseException) -> None:
        say(f"on_error: {error}")

    def on_close(self, client: WebSocketClient, code: int, reason: str) -> None:
        say(f"on_close: {code}")


def _play(url: str) -> None:
    controller = ViewController(url)
    controller.tap()
    try:
        if not controller.received.wait(_PATIENCE):
            raise DemoError("the message did not come back")
    finally:
        controller.tap()


def _count() -> List[int]:
    """Count what could be left over: threads, descriptors, objects."""
    return [threading.active_count(), _descriptors(), len(gc.get_objects())]


def _descriptors() -> int:
    try:
        return len(os.listdir("/proc/self/fd"))
    except OSError:
        return 0  # not Linux: they are not counted


def run(rounds: int) -> int:
    """Play `rounds` rounds, print what is left over, and return the exit status.

    It is 0, or 1 where anything is left over or the rounds failed, or 2 where the package that
    the server needs is missing.
    """
    missing = server_missing()
    if missing is not None:
        print(missing, file=sys.stderr)
        return 2
    try:
        with local_server() as url:
            print(f"server in a process of its own: {url}")
            left = _play_and_count(url, rounds)
    except (DemoError, WebSocketError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 1
    print("\nleft over: {} threads, {} descriptors, {} objects".format(*left))
    return 1 if any(left) else 0


def _play_and_count(url: str, rounds: int) -> List[int]:
    """Return what the rounds after the first leave over; the first fills caches.

    The garbage collector is off: what is freed is freed because nothing refers to it any more.
    """
    before = [0, 0, 0]  # here already when the objects are counted, as afterwards
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        for number in range(1, rounds + 1):
            print(f"\nround {number} of {rounds}")
            _play(url)
            if number == 1:
                before[:] = _count()
        after = _count()
        return [now - then for now, then in zip(after, before)]
    finally:
        if was_enabled:
            gc.enable()


if __name__ == "__main__":
    _serve()
