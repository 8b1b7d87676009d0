"""Compressed conversations with servers of other makes, with and without context takeover."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import random
import threading
from typing import Any, Iterator, List, Union

import pytest

import wsthread
from tests.interop_server import python_server
from tests.node_server import node_server
from tests.support import SOON
from wsthread import Deflate

QUICK, THOROUGH = 500, 10_000
NAME = "permessage-deflate"

Message = Union[str, bytes]


@contextlib.contextmanager
def server(make: str, takeover: bool, request: pytest.FixtureRequest) -> Iterator[str]:
    if make == "ws":
        package = request.getfixturevalue("ws_package")
        none = {"serverNoContextTakeover": True, "clientNoContextTakeover": True}
        options = {"threshold": 0, **({} if takeover else none)}
        with node_server(package, options) as url:
            yield url
        return
    if importlib.util.find_spec(make) is None:
        pytest.skip(f"{make} is not installed")
    with python_server(make, takeover) as url:
        yield url


def messages(count: int) -> List[Message]:
    """Mixed kinds and sizes, from nothing to 256 KiB; some shrink, some do not."""
    chosen = random.Random(count)
    made: List[Message] = []
    for number in range(count):
        size = int(2 ** chosen.uniform(0, 14))
        if number % 250 == 249:
            size = 2**18
        kind = number % 5
        if kind == 0:
            made.append(chosen.randbytes(size))
        elif kind == 1:
            made.append(bytes([number % 256]) * size)
        elif kind == 2:
            made.append("".join(chosen.choices("aäβ語🦆 ", k=size // 2)))
        elif kind == 3:
            made.append("" if number % 2 else b"")
        else:
            row = {"id": number, "name": "x" * (number % 50), "price": chosen.random()}
            made.append(json.dumps([row] * (size // 100 + 1)))
    return made


class Collector(wsthread.WebSocketDelegate):
    """Compares what comes with what was sent, at once; keeps only what differs."""

    def __init__(self, expected: List[Message]) -> None:
        self.expected = expected
        self.count = 0
        self.wrong: List[Any] = []
        self.errors: List[Any] = []
        self.done = threading.Event()

    def on_message(self, client: Any, message: Message) -> None:
        number = self.count
        self.count += 1
        if number >= len(self.expected) or message != self.expected[number]:
            self.wrong.append((number, type(message), len(message)))
        if self.count == len(self.expected):
            self.done.set()

    def on_error(self, client: Any, error: Any) -> None:
        self.errors.append(error)
        self.done.set()


def converse(url: str, make: str, takeover: bool, count: int) -> None:
    sent = messages(count)
    delegate = Collector(sent)
    # Tornado's server never gives up its own context.
    server_takeover = takeover or make == "tornado"
    offer = Deflate(
        client_no_context_takeover=not takeover,
        server_no_context_takeover=not server_takeover,
        threshold=64,
    )
    with wsthread.WebSocketClient(url, delegate, compression=offer, reconnect=False) as client:
        (agreed,) = client.extensions
        assert agreed.split("; ")[0] == NAME
        assert ("client_no_context_takeover" in agreed) is not takeover
        assert ("server_no_context_takeover" in agreed) is not server_takeover
        for message in sent:
            client.send(message)
        assert delegate.done.wait(SOON * 2 + count / 50)
        stats = client.stats
    assert (delegate.wrong, delegate.errors) == ([], [])
    assert delegate.count == len(sent)
    size = sum(len(m.encode()) if isinstance(m, str) else len(m) for m in sent)
    # Both directions were compressed: random bytes are a fifth of what was sent.
    assert stats.bytes_received < size * 0.7
    assert client.stats.bytes_sent < size * 0.7
    assert client.close_code == 1000


MAKES = ["ws", "websockets", "aiohttp", "tornado"]
TAKEOVER = [pytest.param(True, id="takeover"), pytest.param(False, id="no-takeover")]


@pytest.mark.parametrize("takeover", TAKEOVER)
@pytest.mark.parametrize("make", MAKES)
def test_500_messages_come_back(make: str, takeover: bool, request: pytest.FixtureRequest) -> None:
    with server(make, takeover, request) as url:
        converse(url, make, takeover, QUICK)


@pytest.mark.thorough
@pytest.mark.parametrize("takeover", TAKEOVER)
@pytest.mark.parametrize("make", MAKES)
def test_10000_messages_come_back(
    make: str, takeover: bool, request: pytest.FixtureRequest
) -> None:
    with server(make, takeover, request) as url:
        converse(url, make, takeover, THOROUGH)


def test_a_server_that_passes_over_what_was_asked_for_is_refused(
    request: pytest.FixtureRequest,
) -> None:
    with server("tornado", False, request) as url:
        client = wsthread.WebSocketClient(url, compression=Deflate(server_no_context_takeover=True))
        with pytest.raises(wsthread.HandshakeError, match="server_no_context_takeover") as caught:
            client.connect()
        assert f"{NAME}: " in str(caught.value)
