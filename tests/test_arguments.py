"""What may be given to a client, and what is said of the rest."""

from __future__ import annotations

import math
from typing import Any, Dict

import pytest

import wsthread
from tests.support import SOON, RawConnection, RawServer
from wsthread import QueueLimit, Reconnect, WebSocketClient

URL = "ws://127.0.0.1:9/"
DROPS = QueueLimit(overflow="drop_newest")


@pytest.mark.parametrize(
    "options, error, text",
    [
        ({"url": 5}, TypeError, "url is a str or callable, not int"),
        ({"reconnect": 1}, TypeError, "reconnect is a bool or Reconnect, not int"),
        ({"dispatcher": print}, TypeError, "dispatcher is a Dispatcher"),
        ({"max_message_size": 1.5}, TypeError, "max_message_size is an int, not float"),
        ({"max_message_size": True}, TypeError, "max_message_size is an int, not bool"),
        ({"max_message_size": 0}, ValueError, "max_message_size is at least 1, not 0"),
        ({"connect_timeout": "1"}, TypeError, "connect_timeout is a number of seconds, not str"),
        ({"close_timeout": True}, TypeError, "close_timeout is a number of seconds, not bool"),
        ({"send_timeout": -1}, ValueError, "send_timeout is finite and not negative, not -1"),
        ({"ping_timeout": math.inf}, ValueError, "ping_timeout is finite"),
        ({"ping_timeout": math.nan}, ValueError, "ping_timeout is finite"),
        ({"ping_interval": 0}, ValueError, "ping_interval is more than 0"),
        ({"open_grace": None}, TypeError, "open_grace is a number of seconds, not NoneType"),
        ({"send_queue": 5}, TypeError, "send_queue is a QueueLimit, not int"),
        ({"receive_queue": None}, TypeError, "receive_queue is a QueueLimit"),
        ({"send_queue": DROPS}, ValueError, "overflow is for the receive queue"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_constructor_refuses_what_cannot_be_right(
    options: Dict[str, Any], error: Any, text: str
) -> None:
    with pytest.raises(error, match=text):
        WebSocketClient(**{"url": URL, **options})


@pytest.mark.parametrize(
    "options, error, text",
    [
        ({"messages": 0}, ValueError, "QueueLimit.messages is at least 1, not 0"),
        ({"bytes": -1}, ValueError, "QueueLimit.bytes is at least 1, not -1"),
        ({"messages": 1.0}, TypeError, "QueueLimit.messages is an int, not float"),
        ({"bytes": True}, TypeError, "QueueLimit.bytes is an int, not bool"),
        ({"overflow": "drop"}, ValueError, "overflow is one of block, drop_oldest, .* not 'drop'"),
    ],
)
def test_a_queue_limit_refuses_what_cannot_be_right(
    options: Dict[str, Any], error: Any, text: str
) -> None:
    with pytest.raises(error, match=text):
        QueueLimit(**options)


def test_none_is_for_ever_and_a_reconnect_is_taken_as_it_is() -> None:
    policy = Reconnect()
    client = WebSocketClient(
        URL,
        reconnect=policy,
        max_message_size=None,
        connect_timeout=None,
        close_timeout=None,
        send_timeout=None,
        ping_interval=None,
        ping_timeout=None,
    )
    assert client.reconnect is policy
    assert repr(client).startswith("<WebSocketClient DISCONNECTED at 0x")


@pytest.mark.parametrize("method", ["connect", "disconnect", "wait", "send", "flush", "ping"])
@pytest.mark.parametrize(
    "timeout, error", [(-1, ValueError), ("1", TypeError), (math.nan, ValueError)]
)
def test_methods_refuse_what_is_no_timeout(method: str, timeout: Any, error: Any) -> None:
    client = WebSocketClient(URL)
    arguments = ("text",) if method == "send" else ()
    with pytest.raises(error, match="timeout is"):
        getattr(client, method)(*arguments, timeout=timeout)
    assert client.state is wsthread.ConnectionState.DISCONNECTED
    assert client.pending == 0


def fails() -> Any:
    raise LookupError("no token")


@pytest.mark.parametrize(
    "options, text",
    [
        ({"url": lambda: 5}, "url is a str, not int"),
        ({"url": fails}, r"url\(\) raised LookupError"),
        ({"headers": fails}, r"headers\(\) raised LookupError"),
        ({"headers": lambda: 5}, "headers: headers is a mapping or pairs of str, not int"),
        ({"headers": lambda: {"A": "b\r\nC: d"}}, "headers: the value of the header A contains"),
        ({"headers": lambda: {"Host": "other"}}, "headers: the header Host belongs to"),
    ],
)
def test_what_callables_return_is_checked_as_well(options: Dict[str, Any], text: str) -> None:
    client = WebSocketClient(**{"url": URL, "reconnect": False, **options})
    with pytest.raises(wsthread.ConnectError, match=text):
        client.connect()
    assert client.state is wsthread.ConnectionState.DISCONNECTED


class Owner(wsthread.WebSocketDelegate):
    def __init__(self, url: str) -> None:
        self._url = url
        self.asked = 0

    def url(self) -> str:
        self.asked += 1
        return self._url

    def headers(self) -> Dict[str, str]:
        return {"X-Asked": str(self.asked)}


def test_callables_are_called_for_every_attempt_and_held_weakly_with_their_owner() -> None:
    def script(connection: RawConnection) -> None:
        heads.append(connection.upgrade())
        connection.answer_close()

    heads: Any = []
    with RawServer(script) as server:
        owner = Owner(server.url)
        client = WebSocketClient(owner.url, owner, headers=owner.headers, weak_delegate=True)
        for _ in range(2):
            client.connect()
            assert client.disconnect(timeout=SOON)
        source = client.source
        assert [b"X-Asked: 1" in heads[0], b"X-Asked: 2" in heads[1]] == [True, True]
        del owner
        assert client.delegate is None
        with pytest.raises(ReferenceError):
            client.connect()
        for function in (source.url, source.headers):
            with pytest.raises(ReferenceError, match="owner"):
                function()  # type: ignore[operator]
