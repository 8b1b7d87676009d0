"""Promise 9 under chaos: whatever happens to the connection, no message is lost in silence."""

from __future__ import annotations

import errno
import gc
import os
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Iterator, Optional

import pytest

import wsthread
from tests.lasting import SteadyServer
from tests.soak import Ledger, chaos, live
from tests.support import SOON, Certificates
from wsthread.testing import RecordingDelegate

pytestmark = [pytest.mark.unmeasured, pytest.mark.timeout(180)]

#: Every run is another one; a failure says the seed. WSTHREAD_SEED repeats it, as far as threads
#: and times allow.
SEED = int(os.environ.get("WSTHREAD_SEED", time.time_ns() % 1_000_000))
QUICK, THOROUGH = 12.0, 60.0


@pytest.fixture(autouse=True)
def without_the_collector() -> Iterator[None]:
    """Everything has to go by reference counting alone."""
    gc.disable()
    yield
    gc.enable()


def check(ledger: Ledger, seconds: float) -> None:
    assert ledger.wrong == [], f"seed {SEED}"
    counts = ledger.counts
    assert counts["accepted"] == counts["sent"] + counts["unsent"]
    assert ledger.lively(seconds), f"seed {SEED}: {counts}"


@pytest.mark.parametrize(
    "seconds", [QUICK, pytest.param(THOROUGH, marks=pytest.mark.thorough)], ids=["quick", "long"]
)
def test_promise_09_no_message_is_lost_in_silence(seconds: float, tmp_path: Path) -> None:
    """Three clients at once, each with four threads that send."""
    certificates = Certificates()
    context = certificates.client_context()
    with chaos(SEED) as plain, chaos(SEED + 1, certificates.write(tmp_path)) as secure:
        with ThreadPoolExecutor(3) as pool:
            lives = [
                pool.submit(live, plain, SEED, seconds),
                pool.submit(live, plain, SEED, seconds, dispatcher=wsthread.InlineDispatcher()),
                pool.submit(live, secure, SEED, seconds, ssl_context=context),
            ]
        for one in lives:
            check(one.result(), seconds)


class BreaksHalfway(socket.socket):
    """Once armed, takes the first message and a part of the second; then the connection breaks."""

    armed: Optional[int] = None

    def send(self, data: Any, flags: int = 0) -> int:
        if self.armed is None:
            return super().send(data, flags)
        if not self.armed:
            raise ConnectionResetError(errno.ECONNRESET, "Connection reset by peer")
        size, self.armed = self.armed, 0
        return super().send(bytes(data)[:size], flags)


def test_promise_09_what_the_kernel_took_before_the_break_was_sent() -> None:
    """A program that sends again what comes back would send it twice."""
    recorder = RecordingDelegate()
    with SteadyServer() as server:
        sock = BreaksHalfway()
        sock.connect(("127.0.0.1", server.port))
        client = wsthread.WebSocketClient(
            server.url, recorder, socket=sock, compression=None, reconnect=False
        )
        client.connect()
        recorder.wait_for("open")
        client.flush()
        sock.armed = 150
        client.send_many(["a" * 100, "b" * 100])
        assert client.wait(SOON)
    assert recorder.of("sent") == [("sent", "a" * 100)]
    assert [event[1] for event in recorder.of("unsent")] == ["b" * 100]
