"""The pages on coming from other libraries: their programs run, and their tables are complete."""

from __future__ import annotations

import inspect
import re
import sys
from typing import Any, Dict, Iterator

import pytest

from tests.support import echo_server, eventually
from tests.test_docs import ROOT, python_blocks
from wsthread import compat

GREETING = "Have a good day!"


@pytest.fixture(scope="module")
def echo() -> Iterator[str]:
    with echo_server() as url:
        yield url


def run(page: str, number: int, url: str) -> Dict[str, Any]:
    """Run a page's program; return its names."""
    block = python_blocks(ROOT / "docs" / page)[number]
    names: Dict[str, Any] = {"__name__": "program"}
    exec(compile(block.replace("wss://example.org/echo", url), page, "exec"), names)
    return names


@pytest.mark.parametrize(
    ("page", "number"),
    [
        ("from-websocket-client.rst", 0),
        ("from-websocket-client.rst", 2),
        ("from-websockets-sync.rst", 0),
        ("from-websockets-sync.rst", 1),
        ("from-websockets-sync.rst", 2),
    ],
)
def test_a_program_that_says_something_and_prints_the_answer(
    page: str, number: int, echo: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run(page, number, echo)
    assert capsys.readouterr().out == GREETING + "\n"


def test_the_module_for_a_package_that_is_not_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "websocket", sys.modules["websocket"])  # put back afterwards
    run("from-websocket-client.rst", 1, "")
    import websocket  # noqa: PLC0415 - what such a package does

    assert websocket is compat
    assert websocket.WebSocketApp is compat.WebSocketApp


def test_the_view_controller(echo: str, capsys: pytest.CaptureFixture[str]) -> None:
    controller = run("from-swift.rst", 0, echo)["ViewController"]()
    printed = ""

    def has_printed(line: str) -> bool:
        nonlocal printed
        printed += capsys.readouterr().out
        return line in printed

    for _ in range(2):
        controller.did_tap_button()
        eventually(lambda: has_printed("received: " + GREETING))
        controller.did_tap_button()
        eventually(lambda: has_printed("DISCONNECTED"))
        eventually(lambda: controller.web_socket is None)
        lines = printed.splitlines()
        assert lines[:2] == ["CONNECTING", "CONNECTED"]
        assert lines[-2:] == ["CLOSING", "DISCONNECTED"]
        assert sorted(lines[2:-2]) == ["received: " + GREETING, "the message has been sent"]
        printed = ""


def test_every_name_of_websocket_clients_class_is_in_the_page() -> None:
    page = (ROOT / "docs" / "from-websocket-client.rst").read_text(encoding="utf-8")
    named = set(re.findall(r"\w+", " ".join(re.findall(r"``(.+?)``", page, re.DOTALL))))
    app = compat.WebSocketApp
    names = {name for name in dir(app) if name[0] != "_"}
    for method in (app.__init__, app.run_forever):
        names |= set(inspect.signature(method).parameters)
    assert names - {"self"} <= named
