"""README.md in this folder lists the faults of disks, files and people that are tried, wherever the test is."""

import ast
from pathlib import Path

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
