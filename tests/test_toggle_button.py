"""docs/examples/toggle_button.py, unmodified, in a window on a display of its own.

As a script, this file is the hand on the mouse: it runs the example as ``python`` would, with
a Tk that presses the button, closes the window, and notes how evenly its loop ticks.
"""

from __future__ import annotations

import contextlib
import json
import os
import runpy
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, Dict, Iterator, List

import pytest

from tests.support import SOON, RawConnection, RawServer, close_frame, echo_server

tkinter = pytest.importorskip("tkinter", reason="this Python has no tkinter")

EXAMPLE = Path(__file__).parent.parent / "docs" / "examples" / "toggle_button.py"
#: Seconds between two rounds of Tk's loop that nobody notices.
SMOOTH = 0.5
CLOSE_TIMEOUT = 5  # the default, which the example leaves as it is


class Hand(tkinter.Tk):  # type: ignore[misc, name-defined]
    """A Tk that is used by a script: every 10 ms it goes on where the script waits."""

    script: Any  # a generator function; set before the example makes its Tk
    gap = 0.0  # the longest between two ticks, in seconds

    def __init__(self) -> None:
        super().__init__()
        self.steps = type(self).script(self)
        self.last = time.monotonic()
        self.after(10, self.tick)

    def tick(self) -> None:
        now = time.monotonic()
        type(self).gap = max(self.gap, now - self.last)
        self.last = now
        next(self.steps, None)
        self.after(10, self.tick)

    def report_callback_exception(self, *exc_info: Any) -> None:
        super().report_callback_exception(*exc_info)
        self.destroy()  # what is on stderr fails the test

    def find(self, kind: str, within: Any = None) -> Any:
        for child in (within or self).winfo_children():
            if child.winfo_class() == kind:
                return child
            found = self.find(kind, child)
            if found is not None:
                return found
        return None

    def log(self) -> List[str]:
        """The lines of the log, without their times."""
        return [line[10:] for line in self.find("Text").get("1.0", "end").strip().split("\n")]

    def state(self) -> str:
        """What the window says about the connection."""
        frame = self.find("TFrame")
        labels = [child for child in frame.winfo_children() if child.winfo_class() == "TLabel"]
        return str(labels[-1].cget("text")).split()[-1]

    def hit(self) -> None:
        self.find("TButton").invoke()

    def close(self) -> None:
        self.tk.call(self.protocol("WM_DELETE_WINDOW"))


Script = Iterator[None]


def until(hand: Hand, text: str, count: int = 1) -> Script:
    while hand.log().count(text) < count:
        yield


def twice(hand: Hand) -> Script:
    """Connect and disconnect, twice; then close the window."""
    for number in (1, 2):
        assert hand.state() == "disconnected"
        hand.hit()
        yield from until(hand, "received: 'Have a good day!'", number)
        assert hand.state() == "connected"
        hand.hit()
        yield from until(hand, "disconnected", number)
    print(json.dumps(hand.log()))
    hand.close()


def once(hand: Hand) -> Script:
    """Connect; disconnect, however long that takes; close the window."""
    hand.hit()
    yield from until(hand, "connected")
    type(hand).gap = 0.0
    hand.hit()
    yield from until(hand, "closing")
    assert hand.find("TButton").instate(["disabled"])
    yield from until(hand, "disconnected")
    print(json.dumps(hand.log()))
    hand.close()


def leave(hand: Hand) -> Script:
    """Connect; close the window while connected."""
    hand.hit()
    yield from until(hand, "connected")
    hand.close()
    assert hand.winfo_viewable() == 0
    print(json.dumps(hand.log()))


def fail(hand: Hand) -> Script:
    """Connect to where nobody listens; close the window."""
    hand.hit()
    yield from until(hand, "disconnected")
    print(json.dumps(hand.log()))
    hand.close()


def drive(script: str, *arguments: str) -> None:
    Hand.script = {"twice": twice, "once": once, "leave": leave, "fail": fail}[script]
    tkinter.Tk = Hand
    sys.argv = [str(EXAMPLE), *arguments]
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    names = [thread.name for thread in threading.enumerate()]
    print(json.dumps({"gap": Hand.gap, "threads": names}))


@pytest.fixture(scope="module")
def display() -> Iterator[str]:
    """A virtual display, chosen by the server so that no two tests meet on one."""
    if shutil.which("Xvfb") is None:
        pytest.skip("there is no Xvfb")
    reader, writer = os.pipe()
    process = subprocess.Popen(
        ["Xvfb", "-displayfd", str(writer), "-screen", "0", "640x520x24", "-nolisten", "tcp"],
        pass_fds=[writer],
        stderr=subprocess.DEVNULL,
    )
    os.close(writer)
    try:
        with open(reader) as pipe:
            number = pipe.readline().strip()
        assert number, "Xvfb did not start"
        yield f":{number}"
    finally:
        process.terminate()
        process.wait(SOON)


def use(display: str, script: str, *arguments: str) -> Dict[str, Any]:
    """Run the example under the hand; return its log, its longest gap, its last threads."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "tests.test_toggle_button", script, *arguments],
        cwd=Path(__file__).parent.parent,
        env={**os.environ, "DISPLAY": display},
        capture_output=True,
        text=True,
        timeout=SOON * 3,
    )
    assert (done.returncode, done.stderr) == (0, "")
    log, seen = (json.loads(line) for line in done.stdout.strip().split("\n"))
    return {"log": log, **seen}


def test_the_button_connects_and_disconnects(display: str) -> None:
    with echo_server() as url:
        seen = use(display, "twice", url)
    check_twice(seen)


def test_without_an_address_it_brings_its_own_server(display: str) -> None:
    check_twice(use(display, "twice"))


def check_twice(seen: Dict[str, Any]) -> None:
    for _ in range(2):
        seen["log"].remove("the message has been sent")  # before the echo or behind it
    assert seen["log"] == 2 * [
        "connecting",
        "connected",
        "received: 'Have a good day!'",
        "closing",
        "closed with code 1000",
        "disconnected",
    ]
    assert seen["threads"] == ["MainThread"]


def test_the_window_does_not_freeze_while_a_peer_does_not_answer_the_close(display: str) -> None:
    began = []

    def script(connection: RawConnection) -> None:
        connection.upgrade()
        while connection.read_frame()[0] != 8:
            pass
        began.append(time.monotonic())
        connection.read_to_end()
        began.append(time.monotonic())

    with RawServer(script) as server:
        seen = use(display, "once", server.url)
    assert began[1] - began[0] > CLOSE_TIMEOUT * 0.9  # there was time enough to freeze
    assert seen["gap"] < SMOOTH
    assert seen["log"][-3:] == ["closing", "closed with code 1006", "disconnected"]
    assert seen["threads"] == ["MainThread"]


def test_closing_the_window_disconnects(display: str) -> None:
    closes = []

    def script(connection: RawConnection) -> None:
        connection.upgrade()
        closes.append(connection.answer_close())

    with RawServer(script) as server:
        seen = use(display, "leave", server.url)
    assert closes == [(1000, b"")]
    assert seen["threads"] == ["MainThread"]


def test_a_failure_is_shown(display: str) -> None:
    with RawServer(lambda connection: None) as server:
        url = server.url
    seen = use(display, "fail", url)
    first, error, last = seen["log"]
    assert (first, last) == ("connecting", "disconnected")
    assert error.startswith("error: ")


def test_the_server_may_close(display: str) -> None:
    def script(connection: RawConnection) -> None:
        connection.upgrade(behind=close_frame(1000, "enough"))
        with contextlib.suppress(EOFError):
            connection.answer_close()

    with RawServer(script) as server:
        seen = use(display, "fail", server.url)
    assert "closed with code 1000 enough" in seen["log"]


if __name__ == "__main__":
    drive(*sys.argv[1:])
