"""Promise 9 under chaos: whatever happens to the connection, no message is lost in silence."""

from __future__ import annotations

import gc
import os
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Iterator

import pytest

import wsthread
from tests.soak import Ledger, chaos, live
from tests.support import Certificates

pytestmark = [pytest.mark.unmeasured, pytest.mark.timeout(120)]

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
    # The chaos was one, and the client lived through it.
    assert counts["connections"] >= seconds / 4
    assert counts["reconnects"] >= seconds / 4
    assert counts["echoed"] >= seconds * 10


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
