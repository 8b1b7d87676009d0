"""The programs of docs/examples, run as a user runs them, against real servers."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
import zlib
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional

import pytest

from tests.support import SOON, eventually
from wsthread.testing import LocalServer

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "docs" / "examples"

pytestmark = [
    pytest.mark.unmeasured,
    pytest.mark.skipif(sys.platform == "win32", reason="the examples' tests send signals"),
]


@contextlib.contextmanager
def running(
    program: str,
    *arguments: str,
    python: str = sys.executable,
    env: Optional[Dict[str, str]] = None,
    **options: Any,
) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [python, program if "/" in program else str(EXAMPLES / program), *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", **(env or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def ended(process: subprocess.Popen[str], stderr: str = "") -> List[str]:
    """Wait for the program to end well; return the lines it printed."""
    out, err = process.communicate(timeout=SOON * 2)
    assert (process.returncode, err) == (0, stderr), out
    return out.splitlines()


def lines_of(process: subprocess.Popen[str], count: int) -> List[str]:
    assert process.stdout is not None
    return [process.stdout.readline().rstrip("\n") for _ in range(count)]


def numbers(count: int) -> Callable[[Any], Any]:
    """A server's reply to "subscribe": so many messages."""
    return lambda message: [f"message {n}" for n in range(count)] if message == "subscribe" else ()


def test_a_script() -> None:
    with LocalServer() as server, running("script.py", server.url, "one", "two") as process:
        assert lines_of(process, 2) == ["one", "two"]
        server.drop()
        assert lines_of(process, 2) == ["one", "two"]
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=SOON)
        assert process.returncode == 0
        assert err.startswith("error: ") and err.count("\n") == 1


def test_a_script_that_cannot_connect() -> None:
    with LocalServer() as server:
        server.refuse(404)
        with running("script.py", server.url) as process:
            _, err = process.communicate(timeout=SOON)
    assert process.returncode == 1
    assert err.startswith("not connected: ") and "404" in err


def test_a_service_with_a_pool_ends_in_order_at_sigterm() -> None:
    with contextlib.ExitStack() as stack:
        one = stack.enter_context(LocalServer(numbers(5)))
        two = stack.enter_context(LocalServer(numbers(7)))
        process = stack.enter_context(running("service.py", one.url, two.url))
        handled = lines_of(process, 12)
        assert sorted(handled) == sorted(f"handled 'message {n}'" for n in [*range(5), *range(7)])
        process.send_signal(signal.SIGTERM)
        assert ended(process) == ["handled 12 messages in all"]


def test_a_loop_of_selectors() -> None:
    with (
        LocalServer() as server,
        running("selectors_loop.py", server.url, stdin=subprocess.PIPE) as process,
    ):
        assert process.stdin is not None
        process.stdin.write("one\ntwo\n")
        process.stdin.flush()
        assert lines_of(process, 2) == ["one", "two"]
        process.stdin.close()
        process.stdin = None
        assert ended(process) == []


def test_asyncio() -> None:
    with LocalServer() as server, running("asyncio_bridge.py", server.url, "one", "two") as process:
        assert ended(process) == ["one", "two"]


def test_a_program_patched_by_gevent() -> None:
    pytest.importorskip("gevent")
    with (
        LocalServer(delay=0.1) as server,
        running("gevent_program.py", server.url, "one", "two") as process,
    ):
        assert ended(process) == ["one", "two", "others ran"]


HAND = """
import os, sys
sys.path.insert(0, os.path.dirname(sys.argv[1]))
from PySide6 import QtCore, QtWidgets
import qt_window

def steps(window):
    while "connected" not in window.log.toPlainText().split():
        yield
    window.line.setText("hello")
    window.line.returnPressed.emit()
    while "received: 'hello'" not in window.log.toPlainText():
        yield
    window.close()
    while "disconnected" not in window.log.toPlainText():
        yield

application = QtWidgets.QApplication(sys.argv[:1])
application.setQuitOnLastWindowClosed(False)
window = qt_window.Window(sys.argv[2])
window.show()
script = steps(window)
timer = QtCore.QTimer()
timer.timeout.connect(lambda: next(script, None))
timer.start(10)
status = application.exec()
print(window.log.toPlainText())
sys.exit(status)
"""


def test_qt(tmp_path: Path) -> None:
    pytest.importorskip("PySide6.QtWidgets", exc_type=ImportError)
    hand = tmp_path / "hand.py"
    hand.write_text(HAND)
    offscreen = {"QT_QPA_PLATFORM": "offscreen"}
    with LocalServer() as server:
        arguments = (str(EXAMPLES / "qt_window.py"), server.url)
        with running(str(hand), *arguments, env=offscreen) as process:
            out, err = process.communicate(timeout=SOON * 2)
    assert (process.returncode, "Traceback" in err) == (0, False), err
    log = ["connecting", "connected", "received: 'hello'", "closing", "disconnected"]
    assert out.splitlines() == log


def python_with_gi() -> Optional[str]:
    """A Python with PyGObject, which systems have for their own."""
    for python in (sys.executable, "/usr/bin/python3"):
        if shutil.which(python):
            command = [
                python,
                "-c",
                "import gi.repository.GLib, sys; assert sys.version_info > (3, 9)",
            ]
            if subprocess.run(command, capture_output=True, timeout=SOON).returncode == 0:
                return python
    return None


def test_glib(tmp_path: Path) -> None:
    python = python_with_gi()
    if python is None:
        pytest.skip("no Python with PyGObject")
    import h11  # noqa: PLC0415
    import websocket  # noqa: PLC0415

    for module in (h11, websocket):  # that Python need not have them
        assert module.__file__ is not None
        package = Path(module.__file__).parent
        (tmp_path / package.name).symlink_to(package)
    env = {"PYTHONPATH": os.pathsep.join([str(ROOT), str(tmp_path)])}
    with (
        LocalServer() as server,
        running("glib_loop.py", server.url, "one", "two", python=python, env=env) as process,
    ):
        assert ended(process) == ["one", "two"]


def get(port: int, path: str = "/", data: Optional[bytes] = None) -> bytes:
    url = f"http://127.0.0.1:{port}{path}"
    with urllib.request.urlopen(url, data=data, timeout=SOON) as answer:
        body: bytes = answer.read()
        return body


def test_flask_in_gunicorn() -> None:
    pytest.importorskip("flask")
    pytest.importorskip("gunicorn")
    script = "import sys; from gunicorn.app.wsgiapp import run; sys.exit(run())"
    with LocalServer(numbers(3)) as server, socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        options = ["--workers", "2", "--threads", "2", "--log-level", "warning"]
        options += ["--bind", f"fd://{listener.fileno()}", "--chdir", str(EXAMPLES)]
        process = subprocess.Popen(
            [sys.executable, "-c", script, *options, "flask_app:create_app()"],
            env={
                **os.environ,
                "FEED_URL": server.url,
                "PYTHONPATH": str(ROOT),
                "PYTHONDONTWRITEBYTECODE": "1",
            },
            pass_fds=[listener.fileno()],
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            deadline = time.monotonic() + SOON * 2
            while server.connections < 2 and time.monotonic() < deadline:  # both workers answered
                found = json.loads(get(port))
                assert found["newest"].startswith("message ")
                assert found["state"] == "CONNECTED"
            get(port, "/send", b"to the server")
            eventually(lambda: "to the server" in server.messages)
        finally:
            process.terminate()
            _, err = process.communicate(timeout=SOON * 2)
        assert "Traceback" not in err, err
        assert server.connections == 2, "a client for each worker"


class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = b"<body style='background: rgb(10, 200, 30)'><h1>wsthread</h1></body>"
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Be quiet."""


@pytest.mark.skipif(shutil.which("chromium") is None, reason="chromium is not installed")
def test_a_picture_by_the_devtools_protocol(tmp_path: Path) -> None:
    picture = tmp_path / "picture.png"
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page) as pages:
        thread = threading.Thread(target=pages.serve_forever, args=(0.02,))
        thread.start()
        sandbox = ["--no-sandbox"] * (os.getuid() == 0)
        url = f"http://127.0.0.1:{pages.server_port}/"
        try:
            # Short, for Chromium puts a Unix socket there; and nothing may be left in it.
            with tempfile.TemporaryDirectory() as directory:
                env = {"TMPDIR": directory}
                with running("devtools.py", url, str(picture), *sandbox, env=env) as process:
                    out, err = process.communicate(timeout=SOON * 4)
        finally:
            pages.shutdown()
            thread.join(SOON)
    assert (process.returncode, out) == (0, ""), err
    width, _, pixel = first_pixel(picture.read_bytes())
    assert width == 800
    assert pixel == bytes((10, 200, 30))


def first_pixel(png: bytes) -> Any:
    """Width, height and the colour of the first pixel, which no filter changes."""
    width, height = struct.unpack(">II", png[16:24])
    data, at = b"", 8
    while at < len(png):
        size, kind = struct.unpack(">I4s", png[at : at + 8])
        if kind == b"IDAT":
            data += png[at + 8 : at + 8 + size]
        at += 12 + size
    return width, height, zlib.decompress(data)[1:4]


COUNT = 500


@contextlib.contextmanager
def redis_server(directory: Path) -> Iterator[str]:
    path = directory / "redis.sock"
    options = ["--port", "0", "--unixsocket", str(path), "--save", "", "--appendonly", "no"]
    process = subprocess.Popen(
        ["redis-server", *options, "--dir", str(directory)], stdout=subprocess.DEVNULL
    )
    try:
        eventually(path.exists)
        yield f"unix://{path}"
    finally:
        process.terminate()
        process.wait(SOON)


@pytest.mark.skipif(shutil.which("redis-server") is None, reason="redis-server is not installed")
def test_a_handler_of_redis_streams_is_killed_and_nothing_is_lost(tmp_path: Path) -> None:
    redis = pytest.importorskip("redis")
    with contextlib.ExitStack() as stack:
        url = stack.enter_context(redis_server(tmp_path))
        env = {"REDIS_URL": url, "ABANDONED_MS": "300"}
        program = "redis_streams.py"
        servers = [stack.enter_context(LocalServer(numbers(COUNT))) for _ in range(2)]
        victim, *others = [
            stack.enter_context(running(program, "handle", name, env=env)) for name in "abc"
        ]
        receivers = [
            stack.enter_context(running(program, "receive", server.url, env=env))
            for server in servers
        ]
        with redis.Redis.from_url(url) as database:
            # Stopped with messages that are its own, and then killed.
            eventually(lambda: has_messages(database, b"a"))
            victim.send_signal(signal.SIGSTOP)
            assert wait_until(lambda: database.hlen("results") >= COUNT / 2)
            victim.kill()
            victim.wait(SOON)
            assert wait_until(lambda: database.hlen("results") == 2 * COUNT)
            assert wait_until(lambda: database.xpending("messages", "handlers")["pending"] == 0)
            found = database.hvals("results")
            assert sorted(found) == sorted(2 * [b"message %d" % n for n in range(COUNT)])
        for process in receivers + others:
            process.send_signal(signal.SIGTERM)
            assert ended(process) == []


def has_messages(database: Any, name: bytes) -> bool:
    if not database.exists("messages"):
        return False
    groups = database.xinfo_groups("messages")
    if not groups:
        return False
    consumers = {c["name"]: c for c in database.xinfo_consumers("messages", "handlers")}
    return name in consumers and consumers[name]["pending"] > 0


def wait_until(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + SOON * 2
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True
