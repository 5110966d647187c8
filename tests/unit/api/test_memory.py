from __future__ import annotations

import pytest
from support.api import INFO, TURN, Api, refusal

from agentmem.errors import NotImplementedYet
from agentmem.types import Turn
from agentmem.v1 import memory_pb2 as pb
from agentmem.v1 import views


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


@pytest.mark.parametrize(
    ("method", "request_type", "capability"),
    [
        ("Recall", pb.RecallRequest, "recall"),
        ("Forget", pb.ForgetRequest, "forget"),
        ("SetFidelity", pb.SetFidelityRequest, "set_fidelity"),
    ],
)
async def test_what_is_not_there_yet_says_so(api: Api, method: str, request_type: type, capability: str) -> None:
    """UNIMPLEMENTED carries the reason and the capability's name."""
    error = await refusal(getattr(api.memory, method)(request_type(session_id="s")))
    assert (NotImplementedYet, "UNIMPLEMENTED", {"capability": capability}) == (type(error), error.reason, error.metadata)
