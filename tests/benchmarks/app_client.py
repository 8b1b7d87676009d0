"""websocket-client's ``WebSocketApp``: like wsthread's, its messages come to a callback."""

from __future__ import annotations

import gc
from time import perf_counter
from typing import Any, Callable, List, Optional

import websocket

from .clients import Server, check
from .messages import TEXT, Checker, stream


class App:
    def _run(self, url: str, first: Any, on_message: Callable[[Any, Any], None]) -> float:
        """Send the first message and run until closed; return when that was sent."""
        began = 0.0
        errors: List[Exception] = []

        def on_open(app: Any) -> None:
            nonlocal began
            gc.collect()
            began = perf_counter()
            app.send(first)

        app = websocket.WebSocketApp(
            url,
            on_open=on_open,
            on_message=on_message,
            on_error=lambda _, error: errors.append(error),
        )
        app.run_forever(
            http_no_proxy=["127.0.0.1"],
            # It would look at each byte in Python. Text then comes as bytes, and is decoded here.
            skip_utf8_validation=True,
        )
        if errors:
            raise errors[0]
        return began

    def receive(self, server: Server, kind: str, size: int, count: int) -> float:
        check(kind, TEXT)
        checker = Checker(kind, size, count)
        expected, ended = checker.next, 0.0
        last: Any = None

        def on_message(app: Any, data: bytes) -> None:
            nonlocal ended, last
            message = data.decode()
            if message != expected():
                ended, last = perf_counter(), message
                app.close()

        began = self._run(server.url("receive", kind, size, count), "go", on_message)
        checker.finish(last)
        return ended - began

    def echo(self, server: Server, size: int, count: int) -> float:
        messages = stream(TEXT, size, count)
        sent: Optional[str] = next(messages)
        ended = 0.0

        def on_message(app: Any, data: bytes) -> None:
            nonlocal ended, sent
            check(data.decode(), sent)
            sent = next(messages, None)
            if sent is None:
                ended = perf_counter()
                app.close()
            else:
                app.send(sent)

        began = self._run(server.url("echo"), sent, on_message)
        check(sent, None)
        return ended - began
