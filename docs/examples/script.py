"""Prints what a server sends, and comes back when the connection is lost; Ctrl-C ends it.

python script.py URL [MESSAGE...]
"""

from __future__ import annotations

import sys

import wsthread


class Printer(wsthread.WebSocketDelegate):
    def __init__(self, greetings: list[str]) -> None:
        self.greetings = greetings

    def on_open(self, client: wsthread.WebSocketClient) -> None:
        client.send_many(self.greetings)  # also after every reconnect

    def on_message(self, client: wsthread.WebSocketClient, message: str | bytes) -> None:
        print(message, flush=True)

    def on_error(self, client: wsthread.WebSocketClient, error: BaseException) -> None:
        print(f"error: {error}", file=sys.stderr)


def main() -> int:
    url, *greetings = sys.argv[1:]
    client = wsthread.WebSocketClient(url, Printer(greetings))
    try:
        with client:
            client.wait()
    except wsthread.ConnectError as error:
        print(f"not connected: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        pass  # the connection is closed in order by now
    return 0 if client.close_code == 1000 else 1


if __name__ == "__main__":
    sys.exit(main())
