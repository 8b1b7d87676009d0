"""Promise 18 for real: the cable pulled, packets dropped, between two network namespaces."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from typing import List, Optional

import pytest

from tests.netns import INTERVAL, TIMEOUT

thorough = pytest.mark.thorough


def namespace() -> List[str]:
    return ["unshare", "--net"] if os.geteuid() == 0 else ["unshare", "--map-root-user", "--net"]


def obstacle() -> Optional[str]:
    """Return why no two joined network namespaces can be made here, or None."""
    if not sys.platform.startswith("linux"):
        return "network namespaces are Linux's"
    for tool in ("unshare", "nsenter", "ip"):
        if shutil.which(tool) is None:
            return f"there is no {tool} command"
    trial = "ip link add name here type veth peer name there && unshare --net true"
    done = subprocess.run(
        [*namespace(), "sh", "-c", trial], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    if done.returncode:
        return f"no network namespaces can be made: {done.stderr.decode().strip()}"
    return None


@pytest.mark.parametrize(
    "fault",
    [
        "pull_here",
        "drop",
        pytest.param("pull_there", marks=thorough),
        pytest.param("drop_answers", marks=thorough),
    ],
)
def test_promise_18_a_cable_pulled_and_packets_dropped_are_found(fault: str) -> None:
    why_not = obstacle()
    if why_not is not None:
        pytest.skip(why_not)
    done = subprocess.run(
        [*namespace(), sys.executable, "-m", "tests.netns", fault],
        capture_output=True,
        timeout=50,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    seen = json.loads(done.stdout)
    assert seen["code"] == 1006
    assert seen["error"] == seen["causes"][0] == "the peer does not answer pings"
    # The last sign of life is at most an interval older than the fault.
    assert TIMEOUT - INTERVAL <= seen["found"] < INTERVAL + TIMEOUT + 1
    # Attempts in between fail; once the cable is in again, all is well.
    assert len(seen["causes"]) >= 2
    assert seen["message"] == "for later" and seen["closed"]
