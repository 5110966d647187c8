from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from agentmem.chat import Chat, HistoryMatch, match_history
from agentmem.chat.tool_formats import TOOL_FORMATS
from agentmem.chat.tools import written_calls
from agentmem.output import CallDelta
from agentmem.types import Message, ToolCall, ToolSpec

Family = Callable[[str], tuple[Chat, PreTrainedTokenizerBase]]
LS = ToolSpec("ls", "list files", '{"type": "object", "properties": {"depth": {"type": "integer"}}}')
relaxed = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def new_id(index: int) -> str:
    return f"call{index:05}"


# Qwen 3.5's calls, as transformers' own server reads them.
RESPONSE_TEMPLATE = {
    "defaults": {"role": "assistant"},
    "start_anchor": "<|im_start|>assistant\n",
    "fields": {
        "reasoning_content": {"open": "<think>", "close": "</think>", "content": "text"},
        "tool_calls": {
            "open_pattern": r"\s*<tool_call>\s*<function=(?P<name>[^>\n]+)>",
            "close_pattern": r"</function>\s*</tool_call>",
            "repeats": True,
            "content": "xml-inline",
            "content_args": {"tag_pattern": r"<parameter=(?P<key>[^>\n]+)>\s*(?P<value>.*?)\s*</parameter>"},
            "transform": {"type": "function", "function": {"name": "{name}", "arguments": "{content}"}},
        },
        "content": {"close": ["<|im_end|>"], "content": "text"},
    },
}


@pytest.fixture(scope="module")
def templated(tokenizer: PreTrainedTokenizerBase) -> tuple[Chat, PreTrainedTokenizerBase]:
    """Return SmolLM2 with a response template."""
    tokenizer = copy.copy(tokenizer)
    tokenizer.response_template = RESPONSE_TEMPLATE
    return Chat(tokenizer), tokenizer


def test_a_reply_is_what_was_streamed(chat: Chat) -> None:
    """The stream's calls, content and problems are those of the whole reply, ids included."""
    text = 'Looking.\n<tool_call>\n{"name": "ls", "arguments": {"depth":1}}\n</tool_call>\n<tool_call>\n{"name": "cp", "arguments": {"a'
    stream = chat.stream([LS], new_id)
    pieces = [*stream.push(text[:30]), *stream.push(text[30:]), *stream.finish()]
    calls = ToolCall("call00000", "ls", '{"depth":1}'), ToolCall("call00001", "cp", '{"a')
    assert ["Looking.", *(CallDelta(index, call.id, call.name, call.arguments) for index, call in enumerate(calls))] == pieces
    reply = chat.read_reply([1], text, [LS], new_id)
    assert stream.parsed() == reply
    assert Message("assistant", "Looking.", tool_calls=calls) == reply.message == chat.reply([1], text, [LS], new_id)
    assert (("unknown tool 'cp'; known: ls", "the reply ended inside call 1"), True) == (reply.problems, reply.partial)


def test_marks_of_calls_are_text_though_they_are_special(family: Family) -> None:
    """Mistral's special token that opens calls shows in the reply's text, which the calls are found in; others stay hidden."""
    chat, tokenizer = family("mistral")
    ids = tokenizer.encode('Hm.[TOOL_CALLS][{"name": "ls", "arguments": {"depth": 1}}]</s>', add_special_tokens=False)
    detokenizer = chat.detokenizer()
    text = "".join(map(detokenizer.push, ids)) + detokenizer.finish()
    assert 'Hm.[TOOL_CALLS][{"name": "ls", "arguments": {"depth": 1}}]' == text
    assert Message("assistant", "Hm.", tool_calls=(ToolCall("call00000", "ls", '{"depth": 1}'),)) == chat.reply(ids, text, [LS], new_id)


def test_the_tokenizers_response_template_finds_other_calls(templated: tuple[Chat, PreTrainedTokenizerBase]) -> None:
    """Calls in a format that only the response template knows are found, typed by the tool's schema; thinking stays with the content."""
    chat, tokenizer = templated
    call = "<tool_call>\n<function={}>\n<parameter=depth>\n2\n</parameter>\n</function>\n</tool_call>"
    text = f"<think>hm</think>Looking.\n{call.format('ls')}\n{call.format('cp')}"
    reply = chat.read_reply(tokenizer.encode(f"{text}<|im_end|>"), text, [LS], new_id)
    calls = ToolCall("call00000", "ls", '{"depth": 2}'), ToolCall("call00001", "cp", '{"depth": "2"}')
    assert Message("assistant", "hm\n\nLooking.", tool_calls=calls) == reply.message
    assert ("unknown tool 'cp'; known: ls",) == reply.problems


def test_the_table_is_asked_before_the_response_template(templated: tuple[Chat, PreTrainedTokenizerBase]) -> None:
    """Calls that were streamed are kept as they were written; text without calls is kept as it is."""
    chat, tokenizer = templated
    for text in ('<tool_call>{"name": "ls", "arguments": {"depth":1}}</tool_call>', " Just text. ", "<tool_call>", ""):
        stream = chat.stream([LS], new_id)
        stream.push(text)
        stream.finish()
        assert stream.parsed() == chat.read_reply(tokenizer.encode(text), text, [LS], new_id)


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {**RESPONSE_TEMPLATE, "fields": {"tool_calls": {"open": "a", "close": "b", "content": "text"}}},
        {
            **RESPONSE_TEMPLATE,
            "fields": {
                "tool_calls": {"open": "a", "close": "b", "repeats": True, "content": "text", "transform": {"function": {"name": ""}}}
            },
        },
    ],
    ids=["invalid", "nonsense", "nameless"],
)
def test_a_wrong_response_template_is_ignored(tokenizer: PreTrainedTokenizerBase, wrong: dict[str, Any]) -> None:
    """A response template that can't be used, or finds something that is no call, leaves the reply as it is."""
    tokenizer = copy.copy(tokenizer)
    tokenizer.response_template = wrong
    assert Message("assistant", "xaab") == Chat(tokenizer).reply(tokenizer.encode("xaab"), "xaab", [LS])


@pytest.mark.parametrize("template", [None, "{{ raise_exception('no') }}"])
def test_without_a_prompt_replies_are_read(tokenizer: PreTrainedTokenizerBase, template: str | None) -> None:
    """Where there is no chat template, or it refuses the plainest question, the response template is given no prompt."""
    tokenizer = copy.copy(tokenizer)
    tokenizer.chat_template = template
    tokenizer.response_template = RESPONSE_TEMPLATE
    text = "<tool_call><function=ls></function></tool_call>"
    assert [("ls", "{}")] == [(call.name, call.arguments) for call in Chat(tokenizer).reply(tokenizer.encode(text), text).tool_calls]


TEXT = st.text(max_size=6)
NUMBERS = (
    st.integers()
    | st.integers(-10, 10).map(float)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.sampled_from([1e20, 2.0**53, -0.0])
)
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXT, lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner), max_leaves=5
)
SPELLINGS = st.fixed_dictionaries(
    {"ensure_ascii": st.booleans(), "indent": st.sampled_from([None, 2]), "separators": st.sampled_from([None, (",", ":"), (" , ", " : ")])}
)


def shuffled(value: object, draw: st.DrawFn) -> object:
    """Return ``value`` with its keys in another order and whole numbers as floats or the other way round, where that loses nothing."""
    if isinstance(value, dict):
        return {key: shuffled(value[key], draw) for key in draw(st.permutations(list(value)))}
    if isinstance(value, list):
        return [shuffled(item, draw) for item in value]
    if isinstance(value, float) and value.is_integer() and draw(st.booleans()):
        return int(value)
    if type(value) is int and int(float(value)) == value and draw(st.booleans()):
        return float(value)
    return value


@pytest.mark.parametrize("name", tuple(TOOL_FORMATS))
@given(data=st.data())
@relaxed
def test_a_generated_call_comes_back_in_any_spelling(name: str, data: st.DataObject) -> None:
    """A client may parse a call's arguments, write them anew and send them with or without the id: it is the call in the ledger."""
    arguments = data.draw(st.dictionaries(TEXT, VALUES, max_size=3))
    written = json.dumps(arguments, **data.draw(SPELLINGS))
    shape = TOOL_FORMATS.get(name).shape
    text = written_calls(shape, [ToolCall("", "ls", "{}")] * 2).replace("{}", written, 1)
    stream = TOOL_FORMATS.get(name).stream(new_id, ["ls"])
    for char in text:
        stream.push(char)
    stream.finish()
    ledger = stream.parsed().message
    assert ("", written) == (ledger.content, ledger.tool_calls[0].arguments)
    sent = [json.dumps(shuffled(json.loads(call.arguments), data.draw), **data.draw(SPELLINGS)) for call in ledger.tool_calls]
    ids = [call.id * data.draw(st.booleans()) for call in ledger.tool_calls]
    resent = Message("assistant", "", tool_calls=tuple(ToolCall(known, "ls", text) for known, text in zip(ids, sent, strict=True)))
    result = Message("tool", "r", tool_call_id=ids[0])
    assert HistoryMatch(2) == match_history([ledger, Message("tool", "r", tool_call_id="call00000")], [resent, result])


def test_calls_without_or_with_odd_arguments_come_back() -> None:
    """A partial call's empty arguments are an empty object to clients; a newline in a string and the rounding of JavaScript don't count."""
    for known, sent in [
        ("", "{}"),
        ("{}", ""),
        ('{"a": "\n"}', '{"a": "\\n"}'),
        ('{"a": 12345678901234567891}', '{"a": 12345678901234567000}'),
    ]:
        ledger, resent = (Message("assistant", "", tool_calls=(ToolCall("1", "f", text),)) for text in (known, sent))
        assert HistoryMatch(1) == match_history([ledger], [resent])
