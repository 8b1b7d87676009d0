"""Bring cases to clients: lanes of one server process and one client process each.

The server is single-threaded and much of a case is waiting, so a few lanes side
by side save time; each has a server of its own, so that a case that keeps a
server busy cannot spoil another's timing there. Clients run in processes of
their own because a client that hangs can then be ended.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import time
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Tuple

from .clients import CLIENTS
from .judge import Result, judge
from .server import FuzzingServer

STATUS_TIMEOUT = 30.0  # for the server to see the end of a case the client has ended
REPORT_TIMEOUT = 120.0
# The cases of permessage-deflate; clients do without it in all others.
COMPRESSION_GROUPS = ("12.", "13.")
# Such a case may run for minutes; the server ends it in the end.
COMPRESSION_TIMEOUT_FACTOR = 5


class RunError(Exception):
    """The run itself failed, not a case."""


def client_process(pipe: Connection, name: str, dispatcher: str) -> None:
    """A client's process: obeys ``(method, url, compression)`` until the pipe ends."""
    client = CLIENTS[name](dispatcher)
    with contextlib.suppress(EOFError, KeyboardInterrupt):
        while True:
            method, url, client.compression = pipe.recv()
            try:
                answer = (True, getattr(client, method)(url))
            except Exception as error:  # the driver reports it, whatever it is
                answer = (False, f"{type(error).__name__}: {error}")
            pipe.send(answer)


class Worker:
    """The driver's side of a client's process."""

    def __init__(self, *client: Any) -> None:
        self._client = client
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        arguments = (theirs, *self._client)
        self._process = context.Process(target=client_process, args=arguments, daemon=True)
        self._process.start()
        theirs.close()

    def ask(self, method: str, url: str, compression: bool = False) -> None:
        self.pipe.send((method, url, compression))

    def answer(self) -> Tuple[bool, Any]:
        try:
            ok, answer = self.pipe.recv()
            return ok, answer
        except (EOFError, OSError):
            self.restart()
            return False, "the client's process died"

    def call(self, method: str, url: str, timeout: float) -> Any:
        """Ask and wait. Raises RunError."""
        self.ask(method, url)
        if not self.pipe.poll(timeout):
            raise RunError(f"no answer in {timeout:.0f} s: {method} {url}")
        ok, answer = self.answer()
        if not ok:
            raise RunError(f"{method} {url}: {answer}")
        return answer

    def restart(self) -> None:
        self.close()
        self._start()

    def close(self) -> None:
        self._process.kill()
        self._process.join()
        self._process.close()
        self.pipe.close()


class Lane:
    """A server, a client, and the case that is under way between them."""

    def __init__(self, server: FuzzingServer, worker: Worker, agent: str) -> None:
        self.server, self.worker, self.agent = server, worker, agent
        self.case: Optional[str] = None
        self.deadline = 0.0
        self._number = 0
        self._confirming = False  # the client is done, the server's result is awaited

    def start(self, case: str, number: int, timeout: float) -> None:
        self.case, self._number, self._confirming = case, number, False
        compression = case.startswith(COMPRESSION_GROUPS)
        if compression:
            timeout *= COMPRESSION_TIMEOUT_FACTOR
        self.deadline = time.monotonic() + timeout
        url = self.server.url(f"runCase?case={number}&agent={self.agent}")
        self.worker.ask("echo", url, compression)

    def advance(self, notes: Dict[str, str]) -> None:
        """Take the client's answer: ask for the server's result next, or the case is over."""
        assert self.case is not None
        ok, answer = self.worker.answer()
        if answer and not (ok and self._confirming):
            notes[self.case] = f"{notes[self.case]}; {answer}" if self.case in notes else answer
        if self._confirming:
            self.case = None
            return
        self._confirming = True
        self.deadline = time.monotonic() + STATUS_TIMEOUT
        path = f"getCaseStatus?case={self._number}&agent={self.agent}"
        self.worker.ask("texts", self.server.url(path))

    def give_up(self) -> str:
        """End a client that hangs; its server then sees the end of the case."""
        assert self.case is not None
        case, self.case = self.case, None
        self.worker.restart()
        return case


class Run:
    """A run of the selected cases. ``results`` after ``run()``."""

    def __init__(self, client: Tuple[Any, ...], agent: str, timeout: float, verbose: bool) -> None:
        self._client, self._agent = client, agent
        self._timeout, self._verbose = timeout, verbose
        self._notes: Dict[str, str] = {}
        self._hung: List[str] = []
        self.cases: Dict[str, str] = {}  # id: description
        self.results: List[Result] = []

    def run(self, python: Path, patterns: List[str], lanes: int, directory: Path) -> None:
        """Raises RunError or ServerError where the run as a whole cannot go on."""
        with contextlib.ExitStack() as stack:
            all_lanes = [
                stack.enter_context(self._lane(python, patterns, directory / str(number)))
                for number in range(lanes)
            ]
            numbers = self._read_cases(all_lanes[0])
            self._drive(all_lanes, numbers)
            index, details = self._reports(all_lanes)
        self.results = judge(self.cases, index, self._notes, self._hung)
        for result in self.results:
            if not result.passed:
                result.details.update(details(result.id))

    @contextlib.contextmanager
    def _lane(self, python: Path, patterns: List[str], directory: Path) -> Iterator[Lane]:
        directory.mkdir()
        server = FuzzingServer(python, patterns, directory)
        with server, contextlib.closing(Worker(*self._client)) as worker:
            yield Lane(server, worker, self._agent)

    def _read_cases(self, lane: Lane) -> Dict[str, int]:
        """The selected cases and their numbers at the server."""

        def ask(path: str) -> Any:
            try:
                texts = lane.worker.call("texts", lane.server.url(path), STATUS_TIMEOUT)
            except RunError as error:
                # One reason is a selected case that the suite does not have.
                raise RunError(f"{error}\n{lane.server.log_tail()}") from None
            if len(texts) != 1:
                raise RunError(f"{path}: {texts!r} is no answer\n{lane.server.log_tail()}")
            return json.loads(texts[0])

        numbers = {}
        for number in range(1, ask("getCaseCount") + 1):
            info = ask(f"getCaseInfo?case={number}")
            numbers[info["id"]] = number
            self.cases[info["id"]] = info["description"]
        if not numbers:
            raise RunError("no case is selected")
        return numbers

    def _drive(self, lanes: List[Lane], numbers: Dict[str, int]) -> None:
        waiting = list(reversed(list(numbers)))
        while True:
            for lane in lanes:
                if lane.case is None and waiting:
                    case = waiting.pop()
                    lane.start(case, numbers[case], self._timeout)
            busy = [lane for lane in lanes if lane.case is not None]
            if not busy:
                return
            next_deadline = min(lane.deadline for lane in busy)
            pipes = [lane.worker.pipe for lane in busy]
            ready = wait(pipes, timeout=max(0.0, next_deadline - time.monotonic()))
            for lane in busy:
                case = str(lane.case)
                if lane.worker.pipe in ready:
                    lane.advance(self._notes)
                elif lane.deadline <= time.monotonic():
                    self._hung.append(lane.give_up())
                    self._notes[case] = "hung, given up"
                if lane.case is None and self._verbose:
                    print(f"{case}: {self._notes.get(case, 'ended')}", flush=True)
                lane.server.check()

    def _reports(self, lanes: List[Lane]) -> Tuple[Dict[str, Any], Any]:
        """The lanes' indexes as one, and a function for a case's detailed report."""
        index: Dict[str, Any] = {}
        details: Dict[str, Any] = {}
        for lane in lanes:
            url = lane.server.url(f"updateReports?agent={self._agent}")
            lane.worker.call("texts", url, REPORT_TIMEOUT)
            path = lane.server.reports / "index.json"
            if not path.exists():
                raise RunError(f"the server wrote no report\n{lane.server.log_tail()}")
            part = json.loads(path.read_text()).get(self._agent, {})
            index.update(part)
            for case, entry in part.items():
                details[case] = lane.server.reports / entry["reportfile"]

        def read(case: str) -> Dict[str, Any]:
            if case not in details:
                return {}
            content: Dict[str, Any] = json.loads(details[case].read_text())
            return content

        return index, read
