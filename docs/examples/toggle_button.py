"""A window with a button that connects and disconnects, and a log of what happens.

    python toggle_button.py [URL]

Without a URL it talks to an echo server of its own: pip install 'wsthread[demo]'
"""

from __future__ import annotations

import sys
import time
import tkinter
from tkinter import ttk
from tkinter.scrolledtext import ScrolledText
from typing import Union

import wsthread
from wsthread import ConnectionState
from wsthread.demo import DemoError, local_server

MESSAGE = "Have a good day!"
COLORS = {
    ConnectionState.DISCONNECTED: "#5f6368",
    ConnectionState.CONNECTING: "#b06000",
    ConnectionState.CONNECTED: "#188038",
    ConnectionState.RECONNECTING: "#b06000",
    ConnectionState.CLOSING: "#b06000",
}


class ViewController(wsthread.WebSocketDelegate):
    """Owns the client and is its delegate. All of it runs on Tk's thread.

    Nothing in here may wait for the network, or the window would freeze: `connect` and
    `disconnect` are told so, and how they went comes to `on_state_change`.
    """

    def __init__(self, root: tkinter.Tk, url: str) -> None:
        self.root = root
        self.state = ConnectionState.DISCONNECTED
        self.leaving = False  # the window was closed; it goes when the connection has
        self.dispatcher = wsthread.PumpDispatcher()
        # The client is ours and we are its delegate: weakly, or the two would be a cycle.
        self.client = wsthread.WebSocketClient(
            url, self, weak_delegate=True, dispatcher=self.dispatcher
        )
        self.build(url)
        root.protocol("WM_DELETE_WINDOW", self.did_close_window)
        try:
            # Tk itself watches the dispatcher's descriptor, next to its own events.
            root.createfilehandler(self.dispatcher.fileno(), tkinter.READABLE, self.pump)
        except AttributeError:  # not on Windows
            self.poll()

    def build(self, url: str) -> None:
        self.root.title("wsthread")
        self.root.minsize(420, 360)
        style = ttk.Style(self.root)
        style.theme_use("clam")
        style.configure("Hit.TButton", font="TkHeadingFont 16", foreground="#1a56db", padding=24)
        style.map("Hit.TButton", foreground=[("disabled", "#9aa0a6")])
        page = ttk.Frame(self.root, padding=20)
        page.pack(fill="both", expand=True)
        ttk.Label(page, text=url, foreground="#5f6368").pack()
        self.button = ttk.Button(
            page, text="Hit me!", style="Hit.TButton", width=12, command=self.did_tap_button
        )
        self.button.pack(pady=16)
        self.status = ttk.Label(page)
        self.status.pack()
        self.log = ScrolledText(
            page, width=52, height=12, padx=8, pady=6, relief="flat", font="TkFixedFont"
        )
        self.log.configure(state="disabled")  # read only
        self.log.pack(fill="both", expand=True, pady=(16, 0))
        self.show_state()

    # What the user does.

    def did_tap_button(self) -> None:
        if self.state is ConnectionState.DISCONNECTED:
            self.client.connect(wait=False)
        else:
            self.client.disconnect(wait=False)

    def did_close_window(self) -> None:
        if self.state is ConnectionState.DISCONNECTED:
            self.root.destroy()
        else:
            self.leaving = True
            self.root.withdraw()
            self.client.disconnect(wait=False)

    # What the client tells. The dispatcher brings it to Tk's thread.

    def pump(self, *event: object) -> None:
        self.dispatcher.run_pending()

    def poll(self) -> None:
        self.pump()
        self.root.after(20, self.poll)

    def on_state_change(self, client: wsthread.WebSocketClient, state: ConnectionState) -> None:
        self.state = state
        self.write(state.name.lower())
        self.show_state()
        if state is ConnectionState.CONNECTED:
            client.send(MESSAGE)
        elif state is ConnectionState.DISCONNECTED and self.leaving:
            self.root.destroy()

    def on_message(self, client: wsthread.WebSocketClient, message: Union[str, bytes]) -> None:
        self.write(f"received: {message!r}")

    def on_sent(self, client: wsthread.WebSocketClient, message: Union[str, bytes]) -> None:
        self.write("the message has been sent")

    def on_error(self, client: wsthread.WebSocketClient, error: BaseException) -> None:
        self.write(f"error: {error}")

    def on_close(self, client: wsthread.WebSocketClient, code: int, reason: str) -> None:
        self.write(f"closed with code {code} {reason}".rstrip())

    # What is seen.

    def show_state(self) -> None:
        self.status.configure(
            text=f"\N{BLACK CIRCLE} {self.state.name.lower()}", foreground=COLORS[self.state]
        )
        closing = self.state is ConnectionState.CLOSING
        self.button.state(["disabled" if closing else "!disabled"])

    def write(self, text: str) -> None:
        self.log.configure(state="normal")
        self.log.insert("end", f"{time.strftime('%H:%M:%S')}  {text}\n")
        self.log.configure(state="disabled")
        self.log.see("end")


def show(url: str) -> None:
    root = tkinter.Tk()
    controller = ViewController(root, url)
    root.mainloop()
    controller.client.disconnect()  # returns at once, unless the loop ended otherwise


def main() -> None:
    if len(sys.argv) > 1:
        show(sys.argv[1])
        return
    try:
        with local_server() as url:
            show(url)
    except DemoError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
