from __future__ import annotations

import logging
from pathlib import Path

import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from support.api import refusal, running

from agentmem.api.auth import Identity, KeyFile
from agentmem.errors import ConfigError, Unauthenticated
from agentmem.types import TenantId
from agentmem.v1 import session_pb2

GET = session_pb2.GetSessionRequest(session_id="s")


def write(path: Path, text: str, mode: int = 0o600) -> Path:
    keys = path / "keys"
    keys.write_text(text)
    keys.chmod(mode)
    return keys


def bearer(token: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", token),)


def test_a_key_file_knows_its_tokens(tmp_path: Path) -> None:
    """Each line is a token and its tenant; comments and empty lines are skipped; a third word makes an admin."""
    keys = KeyFile(write(tmp_path, "# ours\n\nt1 alice\n  t2\tbob admin\nt3 alice\n"))
    assert Identity(TenantId("alice")) == keys.identify("t1")
    assert Identity(TenantId("bob"), admin=True) == keys.identify("t2")
    assert Identity(TenantId("alice")) == keys.identify("t3")
    assert None is keys.identify("t4")
    assert None is keys.identify("")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("t1 alice\nt2\n", "line 2 has 1 words; allowed: `token tenant` or `token tenant admin`"),
        ("t1 alice root\n", "line 1 has 3 words"),
        ("t1 alice admin more\n", "line 1 has 4 words"),
        ("t1 alice\n# x\nt1 bob\n", "line 3 repeats the token of an earlier line"),
        ("# nothing\n", "holds no `token tenant` line"),
    ],
)
def test_a_bad_key_file_names_the_line(tmp_path: Path, text: str, says: str) -> None:
    """The error names the file, the line and what is allowed, and no token."""
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        KeyFile(path)
    assert str(path) in str(caught.value)
    assert says in str(caught.value)
    assert "t1" not in str(caught.value)


def test_a_key_file_that_cannot_be_read(tmp_path: Path) -> None:
    """A missing file and one that is not text are configuration errors."""
    with pytest.raises(ConfigError, match="cannot be read"):
        KeyFile(tmp_path / "missing")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="cannot be read"):
        KeyFile(tmp_path / "binary")


def test_a_key_file_open_to_all_is_warned_about(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A file that everybody may read works, with a warning."""
    with caplog.at_level(logging.WARNING, logger="agentmem.api.auth"):
        KeyFile(write(tmp_path, "t1 alice\n", 0o600))
        assert "" == caplog.text
        KeyFile(write(tmp_path, "t1 alice\n", 0o644))
    assert "readable by everybody" in caplog.text


async def test_the_token_decides_the_tenant(tmp_path: Path) -> None:
    """The manager is asked on behalf of the token's tenant, whatever the case of the scheme."""
    async with running(api_keys=str(write(tmp_path, "t1 alice\nt2 bob\n"))) as api:
        await api.session.GetSession(GET, metadata=bearer("Bearer t1"))
        await api.session.GetSession(GET, metadata=bearer("bearer t2"))
        assert ["alice", "bob"] == [args[0] for _, args, _ in api.sessions.calls]


@pytest.mark.parametrize("header", ["", "Bearer", "Bearer ", "Bearer wrong", "Basic t1", "t1"])
async def test_calls_without_a_known_token_are_refused(tmp_path: Path, header: str) -> None:
    """A missing, malformed or unknown token is UNAUTHENTICATED, and the manager never sees the call."""
    async with running(api_keys=str(write(tmp_path, "t1 alice\n"))) as api:
        error = await refusal(api.session.GetSession(GET, metadata=bearer(header) if header else ()))
        assert Unauthenticated is type(error)
        assert [] == api.sessions.calls


async def test_health_needs_no_token_and_reflection_does(tmp_path: Path) -> None:
    """Probes carry no token; the list of services is for those who may call them."""
    async with running(api_keys=str(write(tmp_path, "t1 alice\n"))) as api:
        health = health_pb2_grpc.HealthStub(api.channel)
        reflection = reflection_pb2_grpc.ServerReflectionStub(api.channel)
        answer = await health.Check(health_pb2.HealthCheckRequest())
        assert health_pb2.HealthCheckResponse.SERVING == answer.status
        ask = [reflection_pb2.ServerReflectionRequest(list_services="")]
        assert Unauthenticated is type(await refusal(reflection.ServerReflectionInfo(iter(ask))))
        [listed] = [answer async for answer in reflection.ServerReflectionInfo(iter(ask), metadata=bearer("Bearer t1"))]
        assert "agentmem.v1.SessionService" in {service.name for service in listed.list_services_response.service}
