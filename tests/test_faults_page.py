"""The page "What happens when" names tests that exist, and leaves none of its subjects out."""

from __future__ import annotations

import ast
import csv
from pathlib import Path
from typing import Dict, List, Tuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
#: Every test of a promise in these is a line of the table.
WHOLE = [
    "test_disconnect_bounded.py",
    "test_flood.py",
    "test_hostile_openings.py",
    "test_process_life.py",
    "test_tls.py",
    "test_wall.py",
]


def rows() -> List[Dict[str, str]]:
    with open(ROOT / "docs" / "faults.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file, strict=True))


def named() -> List[Tuple[str, str, str]]:
    """File, function and (or "") parameter of every test the table names."""
    found = []
    for row in rows():
        for test in row["Test"].split("\n"):
            file, _, rest = test.partition("::")
            function, _, parameter = rest.partition("[")
            found.append((file, function, parameter[:-1]))
    return found


def functions(file: str) -> List[str]:
    tree = ast.parse((ROOT / "tests" / file).read_text(encoding="utf-8"))
    return [
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    ]


def strings(file: str) -> List[object]:
    tree = ast.parse((ROOT / "tests" / file).read_text(encoding="utf-8"))
    return [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]


def test_the_table_is_complete() -> None:
    assert rows()
    for row in rows():
        assert list(row) == ["When", "Fault", "What the program sees", "Bound", "Test"]
        assert all(row[name] for name in ("When", "Fault", "What the program sees", "Test"))


@pytest.mark.parametrize("file", sorted({file for file, _, _ in named()}))
def test_each_named_test_exists(file: str) -> None:
    there, texts = functions(file), strings(file)
    for other, function, parameter in named():
        if other == file:
            assert function in there
            assert not parameter or parameter in texts, "there is no such parameter"


@pytest.mark.parametrize("file", WHOLE)
def test_each_test_of_a_fault_is_named(file: str) -> None:
    mentioned = {function for other, function, _ in named() if other == file}
    assert {name for name in functions(file) if name.startswith("test_promise_")} <= mentioned


def test_no_attack_is_left_out() -> None:
    from tests.test_hostile_openings import ATTACKS  # noqa: PLC0415

    function = "test_promise_14_an_attack_on_the_opening"
    assert {parameter for _, other, parameter in named() if other == function} == set(ATTACKS)
