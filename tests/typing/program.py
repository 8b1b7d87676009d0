"""A user's program, as type checkers see it: checked by mypy and pyright, never run.

Each ignored error is one that must be found: where types are not seen, it is reported as unused.
"""

from __future__ import annotations

import ssl
from concurrent.futures import ThreadPoolExecutor

import wsthread
from wsthread.testing import LocalServer, RecordingDelegate


class Prices(wsthread.WebSocketDelegate):
    def on_open(self, client: wsthread.WebSocketClient) -> None:
        client.send("subscribe")

    def on_message(self, client: wsthread.WebSocketClient, message: str | bytes) -> None:
        length: int = len(message)
        print(length)

    def on_close(self, client: wsthread.WebSocketClient, code: int, reason: str) -> None:
        if code == wsthread.CloseCode.NORMAL_CLOSURE:
            print(reason.upper())


def main() -> None:
    client = wsthread.WebSocketClient(
        lambda: "wss://example.org/",
        Prices(),
        dispatcher=wsthread.ExecutorDispatcher(ThreadPoolExecutor(4)),
        headers=lambda: {"Authorization": "Bearer x"},
        ssl_context=ssl.create_default_context(),
        compression=wsthread.Deflate(threshold=512),
        reconnect=wsthread.Reconnect(delay=0.5),
        receive_queue=wsthread.QueueLimit(messages=10),
    )
    with client:
        client.send(b"binary", timeout=1.5)
        client.send_many(["one", b"two"])
        seconds: float = client.ping()
        state: wsthread.ConnectionState = client.state
        over: bool = client.wait(10)
        code: int | None = client.close_code
        count: int = client.stats.messages_sent
        print(seconds, state, over, code, count)
    try:
        client.connect()
    except wsthread.HandshakeError as error:
        status: int | None = error.status
        print(status)


def wrong(client: wsthread.WebSocketClient) -> None:
    client.send(3)  # type: ignore[arg-type]
    client.sned("text")  # type: ignore[attr-defined]
    state: str = client.state  # type: ignore[assignment]
    print(state)


def test_prices() -> None:
    recorder = RecordingDelegate(Prices())
    with LocalServer() as server, wsthread.WebSocketClient(server.url, recorder):
        event: tuple[object, ...] = recorder.wait_for("message")
        print(event)


if __name__ == "__main__":
    main()
