from __future__ import annotations

from pathlib import Path

import pytest
from support.api import Api, refusal, running

from agentmem.errors import Forbidden, NotFound
from agentmem.v1 import admin_pb2 as pb
from agentmem.v1 import views
from agentmem.views import Placement, ServerStats


async def test_stats(api: Api) -> None:
    """The replica's numbers come back unchanged."""
    response = await api.admin.GetStats(pb.GetStatsRequest())
    assert ServerStats(version="1", model="m", running=2, tokens_generated=7) == views.stats_from_pb(response)


async def test_prefixes(api: Api) -> None:
    """The tenant's prefixes come back; limit 0 means 100."""
    response = await api.admin.ListPrefixes(pb.ListPrefixesRequest())
    assert ["ab"] == [views.prefix_from_pb(prefix).hash_hex for prefix in response.prefixes]
    assert [("prefixes", ("default", 100), {})] == api.sessions.calls


async def test_drain_begins_and_returns(api: Api) -> None:
    """Drain answers at once; what was asked for reaches whoever runs the server, once however often it is asked."""
    await api.admin.Drain(pb.DrainRequest(seconds=0))
    await api.admin.Drain(pb.DrainRequest())
    assert [0.0] == api.drains


async def test_drain_without_seconds(api: Api) -> None:
    """Where nothing is said, the server's own setting decides."""
    await api.admin.Drain(pb.DrainRequest())
    assert [None] == api.drains


async def test_placement(api: Api) -> None:
    """One replica owns every session; the epoch is the session's."""
    here = await api.admin.GetPlacement(pb.GetPlacementRequest())
    of_session = await api.admin.GetPlacement(pb.GetPlacementRequest(session_id="s"))
    assert Placement("local", f"127.0.0.1:{api.server.port}", local=True) == views.placement_from_pb(here)
    assert Placement("local", f"127.0.0.1:{api.server.port}", local=True, epoch=3) == views.placement_from_pb(of_session)


async def test_placement_of_an_unknown_session(api: Api) -> None:
    """A session that the tenant does not have is nowhere."""
    api.sessions.error = NotFound("no session 'x'")
    assert isinstance(await refusal(api.admin.GetPlacement(pb.GetPlacementRequest(session_id="x"))), NotFound)


@pytest.mark.parametrize(("method", "request_type"), [("GetStats", pb.GetStatsRequest), ("Drain", pb.DrainRequest)])
async def test_operators_calls_need_the_admin_role(tmp_path: Path, method: str, request_type: type) -> None:
    """A tenant may not shut a shared server down nor read everybody's numbers; an admin may."""
    keys = tmp_path / "keys"
    keys.write_text("secret-a alice\nsecret-o ops admin\n")
    keys.chmod(0o600)
    async with running(api_keys=str(keys)) as api:
        call = getattr(api.admin, method)
        error = await refusal(call(request_type(), metadata=(("authorization", "Bearer secret-a"),)))
        assert isinstance(error, Forbidden)
        assert f"{method} needs a token with the admin role" in str(error)
        await call(request_type(), metadata=(("authorization", "Bearer secret-o"),))
