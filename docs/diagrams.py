"""Draws who talks to whom, and in which order: ``python docs/diagrams.py``."""

from __future__ import annotations

from pathlib import Path
from typing import Dict, List, NamedTuple, Sequence, Tuple, Union
from xml.sax.saxutils import escape

STATIC = Path(__file__).parent / "_static"

STYLE = """
text { font: 14px sans-serif; fill: #222; }
.small { font-size: 13px; fill: #444; }
.middle { text-anchor: middle; }
.head { font-weight: bold; text-anchor: middle; }
.box { fill: #eef4fb; stroke: #2b5c8a; stroke-width: 1.5; }
.yours { fill: #fdf3e1; stroke: #a8742a; stroke-width: 1.5; }
.life { stroke: #9ab; stroke-width: 1.2; stroke-dasharray: 4 4; }
.line { fill: none; stroke: #555; stroke-width: 1.4; marker-end: url(#arrow); }
.note { fill: #f5f5f5; stroke: #bbb; }
"""


def drawing(title: str, width: int, height: int, parts: Sequence[str]) -> str:
    head = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"'
        f' width="{width}" height="{height}" role="img">',
        f"<title>{escape(title)}</title>",
        f"<style>{STYLE}</style>",
        '<defs><marker id="arrow" viewBox="0 0 10 10" refX="10" refY="5" markerWidth="8"'
        ' markerHeight="8" orient="auto-start-reverse">'
        '<path d="M 0,0 L 10,5 L 0,10 z" fill="#555"/></marker></defs>',
        f'<rect width="{width}" height="{height}" fill="#fff"/>',
    ]
    return "\n".join([*head, *parts, "</svg>"]) + "\n"


def text(x: float, y: float, words: str, kind: str = "") -> str:
    return f'<text x="{x:g}" y="{y:g}" class="{kind}">{escape(words)}</text>'


# Sequences.


class Says(NamedTuple):
    """One tells another something."""

    who: str
    whom: str
    what: str


class Does(NamedTuple):
    """One does something alone."""

    who: str
    what: str


Step = Union[Says, Does]
COLUMN, LEFT, TOP, ROW = 262, 110, 76, 42


def sequence(title: str, who: Sequence[str], steps: Sequence[Step]) -> str:
    """Return a sequence diagram; time runs downwards."""
    places: Dict[str, int] = {name: LEFT + COLUMN * number for number, name in enumerate(who)}
    width = LEFT * 2 + COLUMN * (len(who) - 1)
    height = TOP + ROW * len(steps) + 20
    parts: List[str] = []
    for name, x in places.items():
        parts.append(f'<path class="life" d="M {x},48 V {height - 8}"/>')
        kind = "yours" if name.startswith("your") else "box"
        parts.append(f'<rect class="{kind}" x="{x - 98}" y="12" width="196" height="36" rx="8"/>')
        parts.append(text(x, 35, name, "head"))
    for number, step in enumerate(steps):
        y = TOP + ROW * number + 14
        if isinstance(step, Does):
            x = places[step.who]
            wide = 22 + 7.1 * len(step.what)
            parts.append(
                f'<rect class="note" x="{x - wide / 2:g}" y="{y - 15}" width="{wide:g}"'
                ' height="26" rx="4"/>'
            )
            parts.append(text(x, y + 3, step.what, "small middle"))
        else:
            start, end = places[step.who], places[step.whom]
            aside = 3 if end > start else -3
            parts.append(f'<path class="line" d="M {start},{y} H {end - aside}"/>')
            parts.append(text((start + end) / 2, y - 6, step.what, "small middle"))
    return drawing(title, width, height, parts)


YOURS, READER, CALLBACKS, SERVER = "your thread", "reader", "callbacks' thread", "server"

OPENING = [
    Says(YOURS, READER, "connect(): starts the thread"),
    Does(CALLBACKS, "on_state_change(CONNECTING)"),
    Does(READER, "url(), headers(), resolve: a helper each"),
    Says(READER, SERVER, "TCP, all addresses, staggered"),
    Says(READER, SERVER, "proxy, TLS"),
    Says(READER, SERVER, "GET, Upgrade: websocket"),
    Says(SERVER, READER, "101, the first frames behind it"),
    Says(READER, YOURS, "connect() returns"),
    Says(READER, CALLBACKS, "a batch: what happened, what came"),
    Does(CALLBACKS, "on_state_change(CONNECTED), on_open"),
    Says(CALLBACKS, SERVER, "what on_open sends"),
    Says(CALLBACKS, READER, "on_open has returned"),
    Says(READER, SERVER, "what waited in the send queue"),
    Does(CALLBACKS, "on_message, on_message, ..."),
]

CLOSING = [
    Says(YOURS, READER, "disconnect(): from now on no sends"),
    Does(CALLBACKS, "no further on_message"),
    Says(READER, SERVER, "what send() had accepted"),
    Says(READER, SERVER, "close frame"),
    Says(SERVER, READER, "data on its way: discarded"),
    Says(SERVER, READER, "close frame"),
    Says(SERVER, READER, "end of TCP"),
    Does(READER, "closes the socket, frees the connection"),
    Says(READER, CALLBACKS, "the last batch; then the thread ends"),
    Does(CALLBACKS, "on_unsent, on_close, DISCONNECTED"),
    Says(CALLBACKS, YOURS, "disconnect() returns True"),
]


# The parts and their threads.

Box = Tuple[int, int, int, int, str, Sequence[str]]

BOXES: Sequence[Box] = (
    (20, 60, 190, 92, "your program", ("owns the client,", "sends from any thread")),
    (20, 330, 190, 92, "your delegate", ("on_open, on_message,", "on_close, ...")),
    (280, 60, 190, 92, "WebSocketClient", ("the handle: all that", "your program holds")),
    (280, 195, 190, 92, "outbox", ("what waits to be sent,", "who waits for room")),
    (280, 330, 190, 92, "mailbox, dispatcher", ("batches of events, in", "order; can be sealed")),
    (540, 60, 190, 92, "session", ("one life: attempts,", "back-off, keepalive, state")),
    (540, 195, 190, 92, "writer", ("frames, compression,", "masking")),
    (540, 330, 190, 92, "parser", ("frames, inflation,", "UTF-8, limits")),
    (800, 195, 190, 92, "transport", ("non-blocking socket,", "TLS as a filter, wake-up")),
)

LINES = (
    "M 210,106 H 277",
    "M 470,106 H 537",
    "M 375,152 V 192",
    "M 470,241 H 537",
    "M 730,241 H 797",
    "M 730,106 H 895 V 192",
    "M 895,287 V 376 H 733",
    "M 540,376 H 473",
    "M 280,376 H 213",
)

LABELS = (
    (115, 36, "your threads"),
    (635, 36, "the reader's thread"),
    (375, 456, "the dispatcher's thread"),
    (425, 178, "send()"),
    (503, 96, "weakly"),
    (815, 96, "opens, waits, closes"),
    (928, 340, "bytes"),
    (506, 366, "events"),
)


def architecture() -> str:
    parts: List[str] = []
    parts += (f'<path class="line" d="{path}"/>' for path in LINES)
    for x, y, width, height, name, lines in BOXES:
        kind = "yours" if name.startswith("your") else "box"
        parts.append(
            f'<rect class="{kind}" x="{x}" y="{y}" width="{width}" height="{height}" rx="8"/>'
        )
        parts.append(text(x + width / 2, y + 28, name, "head"))
        for number, line in enumerate(lines):
            parts.append(text(x + width / 2, y + 52 + 20 * number, line, "small middle"))
    parts += (text(x, y, words, "small middle") for x, y, words in LABELS)
    return drawing("The parts of a client, and what passes between them", 1010, 476, parts)


def write_all() -> None:
    """Write the diagrams, where the files do not have them already."""
    STATIC.mkdir(exist_ok=True)
    people = (YOURS, CALLBACKS, READER, SERVER)
    for name, drawn in (
        ("architecture", architecture()),
        ("opening", sequence("How a connection opens", people, OPENING)),
        ("closing", sequence("How disconnect() ends a connection", people, CLOSING)),
    ):
        path = STATIC / f"{name}.svg"
        if not path.exists() or path.read_text(encoding="utf-8") != drawn:
            path.write_text(drawn, encoding="utf-8")


if __name__ == "__main__":
    write_all()
