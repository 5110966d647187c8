"""Which part of a schema the compiler's complaint is about; its message does not say."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from agentmem.chat.subschemas import Path, children, rebased, target

MAX_TRIES = 300  # compilations; each takes a fraction of a millisecond for common schemas

_KEY = "$whole"
_HOME = f"/$defs/{_KEY}"  # where the whole schema lies while a part of it is tried alone
_UNSATISFIABLE = "Unsatisfiable"

Complain = Callable[[dict[str, Any]], str]  # the compiler's message about a schema, "" when it takes it


def blame(schema: dict[str, Any], complain: Complain) -> tuple[Path, str]:
    """Return the deepest path at which ``schema`` fails, down to the keyword where one alone does, and the message there.

    A part is tried alone, with the whole carried along for its references. What fails in a part need not be why the whole does: a part
    that nothing matches is only followed when that is what the whole fails of.
    """
    whole = rebased(schema, _HOME)
    tries = MAX_TRIES

    def attempt(part: Any) -> str:  # noqa: ANN401 - whatever JSON holds
        nonlocal tries
        tries -= 1
        if not isinstance(part, dict) or tries < 0:
            return ""
        part = rebased(part, _HOME)
        return complain({**part, "$defs": {**part.get("$defs", {}), _KEY: whole}}).replace(_HOME, "")

    path: Path = ()
    node, message = schema, complain(schema)
    seen: set[Path] = set()
    while path not in seen:
        seen.add(path)
        pointed = target(schema, node.get("$ref"))
        for where, part in (*children(node, path), *([pointed] if pointed else [])):
            found = attempt(part)
            if found and found.startswith(_UNSATISFIABLE) <= message.startswith(_UNSATISFIABLE):
                path, node, message = where, part, found
                break
    for key, value in node.items():
        alone = {key: value, **({"type": node["type"]} if "type" in node else {})}
        if key != "type" and attempt(alone):
            return (*path, key), message
    return ((*path, "type") if attempt({"type": node.get("type", "string")}) else path), message
