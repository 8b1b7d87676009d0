"""What freed memory costs the next time. Each program has a process of its own."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

MIB = 1 << 20

PROGRAM = """
import resource, sys, threading
from wsthread.memory import keep_warm

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def work(rounds):
    for _ in range(rounds):
        waiting = [b"\\1" * {size} for _ in range(4)]
        del waiting

def measure():
    work(3)
    before = faults()
    work(50)
    print((faults() - before) // 200)

if {warm}:
    keep_warm({size})
thread = threading.Thread(target=measure)
thread.start()
thread.join()
"""


def faults_of_a_message(size: int, warm: bool) -> int:
    program = PROGRAM.format(size=size, warm=warm)
    own = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        env=own,
    )
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc's allocator")
@pytest.mark.parametrize("size", [MIB // 4, MIB, 4 * MIB])
def test_memory_is_kept_for_the_next_message(size: int) -> None:
    pages = size // 4096
    assert faults_of_a_message(size, warm=True) < pages / 10
    assert faults_of_a_message(size, warm=False) > pages / 2
