"""What is loaded when: importing the package is cheap, and no reader's thread imports."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import wsthread
from tests.support import echo_server

ROOT = Path(wsthread.__file__).resolve().parent.parent

PROGRAM = """
import sys
import wsthread

HEAVY = {"websocket", "h11", "websockets", "importlib.metadata"}
print(sorted(HEAVY & set(sys.modules)))

client = wsthread.WebSocketClient(sys.argv[1], None)
loaded = set(sys.modules)
print("h11" in loaded, "websocket" in loaded)
with client:
    client.send("text")
    client.ping()
print(sorted(name for name in set(sys.modules) - loaded if name.startswith(("ws", "web", "h11"))))
"""


def test_what_opens_connections_is_loaded_with_the_first_client_and_not_later() -> None:
    with echo_server() as url:
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM, url],
            cwd=ROOT,
            check=True,
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert done.stdout.splitlines() == ["[]", "True False", "[]"]
