"""Tool calls and formats of replies, on a real engine: constrained, told piece by piece, and the same for every reader."""

from __future__ import annotations

import json
import re

import pytest
from support.replica import TENANT, Answer, Replica

from agentmem.errors import InvalidInput
from agentmem.events import FinishEvent, TokenEvent
from agentmem.output import CallDelta, FormatKind, OutputSpec, ResponseFormat, ToolChoice, ToolMode
from agentmem.types import FinishReason, Message, Policy, SessionFormat, ToolCall, ToolSpec, TurnInput

SCHEMA = {"type": "object", "properties": {"p": {"enum": ["a", "b"]}, "n": {"type": "integer", "minimum": 1, "maximum": 9}}}
READ = ToolSpec("r", "", json.dumps(SCHEMA | {"required": ["p", "n"], "additionalProperties": False}))
NAMED = OutputSpec(ToolChoice(ToolMode.NAMED, "r"))
REQUIRED = OutputSpec(ToolChoice(ToolMode.REQUIRED, parallel=False))


def deltas(answer: Answer) -> list[CallDelta]:
    return [delta for event in answer.events if isinstance(event, TokenEvent) for delta in event.tool_calls]


def content(answer: Answer) -> str:
    return "".join(event.content for event in answer.events if isinstance(event, TokenEvent))


def put_together(answer: Answer) -> tuple[ToolCall, ...]:
    """Return the calls that the deltas make up."""
    pieces = deltas(answer)
    indexes = sorted({piece.index for piece in pieces})
    mine = {index: [piece for piece in pieces if piece.index == index] for index in indexes}
    return tuple(
        ToolCall("".join(p.id for p in mine[i]), "".join(p.name for p in mine[i]), "".join(p.arguments for p in mine[i])) for i in indexes
    )


def calls_of(answer: Answer) -> tuple[ToolCall, ...]:
    assert answer.finish.message is not None
    return answer.finish.message.tool_calls


@pytest.mark.parametrize("output", [NAMED, REQUIRED], ids=["named", "required"])
@pytest.mark.parametrize("sampling", [{}, {"temperature": 1.0, "seed": 4}], ids=["greedy", "sampled"])
async def test_a_call_that_is_asked_for_is_valid(replica: Replica, output: OutputSpec, sampling: dict[str, float]) -> None:
    """Whatever the model would rather say, it calls the tool with arguments that its schema takes; the deltas make up the call."""
    await replica.create(tools=(READ,))
    answer = await replica.ask("a", "go", 200, output=output, **sampling)
    (call,) = calls_of(answer)
    arguments = json.loads(call.arguments)

    assert (FinishReason.TOOL_CALLS, False, ()) == (answer.finish.finish_reason, answer.finish.partial, answer.finish.problems)
    assert ("r", {"p", "n"}) == (call.name, set(arguments))
    assert arguments["p"] in {"a", "b"}
    assert 1 <= arguments["n"] <= 9
    assert (call,) == put_together(answer)
    assert "" == content(answer)
    assert len(deltas(answer)) > 3


@pytest.mark.parametrize("drafter", ["none", "forced", "suffix", "auto"])
async def test_forced_tokens_cost_no_steps_and_change_nothing(replica: Replica, drafter: str) -> None:
    """The call is the same with any drafter; with one, what the grammar leaves no choice about takes no steps of its own."""
    await replica.create("plain", tools=(READ,), policy=Policy(drafter="none"))
    await replica.create(tools=(READ,), policy=Policy(drafter=drafter, draft_tokens=32))
    plain = await replica.ask("plain", "go", 200, output=NAMED, temperature=1.0, seed=9)
    answer = await replica.ask("a", "go", 200, output=NAMED, temperature=1.0, seed=9)

    assert plain.token_ids == answer.token_ids
    assert plain.finish.usage.steps == len(plain.token_ids)
    if drafter != "none":
        assert answer.finish.usage.steps < len(answer.token_ids) / 3


async def test_every_reader_sees_the_same_call(replica: Replica) -> None:
    """A second reader, a replay from memory, from the middle, and from the ledger after a restart: same ids, same arguments."""
    await replica.create(tools=(READ,))
    given = TurnInput((Message("user", "go"),))
    answer = await replica.ask("a", given, 200, output=NAMED, request_id="r")
    again = await replica.ask("a", given, 200, output=NAMED, request_id="r")
    middle = await replica.ask("a", given, 200, output=NAMED, request_id="r", resume_after=40)
    await replica.restart()
    ledger = await replica.ask("a", given, 200, output=NAMED, request_id="r")
    late = await replica.ask("a", given, 200, output=NAMED, request_id="r", resume_after=40)

    assert calls_of(answer) == put_together(again) == put_together(ledger) == calls_of(ledger)
    assert calls_of(answer)[0].arguments.endswith("".join(delta.arguments for delta in deltas(middle)))
    assert put_together(middle) == put_together(late)


async def test_a_call_cut_short_is_delivered_as_partial(replica: Replica) -> None:
    """Max tokens inside a call: the reason is LENGTH, what there is of the call comes along, and the session goes on."""
    await replica.create(tools=(READ,))
    answer = await replica.ask("a", "go", 50, output=NAMED)
    (call,) = calls_of(answer)

    assert (FinishReason.LENGTH, True) == (answer.finish.finish_reason, answer.finish.partial)
    assert "the reply ended inside call 0" in answer.finish.problems
    assert "r" == call.name
    with pytest.raises(ValueError, match="."):
        json.loads(call.arguments)
    assert (call,) == put_together(answer)
    await replica.ask("a", TurnInput((Message("tool", "no", "r", call.id),)), 4)


@pytest.mark.parametrize(
    ("form", "matches"),
    [
        (ResponseFormat(FormatKind.REGEX, "[ab]{3}c"), "[ab]{3}c"),
        (ResponseFormat(FormatKind.JSON_SCHEMA, json.dumps({"enum": ["x", "y"]})), '"[xy]"'),
        (ResponseFormat(FormatKind.LARK, 'start: "yes" | "no"'), "yes|no"),
    ],
    ids=["regex", "json_schema", "lark"],
)
async def test_text_has_the_form_that_is_asked_for(replica: Replica, form: ResponseFormat, matches: str) -> None:
    """The whole text matches and the reply ends by itself."""
    await replica.create()
    answer = await replica.ask("a", "go", 50, output=OutputSpec(response_format=form), temperature=1.0, seed=1)

    assert re.fullmatch(matches, answer.text)
    assert FinishReason.STOP is answer.finish.finish_reason


async def test_a_schema_that_cannot_be_compiled_is_refused_with_its_place(replica: Replica) -> None:
    """Where a call is asked for nothing is generated, and the session stays as it is; with AUTO the reply says what is not constrained."""
    odd = ToolSpec("odd", "d", json.dumps({"type": "object", "properties": {"x": {"type": "array", "uniqueItems": True}}}))
    await replica.create(tools=(odd,))
    with pytest.raises(InvalidInput, match="odd") as refused:
        await replica.ask("a", "go", 8, output=REQUIRED)
    assert "$.properties.x" in refused.value.metadata["path"]
    assert 1 == len(replica.session().turns)
    assert replica.session().writer is None
    for output in (OutputSpec(), OutputSpec(ToolChoice(parallel=False))):
        answer = await replica.ask("a", "go", 8, output=output)
        assert "tool calls are not constrained" in answer.finish.problems[0]


async def test_a_raw_session_has_no_tools(replica: Replica) -> None:
    """To require a call there is refused; a form of the text can be asked for."""
    await replica.create(format=SessionFormat.RAW)
    with pytest.raises(InvalidInput):
        await replica.ask("a", TurnInput(text="go"), 8, output=REQUIRED)
    form = OutputSpec(response_format=ResponseFormat(FormatKind.REGEX, "ab"))
    answer = await replica.ask("a", TurnInput(text="go"), 8, output=form)
    assert "ab" == answer.text
    assert [] == deltas(answer)


async def test_a_call_sent_back_in_other_words_matches(replica: Replica) -> None:
    """A client that resends the conversation may write the call's JSON as it likes: nothing is forked, nothing read again."""
    small = {
        "type": "object",
        "properties": {"p": {"enum": [1]}, "n": {"enum": [2]}},
        "required": ["p", "n"],
        "additionalProperties": False,
    }
    await replica.create(tools=(ToolSpec("r", "", json.dumps(small)),))
    answer = await replica.ask("a", "go", 200, output=NAMED)
    (call,) = calls_of(answer)
    arguments = json.dumps(dict(reversed(json.loads(call.arguments).items())), indent=2)
    before = len(replica.tokens("a"))
    history = (Message("user", "go"), Message("assistant", "", tool_calls=(ToolCall(call.id, "r", arguments),)))
    sent = TurnInput((*history, Message("tool", "t", "r", call.id)), full_history=True)
    second = await replica.ask("a", sent, 4)

    assert "a" == second.start.session_id
    assert before - 1 <= second.start.reuse.device + second.start.reuse.host + second.start.reuse.disk
    assert isinstance(second.events[-1], FinishEvent)
    assert 1 == len((await replica.manager.list(TENANT, labels={}, page_size=10, page_token=""))[0])
