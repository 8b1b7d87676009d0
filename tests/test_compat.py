"""Programs written for websocket-client, run with it and with `wsthread.compat`.

What the examples of its README and documentation do, and what its users rely on besides: each is
a function of the module, and what it records is compared.
"""

from __future__ import annotations

import gc
import inspect
import select
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import warnings
import weakref
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Tuple

import pytest
import websocket
from websocket import ABNF

from tests.proxy_server import PASSWORD, USER, ProxyServer
from tests.support import (
    SOON,
    Certificates,
    RawConnection,
    RawServer,
    close_frame,
    echo_server,
    frame,
)
from wsthread import compat

Event = Tuple[Any, ...]
Example = Callable[[Any], Any]

#: Before 1.9.2 a peer's close frame itself came to on_error, and counted as an error.
COMPARABLE = tuple(map(int, websocket.__version__.split(".")[:3])) >= (1, 9, 2)
CALLBACKS = ("on_open", "on_reconnect", "on_message", "on_data", "on_error", "on_close")
CONTROL = ("on_ping", "on_pong")
CLOSED = ("on_error", "WebSocketConnectionClosedException")


@pytest.fixture(scope="module")
def echo() -> Iterator[str]:
    with echo_server() as url:
        yield url


@pytest.fixture(scope="module")
def certificates() -> Certificates:
    return Certificates("localhost")


@pytest.fixture(scope="module")
def secure_echo(
    certificates: Certificates, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    with echo_server(certificates.write(tmp_path_factory.mktemp("tls"))) as url:
        yield url


class Diary:
    """Notes every callback of an app with its arguments, errors by their type."""

    def __init__(self) -> None:
        self.events: List[Event] = []
        self.errors: List[BaseException] = []
        self.threads: List[Optional[int]] = []

    def callbacks(
        self, *names: str, **scripts: Callable[..., Any]
    ) -> Dict[str, Callable[..., Any]]:
        """Return callbacks of these names that note, and then do what `scripts` say."""
        return {
            name: self._callback(name, scripts.get(name))
            for name in dict.fromkeys((*(names or CALLBACKS), *scripts))
        }

    def _callback(self, name: str, script: Optional[Callable[..., Any]]) -> Callable[..., Any]:
        def callback(app: Any, *arguments: Any) -> None:
            self.threads.append(threading.get_ident())
            if name == "on_error":
                self.errors.append(arguments[0])
                arguments = (type(arguments[0]).__name__,)
            self.events.append((name, *arguments))
            if script is not None:
                script(app, *arguments)

        return callback

    def of(self, *names: str) -> List[Event]:
        return [event for event in self.events if event[0] in names]


def theirs(example: Example) -> Any:
    """Run with websocket-client, whose sockets and cycles are left to the collector."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        result = example(websocket)
        gc.collect()
    return result


def compare(example: Example, expected: Any = None) -> Any:
    """Run with both, and compare; return what was recorded."""
    ours = example(compat)
    if expected is not None:
        assert ours == expected
    if COMPARABLE:
        assert ours == theirs(example)
    return ours


def run(
    module: Any,
    url: str,
    scripts: Optional[Dict[str, Callable[..., Any]]] = None,
    app_options: Optional[Dict[str, Any]] = None,
    names: Sequence[str] = CALLBACKS,
    **options: Any,
) -> Tuple[List[Event], bool]:
    """Run an app; return its events and what run_forever returned."""
    diary = Diary()
    callbacks = diary.callbacks(*names, **(scripts or {}))
    app = module.WebSocketApp(url, **callbacks, **(app_options or {}))
    result = app.run_forever(**options)
    assert app.sock is None
    assert app.keep_running is False
    assert set(diary.threads) <= {threading.get_ident()}
    assert app.has_errored is result
    return diary.events, result


def saying(*frames: bytes, linger: bool = True) -> Callable[[RawConnection], None]:
    """A server's script: say this, and end at the client's close frame, without an answer."""

    def script(connection: RawConnection) -> None:
        connection.upgrade()
        connection.sock.sendall(b"".join(frames))
        while linger and connection.read_frame()[0] != 8:
            pass

    return script


def served(script: Callable[[RawConnection], None], example: Callable[[Any, str], Any]) -> Example:
    def with_server(module: Any) -> Any:
        with RawServer(script) as server:
            result = example(module, server.url)
            if module is websocket:
                gc.collect()  # after a close frame its socket is closed by nothing else
            return result

    return with_server


def call(function: Callable[..., Any], *arguments: Any) -> Callable[..., None]:
    """A callback that calls something else."""
    return lambda app, *_: function(*arguments)


def closing(app: Any, *_: Any) -> None:
    app.close()


def sending(message: Any) -> Callable[..., None]:
    return lambda app, *_: app.send(message)


#: A whole run: one message there and back, and closed. (Closed in on_open itself, 1.9.2 has an
#: AttributeError for on_error.)
ONE_MESSAGE = {"on_open": sending("hi"), "on_message": closing}
ONE_MESSAGE_TOLD: List[Event] = [
    ("on_open",),
    ("on_data", "hi", ABNF.OPCODE_TEXT, True),
    ("on_message", "hi"),
    ("on_close", 1000, None),
]


# The class itself.


def test_the_import_of_wsthread_does_not_import_it() -> None:
    script = (
        "import sys, wsthread; print([name for name in sys.modules if 'wsthread.compat' in name])"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=SOON * 3
    )
    assert result.stdout.strip() == "[]"


def test_every_other_name_is_websocket_clients_own() -> None:
    for name in (
        "ABNF",
        "WebSocketException",
        "WebSocketTimeoutException",
        "create_connection",
        "enableTrace",
        "setdefaulttimeout",
        "STATUS_NORMAL",
    ):
        assert getattr(compat, name) is getattr(websocket, name)
    with pytest.raises(AttributeError):
        compat.no_such_name  # noqa: B018
    assert compat.WebSocketApp is not websocket.WebSocketApp


@pytest.mark.skipif(not COMPARABLE, reason="the signatures are those of websocket-client 1.9.2")
@pytest.mark.parametrize(
    "method",
    ["__init__", "run_forever", "send", "send_text", "send_bytes", "close", "ready"],
)
def test_signatures(method: str) -> None:
    def parameters(cls: type) -> List[Tuple[str, Any, Any]]:
        found = inspect.signature(getattr(cls, method)).parameters.values()
        return [(one.name, one.kind, one.default) for one in found]

    assert parameters(compat.WebSocketApp) == parameters(websocket.WebSocketApp)


@pytest.mark.skipif(not COMPARABLE, reason="the attributes are those of websocket-client 1.9.2")
def test_attributes() -> None:
    ours, original = compat.WebSocketApp("ws://h/"), websocket.WebSocketApp("ws://h/")
    for name in dir(original):
        if not name.startswith("_") and name not in (
            "has_done_teardown_lock",  # of the insides
            "create_dispatcher",
        ):
            assert hasattr(ours, name), name
            if not callable(getattr(original, name)):
                assert getattr(ours, name) == getattr(original, name), name


# Its examples.


def test_example_receive() -> None:
    """The documentation's first WebSocketApp: print what comes."""

    def example(module: Any, url: str) -> Any:
        printed: List[Any] = []

        def on_message(app: Any, message: Any) -> None:
            printed.append(message)

        app = module.WebSocketApp(url, on_message=on_message)
        return printed, app.run_forever()

    script = saying(frame(1, b"one"), frame(2, b"two"), frame(1, b"three"), close_frame())
    compare(served(script, example), (["one", b"two", "three"], False))


def test_example_common_headers() -> None:
    def example(module: Any, url: str) -> Any:
        app = module.WebSocketApp(url, cookie="chocolate", on_message=lambda app, message: None)
        app.run_forever(origin="testing_websockets.com", host="127.0.0.1")

    requests_of(example, b"origin: testing_websockets.com", b"cookie: chocolate")


def test_example_subprotocols() -> None:
    def example(module: Any, url: str) -> Any:
        app = module.WebSocketApp(url, subprotocols=["other", "testproto"])
        chosen: List[Any] = []
        app.on_open = lambda app: chosen.append(
            (app.sock.subprotocol, app.sock.getstatus(), app.sock.headers["upgrade"])
        )
        app.run_forever()
        assert chosen == [("testproto", 101, "websocket")]

    requests_of(example, answer=b"Sec-WebSocket-Protocol: testproto\r\n")


def test_example_suppress_origin() -> None:
    def example(module: Any, url: str) -> Any:
        module.WebSocketApp(url).run_forever(suppress_origin=True)

    assert not any(line.startswith(b"origin") for line in requests_of(example)[0])


@pytest.mark.parametrize(
    "header",
    [
        {"CustomHeader1": "123", "NewHeader2": "Test", "Unset": None},
        ["CustomHeader1: 123", "NewHeader2: Test"],
        lambda: {"CustomHeader1": "123", "NewHeader2": "Test"},
        lambda: ["CustomHeader1: 123", "NewHeader2: Test"],
    ],
    ids=["mapping", "lines", "function of a mapping", "function of lines"],
)
def test_example_custom_headers(header: Any) -> None:
    def example(module: Any, url: str) -> Any:
        module.WebSocketApp(url, header=header).run_forever()

    requests_of(example, b"customheader1: 123", b"newheader2: test")


def requests_of(
    example: Callable[[Any, str], Any], *lines: bytes, answer: bytes = b""
) -> List[List[bytes]]:
    """Compare the requests that both make; return them, in lower case."""
    heads: List[List[bytes]] = []

    def script(connection: RawConnection) -> None:
        head = connection.upgrade(headers=answer).lower()
        connection.sock.sendall(close_frame())
        connection.read_frame()
        port = str(connection.sock.getsockname()[1]).encode()
        # The separator after a comma is free (RFC 9110 5.6.1).
        found = [line.replace(port, b"PORT").replace(b", ", b",") for line in head.split(b"\r\n")]
        heads.append(sorted(x for x in found if not x.startswith(b"sec-websocket-key")))

    with RawServer(script) as server:
        example(compat, server.url)
        theirs(lambda module: example(module, server.url))
    assert heads[0] == heads[1]
    assert set(lines) <= set(heads[0])
    return heads


def test_fields_that_are_the_handshakes() -> None:
    """In `header` some are arguments, and others not sent; websocket-client sends them twice."""
    heads: List[List[bytes]] = []

    def script(connection: RawConnection) -> None:
        chosen = b"Sec-WebSocket-Protocol: b\r\n"
        heads.append(connection.upgrade(headers=chosen).lower().split(b"\r\n"))
        connection.answer_close()

    header = ["Host: elsewhere", "Sec-WebSocket-Protocol: a, b", "Connection: close", "X-A: b:c"]
    with RawServer(script) as server:
        run(compat, server.url, {"on_open": closing}, {"header": header})
    assert {b"host: elsewhere", b"x-a: b:c"} <= set(heads[0])
    assert [line for line in heads[0] if line.startswith(b"connection")] == [b"connection: upgrade"]
    assert sum(line.startswith(b"sec-websocket-protocol: a,") for line in heads[0]) == 1


def test_a_header_without_a_colon(echo: str) -> None:
    expected = [("on_error", "ValueError"), ("on_close", None, None)]
    assert run(compat, echo, app_options={"header": ["nonsense"]}) == (expected, True)


@pytest.fixture
def default_timeout() -> Iterator[None]:
    websocket.setdefaulttimeout(0.8)
    yield
    websocket.setdefaulttimeout(None)


def test_example_timeout(default_timeout: None) -> None:
    """A server that never answers the upgrade."""

    def example(module: Any, url: str) -> Any:
        return run(module, url)

    expected = [("on_error", "WebSocketTimeoutException"), ("on_close", None, None)]
    compare(served(lambda connection: void(connection.read_to_end()), example), (expected, True))


def void(_: object) -> None:
    """Take and return nothing."""


def test_example_ping_pong(echo: str) -> None:
    def example(module: Any) -> Any:
        pongs: List[bytes] = []

        def on_pong(app: Any, message: bytes) -> None:
            assert app.last_ping_tm > 0
            assert 0 <= app.last_pong_tm - app.last_ping_tm < SOON
            assert app.ping_thread.is_alive()
            pongs.append(message)
            if len(pongs) == 2:
                app.close()

        app = module.WebSocketApp(echo, on_pong=on_pong, on_ping=on_pong)
        result = app.run_forever(ping_interval=0.2, ping_payload="payload")
        assert (app.last_ping_tm, app.last_pong_tm, app.ping_thread) == (0, 0, None)
        assert (app.ping_interval, app.ping_timeout, app.ping_payload) == (0.2, None, "payload")
        return pongs, result

    compare(example, ([b"payload"] * 2, False))


@pytest.mark.parametrize(
    "options",
    [
        {"ping_interval": 10, "ping_timeout": 60},
        {"ping_interval": -1},
        {"ping_timeout": 0},
        {"ping_timeout": -1, "ping_interval": 1},
    ],
)
def test_options_that_cannot_be_meant(options: Dict[str, Any]) -> None:
    """The documentation's own example of pings is one of them."""

    def example(module: Any) -> Any:
        app = module.WebSocketApp("ws://127.0.0.1:1/", on_error=closing, on_close=closing)
        with pytest.raises(websocket.WebSocketException) as info:
            app.run_forever(**options)
        return type(info.value)

    compare(example)


@pytest.mark.parametrize("url", ["http://127.0.0.1/", "nonsense", "ws://", "wss:/x"])
def test_a_wrong_url(url: str) -> None:
    def example(module: Any) -> Any:
        diary = Diary()
        app = module.WebSocketApp(url, **diary.callbacks())
        with pytest.raises(ValueError):
            app.run_forever()
        return diary.events, app.sock

    compare(example, ([], None))


def test_example_echoapp(echo: str) -> None:
    """A thread sends, then closes.

    Compared is what comes before the end: with websocket-client the closing thread and the one
    that runs both read, and either may see the close frame.
    """

    def example(module: Any) -> Any:
        diary = Diary()
        received = threading.Semaphore(0)

        def work(app: Any) -> None:
            for number in range(3):
                app.send(f"Hello {number}")
                assert received.acquire(timeout=SOON)
            app.close()

        threads: List[threading.Thread] = []

        def on_open(app: Any) -> None:
            threads.append(threading.Thread(target=work, args=(app,)))
            threads[0].start()

        app = module.WebSocketApp(
            echo,
            **diary.callbacks(
                on_message=lambda *_: received.release(), on_open=on_open, on_close=void_all
            ),
        )
        # Not without a time-out: websocket-client then looks every 10 seconds.
        result = app.run_forever(ping_timeout=1)
        threads[0].join(SOON)
        return diary.events, result

    events, result = example(compat)
    assert [event[1] for event in events if event[0] == "on_message"] == [
        "Hello 0",
        "Hello 1",
        "Hello 2",
    ]
    assert events[-1] == ("on_close", 1000, None)
    assert not result
    other, _ = theirs(example)
    assert [e for e in other if e[0] not in ("on_error", "on_close")] == events[:-1]


def void_all(*_: Any) -> None:
    """Take and return nothing."""


def test_example_close_in_a_callback(echo: str) -> None:
    """The documentation of threads has this as an example that does not work. It does."""

    compare(lambda module: run(module, echo, ONE_MESSAGE), (ONE_MESSAGE_TOLD, False))


def test_close_in_on_open(echo: str) -> None:
    assert run(compat, echo, {"on_open": closing}) == (
        [("on_open",), ("on_close", 1000, None)],
        False,
    )


def test_example_close_in_a_thread_of_a_callback(echo: str) -> None:
    threads: List[threading.Thread] = []

    def on_message(app: Any, message: str) -> None:
        threads.append(threading.Thread(target=app.close))
        threads[0].start()

    begun = time.monotonic()
    events, result = run(compat, echo, {"on_open": sending("hi"), "on_message": on_message})
    threads[0].join(SOON)
    assert events[-2:] == [("on_message", "hi"), ("on_close", 1000, None)]
    assert not result
    assert time.monotonic() - begun < 3


@pytest.mark.parametrize(
    ("host", "sslopt", "good"),
    [
        ("127.0.0.1", {"cert_reqs": ssl.CERT_NONE}, True),
        ("127.0.0.1", {"check_hostname": False, "ca_certs": "AUTHORITY"}, True),
        ("localhost", {"ca_certs": "AUTHORITY"}, True),
        ("127.0.0.1", {"ca_certs": "AUTHORITY", "server_hostname": "localhost"}, True),
        ("127.0.0.1", {"context": "CONTEXT", "server_hostname": "localhost"}, True),
        ("localhost", {"context": "CONTEXT"}, True),
        ("127.0.0.1", {"ca_certs": "AUTHORITY"}, False),
        ("localhost", None, False),
    ],
)
def test_example_tls(
    host: str,
    sslopt: Optional[Dict[str, Any]],
    good: bool,
    secure_echo: str,
    certificates: Certificates,
    tmp_path: Path,
) -> None:
    """Of the FAQ: certificates and host names (here: localhost) that are verified, or not."""
    made = {
        "AUTHORITY": certificates.write_authority(tmp_path),
        "CONTEXT": certificates.client_context(),
    }
    options = sslopt and {name: made.get(value, value) for name, value in sslopt.items()}
    url = secure_echo.replace("127.0.0.1", host)

    def example(module: Any) -> Any:
        return run(module, url, ONE_MESSAGE, sslopt=options)

    expected = ONE_MESSAGE_TOLD
    if not good:
        expected = [("on_error", "SSLCertVerificationError"), ("on_close", None, None)]
    compare(example, (expected, not good))


def test_everything_of_sslopt(
    secure_echo: str,
    certificates: Certificates,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And the two variables of the environment that go with it."""
    bundles, mine, keys = tmp_path / "bundles", certificates.write(tmp_path), tmp_path / "keys"
    bundles.mkdir()
    monkeypatch.setenv("SSLKEYLOGFILE", str(keys))
    sslopt = {"ciphers": "DEFAULT", "ecdh_curve": "prime256v1", "certfile": mine, "keyfile": mine}
    url = secure_echo.replace("127.0.0.1", "localhost")

    def example(module: Any) -> Any:
        before = len(keys.read_text().splitlines()) if keys.exists() else 0
        result = run(module, url, ONE_MESSAGE, sslopt={**sslopt, "cert_chain": (mine, mine, None)})
        return result, len(keys.read_text().splitlines()) > before

    monkeypatch.setenv("WEBSOCKET_CLIENT_CA_BUNDLE", certificates.write_authority(tmp_path))
    compare(example, ((ONE_MESSAGE_TOLD, False), True))
    monkeypatch.setenv("WEBSOCKET_CLIENT_CA_BUNDLE", str(bundles))  # a directory, with nothing
    expected = [("on_error", "SSLCertVerificationError"), ("on_close", None, None)]
    compare(lambda module: run(module, url), (expected, True))


@pytest.mark.parametrize(
    "sslopt",
    [{"ca_certs": "/no/such/file"}, {"cert_reqs": ssl.CERT_NONE, "check_hostname": True}],
)
def test_wrong_sslopt(sslopt: Dict[str, Any], secure_echo: str) -> None:
    def example(module: Any) -> Any:
        return run(module, secure_echo, sslopt=sslopt)

    expected = [("on_error", "WebSocketException"), ("on_close", None, None)]
    compare(example, (expected, True))


def test_example_http_proxy(echo: str) -> None:
    def example(module: Any) -> Any:
        with ProxyServer("http", login=(USER, PASSWORD)) as proxy:
            result = run(
                module,
                echo,
                ONE_MESSAGE,
                http_proxy_host="127.0.0.1",
                http_proxy_port=str(proxy.port),
                http_proxy_auth=(USER, PASSWORD),
                http_no_proxy=["elsewhere"],
                proxy_type="http",
            )
            return result, len(proxy.targets)

    compare(example, ((ONE_MESSAGE_TOLD, False), 1))


@pytest.mark.parametrize("no_proxy", [["127.0.0.1"], ["127.0.0.0/8"], ["*"]])
def test_hosts_without_a_proxy(no_proxy: List[str], echo: str) -> None:
    def example(module: Any) -> Any:
        return run(
            module,
            echo,
            ONE_MESSAGE,
            http_proxy_host="127.0.0.1",
            http_proxy_port=1,
            http_no_proxy=no_proxy,
            proxy_type="http",
        )

    compare(example, (ONE_MESSAGE_TOLD, False))


def test_hosts_without_a_proxy_by_the_environment(
    echo: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    expected = [("on_error", "WebSocketProxyException"), ("on_close", None, None)]
    assert run(compat, echo) == (expected, True)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    compare(lambda module: run(module, echo, ONE_MESSAGE), (ONE_MESSAGE_TOLD, False))
    given = {"http_proxy_host": "127.0.0.1", "http_proxy_port": 1, "proxy_type": "http"}
    compare(lambda module: run(module, echo, ONE_MESSAGE, **given), (ONE_MESSAGE_TOLD, False))


@pytest.mark.parametrize("kind", ["socks4", "socks4a", "socks5", "socks5h"])
def test_socks_proxy(kind: str, echo: str) -> None:
    """With websocket-client this takes another package."""
    pytest.importorskip("socksio")
    with ProxyServer(kind) as proxy:
        events, _ = run(
            compat,
            echo,
            ONE_MESSAGE,
            http_proxy_host="127.0.0.1",
            http_proxy_port=proxy.port,
            proxy_type=kind,
        )
        assert events == ONE_MESSAGE_TOLD
        assert len(proxy.targets) == 1


@pytest.mark.parametrize(
    "options",
    [{"http_proxy_port": 0}, {"http_proxy_port": None}, {"http_proxy_port": 1, "proxy_type": "x"}],
)
def test_a_wrong_proxy(options: Dict[str, Any], echo: str) -> None:
    """With websocket-client the last one is an exception of its own."""
    events, result = run(compat, echo, http_proxy_host="127.0.0.1", **options)
    assert events == [("on_error", "WebSocketProxyException"), ("on_close", None, None)]
    assert result


def test_example_unix_socket(tmp_path: Path) -> None:
    def example(module: Any) -> Any:
        listener = socket.socket(socket.AF_UNIX)
        path = str(tmp_path / module.__name__)
        listener.bind(path)
        listener.listen(1)

        def serve() -> None:
            sock, _ = listener.accept()
            with sock:
                connection = RawConnection(sock)
                connection.upgrade()
                sock.sendall(frame(1, b"by a file"))
                connection.read_to_end()

        thread = threading.Thread(target=serve)
        thread.start()
        given = socket.socket(socket.AF_UNIX)
        given.connect(path)
        result = run(
            module,
            "ws://localhost/",
            {"on_message": lambda app, message: app.close(timeout=0.2)},
            {"socket": given},
        )
        given.close()
        thread.join(SOON)
        listener.close()
        return result

    events, _ = compare(example)
    assert ("on_message", "by a file") in events


def test_a_given_socket_and_wss(
    secure_echo: str, certificates: Certificates, tmp_path: Path
) -> None:
    """TLS is put over it; websocket-client takes one that has TLS already."""
    port = int(secure_echo.rstrip("/").rpartition(":")[2])
    sslopt = {"ca_certs": certificates.write_authority(tmp_path)}

    def told(given: socket.socket) -> Any:
        url = f"wss://localhost:{port}/"
        return run(compat, url, ONE_MESSAGE, {"socket": given}, sslopt=sslopt)

    with socket.create_connection(("127.0.0.1", port)) as given:
        assert told(given) == (ONE_MESSAGE_TOLD, False)
    with socket.create_connection(("127.0.0.1", port)) as plain:
        context = certificates.client_context()
        with context.wrap_socket(plain, server_hostname="localhost") as given:
            assert told(given) == ([("on_error", "TypeError"), ("on_close", None, None)], True)


class Loop:
    """An event loop with the methods of module ``rel`` that websocket-client uses."""

    def __init__(self) -> None:
        self.readers: List[Tuple[Any, Callable[..., Any]]] = []
        self.timers: List[Tuple[float, Callable[..., Any], Tuple[Any, ...]]] = []
        self.signals: List[int] = []

    def signal(self, number: int, callback: Callable[..., Any], *arguments: Any) -> None:
        self.signals.append(number)

    def abort(self) -> None:
        self.readers.clear()

    def read(self, sock: Any, callback: Callable[..., Any], *arguments: Any) -> None:
        self.readers.append((sock, callback))

    def timeout(self, seconds: float, callback: Callable[..., Any], *arguments: Any) -> None:
        self.timers.append((time.monotonic() + seconds, callback, arguments))

    def buffwrite(self, sock: Any, data: Any, send: Callable[..., Any], failed: Any) -> None:
        send(sock, data)

    def dispatch(self, done: Callable[[], bool]) -> None:
        deadline = time.monotonic() + SOON
        while not done():
            assert time.monotonic() < deadline, "the loop does not come to its end"
            readers = [pair for pair in self.readers if pair[0].fileno() >= 0]
            ready = select.select([sock for sock, _ in readers], [], [], 0.02)[0]
            for sock, callback in readers:
                if sock in ready and not callback():
                    self.readers.remove((sock, callback))
            for timer in list(self.timers):
                if timer[0] <= time.monotonic():
                    self.timers.remove(timer)
                    timer[1](*timer[2])


def test_example_dispatcher_with_reconnect() -> None:
    """The README's long-lived connection: lost once, it comes back, and on_error is not told.

    Not compared: websocket-client leaves the reader in the loop then, and connects twice.
    """
    done = threading.Event()

    def script(connection: RawConnection) -> None:
        connection.upgrade()
        connection.sock.sendall(frame(1, b"message"))
        if server.connections == 1:
            assert first.wait(SOON)
            connection.reset()
        else:
            connection.read_frame()

    def on_message(app: Any, message: str) -> None:
        (first if not first.is_set() else done).set()

    first, diary, loop = threading.Event(), Diary(), Loop()
    with RawServer(script) as server:
        app = compat.WebSocketApp(server.url, **diary.callbacks(on_message=on_message))
        assert app.run_forever(dispatcher=loop, reconnect=0.1) is False
        loop.dispatch(done.is_set)
        app.close(timeout=0.1)
    message = [("on_data", "message", 1, True), ("on_message", "message")]
    assert diary.events == [("on_open",), *message, ("on_reconnect",), *message]
    assert loop.signals == [2]
    assert app.has_errored


@pytest.mark.parametrize("how", ["callback", "thread", "keep_running", "peer", "refused"])
def test_the_end_with_a_dispatcher(how: str, echo: str) -> None:
    """on_close comes, in the loop, whoever ends it."""
    diary, loop = Diary(), Loop()
    scripts: Dict[str, Any] = {"on_open": sending("close 1000 bye" if how == "peer" else "hi")}
    if how == "callback":
        scripts["on_message"] = closing
    app = compat.WebSocketApp(
        echo if how != "refused" else "ws://127.0.0.1:1/", **diary.callbacks(**scripts)
    )
    result = app.run_forever(dispatcher=loop)
    if how == "thread":
        thread = threading.Thread(target=app.close)
        thread.start()
        thread.join(SOON)
    elif how == "keep_running":
        app.keep_running = False
    loop.dispatch(lambda: bool(diary.of("on_close")))
    closed = {"refused": (None, None), "peer": (1000, "bye")}.get(how, (1000, None))
    assert diary.events[-1] == ("on_close", *closed)
    assert result is (how == "refused")
    assert not loop.readers
    assert set(diary.threads) == {threading.get_ident()}


def test_an_on_error_that_raises_with_a_dispatcher(echo: str) -> None:
    """It ends the run, in the loop."""
    diary, loop = Diary(), Loop()
    scripts = {"on_message": failing(ValueError()), "on_error": failing(KeyError())}
    app = compat.WebSocketApp(echo, **diary.callbacks(on_open=sending("hi"), **scripts))
    assert app.run_forever(dispatcher=loop) is False
    loop.dispatch(lambda: bool(diary.of("on_close")))
    told = [("on_error", "ValueError"), ("on_error", "KeyError"), ("on_close", 1000, None)]
    assert diary.events == [*ONE_MESSAGE_TOLD[:-1], *told]
    assert app.has_errored
    assert not loop.readers


def test_closing_between_two_attempts_with_a_dispatcher() -> None:
    diary, loop = Diary(), Loop()
    app = compat.WebSocketApp("ws://127.0.0.1:1/", **diary.callbacks())
    app.run_forever(dispatcher=loop, reconnect=0.05)
    app.close()
    loop.dispatch(lambda: app.has_done_teardown)
    assert diary.events == [("on_error", "ConnectionRefusedError"), ("on_close", None, None)]
    assert not loop.timers


def test_example_rel(echo: str) -> None:
    """The README's long-lived connection, with the module it uses."""
    rel = pytest.importorskip("rel", reason="rel is not installed")

    def example(module: Any) -> Any:
        previous = signal.getsignal(signal.SIGINT)
        rel.initialize()
        diary = Diary()

        def on_message(app: Any, message: Any) -> None:
            app.close()
            rel.abort()

        app = module.WebSocketApp(
            echo,
            **diary.callbacks(
                "on_open", "on_message", "on_error", on_open=sending("hi"), on_message=on_message
            ),
        )
        try:
            app.run_forever(dispatcher=rel, reconnect=5)
            rel.signal(2, rel.abort)
            rel.dispatch()
        finally:
            signal.signal(signal.SIGINT, previous)
        return diary.events

    compare(example, [("on_open",), ("on_message", "hi")])


# How it ends.


@pytest.mark.parametrize(
    ("script", "expected", "errored"),
    [
        (saying(close_frame(1000)), [CLOSED, ("on_close", 1000, None)], False),
        (saying(close_frame(1000, "bye")), [CLOSED, ("on_close", 1000, "bye")], False),
        (saying(close_frame(4001, "ü")), [CLOSED, ("on_close", 4001, "ü")], False),
        (saying(close_frame(1011)), [CLOSED, ("on_close", 1011, None)], False),
        (saying(frame(8)), [CLOSED, ("on_close", None, None)], False),
        (saying(linger=False), [CLOSED, ("on_close", None, None)], True),
        (
            saying(frame(3, b"no such opcode")),
            [("on_error", "WebSocketProtocolException"), ("on_close", None, None)],
            True,
        ),
        (
            saying(frame(1, b"\xff")),
            [("on_error", "WebSocketPayloadException"), ("on_close", None, None)],
            True,
        ),
    ],
    ids=["1000", "1000 bye", "4001", "1011", "no code", "lost", "protocol", "payload"],
)
def test_ends_of_the_peer(
    script: Callable[[RawConnection], None], expected: List[Event], errored: bool
) -> None:
    compare(served(script, run), ([("on_open",), *expected], errored))


def test_a_reset() -> None:
    def script(connection: RawConnection) -> None:
        connection.upgrade()
        connection.reset()

    expected = [
        ("on_open",),
        ("on_error", "ConnectionResetError"),
        ("on_close", None, None),
    ]
    compare(served(script, run), (expected, True))


def test_what_on_error_is_told_of_a_close_frame() -> None:
    def example(module: Any, url: str) -> Any:
        diary = Diary()
        app = module.WebSocketApp(url, **diary.callbacks())
        app.run_forever()
        (error,) = diary.errors
        if module is compat:
            assert app.last_close_frame.data == b"\x0f\xa1why"
        return error.status_code, error.reason

    compare(served(saying(close_frame(4001, "why")), example), (4001, "why"))


def test_refused() -> None:
    def example(module: Any) -> Any:
        return run(module, "ws://127.0.0.1:1/")

    expected = [("on_error", "ConnectionRefusedError"), ("on_close", None, None)]
    compare(example, (expected, True))


def test_a_name_that_is_not_there() -> None:
    def example(module: Any) -> Any:
        return run(module, "ws://no-such-name.invalid/")

    expected = [("on_error", "WebSocketAddressException"), ("on_close", None, None)]
    compare(example, (expected, True))


def test_a_refused_handshake() -> None:
    def script(connection: RawConnection) -> None:
        connection.read_head()
        connection.sock.sendall(
            b"HTTP/1.1 403 Forbidden\r\nX-Why: Because\r\nContent-Length: 4\r\n\r\nbody"
        )

    def example(module: Any, url: str) -> Any:
        diary = Diary()
        app = module.WebSocketApp(url, **diary.callbacks())
        result = app.run_forever()
        (error,) = diary.errors
        assert isinstance(error, websocket.WebSocketBadStatusException)
        headers = error.resp_headers
        assert headers is not None
        if COMPARABLE:
            assert error.status_message == "Forbidden"
        return diary.events, result, (error.status_code, headers["x-why"], error.resp_body)

    expected = [("on_error", "WebSocketBadStatusException"), ("on_close", None, None)]
    compare(served(script, example), (expected, True, (403, "Because", b"body")))


def test_an_answer_that_is_no_handshake() -> None:
    def script(connection: RawConnection) -> None:
        connection.read_head()
        connection.sock.sendall(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n"
            b"Connection: Upgrade\r\nSec-WebSocket-Accept: bm90aGluZw==\r\n\r\n"
        )

    expected = [("on_error", "WebSocketException"), ("on_close", None, None)]
    compare(served(script, run), (expected, True))


def test_no_answer() -> None:
    def script(connection: RawConnection) -> None:
        connection.read_head()

    expected = [CLOSED, ("on_close", None, None)]
    compare(served(script, run), (expected, True))


def test_close_with_a_code(echo: str) -> None:
    def close(app: Any, message: str) -> None:
        app.close(status=4002, reason="enough")

    def example(module: Any) -> Any:
        return run(module, echo, {**ONE_MESSAGE, "on_message": close})

    compare(example, ([*ONE_MESSAGE_TOLD[:-1], ("on_close", 4002, "enough")], False))


def test_closing_the_socket_itself(echo: str) -> None:
    """No close of the app: an error, as with websocket-client, where the thread is another."""
    events, result = run(compat, echo, {"on_open": lambda app: app.sock.close()})
    assert events == [("on_open",), CLOSED, ("on_close", 1000, None)]
    assert not result


def test_a_close_that_is_not_answered() -> None:
    def example(module: Any, url: str) -> Any:
        begun = time.monotonic()
        result = run(module, url, {"on_message": lambda app, message: app.close(timeout=0.2)})
        assert 0.15 < time.monotonic() - begun < 3
        return result

    def script(connection: RawConnection) -> None:
        connection.upgrade()
        connection.sock.sendall(frame(1, b"hi"))
        connection.read_to_end()

    expected = [*ONE_MESSAGE_TOLD[:-1], ("on_close", None, None)]
    compare(served(script, example), (expected, False))


def test_keep_running(echo: str) -> None:
    """Set to False in a callback, it ends the run."""

    def example(module: Any) -> Any:
        return run(
            module,
            echo,
            {
                "on_open": sending("push 3"),
                "on_message": lambda app, message: setattr(app, "keep_running", False),
            },
            names=("on_open", "on_message", "on_error"),
        )

    compare(example, ([("on_open",), ("on_message", "0")], False))


def test_keep_running_of_another_thread(echo: str) -> None:
    """It ends the run at once; with websocket-client only after up to 10 seconds."""
    app = compat.WebSocketApp(echo)
    timer = threading.Timer(0.1, lambda: setattr(app, "keep_running", False))
    app.on_open = call(timer.start)
    begun = time.monotonic()
    assert app.run_forever() is False
    assert time.monotonic() - begun < 5
    timer.join()


def test_again(echo: str) -> None:
    """The same app may run again, also from its own on_close."""

    def example(module: Any) -> Any:
        diary = Diary()

        def on_close(app: Any, code: Any, reason: Any) -> None:
            if len(diary.of("on_close")) == 1:
                app.run_forever()

        app = module.WebSocketApp(echo, **diary.callbacks(**ONE_MESSAGE, on_close=on_close))
        app.keep_running = True
        return app.run_forever(), app.run_forever(), diary.events

    compare(example, (False, False, ONE_MESSAGE_TOLD * 3))


def test_closing_while_it_opens() -> None:
    """The run ends at once, and that is no error."""
    reached = threading.Event()

    def script(connection: RawConnection) -> None:
        connection.read_head()
        reached.set()
        connection.read_to_end()

    diary = Diary()
    with RawServer(script) as server:
        app = compat.WebSocketApp(server.url, **diary.callbacks())
        thread = threading.Thread(target=lambda: reached.wait(SOON) and app.close())
        thread.start()
        assert app.run_forever(reconnect=30) is False
        thread.join(SOON)
    assert diary.events == [("on_close", None, None)]


def test_two_runs_at_once(echo: str) -> None:
    def example(module: Any) -> Any:
        raised: List[type] = []

        def on_open(app: Any) -> None:
            with pytest.raises(websocket.WebSocketException) as info:
                app.run_forever()
            raised.append(type(info.value))
            app.close()

        module.WebSocketApp(echo, on_open=on_open).run_forever()
        return raised

    compare(example, [websocket.WebSocketException])


def test_suppress_host(echo: str) -> None:
    with pytest.raises(websocket.WebSocketException):
        compat.WebSocketApp(echo).run_forever(suppress_host=True)


# What is received.


def test_control_frames() -> None:
    def example(module: Any, url: str) -> Any:
        return run(module, url, {"on_pong": closing_soon}, names=CONTROL)

    def closing_soon(app: Any, payload: bytes) -> None:
        app.close(timeout=0.1)

    script = saying(frame(9, b"ping"), frame(9), frame(10, b"pong"))
    expected = [("on_ping", b"ping"), ("on_ping", b""), ("on_pong", b"pong")]
    compare(served(script, example), (expected, False))


FRAGMENTS = (
    frame(1, b"first ", fin=False),
    frame(0, b"second ", fin=False),
    frame(0, b"third"),
    frame(2, b"whole"),
    frame(2, b"a", fin=False),
    frame(0, b"b"),
    frame(1, b"end"),
)


def test_fragments() -> None:
    def example(module: Any, url: str) -> Any:
        return run(
            module,
            url,
            {"on_message": lambda app, message: app.close(timeout=0.1) if message == "end" else 0},
            names=("on_data", "on_cont_message"),
        )

    expected = [
        ("on_data", "first ", 1, True),
        ("on_message", "first "),
        ("on_data", b"second ", 0, 0),
        ("on_cont_message", b"second ", 0),
        ("on_data", b"third", 0, 1),
        ("on_cont_message", b"third", 1),
        ("on_data", b"whole", 2, True),
        ("on_message", b"whole"),
        ("on_data", b"a", 2, True),
        ("on_message", b"a"),
        ("on_data", b"b", 0, 1),
        ("on_cont_message", b"b", 1),
        ("on_data", "end", 1, True),
        ("on_message", "end"),
    ]
    compare(served(saying(*FRAGMENTS), example), (expected, False))


def test_fragments_joined() -> None:
    """Without on_cont_message. Compared without the opcode: websocket-client says 0 here."""

    def example(module: Any, url: str) -> Any:
        return run(
            module,
            url,
            {"on_message": lambda app, message: app.close(timeout=0.1) if message == "end" else 0},
            names=("on_message",),
        )

    expected = [
        ("on_message", message) for message in ("first second third", b"whole", b"ab", "end")
    ]
    compare(served(saying(*FRAGMENTS), example), (expected, False))
    events, _ = served(saying(*FRAGMENTS, close_frame()), run)(compat)
    assert [event[2] for event in events if event[0] == "on_data"] == [1, 2, 2, 1]


def test_a_character_cut_in_two() -> None:
    """websocket-client fails on it."""
    events, _ = served(
        saying(frame(1, b"\xc3", fin=False), frame(0, b"\xbc"), close_frame()),
        lambda module, url: run(module, url, names=("on_message", "on_cont_message")),
    )(compat)
    assert events == [("on_message", ""), ("on_cont_message", b"\xc3\xbc", 1)]


def test_skip_utf8_validation() -> None:
    def example(module: Any, url: str) -> Any:
        return run(module, url, names=("on_data", "on_message"), skip_utf8_validation=True)

    script = saying(frame(1, "grün".encode()), close_frame())
    text = "grün".encode()
    compare(served(script, example), ([("on_data", text, 1, True), ("on_message", text)], False))


def test_many_messages_in_order(echo: str) -> None:
    def example(module: Any) -> Any:
        received: List[Any] = []

        def on_message(app: Any, message: Any) -> None:
            received.append(message)
            if len(received) == 3000:
                app.close()

        app = module.WebSocketApp(echo, on_open=sending("push 3000"), on_message=on_message)
        return app.run_forever(), received

    compare(example, (False, [str(number) for number in range(3000)]))


# What is sent.


def test_kinds_of_messages(echo: str) -> None:
    def example(module: Any) -> Any:
        messages: List[Any] = []
        pongs: List[bytes] = []

        def on_open(app: Any) -> None:
            app.send("", websocket.ABNF.OPCODE_PING)
            app.sock.ping("sock ping")
            app.send("text")
            app.send(b"as text")
            app.send_text("send_text")
            app.send_bytes(b"bytes")
            app.send_bytes(bytearray(b"bytearray"))
            app.send(b"binary", websocket.ABNF.OPCODE_BINARY)
            app.sock.send_text("sock")
            app.sock.send_binary(b"sock binary")

        def noting(into: List[Any]) -> Callable[..., None]:
            def note(app: Any, payload: Any) -> None:
                into.append(payload)
                if (len(messages), len(pongs)) == (8, 2):
                    app.close()

            return note

        app = module.WebSocketApp(
            echo, on_open=on_open, on_pong=noting(pongs), on_message=noting(messages)
        )
        app.run_forever()
        return messages, pongs

    expected = ["text", "as text", "send_text", b"bytes", b"bytearray", b"binary", "sock"]
    compare(example, ([*expected, b"sock binary"], [b"", b"sock ping"]))


def test_what_cannot_be_sent(echo: str) -> None:
    raised: List[type] = []

    def on_open(app: Any) -> None:
        for opcode in (websocket.ABNF.OPCODE_CONT, 3):
            with pytest.raises(websocket.WebSocketException) as info:
                app.send("x", opcode)
            raised.append(type(info.value))
        with pytest.raises(UnicodeDecodeError):
            app.send(b"\xff")
        app.send("", websocket.ABNF.OPCODE_PONG)  # every ping is answered already
        app.send(b"\x0f\xa2bye", websocket.ABNF.OPCODE_CLOSE)

    events, _ = run(compat, echo, {"on_open": on_open})
    assert raised == [websocket.WebSocketException] * 2
    assert events[-1] == ("on_close", 4002, "bye")


def test_sending_without_a_connection(echo: str) -> None:
    def example(module: Any) -> Any:
        raised = 0
        app = module.WebSocketApp(echo, on_open=closing)
        for _ in range(2):
            for method in (app.send, app.send_text, app.send_bytes):
                with pytest.raises(websocket.WebSocketConnectionClosedException):
                    method(b"x" if method == app.send_bytes else "x")
                raised += 1
            app.run_forever()
        assert not app.ready()
        return raised

    compare(example, 6)


def test_sending_more_than_a_queue_holds(echo: str) -> None:
    """In a callback: it waits for room, as with websocket-client."""
    count = 20000  # the send queue of a client holds 16384 messages
    received = 0

    def on_open(app: Any) -> None:
        for _ in range(count):
            app.send_bytes(b"x" * 100)

    def on_message(app: Any, message: bytes) -> None:
        nonlocal received
        received += 1
        if received == count:
            app.close()

    app = compat.WebSocketApp(echo, on_open=on_open, on_message=on_message)
    errors: List[BaseException] = []
    app.on_error = lambda app, error: errors.append(error)
    assert app.run_forever() is False
    assert errors == []
    assert received == count


def test_a_send_that_times_out(default_timeout: None) -> None:
    """To a peer that does not read; the callback gets the error, then on_error."""
    stop = threading.Event()

    def script(connection: RawConnection) -> None:
        connection.upgrade()
        stop.wait(SOON)
        connection.reset()

    def on_open(app: Any) -> None:
        assert app.sock.gettimeout() == 0.8
        app.sock.settimeout(0.3)
        assert app.sock.gettimeout() == 0.3
        while True:
            app.send_bytes(b"x" * 1_000_000)

    with RawServer(script) as server:
        events, result = run(
            compat,
            server.url,
            {
                "on_open": on_open,
                "on_error": lambda app, error: app.close(timeout=0.1),
            },
        )
        stop.set()
    assert events == [
        ("on_open",),
        ("on_error", "WebSocketTimeoutException"),
        ("on_close", None, None),
    ]
    assert not result


# What callbacks raise.


def failing(error: BaseException) -> Callable[..., None]:
    def fail(*_: Any) -> None:
        raise error

    return fail


def test_a_callback_that_raises(echo: str) -> None:
    def example(module: Any) -> Any:
        return run(
            module,
            echo,
            {
                "on_open": sending("push 2"),
                "on_message": lambda app, message: closing(app) if message == "1" else 1 / 0,
            },
            names=("on_open", "on_message", "on_error"),
        )

    expected = [
        ("on_open",),
        ("on_message", "0"),
        ("on_error", "ZeroDivisionError"),
        ("on_message", "1"),
    ]
    compare(example, (expected, False))


def test_an_on_error_that_raises(echo: str) -> None:
    """What it raises about another callback ends the run."""

    def example(module: Any) -> Any:
        return run(
            module,
            echo,
            {"on_open": failing(ValueError()), "on_error": failing(KeyError())},
        )

    expected = [
        ("on_open",),
        ("on_error", "ValueError"),
        ("on_error", "KeyError"),
        ("on_close", 1000, None),
    ]
    ours = example(compat)
    assert ours == (expected, True)
    # Here websocket-client does not look at the peer's close frame.
    if COMPARABLE:
        assert theirs(example) == ([*expected[:-1], ("on_close", None, None)], True)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_a_callback_that_ends_the_program(error: type, echo: str) -> None:
    def example(module: Any) -> Any:
        diary = Diary()
        callbacks = diary.callbacks(on_open=sending("hi"), on_message=failing(error()))
        app = module.WebSocketApp(echo, **callbacks)
        raised, result = None, None
        try:
            result = app.run_forever()
        except BaseException as caught:
            raised = type(caught)
        events = [event[:1] if event[0] == "on_close" else event for event in diary.events]
        return events, raised, result, app.sock

    expected = [
        ("on_open",),
        ("on_data", "hi", 1, True),
        ("on_message", "hi"),
        ("on_error", error.__name__),
        ("on_close",),
    ]
    ended = error is SystemExit
    compare(example, (expected, SystemExit if ended else None, None if ended else True, None))


@pytest.mark.skipif(sys.platform == "win32", reason="there is no such signal")
@pytest.mark.parametrize("phase", ["open", "opening", "between"])
def test_ctrl_c(phase: str) -> None:
    """In every wait it ends the run."""

    def script(connection: RawConnection) -> None:
        if phase != "opening":
            connection.upgrade()
        if phase == "between":
            connection.reset()
        reached.set()
        if phase == "opening":
            connection.read_to_end()
        elif phase == "open":
            connection.answer_close()

    reached = threading.Event()
    main = threading.main_thread().ident
    assert main is not None

    def interrupt() -> None:
        if reached.wait(SOON):
            time.sleep(0.2)
            signal.pthread_kill(main, signal.SIGINT)

    diary = Diary()
    with RawServer(script) as server:
        app = compat.WebSocketApp(server.url, **diary.callbacks("on_error", "on_close"))
        thread = threading.Thread(target=interrupt)
        thread.start()
        begun = time.monotonic()
        try:
            assert app.run_forever(reconnect=30 if phase == "between" else 0) is True
        finally:
            thread.join(SOON)
    assert time.monotonic() - begun < 8
    error = "ConnectionResetError" if phase == "between" else "KeyboardInterrupt"
    closed = ("on_close", 1000 if phase == "open" else None, None)
    assert diary.events == [("on_error", error), closed]


# Coming back.


def test_reconnect() -> None:
    """Lost twice, then closed: on_error for the first loss only, on_close once."""

    def example(module: Any) -> Any:
        def script(connection: RawConnection) -> None:
            connection.upgrade()
            if server.connections < 3:
                connection.reset()
            else:
                connection.answer_close()

        urls: List[str] = []
        with RawServer(script) as server:
            result = run(
                module,
                server.url,
                {"on_reconnect": lambda app: closing(app) if server.connections == 3 else None},
                {"header": lambda: urls.append(server.url) or {}},
                reconnect=0.05,
            )
        return result, len(urls)

    expected = [
        ("on_open",),
        ("on_error", "ConnectionResetError"),
        ("on_reconnect",),
        ("on_reconnect",),
        ("on_close", 1000, None),
    ]
    compare(example, ((expected, True), 3))


def test_reconnect_after_a_close_frame(echo: str) -> None:
    """No on_error then; without on_reconnect, on_open is called again."""

    def example(module: Any) -> Any:
        diary = Diary()

        def on_open(app: Any) -> None:
            app.send("close 1000 bye" if len(diary.events) == 1 else "hi")

        callbacks = diary.callbacks(on_open=on_open, on_message=closing)
        del callbacks["on_reconnect"]
        app = module.WebSocketApp(echo, **callbacks)
        return app.run_forever(reconnect=0.05), diary.events

    compare(example, (False, [("on_open",), *ONE_MESSAGE_TOLD]))


def test_reconnect_when_nobody_is_there() -> None:
    """The first failure is told, the others are not."""
    tried: List[int] = []

    def header() -> Any:
        tried.append(1)
        if len(tried) == 3:
            app.close()
        return {}

    diary = Diary()
    app = compat.WebSocketApp("ws://127.0.0.1:1/", header=header, **diary.callbacks())
    assert app.run_forever(reconnect=0.05) is True
    assert diary.events == [("on_error", "ConnectionRefusedError"), ("on_close", None, None)]
    assert len(tried) == 3


def test_closing_between_two_attempts() -> None:
    """It ends the run at once; websocket-client sleeps on, and connects once more."""
    diary = Diary()
    app = compat.WebSocketApp("ws://127.0.0.1:1/", **diary.callbacks())
    timer = threading.Timer(0.2, app.close)
    timer.start()
    begun = time.monotonic()
    app.run_forever(reconnect=30)
    assert time.monotonic() - begun < 10
    assert diary.events == [("on_error", "ConnectionRefusedError"), ("on_close", None, None)]
    timer.join()


def test_set_reconnect() -> None:
    def example(module: Any) -> Any:
        def script(connection: RawConnection) -> None:
            connection.upgrade()
            if server.connections == 2:
                connection.answer_close()

        module.set_reconnect(0.05)
        try:
            with RawServer(script) as server:
                return run(module, server.url, {"on_reconnect": closing}, names=("on_open",))
        finally:
            module.set_reconnect(0)

    compare(example, ([("on_open",), ("on_reconnect",)], True))


# Pings.


def test_a_dead_peer() -> None:
    def example(module: Any, url: str) -> Any:
        return run(module, url, ping_interval=0.4, ping_timeout=0.2)

    expected = [
        ("on_open",),
        ("on_error", "WebSocketTimeoutException"),
        ("on_close", None, None),
    ]
    begun = time.monotonic()
    assert served(saying(), example)(compat) == (expected, True)
    assert time.monotonic() - begun < 3  # websocket-client waits for its answer to a close


def test_a_slow_callback_is_no_dead_peer(echo: str) -> None:
    """Pings go out meanwhile, and a pong that is not delivered yet kills nobody."""
    pongs: List[bytes] = []

    def on_message(app: Any, message: str) -> None:
        before = app.last_ping_tm
        deadline = time.monotonic() + SOON
        while app.last_ping_tm <= before and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.9)

    def on_pong(app: Any, payload: bytes) -> None:
        pongs.append(payload)
        if len(pongs) == 3:
            app.close()

    events, result = run(
        compat,
        echo,
        {"on_open": sending("hi"), "on_message": on_message, "on_pong": on_pong},
        names=("on_error",),
        ping_interval=0.7,
        ping_timeout=0.6,
    )
    assert not result
    assert ("on_error", "WebSocketTimeoutException") not in events
    assert pongs == [b""] * 3


# Release.


@pytest.mark.parametrize("end", ["closed", "lost", "refused", "dispatcher"])
def test_nothing_is_left_to_the_collector(end: str, echo: str) -> None:
    sockets: List[weakref.ref[Any]] = []

    def on_open(app: Any) -> None:
        sockets.append(weakref.ref(app.sock))
        app.send("close 1011 lost" if end == "lost" else "hi")

    app = compat.WebSocketApp(
        "ws://127.0.0.1:1/" if end == "refused" else echo, on_open=on_open, on_message=closing
    )
    before = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        if end == "dispatcher":
            loop = Loop()
            app.run_forever(dispatcher=loop, ping_interval=1)
            loop.dispatch(lambda: not app.keep_running)
            del loop
        else:
            app.run_forever(ping_interval=1)
        assert [one() for one in sockets] == [None] * (end != "refused")
        sockets.append(weakref.ref(app))
        app = None
        assert sockets[-1]() is None
    finally:
        if before:
            gc.enable()


def test_nobody_waits_for_a_callback(echo: str) -> None:
    """close() on another thread returns although a callback waits for that very thread."""
    blocked, closed = threading.Event(), threading.Event()

    def on_message(app: Any, message: str) -> None:
        blocked.set()
        assert closed.wait(SOON)

    app = compat.WebSocketApp(echo, on_open=sending("hi"), on_message=on_message)
    thread = threading.Thread(target=app.run_forever)
    thread.start()
    assert blocked.wait(SOON)
    begun = time.monotonic()
    app.close()
    assert time.monotonic() - begun < 2.5  # 3 seconds would be the time for the peer
    closed.set()
    thread.join(SOON)
    assert not thread.is_alive()
