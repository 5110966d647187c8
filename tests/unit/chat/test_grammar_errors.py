from __future__ import annotations

import json
from typing import Any

import pytest
from support.tiny import word_tokenizer
from transformers import PreTrainedTokenizerBase

from agentmem.chat.call_shape import HERMES
from agentmem.chat.grammar import Grammars
from agentmem.chat.repetition import expansion, lark_expansion
from agentmem.errors import InvalidInput, NotImplementedYet
from agentmem.output import FormatKind, OutputSpec, ResponseFormat, ToolChoice, ToolMode
from agentmem.types import ToolSpec

PLAIN = ToolSpec("plain", "", "")
REQUIRED = OutputSpec(ToolChoice(ToolMode.REQUIRED))


@pytest.fixture(scope="module")
def grammars(tokenizer: PreTrainedTokenizerBase) -> Grammars:
    return Grammars(tokenizer, [0, 2], len(tokenizer))


def _tool_error(grammars: Grammars, parameters: str) -> InvalidInput:
    with pytest.raises(InvalidInput) as raised:
        grammars.compile(REQUIRED, [PLAIN, ToolSpec("search", "", parameters)], HERMES)
    return raised.value


def _format_error(grammars: Grammars, kind: FormatKind, text: str) -> InvalidInput:
    with pytest.raises(InvalidInput) as raised:
        grammars.compile(OutputSpec(response_format=ResponseFormat(kind, text)), [], HERMES)
    return raised.value


def _a(**schema: Any) -> dict[str, Any]:
    return {"type": "object", "properties": {"a": schema}, "required": ["a"]}


def _nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = _a(**schema)
    return schema


NODE = {"type": "object", "properties": {"next": {"$ref": "#/$defs/node"}}, "required": ["next"]}


@pytest.mark.parametrize(
    ("choice", "form", "tools", "words"),
    [
        (ToolChoice(ToolMode.NAMED, "nope"), ResponseFormat(), [PLAIN, ToolSpec("other", "", "")], "names 'nope'; known: other, plain"),
        (ToolChoice(ToolMode.NAMED, "nope"), ResponseFormat(), [], "tool_choice is named, but there are no tools"),
        (ToolChoice(ToolMode.REQUIRED), ResponseFormat(), [], "tool_choice is required, but there are no tools"),
        (
            ToolChoice(ToolMode.REQUIRED),
            ResponseFormat(FormatKind.JSON_OBJECT),
            [PLAIN],
            "tool_choice is required and response_format json_object",
        ),
        (
            ToolChoice(ToolMode.NAMED, "plain"),
            ResponseFormat(FormatKind.REGEX, "a"),
            [PLAIN],
            "tool_choice is named and response_format regex",
        ),
        (ToolChoice(), ResponseFormat(), [PLAIN, PLAIN], "tools have the name 'plain' more than once"),
    ],
)
def test_contradictory_choices(grammars: Grammars, choice: ToolChoice, form: ResponseFormat, tools: list[ToolSpec], words: str) -> None:
    """Choices that can't be had together are refused, saying which."""
    with pytest.raises(InvalidInput) as raised:
        grammars.compile(OutputSpec(choice, form), tools, HERMES)
    assert words in raised.value.message


@pytest.mark.parametrize(
    ("parameters", "path", "words"),
    [
        ("{", "$", "not JSON: "),
        ('{"a": NaN}', "$", "NaN is no JSON number"),
        ('{"type": "object", "type": "object"}', "$", "the member 'type' occurs twice"),
        ("[1]", "$", "a JSON schema is an object, true or false, not [1]"),
        ("true", "$", 'of type "object"'),
        ('{"type": "string"}', "$.type", "not 'string'"),
        ('{"type": ["object", "null"]}', "$.type", "not ['object', 'null']"),
        ('{"maximum": 1e999}', "$.maximum", "the number is too large"),
    ],
)
def test_schemas_that_are_none_for_a_tool(grammars: Grammars, parameters: str, path: str, words: str) -> None:
    """What is no JSON schema of an object is refused, naming the tool and its place."""
    error = _tool_error(grammars, parameters)
    assert error.message.startswith(f'tools[1] "search": {path}: ')
    assert words in error.message
    assert {"path": path, "tool": "search"} == error.metadata


@pytest.mark.parametrize(
    ("schema", "path", "words"),
    [
        (_a(type="strin"), "$.properties.a.type", "Invalid type: strin"),
        (_a(**_a(pattern="(?=x)")), "$.properties.a.properties.a.pattern", "look-around"),
        (_a(type="string", pattern="["), "$.properties.a.pattern", "unclosed character class"),
        (
            _a(items={"anyOf": [{"type": "string"}, {"type": "array", "uniqueItems": True}]}),
            "$.properties.a.items.anyOf[1].uniqueItems",
            "uniqueItems",
        ),
        ({"properties": {"a b": {"not": {}}}}, '$.properties["a b"].not', "not"),
        (_a(type="string", format="postcode"), "$.properties.a.format", "Unknown format: postcode"),
        (_a(minLength=-1), "$.properties.a.minLength", "Expected positive integer"),
        (_a(oneOf=[{"type": "integer"}, {"type": "number"}]), "$.properties.a.oneOf", "oneOf"),
        (_a(enum=[]), "$.properties.a.enum", "Unsatisfiable"),
        (_a(type="integer", minimum=5, maximum=3), "$.properties.a", "minimum (5) is greater than maximum (3)"),
        (_a(**{"$ref": "#/$defs/gone"}), "$.properties.a.$ref", "'/$defs/gone' does not exist"),
        (_a(**{"$ref": "https://example.com/x"}), "$.properties.a.$ref", "https://example.com/x"),
        ({**_a(**{"$ref": "#/$defs/b"}), "$defs": {"b": _a(type="array", contains={})}}, "$.$defs.b.properties.a.contains", "contains"),
        ({"$ref": "#/$defs/s", "$defs": {"s": {"type": "string"}}}, "$.$ref", "incompatible types"),
        ({"required": ["gone"], "additionalProperties": False}, "$", "required property 'gone' is unsatisfiable"),
        (
            {"properties": {"a": {"type": "integer", "minimum": 5, "maximum": 3}, "b": {"if": {}}}, "required": ["a"]},
            "$.properties.b.if",
            "if",
        ),
        ({"$schema": "http://json-schema.org/draft-04/schema#", **_a(contains={})}, "$.properties.a.contains", "contains"),
    ],
)
def test_what_can_not_be_compiled_is_found(grammars: Grammars, schema: dict[str, Any], path: str, words: str) -> None:
    """The compiler's complaint comes with the deepest place that it is about, through references too, and nothing is skipped."""
    error = _tool_error(grammars, json.dumps(schema))
    assert {"path": path, "tool": "search"} == error.metadata
    assert error.message.startswith(f'tools[1] "search": {path}: ')
    assert words in error.message


@pytest.mark.parametrize(
    ("schema", "path", "words"),
    [
        ({"x-guidance": {"lenient": True}}, "$.x-guidance", "not allowed"),
        (_a(**{"$id": "https://example.com"}), "$.properties.a.$id", "only the root"),
        (_a(prefixItems=[{"type": "string"}], additionalItems=False), "$.properties.a.additionalItems", "say items"),
        ({"minProperties": 2}, "$.minProperties", "a key may be written twice"),
        (_a(const="a\0"), "$.properties.a.const", "control character"),
        (_a(enum=["b", "\U00040000"]), "$.properties.a.enum", "vocabulary can't write"),
        ({"$ref": "#"}, "$", "requires itself"),
        ({"$ref": "#/$defs/node", "$defs": {"node": NODE}}, "$.$defs.node.properties.next", "requires itself"),
        (_a(type="array", items={"$ref": "#"}, minItems=1), "$.properties.a.items", "requires itself"),
        (_a(anyOf=[{"$ref": "#"}, {"$ref": "#/properties/a"}]), "$.properties.a.anyOf[0]", "requires itself"),
        ({"allOf": [{"$ref": "#"}]}, "$.allOf[0]", "requires itself"),
    ],
)
def test_what_would_be_weakened_is_refused(grammars: Grammars, schema: dict[str, Any], path: str, words: str) -> None:
    """What llguidance would silently ignore, or never finish, is refused with its place."""
    error = _tool_error(grammars, json.dumps(schema))
    assert {"path": path, "tool": "search"} == error.metadata
    assert words in error.message


@pytest.mark.parametrize(
    "schema",
    [
        {"$ref": "#/$defs/node", "$defs": {"node": {**NODE, "required": []}}},
        _a(anyOf=[{"$ref": "#"}, {"type": "null"}]),
        _a(type="array", items={"$ref": "#"}),
        _a(type=["array", "null"], items={"$ref": "#"}, minItems=1),
        {
            "$schema": "https://example.com/of-my-own",
            "$id": "https://example.com/me",
            "title": "T",
            **_a(type="string", deprecated=True, example=1),
        },
        _a(type="integer", format="int64"),
        {"properties": {"a": False}},
        {"minProperties": 1},
        {"required": ["a", "b"], "minProperties": 3},
        _a(multipleOf=0.01),
        _nested(25),
        {"properties": {f"p{index}": {"type": "string"} for index in range(400)}},
    ],
)
def test_what_is_fine_is_not_refused(grammars: Grammars, schema: dict[str, Any]) -> None:
    """Recursion that can end, annotations, wide and deep schemas compile."""
    assert grammars.compile(REQUIRED, [ToolSpec("f", "", json.dumps(schema))], HERMES) is not None


@pytest.mark.parametrize(
    ("schema", "path", "words"),
    [
        (_nested(80), "$.properties.a.properties.a.properties.a.properties.a", "nested more than 64 deep"),
        ({"properties": {f"p{index}": {} for index in range(401)}}, "$.properties", "has 401 members"),
        (_a(enum=list(range(30_000))), "$.properties.a.enum", "more than 20000 values"),
        (_a(description="x" * 200_000), "$", "allowed: up to 200000"),
        (_a(const="x" * 20_000), "$.properties.a.const", "allowed: up to 10000"),
        (_a(multipleOf=1_000_003), "$.properties.a.multipleOf", "beyond 100000"),
        (_a(allOf=[{"multipleOf": 997}, {"multipleOf": 991}]), "$.properties.a.allOf[0].multipleOf", "beyond 100000"),
        (_a(multipleOf=1e300), "$.properties.a.multipleOf", "beyond 100000"),
        (_a(multipleOf=1e-30), "$.properties.a.multipleOf", "12 decimals"),
        (_a(multipleOf=-1), "$.properties.a.multipleOf", "above 0"),
        (_a(type="array", minItems=1_000_000), "$.properties.a.minItems", "up to 1000"),
        (_a(pattern="x{1000000}"), "$.properties.a.pattern", "repetitions"),
        ({"patternProperties": {"^((x{99}){99}){99}$": {}}}, "$.patternProperties", "repetitions"),
    ],
)
@pytest.mark.timeout(20)
def test_schemas_that_are_bombs(grammars: Grammars, schema: dict[str, Any], path: str, words: str) -> None:
    """What would take the compiler seconds, or a step too much memory, is refused with its place before it starts."""
    error = _tool_error(grammars, json.dumps(schema))
    assert path == error.metadata["path"]
    assert words in error.message


@pytest.mark.timeout(20)
def test_json_of_any_depth(grammars: Grammars) -> None:
    """A text that is nested deeper than Python's parser goes is refused like any that is no JSON."""
    assert "not JSON" in _tool_error(grammars, '{"a":' * 30_000 + "1" + "}" * 30_000).message


@pytest.mark.timeout(30)
def test_many_alternatives_are_bounded(grammars: Grammars) -> None:
    """Unions under an intersection multiply; the compiler's own limit on that is an InvalidInput too."""
    unions = [{"anyOf": [_a(const=index), {"properties": {f"b{index}": {}}}, {"properties": {f"c{index}": {}}}]} for index in range(12)]
    assert "schema too large" in _tool_error(grammars, json.dumps({"allOf": unions})).message


def test_all_tools_together_are_bounded(grammars: Grammars) -> None:
    """Many large schemas are refused though each would do; many small ones are fine."""
    large = [ToolSpec(f"f{index}", "", json.dumps({"description": "x" * 190_000})) for index in range(6)]
    with pytest.raises(InvalidInput, match="more than 1000000 characters together"):
        grammars.compile(REQUIRED, large, HERMES)
    small = [ToolSpec(f"f{index}", "", json.dumps(_a(type="string"))) for index in range(128)]
    assert grammars.compile(REQUIRED, small, HERMES) is not None


@pytest.mark.parametrize(
    ("kind", "text", "path", "words"),
    [
        (FormatKind.JSON_SCHEMA, "{", "$", "response_format: $: not JSON"),
        (FormatKind.JSON_SCHEMA, "false", "$", "matches nothing"),
        (
            FormatKind.JSON_SCHEMA,
            '{"type": "array", "items": {"type": "strin"}}',
            "$.items.type",
            "response_format: $.items.type: Invalid type: strin",
        ),
        (FormatKind.REGEX, "(a", "response_format.text", "unclosed group"),
        (FormatKind.REGEX, "a(?=b)", "response_format.text", "look-around"),
        (FormatKind.REGEX, "x{1000000}", "response_format.text", "repetitions make up to 1000000 characters"),
        (FormatKind.REGEX, "((x{1000}){1000}){1000}", "response_format.text", "repetitions"),
        (FormatKind.REGEX, "(" * 50_000 + "a" + ")" * 50_000, "response_format.text", "invalid regex"),
        (FormatKind.LARK, 'x: "a"', "response_format.text", "no start rule found"),
        (FormatKind.LARK, "start: start", "response_format.text", "it matches nothing"),
        (FormatKind.LARK, 'start: "a" start', "response_format.text", "Too many items"),
        (FormatKind.LARK, "start: /x{1000000}/", "response_format.text", "repetitions"),
        (FormatKind.LARK, 'start: A\nA: B{1000}\nB: "x"~1000', "response_format.text", "repetitions"),
        (FormatKind.LARK, "start: " + "(" * 50_000 + '"a"' + ")" * 50_000, "response_format.text", "too deeply nested"),
        (
            FormatKind.LARK,
            "start: T0\n" + "".join(f"T{i}: T{i + 1} T{i + 1}\n" for i in range(40)) + 'T40: "a"',
            "response_format.text",
            "too big",
        ),
        (
            FormatKind.LARK,
            "start: r0\n" + "".join(f"r{i}: r{i + 1} r{i + 1}\n" for i in range(60)) + 'r60: "a"',
            "response_format.text",
            "Too many items",
        ),
        (FormatKind.LARK, 'start: %json {"multipleOf": 1000003}', "$.multipleOf", "beyond 100000"),
        (FormatKind.LARK, "start: %json {no}", "response_format.text", "the schema after %json at character 7 is not JSON"),
    ],
)
@pytest.mark.timeout(30)
def test_formats_that_can_not_be_compiled(grammars: Grammars, kind: FormatKind, text: str, path: str, words: str) -> None:
    """A response format is refused as such, with what the compiler says or why it is too much."""
    error = _format_error(grammars, kind, text)
    assert error.message.startswith("response_format: ")
    assert words in error.message
    assert {"path": path} == error.metadata


def test_the_broken_part_is_named_among_several(grammars: Grammars) -> None:
    """With a format and tools the error is of the part that fails alone."""
    tools = [PLAIN, ToolSpec("search", "", json.dumps(_a(type="strin")))]
    with pytest.raises(InvalidInput, match='tools\\[1\\] "search"'):
        grammars.compile(OutputSpec(response_format=ResponseFormat(FormatKind.JSON_OBJECT)), tools, HERMES)
    with pytest.raises(InvalidInput, match="response_format: no start rule"):
        grammars.compile(OutputSpec(response_format=ResponseFormat(FormatKind.LARK, 'x: "a"')), [PLAIN], HERMES)


def test_models_that_can_not_be_constrained(tokenizer: PreTrainedTokenizerBase) -> None:
    """Without an end token a reply could never end; a tokenizer whose bytes llguidance can't tell is a missing capability."""
    with pytest.raises(InvalidInput, match="no end token"):
        Grammars(tokenizer, [], len(tokenizer)).compile(REQUIRED, [PLAIN], HERMES)
    words = word_tokenizer()
    with pytest.raises(NotImplementedYet, match="constrained decoding with this tokenizer"):
        Grammars(words, [2], len(words)).compile(REQUIRED, [PLAIN], HERMES)


@pytest.mark.parametrize(
    ("regex", "atoms"),
    [
        ("", 0),
        ("abc", 3),
        ("a{3}b", 4),
        ("(ab){3,5}", 10),
        ("((a{2}b){3}c){4}", 40),
        ("[a-z{9}]{4,}", 4),
        (r"\{9}\p{Lu}{2}", 5),
        ("a{0}", 1),
        ("(a{2}", 2),
        ("a)b", 3),
        ("[a", 2),
    ],
)
def test_repetitions_are_counted(regex: str, atoms: int) -> None:
    """Counted repetitions multiply what is before them; braces in classes and escapes count nothing."""
    assert atoms == expansion(regex)


@pytest.mark.parametrize(
    ("grammar", "atoms"),
    [
        ('start: "a"{500}', 1),
        ("start: /a{5}/ // x{99}\n# y~99", 5),
        ('A: "a"~3..7\nB: A{2}', 14),
        ('start: A{100}\nA: "{99}" /b{3}/', 3),
        ('?start: A\n_A: "x"{4}', 4),
    ],
)
def test_repetitions_of_terminals_are_counted(grammar: str, atoms: int) -> None:
    """In Lark those in terminals and regular expressions count, those of rules, in strings and in comments don't."""
    assert atoms == lark_expansion(grammar)
