"""Every method in every state does what the table in the documentation says."""

from __future__ import annotations

import contextlib
import re
import threading
import time
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Tuple

import pytest

import wsthread
from tests.support import RawConnection, frame
from tests.test_sending import Peer, answer, eventually, narrow, peer
from wsthread.testing import RecordingDelegate

PAGE = Path(__file__).parent.parent / "docs" / "states.rst"


def read_table() -> Dict[Tuple[str, str], str]:
    """The cells of the page's table by method and state."""
    rows: List[List[str]] = []
    table = PAGE.read_text(encoding="utf-8").partition(".. list-table::")[2]
    for line in table.splitlines():
        if line.startswith("   * - "):
            rows.append([line[7:]])
        elif line.startswith("     - "):
            rows[-1].append(line[7:])
        elif line.startswith("       "):
            rows[-1][-1] += " " + line.strip()
    head, *body = rows
    return {
        (row[0].strip("`"), state): cell for row in body for state, cell in zip(head[1:], row[1:])
    }


CELLS = read_table()
#: Every call is given little time: what would take longer shows that it waits.
LITTLE = 0.25
METHODS: Dict[str, Callable[[wsthread.WebSocketClient], Any]] = {
    "connect()": lambda client: client.connect(timeout=LITTLE),
    "connect(wait=False)": lambda client: client.connect(wait=False),
    "send()": lambda client: client.send("a message", timeout=LITTLE),
    "send_many()": lambda client: client.send_many(["a message", "another"], timeout=LITTLE),
    "disconnect()": lambda client: client.disconnect(timeout=LITTLE),
    "disconnect(wait=False)": lambda client: client.disconnect(wait=False),
    "abort()": lambda client: client.abort(),
    "wait()": lambda client: client.wait(LITTLE),
    "ping()": lambda client: client.ping(b"payload", timeout=LITTLE),
    "flush()": lambda client: client.flush(LITTLE),
}
STATES = ["new", "CONNECTING", "CONNECTED", "RECONNECTING", "CLOSING", "over"]


class Long:
    """The chance of a back-off that lasts."""

    def uniform(self, low: float, high: float) -> float:
        return high


class Scene:
    """A client in a state, and its raw peer."""

    def __init__(self, raw: Peer, state: str) -> None:
        self.raw = raw
        self.state = state
        self.recorder = RecordingDelegate()
        policy = wsthread.Reconnect(delay=30, rng=Long())  # type: ignore[arg-type]
        self.client = wsthread.WebSocketClient(
            raw.url, self.recorder, reconnect=policy, close_timeout=5, ping_interval=None
        )
        self.connection: Any = None
        getattr(self, "_" + state.lower())()
        expected = "DISCONNECTED" if state in ("new", "over") else state
        assert self.client.state.name == expected

    def _new(self) -> None:
        pass

    def _connecting(self) -> None:
        self.client.connect(wait=False)
        self.connection = self.raw.accept()

    def _connected(self) -> None:
        self._connecting()
        answer(self.connection)
        self.recorder.wait_for("open")

    def _reconnecting(self) -> None:
        self._connected()
        self.connection.reset()
        self.raw.release()
        self.recorder.wait_for("reconnect")

    def _closing(self) -> None:
        self._connected()
        self.client.disconnect(wait=False)
        assert self.connection.read_frame()[0] == 8  # and no answer

    def _over(self) -> None:
        self._connected()
        self.client.abort()
        self.raw.release()

    def over(self) -> bool:
        return self.recorder.states()[-1:] == ["DISCONNECTED"]


@contextlib.contextmanager
def scene(state: str) -> Iterator[Scene]:
    with peer(upgrade=False) as raw:
        scene = Scene(raw, state)
        try:
            yield scene
        finally:
            scene.client.abort()


class Call:
    """One call: what it returned or raised, and how long it took."""

    def __init__(self, method: str, client: wsthread.WebSocketClient) -> None:
        started = time.monotonic()
        self.raised = ""
        self.value: Any = None
        try:
            self.value = METHODS[method](client)
        except Exception as error:
            self.raised = type(error).__name__
        self.took = time.monotonic() - started


def literal(cell: str) -> Any:
    """The first literal of a cell, as a value or as an error's name."""
    found = re.search(r"``(\w+)``", cell)
    word = found.group(1) if found else None
    return {"True": True, "False": False, "None": None}.get(word, word)  # type: ignore[arg-type]


def check_returns(scene: Scene, method: str, cell: str) -> None:
    before, events = scene.client.state, len(scene.recorder.names())
    scene_connections = scene.raw.server.connections
    call = Call(method, scene.client)
    assert (call.raised, call.value) == ("", literal(cell))
    assert call.took < LITTLE
    assert scene.client.state is before
    assert len(scene.recorder.names()) == events
    assert scene.raw.server.connections == scene_connections


def check_raises(scene: Scene, method: str, cell: str) -> None:
    before = scene.client.state
    call = Call(method, scene.client)
    assert call.raised == literal(cell)
    assert call.took < LITTLE
    assert scene.client.state is before
    assert scene.client.pending == 0


def check_opens(scene: Scene, method: str, cell: str) -> None:
    def serve() -> None:
        connections.append(scene.raw.accept())
        answer(connections[0])

    connections: List[RawConnection] = []
    opens = len(scene.recorder.of("open"))
    server = threading.Thread(target=serve)
    server.start()
    call = Call(method, scene.client)
    assert (call.raised, call.value) == ("", None)
    if "without waiting" not in cell:
        assert scene.client.state.name == "CONNECTED"
    scene.recorder.wait_for("open", count=opens + 1)
    server.join()
    scene.client.send("it is open")
    assert connections[0].read_frame() == (1, b"it is open")


def check_joins(scene: Scene, method: str, cell: str) -> None:
    call = Call(method, scene.client)
    assert call.raised == "ConnectTimeout"
    assert LITTLE * 0.9 < call.took < LITTLE * 4
    assert scene.client.state.name == scene.state, "the opening goes on"
    if scene.state == "CONNECTING":
        timer = threading.Timer(0.1, answer, [scene.connection])
        timer.start()
        scene.client.connect(timeout=5)
        assert scene.client.state.name == "CONNECTED"
        timer.join()


def check_queues(scene: Scene, method: str, cell: str) -> None:
    call = Call(method, scene.client)
    assert (call.raised, call.value) == ("", None)
    expected = [b"a message", b"another"][: scene.client.pending]
    assert len(expected) == (2 if "many" in method else 1)
    if scene.state == "new":
        scene.client.connect(wait=False)
        scene.connection = scene.raw.accept()
    if scene.state != "RECONNECTING":  # whose back-off is long; it has a test of its own
        answer(scene.connection)
        assert [scene.connection.read_frame()[1] for _ in expected] == expected


def check_sends(scene: Scene, method: str, cell: str) -> None:
    call = Call(method, scene.client)
    assert (call.raised, call.value) == ("", None)
    expected = [b"a message", b"another"] if "many" in method else [b"a message"]
    assert [scene.connection.read_frame()[1] for _ in expected] == expected
    scene.recorder.wait_for("sent", count=len(expected))
    narrow(scene.client)
    with pytest.raises(wsthread.SendTimeout):
        for _ in range(40):
            scene.client.send(b"x" * 1_000_000, timeout=LITTLE)


def check_closes(scene: Scene, method: str, cell: str) -> None:
    if scene.state == "CONNECTED":
        scene.client.send("accepted")
        server = threading.Thread(target=scene.connection.answer_close)
        server.start()
        assert METHODS["send()"](scene.client) is None
        threading.Thread(target=close_after, args=[server, scene.connection]).start()
    else:
        threading.Timer(LITTLE / 3, answer_late, [scene.connection]).start()
    call = Call(method, scene.client)
    assert (call.raised, call.value) == ("", True)
    assert call.took < LITTLE * 2
    assert scene.over() and scene.client.pending == 0
    assert len(scene.recorder.of("close")) == 1


def answer_late(connection: RawConnection) -> None:
    connection.sock.sendall(frame(8, b"\x03\xe8"))
    connection.sock.shutdown(2)


def close_after(thread: threading.Thread, connection: RawConnection) -> None:
    thread.join()
    connection.sock.shutdown(2)


def check_stops(scene: Scene, method: str, cell: str) -> None:
    call = Call(method, scene.client)
    assert (call.raised, call.value) == ("", literal(cell))
    assert call.took < LITTLE
    assert scene.over()
    if "reset" in cell:
        with pytest.raises(ConnectionResetError):
            scene.connection.read_frame()


def check_asks(scene: Scene, method: str, cell: str) -> None:
    call = Call(method, scene.client)
    assert call.raised == ""
    # Where no peer is waited for, the end may be there already.
    assert call.value is False or scene.state in ("CONNECTING", "RECONNECTING")
    assert call.took < LITTLE
    if scene.state == "CONNECTED":
        assert scene.connection.answer_close()[0] == 1000
        scene.connection.sock.shutdown(2)
    if scene.state == "CLOSING":
        scene.connection.sock.sendall(frame(8, b"\x03\xe8"))
        scene.connection.sock.shutdown(2)
    scene.recorder.wait_for("state", count=1)
    eventually(scene.over)


def check_waits(scene: Scene, method: str, cell: str) -> None:
    if "flush" in method:
        if scene.state == "CONNECTED":
            scene.client.flush(5)  # nothing is left
            narrow(scene.client)
            scene.client.send(b"x" * 8_000_000)
        else:
            scene.client.send("left")
    expected = literal(cell)
    call = Call(method, scene.client)
    if isinstance(expected, str):
        assert call.raised == expected
    else:
        assert (call.raised, call.value) == ("", expected)
    assert LITTLE * 0.9 < call.took < LITTLE * 4
    assert scene.client.state.name == scene.state, "it goes on"
    if method == "connect()":
        go_on_to_open(scene)
    elif method == "wait()":
        timer = threading.Timer(0.1, lambda: scene.client.disconnect(timeout=0, wait=False))
        timer.start()
        assert scene.client.wait(5) is True
        timer.join()
    elif method == "ping()":
        assert scene.connection.read_frame() == (9, b"payload")
        scene.connection.sock.sendall(frame(10, b"again"))
        threading.Timer(0.1, scene.connection.sock.sendall, [frame(10, b"payload")]).start()
        assert scene.client.ping(b"payload", timeout=5) > 0


def go_on_to_open(scene: Scene) -> None:
    """A connect() that waits for the end: the peer ends it now, and accepts the next."""

    def serve() -> None:
        scene.connection.sock.sendall(frame(8, b"\x03\xe8"))
        scene.connection.sock.shutdown(2)
        scene.raw.release()
        answer(scene.raw.accept())

    timer = threading.Timer(0.1, serve)
    timer.start()
    scene.client.connect(timeout=5)
    assert scene.client.state.name == "CONNECTED"
    timer.join()


def test_the_table_has_every_method_and_state() -> None:
    assert set(CELLS) == {(method, state) for method in METHODS for state in STATES}
    assert all(f"check_{cell_word(cell)}" in globals() for cell in CELLS.values())
    words = set(re.findall(r"^\* \*\*(\w+)\*\*", PAGE.read_text(encoding="utf-8"), re.MULTILINE))
    assert words == {cell_word(cell) for cell in CELLS.values()}


def cell_word(cell: str) -> str:
    found = re.match(r"\w+", cell)
    assert found is not None
    return found.group()


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("method", list(METHODS))
def test_state_by_method(method: str, state: str) -> None:
    cell = CELLS[method, state]
    with scene(state) as stage:
        globals()["check_" + cell_word(cell)](stage, method, cell)


def test_of_two_disconnects_the_earlier_deadline_counts() -> None:
    with scene("CLOSING") as stage:  # of which 5 seconds are left
        started = time.monotonic()
        stage.client.disconnect(timeout=LITTLE)
        assert LITTLE * 0.9 < time.monotonic() - started < LITTLE + 1
        assert stage.client.state.name == "DISCONNECTED"


def test_the_queue_of_a_new_client_survives_disconnect_and_abort() -> None:
    with scene("new") as stage:
        stage.client.send("stays")
        stage.client.disconnect()
        stage.client.abort()
        stage.client.connect(wait=False)
        connection = stage.raw.accept()
        answer(connection)
        assert connection.read_frame() == (1, b"stays")
