"""What is measured, and what must be reached."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Dict, List, Optional, Sequence, Tuple

from .messages import BINARY, MIXED, OTHER, TEXT
from .workers import CONTENDERS

KIB, MIB = 1 << 10, 1 << 20
SIZES = {64: "64 B", 16 * KIB: "16 KiB", MIB: "1 MiB"}
KINDS = {TEXT: "text", BINARY: "binary", OTHER: "non-ASCII text"}
PEERS = ("websocket-client", "websockets", "picows", "websocket-rs")
ALL = ("wsthread", "inline", "raw", *PEERS)

#: What the name of a run begins with where bare Python does what another run is about.
BARE = "bare Python, "

MESSAGES, MEGABYTES, CYCLES = "messages/s", "MB/s", "cycles/s"
TRIP, COST, BYTE = "us a round trip", "us a message", "ns a byte"


@dataclass(frozen=True)
class Target:
    """`who` is at least (or at most) so many times `against`; where that is None, so many."""

    who: str
    relation: str  # >= or <= or ==
    factor: float
    against: Optional[str] = None


@dataclass(frozen=True)
class Run:
    """One cell: a method of a contender, and the count that its seconds are for."""

    name: str  # the column; for most rows that of the contender
    contender: str
    method: str
    count: int
    arguments: Dict[str, Any]


@dataclass(frozen=True)
class Row:
    group: str
    name: str
    unit: str
    size: int  # of a message
    runs: Tuple[Run, ...]
    targets: Tuple[Target, ...] = ()

    def value(self, count: int, seconds: float) -> float:
        if self.unit in (MESSAGES, CYCLES):
            return count / seconds
        if self.unit == MEGABYTES:
            return count * self.size / seconds / 1e6
        if self.unit == BYTE:
            return seconds / count / self.size * 1e9
        return seconds / count * 1e6


def runs(names: Sequence[str], method: str, count: int, **arguments: Any) -> Tuple[Run, ...]:
    return tuple(
        Run(name, name, method, max(1, count // CONTENDERS[name].slow), arguments) for name in names
    )


def receive_rows() -> List[Row]:
    counts = {64: 300_000, 16 * KIB: 16_384, MIB: 256}
    rows = []
    for size, count in counts.items():
        for kind, kind_name in KINDS.items():
            who = ALL
            if size > 64:  # short frames alone would be all its work
                who = (*ALL, "bare", "bare inline")
            elif kind == TEXT:
                who = (*ALL, "app")
            targets: Tuple[Target, ...] = ()
            if size == 64 and kind == TEXT:
                targets = (
                    Target("wsthread", ">=", 20, "websocket-client"),
                    Target("wsthread", ">=", 20, "app"),
                    Target("wsthread", ">=", 1, "picows"),
                    Target("inline", ">=", 1, "websocket-rs"),
                )
            elif size > 64 and kind != OTHER:
                targets = (
                    Target("wsthread", ">=", 0.8, "raw"),
                    Target("inline", ">=", 0.8, "raw"),
                )
            unit = MESSAGES if size == 64 else MEGABYTES
            name = f"receive {SIZES[size]}, {kind_name}"
            cells = runs(who, "receive", count, kind=kind, size=size)
            rows.append(Row("receive", name, unit, size, cells, targets))
    cells = runs(ALL, "receive", counts[64], kind=MIXED, size=64)
    rows.insert(1, Row("receive", "receive 32 to 96 B, text", MESSAGES, 64, cells))
    return rows


def send_rows() -> List[Row]:
    counts = {64: 60_000, 16 * KIB: 8_192, MIB: 128}
    who = ("wsthread", "plain", "raw", "bare", *PEERS)
    rows = []
    for size, count in counts.items():
        for kind, kind_name in KINDS.items():
            if size == 64 and kind == BINARY:
                continue
            targets: Tuple[Target, ...] = ()
            if size == 64 and kind == TEXT:
                targets = (Target("wsthread", ">=", 0.7, "raw"),)
            elif size == MIB and kind != OTHER:
                targets = (
                    Target("wsthread", ">=", 0.8, "raw"),
                    Target("plain", ">=", 1, "websocket-client"),
                )
            unit = MESSAGES if size == 64 else MEGABYTES
            name = f"send {SIZES[size]}, {kind_name}"
            cells = runs(who, "send", count, kind=kind, size=size)
            rows.append(Row("send", name, unit, size, cells, targets))
    return rows + many_rows()


def many_rows() -> List[Row]:
    """Many messages at once, beside a raw socket that sends one at a time from one thread."""
    short = {"kind": TEXT, "size": 64}
    threads = runs(
        ("wsthread", "plain", "bare", "websocket-client", "websockets"),
        "send",
        60_000,
        threads=8,
        **short,
    )
    single = runs(("raw",), "send", 60_000, **short)
    rows = [
        Row(
            "send",
            "send 64 B, text, 8 threads (raw: one)",
            MESSAGES,
            64,
            threads + single,
            (Target("wsthread", ">=", 1, "raw"),),
        )
    ]
    for method, title in (("send_many", "send_many"), ("flush", "flush of a queue")):
        cells = runs(("wsthread", "plain"), method, 200_000, **short) + single
        cells += runs(("bare",), "send_many", 200_000, **short)
        name = f"{title}, 64 B, text (raw: one by one)"
        target = Target("wsthread", ">=", 4, "raw")
        rows.append(Row("send", name, MESSAGES, 64, cells, (target,)))
    return rows


def other_rows() -> List[Row]:
    tls = tuple(name for name in ALL if name != "websocket-rs")  # it takes no certificates
    short = runs(tls, "receive", 200_000, kind=TEXT, size=64, tls=True)
    long = runs((*tls, "bare", "bare inline"), "receive", 96, kind=TEXT, size=MIB, tls=True)
    return [
        Row(
            "round trips",
            "echo 64 B, text",
            TRIP,
            64,
            runs((*ALL, "app", "bare", "bare inline"), "echo", 6_000, size=64),
            (
                Target("wsthread", "<=", 0.6, "websocket-client"),
                Target("wsthread", "<=", 0.6, "app"),
                Target("inline", "<=", 1.1, "websocket-rs"),
            ),
        ),
        Row(
            "round trips",
            "connect, echo, disconnect",
            CYCLES,
            64,
            runs((*ALL, "bare"), "cycles", 240, size=64),
            (Target("wsthread", ">=", 2, "websockets"),),
        ),
        Row(
            "TLS",
            "receive 64 B over TLS, text",
            MESSAGES,
            64,
            short,
            (Target("wsthread", ">=", 10, "websocket-client"),),
        ),
        Row(
            "TLS",
            "receive 1 MiB over TLS, text",
            MEGABYTES,
            MIB,
            long,
            (Target("wsthread", ">=", 0.8, "raw"),),
        ),
    ]


def growth_rows(largest: int) -> List[Row]:
    """What one message, or one byte, costs as there are more. `largest` is a number of messages.

    The target allows a quarter for what is noise.
    """
    counts, text = [10**n for n in range(3, 8) if 10**n <= largest], {"kind": TEXT}
    messages = [
        Run(f"{n:,} messages", "wsthread", "receive", n, {**text, "size": 64}) for n in counts
    ]
    clients = [
        Run(f"{n} clients", "wsthread", "shared", 2_000_000, {"clients": n})
        for n in (1, 10, 50, 200)
    ]
    rows = [grown("messages in a row", COST, 64, messages)]
    rows.append(grown("clients sharing a dispatcher", COST, 64, clients))
    sizes = [
        # The count is that of MiB, for the unit is per byte; the messages are fewer.
        Run(f"{mark}{n} MiB", who, "receive", 128, {**text, "size": n * MIB, "count": 128 // n})
        for who, mark in (("wsthread", ""), ("bare", BARE))
        for n in (1, 4, 16, 64)
    ]
    rows.append(grown("size of a message", BYTE, MIB, sizes))
    return rows


def grown(name: str, unit: str, size: int, cells: List[Run]) -> Row:
    ours = [run.name for run in cells if not run.name.startswith(BARE)]
    targets = tuple(Target(name, "<=", 1.25, ours[0]) for name in ours[1:])
    return Row("growth", name, unit, size, tuple(cells), targets)


def all_rows(largest: int = 10**6) -> List[Row]:
    return receive_rows() + send_rows() + other_rows() + growth_rows(largest)
