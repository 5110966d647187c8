"""The committed code is what the protos give, and the protos are commented."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[3]
PROTOS = sorted((ROOT / "protos/agentmem/v1").glob("*.proto"))
SCRIPT = ROOT / "protos/generate.py"


@pytest.fixture
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_committed_code_is_fresh() -> None:
    """``--check`` finds no difference."""
    done = subprocess.run([sys.executable, str(SCRIPT), "--check"], capture_output=True, text=True, check=False)
    assert (0, "") == (done.returncode, done.stderr)


def test_differences_are_named(generate: ModuleType, tmp_path: Path) -> None:
    """A changed, a missing and a left-over file are each named."""
    generate.generate(tmp_path)
    assert [] == generate.differences(tmp_path)
    folder = tmp_path / "agentmem/v1"
    (folder / "admin_pb2.py").write_text("# edited by hand\n")
    (folder / "memory_pb2.pyi").unlink()
    (folder / "old_pb2.py").write_text("")
    assert ["admin_pb2.py", "memory_pb2.pyi", "old_pb2.py"] == generate.differences(tmp_path)


@pytest.mark.parametrize("path", PROTOS, ids=lambda path: path.name)
def test_everything_in_the_protos_is_commented(path: Path) -> None:
    """Every message, enum, service, rpc, field, value and oneof has a comment right above it."""
    lines = [line.strip() for line in path.read_text().splitlines()]
    declaration = re.compile(r"(message|enum|service|rpc|oneof) |.*[\w>] \w+ = \d+;|[A-Z_0-9]+ = \d+;")
    bare = [
        f"{number}: {line}" for number, line in enumerate(lines, 1) if declaration.match(line) and not lines[number - 2].startswith("//")
    ]
    assert [] == bare
