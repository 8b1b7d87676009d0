"""A web application that holds a client: it shows the newest message of a feed.

    FEED_URL=wss://... flask --app flask_app run
    FEED_URL=wss://... gunicorn --workers 2 --threads 4 'flask_app:create_app()'

Every worker process makes a client of its own, when it is asked for the first time: a client
that was connected before a fork does not go on in the child.
"""

from __future__ import annotations

import atexit
import os
import threading

import flask

import wsthread


class Feed:
    """The newest message. Any thread may read it."""

    def __init__(self, url: str) -> None:
        self.newest: str | bytes | None = None
        self.came = threading.Event()
        self.client = wsthread.WebSocketClient(
            url, self, weak_delegate=True, reconnect=wsthread.Reconnect(first=True)
        )
        self.client.connect(wait=False)
        # The interpreter's end closes it as well; this one waits for the close handshake.
        atexit.register(self.client.disconnect, code=1001)

    def on_open(self, client: wsthread.WebSocketClient) -> None:
        client.send("subscribe")

    def on_message(self, client: wsthread.WebSocketClient, message: str | bytes) -> None:
        self.newest = message  # one assignment: readers see the old one or the new one
        self.came.set()


def create_app() -> flask.Flask:
    app = flask.Flask(__name__)
    lock = threading.Lock()
    feeds: dict[int, Feed] = {}  # by process; the lock's

    def feed() -> Feed:
        with lock:
            if os.getpid() not in feeds:
                feeds[os.getpid()] = Feed(os.environ["FEED_URL"])
            return feeds[os.getpid()]

    @app.get("/")
    def newest() -> flask.Response:
        current = feed()
        if not current.came.wait(5):
            flask.abort(503, "nothing has come yet")
        return flask.jsonify(newest=current.newest, state=current.client.state.name)

    @app.post("/send")
    def send() -> tuple[str, int]:
        try:
            feed().client.send(flask.request.get_data(as_text=True), timeout=2)
        except wsthread.WebSocketError as error:
            flask.abort(503, str(error))
        return "", 202

    return app
