"""Clients under chaos, for as long as asked: python -m tests.soak --minutes 60

Each client talks through a proxy that delays, splits, stalls, cuts and refuses, to a real server
that echoes; four threads of each send numbered messages; every half minute each client is
disconnected, must be gone without a trace, and another takes its place. It ends with 1 where a
message was lost in silence, came twice or out of order, or where something was left behind.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import gc
import os
import random
import ssl
import sys
import tempfile
import threading
import time
import weakref
from pathlib import Path
from typing import Any, Counter, Dict, Iterator, List, Optional, Tuple

import wsthread
from tests import chaos_proxy
from tests.conftest import Snapshot, sockets, threads
from tests.support import Certificates, echo_server, in_process
from wsthread import QueueLimit, Reconnect

SENDERS = 4
#: What a message has come to.
ACCEPTED, SENT, ECHOED = 0, 1, 2

Key = Tuple[int, int]  # sender and number


class Ledger(wsthread.WebSocketDelegate):
    """Follows every message of one client, and notes what must not be.

    What is settled is forgotten; whatever is told of it later is wrong.
    """

    def __init__(self, tls: bool) -> None:
        self._tls = tls
        self._lock = threading.Lock()
        # All are the lock's.
        self._open: Dict[Key, int] = {}
        self._newest: Dict[int, int] = {}  # echoed on this connection, for each sender
        self._last_state: Optional[str] = None
        self.wrong: List[str] = []
        self.counts: Counter[str] = collections.Counter()
        self.connections: List[Any] = []  # weak references to what must be gone at the end

    # Senders.

    def accept(self, key: Key) -> None:
        """Before `send`, because on_sent may be faster than its return."""
        with self._lock:
            self._open[key] = ACCEPTED

    def accepted(self) -> None:
        with self._lock:
            self.counts["accepted"] += 1

    def refused(self, key: Key, error: BaseException) -> None:
        """`send` raised: the message must not be heard of."""
        with self._lock:
            self.counts[type(error).__name__] += 1
            if self._open.pop(key, None) != ACCEPTED:
                self.wrong.append(f"{key} was refused, and was told of")

    # Callbacks.

    @staticmethod
    def _key(message: Any) -> Key:
        sender, number, _ = bytes(message).split(b":", 2)
        return int(sender), int(number)

    def on_state_change(self, client: Any, state: Any) -> None:
        self._last_state = state.name

    def on_open(self, client: Any) -> None:
        with self._lock:
            self.counts["connections"] += 1
            self._newest.clear()
            session = client._session
            connection = None if session is None else session._connection
            if connection is not None:
                self.connections = [ref for ref in self.connections if ref() is not None]
                self.connections += [weakref.ref(session), weakref.ref(connection)]
                self.connections += [weakref.ref(connection.transport)]

    def on_message(self, client: Any, message: Any) -> None:
        key = sender, number = self._key(message)
        with self._lock:
            self.counts["echoed"] += 1
            state = self._open.get(key)
            if number <= self._newest.get(sender, 0):
                self.wrong.append(f"{key} came behind {self._newest[sender]}")
            self._newest[sender] = number
            if state is None or state == ECHOED:
                self.wrong.append(f"{key} came, and was settled or had come before")
            elif state == SENT:
                del self._open[key]
            else:
                self._open[key] = ECHOED

    def on_sent(self, client: Any, message: Any) -> None:
        key = self._key(message)
        with self._lock:
            self.counts["sent"] += 1
            state = self._open.get(key)
            if state == ACCEPTED:
                self._open[key] = SENT
            elif state == ECHOED:
                del self._open[key]
            else:
                self.wrong.append(f"{key} was sent, and had been sent or given back before")

    def on_unsent(self, client: Any, message: Any, error: Any) -> None:
        key = self._key(message)
        with self._lock:
            self.counts["unsent"] += 1
            state = self._open.pop(key, None)
            # Under TLS all of a batch counts as sent with the last byte of its records.
            if state != ACCEPTED and not (self._tls and state == ECHOED):
                self.wrong.append(f"{key} came back, and had been sent, echoed or given back")

    def on_close(self, client: Any, code: int, reason: str) -> None:
        """What was sent and not echoed is lost with the connection."""
        with self._lock:
            self.counts[f"closed {code}"] += 1
            for key, state in list(self._open.items()):
                if state == SENT:
                    self.counts["lost on the way"] += 1
                    del self._open[key]
                elif state == ECHOED and not self._tls:
                    self.wrong.append(f"{key} was echoed before it was sent")

    def on_reconnect(self, client: Any, attempt: int, delay: float, error: Any) -> None:
        with self._lock:
            self.counts["reconnects"] += 1
            self.counts[f"because of {type(error).__name__}"] += 1

    def lively(self, seconds: float) -> bool:
        """Whether the chaos was one, and the client lived through it."""
        with self._lock:
            counts = self.counts
            return (
                counts["connections"] >= seconds / 4
                and counts["reconnects"] >= seconds / 4
                and counts["echoed"] >= seconds * 10
            )

    def settle(self) -> None:
        """The life is over: every message has been told of."""
        with self._lock:
            for key, state in self._open.items():
                self.wrong.append(f"{key} ended as {('accepted', 'sent', 'echoed')[state]}")
            self._open.clear()
            if self._last_state != "DISCONNECTED":
                self.wrong.append(f"the last state told is {self._last_state}")


class Senders:
    """Threads that send numbered messages until stopped."""

    def __init__(self, client: wsthread.WebSocketClient, ledger: Ledger, seed: int) -> None:
        self._client, self._ledger = client, ledger
        self._stopped = threading.Event()
        self.failure: Optional[BaseException] = None
        self._threads = [
            threading.Thread(target=self._run, args=(number, random.Random(f"{seed} {number}")))
            for number in range(SENDERS)
        ]
        for thread in self._threads:
            thread.start()

    def _run(self, sender: int, chance: random.Random) -> None:
        number = 0
        while not self._stopped.is_set():
            number += 1
            size = chance.choice((0, 10, 200, 2000)) if chance.random() < 0.98 else 200_000
            message = b"%d:%d:" % (sender, number) + chance.getrandbits(8 * size + 1).to_bytes(
                size + 1, "big"
            )
            self._ledger.accept((sender, number))
            try:
                self._client.send(message)
            except (wsthread.QueueFull, wsthread.SendTimeout, wsthread.NotConnected) as error:
                self._ledger.refused((sender, number), error)
                self._stopped.wait(0.01)
            except BaseException as error:
                self.failure = error
                raise
            else:
                self._ledger.accepted()
                self._stopped.wait(chance.uniform(0, 0.004))

    def stop(self) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join(30)
            if thread.is_alive():
                raise TimeoutError("a sender hangs")
        if self.failure is not None:
            raise self.failure


def live(
    url: str, seed: int, seconds: float, stop: Optional[threading.Event] = None, **options: Any
) -> Ledger:
    """One life of a client under chaos; return what was seen. Nothing of it is left then."""
    ledger = Ledger(tls=url.startswith("wss"))
    client = wsthread.WebSocketClient(
        url,
        ledger,
        connect_timeout=1.5,
        close_timeout=3,
        send_timeout=0.5,
        ping_interval=0.4,
        ping_timeout=0.8,
        reconnect=Reconnect(first=True, delay=0.05, max_delay=0.3, rng=random.Random(seed)),
        send_queue=QueueLimit(messages=300, bytes=1_000_000),
        **options,
    )
    client.connect(wait=False)
    senders = Senders(client, ledger, seed)
    stop = stop or threading.Event()
    stop.wait(seconds)
    # How much happens in that time is chance: a little more is waited for what makes a life.
    patience = time.monotonic() + max(seconds, 30)
    while not (ledger.lively(seconds) or time.monotonic() > patience or stop.wait(0.1)):
        pass
    senders.stop()
    if not client.disconnect():
        ledger.wrong.append("disconnect() could not wait for the callbacks")
    ledger.settle()
    stats = client.stats
    told = (ledger.counts["sent"], ledger.counts["unsent"])
    if (stats.messages_sent, stats.messages_unsent) != told:
        ledger.wrong.append(f"stats say {stats}, the callbacks {told}")
    reference = weakref.ref(client)
    del client, senders
    if reference() is not None:
        ledger.wrong.append("the client is still there")
    if any(one() is not None for one in ledger.connections):
        ledger.wrong.append("something of a connection is still there")
    return ledger


@contextlib.contextmanager
def chaos(seed: int, pem: Optional[str] = None, **faults: float) -> Iterator[str]:
    """A server that echoes, behind a proxy; gives the URL."""
    with echo_server(pem) as upstream:
        port = int(upstream.rsplit(":", 1)[1].strip("/"))
        arguments = (port, seed, chaos_proxy.Faults(**faults))
        with in_process(chaos_proxy.serve, *arguments) as proxy:
            yield upstream.replace(str(port), str(proxy))


# The command.


def memory() -> float:
    """The resident memory of this process in MB."""
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


class Soak:
    """Keeps one client of each kind alive, life after life."""

    def __init__(self, seconds: float, life: float) -> None:
        self.until = time.monotonic() + seconds
        self._life = life
        self.stop = threading.Event()
        self._lock = threading.Lock()
        # Both are the lock's.
        self.counts: Counter[str] = collections.Counter()
        self.wrong: List[str] = []

    def run(self, name: str, seed: int, url: str, make: Any) -> None:
        """Live again and again. One thread for each kind."""
        while not self.stop.is_set() and time.monotonic() < self.until:
            seconds = min(self._life, max(1.0, self.until - time.monotonic()))
            try:
                ledger = live(url, seed, seconds, self.stop, **make())
            except BaseException as error:
                with self._lock:
                    self.wrong.append(f"{name}: {error!r}")
                return
            seed += 1000
            with self._lock:
                self.counts.update(ledger.counts)
                self.counts["lives"] += 1
                self.wrong += [f"{name}, seed {seed}: {one}" for one in ledger.wrong[:10]]

    def summary(self, *names: str) -> str:
        with self._lock:
            return ", ".join(f"{self.counts[name]:,} {name}" for name in names)


def soak(minutes: float, seed: int, life: float) -> int:
    """Run; print a line a minute and the figures at the end; return the exit status."""
    certificates = Certificates()
    context = certificates.client_context()
    before = Snapshot()
    with tempfile.TemporaryDirectory() as directory, contextlib.ExitStack() as stack:
        plain = stack.enter_context(chaos(seed))
        secure = stack.enter_context(chaos(seed + 1, certificates.write(Path(directory))))
        kinds: List[Tuple[str, str, Any]] = [
            ("plain", plain, dict),
            ("inline", plain, lambda: {"dispatcher": wsthread.InlineDispatcher()}),
            ("tls", secure, lambda: {"ssl_context": context}),
        ]
        run = Soak(minutes * 60, life)
        workers = [
            threading.Thread(target=run.run, args=(name, seed + number, url, make))
            for number, (name, url, make) in enumerate(kinds)
        ]
        started = time.monotonic()
        for worker in workers:
            worker.start()
        at_start: Optional[Tuple[float, int]] = None
        try:
            while any(worker.is_alive() for worker in workers):
                for worker in workers:
                    worker.join(60 / len(workers))
                if at_start is None:
                    at_start = memory(), len(gc.get_objects())  # after a minute, warm
                figures = run.summary("lives", "accepted", "echoed", "unsent", "reconnects")
                minute = (time.monotonic() - started) / 60
                print(f"[{minute:6.1f} min] {figures}, {memory():.1f} MB", flush=True)
        except KeyboardInterrupt:
            run.stop.set()
        for worker in workers:
            worker.join()
        lasted = (time.monotonic() - started) / 60
        report(run, lasted, at_start or (memory(), 0))
    gc.collect()
    left = before.leftovers()
    if left:
        run.wrong.append(f"left behind: {left}")
    print(f"threads left: {len(threads())}, sockets left: {len(sockets()) - len(before.sockets)}")
    for one in run.wrong[:50]:
        print("WRONG:", one)
    print("ok" if not run.wrong else f"{len(run.wrong)} things were wrong")
    return 1 if run.wrong else 0


def report(run: Soak, minutes: float, at_start: Tuple[float, int]) -> None:
    gc.collect()
    at_end = memory(), len(gc.get_objects())
    print(f"\n{minutes:.1f} minutes, {os.uname().sysname}, CPython {sys.version.split()[0]}")
    for name, count in sorted(run.counts.items()):
        print(f"  {count:12,} {name}")
    print(f"memory after the first minute {at_start[0]:.1f} MB, at the end {at_end[0]:.1f} MB")
    print(f"objects after the first minute {at_start[1]:,}, at the end {at_end[1]:,}")
    print(f"OpenSSL: {ssl.OPENSSL_VERSION}")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--life", type=float, default=30.0, help="seconds; default: 30")
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}", flush=True)
    return soak(arguments.minutes, arguments.seed, arguments.life)


if __name__ == "__main__":
    sys.exit(main())
