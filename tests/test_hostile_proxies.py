"""Proxies that refuse, hang, drip, lie or talk nonsense: raw peers, byte by byte."""

from __future__ import annotations

import contextlib
import functools
import logging
import socket
import ssl
import threading
import time
from typing import Any, Callable, Iterator, List, Optional, Tuple

import pytest

import wsthread
from tests.proxy_server import LOGIN, PASSWORD, USER, assert_no_secret
from tests.support import SOON, Certificates, RawConnection, RawServer, frame
from tests.test_opening import (
    alive,
    black_hole,
    nothing_kept,  # noqa: F401 - an autouse fixture
    refused,
)
from wsthread import tcp
from wsthread.errors import ConnectError, ConnectTimeout, HandshakeError, ProxyError
from wsthread.reconnect import retried

SCHEMES = ["http", "https", "socks4", "socks4a", "socks5", "socks5h"]
Script = Callable[[RawConnection], None]


@pytest.fixture(scope="module")
def certificates() -> Certificates:
    return Certificates()


@pytest.fixture(autouse=True)
def no_secret_in_the_log(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    caplog.set_level(logging.DEBUG)
    yield
    assert not any(secret in caplog.text for secret in (USER, PASSWORD, "S3same"))


@functools.lru_cache(1)  # they take a while to make
def contexts(certificates: Certificates) -> Tuple[ssl.SSLContext, ssl.SSLContext]:
    """The TLS contexts of clients and of servers."""
    return certificates.client_context(), certificates.server_context()


@contextlib.contextmanager
def hostile(scheme: str, script: Script, certificates: Certificates) -> Iterator[Any]:
    """A proxy that does as the script says; gives the client's settings for it."""
    trust, context = contexts(certificates)
    with RawServer(script, context if scheme == "https" else None) as server:
        yield {
            "proxy": f"{scheme}://{LOGIN}127.0.0.1:{server.port}",
            "proxy_ssl_context": trust,
            "ssl_context": trust,
        }


def refused_by(
    scheme: str,
    script: Script,
    certificates: Certificates,
    url: str = "ws://127.0.0.1:9/",
    timeout: float = SOON,
) -> Any:
    """Return the error of an opening through such a proxy. It quotes no secret."""
    with hostile(scheme, script, certificates) as options:
        error = refused(url, timeout, **options)
    assert_no_secret(error)
    assert_no_secret(wsthread.errors.raisable(error))
    return error


# What a proxy reads of the client, in order.


def read_request(scheme: str, connection: RawConnection) -> None:
    """Read all that a client says before the last answer; answer what comes in between."""
    if scheme.startswith("http"):
        connection.read_head()
    elif scheme.startswith("socks4"):
        connection._exactly(8)
        while connection._exactly(1) != b"\0":
            pass  # the user; the target is an address, so nothing more comes with SOCKS4a either
    else:
        read_login(connection)
        connection.sock.sendall(b"\x01\x00")
        read_command(connection)


def read_login(connection: RawConnection) -> None:
    version, count = connection._exactly(2)
    assert version == 5
    assert connection._exactly(count) == b"\x00\x02"
    connection.sock.sendall(b"\x05\x02")
    assert connection._exactly(1) == b"\x01"
    for expected in (USER, PASSWORD):
        assert connection._exactly(connection._exactly(1)[0]).decode() == expected


def read_command(connection: RawConnection) -> None:
    head = connection._exactly(4)
    assert head[:3] == b"\x05\x01\x00"
    connection._exactly((connection._exactly(1)[0] if head[3] == 3 else {1: 4, 4: 16}[head[3]]) + 2)


GRANTED = {
    "http": b"HTTP/1.1 200 OK\r\n\r\n",
    "https": b"HTTP/1.1 200 OK\r\n\r\n",
    "socks4": b"\0\x5a" + bytes(6),
    "socks4a": b"\0\x5a\x12\x34\x7f\0\0\x01",
    "socks5": b"\x05\0\0\x01" + bytes(6),
    "socks5h": b"\x05\0\0\x04" + bytes(18),
}


def answering(scheme: str, answer: bytes, reset: bool = False, end: bool = False) -> Script:
    """A proxy that reads the request and says this; then it waits, ends or resets."""

    def script(connection: RawConnection) -> None:
        read_request(scheme, connection)
        connection.sock.sendall(answer)
        if reset:
            connection.reset()
        elif not end:
            connection.read_to_end()

    return script


def being_the_server(scheme: str, answer: bytes, chunk: int = 0) -> Script:
    """A proxy that answers this, in pieces of so many bytes, and is the server then."""

    def script(connection: RawConnection) -> None:
        read_request(scheme, connection)
        connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for start in range(0, len(answer), chunk or len(answer)):
            connection.sock.sendall(answer[start : start + (chunk or len(answer))])
            time.sleep(0.001)
        connection.upgrade(behind=frame(1, b"hello"))
        connection.answer_close()

    return script


# --- answers that are right, if odd ---


@pytest.mark.parametrize("chunk", [0, 1])
@pytest.mark.parametrize(
    ("scheme", "answer"),
    [
        *GRANTED.items(),
        ("http", b"HTTP/1.0 200 Connection established\r\nServer: x\r\n\r\n"),
        ("http", b"HTTP/1.1 204\r\n\r\n"),
        ("http", b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n"),
        ("https", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"),
        (
            "http",
            b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 X\r\nA: b\r\n\r\nHTTP/1.1 200 O\r\n\r\n",
        ),
        ("socks5", b"\x05\0\0\x03\x09localhost\x12\x34"),
        ("socks5", b"\x05\0\0\x03\x03\xff\xfe\xfd\x12\x34"),
        ("socks5", b"\x05\0\0\x03\x00\x12\x34"),
        ("socks5h", b"\x05\0\0\x03\xff" + b"x" * 255 + b"\x12\x34"),
    ],
)
def test_right_answers(scheme: str, answer: bytes, chunk: int, certificates: Certificates) -> None:
    got: List[Any] = []
    message = threading.Event()
    with hostile(scheme, being_the_server(scheme, answer, chunk), certificates) as options:
        client = wsthread.WebSocketClient(
            "ws://127.0.0.1:9/",
            wsthread.CallbackDelegate(on_message=lambda _, text: (got.append(text), message.set())),
            **options,
        )
        client.connect()
        assert message.wait(SOON)
        assert client.disconnect()
        assert got == ["hello"]
        assert client.error is None
    assert alive() == []


# --- refusals ---


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize(
    ("answer", "status", "again"),
    [
        (
            b"HTTP/1.1 407 Auth\r\nProxy-Authenticate: Basic\r\nContent-Length: 3\r\n\r\nno!",
            407,
            False,
        ),
        (b"HTTP/1.1 407 Auth\r\nTransfer-Encoding: chunked\r\n\r\n", 407, False),
        (b"HTTP/1.1 502 Bad Gateway\r\n\r\n" + b"<html>" * 1000, 502, True),
        (b"HTTP/1.0 503\r\n\r\n", 503, True),
        (b"HTTP/1.1 429 Slow\r\n\r\n", 429, True),
        (b"HTTP/1.1 403 Forbidden\r\n\r\n", 403, False),
        (b"HTTP/1.1 302 Found\r\nLocation: /\r\n\r\n", 302, False),
    ],
)
def test_refusals_of_http(
    scheme: str, answer: bytes, status: int, again: bool, certificates: Certificates
) -> None:
    error = refused_by(scheme, answering(scheme, answer), certificates)
    assert isinstance(error, ProxyError)
    assert error.status == status
    assert f"it answered {status}" in str(error)
    assert retried(error, None) == again


SOCKS5_CODES = {
    1: "general server failure",
    2: "connection not allowed by ruleset",
    3: "network unreachable",
    4: "host unreachable",
    5: "connection refused",
    6: "ttl expired",
    7: "command not supported",
    8: "address type not supported",
    9: "9",
    255: "255",
}
SOCKS4_CODES = {
    0x5B: "request rejected or failed",
    0x5C: "connection failed",
    0x5D: "authentication failed",
    0x5E: "94",
    0: "0",
}


@pytest.mark.parametrize("code", SOCKS5_CODES)
@pytest.mark.parametrize("rest", [None, b"\0\x01" + bytes(6)], ids=["short", "whole"])
def test_refusals_of_socks5(code: int, rest: Optional[bytes], certificates: Certificates) -> None:
    answer = bytes([5, code]) + (rest or b"")
    error = refused_by("socks5", answering("socks5", answer, end=rest is None), certificates)
    assert isinstance(error, ProxyError)
    assert str(error).endswith(f": it answered {SOCKS5_CODES[code]}")
    assert error.status is None
    assert retried(error, None)


@pytest.mark.parametrize("scheme", ["socks4", "socks4a"])
@pytest.mark.parametrize("rest", [None, bytes(6)], ids=["short", "whole"])
@pytest.mark.parametrize("code", SOCKS4_CODES)
def test_refusals_of_socks4(
    scheme: str, code: int, rest: Optional[bytes], certificates: Certificates
) -> None:
    answer = bytes([0, code]) + (rest or b"")
    error = refused_by(scheme, answering(scheme, answer, end=rest is None), certificates)
    assert isinstance(error, ProxyError)
    assert str(error).endswith(f": it answered {SOCKS4_CODES[code]}")
    assert retried(error, None)


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (b"\x05\xff", "another authentication: no acceptable methods"),
        (b"\x05\x01", "another authentication: gssapi"),
        (b"\x05\x03", "another authentication: 3"),
    ],
)
def test_an_authentication_that_was_not_offered(
    answer: bytes, text: str, certificates: Certificates
) -> None:
    def script(connection: RawConnection) -> None:
        connection._exactly(4)
        connection.sock.sendall(answer)
        assert connection.read_to_end() == b"", "no password to one who did not ask for it"

    error = refused_by("socks5", script, certificates)
    assert isinstance(error, ProxyError)
    assert text in str(error)
    assert not retried(error, None)


@pytest.mark.parametrize("answer", [b"\x01\x01", b"\x01\xff", b"\x05\x01"])
def test_a_login_that_is_refused(answer: bytes, certificates: Certificates) -> None:
    def script(connection: RawConnection) -> None:
        read_login(connection)
        connection.sock.sendall(answer)
        connection.read_to_end()

    error = refused_by("socks5", script, certificates)
    assert isinstance(error, ProxyError)
    assert "refuses user and password" in str(error)
    assert not retried(error, None)


# --- nonsense ---


def echoing(connection: RawConnection) -> None:
    """Says whatever it is told."""
    with contextlib.suppress(ConnectionError, OSError):
        while True:
            data = connection.sock.recv(65536)
            if not data:
                break
            connection.sock.sendall(data)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_an_echo(scheme: str, certificates: Certificates) -> None:
    error = refused_by(scheme, echoing, certificates)
    assert isinstance(error, ProxyError)
    assert error.status is None


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH_9.6\r\n\r\n",
        b"\x16\x03\x01\x02\x00garbage\r\n\r\n",
        b"HTTP/1.1 abc\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
        b"\r\n\r\n",
        b"\0" * 100 + b"\n\n",
    ],
)
def test_garbage_for_http(answer: bytes, certificates: Certificates) -> None:
    for scheme in ("http", "https"):
        error = refused_by(scheme, answering(scheme, answer), certificates)
        assert isinstance(error, ProxyError)
        assert "no valid HTTP" in str(error)
        assert error.status is None


@pytest.mark.parametrize(
    ("scheme", "answer", "text"),
    [
        ("socks4", b"\x05\x5a" + bytes(6), "no SOCKS4"),
        ("socks4a", b"HTTP/1.1 400 Bad Request\r\n\r\n", "no SOCKS4"),
        ("socks5", b"\x04\0\0\x01" + bytes(6), "no SOCKS5"),
        ("socks5h", b"\0\x5a" + bytes(6), "no SOCKS5"),
        ("socks5", b"\x05\0\0\x02" + bytes(6), "unknown type 2"),
        ("socks5", b"\x05\0\0\0", "unknown type 0"),
    ],
)
def test_garbage_for_socks(
    scheme: str, answer: bytes, text: str, certificates: Certificates
) -> None:
    error = refused_by(scheme, answering(scheme, answer), certificates)
    assert isinstance(error, ProxyError)
    assert text in str(error)
    assert retried(error, None)


@pytest.mark.parametrize("answer", [b"\x04\x00", b"HTTP/1.1 400 Bad Request\r\n\r\n"])
def test_no_password_for_what_is_no_socks5(answer: bytes, certificates: Certificates) -> None:
    def script(connection: RawConnection) -> None:
        connection._exactly(4)
        connection.sock.sendall(answer)
        assert connection.read_to_end() == b""

    error = refused_by("socks5", script, certificates)
    assert isinstance(error, ProxyError)
    assert "no SOCKS5" in str(error)


def test_what_is_no_tls(certificates: Certificates) -> None:
    def script(connection: RawConnection) -> None:
        connection.sock.recv(1)
        connection.sock.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        connection.read_to_end()

    with RawServer(script) as server:
        trust = contexts(certificates)[0]
        url = f"https://{LOGIN}127.0.0.1:{server.port}"
        error = refused("ws://127.0.0.1:9/", proxy=url, proxy_ssl_context=trust)
    assert isinstance(error, ProxyError)
    assert "TLS with 127.0.0.1 failed" in str(error)
    assert retried(error, None)
    assert_no_secret(error)


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("piece", [b"X: yyyyyyyyyyyyyyyyyyyyyyyyyyyy\r\n", b"x"])
def test_an_endless_head(scheme: str, piece: bytes, certificates: Certificates) -> None:
    def script(connection: RawConnection) -> None:
        connection.read_head()
        connection.sock.sendall(b"HTTP/1.1 200 OK\r\n")
        while True:  # until the client has gone
            connection.sock.sendall(piece * (4096 // len(piece)))

    error = refused_by(scheme, script, certificates)
    assert isinstance(error, ProxyError)
    assert "longer than 65536 bytes" in str(error)


def test_endless_interim_responses(certificates: Certificates) -> None:
    error = refused_by(
        "http", answering("http", b"HTTP/1.1 103 Early Hints\r\n\r\n" * 100), certificates
    )
    assert isinstance(error, ProxyError)
    assert "more than 8 interim responses" in str(error)


def partial_answers() -> List[Tuple[str, bytes]]:
    heads = [("http", b"HTTP/1.1 200 O"), ("https", b"HTTP/1.1 200 OK\r\n"), ("http", b"")]
    cut = [
        (scheme, answer[:length])
        for scheme, answer in GRANTED.items()
        if scheme.startswith("socks")
        for length in (0, 1, 2, 3, 4, 5, len(answer) - 1)
    ]
    return [*heads, *cut, ("socks5", b"\x05\0\0\x03"), ("socks5", b"\x05\0\0\x03\x05abc")]


@pytest.mark.parametrize("reset", [False, True], ids=["end", "reset"])
@pytest.mark.parametrize(("scheme", "answer"), partial_answers())
def test_the_end_in_the_middle(
    scheme: str, answer: bytes, reset: bool, certificates: Certificates
) -> None:
    script = answering(scheme, answer, reset=reset, end=True)
    error = refused_by(scheme, script, certificates)
    assert isinstance(error, ProxyError)
    assert "closed the connection" in str(error) or "connection broke" in str(error)
    assert retried(error, None)


@pytest.mark.parametrize("scheme", ["socks5", "socks5h"])
def test_the_end_before_the_login(scheme: str, certificates: Certificates) -> None:
    for answer in (b"", b"\x05"):
        error = refused_by(scheme, lambda c, a=answer: c.sock.sendall(a), certificates)  # type: ignore
        assert isinstance(error, ProxyError)


# --- lies ---


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("lie", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\0" * 64])
def test_granted_and_then_no_tls(scheme: str, lie: bytes, certificates: Certificates) -> None:
    def script(connection: RawConnection) -> None:
        read_request(scheme, connection)
        connection.sock.sendall(GRANTED[scheme])
        connection.sock.recv(1)
        connection.sock.sendall(lie)
        connection.read_to_end()

    error = refused_by(scheme, script, certificates, "wss://127.0.0.1:9/")
    assert isinstance(error, ConnectError)
    assert "TLS with 127.0.0.1 failed" in str(error)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_granted_and_then_closed(scheme: str, certificates: Certificates) -> None:
    for url, text in (("wss://127.0.0.1:9/", "TLS handshake"), ("ws://127.0.0.1:9/", "an answer")):

        def script(connection: RawConnection) -> None:
            read_request(scheme, connection)
            connection.sock.sendall(GRANTED[scheme])
            connection.sock.recv(65536)

        error = refused_by(scheme, script, certificates, url)
        assert isinstance(error, ConnectError)
        assert f"closed the connection during the {text}" in str(error) or text in str(error)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_granted_and_then_no_websocket(scheme: str, certificates: Certificates) -> None:
    def script(connection: RawConnection) -> None:
        read_request(scheme, connection)
        connection.sock.sendall(GRANTED[scheme])
        connection.read_head()
        connection.sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")
        connection.read_to_end()

    error = refused_by(scheme, script, certificates)
    assert isinstance(error, HandshakeError)
    assert error.status == 200


@pytest.mark.parametrize("scheme", ["http", "https"])
@pytest.mark.parametrize("more", [b"x", b"HTTP/1.1 101 Switching Protocols\r\n\r\n"])
def test_data_behind_the_answer(scheme: str, more: bytes, certificates: Certificates) -> None:
    for url in ("ws://127.0.0.1:9/", "wss://127.0.0.1:9/"):
        answer = answering(scheme, GRANTED[scheme] + more)
        error = refused_by(scheme, answer, certificates, url)
        assert isinstance(error, ProxyError)
        assert "data of its own" in str(error)
        assert error.status is None
        assert retried(error, None)


# --- hanging ---


def until(scheme: str, phase: str, reached: threading.Event) -> Script:
    """A proxy that is silent from this phase on."""

    def script(connection: RawConnection) -> None:
        if phase == "proxy tls":
            connection.sock.recv(1)
        elif phase == "method":
            connection._exactly(4)
        elif phase == "login":
            read_login(connection)
        else:
            read_request(scheme, connection)
        if phase == "half an answer":
            connection.sock.sendall(GRANTED[scheme][:-1])
        elif phase in ("server tls", "upgrade"):
            connection.sock.sendall(GRANTED[scheme])
            connection.sock.recv(1)
        reached.set()
        connection.read_to_end()

    return script


HANGS = [
    ("http", "tcp"),
    ("http", "environment"),
    ("socks5", "resolve"),
    ("https", "proxy tls"),
    ("socks5", "method"),
    ("socks5h", "login"),
    *[(scheme, "answer") for scheme in ("http", "https", "socks4", "socks5")],
    *[(scheme, "half an answer") for scheme in ("http", "https", "socks4a", "socks5h")],
    ("http", "server tls"),
    ("https", "server tls"),
    ("socks5", "server tls"),
    ("https", "upgrade"),
    ("socks4", "upgrade"),
]


@contextlib.contextmanager
def hanging(
    scheme: str, phase: str, reached: threading.Event, certificates: Certificates
) -> Iterator[Tuple[str, Any]]:
    """A proxy that hangs in a phase; gives the URL and the client's settings."""
    released = threading.Event()
    trust, context = contexts(certificates)
    options = {"ssl_context": trust, "proxy_ssl_context": trust}
    host = "name.test" if phase == "resolve" else "127.0.0.1"
    url = f"{'wss' if phase == 'server tls' else 'ws'}://{host}:9/"
    original = socket.getaddrinfo

    def look_up(name: str, *args: Any, flags: int = 0, **rest: Any) -> Any:
        if name == "name.test":
            if flags & socket.AI_NUMERICHOST:
                raise socket.gaierror
            stop()
        return original(name, *args, flags=flags, **rest)

    def stop(*args: object) -> bool:
        reached.set()
        released.wait(SOON * 2)
        return False

    with contextlib.ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        stack.callback(released.set)
        if phase == "tcp":
            port = stack.enter_context(black_hole())[1]
            start = tcp._Race._start
            patch.setattr(tcp._Race, "_start", lambda *args: start(*args) and not reached.set())
        else:
            tls = scheme == "https" and phase != "proxy tls"
            script = until(scheme, phase, reached)
            if phase in ("environment", "resolve"):
                script = RawConnection.read_to_end  # type: ignore[assignment]
            port = stack.enter_context(RawServer(script, context if tls else None)).port
        options["proxy"] = f"{scheme}://{LOGIN}127.0.0.1:{port}"
        if phase == "resolve":
            patch.setattr(socket, "getaddrinfo", look_up)
        if phase == "environment":
            patch.setenv("all_proxy", options["proxy"])
            patch.setattr("urllib.request.proxy_bypass", stop)
            options["proxy"] = True
        yield url, options


@pytest.mark.parametrize(("scheme", "phase"), HANGS)
def test_the_deadline(scheme: str, phase: str, certificates: Certificates) -> None:
    with hanging(scheme, phase, threading.Event(), certificates) as (url, options):
        started = time.monotonic()
        error = refused(url, 0.15, **options)
        assert 0.1 < time.monotonic() - started < 5
        assert isinstance(error, ConnectTimeout)
        assert retried(error, None)
        assert_no_secret(error)


@pytest.mark.parametrize(("scheme", "phase"), HANGS)
def test_disconnecting(scheme: str, phase: str, certificates: Certificates) -> None:
    reached = threading.Event()
    with hanging(scheme, phase, reached, certificates) as (url, options):
        client = wsthread.WebSocketClient(
            url, connect_timeout=SOON * 6, close_timeout=SOON * 6, **options
        )
        client.connect(wait=False)
        assert reached.wait(SOON)
        started = time.monotonic()
        assert client.disconnect()
        assert time.monotonic() - started < 5, "it is as fast as the machine is"
        assert client.state is wsthread.ConnectionState.DISCONNECTED
        assert alive() == []


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_drip(scheme: str, certificates: Certificates) -> None:
    def script(connection: RawConnection) -> None:
        read_request(scheme, connection)
        with contextlib.suppress(OSError):
            for byte in b"HTTP/1.1 200 OK\r\nX: " if "http" in scheme else GRANTED[scheme][:-1]:
                connection.sock.sendall(bytes([byte]))
                time.sleep(0.02)
        connection.read_to_end()

    started = time.monotonic()
    error = refused_by(scheme, script, certificates, timeout=0.2)
    assert 0.15 < time.monotonic() - started < 5
    assert isinstance(error, ConnectTimeout)
