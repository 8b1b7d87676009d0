"""Several processes receive, Redis keeps what they received, and several processes handle it.

    python redis_streams.py receive WSS_URL     one process for each feed
    python redis_streams.py handle NAME         as many as the work needs

REDIS_URL says where Redis is (default: redis://127.0.0.1:6379/0). A receiver adds every message to
a stream. Handlers are a consumer group: each message goes to one of them, and belongs to it
until it says that it is done. What a handler that was killed has left undone is taken over by the
others, so a message may be handled twice, but is never lost: handling it must bear that.
"""

from __future__ import annotations

import os
import signal
import sys

import redis

import wsthread

STREAM, GROUP, RESULTS = "messages", "handlers", "results"
#: Milliseconds after which a message that is not done may be taken over.
ABANDONED = int(os.environ.get("ABANDONED_MS", "30000"))


def database() -> redis.Redis:
    return redis.Redis.from_url(os.environ.get("REDIS_URL", "redis://127.0.0.1:6379/0"))


class Receiver(wsthread.WebSocketDelegate):
    """Puts every message into the stream. While Redis is slow, the server has to wait."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.redis = database()

    def on_open(self, client: wsthread.WebSocketClient) -> None:
        client.send("subscribe")

    def on_message(self, client: wsthread.WebSocketClient, message: str | bytes) -> None:
        self.redis.xadd(STREAM, {"source": self.source, "data": message})


def receive(url: str) -> int:
    client = wsthread.WebSocketClient(
        url,
        Receiver(url),
        reconnect=wsthread.Reconnect(first=True),
        receive_queue=wsthread.QueueLimit(messages=100),
    )
    signal.signal(signal.SIGTERM, lambda *_: client.disconnect(code=1001, wait=False))
    client.connect(wait=False)
    client.wait()
    return 0


def handle(name: str) -> int:
    server = database()
    try:
        server.xgroup_create(STREAM, GROUP, id="0", mkstream=True)
    except redis.ResponseError as error:
        if "BUSYGROUP" not in str(error):  # another handler was first
            raise
    leaving = False

    def leave(*_: object) -> None:
        nonlocal leaving
        leaving = True

    signal.signal(signal.SIGTERM, leave)
    while not leaving:
        _, abandoned, *_ = server.xautoclaim(STREAM, GROUP, name, ABANDONED, count=10)
        fresh = server.xreadgroup(GROUP, name, {STREAM: ">"}, count=10, block=200)
        messages = abandoned + (fresh[0][1] if fresh else [])
        for number, fields in messages:
            work(server, number, fields)
            server.xack(STREAM, GROUP, number)
    return 0


def work(server: redis.Redis, number: bytes, fields: dict[bytes, bytes]) -> None:
    """Handle a message; a second time it changes nothing."""
    server.hset(RESULTS, number, fields[b"data"])
    server.hincrby("done by", os.getpid(), 1)


if __name__ == "__main__":
    command, argument = sys.argv[1:]
    sys.exit({"receive": receive, "handle": handle}[command](argument))
