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


SHORT_OF_MEMORY = """
import resource
from wsthread.memory import keep_warm

with open("/proc/self/statm") as file:
    size = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + {mib} * 8, -1))
try:
    bytes({mib} * 31)
except MemoryError:
    keep_warm({mib} * 16)
    print("alive")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_who_is_short_of_memory_keeps_none() -> None:
    program = SHORT_OF_MEMORY.format(mib=MIB)
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout == "alive\n", done.stderr
