"""A running ``wstest`` fuzzing server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import List

from .install import python27_environ

START_TIMEOUT = 30.0

# wstest as its command runs it, with two differences: it listens on a free port
# of the loopback interface only (by itself it takes a fixed port, on all
# interfaces) and says which, and it ends when the driver does, however it ends.
LAUNCHER = r"""
import os, sys, threading
from autobahn.twisted.websocket import listenWS
from autobahntestsuite import fuzzing, wstest

port_file = sys.argv.pop()

def listen(factory, context=None):
    factory.port, factory.externalPort = 0, None
    port = listenWS(factory, context, interface="127.0.0.1").getHost().port
    with open(port_file + ".new", "w") as file:
        file.write(str(port))
    os.rename(port_file + ".new", port_file)

def end_with_driver():
    sys.stdin.read()
    os._exit(0)

fuzzing.listenWS = listen
watcher = threading.Thread(target=end_with_driver)
watcher.daemon = True
watcher.start()
wstest.run()
"""


class ServerError(Exception):
    """The server did not come up, or went away."""


class FuzzingServer:
    """The server, for the time of a ``with``. Its files are in ``directory``."""

    def __init__(self, python: Path, cases: List[str], directory: Path) -> None:
        self.reports = directory / "reports"
        self.log = directory / "server.log"
        self.port = 0
        self._port_file = directory / "port"
        spec = directory / "spec.json"
        spec.write_text(
            json.dumps(
                {
                    "url": "ws://127.0.0.1:9001",  # the launcher overrides the port
                    "outdir": str(self.reports),
                    "cases": cases,
                    "exclude-cases": [],
                    "exclude-agent-cases": {},
                }
            )
        )
        options = ["-m", "fuzzingserver", "--webport", "0", "-s", str(spec)]
        self._command = [str(python), "-c", LAUNCHER, *options, str(self._port_file)]

    def __enter__(self) -> FuzzingServer:
        with open(self.log, "wb") as log:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=python27_environ(),
                start_new_session=True,
            )
        try:
            self._wait_until_ready()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            if hasattr(os, "killpg"):
                os.killpg(self._process.pid, signal.SIGKILL)
            else:
                self._process.kill()
        self._process.wait()
        assert self._process.stdin is not None
        self._process.stdin.close()

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT
        while not self._port_file.exists():
            self.check()
            if time.monotonic() > deadline:
                raise ServerError(f"not listening after {START_TIMEOUT:.0f} s\n{self.log_tail()}")
            time.sleep(0.02)  # a poll of another process's file, bounded above
        self.port = int(self._port_file.read_text())

    def check(self) -> None:
        """Raise ServerError if the process has ended."""
        status = self._process.poll()
        if status is not None:
            raise ServerError(f"the server ended with status {status}\n{self.log_tail()}")

    def log_tail(self, lines: int = 40) -> str:
        """The last lines of the server's output."""
        text = self.log.read_text(errors="replace").splitlines()
        return "\n".join(["--- server log ---", *text[-lines:]])

    def url(self, path: str) -> str:
        return f"ws://127.0.0.1:{self.port}/{path}"
