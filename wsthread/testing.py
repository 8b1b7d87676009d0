"""A real local server, and a delegate that records what happens: for tests of delegates.

`LocalServer` needs the extra ``testing`` (``pip install 'wsthread[testing]'``). pytest has the
fixtures ``wsthread_server`` and ``wsthread_tls_server`` where wsthread is installed.
"""

from __future__ import annotations

import functools
import http
import logging
import socket
import ssl
import threading
import time
from types import TracebackType
from typing import (
    TYPE_CHECKING,
    Any,
    Callable,
    Dict,
    List,
    Mapping,
    Optional,
    Sequence,
    Tuple,
    Type,
    Union,
)

from .delegate import Message, WebSocketDelegate, overridden

if TYPE_CHECKING:
    from .client import WebSocketClient
    from .state import ConnectionState

__all__ = ["LocalServer", "RecordingDelegate"]

#: What a reply is: a message, several, or nothing.
Reply = Union[Message, Sequence[Message], None]


class RecordingDelegate(WebSocketDelegate):
    """Records every callback, and passes it on to the delegate under test, if there is one.

    An event is a tuple of the callback's name without ``on_`` and its arguments without the
    client: ``("message", "hello")``, ``("close", 1000, "")``. States are recorded by name, as
    ``("state", "CONNECTED")``. It is recorded once the delegate under test is done with it;
    what that raises comes as an ``("error", error)``. Any thread may ask.

    :param delegate: the delegate under test; it sees what it would see alone.
    """

    def __init__(self, delegate: Optional[object] = None) -> None:
        self._delegate = delegate
        self._overridden = frozenset() if delegate is None else overridden(delegate)
        self._changed = threading.Condition()
        # Both are the lock's of `_changed`.
        #: What happened, in order.
        self.events: List[Tuple[Any, ...]] = []
        #: The thread that each event came on.
        self.threads: List[threading.Thread] = []

    # What happened.

    def wait_for(
        self, name: str, *arguments: Any, count: int = 1, timeout: float = 10
    ) -> Tuple[Any, ...]:
        """Wait until `count` events of a name, that begin with `arguments`, have happened.

        Returns the last of these. Raises TimeoutError, telling what happened instead, after
        `timeout` seconds. Not in a callback.
        """
        wanted = (name, *arguments)
        deadline = time.monotonic() + timeout
        with self._changed:
            while True:
                found = [event for event in self.events if event[: len(wanted)] == wanted]
                if len(found) >= count:
                    return found[count - 1]
                left = deadline - time.monotonic()
                if left <= 0:
                    raise TimeoutError(f"{len(found)} of {count} {wanted} in {self.events}")
                self._changed.wait(left)

    def of(self, *names: str) -> List[Tuple[Any, ...]]:
        """Return the events of these names."""
        with self._changed:
            return [event for event in self.events if event[0] in names]

    def names(self) -> List[str]:
        """Return the names of all events."""
        with self._changed:
            return [event[0] for event in self.events]

    def states(self) -> List[str]:
        """Return the names of the states there were."""
        return [event[1] for event in self.of("state")]

    def messages(self) -> List[Message]:
        """Return the messages received."""
        return [event[1] for event in self.of("message")]

    def record(self, *event: Any) -> None:
        """Add an event, such as one of your own. Any thread."""
        with self._changed:
            self.events.append(event)
            self.threads.append(threading.current_thread())
            self._changed.notify_all()

    def clear(self) -> None:
        """Forget what was recorded so far."""
        with self._changed:
            self.events.clear()
            self.threads.clear()

    # The callbacks.

    def _happened(self, name: str, client: WebSocketClient, *arguments: Any) -> None:
        try:
            self._pass_on(f"on_{name}", client, *arguments)
        finally:
            self.record(name, *arguments)

    def _pass_on(self, callback: str, client: WebSocketClient, *arguments: Any) -> None:
        if callback in self._overridden:
            getattr(self._delegate, callback)(client, *arguments)

    def on_state_change(self, client: WebSocketClient, state: ConnectionState) -> None:
        try:
            self._pass_on("on_state_change", client, state)
        finally:
            self.record("state", state.name)

    def on_open(self, client: WebSocketClient) -> None:
        self._happened("open", client)

    def on_message(self, client: WebSocketClient, message: Message) -> None:
        self._happened("message", client, message)

    @property
    def on_fragment(self) -> Any:
        # Who has this callback gets no messages: only where the delegate under test has it.
        if "on_fragment" in self._overridden:
            return functools.partial(self._happened, "fragment")
        return super().on_fragment

    def on_error(self, client: WebSocketClient, error: BaseException) -> None:
        self._happened("error", client, error)

    def on_close(self, client: WebSocketClient, code: int, reason: str) -> None:
        self._happened("close", client, code, reason)

    def on_sent(self, client: WebSocketClient, message: Message) -> None:
        self._happened("sent", client, message)

    def on_unsent(self, client: WebSocketClient, message: Message, error: BaseException) -> None:
        self._happened("unsent", client, message, error)

    def on_ping(self, client: WebSocketClient, payload: bytes) -> None:
        self._happened("ping", client, payload)

    def on_pong(self, client: WebSocketClient, payload: bytes, latency: Optional[float]) -> None:
        self._happened("pong", client, payload, latency)

    def on_reconnect(
        self, client: WebSocketClient, attempt: int, delay: float, error: Optional[BaseException]
    ) -> None:
        self._happened("reconnect", client, attempt, delay, error)


def echo(message: Message) -> Reply:
    """Reply with the message itself."""
    return message


class LocalServer:
    """A real WebSocket server on 127.0.0.1, on threads of this process; a context manager.

    Any thread may call its methods and change its attributes. At the end it cuts what is open,
    and its threads and sockets are gone.

    :param reply: called with every message that comes, on a thread of that connection; what it
        returns is sent: a message, a list of messages, or None for nothing. Default: the
        message itself. Where it raises, the connection is closed with 1011.
    :param greeting: messages that every connection begins with.
    :param delay: seconds between a message and its reply; default 0.
    :param tls: serve ``wss``, with a certificate that `ssl_context` trusts; default False.
    :param subprotocols: the subprotocols it agrees to, best first.
    """

    def __init__(
        self,
        reply: Callable[[Message], Reply] = echo,
        *,
        greeting: Sequence[Message] = (),
        delay: float = 0,
        tls: bool = False,
        subprotocols: Sequence[str] = (),
    ) -> None:
        # These four may be changed at any time; connections look at them when they need them.
        self.reply = reply
        self.greeting = greeting
        self.delay = delay
        self.subprotocols = subprotocols
        #: What a client needs as its `ssl_context`; None without `tls`. Written once.
        self.ssl_context: Optional[ssl.SSLContext] = None
        self._server_context: Optional[ssl.SSLContext] = None
        if tls:
            self._make_contexts()
        self._changed = threading.Condition()
        # The rest is the lock's of `_changed`.
        self._server: Any = None
        self._listener: Optional[threading.Thread] = None
        self._stopped = threading.Event()  # of the server that runs
        self._served: Dict[threading.Thread, socket.socket] = {}  # by whom; some are over
        self._open: List[Any] = []  # connections after their handshake
        self._refusal: Optional[Tuple[int, Mapping[str, str]]] = None
        self._port = 0
        #: The messages that came, from all connections, in order.
        self.messages: List[Message] = []
        #: How many connections were opened.
        self.connections = 0

    def _make_contexts(self) -> None:
        import trustme  # noqa: PLC0415 - an extra

        authority = trustme.CA()
        self.ssl_context = ssl.create_default_context()
        authority.configure_trust(self.ssl_context)
        self._server_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("127.0.0.1", "localhost").configure_cert(self._server_context)

    @property
    def url(self) -> str:
        """Where it is: ``ws://127.0.0.1:PORT/``; the same after `stop` and `start`."""
        return f"{'ws' if self._server_context is None else 'wss'}://127.0.0.1:{self._port}/"

    # Coming and going.

    def __enter__(self) -> LocalServer:
        self.start()
        return self

    def __exit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Listen; after a `stop` on the same port as before. Raises RuntimeError if it does."""
        from websockets.sync.server import serve  # noqa: PLC0415 - an extra

        with self._changed:
            if self._server is not None:
                raise RuntimeError("the server runs already")
            server = serve(
                self._serve,
                "127.0.0.1",
                self._port,
                ssl=self._server_context,
                process_request=self._process_request,
                select_subprotocol=self._select_subprotocol,
                ping_interval=None,
                max_size=None,
                logger=logging.getLogger("wsthread.testing"),
            )
            server.handler = functools.partial(self._run, server.handler)
            self._server = server
            self._port = server.socket.getsockname()[1]
            self._stopped = threading.Event()
            self._listener = threading.Thread(
                target=server.serve_forever, name="local-server", daemon=True
            )
            self._listener.start()

    def stop(self) -> None:
        """Cut every connection and listen no more, as a server that is killed.

        Waits until all its threads are gone. May be called twice.
        """
        with self._changed:
            server, self._server = self._server, None
            listener = self._listener
            self._stopped.set()
        if server is None or listener is None:
            return
        self.drop()
        server.shutdown()
        listener.join()
        with self._changed:
            threads = list(self._served)
        for thread in threads:
            thread.join()

    def drop(self) -> None:
        """Cut every connection, without a close frame."""
        with self._changed:
            for sock in self._served.values():
                _cut(sock)

    def refuse(self, status: int = 503, headers: Optional[Mapping[str, str]] = None) -> None:
        """Answer every opening handshake from now on with an HTTP status, until `accept`."""
        with self._changed:
            self._refusal = status, dict(headers or {})

    def accept(self) -> None:
        """Accept connections again."""
        with self._changed:
            self._refusal = None

    # Talking.

    def send(self, *messages: Message) -> None:
        """Send messages to all clients. Raises RuntimeError where there is none."""
        for connection in self._connected():
            for message in messages:
                connection.send(message)

    def close(self, code: int = 1000, reason: str = "") -> None:
        """Close all connections in order. Raises RuntimeError where there is none."""
        for connection in self._connected():
            connection.close(code, reason)

    def _connected(self) -> List[Any]:
        with self._changed:
            if not self._open:
                raise RuntimeError("no client is connected")
            return list(self._open)

    def wait_for_connections(self, count: int = 1, timeout: float = 10) -> None:
        """Wait until `count` connections, in all, were opened; raises TimeoutError."""
        self._wait(lambda: self.connections >= count, f"{count} connections", timeout)

    def wait_for_messages(self, count: int = 1, timeout: float = 10) -> List[Message]:
        """Wait until `count` messages, in all, have come, and return these.

        Raises TimeoutError after `timeout` seconds.
        """
        self._wait(lambda: len(self.messages) >= count, f"{count} messages", timeout)
        return self.messages[:count]

    def _wait(self, done: Callable[[], bool], what: str, timeout: float) -> None:
        with self._changed:
            if not self._changed.wait_for(done, timeout):
                raise TimeoutError(f"no {what}: {self.connections} and {self.messages}")

    # The connections' threads.

    def _run(self, handler: Callable[..., None], sock: socket.socket, address: Any) -> None:
        """Serve one accepted socket, which `drop` and `stop` find from its first byte on."""
        with self._changed:
            for thread in [thread for thread in self._served if not thread.is_alive()]:
                del self._served[thread]
            self._served[threading.current_thread()] = sock
            if self._stopped.is_set():
                _cut(sock)
        handler(sock, address)

    def _process_request(self, connection: Any, request: Any) -> Any:
        with self._changed:
            refusal = self._refusal
        if refusal is None:
            return None
        status, headers = refusal
        response = connection.respond(http.HTTPStatus(status), "refused\n")
        for name, value in headers.items():
            response.headers[name] = value
        return response

    def _select_subprotocol(self, connection: Any, offered: Sequence[str]) -> Optional[str]:
        return next((name for name in self.subprotocols if name in offered), None)

    def _serve(self, connection: Any) -> None:
        from websockets.exceptions import ConnectionClosed  # noqa: PLC0415 - an extra

        with self._changed:
            stopped = self._stopped
            self._served[connection.recv_events_thread] = connection.socket
            self._open.append(connection)
            self.connections += 1
            self._changed.notify_all()
        try:
            for message in self.greeting:
                connection.send(message)
            for message in connection:
                with self._changed:
                    self.messages.append(message)
                    self._changed.notify_all()
                if self.delay:
                    stopped.wait(self.delay)
                for part in _parts(self.reply(message)):
                    connection.send(part)
        except ConnectionClosed:
            pass  # however it ended
        finally:
            with self._changed:
                self._open.remove(connection)


def _parts(reply: Reply) -> Sequence[Message]:
    if reply is None:
        return ()
    return (reply,) if isinstance(reply, (str, bytes)) else reply


def _cut(sock: socket.socket) -> None:
    try:
        # Not an SSLSocket's own, which does not bear that another thread reads.
        socket.socket.shutdown(sock, socket.SHUT_RDWR)
    except OSError:
        pass  # the other end was faster
