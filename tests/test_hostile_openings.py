"""Promises 14 and 15: what a program sees of a peer that attacks while it is connecting."""

from __future__ import annotations

import base64
import contextlib
import gc
import ssl
import threading
import time
import tracemalloc
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Type

import pytest

import wsthread
from tests.support import SOON, Certificates, RawConnection, RawServer, quickest
from wsthread import ConnectTimeout, HandshakeError, Reconnect
from wsthread.testing import RecordingDelegate

#: What an attack may cost at most, in bytes.
MEMORY = 20_000_000
CONNECT_TIMEOUT = 0.4
#: On top of the time-out; without one that strikes, of nothing.
SLACK = 1.0

Script = Callable[[RawConnection], None]

ACCEPTED = b"Sec-WebSocket-Accept: {accept}\r\n"
SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"


@pytest.fixture(scope="module")
def certificates() -> Certificates:
    return Certificates()


class Attack(NamedTuple):
    script: Script
    error: Type[wsthread.ConnectError]
    text: str
    status: Optional[int] = None
    timed: bool = False  # it ends with connect_timeout, not before
    tls: bool = False


def drip(data: bytes, pause: float = 0.05) -> Script:
    """One byte at a time, for ever."""

    def script(connection: RawConnection) -> None:
        connection.sock.recv(65536)
        for byte in data * 1000:
            connection.sock.sendall(bytes([byte]))
            time.sleep(pause)

    return script


def endless(head: bytes, data: bytes) -> Script:
    """As fast as TCP takes it, until the client has had enough."""

    def script(connection: RawConnection) -> None:
        connection.read_head()
        connection.sock.sendall(head)
        while True:
            connection.sock.sendall(data)

    return script


def answer(head: bytes, behind: bytes = b"") -> Script:
    """A head in which {accept} stands for the right one."""

    def script(connection: RawConnection) -> None:
        made = connection.accept_head(connection.read_head())
        right = made.split(b"Sec-WebSocket-Accept: ")[1].strip()
        connection.sock.sendall(head.replace(b"{accept}", right) + b"\r\n" + behind)
        connection.read_to_end()

    return script


def redirect(location: str) -> Script:
    return answer(f"HTTP/1.1 302 Found\r\nLocation: {location}\r\n".encode())


def redirects(count: int) -> Script:
    """A chain of `count` redirects, the last to itself."""

    def script(connection: RawConnection) -> None:
        number = int(connection.read_head().split(b" ")[1][1:] or b"0")
        after = min(number + 1, count)
        connection.sock.sendall(b"HTTP/1.1 307 On\r\nLocation: /%d\r\n\r\n" % after)

    return script


def sent(data: bytes) -> Script:
    """An answer made beforehand."""

    def script(connection: RawConnection) -> None:
        connection.read_head()
        connection.sock.sendall(data)
        connection.read_to_end()

    return script


MEGABYTE = b"x" * 1_000_000
#: White space that a parser may go back and forth in, before something it refuses.
BLANKS = b" " * 60_000
CHUNKED = b"HTTP/1.1 403 No\r\nTransfer-Encoding: chunked\r\n\r\n"

ATTACKS: Dict[str, Attack] = {
    "silence": Attack(
        lambda connection: connection.read_to_end() and None,
        ConnectTimeout,
        "not open in time",
        timed=True,
    ),
    "drip of a head": Attack(
        drip(b"HTTP/1.1 101 Switching Protocols\r\n" + b"X: y\r\n" * 1000),
        ConnectTimeout,
        "not open in time",
        timed=True,
    ),
    "drip of TLS": Attack(
        drip(b"\x16\x03\x03\x40\x00\x02\x00\x3f\xfc" + b"\0" * 10000),
        ConnectTimeout,
        "not open in time",
        timed=True,
        tls=True,
    ),
    "drip of interim responses": Attack(
        drip(b"HTTP/1.1 103 Early Hints\r\nLink: </>\r\n\r\n"),
        ConnectTimeout,
        "not open in time",
        timed=True,
    ),
    "endless headers": Attack(endless(SWITCH, b"X: y\r\n" * 10000), HandshakeError, "65536 bytes"),
    "a header line of 100 MB": Attack(
        endless(SWITCH + b"X: ", MEGABYTE), HandshakeError, "65536 bytes"
    ),
    "a status line of 100 MB": Attack(endless(b"", MEGABYTE), HandshakeError, ""),
    "endless interim responses": Attack(
        endless(b"", b"HTTP/1.1 103 X\r\n\r\n" * 1000), HandshakeError, "interim", 100
    ),
    "403 with a body of 10 GiB": Attack(
        endless(b"HTTP/1.1 403 No\r\nContent-Length: 10737418240\r\n\r\n", MEGABYTE),
        HandshakeError,
        "403 No",
        403,
    ),
    "403 with a chunk of 10 GiB": Attack(
        endless(b"HTTP/1.1 403 No\r\nTransfer-Encoding: chunked\r\n\r\n280000000\r\n", MEGABYTE),
        HandshakeError,
        "403 No",
        403,
    ),
    "403 with a body without end": Attack(
        endless(b"HTTP/1.1 403 No\r\n\r\n", MEGABYTE), HandshakeError, "403 No", 403
    ),
    "403 with tiny chunks for ever": Attack(
        endless(
            b"HTTP/1.1 403 No\r\nTransfer-Encoding: chunked\r\n\r\n",
            b"1;" + b"x" * 9000 + b"\r\ny\r\n",
        ),
        HandshakeError,
        "403 No",
        403,
    ),
    "a header that is white space": Attack(
        sent(SWITCH + b"X:" + BLANKS + b"\0\r\n\r\n"), HandshakeError, "white space in a row"
    ),
    "a header that is folded lines": Attack(
        sent(SWITCH + b"X:" + b"\r\n " * 20_000 + b"\0\r\n\r\n"), HandshakeError, "white space"
    ),
    "a status line that is white space": Attack(
        sent(b"HTTP/1.1 101" + BLANKS + b"\0\r\n\r\n"), HandshakeError, "white space in a row"
    ),
    "403 with a chunk header that is white space": Attack(
        sent(CHUNKED + b"1;" + BLANKS + b"\n\r\n"), HandshakeError, "403 No", 403
    ),
    "403 with a trailer that is white space": Attack(
        sent(CHUNKED + b"0\r\nX:" + BLANKS + b"\0\r\n\r\n"), HandshakeError, "403 No", 403
    ),
    "403 with a head of 120 KB": Attack(
        sent(b"HTTP/1.1 403 No\r\n" + b"X: y\r\n" * 20_000 + b"\r\n"), HandshakeError, "65536 bytes"
    ),
    "garbage": Attack(
        endless(b"", b"\xff\x00garbage\r\n\r\n" * 1000), HandshakeError, "no valid HTTP"
    ),
    "garbage instead of TLS": Attack(
        lambda connection: connection.sock.sendall(b"SSH-2.0\r\n" * 1000),
        wsthread.ConnectError,
        "TLS",
        tls=True,
    ),
    "hang-up": Attack(lambda connection: None, wsthread.ConnectError, ""),
    "101 without Accept": Attack(answer(SWITCH), HandshakeError, "Sec-WebSocket-Accept", 101),
    "101 with a bad Accept": Attack(
        answer(SWITCH + b"Sec-WebSocket-Accept: " + base64.b64encode(bytes(20)) + b"\r\n"),
        HandshakeError,
        "Sec-WebSocket-Accept",
        101,
    ),
    "101 with a doubled Accept": Attack(
        answer(SWITCH + ACCEPTED * 2), HandshakeError, "Sec-WebSocket-Accept", 101
    ),
    "101 with a doubled Upgrade": Attack(
        answer(SWITCH + b"Upgrade: websocket\r\n" + ACCEPTED), HandshakeError, "Upgrade", 101
    ),
    "101 with an extension nobody asked for": Attack(
        answer(SWITCH + ACCEPTED + b"Sec-WebSocket-Extensions: x-shady\r\n"),
        HandshakeError,
        "'x-shady'",
        101,
    ),
    "101 with 60 KB of extensions": Attack(
        answer(SWITCH + ACCEPTED + b"Sec-WebSocket-Extensions: " + b'a;b="\\c" ,' * 6000 + b"\r\n"),
        HandshakeError,
        "not offered",
        101,
    ),
    "101 with deflate parameters nobody knows": Attack(
        answer(SWITCH + ACCEPTED + b"Sec-WebSocket-Extensions: permessage-deflate; x=1\r\n"),
        HandshakeError,
        "permessage-deflate",
        101,
    ),
    "101 with a subprotocol nobody asked for": Attack(
        answer(SWITCH + ACCEPTED + b"Sec-WebSocket-Protocol: shady\r\n"),
        HandshakeError,
        "'shady'",
        101,
    ),
    "20 redirects": Attack(redirects(20), HandshakeError, "more than 3 times", 307),
    "a redirect loop": Attack(redirects(0), HandshakeError, "more than 3 times", 307),
    "a redirect to file:": Attack(redirect("file:///etc/passwd"), HandshakeError, "scheme", 302),
    "a redirect with white space": Attack(redirect("/a b"), HandshakeError, "white space", 302),
}


@contextlib.contextmanager
def memory() -> Iterator[List[int]]:
    """Gives the most bytes that Python held at a time, once it is left."""
    gc.collect()
    peak: List[int] = []
    tracemalloc.start()
    try:
        yield peak
        peak.append(tracemalloc.get_traced_memory()[1])
    finally:
        tracemalloc.stop()


@pytest.mark.unmeasured
@pytest.mark.parametrize("name", ATTACKS)
def test_promise_14_an_attack_on_the_opening(name: str) -> None:
    """connect() raises; without waiting on_error gets the same; the life ends."""
    attack = ATTACKS[name]

    def attempt() -> float:
        with RawServer(attack.script) as server, memory() as peak:
            scheme = "wss" if attack.tls else "ws"
            recorder = RecordingDelegate()
            client = wsthread.WebSocketClient(
                f"{scheme}://127.0.0.1:{server.port}/",
                recorder,
                connect_timeout=CONNECT_TIMEOUT if attack.timed else SOON,
            )
            client.send("queued")
            begun = time.monotonic()
            with pytest.raises(wsthread.ConnectError) as caught:
                client.connect()
            took = time.monotonic() - begun
            check(attack, caught.value)
            assert recorder.names() == ["state", "unsent", "state"]
            assert recorder.states() == ["CONNECTING", "DISCONNECTED"]
        assert peak[0] < MEMORY
        assert type(client.error) is type(caught.value)
        return took

    quickest(attempt, SLACK + (CONNECT_TIMEOUT if attack.timed else 0))


@pytest.mark.parametrize("name", ["drip of a head", "403 with a body of 10 GiB", "20 redirects"])
def test_promise_14_an_attack_on_an_opening_nobody_waits_for(name: str) -> None:
    attack = ATTACKS[name]
    recorder = RecordingDelegate()
    with RawServer(attack.script) as server:
        client = wsthread.WebSocketClient(
            server.url, recorder, connect_timeout=CONNECT_TIMEOUT if attack.timed else SOON
        )
        client.connect(wait=False)
        check(attack, recorder.wait_for("error")[1])
        assert client.wait(SOON)
    assert recorder.names() == ["state", "error", "state"]


def check(attack: Attack, error: Any) -> None:
    assert isinstance(error, attack.error)
    assert attack.text in str(error)
    if isinstance(error, HandshakeError):
        assert error.status == attack.status
        assert len(error.body) <= 4096
        assert len(str(error)) < 500


class Requests:
    """Notes the heads of requests; answers with `script` and then upgrades."""

    def __init__(self, *scripts: bytes) -> None:
        self.heads: List[str] = []
        self.scripts = list(scripts)

    def __call__(self, connection: RawConnection) -> None:
        head = connection.read_head()
        self.heads.append(head.decode().lower())
        if self.scripts:
            connection.sock.sendall(self.scripts.pop(0))
            return
        cookie = b"Set-Cookie: id=mine; Domain=127.0.0.1; Path=/\r\n"
        connection.sock.sendall(connection.accept_head(head) + cookie + b"\r\n")
        connection.answer_close()


@pytest.mark.parametrize("callable_headers", [False, True], ids=["headers", "headers()"])
def test_promise_14_another_origin_gets_nothing_of_the_users(callable_headers: bool) -> None:
    headers = {"Authorization": "Bearer secret", "Cookie": "id=secret", "X-Key": "secret"}
    elsewhere = Requests()
    with RawServer(elsewhere) as other:
        location = f"Location: ws://127.0.0.1:{other.port}/there\r\n"
        here = Requests(f"HTTP/1.1 302 Found\r\n{location}\r\n".encode())
        with (
            RawServer(here) as server,
            wsthread.WebSocketClient(
                f"ws://user:secret@127.0.0.1:{server.port}/",
                headers=(lambda: headers) if callable_headers else headers,
                origin="https://secret.test",
            ) as client,
        ):
            assert client.state is wsthread.ConnectionState.CONNECTED
    assert here.heads[0].count("secret") == 4
    assert elsewhere.heads[0].startswith("get /there ")
    for word in ("secret", "authorization", "cookie", "x-key", "origin"):
        assert word not in elsewhere.heads[0]


def test_promise_14_never_from_tls_to_plain_text(certificates: Certificates) -> None:
    plain = Requests()
    with RawServer(plain) as other:
        location = f"Location: ws://127.0.0.1:{other.port}/\r\n"
        here = Requests(f"HTTP/1.1 302 Found\r\n{location}\r\n".encode())
        with RawServer(here, certificates.server_context()) as server:
            client = wsthread.WebSocketClient(
                server.url, ssl_context=certificates.client_context(), headers={"X-Key": "secret"}
            )
            with pytest.raises(HandshakeError, match="from TLS to plain text") as caught:
                client.connect()
        assert caught.value.status == 302
        assert other.connections == 0


def test_promise_14_another_origin_gets_no_client_certificate(
    certificates: Certificates, tmp_path: Any
) -> None:
    """Where the user's context goes not, its certificate does not, nor what it trusts."""
    asked = threading.Event()

    def demand(connection: RawConnection) -> None:
        asked.set()  # TLS was done: never

    mine = certificates.client_context()
    mine.load_cert_chain(certificates.write(tmp_path))
    demanding = certificates.server_context()
    demanding.verify_mode = ssl.CERT_REQUIRED
    demanding.load_verify_locations(certificates.write_authority(tmp_path))
    with RawServer(demand, demanding) as other:
        location = f"Location: {other.url}\r\n"
        here = Requests(f"HTTP/1.1 302 Found\r\n{location}\r\n".encode())
        with RawServer(here, demanding) as server:
            client = wsthread.WebSocketClient(server.url, ssl_context=mine)
            with pytest.raises(wsthread.ConnectError, match="certificate"):
                client.connect()
        assert other.connections == 1
    assert len(here.heads) == 1, "the first origin took the client's certificate"
    assert not asked.is_set()


def test_promise_14_no_cookie_reaches_another_client_or_the_next_connection() -> None:
    requests = Requests()
    with RawServer(requests) as server:
        first = wsthread.WebSocketClient(server.url, reconnect=Reconnect(delay=0))
        for client in (first, first, wsthread.WebSocketClient(server.url)):
            client.connect()
            assert ("Set-Cookie", "id=mine; Domain=127.0.0.1; Path=/") in client.response_headers
            assert client.disconnect()
    assert len(requests.heads) == 3
    for head in requests.heads:
        assert "cookie" not in head
