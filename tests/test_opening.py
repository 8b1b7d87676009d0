"""The opening against real sockets: what it accepts, what it refuses, and what it leaves behind."""

from __future__ import annotations

import base64
import contextlib
import gc
import logging
import socket
import ssl
import threading
import time
import weakref
from pathlib import Path
from typing import Any, Callable, Iterator, List, Optional, Tuple

import h11
import pytest
import websocket
from websockets.sync.server import serve

from tests.support import SOON, Certificates, RawConnection, RawServer, black_hole
from wsthread import opening
from wsthread.errors import ConnectError, ConnectTimeout, HandshakeError
from wsthread.headers import parse_extensions
from wsthread.opening import (
    Opened,
    OpenOptions,
    normalize_headers,
    open_connection,
    parse_url,
)
from wsthread.tcp import resolve
from wsthread.transport import Cancelled, Transport, Waiter, Waker
from wsthread.urls import join_url

kept: List[Any] = []  # weak references to what an opening makes


@pytest.fixture(autouse=True)
def nothing_kept(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Without the collector: note what openings make; all of it is gone when a test ends."""
    for made in (Transport, h11.Connection):
        monkeypatch.setattr(made, "__init__", _noting(made.__init__))
    kept.clear()
    gc.disable()
    try:
        yield
        assert alive() == []
    finally:
        gc.enable()
        kept.clear()


def _noting(original: Callable[..., None]) -> Callable[..., None]:
    def init(self: Any, *args: Any, **keywords: Any) -> None:
        with contextlib.suppress(TypeError):  # a class with slots and without weak references
            kept.append(weakref.ref(self))
        original(self, *args, **keywords)

    return init


def alive() -> List[Any]:
    return [found for found in (reference() for reference in kept) if found is not None]


@pytest.fixture(scope="module")
def certificates() -> Certificates:
    return Certificates()


def open_now(url: str, timeout: float = SOON, **options: Any) -> Opened:
    waiter = Waiter(Waker(), lambda: False, time.monotonic() + timeout)
    return open_connection(url, OpenOptions(**options), waiter)


def refused(url: str, timeout: float = SOON, **options: Any) -> Any:
    """Return the error of an opening that fails; while it is kept, nothing else is."""
    try:
        open_now(url, timeout, **options).transport.close()
    except ConnectError as error:
        assert alive() == []
        return error.with_traceback(None)  # its frames lead back to the test's: a cycle
    raise AssertionError("the connection was opened")


def answering(answer: bytes) -> Callable[[RawConnection], None]:
    """A peer that reads the request, sends `answer` and waits for the end."""

    def script(connection: RawConnection) -> None:
        connection.read_head()
        connection.sock.sendall(answer)
        connection.read_to_end()

    return script


def upgrading(behind: bytes = b"", headers: bytes = b"") -> Callable[[RawConnection], None]:
    """A peer that upgrades and waits for the end."""

    def script(connection: RawConnection) -> None:
        connection.upgrade(behind, headers)
        connection.read_to_end()

    return script


class Requests:
    """A peer that notes the requests and upgrades, or answers what `answers` has for a path."""

    def __init__(self, answers: Optional[dict[str, bytes]] = None) -> None:
        self.heads: List[str] = []
        self.answers = answers or {}

    def __call__(self, connection: RawConnection) -> None:
        head = connection.read_head()
        self.heads.append(head.decode())
        answer = self.answers.get(head.decode().split(" ")[1])
        if answer is None:
            answer = connection.accept_head(head) + b"\r\n"
        connection.sock.sendall(answer)
        connection.read_to_end()

    def fields(self, index: int = -1) -> dict[str, str]:
        lines = self.heads[index].split("\r\n")[1:]
        fields = dict(line.split(": ", 1) for line in lines)
        assert len(fields) == len(lines), "a field is there twice"
        return {name.lower(): value for name, value in fields.items()}

    def target(self, index: int = -1) -> str:
        return self.heads[index].split(" ")[1]


def redirect(location: str, status: int = 302) -> bytes:
    head = f"HTTP/1.1 {status} Moved\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n"
    return head.encode()


def unused_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def resolving(monkeypatch: pytest.MonkeyPatch, *addresses: Tuple[str, int]) -> None:
    """Let the resolver give these addresses for a name, and no answer for anything else."""

    def look_up(host: str, port: int, *args: Any, flags: int = 0, **rest: Any) -> List[Any]:
        if flags & socket.AI_NUMERICHOST:
            raise socket.gaierror(socket.EAI_NONAME, "not numeric")
        assert host == "dual.test"
        return [
            (socket.AF_INET6 if ":" in a[0] else socket.AF_INET, socket.SOCK_STREAM, 6, "", a)
            for a in addresses
        ]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)


# --- success ---


@pytest.mark.parametrize("secure", [False, True])
def test_opens_and_hands_over_what_follows_the_head(
    secure: bool, certificates: Certificates
) -> None:
    behind = b"\x81\x02hi" * 20000
    context = certificates.server_context() if secure else None
    with RawServer(upgrading(behind), context) as server:
        opened = open_now(server.url, ssl_context=certificates.client_context())
        got = opened.leftover
        deadline = time.monotonic() + SOON
        while len(got) < len(behind) and time.monotonic() < deadline:
            got += opened.transport.receive() or b""
        assert got == behind
        assert opened.leftover.startswith(b"\x81\x02hi")
        assert bool(opened.transport._filters) == secure
        assert opened.subprotocol is None
        assert list(opened.extensions) == []
        opened.transport.close()


def test_opens_with_a_real_server() -> None:
    with serve(lambda c: c.send("hello"), "127.0.0.1", 0, subprotocols=["v2.Chat"]) as server:  # type: ignore
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            port = server.socket.getsockname()[1]
            opened = open_now(
                f"ws://127.0.0.1:{port}/",
                subprotocols=["v1", "v2.Chat"],
                offer="permessage-deflate; client_max_window_bits",
                accept=lambda extensions: [name for name, _ in extensions],
            )
            assert opened.subprotocol == "v2.Chat"
            assert opened.agreement == ["permessage-deflate"]
            assert opened.extensions[0][0] == "permessage-deflate"
            assert "Python" in dict(opened.response_headers)["Server"]
            opened.transport.close()
        finally:
            server.shutdown()
            thread.join(SOON)


def test_interim_responses_and_odd_but_right_answers() -> None:
    def script(connection: RawConnection) -> None:
        head = connection.read_head()
        accept = connection.accept_head(head).split(b"Sec-WebSocket-Accept: ")[1]
        connection.sock.sendall(
            b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: <a>\r\n\r\n"
            b"HTTP/1.1 101\r\nconnection: keep-alive, UPGRADE\r\nupgrade: WebSocket\r\n"
            b"sec-websocket-accept:" + accept + b"X-Byte: \xe4\r\n\r\n"
        )
        connection.read_to_end()

    with RawServer(script) as server:
        opened = open_now(server.url)
        assert ("X-Byte", "\xe4") in opened.response_headers
        opened.transport.close()


def test_request_fields() -> None:
    peer = Requests()
    with RawServer(peer) as server:
        url = f"HTTP://us%65r:p%40ss@127.0.0.1:{server.port}/a;b?c=%20\xe4#fragment"
        open_now(
            url,
            headers={"X-Name": " v\xe4lue ", "Cookie": "a=b"},
            origin="https://here.test",
            subprotocols=("one", "two"),
            offer="x; y=1",
        ).transport.close()
        fields = peer.fields()
        assert peer.heads[0].startswith("GET /a;b?c=%20%C3%A4 HTTP/1.1\r\nHost: 127.0.0.1:")
        assert fields["host"] == f"127.0.0.1:{server.port}"
        assert fields["authorization"] == "Basic " + base64.b64encode(b"user:p@ss").decode()
        assert fields["x-name"] == "v\xe4lue"
        assert fields["cookie"] == "a=b"
        assert fields["origin"] == "https://here.test"
        assert fields["sec-websocket-protocol"] == "one, two"
        assert fields["sec-websocket-extensions"] == "x; y=1"
        assert fields["sec-websocket-version"] == "13"
        assert len(base64.b64decode(fields["sec-websocket-key"])) == 16
        assert fields["user-agent"] == "wsthread"

        headers = [("authorization", "Bearer t"), ("user-agent", "me"), ("origin", "null")]
        open_now(url, headers=headers, origin="https://x", host="other.test:1").transport.close()
        fields = peer.fields()
        assert fields["authorization"] == "Bearer t"
        assert fields["user-agent"] == "me"
        assert fields["origin"] == "null"
        assert fields["host"] == "other.test:1"

        open_now(server.url, user_agent=None).transport.close()
        assert set(peer.fields()) == {
            "host",
            "upgrade",
            "connection",
            "sec-websocket-key",
            "sec-websocket-version",
        }


def test_ipv6() -> None:
    listener = socket.socket(socket.AF_INET6)
    try:
        listener.bind(("::1", 0))
    except OSError:
        listener.close()
        pytest.skip("no IPv6 here")
    listener.listen()
    port = listener.getsockname()[1]
    heads = []

    def run() -> None:
        sock, _ = listener.accept()
        connection = RawConnection(sock)
        heads.append(connection.upgrade())
        connection.read_to_end()
        sock.close()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        open_now(f"ws://[0:0::1]:{port}/").transport.close()
    finally:
        thread.join(SOON)
        listener.close()
    assert f"Host: [::1]:{port}\r\n".encode() in heads[0]


def test_promise_14_the_cookie_jar_and_the_log_of_others_see_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """websocket-client may be at work in the same process: all that it has is one for everybody."""
    from websocket._handshake import CookieJar  # noqa: PLC0415

    monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{unused_port()}")
    monkeypatch.setattr(CookieJar, "jar", {})
    CookieJar.add("stale=cookie; Domain=127.0.0.1")
    CookieJar.add("stale=cookie; Domain=host.invalid")
    before = {domain: str(cookie) for domain, cookie in CookieJar.jar.items()}
    assert before
    set_cookie = b"Set-Cookie: stolen=1; Domain=127.0.0.1\r\n"
    heads: List[bytes] = []

    def script(connection: RawConnection) -> None:
        heads.append(connection.upgrade(headers=set_cookie))
        connection.read_to_end()

    caplog.set_level(logging.DEBUG)
    websocket.enableTrace(True, handler=logging.NullHandler())
    try:
        with RawServer(script) as server:
            url = f"ws://user:hidden@127.0.0.1:{server.port}/?token=hidden"
            headers = {"Authorization": "hidden", "Cookie": "hidden=1"}
            opened = open_now(url, headers=headers)
            assert ("Set-Cookie", "stolen=1; Domain=127.0.0.1") in opened.response_headers
            opened.transport.close()
    finally:
        websocket.enableTrace(False)
    assert b"stale" not in heads[0]
    assert {domain: str(cookie) for domain, cookie in CookieJar.jar.items()} == before
    assert not any("hidden" in r.getMessage() or "stolen" in r.getMessage() for r in caplog.records)


def test_promise_15_a_socket_that_is_given_and_blocks_by_a_copy_of_it() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    copied = socket.create_connection(listener.getsockname())
    copied.setblocking(False)
    given = copied.dup()  # its time-out says that it does not block ...
    copied.setblocking(True)  # ... and now it does: that is for all copies
    with listener, copied, contextlib.closing(listener.accept()[0]):
        large = {"X-Large": "x" * 20_000_000}
        with pytest.raises(ConnectTimeout):
            open_now("ws://elsewhere.test/", timeout=0.2, socket=given, headers=large)


def test_a_request_larger_than_the_buffers() -> None:
    peer = Requests()
    with RawServer(peer, receive_buffer=4096) as server:
        large = "x" * 3_000_000
        open_now(
            server.url,
            headers={"X-Large": large},
            sockopt=[(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)],
        ).transport.close()
        assert peer.fields()["x-large"] == large


def test_socket_options_and_local_address() -> None:
    with RawServer(Requests()) as server:
        opened = open_now(
            server.url,
            local_address=("127.0.0.2", 0),
            sockopt=[(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)],
        )
        sock = opened.transport.sock
        assert sock.getsockname()[0] == "127.0.0.2"
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        opened.transport.close()
        del opened
        assert "cannot connect" in str(refused(server.url, local_address=("::1", 0)))
        assert "cannot connect" in str(refused(server.url, sockopt=[("a", "b", "c")]))


def test_given_socket() -> None:
    with RawServer(Requests()) as server:
        given = socket.create_connection(("127.0.0.1", server.port))
        opened = open_now("ws://elsewhere.test/", socket=given)
        assert opened.transport.sock is given
        opened.transport.close()
        del opened
        error = refused("ws://elsewhere.test/", socket=given)
        assert isinstance(error.__cause__, ValueError), "trying it again is of no use"
        fresh = socket.socket()
        refused("ws://elsewhere.test/", socket=fresh)
        assert fresh.fileno() == -1
        fresh = socket.socket()
        refused("bad://elsewhere.test/", socket=fresh)
        assert fresh.fileno() == -1


# --- answers that are refused ---

_OK = {
    "Upgrade": "Upgrade: websocket\r\n",
    "Connection": "Connection: Upgrade\r\n",
    "Accept": "Sec-WebSocket-Accept: {accept}\r\n",
}


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"Accept": "Sec-WebSocket-Accept: {lower}\r\n"}, "Sec-WebSocket-Accept"),
        ({"Accept": "Sec-WebSocket-Accept: AAAA\r\n"}, "Sec-WebSocket-Accept"),
        ({"Accept": ""}, "Sec-WebSocket-Accept"),
        ({"Accept": "Sec-WebSocket-Accept: {accept}\r\n" * 2}, "Sec-WebSocket-Accept"),
        ({"Upgrade": ""}, "Upgrade"),
        ({"Upgrade": "Upgrade: websocket\r\n" * 2}, "Upgrade"),
        ({"Upgrade": "Upgrade: h2c, websocket\r\n"}, "Upgrade"),
        ({"Connection": ""}, "Connection"),
        ({"Connection": "Connection: close\r\n"}, "Connection"),
        ({"More": "Sec-WebSocket-Protocol: a\r\n"}, None),
        ({"More": "Sec-WebSocket-Protocol: A\r\n"}, "subprotocol 'A'"),
        ({"More": "Sec-WebSocket-Protocol: a, b\r\n"}, "subprotocol 'a, b'"),
        ({"More": "Sec-WebSocket-Protocol: \r\n"}, "subprotocol ''"),
        ({"More": "Sec-WebSocket-Protocol: a\r\nSec-WebSocket-Protocol: a\r\n"}, "more than one"),
        ({"More": "Sec-WebSocket-Extensions: offered; p\r\n"}, None),
        ({"More": "Sec-WebSocket-Extensions: x-other\r\n"}, "'x-other'"),
        ({"More": "Sec-WebSocket-Extensions: offered; =1\r\n"}, "malformed"),
        ({"More": "Sec-WebSocket-Extensions: offered; refuse\r\n"}, "hook"),
        ({"Version": "HTTP/1.0"}, "HTTP/1.1"),
    ],
)
def test_the_101_is_checked_strictly(changes: dict[str, str], text: Optional[str]) -> None:
    def script(connection: RawConnection) -> None:
        made = connection.accept_head(connection.read_head()).decode()
        accept = made.split("Sec-WebSocket-Accept: ")[1].strip()
        parts = {**_OK, "More": "", "Version": "HTTP/1.1", **changes}
        head = f"{parts.pop('Version')} 101 Switching\r\n{''.join(parts.values())}\r\n"
        connection.sock.sendall(head.format(accept=accept, lower=accept.lower()).encode())
        connection.read_to_end()

    def accept(extensions: Any) -> None:
        if extensions and ("refuse", None) in extensions[0][1]:
            raise ValueError("the hook says no")

    options = {"subprotocols": ["b", "a"], "offer": "offered", "accept": accept}
    with RawServer(script) as server:
        if text is None:
            open_now(server.url, **options).transport.close()
        else:
            error = refused(server.url, **options)
            assert isinstance(error, HandshakeError)
            assert error.status == 101
            assert text in str(error)


@pytest.mark.parametrize("offer", [None, "other"])
def test_an_extension_that_was_not_asked_for(offer: Optional[str]) -> None:
    headers = b"Sec-WebSocket-Extensions: permessage-deflate\r\n"
    with RawServer(upgrading(headers=headers)) as server:
        assert "permessage-deflate" in str(refused(server.url, offer=offer))


def test_a_refusal_carries_status_headers_and_body() -> None:
    answer = b"HTTP/1.1 403 No Way\r\nRetry-After: 5\r\nContent-Length: 4\r\n\r\nbody"
    with RawServer(answering(answer)) as server:
        started = time.monotonic()
        error = refused(server.url)
        assert isinstance(error, HandshakeError)
        assert (error.status, error.body) == (403, b"body")
        assert ("Retry-After", "5") in error.headers
        assert str(error) == "the server answered 403 No Way"
        assert time.monotonic() - started < 0.9, "a body that is complete is not waited for"


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 500 X\r\nContent-Length: 10737418240\r\n\r\n",
        b"HTTP/1.1 500 X\r\nTransfer-Encoding: chunked\r\n\r\n40000000\r\n",
        b"HTTP/1.1 500 X\r\n\r\n",
    ],
)
def test_an_endless_body_is_cut(head: bytes) -> None:
    ended = threading.Event()

    def script(connection: RawConnection) -> None:
        connection.read_head()
        connection.sock.sendall(head)
        try:
            while True:
                connection.sock.sendall(b"x" * 65536)
        finally:
            ended.set()

    with RawServer(script) as server:
        error = refused(server.url)
        assert (error.status, error.body) == (500, b"x" * 4096)
        assert ended.wait(SOON)


@pytest.mark.parametrize("timeout", [0.4, SOON])
def test_a_body_that_does_not_come_is_not_waited_for_long(timeout: float) -> None:
    answer = b"HTTP/1.1 503 Later\r\nContent-Length: 10\r\n\r\nabc"
    with RawServer(answering(answer)) as server:
        started = time.monotonic()
        error = refused(server.url, timeout)
        assert (error.status, error.body) == (503, b"abc")
        assert time.monotonic() - started < 3


@pytest.mark.parametrize(
    ("endless", "text"),
    [
        (b"X-Header: value\r\n", "longer than 65536"),
        (b"x" * 1000, "longer than 65536"),
        (b"HTTP/1.1 103 Early Hints\r\n\r\n", "interim"),
        (b"HTTP/1.1 100 Continue\r\nX: " + b"y" * 30000 + b"\r\n\r\n", "longer than 65536"),
    ],
)
def test_an_endless_head_is_refused(endless: bytes, text: str) -> None:
    def script(connection: RawConnection) -> None:
        connection.read_head()
        connection.sock.sendall(b"HTTP/1.1 100 Continue\r\n")
        if endless.startswith(b"HTTP"):
            connection.sock.sendall(b"\r\n")
        while True:
            connection.sock.sendall(endless)

    with RawServer(script) as server:
        error = refused(server.url)
        assert isinstance(error, HandshakeError)
        assert text in str(error)


@pytest.mark.parametrize(("count", "good"), [(8, True), (9, False)])
def test_interim_responses_are_counted(count: int, good: bool) -> None:
    def script(connection: RawConnection) -> None:
        connection.sock.sendall(b"HTTP/1.1 103 X\r\n\r\n" * count)
        connection.upgrade()
        connection.read_to_end()

    with RawServer(script) as server:
        if good:
            open_now(server.url).transport.close()
        else:
            assert "more than 8 interim responses" in str(refused(server.url))


def test_what_follows_the_head_does_not_count_as_head() -> None:
    def script(connection: RawConnection) -> None:
        head = connection.accept_head(connection.read_head())
        connection.sock.sendall(head + b"X: " + b"y" * 30000)
        time.sleep(0.1)  # so that the rest is most likely another read
        connection.sock.sendall(b"\r\n\r\n" + b"\x82\x01x" * 30000)
        connection.read_to_end()

    with RawServer(script) as server:
        open_now(server.url).transport.close()


def test_a_head_just_over_the_bound_is_refused() -> None:
    for size, good in ((64000, True), (65536, False)):
        headers = b"X: " + b"y" * size + b"\r\n"
        with RawServer(upgrading(headers=headers)) as server:
            if good:
                open_now(server.url).transport.close()
            else:
                assert "longer than 65536" in str(refused(server.url))


def test_a_head_that_ends_just_over_the_bound_is_refused(certificates: Certificates) -> None:
    def script(connection: RawConnection) -> None:
        head = connection.accept_head(connection.read_head()) + b"X: "
        connection.sock.sendall(head + b"y" * (60000 - len(head)))
        # One TLS record: the bytes read go from below the bound to a whole head beyond it.
        connection.sock.sendall(b"y" * 10000 + b"\r\n\r\n")
        connection.read_to_end()

    with RawServer(script, certificates.server_context()) as server:
        error = refused(server.url, ssl_context=certificates.client_context())
        assert "longer than 65536" in str(error)


@pytest.mark.parametrize(
    "answer",
    [
        b"\x16\x03\x01\x02\x00garbage\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
        b"HTTP/1.1 abc\r\n\r\n",
        b"HTTP/1.1 101 X\r\nno colon\r\n\r\n",
        b"HTTP/1.1 403 X\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"\r\n\r\n",
        b"\0" * 100 + b"\n\n",
    ],
)
def test_garbage_is_refused(answer: bytes) -> None:
    with RawServer(answering(answer)) as server:
        error = refused(server.url)
        assert isinstance(error, HandshakeError)
        assert error.status is None
        assert "no valid HTTP" in str(error)


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 101 Switch"])
@pytest.mark.parametrize("reset", [False, True])
def test_a_server_that_hangs_up(answer: bytes, reset: bool) -> None:
    def script(connection: RawConnection) -> None:
        connection.read_head()
        connection.sock.sendall(answer)
        if reset:
            connection.reset()

    with RawServer(script) as server:
        error = refused(server.url)
        assert "closed the connection" in str(error) or "broke" in str(error)
        assert not isinstance(error.__cause__, ValueError), "it may be tried again"


# --- the deadline, and cancelling ---


@pytest.mark.parametrize("phase", ["head", "tls", "write"])
def test_the_deadline_bounds_a_drip(phase: str, certificates: Certificates) -> None:
    def script(connection: RawConnection) -> None:
        if phase == "head":
            connection.read_head()
            data = b"HTTP/1.1 101 Switching Protocols\r\n" + b"X: y\r\n" * 1000
        else:
            data = b"\x16\x03\x03\x40\x00\x02\x00\x3f\xfc" + b"\0" * 10000
        for byte in data:
            connection.sock.sendall(bytes([byte]))
            time.sleep(0.02)

    def wedge(connection: RawConnection) -> None:
        time.sleep(1.0)  # reads nothing

    with RawServer(wedge if phase == "write" else script, receive_buffer=4096) as server:
        scheme = "wss" if phase == "tls" else "ws"
        started = time.monotonic()
        error = refused(
            f"{scheme}://127.0.0.1:{server.port}/",
            0.5,
            headers={"X": "x" * (3_000_000 if phase == "write" else 1)},
            sockopt=[(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)],
        )
        assert 0.45 < time.monotonic() - started < 2
        assert isinstance(error, ConnectTimeout)


@pytest.mark.parametrize("phase", ["resolve", "tcp", "tls", "head", "body"])
def test_cancelling(phase: str, monkeypatch: pytest.MonkeyPatch) -> None:
    reached = threading.Event()
    released = threading.Event()
    cancelled = threading.Event()
    waker = Waker()
    outcome: List[Any] = []

    def script(connection: RawConnection) -> None:
        if phase == "tls":
            connection.sock.recv(1)
        else:
            connection.read_head()
        if phase == "body":
            connection.sock.sendall(b"HTTP/1.1 500 X\r\nContent-Length: 9\r\n\r\n")
        reached.set()
        connection.read_to_end()

    def look_up(host: str, port: int, *args: Any, flags: int = 0, **rest: Any) -> List[Any]:
        if flags:
            raise socket.gaierror
        reached.set()
        if phase == "resolve":
            released.wait(SOON * 2)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", hole)]

    def run() -> None:
        waiter = Waiter(waker, cancelled.is_set, time.monotonic() + SOON * 2)
        try:
            outcome.append(open_connection(url, OpenOptions(), waiter))
        except BaseException as error:
            outcome.append(type(error))

    with contextlib.ExitStack() as stack:
        stack.callback(released.set)
        if phase in ("resolve", "tcp"):
            hole = stack.enter_context(black_hole())
            monkeypatch.setattr(socket, "getaddrinfo", look_up)
            url = "ws://name.test/"
        else:
            server = stack.enter_context(RawServer(script))
            url = f"{'wss' if phase == 'tls' else 'ws'}://127.0.0.1:{server.port}/"
        thread = threading.Thread(target=run)
        thread.start()
        assert reached.wait(SOON)
        started = time.monotonic()
        cancelled.set()
        waker.wake()
        thread.join(SOON)
        assert not thread.is_alive()
        assert time.monotonic() - started < 0.5
        assert outcome == [Cancelled]
        assert alive() == []


# --- TCP ---


def test_a_dead_address_costs_a_quarter_of_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    with black_hole() as hole, RawServer(Requests()) as server:
        resolving(monkeypatch, hole, ("127.0.0.1", server.port))
        started = time.monotonic()
        open_now("ws://dual.test/").transport.close()
        assert 0.24 < time.monotonic() - started < 1


def test_a_refused_address_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    with RawServer(Requests()) as server:
        closed = [("127.0.0.1", unused_port()) for _ in range(4)]
        resolving(monkeypatch, *closed, ("127.0.0.1", server.port))
        started = time.monotonic()
        open_now("ws://dual.test/").transport.close()
        assert time.monotonic() - started < 0.2


def test_a_refused_address_behind_a_dead_one_costs_nothing_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with black_hole() as hole, RawServer(Requests()) as server:
        closed = [("127.0.0.1", unused_port()) for _ in range(4)]
        resolving(monkeypatch, hole, *closed, ("127.0.0.1", server.port))
        started = time.monotonic()
        open_now("ws://dual.test/").transport.close()
        assert 0.24 < time.monotonic() - started < 0.5


def test_dead_addresses_end_at_the_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    with black_hole() as first, black_hole() as second:
        resolving(monkeypatch, first, second)
        assert isinstance(refused("ws://dual.test/", 0.6), ConnectTimeout)


def test_the_error_says_what_each_address_said(monkeypatch: pytest.MonkeyPatch) -> None:
    resolving(monkeypatch, ("127.0.0.1", unused_port()), ("127.0.0.2", unused_port()))
    error = refused("ws://dual.test:99/")
    assert str(error).startswith("cannot connect to dual.test:99: 127.0.0.1: ")
    assert str(error).count("Connection refused") == 2
    assert isinstance(error.__cause__, ConnectionRefusedError)


def test_families_alternate(monkeypatch: pytest.MonkeyPatch) -> None:
    given = [("::1", 1), ("::2", 1), ("::3", 1), ("127.0.0.1", 1), ("127.0.0.2", 1)]
    resolving(monkeypatch, *given)
    waiter = Waiter(Waker(), lambda: False, time.monotonic() + SOON)
    found = [address[0] for _, address in resolve("dual.test", 1, waiter)]
    assert found == ["::1", "127.0.0.1", "::2", "127.0.0.2", "::3"]


def test_a_name_that_does_not_resolve(monkeypatch: pytest.MonkeyPatch) -> None:
    def look_up(*args: Any, **rest: Any) -> List[Any]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    error = refused("ws://nowhere.test/")
    assert str(error) == "cannot resolve nowhere.test: Name or service not known"
    assert isinstance(error.__cause__, socket.gaierror)
    assert error.__cause__.__traceback__ is None


# --- TLS ---


def test_an_untrusted_certificate(certificates: Certificates) -> None:
    with RawServer(Requests(), certificates.server_context()) as server:
        error = refused(server.url)
        assert "certificate of 127.0.0.1 is refused" in str(error)
        assert isinstance(error.__cause__, ssl.SSLCertVerificationError)


def test_a_certificate_for_another_name(
    certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    with RawServer(Requests(), certificates.server_context()) as server:
        context = certificates.client_context()
        resolving(monkeypatch, ("127.0.0.1", server.port))
        error = refused("wss://dual.test/", ssl_context=context)
        assert "dual.test" in str(error)
        assert isinstance(error.__cause__, ssl.SSLCertVerificationError)


def test_tls_to_a_plain_server_and_the_other_way_round(certificates: Certificates) -> None:
    answer = b"HTTP/1.1 400 Bad Request\r\n\r\n"

    def script(connection: RawConnection) -> None:
        connection.sock.recv(100)
        connection.sock.sendall(answer)

    with RawServer(script) as server:
        error = refused(f"wss://127.0.0.1:{server.port}/")
        assert "TLS with 127.0.0.1 failed" in str(error)
        assert isinstance(error.__cause__, ssl.SSLError)
    with RawServer(lambda c: None) as server:
        error = refused(f"wss://127.0.0.1:{server.port}/")
        assert "TLS" in str(error)
    with RawServer(Requests(), certificates.server_context()) as server:
        refused(f"ws://127.0.0.1:{server.port}/")


def test_the_server_is_told_why_its_certificate_is_refused(certificates: Certificates) -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    said: List[BaseException] = []

    def run() -> None:
        sock, _ = listener.accept()
        sock.settimeout(SOON)
        try:
            with certificates.server_context().wrap_socket(sock, server_side=True) as tls:
                tls.recv(1)
        except OSError as error:
            said.append(error)
            sock.close()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        refused(f"wss://127.0.0.1:{listener.getsockname()[1]}/")
    finally:
        thread.join(SOON)
        listener.close()
    assert isinstance(said[0], ssl.SSLError)
    assert "ALERT_UNKNOWN_CA" in str(said[0])


# --- redirects ---


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_relative_redirect_keeps_everything(status: int) -> None:
    peer = Requests({"/a/b?c": redirect("../d;e?f#g", status)})
    with RawServer(peer) as server:
        url = f"ws://user:pass@127.0.0.1:{server.port}/a/b?c"
        options = {"headers": {"X-Mine": "1"}, "origin": "https://o", "host": "h.test"}
        open_now(url, subprotocols=["s"], **options).transport.close()
        assert peer.target(1) == "/d;e?f"
        first, second = peer.fields(0), peer.fields(1)
        assert first.pop("sec-websocket-key") != second.pop("sec-websocket-key")
        assert first == second
        assert "authorization" in second


@pytest.mark.parametrize("scheme", ["ws", "http"])
def test_another_origin_is_told_nothing(scheme: str) -> None:
    other = Requests()
    with RawServer(other) as target:
        location = f"{scheme}://their:word@127.0.0.1:{target.port}/there"
        with RawServer(Requests({"/": redirect(location)})) as server:
            open_now(
                f"ws://user:secret@127.0.0.1:{server.port}/",
                headers={"X-Mine": "1", "Cookie": "c=1", "Authorization": "secret"},
                origin="https://secret.test",
                host="secret.test",
                subprotocols=["s"],
            ).transport.close()
        assert other.target() == "/there"
        fields = other.fields()
        assert fields.pop("host") == f"127.0.0.1:{target.port}"
        fields.pop("sec-websocket-key")
        assert fields == {
            "upgrade": "websocket",
            "connection": "Upgrade",
            "sec-websocket-version": "13",
            "sec-websocket-protocol": "s",
            "user-agent": "wsthread",
        }


def test_another_origin_sees_no_client_certificate(
    certificates: Certificates,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """The user's context stays behind: a default one, which trusts other authorities, is used."""
    with RawServer(Requests(), certificates.server_context()) as target:
        peer = Requests({"/": redirect(target.url)})
        with RawServer(peer, certificates.server_context()) as server:
            error = refused(server.url, ssl_context=certificates.client_context())
            assert isinstance(error.__cause__, ssl.SSLCertVerificationError)
            # The same hop, with what the default context trusts.
            monkeypatch.setenv("SSL_CERT_FILE", certificates.write_authority(tmp_path))
            opening._create_context.cache_clear()
            try:
                open_now(server.url, ssl_context=certificates.client_context()).transport.close()
            finally:
                opening._create_context.cache_clear()


def test_plain_to_tls_on_the_same_port_number_keeps_the_headers() -> None:
    plain = parse_url("ws://u:p@Example.org/a")
    assert plain.same_origin(join_url(plain, "wss://example.org/b"))
    assert plain.same_origin(join_url(plain, "//example.org:80/b"))
    assert not plain.same_origin(join_url(plain, "wss://example.org:444/"))
    assert not plain.same_origin(join_url(plain, "wss://www.example.org/"))
    assert not plain.same_origin(join_url(plain, "ws://example.org:8080/"))
    odd = parse_url("ws://example.org:8080/a")
    assert odd.same_origin(join_url(odd, "https://example.org:8080/"))
    assert not odd.same_origin(join_url(odd, "https://example.org/"))
    secure = parse_url("wss://example.org:8080/a")
    assert not secure.same_origin(odd)


@pytest.mark.parametrize(
    ("location", "text"),
    [
        ("ws://127.0.0.1:1/", "from TLS to plain text"),
        ("http://127.0.0.1:1/", "from TLS to plain text"),
        ("ftp://127.0.0.1/", "scheme"),
        ("file:///etc/passwd", "scheme"),
        ("javascript:alert(1)", "form"),
        ("wss://:1/", "no host"),
        ("wss://[::1/", "malformed"),
        ("wss://127.0.0.1:99999/", "port"),
        ("/white space", "white space"),
    ],
)
def test_refused_redirects(location: str, text: str, certificates: Certificates) -> None:
    peer = Requests({"/": redirect(location)})
    with RawServer(peer, certificates.server_context()) as server:
        error = refused(server.url, ssl_context=certificates.client_context())
        assert isinstance(error, HandshakeError)
        assert error.status == 302
        assert ("Location", location) in error.headers
        assert text in str(error)
        assert server.connections == 1


@pytest.mark.parametrize("most", [0, 1, 3])
def test_too_many_redirects(most: int) -> None:
    with RawServer(Requests({"/": redirect("/")})) as server:
        error = refused(server.url, max_redirects=most)
        assert isinstance(error, HandshakeError)
        assert error.status == 302
        assert f"more than {most} times" in str(error)
        assert server.connections == most + 1


def test_a_redirect_without_location_and_one_with_a_body() -> None:
    answers = {"/": b"HTTP/1.1 302 X\r\n\r\n", "/slow": redirect("/on").replace(b": 0", b": 99")}
    with RawServer(Requests(answers)) as server:
        assert refused(server.url).status == 302
        started = time.monotonic()
        open_now(server.url + "slow").transport.close()
        assert time.monotonic() - started < 0.9, "the body of a redirect is not waited for"


def test_a_given_socket_is_good_for_one_hop() -> None:
    peer = Requests()
    with RawServer(peer) as server:
        answer = redirect(f"ws://127.0.0.1:{server.port}/second")
        with RawServer(Requests({"/": answer})) as first:
            given = socket.create_connection(("127.0.0.1", first.port))
            opened = open_now("ws://elsewhere.test/", socket=given)
            assert given.fileno() == -1
            assert opened.transport.sock is not given
            opened.transport.close()
        assert peer.target() == "/second"


# --- values ---


@pytest.mark.parametrize(
    ("url", "expected", "authority"),
    [
        ("ws://h", (False, "h", 80, "/"), "h"),
        ("WSS://H.Example.", (True, "h.example.", 443, "/"), "h.example."),
        ("ws://h:443/", (False, "h", 443, "/"), "h:443"),
        ("ws://h:80?q", (False, "h", 80, "/?q"), "h"),
        ("https://h:/p#f?x", (True, "h", 443, "/p"), "h"),
        ("http://h:8080/%2f?a=/?", (False, "h", 8080, "/%2f?a=/?"), "h:8080"),
        ("ws://127.0.0.1/", (False, "127.0.0.1", 80, "/"), "127.0.0.1"),
        ("ws://[2001:DB8::0:1]:1", (False, "2001:db8::1", 1, "/"), "[2001:db8::1]:1"),
        ("ws://[fe80::1%25eth0]/", (False, "fe80::1%eth0", 80, "/"), "[fe80::1]"),
        ("ws://b\xfccher.example/\xfc", (False, "xn--bcher-kva.example", 80, "/%C3%BC"), None),
        ("ws://a_b.c/", (False, "a_b.c", 80, "/"), "a_b.c"),
    ],
)
def test_good_urls(url: str, expected: Any, authority: Optional[str]) -> None:
    target = parse_url(url)
    assert (target.secure, target.host, target.port, target.resource) == expected
    assert target.authorization is None
    assert authority is None or target.authority == authority


@pytest.mark.parametrize(
    "url",
    [
        "",
        "h",
        "ws:h",
        "ws:/h",
        "//h",
        "ws://",
        "ws:///path",
        "ws://:80/",
        "ws://user@/",
        "ftp://h/",
        "unix:///x",
        "ws://h:0/",
        "ws://h:65536/",
        "ws://h:-1/",
        "ws://h:1:2/",
        "ws://h:x/",
        "ws://h:\u0661/",
        "ws://h /",
        " ws://h/",
        "ws://h/\n",
        "ws://h/a b",
        "ws://h\r\nX: y/",
        "ws://h/\x7f",
        "ws://h/\ud800",
        "ws://\ud800/",
        "ws://[::1/",
        "ws://::1/",
        "ws://[h]/",
        "ws://[::1]x/",
        "ws://[::1%25/x]/",
        "ws://.h/",
        "ws://a..b/",
        "ws://-h/",
        "ws://h%41/",
        "ws://h\\@other/",
        "ws://1.2.3/",
        "ws://256.1.1.1/",
        "ws://127.0.0.0x1/",
        "ws://" + "a" * 64 + "/",
        "ws://" + "a." * 200 + "/",
        "ws://" + "\xfc" * 300 + "/",
        None,
        b"ws://h/",
    ],
)
def test_bad_urls(url: Any) -> None:
    error = refused(url)
    assert isinstance(error.__cause__, ValueError)
    assert str(error)


def test_no_secret_in_errors_and_representations() -> None:
    for url in ("ws://u:secret@h:0/", "ws://u:secret@/x", "ws://u:secret@-/", "ws://u:sec/ret@h/"):
        assert "sec" not in str(refused(url))
    assert "c2VjcmV0" not in repr(parse_url("ws://secret:x@h/"))
    assert "Basic" not in repr(parse_url("ws://secret:x@h/"))


def test_normalize_headers() -> None:
    assert normalize_headers(None) == []
    assert normalize_headers({"A": " b\t"}) == [("A", "b")]
    assert normalize_headers([("A", "1"), ["a", "2"]]) == [("A", "1"), ("a", "2")]
    assert normalize_headers(iter([("A", "")])) == [("A", "")]


@pytest.mark.parametrize(
    ("headers", "error"),
    [
        ("A: b", TypeError),
        (b"A: b", TypeError),
        (5, TypeError),
        (["A: b"], TypeError),
        ([("A",)], TypeError),
        ({"A": 1}, TypeError),
        ({b"A": "b"}, TypeError),
        ({"A": None}, TypeError),
        ({"A b": "c"}, ValueError),
        ({"": "c"}, ValueError),
        ({"A:": "c"}, ValueError),
        ({"\xe4": "c"}, ValueError),
        ({"A": "secret\r\nX: y"}, ValueError),
        ({"A": "secret\0"}, ValueError),
        ({"A": "secret\ud800"}, ValueError),
        ({"Host": "h"}, ValueError),
        ({"connection": "h"}, ValueError),
        ({"Upgrade": "h"}, ValueError),
        ({"Content-Length": "1"}, ValueError),
        ({"Transfer-Encoding": "chunked"}, ValueError),
        ({"sec-websocket-key": "h"}, ValueError),
        ({"Sec-WebSocket-Protocol": "h"}, ValueError),
    ],
)
def test_bad_headers(headers: Any, error: Any) -> None:
    with pytest.raises(error) as found:
        OpenOptions(headers=headers)
    assert "secret" not in str(found.value)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"subprotocols": "abc"}, TypeError),
        ({"subprotocols": [1]}, TypeError),
        ({"subprotocols": ["a b"]}, ValueError),
        ({"subprotocols": [""]}, ValueError),
        ({"subprotocols": ["a", "a"]}, ValueError),
        ({"origin": 1}, TypeError),
        ({"origin": "a\r\nb"}, ValueError),
        ({"host": ""}, ValueError),
        ({"host": "a\nb"}, ValueError),
        ({"user_agent": "a\nb"}, ValueError),
        ({"offer": "a;"}, ValueError),
        ({"max_redirects": -1}, ValueError),
        ({"max_redirects": "1"}, TypeError),
        ({"max_redirects": True}, TypeError),
        ({"ssl_context": True}, TypeError),
        ({"socket": 5}, TypeError),
        ({"sockopt": [(1, 2)]}, ValueError),
        ({"local_address": ("localhost", 0)}, ValueError),
        ({"local_address": ("127.0.0.1", 70000)}, ValueError),
    ],
)
def test_bad_options(options: Any, error: Any) -> None:
    with pytest.raises(error):
        OpenOptions(**options)


def test_parse_extensions() -> None:
    assert parse_extensions("") == []
    assert parse_extensions(' , a ,b ; c;d = e ; f="g" ,, a;h="i\\j",') == [
        ("a", []),
        ("b", [("c", None), ("d", "e"), ("f", "g")]),
        ("a", [("h", "ij")]),
    ]
    for bad in (
        "a b",
        "a;",
        "a; ;b",
        "a; b=",
        'a; b="',
        'a; b=""',
        'a; b="c d"',
        ";a",
        "a; b=c d",
        "\xe4",
    ):
        with pytest.raises(ValueError):
            parse_extensions(bad)
