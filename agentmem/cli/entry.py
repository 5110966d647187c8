"""The entry point of the ``agentmem`` script, which the base install has too: what it lacks there is said, not thrown."""

from __future__ import annotations

import importlib.util
import sys

NEEDED = ("typer", "rich")


def run() -> None:
    """Run the command line. Exits with 1 and a line that names the extra where the command line is not installed."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        sys.exit(
            f"error: the agentmem command needs {' and '.join(missing)}, which the client alone does not: pip install 'agentmem-kv[server]'"
        )
    from agentmem.cli.main import main

    main()
