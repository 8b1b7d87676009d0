"""Odd peers, odd users and odd moments that no other test has."""

from __future__ import annotations

import gc
import sys
import threading
import time
from typing import Any, Callable, Iterator, List, Optional

import pytest

import wsthread
from tests.support import SOON, RawServer, Recorder, echo_server


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with echo_server() as url:
        yield url


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + SOON
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.005)


def quick(url: str, delegate: Optional[object] = None, **options: Any) -> wsthread.WebSocketClient:
    return wsthread.WebSocketClient(url, delegate, **{"reconnect": False, **options})


@pytest.fixture
def unraisable(monkeypatch: pytest.MonkeyPatch) -> List[Any]:
    """What was raised where nobody could catch it: in __del__."""
    found: List[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda args: found.append(args.exc_value))
    return found


# Arguments.


@pytest.mark.parametrize("arguments", [((), {}), (("ws://127.0.0.1/",), {"nonsense": 1})], ids=str)
def test_a_constructor_that_was_not_entered_makes_no_noise(
    arguments: Any, unraisable: List[Any]
) -> None:
    with pytest.raises(TypeError):
        wsthread.WebSocketClient(*arguments[0], **arguments[1])
    gc.collect()
    assert unraisable == []


@pytest.mark.parametrize("subprotocols", ["chat", b"chat"])
def test_one_subprotocol_is_not_a_sequence_of_letters(subprotocols: Any) -> None:
    with pytest.raises(TypeError, match="subprotocols"):
        wsthread.WebSocketClient("ws://127.0.0.1/", subprotocols=subprotocols)


def test_a_str_that_encodes_itself_otherwise_is_sent_as_its_text() -> None:
    class Odd(str):
        def encode(self, *args: Any) -> Any:
            return "not even bytes"

    frames: List[Any] = []

    def script(connection: Any) -> None:
        connection.upgrade()
        frames.append(connection.read_frame())
        connection.answer_close()

    recorder = Recorder()
    with RawServer(script) as server, quick(server.url, recorder) as client:
        client.send(Odd("text"))
        recorder.wait_for("sent")
        assert client.disconnect()
    assert frames == [(1, b"text")]
    assert recorder.of("error") == []


# Times that are finite, and longer than the system can wait.


@pytest.mark.parametrize(
    "seconds", [3e6, threading.TIMEOUT_MAX * 2, sys.float_info.max, 10**400], ids=range(4)
)
def test_any_finite_time_is_a_time(url: str, seconds: float) -> None:
    names = ("connect", "close", "send", "ping")
    times = {f"{name}_timeout": seconds for name in names}
    recorder = Recorder()
    client = quick(url, recorder, ping_interval=seconds, open_grace=seconds, **times)
    client.connect(timeout=seconds)
    client.connect()
    client.send("one", timeout=seconds)
    client.send("two")
    client.flush(timeout=seconds)
    client.flush()
    assert client.ping(timeout=seconds) < SOON
    assert client.ping(b"again") < SOON
    recorder.wait_for("message", 2)
    waiting = threading.Thread(target=client.wait, args=(seconds,))
    waiting.start()
    assert client.disconnect(timeout=seconds)
    waiting.join(SOON)
    assert not waiting.is_alive()
    client.connect()
    assert client.disconnect()
    client.connect()
    client.abort()
    assert client.state is wsthread.ConnectionState.DISCONNECTED
    assert recorder.of("error") == []
