"""Tool calls of replies that a stop string, the end of the tokens or a restart cut in two: every reader gets the same."""

from __future__ import annotations

import json

import pytest
from support.replica import Answer, Replica, user

from agentmem.events import TokenEvent
from agentmem.output import CallDelta, FormatKind, OutputSpec, ResponseFormat, ToolChoice, ToolMode
from agentmem.types import FinishReason, Policy, SamplingParams, ToolSpec

SCHEMA = {"type": "object", "properties": {"p": {"enum": ["a", "b"]}, "n": {"enum": [1, 2, 3]}}}
READ = ToolSpec("r", "", json.dumps(SCHEMA | {"required": ["p", "n"], "additionalProperties": False}))
NAMED = OutputSpec(ToolChoice(ToolMode.NAMED, "r"))
WORDS = OutputSpec(response_format=ResponseFormat(FormatKind.REGEX, "[ab]{9}c+d[ab]{9}"))


def told(*answers: Answer) -> tuple[str, str, tuple[tuple[int, str, str, str], ...]]:
    """Return the text, the content and the calls that the events of one reader, over one stream or several, make up."""
    tokens = [event for answer in answers for event in answer.events if isinstance(event, TokenEvent)]
    calls: dict[int, CallDelta] = {}
    for delta in (delta for event in tokens for delta in event.tool_calls):
        known = calls.setdefault(delta.index, CallDelta(delta.index))
        calls[delta.index] = CallDelta(delta.index, known.id + delta.id, known.name + delta.name, known.arguments + delta.arguments)
    pieces = tuple((call.index, call.id, call.name, call.arguments) for call in calls.values())
    return "".join(event.text for event in tokens), "".join(event.content for event in tokens), pieces


def cut(answer: Answer, count: int) -> Answer:
    """Return the events up to the one that brings token ``count``: what a client has whose stream breaks there."""
    kept = [event for event in answer.events if isinstance(event, TokenEvent) and event.token_ids and event.index < count]
    assert sum(len(event.token_ids) for event in kept) == count
    return Answer(tuple(kept))


@pytest.mark.parametrize(("output", "tools"), [(NAMED, (READ,)), (WORDS, ())], ids=["call", "text"])
@pytest.mark.parametrize("stop", [(), ('"n": ', "cd"), ("cX", 'n": 9')], ids=["whole", "stopped", "held back"])
async def test_a_reader_that_comes_back_hears_the_rest(
    replica: Replica, output: OutputSpec, tools: tuple[ToolSpec, ...], stop: tuple[str, ...]
) -> None:
    """Broken off after any number of tokens, taken up in memory or after a restart: text, content and calls are those of one stream."""
    await replica.create(tools=tools, policy=Policy(drafter="none"))
    options = {"output": output, "request_id": "r", "temperature": 1.0, "seed": 3, "stop": stop}
    answer = await replica.ask("a", user("go"), 200, **options)
    ends = [event.index + len(event.token_ids) for event in answer.events if isinstance(event, TokenEvent) and event.token_ids]
    reason = FinishReason.STOP_STRING if stop and "X" not in stop[0] else answer.finish.finish_reason
    assert reason is answer.finish.finish_reason
    assert answer.finish.text == told(answer)[0]

    for place in ("memory", "ledger"):
        if place == "ledger":
            await replica.restart()
        again = await replica.ask("a", user("go"), 200, **options)
        assert (place, *told(answer)) == (place, *told(again))
        same = ("text", "message", "partial", "problems", "finish_reason")
        assert [getattr(answer.finish, name) for name in same] == [getattr(again.finish, name) for name in same]
        for end in ends:
            rest = await replica.ask("a", user("go"), 200, resume_after=end, **options)
            assert (place, end, *told(answer)) == (place, end, *told(cut(answer, end), rest))


async def test_a_call_cut_short_is_the_same_after_a_restart(replica: Replica) -> None:
    """Max tokens inside the call: a reader of the ledger gets the partial call, and hears that it is one."""
    await replica.create(tools=(READ,))
    answer = await replica.ask("a", user("go"), 50, output=NAMED, request_id="r")
    await replica.restart()
    again = await replica.ask("a", user("go"), 50, output=NAMED, request_id="r")
    assert (told(answer), True, answer.finish.problems) == (told(again), again.finish.partial, again.finish.problems)
    assert answer.finish.message == again.finish.message


@pytest.mark.parametrize("sampling", [SamplingParams(), SamplingParams(temperature=1.0, seed=9)], ids=["greedy", "sampled"])
@pytest.mark.parametrize("output", [NAMED, OutputSpec(), WORDS], ids=["named", "auto", "regex"])
async def test_drafts_under_a_grammar_change_nothing(replica: Replica, output: OutputSpec, sampling: SamplingParams) -> None:
    """Without drafts, with those of the tenant's past and with whatever is best, two replies in a row have the same tokens."""
    heard = {}
    for drafter in ("none", "suffix", "auto"):
        await replica.create(drafter, tools=() if output is WORDS else (READ,), policy=Policy(drafter=drafter, draft_tokens=8))
        heard[drafter] = [
            (await replica.ask(drafter, "go", 70, output=output, temperature=sampling.temperature, seed=sampling.seed)).token_ids
            for _ in range(2)
        ]
    assert heard["none"] == heard["suffix"] == heard["auto"]
