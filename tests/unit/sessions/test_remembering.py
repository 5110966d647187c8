"""What replies of one tenant may draft from: its sessions' tool calls and results, until something of them is deleted."""

from __future__ import annotations

from support.replica import OTHER, TENANT, Replica, until

from agentmem.types import Message, TenantId, TurnInput
from agentmem.views import ForgetTarget

RESULT = 'def hello():\n    print("hi")\n'


def remembered(replica: Replica, text: str, tenant: TenantId = TENANT) -> bool:
    """Whether ``text`` stands in the tenant's corpus."""
    tokens = replica.core.engine.speculator.corpora.of(tenant).automaton.tokens.array.tolist()
    ids = replica.manager.generator.chat.encode_text(text)
    return any(tokens[at : at + len(ids)] == ids for at in range(len(tokens)))


async def told(replica: Replica, name: str = "a") -> None:
    await replica.create(name)
    await replica.ask(name, TurnInput((Message("user", "go"), Message("tool", RESULT, "", "c"))), 4)
    await until(lambda: remembered(replica, RESULT[1:-1]))


async def test_results_are_remembered_as_they_are_and_as_json_has_them(replica: Replica) -> None:
    """A reply may repeat a result in a code block, or as an argument of a call; another tenant's replies know nothing of it."""
    await told(replica)
    await until(lambda: remembered(replica, 'def hello():\\n    print(\\"hi\\")\\n'))
    assert not remembered(replica, "go")
    assert not remembered(replica, RESULT, OTHER)


async def test_a_session_that_is_deleted_leaves_nothing(replica: Replica) -> None:
    """Delete removes everything, drafts included."""
    await told(replica)
    await replica.manager.delete(TENANT, "a")
    assert not remembered(replica, RESULT)


async def test_a_result_that_is_forgotten_is_no_draft_any_more(replica: Replica) -> None:
    """What was forgotten comes back nowhere."""
    await told(replica)
    await replica.manager.forget(TENANT, "a", [ForgetTarget(1, 1)])
    assert not remembered(replica, RESULT)
