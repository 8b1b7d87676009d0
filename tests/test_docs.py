"""What the documentation shows is what the library does."""

from __future__ import annotations

import importlib.util
import re
import textwrap
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from types import ModuleType
from typing import Dict, List, Tuple

import pytest

import wsthread.errors
from wsthread.state import TRANSITIONS, ConnectionState

ROOT = Path(__file__).resolve().parent.parent
SVG = "{http://www.w3.org/2000/svg}"

Box = Tuple[float, float, float, float]


@pytest.fixture(scope="module")
def diagram() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "state_diagram", ROOT / "docs" / "state_diagram.py"
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def drawing(diagram: ModuleType) -> ElementTree.Element:
    return ElementTree.fromstring(diagram.draw())


def groups(drawing: ElementTree.Element, kind: str) -> List[ElementTree.Element]:
    return [group for group in drawing.iter(SVG + "g") if group.get("class") == kind]


def words(group: ElementTree.Element) -> str:
    return " ".join(span.text or "" for span in group.iter(SVG + "tspan"))


def boxes(drawing: ElementTree.Element) -> Dict[str, Box]:
    """The corners of each state's box, by the name written in it."""
    found = {}
    for group in groups(drawing, "state"):
        rect = group.find(SVG + "rect")
        assert rect is not None
        x, y, width, height = (float(rect.get(key, "")) for key in ("x", "y", "width", "height"))
        found[words(group)] = (x, y, x + width, y + height)
    return found


def state_at(drawing: ElementTree.Element, x: float, y: float) -> str:
    """The state on whose border a point lies."""
    near = 0.2
    for name, (left, top, right, bottom) in boxes(drawing).items():
        inside = left - near <= x <= right + near and top - near <= y <= bottom + near
        deep = left + near < x < right - near and top + near < y < bottom - near
        if inside and not deep:
            return name
    raise AssertionError(f"no box ends at {x}, {y}")


def test_every_state_is_drawn(drawing: ElementTree.Element) -> None:
    assert set(boxes(drawing)) == {state.name for state in ConnectionState}


def test_the_drawn_edges_are_the_table(drawing: ElementTree.Element) -> None:
    drawn = []
    for group in groups(drawing, "edge"):
        path = group.find(SVG + "path")
        assert path is not None
        numbers = [float(number) for number in re.findall(r"-?\d+(?:\.\d+)?", path.get("d", ""))]
        start, end = state_at(drawing, *numbers[:2]), state_at(drawing, *numbers[-2:])
        drawn.append((start, words(group), end))
    table = [(state.name, event.value, to.name) for (state, event), to in TRANSITIONS.items()]
    assert sorted(drawn) == sorted(table)


def test_no_label_covers_another_or_a_state(drawing: ElementTree.Element) -> None:
    taken = list(boxes(drawing).items())
    for group in groups(drawing, "edge"):
        spans = list(group.iter(SVG + "tspan"))
        width = max(len(span.text or "") for span in spans) * 7.5
        x = float(spans[0].get("x", ""))
        heights = [float(span.get("y", "")) for span in spans]
        label = (x - width / 2, heights[0] - 12, x + width / 2, heights[-1] + 3)
        for name, other in taken:
            apart = (
                label[2] <= other[0]
                or other[2] <= label[0]
                or label[3] <= other[1]
                or other[3] <= label[1]
            )
            assert apart, f"{words(group)} covers {name}"
        taken.append((words(group), label))


def test_a_transition_without_a_place_for_its_label_is_noticed(diagram: ModuleType) -> None:
    assert set(diagram.LABELS) == set(TRANSITIONS)
    assert set(diagram.CENTRES) == set(ConnectionState)
    assert set(diagram.CURVES) <= set(TRANSITIONS)


def test_every_public_name_is_in_the_api_page() -> None:
    names = set(wsthread.__all__) - {"__version__"}
    page = (ROOT / "docs" / "api.rst").read_text(encoding="utf-8")
    documented = set(re.findall(r"^\.\. auto\w+:: (?:\w+\.)*(\w+)$", page, re.MULTILINE))
    if "errors" in documented:
        documented |= {name for name in vars(wsthread.errors) if name[0].isupper()}
    assert names <= documented


def python_blocks(path: Path) -> List[str]:
    """The Python examples of a page."""
    page = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        return re.findall(r"^```python\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    found = re.findall(r"^( *)\.\. code-block:: python\n\n((?:\1   .*\n|\n)+)", page, re.MULTILINE)
    return [textwrap.dedent(block) for _, block in found]


def test_the_readme_has_the_two_commands() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "python -m pip install '.[demo]' && python -m wsthread demo" in readme
    assert "python -m pip install '.[test]' && python -m pytest" in readme
