"""Generate ``agentmem/v1/*_pb2*`` from the protos; with ``--check`` only tell whether the committed code differs.

Run with grpcio-tools 1.78.0: output of later versions does not import on protobuf 6.33.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

from grpc_tools import protoc  # type: ignore[import-untyped]  # publishes no types

GRPC_TOOLS_VERSION = "1.78.0"
PROTOS = Path(__file__).resolve().parent
REPOSITORY = PROTOS.parent
PACKAGE = Path("agentmem/v1")


def generate(destination: Path) -> None:
    """Write the generated code below ``destination``. Raises RuntimeError when protoc refuses a proto."""
    names = sorted(str(path.relative_to(PROTOS)) for path in (PROTOS / PACKAGE).glob("*.proto"))
    outputs = [f"--{kind}_out={destination}" for kind in ("python", "pyi", "grpc_python")]
    if protoc.main(["protoc", f"-I{PROTOS}", *outputs, *names]) != 0:
        raise RuntimeError("protoc failed, see above")


def generated(root: Path) -> dict[str, str]:
    """Return name to text of the generated files below ``root``."""
    return {path.name: path.read_text() for path in (root / PACKAGE).glob("*_pb2*.py*")}


def differences(root: Path = REPOSITORY) -> list[str]:
    """Return the names of generated files below ``root`` that are missing, left over or not what the protos give."""
    with tempfile.TemporaryDirectory() as scratch:
        generate(Path(scratch))
        fresh = generated(Path(scratch))
    committed = generated(root)
    return sorted(name for name in fresh.keys() | committed.keys() if fresh.get(name) != committed.get(name))


def main() -> int:
    """Generate or check; return the exit code: 0 fine, 1 the committed code differs, 2 wrong grpcio-tools."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="exit 1 when the committed code differs; write nothing")
    arguments = parser.parse_args()
    if version("grpcio-tools") != GRPC_TOOLS_VERSION:
        sys.stderr.write(f"grpcio-tools {version('grpcio-tools')} is installed; needed: {GRPC_TOOLS_VERSION}\n")
        return 2
    if not arguments.check:
        generate(REPOSITORY)
        return 0
    changed = differences()
    if changed:
        sys.stderr.write(f"not what the protos give: {', '.join(changed)}; run python protos/generate.py\n")
    return 1 if changed else 0


if __name__ == "__main__":
    sys.exit(main())
