"""Where the Python of a round trip goes: ``python -m tests.benchmarks.parts``.

The reader's own loop runs with an `InlineDispatcher`, over a socket that always has a message and
takes everything, so that the time is that of the code alone: no system call, no sleep, and all of
it in the processor's cache. Each part is also run by itself.
"""

from __future__ import annotations

import cProfile
import os
import pstats
import time
from typing import Any, Callable, Dict, List, Tuple

import wsthread
from tests.conformance.table import render
from wsthread.frames import FIN, OP_TEXT, encode_frame
from wsthread.opening import Opened
from wsthread.session import Session
from wsthread.state import Event
from wsthread.transport import Transport

ROUNDS, TURNS = 9, 10_000
TEXT = "a" * 64
FRAME = bytes((FIN | OP_TEXT, 64)) + TEXT.encode()
DESCRIPTOR = 1 << 20  # nobody's


class Endless:
    """A socket that always has a message, and takes everything."""

    def gettimeout(self) -> float:
        return 0.0

    def fileno(self) -> int:
        return DESCRIPTOR

    def recv(self, size: int) -> bytes:
        return FRAME

    def send(self, data: bytes) -> int:
        return len(data)

    sendmsg = None


class Ready:
    """A poll object for which the socket is always readable."""

    def register(self, descriptor: int, mask: int) -> None:
        pass

    def unregister(self, descriptor: int) -> None:
        pass

    def poll(self, timeout: Any) -> List[Tuple[int, int]]:
        return [(DESCRIPTOR, 1)]


class Echo:
    def on_message(self, client: Any, message: Any) -> None:
        client.send(message)


class Silent:
    def on_message(self, client: Any, message: Any) -> None:
        pass


class Bench:
    """An open connection whose reader is the calling thread."""

    def __init__(self) -> None:
        client: Any = wsthread.WebSocketClient(
            "ws://host.invalid/", Echo(), dispatcher=wsthread.InlineDispatcher(), compression=None
        )
        session = Session(client, client._settings, client._known, client._outbox)
        client._session, client._outbox, client._life = session, None, session.life
        session.change(Event.CONNECT)
        session._open(Opened(Transport(Endless()), b""))  # type: ignore[arg-type]
        session._poller._poll = Ready()  # type: ignore[assignment]
        self.client, self.session, self.mailbox = client, session, client.mailbox
        self.mailbox.attach(session.waker)
        self._steps = session._serve()

    def trips(self, count: int) -> None:
        """Wait, read, call back, send: so many times."""
        for _ in self._steps:
            while self.mailbox.run():
                pass
            count -= 1
            if not count:
                return

    def parts(self) -> Dict[str, Callable[[], object]]:
        session, mailbox = self.session, self.mailbox
        connection, life = session._connection, session.life
        assert connection is not None
        parser, transport = connection.parser, connection.transport
        messages = [TEXT]

        def deliver() -> None:
            mailbox.put_messages("messages", messages, len(FRAME), life)
            mailbox.run()

        return {
            "wait: the poll object, deadlines": lambda: session._poller.wait(1.0),
            "read from the socket": transport.receive,
            "parse, decode": lambda: parser.parse(FRAME, 1000, 1 << 20),
            "mailbox: in, out, an empty callback": deliver,
            "send()": lambda: self.client.send(TEXT),
            "... of this: header, key and mask": lambda: encode_frame(FIN | OP_TEXT, b"a" * 64),
        }

    def close(self) -> None:
        self._steps.close()
        self.client._session = None  # nothing was ever open


def microseconds(work: Callable[[], object], count: int) -> float:
    """The least of several rounds, for one turn of `count`."""
    least = float("inf")
    for _ in range(ROUNDS):
        started = time.perf_counter()
        work()
        least = min(least, time.perf_counter() - started)
    return least / count * 1e6


def main() -> None:
    bench = Bench()
    bench.trips(TURNS)  # warms up

    def repeated(part: Callable[[], object]) -> float:
        def run() -> None:
            for _ in range(TURNS):
                part()

        return microseconds(run, TURNS)

    total = microseconds(lambda: bench.trips(TURNS), TURNS)
    profile = cProfile.Profile()
    profile.enable()
    bench.trips(TURNS)
    profile.disable()
    calls = pstats.Stats(profile).total_calls / TURNS  # type: ignore[attr-defined]
    nothing = repeated(lambda: None)
    bench.client.set_delegate(Silent())
    rows = [["part", "us"]]
    rows += [[name, f"{repeated(part) - nothing:.2f}"] for name, part in bench.parts().items()]
    rows.append(["the whole round trip", f"{total:.2f}"])
    print(render(rows, "rst"))
    print(f"{calls:.0f} calls a round trip, {os.cpu_count()} processors")
    bench.close()


if __name__ == "__main__":
    main()
