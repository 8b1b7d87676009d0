"""Promise 4: a script that ends without disconnect() ends at once, in order and in silence."""

from __future__ import annotations

import contextlib
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Iterator, List, Tuple

import pytest

from tests.support import SOON, RawConnection, RawServer, frame

ROOT = Path(__file__).parent.parent
#: Seconds from the last line of a script to the end of its process: the hook's 0.5 and slack.
AT_ONCE = 2.0

BEGIN = """\
import sys, threading, time
import wsthread

url = sys.argv[1]
happened = threading.Event()

class Delegate(wsthread.WebSocketDelegate):
    def on_message(self, client, message):
        happened.set()

def connected(**options):
    client = wsthread.WebSocketClient(url, Delegate(), **options)
    client.connect()
    return client
"""
END = """
print(time.monotonic(), flush=True)
"""

OPEN = {
    "open": "client = connected()",
    "open, in a with block that a function never leaves": """
def endless():
    with connected():
        yield
steps = endless()
next(steps)
""",
    "several clients": "clients = [connected() for _ in range(3)]",
    "messages come": "client = connected(); assert happened.wait(10)",
    "inline": """
client = connected(dispatcher=wsthread.InlineDispatcher()); assert happened.wait(10)
""",
    "executor": """
from concurrent.futures import ThreadPoolExecutor
client = connected(dispatcher=wsthread.ExecutorDispatcher(ThreadPoolExecutor(2)))
assert happened.wait(10)
""",
    "shared thread": """
dispatcher = wsthread.ThreadDispatcher()
clients = [connected(dispatcher=dispatcher) for _ in range(2)]; assert happened.wait(10)
""",
    "a pump that nobody pumps": "client = connected(dispatcher=wsthread.PumpDispatcher())",
    "posted to where nobody looks": """
import queue
client = connected(dispatcher=wsthread.PostDispatcher(queue.SimpleQueue().put))
""",
    "a loop that is closed": """
import asyncio
loop = asyncio.new_event_loop()
runner = threading.Thread(target=loop.run_forever)
runner.start()
client = connected(dispatcher=wsthread.PostDispatcher(loop.call_soon_threadsafe))
assert happened.wait(10)
loop.call_soon_threadsafe(loop.stop)
runner.join()
loop.close()
""",
    "a callback blocks for ever": """
class Delegate(wsthread.WebSocketDelegate):
    def on_message(self, client, message):
        happened.set()
        threading.Event().wait()
client = connected(); assert happened.wait(10)
""",
    "an inline callback blocks for ever": """
class Delegate(wsthread.WebSocketDelegate):
    def on_message(self, client, message):
        happened.set()
        threading.Event().wait()
client = connected(dispatcher=wsthread.InlineDispatcher()); assert happened.wait(10)
""",
    "a full receive queue": """
class Delegate(wsthread.WebSocketDelegate):
    def on_message(self, client, message):
        threading.Event().wait()
client = connected(receive_queue=wsthread.QueueLimit(messages=10))
while not client.stats.back_pressure_pauses:
    time.sleep(0.01)
""",
    "another thread is in wait()": """
client = connected()
threading.Thread(target=client.wait, daemon=True).start()
""",
    "an echo": """
class Delegate(wsthread.WebSocketDelegate):
    def on_message(self, client, message):
        client.send(message)
        happened.set()
client = connected(); assert happened.wait(10)
""",
    "an inline echo": """
class Delegate(wsthread.WebSocketDelegate):
    def on_message(self, client, message):
        client.send(message)
        happened.set()
client = connected(dispatcher=wsthread.InlineDispatcher()); assert happened.wait(10)
""",
    "a callback sends for ever": """
class Delegate(wsthread.WebSocketDelegate):
    def on_message(self, client, message):
        happened.set()
        while True:
            try:
                client.send("hello")
            except wsthread.QueueFull:
                time.sleep(0.001)
client = connected(); assert happened.wait(10)
""",
    "daemon threads send and ping": """
client = connected()
def forever(method, *args):
    while True:
        method(*args)
        happened.set()
for method, *args in [(client.send, "hello"), (client.ping,), (client.flush,)]:
    threading.Thread(target=forever, args=(method, *args), daemon=True).start()
assert happened.wait(10)
time.sleep(0.1)
""",
    "disconnect() was asked for": "client = connected(); client.disconnect(wait=False)",
    "dropped": """
import warnings
warnings.simplefilter("ignore", ResourceWarning)
client = connected(); del client
""",
}


def talkative(connection: RawConnection) -> None:
    """Upgrades, then sends without pause, so that the end meets events on their way."""
    connection.upgrade()
    batch = frame(1, b"Have a good day!") * 20
    with contextlib.suppress(OSError):
        while True:
            connection.sock.sendall(batch)
            time.sleep(0.001)


def polite(connection: RawConnection) -> None:
    """Upgrades, and answers the close."""
    connection.upgrade()
    connection.answer_close()


def mute(connection: RawConnection) -> None:
    """Accepts the TCP connection, and that is all."""
    connection.read_to_end()


def deaf(connection: RawConnection) -> None:
    """Upgrades, then reads nothing until the client is gone, which poll tells without reading."""
    connection.upgrade()
    poll = select.poll()
    poll.register(connection.sock, select.POLLRDHUP)
    poll.poll(SOON * 1000)


class Concurrent(RawServer):
    """A raw server whose connections do not wait for each other."""

    def _run(self) -> None:
        serve = super()._run
        threads = [threading.Thread(target=serve, daemon=True) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def run(
    script: str, url: str, *flags: str, begin: str = BEGIN
) -> Tuple[subprocess.CompletedProcess[str], float]:
    """Run a script; return how it ended, and how long that took it from its last line on."""
    done = subprocess.run(
        [sys.executable, *flags, "-c", begin + script, url],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=SOON * 2,
    )
    now = time.monotonic()
    lines = done.stdout.split()
    return done, now - float(lines[-1]) if lines else 0.0


def check(script: str, url: str, *flags: str, begin: str = BEGIN) -> None:
    done, took = run(script + END, url, *flags, begin=begin)
    assert done.stderr == ""
    assert done.returncode == 0
    assert took < AT_ONCE


FLAGS = pytest.mark.parametrize(
    "flags", [[], ["-X", "dev", "-W", "error"]], ids=["plain", "strict"]
)


@pytest.fixture(scope="module")
def talkative_url() -> Iterator[str]:
    with Concurrent(talkative) as server:
        yield server.url


@FLAGS
@pytest.mark.parametrize("shape", OPEN)
def test_promise_04_open(shape: str, flags: List[str], talkative_url: str) -> None:
    check(OPEN[shape], talkative_url, *flags)


@FLAGS
@pytest.mark.parametrize("scheme", ["ws", "wss"])
def test_promise_04_connecting_to_a_peer_that_never_answers(scheme: str, flags: List[str]) -> None:
    script = """
client = wsthread.WebSocketClient(url, Delegate())
client.connect(wait=False)
client.send("queued")
time.sleep(0.2)
assert client.state is wsthread.ConnectionState.CONNECTING
"""
    with RawServer(mute) as server:
        check(script, server.url.replace("ws:", f"{scheme}:"), *flags)


@FLAGS
def test_promise_04_while_a_callable_of_the_user_blocks(flags: List[str]) -> None:
    script = """
def headers():
    happened.set()
    threading.Event().wait()
client = wsthread.WebSocketClient(url, Delegate(), headers=headers)
client.connect(wait=False)
assert happened.wait(10)
"""
    check(script, "ws://127.0.0.1:9/", *flags)


@pytest.fixture
def refused_url() -> Iterator[str]:
    """A port that stays taken and that nobody listens on."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"ws://127.0.0.1:{taken.getsockname()[1]}/"


@FLAGS
def test_promise_04_in_back_off(flags: List[str], refused_url: str) -> None:
    script = """
class Delegate(wsthread.WebSocketDelegate):
    def on_reconnect(self, client, attempt, delay, error):
        happened.set()
again = wsthread.Reconnect(first=True, delay=60)
client = wsthread.WebSocketClient(url, Delegate(), reconnect=again)
client.connect(wait=False)
assert happened.wait(10)
"""
    check(script, refused_url, *flags)


@FLAGS
@pytest.mark.skipif(not hasattr(select, "POLLRDHUP"), reason="the peer needs POLLRDHUP")
def test_promise_04_a_send_is_stalled(flags: List[str]) -> None:
    script = """
client = connected()
sender = threading.Thread(target=client.send, args=(bytes(64 << 20),), daemon=True)
sender.start()
while not client.pending:
    time.sleep(0.01)
time.sleep(0.2)
assert sender.is_alive()
"""
    with RawServer(deaf) as server:
        check(script, server.url, *flags)


@FLAGS
def test_promise_04_a_daemon_thread_is_connecting(flags: List[str]) -> None:
    script = """
client = wsthread.WebSocketClient(url, Delegate())
threading.Thread(target=client.connect, daemon=True).start()
while client.state is not wsthread.ConnectionState.CONNECTING:
    time.sleep(0.01)
"""
    with RawServer(mute) as server:
        check(script, server.url, *flags)


def test_promise_04_the_peer_is_told() -> None:
    codes = []

    def script(connection: RawConnection) -> None:
        connection.upgrade()
        codes.append(connection.answer_close()[0])

    with RawServer(script) as server:
        check("client = connected()", server.url)
    assert codes == [1001]


def test_promise_04_the_status_is_the_scripts_own(talkative_url: str) -> None:
    script = f"client = connected()\n{END}\nsys.exit(3)"
    done, took = run(script, talkative_url)
    assert (done.returncode, done.stderr) == (3, "")
    assert took < AT_ONCE


def test_promise_04_an_error_of_the_script_is_all_that_is_seen(talkative_url: str) -> None:
    script = f"client = connected()\n{END}\nraise ValueError('my own')"
    done, took = run(script, talkative_url)
    assert done.returncode == 1
    assert took < AT_ONCE
    assert done.stderr.startswith("Traceback (most recent call last):\n")
    assert done.stderr.endswith("\nValueError: my own\n")
    assert done.stderr.count("Traceback") == 1
    assert "wsthread" not in done.stderr


def test_promise_04_an_error_leaves_a_with_block_in_order() -> None:
    codes = []

    def script(connection: RawConnection) -> None:
        connection.upgrade()
        codes.append(connection.answer_close()[0])

    with RawServer(script) as server:
        code = "with wsthread.WebSocketClient(url, Delegate()):\n    raise ValueError('my own')"
        done, _ = run(code, server.url)
    assert done.returncode == 1
    assert done.stderr.count("Traceback") == 1
    assert done.stderr.endswith("\nValueError: my own\n")
    assert codes == [1000]


def test_promise_04_a_handler_of_the_script_may_disconnect() -> None:
    script = "import atexit\nclient = connected()\natexit.register(client.disconnect)\n"
    with RawServer(polite) as server:
        check(script, server.url, "-X", "dev", "-W", "error")


def test_promise_04_connecting_when_the_interpreter_ends() -> None:
    # Registered before the library is imported, so that it runs behind the library's hook. From
    # 3.12 on no thread starts any more, which is an error of connect().
    before = """\
import atexit
def late():
    client = wsthread.WebSocketClient(url, Delegate(), reconnect=False)
    try:
        client.connect()
    except wsthread.ConnectError:
        pass
    else:
        client.disconnect()
atexit.register(late)
"""
    with RawServer(polite) as server:
        check("", server.url, begin=before + BEGIN)


def interrupted(script: str, url: str) -> Tuple[int, str]:
    """Run a script, and press Ctrl-C once it waits; return its status and its stderr."""
    process = subprocess.Popen(
        [sys.executable, "-X", "dev", "-W", "error", "-c", BEGIN + script, url],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "waiting\n"
        time.sleep(0.2)  # to be in wait(), though any time will do
        begun = time.monotonic()
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=SOON)
        assert time.monotonic() - begun < AT_ONCE
        return process.returncode, stderr
    finally:
        process.kill()
        process.communicate()


WAITING = "print('waiting', flush=True)"


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGINT to send")
@pytest.mark.parametrize("dispatcher", ["Thread", "Inline", "Pump"])
def test_promise_04_ctrl_c_ends_wait(dispatcher: str, talkative_url: str) -> None:
    script = f"""
client = connected(dispatcher=wsthread.{dispatcher}Dispatcher())
{WAITING}
client.wait()
"""
    status, stderr = interrupted(script, talkative_url)
    assert status == -signal.SIGINT
    assert stderr.count("Traceback") == 1
    assert stderr.endswith("\nKeyboardInterrupt\n")


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGINT to send")
def test_promise_04_ctrl_c_leaves_a_with_block_in_order() -> None:
    codes = []

    def peer(connection: RawConnection) -> None:
        connection.upgrade()
        codes.append(connection.answer_close()[0])

    script = f"""
try:
    with wsthread.WebSocketClient(url, Delegate()) as client:
        {WAITING}
        client.wait()
except KeyboardInterrupt:
    pass
"""
    with RawServer(peer) as server:
        assert interrupted(script, server.url) == (0, "")
    assert codes == [1000]


@pytest.mark.skipif(sys.platform == "win32", reason="there is no SIGINT to send")
def test_promise_04_ctrl_c_while_connecting() -> None:
    script = f"""
client = wsthread.WebSocketClient(url, Delegate())
{WAITING}
client.connect()
"""
    with RawServer(mute) as server:
        status, stderr = interrupted(script, server.url)
    assert status == -signal.SIGINT
    assert stderr.count("Traceback") == 1
    assert stderr.endswith("\nKeyboardInterrupt\n")


def test_promise_04_exit_waits_for_a_reader_that_is_about_to_end(talkative_url: str) -> None:
    """A thread that ends while the interpreter does, crashes it."""
    script = """
from wsthread.session import Session

end = Session._end

def end_slowly(self):
    end(self)
    time.sleep(0.3)
    print("1.0", flush=True)

Session._end = end_slowly
client = connected(dispatcher=wsthread.InlineDispatcher())
client.disconnect(wait=False)
while client.state is not wsthread.ConnectionState.DISCONNECTED:
    time.sleep(0.001)
"""
    done, _ = run(script + 'print("0.0", flush=True)', talkative_url)
    assert done.stderr == ""
    assert done.stdout.split() == ["0.0", "1.0"]


#: Sends the signal to another thread, once the main one sleeps: CPython has noticed it, and
#: nobody tells the main thread. The same happens where it comes just before that falls asleep.
UNNOTICED = """
import signal

class Ended(Exception):
    pass

def end(number, frame):
    raise Ended

def send_signal():
    global sent
    time.sleep(0.2)
    sent = time.monotonic()
    signal.pthread_kill(threading.get_ident(), signal.SIGUSR1)

signal.signal(signal.SIGUSR1, end)
sender = threading.Thread(target=send_signal)
{before}
sender.start()
try:
    {call}
except Ended:
    took = time.monotonic() - sent
    print("ended" if took < 5 else f"ended after {{took}} s", flush=True)
sender.join()
client.abort()
"""

WAITS = {
    "connect": ("client = wsthread.WebSocketClient(url, None, connect_timeout=None)", "connect()"),
    "wait": ("client = connected()", "wait()"),
    "wait, pumping": ("client = connected(dispatcher=wsthread.PumpDispatcher())", "wait()"),
    "ping": ("client = connected()", "ping(timeout=60)"),
    "flush": ("client = connected(); client.send(bytes(8_000_000))", "flush(None)"),
    "send": (
        "client = connected(send_queue=wsthread.QueueLimit(messages=1));"
        "client.send(bytes(8_000_000))",
        "send('more', None)",
    ),
}


@pytest.mark.skipif(sys.platform == "win32", reason="signals cannot be sent to threads")
@pytest.mark.parametrize("name", WAITS)
def test_promise_04_a_signal_that_nobody_was_woken_for_is_handled(name: str) -> None:
    before, call = WAITS[name]
    script = UNNOTICED.format(before=before, call="client." + call)
    with RawServer(mute if name == "connect" else deaf) as server:
        done, _ = run(script + END, server.url, "-X", "dev")
    assert done.stderr == ""
    assert done.stdout.splitlines()[0] == "ended"
