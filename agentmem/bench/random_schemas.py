"""Random JSON schemas of tools' arguments: every keyword that agents' tools use, bounded so that any value is short."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any

MAX_VALUES = 10  # of one call's arguments: what is drawn fits some hundred tokens, whatever the model likes
MAX_DEPTH = 4
MAX_LENGTH = 16  # characters of a string

NAMES = ("id", "name", "path", "query", "limit", "tags", "options", "when", "user-id", "größe", "is open", "x", 'q"uote')
WORDS = ("low", "high", "UTF-8", "a b", "größe", "", "two\nlines", 'say "no"', "back\\slash", "东京", "null", "-1")
CONSTANTS = (*WORDS, None, True, False, 7, -12, 4096)
PATTERNS = ("^[a-c]{1,4}$", "^(yes|no)$", "^[A-Z]{2}-[0-9]{3}$", "^[0-9]{4}-[0-9]{2}$", "^#[0-9a-f]{6}$", "^[a-z]{1,6}(_[a-z]{1,6})?$")

Schema = dict[str, Any]


def random_schema(seed: int) -> Schema:
    """Return a schema of an object, the same for the same ``seed``: some of its values are in ``$defs`` and referred to."""
    random = Random(seed)  # noqa: S311 - no secret comes from it
    definitions = {f"def{number}": _value(random, random.randint(1, 3), MAX_DEPTH - 1) for number in range(random.choice((0, 0, 1, 2)))}
    schema = _object(random, random.randint(4, MAX_VALUES), 0, tuple(definitions))
    return schema | {"$defs": definitions} if definitions else schema


def _value(random: Random, room: int, depth: int, defined: tuple[str, ...] = ()) -> Schema:
    """Return a schema of values that hold up to ``room`` scalars; names in ``defined`` may be referred to, where they fit."""
    if defined and room >= 3 and random.random() < 0.5:
        return {"$ref": f"#/$defs/{random.choice(defined)}"}
    if depth >= MAX_DEPTH or random.random() < 0.5:
        return random.choice(SCALARS)(random)
    return random.choice((_object, _array, _any_of))(random, room, depth, defined)


def _object(random: Random, room: int, depth: int, defined: tuple[str, ...]) -> Schema:
    names = random.sample(NAMES, random.randint(0 if depth else 2, min(5, room)))
    properties = {name: _value(random, max(1, room // len(names)), depth + 1, defined) for name in names}
    required = [name for name in names if random.random() < 0.6]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _array(random: Random, room: int, depth: int, defined: tuple[str, ...]) -> Schema:
    most = random.randint(1, min(3, room))
    return {
        "type": "array",
        "items": _value(random, room // most, depth + 1, defined),
        "minItems": random.randint(0, most),
        "maxItems": most,
    }


def _any_of(random: Random, room: int, depth: int, defined: tuple[str, ...]) -> Schema:
    return {"anyOf": [_value(random, room, depth + 1, defined) for _ in range(random.randint(2, 3))]}


def _integer(random: Random) -> Schema:
    low = random.randint(-1000, 1000)
    return {"type": "integer", "minimum": low, "maximum": low + random.choice((0, 1, 9, 100, 100_000))}


def _string(random: Random) -> Schema:
    least = random.choice((0, 0, 1, 4))
    return {"type": "string", "minLength": least, "maxLength": random.randint(max(1, least), MAX_LENGTH)}


def _pattern(random: Random) -> Schema:
    return {"type": "string", "pattern": random.choice(PATTERNS)}


def _simple(random: Random) -> Schema:
    return {"type": random.choice(("boolean", "boolean", "null", ["boolean", "null"]))}


def _const(random: Random) -> Schema:
    return {"const": random.choice(CONSTANTS)}


def _enum(random: Random) -> Schema:
    return {"enum": random.sample(CONSTANTS, random.randint(1, 5))}


SCALARS: tuple[Callable[[Random], Schema], ...] = (_integer, _integer, _string, _string, _pattern, _simple, _const, _enum)
