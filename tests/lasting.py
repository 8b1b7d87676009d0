"""A server that can be cut off, stopped and started again, for tests of what lasts."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
import time
from typing import Any, Callable, List, Optional, Set

from tests.support import SOON, RawConnection, frame


def eventually(condition: Callable[[], object], timeout: float = SOON) -> None:
    """Wait until `condition` holds, which nothing tells."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("it did not happen")
        time.sleep(0.005)


class Cuttable(RawConnection):
    """A connection whose script ends, with a reset, where it next reads."""

    cut = False  # written under the server's lock

    def _more(self) -> None:
        if self.cut:
            raise EOFError
        super()._more()


def echo(connection: RawConnection) -> None:
    """The server's end of an open connection: echoes, answers pings and the close."""
    while True:
        opcode, payload = connection.read_frame()
        if opcode == 10:
            continue
        connection.sock.sendall(frame(10 if opcode == 9 else opcode, payload))
        if opcode == 8:
            return


def reusing(host: str, port: int) -> socket.socket:
    """Return a socket bound to a port that another one may be bound to, but not listen on."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((host, port))
    return sock


class SteadyServer:
    """A server on one port, with a thread for each connection.

    `script(connection)` runs for each one, and opens it itself; by default it upgrades and
    echoes. The port stays the server's while it is stopped.
    """

    def __init__(
        self, script: Optional[Callable[[RawConnection], None]] = None, host: str = "127.0.0.1"
    ) -> None:
        self._script = script or self._echo
        self._lock = threading.Lock()
        self._open: Set[Cuttable] = set()  # the lock's
        self._threads: List[threading.Thread] = []  # the lock's
        self._listener: Optional[socket.socket] = None
        self.accepted: List[float] = []  # the monotonic time of each
        self.failure: Optional[BaseException] = None  # what a script raised; `close` raises it
        # Bound to the port, never listening: nobody else gets it while the server is stopped.
        self._holder = reusing(host, 0)
        self._host, self.port = self._holder.getsockname()
        self.start()
        self.url = f"ws://{host}:{self.port}/"

    def _echo(self, connection: RawConnection) -> None:
        connection.upgrade()
        connection.sock.settimeout(None)
        echo(connection)

    def start(self) -> None:
        """Listen (again), on the port there was before."""
        listener = reusing(self._host, self.port)
        listener.listen(512)
        self._listener = listener
        self._spawn(self._accept, listener)

    def _spawn(self, target: Callable[..., None], *args: Any) -> None:
        thread = threading.Thread(target=target, args=args, name="steady-server", daemon=True)
        with self._lock:
            self._threads = [one for one in self._threads if one.is_alive()]
            thread.start()
            self._threads.append(thread)

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            self.accepted.append(time.monotonic())
            with self._lock:
                if listener is not self._listener:
                    sock.close()
                    return
                connection = Cuttable(sock)
                self._open.add(connection)
            self._spawn(self._run, connection)

    def _run(self, connection: Cuttable) -> None:
        try:
            self._script(connection)
        except (OSError, EOFError):
            pass  # the client ended first, or `cut`: whether it may is the test's to say
        except BaseException as error:
            self.failure = error
        finally:
            with self._lock:
                self._open.discard(connection)
                connection.sock.close()

    def cut(self) -> None:
        """Reset every connection."""
        with self._lock:
            for connection in self._open:
                connection.cut = True
                with contextlib.suppress(OSError):
                    linger = struct.pack("ii", 1, 0)
                    connection.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                    connection.sock.shutdown(socket.SHUT_RD)  # wakes its thread, which closes

    def stop(self) -> None:
        """Reset every connection and refuse new ones."""
        listener = self._listener
        with self._lock:
            self._listener = None
        if listener is not None:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            listener.close()
        self.cut()

    def close(self) -> None:
        self.stop()
        self._holder.close()
        with self._lock:
            threads = list(self._threads)
        for thread in threads:
            thread.join(SOON)
            assert not thread.is_alive(), "a script of the server hangs"
        if self.failure is not None:
            raise self.failure

    def __enter__(self) -> SteadyServer:
        return self

    def __exit__(self, kind: Any, *rest: object) -> None:
        if kind is None:
            self.close()
        else:
            with contextlib.suppress(BaseException):
                self.close()
