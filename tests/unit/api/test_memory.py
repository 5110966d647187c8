from __future__ import annotations

import pytest
from support.api import INFO, SPAN, TURN, Api

from agentmem.types import Fidelity, Turn
from agentmem.v1 import memory_pb2 as pb
from agentmem.v1 import views
from agentmem.v1.enums import FIDELITY
from agentmem.views import ForgetTarget


async def test_inspect_leaves_out_what_is_long(api: Api) -> None:
    """Messages and token ids come only when asked for; counts always."""
    response = await api.memory.Inspect(pb.InspectRequest(session_id="s"))
    [turn] = response.turns
    assert (3, 1, 1, 100, 0, 0) == (
        turn.n_tokens, turn.n_blocks, turn.blocks_on_disk, turn.disk_bytes, len(turn.turn.messages), len(turn.turn.token_ids)
    )  # fmt: skip
    assert INFO == views.session_from_pb(response.session)


async def test_inspect_shows_everything_when_asked(api: Api) -> None:
    """With both switches the turn is the ledger's."""
    response = await api.memory.Inspect(pb.InspectRequest(session_id="s", include_messages=True, include_token_ids=True))
    seen: Turn = views.turn_info_from_pb(response.turns[0]).turn
    assert TURN == seen


async def test_seal(api: Api) -> None:
    """The sealed session comes back."""
    response = await api.memory.Seal(pb.SealRequest(session_id="s"))
    assert INFO == views.session_from_pb(response.session)


async def test_inspect_asks_for_attention_only_when_told_to(api: Api) -> None:
    """The switch reaches the manager; it is off by default, since it costs a forward pass."""
    await api.memory.Inspect(pb.InspectRequest(session_id="s"))
    await api.memory.Inspect(pb.InspectRequest(session_id="s", include_attention=True))
    assert [False, True] == [kwargs["attention"] for _, _, kwargs in api.sessions.calls]


@pytest.mark.parametrize(("fields", "k"), [({}, 10), ({"k": 1}, 1), ({"k": 1000}, 1000)])
async def test_recall(api: Api, fields: dict[str, int], k: int) -> None:
    """The spans come back as the manager found them; without k there are at most ten."""
    response = await api.memory.Recall(pb.RecallRequest(session_id="s", text="code", **fields))
    assert [SPAN] == [views.span_from_pb(span) for span in response.spans]
    assert [("recall", ("default", "s", "code", k), {})] == api.sessions.calls


async def test_forget(api: Api) -> None:
    """The messages reach the manager as they were named, duplicates too, and the session comes back."""
    targets = (ForgetTarget(1, 0), ForgetTarget(2, 3), ForgetTarget(1, 0))
    response = await api.memory.Forget(views.forget_to_pb("s", targets))
    assert INFO == views.session_from_pb(response.session)
    assert [("forget", ("default", "s", targets), {})] == api.sessions.calls


@pytest.mark.parametrize("fidelity", Fidelity)
async def test_set_fidelity(api: Api, fidelity: Fidelity) -> None:
    """Every fidelity reaches the manager, AUTO too."""
    response = await api.memory.SetFidelity(pb.SetFidelityRequest(session_id="s", fidelity=FIDELITY[fidelity]))
    assert INFO == views.session_from_pb(response.session)
    assert [("set_fidelity", ("default", "s", fidelity), {})] == api.sessions.calls
