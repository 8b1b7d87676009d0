"""Many open clients that do nothing, each ready to receive: what they take."""

from __future__ import annotations

import contextlib
import gc
import os
import select
import socket
import sys
import threading
import time
from typing import Any, Callable, Dict, Iterator, List, Optional

from .clients import TIMEOUT, Server


def raise_limit() -> None:
    """Have as many descriptors as the system allows."""
    if sys.platform != "win32":
        import resource  # noqa: PLC0415 - not on Windows

        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def resident() -> int:
    """The process's resident memory in bytes (Linux only)."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Idle:
    """Subclasses open and close one client."""

    @contextlib.contextmanager
    def opened(self, url: str, keepalive: Optional[float]) -> Iterator[Callable[[], Any]]:
        """Give a function that opens a client; close all that it opened."""
        raise NotImplementedError
        yield

    def idle(
        self, server: Server, count: int, keepalive: Optional[float], seconds: float
    ) -> Dict[str, float]:
        """Return KiB and threads of a client, and the percents of a core that all take."""
        raise_limit()
        with self.opened(server.url("idle"), keepalive) as more:
            more()  # what the first one loads is not counted
            gc.collect()
            memory, threads = resident(), threading.active_count()
            for _ in range(count):
                more()
            gc.collect()
            memory, threads = resident() - memory, threading.active_count() - threads
            time.sleep(min(1.0, seconds))  # what opening left to do
            started = time.perf_counter()
            cpu = time.process_time()
            time.sleep(seconds)
            cpu = time.process_time() - cpu
            taken = time.perf_counter() - started
        return {
            "memory": memory / count / 1024,
            "threads": threads / count,
            "cpu": 100 * cpu / taken,
        }


class Wsthread(Idle):
    @contextlib.contextmanager
    def opened(self, url: str, keepalive: Optional[float]) -> Iterator[Callable[[], Any]]:
        import wsthread  # noqa: PLC0415 - in its own process only

        class Delegate:
            def on_message(self, client: Any, message: Any) -> None:
                raise AssertionError("nothing was asked for")

        with contextlib.ExitStack() as stack:
            dispatcher = stack.enter_context(wsthread.ThreadDispatcher())

            def more() -> None:
                client = wsthread.WebSocketClient(
                    url,
                    Delegate(),
                    dispatcher=dispatcher,
                    compression=None,
                    proxy=None,
                    ping_interval=keepalive,
                )
                stack.enter_context(client)

            yield more


class Threads(Idle):
    """A library whose clients need a thread of the program's to receive."""

    def open(self, url: str, keepalive: Optional[float]) -> Any:
        """Return a client with ``close()``, what its thread runs, and what waits until open."""
        raise NotImplementedError

    @contextlib.contextmanager
    def opened(self, url: str, keepalive: Optional[float]) -> Iterator[Callable[[], Any]]:
        clients: List[Any] = []
        threads: List[threading.Thread] = []

        def more() -> None:
            client, target, wait = self.open(url, keepalive)
            clients.append(client)
            threads.append(threading.Thread(target=target, daemon=True))
            threads[-1].start()
            wait()

        yield more
        for client in clients:
            client.close()
        for thread in threads:
            thread.join(TIMEOUT)


class Sleeper:
    """A socket, and a thread that waits for it and for being woken."""

    def __init__(self) -> None:
        self._pairs = [socket.socketpair() for _ in range(2)]

    def run(self) -> None:
        poll = select.poll()
        for pair in self._pairs:
            poll.register(pair[0], select.POLLIN)
        poll.poll()

    def close(self) -> None:
        for _, other in self._pairs:
            other.send(b"x")
            other.close()


class Bare(Threads):
    def open(self, url: str, keepalive: Optional[float]) -> Any:
        sleeper = Sleeper()
        return sleeper, sleeper.run, lambda: None


class Websockets(Threads):
    def open(self, url: str, keepalive: Optional[float]) -> Any:
        from websockets.sync.client import connect  # noqa: PLC0415

        client = connect(url, compression=None, proxy=None, ping_interval=keepalive)

        def receive() -> None:
            for _ in client:
                raise AssertionError("nothing was asked for")

        return client, receive, lambda: None


class WebsocketClient(Threads):
    def open(self, url: str, keepalive: Optional[float]) -> Any:
        import websocket  # noqa: PLC0415

        is_open = threading.Event()
        app = websocket.WebSocketApp(url, on_open=lambda _: is_open.set())

        def run() -> None:
            app.run_forever(
                http_no_proxy=["127.0.0.1"],
                ping_interval=keepalive or 0,
                ping_timeout=keepalive and keepalive / 2,
            )

        return app, run, lambda: is_open.wait(TIMEOUT)
