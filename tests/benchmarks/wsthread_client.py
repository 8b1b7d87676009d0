"""wsthread, as its users use it: messages come to `on_message`."""

from __future__ import annotations

import contextlib
import gc
import threading
import types
from time import perf_counter
from typing import Any, Iterator, List, Optional

import wsthread
from wsthread import frames

from .clients import DONE, TIMEOUT, Server, check, in_threads
from .messages import MANY, STAMP, TEXT, Checker, block, expected_verdict, stream


class Waiting:
    """A delegate that somebody waits for."""

    def __init__(self) -> None:
        self._done = threading.Event()
        self._error: Optional[BaseException] = None
        self.ended = 0.0
        self.last: Any = None

    def on_error(self, client: Any, error: BaseException) -> None:
        self._error = error
        self._done.set()

    def end(self, message: Any) -> None:
        self.ended = perf_counter()
        self.last = message
        self._done.set()

    def wait(self) -> float:
        """Wait for the end; return when it was."""
        if not self._done.wait(TIMEOUT):
            raise TimeoutError("what was waited for did not come")
        if self._error is not None:
            raise RuntimeError(f"the connection failed: {self._error!r}")
        return self.ended


class Short(Waiting):
    """Compares whole messages."""

    def __init__(self, checker: Checker) -> None:
        super().__init__()
        self.checker = checker
        self._next = checker.next

    def on_message(self, client: Any, message: Any) -> None:
        if message != self._next():
            self.end(message)


class Long(Short):
    """Compares the ends of messages."""

    def on_message(self, client: Any, message: Any) -> None:
        self.checker.length += len(message)
        if message[-STAMP:] != self._next():
            self.end(message)


class Judged(Waiting):
    """Sends, and waits for "done" and the verdict."""

    def __init__(self) -> None:
        super().__init__()
        self.began = 0.0
        self.done = 0.0

    def on_message(self, client: Any, message: Any) -> None:
        if message == DONE:
            self.done = perf_counter()
        else:
            self.end(message)

    def finish(self, kind: str, size: int, count: int) -> float:
        self.wait()
        check(self.last, expected_verdict(kind, size, count))
        return self.done - self.began


class Flushed(Judged):
    """Notes when the queue may go out."""

    def on_open(self, client: Any) -> None:
        self.began = perf_counter()


class Echo(Waiting):
    """Sends the next message when the one before has come back."""

    def __init__(self, messages: Iterator[str]) -> None:
        super().__init__()
        self._messages = messages
        self.expected = next(messages)

    def on_message(self, client: Any, message: Any) -> None:
        check(message, self.expected)
        following = next(self._messages, None)
        if following is None:
            self.end(message)
            return
        self.expected = following
        client.send(following)


class Wsthread:
    """Callbacks on a thread of their own, the default."""

    def _dispatcher(self) -> Optional[wsthread.Dispatcher]:
        return None

    def masker(self) -> str:
        frames.use_speedups()  # as the first client does
        pure = isinstance(frames.mask, types.FunctionType)
        return "integer XOR" if pure else "websockets.speedups"

    def client(self, server: Server, url: str, delegate: Any, **options: Any) -> Any:
        options.setdefault("dispatcher", self._dispatcher())
        options["ssl_context"] = server.context() if url.startswith("wss") else None
        return wsthread.WebSocketClient(
            url,
            delegate,
            compression=None,
            max_message_size=None,
            ping_interval=None,
            proxy=None,
            reconnect=False,
            **options,
        )

    def receive(self, server: Server, kind: str, size: int, count: int, tls: bool = False) -> float:
        checker = Checker(kind, size, count)
        delegate = Short(checker) if checker.whole else Long(checker)
        url = server.url("receive", kind, size, count, tls=tls)
        with self.client(server, url, delegate) as client:
            gc.collect()
            started = perf_counter()
            client.send("go")
            taken = delegate.wait() - started
        checker.finish(delegate.last)
        return taken

    def shared(self, server: Server, clients: int, count: int) -> float:
        """Receive `count` messages in all, with clients that share one dispatcher."""
        each = count // clients
        url = server.url("receive", TEXT, 64, each)
        delegates = [Short(Checker(TEXT, 64, each)) for _ in range(clients)]
        with contextlib.ExitStack() as stack:
            dispatcher = stack.enter_context(wsthread.ThreadDispatcher())
            opened: List[Any] = [
                stack.enter_context(self.client(server, url, delegate, dispatcher=dispatcher))
                for delegate in delegates
            ]
            gc.collect()
            started = perf_counter()
            for client in opened:
                client.send("go")
            taken = max(delegate.wait() for delegate in delegates) - started
        for delegate in delegates:
            delegate.checker.finish(delegate.last)
        return taken

    def send(self, server: Server, kind: str, size: int, count: int, threads: int = 1) -> float:
        messages, delegate = list(stream(kind, size, count)), Judged()
        with self.client(server, server.url("send", kind, size, count), delegate) as client:
            send = client.send

            def work(number: int) -> None:
                for message in messages[number::threads]:
                    send(message)

            gc.collect()
            delegate.began = perf_counter()
            if threads == 1:
                work(0)
            else:
                delegate.began = in_threads(threads, work)
            return delegate.finish(kind, size, count)

    def send_many(self, server: Server, kind: str, size: int, count: int) -> float:
        messages, delegate = list(stream(kind, size, count)), Judged()
        batches = [messages[begin : begin + MANY] for begin in range(0, count, MANY)]
        with self.client(server, server.url("send", kind, size, count), delegate) as client:
            gc.collect()
            delegate.began = perf_counter()
            for batch in batches:
                client.send_many(batch)
            return delegate.finish(kind, size, count)

    def flush(self, server: Server, kind: str, size: int, count: int) -> float:
        """What was queued before there was a connection, from `on_open` to the server."""
        delegate = Flushed()
        limit = wsthread.QueueLimit(messages=count, bytes=count * (size + 64))
        url = server.url("send", kind, size, count)
        client = self.client(server, url, delegate, send_queue=limit)
        for message in stream(kind, size, count):
            client.send(message)
        gc.collect()
        with client:
            return delegate.finish(kind, size, count)

    def echo(self, server: Server, size: int, count: int) -> float:
        delegate = Echo(stream(TEXT, size, count))
        with self.client(server, server.url("echo"), delegate) as client:
            gc.collect()
            started = perf_counter()
            client.send(delegate.expected)
            return delegate.wait() - started

    def cycles(self, server: Server, size: int, count: int) -> float:
        message = block(TEXT, size)[0]
        gc.collect()
        started = perf_counter()
        for _ in range(count):
            delegate = Echo(iter([message]))
            with self.client(server, server.url("echo"), delegate) as client:
                client.send(message)
                delegate.wait()
        return perf_counter() - started


class Inline(Wsthread):
    """Callbacks on the reader's own thread."""

    def _dispatcher(self) -> Optional[wsthread.Dispatcher]:
        return wsthread.InlineDispatcher()
