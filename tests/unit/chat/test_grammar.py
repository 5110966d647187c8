from __future__ import annotations

import copy
import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from support.grammars import RandomModel
from transformers import PreTrainedTokenizerBase

from agentmem.chat.call_shape import HERMES, LLAMA3_JSON, MISTRAL, MISTRAL_ARGS, CallShape
from agentmem.chat.grammar import MAX_CACHED, Grammars
from agentmem.output import FormatKind, OutputSpec, ResponseFormat, ToolChoice, ToolMode
from agentmem.types import ToolSpec

GET = ToolSpec(
    "get", "", '{"type": "object", "properties": {"key": {"type": "string"}}, "required": ["key"], "additionalProperties": false}'
)
GET_ALL = ToolSpec("get_all", "", '{"type": "object", "properties": {"page": {"type": "integer"}}, "additionalProperties": false}')
TOOLS = [GET, GET_ALL]
AUTO = OutputSpec()
NONE = OutputSpec(ToolChoice(ToolMode.NONE))
REQUIRED = OutputSpec(ToolChoice(ToolMode.REQUIRED))
END = "<|im_end|>"

FIRST = '<tool_call>\n{"name": "get", "arguments": {"key": "a b"}}\n</tool_call>'
SECOND = '<tool_call>\n{"name": "get_all", "arguments": {"page": 3}}\n</tool_call>'


@pytest.fixture(scope="module")
def model(tokenizer: PreTrainedTokenizerBase) -> RandomModel:
    return RandomModel(tokenizer, [0, 2], len(tokenizer))


@pytest.fixture(scope="module")
def grammars(model: RandomModel) -> Grammars:
    return Grammars(model.tokenizer, model.ends, model.vocab_size)


@pytest.fixture(scope="module")
def special(tokenizer: PreTrainedTokenizerBase) -> RandomModel:
    """Return a vocabulary where calls are opened by tokens, as Qwen's (which are not "special") and Mistral's (which are)."""
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.add_tokens(["<tool_call>", "</tool_call>"])
    tokenizer.add_special_tokens({"additional_special_tokens": ["[TOOL_CALLS]", "[ARGS]"]})
    return RandomModel(tokenizer, [0, 2], 49_280)


@pytest.fixture(scope="module")
def special_grammars(special: RandomModel) -> Grammars:
    return Grammars(special.tokenizer, special.ends, special.vocab_size)


class Judge:
    """Says which replies a grammar takes whole, end token included."""

    def __init__(self, model: RandomModel, grammars: Grammars, spec: OutputSpec, tools: list[ToolSpec], shape: CallShape = HERMES) -> None:
        grammar = grammars.compile(spec, tools, shape)
        assert grammar is not None
        self.model = model
        self.grammar = grammar

    def takes(self, text: str) -> bool:
        """Return whether ``text`` is a reply. It is asked token by token, forced ones as they are."""
        guide = self.grammar.guide()
        for token in self.model.ids(text + END):
            forced = guide.forced()
            if forced and forced[0] != token:
                return False
            if not forced and not self.model.allowed(guide)[token]:
                return False
            guide.advance(token)
        return True

    def legal(self, text: str) -> str:
        """Return the part of ``text`` that the grammar takes as a draft."""
        ids = self.model.ids(text)
        return str(self.model.tokenizer.decode(ids[: self.grammar.guide().legal(ids)]))


def test_without_tools_and_format_nothing_is_constrained(grammars: Grammars) -> None:
    """There is no grammar where anything goes: no tools, or tools whose calls nothing opens."""
    assert grammars.compile(AUTO, [], HERMES) is None
    assert grammars.compile(NONE, [], HERMES) is None
    assert grammars.compile(AUTO, TOOLS, LLAMA3_JSON) is None
    assert grammars.compile(NONE, TOOLS, LLAMA3_JSON) is None


@pytest.mark.parametrize(
    ("text", "taken"),
    [
        ("", True),
        ("Just text, with < and <tool_ in it.", True),
        (FIRST, True),
        ("Let me see.\n" + FIRST, True),
        (FIRST + "\n" + SECOND + "\n" + FIRST, True),
        ("Not <tool_call> this", False),
        (FIRST.replace("get", "got"), False),
        (FIRST.replace('"a b"', "1"), False),
        (FIRST.replace('{"key": "a b"}', "{}"), False),
        (FIRST.replace(": ", ":"), False),
        (FIRST.removesuffix("</tool_call>"), False),
        (FIRST + " and text", False),
        (FIRST + "\n", False),
    ],
)
def test_auto_takes_text_and_then_calls(grammars: Grammars, model: RandomModel, text: str, taken: bool) -> None:
    """AUTO leaves text free until a call is opened; then known calls with valid arguments follow, and nothing after them."""
    assert taken == Judge(model, grammars, AUTO, TOOLS).takes(text)


@pytest.mark.parametrize(
    ("text", "taken"),
    [
        ("Just text, <|im_start|> too.", True),
        ("Let me see.\n" + FIRST + "\n" + SECOND, True),
        (FIRST, True),
        ("<tool_call> no", False),
        (FIRST.replace("get", "got"), False),
    ],
)
def test_a_special_token_opens_calls(special_grammars: Grammars, special: RandomModel, text: str, taken: bool) -> None:
    """Where the opening tag is one token the grammar means that token, in text as in calls."""
    assert special.ids("<tool_call>") == [special.tokenizer.convert_tokens_to_ids("<tool_call>")]
    assert taken == Judge(special, special_grammars, AUTO, TOOLS).takes(text)


def test_a_special_token_can_not_be_spelled_out(special_grammars: Grammars, special: RandomModel) -> None:
    """The tag's characters as ordinary tokens would be read as a call as well, so free text may not hold them, around other tokens too."""
    judge = Judge(special, special_grammars, AUTO, TOOLS)
    spelled = [*special.ids("<tool"), *special.ids("_call"), *special.ids(">")]
    assert special.tokenizer.decode(spelled) == "<tool_call>"
    assert len(spelled) - 1 == judge.grammar.guide().legal(spelled)
    assert len(spelled) + 1 == judge.grammar.guide().legal([*spelled[:-1], *special.ids("<|im_start|>"), *spelled[-1:]])


@pytest.mark.parametrize(
    ("shape", "text"),
    [
        (MISTRAL, '[TOOL_CALLS][{"name": "get", "arguments": {"key": "x"}}, {"name": "get_all", "arguments": {}}]'),
        (MISTRAL_ARGS, '[TOOL_CALLS]get_all[ARGS]{"page": 1}[TOOL_CALLS]get[ARGS]{"key": "x"}'),
    ],
)
def test_shapes_with_several_special_tokens(special_grammars: Grammars, special: RandomModel, shape: CallShape, text: str) -> None:
    """Special tokens anywhere in a shape are meant as tokens, what is around them as text."""
    judge = Judge(special, special_grammars, AUTO, TOOLS, shape)
    assert judge.takes(text)
    assert judge.takes("Well: " + text)
    assert not judge.takes(text.replace("get", "got"))
    assert not judge.takes(text.replace('"x"', "1"))


def test_padding_is_never_allowed(special_grammars: Grammars, special: RandomModel) -> None:
    """Logits beyond the tokenizer's tokens mean nothing and stay masked, in free text too."""
    guide = Judge(special, special_grammars, AUTO, TOOLS).grammar.guide()
    assert not special.allowed(guide)[len(special.tokenizer) :].any()


def test_none_can_not_call(grammars: Grammars, model: RandomModel) -> None:
    """With NONE the reply is text in which no call is opened."""
    judge = Judge(model, grammars, NONE, TOOLS)
    assert judge.takes("Text with <tool_call in it")
    assert judge.takes("")
    assert "Text <tool_call" == judge.legal("Text <tool_call>")


def test_none_leaves_the_format_alone(grammars: Grammars, model: RandomModel) -> None:
    """With NONE a response format holds as if there were no tools."""
    judge = Judge(model, grammars, OutputSpec(ToolChoice(ToolMode.NONE), ResponseFormat(FormatKind.REGEX, "[0-9]+")), TOOLS)
    assert judge.takes("42")
    assert not judge.takes(FIRST)


def test_required_calls_at_once(grammars: Grammars, model: RandomModel) -> None:
    """REQUIRED takes one or more calls of any tool and no text."""
    judge = Judge(model, grammars, REQUIRED, TOOLS)
    assert judge.takes(FIRST)
    assert judge.takes(SECOND + "\n" + FIRST)
    assert not judge.takes("")
    assert not judge.takes("Text " + FIRST)


def test_named_calls_that_tool_once(grammars: Grammars, model: RandomModel) -> None:
    """NAMED takes exactly one call of the tool, whatever other schemas are like."""
    judge = Judge(model, grammars, OutputSpec(ToolChoice(ToolMode.NAMED, "get")), [*TOOLS, ToolSpec("broken", "", "{")])
    assert judge.takes(FIRST)
    assert not judge.takes(SECOND)
    assert not judge.takes(FIRST + "\n" + FIRST)


@pytest.mark.parametrize("mode", [ToolMode.AUTO, ToolMode.REQUIRED])
def test_parallel_calls_are_bounded(grammars: Grammars, model: RandomModel, mode: ToolMode) -> None:
    """Sixteen calls fit a reply, one where calls may not be parallel."""
    many = Judge(model, grammars, OutputSpec(ToolChoice(mode)), TOOLS)
    assert many.takes("\n".join([SECOND] * 16))
    assert not many.takes("\n".join([SECOND] * 17))
    single = Judge(model, grammars, OutputSpec(ToolChoice(mode, parallel=False)), TOOLS)
    assert single.takes(SECOND)
    assert not single.takes(SECOND + "\n" + SECOND)


def test_a_format_beside_tools(grammars: Grammars, model: RandomModel) -> None:
    """With AUTO a reply matches the format or is calls, but not text and calls."""
    spec = OutputSpec(
        response_format=ResponseFormat(FormatKind.JSON_SCHEMA, '{"type": "object", "properties": {"ok": {"type": "boolean"}}}')
    )
    judge = Judge(model, grammars, spec, TOOLS)
    assert judge.takes('{"ok": true}')
    assert judge.takes(FIRST + "\n" + SECOND)
    assert not judge.takes("Text")
    assert not judge.takes('{"ok": 1}')


@pytest.mark.parametrize(
    "text", ['{"key": "x"}', '{"name": "Bob"}', '{"name": "get"}', '{"name": "get", "parameters": {"key": "x"}}', '{"nam": 1}']
)
def test_a_json_format_beside_calls_that_are_json(grammars: Grammars, model: RandomModel, text: str) -> None:
    """A shape without opening text is no obstacle to JSON that only starts like a call."""
    assert Judge(model, grammars, OutputSpec(response_format=ResponseFormat(FormatKind.JSON_OBJECT)), TOOLS, LLAMA3_JSON).takes(text)


def test_a_schema_with_references_beside_calls_that_are_json(grammars: Grammars, model: RandomModel) -> None:
    """References in a tool's schema lead to the same place where its schema is a part of the call's."""
    schema = {
        "type": "object",
        "properties": {"next": {"$ref": "#"}, "v": {"$ref": "#/$defs/v"}},
        "$defs": {"v": {"enum": [1]}},
        "additionalProperties": False,
    }
    spec = OutputSpec(response_format=ResponseFormat(FormatKind.REGEX, "no"))
    judge = Judge(model, grammars, spec, [ToolSpec("f", "", json.dumps(schema))], LLAMA3_JSON)
    assert judge.takes("no")
    assert judge.takes('{"name": "f", "parameters": {"next": {"next": {}, "v": 1}}}')
    assert not judge.takes('{"name": "f", "parameters": {"next": {"v": 2}}}')


@pytest.mark.parametrize(
    ("form", "good", "bad"),
    [
        (ResponseFormat(FormatKind.JSON_OBJECT, ""), '{"a": [1, {"b": null}], "c": "d"}', "[1]"),
        (ResponseFormat(FormatKind.JSON_OBJECT, ""), "{}", "{ }"),
        (ResponseFormat(FormatKind.JSON_SCHEMA, '{"type": "array", "items": {"type": "integer"}}'), "[1, 2]", "[1,2]"),
        (ResponseFormat(FormatKind.JSON_SCHEMA, "true"), '"x"', "x"),
        (ResponseFormat(FormatKind.REGEX, r"^(yes|no) \d/\d$"), "no 1/2", "no 1/2 or so"),
        (ResponseFormat(FormatKind.LARK, 'start: "a" number\nnumber: /[0-9]+/ | "(" number ")"'), "a((1))", "a((1)"),
    ],
)
def test_formats(grammars: Grammars, model: RandomModel, form: ResponseFormat, good: str, bad: str) -> None:
    """Each kind of format takes all of the reply or nothing."""
    judge = Judge(model, grammars, OutputSpec(response_format=form), [])
    assert judge.takes(good)
    assert not judge.takes(bad)


def test_a_lark_format_beside_tools_keeps_its_own_rules(grammars: Grammars, model: RandomModel) -> None:
    """A caller's rules may have the names of ours, and what it ignores is ignored in its text alone."""
    spec = OutputSpec(response_format=ResponseFormat(FormatKind.LARK, 'start: call\ncall: "x" CHUNK\nCHUNK: /[0-9]+/\n%ignore / /'))
    judge = Judge(model, grammars, spec, TOOLS)
    assert judge.takes("x 1")
    assert judge.takes(FIRST)
    assert not judge.takes(FIRST.replace('{"key"', '{ "key"'))


def test_keys_have_one_spelling(grammars: Grammars, model: RandomModel) -> None:
    """A known key can't come again as an additional one of another type, written with escapes."""
    tool = ToolSpec("f", "", '{"type": "object", "properties": {"a": {"type": "integer"}}, "additionalProperties": {"type": "string"}}')
    judge = Judge(model, grammars, REQUIRED, [tool])
    call = '<tool_call>\n{"name": "f", "arguments": {"a": 1, "%s": "x"}}\n</tool_call>'
    assert judge.takes(call % "b")
    assert not judge.takes(call % "a")
    assert not judge.takes(call % "\\u0061")


def test_names_are_written_as_json_strings(grammars: Grammars, model: RandomModel) -> None:
    """A name with quotes is escaped where the shape has it in a JSON string."""
    judge = Judge(model, grammars, REQUIRED, [ToolSpec('say "hé"', "", "")])
    assert judge.takes('<tool_call>\n{"name": "say \\"hé\\"", "arguments": {}}\n</tool_call>')


def test_compiled_grammars_are_kept(grammars: Grammars) -> None:
    """Equal wishes get the same grammar, other ones another; of very many the oldest are compiled again."""
    first = grammars.compile(REQUIRED, TOOLS, HERMES)
    assert first is grammars.compile(OutputSpec(ToolChoice(ToolMode.REQUIRED)), list(TOOLS), HERMES)
    assert first is not grammars.compile(REQUIRED, TOOLS[:1], HERMES)
    for count in range(MAX_CACHED + 1):
        grammars.compile(OutputSpec(response_format=ResponseFormat(FormatKind.REGEX, f"a{{{count + 1}}}")), [], HERMES)
    assert first is not grammars.compile(REQUIRED, TOOLS, HERMES)


def test_threads_may_compile_at_once(tokenizer: PreTrainedTokenizerBase, model: RandomModel) -> None:
    """Concurrent first uses read the vocabulary once and give grammars that work."""
    grammars = Grammars(tokenizer, model.ends, model.vocab_size)
    with ThreadPoolExecutor(4) as pool:
        judges = list(pool.map(lambda spec: Judge(model, grammars, spec, TOOLS), [AUTO, REQUIRED, AUTO, REQUIRED]))
        assert all(pool.map(lambda judge: judge.takes(FIRST), judges))
