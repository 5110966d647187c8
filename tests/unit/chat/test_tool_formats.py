from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
from support.chat_templates import CHATML, FAMILIES, LLAMA3, QWEN3
from transformers import PreTrainedTokenizerBase

from agentmem.chat import Chat
from agentmem.chat.tool_formats import TOOL_FORMATS
from agentmem.errors import InvalidInput
from agentmem.types import Message, ToolCall, ToolSpec

Family = Callable[[str], tuple[Chat, PreTrainedTokenizerBase]]
NAMED = """\
{%- for message in messages %}
    {%- if message.role == "user" %}{{- "[AVAILABLE_TOOLS]" + (tools | tojson) + "[/AVAILABLE_TOOLS][INST]" + message.content + "[/INST]" }}
    {%- elif message.tool_calls %}
        {%- for call in message.tool_calls %}
            {{- "[TOOL_CALLS]" + call.function.name + "[ARGS]" + (call.function.arguments | tojson) }}
        {%- endfor %}
    {%- else %}{{- message.content }}{%- endif %}
{%- endfor %}"""


def stream(name: str, text: str, known: tuple[str, ...] | None = ("ls",)) -> tuple[list[tuple[str, str]], str, list[str]]:
    """Return the calls, the content and the problems of a reply."""
    stream = TOOL_FORMATS.get(name).stream(str, known)
    stream.push(text)
    stream.finish()
    return [(call.name, call.arguments) for call in stream.calls], stream.content, stream.problems


def with_template(tokenizer: PreTrainedTokenizerBase, template: str) -> Chat:
    tokenizer = copy.copy(tokenizer)
    tokenizer.chat_template = template
    return Chat(tokenizer)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("smollm2", "hermes"),
        ("chatml", "hermes"),
        ("qwen2.5", "hermes"),
        ("qwen3", "hermes"),
        ("llama3", "llama3_json"),
        ("mistral", "mistral"),
    ],
)
def test_the_template_says_how_the_model_calls(family: Family, name: str, expected: str) -> None:
    """A model's format is the one that reads what its template writes; without tools in the template it is Hermes'."""
    assert {"smollm2", "gemma3"} | set(FAMILIES) >= {name}
    assert expected == family(name)[0].tool_format.name


def test_other_templates(tokenizer: PreTrainedTokenizerBase) -> None:
    """Mistral's newer format is known by its template; a prompt that opens a tag hides no call; what nothing reads is Hermes'."""
    assert "mistral_args" == with_template(tokenizer, NAMED).tool_format.name
    opened = QWEN3.replace("'<|im_start|>assistant\\n' }}{%- endif %}", "'<|im_start|>assistant\\n<think>' }}{%- endif %}")
    assert opened != QWEN3
    assert "hermes" == with_template(tokenizer, opened).tool_format.name
    assert "hermes" == with_template(tokenizer, LLAMA3.replace('"parameters"', '"args"')).tool_format.name
    no_calls = "{{ tools | tojson if tools }}" + CHATML.replace(
        "message.content", "(raise_exception('no') if message.tool_calls else message.content)"
    )
    assert "hermes" == with_template(tokenizer, no_calls).tool_format.name


@pytest.mark.parametrize("name", tuple(TOOL_FORMATS))
def test_sections_show_tools_and_how_to_call(name: str) -> None:
    """The section shows each tool and the marks that its own shape writes; bad parameters are refused."""
    tool_format = TOOL_FORMATS.get(name)
    section = tool_format.section([ToolSpec("ls", "list files", "{}")])
    assert '{"type": "function", "function": {"name": "ls", "description": "list files", "parameters": {}}}' in section
    assert tool_format.shape.open.strip() in section.rpartition("</tools>")[2]
    assert name == tool_format.name
    with pytest.raises(InvalidInput):
        tool_format.section([ToolSpec("ls", "", "[]")])


@pytest.mark.parametrize("name", tuple(TOOL_FORMATS))
def test_what_is_written_is_read(name: str) -> None:
    """A message with content and calls, put into text, is read back."""
    message = Message("assistant", "Look:", tool_calls=(ToolCall("", "ls", '{"a": "é"}'), ToolCall("", "cat", "{}")))
    assert ([("ls", '{"a": "é"}'), ("cat", "{}")], "Look:", []) == stream(name, TOOL_FORMATS.get(name).write(message).content, None)


JSON_CALLS = [
    ('{"name": "ls"}', "{}"),
    ('{"name": "ls", "arguments": {}, "id": "x"}', "{}"),
    ('{"arguments": {"a": [1]}, "name": "ls"}', '{"a": [1]}'),
    ('{ "name" :\n"ls" , "parameters" : { "a":1 } , }', '{ "a":1 }'),
    ('{"name": "l\\u0073", "arguments": "{\\"a\\": \\"\\u00e9\\"}"}', '{"a": "é"}'),
]


@pytest.mark.parametrize(("call", "arguments"), JSON_CALLS)
@pytest.mark.parametrize(("name", "marks"), [("hermes", ("<tool_call>", "</tool_call>")), ("mistral", ("[TOOL_CALLS] [ ", " ]"))])
def test_calls_are_read_however_they_are_spelled(name: str, marks: tuple[str, str], call: str, arguments: str) -> None:
    """Order of keys, whitespace, escapes, arguments in a string or none at all: arguments come as written, a string's as it reads."""
    assert ([("ls", arguments)], "", []) == stream(name, f"{marks[0]}{call}{marks[1]}")


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ('"{"', "call 0 is not valid JSON: Expecting property name"),
        ('"\\ud800"', "the arguments of call 0 are not a JSON object"),
        ("[1]", "the arguments of call 0 are not a JSON object"),
        ('{"a": "\n"}', "call 0 is not valid JSON: Invalid control character"),
        ("[" * 50_000 + "]" * 50_000, "call 0 is not valid JSON: it is nested too deeply"),
    ],
)
def test_odd_arguments_are_delivered_and_reported(arguments: str, problem: str) -> None:
    """Arguments that are no object, or JSON in all but strings, reach the client, and the problem is named."""
    calls, content, problems = stream("hermes", f'<tool_call>{{"name": "ls", "arguments": {arguments}}}</tool_call>')
    assert ([("ls", "{" if arguments == '"{"' else arguments)], "") == (calls, content)
    assert problems[0].startswith(problem)


@pytest.mark.parametrize(
    ("text", "calls", "content", "problem"),
    [
        (
            '<tool_call>{"name": "ls"} and more</tool_call>',
            [("ls", "{}")],
            "and more</tool_call>",
            "call 0 is not closed: 'a' in the place of",
        ),
        ('<tool_call>{"name": "ls", oops', [("ls", "")], ", oops", "call 0 is malformed: 'o' in the place of a string"),
        ('<tool_call>{"name": "ls", "name": "x"}', [("ls", "")], ', "name": "x"}', "call 0 is malformed: it has two names"),
        (
            '<tool_call>{"arguments": {}, "arguments": {}, "name": "ls"}</tool_call>',
            [],
            '<tool_call>{"arguments": {}, "arguments": {}, "name": "ls"}</tool_call>',
            "call 0 is malformed: it has arguments twice",
        ),
        (
            '<tool_call>{"name": "ls", "arguments": {}\n</tool_call>',
            [("ls", "{}")],
            "",
            "call 0 is not valid JSON: its last '}' is missing",
        ),
        ('<tool_call>{"name": "ls", "arguments": {}} </tool', [("ls", "{}")], "", "the reply ended before call 0 was closed"),
        ('<tool_call>{"arguments": {}}</tool_call>', [], '<tool_call>{"arguments": {}}</tool_call>', "call 0 is malformed: it has no name"),
        ('<tool_call>{"name": "\\x"}', [], '<tool_call>{"name": "\\x"}', "call 0 is malformed: its name is not valid JSON"),
        ('<tool_call>{"name": "ls", "arguments": "{\\"a', [("ls", '"{\\"a')], "", "the reply ended inside call 0"),
        ('<tool_call>{"arguments": {}, "arguments', [], '<tool_call>{"arguments": {}, "arguments', "the reply ended inside call 0"),
    ],
)
def test_what_is_wrong_with_a_call_is_said(text: str, calls: list[tuple[str, str]], content: str, problem: str) -> None:
    """What breaks after the name leaves a call and the rest as content; what breaks before it is content as a whole."""
    found, shown, problems = stream("hermes", text)
    assert (calls, content) == (found, shown)
    assert problems[0].startswith(problem)


def test_a_list_may_break_after_its_first_call() -> None:
    """Calls that were complete stay; the one that is none, and what follows it, is content."""
    text = '[TOOL_CALLS][{"name": "ls"}, {"nam": "ls"}] so'
    assert ([("ls", "{}")], ', {"nam": "ls"}] so', ["call 1 is malformed: it has no name"]) == stream("mistral", text)
    assert ([("ls", "{}")], "", ["the reply ended before call 0 was closed"]) == stream("mistral", '[TOOL_CALLS][{"name": "ls"}, ')
    assert ([("ls", "{}")], "so", ["call 0 is not closed: 's' in the place of ',' or ']'"]) == stream(
        "mistral", '[TOOL_CALLS][{"name": "ls"} so'
    )


def test_mistrals_ids_are_skipped() -> None:
    """An id that the model makes up is not text and not part of the name; a name without arguments, or with spaces, is no call."""
    assert ([("ls", '{"a": 1}')], "", []) == stream("mistral_args", '[TOOL_CALLS]ls[CALL_ID]abc123XYZ[ARGS]{"a": 1}')
    assert ([("ls", "{}")], "", []) == stream("mistral_args", "[TOOL_CALLS]ls{}")
    for text in ("[TOOL_CALLS]ls me", "[TOOL_CALLS]ls[AR", "[TOOL_CALLS]ls[CALL]", "[TOOL_CALLS]ls[CALL_ID]x[y]{}"):
        calls, content, problems = stream("mistral_args", text)
        assert ([], text, 1) == (calls, content, len(problems))


@pytest.mark.parametrize(
    "text",
    [
        '{"name": "Alice", "age": 3}',
        '{"name": "Alice"}',
        '{"type": "object", "name": "ls"}',
        '{"name": 1, "parameters": {}}',
        'Use {"name": "ls", "parameters": {}} for that',
        '{"parameters": {}, "name": "ls"}',
        '{"name": "Alice", "name": "Bob"}',
    ],
)
def test_json_need_not_be_a_call(text: str) -> None:
    """To Llama's format, JSON without the form of a call is an answer, and no problem."""
    assert ([], text, []) == stream("llama3_json", text)


def test_bare_calls_stand_on_lines_of_their_own() -> None:
    """Llama's calls start a line; a semicolon puts another one behind; an unknown name needs parameters to be a call."""
    call = '{"name": "ls", "parameters": {}}'
    assert ([("ls", "{}")] * 3, "A", []) == stream("llama3_json", f"A\n  {call}; {call}\n{call}")
    assert ([("ls", "{}")], "", []) == stream("llama3_json", '{"type": "function", "name": "ls"}')
    assert [("x", "{}")] == stream("llama3_json", '{"name": "x", "parameters": {}}')[0]
    assert ([("ls", "{}")], "; so {", ["call 0 is not closed: 's' in the place of a call's '{'"]) == stream("llama3_json", f"{call}; so {{")
