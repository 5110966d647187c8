"""Where the subschemas of a JSON schema are, and which of them no finite value could match."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import unquote

Path = tuple[str | int, ...]  # keys and indexes from the root

_MAPS = ("properties", "patternProperties")
_LISTS = ("prefixItems", "items", "anyOf", "oneOf", "allOf")
_SINGLE = ("items", "additionalItems", "additionalProperties")
_PLAIN = re.compile(r"[A-Za-z_$][\w$-]*")


def show(path: Path) -> str:
    """Return ``path`` as JSONPath, e.g. ``$.properties.query["a b"][0]``."""
    parts = [f".{part}" if isinstance(part, str) and _PLAIN.fullmatch(part) else f"[{json.dumps(part)}]" for part in path]
    return "$" + "".join(parts)


def children(schema: Mapping[str, Any], path: Path) -> Iterator[tuple[Path, Any]]:
    """Yield the subschemas that ``schema``, which lies at ``path``, applies; references apart."""
    for key, value in schema.items():
        if key in _MAPS and isinstance(value, dict):
            yield from (((*path, key, name), child) for name, child in value.items())
        elif key in _LISTS and isinstance(value, list):
            yield from (((*path, key, index), child) for index, child in enumerate(value))
        elif key in _SINGLE:
            yield (*path, key), value


def target(root: Any, reference: object) -> tuple[Path, Any] | None:  # noqa: ANN401 - whatever JSON holds
    """Return the path and the schema that ``reference`` points to; None unless it is a JSON pointer into ``root`` that leads somewhere."""
    if not isinstance(reference, str) or not (reference == "#" or reference.startswith("#/")):
        return None
    path: Path = ()
    node = root
    for part in reference[1:].split("/")[1:]:
        key = unquote(part).replace("~1", "/").replace("~0", "~")
        if isinstance(node, dict) and key in node:
            path, node = (*path, key), node[key]
        elif isinstance(node, list) and key.isdecimal() and int(key) < len(node):
            path, node = (*path, int(key)), node[int(key)]
        else:
            return None
    return path, node


def rebased(value: Any, home: str) -> Any:  # noqa: ANN401 - whatever JSON holds
    """Return ``value`` with its references into the root leading into ``home``, the JSON pointer of where the root lies now."""
    if isinstance(value, list):
        return [rebased(item, home) for item in value]
    if not isinstance(value, dict):
        return value
    moved = {key: rebased(item, home) for key, item in value.items()}
    reference = moved.get("$ref")
    if isinstance(reference, str) and (reference == "#" or reference.startswith("#/")):
        moved["$ref"] = f"#{home}{reference[1:]}"
    return moved


def reachable(root: dict[str, Any]) -> dict[Path, dict[str, Any]]:
    """Return every subschema of ``root`` that is an object and takes part, by its path; the root first."""
    found: dict[Path, dict[str, Any]] = {}
    waiting: list[tuple[Path, Any]] = [((), root)]
    while waiting:
        path, node = waiting.pop()
        if path in found or not isinstance(node, dict):
            continue
        found[path] = node
        waiting += children(node, path)
        pointed = target(root, node.get("$ref"))
        waiting += [pointed] if pointed else []
    return found


def endless(root: dict[str, Any]) -> Path | None:
    """Return the path of a subschema that only infinite values match, because it requires itself; None when there is none that is required.

    The least fixed point of "can be finished", over what objects and arrays require and what references lead to.
    """
    nodes = reachable(root)
    finite: set[Path] = set()
    pending = list(reversed(nodes))
    while pending:
        left = [path for path in pending if not _finishes(root, nodes[path], path, nodes, finite)]
        if len(left) == len(pending):
            break
        pending = left
    return None if () in finite else max(pending, key=lambda path: ("$ref" in nodes[path], len(path)))


def _finishes(root: dict[str, Any], node: dict[str, Any], path: Path, nodes: dict[Path, dict[str, Any]], finite: set[Path]) -> bool:
    """Return whether ``node`` can be finished if those of ``finite`` can; adds its path to ``finite`` when so."""

    def done(where: Path) -> bool:
        return where in finite or where not in nodes  # true and false are no nodes

    if "const" not in node and "enum" not in node:
        pointed = target(root, node.get("$ref"))
        if pointed and not done(pointed[0]):
            return False
        for key, enough in (("allOf", all), ("anyOf", any), ("oneOf", any)):
            parts = node.get(key)
            if isinstance(parts, list) and parts and not enough(done((*path, key, index)) for index in range(len(parts))):
                return False
        if not all(done(where) for where in _required(node, path)):
            return False
    finite.add(path)
    return True


def _required(node: dict[str, Any], path: Path) -> Iterator[Path]:
    """Yield the paths of the subschemas that every value of ``node`` contains a value of."""
    if node.get("type") == "object" and isinstance(node.get("required"), list):
        properties = node.get("properties")
        for name in node["required"]:
            known = isinstance(properties, dict) and name in properties
            yield (*path, "properties", name) if known else (*path, "additionalProperties")
    least = node.get("minItems")
    if node.get("type") == "array" and isinstance(least, int) and least > 0:
        prefix = node.get("prefixItems", node.get("items"))
        count = len(prefix) if isinstance(prefix, list) else 0
        yield from ((*path, "prefixItems" if "prefixItems" in node else "items", index) for index in range(min(count, least)))
        if least > count:
            yield (*path, "items")
