"""Echoing servers of other makes, each with permessage-deflate, in processes of their own."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import Any, Awaitable, Callable, Iterator

from tests.support import in_process

LIMIT = 64 * 2**20  # bytes of a message

Start = Callable[[bool], Awaitable[int]]


def _until_the_end_of(pipe: Any, start: Start, takeover: bool) -> None:
    async def run() -> None:
        over = asyncio.Event()
        loop = asyncio.get_running_loop()
        port = await start(takeover)

        def wait() -> None:
            with contextlib.suppress(EOFError):
                pipe.recv()
            loop.call_soon_threadsafe(over.set)

        threading.Thread(target=wait, daemon=True).start()
        pipe.send(port)
        await over.wait()

    asyncio.run(run())


async def _start_websockets(takeover: bool) -> int:
    from websockets.asyncio.server import serve  # noqa: PLC0415
    from websockets.extensions.permessage_deflate import ServerPerMessageDeflateFactory  # noqa: PLC0415

    async def echo(connection: Any) -> None:
        async for message in connection:
            await connection.send(message)

    factory = ServerPerMessageDeflateFactory(
        server_no_context_takeover=not takeover, client_no_context_takeover=not takeover
    )
    server = await serve(
        echo, "127.0.0.1", 0, compression=None, extensions=[factory], max_size=LIMIT
    )
    _kept.append(server)
    port: int = server.sockets[0].getsockname()[1]
    return port


async def _start_aiohttp(takeover: bool) -> int:
    from aiohttp import WSMsgType, web  # noqa: PLC0415

    async def echo(request: Any) -> Any:
        # It has no option for takeover: the client's offer decides.
        response = web.WebSocketResponse(compress=True, max_msg_size=LIMIT)
        await response.prepare(request)
        async for message in response:
            if message.type == WSMsgType.TEXT:
                await response.send_str(message.data)
            elif message.type == WSMsgType.BINARY:
                await response.send_bytes(message.data)
        return response

    application = web.Application()
    application.router.add_get("/", echo)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    _kept.append(runner)
    port: int = runner.addresses[0][1]
    return port


async def _start_tornado(takeover: bool) -> int:
    from tornado import httpserver, web, websocket  # noqa: PLC0415
    from tornado.netutil import bind_sockets  # noqa: PLC0415

    # It has no option for takeover. A client may give up its own; it passes over what it is
    # asked to do (it loses parameters without a value), and the client has to notice.
    class Echo(websocket.WebSocketHandler):
        def get_compression_options(self) -> Any:
            return {}

        async def on_message(self, message: Any) -> None:
            await self.write_message(message, binary=isinstance(message, bytes))

    application = web.Application([("/", Echo)], websocket_max_message_size=LIMIT)
    server = httpserver.HTTPServer(application)
    sockets = bind_sockets(0, "127.0.0.1")
    server.add_sockets(sockets)
    _kept.append(server)
    port: int = sockets[0].getsockname()[1]
    return port


_kept: list[Any] = []  # what must live as long as the server's process
_STARTS = {
    "websockets": _start_websockets,
    "aiohttp": _start_aiohttp,
    "tornado": _start_tornado,
}


def _serve(pipe: Any, make: str, takeover: bool) -> None:
    _until_the_end_of(pipe, _STARTS[make], takeover)


@contextlib.contextmanager
def python_server(make: str, takeover: bool) -> Iterator[str]:
    """Run a server of one of these makes; gives its URL."""
    with in_process(_serve, make, takeover) as port:
        yield f"ws://127.0.0.1:{port}/"
