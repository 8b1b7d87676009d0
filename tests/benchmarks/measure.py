"""Runs the rows: contenders take turns, round after round."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence

import wsthread
from tests.support import Certificates, in_process

from .clients import Server
from .idle import raise_limit
from .rows import BARE, Row, Run, Target
from .server import serve
from .workers import CONTENDERS, Contender, Worker, worker

DISTRIBUTIONS = ("websocket-client", "websockets", "picows", "websocket-rs")
IMPORTS = {
    "wsthread": "wsthread",
    "websocket-client": "websocket",
    "websockets": "websockets.sync.client",
    "picows": "picows",
    "websocket-rs": "websocket_rs",
}
Figures = Dict[str, List[float]]
Result = Dict[str, Any]


@contextlib.contextmanager
def serving() -> Iterator[Server]:
    raise_limit()
    with tempfile.TemporaryDirectory(prefix="benchmarks-") as name:
        directory, certificates = Path(name), Certificates()
        authority = certificates.write_authority(directory)
        with in_process(serve, certificates.write(directory)) as ports:
            yield Server(*ports, authority)


class Bench:
    """The server, and a process for each contender once it is needed."""

    def __init__(self, server: Server, stack: contextlib.ExitStack, divisor: int = 1) -> None:
        self._server = server
        self._stack = stack
        self._divisor = divisor  # of all counts
        self._workers: Dict[str, Worker] = {}

    def worker(self, name: str) -> Worker:
        if name not in self._workers:
            self._workers[name] = self._stack.enter_context(worker(CONTENDERS[name]))
        return self._workers[name]

    def run(self, row: Row, run: Run) -> float:
        count = max(2, run.count // self._divisor)
        arguments = {"count": count, **run.arguments}
        if "count" in run.arguments:  # of messages, where the row counts something else
            arguments["count"] = max(1, run.arguments["count"] // self._divisor)
            count = max(1, run.count * arguments["count"] // run.arguments["count"])
        seconds = self.worker(run.contender).call(run.method, server=self._server, **arguments)
        return row.value(count, seconds)

    def measure(self, row: Row, rounds: int) -> Result:
        """Return the row's figures; contenders that are not installed are left out."""
        cells = [run for run in row.runs if CONTENDERS[run.contender].installed()]
        figures: Figures = {run.name: [] for run in cells}
        for number in range(rounds + 1):
            # In turn, and each is first some time.
            first = number % len(cells)
            for run in cells[first:] + cells[:first]:
                value = self.run(row, run)
                if number:  # the first round warms up
                    figures[run.name].append(value)
        return result(row.group, row.name, row.unit, figures, row.targets)

    def masker(self, name: str) -> str:
        return str(self.worker(name).call("masker"))


def result(group: str, name: str, unit: str, figures: Figures, targets: Sequence[Target]) -> Result:
    """What is kept of a row: medians with their rounds, ratios, and which targets were reached."""
    medians = {who: statistics.median(values) for who, values in figures.items()}
    ratios = {
        who: {
            other: medians[who] / medians[other]
            for other in medians
            if other != who and medians[other]
        }
        for who in ("wsthread", "inline", "plain")
        if who in medians
    }
    return {
        "group": group,
        "name": name,
        "unit": unit,
        "figures": {
            who: {
                "median": medians[who],
                "low": min(values),
                "high": max(values),
                "rounds": values,
            }
            for who, values in figures.items()
        },
        "ratios": ratios,
        "targets": [judged(target, medians) for target in targets],
    }


RELATIONS: Dict[str, Callable[[float, float], bool]] = {
    ">=": lambda found, wanted: found >= wanted,
    "<=": lambda found, wanted: found <= wanted,
    "<": lambda found, wanted: found < wanted,
    "==": lambda found, wanted: found == wanted,
}


#: What bare Python there is in place of whom.
FLOORS = {"wsthread": ("bare",), "inline": ("bare inline", "bare")}


def judged(target: Target, medians: Dict[str, float]) -> Dict[str, Any]:
    """The target with what was found, and what bare Python comes to; None: not measured."""
    floors = (*FLOORS.get(target.who, ()), BARE + target.who)
    floor = next((name for name in floors if name in medians), "")
    against = f"{BARE}{target.against}"
    found = compared(target.who, target.against, medians)
    bare = compared(floor, against if against in medians else target.against, medians)
    reached, bare_reached = (
        None if value is None else RELATIONS[target.relation](value, target.factor)
        for value in (found, bare)
    )
    return {
        **dataclasses.asdict(target),
        "found": found,
        "reached": reached,
        "bare": bare,
        "bare_reached": bare_reached,
    }


def compared(who: str, against: Optional[str], medians: Dict[str, float]) -> Optional[float]:
    found, other = medians.get(who), 1.0 if against is None else medians.get(against)
    return found / other if found is not None and other else None


def import_times(rounds: int) -> Result:
    """Milliseconds to import each library in a fresh interpreter."""
    code = "import time; t = time.perf_counter(); import {}; print(time.perf_counter() - t)"
    names = [name for name in IMPORTS if CONTENDERS[name].installed()]
    figures: Figures = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as cache:
        # The first round compiles: into a cache of its own, wherever else Python would keep it.
        environ = {**os.environ, "PYTHONPYCACHEPREFIX": cache}
        environ.pop("PYTHONDONTWRITEBYTECODE", None)
        for number in range(2 * rounds + 1):  # they are short
            for name in names:
                command = [sys.executable, "-c", code.format(IMPORTS[name])]
                done = subprocess.run(
                    command, check=True, capture_output=True, text=True, timeout=60, env=environ
                )
                if number:
                    figures[name].append(1000 * float(done.stdout))
    target = Target("wsthread", "<=", 1.3, "websocket-client")
    return result("import", "import", "ms", figures, (target,))


def idle_rows(server: Server, rounds: int, count: int, interval: float) -> List[Result]:
    """Open clients that do nothing. Without keepalive a few seconds tell; with it, one interval."""
    figures: Dict[str, Figures] = {name: {} for name in ("memory", "threads", "off", "on")}
    made = {
        "wsthread": "Wsthread",
        "bare": "Bare",
        "websocket-client": "WebsocketClient",
        "websockets": "Websockets",
    }
    names = [name for name in made if CONTENDERS[name].installed()]
    for _ in range(rounds):
        for name in names:
            for keepalive, seconds in ((None, interval / 4), (interval, interval)):
                known = CONTENDERS[name]
                kind = ("idle", made[name])
                fresh = Contender(known.title, known.module, kind)
                with worker(fresh) as process:
                    found = process.call(
                        "idle", server=server, count=count, keepalive=keepalive, seconds=seconds
                    )
                if keepalive is None:
                    figures["memory"].setdefault(name, []).append(found["memory"])
                    figures["threads"].setdefault(name, []).append(found["threads"])
                figures["off" if keepalive is None else "on"].setdefault(name, []).append(
                    found["cpu"]
                )
    half, one = Target("wsthread", "<=", 0.5, "websockets"), Target("wsthread", "==", 1)
    # "No CPU at all": what reading the clock itself takes is below what is shown.
    none, little = Target("wsthread", "<=", 0.01), Target("wsthread", "<", 1.5)
    what = f"{count:,} idle clients"
    return [
        result("idle", f"{what}: memory", "KiB a client", figures["memory"], (half,)),
        result("idle", f"{what}: threads", "a client", figures["threads"], (one,)),
        result("idle", f"{what}: CPU, keepalive off", "% of a core", figures["off"], (none,)),
        result("idle", f"{what}: CPU, keepalive on", "% of a core", figures["on"], (little,)),
    ]


def environment(bench: Bench, rounds: int) -> Dict[str, Any]:
    """What every figure depends on."""
    versions = {"wsthread": wsthread.__version__}
    for name in DISTRIBUTIONS:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return {
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "system": f"{platform.system()} {platform.machine()}",
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "versions": versions,
        "maskers": {name: bench.masker(name) for name in ("wsthread", "plain")},
        "compression": "off",
        "keepalive": "off, except where a row says otherwise",
        "text": "ASCII, except where a row says otherwise",
        "rounds": rounds,
    }
