from __future__ import annotations

import sys
from pathlib import Path

import pytest

from agentmem.bench.tools import TOOLS, run_tool
from agentmem.errors import InvalidInput


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "a.py").write_text("class A:\n    def f(self):\n        return 1\n\n\ndef g():\n    return A().f()\n", encoding="utf-8")
    (tmp_path / "notes.txt").write_text("one\none\n", encoding="utf-8")
    return tmp_path.resolve()


@pytest.mark.parametrize("path", ["../a.py", "/etc/hosts"])
@pytest.mark.parametrize("tool", ["list_files", "read_file", "grep", "edit_file", "write_file"])
def test_no_path_leads_out(root: Path, tool: str, path: str) -> None:
    """A path outside of the scratch directory is refused, relative or absolute."""
    arguments = {"directory": path, "path": path, "start": 1, "end": 1, "pattern": "x", "old": "a", "new": "b", "content": "c"}
    wanted = TOOLS[tool].run.__annotations__.keys() & arguments.keys()
    with pytest.raises(InvalidInput, match="out of the scratch directory"):
        run_tool(root, tool, {name: arguments[name] for name in wanted})


def test_files_are_listed_and_read(root: Path) -> None:
    """A listing has sizes; a reading stops at the file's end and says which lines it is."""
    assert "a.py  7 lines  73 bytes\nnotes.txt  2 lines  8 bytes" == run_tool(root, "list_files", {"directory": "."})
    assert "notes.txt, lines 2 to 2 of 2:\none" == run_tool(root, "read_file", {"path": "notes.txt", "start": 2, "end": 9})


def test_a_search_shows_a_bounded_number_of_lines(root: Path) -> None:
    """At most 60 hits are shown; how many there are is said."""
    (root / "notes.txt").write_text("one\n" * 70, encoding="utf-8")
    lines = run_tool(root, "grep", {"pattern": "^one$", "path": "."}).splitlines()
    assert ("70 lines match '^one$':", "notes.txt:1: one", "(10 more lines are not shown)", 62) == (
        lines[0],
        lines[1],
        lines[-1],
        len(lines),
    )


def test_a_symbol_has_its_definition_and_its_uses(root: Path) -> None:
    """Methods are found by their own name, uses as whole words only."""
    found = run_tool(root, "find_symbol", {"name": "f"})
    assert "definition: A.f in a.py, lines 2 to 3\na.py:2:     def f(self):\na.py:7:     return A().f()" == found


def test_an_edit_needs_one_place(root: Path) -> None:
    """Text that occurs twice, or not at all, changes nothing, and the agent is told where it is."""
    assert "occurs 2 times in notes.txt" in run_tool(root, "edit_file", {"path": "notes.txt", "old": "one", "new": "two"})
    assert "occurs 0 times in notes.txt" in run_tool(root, "edit_file", {"path": "notes.txt", "old": "none", "new": "two"})
    assert "one\none\n" == (root / "notes.txt").read_text(encoding="utf-8")
    assert run_tool(root, "edit_file", {"path": "a.py", "old": "return 1", "new": "return 2"}).splitlines()[3] == "    3          return 2"


def test_a_program_sees_the_scratch_directory_and_shows_no_paths(root: Path) -> None:
    """Modules there are imported, tracebacks name relative paths, and the exit status is told."""
    output = run_tool(root, "run_python", {"code": "import a, argparse\nprint(a.g(), a.__file__, argparse.__file__)\nraise SystemExit(3)"})
    assert "1 a.py lib/argparse.py\nexit status 3" == output
    assert sys.base_prefix not in run_tool(root, "run_python", {"code": "import json\njson.loads('{')"})


def test_tests_show_no_times(root: Path) -> None:
    """A file that was written can be run as tests, and the output is the same every time."""
    tests = "import unittest, a\nclass T(unittest.TestCase):\n    def test(self):\n        self.assertEqual(a.g(), 1)\n"
    assert "tests/test_a.py was written: 4 lines" in run_tool(root, "write_file", {"path": "tests/test_a.py", "content": tests})
    assert run_tool(root, "run_tests", {"path": "tests/test_a.py"}).endswith("Ran 1 test\n\nOK")
