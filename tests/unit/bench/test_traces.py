from __future__ import annotations

import json
import platform
import re
import sysconfig
from importlib.resources import files
from itertools import pairwise
from pathlib import Path

import pytest

from agentmem.bench.record import write_traces
from agentmem.bench.scripts import SCRIPTS
from agentmem.bench.scripts.player import PIECE, approximate_tokens, digest
from agentmem.bench.traces import Trace, load_traces, trace_names
from agentmem.errors import InvalidInput
from agentmem.types import Message

RECORDED = files("agentmem.bench").joinpath("recorded")
TRACES = load_traces()
REPEATED_TOKENS = 40
MACHINE_PATH = re.compile(r"/(work|usr|home|tmp|root|var|opt|private)\b")

each_trace = pytest.mark.parametrize("trace", TRACES, ids=lambda trace: trace.name)


def results(trace: Trace) -> list[Message]:
    """Return the tools' messages in order."""
    return [message for turn in trace.turns for message in turn.messages if message.role == "tool"]


def runs(text: str) -> set[tuple[str, ...]]:
    """Return every run of 40 tokens in ``text``."""
    tokens = PIECE.findall(text)
    return {tuple(tokens[start : start + REPEATED_TOKENS]) for start in range(len(tokens) - REPEATED_TOKENS + 1)}


def repeats(trace: Trace) -> bool:
    """Whether a reply, as text or within a call's arguments, has 40 tokens in a row of an earlier result."""
    seen: set[tuple[str, ...]] = set()
    for turn in trace.turns:
        for message in turn.messages:
            seen |= runs(message.content) if message.role == "tool" else set()
        texts = [turn.reply.content, *(str(value) for call in turn.reply.tool_calls for value in json.loads(call.arguments).values())]
        if any(seen & runs(text) for text in texts):
            return True
    return False


def test_there_is_one_trace_for_each_script() -> None:
    """All scripts have been recorded, and nothing else lies beside them."""
    assert sorted(script.name for script in SCRIPTS) == list(trace_names())
    assert len(TRACES) >= 7


def test_traces_are_chosen_by_name() -> None:
    """Traces come in the order asked for; an unknown name lists the known ones."""
    assert ["shlex_tests", "heapq_rename"] == [trace.name for trace in load_traces(["shlex_tests", "heapq_rename"])]
    with pytest.raises(InvalidInput, match=r"'gone'.*heapq_rename"):
        load_traces(["heapq_rename", "gone"])


@each_trace
def test_a_trace_is_a_conversation(trace: Trace) -> None:
    """It has 8 to 20 turns; each has something new, and a reply that is a text or one call, with a limit that fits it."""
    assert 8 <= len(trace.turns) <= 20
    assert trace.system
    assert trace.about
    for turn in trace.turns:
        assert turn.messages
        assert "assistant" == turn.reply.role
        assert [turn.tool] * bool(turn.tool) == [call.name for call in turn.reply.tool_calls]
        assert turn.tool or turn.reply.content
        assert 16 <= turn.tokens <= 400
    assert not trace.turns[-1].tool


@each_trace
def test_each_result_answers_the_call_before_it(trace: Trace) -> None:
    """After a call comes exactly its result, under the call's id; after a text comes a user. No id is used twice."""
    assert ["user"] == [message.role for message in trace.turns[0].messages]
    for before, after in pairwise(trace.turns):
        calls = [(call.id, call.name) for call in before.reply.tool_calls]
        assert calls == [(message.tool_call_id, message.name) for message in after.messages if message.role == "tool"]
        assert [] == [message.role for message in after.messages if (message.role == "user") == bool(calls)]
    ids = [message.tool_call_id for message in results(trace)]
    assert len(ids) == len(set(ids))
    assert all(re.fullmatch(r"[A-Za-z0-9]{9}", id_) for id_ in ids)  # the only form that Mistral's templates accept


@each_trace
def test_arguments_follow_the_schema(trace: Trace) -> None:
    """Each call names a tool of the trace, and its arguments are what that tool's schema allows."""
    jsonschema = pytest.importorskip("jsonschema")
    schemas = {tool.name: json.loads(tool.parameters) for tool in trace.tools}
    for schema in schemas.values():
        jsonschema.Draft202012Validator.check_schema(schema)
        assert schema["additionalProperties"] is False
    calls = [call for turn in trace.turns for call in turn.reply.tool_calls]
    for call in calls:
        jsonschema.validate(json.loads(call.arguments), schemas[call.name])
    assert schemas.keys() == {call.name for call in calls}, "a tool that is never called only costs context"


@each_trace
def test_results_are_neither_trifles_nor_floods(trace: Trace) -> None:
    """A result has 50 to 3,000 tokens of the approximation; the whole context fits SmolLM2's 8,192 with room for other replies."""
    sizes = [approximate_tokens(message.content) for message in results(trace)]
    assert min(sizes) >= 50
    assert max(sizes) <= 3000
    replies = sum(
        approximate_tokens(turn.reply.content + "".join(call.arguments for call in turn.reply.tool_calls)) for turn in trace.turns
    )
    tools = sum(approximate_tokens(f"{tool.name} {tool.description} {tool.parameters}") for tool in trace.tools)
    assert 3000 <= sum(sizes) + replies + tools <= 7500


def test_replies_repeat_what_was_read() -> None:
    """In most traces a reply has 40 tokens in a row from an earlier result, which is what speculation lives on."""
    assert [] == sorted({trace.name for trace in TRACES} - {trace.name for trace in TRACES if repeats(trace)})


@each_trace
def test_no_path_of_a_machine_is_in_a_trace(trace: Trace) -> None:
    """Neither the scratch directory nor the interpreter's place shows."""
    assert [] == MACHINE_PATH.findall(RECORDED.joinpath(f"{trace.name}.json").read_text(encoding="utf-8"))


def test_the_recorder_writes_the_same_bytes(tmp_path: Path) -> None:
    """With the Python that recorded the traces, the scripts run again give the shipped files."""
    library = Path(sysconfig.get_path("stdlib"))
    shipped = {f"{name}.json": RECORDED.joinpath(f"{name}.json").read_bytes() for name in trace_names()}
    for name, data in shipped.items():
        recorded = json.loads(data)["recorded_with"]
        if recorded["python"] != platform.python_version():
            pytest.skip(f"{name} was recorded with Python {recorded['python']}, this is {platform.python_version()}")
        if changed := [path for path, known in recorded["sources"].items() if digest(library / path) != known]:
            pytest.skip(f"{name} was recorded from other files of the standard library: {', '.join(changed)}")
    assert shipped == {path.name: path.read_bytes() for path in write_traces(tmp_path / "again")}
