"""Proxies: settings, real ones of every kind, and hostile ones as raw peers."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import textwrap
import threading
import time
import traceback
import urllib.request
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple

import pytest
from websockets.sync.server import serve

import wsthread
from tests.proxy_server import LOGIN, PASSWORD, USER, ProxyServer, assert_no_secret, whole
from tests.support import (
    SOON,
    Certificates,
    RawConnection,
    RawServer,
)
from tests.test_opening import (
    Requests,
    alive,
    nothing_kept,  # noqa: F401 - an autouse fixture
    open_now,
    redirect,
    refused,
    unused_port,
    upgrading,
)
from wsthread import opening
from wsthread.errors import ProxyError
from wsthread.proxy import find_proxy, parse_proxy
from wsthread.reconnect import retried
from wsthread.testing import RecordingDelegate
from wsthread.transport import Waiter, Waker
from wsthread.urls import parse_url

SCHEMES = ["http", "https", "socks4", "socks4a", "socks5", "socks5h"]


@pytest.fixture(scope="module")
def certificates() -> Certificates:
    return Certificates()


@contextlib.contextmanager
def echoing(host: str, context: Optional[ssl.SSLContext] = None) -> Iterator[int]:
    """A real server that echoes; gives its port."""

    def echo(connection: Any) -> None:
        for message in connection:
            connection.send(message)

    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with serve(
        echo, host, 0, ssl=context, compression=None, max_size=None, family=family
    ) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.socket.getsockname()[1]
        finally:
            server.shutdown()
            thread.join(SOON)


@pytest.fixture(scope="module")
def echo_ports(certificates: Certificates) -> Iterator[Dict[str, int]]:
    """The ports of a ws and a wss server on 127.0.0.1."""
    with echoing("127.0.0.1") as plain, echoing("127.0.0.1", contexts(certificates)[1]) as tls:
        yield {"ws": plain, "wss": tls}


@functools.lru_cache(1)  # they take a while to make
def contexts(certificates: Certificates) -> Tuple[ssl.SSLContext, ssl.SSLContext]:
    """The TLS contexts of clients and of servers."""
    return certificates.client_context(), certificates.server_context()


def setting(scheme: str, certificates: Certificates) -> Dict[str, Any]:
    """What a client is told, beside the proxy's URL, to go through a proxy of this kind."""
    context = contexts(certificates)[0]
    return {"ssl_context": context, "proxy_ssl_context": context if scheme == "https" else None}


def server_side(scheme: str, certificates: Certificates) -> Dict[str, Any]:
    return {"context": contexts(certificates)[1] if scheme == "https" else None}


def echo_through(url: str, proxy: Any, message: Any = "hello", **options: Any) -> None:
    """Open, echo, close in order."""
    got = RecordingDelegate()
    client = wsthread.WebSocketClient(url, got, proxy=proxy, reconnect=False, **options)
    client.connect()
    client.send(message)
    assert got.wait_for("message")[1] == message
    assert client.disconnect()
    assert client.close_code == 1000
    assert client.error is None


def resolver(monkeypatch: pytest.MonkeyPatch, names: Dict[str, List[str]]) -> None:
    """Let these names resolve to these addresses here; others that end in .test do not."""
    original = socket.getaddrinfo

    def look_up(host: str, port: int, *args: Any, flags: int = 0, **rest: Any) -> List[Any]:
        if not str(host).endswith(".test"):
            return original(host, port, *args, flags=flags, **rest)
        if flags & socket.AI_NUMERICHOST or host not in names:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [
            (socket.AF_INET6 if ":" in a else socket.AF_INET, socket.SOCK_STREAM, 6, "", (a, port))
            for a in names[host]
        ]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)


# --- settings ---


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://h", ("http", "h", 80, None, b"")),
        ("https://H.Example./", ("https", "h.example.", 443, None, b"")),
        ("h", ("http", "h", 80, None, b"")),
        ("h:3128", ("http", "h", 3128, None, b"")),
        ("u:p@h:3128", ("http", "h", 3128, b"u", b"p")),
        ("SOCKS5H://[::1]", ("socks5h", "::1", 1080, None, b"")),
        ("socks5://[2001:DB8::0:1]:99/", ("socks5", "2001:db8::1", 99, None, b"")),
        ("socks4://me@127.0.0.1", ("socks4", "127.0.0.1", 1080, b"me", b"")),
        ("socks4a://h", ("socks4a", "h", 1080, None, b"")),
        ("http://u@h", ("http", "h", 80, b"u", b"")),
        ("http://@h", ("http", "h", 80, b"", b"")),
        ("http://u%40%C3%A4:a:b%00@h", ("http", "h", 80, "u@\xe4".encode(), b"a:b\0")),
        ("http://u:p@ss@h", ("http", "h", 80, b"u", b"p@ss")),
        ("http://\xe4@h", ("http", "h", 80, "\xe4".encode(), b"")),
    ],
)
def test_good_urls(url: str, expected: Any) -> None:
    proxy = parse_proxy(url)
    assert (proxy.scheme, proxy.host, proxy.port, proxy.user, proxy.password) == expected
    assert proxy.name == parse_proxy(proxy.name).name
    assert "user" not in repr(proxy) and "password" not in repr(proxy)


BAD_URLS = [
    "",
    "http://",
    "ftp://h",
    "S3same://h",
    "ws://h",
    "socks://h",
    "http://h/path",
    "http://h?q",
    "http://h#f",
    "http:/h",
    "http://h:0",
    "http://h:65536",
    "http://harriet:S3same",
    "http://harriet:987654321",
    "http://S3same S3same@h",
    "http://harriet:S3/same@h",
    "http://harriet:S3same@",
    "http://harriet:S3same@:1",
    "http://harriet:S3same@[::1",
    "http://harriet:S3same@h\r\nX: y",
    "http://harriet:S3same\udce4@h",
    "http://[S3same]",
    "http://S3same_@-",
    "http://1.2.3",
    "\ud800",
    "socks5://" + "u" * 256 + ":p@h",
    "socks5://u:" + "%70" * 256 + "@h",
    "socks4://" + "u" * 256 + "@h",
    "socks4://u%00@h",
]


@pytest.mark.parametrize("url", BAD_URLS)
def test_bad_urls(url: str) -> None:
    with pytest.raises(ValueError) as found:
        wsthread.WebSocketClient("ws://h/", proxy=url)
    text = "".join(traceback.format_exception_only(type(found.value), found.value))
    for secret in ("S3", "same", "harriet", "987654321", "uuu"):
        assert secret not in text + repr(found.value)


@pytest.mark.parametrize("value", [5, b"http://h", object(), ("h", 1)])
def test_what_is_no_setting(value: Any) -> None:
    with pytest.raises(TypeError):
        wsthread.WebSocketClient("ws://h/", proxy=value)
    with pytest.raises(TypeError):
        wsthread.WebSocketClient("ws://h/", proxy_ssl_context=value)


def found_for(url: str, **environment: str) -> Optional[str]:
    """Return the proxy for a URL in an environment."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        waiter = Waiter(Waker(), lambda: False, time.monotonic() + SOON)
        proxy = find_proxy(parse_url(url), True, waiter)
    return None if proxy is None else proxy.name


ALL = {f"{name}_proxy": f"http://{name}:1" for name in ("wss", "https", "ws", "http")}


@pytest.mark.parametrize(
    ("url", "environment", "expected"),
    [
        ("ws://h", {}, None),
        ("ws://h", {"ftp_proxy": "http://p"}, None),
        ("wss://h", ALL, "http://wss:1"),
        ("ws://h", ALL, "http://ws:1"),
        ("https://h", ALL, "http://wss:1"),
        ("wss://h", {"https_proxy": "p"}, "http://p:80"),
        ("wss://h", {"http_proxy": "p", "ws_proxy": "p"}, None),
        ("ws://h", {"http_proxy": "p"}, "http://p:80"),
        ("ws://h", {"https_proxy": "p", "wss_proxy": "p"}, None),
        ("ws://h", {"socks_proxy": "socks5://p"}, "socks5://p:1080"),
        ("wss://h", {"socks_proxy": "socks5://p", "all_proxy": "q"}, "socks5://p:1080"),
        ("wss://h", {"all_proxy": "https://p:1"}, "https://p:1"),
        ("ws://h", {"all_proxy": "p", "http_proxy": "q"}, "http://q:80"),
        ("ws://h", {"HTTP_PROXY": "p"}, "http://p:80"),
        ("wss://h", {"WSS_PROXY": "p", "https_proxy": "q"}, "http://p:80"),
        ("wss://h", {"https_proxy": "p", "HTTPS_PROXY": "q"}, "http://p:80"),
        ("ws://h", {"http_proxy": "", "HTTP_PROXY": "q"}, None),
        ("ws://h", {"ws_proxy": "", "http_proxy": "q"}, "http://q:80"),
    ],
)
def test_the_environment(url: str, environment: Dict[str, str], expected: Optional[str]) -> None:
    assert found_for(url, **environment) == expected


@pytest.mark.parametrize(
    ("url", "no_proxy", "bypassed"),
    [
        ("ws://h.example.org", "", False),
        ("ws://h.example.org", "*", True),
        ("ws://h.example.org", "h.example.org", True),
        ("ws://H.Example.org.", "h.EXAMPLE.org", True),
        ("ws://h.example.org", "example.org", True),
        ("ws://h.example.org", ".example.org", True),
        ("ws://h.example.org", "x, .example.org ,y", True),
        ("ws://hexample.org", "example.org", False),
        ("ws://example.org.evil", "example.org", False),
        ("ws://h.example.org", "example", False),
        ("ws://h", "h:80", True),
        ("wss://h", "h:80", False),
        ("wss://h", "h:443", True),
        ("wss://h:8443", "h:8443", True),
        ("ws://127.0.0.1:8080", "127.0.0.1", True),
        ("ws://127.0.0.1:8080", "127.0.0.1:8081", False),
        ("ws://[::1]:8080", "::1", True),
        ("ws://[::1]:8080", "[::1]", True),
        ("ws://[::1]:8080", "[::1]:8080", True),
        ("ws://[::1]:8080", "[::1]:8081", False),
        ("ws://[::1]:8080", "[::2], ::3", False),
        ("ws://[fe80::1%25eth0]", "fe80::1", True),
    ],
)
def test_no_proxy(url: str, no_proxy: str, bypassed: bool) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        found = found_for(url, all_proxy="http://p:1", **{name: no_proxy})
        assert found == (None if bypassed else "http://p:1")


@pytest.mark.parametrize("url", [url for url in BAD_URLS if url and "\0" not in url])
def test_an_environment_that_is_wrong(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(urllib.request, "getproxies", lambda: {"http": url})  # any characters
    error = refused("ws://127.0.0.1:1/", proxy=True)
    assert isinstance(error, ProxyError)
    assert "environment" in str(error)
    assert not retried(error, None)
    for secret in ("S3", "same", "harriet", "987654321", "uuu"):
        assert secret not in whole(error)


def test_a_thread_that_cannot_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setenv("http_proxy", f"http://{LOGIN}127.0.0.1:1")
    monkeypatch.setattr(threading.Thread, "start", start)
    error = refused("ws://127.0.0.1:1/", proxy=True)
    assert isinstance(error, ProxyError)
    assert "can't start new thread" in str(error)
    assert retried(error, None)
    assert_no_secret(error)


def test_without_a_proxy_there_is_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    def call(*args: object) -> None:
        raise AssertionError("a thread for nothing")

    monkeypatch.setattr(Waiter, "call", call)
    assert found_for("ws://h") is None
    assert found_for("ws://h", no_proxy="h", https_proxy="p") is None
    with RawServer(Requests()) as server:
        for value in (True, False, None):
            client = wsthread.WebSocketClient(server.url, proxy=value)
            client.connect()
            client.abort()
            assert client.wait(SOON)


def test_import_does_not_import_urllib_request() -> None:
    code = "import wsthread, sys; sys.exit('urllib.request' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=SOON * 3).returncode == 0


@pytest.mark.parametrize("value", [False, None])
def test_switched_off(value: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("all_proxy", f"http://127.0.0.1:{unused_port()}")
    with RawServer(upgrading()) as server:
        client = wsthread.WebSocketClient(server.url, proxy=value)
        client.connect()
        client.abort()
        assert client.wait(SOON)
        error = refused(server.url, proxy=True)
        assert isinstance(error, ProxyError)


def test_a_given_socket_goes_through_no_proxy() -> None:
    peer = Requests()
    with RawServer(peer) as server:
        for value in (True, f"http://127.0.0.1:{unused_port()}"):
            given = socket.create_connection(("127.0.0.1", server.port))
            opened = open_now("ws://elsewhere.test/", socket=given, proxy=value)
            assert opened.transport.sock is given
            opened.transport.close()
            del opened
    assert [head.split(" ")[0] for head in peer.heads] == ["GET", "GET"]


def test_socks_without_socksio(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "socksio", None)
    with ProxyServer("socks5") as proxy:
        error = refused("ws://127.0.0.1:1/", proxy=proxy.url(LOGIN))
    assert_no_secret(error)
    assert "wsthread[proxy]" in str(error)
    assert isinstance(error.__cause__, ImportError)
    assert not retried(error, None)


def test_what_the_documentation_shows_is_accepted() -> None:
    page = (Path(__file__).parent.parent / "docs" / "proxies.rst").read_text(encoding="utf-8")
    blocks = re.findall(r"\.\. code-block:: python\n\n((?:   .*\n|\n)+)", page)
    assert len(blocks) == 2
    for block in blocks:
        exec(textwrap.dedent(block), {})
    assert [f"``{scheme}``" in page for scheme in SCHEMES] == [True] * len(SCHEMES)


# --- through real proxies of ours ---


@pytest.mark.parametrize("login", [False, True], ids=["open", "login"])
@pytest.mark.parametrize("kind", ["ws", "wss"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_through(
    scheme: str,
    kind: str,
    login: bool,
    certificates: Certificates,
    echo_ports: Dict[str, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    here = scheme in ("socks4", "socks5")  # where the name is resolved
    resolver(monkeypatch, {"server.test": ["127.0.0.1"]} if here else {})
    with ProxyServer(
        scheme,
        login=(USER, PASSWORD) if login else None,
        names={} if here else {"server.test": "127.0.0.1"},
        **server_side(scheme, certificates),
    ) as proxy:
        port = echo_ports[kind]
        url = proxy.url(LOGIN if login else "")
        options = setting(scheme, certificates)
        echo_through(f"{kind}://server.test:{port}/", url, **options)
        echo_through(f"{kind}://127.0.0.1:{port}/", url, **options)
        first = "127.0.0.1" if here else "server.test"
        assert proxy.targets == [(first, port), ("127.0.0.1", port)]
        assert alive() == []


@pytest.mark.parametrize("kind", ["ws", "wss"])
@pytest.mark.parametrize("scheme", ["http", "https", "socks5", "socks5h"])
def test_to_ipv6(scheme: str, kind: str, certificates: Certificates) -> None:
    need_ipv6()
    context = contexts(certificates)[1] if kind == "wss" else None
    with (
        echoing("::1", context) as port,
        ProxyServer(scheme, **server_side(scheme, certificates)) as proxy,
    ):
        echo_through(f"{kind}://[::1]:{port}/", proxy.url(), **setting(scheme, certificates))
        assert proxy.targets == [("::1", port)]
        assert all(f"CONNECT [::1]:{port} HTTP/1.1" in head for head in proxy.heads)


@pytest.mark.parametrize("scheme", ["socks4", "socks4a"])
def test_socks4_takes_no_ipv6(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    resolver(monkeypatch, {"six.test": ["::1"], "both.test": ["::1", "127.0.0.1"]})
    with ProxyServer(scheme) as proxy:
        error = refused("ws://[::1]:1/", proxy=proxy.url(LOGIN))
        assert isinstance(error, ProxyError)
        assert "no IPv6" in str(error)
        assert not retried(error, None)
        assert_no_secret(error)
        if scheme == "socks4":
            error = refused("ws://six.test:1/", proxy=proxy.url())
            assert "six.test has no IPv4 address" in str(error)
            assert retried(error, None)
            refused("ws://both.test:1/", proxy=proxy.url())
            assert proxy.targets == [("127.0.0.1", 1)]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_by_ipv6(scheme: str, certificates: Certificates, echo_ports: Dict[str, int]) -> None:
    need_ipv6()
    with ProxyServer(scheme, host="::1", **server_side(scheme, certificates)) as proxy:
        options = setting(scheme, certificates)
        url = f"ws://127.0.0.1:{echo_ports['ws']}/"
        echo_through(url, proxy.url(), **options)
        assert proxy.targets == [("127.0.0.1", echo_ports["ws"])]


def need_ipv6() -> None:
    with socket.socket(socket.AF_INET6) as sock:
        try:
            sock.bind(("::1", 0))
        except OSError:
            pytest.skip("no IPv6 here")


@pytest.mark.parametrize("kind", ["ws", "wss"])
def test_large_messages_through_tls(
    kind: str, certificates: Certificates, echo_ports: Dict[str, int]
) -> None:
    message = bytes(range(256)) * (8 * 4096)  # 8 MiB
    with ProxyServer("https", **server_side("https", certificates)) as proxy:
        echo_through(
            f"{kind}://127.0.0.1:{echo_ports[kind]}/",
            proxy.url(),
            message,
            compression=None,
            **setting("https", certificates),
        )


def test_by_the_environment(
    certificates: Certificates, echo_ports: Dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    with ProxyServer("http", login=(USER, PASSWORD)) as plain, ProxyServer("socks5") as other:
        monkeypatch.setenv("HTTP_PROXY", plain.url(LOGIN))
        monkeypatch.setenv("all_proxy", other.url())
        monkeypatch.setenv("no_proxy", "localhost")
        options = {"ssl_context": contexts(certificates)[0]}
        for kind, host in (("ws", "127.0.0.1"), ("wss", "127.0.0.1"), ("ws", "localhost")):
            echo_through(f"{kind}://{host}:{echo_ports[kind]}/", True, **options)
        assert plain.targets == [("127.0.0.1", echo_ports["ws"])]
        assert other.targets == [("127.0.0.1", echo_ports["wss"])]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_wrong_login(scheme: str, certificates: Certificates) -> None:
    with ProxyServer(
        scheme, login=("another", "one"), **server_side(scheme, certificates)
    ) as proxy:
        options = setting(scheme, certificates)
        error = refused("ws://127.0.0.1:1/", proxy=proxy.url(LOGIN), **options)
        assert isinstance(error, ProxyError)
        text = {
            "http": "it answered 407 Proxy Authentication Required",
            "socks4": "it answered authentication failed",
            "socks5": "it refuses user and password",
        }["http" if scheme.startswith("http") else scheme[:6]]
        assert str(error) == f"{proxy.url()}: {text}"
        assert error.status == (407 if scheme.startswith("http") else None)
        assert retried(error, None) == scheme.startswith("socks4")  # which has no word for it
        assert_no_secret(error)
        if scheme.startswith("socks5"):
            error = refused("ws://127.0.0.1:1/", proxy=proxy.url(), **options)
            assert "another authentication: no acceptable methods" in str(error)
        assert proxy.targets == []


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_target_that_is_not_there(scheme: str, certificates: Certificates) -> None:
    with ProxyServer(scheme, **server_side(scheme, certificates)) as proxy:
        port = unused_port()
        options = setting(scheme, certificates)
        error = refused(f"ws://127.0.0.1:{port}/", proxy=proxy.url(), **options)
        assert isinstance(error, ProxyError)
        assert retried(error, None)
        assert proxy.targets == [("127.0.0.1", port)]
        words = {"http": "502 Bad Gateway", "socks5": "connection refused"}
        assert words.get(scheme.rstrip("sh"), "") in str(error)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_proxy_that_is_not_there(scheme: str) -> None:
    url = f"{scheme}://{LOGIN}127.0.0.1:{unused_port()}"
    error = refused("ws://127.0.0.1:1/", proxy=url)
    assert isinstance(error, ProxyError)
    assert "cannot connect" in str(error)
    assert isinstance(error.__cause__, ConnectionRefusedError)
    assert retried(error, None)
    assert_no_secret(error)


def test_the_certificate_of_a_proxy(certificates: Certificates) -> None:
    with ProxyServer("https", context=contexts(certificates)[1]) as proxy:
        error = refused("ws://127.0.0.1:1/", proxy=proxy.url(LOGIN))
        assert isinstance(error, ProxyError)
        assert "certificate of 127.0.0.1 is refused" in str(error)
        assert not retried(error, None)
        assert_no_secret(error)
        # The server's context is not the proxy's.
        context = contexts(certificates)[0]
        assert isinstance(
            refused("ws://127.0.0.1:1/", proxy=proxy.url(), ssl_context=context), ProxyError
        )
        assert proxy.heads == []


def test_the_certificate_of_the_server_behind_a_proxy(
    certificates: Certificates, echo_ports: Dict[str, int]
) -> None:
    with ProxyServer("https", context=contexts(certificates)[1]) as proxy:
        url = f"wss://127.0.0.1:{echo_ports['wss']}/"
        error = refused(url, proxy=proxy.url(), proxy_ssl_context=contexts(certificates)[0])
        assert not isinstance(error, ProxyError)
        assert isinstance(error.__cause__, ssl.SSLCertVerificationError)
        assert len(proxy.heads) == 1


# --- redirects ---


def test_each_hop_asks_anew(certificates: Certificates, monkeypatch: pytest.MonkeyPatch) -> None:
    first, last = Requests(), Requests()
    with contextlib.ExitStack() as stack:
        plain = stack.enter_context(RawServer(first))
        secure = stack.enter_context(RawServer(last, contexts(certificates)[1]))
        one = stack.enter_context(ProxyServer("http", login=(USER, PASSWORD)))
        other = stack.enter_context(ProxyServer("http", login=("other", "word")))
        first.answers["/"] = redirect(f"wss://localhost:{secure.port}/on")
        last.answers["/on"] = redirect(f"wss://127.0.0.1:{secure.port}/end")
        monkeypatch.setenv("http_proxy", one.url(LOGIN))
        monkeypatch.setenv("https_proxy", other.url("other:word@"))
        monkeypatch.setenv("no_proxy", "localhost")
        monkeypatch.setattr(opening, "_default_context", certificates.client_context)
        open_now(f"ws://127.0.0.1:{plain.port}/", proxy=True).transport.close()
        assert [head.split(" ")[1] for head in first.heads + last.heads] == ["/", "/on", "/end"]
        assert one.targets == [("127.0.0.1", plain.port)]
        assert other.targets == [("127.0.0.1", secure.port)]


def test_nobody_gets_what_is_for_another(certificates: Certificates) -> None:
    peer = Requests({"/": redirect("/on")})
    context = contexts(certificates)[0]
    with (
        RawServer(peer, contexts(certificates)[1]) as server,
        ProxyServer("https", context=contexts(certificates)[1], login=(USER, PASSWORD)) as proxy,
    ):
        opened = open_now(
            f"wss://me:hidden@127.0.0.1:{server.port}/",
            proxy=proxy.url(LOGIN),
            headers={"Cookie": "a=hidden", "X-Own": "hidden"},
            subprotocols=["hidden"],
            origin="https://hidden.test",
            ssl_context=context,
            proxy_ssl_context=context,
        )
        opened.transport.close()
        del opened
        assert len(proxy.heads) == len(peer.heads) == 2
        for head in proxy.heads:
            lines = head.split("\r\n")
            assert lines[0] == f"CONNECT 127.0.0.1:{server.port} HTTP/1.1"
            assert [line.split(":")[0] for line in lines[1:-2]] == ["Host", "Proxy-Authorization"]
        for head in peer.heads:
            assert "proxy" not in head.lower()
            assert "hidden" in head


def test_a_proxy_cannot_redirect(certificates: Certificates) -> None:
    def script(connection: RawConnection) -> None:
        connection.read_head()
        connection.sock.sendall(redirect(f"ws://127.0.0.1:{away.port}/"))
        connection.read_to_end()

    with RawServer(upgrading()) as away, RawServer(script) as server:
        error = refused("ws://127.0.0.1:1/", proxy=f"http://127.0.0.1:{server.port}")
        assert isinstance(error, ProxyError)
        assert error.status == 302
        assert away.connections == 0
        assert not retried(error, None)


# --- reconnecting ---


def answering_in_turn(*answers: bytes) -> Callable[[RawConnection], None]:
    """A proxy that answers each CONNECT with the next of these; after a 200 it is the server."""
    left = list(answers)

    def script(connection: RawConnection) -> None:
        connection.read_head()
        answer = left.pop(0)
        connection.sock.sendall(answer)
        if b" 200 " in answer:
            connection.upgrade()
            with contextlib.suppress(EOFError):
                connection.answer_close()
        else:
            connection.read_to_end()

    return script


def test_a_502_is_tried_again() -> None:
    bad, good = b"HTTP/1.1 502 Bad Gateway\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\n"
    with RawServer(answering_in_turn(bad, bad, good)) as server:
        got = RecordingDelegate()
        client = wsthread.WebSocketClient(
            "ws://server.test/",
            got,
            proxy=f"http://{LOGIN}127.0.0.1:{server.port}",
            reconnect=wsthread.Reconnect(first=True, delay=0.01),
        )
        client.connect(timeout=SOON)
        assert client.disconnect()
        errors = [event[3] for event in got.of("reconnect")]
        assert [(type(error), error.status) for error in errors] == [(ProxyError, 502)] * 2
        assert server.connections == 3
        for error in errors:
            assert_no_secret(error)
        errors.clear()
        got.events.clear()


@pytest.mark.parametrize("status", [407, 403])
def test_a_407_is_not(status: int) -> None:
    answer = b"HTTP/1.1 %d No\r\nContent-Length: 0\r\n\r\n" % status
    with RawServer(answering_in_turn(answer)) as server:
        client = wsthread.WebSocketClient(
            "ws://server.test/",
            proxy=f"http://127.0.0.1:{server.port}",
            reconnect=wsthread.Reconnect(first=True, delay=0.01),
        )
        with pytest.raises(ProxyError) as found:
            client.connect(timeout=SOON)
        assert found.value.status == status
        assert isinstance(found.value, wsthread.ConnectError)
        assert server.connections == 1


# --- through others' proxies, where they are installed ---


@contextlib.contextmanager
def daemon(command: List[str], port: int) -> Iterator[None]:
    """Run a program until the block ends; it is ready when it takes connections."""
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        deadline = time.monotonic() + SOON
        while True:
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", port)).close()
                break
            assert process.poll() is None, "it ended"
            assert time.monotonic() < deadline, "it does not listen"
            time.sleep(0.02)
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # some fork; none has anything to tidy up
        process.wait(SOON)


def program(name: str, package: str) -> str:
    path = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if path is None:
        pytest.skip(f"{name} of the Debian package {package} is not installed")
    return path


@contextlib.contextmanager
def tinyproxy(directory: Path, login: bool = False) -> Iterator[int]:
    path, port = program("tinyproxy", "tinyproxy-bin"), unused_port()
    config = directory / "tinyproxy.conf"
    lines = [f"Port {port}", "Listen 127.0.0.1", "Timeout 60", "LogLevel Critical"]
    lines += [f'LogFile "{directory / "tinyproxy.log"}"']
    lines += ["BasicAuth harriet S3same"] if login else []
    config.write_text("\n".join(lines) + "\n")
    with daemon([path, "-d", "-c", str(config)], port):
        yield port


@contextlib.contextmanager
def microsocks(login: bool = False) -> Iterator[int]:
    path, port = program("microsocks", "microsocks"), unused_port()
    arguments = ["-u", "harriet", "-P", "S3same"] if login else []
    with daemon([path, "-i", "127.0.0.1", "-p", str(port), *arguments], port):
        yield port


@contextlib.contextmanager
def dante(directory: Path) -> Iterator[int]:
    path, port = program("danted", "dante-server"), unused_port()
    config = directory / "danted.conf"
    config.write_text(
        f"errorlog: {directory / 'danted.log'}\n"
        f"internal: 127.0.0.1 port = {port}\nexternal.protocol: ipv4\nexternal: 127.0.0.1\n"
        "clientmethod: none\nsocksmethod: none\n"
        "client pass { from: 127.0.0.0/8 to: 0/0 }\nsocks pass { from: 127.0.0.0/8 to: 0/0 }\n"
    )
    with daemon([path, "-f", str(config), "-p", str(directory / "danted.pid")], port):
        yield port


@contextlib.contextmanager
def stunnel(directory: Path, pem: str, behind: int) -> Iterator[int]:
    path, port = program("stunnel", "stunnel4"), unused_port()
    config = directory / "stunnel.conf"
    config.write_text(
        f"foreground = quiet\npid =\n[proxy]\naccept = 127.0.0.1:{port}\n"
        f"connect = 127.0.0.1:{behind}\ncert = {pem}\n"
    )
    with daemon([path, str(config)], port):
        yield port


@pytest.mark.parametrize("login", [False, True], ids=["open", "login"])
def test_tinyproxy(
    login: bool, certificates: Certificates, echo_ports: Dict[str, int], tmp_path: Path
) -> None:
    with tinyproxy(tmp_path, login) as port:
        through_others("http", port, login, certificates, echo_ports)


@pytest.mark.parametrize("login", [False, True], ids=["open", "login"])
def test_tinyproxy_behind_stunnel(
    login: bool, certificates: Certificates, echo_ports: Dict[str, int], tmp_path: Path
) -> None:
    pem = certificates.write(tmp_path)
    with tinyproxy(tmp_path, login) as behind, stunnel(tmp_path, pem, behind) as port:
        through_others("https", port, login, certificates, echo_ports)


@pytest.mark.parametrize("login", [False, True], ids=["open", "login"])
@pytest.mark.parametrize("scheme", ["socks5", "socks5h"])
def test_microsocks(
    scheme: str, login: bool, certificates: Certificates, echo_ports: Dict[str, int]
) -> None:
    with microsocks(login) as port:
        through_others(scheme, port, login, certificates, echo_ports)


@pytest.mark.parametrize("scheme", ["socks4", "socks5", "socks5h"])  # it knows no SOCKS4a
def test_dante(
    scheme: str, certificates: Certificates, echo_ports: Dict[str, int], tmp_path: Path
) -> None:
    with dante(tmp_path) as port:
        through_others(scheme, port, False, certificates, echo_ports)


def through_others(
    scheme: str, port: int, login: bool, certificates: Certificates, echo_ports: Dict[str, int]
) -> None:
    """An echo over ws and wss; IPv6 where the proxy can; what a wrong password gives."""
    proxy = f"{scheme}://{'harriet:S3same@' if login else ''}127.0.0.1:{port}"
    options = setting(scheme, certificates)
    for kind in ("ws", "wss"):
        echo_through(f"{kind}://127.0.0.1:{echo_ports[kind]}/", proxy, "x" * 300_000, **options)
    if scheme in ("socks5h", "http", "https"):
        echo_through(f"ws://localhost:{echo_ports['ws']}/", proxy, **options)
    if login:
        url = f"ws://127.0.0.1:{echo_ports['ws']}/"
        error = refused(url, proxy=proxy.replace("S3same", "S3cond"), **options)
        assert isinstance(error, ProxyError)
        assert not retried(error, None)
        assert "S3cond" not in whole(error) and "harriet" not in whole(error)
        if scheme.startswith("http"):
            assert error.status in (401, 407)
    error = refused(f"ws://127.0.0.1:{unused_port()}/", proxy=proxy, **options)
    assert isinstance(error, ProxyError)
    assert retried(error, None)
    if scheme.startswith("http"):
        assert error.status in (500, 502, 503)


@pytest.mark.parametrize("scheme", ["http", "socks5"])
def test_others_to_ipv6(scheme: str, certificates: Certificates, tmp_path: Path) -> None:
    need_ipv6()
    proxy = tinyproxy(tmp_path) if scheme == "http" else microsocks()
    with echoing("::1", contexts(certificates)[1]) as target, proxy as port:
        url = f"{scheme}://127.0.0.1:{port}"
        echo_through(f"wss://[::1]:{target}/", url, **setting(scheme, certificates))
