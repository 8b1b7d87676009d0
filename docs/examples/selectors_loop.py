"""A program with a loop of its own around `selectors`: callbacks run in that loop.

    python selectors_loop.py URL

What is typed is sent; what comes is printed. The end of the input ends it.
"""

from __future__ import annotations

import os
import selectors
import sys

import wsthread


class Chat(wsthread.WebSocketDelegate):
    """The loop, and the delegate of the client in it. All of it runs on the loop's thread."""

    def __init__(self, url: str) -> None:
        self.dispatcher = wsthread.PumpDispatcher()
        self.client = wsthread.WebSocketClient(
            url, self, weak_delegate=True, dispatcher=self.dispatcher, reconnect=False
        )
        self.over = False
        self.rest = b""
        self.selector = selectors.DefaultSelector()
        self.selector.register(
            self.dispatcher.fileno(), selectors.EVENT_READ, self.dispatcher.run_pending
        )

    def run(self) -> int:
        self.client.connect(wait=False)
        while not self.over:
            for key, _ in self.selector.select():
                key.data()
        self.client.wait()
        self.selector.close()
        return 0 if self.client.close_code == 1000 else 1

    def read_input(self) -> None:
        data = os.read(sys.stdin.fileno(), 65536)
        *lines, self.rest = (self.rest + data).split(b"\n")
        self.client.send_many([line.decode() for line in lines])
        if not data:
            self.selector.unregister(sys.stdin)
            self.client.disconnect(wait=False)  # closes behind what was sent

    def on_open(self, client: wsthread.WebSocketClient) -> None:
        self.selector.register(sys.stdin, selectors.EVENT_READ, self.read_input)

    def on_message(self, client: wsthread.WebSocketClient, message: str | bytes) -> None:
        print(message, flush=True)

    def on_error(self, client: wsthread.WebSocketClient, error: BaseException) -> None:
        print(f"error: {error}", file=sys.stderr)

    def on_state_change(
        self, client: wsthread.WebSocketClient, state: wsthread.ConnectionState
    ) -> None:
        self.over = state is wsthread.ConnectionState.DISCONNECTED


if __name__ == "__main__":
    sys.exit(Chat(sys.argv[1]).run())
