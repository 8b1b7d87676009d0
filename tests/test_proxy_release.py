"""Promise 1 through proxies: nothing of a connection is left, and nothing of one that failed."""

from __future__ import annotations

import contextlib
import ssl
import weakref
from pathlib import Path
from typing import Any, Optional

import pytest

import wsthread
from tests.proxy_server import LOGIN, PASSWORD, USER, ProxyServer
from tests.support import Certificates, echo_server, in_process
from tests.test_release import assert_nothing_grows
from wsthread.errors import ProxyError

pytestmark = pytest.mark.unmeasured


def _serve_proxy(pipe: Any, scheme: str, pem: Optional[str], login: Any) -> None:
    context = None
    if pem is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pem)
    with ProxyServer(scheme, context=context, login=login) as proxy:
        pipe.send(proxy.port)
        with contextlib.suppress(EOFError):
            pipe.recv()


@pytest.mark.parametrize("scheme", ["https", "socks5"])
def test_promise_01_nothing_is_left_of_proxies(scheme: str, tmp_path: Path) -> None:
    certificates = Certificates()
    pem = certificates.write(tmp_path)
    context = certificates.client_context()
    ports = in_process(_serve_proxy, scheme, pem if scheme == "https" else None, (USER, PASSWORD))
    with echo_server(pem) as url, ports as port:

        def made(login: str) -> wsthread.WebSocketClient:
            return wsthread.WebSocketClient(
                url,
                proxy=f"{scheme}://{login}127.0.0.1:{port}",
                ssl_context=context,
                proxy_ssl_context=context,
                reconnect=False,
            )

        def run() -> None:
            client = made(LOGIN)
            client.connect()
            client.send("hello")
            assert client.disconnect()
            refused = made("another:one@")
            with contextlib.suppress(ProxyError):
                refused.connect()
                raise AssertionError("connected")
            gone = weakref.ref(client), weakref.ref(refused)
            del client, refused
            assert [reference() for reference in gone] == [None, None]

        assert_nothing_grows(run, 100)
