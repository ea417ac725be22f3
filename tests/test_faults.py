"""README.md in this folder lists the faults of disks, files and people that are tried, wherever the test is."""

import ast
import importlib.util
import math
from functools import cache
from pathlib import Path
from typing import Any

TESTS = Path(__file__).parent


def rows() -> list[tuple[str, int, list[str]]]:
    """The table of README.md: fault, bad inputs, tests."""
    lines = [
        line.strip("| ").split(" | ") for line in (TESTS / "README.md").read_text().splitlines() if line[:2] == "| "
    ]
    return [(fault, int(count), tests.replace("`", "").split(", ")) for fault, count, tests in lines[1:]]


def test_every_test_of_the_table_exists():
    assert len(rows()) == len({fault for fault, _, _ in rows()}) > 40
    for _, count, tests in rows():
        assert count > 0
        for test in tests:
            file, name = test.split("::")
            tree = ast.parse((TESTS / file).read_text())
            assert name in [node.name for node in tree.body if isinstance(node, ast.FunctionDef)], test


@cache
def module(file: str) -> tuple[Any, ast.Module]:
    """A file of tests, imported, and its syntax tree."""
    spec = importlib.util.spec_from_file_location(f"counted_{file}", TESTS / file)
    imported = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(imported)
    return imported, ast.parse((TESTS / file).read_text())


def tries(test: str) -> int | None:
    """The bad inputs of a test: its cases, times the examples that hypothesis draws or the number of its mark `tries`.
    None for a loop without a mark, whose number only its author knows."""
    file, name = test.split("::")
    imported, tree = module(file)
    body = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name)
    marks = getattr(imported, name).pytestmark if hasattr(getattr(imported, name), "pytestmark") else []
    cases = math.prod(len(list(mark.args[1])) for mark in marks if mark.name == "parametrize")
    stated = [mark.args[0] for mark in marks if mark.name == "tries"]
    drawn = [
        word.value.value for word in ast.walk(body) if isinstance(word, ast.keyword) and word.arg == "max_examples"
    ]
    if stated or drawn:
        return cases * (stated or drawn)[0]
    loops = (ast.For, ast.While, ast.comprehension)
    return None if any(isinstance(node, loops) for node in ast.walk(body)) else cases


def test_the_counts_of_the_table_are_those_of_the_tests():
    wrong, checked = [], 0
    for fault, count, tests in rows():
        found = [tries(test) for test in tests]
        if None not in found:
            checked += 1
            if sum(found) != count:
                wrong.append(f"{fault}: {count}, and its tests try {sum(found)}")
    assert not wrong, "\n".join(wrong)
    assert checked >= 40
