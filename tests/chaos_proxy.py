"""A TCP proxy that delays, splits, stalls, cuts and refuses, by chance from a seed."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
import threading
from dataclasses import dataclass
from typing import Any, Set

_CHUNK = 65536


@dataclass(frozen=True)
class Faults:
    """How often what happens. Times are seconds, the rest probabilities."""

    refuse: float = 0.08  # a connection is ended before anything was read
    swallow: float = 0.03  # ... or never answered
    busy: float = 0.05  # ... or answered with 503
    cut_head: float = 0.05  # ... or reset in the middle of the server's answer
    lifetime: float = 1.5  # of the others, on average
    silent: float = 0.2  # at its end nothing comes through any more, and nobody is told
    wall: float = 0.5  # ... nor is anything read any more
    walled: float = 3.0  # seconds
    reset: float = 0.5  # at its end there is a reset; otherwise a FIN
    delay: float = 0.02  # at most, for a piece
    delayed: float = 0.1
    split: float = 0.3  # a chunk goes in pieces
    stall: float = 0.01  # nothing is read for a while
    stalled: float = 0.5  # at most

    def __post_init__(self) -> None:
        assert self.refuse + self.swallow + self.busy + self.cut_head < 1


class _Link:
    """One connection through the proxy."""

    def __init__(self, faults: Faults, chance: random.Random, upstream: int) -> None:
        self._faults, self._chance, self._upstream = faults, chance, upstream

    async def run(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        faults, chance = self._faults, self._chance
        draw = chance.random()
        reset = chance.random() < faults.reset
        try:
            if draw < faults.refuse:
                return
            draw -= faults.refuse
            if draw < faults.swallow:
                reset = False
                await reader.read()  # until the client gives up
                return
            draw -= faults.swallow
            if draw < faults.busy:
                await reader.read(_CHUNK)
                writer.write(b"HTTP/1.1 503 Busy\r\nRetry-After: 0\r\nContent-Length: 0\r\n\r\n")
                await writer.drain()
                return
            draw -= faults.busy
            await self._relay(reader, writer, cut_head=draw < faults.cut_head)
        except OSError:
            pass  # either end was faster
        finally:
            _end(writer, reset)

    async def _relay(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, cut_head: bool
    ) -> None:
        server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self._upstream)
        pumps = [
            asyncio.ensure_future(self._pump(reader, server_writer)),
            asyncio.ensure_future(self._pump(server_reader, writer, 20 if cut_head else None)),
        ]
        lifetime = self._chance.expovariate(1 / self._faults.lifetime)
        try:
            await asyncio.wait(pumps, timeout=lifetime, return_when=asyncio.FIRST_COMPLETED)
            if self._chance.random() < self._faults.silent and not any(p.done() for p in pumps):
                for pump in pumps:
                    pump.cancel()
                await asyncio.wait(pumps)
                if self._chance.random() < self._faults.wall:
                    await asyncio.sleep(self._faults.walled)
                else:
                    while await reader.read(_CHUNK):  # it is taken, and goes nowhere
                        pass
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            _end(server_writer, reset=False)

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, limit: Any = None
    ) -> None:
        faults, chance = self._faults, self._chance
        while data := await reader.read(_CHUNK):
            if chance.random() < faults.stall:
                await asyncio.sleep(chance.uniform(0, faults.stalled))
            while data:
                size = len(data)
                if size > 1 and chance.random() < faults.split:
                    size = chance.randrange(1, min(size, 3000))
                if chance.random() < faults.delayed:
                    await asyncio.sleep(chance.uniform(0, faults.delay))
                if limit is not None:
                    size = min(size, limit)
                writer.write(data[:size])
                await writer.drain()
                if limit is not None:
                    return
                data = data[size:]


def _end(writer: asyncio.StreamWriter, reset: bool) -> None:
    if reset:
        sock = writer.get_extra_info("socket")
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def _serve(pipe: Any, upstream: int, seed: int, faults: Faults) -> None:
    chance, ended = random.Random(seed), asyncio.Event()
    loop, links = asyncio.get_running_loop(), set()  # type: ignore[var-annotated]

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        links.add(task)
        try:
            await _Link(faults, random.Random(chance.random()), upstream).run(reader, writer)
        finally:
            links.discard(task)

    def watch() -> None:
        with contextlib.suppress(EOFError, OSError):
            pipe.recv()
        loop.call_soon_threadsafe(ended.set)

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    threading.Thread(target=watch, daemon=True).start()
    pipe.send(server.sockets[0].getsockname()[1])
    await ended.wait()
    server.close()
    rest: Set[Any] = set(links)
    for task in rest:
        task.cancel()
    await asyncio.gather(*rest, return_exceptions=True)


def serve(pipe: Any, upstream: int, seed: int, faults: Faults) -> None:
    """Run a proxy to a port of 127.0.0.1; for `tests.support.in_process`."""
    asyncio.run(_serve(pipe, upstream, seed, faults))
