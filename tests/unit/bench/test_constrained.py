from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from support.in_process import InProcess
from support.replica import save_replica_model

from agentmem.bench import constrained
from agentmem.bench.constrained import Call, Group, Sizes, judged, load_validator, random_tool
from agentmem.bench.options import Options
from agentmem.bench.tool_schemas import AskedTool
from agentmem.errors import InvalidInput
from agentmem.events import FinishEvent
from agentmem.types import Fidelity, FinishReason, Message, ReuseReport, ToolCall, ToolSpec, Usage

TOOL = ToolSpec("f", "", json.dumps({"type": "object", "properties": {"n": {"type": "integer", "maximum": 9}}, "required": ["n"]}))


def finish(*calls: tuple[str, str], partial: bool = False, problems: tuple[str, ...] = ()) -> FinishEvent:
    message = Message("assistant", "", tool_calls=tuple(ToolCall(f"id{n}", *call) for n, call in enumerate(calls)))
    usage = Usage(output_tokens=20, accepted=12)
    reason = FinishReason.LENGTH if partial else FinishReason.STOP
    return FinishEvent(1, reason, message, "", usage, ReuseReport(), Fidelity.EXACT, durable=True, partial=partial, problems=problems)


@pytest.mark.parametrize("name", ["schemas", "calls_per_tool", "sessions", "max_tokens"])
def test_sizes_that_measure_nothing_are_refused(name: str) -> None:
    """There is at least one of each."""
    with pytest.raises(InvalidInput, match=f"{name} is 0"):
        Sizes(**{name: 0})


def test_a_call_that_matches_is_valid() -> None:
    """Its tokens and those that were forced are counted."""
    assert Call(TOOL, tokens=20, forced=12) == judged(TOOL, finish(("f", '{"n": 3}')), load_validator())


@pytest.mark.parametrize(
    ("reply", "problem"),
    [
        (finish(("f", '{"n": 10}')), "$.n: 10 is greater"),
        (finish(("f", "{}")), "'n' is a required property"),
        (finish(("f", '{"n": ')), "no JSON"),
        (finish(("f", '{"n": '), partial=True), "ended by length within the call"),
        (finish(), "calls []"),
        (finish(("g", '{"n": 3}')), "calls ['g']"),
        (finish(("f", '{"n": 3}'), ("f", '{"n": 3}')), "calls ['f', 'f']"),
        (finish(("f", '{"n": 3}'), problems=("odd",)), "odd"),
    ],
)
def test_anything_else_is_invalid(reply: FinishEvent, problem: str) -> None:
    """Wrong arguments, a call without an end, none at all, another tool, several, or a complaint of the server's."""
    call = judged(TOOL, reply, load_validator())
    assert problem in call.problem
    assert reply.partial == call.partial


def test_a_group_adds_up() -> None:
    """Shares are of all tokens and of all steps; no tokens and no steps are no division by zero."""
    row = Group("g", [Call(TOOL, tokens=30, forced=20), Call(TOOL, "bad", partial=True, tokens=10)], 0.5, 10.0).row()
    assert ("g", 2, 1, 1, 40, 0.5, 5.0) == tuple(row[key] for key in ("group", "calls", "valid", "partial", "tokens", "forced", "overhead"))
    assert (0.0, 0.0) == ((empty := Group("g", [], 0.0, 0.0).row())["forced"], empty["overhead"])


def test_a_random_tool_has_its_seed_in_its_name() -> None:
    """So an invalid call can be made again from what the report says."""
    assert "tool_7" == random_tool(7).spec.name
    assert random_tool(7) == random_tool(7)


def test_without_jsonschema_nothing_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package is in the extra, and the error says so."""
    monkeypatch.setitem(sys.modules, "jsonschema", None)
    with pytest.raises(InvalidInput, match="agentmem-kv.bench"):
        load_validator()


def asked(name: str, **schema: object) -> AskedTool:
    return AskedTool(ToolSpec(name, "", json.dumps({"type": "object", "additionalProperties": False, **schema})), "Go.")


async def test_calls_hold_and_refusals_are_invalid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls of a model that knows nothing match their schemas; a schema that the server refuses counts as an invalid call."""
    monkeypatch.setattr(constrained, "ServerProcess", InProcess)
    small = {"type": "object", "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 99}}, "additionalProperties": False}
    monkeypatch.setattr(constrained, "random_schema", lambda seed: small | {"required": ["n"][:seed]})
    good = asked("good", properties={"a": {"enum": [1, "x"]}, "b": {"type": "string", "pattern": "^[a-c]{1,3}$"}}, required=["a"])
    bad = asked("bad", properties={"a": {"type": "array", "uniqueItems": True}})
    options = Options(str(save_replica_model(tmp_path / "model")), "fp32", 1, 1, tmp_path / "cache")
    report = await constrained.run(options, lambda _: None, Sizes(2, 2, 2, 400, (good, bad)))
    assert [("random", 2, 2), ("real tools", 4, 2), ("all", 6, 4)] == [(row["group"], row["calls"], row["valid"]) for row in report.rows]
    assert 4 / 6 == report.measured["valid_share"]
    assert 0 < report.measured["guide_overhead"] < 1
    assert all(0 < float(row["forced"]) < 1 for row in report.rows)
    assert [True, True] == ["invalid, bad" in note and "uniqueItems" in note for note in report.notes]
    assert json.dumps(report.as_dict(), allow_nan=False)
