from __future__ import annotations

import pytest
from support.api import Api, refusal

from agentmem.errors import NotImplementedYet
from agentmem.v1 import session_pb2

GET = session_pb2.GetSessionRequest(session_id="s")


async def returned_id(api: Api, *sent: tuple[str, str]) -> str:
    call = api.session.GetSession(GET, metadata=sent)
    found = {key: value for key, value in await call.initial_metadata()}  # noqa: C416  # an iterable of pairs, not a dict
    await call
    return str(found["x-request-id"])


async def test_the_clients_request_id_comes_back(api: Api) -> None:
    """What the client calls the call is what the server calls it."""
    assert "abc-1" == await returned_id(api, ("x-request-id", "abc-1"))


@pytest.mark.parametrize("sent", ["", "a b", "x" * 129])
async def test_an_unusable_request_id_is_replaced(api: Api, sent: str) -> None:
    """An id that can't be logged as one word is replaced by a fresh one."""
    first, second = await returned_id(api, ("x-request-id", sent)), await returned_id(api)
    assert (32, 32) == (len(first), len(second))
    assert first != second


async def test_an_unknown_method(api: Api) -> None:
    """A method that does not exist is UNIMPLEMENTED, and no metric takes its name."""
    call = api.channel.unary_unary("/agentmem.v1.SessionService/Nothing")
    assert NotImplementedYet is type(await refusal(call(b"")))
    assert None is api.metrics.registry.get_sample_value(
        "agentmem_calls_total", {"method": "/agentmem.v1.SessionService/Nothing", "code": "UNIMPLEMENTED"}
    )
