"""`WebSocketApp` of websocket-client, on a `WebSocketClient`: change the import, and go on.

``from wsthread import compat as websocket`` is all a program needs to change. Every other name
(the exceptions, ``ABNF``, ``enableTrace``, ``create_connection``...) is websocket-client's own.
What differs is in the documentation, under "Coming from websocket-client".
"""

from __future__ import annotations

import logging
import socket as socket_module
import threading
import time
from typing import Any, Callable, Mapping, Optional, Sequence, Tuple, Union

import websocket
from websocket import (
    ABNF,
    WebSocketConnectionClosedException,
    WebSocketException,
    WebSocketTimeoutException,
)

from .compat_options import Header, RunOptions, check_url, client_arguments
from .compat_socket import Event, Payload, Socket

__all__ = ["WebSocketApp", "set_reconnect"]

logger = logging.getLogger("websocket")

_reconnect = 0.0  # any thread's, by `set_reconnect`

Callback = Optional[Callable[..., Any]]


def __getattr__(name: str) -> Any:
    return getattr(websocket, name)


def set_reconnect(reconnectInterval: float) -> None:
    """Set the seconds between attempts for every `run_forever` that does not say; 0: none."""
    global _reconnect
    _reconnect = reconnectInterval


class WebSocketApp:
    """websocket-client's class of this name, with its callbacks, attributes and options.

    The callbacks run on the thread that calls `run_forever` (or, with a `dispatcher`, in its
    loop), and get the app first: ``on_open(app)``, ``on_reconnect(app)``,
    ``on_message(app, message)``, ``on_data(app, data, opcode, finished)``,
    ``on_cont_message(app, data, finished)``, ``on_error(app, error)``,
    ``on_close(app, code, reason)``, ``on_ping(app, payload)``, ``on_pong(app, payload)``.
    ``finished`` is a truth value. All are attributes, and may be replaced at any time.

    :param url: ``ws://`` or ``wss://``.
    :param header: lines ``"Name: value"``, a mapping, or a function that returns one of them,
        called before every attempt on the thread of `run_forever`.
    :param keep_running: ignored, as there.
    :param get_mask_key: ignored: masks are random (RFC 6455 5.3).
    :param cookie: the ``Cookie`` header field.
    :param subprotocols: the subprotocols offered.
    :param socket: a connected socket to use instead of making one; not an ``SSLSocket``.
    """

    def __init__(
        self,
        url: str,
        header: Union[Header, Callable[[], Header], None] = None,
        on_open: Callback = None,
        on_reconnect: Callback = None,
        on_message: Callback = None,
        on_error: Callback = None,
        on_close: Callback = None,
        on_ping: Callback = None,
        on_pong: Callback = None,
        on_cont_message: Callback = None,
        keep_running: bool = True,
        get_mask_key: Optional[Callable[[int], bytes]] = None,
        cookie: Optional[str] = None,
        subprotocols: Optional[Sequence[str]] = None,
        on_data: Callback = None,
        socket: Optional[socket_module.socket] = None,
    ) -> None:
        # The program's; read on the thread of run_forever.
        self.url = url
        self.header = [] if header is None else header
        self.cookie = cookie
        self.subprotocols = subprotocols
        self.prepared_socket = socket
        self.get_mask_key = get_mask_key
        self.on_open = on_open
        self.on_reconnect = on_reconnect
        self.on_message = on_message
        self.on_data = on_data
        self.on_error = on_error
        self.on_close = on_close
        self.on_ping = on_ping
        self.on_pong = on_pong
        self.on_cont_message = on_cont_message
        # Written on the thread of run_forever; `sock` by close() as well.
        #: The connection of a run, from its first attempt to its end; otherwise None.
        self.sock: Optional[Socket] = None
        #: Whether a run saw an error; a close frame of the peer is none.
        self.has_errored = False
        #: Whether the last run is over.
        self.has_done_teardown = False
        #: The peer's close frame of the last connection.
        self.last_close_frame: Optional[ABNF] = None
        self.ping_interval: float = 0
        self.ping_timeout: Optional[float] = None
        self.ping_payload: Payload = ""
        self.ping_thread: Optional[threading.Thread] = None
        self.stop_ping: Optional[threading.Event] = None
        #: When (``time.time()``) the last ping was sent; 0: none. The ping thread's.
        self.last_ping_tm = 0.0
        #: When the last pong was delivered; 0: none.
        self.last_pong_tm = 0.0
        self._stopped = threading.Event()  # any thread's
        self._stopped.set()

    @property
    def keep_running(self) -> bool:
        """Whether a run goes on. Setting it to False on any thread ends the run."""
        return not self._stopped.is_set()

    @keep_running.setter
    def keep_running(self, value: bool) -> None:
        sock = self.sock
        if value:
            self._stopped.clear()
        else:
            self._stopped.set()
            if sock is not None:
                sock.inbox.wake()

    def ready(self) -> bool:
        """Return whether there is an open connection."""
        sock = self.sock
        return sock is not None and sock.connected

    def send(self, data: Payload, opcode: int = ABNF.OPCODE_TEXT) -> None:
        """Send a message (or a control frame); any thread. Returns when the kernel has it.

        Raises WebSocketConnectionClosedException without an open connection, and
        WebSocketTimeoutException after ``setdefaulttimeout``'s time.
        """
        sock = self.sock
        if sock is None:
            raise WebSocketConnectionClosedException("there is no connection")
        sock.send(data, opcode)

    def send_text(self, text_data: str) -> None:
        """Send a text message; see `send`."""
        self.send(text_data, ABNF.OPCODE_TEXT)

    def send_bytes(self, data: Payload) -> None:
        """Send a binary message; see `send`."""
        self.send(data, ABNF.OPCODE_BINARY)

    def close(self, **kwargs: Any) -> None:
        """End the run: close the connection; any thread, any callback.

        `status` (1000), `reason` and `timeout` (3 seconds for the peer's answer, None: for
        ever) may be given by keyword. ``on_close`` is called on the thread of `run_forever`.
        """
        self.keep_running = False
        sock = self.sock
        if sock is not None:
            sock.close(**kwargs)
            self.last_close_frame = sock.close_frame or self.last_close_frame
            if self.sock is sock:
                self.sock = None

    def run_forever(
        self,
        sockopt: Optional[Sequence[Tuple[Any, ...]]] = None,
        sslopt: Optional[Mapping[str, Any]] = None,
        ping_interval: float = 0,
        ping_timeout: Optional[float] = None,
        ping_payload: Payload = "",
        http_proxy_host: Optional[str] = None,
        http_proxy_port: Union[int, str, None] = None,
        http_no_proxy: Optional[Sequence[str]] = None,
        http_proxy_auth: Optional[Tuple[str, ...]] = None,
        http_proxy_timeout: Optional[float] = None,
        skip_utf8_validation: bool = False,
        host: Optional[str] = None,
        origin: Optional[str] = None,
        dispatcher: Any = None,
        suppress_origin: bool = False,
        suppress_host: bool = False,
        proxy_type: Optional[str] = None,
        reconnect: Optional[float] = None,
    ) -> bool:
        """Connect, and run the callbacks here until it is over; return `has_errored`.

        :param sockopt: argument tuples for ``socket.setsockopt``.
        :param sslopt: ``context``, or ``cert_reqs``, ``check_hostname``, ``ca_certs``,
            ``ca_cert_path``, ``certfile``, ``keyfile``, ``password``, ``cert_chain``, ``ciphers``,
            ``ecdh_curve``, ``ssl_version``; and ``server_hostname``.
        :param ping_interval: seconds between pings; 0: none.
        :param ping_timeout: seconds to wait for a pong; None: for ever.
        :param ping_payload: what a ping carries.
        :param http_proxy_host: with port, auth (user, password) and `proxy_type` (``http``,
            ``socks4``, ``socks4a``, ``socks5``, ``socks5h``) the proxy; default: what the
            environment names. `http_proxy_timeout` bounds the whole opening.
        :param http_no_proxy: hosts that are reached without a proxy.
        :param skip_utf8_validation: text comes as bytes. It is validated all the same.
        :param host: the ``Host`` header field.
        :param origin: the ``Origin`` header field; default: the URL's, unless `suppress_origin`.
        :param dispatcher: an event loop with ``read``, ``timeout`` and ``signal`` as module
            ``rel`` has them. The callbacks run there, and `run_forever` returns once open.
        :param suppress_host: not supported (RFC 6455 4.1 demands the field).
        :param reconnect: seconds between attempts after any end but `close`; 0: no more
            attempts.

        Ctrl-C ends the run and comes to ``on_error``. Raises WebSocketException for options
        that cannot be meant and where a run is under way, ValueError for a wrong URL.
        """
        if ping_timeout is not None and ping_timeout <= 0:
            raise WebSocketException("ping_timeout is more than 0")
        if ping_interval is not None and ping_interval < 0:
            raise WebSocketException("ping_interval is not negative")
        if ping_timeout and ping_interval and ping_interval <= ping_timeout:
            raise WebSocketException("ping_interval is more than ping_timeout")
        if suppress_host:
            raise WebSocketException("suppress_host is not supported")
        if self.sock is not None:
            raise WebSocketException("run_forever is running already")
        self.ping_interval = ping_interval
        self.ping_timeout = ping_timeout
        self.ping_payload = ping_payload
        options = RunOptions(
            sockopt=sockopt or (),
            sslopt=sslopt,
            http_proxy_host=http_proxy_host,
            http_proxy_port=http_proxy_port,
            http_no_proxy=http_no_proxy,
            http_proxy_auth=http_proxy_auth,
            http_proxy_timeout=http_proxy_timeout,
            host=host,
            origin=origin,
            suppress_origin=suppress_origin,
            proxy_type=proxy_type,
        )
        check_url(self.url)
        self.has_done_teardown = self.has_errored = False
        self.keep_running = True
        delay = _reconnect if reconnect is None else reconnect
        return _Run(self, options, delay, skip_utf8_validation, dispatcher).run()


class _Run:
    """One call of `run_forever`. All of it is on that thread, or in the dispatcher's loop."""

    def __init__(
        self,
        app: WebSocketApp,
        options: RunOptions,
        reconnect: float,
        text_as_bytes: bool,
        dispatcher: Any,
    ) -> None:
        self._app = app
        self._options = options
        self._reconnect = reconnect
        self._text_as_bytes = text_as_bytes
        self._dispatcher = dispatcher
        self._sock: Optional[Socket] = None  # the newest connection
        self._again = False  # whether it is not the first
        self._torn_down = False
        self._pings: Optional[threading.Thread] = None  # the newest connection's

    def run(self) -> bool:
        app = self._app
        if self._dispatcher is not None:
            self._dispatcher.signal(2, self._dispatcher.abort)
        try:
            self._attempt()
            while self._dispatcher is None and self._reconnect and app.keep_running:
                if not app._stopped.wait(self._reconnect):
                    self._again = True
                    self._attempt()
        except (KeyboardInterrupt, Exception) as error:
            logger.info("the run ends: %s", repr(error))
            self._tear_down()
        finally:
            if self._dispatcher is None:
                self._tear_down()
        return app.has_errored

    def _attempt(self) -> None:
        """Open a connection and serve it, to its end or until the dispatcher does."""
        app = self._app
        try:
            if self._sock is not None:
                self._sock.abort()
            app.last_close_frame = None
            self._sock = app.sock = sock = Socket(app.on_cont_message is not None)
            self._open(sock)
            if not app.keep_running:
                return
            if self._again and app.on_reconnect is not None:
                self._call(app.on_reconnect)
            else:
                self._call(app.on_open)
            if self._dispatcher is not None:
                self._dispatcher.read(sock.inbox, self._readable)
                sock.inbox.wake()  # what came during the opening is filed already
                return
            while app.keep_running:
                event = sock.inbox.take()
                if event is None:
                    self._ended(sock)
                    return
                self._deliver(sock, event)
        except BaseException as error:
            self._lost(error, quiet=self._again)

    def _open(self, sock: Socket) -> None:
        app = self._app
        header = app.header() if callable(app.header) else app.header
        arguments = client_arguments(
            app.url, self._options, header, app.cookie, app.subprotocols, app.prepared_socket
        )
        sock.prepare(arguments.pop("url"), arguments)
        if app._stopped.is_set():
            return
        try:
            sock.connect()
        except Exception:
            if not app._stopped.is_set():
                raise
            return  # close() meanwhile
        logger.info("connected")
        if app.ping_interval:
            self._start_pings(sock)

    # With a dispatcher.

    def _readable(self) -> bool:
        """Called by the dispatcher; return whether it is to go on."""
        app, sock = self._app, self._sock
        assert sock is not None
        try:
            sock.inbox.run_pending()
            while app.keep_running:
                event = sock.inbox.take_filed()
                if event is not None:
                    self._deliver(sock, event)
                elif sock.inbox.over:
                    self._ended(sock)
                    return False
                else:
                    return True
        except BaseException as error:
            self._lost(error, quiet=self._again)
            return False
        self._tear_down()
        return False

    def _retry(self) -> None:
        if self._app.keep_running:
            self._again = True
            self._attempt()
        else:
            self._tear_down()

    # What happens.

    def _deliver(self, sock: Socket, event: Event) -> None:
        app = self._app
        name, *arguments = event
        if name == "message":
            (data,) = arguments
            opcode = ABNF.OPCODE_TEXT if isinstance(data, str) else ABNF.OPCODE_BINARY
            if self._text_as_bytes and isinstance(data, str):
                data = data.encode()
            self._call(app.on_data, data, opcode, True)
            self._call(app.on_message, data)
        elif name == "cont":
            data, final = arguments
            self._call(app.on_data, data, ABNF.OPCODE_CONT, final)
            self._call(app.on_cont_message, data, final)
        elif name == "ping":
            self._call(app.on_ping, *arguments)
        elif name == "pong":
            app.last_pong_tm = time.time()
            self._call(app.on_pong, sock.pong_payload(*arguments))

    def _call(self, callback: Callback, *arguments: Any) -> None:
        """Run a callback; what it raises goes to ``on_error``, and what that raises ends it."""
        app = self._app
        if callback is None:
            return
        try:
            callback(app, *arguments)
        except Exception as error:
            # As text: a log that keeps its records would keep the error, and so the app.
            logger.error("callback %s raised %s", repr(callback), repr(error))
            if app.on_error is not None and callback is not app.on_error:
                app.on_error(app, error)

    def _ended(self, sock: Socket) -> None:
        """The connection is over."""
        if not self._app.keep_running:
            return
        closed = sock.closed_with is not None and sock.failure is None
        comes_back = bool(self._reconnect) and (closed or self._dispatcher is not None)
        quiet = self._again or comes_back
        self._lost(sock.why(), quiet, closed)

    def _lost(self, error: BaseException, quiet: bool, closed: bool = False) -> None:
        """An attempt or a connection ended; `closed`: by a close frame of the peer."""
        app = self._app
        self._stop_pings()
        if not closed:
            app.has_errored = True
        if not quiet:
            self._call(app.on_error, error)
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            self._tear_down()
            try:
                raise error
            finally:
                del error
        if not self._reconnect:
            logger.info("over: %s", repr(error))
            self._tear_down()
        elif self._dispatcher is not None:
            self._dispatcher.timeout(self._reconnect, self._retry)

    def _tear_down(self) -> None:
        """The run is over: let go of everything, then say so, once."""
        app = self._app
        if self._torn_down:
            return
        self._torn_down = app.has_done_teardown = True
        self._stop_pings()
        app.keep_running = False
        closed: Optional[Tuple[Optional[int], Optional[str]]] = None
        sock, self._sock, app.sock = self._sock, None, None
        if sock is not None:
            sock.close()
            closed = sock.closed_with
            app.last_close_frame = sock.close_frame
        if self._pings is not None and self._pings is not threading.current_thread():
            self._pings.join(3)
        del sock
        self._call(app.on_close, *(closed or (None, None)))

    # Pings.

    def _start_pings(self, sock: Socket) -> None:
        app = self._app
        app.last_ping_tm = app.last_pong_tm = 0.0
        app.stop_ping = threading.Event()
        app.ping_thread = self._pings = threading.Thread(
            target=_ping, args=(app, sock, app.stop_ping), name="wsthread-ping", daemon=True
        )
        app.ping_thread.start()

    def _stop_pings(self) -> None:
        app = self._app
        if app.stop_ping is not None:
            app.stop_ping.set()
        app.ping_thread = app.stop_ping = None
        app.last_ping_tm = app.last_pong_tm = 0.0


def _ping(app: WebSocketApp, sock: Socket, stop: threading.Event) -> None:
    """The ping thread of one connection."""
    due = time.monotonic() + app.ping_interval
    while not stop.wait(max(0.0, due - time.monotonic())):
        due = time.monotonic() + app.ping_interval
        app.last_ping_tm = time.time()
        if not sock.answers(app.ping_payload, app.ping_timeout):
            sock.fail(WebSocketTimeoutException("ping/pong timed out"))
            return
