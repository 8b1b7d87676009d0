"""Each contender runs in a process of its own, which imports nothing of the others."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import multiprocessing
import sys
import traceback
from dataclasses import dataclass
from typing import Any, Iterator, Tuple

TIMEOUT = 600.0


@dataclass(frozen=True)
class Contender:
    """`slow` divides the number of messages it gets, so that a round does not take minutes."""

    title: str
    module: str  # that it needs
    made_by: Tuple[str, str]  # module and class here
    slow: int = 1
    without: Tuple[str, ...] = ()  # modules that it must not find

    def installed(self) -> bool:
        return importlib.util.find_spec(self.module) is not None


CONTENDERS = {
    "wsthread": Contender("wsthread", "wsthread", ("wsthread_client", "Wsthread")),
    "inline": Contender("wsthread, inline", "wsthread", ("wsthread_client", "Inline")),
    "plain": Contender(
        "wsthread without [speed]",
        "wsthread",
        ("wsthread_client", "Wsthread"),
        without=("websockets", "websockets.speedups"),
    ),
    "raw": Contender("raw socket", "socket", ("clients", "Raw")),
    "bare": Contender("bare Python", "websockets", ("clients", "Bare")),
    "bare inline": Contender("bare Python, inline", "websockets", ("clients", "BareInline")),
    "app": Contender("WebSocketApp", "websocket", ("app_client", "App"), slow=8),
    "websocket-client": Contender(
        "websocket-client", "websocket", ("clients", "WebsocketClient"), slow=8
    ),
    "websockets": Contender("websockets.sync", "websockets", ("clients", "Websockets"), slow=4),
    "picows": Contender("picows", "picows", ("picows_client", "Picows")),
    "websocket-rs": Contender("websocket-rs", "websocket_rs", ("clients", "WebsocketRs")),
}


def work(pipe: Any, contender: Contender) -> None:
    """Do what the pipe says until it ends."""
    for name in contender.without:
        sys.modules[name] = None  # type: ignore[assignment]
    name, kind = contender.made_by
    client: Any = None
    with contextlib.suppress(EOFError, KeyboardInterrupt):
        while True:
            method, arguments = pipe.recv()
            try:
                if client is None:
                    client = getattr(importlib.import_module(f"tests.benchmarks.{name}"), kind)()
                pipe.send((True, getattr(client, method)(**arguments)))
            except Exception:
                pipe.send((False, traceback.format_exc()))


class Worker:
    """A process that waits for work of one contender."""

    def __init__(self, contender: Contender) -> None:
        context = multiprocessing.get_context("spawn")
        self.contender = contender
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=work, args=(theirs, contender), daemon=True)
        self._process.start()
        theirs.close()

    def call(self, method: str, **arguments: Any) -> Any:
        """Have a method run there; return what it does. Raises RuntimeError where it fails."""
        self._pipe.send((method, arguments))
        if not self._pipe.poll(TIMEOUT):
            raise TimeoutError(f"{self.contender.title}: no answer to {method}")
        try:
            worked, value = self._pipe.recv()
        except EOFError:
            raise RuntimeError(f"{self.contender.title}: the process ended") from None
        if not worked:
            raise RuntimeError(f"{self.contender.title}, {method} {arguments}:\n{value}")
        return value

    def close(self) -> None:
        self._pipe.close()
        self._process.join(5)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._process.close()


@contextlib.contextmanager
def worker(contender: Contender) -> Iterator[Worker]:
    made = Worker(contender)
    try:
        yield made
    finally:
        made.close()
