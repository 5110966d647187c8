"""JSON schemas of callers: read, and refused where the grammar compiler would ignore a part of them or take too long."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator
from decimal import Decimal
from typing import Any, NoReturn

from agentmem.chat.repetition import MAX_EXPANSION, expansion
from agentmem.chat.subschemas import Path, endless, reachable, show
from agentmem.errors import InvalidInput
from agentmem.output import MAX_GRAMMAR
from agentmem.types import ToolSpec

# The compiler (llguidance 1.9) is bounded by fuel where it runs, but not in these:
MAX_DEPTH = 64  # nested arrays and objects; its JSON parser takes 128, the grammar's own levels included
MAX_VALUES = 20_000  # JSON values in one schema
MAX_MEMBERS = (
    400  # of one object: optional properties cost time quadratic in their number, and the parser takes 2,000 alternatives at a place
)
MAX_MULTIPLE = 100_000  # the automaton of a multipleOf has so many states
MAX_MIN_ITEMS = 1_000  # a forced row of items is parsed in one step
MAX_STRING = 10_000  # characters of a constant, for the same reason

# The separators are those of json.dumps and of templates' tojson, what models have seen. Flexible whitespace would let a small model
# write spaces until it runs out of tokens. Without \u escapes no key can be written in a second way and so pass for another property.
GUIDANCE = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": ", "json_allowed_escapes": 'nrbtf\\"'}

_WRITABLE = frozenset("\b\t\n\f\r")  # the control characters that have an escape of their own


class Owner:
    """Whose schema it is, for errors. ``label`` as in ``tools[1] "search"``."""

    def __init__(self, label: str, tool: str = "") -> None:
        self.label = label
        self._metadata = {"tool": tool} if tool else {}

    def error(self, path: Path, problem: str) -> InvalidInput:
        """Return the error that names the owner, the JSON path and the problem; ``metadata["path"]`` has the path alone."""
        return InvalidInput(f"{self.label}: {show(path)}: {problem}", metadata={"path": show(path), **self._metadata})


def tool_schema(tool: ToolSpec, owner: Owner) -> dict[str, Any]:
    """Return the schema of a tool's arguments, of an object in any case. Raises InvalidInput with the path of what can't be done."""
    schema = read_schema(tool.parameters or "{}", owner)
    kind = schema.get("type", "object") if isinstance(schema, dict) else "anything"
    if not isinstance(schema, dict) or kind != "object":
        raise owner.error(("type",) if isinstance(schema, dict) else (), f'the arguments of a tool are of type "object", not {kind!r}')
    return {"type": "object", **schema}


def read_schema(text: str, owner: Owner) -> dict[str, Any] | bool:
    """Return the JSON schema in ``text``, without the members that name it. Raises InvalidInput with the path of what can't be done."""
    if len(text) > MAX_GRAMMAR:
        raise owner.error((), f"the schema has {len(text)} characters; allowed: up to {MAX_GRAMMAR}")
    try:
        schema = json.loads(text, object_pairs_hook=_members, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise owner.error((), f"not JSON: {error}") from error
    return check_schema(schema, owner)


def check_schema(schema: object, owner: Owner) -> dict[str, Any] | bool:
    """Return ``schema``, which was parsed already, as ``read_schema`` does."""
    if isinstance(schema, bool):
        return schema
    if not isinstance(schema, dict):
        raise owner.error((), f"a JSON schema is an object, true or false, not {json.dumps(schema)[:100]}")
    _check_size(schema, owner)
    # Under an older draft the compiler ignores the keywords that are newer; under the newest it enforces or refuses all of them.
    schema = {key: value for key, value in schema.items() if key not in ("$schema", "$id")}
    if "x-guidance" in schema:
        raise owner.error(("x-guidance",), "not allowed: how JSON is written is the model's affair")
    nodes = reachable(schema)
    for path, node in nodes.items():
        for key, problem in _problems(node, root=not path):
            raise owner.error((*path, key), problem)
    _check_multiples(nodes, owner)
    loop = endless(schema)
    if loop is not None:
        raise owner.error(loop, "requires itself, so only an infinite value would match")
    return schema


def check_writable(schema: dict[str, Any], writes: Callable[[str], bool], owner: Owner) -> None:
    """Raise InvalidInput when ``schema`` wants a string that ``writes`` says the model has no tokens for."""
    for path, node in reachable(schema).items():
        for key, text in _literals(node):
            if not text.isascii() and not writes(text):
                raise owner.error((*path, key), f"the model's vocabulary can't write {text[:40]!r}")


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members: dict[str, Any] = {}
    for name, value in pairs:
        if name in members:
            raise ValueError(f"the member {name!r} occurs twice")
        members[name] = value
    return members


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _check_size(schema: dict[str, Any], owner: Owner) -> None:
    """Raise InvalidInput when the document is too deep or too large, or holds a number that JSON can't."""
    seen = 0
    waiting: list[tuple[Path, Any]] = [((), schema)]
    while waiting:
        path, value = waiting.pop()
        seen += 1
        members: Iterable[tuple[str | int, Any]] = ()
        if isinstance(value, dict):
            members = value.items()
            if len(value) > MAX_MEMBERS:
                raise owner.error(path, f"has {len(value)} members; allowed: up to {MAX_MEMBERS}")
        elif isinstance(value, list):
            members = enumerate(value)
        elif isinstance(value, float) and not math.isfinite(value):
            raise owner.error(path, "the number is too large")
        if len(path) > MAX_DEPTH:
            raise owner.error(path[:8], f"nested more than {MAX_DEPTH} deep")
        waiting += [((*path, key), member) for key, member in members]
        if seen + len(waiting) > MAX_VALUES:
            raise owner.error(path, f"the schema has more than {MAX_VALUES} values by here")


def _problems(node: dict[str, Any], *, root: bool) -> Iterator[tuple[str, str]]:
    """Yield keywords of one subschema that the compiler would drop or choke on, each with what is wrong."""
    for key in () if root else ("$id", "$schema"):
        if isinstance(node.get(key), str):
            yield key, "only the root of a schema may have it"
    if "prefixItems" in node and "additionalItems" in node:
        yield "additionalItems", "not together with prefixItems; say items"
    if _number(node.get("minItems")) > MAX_MIN_ITEMS:
        yield "minItems", f"is {node['minItems']}; allowed: up to {MAX_MIN_ITEMS}"
    required = node.get("required")
    certain = len(set(filter(_is_text, required))) if isinstance(required, list) else 0
    if _number(node.get("minProperties")) > certain + 1:
        yield "minProperties", f"more than one beyond those required ({certain}) can't be enforced, since a key may be written twice"
    yield from _text_problems(node)


def _text_problems(node: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the same for patterns and for strings that have to be written as they are."""
    patterns = node.get("patternProperties")
    for key, regexes in (("pattern", [node.get("pattern")]), ("patternProperties", patterns if isinstance(patterns, dict) else ())):
        if any(isinstance(regex, str) and expansion(regex) > MAX_EXPANSION for regex in regexes):
            yield key, f"the repetitions of the regular expression make more than {MAX_EXPANSION} characters"
    for key, text in _literals(node):
        if len(text) > MAX_STRING:
            yield key, f"holds a string of {len(text)} characters; allowed: up to {MAX_STRING}"
        if any(char < " " and char not in _WRITABLE for char in text):
            yield key, f"holds a control character, which can't be written here: {text[:40]!r}"


def _literals(node: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the strings that values of ``node`` have to contain as they are, each with the keyword that says so."""
    for key in ("const", "enum", "properties", "required"):
        value = node.get(key)
        yield from ((key, text) for text in _strings(list(value) if key == "properties" and isinstance(value, dict) else value))


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from _strings([*value, *value.values()])
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)


def _check_multiples(nodes: dict[Path, dict[str, Any]], owner: Owner) -> None:
    """Raise InvalidInput when an automaton that counts remainders would be too large. Intersections may take those of all together."""
    values = {path: Decimal(repr(node["multipleOf"])) for path, node in nodes.items() if _number(node.get("multipleOf"))}
    scale = min([0, *(int(value.normalize().as_tuple().exponent) for value in values.values())])
    together = 1
    for path, value in values.items():
        if scale < -12 or value <= 0:
            raise owner.error((*path, "multipleOf"), f"is {value}; allowed: above 0, with up to 12 decimals")
        together = math.lcm(together, int(value.scaleb(-scale)))
        if together > MAX_MULTIPLE:
            raise owner.error((*path, "multipleOf"), f"the least common multiple in the schema is beyond {MAX_MULTIPLE}")


def _number(value: object) -> float:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else 0


def _is_text(value: object) -> bool:
    return isinstance(value, str)
