"""TLS: the end of its stream, which is not TCP's."""

from __future__ import annotations

import contextlib
import socket
import ssl

import pytest

import wsthread
from tests.support import SOON, Certificates, RawConnection, RawServer, Recorder, close_frame, frame


def end_tls_with(connection: RawConnection, data: bytes) -> None:
    """Send the last bytes and TLS's close_notify as one segment; TCP stays open."""
    sock = connection.sock
    assert isinstance(sock, ssl.SSLSocket)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)
    sock.sendall(data)
    sock.settimeout(0)
    with contextlib.suppress(ssl.SSLWantReadError):
        sock.unwrap()
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 0)
    sock.settimeout(SOON)
    while socket.socket.recv(sock, 65536):
        pass  # what the client has to say; then its end, which comes first


@pytest.mark.skipif(not hasattr(socket, "TCP_CORK"), reason="TCP_CORK is Linux's")
@pytest.mark.parametrize("closes", [False, True])
def test_the_end_of_tls_is_the_end(closes: bool) -> None:
    certificates = Certificates()

    def script(connection: RawConnection) -> None:
        connection.upgrade()
        assert connection.read_frame() == (1, b"end it")
        end_tls_with(connection, frame(1, b"last") + (close_frame(1001) if closes else b""))

    with RawServer(script, certificates.server_context()) as server:
        got = Recorder()
        client = wsthread.WebSocketClient(
            server.url,
            got,
            ssl_context=certificates.client_context(),
            reconnect=False,
            ping_interval=None,
        )
        client.connect()
        client.send("end it")
        assert client.wait(SOON)
        assert got.messages() == ["last"]
        assert client.close_code == (1001 if closes else 1006)
