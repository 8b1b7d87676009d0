"""A program under a pseudo-terminal, with a screen that shows what a person would see."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import termios
import threading
import time
from typing import Any, Dict, List, Optional

import pyte

from tests.support import SOON

ROWS, COLUMNS = 40, 100
UP = "\x1b[A"
CTRL_C, CTRL_D = "\x03", "\x04"


class Terminal:
    """Runs a program whose controlling terminal this is.

    `options` go to `subprocess.Popen`: what of the standard streams is no terminal. Use it as a
    context manager.
    """

    def __init__(
        self, command: List[str], env: Optional[Dict[str, str]] = None, **options: Any
    ) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
        self._slave: Optional[int] = slave  # kept open for its settings at the end
        self._after: Any = None
        self._before = termios.tcgetattr(slave)
        self._screen = pyte.Screen(COLUMNS, ROWS)  # the condition's
        self._screen.write_process_input = self.type  # what a terminal answers
        self._stream = pyte.ByteStream(self._screen)
        self._changed = threading.Condition()
        options.setdefault("stdin", slave)
        options.setdefault("stdout", slave)
        options.setdefault("stderr", slave)
        # What the leader of a session opens becomes its controlling terminal.
        self.process = subprocess.Popen(
            ["sh", "-c", ': <>"$0"; exec "$@"', os.ttyname(slave), *command],
            env={**os.environ, "TERM": "xterm", **(env or {})},
            start_new_session=True,
            **options,
        )
        self._reader = threading.Thread(target=self._read, name="terminal", daemon=True)
        self._reader.start()

    def type(self, text: str) -> None:
        """Press keys."""
        os.write(self._master, text.encode())

    @property
    def lines(self) -> List[str]:
        """What is on the screen, without empty lines."""
        with self._changed:
            return [line.rstrip() for line in self._screen.display if line.strip()]

    def see(self, pattern: str, timeout: float = SOON) -> None:
        """Wait until a regular expression matches what is on the screen."""
        deadline = time.monotonic() + timeout
        with self._changed:
            while re.search(pattern, "\n".join(self.lines), re.MULTILINE) is None:
                seen = self._changed.wait(deadline - time.monotonic())
                assert seen, f"{pattern!r} is not on the screen:\n" + "\n".join(self.lines)

    def wait(self, timeout: float = SOON) -> int:
        """Wait for the program's end, and for all that it showed; return its exit status."""
        try:
            status = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError("it does not end:\n" + "\n".join(self.lines)) from None
        self._close_slave()
        self._reader.join(timeout)
        assert not self._reader.is_alive()
        return status

    @property
    def restored(self) -> bool:
        """Whether the terminal's settings are what they were."""
        return self._after == self._before

    def _close_slave(self) -> None:
        """Let the reader see the end, once the program has ended too."""
        if self._slave is not None:
            self._after = termios.tcgetattr(self._slave)
            os.close(self._slave)
            self._slave = None

    def _read(self) -> None:
        """Show what is written until nobody can write any more. A thread of its own."""
        while True:
            try:
                data = os.read(self._master, 65536)
            except OSError:  # how Linux says it
                return
            if not data:
                return
            with self._changed:
                self._stream.feed(data)
                self._changed.notify_all()

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._close_slave()
        self._reader.join(SOON)
        assert not self._reader.is_alive()
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()
        os.close(self._master)
