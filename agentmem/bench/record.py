"""Rebuild the recorded traces: ``python -m agentmem.bench.record OUT_DIR`` runs every scripted agent's tools and writes its JSON file."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from agentmem.bench.scripts import SCRIPTS
from agentmem.bench.scripts.player import record


def write_traces(directory: Path) -> list[Path]:
    """Record every script into ``directory``, which is made if need be; return the files. The same Python writes the same bytes."""
    directory.mkdir(parents=True, exist_ok=True)
    written = []
    for script in SCRIPTS:
        path = directory / f"{script.name}.json"
        path.write_text(json.dumps(record(script), ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        written.append(path)
    return written


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m agentmem.bench.record OUT_DIR")
    for file in write_traces(Path(sys.argv[1])):
        sys.stdout.write(f"{file}\n")
