"""Tests of a delegate, against a real server: run them with pytest."""

import wsthread
from wsthread.testing import LocalServer, RecordingDelegate


class Prices(wsthread.WebSocketDelegate):
    """What is tested: subscribes, and keeps the newest price."""

    def __init__(self):
        self.newest = None

    def on_open(self, client):
        client.send("subscribe")

    def on_message(self, client, message):
        self.newest = float(message)


def test_the_newest_price_is_kept():
    prices = Prices()
    recorder = RecordingDelegate(prices)
    server = LocalServer(reply=lambda request: ["9.5", "10"])
    with server, wsthread.WebSocketClient(server.url, recorder):
        recorder.wait_for("message", "10")
    assert server.messages == ["subscribe"]
    assert prices.newest == 10


def test_it_subscribes_again_when_the_connection_was_lost(wsthread_server):
    server = wsthread_server
    server.reply = lambda request: "11"
    recorder = RecordingDelegate(Prices())
    policy = wsthread.Reconnect(delay=0.01)
    with wsthread.WebSocketClient(server.url, recorder, reconnect=policy):
        server.wait_for_messages(1)
        server.drop()
        server.wait_for_messages(2)


def test_a_message_that_is_no_price_is_an_error(wsthread_server):
    wsthread_server.reply = lambda request: "much"
    recorder = RecordingDelegate(Prices())
    with wsthread.WebSocketClient(wsthread_server.url, recorder):
        assert isinstance(recorder.wait_for("error")[1], ValueError)
