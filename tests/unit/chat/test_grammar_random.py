from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from support.grammars import SCHEMAS, RandomModel, hermes_calls
from transformers import PreTrainedTokenizerBase

from agentmem.chat.call_shape import HERMES, LLAMA3_JSON, MISTRAL, MISTRAL_ARGS, CallShape
from agentmem.chat.grammar import Grammars
from agentmem.output import FormatKind, OutputSpec, ResponseFormat, ToolChoice, ToolMode
from agentmem.types import ToolSpec

REQUIRED = OutputSpec(ToolChoice(ToolMode.REQUIRED))
relaxed = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much])


def _object(required: list[str], **properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


TEXT = {"type": "string", "maxLength": 30}
TOOLS: dict[str, dict[str, Any]] = {
    "get_weather": _object(["location"], location=TEXT, unit={"type": "string", "enum": ["celsius", "fahrenheit"], "default": "celsius"}),
    "search": _object(["query"], query={**TEXT, "minLength": 1}, limit={"type": "integer", "minimum": 1, "maximum": 50}, site=TEXT),
    "search_all": _object([], queries={"type": "array", "items": TEXT, "minItems": 1, "maxItems": 3}),
    "create_event": _object(
        ["title", "start"],
        title=TEXT,
        start={"type": "string", "format": "date-time"},
        attendees={"type": "array", "items": {"type": "string", "format": "email", "maxLength": 30}, "maxItems": 2},
        reminder={"anyOf": [{"type": "integer", "minimum": 0}, {"type": "null"}]},
    ),
    "read_file": _object(["path"], path={"type": "string", "pattern": "^/[a-z/]{1,20}$"}, lines={"type": ["integer", "null"]}),
    "edit": _object(
        ["path", "edits"], path=TEXT, edits={"type": "array", "maxItems": 2, "items": _object(["old", "new"], old=TEXT, new=TEXT)}
    ),
    "set_price": _object(
        ["sku", "price"], sku={"type": "string", "pattern": "^[A-Z]{3}-[0-9]{4}$"}, price={"type": "number", "minimum": 0, "maximum": 1}
    ),
    "tree": {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "Tree",
        "definitions": {"node": _object(["value"], value={"type": "integer"}, left={"$ref": "#/definitions/node"})},
        **_object(["root"], root={"$ref": "#/definitions/node"}),
    },
    "move": _object(
        ["to"],
        to={
            "oneOf": [
                _object(["kind", "x"], kind={"const": "point"}, x={"type": "integer", "multipleOf": 5}),
                _object(["kind", "name"], kind={"const": "place"}, name={"enum": ["home", "work"]}),
            ]
        },
    ),
    "tag": {"type": "object", "additionalProperties": {"type": "boolean"}, "maxProperties": 3},
    "now": {},
}


@pytest.fixture(scope="module")
def model(tokenizer: PreTrainedTokenizerBase) -> RandomModel:
    return RandomModel(tokenizer, [0, 2], len(tokenizer))


@pytest.fixture(scope="module")
def grammars(model: RandomModel) -> Grammars:
    return Grammars(model.tokenizer, model.ends, model.vocab_size)


def _tools(schemas: dict[str, dict[str, Any]]) -> list[ToolSpec]:
    return [ToolSpec(name, "", json.dumps(schema) if schema else "") for name, schema in schemas.items()]


def _check(grammars: Grammars, model: RandomModel, schema: dict[str, Any], seed: int) -> None:
    grammar = grammars.compile(REQUIRED, _tools({"f": schema}), HERMES)
    assert grammar is not None
    calls = hermes_calls(model.text(model.reply(grammar, seed)))
    assert {"f"} == {name for name, _ in calls}
    for _, arguments in calls:
        Draft202012Validator(schema).validate(arguments)


@given(schema=SCHEMAS, seed=st.integers(0, 1000))
@settings(relaxed, max_examples=100)
def test_random_logits_under_the_mask_give_valid_calls(grammars: Grammars, model: RandomModel, schema: dict[str, Any], seed: int) -> None:
    """Whatever a model would like to say, its calls are of known tools with arguments that their schema takes, and the reply ends."""
    _check(grammars, model, schema, seed)


@pytest.mark.slow
@given(schema=SCHEMAS, seed=st.integers(0, 1_000_000))
@settings(relaxed, max_examples=500)
def test_many_random_schemas_give_valid_calls(grammars: Grammars, model: RandomModel, schema: dict[str, Any], seed: int) -> None:
    """The same for many schemas."""
    _check(grammars, model, schema, seed)


@pytest.mark.parametrize("name", TOOLS)
def test_realistic_tools_get_valid_arguments(grammars: Grammars, model: RandomModel, name: str) -> None:
    """Schemas as tools have them, with formats, references, unions and maps, are held to among other tools."""
    grammar = grammars.compile(OutputSpec(ToolChoice(ToolMode.NAMED, name)), _tools(TOOLS), HERMES)
    assert grammar is not None
    for seed in range(6):
        ((called, arguments),) = hermes_calls(model.text(model.reply(grammar, seed)))
        assert name == called
        Draft202012Validator(TOOLS[name] or {"type": "object"}).validate(arguments)


def test_all_realistic_tools_are_called_at_random(grammars: Grammars, model: RandomModel) -> None:
    """REQUIRED lets every tool be called, several in one reply."""
    grammar = grammars.compile(REQUIRED, _tools(TOOLS), HERMES)
    assert grammar is not None
    replies = [hermes_calls(model.text(model.reply(grammar, seed))) for seed in range(40)]
    for name, arguments in (call for calls in replies for call in calls):
        Draft202012Validator(TOOLS[name] or {"type": "object"}).validate(arguments)
    assert max(map(len, replies)) > 1
    assert len({name for calls in replies for name, _ in calls}) > len(TOOLS) // 2


@pytest.mark.parametrize("shape", [LLAMA3_JSON, MISTRAL, MISTRAL_ARGS], ids=["llama3", "mistral", "mistral_args"])
def test_other_shapes_are_written_as_their_models_do(grammars: Grammars, model: RandomModel, shape: CallShape) -> None:
    """Calls have the shape's literal text around names and arguments, one after the other where the shape has several."""
    grammar = grammars.compile(REQUIRED, _tools({name: TOOLS[name] for name in ("get_weather", "now")}), shape)
    assert grammar is not None
    counts = set()
    for seed in range(12):
        text = model.text(model.reply(grammar, seed))
        calls = _read(shape, text)
        counts.add(len(calls))
        for name, arguments in calls:
            Draft202012Validator(TOOLS[name]).validate(arguments)
    assert (counts == {1}) == (not shape.parallel)


def _read(shape: CallShape, text: str) -> list[tuple[str, Any]]:
    """Return the calls in ``text``, which must be in ``shape`` and nothing else."""
    calls = []
    position = 0
    first = True
    while position < len(text) and text[position:] != shape.close:
        before = (shape.open if first or shape.separator is None else shape.separator) + shape.before_name
        assert text.startswith(before, position)
        name = text[position + len(before) :].partition(shape.between)[0]
        arguments, end = json.JSONDecoder().raw_decode(text, position + len(before + name + shape.between))
        after = shape.after + (shape.close if shape.separator is None else "")
        assert text.startswith(after, end)
        position = end + len(after)
        calls.append((name, arguments))
        first = False
    return calls


@given(schema=SCHEMAS, seed=st.integers(0, 1000))
@settings(relaxed, max_examples=30)
def test_random_replies_match_the_response_format(grammars: Grammars, model: RandomModel, schema: dict[str, Any], seed: int) -> None:
    """A reply under a JSON schema is JSON that the schema takes, without a space more than json.dumps writes."""
    spec = OutputSpec(response_format=ResponseFormat(FormatKind.JSON_SCHEMA, json.dumps(schema)))
    grammar = grammars.compile(spec, [], HERMES)
    assert grammar is not None
    text = model.text(model.reply(grammar, seed))
    Draft202012Validator(schema).validate(json.loads(text))
