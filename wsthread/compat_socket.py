"""One connection of a `compat.WebSocketApp`: what its ``sock`` attribute is."""

from __future__ import annotations

import os
import struct
import time
from collections import deque
from typing import Any, Callable, Deque, Dict, Optional, Tuple, Union

from websocket import (
    ABNF,
    WebSocketConnectionClosedException,
    WebSocketException,
    WebSocketTimeoutException,
    getdefaulttimeout,
)

from .client import WebSocketClient
from .compat_options import translate
from .delegate import Message
from .dispatch import PumpDispatcher
from .errors import CloseCode, ProtocolError, SendTimeout, WebSocketError, describe_close
from .state import ConnectionState

#: What happened, as a name and arguments; see `Inbox`.
Event = Tuple[Any, ...]
Payload = Union[str, bytes, bytearray, memoryview]


def _nothing() -> None:
    """A job that only wakes."""


def _text(payload: Payload) -> str:
    return payload if isinstance(payload, str) else bytes(payload).decode()


def _bytes(payload: Payload) -> bytes:
    return payload.encode() if isinstance(payload, str) else bytes(payload)


def _translated(function: Callable[..., Any], *arguments: Any) -> None:
    """Call; raise websocket-client's error for ours."""
    try:
        function(*arguments)
        return
    except WebSocketError as error:
        failure = translate(error)
    # Out here, so that an error and its cause do not come to hold each other.
    try:
        raise failure
    finally:
        del failure


class Inbox(PumpDispatcher):
    """Delegate and dispatcher of one connection: it files the events, and the app takes them.

    As the client's callbacks do no more than that, any thread may run them, and the app's own
    callbacks are none of the client's: they may wait, and nobody waits for them.
    """

    def __init__(self) -> None:
        super().__init__()
        # Appended by the thread that runs the callbacks, taken by the app's.
        self._events: Deque[Event] = deque()
        #: Nothing more is to come. Set by any thread, never unset.
        self.over = False
        #: Since when (monotonic seconds) the app has nothing to do; None: it has. The app's.
        self.idle_since: Optional[float] = None

    def pumped_here(self) -> bool:
        return True

    def take(self) -> Optional[Event]:
        """Wait for the next event; None at the end."""
        while not self._events:
            if self.over:
                return None
            if self.idle_since is None:
                self.idle_since = time.monotonic()
            self.run_forever()
        self.idle_since = None
        return self._events.popleft()

    def take_filed(self) -> Optional[Event]:
        """Return an event that `run_pending` has filed, or None. Waits for nothing."""
        if not self._events:
            self.idle_since = time.monotonic()
            return None
        self.idle_since = None
        return self._events.popleft()

    def wake(self) -> None:
        """Have the app look at what else was asked of it. Any thread."""
        self._file("wake")
        self.schedule(_nothing)  # for who waits for `fileno`

    def finish(self) -> None:
        """Nothing more is to come. Any thread."""
        self.over = True
        self.wake()

    def _file(self, *event: Any) -> None:
        self._events.append(event)
        if len(self._events) == 1:
            self.stop()

    # The delegate's part.

    def on_message(self, client: WebSocketClient, message: Message) -> None:
        self._file("message", message)

    def on_ping(self, client: WebSocketClient, payload: bytes) -> None:
        self._file("ping", payload)

    def on_pong(self, client: WebSocketClient, payload: bytes, latency: Optional[float]) -> None:
        self._file("pong", payload)

    def on_state_change(self, client: WebSocketClient, state: ConnectionState) -> None:
        if state is ConnectionState.DISCONNECTED:
            self.finish()


class FragmentInbox(Inbox):
    """An `Inbox` for an app with ``on_cont_message``: frames come one by one."""

    def __init__(self) -> None:
        super().__init__()
        self._inside = False  # a message's first frame has come; who runs the callbacks

    def on_fragment(self, client: WebSocketClient, data: Message, opcode: int, final: bool) -> None:
        if self._inside:
            self._file("cont", data.encode() if isinstance(data, str) else data, int(final))
        else:
            self._file("message", data)
        self._inside = not final


class Socket:
    """The connection, with the methods of websocket-client's ``WebSocket`` that send and tell.

    It has none of those that receive: what is received comes to the app's callbacks. Any
    thread may call any method.
    """

    def __init__(self, fragments: bool) -> None:
        self.inbox: Inbox = FragmentInbox() if fragments else Inbox()
        #: What this side found wrong with the connection. Written before `inbox.finish`.
        self.failure: Optional[Exception] = None
        self._client: Optional[WebSocketClient] = None  # written once, by the app's thread
        #: Seconds `send` waits; None: for ever.
        self.timeout: Optional[float] = getdefaulttimeout()
        #: Payloads chosen for pings without one, so that their pongs can be told from others.
        self._own_pings: Deque[bytes] = deque(maxlen=16)

    # Life.

    def prepare(self, url: str, arguments: Dict[str, Any]) -> None:
        """Make the client. Raises what `WebSocketClient` does."""
        self._client = WebSocketClient(url, self.inbox, dispatcher=self.inbox, **arguments)

    def connect(self) -> None:
        """Open the connection; raises what websocket-client would."""
        assert self._client is not None
        _translated(self._client.connect)
        self.inbox.run_pending()  # the state's change: what is sent goes out from then on

    def close(
        self,
        status: int = CloseCode.NORMAL_CLOSURE,
        reason: Union[str, bytes] = "",
        timeout: Optional[float] = 3,
    ) -> None:
        """Close; wait at most `timeout` seconds (None: for ever) for the peer's close frame."""
        client = self._client
        if client is not None:
            try:
                client.disconnect(status, _text(reason), timeout)
            finally:
                self._settle(client)

    def send_close(self, status: int = 1000, reason: Union[str, bytes] = "") -> None:
        """Send a close frame; do not wait for the peer's."""
        if self._client is not None:
            self._client.disconnect(status, _text(reason), wait=False)

    def abort(self) -> None:
        """End the connection at once, without a close frame."""
        client = self._client
        if client is not None:
            try:
                client.abort()
            finally:
                self._settle(client)

    shutdown = abort

    def _settle(self, client: WebSocketClient) -> None:
        if client.state is ConnectionState.DISCONNECTED:
            self.inbox.finish()  # the last callback may have been dropped

    def fail(self, error: Exception) -> None:
        """End the connection because of `error`."""
        self.failure = error
        self.abort()

    @property
    def closed_with(self) -> Optional[Tuple[Optional[int], Optional[str]]]:
        """Code and reason of the peer's close frame, None where it has none; None: no frame."""
        client = self._client
        code = None if client is None else client.close_code
        if client is None or code in (None, CloseCode.ABNORMAL_CLOSURE):
            return None
        if isinstance(client.error, ProtocolError):
            return None  # the code is the one we sent
        if code == CloseCode.NO_STATUS_RCVD:
            return None, None
        return code, client.close_reason or None

    @property
    def close_frame(self) -> Optional[ABNF]:
        """The peer's close frame, or None."""
        closed = self.closed_with
        if closed is None:
            return None
        code, reason = closed
        data = b"" if code is None else struct.pack("!H", code) + (reason or "").encode()
        return ABNF.create_frame(data, ABNF.OPCODE_CLOSE)

    def why(self) -> Exception:
        """Why the connection is over, as the error for ``on_error``."""
        if self.failure is not None:
            return self.failure
        closed = self.closed_with
        if closed is None:
            return translate(None if self._client is None else self._client.error)
        code, reason = closed
        described = describe_close(code or CloseCode.NO_STATUS_RCVD, reason or "")
        error = WebSocketConnectionClosedException(f"the peer closed: {described}")
        error.__dict__.update(status_code=code, reason=reason)
        return error

    # Sending.

    def send(self, payload: Payload, opcode: int = ABNF.OPCODE_TEXT) -> int:
        """Send a message or a control frame; return the payload's length.

        Returns when the kernel has it. Raises WebSocketConnectionClosedException,
        WebSocketTimeoutException, and WebSocketException for an opcode that cannot be sent.
        """
        if opcode == ABNF.OPCODE_PING:
            self.ping(payload)
        elif opcode == ABNF.OPCODE_PONG:
            self.pong(payload)
        elif opcode == ABNF.OPCODE_CLOSE:
            data = _bytes(payload)
            code = struct.unpack("!H", data[:2])[0] if len(data) >= 2 else CloseCode.NORMAL_CLOSURE
            self.send_close(code, data[2:])
        elif opcode == ABNF.OPCODE_TEXT:
            self._send(_text(payload))
        elif opcode == ABNF.OPCODE_BINARY:
            self._send(payload.encode() if isinstance(payload, str) else payload)
        else:
            raise WebSocketException("only whole messages and control frames can be sent")
        return len(payload)

    def send_text(self, text_data: str) -> int:
        """Send a text message."""
        return self.send(text_data, ABNF.OPCODE_TEXT)

    def send_bytes(self, data: Payload) -> int:
        """Send a binary message."""
        return self.send(data, ABNF.OPCODE_BINARY)

    send_binary = send_bytes

    def _send(self, message: Any) -> None:
        client = self._client
        if client is None or client.state is not ConnectionState.CONNECTED:
            raise WebSocketConnectionClosedException("the connection is not open")
        _translated(client.send, message, self.timeout)
        if client.pending:
            _translated(client.flush, self.timeout)

    def ping(self, payload: Payload = "") -> None:
        """Send a ping; do not wait for its pong."""
        try:
            _translated(self._ping, payload, 0)
        except WebSocketTimeoutException:
            pass  # that it is not answered yet is no news

    def _ping(self, payload: Payload, timeout: float) -> None:
        if self._client is None:
            raise WebSocketConnectionClosedException("the connection is not open")
        data = _bytes(payload)
        if not data:
            data = os.urandom(8)
            self._own_pings.append(data)
        self._client.ping(data, timeout)

    def answers(self, payload: Payload, timeout: Optional[float]) -> bool:
        """Ping; return False where the peer is dead: no pong within `timeout` (None: no matter).

        An app that is too slow for what it receives reads no pong either: that is no death.
        """
        begun = time.monotonic()
        try:
            self._ping(payload, timeout or 0)
        except SendTimeout:
            idle = self.inbox.idle_since
            return timeout is None or idle is None or idle > begun
        except WebSocketError:
            pass  # the end of the connection comes to the app by itself
        return True

    def pong(self, payload: Payload = "") -> None:
        """Do nothing: every ping of the peer is answered already."""

    def pong_payload(self, payload: bytes) -> bytes:
        """Return what a pong's payload is to the app: empty where its ping's was."""
        return b"" if payload in self._own_pings else payload

    # What is known.

    @property
    def connected(self) -> bool:
        """Whether the connection is open."""
        return self._client is not None and self._client.state is ConnectionState.CONNECTED

    def getstatus(self) -> Optional[int]:
        """Return the status of the handshake: 101, or None where there was none yet."""
        return 101 if self._client is not None and self._client.response_headers else None

    def getheaders(self) -> Optional[Dict[str, str]]:
        """Return the header fields of the handshake's answer, with names in lower case."""
        if self._client is None or not self._client.response_headers:
            return None
        return {name.lower(): value for name, value in self._client.response_headers}

    def getsubprotocol(self) -> Optional[str]:
        """Return the subprotocol the server chose."""
        return None if self._client is None else self._client.subprotocol

    def gettimeout(self) -> Optional[float]:
        """Return the seconds that `send` waits; None: for ever."""
        return self.timeout

    def settimeout(self, timeout: Optional[float]) -> None:
        """Set the seconds that `send` waits; None: for ever."""
        self.timeout = timeout

    status = property(getstatus)
    headers = property(getheaders)
    subprotocol = property(getsubprotocol)
