from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from jsonschema import Draft202012Validator

from agentmem.bench.random_schemas import MAX_LENGTH, random_schema
from agentmem.bench.tool_schemas import TOOLS
from agentmem.chat.schemas import Owner, tool_schema
from agentmem.types import ToolSpec

SCHEMAS = [random_schema(seed) for seed in range(300)]


def nodes(value: Any) -> Iterator[dict[str, Any]]:
    """Yield every object in a schema, its members' values included."""
    if isinstance(value, dict):
        yield value
    for member in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from nodes(member)


def test_a_seed_is_a_schema() -> None:
    """The same seed gives the same schema in every process, another seed another one."""
    assert SCHEMAS == [random_schema(seed) for seed in range(300)]
    assert len({json.dumps(schema) for schema in SCHEMAS}) > 290


def test_every_schema_is_sound_and_taken() -> None:
    """All are JSON schemas of objects, and nothing in them is what the server refuses by design."""
    for number, schema in enumerate(SCHEMAS):
        Draft202012Validator.check_schema(schema)
        assert schema == tool_schema(ToolSpec("t", "", json.dumps(schema)), Owner(f"schema {number}"))


def test_the_keywords_of_tools_are_all_there() -> None:
    """What agents' tools use occurs in a fair share of a few hundred."""
    texts = [json.dumps(schema) for schema in SCHEMAS]
    words = ("$ref", "anyOf", "array", "maxItems", "const", "enum", "pattern", "maxLength", "minimum", "null", "boolean", "integer")
    for word in words:
        assert sum(f'"{word}"' in text for text in texts) >= 20, word
    assert any(schema["required"] != list(schema["properties"]) for schema in SCHEMAS)


def test_every_value_is_short() -> None:
    """Strings, arrays and integers are bounded, and no object takes members that it does not name."""
    for node in (node for schema in SCHEMAS for node in nodes(schema)):
        kind = node.get("type")
        assert kind != "string" or "pattern" in node or node["maxLength"] <= MAX_LENGTH
        assert kind != "array" or node["maxItems"] <= 3
        assert kind != "integer" or {"minimum", "maximum"} <= set(node)
        assert kind != "object" or node["additionalProperties"] is False


def test_real_tools_are_sound_and_taken() -> None:
    """A dozen tools, each with a name of its own, something to ask of it and a schema that the server takes."""
    assert len({tool.spec.name for tool in TOOLS}) == len(TOOLS) >= 12
    for tool in TOOLS:
        schema = json.loads(tool.spec.parameters)
        Draft202012Validator.check_schema(schema)
        assert schema == tool_schema(tool.spec, Owner(tool.spec.name))
        assert tool.request
        assert tool.spec.description
        for node in nodes(schema):
            assert node.get("type") != "string" or "maxLength" in node or "pattern" in node
            assert node.get("type") != "array" or "maxItems" in node
