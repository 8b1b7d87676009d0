"""Takes a picture of a web page, by Chromium's DevTools protocol over a WebSocket.

    python devtools.py URL PICTURE.png

Needs nothing but Chromium; --no-sandbox is passed on where it is given.
"""

from __future__ import annotations

import base64
import itertools
import json
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import wsthread

FLAGS = [
    "--headless",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-quic",
    "--remote-debugging-port=0",
    "--window-size=800,600",
]


class DevTools:
    """Calls methods of the browser, and waits for its events. Any thread.

    Answers carry the number of their call, so that any number of calls may be under way.
    """

    def __init__(self, url: str) -> None:
        self.numbers = itertools.count(1)
        self.calls: dict[int, Future[Any]] = {}
        self.events: dict[str, Future[Any]] = {}
        self.client = wsthread.WebSocketClient(
            url,
            self,
            weak_delegate=True,
            reconnect=False,
            proxy=None,
            max_message_size=256 * 2**20,  # a picture comes as one message
        )
        self.client.connect()

    def call(self, method: str, session: str | None = None, **parameters: Any) -> Any:
        number = next(self.numbers)
        answer = self.calls[number] = Future()
        message = {"id": number, "method": method, "params": parameters}
        if session is not None:
            message["sessionId"] = session
        self.client.send(json.dumps(message))
        return answer.result(30)

    def event(self, method: str) -> Future[Any]:
        """Return what the next event of this name will be. Ask before what causes it."""
        return self.events.setdefault(method, Future())

    def on_message(self, client: wsthread.WebSocketClient, text: str | bytes) -> None:
        message = json.loads(text)
        if "id" in message:
            answer = self.calls.pop(message["id"])
            if "error" in message:
                answer.set_exception(RuntimeError(message["error"]["message"]))
            else:
                answer.set_result(message["result"])
        elif message["method"] in self.events:
            self.events.pop(message["method"]).set_result(message["params"])

    def on_close(self, client: wsthread.WebSocketClient, code: int, reason: str) -> None:
        for waiting in [*self.calls.values(), *self.events.values()]:
            waiting.set_exception(ConnectionError(f"the browser has gone: {code} {reason}"))


def listening(lines: Iterable[str]) -> str:
    """Return where the browser says that it listens, between other things."""
    said = []
    for line in lines:
        if "DevTools listening" in line:
            return line.split()[-1]
        said.append(line)
    raise RuntimeError("the browser did not start:\n" + "".join(said))


def take_picture(devtools: DevTools, url: str) -> bytes:
    target = devtools.call("Target.createTarget", url="about:blank")["targetId"]
    attached = devtools.call("Target.attachToTarget", targetId=target, flatten=True)
    session = attached["sessionId"]
    devtools.call("Page.enable", session)
    loaded = devtools.event("Page.loadEventFired")
    devtools.call("Page.navigate", session, url=url)
    loaded.result(30)
    picture = devtools.call("Page.captureScreenshot", session, format="png")
    return base64.b64decode(picture["data"])


def main() -> int:
    arguments = [argument for argument in sys.argv[1:] if argument != "--no-sandbox"]
    flags = FLAGS + ["--no-sandbox"] * ("--no-sandbox" in sys.argv)
    url, picture = arguments
    browser = shutil.which("chromium") or shutil.which("google-chrome") or "chromium"
    profile = tempfile.mkdtemp()
    process = subprocess.Popen(
        [browser, *flags, f"--user-data-dir={profile}", "about:blank"],
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    try:
        devtools = DevTools(listening(process.stderr))
        Path(picture).write_bytes(take_picture(devtools, url))
        devtools.call("Browser.close")
        devtools.client.wait(10)
    finally:
        process.terminate()
        process.communicate()
        shutil.rmtree(profile, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
