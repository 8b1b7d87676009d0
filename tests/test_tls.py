"""Promises 12 and 16: TLS at full speed both ways, and the peers that it refuses."""

from __future__ import annotations

import contextlib
import ctypes
import datetime
import os
import select
import socket
import ssl
import struct
import sys
import time
import warnings
from pathlib import Path
from typing import Any, Callable, Dict, List, Tuple

import pytest
import trustme

import wsthread
from tests.support import (
    SOON,
    Background,
    RawConnection,
    RawServer,
    frame,
    in_process,
)
from wsthread import QueueLimit
from wsthread.testing import RecordingDelegate


class Authority:
    """A certificate authority, and certificates of its making, right and wrong."""

    def __init__(self) -> None:
        self.ca = trustme.CA()

    def server(self, *names: str, **options: Any) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.ca.issue_cert(*(names or ("127.0.0.1", "localhost")), **options).configure_cert(
            context
        )
        return context

    def client(self) -> ssl.SSLContext:
        context = ssl.create_default_context()
        self.ca.configure_trust(context)
        return context


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


def polite(connection: RawConnection) -> None:
    connection.upgrade()
    connection.answer_close()


# Promise 16: who is refused, and what the error says.


def expired(authority: Authority) -> ssl.SSLContext:
    past = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(days=2)
    return authority.server(not_before=past - datetime.timedelta(days=2), not_after=past)


def not_yet_valid(authority: Authority) -> ssl.SSLContext:
    future = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(days=2)
    return authority.server(not_before=future, not_after=future + datetime.timedelta(days=2))


def self_signed(authority: Authority) -> ssl.SSLContext:
    """The certificate of another authority, itself."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    other = trustme.CA()
    with other.private_key_pem.tempfile() as key, other.cert_pem.tempfile() as cert:
        context.load_cert_chain(cert, key)
    return context


def tls_1_1(authority: Authority) -> ssl.SSLContext:
    context = authority.server()
    context.set_ciphers("ALL:@SECLEVEL=0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    return context


def demanding(authority: Authority) -> ssl.SSLContext:
    """Wants a certificate of the client's; TLS 1.2, where the handshake fails without one."""
    context = authority.server()
    context.verify_mode = ssl.CERT_REQUIRED
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    authority.ca.configure_trust(context)
    return context


REFUSED: Dict[str, Tuple[Callable[[Authority], ssl.SSLContext], str]] = {
    "wrong host": (lambda a: a.server("other.test"), "certificate is not valid for '127.0.0.1'"),
    "another authority": (lambda a: Authority().server(), "unable to get local issuer certificate"),
    "expired": (expired, "certificate has expired"),
    "not yet valid": (not_yet_valid, "certificate is not yet valid"),
    "self-signed": (self_signed, "self.signed certificate"),
    "TLS 1.1": (tls_1_1, "TLS with 127.0.0.1 failed: .*(PROTOCOL|VERSION)"),
    "wants our certificate": (demanding, "TLS with 127.0.0.1 failed: .*(ALERT|FAILURE)"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_promise_16_a_peer_that_tls_refuses(name: str, authority: Authority) -> None:
    """connect() says why, nothing is sent, and it is not tried again where that is of no use."""
    make, text = REFUSED[name]
    reached: List[RawConnection] = []
    recorder = RecordingDelegate()
    with RawServer(reached.append, make(authority)) as server:
        client = wsthread.WebSocketClient(
            server.url,
            recorder,
            # The default context, which no certificate of ours gets far enough to please.
            ssl_context=None if name == "TLS 1.1" else authority.client(),
            headers={"Authorization": "Bearer secret"},
            reconnect=wsthread.Reconnect(first=True, delay=0, attempts=3),
        )
        with pytest.raises(wsthread.ConnectError, match=text) as caught:
            client.connect(SOON)
    assert reached == []
    assert isinstance(caught.value.__cause__, ssl.SSLError)
    verification = isinstance(caught.value.__cause__, ssl.SSLCertVerificationError)
    assert verification == (name not in ("TLS 1.1", "wants our certificate"))
    if verification:
        assert recorder.of("reconnect") == []
        assert server.connections == 1
    assert client.state is wsthread.ConnectionState.DISCONNECTED


def test_promise_16_the_default_context_verifies() -> None:
    """Without an ssl_context, and whatever the address."""
    with RawServer(lambda connection: None, Authority().server()) as server:
        client = wsthread.WebSocketClient(server.url)
        with pytest.raises(wsthread.ConnectError, match=r"of 127\.0\.0\.1 is refused"):
            client.connect()


@pytest.mark.parametrize("version", ["TLSv1_2", "TLSv1_3"])
def test_promise_16_a_client_certificate(version: str, authority: Authority) -> None:
    context = authority.server()
    context.verify_mode = ssl.CERT_REQUIRED
    context.maximum_version = ssl.TLSVersion[version]
    authority.ca.configure_trust(context)
    seen: List[Any] = []

    def script(connection: RawConnection) -> None:
        seen.append(connection.sock.getpeercert())  # type: ignore[attr-defined]
        polite(connection)

    ours = authority.client()
    authority.ca.issue_cert("client.test").configure_cert(ours)
    with RawServer(script, context) as server:
        client = wsthread.WebSocketClient(server.url, ssl_context=ours)
        client.connect()
        assert client.disconnect()
    assert ("DNS", "client.test") in seen[0]["subjectAltName"]


def test_promise_16_tls_1_3_refuses_a_missing_client_certificate_late(
    authority: Authority,
) -> None:
    """In TLS 1.3 the client's handshake is done before the server has judged it."""
    context = authority.server()
    context.verify_mode = ssl.CERT_REQUIRED
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    authority.ca.configure_trust(context)
    with RawServer(polite, context) as server:
        client = wsthread.WebSocketClient(server.url, ssl_context=authority.client())
        with pytest.raises(wsthread.ConnectError) as caught:
            client.connect(SOON)
    assert not isinstance(caught.value, wsthread.ConnectTimeout)


# An open connection whose TLS breaks.


def test_promise_12_a_broken_record_ends_the_connection(authority: Authority) -> None:
    """Bytes that are no TLS: 1006, and the error names TLS."""

    def script(connection: RawConnection) -> None:
        connection.upgrade()
        connection.read_frame()
        raw = socket.socket(fileno=os.dup(connection.sock.fileno()))
        with contextlib.closing(raw):
            raw.sendall(b"\x17\x03\x03\x00\x20" + bytes(32))
            connection.read_to_end()

    recorder = RecordingDelegate()
    with RawServer(script, authority.server()) as server:
        client = wsthread.WebSocketClient(
            server.url, recorder, ssl_context=authority.client(), reconnect=False
        )
        client.connect()
        client.send("open")
        error = recorder.wait_for("error")[1]
        assert client.wait(SOON)
    assert isinstance(error, wsthread.ConnectionClosed)
    assert isinstance(error.__cause__, ssl.SSLError)
    assert recorder.of("close") == [("close", 1006, "")]


@pytest.mark.parametrize("notify", [True, False], ids=["close_notify", "truncated"])
def test_promise_12_the_end_of_tls_without_a_close_frame(
    notify: bool, authority: Authority
) -> None:
    """Truncation is not taken for an orderly end: 1006 either way."""

    def script(connection: RawConnection) -> None:
        connection.upgrade(frame(1, b"last"))
        if notify:
            with contextlib.suppress(OSError):
                connection.sock.unwrap().close()  # type: ignore[attr-defined]

    recorder = RecordingDelegate()
    with RawServer(script, authority.server()) as server:
        client = wsthread.WebSocketClient(
            server.url, recorder, ssl_context=authority.client(), reconnect=False
        )
        client.connect()
        assert client.wait(SOON)
    assert recorder.messages() == ["last"]
    assert recorder.of("close") == [("close", 1006, "")]


def test_promise_15_the_end_of_tls_amid_the_opening(authority: Authority) -> None:
    """TCP stays open behind the close_notify: that is not waited for."""

    def script(connection: RawConnection) -> None:
        connection.read_head()
        connection.sock.sendall(b"HTTP/1.1 101 Switching")
        with contextlib.suppress(OSError):
            connection.sock.unwrap().close()  # type: ignore[attr-defined]

    with RawServer(script, authority.server()) as server:
        client = wsthread.WebSocketClient(server.url, ssl_context=authority.client())
        with pytest.raises(wsthread.HandshakeError, match="closed the connection"):
            client.connect()


# Promise 12: full speed both ways, with a server that changes its keys.


class _Server:
    """TLS for one connection, without a socket; its keys can be changed (RFC 8446 4.6.3)."""

    def __init__(self, pem: str) -> None:
        import _ssl  # noqa: PLC0415

        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pem)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls: Any = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        # The ssl module cannot be asked for a KeyUpdate; OpenSSL, which it has loaded, can.
        self._key_update = ctypes.CDLL(_ssl.__file__).SSL_key_update
        self._key_update.argtypes = [ctypes.c_void_p, ctypes.c_int]
        self._shaken = False

    def receive(self, data: bytes) -> bytes:
        self._incoming.write(data)
        plain = b""
        with contextlib.suppress(ssl.SSLWantReadError):
            if not self._shaken:
                self._tls.do_handshake()
                self._shaken = True
            while True:
                plain += self._tls.read(262_144)
        return plain

    def send(self, data: bytes) -> bytes:
        """The records of `data`, and what TLS itself has to say."""
        if data:
            self._tls.write(data)
        return self._outgoing.read()

    def rotate(self) -> bool:
        """Change our key with the next write, and ask the peer to change its own."""
        # struct PySSLSocket: the object's head, a reference to the socket, the SSL pointer.
        address = id(self._tls._sslobj) + object.__basicsize__ + ctypes.sizeof(ctypes.c_void_p)
        return bool(self._key_update(ctypes.c_void_p.from_address(address).value, 1))


def _rotating_echo(pipe: Any, pem: str) -> None:
    """Echoes frames, in one thread, and changes keys all the time; its close tells how often."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        pipe.send(listener.getsockname()[1])
        sock, _ = listener.accept()
    connection = RawConnection(sock)  # for the head alone
    sock.setblocking(False)
    tls = _Server(pem)
    incoming, outgoing = b"", bytearray()
    upgraded = closing = False
    rotations = 0
    due = time.monotonic() + 0.1
    while not closing or outgoing:
        full = closing or len(outgoing) > 4_000_000
        select.select([] if full else [sock], [sock] if outgoing else [], [], 0.05)
        with contextlib.suppress(BlockingIOError):
            if not full:
                incoming += tls.receive(sock.recv(262_144))
        if not upgraded and b"\r\n\r\n" in incoming:
            head, _, incoming = incoming.partition(b"\r\n\r\n")
            outgoing += tls.send(connection.accept_head(head) + b"\r\n")
            upgraded = True
        if upgraded and not closing:
            echoes, incoming, closing = _echo(incoming)
            if closing:
                echoes += frame(8, struct.pack("!H", 1000) + b"%d" % rotations)
            if time.monotonic() >= due:
                rotations += tls.rotate()
                due = time.monotonic() + 0.003
            outgoing += tls.send(echoes)
        outgoing += tls.send(b"")
        with contextlib.suppress(BlockingIOError):
            while outgoing:
                del outgoing[: sock.send(outgoing)]
    with contextlib.suppress(EOFError):
        pipe.recv()
    sock.close()


def _echo(incoming: bytes) -> Tuple[bytes, bytes, bool]:
    """Turn whole frames of the client into the server's; give the rest, and whether it closes."""
    echoes: List[bytes] = []
    position = 0
    while len(incoming) - position >= 6:
        first, length, head = incoming[position], incoming[position + 1] & 0x7F, 6
        if length == 126:
            (length,), head = struct.unpack_from("!H", incoming, position + 2), 8
        elif length == 127:
            raise ValueError("this server takes no frames that large")
        end = position + head + length
        if len(incoming) < end:
            break
        key = incoming[position + head - 4 : position + head]
        mask = int.from_bytes((key * (length // 4 + 1))[:length], "big")
        payload = int.from_bytes(incoming[position + head : end], "big") ^ mask
        opcode = first & 15
        if opcode == 8:
            return b"".join(echoes), b"", True
        echoes.append(frame(10 if opcode == 9 else opcode, payload.to_bytes(length, "big")))
        position = end
    return b"".join(echoes), incoming[position:], False


class Checks(wsthread.WebSocketDelegate):
    """Takes the echoes: whole, and each thread's in order."""

    def __init__(self) -> None:
        self.next = [0] * 4
        self.count = 0
        self.bytes = 0
        self.wrong: List[str] = []

    def on_message(self, client: Any, message: bytes) -> None:
        thread, number = struct.unpack_from("!HI", message)
        if number != self.next[thread] or message[6:] != bytes([number & 255]) * (len(message) - 6):
            self.wrong.append(f"{thread}: {number}, not {self.next[thread]}")
        self.next[thread] = number + 1
        self.bytes += len(message)
        self.count += 1

    def on_error(self, client: Any, error: BaseException) -> None:
        self.wrong.append(repr(error))


@pytest.mark.unmeasured
@pytest.mark.skipif(sys.implementation.name != "cpython", reason="its server knows CPython inside")
@pytest.mark.parametrize("seconds", [2, pytest.param(60, marks=pytest.mark.thorough)])
def test_promise_12_full_duplex_with_keys_that_change(
    seconds: int, authority: Authority, tmp_path: Path
) -> None:
    """4 threads send as fast as it goes, everything comes back, keys change hundreds of times."""
    pem = tmp_path / "server.pem"
    issued = authority.ca.issue_cert("127.0.0.1")
    issued.private_key_and_cert_chain_pem.write_to_path(str(pem))
    delegate = Checks()
    sent = [0] * 4
    with in_process(_rotating_echo, str(pem)) as port:
        client = wsthread.WebSocketClient(
            f"wss://127.0.0.1:{port}/",
            delegate,
            ssl_context=authority.client(),
            reconnect=False,
            compression=None,
            send_queue=QueueLimit(messages=64),
            close_timeout=SOON * 3,
        )
        client.connect()
        until = time.monotonic() + seconds

        def send(thread: int) -> None:
            while time.monotonic() < until:
                number = sent[thread]
                size = 1 + number * 7919 % 40_000
                client.send(struct.pack("!HI", thread, number) + bytes([number & 255]) * size)
                sent[thread] += 1
                if number % 50 == 0:
                    client.ping(timeout=SOON * 3)

        senders = [Background(send, thread) for thread in range(4)]
        for sender in senders:
            sender.result(seconds + SOON * 3)
        client.ping(timeout=SOON * 3)  # behind the last echo
        until = time.monotonic() + SOON
        while delegate.count < sum(sent) and time.monotonic() < until:
            time.sleep(0.01)
        assert delegate.wrong == []
        assert delegate.next == sent
        assert client.disconnect()
    assert delegate.wrong == []
    assert client.close_code == 1000
    assert client.close_reason is not None
    changed = int(client.close_reason)
    print(
        f"{sum(sent)} messages, {delegate.bytes >> 20} MiB each way, keys changed {changed} times"
    )
    assert changed > 10 * seconds
