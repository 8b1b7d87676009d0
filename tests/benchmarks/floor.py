"""Where Python's floor is: ``python -m tests.benchmarks.floor``.

From the raw socket to wsthread, with one duty of a client more at each step. Each step runs in a
process of its own, all in turn, against the server of the other benchmarks.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import statistics
import threading
from typing import Any, Callable, Dict, List, Optional, Tuple

from tests.conformance.table import render

from .clients import Bare, BareInline
from .measure import serving
from .messages import BINARY, TEXT
from .workers import CONTENDERS, Contender, Worker, worker

KIB = 1 << 10


class Waiting(BareInline):
    waits = True


class Queued(Waiting):
    queued = Bare.queued


class Large(Queued):
    most = 1 << 20


class Unlocked(Bare):
    def sender(self, peer: Any, kind: str) -> Callable[[Any], Any]:
        encode, sendall = self._encoder(kind), peer.sock.sendall

        def send(message: Any) -> None:
            sendall(encode(message))

        return send


class Guarded(Bare):
    """Sends only where the connection is open and nothing waits; does not wait; counts."""

    def __init__(self) -> None:
        super().__init__()
        self.closed = False
        self.waiting: List[bytes] = []
        self.messages = self.bytes = 0

    def sender(self, peer: Any, kind: str) -> Callable[[Any], Any]:
        encode, sock, lock = self._encoder(kind), peer.sock, threading.Lock()

        def send(message: Any) -> None:
            frame = encode(message)
            with lock:
                if self.closed or self.waiting:
                    raise ConnectionError("not now")
                sent = sock.send(frame)
                if sent < len(frame):
                    raise ConnectionError("it takes no more")  # the server always reads
                self.messages += 1
                self.bytes += sent

        return send


def step(title: str, name: str) -> Contender:
    return Contender(title, "websockets", ("floor", name))


def known(name: str, title: str = "") -> Contender:
    found = CONTENDERS[name]
    return dataclasses.replace(found, title=title or found.title)


#: What is measured: a method, its arguments, and the steps.
MEASURED: Dict[str, Tuple[str, Dict[str, Any], Tuple[Contender, ...]]] = {
    "receive 16 KiB, binary": (
        "receive",
        {"kind": BINARY, "size": 16 * KIB, "count": 16_384},
        (
            known("raw"),
            known("bare inline", "headers, an object of each message, a call: bare Python, inline"),
            step("waits with poll: another thread can end it", "Waiting"),
            known("inline"),
            step("hands what one read brings to another thread", "Queued"),
            step("reads 1 MiB at a time instead of 256 KiB", "Large"),
            known("wsthread"),
        ),
    ),
    "send 64 B, text": (
        "send",
        {"kind": TEXT, "size": 64, "count": 60_000},
        (
            known("raw"),
            step("encodes, draws a key, masks", "Unlocked"),
            known("bare", "a lock, for other threads' frames: bare Python"),
            step("whether it is open and nothing waits; what was sent", "Guarded"),
            known("wsthread"),
        ),
    ),
}


def measure(name: str, rounds: int) -> List[List[str]]:
    """Return the table of one of MEASURED: microseconds a message, and of the raw socket's rate."""
    method, arguments, steps = MEASURED[name]
    figures: Dict[str, List[float]] = {one.title: [] for one in steps}
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(serving())
        workers: List[Worker] = [stack.enter_context(worker(one)) for one in steps]
        for number in range(rounds + 1):
            for one in workers:
                seconds = one.call(method, server=server, **arguments)
                if number:  # the first round warms up
                    figures[one.contender.title].append(seconds / arguments["count"] * 1e6)
    medians = {title: statistics.median(values) for title, values in figures.items()}
    raw = medians[steps[0].title]
    rows = [[title, f"{taken:.2f}", f"{raw / taken:.2f}"] for title, taken in medians.items()]
    return [[name, "us a message", "x raw socket"], *rows]


def main(argv: Optional[List[str]] = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.floor")
    parser.add_argument("--rounds", type=int, default=15, help="default: 15")
    options = parser.parse_args(argv)
    for name in MEASURED:
        print(render(measure(name, options.rounds), "rst"))


if __name__ == "__main__":
    main()
