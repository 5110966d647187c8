"""Context editing: what was forgotten is gone from the ledger and the disk, and the session ends up as if it had never been said."""

from __future__ import annotations

import pytest
from support.replica import TENANT, Replica, user
from support.sealing import EXACT, exact

from agentmem.errors import InvalidInput, NotFound
from agentmem.types import Fidelity, MissReason
from agentmem.views import ForgetTarget

SECRET = "the launch code is 7351 " * 4


async def told(replica: Replica, **fields: object) -> None:
    """Make a session of three turns, the first of which tells a secret."""
    await replica.create(system="be brief", **fields)
    for text in (SECRET, "what else is there? " * 4, "and then? " * 4):
        await replica.ask("a", text, 12, ignore_eos=True)
    await replica.settle()


async def forget(replica: Replica, *targets: tuple[int, int]) -> None:
    await replica.core.manager.forget(TENANT, "a", [ForgetTarget(*target) for target in targets])


async def test_an_exact_call_answers_as_if_it_had_never_been_read(replica: Replica) -> None:
    """Its tokens equal those of transformers for the conversation without the message, and the report says that it was forgotten."""
    await told(replica, policy=EXACT)
    before = replica.tokens()
    background = replica.session().background
    assert background is not None
    async with background.resting():  # it might be done first, and leave nothing to compute again
        await forget(replica, (1, 0))
        after = replica.tokens()
        answer = await replica.ask("a", "so?", 12, ignore_eos=True, fidelity=Fidelity.EXACT)

    assert len(before) - len(after) >= len(SECRET)
    exact(replica, answer)
    assert MissReason.FORGOTTEN == answer.finish.reuse.reason
    await replica.settle()
    await replica.check()


async def test_what_was_said_is_gone_and_an_entry_stays(replica: Replica) -> None:
    """Neither messages nor tokens hold the text, also after a restart; inspecting shows that something was forgotten."""
    await told(replica)
    await forget(replica, (1, 0))
    await replica.restart()
    info, turns = await replica.core.manager.inspect(TENANT, "a", attention=False)

    assert [0, 1, 0, 0] == [turn.forgotten for turn in turns]
    assert "" == turns[1].turn.messages[0].content
    assert "7351" not in bytes(b for b in replica.tokens() if b < 256).decode("latin-1")
    assert info.n_turns == 4
    exact(replica, await replica.ask("a", "so?", 8, ignore_eos=True, fidelity=Fidelity.EXACT))


async def test_other_replies_do_not_wait(replica: Replica) -> None:
    """A call that does not ask for EXACT goes on at once over the old memory with a hole, and all is exact again later."""
    await told(replica)
    await forget(replica, (1, 0))
    session = replica.session()
    if session.stale is not None:  # idle steps may have been faster
        answer = await replica.ask("a", "so?", 8, ignore_eos=True)
        assert answer.finish.fidelity in (Fidelity.RECALL, Fidelity.EXACT)
    session = await replica.settle()

    assert session.stale is None
    assert session.info().exact
    exact(replica, await replica.ask("a", "and now?", 8, ignore_eos=True, fidelity=Fidelity.EXACT))
    await replica.check()


async def test_forgetting_twice_is_no_error(replica: Replica) -> None:
    """A retry finds nothing left to do."""
    await told(replica)
    await forget(replica, (1, 0), (1, 0))
    tokens = replica.tokens()
    await forget(replica, (1, 0))

    assert tokens == replica.tokens()


@pytest.mark.parametrize("target", [(9, 0), (1, 7), (1, 1)])
async def test_wrong_targets_change_nothing(replica: Replica, target: tuple[int, int]) -> None:
    """A turn or message that is not there, and the assistant's own replies, are refused by name."""
    await told(replica)
    tokens = replica.tokens()
    with pytest.raises((InvalidInput, NotFound)):
        await forget(replica, (1, 0), target)

    assert tokens == replica.tokens()
    assert SECRET == replica.session().turns[1].messages[0].content


async def test_forks_keep_what_they_have(replica: Replica) -> None:
    """A fork that was taken before is another session: it forgets nothing."""
    await told(replica)
    await replica.core.manager.fork(TENANT, "a", at_turn=None, new_id="b", labels=None)
    await forget(replica, (1, 0))

    assert SECRET == replica.session("b").turns[1].messages[0].content
    exact(replica, await replica.ask("b", "so?", 8, ignore_eos=True, fidelity=Fidelity.EXACT), "b")


async def test_a_resent_conversation_stays_forgotten(replica: Replica) -> None:
    """A client that resends its whole history, the forgotten message included, goes on where it was."""
    await told(replica)
    history = [*replica.session().messages]
    await forget(replica, (1, 0))
    tokens = replica.tokens()
    given = user("so?")
    whole = type(given)(messages=(*history, *given.messages), full_history=True)
    answer = await replica.ask("a", whole, 8, ignore_eos=True, fidelity=Fidelity.EXACT)

    assert "a" == answer.start.session_id
    assert tokens == replica.tokens()[: len(tokens)]
