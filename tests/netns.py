"""Client and server in two network namespaces, joined by a cable: python -m tests.netns FAULT

Run in a network namespace of its own (``unshare --net``); makes the second one, and everything in
them goes with the processes. Prints what the client saw, as JSON.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import time
from typing import Any, Callable, Dict, Iterator

import wsthread
from tests.lasting import SteadyServer
from wsthread import Reconnect
from wsthread.testing import RecordingDelegate

OURS, THEIRS = "10.99.0.1", "10.99.0.2"
INTERVAL, TIMEOUT = 0.5, 0.7


def serve() -> None:
    """The other namespace's process: an echoing server, until its input ends."""
    with SteadyServer(host="0.0.0.0") as server:
        print(server.port, flush=True)
        sys.stdin.read()
        server.stop()


class Cable:
    """A veth pair between this namespace and the one of a process."""

    def __init__(self, pid: int) -> None:
        self._there = ["nsenter", f"--target={pid}", "--net"]
        ends = "name here type veth peer name there netns"
        self._run(f"ip link add {ends} {pid}")
        self._run(f"ip addr add {OURS}/24 dev here")
        self._run(f"ip addr add {THEIRS}/24 dev there", there=True)
        self._run("ip link set there up", there=True)
        self._run("ip link set here up")

    def _run(self, command: str, there: bool = False) -> None:
        subprocess.run((self._there if there else []) + command.split(), check=True)

    def pull_here(self) -> None:
        self._run("ip link set here down")

    def pull_there(self) -> None:
        self._run("ip link set there down", there=True)

    def drop(self) -> None:
        """Packets go out, and nobody takes them: they bear an address that is nobody's."""
        nobody = "lladdr 02:00:00:00:00:99 nud permanent"
        self._run(f"ip neigh replace {THEIRS} dev here {nobody}")
        self._run(f"ip neigh replace {OURS} dev there {nobody}", there=True)

    def drop_answers(self) -> None:
        nobody = "lladdr 02:00:00:00:00:99 nud permanent"
        self._run(f"ip neigh replace {OURS} dev there {nobody}", there=True)

    def repair(self) -> None:
        for end, there in (("here", False), ("there", True)):
            self._run(f"ip link set {end} up", there)
            self._run(f"ip neigh flush dev {end} nud permanent", there)


@contextlib.contextmanager
def server() -> Iterator[Any]:
    command = ["unshare", "--net", sys.executable, "-m", "tests.netns", "serve"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def observe(fault: str) -> Dict[str, Any]:
    """Connect, be well, suffer the fault, come back; return what was seen."""
    recorder = RecordingDelegate()
    with server() as process:
        port = int(process.stdout.readline())
        cable = Cable(process.pid)
        client = wsthread.WebSocketClient(
            f"ws://{THEIRS}:{port}/",
            recorder,
            ping_interval=INTERVAL,
            ping_timeout=TIMEOUT,
            connect_timeout=0.5,
            reconnect=Reconnect(delay=0.1, max_delay=0.2),
        )
        client.connect(timeout=5)
        recorder.wait_for("pong", count=2)
        act: Callable[[], None] = getattr(cable, fault)
        act()
        since = time.monotonic()
        _, code, _ = recorder.wait_for("close")
        found = time.monotonic() - since
        error = recorder.of("error")[0][1]
        client.send("for later")
        recorder.wait_for("reconnect", count=2)
        cable.repair()
        since = time.monotonic()
        _, message = recorder.wait_for("message")
        back = time.monotonic() - since
        return {
            "found": found,
            "code": code,
            "error": str(error),
            "message": message,
            "back": back,
            "closed": client.disconnect(),
            "causes": [str(event[3]) for event in recorder.of("reconnect")],
        }


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve()
    else:
        print(json.dumps(observe(sys.argv[1])))
