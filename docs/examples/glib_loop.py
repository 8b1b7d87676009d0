"""A GLib main loop (GTK, GStreamer, D-Bus services): callbacks come by `GLib.idle_add`.

python glib_loop.py URL MESSAGE...
"""

from __future__ import annotations

import sys

from gi.repository import GLib

import wsthread


class Service(wsthread.WebSocketDelegate):
    """Owns the client and is its delegate. All of it runs in the main loop."""

    def __init__(self, url: str, messages: list[str]) -> None:
        self.loop = GLib.MainLoop()
        self.messages = messages
        self.client = wsthread.WebSocketClient(
            url,
            self,
            weak_delegate=True,
            # A job returns None, which tells GLib not to call it again.
            dispatcher=wsthread.PostDispatcher(GLib.idle_add),
            reconnect=False,
        )

    def run(self) -> int:
        self.client.connect(wait=False)
        self.loop.run()
        self.client.wait()
        return 0 if self.client.close_code == 1000 else 1

    def on_open(self, client: wsthread.WebSocketClient) -> None:
        client.send_many(self.messages)

    def on_message(self, client: wsthread.WebSocketClient, message: str | bytes) -> None:
        print(message, flush=True)
        self.messages.pop()
        if not self.messages:
            client.disconnect(wait=False)

    def on_state_change(
        self, client: wsthread.WebSocketClient, state: wsthread.ConnectionState
    ) -> None:
        if state is wsthread.ConnectionState.DISCONNECTED:
            self.loop.quit()


if __name__ == "__main__":
    sys.exit(Service(sys.argv[1], sys.argv[2:]).run())
