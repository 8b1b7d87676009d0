"""An echo server for trying things: ``wsthread echo-server``. Needs websockets (extra ``demo``)."""

from __future__ import annotations

import os
import threading
from typing import Any, List, Set

from . import command
from .demo import server_missing
from .waits import LOOK

#: Seconds a client has to answer the close of a server that ends.
_PATIENCE = 1.0


def run(host: str, port: int) -> int:
    """Echo until a signal ends it; print the URL. Return the exit status.

    It is 0 after SIGINT, SIGTERM or SIGHUP, 1 where it cannot listen, 2 where the package that
    it needs is missing.
    """
    missing = server_missing()
    if missing is not None:
        command.tell(missing)
        return command.USAGE
    from websockets.sync.server import serve  # noqa: PLC0415 - an extra

    echo = _Echo()
    try:
        server = serve(echo, host, port, close_timeout=_PATIENCE, max_size=None)
    except OSError as error:
        command.tell(f"cannot listen on port {port} of {host}: {error.strerror or error}")
        return command.NOT_OPENED
    ended = threading.Lock()  # held until it is to end; a signal's handler may release it
    ended.acquire()
    with command.Signals(ended.release):
        threading.Thread(target=server.serve_forever, daemon=True).start()
        _print_url(host, server.socket.getsockname()[1])
        while not ended.acquire(timeout=LOOK):
            pass
    echo.close()
    closer = threading.Thread(target=server.shutdown, daemon=True)  # waits for what is left
    closer.start()
    closer.join(_PATIENCE)
    if closer.is_alive() or echo.serves:
        os._exit(command.OK)  # a client that takes nothing any more does not keep it
    return command.OK


def _print_url(host: str, port: int) -> None:
    print(f"ws://[{host}]:{port}/" if ":" in host else f"ws://{host}:{port}/", flush=True)


class _Echo:
    """Sends back what comes, and knows which connections there are."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._connections: Set[Any] = set()  # the lock's

    def __call__(self, connection: Any) -> None:
        """Serve one connection. Its own thread."""
        from websockets.exceptions import ConnectionClosed  # noqa: PLC0415 - an extra

        with self._lock:
            self._connections.add(connection)
        try:
            for message in connection:
                connection.send(message)
        except ConnectionClosed:
            pass  # however it ended
        finally:
            with self._lock:
                self._connections.discard(connection)

    @property
    def serves(self) -> bool:
        """Whether there are connections."""
        with self._lock:
            return bool(self._connections)

    def close(self) -> None:
        """Close all connections with 1001, in a bounded time."""
        with self._lock:
            connections = list(self._connections)
        closing: List[threading.Thread] = []
        for connection in connections:
            thread = threading.Thread(target=connection.close, args=(1001,), daemon=True)
            thread.start()
            closing.append(thread)
        for thread in closing:
            thread.join(2 * _PATIENCE)
