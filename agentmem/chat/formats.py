"""Response formats as grammars of llguidance, with what it does not check itself checked."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from llguidance import regex_to_lark

from agentmem.chat.repetition import MAX_EXPANSION, expansion, lark_expansion
from agentmem.chat.schemas import GUIDANCE, Owner, check_schema, read_schema
from agentmem.errors import InvalidInput
from agentmem.output import FormatKind, ResponseFormat

FORMAT = Owner("response_format")

_INLINE_JSON = re.compile(r"%json\s*(?=\{)")


def format_error(problem: str) -> InvalidInput:
    """Return the error of a response format that is no JSON schema."""
    return InvalidInput(f"response_format: {problem}", metadata={"path": "response_format.text"})


def json_grammar(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the grammar, an entry of llguidance's list, of JSON that matches ``schema``."""
    return {"json_schema": {**schema, "x-guidance": GUIDANCE}}


def format_grammar(response_format: ResponseFormat) -> dict[str, Any]:
    """Return the grammar of what ``response_format`` allows, any kind but TEXT. Raises InvalidInput for what can't be done."""
    text = response_format.text
    if response_format.kind is FormatKind.JSON_OBJECT:
        return json_grammar({"type": "object"})
    if response_format.kind is FormatKind.JSON_SCHEMA:
        schema = read_schema(text, FORMAT)
        if schema is False:
            raise FORMAT.error((), "the schema false matches nothing")
        return json_grammar(schema if isinstance(schema, dict) else {})
    atoms = expansion(text) if response_format.kind is FormatKind.REGEX else lark_expansion(text)
    if atoms > MAX_EXPANSION:
        raise format_error(f"its repetitions make up to {atoms} characters; allowed: up to {MAX_EXPANSION}")
    if response_format.kind is FormatKind.REGEX:
        # The whole text has to match, so anchors at the ends say nothing more.
        return {"lark_grammar": f"start: /{regex_to_lark(text)}/"}
    for schema in _inline_schemas(text):
        check_schema(schema, FORMAT)
    return {"lark_grammar": text}


def _inline_schemas(grammar: str) -> Iterator[Any]:
    for match in _INLINE_JSON.finditer(grammar):
        try:
            schema, _ = json.JSONDecoder().raw_decode(grammar, match.end())
        except (ValueError, RecursionError) as error:
            raise format_error(f"the schema after %json at character {match.start()} is not JSON: {error}") from error
        schema.pop("x-guidance", None)
        yield schema
