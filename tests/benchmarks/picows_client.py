"""picows: asyncio, in a loop of its own. What it receives comes to a callback."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from time import perf_counter
from typing import Any, AsyncIterator, Iterator, Tuple

from picows import WSCloseCode, WSListener, WSMsgType, ws_connect

from .clients import DONE, TIMEOUT, Server, check
from .messages import BINARY, STAMP, TEXT, Checker, block, expected_verdict, stream


class Waiting(WSListener):  # type: ignore[misc]
    """A listener whose end is waited for."""

    def __init__(self) -> None:
        self._done = asyncio.get_running_loop().create_future()
        self._writable = asyncio.Event()
        self.paused = False

    def pause_writing(self) -> None:
        self.paused = True
        self._writable.clear()

    def resume_writing(self) -> None:
        self.paused = False
        self._writable.set()

    async def writable(self) -> None:
        await asyncio.wait_for(self._writable.wait(), TIMEOUT)

    def on_ws_disconnected(self, transport: Any) -> None:
        if not self._done.done():
            self._done.set_exception(ConnectionError("the connection ended"))

    def end(self, message: Any) -> None:
        if not self._done.done():
            self._done.set_result((perf_counter(), message))

    async def wait(self) -> Tuple[float, Any]:
        """Return when the end was, and what was received last."""
        ended, last = await asyncio.wait_for(self._done, TIMEOUT)
        return ended, last


class ShortText(Waiting):
    def __init__(self, checker: Checker) -> None:
        super().__init__()
        self._next = checker.next

    def on_ws_frame(self, transport: Any, frame: Any) -> None:
        message = frame.get_payload_as_utf8_text()
        if message != self._next():
            self.end(message)


class ShortBinary(ShortText):
    def on_ws_frame(self, transport: Any, frame: Any) -> None:
        message = frame.get_payload_as_bytes()
        if message != self._next():
            self.end(message)


class Long(Waiting):
    def __init__(self, checker: Checker, kind: str) -> None:
        super().__init__()
        self._checker, self._next, self._binary = checker, checker.next, kind == BINARY

    def on_ws_frame(self, transport: Any, frame: Any) -> None:
        if frame.msg_type == WSMsgType.CLOSE:
            return
        if self._binary:
            message = frame.get_payload_as_bytes()
        else:
            message = frame.get_payload_as_utf8_text()
        self._checker.length += len(message)
        if message[-STAMP:] != self._next():
            self.end(message)


class Judged(Waiting):
    done = 0.0

    def on_ws_frame(self, transport: Any, frame: Any) -> None:
        message = frame.get_payload_as_utf8_text()
        if message == DONE:
            self.done = perf_counter()
        else:
            self.end(message)


class Echo(Waiting):
    """Sends the next message when the one before has come back."""

    def __init__(self, messages: Iterator[str]) -> None:
        super().__init__()
        self._messages = messages
        self.expected = next(messages)

    def on_ws_frame(self, transport: Any, frame: Any) -> None:
        if frame.msg_type == WSMsgType.CLOSE:
            return
        if frame.msg_type == WSMsgType.CLOSE:
            return
        message = frame.get_payload_as_utf8_text()
        check(message, self.expected)
        following = next(self._messages, None)
        if following is None:
            self.end(message)
            return
        self.expected = following
        transport.send(WSMsgType.TEXT, following)


@contextlib.asynccontextmanager
async def opened(server: Server, url: str, listener: Any) -> AsyncIterator[Any]:
    context = server.context() if url.startswith("wss") else None
    transport, _ = await ws_connect(
        lambda: listener, url, ssl_context=context, max_frame_size=1 << 30
    )
    yield transport
    # The listeners get the answer as well. With these two bytes for a code it is valid text, so
    # that they need not tell frames apart in what is measured.
    transport.send_close(WSCloseCode.NO_INFO)
    await asyncio.wait_for(transport.wait_disconnected(), TIMEOUT)


class Picows:
    def receive(self, server: Server, kind: str, size: int, count: int, tls: bool = False) -> float:
        async def run() -> float:
            checker = Checker(kind, size, count)
            if checker.whole:
                listener = ShortBinary(checker) if kind == BINARY else ShortText(checker)
            else:
                listener = Long(checker, kind)
            url = server.url("receive", kind, size, count, tls=tls)
            async with opened(server, url, listener) as transport:
                gc.collect()
                started = perf_counter()
                transport.send(WSMsgType.TEXT, "go")
                ended, last = await listener.wait()
            checker.finish(last)
            return ended - started

        return asyncio.run(run())

    def send(self, server: Server, kind: str, size: int, count: int) -> float:
        opcode = WSMsgType.BINARY if kind == BINARY else WSMsgType.TEXT

        async def run() -> float:
            listener, messages = Judged(), list(stream(kind, size, count))
            url = server.url("send", kind, size, count)
            async with opened(server, url, listener) as transport:
                send = transport.send
                gc.collect()
                started = perf_counter()
                for message in messages:
                    send(opcode, message)
                    if listener.paused:
                        await listener.writable()
                _, last = await listener.wait()
            check(last, expected_verdict(kind, size, count))
            return listener.done - started

        return asyncio.run(run())

    def echo(self, server: Server, size: int, count: int) -> float:
        async def run() -> float:
            listener = Echo(stream(TEXT, size, count))
            async with opened(server, server.url("echo"), listener) as transport:
                gc.collect()
                started = perf_counter()
                transport.send(WSMsgType.TEXT, listener.expected)
                ended, _ = await listener.wait()
            return ended - started

        return asyncio.run(run())

    def cycles(self, server: Server, size: int, count: int) -> float:
        message = block(TEXT, size)[0]

        async def run() -> float:
            gc.collect()
            started = perf_counter()
            for _ in range(count):
                listener = Echo(iter([message]))
                async with opened(server, server.url("echo"), listener) as transport:
                    transport.send(WSMsgType.TEXT, message)
                    await listener.wait()
            return perf_counter() - started

        return asyncio.run(run())
