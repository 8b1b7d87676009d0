"""Packages that use websocket-client, as they are on PyPI, with `wsthread.compat` in its place.

Against local servers that speak their protocols: slack_sdk (a new app for every connection, from
``on_close``), pysher (the same app runs again, and subscribes again), pybit (waits for
``sock.connected``, and connects again from inside ``on_error``).
"""

from __future__ import annotations

import contextlib
import http.server
import json
import queue
import socket
import sys
import threading
from typing import Any, Callable, Dict, Iterator, List

import pytest
from websockets.sync.server import ServerConnection, serve

from tests.support import SOON, eventually
from wsthread import compat

Load = Callable[[str], Any]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Load:
    """Return what imports a module; its ``import websocket`` gets `wsthread.compat`."""
    monkeypatch.setitem(sys.modules, "websocket", compat)
    return pytest.importorskip


class Service:
    """A server: what it received, by connection, and the connections themselves."""

    def __init__(self, answer: Callable[[Service, ServerConnection, Any], None]) -> None:
        self._answer = answer
        self.connections: List[ServerConnection] = []
        self.received: queue.Queue[Any] = queue.Queue()
        self.ended: queue.Queue[int] = queue.Queue()  # numbers of connections
        self.port = 0

    def _handle(self, connection: ServerConnection) -> None:
        number = len(self.connections)
        self.connections.append(connection)
        try:
            self._answer(self, connection, None)
            for text in connection:
                message = json.loads(text)
                self.received.put((number, message))
                self._answer(self, connection, message)
        finally:
            self.ended.put(number)

    @contextlib.contextmanager
    def running(self) -> Iterator[Service]:
        with serve(self._handle, "127.0.0.1", 0, ping_interval=None) as server:
            self.port = server.socket.getsockname()[1]
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            try:
                yield self
            finally:
                server.shutdown()
                thread.join(SOON)

    def wait_for(self, expected: Callable[[Any], bool]) -> Any:
        """Wait for a message, and take it and those before it."""
        while True:
            number, message = self.received.get(timeout=SOON)
            if expected(message):
                return number, message

    def wait_for_the_end(self, number: int) -> None:
        while self.ended.get(timeout=SOON) != number:
            pass


def say(connection: ServerConnection, message: Dict[str, Any]) -> None:
    connection.send(json.dumps(message))


# slack_sdk: Socket Mode.


@contextlib.contextmanager
def slack_api(url: str) -> Iterator[str]:
    """The Web API's apps.connections.open, which tells the address to connect to."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/api/apps.connections.open"
            assert self.headers["Authorization"] == "Bearer xapp-token"
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            body = json.dumps({"ok": True, "url": url}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Be quiet."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/api/"
        finally:
            server.shutdown()
            thread.join(SOON)


def slack(service: Service, connection: ServerConnection, message: Any) -> None:
    """Greets, and sends one event a connection."""
    if message is None:
        say(connection, {"type": "hello", "num_connections": 1})
        number = len(service.connections)
        say(
            connection,
            {
                "type": "events_api",
                "envelope_id": f"envelope {number}",
                "payload": {"event": {"type": "message", "text": f"text {number}"}},
            },
        )


def test_slack_sdk(load: Load) -> None:
    module = load("slack_sdk.socket_mode.websocket_client")
    assert module.WebSocketApp is compat.WebSocketApp
    response = load("slack_sdk.socket_mode.response").SocketModeResponse
    web_client = load("slack_sdk").WebClient
    texts: List[str] = []

    def listener(client: Any, request: Any) -> None:
        texts.append(request.payload["event"]["text"])
        client.send_socket_mode_response(response(envelope_id=request.envelope_id))

    with Service(slack).running() as service, slack_api(f"ws://127.0.0.1:{service.port}") as api:
        client = module.SocketModeClient("xapp-token", web_client=web_client(base_url=api))
        client.socket_mode_request_listeners.append(listener)
        client.connect()
        try:
            for number in range(3):
                answered = service.wait_for(lambda message: "envelope_id" in message)
                assert answered == (number, {"envelope_id": f"envelope {number + 1}"})
                if number == 0:  # "connect somewhere else"
                    say(service.connections[0], {"type": "disconnect", "reason": "refresh"})
                elif number == 1:
                    service.connections[1].close(1011, "lost")
                if number < 2:
                    service.wait_for_the_end(number)
            assert client.is_connected()
        finally:
            client.close()
        service.wait_for_the_end(2)
        assert not client.is_connected()
    assert texts == ["text 1", "text 2", "text 3"]


# pysher: Pusher's channels.


def pusher(service: Service, connection: ServerConnection, message: Any) -> None:
    if message is None:
        identity = {"socket_id": f"1.{len(service.connections)}", "activity_timeout": 120}
        established = {"event": "pusher:connection_established", "data": json.dumps(identity)}
        say(connection, established)
    elif message["event"] == "pusher:ping":
        say(connection, {"event": "pusher:pong"})
    elif message["event"] == "pusher:subscribe":
        channel = message["data"]["channel"]
        say(connection, {"event": "greeting", "channel": channel, "data": "welcome"})
    elif message["event"].startswith("client-"):
        say(connection, message)


def test_pysher(load: Load) -> None:
    pysher = load("pysher")
    events: queue.Queue[Any] = queue.Queue()

    def connected(data: str) -> None:
        if not client.channels:
            channel = client.subscribe("private-room")
            channel.bind("greeting", lambda data: events.put(("greeting", data)))
            channel.bind("client-word", lambda data: events.put(("word", data)))

    with Service(pusher).running() as service:
        client = pysher.Pusher(
            "key",
            secret="secret",
            secure=False,
            custom_host="127.0.0.1",
            port=service.port,
            reconnect_interval=0.05,
            auto_sub=True,
        )
        client.connection.bind("pusher:connection_established", connected)
        client.connect()
        try:
            for number in range(2):
                subscribed = service.wait_for(lambda message: message["event"].endswith("scribe"))
                assert subscribed[0] == number
                assert subscribed[1]["data"]["channel"] == "private-room"
                assert events.get(timeout=SOON) == ("greeting", "welcome")
                client.channel("private-room").trigger("client-word", f"word {number}")
                assert events.get(timeout=SOON) == ("word", f"word {number}")
                assert isinstance(client.connection.socket, compat.WebSocketApp)
                if number == 0:
                    service.connections[0].close(4200, "connect again")
        finally:
            client.disconnect(SOON)
        service.wait_for_the_end(1)
        assert client.connection.state == "disconnected"
        assert not client.connection.is_alive()
    assert len(service.connections) == 2


# pybit: Bybit's market data.


@pytest.fixture
def timers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Bear with pybit's timers, which ping whether or not there is a connection; wait for them."""
    report = threading.excepthook

    def hook(args: threading.ExceptHookArgs) -> None:
        closed = isinstance(args.exc_value, compat.WebSocketConnectionClosedException)
        if not (closed and isinstance(args.thread, threading.Timer)):
            report(args)

    monkeypatch.setattr(threading, "excepthook", hook)
    yield
    eventually(lambda: not any(isinstance(t, threading.Timer) for t in threading.enumerate()))


@pytest.mark.usefixtures("timers")
def test_pybit(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    module = load("pybit.unified_trading")
    prices: queue.Queue[Any] = queue.Queue()
    ready = threading.Event()  # pybit notes what it subscribed to only when it has sent it

    def bybit(service: Service, connection: ServerConnection, message: Any) -> None:
        if message is None:
            return
        if message["op"] == "ping":
            say(connection, {"success": True, "ret_msg": "pong", "op": "ping"})
        elif message["op"] == "subscribe":
            assert ready.wait(SOON)
            say(connection, {"success": True, "op": "subscribe", "req_id": message["req_id"]})
            (topic,) = message["args"]
            number = len(service.connections)
            snapshot = {"symbol": "BTCUSDT", "lastPrice": f"{number}00", "volume": "7"}
            say(connection, {"topic": topic, "type": "snapshot", "data": snapshot})
            delta = {"lastPrice": f"{number}01"}
            say(connection, {"topic": topic, "type": "delta", "data": delta})

    with Service(bybit).running() as service:
        address = f"ws://127.0.0.1:{service.port}/v5/public/{{CHANNEL_TYPE}}"
        monkeypatch.setattr(module, "PUBLIC_WSS", address)
        client = module.WebSocket("linear", testnet=True, ping_interval=0.3, ping_timeout=None)
        assert isinstance(client.ws, compat.WebSocketApp)
        try:
            client.ticker_stream(
                "BTCUSDT",
                lambda told: prices.put((told["data"]["lastPrice"], told["data"]["volume"])),
            )
            ready.set()
            for number in range(2):
                sent = service.wait_for(lambda message: message["op"] == "subscribe")
                assert (sent[0], sent[1]["args"]) == (number, ["tickers.BTCUSDT"])
                assert prices.get(timeout=SOON) == (f"{number + 1}00", "7")
                assert prices.get(timeout=SOON) == (f"{number + 1}01", "7")
                # Its own ping, which the answer to the protocol's makes it send.
                service.wait_for(lambda message: message["op"] == "ping")
                if number == 0:
                    service.connections[0].socket.shutdown(socket.SHUT_RDWR)
        finally:
            client.exit()
        service.wait_for_the_end(1)
        assert not client.is_connected()
        eventually(lambda: not client.wst.is_alive())
    assert len(service.connections) == 2
