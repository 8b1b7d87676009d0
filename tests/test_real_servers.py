"""Conversations with real servers: `websockets`, plain and TLS, and `ws` on Node."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, Iterator, List, Union

import pytest

import wsthread
from tests.node_server import node_server
from tests.support import SOON, Certificates, echo_server
from wsthread.testing import RecordingDelegate

MANY = 100_000


@pytest.fixture(scope="module")
def node_url(ws_package: Path) -> Iterator[str]:
    with node_server(ws_package) as url:
        yield url


@pytest.fixture(scope="module")
def certificates() -> Certificates:
    return Certificates()


@pytest.fixture(scope="module")
def websockets_url() -> Iterator[str]:
    with echo_server() as url:
        yield url


@pytest.fixture(scope="module")
def tls_url(certificates: Certificates, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with echo_server(certificates.write(tmp_path_factory.mktemp("tls"))) as url:
        yield url


@pytest.fixture(scope="module", params=["websockets_url", "tls_url", "node_url"])
def url(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


@pytest.fixture
def options(url: str, certificates: Certificates) -> Any:
    return {"ssl_context": certificates.client_context()} if url.startswith("wss") else {}


MESSAGES: List[Union[str, bytes]] = [
    "Have a good day!",
    "",
    "Grüße, 世界, 🦆",
    "\0\x7f\ufeff\uffff\U0010ffff",
    b"",
    bytes(range(256)),
    "x" * 125,
    "x" * 126,
    b"y" * 65535,
    b"y" * 65536,
    "é" * 524288,  # 1 MiB on the wire
    b"\xff\0" * 524288,
]


def test_every_kind_of_message_comes_back(url: str, options: Any) -> None:
    delegate = RecordingDelegate()
    with wsthread.WebSocketClient(url, delegate, **options) as client:
        for message in MESSAGES:
            client.send(message)
        delegate.wait_for("message", count=len(MESSAGES))
        assert client.ping(timeout=SOON) < SOON
        received = delegate.messages()
    assert received[: len(MESSAGES)] == MESSAGES
    assert [event[1] for event in delegate.of("sent")] == MESSAGES
    assert delegate.of("close") == [("close", 1000, "")]
    assert delegate.of("error", "unsent") == []
    assert client.error is None


def test_the_server_closes_with_code_and_reason(url: str, options: Any) -> None:
    delegate = RecordingDelegate()
    client = wsthread.WebSocketClient(url, delegate, reconnect=False, **options)
    client.connect()
    client.send("close 4321 genug für heute")
    assert client.wait(SOON)
    assert (client.close_code, client.close_reason) == (4321, "genug für heute")
    assert delegate.of("close") == [("close", 4321, "genug für heute")]
    (error,) = [event[1] for event in delegate.of("error")]
    assert isinstance(error, wsthread.ConnectionClosed)
    assert (error.code, error.reason, error.clean) == (4321, "genug für heute", True)


def test_five_lines(node_url: str) -> None:
    example = Path(__file__).parent.parent / "docs" / "examples" / "echo.py"
    done = subprocess.run(
        [sys.executable, "-W", "error", str(example), node_url],
        env={**os.environ, "PYTHONPATH": str(example.parents[2])},
        capture_output=True,
        text=True,
        timeout=SOON,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "Have a good day!\n", "")


def test_node_is_told_code_reason_headers_and_pings(node_url: str) -> None:
    delegate = RecordingDelegate()
    with wsthread.WebSocketClient(node_url, delegate, headers={"X-Token": "abc"}) as client:
        client.send("head x-token")
        assert delegate.wait_for("message") == ("message", "abc")
        client.ping(b"are you there", timeout=SOON)
        assert delegate.wait_for("message", count=2) == ("message", "pinged are you there")
        assert client.disconnect(3999, "ça suffit")
    delegate = RecordingDelegate()
    with wsthread.WebSocketClient(node_url, delegate) as client:
        client.send("closed")
        assert delegate.wait_for("message") == ("message", "3999 ça suffit")


class Counter(wsthread.WebSocketDelegate):
    """Checks that the messages are the numbers from 0 on; keeps none."""

    def __init__(self) -> None:
        self.next = 0
        self.wrong: List[Any] = []
        self.done = threading.Event()

    def on_message(self, client: wsthread.WebSocketClient, message: Union[str, bytes]) -> None:
        if message == "end":
            self.done.set()
        elif message == str(self.next):
            self.next += 1
        elif len(self.wrong) < 10:
            self.wrong.append((self.next, message))


def test_each_of_100000_messages_comes_once_and_in_order(url: str, options: Any) -> None:
    delegate = Counter()
    with wsthread.WebSocketClient(url, delegate, **options) as client:
        client.send(f"push {MANY}")
        client.send("end")  # comes back behind the last number
        assert delegate.done.wait(SOON * 4)
        stats = client.stats
    assert delegate.wrong == []
    assert delegate.next == MANY
    assert (stats.messages_received, stats.messages_dropped) == (MANY + 1, 0)


def test_each_of_100000_messages_is_sent_once_and_in_order(url: str, options: Any) -> None:
    delegate = Counter()
    with wsthread.WebSocketClient(url, delegate, **options) as client:
        for first in range(0, MANY, 1000):
            client.send_many(str(number) for number in range(first, first + 1000))
        client.send("end")
        assert delegate.done.wait(SOON * 4)
        stats = client.stats
    assert delegate.wrong == []
    assert delegate.next == MANY
    assert (stats.messages_sent, stats.messages_unsent) == (MANY + 1, 0)


def test_a_certificate_of_nobody_known_is_refused(tls_url: str) -> None:
    client = wsthread.WebSocketClient(tls_url)
    with pytest.raises(wsthread.ConnectError) as caught:
        client.connect()
    assert "certificate" in str(caught.value).lower()
    assert client.state is wsthread.ConnectionState.DISCONNECTED
