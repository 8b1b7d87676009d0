"""A service: a pool of workers runs the callbacks of its clients, and SIGTERM ends it in order.

    python service.py URL...

The messages of one client are handled one after another, those of different clients at once.
"""

from __future__ import annotations

import logging
import signal
import sys
from concurrent.futures import ThreadPoolExecutor

import wsthread

logger = logging.getLogger("service")


class Feed:
    """One connection. It owns its client and is its delegate, weakly: that makes no cycle."""

    def __init__(self, url: str, dispatcher: wsthread.Dispatcher) -> None:
        self.handled = 0
        self.client = wsthread.WebSocketClient(
            url,
            self,
            weak_delegate=True,
            dispatcher=dispatcher,
            reconnect=wsthread.Reconnect(first=True),  # the server may start after us
            receive_queue=wsthread.QueueLimit(messages=1000),  # then the server has to wait
        )

    def on_open(self, client: wsthread.WebSocketClient) -> None:
        client.send("subscribe")

    def on_message(self, client: wsthread.WebSocketClient, message: str | bytes) -> None:
        self.handled += 1  # the work; it may block, on the pool
        logger.info("handled %r", message)

    def on_reconnect(
        self,
        client: wsthread.WebSocketClient,
        attempt: int,
        delay: float,
        error: BaseException | None,
    ) -> None:
        logger.warning("attempt %d in %.1f s: %s", attempt, delay, error)


def main() -> int:
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    logging.getLogger("wsthread").setLevel(logging.WARNING)  # its INFO tells of every connection
    pool = ThreadPoolExecutor(4, thread_name_prefix="worker")
    dispatcher = wsthread.ExecutorDispatcher(pool)
    feeds = [Feed(url, dispatcher) for url in sys.argv[1:]]

    def stop(number: int, frame: object) -> None:
        # A handler may interrupt any line: this is the one call that is made for it.
        for feed in feeds:
            feed.client.disconnect(code=1001, wait=False)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    for feed in feeds:
        feed.client.connect(wait=False)
    for feed in feeds:
        feed.client.wait()  # until a signal has ended it
    pool.shutdown()
    logger.info("handled %d messages in all", sum(feed.handled for feed in feeds))
    return 0


if __name__ == "__main__":
    sys.exit(main())
