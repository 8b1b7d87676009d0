"""Messages of a client in an asyncio program: callbacks run in the event loop.

    python asyncio_bridge.py URL MESSAGE...

A program that is all asyncio is better off with a client that is asyncio; this is for one that
shares its clients with threads.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator

import wsthread


class Messages(wsthread.WebSocketDelegate):
    """The messages of a connection as an asynchronous iterator."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[str | bytes | None] = asyncio.Queue()

    def on_message(self, client: wsthread.WebSocketClient, message: str | bytes) -> None:
        self.queue.put_nowait(message)

    def on_state_change(
        self, client: wsthread.WebSocketClient, state: wsthread.ConnectionState
    ) -> None:
        if state is wsthread.ConnectionState.DISCONNECTED:
            self.queue.put_nowait(None)

    async def __aiter__(self) -> AsyncIterator[str | bytes]:
        while (message := await self.queue.get()) is not None:
            yield message


async def main() -> int:
    url, *texts = sys.argv[1:]
    loop = asyncio.get_running_loop()
    messages = Messages()
    client = wsthread.WebSocketClient(
        url, messages, dispatcher=wsthread.PostDispatcher(loop.call_soon_threadsafe)
    )
    client.connect(wait=False)  # what would wait has no place in the loop
    client.send_many(texts)
    left = len(texts)
    async for message in messages:
        print(message, flush=True)
        left -= 1
        if not left:
            client.disconnect(wait=False)
    await loop.run_in_executor(None, client.wait)
    return 0 if client.close_code == 1000 else 1


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
