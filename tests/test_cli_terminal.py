"""``python -m wsthread URL`` at a terminal: what a person types, and sees on the screen."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Iterator, List

import pytest

from tests.support import SOON, RawConnection, close_frame, echo_server, frame, peer
from tests.terminal import CTRL_C, CTRL_D, UP, Terminal

COMMAND = [sys.executable, "-W", "error", "-m", "wsthread"]

MODES = ["prompt", "plain", "dumb"]


def hiding(package: str) -> List[str]:
    """The command where a package is not installed."""
    script = (
        f"import sys; sys.modules[{package!r}] = None; from wsthread.cli import main; "
        "sys.exit(main())"
    )
    return [sys.executable, "-W", "error", "-c", script]


def terminal(mode: str, *arguments: str, **options: Any) -> Terminal:
    """The command line with a prompt, without prompt_toolkit, or on a terminal without cursor."""
    command = hiding("prompt_toolkit") if mode == "plain" else COMMAND
    env = {"TERM": "dumb"} if mode == "dumb" else {}
    return Terminal([*command, *arguments], env, **options)


def see_prompt(screen: Terminal, mode: str = "prompt") -> None:
    """Wait until it is connected, and the prompt, where there is one, is there for keys."""
    screen.see("^[*] connected$" + ("\n>\\Z" if mode == "prompt" else ""))


def ready(screen: Terminal, mode: str, connection: RawConnection) -> None:
    """Wait until it takes lines: what interrupts it before may still interrupt the opening."""
    see_prompt(screen, mode)
    if mode != "prompt":
        screen.type("ready\r")
        assert connection.read_frame() == (1, b"ready")


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with echo_server() as url:
        yield url


@pytest.mark.parametrize("mode", MODES)
def test_a_session(mode: str, url: str, tmp_path: Path) -> None:
    (tmp_path / "data").write_bytes(bytes(range(100)))
    with terminal(mode, url) as screen:
        see_prompt(screen, mode)
        screen.type("Grüße\r")
        screen.see("^< Grüße$")
        screen.type("//slash\r")
        screen.see("^< /slash$")
        screen.type("/binary 00 ff7f\r")
        screen.see("^< binary, 3 bytes: 00 ff 7f$")
        screen.type(f"/binary @{tmp_path}/data\r")
        screen.see("^< binary, 100 bytes: 00 01 02 (.*\n)*.*[.]{3}$")
        screen.type("/ping\r")
        screen.see(r"^[*] pong after \d+\.\d ms$")
        screen.type("/close 4000 good bye\r")
        assert screen.wait() == 0
        assert screen.lines[-3:] == [
            "* closing",
            "* closed: 4000: good bye",
            "* disconnected",
        ]
        assert screen.restored


@pytest.mark.parametrize("mode", ["prompt", "plain"])
def test_what_is_wrong_is_shown_and_nothing_ends(mode: str, url: str) -> None:
    with terminal(mode, url) as screen:
        see_prompt(screen, mode)
        screen.type("/nonsense\r")
        screen.see("^! commands:\n .*//TEXT")
        screen.type("/close x\r")
        screen.see("^! a close code is a number, not 'x'$")
        screen.type("/close 1006\r")
        screen.see("^! .*1006")
        screen.type("/binary 0x\r")
        screen.see("^! non-hexadecimal")
        screen.type("/binary @/no/such/file\r")
        screen.see("^! .*No such file")
        screen.type("/ping " + 126 * "x" + "\r")
        screen.see("^! a ping's payload is at most 125 bytes")
        screen.type("/help\r")
        screen.see("^[*] commands:\n(.*\n)+.*/close")
        screen.type("/stats\r")
        screen.see(r"^  pings received +\d+$")
        screen.type("still here\r")
        screen.see("^< still here$")
        screen.type(CTRL_D)
        assert screen.wait() == 0


def test_what_comes_stands_above_what_is_being_typed() -> None:
    with peer() as server, terminal("prompt", server.url) as screen:
        connection = server.accept()
        see_prompt(screen)
        screen.type("half a ")
        screen.see("^> half a$")
        connection.sock.sendall(frame(1, b"in between"))
        screen.see("^< in between\n> half a$")
        assert screen.lines[-1] == "> half a"
        screen.type("line\r")
        assert connection.read_frame() == (1, b"half a line")
        screen.see("^< in between\n> half a line\n>$")
        connection.sock.sendall(close_frame(1000, "done"))
        connection.read_frame()
        server.release()
        assert screen.wait() == 0
        assert screen.lines[-2:] == ["* closed: 1000 NORMAL_CLOSURE: done", "* disconnected"]


def test_the_history(url: str) -> None:
    with terminal("prompt", url) as screen:
        see_prompt(screen)
        screen.type("first\r")
        screen.see("^< first$")
        screen.type("second\r")
        screen.see("^< second\n>\\Z")  # the history is loaded as the prompt is drawn anew
        screen.type(UP + UP)
        screen.see("^> first\\Z")
        screen.type(" again\r")
        screen.see("^< first again$")
        screen.type(CTRL_D)
        assert screen.wait() == 0


def test_lines_pasted_before_the_end_are_sent(url: str) -> None:
    with terminal("prompt", url) as screen:
        see_prompt(screen)
        screen.type("one\rtwo\rthree\r/ping\r" + CTRL_D)
        assert screen.wait() == 0
        screen.see("^> three$")
        screen.see("^[*] pong after")


@pytest.mark.parametrize("mode", ["prompt", "plain"])
def test_ends_when_the_server_closes(mode: str) -> None:
    with peer() as server, terminal(mode, server.url) as screen:
        connection = server.accept()
        see_prompt(screen, mode)
        connection.sock.sendall(close_frame(1011, "out of order"))
        connection.read_frame()
        server.release()
        assert screen.wait() == 3
        screen.see("^[*] closed: 1011 INTERNAL_ERROR: out of order\n[*] disconnected$")
        assert screen.restored


@pytest.mark.parametrize("mode", ["prompt", "plain"])
def test_ends_when_the_connection_is_lost(mode: str) -> None:
    with peer() as server, terminal(mode, server.url) as screen:
        connection = server.accept()
        see_prompt(screen, mode)
        connection.reset()
        assert screen.wait() == 4
        screen.see("^! the connection broke: .*\n[*] closed: 1006 ABNORMAL_CLOSURE$")
        assert screen.restored


@pytest.mark.parametrize("mode", ["prompt", "plain"])
@pytest.mark.parametrize(
    "key, status", [(CTRL_D, 0), (CTRL_C, 130)], ids=["end of input", "interrupt"]
)
def test_the_keys_that_end_it(mode: str, key: str, status: int) -> None:
    with peer() as server, terminal(mode, server.url) as screen:
        connection = server.accept()
        ready(screen, mode, connection)
        screen.type(key)
        assert connection.answer_close() == (1000, b"")
        server.release()
        assert screen.wait() == status
        screen.see("^[*] closed: 1000 NORMAL_CLOSURE\n[*] disconnected\\Z")
        assert screen.restored


@pytest.mark.usefixtures("hangups")
@pytest.mark.parametrize(
    "mode, number",
    [
        ("prompt", signal.SIGINT),
        ("prompt", signal.SIGTERM),
        ("prompt", signal.SIGHUP),
        ("plain", signal.SIGTERM),
    ],
)
def test_signals(mode: str, number: signal.Signals) -> None:
    with peer() as server, terminal(mode, server.url) as screen:
        connection = server.accept()
        ready(screen, mode, connection)
        if mode == "prompt":
            screen.type("half a line")
            screen.see("^> half a line$")
        screen.process.send_signal(number)
        assert connection.answer_close() == (1000, b"")
        server.release()
        assert screen.wait() == 128 + number
        screen.see("^[*] closed: 1000 NORMAL_CLOSURE\n[*] disconnected\\Z")
        assert screen.restored


def test_a_message_does_not_steer_the_terminal() -> None:
    with peer() as server, terminal("prompt", server.url) as screen:
        connection = server.accept()
        connection.sock.sendall(frame(1, b"\x1b[2J\x07gone?\n* closed: 1000"))
        screen.see(r"^< \\x1b\[2J\\x07gone\?" + "\n  [*] closed: 1000$")
        connection.sock.sendall(close_frame(4001, "\x1b]0;title\x07\u202e"))
        connection.read_frame()
        server.release()
        assert screen.wait() == 3
        screen.see(r"closed: 4001: \\x1b\]0;title\\x07\\u202e$")


@pytest.mark.parametrize("mode", ["prompt", "plain"])
def test_a_flood_is_shown_whole(mode: str, url: str) -> None:
    with terminal(mode, url) as screen:
        see_prompt(screen, mode)
        screen.type("push 5000\r")
        screen.see("^< 4999$", SOON * 3)
        numbers = [int(line[2:]) for line in screen.lines if line.startswith("< ")]
        assert numbers == list(range(5000 - len(numbers), 5000))
        screen.type("/close\r")
        assert screen.wait() == 0


def test_coming_back_is_shown() -> None:
    with peer() as server, terminal("prompt", server.url, "--reconnect") as screen:
        server.accept().reset()
        server.release()
        connection = server.accept()
        screen.see(r"^[*] attempt 1 to come back in \d\.\d s \(")
        screen.see("^[*] reconnecting$")
        connection.sock.sendall(frame(1, b"here again"))
        screen.see("^< here again$")
        screen.type(CTRL_D)
        connection.answer_close()
        server.release()
        assert screen.wait() == 0


def test_not_opened(url: str) -> None:
    with terminal("prompt", "ws://127.0.0.1:1/") as screen:
        assert screen.wait() == 1
        screen.see("^wsthread: cannot connect to 127.0.0.1:1: ")
        assert screen.restored


def test_a_password_is_asked_for() -> None:
    with peer() as server, terminal("prompt", "--auth", "harriet", server.url) as screen:
        screen.see("^Password of harriet:$")
        screen.type("secret\r")
        connection = server.accept()
        # harriet:secret
        assert b"\r\nAuthorization: Basic aGFycmlldDpzZWNyZXQ=\r\n" in connection.head + b"\r\n"
        see_prompt(screen)
        screen.type(CTRL_D)
        connection.answer_close()
        server.release()
        assert screen.wait() == 0
        assert "secret" not in "\n".join(screen.lines)


# Not wholly at a terminal.


def test_the_progress_of_a_count(url: str) -> None:
    with Terminal(
        [*COMMAND, "--count", "300", url], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as screen:
        assert screen.process.stdin is not None and screen.process.stdout is not None
        screen.process.stdin.write(b"push 200\n")
        screen.process.stdin.flush()
        lines = [screen.process.stdout.readline() for _ in range(200)]
        screen.see(r"\b\d+/300 ")
        screen.process.stdin.write(b"push 200\n")
        screen.process.stdin.flush()
        lines += screen.process.stdout.readlines()
        assert screen.wait() == 0
        screen.see(r"\b300/300 ")
        assert [int(line) for line in lines] == [*range(200), *range(100)]


def test_messages_stand_above_the_progress(url: str) -> None:
    with Terminal([*COMMAND, "--count", "3", url]) as screen:
        screen.see(r"\b0/3 ")
        screen.type("one\r")
        screen.see("^one\n(.*\n)*.* 1/3 ")
        screen.type("two\rthree\r")
        assert screen.wait() == 0
        screen.see("^two$")
        screen.see("^three$")
        screen.see(r"\b3/3 \[")


def test_a_count_without_tqdm(url: str) -> None:
    with Terminal(
        [*hiding("tqdm"), "--count", "2", url], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as screen:
        output, _ = screen.process.communicate(b"a\nb\n", timeout=SOON)
        assert (screen.wait(), output) == (0, b"a\nb\n")
        assert screen.lines == []


def test_binary_is_not_written_to_a_terminal() -> None:
    with (
        peer() as server,
        Terminal([*COMMAND, "-1", server.url], stdin=subprocess.DEVNULL) as screen,
    ):
        connection = server.accept()
        connection.sock.sendall(frame(2, b"\x1b[2J\xff"))
        connection.answer_close()
        server.release()
        assert screen.wait() == 0
        assert screen.lines == ["binary, 5 bytes: 1b 5b 32 4a ff"]


def test_ctrl_c_at_a_terminal_that_is_only_the_input() -> None:
    with peer() as server, Terminal([*COMMAND, server.url], stdout=subprocess.DEVNULL) as screen:
        connection = server.accept()
        screen.type("typed\r")
        assert connection.read_frame() == (1, b"typed")
        screen.type(CTRL_C)
        assert connection.answer_close() == (1000, b"")
        server.release()
        assert screen.wait() == 130


@pytest.mark.skipif(shutil.which("tmux") is None, reason="tmux is not installed")
def test_in_tmux(url: str, tmp_path: Path) -> None:
    """A terminal of another make, which answers what a prompt asks it."""
    tmux = ["tmux", "-S", str(tmp_path / "socket"), "-f", os.devnull]

    def screen() -> str:
        done = subprocess.run([*tmux, "capture-pane", "-p"], capture_output=True, text=True)
        return done.stdout

    def see(text: str) -> None:
        deadline = time.monotonic() + SOON
        while text not in screen():
            assert time.monotonic() < deadline, f"{text!r} is not in:\n{screen()}"
            time.sleep(0.05)

    program = subprocess.list2cmdline([*COMMAND, url])
    subprocess.run(
        [*tmux, "new-session", "-d", "-x", "80", "-y", "24", f"{program}; echo status $?; cat"],
        check=True,
    )
    try:
        see("* connected\n>")
        subprocess.run([*tmux, "send-keys", "hello", "Enter"], check=True)
        see("* connected\n> hello\n< hello\n>")
        subprocess.run([*tmux, "send-keys", "/close", "Enter"], check=True)
        see("* disconnected\nstatus 0\n")
        assert "WARNING" not in screen()
    finally:
        subprocess.run([*tmux, "kill-server"], check=True)
