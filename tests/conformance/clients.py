"""The clients under test, each used through its public interface as its users do.

A client is a class with ``name``, ``version()``, ``echo(url)`` (send back every
message until the connection is over) and ``texts(url)`` (the messages that come
until then). Errors of a connection are no verdict: the suite's server judges
what it saw. ``echo`` returns them as text, to be shown beside a failed case.

Keepalive is off everywhere: the suite takes an unexpected ping for a deviation.
"""

from __future__ import annotations

import contextlib
import inspect
from importlib import metadata
from typing import Any, Dict, List, Optional, Type

import websocket
from websockets.exceptions import WebSocketException
from websockets.sync.client import connect

import wsthread

MAX_MESSAGE_SIZE = 64 * 2**20  # the largest of the suite's messages have 16 MiB
TIMEOUT = 60.0  # seconds for one step; the driver bounds a whole case


class Client:
    name: str

    def __init__(self, dispatcher: str) -> None:
        self.dispatcher = dispatcher
        self.compression = False  # set before each call, by the case

    def version(self) -> str:
        return metadata.version(self.name)

    def echo(self, url: str) -> Optional[str]:
        raise NotImplementedError

    def texts(self, url: str) -> List[str]:
        raise NotImplementedError


class Wsthread(Client):
    name = "wsthread"

    def version(self) -> str:
        return wsthread.__version__

    def _options(self) -> Dict[str, Any]:
        limit = wsthread.QueueLimit(bytes=2 * MAX_MESSAGE_SIZE)
        options: Dict[str, Any] = {
            "reconnect": False,
            "connect_timeout": TIMEOUT,
            "send_timeout": TIMEOUT,
            "ping_interval": None,
            "max_message_size": MAX_MESSAGE_SIZE,
            "send_queue": limit,
        }
        # Not in every version.
        known = inspect.signature(wsthread.WebSocketClient).parameters
        if "proxy" in known:
            options["proxy"] = False
        if "compression" in known:
            options["compression"] = "deflate" if self.compression else None
        if self.dispatcher == "inline":
            options["dispatcher"] = wsthread.InlineDispatcher()
        return options

    def echo(self, url: str) -> Optional[str]:
        errors: List[str] = []

        class Echo(wsthread.WebSocketDelegate):
            def on_message(self, client: Any, message: Any) -> None:
                # The peer may have begun to close behind its last message.
                with contextlib.suppress(wsthread.NotConnected):
                    client.send(message)

            def on_error(self, client: Any, error: BaseException) -> None:
                errors.append(f"{type(error).__name__}: {error}")

        try:
            with wsthread.WebSocketClient(url, Echo(), **self._options()) as client:
                client.wait()
        except wsthread.WebSocketError as error:
            errors.append(f"{type(error).__name__}: {error}")
        return "; ".join(errors) or None

    def texts(self, url: str) -> List[str]:
        received: List[str] = []
        delegate = wsthread.CallbackDelegate(on_message=lambda _, text: received.append(text))
        with wsthread.WebSocketClient(url, delegate, **self._options()) as client:
            client.wait()
        return received


class WebsocketClient(Client):
    name = "websocket-client"

    def echo(self, url: str) -> Optional[str]:
        # The library leaves the closing code after an error to its user: choose the right one.
        text, binary = websocket.ABNF.OPCODE_TEXT, websocket.ABNF.OPCODE_BINARY
        connection = websocket.create_connection(url, timeout=TIMEOUT)
        try:
            while True:
                opcode, data = connection.recv_data()
                if opcode == text:
                    data.decode()
                if opcode in (text, binary):
                    connection.send(data, opcode)
        except (UnicodeDecodeError, websocket.WebSocketPayloadException) as error:
            connection.close(websocket.STATUS_INVALID_PAYLOAD)
            return f"{type(error).__name__}: {error}"
        except websocket.WebSocketProtocolException as error:
            connection.close(websocket.STATUS_PROTOCOL_ERROR)
            return f"{type(error).__name__}: {error}"
        except (websocket.WebSocketException, OSError) as error:
            return f"{type(error).__name__}: {error}"
        finally:
            connection.shutdown()

    def texts(self, url: str) -> List[str]:
        connection = websocket.create_connection(url, timeout=TIMEOUT)
        received: List[str] = []
        with contextlib.closing(connection):
            while True:
                opcode, data = connection.recv_data()
                if opcode == websocket.ABNF.OPCODE_CLOSE:
                    return received
                received.append(data.decode())


class Websockets(Client):
    name = "websockets"

    def _connect(self, url: str) -> Any:
        return connect(
            url,
            compression="deflate" if self.compression else None,
            max_size=MAX_MESSAGE_SIZE,
            open_timeout=TIMEOUT,
            ping_interval=None,
            proxy=None,
        )

    def echo(self, url: str) -> Optional[str]:
        try:
            with self._connect(url) as connection:
                for message in connection:
                    connection.send(message)
        except (WebSocketException, OSError) as error:
            return f"{type(error).__name__}: {error}"
        return None

    def texts(self, url: str) -> List[str]:
        with self._connect(url) as connection:
            return list(connection)


CLIENTS: Dict[str, Type[Client]] = {
    client.name: client for client in (Wsthread, WebsocketClient, Websockets)
}
