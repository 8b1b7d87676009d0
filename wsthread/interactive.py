"""The command line at a terminal: what is typed is sent, what comes is shown above the prompt."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
import queue
import sys
import threading
from collections import deque
from pathlib import Path
from typing import Callable, Deque, List, Optional, Union

from . import command
from .client import WebSocketClient
from .command import as_shown, is_announced, live, printable
from .delegate import Message, WebSocketDelegate
from .errors import WebSocketError, describe_close
from .state import ConnectionState
from .waits import wait_event

HELP = """\
  TEXT                    send a line; //TEXT sends one that begins with a slash
  /binary HEX, @FILE      send a binary message: bytes in hex, or what is in a file
  /ping [TEXT]            send a ping, and show how long its pong took
  /stats                  show what was counted
  /close [CODE [REASON]]  close the connection (default: 1000)
  /help                   this"""

#: Lines that may wait to be shown; then who has more waits.
_BACKLOG = 1000


def run(client: WebSocketClient) -> int:
    """Talk with the person at the terminal until it is over; return the exit status."""
    screen = _screen()
    talk = Talk(screen)
    client.set_delegate(talk)
    status = live(
        client,
        lambda: screen.run(lambda line: talk.obey(client, line)),
        lambda error: command.tell(str(error)),
    )
    if status == command.CLOSED and client.close_code == talk.close_code:
        return command.OK  # the code that was asked for
    return status


def _screen() -> Union[Prompt, Plain]:
    if os.environ.get("TERM", "").lower() in ("dumb", "unknown"):
        return Plain()  # no cursor to move
    try:
        return Prompt()
    except ImportError:
        return Plain()


class Talk(WebSocketDelegate):
    """Shows what happens (the dispatcher's thread), and does what was typed (its own thread)."""

    def __init__(self, screen: Union[Prompt, Plain]) -> None:
        self._screen = screen
        self.close_code: Optional[int] = None  # what /close asked for; the input's thread

    def _show(self, mark: str, text: str) -> None:
        # Indented, so that no line of a message looks like one of ours.
        self._screen.show(f"{mark} " + printable(text).replace("\n", "\n  "))

    def on_state_change(self, client: WebSocketClient, state: ConnectionState) -> None:
        self._show("*", state.name.lower())
        if state is ConnectionState.DISCONNECTED:
            self._screen.stop()

    def on_open(self, client: WebSocketClient) -> None:
        if client.subprotocol is not None:
            self._show("*", f"subprotocol: {client.subprotocol}")

    def on_message(self, client: WebSocketClient, message: Message) -> None:
        self._show("<", as_shown(message))

    def on_error(self, client: WebSocketClient, error: BaseException) -> None:
        if not is_announced(error):
            self._show("!", str(error))

    def on_close(self, client: WebSocketClient, code: int, reason: str) -> None:
        self._show("*", f"closed: {describe_close(code, reason)}")

    def on_unsent(self, client: WebSocketClient, message: Message, error: BaseException) -> None:
        self._show("!", f"not sent: {as_shown(message)}")

    def on_reconnect(
        self, client: WebSocketClient, attempt: int, delay: float, error: Optional[BaseException]
    ) -> None:
        because = "" if error is None else f" ({error})"
        self._show("*", f"attempt {attempt} to come back in {delay:.1f} s{because}")

    def obey(self, client: WebSocketClient, line: str) -> None:
        """Do what a line says. Whatever goes wrong is shown."""
        try:
            if line.startswith("/") and not line.startswith("//"):
                name, _, rest = line[1:].partition(" ")
                self._obey_command(client, name, rest.strip())
            elif line:
                client.send(line[1:] if line.startswith("/") else line)
        except (WebSocketError, ValueError, OSError) as error:
            self._show("!", str(error))

    def _obey_command(self, client: WebSocketClient, name: str, rest: str) -> None:
        if name == "ping":
            self._show("*", f"pong after {1000 * client.ping(rest.encode()):.1f} ms")
        elif name == "binary":
            data = Path(rest[1:]).read_bytes() if rest.startswith("@") else bytes.fromhex(rest)
            client.send(data)
        elif name == "stats":
            self._show("*", "\n".join(_stats(client)))
        elif name == "close":
            code, _, reason = rest.partition(" ")
            if code and not code.isdecimal():
                raise ValueError(f"a close code is a number, not {code!r}")
            self._close(client, int(code or 1000), reason.strip())
        else:
            self._show("*" if name == "help" else "!", f"commands:\n{HELP}")

    def _close(self, client: WebSocketClient, code: int, reason: str) -> None:
        client.disconnect(code, reason, wait=False)
        self.close_code = code


def _stats(client: WebSocketClient) -> List[str]:
    """Return the counts as lines, and the times where there are any."""
    counts = dataclasses.asdict(client.stats)
    width = max(map(len, counts))
    return ["counted so far:"] + [
        f"{name.replace('_', ' '):<{width}}  {value:.6g}"
        if isinstance(value, float)
        else f"{name.replace('_', ' '):<{width}}  {value}"
        for name, value in counts.items()
        if value is not None
    ]


def _print(text: str) -> None:
    with contextlib.suppress(OSError):  # the terminal has gone
        sys.stdout.write(text + "\n")
        sys.stdout.flush()


class Plain:
    """A terminal without a prompt: lines are read, and others are printed in between."""

    def __init__(self) -> None:
        self._over = threading.Event()

    def show(self, text: str) -> None:
        """Print a text. Any thread."""
        _print(text)

    def stop(self) -> None:
        """Let `run` return. Any thread."""
        self._over.set()

    def run(self, obey: Callable[[str], None]) -> None:
        """Have `obey` called with every line, in a thread, until the input ends or `stop`."""
        name = "wsthread-input"  # a daemon: nothing ends a read of a terminal
        threading.Thread(target=self._read, args=(obey,), name=name, daemon=True).start()
        wait_event(self._over, None)

    def _read(self, obey: Callable[[str], None]) -> None:
        # Not sys.stdin: a thread that held its lock at the end would crash the interpreter.
        with contextlib.suppress(OSError):  # the terminal has gone
            for line in open(0, "rb", closefd=False):  # noqa: SIM115
                obey(line.decode(errors="replace").rstrip("\r\n"))
        self.stop()


class Prompt:
    """A terminal with a prompt that stays below what is shown. Needs prompt_toolkit.

    The prompt runs on the main thread in an event loop of its own; what is typed is obeyed on
    another thread, so that the prompt lives on while that waits.
    """

    def __init__(self) -> None:
        from prompt_toolkit import PromptSession  # noqa: PLC0415 - an extra
        from prompt_toolkit.buffer import Buffer  # noqa: PLC0415
        from prompt_toolkit.output import create_output  # noqa: PLC0415

        self._typed: queue.SimpleQueue[Optional[str]] = queue.SimpleQueue()
        self._changed = threading.Condition()
        # The lock's: what is to be shown, whether it is over, and the loop of the prompt that
        # is there now (None: there is none, and what is to be shown is printed at once).
        self._lines: Deque[str] = deque()
        self._over = False
        self._loop: Optional[asyncio.AbstractEventLoop] = None

        def accept(buffer: Buffer) -> bool:
            self._typed.put(buffer.text)
            return False  # into the history, and out of the prompt

        # Not asked where its cursor is: the answer is old when lines were shown meanwhile, and the
        # prompt would then push what is above it off the screen.
        output = create_output()
        if hasattr(output, "enable_cpr"):
            output.enable_cpr = False
        self._session: PromptSession[str] = PromptSession(output=output)
        self._session.default_buffer.accept_handler = accept
        self._session.app.erase_when_done = True

    def show(self, text: str) -> None:
        """Show a text above the prompt; wait where much is waiting already. Not in the loop."""
        with self._changed:
            while self._loop is not None and len(self._lines) >= _BACKLOG:
                self._changed.wait()
            self._lines.append(text)
            if self._loop is None:
                self._print_lines()
            elif len(self._lines) == 1:
                self._loop.call_soon_threadsafe(self._show_lines)

    def _show_lines(self) -> None:
        # Not run_in_terminal: it lets the terminal echo what is typed meanwhile.
        application = self._session.app
        if application.is_running and not application.is_done:
            application.renderer.erase()
            self._print_lines()
            application.invalidate()

    def _print_lines(self) -> None:
        with self._changed:
            if self._lines:
                _print("\n".join(self._lines))
            self._lines.clear()
            self._changed.notify_all()

    def stop(self) -> None:
        """Let `run` return. Any thread."""
        with self._changed:
            self._over = True
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._leave)

    def _leave(self) -> None:
        application = self._session.app
        if application.is_running and not application.is_done:
            application.exit(exception=EOFError)

    def run(self, obey: Callable[[str], None]) -> None:
        """Have `obey` called with every line, in a thread, until the input ends or `stop`.

        Raises KeyboardInterrupt for Ctrl-C.
        """
        name = "wsthread-input"  # a daemon: a second signal need not wait for it
        thread = threading.Thread(target=self._obey, args=(obey,), name=name, daemon=True)
        thread.start()
        try:
            asyncio.run(self._prompt())
        finally:
            self._typed.put(None)
        thread.join()

    async def _prompt(self) -> None:
        try:
            await self._session.prompt_async("> ", pre_run=self._begin)
        except EOFError:
            pass  # Ctrl-D, or `_leave`
        finally:
            with self._changed:
                self._loop = None
                self._print_lines()

    def _begin(self) -> None:
        with self._changed:
            self._loop = asyncio.get_running_loop()
            if self._over:
                self._leave()

    def _obey(self, obey: Callable[[str], None]) -> None:
        while True:
            line = self._typed.get()
            if line is None:
                return
            self.show(f"> {printable(line)}")
            obey(line)
