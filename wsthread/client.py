"""WebSocketClient: the user's handle, nothing but the handle."""

from __future__ import annotations

import functools
import os
import socket as socket_module
import ssl
import threading
import time
import traceback
import warnings
import weakref
from typing import (
    TYPE_CHECKING,
    Any,
    Callable,
    Dict,
    FrozenSet,
    Iterable,
    List,
    Mapping,
    Optional,
    Sequence,
    Tuple,
    Type,
    Union,
)

from ._version import __version__
from .deflate import Deflate, make_offers, negotiate
from .delegate import Message, overridden, warn_of_typos
from .dispatch import Dispatcher, OwnThreadDispatcher
from .errors import ConnectError, ConnectTimeout, NotConnected, WebSocketError, detached, raisable
from .frames import OP_BINARY, OP_TEXT, check_close, use_speedups
from .known import Known, Settings, check_seconds
from .limits import QueueLimit
from .mailbox import Life, Mailbox, in_callback
from .outbox import Entry, Outbox, Ping
from .reconnect import Reconnect
from .session import Session, exiting
from .source import Source, hold_weakly
from .state import ConnectionState
from .stats import ClientStats
from .waits import wait_event

if TYPE_CHECKING:
    from .opening import OpenOptions

_OMITTED: Any = type("_Omitted", (), {"__repr__": lambda self: "<constructor's>"})()
#: What callbacks that are due get in any case, however little of the timeout is left.
_CALLBACK_GRACE = 0.15
#: A reader acts on its deadline within this; only a callback that blocks it inline takes longer.
_READER_GRACE = 0.2

_RECONNECT = Reconnect()

HeadersLike = Union[Mapping[str, str], Iterable[Tuple[str, str]]]
Timeout = Optional[float]


#: All clients, for the hook of fork. Additions and removals are single dict operations.
clients: Dict[int, weakref.ref[WebSocketClient]] = {}


class _Reference(weakref.ref["WebSocketClient"]):
    """A weak reference with its key in `clients`."""

    __slots__ = ("key",)
    key: int


def _forget(reference: _Reference) -> None:
    clients.pop(reference.key, None)


@functools.cache
def _load() -> Type[OpenOptions]:
    """Load what opens connections, with the first client.

    Importing the package would take twice as long, and a reader's thread is no place to import in.
    """
    from .opening import OpenOptions  # noqa: PLC0415

    use_speedups()
    return OpenOptions


class WebSocketClient:
    """A WebSocket connection that a thread of its own reads, and that comes back when lost.

    Nothing happens before `connect`. Every method may be called on any thread and in any
    callback, except where it says otherwise. Times are seconds; where a `timeout` is omitted it
    is the constructor's, None is for ever.

    :param url: ``ws://`` or ``wss://`` (``http``, ``https`` mean the same), or a function that
        returns one, called before every attempt.
    :param delegate: receives the callbacks; see `WebSocketDelegate`. It need not inherit.
    :param weak_delegate: hold the delegate, and methods of it given as `url` or `headers`, by
        weak references.
    :param dispatcher: where callbacks run; default: on a thread of this client's own.
    :param headers: further header fields of the request, a mapping or pairs, or a function
        that returns them, called before every attempt.
    :param subprotocols: the subprotocols offered, best first (RFC 6455 1.9).
    :param origin: the ``Origin`` header field; default: none.
    :param host: the ``Host`` header field; default: the URL's.
    :param user_agent: the ``User-Agent`` header field; None: none.
    :param ssl_context: for ``wss``; default: ``ssl.create_default_context()``, which verifies
        certificate and host name.
    :param proxy: True: what the environment names (``wss_proxy``, ``https_proxy``, ``ws_proxy``,
        ``http_proxy``, ``socks_proxy``, ``all_proxy``, ``no_proxy``, or the system's settings);
        None or False: none; or a URL: ``http``, ``https``, ``socks4``, ``socks4a``, ``socks5`` or
        ``socks5h`` (the ``a`` and ``h`` leave names to the proxy), with user and password. SOCKS
        takes the extra ``proxy``.
    :param proxy_ssl_context: for an ``https`` proxy; default: ``ssl.create_default_context()``.
    :param socket: a connected socket to use instead of making one, once.
    :param local_address: ``(host, port)`` to connect from.
    :param sockopt: argument tuples for ``socket.setsockopt``.
    :param max_redirects: how many redirects are followed; never from TLS to plain. To another
        origin none of the headers, no user-info and no client certificate goes along.
    :param compression: what to offer (RFC 7692): ``"deflate"`` (as ``Deflate()``), a `Deflate`,
        several in order, or None.
    :param connect_timeout: bounds the whole opening, from resolving to the upgrade.
    :param close_timeout: bounds `disconnect`: what waits, close handshake and callbacks.
    :param send_timeout: how long `send` waits for room.
    :param ping_interval: how often to ping; None: never.
    :param ping_timeout: how long a silent peer is waited for after a ping; None: for ever.
    :param open_grace: how long the send queue waits for ``on_open`` to return.
    :param reconnect: True (as ``Reconnect()``), False, or a `Reconnect`.
    :param max_message_size: the largest message received, in bytes; None: no limit.
    :param send_queue: the bounds of what waits to be sent.
    :param receive_queue: the bounds of what waits for callbacks, and what to do at them.

    Raises TypeError or ValueError for arguments that cannot be right.
    """

    # The lock's, and read without it. Here, because __del__ looks at it also where __init__
    # was not even entered.
    _session: Optional[Session] = None

    def __init__(
        self,
        url: Union[str, Callable[[], str]],
        delegate: Optional[object] = None,
        *,
        weak_delegate: bool = False,
        dispatcher: Optional[Dispatcher] = None,
        headers: Union[HeadersLike, Callable[[], HeadersLike], None] = None,
        subprotocols: Sequence[str] = (),
        origin: Optional[str] = None,
        host: Optional[str] = None,
        user_agent: Optional[str] = f"wsthread/{__version__}",
        ssl_context: Optional[ssl.SSLContext] = None,
        proxy: Union[bool, str, None] = True,
        proxy_ssl_context: Optional[ssl.SSLContext] = None,
        socket: Optional[socket_module.socket] = None,
        local_address: Optional[Tuple[str, int]] = None,
        sockopt: Sequence[Tuple[Any, ...]] = (),
        max_redirects: int = 3,
        compression: Union[str, Deflate, Sequence[Deflate], None] = "deflate",
        connect_timeout: Timeout = 10,
        close_timeout: Timeout = 5,
        send_timeout: Timeout = 30,
        ping_interval: Timeout = 20,
        ping_timeout: Timeout = 20,
        open_grace: float = 5,
        reconnect: Union[bool, Reconnect] = True,
        max_message_size: Optional[int] = 16 * 1024 * 1024,
        send_queue: QueueLimit = QueueLimit(),  # noqa: B008 - immutable
        receive_queue: QueueLimit = QueueLimit(),  # noqa: B008
    ) -> None:
        self._session = None
        if not isinstance(url, str) and not callable(url):
            raise TypeError(f"url is a str or callable, not {type(url).__name__}")
        options_of = _load()
        if isinstance(reconnect, bool):
            reconnect_policy = _RECONNECT if reconnect else None
        elif isinstance(reconnect, Reconnect):
            reconnect_policy = reconnect
        else:
            raise TypeError(f"reconnect is a bool or Reconnect, not {type(reconnect).__name__}")
        if dispatcher is not None and not isinstance(dispatcher, Dispatcher):
            raise TypeError(f"dispatcher is a Dispatcher, not {type(dispatcher).__name__}")
        #: How lost connections come back; the session asks for it.
        self.reconnect: Optional[Reconnect] = reconnect_policy
        self._settings = Settings(
            max_message_size=max_message_size,
            connect_timeout=connect_timeout,
            close_timeout=close_timeout,
            send_timeout=send_timeout,
            ping_interval=ping_interval,
            ping_timeout=ping_timeout,
            open_grace=open_grace,
            send_queue=send_queue,
            receive_queue=receive_queue,
        )
        owner = delegate if weak_delegate else None
        headers = hold_weakly(headers, owner)
        offers = make_offers(compression)
        #: What the next attempt opens with; the session asks for it.
        self.source = Source(
            url=hold_weakly(url, owner),
            headers=headers,
            options=options_of(
                headers=None if callable(headers) else headers,
                subprotocols=subprotocols,
                origin=origin,
                host=host,
                user_agent=user_agent,
                ssl_context=ssl_context,
                proxy=None if proxy is False else proxy,
                proxy_ssl_context=proxy_ssl_context,
                socket=socket,
                local_address=local_address,
                sockopt=sockopt,
                max_redirects=max_redirects,
                offer=", ".join(offer.offer() for offer in offers) or None,
                accept=functools.partial(negotiate, offers) if offers else None,
            ),
        )
        self._known = Known()
        # What is sent before the first life; the first session takes it over. The lock's.
        self._outbox: Optional[Outbox] = Outbox(send_queue, self._known.stats)
        #: The names of the callbacks the delegate has; the session asks for it.
        self.overridden: FrozenSet[str] = frozenset()
        #: Held strongly, or weakly. Replaced as a whole: whoever looks finds one or the other.
        self._delegate: Tuple[Optional[object], Optional[weakref.ref[object]]] = (None, None)
        reference = _Reference(self, _forget)
        reference.key = id(self)
        #: This client's events; the session puts them in.
        self.mailbox = Mailbox(
            reference, dispatcher or OwnThreadDispatcher(), receive_queue, self._known.stats
        )
        self._lock = threading.RLock()  # a life that fails to start ends within connect()
        # The lock's; like `_session` read without it where no lock may be taken.
        self._life: Optional[Life] = None
        self._set_delegate(delegate, weak_delegate, stacklevel=2)
        clients[reference.key] = reference

    # What is known. Any thread.

    @property
    def state(self) -> ConnectionState:
        """What the client is doing."""
        return self._known.state

    @property
    def error(self) -> Optional[BaseException]:
        """What ended the last connection or attempt; None where it ended in order."""
        return self._known.error

    @property
    def close_code(self) -> Optional[int]:
        """The close code of the last connection (RFC 6455 7.1.5), None before its end."""
        return self._known.close_code

    @property
    def close_reason(self) -> Optional[str]:
        """The close reason of the last connection (RFC 6455 7.1.6), None before its end."""
        return self._known.close_reason

    @property
    def stats(self) -> ClientStats:
        """A snapshot of the client's counts, and of what is known now. Cheap; takes no lock."""
        known, mailbox, outbox = self._known, self.mailbox, self._current_outbox()
        opened_at = known.opened_at
        return known.stats.snapshot(
            send_queue_messages=0 if outbox is None else outbox.pending,
            send_queue_bytes=0 if outbox is None else outbox.bytes,
            receive_queue_messages=mailbox.messages,
            receive_queue_bytes=mailbox.bytes,
            uptime=None if opened_at is None else time.monotonic() - opened_at,
            latency=known.latency,
        )

    @property
    def pending(self) -> int:
        """How many accepted messages are not yet with the kernel."""
        outbox = self._current_outbox()
        return 0 if outbox is None else outbox.pending

    def _current_outbox(self) -> Optional[Outbox]:
        session, outbox = self._session, self._outbox
        return outbox if session is None else session.outbox

    @property
    def latency(self) -> Optional[float]:
        """The newest ping's round trip in seconds; None where there was none yet."""
        return self._known.latency

    @property
    def subprotocol(self) -> Optional[str]:
        """The subprotocol the server chose, or None."""
        return self._known.subprotocol

    @property
    def extensions(self) -> Tuple[str, ...]:
        """The extensions agreed on, each as it stands in the header field."""
        return self._known.extensions

    @property
    def response_headers(self) -> Tuple[Tuple[str, str], ...]:
        """The header fields of the server's answer to the upgrade, in order."""
        return self._known.response_headers

    @property
    def delegate(self) -> Optional[object]:
        """The delegate; None where there is none or a weak one is gone."""
        held, weak = self._delegate
        return held if weak is None else weak()

    def set_delegate(self, delegate: Optional[object], weak: bool = False) -> None:
        """Give the client another delegate; the next callback goes to it.

        Between ``on_message`` and ``on_fragment`` the next connection decides anew.
        """
        self._set_delegate(delegate, weak, stacklevel=2)

    def _set_delegate(self, delegate: Optional[object], weak: bool, stacklevel: int) -> None:
        names = overridden(delegate)
        if delegate is not None:
            warn_of_typos(delegate, stacklevel + 1)
        by_reference = weak and delegate is not None
        with self._lock:
            self._delegate = (None, weakref.ref(delegate)) if by_reference else (delegate, None)
            self.overridden = names
            if self._session is not None:
                self._session.overridden = names
        self.mailbox.changed = True

    # Life.

    def connect(self, timeout: Timeout = _OMITTED, wait: bool = True) -> None:
        """Open the connection and wait until it is open; return at once where it is.

        Makes one attempt (unless ``Reconnect(first=True)``: then `timeout` bounds all) and
        raises its ConnectError; the life is then over and its thread gone. It returns at the
        upgrade, not after ``on_open``. With ``wait=False`` it returns at once, and a failure
        comes to ``on_error``.

        Raises RuntimeError in a callback on the reader's own thread where it would wait for
        itself, ReferenceError when a weak delegate is gone.
        """
        given = timeout is not _OMITTED
        timeout = check_seconds("timeout", timeout) if given else self._settings.connect_timeout
        deadline = None if timeout is None else time.monotonic() + timeout
        if not given and self.reconnect is not None and self.reconnect.first:
            deadline = None
        weak = self._delegate[1]
        if weak is not None and weak() is None:
            raise ReferenceError("the weakly held delegate is gone")
        try:
            failure = self._connect(timeout, given, wait, deadline)
        except Exception:
            raise
        except BaseException:  # Ctrl-C, at whatever point
            self._give_up_connecting()
            raise
        if failure is not None:
            _rest_at_exit()
            try:
                raise raisable(failure)
            finally:
                del failure

    def _connect(
        self, timeout: Timeout, given: bool, wait: bool, deadline: Timeout
    ) -> Optional[WebSocketError]:
        while True:
            session, started = self._join_or_start(timeout, given, wait)
            if session is None:
                return None
            if started or not wait or not session.closing:
                break
            session = None
            self._wait_for_end(deadline)
        try:
            return self._wait_open(session, started, deadline) if wait else None
        finally:
            del session

    def _give_up_connecting(self) -> None:
        """connect() was interrupted: abort what it has begun, and leave alone what others have."""
        with self._lock:
            session = self._session
            if session is None or session.begun_by != threading.get_ident():
                return
            if session.thread.ident is None:  # it was not even started
                self._session = self._life = None
            elif not session.ever_open:
                session.request_abort()

    def _join_or_start(
        self, timeout: Timeout, given: bool, wait: bool
    ) -> Tuple[Optional[Session], bool]:
        """Return the session to wait for (None: it is open) and whether it was just begun."""
        with self._lock:
            session = self._session
            if session is not None:
                if session.closing and not wait:
                    raise NotConnected("the client is closing; connect() again when it is over")
                if not session.closing and self._known.state is ConnectionState.CONNECTED:
                    return None, False
                if wait and session.thread is threading.current_thread():
                    raise RuntimeError("connect() in a callback would wait for its own thread")
                return session, False
            outbox = self._outbox or Outbox(self._settings.send_queue, self._known.stats)
            try:
                session = Session(self, self._settings, self._known, outbox)
            except OSError as error:  # no descriptors left
                text = f"no connection can be begun: {error.strerror or error}"
                raise ConnectError(text) from detached(error)
            if given:
                session.connect_timeout = timeout
            if given and self.reconnect is not None and self.reconnect.first:
                session.give_up_at = None if timeout is None else time.monotonic() + timeout
            session.awaited = wait
            self._known.error = None
            self._session = session
            self._outbox = None  # after the session: who sends meanwhile finds one of them
            self._life = session.life  # after the session, see _asked
            try:
                session.start()
            except BaseException as error:
                session = None  # ended already, or about to end
                traceback.clear_frames(error.__traceback__)
                raise
            return session, True

    def _wait_open(
        self, session: Session, started: bool, deadline: Timeout
    ) -> Optional[WebSocketError]:
        try:
            if started:
                wait_event(session.settled, None)  # the session keeps the time itself
            else:
                left = None if deadline is None else max(0.0, deadline - time.monotonic())
                if not wait_event(session.settled, left):
                    return ConnectTimeout("the connection was not open in time")
            failure = session.failure
            if failure is None or (started and session.ever_open):
                return None
        except BaseException:
            if started:
                session.request_abort()
            raise
        finally:
            life = session.life
            del session
        if started:
            self._finish(life, None if deadline is None else time.monotonic() + 1)
        return failure

    def _wait_for_end(self, deadline: Timeout) -> None:
        if in_callback() and self.mailbox.runs_here():
            raise RuntimeError("connect() in a callback would wait for its own thread")
        if not self.wait(None if deadline is None else max(0.0, deadline - time.monotonic())):
            raise ConnectTimeout("the connection before did not end in time")

    def session_ended(self, session: Session) -> None:
        """The session is over: let go of it. Called by its reader.

        Its last events are appended under the lock, so that a connect() finds either the life
        or its end, and the next life's events come behind.
        """
        with self._lock:
            needed = self.mailbox.append(session.last_items())
            if self._session is session:
                self._session = None
        if needed:
            self.mailbox.schedule()

    def forked(self) -> None:
        """In a forked child: there is no life. Called by the hook; takes no lock."""
        self._lock = threading.RLock()
        self._session = self._life = None
        if self._outbox is not None:  # what is in there is the parent's to send
            self._outbox = Outbox(self._settings.send_queue, self._known.stats)
        self.mailbox.forked()

    def disconnect(
        self, code: int = 1000, reason: str = "", timeout: Timeout = _OMITTED, wait: bool = True
    ) -> bool:
        """Close: what was accepted goes out, then the close handshake (RFC 6455 7.1.2).

        No on_message, on_ping or on_pong starts from now on. Returns when thread and socket are
        gone: as fast as the peer answers, at most `timeout` (default: `close_timeout`). Then waits
        for the callbacks that are due, in what is left of the time. True: the last one has run.
        False: they were dropped; only one that had begun may still end.

        In a callback it waits for the reader, never for callbacks, and drops none; on the
        reader's own thread (InlineDispatcher) it waits for nothing. With ``wait=False`` it only
        asks, takes no lock, and may be called by a signal handler.

        Raises ValueError for a code or reason that must not be sent (7.4), TypeError for a
        wrong type. Does nothing where there is no connection.
        """
        payload = check_close(code, reason)
        timeout = (
            self._settings.close_timeout
            if timeout is _OMITTED
            else check_seconds("timeout", timeout)
        )
        deadline = None if timeout is None else time.monotonic() + timeout
        life, session = self._asked()
        if life is None:
            return True
        life.silenced = True
        self.mailbox.changed = True
        if session is not None:
            session.request_close(payload, timeout)
        del session
        if not wait:
            return life.over.is_set() and not life.sealed
        return self._finish(life, deadline)

    def abort(self) -> None:
        """End the connection at once: nothing more is sent, no handshake; the peer sees a reset.

        Waits for the thread and for the callbacks that are due, as `disconnect` does.
        """
        life, session = self._asked()
        if life is None:
            return
        life.silenced = True
        self.mailbox.changed = True
        if session is not None:
            session.request_abort()
        del session
        timeout = self._settings.close_timeout
        self._finish(life, None if timeout is None else time.monotonic() + timeout)

    def _asked(self) -> Tuple[Optional[Life], Optional[Session]]:
        """Return the life to end, and its session if it still runs. Takes no lock.

        The life is read first: what is found second is its session, or none, or a later life's.
        """
        life, session = self._life, self._session
        return (life, None) if session is None else (session.life, session)

    def _finish(self, life: Life, deadline: Timeout) -> bool:
        """Wait for the reader, then for the callbacks; True when all have run."""
        with self._lock:
            pass  # a connect() that begins this life has started the thread
        if life.thread is not threading.current_thread() and life.thread.ident is not None:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            life.thread.join(None if left is None else left + _READER_GRACE)
        if in_callback():
            return life.over.is_set() and not life.sealed
        if deadline is not None:
            deadline = max(deadline, time.monotonic() + _CALLBACK_GRACE)
        over = life.over.is_set() or self.mailbox.wait_over(life, deadline)
        if not over:
            self.mailbox.seal(life)
        self.mailbox.dispatcher.join(_CALLBACK_GRACE if over else 0)
        return over and not life.sealed

    def wait(self, timeout: Timeout = None) -> bool:
        """Wait until the life is over, its last callback included; return whether it is.

        `timeout` is in seconds, by default for ever; Ctrl-C ends the wait. On the thread that
        pumps the dispatcher the callbacks run here. Raises RuntimeError in a callback of this
        client.
        """
        timeout = check_seconds("timeout", timeout)
        if self.mailbox.runs_here():
            raise RuntimeError("wait() in a callback would wait for its own thread")
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._lock:
            life = self._life
        if life is None:
            return True
        if not self.mailbox.wait_over(life, deadline):
            return False
        if life.thread.ident is not None:
            life.thread.join()
        self.mailbox.dispatcher.join(None)
        return True

    def __enter__(self) -> WebSocketClient:
        self.connect()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.disconnect()

    def __del__(self) -> None:
        # Runs anywhere, also inside the collector: takes no lock.
        session = self._session
        if session is not None and not session.ending():
            session.request_drop()
            text = f"{self!r} was dropped while open"
            warnings.warn(text, ResourceWarning, stacklevel=2, source=self)

    def __repr__(self) -> str:
        state = self._known.state.name if hasattr(self, "_known") else "?"
        return f"<{type(self).__name__} {state} at {id(self):#x}>"

    # Sending.

    def send(self, message: Message, timeout: Timeout = _OMITTED) -> None:
        """Send a message: str as text, bytes-like as binary. Mutable buffers are copied.

        Accepted while there is no connection yet, or between two: it goes out once open.
        Returns when it is accepted; every accepted message ends in ``on_sent`` or
        ``on_unsent``. A full queue makes it wait for room for `timeout` (default:
        `send_timeout`) while connected; where it must not wait (in a callback, or without a
        connection) it raises QueueFull. A message larger than the queue's bytes is accepted
        alone and waited for.

        Raises SendTimeout (a message already begun then fails the connection), QueueFull,
        NotConnected (while closing and after the end), TypeError, and UnicodeEncodeError for
        text with lone surrogates.
        """
        if timeout is not _OMITTED:
            timeout = check_seconds("timeout", timeout)
        if type(message) is str:  # what most send; a subclass may have an encode() of its own
            opcode, payload = OP_TEXT, message.encode()
        else:
            opcode, payload, message = _encoded(message)
        session = self._session
        try:
            if session is not None and session.send_now(opcode, payload, message):
                return
        except BaseException as error:
            # Its traceback may be kept; the frames below must not keep the session.
            traceback.clear_frames(error.__traceback__)
            raise
        finally:
            del session
        self._send([Entry(opcode, payload, message)], timeout)

    def send_many(self, messages: Iterable[Message], timeout: Timeout = _OMITTED) -> None:
        """Send messages in order, accepted as a whole or not at all; otherwise like `send`."""
        if isinstance(messages, (str, bytes, bytearray, memoryview)):
            raise TypeError("send_many() takes an iterable of messages, not one message")
        entries = [Entry(*_encoded(message)) for message in messages]
        if entries:
            self._send(entries, timeout)

    def _send(self, entries: List[Entry], timeout: Timeout) -> None:
        timeout = (
            self._settings.send_timeout
            if timeout is _OMITTED
            else check_seconds("timeout", timeout)
        )
        deadline = None if timeout is None else time.monotonic() + timeout
        try:
            before = self._outbox
            if before is not None:
                before.admit(entries, first=False, may_wait=False, deadline=None)
                if self._session is not None:  # connect() came in between
                    self._session.pump()
            else:
                self._current().send(
                    entries, self.mailbox.opens_here(), not in_callback(), deadline
                )
        except BaseException as error:
            # Its traceback may be kept; the frames below must not keep the session.
            traceback.clear_frames(error.__traceback__)
            _rest_at_exit()
            raise

    def flush(self, timeout: Timeout = _OMITTED) -> None:
        """Wait until all that was accepted so far is with the kernel.

        `timeout` defaults to `send_timeout`. Raises SendTimeout, NotConnected or
        ConnectionClosed where the connection ended first, RuntimeError in a callback of this
        client.
        """
        timeout = (
            self._settings.send_timeout
            if timeout is _OMITTED
            else check_seconds("timeout", timeout)
        )
        if self.mailbox.runs_here():
            raise RuntimeError("flush() in a callback would wait for its own thread")
        try:
            self._current().flush(None if timeout is None else time.monotonic() + timeout)
        except BaseException as error:
            traceback.clear_frames(error.__traceback__)
            _rest_at_exit()
            raise

    def ping(self, payload: bytes = b"", timeout: Timeout = _OMITTED) -> float:
        """Send a ping and wait for its pong; return the round trip in seconds (RFC 6455 5.5.2).

        `payload` is at most 125 bytes; an empty one is replaced by a random one, so that the
        pong can be told from others. `timeout` defaults to `ping_timeout`. Raises SendTimeout,
        NotConnected, ConnectionClosed, ValueError, RuntimeError in a callback of this client.
        """
        timeout = (
            self._settings.ping_timeout
            if timeout is _OMITTED
            else check_seconds("timeout", timeout)
        )
        if not isinstance(payload, (bytes, bytearray, memoryview)):
            raise TypeError(f"a ping's payload is bytes, not {type(payload).__name__}")
        payload = bytes(payload) or os.urandom(8)
        if len(payload) > 125:
            raise ValueError(f"a ping's payload is at most 125 bytes, not {len(payload)}")
        if self.mailbox.runs_here():
            raise RuntimeError("ping() in a callback would wait for its own thread")
        try:
            return self._current().ping(
                Ping(payload), None if timeout is None else time.monotonic() + timeout
            )
        except BaseException as error:
            traceback.clear_frames(error.__traceback__)
            _rest_at_exit()
            raise

    def _current(self) -> Session:
        session = self._session
        if session is not None:
            return session
        raise NotConnected("the client is not connected; call connect()")


def _rest_at_exit() -> None:
    """Keep a daemon thread whose call failed because the interpreter ends from saying so.

    The interpreter stops daemon threads wherever they are; this one stops here.
    """
    if exiting.is_set() and threading.current_thread().daemon:
        threading.Event().wait()


def _encoded(message: object) -> Tuple[int, bytes, Message]:
    """Return a message's opcode and payload, and the message as it is given back."""
    if isinstance(message, str):
        return OP_TEXT, str.encode(message), message
    if isinstance(message, (bytes, bytearray, memoryview)):
        payload = bytes(message)  # a copy only where it can change
        return OP_BINARY, payload, payload
    raise TypeError(f"a message is str or bytes-like, not {type(message).__name__}")
