"""Draws the state diagram from the table that the library runs: ``python docs/state_diagram.py``.

The places are laid out by hand, the edges come from ``wsthread.state.TRANSITIONS``. An edge whose
label would lie badly has an entry in LABELS; one that is not straight has one in CURVES.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import List, Tuple
from xml.sax.saxutils import escape, quoteattr

from wsthread.state import TRANSITIONS, ConnectionState, Event

Point = Tuple[float, float]

S = ConnectionState
WIDTH, HEIGHT = 1000, 680
BOX_WIDTH, BOX_HEIGHT = 168, 52
GAP = 13  # from the line between two states to each edge, where there is one either way
LINE = 17

CENTRES = {
    S.DISCONNECTED: (120.0, 340.0),
    S.CONNECTING: (500.0, 170.0),
    S.CONNECTED: (880.0, 340.0),
    S.CLOSING: (500.0, 340.0),
    S.RECONNECTING: (500.0, 560.0),
}

#: Edges around others: start, two control points, end.
CURVES = {
    (S.CONNECTED, Event.END): ((880, 314), (880, -75), (120, -75), (120, 314)),
    (S.CONNECTING, Event.RETRY): ((460, 144), (420, 88), (580, 88), (540, 144)),
    (S.RECONNECTING, Event.RETRY): ((460, 586), (420, 642), (580, 642), (540, 586)),
}

#: Where a label's middle lies, from the middle of its edge.
LABELS = {
    (S.CONNECTED, Event.END): (0, -12),
    (S.CONNECTING, Event.RETRY): (0, -24),
    (S.RECONNECTING, Event.RETRY): (0, 24),
    (S.DISCONNECTED, Event.CONNECT): (-48, -10),
    (S.CONNECTING, Event.END): (30, 14),
    (S.CONNECTING, Event.OPENED): (76, -10),
    (S.CONNECTING, Event.CLOSE): (66, 0),
    (S.CLOSING, Event.END): (0, -12),
    (S.CONNECTED, Event.CLOSE): (0, -22),
    (S.CLOSING, Event.RETRY): (58, -20),
    (S.RECONNECTING, Event.CLOSE): (-68, -20),
    (S.RECONNECTING, Event.END): (-26, 12),
    (S.RECONNECTING, Event.OPENED): (8, -60),
    (S.CONNECTED, Event.RETRY): (56, 26),
}

STYLE = """
text { font: 14px sans-serif; text-anchor: middle; fill: #222; }
.state rect { fill: #eef4fb; stroke: #2b5c8a; stroke-width: 1.5; }
.state text { font-weight: bold; }
.edge path { fill: none; stroke: #555; stroke-width: 1.4; marker-end: url(#arrow); }
"""


def leave_box(state: ConnectionState, start: Point, towards: Point) -> Point:
    """Return where the line from `start`, inside the state's box, to `towards` leaves the box."""
    cx, cy = CENTRES[state]
    dx, dy = towards[0] - start[0], towards[1] - start[1]
    shares = []
    if dx:
        shares.append((cx + math.copysign(BOX_WIDTH / 2, dx) - start[0]) / dx)
    if dy:
        shares.append((cy + math.copysign(BOX_HEIGHT / 2, dy) - start[1]) / dy)
    share = min(shares)
    return start[0] + share * dx, start[1] + share * dy


def straight(state: ConnectionState, to: ConnectionState) -> Tuple[Point, Point]:
    """Return both ends of a straight edge, beside the one that leads back where there is one."""
    (x1, y1), (x2, y2) = CENTRES[state], CENTRES[to]
    if any(start is to and end is state for (start, _), end in TRANSITIONS.items()):
        length = math.hypot(x2 - x1, y2 - y1)
        aside_x, aside_y = (y2 - y1) / length * GAP, -(x2 - x1) / length * GAP
        x1, y1, x2, y2 = x1 + aside_x, y1 + aside_y, x2 + aside_x, y2 + aside_y
    return leave_box(state, (x1, y1), (x2, y2)), leave_box(to, (x2, y2), (x1, y1))


def path_of(state: ConnectionState, event: Event) -> Tuple[str, Point]:
    """Return an edge's path and its middle."""
    curve = CURVES.get((state, event))
    if curve is None:
        (x1, y1), (x2, y2) = straight(state, TRANSITIONS[state, event])
        return f"M {x1:.1f},{y1:.1f} L {x2:.1f},{y2:.1f}", ((x1 + x2) / 2, (y1 + y2) / 2)
    a, b, c, d = curve
    middle = tuple((p + 3 * q + 3 * r + s) / 8 for p, q, r, s in zip(a, b, c, d))
    return "M {},{} C {},{} {},{} {},{}".format(*a, *b, *c, *d), (middle[0], middle[1])


def text(x: float, y: float, words: str) -> str:
    """Return a label centred on a point, on two lines where it is long."""
    lines = re.split(r"(?<=,) | (?=or a )", words)
    top = y - (len(lines) - 1) * LINE / 2 + 5
    spans = "".join(
        f'<tspan x="{x:.1f}" y="{top + LINE * number:.1f}">{escape(line)}</tspan>'
        for number, line in enumerate(lines)
    )
    return f"<text>{spans}</text>"


def draw() -> str:
    """Return the diagram as SVG."""
    parts: List[str] = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}"'
        f' width="{WIDTH}" height="{HEIGHT}" role="img">',
        "<title>The states of a client</title>",
        f"<style>{STYLE}</style>",
        '<defs><marker id="arrow" viewBox="0 0 10 10" refX="10" refY="5" markerWidth="8"'
        ' markerHeight="8" orient="auto"><path d="M 0,0 L 10,5 L 0,10 z" fill="#555"/></marker>'
        "</defs>",
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#fff"/>',
    ]
    for state, event in TRANSITIONS:
        path, (x, y) = path_of(state, event)
        dx, dy = LABELS.get((state, event), (0, 0))
        names = f"data-state={quoteattr(state.name)} data-event={quoteattr(event.name)}"
        label = text(x + dx, y + dy, event.value)
        parts.append(f'<g class="edge" {names}><path d="{path}"/>{label}</g>')
    for state in ConnectionState:
        x, y = CENTRES[state]
        parts.append(
            f'<g class="state" id={quoteattr(state.name)}>'
            f'<rect x="{x - BOX_WIDTH / 2}" y="{y - BOX_HEIGHT / 2}" rx="8"'
            f' width="{BOX_WIDTH}" height="{BOX_HEIGHT}"/>{text(x, y, state.name)}</g>'
        )
    return "\n".join([*parts, "</svg>"]) + "\n"


def write(path: Path) -> None:
    """Write the diagram, unless the file has it already."""
    drawing = draw()
    if not path.exists() or path.read_text(encoding="utf-8") != drawing:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(drawing, encoding="utf-8")


if __name__ == "__main__":
    write(Path(__file__).parent / "_static" / "states.svg")
